"""
Data composition: the same model, on chains of one length and of many.

Claim (the paper's): what the training chains are made of, their lengths above all, decides what is
learned.

    python -m figures.composition       9 runs, after mimicking: 45 minutes on 2 cores

Vanilla untied models begun from mimicking learn `sign` with the first 6 of 12 variables labelled:
from chains of 12 clauses, or of 6 to 12, or of 2 to 12. All are tested on chains of 12.
"""
import numpy as np

import train
from figures import mimic, runs, show
from figures.varied import draw, vanilla


def run(config):
    return train.train(config, draw=draw)


def main():
    dials = dict(n_clauses=12, n_names=26, n_layer=6, batch_size=256, lr=1e-3, muon_lr=6e-3,
                 warmup_steps=50, max_steps=1300, eval_every=50)
    shortest = {"12": 12, "6 to 12": 6, "2 to 12": 2}  # clauses of a training chain: the fewest
    groups = {label: [vanilla(**dials, min_clauses=n, seed=s, init_from=f"out/mimicking-{s}")
                      for s in range(3)] for label, n in shortest.items()}
    histories = runs.get("composition", groups, run, mimic.beginnings(groups, max_steps=600))
    accuracy = {label: 100 * np.array([history["accuracy"][-1] for history in found])
                for label, found in histories.items()}  # (seeds, variables)
    for label, rows in accuracy.items():  # the table of figures/README.md
        for seed, row in enumerate(rows):
            print(f"chains of {label}, seed {seed}".ljust(28) + " ".join(f"{x:3.0f}" for x in row))

    known = {label: show.span((rows[:, :6] >= 90).sum(1)) for label, rows in accuracy.items()}
    figure, ((axes,),) = show.picture(
        f"Chains of 12 alone teach {known['12']} of 6 variables, chains of 2 to 12 teach "
        f"{known['2 to 12']}", width=8.5,
        caption="vanilla attention, 6 untied layers, width 64, begun from mimicking, 1,300 steps "
        "of 256 sentences; labelled: the first 6 variables; taught: 90% right; a line is a seed")
    places = (show.GRAY, 3.4, 44), (show.BLUE, 6.6, 88), (show.RED, 6.6, 93)
    for (label, rows), (color, x, y) in zip(accuracy.items(), places):
        axes.plot(range(1, 13), rows.T, "o-", color=color, linewidth=1.2, alpha=0.75)
        axes.text(x, y, f"chains of {label}", color=color, fontweight="bold")
    show.mark(axes, 50, place=0.09)
    show.mark(axes, 6.5, "unlabelled", vertical=True)
    axes.set(xlabel="variable, in chain order", ylabel="accuracy on chains of 12 (%)",
             xticks=range(1, 13), ylim=(40, 102))
    figure.savefig(runs.FOLDER / "composition.png", dpi=150)


if __name__ == "__main__":
    main()
