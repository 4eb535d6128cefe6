"""
The shortcut: a model that is 100% right on the last variable of a chain, and does not follow the chain.

Claim (the paper's): in some settings the model finds a shortcut, which impairs its robustness, and there are ways to
prevent it. In `sign` the last variable of a whole chain is the parity of all minus signs: it can be had by counting,
without a look at any name. No other variable can, and none in `d3`, where the order matters.

    python -m figures.shortcut          49 runs, 1.2 hours on 2 cores

Vanilla attention, 6 layers, width 64, 6 clauses over 6 names, all labelled, 1,600 steps of 128 sentences, 5 seeds: as
it is, and with each cure. LEGO attention, 3 seeds: untied for 600 steps, tied as in train.py for 300. As they train,
`interfere` asks the models about sentences where counting fails: beside a second chain, which brings a second root, and
with a branch, which brings none: two clauses take the same variable.
"""
import torch

from figures import generalisation, runner, show
import lego
import train

NAME = "shortcut"
SEEDS = range(5)
TESTS = {  # sentences of 6 clauses, in half of which the count is wrong for the deepest variable
    "branch": dict(n_clauses=6, parents=[0, 1, 2, 3, 4, 2]),
    "beside": dict(n_clauses=4, n_distractor=2),
}


def vanilla(seed, **dials):
    """Six variables, all labelled, over six names: the compact BERT of train.py, twice as deep."""
    return generalisation.vanilla("untied", seed, **{"n_layer": 6, "max_steps": 1600, **dials})


OF_LEGO = {
    "untied LEGO": dict(tied=False, branch=0.0, n_layer=6, batch_size=128, eval_size=500, schedule="constant",
                        max_steps=600),
    "state": dict(carry="state", branch=0.0),
    "beliefs": dict(branch=0.0),
    "beliefs, graphs": dict(),
}
CURES = {  # label: in the words of the picture
    "nothing": "vanilla, whole chains",
    "mimicking": "... begun from mimicking",
    "distractors": "vanilla, second chains",
    "branches": "vanilla, branches",
    "mimicking, branches": "... begun from mimicking",
    "untied LEGO": "LEGO, untied, whole chains",
    "state": "LEGO, tied: hands on its state",
    "beliefs": "LEGO, tied: hands on beliefs",
    "beliefs, graphs": "... and graphs: train.py",
}
SHALLOW = {  # of an earlier version, with 3 layers and without the test of branches: in figures/README.md alone
    "chains of 2 to 6": dict(min_clauses=2, max_steps=2400),
    "lacking a clause": dict(drop_clause=0.5, max_steps=2400),
    "tied layers": dict(tied=True, max_steps=2400),
    "d3": dict(task="d3", batch_size=256, max_steps=2000),
}


def groups():
    """{label: [config of every seed]}"""
    begun = {seed: dict(init_from=generalisation.mimicking("untied", seed, 6).out_dir) for seed in SEEDS}
    of_lego = lambda **dials: train.Config(n_clauses=6, n_supervised=6, n_names=6, out_dir="", eval_every=50, **dials)
    return {
        "nothing": [vanilla(seed) for seed in SEEDS],
        "distractors": [vanilla(seed, n_distractor=2) for seed in SEEDS],
        "branches": [vanilla(seed, branch=1.0) for seed in SEEDS],
        "mimicking": [vanilla(seed, **begun[seed]) for seed in SEEDS],
        "mimicking, branches": [vanilla(seed, branch=1.0, **begun[seed]) for seed in SEEDS],
        **{label: [of_lego(**dials, seed=seed) for seed in SEEDS[:3]] for label, dials in OF_LEGO.items()},
        **{label: [vanilla(seed, n_layer=3, **dials) for seed in SEEDS[:3]] for label, dials in SHALLOW.items()},
    }


def count_operations(tokens, task) -> torch.Tensor:
    """
    The value (B,) of the operations in whole sentences (B, T), followed in the order of the text: what can be said
    without a look at the names. In `sign`, and where else the order does not matter, it is the value of the last
    variable of a sentence that is one whole chain, which makes it a shortcut: the parity of all minus signs.
    """
    operations = tokens[:, 2::lego.TOKENS_PER_CLAUSE] - task.first_operation  # (B, n)
    in_order = torch.arange(operations.size(1), device=tokens.device).expand_as(operations)
    return lego.follow(task, operations, in_order)[0][:, -1]


def interfere(model, config, size=1000):
    """
    What a model makes of sentences where counting fails, the same ones at every call. For whole chains and for each of
    TESTS, by its name:

        right     accuracy of every variable, in order of depth
        counts    share in which the last variable's answer is what counting all operations gives
        differ    accuracy of the last variable where counting gives another value than the truth; whole chains: none
    """
    task, n_loops = train.make_task(config), None if config.carry == "none" else config.n_clauses + 4
    generator = torch.Generator(train.pick_device(config.device)).manual_seed(2**31)
    look = {}
    for name, test in {"whole": dict(n_clauses=config.n_clauses), **TESTS}.items():
        batch = lego.sample(task, size, generator=generator, **test)
        answers = show.predict(model, batch, n_loops)
        right, counted = answers == batch.values, count_operations(batch.tokens, task)
        differ = right[counted != batch.values[:, -1], -1]
        look[name] = dict(right=right.float().mean(0).tolist(),
                          counts=(answers[:, -1] == counted).float().mean().item(),
                          differ=differ.float().mean().item() if len(differ) else None)
    return look


def run(config):
    return train.train(config, look=interfere)


def last_look(histories, test, what):
    """What `interfere` found of a test in the end, in %, for each seed; of a list the last entry."""
    found = [history["looks"][-1].get(test, {}).get(what) for history in histories]
    return [None if x is None else 100 * (x[-1] if isinstance(x, list) else x) for x in found]


def words(runs):
    """
    Lines of figures/README.md, in % for each seed: the last variable of whole chains; with a branch, how often its
    answer is what counting gives, and how often it is right where that is wrong; beside a second chain, the latter.
    """
    columns = (("whole", "right"), ("branch", "counts"), ("branch", "differ"), ("beside", "differ"))
    in_words = lambda numbers: " ".join("-" if x is None else f"{x:.0f}" for x in numbers)
    return [f"{label:<22}" + "".join(in_words(last_look(runs[label], *column)).ljust(22) for column in columns).rstrip()
            for label in (*CURES, *SHALLOW)]


def draw(runs):
    base = runs["mimicking"]  # learns all six variables in every seed
    c, hardware = base[0]["config"], base[0]["hardware"]
    ends = {label: last_look(runs[label], "branch", "differ") for label in CURES}
    figure, ((whole, answers, cures),) = show.picture(
        f"{show.span(last_look(base, 'whole', 'right'))}% right on whole chains, {show.span(ends['mimicking'])}% where "
        "a branch makes the count of signs wrong", 1, 3, 12.5, 4.8,
        f"vanilla attention, {c['n_clauses']} clauses over {c['n_names']} names, all labelled, {c['n_layer']} layers, "
        f"width {c['n_embd']}, {c['max_steps']} steps; middle: begun from mimicking; the count is wrong where one of "
        "the clauses is a branch with a minus sign; a dot or a line is a seed, 5 of vanilla attention; "
        f"{hardware} a run")
    variables = range(1, c["n_clauses"] + 1)
    for label, color, at in (("nothing", show.BLUE, (0.3, 0.12)), ("branches", show.GREEN, (0.42, 0.9))):
        for history in runs[label]:
            right = [100 * x for x in history["looks"][-1]["whole"]["right"]]
            whole.plot(variables, right, color=color, marker="o", markersize=4, linewidth=1.2, alpha=0.8)
        whole.text(*at, f"trained on {CURES[label].split(', ')[1]}", color=color, transform=whole.transAxes)
    whole.set(title="the last variable before the middle ones", xlabel="variable, in chain order", xticks=variables,
              ylabel="accuracy on whole chains (%)", ylim=(-2, 102))
    for history in base:
        steps, looks = history["step"][1:], history["looks"]
        answers.plot(steps, [100 * look["whole"]["right"][-1] for look in looks], color=show.BLUE, linewidth=1.2)
        answers.plot(steps, [100 * look["branch"]["differ"] for look in looks], color=show.RED, linewidth=1.2)
    answers.set(title="right, and for the wrong reason", xlabel="training steps", ylim=(-2, 102),
                xlim=(0, c["max_steps"]), ylabel="the last variable is right (%)")
    answers.text(0.97, 0.87, "on whole chains", color=show.BLUE, ha="right", transform=answers.transAxes)
    answers.text(0.97, 0.25, "where the count\nis wrong", color=show.RED, ha="right", transform=answers.transAxes)
    show.dots(cures, [(CURES[label], numbers, show.RED) for label, numbers in ends.items()])
    cures.set(title="what cures it", xlabel="right where the count is wrong (%)", ylabel="model, trained on",
              xlim=(0, 100))
    show.mark(whole, 50, place=0.15)
    show.mark(answers, 50, place=0.45)
    show.mark(cures, 50, vertical=True)
    return figure


if __name__ == "__main__":
    runner.main(NAME, draw, groups, run, [generalisation.mimicking("untied", seed, 6) for seed in SEEDS])
