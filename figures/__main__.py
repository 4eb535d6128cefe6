"""Redraws every figure from its saved numbers, without training: python -m figures"""
import importlib
import pkgutil

import figures
import lego


def main(arguments):
    if arguments:
        raise ValueError(f"'{arguments[0]}': expected no argument")
    for module in pkgutil.iter_modules(figures.__path__):
        if not module.name.startswith("_"):
            draw = importlib.import_module(f"figures.{module.name}").draw
            scales = sorted(path.stem for path in figures.FOLDER.glob(f"{module.name}_*.json")
                            if "." not in path.stem)  # as in name.search.json, numbers that another picture needs
            for name in [module.name, *scales]:
                figures.redraw(name, draw)


if __name__ == "__main__":
    lego.command_line(main)
