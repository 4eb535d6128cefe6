"""figures/: runs are kept as they arrive, and every committed picture can be drawn again from its numbers."""
import importlib
import pkgutil
import random
import sys
from dataclasses import replace

import numpy
import pytest
import torch
from matplotlib.figure import Figure

import figures
import lego
import train
from attention import associate, identical_tokens, make_plan
from figures import flow, heads, kernels, lego_attention, pretraining, shortcut, speed

NAMES = [module.name for module in pkgutil.iter_modules(figures.__path__) if not module.name.startswith("_")]


@pytest.mark.parametrize("name", NAMES)
def test_committed_numbers_redraw_the_figure(name, tmp_path):
    importlib.import_module(f"figures.{name}").draw(figures.load(name)).savefig(tmp_path / "figure.png", dpi=50)


def test_missing_numbers_are_named_with_the_command_that_makes_them():
    with pytest.raises(ValueError, match="figures/nothing.json: expected .*python -m figures.nothing makes them"):
        figures.load("nothing")


def test_folder_that_cannot_be_written_is_one_line(monkeypatch, tmp_path):
    (tmp_path / "file").write_text("not a folder")
    monkeypatch.setattr(figures, "FOLDER", tmp_path / "file")
    with pytest.raises(ValueError, match="some.json: expected a file that can be written"):
        figures.save("some", {})


def test_stopped_figure_goes_on_where_it_was(monkeypatch, tmp_path):
    """A run that is there is not made again; one with another dial is."""
    made = []

    def run(config):
        made.append(config.seed)
        if len(made) == 3:
            raise KeyboardInterrupt
        return dict(config=train.asdict(config))

    monkeypatch.setattr(figures, "FOLDER", tmp_path)
    monkeypatch.setattr(train, "train", run)
    groups = {"a": [train.Config(seed=1), train.Config(seed=2)], "b": [train.Config(seed=3), train.Config(seed=4)]}
    with pytest.raises(KeyboardInterrupt):
        figures.train_all("some", groups)
    figures.train_all("some", groups)
    figures.train_all("some", groups)
    assert made == [1, 2, 3, 3, 4] and not figures.is_missing("some", groups)
    assert figures.is_missing("some", {"a": [train.Config(seed=5)]})
    seeds = {label: [history["config"]["seed"] for history in runs] for label, runs in figures.load("some").items()}
    assert seeds == {"a": [1, 2], "b": [3, 4]}
    figures.train_all("some", {"a": [train.Config(seed=1, lr=1e-4)]})
    assert made[-1] == 1 and len(made) == 6


def test_parallel_runs_are_the_runs_one_by_one(monkeypatch, tmp_path):
    """Each under its own label, in the order of the seeds, with the same numbers."""
    small = dict(n_clauses=3, n_supervised=2, n_embd=16, n_layer=2, loop_jitter=0, batch_size=8, eval_size=20,
                 max_steps=2, device="cpu", out_dir="")
    groups = {"a": [train.Config(seed=seed, **small) for seed in (1, 2)], "b": [train.Config(seed=1, lr=1e-3, **small)]}
    monkeypatch.setattr(figures, "FOLDER", tmp_path)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    figures.train_all("one", groups)
    figures.train_all("two", groups, parallel=True)
    for label, histories in figures.load("one").items():
        for history, other in zip(histories, figures.load("two")[label], strict=True):
            assert history["config"] == other["config"] and history["accuracy"] == other["accuracy"]
            assert history["loss"][1] == pytest.approx(other["loss"][1])
            assert other["hardware"].startswith("1 CPU thread")


@pytest.mark.parametrize("arguments, expected", [
    (["--scale=huge"], "'--scale=huge': expected --scale= and one of laptop, gpu"),
    (["--scale=gpu", "--seed=1"], "'--scale=gpu --seed=1': expected --scale= and one of laptop, gpu"),
    (["gpu"], "'gpu': expected"),
])
def test_bad_argument_of_a_figure_is_named(arguments, expected):
    with pytest.raises(ValueError, match=expected):
        figures.make("nothing", None, arguments, laptop={}, gpu={})
    with pytest.raises(ValueError, match="expected no argument"):
        figures.make("nothing", None, arguments, laptop={})


def test_scales_have_files_of_their_own(monkeypatch, tmp_path):
    monkeypatch.setattr(figures, "FOLDER", tmp_path)
    draw = lambda runs: Figure(figsize=(1, 1))
    figures.save("some", {})
    figures.save("some_gpu", {})
    figures.make("some", draw, [], laptop={}, gpu={})
    assert (tmp_path / "some.png").exists() and not (tmp_path / "some_gpu.png").exists()
    figures.make("some", draw, ["--scale=gpu"], laptop={}, gpu={})
    assert (tmp_path / "some_gpu.png").exists()


def test_scores_of_heads_on_maps_with_a_known_answer():
    tokens = torch.tensor([[7, 8, 7, 9, 7, 8, 5, 6], [1, 2, 3, 4, 1, 2, 3, 4]])
    at = torch.arange(8)
    same = identical_tokens(tokens).float()
    maps = torch.stack([
        torch.full((2, 8, 8), 1 / 8),  # uniform
        same / same.sum(-1, keepdim=True).clamp(min=1),  # the other occurrences alone; 0 where there is none
        torch.eye(8).expand(2, 8, 8),  # the position itself
        torch.eye(8)[(at + 4) % 8].expand(2, 8, 8),  # four positions away
    ], 1)  # (B, H, T, T)
    scored = heads.score(maps, tokens)
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


def test_best_heads_are_those_with_the_largest_shares():
    scored = dict(association=dict(share=[[0.1, 0.9], [0.3, 0.2], [0.8, 0.0]]))
    assert heads.best(scored, "association") == [(0, 1)]
    assert heads.best(scored, "association", 3) == [(0, 1), (2, 0), (1, 0)]


def test_ablated_heads_look_everywhere_alike_and_stay_so(tmp_path):
    """And no other head changes."""
    source = train.Config(**heads.compact(max_steps=1, batch_size=4, eval_size=4, out_dir=str(tmp_path / "source")))
    train.train(source)
    pretraining.ablate(source, str(tmp_path / "ablated"), [(0, 1), (5, 3)])
    config = train.override(source, [f"--init_from={tmp_path / 'ablated'}", "--out_dir="])
    tokens = train.draw_sentences(config, 4, torch.Generator()).tokens
    maps_of = lambda model: torch.stack([maps.detach() for _, maps in model.trace(tokens, need_weights=True)])
    intact = maps_of(train.make_model(train.override(source, [f"--init_from={source.out_dir}"])))
    model, uniform = train.make_model(config), torch.tensor(1 / 60)
    before = maps_of(model)  # (L, B, H, T, T)
    train.train(replace(config, max_steps=3), model)
    for maps in (before, maps_of(model)):
        assert torch.allclose(maps[0, :, 1], uniform) and torch.allclose(maps[5, :, 3], uniform)
        assert not torch.allclose(maps[0, :, 0], uniform, atol=1e-4)
    assert torch.equal(before[0, :, [0, 2, 3]], intact[0, :, [0, 2, 3]])


def test_finished_checkpoint_is_not_made_again(monkeypatch, tmp_path):
    """One of other dials is, and one that was stopped."""
    config = train.Config(n_clauses=2, n_supervised=1, n_embd=16, n_layer=1, loop_jitter=0, batch_size=4, eval_size=4,
                          max_steps=2, eval_every=1, stop_at=0.0, device="cpu", out_dir=str(tmp_path / "run"))
    figures.make_checkpoints([config])
    trained = []
    monkeypatch.setattr(train, "train", lambda config: trained.append(config))
    figures.make_checkpoints([config])
    assert not trained
    others = [train.Config(**{**train.asdict(config), **dial}) for dial in (dict(lr=1e-3), dict(max_steps=3))]
    figures.make_checkpoints(others)
    assert trained == others


def test_looks_do_not_change_the_run():
    config = train.Config(n_clauses=3, n_supervised=2, n_embd=16, n_layer=2, loop_jitter=1, eval_loops=0, batch_size=8,
                          eval_size=20, max_steps=6, eval_every=2, stop_at=0.0, device="cpu", out_dir="")
    whole = train.train(config)
    history = train.train(config, look=lambda model, config: next(model.parameters()).abs().sum().item())
    assert all(history[key] == whole[key] for key in ("config", "step", "loss", "accuracy", "flops"))
    assert len(set(history["looks"])) == 3  # one behind each evaluation but the first, of the model as it is then


def test_looks_at_a_resumed_run_are_refused():
    with pytest.raises(ValueError, match="resume=True: expected False for a run that is looked at"):
        train.train(train.Config(resume=True), look=lambda model, config: None)


def test_settled_is_where_a_run_stays():
    history = dict(accuracy=[[1, 0], [0.5, 0], [1, 0], [0.9995, 1], [1, 0.9], [1, 1]])
    assert [figures.settled(history, 1), figures.settled(history, 2), figures.settled(history, 2, 0.9)] == [2, 5, 3]
    assert figures.settled(dict(accuracy=[[1], [0]]), 1) is None


def answers_of(rule):
    """What a stand-in for train.predict answers: the value of the whole sentence's count, or of the chain followed."""
    def predict(model, batch, n_loops):
        task = lego.make_task("sign", 6)
        if rule == "count":
            return lego.count_operations(batch.tokens, task)[:, None].expand_as(batch.values)
        answers = torch.zeros_like(batch.values)
        for b, ids in enumerate(batch.tokens):
            solution = lego.solve(lego.decode(ids, task), task, partial=True)
            for i, position in enumerate(batch.positions[b]):
                answers[b, i] = task.values.index(solution[task.vocab[ids[position]]] or "+1")
        return answers
    return predict


def test_interference_tells_following_from_counting(monkeypatch):
    config, n = shortcut.groups()["nothing"][0], 6
    monkeypatch.setattr(train, "predict", answers_of("follow"))
    look = shortcut.interfere(None, config, size=100)
    assert look["whole"] == [1] * n and look["beside"] == [1] * (n - 2) and look["beside_differ"] == 1
    assert look["changes"] == [[float(i <= j) for j in range(n)] for i in range(n)]
    assert 0.3 < look["beside_count"] < 0.7 and 0.3 < look["dropped_count"] < 0.7
    monkeypatch.setattr(train, "predict", answers_of("count"))
    look = shortcut.interfere(None, config, size=100)
    assert look["whole"][-1] == 1 and max(look["whole"][:-1]) < 0.7 and look["changes"] == [[1.0] * n] * n
    assert look["beside_count"] == look["dropped_count"] == 1 and look["beside_differ"] == 0


def test_probe_reads_what_is_there_and_nothing_else(monkeypatch):
    """Variable i stands in the state from layer i on, beside noise and a large constant."""
    def states_of(model, batch, n_loops):
        known = torch.nn.functional.one_hot(batch.values, 6).float()  # (B, n, |X|)
        layers = [torch.where((torch.arange(3) <= layer)[:, None], known, 0) for layer in range(3)]
        return torch.stack([torch.cat((x, torch.randn(*x.shape[:2], 2) + 50), -1) for x in layers])

    monkeypatch.setattr(train, "states_of", states_of)
    read = flow.read_out(None, train.Config(task="d3", n_clauses=3, n_supervised=3, tied=False), size=1000)
    for layer in range(3):
        for variable in range(3):
            accuracy = read["true"][layer][variable]
            assert accuracy == 1 if variable <= layer else abs(accuracy - 1 / 6) < 0.07
            assert abs(read["shuffled"][layer][variable] - 1 / 6) < 0.07


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
    assert [x.shape for x in batch] == [(20, 35), (20, 7), (20, 7)]
    for tokens, positions, values in zip(*batch):
        truth = lego.solve(lego.decode(tokens, task), task)
        assert [task.vocab[t] for t in tokens[positions]] == list(truth)
        assert [task.values[v] for v in values] == list(truth.values())


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


def test_lego_attention_takes_the_rate_that_was_best():
    """The lowest loss in the end for words; for LEGO the fewest FLOPs to 99%, and a rate that gets there at all."""
    scale, RATES = "laptop", lego_attention.RATES
    losses = lambda *ends: [dict(test_loss=[9.0, end]) for end in ends]
    reach = lambda *means: dict(config=dict(n_supervised=2), flops=[0, 10, 20, 30],
                                accuracy=[[mean, mean, 0.1] for mean in means])
    searched = {f"words, {variant}": losses(9, 9, 5, 4, 3, 5)[-len(rates):] for variant, rates in RATES.items()}
    on_lego = [reach(0.5, 0.6, 0.7, 0.8), reach(0.5, 0.6, 0.99, 1), reach(0.5, 0.6, 0.7, 1)]
    searched |= {f"LEGO, {variant}": on_lego[:len(rates)] for variant, rates in lego_attention.TASK_RATES.items()}
    assert set(searched) == set(lego_attention.searches(scale))
    best = lego_attention.best_rates(searched)
    assert best["words, vanilla"] == RATES["vanilla"][-2] and best["words, association alone"] == 30
    assert best["words, LEGO chained, wider"] == best["words, LEGO chained"] == 30
    assert best["LEGO, hybrid"] == best["LEGO, vanilla"] == 3
    runs = lego_attention.groups(scale, best)
    wider, vanilla = (train.make_model(runs[f"words, {variant}"][0]) for variant in ("LEGO chained, wider", "vanilla"))
    assert wider.flops(128, n_read=19) == pytest.approx(vanilla.flops(128, n_read=19), rel=0.03)
    assert runs["words, LEGO chained, wider"][0].lr == pytest.approx(best["words, LEGO chained"] * 1e-3)
    for configs in runs.values():
        for config in configs:
            train.check(config)
    for gpu in ("gpu", "gpu_base"):
        for configs in lego_attention.searches(gpu, "wiki.txt").values():
            assert all(config.corpus == "wiki.txt" and config.n_embd in (512, 768) for config in configs)


@pytest.mark.parametrize("module, arguments, expected", [
    ("kernels", ["--fast"], "'--fast': expected no argument"),
    ("speed", ["cpu"], "'cpu': expected no argument"),
    ("lego_attention", ["--scale=huge"], "'--scale=huge': expected --scale= and one of laptop, gpu, gpu_base, or "),
])
def test_bad_argument_of_a_measuring_figure_is_named(module, arguments, expected):
    with pytest.raises(ValueError, match=expected):
        importlib.import_module(f"figures.{module}").main(arguments)
