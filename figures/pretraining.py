"""
Structure, not knowledge: what a model can begin from so that it learns LEGO sooner.

Claim (the paper's): pretraining on unrelated text helps, and training heads to attend in two patterns, without any
text, helps nearly as much.

    python -m figures.pretraining       17 runs, 2 hours, after those of figures/heads.py, which fetches MiniLM

Vanilla untied models, 6 layers, width 64, learn `sign` over 12 clauses, 6 labelled, from: random weights; mimicking
(600 steps of attending as the two patterns do, on LEGO sentences, without a label); the hidden words of text
(`--preset=words`, 1,500 steps); the same with uniform attention in its two best heads of each kind, or in as many other
heads. Then MiniLM against its own shape with random weights, 1 seed. All have the same dials on LEGO, or each pair has.
"""
from pathlib import Path

import torch

from figures import heads, runner, show
import lego
import train
from figures.heads import KINDS, MINILM, SEEDS, best, compact, look_at, sources
from model import read_checkpoint

NAME = "pretraining"
N_BEST = 2  # heads of each kind to ablate
ABLATED = {"structured": "the best heads of each kind ablated", "other": "as many other heads ablated"}
TITLES = {  # label: in the words of the picture, and the colour
    "random weights": ("random weights", show.GRAY),
    "mimicking": ("two attention patterns", show.RED),
    "text": ("text", show.BLUE),
    f"text, {ABLATED['structured']}": ("text, less the 4 best heads", show.BLUE),
    f"text, {ABLATED['other']}": ("text, less 4 other heads", show.BLUE),
    "random weights, MiniLM's shape": ("MiniLM's shape, random", show.GRAY),
    "MiniLM": ("MiniLM", show.BLUE),
}


def on_lego(**dials):
    """Training on LEGO, the same from all beginnings: chains of 2 to 12 clauses."""
    return train.Config(**compact(**{**dict(
        min_clauses=2, batch_size=256, lr=1e-3, muon_lr=6e-3, warmup_steps=50, max_steps=1300, eval_every=50,
        out_dir=""), **dials}))


def groups():
    """{label: [config of every seed]}"""
    like_minilm = dict(n_embd=384, n_head=12, norm_first=False, norm_eps=1e-12, init_std=0.02, batch_size=64,
                       lr=2e-4, muon_lr=2e-3, max_steps=600)
    return {
        "random weights": [on_lego(seed=seed) for seed in SEEDS],
        "mimicking": [on_lego(seed=seed, init_from=f"out/mimicking-{seed}") for seed in SEEDS],
        "text": [on_lego(seed=seed, init_from=f"out/text-{seed}") for seed in SEEDS],
        **{f"text, {label}": [on_lego(seed=seed, init_from=f"out/text-{seed}-{name}") for seed in SEEDS]
           for name, label in ABLATED.items()},
        "random weights, MiniLM's shape": [on_lego(**like_minilm)],
        "MiniLM": [on_lego(**like_minilm, init_from=MINILM)],
    }


def prepare(configs):
    """Makes what the configs begin from."""
    heads.prepare(configs)
    for seed in SEEDS:
        make_ablated(seed)


def make_ablated(seed):
    """The two checkpoints of ABLATED, made of the one pretrained on text. The other heads are drawn by the seed."""
    source = sources(seed)["text"]
    scored = look_at(dict(train.asdict(source), init_from=source.out_dir))["LEGO"]
    structured = {head for kind in KINDS for head in best(scored, kind, N_BEST)}
    others = [(layer, head) for layer in range(source.n_layer) for head in range(source.n_head)
              if (layer, head) not in structured]
    drawn = torch.randperm(len(others), generator=torch.Generator().manual_seed(seed))[: len(structured)]
    ablate(source, f"out/text-{seed}-structured", structured)
    ablate(source, f"out/text-{seed}-other", [others[i] for i in drawn])


def ablate(source, to, heads):
    """Writes a checkpoint like that of the config `source` into a folder, with uniform attention in some heads."""
    checkpoint, n_channels = read_checkpoint(source.out_dir), source.n_embd // source.n_head
    for layer, head in heads:  # no query and no key, and no gradient for them: the head stays uniform
        for name in ("query.weight", "query.bias", "key.weight", "key.bias"):
            checkpoint["model"][f"blocks.{layer}.attn.{name}"][head * n_channels :][:n_channels] = 0
    lego.write(Path(to) / "checkpoint.pt", lambda beside: torch.save(checkpoint, beside))


def labelled(history):
    """Mean accuracy of the labelled variables at every evaluation, in percent."""
    n = history["config"]["n_supervised"]
    return [100 * sum(accuracy[:n]) / n for accuracy in history["accuracy"]]


def final(history, n_evaluations=3):
    return sum(labelled(history)[-n_evaluations:]) / n_evaluations


def words(runs, n_evaluations=3):
    """Lines of figures/README.md: accuracy of the first variable without a label in the end, in %, of every seed."""
    first = runs["text"][0]["config"]["n_supervised"]
    in_the_end = lambda run: sum(accuracy[first] for accuracy in run["accuracy"][-n_evaluations:]) / n_evaluations
    return [f"{label:<32}" + ", ".join(f"{100 * in_the_end(run):.0f}" for run in runs[label])
            for label in ("random weights", "mimicking", "text")]


def draw(runs):
    ends = {label: [final(history) for history in histories] for label, histories in runs.items()}
    c, hardware = runs["text"][0]["config"], runs["text"][0]["hardware"]
    figure, ((over_time, in_the_end),) = show.picture(
        f"Begun from two attention patterns, {show.span(ends['mimicking'])}% is right; from text, "
        f"{show.span(ends['text'])}%; else {show.span(ends['random weights'])}%", 1, 2, 11, 4.6,
        f"vanilla attention; {c['n_clauses']} clauses, {c['n_layer']} layers, width {c['n_embd']} (MiniLM: 384); two "
        "attention patterns: first trained to attend to identical tokens and to neighbours, without labels; text: "
        "first trained to guess hidden words; less heads: these attend uniformly; a dot or a thin line is a seed, a "
        f"thick one the mean; MiniLM and its shape take {groups()['MiniLM'][0].max_steps} steps; {hardware} a run")
    show.dots(in_the_end, [(title, ends[label], color) for label, (title, color) in TITLES.items() if label in ends])
    show.mark(in_the_end, 50, vertical=True)
    show.mark(in_the_end, 50 * (2 + 4 * 0.5) / 3, "two of six known", vertical=True, place=0.06)
    in_the_end.set(xlabel="their accuracy in the end (%)", ylabel="begun from", xlim=(48, 100))
    names = []
    for label in ("random weights", "mimicking", "text"):
        title, color = TITLES[label]
        curves = [labelled(history) for history in runs[label]]
        show.lines(over_time, runs[label][0]["step"], curves, color)
        names.append((sum(curve[-1] for curve in curves) / len(curves), title, color))
    show.mark(over_time, 50, place=0.3)
    over_time.set(xlabel=f"training steps on LEGO, of {c['batch_size']} sentences each", ylim=(45, 101),
                  ylabel=f"accuracy of the {c['n_supervised']} labelled variables (%)", xlim=(0, c["max_steps"]))
    show.label_ends(over_time, names)
    return figure


if __name__ == "__main__":
    runner.main(NAME, draw, groups, prepare=prepare)
