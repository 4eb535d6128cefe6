"""
A compact Transformer encoder that predicts something at every token; below it its losses, a proof
of what it has learned, and how to ask it.

    tokens (B, T) -> embedding -> blocks, or one block again and again -> head -> (B, T, n_out)

BERT is the untied model with vanilla attention and post-norm blocks, ALBERT the tied one: one block
for all layers. The default of train.py is a tied block with LEGO attention. Between its loops it
hands on facts: the values that it is sure of, and nothing else.

    loop 1    tokens                     -> block -> head    a is +1
    loop 2    tokens, a is +1            -> block -> head    a is +1, b is -1
    loop 3    tokens, a is +1, b is -1   -> block -> head    a is +1, b is -1, c is -1

A loop starts from the tokens and the facts. So every loop has the same task, one link of the chain.
What is not sure is not said, and association hears only those that know: so there is a finite
number of cases that a clause can meet in a loop. `prove` tries them all; where all are right, every
sentence is, of any length.

    python model.py "b=-a; a=+1; c=+b" [FOLDER]    ask a trained model, and draw how it answers

The block is torch.nn.TransformerEncoderLayer's with GELU; sharing it is ALBERT's. Handing on
discrete predictions is also arXiv 2510.14095's, and a proof by trying all transitions of a learned
algorithm 2402.11628's. That association hears only those that know is ours. `config` is
train.Config, complete, which explains every dial used here, or any object with the same attributes.
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

    def forward(self, x, tokens, padding_mask=None, plan=None, need_weights=False, known=None):
        """The next state (B, T, C), and the attention map (B, H, T, T) or None."""
        y, weights = self.norm1(x) if self.norm_first else x, None
        y = self.attn(y, tokens, padding_mask, plan, need_weights, known)
        if need_weights:
            y, weights = y
        if self.norm_first:
            x = x + self.dropout(y)
            x = x + self.dropout(self.mlp(self.norm2(x)))
        else:
            x = self.norm1(x + self.dropout(y))
            x = self.norm2(x + self.dropout(self.mlp(x)))
        return x, weights


SURE = 0.9  # the probability above which a value is a fact


class Transformer(nn.Module):
    """
    vocab        the symbol of every token id
    n_rows       rows of the token embedding; with config.share_names the ids beyond share the last
    n_out        classes of the head
    block_size   the longest sentence, for learned positions
    """

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
        self.fact_embedding = nn.Embedding(1 + n_out, C) if config.facts else None
        for name, p in self.named_parameters():  # the weights of norms, of one dimension, stay ones
            if p.ndim > 1:
                nn.init.normal_(p, std=config.init_std)
            elif name.endswith("bias"):
                nn.init.zeros_(p)

    def embed(self, tokens):
        """What the first layer reads of the tokens (B, T): embeddings (B, T, C), and positions."""
        T, (n_rows, _) = tokens.size(1), self.token_embedding.weight.shape
        if self.config.share_names:  # only association tells variables apart; new names are read
            tokens = tokens.clamp(max=n_rows - 1)
        x = self.token_embedding(tokens)
        if self.position_embedding is not None:
            n = self.position_embedding.num_embeddings
            if T > n:
                raise lego.InputError(f"a sentence of {T} tokens: expected at most {n}")
            x = x + self.position_embedding.weight[:T]
        return self.norm_embedding(x)

    def layers(self, tokens, n_loops=None, facts=None, padding_mask=None, need_weights=False):
        """
        Yields, layer by layer, the state (B, T, C) and the attention map (B, H, T, T) or None. A
        tied model applies its block n_loops times. None: n_layer times, or with facts until a loop
        adds none. `facts` (B, T): what is known before the first loop, as of `hand_on`; None:
        nothing.
        """
        config, known = self.config, None
        embedded = self.embed(tokens)
        x = self.dropout(embedded)
        plan = None if config.attention == "vanilla" else make_plan(tokens, padding_mask)
        blocks = self.blocks
        if config.tied:  # with facts a loop for each clause, and one to see that nothing is added
            most = tokens.size(1) // lego.TOKENS_PER_CLAUSE + 1 if config.facts else config.n_layer
            blocks = [self.blocks[0]] * (n_loops or most)
        if facts is None:
            facts = torch.zeros_like(tokens)
        for i, block in enumerate(blocks):
            if config.facts:
                if i:
                    before, facts = facts, self.hand_on(x, tokens)
                    if n_loops is None and torch.equal(before, facts):
                        return
                x, known = self.dropout(embedded + self.fact_embedding(facts)), facts > 0
            if config.norm == "both":  # a state that grows over layers drowns what the block adds
                x = F.layer_norm(x, x.shape[-1:])
            x, weights = block(x, tokens, padding_mask, plan, need_weights, known)
            yield x, weights

    @torch.no_grad()
    def hand_on(self, x, tokens):
        """
        The facts (B, T) that a loop ending in the state x (B, T, C) hands on: at a variable 1 + the
        value with a probability above SURE, 0 where no value has that, and at all other tokens.
        """
        sure, value = self.to_logits(x).float().softmax(-1).max(-1)
        is_name = tokens >= len(self.vocab) - self.config.n_names  # names come last
        return torch.where(is_name & (sure > SURE), value + 1, 0)

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
        cut to length. The head, and the embedding of its predictions, are taken if they mean the
        same symbols. Torch's RuntimeError names what does not fit.
        """
        here, there = self.state_dict(), dict(weights)
        same_symbols = all(a == b for a, b in zip(vocab, self.vocab))
        for name, x in here.items():
            if name.startswith(("head.", "fact_embedding.")):
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
    """What a run has saved in its out_dir. Reading it runs no code. InputError if it is damaged."""
    path = Path(folder) / "checkpoint.pt"
    if not path.exists():
        raise lego.InputError(f"{path}: expected a run of train.py there")
    try:
        return torch.load(path, map_location=device, weights_only=True)
    except Exception as error:  # foreign bytes break a reader in countless ways
        says = str(error).partition("\n")[0]
        raise lego.InputError(f"{path}: expected a checkpoint of train.py ({says})") from error


def load(folder) -> Transformer:
    """The trained model in a run's out_dir, on the CPU."""
    checkpoint = read_checkpoint(folder)
    config, weights = SimpleNamespace(**checkpoint["config"]), checkpoint["model"]
    n_rows, n_out = len(weights["token_embedding.weight"]), len(weights["head.bias"])
    block_size = len(weights.get("position_embedding.weight", ()))
    model = Transformer(config, checkpoint["vocab"], n_rows, n_out, block_size)
    model.load_state_dict(weights)
    return model.eval()


# ---- losses: a batch asks for the `values` (B, n) at the `positions` (B, n) of its tokens (B, T) -


def logits_at(model, x, positions):
    """The logits (B, n, n_out) of a state x (B, T, C) at the positions (B, n)."""
    return model.to_logits(x.gather(1, positions[..., None].expand(-1, -1, x.size(-1)))).float()


def predict(model, batch, n_loops=None):
    """The logits (B, n, n_out) after the last layer."""
    return logits_at(model, model.last_state(batch.tokens, n_loops), batch.positions)


def loss_of(logits, values):
    """The summed cross-entropy of all labels in nats, and their number."""
    loss = F.cross_entropy(logits.flatten(0, 1), values.flatten(), ignore_index=lego.NO_VALUE,
                           reduction="sum")
    return loss, (values != lego.NO_VALUE).sum()


def loss_of_one_loop(model, batch):
    """
    The summed loss of one loop from what is known in a batch of `lego.reveal`, and the number of
    values that it can tell.

    Where it can't, the model should say that it knows nothing: its prediction is pulled, with
    unknown_weight, to equal probabilities, and this is part of the loss. Without it the model
    guesses, and its guesses become facts.
    """
    (x, _), = model.layers(batch.tokens, 1, batch.facts)
    log_p = logits_at(model, x, batch.positions).log_softmax(-1)  # (B, n, n_out)
    is_told = batch.values != lego.NO_VALUE  # (B, n)
    of_value = -log_p.gather(-1, batch.values.clamp(min=0)[..., None])[..., 0]  # cross-entropy
    of_nothing = -log_p.mean(-1) - math.log(log_p.size(-1))  # KL(equal probabilities || prediction)
    loss = torch.where(is_told, of_value, model.config.unknown_weight * of_nothing)
    return loss.sum(), is_told.sum()


# ---- a proof: all that a clause can meet in a loop -----------------------------------------------


KNOWS, DOUBTS = 0.95, 0.75  # SURE lies between, so that rounding does not matter


def can_be_proved(model) -> bool:
    """Whether the cases of lego.cases show all that the model sees, and are not too many."""
    config, attn = model.config, model.blocks[0].attn
    return (type(model) is Transformer and config.facts and len(model.blocks) == 1
            and config.share_names and config.positions == "none" and type(attn) is LegoAttention
            and attn.chained and not attn.causal and attn.manipulation.conv.kernel_size[1] <= 7)


@torch.no_grad()
def prove(model, task, all_of_it=True) -> dict:
    """
    Whether a trained model answers every sentence of the task rightly: any length, any graph, any
    names. If n_wrong is 0, then after loop d every variable of depth d is known, nothing is ever
    said that is not true, and what a sentence does not determine stays unsaid.

    In one loop a place sees three tokens to either side, and through association what other places
    of its token know. All of these say the same, so there are finitely many cases, see lego.cases,
    and each is tried. Returns how many there are, and

        n_wrong    how many are wrong, or right by less than the margins
        knows      the least probability of a value that has to be known: KNOWS or more
        doubts     the largest probability of a value that is not told, or not true: DOUBTS or less
        example    a case that is wrong, in words

    SURE lies 0.05 and 0.15 inside of the margins: float32, bfloat16 or another machine round by far
    less. A model that is changed, by quantisation say, is to be proved anew. all_of_it=False ends
    at the first batch with a wrong case. InputError for a model that sees more than the cases show.
    """
    if not can_be_proved(model):
        raise lego.InputError("expected a tied model with chained LEGO attention over 7 positions "
                              "that hands on facts: of another the cases do not show all it sees")
    device = model.head.weight.device
    n, n_wrong, knows, doubts, example = 0, 0, 1.0, 0.0, ""
    for tokens, facts, position, value, must_know in lego.cases(task):
        (x, _), = model.layers(tokens.to(device), 1, facts.to(device))
        p = model.to_logits(x[:, position]).float().softmax(-1).cpu()  # (N, n_out)
        is_true = torch.arange(p.size(1)) == value[:, None]
        p_true, p_other = (p * is_true).amax(-1), (p * ~is_true).amax(-1)
        wrong = (must_know & (p_true < KNOWS)) | (p_other > DOUBTS)
        n, n_wrong = n + len(p), n_wrong + int(wrong.sum())
        knows, doubts = min([knows, *p_true[must_know].tolist()]), max(doubts, p_other.max().item())
        if n_wrong and not example:
            i = int(wrong.nonzero()[0])
            known = {f"{task.vocab[token]} = {task.values[fact - 1]}"
                     for token, fact in zip(tokens[i].tolist(), facts[i].tolist()) if fact}
            knowing = " and ".join(sorted(known)) or "nothing"
            example = (f"in {lego.decode(tokens[i], task)} knowing {knowing}, it gives "
                       f"{task.vocab[tokens[i, position]]} = {task.values[p[i].argmax()]} the "
                       f"probability {p[i].max():.2f}")
        if n_wrong and not all_of_it:
            break
    return dict(n_cases=n, n_wrong=n_wrong, knows=knows, doubts=doubts, example=example)


def in_words(proof) -> str:
    """What a proof says, in one line; None: there is none."""
    if proof is None:
        return "not proved: its answers can be right, and can be wrong"
    if proof["n_wrong"]:
        return (f"not proved: {proof['n_wrong']:,} of {proof['n_cases']:,} cases are wrong; "
                f"{proof['example']}")
    return (f"proved: all {proof['n_cases']:,} cases that a clause can meet are right, so every "
            "sentence is, of any length and shape (what it has to know has a probability of "
            f"{proof['knows']:.3f} or more, what it can't know or is not so {proof['doubts']:.3f} or "
            "less)")


# ---- asking a trained model: python model.py "b=-a; a=+1; c=+b" ----------------------------------


def task_of(model):
    """The task of a trained model, with all the names that it can read."""
    config = model.config
    return lego.make_task(config.task, lego.MAX_NAMES if config.share_names else config.n_names)


@torch.no_grad()
def answer(model, text, task, n_shown=40):
    """
    Prints, for every variable by depth, what the model says, how sure it is, and the truth; of a
    long sentence the mistakes alone. Returns the batch of this sentence, and the values that the
    model is sure of after each loop, (L, n), -1 where it is of none.
    """
    batch = lego.batch_of([text], task).to(model.head.weight.device)
    logits = [logits_at(model, x, batch.positions) for x, _ in model.layers(batch.tokens)]
    sure, said = torch.cat(logits).softmax(-1).cpu().max(-1)  # (L, n)
    batch, known = batch.to("cpu"), torch.where(sure > SURE, said, -1).cpu()
    truth = batch.values[0]
    right = torch.where(truth == lego.NO_VALUE, known[-1] < 0, said[-1] == truth)
    print(text)
    for i, (variable, value) in enumerate(lego.solve(text, task).items()):
        since = 1 + int(max((known[:, i] != known[-1, i]).nonzero(), default=-1)) + 1
        line = f"{variable:>6}   model {task.values[said[-1, i]]:<4} "
        line += f"probability {sure[-1, i]:.4f}   truth {value or 'not determined'}"
        line += f"   sure from loop {since} on" * (known[-1, i] >= 0).item()
        if len(right) <= n_shown or not right[i]:
            print(line + "   wrong" * (not right[i]))
    print(f"{right.sum()} of {len(right)} right")
    return batch, known


def draw_answer(text, task, batch, known):
    """A figure of what the model is sure of after each loop: a row a loop, a column a variable."""
    from matplotlib.colors import ListedColormap
    from matplotlib.figure import Figure

    (L, n), truth, depths = known.shape, batch.values[0], batch.depths[0]
    loops = torch.arange(1, L + 1)[:, None]
    due = (loops >= depths) & (truth >= 0)
    cells = (known >= 0) * (1 + (known != truth).long())  # (L, n): 0 nothing, 1 right, 2 wrong
    title = "Blue is right, orange is wrong"
    if torch.equal(cells, due.long()):
        title = "Every loop follows one more link"
    figure = Figure(figsize=(min(16, 3 + 0.6 * n), min(9, 2 + 0.4 * L)), layout="constrained")
    axes = figure.subplots()
    axes.imshow(cells.numpy(), cmap=ListedColormap(["white", "#0072B2", "#D55E00"]), vmin=0, vmax=2,
                aspect="auto", extent=(0.5, n + 0.5, L + 0.5, 0.5))
    axes.set(title=title, ylabel="after loop",
             xlabel="variable, by depth; a line leads from its argument; white: not known")
    clauses = {variable: (variable, *others) for variable, *others in lego.parse(text, task)}
    columns = list(lego.solve(text, task))
    for i, variable in enumerate(columns):
        argument = clauses[variable][2]
        if depths[i] > 1:
            axes.plot([1 + columns.index(argument), 1 + i], [depths[i] - 1, depths[i]], "#E69F00")
    if n <= 30:
        labels = [lego.write_clause(*clauses[variable]) for variable in columns]
        axes.set_xticks(range(1, n + 1), labels, rotation=90)
        for loop, i in known.ge(0).nonzero().tolist():
            axes.text(1 + i, 1 + loop, task.values[known[loop, i]], color="white", ha="center",
                      va="center")
    return figure


if __name__ == "__main__":
    parser = argparse.ArgumentParser(usage=argparse.SUPPRESS, description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sentence")
    parser.add_argument("folder", nargs="?", default="out", help="a run of train.py")
    args = parser.parse_args()
    os.environ.pop("MPLBACKEND", None)  # of a notebook that has started this
    try:
        model, path = load(args.folder), Path(args.folder) / "ask.png"
        task = task_of(model)
        batch, known = answer(model, args.sentence, task)
        draw_answer(args.sentence, task, batch, known).savefig(path, dpi=120)
        print(f"wrote {path}\n" + in_words(read_checkpoint(args.folder)["history"]["proof"]))
    except lego.InputError as error:
        parser.error(str(error))
