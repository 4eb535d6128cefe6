"""
The key plot: test accuracy of every variable over training, for the default model on the paper's two tasks.

Claim (the paper's, in direction): Transformers learn to follow a chain of reasoning, one variable after another; with
tied layers they go on beyond the variables that they are supervised on. Ours goes on to the end of the chain.

    python -m figures.learning

Runs: `python train.py` and `python train.py --task=d3` with stop_at=0, so that all seeds have the same length and the plot
shows whether what is learned stays learned.
"""
from figures import redraw, save
import lego
import train

NAME = "learning"
RUNS = [("sign", 200, range(5)), ("d3", 400, range(3))]  # task, steps, seeds


def run():
    histories = {}
    for task, max_steps, seeds in RUNS:
        for seed in seeds:
            config = train.Config(task=task, max_steps=max_steps, stop_at=0.0, seed=seed, out_dir="")
            histories.setdefault(task, []).append(train.train(config))
            save(NAME, histories)


def draw(histories):
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 4.8), layout="constrained")
    panels = figure.subplots(1, len(histories))
    for axes, (task, runs) in zip(panels, histories.items()):
        train.draw_accuracy(axes, runs)
        seconds = [history["seconds"][-1] for history in runs]
        order = len(lego.make_task(task).operations)
        axes.set_title(f"{task}, a group of {order}: {len(runs)} seeds, mean and range\n"
                       f"{min(seconds):.0f} to {max(seconds):.0f} s of training on {runs[0]['hardware']}", fontsize=10)
    figure.legend(*panels[0].get_legend_handles_labels(), title="variable,\nin chain order", loc="outside center right",
                  frameon=False)
    config, n = runs[0]["config"], runs[0]["n_parameters"]
    worst = 100 * min(min(history["accuracy"][-1]) for runs in histories.values() for history in runs)
    figure.suptitle(f"Supervised on the first {config['n_supervised']} of {config['n_clauses']} variables, a tied block "
                    f"of {n // 1000}k parameters learns to follow the whole chain\n"
                    f"(every variable of every seed ends at {worst:.1f}% or better)", fontweight="bold", fontsize=12)
    return figure


if __name__ == "__main__":
    run()
    redraw(NAME, draw)
