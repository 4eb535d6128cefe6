"""
Other ways to think longer: the facts of train.py, and seven models trained for 3 TFLOP each.

    python -m figures.rivals        40 runs, 23 to search rates, 20 shorter: 2 hours of one core

All but the facts train on chains and graphs of 12 variables, the first 6 labelled. All but vanilla
attention, with rotary positions, have a block with LEGO attention: they differ in what a loop hands
on and in which loops learn, by our reading of the papers, which have other tasks and sizes. TRM,
state and beliefs keep a sentence for several steps, and are labelled at arguments, too. The seven
are of an earlier version, 59e966f, with the same sentences and losses.
"""
import functools
import math
from dataclasses import dataclass, replace

import numpy as np
import torch
import torch.nn as nn
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

import lego
import train
from attention import make_plan
from figures import benchmark, runs, show, varied
from model import Transformer, logits_at, loss_of, loss_of_one_loop, predict

BUDGET = 3e12  # FLOPs of training
LOOPS = 120  # most applications of the block at test
SEEDS = range(5)  # and 100 for the search of rates


@dataclass
class Rival(varied.Varied):
    rival: str = "facts"  # one of RIVALS
    scale: float = 1.0  # of the learning rates


# ---- the models ----------------------------------------------------------------------------------

normalise = lambda x: F.layer_norm(x, x.shape[-1:])


class State(Transformer):
    """A loop begins from the tokens, and from the state (B, T, C) that the loop before hands on."""

    links_per_loop = 1  # how many links of a chain a loop can follow: tells when a label is due
    carried = None  # what the last loop has handed on

    def layers(self, tokens, n_loops=None, carried=None, padding_mask=None):
        embedded, plan = self.embed(tokens), make_plan(tokens)
        block = lambda x: self.blocks[0](normalise(x), tokens, None, plan)[0]
        if carried is None:
            carried = self.nothing_known(tokens)
        for _ in range(n_loops or self.config.n_clauses + 4):
            x = self.loop(block, embedded, carried)
            carried = self.hand_on(x)
            self.carried = carried.detach()
            yield x, None

    def nothing_known(self, tokens):
        return torch.zeros(*tokens.shape, self.config.n_embd)

    def loop(self, block, embedded, carried):
        return block(embedded + carried)

    def hand_on(self, x):
        return normalise(x).detach()


class Looped(State):
    """A looped Transformer (arXiv 2409.15647): gradients cross all loops."""

    def hand_on(self, x):
        return x


class Beliefs(State):
    """Hands on the probability of every value, (B, T, n_out)."""

    def __init__(self, config, vocab, n_rows, n_out, block_size):
        super().__init__(config, vocab, n_rows, n_out, block_size)
        self.value_embedding = nn.Parameter(config.init_std * torch.randn(n_out, config.n_embd))

    def nothing_known(self, tokens):
        n_out = len(self.value_embedding)
        return torch.full((*tokens.shape, n_out), 1 / n_out)

    def loop(self, block, embedded, carried):
        return block(embedded + carried @ self.value_embedding)

    def hand_on(self, x):
        return self.to_logits(x).softmax(-1).detach()


class TwoStates(State):
    """
    TRM, a Tiny Recursive Model (arXiv 2510.04871): an answer and a latent side by side (B, T, 2 C).
    A loop refines both twice, once with gradient. RSM, a Recursive Stem Model (2603.15641), makes 1
    to 8 such loops in a step; the very last refinement alone has a gradient.
    """

    links_per_loop = 6  # a refinement applies the block three times

    def nothing_known(self, tokens):
        return super().nothing_known(tokens).repeat(1, 1, 2)

    def loop(self, block, embedded, carried):
        with torch.no_grad():
            carried = self.refine(block, embedded, carried)
        return self.refine(block, embedded, carried)

    def refine(self, block, embedded, carried):
        y, z = carried.chunk(2, -1)
        for _ in range(2):
            z = block(embedded + y + z)
        return torch.cat((normalise(block(y + z)), normalise(z)), -1)

    def hand_on(self, x):
        return x.detach()

    def to_logits(self, x):
        return super().to_logits(x[..., : self.config.n_embd])


LEGO = dict(branch=1.0, batch_size=64, stop_at=0.0, lr=4e-3, muon_lr=4e-2, ema=0.95, eval_size=200)
VANILLA = dict(LEGO, attention="vanilla", positions="rope", lr=5e-4, muon_lr=5e-3, scale=4.0)
RIVALS = {  # the class, the dials, and how many forward passes of n_layer loops a step costs
    "vanilla, untied": (Transformer, dict(VANILLA, tied=False), 3),
    "vanilla, tied": (Transformer, VANILLA, 3),
    "looped": (Looped, LEGO, 3),
    "TRM": (TwoStates, dict(LEGO, n_layer=8, unknown_weight=0.0), 2),  # half of a loop learns
    "RSM": (TwoStates, dict(LEGO, n_layer=8), 5.5 / 8),  # 4.5 loops of 8, half of one learns
    "state": (State, LEGO, 3),
    "beliefs": (Beliefs, LEGO, 3),
    "facts": (Transformer, dict(facts=True), 3),
}


# ---- training ------------------------------------------------------------------------------------


def loss_of_all_loops(model, batch):
    n_loops = model.config.n_layer
    if model.config.rival == "RSM" and model.training:
        n_loops = 1 + int(torch.randint(n_loops, ()))
    return loss_of(predict(model, batch, n_loops), batch.values)


class Ages:
    """
    Sentences of all ages side by side: each makes one loop a step, from what its loop before has
    handed on, and one that has made n_layer loops leaves. They are asked at arguments, too.
    """

    def draw(self, config, size, step, device):
        """Row b makes loop (step + b) mod n_layer + 1, and none later than step + 1."""
        self.loop = ((step + torch.arange(size)) % config.n_layer).clamp(max=step) + 1  # (B,)
        new = (self.loop == 1).nonzero()[:, 0]
        batch = varied.draw(config, len(new), step, device)
        where = torch.cat((batch.positions, batch.positions + lego.ARGUMENT), 1)  # (B, 2 n)
        names, arguments = batch.tokens.gather(1, where).chunk(2, 1)
        is_of = arguments[:, :, None] == names[:, None]  # (B, n, n): none where it is the root
        values = torch.cat((batch.values, (is_of * batch.values[:, None]).sum(-1)), 1)
        batch = lego.Batch(batch.tokens, where, values, batch.depths.repeat(1, 2), batch.facts)
        if step:
            batch = lego.Batch(*(x.index_copy(0, new, y) for x, y in zip(self.batch, batch)))
        self.batch = batch
        return batch

    def loss_fn(self, model, batch):
        """A label of depth d is due after d loops (TRM: d / 6); before, nothing is to be said."""
        carried = model.nothing_known(batch.tokens)
        if model.carried is not None:
            carried = carried.where((self.loop == 1)[:, None, None], model.carried)
        is_due = batch.depths <= model.links_per_loop * self.loop[:, None]
        values = batch.values.where(is_due, lego.NO_VALUE)
        return loss_of_one_loop(model, batch._replace(facts=carried, values=values))


def hooks(name):
    """What train.train is given: its sentences and its loss."""
    if "facts" in name:
        return dict(draw=train.draw_sentences, loss_fn=train.loss_of_step)
    if name in ("TRM", "state", "beliefs"):
        ages = Ages()
        return dict(draw=ages.draw, loss_fn=ages.loss_fn)
    return dict(draw=varied.draw, loss_fn=loss_of_all_loops)


@torch.random.fork_rng(devices=[])
def make_model(config):
    config = config.complete()
    torch.manual_seed(train.seed_of(config, "weights"))
    task = lego.make_task(config.task, config.n_names)
    n_rows = task.first_name + 1 if config.share_names else len(task.vocab)
    return RIVALS[config.rival][0](config, task.vocab, n_rows, len(task.values), 0)


@functools.cache
@torch.no_grad()
def cost(name) -> float:
    """FLOPs of a training step: of products and convolutions; a backward pass counts twice."""
    _, dials, n_passes = RIVALS[name]
    config, hook = Rival(**dials, rival=name).complete(), hooks(name)
    model, batch = make_model(config).eval(), hook["draw"](config, config.batch_size, 0, "cpu")
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        hook["loss_fn"](model, batch)
    return n_passes * counter.get_total_flops()


def config_of(name, seed, **dials):
    config = Rival(**RIVALS[name][1] | dials, rival=name, seed=seed, out_dir="", device="cpu")
    if "facts" in name:
        return config
    n = dials.get("max_steps", round(BUDGET / cost(name)))
    return replace(config, lr=config.scale * config.lr, muon_lr=config.scale * config.muon_lr,
                   max_steps=n, eval_every=max(1, n // 30))


def run(config):
    """The history; what is right of the benchmark, and of chains of 12 after n times the block."""
    model = make_model(config)
    history = train.train(config, model, **hooks(config.rival))
    if config.seed not in SEEDS:
        return history
    links, batch = getattr(model, "links_per_loop", 1), benchmark.sentences("length", "chain of 12")
    if "facts" in config.rival or not config.tied:
        history["rows"] = benchmark.take(model)
    else:  # as many loops to spare as in training, or more
        spare = 3 if config.rival in ("looped", "vanilla, tied") else benchmark.SPARE
        answer = lambda ids, n: model(ids, math.ceil(n / links))
        history["rows"] = benchmark.take(answer, loops=True, spare=spare)
    history["loops"] = {}
    with torch.no_grad():
        for i, (x, _) in enumerate(model.layers(batch.tokens, LOOPS // links), 1):
            right = logits_at(model, x, batch.positions).argmax(-1) == batch.values
            history["loops"][i * links] = right.all(1).float().mean().item()
    return history


# ---- what they have right ------------------------------------------------------------------------

TESTS = [(axis, test) for axis in benchmark.TESTS for test in benchmark.TESTS[axis]]
NAMES = [test.partition(", where")[0] for _, test in TESTS]


def percents(histories):
    """Sentences right, (tests, models, seeds); 0 for those that it can't take, or was not asked."""
    share = lambda row: 0.0 if isinstance(row, str) else 100 * row[1] / row[0]
    return np.array([[[share(history["rows"][axis][test]) for history in found]
                      for found in histories.values()] for axis, test in TESTS])


def table(histories) -> list[str]:
    """Lines of figures/README.md: sentences right in %, from the lowest seed to the highest."""
    steps = [[history["step"][-1] for history in found] for found in histories.values()]
    costs = [cost(found[0]["config"]["rival"]) for found in histories.values()]
    rows = [["", *histories], ["steps of training", *map(show.span, steps)],
            ["TFLOP, at most", *(f"{1e-12 * max(n) * x:.2g}" for n, x in zip(steps, costs))]]
    for name, of_models in zip(NAMES, percents(histories)):
        rows.append([name, *(show.span(of_seeds, "{:.3g}") for of_seeds in of_models)])
    width = max(map(len, histories)) + 2
    return [f"{name:<31}" + "".join(f"{cell:>{width}}" for cell in cells) for name, *cells in rows]


def draw_right(axes, found):
    """A row a test, a column a model: the lowest seed to the highest; the colour is the mean."""
    axes.imshow(found.mean(-1), cmap="Blues", vmin=0, vmax=130, aspect="auto")
    for (i, j), mean in np.ndenumerate(found.mean(-1)):
        axes.text(j, i, show.span(found[i, j], "{:.3g}").replace(" to ", "-"), ha="center",
                  va="center", fontsize=8, color="white" if mean > 75 else "black")
    axes.set_xticks(range(len(RIVALS)), [name.replace(" ", "\n") for name in RIVALS], fontsize=8)
    axes.set_yticks(range(len(NAMES)), NAMES, fontsize=9)
    axes.tick_params(length=0)
    axes.set_title("sentences right in every variable (%)", fontsize=10)
    axes.set_xlabel("model: the lowest seed to the highest")


def draw_loops(axes, histories):
    colors = (show.GRAY, show.PINK, show.GREEN, show.ORANGE, show.SKY, show.BLUE, show.RED, "black")
    for name, color in zip(list(RIVALS)[1:], colors[1:]):
        curves = [[100 * share for share in h["loops"].values()] for h in histories[name]]
        loops = [int(n) for n in histories[name][0]["loops"]]
        show.lines(axes, loops, curves, color)
        axes.plot([], [], color=color, label=name)
    axes.legend(frameon=False, loc="center right", bbox_to_anchor=(1, 0.27), fontsize=9)
    axes.set(xlabel="times that the block is applied at test", ylim=(-3, 103), xlim=(0, LOOPS))
    axes.set_title("chains of 12 right in every variable (%)", fontsize=10)


def main():
    scales = lambda name: (0.25, 1.0, 4.0, 16.0)[: 3 + ("vanilla" in name)]
    of_seeds = lambda name, **dials: [config_of(name, seed, **dials) for seed in SEEDS]
    runs.get("rivals.search", {name: [config_of(name, 100, scale=scale) for scale in scales(name)]
                               for name in RIVALS if "facts" not in name}, run)
    histories = runs.get("rivals", {name: of_seeds(name) for name in RIVALS}, run)
    shorter = runs.get("rivals.steps", {f"{name}, {n} steps": of_seeds(name, max_steps=n)
                                        for n in (300, 1000) for name in ("state", "beliefs")}, run)
    print(*table(histories), *table(shorter), sep="\n")

    found = percents(histories)
    title = "Sentences right in every variable, by what a loop hands on"
    of_facts = found[:, list(RIVALS).index("facts")]
    if of_facts.min() == 100 and all(map(train.is_proved, histories["facts"])):
        most = max(history["step"][-1] for history in histories["facts"]) * cost("facts")
        title = f"Facts have every sentence right, after 1/{BUDGET / most:.0f} of the FLOPs"
    caption = ("Facts train on chains of 12 variables until they are proved; "
               "the others on chains and graphs, for 3 TFLOP; the first 6 variables are labelled. "
               "5 seeds; right: a thin line is a seed, a thick one the mean")
    figure, ((right, loops),) = show.picture(title, 1, 2, 15, 6, caption)
    draw_right(right, found)
    draw_loops(loops, histories)
    figure.savefig(runs.FOLDER / "rivals.png", dpi=150)


if __name__ == "__main__":
    main()
