"""train.py: runs learn, repeat and go on bit for bit; what is typed wrong is one line."""
import inspect
import io
import json
import math
import re
import sys
from dataclasses import dataclass, replace

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import lego
import train
from model import Transformer, load, logits_at, read_checkpoint
from train import Config

TINY = dict(n_clauses=4, n_supervised=2, n_embd=16, max_steps=6, eval_every=2, eval_size=10,
            device="cpu", out_dir="")
VANILLA = dict(attention="vanilla", tied=False, n_layer=2)


def tiny(**dials):
    return Config(**{**TINY, **dials})


def numbers(history):
    """All of a history but the times."""
    return [history[key] for key in ("step", "loss", "test_loss", "accuracy")]


def strict(path):
    """What a JSON file holds, in which there is no NaN."""
    return json.loads(path.read_text(), parse_constant=pytest.fail)


def assert_same_end(folder, other):
    """Two runs came to the same history, weights, average and optimizers, bit for bit."""
    assert numbers(strict(folder / "history.json")) == numbers(strict(other / "history.json"))
    ends = [read_checkpoint(path) for path in (folder, other)]
    for key in ("model", "last", "optimizers"):
        torch.testing.assert_close(*(end[key] for end in ends), rtol=0, atol=0)


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory):
    """The folder of a run that nothing has stopped."""
    folder = tmp_path_factory.mktemp("unbroken")
    train.train(tiny(out_dir=str(folder)))
    return folder


# ---- what a run learns


@pytest.mark.parametrize("dials", [
    dict(), dict(task="d3", facts=False, schedule="cosine"), dict(VANILLA, dropout=0.1, lr=4e-3),
    dict(attention="hybrid", n_layer=2, muon_lr=0.02, dtype="bfloat16")], ids=str)
def test_a_few_steps_lower_the_loss(dials, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    history = train.train(tiny(**dials, max_steps=12, eval_every=6))
    assert history["step"] == [0, 6, 12] and history["loss"][0] is None
    assert history["loss"][2] < history["loss"][1] and history["proof"] is None
    assert not [*tmp_path.iterdir()]  # without a folder no file is written
    assert all(len(row) == 4 and all(0 <= a <= 1 for a in row) for row in history["accuracy"])


def test_labelled_variables_are_learned_without_facts():
    """After the last layer: the labels belong to the sentences."""
    small = dict(n_clauses=2, n_layer=2, n_embd=32, norm="first", schedule="constant", facts=False)
    config = tiny(**{**small, "max_steps": 35, "eval_every": 35, "eval_size": 200})
    assert min(train.train(config)["accuracy"][-1]) > 0.95


def test_the_default_learns_all_variables_and_ends_with_a_proof(proved):
    folder, history = proved
    assert history["accuracy"][-1] == [1.0] * 6 and history["config"]["n_supervised"] == 3
    assert history["step"][-1] < history["config"]["max_steps"] and not history["proof"]["n_wrong"]
    assert strict(folder / "history.json") == history == read_checkpoint(folder)["history"]
    config, model = Config(**history["config"]), load(folder)
    assert train.train(config, model, resume=True)["step"] == history["step"]  # at its end
    assert train.proof_of(model, config) == history["proof"]
    assert train.proof_of(train.make_model(tiny(**VANILLA)), config) is None  # it can't be


def test_a_run_ends_where_all_variables_stand():
    """At stop_at, mean of five evaluations; with None accuracies alone end none."""
    rows = [[0.9, 1.0], [1.0, 1.0], [0.9, 0.9], [1.0, 0.9], [1.0, 1.0], [1.0, 0.9]]
    rows += [[1.0, 1.0]] * 6
    run = lambda stop_at: train.train(tiny(stop_at=stop_at, max_steps=11, eval_every=1),
                                      evaluate=lambda model, config, step: (0.1, rows[step]))
    assert [run(at)["step"][-1] for at in (0.95, 0.97, 0.999, 0.0)] == [4, 8, 10, 11]
    not_proved = run(None)
    assert not_proved["step"][-1] == 11 and not_proved["proof"]["n_wrong"] > 0


def test_the_same_seed_gives_the_same_run_and_others_keep_their_random_numbers():
    runs = []
    for seed in (3, 3, 4):
        torch.rand(1)  # someone else draws
        before, config = torch.get_rng_state(), tiny(seed=seed, dropout=0.1)
        model = train.make_model(config).train(not runs)  # a loaded one does not train yet
        runs.append(train.train(config, model))
        assert torch.equal(torch.get_rng_state(), before)
    first, again, other = map(numbers, runs)
    assert first == again and first[1] != other[1]


def test_a_given_model_is_trained_in_place_and_is_what_was_tested_and_saved(tmp_path):
    """The averaged weights, without dropout."""
    config = tiny(ema=0.5, dropout=0.5, out_dir=str(tmp_path)).complete()
    model = train.make_model(config)
    before = model.head.weight.clone()
    history = train.train(config, model)
    assert not torch.equal(before, model.head.weight) and not model.training
    assert train.evaluate(model, config, 6) == (history["test_loss"][-1], history["accuracy"][-1])
    saved = read_checkpoint(tmp_path)
    torch.testing.assert_close(saved["model"], dict(model.state_dict()), rtol=0, atol=0)
    assert not torch.equal(saved["last"]["head.weight"], model.head.weight)
    assert saved["vocab"] == model.vocab and saved["config"] == history["config"] == vars(config)


def test_the_loss_is_the_mean_over_labels_of_all_steps_since_the_last_evaluation():
    """Also over steps without a label."""
    steps = iter([(3.0, 4), (5.0, 1), (0.0, 0), (0.0, 0), (2.0, 8), (0.0, 0)])

    def loss_fn(model, batch):
        total, n = next(steps)
        return model.head.bias.sum() * 0 + total, torch.tensor(n)
    history = train.train(tiny(), loss_fn=loss_fn)
    assert history["loss"][1:] == pytest.approx([8 / 5, 0, 2 / 8])


def test_an_accuracy_is_of_a_variable_in_chain_order(monkeypatch):
    """Of a model that knows the first one and says +1 to others; a wrong one costs a nat more."""
    says = lambda batch: torch.where(batch.depths == 1, batch.values, 0)
    monkeypatch.setattr(train, "predict", lambda model, batch: torch.eye(2)[says(batch)])
    config = tiny(eval_size=1000).complete()
    loss, (first, *others) = train.evaluate(train.make_model(config), config)
    assert first == 1 and len(others) == 3 and all(0.45 < a < 0.55 for a in others)
    expected = math.log(1 + math.exp(-1)) + (3 - sum(others)) / 4
    assert loss == pytest.approx(expected, abs=1e-5)


# ---- sentences, optimizers, the machine


def test_training_sentences_are_chains_that_ask_for_the_labelled_alone():
    """The labels are the solver's. With facts `lego.reveal` asks; all variables are tested."""
    task, config = lego.make_task("sign"), tiny().complete()
    known = train.draw_sentences(config, 50, 0, "cpu")
    plain = train.draw_sentences(replace(config, facts=False), 50, 0, "cpu")
    assert torch.equal(plain.tokens, known.tokens) and known.facts.any() and not plain.facts.any()
    assert torch.equal(known.positions, torch.cat((plain.positions, plain.positions + 3), 1))
    for tokens, positions, values, depths, _ in zip(*plain):
        solution = lego.solve(lego.decode(tokens, task), task)
        said = [solution[task.vocab[i]] for i in tokens[positions]]
        assert said == [task.values[v] for v in values] and depths.tolist() == [1, 2]
    assert (train.draw_test(config, 50, torch.Generator()).depths == torch.arange(1, 5)).all()
    seeds = {train.seed_of(tiny(seed=seed), purpose, step)
             for seed in (0, 1) for purpose in ("sentences", "test") for step in (0, 1)}
    assert len(seeds) == 8  # all have random numbers of their own


@pytest.mark.parametrize("dials", [dict(), dict(muon_lr=0.01), dict(VANILLA, muon_lr=0.1)], ids=str)
def test_every_parameter_has_one_optimizer(dials):
    config = tiny(**dials).complete()
    model = train.make_model(config)
    groups = [group for o in train.make_optimizers(model, config) for group in o.param_groups]
    held = [id(p) for group in groups for p in group["params"]]
    assert sorted(held) == sorted(id(p) for p in model.parameters())
    assert [group["lr"] for group in groups] == [config.lr, config.muon_lr][: len(groups)]
    assert len(groups) == 1 + ("muon_lr" in dials)


def test_the_learning_rate_follows_its_schedule():
    rates = lambda schedule: [round(train.lr_multiplier(step, tiny(
        warmup_steps=4, max_steps=24, schedule=schedule)), 6) for step in (0, 3, 4, 9, 14, 24)]
    assert rates("linear") == [0.25, 1, 1, 0.75, 0.5, 0]
    assert rates("constant") == [0.25, 1, 1, 1, 1, 1]
    assert rates("cosine") == [0.25, 1, 1, 0.853553, 0.5, 0]


def test_every_parameter_group_follows_the_schedule_also_of_a_third_optimizer(monkeypatch):
    """Descent on the mean of a loss whose gradient is 1: a parameter moves by its rates alone."""
    def make(model, config):
        a, b, c, *others = model.parameters()
        first = torch.optim.SGD([dict(params=[a]), dict(params=[b], lr=0.2)], 0.1)
        return [first, torch.optim.SGD([c], 0.3), torch.optim.SGD(others, 0.4)]

    config = tiny(warmup_steps=2, grad_clip=0.0)
    model = train.make_model(config)
    before = [p.clone() for p in model.parameters()]
    monkeypatch.setattr(train, "make_optimizers", make)
    of_three = lambda model, _: (3 * sum(p.sum() for p in model.parameters()), torch.tensor(3))
    train.train(config, model, loss_fn=of_three)
    scheduled = sum(train.lr_multiplier(step, config) for step in range(6))
    for old, new, lr in zip(before, model.parameters(), [0.1, 0.2, 0.3] + [0.4] * len(before)):
        torch.testing.assert_close(old - new, torch.full_like(old, lr * scheduled))


def test_compile_compiles_every_block_once(monkeypatch):
    compiled = []
    monkeypatch.setattr(torch.nn.Module, "compile", lambda block: compiled.append(block))
    model = train.make_model(config := tiny(**VANILLA, compile=True, max_steps=1))
    train.train(config, model)
    assert compiled == [*model.blocks]


class NoFloat64(TorchDispatchMode):
    """As on a Mac's GPU: no tensor may be float64."""

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        assert getattr(out, "dtype", None) != torch.float64, function
        return out


def test_a_run_needs_no_float64():
    with NoFloat64():
        train.train(tiny(max_steps=2))
        train.train(tiny(**VANILLA, max_steps=2))


# ---- stops, crashes, files


class Crash(Exception):
    """The machine goes down."""


def crash(hook, step, error=Crash):
    """The hook of a run that crashes at a step."""
    def hook_until(*arguments):
        if step in arguments:
            raise error
        return getattr(train, dict(draw="draw_sentences", evaluate="evaluate")[hook])(*arguments)
    return {hook: hook_until}


@pytest.mark.parametrize("dials", [dict(dropout=0.1), dict(
    VANILLA, dropout=0.1, muon_lr=0.01, ema=0.5, schedule="cosine")], ids=str)
def test_a_run_that_crashes_goes_on_as_if_it_had_not(tmp_path, dials):
    """In an evaluation, which loses nothing, or in a step: on from the last evaluation."""
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    train.train(tiny(**dials, out_dir=str(whole)))
    config = tiny(**dials, out_dir=str(broken))
    for hook, step in [("evaluate", 2), ("draw", 3), ("evaluate", 4), ("draw", 5), ("evaluate", 6)]:
        with pytest.raises(Crash):
            train.train(config, **crash(hook, step), resume=step > 2)
        assert read_checkpoint(broken)["run"]["step"] == step // 2 * 2
    train.train(config, resume=True)
    assert_same_end(whole, broken)


@pytest.mark.parametrize("module, name, k, n_whole", [
    (torch, "save", 1, 0), (torch, "save", 2, 2), (train.os, "replace", 2, 1),
    (train.os, "replace", 3, 2)])
def test_files_are_the_old_ones_or_the_new_ones(
        unbroken, tmp_path, monkeypatch, capsys, module, name, k, n_whole):
    """Write k fails half way, as on a full disk: one line, and it goes on from the one before."""
    write, calls = getattr(module, name), []

    def full(x, path):
        calls.append(path)
        if len(calls) == k and name == "save":
            path.write_bytes(b"half")
        if len(calls) == k:
            raise OSError(28, "No space left on device")
        write(x, path)
    with monkeypatch.context() as patch, pytest.raises(SystemExit) as stop:
        patch.setattr(module, name, full)
        train.run(tiny(out_dir=str(tmp_path)))
    err = capsys.readouterr().err
    assert stop.value.code == 2 and err == "[Errno 28] No space left on device\n"
    files = {path.name for path in tmp_path.iterdir() if path.suffix != ".tmp"}
    assert files == {*["checkpoint.pt", "history.json"][:n_whole]}
    assert n_whole < 2 or strict(tmp_path / "history.json")["step"] == [0]
    train.train(tiny(out_dir=str(tmp_path)), resume=n_whole > 0)
    assert_same_end(unbroken, tmp_path)


@pytest.mark.parametrize("what", ["loss", "weight", "test loss"])
def test_what_is_not_finite_ends_the_run_and_replaces_nothing(tmp_path, capsys, what):
    """A loss; a weight that no loss has shown yet; what an evaluation finds of finite weights."""
    train.train(tiny(max_steps=2, out_dir=str(tmp_path)))
    before, steps = {path: path.read_bytes() for path in tmp_path.iterdir()}, []

    def loss_fn(model, batch):
        loss, n = train.loss_of_step(model, batch)
        steps.append(what)
        if steps == ["loss"]:
            loss = loss + math.nan
        if steps == ["weight"] * 2:  # the last one before it is tested
            loss = loss + (model.head.weight.sum() * 0).sqrt()  # 0, of infinite gradient
        return loss, n
    hooks = dict(loss_fn=loss_fn)
    if what == "test loss":
        hooks["evaluate"] = lambda *_: (math.nan, [0.5])
    with pytest.raises(SystemExit) as stop:
        train.run(tiny(out_dir=str(tmp_path)), resume=True, **hooks)
    err = capsys.readouterr().err
    assert stop.value.code == 2 and "not finite" in err and err.count("\n") == 1
    if what == "test loss":  # the weights are good: it is made again
        assert read_checkpoint(tmp_path)["run"]["step"] == 4
        assert strict(tmp_path / "history.json")["step"] == [0, 2]
    else:
        assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_ctrl_c_is_one_line_that_says_how_to_go_on(tmp_path, capsys):
    with pytest.raises(SystemExit) as stop:
        train.run(tiny(out_dir=str(tmp_path)), **crash("draw", 3, KeyboardInterrupt))
    assert stop.value.code == 130 and read_checkpoint(tmp_path)["run"]["step"] == 2
    assert capsys.readouterr().err == (
        f"stopped; --resume --out_dir={tmp_path} goes on from the last evaluation\n")


def test_a_slip_of_a_reader_keeps_its_traceback(tmp_path, monkeypatch, parse):
    """Typed into the model, or into what the dials are checked by."""
    def slip(*_):
        raise ValueError("too many values to unpack")
    monkeypatch.setattr(Transformer, "to_logits", slip)
    with pytest.raises(ValueError, match="too many values"):
        train.run(tiny(out_dir=str(tmp_path)))
    monkeypatch.setattr(lego, "make_task", slip)
    with pytest.raises(ValueError, match="too many values"):
        parse("--task=d3")


# ---- dials


def test_dials_that_are_none_follow_others():
    @dataclass
    class Mine(Config):
        attention: str = "mine"  # one's own has no silent settings of LEGO

    def dials_of(kind=Config, **dials):
        c = kind(**dials).complete()
        follow_attention = c.positions, c.share_names, c.norm, c.facts, c.lr
        return c.n_supervised, c.n_layer, c.n_names, *follow_attention
    of_lego, of_others = ("none", True, "both"), ("learned", False, "first", False, 5e-4)
    assert dials_of() == (6, 9, 26, *of_lego, True, 1e-2)
    assert dials_of(n_clauses=30) == (15, 18, 30, *of_lego, True, 1e-2)
    assert dials_of(n_clauses=1)[:2] == (1, 4) and dials_of(n_supervised=12)[:2] == (12, 15)
    assert dials_of(tied=False) == dials_of(attention="hybrid") == (6, 9, 26, *of_lego, False, 1e-2)
    assert dials_of(attention="vanilla") == dials_of(Mine) == (6, 9, 26, *of_others)
    for dials in (dict(n_clauses=30), dict(attention="vanilla"), dict(tied=False)):
        assert replace(Config(), **dials).complete() == Config(**dials).complete()


def test_what_is_given_is_taken_also_if_it_is_nothing():
    given = dict(lr=0, n_layer=1, facts=False, share_names=False, norm="last", positions="rope")
    assert given.items() <= vars(Config(**given).complete()).items()
    model = train.make_model(config := tiny(lr=0.0, weight_decay=0.1))
    before = [p.clone() for p in model.parameters()]
    train.train(config, model)
    assert all(map(torch.equal, before, model.parameters()))


# ---- the command line


@pytest.fixture
def parse(monkeypatch):
    """parse("--dial=value", ...) -> the dials, and whether to resume."""
    def parse(*arguments):
        monkeypatch.setattr(sys, "argv", ["train.py", *arguments])
        return train.parse()
    return parse


@pytest.fixture
def refused(parse, capsys):
    """refused(expected, "--dial=value", ...): exit code 2 and one line with that pattern."""
    def refused(expected, *arguments):
        with pytest.raises(SystemExit) as stop:
            parse(*arguments)
        err = capsys.readouterr().err
        assert stop.value.code == 2 and err.count("\n") == 1 and re.search(expected, err), err
    return refused


def test_dials_are_read_in_both_forms_a_switch_bare_and_beat_a_preset_in_any_order(parse):
    config, resume = parse("--max_steps", "100", "--n_layer=5", "--lr=0", "--muon_lr", "1e-3",
                           "--task=d3", "--compile", "--tied", "False", "--out_dir=100")
    assert config == Config(max_steps=100, n_layer=5, lr=0, muon_lr=1e-3, task="d3", compile=True,
                            tied=False, out_dir="100").complete() and not resume
    arguments = ["--compile", "--facts", "--seed=3", "--preset=vanilla", "--tied=True"]
    given = dict(compile=True, facts=True, seed=3, tied=True)
    expected = Config(**train.PRESETS["vanilla"] | given).complete()
    assert parse(*arguments)[0] == parse(*arguments[::-1])[0] == expected


def test_what_follows_is_printed_and_help_shows_config_as_it_is_written(parse, capsys):
    parse("--n_clauses=8", "--n_layer=5")
    (line,) = capsys.readouterr().out.splitlines()
    assert "n_supervised=4" in line and "facts=True" in line and "n_layer" not in line
    with pytest.raises(SystemExit) as stop:
        parse("--help")
    assert stop.value.code == 0 and inspect.getsource(Config).strip() in capsys.readouterr().out


@pytest.mark.parametrize("arguments, expected", [
    ("--n_layers=3", "--n_layers=3: expected one of --task, --n_clauses"), ("x", "x: expected one"),
    ("--max_step=3", "--max_step=3: expected one of"), ("--n_layer", "--n_layer: expected one "),
    ("--n_layer=", "n_layer=: expected int"), ("--n_layer=2.5", "n_layer=2.5: expected int"),
    ("--lr=nan", "lr=nan: expected float"), ("--tied=maybe", "tied=maybe: expected bool"),
    ("--schedule=step", "schedule=step: expected .*'linear', 'cosine'"),
    ("--norm=none", "norm=none: expected .*'first', 'last', 'both'"),
    ("--attention=foo", "attention=foo: expected .*'lego', 'vanilla', 'hybrid'"),
    ("--task=c1", "task=c1: expected sign, c<k>"), ("--n_names=2000", "n_names=2000: expected 1"),
    ("--n_supervised=13", "n_supervised=13: expected .*n_clauses=12"),
    ("--n_supervised=0", "n_supervised=0: expected"), ("--n_embd=-4", "n_embd=-4: expected"),
    ("--batch_size=0", "batch_size=0: expected"), ("--eval_every=0", "eval_every=0: expected"),
    ("--facts=True --tied=False", "facts=True: expected False for untied"),
    ("--attention=vanilla --n_head=5", "n_head=5: expected a divisor of n_embd=64"),
    ("--preset=foo", "--preset: invalid choice: 'foo'"), ("--device=tpu", "device=tpu: expected"),
    ("--device=cuda:99", "device=cuda:99: expected auto, cpu, or a GPU"),
    ("--init_from=nowhere", "nowhere.checkpoint.pt: expected a run of train.py"),
    ("--resume --out_dir=nowhere", "nowhere.checkpoint.pt: expected a run of train.py")])
def test_what_is_typed_wrong_is_one_line(refused, tmp_path, monkeypatch, arguments, expected):
    monkeypatch.chdir(tmp_path)
    refused(expected, *arguments.split(" "))
    assert not [*tmp_path.iterdir()]


def test_a_run_is_resumed_with_its_own_dials_wherever_it_lies(parse, refused, tmp_path):
    """Some of which may change; those that would make it another run may not."""
    train.train(tiny(schedule="constant", out_dir=str(tmp_path / "first")))
    moved = (tmp_path / "first").rename(tmp_path / "moved")
    where = ["--resume", f"--out_dir={moved}"]
    config, resume = parse(*where, "--max_steps=8", "--n_embd=16")
    expected = tiny(schedule="constant", max_steps=8, out_dir=str(moved)).complete()
    assert config == expected and train.run(config, resume)["step"] == [0, 2, 4, 6, 8]
    for dial, old in [("task=d3", "sign"), ("n_embd=8", 16), ("muon_lr=0.1", 0.0), ("seed=1", 0)]:
        refused(f"{dial}: expected {old}, as in the run to resume; only max_", *where, f"--{dial}")


def test_weights_of_another_run_are_a_start(parse, unbroken):
    config, _ = parse("--n_clauses=9", "--n_embd=16", f"--init_from={unbroken}")
    started, trained = train.make_model(config).state_dict(), load(unbroken).state_dict()
    assert all(torch.equal(started[name], trained[name]) for name in trained)


# ---- what a run shows


def test_a_report_and_a_plot_tell_labelled_variables_from_others():
    """In the report after a bar, in the plot as dashed lines, which are means of runs."""
    from matplotlib.figure import Figure

    accuracy = [[0.5] * 4, [1.0, 0.5, 0.5, 0.0]]
    history = dict(config=vars(tiny().complete()), step=[0, 2], loss=[None, 0.5], seconds=[0, 1.5],
                   test_loss=[0.5, 0.25], accuracy=accuracy, proof=None)
    assert " ".join(train.report(history).split()) == (
        "step 2 1.5 s loss 0.5000 test 0.2500 100.0 50.0 | 50.0 0.0")
    axes, other = Figure().subplots(), {**history, "accuracy": [[0.5] * 4, [1.0, 1.0, 0.5, 0.5]]}
    train.draw_accuracy(axes, [history, other])
    shown = [(line.get_label(), line.get_ydata()[-1], line.get_linestyle()) for line in axes.lines]
    assert shown == [("1", 100, "-"), ("2", 75, "-"), ("3, unlabelled", 50, "--"),
                     ("4, unlabelled", 25, "--"), ("chance, 50%", 50, ":")]


# ---- the real programs


def test_the_four_files_alone_train_ask_and_draw(bare):
    """They import nothing else, and leave Matplotlib and its variable of a notebook alone."""
    home, ended = bare
    result = ended.result()
    assert result.returncode == 0, result.stderr
    out = result.stdout.partition("two processes\n")[0]
    assert out.startswith("imported: module://matplotlib_inline.backend_inline\n")
    assert "\nsteps: 10\n" in out and "\nnot proved: " in out and "truth not determined" in out
    files = {path.name: path.read_bytes()[:4] for path in (home / "my out").iterdir()}
    assert files.keys() == {"accuracy.png", "ask.png", "checkpoint.pt", "history.json"}
    assert files["accuracy.png"] == files["ask.png"] == b"\x89PNG"


def test_two_processes_are_one(bare):
    """The same history within what rounding does, and one set of files."""
    home, ended = bare
    assert ended.result().returncode == 0
    alone, together = (strict(home / name / "history.json") for name in ("my out", "two"))
    assert together["step"] == alone["step"] == [0, 5, 10]
    for key in ("loss", "test_loss"):
        assert together[key][1:] == pytest.approx(alone[key][1:], rel=1e-4)
    assert len([*(home / "two").iterdir()]) == 3
    assert ended.result().stdout.count("step     0 ") == 2  # one log of the run alone, one of both


def test_a_run_without_a_console_trains(monkeypatch):
    monkeypatch.setattr(sys, "stderr", None)  # as under pythonw
    config = train.Config(max_steps=1, eval_size=2, n_embd=8, out_dir="", device="cpu")
    assert train.train(config)["step"] == [0, 1]
