"""
Trains a Transformer on LEGO and plots the test accuracy of every variable.

    python train.py                              tied LEGO attention, 12 clauses, 6 labelled
    python train.py --task=d3 --n_supervised=2   any dial below is --key=value
    python train.py --attention=vanilla          a tied vanilla Transformer, learned positions
    python train.py --preset=vanilla             many dials at once, see PRESETS
    python train.py --init_from=FOLDER           start from the weights of another run, its out_dir
    python train.py --resume                     go on where the last evaluation of a run left it
    torchrun --nproc_per_node=4 train.py         each process takes a share of every batch

One step, of a model that hands something on from loop to loop:

    batch = the batch of the step before, with new sentences for those that are through
    x     = one loop of the block, on the tokens and on what each sentence's last loop handed on
    due   = the labels that so many loops can reach: at loop k those of depth k or less
    loss  = cross-entropy of the labels that are due, in clauses at the variable and the argument
          + for the labels that are not, how far the prediction is from equal probabilities
    one backward pass through this one loop, one step of the optimizers
    carry = what the loop hands on to the next step, without gradient

Only the first n_supervised variables in order of depth have a label; the others have no loss at all.
Sentences of all ages stand side by side, and each is through after n_layer loops:

    step     sentence 0      sentence 1      sentence 2
     16      loop 8 of 9     loop 9 of 9     NEW, loop 1
     17      loop 9          NEW, loop 1     loop 2
     18      NEW, loop 1     loop 2          loop 3

Models without a carry, such as BERT, make all their layers in one step and see new sentences in the
next. Writes checkpoint.pt and history.json into out_dir at every evaluation, and accuracy.png at the
end. An experiment with other sentences, another loss or another test hands its own to `train`: see
figures/mimic.py.

A carry from step to step, in which a finished example makes room for a new one, is HRM's and TRM's
(arXiv 2506.21734, 2510.04871); cutting all gradients to the past is also the Recursive Stem Model's
(2603.15641). Ours: the carry holds beliefs, a step is one loop, a label waits until it is due.
"""
import argparse
import inspect
import json
import math
import os
import platform
import sys
import time
import zlib
from bisect import bisect_right
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Literal, get_args

import numpy as np
import torch
import torch.distributed as dist
import torch.nn as nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from tqdm import tqdm

import lego
from lego import InputError
from model import Transformer, answer, loss_of, loss_of_one_loop, predict, read_checkpoint


# ---- the dials -----------------------------------------------------------------------------------


@dataclass
class Config:
    # task
    task: str = "sign"  # or d<k>, c<k>, s<k>, a<k>, see lego.make_task
    n_clauses: int = 12  # variables of a sentence, T = 5 n_clauses tokens
    n_supervised: int | None = None  # the first variables by depth are labelled; None: half
    n_names: int = 26  # variables to draw from, at least n_clauses: a to z, then v26, v27, ...
    branch: float | None = None  # training sentences are 0: chains, up to 1: any graph
    # model
    init_from: str = ""  # start from the weights of another run of this shape: its out_dir
    attention: Literal["lego", "vanilla", "hybrid"] = "lego"  # hybrid: half vanilla, half LEGO
    tied: bool = True  # one block for all layers (ALBERT); False: a block for each (BERT)
    n_layer: int | None = None  # blocks, or loops of the one block; None: n_supervised + 3
    carry: Literal["beliefs", "state", "none"] | None = None  # what a loop hands on; None: see complete
    n_embd: int = 64  # width C
    norm: Literal["first", "last", "both"] | None = None  # last: BERT's; both: of the state, too
    share_names: bool | None = None  # one embedding for all variables
    positions: Literal["learned", "rope", "none"] | None = None  # rope: of vanilla heads
    dropout: float = 0.0  # BERT: 0.1
    init_std: float = 0.1  # of all weights; BERT: 0.02
    n_head: int = 4  # vanilla, hybrid: heads of n_embd / n_head channels
    association_share: float = 0.5  # lego, hybrid: of the channels, that go through association
    chained: bool = True  # lego, hybrid: convolution after association; False: beside it
    # optimisation
    batch_size: int = 64  # sentences per step
    unknown_weight: float = 0.2  # carry: of the loss that pulls what is not due to equal probabilities
    max_steps: int = 300
    stop_at: float = 0.0  # stop at this accuracy of every variable, mean of 5 evaluations; 0: never
    lr: float | None = None  # AdamW: embeddings, convolutions, head, norms, biases
    muon_lr: float | None = None  # Muon: the matrices of the blocks; 0: AdamW, too; None: 10 lr
    beta2: float = 0.99  # AdamW
    weight_decay: float = 0.01
    grad_clip: float = 1.0  # largest norm of the gradient; 0: off
    warmup_steps: int = 10
    schedule: Literal["constant", "linear", "cosine"] = "linear"  # of the rates after warm-up
    ema: float = 0.95  # decay of the averaged weights, which are tested and saved; 0: the last ones
    seed: int = 0
    # evaluation and files
    eval_every: int = 5  # steps between evaluations; 10 times as many once all is right
    eval_size: int = 100  # new sentences at each evaluation
    out_dir: str = "out"  # "": write no files
    # machine
    device: str = "auto"  # auto, cpu, cuda, cuda:1, mps
    dtype: Literal["float32", "bfloat16"] = "float32"  # of matrix products; bfloat16 on a GPU
    compile: bool = False  # torch.compile the blocks

    def complete(self):
        """These dials with those that are None filled in. InputError for the first that does not fit."""
        n_supervised = max(1, self.n_clauses // 2) if self.n_supervised is None else self.n_supervised
        follows = dict(n_supervised=n_supervised, n_layer=n_supervised + 3,
                       **FOLLOWS_ATTENTION.get(self.attention, FOLLOWS_ATTENTION["vanilla"]))
        follows["carry"] = "beliefs" if self.attention != "vanilla" and self.tied and self.chained else "none"
        follows["muon_lr"] = 10 * (follows["lr"] if self.lr is None else self.lr)
        dials = {name: x for name, x in follows.items() if getattr(self, name) is None}
        c = replace(self, **dials, n_names=max(self.n_names, self.n_clauses))
        for name in ("n_layer", "n_embd", "n_head", "batch_size", "max_steps", "eval_every", "eval_size"):
            if getattr(c, name) < 1:
                raise InputError(f"{name}={getattr(c, name)}: expected at least 1")
        for name in ("branch", "dropout", "ema", "association_share", "stop_at"):
            if not 0 <= getattr(c, name) <= 1:
                raise InputError(f"{name}={getattr(c, name)}: expected 0 to 1")
        if not 1 <= c.n_supervised <= c.n_clauses:
            raise InputError(f"n_supervised={c.n_supervised}: expected 1 to n_clauses={c.n_clauses}")
        if c.carry != "none" and not c.tied:
            raise InputError(f"carry={c.carry}: expected none for untied layers")
        if c.attention != "lego" and c.n_embd % c.n_head:
            raise InputError(f"n_head={c.n_head}: expected a divisor of n_embd={c.n_embd}")
        lego.make_task(c.task, c.n_names)
        return c


OF_LEGO = dict(branch=1.0, norm="both", share_names=True, positions="none", lr=4e-3)
FOLLOWS_ATTENTION = {  # dials that are None take these; any other attention is treated as vanilla
    "lego": OF_LEGO,
    "hybrid": OF_LEGO,
    "vanilla": dict(branch=0.0, norm="first", share_names=False, positions="learned", lr=5e-4),
}
PRESETS = {  # other dials on the command line override these
    # A compact pre-norm BERT, ALBERT with --tied=True: learns in 4 minutes on a CPU
    "vanilla": dict(attention="vanilla", tied=False, n_clauses=6, n_supervised=6, n_names=6, n_layer=3,
                    muon_lr=4e-3, batch_size=128, warmup_steps=100, schedule="constant",
                    max_steps=4000, stop_at=0.999, eval_every=50, eval_size=500),
}


# ---- sentences: a function of the seed and the step, so a run can be resumed anywhere -----------------


def seed_of(config, purpose, step=0) -> int:
    # 32 bits: a generator on a CPU ignores higher ones
    return zlib.crc32(f"{purpose} {config.seed} {step}".encode())


def make_generator(config, purpose, step=0, device="cpu") -> torch.Generator:
    return torch.Generator(device).manual_seed(seed_of(config, purpose, step))


def draw_sentences(config, size, step, device) -> lego.Batch:
    """Training sentences; only labelled variables are asked for."""
    task = lego.make_task(config.task, config.n_names)
    generator = make_generator(config, "sentences", step, device)
    branch = 0.0
    if config.branch:  # a probability for each sentence; by the cube half of them are nearly chains
        dice = torch.rand(size, generator=generator, device=device, dtype=torch.float32)
        branch = config.branch * dice**3
    graphs = lego.random_graphs(size, config.n_clauses, branch, generator)
    batch = lego.sample(task, graphs, generator, arguments=config.carry != "none")
    columns = torch.arange(batch.values.size(1), device=device)
    return batch.ask(columns % config.n_clauses < config.n_supervised)


def draw_test(config, size, generator) -> lego.Batch:
    """Sentences to test on: chains, all variables."""
    graphs = lego.random_graphs(size, config.n_clauses, 0.0, generator)
    return lego.sample(lego.make_task(config.task, config.n_names), graphs, generator)


def next_batch(config, step, batch, draw, device):
    """
    The batch of a step, which is the batch of the step before with new sentences for those that are
    through; and the loop (B,) that each sentence makes: row b makes loop (step + b) mod n_layer + 1,
    and no loop later than step + 1, as all sentences are new at step 0. Without a carry they are new
    at every step.
    """
    loop = (step + torch.arange(config.batch_size, device=device)) % config.n_layer
    loop = loop.clamp(max=step) + 1
    if batch is None or config.carry == "none":
        return draw(config, config.batch_size, step, device), loop
    rows = (loop == 1).nonzero()[:, 0]
    if len(rows):
        new = draw(config, len(rows), step, device)
        batch = lego.Batch(*(x.index_copy(0, rows, y) for x, y in zip(batch, new)))
    return batch, loop


# ---- training ------------------------------------------------------------------------------------


@torch.random.fork_rng(devices=[])
def make_model(config) -> Transformer:
    """The Transformer of the dials, with random weights, or those of another run."""
    config = config.complete()
    torch.manual_seed(seed_of(config, "weights"))
    task = lego.make_task(config.task, config.n_names)
    n_rows = task.first_name + 1 if config.share_names else len(task.vocab)  # the names come last
    T = lego.TOKENS_PER_CLAUSE * config.n_clauses
    model = Transformer(config, task.vocab, n_rows, len(task.values), T)
    if config.init_from:
        other = read_checkpoint(config.init_from)
        model.init_from(other["model"], other["vocab"])
    return model


def make_optimizers(model, config) -> list[torch.optim.Optimizer]:
    """Muon for the matrices of the blocks, AdamW for the rest; AdamW for all if muon_lr is 0."""
    matrices, others = [], []
    for name, p in model.named_parameters():
        is_matrix = name.startswith("blocks.") and p.ndim == 2
        (matrices if is_matrix and config.muon_lr else others).append(p)
    optimizers = [torch.optim.AdamW(others, config.lr, betas=(0.9, config.beta2),
                                    weight_decay=config.weight_decay)]
    if matrices:
        optimizers.append(torch.optim.Muon(matrices, config.muon_lr, weight_decay=config.weight_decay))
    return optimizers


def lr_multiplier(step, config) -> float:
    """Linear warm-up, then the schedule."""
    if step < config.warmup_steps:
        return (step + 1) / config.warmup_steps
    left = 1 - (step - config.warmup_steps) / max(1, config.max_steps - config.warmup_steps)  # to 0
    cosine = 0.5 - 0.5 * math.cos(math.pi * left)
    return dict(constant=1.0, linear=left, cosine=cosine)[config.schedule]


def loss_of_step(model, batch, carry, loop):
    """The summed loss of a step, the number of labels, and what is handed on to the next step."""
    if model.config.carry != "none":
        return loss_of_one_loop(model, batch, carry, loop)
    loss, n, _ = loss_of(model, batch)
    return loss, n, None


def n_loops_at_test(config):
    """A model with a carry makes a loop for each clause and 4 to spare, another one its n_layer."""
    return config.n_layer if config.carry == "none" else config.n_clauses + 4


@torch.no_grad()
def evaluate(model, config, step=0):
    """The test loss and the accuracy of every variable, labelled or not, on new chains."""
    generator = make_generator(config, "test", step, model.head.weight.device)
    batch = draw_test(config, config.eval_size, generator)
    loss, n, right = 0, 0, 0
    for part in batch.split(128):
        part_loss, part_n, logits = loss_of(model, part, n_loops_at_test(config))
        loss, n = loss + part_loss, n + part_n
        right = right + (logits.argmax(-1) == part.values).sum(0)
    return (loss / n).item(), (right / len(batch.tokens)).tolist()


@torch.random.fork_rng(devices=[])
def train(config, model=None, draw=draw_sentences, loss_fn=loss_of_step, evaluate=evaluate,
          resume=False) -> dict:
    """
    Trains a model and returns the history of its run, which history.json keeps:

        config, n_parameters, hardware, torch    what ran, and where
        step, loss, test_loss, accuracy          one entry per evaluation: steps so far, mean training
                                                 loss since the last one in nats per label, and what
                                                 `evaluate` finds
        seconds                                  spent on training so far, evaluation not counted

    A given model is trained in place, and ends with the averaged weights; without one, model.load has
    it from out_dir. resume continues the run in config.out_dir. An experiment gives its own sentences,
    draw(config, size, step, device) -> Batch; its loss, loss_fn(model, batch, carry, loop) -> (sum,
    number of labels, what is handed on); or its test, evaluate(model, config, step) -> (loss, list of
    accuracies). InputError for dials that do not fit, and where a loss or a weight is not finite: then
    the last checkpoint stays.
    """
    config = config.complete()
    device = pick_device(config.device)
    model = (make_model(config) if model is None else model).to(device).train()
    averaged = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(config.ema)).eval()
    optimizers = make_optimizers(model, config)
    history = dict(config=asdict(config), n_parameters=model.n_parameters(), hardware=hardware(device),
                   torch=str(torch.__version__), step=[], loss=[], test_loss=[], accuracy=[], seconds=[])
    run = dict(step=0, seconds=0.0, losses=[], carry=None)  # losses: since the last evaluation
    batch = carry = None
    if resume:
        run = restore(config, model, averaged, optimizers, history, device)
        carry = run["carry"] if run["carry"] is None else run["carry"][MINE]
        for step in range(max(0, run["step"] - config.n_layer), run["step"]):  # all that it still has
            batch, _ = next_batch(config, step, batch, draw, device)
    if config.compile:
        for block in model.blocks:
            block.compile()
    autocast = torch.autocast(device.type, torch.bfloat16, enabled=config.dtype == "bfloat16")
    steps, clock = range(run["step"], config.max_steps + 1), time.perf_counter()
    bar = tqdm(steps, "training", config.max_steps, initial=run["step"], disable=RANK > 0 or None)
    for step in bar:
        # evaluate, with the clock stopped; what could be lost by it is saved before
        if evaluates_at(step, history):
            loss = mean_loss(model, run["losses"], config)
            seconds = run["seconds"] + time.perf_counter() - clock
            run |= dict(step=step, seconds=seconds, carry=of_all_ranks(carry))
            if step:  # at step 0 the files of the last run are worth more
                save(config, model, averaged, optimizers, history, run)
            with autocast:
                test_loss, accuracy = evaluate(averaged.module, config, step)
            note(history, config, step=step, loss=loss, test_loss=test_loss, accuracy=accuracy,
                 seconds=seconds)
            bar.write(report(history))
            run["losses"], clock = [], time.perf_counter()
        if step == config.max_steps or reached_stop_at(history):
            break

        # one step
        for group in (group for optimizer in optimizers for group in optimizer.param_groups):
            group["lr"] = group.setdefault("initial_lr", group["lr"]) * lr_multiplier(step, config)
        batch, loop = next_batch(config, step, batch, draw, device)
        torch.manual_seed(seed_of(config, f"dropout {RANK}", step))
        with autocast:
            loss, n, carry = loss_fn(model, batch.rows(MINE), carry, loop[MINE])
        total = sum_of_ranks(torch.stack((loss.detach(), n)))
        run["losses"].append(total)
        model.zero_grad()
        (loss / total[1].clamp(min=1)).backward()
        for p in model.parameters():
            sum_of_ranks(p.grad)
        if config.grad_clip:
            nn.utils.clip_grad_norm_(model.parameters(), config.grad_clip)
        for optimizer in optimizers:
            optimizer.step()
        averaged.update_parameters(model)
    model.load_state_dict(averaged.module.state_dict())
    model.eval()
    return history


def evaluates_at(step, history) -> bool:
    """At the end, and every eval_every steps; once every variable is right less often, if it goes on."""
    config, last = history["config"], history["accuracy"][-1:]
    solved = bool(last) and min(last[0], default=0) >= 0.999 and not config["stop_at"]
    is_time = step % (config["eval_every"] * (10 if solved else 1)) == 0
    return (is_time or step == config["max_steps"]) and step not in history["step"]


def reached_stop_at(history, n_evaluations=5) -> bool:
    """Whether every variable is at stop_at or better over the last evaluations together."""
    stop_at, last = history["config"]["stop_at"], history["accuracy"][-n_evaluations:]
    means = np.mean(last, 0) if len(last) == n_evaluations else []
    return 0 < stop_at <= min(means, default=0)


def mean_loss(model, losses, config) -> float | None:
    """Per label, of steps (sum, number of labels). InputError if it or a weight is not finite."""
    if not losses:
        return None
    total, n = torch.stack(losses).sum(0).tolist()
    if not math.isfinite(total) or not all(p.isfinite().all() for p in model.parameters()):
        raise InputError(f"the training loss or a weight is not finite: try a smaller lr={config.lr} or "
                         f"muon_lr={config.muon_lr}; the last checkpoint stays")
    return total / n if n else None


def note(history, config, **row):
    """Adds the row of an evaluation, the same in all processes, to the history and its file."""
    if N_RANKS > 1:  # all take that of the first one, so that they decide alike
        dist.broadcast_object_list(rows := [row])
        row = rows[0]
    if not math.isfinite(row["test_loss"]):
        raise InputError(f"the test loss at step {row['step']} is {row['test_loss']}, expected a number")
    for column, x in row.items():
        history[column].append(x)
    if config.out_dir and row["step"] and RANK == 0:
        (Path(config.out_dir) / "history.json").write_text(json.dumps(history, indent=1))


def save(config, model, averaged, optimizers, history, run):
    """model.load reads config, vocab and model, `restore` all. The file is never half of one."""
    if not config.out_dir or RANK > 0:
        return
    checkpoint = dict(config=asdict(config), vocab=model.vocab, model=averaged.module.state_dict(),
                      last=model.state_dict(), history=history, run=run,
                      optimizers=[optimizer.state_dict() for optimizer in optimizers])
    path = Path(config.out_dir) / "checkpoint.pt"
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(checkpoint, f"{path}.tmp")
    os.replace(f"{path}.tmp", path)


def restore(config, model, averaged, optimizers, history, device):
    """Puts a run where its checkpoint left it; returns what is not in its models and optimizers."""
    saved = read_checkpoint(config.out_dir, device)
    model.load_state_dict(saved["last"])
    averaged.module.load_state_dict(saved["model"])
    averaged.n_averaged.fill_(saved["run"]["step"])
    for optimizer, state in zip(optimizers, saved["optimizers"], strict=True):
        optimizer.load_state_dict(state)
    history |= {column: x for column, x in saved["history"].items() if isinstance(x, list)}
    return saved["run"]


def pick_device(name) -> torch.device:
    if name == "auto":
        name = (torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu")).type
    if name == "cuda":
        name = f"cuda:{os.environ.get('LOCAL_RANK', 0) if N_RANKS > 1 else 0}"
    try:
        return torch.empty(0, device=name).device
    except (RuntimeError, AssertionError) as error:  # a torch without CUDA raises the second
        raise InputError(f"device={name}: expected auto, cpu, or a GPU of this machine") from error


# ---- several processes, by torchrun: each takes its rows of the same batch ---------------------------


RANK, N_RANKS = 0, 1
if {"TORCHELASTIC_RUN_ID", "RANK", "WORLD_SIZE", "MASTER_ADDR"} <= os.environ.keys():
    dist.init_process_group()
    RANK, N_RANKS = dist.get_rank(), dist.get_world_size()
MINE = slice(RANK, None, N_RANKS)


def sum_of_ranks(x):
    if N_RANKS > 1 and x is not None:
        dist.all_reduce(x)
    return x


def of_all_ranks(x):
    """The whole of a tensor of which each process holds its rows."""
    if N_RANKS == 1 or x is None:
        return x
    whole = x.new_zeros(N_RANKS * len(x), *x.shape[1:])
    whole[MINE] = x
    return sum_of_ranks(whole)


# ---- what a run shows ----------------------------------------------------------------------------


def hardware(device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    n = torch.get_num_threads()
    return f"{n} CPU thread{'s' * (n > 1)}, {platform.machine()}" if device.type == "cpu" else device.type


def report(history) -> str:
    """The last evaluation in one line; accuracies in %, variables without a label after |."""
    n = history["config"]["n_supervised"]
    cells = [f"{100 * x:5.1f}" for x in history["accuracy"][-1]]
    cells[n:n] = ["|"] * (len(cells) > n)
    loss = "     -" if history["loss"][-1] is None else f"{history['loss'][-1]:.4f}"
    return (f"step {history['step'][-1]:5d}   {history['seconds'][-1]:6.1f} s   loss {loss}   "
            f"test {history['test_loss'][-1]:.4f}   {' '.join(cells)}")


def draw_accuracy(axes, histories):
    """
    The test accuracy of every variable over training: mean of runs that differ in the seed, worst to
    best shaded.
    """
    from matplotlib import colormaps

    c = histories[0]["config"]
    steps = sorted({step for history in histories for step in history["step"]})
    latest = lambda history, step: history["accuracy"][bisect_right(history["step"], step) - 1]
    runs = 100 * np.array([[latest(h, step) for step in steps] for h in histories])  # (runs, steps, n)
    n, chance = runs.shape[-1], 100 / len(lego.make_task(c["task"]).values)
    for i in range(n):
        color, is_labelled = colormaps["viridis"](0.9 * i / max(1, n - 1)), i < c["n_supervised"]
        axes.plot(steps, runs[:, :, i].mean(0), color=color, linewidth=2,
                  linestyle="-" if is_labelled else "--",
                  label=f"{i + 1}{'' if is_labelled else ', unlabelled'}")
        axes.fill_between(steps, runs[:, :, i].min(0), runs[:, :, i].max(0), color=color, alpha=0.08,
                          linewidth=0)
    axes.axhline(chance, color="gray", linestyle=":", linewidth=1, label=f"chance, {chance:.3g}%")
    axes.set(xlabel=f"training steps, of {c['batch_size']} sentences each", ylabel="test accuracy (%)",
             xlim=(0, max(steps[-1], 1)), ylim=(None, 101.5))
    if n <= 14:
        axes.legend(title="variable, in chain order", loc="center left", bbox_to_anchor=(1.01, 0.5),
                    frameon=False, fontsize=9)


def plot(history, path):
    """The plot of a run as PNG."""
    from matplotlib.figure import Figure

    c = history["config"]
    figure = Figure(figsize=(9, 4.6), layout="constrained")
    figure.suptitle(f"LEGO {c['task']}, {c['attention']} attention, {'tied' if c['tied'] else 'untied'}, "
                    f"{history['n_parameters']:,} parameters: {history['seconds'][-1]:.0f} s of training "
                    f"on {history['hardware']}", fontsize=10)
    draw_accuracy(figure.subplots(), [history])
    figure.savefig(path, dpi=150)
    print(f"wrote {path}")


def show_mistakes(model, config, n_shown=2):
    """What the model answers to new sentences, those with the most mistakes first."""
    generator = make_generator(config, "examples", device=model.head.weight.device)
    batch = draw_test(config, 100, generator)
    mistakes = (predict(model, batch, n_loops_at_test(config)) != batch.values).sum(1)
    print(f"{(mistakes > 0).sum()} of {len(mistakes)} new sentences have a mistake; some of them:")
    task = lego.make_task(config.task, config.n_names)
    for i in mistakes.argsort(descending=True, stable=True)[:n_shown]:
        answer(model, lego.decode(batch.tokens[i], task), task)


# ---- the command line ----------------------------------------------------------------------------


RESUME_MAY_CHANGE = ("max_steps", "stop_at", "schedule", "eval_every", "out_dir", "device", "compile")


def parse(kind=Config, **preset):
    """
    The dials of the command line, complete, on top of those of a preset; with --resume, of the run
    that goes on. And whether it resumes. What is wrong ends the program in one line.
    """
    parser = argparse.ArgumentParser(usage=argparse.SUPPRESS, allow_abbrev=False,
                                     formatter_class=argparse.RawDescriptionHelpFormatter,
                                     description=sys.modules["__main__"].__doc__,
                                     epilog=inspect.getsource(kind))
    parser.add_argument("--preset", choices=PRESETS)
    parser.add_argument("--resume", action="store_true")
    for field in fields(kind):
        of = get_args(field.type) or (field.type,)  # (int, None), (Literal, None), or a Literal's words
        of = get_args(of[0]) or of
        more = dict(type=of[0]) if isinstance(of[0], type) else dict(choices=of)
        if of[0] is bool:
            to_bool = lambda text: {"true": True, "false": False}.get(text.lower(), text)
            more = dict(type=to_bool, choices=(True, False), nargs="?", const=True)
        parser.add_argument(f"--{field.name}", default=argparse.SUPPRESS, help=argparse.SUPPRESS, **more)
    given, unknown = parser.parse_known_args()
    if unknown:
        parser.error(f"{unknown[0]}: expected one of --{', --'.join(f.name for f in fields(kind))}")
    given = vars(given)
    dials, resume = {**preset, **PRESETS.get(given.pop("preset"), {})}, given.pop("resume")
    try:
        if resume:
            dials = read_checkpoint(given.setdefault("out_dir", dials.get("out_dir", "out")))["config"]
            for name in given.keys() - {*RESUME_MAY_CHANGE}:
                if given[name] != dials[name]:
                    raise InputError(f"{name}={given[name]}: expected {dials[name]}, as in the run to "
                                     f"resume; only {', '.join(RESUME_MAY_CHANGE)} may change")
        config = kind(**dials | given)
        completed = config.complete()
        pick_device(config.device)
        if config.out_dir:
            Path(config.out_dir).mkdir(parents=True, exist_ok=True)
        if config.init_from:
            read_checkpoint(config.init_from)
    except (InputError, OSError) as error:
        parser.error(str(error))
    followed = [f"{f.name}={getattr(completed, f.name)}" for f in fields(kind)
                if getattr(config, f.name) is None]
    if RANK == 0:
        print("dials that follow from others: " + ", ".join(followed))
    return completed, resume


def run(config, resume=False, **hooks):
    """As `train`, for a command line: numbers that run away, and Ctrl-C, end it in one line."""
    try:
        return train(config, resume=resume, **hooks)
    except (InputError, KeyboardInterrupt) as end:
        goes_on = f"stopped; --resume --out_dir={config.out_dir} goes on from the last evaluation"
        print(str(end) or goes_on, file=sys.stderr)
        sys.exit(2 if isinstance(end, InputError) else 130)


if __name__ == "__main__":
    os.environ.pop("MPLBACKEND", None)  # of a notebook that has started this
    config, resume = parse()
    model = make_model(config)
    print(f"{model.n_parameters():,} parameters; accuracy in % of every variable in chain order, "
          "labelled | unlabelled")
    history = run(config, resume, model=model)
    if config.out_dir:
        plot(history, Path(config.out_dir) / "accuracy.png")
    show_mistakes(model, config)
