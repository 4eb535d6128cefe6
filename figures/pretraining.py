"""
Structure, not knowledge: what a model can begin from so that it learns LEGO sooner, and which of its weights help.

Claim (the paper's): pretraining on unrelated text helps, and training heads to attend in two patterns, without any
text, helps nearly as much.

    python -m figures.pretraining       30 runs, and 10 that they begin from: 3 hours on 2 cores

Vanilla untied models, 6 layers, width 64, learn `sign` over 12 clauses, 6 labelled, 5 seeds, from: random weights;
mimicking (600 steps of attending as the two patterns do, on LEGO sentences, without a label); the hidden words of text
(`--preset=words`, 1,500 steps). Of each model of text all weights are taken, or a part, with the others as in the run
from random weights. All have the same dials on LEGO. A run ends after 1,300 steps, or goes on to 2,000 until variables
2 and 3 have once been 95% right.
"""
import re
import tempfile
from dataclasses import asdict, dataclass, replace

from figures import heads, runner, show
import train

NAME = "pretraining"
SEEDS = range(5)
FIRST_STOP = 1300  # steps
ASKED = (2, 3)  # the variables whose steps to 95% are counted; the first can be had without looking beyond its clause
PARTS = {  # of the weights, by their names
    "": ".*",
    "queries and keys": r"\.(query|key)\.",
    "all but queries and keys": r"^(?!.*\.(query|key)\.)",
    "embeddings": "embedding",
}
BEGINNINGS = {  # label: in the words of the picture, and the colour
    "random weights": ("random weights", show.GRAY),
    "text: embeddings": ("text: embeddings alone", show.SKY),
    "text: queries and keys": ("text: queries and keys alone", show.SKY),
    "text: all but queries and keys": ("text: all but queries and keys", show.SKY),
    "text": ("text: all weights", show.BLUE),
    "mimicking": ("two attention patterns", show.RED),
}


@dataclass
class Transplant(train.Config):
    """The dials, and which weights are taken from init_from: a name of PARTS."""
    parts: str = ""


def on_lego(**dials):
    """Training on LEGO, the same from all beginnings: chains of 2 to 12 clauses."""
    return Transplant(**heads.compact(**{**dict(
        min_clauses=2, batch_size=256, lr=1e-3, muon_lr=6e-3, warmup_steps=50, max_steps=2000, eval_every=50,
        out_dir=""), **dials}))


def groups():
    """{label: [config of every seed]}"""
    def of_label(label, seed):
        source, _, parts = label.partition(": ")
        return on_lego(seed=seed, parts=parts, init_from="" if source == "random weights" else f"out/{source}-{seed}")
    return {label: [of_label(label, seed) for seed in SEEDS] for label in BEGINNINGS}


def make_model(config):
    """The model of random weights, with the parts of the one in init_from."""
    model = train.make_model(replace(config, init_from=""))
    others = train.make_model(config).state_dict()
    model.load_state_dict({name: others[name] if re.search(PARTS[config.parts], name) else x
                           for name, x in model.state_dict().items()})
    return model


def run(config):
    """The history of a run, which ends at max_steps, or at FIRST_STOP if nothing is left to be seen."""
    with tempfile.TemporaryDirectory() as folder:
        short = replace(config, max_steps=FIRST_STOP, out_dir=folder)
        history = train.train(short, make_model(config))
        if None in [steps_to(history, variable) for variable in ASKED]:  # goes on as if it had not stopped
            history = train.train(replace(short, max_steps=config.max_steps), resume=True)
    return {**history, "config": asdict(config)}


def steps_to(history, variable, at=0.95):
    """The steps until a variable, from 1 on, is first right in this share of the test sentences; None: never."""
    return next((step for step, accuracy in zip(history["step"], history["accuracy"]) if accuracy[variable - 1] >= at),
                None)


def accuracy(history, first, last):
    """Of variables first to last, from 1 on, in percent: mean of the last three evaluations up to FIRST_STOP."""
    early = [row for step, row in zip(history["step"], history["accuracy"]) if step <= FIRST_STOP]
    return 100 * sum(sum(row[first - 1 : last]) for row in early[-3:]) / 3 / (last - first + 1)


def words(runs):
    """
    Lines of figures/README.md: the steps of each seed until variables 2 and 3 are at 95%; after FIRST_STOP, in %, the
    accuracy of the labelled variables and of the first unlabelled one.
    """
    lines, n = [], runs["text"][0]["config"]["n_supervised"]
    for label, histories in runs.items():
        cells = [" ".join(f"{steps_to(run, variable) or 'never':>5}" for run in histories) for variable in ASKED]
        cells += [" ".join(f"{accuracy(run, *ends):.0f}" for run in histories) for ends in ((1, n), (n + 1, n + 1))]
        columns = zip((label, *cells), (32, 32, 32, 18, 14))
        lines.append("".join(cell.ljust(width) for cell, width in columns).rstrip())
    return lines


def draw(runs):
    c, hardware = runs["text"][0]["config"], runs["text"][0]["hardware"]
    count = {label: sum(steps_to(run, 3) is not None for run in histories) for label, histories in runs.items()}
    figure, (panels,) = show.picture(
        f"Text brings variable 2 sooner, two patterns variable 3: in {count['mimicking']} of {len(SEEDS)} seeds (text "
        f"{count['text']}, random {count['random weights']})", 1, 2, 11, 4.6,
        f"vanilla attention; {c['n_clauses']} clauses, {c['n_supervised']} labelled, {c['n_layer']} untied layers, "
        f"width {c['n_embd']}; two attention patterns: first trained to attend to identical tokens and to neighbours, "
        "without labels; text: first trained to guess hidden words, all weights taken or a part, the others random; a "
        f"dot is a seed, {len(SEEDS)} of each, open: not in {c['max_steps']:,} steps of {c['batch_size']} sentences; "
        f"{hardware} a run")
    ticks, never = range(0, c["max_steps"] + 1, 500), 1.2 * c["max_steps"]
    for axes, variable in zip(panels, ASKED):
        show.dots(axes, [(title, [steps_to(run, variable) for run in runs[label]], color)
                         for label, (title, color) in BEGINNINGS.items()], never)
        axes.set(title=f"variable {variable}", xlabel="training steps on LEGO until 95% right", ylabel="begun from",
                 xlim=(0, never))
        axes.set_xticks([*ticks, never], [*map("{:,}".format, ticks), "never"])
    panels[1].set_yticklabels([])
    return figure


if __name__ == "__main__":
    runner.main(NAME, draw, groups, run,
                [heads.sources(seed)[label] for label in ("text", "mimicking") for seed in SEEDS])
