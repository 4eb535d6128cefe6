"""
Structure, not knowledge: what a model can begin from, so that it learns LEGO sooner.

Claim (the paper's): pretraining on unrelated text helps, and training heads to attend in two
patterns, without any text, helps nearly as much.

    python -m figures.pretraining       30 runs, and 10 that they begin from: 3 hours on 2 cores

Untied vanilla models learn `sign` over chains of 2 to 12 clauses from random weights, mimicking, or
hidden words of text: from all weights of the model of text, or a part, the others at random. A run
ends after 1,300 steps, or goes on to 2,000 until variables 2 and 3 have once been 95% right.
"""
import re
import tempfile
from dataclasses import asdict, dataclass, replace

import train
from figures import mimic, runs, show, words
from figures.varied import Varied, draw

FIRST_STOP = 1300  # steps
PARTS = {  # of the weights, by their names
    "": "", "queries and keys": r"\.(query|key)\.", "embeddings": "embedding",
    "all but queries and keys": r"^(?!.*\.(query|key)\.)"}
COLORS = {  # of what a run begins from, and of which parts
    "random weights": show.GRAY, "text: embeddings": show.SKY, "text: queries and keys": show.SKY,
    "text: all but queries and keys": show.SKY, "text": show.BLUE, "mimicking": show.RED}
DIALS = train.PRESETS["vanilla"] | dict(
    n_layer=6, n_clauses=12, n_supervised=6, n_names=26, min_clauses=2, batch_size=256, lr=1e-3,
    muon_lr=6e-3, warmup_steps=50, max_steps=2000, stop_at=0.0, out_dir="")


@dataclass
class Transplant(Varied):
    parts: str = ""  # which weights are taken from init_from: a name of PARTS; "": all


def config_of(label, seed):
    source, _, parts = label.partition(": ")
    begun = "" if source == "random weights" else f"out/{source}-{seed}"
    return Transplant(**DIALS, parts=parts, init_from=begun, seed=seed)


def make_model(config):
    """The model of random weights, with the parts of the one in init_from."""
    model = train.make_model(replace(config, init_from=""))
    others = train.make_model(config).state_dict()
    taken = {name: x for name, x in others.items() if re.search(PARTS[config.parts], name)}
    model.load_state_dict(model.state_dict() | taken)
    return model


def run(config):
    """The history of a run, which ends at FIRST_STOP if nothing is left to be seen."""
    with tempfile.TemporaryDirectory() as folder:
        short = replace(config, max_steps=FIRST_STOP, out_dir=folder)
        history = train.train(short, make_model(config), draw)
        if None in (steps_to(history, 2), steps_to(history, 3)):  # goes on as if it had not stopped
            short.max_steps = config.max_steps
            history = train.train(short, draw=draw, resume=True)
    return history | dict(config=asdict(config.complete()))


def steps_to(history, variable, at=0.95):
    """The steps until a variable, from 1 on, is first right in this share; None: never."""
    pairs = zip(history["step"], history["accuracy"])
    return next((step for step, accuracy in pairs if accuracy[variable - 1] >= at), None)


def accuracy(history, first, last):
    """Of variables first to last, from 1 on, in %: mean of three evaluations up to FIRST_STOP."""
    early = [row for step, row in zip(history["step"], history["accuracy"]) if step <= FIRST_STOP]
    return 100 * sum(sum(row[first - 1 : last]) for row in early[-3:]) / 3 / (last - first + 1)


def table(found):
    """Lines of figures/README.md: steps to variables 2 and 3; the six, and the seventh, in %."""
    for label, histories in found.items():
        line = label.ljust(32)
        for n in (2, 3):
            line += " ".join(f"{steps_to(h, n) or 'never':>5}" for h in histories).ljust(32)
        for ends in ((1, 6), (7, 7)):
            line += " ".join(f"{accuracy(h, *ends):.0f}" for h in histories).ljust(18)
        yield line.rstrip()


def main():
    groups = {label: [config_of(label, seed) for seed in range(5)] for label in COLORS}
    text = lambda c: words.Words(**words.DIALS | dict(seed=c.seed, out_dir=c.init_from))
    before = [(text(config), words.run) for config in groups["text"]]
    before += mimic.beginnings({"": groups["mimicking"]}, max_steps=600)
    found = runs.get("pretraining", groups, run, before)
    print(*table(found), sep="\n")

    steps = {n: {label: [steps_to(h, n) for h in found[label]] for label in found} for n in (2, 3)}
    count = {label: 5 - steps[3][label].count(None) for label in found}
    figure, (panels,) = show.picture(
        f"Variable 3 comes from mimicking in {count['mimicking']} of 5 seeds, from text in "
        f"{count['text']}, from random weights in {count['random weights']}", 1, 2, 11, 4.6,
        "vanilla attention; 12 clauses, 6 labelled, 6 untied layers, width 64; mimicking: first "
        "trained to attend to identical tokens and to neighbours, without labels; text: to guess "
        "hidden words, all weights or a part; a dot is a seed, open: not in 2,000 steps")
    for axes, n in zip(panels, (2, 3)):
        show.dots(axes, [(label, steps[n][label], COLORS[label]) for label in COLORS], never=2400)
        axes.set(title=f"variable {n}", xlabel="training steps on LEGO until 95% right",
                 ylabel="begun from", xlim=(0, 2400))
        axes.set_xticks([0, 1000, 2000, 2400], ["0", "1,000", "2,000", "never"])
    panels[1].set_yticklabels([])
    figure.savefig(runs.FOLDER / "pretraining.png", dpi=150)


if __name__ == "__main__":
    main()
