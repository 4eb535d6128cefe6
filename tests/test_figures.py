"""figures/: runs are kept as they arrive, and every committed picture can be drawn again from its numbers."""
import importlib
import pkgutil

import pytest

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
