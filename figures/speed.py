"""
How fast it is: sentences, training steps, and the seconds until the main job is done.

    python -m figures.speed       on the GPU if there is one, else on the CPU; 2 to 3 minutes

Sentences: lego.sample against two loops over sentences, one through text and a tokenizer as in the official code, one
over lists of token ids, as fast as we could write it. Steps: ours against the same Transformer made of
torch.nn.TransformerEncoder and of transformers.BertModel, taking turns; forward, backward and AdamW, no dropout.

Measured on 2 cores of an x86-64 server, in one run of 143 s; medians (no GPU has run this):

    sentences of 12 clauses      443,118 a second; through text 8,671, over lists 30,492: 51 and 15 times faster
    training step                vanilla 271 ms, hybrid 259, LEGO parallel 228, chained 230;
                                 TransformerEncoder 285, BertModel 270
    FLOP/s of that step          vanilla 51% of a large matrix product's, chained 48%
    main job                     six supervised variables at 99.9% or better, to the end of the run, after 4 to 6 s of
                                 training, all twelve after 4 to 7 s (3 seeds)

The goal of 100 times, against a loop in the manner of the official code, is not reached.

What keeps a step of the main job, at 20% of a matrix product's FLOP/s, from its floor: products 44% of the time, of
matrices 64 wide; layer norm 15%; copies 7%; the convolution 6%; GELU 6%. The forward pass of 5 loops takes 70%, the
backward pass of the last one 22%, the optimisers 6%, drawing the sentences 0.9%.
"""
import random
import statistics
import time
from importlib.metadata import PackageNotFoundError, version

import numpy
import torch
import torch.nn as nn
import torch.nn.functional as F
from torch.profiler import profile

import figures
import lego
import train
from model import ModelConfig, Transformer

NAME = "speed"
SHAPES = {  # of the training step that is compared: layers, width, heads, T, sentences, words
    "cpu": dict(n_layer=4, n_embd=256, n_head=4, T=128, B=16, vocab_size=1024),
    "cuda": dict(n_layer=12, n_embd=768, n_head=12, T=512, B=32, vocab_size=30522),  # BERT-base
}
SEEDS = range(3)


# ----------------------------------------------------------------------------------------------------------------------
# sentences


def sample_through_text(task, batch_size, n_clauses, rng):
    """
    What lego.sample makes, in the manner of the official code: a loop over sentences, each drawn by numpy, written as
    text, and given to a tokenizer.
    """
    tokens, positions, values = [], [], []
    for _ in range(batch_size):
        operations = rng.integers(len(task.operations), size=n_clauses)
        chain = [task.names[i] for i in rng.permutation(len(task.names))[:n_clauses]]
        clauses, value, argument, truth = [], task.root, task.root_symbol, []
        for variable, operation in zip(chain, operations):
            clauses.append(f"{variable}={task.operations[operation]}{argument};")
            value, argument = int(task.action[operation, value]), variable
            truth.append(value)
        order = rng.permutation(n_clauses)
        tokens.append(lego.encode("".join(clauses[i] for i in order), task))
        positions.append(torch.from_numpy(lego.TOKENS_PER_CLAUSE * order.argsort()))
        values.append(torch.tensor(truth))
    return lego.Batch(*map(torch.stack, (tokens, positions, values)))


def sample_by_loop(task, batch_size, n_clauses, rng):
    """The same with lists of token ids in place of text, the fastest loop that we found."""
    names, ids, action = list(task.names), {symbol: i for i, symbol in enumerate(task.vocab)}, task.action.tolist()
    tokens, positions, values = [], [], []
    for _ in range(batch_size):
        chain, clauses, value, argument = rng.sample(names, n_clauses), [], task.root, task.root_symbol
        truth = []
        for variable in chain:
            operation = rng.randrange(len(task.operations))
            value = action[operation][value]
            clauses.append((variable, task.operations[operation], argument))
            truth.append(value)
            argument = variable
        order = rng.sample(range(n_clauses), n_clauses)
        sentence = []
        for i in order:
            variable, operation, argument = clauses[i]
            sentence += [ids[variable], ids["="], ids[operation], ids[argument], ids[";"]]
        tokens.append(sentence)
        positions.append([lego.TOKENS_PER_CLAUSE * order.index(i) for i in range(n_clauses)])
        values.append(truth)
    return lego.Batch(*map(torch.tensor, (tokens, positions, values)))


# ----------------------------------------------------------------------------------------------------------------------
# training steps


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
    return Transformer(ModelConfig(
        vocab_size, vocab_size, n_layer, n_embd, n_head, tied=False, norm_first=False, norm_eps=1e-5, norm_state=False,
        self_condition=False, dropout=0.0, init_std=0.02, positions="learned", block_size=T, attention=attention,
        kernel_size=7, association_share=0.5, vanilla_share=0.5, association="auto", **{"chained": True, **dials}))


def models(shape):
    """{name: model} of one shape, those that can be had."""
    shape = {key: value for key, value in shape.items() if key != "B"}
    found = {"ours, vanilla": ours("vanilla", **shape), "ours, LEGO chained": ours("lego", **shape),
             "ours, LEGO parallel": ours("lego", chained=False, **shape), "ours, hybrid": ours("hybrid", **shape),
             "torch.nn.TransformerEncoder": TorchEncoder(**shape)}
    try:
        found["transformers.BertModel"] = HuggingFaceBert(**shape)
    except ImportError:
        pass
    return found


def step_of(model, shape, device, dtype):
    """A training step of a model, AdamW and all, on random tokens, as a function without arguments."""
    model = model.to(device).train()
    optimizer = torch.optim.AdamW(model.parameters(), 1e-4)
    tokens = torch.randint(shape["vocab_size"], (shape["B"], shape["T"]), device=device)

    def step():
        with torch.autocast(device.type, torch.bfloat16, enabled=dtype == torch.bfloat16):
            loss = F.cross_entropy(model(tokens).flatten(0, 1), tokens.flatten())
        model.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        return loss.item()
    return step


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


def parts_of_a_step(config, device, rounds=20):
    """Of a step of train.train: {part: median seconds}, its FLOPs, and {operator: share of the time}."""
    model = train.make_model(config).to(device).train()
    averaged = train.AveragedModel(model, multi_avg_fn=train.get_ema_multi_avg_fn(config.ema))
    optimizers, generator = train.make_optimizers(model, config), train.make_generator(config, "sentences", device)
    times = {}

    def step(keep):
        clock = time.perf_counter()

        def lap(part):
            nonlocal clock
            if device.type == "cuda":
                torch.cuda.synchronize()
            now = time.perf_counter()
            if keep:
                times.setdefault(part, []).append(now - clock)
            clock = now

        batch = train.draw_sentences(config, config.batch_size, generator)
        lap("sentences")
        loss = train.loss_of(model, batch, config, config.n_layer)
        lap("forward")
        model.zero_grad(set_to_none=True)
        loss.backward()
        lap("backward")
        torch.nn.utils.clip_grad_norm_(model.parameters(), config.grad_clip)
        for optimizer in optimizers:
            optimizer.step()
        lap("optimisers")
        averaged.update_parameters(model)
        lap("average of the weights")

    for i in range(rounds + 3):
        step(keep=i > 2)  # the first ones warm up
    seconds = {part: statistics.median(times) for part, times in times.items()}
    flops = config.batch_size * train.flops_of_sentence(model, config, lego.TOKENS_PER_CLAUSE * config.n_clauses,
                                                        config.n_layer, config.n_supervised)
    with profile() as profiled:
        for _ in range(3):
            step(keep=False)
    clock = "self_device_time_total" if device.type == "cuda" else "self_cpu_time_total"
    time_of = {event.key: getattr(event, clock) for event in profiled.key_averages()}
    most = sorted(time_of, key=time_of.get, reverse=True)[:15]
    return seconds, flops, {operator: time_of[operator] / sum(time_of.values()) for operator in most}


# ----------------------------------------------------------------------------------------------------------------------


def measure(device, rounds=15, seeds=SEEDS, save=lambda numbers: None):
    """The numbers of the table, all of one run. `save` is called with what there is after each part of it."""
    begun, on_gpu = time.perf_counter(), device.type == "cuda"
    dtype = torch.bfloat16 if on_gpu else torch.float32
    shape, task = SHAPES["cuda" if on_gpu else "cpu"], lego.make_task("sign")
    size = 8192 if on_gpu else 2048
    numbers = dict(hardware=train.hardware(device), torch=torch.__version__, dtype=str(dtype).removeprefix("torch."),
                   shape=shape, peak_flops=peak_flops(device, dtype, size))
    numbers["peak_flops_main"] = peak_flops(device, torch.float32, size) if on_gpu else numbers["peak_flops"]
    try:
        numbers["transformers"] = version("transformers")
    except PackageNotFoundError:
        pass

    rngs, generator, B = (numpy.random.default_rng(0), random.Random(0)), torch.Generator(device).manual_seed(0), 1000
    seconds = medians({"through_text": lambda: sample_through_text(task, B, 12, rngs[0]),
                       "by_loop": lambda: sample_by_loop(task, B, 12, rngs[1]),
                       "ours": lambda: lego.sample(task, B, 12, generator, device)}, device, rounds)
    numbers["sentences_per_second"] = {name: B / s for name, s in seconds.items()}
    save(numbers)

    built = models(shape)
    if on_gpu:
        built |= {f"{name}, compiled": compiled for name, compiled in models(shape).items()}
        for name, model in built.items():
            if name.endswith("compiled"):
                model.compile()
    seconds = medians({name: step_of(model, shape, device, dtype) for name, model in built.items()}, device, rounds)
    n_tokens = shape["B"] * shape["T"]
    numbers["steps"] = {name: dict(seconds=s, tokens_per_second=n_tokens / s) for name, s in seconds.items()}
    for name, model in built.items():
        if name.startswith("ours"):
            numbers["steps"][name]["flops"] = 3 * shape["B"] * model.flops(shape["T"])
    del built
    save(numbers)

    config = train.Config(out_dir="")
    numbers["parts"], numbers["flops_of_a_step"], numbers["operators"] = parts_of_a_step(config, device)
    numbers["main"] = []
    for seed in seeds:
        history = train.train(train.Config(seed=seed, out_dir=""))
        times = {}
        for key, n in (("supervised", config.n_supervised), ("all", config.n_clauses)):
            i = figures.settled(history, n)
            times[key] = None if i is None else history["seconds"][i]
        numbers["main"].append(dict(seed=seed, steps=history["step"][-1], **times))
        save(numbers)
    numbers["seconds"] = time.perf_counter() - begun
    save(numbers)
    return numbers


def rows(numbers):
    """The table: what, ours, the other, how many times ours is faster."""
    per_second, steps, parts = numbers["sentences_per_second"], numbers["steps"], numbers["parts"]
    shape, step = numbers["shape"], sum(numbers["parts"].values())
    lines = [("sentences of 12 clauses", f"{per_second['ours']:,.0f} a second", f"{what}: {per_second[key]:,.0f}",
              f"{per_second['ours'] / per_second[key]:.0f}x")
             for key, what in (("through_text", "loop over texts, tokenized"), ("by_loop", "loop over lists of ids"))]
    for name in steps:
        if not name.startswith("ours"):
            compiled = ", compiled" if name.endswith("compiled") else ""
            for mine in (f"ours, vanilla{compiled}", f"ours, LEGO chained{compiled}"):
                lines.append((f"training step, {mine.removeprefix('ours, ')}", f"{1e3 * steps[mine]['seconds']:.0f} ms",
                              f"{name}: {1e3 * steps[name]['seconds']:.0f} ms",
                              f"{steps[name]['seconds'] / steps[mine]['seconds']:.2f}x"))
    for name in [name for name in steps if "vanilla" in name or "chained" in name]:
        rate = steps[name]["flops"] / steps[name]["seconds"]
        lines.append((f"FLOP/s in that step, {name.removeprefix('ours, ')}", f"{rate / 1e9:,.0f} GFLOP/s",
                      f"matrix product: {numbers['peak_flops'] / 1e9:,.0f} GFLOP/s",
                      f"{100 * rate / numbers['peak_flops']:.0f}% of it"))
    rate = numbers["flops_of_a_step"] / step
    lines.append(("FLOP/s in a step of the main job", f"{rate / 1e9:,.0f} GFLOP/s",
                  f"matrix product: {numbers['peak_flops_main'] / 1e9:,.0f} GFLOP/s",
                  f"{100 * rate / numbers['peak_flops_main']:.0f}% of it"))
    for part, seconds in parts.items():
        lines.append((f"... of which {part}", f"{1e3 * seconds:.1f} ms", f"the step: {1e3 * step:.0f} ms",
                      f"{100 * seconds / step:.1f}% of it"))
    for key, what in (("supervised", "the six supervised"), ("all", "all twelve")):
        times = [run[key] for run in numbers["main"] if run[key] is not None]
        lines.append((f"training until 99.9%, to stay: {what}",
                      f"{min(times):.0f} to {max(times):.0f} s" if times else "never",
                      f"{len(times)} of {len(numbers['main'])} seeds", ""))
    return lines


def draw(numbers):
    from matplotlib.figure import Figure

    lines, shape = rows(numbers), numbers["shape"]
    figure = Figure(figsize=(11.5, 0.32 * len(lines) + 1.6))
    axes = figure.add_axes((0.02, 0.02, 0.96, 0.98 - 0.9 / figure.get_figheight()))
    axes.axis("off")
    table = axes.table([list(line) for line in lines], colLabels=["", "ours", "against", "ratio"],
                       colWidths=[0.36, 0.19, 0.32, 0.13], cellLoc="left", bbox=(0, 0, 1, 1))
    table.auto_set_font_size(False)
    table.set_fontsize(9)
    for (row, column), cell in table.get_celld().items():
        cell.set(linewidth=0, facecolor="#eef3f8" if row % 2 else "white")
        if row == 0 or column == 3:
            cell.set_text_props(fontweight="bold")
    steps, per_second = numbers["steps"], numbers["sentences_per_second"]
    vanilla, chained = (steps[f"ours, {name}"]["seconds"] for name in ("vanilla", "LEGO chained"))
    others = [s["seconds"] for name, s in steps.items() if not name.startswith("ours") and "compiled" not in name]
    figure.suptitle(
        f"Sentences {per_second['ours'] / per_second['through_text']:.0f} times faster than text in a loop; a training "
        f"step {min(others) / vanilla:.2f} times as fast as the fastest other, {min(others) / chained:.2f} "
        f"with LEGO attention\nsteps: {shape['n_layer']} layers, width {shape['n_embd']}, {shape['n_head']} heads, "
        f"T = {shape['T']}, {shape['B']} sentences, {shape['vocab_size']:,} classes at every position, AdamW, "
        f"{numbers['dtype']}, not compiled\n"
        f"{numbers['hardware']}; medians of 15 or more; models, and generators, take turns",
        fontweight="bold", fontsize=10)
    return figure


def main(arguments):
    figures.measure(NAME, measure, draw, arguments)


if __name__ == "__main__":
    lego.command_line(main)
