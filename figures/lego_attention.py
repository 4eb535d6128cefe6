"""
LEGO attention against vanilla attention: on LEGO, and in masked language modelling.

Claim (the paper's): LEGO attention in place of vanilla heads needs significantly fewer FLOPs and keeps or improves the
performance of large-scale pretraining.

    python -m figures.lego_attention                                  the scale `laptop`
    python -m figures.lego_attention --scale=gpu --corpus=FILE        BERT-small and BERT-base shapes: not run yet

(a) LEGO: 6 clauses, 3 supervised, 6 untied layers, width 64, vanilla 2,000 steps, the others 200. (b) The hidden words
of docstrings: 4 layers, width 128, T = 128, batches of 24, 600 steps with the rate falling to 0, the same for all; at
equal width and depth, and LEGO attention wider, at vanilla attention's FLOPs; each pathway alone; and vanilla and
chained for 2,400 steps, one seed. 3 seeds of each. (c) What a layer costs and how fast it trains. Learning rates,
searched for each variant with seed 0 (300 steps of words, or a whole run of LEGO), are in lego_attention.search.json,
times those of the presets; `wider` takes that of chained, and the longer runs that of the shorter ones. On LEGO the
largest rate that was tried, x8, is the best for all but vanilla attention, for which x1 is and x3 is the largest.

Measured on 2 cores of an x86-64 server, one thread a run (the table on both):

                        training   validation loss, each     mean    best     1000 tokens/s in training
                        FLOPs      seed, nats per word               rate     T = 128    512   2048
    vanilla                100%     5.34  5.07  5.14    5.18     x3     21.2  16.8   9.1
    hybrid                  88%     3.99  3.89  3.97    3.95     x10    22.7  18.3  12.8
    LEGO parallel           76%     3.61  3.51  3.60    3.57     x30    27.5  24.4  24.7
    LEGO chained            76%     3.62  3.50  3.60    3.57     x30    26.5  23.6  24.5
    LEGO chained, wider     99%     3.60  3.47  3.57    3.55     x30    20.5  18.0  18.4
    convolution alone       76%     3.68  3.58  3.69    3.65     x30    26.0  25.3  25.6
    association alone       76%     5.54  5.46  5.52    5.51     x30    26.8  25.5  26.2

    TFLOP until the three supervised variables of LEGO have a mean of 99%: vanilla 5.5 and 11.0, and never
        within 15 in one seed of 3; hybrid 0.53 to 0.59, parallel 0.76 to 0.82, chained 0.53

    hidden words over 2,400 steps, seed 0, after      600  1,200  1,800  2,400
        vanilla                                       5.38   4.95   4.34   4.19
        LEGO chained                                  3.72   3.29   3.04   2.89

The verdict, for 600 to 2,400 steps at this scale: the claim holds, by more than it says. With 76% of the FLOPs LEGO
attention ends 1.6 nats below vanilla attention; after four times the steps vanilla has 4.19 and chained 2.89 (1 seed).
But nearly all of it is the convolution: alone it ends at 3.65, association alone at 5.51, and association, before the
convolution, brings 0.06 to 0.08 nats in each of the 3 seeds. Chained or parallel makes no difference here. A small
vanilla Transformer has to find the neighbours first and has hardly done so in these steps; whether it catches up at the
scale of a BERT, this does not tell. FLOPs saved come from the projections of query and key and, in long sentences, from
the T x T map: at T = 2,048 a chained layer has 23% of a vanilla one's FLOPs and the model, head and all, trains 2.7
times as fast, at T = 128 72% and 1.25 times.
"""
import statistics
import time
from dataclasses import replace

import torch

import figures
import lego
import train

NAME = "lego_attention"
SEEDS = range(3)
VARIANTS = {  # at equal width and depth ...
    "vanilla": dict(attention="vanilla"),
    "hybrid": dict(attention="hybrid"),
    "LEGO parallel": dict(attention="lego", chained=False),
    "LEGO chained": dict(attention="lego"),
}
MORE = {  # ... and, in masked language modelling: as many FLOPs as vanilla attention, and each pathway for itself
    "LEGO chained, wider": dict(attention="lego"),
    "convolution alone": dict(attention="lego", association_share=0.0),
    "association alone": dict(attention="lego", association_share=1.0, chained=False),
}
COLORS = dict(zip([*VARIANTS, *MORE], ("#000000", "#CC79A7", "#56B4E9", "#D55E00", "#E69F00", "#009E73", "#0072B2")))
WIDER = 1.16  # times the width; the FLOPs are within 3% of vanilla attention's at T = 128
LONG = ("vanilla", "LEGO chained")  # one run of each with four times the steps
RATES = {  # to search, times the rates of --preset=words; `wider` takes that of LEGO chained
    "vanilla": (0.3, 1, 3, 10, 30), "hybrid": (0.3, 1, 3, 10, 30), "LEGO parallel": (0.3, 1, 3, 10, 30, 100),
    "LEGO chained": (0.3, 1, 3, 10, 30, 100), "convolution alone": (3, 10, 30, 100),
    "association alone": (3, 10, 30, 100)}
TASK_STEPS = {  # on LEGO: max_steps, eval_every
    "vanilla": (2000, 50), "hybrid": (200, 10), "LEGO parallel": (200, 10), "LEGO chained": (200, 10)}
TASK_RATES = {  # to search on LEGO, times the rates of --preset=vanilla
    "vanilla": (1, 3), "hybrid": (1, 3, 8), "LEGO parallel": (1, 3, 8), "LEGO chained": (1, 3, 8)}
SEARCH = {"laptop": 0.5, "gpu": 0.1, "gpu_base": 0.1}  # share of the steps that a search takes
SCALES = {
    "laptop": dict(n_layer=4, n_embd=128, n_tokens=128, batch_size=24, max_steps=600),
    "gpu": dict(n_layer=4, n_embd=512, n_head=8, n_tokens=512, n_words=32768, batch_size=64, max_steps=20_000,
                  warmup_steps=1000, eval_every=500, dtype="bfloat16", compile=True),
    "gpu_base": dict(n_layer=12, n_embd=768, n_head=12, n_tokens=512, n_words=32768, batch_size=256, max_steps=50_000,
                 warmup_steps=2000, eval_every=1000, dtype="bfloat16", compile=True),
}


def name_of(scale):
    """Of the files of a scale, without their ending."""
    return NAME if scale == "laptop" else f"{NAME}_{scale}"


def on_words(scale, variant, times, seed=0, share=1.0, corpus=""):
    """Masked language modelling: `times` the rates of the preset, and a `share` of the scale's steps."""
    dials = {**train.PRESETS["words"], "schedule": "linear", "corpus": corpus, "out_dir": "", "seed": seed,
             **SCALES[scale], **{**VARIANTS, **MORE}[variant]}
    if variant == "LEGO chained, wider":
        dials["n_embd"] = int(WIDER * dials["n_embd"] / 4) * 4
    dials.update(lr=round(times * dials["lr"], 6), muon_lr=round(times * dials["muon_lr"], 6),
                 max_steps=int(share * dials["max_steps"]))
    return train.Config(**dials)


def on_task(variant, times, seed=0):
    """LEGO, the first half supervised: 6 layers, so that parallel pathways, one link in two layers, can follow too."""
    dials = {**train.PRESETS["vanilla"], "n_supervised": 3, "n_layer": 6, "stop_at": 0.0, "out_dir": "", "seed": seed,
             **VARIANTS[variant], **dict(zip(("max_steps", "eval_every"), TASK_STEPS[variant]))}
    dials.update(lr=round(times * dials["lr"], 6), muon_lr=round(times * dials["muon_lr"], 6))
    return train.Config(**dials)


def searches(scale, corpus=""):
    """{label: [config of each rate]}, of which `groups` takes the best."""
    runs = {f"words, {variant}": [on_words(scale, variant, times, share=SEARCH[scale], corpus=corpus)
                                          for times in RATES[variant]] for variant in RATES}
    if scale == "laptop":
        runs |= {f"LEGO, {variant}": [on_task(variant, times) for times in rates]
                 for variant, rates in TASK_RATES.items()}
    return runs


def best_rates(searched):
    """{what, variant: the rate, times the preset's} with the lowest test loss, or soonest on LEGO."""
    best = {}
    for label, histories in searched.items():
        task, variant = label.split(", ", 1)
        if task == "words":
            end = lambda pair: pair[1]["test_loss"][-1]
            best[f"words, {variant}"] = min(zip(RATES[variant], histories), key=end)[0]
        else:
            best[f"LEGO, {variant}"] = min(zip(TASK_RATES[variant], histories), key=lambda pair: flops_to(pair[1]))[0]
    return best | {"words, LEGO chained, wider": best["words, LEGO chained"]}


def groups(scale, best, corpus=""):
    """{label: [config of every seed]}"""
    runs = {f"words, {variant}": [on_words(scale, variant, best[f"words, {variant}"], seed, corpus=corpus)
                                  for seed in SEEDS] for variant in (*VARIANTS, *MORE)}
    if scale == "laptop":
        runs |= {f"LEGO, {variant}": [on_task(variant, best[f"LEGO, {variant}"], seed) for seed in SEEDS]
                 for variant in VARIANTS}
        runs |= {f"long, {variant}": [on_words(scale, variant, best[f"words, {variant}"], share=4.0)]
                 for variant in LONG}
    return runs


def supervised(history):
    """Mean accuracy of the supervised variables at every evaluation, in percent."""
    n = history["config"]["n_supervised"]
    return [100 * sum(accuracy[:n]) / n for accuracy in history["accuracy"]]


def flops_to(history, accuracy=99.0):
    """Training FLOPs until the supervised variables first have this mean accuracy; infinite if they never do."""
    return next((flops for flops, mean in zip(history["flops"], supervised(history)) if mean >= accuracy), float("inf"))


# ----------------------------------------------------------------------------------------------------------------------
# the table


LENGTHS = (128, 512, 2048)  # T


def measure(scale, corpus="", n_tokens=8192, rounds=5):
    """Parameters, FLOPs and training tokens/s of each variant at each length; those of one length take turns."""
    device = train.pick_device("auto")
    numbers = dict(hardware=train.hardware(device), torch=torch.__version__, n_tokens=n_tokens, rows=[])
    for T in LENGTHS:
        dials = {variant: replace(on_words(scale, variant, 1, corpus=corpus), n_tokens=T, batch_size=n_tokens // T)
                 for variant in (*VARIANTS, *MORE)}
        built = {variant: train.make_model(config).to(device).train() for variant, config in dials.items()}
        bfloat16 = dials["vanilla"].dtype == "bfloat16"
        if dials["vanilla"].compile:
            for model in built.values():
                for block in model.blocks:
                    block.compile()
        generator = train.make_generator(dials["vanilla"], "test", device)
        batch = train.draw_sentences(dials["vanilla"], n_tokens // T, generator)
        optimizers = {variant: train.make_optimizers(model, dials[variant]) for variant, model in built.items()}
        times = {variant: [] for variant in built}
        for _ in range(rounds + 1):
            for variant, model in built.items():
                start = time.perf_counter()
                with torch.autocast(device.type, torch.bfloat16, enabled=bfloat16):
                    loss = train.loss_of(model, batch, dials[variant])
                model.zero_grad(set_to_none=True)
                loss.backward()
                for optimizer in optimizers[variant]:
                    optimizer.step()
                loss.item()
                times[variant].append(time.perf_counter() - start)
        for variant, model in built.items():
            numbers["rows"].append(dict(
                variant=variant, T=T, n_parameters=model.n_parameters(), flops_per_token=model.flops(T, n_read=0) / T,
                tokens_per_second=n_tokens / statistics.median(times[variant][1:])))
    return numbers


# ----------------------------------------------------------------------------------------------------------------------
# the picture


def middle_and_spread(axes, histories, x, y, color, label):
    """A line for the mean of the seeds, and a band from the worst to the best."""
    ys = torch.tensor([y(history) for history in histories])  # (seeds, evaluations)
    axes.plot(x(histories[0]), ys.mean(0), color=color, label=label, linewidth=2)
    axes.fill_between(x(histories[0]), ys.amin(0), ys.amax(0), color=color, alpha=0.2, linewidth=0)


def draw(runs):
    from matplotlib.figure import Figure

    figure = Figure(figsize=(18, 10), layout="constrained")
    panels = figure.subplots(2, 3)
    words = {variant: runs[f"words, {variant}"] for variant in (*VARIANTS, *MORE)}
    final = {variant: [history["test_loss"][-1] for history in histories] for variant, histories in words.items()}
    mean = {variant: sum(losses) / len(losses) for variant, losses in final.items()}
    c = words["vanilla"][0]["config"]
    flops = {variant: histories[0]["flops"][-1] for variant, histories in words.items()}
    percent = {variant: f"{100 * flops[variant] / flops['vanilla']:.0f}%" for variant in words}
    table = figures.saved(f"{name_of(next(s for s in SCALES if SCALES[s].items() <= c.items()))}.table")

    # (a) LEGO
    axes = panels[0, 0]
    if "LEGO, vanilla" in runs:
        needed = {}
        for variant in VARIANTS:
            histories = runs[f"LEGO, {variant}"]
            middle_and_spread(axes, histories, lambda h: [f / 1e12 for f in h["flops"]], supervised, COLORS[variant],
                              variant)
            reached = [flops / 1e12 for flops in map(flops_to, histories) if flops < float("inf")]
            ends = [f"{flops:.2g}" for flops in (min(reached), max(reached))] if reached else ["never"]
            needed[variant] = " to ".join(dict.fromkeys(ends))
            if 0 < len(reached) < len(histories):
                needed[variant] += f" ({len(reached)} of {len(histories)} seeds)"
        t = runs["LEGO, vanilla"][0]["config"]
        axes.axhline(50, color="gray", linestyle=":", label="chance")
        axes.set(xscale="log", xlabel="training FLOPs (TFLOP)", ylabel="accuracy of the supervised three (%)")
        axes.set_title(f"(a) LEGO: {t['n_clauses']} clauses, {t['n_supervised']} supervised, {t['n_layer']} layers, "
                       f"width {t['n_embd']}; TFLOP to 99%:\n" + ", ".join(
                           f"{variant.removeprefix('LEGO ')} {flops}" for variant, flops in needed.items()), fontsize=9)
        axes.legend(frameon=False, loc="upper left")

    # (b) masked language modelling
    for axes, x, label in ((panels[0, 1], lambda h: h["step"], "training steps"),
                           (panels[0, 2], lambda h: [f / 1e12 for f in h["flops"]], "training FLOPs (TFLOP)")):
        for variant in (*VARIANTS, "LEGO chained, wider"):
            middle_and_spread(axes, words[variant], x, lambda h: h["test_loss"], COLORS[variant], variant)
        axes.set(xlabel=label, ylabel="validation loss (nats per hidden word)", ylim=(None, 7.5))
        axes.legend(frameon=False)
    panels[0, 1].set_title(f"(b) hidden words: {c['n_layer']} layers, width {c['n_embd']}, T = {c['n_tokens']}\n"
                           f"after {c['max_steps']} steps " + ", ".join(
                               f"{variant.removeprefix('LEGO ')} {mean[variant]:.2f}" for variant in VARIANTS),
                           fontsize=10)
    wider = "LEGO chained, wider"
    panels[0, 2].set_title(f"the same against FLOPs\nLEGO chained takes {percent['LEGO chained']} of vanilla's; wider, "
                           f"{percent[wider]}, it ends at {mean[wider]:.2f}", fontsize=10)

    axes = panels[1, 0]
    for row, variant in enumerate(reversed(final)):
        axes.plot(final[variant], [row] * len(final[variant]), "o", color=COLORS[variant], markersize=8, alpha=0.7)
        axes.text(max(final[variant]), row, f"   {mean[variant]:.2f}", va="center")
    axes.set_yticks(range(len(final)), reversed(final))
    axes.set(xlabel=f"validation loss after {c['max_steps']} steps, each seed (nats)", ylim=(-0.6, len(final) - 0.4))
    axes.margins(x=0.12)
    axes.set_title("which pathway earns its keep: alone, the convolution ends at "
                   f"{mean['convolution alone']:.2f},\nassociation at {mean['association alone']:.2f}, both chained at "
                   f"{mean['LEGO chained']:.2f}", fontsize=10)

    axes = panels[1, 1]
    if "long, vanilla" in runs:
        ends = []
        for variant in LONG:
            (history,) = runs[f"long, {variant}"]
            axes.plot(history["step"], history["test_loss"], color=COLORS[variant], label=variant, linewidth=2)
            ends.append(f"{variant} {history['test_loss'][-1]:.2f}")
        axes.set(xlabel="training steps", ylabel="validation loss (nats per hidden word)", ylim=(None, 7.5))
        axes.set_title(f"does it last? four times the steps, 1 seed\n{', '.join(ends)}", fontsize=10)
        axes.legend(frameon=False)

    # (c) the table
    axes = panels[1, 2]
    axes.axis("off")
    if table:
        cells = {(row["variant"], row["T"]): row for row in table["rows"]}
        base = {T: cells["vanilla", T] for T in LENGTHS}
        lines = []
        for variant in (*VARIANTS, *MORE):
            line = [variant, f"{cells[variant, LENGTHS[0]]['n_parameters'] / 1e6:.2f}"]
            for key in ("flops_per_token", "tokens_per_second"):
                for T in LENGTHS:
                    value, unit = cells[variant, T][key], 1e6 if key == "flops_per_token" else 1e3
                    line.append(f"{value / unit:.1f}")
            lines.append(line)
        drawn = axes.table(lines, colLabels=["", "M param.", *(f"{T}" for T in LENGTHS), *(f"{T}" for T in LENGTHS)],
                           colWidths=[0.32, 0.14] + 6 * [0.09], bbox=(0, 0.05, 1, 0.8))
        drawn.auto_set_font_size(False)
        drawn.set_fontsize(9)
        for (row, column), cell in drawn.get_celld().items():
            cell.set(linewidth=0, facecolor="#eef3f8" if row % 2 else "white")
            cell.set_text_props(ha="left" if column == 0 else "right")
        axes.text(0.73, 0.87, "MFLOP per token, T =", ha="right", transform=axes.transAxes, fontsize=9)
        axes.text(1.0, 0.87, "1000 tokens/s, T =", ha="right", transform=axes.transAxes, fontsize=9)
        axes.set_title(f"(c) forward FLOPs without the head, training speed\n{table['hardware']}, median of 5 steps",
                       fontsize=10)
    history = words["vanilla"][0]
    figure.suptitle(
        f"LEGO attention takes {percent['LEGO chained']} of vanilla attention's FLOPs at T = {c['n_tokens']} and ends "
        f"at a {'lower' if mean['LEGO chained'] < mean['vanilla'] else 'higher'} loss after {c['max_steps']} "
        f"steps: {mean['LEGO chained']:.2f} against {mean['vanilla']:.2f} nats\n"
        f"mean of {len(SEEDS)} seeds, the band from worst to best; learning rates searched for each (`wider`: as "
        f"chained); {history['hardware']} a run", fontweight="bold", fontsize=12)
    return figure


def main(arguments):
    scale = corpus = ""
    for argument in arguments:
        key, _, value = argument.partition("=")
        if key == "--scale" and value in SCALES:
            scale = value
        elif key == "--corpus" and value:
            corpus = value
        else:
            raise ValueError(f"'{argument}': expected --scale= and one of {', '.join(SCALES)}, or --corpus=FILE")
    scale = scale or "laptop"
    name = name_of(scale)
    runs = searches(scale, corpus)
    figures.train_all(f"{name}.search", runs, parallel=True)
    best = best_rates(figures.found(f"{name}.search", runs))
    figures.train_all(name, groups(scale, best, corpus), parallel=True)
    if not figures.saved(f"{name}.table"):
        figures.save(f"{name}.table", measure(scale, corpus))
    figures.redraw(name, draw)


if __name__ == "__main__":
    lego.command_line(main)
