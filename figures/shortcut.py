"""
The shortcut: a model that is 100% right on the last variable of a chain, and does not follow the chain.

Claim (the paper's): in some settings the model finds a shortcut, which impairs its robustness, and there are ways to
prevent it. In `sign` the last variable of a whole chain is the parity of all minus signs: it can be had by counting,
without a look at any name. No other variable can, and none in `d3`, where the order matters.

    python -m figures.shortcut          38 runs, 90 minutes on 2 cores

`--preset=vanilla` (6 clauses over 6 names, all labelled, 3 layers, width 64) for 2,400 steps, 5 seeds, and with each
cure, 3 seeds; LEGO attention untied for 600 steps, tied as in train.py for 300; d3 with batches of 256 for 2,000. As
they train, `interfere` asks the models about sentences where counting fails.
"""
import torch

from figures import runner, show
import lego
import train

NAME = "shortcut"
SEEDS = range(5)
N_DISTRACTOR = 2  # clauses of the second chain that a test puts in the place of the last two of the first


def dials(**more):
    """Every one of six variables labelled, over six names: the compact BERT of generalisation.py, run for longer."""
    return {**train.PRESETS["vanilla"], "stop_at": 0.0, "out_dir": "", "max_steps": 2400, "eval_every": 100, **more}


def mimicking(seed):
    """What the cure `mimicking` begins from: 300 steps of attending as the two patterns do, without a label."""
    return train.Config(**dials(task="mimic", lr=2e-3, muon_lr=2e-2, schedule="linear", max_steps=300, seed=seed,
                                out_dir=f"out/shortcut-mimicking-{seed}"))


LEGO = dict(n_clauses=6, n_supervised=6, n_names=6, out_dir="", eval_every=50)
UNTIED_LEGO = dict(LEGO, tied=False, branch=0.0, n_layer=6, batch_size=128, eval_size=500, schedule="constant",
                   max_steps=600)
CURES = {  # label: in the words of the picture
    "nothing": "no cure: vanilla, whole chains",
    "distractors": "second chains in training",
    "lengths": "chains of 2 to 6 clauses",
    "dropped": "every other batch lacks a clause",
    "tying": "tied layers",
    "mimicking": "begun from mimicking",
    "mimicking, distractors": "... and second chains in training",
    "untied LEGO": "LEGO attention, untied",
    "state": "LEGO, tied: hands on its state",
    "beliefs": "LEGO, tied: hands on beliefs",
    "beliefs, graphs": "... and graphs in training: train.py",
}


def groups():
    """{label: [config of every seed]}"""
    three = SEEDS[:3]
    beside = dict(n_distractor=N_DISTRACTOR)
    begun = {seed: dict(seed=seed, init_from=mimicking(seed).out_dir) for seed in three}
    return {
        "nothing": [train.Config(**dials(seed=seed)) for seed in SEEDS],
        "distractors": [train.Config(**dials(**beside, seed=seed)) for seed in three],
        "lengths": [train.Config(**dials(min_clauses=2, seed=seed)) for seed in three],
        "dropped": [train.Config(**dials(drop_clause=0.5, seed=seed)) for seed in three],
        "tying": [train.Config(**dials(tied=True, carry="none", seed=seed)) for seed in three],
        "mimicking": [train.Config(**dials(**begun[seed])) for seed in three],
        "mimicking, distractors": [train.Config(**dials(**beside, **begun[seed])) for seed in three],
        "untied LEGO": [train.Config(**UNTIED_LEGO, seed=seed) for seed in three],
        "state": [train.Config(**LEGO, carry="state", branch=0.0, seed=seed) for seed in three],
        "beliefs": [train.Config(**LEGO, carry="beliefs", branch=0.0, seed=seed) for seed in three],
        "beliefs, graphs": [train.Config(**LEGO, carry="beliefs", branch=1.0, seed=seed) for seed in three],
        "d3": [train.Config(**dials(task="d3", batch_size=256, max_steps=2000, seed=seed)) for seed in three],
    }


def prepare(configs):
    """Trains what the configs begin from."""
    begun = {config.init_from for config in configs}
    runner.make_checkpoints([source for source in map(mimicking, SEEDS[:3]) if source.out_dir in begun])


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
    What a model makes of sentences where counting fails, the same ones at every call:

        whole           accuracy of every variable of chains of full length
        beside          accuracy of every variable of a shorter chain, beside a second one, in as many clauses
        beside_count    share of these in which the last variable's answer is what counting all operations gives
        beside_differ   accuracy of the last variable in those of them where counting gives another value than the truth
    """
    task, n = train.make_task(config), config.n_clauses
    generator = torch.Generator(train.pick_device(config.device)).manual_seed(2**31)
    whole = lego.sample(task, size // 2, n, generator)
    beside = lego.sample(task, size, n - N_DISTRACTOR, generator, n_distractor=N_DISTRACTOR)
    n_loops = None if config.carry == "none" else n + 4  # one for each link, and some to spare
    answers, answers_beside = (show.predict(model, batch, n_loops) for batch in (whole, beside))
    right, counted = answers_beside == beside.values, count_operations(beside.tokens, task)
    return dict(
        whole=(answers == whole.values).float().mean(0).tolist(),
        beside=right.float().mean(0).tolist(),
        beside_count=(answers_beside[:, -1] == counted).float().mean().item(),
        beside_differ=right[counted != beside.values[:, -1], -1].float().mean().item())


def run(config):
    return train.train(config, look=interfere)


def steps_until(history, variable, at=0.99):
    """The first evaluation at which a variable has this accuracy; None if there is none."""
    known = [step for step, accuracy in zip(history["step"], history["accuracy"]) if accuracy[variable] >= at]
    return known[0] if known else None


def draw(runs):
    base = runs["nothing"]
    c, steps = base[0]["config"], base[0]["step"][1:]
    over_training = {key: [[100 * pick(look) for look in history["looks"]] for history in base] for key, pick in
                     (("whole", lambda look: look["whole"][-1]), ("differ", lambda look: look["beside_differ"]))}
    ends = {label: [100 * history["looks"][-1]["beside_differ"] for history in runs[label]]
            for label in CURES if label in runs}
    figure, ((order, answers, cures),) = show.picture(
        f"{min(run[-1] for run in over_training['whole']):.0f}% right by counting minus signs: where the count is "
        f"wrong, the model is {show.span(ends['nothing'])}% right", 1, 3, 12, 4.8,
        f"vanilla attention, {c['n_clauses']} clauses over {c['n_names']} names, all labelled, {c['n_layer']} layers, "
        f"width {c['n_embd']}; the count is wrong where two of the clauses are a second chain, and "
        f"its minus signs are odd in number; a dot or a thin line is a seed, a thick one the mean; "
        f"{base[0]['hardware']} a run")
    variables = range(1, c["n_clauses"] + 1)
    show.lines(order, variables, [[steps_until(history, v - 1) for v in variables] for history in base], show.BLUE,
               marker="o", markersize=4)
    order.set(title="the last one comes before the middle", xlabel="variable, in chain order",
              ylabel="training steps until it is 99% right", ylim=(0, None), xticks=variables)
    for key, color in (("whole", show.BLUE), ("differ", show.RED)):
        show.lines(answers, steps, over_training[key], color)
    answers.set(title="right, and for the wrong reason", xlabel="training steps", ylim=(-2, 102), xlim=(0, steps[-1]),
                ylabel="the last variable is right (%)")
    answers.text(0.97, 0.87, "in whole chains", color=show.BLUE, ha="right", transform=answers.transAxes)
    answers.text(0.97, 0.32, "where the count is wrong", color=show.RED, ha="right", transform=answers.transAxes)
    show.dots(cures, [(CURES[label], numbers, show.RED) for label, numbers in ends.items()])
    cures.set(title="what cures it", xlabel="right where the count is wrong (%)", ylabel="cure",
              xlim=(0, 100))
    show.mark(answers, 50, place=0.35)
    show.mark(cures, 50, vertical=True)
    return figure


if __name__ == "__main__":
    runner.main(NAME, draw, groups, run, prepare)
