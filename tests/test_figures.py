"""figures/: runs are kept as they arrive, and every committed picture can be drawn again from its numbers."""
import importlib
import pkgutil

import pytest
import torch
from matplotlib.figure import Figure

import figures
import train

NAMES = [module.name for module in pkgutil.iter_modules(figures.__path__) if not module.name.startswith("_")]


@pytest.mark.parametrize("name", NAMES)
def test_committed_numbers_redraw_the_figure(name, tmp_path):
    importlib.import_module(f"figures.{name}").draw(figures.load(name)).savefig(tmp_path / "figure.png")


def test_missing_numbers_are_named_with_the_command_that_makes_them():
    with pytest.raises(ValueError, match="figures/nothing.json: expected .*python -m figures.nothing makes them"):
        figures.load("nothing")


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
    assert made == [1, 2, 3, 3, 4]
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
