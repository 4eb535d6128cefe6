"""
Data composition: the same model, on chains of one length and of many.

Claim (the paper's): what the training chains are made of, their lengths above all, decides what is learned.

    python -m figures.composition       9 runs, after the mimicking of figures/heads.py: 45 minutes on 2 cores

Vanilla untied models, 6 layers, width 64, begun from mimicking, learn `sign` with the first 6 of at most 12 variables
labelled, as in figures/pretraining.py: from chains of 12 clauses, or of 6 to 12, or of 2 to 12, one length a batch. All
are tested on chains of 12.
"""
import numpy as np

from figures import heads, pretraining, runner, show

NAME = "composition"
SEEDS = range(3)
SHORTEST = {"12": 12, "6 to 12": 6, "2 to 12": 2}  # clauses of a training chain: the fewest
COLORS = dict(zip(SHORTEST, (show.GRAY, show.BLUE, show.RED)))


def groups():
    """{label: [config of every seed]}"""
    return {label: [pretraining.on_lego(seed=seed, init_from=f"out/mimicking-{seed}", min_clauses=shortest,
                                        max_steps=pretraining.FIRST_STOP)
                    for seed in SEEDS] for label, shortest in SHORTEST.items()}


def words(runs):
    """Lines of figures/README.md: the accuracy of every variable in the end, in %, of every seed."""
    return [f"chains of {label}, seed {run['config']['seed']}".ljust(28)
            + " ".join(f"{100 * x:3.0f}" for x in run["accuracy"][-1]) for label, histories in runs.items()
            for run in histories]


def known(run, at=0.9):
    """How many labelled variables have this accuracy in the end."""
    return sum(x >= at for x in run["accuracy"][-1][: run["config"]["n_supervised"]])


def draw(runs):
    c = runs["12"][0]["config"]
    counts = {label: show.span([known(run) for run in histories]) for label, histories in runs.items()}
    figure, ((axes,),) = show.picture(
        f"Chains of 12 alone teach {counts['12']} of {c['n_supervised']} variables, chains of 2 to 12 teach "
        f"{counts['2 to 12']}", 1, 1, 8.5, 4.6,
        f"vanilla attention, {c['n_layer']} untied layers, width {c['n_embd']}, begun from mimicking, {c['max_steps']} "
        f"steps of {c['batch_size']} sentences; the first {c['n_supervised']} variables are labelled; a line is a "
        f"seed, {len(SEEDS)} of each; {runs['12'][0]['hardware']} a run")
    variables = np.arange(1, c["n_clauses"] + 1)
    for i, (label, histories) in enumerate(runs.items()):
        for run in histories:
            axes.plot(variables + 0.1 * (i - 1), 100 * np.array(run["accuracy"][-1]), color=COLORS[label], marker="o",
                      markersize=5, linewidth=1.2, alpha=0.75, markeredgewidth=0)
        axes.text(*((c["n_supervised"] + 0.6, 88 + 5 * i) if i else (3.4, 44)), f"chains of {label}",
                  color=COLORS[label], fontweight="bold")
    show.mark(axes, 50, place=0.09)
    axes.axvline(c["n_supervised"] + 0.5, color=show.GRAY, linewidth=0.8, linestyle="--", zorder=0)
    axes.text(c["n_supervised"] + 0.6, 102, "unlabelled", color=show.GRAY, fontsize=8, va="top")
    axes.set(xlabel="variable, in chain order", ylabel="accuracy on chains of 12 (%)", xticks=variables,
             ylim=(40, 102))
    return figure


if __name__ == "__main__":
    runner.main(NAME, draw, groups, sources=[heads.sources(seed)["mimicking"] for seed in SEEDS])
