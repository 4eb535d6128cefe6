"""
The shortcut: a model that is 100% right on the last variable of a chain, and does not follow the chain.

Claim (the paper's): in some settings the model finds a shortcut, which impairs its robustness, and there are ways to
prevent it. In `sign` the last variable of a whole chain is the parity of all minus signs: it can be had by counting,
without a look at any name. No other variable can, and none in `d3`, where the order matters.

    python -m figures.shortcut          38 runs, 90 minutes on 2 cores

Runs: `--preset=vanilla` (6 clauses over 6 names, all supervised, 3 layers, width 64) for 2,400 steps, 5 seeds, and with
each cure, 3 seeds; LEGO attention for 600 steps, the default for its 300; d3 with batches of 256 for 2,000. Every 100
steps the model is asked about sentences that were interfered with (`interfere`): a sign is flipped; the last two
clauses are a second chain, which has its own root, so that the parity of all signs says nothing of the first; a clause
is dropped, so that the last variable is not determined.

The order. The last variable is at 99% after 1,000 to 1,700 steps. In 4 seeds of 5 that is before the third, the fourth
and the fifth, by 200 to 800 steps before the fourth, and in 3 of them before the second too; in one seed it comes after
the second and third. At first there is a plateau
where the model looks at no name: every variable but the first is guessed from its own sign, the root's, and the parity.

Counting. While the middle is still at chance, the last variable changes with every sign that is flipped (drawn is the
clearest moment of the five runs). In the end all variables of all seeds are at 100%, and nothing is to be seen from
whole chains; but beside a second chain, the answer for the last variable is the parity of all signs in 90 to 100% of
the sentences, and right in 1 to 14% of those where the parity is not. The skill to follow the chain is there, for the
fifth variable say: the last does not use it.

d3. Counting the reflections tells a rotation from a reflection, which makes one guess of three right. The last variable
does climb to 30 to 36% while the third is still at chance, in two seeds of three, and no further until the middle is
known.

The cures, accuracies of the last variable after training, each seed: of whole chains; beside a second chain (50% is
chance and what counting gives); in those of the latter where counting is wrong; and the mean of all variables there.

                                          whole          second chain    counting wrong    all variables
    none (5 seeds)                        100            48 to 53        1 to 14           64 to 80
    a second chain in training            100, 74, 98    100, 50, 100    100, 50, 100      100, 72, 100
    chains of 2 to 6 clauses              100            48, 47, 57      1, 0, 21          79, 62, 82
    a clause missing, every other batch   100, 70, 100   56, 50, 54      19, 25, 21        80, 64, 67
    tied layers                           100, 100, 86   48, 47, 46      1, 0, 14          76, 75, 64
    begun from mimicking                  100            47              0                 85, 85, 61
    begun from mimicking, second chain    100, 93, 100   100, 99, 100     100               100
    LEGO attention, untied                100            80, 100, 72     62, 100, 72       71, 79, 54
    LEGO attention, tied                  100            98, 100, 97     99, 100, 96       99, 100, 95
    the default of train.py               100            65, 73, 11      64, 72, 11        67, 72, 10
    the default, second chain             100            100              100               100

So what cures is to show sentences in which counting is wrong for a variable that carries a label. A second chain in
training does that, and then the variables are learned in their order. But the shortcut is also what vanilla
attention climbs on: without it one seed of three stays on the plateau. Begun from mimicking none does: structure and
data together are the cure for vanilla attention, neither is alone. Chains of other lengths are none: in each of them
counting is right, and with a clause dropped these models count what is left, in 92 to 100% of the sentences. Nor is a
missing clause: after it no variable has a label. Nor is tying, nor mimicking alone, which counts in every sentence.
Tied LEGO attention leaves no room for counting: its block goes from link to link, and variables are asked for as soon
as the chain can have arrived there. With its state handed on it is right beside a second chain, too, which it has never
seen. With beliefs handed on, the default of train.py, it is right where counting is wrong as often as elsewhere, and so
does not count, but a second root confuses it, from the first variable on (71, 72 and 10% there); having seen some, it
is right in all. Untied LEGO attention counts less, 47 to 67% where 50% is none of it, and is confused as well.

What to keep in mind. Only the models whose training had second chains have seen sentences like those of the test, and
the others err there on other variables too; that they count is to be read from the agreement with counting, far above
50%, and not from the errors. The last variable of the test's shorter chain is four links deep, that of a whole one six:
it is the easier one. A sentence without a clause is five tokens shorter than any that a model of whole chains of 6 has
seen, and its answers there (33 to 60% agree with counting) say nothing either way.

On 2 cores of an x86-64 server, one thread a run, 111 to 406 s a run (LEGO untied: 84 to 93; the default: 17 to 19).
"""
import numpy as np
import torch

import figures
import lego
import train

NAME = "shortcut"
SEEDS = range(5)
N_DISTRACTOR = 2  # clauses of the second chain that a test puts in the place of the last two of the first


def dials(**more):
    """Every one of six variables supervised, over six names: the compact BERT of generalisation.py, run for longer."""
    return {**train.PRESETS["vanilla"], "stop_at": 0.0, "out_dir": "", "max_steps": 2400, "eval_every": 100, **more}


def mimicking(seed):
    """What the cure `mimicking` begins from: 300 steps of attending as the two patterns do, without a label."""
    return train.Config(**dials(mimic=True, lr=2e-3, muon_lr=2e-2, schedule="linear", max_steps=300, seed=seed,
                                out_dir=f"out/shortcut-mimicking-{seed}"))


LEGO = dict(n_clauses=6, n_supervised=6, n_names=6, out_dir="", eval_every=50)
UNTIED_LEGO = dict(LEGO, tied=False, n_layer=6, self_condition=False, shared_names=False, loop_jitter=0, eval_loops=0,
                   schedule="constant", max_steps=600)
STATE_LEGO = dict(UNTIED_LEGO, tied=True, n_layer=11, loop_jitter=3, eval_loops=20, every_layer=True)


CURES = {
    "nothing": "none: vanilla, untied,\nwhole chains of 6 (SEEDS)",
    "distractors": "up to 2 of the 6 clauses are\na second chain (SEEDS)",
    "lengths": "whole chains of\n2 to 6 clauses (SEEDS)",
    "dropped": "every other batch lacks\na clause (SEEDS)",
    "tying": "tied layers (SEEDS)",
    "mimicking": "begun from mimicking (SEEDS)",
    "mimicking, distractors": "begun from mimicking, with\na second chain (SEEDS)",
    "untied LEGO": "LEGO attention, 6 untied\nlayers (SEEDS)",
    "tied LEGO": "LEGO attention, tied, its\nstate handed on (SEEDS)",
    "default": "the default of train.py:\nbeliefs handed on (SEEDS)",
    "LEGO, distractors": "the default, with a\nsecond chain (SEEDS)",
}


def groups():
    """{label: [config of every seed]}"""
    three = SEEDS[:3]
    beside = dict(n_distractor=N_DISTRACTOR)
    begun = {seed: dict(seed=seed, init_from=mimicking(seed).out_dir) for seed in three}
    return {
        "nothing": [train.Config(**dials(seed=seed)) for seed in SEEDS],
        "distractors": [train.Config(**dials(**beside, seed=seed)) for seed in three],
        "lengths": [train.Config(**dials(min_clauses=2, seed=seed)) for seed in three],
        "dropped": [train.Config(**dials(drop_clause=0.5, seed=seed)) for seed in three],
        "tying": [train.Config(**dials(tied=True, seed=seed)) for seed in three],
        "mimicking": [train.Config(**dials(**begun[seed])) for seed in three],
        "mimicking, distractors": [train.Config(**dials(**beside, **begun[seed])) for seed in three],
        "untied LEGO": [train.Config(**UNTIED_LEGO, seed=seed) for seed in three],
        "tied LEGO": [train.Config(**STATE_LEGO, seed=seed) for seed in three],
        "default": [train.Config(**LEGO, seed=seed) for seed in three],
        "LEGO, distractors": [train.Config(**LEGO, **beside, seed=seed) for seed in three],
        "d3": [train.Config(**dials(task="d3", batch_size=256, max_steps=2000, seed=seed)) for seed in three],
    }


def interfere(model, config, size=500):
    """
    What a model makes of sentences that were interfered with, the same ones at every call:

        whole           accuracy of every variable of chains of full length
        changes         [i][j]: share of them in which the answer for variable j is another one if clause i is given
                        another operation; where j is i or after it, it always should be
        beside          accuracy of every variable of a shorter chain, beside a second one, in as many clauses
        beside_count    share of these in which the last variable's answer is what counting all operations gives
        beside_differ   accuracy of the last variable in those of them where counting gives another value than the truth
        dropped_count   share of sentences without one clause, neither the first nor the last, in which the answer for
                        the last variable, which is not determined, is what counting the others gives
    """
    task, n = train.make_task(config), config.n_clauses
    generator = torch.Generator().manual_seed(2**31)
    answer = lambda batch: train.predict(model, batch, train.loops_at_test(config))  # (B, n)
    whole = lego.sample(task, size, n, generator)
    answers = answer(whole)
    changes = [(answer(lego.change_operation(whole, task, i, generator)) != answers).double().mean(0).tolist()
               for i in range(n)]
    beside = lego.sample(task, 2 * size, n - N_DISTRACTOR, generator, n_distractor=N_DISTRACTOR)
    answers_beside = answer(beside)
    right = answers_beside == beside.values
    counted = lego.count_operations(beside.tokens, task)
    drop = torch.randint(1, n - 1, (size,), generator=generator)
    dropped = lego.sample(task, size, n, generator, drop=drop)
    return dict(
        whole=(answers == whole.values).double().mean(0).tolist(), changes=changes,
        beside=right.double().mean(0).tolist(),
        beside_count=(answers_beside[:, -1] == counted).double().mean().item(),
        beside_differ=right[counted != beside.values[:, -1], -1].double().mean().item(),
        dropped_count=(answer(dropped)[:, -1] == lego.count_operations(dropped.tokens, task)).double().mean().item())


def run(config):
    return train.train(config, look=interfere)


def steps_until(history, variable, at=0.99):
    """The first evaluation at which a variable has this accuracy; None if there is none."""
    known = [step for step, accuracy in zip(history["step"], history["accuracy"]) if accuracy[variable] >= at]
    return known[0] if known else None


def in_the_act(runs):
    """The run and the evaluation in which the last variable is known and the third and fourth the least."""
    looks = [(history, step, look) for history in runs for step, look in zip(history["step"][1:], history["looks"])
             if look["whole"][-1] >= 0.99]
    return min(looks, key=lambda found: sum(found[2]["whole"][2:4]))


def draw_changes(axes, look):
    """The share of answers for each variable that change when a clause gets another operation; boxed: what should."""
    from matplotlib.patches import Rectangle

    shares = 100 * np.array(look["changes"])  # (clause, variable)
    image = axes.imshow(shares, cmap="cividis", vmin=0, vmax=100)
    for i, j in np.ndindex(*shares.shape):
        axes.text(j, i, f"{shares[i, j]:.0f}", ha="center", va="center", fontsize=9,
                  color="black" if shares[i, j] > 50 else "white")
        if i <= j:
            axes.add_patch(Rectangle((j - 0.46, i - 0.46), 0.92, 0.92, fill=False, color="#D55E00", linewidth=1.5))
    numbers = range(len(shares)), range(1, len(shares) + 1)
    axes.set(xlabel="variable whose answer changes", ylabel="clause whose sign is flipped")
    axes.set_xticks(*numbers)
    axes.set_yticks(*numbers)
    return image


def draw_looks(axes, runs):
    """What the last variable's answer comes from, over training: mean and range over the runs."""
    steps = runs[0]["step"][1:]
    for label, color, style, pick in [
        ("right, in whole chains", "#000000", "-", lambda look: look["whole"][-1]),
        ("beside a second chain: what counting gives", "#D55E00", "-", lambda look: look["beside_count"]),
        ("beside a second chain: right", "#0072B2", "-", lambda look: look["beside"][-1]),
        ("the same, where counting is wrong", "#0072B2", "--", lambda look: look["beside_differ"]),
        ("a clause is dropped: what counting gives", "#999999", "-", lambda look: look["dropped_count"]),
    ]:
        shares = 100 * np.array([[pick(look) for look in history["looks"]] for history in runs])  # (runs, looks)
        axes.plot(steps, shares.mean(0), color=color, linestyle=style, linewidth=2, label=label)
        axes.fill_between(steps, shares.min(0), shares.max(0), color=color, alpha=0.12, linewidth=0)
    chance = 100 / len(lego.make_task(runs[0]["config"]["task"]).values)
    axes.axhline(chance, color="gray", linestyle=":", label="chance")
    axes.set(xlabel="training steps", ylabel="answers for the last variable (%)", ylim=(-2, 102), xlim=(0, None))


def spread(numbers, form="{:.0f}"):
    """'12 to 34', or '12' if they all read the same."""
    low, high = form.format(min(numbers)), form.format(max(numbers))
    return low if low == high else f"{low} to {high}"


def draw(runs):
    from matplotlib.figure import Figure

    figure = Figure(figsize=(24, 14), layout="constrained")
    panels = figure.subplot_mosaic([["order", "act", "end", "looks"], ["d3", "d3 looks", "cures", "cures"]])
    base = runs["nothing"]
    n = base[0]["config"]["n_clauses"]
    for name, task, histories in (("order", "sign", base), ("d3", "d3", runs["d3"])):
        axes = panels[name]
        train.draw_accuracy(axes, histories)
        until = {variable: [steps_until(history, variable - 1) for history in histories] for variable in (3, 4, n)}
        when = ", ".join(f"{variable}: " + (spread(steps) if None not in steps else "never in some")
                         for variable, steps in until.items())
        axes.set_title(f"{task}: {len(histories)} seeds, mean and range\nsteps until a variable is at 99%\n{when}",
                       fontsize=10)
    history, step, look = in_the_act(base)
    image = draw_changes(panels["act"], look)
    panels["act"].set_title(
        f"caught in the act: seed {history['config']['seed']} at step {step}, variables at\n"
        + " ".join(f"{100 * accuracy:.0f}" for accuracy in look["whole"])
        + "%: the last one changes with every sign,\nin "
        f"{spread([100 * row[-1] for row in look['changes']])}% of the sentences (boxed: should be 100%)", fontsize=10)
    draw_changes(panels["end"], history["looks"][-1])
    panels["end"].set_title(f"the same seed at the end, step {history['step'][-1]},\nall variables at "
                            f"{100 * min(history['looks'][-1]['whole']):.0f}%:\nnothing is left to see", fontsize=10)
    figure.colorbar(image, ax=[panels["act"], panels["end"]], shrink=0.6, label="answers that change (%)")
    for name, histories in (("looks", base), ("d3 looks", runs["d3"])):
        draw_looks(panels[name], histories)
        last = [history["looks"][-1] for history in histories]
        whole, beside = (spread([100 * look[key][-1] for look in last]) for key in ("whole", "beside"))
        panels[name].set_title(
            f"{histories[0]['config']['task']}: the last variable is {whole}% right in the end,\n"
            f"beside a second chain {beside}%,\nand "
            f"{spread([100 * look['beside_differ'] for look in last])}% where counting all operations is wrong",
            fontsize=10)
    draw_cures(panels["cures"], runs)
    handles, labels = panels["order"].get_legend_handles_labels()
    figure.legend(handles, labels, title="variable, in chain order", loc="outside lower left", ncols=len(labels),
                  frameon=False)
    figure.legend(*panels["looks"].get_legend_handles_labels(), title="answers for the last variable, over training",
                  loc="outside lower right", ncols=6, frameon=False)
    last, c = [history["looks"][-1] for history in base], base[0]["config"]
    right, robust = (spread([100 * pick(look) for look in last])
                     for pick in (lambda look: look["whole"][-1], lambda look: look["beside_differ"]))
    cured = [CURES[label].replace("\n", " ").removesuffix(" (SEEDS)") for label in CURES
             if min(history["looks"][-1]["beside_differ"] for history in runs[label]) >= 0.95]
    figure.suptitle(
        f"The shortcut: trained on whole chains (c=+b; a=-1; b=-a), vanilla attention ends {right}% right on the last "
        f"variable, and still counts the minus signs of the whole sentence:\n"
        f"where a second chain makes the count wrong, it is {robust}% right ({len(base)} seeds)\n"
        f"Cures that make it 95% right there in every seed: {'; '.join(cured)}\n"
        f"{n} clauses over {c['n_names']} names, all supervised; {c['n_layer']} layers, width {c['n_embd']}, batches "
        f"of {c['batch_size']} ({runs['d3'][0]['config']['batch_size']} for d3); {base[0]['hardware']} a run",
        fontweight="bold", fontsize=12)
    return figure


def draw_cures(axes, runs):
    """Every cure's intact and robust accuracy, each seed and their mean."""
    rows = [label for label in CURES if label in runs]
    for y, label in enumerate(rows):
        for offset, color, marker, pick, name in [
            (-0.27, "#000000", "o", lambda look: look["whole"][-1], "intact: whole chains"),
            (-0.09, "#0072B2", "s", lambda look: look["beside"][-1], "robust: beside a second chain"),
            (0.09, "#56B4E9", "D", lambda look: look["beside_differ"], "the same, where counting is wrong"),
            (0.27, "#E69F00", "^", lambda look: sum(look["beside"]) / len(look["beside"]),
             "beside a second chain, mean of all variables"),
        ]:
            seeds = [100 * pick(history["looks"][-1]) for history in runs[label]]
            axes.plot([min(seeds), max(seeds)], [y + offset] * 2, color=color, linewidth=1)
            axes.plot(seeds, [y + offset] * len(seeds), color=color, marker=marker, markersize=6, alpha=0.6,
                      linestyle="", label=name if y == 0 else None)
    axes.axvline(50, color="gray", linestyle=":", label="chance, and what counting gets beside a second chain")
    axes.set(xlabel="accuracy of the last variable of the chain at the end of training (%), each seed",
             xlim=(-3, 103), ylim=(len(rows) - 0.5, -0.5))
    axes.set_yticks(range(len(rows)), [CURES[label].replace("SEEDS", f"{len(runs[label])} seeds") for label in rows])
    axes.grid(axis="y", alpha=0.2)
    axes.legend(frameon=False, fontsize=9, loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=5, columnspacing=1,
                title="the cures, and what they make of the last variable of the chain")


def main(arguments):
    if arguments:
        raise ValueError(f"'{arguments[0]}': expected no argument")
    runs = groups()
    if figures.is_missing(NAME, runs):
        figures.make_checkpoints([mimicking(seed) for seed in SEEDS[:3]], parallel=True)
    figures.train_all(NAME, runs, parallel=True, run=run)
    figures.redraw(NAME, draw)


if __name__ == "__main__":
    lego.command_line(main)
