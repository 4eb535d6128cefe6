"""
The key plot: test accuracy of every variable over training, for the default model on the paper's two tasks.

Ours, after the paper's claim that Transformers learn to follow a chain of reasoning, and tied ones go on beyond the
labelled variables.

    python -m figures.learning        python train.py, 10 seeds, and --task=d3 --max_steps=600, 5 seeds: 3 minutes
"""
import statistics

from figures import runner, show
import train

NAME = "learning"
TASKS = {"sign": (300, range(10)), "d3": (600, range(5))}  # steps and seeds


def groups():
    fine = dict(eval_every=4, eval_size=100, out_dir="")  # to see the variables come one by one
    return {task: [train.Config(task=task, max_steps=steps, seed=seed, **fine) for seed in seeds]
            for task, (steps, seeds) in TASKS.items()}


def times(histories):
    """For every run the (steps, seconds) of training until all variables are at 99.9%, to the end; None: never."""
    places = [runner.settled(history, history["config"]["n_clauses"]) for history in histories]
    return [None if i is None else (history["step"][i], history["seconds"][i])
            for i, history in zip(places, histories)]


def words(runs):
    """Lines of figures/README.md: when all variables are right, to the end."""
    lines = []
    for task, histories in runs.items():
        reached = [time for time in times(histories) if time]
        steps, seconds = (sorted(column) for column in zip(*reached))
        in_steps = f"{show.span(steps)} steps (median {statistics.median(steps):.0f})"
        in_seconds = f"{show.span(seconds, '{:.1f}')} s (median {statistics.median(seconds):.1f})"
        lines.append(f"{task}: all variables stay at 99.9% or better in {len(reached)} of {len(histories)} seeds, "
                     f"after {in_steps}, {in_seconds}")
    return lines


def draw(runs):
    history, c = runs["sign"][0], runs["sign"][0]["config"]
    learned = [time is not None for histories in runs.values() for time in times(histories)]
    figure, axes = show.picture(
        f"With {c['n_supervised']} of {c['n_clauses']} variables labelled, the model learns all {c['n_clauses']}, "
        f"in {sum(learned)} of {len(learned)} runs", 1, len(runs), 13, 5,
        f"The default of train.py: a tied block of {history['n_parameters']:,} parameters, one loop a step. A line "
        f"is a variable of a chain, mean of the seeds, the band from worst to best. {history['hardware']}, torch "
        f"{history['torch']}.")
    for panel, (task, histories) in zip(axes[0], runs.items()):
        show.draw_accuracy(panel, histories)
        reached = [time for time in times(histories) if time]
        panel.set_xlim(0, 1.35 * max((step for step, _ in reached), default=histories[0]["step"][-1]))
        steps, seconds = zip(*reached) if reached else ((0,), (0,))
        panel.set_title(f"{task}: all at 99.9% or better, to the end, in {len(reached)} of {len(histories)} seeds\n"
                        f"after {show.span(steps)} steps, {show.span(seconds, '{:.1f}')} s of training", fontsize=10)
    axes[0, -1].legend(title="variable,\nin chain order", loc="center left", bbox_to_anchor=(1.01, 0.5), frameon=False,
                       fontsize=9)
    return figure


if __name__ == "__main__":
    runner.main(NAME, draw, groups)
