"""The tests run from the root, on one CPU, anywhere: `pytest`."""
import os
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))
os.environ.pop("MPLBACKEND", None)  # of a notebook that has started this
torch.set_num_threads(1)  # the models are tiny, and the other core is taken


@pytest.fixture(autouse=True)
def seeded_and_on_the_cpu(monkeypatch):
    """Hides the GPU from `pick_device`: the tests that want one name it."""
    torch.manual_seed(0)
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda **_: None)


@pytest.fixture(scope="session")
def proved(tmp_path_factory):
    """The folder and the history of a run of the default that ends with a proof."""
    import train

    folder = tmp_path_factory.mktemp("proved")
    small = dict(n_clauses=6, eval_every=10, eval_size=20)
    return folder, train.train(train.Config(**small, device="cpu", out_dir=str(folder)))


BARE = """  # the four files as scripts, then train.py as torchrun starts it, but for a fork
import os, runpy, sys
from torch.distributed.launcher.api import LaunchConfig, elastic_launch
sys.path.insert(0, "")
import lego, attention, model, train
print("imported:", *{"figures", "matplotlib", "triton"} & {*sys.modules}, os.environ["MPLBACKEND"])

def script(name, *arguments):
    sys.argv = [name, *arguments]
    runpy.run_path(name, None, "__main__")

dials = "--n_clauses=4 --n_embd=16 --max_steps=10 --eval_size=20 --device=cpu".split()
script("train.py", *dials, "--out_dir=my out")
script("model.py", "b=-a; a=+1; c=+d", "my out")
print("two processes", flush=True)
two = LaunchConfig(1, 1, 2, rdzv_backend="c10d", rdzv_endpoint="localhost:0", start_method="fork",
                   monitor_interval=0.1)
elastic_launch(two, script)("train.py", *dials, "--out_dir=two")
"""


@pytest.fixture(scope="session", autouse=True)
def bare(request, tmp_path_factory):
    """
    A folder with the four files alone, and the future of the process that runs BARE there, without
    GPU, display and Triton, with the variables of a notebook and of another launcher. It runs
    while the tests before go on.
    """
    if not any(item.path.name == "test_train.py" for item in request.session.items):
        yield None
        return
    home = tmp_path_factory.mktemp("bare") / "my own folder"
    home.mkdir()
    for name in ("lego.py", "attention.py", "model.py", "train.py"):
        shutil.copy(ROOT / name, home)
    (home / "triton.py").write_text("raise ImportError('there is no Triton')")
    hidden = ("DISPLAY", "WAYLAND_DISPLAY", "PYTHONPATH")
    environ = {name: x for name, x in os.environ.items() if name not in hidden}
    environ |= dict(CUDA_VISIBLE_DEVICES="", OMP_NUM_THREADS="1", RANK="3", WORLD_SIZE="",
                    MPLBACKEND="module://matplotlib_inline.backend_inline")
    with ThreadPoolExecutor(1) as pool:
        yield home, pool.submit(subprocess.run, [sys.executable, "-c", BARE], cwd=home, env=environ,
                                capture_output=True, text=True, timeout=120)
