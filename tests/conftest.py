"""What every test shares: seeded randomness, figures without a screen."""

import os

os.environ.setdefault("MPLBACKEND", "agg")
# On some processors MKL's last bits depend on where memory lies; tests that compare bytes need them fixed.
# This branch costs no time; COMPATIBLE would, four times as much for a matrix product.
os.environ.setdefault("MKL_CBWR", "AVX2,STRICT")

import pytest
import torch
from hypothesis import settings as hypothesis_settings

# the same examples on every machine and no deadline: a slow machine is not a failure
hypothesis_settings.register_profile("course", deadline=None, derandomize=True, max_examples=30)
hypothesis_settings.load_profile("course")


@pytest.fixture
def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


@pytest.fixture(autouse=True)
def _seed_global_randomness() -> None:
    torch.manual_seed(0)  # of torch's global generator, which layers use for their initial weights
