"""
The key plot: the default learns every variable of a chain, and then is proved right on every sentence.

Ours, after the paper's claim that Transformers learn to follow a chain of reasoning, and tied ones go
on beyond the labelled variables.

    python -m figures.learning        10 seeds of python train.py, 5 of --task=d3: 5 minutes on 2 cores

At every evaluation the cases of the proof are counted that are still wrong, see model.prove.
"""
import statistics

import lego
import train
from figures import runs, show
from model import prove

TASKS = {"sign": (10, 2), "d3": (5, 10)}  # seeds, and steps between evaluations
COLORS = {"sign": show.BLUE, "d3": show.RED}


def run(config):
    """The history of a run, with `wrong`: the share of all cases that is wrong at every evaluation."""
    wrong = []

    def evaluate(model, config, step):
        proof = prove(model, lego.make_task(config.task))
        wrong.append(proof["n_wrong"] / proof["n_cases"])
        return train.evaluate(model, config, step)

    return dict(train.train(config, evaluate=evaluate), wrong=wrong)


def ends(histories):
    """A line of the notebook: when the runs are proved."""
    proved = [history for history in histories if train.is_proved(history)]
    steps = [history["step"][-1] for history in proved]
    seconds = [history["seconds"][-1] for history in proved]
    return (f"proved in {len(proved)} of {len(histories)} seeds, all {proved[0]['proof']['n_cases']:,} cases, "
            f"after {show.span(steps)} steps (median {statistics.median(steps):.0f}), "
            f"{show.span(seconds, '{:.1f}')} s of training (median {statistics.median(seconds):.1f})")


def main():
    found = runs.get("learning", {
        task: [train.Config(task=task, eval_every=every, seed=seed, out_dir="") for seed in range(n_seeds)]
        for task, (n_seeds, every) in TASKS.items()}, run)
    for task, histories in found.items():
        print(f"{task}: {ends(histories)}")

    everyone = [history for histories in found.values() for history in histories]
    n_proved = sum(map(train.is_proved, everyone))
    figure, ((wave, proof),) = show.picture(
        f"From 6 labels of 12 to a proof for every sentence: {n_proved} of {len(everyone)} runs", 1, 2, 13, 4.8,
        "The default of train.py. Left: chains of 12, a line is a variable, mean of 10 seeds, the band from worst "
        "to best. Right: the share of all cases that a clause can meet which the model gets wrong; a line is a "
        f"seed, its dot the proof that none is left. {found['sign'][0]['hardware']} a run")
    train.draw_accuracy(wave, found["sign"])
    wave.set_title("sign: the variables come one after the other")
    for task, histories in found.items():
        for history in histories:
            percent = [100 * share for share in history["wrong"]]
            proof.plot(history["step"], percent, color=COLORS[task], linewidth=1, alpha=0.6)
            if train.is_proved(history):
                proof.plot(history["step"][-1], percent[-1], "o", color=COLORS[task], clip_on=False)
    for task, at in (("sign", (0.03, 0.6)), ("d3", (0.42, 0.38))):
        proof.text(*at, task, color=COLORS[task], fontweight="bold", transform=proof.transAxes)
    proof.set(xlabel="training steps, of 32 sentences each", ylabel="cases that are wrong (%)", ylim=(0, None),
              xlim=(0, None), title="and then no case is wrong")
    figure.savefig(runs.FOLDER / "learning.png", dpi=150)


if __name__ == "__main__":
    main()
