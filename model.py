"""
A compact Transformer encoder that says something about every token: embedding, blocks (tied or untied), head.

    tokens (B, T) -> embedding -> n_layer blocks, or one block n_layer times -> head -> logits (B, T, n_out)

BERT is the untied model with post-norm blocks and vanilla attention, ALBERT the tied one. The default of train.py is a
tied block with LEGO attention that is conditioned on its own predictions: a loop begins from the tokens and from what
the loop before has said about each of them, and from nothing else. What is not quite right in a state ends with the
loop, and the model can follow a long chain, link by link. The block must be able to follow a link by itself, as chained
LEGO attention is.

Sources: the block is torch.nn.TransformerEncoderLayer's (GELU, no dropout); sharing it among all layers is ALBERT's;
conditioning a model on what it has just predicted is from diffusion models (self-conditioning, arXiv 2208.04202), to
put that in the place of the state is ours. Files of pretrained BERTs are in the layout of the Hugging Face libraries.
"""
import json
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn as nn
import torch.nn.functional as F

from attention import make_attention, make_plan


@dataclass
class ModelConfig:
    """The shape of a Transformer. No defaults: the dials and their values are those of train.Config."""

    vocab_size: int  # rows of the embedding of token ids; those beyond the last row share it
    n_out: int  # classes of the head
    n_layer: int  # blocks; for a tied model the loops of its one block, unless forward is given another number
    n_embd: int  # C
    n_head: int  # of vanilla and hybrid attention
    tied: bool  # one block for all layers
    norm_first: bool  # pre-norm, and a norm before the head; False: post-norm, and a norm behind the embedding
    norm_eps: float  # added to the variance in every norm with a gain; BERT: 1e-12
    norm_state: bool  # layer norm without gain on what a block begins from, and on its output
    self_condition: bool  # tied: a loop begins from the tokens and the predictions of the one before, not its state
    dropout: float  # in training, where BERT has it: on the embedding, the attention maps, and both parts of a block
    init_std: float  # of all weights at the start; biases are 0
    positions: str  # learned or none
    block_size: int  # the longest sentence in tokens, if positions are learned
    attention: str  # vanilla, lego or hybrid; this and the rest as in attention.make_attention
    kernel_size: int
    association_share: float
    vanilla_share: float
    chained: bool
    association: str


class MLP(nn.Module):
    def __init__(self, n_embd):
        super().__init__()
        self.up = nn.Linear(n_embd, 4 * n_embd)
        self.down = nn.Linear(4 * n_embd, n_embd)

    def forward(self, x):
        return self.down(F.gelu(self.up(x)))


class Block(nn.Module):
    """Any attention module, then an MLP, each with its norm and its residual."""

    def __init__(self, config):
        super().__init__()
        self.norm_first = config.norm_first
        self.norm1 = nn.LayerNorm(config.n_embd, config.norm_eps)
        self.attn = make_attention(
            config.attention, config.n_embd, config.n_head, kernel_size=config.kernel_size, chained=config.chained,
            association_share=config.association_share, vanilla_share=config.vanilla_share,
            association=config.association, dropout=config.dropout)
        self.norm2 = nn.LayerNorm(config.n_embd, config.norm_eps)
        self.mlp = MLP(config.n_embd)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x, tokens, padding_mask=None, plan=None, need_weights=False):
        """(B, T, C) -> the pair of (B, T, C) and the attention map (B, H, T, T), None unless asked for."""
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
    """See the top of this file. Raises ValueError for a size out of range, here and in `forward`."""

    def __init__(self, config):
        super().__init__()
        for name in ("vocab_size", "n_out", "n_layer", "n_embd", "n_head", "block_size"):
            if getattr(config, name) < 1:
                raise ValueError(f"{name}={getattr(config, name)}: expected at least 1")
        if config.positions not in ("learned", "none"):
            raise ValueError(f"positions={config.positions}: expected learned or none")
        self.config = config
        C = config.n_embd
        self.token_embedding = nn.Embedding(config.vocab_size, C)
        self.position_embedding = nn.Embedding(config.block_size, C) if config.positions == "learned" else None
        self.norm_embedding = nn.Identity() if config.norm_first else nn.LayerNorm(C, config.norm_eps)
        self.dropout = nn.Dropout(config.dropout)
        self.blocks = nn.ModuleList(Block(config) for _ in range(1 if config.tied else config.n_layer))
        self.norm_final = nn.LayerNorm(C, config.norm_eps) if config.norm_first else nn.Identity()
        self.head = nn.Linear(C, config.n_out)
        self.value_embedding = nn.Embedding(config.n_out, C) if config.tied and config.self_condition else None
        self.apply(self._init_weights)

    def _init_weights(self, module):
        # norms keep torch's ones and zeros
        if isinstance(module, (nn.Linear, nn.Embedding, nn.Conv2d)):
            nn.init.normal_(module.weight, std=self.config.init_std)
        if isinstance(module, (nn.Linear, nn.Conv2d)):
            nn.init.zeros_(module.bias)

    @classmethod
    def from_pretrained(cls, folder, symbols, n_out):
        """
        A BERT from a folder as `read_bert` expects it, for a vocabulary of `symbols` and a new head of n_out classes.
        Its states agree with those of transformers.BertModel, on the same words and without padding, within 1e-4.
        Raises ValueError as `read_bert` does.
        """
        dials, vocab, weights = read_bert(folder)
        block_size = len(weights["position_embedding.weight"])
        model = cls(ModelConfig(len(symbols), n_out, block_size=block_size, dropout=0.0, kernel_size=1, chained=False,
                                association_share=0.0, vanilla_share=1.0, association="auto", **dials)).eval()
        model.adopt(weights, vocab, symbols)
        return model

    def adopt(self, weights, vocab, symbols):
        """
        Begins from the weights of another model.

        weights   {name: tensor}, in the names of this class's state_dict
        vocab     the symbol of each of their token ids
        symbols   those of this model: each takes the row that it has there, and stays random if it has none

        Of the positions as many are taken as this model has. The head is taken if it has the same shape and is for the
        same symbols, of which either model may have more, and else stays random, and the embedding of its predictions
        with it. Raises ValueError, with a name and both shapes, for a weight that does not fit.
        """
        weights = dict(weights)
        row_of = {symbol: i for i, symbol in enumerate(vocab)}
        known = torch.tensor([symbol in row_of for symbol in symbols[: self.config.vocab_size]])
        same_task = all(there == here for there, here in zip(vocab, symbols))
        state = self.state_dict()
        for name, here in state.items():
            there = weights.get(name)
            if name == "token_embedding.weight" and there is not None and there.size(1) == here.size(1):
                there = here.clone()
                rows = torch.tensor([row_of[symbol] for symbol, is_known in zip(symbols, known) if is_known],
                                    dtype=torch.long)
                there[known] = weights[name][rows.clamp(max=len(weights[name]) - 1)].to(here)
            elif name == "position_embedding.weight" and there is not None:
                there = there[: len(here)]
            elif name.startswith(("head.", "value_embedding.")) and not (
                    same_task and there is not None and there.shape == here.shape):
                there = here
            if there is None or there.shape != here.shape:
                shape = "nothing" if there is None else f"{list(there.shape)}"
                raise ValueError(f"pretrained weights: expected {name} {list(here.shape)}, found {shape}")
            state[name] = there
        more = [name for name in weights if name not in state and name.startswith("blocks.")]
        if more:
            raise ValueError(f"pretrained weights: expected {self.config.n_layer} layers, found {more[-1]} besides")
        self.load_state_dict(state)

    def trace(self, tokens, n_loops=None, padding_mask=None, need_weights=False):
        """Yields, layer after layer, the state (B, T, C) and the attention map (B, H, T, T), None unless asked for."""
        T, config = tokens.size(1), self.config
        if n_loops is None:
            n_loops = config.n_layer
        if n_loops < 1 or (n_loops != config.n_layer and not config.tied):
            raise ValueError(f"n_loops={n_loops}: expected at least 1, and {config.n_layer} for an untied model")
        x = self.token_embedding(tokens.clamp(max=config.vocab_size - 1))  # (B, T, C)
        if self.position_embedding is not None:
            if T > config.block_size:
                raise ValueError(f"a sentence of {T} tokens: expected at most block_size={config.block_size}, "
                                 f"the length that the learned positions were made for")
            x = x + self.position_embedding.weight[:T]
        embedded = self.norm_embedding(x)
        x = self._norm_state(self.dropout(embedded))
        plan = None if config.attention == "vanilla" else make_plan(tokens, padding_mask, config.association)
        for i in range(n_loops):
            if i and self.value_embedding is not None:  # no gradient goes back: each loop learns from what it is given
                said = self.readout(x).softmax(-1).detach() @ self.value_embedding.weight  # (B, T, C)
                x = self._norm_state(self.dropout(embedded + said))
            block = self.blocks[0 if config.tied else i]
            x, weights = block(x, tokens, padding_mask, plan, need_weights)
            x = self._norm_state(x)
            yield x, weights

    def _norm_state(self, x):
        return F.layer_norm(x, x.shape[-1:]) if self.config.norm_state else x

    def readout(self, x):
        """The logits (B, T, n_out) that a state (B, T, C) of any layer stands for."""
        return self.head(self.norm_final(x))

    def forward(self, tokens, n_loops=None, padding_mask=None):
        """
        Logits (B, T, n_out) for token ids (B, T) int64; padding_mask (B, T) bool, True at padding.

        n_loops: how often a tied model applies its block, config.n_layer if None; an untied one takes no other number.
        """
        for x, _ in self.trace(tokens, n_loops, padding_mask):
            pass
        return self.readout(x)

    def n_parameters(self) -> int:
        return sum(p.numel() for p in self.parameters())

    def flops(self, T, n_loops=None, n_read=None) -> int:
        """
        Multiplications and additions of one forward pass over one sentence of T tokens, with the head at n_read
        positions, all of them if None; train.flops_of_sentence has those of a training step. Counted as
        torch.utils.flop_counter does, matrix products and convolutions, and the sums of `segment` besides; norms, GELU
        and softmax are left out.
        """
        C = self.config.n_embd
        mlp = 2 * T * C * 4 * C * 2
        layers = n_loops or self.config.n_layer
        n_read = T if n_read is None else n_read
        if self.value_embedding is not None:  # a second time where a block begins, and back into C channels
            n_read += 2 * (layers - 1) * T
        return layers * (self.blocks[0].attn.flops(T) + mlp) + 2 * n_read * C * self.config.n_out


# ----------------------------------------------------------------------------------------------------------------------
# pretrained BERTs


BERT_NAMES = [  # theirs and ours, to be replaced one after another
    ("bert.", ""), ("gamma", "weight"), ("beta", "bias"), ("embeddings.word_embeddings", "token_embedding"),
    ("embeddings.position_embeddings", "position_embedding"), ("embeddings.LayerNorm", "norm_embedding"),
    ("encoder.layer.", "blocks."), ("attention.self.", "attn."), ("attention.output.dense", "attn.proj"),
    ("attention.output.LayerNorm", "norm1"), ("intermediate.dense", "mlp.up"), ("output.dense", "mlp.down"),
    ("output.LayerNorm", "norm2"),
]


def read_bert(folder):
    """
    Reads a BERT from a folder in Hugging Face layout: config.json, vocab.txt, and model.safetensors (for which the
    package safetensors must be installed) or pytorch_model.bin.

    Returns the dials of its shape as in ModelConfig, its vocabulary, and its weights in the names of Transformer. The
    embedding of the first segment, which BERT adds everywhere in a single sentence, is added to the positions.
    Raises ValueError, one line, for a file that is missing or damaged and for another architecture.
    """
    folder = Path(folder)
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        vocab = (folder / "vocab.txt").read_text(encoding="utf-8").removesuffix("\n").split("\n")
    except OSError as error:
        raise ValueError(f"{error.filename}: expected this file of a pretrained BERT ({error.strerror})") from None
    except (ValueError, RecursionError):
        raise ValueError(f"{folder}: expected config.json and vocab.txt of a pretrained BERT, one is damaged") from None
    config = config if isinstance(config, dict) else {}
    dials = dict(tied=False, norm_first=False, norm_state=False, self_condition=False, positions="learned",
                 attention="vanilla")
    for dial, key, kind, default in [  # their library has defaults for two of them
        ("n_layer", "num_hidden_layers", int, None), ("n_embd", "hidden_size", int, None),
        ("n_head", "num_attention_heads", int, None), ("norm_eps", "layer_norm_eps", float, 1e-12),
        ("init_std", "initializer_range", float, 0.02),
    ]:
        dials[dial] = config.get(key, default)
        if not isinstance(dials[dial], kind) or dials[dial] <= 0:
            raise ValueError(f"{folder / 'config.json'}: expected that of a BERT with {key} above 0, found "
                             f"{config.get(key, 'none')}")
    found = (config.get("model_type"), config.get("hidden_act"), config.get("position_embedding_type", "absolute"),
             config.get("intermediate_size"))
    if found != ("bert", "gelu", "absolute", 4 * dials["n_embd"]):
        raise ValueError(f"{folder / 'config.json'}: expected bert with gelu, absolute positions and an MLP of 4 times "
                         f"the width {dials['n_embd']}, found {', '.join(map(str, found))}")
    path = folder / "model.safetensors"
    if not path.exists() and (folder / "pytorch_model.bin").exists():
        path = folder / "pytorch_model.bin"
    try:
        if path.suffix == ".bin":
            theirs = torch.load(path, map_location="cpu", weights_only=True)
        else:
            from safetensors.torch import load_file
            theirs = load_file(path)
    except ImportError:
        raise ValueError(f"{path}: expected the package safetensors to read it with; pip install safetensors") from None
    except FileNotFoundError:
        raise ValueError(f"{path}: expected this file of a pretrained BERT, there is none") from None
    except Exception:  # foreign bytes break a reader in more ways than can be listed
        raise ValueError(f"{path}: expected the weights of a pretrained BERT, this is damaged") from None
    weights = {}
    try:
        for name, tensor in theirs.items():
            for old, new in BERT_NAMES:
                name = name.replace(old, new)
            weights[name] = tensor.to_dense()
        weights["position_embedding.weight"] = (weights["position_embedding.weight"]
                                                + weights["embeddings.token_type_embeddings.weight"][0])
        n_rows = len(weights["token_embedding.weight"])
    except KeyError as error:
        raise ValueError(f"{path}: expected the weights of a BERT, {error} is missing") from None
    except Exception:
        raise ValueError(f"{path}: expected the weights of a BERT, these are something else") from None
    if n_rows != len(vocab):
        raise ValueError(f"{folder / 'vocab.txt'}: expected {n_rows} words, one for each row of the embedding, found "
                         f"{len(vocab)}")
    return dials, vocab, weights
