"""train.py: short runs learn and repeat, files are whole, and everything typed wrong is one line and exit code 2."""
import itertools
import json
import math
import os
import pickle
import random
import re
import shutil
import signal
import sys
import zipfile
from dataclasses import fields, replace
from pathlib import Path

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import lego
import train
from figures import extrapolation, show
from model import loss_of

TINY = dict(n_clauses=4, n_supervised=2, n_layer=3, n_embd=16, batch_size=32, max_steps=20, schedule="constant",
            eval_every=10, eval_size=20, device="cpu", out_dir="")
SHORT = dict(max_steps=6, eval_every=3, eval_size=4)
VANILLA = dict(attention="vanilla", tied=False, n_layer=2)
VARIED = dict(carry="none", branch=0.0, min_clauses=3, n_distractor=2, drop_clause=0.5)
TWICE = dict(beliefs=dict(max_steps=14, muon_lr=0.0), varied=dict(VARIED, max_steps=10))  # two processes train it, too
STILL = dict(lr=1e-30, muon_lr=0.0, weight_decay=0.0)  # the weights stay what they are


def tiny(**dials):
    return train.Config(**{**TINY, **dials})


def as_arguments(**dials):
    return [f"--{dial}={value}" for dial, value in dials.items()]


def numbers(history):
    """All of a history but the times."""
    return [history[key] for key in ("step", "loss", "test_loss", "accuracy", "flops", "tokens")]


def assert_same_end(folder, other):
    """Two runs in two folders came to the same history, weights, average and optimizers, bit for bit."""
    assert numbers(json.loads((folder / "history.json").read_text())) == numbers(
        json.loads((other / "history.json").read_text()))
    ends = [torch.load(f / "checkpoint.pt") for f in (folder, other)]
    for key in ("model", "last", "optimizers", "carried"):
        torch.testing.assert_close(*(end[key] for end in ends), rtol=0, atol=0)


def at_step(monkeypatch, k, action):
    """Calls `action` while the k-th step is made, counted from 1; what it returns multiplies the loss of that step."""
    forward, multiplier, made = train.Objective.forward, train.lr_multiplier, {}

    def look(step, config):  # each step asks for its learning rate before anything else
        if step == k - 1 and k not in made:
            made[k] = action() or 1
        made["factor"] = made.get(k, 1) if step == k - 1 else 1
        return multiplier(step, config)

    def patched(self, *arguments):
        loss, *others = forward(self, *arguments)
        return loss * made["factor"], *others
    monkeypatch.setattr(train, "lr_multiplier", look)
    monkeypatch.setattr(train.Objective, "forward", patched)


def steps_of(monkeypatch, *arguments):
    """Trains, and returns the history and, of every step, (batch, loop, loss, labels, what is handed on)."""
    forward, multiplier, steps, now = train.Objective.forward, train.lr_multiplier, {}, []

    def look(step, config):
        now[:] = [step]
        return multiplier(step, config)

    def patched(self, batch, carried, loop):
        loss, n, carried = forward(self, batch, carried, loop)
        steps[now[0]] = batch, loop, loss.detach(), n, carried
        return loss, n, carried
    monkeypatch.setattr(train, "lr_multiplier", look)
    monkeypatch.setattr(train.Objective, "forward", patched)
    return train.train(*arguments), [*steps.values()]


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory):
    """The folder of a run of 20 steps that nothing has stopped."""
    folder = tmp_path_factory.mktemp("unbroken")
    train.train(tiny(out_dir=str(folder)))
    return folder


# ---- training


@pytest.mark.parametrize("dials", [
    {}, dict(task="d3", attention="hybrid"), dict(carry="state"), dict(chained=False, schedule="cosine"),
    dict(VANILLA, norm_first=False, muon_lr=0.0, lr=4e-3), dict(VARIED, seed=1), dict(dtype="bfloat16"),
], ids=str)
def test_a_few_steps_lower_the_loss(dials):
    history = train.train(tiny(**dials, max_steps=12, eval_every=6))
    assert history["step"] == [0, 6, 12] and history["loss"][0] is None
    assert history["loss"][-1] < history["loss"][1]
    assert all(len(row) == 4 and all(0 <= a <= 1 for a in row) for row in history["accuracy"])
    assert history["flops"][0] == 0 and history["flops"] == sorted(history["flops"])
    json.dumps(history)


def test_supervised_variables_are_learned():
    """Two variables of three, far above chance on fresh sentences: the labels belong to the sentences, as sampled."""
    history = train.train(tiny(n_clauses=3, n_embd=32, lr=1e-2, max_steps=80, eval_every=80, eval_size=500))
    assert min(history["accuracy"][-1][:2]) > 0.9


def test_same_seed_same_history_and_another_seed_another():
    first, again, other = (train.train(tiny(**SHORT, seed=seed)) for seed in (3, 3, 4))
    assert numbers(first) == numbers(again) and first["loss"] != other["loss"]


@pytest.mark.parametrize("dials", [
    dict(dropout=0.1), dict(VANILLA, n_train=100, dropout=0.1), dict(VANILLA, task="mimic"),
    dict(VARIED, muon_lr=0.0, ema=0.0, n_supervised=4, seed=3),
], ids=str)
def test_resumed_run_is_the_unbroken_run(run, tmp_path, monkeypatch, dials):
    """Weights, average, optimizers, sentences, epochs and dropout all go on: one missing, and numbers differ."""
    for slow in ("plot", "examples"):
        monkeypatch.setattr(show, slow, lambda *arguments: None)
    train.train(tiny(**{**SHORT, **dials}, out_dir=str(tmp_path / "whole")))
    train.train(tiny(**{**SHORT, **dials, "max_steps": 3}, out_dir=str(tmp_path / "broken")))
    assert run(f"--out_dir={tmp_path / 'broken'}", "--resume", "--max_steps=6")[0] == 0
    assert_same_end(tmp_path / "whole", tmp_path / "broken")


@pytest.fixture(scope="module")
def short(request, tmp_path_factory):
    """The dials of a short run, and the folder of one that nothing has stopped."""
    dials = dict(SHORT, carry=getattr(request, "param", "beliefs"))
    folder = tmp_path_factory.mktemp("short")
    train.train(tiny(**dials, out_dir=str(folder)))
    return dials, folder


@pytest.mark.parametrize("short, k", [*itertools.product(["beliefs", "state"], range(1, 6)), ("none", 3)],
                         indirect=["short"])
def test_run_told_to_stop_at_any_step_goes_on_as_if_it_had_not_been(short, tmp_path, monkeypatch, k):
    """The signal comes while step k is made, which is made to its end and saved, with what the loops hand on."""
    (dials, whole), number = short, (signal.SIGINT, signal.SIGTERM)[k % 2]
    handler = signal.getsignal(number)
    with monkeypatch.context() as patch:
        at_step(patch, k, lambda: signal.raise_signal(number))
        with pytest.raises(KeyboardInterrupt) as stop:
            train.train(tiny(**dials, out_dir=str(tmp_path)))
    assert stop.value.args == (f"stopped after step {k}; --resume continues from there", number)
    assert torch.load(tmp_path / "checkpoint.pt")["progress"][0] == k
    assert signal.getsignal(number) == handler  # the usual one is back
    train.train(tiny(**dials, out_dir=str(tmp_path)), resume=True)
    assert_same_end(whole, tmp_path)


def test_signal_that_is_ignored_stays_ignored(monkeypatch):
    """As under nohup: what is meant for another program does not stop the run."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    at_step(monkeypatch, 1, lambda: signal.raise_signal(signal.SIGINT))
    try:
        assert train.train(tiny(max_steps=2))["step"][-1] == 2
        assert signal.getsignal(signal.SIGINT) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)


def test_stop_of_a_run_without_files_promises_nothing(monkeypatch):
    at_step(monkeypatch, 1, lambda: signal.raise_signal(signal.SIGINT))
    with pytest.raises(KeyboardInterrupt) as stop:
        train.train(tiny())
    assert stop.value.args[0] == "stopped after step 1"


@pytest.mark.parametrize("what, k, expected", [
    ("loss", 2, "the loss at step 1 is not finite, expected finite numbers: try a smaller lr=0.004 or"),
    ("weight", 3, "a weight after step 3 is not finite, expected"),  # no loss has shown it yet
    ("weight, and it is told to stop", 1, "a weight after step 1 is not finite, expected"),
])
def test_what_is_not_finite_stops_the_run_and_is_never_saved(tmp_path, monkeypatch, what, k, expected):
    config = tiny(**SHORT, out_dir=str(tmp_path))
    train.train(config)
    before = (tmp_path / "checkpoint.pt").read_bytes()

    def break_weight():
        def burst(parameters, norm):
            next(iter(parameters)).grad.fill_(math.inf)
        monkeypatch.setattr(torch.nn.utils, "clip_grad_norm_", burst)
        if "stop" in what:
            signal.raise_signal(signal.SIGTERM)

    at_step(monkeypatch, k, (lambda: math.inf) if what == "loss" else break_weight)
    with pytest.raises(ValueError, match=expected):
        train.train(config)
    assert (tmp_path / "checkpoint.pt").read_bytes() == before


@pytest.mark.parametrize("k, reached", [(1, 0.0), (1, 1.0), (2, 0.0), (2, 0.5), (2, 1.0)])
def test_full_disk_is_one_line_and_the_checkpoint_before_goes_on(short, tmp_path, monkeypatch, k, reached):
    """Save k of 2 fails, with a share of the file written."""
    (dials, whole), torch_save, calls = short, torch.save, []

    def full(checkpoint, path):
        calls.append(path)
        torch_save(checkpoint, path)
        if len(calls) == k:
            path.write_bytes(path.read_bytes()[: int(reached * path.stat().st_size)])
            raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(torch, "save", full)
        with pytest.raises(ValueError, match="checkpoint.pt: expected a file that can be written, .*No space left"):
            train.train(tiny(**dials, out_dir=str(tmp_path)))
    assert (tmp_path / "checkpoint.pt").exists() == (k > 1) and not list(tmp_path.glob("*.tmp"))
    train.train(tiny(**dials, out_dir=str(tmp_path)), resume=k > 1)
    assert_same_end(whole, tmp_path)


def test_file_is_the_old_one_until_the_new_one_is_whole(tmp_path):
    def half(path):
        path.write_text("ne")
        raise KeyboardInterrupt

    path = tmp_path / "file"
    lego.write(path, lambda beside: beside.write_text("old"))
    with pytest.raises(KeyboardInterrupt):
        lego.write(path, half)
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]


def test_long_run_does_not_grow(tmp_path):
    """Memory in use after 40 steps and after 160, with an evaluation and a save every 20."""
    statm, sizes = Path("/proc/self/statm"), {}
    if not statm.exists():
        pytest.skip("needs /proc to see its own size")
    config = tiny(n_clauses=2, n_supervised=1, n_layer=2, n_embd=8, batch_size=4, eval_size=4, eval_every=20,
                  max_steps=160, stop_at=1.0, out_dir=str(tmp_path))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train.show, "report", lambda history: sizes.update(
            {history["step"][-1]: int(statm.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")}) or "")
        train.train(config)
    assert sizes[160] - sizes[40] < 2e6, sizes


@pytest.mark.parametrize("carry", ["beliefs", "state"])
def test_one_loop_a_step_is_all_loops_from_the_start(monkeypatch, carry):
    """
    With weights that stand still: row b makes loop (step + b) mod n_layer + 1, or step + 1 if it is not yet that old;
    after loop k a sentence hands on what k loops from nothing hand on. After loop n_layer a new one stands there.
    """
    config = tiny(**STILL, carry=carry, n_layer=4, batch_size=6, max_steps=10, eval_every=10, eval_size=1)
    model = train.make_model(config)
    _, steps = steps_of(monkeypatch, config, model)
    for step, (batch, loop, _, _, handed_on) in enumerate(steps):
        assert loop.tolist() == [min((step + b) % 4, step) + 1 for b in range(6)]
        for b in range(6):
            if step:
                assert torch.equal(batch.tokens[b], steps[step - 1][0].tokens[b]) == (loop[b] > 1)
            *_, (x, _) = model.layers(batch.tokens[b : b + 1], int(loop[b]))
            torch.testing.assert_close(handed_on[b : b + 1], model.hand_on(x))
    sentences = {tuple(tokens.tolist()) for batch, *_ in steps for tokens in batch.tokens}
    assert len(sentences) == 6 + 13  # so many were replaced


def test_labels_of_a_step_stay_with_their_sentences(monkeypatch):
    """Also for sentences that have stood beside new ones: labels at variables and arguments are the solver's."""
    _, steps = steps_of(monkeypatch, tiny(max_steps=5, batch_size=8))
    task = train.make_task(tiny())
    for tokens, positions, values, _ in (row for batch, *_ in steps for row in zip(*batch)):
        solution = lego.solve(lego.decode(tokens, task), task) | {task.root_symbol: task.values[0]}
        assert [solution[task.vocab[tokens[p]]] for p in positions] == [task.values[v] for v in values]
        assert len(values) == 2 * 2 and (positions[2:] == positions[:2] + 3).all()


def test_training_sentences_are_of_the_kinds_that_the_dials_ask_for():
    """Every length, every split into chain and distractor, whole or with a clause missing, in their shares."""
    config = tiny(**{**VARIED, "min_clauses": 4, "n_clauses": 6, "n_supervised": 6, "drop_clause": 0.25})
    task, seen, n_batches = train.make_task(config), [], 800
    for step in range(n_batches):
        batch = train.draw_sentences(config, 2, step, "cpu")
        n, dropped = batch.values.size(1), bool((batch.values == lego.IGNORE).any())
        assert all(len(lego.solve(lego.decode(ids, task), task)) == batch.tokens.size(1) // 5 for ids in batch.tokens)
        seen.append((batch.tokens.size(1) // 5 + dropped, n, dropped))  # clauses, chain, a clause is missing
    kinds = {(m, m - k) for m in (4, 5, 6) for k in (0, 1, 2)}
    assert {kind[:2] for kind in seen} == kinds
    for m, n in kinds:
        assert sum(kind[:2] == (m, n) for kind in seen) == pytest.approx(n_batches / 9, rel=0.4)
    assert sum(dropped for _, _, dropped in seen) == pytest.approx(n_batches / 4, rel=0.2)


def test_training_sentences_branch_each_by_a_share_of_its_own():
    """From chains to any graph; branch=0 leaves chains alone, and what is tested is always a chain."""
    depths = lambda branch: train.draw_sentences(tiny(branch=branch, n_supervised=4), 2000, 0, "cpu").depths[:, :4]
    chain = torch.arange(1, 5)
    assert (depths(0.0) == chain).all()
    share = lambda branch: (depths(branch) == chain).all(1).float().mean().item()
    assert 0.4 < share(1.0) < 0.7 < share(0.3) < 0.95 and (depths(1.0)[:, -1] == 1).any()
    assert (train.draw_test(tiny(), 50, torch.Generator()).depths == chain).all()


def test_sentences_of_a_step_are_a_function_of_the_seed_and_the_step():
    draw = lambda seed, step: str(train.draw_sentences(tiny(seed=seed), 4, step, "cpu").tokens.tolist())
    assert draw(0, 3) == draw(0, 3) and len({draw(seed, step) for seed in (0, 1) for step in range(5)}) == 10


def test_fixed_training_set_repeats_its_batches_every_epoch(monkeypatch):
    """Three batches an epoch; four sentences are left over."""
    _, steps = steps_of(monkeypatch, tiny(**VANILLA, n_train=100, max_steps=7))
    batches = [str(batch.tokens.tolist()) for batch, *_ in steps]
    assert batches[:3] == batches[3:6] and batches[6] == batches[0] and len(set(batches)) == 3


def test_fixed_training_set_is_repeated_with_a_carry_too():
    """Two batches of eight, a few sentences of them at each step, after a first batch of its own."""
    config, rows = tiny(batch_size=8, n_train=20), []
    assert config.carry == "beliefs"
    for step in range(1, 6 * config.n_layer):
        loop = (step + torch.arange(8)) % config.n_layer
        if n_new := int((loop == 0).sum()):
            rows += map(str, train.draw_sentences(config, n_new, step, "cpu").tokens.tolist())
    assert len(set(rows)) == 16 and rows[:16] == rows[16:32]


def test_batches_without_a_label_do_not_pull_the_mean_loss_down(monkeypatch):
    """What is logged is the mean over labels, of which a batch without its first clause has none."""
    dials = dict(carry="none", branch=0.0, n_clauses=2, n_supervised=2, batch_size=1, eval_size=1, **STILL)
    config = tiny(**dials, drop_clause=1.0, max_steps=12, eval_every=6)
    history, steps = steps_of(monkeypatch, config, model := train.make_model(config))
    numbers_of_labels = [int(n) for _, _, _, n, _ in steps]
    assert set(numbers_of_labels) == {0, 1}
    for i in (0, 1):
        part = [loss_of(model, batch)[0].item() for batch, *_ in steps[6 * i : 6 * i + 6]]
        expected = sum(part) / sum(numbers_of_labels[6 * i : 6 * i + 6])
        assert history["loss"][1 + i] == pytest.approx(expected, rel=1e-4) and expected > 0.3


def test_dropout_is_for_training_only():
    """It changes the loss, is not in what is evaluated, and is off again in the model that comes back."""
    dials = dict(attention="vanilla", max_steps=1, eval_every=1, ema=0.0)
    with_it, without = train.train(tiny(dropout=0.5, **dials)), train.train(tiny(**dials))
    assert with_it["loss"] != without["loss"] and with_it["accuracy"][0] == without["accuracy"][0]
    model, tokens = train.make_model(tiny(dropout=0.5, **dials)), lego.sample(lego.make_task("sign"), 8, 4).tokens
    for _ in range(2):
        assert torch.equal(model(tokens), model(tokens))
        train.train(tiny(dropout=0.5, **dials), model)


@pytest.mark.parametrize("dials, n_loops", [
    (dict(VANILLA), 2), (dict(carry="none"), 3), (dict(carry="state"), 1), (dict(carry="beliefs"), 1),
    (dict(chained=False, association_share=0.0), 3), (dict(VANILLA, n_clauses=40), 2)], ids=str)
def test_flops_are_those_of_the_steps_made(dials, n_loops):
    """
    Within a tenth of the products by hand, three times a forward pass: what vanilla and LEGO attention are compared by.
    With a carry a step makes one loop.
    """
    config = tiny(**dict(n_embd=64, batch_size=8, max_steps=2, eval_size=1) | dials)
    T, C = 5 * config.n_clauses, 64
    if config.attention == "vanilla":
        attention = 4 * 2 * T * C * C + 2 * 2 * T * T * C  # query, key, value, output; scores, averages
    else:
        far = config.association_share * C
        attention = 2 * 2 * T * C * C + 2 * T * T * far + 2 * T * 7 * (C if config.chained else C - far)
    by_hand = 2 * 8 * 3 * n_loops * (attention + 2 * 2 * T * C * 4 * C)
    history = train.train(config)
    assert history["flops"][-1] == pytest.approx(by_hand, rel=0.1) and history["tokens"][-1] == 2 * 8 * T


def test_run_ends_where_all_variables_stand():
    """At 99.9% over five evaluations, and not before. A chain of one clause is there soon."""
    easy = dict(n_clauses=1, n_supervised=1, lr=1e-2, muon_lr=4e-2, eval_every=5)
    history = train.train(tiny(**easy, max_steps=300, stop_at=0.999))
    means = [sum(row[0] for row in history["accuracy"][max(0, i - 4) : i + 1]) / 5 for i in range(len(history["step"]))]
    assert history["step"][-1] < 300 and means[-1] >= 0.999 and max(means[:-1]) < 0.999
    longer = history["step"][-1] + 5
    assert train.train(tiny(**easy, max_steps=longer))["step"][-1] == longer


def test_given_model_is_trained_in_place_and_is_what_was_evaluated():
    config = tiny()
    model = train.make_model(config)
    before = model.head.weight.clone()
    history = train.train(config, model)
    assert not torch.equal(before, model.head.weight)
    test = train.draw_test(config, 20, train.make_generator(config, "test", 20))
    loss, accuracy = train.evaluate(model, test, config)
    assert accuracy == history["accuracy"][-1] and loss == history["test_loss"][-1]


def test_purposes_steps_and_seeds_draw_other_sentences():
    task, drawn = lego.make_task("sign"), set()
    for seed, step, purpose in itertools.product((0, 1), (0, 1, 10), ("sentences", "test", "examples")):
        drawn.add(str(lego.sample(task, 2, 26, train.make_generator(tiny(seed=seed), purpose, step)).tokens.tolist()))
    assert len(drawn) == 2 * 3 * 3


def test_accuracy_is_counted_per_variable_in_chain_order():
    """A stand-in model that knows the first variable and says +1 to every other."""
    task = lego.make_task("sign")
    batch = lego.sample(task, 3000, 3, torch.Generator().manual_seed(0))

    class Model(torch.nn.Module):
        config = tiny()

        def layers(self, tokens, n_loops):
            assert n_loops == 4 + 4
            is_root_clause = (tokens == task.vocab.index("1")).roll(-3, 1)  # true at the variable of the root clause
            minus = is_root_clause & (tokens.roll(-2, 1) == task.first_operation + 1)
            yield torch.stack((~minus, minus), -1).float(), None

        def to_logits(self, x):
            return x

    loss, (first, *others) = train.evaluate(Model(), batch, tiny())
    assert first == 1 and all(0.45 < a < 0.55 for a in others)
    expected = math.log(1 + math.exp(-1)) + (3 - sum(others) - 1) / 3  # a wrong answer costs one nat more
    assert loss == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("argument", [
    "n_layer=3", "n_supervised=12", "n_clauses=4", "n_clauses=30", "attention=vanilla", "attention=hybrid",
    "tied=False", "chained=False", "carry=state", "carry=none", "task=s3", "positions=learned", "min_clauses=6",
    "n_distractor=2", "drop_clause=0.5", "n_train=16",
])
def test_any_dial_alone_makes_a_run(monkeypatch, argument):
    """The dials that follow it are put right; two steps, small."""
    small = ["--n_embd=8", "--batch_size=8", "--eval_size=4", "--max_steps=2", "--device=cpu", "--out_dir="]
    history, steps = steps_of(monkeypatch, config_of(f"--{argument}", *small))
    assert len(steps) == 2 and all(loss.isfinite() and n > 0 for _, _, loss, n, _ in steps)
    assert math.isfinite(history["test_loss"][-1])


def test_dials_that_follow_others():
    """What each of them is when nothing is said, and when what it follows is."""
    dials = lambda names, **more: [getattr(train.Config(**more), name) for name in names.split()]
    assert dials("n_supervised n_layer n_names positions carry lr muon_lr") == [6, 9, 26, "none", "beliefs", 4e-3, 0.04]
    assert dials("n_supervised n_layer n_names", n_clauses=30) == [15, 18, 30]
    assert dials("n_supervised n_layer", n_clauses=1) == [1, 4]
    assert dials("n_supervised n_layer", n_supervised=12) == [12, 15]
    assert dials("positions carry lr muon_lr", attention="vanilla") == ["learned", "none", 5e-4, 5e-3]
    assert dials("lr muon_lr", lr=1e-3) == [1e-3, 1e-2] and dials("lr muon_lr", muon_lr=0.0) == [4e-3, 0]
    for more in (dict(tied=False), dict(chained=False), dict(task="words"), dict(min_clauses=3),
                 dict(n_distractor=7), dict(drop_clause=0.5, branch=0.0)):
        assert dials("carry", **more) == ["none"]
    assert dials("carry", n_distractor=6) == ["beliefs"]
    assert dials("carry", chained=False, carry="beliefs") == ["beliefs"]


def test_every_parameter_has_one_optimizer():
    for dials in ({}, dict(muon_lr=0.0), dict(attention="hybrid", positions="learned")):
        config = tiny(**dials)
        model = train.make_model(config)
        optimizers = train.make_optimizers(model, config)
        held = [id(p) for o in optimizers for group in o.param_groups for p in group["params"]]
        assert sorted(held) == sorted(id(p) for p in model.parameters())
        assert len(optimizers) == (2 if config.muon_lr else 1)


def test_learning_rate_follows_its_schedule():
    multiplier = lambda step, schedule: train.lr_multiplier(step, tiny(warmup_steps=4, max_steps=24, schedule=schedule))
    assert [multiplier(step, "linear") for step in (0, 3, 4, 14, 24)] == [0.25, 1, 1, 0.5, 0]
    assert [multiplier(step, "constant") for step in (0, 3, 4, 14, 24)] == [0.25, 1, 1, 1, 1]
    assert [round(multiplier(step, "cosine"), 6) for step in (4, 14, 24)] == [1, 0.5, 0]


# ---- the command line, when all is well


def test_run_writes_plot_history_and_checkpoint_and_shows_sentences(run, tmp_path, unbroken):
    code, out, err = run(*as_arguments(**{**TINY, "out_dir": tmp_path}))
    assert code == 0
    assert_same_end(tmp_path, unbroken)
    for name in ("accuracy.png", "history.json", "checkpoint.pt"):
        assert (tmp_path / name).stat().st_size > 100 and f"wrote {tmp_path / name}" in out
    assert not list(tmp_path.glob("*.tmp")) and (tmp_path / "accuracy.png").read_bytes().startswith(b"\x89PNG")
    steps = [line for line in out.splitlines() if line.startswith("step ")]
    assert len(steps) == 3 and all(len(line.split("test")[1].split()) == 1 + 4 + 1 for line in steps)  # loss, 4 %, |
    assert out.count("truth") == out.count("model") == 2 * 4 and "wrong" in out


def rows_of(out):
    """{variable: (answer, probability, truth, loop from which on it is sure, wrong?)} of what an answer prints."""
    form = r" *(\S+)   model +(\S+)   probability (\S+)   truth +(\S+)(?:   sure from loop (\d+) on)?(   wrong)?"
    rows = [re.fullmatch(form, line) for line in out.splitlines() if "   model " in line]
    return {row[1]: (row[2], float(row[3]), row[4], row[5] and int(row[5]), bool(row[6])) for row in rows}


def test_ask_answers_in_chain_order_with_probability_truth_and_loop(run, unbroken):
    """Against the logits of every loop, computed one by one from the checkpoint's weights. Any names will do."""
    text = "b=-a; a=+1; c=+b; d=-c; e=-d"
    code, out, _ = run(f"--out_dir={unbroken}", f"--ask={text}")
    rows = rows_of(out)
    assert code == 0 and [*rows] == [*"abcde"] and [row[2] for row in rows.values()] == ["+1", "-1", "-1", "+1", "-1"]
    assert f"wrote {unbroken / 'ask.png'}" in out and (unbroken / "ask.png").read_bytes().startswith(b"\x89PNG")

    task, model = lego.make_task("sign"), train.make_model(tiny())
    model.load_state_dict(torch.load(unbroken / "checkpoint.pt", weights_only=True)["model"])
    tokens, n_loops = lego.encode(text, task)[None], 5 + 8  # a loop for every link, and 8 to spare
    p = torch.stack([model(tokens, n)[0, [5, 0, 10, 15, 20]].softmax(-1) for n in range(1, n_loops + 1)])
    for i, (answer, probability, truth, loop, wrong) in enumerate(rows.values()):
        assert answer == task.values[p[-1, i].argmax()] and wrong == (answer != truth)
        assert probability == pytest.approx(p[-1, i].max().item(), abs=1e-4)
        sure = (p[:, i].max(-1).values > 0.9) & (p[:, i].argmax(-1) == p[-1, i].argmax())
        assert loop == next((k + 1 for k in range(n_loops) if sure[k:].all()), None)
    other = run(f"--out_dir={unbroken}", "--ask=v30=-v1023; v1023=+1; c=+v30; d=-c; e=-d")[1]
    assert [*rows_of(other).values()] == [*rows.values()]


class Oracle(torch.nn.Module):
    """A stand-in model that knows, after loop i, all values of depth i or less, and of the others nothing."""

    config = train.Config()

    def __init__(self, task):
        super().__init__()
        self.task, self.head = task, torch.nn.Linear(1, 1)

    def layers(self, tokens, n_loops):
        text, depth = lego.decode(tokens[0], self.task), {self.task.root_symbol: 0}
        arguments = {variable: argument for variable, _, argument in lego.parse(text, self.task)}
        x, values = torch.zeros(1, tokens.size(1), len(self.task.values)), lego.solve(text, self.task)
        for i in range(1, n_loops + 1):
            for variable, value in values.items():
                depth[variable] = depth.get(arguments[variable], 10**9) + 1
                if depth[variable] <= i:
                    x[0, 5 * [*arguments].index(variable), self.task.values.index(value)] = 9.0
            yield x.clone(), None

    def to_logits(self, x):
        return x


def test_answer_of_a_model_that_follows_links(capsys, tmp_path):
    """It is sure of every variable from its depth on; what the sentence does not determine has no answer."""
    task = lego.make_task("d3")
    text = "z=r1 y; b=s0 a; a=r1 1; c=r2 b; q=s1 1; x=r1 z"
    show.answer(Oracle(task), task, text, tmp_path / "answer.png")
    out = capsys.readouterr().out
    rows = rows_of(out)
    assert [(variable, row[2], row[3], row[4]) for variable, row in rows.items()] == [
        ("a", "r1", 1, False), ("q", "s1", 1, False), ("b", "s2", 2, False), ("c", "s1", 3, False)]
    assert "    z   not determined: z=r1 y, and y is not known\n    x   not determined: x=r1 z, and z is" in out
    assert (tmp_path / "answer.png").read_bytes().startswith(b"\x89PNG")


def test_title_of_an_answer_claims_what_the_model_does(monkeypatch):
    task, titles = lego.make_task("sign"), []
    monkeypatch.setattr(show, "draw_answer", lambda *arguments: titles.append(arguments[3]))
    model = Oracle(task)
    show.answer(model, task, "b=-a; a=+1; c=+d", "path")
    model.to_logits = lambda x: -x  # says the contrary
    show.answer(model, task, "b=-a; a=+1; c=+d", "path")
    assert titles == ["2 of 2 right: each loop follows one more link", "0 of 2 right"]


def test_answer_of_a_long_sentence_is_a_summary(capsys):
    """Of 61 variables only those are shown that are wrong."""
    task = lego.make_task("sign", 62)
    (ids,), *_ = lego.sample(task, 1, 61, torch.Generator().manual_seed(0))
    text = lego.decode(ids, task)
    unused = next(name for name in task.names if f"{name}=" not in text)
    show.answer(Oracle(task), task, text)
    (found,) = capsys.readouterr().out.splitlines()
    assert found.startswith("61 of 61 variables are right after 69 loops") and "from loop 61 on" in found
    model = Oracle(task)
    model.to_logits = lambda x: -x  # says the contrary
    show.answer(model, task, text.replace("+1;", f"+{unused};").replace("-1;", f"-{unused};"))
    assert "0 of 0 variables are right" in (out := capsys.readouterr().out) and "61 more" in out and not rows_of(out)
    show.answer(model, task, text)
    out = capsys.readouterr().out
    assert len(rows_of(out)) == out.count("wrong") == 61 and "0 of 61 variables are right" in out


def test_checkpoint_can_move(run, unbroken, tmp_path):
    """The folder and the machine are those of the command line, not those of the run that wrote the checkpoint."""
    checkpoint = torch.load(unbroken / "checkpoint.pt", weights_only=True)
    checkpoint["config"].update(device="cuda:77", out_dir=str(tmp_path / "nowhere"))
    torch.save(checkpoint, tmp_path / "checkpoint.pt")
    assert run(f"--out_dir={tmp_path}", "--ask=a=+1")[0] == 0
    assert run(f"--out_dir={tmp_path}", "--resume", "--max_steps=21", "--device=cpu")[0] == 0
    assert (tmp_path / "accuracy.png").exists() and not (tmp_path / "nowhere").exists()


def config_of(*arguments):
    """What the command line makes of dials and presets."""
    return train.Config(**lego.override(arguments, train.Config, train.PRESETS, train.implied))


@pytest.mark.parametrize("arguments", [
    ["--preset=paper", "--n_layer=2"], ["--preset=vanilla", "--tied=true", "--lr=1e-3"],
    ["--attention=vanilla", "--n_clauses=5", "--branch=0.5"], ["--preset=paper", "--attention=vanilla"],
    ["--preset=words", "--attention=lego", "--n_tokens=20"],
    ["--attention=vanilla", "--batch_size=7", "--preset=paper"],
], ids=str)
def test_order_of_preset_and_dials_does_not_matter(arguments):
    """A dial that is given beats what a preset or another dial brings."""
    configs = [config_of(*order) for order in itertools.permutations(arguments)]
    assert all(config == configs[0] for config in configs)
    given = [argument for argument in arguments if not argument.startswith("--preset")]
    assert lego.override(given, train.Config, {}, lambda dial, text: {}).items() <= vars(configs[0]).items()


@pytest.mark.parametrize("argument", ["--attention=vanilla", "--drop_clause=0.5"])
def test_some_dials_bring_the_papers_chains(argument):
    """Unless branches are asked for."""
    assert train.Config().branch == 1 and config_of(argument).branch == 0
    assert config_of(argument, "--branch=0.5").branch == config_of("--branch=0.5", argument).branch == 0.5


def test_dial_that_is_given_its_default_changes_nothing():
    assert config_of("--drop_clause=0", "--attention=lego", "--init_from=") == train.Config()


def test_order_of_preset_and_pretrained_weights_does_not_matter(unbroken):
    """The weights can't be of another shape than they are."""
    arguments = ["--preset=paper", f"--init_from={unbroken}"]
    assert config_of(*arguments) == config_of(*arguments[::-1]) and config_of(*arguments).n_embd == 16


def test_dials_of_every_type_are_read_and_help_lists_them(run):
    config = config_of("--task=d3", "--n_layer=5", "--lr=1e-3", "--tied=false", "--compile")
    assert (config.task, config.n_layer, config.lr, config.tied, config.compile) == ("d3", 5, 1e-3, False, True)
    code, out, _ = run("--help")
    assert code == 0 and all(f"--{dial}=" in out for dial in [*train.Config.__dataclass_fields__, "preset"])


def test_paper_preset_is_the_official_recipe_and_trains(run, tmp_path):
    """BERT-base, 120,000 sentences 200 times in batches of 1000, Adam at 5e-5, cosine. Then a few steps, small."""
    config = config_of("--preset=paper")
    train.check(config)
    with torch.device("meta"):
        model = train.make_model(config)
    assert sum(p.numel() for p in model.blocks.parameters()) == 85_054_464  # of BERT-base's 12 layers
    assert config.n_train == 10_000 * config.n_clauses and config.max_steps * config.batch_size == 200 * config.n_train
    (optimizer,) = train.make_optimizers(model, config)
    group = optimizer.param_groups[0]
    assert (group["lr"], group["betas"], group["weight_decay"]) == (5e-5, (0.9, 0.999), 0)
    assert [round(train.lr_multiplier(step, config), 6) for step in (0, 12_000)] == [1, 0.5]

    small = dict(n_embd=24, n_layer=2, batch_size=20, n_train=60, max_steps=6, eval_every=3, eval_size=20, lr=1e-3)
    code, out, err = run("--preset=paper", *as_arguments(**small, out_dir=tmp_path, device="cpu"))
    history = json.loads((tmp_path / "history.json").read_text())
    assert code == 0 and history["config"]["dropout"] == 0.1 and history["config"]["n_embd"] == 24
    assert history["loss"][2] < history["loss"][1]


# ---- pretraining: words, mimicking, and what starts from them


@pytest.fixture
def words(tmp_path, monkeypatch):
    """The dials of a run on a small text, in a folder where nothing else is."""
    monkeypatch.chdir(tmp_path)
    Path("text.txt").write_text("\n\n".join(
        f"the {a} and the {b} sat on a mat ; {a} = {b}" for a in ("cat", "dog", "hen", "cow", "pig", "owl")
        for b in ("rat", "bat", "fly", "bee", "ant", "elk", "emu")))
    return dict(VANILLA, task="words", corpus="text.txt", n_tokens=16, lr=1e-2)


def test_hidden_words_are_learned(words):
    history = train.train(tiny(**words, max_steps=60, eval_size=50, eval_every=60))
    assert history["test_loss"][-1] < history["test_loss"][0] - 1  # nats, on documents held out
    assert len(history["accuracy"][-1]) == 1 and history["accuracy"][-1][0] > history["accuracy"][0][0] + 0.1


def test_mimicking_is_a_run_like_others(run, tmp_path):
    dials = {**TINY, **VANILLA, "n_head": 2, "task": "mimic", "lr": 1e-2, "out_dir": tmp_path}
    code, out, err = run(*as_arguments(**dials))
    history = json.loads((tmp_path / "history.json").read_text())
    assert code == 0 and (tmp_path / "loss.png").exists() and "test " in out
    assert history["test_loss"][-1] < history["test_loss"][0] and history["accuracy"] == [[]] * 3
    before = torch.load(tmp_path / "checkpoint.pt")["model"]
    before["position_embedding.weight"] = before["position_embedding.weight"][:15]
    config = config_of(f"--init_from={tmp_path}", "--n_clauses=3", "--n_supervised=3")
    assert (config.n_layer, config.attention, config.tied) == (2, "vanilla", False)
    assert config.task == "sign"  # the shape comes along, the task does not
    after = train.make_model(config).state_dict()
    assert all(torch.equal(after[name], before[name]) for name in before)


def test_head_is_taken_for_the_same_symbols_only(tmp_path):
    """c6 and d3 have heads of one shape, and another alphabet is no other task."""
    train.train(tiny(task="c6", max_steps=1, out_dir=str(tmp_path)))
    head = train.read_checkpoint(tmp_path)["model"]["head.weight"]
    head_of = lambda **dials: train.make_model(tiny(**dials, init_from=str(tmp_path))).head.weight
    assert torch.equal(head_of(task="c6", n_names=40), head) and not torch.equal(head_of(task="d3"), head)


def test_lego_after_words_keeps_what_its_tokens_were(words):
    """Each symbol takes its own row, positions as far as they are needed; the head is new."""
    train.train(tiny(**words, max_steps=1, out_dir="pretrained"))
    checkpoint = train.read_checkpoint("pretrained")
    model = train.make_model(config_of("--n_clauses=3", "--init_from=pretrained"))
    for symbol, row in zip(lego.make_task("sign").vocab, model.token_embedding.weight):
        assert torch.equal(row, checkpoint["model"]["token_embedding.weight"][checkpoint["vocab"].index(symbol)])
    assert torch.equal(model.position_embedding.weight, checkpoint["model"]["position_embedding.weight"][:15])
    assert model.head.out_features == 2
    with pytest.raises(ValueError, match="init_from=pretrained: .*position_embedding.weight"):  # of 20 tokens, not 16
        train.make_model(config_of("--n_clauses=4", "--init_from=pretrained"))


def test_weights_start_another_run_with_the_same_answers(unbroken):
    """--init_from takes the shape, and what is learned of beliefs, on to longer sentences: 4 labels, 7 loops."""
    config = config_of(f"--init_from={unbroken}", "--n_clauses=9")
    assert (config.n_embd, config.n_layer, config.carry, config.n_clauses) == (16, 7, "beliefs", 9)
    tokens, (first, second) = lego.sample(lego.make_task("sign"), 4, 9).tokens, (train.make_model(c) for c in (
        config, tiny(init_from=str(unbroken))))
    assert torch.equal(first(tokens, 9), second(tokens, 9))


def test_weights_of_a_checkpoint_without_some_dials_are_taken(unbroken, tmp_path):
    """Of dials that are not there the defaults serve."""
    checkpoint = train.read_checkpoint(unbroken)
    del checkpoint["config"]["carry"], checkpoint["config"]["n_layer"]
    torch.save(checkpoint, tmp_path / "checkpoint.pt")
    assert config_of(f"--init_from={tmp_path}").n_embd == 16


# ---- the command line, when it is not


@pytest.fixture
def refused(run):
    """refused(expected, *arguments): exit code 2 and one line that begins with what is expected, a text or pattern."""
    def refused(expected, *arguments):
        code, out, err = run(*arguments)
        found = err.removeprefix("train.py: ")
        assert code == 2 and (found.startswith(expected) or re.match(expected, found)) and err.count("\n") == 1, err
    return refused


@pytest.mark.parametrize("argument, expected", [
    ("--n_layers=3", "'--n_layers=3': expected --dial=value, such as --n_layer=..."),
    ("--qqq=3", "'--qqq=3': expected --dial=value, --help"), ("n_layer=3", "'n_layer=3': expected --dial=value"),
    ("--n_layer", "'--n_layer': expected --dial=value"), ("--ask", "'--ask': expected --dial=value"),
    ("--n_layer=", "n_layer=: expected int"), ("--n_layer=3.5", "n_layer=3.5: expected int"),
    ("--lr=fast", "lr=fast: expected float"), ("--tied=maybe", "tied=maybe: expected bool"),
    ("--preset=foo", "preset=foo: expected vanilla, words, paper"),
    ("--resume=maybe", "resume=maybe: expected bool"),
    ("--n_clauses=27 --n_names=26", "n_clauses=27, n_names=26: expected 1 <= n_clauses <= n_names"),
    ("--lr=nan", "lr=nan: expected 0 < lr <= 1e6"), ("--muon_lr=inf", "muon_lr=inf: expected 0 <= muon_lr"),
    ("--schedule=step", 'schedule=step: expected schedule in ("constant", "linear", "cosine")'),
    ("--n_supervised=13", "n_clauses=12, n_supervised=13: expected 1 <= n_supervised <= n_clauses"),
    ("--carry=all", 'carry=all: expected carry in ("beliefs", "state", "none")'),
    ("--tied=false --carry=state", 'tied=False, carry=state: expected carry == "none" or tied'),
    ("--n_head=0", "n_head=0: expected n_head >= 1"), ("--n_embd=-4", "n_embd=-4: expected 1 <= n_embd"),
    ("--task=words --carry=state", "task=words, .*carry=state: expected carry == .none. or not"),
    ("--task=mimic", "task=mimic, attention=lego, n_head=4: expected task"),
    ("--drop_clause=0.5 --branch=1", "branch=1.0, drop_clause=0.5: expected drop_clause == 0 or branch == 0"),
    ("--branch=2", "branch=2.0: expected 0 <= branch <= 1"),
    ("--unknown_weight=-1", "unknown_weight=-1.0: expected 0 <= unknown_weight"),
    ("--n_names=2000", "n_clauses=12, n_names=2000: expected 1 <= n_clauses <= n_names <= 1024"),
    ("--task=c1", "task=c1: expected sign, c<k>"),
    ("--every_layer", "'--every_layer': expected --dial=value"),
    ("--attention=foo", "attention=foo: expected vanilla, lego or hybrid"),
    ("--positions=foo", 'positions=foo: expected positions in ("learned", "rope", "none")'),
    ("--device=tpu", "device=tpu: expected auto, cpu, or a cuda or mps device"),
    ("--device=cuda:99", "device=cuda:99: expected auto, cpu, or a"), ("--device=meta", "device=meta: expected auto"),
    ("--out_dir=README.md", "out_dir=README.md: expected a folder that can be made ([Errno 17] File exists"),
    ("--out_dir=README.md/x", "out_dir=README.md/x: expected a folder that can be made ([Errno 20] Not a directory"),
    ("--init_from=nowhere", "nowhere: expected the out_dir of a run, or a BERT's folder"),
    ("--preset=words --corpus=nowhere", "corpus=nowhere: expected UTF-8 text ([Errno 2] No such file"),
    ("--preset=words --corpus=README.md", "corpus=README.md: expected at least 2 paragraphs or lines, one to hold out, "
     "and n_tokens=60"),
])
def test_bad_dial_is_one_line(refused, monkeypatch, argument, expected, tmp_path):
    monkeypatch.chdir(tmp_path)
    Path("README.md").write_text("a\n\nfile")
    small = ["--device=cpu", "--n_embd=8", "--batch_size=8", "--max_steps=1", "--eval_size=1"]
    refused(expected, *small, *argument.split())
    assert [path.name for path in tmp_path.iterdir()] == ["README.md"]


def test_every_rule_can_be_broken_and_is_the_message():
    """By some dial at an odd value, alone or with task=words, mimicking, dropped clauses or varied lengths."""
    broken, values = set(), (-1, 0, 1, 3, 1000, 10**9, math.nan, "x", True, False)
    bases = ({}, dict(carry="state"), dict(carry="state", task="words"), dict(task="mimic"), dict(drop_clause=0.5),
             dict(branch=1.0, drop_clause=0.5), dict(min_clauses=2), dict(positions="rope"),
             dict(carry="state", n_distractor=9))
    for base, field in itertools.product(bases, fields(train.Config)):
        for value in (value for value in values if type(value) is field.type):
            try:
                train.check(train.Config(**{**base, field.name: value}))
            except ValueError as error:
                broken.add(str(error).partition(": expected ")[2])
    rules = {rule.strip() for rule in re.split(r"[;\n]", train.RULES.strip())}
    assert rules - broken == {"batch_size % n_processes == 0"}  # which takes processes


def test_batch_that_the_processes_cannot_share_is_one_line(monkeypatch):
    monkeypatch.setattr(train, "N_RANKS", 3)
    with pytest.raises(ValueError, match="batch_size=32, n_processes=3: expected batch_size % n_processes == 0"):
        train.check(tiny())


@pytest.mark.parametrize("text, expected", [
    ("", "clause '': expected variable=operation"), ("a=*1", "clause 'a=*1': expected variable=operation argument"),
    ("a=+1; a=-1", "clause 'a=-1': a is assigned a second time"), ("a=r1 1", "clause 'a=r1 1'"),
    ("a=+b; b=+a", "clause 'a=+b': following the arguments from here runs in a circle"),
])
def test_bad_question_is_one_line(refused, unbroken, text, expected):
    refused(expected, f"--out_dir={unbroken}", f"--ask={text}")


@pytest.mark.parametrize("dials, text, expected", [
    (dict(attention="vanilla"), "v30=+1", "clause 'v30=+1': expected variable"),
    (dict(positions="learned"), "a=+1; b=+a; c=+b; d=+c; e=+d", "a sentence of 25 tokens: expected at most the 20"),
    (dict(VANILLA, task="mimic"), "a=+1", "--ask: expected a run on sentences of LEGO"),
])
def test_question_that_the_model_cannot_read_is_one_line(refused, tmp_path, dials, text, expected):
    train.train(tiny(**dials, max_steps=1, out_dir=str(tmp_path)))
    refused(expected, f"--out_dir={tmp_path}", f"--ask={text}")


@pytest.mark.parametrize("argument, expected", [
    ("--task=d3", "task=d3: expected sign, as in the run to resume; only max_steps"),
    ("--n_embd=8", "n_embd=8: expected 16, as in the run to resume; only max_steps"),
    ("--n_clauses=5", "n_clauses=5: expected 4, as in the run to resume; only max_steps"),
    ("--branch=0.5", "branch=0.5: expected 1.0, as in the run to resume; only max_steps"),
    ("--muon_lr=0", "muon_lr=0.0: expected 0.04, as in the run to resume; only max_steps"),
])
def test_resume_with_another_dial_is_one_line(refused, unbroken, argument, expected):
    refused(expected, f"--out_dir={unbroken}", "--resume", argument)


def flip_a_bit_of_a_weight(data):
    entries = zipfile.ZipFile(data).infolist()
    largest, changed = max(entries, key=lambda entry: entry.file_size), bytearray(data.read_bytes())
    changed[largest.header_offset + largest.file_size // 2] ^= 64
    data.write_bytes(changed)


def change(*keys, to=None):
    """A damage: the part of a checkpoint at these keys is another, or missing if `to` is None."""
    def damage(path):
        checkpoint = part = torch.load(path, weights_only=True)
        for key in keys[:-1]:
            part = part[key]
        part.pop(keys[-1]) if to is None else part.update({keys[-1]: to})
        torch.save(checkpoint, path)
    return damage


@pytest.mark.parametrize("damage, modes", [
    (lambda path: path.unlink(), "ask resume"), (lambda path: path.write_bytes(b""), "ask resume"),
    (lambda path: path.write_bytes(b"some text"), "ask resume"),
    (lambda path: path.write_bytes(path.read_bytes()[: path.stat().st_size // 2]), "ask resume"),
    (flip_a_bit_of_a_weight, "ask resume start"), (change("config", "n_embd", to=24), "ask resume"),
    (change("last"), "resume"), (change("optimizers"), "resume"), (change("progress"), "resume"),
    (change("carried"), "resume"), (change("carried", to=torch.zeros(32, 19, 2)), "resume"),
    (change("carried", to=torch.zeros(32, 20, 3)), "resume"),
    (change("carried", to=torch.zeros(32, 20, 2).log()), "resume"),
    (change("version"), "ask resume start"), (change("version", to=1), "ask resume start"),
    (change("vocab"), "ask start"), (change("config", "every_layer", to=True), "ask resume"),
    (change("config", to="x"), "ask resume start"), (change("history"), "resume"),
    (change("history", to='{"step": 3}'), "resume"),
], ids=str)
def test_bad_checkpoint_is_one_line_and_stays(refused, unbroken, tmp_path, damage, modes):
    path = Path(shutil.copy(unbroken / "checkpoint.pt", tmp_path))
    damage(path)
    before = path.read_bytes() if path.exists() else None
    for mode in modes.split():
        arguments = {"ask": ["--ask=a=+1"], "resume": ["--resume", "--max_steps=21"],
                     "start": [*as_arguments(**TINY), f"--init_from={tmp_path}"]}[mode]
        refused("(.*/)?checkpoint.pt: expected ", f"--out_dir={tmp_path}", *arguments)
        assert (path.read_bytes() if path.exists() else None) == before


def refused_or_fine(run, arguments, what):
    """Whatever comes in, exit code 0, or 2 and one line: `what` is said where it is not so."""
    try:
        code, _, err = run(*arguments)
    except Exception as error:
        raise AssertionError(ascii(what)) from error
    assert code == 0 or (code == 2 and len(err.splitlines()) == 1 and "expected" in err), ascii((what, err))
    return code


def test_mutated_dials_are_read_or_refused_in_one_line(run, mutate, monkeypatch, tmp_path):
    """One to three dials with values of every kind, some mutated, up to the model: 1000 command lines."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(train, "train", lambda config, model, resume: sys.exit(0))
    monkeypatch.setattr("figures.text.LIBRARIES", ("tqdm",))
    numbers = ["0", "1", "2", "3", "8", "-1", "+3", " 3 ", "1_0", "３", "²", "0x10", "1e3", "2.5", "1e-320", "1e999",
               "nan", "-inf", "inf", "", "'3'", "True", "9" * 5000, str(10**30)]
    words = ["", "sign", "d3", "c1", "words", "lego", "vanilla", "hybrid", "learned", "none", "beliefs", "state",
             "mimic", "a\nb", "cosine", "bfloat16", "cpu:1", "hpu", "meta", "True", "false", "x" * 300, "x/" * 3000,
             "\ud800", "\0"]
    pools = {int: numbers, float: numbers, bool: words, str: words}
    dials = [dial for dial in train.Config.__dataclass_fields__ if dial != "compile"]
    r, codes = random.Random(0), []
    for _ in range(1000):
        arguments = [f"--{dial}={r.choice(pools[train.Config.__dataclass_fields__[dial].type])}"
                     for dial in r.choices(dials, k=r.choice([1, 1, 2, 3]))]
        arguments = [mutate(argument) if r.random() < 0.2 else argument for argument in arguments]
        codes.append(refused_or_fine(run, [*as_arguments(**TINY), *arguments], arguments))
    assert codes.count(0) > 100 and codes.count(2) > 300


@pytest.mark.filterwarnings("ignore:Using a non-tuple")
def test_hostile_checkpoint_is_refused_or_fine_and_runs_nothing(run, unbroken, monkeypatch, tmp_path):
    """
    Cut, with bytes changed, with parts missing or of another type anywhere, or made to run a command when it is read:
    asked, resumed or started from, 70 of them.
    """
    for slow in ("plot", "examples", "draw_answer"):
        monkeypatch.setattr(show, slow, lambda *arguments: None)
    path, whole, r = tmp_path / "checkpoint.pt", (unbroken / "checkpoint.pt").read_bytes(), random.Random(0)
    modes = [["--ask=b=-a; a=+1"], ["--resume", "--max_steps=21"],
             [*as_arguments(**TINY, init_from=tmp_path), "--max_steps=1", "--n_clauses=3"]]
    junk = [None, -1, 7, 0.5, "", "a\nb", [], [None], {}, {1: 2}, torch.zeros(()), torch.zeros(2, 3),
            torch.zeros(3, dtype=torch.int64), torch.zeros(2, 2).to_sparse(), torch.zeros(3, device="meta")]

    class Command:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "executed"),)

    for i in range(70):
        data, what = bytearray(whole), i
        if i < 20:
            del data[r.choice([r.randrange(len(data)), -r.randrange(1, 400)]) :]
        elif i < 40:
            data[r.choice([r.randrange(len(data)), -r.randrange(1, 6000)])] ^= r.randrange(1, 256)
        elif i == 40:
            data = pickle.dumps(Command(), protocol=2)
        path.write_bytes(data)
        if i > 40:
            checkpoint = part = torch.load(unbroken / "checkpoint.pt", weights_only=True)
            what = []
            while not what or (isinstance(part, (dict, list)) and len(part) and r.random() < 0.8):
                parent, key = part, r.choice(list(part) if isinstance(part, dict) else range(len(part)))
                part = parent[key]
                what.append(key)
            if r.random() < 0.25:
                del parent[key]
            else:
                parent[key] = Command() if i < 50 else r.choice(junk)
                what.append(str(parent[key])[:40])
            torch.save(checkpoint, path)
        before = path.read_bytes()
        for mode in modes if 40 <= i < 50 else [r.choice(modes)]:
            refused_or_fine(run, [*mode, f"--out_dir={tmp_path}", "--device=cpu"], (mode[0], what))
            assert not (tmp_path / "executed").exists(), what
            path.write_bytes(before)


# ---- the real programs


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_stop_of_the_command_is_one_line_and_128_more_than_the_signal(run, tmp_path, monkeypatch, number):
    at_step(monkeypatch, 2, lambda: signal.raise_signal(number))
    code, _, err = run(*as_arguments(**{**TINY, **SHORT, "out_dir": tmp_path}))
    assert code == 128 + number
    assert err.splitlines()[-1] == "train.py: stopped after step 2; --resume continues from there"


@pytest.mark.skipif(os.name != "posix", reason="needs POSIX signals")
@pytest.mark.parametrize("signame, code, says", [("SIGKILL", -9, ""), ("SIGINT", 130, "stopped after step")])
def test_process_that_is_killed_goes_on(programs, signame, code, says):
    """To 20 steps after the evaluation that it had last."""
    folder, ended = programs[signame]
    returned, _, err = ended.result()
    assert returned == code and says in err and "Traceback" not in err
    max_steps = 20 + json.loads((folder / "history.json").read_text())["step"][-1]
    history = train.train(tiny(max_steps=max_steps, out_dir=str(folder)), resume=True)
    assert numbers(history) == numbers(train.train(tiny(max_steps=max_steps)))


def test_two_processes_are_one(programs):
    """
    torchrun: the same losses within float tolerance, one log, one set of files, however many labels each process has;
    also when the run is stopped, by a signal to one of them, and goes on.
    """
    folder, ended = programs["torchrun"]
    code, out, err = ended.result()
    assert code == 0, err
    assert "stopped after step 3;" in out and out.count("step     0 ") == 2
    for name, dials in TWICE.items():
        together = json.loads((folder / name / "history.json").read_text())
        alone = train.train(tiny(**dials))
        assert together["step"] == alone["step"] and together["flops"] == alone["flops"]
        for key in ("loss", "test_loss"):
            rel = 1e-2 if train.Config(**together["config"]).muon_lr else 1e-4  # Muon rounds to bfloat16
            assert together[key][1:] == pytest.approx(alone[key][1:], rel=rel)


def test_main_job_on_a_bare_machine(programs):
    """
    One core, no GPU, no display, no Triton, a path with spaces, the variables of a notebook and of another launcher;
    then a dial that is wrong: exit code and stream.
    """
    home, ended = programs["bare"]
    code, out, err = ended.result()
    assert (home / "my out" / "accuracy.png").exists(), err
    assert code == 2 and err.splitlines()[-1] == "train.py: lr=-1.0: expected 0 < lr <= 1e6" and "lr=" not in out


def test_pipe_that_is_closed_is_no_error(programs):
    code, out, err = programs["pipe"][1].result()
    assert code == 128 + 13 and not err


class NoFloat64(TorchDispatchMode):
    """As on a Mac's GPU: no tensor may be float64."""

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        for x in out if isinstance(out, (tuple, list)) else [out]:
            assert not torch.is_tensor(x) or x.dtype != torch.float64, function
        return out


@pytest.mark.parametrize("dials", [dict(), dict(carry="state"), dict(VARIED), VANILLA, dict(VANILLA, task="mimic"),
                                   dict(task="words", n_tokens=30), dict(attention="hybrid", branch=0.5)])
def test_run_needs_no_float64(words, dials):
    """Not in sentences, model, optimizers, evaluation or pictures; what figures measure at a model neither."""
    config = tiny(**{"max_steps": 2, "corpus": words["corpus"], "min_clauses": 0, **dials})
    model = train.make_model(config)
    with NoFloat64():
        train.train(config, model)
        if "task" not in dials and config.carry != "none":
            extrapolation.ask(model, 5, 4, {}, None)


def test_run_without_a_console(monkeypatch):
    """As under pythonw: there is no stderr to draw a progress bar on."""
    monkeypatch.setattr(sys, "stderr", None)
    assert train.train(tiny(max_steps=2))["step"][-1] == 2


def test_compile_that_does_not_work_is_one_line(monkeypatch):
    def fail(*_, **__):
        raise RuntimeError("InvalidCxxCompiler: no compiler\nand a hundred lines")
    monkeypatch.setattr(torch, "compile", fail)
    with pytest.raises(ValueError, match="^compile=True: expected a machine where .*no compiler and") as error:
        train.train(tiny(compile=True))
    assert "\n" not in str(error.value)


def test_text_held_out_without_a_known_word_is_one_line(tmp_path):
    """Its loss would be nan. Paragraphs so short that an evaluation finds nothing but their ends."""
    (tmp_path / "text.txt").write_text("\n\n".join(["ab", "cd", "ef", "gh"] * 15))
    dials = dict(VANILLA, task="words", corpus=str(tmp_path / "text.txt"), n_tokens=1, eval_size=1, eval_every=1)
    with pytest.raises(ValueError, match="eval_size=1: expected a label to test on"):
        train.train(tiny(**dials))


def test_corpus_may_move_but_not_change(words, tmp_path):
    """A run goes on with its text in another place; another text is refused in one line."""
    first = tiny(**words, max_steps=2, out_dir=str(tmp_path / "out"))
    train.train(first)
    Path("moved.txt").write_text(Path("text.txt").read_text())
    Path("other.txt").write_text(Path("text.txt").read_text().replace("cat", "dodo"))
    on = dict(max_steps=4, corpus="moved.txt")
    assert train.train(replace(first, **on), resume=True)["step"][-1] == 4
    with pytest.raises(ValueError, match="corpus=other.txt has other words"):
        train.train(replace(first, **{**on, "max_steps": 6, "corpus": "other.txt"}), resume=True)


def test_signals_of_a_host_program_are_left_alone(monkeypatch):
    """Python inside another program, which handles SIGINT itself: getsignal says None, which can't be put back."""
    monkeypatch.setattr(signal, "getsignal", lambda number: None)
    monkeypatch.setattr(signal, "signal", lambda *_: pytest.fail("a handler was set"))
    assert train.train(tiny(max_steps=2))["step"][-1] == 2
