"""
Trains a Transformer on LEGO and plots the test accuracy of every variable.

    python train.py                                     tied LEGO attention, 12 clauses, the first 6 labelled
    python train.py --task=d3 --n_supervised=2          any dial below is --key=value
    python train.py --attention=vanilla                 a tied vanilla Transformer with learned positions
    python train.py --preset=paper                      many dials at once, see PRESETS
    python train.py --preset=words                      pretrain on the hidden words of real text
    python train.py --init_from=FOLDER                  start from pretrained weights: an out_dir, or a BERT
    python train.py --ask="b=-a; a=+1; c=+b"            ask the last checkpoint, and draw how it finds the answer
    python train.py --resume                            continue a stopped run, to the same numbers as an unbroken one
    torchrun --standalone --nproc_per_node=4 train.py   on 4 GPUs; each process takes a share of every batch

A step makes one loop for every sentence, forward and backward, from what the sentence's loop before has handed on.
Sentences of all ages stand side by side; one that has had n_layer loops leaves (in the first steps sooner):

    step     sentence 0      sentence 1      sentence 2      at loop k the labels of depth k or less are due
     16      loop 8 of 9     loop 9 of 9     NEW, loop 1
     17      loop 9          NEW, loop 1     loop 2
     18      NEW, loop 1     loop 2          loop 3

Models without a carry, such as BERT, make all their layers in one step and see new sentences in the next.
Writes checkpoint.pt and history.json into `out_dir` at every evaluation and when stopped, and a plot at the end.

A carry from step to step, in which a finished example makes room for a new one, is HRM's and TRM's (arXiv 2506.21734,
2510.04871); cutting all gradients to the past is also the Recursive Stem Model's (2603.15641). Ours: the carry holds
beliefs, a step is one loop, a label waits until it is due.
"""
import math
import os
import random
import signal
import sys
import time
import warnings
import zlib
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
import torch.distributed as dist
import torch.nn as nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from tqdm import tqdm

import lego
from figures import show
from figures.text import read_corpus, sample_words
from lego import expect, one_line
from model import (COLUMNS, Transformer, count_flops, evaluate, loss_of, loss_of_one_loop, make_optimizers, mimic_loss,
                   read_checkpoint, read_pretrained, restore, save)


# ---- the dials -------------------------------------------------------------------------------------------------------


def has_variables(config) -> bool:
    """Whether a run has an accuracy for each variable."""
    return config.task not in ("words", "mimic")


@dataclass
class Config:
    # task
    task: str = "sign"  # or d<k>, c<k>, s<k>, a<k>, see lego.make_task; words of text; mimic two patterns
    n_clauses: int = 12  # variables of a sentence, T = 5 n_clauses tokens
    n_supervised: int = 0  # the first variables in order of depth carry a label in training; all are tested; 0: half
    n_names: int = 0  # variables to draw from, up to 1024: a to z, then v26, v27, ...; 0: 26, or n_clauses if more
    branch: float = -1.0  # training sentences are 0: chains, up to 1: any graph; -1: 1, or 0 for vanilla, drop_clause
    min_clauses: int = 0  # each training batch draws its number of clauses, from here to n_clauses; 0: n_clauses
    n_distractor: int = 0  # up to this many of the clauses, drawn for each batch, form a second chain without labels
    drop_clause: float = 0.0  # share of training batches whose sentences lack a random clause
    corpus: str = ""  # words: a UTF-8 text file; "": the docstrings of torch, numpy and matplotlib
    n_tokens: int = 128  # words: T
    # model
    init_from: str = ""  # start from the weights in a folder, another run's out_dir or a BERT's, and take its shape
    attention: str = "lego"  # lego, vanilla, or hybrid: half of the channels vanilla heads, the others LEGO
    tied: bool = True  # one block for all layers (ALBERT); False: a block for each (BERT)
    n_layer: int = 0  # blocks; tied: loops of the one block; 0: one for each labelled link, and 3 to spare
    carry: str = ""  # tied: hand on beliefs or the state; none: gradients cross loops; "": beliefs if chained LEGO
    n_embd: int = 64  # width C
    n_factor: int = 0  # width of the embeddings, widened to C, and GELU by tanh (ALBERT: 128); 0: C, GELU
    norm_first: bool = True  # pre-norm; False: post-norm (BERT)
    dropout: float = 0.0  # BERT: 0.1
    norm_eps: float = 1e-5  # BERT: 1e-12
    init_std: float = 0.1  # of all weights; BERT: 0.02
    positions: str = ""  # learned (BERT); none; rope (of vanilla heads); "": learned for vanilla, else none
    n_head: int = 4  # vanilla, hybrid: heads of n_embd / n_head channels
    association_share: float = 0.5  # lego, hybrid: share of the channels that go through association
    chained: bool = True  # lego, hybrid: convolution after association; False: beside it
    # optimisation
    batch_size: int = 64  # sentences per step, over all processes
    n_train: int = 0  # repeat a fixed set of this many sentences (with a carry a first batch comes once); 0: new ones
    unknown_weight: float = 0.2  # carry: weight of the loss that keeps a value uniform until it is due; 0: off
    max_steps: int = 300
    stop_at: float = 0.0  # stop when every variable has this accuracy, mean of 5 evaluations; 0: never
    lr: float = 0.0  # AdamW: embeddings, convolutions, head, norms and biases; 0: 4e-3, or 5e-4 for vanilla
    muon_lr: float = -1.0  # Muon: the matrices of the blocks; -1: 10 lr; 0: AdamW trains these too
    beta2: float = 0.99  # AdamW
    weight_decay: float = 0.01
    grad_clip: float = 1.0  # largest norm of the gradient; 0: off
    warmup_steps: int = 10
    schedule: str = "linear"  # of the learning rates after warm-up: constant; linear or cosine down to 0
    ema: float = 0.95  # decay of the averaged weights, which are tested and saved; 0: the last weights
    seed: int = 0
    # evaluation and files
    eval_every: int = 5  # steps between evaluations; 10 times as many once all is right, unless stop_at is set
    eval_size: int = 100  # new sentences at each evaluation
    out_dir: str = "out"  # "": write no files of the run
    # machine
    device: str = "auto"  # auto, cpu, cuda, cuda:1, mps
    dtype: str = "float32"  # of matrix products; bfloat16 on a GPU
    compile: bool = False  # torch.compile the blocks

    def __post_init__(self):
        """Fills in the dials whose default depends on others."""
        follows_links = self.tied and self.chained and self.attention != "vanilla" and has_variables(self)
        self.n_supervised = self.n_supervised or max(1, self.n_clauses // 2)
        is_short = self.n_clauses - self.n_distractor < self.n_supervised  # the labelled variables may be fewer
        varied = self.min_clauses or is_short or self.drop_clause  # a carry needs sentences of one shape
        self.n_layer = self.n_layer or self.n_supervised + 3
        self.n_names = self.n_names or max(26, self.n_clauses)
        if self.branch == -1:
            self.branch = 0.0 if self.attention == "vanilla" or self.drop_clause else 1.0
        self.lr = self.lr or (5e-4 if self.attention == "vanilla" else 4e-3)
        self.muon_lr = 10 * self.lr if self.muon_lr == -1 else self.muon_lr
        self.positions = self.positions or ("learned" if self.attention == "vanilla" else "none")
        self.carry = self.carry or ("beliefs" if follows_links and not varied else "none")


RULES = """
    1 <= n_clauses <= n_names <= 1024;  1 <= n_supervised <= n_clauses;  0 <= branch <= 1
    0 <= min_clauses <= n_clauses;  0 <= n_distractor < (min_clauses or n_clauses);  0 <= drop_clause <= 1
    1 <= n_layer <= 1000;  1 <= n_embd <= 2**16;  0 <= n_factor <= 2**16;  n_head >= 1;  n_tokens >= 1
    0 <= association_share <= 1;  positions in ("learned", "rope", "none")
    attention in ("vanilla", "hybrid") or positions != "rope"
    carry in ("beliefs", "state", "none");  carry == "none" or tied
    0 <= dropout < 1;  0 < norm_eps < 1;  0 < init_std < inf
    1 <= batch_size <= 2**20;  batch_size % n_processes == 0;  max_steps >= 1;  0 <= stop_at <= 1
    n_train == 0 or batch_size <= n_train <= 2**27;  schedule in ("constant", "linear", "cosine");  warmup_steps >= 0
    0 < lr <= 1e6;  0 <= muon_lr <= 1e6;  0 <= beta2 < 1;  0 <= weight_decay <= 1e6;  0 <= grad_clip < inf
    0 <= unknown_weight <= 1e6;  0 <= ema < 1;  eval_every >= 1;  1 <= eval_size <= 2**24
    dtype in ("float32", "bfloat16")
    drop_clause == 0 or (min_clauses or n_clauses) > 1  # a clause must remain
    drop_clause == 0 or branch == 0  # of a chain
    carry == "none" or not (min_clauses or drop_clause or task in ("words", "mimic"))
    carry == "none" or n_supervised <= n_clauses - n_distractor
    task != "mimic" or (attention == "vanilla" and n_head > 1)
"""

BERT = dict(attention="vanilla", tied=False, branch=0.0)
PRESETS = {  # other dials on the command line override these
    # A compact pre-norm BERT (ALBERT with --tied=True) that learns from random weights in 4 minutes on a CPU
    "vanilla": dict(BERT, n_clauses=6, n_supervised=6, n_names=6, n_layer=3, muon_lr=4e-3, batch_size=128,
                    warmup_steps=100, schedule="constant", max_steps=4000, stop_at=0.999, eval_every=50, eval_size=500),
    # Masked language modelling with twice the layers of vanilla, 10 minutes of one core
    "words": dict(BERT, task="words", n_layer=6, n_tokens=60, lr=1e-3, muon_lr=1e-2, batch_size=128, warmup_steps=100,
                  schedule="constant", max_steps=1500, eval_every=100, eval_size=500),
    # The official code's demo: BERT-base from random weights, 200 epochs of 120 steps, no warm-up. 0.74 EFLOP: 3 hours
    # on 4 V100, its README says. On a GPU add --dtype=bfloat16 --compile
    "paper": dict(BERT, n_layer=12, n_embd=768, n_head=12, norm_first=False, norm_eps=1e-12, init_std=0.02, dropout=0.1,
                  n_train=120_000, batch_size=1000, max_steps=24_000, lr=5e-5, muon_lr=0.0, beta2=0.999, ema=0.0,
                  weight_decay=0.0, grad_clip=0.0, warmup_steps=0, schedule="cosine", eval_every=120, eval_size=12_000),
}


def implied(dial, text) -> dict:
    """The dials that come with one: pretrained weights bring their shape."""
    return read_pretrained(text)[0] if dial == "init_from" and text else {}


RESUME_MAY_CHANGE = ("max_steps", "stop_at", "schedule", "eval_every", "corpus")  # the words of a corpus may not
OF_THIS_MACHINE = ("out_dir", "device", "compile")  # never taken from a checkpoint


def check(config):
    """Raises ValueError for the first dial that is of another type or breaks a rule."""
    lego.check(config, RULES, n_processes=N_RANKS, inf=math.inf)


def check_resumes(config, dials):
    """Raises ValueError for a dial that is not as in the run to resume, and has to be."""
    for dial, value in dials.items():
        if dial not in RESUME_MAY_CHANGE + OF_THIS_MACHINE and getattr(config, dial) != value:
            raise ValueError(f"{dial}={getattr(config, dial)}: expected {value}, as in the run to resume; "
                             f"only {', '.join(RESUME_MAY_CHANGE)} may change")


def pick_device(name) -> torch.device:
    if name == "auto":
        name = (torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu")).type
    if name == "cuda":
        name = f"cuda:{os.environ.get('LOCAL_RANK') or 0}"
    with one_line(f"device={name}: expected auto, cpu, or a cuda or mps device of this machine"):
        torch.ones(1, device=name).item()
        return torch.device(name)


# ---- several processes, by torchrun: each draws the same batch, takes its rows, gets the mean gradient ---------------

RANK = int(os.environ["RANK"]) if dist.is_torchelastic_launched() else 0
N_RANKS = int(os.environ["WORLD_SIZE"]) if dist.is_torchelastic_launched() else 1
MINE = slice(RANK, None, N_RANKS)  # the rows of a batch that are this process's


def sum_of_ranks(x):
    if N_RANKS > 1:
        dist.all_reduce(x)
    return x


def rows_of_all_ranks(x):
    """The whole of a tensor of which each process holds its rows: the sum of all, 0 elsewhere."""
    whole = x.new_zeros(N_RANKS * len(x), *x.shape[1:])
    whole[MINE] = x
    return sum_of_ranks(whole)


# ---- sentences: what is drawn is a function of the seed and the step, so a run can be resumed anywhere ---------------


def seed_of(config, purpose, step=0) -> int:
    return zlib.crc32(f"{purpose} {config.seed} {step}".encode())  # 32 bits: a generator on a CPU ignores higher ones


def make_generator(config, purpose, step=0, device="cpu") -> torch.Generator:
    return torch.Generator(device).manual_seed(seed_of(config, purpose, step))


def make_task(config, device="cpu"):
    """A lego.Task, or for words a Corpus. Both have a `vocab` and the `values` to be predicted."""
    if config.task == "words":
        return read_corpus(config.corpus, config.n_tokens, str(device))  # read once for each device
    return lego.make_task("sign" if config.task == "mimic" else config.task, config.n_names)


def draw_sentences(config, size, step, device) -> lego.Batch:
    """The training sentences of a step; only labelled variables are asked for."""
    if config.n_train:  # a fixed set: every epoch has the same batches; with a carry a sentence stays for n_layer steps
        step %= config.n_train // config.batch_size * (1 if config.carry == "none" else config.n_layer)
    task, generator = make_task(config, device), make_generator(config, "sentences", step, device)
    if config.task == "words":
        return sample_words(task, size, config.n_tokens, generator)
    dice = random.Random(seed_of(config, "lengths", step))
    n_distractor = dice.randint(0, config.n_distractor)
    n = dice.randint(config.min_clauses or config.n_clauses, config.n_clauses) - n_distractor
    drop = torch.randint(n, (size,), generator=generator, device=device) if dice.random() < config.drop_clause else None
    # each sentence branches with a probability of its own; by the cube half of them are chains, but for a link or two
    branch = torch.rand(size, generator=generator, device=device, dtype=torch.float32) ** 3 if config.branch else 0.0
    batch = lego.sample(task, size, n, generator, config.branch * branch, None, n_distractor, drop,
                        arguments=config.carry != "none")
    asked = torch.arange(batch.positions.size(1), device=device) % n < config.n_supervised
    return lego.Batch(batch.tokens, *(x[:, asked] for x in batch[1:]))


def draw_test(config, size, generator) -> lego.Batch:
    """Sentences to test on: whole chains, all variables; or words of documents held out."""
    task = make_task(config, generator.device)
    if config.task == "words":
        return sample_words(task, size, config.n_tokens, generator, held_out=True)
    return lego.sample(task, size, config.n_clauses, generator)


def draw_batch(config, step, batch, device):
    """
    The batch of a step, which is the batch of the step before with new sentences for those that are through; and the
    loop (B,) that each sentence makes: row b makes loop (step + b) mod n_layer + 1, and no loop later than step + 1,
    as all sentences are new at step 0. Without a carry they are new at every step.
    """
    loop = ((step + torch.arange(config.batch_size, device=device)) % config.n_layer).clamp(max=step) + 1
    if batch is None or config.carry == "none":
        return draw_sentences(config, config.batch_size, step, device), loop
    rows = (loop == 1).nonzero()[:, 0]
    if len(rows):
        new = draw_sentences(config, len(rows), step, device)
        batch = lego.Batch(*(x.index_copy(0, rows, y) for x, y in zip(batch, new)))
    return batch, loop


# ---- the model -------------------------------------------------------------------------------------------------------


def shares_names(config) -> bool:
    """Whether all variables have one embedding, so that the model reads names that it was not trained on."""
    return config.attention != "vanilla" and config.task != "words"


def make_model(config, weights=None, kind=Transformer) -> Transformer:
    """The Transformer of the dials, or a `kind` of it, in evaluation mode; with given weights, pretrained or random."""
    torch.manual_seed(seed_of(config, "weights"))
    task = make_task(config)
    T = config.n_tokens if config.task == "words" else lego.TOKENS_PER_CLAUSE * config.n_clauses
    vocab_size = task.first_name + 1 if shares_names(config) else len(task.vocab)  # the names come last
    model = kind(config, vocab_size, len(task.values), T).eval()
    if weights is not None:
        with one_line("checkpoint.pt: expected weights of the shape that its dials describe"):
            model.load_state_dict(weights)
    elif config.init_from:
        _, vocab, weights = read_pretrained(config.init_from)
        with one_line(f"init_from={config.init_from}: expected weights that fit"):
            model.init_from(weights, vocab, task.vocab)
    return model


# ---- training --------------------------------------------------------------------------------------------------------


class Objective(nn.Module):
    """The loss of a step as a module: DistributedDataParallel needs to see where a step begins and ends."""

    def __init__(self, model, config):
        super().__init__()
        self.model, self.config = model, config

    def forward(self, batch, carried, loop):
        """The sum of the losses, the number of labels, and what is handed on to the next step."""
        if self.config.carry != "none":
            return loss_of_one_loop(self.model, batch, carried, loop, self.config.unknown_weight)
        loss, n, _ = (mimic_loss if self.config.task == "mimic" else loss_of)(self.model, batch)
        return loss, n, None


def lr_multiplier(step, config) -> float:
    """Linear warm-up, then the schedule."""
    if step < config.warmup_steps:
        return (step + 1) / config.warmup_steps
    left = 1 - (step - config.warmup_steps) / max(1, config.max_steps - config.warmup_steps)  # from 1 down to 0
    return {"constant": 1.0, "linear": left, "cosine": 0.5 - 0.5 * math.cos(math.pi * left)}[config.schedule]


def check_finite(config, model, losses, step):
    """Raises ValueError, before anything is saved, if a loss since the last evaluation or a weight is not finite."""
    bad = [i for i, loss in enumerate(losses, step - len(losses)) if not loss.isfinite().all()]
    if bad or not all(p.isfinite().all() for p in model.parameters()):
        what = f"the loss at step {bad[0]}" if bad else f"a weight after step {step}"
        raise ValueError(f"{what} is not finite, expected finite numbers: try a smaller lr={config.lr} or "
                         f"muon_lr={config.muon_lr}, or grad_clip=1; the last checkpoint stays")


def train(config, model=None, look=None, resume=False) -> dict:
    """
    Trains a model and returns the history of its run, which history.json keeps:

        config, n_parameters, hardware, torch    what ran, and where
        step, loss, test_loss, accuracy          one entry per evaluation: steps so far, mean training loss since the
                                                 last entry in nats per label that is due (with a carry, what keeps
                                                 the others uniform is in it), what `evaluate` finds
        seconds, flops, tokens                   spent on training so far, evaluation not counted
        looks                                    look(model, config) at each evaluation but the first, or since a stop

    A given model is trained in place, and ends with the averaged weights; resume continues the run in config.out_dir.
    Raises ValueError for a dial out of range and for a loss or weight that is not finite, and
    KeyboardInterrupt(message, signal) when it was told to stop, has saved if it could, and says so.
    """
    check(config)
    device = pick_device(config.device)
    if N_RANKS > 1 and not dist.is_initialized():
        if device.type == "cuda":
            torch.cuda.set_device(device)
        dist.init_process_group()
    if config.out_dir:
        with one_line(f"out_dir={config.out_dir}: expected a folder that can be made"):
            os.makedirs(config.out_dir, exist_ok=True)
    model = (make_model(config) if model is None else model).to(device).train()
    averaged = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(config.ema)).eval()
    optimizers, vocab = make_optimizers(model, config), make_task(config).vocab
    history = dict(config=asdict(config), n_parameters=model.n_parameters(), hardware=show.hardware(device),
                   torch=str(torch.__version__), **{column: [] for column in COLUMNS})
    step, losses, seconds, flops, tokens = 0, [], 0.0, 0, 0  # losses: (loss, labels) of the steps since an evaluation
    batch = carried = None  # the sentences of the step before, and what their last loop handed on
    flops_of_step = {}  # by the shape of the batch, counted once for each
    if resume:
        saved = read_checkpoint(config.out_dir)
        check_resumes(config, saved["config"])
        progress, carried = restore(saved, config, vocab, history, model, averaged, optimizers)
        step, losses, seconds, flops, tokens = progress
        carried = None if carried is None else carried[MINE].to(device)
        for i in range(max(0, step - config.n_layer), step):  # in n_layer steps all sentences are replaced
            batch, _ = draw_batch(config, i, batch, device)
    if config.compile:
        with one_line("compile=True: expected a machine where torch.compile works"):
            torch.compile(torch.neg)(torch.ones(1, device=device))
        for block in model.blocks:
            block.compile()
    objective = Objective(model, config)
    if N_RANKS > 1:
        warnings.filterwarnings("ignore", "Grad strides do not match")  # in dimensions of size 1: nothing to mend
        warnings.filterwarnings("ignore", "find_unused_parameters=True was specified")
        objective = DistributedDataParallel(objective, find_unused_parameters=config.task == "mimic")  # has no head
    autocast = torch.autocast(device.type, torch.bfloat16, enabled=config.dtype == "bfloat16")
    bar = tqdm(total=config.max_steps, initial=step, desc="training", disable=RANK > 0 or not sys.stderr or None)
    clock = time.perf_counter()
    with lego.deferred_signals() as signals, bar:
        while True:
            # evaluate and save, with the clock stopped; all processes take the same mean, so that all decide alike
            evaluates = evaluates_at(step, history, config)
            stops = sum_of_ranks(torch.tensor(len(signals))) > 0  # a signal to one process stops all together
            if evaluates or stops:
                check_finite(config, model, losses, step)  # waits for the GPU
                seconds += time.perf_counter() - clock
                if evaluates:
                    test = draw_test(config, config.eval_size, make_generator(config, "test", step, device))
                    with autocast:
                        test_loss, accuracy = evaluate(averaged.module, test, config)
                    test_loss, *accuracy = (sum_of_ranks(torch.tensor([test_loss, *accuracy])) / N_RANKS).tolist()
                    total, n = torch.stack(losses).sum(0).tolist() if losses else (0, 0)
                    loss = total / n if n else None
                    for column, value in zip(COLUMNS, (step, loss, test_loss, accuracy, seconds, flops, tokens)):
                        history[column].append(value)
                    losses = []
                    if look and step:
                        history.setdefault("looks", []).append(look(averaged.module, config))
                    if RANK == 0:
                        bar.write(show.report(history))
                carried_by_all = None if carried is None else rows_of_all_ranks(carried)
                if RANK == 0 and config.out_dir and step:  # at step 0 the files of the last run are worth more
                    progress = step, losses, seconds, flops, tokens
                    save(config, vocab, history, model, averaged, optimizers, progress, carried_by_all)
                clock = time.perf_counter()
            if step >= config.max_steps or reached_stop_at(history):
                break
            if stops:
                goes_on = "; --resume continues from there" if config.out_dir and step else ""
                raise KeyboardInterrupt(f"stopped after step {step}{goes_on}", (signals or [signal.SIGTERM])[0])

            # one step
            for optimizer, lr in zip(optimizers, (config.lr, config.muon_lr)):
                optimizer.param_groups[0]["lr"] = lr * lr_multiplier(step, config)
            batch, loop = draw_batch(config, step, batch, device)
            torch.manual_seed(seed_of(config, f"dropout {RANK}", step))
            inputs = lego.Batch(*(x[MINE] for x in batch)), carried, loop[MINE]
            shape = batch.tokens.shape, batch.positions.shape
            if shape not in flops_of_step:
                flops_of_step[shape] = N_RANKS * count_flops(lambda: Objective(averaged.module, config)(*inputs))
            with autocast:
                total, n, carried = objective(*inputs)
            losses.append(sum_of_ranks(torch.stack((total.detach(), n))) / N_RANKS)
            model.zero_grad(set_to_none=True)
            (total / losses[-1][1].clamp(min=1)).backward()  # by the mean number of labels: processes may differ
            if config.grad_clip:
                nn.utils.clip_grad_norm_(model.parameters(), config.grad_clip)
            for optimizer in optimizers:
                optimizer.step()
            averaged.update_parameters(model)
            flops += flops_of_step[shape]
            tokens += batch.tokens.numel()
            step += 1
            bar.update()
    model.load_state_dict(averaged.module.state_dict())
    model.eval()
    return history


def evaluates_at(step, history, config) -> bool:
    """At the end, and every eval_every steps; once every variable is right there is less to see: less often."""
    last = history["accuracy"][-1] if history["accuracy"] else []
    solved = bool(last) and min(last) >= 0.999 and not config.stop_at
    is_time = step % (config.eval_every * (10 if solved else 1)) == 0 or step == config.max_steps
    return is_time and step not in history["step"]


def reached_stop_at(history, n_evaluations=5) -> bool:
    """Whether every variable is at stop_at or better over the last evaluations together."""
    stop_at, last = history["config"]["stop_at"], history["accuracy"][-n_evaluations:]
    means = [sum(column) / n_evaluations for column in zip(*last)] if len(last) == n_evaluations else []
    return 0 < stop_at <= min(means, default=0)


# ----------------------------------------------------------------------------------------------------------------------
# A reader can stop here. What follows reads the command line.


@dataclass
class Command(Config):
    ask: str = ""
    resume: bool = False


def main(arguments):
    if {"--help", "-h"} & {*arguments}:
        return print(__doc__, show.list_dials(Config), f"    --preset={' or '.join(PRESETS)}", sep="\n")
    given = lego.override(arguments, Command, PRESETS, implied)
    question, resume = given.pop("ask", None), given.pop("resume", False)
    folder = Path(given.get("out_dir", Config.out_dir))
    # to ask and to resume: the checkpoint's dials, and the command line's on top
    saved = read_checkpoint(folder) if question is not None or resume else {"config": {}}
    with one_line(f"{folder}/checkpoint.pt: expected the dials of this train.py"):
        config = Config(**({k: v for k, v in saved["config"].items() if k not in OF_THIS_MACHINE} | given))
    check(config)
    if resume:
        check_resumes(config, saved["config"])
    if question is not None:
        expect(has_variables(config), f"--ask: expected a run on sentences of LEGO, {folder} has one on {config.task}")
        task = lego.make_task(config.task, lego.MAX_NAMES if shares_names(config) else config.n_names)
        model = make_model(config, saved["model"]).to(pick_device(config.device))
        return show.answer(model, task, question, folder / "ask.png")
    device, model = pick_device(config.device), make_model(config, saved.get("model"))
    if RANK == 0:
        print(f"{model.n_parameters():,} parameters on {device}" + f" and {N_RANKS - 1} more" * (N_RANKS > 1)
              + "; accuracy in % of every variable in chain order, labelled | unlabelled" * has_variables(config))
    history = train(config, model, resume=resume)
    if N_RANKS > 1:
        dist.destroy_process_group()
    if RANK > 0:
        os._exit(0)  # torch at times aborts a process that ends in order so soon after its group
    if config.out_dir:
        show.plot(history, folder / ("accuracy.png" if has_variables(config) else "loss.png"))
        print(f"wrote {folder / 'history.json'}\nwrote {folder / 'checkpoint.pt'}")
    if config.task != "mimic":
        generator = make_generator(config, "examples", device=device)
        show.examples(model, make_task(config, device), draw_test(config, 100, generator))


if __name__ == "__main__":
    lego.command_line(main)
