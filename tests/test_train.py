"""train.py: short runs learn and repeat, files are whole, and everything typed wrong is one line and exit code 2."""
import json
import math
import os
import pickle
import random
import shutil
import signal
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import torch

import lego
import train

ROOT = Path(train.__file__).parent
TINY = dict(n_clauses=4, n_supervised=2, n_layer=2, loop_jitter=1, eval_loops=3, n_embd=16, batch_size=32, max_steps=20,
            schedule="constant", stop_at=0.999, eval_every=5, eval_size=50, device="cpu", out_dir="")
NUMBERS = ("step", "loss", "accuracy", "flops", "tokens")  # of a history: all but the times


def tiny(**dials):
    return train.Config(**{**TINY, **dials})


def as_arguments(**dials):
    return [f"--{dial}={value}" for dial, value in dials.items()]


@pytest.fixture
def run(monkeypatch, capsys):
    """run(*arguments) -> (exit code, stdout, stderr) of train.py, in this process."""
    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["train.py", *arguments])
        code = 0
        try:
            lego.command_line(train.main)
        except SystemExit as stop:
            code = stop.code
        return code, *capsys.readouterr()
    return run


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """The folder of a finished tiny run."""
    folder = tmp_path_factory.mktemp("trained")
    train.train(tiny(out_dir=str(folder)))
    return folder


def same(history, other):
    return all(history[key] == other[key] for key in NUMBERS)


# ---- training


@pytest.mark.parametrize("dials", [
    {}, dict(task="d3", attention="hybrid"), dict(chained=False, schedule="cosine"),
    dict(attention="vanilla", tied=False, positions="learned", norm_first=False, norm_state=False, muon_lr=0.0),
    dict(every_layer=True), dict(min_clauses=3, n_distractor=2, drop_clause=0.5),
    dict(dtype="bfloat16", association="segment"),
], ids=str)
def test_twenty_steps_lower_the_loss(dials):
    history = train.train(tiny(**dials))
    assert history["step"] == [0, 5, 10, 15, 20] and history["loss"][0] is None
    assert history["loss"][-1] < history["loss"][1]
    assert all(len(row) == 4 and all(0 <= a <= 1 for a in row) for row in history["accuracy"])
    assert history["flops"][0] == 0 and history["flops"] == sorted(history["flops"])
    json.dumps(history)


def test_supervised_variables_are_learned():
    """Two variables of three, far above chance on fresh sentences: the labels belong to the sentences, as sampled."""
    history = train.train(tiny(n_clauses=3, n_embd=32, batch_size=128, max_steps=150, eval_every=150, eval_size=500))
    assert min(history["accuracy"][-1][:2]) > 0.9


def test_same_seed_same_history_and_another_seed_another():
    first, again, other = (train.train(tiny(seed=seed)) for seed in (3, 3, 4))
    assert same(first, again) and first["loss"] != other["loss"]


@pytest.mark.parametrize("dials", [
    {}, dict(n_train=100, dropout=0.1, attention="vanilla"),
    dict(mimic=True, attention="vanilla", self_condition=False),
    dict(min_clauses=3, n_distractor=2, drop_clause=0.5, muon_lr=0.0, ema=0.0),
], ids=str)
def test_resumed_run_is_the_unbroken_run(run, tmp_path, dials):
    """
    Weights, average, optimizers, and the draws of sentences, loops, epochs and dropout all go on: one missing, and
    numbers differ.
    """
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    history = train.train(tiny(out_dir=str(whole), **dials))
    train.train(tiny(out_dir=str(broken), max_steps=10, **dials))
    assert run(f"--out_dir={broken}", "--resume", "--max_steps=20")[0] == 0
    assert same(json.loads((broken / "history.json").read_text()), history)
    saved = [torch.load(folder / "checkpoint.pt", weights_only=True) for folder in (whole, broken)]
    state = [[checkpoint[key] for key in ("model", "last", "optimizers", "generators")] for checkpoint in saved]
    torch.testing.assert_close(*state, rtol=0, atol=0)


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory):
    """History and checkpoint of a run of 20 steps that nothing has stopped."""
    folder = tmp_path_factory.mktemp("unbroken")
    return train.train(tiny(stop_at=0.0, out_dir=str(folder))), torch.load(folder / "checkpoint.pt")


def assert_resumed_is(unbroken, folder):
    """Continues the run in a folder to its end: history and all states are those of the unbroken one, bit for bit."""
    history = train.train(tiny(stop_at=0.0, out_dir=str(folder), resume=(folder / "checkpoint.pt").exists()))
    assert same(history, unbroken[0])
    keys = ("model", "last", "optimizers", "generators")
    state = [[checkpoint[key] for key in keys] for checkpoint in (torch.load(folder / "checkpoint.pt"), unbroken[1])]
    torch.testing.assert_close(*state, rtol=0, atol=0)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_run_told_to_stop_at_any_step_goes_on_as_if_it_had_not_been(unbroken, tmp_path, monkeypatch, number):
    """38 faults: it comes while step k is made, which is made to its end and saved."""
    loss_of, handler = train.loss_of, signal.getsignal(number)
    for k in range(1, 20):
        folder, calls = tmp_path / f"{k}", []

        def interrupted(*arguments):
            calls.append(arguments)
            if len(calls) == k:
                signal.raise_signal(number)
            return loss_of(*arguments)

        with monkeypatch.context() as patch:
            patch.setattr(train, "loss_of", interrupted)
            with pytest.raises(KeyboardInterrupt) as stop:
                train.train(tiny(stop_at=0.0, out_dir=str(folder)))
        assert stop.value.args == (f"stopped after step {k}; --resume continues from there", number)
        assert torch.load(folder / "checkpoint.pt")["progress"][0] == k
        assert signal.getsignal(number) == handler  # the usual one is back
        assert_resumed_is(unbroken, folder)


def test_signal_that_is_ignored_stays_ignored(monkeypatch):
    """As under nohup: what is meant for another program does not stop the run."""
    before, loss_of = signal.signal(signal.SIGINT, signal.SIG_IGN), train.loss_of
    monkeypatch.setattr(train, "loss_of", lambda *arguments: (signal.raise_signal(signal.SIGINT),
                                                              loss_of(*arguments))[1])
    try:
        assert train.train(tiny(max_steps=2))["step"][-1] == 2
        assert signal.getsignal(signal.SIGINT) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)


def test_stop_of_a_run_without_files_promises_nothing(monkeypatch):
    monkeypatch.setattr(train, "loss_of", lambda *arguments, loss_of=train.loss_of: (
        signal.raise_signal(signal.SIGINT), loss_of(*arguments))[1])
    with pytest.raises(KeyboardInterrupt) as stop:
        train.train(tiny())
    assert stop.value.args[0] == "stopped after step 1"


@pytest.mark.parametrize("told", [False, True])
def test_weights_that_are_not_finite_are_never_saved(tmp_path, monkeypatch, told):
    """The last step before an evaluation, or before the run is told to stop, breaks them: no loss has shown it yet."""
    train.train(tiny(out_dir=str(tmp_path), max_steps=5))
    before, clip, calls = (tmp_path / "checkpoint.pt").read_bytes(), torch.nn.utils.clip_grad_norm_, []

    def burst(parameters, norm):
        parameters = list(parameters)
        calls.append(norm)
        if len(calls) == (3 if told else 5):
            parameters[0].grad.fill_(math.inf)
        if told and len(calls) == 3:
            signal.raise_signal(signal.SIGTERM)

    monkeypatch.setattr(torch.nn.utils, "clip_grad_norm_", burst)
    with pytest.raises(ValueError, match=f"a weight is not finite after step {3 if told else 5}, expected"):
        train.train(tiny(out_dir=str(tmp_path)))
    assert (tmp_path / "checkpoint.pt").read_bytes() == before


@pytest.mark.parametrize("reached", [0.0, 0.5, 1.0])
def test_full_disk_is_one_line_and_the_checkpoint_before_goes_on(unbroken, tmp_path, monkeypatch, reached):
    """Each of the 4 saves fails once, with a share of the file written."""
    torch_save = torch.save
    for k in range(1, 5):
        folder, calls = tmp_path / f"{k}", []

        def full(checkpoint, path):
            calls.append(path)
            torch_save(checkpoint, path)
            if len(calls) == k:
                path.write_bytes(path.read_bytes()[: int(reached * path.stat().st_size)])
                raise OSError(28, "No space left on device")

        with monkeypatch.context() as patch:
            patch.setattr(torch, "save", full)
            with pytest.raises(ValueError, match="checkpoint.pt: expected a file that can be written .No space left"):
                train.train(tiny(stop_at=0.0, out_dir=str(folder)))
        assert (folder / "checkpoint.pt").exists() == (k > 1)
        assert_resumed_is(unbroken, folder)


@pytest.mark.skipif(os.name != "posix", reason="needs POSIX signals")
@pytest.mark.parametrize("signame, code, says", [
    ("SIGKILL", -9, ""), ("SIGINT", 130, "stopped after step"), ("SIGTERM", 143, "stopped after step")])
def test_process_that_is_killed_goes_on(tmp_path, signame, code, says):
    """In a run that would not end by itself; it goes on to 20 steps after the evaluation that it had last."""
    dials = {**TINY, "max_steps": 1_000_000, "stop_at": 0.0, "out_dir": str(tmp_path)}
    process = subprocess.Popen([sys.executable, "train.py", *as_arguments(**dials)], cwd=ROOT, stdout=subprocess.PIPE,
                               stderr=subprocess.PIPE, text=True)
    for line in process.stdout:
        if line.startswith("step    20"):
            process.send_signal(getattr(signal, signame))
            break
    _, err = process.communicate(timeout=60)
    assert process.returncode == code and says in err and "Traceback" not in err
    dials["max_steps"] = 20 + json.loads((tmp_path / "history.json").read_text())["step"][-1]
    history = train.train(train.Config(**dials, resume=True))
    assert same(history, train.train(train.Config(**{**dials, "out_dir": ""})))


def test_two_processes_are_one(tmp_path):
    """torchrun: the same losses within float tolerance, one log, one set of files, however many labels each has."""
    dials = {**TINY, "out_dir": str(tmp_path), "max_steps": 10, "drop_clause": 0.5}
    ended = subprocess.run([sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2",
                            "train.py", *as_arguments(**dials)], cwd=ROOT, capture_output=True, text=True, timeout=120,
                           env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert ended.returncode == 0, ended.stderr
    assert sum(line.startswith("step ") for line in ended.stdout.splitlines()) == 3
    together = json.loads((tmp_path / "history.json").read_text())
    alone = train.train(tiny(max_steps=10, drop_clause=0.5))
    assert together["step"] == alone["step"] and together["flops"] == alone["flops"]
    for key in ("loss", "test_loss"):
        assert together[key][1:] == pytest.approx(alone[key][1:], rel=1e-4)


def test_processes_share_a_batch(monkeypatch):
    batch, seen = train.draw_sentences(tiny(), 12, torch.Generator()), []
    monkeypatch.setattr(train, "N_RANKS", 3)
    for rank in range(3):
        monkeypatch.setattr(train, "RANK", rank)
        seen.append(train.share(batch))
    assert all(len(part.tokens) == len(part.values) == 4 for part in seen)
    assert sorted(torch.cat([part.tokens for part in seen]).tolist()) == sorted(batch.tokens.tolist())


def test_batch_that_the_processes_cannot_share_is_one_line(monkeypatch):
    monkeypatch.setattr(train, "N_RANKS", 3)
    with pytest.raises(ValueError, match="batch_size=32: expected a multiple of the 3 processes"):
        train.check(tiny())


def test_long_run_does_not_grow(tmp_path):
    """Memory in use after 300 steps and after 1,000, with an evaluation and a save every 100."""
    statm, sizes = Path("/proc/self/statm"), {}
    if not statm.exists():
        pytest.skip("needs /proc to see its own size")
    report = train.report
    config = tiny(n_supervised=1, n_layer=1, loop_jitter=0, n_embd=8, batch_size=4, eval_size=4, eval_every=100,
                  max_steps=1000, stop_at=0.0, out_dir=str(tmp_path))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train, "report", lambda history: sizes.update(
            {history["step"][-1]: int(statm.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")}) or report(history))
        train.train(config)
    assert sizes[1000] - sizes[300] < 4e6, sizes


def test_main_job_on_a_bare_machine(tmp_path):
    """One core, no GPU, no display, no Triton, a path with spaces."""
    home = tmp_path / "my own folder"
    home.mkdir()
    for name in ("lego.py", "attention.py", "model.py", "train.py"):
        shutil.copy(ROOT / name, home)
    one_core = lambda: os.sched_setaffinity(0, [min(os.sched_getaffinity(0))])
    (home / "triton.py").write_text("raise ImportError('there is no Triton')")
    hidden = {name: value for name, value in os.environ.items() if name not in ("DISPLAY", "WAYLAND_DISPLAY")}
    ended = subprocess.run(
        [sys.executable, "train.py", *as_arguments(**{**TINY, "max_steps": 5, "out_dir": "my out"})], cwd=home,
        capture_output=True, text=True, timeout=120, env={**hidden, "CUDA_VISIBLE_DEVICES": ""},
        preexec_fn=one_core if hasattr(os, "sched_setaffinity") else None)
    assert ended.returncode == 0, ended.stderr
    assert (home / "my out" / "accuracy.png").exists()


@pytest.mark.parametrize("self_condition", [True, False])
@pytest.mark.parametrize("every_layer", [True, False])
def test_loss_asks_for_a_variable_after_the_layers_that_can_know_it(every_layer, self_condition):
    """
    Term by term: variable i (from 0) behind layers i + 1 (from 0) and later, all behind the last, no others. If every
    loop begins from what was said: behind layers i and later, no others.
    """
    config = tiny(every_layer=every_layer, self_condition=self_condition, n_clauses=6, n_supervised=5, n_layer=4)
    model = train.make_model(config)
    drop = torch.tensor(4 * [2] + 4 * [5])  # from the third variable on, or for the sixth, there are no labels
    batch = lego.sample(lego.make_task("sign"), 8, 6, drop=drop)
    terms = []
    for layer, (x, _) in enumerate(model.trace(batch.tokens, n_loops=3)):
        log_p = model.readout(x).log_softmax(-1)
        for i in range(5):
            if (layer == 2 or every_layer) and (layer >= i if self_condition else layer > i or layer == 2):
                terms += [-log_p[b, batch.positions[b, i], batch.values[b, i]] for b in range(0 if i < 2 else 4, 8)]
    assert len(terms) == {(True, True): 44, (True, False): 36, (False, True): 20, (False, False): 28}[
        every_layer, self_condition]
    torch.testing.assert_close(train.loss_of(model, batch, config, n_loops=3), torch.stack(terms).mean())


def test_training_sentences_are_of_the_kinds_that_the_dials_ask_for():
    """Every length, every split into chain and distractor, whole or with a clause missing, in their shares."""
    config = tiny(min_clauses=4, n_clauses=6, n_supervised=6, n_distractor=2, drop_clause=0.25)
    task, generator, seen, n_batches = train.make_task(config), torch.Generator(), [], 800
    for _ in range(n_batches):
        batch = train.draw_sentences(config, 2, generator)
        n, dropped = batch.values.size(1), bool((batch.values == lego.IGNORE).any())
        assert all(len(lego.solve(lego.decode(ids, task), task, partial=True)) == batch.tokens.size(1) // 5
                   for ids in batch.tokens)
        seen.append((batch.tokens.size(1) // 5 + dropped, n, dropped))  # clauses, chain, a clause is missing
    kinds = {(m, m - k) for m in (4, 5, 6) for k in (0, 1, 2)}
    for m, n in kinds:
        assert sum(kind[:2] == (m, n) for kind in seen) == pytest.approx(n_batches / 9, rel=0.4)
    assert sum(dropped for _, _, dropped in seen) == pytest.approx(n_batches / 4, rel=0.2)
    assert {kind[:2] for kind in seen} == kinds


def test_fixed_training_set_is_gone_through_once_in_every_epoch_and_in_another_order():
    config = tiny(n_train=100, batch_size=32)  # three batches an epoch, four sentences left over
    pool = train.draw_sentences(config, 100, train.make_generator(config, "sentences"))
    number = {tuple(tokens.tolist()): i for i, tokens in enumerate(pool.tokens)}
    epochs = []
    for epoch in range(2):
        batches = [train.repeat_sentences(config, pool, step) for step in range(3 * epoch, 3 * epoch + 3)]
        epochs.append([number[tuple(tokens.tolist())] for batch in batches for tokens in batch.tokens])
        for i, row in enumerate(batches[1].tokens):  # and the labels come along
            assert batches[1].values[i].tolist() == pool.values[number[tuple(row.tolist())]].tolist()
    assert len(set(epochs[0])) == len(set(epochs[1])) == 96 and epochs[0] != epochs[1]


def test_dropout_is_for_training_only():
    """It changes the loss, is not in what is evaluated, and is off again in the model that comes back."""
    dials = dict(attention="vanilla", max_steps=1, eval_every=1, ema=0.0)
    with_it, without = train.train(tiny(dropout=0.5, **dials)), train.train(tiny(**dials))
    assert with_it["loss"] != without["loss"] and with_it["accuracy"][0] == without["accuracy"][0]
    config = tiny(dropout=0.5, **dials)
    model = train.make_model(config)
    tokens = lego.sample(lego.make_task("sign"), 8, 4).tokens
    for _ in range(2):
        assert torch.equal(model(tokens), model(tokens))
        train.train(config, model)


def test_flops_are_those_of_the_steps_made():
    """
    20 steps of 32 sentences of 4 clauses, at three times a forward pass: what figures plot accuracy against. Where no
    gradient goes from loop to loop, and the last alone has a loss, it alone has a backward pass.
    """
    config = tiny(loop_jitter=0, self_condition=False, every_layer=True)
    n_read = config.n_supervised * config.n_layer
    assert train.train(config)["flops"][-1] == 20 * 3 * 32 * train.make_model(config).flops(20, n_read=n_read)
    config = tiny(loop_jitter=0)
    forward, backward = (train.make_model(config).flops(20, n_loops, config.n_supervised) for n_loops in (2, 1))
    assert train.train(config)["flops"][-1] == 20 * 32 * (forward + 2 * backward)


def test_run_ends_where_all_variables_stand():
    """At 99.9% over five evaluations, and not before. A chain of one clause is there soon."""
    history = train.train(tiny(n_clauses=1, n_supervised=1, lr=1e-2, max_steps=300))
    means = [sum(row[0] for row in history["accuracy"][max(0, i - 4) : i + 1]) / 5 for i in range(len(history["step"]))]
    assert history["step"][-1] < 300 and means[-1] >= 0.999 and max(means[:-1]) < 0.999
    assert train.train(tiny(n_clauses=1, n_supervised=1, lr=1e-2, max_steps=100, stop_at=0.0))["step"][-1] == 100


def test_given_model_is_trained_in_place_and_is_what_was_evaluated():
    config = tiny(eval_every=20)
    model = train.make_model(config)
    before = model.head.weight.clone()
    history = train.train(config, model)
    assert not torch.equal(before, model.head.weight)
    test, task = train.make_generator(config, "test"), lego.make_task("sign")
    for i in range(2):  # the evaluations at step 0 and 20 draw one after the other
        batch = lego.sample(task, 50, 4, test)
    loss, accuracies = train.evaluate(model, batch, config)
    assert accuracies == history["accuracy"][-1] and loss == history["test_loss"][-1]


def test_test_sentences_are_not_the_training_sentences():
    """Streams of one seed, and of the next, have nothing in common: a CPU generator drops the high bits of a seed."""
    task, first = lego.make_task("sign"), []
    for seed in (0, 1):
        for stream in train.STREAMS:
            first.append(lego.sample(task, 64, 12, train.make_generator(tiny(seed=seed), stream)).tokens[:, 2::5])
    for i, tokens in enumerate(first):
        assert not any(torch.equal(tokens, other) for other in first[i + 1 :])


def test_accuracy_is_counted_per_variable_in_chain_order():
    """A stand-in model that knows the first variable and says +1 to every other."""
    task = lego.make_task("sign")
    batch = lego.sample(task, 3000, 3, torch.Generator().manual_seed(0))

    class Model(torch.nn.Module):
        config = train.Config(n_embd=2)

        def trace(self, tokens, n_loops):
            is_root_clause = (tokens == task.vocab.index("1")).roll(-3, 1)  # true at the variable of the root clause
            minus = is_root_clause & (tokens.roll(-2, 1) == task.first_operation + 1)
            yield torch.stack((~minus, minus), -1).float(), None

        def readout(self, x):
            return x

    loss, (first, *others) = train.evaluate(Model(), batch, train.Config(n_supervised=1))
    assert first == 1 and all(0.45 < a < 0.55 for a in others)
    assert loss == pytest.approx(math.log(1 + math.exp(-1)))  # of the supervised variable alone


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


def test_loss_that_is_not_finite_stops_the_run_and_keeps_the_checkpoint(tmp_path, monkeypatch):
    """The line names the first step that had one, and the dials."""
    train.train(tiny(out_dir=str(tmp_path), max_steps=5))
    before, loss_of, calls = (tmp_path / "checkpoint.pt").read_bytes(), train.loss_of, []

    def burst(*arguments):
        calls.append(arguments)
        return loss_of(*arguments) * (math.inf if len(calls) > 3 else 1)

    monkeypatch.setattr(train, "loss_of", burst)
    with pytest.raises(ValueError, match="the loss at step 3 is inf, expected a finite one: try a smaller lr=0.004 or"):
        train.train(tiny(out_dir=str(tmp_path)))
    assert (tmp_path / "checkpoint.pt").read_bytes() == before


def test_file_is_the_old_one_until_the_new_one_is_whole(tmp_path):
    def half(path):
        path.write_text("ne")
        raise KeyboardInterrupt

    path = tmp_path / "file"
    train.write(path, lambda beside: beside.write_text("old"))
    with pytest.raises(KeyboardInterrupt):
        train.write(path, half)
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]


# ---- the command line, when all is well


def test_run_writes_plot_history_and_checkpoint_and_shows_sentences(run, tmp_path):
    code, out, err = run(*as_arguments(**{**TINY, "out_dir": tmp_path}))
    assert code == 0 and same(json.loads((tmp_path / "history.json").read_text()), train.train(tiny()))
    for name in ("accuracy.png", "history.json", "checkpoint.pt"):
        assert (tmp_path / name).stat().st_size > 100 and f"wrote {tmp_path / name}" in out
    assert not list(tmp_path.glob("*.tmp"))
    assert (tmp_path / "accuracy.png").read_bytes().startswith(b"\x89PNG")
    steps = [line for line in out.splitlines() if line.startswith("step ")]
    assert len(steps) == 5 and all(len(line.split("loss")[1].split()) == 1 + 4 + 1 for line in steps)  # loss, 4 %, |
    assert out.count("truth") == out.count("model") == 3 and "^" in out


def test_ask_answers_in_chain_order_with_probability_truth_and_loop(run, trained):
    """Against the logits of every loop, computed one by one from the checkpoint's weights. Any names will do."""
    text = "b=-a; a=+1; c=+b; d=-c; e=-d"
    code, out, _ = run(f"--out_dir={trained}", f"--ask={text}")
    rows = [line.split() for line in out.splitlines()]
    assert code == 0 and [row[0] for row in rows] == list("abcde")
    assert [row[6] for row in rows] == ["+1", "-1", "-1", "+1", "-1"]

    task, model = lego.make_task("sign"), train.make_model(tiny())
    model.load_state_dict(torch.load(trained / "checkpoint.pt", weights_only=True)["model"])
    tokens, n_loops = lego.encode(text, task)[None], 5 + 8  # more loops than eval_loops=3, for the chain is longer
    at = [5, 0, 10, 15, 20]
    answers = torch.stack([model(tokens, n)[0, at].argmax(-1) for n in range(1, n_loops + 1)])
    probabilities = model(tokens, n_loops)[0, at].softmax(-1).amax(-1)
    for i, row in enumerate(rows):
        assert row[2] == task.values[answers[-1, i]] and abs(float(row[4]) - probabilities[i]) < 1e-4
        settled = int(row[10])
        assert (answers[settled - 1 :, i] == answers[-1, i]).all() and row[12] == str(n_loops)
        assert settled == 1 or answers[settled - 2, i] != answers[-1, i]
        assert ("wrong" in row) == (row[2] != row[6])
    other = run(f"--out_dir={trained}", "--ask=v30=-v1023; v1023=+1; c=+v30; d=-c; e=-d")[1].splitlines()
    assert [row.split()[1:] for row in other] == [row[1:] for row in rows]


def test_names_beyond_the_alphabet_are_refused_where_each_has_an_embedding(run, tmp_path):
    train.train(tiny(shared_names=False, max_steps=1, out_dir=str(tmp_path)))
    code, _, err = run(f"--out_dir={tmp_path}", "--ask=v30=+1")
    assert code == 2 and err.startswith("train.py: clause 'v30=+1': expected variable") and err.count("\n") == 1


def test_checkpoint_can_move(run, trained, tmp_path):
    """The folder and the machine are those of the command line, not those of the run that wrote the checkpoint."""
    moved = tmp_path / "moved"
    moved.mkdir()
    checkpoint = torch.load(trained / "checkpoint.pt", weights_only=True)
    checkpoint["config"].update(device="cuda:77", out_dir=str(tmp_path / "nowhere"))
    torch.save(checkpoint, moved / "checkpoint.pt")
    assert run(f"--out_dir={moved}", "--ask=a=+1")[0] == 0
    assert run(f"--out_dir={moved}", "--resume", "--max_steps=25", "--device=cpu")[0] == 0
    assert (moved / "accuracy.png").exists() and not (tmp_path / "nowhere").exists()


def test_dials_of_every_type_are_read():
    config = train.override(train.Config(), ["--task=d3", "--n_layer=5", "--lr=1e-3", "--tied=false", "--compile"])
    assert (config.task, config.n_layer, config.lr, config.tied, config.compile) == ("d3", 5, 1e-3, False, True)


def test_help_lists_every_dial(run):
    code, out, _ = run("--help")
    assert code == 0 and all(f"--{dial}=" in out for dial in [*train.Config.__dataclass_fields__, "preset"])


def test_paper_preset_is_the_official_recipe():
    """The demo's numbers: BERT-base, 120,000 sentences 200 times in batches of 1000, Adam at 5e-5, cosine."""
    config = train.override(train.Config(), ["--preset=paper"])
    train.check(config)
    with torch.device("meta"):
        model = train.make_model(config)
    assert sum(p.numel() for p in model.blocks.parameters()) == 85_054_464  # of BERT-base's 12 layers
    assert config.n_train == 10_000 * config.n_clauses and config.max_steps * config.batch_size == 200 * config.n_train
    (optimizer,) = train.make_optimizers(model, config)
    group = optimizer.param_groups[0]
    assert (group["lr"], group["betas"], group["weight_decay"]) == (5e-5, (0.9, 0.999), 0)
    assert [round(train.lr_multiplier(step, config), 6) for step in (0, 12_000)] == [1, 0.5]


def test_paper_preset_trains(run, tmp_path):
    """A few steps, small; a dial behind the preset goes on top of it."""
    small = dict(n_embd=24, batch_size=20, n_train=60, max_steps=6, eval_every=3, eval_size=20, lr=1e-3, device="cpu")
    code, out, err = run("--preset=paper", *as_arguments(out_dir=tmp_path, **small))
    history = json.loads((tmp_path / "history.json").read_text())
    assert code == 0 and history["config"]["dropout"] == 0.1 and history["config"]["n_embd"] == 24
    assert history["loss"][2] < history["loss"][1]


# ---- pretraining: words, mimicking, and what begins from them


TEXT = "\n\n".join(f"the {a} and the {b} sat on a mat ; {a} = {b}" for a in ("cat", "dog", "hen", "cow", "pig", "owl")
                   for b in ("rat", "bat", "fly", "bee", "ant", "elk", "emu"))
VANILLA = dict(attention="vanilla", norm_state=False, loop_jitter=0, tied=False)


@pytest.fixture
def words(tmp_path, monkeypatch):
    """The dials of a run on a small text, in a folder where nothing else is."""
    monkeypatch.chdir(tmp_path)
    Path("text.txt").write_text(TEXT)
    return dict(VANILLA, task="words", corpus="text.txt", n_words=64, n_tokens=16, positions="learned", lr=1e-2)


def test_hidden_words_are_learned(words):
    history = train.train(tiny(**words, max_steps=100))
    assert history["test_loss"][-1] < history["test_loss"][0] - 1  # nats, on documents held out
    assert len(history["accuracy"][-1]) == 1 and history["accuracy"][-1][0] > history["accuracy"][0][0] + 0.2
    model = train.make_model(tiny(**words))
    assert history["flops"][-1] == 100 * 3 * 32 * model.flops(16, n_read=2)  # 15% of 16 words


def test_mimicking_is_at_its_aim_where_the_maps_are_the_patterns():
    """A stand-in model: with the patterns as its maps the loss is 0; with uniform ones the divergence by hand."""
    batch = lego.sample(lego.make_task("sign"), 4, 3)
    maps = train.patterns(batch.tokens)
    floor = lambda x: (x + 1e-3) / (x + 1e-3).sum(-1, keepdim=True)

    class Model:
        def trace(self, tokens, n_loops, need_weights):
            yield None, self.weights
            yield None, self.weights

    Model.weights = torch.cat((maps, torch.rand(4, 1, 15, 15)), 1)  # a third head is free
    assert train.mimic_loss(Model(), batch).item() == pytest.approx(0, abs=1e-6)
    Model.weights = torch.full((4, 2, 15, 15), 1 / 15)
    by_hand = sum((1 / 15 * math.log(1 / 15 / p)) for p in floor(maps).flatten().tolist()) / (4 * 15)
    assert train.mimic_loss(Model(), batch).item() == pytest.approx(2 * by_hand, rel=1e-4)


def test_mimicking_is_a_run_like_others(run, tmp_path):
    dials = {**TINY, **VANILLA, "n_head": 2, "mimic": True, "lr": 1e-2, "out_dir": str(tmp_path)}
    code, out, err = run(*as_arguments(**dials))
    history = json.loads((tmp_path / "history.json").read_text())
    assert code == 0 and (tmp_path / "loss.png").exists() and "test loss" in out
    assert history["test_loss"][-1] < history["test_loss"][0] and history["accuracy"] == [[]] * 5
    before = torch.load(tmp_path / "checkpoint.pt")["model"]
    config = train.override(train.Config(), [f"--init_from={tmp_path}", "--n_clauses=3", "--n_supervised=3"])
    assert (config.n_layer, config.attention, config.tied) == (2, "vanilla", False)
    assert config.mimic is False  # the shape comes along, the task does not
    after = train.make_model(config).state_dict()
    assert all(torch.equal(after[name], before[name]) for name in before)


def test_shared_embedding_of_the_names_goes_to_each_of_them_and_back(tmp_path):
    """Variables begin alike where the weights are from a run in which they were alike, and the other way about."""
    for shared in (True, False):
        train.train(tiny(shared_names=shared, max_steps=1, out_dir=str(tmp_path)))
        there = train.read_checkpoint(tmp_path)["model"]["token_embedding.weight"]
        assert len(there) == (6 if shared else 5 + 26)
        for here_shared in (True, False):
            config = tiny(shared_names=here_shared, init_from=str(tmp_path))
            here = train.make_model(config).token_embedding.weight
            torch.testing.assert_close(here, there[[min(i, len(there) - 1) for i in range(len(here))]])


def test_head_is_taken_for_the_same_symbols_only(tmp_path):
    """c6 and d3 have heads of one shape, and another alphabet is no other task."""
    train.train(tiny(task="c6", max_steps=1, out_dir=str(tmp_path)))
    head = train.read_checkpoint(tmp_path)["model"]["head.weight"]
    head_of = lambda **dials: train.make_model(tiny(**dials, init_from=str(tmp_path))).head.weight
    assert torch.equal(head_of(task="c6", n_names=40), head) and not torch.equal(head_of(task="d3"), head)


def test_checkpoint_of_a_version_with_fewer_dials_is_read(trained, tmp_path):
    checkpoint = train.read_checkpoint(trained)
    for dial in ("norm_eps", "self_condition", "shared_names"):
        del checkpoint["config"][dial]
    torch.save(checkpoint, tmp_path / "checkpoint.pt")
    config = train.override(train.Config(), [f"--init_from={tmp_path}"])
    assert (config.norm_eps, config.self_condition, config.shared_names) == (train.Config.norm_eps, False, False)


@pytest.mark.parametrize("part", ["progress", "last", "optimizers", "generators"])
def test_checkpoint_of_an_older_version_is_not_resumed_and_stays(run, trained, tmp_path, part):
    checkpoint = train.read_checkpoint(trained)
    del checkpoint[part]
    torch.save(checkpoint, tmp_path / "checkpoint.pt")
    before = (tmp_path / "checkpoint.pt").read_bytes()
    code, _, err = run(f"--out_dir={tmp_path}", "--resume", "--max_steps=30")
    assert code == 2 and "expected a checkpoint that this version of train.py can resume" in err
    assert err.count("\n") == 1 and (tmp_path / "checkpoint.pt").read_bytes() == before


def test_question_to_a_model_without_values_is_one_line(run, tmp_path):
    train.train(tiny(mimic=True, attention="vanilla", tied=False, max_steps=1, out_dir=str(tmp_path)))
    code, out, err = run(f"--out_dir={tmp_path}", "--ask=a=+1")
    assert code == 2 and "expected a checkpoint that was trained on values" in err and err.count("\n") == 1


def test_lego_after_words_keeps_what_its_tokens_were(words):
    """Each symbol takes its own row, positions as far as they are needed; the head is new."""
    train.train(tiny(**words, out_dir="pretrained"))
    checkpoint = train.read_checkpoint("pretrained")
    dials = [*as_arguments(**{**TINY, "n_clauses": 3}), "--init_from=pretrained", "--device=cpu"]
    model = train.make_model(train.override(train.Config(), dials))
    for symbol, row in zip(lego.make_task("sign").vocab, model.token_embedding.weight):
        assert torch.equal(row, checkpoint["model"]["token_embedding.weight"][checkpoint["vocab"].index(symbol)])
    assert torch.equal(model.position_embedding.weight, checkpoint["model"]["position_embedding.weight"][:15])
    assert model.head.out_features == 2
    with pytest.raises(ValueError, match=r"init_from=pretrained: .*expected position_embedding.weight \[20, 16\]"):
        train.make_model(train.override(train.Config(n_clauses=4, n_supervised=4), ["--init_from=pretrained"]))


@pytest.mark.parametrize("arguments, expected", [
    (["--task=words"], "self_condition=True: expected False for words and mimicking"),
    (["--task=words", "--self_condition=False", "--every_layer"], "every_layer=True: expected False for task=words"),
    (["--mimic"], "mimic=True: expected False, or attention=vanilla"),
    (["--mimic", "--task=words", "--attention=vanilla"], "mimic=True: expected False for task"),
    (["--init_from=nowhere"], "init_from=nowhere: expected a folder with a checkpoint.pt of train.py, or"),
    (["--preset=words", "--corpus=nowhere"], "corpus=nowhere: expected a text file (No such file"),
    (["--preset=words", "--corpus=README.md"], "corpus=README.md: expected at least n_tokens="),
])
def test_bad_pretraining_is_one_line(run, monkeypatch, arguments, expected, tmp_path):
    monkeypatch.chdir(tmp_path)
    Path("README.md").write_text("a\n\nfile")
    code, out, err = run(*arguments, "--device=cpu")
    assert code == 2 and err.startswith(f"train.py: {expected}") and err.count("\n") == 1


# ---- the command line, when it is not


@pytest.mark.parametrize("argument, expected", [
    ("--n_layers=3", "'--n_layers=3': expected --dial=value with a dial of train.Config, --n_layer perhaps"),
    ("--qqq=3", "'--qqq=3': expected --dial=value"),
    ("n_layer=3", "'n_layer=3': expected --dial=value"),
    ("--n_layer=3.5", "n_layer=3.5: expected a whole number"),
    ("--n_layer", "--n_layer: expected --n_layer=value"),
    ("--n_layer=", "n_layer=: expected a whole number"),
    ("--lr=fast", "lr=fast: expected a number"),
    ("--preset=foo", "preset=foo: expected vanilla, words, paper"),
    ("--tied=maybe", "tied=maybe: expected True or False"),
    ("--n_clauses=27", "n_clauses=27: expected 1 to n_names=26"),
    ("--n_clauses=0", "n_clauses=0: expected 1"),
    ("--n_supervised=10", "n_supervised=10: expected at most n_layer + loop_jitter = 9, the links that"),
    ("--n_supervised=13", "n_supervised=13: expected 1 to n_clauses=12"),
    ("--n_names=2000", "n_names=2000: expected 1 to 1024"),
    ("--min_clauses=13", "min_clauses=13: expected 0 to n_clauses=12"),
    ("--n_distractor=12", "n_distractor=12: expected 0 to 11, below the clauses of any sentence"),
    ("--drop_clause=2", "drop_clause=2.0: expected 0 to 1"),
    ("--drop_clause=True", "drop_clause=True: expected a number"),
    ("--task=c1", "task=c1: expected sign, c<k>"),
    ("--attention=foo", "attention=foo: expected vanilla, lego or hybrid"),
    ("--association=foo", "association=foo: expected auto, dense, segment, triton"),
    ("--positions=foo", "positions=foo: expected learned or none"),
    ("--kernel_size=4", "kernel_size=4: expected an odd number"),
    ("--n_layer=0", "n_layer=0: expected at least 1"),
    ("--loop_jitter=5", "loop_jitter=5: expected 0 to n_layer - 1 = 4"),
    ("--lr=-1", "lr=-1.0: expected above 0"),
    ("--lr=nan", "lr=nan: expected above 0"),
    ("--muon_lr=inf", "muon_lr=inf: expected 0 or above"),
    ("--ema=1", "ema=1.0: expected 0 to below 1"),
    ("--dropout=1", "dropout=1.0: expected 0 to below 1"),
    ("--n_train=100", "n_train=100: expected 0, or at least batch_size=128"),
    ("--batch_size=0", "batch_size=0: expected at least 1"),
    ("--schedule=step", "schedule=step: expected constant, linear or cosine"),
    ("--dtype=float16", "dtype=float16: expected float32 or bfloat16"),
    ("--device=tpu", "device=tpu: expected auto, cpu, or a cuda or mps device"),
    ("--device=cuda:99", "device=cuda:99: expected auto, cpu, or a cuda or mps device"),
    ("--device=meta", "device=meta: expected auto, cpu, or a cuda or mps device"),
    ("--out_dir=README.md", "out_dir=README.md: expected a folder that can be written to"),
    ("--out_dir=README.md/x", "out_dir=README.md/x: expected a folder that can be written to"),
    ("--seed=-1", "seed=-1: expected 0 to 2^29 - 1"),
    ("--ask", "--ask: expected --ask=value"),
])
def test_bad_dial_is_one_line(run, monkeypatch, argument, expected, tmp_path):
    monkeypatch.chdir(tmp_path)
    Path("README.md").write_text("a file")
    code, out, err = run(argument)
    assert code == 2 and err.startswith(f"train.py: {expected}") and err.count("\n") == 1 and "Traceback" not in err
    assert [path.name for path in tmp_path.iterdir()] == ["README.md"]


@pytest.mark.parametrize("text, expected", [
    ("", "sentence '': expected clauses"),
    ("a=*1", "clause 'a=*1': expected variable=operation argument"),
    ("a=+1; a=-1", "clause 'a=-1': a is assigned a second time"),
    ("a=+b; b=+a", "clause 'a=+b': following the arguments from here runs in a circle"),
    ("a=r1 1", "clause 'a=r1 1'"),
])
def test_bad_question_is_one_line(run, trained, text, expected):
    code, out, err = run(f"--out_dir={trained}", f"--ask={text}")
    assert code == 2 and out == "" and err.startswith(f"train.py: {expected}") and err.count("\n") == 1


@pytest.mark.parametrize("arguments", [["--ask=a=+1"], ["--resume"]])
def test_bad_checkpoint_is_one_line(run, trained, tmp_path, arguments):
    """Missing, truncated, something else, of another shape: named, and left as it was."""
    path, whole = tmp_path / "checkpoint.pt", (trained / "checkpoint.pt").read_bytes()
    other = torch.load(trained / "checkpoint.pt", weights_only=True)
    other["config"]["n_embd"] = 24
    for content, expected in [
        (None, "expected a checkpoint, there is none; python train.py makes one"),
        (whole[: len(whole) // 2], "expected a checkpoint of train.py, this is damaged or something else"),
        (b"", "expected a checkpoint of train.py, this is damaged or something else"),
        (b"some text", "expected a checkpoint of train.py, this is damaged or something else"),
        (other, "expected the shape that the dials describe: size mismatch for"),
    ]:
        if isinstance(content, bytes):
            path.write_bytes(content)
        elif content is not None:
            torch.save(content, path)
        before = path.read_bytes() if content is not None else None
        code, out, err = run(f"--out_dir={tmp_path}", *arguments)
        assert code == 2 and err.startswith(f"train.py: {path}: {expected}") and err.count("\n") == 1
        assert (path.read_bytes() if path.exists() else None) == before


@pytest.mark.parametrize("argument, expected", [
    ("--n_clauses=5", "n_clauses=5: expected 4, as in the run to resume; only max_steps"),
    ("--muon_lr=0", "muon_lr=0.0: expected 0.04, as in the run to resume; only max_steps"),
])
def test_resume_with_another_dial_is_one_line(run, trained, argument, expected):
    code, _, err = run(f"--out_dir={trained}", "--resume", argument)
    assert code == 2 and err.startswith(f"train.py: {expected}") and err.count("\n") == 1


def test_longer_sentence_than_learned_positions_is_one_line(run, tmp_path):
    train.train(tiny(out_dir=str(tmp_path), positions="learned", max_steps=1))
    code, _, err = run(f"--out_dir={tmp_path}", "--ask=a=+1; b=+a; c=+b; d=+c; e=+d")
    assert code == 2 and "a sentence of 25 tokens: expected at most block_size=20" in err and err.count("\n") == 1


def test_exit_code_and_stream_of_the_real_program():
    done = subprocess.run([sys.executable, ROOT / "train.py", "--lr=-1"], capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (2, "", "train.py: lr=-1.0: expected above 0, at most 1e6\n")


def refused_or_fine(run, arguments, what):
    """Whatever comes in, exit code 0, or 2 and one line: `what` is said where it is not so."""
    try:
        code, _, err = run(*arguments)
    except Exception as error:
        raise AssertionError(ascii(what)) from error
    assert code == 0 or (code == 2 and len(err.splitlines()) == 1 and "expected" in err), ascii((what, err))
    return code


def test_mutated_dials_are_read_or_refused_in_one_line(run, mutate, monkeypatch, tmp_path):
    """One to three dials with values of every kind, some mutated, up to the model: 3000 command lines."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(train, "train", lambda config, model: sys.exit(0))
    monkeypatch.setattr(lego, "LIBRARIES", ("tqdm",))
    numbers = ["0", "1", "2", "3", "8", "-1", "+3", " 3 ", "1_0", "３", "²", "0x10", "1e3", "2.5", "1e-320", "1e999",
               "nan", "-inf", "inf", "", "'3'", "True", "9" * 5000, str(10**30)]
    words = ["", "sign", "d3", "c1", "words", "lego", "vanilla", "hybrid", "learned", "none", "dense", "segment",
             "a\nb", "cosine", "bfloat16", "cpu:1", "hpu", "meta", "True", "false", "x" * 300, "x/" * 3000,
             "\ud800", "\0"]
    pools = {int: numbers, float: numbers, bool: words, str: words}
    dials = [dial for dial in train.Config.__dataclass_fields__ if dial not in ("compile", "resume", "ask")]
    r, codes = random.Random(0), []
    for _ in range(3000):
        arguments = [f"--{dial}={r.choice(pools[train.Config.__dataclass_fields__[dial].type])}"
                     for dial in r.choices(dials, k=r.choice([1, 1, 2, 3]))]
        arguments = [mutate(argument) if r.random() < 0.2 else argument for argument in arguments]
        codes.append(refused_or_fine(run, [*as_arguments(**TINY), *arguments], arguments))
    assert codes.count(0) > 300 and codes.count(2) > 1000


def test_flipped_byte_of_a_weight_is_noticed(run, trained, tmp_path):
    """It would be a weight like any other."""
    data = bytearray((trained / "checkpoint.pt").read_bytes())
    largest = max(zipfile.ZipFile(trained / "checkpoint.pt").infolist(), key=lambda entry: entry.file_size)
    data[largest.header_offset + largest.file_size // 2] ^= 64
    (tmp_path / "checkpoint.pt").write_bytes(data)
    code, _, err = run(f"--out_dir={tmp_path}", "--ask=a=+1")
    assert code == 2 and "this is damaged" in err


@pytest.mark.filterwarnings("ignore:Using a non-tuple")
def test_hostile_checkpoint_is_refused_or_fine_and_runs_nothing(run, trained, monkeypatch, tmp_path):
    """
    Cut, with bytes changed, with parts missing or of another type anywhere, or made to run a command when it is read:
    asked, resumed or begun from, 130 of them.
    """
    for slow in ("plot_accuracy", "show_sentences"):
        monkeypatch.setattr(train, slow, lambda *arguments: None)
    path, whole, r = tmp_path / "checkpoint.pt", (trained / "checkpoint.pt").read_bytes(), random.Random(0)
    modes = [["--ask=b=-a; a=+1"], ["--resume", "--max_steps=21"],
             [*as_arguments(**TINY, init_from=tmp_path), "--max_steps=1", "--n_clauses=3"]]
    junk = [None, -1, 7, 0.5, "", "a\nb", [], [None], {}, {1: 2}, torch.zeros(()), torch.zeros(2, 3),
            torch.zeros(3, dtype=torch.int64), torch.zeros(2, 2).to_sparse(), torch.zeros(3, device="meta")]

    class Command:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "executed"),)

    for i in range(130):
        data, what = bytearray(whole), i
        if i < 30:
            del data[r.choice([r.randrange(len(data)), -r.randrange(1, 400)]) :]
        elif i < 60:
            data[r.choice([r.randrange(len(data)), -r.randrange(1, 6000)])] ^= r.randrange(1, 256)
        elif i == 60:
            data = pickle.dumps(Command(), protocol=2)
        path.write_bytes(data)
        if i > 60:
            checkpoint = part = torch.load(trained / "checkpoint.pt", weights_only=True)
            what = []
            while not what or (isinstance(part, (dict, list)) and len(part) and r.random() < 0.8):
                parent, key = part, r.choice(list(part) if isinstance(part, dict) else range(len(part)))
                part = parent[key]
                what.append(key)
            if r.random() < 0.25:
                del parent[key]
            else:
                parent[key] = Command() if i < 70 else r.choice(junk)
                what.append(str(parent[key])[:40])
            torch.save(checkpoint, path)
        before = path.read_bytes()
        for mode in modes if 60 <= i < 70 else [r.choice(modes)]:
            refused_or_fine(run, [*mode, f"--out_dir={tmp_path}", "--device=cpu"], (mode[0], what))
            assert not (tmp_path / "executed").exists(), what
            path.write_bytes(before)
