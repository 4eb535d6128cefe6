"""
The key plot: test accuracy of every variable over training, for the default model on the paper's two tasks.

Claim (the paper's, in direction): Transformers learn to follow a chain of reasoning, one variable after another; tied
ones go on beyond the variables that they are supervised on. Here the tied model goes on to the end of the chain, and
beyond it: see figures/extrapolation.py.

    python -m figures.learning

Runs: `python train.py`, 10 seeds, and `python train.py --task=d3`, 5 seeds.

Measured, on one thread a run of an x86-64 server, two runs at a time, training time without evaluations. Until the
variables are at 99.9% or better, in each evaluation of 500 new sentences to the end of the run:

    sign, 10 seeds    the six supervised ones after 6 to 14 s, 60 to 90 steps; all twelve after 7 to 16 s, 70 to 120
    d3, 5 seeds       15 to 28 s and 130 to 150 steps for either

The whole runs, 300 steps, take 32 to 49 s. These are the runs of figures/extrapolation.py, which asks the same models
for longer chains.
"""
import figures
import lego
import train

NAME = "learning"
GROUPS = {
    "sign": [train.Config(seed=seed, out_dir="") for seed in range(10)],
    "d3": [train.Config(task="d3", seed=seed, out_dir="") for seed in range(5)],
}


def times(histories, n):
    """Seconds of training until the first n variables are at 99.9%, to stay: of the first and the last of the runs."""
    places = [figures.settled(history, n) for history in histories]
    if None in places:
        return None
    seconds = [history["seconds"][place] for history, place in zip(histories, places)]
    return min(seconds), max(seconds)


def draw(groups):
    from matplotlib.figure import Figure

    figure = Figure(figsize=(13, 5), layout="constrained")
    panels = figure.subplots(1, 2)
    for axes, (label, histories) in zip(panels, groups.items()):
        config = histories[0]["config"]
        train.draw_accuracy(axes, histories)
        span = times(histories, config["n_clauses"])
        found = f"after {span[0]:.0f} to {span[1]:.0f} s of training" if span else "not in every seed"
        axes.set_title(f"{label}: {len(histories)} seeds, mean and range\nall {config['n_clauses']} variables at 99.9% "
                       f"or better, to the end, {found}", fontsize=10)
    figure.legend(*panels[0].get_legend_handles_labels(), title="variable,\nin chain order", loc="outside center right",
                  frameon=False)
    history = groups["sign"][0]
    config = history["config"]
    figure.suptitle(f"Supervised on the first {config['n_supervised']} of {config['n_clauses']} variables, a tied "
                    f"block of {history['n_parameters'] / 1000:.0f}k parameters learns to follow the chain to its end\n"
                    f"({history['hardware']} a run)", fontweight="bold", fontsize=11)
    return figure


if __name__ == "__main__":
    lego.command_line(lambda arguments: figures.make(NAME, draw, arguments, parallel=True, laptop=GROUPS))
