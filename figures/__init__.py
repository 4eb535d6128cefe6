"""
The key plots: one script each, and beside it the PNG and the JSON of the numbers that it was drawn from; or a table.

    python -m figures.learning      makes the runs of one figure that are not there yet, and draws it
    python -m figures               redraws every figure from its saved numbers, without training

Each has a NAME, a plot also `draw(numbers)`, which returns a matplotlib figure. Beside them stand runner.py, which
makes the runs of a figure, show.py, which shows a run, and text.py and bert.py, which read text and BERTs. train.py
and model.py import the last three, and the figures import train, so nothing of the project is imported here.
"""
import os
import sys

if "ipykernel" not in sys.modules:  # a notebook passes its own backend on to all that it starts; a PNG needs none
    os.environ.pop("MPLBACKEND", None)
