"""Draws every figure again from its saved numbers, without training: python -m figures"""
import importlib
import pkgutil

import figures
import lego
from figures import runner


def main(arguments):
    if arguments:
        raise ValueError(f"'{arguments[0]}': expected no argument")
    for module in pkgutil.iter_modules(figures.__path__):
        module = importlib.import_module(f"figures.{module.name}")
        if hasattr(module, "draw"):
            groups = getattr(module, "groups", lambda *scale: None)
            runner.redraw(module.NAME, module.draw, groups())
            for path in sorted(runner.FOLDER.glob(f"{module.NAME}_*.json")):  # another scale, or a GPU
                if "." not in path.stem:
                    runner.redraw(path.stem, module.draw, groups(path.stem.removeprefix(f"{module.NAME}_")))


if __name__ == "__main__":
    lego.command_line(main)
