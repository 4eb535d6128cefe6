"""
How fast it is, and how much memory association takes: a table, and speed.png.

    python -m figures.speed                draws what is saved, measures what is not
    python -m figures.speed --again        measures all of it anew
    python -m figures.speed --only=main    measures this part anew

sentences      lego.sample, and two loops in Python: the fastest that we found, and one through text
association    as a matrix (dense), as sums (segment, or fused in Triton), and made of softmax with
               equal scores: SDPA with a boolean mask, and FlexAttention, compiled
known          LEGO attention that hears all positions, and those alone that know
steps          a training step of a BERT without dropout, compiled on a GPU
main           the command python train.py

On the GPU if there is one, into speed_gpu.json, else on the CPU, into speed.json. What is compared
takes turns, so that what else the machine does slows all of it; times are medians.
"""
import json
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch.nn.attention.flex_attention import create_block_mask, flex_attention
from torch.utils.benchmark import Timer

import lego
import train
from attention import Dense, Fused, LegoAttention, Segment, identical_tokens, make_plan
from figures import runs, show
from model import Transformer

COLORS = {"dense": show.BLUE, "SDPA, boolean mask": show.PINK, "FlexAttention": show.ORANGE,
          "segment": show.RED, "fused": show.SKY}
NUMBERS = ("forward", "both", "plan", "peak")  # passes and plan in ms; plan and forward in MB


def compare(functions, rounds):
    """{name: median ms} of functions that take turns, each for a tenth of a second or one run."""
    times = {name: [] for name in functions}
    for _ in range(rounds):
        for name, run in functions.items():
            timer = Timer("run()", globals=dict(run=run), num_threads=torch.get_num_threads())
            times[name].append(timer.blocked_autorange(min_run_time=0.1).median)
    return {name: 1e3 * median(seconds) for name, seconds in times.items()}


def peak_mb(run, device):
    """What the tensors of a run take at its peak, beyond those that were there before."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        run()
        return (torch.cuda.max_memory_allocated() - before) / 2**20
    with torch.autograd.profiler.profile(profile_memory=True) as profiler:
        run()
    events = sorted(profiler.kineto_results.events(), key=lambda event: event.start_ns())
    changes = torch.tensor([event.nbytes() for event in events if event.name() == "[memory]"])
    return changes.cumsum(0).max().item() / 2**20


def sample_by_loop(task, batch_size, n_clauses, rng, through_text=False):
    """Chains by a loop over sentences: as token ids, or through text, as in the official code."""
    id_of, action = {symbol: i for i, symbol in enumerate(task.vocab)}, task.action.tolist()
    rows = []
    for _ in range(batch_size):
        clauses, values, value, argument = [], [], 0, task.root_symbol
        for variable in rng.sample(task.names, n_clauses):
            operation = rng.randrange(len(action))
            value = action[operation][value]
            clauses.append((variable, "=", task.operations[operation], argument, ";"))
            values.append(value)
            argument = variable
        order = rng.sample(range(n_clauses), n_clauses)
        symbols = [symbol for i in order for symbol in clauses[i]]
        tokens = [id_of[symbol] for symbol in symbols]
        if through_text:
            tokens = lego.encode(" ".join(symbols), task).tolist()
        positions = [lego.TOKENS_PER_CLAUSE * order.index(i) for i in range(n_clauses)]
        rows.append((tokens, positions, values))
    tokens, positions, values = map(torch.tensor, zip(*rows))
    depths = torch.arange(1, n_clauses + 1).expand_as(values)
    return lego.Batch(tokens, positions, values, depths, torch.zeros_like(tokens))


def time_sentences(device, batch_size=1000, n_clauses=12, rounds=9):
    task, rng, generator = lego.make_task("sign"), random.Random(0), torch.Generator(device)
    graphs = lambda: lego.random_graphs(batch_size, n_clauses, generator=generator)
    loop = lambda *how: sample_by_loop(task, batch_size, n_clauses, rng, *how)
    times = compare({"lego.sample": lambda: lego.sample(task, graphs(), generator),
                     "a loop over lists of ids": loop,
                     "a loop over texts, tokenized": lambda: loop(True)}, rounds)
    return dict(what=f"{batch_size:,} sentences of {n_clauses} clauses", times=times)


def implementations(tokens, v):
    """
    {name: a function that makes a plan} for tokens (B, T) and values like v (B, T, C). Softmax is
    association where a token has a twin, and makes what it likes elsewhere.
    """
    zeros = torch.zeros_like(v)[:, None]  # (B, 1, T, C): the query and the key
    make_mask, flex = torch.compile(create_block_mask), torch.compile(flex_attention)

    def of_sdpa():
        mask = identical_tokens(tokens)[:, None]  # (B, 1, T, T)
        return lambda v: F.scaled_dot_product_attention(zeros, zeros, v[:, None], mask)[:, 0]

    def of_flex():
        is_twin = lambda b, h, i, j: (tokens[b, i] == tokens[b, j]) & (i != j)
        B, T = tokens.shape
        mask = make_mask(is_twin, B, None, T, T, device=tokens.device)
        return lambda v: flex(zeros, zeros, v[:, None], block_mask=mask)[:, 0]

    return {"dense": lambda: Dense(tokens), "SDPA, boolean mask": of_sdpa, "FlexAttention": of_flex,
            "segment": lambda: Segment(tokens), "fused": lambda: Fused(tokens)}


def time_association(device, n_tokens=2**14, n_channels=64, dtype="float32", longest=2**14,
                     names=tuple(COLORS)[:-1], rounds=5):
    """NUMBERS, a row for each implementation and T = 64, 128, ..., longest."""
    rows, share = [], 1 / torch.arange(1, 8193, device=device)  # Zipf's law: as words in a text
    for T in (2**k for k in range(6, longest.bit_length())):
        torch._dynamo.reset()  # FlexAttention anew for each shape
        tokens = share.multinomial(n_tokens, replacement=True).view(-1, T)  # (B, T)
        v = torch.randn(*tokens.shape, n_channels, dtype=getattr(torch, dtype), device=device)
        x = v.clone().requires_grad_()
        found = implementations(tokens, v)
        makers, forward, both = {name: found[name] for name in names}, {}, {}
        for name, make in makers.items():
            plan = make()
            forward[name] = lambda plan=plan: plan(v)
            if device.type != "cpu" or name != "FlexAttention":  # which has no backward pass there
                both[name] = lambda plan=plan: torch.autograd.grad(plan(x), x, v)
        ms = [compare(functions, rounds) for functions in (forward, both, makers)]
        for name, make in makers.items():
            numbers = [times.get(name) for times in ms] + [peak_mb(lambda: make()(v), device)]
            rows.append(dict(zip(NUMBERS, numbers), implementation=name, T=T))
    return dict(n_tokens=n_tokens, n_channels=n_channels, dtype=dtype, rows=rows)


def time_known(device, B=32, T=60, C=64, rounds=9):
    attn, x = LegoAttention(C).to(device), torch.randn(B, T, C, device=device, requires_grad=True)
    tokens, known = torch.randint(26, (B, T), device=device), torch.rand(B, T, device=device) < 0.5
    plan = make_plan(tokens)
    both = lambda known=None: attn(x, tokens, plan=plan, known=known).sum().backward()
    times = compare({"hears all": both, "hears those that know": lambda: both(known)}, rounds)
    return dict(what=f"LEGO attention, {B} x {T} tokens", times=times)


def models(T, vocab_size, n_layer, n_embd, n_head):
    """{name: model} of one shape: ours, PyTorch's, which lacks positions, and Hugging Face's."""
    found, V, C = {}, vocab_size, n_embd
    for name, kind in (("ours, vanilla", "vanilla"), ("ours, LEGO chained", "lego")):
        config = train.Config(attention=kind, tied=False, n_layer=n_layer, n_embd=C, n_head=n_head,
                              norm="last", positions="learned", share_names=False, init_std=0.02)
        found[name] = Transformer(config.complete(), range(V), V, V, T)
    layer = nn.TransformerEncoderLayer(C, n_head, 4 * C, 0.0, "gelu", batch_first=True)
    found["torch.nn.TransformerEncoder"] = nn.Sequential(
        nn.Embedding(V, C), nn.LayerNorm(C), nn.TransformerEncoder(layer, n_layer), nn.Linear(C, V))
    try:
        from transformers import BertConfig, BertModel
    except ImportError:  # it is optional
        return found
    bert = BertModel(BertConfig(
        vocab_size=V, hidden_size=C, num_hidden_layers=n_layer, num_attention_heads=n_head,
        intermediate_size=4 * C, max_position_embeddings=T, hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0), add_pooling_layer=False)
    bert.register_forward_hook(lambda bert, tokens, output: output.last_hidden_state)
    return found | {"transformers.BertModel": nn.Sequential(bert, nn.Linear(C, V))}


def step_of(model, tokens):
    """A training step of a model, AdamW and all, as a function without arguments."""
    optimizer = torch.optim.AdamW(model.to(tokens.device).parameters(), 1e-4, fused=tokens.is_cuda)
    loss_of = lambda: F.cross_entropy(model(tokens).flatten(0, 1), tokens.flatten())
    loss_of = torch.compile(loss_of, disable=not tokens.is_cuda)

    def step():
        with torch.autocast(tokens.device.type, torch.bfloat16, enabled=tokens.is_cuda):
            loss = loss_of()
        model.zero_grad()
        loss.backward()
        optimizer.step()
        return loss.item()
    return step


def time_steps(device, B=16, T=128, vocab_size=1024, n_layer=4, n_embd=256, n_head=4, rounds=9):
    tokens = torch.randint(vocab_size, (B, T), device=device)
    found = models(T, vocab_size, n_layer, n_embd, n_head)
    times = compare({name: step_of(model, tokens) for name, model in found.items()}, rounds)
    return dict(what=f"a step of {n_layer} layers, width {n_embd}, {B} x {T} tokens", times=times)


def time_main(device, seeds=range(10), dials=()):
    """Seconds of the command, of its training, and of training until the proof, which ends it."""
    rows = []
    for seed in seeds:
        with tempfile.TemporaryDirectory() as folder:
            command = [sys.executable, "train.py", f"--seed={seed}", f"--out_dir={folder}",
                       f"--device={device.type}", *dials]
            start = time.perf_counter()
            subprocess.run(command, cwd=runs.FOLDER.parent, check=True, stdout=subprocess.DEVNULL)
            seconds = time.perf_counter() - start
            history = json.loads(Path(folder, "history.json").read_text())
        training = history["seconds"][-1]
        rows.append(dict(seed=seed, command=seconds, training=training,
                         proof=training if history["proof"] else None))
    return dict(rows=rows)


PARTS = dict(sentences=time_sentences, association=time_association, known=time_known,
             steps=time_steps, main=time_main)
ON_A_GPU = dict(association=dict(n_tokens=2**18, n_channels=256, dtype="bfloat16", longest=2**12,
                                 names=tuple(COLORS)),
                # BERT-base, its words rounded up to a multiple of 64
                steps=dict(B=32, T=512, vocab_size=30528, n_layer=12, n_embd=768, n_head=12))


def table(numbers):
    """Lines of figures/README.md."""
    lines = []
    for part, found in numbers.items():
        lines.append(f"{part}, on {found['hardware']}, torch {found['torch']}:")
        rows, times = found.get("rows", []), found.get("times", {})
        for name, ms in times.items():
            ratio = ms / next(iter(times.values()))
            lines.append(f"  {found['what']:<48}{name:<29}{ms:7.1f} ms{ratio:7.2f} times")
        for row in rows:
            if row.get("implementation") in COLORS and row["T"] in (64, 256, 2048):
                cells = "".join(f"   {what}{row[what] or float('nan'):8.2f}" for what in NUMBERS)
                lines.append(f"  T = {row['T']:<8,}{row['implementation']:<21}{cells}")
        for key in ("command", "training", "proof"):
            seconds = [row[key] for row in rows if row.get(key) is not None]
            if seconds:
                lines.append(f"  {key:<10}median {median(seconds):.1f} s, of {len(seconds)} of "
                             f"{len(rows)} seeds: {show.span(seconds, '{:.1f}')} s")
    return lines


def draw(found):
    """The time and the memory of association over T."""
    rows = found["rows"]
    T = min(4096, rows[-1]["T"])
    at = {row["implementation"]: row for row in rows if row["T"] == T}
    names = [name for name in COLORS if name in at]
    faster, less = (at["dense"][what] / at[names[-1]][what] for what in ("forward", "peak"))
    figure, (panels,) = show.picture(
        f"Association as sums: {faster:.0f} times faster than as a matrix, 1/{less:.0f} of the "
        f"memory (T = {T:,})", 1, 2, 11.5, 4.8,
        f"{found['n_tokens']:,} tokens in sentences of T, as frequent as words in a text; "
        f"{found['n_channels']} channels, {found['dtype']}; SDPA, FlexAttention: softmax, equal "
        "scores and a mask; the mask or plan, once a batch, is in the memory, not in the time; "
        f"{found['hardware']}, torch {found['torch']}")
    for axes, what, label in zip(panels, ("forward", "peak"), ("a forward pass (ms)", "peak (MB)")):
        axes.set(yscale="log", xlabel="T, tokens of a sentence", ylabel=label)
        axes.set_xscale("log", base=4)
        axes.xaxis.set_major_formatter("{x:,.0f}")
        axes.yaxis.set_major_formatter("{x:g}")
        ends = []
        for name in names:
            points = [(row["T"], row[what]) for row in rows if row["implementation"] == name]
            axes.plot(*zip(*points), color=COLORS[name], marker="o", markersize=4)
            ends.append((points[-1][1], name, COLORS[name]))
        show.label_ends(axes, ends)
    return figure


def main():
    name, device, sizes = "speed", torch.device("cpu"), {}
    if torch.cuda.is_available():
        name, device, sizes = "speed_gpu", torch.device("cuda"), ON_A_GPU
    numbers = runs.load(name)
    for part, measure in PARTS.items():
        if runs.wanted_anew(part, train.Config()) or part not in numbers:
            about = dict(hardware=train.hardware(device), torch=str(torch.__version__))
            numbers[part] = about | measure(device, **sizes.get(part, {}))
            runs.save(name, numbers)
    print("\n".join(table(runs.load("speed")) + table(runs.load("speed_gpu"))))
    draw(numbers["association"]).savefig(runs.FOLDER / f"{name}.png", dpi=150)


if __name__ == "__main__":
    main()
