"""
The shortcut: a model that is 100% right on the last variable, and does not follow the chain.

Claim (the paper's): in some settings the model finds a shortcut, which impairs its robustness, and
there are ways to prevent it. In `sign` the last variable of a whole chain is the parity of all
minus signs: it can be counted, without a look at any name. No other variable can.

    python -m figures.shortcut          33 runs, 1 hour on 2 cores

Vanilla attention, 6 clauses over 6 names, all labelled, 1,600 steps, and with each cure. LEGO
attention: untied, 600 steps; the default of train.py, until it is proved. Counting fails beside a
second chain, which brings a second root, and with a branch: two clauses take the same variable.
"""
import torch

import lego
import train
from figures import mimic, runs, show
from figures.varied import Varied, chains_beside, draw, vanilla
from model import predict


def count_operations(tokens, task) -> torch.Tensor:
    """
    The value (B,) of the operations in sentences (B, T), followed in the order of the text: what
    can be said without a look at the names. In a whole chain of `sign` the last variable has it.
    """
    operations = tokens[:, 2::lego.TOKENS_PER_CLAUSE] - task.first_operation  # (B, T) -> (B, n)
    in_order = torch.arange(operations.size(1), device=tokens.device).expand_as(operations)
    return lego.follow(task, operations, in_order)[0][:, -1]


@torch.no_grad()
def interfere(model, config, size=1000):
    """
    What a model makes of whole chains, and of sentences in half of which counting fails:

        right     accuracy of every variable, in order of depth
        counts    share in which the last variable's answer is what counting gives
        differ    accuracy of the last variable where counting is wrong
    """
    task, n, found = lego.make_task(config.task, config.n_names), config.n_clauses, {}
    generator = torch.Generator().manual_seed(2**31)
    beside, first_chain = chains_beside(size, n - 2, 2, generator)
    for name, graphs, columns in (
            ("whole", lego.random_graphs(size, n, generator=generator), slice(n)),
            ("branch", torch.tensor([0, 1, 2, 3, 4, 2]).expand(size, -1), slice(n)),
            ("beside", beside, first_chain)):
        batch = lego.sample(task, graphs, generator).ask(columns).to(model.head.weight.device)
        answers = predict(model, batch).argmax(-1)  # (B, n)
        right, counted = answers == batch.values, count_operations(batch.tokens, task)
        is_wrong = counted != batch.values[:, -1]  # (B,)
        found[name] = dict(right=right.float().mean(0).tolist(),
                           counts=(answers[:, -1] == counted).float().mean().item())
        if is_wrong.any():
            found[name]["differ"] = right[is_wrong, -1].float().mean().item()
    return found


def run(config):
    """The history of a run; its `looks`: what `interfere` finds at evaluations but the first."""
    looks = []

    def evaluate(model, config, step):
        if step > 0:
            looks.append(interfere(model, config))
        return train.evaluate(model, config, step)

    return train.train(config, draw=draw, evaluate=evaluate) | dict(looks=looks)


def last(looks, test, what):
    """What some looks of `interfere` have found of the last variable in a test, in %."""
    return [100 * (look[test][what][-1] if what == "right" else look[test][what]) for look in looks]


def table(ends):
    """Lines of figures/README.md, of the last looks {label: [look of every seed]}."""
    columns = ("whole", "right"), ("branch", "counts"), ("branch", "differ"), ("beside", "differ")
    lines = []
    for label, looks in ends.items():
        cells = [" ".join(f"{x:.0f}" for x in last(looks, *column)) for column in columns]
        lines.append("".join(f"{cell:<22}" for cell in (label, *cells)).rstrip())
    return lines


def main():
    six = dict(n_clauses=6, n_supervised=6, n_names=6, eval_every=50, out_dir="")
    untied = dict(six, tied=False, n_layer=6, batch_size=128, eval_size=500, lr=4e-3, muon_lr=4e-2,
                  ema=0.95, schedule="constant", max_steps=600, stop_at=0.0)
    fresh = [dict(n_layer=6, max_steps=1600, seed=s) for s in range(5)]
    begun = [dict(d, init_from=f"out/mimicking-untied-6-{d['seed']}") for d in fresh]
    rows = {  # label: in the words of the picture, the runs
        "nothing": ("vanilla, whole chains", [vanilla(**d) for d in fresh]),
        "mimicking": ("... begun from mimicking", [vanilla(**d) for d in begun]),
        "distractors": ("vanilla, second chains", [vanilla(**d, n_distractor=2) for d in fresh]),
        "branches": ("vanilla, branches", [vanilla(**d, branch=1.0) for d in fresh]),
        "mimicking, branches": ("... begun from mimicking",
                                [vanilla(**d, branch=1.0) for d in begun]),
        "untied LEGO": ("LEGO, untied, whole chains",
                        [Varied(**untied, seed=s) for s in range(3)]),
        "facts": ("LEGO, tied: hands on facts", [train.Config(**six, seed=s) for s in range(5)]),
    }
    groups = {label: configs for label, (_, configs) in rows.items()}
    found = runs.get("shortcut", groups, run, before=mimic.beginnings(groups))
    ends = {label: [history["looks"][-1] for history in found[label]] for label in found}
    print(*table(ends), sep="\n")

    of_base = lambda test, what: show.span(last(ends["mimicking"], test, what))
    figure, ((whole, answers, cures),) = show.picture(
        f"{of_base('whole', 'right')}% right on whole chains, {of_base('branch', 'differ')}% where "
        "a branch makes the count of signs wrong", 1, 3, 12.5, 4.8,
        "vanilla attention, 6 clauses over 6 names, all labelled, 6 layers, width 64, 1,600 steps; "
        "title and middle begun from mimicking; the count is wrong where a branch has a minus; "
        "a dot or a line is a seed, 3 of untied LEGO attention, 5 of others; 1 thread a run")
    for label, color, y in ("nothing", show.BLUE, 10), ("branches", show.GREEN, 92):
        for look in ends[label]:
            whole.plot(range(1, 7), [100 * x for x in look["whole"]["right"]], "o-", color=color)
        whole.text(3, y, rows[label][0].replace("vanilla,", "trained on"), color=color)
    for history in found["mimicking"]:
        steps, looks = history["step"][1:], history["looks"]
        answers.plot(steps, last(looks, "whole", "right"), color=show.BLUE)
        answers.plot(steps, last(looks, "branch", "differ"), color=show.RED)
    answers.text(850, 87, "on whole chains", color=show.BLUE)
    answers.text(850, 25, "where the count\nis wrong", color=show.RED)
    show.dots(cures, [(rows[label][0], last(looks, "branch", "differ"), show.RED)
                      for label, looks in ends.items()])
    whole.set(title="whole chains, in the end", xlabel="variable, in order", ylabel="right (%)")
    answers.set(title="the last variable, in training", xlabel="training steps", ylabel="right (%)")
    cures.set(title="the last variable, with each cure", ylabel="model, trained on", xlim=(0, 100),
              xlabel="right where the count is wrong (%)")
    for panel, place in (whole, 0.15), (answers, 0.45):
        panel.set_ylim(-2, 102)
        show.mark(panel, 50, place=place)
    show.mark(cures, 50, vertical=True)
    figure.savefig(runs.FOLDER / "shortcut.png", dpi=150)


if __name__ == "__main__":
    main()
