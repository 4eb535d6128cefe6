"""The tests run from the root, on one CPU, anywhere: `pytest`."""
import os
import random
import shutil
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))
import figures  # before Matplotlib, which a backend of another environment would stop
torch.set_num_threads(1)  # the models are tiny, and the other core is taken
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:  # in the background, under nohup: a child would ignore it, too
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True)
def seeded_and_on_the_cpu(monkeypatch):
    """Hides the GPU from `pick_device`: the tests that want one name it."""
    torch.manual_seed(0)
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda check_available=False: None)


@pytest.fixture
def run(monkeypatch, capsys):
    """run(*arguments) -> (exit code, stdout, stderr) of train.py, in this process."""
    import lego
    import train

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["train.py", *map(str, arguments)])
        code = 0
        try:
            lego.command_line(train.main)
        except SystemExit as stop:
            code = stop.code
        return code, *capsys.readouterr()
    return run


@pytest.fixture
def mutate():
    """mutate(text) -> the text with some characters deleted, doubled, swapped or put in; the same every time."""
    r = random.Random(0)
    odd = "=;+-19 abz'\"{}%\\[]().\0\n\r\t\x1b\u2028\u2003\u0301\ud800\udcff１٣²＝；−аａß😀"

    def mutate(text):
        text = list(text)
        for _ in range(r.choice([1, 1, 2, 8])):
            i, j = (r.randrange(len(text) + 1) for _ in range(2))
            kind = r.choice(["delete", "double", "swap", "odd", "any"])
            if kind == "odd" or kind == "any":
                text.insert(i, r.choice(odd) if kind == "odd" else chr(r.randrange(0x110000)))
            elif max(i, j) < len(text):
                text[i], text[j] = text[j], text[i]
                text[i : i + 1] = text[i : i + 1] * {"delete": 0, "double": 2, "swap": 1}[kind]
        return "".join(text)
    return mutate


TOGETHER = """  # of two processes: two runs, the first of which stops when the second process gets a signal
import signal, sys
import torch.distributed as dist
root, folder = sys.argv[1:]
sys.path[:0] = [root, root + "/tests"]
import train
from test_train import TWICE, at_step, tiny

class Patch:
    setattr = staticmethod(setattr)

beliefs, varied = (tiny(**dials, out_dir=f"{folder}/{name}") for name, dials in TWICE.items())
if train.RANK == 1:
    at_step(Patch, 3, lambda: signal.raise_signal(signal.SIGTERM))
try:
    train.train(beliefs)
except KeyboardInterrupt as stop:
    print(stop.args[0])
dist.barrier()
train.train(beliefs, resume=True)
train.train(varied)
dist.destroy_process_group()
train.os._exit(0)
"""


BARE = """  # as python train.py, without what a bare machine lacks; then once more, with a dial that is wrong
import os, runpy, sys
os.environ.update(MPLBACKEND="module://matplotlib_inline.backend_inline", RANK="3", WORLD_SIZE="")  # left by others
for name in ("DISPLAY", "WAYLAND_DISPLAY"):
    os.environ.pop(name, 0)
os.environ["CUDA_VISIBLE_DEVICES"] = ""
sys.path.insert(0, "")
runpy.run_path("train.py", None, "__main__")
sys.argv = ["train.py", "--lr=-1"]
runpy.run_path("train.py", None, "__main__")
"""


PIPE = """  # as python lego.py | head
import os, runpy, sys
reader, writer = os.pipe()
os.close(reader)
os.dup2(writer, 1)
sys.argv = ["lego.py", "--n_clauses=1000"]
runpy.run_path("lego.py", None, "__main__")
"""


def program(*command, cwd=ROOT, stop_at=None, **more):
    """Runs a program to its end, or sends it a signal at a line: (exit code, stdout, stderr)."""
    process = subprocess.Popen([sys.executable, *map(str, command)], cwd=cwd, stdout=subprocess.PIPE, text=True,
                               stderr=subprocess.PIPE, env={**os.environ, "OMP_NUM_THREADS": "1"}, **more)
    for line in process.stdout if stop_at else ():
        if line.startswith(stop_at[0]):
            process.send_signal(stop_at[1])
            break
    try:
        out, err = process.communicate(timeout=120)
    finally:
        process.kill()
    return process.returncode, out, err


@pytest.fixture(scope="session", autouse=True)
def programs(request, tmp_path_factory):
    """
    {name: (folder, future of what `program` returns)} of the real programs that test_train.py looks at. They run on the
    other core while the tests before go on.
    """
    if not any(item.path.name == "test_train.py" for item in request.session.items):
        yield {}
        return
    from test_train import TINY, as_arguments

    folder = lambda name: tmp_path_factory.mktemp(name)
    with ThreadPoolExecutor(1) as pool:
        found = {}
        for signame in ("SIGKILL", "SIGINT"):  # in runs that would not end by themselves
            out = folder(signame)
            found[signame] = out, pool.submit(program, "train.py", *as_arguments(
                **{**TINY, "max_steps": 10**6, "out_dir": out}), stop_at=("step    20", getattr(signal, signame)))
        out = folder("torchrun")
        (script := out / "together.py").write_text(TOGETHER)
        found["torchrun"] = out, pool.submit(
            program, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", script, ROOT, out)
        home = folder("bare") / "my own folder"
        shutil.copytree(ROOT / "figures", home / "figures", ignore=shutil.ignore_patterns("*.png", "*.json"))
        for name in ("lego.py", "attention.py", "model.py", "train.py"):
            shutil.copy(ROOT / name, home)
        (home / "triton.py").write_text("raise ImportError('there is no Triton')")
        one_core = lambda: os.sched_setaffinity(0, [min(os.sched_getaffinity(0))])
        found["bare"] = home, pool.submit(
            program, "-c", BARE, *as_arguments(**{**TINY, "max_steps": 5, "out_dir": "my out"}), cwd=home,
            preexec_fn=one_core if hasattr(os, "sched_setaffinity") else None)
        found["pipe"] = None, pool.submit(program, "-c", PIPE)
        yield found
