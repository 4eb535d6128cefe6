"""
LEGO attention against vanilla attention with rotary positions, in masked language modelling.

Claim (the paper's): LEGO attention in place of vanilla heads needs significantly fewer FLOPs and
keeps or improves the performance of large-scale pretraining.

    python -m figures.lego_attention      28 runs, and 13 to search the rates: 4 hours on 2 cores

On hidden words of docstrings: vanilla heads with rotary positions; the same convolved, as in
figures/convolution.py; half of the channels each; LEGO attention; and two placebos for association,
for which all tokens count as identical, or their ids are shuffled.
"""
import statistics
from dataclasses import dataclass
from functools import lru_cache

import torch

from figures import runs, show, words
from figures.convolved import convolve, count_flops
from lego import Batch
from model import Transformer, predict


@dataclass
class Dials(words.Words):
    behind: str = ""  # of "query", "key" and "value": those with a convolution behind them
    placebo: str = ""  # what association takes for the tokens: a name of PLACEBOS


PLACEBOS = {
    "all tokens": torch.zeros_like,
    "shuffled tokens": lambda ids: ids[:, torch.randperm(ids.size(1), device=ids.device)]}
ROTARY = words.DIALS | dict(n_layer=4, n_embd=128, n_tokens=128, batch_size=24, schedule="linear",
                            positions="rope", norm="first", share_names=False, out_dir="")
BASE = "vanilla, rotary"  # what all are compared with
VARIANTS = {  # label: colour; the rates to try, times those of figures/words.py; dials
    BASE: (show.BLUE, (1, 3, 10), ROTARY),
    f"{BASE}, convolved": (show.GREEN, (1, 3, 10), ROTARY | dict(behind="query, key, value")),
    "half rotary, half LEGO": (show.PINK, (1, 3, 10, 30), ROTARY | dict(attention="hybrid")),
    "LEGO": (show.RED, (10, 30, 100), ROTARY | dict(attention="lego", positions="learned"))}
LOWER = {BASE: 1, "LEGO": 10}  # a third of the best rates: better for 7,200 steps alone


def config_of(variant, times, steps, seed=0, placebo=""):
    dials = dict(lr=round(1e-3 * times, 6), muon_lr=round(1e-2 * times, 6), max_steps=steps)
    return Dials(**VARIANTS[variant][2] | dials, seed=seed, placebo=placebo)


def change(model, config):
    """Puts convolutions and a placebo, if there are any, into a model."""
    convolve(model, config.behind)
    if config.placebo:  # it is given other ids, and no plan, which was made for the right ones
        others = PLACEBOS[config.placebo]
        for block in model.blocks:
            block.attn.register_forward_pre_hook(lambda _, x: (x[0], others(x[1]), x[2]))
    return model


def run(config):
    return words.run(config, change(words.make_model(config), config))


@lru_cache
def tflop(variant, n_tokens=128, n_hidden=19, n_words=8192):
    """Of a training step on hidden words; of none: of the layers. Nothing is computed for it."""
    config = config_of(variant, 1, 1).complete()
    with torch.device("meta"):
        model = change(Transformer(config, range(n_words), n_words, n_words, n_tokens), config)
        tokens = torch.zeros(config.batch_size, n_tokens, dtype=torch.long)
        batch = Batch(tokens, *3 * [tokens[:, :n_hidden]], tokens)
        return count_flops(lambda: predict(model, batch)) / 1e12


def steps_to(history, loss):
    """The steps until the test loss is first at `loss`, interpolated; None: it never is."""
    at = [*zip(history["step"], history["test_loss"])]
    for (step, before), (next_step, after) in zip(at, at[1:]):
        if after <= loss:
            return step + (next_step - step) * (before - loss) / (before - after)


def shares(found, end=""):
    """
    {variant + end: [of each seed the FLOPs until it has the mean last loss of the base, in % of
    what the base takes for it on average (all that it spent, if never); None: never]}.
    """
    target = statistics.mean(history["test_loss"][-1] for history in found[BASE + end])
    steps = {v: [steps_to(h, target) for h in found.get(v + end, ())] for v in VARIANTS}
    of_base = [x or h["step"][-1] for x, h in zip(steps[BASE], found[BASE + end])]
    percent = {v: 100 * tflop(v) / tflop(BASE) / statistics.mean(of_base) for v in VARIANTS}
    return {v + end: [None if x is None else percent[v] * x for x in steps[v]] for v in VARIANTS}


def table(found):
    """Lines of figures/README.md: FLOPs of the layers, rate, last losses, and `shares`."""
    needed = shares(found) | shares(found, "; long")
    for label, histories in found.items():
        name, c = label.partition(";")[0], histories[0]["config"]
        variant = name if name in VARIANTS else "LEGO"  # with a placebo
        short, long = (tflop(variant, n, 0) / tflop(BASE, n, 0) for n in (128, 2048))
        losses = "  ".join(f"{history['test_loss'][-1]:.2f}" for history in histories)
        percents = "".join(f"{x:4.0f}%" for x in needed.get(label, ()))
        yield (f"{name:<28}{c['max_steps']:>5,} steps  {short:5.0%}{long:5.0%}   "
               f"x{c['lr'] / 1e-3:<5g}{losses}  {percents}").rstrip()


def main():
    searched = runs.get("lego_attention.search", {
        v: [config_of(v, times, 600) for times in VARIANTS[v][1]] for v in VARIANTS}, run)
    losses = {v: [history["test_loss"][-1] for history in searched[v]] for v in VARIANTS}
    best = {v: min(zip(losses[v], VARIANTS[v][1]))[1] for v in VARIANTS}  # the rate
    equal = round(2400 * tflop("LEGO") / tflop(BASE))  # steps with the FLOPs of LEGO in 2,400
    groups = {v: [config_of(v, best[v], 2400, seed) for seed in range(3)] for v in VARIANTS}
    groups |= {f"{v}; other rate": [config_of(v, LOWER[v], 2400)] for v in LOWER}
    groups |= {f"{BASE}; equal FLOPs": [config_of(BASE, best[BASE], equal)]}
    groups |= {f"{v}; long": [config_of(v, LOWER[v], 7200)] for v in LOWER}
    groups |= {f"{v}; long; other rate": [config_of(v, best[v], 7200)] for v in LOWER}
    for name, placebo in {"LEGO": "", **{f"LEGO, {x}": x for x in PLACEBOS}}.items():
        groups[f"{name}; parts"] = [
            config_of("LEGO", best["LEGO"], 600, seed, placebo) for seed in range(3)]
    found = runs.get("lego_attention", groups, run)
    print(*table(found), sep="\n")

    needed, (of_long,) = shares(found), shares(found, "; long")["LEGO; long"]
    figure, ((over_flops, at_loss, longer),) = show.picture(
        "LEGO attention comes to rotary vanilla attention's loss with "
        f"{show.span(needed['LEGO'])}% of its FLOPs", 1, 3, 15, 4.8,
        "hidden words of text; 4 layers, width 128, 128 tokens; learning rates searched for each, "
        "right a third of these, better there; half: of the channels; dot, thin line: a seed")
    titles = "2,400 steps, 3 seeds", f"7,200 steps, one seed: {of_long:.0f}% of the FLOPs"
    for axes, end, title in zip((over_flops, longer), ("", "; long"), titles):
        shown = [v for v in VARIANTS if v + end in found]
        for v in shown:
            losses = [history["test_loss"] for history in found[v + end]]
            spent = [step * tflop(v) for step in found[v + end][0]["step"]]
            show.lines(axes, spent, losses, VARIANTS[v][0])
        last = {v: statistics.mean(h["test_loss"][-1] for h in found[v + end]) for v in shown}
        axes.set(title=title, xlabel="training TFLOP", ylabel="test loss (nats per hidden word)",
                 xlim=(0, None), ylim=(2, 6))
        show.label_ends(axes, [(last[v], v, VARIANTS[v][0]) for v in shown])
    show.dots(at_loss, [(v, needed[v], color) for v, (color, _, _) in VARIANTS.items()], never=110)
    at_loss.set(title="FLOPs to the last loss of vanilla, rotary", ylabel="attention",
                xlabel="share of what vanilla, rotary takes (%)", xlim=(0, 110))
    figure.savefig(runs.FOLDER / "lego_attention.png", dpi=150)


if __name__ == "__main__":
    main()
