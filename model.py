"""
A compact Transformer encoder that predicts something at every token; below it its losses, and how
to ask it.

    tokens (B, T) -> embedding -> n_layer blocks, or one block n_layer times -> head -> (B, T, n_out)

BERT is the untied model with vanilla attention and post-norm blocks, ALBERT the tied one: one block
for all layers. The default of train.py is a tied block with LEGO attention. Between its loops it
hands on beliefs: the probability of every value, at every token.

    loop 1    tokens + "nothing is known"  -> block -> head    a is +1
    loop 2    tokens + beliefs of loop 1   -> block -> head    a is +1, b is -1
    loop 3    tokens + beliefs of loop 2   -> block -> head    a is +1, b is -1, c is -1

A loop starts from the tokens and the beliefs, and from nothing else. So errors in the state die with
the loop, every loop has the same task, one link of the chain, and no gradient needs to cross loops.

    python model.py "b=-a; a=+1; c=+b" [FOLDER]    ask a trained model, and draw how it answers

The block is torch.nn.TransformerEncoderLayer's with GELU; sharing it is ALBERT's. Feeding
predictions back comes from diffusion models (self-conditioning, arXiv 2208.04202); putting them in
place of the state is ours. `config` is train.Config, which explains every dial used here, or any
object with the same attributes.
"""
import argparse
import math
import os
from collections import OrderedDict
from pathlib import Path
from types import SimpleNamespace

import torch
import torch.nn as nn
import torch.nn.functional as F

import lego
from attention import HybridAttention, LegoAttention, VanillaAttention, make_plan


class Block(nn.Module):
    """Any attention, then an MLP, each with its norm and its residual."""

    def __init__(self, config):
        super().__init__()
        C, H, rope = config.n_embd, config.n_head, config.positions == "rope"
        of_lego = dict(association_share=config.association_share, chained=config.chained)
        self.norm_first = config.norm != "last"
        self.norm1 = nn.LayerNorm(C)
        if config.attention == "vanilla":
            self.attn = VanillaAttention(C, H, dropout=config.dropout, rope=rope)
        elif config.attention == "lego":
            self.attn = LegoAttention(C, **of_lego)
        elif config.attention == "hybrid":
            self.attn = HybridAttention(C, H, config.dropout, rope=rope, **of_lego)
        else:
            raise lego.InputError(f"attention={config.attention}: expected lego, vanilla or hybrid")
        self.norm2 = nn.LayerNorm(C)
        self.mlp = nn.Sequential(OrderedDict(
            up=nn.Linear(C, 4 * C), gelu=nn.GELU(), down=nn.Linear(4 * C, C)))
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x, tokens, padding_mask=None, plan=None, need_weights=False):
        """The next state (B, T, C), and the attention map (B, H, T, T) or None."""
        y, weights = self.norm1(x) if self.norm_first else x, None
        y = self.attn(y, tokens, padding_mask, plan, need_weights)
        if need_weights:
            y, weights = y
        if self.norm_first:
            x = x + self.dropout(y)
            x = x + self.dropout(self.mlp(self.norm2(x)))
        else:
            x = self.norm1(x + self.dropout(y))
            x = self.norm2(x + self.dropout(self.mlp(x)))
        return x, weights


class Transformer(nn.Module):
    """
    vocab        the symbol of every token id
    n_rows       rows of the token embedding; with config.share_names the ids beyond share the last
    n_out        classes of the head
    block_size   the longest sentence, for learned positions
    """

    links_per_loop = 1  # how many links of a chain a loop can follow: tells when a label is due

    def __init__(self, config, vocab, n_rows, n_out, block_size):
        super().__init__()
        self.config, self.vocab = config, list(vocab)
        C, learned, first = config.n_embd, config.positions == "learned", config.norm != "last"
        n_blocks = 1 if config.tied else config.n_layer
        self.token_embedding = nn.Embedding(n_rows, C)
        self.position_embedding = nn.Embedding(block_size, C) if learned else None
        self.norm_embedding = nn.Identity() if first else nn.LayerNorm(C)
        self.dropout = nn.Dropout(config.dropout)
        self.blocks = nn.ModuleList(Block(config) for _ in range(n_blocks))
        self.norm_final = nn.LayerNorm(C) if first else nn.Identity()
        self.head = nn.Linear(C, n_out)
        self.value_embedding = nn.Embedding(n_out, C) if config.carry == "beliefs" else None
        for name, p in self.named_parameters():  # the weights of norms, of one dimension, stay ones
            if p.ndim > 1:
                nn.init.normal_(p, std=config.init_std)
            elif name.endswith("bias"):
                nn.init.zeros_(p)

    def embed(self, tokens):
        """What the first layer reads of the tokens (B, T): embeddings (B, T, C), and positions."""
        T, (n_rows, _) = tokens.size(1), self.token_embedding.weight.shape
        if self.config.share_names:  # only association tells variables apart, and new names are read
            tokens = tokens.clamp(max=n_rows - 1)
        x = self.token_embedding(tokens)
        if self.position_embedding is not None:
            n = self.position_embedding.num_embeddings
            if T > n:
                raise lego.InputError(f"a sentence of {T} tokens: expected at most {n}, as in training")
            x = x + self.position_embedding.weight[:T]
        return self.norm_embedding(x)

    def layers(self, tokens, n_loops=None, carry=None, padding_mask=None, need_weights=False):
        """
        Yields, layer by layer, the state (B, T, C) and the attention map (B, H, T, T) or None. A tied
        model applies its block n_loops times, n_layer if None. `carry` is what the loop before the
        first handed on, as `next_carry` returns it; None: nothing is known yet.
        """
        config = self.config
        embedded = self.embed(tokens)
        x = self.dropout(embedded)
        plan = None if config.attention == "vanilla" else make_plan(tokens, padding_mask)
        blocks = self.blocks
        if config.tied:
            blocks = [self.blocks[0]] * (n_loops or config.n_layer)
        for i, block in enumerate(blocks):
            if config.carry != "none":
                if i:
                    carry = self.next_carry(x)
                elif carry is None:
                    carry = self.initial_carry(tokens)
                beliefs = config.carry == "beliefs"
                x = self.dropout(embedded + (carry @ self.value_embedding.weight if beliefs else carry))
            if config.norm == "both":  # a state that grows over layers drowns what the block adds
                x = F.layer_norm(x, x.shape[-1:])
            x, weights = block(x, tokens, padding_mask, plan, need_weights)
            yield x, weights

    def initial_carry(self, tokens):
        """What the first loop is handed: that every value is as likely as any other, or a state of 0."""
        n_out, C = self.head.weight.shape
        if self.config.carry == "beliefs":
            return self.head.weight.new_full((*tokens.shape, n_out), 1 / n_out)
        return self.head.weight.new_zeros(*tokens.shape, C)

    def next_carry(self, x):
        """What a loop that ends in the state x (B, T, C) hands on to the next, without gradient."""
        if self.config.carry == "beliefs":
            return self.to_logits(x).softmax(-1).detach()
        return F.layer_norm(x, x.shape[-1:]).detach()

    def to_logits(self, x):
        """The logits (B, T, n_out) of a state (B, T, C) after any layer."""
        return self.head(self.norm_final(x))

    def last_state(self, tokens, n_loops=None, padding_mask=None):
        """The state (B, T, C) after the last layer."""
        for x, _ in self.layers(tokens, n_loops, padding_mask=padding_mask):
            pass  # a list would keep the states of all loops
        return x

    def forward(self, tokens, n_loops=None, padding_mask=None):
        """Logits (B, T, n_out) of token ids (B, T) after the last layer."""
        return self.to_logits(self.last_state(tokens, n_loops, padding_mask))

    @torch.no_grad()
    def maps(self, tokens):
        """The attention maps of all layers, (L, B, H, T, T)."""
        return torch.stack([weights for _, weights in self.layers(tokens, need_weights=True)])

    def n_parameters(self) -> int:
        return sum(p.numel() for p in self.parameters())

    def init_from(self, weights, vocab):
        """
        Starts from another model's weights {name: tensor}, whose token ids are the symbols `vocab`:
        each symbol of this model takes its row there and stays random if it has none. Positions are
        cut to length. The head, and the embedding of its predictions, are taken if they mean the same
        symbols. Torch's RuntimeError names what does not fit.
        """
        here, there = self.state_dict(), dict(weights)
        same_symbols = all(a == b for a, b in zip(vocab, self.vocab))
        for name, x in here.items():
            if name.startswith(("head.", "value_embedding.")):
                if not same_symbols or name not in there or there[name].shape != x.shape:
                    there[name] = x
        if self.position_embedding is not None:
            n = self.position_embedding.num_embeddings
            there["position_embedding.weight"] = there["position_embedding.weight"][:n]
        row_of = {symbol: i for i, symbol in enumerate(vocab)}
        theirs, rows = there["token_embedding.weight"], here["token_embedding.weight"].clone()
        for row, symbol in zip(rows, self.vocab):
            if symbol in row_of:
                row[:] = theirs[min(row_of[symbol], len(theirs) - 1)]
        self.load_state_dict(there | {"token_embedding.weight": rows})


def read_checkpoint(folder, device="cpu") -> dict:
    """What a run has saved in its out_dir. Reading it runs no code. InputError if it can't be read."""
    path = Path(folder) / "checkpoint.pt"
    if not path.exists():
        raise lego.InputError(f"{path}: expected a run of train.py there")
    try:
        return torch.load(path, map_location=device, weights_only=True)
    except Exception as error:  # foreign bytes break a reader in countless ways
        raise lego.InputError(f"{path}: expected a checkpoint of train.py ({str(error)[:99]!r})") from error


def load(folder) -> Transformer:
    """The trained model in a run's out_dir, on the CPU."""
    checkpoint = read_checkpoint(folder)
    config, weights = SimpleNamespace(**checkpoint["config"]), checkpoint["model"]
    n_rows, n_out = len(weights["token_embedding.weight"]), len(weights["head.bias"])
    block_size = len(weights.get("position_embedding.weight", ()))
    model = Transformer(config, checkpoint["vocab"], n_rows, n_out, block_size)
    model.load_state_dict(weights)
    return model.eval()


# ---- losses: a batch asks for the `values` (B, n) at the `positions` (B, n) of its tokens (B, T) ----


def logits_at(model, x, positions):
    """The logits (B, n, n_out) of a state x (B, T, C) at the positions (B, n)."""
    return model.to_logits(x.gather(1, positions[..., None].expand(-1, -1, x.size(-1))))


def loss_of(model, batch, n_loops=None):
    """
    After the last layer: the summed cross-entropy of all labels in nats, the number of labels, and the
    logits (B, n, n_out).
    """
    x = model.last_state(batch.tokens, n_loops)
    logits = logits_at(model, x, batch.positions).float()
    loss = F.cross_entropy(logits.flatten(0, 1), batch.values.flatten(), ignore_index=lego.IGNORE,
                           reduction="sum")
    return loss, (batch.values != lego.IGNORE).sum(), logits


@torch.no_grad()
def predict(model, batch, n_loops=None, size=128):
    """The likeliest value at every position, (B, n), for a batch of any size."""
    return torch.cat([loss_of(model, part, n_loops)[2].argmax(-1) for part in batch.split(size)])


def loss_of_one_loop(model, batch, carry, loop):
    """
    The loss of the next loop of every sentence, the number of labels due, and what the loop hands on.

    carry   what the loop before has handed on to each sentence; None at the first step
    loop    (B,) which loop of each sentence this is, from 1; a first loop gets `initial_carry`

    One loop follows one link, so the label of a variable of depth d is due after d loops (or
    d / links_per_loop). Before, and where a value is not determined, the model should say that it
    knows nothing: its prediction is pulled, with unknown_weight, to equal probabilities, and this is
    part of the loss. Without it the model guesses with certainty, and as association takes the mean
    over all places of a variable, guesses outvote the one place where its value is known.
    """
    if carry is not None:
        carry = torch.where((loop == 1)[:, None, None], model.initial_carry(batch.tokens), carry)
    (x, _), = model.layers(batch.tokens, 1, carry)
    log_p = logits_at(model, x, batch.positions).float().log_softmax(-1)  # (B, n, n_out)
    has_label = batch.values != lego.IGNORE  # (B, n)
    due = (batch.depths <= model.links_per_loop * loop[:, None]) & has_label
    labels = batch.values.clamp(min=0)[..., None]
    of_value = -log_p.gather(-1, labels)[..., 0]  # (B, n): cross-entropy of the value
    of_nothing = -log_p.mean(-1) - math.log(log_p.size(-1))  # (B, n): KL(equal || prediction)
    loss = torch.where(due, of_value, model.config.unknown_weight * of_nothing).sum()
    return loss, due.sum(), model.next_carry(x)


# ---- asking a trained model: python model.py "b=-a; a=+1; c=+b" ------------------------------------


@torch.no_grad()
def believe(model, text, task, spare=8):
    """
    The variables of a sentence in order of depth, {variable: truth}, and what the model believes of
    them after every loop, (loops, n, values). A model with a carry makes a loop for each clause, and
    some to spare.
    """
    truth = lego.solve(text, task)
    variables = [variable for variable, *_ in lego.parse(text, task)]
    positions = [lego.TOKENS_PER_CLAUSE * variables.index(variable) for variable in truth]
    n_loops = None if model.config.carry == "none" else len(truth) + spare
    tokens = lego.encode(text, task)[None].to(model.head.weight.device)  # (1, T)
    states = [x[0, positions] for x, _ in model.layers(tokens, n_loops)]
    return truth, torch.stack([model.to_logits(x).softmax(-1) for x in states]).cpu()


def answer(model, text, task, n_shown=40):
    """
    Prints what the model says of each variable, how sure it is, and the truth; of long sentences what
    is wrong. Returns the truth and the beliefs, as `believe`, up to the loop after the last change.
    """
    truth, beliefs = believe(model, text, task)
    sure, said = beliefs.max(-1)  # (loops, n)
    doubts = (sure < 0.9) | (said != said[-1])
    loops = torch.arange(1, len(beliefs) + 1)[:, None]
    since = 1 + (doubts * loops).amax(0)  # the loop after the last doubt
    n_right = 0
    print(text)
    for i, (variable, value) in enumerate(truth.items()):
        guess = task.values[said[-1, i]]
        n_right += guess == value
        if len(truth) > n_shown and guess == value:
            continue
        line = f"{variable:>8}   model {guess}   probability {sure[-1, i]:.4f}   truth "
        line += value or "not determined"
        if since[i] <= len(beliefs):
            line += f"   sure from loop {since[i]} on"
        if value is not None and guess != value:
            line += "   wrong"
        print(line)
    print(f"{n_right} of {len(truth)} right")
    return truth, beliefs[: since.max() + 2]


def draw_beliefs(truth, beliefs, task):
    """A figure of what the model believes: one row a loop, one column a variable."""
    from matplotlib.figure import Figure

    (sure, said), (n_loops, n, _) = beliefs.max(-1), beliefs.shape
    figure = Figure(figsize=(min(30, 3 + 0.6 * n), min(30, 2 + 0.4 * n_loops)), layout="constrained")
    axes = figure.subplots()
    image = axes.imshow(100 * sure, cmap="Blues", vmin=100 / len(task.values), vmax=100,
                        aspect="auto", extent=(0.5, n + 0.5, n_loops + 0.5, 0.5))
    for i, j in torch.cartesian_prod(torch.arange(n_loops), torch.arange(n)).tolist() if n <= 26 else ():
        is_sure = sure[i, j] > 0.9
        axes.text(j + 1, i + 1, task.values[said[i, j]] if is_sure else "?", ha="center", va="center",
                  color="white" if is_sure else "gray")
    axes.set(title="What the model believes: dark is sure, ? is not", ylabel="after loop",
             xlabel="variable, by depth")
    axes.set_xticks(range(1, n + 1), truth if n <= 60 else [""] * n)
    figure.colorbar(image, ax=axes, label="probability of the likeliest value (%)")
    return figure


def task_of(model):
    """The task of a trained model, with all the names that it can read."""
    config = model.config
    return lego.make_task(config.task, lego.MAX_NAMES if config.share_names else config.n_names)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(usage=argparse.SUPPRESS, description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sentence")
    parser.add_argument("folder", nargs="?", default="out", help="a run of train.py")
    args = parser.parse_args()
    os.environ.pop("MPLBACKEND", None)  # of a notebook that has started this
    try:
        model = load(args.folder)
        task = task_of(model)
        truth, beliefs = answer(model, args.sentence, task)
        path = Path(args.folder) / "ask.png"
        draw_beliefs(truth, beliefs, task).savefig(path, dpi=120)
        print(f"wrote {path}")
    except lego.InputError as error:
        parser.error(str(error))
