"""
The key plot: test accuracy of every variable over training, for the default model on the paper's two tasks.

Claim (the paper's, in direction): Transformers learn to follow a chain of reasoning, one variable after another; tied
ones go on beyond the variables that they are supervised on. Here the tied model goes on to the end of the chain.

    python -m figures.learning

Runs: `python train.py` and `python train.py --task=d3`, each also with --every_layer=False, where a variable is asked
for after the last loop only; all with stop_at=0, so that the seeds have the same length and the plot shows whether what
is learned stays learned.

Measured, on 2 cores of an x86-64 server, training time without evaluations (14 runs, 28 minutes):

    sign, 5 seeds     six supervised variables first at 99.9% after 21 to 34 s; all twelve at 99.9% over five
                      evaluations in a row, 2,500 new sentences, after 50 to 76 s
    d3, 3 seeds       the same after 67 to 134 s and 102 to 152 s
    after the last    sign: no difference that 3 seeds show, 24 to 31 s for the six
    loop only         d3: 1 seed of 3 learns within 400 steps; every_layer is what makes it reliable
"""
import figures
import lego
import train

NAME = "learning"
SAME = dict(stop_at=0.0, out_dir="")
GROUPS = {
    "sign": [train.Config(max_steps=200, seed=seed, **SAME) for seed in range(5)],
    "d3": [train.Config(task="d3", max_steps=400, seed=seed, **SAME) for seed in range(3)],
    "sign, asked after the last loop only": [
        train.Config(every_layer=False, max_steps=200, seed=seed, **SAME) for seed in range(3)],
    "d3, asked after the last loop only": [
        train.Config(task="d3", every_layer=False, max_steps=400, seed=seed, **SAME) for seed in range(3)],
}


def draw(groups):
    from matplotlib.figure import Figure

    figure = Figure(figsize=(13, 8.5), layout="constrained")
    panels = figure.subplots(2, 2).flatten()
    for axes, (label, histories) in zip(panels, groups.items()):
        train.draw_accuracy(axes, histories)
        seconds = [history["seconds"][-1] for history in histories]
        worst = 100 * min(min(history["accuracy"][-1]) for history in histories)
        axes.set_title(f"{label}: {len(histories)} seeds, mean and range\n"
                       f"the worst variable of any seed ends at {worst:.1f}%; "
                       f"{min(seconds):.0f} to {max(seconds):.0f} s of training each", fontsize=10)
    figure.legend(*panels[0].get_legend_handles_labels(), title="variable,\nin chain order", loc="outside center right",
                  frameon=False)
    history = groups["sign"][0]
    config = history["config"]
    figure.suptitle(f"Supervised on the first {config['n_supervised']} of {config['n_clauses']} variables, a tied "
                    f"block of {history['n_parameters'] // 1000}k parameters learns to follow the chain to its end\n"
                    f"top: each variable is asked for at every loop that can know it; bottom: after the last loop only "
                    f"({history['hardware']})", fontweight="bold", fontsize=11)
    return figure


if __name__ == "__main__":
    lego.command_line(lambda arguments: figures.make(NAME, draw, arguments, laptop=GROUPS))
