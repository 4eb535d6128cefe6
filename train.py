"""
Trains a Transformer on LEGO and plots the test accuracy of every variable.

    python train.py                              tied LEGO attention, 12 clauses, 6 labelled
    python train.py --task=d3 --n_supervised=2   any dial below is --key=value
    python train.py --attention=vanilla          a tied vanilla Transformer, learned positions
    python train.py --preset=vanilla             many dials at once, see PRESETS
    python train.py --init_from=FOLDER           start from the weights of another run, its out_dir
    python train.py --resume                     go on where the last evaluation of a run left it
    torchrun --nproc_per_node=4 train.py         each process takes a share of every batch

One step of the default:

    sentences = new ones, of which the first n_supervised variables by depth have a label
    known     = for each of these a coin: does the model know it already? then its value is a fact
    x         = one loop of the block, on the tokens and the facts
    told      = what this loop can tell: variables that are known, and those whose argument is
    loss      = cross-entropy where it is told, at left-hand sides and at arguments
              + elsewhere, how far the prediction is from equal probabilities: "I don't know"
    one backward pass through this one loop, one step of the optimizers

So it learns one rule, a link of a chain, from every stage of an answer, and no gradient crosses
loops. In the test the model is on its own: it loops from no fact at all, and hands on what it is
sure of, until a loop adds nothing. The variables without a label are asked for in the test alone.
Models without facts, such as BERT, make all their layers in one step and have a loss after the
last.

Writes checkpoint.pt and history.json into out_dir at every evaluation, and accuracy.png at the end.
An experiment with other sentences, another loss or another test hands its own to `train`: see
figures/mimic.py.
"""
import argparse
import ast
import inspect
import json
import math
import os
import platform
import sys
import time
import zlib
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
from model import (Transformer, answer, can_be_proved, in_words, loss_of, loss_of_one_loop, predict,
                   prove, read_checkpoint, task_of)


# ---- the dials -----------------------------------------------------------------------------------


@dataclass
class Config:
    # task
    task: str = "sign"  # or d<k>, c<k>, s<k>, a<k>, see lego.make_task
    n_clauses: int = 12  # variables of a sentence, T = 5 n_clauses tokens
    n_supervised: int | None = None  # the first variables by depth are labelled; None: half
    n_names: int = 26  # variables to draw from, at least n_clauses: a to z, then v26, v27, ...
    # model
    init_from: str = ""  # start from the weights of another run of this shape: its out_dir
    attention: Literal["lego", "vanilla", "hybrid"] = "lego"  # hybrid: half vanilla, half LEGO
    tied: bool = True  # one block for all layers (ALBERT); False: a block for each (BERT)
    n_layer: int | None = None  # blocks; tied: loops of the one block; facts: as many as it takes
    facts: bool | None = None  # tied: a loop hands on what it is sure of; False: its whole state
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
    batch_size: int = 32  # sentences per step
    unknown_weight: float = 0.2  # facts: of the loss where it should say that it knows nothing
    max_steps: int = 300
    stop_at: float | None = None  # stop at this accuracy, mean of 5 evaluations; None: when proved
    lr: float | None = None  # AdamW
    muon_lr: float = 0.0  # Muon, in place of AdamW for the matrices of the blocks; 0: off
    beta2: float = 0.99  # AdamW
    weight_decay: float = 0.01
    grad_clip: float = 1.0  # largest norm of the gradient; 0: off
    warmup_steps: int = 10
    schedule: Literal["constant", "linear", "cosine"] = "linear"  # of the rates after warm-up
    ema: float = 0.0  # decay of the averaged weights, which are tested and saved; 0: the last ones
    seed: int = 0
    # evaluation and files
    eval_every: int = 5  # steps between evaluations
    eval_size: int = 100  # new sentences at each evaluation
    out_dir: str = "out"  # "": write no files
    # machine
    device: str = "auto"  # auto, cpu, cuda, cuda:1, mps
    dtype: Literal["float32", "bfloat16"] = "float32"  # of matrix products; bfloat16 on a GPU
    compile: bool = False  # torch.compile the blocks

    def complete(self):
        """These dials, None filled in. InputError for the first that does not fit."""
        for field in fields(self):
            if not fits(getattr(self, field.name), field.type):
                raise InputError(f"{field.name}={getattr(self, field.name)}: expected "
                                 f"{inspect.formatannotation(field.type)}")
        n = self.n_supervised or max(1, self.n_clauses // 2)
        follows = dict(n_supervised=n, n_layer=n + 3, facts=self.tied and self.attention == "lego",
                       **FOLLOWS_ATTENTION.get(self.attention, FOLLOWS_ATTENTION["vanilla"]))
        dials = {name: x for name, x in follows.items() if getattr(self, name) is None}
        c = replace(self, **dials, n_names=max(self.n_names, self.n_clauses))
        for name in ("n_supervised", "n_layer", "n_embd", "n_head", "batch_size", "max_steps",
                     "eval_every", "eval_size"):
            if getattr(c, name) < 1:
                raise InputError(f"{name}={getattr(c, name)}: expected at least 1")
        if c.n_supervised > c.n_clauses:
            raise InputError(f"n_supervised={n}: expected at most n_clauses={c.n_clauses}")
        if c.facts and not c.tied:
            raise InputError("facts=True: expected False for untied layers")
        if c.attention != "lego" and c.n_embd % c.n_head:
            raise InputError(f"n_head={c.n_head}: expected a divisor of n_embd={c.n_embd}")
        lego.make_task(c.task, c.n_names)
        return c


def fits(value, kind) -> bool:
    """Whether a value is of a type, of one of several, or a word of a Literal."""
    if isinstance(kind, type):
        return isinstance(value, kind) or kind is float and isinstance(value, int)
    return any(value == option or fits(value, option) for option in get_args(kind))


OF_LEGO = dict(norm="both", share_names=True, positions="none", lr=1e-2)
FOLLOWS_ATTENTION = {  # dials that are None take these; any other attention is treated as vanilla
    "lego": OF_LEGO,
    "hybrid": OF_LEGO,
    "vanilla": dict(norm="first", share_names=False, positions="learned", lr=5e-4),
}
PRESETS = {  # other dials on the command line override these
    # A compact pre-norm BERT, ALBERT with --tied=True: learns in 4 minutes on a CPU
    "vanilla": dict(attention="vanilla", tied=False, n_clauses=6, n_supervised=6, n_names=6,
                    n_layer=3, muon_lr=4e-3, ema=0.95, batch_size=128, warmup_steps=100,
                    schedule="constant", max_steps=4000, stop_at=0.999, eval_every=50,
                    eval_size=500),
}


# ---- sentences: a function of the seed and the step, so a run can be resumed anywhere ------------


def seed_of(config, purpose, step=0) -> int:
    # 32 bits: a generator on a CPU ignores higher ones
    return zlib.crc32(f"{purpose} {config.seed} {step}".encode())


def make_generator(config, purpose, step=0, device="cpu") -> torch.Generator:
    return torch.Generator(device).manual_seed(seed_of(config, purpose, step))


def draw_sentences(config, size, step, device) -> lego.Batch:
    """Training sentences: chains, asked about the labelled variables; with facts some are known."""
    task = lego.make_task(config.task, config.n_names)
    generator = make_generator(config, "sentences", step, device)
    graphs = lego.random_graphs(size, config.n_clauses, 0.0, generator)  # chains
    batch = lego.sample(task, graphs, generator).ask(slice(config.n_supervised))
    return lego.reveal(task, batch, generator) if config.facts else batch


def draw_test(config, size, generator) -> lego.Batch:
    """Sentences to test on: chains, all variables."""
    graphs = lego.random_graphs(size, config.n_clauses, 0.0, generator)
    return lego.sample(lego.make_task(config.task, config.n_names), graphs, generator)


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
        optimizers.append(torch.optim.Muon(matrices, config.muon_lr,
                                           weight_decay=config.weight_decay))
    return optimizers


def lr_multiplier(step, config) -> float:
    """Linear warm-up, then the schedule."""
    if step < config.warmup_steps:
        return (step + 1) / config.warmup_steps
    left = 1 - (step - config.warmup_steps) / max(1, config.max_steps - config.warmup_steps)  # to 0
    cosine = 0.5 - 0.5 * math.cos(math.pi * left)
    return dict(constant=1.0, linear=left, cosine=cosine)[config.schedule]


def loss_of_step(model, batch):
    """The summed loss of a step, and the number of labels."""
    if model.config.facts:
        return loss_of_one_loop(model, batch)
    return loss_of(predict(model, batch), batch.values)


@torch.no_grad()
def evaluate(model, config, step=0):
    """The test loss and the accuracy of every variable, labelled or not, on new chains."""
    generator = make_generator(config, "test", step, model.head.weight.device)
    batch = draw_test(config, config.eval_size, generator)
    logits = torch.cat([predict(model, part) for part in batch.split(128)])  # (B, n, n_out)
    loss, n = loss_of(logits, batch.values)
    accuracy = (logits.argmax(-1) == batch.values).float().mean(0)
    return (loss / n).item(), accuracy.tolist()


@torch.random.fork_rng(devices=[])
def train(config, model=None, draw=draw_sentences, loss_fn=loss_of_step, evaluate=evaluate,
          resume=False) -> dict:
    """
    Trains a model and returns the history of its run, which history.json keeps:

        config, n_parameters, hardware, torch    what ran, and where
        step, loss, test_loss, accuracy          one entry per evaluation: steps so far, mean
                                                 training loss since the last one in nats per label,
                                                 and what `evaluate` finds
        seconds                                  spent on training so far, evaluation not counted
        proof                                    what model.prove found last, or None

    A given model is trained in place, and ends with the averaged weights; without one, model.load
    has it from out_dir. resume continues the run in config.out_dir. An experiment gives its own
    sentences, draw(config, size, step, device) -> Batch; its loss, loss_fn(model, batch) -> (sum,
    number of labels); or its test, evaluate(model, config, step) -> (loss, list of accuracies).
    InputError for dials that do not fit, and where a loss or a weight is not finite: then the last
    checkpoint stays.
    """
    config = config.complete()
    device = pick_device(config.device)
    model = (make_model(config) if model is None else model).to(device).train()
    averaged = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(config.ema)).eval()
    optimizers = make_optimizers(model, config)
    history = dict(config=asdict(config), n_parameters=model.n_parameters(),
                   hardware=hardware(device), torch=str(torch.__version__), step=[], loss=[],
                   test_loss=[], accuracy=[], seconds=[], proof=None)
    run, losses = dict(step=0, seconds=0.0, loss=None), []
    if resume:
        run = restore(config, model, averaged, optimizers, history, device)
    if config.compile:
        for block in model.blocks:
            block.compile()
    autocast = torch.autocast(device.type, torch.bfloat16, enabled=config.dtype == "bfloat16")
    steps, clock = range(run["step"], config.max_steps + 1), time.perf_counter()
    is_silent = RANK > 0 or sys.stderr is None or None  # None: where it is no terminal
    bar = tqdm(steps, "training", config.max_steps, initial=run["step"], disable=is_silent)
    for step in bar:
        # evaluate, with the clock stopped; what could be lost by it is saved before
        if evaluates_at(step, history):
            if losses:
                total, n = torch.stack(losses).sum(0).tolist()
                check_finite(total, *model.parameters())
                run["loss"] = total / max(n, 1)
            run |= dict(step=step, seconds=run["seconds"] + time.perf_counter() - clock)
            save(config, model, averaged, optimizers, history, run)
            with autocast:
                test_loss, accuracy = of_first_rank(evaluate(averaged.module, config, step))
            check_finite(test_loss)
            for column, x in dict(run, test_loss=test_loss, accuracy=accuracy).items():
                history[column].append(x)
            if config.stop_at is None and min(accuracy, default=0) >= 0.999:
                history["proof"] = proof_of(averaged.module, config)
            if RANK == 0:
                bar.write(report(history))
            losses, clock = [], time.perf_counter()
        if step == config.max_steps or is_done(history):
            break

        # one step
        for group in (group for optimizer in optimizers for group in optimizer.param_groups):
            group["lr"] = group.setdefault("initial_lr", group["lr"]) * lr_multiplier(step, config)
        batch = draw(config, config.batch_size, step, device).rows(MINE)
        torch.manual_seed(seed_of(config, f"dropout {RANK}", step))
        with autocast:
            loss, n = loss_fn(model, batch)
        total = sum_of_ranks(torch.stack((loss.detach(), n)))
        losses.append(total)
        model.zero_grad()
        (loss / total[1].clamp(min=1)).backward()
        for p in model.parameters():
            sum_of_ranks(p.grad)
        if config.grad_clip:
            nn.utils.clip_grad_norm_(model.parameters(), config.grad_clip)
        for optimizer in optimizers:
            optimizer.step()
        averaged.update_parameters(model)
    save(config, model, averaged, optimizers, history, run)
    model.load_state_dict(averaged.module.state_dict())
    model.eval()
    return history


def evaluates_at(step, history) -> bool:
    config = history["config"]
    is_time = step % config["eval_every"] == 0 or step == config["max_steps"]
    return is_time and step not in history["step"]


def proof_of(model, config, all_of_it=False) -> dict | None:
    """
    What `prove` finds; None for a model that it refuses, and where it takes too long: 12 values
    have 300,000 cases, 24 four million.
    """
    task = lego.make_task(config.task)
    if not can_be_proved(model) or len(task.values) > 12:
        return None
    return prove(model, task, all_of_it)


def is_proved(history) -> bool:
    return history["proof"] is not None and history["proof"]["n_wrong"] == 0


def is_done(history, n_evaluations=5) -> bool:
    """Proved, or every variable at stop_at or better over the last evaluations together."""
    stop_at, last = history["config"]["stop_at"], history["accuracy"][-n_evaluations:]
    if stop_at is None:
        return is_proved(history)
    return 0 < stop_at and len(last) == n_evaluations and min(np.mean(last, 0)) >= stop_at


def check_finite(*numbers):
    """InputError unless all of these numbers and tensors are finite: what is saved stays."""
    if not all(torch.as_tensor(x).isfinite().all() for x in numbers):
        raise InputError("a loss or a weight is not finite: try a smaller lr or muon_lr; the last "
                         "checkpoint stays")


def save(config, model, averaged, optimizers, history, run):
    """
    model.load reads config, vocab and model, `restore` all. A file is the old one or the new one.
    At step 0 the files of the run before are worth more.
    """
    if not config.out_dir or RANK > 0 or run["step"] == 0:
        return
    checkpoint = dict(config=asdict(config), vocab=model.vocab, model=averaged.module.state_dict(),
                      last=model.state_dict(), history=history, run=run,
                      optimizers=[optimizer.state_dict() for optimizer in optimizers])
    folder = Path(config.out_dir)
    folder.mkdir(parents=True, exist_ok=True)
    torch.save(checkpoint, folder / "checkpoint.tmp")
    os.replace(folder / "checkpoint.tmp", folder / "checkpoint.pt")
    (folder / "history.tmp").write_text(json.dumps(history, indent=1))
    os.replace(folder / "history.tmp", folder / "history.json")


def restore(config, model, averaged, optimizers, history, device):
    """Puts a run where its checkpoint left it; returns what is not in its models and optimizers."""
    saved = read_checkpoint(config.out_dir, device)
    model.load_state_dict(saved["last"])
    averaged.module.load_state_dict(saved["model"])
    averaged.n_averaged.fill_(saved["run"]["step"])
    for optimizer, state in zip(optimizers, saved["optimizers"], strict=True):
        optimizer.load_state_dict(state)
    history |= {key: x for key, x in saved["history"].items()
                if isinstance(x, list) or key == "proof"}
    return saved["run"]


def pick_device(name) -> torch.device:
    if name == "auto":
        name = torch.accelerator.current_accelerator(check_available=True) or "cpu"
    try:
        return torch.empty(0, device=name).device
    except (RuntimeError, AssertionError) as error:  # a torch without CUDA raises the second
        raise InputError(f"device={name}: expected auto, cpu, or a GPU of this machine") from error


# ---- several processes, by torchrun: each takes its rows of the same batch -----------------------


RANK, N_RANKS = 0, 1
if {"TORCHELASTIC_RUN_ID", "RANK", "WORLD_SIZE", "MASTER_ADDR"} <= os.environ.keys():
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    dist.init_process_group()
    RANK, N_RANKS = dist.get_rank(), dist.get_world_size()
MINE = slice(RANK, None, N_RANKS)


def sum_of_ranks(x):
    if N_RANKS > 1 and x is not None:
        dist.all_reduce(x)
    return x


def of_first_rank(x):
    """What the first process has found, so that all decide alike."""
    found = [x]
    if N_RANKS > 1:
        dist.broadcast_object_list(found)
    return found[0]


# ---- what a run shows ----------------------------------------------------------------------------


def hardware(device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    if device.type != "cpu":
        return device.type
    n = torch.get_num_threads()
    return f"{n} CPU thread{'s' * (n > 1)}, {platform.machine()}"


def report(history) -> str:
    """The last evaluation in one line; accuracies in %, variables without a label after |."""
    n = history["config"]["n_supervised"]
    cells = [f"{100 * x:5.1f}" for x in history["accuracy"][-1]]
    cells[n:n] = ["|"] * (len(cells) > n)
    loss = "     -" if history["loss"][-1] is None else f"{history['loss'][-1]:.4f}"
    return (f"step {history['step'][-1]:5d}   {history['seconds'][-1]:6.1f} s   loss {loss}   "
            f"test {history['test_loss'][-1]:.4f}   {' '.join(cells)}")


def draw_accuracy(axes, histories):
    """The test accuracy of every variable over training: mean of runs, worst to best shaded."""
    from matplotlib import colormaps

    c, steps = histories[0]["config"], sorted({step for h in histories for step in h["step"]})
    runs = 100 * np.array([[np.interp(steps, h["step"], column) for column in zip(*h["accuracy"])]
                           for h in histories])  # (runs, n, steps)
    n, chance = runs.shape[1], 100 / len(lego.make_task(c["task"]).values)
    for i in range(n):
        color, is_labelled = colormaps["viridis"](0.9 * i / max(1, n - 1)), i < c["n_supervised"]
        axes.plot(steps, runs[:, i].mean(0), color=color, linewidth=2, label=f"{i + 1}"
                  + ", unlabelled" * (not is_labelled), linestyle="-" if is_labelled else "--")
        axes.fill_between(steps, runs[:, i].min(0), runs[:, i].max(0), color=color, alpha=0.08)
    axes.axhline(chance, color="gray", linestyle=":", label=f"chance, {chance:.3g}%")
    axes.set(xlabel=f"training steps, of {c['batch_size']} sentences each",
             ylabel="test accuracy (%)")
    axes.legend(title="variable, in chain order", loc="center left", bbox_to_anchor=(1.01, 0.5),
                frameon=False, fontsize=9)


def plot(history, path):
    """The plot of a run as PNG."""
    from matplotlib.figure import Figure

    c = history["config"]
    figure = Figure(figsize=(9, 4.6), layout="constrained")
    figure.suptitle(f"LEGO {c['task']}, {c['attention']} attention, {history['n_parameters']:,} "
                    f"parameters: {history['seconds'][-1]:.1f} s on {history['hardware']}"
                    + ", then proved" * is_proved(history), fontsize=11)
    draw_accuracy(figure.subplots(), [history])
    figure.savefig(path, dpi=150)


# ---- the command line ----------------------------------------------------------------------------


MAY_CHANGE = "max_steps", "stop_at", "schedule", "eval_every", "out_dir", "device", "compile"


def literal(text):
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text  # a word


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
        is_bool = bool in (field.type, *get_args(field.type))
        bare = dict(nargs="?", const=True) if is_bool else {}
        parser.add_argument(f"--{field.name}", type=str if field.type is str else literal, **bare,
                            default=argparse.SUPPRESS, help=argparse.SUPPRESS)
    given, unknown = parser.parse_known_args()
    if unknown:
        parser.error(f"{unknown[0]}: expected one of --{', --'.join(f.name for f in fields(kind))}")
    given = vars(given)
    dials, resume = {**preset, **PRESETS.get(given.pop("preset"), {})}, given.pop("resume")
    try:
        if resume:
            folder = given.get("out_dir", dials.get("out_dir", Config.out_dir))
            dials = read_checkpoint(folder)["config"]
            for name in given.keys() - {*MAY_CHANGE}:
                if given[name] != dials[name]:
                    raise InputError(f"{name}={given[name]}: expected {dials[name]}, as in the run "
                                     f"to resume; only {', '.join(MAY_CHANGE)} may change")
        config = kind(**dials | given)
        completed = config.complete()
        pick_device(config.device)
        if config.init_from:
            read_checkpoint(config.init_from)
    except InputError as error:
        parser.error(str(error))
    if RANK == 0:
        print("These dials follow from others: " + ", ".join(
            f"{field.name}={getattr(completed, field.name)}" for field in fields(kind)
            if getattr(config, field.name) is None))
    return completed, resume


def run(config, resume=False, **hooks):
    """As `train`, for a command line: what is wrong, and Ctrl-C, end it in one line."""
    try:
        Path(config.out_dir).mkdir(parents=True, exist_ok=True)
        return train(config, resume=resume, **hooks)
    except (InputError, OSError) as error:
        print(error, file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print(f"stopped; --resume --out_dir={config.out_dir} goes on from the last evaluation",
              file=sys.stderr)
        sys.exit(130)


if __name__ == "__main__":
    os.environ.pop("MPLBACKEND", None)  # of a notebook that has started this
    config, resume = parse()
    model = make_model(config)
    if RANK == 0:
        print(f"{model.n_parameters():,} parameters; accuracies of every variable by depth, in %, "
              "labelled | unlabelled")
    history = run(config, resume, model=model)
    if RANK == 0:
        if config.out_dir:
            plot(history, Path(config.out_dir) / "accuracy.png")
        batch, task = draw_test(config, 1, make_generator(config, "example")), task_of(model)
        answer(model.cpu(), lego.decode(batch.tokens[0], task), task)
        print(f"""
steps: {history["step"][-1]}
seconds: {history["seconds"][-1]:.1f}
test_accuracy: {min(history["accuracy"][-1]):.4f} of the worst variable
out_dir: {config.out_dir}
{in_words(proof_of(model, config, all_of_it=True))}""")
