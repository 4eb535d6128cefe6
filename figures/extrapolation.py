"""
Beyond the paper: chains far longer than the supervised ones, and than any in training.

No claim of the paper's, whose tied models go on for a few variables beyond the supervised ones. Here the default of
train.py, told the first six of twelve values, is asked for all twelve, and with the same weights for chains of 26, 100
and 1,000 clauses. Then what makes that possible is taken apart.

    python -m figures.extrapolation          64 runs, an hour on 2 cores

Measured: accuracy of the worst variable in %, each seed or from the worst seed to the best; in 1,000 sentences of 12
clauses, 500 of 26, 50 of 100 and 6 of 1,000; with a loop for every clause and 8 to spare

    (seeds)                                     12 clauses        26 clauses           100 clauses  1,000 clauses
    the default (10)                            100               100                  100          100
    the default over 100 names (5)              100               100                  100
    the default over 100 names, 150 steps (3)   99.9, 100, 100    100                  100
    an embedding for each of 100 names (5)      100               100                  100
    the state is handed on (4)                  100               99.8, 100, 100, 100  100          83.3, 100, 100, 100
    the state is handed on, 150 steps (3)       97.5, 97.9, 100   53.2, 86.4, 99.8     34, 44, 98
    the state, an embedding for each name (5)   99 to 100         78.6 to 100          32 to 100
    the state, constant rate, 26 names (5)      99.4 to 100       99.4 to 100
    always 8 loops, not 1 to 9 (5)              100               100                  100
    asked after each of 8 loops (3)             100               100                  100
    two variables supervised (3)                100               100                  100
    the default on d3 (5)                       100               100                  100          100
    s5, trained on 4 clauses, width 128 (3)     0.4, 99.9, 99.9   0, 99.4, 99.6        0, 96, 98
    s5, 12 clauses, width 128, 1,600 steps (2)  0.3 to 0.6        0 to 0.2             0
    vanilla attention, tied (3)                 46.2, 46.7, 47.9

So the default is right on all variables of 12 clauses (see figures/learning.py for when), and with the same weights of
26, of 100 and of 1,000, in each of 10 seeds; on d3 in each of 5. s5, the first group that is not solvable, is learned on 4
clauses, all supervised: after 1,500 steps in 2 seeds of 3, which have the worst of 26 variables at 99.4 to 99.6%, of
100 at 96 and 98% (50 sentences); the third was half way. With the default's 6 of 12 it knows little more than the first
variable after 1,600 steps: the second is at 8 to 12%, and learning; the 14,400 products of the group are what takes so
long.

Why it decayed. Before, a loop began from the state in which the one before had ended. The picture shows what happens to
that on chains of 100: the front, where the next variable is solved, goes up almost a link a loop, but in some of the
sentences a variable that has long been solved is lost again after 30 or 100 loops, and the loss travels down the chain,
a link a loop, as the solution did. A state has room for more than the value that it is asked for, and what it says
beside that is not held in place by anything, over more loops than in training. In one seed of five it carries off all
that had been solved, the supervised ones included: the sixth variable is at 100%, and at 40% after 130 loops.

What mends it. A loop hands on what it believes: the probabilities of the values at every token, embedded, and added to
the embedding of the token (model.py). Nothing else has a way into the next loop, and a softmax that is nearly sure says
nearly the same as one that is sure: from the loop in which a variable is solved to the last one, its margin varies by
less than 1% in all 10 seeds (on d3 by 4 to 6%), where with a state it does so by 5 to 30%, and over 100 clauses by 0.2
to 1.1% and by 15% or more. Begun from the settled beliefs about another sentence, or from random ones, the model finds
the values of this one as from the start (trials, below): as if the truth were its one fixed point.

That is not the only way. One embedding for all names helps the state, too: in 3 of 4 seeds it then follows 1,000
clauses, after 300 steps at a falling rate and 3.0 to 3.6 times the training time; after 150 steps in no seed all of
100, where beliefs do in each. And beliefs do as well with an embedding for each name.

How it is trained. The number of loops is drawn anew at each step, variables are asked for after the last loop only, as
soon as so many links can have reached them, and no gradient goes from loop to loop. To ask after each of 8 loops does
as well, and takes 2.2 to 3.6 times as long. Always after 8 loops does as well here; in the trials, with 200 steps, it
failed in one seed of 4, and on d3 the front was slow in 3 of 3: each supervised variable is mostly known from the loop
before, and what is taught, to say it again, is no link. To ask for what can't be known yet teaches to be unsure, and
what is unsure travels slowly (trials: margins of 5 to 7 in place of 10).

Trials: figures/extrapolation.trials.json has the 54 single runs of the search, failures too. With the state handed on:
a growing share of the steps behind loops without gradient is worse than none in 3 seeds of 4; half of the steps behind
them (incremental progress, arXiv 2202.05826) keeps d3 from being learned in 400 steps; on sign, after 200 steps, that
and noise on the state have all of 26 clauses right, chains of 2 to 12 clauses or second chains in training not (one
seed each); a convolution 5 wide takes two loops a link, for the argument stands 3 positions from the variable. Not
tried: halting, a gated update, the weight decay, and another scale of the association mean.

On 2 cores of an x86-64 server, one thread a run, two at a time, seconds of training: the default 32 to 38, d3 33 to 49,
a state 109 to 139, s5 194 to 431.
"""
from dataclasses import replace

import numpy as np
import torch

import figures
import lego
import train

NAME = "extrapolation"
SENTENCES = {12: 1000, 26: 500, 100: 50, 1000: 6}  # clauses: how many sentences a model is asked
STATE = dict(self_condition=False, every_layer=True, n_layer=11, loop_jitter=3)  # its best training that we know
VANILLA = {**train.PRESETS["vanilla"], "tied": True, "n_layer": 6, "n_clauses": 12, "n_supervised": 6, "n_names": 26,
           "min_clauses": 2, "max_steps": 600, "stop_at": 0.0}
SMALL_S5 = dict(task="s5", n_clauses=4, n_supervised=4, n_layer=3, loop_jitter=2, n_embd=128, batch_size=256,
                max_steps=1500, eval_every=100)
VARIANTS = {  # label: dials beside the default's, seeds
    "default": (dict(), 10),
    "default, d3": (dict(task="d3"), 5),
    "100 names": (dict(n_names=100), 5),
    "state": (dict(STATE, shared_names=False, n_names=100), 5),
    "state, constant rate": (dict(STATE, shared_names=False, schedule="constant"), 5),
    "state, one embedding": (dict(STATE, n_names=100), 4),
    "always 8 loops": (dict(n_layer=8, loop_jitter=0), 5),
    "an embedding for each name": (dict(shared_names=False, n_names=100), 5),
    "asked after every loop": (dict(every_layer=True, n_layer=8, loop_jitter=0), 3),
    "150 steps": (dict(n_names=100, max_steps=150), 3),
    "state, one embedding, 150 steps": (dict(STATE, n_names=100, max_steps=150), 3),
    "s5, 4 clauses": (SMALL_S5, 3),
    "two variables told": (dict(n_supervised=2), 3),
    "vanilla": (VANILLA, 3),
    "s5": (dict(task="s5", n_embd=128, max_steps=1600, eval_every=100), 2),
}
ASKED_FOR_1000 = [train.Config(out_dir="", **dials) for dials in (dict(), dict(task="d3"), dict(STATE, n_names=100))]


def groups():
    """{label: [config of every seed]}"""
    return {label: [train.Config(**{"out_dir": "", **dials, "seed": seed}) for seed in range(n_seeds)]
            for label, (dials, n_seeds) in VARIANTS.items()}


def run(config):
    """
    Trains a model and asks it for longer chains than it has seen: the history of the run, with

        chains     {clauses: accuracy of every variable}, with a loop for every clause and 8 to spare
        accuracy_by_loop   (loops, variables), in 50 sentences of 100 clauses if trained on 100 names, else of 26
        margins    (2, variables), in the same: by how much the logit of the right value is the largest, mean over the
                   sentences, least and most of the loops that can have reached the variable
    """
    model = train.make_model(config)
    history = train.train(config, model)
    generator = torch.Generator().manual_seed(2**31)
    history["chains"] = {}
    for n, size in SENTENCES.items():
        if reads(config, n) and (n < 1000 or replace(config, seed=0) in ASKED_FOR_1000):
            batch = lego.sample(lego.make_task(config.task, max(n, config.n_names)), size, n, generator)
            n_loops = n + 8 if config.loop_jitter or config.self_condition else None  # others know one number of loops
            right = train.predict(model, batch, n_loops) == batch.values
            history["chains"][n] = right.double().mean(0).tolist()
    n, n_loops = (100, 130) if config.n_names == 100 else (26, 60)
    if reads(config, n):
        batch = lego.sample(lego.make_task(config.task, max(n, config.n_names)), 50, n, generator)
        accuracy, margin = by_loop(model, batch, n_loops)
        history["accuracy_by_loop"] = [[round(x, 2) for x in row] for row in accuracy.tolist()]
        history["margins"] = [[f(margin[i:, i]).item() for i in range(n)] for f in (torch.min, torch.max)]
    return history


def reads(config, n):
    """Whether the model of a config can read n clauses: it has no learned positions, and an embedding for all names."""
    return (config.positions == "none" or n <= config.n_clauses) and (train.shares_names(config) or n <= config.n_names)


@torch.no_grad()
def by_loop(model, batch, n_loops):
    """The accuracy and the mean margin (L, n) of every variable after every loop."""
    logits = train.logits_of(model, batch, n_loops, every_layer=True)  # (L, B, n, n_out)
    values = batch.values.expand(len(logits), -1, -1)[..., None]  # (L, B, n, 1)
    truth, next_best = logits.gather(-1, values)[..., 0], logits.scatter(-1, values, -torch.inf).amax(-1)  # (L, B, n)
    margin = truth - next_best
    return (margin > 0).double().mean(1), margin.double().mean(1)


COLORS = {"default": "#0072B2", "100 names": "#0072B2", "default, d3": "#009E73", "s5, 4 clauses": "#56B4E9",
          "state": "#D55E00", "state, constant rate": "#E69F00", "state, one embedding": "#CC79A7",
          "vanilla": "#000000"}
TITLES = {  # in the words of the picture
    "default": "the default",
    "100 names": "the default over 100 names",
    "150 steps": "the default over 100 names, 150 steps",
    "an embedding for each name": "an embedding for each of 100 names",
    "state, one embedding": "the state is handed on",
    "state, one embedding, 150 steps": "the state is handed on, 150 steps",
    "state": "the state, an embedding for each name",
    "state, constant rate": "the state, constant rate, 26 names",
    "always 8 loops": "always 8 loops, not 1 to 9",
    "asked after every loop": "asked after each of 8 loops",
    "two variables told": "two variables supervised",
    "default, d3": "the default on d3",
    "s5, 4 clauses": "s5, trained on 4 clauses, width 128",
    "s5": "s5, 12 clauses, width 128, 1,600 steps",
    "vanilla": "vanilla attention, tied",
}


def worst(histories, n):
    """The accuracy in % of the worst variable of n clauses, of every seed that can read them."""
    return [100 * min(history["chains"][str(n)]) for history in histories if str(n) in history["chains"]]


def draw_reach(axes, runs):
    """Accuracy against the variable's place in the chain, in the longest chains that each was asked for."""
    for label in ("vanilla", "state, constant rate", "state", "state, one embedding", "s5, 4 clauses", "default, d3",
                  "default"):
        histories = runs.get(label, [])
        if not histories:
            continue
        n = max(int(n) for n in histories[0]["chains"])
        accuracy = 100 * np.array([history["chains"][str(n)] for history in histories])  # (seeds, n)
        n_sentences = len(histories) * SENTENCES[n]
        place = np.arange(1, n + 1)
        for i, line in enumerate(accuracy):
            axes.plot(place, line, color=COLORS[label], linewidth=1.2, alpha=0.8,
                      label=f"{TITLES[label]}: {n:,} clauses, {n_sentences:,} sentences" if i == 0 else None)
    n_supervised, n_clauses = (runs["default"][0]["config"][key] for key in ("n_supervised", "n_clauses"))
    for n, what in ((n_supervised, "supervised"), (n_clauses, "longest in training")):
        axes.axvline(n + 0.5, color="gray", linestyle="--", linewidth=1)
        axes.text(n + 0.3, 21, f"{what}: {n}", rotation=90, ha="right", fontsize=8, color="dimgray",
                  bbox=dict(facecolor="white", alpha=0.8, linewidth=0, pad=1))
    axes.axhline(50, color="gray", linestyle=":", linewidth=1)
    axes.text(1000, 50.5, "chance, sign", ha="right", va="bottom", fontsize=8, color="dimgray")
    axes.set(xscale="log", xlim=(0.9, 1100), ylim=(20, 102), xlabel="variable, its place in the chain",
             ylabel="accuracy (%)")
    axes.set_xticks([1, 6, 12, 26, 100, 1000], labels=["1", "6", "12", "26", "100", "1,000"])
    axes.minorticks_off()
    axes.legend(fontsize=8, frameon=False, loc="upper center", bbox_to_anchor=(0.5, -0.16))


def draw_loops(axes, histories):
    """The accuracy of every variable after every loop, of the seed in the middle. Below 90% all is dark."""
    in_order = sorted(histories, key=lambda history: min(history["chains"]["100"]))
    accuracy = 100 * np.array(in_order[len(histories) // 2]["accuracy_by_loop"])  # (L, n)
    image = axes.imshow(accuracy, origin="lower", aspect="auto", cmap="viridis", interpolation="none", vmin=90,
                        vmax=100, extent=(0.5, accuracy.shape[1] + 0.5, 0.5, len(accuracy) + 0.5))
    axes.set(xlabel="variable, its place in the chain", ylabel="loops at test")
    axes.set_xticks([1, 25, 50, 75, 100])
    return image


def draw_training(axes, runs):
    """The worst of twelve variables over training, one line per seed."""
    for label in ("state, constant rate", "state", "default"):
        for i, history in enumerate(runs.get(label, [])):
            axes.plot(history["step"], [100 * min(accuracies) for accuracies in history["accuracy"]],
                      color=COLORS[label], linewidth=1, alpha=0.8, label=TITLES[label] if i == 0 else None)
    axes.set(xlabel="training steps, of 128 fresh sentences each", ylabel="accuracy of the worst of 12 variables (%)",
             xlim=(0, None), ylim=(35, 102))
    axes.legend(frameon=False, fontsize=8, loc="lower right", bbox_to_anchor=(1, 0.12))


def draw_ablations(axes, runs):
    """One row per variant: the worst variable of 12, 26 and 100 clauses, a dot for every seed."""
    labels = [label for label in TITLES if label in runs]
    for row, label in enumerate(labels):
        for shift, n, color in ((-0.22, 12, "#56B4E9"), (0, 26, "#0072B2"), (0.22, 100, "#CC79A7")):
            found = worst(runs[label], n)
            axes.scatter(found, [row + shift] * len(found), s=22, color=color, alpha=0.7, linewidth=0,
                         label=f"{n} clauses" if row == 0 else None)
    axes.set_yticks(range(len(labels)), labels=[f"{TITLES[label]} ({len(runs[label])} seeds)" for label in labels],
                    fontsize=9)
    axes.invert_yaxis()
    axes.grid(axis="x", alpha=0.3)
    axes.set(xlabel="accuracy of the worst variable (%)", xlim=(-2, 103))
    axes.legend(frameon=False, fontsize=8, loc="upper left", bbox_to_anchor=(0.0, 0.9))


def draw_kept(axes, runs):
    """Of the variables that so many loops can have reached, how many are right: one line per seed."""
    for label in ("state, one embedding", "state", "100 names"):
        for i, history in enumerate(runs.get(label, [])):
            accuracy = 100 * np.array(history["accuracy_by_loop"])  # (L, n)
            loops = np.arange(1, len(accuracy) + 1)
            reached = [row[:n].mean() for n, row in zip(loops, accuracy)]
            axes.plot(loops, reached, color=COLORS[label], linewidth=1.2, alpha=0.8,
                      label=TITLES[label] if i == 0 else None)
    axes.set(xlabel="loops at test", ylabel="right, of the variables within reach (%)", xlim=(0, None), ylim=(45, 101))
    axes.legend(frameon=False, fontsize=8)


def draw(runs):
    from matplotlib.figure import Figure

    figure = Figure(figsize=(17, 10), layout="constrained")
    panels = figure.subplots(2, 3)
    draw_reach(panels[0, 0], runs)
    panels[0, 0].set_title("how far: a line per seed", fontsize=10)
    for axes, label in ((panels[0, 1], "100 names"), (panels[0, 2], "state")):
        image = draw_loops(axes, runs[label])
        axes.set_title(f"{TITLES[label]}: chains of 100, loop by loop\n(of {len(runs[label])} seeds the middle one)",
                       fontsize=10)
    figure.colorbar(image, ax=panels[0, 2], label="accuracy (%)", extend="min")
    draw_training(panels[1, 0], runs)
    panels[1, 0].set_title("on the way: 12 clauses, after 16 loops, a line per seed", fontsize=10)
    draw_kept(panels[1, 1], runs)
    panels[1, 1].set_title("why: a link a loop, and what is solved stays solved.\nChains of 100, a line per seed",
                           fontsize=10)
    draw_ablations(panels[1, 2], runs)
    panels[1, 2].set_title("what it takes: the worst variable of each seed", fontsize=10)
    history = runs["default"][0]
    c = history["config"]
    reached = max((n for n in SENTENCES if min(worst(runs["default"], n), default=0) >= 99), default=0)
    found = f"chains of {reached:,} clauses" if reached else "no chain to its end"
    figure.suptitle(
        f"Told {c['n_supervised']} of {c['n_clauses']} values, a block of {history['n_parameters'] / 1000:.0f}k "
        f"parameters follows {found}\nIf its loops hand on what they believe, it does so in every seed; if they hand "
        f"on their state, that takes longer and is less sure\n"
        f"(`python train.py` if nothing else is said: sign, {c['max_steps']} steps, width {c['n_embd']}, tied LEGO "
        f"attention; {history['hardware']} a run)", fontweight="bold", fontsize=12)
    return figure


def main(arguments):
    if arguments:
        raise ValueError(f"'{arguments[0]}': expected no argument")
    figures.train_all(NAME, groups(), parallel=True, run=run)
    figures.redraw(NAME, draw)


if __name__ == "__main__":
    lego.command_line(main)
