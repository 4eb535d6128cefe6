"""
Beyond the labelled variables: untied layers (BERT), and tied ones (ALBERT).

Claim (the paper's): Transformers learn LEGO when every variable is labelled; when only the first
ones are, an untied model goes little beyond them and a tied one further.

    python -m figures.generalisation        38 runs, 1.2 hours on 2 cores

Vanilla attention, 6 clauses: `--preset=vanilla` with all variables labelled; then the first half,
with depth to spare (6 layers for 3 links), begun from mimicking, on chains of 3 to 6 clauses with
second chains beside them; and tied ones without one of these four. LEGO attention, 12 clauses: the
default of train.py, until it is proved, and 12 untied layers, on graphs, of an earlier default.
"""
import numpy as np
import torch

import train
from figures import mimic, runs, show
from figures.varied import Varied, draw, vanilla
from model import predict

WITHOUT = {  # label: what is taken away
    "no layers to spare": dict(n_layer=3),
    "not begun from mimicking": dict(init_from=""),
    "no second chains": dict(n_distractor=0),
    "no shorter sentences": dict(min_clauses=0),
}


@torch.no_grad()
def accuracy_at(model, batch, n_loops):
    """The accuracy of every variable after so many loops; None: as in training."""
    answers = [predict(model, part, n_loops).argmax(-1) for part in batch.split(500)]
    return (torch.cat(answers) == batch.values).float().mean(0).tolist()


def run(config):
    """The history of a run; its `loops`: {loops more than in training: accuracies in the end}."""
    model = train.make_model(config)
    history = train.train(config, model, draw=draw)
    batch = train.draw_test(config, 2000, train.make_generator(config, "loops"))
    batch = batch.to(model.head.weight.device)
    loops = {"0": accuracy_at(model, batch, None)}
    if config.tied and config.attention == "vanilla":
        loops |= {f"{k}": accuracy_at(model, batch, config.n_layer + k) for k in (2, 4, 6)}
    return history | dict(loops=loops)


def final(history, spare=0):
    """The accuracy of every variable in % in the end, with so many loops more than in training."""
    loops = history.get("loops", {"0": history["accuracy"][-1]})
    return [100 * x for x in loops[f"{spare}"]]


def table(found):
    """Lines of figures/README.md: the worst labelled variable, and those after, each seed, in %."""
    in_words, lines = lambda numbers: ", ".join(f"{x:.0f}" for x in numbers), []
    for label, histories in found.items():
        n = histories[0]["config"]["n_supervised"]
        for spare in map(int, histories[0].get("loops", {"0": None})):
            accuracies = [final(history, spare) for history in histories]
            line = label + f", {spare} loops more" * (spare > 0)
            line += f": labelled {in_words([min(x[:n]) for x in accuracies])}"
            if n < len(accuracies[0]):
                line += f"; the next {in_words([x[n] for x in accuracies])}"
                line += f"; the last {in_words([x[-1] for x in accuracies])}"
            lines.append(line)
    return lines


def draw_variables(axes, rows, n_supervised):
    """A dot for every variable and run, of rows (label, histories, spare loops, colour)."""
    for i, (label, histories, spare, color) in enumerate(rows):
        for k, history in enumerate(histories):
            accuracy = final(history, spare)
            shift = 0.27 * (i - (len(rows) - 1) / 2) + 0.04 * (k - 2)
            axes.plot(np.arange(1, len(accuracy) + 1) + shift, accuracy, "o", color=color,
                      markersize=4, alpha=0.7, markeredgewidth=0, clip_on=False,
                      label=f"{'_' * (k > 0)}{label}")  # "_": not in the legend
    axes.axvspan(0.5, n_supervised + 0.5, color=show.GRAY, alpha=0.15, linewidth=0)
    show.mark(axes, 50, place=0.3)
    axes.set(xlim=(0.5, len(accuracy) + 0.5), ylim=(0, 101), xlabel="variable, in chain order",
             ylabel="test accuracy (%)")
    axes.legend(frameon=False, loc="lower left", fontsize=8)


def half_labelled(tied, seed, n_layer=6, **change):
    """3 of 6 variables labelled, with all four parts, but for what `change` takes away."""
    begun = f"out/mimicking-{'un' * (not tied)}tied-{n_layer}-{seed}"
    dials = dict(n_supervised=3, min_clauses=3, n_distractor=2, max_steps=2000, init_from=begun)
    return vanilla(tied=tied, seed=seed, n_layer=n_layer, **dials | change)


def main():
    groups, few, all_seeds = {}, range(3), range(5)
    for kind, tied in ("untied", False), ("tied", True):
        groups[f"{kind}, all labelled"] = [vanilla(tied=tied, seed=s, eval_every=50) for s in few]
        groups[f"{kind}, half labelled"] = [half_labelled(tied, s) for s in all_seeds]
    for label, change in WITHOUT.items():
        groups[f"tied, half labelled, {label}"] = [half_labelled(True, s, **change) for s in few]
    groups["tied, LEGO attention"] = [train.Config(seed=s, out_dir="") for s in all_seeds]
    untied = dict(tied=False, n_layer=12, branch=1.0, batch_size=64, lr=4e-3, muon_lr=4e-2,
                  ema=0.95, max_steps=600, stop_at=0.0, eval_every=20, out_dir="")
    groups["untied, LEGO attention"] = [Varied(**untied, seed=s) for s in all_seeds]
    found = runs.get("generalisation", groups, run, before=mimic.beginnings(groups))
    print(*table(found), sep="\n")

    half, tied = found["untied, half labelled"], found["tied, half labelled"]
    fourth = lambda histories, spare: [final(history, spare)[3] for history in histories]
    figure, ((everything, beyond, needed, lego_too),) = show.picture(
        f"The next variable after the labels: untied {show.span(fourth(half, 0))}% right, tied, "
        f"2 loops more, {show.span(fourth(tied, 2))}%", 1, 4, 17, 4.6,
        "a dot is a seed, 5 of each kind, 3 where all are labelled or a part is missing; shaded: "
        "labelled in training; vanilla: 6 clauses, width 64, 6 layers and 2,000 steps, 3 and 4,000 "
        "where all are labelled; LEGO: 12 clauses, the default, until it is proved, or 12 untied "
        "layers, 600 steps; 1 thread a run")
    for panel, label in (everything, "all labelled"), (lego_too, "LEGO attention"):
        draw_variables(panel, [("untied", found[f"untied, {label}"], 0, show.BLUE),
                               ("tied", found[f"tied, {label}"], 0, show.RED)], 6)
    draw_variables(beyond, [("untied", half, 0, show.BLUE), ("tied, 6 loops", tied, 0, show.ORANGE),
                            ("tied, 8 loops", tied, 2, show.RED)], 3)
    rows = {"all four": tied} | {part: found[f"tied, half labelled, {part}"] for part in WITHOUT}
    show.dots(needed, [(label, fourth(rows[label], 2), show.RED) for label in rows])
    show.mark(needed, 50, vertical=True)
    everything.set_title("vanilla, all labelled")
    beyond.set_title("vanilla, half labelled")
    lego_too.set_title("LEGO attention, half labelled")
    needed.set(title="vanilla, tied, without one of four parts", ylabel="training", xlim=(40, 101),
               xlabel="variable 4, 2 loops more, accuracy (%)")
    figure.savefig(runs.FOLDER / "generalisation.png", dpi=150)


if __name__ == "__main__":
    main()
