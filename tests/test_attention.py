"""
attention.py: every implementation against a slow, independent one, at odd sizes, with padding, and
with tokens that occur once.
"""
import os
import re
import subprocess
import sys

import pytest
import torch
import torch.nn as nn

import attention
from attention import (Dense, Fused, HybridAttention, LegoAttention, Manipulation, Segment,
                       VanillaAttention, make_plan, rotate)

GPU, TRITON = torch.cuda.is_available(), attention.triton is not None
INTERPRETED = TRITON and attention.INTERPRETED
RUNS = INTERPRETED or TRITON and GPU  # the kernel, in this process
ALIKE = pytest.mark.parametrize("plan, device", [
    pytest.param(Dense, "cpu", id="dense"),
    pytest.param(Segment, "cuda" if GPU else "cpu", id="segment"),
    pytest.param(Fused, "cpu" if INTERPRETED else "cuda", id="fused", marks=pytest.mark.skipif(
        not RUNS, reason="needs Triton and a GPU, or its interpreter: see test_the_kernel_..."))])
MODULES = {
    "vanilla": lambda **more: VanillaAttention(8, 4, **more),
    "rope": lambda **more: VanillaAttention(8, 4, rope=True, **more),
    "chained": lambda **more: LegoAttention(8, **more),
    "parallel": lambda **more: LegoAttention(8, chained=False, **more),
    "association alone": lambda **more: LegoAttention(8, 7, 1.0, chained=False, **more),
    "convolution alone": lambda **more: LegoAttention(8, 7, 0.0, **more),
    "hybrid": lambda **more: HybridAttention(8, 4, **more),
}
EACH = pytest.mark.parametrize("name", MODULES)


@pytest.fixture(autouse=True)
def seeded():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield


def close(found, expected, atol=1e-5):
    torch.testing.assert_close(found, expected, atol=atol, rtol=atol)


def example(B, T, n_tokens=4, device="cpu"):
    """Token ids, and a mask with padding at the end, at the front and in the middle."""
    padding_mask = torch.rand(B, T) < 0.2
    padding_mask[0] = torch.arange(T) >= max(1, T - 3)
    return torch.randint(n_tokens, (B, T)).to(device), padding_mask.to(device)


def association_by_loops(v, tokens, padding_mask=None, causal=False, known=None):
    """y_i: the mean of v_j over j != i, or j < i, of the same token, neither padding, j known."""
    (B, T), rows = tokens.shape, []
    padded = torch.zeros(B, T) if padding_mask is None else padding_mask
    known = torch.ones(B, T) if known is None else known
    ids, padded, known = tokens.tolist(), padded.tolist(), known.tolist()
    for b in range(B):
        for i in range(T):
            others = [v[b, j] for j in range(i if causal else T) if j != i and known[b][j]
                      and ids[b][j] == ids[b][i] and not padded[b][j] and not padded[b][i]]
            rows.append(sum(others) / len(others) if others else 0 * v[b, i])
    return torch.stack(rows).view_as(v)


# ---- association: Dense, Segment and Fused are the same


@ALIKE
@pytest.mark.parametrize("B, T, C, n_tokens, padded", [
    (1, 1, 1, 1, False), (2, 3, 5, 2, True), (3, 17, 7, 8, True), (1, 67, 3, 30, False),
    (2, 33, 4, 1, True), (2, 33, 4, 10_000, True)])
def test_association_and_its_gradient_are_those_of_loops(plan, device, B, T, C, n_tokens, padded):
    """In float64 and float32; groups from no other position to all of them."""
    tokens, padding_mask = example(B, T, n_tokens, device)
    given = (tokens, padding_mask) if padded else (tokens,)
    v, weight = torch.randn(2, B, T, C, dtype=torch.float64)
    plan, expected = plan(*given), association_by_loops(v.requires_grad_(), *given)
    y = plan(v.to(device)).cpu()
    close(y, expected, 1e-6)
    close(*(torch.autograd.grad((x * weight).sum(), v)[0] for x in (y, expected)), 1e-6)
    close(plan(v.float().to(device)).cpu(), expected.float())


@pytest.mark.parametrize("T", [9, 131])
def test_causal_association_is_that_of_loops(T):
    given, v = example(2, T), torch.randn(2, T, 3)
    close(make_plan(*given, causal=True)(v), association_by_loops(v, *given, causal=True))


@ALIKE
@pytest.mark.parametrize("dtype", [torch.int64, torch.int32, torch.uint8, torch.uint16])
def test_padding_is_no_token(plan, device, dtype):
    """No id is read as padding: not -1, not 0, not the largest."""
    v = torch.tensor([[[1.0], [2.0], [3.0], [100.0]]], device=device)
    last = torch.tensor([[False, False, False, True]], device=device)
    for i in (-1, 0, torch.iinfo(dtype).max) if dtype.is_signed else (0, 255):
        tokens = torch.tensor([[i, 8, i, i]], device=device).to(dtype)
        assert plan(tokens)(v).flatten().tolist() == [51.5, 0, 50.5, 2]
        assert plan(tokens, last)(v).flatten().tolist() == [3, 0, 1, 0]


@ALIKE
def test_counts_and_sums_are_not_kept_in_half_precision(plan, device):
    """Counts not in the default dtype, where 300 ones make 256; sums not in that of the values."""
    v, tokens = torch.ones(1, 300, 2, device=device), torch.zeros(1, 300, device=device).long()
    try:
        torch.set_default_dtype(torch.bfloat16)
        of_all, of_two = plan(tokens), plan(tokens[:, :2])
    finally:
        torch.set_default_dtype(torch.float32)
    close(of_all(v), v)
    close(of_all(v.bfloat16()), v.bfloat16(), 0.01)
    pair = torch.tensor([[[100.0], [1.0078125]]], device=device).bfloat16()
    assert torch.equal(of_two(pair), pair.flip(1))


@ALIKE
@pytest.mark.parametrize("n_tokens, dtype, atol", [
    (1, torch.float32, 1e-5), (9, torch.bfloat16, 1e-2)])
def test_long_sentences_are_as_dense_says(plan, device, n_tokens, dtype, atol):
    """Of several tiles of the kernel, a slice of more channels than its block, both passes."""
    given = example(2, 100, n_tokens, device)
    v = torch.randn(2, 100, 80, device=device).to(dtype)[..., :70].requires_grad_()
    y, expected = plan(*given)(v), Dense(*given)(v.float())
    assert y.dtype == dtype
    close(y.float(), expected, atol)
    grad = torch.randn(2, 70, 100, device=device).mT  # not laid out by channels
    close(*(torch.autograd.grad(x, v, grad.to(x.dtype))[0] for x in (y, expected)), atol)


def test_short_and_causal_sentences_get_a_matrix_and_long_ones_do_not():
    for device in ["cpu"] + ["cuda"] * GPU:
        n = attention.DENSE_UP_TO[device]
        tokens = torch.zeros(1, n + 1, dtype=torch.int64, device=device)
        assert type(make_plan(tokens[:, :n])) is type(make_plan(tokens, causal=True)) is Dense
        assert type(make_plan(tokens)) is (Fused if TRITON and device == "cuda" else Segment)


def test_the_kernel_runs_in_the_interpreter():
    """The tests of this file that are about Fused, on a machine without a GPU."""
    pytest.importorskip("triton")
    if RUNS:
        pytest.skip("they run in this process")
    run = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-k", "fused", __file__],
        env={**os.environ, "TRITON_INTERPRET": "1"}, capture_output=True, text=True)
    if "only 0-dimensional arrays" in run.stdout:
        pytest.skip("the interpreter of this Triton knows no such NumPy")
    n_passed = re.search(r"(\d+) passed", run.stdout)
    assert run.returncode == 0 and int(n_passed[1]) >= 15, run.stdout + run.stderr


@pytest.mark.parametrize("dtype, number", [("bf16", "bfloat16"), ("fp32", "float32")])
def test_the_kernel_compiles_for_a_gpu_that_is_not_there(dtype, number):
    """To machine code of the H200: what the interpreter takes, the compiler takes, too."""
    triton = pytest.importorskip("triton")
    if INTERPRETED:
        pytest.skip("there is nothing to compile")
    kernel, tl, index = attention.sum_groups, triton.language, ("sort_index", "first", "last")
    constants = dict(TILE=attention.TILE, BLOCK=attention.BLOCK, PRODUCT=getattr(tl, number),
                     SUM=tl.float32, PRECISION="tf32x3" if dtype == "fp32" else "ieee")
    kinds = dict(v="*" + dtype, y="*" + dtype, weight="*fp32", **dict.fromkeys(index, "*i32"))
    signature = {name: "constexpr" if name in constants else kinds.get(name, "i32")
                 for name in kernel.arg_names}
    source = triton.compiler.ASTSource(kernel, signature, constants)
    target = triton.backends.compiler.GPUTarget("cuda", 90, 32)
    assert triton.compile(source, target=target).asm["cubin"]


# ---- modules


@ALIKE
@pytest.mark.parametrize("chained, hears_all", [(True, True), (True, False), (False, False)])
def test_lego_joins_its_pathways_and_hears_only_those_that_know(plan, device, chained, hears_all):
    """Chained: what association brought passes the convolution. Else each has its own channels."""
    module = LegoAttention(8, 5, 0.25, chained).double().to(device)
    tokens, padding_mask = example(2, 13, 3, device)
    x = torch.randn(2, 13, 8, dtype=torch.float64, device=device)
    known = None if hears_all else torch.rand(2, 13, device=device) < 0.4
    v = module.value(x.masked_fill(padding_mask[..., None], 0))
    far, near = association_by_loops(v[..., :2], tokens, padding_mask, False, known), v[..., 2:]
    if chained:
        y = module.manipulation(torch.cat((far, near), -1), padding_mask)
    else:
        y = torch.cat((far, module.manipulation(near, padding_mask)), -1)
    found = module(x, tokens, padding_mask, plan(tokens, padding_mask), known=known)
    close(found, module.proj(y), 1e-6)


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("kernel_size, T", [(1, 5), (3, 1), (7, 4), (7, 23)])
def test_manipulation_and_its_map_are_those_of_loops(kernel_size, T, causal):
    """A window around every position, or one that ends there, zero at padding."""
    module, (_, padding_mask) = Manipulation(3, kernel_size, causal), example(2, T)
    weight, band, x = module.conv.weight[:, 0, 0], torch.zeros(T, T), torch.randn(2, T, 3)
    expected = module.conv.bias.expand(2, T, 3).clone()
    for i in range(T):
        for k in range(kernel_size):
            j = i + k - (kernel_size - 1 if causal else kernel_size // 2)
            if 0 <= j < T:
                band[i, j] = weight[:, k].abs().mean()
                expected[:, i] += weight[:, k] * x[:, j] * ~padding_mask[:, j, None]
    close(module(x, padding_mask), expected)
    close(module.weights(T), band / band.sum(1, keepdim=True))


@pytest.mark.parametrize("padded, causal", [(False, False), (True, False), (True, True)])
def test_vanilla_is_that_of_torch(padded, causal):
    """torch.nn.MultiheadAttention with the same weights: output and attention map."""
    ours = VanillaAttention(12, 3, causal=causal)
    theirs = nn.MultiheadAttention(12, 3, batch_first=True)
    weights, inner = theirs.state_dict(), (ours.query, ours.key, ours.value)
    weights["in_proj_weight"] = torch.cat([m.weight for m in inner])
    weights["in_proj_bias"] = torch.cat([m.bias for m in inner])
    theirs.load_state_dict(weights)
    theirs.out_proj.load_state_dict(ours.proj.state_dict())
    x, (tokens, padding_mask) = torch.randn(2, 9, 12), example(2, 9)
    padding_mask &= padded
    expected = theirs(x, x, x, padding_mask, attn_mask=torch.ones(9, 9).triu(1).bool() & causal,
                      average_attn_weights=False)
    y, map = ours(x, tokens, padding_mask if padded else None, need_weights=True)
    close(y[~padding_mask], expected[0][~padding_mask])
    close(*(x.transpose(1, 2)[~padding_mask] for x in (map, expected[1])))  # rows, (N, H, T)


def test_dropout_is_of_the_attention_map_and_right_on_average():
    """Off in evaluation; in training other entries each time, the output in the mean the same."""
    module, tokens = VanillaAttention(8, 2, dropout=0.5), torch.zeros(4000, 7)
    x = torch.randn(1, 7, 8).expand(4000, -1, -1)
    draws, expected = module(x, tokens), module.eval()(x[:1], tokens)[0]
    assert (draws[0] - draws[1]).abs().max() > 0.1
    assert torch.equal(module(x[:1], tokens)[0], expected)
    close(draws.mean(0), expected, 0.03)


def test_rope_turns_by_the_position_and_heads_know_the_distance():
    """At position t the first pair of channels turns by t, the last by t / 10000^(1 - 2 / D)."""
    x, power = torch.randn(1, 1, 9, 6), -torch.tensor([0, 2 / 6, 4 / 6])
    angle = torch.arange(9)[:, None] * 10000**power
    turned = torch.complex(x[..., :3], x[..., 3:]) * torch.exp(1j * angle)
    close(rotate(x), torch.cat((turned.real, turned.imag), -1))
    x, tokens = torch.ones(1, 9, 8), torch.zeros(1, 9).long()
    for kind in (VanillaAttention, HybridAttention):
        for rope in (False, True):  # of equal tokens all are looked at alike, or by their distance
            score = kind(8, 2, rope=rope)(x, tokens, need_weights=True)[1][0, 0].log()
            assert (score.std() > 1e-3) == rope
            close(score[1:, 1:] - score[1:, 1:2], score[:-1, :-1] - score[:-1, :1])


def test_a_value_moves_one_clause_in_one_layer_if_chained_alone():
    """What is known at `a` in clause a=+1 reaches `b` of clause b=-a."""
    tokens = torch.tensor([[ord(c) for c in "b=-a;xxxxxxxxxxa=+1;"]])
    for chained in (True, False):
        x = torch.randn(1, 20, 8, requires_grad=True)
        LegoAttention(8, chained=chained)(x, tokens)[0, 0].sum().backward()
        assert (x.grad[0, 15].abs().max() > 0) == chained


def test_hybrid_adds_its_parts():
    """Half of the heads and channels are vanilla; the LEGO part takes its own arguments."""
    module = HybridAttention(12, 4, association_share=0.25, chained=False, kernel_size=3)
    x, given, known = torch.randn(2, 9, 12), example(2, 9), torch.rand(2, 9) < 0.5
    assert module.vanilla.n_head == 2 and module.vanilla.proj.in_features == 6
    assert module.lego.manipulation.conv.weight.shape == (4, 1, 1, 3)
    close(module(x, *given, known=known),
          module.vanilla(x, *given) + module.lego(x, *given, known=known))


@EACH
@pytest.mark.parametrize("causal", [False, True])
def test_every_module_has_the_same_contract(name, causal):
    """The shape, a map beside the same output, a plan from outside, one mask for a whole batch."""
    (tokens, padding_mask), x = example(3, 10), torch.randn(3, 10, 8)
    module, padding_mask = MODULES[name](causal=causal), padding_mask[:1].expand(3, 10)
    y, map = module(x, tokens, padding_mask, need_weights=True)
    close(module(x, tokens, padding_mask[:1]), y)
    close(module(x, tokens, padding_mask, make_plan(tokens, padding_mask, causal)), y)
    n_maps = 4 if name in ("vanilla", "rope", "hybrid") else 2
    assert y.shape == x.shape and map.shape == (3, n_maps, 10, 10) and (map >= 0).all()
    close(map.sum(-1), map.sum(-1).round())  # one, or zero where association finds nothing


@EACH
def test_gradients_of_every_module_are_right(name):
    module, (tokens, padding_mask) = MODULES[name]().double(), example(2, 6, 3)
    x = torch.randn(2, 6, 8, dtype=torch.float64, requires_grad=True)
    names, weights = zip(*module.named_parameters())

    def run(x, *weights):
        given = dict(zip(names, weights)), (x, tokens, padding_mask)
        return torch.func.functional_call(module, *given)[~padding_mask]

    assert torch.autograd.gradcheck(run, (x, *weights), atol=1e-5, fast_mode=True)


@EACH
@pytest.mark.parametrize("T, causal", [(10, False), (10, True), (70, False)])
def test_padding_is_never_looked_at(name, T, causal):
    """Whatever stands there, even NaN, and beside a sentence of padding alone."""
    module, (tokens, padding_mask) = MODULES[name](causal=causal), example(3, T)
    x, padding_mask[2] = torch.randn(3, T, 8), True
    y = module(x, tokens, padding_mask)
    x[padding_mask], tokens[padding_mask] = float("nan"), 1
    again, map = module(x, tokens, padding_mask, need_weights=True)
    close(again[~padding_mask], y[~padding_mask])
    again[:2].sum().backward()
    assert again.isfinite().all() and map.isfinite().all()
    assert all(p.grad.isfinite().all() for p in module.parameters() if p.grad is not None)


@EACH
@pytest.mark.parametrize("T", [9, 70])
def test_causal_sees_nothing_of_what_comes_later(name, T):
    module, x, tokens = MODULES[name](causal=True), torch.randn(1, T, 8), torch.randint(4, (1, T))
    y, map = module(x, tokens, need_weights=True)
    assert not map.triu(1).any()
    for i in (1, T // 2, T - 1):
        later, others = x.clone(), tokens.clone()
        later[:, i:], others[:, i:] = torch.randn(1, T - i, 8), torch.randint(4, (1, T - i))
        again = module(later, others)
        close(again[:, :i], y[:, :i])
        assert not torch.allclose(again[:, i:], y[:, i:])


@pytest.mark.parametrize("plan, device", [(Segment, "cpu"), (Fused, "meta")], ids=["cpu", "meta"])
def test_torch_compile_takes_a_module_as_one_graph(plan, device):
    """fullgraph raises at a break. On the meta device shapes alone are computed."""
    module, tokens = LegoAttention(8).to(device), torch.randint(9, (2, 40)).to(device)
    x, plan = torch.randn(2, 40, 8, device=device, requires_grad=True), plan(tokens)
    compiled = torch.compile(module, fullgraph=True, backend="eager")
    y, expected = (f(x, tokens, None, plan) for f in (compiled, module))
    gradient, expected_gradient = (torch.autograd.grad(z.sum(), x)[0] for z in (y, expected))
    assert y.shape == gradient.shape == x.shape
    if device == "cpu":
        close((y, gradient), (expected, expected_gradient))


@pytest.mark.filterwarnings("ignore")  # vmap warns that scatter is slow
@pytest.mark.parametrize("T", [20, 100])
def test_torch_func_takes_a_module(T):
    """vmap over sentences of grad, against plain autograd."""
    module, x, tokens = LegoAttention(8), torch.randn(3, T, 8), torch.randint(4, (3, T))
    weights, call = dict(module.named_parameters()), torch.func.functional_call
    loss = lambda weights, x, tokens: call(module, weights, (x[None], tokens[None])).pow(2).sum()
    each = torch.func.vmap(torch.func.grad(loss), (None, 0, 0))(weights, x, tokens)
    module(x, tokens).pow(2).sum().backward()
    for name, p in weights.items():
        close(each[name].sum(0), p.grad, 1e-4)


def test_the_drawn_masks_are_those_of_a_layer():
    """The arrow of the third panel ends where c looks: at b, where it is defined."""
    figure = attention.draw_masks("b=-a;c=+b;")
    same, local, layer = (torch.tensor(axes.images[0].get_array().data) for axes in figure.axes)
    assert same[0].nonzero().item() == 8 and local[5].nonzero().flatten().tolist() == [*range(2, 9)]
    close(layer, local @ same)
    assert figure.axes[2].texts[0].xy == (0, 5) and layer[5, 0] > 0
