"""What a run shows: its plot, and sentences with the model's answers beside the truth. train.py calls these."""
import inspect
import itertools
import platform
import re
import textwrap
from bisect import bisect_right
from dataclasses import dataclass

import numpy as np
import torch

import lego
from figures.text import Corpus
from model import loss_of

BLUE, ORANGE, GREEN, PINK, SKY, RED, GRAY = (  # told apart by readers who are colour-blind (Okabe and Ito)
    "#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#666666")


def picture(title, n_rows=1, n_columns=1, width=9.0, height=4.6, caption=""):
    """A figure of one message: (figure, array of its axes). The title is the finding, the caption names the dials."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    axes = figure.subplots(n_rows, n_columns, squeeze=False)
    figure.suptitle(title, fontweight="bold", fontsize=12)
    if caption:
        figure.supxlabel(textwrap.fill(caption, int(14 * width)), fontsize=8, color=GRAY)
    for panel in axes.flat:
        panel.spines[["top", "right"]].set_visible(False)
    return figure, axes


def label_ends(axes, ends, gap=0.045):
    """Writes labels at the right ends of lines, moved apart where they would overlap: [(y, text, colour), ...]."""
    taken, (x, _) = -1.0, (axes.get_xlim(), axes.get_ylim())  # asking for them settles the limits
    for y, text, color in sorted(ends):
        place = axes.transAxes.inverted().transform(axes.transData.transform((x[1], y)))[1]  # a share of the height
        taken = max(place, taken + gap)
        axes.annotate(text, (1, taken), xytext=(5, 0), xycoords="axes fraction", textcoords="offset points",
                      color=color, va="center", fontsize=9, annotation_clip=False)


def mark(axes, value, text="chance", vertical=False, place=0.99):
    """A dotted line at a value to compare with, and its name, at a share `place` of the other axis."""
    (axes.axvline if vertical else axes.axhline)(value, color=GRAY, linestyle=":", linewidth=1, zorder=0)
    at, shift = ((value, place), (3, 0)) if vertical else ((place, value), (0, 2))
    axes.annotate(text, at, xytext=shift, textcoords="offset points", fontsize=8, color=GRAY,
                  xycoords=("data", "axes fraction") if vertical else ("axes fraction", "data"),
                  ha="left" if vertical else "right", va="top" if vertical else "bottom")


def dots(axes, rows, never=None):
    """
    A dot plot: for each (label, numbers, colour), from the top down, a row with a dot for each number, and an open one
    at `never` for each None.
    """
    for y, (_, numbers, color) in enumerate(rows):
        for i, number in enumerate(numbers):
            style = dict(fillstyle="none") if number is None else dict(markeredgewidth=0)
            axes.plot(never if number is None else number, y + 0.16 * (i - (len(numbers) - 1) / 2), "o", color=color,
                      markersize=7, alpha=0.75, clip_on=False, **style)
        axes.axhspan(y - 0.5, y + 0.5, color=GRAY, alpha=0.08 * (y % 2), linewidth=0)
    axes.set_yticks(range(len(rows)), [label for label, *_ in rows])
    axes.tick_params(axis="y", length=0)
    axes.set_ylim(len(rows) - 0.5, -0.5)


def lines(axes, x, runs, color):
    """A thin line for each run, (runs, points), and a thick one for their mean."""
    runs = np.array(runs, dtype=float)
    axes.plot(x, runs.T, color=color, linewidth=0.8, alpha=0.5)
    axes.plot(x, runs.mean(0), color=color, linewidth=2.2)


def span(numbers, form="{:.0f}") -> str:
    """'12 to 34', or '12' if both ends read the same."""
    return " to ".join(dict.fromkeys(form.format(end) for end in (min(numbers), max(numbers))))


def draw_accuracy(axes, histories):
    """The test accuracy of every variable over training: mean of runs that differ in the seed, worst to best shaded."""
    from matplotlib import colormaps

    config, steps = histories[0]["config"], sorted({step for history in histories for step in history["step"]})
    n, n_supervised = config["n_clauses"], config["n_supervised"]
    latest = lambda history, step: history["accuracy"][bisect_right(history["step"], step) - 1]  # solved runs skip some
    runs = 100 * np.array([[latest(history, step) for step in steps] for history in histories])  # (runs, steps, n)
    chance = 100 / len(lego.make_task(config["task"]).values)
    for i in range(n):
        color, labelled = colormaps["viridis"](0.9 * i / max(1, n - 1)), i < n_supervised
        is_named = i % (1 + (n - 1) // 12) == 0 or i in (n_supervised, n - 1)  # a legend of 14 lines at most
        axes.plot(steps, runs[:, :, i].mean(0), color=color, linewidth=2, linestyle="-" if labelled else "--",
                  label=f"{i + 1}{'' if labelled else ', unlabelled'}" if is_named else None)
        axes.fill_between(steps, runs[:, :, i].min(0), runs[:, :, i].max(0), color=color, alpha=0.08, linewidth=0)
    mark(axes, chance, f"chance, {chance:.3g}%")
    axes.set(xlabel=f"training steps, of {config['batch_size']} sentences each", ylabel="test accuracy (%)",
             xlim=(0, max(steps[-1], 1)), ylim=(max(0, min(chance - 10, float(runs.min()) - 2)), 101.5))


def report(history) -> str:
    """The last evaluation in one line; accuracies in %, variables without a label after |."""
    columns = "step", "loss", "test_loss", "accuracy", "seconds"
    step, loss, test_loss, accuracy, seconds = (history[column][-1] for column in columns)
    cells = [f"{100 * a:5.1f}" for a in accuracy] + ["% of the words"] * (history["config"]["task"] == "words")
    if len(cells) > (n := history["config"]["n_supervised"]):
        cells.insert(n, "|")
    loss = "-" if loss is None else f"{loss:.4f}"
    return f"step {step:5d}   {seconds:6.1f} s   loss {loss:>6}   test {test_loss:.4f}   " + " ".join(cells)


def hardware(device) -> str:
    """What a run runs on, for its history: the GPU's name, or the number of CPU threads."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    n = torch.get_num_threads()
    return f"{n} CPU thread{'s' * (n > 1)}, {platform.machine()}" if device.type == "cpu" else device.type


def describe(history) -> str:
    """A run in words: what model, on what machine."""
    c = history["config"]
    return (f"{c['attention']} attention, {'tied' if c['tied'] else 'untied'}, width {c['n_embd']}, "
            f"{history['n_parameters']:,} parameters; {history['seconds'][-1]:.0f} s of training on "
            f"{history['hardware']}; seed {c['seed']}")


def plot(history, path):
    """The plot of a run as PNG: the accuracy of every variable, or for words and mimicking the loss."""
    c, last = history["config"], history["accuracy"][-1]
    if c["task"] not in ("words", "mimic"):
        labelled, others = last[: c["n_supervised"]], last[c["n_supervised"] :]
        at_least = lambda part: "100%" if min(part) == 1 else f"{100 * min(part):.1f}% or better"
        title = f"LEGO {c['task']}: the {len(labelled)} labelled variables end at {at_least(labelled)}"
        title += f", the {len(others)} unlabelled at {at_least(others)}" if others else ""
        figure, ((axes,),) = picture(title, caption=describe(history))
        draw_accuracy(axes, [history])
        axes.legend(title="variable, in chain order", loc="center left", bbox_to_anchor=(1.01, 0.5), frameon=False,
                    fontsize=9)
    else:
        what = "KL(attention || pattern)" if c["task"] == "mimic" else "cross-entropy of a hidden word"
        title = f"the {what} ends at {history['test_loss'][-1]:.3f} nats"
        title += f", {100 * last[0]:.1f}% of the words are right" if last else ""
        figure, ((axes,),) = picture(title, caption=describe(history))
        axes.plot(history["step"][1:], history["loss"][1:], color=SKY, label="training")
        axes.plot(history["step"], history["test_loss"], color=RED, marker="o", markersize=3, label="test")
        axes.legend(frameon=False)
        axes.set(xlabel=f"training steps, of {c['batch_size']} sentences each", ylabel=f"{what} (nats)", ylim=(0, None))
    lego.write(path, lambda beside: figure.savefig(beside, dpi=150, format="png"))
    print(f"wrote {path}")


@torch.no_grad()
def answer(model, task, text, path=None, n_shown=40):
    """
    Prints, for each variable of a sentence in order of depth, what the model says, how sure it is, and the truth; only
    a summary if there are more than n_shown. Draws the beliefs after every loop into `path`, if the model has loops.
    """
    truth, clauses = lego.solve(text, task), {clause[0]: clause for clause in lego.parse(text, task)}
    tokens = lego.encode(text, task)[None].to(model.head.weight.device)  # (1, T)
    order, depth = [*clauses], {task.root_symbol: 0}
    for variable in truth:
        depth[variable] = depth.get(clauses[variable][2], 0) + 1
    positions = [lego.TOKENS_PER_CLAUSE * order.index(variable) for variable in truth]
    loops = max(depth.values()) + 8 if model.config.carry != "none" else None  # one link a loop, and some to spare
    probabilities = torch.stack([model.to_logits(x[0, positions]).softmax(-1) for x, _ in model.layers(tokens, loops)])
    answers, n_loops = probabilities.argmax(-1), len(probabilities)  # (loops, n)
    sure = (answers == answers[-1]) & (probabilities.amax(-1) > 0.9)
    loop = torch.arange(1, n_loops + 1, device=answers.device)
    settled = (~sure * loop[:, None]).amax(0) + 1  # the first loop after the last that gave another answer, or doubted
    width, n_right, known = max(map(len, task.values)), 0, [value for value in truth.values() if value]
    for i, (variable, value) in enumerate(truth.items()):
        said, right = task.values[answers[-1, i]], task.values[answers[-1, i]] == value
        n_right += right
        if len(truth) > n_shown and (right or not value):
            continue
        line = f"{variable:>5}   "
        if value:
            line += f"model {said:>{width}}   probability {probabilities[-1, i].max():.4f}   truth {value:>{width}}   "
            line += f"sure from loop {settled[i]} on   " * (model.config.tied and settled[i] <= n_loops)
            line += "wrong" * (not right)
        else:
            line += f"not determined: {lego.write_clause(*clauses[variable])}, and {clauses[variable][2]} is not known"
        print(line.rstrip())
    last = max(settled[: len(known)].tolist(), default=n_loops + 1)  # what is not determined comes last
    if len(truth) > n_shown:
        print(f"{n_right} of {len(known)} variables are right after {n_loops} loops"
              + f", {len(truth) - len(known)} more are not determined" * (len(truth) > len(known))
              + f"; the model is sure of all from loop {last} on" * (last <= n_loops))
    if path and model.config.tied:
        n_rows, is_followed = min(n_loops, last + 2), last <= n_loops and n_right == len(known)
        labels = [lego.write_clause(*clauses[variable]) + "\nnot\ndetermined" * (not value)
                  for variable, value in truth.items()]
        draw_answer(probabilities[:n_rows].cpu(), labels, task, f"{n_right} of {len(known)} right"
                    + ": each loop follows one more link" * is_followed, path)


def draw_answer(probabilities, clauses, task, title, path):
    """The beliefs (loops, variables, values) of a sentence as a staircase: one row a loop, one column a variable."""
    (sure, value), n_rows, n = probabilities.max(-1), len(probabilities), len(clauses)  # (loops, n)
    figure, ((axes,),) = picture(title, width=min(30, max(6, 0.62 * n + 2.5)),
                                 height=min(30, max(3.2, 0.4 * n_rows + 2)),
                                 caption="What the model believes after each loop. A column is a variable, under it "
                                         "its clause, in order of depth. Dark: sure. White, ?: knows nothing.")
    image = axes.imshow(100 * sure.numpy(), cmap="Blues", vmin=100 / len(task.values), vmax=130, aspect="auto",
                        extent=(0.5, n + 0.5, n_rows + 0.5, 0.5))
    for i, j in itertools.product(range(n_rows), range(n)) if n <= 26 else ():
        is_sure = sure[i, j] > 0.9
        axes.text(j + 1, i + 1, task.values[value[i, j]] if is_sure else "?", ha="center", va="center", fontsize=10,
                  color="white" if is_sure else "gray")
    axes.set(ylabel="after loop", yticks=range(1, n_rows + 1, 1 + n_rows // 30))
    axes.set_xticks(range(1, n + 1), clauses, rotation=0 if n <= 12 else 90) if n <= 60 else axes.set(xlabel="variable")
    figure.colorbar(image, ax=axes, label="probability of the likeliest value (%)",
                    boundaries=range(int(100 / len(task.values)), 101), ticks=[100 / len(task.values), 100])
    lego.write(path, lambda beside: figure.savefig(beside, dpi=120, format="png"))
    print(f"wrote {path}")


@torch.no_grad()
def predict(model, batch, n_loops=None, size=128):
    """The likeliest value at every position, (B, n), for a batch of any size."""
    parts = zip(*(x.split(size) for x in batch))
    return torch.cat([loss_of(model, lego.Batch(*part), n_loops)[2].argmax(-1) for part in parts])


def examples(model, task, batch, n_shown=2):
    """Shows what the model answers: sentences with the most mistakes, or windows of text with their hidden words."""
    n_loops = batch.depths.max().item() + 4 if model.config.carry != "none" else None
    predictions = predict(model, batch, n_loops)
    if isinstance(task, Corpus):
        for tokens, positions, values, guesses in zip(*(x[:n_shown] for x in batch[:3]), predictions):
            words = [task.vocab[t] for t in tokens]
            for position, value, guess in zip(positions, values, guesses):
                if value != lego.IGNORE:
                    wrong = f", not {task.vocab[guess]}" * bool(guess != value)
                    words[position] = f"[{task.vocab[value]}{wrong}]"
            print(textwrap.indent(textwrap.fill(" ".join(words), 112), "    ") + "\n")
        return
    mistakes = (predictions != batch.values).sum(1)
    print(f"{int((mistakes > 0).sum())} of {len(mistakes)} new sentences have a mistake; some of the sentences:")
    for i in mistakes.argsort(descending=True, stable=True)[:n_shown]:
        text = lego.decode(batch.tokens[i], task)
        print(text)
        answer(model, task, text)


def list_dials(config_class) -> str:
    """For --help: a line for each dial, with its default and the comment beside it."""
    dials = re.findall(r"^    (\w+): \w+ = (\S+)(?:  # (.*))?$", inspect.getsource(config_class), re.MULTILINE)
    return "\n".join(f"    {f'--{name}={default}':<24} {comment}" for name, default, comment in dials)


@dataclass
class Options:
    task: str = "sign"
    n_clauses: int = 6


def solutions(arguments):
    """What `python lego.py` does: solves a sentence, or a few random ones."""
    if {"--help", "-h"} & {*arguments}:
        return print(lego.__doc__)
    texts = [argument for argument in arguments if not argument.startswith("--")]
    options = Options(**lego.override([argument for argument in arguments if argument not in texts], Options))
    if len(texts) > 1:
        raise ValueError(f"'{texts[1]}': expected one sentence, --task=NAME and --n_clauses=NUMBER")
    n = options.n_clauses
    task = lego.make_task(options.task, lego.MAX_NAMES if texts else min(max(26, n), lego.MAX_NAMES))
    for text in texts or [lego.decode(ids, task) for ids in lego.sample(task, 3, n).tokens]:
        clauses = {clause[0]: lego.write_clause(*clause) for clause in lego.parse(text, task)}
        print(text)
        for variable, value in lego.solve(text, task).items():
            clause = clauses[variable].ljust(max(map(len, clauses.values())))
            print(f"    {clause}    {variable} is {value or 'not determined'}")
