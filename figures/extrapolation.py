"""
Beyond the paper: chains far longer than those labelled or seen, trees, stars, and several chains in one sentence.

No claim of the paper's. The default of train.py, which sees 12 clauses and labels for 6 of them, is asked for sentences
of every shape, without further training; and what makes that possible is taken away, one part at a time.

    python -m figures.extrapolation      30 runs, half an hour on 2 cores: a table; figures/rivals.py has the picture
"""
import torch

from figures import runner, show
from figures.benchmark import SPARE
import lego
import train

NAME = "extrapolation"
TESTS = {  # what is asked: number of sentences, of clauses, and the graph
    "chain of 12": (200, 12, dict()),
    "chain of 26": (100, 26, dict()),
    "chain of 100": (25, 100, dict()),
    "chain of 1,000": (2, 1000, dict()),
    "chains of 8 and 4": (200, 12, dict(parents=[*range(8), 0, 9, 10, 11])),
    "3 chains of 8": (100, 24, dict(parents=[i if i % 8 else 0 for i in range(24)])),
    "4 chains of 6": (100, 24, dict(parents=[i if i % 6 else 0 for i in range(24)])),
    "tree of 12, few branches": (200, 12, dict(branch=0.1)),
    "tree of 12": (200, 12, dict(branch=0.3)),
    "tree of 26, few branches": (100, 26, dict(branch=0.1)),
    "tree of 26": (100, 26, dict(branch=0.3)),
    "tree of 100, few branches": (25, 100, dict(branch=0.1)),
    "tree of 100": (25, 100, dict(branch=0.3)),
    "any graph of 12": (200, 12, dict(branch=1.0)),
    "any graph of 26": (100, 26, dict(branch=1.0)),
    "star of 5": (100, 5, dict(parents=[0, 1, 1, 1, 1])),
    "star of 10": (100, 10, dict(parents=[0] + 9 * [1])),
    "star of 25": (100, 25, dict(parents=[0] + 24 * [1])),
}
FEW = ["chain of 100", "chains of 8 and 4", "tree of 26", "any graph of 26", "star of 10"]  # what ablations are asked
VARIANTS = {  # dials beside the default's, number of seeds
    "default": (dict(), 10),
    "d3": (dict(task="d3", max_steps=600), 5),
    "chains only": (dict(branch=0.0), 5),
    "not taught to know nothing": (dict(unknown_weight=0.0), 5),
    "state handed on": (dict(carry="state"), 5),
}


def groups():
    return {label: [train.Config(**{"seed": seed, "out_dir": "", "eval_size": 200, **dials}) for seed in range(n_seeds)]
            for label, (dials, n_seeds) in VARIANTS.items()}


def ask(model, size, n, graph, generator):
    """Of each sentence: which variables (B, n) are right after depth + SPARE loops, and the value (B,) of the first."""
    parts, task = [], lego.make_task(model.config.task, max(26, n))
    for _ in range(0, size, 50):
        batch = lego.sample(task, min(size, 50), n, generator, **graph)
        answers = show.predict(model, batch, int(batch.depths.max()) + SPARE)
        parts.append((answers == batch.values, batch.values[:, 0]))
    return map(torch.cat, zip(*parts))


def summary(right):
    """Of answers (B, n), right or not: how many sentences, how many right in all, accuracy of the worst variable."""
    return [len(right), int(right.all(1).sum()), right.float().mean(0).min().item()]


def run(config):
    """
    Trains a model and asks it the sentences of TESTS; the history of the run, with

        asked    {test: summary}
        hubs     {test: [share of right sentences for every value of the hub]}, for stars
    """
    model = train.make_model(config)
    history = train.train(config, model)
    generator = torch.Generator(model.head.weight.device).manual_seed(2**31)
    history["asked"], history["hubs"] = {}, {}
    is_default = config.branch and config.unknown_weight and config.carry == "beliefs"
    for name in TESTS if is_default else FEW:
        size, n, graph = TESTS[name]
        right, first = ask(model, size, n, graph, generator)
        history["asked"][name] = summary(right)
        if "star" in name:  # the hub is the first variable
            values = range(len(lego.make_task(config.task).values))
            history["hubs"][name] = [right[first == x].all(1).float().mean().item() for x in values]
    return history


def percent(history, test):
    n, n_right, _ = history["asked"][test]
    return 100 * n_right / n


def table(runs):
    """A line of figures/README.md for every shape: how many sentences each seed has right, in %, lowest first."""
    lines = []
    for test in TESTS:
        cells = []
        for label in ("default", "d3"):
            found = sorted(percent(history, test) for history in runs.get(label, []))
            n = sum(history["asked"][test][0] for history in runs.get(label, []))
            cells.append(f"100 in {len(found)} seeds, {n:,} sentences" if found and min(found) == 100 else
                         ", ".join(f"{x:.3g}" for x in found if x < 100)
                         + f"; {found.count(100)} of {len(found)} seeds 100" * bool(found))
        lines.append(f"{test:<26}{cells[0]:<54}{cells[1]}".rstrip())
    return lines


def ablations(runs):
    """Lines of figures/README.md: sentences right in %, of every seed, for the variants of the default."""
    return [f"{test:<20}{label:<30}" + ", ".join(f"{percent(history, test):.3g}" for history in runs[label])
            for test in FEW for label in VARIANTS if label in runs and label != "d3"]


def headline(runs):
    """README's line: in how many seeds every sentence is right."""
    count = lambda test: sum(percent(history, test) == 100 for history in runs["default"])
    n_seeds = len(runs["default"])
    return (f"every sentence right: chains of 1,000 in {count('chain of 1,000')} of {n_seeds} seeds, 4 chains "
            f"of 6 in {count('4 chains of 6')}, trees of 26 in {count('tree of 26')}, any graph of 26 in "
            f"{count('any graph of 26')}, stars of 10 in {count('star of 10')}, stars of 25 in {count('star of 25')}")


def hubs(runs, label="default", star="star of 25"):
    """A line of figures/README.md: right sentences in %, for each value of the hub, of the seeds that miss some."""
    values = lego.make_task(runs[label][0]["config"]["task"]).values
    return f"{label}, {star}, hub " + " / ".join(values) + ": " + ", ".join(
        " / ".join(f"{100 * x:.0f}" for x in history["hubs"][star]) for history in runs[label]
        if percent(history, star) < 100)


def main(arguments):
    runner.make(NAME, None, groups, runner.is_again(arguments), run)
    print(*table(runner.load(NAME)), sep="\n")


if __name__ == "__main__":
    lego.command_line(main)
