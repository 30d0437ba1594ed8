"""What is claimed, and what is trained and measured to decide it: `claims.toml` and `experiments.toml`, read."""

from __future__ import annotations

import dataclasses
import tomllib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pydantic import ConfigDict, ValidationError
from pydantic.dataclasses import dataclass

from isodiff.reproduce.endpoints import Endpoint
from isodiff.reproduce.rules import Effect, Within, read_rule

_strict = dataclass(frozen=True, kw_only=True, config=ConfigDict(extra="forbid"))


@_strict
class Claim:
    """One claim; `claims.toml` explains the fields."""

    name: str
    group: str
    statement: str
    source: str
    paper: str = "–"
    endpoint: Endpoint | None = None
    rule: Effect | Within | None = None
    unit: str = "%"
    reason: str = ""
    settled: str = ""
    protocol: str = ""

    def __post_init__(self) -> None:
        if (self.endpoint is None) != (self.rule is None) or (self.endpoint is None) != bool(self.reason):
            raise ValueError(f"{self.name} needs an endpoint with a rule, or a reason why there is none")


@_strict
class Pretraining:
    """How an experiment's own base is trained, for every seed; the resolution is the architecture's own by default."""

    architecture: str
    config: Mapping[str, Any]
    resolution: int | None = None


@_strict
class Arm:
    """One way to fine-tune, or with ``changes=None`` the base; `sizes` of its evaluation replace the experiment's."""

    families: tuple[str, ...]
    changes: Mapping[str, Any] | None = None
    sizes: Mapping[str, Any] = dataclasses.field(default_factory=dict)


@_strict
class Experiment:
    """Models that are compared, at one profile."""

    question: str
    dataset: str
    base: str | Pretraining
    config: Mapping[str, Any]
    arms: Mapping[str, Arm]
    sizes: Mapping[str, Any]
    seeds: int


@_strict
class Program:
    """An experiment without a diffusion model of its own, at one profile: a function of `programs` and its options."""

    question: str
    function: str
    options: Mapping[str, Any]
    seeds: int


def read_claims(groups: Mapping[str, Mapping[str, Any]]) -> dict[str, Claim]:
    """Return claims by name from tables by group and name; a fault is a ValueError that names the claim and the key."""
    found: dict[str, Claim] = {}
    readers = {"endpoint": Endpoint.read, "rule": read_rule}
    for group, name, table in ((group, *item) for group, tables in groups.items() for item in tables.items()):
        if name in found:
            raise ValueError(f"two claims are called {name}")
        with _naming(name):
            built = {key: readers[key](value) if key in readers else value for key, value in table.items()}
            found[name] = Claim(**{"name": name, "group": group, **built})
    return found


def read_experiment(name: str, table: Mapping[str, Any], profile: str) -> Experiment | Program:
    """Return one experiment at one profile; a fault is a ValueError that names the experiment and the key."""
    facts = {key: value for key, value in table.items() if key not in (*PROFILES, "families", "table")}
    facts = _merged(facts, table[profile])
    if "function" not in facts:
        sets, arms = table["families"], facts["arms"]
        if unknown := {arm["families"] for arm in arms.values()} - sets.keys():
            raise ValueError(f"{name} has no families called {', '.join(unknown)}; there are {', '.join(sets)}")
        facts["arms"] = {arm: {**own, "families": sets[own["families"]]} for arm, own in arms.items()}
        facts["sizes"] = _FILE["sizes"].get(profile, {}) | facts.get("sizes", {})
    with _naming(name):
        return (Program if "function" in facts else Experiment)(**facts)


def experiments(profile: str) -> dict[str, Experiment | Program]:
    """Return the experiments of a profile by name."""
    if profile not in PROFILES:
        raise ValueError(f"profile is {profile!r}; reproduce accepts {', '.join(PROFILES)}")
    tables = _FILE["experiments"].items()
    return {name: read_experiment(name, table, profile) for name, table in tables if profile in table}


@contextmanager
def _naming(name: str) -> Iterator[None]:
    """Put a name, and the key where there is one, before what is wrong."""
    try:
        yield
    except ValidationError as error:
        faults = "; ".join(f"{'.'.join(map(str, fault['loc']))}: {fault['msg']}" for fault in error.errors())
        raise ValueError(f"{name}: {faults}") from None
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from None


def _merged(under: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """Return tables laid over each other, at every depth."""
    both = {key: _merged(under[key], over[key]) for key in under.keys() & over.keys() if isinstance(over[key], dict)}
    return {**under, **over, **both}


def _read(file: str) -> dict[str, Any]:
    return tomllib.loads(Path(__file__).with_name(file).read_text(encoding="utf-8"))


_FILE, _CLAIMS = _read("experiments.toml"), _read("claims.toml")
PROFILES: dict[str, str] = _FILE["profiles"]
# tables of the report: heading → experiment, quantities by heading
TABLES: dict[str, tuple[str, Mapping[str, str]]] = {
    facts["table"]["title"]: (name, facts["table"]["columns"])
    for name, facts in _FILE["experiments"].items()
    if "table" in facts
}
HEADLINES: tuple[str, ...] = tuple(_CLAIMS.pop("headlines"))
CLAIMS = read_claims(_CLAIMS)  # by name, in the order of the verdict table
