"""
Convolutions and association on LEGO, each alone and together, against vanilla attention.

Claim (the paper's): Transformers learn LEGO sooner with convolutional components.

    python -m figures.convolution       40 runs, and 39 to search the rates: 40 minutes on 2 cores

Untied models, 4 layers, width 64, learn `sign` over 4 clauses, all labelled. What is added to vanilla attention: a
depthwise convolution over 7 positions behind the values, or behind queries, keys and values (as in Primer, arXiv
2109.08668), which starts near the identity; or, in place of two of the four heads, half of the channels of LEGO
attention: a convolution, association, or both, chained, with association on half of these. At the end LEGO attention
alone. Rates are searched for each, with a seed that is not shown. A run ends when all is 99% right over five
evaluations, or after 1,500 steps.
"""
from dataclasses import dataclass

import torch
from torch import nn

from figures import runner, show
import train
from attention import Manipulation

NAME = "convolution"
KERNEL = 7  # positions
SEEDS = range(5)
SEED_OF_SEARCH = 5
RATES = (0.3, 1.0, 3.0, 10.0)  # times those of --preset=vanilla
MORE_RATES = {"2 heads and convolution": (0.1,), "2 heads and both": (30.0, 100.0),
              "LEGO attention": (30.0, 100.0, 300.0, 1000.0)}


@dataclass
class Convolved(train.Config):
    """The dials, and behind which of query, key and value, if any, a convolution stands."""
    behind: str = ""
    times: float = 1.0  # the learning rates


VARIANTS = {  # label: its dials
    "vanilla": {},
    "2 heads": dict(n_head=2),
    "convolved values": dict(behind="value"),
    "convolved queries, keys, values": dict(behind="query, key, value"),
    "2 heads and convolution": dict(attention="hybrid", association_share=0.0),
    "2 heads and association": dict(attention="hybrid", association_share=1.0, chained=False),
    "2 heads and both": dict(attention="hybrid"),
    "LEGO attention": dict(attention="lego"),
}


def config_of(label, times, seed):
    usual = train.PRESETS["vanilla"]
    return Convolved(**{**usual, "n_clauses": 4, "n_supervised": 4, "n_names": 4, "n_layer": 4, "stop_at": 0.99,
                        "positions": "learned", "max_steps": 1500, "eval_every": 25, "out_dir": "", "seed": seed,
                        "times": times, "lr": 5e-4 * times, "muon_lr": usual["muon_lr"] * times, **VARIANTS[label]})


def convolve(model, config):
    """Puts a convolution, near the identity, behind what the config says; returns the model."""
    for block in model.blocks:
        for name in filter(None, config.behind.split(", ")):
            convolution = Manipulation(config.n_embd, KERNEL)
            nn.init.normal_(convolution.conv.weight, std=config.init_std)
            nn.init.zeros_(convolution.conv.bias)
            with torch.no_grad():
                convolution.conv.weight[..., KERNEL // 2] += 1
            setattr(block.attn, name, nn.Sequential(getattr(block.attn, name), convolution))
    return model


def run(config):
    return train.train(config, convolve(train.make_model(config), config))


def searches():
    """{label: [config of each rate]}"""
    return {label: [config_of(label, times, SEED_OF_SEARCH) for times in (*RATES, *MORE_RATES.get(label, ()))]
            for label in VARIANTS}


def tflop(history, n):
    """The training TFLOP at the first evaluation that has the first n variables at 99%; None if there is none."""
    return next((flops / 1e12 for flops, accuracy in zip(history["flops"], history["accuracy"])
                 if min(accuracy[:n]) >= 0.99), None)


def best(histories):
    """The rates with the least TFLOP to all variables; where none gets there, with the best accuracy in the end."""
    rank = lambda history: (tflop(history, 4) or float("inf"), -sum(history["accuracy"][-1]))
    return min(histories, key=rank)["config"]["times"]


def groups():
    """{label: [config of every seed]}, at the rates that were best."""
    found = runner.found(f"{NAME}.search", searches())
    return {label: [config_of(label, best([run for run in found[label] if run]), seed) for seed in SEEDS]
            for label in VARIANTS if any(found[label])}


def words(runs):
    """Lines of figures/README.md: the rate, and the TFLOP until 1, 2 and all variables are at 99%, each seed."""
    in_words = lambda x: "never" if x is None else f"{x:.2f}"
    return [f"{label:<36}x{histories[0]['config']['times']:<8g}"
            + "".join(" ".join(in_words(tflop(run, n)) for run in histories).ljust(33) for n in (1, 2, 4)).rstrip()
            for label, histories in runs.items()]


def draw(runs):
    c, hardware = runs["vanilla"][0]["config"], runs["vanilla"][0]["hardware"]
    figure, (panels,) = show.picture(
        "What brings all four variables sooner is association; a convolution alone does not", 1, 2, 11, 4.6,
        f"{c['n_clauses']} clauses, all labelled, {c['n_layer']} untied layers, width {c['n_embd']}, vanilla attention "
        "with 4 heads but where 2 are named; convolved: a convolution behind these; red: with association; learning "
        f"rates searched for each; a dot is a seed, {len(SEEDS)} of each; {hardware} a run")
    never = 1.3 * max(run["flops"][-1] for histories in runs.values() for run in histories) / 1e12
    for axes, n, title in zip(panels, (1, 4), ("the first variable", "all four variables")):
        rows = [(label, [tflop(run, n) or never for run in histories],
                 show.RED if label.endswith(("association", "both", "LEGO attention")) else show.BLUE)
                for label, histories in runs.items()]
        show.dots(axes, rows)
        axes.set(xscale="log", xlabel="training TFLOP until 99% right", title=title, ylabel="attention",
                 xlim=(0.05, 1.1 * never))
        axes.set_xticks([0.1, 0.3, 1, 3, never], ["0.1", "0.3", "1", "3", "never"], minor=False)
        axes.set_xticks([], minor=True)
    panels[1].set_yticklabels([])
    return figure


if __name__ == "__main__":
    runner.main(NAME, draw, groups, run, before=[("search", searches, run)])
