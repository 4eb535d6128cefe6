"""
Structure, not knowledge: what a model can begin from so that it learns LEGO sooner.

    python -m figures.pretraining       makes the beginnings and the runs that are missing; 2 to 3 hours on two cores

Vanilla untied models, 6 layers, width 64, learn `sign` over 12 clauses, 6 supervised, from: random weights; mimicking
(600 steps of attending as the two patterns do, on LEGO sentences, without a label); the hidden words of text
(`--preset=words`, 1,500 steps); the same with uniform attention in its two best heads of each kind, or in as many other
heads. Then MiniLM, against its own shape with random weights, 1 seed. How these are made, and MiniLM fetched, is told
at the top of figures/heads.py. After that each pair has the same steps on LEGO, with the same dials.

Measured, mean accuracy of the six supervised variables after 1,300 steps (MiniLM's shape: 600), chance 50%; 67% is two
variables known and four guessed:

    from                                        seed 0    seed 1    seed 2    95% on the second variable after
    random weights                                 67%       67%       67%    450 to 650 steps
    mimicking                                      98%       97%       92%    650 to 800
    text                                           99%       81%       67%    150
    text, best heads of each kind ablated          67%       67%       70%    150 to 200
    text, as many other heads ablated              91%       68%       67%    150 to 400
    random weights, MiniLM's shape                 66%                        600
    MiniLM                                         71%                        200; 76% on the third in the end

The verdict. Within these steps random weights take no seed past the second variable, mimicking takes 3 of 3 and text 2
of 3: the patterns alone are enough for the gain, and for more of it than our text brings. Whether they are also what
text helps by, the ablation leaves open. Without its best heads the text model loses all that it had beyond the second
variable, in the two seeds that had it; without as many others it keeps most of it in one of these, and loses nearly all
in the other; and in the third seed it is the one without its best heads that begins to learn a third variable. Nor are
the others a fair control: of the four best heads, three stand in the first layer in two seeds and two in the third
(both of manipulation in all), where there are only four. One gain mimicking does not have: the second variable comes
three to four times sooner from text, with or without its best heads. (The first comes sooner from either.) MiniLM is
three times sooner at its second variable than its shape with random weights, and has begun its third.

On 2 cores of an x86-64 server, one thread a run, 6 minutes each (MiniLM's shape: 11), 118 minutes in all.

What had to be found first (single runs, not kept). With 12 clauses in every training sentence no beginning left two
variables: not mimicking, not text, over batches of 128 to 512, 400 to 1,200 steps, AdamW at 5e-4 to 1e-3, Muon at 4e-3
to 1e-2, 12 or 26 names; an earlier prototype, whose code is not this one, had learned six after mimicking. Drawing the
length of the chain for each batch, 2 to 12, is what makes the later variables learnable; all runs here do. And a Muon
rate of 1e-2 washes the mimicked association out of layers 2 to 6 at once.
"""
from pathlib import Path

import torch

import figures
import lego
import train
from figures.heads import KINDS, MINILM, SEEDS, best, compact, look_at, make_sources, sources

NAME = "pretraining"
N_BEST = 2  # heads of each kind to ablate
COLORS = ("#000000", "#D55E00", "#0072B2", "#CC79A7", "#56B4E9", "#999999", "#009E73")
ABLATED = {"structured": "the best heads of each kind ablated", "other": "as many other heads ablated"}


def on_lego(**dials):
    """Training on LEGO, the same from all beginnings: chains of 2 to 12 clauses."""
    return train.Config(**compact(**{**dict(
        min_clauses=2, batch_size=256, lr=1e-3, muon_lr=6e-3, warmup_steps=50, max_steps=1300, eval_every=50,
        out_dir=""), **dials}))


def ablate(source, to, heads):
    """Writes a checkpoint like that of the config `source` into a folder, with uniform attention in some heads."""
    train.make_folder(to)
    checkpoint, n_channels = train.read_checkpoint(source.out_dir), source.n_embd // source.n_head
    for layer, head in heads:  # no query and no key, and no gradient for them: the head stays uniform
        for name in ("query.weight", "query.bias", "key.weight", "key.bias"):
            checkpoint["model"][f"blocks.{layer}.attn.{name}"][head * n_channels :][:n_channels] = 0
    train.write(Path(to) / "checkpoint.pt", lambda beside: torch.save(checkpoint, beside))


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


def final(history, n_evaluations=3):
    """Mean accuracy of the supervised variables over the last evaluations together, in percent."""
    n = history["config"]["n_supervised"]
    return 100 * torch.tensor(history["accuracy"])[-n_evaluations:, :n].mean().item()


def draw(runs):
    from matplotlib.figure import Figure

    figure = Figure(figsize=(19, 9.5), layout="constrained")
    panels = figure.subplots(2, 4)
    found = {}
    for axes, (label, histories) in zip(panels.flatten(), runs.items()):
        train.draw_accuracy(axes, histories)
        ends = [f"{end:.0f}" for end in sorted(map(final, histories))]
        found[label] = f"{ends[0]}%" if ends[0] == ends[-1] else f"{ends[0]} to {ends[-1]}%"
        axes.set_title(f"from {label}\nthe six supervised end at {found[label]} on average", fontsize=10)
    axes = panels[1, 3]
    for (label, histories), color in zip(runs.items(), COLORS):
        n = histories[0]["config"]["n_supervised"]
        means = 100 * torch.tensor([history["accuracy"] for history in histories])[:, :, :n].mean(2)  # (runs, steps)
        alone = "" if len(histories) > 1 else f" (1 seed, batches of {histories[0]['config']['batch_size']})"
        axes.plot(histories[0]["step"], means.mean(0), color=color, label=label + alone, linewidth=2,
                  linestyle="--" if alone else "-")
        axes.fill_between(histories[0]["step"], means.amin(0), means.amax(0), color=color, alpha=0.15, linewidth=0)
    axes.axhline(50, color="gray", linestyle=":")  # chance
    axes.set(xlabel="training steps on LEGO", ylabel="mean accuracy of the six supervised (%)", ylim=(0, 101.5),
             xlim=(0, None))
    axes.legend(loc="lower right", frameon=False, fontsize=8, title="all of them, begun from")
    handles, labels = panels[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, title="variable, in chain order", loc="outside lower center", ncols=len(labels),
                  frameon=False)
    histories = next(iter(runs.values()))
    history, c = histories[0], histories[0]["config"]
    figure.suptitle(
        "What a vanilla Transformer begins from decides how soon it learns LEGO: the six supervised variables end at\n"
        + ", ".join(f"{end} from {label}" for label, end in list(found.items())[:5]) + "\n"
        "mimicking: first trained to attend to identical tokens and to neighbours, without labels; text: first trained "
        "to guess hidden words; ablated: those heads attend uniformly\n"
        f"{c['n_clauses']} clauses over {c['n_names']} names (in training {c['min_clauses']} to {c['n_clauses']}), "
        f"{c['n_layer']} layers, width {c['n_embd']} (MiniLM: 384); mean of {len(histories)} seeds (MiniLM: 1), the "
        f"band from worst to best; {history['hardware']} a run", fontweight="bold", fontsize=11)
    return figure


def main(arguments):
    if arguments:
        raise ValueError(f"'{arguments[0]}': expected no argument")
    runs = groups()
    missing = [label for label, histories in figures.found(NAME, runs).items() if not all(histories)]
    if not Path(MINILM).exists() and any("MiniLM" in label for label in missing):
        print(f"without MiniLM: there is no {MINILM}; how to get it is told at the top of figures/heads.py")
        runs = {label: configs for label, configs in runs.items() if "MiniLM" not in label}
    if any(label in runs for label in missing):
        make_sources()
        for seed in SEEDS:
            make_ablated(seed)
        figures.train_all(NAME, runs, parallel=True)
    figures.redraw(NAME, draw)


if __name__ == "__main__":
    lego.command_line(main)
