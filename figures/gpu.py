"""
All that only a GPU can tell, in one command, in the order of worth; figures/gpu.json gets each result as it comes.

    python -m figures.gpu                       every stage, 10 minutes of a data-centre GPU
    python -m figures.gpu association step      these stages, anew

tests           the suite's tests that need CUDA: the Triton kernels on the device against `dense`, in all dtypes
job             python train.py, 3 seeds: the whole command, and its training until all variables stay at 99.9%
association     the best tile of the kernel; then every implementation of figures/kernels.py, T = 64 to 16,384
step            a training step of BERT-base, compiled, against torch.nn.TransformerEncoder and transformers.BertModel
generation      drawing the sentences of a step, as a share of that step
generalisation  12 vanilla layers, 6 of 12 variables labelled, untied and tied, as many steps as fit

It has run in part on one NVIDIA H200, see figures/README.md.
"""
import re
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import replace

import torch

import attention
import lego
import train
from figures import generalisation, kernels, runner, show, speed

NAME = "gpu"
SECONDS = dict(tests=100, job=110, association=200, step=120, generation=20, generalisation=60)  # of each stage
FULL = dict(
    tests=["-k", "cuda or triton or auto", "tests/test_attention.py"],
    runs=[("as it is", 0), ("as it is", 1), ("as it is", 2), ("compiled", 0), ("bfloat16", 0)], dials=[],
    tiles=[(32, 64, 2), (32, 128, 2), (32, 128, 4), (64, 64, 2), (64, 64, 4), (64, 64, 8), (64, 128, 4), (64, 128, 8),
           (64, 256, 8)],
    lengths=kernels.LENGTHS, flex=(4096,), tokens=kernels.SIZES["cuda"],
    step=speed.SHAPES["cuda"], matrix=8192, rounds=15, generation=dict(batch_size=1000),
    generalisation=dict(n_clauses=12, n_names=12, n_supervised=6, min_clauses=6, n_distractor=4, n_layer=12, n_embd=256,
                        n_head=8, batch_size=1000, eval_size=2000, dtype="bfloat16", compile=True))
TINY = dict(  # the same path on a CPU, for the tests
    tests=["-k", "by_hand", "tests/test_attention.py"],
    runs=[("bfloat16", 0)], dials=["--max_steps=2", "--n_embd=8", "--eval_size=4"],
    tiles=[(16, 16, 4)], lengths=[64], flex=(), tokens=(128, 16, torch.float32),
    step=dict(n_layer=1, n_embd=16, n_head=2, T=8, B=2, vocab_size=64), matrix=16, rounds=1, generation=dict(n_embd=8),
    generalisation=dict(max_steps=2, n_embd=8, batch_size=4, eval_size=4, eval_every=1))
MODELS = ("ours, vanilla", "torch.nn.TransformerEncoder", "ours, LEGO chained", "transformers.BertModel")


# ----------------------------------------------------------------------------------------------------------------------
# the stages: what each has found so far goes to `save`, again and again; `size` is FULL or TINY, `end` when time is up


def tests(device, size, end, save):
    """How many tests passed, failed and were skipped, and the last lines of a run that failed."""
    ended = subprocess.run([sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *size["tests"]],
                           cwd=runner.FOLDER.parent, capture_output=True, text=True, timeout=200)
    count = lambda what: int((re.search(rf"(\d+) {what}", ended.stdout) or [0, 0])[1])
    says = dict(says=ended.stdout[-2000:] + ended.stderr[-500:]) if ended.returncode else {}
    save({what: count(what) for what in ("passed", "failed", "skipped")} | says)


def job(device, size, end, save):
    """What figures/speed.py finds of the main job."""
    speed.job(size["runs"], device, size["dials"], save)


def use(tile, block, warps):
    """Sets the sizes of the kernels of association."""
    attention.TILE, attention.PART, attention.BLOCK, attention.WARPS = tile, 3 * tile // 4, block, warps


def association(device, size, end, save):
    """The milliseconds of the kernels for several sizes; then the numbers of figures/kernels.py."""
    n_tokens, C, dtype = size["tokens"]
    rows, T = [], max(length for length in size["lengths"] if length <= 4096)
    tokens, v = kernels.words(n_tokens // T, T, device), torch.randn(n_tokens // T, T, C, dtype=dtype, device=device)
    expected = attention.associate(v, attention.make_plan(tokens, implementation="segment"))
    if attention.triton is not None and (device.type == "cuda" or attention.INTERPRETED):
        for tile, block, warps in size["tiles"]:
            use(tile, block, warps)
            plan = attention.make_plan(tokens, implementation="triton")
            try:
                ms = kernels.median_ms(lambda: attention.associate(v, plan), device)
            except Exception:  # more than this GPU has room for
                continue
            torch.testing.assert_close(attention.associate(v, plan), expected, atol=2e-2, rtol=2e-2)
            rows.append(dict(tile=tile, block=block, warps=warps, T=T, ms=ms))
            save(dict(tiles=rows))
        best = min(rows, key=lambda row: row["ms"])
        use(best["tile"], best["block"], best["warps"])
    kernels.measure(device, size["lengths"], size["tokens"], lambda numbers: save(dict(tiles=rows) | numbers),
                    size["flex"])


def step(device, size, end, save):
    """Milliseconds of a training step of each model, FLOPs of ours, and what this machine can do at most."""
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    found = dict(shape=size["step"], dtype=str(dtype).removeprefix("torch."), ms={}, flops={},
                 peak_flops=speed.peak_flops(device, dtype, size["matrix"]))
    models = speed.models(size["step"])
    for name, model in ((name, models[name]) for name in MODELS if name in models):
        if name.startswith("ours"):
            found["flops"][name] = speed.flops_of(model.to(device), size["step"], device)
        run = speed.step_of(model, size["step"], device, dtype, compiled=device.type == "cuda")
        found["ms"][name] = 1e3 * speed.medians({"step": run}, device, size["rounds"])["step"]
        save(found)


def generation(device, size, end, save):
    """Milliseconds of drawing the sentences of a step, and of a whole step, for the default in large batches."""
    config = train.Config(**{**size["generation"], "device": device.type, "out_dir": "", "eval_size": 1})
    steps = range(config.n_layer)
    draw = lambda: [train.draw_sentences(config, config.batch_size // config.n_layer + 1, i, device) for i in steps]
    seconds = speed.medians({"draw": draw}, device, size["rounds"])["draw"] / len(steps)
    history = train.train(replace(config, max_steps=20 + size["rounds"], eval_every=10))
    i = history["step"].index(20)
    a_step = (history["seconds"][-1] - history["seconds"][i]) / (history["step"][-1] - history["step"][i])
    save(dict(draw_ms=1e3 * seconds, step_ms=1e3 * a_step, batch_size=config.batch_size))


def generalisation_of_gpu(device, size, end, save):
    """The accuracy of every variable, untied and tied, after as many steps as fit into the time, and how many."""
    rows = []
    for kind in generalisation.KINDS:
        config = generalisation.half_labelled(kind, 0, init_from="", device=device.type, **size["generalisation"])
        stop_by, seen = (time.perf_counter() + end) / 2 if kind == "untied" else end, []

        def look(model, config):
            test = train.draw_test(config, config.eval_size, train.make_generator(config, "gpu", device=device))
            seen.append(train.evaluate(model, test, config)[1])
            if time.perf_counter() > stop_by:
                raise TimeoutError
        with suppress(TimeoutError):
            train.train(config, look=look)
        rows.append(dict(kind=kind, n_layer=config.n_layer, steps=len(seen) * config.eval_every, accuracy=seen[-1]))
        save(rows)


STAGES = dict(tests=tests, job=job, association=association, step=step, generation=generation,
              generalisation=generalisation_of_gpu)


def measure(name, device, size, save):
    """Runs the stage of that name. `save` gets all that is known of it after each result."""
    start = time.perf_counter()
    about = dict(hardware=show.hardware(device), torch=str(torch.__version__),
                 triton=attention.triton and attention.triton.__version__)

    def keep(found):
        save(about | {name: found, f"seconds of {name}": time.perf_counter() - start})
    STAGES[name](device, size, start + SECONDS[name], keep)


def words(numbers):
    """Lines for README: what was found, beside what was hoped for."""
    lines = [f"{numbers.get('hardware')}, torch {numbers.get('torch')}, Triton {numbers.get('triton')}"]
    if numbers.get("tests"):
        lines.append(", ".join(f"{n} tests {what}" for what, n in numbers["tests"].items() if what != "says"))
    for row in numbers.get("job", []):
        if "lacks" in row:
            says = f"failed: {row['lacks']}"
        else:
            says = f"{row['command']:.1f} s, of them {row['training']:.1f} s of training; all variables at 99.9% " + (
                f"for good after {row['all']:.1f} s" if row["all"] else "never")
        lines.append(f"python train.py, {row['variant']}, seed {row['seed']}: {says}")
    found = numbers.get("association") or {}
    if found.get("tiles"):
        best = min(found["tiles"], key=lambda row: row["ms"])
        lines.append(f"association, T = {best['T']}: best with TILE = {best['tile']}, BLOCK = {best['block']}, "
                     f"WARPS = {best['warps']}")
    for T in sorted({row["T"] for row in found.get("rows", [])}):
        ms = {row["implementation"]: row for row in found["rows"] if row["T"] == T and row["both"]}
        lines.append(f"association, T = {T:,}, ms (forward, both passes): " + ", ".join(
            f"{name} {row['forward']:.2f} {row['both']:.2f}" for name, row in ms.items()))
        if "triton" in ms:
            share = found["copy_ms"] / ms["triton"]["forward"]
            lines[-1] += f"; triton forward at {100 * share:.0f}% of a copy's bandwidth (goal: 70%)"
        if "triton" in ms and "FlexAttention" in ms:
            ratio = ms["FlexAttention"]["both"] / ms["triton"]["both"]
            lines[-1] += f"; FlexAttention takes {ratio:.1f} times as long, both passes (goal: 5)"
    if numbers.get("step"):
        found = numbers["step"]
        for name, ms in found["ms"].items():
            share = found["flops"].get(name, 0) / (ms / 1e3) / found["peak_flops"]
            of_peak = f", {100 * share:.0f}% of the peak (goal: 45%)" * bool(share)
            lines.append(f"training step, {name}: {ms:.1f} ms{of_peak}")
        others = [ms for name, ms in found["ms"].items() if not name.startswith("ours")]
        if others and "ours, vanilla" in found["ms"]:
            ratio = min(others) / found["ms"]["ours, vanilla"]
            lines.append(f"training step: the fastest of the others takes {ratio:.2f} times ours, vanilla (goal: 1.3)")
    if numbers.get("generation"):
        found = numbers["generation"]
        share = found["draw_ms"] / found["step_ms"]
        lines.append(f"drawing the sentences, {found['batch_size']} a step: {100 * share:.1f}% of a step (goal: 2%)")
    lines += [f"{row['n_layer']} {row['kind']} layers, {row['steps']} steps: "
              + ", ".join(f"{100 * x:.0f}" for x in row["accuracy"]) for row in numbers.get("generalisation", [])]
    return lines


def main(arguments):
    for argument in arguments:
        if argument not in STAGES:
            raise ValueError(f"'{argument}': expected {', '.join(STAGES)}, or nothing for all of them")
    if not torch.cuda.is_available():
        raise ValueError("expected an NVIDIA GPU and a torch that is built for it: there is none here")
    kept = runner.saved(NAME)
    if kept.get("hardware") != show.hardware(torch.device("cuda")):
        kept = {}
    if len(arguments) == 1:
        measure(arguments[0], torch.device("cuda"), FULL, lambda found: runner.save(NAME, kept | found))
    for name in arguments or STAGES if len(arguments) != 1 else ():
        print(f"gpu: {name}", flush=True)  # each in a process of its own: an error on a GPU spoils all that comes after
        with suppress(subprocess.TimeoutExpired):
            subprocess.run([sys.executable, "-m", "figures.gpu", name], timeout=1.5 * SECONDS[name])
    print("\n".join(words(runner.saved(NAME))))


if __name__ == "__main__":
    lego.command_line(main)
