"""
Trains a Transformer on LEGO and draws the test accuracy of every variable over training.

    python train.py                                     tied LEGO attention, 12 clauses, the first 6 supervised
    python train.py --task=d3                           another task with the same dials
    python train.py --n_supervised=2                    any dial below is --key=value
    python train.py --preset=paper                      many dials at once: see PRESETS
    python train.py --preset=words                      pretrain on the hidden words of real text
    python train.py --init_from=FOLDER                  begin from pretrained weights: an out_dir, or a BERT
    python train.py --ask="b=-a; a=+1; c=+b"            ask the last checkpoint
    python train.py --resume                            continue a stopped run, to the same numbers as an unbroken one
    torchrun --standalone --nproc_per_node=4 train.py   on 4 GPUs, or in 4 processes: each takes a share of a batch

A run writes checkpoint.pt and history.json into `out_dir` at every evaluation and when it is told to stop, each as a
whole, and a plot at the end.
"""
import difflib
import json
import math
import os
import platform
import signal
import sys
import textwrap
import threading
import time
import warnings
import zipfile
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import torch
import torch.distributed as dist
import torch.nn as nn
import torch.nn.functional as F
from torch.nn.parallel import DistributedDataParallel
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from tqdm import tqdm

import lego
from attention import patterns
from model import ModelConfig, Transformer, read_bert

# ----------------------------------------------------------------------------------------------------------------------
# the dials


@dataclass
class Config:
    # task
    task: str = "sign"  # sign; d3 or d<k> dihedral, c<k> cyclic, s<k> symmetric groups: see lego.make_task; or words
    n_clauses: int = 12  # length of the chain; a sentence has T = 5 n_clauses tokens
    n_supervised: int = 6  # the first variables in chain order, which may carry a label in training; all are measured
    n_names: int = 26  # variables to draw from, up to 1024: a to z, then v26, v27, ...
    min_clauses: int = 0  # clauses of a training sentence: each batch draws from here to n_clauses; 0: n_clauses
    n_distractor: int = 0  # ... of which up to so many, drawn for each batch, are a second, unlabelled chain; 0: none
    drop_clause: float = 0.0  # share of the training batches whose sentences lack one clause, drawn at random; 0: none
    every_layer: bool = False  # ask for a variable after every layer that can know it; False: after the last one only
    mimic: bool = False  # train no values, but vanilla heads 0 and 1 of every layer to attend as LEGO attention does
    corpus: str = ""  # words: a UTF-8 text file; "": the docstrings of torch, numpy and matplotlib
    n_words: int = 8192  # words: size of the vocabulary
    n_tokens: int = 128  # words: T, the window of text
    # model
    init_from: str = ""  # begin from the weights in a folder, another run's out_dir or a BERT's, and take its shape
    attention: str = "lego"  # lego, vanilla, or hybrid of both
    tied: bool = True  # one block for all layers (ALBERT); False: a block for each (BERT)
    n_layer: int = 5  # blocks; for a tied model the loops of its one block in training ...
    loop_jitter: int = 4  # ... give or take this many, drawn for each step; 0: always n_layer. Tied only
    eval_loops: int = 16  # tied: loops at test time, one for each link and some to spare; 0: n_layer, or the links
    n_embd: int = 64  # width C
    norm_first: bool = True  # pre-norm; False: post-norm (BERT)
    dropout: float = 0.0  # BERT: 0.1
    norm_eps: float = 1e-5  # of the layer norms; BERT: 1e-12
    self_condition: bool = True  # tied: a loop begins from the tokens and what the one before said, not from its state
    norm_state: bool = True  # normalise what a block begins from, and its output
    shared_names: bool = True  # lego, hybrid: all variables have one embedding, and only association tells them apart
    init_std: float = 0.1  # of all weights at the start; BERT: 0.02
    positions: str = "none"  # learned (BERT), or none: then any length of sentence will do
    n_head: int = 4  # vanilla, hybrid: heads of n_embd / n_head channels
    vanilla_share: float = 0.5  # hybrid: share of the heads that stay vanilla
    association_share: float = 0.5  # lego, hybrid: share of the channels that pass association
    kernel_size: int = 7  # lego, hybrid: width of the convolution in positions, odd; 7 spans a clause from its variable
    chained: bool = True  # lego, hybrid: convolution behind association; False: beside it
    association: str = "auto"  # lego, hybrid: dense, segment, triton, or auto, the fastest for this length and device
    # optimisation
    batch_size: int = 128  # sentences a step, of all processes together
    n_train: int = 0  # sentences of a training set that is gone through again and again; 0: new ones at every step
    max_steps: int = 300
    stop_at: float = 0.0  # end when all variables have this accuracy over 5 evaluations; 0: run to max_steps
    lr: float = 4e-3  # AdamW: embeddings, convolutions, head, norms and biases
    muon_lr: float = 4e-2  # Muon: the matrices of the blocks; 0: AdamW trains these too
    beta2: float = 0.99  # AdamW
    weight_decay: float = 0.01
    grad_clip: float = 1.0  # largest norm of the gradient; 0: off
    warmup_steps: int = 10
    schedule: str = "linear"  # of the learning rates behind the warm-up: constant, or linear or cosine down to 0
    ema: float = 0.95  # decay of the running average of the weights, which is evaluated and saved; 0: the last weights
    seed: int = 0
    # evaluation and files
    eval_every: int = 10  # steps
    eval_size: int = 500  # sentences, new ones at each evaluation
    out_dir: str = "out"  # "": write nothing
    resume: bool = False  # continue the checkpoint in out_dir, with its dials but for those on the command line
    ask: str = ""  # a sentence: let the checkpoint in out_dir answer it, and train nothing
    # machine
    device: str = "auto"  # auto, cpu, cuda, cuda:1, mps
    dtype: str = "float32"  # of the matrix products; bfloat16 on a GPU
    compile: bool = False  # torch.compile the blocks


def check(config):
    """Raises ValueError, one line saying what was given and what is expected, for a dial out of its range."""
    c = config
    shortest, self_conditioned = c.min_clauses or c.n_clauses, c.tied and c.self_condition
    for dial, ok, expected in [
        ("n_clauses", 1 <= c.n_clauses <= c.n_names, f"1 to n_names={c.n_names}"),
        ("n_supervised", 1 <= c.n_supervised <= c.n_clauses, f"1 to n_clauses={c.n_clauses}"),
        ("min_clauses", 0 <= c.min_clauses <= c.n_clauses, f"0 to n_clauses={c.n_clauses}"),
        ("n_distractor", 0 <= c.n_distractor < shortest, f"0 to {shortest - 1}, below the clauses of any sentence"),
        ("drop_clause", 0 <= c.drop_clause <= 1, "0 to 1"),
        ("drop_clause", not c.drop_clause or shortest > 1, "0 for sentences of a single clause"),
        ("n_layer", 1 <= c.n_layer <= 1000, "at least 1, at most 1000"),
        ("loop_jitter", 0 <= c.loop_jitter < c.n_layer or not c.tied, f"0 to n_layer - 1 = {c.n_layer - 1}"),
        ("eval_loops", 0 <= c.eval_loops <= 10_000, "0 to 10000"),
        ("n_embd", 1 <= c.n_embd <= 65_536, "at least 1, at most 65536"),
        ("kernel_size", c.kernel_size <= 1025, "an odd number up to 1025"),
        ("batch_size", 1 <= c.batch_size <= 2**20, "at least 1, at most 2^20"),
        ("batch_size", c.batch_size % N_RANKS == 0, f"a multiple of the {N_RANKS} processes"),
        ("max_steps", c.max_steps >= 1, "at least 1"),
        ("stop_at", 0 <= c.stop_at <= 1, "0 to 1"),
        ("n_train", not c.n_train or c.batch_size <= c.n_train <= 2**27,
         f"0, or at least batch_size={c.batch_size}, at most 2^27"),
        ("n_train", not (c.n_train and c.task == "words"), "0 for task=words"),
        ("every_layer", not (c.every_layer and c.task == "words"), "False for task=words"),
        ("mimic", not c.mimic or (c.attention == "vanilla" and c.n_head > 1),
         "False, or attention=vanilla with n_head at least 2"),
        ("mimic", not (c.mimic and c.task == "words"), "False for task=words"),
        ("self_condition", not (self_conditioned and (c.mimic or c.task == "words")),
         "False for words and mimicking, as in --preset=words"),
        ("n_supervised", not self_conditioned or c.n_supervised <= c.n_layer + c.loop_jitter,
         f"at most n_layer + loop_jitter = {c.n_layer + c.loop_jitter}, the links that so many loops follow"),
        ("n_words", c.n_words >= 64, "at least 64"),
        ("n_tokens", c.n_tokens >= 1, "at least 1"),
        ("norm_eps", 0 < c.norm_eps < 1, "above 0, below 1"),
        ("n_train", not (c.n_train and (c.min_clauses or c.n_distractor or c.drop_clause)),
         "0 with min_clauses, n_distractor or drop_clause: the sentences of a fixed set are of one kind"),
        ("dropout", 0 <= c.dropout < 1, "0 to below 1"),
        ("init_std", 0 < c.init_std < math.inf, "above 0"),
        ("lr", 0 < c.lr <= 1e6, "above 0, at most 1e6"),
        ("muon_lr", 0 <= c.muon_lr <= 1e6, "0 or above, at most 1e6"),
        ("beta2", 0 <= c.beta2 < 1, "0 to below 1"),
        ("weight_decay", 0 <= c.weight_decay <= 1e6, "0 or above, at most 1e6"),
        ("grad_clip", 0 <= c.grad_clip < math.inf, "0 or above"),
        ("warmup_steps", c.warmup_steps >= 0, "at least 0"),
        ("schedule", c.schedule in ("constant", "linear", "cosine"), "constant, linear or cosine"),
        ("ema", 0 <= c.ema < 1, "0 to below 1"),
        ("seed", 0 <= c.seed < 2**29, "0 to 2^29 - 1"),
        ("eval_every", c.eval_every >= 1, "at least 1"),
        ("eval_size", 1 <= c.eval_size <= 2**24, "at least 1, at most 2^24"),
        ("dtype", c.dtype in ("float32", "bfloat16"), "float32 or bfloat16"),
    ]:
        if not ok:
            raise ValueError(f"{dial}={getattr(c, dial)}: expected {expected}")


SHAPE = [field.name for field in fields(ModelConfig) if field.name in Config.__dataclass_fields__
         and field.name not in ("dropout", "init_std")]  # the dials that come with pretrained weights

BERT = dict(attention="vanilla", tied=False, self_condition=False, norm_state=False, shared_names=False,
            positions="learned", loop_jitter=0, eval_loops=0)
PRESETS = {  # --preset=name sets these, and dials behind it on the command line go on top
    # A compact BERT, or ALBERT with --tied=True, that learns from random weights in 4 minutes on a CPU; what matters is
    # told in figures/generalisation.py
    "vanilla": dict(
        **BERT, n_clauses=6, n_supervised=6, n_names=6, n_layer=3, lr=5e-4, muon_lr=4e-3,
        warmup_steps=100, schedule="constant", max_steps=4000, stop_at=0.999, eval_every=50),
    # The same with twice the layers, pretrained on text as BERT was: masked language modelling, 10 minutes of one core
    "words": dict(
        **BERT, task="words", n_layer=6, n_tokens=60, lr=1e-3, muon_lr=1e-2, warmup_steps=100,
        schedule="constant", max_steps=1500, eval_every=100),
    # The official code's demo, which takes BERT's own dropout and no warm-up: BERT-base from random weights, 200 epochs
    # of 120 steps. 0.74 EFLOP: 3 hours on 4 V100, its README says. On a GPU add --dtype=bfloat16 --compile.
    "paper": dict(
        **BERT, n_layer=12, n_embd=768, n_head=12, norm_first=False, norm_eps=1e-12, init_std=0.02, dropout=0.1,
        n_train=120_000, batch_size=1000, max_steps=24_000, lr=5e-5, muon_lr=0.0, beta2=0.999,
        weight_decay=0.0, grad_clip=0.0, warmup_steps=0, schedule="cosine", ema=0.0, eval_every=120, eval_size=12_000),
}

MAY_CHANGE = ("max_steps", "stop_at", "schedule", "eval_every")  # dials of the run that --resume continues ...
ELSEWHERE = ("out_dir", "device", "compile", "resume", "ask")  # ... and those that a checkpoint does not bring along


def override(config, arguments) -> Config:
    """The config with every `--key=value` of the command line put in its place; `--key` alone switches a bool on."""
    dials = {field.name: field.type for field in fields(config)}
    values = asdict(config)
    for argument in arguments:
        key, equals, text = argument.removeprefix("--").partition("=")
        if argument.startswith("--preset="):
            if text not in PRESETS:
                raise ValueError(f"preset={text}: expected {', '.join(PRESETS)}")
            values.update(PRESETS[text])
            continue
        if argument.startswith("--init_from=") and text:
            values.update(read_pretrained(text)[0])
        if not argument.startswith("--") or key not in dials:
            near = difflib.get_close_matches(key, dials, n=1)
            raise ValueError(f"'{argument}': expected --dial=value with a dial of train.Config"
                             + (f", --{near[0]} perhaps" if near else "; --help lists them"))
        if not equals and dials[key] is not bool:
            raise ValueError(f"{argument}: expected {argument}=value")
        try:
            if dials[key] is bool:
                values[key] = {"true": True, "false": False}[text.lower() if equals else "true"]
            else:
                values[key] = dials[key](text)
        except (ValueError, KeyError):
            expected = {bool: "True or False", int: "a whole number", float: "a number"}[dials[key]]
            raise ValueError(f"{key}={text}: expected {expected}") from None
    return Config(**values)


def pick_device(name) -> torch.device:
    if name in ("auto", "cuda") and N_RANKS > 1 and torch.cuda.is_available():
        name = f"cuda:{os.environ.get('LOCAL_RANK', 0)}"
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
        if device.type in ("cpu", "cuda", "mps"):
            return device
    except Exception:  # what torch raises for a device that is not there is of many kinds
        pass
    raise ValueError(f"device={name}: expected auto, cpu, or a cuda or mps device of this machine")


def hardware(device) -> str:
    """What the run ran on, for the history: the GPU's name, or the number of CPU threads."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    if device.type != "cpu":
        return device.type
    n_threads = torch.get_num_threads()
    return f"{n_threads} CPU thread{'s' * (n_threads > 1)}, {platform.machine()}"


# ----------------------------------------------------------------------------------------------------------------------
# model, predictions, accuracy


STREAMS = ("weights", "sentences", "loops", "test", "examples", "order", "dropout")


def seed_of(config, stream, i=0) -> int:
    """
    Random numbers of their own for each purpose: the seed of a stream, or of the i-th of a sequence of streams. Those
    of different purposes are at least 2^29 apart, and below 2^32: on a CPU no higher bits count.
    """
    return STREAMS.index(stream) * 2**29 + (config.seed + 1_000_003 * i) % 2**29


def make_generator(config, stream, device="cpu", i=0) -> torch.Generator:
    return torch.Generator(device).manual_seed(seed_of(config, stream, i))


def make_task(config, device="cpu"):
    """What is to be learned: a lego.Task, or for `words` a lego.Corpus, on `device`. Both have `vocab` and `values`."""
    if config.task == "words":
        corpus = lego.read_corpus(config.corpus, config.n_words, device)
        if min(len(corpus.train), len(corpus.test)) < config.n_tokens:
            raise ValueError(f"corpus={config.corpus}: expected at least n_tokens={config.n_tokens} words to train on "
                             f"and as many held out, found {len(corpus.train)} and {len(corpus.test)}")
        return corpus
    return lego.make_task(config.task, config.n_names)


def shares_names(config) -> bool:
    """Whether all variables have one embedding, so that the model can read names that it was not trained on."""
    return config.shared_names and config.attention != "vanilla" and config.task != "words"


def make_model(config) -> Transformer:
    """The Transformer that the dials describe, in evaluation mode: with random weights of its seed, or pretrained."""
    torch.manual_seed(seed_of(config, "weights"))
    task = make_task(config)
    dials = {name: value for name, value in asdict(config).items() if name in SHAPE}
    T = config.n_tokens if config.task == "words" else lego.TOKENS_PER_CLAUSE * config.n_clauses
    vocab_size = task.first_name + 1 if shares_names(config) else len(task.vocab)  # the names come last
    model = Transformer(ModelConfig(vocab_size, len(task.values), dropout=config.dropout, init_std=config.init_std,
                                    block_size=T, **dials)).eval()
    if config.init_from and not (config.resume or config.ask):  # these have weights of their own
        _, vocab, weights = read_pretrained(config.init_from)
        try:
            model.adopt(weights, vocab, task.vocab)
        except ValueError as error:
            raise ValueError(f"init_from={config.init_from}: {error}") from None
        except Exception:  # weights that are no tensors, a vocabulary that is no list of words ...
            raise ValueError(f"init_from={config.init_from}: expected pretrained weights, these are damaged") from None
    return model


def loops_at_test(config):
    """The loops at test time, one for each link at least if a loop follows one; None, the only number, if untied."""
    if not config.tied:
        return None
    return max(config.eval_loops or config.n_layer, config.n_clauses if config.self_condition else 0)


def states_of(model, batch, n_loops=None, every_layer=True):
    """The states (L, B, n, C) at the positions of a batch, after every layer, or after the last one only: L = 1."""
    at = batch.positions[..., None].expand(-1, -1, model.config.n_embd)  # (B, n, C)
    states = []
    for x, _ in model.trace(batch.tokens, n_loops):
        if not every_layer:
            states.clear()  # there may be a thousand of them
        states.append(x.gather(1, at))
    return torch.stack(states)


def logits_of(model, batch, n_loops=None, every_layer=False):
    """The logits (L, B, n, n_out) at the positions of a batch, after every layer, or after the last one only: L = 1."""
    return model.readout(states_of(model, batch, n_loops, every_layer))


@torch.no_grad()
def predict(model, batch, n_loops=None, chunk=128):
    """The likeliest value of every variable in chain order, (B, n) int64: an index into task.values."""
    parts = zip(*(x.split(chunk) for x in batch))
    return torch.cat([logits_of(model, lego.Batch(*part), n_loops)[0].argmax(-1) for part in parts])


@torch.no_grad()
def evaluate(model, batch, config, chunk=128):
    """
    The loss, as in training, but on all supervised variables after the last layer; and the accuracies: of every
    variable in chain order, supervised or not; of the hidden words together, a list of one; or none, if the model is to
    mimic.
    """
    parts, n_loops = [lego.Batch(*part) for part in zip(*(x.split(chunk) for x in batch))], loops_at_test(config)
    if config.mimic:
        return sum(len(part.tokens) * mimic_loss(model, part, n_loops).item() for part in parts) / len(batch.tokens), []
    losses, right = [], []
    for part in parts:
        logits = logits_of(model, part, n_loops)[0].float()  # (B, n, n_out)
        losses.append(F.cross_entropy(logits.transpose(1, 2), part.values, ignore_index=lego.IGNORE, reduction="none"))
        right.append(logits.argmax(-1) == part.values)
    losses, right = torch.cat(losses), torch.cat(right).double()  # (B, n)
    if config.task == "words":
        known = batch.values != lego.IGNORE
        return losses[known].mean().item(), [right[known].mean().item()]
    return losses[:, : config.n_supervised].mean().item(), right.mean(0).tolist()


# ----------------------------------------------------------------------------------------------------------------------
# training, in one process or in several that torchrun starts: each of them draws the same batch, takes every N_RANKS-th
# of its sentences, and has the mean gradient of all


RANK, N_RANKS = (int(os.environ.get(name, default)) for name, default in (("RANK", 0), ("WORLD_SIZE", 1)))


class Loss(nn.Module):
    """`loss_of` as a module, which DistributedDataParallel needs to see where a step begins and ends."""

    def __init__(self, model, config):
        super().__init__()
        self.model, self.config = model, config

    def forward(self, batch, n_loops):
        return loss_of(self.model, batch, self.config, n_loops)


def share(batch):
    """The part of a batch that is this process's."""
    return lego.Batch(*(x[RANK::N_RANKS] for x in batch))


def mean_of_ranks(x):
    """The mean of a tensor over all processes."""
    if N_RANKS > 1:
        dist.all_reduce(x)
    return x / N_RANKS


def of_first_rank(numbers, device):
    """The same list of numbers in all processes, so that they agree on where a run ends."""
    if N_RANKS == 1 or not numbers:
        return numbers
    numbers = torch.tensor(numbers, dtype=torch.float64, device=device)
    dist.broadcast(numbers, 0)
    return numbers.tolist()


def is_any(came, step, device, every=10) -> bool:
    """Whether a process has been told to stop: all of them stop after the same step, and ask for it now and then."""
    if N_RANKS == 1 or step % every:
        return N_RANKS == 1 and bool(came)
    return mean_of_ranks(torch.tensor(float(bool(came)), device=device)).item() > 0


def checked(config, model, losses, step):
    """
    The losses since the last evaluation, mean over all processes. Raises ValueError if one of them is not finite, or a
    weight, before that gets into a file.
    """
    if not losses:
        return losses
    losses = mean_of_ranks(torch.stack(losses))
    finite = losses.isfinite()
    if finite.all() and all(p.isfinite().all() for p in model.parameters()):
        return list(losses)
    first = step - len(losses) + finite.long().argmin().item()
    what = f"a weight is not finite after step {step}" if finite.all() else (
        f"the loss at step {first} is {losses[first - step].item()}")
    raise ValueError(f"{what}, expected a finite one: try a smaller lr={config.lr} or muon_lr={config.muon_lr}, or "
                     "grad_clip=1" + (f"; {checkpoint_path(config)} is as it was before" if config.out_dir else ""))


@contextmanager
def told_to_stop():
    """
    Yields a list that is empty until SIGINT, Ctrl-C, or SIGTERM comes, and then holds its number: a step is made to its
    end, and what has been reached can be saved. A second one has its usual effect, at once.
    """
    came = []
    if threading.current_thread() is not threading.main_thread():
        yield came  # signals are the main thread's
        return

    def handler(number, frame):
        came.append(number)
        for signum, usual in before.items():
            signal.signal(signum, usual)

    before = {number: signal.signal(number, handler) for number in (signal.SIGINT, signal.SIGTERM)
              if signal.getsignal(number) != signal.SIG_IGN}
    try:
        yield came
    finally:
        for number, usual in before.items():
            signal.signal(number, usual)


def draw_sentences(config, size, generator):
    """Sentences for training, as the dials have them."""
    task = make_task(config, generator.device)
    if config.task == "words":
        return lego.sample_words(task, size, config.n_tokens, generator, generator.device)
    draw = lambda low, high: int(torch.randint(low, high + 1, (), generator=generator, device=generator.device)
                                 ) if low < high else low
    n_clauses = draw(config.min_clauses or config.n_clauses, config.n_clauses)
    n_distractor = draw(0, config.n_distractor)
    drop = None
    if config.drop_clause and torch.rand((), generator=generator, device=generator.device) < config.drop_clause:
        drop = "random"
    return lego.sample(task, size, n_clauses - n_distractor, generator, generator.device, n_distractor, drop)


def draw_test_sentences(config, generator):
    """What a test asks for: chains of full length, with nothing beside them; or words of documents held out."""
    task = make_task(config, generator.device)
    if config.task == "words":
        return lego.sample_words(task, config.eval_size, config.n_tokens, generator, generator.device, held_out=True)
    return lego.sample(task, config.eval_size, config.n_clauses, generator, generator.device)


def repeat_sentences(config, pool, step):
    """The batch of a step from a fixed training set, which is gone through in a new order in every epoch."""
    epoch, i = divmod(step, config.n_train // config.batch_size)
    order = torch.randperm(config.n_train, generator=make_generator(config, "order", i=epoch))  # drawn again each step,
    rows = order[i * config.batch_size :][: config.batch_size].to(pool.tokens.device)  # so that a run can be resumed
    return lego.Batch(*(x[rows] for x in pool))


def make_optimizers(model, config) -> list[torch.optim.Optimizer]:
    """Muon for the matrices of the blocks, AdamW for the rest; AdamW alone if muon_lr is 0."""
    matrices = [p for p in model.blocks.parameters() if p.ndim == 2] if config.muon_lr else []
    others = [p for p in model.parameters() if not any(p is m for m in matrices)]
    optimizers = [torch.optim.AdamW(others, config.lr, betas=(0.9, config.beta2), weight_decay=config.weight_decay)]
    if matrices:
        optimizers.append(torch.optim.Muon(matrices, config.muon_lr, weight_decay=config.weight_decay))
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["peak_lr"] = group["lr"]
    return optimizers


def lr_multiplier(step, config) -> float:
    """What the learning rates are multiplied with at a step: a linear warm-up, then the schedule."""
    if step < config.warmup_steps:
        return (step + 1) / config.warmup_steps
    left = 1 - (step - config.warmup_steps) / max(1, config.max_steps - config.warmup_steps)  # from 1 down to 0
    return {"constant": 1.0, "linear": left, "cosine": 0.5 - 0.5 * math.cos(math.pi * left)}[config.schedule]


def loss_of(model, batch, config, n_loops=None):
    """
    Cross-entropy of the supervised variables or of the hidden words, in nats, mean over all labels; or `mimic_loss`.

    All variables are asked for after the last layer, and with `every_layer` after each layer that can know them, if a
    layer follows one link of the chain: the first variable from the second layer on (one of slack), the next from the
    third on, and so forth. A model that is conditioned on its own predictions has no slack, and is not asked for what
    it can't know yet, not after the last loop either: it would learn to be unsure, and what is unsure travels slowly.
    """
    if config.mimic:
        return mimic_loss(model, batch, n_loops)
    if config.task != "words":
        batch = batch._replace(positions=batch.positions[:, : config.n_supervised],
                               values=batch.values[:, : config.n_supervised])
    logits = logits_of(model, batch, n_loops, config.every_layer).float()  # (L, B, n, n_out)
    layer = torch.arange(n_loops or config.n_layer, device=logits.device)[-len(logits) :, None]  # (L, 1), and
    variable = torch.arange(logits.size(2), device=logits.device)  # (n,), both counted from 0
    if model.value_embedding is not None:
        due = layer >= variable  # (L, n)
    else:
        due = layer > variable
        due[-1] = True
    labels = batch.values.expand(len(logits), -1, -1).masked_fill(~due[:, None], lego.IGNORE)  # (L, B, n)
    loss = F.cross_entropy(logits.flatten(0, -2), labels.flatten(), ignore_index=lego.IGNORE, reduction="sum")
    return loss / mean_of_ranks((labels != lego.IGNORE).sum().float()).clamp(min=1)  # each may have more or fewer


def mimic_loss(model, batch, n_loops=None, floor=1e-3):
    """
    How far heads 0 and 1 of every layer are from manipulation and association: KL(attention || pattern) of each row, in
    nats, mean over rows and sentences, summed over both heads and all layers; to either map a floor is added before its
    rows are normalised. No label enters. The paper's official code.
    """
    normalise = lambda maps: (maps + floor) / (maps + floor).sum(-1, keepdim=True)
    targets = normalise(patterns(batch.tokens))  # (B, 2, T, T)
    loss = 0.0
    for _, weights in model.trace(batch.tokens, n_loops, need_weights=True):
        maps = normalise(weights[:, :2].float())  # (B, 2, T, T)
        loss = loss + (maps * (maps / targets).log()).sum(-1).mean((0, 2)).sum()
    return loss


def flops_of_sentence(model, config, T, n_loops, n_asked) -> int:
    """What a step takes for each sentence: a backward pass takes twice a forward one, if it goes through all loops."""
    only_last = model.value_embedding is not None and not config.every_layer
    return model.flops(T, n_loops, n_asked) + 2 * model.flops(T, 1 if only_last else n_loops, n_asked)


def train(config, model=None, look=None) -> dict:
    """
    Trains a model and returns the history of its run, the dict that history.json keeps:

        config, n_parameters, hardware, torch    what ran, and where
        step, loss, test_loss, accuracy          one entry per evaluation: steps so far, mean loss since the one before
                                                 in nats, and what `evaluate` says of fresh sentences
        seconds, flops, tokens                   spent on training so far, evaluation not counted
        tokens_per_second                        over the whole run
        looks                                    if asked for: what look(model, config) says at each evaluation behind
                                                 the start

    model: begins from these weights instead of random ones, and leaves the trained ones in it.
    Raises ValueError for a dial out of range, for a look at a run that is resumed, whose looks before are not kept, and
    for a loss or a weight that is not finite; earlier files stay. On SIGINT and SIGTERM it saves and raises
    KeyboardInterrupt, whose arguments are a message and the signal's number.
    """
    if look and config.resume:
        raise ValueError("resume=True: expected False for a run that is looked at")
    with told_to_stop() as came:
        return _train(config, model, look, came)


def _train(config, model, look, came):
    check(config)
    device = pick_device(config.device)
    if N_RANKS > 1 and not dist.is_initialized():
        if device.type == "cuda":
            torch.cuda.set_device(device)
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    if config.out_dir:
        make_folder(config.out_dir)
    model = (make_model(config) if model is None else model).to(device)
    model.train()  # dropout on; the average below never drops
    averaged = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(config.ema))
    optimizers = make_optimizers(model, config)
    generators = {"sentences": make_generator(config, "sentences", device), "loops": make_generator(config, "loops"),
                  "test": make_generator(config, "test", device)}
    history = dict(config=asdict(config), n_parameters=model.n_parameters(), hardware=hardware(device),
                   torch=str(torch.__version__), step=[], loss=[], test_loss=[], accuracy=[], seconds=[], flops=[],
                   tokens=[], tokens_per_second=0.0)
    averaged.eval()
    pool = draw_sentences(config, config.n_train, generators["sentences"]) if config.n_train else None
    step, losses, seconds, flops, tokens = 0, [], 0.0, 0, 0  # losses: those since the last evaluation
    if config.resume:
        step, losses, seconds, flops, tokens = restore(config, model, averaged, optimizers, generators, history)
        losses = [loss.to(device) for loss in losses]
    if config.compile:
        for block in model.blocks:
            block.compile()
    loss_of_step = Loss(model, config)
    if N_RANKS > 1:
        warnings.filterwarnings("ignore", "Grad strides do not match")  # in dimensions of size 1: nothing to mend
        # a single loop has no gradient for the embedding of predictions, mimicking none behind the last attention map
        unused = config.mimic or model.value_embedding is not None
        warnings.filterwarnings("ignore", "find_unused_parameters=True was specified")  # and at times there is none
        loss_of_step = DistributedDataParallel(loss_of_step, find_unused_parameters=unused)
    autocast = torch.autocast(device.type, torch.bfloat16, enabled=config.dtype == "bfloat16")

    clock = time.perf_counter()
    bar = tqdm(total=config.max_steps, initial=step, desc="training", unit="step", dynamic_ncols=True,
               disable=RANK > 0 or None)
    while True:
        # evaluate and save, with the clock stopped
        evaluates = (step % config.eval_every == 0 or step == config.max_steps) and step not in history["step"]
        stops = is_any(came, step, device)
        if evaluates or stops:
            losses = checked(config, model, losses, step)  # waits for the GPU
            seconds += time.perf_counter() - clock
            if evaluates:
                with autocast:
                    test = evaluate(averaged.module, draw_test_sentences(config, generators["test"]), config)
                history["test_loss"].append(test[0])
                history["accuracy"].append(of_first_rank(test[1], device))
                history["step"].append(step)
                history["loss"].append(torch.stack(losses).mean().item() if losses else None)
                history["seconds"].append(seconds)
                history["flops"].append(flops)
                history["tokens"].append(tokens)
                history["tokens_per_second"] = tokens / seconds if tokens else 0.0
                losses = []
                if look and step:
                    history.setdefault("looks", []).append(look(averaged.module, config))
            if RANK == 0 and evaluates:
                bar.write(report(history))
            if RANK == 0 and config.out_dir and step:  # at the start the last run's files stay: there is nothing better
                progress = step, losses, seconds, flops, tokens
                save(config, model, averaged, optimizers, generators, history, progress)
            clock = time.perf_counter()
        if step >= config.max_steps or stands(history):
            break
        if stops:
            bar.close()
            goes_on = "; --resume continues from there" if config.out_dir and step else ""
            raise KeyboardInterrupt(f"stopped after step {step}{goes_on}", (came or [signal.SIGTERM])[0])

        # one step
        for optimizer in optimizers:
            for group in optimizer.param_groups:
                group["lr"] = group["peak_lr"] * lr_multiplier(step, config)
        if pool:
            batch = repeat_sentences(config, pool, step)
        else:
            batch = draw_sentences(config, config.batch_size, generators["sentences"])
        n_loops = None
        if config.tied:
            jitter = torch.randint(-config.loop_jitter, config.loop_jitter + 1, (), generator=generators["loops"])
            n_loops = config.n_layer + int(jitter)
        if config.dropout:
            torch.manual_seed(seed_of(config, "dropout", step * N_RANKS + RANK))
        with autocast:
            loss = loss_of_step(share(batch), n_loops)
        model.zero_grad(set_to_none=True)
        loss.backward()
        if config.grad_clip:
            torch.nn.utils.clip_grad_norm_(model.parameters(), config.grad_clip)
        for optimizer in optimizers:
            optimizer.step()
        averaged.update_parameters(model)
        losses.append(loss.detach())
        n_asked = 0 if config.mimic else batch.positions.size(1) if config.task == "words" else config.n_supervised
        n_asked *= (n_loops or config.n_layer) if config.every_layer else 1
        flops += config.batch_size * flops_of_sentence(model, config, batch.tokens.size(1), n_loops, n_asked)
        tokens += batch.tokens.numel()
        step += 1
        bar.update()
        if step % 10 == 0:
            bar.set_postfix(loss=f"{loss.item():.4f}")
    bar.close()
    model.load_state_dict(averaged.module.state_dict())
    model.eval()
    return history


def stands(history, n_evaluations=5) -> bool:
    """Whether the run has reached its end: every variable at stop_at or better in the last evaluations together."""
    stop_at, last = history["config"]["stop_at"], history["accuracy"][-n_evaluations:]
    return 0 < stop_at <= min((sum(column) / n_evaluations for column in zip(*last)), default=0)


def report(history) -> str:
    """
    The last evaluation in one line: step, time, loss, and the accuracy of every variable in %, the unsupervised behind
    |. For words and for mimicking the test loss, and how many of the hidden words are right.
    """
    config, percent = history["config"], [f"{100 * a:5.1f}" for a in history["accuracy"][-1]]
    loss, test_loss = ("   -  " if loss is None else f"{loss:.4f}" for loss in (history["loss"][-1],
                                                                                history["test_loss"][-1]))
    if plots_loss(config):
        percent = [f"test loss {test_loss}", *(f"  {p}% of the words" for p in percent)]
    else:
        percent.insert(config["n_supervised"], "|")
    return (f"step {history['step'][-1]:5d}   {history['seconds'][-1]:6.1f} s   loss {loss}   "
            + " ".join(percent).removesuffix("|"))


# ----------------------------------------------------------------------------------------------------------------------
# files: whatever stops the program, a file is the old one or the new one, never half of it


def write(path, save):
    """
    Has `save` write to a file beside `path`, and then puts that file in its place. Raises ValueError if that can't be
    done, for a full disk or a folder that is read-only, say.
    """
    path = Path(path)
    beside = path.with_name(path.name + ".tmp")
    try:
        try:
            save(beside)
            os.replace(beside, path)
        finally:
            beside.unlink(missing_ok=True)
    except (OSError, RuntimeError) as error:  # torch.save has RuntimeErrors for a full disk
        reason = getattr(error, "strerror", None) or str(error).partition("\n")[0]
        raise ValueError(f"{path}: expected a file that can be written ({reason}); the one before stays") from None


def make_folder(out_dir):
    try:
        Path(out_dir).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(f"out_dir={out_dir}: expected a folder that can be written to ({error.strerror})") from None


def checkpoint_path(config) -> Path:
    return Path(config.out_dir) / "checkpoint.pt"


def save(config, model, averaged, optimizers, generators, history, progress):
    """Everything that --ask and --init_from need (config, vocab, model) and --resume (the rest); and the history."""
    checkpoint = dict(
        config=asdict(config), vocab=list(make_task(config).vocab), model=averaged.module.state_dict(),
        last=model.state_dict(), history=history, progress=list(progress),
        optimizers=[optimizer.state_dict() for optimizer in optimizers],
        generators={name: generator.get_state() for name, generator in generators.items()})
    write(checkpoint_path(config), lambda beside: torch.save(checkpoint, beside))
    write(Path(config.out_dir) / "history.json", lambda beside: beside.write_text(json.dumps(history, indent=1)))


def read_checkpoint(out_dir, device="cpu") -> dict:
    """The checkpoint in out_dir. Raises ValueError if there is none, or it is not one. It can't run any code."""
    path = Path(out_dir) / "checkpoint.pt"
    if not os.path.isfile(path):
        raise ValueError(f"{path}: expected a checkpoint, there is none; python train.py makes one")
    try:
        if zipfile.ZipFile(path).testzip():  # torch does not compare the checksums
            raise ValueError
        checkpoint = torch.load(path, map_location=device, weights_only=True)
        before = dict(self_condition=False, shared_names=False)  # one of an older version may lack dials
        checkpoint["config"] = asdict(Config(**{**before, **checkpoint["config"]}))
        for field in fields(Config):
            if type(checkpoint["config"][field.name]) not in {float: (float, int, bool)}.get(field.type, (field.type,)):
                raise ValueError
        checkpoint["vocab"], checkpoint["model"], max(checkpoint["history"]["step"])
    except Exception:  # foreign bytes break the unpickler in more ways than can be listed
        raise ValueError(f"{path}: expected a checkpoint of train.py, this is damaged or something else") from None
    return checkpoint


def read_pretrained(folder):
    """
    What --init_from begins from: the dials of its shape, the vocabulary, {name: tensor}. From another run's out_dir, or
    a BERT's folder as `model.read_bert` expects it. Raises ValueError for a folder that is neither.
    """
    try:
        if not os.path.exists(Path(folder) / "checkpoint.pt"):
            if not os.path.exists(Path(folder) / "config.json"):
                raise ValueError("expected a folder with a checkpoint.pt of train.py, or with a BERT's config.json")
            return read_bert(folder)
        checkpoint = read_checkpoint(folder)
    except ValueError as error:
        raise ValueError(f"init_from={folder}: {error}") from None
    dials = {dial: checkpoint["config"][dial] for dial in (*SHAPE, "shared_names")}
    return dials, checkpoint["vocab"], checkpoint["model"]


def load_weights(config, model, weights):
    """Puts the weights of a checkpoint into a model. Raises ValueError if they are of another shape."""
    try:
        model.load_state_dict(weights)
    except Exception as error:
        first = str(error).strip().split("\n")[-1].strip()
        raise ValueError(f"{checkpoint_path(config)}: expected the shape that the dials describe: {first}") from None


def restore(config, model, averaged, optimizers, generators, history):
    """Brings a run to where the checkpoint in out_dir left it, and returns the progress that `save` has put there."""
    checkpoint, path = read_checkpoint(config.out_dir), checkpoint_path(config)
    if not {"last", "optimizers", "generators", "progress"} <= set(checkpoint):
        raise ValueError(f"{path}: expected a checkpoint that this version of train.py can resume")
    for dial, value in checkpoint["config"].items():
        if getattr(config, dial) != value and dial not in MAY_CHANGE + ELSEWHERE:
            raise ValueError(f"{dial}={getattr(config, dial)}: expected {value}, as in the run to resume; "
                             f"only {', '.join(MAY_CHANGE)} may change")
    if checkpoint["vocab"] != list(make_task(config).vocab):
        raise ValueError(f"corpus={config.corpus}: expected the text of the run to resume, its words are others")
    load_weights(config, model, checkpoint["last"])
    load_weights(config, averaged.module, checkpoint["model"])
    try:
        for optimizer, saved in zip(optimizers, checkpoint["optimizers"], strict=True):
            optimizer.load_state_dict({**optimizer.state_dict(), "state": saved["state"]})
            for p, state in optimizer.state.items():
                if any(x.shape not in (p.shape, ()) or not x.isfinite().all() for x in state.values()):
                    raise ValueError
        step, losses, seconds, flops, tokens = checkpoint["progress"]
        losses = list(torch.stack(losses)) if losses else []
        averaged.n_averaged.fill_(step)
        n = len(checkpoint["history"]["step"])
        for key, kind in dict(step=int, test_loss=float, seconds=float, flops=int, tokens=int).items():
            history[key] = list(map(kind, checkpoint["history"][key]))
        history["loss"] = [None, *map(float, checkpoint["history"]["loss"][1:])]
        history["accuracy"] = torch.tensor(checkpoint["history"]["accuracy"], dtype=torch.float64).tolist()
        history["tokens_per_second"] = float(checkpoint["history"]["tokens_per_second"])
        if any(len(entries) != n for entries in history.values() if isinstance(entries, list)):
            raise ValueError
        progress = int(step), losses, float(seconds), int(flops), int(tokens)
    except Exception:  # whatever else it may be made of
        raise ValueError(f"{path}: expected a checkpoint of train.py, this is damaged") from None
    try:
        for name, generator in generators.items():
            generator.set_state(checkpoint["generators"][name])
    except Exception:
        raise ValueError(f"device={config.device}: expected the kind of device that the run to resume is on") from None
    return progress


# ----------------------------------------------------------------------------------------------------------------------
# what a run shows: the key plot, and sentences with their answers


def draw_accuracy(axes, histories):
    """
    Draws the test accuracy of every variable over training into matplotlib axes: the mean over runs that differ in
    nothing but the seed, and a band from the worst to the best of them.
    """
    from matplotlib import colormaps

    config, steps = histories[0]["config"], histories[0]["step"]
    n, n_supervised = config["n_clauses"], config["n_supervised"]
    runs = 100 * torch.tensor([history["accuracy"] for history in histories])  # (runs, evaluations, n), percent
    chance = 100 / len(lego.make_task(config["task"]).values)
    for i in range(n):
        color = colormaps["viridis"](0.9 * i / max(1, n - 1))
        axes.plot(steps, runs[:, :, i].mean(0), color=color, linewidth=2, linestyle="-" if i < n_supervised else "--",
                  label=f"{i + 1}{'' if i < n_supervised else ', unsupervised'}")
        if len(histories) > 1:
            axes.fill_between(steps, runs[:, :, i].amin(0), runs[:, :, i].amax(0), color=color, alpha=0.08, linewidth=0)
    axes.axhline(chance, color="gray", linestyle=":", label="chance")
    axes.text(steps[-1], chance - 1, f"chance, {chance:.3g}% ", color="dimgray", ha="right", va="top",
              bbox=dict(facecolor="white", alpha=0.8, linewidth=0, pad=1))
    axes.set(xlabel=f"training steps, of {config['batch_size']} fresh sentences each", ylabel="test accuracy (%)",
             xlim=(0, max(steps[-1], 1)), ylim=(max(0, min(chance - 10, float(runs.min()) - 2)), 101.5))


def plots_loss(config) -> bool:
    """Whether the dials, a dict, are those of a run without variables to plot."""
    return config["task"] == "words" or config["mimic"]


def plot_loss(history, path):
    """Training and test loss over the training of one run, written to `path` as PNG."""
    from matplotlib.figure import Figure

    config = history["config"]
    figure = Figure(figsize=(9, 4.8), layout="constrained")
    axes = figure.subplots()
    axes.plot(history["step"][1:], history["loss"][1:], color="#56B4E9", label="training")
    axes.plot(history["step"], history["test_loss"], color="#D55E00", marker="o", markersize=3,
              label="test" if config["mimic"] else "documents held out")
    axes.legend(frameon=False)
    what = "KL(attention || pattern)" if config["mimic"] else "cross-entropy of a hidden word"
    axes.set(xlabel=f"training steps, of {config['batch_size']} sentences each", ylabel=f"{what} (nats)",
             ylim=(0, None))
    found = f"ends at {history['test_loss'][-1]:.3f} nats"
    if history["accuracy"][-1]:
        found += f", {100 * history['accuracy'][-1][0]:.1f}% of the words are right"
    figure.suptitle(f"{'Mimicking the two patterns' if config['mimic'] else 'Hidden words'}: the test loss {found}",
                    fontweight="bold", fontsize=11)
    axes.set_title(run_in_words(history), fontsize=9)
    write(path, lambda beside: figure.savefig(beside, dpi=150, format="png"))


def run_in_words(history) -> str:
    config = history["config"]
    return (f"{config['attention']} attention, {'tied' if config['tied'] else 'untied'}, width {config['n_embd']}, "
            f"{history['n_parameters']:,} parameters; {history['seconds'][-1]:.0f} s of training on "
            f"{history['hardware']}; seed {config['seed']}")


def plot_accuracy(history, path):
    """The key plot: the test accuracy of every variable over the training of one run, written to `path` as PNG."""
    from matplotlib.figure import Figure

    config, last = history["config"], [100 * a for a in history["accuracy"][-1]]
    supervised, unsupervised = last[: config["n_supervised"]], last[config["n_supervised"] :]
    found = f"the {len(supervised)} supervised variables end at {min(supervised):.1f}% or better"
    if unsupervised:
        found += f", the {len(unsupervised)} unsupervised at {min(unsupervised):.1f}%"
    figure = Figure(figsize=(9, 4.8), layout="constrained")
    axes = figure.subplots()
    draw_accuracy(axes, [history])
    axes.legend(title="variable, in chain order", loc="center left", bbox_to_anchor=(1.01, 0.5), frameon=False)
    figure.suptitle(f"LEGO {config['task']}: {found}", fontweight="bold", fontsize=11)
    axes.set_title(run_in_words(history), fontsize=9)
    write(path, lambda beside: figure.savefig(beside, dpi=150, format="png"))


def show_words(model, config, n_windows=3):
    """Prints windows of text that the model has not seen, with its guess at every hidden word."""
    device = next(model.parameters()).device
    task, generator = make_task(config, device), make_generator(config, "examples", device)
    batch = lego.sample_words(task, n_windows, config.n_tokens, generator, device, held_out=True)
    predictions = predict(model, batch)
    for i in range(n_windows):
        words = [task.vocab[t] for t in batch.tokens[i]]
        for position, value, guess in zip(batch.positions[i], batch.values[i], predictions[i]):
            if value != lego.IGNORE:
                word, guess = task.vocab[value], task.vocab[guess]
                words[position] = f"[{word}]" if guess == word else f"[{word}, not {guess}]"
        print(textwrap.fill(" ".join(words), 116, initial_indent="    ", subsequent_indent="    ") + "\n")


def show_sentences(model, config, n_sentences=3):
    """Prints sentences that the model has not seen, the model's values beside the true ones, mistakes first."""
    device, task = next(model.parameters()).device, make_task(config)
    batch = lego.sample(task, 256, config.n_clauses, make_generator(config, "examples", device), device)
    predictions = predict(model, batch, loops_at_test(config))
    mistakes = (predictions != batch.values).sum(1)
    print(f"{int((mistakes > 0).sum())} of {len(mistakes)} new sentences have a mistake; some of the sentences:")
    for i in mistakes.argsort(descending=True, stable=True)[:n_sentences]:
        rows = {"chain": [task.vocab[t] for t in batch.tokens[i, batch.positions[i]]],
                "truth": [task.values[v] for v in batch.values[i]], "model": [task.values[v] for v in predictions[i]]}
        rows[""] = ["" if truth == answer else "^" for truth, answer in zip(rows["truth"], rows["model"])]
        width = max(len(cell) for row in rows.values() for cell in row)
        print(lego.decode(batch.tokens[i], task))
        for name, row in rows.items():
            if any(row):
                print(f"    {name:5}  " + " ".join(f"{cell:>{width}}" for cell in row))


@torch.no_grad()
def ask(config, text):
    """Prints what the checkpoint in out_dir says about a sentence: every variable's value, probability and truth."""
    device = pick_device(config.device)
    checkpoint = read_checkpoint(config.out_dir, device)
    if plots_loss(asdict(config)):
        raise ValueError(f"ask={text}: expected a checkpoint that was trained on values, the one in {config.out_dir} "
                         f"is for {'words' if config.task == 'words' else 'mimicking'}")
    task = lego.make_task(config.task, lego.MAX_NAMES if shares_names(config) else config.n_names)
    truth = lego.solve(text, task)
    tokens = lego.encode(text, task)[None].to(device)  # (1, T)
    model = make_model(config).to(device)
    load_weights(config, model, checkpoint["model"])
    order = [task.vocab[t] for t in tokens[0, :: lego.TOKENS_PER_CLAUSE]]
    positions = [lego.TOKENS_PER_CLAUSE * order.index(variable) for variable in truth]
    n_loops = max(loops_at_test(config), len(truth) + 8) if config.tied else None  # a link takes a loop; some to spare
    probabilities = torch.stack([model.readout(x[0, positions]).softmax(-1)
                                 for x, _ in model.trace(tokens, n_loops)])  # (loops, n, n_out)
    answers = probabilities.argmax(-1)  # (loops, n)
    settled = (answers != answers[-1]).long() * torch.arange(1, len(answers) + 1, device=device)[:, None]
    settled = settled.amax(0) + 1  # the loop behind the last one with another answer
    width = max(map(len, task.values))
    for i, (variable, value) in enumerate(truth.items()):
        answer = task.values[answers[-1, i]]
        print(f"{variable:>5}   model {answer:>{width}}   probability {probabilities[-1, i].max():.4f}   "
              f"truth {value:>{width}}   "
              + (f"settled at loop {int(settled[i]):2d} of {len(answers)}   " if config.tied else "")
              + ("" if answer == value else "wrong"))


# ----------------------------------------------------------------------------------------------------------------------


def main(arguments):
    if "--help" in arguments or "-h" in arguments:
        print(__doc__)
        print("\n".join(f"    --{field.name}={field.default}" for field in fields(Config)))
        print(f"    --preset={' or '.join(PRESETS)}")
        return
    config = override(Config(), arguments)
    asked = any(argument.startswith("--ask=") for argument in arguments)
    if asked or config.resume:  # the checkpoint's dials, and the command line's on top
        if not config.out_dir:
            raise ValueError("out_dir=: expected the folder of the checkpoint")
        here = {dial: getattr(config, dial) for dial in ELSEWHERE}
        config = override(Config(**{**read_checkpoint(config.out_dir)["config"], **here}), arguments)
    check(config)
    if asked:
        ask(config, config.ask)
        return
    model = make_model(config)
    loss_only = plots_loss(asdict(config))
    if RANK == 0:
        print(f"{model.n_parameters():,} parameters on {pick_device(config.device)}"
              + (f" and {N_RANKS - 1} more" if N_RANKS > 1 else "") + (
              "" if loss_only else "; accuracy in percent of every variable in chain order, supervised | unsupervised"))
    history = train(config, model)
    if N_RANKS > 1:
        dist.destroy_process_group()
    if RANK > 0:  # nothing is left to do; torch at times aborts a process that is taken down so soon behind its group
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(0)
    if config.out_dir:
        plot = "loss.png" if loss_only else "accuracy.png"
        (plot_loss if loss_only else plot_accuracy)(history, Path(config.out_dir) / plot)
        for name in (plot, "history.json", "checkpoint.pt"):
            print(f"wrote {Path(config.out_dir) / name}")
    if config.task == "words":
        show_words(model, config)
    elif not config.mimic:
        show_sentences(model, config)


if __name__ == "__main__":
    lego.command_line(main)
