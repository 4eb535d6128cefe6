"""
After which layer can the value of each variable be read at its own left-hand side?

Claim (of third parties, on the paper's models): tied Transformers resolve the variables one after another over their
depth, untied ones less so.

    python -m figures.flow              24 runs, 15 with a changed value, 6 of mimicking to begin from: an hour

6 clauses, all labelled, 6 layers or loops, width 64, 3 seeds: vanilla attention untied and tied, LEGO attention chained
and parallel; each trained on whole chains of 2 to 6 clauses, and on chains beside a second one of up to 2 clauses,
where counting signs does not help. Vanilla attention begins from mimicking there: from random weights it stays with two
variables. Probes: ridge regression in closed form on 2,000 new sentences per layer and variable. flow.patch.json has 15
runs in which a value is changed after a layer, to see whose answers change with it; there vanilla attention begins from
mimicking on whole chains, too.
"""
import numpy as np
import torch
import torch.nn.functional as F

from figures import generalisation, runner, show
import lego
import train
from attention import make_plan

NAME = "flow"
SEEDS = range(3)
UNTIED_LEGO = dict(tied=False, branch=0.0, batch_size=128, eval_size=500, schedule="constant")
MODELS = {
    "vanilla, untied": train.PRESETS["vanilla"],
    "vanilla, tied": dict(train.PRESETS["vanilla"], tied=True),
    "LEGO, chained": UNTIED_LEGO,
    "LEGO, parallel": dict(UNTIED_LEGO, chained=False),
}
SENTENCES = {  # what is trained on, never more than 6 clauses; what is asked for in a test is whole chains of 6
    "whole": dict(min_clauses=2),
    "beside": dict(min_clauses=3, n_distractor=2),
}
SHOWN = {"vanilla, untied; whole, from mimicking": "vanilla attention, whole chains:\nit may count",
         "vanilla, untied; beside": "vanilla attention, second chains:\nit must follow"}
CHANGED = {"vanilla, untied; beside": "vanilla attention,\nvariable 1 changed", "LEGO, chained; beside":
           "LEGO attention,\nvariable 1 changed"}


def beginning(model, seed):
    """The mimicking that vanilla attention begins from; without it second chains leave it at two variables."""
    return generalisation.mimicking(model.removeprefix("vanilla, "), seed, 6).out_dir


def config_of(model, kind, seed, **more):
    """6 clauses, all labelled, for 6 layers, or a block with 6 loops."""
    is_lego = "LEGO" in model
    return train.Config(**{**MODELS[model], **SENTENCES[kind], "n_clauses": 6, "n_supervised": 6, "n_names": 6,
                           "n_layer": 6, "stop_at": 0.0, "max_steps": 400 if is_lego and kind == "whole" else 1600,
                           "eval_every": 200 if is_lego else 400, "out_dir": "", "seed": seed,
                           "init_from": "" if is_lego or kind == "whole" else beginning(model, seed), **more})


def groups():
    """{label: [config of every seed]}, every model on both kinds of sentences."""
    return {f"{model}; {kind}": [config_of(model, kind, seed) for seed in SEEDS]
            for kind in SENTENCES for model in MODELS}


def states_of(model, batch):
    """The states (L, B, n, C) at the positions of a batch, after every layer."""
    at = batch.positions[..., None].expand(-1, -1, model.config.n_embd)
    return torch.stack([x.gather(1, at) for x, _ in model.layers(batch.tokens)])


@torch.no_grad()
def read_out(model, config, size=2000, ridge=1e-6):
    """
    How well every variable's value can be read from the state at its own left-hand side after every layer: a linear
    probe for each pair of layer and variable, fitted on `size` fresh sentences and measured on as many others.

    Returns {"true": [layer][variable], "shuffled": the same for labels that belong to other sentences}: accuracies. The
    fit is the closed form of ridge regression on one-hot values, the likeliest value the answer.
    """
    task, generator = train.make_task(config), torch.Generator().manual_seed(2**31)
    halves = [lego.sample(task, size, config.n_clauses, generator) for _ in range(2)]  # to fit, to measure
    device = train.pick_device(config.device)  # the fit stays on the CPU, which has float64
    states = [states_of(model, lego.Batch(*(x.to(device) for x in half))).cpu() for half in halves]
    x, x_test = (F.pad(s.double(), (0, 1), value=1.0).transpose(1, 2) for s in states)  # (L, n, B, C + 1), a bias
    gram = x.mT @ x + ridge * size * torch.eye(x.size(-1))  # (L, n, C + 1, C + 1)
    accuracy = {}
    for name, rows in (("true", torch.arange(size)), ("shuffled", torch.randperm(size, generator=generator))):
        y, y_test = (F.one_hot(half.values[rows], len(task.values)).double().transpose(0, 1) for half in halves)
        weight = torch.linalg.solve(gram, x.mT @ y)  # (L, n, C + 1, |X|)
        right = (x_test @ weight).argmax(-1) == y_test.argmax(-1)  # (L, n, B)
        accuracy[name] = right.double().mean(-1).tolist()
    return accuracy


@torch.no_grad()
def patch(model, config, size=200):
    """
    What a value does once it is known. Of two sentences that differ in the sign of the first clause, so in every value,
    what the model has after a layer at one left-hand side, its state or what a loop hands on, is put from the second
    into the first: [layer][variable put in][variable asked in the end], the share of answers that are the second's.
    """
    task, generator = train.make_task(config), torch.Generator().manual_seed(2**31 + 1)
    device = model.head.weight.device
    batch = lego.Batch(*(x.to(device) for x in lego.sample(task, size, config.n_clauses, generator)))
    signs, other = batch.positions[:, :1] + 2, batch.tokens.clone()  # b = - a ;
    other.scatter_(1, signs, sum(map(task.vocab.index, task.operations)) - batch.tokens.gather(1, signs))
    states, others = ([x for x, _ in model.layers(tokens, config.n_layer)] for tokens in (batch.tokens, other))
    hand_on = (lambda x: x) if config.carry == "none" else model.hand_on
    plan, flips = make_plan(batch.tokens), []
    for layer in range(config.n_layer):
        flips.append([])
        for position in batch.positions.T[..., None, None]:  # (B, 1, 1)
            x, y = hand_on(states[layer]), hand_on(others[layer])  # (B, T, C) or the beliefs
            at = position.expand(-1, 1, x.size(-1))
            x = x.scatter(1, at, y.gather(1, at))
            for later in range(layer + 1, config.n_layer):
                if config.carry == "none":
                    x = F.layer_norm(x, x.shape[-1:]) if config.positions == "none" else x
                    x, _ = model.blocks[0 if config.tied else later](x, batch.tokens, None, plan)
                else:
                    (state, _), = model.layers(batch.tokens, 1, x)
                    x = hand_on(state)
            answers = (x if config.carry == "beliefs" else model.to_logits(x)).argmax(-1).gather(1, batch.positions)
            flips[-1].append((answers != batch.values).float().mean(0).tolist())
    return flips


def patched():
    """{label: [config of every seed]} of flow.patch.json: models that follow the chain, and one that may count."""
    default = dict(n_clauses=6, n_supervised=6, n_names=6, eval_every=150, out_dir="")
    begun = {f"{model}; whole, from mimicking": [config_of(model, "whole", seed, init_from=beginning(model, seed))
                                                 for seed in SEEDS] for model in ("vanilla, untied", "vanilla, tied")}
    return {"default": [train.Config(**default, seed=seed) for seed in SEEDS],
            **{label: groups()[label] for label in ("LEGO, chained; beside", "vanilla, untied; beside")},
            **begun}


def train_and_patch(config):
    model = train.make_model(config)
    return train.train(config, model, read_out) | dict(patch=patch(model, config))


def run(config):
    return train.train(config, look=read_out)


def first_layers(history, at=0.9):
    """The layer after which each variable can first be read in the end, from 1 on; None if there is none."""
    known = np.array(history["looks"][-1]["true"]) >= at  # (L, n)
    return [int(layers.argmax()) + 1 if layers.any() else None for layers in known.T]


def stairs(runs):
    """Lines of figures/README.md: the first layers of every model and seed, trained on either kind of sentences."""
    in_words = lambda history: " ".join(str(layer or "-") for layer in first_layers(history))
    return [f"{model:<20}" + "     ".join("   ".join(map(in_words, runs[f"{model}; {kind}"])) for kind in SENTENCES)
            for model in MODELS]


def words(runs):
    """Lines of figures/README.md: which answers change with variable 1, after each layer, of every seed."""
    lines = []
    for label, histories in runs.items():
        for history in histories:
            changed = [[i for i, share in enumerate(layer[0], 1) if share > 0.5] for layer in history["patch"]]
            read = " ".join(str(layer or "-") for layer in first_layers(history))
            lines.append(f"{label + ', seed ' + str(history['config']['seed']):<48}read: {read:<13}changes: "
                         + "  ".join(",".join(map(str, those)) or "-" for those in changed))
    return lines


def draw(_):
    """All of flow.patch.json, whose vanilla models begin from mimicking on either kind of sentences."""
    runs = runner.load(f"{NAME}.patch")
    last = [first_layers(history)[-1] for history in runs[next(iter(SHOWN))]]
    c, hardware = runs["LEGO, chained; beside"][0]["config"], runs["LEGO, chained; beside"][0]["hardware"]
    figure, axes = show.picture(
        "A counted variable is known early; followed ones come in the order of the chain", 2, 2, 9.5, 8.6,
        f"{c['n_clauses']} clauses, all labelled, untied layers, width {c['n_embd']}, mean of {len(SEEDS)} seeds, "
        "tested on whole chains; vanilla attention begins from mimicking. Above: a linear probe reads a variable where "
        "it is defined; a dot is the first layer after which one seed's probe is 90% right; trained on whole chains "
        f"the last variable is counted, and known after layers {show.span(last)}. Below, trained beside second chains: "
        f"after a layer the state at variable 1 is made that of a sentence with all values changed; {hardware} a run")
    for panel, (label, title) in zip(axes[0], SHOWN.items()):
        accuracy = 100 * np.mean([history["looks"][-1]["true"] for history in runs[label]], 0)  # (L, n)
        read = heat(panel, accuracy, 50, title)
        for i, history in enumerate(runs[label]):
            places = [(v + 0.2 * (i - 1), layer) for v, layer in enumerate(first_layers(history), 1) if layer]
            panel.plot(*zip(*places), "o", color=show.ORANGE, markeredgecolor="black", markersize=6)
    for panel, (label, title) in zip(axes[1], CHANGED.items()):
        flips = np.mean([history["patch"] for history in runs[label]], 0)  # (L, n, n)
        changed = heat(panel, 100 * flips[:, 0], 0, title, "changed after layer")
    bar = figure.colorbar(read, ax=axes[0], label="its value can be read (%)", ticks=[50, 100], shrink=0.6)
    bar.ax.set_yticklabels(["50\nchance", "100"])
    figure.colorbar(changed, ax=axes[1], label="its answer changes (%)", ticks=[0, 100], shrink=0.6)
    return figure


def heat(panel, share, lowest, title, ylabel="read after layer"):
    """One panel: shares in % (L, n), one for each layer and variable."""
    n_layer, n = share.shape
    panel.set(title=title, xlabel="variable, in chain order", ylabel=ylabel, xticks=range(1, n + 1),
              yticks=range(1, n_layer + 1))
    return panel.imshow(share, cmap="Blues", vmin=lowest, vmax=100, origin="lower",
                        extent=(0.5, n + 0.5, 0.5, n_layer + 0.5))


if __name__ == "__main__":
    runner.main(NAME, draw, groups, run, [
        generalisation.mimicking(kind, seed, 6) for kind in generalisation.KINDS for seed in SEEDS],
        before=[("patch", patched, train_and_patch)])
