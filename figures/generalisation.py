"""
TODO
"""
import figures
import lego
import train

NAME = "generalisation"
SEEDS = range(3)
VANILLA = dict(  # a compact BERT (untied) or ALBERT (tied) with pre-norm blocks, from random weights
    attention="vanilla", positions="learned", norm_state=False, every_layer=False, loop_jitter=0, eval_loops=0,
    lr=5e-4, muon_lr=4e-3, warmup_steps=100, stop_at=0.0, out_dir="")
SCALES = {
    "laptop": dict(n_clauses=6, n_names=6, n_layer=3, n_embd=64, batch_size=128, max_steps=4000, eval_every=50),
    "gpu": dict(n_clauses=12, n_names=12, n_layer=12, n_embd=256, n_head=8, batch_size=1000, max_steps=6000,
                eval_every=100, eval_size=2000, dtype="bfloat16", compile=True),
}
CELLS = {"sign, all variables supervised": ("sign", 1), "sign, the first half supervised": ("sign", 2),
         "d3, the first half supervised": ("d3", 2)}


def groups(scale):
    """{label: [config of every seed]}, untied and tied, for each of the cells."""
    dials = {**VANILLA, **SCALES[scale]}
    return {f"{'tied' if tied else 'untied'}, {label}": [
                train.Config(task=task, tied=tied, n_supervised=dials["n_clauses"] // part, seed=seed, **dials)
                for seed in SEEDS]
            for label, (task, part) in CELLS.items() for tied in (False, True)}


def final(history, n_evaluations=5):
    """Accuracy of every variable in the last evaluations together, in percent."""
    last = history["accuracy"][-n_evaluations:]
    return [100 * sum(column) / len(last) for column in zip(*last)]


def draw(runs):
    from matplotlib.figure import Figure

    figure = Figure(figsize=(17, 8), layout="constrained")
    panels = figure.subplots(2, 4)
    for column, cell in enumerate(CELLS):
        for row, kind in enumerate(("untied", "tied")):
            train.draw_accuracy(panels[row, column], runs[f"{kind}, {cell}"])
            panels[row, column].set_title(f"{kind} ({'BERT' if kind == 'untied' else 'ALBERT'}-like): {cell}",
                                          fontsize=10)
    for axes, cell in zip(panels[:, 3], list(CELLS)[1:]):
        for kind, color, marker in (("untied", "#0072B2", "o"), ("tied", "#D55E00", "s")):
            histories = runs[f"{kind}, {cell}"]
            seeds = list(zip(*map(final, histories)))  # per variable the seeds
            mean = [sum(x) / len(x) for x in seeds]
            index = range(1, len(seeds) + 1)
            axes.plot(index, mean, color=color, marker=marker, linewidth=2, label=f"{kind}, mean")
            for x, points in zip(index, seeds):
                axes.plot([x] * len(points), points, color=color, marker=marker, markersize=4, alpha=0.4, linewidth=0)
        config = histories[0]["config"]
        chance = 100 / len(lego.make_task(config["task"]).values)
        axes.axvspan(0.5, config["n_supervised"] + 0.5, color="gray", alpha=0.12)
        axes.axhline(chance, color="gray", linestyle=":")
        axes.set(xlabel="variable, in chain order (shaded: supervised)", ylabel="final test accuracy (%)",
                 ylim=(max(0, chance - 10), 101.5), xlim=(0.5, len(seeds) + 0.5))
        axes.set_title(f"{cell}, at the end", fontsize=10)
        axes.legend(loc="center right", frameon=False)
    return figure


if __name__ == "__main__":
    lego.command_line(lambda arguments: figures.make(NAME, draw, arguments, parallel=True,
                                                     **{scale: groups(scale) for scale in SCALES}))
