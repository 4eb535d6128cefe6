"""
Vanilla attention from random weights, untied (BERT-like) against tied (ALBERT-like).

Claim (the paper's): such Transformers learn LEGO when every variable is labelled; when only the first ones are, the
untied model goes little beyond them and the tied one further.

    python -m figures.generalisation                18 runs: 61 minutes on 2 cores
    python -m figures.generalisation --scale=gpu    12 clauses, 12 layers: not run yet, its recipe is a guess

Untied and tied, 3 seeds: `--preset=vanilla` of train.py with all variables labelled, with the first half, and with the
first half on `d3`, in larger batches.
"""
import torch

from figures import runner, show
import lego
import train

NAME = "generalisation"
SEEDS = range(3)
SCALES = {  # dials on top of --preset=vanilla, and those of d3 on top of these
    "laptop": (dict(), dict(batch_size=512, max_steps=3000)),
    "gpu": (dict(n_clauses=12, n_names=12, n_layer=12, n_embd=256, n_head=8, batch_size=1000, max_steps=6000,
                 eval_every=100, eval_size=2000, dtype="bfloat16", compile=True), dict()),
}
CELLS = {  # the task, and one over the share of the variables that is labelled
    "sign, all variables labelled": ("sign", 1),
    "sign, the first half labelled": ("sign", 2),
    "d3, the first half labelled": ("d3", 2),
}
KINDS = {"untied": show.BLUE, "tied": show.RED}


def groups(scale="laptop"):
    """{label: [config of every seed]}, untied and tied, for each of the cells."""
    general, for_d3 = SCALES[scale]
    configs = {}
    for label, (task, part) in CELLS.items():
        dials = {**train.PRESETS["vanilla"], **general, **(for_d3 if task == "d3" else {})}
        dials.update(task=task, n_supervised=dials["n_clauses"] // part, stop_at=0.0, out_dir="")
        for kind in KINDS:
            configs[f"{kind}, {label}"] = [
                train.Config(**{**dials, "tied": kind == "tied", "carry": "none", "seed": seed}) for seed in SEEDS]
    return configs


def final(history, n_evaluations=5):
    """Accuracy of every variable over the last evaluations together, in percent."""
    last = history["accuracy"][-n_evaluations:]
    return [100 * sum(column) / len(last) for column in zip(*last)]


def draw(runs):
    histories = [history for group in runs.values() for history in group]
    labelled = [min(final(history)[: history["config"]["n_supervised"]]) for history in histories]
    c, for_d3 = (runs[f"tied, {task}, the first half labelled"][0]["config"] for task in ("sign", "d3"))
    figure, axes = show.picture(
        f"Vanilla attention learns the labelled variables ({sum(x >= 99 for x in labelled)} of {len(labelled)} runs); "
        "the rest stay near chance", 1, 3, 10.5, 4.2,
        f"from random weights; {c['n_clauses']} clauses, {c['n_layer']} layers, width {c['n_embd']}; "
        f"a dot is a seed after {c['max_steps']:,} steps (d3: {for_d3['max_steps']:,}), over its last evaluations; "
        f"shaded: the variables that carry a label in training; {histories[0]['hardware']} a run")
    for panel, (label, (task, part)) in zip(axes[0], CELLS.items()):
        for i, (kind, color) in enumerate(KINDS.items()):
            for k, history in enumerate(runs[f"{kind}, {label}"]):
                place = torch.arange(1, c["n_clauses"] + 1) + 0.3 * i - 0.25 + 0.1 * k
                panel.plot(place, final(history), "o", color=color, markersize=5, alpha=0.75, markeredgewidth=0,
                           clip_on=False, label=kind if k == 0 else None)
        n_supervised = c["n_clauses"] // part
        panel.axvspan(0.5, n_supervised + 0.5, color=show.GRAY, alpha=0.15, linewidth=0)
        show.mark(panel, 100 / len(lego.make_task(task).values), place=0.2)
        which = "all" if part == 1 else f"the first {n_supervised}"
        panel.set(title=f"{task}: {which} labelled", xlim=(0.5, c["n_clauses"] + 0.5), ylim=(0, 101),
                  xlabel="variable, in chain order", ylabel="test accuracy (%)")
    axes[0, 2].legend(frameon=False, loc="center right", title="layers")
    return figure


if __name__ == "__main__":
    runner.main(NAME, draw, groups, scales=(*SCALES,))
