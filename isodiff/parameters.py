"""Checks of what a reader may type: seeds, devices, and sizes given as JSON.

Each returns the value in the type the code wants, or raises a ``ValueError`` that names what it received and
what it accepts.
"""

from __future__ import annotations

import argparse
import json
import math
import types
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, Literal, Union, get_args, get_origin

if TYPE_CHECKING:
    import torch


def listing(names: Iterable[object]) -> str:
    """Return names joined by commas, for an error message."""
    return ", ".join(map(str, names)) or "none"


def key_value(text: str) -> tuple[str, Any]:
    """Read ``key=value``; the value is JSON where it can be and otherwise the text itself."""
    key, separator, value = text.partition("=")
    if not separator or not key.isidentifier():
        raise argparse.ArgumentTypeError(f"{text!r} is not key=value, such as num_live_steps=50")
    try:
        return key, json.loads(value)
    except json.JSONDecodeError:
        return key, value


def check_seed(seed: object) -> int:
    """Return the seed if it is a whole number with 0 ≤ seed < 2³²; every generator accepts that range."""
    if isinstance(seed, bool) or not isinstance(seed, int) or not 0 <= seed < 2**32:
        raise ValueError(f"seed is {seed!r}; give a whole number from 0 to {2**32 - 1}")
    return seed


def resolve_device(device: str) -> torch.device:
    """Turn ``"auto"``, ``"cpu"``, ``"cuda"`` or ``"cuda:N"`` into a device that exists on this machine.

    ``"auto"`` is CUDA where there is one and otherwise the CPU; others lack the float64 the course needs.
    """
    import torch  # here, so that the command line does not wait for it

    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        resolved = torch.device(device)
    except (RuntimeError, TypeError):
        resolved = None
    if resolved is None or resolved.type not in {"cpu", "cuda"}:
        raise ValueError(f"device is {device!r}; give 'auto', 'cpu', 'cuda' or 'cuda:N'")
    if resolved.type == "cuda" and (resolved.index or 0) >= torch.cuda.device_count():
        raise ValueError(f"device is {device!r}, but this machine has {torch.cuda.device_count()} CUDA devices")
    return resolved


def parse_overrides(overrides: str) -> dict[str, Any]:
    """Read ``overrides``, a JSON object of sizes such as ``'{"num_steps": 50}'``."""
    try:
        parsed = json.loads(overrides)
    except (TypeError, json.JSONDecodeError) as error:
        raise ValueError(
            f"overrides is {overrides!r}, which is not JSON ({error}); give one such as '{{\"name\": 1}}'"
        ) from None
    if not isinstance(parsed, dict):
        raise ValueError(f"overrides is {overrides!r}; give a JSON object such as '{{\"name\": 1}}'")
    return parsed


def check_sizes(sizes: Mapping[str, object], hints: Mapping[str, object], owner: str) -> dict[str, Any]:
    """Return sizes in the types their annotations declare, or say by name what is wrong with them.

    Args:
        sizes: The values, by name.
        hints: The accepted names, each with its annotation: int, float, bool, str, ``Literal``, a
            ``tuple[X, ...]`` of these, or one of them with ``None``. Whole numbers must not be negative and
            numbers must be finite.
        owner: Whose sizes they are, for the error.

    Returns:
        The converted values, by name.

    Raises:
        ValueError: For an unknown name or a value of another type.
    """
    if unknown := sorted(sizes.keys() - hints.keys()):
        raise ValueError(f"{owner} has no parameter called {listing(unknown)}; it accepts {listing(hints)}")
    return {name: _convert(name, value, hints[name]) for name, value in sizes.items()}


def _convert(name: str, value: object, hint: object) -> object:
    """Return a value as its annotation wants it: JSON has lists for tuples and whole numbers for floats."""
    origin, arguments = get_origin(hint), get_args(hint)
    if origin is Literal and value in arguments:
        return value
    if origin in (Union, types.UnionType):
        if value is None and type(None) in arguments:
            return None
        (inner,) = (argument for argument in arguments if argument is not type(None))
        return _convert(name, value, inner)
    if origin is tuple and isinstance(value, list | tuple) and len(value) > 0:
        return tuple(_convert(name, item, arguments[0]) for item in value)
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if hint is float and is_number and math.isfinite(value):
        return float(value)
    if hint is int and is_number and isinstance(value, int) and value >= 0:
        return value
    if hint in (str, bool) and type(value) is hint:
        return value
    raise ValueError(f"{name} is {value!r}; it accepts {_describe(hint)}")


def _describe(hint: object) -> str:
    origin, arguments = get_origin(hint), get_args(hint)
    if origin is Literal:
        return listing(map(repr, arguments))
    if origin in (Union, types.UnionType):
        return " or ".join("null" if inner is type(None) else _describe(inner) for inner in arguments)
    if origin is tuple:
        return f"a list, each entry {_describe(arguments[0])}"
    return {int: "a whole number ≥ 0", float: "a finite number", str: "a string", bool: "true or false"}[hint]
