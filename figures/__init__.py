"""
The key plots: one script each, and beside it the PNG and the JSON of the numbers that it was drawn from.

    python -m figures.learning      makes the runs of one figure, saves their numbers as they arrive, draws it
    python -m figures               redraws every figure from its saved numbers, without training

A script has `run()`, which returns nothing and saves its numbers with `save`, and `draw(numbers)`, which returns a figure.
"""
import json
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
        raise ValueError(f"figures/{name}.json: expected the numbers of this figure; python -m figures.{name} makes them")
    return json.loads(path.read_text())


def redraw(name, draw):
    """Draws figures/<name>.png from its saved numbers."""
    figure = draw(load(name))
    train.write(FOLDER / f"{name}.png", lambda beside: figure.savefig(beside, dpi=150, format="png"))
    print(f"wrote figures/{name}.png")
