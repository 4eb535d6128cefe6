"""figures/: every script draws from its saved runs, prints what the notebook says, and would train again."""
import importlib
import json
import re
import sys
from dataclasses import replace

import pytest
import torch

import lego
import train
from figures import (benchmark, convolved, flow, heads, lego_attention, mimic, pretraining, proof, rivals, runs,
                     shortcut, show, varied, words)
from matplotlib.figure import Figure
from model import load, loss_of_one_loop

NOTEBOOK = (runs.FOLDER / "README.md").read_text()
README = (runs.FOLDER.parent / "README.md").read_text()
# convolution and speed take their time: the one counts FLOPs, the other measures
SCRIPTS = ["benchmark", "composition", "flow", "generalisation", "heads", "learning",
           "lego_attention", "pretraining", "proof", "rivals", "shortcut"]
TINY = dict(max_steps=4, eval_every=2, eval_size=8, n_embd=16, batch_size=8, device="cpu", out_dir="")


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setattr(runs, "FOLDER", tmp_path)
    monkeypatch.setattr(sys, "argv", ["figure"])
    return tmp_path


# ---- the scripts ----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SCRIPTS)
def test_script_finds_its_runs_and_prints_the_lines_of_the_notebook(name, monkeypatch, capsys):
    pictures = []
    monkeypatch.setattr(Figure, "savefig", lambda self, path, **_: pictures.append((self, path)))
    monkeypatch.setattr(runs, "each", lambda jobs: pytest.fail(f"{len(jobs)} runs are missing") if jobs else ())
    monkeypatch.setattr(sys, "argv", [f"{name}.py"])
    importlib.import_module(f"figures.{name}").main()
    lines = [line.rstrip() for line in capsys.readouterr().out.splitlines()]
    lines = [line for line in lines if line and "runs to train" not in line]
    assert lines and [line for line in lines if line not in NOTEBOOK] == []
    for figure, path in pictures:
        assert path.name == f"{name}.png" and path.exists() and f"figures.{name}" in README + NOTEBOOK
        assert figure.get_suptitle() and len(figure.get_suptitle()) < 110 and "\n" not in figure.get_suptitle()
        panels = [axes for axes in figure.axes if axes.get_label() != "<colorbar>"]
        assert len(panels) <= 4 and all(axes.get_xlabel() for axes in panels)


def test_readme_quotes_the_numbers():
    learned = {task: [h["proof"]["n_cases"] for h in found] for task, found in runs.load("learning").items()}
    assert {*learned["sign"]} == {572} and {*learned["d3"]} == {23508}
    assert "572" in README and "23,508" in README
    assert all(train.is_proved(h) for found in runs.load("learning").values() for h in found)
    takes = runs.load("proof")
    for label in ("3 of 12 labelled", "3 clauses, all labelled", "8 training sentences in all"):
        assert [history["cases"]["n_wrong"] for history in takes[label]] == [0] * 5
    most = max(history["step"][-1] for history in runs.load("rivals")["facts"]) * rivals.cost("facts")
    assert f"1/{rivals.BUDGET / most:.0f} of the FLOPs" in README
    for picture in re.findall(r"figures/(\w+)\.png", README):
        assert (runs.FOLDER / f"{picture}.png").exists()


def test_python_of_the_readme_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    assert len(blocks) == 2
    for block in blocks:
        exec(block.replace('task="sign"', "max_steps=2, eval_size=4"), {})


# ---- runs -------------------------------------------------------------------------------------------


def test_stopped_figure_goes_on_and_again_makes_what_is_asked_for(folder, monkeypatch):
    made = []

    def run(config):
        if len(made) == stop_after:
            raise KeyboardInterrupt
        made.append(config.seed)
        return dict(train.train(config), made=len(made))

    groups = {label: [train.Config(**TINY, task=task, seed=seed) for seed in range(2)]
              for label, task in (("one", "sign"), ("two", "c3"))}
    torch.set_num_threads(1)
    stop_after = 3
    with pytest.raises(KeyboardInterrupt):
        runs.get("x", groups, run)
    stop_after = 99
    found = runs.get("x", groups, run)
    assert made == [0, 1, 0, 1] and found == runs.load("x")
    monkeypatch.setattr(sys, "argv", ["x", "--only=two", "--seeds=1"])
    again = runs.get("x", groups, run)
    assert made == [0, 1, 0, 1, 0] and again["two"][0]["made"] == 5 and again["one"] == found["one"]
    monkeypatch.setattr(sys, "argv", ["x", "--agian"])
    with pytest.raises(SystemExit):
        runs.get("x", groups, run)


def test_run_of_other_dials_is_not_found():
    class New(train.Config):
        pass

    config = train.Config(**TINY)
    history = train.train(config)
    assert runs.is_of(history, config) and not runs.is_of(history, replace(config, seed=1))
    assert not runs.is_of(dict(history, config=dict(history["config"], brand_new=1)), config)
    assert not runs.is_of(history, varied.Varied(**TINY, branch=1.0))


def test_runs_that_others_begin_from_are_made_once(folder):
    begin = train.Config(**{**TINY, "out_dir": str(folder / "begin")})
    groups = {"x": [train.Config(**TINY, init_from=begin.out_dir)]}
    for _ in range(2):
        runs.get("y", groups, before=[(begin, train.train)])
    assert load(begin.out_dir).config.n_embd == 16


# ---- sentences, losses and tests that scripts hand to train ------------------------------------------


def test_varied_sentences_are_what_their_dials_say():
    config = varied.Varied(n_clauses=6, min_clauses=3, n_distractor=2, n_supervised=6, attention="vanilla").complete()
    task, lengths = lego.make_task("sign"), set()
    for step in range(80):
        batch = varied.draw(config, 2, step, "cpu")
        lengths.add(batch.values.size(1))
        for i in range(2):
            truth = lego.solve(lego.decode(batch.tokens[i], task), task)
            said = {task.vocab[batch.tokens[i, p]]: task.values[v] for p, v in zip(batch.positions[i], batch.values[i])}
            assert said.items() <= truth.items()
    assert lengths == {1, 2, 3, 4, 5, 6}


def test_dropped_clause_leaves_the_rest_of_the_chain_without_values():
    task = lego.make_task("sign")
    batch = lego.sample(task, lego.random_graphs(3, 5), generator())
    dropped = varied.drop_clauses(batch, torch.tensor([0, 2, 4]))
    assert dropped.tokens.shape == (3, 20) and dropped.facts.shape == (3, 20)
    for i, which in enumerate((0, 2, 4)):
        values = lego.solve(lego.decode(dropped.tokens[i], task), task)
        assert sum(value is not None for value in values.values()) == which
        assert (dropped.values[i] == lego.NO_VALUE).sum() == 5 - which


def test_mimic_loss_is_zero_for_the_patterns_alone():
    tokens = torch.tensor([[5, 6, 5, 7, 6]])
    targets = mimic.target_maps(tokens)
    assert targets[0, 0, 2].tolist() == [1, 2, 4, 2, 1] and targets[0, 1, 0].tolist() == [0, 0, 1, 0, 0]
    perfect = type("Perfect", (), dict(layers=lambda self, tokens, need_weights: [(None, targets)]))()
    loss, n = mimic.mimic_loss(perfect, lego.Batch(tokens, *[tokens] * 4))
    assert n == 1 and loss.abs() < 1e-6
    flat = type("Flat", (), dict(layers=lambda self, tokens, need_weights: [(None, torch.full((1, 2, 5, 5), 0.2))]))()
    assert mimic.mimic_loss(flat, lego.Batch(tokens, *[tokens] * 4))[0] > 0.5


def test_hidden_words_are_asked_for_and_documents_held_out(tmp_path):
    path = tmp_path / "text.txt"
    path.write_text("\n\n".join(f"Alpha{i % 3}, x = beta;" for i in range(60)) + " rare", encoding="utf-8")
    corpus = words.read_corpus(str(path), n_words=39)
    assert corpus.vocab[3:34] == lego.make_task("sign").vocab and "rare" not in corpus.vocab
    assert (corpus.test == words.END).sum() == 1 and (corpus.train == words.END).sum() == 3  # equal ones count once
    batch = words.sample_words(corpus, 500, 16, generator())
    hidden = batch.tokens.gather(1, batch.positions)
    assert batch.values.shape == (500, 2) and 0.7 < (hidden == words.MASK).float().mean() < 0.9
    assert words.split_words("Don't x=-1; v26_a  Été") == [
        "don", "'", "t", "x", "=", "-", "1", ";", "v", "2", "6", "_", "a", "été"]


def test_rivals_and_changes_train_and_are_asked():
    for name in rivals.RIVALS:
        config = replace(rivals.config_of(name, 0), **TINY, n_clauses=4, n_supervised=2, n_layer=2)
        model = rivals.make_model(config)
        history = train.train(config, model, **rivals.hooks(config.rival))
        assert all(map(torch.isfinite, torch.tensor(history["test_loss"]))), name
    config = proof.Changed(**TINY, hears_all=True, kernel_size=5, n_sentences=4, stop_at=0.0)
    model = proof.make_model(config)
    before = [p.clone() for p in model.parameters()]
    train.train(config, model, draw=proof.draw)
    kernel = model.blocks[0].attn.manipulation.conv.weight
    assert any((p != q).any() for p, q in zip(before, model.parameters()))
    assert not kernel[..., [0, 6]].any() and kernel[..., 1:6].all()


# ---- measures ------------------------------------------------------------------------------------------


def test_count_of_operations_is_the_last_value_of_a_chain_and_not_of_a_branch():
    task = lego.make_task("sign")
    chain = lego.sample(task, lego.random_graphs(50, 6), generator())
    assert torch.equal(shortcut.count_operations(chain.tokens, task), chain.values[:, -1])
    branch = lego.sample(task, torch.tensor([[0, 1, 2, 3, 4, 2]]).expand(200, -1), generator())
    assert 0.3 < (shortcut.count_operations(branch.tokens, task) == branch.values[:, -1]).float().mean() < 0.7


def test_scores_of_heads_on_maps_with_a_known_answer():
    tokens = torch.tensor([[5, 6, 7, 8, 9, 5]])
    maps = torch.zeros(1, 2, 6, 6)
    maps[0, 0, 0, 5] = maps[0, 0, 5, 0] = 1  # a head that looks at the same token
    maps[0, 1, 0, 1] = maps[0, 1, 5, 4] = 1  # and one that looks at its neighbour
    rows = torch.tensor([[True, False, False, False, False, True]])
    found = heads.score(maps, tokens, rows)
    assert found["association"][0].tolist() == [1, 0] and found["manipulation"][0].tolist() == [0, 1]


def test_convolution_begins_beside_the_identity():
    config = train.Config(**TINY, attention="vanilla", n_layer=1, tied=False, init_std=0.0)
    model, tokens = train.make_model(config), torch.randint(10, (2, 10))
    expected = model(tokens)
    convolved.convolve(model, "query, key, value")
    torch.testing.assert_close(model(tokens), expected)


def test_benchmark_never_changes_and_knows_a_solver():
    assert benchmark.checksum().startswith("84ac86766d8c6439")
    task = lego.make_task("sign", 1024)

    def solver(tokens):
        batch = lego.batch_of([lego.decode(ids, task) for ids in tokens], task)
        logits = torch.zeros(*tokens.shape, 2)
        rows = torch.arange(len(tokens))[:, None]
        logits[rows, batch.positions, batch.values] = 1
        return logits

    batch = benchmark.sentences("branches", "star of 10")
    logits = solver(batch.tokens[:5])
    found = logits.gather(1, batch.positions[:5, :, None].expand(-1, -1, 2)).argmax(-1)
    assert torch.equal(found, batch.values[:5])


def test_search_sees_a_false_and_a_late_answer(proved):
    folder, _ = proved
    model = load(folder)
    assert proof.search(model, 8, seed=3) == dict(sentences=8, asked=proof.search(model, 8, seed=3)["asked"],
                                                  false=0, late=0)
    with torch.no_grad():
        model.head.bias += torch.tensor([9.0, -9.0])
    found = proof.search(model, 8, seed=3)
    assert found["false"] > 0


def test_labels_of_lines_do_not_overlap():
    figure, ((axes,),) = show.picture("x")
    axes.set_ylim(0, 100)
    show.label_ends(axes, [(50, "a", "red"), (50.1, "b", "red"), (99, "c", "red")])
    heights = sorted(text.xy[1] for text in axes.texts)
    assert min(b - a for a, b in zip(heights, heights[1:])) >= 0.044
