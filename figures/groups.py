"""
Larger groups: s5, the 120 permutations of five things, and a5, the 60 even ones, the smallest group not solvable.

Ours; the paper has groups of 2 and 6 elements.

    python -m figures.groups            24 runs, which begin from 15 more: 1.2 hours on 2 cores

The default at width 128 with 128 sentences a step, 3 seeds, learns sign (2 elements), d3 (6), s4 (24), a5 (60) and s5
(120) from 12 clauses, 6 labelled. Products first: it begins from the weights of a model of the same shape that has
learned sentences of two clauses, which ask for a single product. At once: from random weights, with more tokens than
both take together.
"""
import json
from dataclasses import asdict

import torch

from figures import extrapolation, runner, show
import lego
import train
from model import read_checkpoint

NAME = "groups"
SEEDS = range(3)
TASKS = {"s4": 24, "a5": 60, "s5": 120}  # and how many elements each has
TESTS = {"chain of 12": (1000, 12, {}), "chain of 26": (1000, 26, {}), "chain of 100": (100, 100, {})}
COLORS = {"products first": show.RED, "at once": show.GRAY}


def products(task, seed):
    """The config that learns the products; its weights are kept in out/."""
    return train.Config(task=task, n_clauses=2, n_supervised=2, n_embd=128, batch_size=512, schedule="constant",
                        max_steps=4000, stop_at=0.99, eval_every=25, eval_size=500, seed=seed,
                        out_dir=f"out/products-{task}-{seed}")


def config_of(task, seed, first):
    """The config that learns 12 clauses."""
    begins = dict(init_from=products(task, seed).out_dir, max_steps=2500) if first else dict(max_steps=5000)
    return train.Config(task=task, n_embd=128, eval_every=50, seed=seed, out_dir="", **begins)


def groups():
    """{label: [config of every seed]}: at once the larger groups alone, the smaller ones are figures/learning.py's."""
    runs = {f"products first, {task}": [config_of(task, seed, True) for seed in SEEDS] for task in TASKS}
    return runs | {f"at once, {task}": [config_of(task, seed, False) for seed in SEEDS] for task in TASKS}


def prepare(configs):
    """Trains what the configs begin from."""
    runner.make_checkpoints([products(config.task, config.seed) for config in configs if config.init_from])


def run(config):
    """
    The history of a run, with `asked`, {test: [number of sentences, of those right in all variables, accuracy of the
    worst variable]}, and `before`, the steps, seconds and tokens of the run that it begins from.
    """
    model = train.make_model(config)
    history = train.train(config, model)
    before = json.loads(read_checkpoint(config.init_from)["history"]) if config.init_from else {}
    history["before"] = {column: before[column][-1] if before else 0 for column in ("step", "seconds", "tokens")}
    history["asked"] = {}
    for name, (size, n, graph) in TESTS.items():
        task, generator = lego.make_task(config.task, max(26, n)), torch.Generator().manual_seed(2**31)
        right, *_ = extrapolation.ask(model, task, size, n, graph, generator)
        history["asked"][name] = [len(right), int(right.all(1).sum()), right.float().mean(0).min().item()]
    return history


def words(runs):
    """Lines of figures/README.md: what was spent, and the sentences right in the end, in %, of every seed."""
    lines = []
    for label, histories in runs.items():
        seconds = [run["before"]["seconds"] + run["seconds"][-1] for run in histories]
        tokens = [(run["before"]["tokens"] + run["tokens"][-1]) / 1e6 for run in histories]
        right = "".join(("  ".join(f"{100 * run['asked'][test][1] / run['asked'][test][0]:.4g}" for run in histories)).ljust(22) for test in TESTS)
        lines.append(f"{label:<22}{show.span(seconds) + ' s':<14}{show.span(tokens, '{:.1f}') + ' M':<14}{right}".rstrip())
    return lines


def draw(runs):
    c, hardware = next(iter(runs.values()))[0]["config"], next(iter(runs.values()))[0]["hardware"]
    worst = {label: [100 * run["asked"]["chain of 26"][2] for run in histories] for label, histories in runs.items()}
    figure, ((axes,),) = show.picture(
        "Groups of 60 and 120 elements are learned if single products come first", 1, 1, 8.5, 4.6,
        f"tied LEGO attention, width {c['n_embd']}, {c['n_clauses']} clauses, the first {c['n_supervised']} labelled; "
        "products first: begun from a model that has learned sentences of two clauses; at once: from random weights, "
        f"with more tokens than both take; sign and d3 at once: see learning.py; a dot is a seed, {len(SEEDS)} of each; "
        f"{hardware} a run")
    places = {task: i for i, task in enumerate(TASKS)}
    for label, numbers in worst.items():
        way, task = label.split(", ")
        shift = 0.12 if way == "at once" else -0.12
        axes.plot([places[task] + shift + 0.05 * (i - 1) for i in range(len(numbers))], numbers, "o", color=COLORS[way],
                  markersize=7, alpha=0.75, markeredgewidth=0, clip_on=False)
    for way, color in COLORS.items():
        last = max((places[label.split(", ")[1]], label) for label in worst if label.startswith(way))[1]
        axes.text(len(TASKS) - 0.65, sum(worst[last]) / len(worst[last]), way, color=color, va="center", fontweight="bold")
    axes.plot([*places.values()], [100 / n for n in TASKS.values()], "_", color=show.GRAY, markersize=26)
    axes.text(places["sign"] + 0.2, 50, "chance", color=show.GRAY, fontsize=8, va="center")
    axes.set(xlabel="group and its elements", ylabel="accuracy of the worst variable on chains of 26 (%)",
             xlim=(-0.5, len(TASKS) + 0.1), ylim=(-2, 102))
    axes.set_xticks([*places.values()], [f"{task}\n{n}" for task, n in TASKS.items()])
    return figure


if __name__ == "__main__":
    runner.main(NAME, draw, groups, run, prepare)
