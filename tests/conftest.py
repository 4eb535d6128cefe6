"""The tests run from the root, on one CPU, anywhere: `pytest`."""
import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent.parent))


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)
