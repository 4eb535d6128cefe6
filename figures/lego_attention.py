"""
LEGO attention against vanilla attention, in masked language modelling and on LEGO.

Claim (the paper's): LEGO attention in place of vanilla heads needs significantly fewer FLOPs and keeps or improves the
performance of large-scale pretraining.

    python -m figures.lego_attention                  35 runs, and 41 to search the rates: 1.5 hours on 2 cores
    python -m figures.lego_attention --scale=gpu      BERT-small's shape on the text in out/corpus.txt: not run yet

Words, 3 seeds: the hidden words of docstrings, 4 untied layers, width 128, T = 128, batches of 24, 600 steps with the
rate falling to 0; at equal width and depth, LEGO attention wider, at vanilla attention's FLOPs, and each pathway alone;
vanilla and chained for 2,400 steps, one seed. LEGO, 3 seeds: 6 clauses, 3 labelled, 6 untied layers, width 64, vanilla
2,000 steps, the others 200.
"""
import math
import statistics
import time
from dataclasses import replace

import torch

from figures import runner, show
import train
from model import loss_of

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
COLORS = dict(zip([*VARIANTS, *MORE], (show.BLUE, show.GREEN, show.PINK, show.RED, show.ORANGE, show.GRAY, show.GRAY)))
WIDER = 1.16  # times the width; the FLOPs are within 3% of vanilla attention's at T = 128
LONG = ("vanilla", "LEGO chained")  # one run of each with four times the steps
LENGTHS = (128, 512, 2048)  # T, of the table
RATES = {  # searched on words, times the rates of --preset=words: with seed 0 and half of the steps, see `searches`
    "vanilla": (0.3, 1, 3, 10, 30), "hybrid": (0.3, 1, 3, 10, 30), "LEGO parallel": (0.3, 1, 3, 10, 30, 100),
    "LEGO chained": (0.3, 1, 3, 10, 30, 100), "convolution alone": (3, 10, 30, 100),
    "association alone": (3, 10, 30, 100)}
BEST = {"vanilla": 3, "hybrid": 10, **dict.fromkeys(["LEGO parallel", "LEGO chained", *MORE], 30)}  # wider: as chained
TASK_RATES = {  # searched on LEGO, times the rates of --preset=vanilla: the largest that was tried is the best but for
    "vanilla": (1, 3), "hybrid": (1, 3, 8), "LEGO parallel": (1, 3, 8), "LEGO chained": (1, 3, 8)}  # vanilla attention
TASK_BEST = {"vanilla": 1, "hybrid": 8, "LEGO parallel": 8, "LEGO chained": 8}
SCALES = {
    "laptop": dict(n_layer=4, n_embd=128, n_tokens=128, batch_size=24, max_steps=600),
    "gpu": dict(n_layer=4, n_embd=512, n_head=8, n_tokens=512, batch_size=64, max_steps=20_000, warmup_steps=1000,
                eval_every=500, dtype="bfloat16", compile=True, corpus="out/corpus.txt"),
}


def on_words(variant, times, seed=0, share=1.0, scale="laptop"):
    """Masked language modelling: `times` the rates of the preset, and a `share` of the scale's steps."""
    dials = {**train.PRESETS["words"], "schedule": "linear", "positions": "learned", "out_dir": "", "seed": seed,
             **SCALES[scale], **{**VARIANTS, **MORE}[variant]}
    if variant == "LEGO chained, wider":
        dials["n_embd"] = int(WIDER * dials["n_embd"] / 4) * 4
    dials.update(lr=round(times * dials["lr"], 6), muon_lr=round(times * dials["muon_lr"], 6),
                 max_steps=int(share * dials["max_steps"]))
    return train.Config(**dials)


def on_task(variant, times, seed=0):
    """LEGO, the first half labelled: 6 layers, so that parallel pathways, one link in two layers, can follow too."""
    steps = dict(max_steps=2000) if variant == "vanilla" else dict(max_steps=200, eval_every=10)
    dials = {**train.PRESETS["vanilla"], "n_supervised": 3, "n_layer": 6, "positions": "learned", "lr": 5e-4,
             "stop_at": 0.0, "out_dir": "", "seed": seed, **VARIANTS[variant], **steps}
    dials.update(lr=round(times * dials["lr"], 6), muon_lr=round(times * dials["muon_lr"], 6))
    return train.Config(**dials)


def searches():
    """{label: [config of each rate]}, of which `groups` takes the best: lego_attention.search.json."""
    return {**{f"words, {variant}": [on_words(variant, times, share=0.5) for times in rates]
               for variant, rates in RATES.items()},
            **{f"LEGO, {variant}": [on_task(variant, times) for times in rates]
               for variant, rates in TASK_RATES.items()}}


def groups(scale="laptop"):
    """{label: [config of every seed]}"""
    runs = {f"words, {variant}": [on_words(variant, BEST[variant], seed, scale=scale) for seed in SEEDS]
            for variant in (*VARIANTS, *MORE)}
    if scale == "laptop":
        runs |= {f"LEGO, {variant}": [on_task(variant, TASK_BEST[variant], seed) for seed in SEEDS]
                 for variant in VARIANTS}
        runs |= {f"long, {variant}": [on_words(variant, BEST[variant], share=4.0)] for variant in LONG}
    return runs


def prepare(configs):
    """Makes the search and the table, where they are missing."""
    if not configs[0].corpus:
        runner.train_all(f"{NAME}.search", searches())
    if not runner.saved(f"{NAME}.table"):
        runner.save(f"{NAME}.table", measure())


def measure(n_tokens=8192, rounds=5):
    """Parameters, FLOPs and training tokens/s of each variant at each length; those of one length take turns."""
    device = train.pick_device("auto")
    count = lambda model, batch: train.count_flops(lambda: [*model.layers(batch.tokens)])
    numbers = dict(hardware=show.hardware(device), torch=torch.__version__, n_tokens=n_tokens, rows=[])
    for T in LENGTHS:
        dials = {variant: replace(on_words(variant, 1), n_tokens=T, batch_size=n_tokens // T)
                 for variant in (*VARIANTS, *MORE)}
        built = {variant: train.make_model(config).to(device).train() for variant, config in dials.items()}
        batch = train.draw_sentences(dials["vanilla"], n_tokens // T, 0, device)
        optimizers = {variant: train.make_optimizers(model, dials[variant]) for variant, model in built.items()}
        times = {variant: [] for variant in built}
        for _ in range(rounds + 1):
            for variant, model in built.items():
                start = time.perf_counter()
                loss, n, _ = loss_of(model, batch)
                model.zero_grad(set_to_none=True)
                (loss / n).backward()
                for optimizer in optimizers[variant]:
                    optimizer.step()
                loss.item()
                times[variant].append(time.perf_counter() - start)
        numbers["rows"] += [dict(variant=variant, T=T, n_parameters=model.n_parameters(),
                                 flops_per_token=count(model, batch) / 3 / n_tokens,
                                 tokens_per_second=n_tokens / statistics.median(times[variant][1:]))
                            for variant, model in built.items()]
    return numbers


def draw(runs):
    words = {variant: runs[f"words, {variant}"] for variant in (*VARIANTS, *MORE)}
    ends = {variant: [history["test_loss"][-1] for history in histories] for variant, histories in words.items()}
    mean = {variant: statistics.mean(losses) for variant, losses in ends.items()}
    c, hardware = words["vanilla"][0]["config"], words["vanilla"][0]["hardware"]
    figure, ((over_flops, alone),) = show.picture(
        f"LEGO attention ends at a loss of {mean['LEGO chained']:.2f}, vanilla at {mean['vanilla']:.2f}, the "
        f"convolution alone at {mean['convolution alone']:.2f}", 1, 2, 11, 4.8,
        f"hidden words of text: {c['n_layer']} layers, width {c['n_embd']}, T = {c['n_tokens']}, {c['max_steps']} "
        "steps; learning rates searched for each; chained: convolution after association, parallel: beside it, hybrid: "
        "beside vanilla heads, wider: with vanilla's FLOPs; a dot or a thin line is a seed, a thick one the mean; "
        f"{hardware} a run")
    for variant in VARIANTS:
        tflops = [flops / 1e12 for flops in words[variant][0]["flops"]]
        show.lines(over_flops, tflops, [history["test_loss"] for history in words[variant]], COLORS[variant])
    over_flops.set(xlabel="training FLOPs (TFLOP)", ylabel="test loss (nats per hidden word)", xlim=(0, None),
                   ylim=(3, 9.5))
    show.mark(over_flops, math.log(8192), "every word alike")
    show.label_ends(over_flops, [(mean[variant], variant, COLORS[variant]) for variant in VARIANTS])
    show.dots(alone, [(variant, ends[variant], COLORS[variant]) for variant in words])
    alone.set(xlabel="test loss in the end (nats per hidden word)", ylabel="attention", xlim=(3, 6))
    return figure


if __name__ == "__main__":
    runner.main(NAME, draw, groups, prepare=prepare, scales=(*SCALES,))
