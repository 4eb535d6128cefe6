"""figures/: runs are kept as they arrive, and every picture is drawn again from its numbers, one message each."""
import importlib
import json
import pkgutil
import random
import re
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, replace
from types import SimpleNamespace

import numpy
import pytest
import torch
import torch.nn as nn
from matplotlib.figure import Figure

import figures
import lego
import train
from attention import Manipulation, associate, identical_tokens, make_plan
from figures import (benchmark, composition, convolution, extrapolation, flow, generalisation, gpu, heads, kernels,
                     learning, lego_attention, pretraining, rivals, runner, shortcut, show, speed)

MODULES = {module.name: importlib.import_module(f"figures.{module.name}")
           for module in pkgutil.iter_modules(figures.__path__)}
DRAWN = [name for name, module in MODULES.items() if hasattr(module, "draw")]
TRAINED = [name for name, module in MODULES.items() if hasattr(module, "groups")]
TINY = dict(n_clauses=3, n_supervised=2, n_embd=16, batch_size=8, eval_size=20, max_steps=2, device="cpu", out_dir="")


# ----------------------------------------------------------------------------------------------------------------------
# every figure


def is_missing(name, groups):
    """Whether figures/<name>.json lacks a run."""
    return any(None in runs for runs in runner.found(name, groups).values())


@pytest.mark.parametrize("name", DRAWN)
def test_picture_has_one_message(name):
    """A title of one line, at most four panels, and each axis says what it shows."""
    module = MODULES[name]
    numbers = runner.complete(runner.found(name, module.groups())) if name in TRAINED else runner.load(name)
    figure = module.draw(numbers)
    figure.set_layout_engine("none")  # half of the time
    figure.draw_without_rendering()
    title = figure.get_suptitle()
    assert 20 < len(title) <= 90 and "\n" not in title, title
    panels = [axes for axes in figure.axes if axes.get_label() != "<colorbar>"]
    assert 1 <= len(panels) <= 4
    for axes in panels:
        assert axes.get_xlabel() and axes.get_ylabel(), axes.get_title()


@pytest.mark.parametrize("name", TRAINED)
def test_no_run_is_missing(name):
    assert not is_missing(name, MODULES[name].groups())


@pytest.mark.parametrize("name", sorted({*TRAINED} - {"heads", "learning"}))
def test_docstring_counts_the_runs(name):
    said = re.search(rf"python -m figures\.{name} +(\d+) runs", MODULES[name].__doc__)
    assert int(said[1]) == sum(map(len, MODULES[name].groups().values()))


@pytest.mark.parametrize("name, groups", [
    ("heads.knockout", heads.knocked_out), ("flow.patch", flow.patched),
    ("rivals.search", rivals.searches), ("rivals.steps", rivals.shorter), ("convolution.search", convolution.searches),
    ("lego_attention.search", lego_attention.searches)])
def test_no_run_is_missing_beside_those_of_a_picture(name, groups):
    assert not is_missing(name, groups())


@pytest.mark.parametrize("name", TRAINED)
def test_every_run_can_be_made(name):
    for configs in MODULES[name].groups().values():
        for config in configs:
            train.check(config)


def test_every_figure_is_redrawn(monkeypatch, capsys):
    drawn = []
    monkeypatch.setattr(runner, "redraw", lambda name, draw, groups=None: drawn.append(name))
    importlib.import_module("figures.__main__").main([])
    assert set(DRAWN) <= set(drawn) and "speed" not in drawn
    monkeypatch.undo()
    runner.redraw("learning", None, {"sign": [train.Config(seed=99)]})
    assert "learning: no picture, it lacks runs of sign; python" in capsys.readouterr().out
    with pytest.raises(ValueError, match="'--again': expected no argument"):
        importlib.import_module("figures.__main__").main(["--again"])


def test_labels_of_lines_do_not_overlap_on_any_scale():
    axes = Figure().subplots()
    axes.set(yscale="log", ylim=(1, 100))
    show.label_ends(axes, [(10, "ten", "black"), (10, "another ten", "black"), (100, "hundred", "black")])
    heights = {text.get_text(): text.xy[1] for text in axes.texts}
    assert sorted(heights.values()) == pytest.approx([0.5, 0.545, 1])


# ----------------------------------------------------------------------------------------------------------------------
# the runner


@pytest.fixture
def folder(monkeypatch, tmp_path):
    """Where the runs of a test go; training is only said to be done. run.made: the seeds that were trained."""
    def run(config):
        run.made.append(config.seed)
        if len(run.made) == run.stop_at:
            raise KeyboardInterrupt
        return dict(config=asdict(config), hardware="an abacus", torch="0", nth=len(run.made))

    run.made, run.stop_at = [], None
    monkeypatch.setattr(runner, "FOLDER", tmp_path)
    monkeypatch.setattr(train, "train", run)
    return run


GROUPS = {"a": [train.Config(seed=1), train.Config(seed=2)], "b": [train.Config(seed=3), train.Config(seed=4)]}


def test_stopped_figure_goes_on_where_it_was(folder, capsys):
    """A run that is there is not made again, with --again all are; one with another dial is another run."""
    folder.stop_at = 3
    with pytest.raises(KeyboardInterrupt):
        runner.train_all("some", GROUPS)
    runner.train_all("some", GROUPS)
    runner.train_all("some", GROUPS)
    assert folder.made == [1, 2, 3, 3, 4] and not is_missing("some", GROUPS)
    said = capsys.readouterr().out.splitlines()
    assert said[0] == "some: 0 of 4 runs are saved in figures/some.json; training 4"
    assert said[1] == "some: 2 of 4 runs are saved in figures/some.json (an abacus, torch 0); training 2"
    assert said[2].endswith("4 of 4 runs are saved in figures/some.json (an abacus, torch 0); nothing to train; "
                            "--again trains them anew")
    assert is_missing("some", {"a": [train.Config(seed=1, lr=1e-4)]})
    assert [h["config"]["seed"] for runs in runner.load("some").values() for h in runs] == [1, 2, 3, 4]


def test_again_trains_all_and_a_stop_loses_no_new_run(folder):
    runner.train_all("some", GROUPS)
    folder.stop_at = 7
    with pytest.raises(KeyboardInterrupt):
        runner.train_all("some", GROUPS, again=True)
    assert [h["nth"] for runs in runner.load("some").values() for h in runs] == [5, 6]
    runner.train_all("some", GROUPS)
    assert folder.made == [1, 2, 3, 4, 1, 2, 3, 3, 4]


def test_what_runs_begin_from_is_made_for_missing_runs_alone(folder):
    """And only what they begin from."""
    configs = {"a": [train.Config(seed=1, init_from="first")]}
    sources = [train.Config(seed=11, out_dir="first"), train.Config(seed=12, out_dir="second")]
    runner.train_all("some", configs, sources=sources)
    runner.train_all("some", configs, sources=sources)
    assert folder.made == [11, 1]


def test_dials_of_earlier_versions_are_read(folder):
    """What a run says is compared; what it can't know is not, but that it saw chains."""
    old = {k: v for k, v in asdict(train.Config(seed=5, branch=0.0)).items() if k not in ("branch", "unknown_weight")}
    runner.save("some", {"a": [dict(config={**old, "gone": 1})]})
    assert not is_missing("some", {"a": [train.Config(seed=5, branch=0.0)]})
    assert is_missing("some", {"a": [train.Config(seed=5)]})


def test_figure_is_trained_and_drawn(folder):
    runner.make("some", lambda runs: Figure(figsize=(1, 1)), lambda: GROUPS)
    assert [history["config"]["seed"] for history in runner.load("some")["a"]] == [1, 2]
    assert (runner.FOLDER / "some.png").exists()


@pytest.mark.parametrize("arguments", [["--agian"], ["--again", "--scale=huge"]])
def test_bad_argument_is_named(arguments):
    with pytest.raises(ValueError, match=f"'{' '.join(arguments)}': expected --again, or nothing"):
        runner.is_again(arguments)


def test_measured_figure_keeps_its_numbers_until_asked(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(runner, "FOLDER", tmp_path)
    measure = lambda device, save: save(dict(hardware=str(device), torch="0", seconds=1, n=len(measured)))
    measured, argv = [], ["some"]
    monkeypatch.setattr(sys, "argv", argv)
    for argument in (None, None, "--again"):
        argv[1:] = [argument] * bool(argument)
        runner.main_measured("some", lambda device, save: measured.append(measure(device, save)), lambda name: None)
    assert len(measured) == 2 and "--again measures this machine" in capsys.readouterr().out
    argv[1:] = ["cpu"]
    with pytest.raises(SystemExit):
        runner.main_measured("some", measure, None)
    assert capsys.readouterr().err == "some: 'cpu': expected --again, or nothing\n"


def test_missing_numbers_are_named_with_the_command_that_makes_them():
    with pytest.raises(ValueError, match="figures/nothing.json: expected .*python -m figures.nothing makes them"):
        runner.load("nothing")


def test_runs_that_end_in_another_order_are_saved_in_theirs(folder, monkeypatch):
    """Threads stand in for the processes, which would take seconds to start."""
    first = threading.Event()

    def run(config):  # the first run waits for the last
        first.set() if config.seed == 4 else first.wait(10)
        return folder(config)

    monkeypatch.setattr(torch, "get_num_threads", lambda: 4)
    monkeypatch.setattr(runner, "ProcessPoolExecutor", lambda n, context, begin: ThreadPoolExecutor(n))
    runner.train_all("some", GROUPS, run)
    assert folder.made[0] == 4
    assert [h["config"]["seed"] for runs in runner.load("some").values() for h in runs] == [1, 2, 3, 4]


def test_finished_checkpoint_is_not_made_again(monkeypatch, tmp_path):
    """One of other dials is, and one that was stopped."""
    config = train.Config(**{**TINY, "out_dir": str(tmp_path / "run")})
    runner.make_checkpoints([config])
    trained = []
    monkeypatch.setattr(train, "train", lambda config: trained.append(config))
    runner.make_checkpoints([config])
    assert not trained
    others = [replace(config, lr=1e-3), replace(config, max_steps=3)]
    runner.make_checkpoints(others)
    assert trained == others


def test_settled_is_where_a_run_stays():
    history = dict(accuracy=[[1, 0], [0.5, 0], [1, 0], [0.9995, 1], [1, 0.9], [1, 1]])
    assert [runner.settled(history, 1), runner.settled(history, 2), runner.settled(history, 2, 0.9)] == [2, 5, 3]
    assert runner.settled(dict(accuracy=[[1], [0]]), 1) is None


def test_looks_do_not_change_the_run():
    config = train.Config(**{**TINY, "max_steps": 6, "eval_every": 2})
    whole = train.train(config)
    history = train.train(config, look=lambda model, config: next(model.parameters()).abs().sum().item())
    assert all(history[key] == whole[key] for key in ("config", "step", "loss", "accuracy", "flops"))
    assert len(set(history["looks"])) == 3  # one after each evaluation but the first, of the model as it is then


# ----------------------------------------------------------------------------------------------------------------------
# what each figure measures


def test_scores_of_heads_on_maps_with_a_known_answer():
    tokens = torch.tensor([[7, 8, 7, 9, 7, 8, 5, 6], [1, 2, 3, 4, 1, 2, 3, 4]])
    same = identical_tokens(tokens).float()
    maps = torch.stack([
        torch.full((2, 8, 8), 1 / 8),  # uniform
        same / same.sum(-1, keepdim=True).clamp(min=1),  # the other occurrences alone; 0 where there is none
        torch.eye(8).expand(2, 8, 8),  # the position itself
        torch.eye(8)[(torch.arange(8) + 4) % 8].expand(2, 8, 8),  # four positions away
    ], 1)  # (B, H, T, T)
    scored = heads.score(maps, tokens, torch.ones(2, 8, dtype=torch.bool))
    share, uniform = scored["association"]
    # the 5 rows of the first sentence whose token occurs again have 2, 1, 2, 2, 1 others, the 8 of the second one each
    assert uniform == pytest.approx((8 + 8) / 13 / 8)
    # four away: in the first sentence two 7s and the two 8s look at each other, in the second one all twins do
    assert share.tolist() == pytest.approx([uniform, 1, 0, (4 + 8) / 13])
    share, uniform = scored["manipulation"]
    assert uniform == pytest.approx((3 + 4 + 5 + 5 + 5 + 5 + 4 + 3) / 64)
    assert share[[0, 2, 3]].tolist() == pytest.approx([uniform, 1, 0])


def test_scores_of_heads_over_some_rows_alone():
    tokens = torch.tensor([[7, 8, 7, 9, 7, 8, 5, 6]])
    maps = torch.eye(8)[[2, 5, 0, 0, 3, 3, 3, 3]][None, None]  # rows 0, 1, 2 look at a twin, row 3 far away
    rows = torch.tensor([[True, False, False, True, True, False, False, False]])
    scored = heads.score(maps, tokens, rows)
    assert scored["association"][0].item() == pytest.approx(1 / 2)  # rows 0 and 4; row 3 has no twin
    assert scored["association"][1] == pytest.approx(2 / 8)
    assert scored["manipulation"][0].item() == pytest.approx(2 / 3)  # rows 0 and 4, not 3
    assert scored["manipulation"][1] == pytest.approx((3 + 5 + 5) / 24)


def test_heads_are_scored_from_the_side_that_is_named(monkeypatch):
    """A stand-in model that looks at the same token from left-hand sides, and at itself from anywhere else."""
    def layers(tokens, need_weights):
        same, T = identical_tokens(tokens).float(), tokens.size(1)
        is_left = (torch.arange(T) % lego.TOKENS_PER_CLAUSE == 0)[:, None]
        yield None, torch.where(is_left, same / same.sum(-1, keepdim=True).clamp(min=1), torch.eye(T))[:, None]
    monkeypatch.setattr(train, "make_model", lambda config: SimpleNamespace(layers=layers))
    found = heads.look_at(heads.groups()["random weights"][0])
    share = lambda side, kind: found[side][kind]["share"][0][0]
    assert share("left", "association") == pytest.approx(1) and share("right", "association") == 0
    assert share("right", "manipulation") == 1 > share("left", "manipulation")


def test_best_head_is_the_one_with_the_largest_share():
    assert heads.best_of([[0.1, 0.8], [0.3, 0.2], [0.9, 0.0]]) == (2, 0)


def test_minilm_is_asked_for_where_it_is_needed(monkeypatch):
    """Before anything is trained; not where all is saved."""
    monkeypatch.setattr(runner, "make", lambda *_, **__: None)
    heads.main([])
    monkeypatch.setattr(heads, "MINILM", "nowhere")
    with pytest.raises(ValueError, match="nowhere: expected MiniLM"):
        heads.main(["--again"])


def test_knocked_out_head_is_the_one_that_is_missed(tmp_path):
    """Of two heads, one whose output is not used: nothing is lost without it. The targets are where they should be."""
    config = train.Config(**heads.compact(n_clauses=4, n_supervised=4, n_names=4, n_layer=1, n_embd=8, n_head=2,
                                          batch_size=4, eval_size=4, max_steps=1, out_dir=str(tmp_path)))
    model = train.make_model(config)
    model.blocks[0].attn.proj.weight.data[:, :4] = 0  # the channels of head 0
    history = train.train(config, model)
    checkpoint = heads.read_checkpoint(tmp_path)
    checkpoint["model"]["blocks.0.attn.proj.weight"][:, :4] = 0
    checkpoint["model"]["blocks.0.attn.proj.weight"][:, 4:] *= 100
    torch.save(checkpoint, tmp_path / "checkpoint.pt")
    found = heads.knock_out(config, size=200)
    assert found["without"][0][0] == found["intact"] != found["without"][0][1]
    batch = train.draw_test(config, 200, train.make_generator(config, "heads"))
    (_, maps), = train.make_model(replace(config, init_from=config.out_dir)).layers(batch.tokens, need_weights=True)
    for target, pairs in {"own argument": [(row, i, i + 3) for row, at in enumerate(batch.positions) for i in at],
                          "variable before": [(row, at[i], at[i - 1]) for row, at in enumerate(batch.positions)
                                              for i in (1, 2, 3)]}.items():
        expected = torch.stack([maps[row, :, i, j] for row, i, j in pairs]).mean(0)
        assert found["looks"][target][0] == pytest.approx(expected.tolist(), abs=1e-5)
    assert torch.tensor(found["maps"]).shape == (1, 2, 20, 20) and history["config"] == asdict(config)


TRANSPLANTED = dict(n_layer=2, n_clauses=4, n_supervised=3, n_embd=8, n_head=2, batch_size=4, eval_size=40,
                    eval_every=1)


@pytest.mark.parametrize("parts, taken", [
    ("queries and keys", {"query", "key"}), ("embeddings", {"token_embedding", "position_embedding"}),
    ("all but queries and keys", {"token_embedding", "position_embedding", "norm1", "value", "proj", "norm2", "up",
                                  "down", "norm_final"})])
def test_transplant_takes_the_parts_and_nothing_else(parts, taken, tmp_path):
    """The head is never taken: text has other values."""
    source = train.Config(**{**train.PRESETS["words"], **TRANSPLANTED, "n_tokens": 20, "max_steps": 1, "seed": 1,
                             "corpus": __file__, "out_dir": str(tmp_path)})
    train.train(source)
    config = pretraining.on_lego(**TRANSPLANTED, min_clauses=2, init_from=str(tmp_path), parts=parts)
    model, fresh, all_parts = (pretraining.make_model(replace(config, **dials)).state_dict()
                               for dials in ({}, dict(init_from=""), dict(parts="")))
    found = {name.split(".")[-2] for name, x in model.items() if not torch.equal(x, fresh[name])}
    whole = {name.split(".")[-2] for name, x in all_parts.items() if not torch.equal(x, fresh[name])}
    assert found == taken and taken | {"query", "key"} <= whole and "head" not in whole
    assert all(torch.equal(x, all_parts[name]) for name, x in model.items() if name.split(".")[-2] in taken)


def test_transplanted_run_goes_on_until_its_variables_are_there(monkeypatch):
    """As one run that is as long; one that has them ends at the first stop."""
    monkeypatch.setattr(pretraining, "FIRST_STOP", 2)
    config = pretraining.on_lego(**TRANSPLANTED, min_clauses=2, max_steps=4)
    whole, calls, usual = train.train(config), [], train.train
    monkeypatch.setattr(train, "train", lambda config, model=None, resume=False: calls.append(resume) or usual(
        config, model, resume=resume))
    history = pretraining.run(config)
    assert calls == [False, True]
    assert history["config"] == asdict(config) and history["step"] == [0, 1, 2, 3, 4]
    assert all(history[column] == whole[column] for column in ("loss", "test_loss", "accuracy", "flops"))
    early = numpy.array(whole["accuracy"][:3])
    assert pretraining.accuracy(history, 2, 4) == pytest.approx(100 * early[:, 1:].mean())
    monkeypatch.setattr(pretraining, "steps_to", lambda history, variable: 1)
    assert pretraining.run(config)["step"] == [0, 1, 2]


def test_steps_to_a_variable():
    history = dict(step=[0, 50, 100], accuracy=[[0.5, 0.5], [0.94, 0.95], [1, 0.5]])
    assert [pretraining.steps_to(history, variable) for variable in (1, 2)] == [100, 50]
    assert pretraining.steps_to(dict(history, accuracy=3 * [[0.5]]), 1) is None


@pytest.mark.parametrize("behind", ["value", "query, key, value"])
def test_convolution_begins_beside_the_identity_and_looks_three_positions_on_either_side(behind):
    config = convolution.Convolved(**{**TINY, "attention": "vanilla", "n_head": 2, "n_layer": 1, "behind": behind})
    tokens = lego.sample(lego.make_task("sign"), 4, 3).tokens
    plain, model = train.make_model(config), convolution.convolve(train.make_model(config), config)
    assert not torch.allclose(model(tokens), plain(tokens), atol=1e-4)
    convolutions = [module for module in model.modules() if isinstance(module, Manipulation)]
    assert len(convolutions) == len(behind.split())
    impulse = torch.zeros(1, 9, 16).index_fill(1, torch.tensor(4), 1)
    reached = convolutions[0](impulse).abs().sum(-1) > 0
    assert reached.tolist() == [[False] + [True] * 7 + [False]]
    for module in convolutions:
        identity = torch.zeros_like(module.conv.weight).index_fill(-1, torch.tensor(3), 1)
        assert 0.05 < (module.conv.weight - identity).std() < 0.2
        module.conv.weight.data[:] = identity
    torch.testing.assert_close(model(tokens), plain(tokens))


def answers_of(rule):
    """What a stand-in for model.predict answers: the value of the whole sentence's count, or of the chain followed."""
    def predict(model, batch, n_loops):
        task = lego.make_task("sign", 6)
        if rule == "count":
            return shortcut.count_operations(batch.tokens, task)[:, None].expand_as(batch.values)
        return batch.values
    return predict


def test_interference_tells_following_from_counting(monkeypatch):
    config = shortcut.groups()["nothing"][0]
    monkeypatch.setattr(shortcut.show, "predict", answers_of("follow"))
    look = shortcut.interfere(None, config, size=100)
    for name, n in (("whole", 6), ("branch", 6), ("beside", 4)):
        assert look[name]["right"] == [1] * n
        assert (look[name]["counts"] == 1) if name == "whole" else (0.3 < look[name]["counts"] < 0.7)
    assert look["branch"]["differ"] == look["beside"]["differ"] == 1 and look["whole"]["differ"] is None
    monkeypatch.setattr(shortcut.show, "predict", answers_of("count"))
    look = shortcut.interfere(None, config, size=100)
    assert look["whole"]["right"][-1] == 1 and max(look["whole"]["right"][:-1]) < 0.75
    for name in ("branch", "beside"):
        assert look[name]["counts"] == 1 and look[name]["differ"] == 0


def test_count_of_operations_by_hand():
    task = lego.make_task("sign")
    texts = ["b=-a; c=+b; a=-1;", "b=-a; c=+b; d=+1;", "b=-a; c=-d; a=-1;"]
    tokens = torch.stack([lego.encode(text, task) for text in texts])
    assert [task.values[v] for v in shortcut.count_operations(tokens, task)] == ["+1", "-1", "-1"]
    d3 = lego.make_task("d3")  # its order matters: r1 s0 is not s0 r1, and neither chain of names is looked at
    tokens = torch.stack([lego.encode(text, d3) for text in ("b=r1 a; a=s0 1;", "a=s0 1; b=r1 a;")])
    first, second = (d3.values[v] for v in shortcut.count_operations(tokens, d3))
    assert first != second == lego.solve("a=s0 1; b=r1 a", d3)["b"]


def test_probe_reads_what_is_there_and_nothing_else(monkeypatch):
    """Variable i stands in the state from layer i on, beside noise and a large constant."""
    def states_of(model, batch):
        known = torch.nn.functional.one_hot(batch.values, 6).float()  # (B, n, |X|)
        layers = [torch.where((torch.arange(3) <= layer)[:, None], known, 0) for layer in range(3)]
        return torch.stack([torch.cat((x, torch.randn(*x.shape[:2], 2) + 50), -1) for x in layers])

    monkeypatch.setattr(flow, "states_of", states_of)
    read = flow.read_out(None, train.Config(task="d3", n_clauses=3, n_supervised=3, tied=False), size=1000)
    for layer in range(3):
        for variable in range(3):
            accuracy = read["true"][layer][variable]
            assert accuracy == 1 if variable <= layer else abs(accuracy - 1 / 6) < 0.07
            assert abs(read["shuffled"][layer][variable] - 1 / 6) < 0.07
    assert flow.first_layers(dict(looks=[read])) == [1, 2, 3]


@pytest.mark.parametrize("dials", [dict(tied=False, n_layer=2), dict(n_layer=2), dict(n_layer=2, carry="state"), dict(
    attention="vanilla", tied=False, n_layer=2)])
def test_changed_value_is_that_of_the_other_sentence(dials):
    """After the last layer it changes its own answer alone, wherever the two sentences are answered otherwise."""
    config = train.Config(**{**TINY, "n_supervised": 3, "branch": 0.0, "init_std": 1.0, **dials})
    model = train.make_model(config)
    flips = torch.tensor(flow.patch(model, config, size=50))  # (L, n, n)
    assert flips.shape == (2, 3, 3)
    unpatched = flips[-1].masked_fill(torch.eye(3, dtype=torch.bool), torch.nan)
    for asked in unpatched.T:  # what is put in elsewhere does not matter
        assert asked[~asked.isnan()].unique().numel() == 1
    assert (flips[-1].diagonal() != flips[-1].roll(1, 0).diagonal()).any()


def test_searched_rates_are_bracketed():
    """A larger and a smaller rate than the best of each variant was tried."""
    best = lego_attention.best_rates()
    for variant, rates in lego_attention.RATES.items():
        assert min(rates) < best[variant] < max(rates), variant


@pytest.mark.parametrize("placebo", lego_attention.PLACEBOS)
def test_placebo_is_association_with_other_tokens(placebo):
    """With all others it is their mean; with shuffled ones as many groups of the same sizes, elsewhere."""
    dials = dict(attention="lego", association_share=1.0, chained=False, n_layer=1, placebo=placebo)
    model = lego_attention.make_model(lego_attention.Dials(**{**TINY, **dials}))
    attention, tokens, x = model.blocks[0].attn, torch.tensor([[3, 4, 3, 5, 3, 4, 6]] * 50), torch.randn(50, 7, 16)
    y, v = attention(x, tokens, None, make_plan(tokens)), attention.value(x)
    if placebo == "all tokens":
        torch.testing.assert_close(y, attention.proj((v.sum(1, keepdim=True) - v) / 6))
    else:  # one sentence, shuffled in 50 ways or in one: of its tokens two have no twin
        alone = (y - attention.proj.bias).abs().sum(-1) < 1e-5
        assert (alone.sum(1) == 2).all() and not alone[0, [3, 6]].all()


def test_flops_to_a_loss_lie_between_evaluations():
    history = dict(flops=[0, 1e12, 3e12, 4e12], test_loss=[9.0, 5.0, 4.0, 4.5])
    assert [lego_attention.tflop_to(history, loss) for loss in (5.0, 4.25, 4.0, 3.9)] == [1.0, 2.5, 3.0, None]


def test_every_implementation_of_association_in_the_figure_is_association():
    """On positions with a twin: also those that are made of softmax. (FlexAttention would have to be compiled.)"""
    tokens, v = kernels.words(2, 40, torch.device("cpu")), torch.randn(2, 40, 3)
    expected = associate(v, make_plan(tokens))
    has_twin = identical_tokens(tokens).any(-1)
    assert 0 < has_twin.sum() < has_twin.numel()
    for name in ("dense", "segment", "SDPA, boolean mask"):
        make, run = kernels.implementation(name, tokens, 3, torch.float32)
        torch.testing.assert_close(run(make(), v)[has_twin], expected[has_twin])


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_peak_of_memory_is_seen():
    peak = kernels.peak_mb(lambda: torch.ones(2**24), torch.device("cpu"))
    assert 60 < peak < 90, peak  # 64 MB, and a little


@pytest.mark.parametrize("sample, rng", [(speed.sample_by_loop, random.Random(0)),
                                         (speed.sample_through_text, numpy.random.default_rng(0))])
def test_sentences_of_python_loops_are_those_of_the_task(sample, rng):
    task = lego.make_task("d3")
    batch = sample(task, 20, 7, rng)
    assert [x.shape for x in batch] == [(20, 35), (20, 7), (20, 7), (20, 7)]
    for tokens, positions, values, depths in zip(*batch):
        truth = lego.solve(lego.decode(tokens, task), task)
        assert [task.vocab[t] for t in tokens[positions]] == list(truth)
        assert [task.values[v] for v in values] == list(truth.values()) and depths.tolist() == [*range(1, 8)]


def test_models_to_compare_have_one_shape():
    """As many parameters but for a norm or a second kind of embedding, and logits of the same shape."""
    shape = dict(n_layer=2, n_embd=32, n_head=4, T=10, B=3, vocab_size=50)
    models = speed.models(shape)
    assert "torch.nn.TransformerEncoder" in models
    n_parameters = {name: sum(p.numel() for p in model.parameters()) for name, model in models.items()}
    vanilla = n_parameters.pop("ours, vanilla")
    for name, model in models.items():
        assert model(torch.randint(50, (3, 10))).shape == (3, 10, 50), name
        if not name.startswith("ours"):
            assert vanilla <= n_parameters[name] <= vanilla + 2 * 32, name
    step = speed.step_of(models["ours, LEGO chained"], shape, torch.device("cpu"), torch.float32)
    assert step() > step()


def test_table_of_speed_is_markdown():
    lines = speed.table(runner.load("speed")).splitlines()
    assert {line.count("|") for line in lines} == {5} and lines[1] == "| --- | --- | --- | --- |"
    assert any("torch.nn.TransformerEncoder" in line and "times as fast" in line for line in lines)


def test_gpu_command_runs_whole_at_a_tiny_size(monkeypatch, run):
    """On a CPU, with Triton in its interpreter. The commands that it starts run in this process, or are looked at."""
    def start(command, cwd, **_):
        if "pytest" in command:
            assert (cwd / command[-1]).exists()
            return SimpleNamespace(returncode=1, stdout="2 passed, 3 failed in 1s", stderr="")
        code, _, err = run(*command[2:])
        return SimpleNamespace(returncode=code or 0, stdout="", stderr=err)
    monkeypatch.setattr(subprocess, "run", start)
    saved = {}
    for name in gpu.STAGES:
        found = []
        gpu.measure(name, torch.device("cpu"), gpu.TINY, lambda new: found.append(json.dumps(new)))
        saved |= json.loads(found[-1])
    text = "\n".join(gpu.words(saved))
    for part in ("2 tests passed, 3 tests failed, 0 tests skipped", "train.py, bfloat16, seed 0", "T = 64, ms",
                 "step, ours, vanilla", "% of a step", "6 untied layers, 2 steps", "6 tied layers, 2 steps"):
        assert part in text, text
    assert "failed:" not in text


def test_gpu_command_runs_its_stages_apart(monkeypatch, capsys, folder):
    """Each in a process with a limit; what one has saved stays, unless another GPU made it."""
    commands, cards = [], ["one abacus"]
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(show, "hardware", lambda device: cards[-1])
    monkeypatch.setattr(gpu, "measure", lambda name, device, size, save: save(dict(hardware=cards[-1], **{name: []})))
    monkeypatch.setattr(subprocess, "run", lambda args, timeout: commands.append(args[-1]) or gpu.main(args[3:]))
    gpu.main([])
    assert commands == [*gpu.STAGES] and {*gpu.STAGES} < {*runner.saved("gpu")}
    cards.append("two abacuses")
    gpu.main(["job"])
    assert {*runner.saved("gpu")} == {"hardware", "job"}


def test_gpu_command_without_a_gpu_is_one_line():
    if torch.cuda.is_available():
        pytest.skip("there is one")
    with pytest.raises(ValueError, match="^expected an NVIDIA GPU"):
        gpu.main([])
    with pytest.raises(ValueError, match="'tpu': expected tests, job, association, step"):
        gpu.main(["tpu"])


def test_benchmark_never_changes():
    """Numbers of one version can be compared: another checksum needs another VERSION."""
    assert benchmark.VERSION == 1
    assert benchmark.checksum() == "84ac86766d8c643959963ca388536802d5620a8249695d06991d2927690f6a0a"


def solved(ids, *loops):
    """A model that reads the symbols and solves the sentence."""
    task, logits = lego.make_task("sign", 1024), torch.zeros(*ids.shape, 2)
    for row, sentence in zip(logits, ids):
        values = lego.solve(lego.decode(sentence, task), task)
        for t in range(0, len(sentence), lego.TOKENS_PER_CLAUSE):
            row[t, task.values.index(values[task.vocab[sentence[t]]])] = 1
    return logits


def test_benchmark_of_a_solver_a_counter_and_one_with_few_positions():
    """The solver is right in all, the counter in none where counting is wrong, short positions can't take all."""
    task = lego.make_task("sign", 1024)
    count = lambda ids: nn.functional.one_hot(shortcut.count_operations(ids, task), 2).float()[:, None].expand(
        *ids.shape, 2)
    few = nn.Embedding(60, 2)
    models = {"solver": benchmark.take(solved, loops=True), "counter": benchmark.take(count), "few": benchmark.take(
        lambda ids: few(torch.arange(ids.size(1))).expand(*ids.shape, 2))}
    for axis, tests in benchmark.TESTS.items():
        for test, (size, *_) in tests.items():
            assert models["solver"][axis][test] == [size, size, 1.0]
    assert [*models["counter"]["shortcut"].values()][0][1:] == [0, 0.0]
    assert models["few"]["length"]["chain of 12"][0] == 200 and "index" in models["few"]["length"]["chain of 26"]
    lines = benchmark.table(models).splitlines()
    assert {line.count("|") for line in lines} == {6} and "all (more than 98.5)" in lines[2] and "can't" in lines[4]


def test_benchmark_asks_for_no_chain_of_100_without_one_of_26():
    rows = benchmark.take(lambda ids: (_ for _ in ()).throw(ValueError("no")) if ids.size(1) < 100 else torch.zeros(
        *ids.shape, 2))
    assert rows["length"]["chain of 12"] == "no" and rows["length"]["chain of 26"][1] == 0
    assert [rows["length"][f"chain of {n}"] for n in ("100", "300", "1,000")] == 3 * [benchmark.NOT_ASKED]
    assert "not asked" in benchmark.table({"none": rows})


def test_benchmark_of_a_folder(monkeypatch, capsys, tmp_path):
    """A run of train.py is read and asked with as many loops as it needs."""
    train.train(train.Config(**{**TINY, "out_dir": str(tmp_path)}))
    asked = []
    monkeypatch.setattr(benchmark, "take", lambda model, task, loops, *_, **__: asked.append((task, loops)) or "rows")
    monkeypatch.setattr(benchmark, "table", lambda models: f"table of {models}")
    benchmark.main([str(tmp_path)])
    assert asked == [("sign", True)] and f"table of {{{str(tmp_path)!r}: 'rows'}}" in capsys.readouterr().out
    with pytest.raises(ValueError, match="'b': expected the folder of one run"):
        benchmark.main(["a", "b"])


def test_readme_and_notebook_quote_the_numbers():
    readme, notebook = ((runner.FOLDER / path).read_text() for path in ("../README.md", "README.md"))
    runs, learned = runner.load("extrapolation"), runner.load("learning")
    hubs = [extrapolation.hubs(runs, label) for label in ("default", "d3")]
    trained = runner.complete(runner.found("generalisation", generalisation.groups()))
    for line in (*generalisation.words(trained), *extrapolation.table(runs), *extrapolation.ablations(runs),
                 *kernels.table(runner.load("kernels")), *gpu.words(runner.load("gpu")),
                 *heads.table(scored := runner.load("heads")),
                 *heads.words(scored, runner.load("heads.knockout")["LEGO"]),
                 *flow.stairs(runner.load("flow")), *flow.words(runner.load("flow.patch")),
                 *composition.words(runner.load("composition")),
                 *pretraining.words(runner.load("pretraining")),
                 *MODULES["groups"].words(runner.load("groups")),
                 *convolution.words(runner.load("convolution")),
                 *shortcut.words(runner.complete(runner.found("shortcut", shortcut.groups()))),
                 *learning.words(learned), *hubs):
        assert f"    {line}\n" in notebook, line
    pretrained = runner.complete(runner.found("lego_attention", lego_attention.groups()))
    for line in lego_attention.words(pretrained):
        assert f"    {line}\n" in notebook, line
    (of_long,) = lego_attention.shares(pretrained, lego_attention.LONG)["LEGO; long"]
    assert f", {of_long:.0f}% in a run three times as long" in readme
    spent = [pretrained[label][0]["flops"][-1] for label in (f"vanilla, rotary{lego_attention.EQUAL}", "LEGO")]
    assert spent[0] == pytest.approx(spent[1], rel=1e-3)
    third = {label: sum(pretraining.steps_to(run, 3) is not None for run in runs)
             for label, runs in runner.load("pretraining").items()}
    assert f"the third in {third['text']} of 5 seeds, from random weights in {third['random weights']}" in readme
    assert f"they bring the third variable in {third['mimicking']} of 5 seeds" in readme
    assert heads.draw(scored).get_suptitle().split("a model ")[1] in readme  # loses so many points
    known = {label: show.span([*map(composition.known, runs)]) for label, runs in runner.load("composition").items()}
    assert (known["12"], known["2 to 12"]) == ("2", "5 to 6")  # README has these as words
    of_groups = [runs for label, runs in runner.load("groups").items() if "products first" in label]
    assert min(extrapolation.percent(run, "chain of 26") for runs in of_groups for run in runs) == 99.9
    assert f"with {show.span(lego_attention.shares(pretrained)['LEGO'])}% of its FLOPs" in readme
    assert extrapolation.headline(runs) in readme and speed.headline(runner.load("speed")) in readme
    compared = runner.complete(runner.found("rivals", rivals.groups()))
    for line in (*rivals.table(compared), *rivals.steps(runner.load("rivals.steps"))):
        assert f"    {line}\n" in notebook, line
    solves = lambda runs: sum(rivals.percent(history, "length", "chain of 1,000") == 100 for history in runs)
    assert {name: solves(histories) for name, histories in compared.items()} == {
        "vanilla, untied": 0, "vanilla, tied": 0, "looped": 0, "TRM": 1, "RSM": 0, "state": 5, "beliefs": 1}
    assert {histories[0]["config"]["scale"] for name, histories in compared.items() if "vanilla" not in name} == {1}
    taken = {name: run["rows"] for name, run in runner.load("benchmark")["runs"].items()}
    assert speed.table(runner.load("speed")) in notebook and benchmark.table(taken) in notebook
    assert f"{learned['sign'][0]['n_parameters'] / 1000:.0f} thousand parameters" in readme.replace("\n", " ")


# ----------------------------------------------------------------------------------------------------------------------
# rivals


def tiny_rival(name, **more):
    return rivals.Rival(**{**TINY, **rivals.RIVALS[name][1], "rival": name, "n_layer": 3, "n_head": 2, **more})


@pytest.mark.parametrize("name", rivals.RIVALS)
def test_rival_trains_and_answers_after_any_number_of_loops(name):
    config = tiny_rival(name)
    model = train.make_model(config, kind=rivals.RIVALS[name][0])
    history = train.train(config, model)
    assert len(history["accuracy"][-1]) == 3 and rivals.cost(config) > 0
    loops = rivals.loops_at_test(replace(config, n_layer=3), model)
    assert max(loops) == (3 if name == "vanilla, untied" else rivals.LOOPS) and all(0 <= x <= 1 for x in loops.values())


@pytest.mark.parametrize("name, n_applied, n_learning", [
    ("TRM", 6, 3), ("looped", 3, 3), ("state", 1, 1), ("RSM", 0, 3)])
def test_gradients_of_a_rival_come_from_the_loops_that_its_paper_says(name, n_applied, n_learning):
    """Of the times that a step applies the block: all of them, and those that have a gradient."""
    config = tiny_rival(name)
    model = train.make_model(config, kind=rivals.RIVALS[name][0]).train()
    applied = []
    model.blocks[0].register_forward_hook(lambda module, inputs, output: applied.append(output[0].requires_grad))
    batch, loop = train.draw_batch(config, 0, None, "cpu")
    counts = set()
    for seed in range(20):
        torch.manual_seed(seed)
        applied.clear()
        _, n_due, _ = train.Objective(model, config)(batch, None, loop)
        assert n_due == (batch.depths <= (1 if name == "state" else 3)).sum()  # one loop of TRM reaches all three
        assert sum(applied) == n_learning and applied[-1]
        counts.add(len(applied))
    assert counts == ({6, 12, 18} if name == "RSM" else {n_applied})
    if name == "RSM":  # as many as `cost` counts, on average
        one = rivals.cost(replace(config, rival="TRM", carry="state")) / 2
        assert rivals.cost(config) == pytest.approx(one * (2 + 1), rel=0.02)


def test_rival_takes_the_rates_that_were_best():
    """Of equals the usual ones."""
    of = lambda scale, accuracy: dict(config=dict(scale=scale), accuracy=3 * [[accuracy]])
    found = {"TRM": [of(0.25, 0.5), of(1.0, 0.9), of(4.0, 0.9)], "RSM": [of(1.0, 0.5), of(4.0, 0.9)]}
    assert [rivals.best_scale(name, found) for name in ("TRM", "RSM", "looped")] == [1.0, 4.0, 1.0]
