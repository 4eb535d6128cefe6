"""
Attention: vanilla heads, the two patterns that LEGO found in them, and the LEGO attention built from these patterns.

Every module here keeps one contract:

    module(x (B, T, C), tokens (B, T), padding_mask=None) -> (B, T, C)

`tokens` are the ids of the input sentence, `padding_mask` (B, T) is True at padding, as in torch.nn.Transformer. With
`need_weights=True` a module returns the pair (output, attention map (B, H, T, T)). `plan`, made by `make_plan` from the
tokens, can be given so that all layers of a model share it.

    vanilla        softmax(q k^T / sqrt(d)) v                          O(T^2 C), any pattern, learned
    association    mean over the other positions of the same token     O(T C), global, nothing to learn
    manipulation   depthwise convolution over positions                O(T C), local, learned
    lego           value projection -> association -> manipulation -> output projection      no softmax, no T x T matrix
    hybrid         lego beside some vanilla heads

    python attention.py        draws the masks of a small sentence and prints a benchmark of this machine

Sources: the two patterns, and LEGO attention's name and purpose, are the paper's (arXiv 2206.04301). It has no public
code: how the pathways are joined here, `chained` above all, is our reading.
"""
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn as nn
import torch.nn.functional as F

# ----------------------------------------------------------------------------------------------------------------------
# association: y_i = the mean of v_j over all j != i with tokens_j = tokens_i, and 0 where there is none
#
# As a matrix: A = D^-1 (S - I), S[i, j] = 1 where the tokens are identical, D = their number less one. D is the same
# for all tokens of a group, so A is symmetric, and the backward pass is the forward kernel applied to the gradient.


DENSE_UP_TO = 64  # tokens: where `auto` changes over, measured on two CPU cores; `python attention.py` measures yours


@dataclass
class Plan:
    """What association needs to know of a batch of token ids: made once, shared by all layers and both passes."""

    implementation: str  # dense or segment
    weight: torch.Tensor  # (B, T, 1) float32: 1 / number of the other positions with this token, 0 where there is none
    matrix: torch.Tensor | None = None  # dense: (B, T, T) float32, the A above
    group: torch.Tensor | None = None  # segment: (B T,) int64, the group of identical tokens that a position belongs to


def make_plan(tokens, padding_mask=None, implementation="auto") -> Plan:
    """
    The plan of a batch of token ids (B, T).

    dense      mask and matrix product; the reference, O(B T^2 C)
    segment    sort the ids, sum each group of identical tokens; O(B T C)
    auto       dense up to T = DENSE_UP_TO, segment above
    """
    B, T = tokens.shape
    if implementation == "auto":
        implementation = "dense" if T <= DENSE_UP_TO else "segment"
    if implementation == "dense":
        same = identical_tokens(tokens, padding_mask)
        weight = same.sum(-1, keepdim=True).float().clamp(min=1).reciprocal()
        return Plan(implementation, weight, matrix=same * weight)
    elif implementation == "segment":
        ids = tokens if padding_mask is None else tokens.masked_fill(padding_mask, -1)
        ids, order = ids.sort(dim=1)
        first = F.pad(ids[:, 1:] != ids[:, :-1], (1, 0))  # (B, T): does a new group begin here?
        rank = first.cumsum(1) + T * torch.arange(B, device=ids.device)[:, None]  # groups of all sentences, numbered
        group = torch.empty_like(order).scatter_(1, order, rank).flatten()  # (B, T) -> (B T,), back in text order
        others = torch.zeros(B * T, device=ids.device).index_add_(0, group, torch.ones(B * T, device=ids.device)) - 1
        weight = torch.where(others > 0, 1 / others.clamp(min=1), 0)[group].view(B, T, 1)
        if padding_mask is not None:
            weight = weight.masked_fill(padding_mask[..., None], 0)
        return Plan(implementation, weight, group=group)
    # a fused kernel over the sorted ids, "triton", will be the next branch, here and in _apply_association
    raise ValueError(f"association={implementation}: expected auto, dense or segment")


def identical_tokens(tokens, padding_mask=None):
    """The mask of association: True at (b, i, j) where j != i, tokens[b, i] == tokens[b, j], and neither is padding."""
    same = tokens[:, :, None] == tokens[:, None, :]  # (B, T, T)
    same = same & ~torch.eye(tokens.size(1), dtype=torch.bool, device=tokens.device)
    if padding_mask is not None:
        same = same & ~padding_mask[:, :, None] & ~padding_mask[:, None, :]
    return same


def patterns(tokens):
    """
    The two patterns as attention maps, (B, 2, T, T), of token ids (B, T): manipulation, rows in proportion to 1 2 4 2 1
    over the offsets -2 to +2, and association, the other positions of the same token. Rows do not sum to 1. These are
    the targets of the mimicking experiment in the paper's official code.
    """
    offset = torch.arange(tokens.size(1), device=tokens.device)
    offset = (offset[None, :] - offset[:, None]).abs()  # (T, T)
    local = 4.0 * (offset == 0) + 2.0 * (offset == 1) + 1.0 * (offset == 2)
    same = identical_tokens(tokens).float()  # (B, T, T)
    return torch.stack((local.expand_as(same), same), 1)


def _apply_association(v, plan):
    """A v, for v (B, T, C)."""
    if plan.implementation == "dense":
        return plan.matrix.to(v.dtype) @ v
    elif plan.implementation == "segment":
        rows = v.flatten(0, 1)  # (B, T, C) -> (B T, C)
        rows = rows.to(torch.promote_types(v.dtype, torch.float32))  # bfloat16 would lose terms of a long sum
        sums = torch.zeros_like(rows).index_add_(0, plan.group, rows)
        return ((sums[plan.group] - rows).view(v.shape) * plan.weight).to(v.dtype)
    raise AssertionError(plan.implementation)


class Association(torch.autograd.Function):
    """A is its own adjoint: one kernel serves both passes, and nothing is kept for the backward pass but the plan."""

    @staticmethod
    def forward(ctx, v, plan):
        ctx.plan = plan
        return _apply_association(v, plan)

    @staticmethod
    def backward(ctx, grad):
        return Association.apply(grad, ctx.plan), None


def associate(v, plan):
    """
    The mean of v over the other positions with the same token, 0 where there is none. v (B, T, C) -> (B, T, C).

    >>> tokens, v = torch.tensor([[7, 8, 7, 7]]), torch.tensor([[[1.], [2.], [3.], [5.]]])
    >>> associate(v, make_plan(tokens)).flatten().tolist()
    [4.0, 0.0, 3.0, 2.0]
    """
    return Association.apply(v, plan)


# ----------------------------------------------------------------------------------------------------------------------
# manipulation: every position looks at its neighbours


class Manipulation(nn.Module):
    """Depthwise convolution over positions, (B, T, C) -> (B, T, C), zero beyond both ends and at padding."""

    def __init__(self, n_channels, kernel_size):
        super().__init__()
        if kernel_size < 1 or kernel_size % 2 == 0:
            raise ValueError(f"kernel_size={kernel_size}: expected an odd number, the window has a middle")
        # x as an image of height 1, a view that needs no copy: on a CPU about 4 times faster than Conv1d
        self.conv = nn.Conv2d(n_channels, n_channels, (1, kernel_size), padding=(0, kernel_size // 2),
                              groups=n_channels)

    def forward(self, x, padding_mask=None):
        if padding_mask is not None:
            x = x.masked_fill(padding_mask[..., None], 0)
        x = x.transpose(1, 2).unsqueeze(2)  # (B, T, C) -> (B, C, 1, T), a view
        return self.conv(x).squeeze(2).transpose(1, 2)  # (B, C, 1, T) -> (B, T, C)

    def weights(self, T):
        """How much a position looks at each neighbour: the kernels' sizes, mean over channels, rows sum to 1. (T, T)"""
        kernel = self.conv.weight.abs().mean(dim=(0, 1, 2))  # (K,)
        offset = torch.arange(T)[None, :] - torch.arange(T)[:, None] + kernel.numel() // 2
        inside = (offset >= 0) & (offset < kernel.numel())
        band = kernel[offset.clamp(0, kernel.numel() - 1).to(kernel.device)] * inside.to(kernel.device)
        return band / band.sum(-1, keepdim=True).clamp(min=1e-12)


# ----------------------------------------------------------------------------------------------------------------------
# the attention modules


class VanillaAttention(nn.Module):
    """
    Multi-head softmax attention: n_head heads share n_channels (C if None). In training each entry of the attention
    map is dropped with probability `dropout`, as in BERT. The attention map has H = n_head.
    """

    def __init__(self, n_embd, n_head, n_channels=None, dropout=0.0):
        super().__init__()
        n_channels = n_channels or n_embd
        if n_head < 1 or n_channels % n_head:
            raise ValueError(f"n_head={n_head}: expected a divisor of the {n_channels} channels")
        self.n_head = n_head
        self.dropout = dropout
        self.query = nn.Linear(n_embd, n_channels)
        self.key = nn.Linear(n_embd, n_channels)
        self.value = nn.Linear(n_embd, n_channels)
        self.proj = nn.Linear(n_channels, n_embd)

    def forward(self, x, tokens, padding_mask=None, plan=None, need_weights=False):
        B, T, C = x.shape
        split = lambda y: y.view(B, T, self.n_head, -1).transpose(1, 2)  # (B, T, C) -> (B, H, T, C/H)
        q, k, v = split(self.query(x)), split(self.key(x)), split(self.value(x))
        mask = None if padding_mask is None else ~padding_mask[:, None, None, :]  # (B, 1, 1, T), True: may be seen
        weights, dropout = None, self.dropout if self.training else 0.0
        if need_weights:  # F.scaled_dot_product_attention never builds the map: the same by hand
            scores = q @ k.transpose(-2, -1) / k.size(-1) ** 0.5  # (B, H, T, T)
            weights = (scores if mask is None else scores.masked_fill(~mask, float("-inf"))).softmax(-1)
            y = F.dropout(weights, dropout) @ v
        else:
            y = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=dropout)
        y = self.proj(y.transpose(1, 2).flatten(2))  # (B, H, T, C/H) -> (B, T, C)
        return (y, weights) if need_weights else y

    def flops(self, T):
        """Multiplications and additions for one sentence of T tokens: four projections, scores and averages."""
        n_embd, n_channels = self.proj.out_features, self.proj.in_features
        return 4 * 2 * T * n_embd * n_channels + 2 * 2 * T * T * n_channels


class LegoAttention(nn.Module):
    """
    The two patterns hard-coded: no query, no key, no softmax.

    association_share of the channels pass association, the others do not. `chained`: then all of them pass the
    convolution, so that a value found at another clause moves on inside the clause it arrives at, and one layer follows
    one link of the chain. Not chained (parallel): the convolution takes the other channels alone, the patterns stand
    side by side as heads do, and a link takes two layers. The attention map has H = 2: association, manipulation.
    """

    def __init__(self, n_embd, kernel_size, association_share, chained, association="auto", n_channels=None):
        super().__init__()
        n_channels = n_channels or n_embd
        if not 0 <= association_share <= 1:
            raise ValueError(f"association_share={association_share}: expected 0 to 1")
        if association not in ("auto", "dense", "segment"):
            raise ValueError(f"association={association}: expected auto, dense or segment")
        self.association = association
        self.chained = chained
        self.n_associated = round(association_share * n_channels)
        n_convolved = n_channels if chained else n_channels - self.n_associated
        self.value = nn.Linear(n_embd, n_channels)
        self.manipulation = Manipulation(n_convolved, kernel_size) if n_convolved else None
        self.proj = nn.Linear(n_channels, n_embd)

    def forward(self, x, tokens, padding_mask=None, plan=None, need_weights=False):
        plan = plan or make_plan(tokens, padding_mask, self.association)
        v = self.value(x)  # (B, T, C)
        far, near = v[..., : self.n_associated], v[..., self.n_associated :]
        if self.n_associated:
            far = associate(far, plan)
        if self.chained:
            y = self.manipulation(torch.cat((far, near), -1), padding_mask)
        else:
            y = torch.cat((far, self.manipulation(near, padding_mask) if self.manipulation else near), -1)
        y = self.proj(y)
        return (y, self.weights(tokens, padding_mask)) if need_weights else y

    def weights(self, tokens, padding_mask=None):
        """The fixed map of association and the mean map of the convolution, (B, 2, T, T)."""
        association = make_plan(tokens, padding_mask, "dense").matrix
        local = self.manipulation.weights(tokens.size(1)) if self.manipulation else torch.zeros_like(association[0])
        return torch.stack((association, local.expand_as(association)), 1)

    def flops(self, T):
        """As VanillaAttention.flops: two projections, the convolution, and association as it is implemented."""
        n_embd, n_channels = self.proj.out_features, self.proj.in_features
        dense = self.association == "dense" or (self.association == "auto" and T <= DENSE_UP_TO)
        flops = 2 * 2 * T * n_embd * n_channels + 2 * T * (T if dense else 1) * self.n_associated
        if self.manipulation:
            flops += 2 * T * self.manipulation.conv.weight.numel()
        return flops


class HybridAttention(nn.Module):
    """
    LEGO attention on some of the channels, vanilla heads on the others. Each part has its own output projection and
    they add up, which is one projection of both. The attention map has the vanilla heads first, then LEGO's two.
    """

    def __init__(self, vanilla, lego):
        super().__init__()
        self.vanilla = vanilla
        self.lego = lego

    def forward(self, x, tokens, padding_mask=None, plan=None, need_weights=False):
        parts = [part(x, tokens, padding_mask, plan, need_weights) for part in (self.vanilla, self.lego)]
        if need_weights:
            (y, weights), (z, more) = parts
            return y + z, torch.cat((weights, more), 1)
        return parts[0] + parts[1]

    def flops(self, T):
        return self.vanilla.flops(T) + self.lego.flops(T)


def make_attention(kind, n_embd, n_head, kernel_size=7, association_share=0.5, vanilla_share=0.5, chained=True,
                   association="auto", dropout=0.0):
    """
    The attention module of that name.

    kind               vanilla, lego or hybrid
    n_head             vanilla heads, of C / n_head channels each; a hybrid keeps only vanilla_share of them
    kernel_size        of the convolution, odd, in positions; 7 reaches from a clause's variable to its argument
    association_share  share of LEGO's channels that pass association
    vanilla_share      share of a hybrid's heads that are vanilla
    chained            True: convolution behind association; False: side by side
    association        its implementation: auto, dense or segment
    dropout            of the entries of vanilla attention maps, in training

    Raises ValueError for another name or a size out of range.
    """
    lego = dict(kernel_size=kernel_size, association_share=association_share, chained=chained, association=association)
    if kind == "vanilla":
        return VanillaAttention(n_embd, n_head, dropout=dropout)
    elif kind == "lego":
        return LegoAttention(n_embd, **lego)
    elif kind == "hybrid":
        kept = round(vanilla_share * n_head) if 0 < vanilla_share < 1 and 0 < n_head <= n_embd else 0
        if not 0 < kept < n_head or n_embd % n_head:
            raise ValueError(f"n_head={n_head}, vanilla_share={vanilla_share}: expected a divisor of n_embd={n_embd}, "
                             f"and a share that leaves at least one head of either kind")
        n_vanilla = kept * n_embd // n_head
        return HybridAttention(VanillaAttention(n_embd, kept, n_vanilla, dropout),
                               LegoAttention(n_embd, n_channels=n_embd - n_vanilla, **lego))
    raise ValueError(f"attention={kind}: expected vanilla, lego or hybrid")


# ----------------------------------------------------------------------------------------------------------------------


def draw_masks(text, path):
    """Draws where the positions of a sentence look under the hard-coded patterns; every character is a token."""
    from matplotlib.figure import Figure

    tokens = torch.tensor([[ord(character) for character in text]])
    association = make_plan(tokens, implementation="dense").matrix[0]  # (T, T)
    manipulation = Manipulation(1, kernel_size=7)
    nn.init.ones_(manipulation.conv.weight)
    local = manipulation.weights(len(text)).detach()
    figure = Figure(figsize=(13, 5), layout="constrained")
    for axes, title, mask in zip(figure.subplots(1, 3), [
        "association: identical tokens, wherever they are",
        "manipulation: a window of 7 positions",
        "chained: where one layer can look",
    ], [association, local, local @ association]):
        axes.imshow(mask, cmap="Blues", vmin=0, vmax=mask.max())
        axes.set(title=title, xlabel="position looked at", ylabel="position that looks")
        axes.set_xticks(range(len(text)), text)
        axes.set_yticks(range(len(text)), text)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)


def benchmark(device, n_tokens=8192, n_channels=64, repeats=7):
    """Prints the median time of association, forward and backward, for n_tokens in sentences of T tokens."""
    def median_ms(run):
        times = []
        for _ in range(repeats):
            if device.type == "cuda":
                torch.cuda.synchronize()
            start = time.perf_counter()
            run()
            if device.type == "cuda":
                torch.cuda.synchronize()
            times.append(1e3 * (time.perf_counter() - start))
        return sorted(times)[repeats // 2]

    print(f"association on {device}, {n_tokens} tokens of {n_channels} channels, forward + backward / plan, ms")
    print("     T      dense              segment            dense / segment")
    for T in (32, 64, 128, 256, 512, 1024, 2048, 4096):
        tokens = torch.randint(T // 2, (n_tokens // T, T), device=device)  # a token has one twin, as in LEGO
        v = torch.randn(n_tokens // T, T, n_channels, device=device, requires_grad=True)
        cells, total = "", []
        for implementation in ("dense", "segment"):
            plan = make_plan(tokens, implementation=implementation)
            passes = median_ms(lambda: associate(v, plan).backward(v.detach()))
            planning = median_ms(lambda: make_plan(tokens, implementation=implementation))
            cells += f"{passes:8.2f} /{planning:8.2f} "
            total.append(passes)
        print(f"{T:6d} {cells}   {total[0] / total[1]:8.2f}")


if __name__ == "__main__":
    if len(sys.argv) > 1:
        print(f"attention.py: '{sys.argv[1]}': expected no argument", file=sys.stderr)
        sys.exit(2)
    draw_masks("b=-a;c=+b;a=+1;", Path("out") / "masks.png")
    print(f"wrote {Path('out') / 'masks.png'}")
    benchmark(torch.device("cuda" if torch.cuda.is_available() else "cpu"))
