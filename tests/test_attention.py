"""attention.py: every implementation against a slow, independent one: odd sizes, padding, tokens that occur once."""
import itertools
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.nn as nn

import attention
from attention import (HybridAttention, LegoAttention, Manipulation, VanillaAttention, associate, make_attention,
                       make_plan, rotate)

INTERPRETED = attention.triton is not None and attention.INTERPRETED
FUSED = INTERPRETED or (attention.triton is not None and torch.cuda.is_available())
IMPLEMENTATIONS = ["dense", "segment", pytest.param("triton", marks=pytest.mark.skipif(
    not FUSED, reason="needs Triton and a GPU, or its interpreter: see test_triton_in_its_interpreter"))]
DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU"))]
SHAPES = [(1, 1, 1), (2, 3, 5), (3, 17, 7), (2, 61, 9), (1, 131, 3)]  # B, T, C
KINDS = {
    "vanilla": dict(kind="vanilla"),
    "vanilla, rope": dict(kind="vanilla", rope=True),
    "chained": dict(kind="lego"),
    "parallel": dict(kind="lego", chained=False),
    "association alone": dict(kind="lego", chained=False, association_share=1.0),
    "convolution alone": dict(kind="lego", association_share=0.0),
    "hybrid": dict(kind="hybrid"),
    "hybrid, segment": dict(kind="hybrid", association="segment"),
    "vanilla, causal": dict(kind="vanilla", causal=True),
    "chained, causal": dict(kind="lego", causal=True),
    "hybrid, segment, causal": dict(kind="hybrid", association="segment", causal=True),
}


def device_of(implementation, device="cpu"):
    return "cuda" if implementation == "triton" and not INTERPRETED else device


def example(B, T, n_tokens=None, padded=True):
    """Token ids, some of which occur once, and a mask with padding at the end, at the front and in the middle."""
    tokens = torch.randint(n_tokens or max(2, T // 2), (B, T))
    padding_mask = torch.rand(B, T) < 0.2 if padded else None
    if padded and T > 3:
        padding_mask[0] = torch.arange(T) >= T - 3
    return tokens, padding_mask


def association_by_loops(v, tokens, padding_mask=None, causal=False):
    """
    The definition, one sum at a time: y_i = mean of v_j over j != i, or causal over j < i, with the same token, 0 where
    there is none.
    """
    B, T, C = v.shape
    real = (torch.ones(B, T, dtype=torch.bool) if padding_mask is None else ~padding_mask).tolist()
    tokens, rows = tokens.tolist(), []
    for b in range(B):
        for i in range(T):
            others = [v[b, j] for j in range(i if causal else T)
                      if j != i and tokens[b][j] == tokens[b][i] and real[b][j] and real[b][i]]
            rows.append(sum(others) / len(others) if others else 0 * v[b, i])
    return torch.stack(rows).view(B, T, C)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_association_by_hand(implementation):
    device = device_of(implementation)
    tokens, v = torch.tensor([[7, 8, 7, 7]], device=device), torch.tensor([[[1.0], [2.0], [3.0], [5.0]]], device=device)
    assert associate(v, make_plan(tokens, implementation=implementation)).flatten().tolist() == [4, 0, 3, 2]
    last = torch.tensor([[False, False, False, True]], device=device)
    assert associate(v, make_plan(tokens, last, implementation)).flatten().tolist() == [3, 0, 1, 0]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("padded, causal", [(False, False), (True, False), (False, True), (True, True)])
@pytest.mark.parametrize("B, T, C", SHAPES)
@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_association_against_loops(implementation, B, T, C, padded, causal, device):
    """Values and gradients at odd sizes, in float64, and the values in float32."""
    device = device_of(implementation, device)
    tokens, padding_mask = example(B, T, padded=padded)
    v = torch.randn(B, T, C, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(B, T, C, dtype=torch.float64)
    expected = association_by_loops(v, tokens, padding_mask, causal)
    (expected_gradient,) = torch.autograd.grad((expected * weight).sum(), v)
    plan = make_plan(tokens.to(device), None if padding_mask is None else padding_mask.to(device), implementation,
                     causal)
    y = associate(v.to(device), plan).cpu()
    (gradient,) = torch.autograd.grad((y * weight).sum(), v)
    torch.testing.assert_close(y, expected, atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(gradient, expected_gradient, atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(associate(v.float().to(device), plan).cpu(), expected.float(), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_association_gradcheck(implementation, causal):
    device = device_of(implementation)
    tokens, padding_mask = (x.to(device) for x in example(2, 11))
    plan = make_plan(tokens, padding_mask, implementation, causal)
    v = torch.randn(2, 11, 3, dtype=torch.float64, device=device, requires_grad=True)
    fast = implementation == "triton"
    assert torch.autograd.gradcheck(lambda v: associate(v, plan), v, atol=1e-6, fast_mode=fast)
    assert torch.autograd.gradgradcheck(lambda v: associate(v, plan), v, atol=1e-6, fast_mode=fast)


@pytest.mark.parametrize("T", [9, 70])
def test_one_mask_for_the_whole_batch_will_do(T):
    tokens, x, module = torch.randint(4, (3, T)), torch.randn(3, T, 8), LegoAttention(8)
    last = (torch.arange(T) >= T - 2)[None]
    torch.testing.assert_close(module(x, tokens, last), module(x, tokens, last.expand(3, T)))


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("dtype", [torch.int64, torch.int32, torch.uint8, torch.uint16])
def test_padding_is_no_token(dtype, implementation):
    """No id is read as padding: not -1, not the largest, not 0."""
    device, ids = device_of(implementation), (0, 255) if not dtype.is_signed else (-1, 0, torch.iinfo(dtype).max)
    for i in ids:
        tokens = torch.tensor([[i, 8, i, i]], device=device).to(dtype)
        v = torch.tensor([[[1.0], [2.0], [3.0], [100.0]]], device=device)
        last = torch.tensor([[False, False, False, True]], device=device)
        assert associate(v, make_plan(tokens, last, implementation)).flatten().tolist() == [3, 0, 1, 0]


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("causal", [False, True])
def test_what_stands_at_padding_spoils_nothing(causal, implementation):
    """NaN there, or a sentence of padding only: outputs and gradients of the rest are finite."""
    device = device_of(implementation)
    tokens, padding_mask = (x.to(device) for x in example(3, 9))
    padding_mask[1] = True
    v = torch.randn(3, 9, 4, device=device).masked_fill(padding_mask[..., None], float("nan")).requires_grad_()
    y = associate(v, make_plan(tokens, padding_mask, implementation, causal))
    y[~padding_mask].sum().backward()
    assert y.isfinite().all() and v.grad.isfinite().all()


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_default_dtype_does_not_matter(dtype, implementation):
    """Counts are not kept in torch's default dtype, in which 500 or 5000 ones do not add up."""
    device = device_of(implementation)
    tokens, v = torch.zeros(1, 5001, dtype=torch.int64, device=device), torch.ones(1, 5001, 1, device=device)
    if implementation == "dense":
        tokens, v = tokens[:, :501], v[:, :501]
    try:
        torch.set_default_dtype(dtype)
        plan = make_plan(tokens, implementation=implementation)
    finally:
        torch.set_default_dtype(torch.float32)
    assert plan.weight.dtype == torch.float32
    torch.testing.assert_close(associate(v, plan), v)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("T", [33, 64, 65])
@pytest.mark.parametrize("n_tokens", [1, 10_000])
def test_association_of_one_group_and_of_none(implementation, n_tokens, T):
    tokens, _ = example(2, T, n_tokens, padded=False)
    v, device = torch.randn(2, T, 4, dtype=torch.float64), device_of(implementation)
    y = associate(v.to(device), make_plan(tokens.to(device), implementation=implementation)).cpu()
    torch.testing.assert_close(y, association_by_loops(v, tokens), atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS[1:])
@pytest.mark.parametrize("n_tokens, causal", [(1, False), (40, False), (10_000, False), (1, True), (40, True)])
def test_association_of_long_sentences(implementation, n_tokens, causal):
    """
    At 400 tokens, 9 parts of the fused kernel, or 900, with groups from a single position to all of them, and of a
    slice of the channels, more of them than a program takes: as `dense` says, in all precisions and both passes.
    """
    device, T = device_of(implementation), 900 if n_tokens == 1 else 400
    tokens, padding_mask = (x.to(device) for x in example(2, T, n_tokens))
    dense, plan = (make_plan(tokens, padding_mask, name, causal) for name in ("dense", implementation))
    for dtype, atol in ((torch.float32, 1e-5), (torch.bfloat16, 1e-2)):
        v = torch.randn(2, T, 80, device=device).to(dtype)[..., :70].requires_grad_()
        y, expected = associate(v, plan), associate(v.float(), dense)
        torch.testing.assert_close(y.float(), expected, atol=atol, rtol=atol)
        grad = torch.randn_like(y)
        (gradient,), (expected,) = (torch.autograd.grad(out, v, grad.to(out.dtype)) for out in (y, expected))
        torch.testing.assert_close(gradient, expected, atol=atol, rtol=atol)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_association_in_bfloat16_does_not_lose_terms(implementation):
    """257 values of a group are added up in float32: a sum kept in bfloat16 sticks at 256."""
    device = device_of(implementation)
    tokens = torch.zeros(1, 257, dtype=torch.int64, device=device)
    v = torch.ones(1, 257, 2, dtype=torch.bfloat16, device=device)
    y = associate(v, make_plan(tokens, implementation=implementation))
    assert y.dtype == torch.bfloat16
    torch.testing.assert_close(y, v, atol=0.01, rtol=0)


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.skipif(
    not torch.cuda.is_available(), reason="needs a GPU"))])
def test_auto_takes_the_implementation_it_documents(device):
    longest = torch.zeros(1, attention.DENSE_UP_TO[device], dtype=torch.int64, device=device)
    assert make_plan(longest).implementation == "dense"
    fused = INTERPRETED or (FUSED and device == "cuda")
    assert make_plan(torch.cat((longest, longest), 1)).implementation == ("triton" if fused else "segment")


def test_triton_in_its_interpreter():
    """All tests of this file that are about `triton`, on a machine without a GPU."""
    pytest.importorskip("triton")
    if FUSED:
        pytest.skip("they run in this process")
    run = subprocess.run([sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-k", "triton or auto",
                          __file__], env={**os.environ, "TRITON_INTERPRET": "1"}, capture_output=True, text=True)
    if "only 0-dimensional arrays" in run.stdout:
        pytest.skip("the interpreter of this Triton knows no such NumPy")
    n_passed = re.search(r"(\d+) passed", run.stdout)
    assert run.returncode == 0 and int(n_passed[1]) >= 25, run.stdout + run.stderr


@pytest.mark.parametrize("dtype, total", [("bf16", "fp32"), ("fp32", "fp32"), ("fp64", "fp64")])
def test_triton_compiles_for_a_gpu_that_is_not_there(dtype, total):
    """Both kernels, to machine code for the H100 and H200: what the interpreter takes, the compiler takes, too."""
    triton = pytest.importorskip("triton")
    if INTERPRETED:
        pytest.skip("there is nothing to compile")
    from triton.backends.compiler import GPUTarget

    kinds = dict(v=f"*{dtype}", product=f"*{dtype}", y=f"*{dtype}", sums=f"*{total}", weight="*fp32",
                 sort_index="*i32", first="*i32", parts="*i32", T="i32", C="i32", v_b="i32", v_t="i32", n_parts="i32")
    sizes = dict(TILE=attention.TILE, BLOCK=64, PRECISION="tf32x3" if dtype == "fp32" else "ieee")
    for kernel, side in ((attention.sum_edges, 0), *((attention.sum_groups, side) for side in (-1, 0, 1))):
        sizes["SIDE"] = side
        signature = {name: kinds.get(name, "constexpr") for name in kernel.arg_names}
        values = {name: sizes[name] for name in signature if name in sizes}
        source = triton.compiler.ASTSource(kernel, signature, values)
        assert triton.compile(source, target=GPUTarget("cuda", 90, 32)).asm["cubin"]


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_torch_compile_takes_attention_as_one_graph(implementation):
    """No break at association, whichever it is: fullgraph would raise."""
    device = device_of(implementation)
    module = LegoAttention(16, association=implementation).to(device)
    tokens = torch.randint(9, (2, 70), device=device)
    x = torch.randn(2, 70, 16, device=device, requires_grad=True)
    plan = make_plan(tokens, implementation=implementation)
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
    y, z = (f(x, tokens, None, plan) for f in (module, compiled))
    (gradient,), (other,) = (torch.autograd.grad(out.square().sum(), x) for out in (y, z))
    torch.testing.assert_close(z, y)
    torch.testing.assert_close(other, gradient)


def test_triton_where_it_does_not_run():
    if FUSED:
        pytest.skip("it runs here")
    with pytest.raises(ValueError, match="^association=triton: expected auto, dense, segment, or triton on a GPU"):
        make_plan(torch.zeros(1, 3, dtype=torch.int64), implementation="triton")


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("kernel_size, T", [(1, 5), (3, 1), (7, 4), (7, 23)])
def test_manipulation_against_loops(kernel_size, T, causal):
    """A window around every position, or one that ends there, zero beyond the ends and at padding."""
    module = Manipulation(3, kernel_size, causal).double()
    x, padding_mask = torch.randn(2, T, 3, dtype=torch.float64), torch.rand(2, T) < 0.3
    weight, bias = module.conv.weight.view(3, kernel_size), module.conv.bias
    expected = bias.expand(2, T, 3).clone()
    for b in range(2):
        for i in range(T):
            for k in range(kernel_size):
                j = i + k - (kernel_size - 1 if causal else kernel_size // 2)
                if 0 <= j < T and not padding_mask[b, j]:
                    expected[b, i] = expected[b, i] + weight[:, k] * x[b, j]
    torch.testing.assert_close(module(x, padding_mask), expected)
    assert not torch.allclose(module(x), module(x, padding_mask)) or not padding_mask.any()


@pytest.mark.parametrize("padded", [False, True])
def test_vanilla_against_torch(padded):
    """torch.nn.MultiheadAttention with the same weights, output and attention map."""
    ours = VanillaAttention(12, n_head=3).double()
    theirs = nn.MultiheadAttention(12, 3, batch_first=True, dtype=torch.float64)
    with torch.no_grad():
        theirs.in_proj_weight.copy_(torch.cat([m.weight for m in (ours.query, ours.key, ours.value)]))
        theirs.in_proj_bias.copy_(torch.cat([m.bias for m in (ours.query, ours.key, ours.value)]))
        theirs.out_proj.load_state_dict(ours.proj.state_dict())
    x, (tokens, padding_mask) = torch.randn(2, 9, 12, dtype=torch.float64), example(2, 9, padded=padded)
    expected, weights = theirs(x, x, x, key_padding_mask=padding_mask, average_attn_weights=False)
    real = slice(None) if padding_mask is None else ~padding_mask
    maps = lambda weights: weights.transpose(1, 2)[real]  # (B, H, T, T) -> (positions, H, T)
    torch.testing.assert_close(ours(x, tokens, padding_mask)[real], expected[real])
    y, ours = ours(x, tokens, padding_mask, need_weights=True)
    torch.testing.assert_close(y[real], expected[real])
    torch.testing.assert_close(maps(ours), maps(weights))


@pytest.mark.parametrize("need_weights", [False, True])
def test_dropout_is_of_the_attention_map_and_right_on_average(need_weights):
    """Off in evaluation; in training other entries each time, with the same output in the mean over many draws."""
    module, (tokens, _) = VanillaAttention(8, n_head=2, dropout=0.5), example(1, 7)
    x, tokens = torch.randn(1, 7, 8).expand(4000, -1, -1), tokens.expand(4000, -1)
    run = lambda: module(x, tokens, need_weights=True)[0] if need_weights else module(x, tokens)
    module.eval()
    expected = run()
    assert torch.equal(expected, run())
    module.train()
    draws = run()
    assert (draws[0] - draws[1]).abs().max() > 0.1
    torch.testing.assert_close(draws.mean(0), expected[0], atol=0.03, rtol=0)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("chained", [True, False])
def test_lego_is_its_pathways_joined(chained, implementation):
    """Chained: what association brought passes the convolution. Parallel: each pathway has channels of its own."""
    device = device_of(implementation)
    module = LegoAttention(8, 5, 0.25, chained, association=implementation).double().to(device)
    x, tokens, padding_mask = (x.to(device) for x in (torch.randn(2, 13, 8).double(), *example(2, 13)))
    v = module.value(x)
    far, near = association_by_loops(v[..., :2], tokens, padding_mask), v[..., 2:]
    if chained:
        y = module.manipulation(torch.cat((far, near), -1), padding_mask)
    else:
        y = torch.cat((far, module.manipulation(near, padding_mask)), -1)
    torch.testing.assert_close(module(x, tokens, padding_mask), module.proj(y), atol=1e-6, rtol=1e-6)


def test_rope_turns_by_the_position_and_products_know_the_distance():
    """At position t the first pair of channels turns by t, the last by t / 10000^(1 - 2 / D)."""
    x = torch.randn(1, 1, 9, 6, dtype=torch.float64)
    turned = torch.view_as_complex(torch.stack((x[..., :3], x[..., 3:]), -1)) * torch.exp(
        1j * torch.arange(9)[:, None] * 10000 ** -torch.tensor([0, 2 / 6, 4 / 6], dtype=torch.float64))
    torch.testing.assert_close(rotate(x), torch.cat((turned.real, turned.imag), -1), atol=1e-5, rtol=1e-5)
    q, k = (rotate(torch.randn(6, dtype=torch.float64).expand(1, 1, 9, 6))[0, 0] for _ in range(2))
    for distance in (-3, 0, 2):
        products = (q @ k.T).diagonal(distance)
        torch.testing.assert_close(products, products[:1].expand_as(products), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("kind", ["vanilla", "hybrid"])
def test_rope_lets_heads_tell_positions_apart(kind):
    """Of equal tokens a head looks at all alike, and with rope at some more, by their distance alone."""
    x, tokens = torch.ones(1, 9, 8), torch.zeros(1, 9, dtype=torch.int64)
    for rope in (False, True):
        torch.manual_seed(0)
        _, maps = make_attention(kind, 8, 2, rope=rope)(x, tokens, need_weights=True)
        score = maps[0, 0].log()
        assert (score.std() > 1e-3) == rope
        torch.testing.assert_close(score[1:, 1:] - score[1:, 1:2], score[:-1, :-1] - score[:-1, :1])


@pytest.mark.parametrize("n_tokens", [1, 3, 40, 300])
@pytest.mark.parametrize("T", [1, 48, 49, 300])
def test_parts_hold_every_row_once_and_cut_no_small_group(T, n_tokens):
    """And they say which other parts hold a group of theirs."""
    ids = torch.randint(n_tokens, (2, T)).sort(dim=1).values
    first = torch.stack([torch.searchsorted(row, row) for row in ids])
    last = torch.stack([torch.searchsorted(row, row, right=True) - 1 for row in ids])
    for row, parts in zip(ids, attention.cut(first, last)):
        held = [set(range(begin, end)) for begin, end, *_ in parts.tolist()]
        assert sorted(itertools.chain(*held)) == list(range(T)) and max(map(len, held)) <= attention.TILE
        for token in row.unique():
            group = set((row == token).nonzero()[:, 0].tolist())
            holders = [i for i, places in enumerate(held) if places & group]
            assert len(holders) == 1 or len(group) > attention.TILE - attention.PART
            assert all(parts[i, 2] <= holders[0] and holders[-1] <= parts[i, 3] for i in holders)


def test_chained_moves_a_value_one_clause_in_one_layer_and_parallel_does_not():
    """The input at `a` in clause a=+1 reaches `b` of clause b=-a in one layer of the chained module only."""
    tokens = torch.tensor([[ord(c) for c in "b=-a;xxxxxxxxxxa=+1;"]])
    for chained in (True, False):
        module = LegoAttention(8, chained=chained)
        x = torch.randn(1, 20, 8, requires_grad=True)
        module(x, tokens)[0, 0].sum().backward()
        assert (x.grad[0, 15].abs().max() > 0) == chained


def test_hybrid_adds_its_parts():
    """Half of the heads and half of the channels are vanilla; the lego part takes its own arguments."""
    module = HybridAttention(12, n_head=4, association_share=0.25, chained=False, kernel_size=3)
    x, (tokens, padding_mask) = torch.randn(2, 9, 12), example(2, 9)
    assert module.vanilla.n_head == 2 and module.vanilla.proj.in_features == module.lego.proj.in_features == 6
    assert module.lego.n_associated == 2 and module.lego.manipulation.conv.weight.shape == (4, 1, 1, 3)
    torch.testing.assert_close(module(x, tokens, padding_mask),
                               module.vanilla(x, tokens, padding_mask) + module.lego(x, tokens, padding_mask))


@pytest.mark.parametrize("kind", KINDS)
def test_contract(kind):
    """Shapes, the map beside an unchanged output, and a plan made outside: what model.py relies on."""
    module = make_attention(n_embd=16, n_head=4, **KINDS[kind])
    x, (tokens, padding_mask) = torch.randn(3, 10, 16), example(3, 10)
    y = module(x, tokens, padding_mask)
    assert y.shape == x.shape
    plan = make_plan(tokens, padding_mask, causal="causal" in kind)
    torch.testing.assert_close(module(x, tokens, padding_mask, plan), y)
    again, weights = module(x, tokens, padding_mask, plan, need_weights=True)
    torch.testing.assert_close(again, y)
    n_map = 4 if "vanilla" in kind or "hybrid" in kind else 2  # of hybrid two are LEGO's
    assert weights.shape == (3, n_map, 10, 10) and (weights >= 0).all()
    rows = weights.sum(-1)  # a row sums to one, or to zero where association finds nothing
    torch.testing.assert_close(rows, rows.round(), atol=1e-5, rtol=0)


@pytest.mark.parametrize("kind", KINDS)
def test_gradcheck(kind):
    """The gradient of every module, of its input and of its weights, against finite differences, with padding."""
    module = make_attention(n_embd=4, n_head=2, **KINDS[kind]).double()
    tokens, padding_mask = example(2, 6, n_tokens=3)
    x = torch.randn(2, 6, 4, dtype=torch.float64, requires_grad=True)
    names, weights = zip(*module.named_parameters())

    def run(x, *weights):
        return torch.func.functional_call(module, dict(zip(names, weights)), (x, tokens, padding_mask))[~padding_mask]

    assert torch.autograd.gradcheck(run, (x, *weights), atol=1e-5, fast_mode=True)


@pytest.mark.parametrize("kind", ["vanilla", "hybrid, segment"])
def test_module_is_traced_whole_by_torch_compile(kind):
    """No graph break at association, where torch.compile would lose its fusions. Traced only: needs no compiler."""
    module = make_attention(n_embd=16, n_head=4, **KINDS[kind])
    x, (tokens, _) = torch.randn(3, 10, 16, requires_grad=True), example(3, 10)
    plan = make_plan(tokens)
    whole = torch.compile(module, backend="eager", fullgraph=True)
    torch.testing.assert_close(whole(x, tokens, None, plan), module(x, tokens, None, plan))


@pytest.mark.parametrize("kind", KINDS)
def test_padding_is_never_looked_at(kind):
    """Whatever stands at padding, values or token ids, real positions must not change."""
    module = make_attention(n_embd=16, n_head=4, **KINDS[kind])
    x, (tokens, padding_mask) = torch.randn(3, 10, 16), example(3, 10, n_tokens=4)
    y = module(x, tokens, padding_mask)
    x, tokens = x.clone(), tokens.clone()
    x[padding_mask], tokens[padding_mask] = float("nan"), 1
    torch.testing.assert_close(module(x, tokens, padding_mask)[~padding_mask], y[~padding_mask])


@pytest.mark.parametrize("need_weights", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_sentence_of_padding_only(kind, need_weights):
    """Its output is finite, and it leaves no NaN in the gradient of the sentence beside it."""
    module = make_attention(n_embd=16, n_head=4, **KINDS[kind])
    tokens, padding_mask = torch.randint(4, (2, 5)), torch.tensor([[False] * 5, [True] * 5])
    y = module(torch.randn(2, 5, 16), tokens, padding_mask, need_weights=need_weights)
    if need_weights:
        y, weights = y
        assert "vanilla" not in kind or not weights[1].any()  # padding is looked at by nobody
    y[0].sum().backward()
    assert y.isfinite().all() and all(p.grad.isfinite().all() for p in module.parameters() if p.grad is not None)


@pytest.mark.parametrize("T", [9, 70])
@pytest.mark.parametrize("kind", [kind for kind in KINDS if "causal" in kind])
def test_causal_sees_nothing_of_what_comes_later(kind, T):
    """No output depends on a later position, neither on its state nor on its token; the map says so, too."""
    module = make_attention(n_embd=16, n_head=4, **KINDS[kind])
    x, tokens = torch.randn(1, T, 16), torch.randint(4, (1, T))
    y, weights = module(x, tokens, need_weights=True)
    assert not weights.triu(1).any()
    for i in (1, T // 2, T - 1):
        changed, others = x.clone(), tokens.clone()
        changed[:, i:], others[:, i:] = torch.randn(1, T - i, 16), torch.randint(4, (1, T - i))
        torch.testing.assert_close(module(changed, others)[:, :i], y[:, :i])
        assert not torch.allclose(module(changed, others)[:, i:], y[:, i:])


@pytest.mark.filterwarnings("ignore")  # tracing warns that T is a constant, vmap that scatter is slow
@pytest.mark.parametrize("T", [20, 100])
@pytest.mark.parametrize("causal", [False, True])
def test_torch_func_and_jit_take_the_module(causal, T):
    """grad, vmap over sentences, jvp and torch.jit.trace, against plain autograd."""
    module = LegoAttention(8, causal=causal)
    x, tokens, weights = torch.randn(3, T, 8), torch.randint(4, (3, T)), dict(module.named_parameters())
    loss = lambda weights, x, tokens: torch.func.functional_call(module, weights, (x[None], tokens[None])).pow(2).sum()
    each = torch.func.vmap(torch.func.grad(loss), (None, 0, 0))(weights, x, tokens)
    module(x, tokens).pow(2).sum().backward()
    for name, p in module.named_parameters():
        torch.testing.assert_close(each[name].sum(0), p.grad, atol=1e-4, rtol=1e-4)
    y = module(x, tokens)
    _, tangent = torch.func.jvp(lambda x: module(x, tokens), (x,), (x,))
    torch.testing.assert_close(tangent, y - module(0 * x, tokens))  # linear but for its biases
    torch.testing.assert_close(torch.jit.trace(module.eval(), (x, tokens))(x, tokens), y)


@pytest.mark.parametrize("arguments, expected", [
    (dict(kind="vanilla", n_head=5), "n_head=5: expected a divisor"),
    (dict(kind="vanilla", n_head=0), "n_head=0: expected a divisor"),
    (dict(kind="hybrid", n_head=5), "n_head=5"),
    (dict(kind="hybrid", n_head=1), "n_head=1"),
    (dict(kind="hybrid", n_head=0), "n_head=0: expected an even divisor"),
    (dict(kind="hybrid", n_embd=10), "n_head=4: expected an even divisor of n_embd=10"),
    (dict(kind="hybrid", association="fast"), "association=fast: expected auto, dense"),
    (dict(kind="lego", kernel_size=4), "kernel_size=4: expected an odd number"),
    (dict(kind="lego", kernel_size=-1), "kernel_size=-1: expected an odd number"),
    (dict(kind="lego", association_share=1.5), "association_share=1.5: expected 0 to 1"),
    (dict(kind="lego", association="tritton"), "association=tritton: expected auto, dense, segment, or triton"),
])
def test_bad_arguments_are_named(arguments, expected):
    with pytest.raises(ValueError, match=expected):
        make_attention(**{"n_embd": 12, "n_head": 4, **arguments})(torch.randn(1, 3, 12), torch.zeros(1, 3).long())


def test_wrong_shapes_are_named():
    for T in (5, 100):
        with pytest.raises(ValueError, match=rf"v of shape \(2, {T}, 4\): expected .* \(1, {T}\)"):
            LegoAttention(8)(torch.randn(2, T, 8), torch.zeros(1, T).long())
    for more in (dict(causal=True), dict(padding_mask=torch.zeros(2, 5, dtype=torch.bool))):
        with pytest.raises(ValueError, match="plan: expected one made with the causal and the padding_mask"):
            LegoAttention(8)(torch.randn(2, 5, 8), tokens := torch.zeros(2, 5).long(), plan=make_plan(tokens, **more))
    with pytest.raises(ValueError, match=r"\(2, 0\): expected at least one token"):
        LegoAttention(8)(torch.randn(2, 0, 8), torch.zeros(2, 0).long())
    with pytest.raises(ValueError, match="attention=mamba: expected vanilla, lego or hybrid"):
        make_attention("mamba", 8, 2)


def test_target_maps_of_a_sentence():
    """Local: 1 2 4 2 1 and cut at the ends. Association: the other positions of the same token."""
    local, same = attention.target_maps(torch.tensor([[7, 8, 7, 9]]))[0]
    assert local.tolist() == [[4, 2, 1, 0], [2, 4, 2, 1], [1, 2, 4, 2], [0, 1, 2, 4]]
    assert same.tolist() == [[0, 0, 1, 0], [0, 0, 0, 0], [1, 0, 0, 0], [0, 0, 0, 0]]


def test_the_example_in_the_readme_runs():
    example = (Path(attention.__file__).parent / "README.md").read_text().split("```python\n")[1].split("```")[0]
    names = {}
    exec(example, names)
    assert names["y"].shape == names["x"].shape
