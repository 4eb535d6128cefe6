"""
A test that any model can take: fixed sentences along axes on which a model that has learned a shortcut falls apart.

    python -m figures.benchmark             the default of train.py, 3 seeds: a table, no picture; 3 minutes on 2 cores
    python -m figures.benchmark FOLDER      a run of train.py, any dials: a minute or two

    from figures import benchmark
    rows = benchmark.take(lambda ids: head(encoder(embedding(ids))))    # made of torch.nn.TransformerEncoder, say
    rows = benchmark.take(lambda ids: model(input_ids=ids).logits)      # a Hugging Face model that classifies tokens
    print(benchmark.table({"mine": rows}))

A model is given token ids (B, T), those of lego.make_task(task, 1024), and returns logits (B, T, values). The value of
a variable is read at its left-hand side. Train it on what you like, lego.sample makes sentences. The sentences of this
test are a function of VERSION and the task: numbers of one version can be compared.
"""
import hashlib
import sys
import zlib

import torch
from tqdm import tqdm

import lego
import train
from figures import runner, show
from figures.shortcut import count_operations

NAME = "benchmark"
VERSION = 1
N_NAMES = 1024
SPARE = 20  # loops beyond the depth of the deepest variable: hubs that many clauses take settle slowly
NOT_ASKED = "not asked: no chain of the length before was right"
SEEDS = range(3)
FOREST = lambda n, length: dict(parents=[i if i % length else 0 for i in range(n)])  # chains side by side
TESTS = {  # axis: {test: number of sentences, of clauses, and the graph}
    "length": {f"chain of {n:,}": (size, n, {}) for n, size in
               ((6, 200), (12, 200), (26, 100), (100, 40), (300, 15), (1000, 5))},
    "branches": {"tree of 26, few branches": (100, 26, dict(branch=0.1)), "tree of 26": (100, 26, dict(branch=0.3)),
                 "any graph of 26": (100, 26, dict(branch=1.0)), "tree of 100": (40, 100, dict(branch=0.3)),
                 "star of 10": (100, 10, dict(parents=[0] + 9 * [1])),
                 "star of 25": (100, 25, dict(parents=[0] + 24 * [1]))},
    "roots": {"2 chains of 12": (100, 24, FOREST(24, 12)), "4 chains of 6": (100, 24, FOREST(24, 6))},
    "names": {"chain of 12, names v500 to v525": (200, 12, {})},
    "shortcut": {"chain of 5 and a branch, where counting signs is wrong": (200, 6, dict(parents=[0, 1, 2, 3, 4, 2]))},
}


def sentences(axis, test, task_name="sign") -> lego.Batch:
    """The sentences of a test, always the same."""
    size, n, graph = TESTS[axis][test]
    task = lego.make_task(task_name, max(26, n))
    generator = torch.Generator().manual_seed(zlib.crc32(f"{VERSION} {task_name} {test}".encode()))
    batch = lego.sample(task, 4 * size if axis == "shortcut" else size, n, generator, **graph)
    if axis == "names":
        is_name = batch.tokens >= task.first_name
        batch = batch._replace(tokens=batch.tokens + 500 * is_name)
    if axis == "shortcut":  # the deepest variable is not what all operations make
        last = batch.depths.argmax(1, keepdim=True)
        wrong = count_operations(batch.tokens, task) != batch.values.gather(1, last)[:, 0]
        batch = lego.Batch(*(x[wrong][:size] for x in batch))
    return batch


def checksum(task_name="sign") -> str:
    """Of all sentences and their values: that of a version does not change."""
    digest = hashlib.sha256()
    for axis in TESTS:
        for test in TESTS[axis]:
            for x in sentences(axis, test, task_name)[:3]:
                digest.update(x.numpy().astype("<i8").tobytes())
    return digest.hexdigest()


@torch.no_grad()
def take(model, task_name="sign", loops=False, device="cpu", size=20, spare=SPARE) -> dict:
    """
    Puts all sentences to a model, a callable from ids (B, T) to logits (B, T, values); with `loops` it is called with a
    number of loops, too, `spare` more than the deepest variable needs. {axis: {test: [sentences, those right in every
    variable, accuracy of the worst variable]}}; in place of a list what the model says if it can't take a test, or that
    it was not asked: a chain of 100 or more, if it has none of the next shorter ones right.
    """
    rows, bar = {}, tqdm(total=sum(map(len, TESTS.values())), desc="tests", leave=False, disable=not sys.stderr or None)
    for axis in TESTS:
        rows[axis] = {}
        for test in TESTS[axis]:
            bar.update()
            batch, right = sentences(axis, test, task_name), []
            if axis == "length" and len(rows[axis]) >= 3:  # from 100 on
                *_, row = rows[axis].values()
                if isinstance(row, str) or not row[1]:
                    rows[axis][test] = NOT_ASKED
                    continue
            more = (int(batch.depths.max()) + spare,) if loops else ()
            try:
                for part in map(lego.Batch._make, zip(*(x.to(device).split(size) for x in batch))):
                    logits = model(part.tokens, *more)
                    found = logits.gather(1, part.positions[..., None].expand(-1, -1, logits.size(-1))).argmax(-1)
                    right.append((found == part.values).cpu())
                right = torch.cat(right)
                rows[axis][test] = [len(right), int(right.all(1).sum()), right.float().mean(0).min().item()]
            except (IndexError, RuntimeError, ValueError) as error:
                rows[axis][test] = (str(error).splitlines() or [repr(error)])[0]
    bar.close()
    return rows


def in_words(row) -> str:
    """One cell: sentences right in %; where all are, what that many say about the rest, at 95% confidence."""
    if isinstance(row, str):
        return "not asked" if row == NOT_ASKED else "can't"
    asked, right, worst = row
    if right == asked:
        return f"all (more than {100 * 0.05 ** (1 / asked):.1f})"
    return f"{100 * right / asked:.3g}, worst variable {100 * worst:.0f}"


def table(models) -> str:
    """A table in Markdown of {name: what `take` returned}."""
    lines = [f"| sentences right in every variable (%) | asked | {' | '.join(models)} |",
             "|---" * (2 + len(models)) + "|"]
    for axis in TESTS:
        for test, (size, *_) in TESTS[axis].items():
            lines.append(f"| {axis}: {test} | {size} | "
                         + " | ".join(in_words(rows[axis][test]) for rows in models.values()) + " |")
    return "\n".join(lines)


def take_run(config, model) -> dict:
    """The rows of a model of train.py."""
    spare = SPARE if config.carry != "none" else config.n_layer - config.n_supervised  # as many as in training
    return take(model, config.task, config.tied, model.head.weight.device.type, spare=spare)


def main(arguments):
    if len(arguments) > 1:
        raise ValueError(f"'{arguments[1]}': expected the folder of one run, or nothing")
    if arguments:
        checkpoint = train.read_checkpoint(arguments[0])
        config = train.Config(**checkpoint["config"])
        return print(table({arguments[0]: take_run(config, train.make_model(config, checkpoint["model"]))}))
    numbers = dict(version=VERSION, hardware=show.hardware(torch.device("cpu")), torch=str(torch.__version__), runs={})
    for seed in SEEDS:
        config = train.Config(seed=seed, out_dir="", device="cpu")
        model = train.make_model(config)
        history = train.train(config, model)
        numbers["runs"][f"default, seed {seed}"] = dict(config=history["config"], flops=history["flops"][-1],
                                                        rows=take_run(config, model))
        runner.save(NAME, numbers)
    print(table({name: run["rows"] for name, run in numbers["runs"].items()}))


if __name__ == "__main__":
    lego.command_line(main)
