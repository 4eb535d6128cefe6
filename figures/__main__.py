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
            groups = module.groups() if hasattr(module, "groups") else None
            runner.redraw(module.NAME, module.draw, groups)
            if (runner.FOLDER / f"{module.NAME}_gpu.json").exists():
                runner.redraw(f"{module.NAME}_gpu", module.draw)


if __name__ == "__main__":
    lego.command_line(main)
