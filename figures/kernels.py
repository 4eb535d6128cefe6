"""
The time and the memory that association takes, in five implementations, on a GPU six.

    python -m figures.kernels       on the GPU if there is one, else on the CPU; 3 minutes

dense          a mask and a matrix product                           attention.py
segment        the tokens sorted, sums of each group                 attention.py
triton         the same, fused                                       attention.py, on a GPU
SDPA           F.scaled_dot_product_attention with a boolean mask, equal scores
FlexAttention  compiled, with the mask as a function; `sorted`: with the tokens sorted first, so that blocks are empty

What is known before the values come, a mask or a plan, is made once per batch and timed apart. Tokens are as frequent
as words in a text, by Zipf's law. The floor is a copy of the values: one read and one write.
"""
import ctypes
import statistics
import sys
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from torch.nn.attention.flex_attention import create_block_mask, flex_attention
from tqdm import tqdm

from figures import runner, show, speed
from attention import Manipulation, associate, identical_tokens, make_plan, triton

NAME = "kernels"
LENGTHS = [2**k for k in range(6, 15)]  # T, 64 to 16,384
SIZES = {"cpu": (2**14, 64, torch.float32), "cuda": (2**18, 256, torch.bfloat16)}  # tokens in all, C, dtype
COLORS = {"dense": show.BLUE, "SDPA, boolean mask": show.PINK, "FlexAttention": show.ORANGE,
          "FlexAttention, sorted": show.GREEN, "segment": show.RED, "triton": show.SKY}


def words(B, T, device):
    """Token ids (B, T) as frequent as the words of a text, by Zipf's law: groups from one token to a tenth of all."""
    share = 1 / torch.arange(1, 8193, dtype=torch.float32, device=device)
    generator = torch.Generator(device).manual_seed(T)
    return torch.multinomial(share, B * T, replacement=True, generator=generator).view(B, T)


def implementation(name, tokens, C, dtype):
    """
    The two steps of an implementation: `plan()`, made once per batch, and `run(plan, v)`, v (B, T, C) -> (B, T, C).
    Where all it has is softmax, equal scores at the identical tokens make the mean; where there are none it may give
    what it likes. `sorted` brings the tokens in order first, so that most blocks of the mask are empty.
    """
    B, T = tokens.shape
    zeros = torch.zeros(B, 1, T, C, dtype=dtype, device=tokens.device)  # the query and the key
    if name == "SDPA, boolean mask":
        plan = lambda: identical_tokens(tokens)[:, None]  # (B, 1, T, T)
        run = lambda mask, v: F.scaled_dot_product_attention(zeros, zeros, v[:, None], attn_mask=mask)[:, 0]
    elif name.startswith("FlexAttention"):
        make_mask, compiled = torch.compile(create_block_mask), torch.compile(flex_attention)

        def plan():
            ids, order = tokens.sort(dim=1) if "sorted" in name else (tokens, None)
            is_twin = lambda b, h, i, j: (ids[b, i] == ids[b, j]) & (i != j)
            return make_mask(is_twin, B, None, T, T, device=tokens.device), order

        def run(plan, v):
            mask, order = plan
            if order is None:
                return compiled(zeros, zeros, v[:, None], block_mask=mask)[:, 0]
            order = order[..., None].expand_as(v)  # (B, T, C)
            y = compiled(zeros, zeros, v.gather(1, order)[:, None], block_mask=mask)[:, 0]
            return torch.zeros_like(y).scatter(1, order, y)
    else:
        plan = lambda: make_plan(tokens, implementation=name)
        run = lambda plan, v: associate(v, plan)
    return plan, run


def median_ms(run, device, seconds=1.5, at_most=50):
    """
    The median of up to `at_most` runs, at least 3, after one that warms up. On a GPU its own clock, with the cache
    emptied in between, as triton.testing.do_bench has it.
    """
    run()
    if device.type == "cuda" and triton is not None:
        return triton.testing.do_bench(run, return_mode="median")
    times, end = [], time.perf_counter() + seconds
    while len(times) < min(3, at_most) or (len(times) < at_most and time.perf_counter() < end):
        start = time.perf_counter()
        run()
        if device.type == "cuda":
            torch.cuda.synchronize()
        times.append(1e3 * (time.perf_counter() - start))
    return statistics.median(times)


def peak_mb(run, device):
    """What `run` needs of memory, at its peak and beyond what was there before, in MB; on a CPU under Linux alone."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        run()
        torch.cuda.synchronize()
        return (torch.cuda.max_memory_allocated() - before) / 2**20
    if sys.platform != "linux":
        return None
    status = lambda key: int(Path("/proc/self/status").read_text().split(key)[1].split()[0]) / 1024  # kB -> MB
    keep_memory(2**16)  # what is freed goes back at once, so that it can be measured
    try:
        before = status("VmRSS:")
        Path("/proc/self/clear_refs").write_text("5")  # the high water mark begins anew
        run()
        return status("VmHWM:") - before
    finally:
        keep_memory()


def keep_memory(size=2**25):
    """
    Has the C library of Linux keep freed pieces of memory up to so many bytes for the next one that asks. It does so by
    itself, up to 2^25, in a process that has run for a while.
    """
    libc = ctypes.CDLL(None)
    libc.mallopt(-3, size)  # M_MMAP_THRESHOLD
    libc.mallopt(-1, 2 * size)  # M_TRIM_THRESHOLD
    libc.malloc_trim(0)


def measure(device, lengths=LENGTHS, sizes=None, save=lambda numbers: None, flex=LENGTHS):
    """
    The numbers of the figure, one row for each implementation and T; what it does not have there is None. `save` is
    called with what there is after each row. FlexAttention, which compiles for minutes, is measured at the T in `flex`.
    """
    n_tokens, C, dtype = sizes or SIZES["cuda" if device.type == "cuda" else "cpu"]
    if sys.platform == "linux":
        keep_memory()
    start = time.perf_counter()
    v = torch.randn(n_tokens, C, dtype=dtype, device=device)
    y = torch.empty_like(v)
    copy_ms = median_ms(lambda: y.copy_(v), device, at_most=1000)
    numbers = dict(hardware=show.hardware(device), torch=torch.__version__, triton=triton and triton.__version__,
                   n_tokens=n_tokens, n_channels=C, dtype=str(dtype).removeprefix("torch."), copy_ms=copy_ms, rows=[])
    names = [name for name in COLORS if name != "triton" or (triton is not None and device.type == "cuda")]
    for T in tqdm(lengths, desc="lengths", unit="T", dynamic_ncols=True, disable=None):
        tokens, v = words(n_tokens // T, T, device), torch.randn(n_tokens // T, T, C, dtype=dtype, device=device)
        expected = associate(v, make_plan(tokens, implementation="segment"))
        for name in (name for name in names if T in flex or "Flex" not in name):
            row = dict(implementation=name, T=T, forward=None, both=None, plan=None, peak=None)
            numbers["rows"].append(row)
            torch._dynamo.reset()  # FlexAttention anew for each shape, not slower for any
            make, run = implementation(name, tokens, C, dtype)
            try:
                plan = make()
                row["plan"] = median_ms(make, device)
                with torch.no_grad():
                    has_twin = expected.abs().sum(-1) > 0
                    torch.testing.assert_close(run(plan, v)[has_twin], expected[has_twin], atol=2e-2, rtol=2e-2)
                    row["forward"] = median_ms(lambda: run(plan, v), device)
                    row["peak"] = peak_mb(lambda: run(make(), v), device)
                x = v.clone().requires_grad_()
                row["both"] = median_ms(lambda: torch.autograd.grad(run(plan, x), x, v), device)
            except Exception as error:  # too little memory, a backend that lacks something: the others go on
                row["lacks"] = (str(error) or repr(error)).split("\n")[0]
            save(numbers)
    numbers["manipulation"] = [measure_manipulation(device, n_tokens, C, dtype, T) for T in (128, 4096) if T in lengths]
    numbers["seconds"] = time.perf_counter() - start
    save(numbers)


def measure_manipulation(device, n_tokens, C, dtype, T, kernel_size=7):
    """The median time of the convolution, both passes, in two implementations that take turns, in ms."""
    x = torch.randn(n_tokens // T, T, C, dtype=dtype, device=device, requires_grad=True)
    ours = Manipulation(C, kernel_size).to(device, dtype)
    conv1d = torch.nn.Conv1d(C, C, kernel_size, padding=kernel_size // 2, groups=C, device=device, dtype=dtype)
    both = lambda y, module: torch.autograd.grad(y, [x, *module.parameters()], x.detach())
    seconds = speed.medians({"Conv2d on a view": lambda: both(ours(x), ours),
                             "Conv1d": lambda: both(conv1d(x.transpose(1, 2)).transpose(1, 2), conv1d)}, device, 15)
    return dict(T=T, **{name: 1e3 * s for name, s in seconds.items()})


def find(numbers, name, T, what):
    """One number of the figure, None if it is not there."""
    return next((row[what] for row in numbers["rows"] if (row["implementation"], row["T"]) == (name, T)), None)


def table(numbers):
    """Lines of figures/README.md: dense, SDPA and segment; forward, both passes and plan in ms, the peak in MB."""
    names = ("dense", "SDPA, boolean mask", "segment")
    in_words = lambda x: f"{x:.1f}" if x < 10 else f"{x:.0f}"
    return [f"{T:>6,}" + "".join("  " + "".join(f"{in_words(find(numbers, name, T, what)):>7}" for name in names)
                                 for what in ("forward", "both", "plan", "peak"))
            for T in (64, 128, 256, 4096, 16384)]


def draw(numbers, T=4096):
    best = "triton" if find(numbers, "triton", T, "forward") else "segment"
    ratio = lambda what: find(numbers, "dense", T, what) / find(numbers, best, T, what)
    figure, (panels,) = show.picture(
        f"Association as sums: {ratio('forward'):.0f} times faster than as a matrix, 1/{ratio('peak'):.0f} of the "
        f"memory (T = {T:,})", 1, 2, 11.5, 4.8,
        f"{numbers['n_tokens']:,} tokens in sentences of T, as frequent as words in a text; {numbers['n_channels']} "
        f"channels, {numbers['dtype']}; dense: matrix product, SDPA and FlexAttention: softmax attention with a mask; "
        "segment: sums over the sorted tokens; the mask or plan, once per batch, is in the memory and not in the time; "
        f"medians of 3 to 50 runs; {numbers['hardware']}, torch {numbers['torch']}")
    for axes, what, label in zip(panels, ("forward", "peak"), ("time of a forward pass (ms)", "peak of memory (MB)")):
        axes.set(xscale="log", yscale="log", xlabel="T, tokens of a sentence", ylabel=label)
        axes.set_xticks([64, 256, 1024, 4096, 16384], ["64", "256", "1,024", "4,096", "16,384"], minor=False)
        axes.set_xticks([], minor=True)
        axes.yaxis.set_major_formatter("{x:g}")
        ends = []
        for name, color in COLORS.items():
            points = [(row["T"], row[what]) for row in numbers["rows"] if row["implementation"] == name and row[what]]
            if points:
                axes.plot(*zip(*points), color=color, marker="o", markersize=4, linewidth=2.5 if name == best else 1.2)
                ends.append((points[-1][1], name, color))
        if what == "forward":
            show.mark(axes, numbers["copy_ms"], "floor: a copy of the values")
        show.label_ends(axes, ends)
    return figure


if __name__ == "__main__":
    runner.main_measured(NAME, measure, lambda name: runner.redraw(name, draw))
