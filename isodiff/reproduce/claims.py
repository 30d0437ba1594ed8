"""What is claimed, and what is trained and measured to decide it: `claims.toml` and `experiments.toml`, read."""

import dataclasses
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BeforeValidator, ConfigDict, TypeAdapter
from pydantic.dataclasses import dataclass

from isodiff.reproduce.endpoints import Endpoint
from isodiff.reproduce.rules import Effect, Within, read_rule

_strict = dataclass(frozen=True, kw_only=True, config=ConfigDict(extra="forbid"))


Read = Annotated[Endpoint, BeforeValidator(Endpoint.read)]


@_strict
class Instrument:
    """What measures, and its controls; `claims.toml` explains the fields."""

    what: str
    seen: Read | None = None
    built: Read | None = None
    none: Read | None = None
    reach: Read | None = None


@_strict
class Claim:
    """One claim; `claims.toml` explains the fields."""

    name: str
    group: str
    family: Literal["primary", "secondary", "other"]
    statement: str
    source: str
    paper: str = "–"
    instrument: str = ""
    endpoint: Read | None = None
    rule: Annotated[Effect | Within, BeforeValidator(read_rule)] | None = None
    unit: str = "%"
    drawn: str = "training"
    against: bool = False
    reason: str = ""
    settled: str = ""
    protocol: str = ""

    def __post_init__(self) -> None:
        if (self.endpoint is None) != (self.rule is None) or (self.endpoint is None and not self.reason):
            raise ValueError("a claim needs an endpoint with a rule, or a reason why there is none")
        if (self.endpoint is None) != (not self.instrument):
            raise ValueError("a claim with an endpoint, and no other, names its instrument")

    @property
    def experiments(self) -> tuple[str, ...]:
        """Whose records decide it."""
        ends = (self.endpoint, INSTRUMENTS[self.instrument].reach) if self.endpoint else ()
        return tuple(dict.fromkeys(name for end in ends if end is not None for name in end.experiments))


@_strict
class Arm:
    """One way to fine-tune, or with ``changes=None`` the base; `sizes` of its evaluation replace the experiment's."""

    families: list[str]
    changes: dict[str, Any] | None = None
    sizes: dict[str, Any] = dataclasses.field(default_factory=dict)


@_strict
class Experiment:
    """Models that are compared, at one profile."""

    dataset: str
    base: str | dict[str, Any]  # a shipped model, or its own: architecture, config, where other than usual resolution
    config: dict[str, Any]
    arms: dict[str, Arm]
    sizes: dict[str, Any]
    seeds: int

    def settings(self, name: str) -> dict[str, Any]:
        """Return what decides the record of an arm, but its seed."""
        arm = self.arms[name]
        config = None if arm.changes is None else {**self.config, **arm.changes}
        facts = {"dataset": self.dataset, "base": self.base, "config": config, "families": arm.families}
        return facts | {"sizes": {**self.sizes, **arm.sizes}}


@_strict
class Program:
    """An experiment without a diffusion model of its own, at one profile: a function of `programs` and its options."""

    arms: ClassVar = ("run",)
    function: str
    options: dict[str, Any]
    seeds: int

    def settings(self, _name: str) -> dict[str, Any]:
        """Return what decides the record, but its seed."""
        return {"function": self.function, "options": self.options}


def read_claims(groups: Mapping[str, Mapping[str, Any]]) -> dict[str, Claim]:
    """Return claims by name from tables by group and name."""
    found: dict[str, Any] = {}
    for group, tables in groups.items():
        if twice := found.keys() & tables.keys():
            raise ValueError(f"two claims are called {', '.join(twice)}")
        found |= {name: {**table, "name": name, "group": group} for name, table in tables.items()}
    return TypeAdapter(dict[str, Claim]).validate_python(found)


def read_experiment(name: str, table: Mapping[str, Any], profile: str) -> Experiment | Program:
    """Return one experiment at one profile."""
    facts = {key: value for key, value in table.items() if key not in (*PROFILES, "question", "families")}
    facts, kind = _merged(facts, table[profile]), Program if "function" in table else Experiment
    if kind is Experiment:
        sets, sizes = table["families"], _FILE["sizes"].get(profile, {})
        facts["arms"] = {arm: {**own, "families": sets[own["families"]]} for arm, own in facts["arms"].items()}
        facts["sizes"] = sizes | facts.get("sizes", {})
    return TypeAdapter(dict[str, kind]).validate_python({name: facts})[name]


def experiments(profile: str) -> dict[str, Experiment | Program]:
    """Return the experiments of a profile by name."""
    if profile not in PROFILES:
        raise ValueError(f"profile is {profile!r}; reproduce accepts {', '.join(PROFILES)}")
    tables = _FILE["experiments"].items()
    return {name: read_experiment(name, table, profile) for name, table in tables if profile in table}


def _merged(under: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """Return tables laid over each other, at every depth."""
    both = {key: _merged(under[key], over[key]) for key in under.keys() & over.keys() if isinstance(over[key], dict)}
    return {**under, **over, **both}


_FOLDER = Path(__file__).parent
_FILE, _CLAIMS = (tomllib.loads((_FOLDER / f"{n}.toml").read_text(encoding="utf-8")) for n in ("experiments", "claims"))
PROFILES: dict[str, str] = _FILE["profiles"]
INSTRUMENTS = TypeAdapter(dict[str, Instrument]).validate_python(_CLAIMS.pop("instruments"))
CLAIMS = read_claims(_CLAIMS)  # by name, in the order of the verdict table
