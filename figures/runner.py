"""
What the figures share: a command line that makes the runs that are missing, saves each as it arrives, and draws.

    python -m figures.NAME              says what figures/NAME.json holds, trains what it lacks, and draws NAME.png
    python -m figures.NAME --again      trains all of it anew
"""
import json
import multiprocessing
import os
import sys
import threading
import time
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict
from pathlib import Path

import torch
from tqdm import tqdm

import lego
import train
from model import read_checkpoint

FOLDER = Path(__file__).parent


# ---- files -----------------------------------------------------------------------------------------------------------


def save(name, numbers):
    """Writes figures/<name>.json as a whole; call it after every run, so that a stop loses nothing."""
    lego.write(FOLDER / f"{name}.json", lambda beside: beside.write_text(json.dumps(numbers)))


def load(name) -> dict:
    """The numbers of figures/<name>.json. Raises ValueError if they are not there."""
    path = FOLDER / f"{name}.json"
    if not path.exists():
        raise ValueError(f"figures/{name}.json: expected this figure's numbers; python -m figures.{name} makes them")
    return json.loads(path.read_text())


def saved(name) -> dict:
    """As `load`, but empty where there is nothing yet."""
    return load(name) if (FOLDER / f"{name}.json").exists() else {}


def found(name, groups) -> dict:
    """
    {label: [history, ...]} of what figures/<name>.json holds of {label: [config, ...]}, None where it does not. Dials
    that one of the two does not know, since they came or went after the run, are not compared; once branch was 0.
    """
    histories = [(history, {"branch": 0.0, **history["config"]}) for runs in saved(name).values() for history in runs]
    is_of = lambda config, dials: all(config.get(k, v) == v for k, v in dials.items())
    find = lambda dials: next((history for history, config in histories if is_of(config, dials)), None)
    return {label: [find(asdict(config)) for config in configs] for label, configs in groups.items()}


def complete(histories) -> dict:
    """{label: [history, ...]} without the runs that are not there, and without the labels that have none."""
    return {label: [run for run in runs if run] for label, runs in histories.items() if any(runs)}


def redraw(name, draw, groups=None):
    """Draws figures/<name>.png from its saved numbers: of runs, those of `groups`, {label: [config, ...]}, if any."""
    numbers = load(name) if groups is None else complete(found(name, groups))
    if lacks := [label for label in groups or () if label not in numbers]:
        return print(f"{name}: no picture, it lacks runs of {', '.join(lacks)}; python -m figures.{name} trains them")
    figure = draw(numbers)
    lego.write(FOLDER / f"{name}.png", lambda beside: figure.savefig(beside, dpi=150, format="png"))
    print(f"wrote figures/{name}.png")


# ---- command lines ---------------------------------------------------------------------------------------------------


def main(name, draw, groups, run=None, sources=(), before=()):
    """
    A figure's command line.

    groups    returns {label: [config of every seed]}
    run       makes the history of a config, a function of a module; None: train.train
    sources   the configs of the runs that some of these begin from
    before    [(suffix, groups, run)] of figures/<name>.<suffix>.json, trained first: `groups` may read what comes out
    """
    lego.command_line(lambda arguments: make(name, draw, groups, is_again(arguments), run, sources, before))


def make(name, draw, groups, again=False, run=None, sources=(), before=()):
    """As `main`; `again`: trains all of it anew."""
    for suffix, groups_before, run_before in before:
        train_all(f"{name}.{suffix}", groups_before(), run_before, sources, again)
    train_all(name, groups(), run, sources, again)
    if draw:
        redraw(name, draw, groups())


def is_again(arguments) -> bool:
    """Whether all is to be made anew. Raises ValueError for an argument that is not --again."""
    if arguments not in ([], ["--again"]):
        raise ValueError(f"'{' '.join(arguments)}': expected --again, or nothing")
    return bool(arguments)


def train_all(name, groups, run=None, sources=(), again=False):
    """
    Says what figures/<name>.json holds of {label: [config, ...]}, and trains the rest into it, after those of `sources`
    that these runs begin from; `again`: all of it. A run with the same dials is kept, so a stopped figure goes on;
    other runs leave the file with the first new one.
    """
    histories = found(name, groups)
    kept = [history for runs in histories.values() for history in runs if history]
    n_runs = sum(map(len, groups.values()))
    if again:
        histories = {label: [None] * len(configs) for label, configs in groups.items()}
    missing = [(label, i) for label, runs in histories.items() for i, history in enumerate(runs) if not history]
    machines = dict.fromkeys(f"{run['hardware']}, torch {run['torch']}" for run in kept if "hardware" in run)
    print(f"{name}: {len(kept)} of {n_runs} runs are saved in figures/{name}.json"
          + f" ({' and '.join(machines)})" * bool(machines)
          + (f"; training {len(missing)}" if missing else "; nothing to train; --again trains them anew"))
    configs = [groups[label][i] for label, i in missing]
    begun = {folder for config in configs for folder in (config.init_from, config.out_dir)}  # out_dir: see heads.py
    make_checkpoints([source for source in sources if source.out_dir in begun])
    for k, history in train_each(configs, run):
        label, i = missing[k]
        histories[label][i] = history
        save(name, complete(histories))


def main_measured(name, measure, present):
    """
    The command line of a figure that times this machine: measures, by measure(device, save), what is not saved, or with
    --again all of it, and calls present(name). The files of a GPU are called <name>_gpu.
    """
    def make(arguments):
        again, device = is_again(arguments), torch.device("cuda" if torch.cuda.is_available() else "cpu")
        of_device = name if device.type == "cpu" else f"{name}_gpu"
        numbers = saved(of_device)
        if "seconds" in numbers and not again:  # `measure` writes this last
            print(f"{of_device}: saved in figures/{of_device}.json ({numbers['hardware']}, torch {numbers['torch']}); "
                  "--again measures this machine")
        else:
            print(f"{of_device}: measuring this machine into figures/{of_device}.json")
            measure(device, save=lambda numbers: save(of_device, numbers))
        present(of_device)
    lego.command_line(make)


# ---- training --------------------------------------------------------------------------------------------------------


def make_checkpoints(configs):
    """Trains the configs whose out_dir does not hold the checkpoint of that very run, run to its end."""
    def is_there(config):
        try:
            checkpoint = read_checkpoint(config.out_dir)
        except ValueError:
            return False
        history = json.loads(checkpoint["history"])
        return checkpoint["config"] == asdict(config) and (
            history["step"][-1] == config.max_steps or train.reached_stop_at(history))
    for _ in train_each([config for config in configs if not is_there(config)]):
        pass


def train_each(configs, run=None):
    """
    Trains every config and yields (its place in the list, history) as they end. Without a GPU as many runs at a time as
    there are cores, each on one thread, which small models gain by. `run` as in `main`.
    """
    run, n_processes = run or train.train, torch.get_num_threads()
    if not configs or n_processes == 1 or train.pick_device(configs[0].device).type != "cpu":
        for i, config in enumerate(configs):
            yield i, run(config)
        return
    spawn = multiprocessing.get_context("spawn")  # a fork of a process that has used torch's threads can hang
    pool = ProcessPoolExecutor(min(len(configs), n_processes), spawn, _one_quiet_thread)
    try:
        runs = {pool.submit(run, config): i for i, config in enumerate(configs)}
        for done in tqdm(as_completed(runs), total=len(runs), desc="runs", unit="run", dynamic_ncols=True):
            yield runs[done], done.result()
    finally:
        pool.shutdown(cancel_futures=True)


def _one_quiet_thread():
    """
    How each process of `train_each` begins: with one thread, as others run beside it, and no output. It ends with the
    first process, however that ends.
    """
    first = os.getppid()

    def watch():
        while os.getppid() == first:
            time.sleep(1)
        os._exit(1)
    threading.Thread(target=watch, daemon=True).start()
    torch.set_num_threads(1)
    sys.stdout = sys.stderr = open(os.devnull, "w")


def settled(history, n, at=0.999):
    """The index of the evaluation from which on the first n variables are at `at` or better to the end, or None."""
    good = [min(accuracies[:n]) >= at for accuracies in history["accuracy"]]
    return next((i for i in range(len(good)) if all(good[i:])), None)
