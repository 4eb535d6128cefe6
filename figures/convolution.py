"""
Convolutions and association on LEGO, each alone and together, against vanilla attention.

Claim (the paper's): Transformers learn LEGO sooner with convolutional components.

    python -m figures.convolution       40 runs, and 39 to search the rates: 40 minutes on 2 cores

Untied models of 4 layers learn `sign` over 4 clauses, all labelled. Vanilla attention gets a
convolution over 7 positions behind its values, or its queries, keys and values (as in Primer); or,
in place of two of its four heads, half the channels of LEGO attention: a convolution, association
or both, chained. A run ends when all is 99% right five times. Rates are searched with another seed.
"""
import math
from dataclasses import dataclass

import train
from figures import runs, show
from figures.convolved import convolve, count_flops


@dataclass
class Convolved(train.Config):
    behind: str = ""  # of "query", "key" and "value": those with a convolution behind them


DIALS = train.PRESETS["vanilla"] | dict(
    n_clauses=4, n_supervised=4, n_names=4, n_layer=4, positions="learned", norm="first",
    max_steps=1500, stop_at=0.99, eval_every=25, out_dir="")
LR = 5e-4  # of AdamW; Muon has 8 times as much
RATES, HALF = (0.3, 1, 3, 10), dict(attention="hybrid")
VARIANTS = {  # label: the rates to try, times LR, and the dials
    "vanilla": (RATES, {}),
    "2 heads": (RATES, dict(n_head=2)),
    "convolved values": (RATES, dict(behind="value")),
    "convolved queries, keys, values": (RATES, dict(behind="query, key, value")),
    "2 heads and convolution": ((0.1, *RATES), dict(HALF, association_share=0.0)),
    "2 heads and association": (RATES, dict(HALF, association_share=1.0, chained=False)),
    "2 heads and both": ((*RATES, 30, 100), HALF),
    "LEGO attention": ((*RATES, 30, 100, 300, 1000), dict(attention="lego")),
}
WITH_ASSOCIATION = ("2 heads and association", "2 heads and both", "LEGO attention")


def config_of(label, times, seed=5):
    rates = dict(lr=round(LR * times, 6), muon_lr=round(8 * LR * times, 6))
    return Convolved(**DIALS | VARIANTS[label][1] | rates, seed=seed)


def make_model(config):
    return convolve(train.make_model(config), config.behind)


def run(config):
    return train.train(config, make_model(config))


def steps_to(history, n):
    """The steps at the first evaluation with the first n variables at 99%; None: never."""
    at = zip(history["step"], history["accuracy"])
    return next((step for step, accuracy in at if min(accuracy[:n]) >= 0.99), None)


def rank(history):
    """The best rate is the first with all variables; where none is, the most right in the end."""
    return steps_to(history, 4) or math.inf, -sum(history["accuracy"][-1])


def tflop(histories, n):
    """The training TFLOP at which each run has the first n variables at 99%; None: never."""
    config = Convolved(**histories[0]["config"])
    model, batch = make_model(config), train.draw_sentences(config, config.batch_size, 0, "cpu")
    of_step = count_flops(lambda: train.loss_of_step(model, batch)) / 1e12
    steps = [steps_to(history, n) for history in histories]
    return [None if x is None else x * of_step for x in steps]


def table(found):
    """Lines of figures/README.md: rate, and TFLOP until 1, 2 and all variables are there."""
    in_words = lambda x: "never" if x is None else f"{x:.2f}"
    for label, histories in found.items():
        cells = [" ".join(map(in_words, tflop(histories, n))).ljust(33) for n in (1, 2, 4)]
        times = histories[0]["config"]["lr"] / LR
        yield f"{label:<36}x{times:<8g}{''.join(cells)}".rstrip()


def main():
    searched = runs.get("convolution.search", {
        label: [config_of(label, x) for x in rates] for label, (rates, _) in VARIANTS.items()}, run)
    best = {label: min(searched[label], key=rank)["config"] for label in VARIANTS}
    found = runs.get("convolution", {
        label: [Convolved(**c | dict(seed=s)) for s in range(5)] for label, c in best.items()}, run)
    print(*table(found), sep="\n")

    right = {n: {label: tflop(found[label], n) for label in VARIANTS} for n in (1, 4)}
    of = lambda labels: [x or math.inf for label in labels for x in right[4][label]]
    with_it, without = of(WITH_ASSOCIATION), of(VARIANTS.keys() - {*WITH_ASSOCIATION})
    colors = {label: show.RED if label in WITH_ASSOCIATION else show.BLUE for label in VARIANTS}
    figure, (panels,) = show.picture(
        f"All four variables are right after {show.span(with_it, '{:.2f}')} TFLOP with "
        f"association, after {min(without):.2f} or more without", 1, 2, 11, 4.6,
        "4 clauses, all labelled, 4 untied layers, width 64, vanilla attention with 4 heads but "
        "where 2 are named; convolved: a convolution behind these; red: with association; learning "
        "rates searched for each; a dot is a seed, 5 of each, open: never in 1,500 steps")
    for axes, n, title in zip(panels, (1, 4), ("the first variable", "all four variables")):
        show.dots(axes, [(label, right[n][label], colors[label]) for label in VARIANTS], never=5.5)
        axes.set(title=title, xlabel="training TFLOP until 99% right", ylabel="attention",
                 xscale="log", xlim=(0.05, 6.1))
        axes.set_xticks([0.1, 0.3, 1, 3, 5.5], ["0.1", "0.3", "1", "3", "never"])
        axes.set_xticks([], minor=True)
    panels[1].set_yticklabels([])
    figure.savefig(runs.FOLDER / "convolution.png", dpi=150)


if __name__ == "__main__":
    main()
