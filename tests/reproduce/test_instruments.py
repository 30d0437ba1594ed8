"""The controls show about what was built, and next to nothing where nothing was."""

import pytest
import torch

from isodiff.reproduce import instruments


def test_what_is_built_is_seen() -> None:
    random = torch.Generator().manual_seed(0)
    found = instruments._arc() | instruments._maps(random, 32) | instruments._faces(random, 8)
    found |= instruments._moves(random, 16)
    for name in ("arc", "condition", "variance", "anisotropy", "rank", "distance", "spill"):
        assert found[f"{name}_seen"] == pytest.approx(found[f"{name}_built"], rel=0.1), name
    assert found["excess_built"] < found["excess_seen"] < 0, "what the fit leaves over hides part of a detour"


def test_attributes_that_are_linear_in_latents_are_told_and_lots_are_not() -> None:
    found = instruments._labels(torch.Generator().manual_seed(0), 300, 0)
    for kernel in ("linear", "rbf"):
        assert found[f"told_{kernel}"] > 0.5
        assert abs(found[f"told_{kernel}_by_lot"]) < 0.2
