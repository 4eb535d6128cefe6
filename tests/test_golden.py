"""
Golden numbers: 40 steps of eight kinds of runs come to the losses and the weights of golden.json.

A change of form leaves them as they are, to the last bit on the machine that made them and within 1e-4 elsewhere. A
change that means to change numbers makes them anew, in a commit that says so:

    python tests/test_golden.py
"""
import hashlib
import json
import platform
import re
import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent.parent))
import train
from figures import mimic, varied, words

PATH = Path(__file__).with_name("golden.json")
SMALL = dict(max_steps=40, eval_every=10, eval_size=10, n_embd=32, batch_size=16, muon_lr=0.0, device="cpu", out_dir="")
LEGO = {**SMALL, "n_clauses": 6}
AVERAGED = {**LEGO, "lr": 4e-3, "ema": 0.95}
VANILLA = {**AVERAGED, "attention": "vanilla", "tied": False, "n_layer": 3, "lr": 5e-4, "dropout": 0.1}
TEXT = "\n\n".join(f"the {a} {b} of {c} is in the {b} of the {a}" for a in "sign group chain clause".split()
                   for b in "root value name link".split() for c in "letters words".split())
CASES = {
    "default": {**LEGO, "muon_lr": 0.02, "n_embd": 16},
    "vanilla": VANILLA,
    "untied": {**AVERAGED, "tied": False, "n_layer": 4, "branch": 1.0},
    "hybrid": {**AVERAGED, "attention": "hybrid", "n_layer": 4},
    "d3": {**LEGO, "task": "d3"},
    "words": {**VANILLA, "n_tokens": 12},
    "mimicking": VANILLA,
    "varied": {**AVERAGED, "n_layer": 6, "min_clauses": 3, "n_distractor": 2, "drop_clause": 0.5},
}


def make(name, folder):
    """The numbers of a case."""
    dials, hooks, kind, make_model = dict(CASES[name]), {}, train.Config, train.make_model
    if name == "words":
        (corpus := Path(folder) / "text.txt").write_text(TEXT)
        dials["corpus"] = str(corpus)
        kind, make_model, hooks = words.Words, words.make_model, dict(draw=words.draw, evaluate=words.evaluate)
    elif name == "mimicking":
        hooks = dict(loss_fn=mimic.mimic_loss, evaluate=mimic.evaluate)
    elif name in ("untied", "varied"):
        kind, hooks = varied.Varied, dict(draw=varied.draw)
    config = kind(**dials)
    model = make_model(config)
    history = train.train(config, model, **hooks)
    weights = torch.cat([p.detach().flatten() for p in model.parameters()])
    return dict(loss=history["loss"], test_loss=history["test_loss"], accuracy=history["accuracy"],
                sum=weights.double().abs().sum().item(), sha256=hashlib.sha256(weights.numpy().tobytes()).hexdigest())


def machine():
    """What rounding may depend on: the processor in all its features, and the version of torch."""
    cpuinfo = Path("/proc/cpuinfo")
    about = re.findall(r"^(?:model|cpu family|stepping|flags|cache size).*", cpuinfo.read_text().split("\n\n")[0],
                       re.MULTILINE) if cpuinfo.exists() else [platform.processor()]
    return hashlib.sha256("\n".join([torch.__version__, *about]).encode()).hexdigest()[:16]


@pytest.mark.parametrize("name", CASES)
def test_numbers_are_the_golden_ones(name, tmp_path):
    golden = json.loads(PATH.read_text())
    expected, found = golden[name], make(name, tmp_path)
    if golden["machine"] == machine():
        assert found == expected
    for column in ("loss", "test_loss"):
        torch.testing.assert_close(found[column][1:], expected[column][1:], atol=1e-4, rtol=1e-4)
    assert found["sum"] == pytest.approx(expected["sum"], rel=1e-4)


if __name__ == "__main__":
    import tempfile

    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        numbers = dict(machine=machine(), torch=torch.__version__) | {name: make(name, folder) for name in CASES}
    PATH.write_text(json.dumps(numbers, indent=1))
