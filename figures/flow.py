"""
How information flows: after which layer can the value of each variable be read at its own left-hand side?

Claim (of third parties, on the paper's models): tied Transformers resolve variables one after another over their depth,
untied ones less so. Lead (ours, early): LEGO attention resolves one variable per layer if chained, one per two layers
if parallel, and what goes beyond that is gained late in training.

    python -m figures.flow              24 runs, and 6 of mimicking to begin from: 35 minutes on 2 cores

Runs: 6 clauses, all supervised, 6 layers or loops, width 64, 3 seeds: vanilla attention untied and tied, LEGO attention
chained and parallel, both untied; each trained on whole chains of 2 to 6 clauses, and on chains with up to 2 clauses
of a second one beside them, where counting signs does not help (see figures/shortcut.py). Vanilla attention does not
get beyond two variables there within 1,600 and 2,000 steps, in two single runs from random weights with 6 layers that
were not kept; it begins from 300 steps of mimicking. Probes: ridge regression in closed form, on 2,000 fresh sentences
for each layer and variable, measured on as many others, all of them whole chains. With shuffled labels they are at 50%.

Measured: the first layer after which a variable can be read at 90%, for variables 1 to 6, each seed

                        whole chains                               beside a second chain
    vanilla, untied     1 3 5 5 5 4   1 2 4 5 5 4   1 3 - - 5 3    2 3 4 5 6 6   1 3 4 5 5 6   1 3 5 5 6 6
    vanilla, tied       1 2 4 5 4 3   1 2 3 4 5 3   1 2 3 5 4 3    1 2 3 4 5 6   2 3 4 5 6 6   2 3 4 5 6 -
    LEGO, chained       1 2 3 4 5 6   in every seed                1 2 3 4 5 6   in every seed
    LEGO, parallel      1 3 6 6 6 6   1 3 6 6 - -   1 3 6 6 6 -    1 4 6 6 6 6   1 3 6 6 6 6   1 4 6 - - -

(-: never. One untied seed on whole chains has not learned the middle, which ends at 63 to 86%, one tied seed beside a
second chain not the last, at 83%, and one parallel seed beside a second chain none after the third.)

Following is a staircase, and the probe shows who follows. Chained LEGO attention climbs one variable per layer in every
seed, on either kind of sentences. So does vanilla attention beside a second chain, tied or not, with a layer of slack
in most seeds, or two in one. On whole chains it does something else: the last variable can be read after layer 3 or 4,
before the fourth in all six models: the shortcut, seen from inside. In three of them the fifth, next to it in the
chain, comes before the fourth as well.

The lead on LEGO attention holds. Parallel: beside a second chain 1 1 2 2 2 3 variables can be read after layers 1 to 6
at step 400, in all but one cell of the three seeds, one in two layers. In two seeds the last layer alone reads a fourth
at step 600 and all six by step 1,000 to 1,200, by other means than a chain of links, for after the fifth layer there
are still two; the third seed stays. Chained: as many as layers, by step 800 at the latest, in the seeds of the figure.

The claim about tied and untied layers shows only in this, that tied ones are more regular: both go one variable per
layer where they follow.

On 2 cores of an x86-64 server, one thread a run, 36 to 231 s a run.
"""
from dataclasses import replace

import numpy as np
import torch
import torch.nn.functional as F

import figures
import lego
import train

NAME = "flow"
SEEDS = range(3)
UNTIED_LEGO = dict(tied=False, self_condition=False, shared_names=False, loop_jitter=0, eval_loops=0,
                   schedule="constant")
MODELS = {
    "vanilla, untied": train.PRESETS["vanilla"],
    "vanilla, tied": dict(train.PRESETS["vanilla"], tied=True),
    "LEGO, chained": UNTIED_LEGO,
    "LEGO, parallel": dict(UNTIED_LEGO, chained=False),
}
SENTENCES = {  # what is trained on, never more than 6 clauses; what is asked for in a test is whole chains of 6
    "whole": dict(min_clauses=2),
    "beside": dict(min_clauses=3, n_distractor=2),
}
TITLES = {"whole": "trained on whole chains", "beside": "trained on chains beside a second one"}


def config_of(model, seed, **more):
    """6 clauses, all supervised, for 6 layers, or a block with 6 loops."""
    return train.Config(**{**MODELS[model], "n_clauses": 6, "n_supervised": 6, "n_names": 6, "n_layer": 6,
                           "stop_at": 0.0, "max_steps": 1600, "eval_every": 200 if "LEGO" in model else 400,
                           "out_dir": "", "seed": seed, **more})


def mimicking(model, seed):
    """What vanilla attention begins from beside a second chain: from random weights it stays with two variables."""
    return config_of(model, seed, mimic=True, lr=2e-3, muon_lr=2e-2, schedule="linear", max_steps=300,
                     eval_every=300, out_dir=f"out/flow-{model.replace(', ', '-')}-{seed}")


def groups():
    """{label: [config of every seed]}, every model on both kinds of sentences."""
    configs = {}
    for kind, dials in SENTENCES.items():
        for model in MODELS:
            runs = [config_of(model, seed, **dials) for seed in SEEDS]
            if "LEGO" in model and kind == "whole":
                runs = [replace(run, max_steps=400) for run in runs]
            if "vanilla" in model and kind == "beside":
                runs = [replace(run, init_from=mimicking(model, run.seed).out_dir) for run in runs]
            configs[f"{model}; {kind}"] = runs
    return configs


@torch.no_grad()
def read_out(model, config, size=2000, ridge=1e-6):
    """
    How well every variable's value can be read from the state at its own left-hand side after every layer: a linear
    probe for each pair of layer and variable, fitted on `size` fresh sentences and measured on as many others.

    Returns {"true": [layer][variable], "shuffled": the same for labels that belong to other sentences}: accuracies. The
    fit is the closed form of ridge regression on one-hot values, the likeliest value the answer.
    """
    task, generator = train.make_task(config), torch.Generator().manual_seed(2**31)
    halves = [lego.sample(task, size, config.n_clauses, generator) for _ in range(2)]  # to fit, to measure
    states = [train.states_of(model, half, train.loops_at_test(config)) for half in halves]  # each (L, B, n, C)
    x, x_test = (F.pad(s.double(), (0, 1), value=1.0).transpose(1, 2) for s in states)  # (L, n, B, C + 1), a bias
    gram = x.mT @ x + ridge * size * torch.eye(x.size(-1))  # (L, n, C + 1, C + 1)
    accuracy = {}
    for name, rows in (("true", torch.arange(size)), ("shuffled", torch.randperm(size, generator=generator))):
        y, y_test = (F.one_hot(half.values[rows], len(task.values)).double().transpose(0, 1) for half in halves)
        weight = torch.linalg.solve(gram, x.mT @ y)  # (L, n, C + 1, |X|)
        right = (x_test @ weight).argmax(-1) == y_test.argmax(-1)  # (L, n, B)
        accuracy[name] = right.double().mean(-1).tolist()
    return accuracy


def run(config):
    return train.train(config, look=read_out)


def readable(history, at=0.9):
    """How many variables can be read after each layer, (looks, L)."""
    return (np.array([look["true"] for look in history["looks"]]) >= at).sum(-1)


def first_layers(accuracy, at=90):
    """Words for the layer after which each variable can first be read, of accuracies (L, n) in percent."""
    known = accuracy >= at
    return " ".join(str(layers.argmax() + 1) if layers.any() else "-" for layers in known.T)


def draw(runs):
    from matplotlib import colormaps
    from matplotlib.figure import Figure

    figure = Figure(figsize=(19, 14), layout="constrained")
    panels = figure.subplots(3, len(MODELS))
    for row, kind in enumerate(SENTENCES):
        for axes, model in zip(panels[row], MODELS):
            histories = runs[f"{model}; {kind}"]
            accuracy = 100 * np.array([history["looks"][-1]["true"] for history in histories])  # (seeds, L, n)
            chance = 100 * np.mean([history["looks"][-1]["shuffled"] for history in histories])
            image = axes.imshow(accuracy.mean(0), cmap="cividis", vmin=50, vmax=100)
            for layer, variable in np.ndindex(*accuracy.shape[1:]):
                low, mean, high = (f(accuracy[:, layer, variable]) for f in (np.min, np.mean, np.max))
                text = f"{mean:.0f}" if high - low < 10 else f"{low:.0f}–{high:.0f}"
                axes.text(variable, layer, text, ha="center", va="center", fontsize=10 if len(text) < 4 else 8,
                          color="black" if mean > 75 else "white")
            steps = histories[0]["step"][-1]
            begun = ", begun from mimicking" if histories[0]["config"]["init_from"] else ""
            axes.set(xlabel="variable, in chain order", ylabel="loop" if "untied" not in model and "vanilla" in model
                     else "layer")
            axes.set_title(f"{model}: {TITLES[kind]}\n{steps} steps{begun}; shuffled labels: {chance:.0f}%\n"
                           f"first read at 90%, on average: {first_layers(accuracy.mean(0))}", fontsize=10)
            n_layer, n = accuracy.shape[1:]
            axes.set_xticks(range(n), range(1, n + 1))
            axes.set_yticks(range(n_layer), range(1, n_layer + 1))
    figure.colorbar(image, ax=panels[:2], shrink=0.5, label="accuracy of a linear probe (%)")
    for axes, model in zip(panels[2], MODELS):
        histories = runs[f"{model}; beside"]
        counts = np.array([readable(history) for history in histories])  # (seeds, looks, L)
        for layer in range(counts.shape[-1]):
            color = colormaps["viridis"](0.9 * layer / (counts.shape[-1] - 1))
            axes.plot(histories[0]["step"][1:], counts[:, :, layer].mean(0), color=color, marker="o", markersize=4,
                      label=f"after layer or loop {layer + 1}")
            axes.fill_between(histories[0]["step"][1:], counts[:, :, layer].min(0), counts[:, :, layer].max(0),
                              color=color, alpha=0.12, linewidth=0)
        axes.set(xlabel="training steps", ylabel="variables read at 90% or more", ylim=(0, 6.3), xlim=(0, None))
        axes.set_title(f"{model}: {TITLES['beside']}\nvariables in the end, layer by layer: "
                       + " ".join(f"{count:.1f}" for count in counts[:, -1].mean(0)), fontsize=10)
    panels[2, 0].legend(frameon=False, fontsize=9)
    c, hardware = histories[0]["config"], histories[0]["hardware"]
    figure.suptitle(
        "Which layer knows which variable? Following the chain is a staircase, one variable a layer. With LEGO's "
        "pathways side by side (parallel) it takes two layers, and the last one leaps, if at all\n"
        "Vanilla attention trained on whole chains knows the last variable before those in the middle: that is "
        "counting. Trained beside a second chain, where counting is wrong, it climbs the same stairs\n"
        f"{c['n_clauses']} clauses over {c['n_names']} names, all supervised, {c['n_layer']} layers, width "
        f"{c['n_embd']}; read by a linear probe at the variable's own left-hand side, in whole chains of 6;\n"
        f"mean of {len(histories)} seeds, their range where it is 10 points or more; {hardware} a run",
        fontweight="bold", fontsize=12)
    return figure


def main(arguments):
    if arguments:
        raise ValueError(f"'{arguments[0]}': expected no argument")
    runs = groups()
    if figures.is_missing(NAME, runs):
        begins = [mimicking(model, seed) for model in MODELS if "vanilla" in model for seed in SEEDS]
        figures.make_checkpoints(begins, parallel=True)
    figures.train_all(NAME, runs, parallel=True, run=run)
    figures.redraw(NAME, draw)


if __name__ == "__main__":
    lego.command_line(main)
