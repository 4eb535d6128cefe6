"""
The key plots: one script each, and beside it the PNG and the JSON of the numbers that it was drawn from.

    python -m figures.learning      makes the runs of one figure that are not there yet, and draws it
    python -m figures               redraws every figure from its saved numbers, without training

Each has a NAME and `draw(numbers)`, which returns a matplotlib figure; the numbers are saved as they arrive.
"""
import json
import sys
from dataclasses import asdict
from pathlib import Path

import train

FOLDER = Path(__file__).parent


def save(name, numbers):
    """Writes figures/<name>.json as a whole; call it after every run, so that a stop loses nothing."""
    train.write(FOLDER / f"{name}.json", lambda beside: beside.write_text(json.dumps(numbers)))


def load(name) -> dict:
    """The numbers of figures/<name>.json. Raises ValueError if they are not there."""
    path = FOLDER / f"{name}.json"
    if not path.exists():
        raise ValueError(f"figures/{name}.json: expected this figure's numbers; python -m figures.{name} makes them")
    return json.loads(path.read_text())


def train_all(name, groups):
    """
    Trains {label: [config, ...]} into figures/<name>.json, as {label: [history, ...]}. A run with the same dials that
    the file already holds is kept: a stopped figure goes on, and to make one anew delete its JSON.
    """
    try:
        found = [history for runs in load(name).values() for history in runs]
    except ValueError:
        found = []
    histories = {label: [] for label in groups}
    for label, configs in groups.items():
        for config in configs:
            dials = asdict(config)
            same = [history for history in found if all(dials[k] == v for k, v in history["config"].items())]
            histories[label].append(same[0] if same else None)
    for label, configs in groups.items():
        for i, config in enumerate(configs):
            if histories[label][i] is None:
                histories[label][i] = train.train(config)
                save(name, {label: [h for h in runs if h] for label, runs in histories.items()})


def make(name, groups, draw):
    """A figure's command line: the runs that are missing, then the picture. Raises ValueError for an argument."""
    if len(sys.argv) > 1:
        raise ValueError(f"'{sys.argv[1]}': expected no argument; the runs of this figure stand in its script")
    train_all(name, groups)
    redraw(name, draw)


def redraw(name, draw):
    """Draws figures/<name>.png from its saved numbers."""
    figure = draw(load(name))
    train.write(FOLDER / f"{name}.png", lambda beside: figure.savefig(beside, dpi=150, format="png"))
    print(f"wrote figures/{name}.png")
