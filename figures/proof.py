"""
What can be proved, how soon, and what it takes.

No claim of the paper's. model.prove tries all cases that a clause can meet; a model that is right in
each is right on every sentence of its task, of any length and shape.

    python -m figures.proof          a table, no picture: 135 runs, half an hour on 2 cores
    python -m figures.proof search   random sentences of every shape, to break the proof: 10 minutes

The default of train.py learns groups of 2 to 8 elements, 5 seeds each, 10 of sign. Then one part is
changed at a time, for sign, and the cases that are wrong in the end are counted.
"""
import statistics
import sys
from dataclasses import dataclass

import torch

import lego
import train
from figures import runs, show
from model import prove

TASKS = ["sign", "d3", "c2", "c3", "c4", "c5", "c6", "s3", "c7", "d4"]
MORE_STEPS = 600  # the most, for other tasks than sign and d3; a run ends when it is proved


@dataclass
class Changed(train.Config):
    hears_all: bool = False  # association takes the mean over all places, as if all of them knew
    kernel_size: int = 7  # of the convolution
    n_sentences: int = 0  # a fixed training set of so many sentences, coins anew; 0: new ones every step


CHANGES = {  # label: dials
    "the default": {},
    "association hears all places": dict(hears_all=True),
    "not taught to know nothing": dict(unknown_weight=0.0),
    "a convolution over 5 places": dict(kernel_size=5),
    **{f"{n} of 12 labelled": dict(n_supervised=n) for n in (1, 2, 3)},
    **{f"{n} clauses, all labelled": dict(n_clauses=n, n_supervised=n) for n in (1, 2, 3, 4)},
    **{f"{n} training sentences in all": dict(n_sentences=n) for n in (4, 8, 16, 32, 64)},
}


def make_model(config):
    model = train.make_model(config)
    attn = model.blocks[0].attn
    if config.hears_all:
        attn.forward = lambda *given: type(attn).forward(attn, *given[:5])  # without `known`
    if config.kernel_size < 7:
        attn.manipulation.conv.weight.register_hook(lambda grad: grad * of_kernel(config))
        with torch.no_grad():
            attn.manipulation.conv.weight *= of_kernel(config)
    return model


def of_kernel(config):
    """1 inside of the smaller kernel, 0 outside."""
    place = torch.arange(7) - 3
    return (place.abs() <= config.kernel_size // 2).float()


def draw(config, size, step, device):
    """As train.draw_sentences, from a fixed set if there is one."""
    if not config.n_sentences:
        return train.draw_sentences(config, size, step, device)
    task = lego.make_task(config.task, config.n_names)
    generator = train.make_generator(config, "set")
    graphs = lego.random_graphs(config.n_sentences, config.n_clauses, 0.0, generator)
    batch = lego.sample(task, graphs, generator).ask(slice(config.n_supervised))
    generator = train.make_generator(config, "rows", step)
    rows = torch.randint(config.n_sentences, (size,), generator=generator)
    return lego.reveal(task, batch.rows(rows), generator).to(device)


def run(config):
    """The history of a run, with `cases`: what prove says of all of them in the end."""
    model = make_model(config)
    history = train.train(config, model, draw=draw)
    if train.is_proved(history):
        return dict(history, cases=history["proof"])
    return dict(history, cases=prove(model, lego.make_task(config.task)))


def line(label, histories):
    """A line of the notebook: proved in how many seeds, after how much, or how many cases are wrong."""
    proved = [history for history in histories if not history["cases"]["n_wrong"]]
    steps, seconds = ([history[key][-1] for history in proved] for key in ("step", "seconds"))
    text = f"{label:<32}{len(proved):>3} of {len(histories):<5}{histories[0]['cases']['n_cases']:>9,}"
    if proved:
        text += f"{show.span(steps):>14} {statistics.median(steps):>5.0f} {statistics.median(seconds):>7.1f} s"
    wrong = [history["cases"]["n_wrong"] for history in histories if history["cases"]["n_wrong"]]
    return text + ("   wrong: " + ", ".join(map(str, wrong))) * bool(wrong)


def configs():
    usual = {task: dict(task=task) for task in ("sign", "d3")}
    more = {task: dict(task=task, max_steps=MORE_STEPS, eval_every=20)
            for task in TASKS if task not in usual}
    return {label: [Changed(**dials, seed=seed, out_dir="") for seed in range(10 if label == "sign" else 5)]
            for label, dials in (usual | CHANGES | more).items()}


# ---- an attempt to break the proof ----------------------------------------------------------------------------------


def any_sentence(task, generator):
    """A random sentence of 1 to 1,024 clauses, of any shape; some lack a definition, some have a circle."""
    dice = lambda n: int(torch.randint(n, (), generator=generator))
    n = 1 + dice([12, 12, 12, 40, 40, 40, 120, 1024 if dice(8) == 0 else 120][dice(8)])
    branch = [0.0, 0.1, 0.5, 1.0][dice(4)]
    parents = lego.random_graphs(1, n, branch, generator)
    if dice(4) == 0:  # hubs: a few variables that all others use
        parents = torch.minimum(parents, torch.tensor(1 + dice(3)))
    tokens = lego.sample(task, parents, generator).tokens[0]
    clauses = tokens.view(-1, lego.TOKENS_PER_CLAUSE)
    if dice(3) == 0 and n > 1:  # without some of the clauses
        clauses = clauses[torch.rand(n, generator=generator) < 0.8]
    if dice(3) == 0 and len(clauses) > 1:  # some clauses take any argument, so that circles come about
        which = torch.rand(len(clauses), generator=generator) < 0.2
        clauses[which, lego.ARGUMENT] = clauses[torch.randint(len(clauses), (int(which.sum()),), generator=generator), 0]
    return clauses.flatten()


@torch.no_grad()
def search(model, n_sentences, seed=0, dtype=torch.float32):
    """
    Answers of a model to random sentences against the solver: how many variables were asked, how many
    facts were false after any loop, and how many were late, not known after as many loops as their depth.
    """
    task, generator = lego.make_task(model.config.task, lego.MAX_NAMES), torch.Generator().manual_seed(seed)
    asked = false = late = 0
    for _ in range(n_sentences):
        ids = any_sentence(task, generator)
        if not len(ids):
            continue
        batch = lego.batch_of([lego.decode(ids, task)], task)
        truth, depths = batch.values[0], batch.depths[0]
        with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
            for loop, (x, _) in enumerate(model.layers(batch.tokens), 1):
                known = model.hand_on(x, batch.tokens)[0, batch.positions[0]] - 1
                false += int(((known >= 0) & (known != truth)).sum())
                late += int(((depths <= loop) & (truth >= 0) & (known < 0)).sum())
        late += int(((depths > loop) & (truth >= 0)).sum())
        asked += len(truth)
    return dict(sentences=n_sentences, asked=asked, false=false, late=late)


def main():
    if sys.argv[1:2] == ["search"]:
        found = []
        for task in ("sign", "d3"):
            config = train.Config(task=task, out_dir="")
            model = train.make_model(config)
            train.train(config, model)
            for dtype, n in ((torch.float32, 1000), (torch.bfloat16, 100)):
                found.append(dict(task=task, dtype=str(dtype), **search(model, n, dtype=dtype)))
                print(found[-1], flush=True)
                runs.save("proof.search", found)
        return
    found = runs.get("proof", configs(), run)
    print(f"{'':<32}proved       cases         steps   median")
    for label, histories in found.items():
        print(line(label, histories))


if __name__ == "__main__":
    main()
