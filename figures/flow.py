"""
After which layer can the value of each variable be read at its own left-hand side?

Claim (of third parties, on the paper's models): tied Transformers resolve the variables one after
another over their depth, untied ones less so.

    python -m figures.flow              15 runs, after mimicking: half an hour on 2 cores

6 clauses, all labelled, 6 layers or loops, 3 seeds each: vanilla attention, begun from mimicking,
on whole chains of 2 to 6 clauses, or on chains beside a second one of up to 2 clauses, where
counting signs does not help; untied LEGO attention on the latter; the default of train.py, until it
is proved. Probes: ridge regression in closed form on 2,000 new sentences, tested on as many others.
Then a value is changed after a layer, to see whose answers change with it.
"""
import numpy as np
import torch
import torch.nn.functional as F

import lego
import train
from figures import mimic, runs, show
from figures.varied import Varied, draw, vanilla
from model import logits_at


def states_of(model, batch):
    """The states (L, B, n, C) at the positions of a batch, after every layer."""
    at = batch.positions[..., None].expand(-1, -1, model.config.n_embd)
    layers = model.layers(batch.tokens, model.config.n_layer)
    return torch.stack([x.gather(1, at) for x, _ in layers])


@torch.no_grad()
def read_out(model, config, size=2000, ridge=1e-6):
    """
    How well every variable's value can be read from the state at its own left-hand side after every
    layer: a linear probe for each pair of layer and variable, fitted on `size` fresh sentences and
    measured on as many others.

    Returns {"true": [layer][variable], "shuffled": the same for labels of other sentences}, which
    are accuracies. The fit is the closed form of ridge regression on one-hot values.
    """
    generator, device = torch.Generator().manual_seed(2**31), train.pick_device(config.device)
    halves = [train.draw_test(config, size, generator) for _ in range(2)]  # to fit, to measure
    states = [states_of(model, half.to(device)).cpu() for half in halves]  # a CPU has float64
    x, x_test = (F.pad(s.double(), (0, 1), value=1.0).transpose(1, 2) for s in states)  # a bias
    gram = x.mT @ x + ridge * size * torch.eye(x.size(-1))  # (L, n, C + 1, C + 1)
    n_values, accuracy = len(lego.make_task(config.task).values), {}
    in_order, shuffled = torch.arange(size), torch.randperm(size, generator=generator)
    for name, rows in ("true", in_order), ("shuffled", shuffled):
        values, asked = (half.values[rows].T for half in halves)  # (n, B)
        weight = torch.linalg.solve(gram, x.mT @ F.one_hot(values, n_values).double())
        right = (x_test @ weight).argmax(-1) == asked  # (L, n, B)
        accuracy[name] = right.double().mean(-1).tolist()
    return accuracy


@torch.no_grad()
def patch(model, config, size=200):
    """
    What a value does once it is known. Of two sentences that differ in the sign of the first
    clause, so in every value, the state after a layer at one left-hand side, and with it the fact
    that a loop hands on there, is put from the second into the first. Returns [layer][variable put
    in][variable asked in the end], the share of answers that are the second's.
    """
    task, generator = lego.make_task(config.task), torch.Generator().manual_seed(2**31 + 1)
    batch = train.draw_test(config, size, generator).to(model.head.weight.device)
    signs, both = batch.positions[:, :1] + 2, sum(map(task.vocab.index, task.operations))
    other = batch.tokens.scatter(1, signs, both - batch.tokens.gather(1, signs))  # b = - a ;
    others = [x for x, _ in model.layers(other, config.n_layer)]
    rows, flips = torch.arange(size), np.zeros((config.n_layer, config.n_clauses, config.n_clauses))
    for layer, variable in np.ndindex(flips.shape[:2]):
        at = batch.positions[:, variable]  # (B,)
        for i, (x, _) in enumerate(model.layers(batch.tokens, config.n_layer)):
            if i == layer:
                x[rows, at] = others[layer][rows, at]  # in place: the next layer reads it
        answers = logits_at(model, x, batch.positions).argmax(-1)  # (B, n)
        flips[layer, variable] = (answers != batch.values).float().mean(0).cpu()
    return flips.tolist()


def run(config):
    """The history of a run, with what `read_out` and `patch` find in the end."""
    model = train.make_model(config)
    history = train.train(config, model, draw=draw)
    return history | dict(looks=[read_out(model, config)], patch=patch(model, config))


def first_layers(history, at=0.9):
    """The layer after which each variable can first be read in the end, from 1 on; None: none."""
    known = np.array(history["looks"][-1]["true"]) >= at  # (L, n)
    return [int(layers.argmax()) + 1 if layers.any() else None for layers in known.T]


def table(found):
    """Lines of figures/README.md: which answers change with variable 1, after each layer."""
    lines = []
    for label, histories in found.items():
        for seed, history in enumerate(histories):
            read = " ".join(str(layer or "-") for layer in first_layers(history))
            changed = [[i for i, share in enumerate(layer[0], 1) if share > 0.5]
                       for layer in history["patch"]]
            lines.append(f"{f'{label}, seed {seed}':<48}read: {read:<13}changes: "
                         + "  ".join(",".join(map(str, those)) or "-" for those in changed))
    return lines


def heat(panel, share, title):
    """One panel: shares in % (L, n), one for each layer and variable."""
    n_layer, n = share.shape
    panel.set(xlabel="variable, in chain order", ylabel="read after layer", title=title,
              xticks=range(1, n + 1), yticks=range(1, n_layer + 1))
    return panel.imshow(share, cmap="Blues", vmin=50, vmax=100, origin="lower",
                        extent=(0.5, n + 0.5, 0.5, n_layer + 0.5))


def main():
    deep = dict(n_layer=6, max_steps=1600, eval_every=400)
    whole, beside = dict(min_clauses=2), dict(min_clauses=3, n_distractor=2)
    begun = lambda kind, seed: dict(init_from=f"out/mimicking-{kind}-6-{seed}", seed=seed)
    six = dict(n_clauses=6, n_supervised=6, n_names=6, n_layer=6, out_dir="")
    untied = dict(six, tied=False, batch_size=128, eval_size=500, lr=4e-3, muon_lr=4e-2, ema=0.95,
                  schedule="constant", max_steps=1600, stop_at=0.0, eval_every=200)
    groups = {
        "default": [train.Config(**six, seed=s) for s in range(3)],
        "LEGO, chained; beside": [Varied(**untied, **beside, seed=s) for s in range(3)],
        "vanilla, untied; beside": [
            vanilla(**deep, **beside, **begun("untied", s)) for s in range(3)],
        "vanilla, untied; whole, from mimicking": [
            vanilla(**deep, **whole, **begun("untied", s)) for s in range(3)],
        "vanilla, tied; whole, from mimicking": [
            vanilla(**deep, **whole, **begun("tied", s), tied=True) for s in range(3)],
    }
    found = runs.get("flow", groups, run, before=mimic.beginnings(groups))
    print(*table(found), sep="\n")

    titles = {
        "vanilla, untied; whole, from mimicking": "vanilla, whole chains",
        "vanilla, untied; beside": "vanilla, second chains",
        "LEGO, chained; beside": "untied LEGO, second chains",
        "default": "the default",
    }
    last = [show.span([first_layers(history)[-1] or np.inf for history in found[label]])
            for label in titles]
    figure, axes = show.picture(
        f"Where it may count, vanilla attention has the last variable after layer {last[0]}, "
        f"else after {last[1]}", 1, 4, 15, 4.4,
        "6 clauses, all labelled, 6 layers or loops, width 64, mean of 3 seeds, tested on whole "
        "chains; vanilla attention, untied, begins from mimicking. A linear probe reads a variable "
        "where it is defined; a dot is the first layer after which a seed's probe is 90% right")
    for panel, (label, title) in zip(axes[0], titles.items()):
        accuracy = 100 * np.mean([history["looks"][-1]["true"] for history in found[label]], 0)
        read = heat(panel, accuracy, title)
        for i, history in enumerate(found[label]):
            layers = [layer or np.nan for layer in first_layers(history)]
            panel.plot(np.arange(1, 7) + 0.2 * (i - 1), layers, "o", color=show.ORANGE,
                       markeredgecolor="black", markersize=6)
    bar = figure.colorbar(read, ax=axes[0], label="its value can be read (%)", ticks=[50, 100])
    bar.ax.set_yticklabels(["50\nchance", "100"])
    figure.savefig(runs.FOLDER / "flow.png", dpi=150)


if __name__ == "__main__":
    main()
