"""
How fast it is: sentences, training steps, and the seconds until the main job is done. A table, and no picture.

    python -m figures.speed       on the GPU if there is one, else on the CPU; 3 minutes

Sentences: lego.sample against two loops over sentences, one through text and a tokenizer as in the official code, one
over lists of token ids, as fast as we could write it. Steps: ours against the same Transformer made of
torch.nn.TransformerEncoder and of transformers.BertModel, taking turns; forward, backward and AdamW, no dropout. The
main job: train.py as it is.
"""
import json
import random
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy
import torch
import torch.nn as nn
import torch.nn.functional as F

from figures import runner, show
import lego
import train
from model import Transformer

NAME = "speed"
SHAPES = {  # of the training step that is compared: layers, width, heads, T, sentences, words
    "cpu": dict(n_layer=4, n_embd=256, n_head=4, T=128, B=16, vocab_size=1024),
    # BERT-base, its words rounded up to a multiple of 64
    "cuda": dict(n_layer=12, n_embd=768, n_head=12, T=512, B=32, vocab_size=30528),
}
SEEDS = range(10)
VARIANTS = {"as it is": [], "compiled": ["--compile=True"], "bfloat16": ["--dtype=bfloat16"]}  # of the main job


# ---- sentences -------------------------------------------------------------------------------------------------------


def sample_through_text(task, batch_size, n_clauses, rng):
    """
    What lego.sample makes, in the manner of the official code: a loop over sentences, each drawn by numpy, written as
    text, and given to a tokenizer.
    """
    tokens, positions, values = [], [], []
    for _ in range(batch_size):
        operations = rng.integers(len(task.operations), size=n_clauses)
        chain = [task.names[i] for i in rng.permutation(len(task.names))[:n_clauses]]
        clauses, value, argument, truth = [], 0, task.root_symbol, []
        for variable, operation in zip(chain, operations):
            clauses.append(f"{variable}={task.operations[operation]}{argument};")
            value, argument = int(task.action[operation, value]), variable
            truth.append(value)
        order = rng.permutation(n_clauses)
        tokens.append(lego.encode("".join(clauses[i] for i in order), task))
        positions.append(torch.from_numpy(lego.TOKENS_PER_CLAUSE * order.argsort()))
        values.append(torch.tensor(truth))
    depths = torch.arange(1, n_clauses + 1).expand(batch_size, -1)
    return lego.Batch(*map(torch.stack, (tokens, positions, values)), depths)


def sample_by_loop(task, batch_size, n_clauses, rng):
    """The same with lists of token ids in place of text, the fastest loop that we found."""
    names, ids, action = list(task.names), {symbol: i for i, symbol in enumerate(task.vocab)}, task.action.tolist()
    tokens, positions, values = [], [], []
    for _ in range(batch_size):
        clauses, truth, value, argument = [], [], 0, task.root_symbol
        for variable in rng.sample(names, n_clauses):
            operation = rng.randrange(len(task.operations))
            value = action[operation][value]
            clauses.append([ids[variable], ids["="], ids[task.operations[operation]], ids[argument], ids[";"]])
            truth.append(value)
            argument = variable
        order = rng.sample(range(n_clauses), n_clauses)
        tokens.append([token for i in order for token in clauses[i]])
        positions.append([lego.TOKENS_PER_CLAUSE * order.index(i) for i in range(n_clauses)])
        values.append(truth)
    depths = torch.arange(1, n_clauses + 1).expand(batch_size, -1)
    return lego.Batch(*map(torch.tensor, (tokens, positions, values)), depths)


# ---- training steps --------------------------------------------------------------------------------------------------


class TorchEncoder(nn.Module):
    """The same Transformer made of torch.nn.TransformerEncoder."""

    def __init__(self, n_layer, n_embd, n_head, T, vocab_size):
        super().__init__()
        self.token_embedding, self.position_embedding = nn.Embedding(vocab_size, n_embd), nn.Embedding(T, n_embd)
        layer = nn.TransformerEncoderLayer(n_embd, n_head, 4 * n_embd, 0.0, "gelu", batch_first=True)
        self.norm, self.encoder = nn.LayerNorm(n_embd), nn.TransformerEncoder(layer, n_layer)
        self.head = nn.Linear(n_embd, vocab_size)

    def forward(self, tokens):
        return self.head(self.encoder(self.norm(self.token_embedding(tokens) + self.position_embedding.weight)))


class HuggingFaceBert(nn.Module):
    """The same Transformer made of transformers.BertModel."""

    def __init__(self, n_layer, n_embd, n_head, T, vocab_size):
        super().__init__()
        from transformers import BertConfig, BertModel
        self.bert = BertModel(BertConfig(
            vocab_size=vocab_size, hidden_size=n_embd, num_hidden_layers=n_layer, num_attention_heads=n_head,
            intermediate_size=4 * n_embd, max_position_embeddings=T, hidden_dropout_prob=0.0,
            attention_probs_dropout_prob=0.0), add_pooling_layer=False)
        self.head = nn.Linear(n_embd, vocab_size)

    def forward(self, tokens):
        return self.head(self.bert(tokens).last_hidden_state)


def ours(attention, n_layer, n_embd, n_head, T, vocab_size, **dials):
    config = train.Config(**{**train.BERT, **dials, "attention": attention, "n_layer": n_layer, "n_embd": n_embd,
                             "n_head": n_head, "norm_first": False, "init_std": 0.02, "positions": "learned"})
    return Transformer(config, vocab_size, vocab_size, T)


def models(shape):
    """{name: model} of one shape, those that are installed."""
    shape = {key: value for key, value in shape.items() if key != "B"}
    found = {"ours, vanilla": ours("vanilla", **shape), "ours, LEGO chained": ours("lego", **shape),
             "torch.nn.TransformerEncoder": TorchEncoder(**shape)}
    try:
        found["transformers.BertModel"] = HuggingFaceBert(**shape)
    except ImportError:
        pass
    return found


def step_of(model, shape, device, dtype, compiled=False):
    """A training step of a model, AdamW and all, on random tokens, as a function without arguments."""
    model = model.to(device).train()
    optimizer = torch.optim.AdamW(model.parameters(), 1e-4, fused=device.type == "cuda")
    tokens = torch.randint(shape["vocab_size"], (shape["B"], shape["T"]), device=device)
    loss_of = lambda tokens: F.cross_entropy(model(tokens).flatten(0, 1), tokens.flatten())
    loss_of = torch.compile(loss_of) if compiled else loss_of

    def step():
        with torch.autocast(device.type, torch.bfloat16, enabled=dtype == torch.bfloat16):
            loss = loss_of(tokens)
        model.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        return loss.item()
    return step


def flops_of(model, shape, device):
    """The FLOPs of a training step of one of ours."""
    tokens = torch.zeros(shape["B"], shape["T"], dtype=torch.long, device=device)
    return train.count_flops(lambda: model(tokens))


def medians(functions, device, rounds):
    """{name: median seconds} of functions that take turns, so that what else the machine does slows all of them."""
    times = {name: [] for name in functions}
    for i in range(rounds + 2):
        for name, run in functions.items():
            start = time.perf_counter()
            run()
            if device.type == "cuda":
                torch.cuda.synchronize()
            if i > 1:  # the first ones warm up
                times[name].append(time.perf_counter() - start)
    return {name: statistics.median(seconds) for name, seconds in times.items()}


def peak_flops(device, dtype, n):
    """FLOP/s of a product of two n x n matrices, the fastest of many: the most that this machine does."""
    a, best = torch.randn(n, n, device=device, dtype=dtype), float("inf")
    for _ in range(50):
        best = min(best, medians({"product": lambda: a @ a}, device, 1)["product"])
    return 2 * n**3 / best


# ---- the main job ----------------------------------------------------------------------------------------------------


def job(runs, device, dials=(), save=lambda rows: None):
    """
    `python train.py` as a command, for each (variant, seed): its seconds in all, those of training, and those until the
    labelled variables, and all of them, stay at 99.9%. `save` gets the rows after each run.
    """
    rows = []
    for variant, seed in runs:
        with tempfile.TemporaryDirectory() as folder:
            command = [sys.executable, "train.py", f"--seed={seed}", f"--out_dir={folder}", f"--device={device.type}",
                       *VARIANTS[variant], *dials]
            start = time.perf_counter()
            ended = subprocess.run(command, cwd=runner.FOLDER.parent, capture_output=True, text=True, timeout=200)
            row = dict(variant=variant, seed=seed, command=time.perf_counter() - start)
            if ended.returncode:
                row["lacks"] = (ended.stderr.strip().splitlines() or [f"exit code {ended.returncode}"])[-1]
            else:
                history = json.loads(Path(folder, "history.json").read_text())
                row["training"] = history["seconds"][-1]
                for key, n in (("labelled", "n_supervised"), ("all", "n_clauses")):
                    i = runner.settled(history, history["config"][n])
                    row[key] = None if i is None else history["seconds"][i]
        rows.append(row)
        save(rows)
    return rows


# ----------------------------------------------------------------------------------------------------------------------


def measure(device, save, rounds=15):
    """The numbers of the table, all of one run. `save` is called with what there is after each part of it."""
    begun, on_gpu = time.perf_counter(), device.type == "cuda"
    dtype = torch.bfloat16 if on_gpu else torch.float32
    shape, task = SHAPES["cuda" if on_gpu else "cpu"], lego.make_task("sign")
    size = 8192 if on_gpu else 2048
    numbers = dict(hardware=show.hardware(device), torch=torch.__version__, dtype=str(dtype).removeprefix("torch."),
                   shape=shape, peak_flops=peak_flops(device, dtype, size))

    rngs, generator, B = (numpy.random.default_rng(0), random.Random(0)), torch.Generator(device).manual_seed(0), 1000
    seconds = medians({"through_text": lambda: sample_through_text(task, B, 12, rngs[0]),
                       "by_loop": lambda: sample_by_loop(task, B, 12, rngs[1]),
                       "ours": lambda: lego.sample(task, B, 12, generator)}, device, rounds)
    numbers["sentences_per_second"] = {name: B / s for name, s in seconds.items()}
    save(numbers)

    built = models(shape)
    if on_gpu:
        built |= {f"{name}, compiled": model for name, model in models(shape).items()}
    seconds = medians({name: step_of(model, shape, device, dtype, name.endswith("compiled"))
                       for name, model in built.items()}, device, rounds)
    numbers["steps"] = {name: dict(seconds=s) for name, s in seconds.items()}
    for name, model in built.items():
        if name.startswith("ours"):
            numbers["steps"][name]["flops"] = flops_of(model, shape, device)
    del built
    save(numbers)

    numbers["main"] = job([("as it is", seed) for seed in SEEDS], device)
    numbers["seconds"] = time.perf_counter() - begun
    save(numbers)


def headline(numbers):
    """README's line."""
    median = lambda key: statistics.median(run[key] for run in numbers["main"])
    return (f"`python train.py` ends after {median('command'):.0f} s; all variables are right for good after "
            f"{median('all'):.1f} s of training")


def table(numbers):
    """The numbers as a table in Markdown: what, ours, what it is compared with, and their ratio."""
    per_second, steps, main = numbers["sentences_per_second"], numbers["steps"], numbers["main"]
    lines = [("", "ours", "against", "ratio"), ("---", "---", "---", "---")]
    for key, what in (("through_text", "a loop over texts, tokenized"), ("by_loop", "a loop over lists of ids")):
        lines.append(("sentences of 12 clauses a second", f"{per_second['ours']:,.0f}",
                      f"{what}: {per_second[key]:,.0f}", f"{per_second['ours'] / per_second[key]:.0f} times as many"))
    ms = lambda name: 1e3 * steps[name]["seconds"]
    for name in (name for name in steps if not name.startswith("ours")):
        compiled = ", compiled" * name.endswith("compiled")
        for mine in ("vanilla", "LEGO chained"):
            ours = ms(f"ours, {mine}{compiled}")
            lines.append((f"training step, {mine} attention", f"{ours:.0f} ms", f"{name}: {ms(name):.0f} ms",
                          f"{ms(name) / ours:.2f} times as fast"))
    for mine in ("vanilla", "LEGO chained"):
        rate, peak = (steps[f"ours, {mine}"]["flops"] / steps[f"ours, {mine}"]["seconds"], numbers["peak_flops"])
        lines.append((f"GFLOP/s in that step, {mine} attention", f"{rate / 1e9:,.0f}",
                      f"a large matrix product: {peak / 1e9:,.0f}", f"{100 * rate / peak:.0f}%"))
    for key, what in (("command", "`python train.py`, the whole command"), ("training", "... of which training"),
                      ("labelled", "... until the labelled variables stay at 99.9%"),
                      ("all", "... until all variables stay at 99.9%")):
        times = [run[key] for run in main if run[key] is not None]
        lines.append((what, f"median {statistics.median(times):.1f} s, {show.span(times, '{:.1f}')} s" if times else
                      "never", f"{len(times)} of {len(main)} seeds", ""))
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


if __name__ == "__main__":
    runner.main_measured(NAME, measure, lambda name: print(table(runner.load(name))))
