"""Settings: sizes by notebook and profile, and every kind of bad value refused by name."""

from __future__ import annotations

import dataclasses
import json
import re
from typing import Any, Literal

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from isodiff import profiles
from isodiff.parameters import check_seed, check_sizes, parse_overrides, resolve_device


@dataclasses.dataclass(frozen=True, kw_only=True)
class ExampleSettings(profiles.Settings):
    """Settings with a size of every accepted type."""

    num_steps: int
    learning_rate: float = 1e-4
    dimensions: tuple[int, ...] = (2, 3)
    dataset: Literal["digits", "faces"] = "digits"
    mixed_precision: bool = False
    folder: str | None = None


@pytest.fixture
def example(monkeypatch: pytest.MonkeyPatch) -> str:
    sizes = {"cpu": ExampleSettings(num_steps=10), "gpu": ExampleSettings(num_steps=1000)}
    monkeypatch.setitem(profiles.PROFILES, "99_example", sizes)
    return "99_example"


def test_profile_chooses_the_sizes(example: str) -> None:
    assert profiles.settings(example).num_steps == 10
    large = profiles.settings(example, profile="gpu", seed=3, device="cpu")
    assert (large.num_steps, large.profile, large.seed, large.device) == (1000, "gpu", 3, torch.device("cpu"))


def test_settings_are_frozen(example: str) -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        profiles.settings(example).num_steps = 3


def test_overrides_replace_single_sizes(example: str) -> None:
    changed = profiles.settings(
        example, overrides='{"num_steps": 50, "learning_rate": 1, "dimensions": [4], "folder": "a"}'
    )
    assert changed == dataclasses.replace(
        profiles.settings(example), num_steps=50, learning_rate=1.0, dimensions=(4,), folder="a"
    )
    assert isinstance(changed.learning_rate, float)


def test_choices_are_sizes_too(example: str) -> None:
    assert profiles.settings(example, dataset="faces").dataset == "faces"
    with pytest.raises(ValueError, match="dataset is 'cats'; it accepts 'digits', 'faces'"):
        profiles.settings(example, dataset="cats")
    with pytest.raises(ValueError, match="set it there, not in overrides"):
        profiles.settings(example, dataset="faces", overrides='{"dataset": "digits"}')


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"profile": "tpu"}, "profile is 'tpu'; 99_example accepts cpu, gpu"),
        ({"seed": -1}, "seed is -1"),
        ({"seed": 1.0}, "seed is 1.0"),
        ({"seed": True}, "seed is True"),
        ({"seed": 2**32}, "seed is 4294967296"),
        ({"device": "abacus"}, "device is 'abacus'"),
        ({"device": "meta"}, "device is 'meta'"),
        ({"device": 3.5}, "device is 3.5"),
        ({"device": "cuda:99"}, "device is 'cuda:99', but this machine has"),
        ({"overrides": "num_steps=3"}, "which is not JSON"),
        ({"overrides": "[1]"}, "give a JSON object"),
        ({"overrides": {"num_steps": 3}}, "which is not JSON"),
        ({"overrides": '{"steps": 3}'}, "no parameter called steps; it accepts num_steps, learning_rate"),
        ({"overrides": '{"seed": 3}'}, "no parameter called seed"),
        ({"overrides": '{"num_steps": 1.5}'}, "num_steps is 1.5; it accepts a whole number ≥ 0"),
        ({"overrides": '{"num_steps": true}'}, "num_steps is True"),
        ({"overrides": '{"num_steps": -5}'}, "num_steps is -5"),
        ({"overrides": '{"num_steps": null}'}, "num_steps is None"),
        ({"overrides": '{"learning_rate": NaN}'}, "learning_rate is nan; it accepts a finite number"),
        ({"overrides": '{"learning_rate": "fast"}'}, "learning_rate is 'fast'"),
        ({"overrides": '{"dimensions": []}'}, "it accepts a list, each entry a whole number ≥ 0"),
        ({"overrides": '{"dimensions": [2, "x"]}'}, "dimensions is 'x'"),
        ({"overrides": '{"mixed_precision": 1}'}, "mixed_precision is 1; it accepts true or false"),
        ({"overrides": '{"folder": 3}'}, "folder is 3; it accepts a string"),
    ],
)
def test_bad_values_are_refused_by_name(example: str, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message.replace("[", r"\[")):
        profiles.settings(example, **arguments)


def test_unknown_notebook_is_refused(example: str) -> None:
    with pytest.raises(ValueError, match=r"no notebook is called '05_none'; there are .*99_example"):
        profiles.settings("05_none")


def test_device_auto_exists() -> None:
    assert torch.zeros(1, device=resolve_device("auto")).item() == 0


@given(st.integers(0, 2**32 - 1))
def test_every_seed_accepted_seeds_torch(seed: int) -> None:
    assert torch.Generator().manual_seed(check_seed(seed)).initial_seed() == seed


@given(st.one_of(st.text(), st.recursive(st.integers() | st.text(), st.lists).map(json.dumps)))
def test_overrides_that_are_no_object_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match=re.escape(f"overrides is {text!r}")):
        parse_overrides(text)


@given(st.dictionaries(st.text(), st.integers() | st.booleans() | st.text()))
def test_overrides_are_read_as_json(sizes: dict[str, Any]) -> None:
    assert parse_overrides(json.dumps(sizes)) == sizes


@given(st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(), st.lists(st.integers())))
def test_a_size_has_its_declared_type_or_is_refused(value: object) -> None:
    if type(value) is int and value >= 0:
        assert check_sizes({"n": value}, {"n": int}, "example") == {"n": value}
    else:
        with pytest.raises(ValueError, match=re.escape(f"n is {value!r}; it accepts a whole number ≥ 0")):
            check_sizes({"n": value}, {"n": int}, "example")


@pytest.mark.parametrize("notebook", sorted(profiles.PROFILES))
def test_shipped_profiles(notebook: str) -> None:
    """Both profiles exist, in the class of the notebook, and every size passes its own check."""
    by_profile = profiles.PROFILES[notebook]
    assert set(by_profile) == {"cpu", "gpu"}
    assert len({type(sizes) for sizes in by_profile.values()}) == 1
    for profile, sizes in by_profile.items():
        hints = profiles.size_hints(notebook, profile)
        assert hints
        values = {name: getattr(sizes, name) for name in hints}
        assert check_sizes(values, hints, notebook) == values
