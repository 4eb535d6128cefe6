"""
The key plots: one script each, and beside it the PNG and the JSON of the numbers that it was drawn from.

    python -m figures.learning      makes the runs of one figure that are not there yet, and draws it
    python -m figures               redraws every figure from its saved numbers, without training

Each has a NAME and `draw(numbers)`, which returns a matplotlib figure; the numbers are saved as they arrive.
"""
import json
import multiprocessing
import os
import sys
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict
from pathlib import Path

import torch
from tqdm import tqdm

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


def saved(name) -> dict:
    """As `load`, but empty where there is nothing yet."""
    return load(name) if (FOLDER / f"{name}.json").exists() else {}


def train_all(name, groups, parallel=False, run=None):
    """
    Trains {label: [config, ...]} into figures/<name>.json, as {label: [history, ...]}. A run with the same dials that
    the file already holds is kept: a stopped figure goes on, and to make one anew delete its JSON.

    parallel, run: as in `train_each`.
    """
    histories = found(name, groups)
    missing = [(label, i) for label, runs in histories.items() for i, history in enumerate(runs) if not history]
    for k, history in train_each([groups[label][i] for label, i in missing], parallel, run):
        label, i = missing[k]
        histories[label][i] = history
        save(name, {label: [run for run in runs if run] for label, runs in histories.items() if any(runs)})


def found(name, groups) -> dict:
    """{label: [history, ...]} of what figures/<name>.json holds of {label: [config, ...]}, None where it does not."""
    histories = [history for runs in saved(name).values() for history in runs]
    same = lambda config: [h for h in histories if all(asdict(config)[k] == v for k, v in h["config"].items())]
    return {label: [next(iter(same(config)), None) for config in configs] for label, configs in groups.items()}


def is_missing(name, groups) -> bool:
    """Whether figures/<name>.json lacks a run of {label: [config, ...]}."""
    return not all(all(histories) for histories in found(name, groups).values())


def make_checkpoints(configs, parallel=False):
    """Trains the configs whose out_dir does not hold the checkpoint of that very run, run to its end."""
    def is_there(config):
        try:
            checkpoint = train.read_checkpoint(config.out_dir)
        except ValueError:
            return False
        history = checkpoint["history"]
        return checkpoint["config"] == asdict(config) and (
            history["step"][-1] == config.max_steps or train.stands(history))
    for _ in train_each([config for config in configs if not is_there(config)], parallel):
        pass


def train_each(configs, parallel=False, run=None):
    """
    Trains every config and yields (its place in the list, history) as they end.

    run: what makes the history of a config, a function of a module; None: train.train.

    parallel: without a GPU, make as many runs at a time as there are cores, each on one thread, which small models
    gain by. What is measured in steps stays the same but for rounding; what is measured in seconds does not.
    """
    run = run or train.train
    n_processes = min(len(configs), torch.get_num_threads())
    if not parallel or n_processes < 2 or train.pick_device(configs[0].device).type != "cpu":
        for i, config in enumerate(configs):
            yield i, run(config)
        return
    print(f"{len(configs)} runs, {n_processes} at a time")
    spawn = multiprocessing.get_context("spawn")  # a fork of a process that has used torch's threads can hang
    pool = ProcessPoolExecutor(n_processes, spawn, _one_quiet_thread)
    try:
        runs = {pool.submit(run, config): i for i, config in enumerate(configs)}
        for done in tqdm(as_completed(runs), total=len(runs), desc="runs", unit="run", dynamic_ncols=True):
            yield runs[done], done.result()
    finally:
        pool.shutdown(cancel_futures=True)


def settled(history, n, at=0.999):
    """The place of the evaluation from which on the first n variables are at `at` or better to the end, or None."""
    good = [min(accuracies[:n]) >= at for accuracies in history["accuracy"]]
    return next((i for i in range(len(good)) if all(good[i:])), None)


def _one_quiet_thread():
    """How each process of `train_each` begins: the others have threads and something to say, too."""
    torch.set_num_threads(1)
    sys.stdout = sys.stderr = open(os.devnull, "w")


def make(name, draw, arguments, parallel=False, **scales):
    """
    A figure's command line: makes the runs that are missing, then the picture. `scales` are the figure's groups at
    each size, {label: [config, ...]}; --scale=NAME picks one, the first if there is none. Each has files of its own:
    those of the first are called after the figure, those of another `<name>_<scale>`. `parallel` as in train_all.
    Raises ValueError for another argument.
    """
    first, *others = scales
    scale = first
    if arguments:
        scale = arguments[0].removeprefix("--scale=")
        if len(arguments) > 1 or arguments[0] == scale or scale not in scales:
            raise ValueError(f"'{' '.join(arguments)}': expected "
                             + (f"--scale= and one of {', '.join(scales)}" if others else "no argument")
                             + "; the runs of this figure stand in its script")
    name = name if scale == first else f"{name}_{scale}"
    train_all(name, scales[scale], parallel)
    redraw(name, draw)


def measure(name, measure, draw, arguments):
    """
    The command line of a figure that times this machine: measures all of it anew, by measure(device, save=...), and
    draws it. The files of a GPU are called `<name>_gpu`. Raises ValueError for an argument.
    """
    if arguments:
        raise ValueError(f"'{arguments[0]}': expected no argument")
    device = train.pick_device("auto")
    name = name if device.type == "cpu" else f"{name}_gpu"
    measure(device, save=lambda numbers: save(name, numbers))
    redraw(name, draw)


def redraw(name, draw):
    """Draws figures/<name>.png from its saved numbers."""
    figure = draw(load(name))
    train.write(FOLDER / f"{name}.png", lambda beside: figure.savefig(beside, dpi=150, format="png"))
    print(f"wrote figures/{name}.png")
