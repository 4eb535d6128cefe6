"""
Larger groups: s5, the 120 permutations of five things, and a5, the 60 even ones, the smallest unsolvable group.

Ours; the paper has groups of 2 and 6 elements.

    python -m figures.groups            15 runs, of which 9 begin from one of 6 others: 30 minutes on 2 cores

The default at width 128, 3 seeds, learns from 12 clauses, 6 labelled. Products first: it begins from the weights of a
model of the same shape that has learned sentences of two clauses, which ask for a single product. At once: from random
weights, with about as many tokens as both take together. In both unknown_weight is 1; less weight: 0.2, the default's,
products first, s5 alone.
"""
import json

import torch

from figures import extrapolation, runner, show
import train
from model import read_checkpoint

NAME = "groups"
SEEDS = range(3)
TASKS = {"a5": 60, "s5": 120}  # and how many elements each has
STEPS_AT_ONCE = {"a5": 3400, "s5": 4800}  # as many tokens as both trainings take, within 10%
TESTS = {"chain of 12": (1000, 12, {}), "chain of 26": (1000, 26, {}), "chain of 100": (100, 100, {})}
WAYS = {"products first": TASKS, "at once": TASKS, "less weight": ["s5"]}
COLORS = {"products first": show.RED, "at once": show.GRAY}


def products(task, seed):
    """The config that learns the products; its weights are kept in out/."""
    return train.Config(task=task, n_clauses=2, n_supervised=2, n_embd=128, batch_size=512, schedule="constant",
                        max_steps=4000, stop_at=0.99, eval_every=25, eval_size=500, seed=seed,
                        out_dir=f"out/products-{task}-{seed}")


def config_of(task, seed, way):
    """The config that learns 12 clauses."""
    dials = dict(max_steps=STEPS_AT_ONCE[task]) if way == "at once" else dict(
        max_steps=2500, init_from=products(task, seed).out_dir)
    return train.Config(task=task, n_embd=128, unknown_weight=0.2 if way == "less weight" else 1.0, eval_every=50,
                        seed=seed, out_dir="", **dials)


def groups():
    """{label: [config of every seed]}"""
    return {f"{way}, {task}": [config_of(task, seed, way) for seed in SEEDS]
            for way, tasks in WAYS.items() for task in tasks}


def run(config):
    """
    The history of a run, with `asked`, {test: extrapolation.summary}, and `before`, the steps, seconds and tokens of
    the run that it begins from.
    """
    model = train.make_model(config)
    history = train.train(config, model)
    before = json.loads(read_checkpoint(config.init_from)["history"]) if config.init_from else {}
    history["before"] = {column: before[column][-1] if before else 0 for column in ("step", "seconds", "tokens")}
    history["asked"] = {}
    for name, (size, n, graph) in TESTS.items():
        generator = torch.Generator(model.head.weight.device).manual_seed(2**31)
        right, _ = extrapolation.ask(model, size, n, graph, generator)
        history["asked"][name] = extrapolation.summary(right)
    return history


def words(runs):
    """Lines of figures/README.md: seconds and tokens in all, the sentences right in the end, in %, of every seed."""
    lines = []
    for label, histories in runs.items():
        seconds = [run["before"]["seconds"] + run["seconds"][-1] for run in histories]
        tokens = [(run["before"]["tokens"] + run["tokens"][-1]) / 1e6 for run in histories]
        right = [", ".join(f"{extrapolation.percent(run, test):.3g}" for run in histories) for test in TESTS]
        lines.append(f"{label:<20}{show.span(seconds) + ' s':<14}{show.span(tokens, '{:.1f}') + ' M':<16}"
                     + "".join(f"{cell:<20}" for cell in right).rstrip())
    return lines


def labelled(history):
    """Mean accuracy of the labelled variables at every evaluation, in percent."""
    n = history["config"]["n_supervised"]
    return [100 * sum(accuracy[:n]) / n for accuracy in history["accuracy"]]


def draw(runs):
    c, hardware = next(iter(runs.values()))[0]["config"], next(iter(runs.values()))[0]["hardware"]
    figure, (panels,) = show.picture(
        "Groups of 60 and 120 elements are learned in minutes if single products come first", 1, 2, 11, 4.6,
        f"the default at width {c['n_embd']}, {c['n_clauses']} clauses; products first: begun from a model that has "
        "learned sentences of two clauses, whose tokens are where its line begins; at once: from random weights; "
        f"unknown_weight 1; a line is a seed, {len(SEEDS)} of each; {hardware} a run")
    for axes, (task, n) in zip(panels, TASKS.items()):
        ends = []
        for way, color in COLORS.items():
            histories = runs.get(f"{way}, {task}", [])
            for run in histories:
                tokens = [(run["before"]["tokens"] + x) / 1e6 for x in run["tokens"]]
                axes.plot(tokens, labelled(run), color=color, linewidth=1.2, alpha=0.75)
            if histories:
                ends.append((sum(labelled(run)[-1] for run in histories) / len(histories), way, color))
        axes.set(xlabel="training tokens (millions)", title=f"{task}, {n} elements", xlim=(0, None), ylim=(0, 102),
                 ylabel=f"accuracy of the {c['n_supervised']} labelled variables (%)")
        show.mark(axes, 100 / n)
        show.label_ends(axes, ends)
    return figure


if __name__ == "__main__":
    runner.main(NAME, draw, groups, run, [products(task, seed) for task in TASKS for seed in SEEDS])
