"""
Beyond the labelled variables: untied layers (BERT) against tied ones (ALBERT), of vanilla and of LEGO attention.

Claim (the paper's): Transformers learn LEGO when every variable is labelled; when only the first ones are, an untied
model goes little beyond them and a tied one further.

    python -m figures.generalisation        38 runs, 1.2 hours on 2 cores

Vanilla attention, 6 clauses: `--preset=vanilla` with all variables labelled; then the first half labelled, with depth
to spare (6 layers for 3 links), begun from mimicking, on chains of 3 to 6 clauses with second chains beside them; and
tied ones without one of these four. Tied models get more loops at test, too. LEGO attention: the default of train.py,
and the same with 12 untied layers and 600 steps.
"""
import numpy as np

from figures import runner, show
import train

NAME = "generalisation"
SEEDS = range(5)
SPARE = (0, 2, 4, 6)  # loops at test beyond those of training, for tied models
KINDS = {"untied": show.BLUE, "tied": show.RED}
WITHOUT = {  # label: what is taken away
    "no layers to spare": dict(n_layer=3),
    "not begun from mimicking": dict(init_from=""),
    "no second chains": dict(n_distractor=0),
    "no shorter sentences": dict(min_clauses=0),
}


def vanilla(kind, seed, **more):
    """The config of a vanilla model on 6 clauses."""
    return train.Config(**{**train.PRESETS["vanilla"], "tied": kind == "tied", "stop_at": 0.0,
                           "eval_every": 100, "out_dir": "", "seed": seed, **more})


def mimicking(kind, seed, n_layer):
    """What models begin from: 300 steps of attending as the two patterns do, without a label."""
    return vanilla(kind, seed, task="mimic", n_layer=n_layer, lr=2e-3, muon_lr=2e-2, schedule="linear", max_steps=300,
                   out_dir=f"out/mimicking-{kind}-{n_layer}-{seed}")


def half_labelled(kind, seed, n_layer=6, **more):
    """The first 3 variables labelled; layers to spare, begun from mimicking, chains of 3 to 6 beside second ones."""
    return vanilla(kind, seed, **{**dict(n_supervised=3, n_layer=n_layer, min_clauses=3, n_distractor=2, max_steps=2000,
                                         init_from=mimicking(kind, seed, n_layer).out_dir), **more})


def groups():
    """{label: [config of every seed]}"""
    configs = {}
    for kind in KINDS:
        configs[f"{kind}, all labelled"] = [vanilla(kind, seed, eval_every=50) for seed in SEEDS[:3]]
        configs[f"{kind}, half labelled"] = [half_labelled(kind, seed) for seed in SEEDS]
    for label, change in WITHOUT.items():
        configs[f"tied, half labelled, {label}"] = [half_labelled("tied", seed, **change) for seed in SEEDS[:3]]
    of_lego = dict(eval_every=20, out_dir="")
    configs["tied, LEGO attention"] = [train.Config(**of_lego, seed=seed) for seed in SEEDS]
    configs["untied, LEGO attention"] = [
        train.Config(**of_lego, tied=False, n_layer=12, max_steps=600, seed=seed) for seed in SEEDS]
    return configs


def run(config):
    """The history of a run, with `loops`: {loops more than in training: accuracy of every variable at the end}."""
    model = train.make_model(config)
    history = train.train(config, model)
    batch = train.draw_test(config, 2000, train.make_generator(config, "loops", device=model.head.weight.device))
    more = SPARE if config.tied and config.carry == "none" else SPARE[:1]
    n_loops = config.n_clauses + 4 if config.carry != "none" else config.n_layer
    history["loops"] = {k: (show.predict(model, batch, n_loops + k) == batch.values).float().mean(0).tolist()
                        for k in more}
    return history


def final(history, spare=0):
    """The accuracy of every variable in percent at the end, with so many loops more than in training."""
    loops = {int(k): accuracy for k, accuracy in history.get("loops", {"0": history["accuracy"][-1]}).items()}
    return [100 * x for x in loops.get(spare, loops[0])]


def words(runs):
    """Lines of figures/README.md: the labelled variables at the worst, and what comes after them, each seed, in %."""
    lines = []
    for label, histories in runs.items():
        n = histories[0]["config"]["n_supervised"]
        for spare in sorted(int(k) for k in histories[0].get("loops", {"0": None})):
            found = [final(history, spare) for history in histories]
            line = f"{label}{f', {spare} loops more' if spare else ''}: labelled "
            line += ", ".join(f"{min(accuracy[:n]):.0f}" for accuracy in found)
            if len(found[0]) > n:
                line += "; the next " + ", ".join(f"{accuracy[n]:.0f}" for accuracy in found)
                line += "; the last " + ", ".join(f"{accuracy[-1]:.0f}" for accuracy in found)
            lines.append(line)
    return lines


def draw_variables(axes, runs, n_supervised, legend):
    """A dot for every variable and run: {label: (histories, spare loops, colour)}."""
    for i, (label, (histories, spare, color)) in enumerate(runs.items()):
        for k, history in enumerate(histories):
            accuracy = final(history, spare)
            place = np.arange(1, len(accuracy) + 1) + 0.27 * (i - (len(runs) - 1) / 2) + 0.04 * (k - 2)
            axes.plot(place, accuracy, "o", color=color, markersize=4, alpha=0.7, markeredgewidth=0, clip_on=False,
                      label=label if k == 0 else None)
    axes.axvspan(0.5, n_supervised + 0.5, color=show.GRAY, alpha=0.15, linewidth=0)
    show.mark(axes, 50, place=0.3)
    axes.set(xlim=(0.5, len(accuracy) + 0.5), ylim=(0, 101), xlabel="variable, in chain order",
             ylabel="test accuracy (%)")
    axes.legend(frameon=False, loc="lower left", title=legend, fontsize=8)


def draw(runs):
    c, of_all = runs["tied, half labelled"][0]["config"], runs["tied, all labelled"][0]["config"]
    n, half = c["n_clauses"], c["n_supervised"]
    ahead = {kind: [final(history, 2)[half] for history in runs[f"{kind}, half labelled"]] for kind in KINDS}
    figure, axes = show.picture(
        f"The next variable after the labels: untied {show.span(ahead['untied'])}% right, tied, 2 loops more, "
        f"{show.span(ahead['tied'])}%", 1, 4, 17, 4.6,
        f"a dot is a seed, {len(ahead['tied'])} of each kind, 3 where all are labelled or a part is missing; shaded: "
        f"labelled in training; vanilla: {n} clauses, width {c['n_embd']}, {c['n_layer']} layers and "
        f"{c['max_steps']:,} steps, {of_all['n_layer']} and {of_all['max_steps']:,} where all are labelled; LEGO: the "
        "default, or 12 untied layers, "
        f"{runs['untied, LEGO attention'][0]['config']['max_steps']} steps; "
        f"{runs['tied, half labelled'][0]['hardware']} a run")
    everything, beyond, needed, lego_too = axes[0]
    draw_variables(everything, {kind: (runs[f"{kind}, all labelled"], 0, color) for kind, color in KINDS.items()}, n,
                   "vanilla")
    everything.set(title="all labelled")
    draw_variables(beyond, {
        "untied": (runs["untied, half labelled"], 0, show.BLUE),
        f"tied, {c['n_layer']} loops": (runs["tied, half labelled"], 0, show.ORANGE),
        f"tied, {c['n_layer'] + 2} loops": (runs["tied, half labelled"], 2, show.RED)}, half, "vanilla")
    beyond.set(title="half labelled")
    rows = [(label[2:] or "all four", [final(history, 2)[half] for history in runs[f"tied, half labelled{label}"]],
             show.RED) for label in ("", *(f", {label}" for label in WITHOUT))]
    show.dots(needed, rows)
    show.mark(needed, 50, vertical=True)
    needed.set(title="tied, without one of four parts", xlabel=f"variable {half + 1}, 2 loops more, accuracy (%)",
               ylabel="training", xlim=(40, 101))
    draw_variables(lego_too, {kind: (runs[f"{kind}, LEGO attention"], 0, color) for kind, color in KINDS.items()}, 6,
                   "LEGO attention")
    lego_too.set(title="LEGO attention, half labelled")
    return figure


if __name__ == "__main__":
    runner.main(NAME, draw, groups, run,
                [mimicking(kind, seed, n_layer) for kind in KINDS for seed in SEEDS for n_layer in (3, 6)])
