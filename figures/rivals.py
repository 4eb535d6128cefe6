"""
Other ways to think longer, at equal cost: seven models, the same kind of sentences, as many FLOPs of training.

    python -m figures.rivals        35 runs, 23 to search their rates, 20 shorter ones: 1.5 hours on 2 cores

All learn from chains and graphs of 12 variables, the first 6 labelled, for 3 TFLOP, ten times the 0.3 TFLOP of a plain
`python train.py`. Each is then put to figures/benchmark.py, and to chains of 12 with its block applied 1 to 120 times.

vanilla, untied    9 layers of softmax attention with rotary positions
vanilla, tied      the same block in all layers: ALBERT with rotary positions
looped             the input is added at every loop, gradients cross all loops (arXiv 2409.15647)
TRM                Tiny Recursive Model (2510.04871): two states, an answer and a latent. A refinement is two steps of
                   the latent and one of the answer. A loop is a refinement without gradient and one with gradient
                   and labels; what it ends with goes on to the next training step
RSM                Recursive Stem Model (2603.15641): the same two states, 1 to 8 such loops on new sentences, a
                   gradient and labels for the very last refinement alone
state              the default, but its loop hands on its state
beliefs            the default

The papers have other tasks, blocks and sizes. Here all but the vanilla ones have the default's block with LEGO
attention, so they differ in what a loop hands on and in which loops learn: our reading of the abstracts. TRM, state and
beliefs keep a sentence for several steps, and are labelled at arguments, too; the others see new sentences every step.
"""
import functools
import math
from dataclasses import dataclass, replace

import numpy as np
import torch
import torch.nn.functional as F

from attention import make_plan
from figures import benchmark, runner, show
import train
from model import Transformer, logits_at

NAME = "rivals"
SEEDS = range(5)
BUDGET = 3e12  # FLOPs of training
SCALES = (0.25, 1.0, 4.0, 16.0)  # of the learning rates, searched on a seed that is not shown; 16 for vanilla alone
LOOPS = 120


@dataclass
class Rival(train.Config):
    rival: str = "beliefs"
    scale: float = 1.0  # of both learning rates


normalise = lambda x: F.layer_norm(x, x.shape[-1:])


class Looped(Transformer):
    """x = block(normalise(x + embedded tokens)), again and again, from x = 0."""

    def layers(self, tokens, n_loops=None, carried=None, padding_mask=None, need_weights=False):
        embedded, plan, x = self.embed(tokens), make_plan(tokens), 0
        for _ in range(n_loops or self.config.n_layer):
            x, _ = self.blocks[0](normalise(x + embedded), tokens, None, plan)
            yield x, None


class TwoStates(Transformer):
    """An answer y and a latent z, side by side (B, T, 2 C). A loop refines both twice, once with gradient."""

    links_per_loop = 6  # the block is applied 6 times: two refinements of 3

    def refine(self, y, z, embedded, tokens, plan):
        for _ in range(2):
            z, _ = self.blocks[0](normalise(embedded + y + z), tokens, None, plan)
        y, _ = self.blocks[0](normalise(y + z), tokens, None, plan)
        return normalise(y), normalise(z)

    def layers(self, tokens, n_loops=None, carried=None, padding_mask=None, need_weights=False):
        embedded, plan = self.embed(tokens), make_plan(tokens)
        state = self.nothing_known(tokens) if carried is None else carried
        for _ in range(n_loops or self.config.n_layer):
            y, z = state.chunk(2, -1)
            with torch.no_grad():
                y, z = self.refine(y, z, embedded, tokens, plan)
            state = torch.cat(self.refine(y, z, embedded, tokens, plan), -1)
            yield state, None
            state = self.hand_on(state)

    def nothing_known(self, tokens):
        return self.head.weight.new_zeros(*tokens.shape, 2 * self.config.n_embd)

    def hand_on(self, x):
        return x.detach()

    def to_logits(self, x):
        return super().to_logits(x[..., : self.config.n_embd])


class RandomDepth(TwoStates):
    """In training the number of loops is random, and only the last refinement has a gradient."""

    def layers(self, tokens, n_loops=None, carried=None, padding_mask=None, need_weights=False):
        if not self.training:
            yield from super().layers(tokens, n_loops)
            return
        with torch.no_grad():
            for _ in range(int(torch.randint(self.config.n_layer, ()))):
                (carried, _), = super().layers(tokens, 1, carried)
        yield from super().layers(tokens, 1, carried)


VANILLA = dict(attention="vanilla", positions="rope", branch=1.0, n_layer=9)
RIVALS = {  # the class, the dials, and how many forward passes a training step costs; 8 loops apply the block 48 times
    "vanilla, untied": (Transformer, dict(VANILLA, tied=False), 3),
    "vanilla, tied": (Transformer, VANILLA, 3),
    "looped": (Looped, dict(carry="none"), 3),
    "TRM": (TwoStates, dict(carry="state", unknown_weight=0.0, n_layer=8), 2),
    "RSM": (RandomDepth, dict(carry="none", n_layer=8), None),
    "state": (Transformer, dict(carry="state"), 3),
    "beliefs": (Transformer, {}, 3),
}


def cost(config):
    """FLOPs of a training step: its forward passes, and twice those with a gradient."""
    kind, _, ratio = RIVALS[config.rival]
    model = train.make_model(config, kind=kind)
    batch, loop = train.draw_batch(config, 0, None, torch.device("cpu"))
    flops = train.count_flops(lambda: train.Objective(model, config)(batch, None, loop)) / 3
    if config.rival == "RSM":  # n_layer loops are counted; training makes (n_layer + 1) / 2 on average, and half a loop
        return flops / config.n_layer * ((config.n_layer + 1) / 2 + 1)  # has a gradient, which costs twice as much
    return flops * ratio


@functools.cache
def n_steps(rival) -> int:
    return round(BUDGET / cost(Rival(rival=rival, device="cpu", **RIVALS[rival][1])))


def config_of(rival, seed, scale=1.0):
    usual = Rival(**RIVALS[rival][1])
    return Rival(**{**RIVALS[rival][1], "rival": rival, "seed": seed, "scale": scale, "lr": scale * usual.lr,
                    "muon_lr": scale * usual.muon_lr, "max_steps": n_steps(rival), "eval_size": 200, "out_dir": "",
                    "eval_every": max(1, n_steps(rival) // 30), "device": "cpu"})


def searches():
    return {rival: [config_of(rival, 100, scale) for scale in SCALES if scale < 16 or "vanilla" in rival]
            for rival in RIVALS}


def best_scale(rival, found):
    """The factor of the rates with the best accuracy in the end, over all variables; of equals, that nearest 1."""
    accuracy = lambda history: round(sum(map(sum, history["accuracy"][-3:])), 1)
    score = lambda history: (accuracy(history), -abs(math.log(history["config"]["scale"])))
    histories = [history for history in found.get(rival, []) if history]
    return max(histories, key=score)["config"]["scale"] if histories else 1.0


def shorter():
    """{label: [config of every seed]} of rivals.steps.json: the default, and with its state, trained for less."""
    train_for = lambda rival, n: [replace(config_of(rival, seed), max_steps=n, eval_every=n // 30) for seed in SEEDS]
    return {f"{rival}, {n} steps": train_for(rival, n) for n in (300, 1000) for rival in ("state", "beliefs")}


def groups():
    found = runner.found(f"{NAME}.search", searches())
    return {rival: [config_of(rival, seed, best_scale(rival, found)) for seed in SEEDS] for rival in RIVALS}


def run(config):
    """The history of a run, what the benchmark says of it, and its chains of 12 right after each loop."""
    kind = RIVALS[config.rival][0]
    model = train.make_model(config, kind=kind)
    history = train.train(config, model)
    history["flops"] = [cost(config) * step for step in history["step"]]  # train.py counts a gradient for all loops
    if config.seed in SEEDS:
        answer = lambda ids, n: model(ids, math.ceil(n / model.links_per_loop))
        spare = 3 if config.rival in ("vanilla, tied", "looped") else benchmark.SPARE  # as many as in training
        history["rows"] = benchmark.take(answer if config.tied else model, loops=config.tied, spare=spare)
        history["loops"] = loops_at_test(config, model)
    return history


@torch.no_grad()
def loops_at_test(config, model):
    """{loops, in applications of the block: the share of 200 chains of 12 with all variables right}"""
    batch = benchmark.sentences("length", "chain of 12")
    each = model.links_per_loop
    n_loops = LOOPS // each if config.tied else config.n_layer
    right = {}
    for i, (x, _) in enumerate(model.layers(batch.tokens, n_loops)):
        answers = logits_at(model, x, batch.positions).argmax(-1)
        right[(i + 1) * each] = (answers == batch.values).all(1).float().mean().item()
    return right if config.tied else {config.n_layer: right[max(right)]}


def percent(history, axis, test):
    """Sentences right in every variable, in %; 0 for those not asked."""
    row = history["rows"][axis][test]
    return 0.0 if isinstance(row, str) else 100 * row[1] / row[0]


def short(axis, test):
    return {"names": "chain of 12, new names", "shortcut": "branch, counting is wrong"}.get(axis, test)


def table(runs):
    """Lines of figures/README.md: sentences right in %, from the lowest seed to the highest."""
    lines = [f"{'':<26}" + "".join(f"{name:>16}" for name in RIVALS),
             f"{'steps of training':<26}" + "".join(f"{runs[name][0]['step'][-1]:>16}" for name in RIVALS)]
    for axis in benchmark.TESTS:
        for test in benchmark.TESTS[axis]:
            cells = [show.span([percent(history, axis, test) for history in runs[name]], "{:.3g}") for name in RIVALS]
            lines.append(f"{short(axis, test):<26}" + "".join(f"{cell:>16}" for cell in cells))
    return lines


def steps(runs):
    """Lines of figures/README.md: sentences right in %, of every seed, after other numbers of steps."""
    tests = ("chain of 100", "chain of 1,000", "any graph of 26", "tree of 100", "star of 25")
    axis_of = {test: axis for axis in benchmark.TESTS for test in benchmark.TESTS[axis]}
    cells = lambda test, histories: ", ".join(f"{percent(run, axis_of[test], test):.3g}" for run in histories)
    return [f"{test:<18}{label:<22}{cells(test, histories)}" for test in tests for label, histories in runs.items()]


COLORS = dict(zip(RIVALS, (show.GRAY, show.PINK, show.GREEN, show.ORANGE, show.SKY, show.BLUE, show.RED)))


def draw_length(axes, runs):
    lengths, ends = [n for _, n, _ in benchmark.TESTS["length"].values()], []
    early = "beliefs, a tenth of the FLOPs"  # as the default is by itself
    for name, histories in {**runs, early: runner.load(f"{NAME}.steps")["beliefs, 300 steps"]}.items():
        color, line = (COLORS["beliefs"], "--") if name == early else (COLORS[name], "-")
        found = [[percent(history, "length", test) for history in histories] for test in benchmark.TESTS["length"]]
        means = [sum(row) / len(row) for row in found]
        axes.plot(lengths, means, line, color=color, linewidth=2)
        for n, row in zip(lengths, found):
            axes.scatter([n] * len(row), row, color=color, s=14, alpha=0.6, linewidth=0)
        ends.append((means[-1], name, color))
    axes.set(xscale="log", xlabel="links of the chain", ylabel="sentences right in every variable (%)", ylim=(-3, 103))
    axes.set_xticks(lengths, [f"{n:,}" for n in lengths], minor=False)
    axes.set_xticks([], minor=True)
    show.mark(axes, 12, "seen in training", vertical=True, place=0.3)
    show.label_ends(axes, ends)


def draw_shapes(axes, runs):
    """A row for each shape, a column for each model; in a cell the lowest and the highest seed, its colour the mean."""
    tests = [(axis, test) for axis in benchmark.TESTS if axis != "length" for test in benchmark.TESTS[axis]]
    found = np.array([[[percent(history, *test) for history in runs[name]] for name in RIVALS] for test in tests])
    axes.imshow(found.mean(-1), cmap="Blues", vmin=0, vmax=130, aspect="auto")
    for (i, j), mean in np.ndenumerate(found.mean(-1)):
        axes.text(j, i, show.span(found[i, j]).replace(" to ", "-"), ha="center", va="center", fontsize=8,
                  color="white" if mean > 75 else "black")
    axes.set_xticks(range(len(RIVALS)), [name.replace(" ", "\n") for name in RIVALS], fontsize=8)
    axes.set_yticks(range(len(tests)), [short(*test) for test in tests], fontsize=9)
    axes.tick_params(length=0)
    axes.set(title="sentences right in every variable (%)", xlabel="model: lowest to highest seed",
             ylabel="shape of the sentence")


def draw_loops(axes, runs):
    ends = []
    for name, color in COLORS.items():
        curves = [{int(n): 100 * share for n, share in history["loops"].items()} for history in runs[name]]
        loops = list(curves[0])
        if len(loops) == 1:
            axes.scatter(loops * len(curves), [curve[loops[0]] for curve in curves], color=color, s=16)
            continue
        show.lines(axes, loops, [list(curve.values()) for curve in curves], color)
        if name not in ("TRM", "RSM", "state"):  # these end where beliefs do
            ends.append((sum(curve[loops[-1]] for curve in curves) / len(curves),
                         "beliefs, state,\nTRM, RSM" if name == "beliefs" else name, color))
    axes.set(xlabel="times that the block is applied at test", ylabel="chains of 12 right in every variable (%)",
             ylim=(-3, 103), xlim=(0, LOOPS))
    show.label_ends(axes, ends)


def draw(runs):
    c, history = runs["beliefs"][0]["config"], runs["beliefs"][0]
    asked = ", ".join(f"{size} of {n:,}" for size, n, _ in benchmark.TESTS["length"].values())
    figure, ((length, shapes, loops),) = show.picture(
        "Only a state handed on has all chains of 1,000; for a tenth of the FLOPs beliefs have, too", 1, 3, 16, 5.6,
        f"All learn from chains and graphs of {c['n_clauses']} variables, {c['n_supervised']} labelled, for "
        f"{BUDGET / 1e12:g} TFLOP; dashed: the default as it is, for a tenth of that. A dot or a thin line is a seed, "
        f"{len(SEEDS)} of each, a thick line the mean. Chains asked, by links: {asked}. {history['hardware']}, torch "
        f"{history['torch']}")
    draw_length(length, runs)
    draw_shapes(shapes, runs)
    draw_loops(loops, runs)
    return figure


if __name__ == "__main__":
    runner.main(NAME, draw, groups, run, before=[("search", searches, run), ("steps", shorter, run)])
