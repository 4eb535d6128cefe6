"""
A compact Transformer encoder that predicts something at every token; below it its losses, its test, its files.

    tokens (B, T) -> embedding -> n_layer blocks, or one block n_layer times (tied) -> head -> logits (B, T, n_out)

BERT is the untied model with vanilla attention and post-norm blocks, ALBERT the tied one. The default of train.py is a
tied block with LEGO attention. Between its loops it hands on beliefs: the probability of every value, at every token.

    loop 1    tokens + "nothing is known"  -> block -> head    a is +1
    loop 2    tokens + beliefs of loop 1   -> block -> head    a is +1, b is -1
    loop 3    tokens + beliefs of loop 2   -> block -> head    a is +1, b is -1, c is -1

A loop starts from the tokens and the beliefs, and from nothing else. So errors in the state die with the loop, every
loop has the same task, one link of the chain, and no gradient needs to cross loops.

The block is torch.nn.TransformerEncoderLayer's with GELU; sharing it is ALBERT's. Feeding predictions back comes from
diffusion models (self-conditioning, arXiv 2208.04202); putting them in place of the state is ours. `config` is
train.Config, which explains every dial used here, or any object with the same attributes.
"""
import json
import math
import os
import zipfile
from collections import OrderedDict, deque
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from attention import make_attention, make_plan, target_maps
from figures.bert import read_bert
from lego import IGNORE, TOKENS_PER_CLAUSE, Batch, expect, one_line, write


class Block(nn.Module):
    """Any attention, then an MLP, each with its norm and its residual."""

    def __init__(self, config):
        super().__init__()
        self.norm_first = config.norm_first
        self.norm1 = nn.LayerNorm(config.n_embd, config.norm_eps)
        self.attn = make_attention(config.attention, config.n_embd, config.n_head, config.dropout,
                                   rope=config.positions == "rope", association_share=config.association_share,
                                   chained=config.chained)
        self.norm2 = nn.LayerNorm(config.n_embd, config.norm_eps)
        self.mlp = nn.Sequential(OrderedDict(
            up=nn.Linear(config.n_embd, 4 * config.n_embd), gelu=nn.GELU("tanh" if config.n_factor else "none"),
            down=nn.Linear(4 * config.n_embd, config.n_embd)))
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x, tokens, padding_mask=None, plan=None, need_weights=False):
        """The next state (B, T, C), and the attention map (B, H, T, T) or None."""
        y = self.attn(self.norm1(x) if self.norm_first else x, tokens, padding_mask, plan, need_weights)
        y, weights = y if need_weights else (y, None)
        if self.norm_first:
            x = x + self.dropout(y)
            x = x + self.dropout(self.mlp(self.norm2(x)))
        else:
            x = self.norm1(x + self.dropout(y))
            x = self.norm2(x + self.dropout(self.mlp(x)))
        return x, weights


class Transformer(nn.Module):
    """
    vocab_size   rows of the token embedding; ids beyond the last row share it
    n_out        classes of the head
    block_size   the longest sentence, for learned positions

    The dials are within the rules of train.py. `forward` raises ValueError for a sentence or a number of loops that the
    model can't take.
    """

    links_per_loop = 1  # how many links of a chain a loop can follow, if chained: tells when a label is due

    def __init__(self, config, vocab_size, n_out, block_size):
        super().__init__()
        self.config = config
        C, E = config.n_embd, config.n_factor or config.n_embd
        self.token_embedding = nn.Embedding(vocab_size, E)
        self.position_embedding = nn.Embedding(block_size, E) if config.positions == "learned" else None
        self.norm_embedding = nn.Identity() if config.norm_first else nn.LayerNorm(E, config.norm_eps)
        self.widen = nn.Linear(E, C) if config.n_factor else nn.Identity()
        self.dropout = nn.Dropout(config.dropout)
        self.blocks = nn.ModuleList(Block(config) for _ in range(1 if config.tied else config.n_layer))
        self.norm_final = nn.LayerNorm(C, config.norm_eps) if config.norm_first else nn.Identity()
        self.head = nn.Linear(C, n_out)
        self.value_embedding = nn.Embedding(n_out, C) if config.carry == "beliefs" else None
        for name, p in self.named_parameters():  # the weights of norms, which have one dimension, keep torch's ones
            if p.ndim > 1:
                nn.init.normal_(p, std=config.init_std)
            elif name.endswith("bias"):
                nn.init.zeros_(p)

    def embed(self, tokens):
        """What the first layer reads of the tokens (B, T): their embeddings (B, T, C), with positions if learned."""
        # all ids from the last row on share that row: a model with vocab_size = first name + 1 has one embedding for
        # all variables, only association tells them apart, and it reads names that it has never seen
        x = self.token_embedding(tokens.clamp(max=self.token_embedding.num_embeddings - 1))  # (B, T, E)
        if self.position_embedding is not None:
            T, n = tokens.size(1), self.position_embedding.num_embeddings
            expect(T <= n, f"a sentence of {T} tokens: expected at most the {n} learned positions")
            x = x + self.position_embedding.weight[:T]
        return self.widen(self.norm_embedding(x))  # (B, T, E) -> (B, T, C)

    def layers(self, tokens, n_loops=None, carried=None, padding_mask=None, need_weights=False):
        """
        Yields, layer by layer, the state (B, T, C) and the attention map (B, H, T, T) or None. `carried` is what the
        loop before the first handed on, as `hand_on` returns it; None: nothing is known yet.
        """
        config = self.config
        n_loops = config.n_layer if n_loops is None else n_loops
        if n_loops < 1 or (n_loops != config.n_layer and not config.tied):
            raise ValueError(f"n_loops={n_loops}: expected at least 1, and {config.n_layer} for an untied model")
        embedded = self.embed(tokens)
        x = self.dropout(embedded)
        plan = None if config.attention == "vanilla" else make_plan(tokens, padding_mask)
        if config.carry != "none" and carried is None:
            carried = self.nothing_known(tokens)
        for i in range(n_loops):
            if config.carry != "none":
                carried = self.hand_on(x) if i else carried
                added = carried @ self.value_embedding.weight if config.carry == "beliefs" else carried
                x = self.dropout(embedded + added)
            if config.positions == "none":  # not BERT: a state that grows over layers would drown what the block adds
                x = F.layer_norm(x, x.shape[-1:])
            x, weights = self.blocks[0 if config.tied else i](x, tokens, padding_mask, plan, need_weights)
            yield x, weights

    def nothing_known(self, tokens):
        """What the first loop is handed: the belief that every value is as likely as any other, or a state of 0."""
        n_out, C = self.head.weight.shape
        if self.config.carry == "beliefs":
            return self.head.weight.new_full((*tokens.shape, n_out), 1 / n_out)
        return self.head.weight.new_zeros(*tokens.shape, C)

    def hand_on(self, x):
        """What a loop that ends in the state x (B, T, C) hands on to the next, without gradient."""
        if self.config.carry == "beliefs":
            return self.to_logits(x).softmax(-1).detach()
        return F.layer_norm(x, x.shape[-1:]).detach()

    def to_logits(self, x):
        """The logits (B, T, n_out) of a state (B, T, C) after any layer."""
        return self.head(self.norm_final(x))

    def forward(self, tokens, n_loops=None, padding_mask=None):
        """Logits (B, T, n_out) of token ids (B, T); a tied model applies its block n_loops times, n_layer if None."""
        (x, _), = deque(self.layers(tokens, n_loops, padding_mask=padding_mask), 1)
        return self.to_logits(x)

    def n_parameters(self) -> int:
        return sum(p.numel() for p in self.parameters())

    def init_from(self, weights, vocab, symbols):
        """
        Starts from the weights of another model: {name: tensor} under this class's names, for the symbols `vocab`.
        Each symbol of this model takes its row there and stays random if it has none. Positions are cut to length. The
        head, and the embedding of its predictions, are taken if they have this shape and mean the same symbols.
        Raises an error that names it for a weight that is missing, doesn't fit, or is one layer too many.
        """
        here = self.state_dict()
        there = {name: x for name, x in weights.items() if name in here or name.startswith("blocks.")}
        same_task = all(a == b for a, b in zip(vocab, symbols))
        for name in here:
            if name.startswith(("head.", "value_embedding.")):
                if not same_task or name not in there or there[name].shape != here[name].shape:
                    there[name] = here[name]
        if (name := "position_embedding.weight") in here:
            there[name] = there[name][: len(here[name])]
        name = "token_embedding.weight"
        rows = here[name].clone()
        for row, symbol in zip(rows, symbols):
            if symbol in vocab:
                row[:] = there[name][min(vocab.index(symbol), len(there[name]) - 1)]
        self.load_state_dict(there | {name: rows})

    @classmethod
    def from_pretrained(cls, folder, symbols, n_out):
        """
        A BERT from a Hugging Face folder (see `read_bert`), for a vocabulary of `symbols`, with a new head. Its states
        agree with transformers.BertModel's within 1e-4. Raises ValueError as `read_bert` does.
        """
        dials, vocab, weights = read_bert(folder)
        config = SimpleNamespace(**dials, dropout=0.0, chained=False, association_share=0.0)
        model = cls(config, len(symbols), n_out, len(weights["position_embedding.weight"]))
        with one_line(f"{folder}: expected weights of the shape in its config.json"):
            model.init_from(weights, vocab, symbols)
        return model.eval()


# ---- losses and test: a batch asks for the `values` (B, n) at the `positions` (B, n) of the `tokens` (B, T) ----------


def logits_at(model, x, positions):
    """The logits (B, n, n_out) of a state x (B, T, C) at the positions (B, n)."""
    return model.to_logits(x.gather(1, positions[..., None].expand(-1, -1, x.size(-1))))


def loss_of(model, batch, n_loops=None):
    """After the last layer: the summed cross-entropy of all labels in nats, the number of labels, and the logits."""
    (x, _), = deque(model.layers(batch.tokens, n_loops), 1)  # a list would keep the states of all loops
    logits = logits_at(model, x, batch.positions).float()  # (B, n, n_out)
    loss = F.cross_entropy(logits.flatten(0, 1), batch.values.flatten(), ignore_index=IGNORE, reduction="sum")
    return loss, (batch.values != IGNORE).sum().float(), logits


def loss_of_one_loop(model, batch, carried, loop, unknown_weight):
    """
    The loss of the next loop of every sentence, the number of labels due, and what the loop hands on. Every position
    asked for has a label.

    carried   what the loop before has handed on to each sentence; None at the first step
    loop      (B,) which loop of each sentence this is, from 1; a first loop is handed `nothing_known`

    One loop follows one link, so the label of a variable of depth d is due after d loops (or d / links_per_loop).
    Before, the model should say that it knows nothing: its prediction is pulled, with unknown_weight, to equal
    probabilities, and this is part of the loss. Without it the model guesses with certainty, and as association takes
    the mean over all places of a variable, guesses outvote the one place where its value is known.
    """
    if carried is not None:
        carried = torch.where((loop == 1)[:, None, None], model.nothing_known(batch.tokens), carried)
    (x, _), = model.layers(batch.tokens, 1, carried)
    log_p = logits_at(model, x, batch.positions).float().log_softmax(-1)  # (B, n, n_out)
    due = batch.depths <= model.links_per_loop * loop[:, None]  # (B, n)
    of_value = -log_p.gather(-1, batch.values[..., None])[..., 0]  # (B, n): cross-entropy of the value
    of_nothing = -log_p.mean(-1) - math.log(log_p.size(-1))  # (B, n): KL(equal probabilities || prediction)
    loss = torch.where(due, of_value, unknown_weight * of_nothing).sum()
    return loss, due.sum().float(), model.hand_on(x)


def mimic_loss(model, batch, n_loops=None, floor=1e-3):
    """
    How far heads 0 and 1 of every layer are from manipulation and association: KL(attention || pattern) in nats, mean
    over rows, summed over heads, layers and sentences; the number of sentences; None. A floor is added to both maps and
    then their rows are normalised. Needs no labels. As in the paper's official code.
    """
    normalise = lambda maps: (maps + floor) / (maps + floor).sum(-1, keepdim=True)
    targets, loss = normalise(target_maps(batch.tokens)), 0.0  # (B, 2, T, T)
    for _, weights in model.layers(batch.tokens, n_loops, need_weights=True):
        maps = normalise(weights[:, :2].float())
        loss = loss + (maps * (maps / targets).log()).sum(-1).mean(2).sum()
    return loss, torch.tensor(float(len(targets)), device=targets.device), None


@torch.no_grad()
def evaluate(model, batch, config):
    """
    The test loss, and the accuracies: of every variable, labelled or not; of all words; none for mimic. A model with a
    carry makes a loop for each clause and 4 to spare.
    """
    rows, n_loops = [], config.n_layer if config.carry == "none" else config.n_clauses + 4
    for part in map(Batch._make, zip(*(x.split(128) for x in batch))):
        loss, n, logits = (mimic_loss if config.task == "mimic" else loss_of)(model, part, n_loops)
        right = [] if logits is None else (logits.argmax(-1) == part.values).float().sum(0)
        rows.append(torch.stack((loss, n, *right)))
    loss, n, *right = sum(rows)
    expect(n > 0, f"eval_size={config.eval_size}: expected a label to test on, there is none")  # text may have none
    accuracy = [sum(right) / n] if config.task == "words" else [x / len(batch.tokens) for x in right]
    loss, *accuracy = torch.stack((loss / n, *accuracy)).tolist()
    return loss, accuracy


def make_optimizers(model, config) -> list[torch.optim.Optimizer]:
    """Muon for the matrices of the blocks, AdamW for the rest; AdamW for all if muon_lr is 0."""
    matrices = [p for p in model.blocks.parameters() if p.ndim == 2] if config.muon_lr else []
    others = [p for p in model.parameters() if not any(p is m for m in matrices)]
    optimizers = [torch.optim.AdamW(others, config.lr, betas=(0.9, config.beta2), weight_decay=config.weight_decay)]
    if matrices:
        optimizers.append(torch.optim.Muon(matrices, config.muon_lr, weight_decay=config.weight_decay))
    return optimizers


@torch.no_grad()
def count_flops(run) -> int:
    """
    The multiplications and additions in the matrix products and convolutions of run(), forward and backward: a backward
    pass takes twice a forward one. Fused attention hides its products, so it is taken apart for the count.
    """
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        run()
    return 3 * counter.get_total_flops()


# ----------------------------------------------------------------------------------------------------------------------
# A reader can stop here. What follows reads and writes files.


VERSION = 2  # of a checkpoint: 2 since a run has a carry from step to step
COLUMNS = ("step", "loss", "test_loss", "accuracy", "seconds", "flops", "tokens")  # of a history


def read_checkpoint(folder, device="cpu") -> dict:
    """The checkpoint in a folder. Reading it runs no code. Raises ValueError if there is none, or something else."""
    path = Path(folder) / "checkpoint.pt"
    expect(os.path.isfile(path), f"{path}: expected a checkpoint, there is none; python train.py makes one")
    with one_line(f"{path}: expected a checkpoint of train.py"):
        expect(zipfile.ZipFile(path).testzip() is None, "damaged")  # torch does not compare the checksums
        checkpoint = torch.load(path, map_location=device, weights_only=True)
        expect(checkpoint.get("version") == VERSION, "another version of train.py made it")
        expect({"vocab", "model"} <= checkpoint.keys() and isinstance(checkpoint["config"], dict), "parts are missing")
        return checkpoint


SHAPE = ("attention", "tied", "n_layer", "carry", "n_embd", "n_factor", "n_head", "norm_first", "norm_eps", "positions",
         "association_share", "chained")


def read_pretrained(folder):
    """The dials, vocabulary and weights {name: tensor} in a folder, another run's out_dir or a BERT's."""
    if not os.path.exists(Path(folder) / "checkpoint.pt"):
        return read_bert(folder)
    checkpoint = read_checkpoint(folder)
    dials = {dial: value for dial, value in checkpoint["config"].items() if dial in SHAPE}
    if dials.get("carry", "none") != "none":
        dials.pop("n_layer", None)  # not part of the shape: with a carry any number of loops will do
    return dials, checkpoint["vocab"], checkpoint["model"]


def save(config, vocab, history, model, averaged, optimizers, progress, carried):
    """--ask and --init_from read config, vocab and model; the figures read the history, too; --resume reads all."""
    checkpoint = dict(version=VERSION, config=asdict(config), vocab=[*vocab], model=averaged.module.state_dict(),
                      last=model.state_dict(), optimizers=[optimizer.state_dict() for optimizer in optimizers],
                      history=json.dumps(history), progress=[*progress], carried=carried)
    write(Path(config.out_dir) / "checkpoint.pt", lambda beside: torch.save(checkpoint, beside))
    write(Path(config.out_dir) / "history.json", lambda beside: beside.write_text(json.dumps(history, indent=1)))


def restore(saved, config, vocab, history, model, averaged, optimizers):
    """Puts a run where its checkpoint left it; returns its progress, and what all its sentences carry."""
    device = model.head.weight.device
    with one_line(f"{config.out_dir}/checkpoint.pt: expected a checkpoint that this train.py can resume"):
        expect(saved["vocab"] == [*vocab], f"corpus={config.corpus} has other words")
        model.load_state_dict(saved["last"])
        averaged.module.load_state_dict(saved["model"])
        for optimizer, state in zip(optimizers, saved["optimizers"], strict=True):
            optimizer.load_state_dict(optimizer.state_dict() | {"state": state["state"]})
            for p, state in optimizer.state.items():
                expect(all(x.shape == (() if name == "step" else p.shape) and x.isfinite().all()
                           for name, x in state.items()) and state.get("step", 0) >= 0, "optimizer")
        columns = json.loads(saved["history"])
        history |= {column: [*columns[column]] for column in COLUMNS}
        step, losses, seconds, flops, tokens = saved["progress"]
        averaged.n_averaged.fill_(step)
        losses, carried = [loss.to(device) for loss in losses], saved["carried"]
        expect(all(loss.shape == (2,) and loss.isfinite().all() for loss in losses), "losses")
        if carried is not None:
            like = model.nothing_known(torch.empty(config.batch_size, TOKENS_PER_CLAUSE * config.n_clauses))
            expect(carried.shape == like.shape and carried.isfinite().all(), "carried")
        return (int(step), losses, float(seconds), int(flops), int(tokens)), carried
