"""
LEGO attention against vanilla attention with rotary positions, in masked language modelling.

Claim (the paper's): LEGO attention in place of vanilla heads needs significantly fewer FLOPs and keeps or improves the
performance of large-scale pretraining.

    python -m figures.lego_attention        40 runs, and 32 to search the rates: 4.5 hours on 2 cores

The hidden words of docstrings, 4 untied layers, width 128, T = 128, batches of 24, the rate falling to 0. Four variants
for 2,400 steps, 3 seeds: vanilla heads with rotary positions; the same with a convolution behind queries, keys and
values, as in figures/convolution.py; LEGO attention; half of the channels each. With one seed, vanilla, rotary and LEGO
for 7,200 steps, both lengths with another rate, and vanilla, rotary for the FLOPs of LEGO in 2,400. And for 600 steps
what LEGO attention is made of: each pathway alone, both side by side, and two placebos for association: all tokens
count as identical, or the ids are shuffled.
"""
import statistics
from dataclasses import dataclass, replace
from functools import lru_cache

import torch

from figures import runner, show
from figures.convolution import Convolved, convolve
import train

NAME = "lego_attention"
SEEDS = range(3)


@dataclass
class Dials(Convolved):
    placebo: str = ""  # what association takes for the identical tokens: a name of PLACEBOS


PLACEBOS = {
    "all tokens": torch.zeros_like,
    "shuffled tokens": lambda tokens: tokens[:, torch.randperm(tokens.size(1), device=tokens.device)],
}
VARIANTS = {
    "vanilla, rotary": dict(attention="vanilla", positions="rope"),
    "vanilla, rotary, convolved": dict(attention="vanilla", positions="rope", behind="query, key, value"),
    "half rotary, half LEGO": dict(attention="hybrid", positions="rope"),
    "LEGO": dict(attention="lego"),
}
PARTS = {  # for 600 steps
    "vanilla": dict(attention="vanilla"),
    "LEGO": dict(attention="lego"),
    "LEGO, parallel": dict(attention="lego", chained=False),
    **{f"LEGO, {placebo}": dict(attention="lego", placebo=placebo) for placebo in PLACEBOS},
    "convolution alone": dict(attention="lego", association_share=0.0),
    "association alone": dict(attention="lego", association_share=1.0, chained=False),
}
COLORS = dict(zip(VARIANTS, (show.BLUE, show.GREEN, show.PINK, show.RED)))
STEPS, STEPS_OF_PARTS, STEPS_OF_LONG = 2400, 600, 7200
LONG, EQUAL, OTHER = "; long", "; equal FLOPs", "; other rate"  # ends of labels
STEPS_OF_EQUAL = 1822  # in these vanilla, rotary takes the FLOPs of LEGO in STEPS
LOWER = {"vanilla, rotary": 1, "LEGO": 10}  # a third of the rates of the search: better for STEPS_OF_LONG alone
LENGTHS = (128, 2048)  # T, whose FLOPs are compared
RATES = {  # to try with seed 0, times those of --preset=words: for 600 steps, or for 300 if not one of VARIANTS
    "vanilla, rotary": (1, 3, 10), "vanilla, rotary, convolved": (1, 3, 10), "half rotary, half LEGO": (1, 3, 10, 30),
    "LEGO": (10, 30, 100), "vanilla": (0.3, 1, 3, 10, 30), "LEGO, parallel": (0.3, 1, 3, 10, 30, 100),
    "convolution alone": (3, 10, 30, 100), "association alone": (3, 10, 30, 100)}


def config_of(variant, times, steps, seed=0):
    """Masked language modelling with `times` the rates of the preset."""
    dials = {**train.PRESETS["words"], "n_layer": 4, "n_embd": 128, "n_tokens": 128, "batch_size": 24, "out_dir": "",
             "schedule": "linear", "positions": "learned", "max_steps": steps, "seed": seed,
             **{**VARIANTS, **PARTS}[variant]}
    dials.update(lr=round(times * dials["lr"], 6), muon_lr=round(times * dials["muon_lr"], 6))
    return Dials(**dials)


def make_model(config):
    model = convolve(train.make_model(config), config)
    if config.placebo:  # association is given other ids, and no plan that was made for the right ones
        others = PLACEBOS[config.placebo]
        for block in model.blocks:
            block.attn.register_forward_pre_hook(lambda _, given: (given[0], others(given[1]), given[2]))
    return model


def run(config):
    return train.train(config, make_model(config))


def searches():
    """{variant: [config of each rate]}, of which `groups` takes the best: lego_attention.search.json."""
    return {variant: [config_of(variant, times, STEPS_OF_PARTS if variant in VARIANTS else STEPS_OF_PARTS // 2)
                      for times in rates] for variant, rates in RATES.items()}


def best_rates():
    """{variant: the rate that ends at the lowest loss}; the variants of LEGO that were not searched take LEGO's."""
    found = runner.found(f"{NAME}.search", searches())
    best = {variant: min((run["test_loss"][-1], times) for run, times in zip(found[variant], rates) if run)[1]
            for variant, rates in RATES.items() if any(found[variant])}
    return {variant: best.get(variant, best.get("LEGO")) for variant in (*VARIANTS, *PARTS) if "LEGO" in best}


def groups():
    """{label: [config of every seed]}"""
    def runs(rates, steps, which="", seeds=SEEDS):
        return {f"{variant}{which}": [config_of(variant, times, steps, seed) for seed in seeds]
                for variant, times in rates.items()}
    best = best_rates()
    among = lambda variants: {variant: best[variant] for variant in variants if variant in best}
    return {**runs(among(VARIANTS), STEPS), **runs(LOWER, STEPS, OTHER, [0]),
            **runs(among(["vanilla, rotary"]), STEPS_OF_EQUAL, EQUAL, [0]),
            **runs(LOWER, STEPS_OF_LONG, LONG, [0]), **runs(among(LOWER), STEPS_OF_LONG, LONG + OTHER, [0]),
            **runs(among(PARTS), STEPS_OF_PARTS, "; parts")}


@lru_cache
def flops_of_layers(variant, T):
    """The FLOPs of all layers, without embedding and head, on a sentence of T tokens; nothing is computed for it."""
    model = make_model(replace(config_of(variant, 1, 1), task="sign", n_clauses=T)).to("meta")  # needs no text
    return train.count_flops(lambda: [*model.layers(torch.zeros(1, T, dtype=torch.long, device="meta"))])


def tflop_to(history, loss):
    """The training TFLOP after which the test loss is at `loss`, interpolated; None: it never is."""
    flops, losses = history["flops"], history["test_loss"]
    for i in range(1, len(losses)):
        if losses[i] <= loss:
            share = (losses[i - 1] - loss) / (losses[i - 1] - losses[i])
            return (flops[i - 1] + share * (flops[i] - flops[i - 1])) / 1e12
    return None


def shares(runs, which=""):
    """
    {label: [of each seed, the FLOPs until it first has the mean loss at which the base ends, in % of what the base
    needs for it on average; None: never]}; a run of the base that never has it counts with all that it spent. The base
    is vanilla, rotary; `which` of the runs is the end of their labels.
    """
    base = runs[f"vanilla, rotary{which}"]
    target = statistics.mean(history["test_loss"][-1] for history in base)
    spent = statistics.mean(tflop_to(history, target) or history["flops"][-1] / 1e12 for history in base)
    share = lambda tflop: tflop and 100 * tflop / spent
    return {label: [share(tflop_to(history, target)) for history in runs[label]]
            for label in (variant + which for variant in VARIANTS) if label in runs}


def words(runs):
    """
    Lines of figures/README.md: FLOPs of the layers against the first variant's; rate; loss in the end of each seed; and
    `shares`.
    """
    lines, base = [], [flops_of_layers("vanilla, rotary", T) for T in LENGTHS]
    needed = {label: x for which in ("", LONG) for label, x in shares(runs, which).items()}
    for label, histories in runs.items():
        variant, c = label.partition(";")[0], histories[0]["config"]
        times = c["lr"] / train.PRESETS["words"]["lr"]
        of_layers = "".join(f"{flops_of_layers(variant, T) / flops:5.0%}" for T, flops in zip(LENGTHS, base))
        lines.append(f"{variant:<28}{c['max_steps']:>5,} steps  {of_layers}   x{times:<5g}"
                     + "  ".join(f"{run['test_loss'][-1]:.2f}" for run in histories))
        lines[-1] += "  " * (label in needed) + "".join(f"{x:4.0f}%" for x in needed.get(label, []))
    return lines


def draw(runs):
    ends = {label: [history["test_loss"][-1] for history in histories] for label, histories in runs.items()}
    needed, (of_long,) = shares(runs), shares(runs, LONG)[f"LEGO{LONG}"]
    c, hardware = runs["LEGO"][0]["config"], runs["LEGO"][0]["hardware"]
    figure, ((over_flops, at_loss, longer),) = show.picture(
        f"LEGO attention comes to rotary vanilla attention's loss with {show.span(needed['LEGO'])}% of its FLOPs",
        1, 3, 15, 4.8,
        f"hidden words of text: {c['n_layer']} layers, width {c['n_embd']}, T = {c['n_tokens']}; learning rates "
        "searched for each, right: a third of these, better there; convolved: behind queries, keys and values; half: "
        f"of the channels; dot, thin line: a seed, {len(SEEDS)} of each; thick: their mean; {hardware} a run")
    for axes, which in ((over_flops, ""), (longer, LONG)):
        variants = [variant for variant in VARIANTS if variant + which in runs]
        for variant in variants:
            histories = runs[variant + which]
            show.lines(axes, [flops / 1e12 for flops in histories[0]["flops"]],
                       [history["test_loss"] for history in histories], COLORS[variant])
        axes.set(xlabel="training TFLOP", ylabel="test loss (nats per hidden word)", xlim=(0, None), ylim=(2, 6))
        show.label_ends(axes, [(statistics.mean(ends[variant + which]), variant, COLORS[variant])
                               for variant in variants])
    over_flops.set_title(f"{STEPS:,} steps, {len(SEEDS)} seeds")
    longer.set_title(f"{STEPS_OF_LONG:,} steps, one seed: {of_long:.0f}% of the FLOPs")
    show.dots(at_loss, [(variant, [x for x in needed[variant] if x], COLORS[variant]) for variant in VARIANTS])
    at_loss.set(title=f"FLOPs to a loss of {statistics.mean(ends['vanilla, rotary']):.2f}",
                xlabel="share of what vanilla, rotary takes (%)", ylabel="attention", xlim=(0, 110))
    return figure


if __name__ == "__main__":
    runner.main(NAME, draw, groups, run, before=[("search", searches, run)])
