"""
The key plots: one script each, and beside it the PNG and the JSON of the numbers that it was drawn from.

    python -m figures.learning      makes the runs of one figure that are not there yet, and draws it
    python -m figures               redraws every figure from its saved numbers, without training

Each has a NAME and `draw(numbers)`, which returns a matplotlib figure. train.py imports figures.show, and the figures
import train, so nothing of the project is imported here.
"""
import os
import sys

if "ipykernel" not in sys.modules:  # a notebook passes its own backend on to all that it starts; a PNG needs none
    os.environ.pop("MPLBACKEND", None)
