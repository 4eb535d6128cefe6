"""
Attention: vanilla heads, the two patterns that the paper found in them, and LEGO attention, which
hard-codes these.

    token        b  =  -  a  ;     c  =  +  b  ;     a  =  +  1  ;
    position     0  1  2  3  4     5  6  7  8  9    10 11 12 13 14

    association  b ----------------------> b       each b gets the mean of all other b's
    manipulation                   c <---- b       each position mixes its neighbours
    chained      b ----------------------> b
                                   c <---- b       what is known of b where it is defined reaches c
                                                   in one layer: one link of the chain

Every module has one contract:

    module(x (B, T, C), tokens (B, T), padding_mask=None) -> (B, T, C)

`tokens` are the ids of the sentence; `padding_mask` (B, T) is True at padding, whose x may be
anything. With need_weights=True a module returns the pair (output, attention map (B, H, T, T)).
A position sees the whole sentence, or with causal=True only itself and those before it.

    vanilla        softmax(q k^T / sqrt(d)) v                       O(T^2 C), any pattern, learned
    association    mean over the other positions of the same token  O(T C), global, nothing to learn
    manipulation   depthwise convolution over positions             O(T C), local, learned
    lego           value projection -> association -> manipulation -> output projection
    hybrid         lego beside some vanilla heads

    python attention.py [FILE]    draw the masks of a small sentence, time association here

The two patterns and the name are the paper's (arXiv 2206.04301). It has no public code for LEGO
attention: how we join the pathways, `chained` above all, is our reading.
"""
import argparse
import os
from pathlib import Path

import torch
import torch.nn as nn
import torch.nn.functional as F


# ---- LEGO attention: two patterns, hard-coded ----------------------------------------------------


def identical_tokens(tokens, padding_mask=None, causal=False):
    """
    True at (b, i, j) where j != i (causal: j < i), tokens[b, i] == tokens[b, j], and neither is
    padding: (B, T, T).
    """
    same = tokens[:, :, None] == tokens[:, None, :]  # (B, T, T)
    if causal:
        same = same.tril(-1)
    else:
        same = same & ~torch.eye(tokens.size(1), dtype=torch.bool, device=tokens.device)
    if padding_mask is not None:
        same = same & ~padding_mask[:, :, None] & ~padding_mask[:, None, :]
    return same


class Dense:
    """
    Association as a matrix (B, T, T): y_i is the mean of v_j over the other positions j of the same
    token, 0 where there is none. Made of the tokens once, applied to the values (B, T, C) of any
    layer. O(B T^2 C): the reference, and the fastest for short sentences; Segment is the same in
    O(B T C).

    >>> tokens, v = torch.tensor([[7, 8, 7, 7]]), torch.tensor([[[1.], [2.], [3.], [5.]]])
    >>> Dense(tokens)(v).flatten().tolist()
    [4.0, 0.0, 3.0, 2.0]
    """

    def __init__(self, tokens, padding_mask=None, causal=False):
        same = identical_tokens(tokens, padding_mask, causal).float()
        self.matrix = same / same.sum(-1, keepdim=True).clamp(min=1)

    def __call__(self, v):
        return self.matrix.to(v.dtype) @ v


class Manipulation(nn.Module):
    """
    Depthwise convolution over positions, (B, T, C) -> (B, T, C), zero beyond both ends and at
    padding. The window is centred, or ends at the position if causal.
    """

    def __init__(self, n_channels, kernel_size, causal=False):
        super().__init__()
        assert kernel_size % 2, f"kernel_size={kernel_size}: expected an odd number"
        self.n_left = kernel_size - 1 if causal else kernel_size // 2  # positions to the left
        # x as an image of height 1, a view that needs no copy: on a CPU twice as fast as Conv1d
        self.conv = nn.Conv2d(n_channels, n_channels, (1, kernel_size), padding=(0, self.n_left),
                              groups=n_channels)

    def forward(self, x, padding_mask=None):
        T = x.size(1)
        x = zero_padding(x, padding_mask)
        x = x.transpose(1, 2).unsqueeze(2)  # (B, T, C) -> (B, C, 1, T)
        return self.conv(x)[..., :T].squeeze(2).transpose(1, 2)  # (B, C, 1, T) -> (B, T, C)

    def weights(self, T):
        """The convolution as an attention map (T, T): mean absolute kernel, rows sum to 1."""
        kernel = self.conv.weight.abs().mean(dim=(0, 1))  # (1, K)
        sent = torch.eye(T, dtype=kernel.dtype, device=kernel.device)[:, None]  # (T, 1, T)
        band = F.conv1d(sent, kernel[None], padding=self.n_left)[:, 0, :T].T  # (T, T)
        return band / band.sum(-1, keepdim=True).clamp(min=1e-12)


def zero_padding(x, padding_mask):
    """x (B, T, C), and 0 at padding, where it may be anything, even NaN."""
    if padding_mask is None:
        return x
    return x.masked_fill(padding_mask[..., None], 0)


class LegoAttention(nn.Module):
    """
    The two patterns hard-coded: no query, no key, no softmax.

    association_share of the channels go through association, the others do not. `chained`: then all
    go through the convolution, so a value that arrives at a variable moves on inside its clause,
    and one layer follows one link of the chain. Not chained: only the other channels pass the
    convolution, the patterns stand side by side as heads do, and a link takes two layers. A kernel
    of 7 positions spans a clause from its variable. The attention map has H = 2: association,
    manipulation. All layers of a model can share one `plan`, see `make_plan`. With `known` (B, T),
    association hears only the positions where it is True.
    """

    def __init__(self, n_embd, kernel_size=7, association_share=0.5, chained=True, n_channels=None,
                 causal=False):
        super().__init__()
        n_channels = n_channels or n_embd
        self.chained, self.causal = chained, causal
        self.n_associated = round(association_share * n_channels)
        n_convolved = n_channels if chained else n_channels - self.n_associated
        self.value = nn.Linear(n_embd, n_channels)
        self.manipulation = Manipulation(n_convolved, kernel_size, causal) if n_convolved else None
        self.proj = nn.Linear(n_channels, n_embd)

    def forward(self, x, tokens, padding_mask=None, plan=None, need_weights=False, known=None):
        if plan is None:
            plan = make_plan(tokens, padding_mask, self.causal)
        v = self.value(zero_padding(x, padding_mask))  # (B, T, C)
        far, near = v[..., : self.n_associated], v[..., self.n_associated :]
        if known is None:
            far = plan(far)
        else:  # the mean over those that know: of what they say, by the share of those that say it
            says = known[..., None].to(v.dtype)  # (B, T, 1)
            heard = plan(torch.cat((far * says, says), -1))
            far = heard[..., :-1] / heard[..., -1:].clamp(min=1e-6)
        if self.chained:
            y = self.manipulation(torch.cat((far, near), -1), padding_mask)
        elif self.manipulation is not None:
            y = torch.cat((far, self.manipulation(near, padding_mask)), -1)
        else:
            y = far
        y = self.proj(y)
        if need_weights:
            return y, self.weights(tokens, padding_mask)
        return y

    def weights(self, tokens, padding_mask=None):
        """The fixed map of association and the mean map of the convolution, (B, 2, T, T)."""
        association = Dense(tokens, padding_mask, self.causal).matrix
        local = torch.zeros_like(association[0])
        if self.manipulation is not None:
            local = self.manipulation.weights(tokens.size(1))
        return torch.stack((association, local.expand_as(association)), 1)


# ---- vanilla attention, and half of each ---------------------------------------------------------


class VanillaAttention(nn.Module):
    """
    Multi-head softmax attention: n_head heads share n_channels (C if None). In training each entry
    of the attention map is dropped with probability `dropout`, as in BERT; `rope`: with rotary
    positions. It has no use for a plan, nor for what is known.
    """

    def __init__(self, n_embd, n_head, n_channels=None, dropout=0.0, causal=False, rope=False):
        super().__init__()
        n_channels = n_channels or n_embd
        assert n_channels % n_head == 0, f"n_head={n_head}: expected a divisor of {n_channels}"
        self.n_head, self.dropout, self.causal, self.rope = n_head, dropout, causal, rope
        self.query = nn.Linear(n_embd, n_channels)
        self.key = nn.Linear(n_embd, n_channels)
        self.value = nn.Linear(n_embd, n_channels)
        self.proj = nn.Linear(n_channels, n_embd)

    def forward(self, x, tokens, padding_mask=None, plan=None, need_weights=False, known=None):
        B, T, C = x.shape
        x = zero_padding(x, padding_mask)
        heads = lambda y: y.view(B, T, self.n_head, -1).transpose(1, 2)  # (B, T, C) -> (B, H, T, D)
        q, k, v = heads(self.query(x)), heads(self.key(x)), heads(self.value(x))
        if self.rope:
            q, k = rotate(q), rotate(k)
        mask = None  # True: may be seen
        if padding_mask is not None:
            mask = ~padding_mask[:, None, None, :]  # (B, 1, 1, T)
        if self.causal:
            earlier = torch.ones(T, T, dtype=torch.bool, device=x.device).tril()
            mask = earlier if mask is None else mask & earlier
        dropout = self.dropout * self.training
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=dropout)
        y = self.proj(y.transpose(1, 2).flatten(2))  # (B, H, T, D) -> (B, T, C)
        if not need_weights:
            return y
        scores = q @ k.transpose(-2, -1) / k.size(-1) ** 0.5  # (B, H, T, T)
        if mask is not None:  # not -inf: a sentence of padding alone has a map, too
            scores = scores.masked_fill(~mask, torch.finfo(scores.dtype).min)
        return y, scores.softmax(-1)


def rotate(x):
    """
    Rotary positions (arXiv 2104.09864): turns pairs of the channels of x (B, H, T, D), D even, by
    angles that grow with the position, so that the product of a query and a key depends on how far
    apart they are.
    """
    T, D = x.shape[-2:]
    pair = torch.arange(0, 1, 2 / D, dtype=torch.float32, device=x.device)  # (D / 2,)
    angle = torch.arange(T, device=x.device)[:, None] * 10000**-pair  # (T, D / 2)
    cos, sin = angle.cos().to(x.dtype), angle.sin().to(x.dtype)
    a, b = x.chunk(2, -1)  # (B, H, T, D / 2) each
    return torch.cat((a * cos - b * sin, a * sin + b * cos), -1)


class HybridAttention(nn.Module):
    """
    Vanilla heads on half of the channels, LEGO attention on the other half. Each part has its own
    output projection, and they add up. The attention map has the vanilla heads first, then LEGO's
    two. Takes LegoAttention's arguments.
    """

    def __init__(self, n_embd, n_head, dropout=0.0, causal=False, rope=False, **lego):
        super().__init__()
        n_half = n_embd // 2
        self.vanilla = VanillaAttention(n_embd, n_head // 2, n_half, dropout, causal, rope)
        self.lego = LegoAttention(n_embd, n_channels=n_half, causal=causal, **lego)

    def forward(self, x, tokens, padding_mask=None, plan=None, need_weights=False, known=None):
        y = self.vanilla(x, tokens, padding_mask, plan, need_weights)
        z = self.lego(x, tokens, padding_mask, plan, need_weights, known)
        if need_weights:
            return y[0] + z[0], torch.cat((y[1], z[1]), 1)
        return y + z


# ---- association without a matrix ----------------------------------------------------------------


class Segment:
    """
    What Dense does, by sums over each group of identical tokens less the own value: O(B T C), on
    any device. A value that is small beside others of its group is lost: of values 1 and 1e8 the
    second position reads 0.
    """

    def __init__(self, tokens, padding_mask=None):
        ids = tokens.long() - tokens.long().min() + 1  # from 1 on; 0 is padding
        if padding_mask is not None:
            ids = ids.masked_fill(padding_mask, 0)
        ids, self.sort_index = ids.sort(dim=1, stable=True)  # (B, T): a group is a segment now
        place = torch.arange(tokens.size(1), device=tokens.device)
        begins = F.pad(ids.diff(dim=1) != 0, (1, 0))  # (B, T): does a new group begin here?
        self.first = torch.where(begins, place, 0).cummax(1).values  # (B, T): its first place ...
        self.last = torch.searchsorted(self.first, self.first, right=True) - 1  # ... and its last
        weight = (ids > 0) / (self.last - self.first).clamp(min=1).float()
        sentence = torch.arange(len(tokens), device=tokens.device)[:, None]
        in_text_order = lambda x: torch.empty_like(x).scatter_(1, self.sort_index, x)
        self.weight = in_text_order(weight)  # (B, T): 1 / number of the others
        self.group = in_text_order(self.first + sentence * tokens.size(1)).flatten()  # (B T,)

    def __call__(self, v):
        assert v.shape[:2] == self.weight.shape, f"{v.shape}: expected {self.weight.shape}"
        rows = v.flatten(0, 1).to(torch.promote_types(v.dtype, torch.float32))  # (B T, C)
        sums = torch.zeros_like(rows).index_add(0, self.group, rows)
        others = sums.index_select(0, self.group).sub_(rows).view_as(v)
        return (others * self.weight[..., None]).to(v.dtype)


class Fused(Segment):
    """What Segment does in a Triton kernel, on a GPU: see the end of this file."""

    def __call__(self, v):
        plan = (x.int() for x in (self.sort_index, self.first, self.last))
        return associate_sorted(v, *plan, self.weight)


DENSE_UP_TO = dict(cpu=64, cuda=256)  # tokens: measured on two CPU cores and on one NVIDIA H200


def make_plan(tokens, padding_mask=None, causal=False):
    """
    Association for token ids (B, T), to be applied to the values of all layers: Dense for short
    sentences and where it is causal; else Fused on a GPU with Triton, and Segment elsewhere.
    """
    if causal or tokens.size(1) <= DENSE_UP_TO.get(tokens.device.type, 64):
        return Dense(tokens, padding_mask, causal)
    if triton is not None and tokens.is_cuda:
        return Fused(tokens, padding_mask)
    return Segment(tokens, padding_mask)


# --------------------------------------------------------------------------------------------------
# A reader can stop here. What follows is association on a GPU, in Triton.
#
# With the positions sorted by token, the attention map is block diagonal. A program makes TILE rows
# of y: it goes through the places from where the group of its first row begins to where that of its
# last row ends, TILE at a time, and multiplies the values there by a small block of the mask. So
# the map is never in memory, and what is not on its diagonal is never looked at. The map is
# symmetric, and its weights are the same in a whole group: the backward pass is the kernel applied
# to the gradient.

try:
    import triton
    import triton.language as tl

    INTERPRETED = triton.knobs.runtime.interpret  # TRITON_INTERPRET=1: on a CPU, for tests
except Exception:  # optional: where it is absent, older than 3.4, or broken, Segment serves
    triton = None

TILE, BLOCK = 32, 64  # rows and channels of a program: so far untried on a GPU

if triton is not None:

    @triton.jit
    def sum_groups(v, sort_index, first, last, weight, y, T, C, v_b, v_t, TILE: tl.constexpr,
                   BLOCK: tl.constexpr, PRODUCT: tl.constexpr, SUM: tl.constexpr,
                   PRECISION: tl.constexpr):
        """y for one tile of the sorted rows of a sentence and one block of channels."""
        b, c = tl.program_id(0).to(tl.int64), tl.program_id(2) * BLOCK + tl.arange(0, BLOCK)
        v, y, sort_index, first = v + b * v_b, y + b * T * C, sort_index + b * T, first + b * T
        tile = tl.program_id(1) * TILE
        row = tile + tl.arange(0, TILE)
        group = tl.load(first + row, row < T, -1)
        start = tl.load(first + tile)
        end = tl.load(last + b * T + tl.minimum(tile + TILE, T) - 1) + 1
        total = tl.zeros((TILE, BLOCK), SUM)
        while start < end:
            other = start + tl.arange(0, TILE)
            at = tl.load(sort_index + other, other < end, 0).to(tl.int64)
            inside = (other < end)[:, None] & (c < C)[None, :]
            x = tl.load(v + at[:, None] * v_t + c[None, :], inside, 0).to(PRODUCT)
            same = group[:, None] == tl.load(first + other, other < end, -2)[None, :]
            same &= row[:, None] != other[None, :]  # (TILE, TILE)
            total += tl.dot(same.to(PRODUCT), x, input_precision=PRECISION, out_dtype=SUM)
            start += TILE
        at = tl.load(sort_index + row, row < T, 0).to(tl.int64)
        total *= tl.load(weight + b * T + at, row < T, 0)[:, None]
        inside = (row < T)[:, None] & (c < C)[None, :]
        tl.store(y + at[:, None] * C + c[None, :], total.to(y.dtype.element_ty), inside)


@torch.library.custom_op("lego::associate_sorted", mutates_args=())  # opaque to torch.compile
def associate_sorted(v: torch.Tensor, sort_index: torch.Tensor, first: torch.Tensor,
                     last: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """The association of v (B, T, C), by what Segment has found of the tokens."""
    B, T, C = v.shape
    v = v if v.stride(2) == 1 else v.contiguous()
    y = torch.empty(B, T, C, dtype=v.dtype, device=v.device)
    types = {torch.float64: tl.float64, torch.bfloat16: tl.bfloat16, torch.float16: tl.float16}
    product = types.get(v.dtype, tl.float32)
    total = tl.float64 if v.dtype == torch.float64 else tl.float32
    if INTERPRETED:  # it does not know bfloat16
        product = total
    precision = "tf32x3" if product == tl.float32 else "ieee"  # nearly as exact, on tensor cores
    with torch.cuda.device_of(v):
        sum_groups[B, triton.cdiv(T, TILE), triton.cdiv(C, BLOCK)](
            v, sort_index, first, last, weight, y, T, C, v.stride(0), v.stride(1), TILE, BLOCK,
            product, total, precision)
    return y


def keep_plan(ctx, inputs, output):
    ctx.save_for_backward(*inputs[1:])


def associate_gradient(ctx, grad):
    return associate_sorted(grad, *ctx.saved_tensors), None, None, None, None


associate_sorted.register_fake(lambda v, *_: v.new_empty(v.shape))
associate_sorted.register_autograd(associate_gradient, setup_context=keep_plan)


# --------------------------------------------------------------------------------------------------


def draw_masks(text="b=-a;c=+b;a=+1;"):
    """A figure of where the positions of a sentence look; every character is a token."""
    from matplotlib.figure import Figure

    association = Dense(torch.tensor([[ord(c) for c in text]])).matrix[0]  # (T, T)
    window = Manipulation(1, kernel_size=7)
    nn.init.ones_(window.conv.weight)
    local = window.weights(len(text)).detach()
    masks = {"association: identical tokens": association, "manipulation: the neighbours": local,
             "one layer: the first, then the second": local @ association}
    figure = Figure(figsize=(12, 4.9), layout="constrained")
    figure.suptitle("One layer takes what is known of b from its definition into the clause that "
                    "needs it", fontweight="bold")
    panels = figure.subplots(1, 3)
    for panel, (title, mask) in zip(panels, masks.items()):
        panel.imshow(mask.numpy(), cmap="Blues", vmin=0)
        panel.set(title=title, xlabel="position looked at", ylabel="position that looks")
        panel.set_xticks(range(len(text)), text)
        panel.set_yticks(range(len(text)), text)
    panels[2].annotate(
        "c looks at b,\nwhere it is defined", (text.index("b"), text.index("c")), (5.5, 11.5),
        color="#D55E00", ha="center", fontweight="bold",
        arrowprops=dict(color="#D55E00", arrowstyle="->", linewidth=2))
    return figure


def time_association(device, n_tokens=8192, n_channels=64):
    """Prints how many milliseconds association takes in each implementation."""
    from torch.utils.benchmark import Timer

    kinds = [Dense, Segment] + [Fused] * (triton is not None and device == "cuda")
    print(f"Association of {n_tokens:,} tokens of {n_channels} channels, in sentences of T tokens, "
          f"on {device}.\nMilliseconds to make the plan, once a batch, and to apply it, once a layer, "
          "forward and backward:\n")
    print(f"{'T':>6}" + "".join(f"{kind.__name__ + ': plan':>15}   apply" for kind in kinds))
    for T in (32, 64, 128, 256, 512, 1024, 2048, 4096):
        tokens = torch.randint(T // 2, (n_tokens // T, T), device=device)  # two of each, as in LEGO
        v = torch.randn(n_tokens // T, T, n_channels, device=device, requires_grad=True)
        apply = lambda plan: torch.autograd.grad(plan(v), v, v.detach())
        row = f"{T:>6}"
        for kind in kinds:
            names = dict(kind=kind, tokens=tokens, plan=kind(tokens), apply=apply)
            for statement, width in (("kind(tokens)", 15), ("apply(plan)", 8)):
                timer = Timer(statement, globals=names, num_threads=torch.get_num_threads())
                ms = 1e3 * timer.blocked_autorange(min_run_time=0.1).median
                row += f"{ms:>{width}.2f}"
        print(row)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(usage=argparse.SUPPRESS, description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", nargs="?", default="out/masks.png", help="the picture to write")
    path = Path(parser.parse_args().file)
    os.environ.pop("MPLBACKEND", None)  # of a notebook that has started this
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        draw_masks().savefig(path, dpi=120)
    except OSError as error:
        parser.error(str(error))
    print(f"wrote {path}\n")
    time_association("cuda" if torch.cuda.is_available() else "cpu")
