"""The tests run from the root, on one CPU, anywhere: `pytest`."""
import random
import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent.parent))


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


@pytest.fixture
def mutate():
    """mutate(text) -> the text with some characters deleted, doubled, swapped or put in; the same every time."""
    r = random.Random(0)
    odd = "=;+-19 abz'\"{}%\\[]().\0\n\r\t\x1b\u2028\u2003\u0301\ud800\udcff１٣²＝；−аａß😀"

    def mutate(text):
        text = list(text)
        for _ in range(r.choice([1, 1, 2, 8])):
            i, j = (r.randrange(len(text) + 1) for _ in range(2))
            kind = r.choice(["delete", "double", "swap", "odd", "any"])
            if kind == "odd" or kind == "any":
                text.insert(i, r.choice(odd) if kind == "odd" else chr(r.randrange(0x110000)))
            elif max(i, j) < len(text):
                text[i], text[j] = text[j], text[i]
                text[i : i + 1] = text[i : i + 1] * {"delete": 0, "double": 2, "swap": 1}[kind]
        return "".join(text)
    return mutate
