"""
A test that any model can take: sentences on which one that has learned a shortcut falls apart.

    python -m figures.benchmark           15 runs of the default, on sentences of their own
    python -m figures.benchmark FOLDER    a run of train.py, any dials, on the fixed sentences

    from figures import benchmark
    rows = benchmark.take(lambda ids: head(encoder(embedding(ids))))    # of torch.nn
    rows = benchmark.take(lambda ids: model(input_ids=ids).logits)      # of Hugging Face
    print(benchmark.table({"mine": rows}))

A model is given token ids (B, T), those of lego.make_task(task, 1024), and returns logits
(B, T, values). The value of a variable is read at its left-hand side. The fixed sentences are a
function of VERSION and the task: numbers of one version can be compared.
"""
import argparse
import hashlib
import zlib

import torch

import lego
import train
from figures import runs
from model import load

VERSION = 1
SPARE = 20  # loops beyond the deepest variable, for a model that does not say when it is done
NOT_ASKED = "not asked: no chain of the length before was right"
TESTS = {  # axis: {test: sentences, clauses, and the probability to branch, or the graph}
    "length": {f"chain of {n:,}": (size, n, 0.0) for n, size in
               ((6, 200), (12, 200), (26, 100), (100, 40), (300, 15), (1000, 5))},
    "branches": {"tree of 26, few branches": (100, 26, 0.1), "tree of 26": (100, 26, 0.3),
                 "any graph of 26": (100, 26, 1.0), "tree of 100": (40, 100, 0.3),
                 "star of 10": (100, 10, [0] + 9 * [1]), "star of 25": (100, 25, [0] + 24 * [1])},
    "roots": {"2 chains of 12": (100, 24, [i if i % 12 else 0 for i in range(24)]),
              "4 chains of 6": (100, 24, [i if i % 6 else 0 for i in range(24)])},
    "names": {"chain of 12, names v500 to v525": (200, 12, 0.0)},
    "shortcut": {"chain of 5 and a branch, where counting signs is wrong":
                 (200, 6, [0, 1, 2, 3, 4, 2])},
}
ALL = dict(  # what the default is asked
    TESTS,
    branches={"tree of 12, few branches": (200, 12, 0.1), "tree of 12": (200, 12, 0.3),
              "any graph of 12": (200, 12, 1.0), "tree of 100, few branches": (40, 100, 0.1),
              "star of 5": (100, 5, [0] + 4 * [1]), **TESTS["branches"]},
    roots={"chains of 8 and 4": (200, 12, [*range(8), 0, 9, 10, 11]),
           "3 chains of 8": (100, 24, [i if i % 8 else 0 for i in range(24)]), **TESTS["roots"]},
)


def sentences(axis, test, task_name="sign", seed=None) -> lego.Batch:
    """The sentences of a test, always the same; or with a seed others, at most 1,000 clauses."""
    size, n, graph = ALL[axis][test]
    purpose = f"{VERSION} {task_name} {test}"
    if seed is not None:
        size, purpose = min(size, 1000 // n), f"{purpose} {seed}"
    generator = torch.Generator().manual_seed(zlib.crc32(purpose.encode()))
    n_drawn = 4 * size if axis == "shortcut" else size
    if isinstance(graph, list):  # what each variable takes: 0 the root, j + 1 variable j
        parents = torch.tensor(graph).expand(n_drawn, n)
    else:
        parents = lego.random_graphs(n_drawn, n, graph, generator)
    task = lego.make_task(task_name, max(26, n))
    batch = lego.sample(task, parents, generator)
    if axis == "names":
        batch = batch._replace(tokens=batch.tokens + 500 * (batch.tokens >= task.first_name))
    if axis == "shortcut":  # the deepest variable is not what all operations make, in their order
        operations = batch.tokens[:, 2::lego.TOKENS_PER_CLAUSE] - task.first_operation  # (B, n)
        counted = lego.follow(task, operations, torch.arange(n).expand_as(operations))[0][:, -1]
        batch = batch.rows(counted != batch.values[:, -1]).rows(slice(size))
    return batch


def checksum(task_name="sign") -> str:
    """Of all fixed sentences and their values: that of a version does not change."""
    batches = [sentences(axis, test, task_name) for axis in TESTS for test in TESTS[axis]]
    content = b"".join(x.numpy().astype("<i8").tobytes() for batch in batches for x in batch[:3])
    return hashlib.sha256(content).hexdigest()


def take(model, task_name="sign", loops=False, device="cpu", spare=SPARE, seed=None) -> dict:
    """
    Puts TESTS to a model, a callable from ids (B, T) to logits (B, T, values), or with a seed all
    shapes, in other sentences; prints what comes out. With `loops` it is called with a number of
    loops, too: `spare` more than the deepest variable needs.

    {axis: {test: [sentences, those right in every variable, the worst accuracy]}}; a text says why
    the model can't take it, or that it was not asked: a chain of 100 or more after none was right.
    """
    rows, tests = {}, TESTS if seed is None else ALL
    for axis in tests:
        rows[axis], row = {}, None
        for test, (_, n, _) in tests[axis].items():
            if axis == "length" and n >= 100 and (isinstance(row, str) or not row[1]):
                row = NOT_ASKED
            else:
                row = ask(model, sentences(axis, test, task_name, seed), loops, device, spare)
            rows[axis][test] = row
            what = row if isinstance(row, str) else in_words(row)
            print(f"    {axis}: {test}: {what}", flush=True)
    return rows


@torch.no_grad()
def ask(model, batch, loops, device, spare):
    """[sentences, those right in every variable, accuracy of the worst], or what the model says."""
    right, n_loops = [], max(1, int(batch.depths.max()) + spare)
    try:
        for part in batch.to(device).split(20):
            logits = model(part.tokens, n_loops) if loops else model(part.tokens)  # (B, T, values)
            where = part.positions[..., None].expand(-1, -1, logits.size(-1))
            right.append((logits.gather(1, where).argmax(-1) == part.values).cpu())
    except (IndexError, RuntimeError, ValueError) as error:
        return (str(error).splitlines() or [repr(error)])[0]
    right = torch.cat(right)  # (B, n)
    return [len(right), int(right.all(1).sum()), right.float().mean(0).min().item()]


def in_words(row) -> str:
    """Sentences right in %; where all are, what that many say about the rest, at 95% confidence."""
    if isinstance(row, str):
        return "not asked" if row == NOT_ASKED else "can't"
    n, n_right, worst = row
    if n_right == n:
        return f"all (more than {100 * 0.05 ** (1 / n):.1f})"
    return f"{100 * n_right / n:.3g}, worst variable {100 * worst:.0f}"


def table(models) -> str:
    """A table in Markdown of {name: what `take` returned}."""
    lines = [f"| sentences right in every variable (%) | asked | {' | '.join(models)} |",
             "|---" * (2 + len(models)) + "|"]
    for axis in TESTS:
        for test, (size, *_) in TESTS[axis].items():
            cells = [in_words(rows[axis][test]) for rows in models.values()]
            lines.append(f"| {axis}: {test} | {size} | {' | '.join(cells)} |")
    return "\n".join(lines)


def shapes(histories) -> list[str]:
    """Lines of figures/README.md: of each shape the sentences right in every variable."""
    lines = []
    for axis, test in ((axis, test) for axis in ALL for test in ALL[axis]):
        lines.append(f"{test.partition(', where')[0]:<33}")
        for task, found in histories.items():
            rows = [history["rows"][axis][test] for history in found]
            asked, right, _ = zip(*(row for row in rows if row != NOT_ASKED))
            count = f"{sum(right):,} of {sum(asked):,} sentences, {len(asked)} seeds"
            lines[-1] += f"{task}: {count:<40}"
    return [line.rstrip() for line in lines]


def take_run(model, seed=None) -> dict:
    """The rows of a model of train.py."""
    if model.vocab[0] != "=":
        raise lego.InputError("expected a run on sentences of LEGO, this one has other tokens")
    config = model.config
    return take(model, config.task, loops=config.tied and not config.facts, seed=seed,
                spare=config.n_layer - config.n_supervised)  # as many as in training


def run(config):
    """The history of a default, with `rows`, what it has right."""
    model = train.make_model(config)
    history = train.train(config, model)
    return history | dict(rows=take_run(model, config.seed))


def main():
    parser = argparse.ArgumentParser(usage=argparse.SUPPRESS, description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", nargs="?")
    folder = parser.parse_known_args()[0].folder
    if folder:
        try:
            return print(table({parser.parse_args().folder: take_run(load(folder))}))
        except lego.InputError as error:
            parser.error(str(error))
    default = lambda task, seed: train.Config(task=task, seed=seed, out_dir="", device="cpu")
    histories = runs.get("benchmark", {"sign": [default("sign", seed) for seed in range(10)],
                                       "d3": [default("d3", seed) for seed in range(5)]}, run)
    for task, found in histories.items():
        steps = [str(history["step"][-1]) for history in found if train.is_proved(history)]
        print(f"{task}: {len(steps)} of {len(found)} seeds are proved, at step {', '.join(steps)}")
    print(*shapes(histories), sep="\n")


if __name__ == "__main__":
    main()
