"""
Attention: vanilla heads, the two patterns that the paper found in them, and LEGO attention, which hard-codes these.

    token        b  =  -  a  ;     c  =  +  b  ;     a  =  +  1  ;
    position     0  1  2  3  4     5  6  7  8  9    10 11 12 13 14

    association  b ----------------------> b         each b gets the mean of all other b's, wherever they stand
    manipulation                   c <---- b         each position mixes its neighbours
    chained      b ----------------------> b
                                   c <---- b         what is known of b where it is defined reaches c in one layer:
                                                     one link of the chain

Every module has one contract:

    module(x (B, T, C), tokens (B, T), padding_mask=None) -> (B, T, C)

`tokens` are the ids of the sentence; `padding_mask` (B, T) is True at padding, whose x may be anything. With
need_weights=True a module returns the pair (output, attention map (B, H, T, T)). All layers of a model can share one
`plan`, made by `make_plan`. A position sees the whole sentence, or with causal=True only itself and those before it.

    vanilla        softmax(q k^T / sqrt(d)) v                          O(T^2 C), any pattern, learned
    association    mean over the other positions of the same token     O(T C), global, nothing to learn
    manipulation   depthwise convolution over positions                O(T C), local, learned
    lego           value projection -> association -> manipulation -> output projection
    hybrid         lego beside some vanilla heads

    python attention.py        draw the masks of a small sentence, time association on this machine

The two patterns and the name are the paper's (arXiv 2206.04301). It has no public code for LEGO attention: how we join
the pathways, `chained` above all, is our reading.
"""
from dataclasses import dataclass

import torch
import torch.nn as nn
import torch.nn.functional as F

try:
    import triton
    import triton.language as tl
except ImportError:  # optional: without it `segment` serves
    triton = None


# ---- association: y_i = mean of v_j over j != i with tokens_j = tokens_i, 0 where there is none; causal: j < i -------

IMPLEMENTATIONS = ("dense", "segment", "triton")
DENSE_UP_TO = dict(cpu=64, cuda=256)  # tokens, where `auto` changes over: measured on two CPU cores and on an H200


@dataclass
class Plan:
    """What association needs to know of a batch of token ids: made once, shared by all layers and both passes."""

    implementation: str  # dense, segment or triton
    causal: bool
    padding_mask: torch.Tensor | None
    weight: torch.Tensor  # (B, T, 1) float32: 1 / number of positions that the mean is over, 1 where there are none
    matrix: torch.Tensor | None = None  # dense: (B, T, T) float32, the attention map
    sort_index: torch.Tensor | None = None  # segment, triton: (B, T), the positions of a sentence, sorted by token
    first: torch.Tensor | None = None  # segment, triton: (B, T), for each of them where its group of tokens begins
    parts: torch.Tensor | None = None  # triton: (B, N, 4), the rows of each program: see `cut`
    group: torch.Tensor | None = None  # segment: (B T,), the group of each position, in text order


def make_plan(tokens, padding_mask=None, implementation="auto", causal=False) -> Plan:
    """
    The plan of a batch of token ids (B, T), T >= 1, of any integer type. Raises ValueError for another name than these,
    for triton where it does not run, and for a sentence of no tokens.

    dense      mask and matrix product; the reference, O(B T^2 C)
    segment    sort the ids, sum each group of identical tokens; O(B T C), causal O(B T log(T) C)
    triton     the same in two fused kernels, on a GPU; O(B T C) unless a group is very long
    auto       dense up to T = DENSE_UP_TO of the device, above it triton where it runs, else segment
    """
    B, T = tokens.shape
    tokens, padding_mask = tokens.long(), padding_mask if padding_mask is None else padding_mask.expand(B, T)
    fused = triton is not None and (tokens.is_cuda or INTERPRETED)
    if implementation == "auto":
        is_short = T <= DENSE_UP_TO.get(tokens.device.type, DENSE_UP_TO["cpu"])
        implementation = "dense" if is_short else "triton" if fused else "segment"
    if implementation not in IMPLEMENTATIONS or implementation == "triton" and not fused:
        raise ValueError(f"association={implementation}: expected auto, dense, segment, or triton on a GPU")
    if T == 0:
        raise ValueError(f"tokens of shape ({B}, 0): expected at least one token")
    if implementation == "dense":
        same = identical_tokens(tokens, padding_mask, causal)
        weight = same.sum(-1, keepdim=True).float().clamp(min=1).reciprocal()
        return Plan(implementation, causal, padding_mask, weight, matrix=same * weight)
    sort_index = tokens.argsort(dim=1, stable=True)  # (B, T)
    changes = lambda x: F.pad(x.gather(1, sort_index).diff(dim=1) != 0, (1, 0))
    is_first = changes(tokens)  # (B, T): does a new group begin here?
    if padding_mask is not None:  # comes after all tokens: no id is free to stand for it
        padding = padding_mask.int()
        sort_index = sort_index.gather(1, padding.gather(1, sort_index).argsort(dim=1, stable=True))
        is_first = changes(tokens) | changes(padding)
    place = torch.arange(T, device=tokens.device)
    first = torch.where(is_first, place, 0).cummax(1).values  # (B, T): the place of the first of its group
    last = torch.searchsorted(first, first, right=True) - 1  # ... and of the last
    others = (place if causal else last) - first
    in_text_order = lambda x: torch.empty_like(x).scatter_(1, sort_index, x)
    weight = in_text_order(others.clamp(min=1).float().reciprocal())[..., None]
    if implementation == "triton":
        parts = cut(first, last).int()
        return Plan(implementation, causal, padding_mask, weight, None, sort_index.int(), first.int(), parts)
    group = in_text_order(first + T * torch.arange(B, device=tokens.device)[:, None]).flatten()  # (B, T) -> (B T,)
    return Plan(implementation, causal, padding_mask, weight, None, sort_index, first, group=group)


def identical_tokens(tokens, padding_mask=None, causal=False):
    """The mask of association: True at (b, i, j) where j != i, tokens[b, i] == tokens[b, j], and neither is padding."""
    same = tokens[:, :, None] == tokens[:, None, :]  # (B, T, T)
    same = same.tril(-1) if causal else same & ~torch.eye(tokens.size(1), dtype=torch.bool, device=tokens.device)
    if padding_mask is not None:
        same = same & ~padding_mask[:, :, None] & ~padding_mask[:, None, :]
    return same


def target_maps(tokens):
    """
    The two patterns as attention maps (B, 2, T, T) for token ids (B, T): manipulation, with rows proportional to
    1 2 4 2 1 over the offsets -2 to +2, and association. Rows do not sum to 1. The targets of the mimicking experiment
    in the paper's official code.
    """
    offset = torch.arange(tokens.size(1), device=tokens.device)
    offset = (offset[None, :] - offset[:, None]).abs()  # (T, T)
    local = 4.0 * (offset == 0) + 2.0 * (offset == 1) + 1.0 * (offset == 2)
    same = identical_tokens(tokens).float()  # (B, T, T)
    return torch.stack((local.expand_as(same), same), 1)


def associate(v, plan):
    """
    The mean of v (B, T, C) over the other positions with the same token, 0 where there are none; if the plan is causal,
    over those before. `segment` sums in float32 and subtracts the own value, so what is small beside it is lost: of
    values 1 and 1e8 the second position reads 0. Raises ValueError if the plan is for tokens of another shape.

    >>> tokens, v = torch.tensor([[7, 8, 7, 7]]), torch.tensor([[[1.], [2.], [3.], [5.]]])
    >>> associate(v, make_plan(tokens)).flatten().tolist()
    [4.0, 0.0, 3.0, 2.0]
    >>> associate(v, make_plan(tokens, causal=True)).flatten().tolist()
    [0.0, 0.0, 1.0, 2.0]
    """
    if v.shape[:2] != plan.weight.shape[:2]:
        raise ValueError(f"v of shape {(*v.shape,)}: expected (B, T, C) with (B, T) = {(*plan.weight.shape[:2],)}, "
                         "the shape of the tokens")
    v = blank(v, plan.padding_mask)
    if plan.implementation == "dense":
        return plan.matrix.to(v.dtype) @ v
    if plan.implementation == "triton":
        return associate_sorted(v, plan.sort_index, plan.first, plan.parts, plan.weight, -1 if plan.causal else 0)
    x = v.to(torch.promote_types(v.dtype, torch.float32))  # (B, T, C): bfloat16 would lose terms
    if plan.causal:
        places = plan.sort_index[..., None].expand_as(x)
        y = plan.weight * torch.empty_like(x).scatter(1, places, sum_earlier(x.gather(1, places), plan.first))
    else:
        rows = x.flatten(0, 1)  # (B, T, C) -> (B T, C)
        sums = torch.zeros_like(rows).index_add(0, plan.group, rows)
        others = sums.index_select(0, plan.group).sub_(rows)  # in place: no third tensor of this size
        y = others.mul_(plan.weight.flatten(0, 1)).view_as(x)
    return y.to(v.dtype)


def sum_earlier(x, group):
    """For rows (B, T, C) sorted by group (B, T), the sum of the rows before each in its group: log2(T) doublings."""
    def shifted(x, n):  # by n rows, within the groups
        same = (group[:, n:] == group[:, :-n])[..., None]
        return F.pad(torch.where(same, x[:, :-n], 0), (0, 0, n, 0))

    total, n = shifted(x, 1), 1
    while n < x.size(1):
        total, n = total + shifted(total, n), 2 * n
    return total


def blank(x, padding_mask):
    """x (B, T, C), and 0 at padding, where it may be anything, even NaN."""
    return x if padding_mask is None else x.masked_fill(padding_mask[..., None], 0)


# ---- manipulation: every position looks at its neighbours ------------------------------------------------------------


class Manipulation(nn.Module):
    """
    Depthwise convolution over positions, (B, T, C) -> (B, T, C), zero beyond both ends and at padding. The window is
    centred, or ends at the position if causal.
    """

    def __init__(self, n_channels, kernel_size, causal=False):
        super().__init__()
        if kernel_size < 1 or kernel_size % 2 == 0:
            raise ValueError(f"kernel_size={kernel_size}: expected an odd number, the window has a middle")
        self.n_left = kernel_size - 1 if causal else kernel_size // 2  # positions of the window to the left
        # x as an image of height 1, a view that needs no copy: on a CPU twice as fast as Conv1d (figures/kernels.py)
        self.conv = nn.Conv2d(n_channels, n_channels, (1, kernel_size), padding=(0, self.n_left), groups=n_channels)

    def forward(self, x, padding_mask=None):
        T = x.size(1)
        x = blank(x, padding_mask).transpose(1, 2).unsqueeze(2)  # (B, T, C) -> (B, C, 1, T), a view
        return self.conv(x)[..., :T].squeeze(2).transpose(1, 2)  # (B, C, 1, T) -> (B, T, C)

    def weights(self, T):
        """The convolution as an attention map (T, T): mean absolute kernel over channels, rows sum to 1."""
        kernel = self.conv.weight.abs().mean(dim=(0, 1))  # (1, K)
        one_hot = torch.eye(T, dtype=kernel.dtype, device=kernel.device)[:, None]  # what each position sends: (T, 1, T)
        band = F.conv1d(one_hot, kernel[None], padding=self.n_left)[:, 0, :T].T  # (T, T)
        return band / band.sum(-1, keepdim=True).clamp(min=1e-12)


# ---- the attention modules -------------------------------------------------------------------------------------------


class VanillaAttention(nn.Module):
    """
    Multi-head softmax attention: H = n_head heads share n_channels (C if None). In training each entry of the attention
    map is dropped with probability `dropout`, as in BERT; `rope`: with rotary positions.
    """

    def __init__(self, n_embd, n_head, n_channels=None, dropout=0.0, causal=False, rope=False):
        super().__init__()
        n_channels = n_channels or n_embd
        if n_head < 1 or n_channels % n_head:
            raise ValueError(f"n_head={n_head}: expected a divisor of the {n_channels} channels")
        if rope and n_channels // n_head % 2:
            raise ValueError(f"n_head={n_head}: expected heads of an even number of channels, rope takes them in pairs")
        self.n_head, self.dropout, self.causal, self.rope = n_head, dropout, causal, rope
        self.query = nn.Linear(n_embd, n_channels)
        self.key = nn.Linear(n_embd, n_channels)
        self.value = nn.Linear(n_embd, n_channels)
        self.proj = nn.Linear(n_channels, n_embd)

    def forward(self, x, tokens, padding_mask=None, plan=None, need_weights=False):
        B, T, C = x.shape
        x = blank(x, padding_mask)
        split = lambda y: y.view(B, T, self.n_head, -1).transpose(1, 2)  # (B, T, C) -> (B, H, T, C/H)
        q, k, v = split(self.query(x)), split(self.key(x)), split(self.value(x))
        q, k = (rotate(q), rotate(k)) if self.rope else (q, k)
        mask = None if padding_mask is None else ~padding_mask[:, None, None, :]  # (B, 1, 1, T), True: may be seen
        if self.causal:
            earlier = torch.ones(T, T, dtype=torch.bool, device=x.device).tril()
            mask = earlier if mask is None else mask & earlier
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=self.dropout if self.training else 0.0)
        y = self.proj(y.transpose(1, 2).flatten(2))  # (B, H, T, C/H) -> (B, T, C)
        if not need_weights:
            return y
        scores = q @ k.transpose(-2, -1) / k.size(-1) ** 0.5  # (B, H, T, T), which fused attention never builds
        if mask is not None:
            scores = scores.masked_fill(~mask, torch.finfo(scores.dtype).min)
        return y, scores.softmax(-1) * (1 if mask is None else mask)  # 0 if there is only padding


def rotate(x):
    """
    Rotary positions (arXiv 2104.09864): turns pairs of the channels of x (B, H, T, D), D even, by angles that grow with
    the position, so that the product of a query and a key depends on how far apart they are.
    """
    T, D = x.shape[-2:]
    frequency = 10000 ** -torch.arange(0, 1, 2 / D, dtype=torch.float32, device=x.device)  # (D / 2,)
    angle = torch.arange(T, device=x.device)[:, None] * frequency  # (T, D / 2)
    cos, sin = angle.cos().to(x.dtype), angle.sin().to(x.dtype)
    a, b = x.chunk(2, -1)  # (B, H, T, D / 2) each
    return torch.cat((a * cos - b * sin, a * sin + b * cos), -1)


class LegoAttention(nn.Module):
    """
    The two patterns hard-coded: no query, no key, no softmax.

    association_share of the channels go through association, the others do not. `chained`: then all go through the
    convolution, so a value that arrives at a variable moves on inside its clause, and one layer follows one link of the
    chain. Not chained (parallel): only the other channels pass the convolution, the patterns stand side by side as
    heads do, and a link takes two layers. A kernel of 7 positions spans a clause from its variable. The attention map
    has H = 2: association, manipulation. A position sees those after it unless causal. Raises ValueError for a size
    out of range, and as make_plan does.
    """

    def __init__(self, n_embd, kernel_size=7, association_share=0.5, chained=True, association="auto", n_channels=None,
                 causal=False):
        super().__init__()
        n_channels = n_channels or n_embd
        if not 0 <= association_share <= 1:
            raise ValueError(f"association_share={association_share}: expected 0 to 1")
        self.chained, self.association, self.causal = chained, association, causal
        self.n_associated = round(association_share * n_channels)
        n_convolved = n_channels if chained else n_channels - self.n_associated
        self.value = nn.Linear(n_embd, n_channels)
        self.manipulation = Manipulation(n_convolved, kernel_size, causal) if n_convolved else None
        self.proj = nn.Linear(n_channels, n_embd)

    def forward(self, x, tokens, padding_mask=None, plan=None, need_weights=False):
        plan = plan or make_plan(tokens, padding_mask, self.association, self.causal)
        if (plan.causal, plan.padding_mask is None) != (self.causal, padding_mask is None):
            raise ValueError("plan: expected one made with the causal and the padding_mask that are given here")
        v = self.value(blank(x, padding_mask))  # (B, T, C)
        far, near = associate(v[..., : self.n_associated], plan), v[..., self.n_associated :]
        if self.chained:
            y = self.manipulation(torch.cat((far, near), -1), padding_mask)
        else:
            y = torch.cat((far, self.manipulation(near, padding_mask) if self.manipulation else near), -1)
        y = self.proj(y)
        return (y, self.weights(tokens, padding_mask)) if need_weights else y

    def weights(self, tokens, padding_mask=None):
        """The fixed map of association and the mean map of the convolution, (B, 2, T, T)."""
        association = make_plan(tokens, padding_mask, "dense", self.causal).matrix
        local = self.manipulation.weights(tokens.size(1)) if self.manipulation else torch.zeros_like(association[0])
        return torch.stack((association, local.expand_as(association)), 1)


class HybridAttention(nn.Module):
    """
    Vanilla heads on half of the channels, LEGO attention on the other half. Each part has its own output projection,
    and they add up. The attention map has the vanilla heads first, then LEGO's two. Takes LegoAttention's
    arguments but n_channels.
    """

    def __init__(self, n_embd, n_head, dropout=0.0, causal=False, rope=False, **lego):
        super().__init__()
        if n_head < 2 or n_head % 2 or n_embd % n_head:
            raise ValueError(f"n_head={n_head}: expected an even divisor of n_embd={n_embd}")
        self.vanilla = VanillaAttention(n_embd, n_head // 2, n_embd // 2, dropout, causal, rope)
        self.lego = LegoAttention(n_embd, n_channels=n_embd // 2, causal=causal, **lego)

    def forward(self, x, tokens, padding_mask=None, plan=None, need_weights=False):
        parts = [part(x, tokens, padding_mask, plan, need_weights) for part in (self.vanilla, self.lego)]
        if need_weights:
            (y, weights), (z, more) = parts
            return y + z, torch.cat((weights, more), 1)
        return parts[0] + parts[1]


def make_attention(kind, n_embd, n_head, dropout=0.0, causal=False, rope=False, **lego):
    """The module of that kind. Raises ValueError for another name, and for sizes out of range."""
    if kind == "vanilla":
        return VanillaAttention(n_embd, n_head, None, dropout, causal, rope)
    elif kind == "lego":
        return LegoAttention(n_embd, causal=causal, **lego)
    elif kind == "hybrid":
        return HybridAttention(n_embd, n_head, dropout, causal, rope, **lego)
    raise ValueError(f"attention={kind}: expected vanilla, lego or hybrid")


# ----------------------------------------------------------------------------------------------------------------------
# A reader can stop here. What follows is association on a GPU, in Triton.
#
# With the positions sorted by token, the attention map is block diagonal. The rows are cut into parts of at most TILE
# rows; a group of at most TILE - PART tokens is never cut. A program multiplies the rows of a part by their own small
# block; where a group spans parts, it adds the partial sums of the others, so a group of m tokens costs (m / PART)^2.
# Each value is read once, and once more if its group spans parts. The map is symmetric, its weights are the same in a
# whole group, so the backward pass is the forward kernel applied to the gradient; causal, the backward pass sums those
# that come later.

# the best of nine tried on one H200
TILE, PART = 64, 48  # rows of a part: at most, on average
BLOCK, WARPS = 64, 2  # of a program: channels, warps
INTERPRETED = triton is not None and triton.knobs.runtime.interpret  # TRITON_INTERPRET=1: on a CPU, for tests


def cut(first, last):
    """
    The parts of the sorted rows, for the places (B, T) of the first and the last row of each row's group: (B, N, 4),
    where a part begins and ends, and the earliest and the latest of the parts that share a group with it.
    """
    place = torch.arange(first.size(1), device=first.device)
    next_group = torch.where(first == place, place, last + 1)[:, ::PART]  # the nearest beginning of a group
    is_near = next_group - place[::PART] <= TILE - PART
    begin = torch.where(is_near, next_group, place[::PART])  # (B, N)
    end = F.pad(begin[:, 1:], (0, 1), value=len(place))
    part_of = lambda place: torch.searchsorted(begin, place, right=True) - 1
    earliest = part_of(first.gather(1, begin.clamp(max=len(place) - 1)))
    return torch.stack((begin, end, earliest, part_of(last.gather(1, end - 1))), 2)


if triton is not None:

    @triton.jit
    def load_part(parts, n_parts):
        """This program's sentence and part, and what `cut` says of it."""
        b, part = (tl.program_id(0) // n_parts).to(tl.int64), tl.program_id(0) % n_parts
        parts += tl.program_id(0).to(tl.int64) * 4
        return b, part, tl.load(parts), tl.load(parts + 1), tl.load(parts + 2), tl.load(parts + 3)

    @triton.jit
    def sum_edges(v, sort_index, first, parts, sums, T, C, v_b, v_t, n_parts, TILE: tl.constexpr, BLOCK: tl.constexpr):
        """The sums (2, C) of a part's first and last group, if one of them spans parts."""
        b, part, begin, end, earliest, latest = load_part(parts, n_parts)
        if (begin < end) & (earliest < latest):
            row, c = begin + tl.arange(0, TILE), tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
            group = tl.load(first + b * T + row, row < end, -1)
            in_first = group == tl.load(first + b * T + begin)
            in_last = group == tl.load(first + b * T + end - 1)
            at = tl.load(sort_index + b * T + row, row < end, 0).to(tl.int64)
            wanted = (in_first | in_last)[:, None] & (c < C)[None, :]
            x = tl.load(v + b * v_b + at[:, None] * v_t + c[None, :], wanted, 0).to(sums.dtype.element_ty)
            edge = sums + (b * n_parts + part) * 2 * C + c
            tl.store(edge, tl.sum(tl.where(in_first[:, None], x, 0), 0), c < C)
            tl.store(edge + C, tl.sum(tl.where(in_last[:, None], x, 0), 0), c < C)

    @triton.jit
    def sum_groups(v, sort_index, first, parts, weight, sums, y, product, T, C, v_b, v_t, n_parts,
                   TILE: tl.constexpr, BLOCK: tl.constexpr, SIDE: tl.constexpr, PRECISION: tl.constexpr):
        """y for one part of the rows and one block of channels. SIDE: -1 sums what is earlier, 1 later, 0 both."""
        b, part, begin, end, earliest, latest = load_part(parts, n_parts)
        if begin < end:
            row, c = begin + tl.arange(0, TILE), tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
            group = tl.load(first + b * T + row, row < end, -1)
            at = tl.load(sort_index + b * T + row, row < end, 0).to(tl.int64)
            inside = (row < end)[:, None] & (c < C)[None, :]
            x = tl.load(v + b * v_b + at[:, None] * v_t + c[None, :], inside, 0).to(product.dtype.element_ty)
            side = row[None, :] - row[:, None]  # (TILE, TILE)
            same = (group[:, None] == group[None, :]) & ((side * SIDE > 0) if SIDE != 0 else (side != 0))
            total = tl.dot(same.to(x.dtype), x, input_precision=PRECISION, out_dtype=sums.dtype.element_ty)
            if earliest < latest:
                edges = sums + b * n_parts * 2 * C + c[None, :]
                before, after = tl.zeros((BLOCK,), total.dtype), tl.zeros((BLOCK,), total.dtype)
                for start in range(earliest, part, 16):  # what earlier parts hold of the first group
                    other = start + tl.arange(0, 16)[:, None]
                    before += tl.sum(tl.load(edges + other * 2 * C + C, (other < part) & (c < C)[None, :], 0), 0)
                for start in range(part + 1, latest + 1, 16):  # what later parts hold of the last group
                    other = start + tl.arange(0, 16)[:, None]
                    after += tl.sum(tl.load(edges + other * 2 * C, (other <= latest) & (c < C)[None, :], 0), 0)
                if SIDE <= 0:
                    total += tl.where((group == tl.load(first + b * T + begin))[:, None], before[None, :], 0)
                if SIDE >= 0:
                    total += tl.where((group == tl.load(first + b * T + end - 1))[:, None], after[None, :], 0)
            total *= tl.load(weight + b * T + at, row < end, 0)[:, None]
            tl.store(y + b * T * C + at[:, None] * C + c[None, :], total.to(y.dtype.element_ty), inside)


@torch.library.custom_op("lego::associate_sorted", mutates_args=())  # opaque to torch.compile
def associate_sorted(v: torch.Tensor, sort_index: torch.Tensor, first: torch.Tensor, parts: torch.Tensor,
                     weight: torch.Tensor, side: int) -> torch.Tensor:
    """The association of v (B, T, C) by a plan for triton; side as in `sum_groups`."""
    B, T, C = v.shape
    v = v if v.stride(2) == 1 else v.contiguous()
    y = torch.empty(B, T, C, dtype=v.dtype, device=v.device)
    n_parts, block = parts.size(1), min(BLOCK, max(16, triton.next_power_of_2(C)))
    sums = torch.empty(B, n_parts, 2, C, dtype=torch.promote_types(v.dtype, torch.float32), device=v.device)
    product = sums if INTERPRETED else v  # the type to multiply in: the interpreter does not know bfloat16
    precision = "tf32x3" if product.dtype == torch.float32 else "ieee"  # nearly as exact, and a GPU has units for it
    grid, sizes = (B * n_parts, triton.cdiv(C, block)), (T, C, v.stride(0), v.stride(1), n_parts, TILE, block)
    if v.numel():
        with torch.cuda.device_of(v):
            sum_edges[grid](v, sort_index, first, parts, sums, *sizes, num_warps=WARPS)
            sum_groups[grid](v, sort_index, first, parts, weight, sums, y, product, *sizes, side, precision,
                             num_warps=WARPS)
    return y


def keep_plan(ctx, inputs, output):
    _, *plan, ctx.side = inputs
    ctx.save_for_backward(*plan)


def associate_gradient(ctx, grad):
    sort_index, first, parts, weight = ctx.saved_tensors
    if ctx.side:  # the weights are those of the rows that the sums went to
        grad, weight = (grad * weight).to(grad.dtype), torch.ones_like(weight)
    return associate_sorted(grad, sort_index, first, parts, weight, -ctx.side), *[None] * 5


associate_sorted.register_fake(lambda v, *_: v.new_empty(v.shape))
associate_sorted.register_autograd(associate_gradient, setup_context=keep_plan)


if __name__ == "__main__":
    import lego
    from figures import masks

    lego.command_line(masks.look)
