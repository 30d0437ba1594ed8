"""The verdicts, from records alone: nothing here trains or measures."""

from __future__ import annotations

import dataclasses
import json
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from scipy import stats

from isodiff.files import data_directory, write_whole
from isodiff.reproduce.claims import CLAIMS, INSTRUMENTS, Claim, experiments
from isodiff.reproduce.endpoints import load_run, observe, record, sample_of, seeds_of
from isodiff.reproduce.rules import RATE, Estimate, holm
from isodiff.verdict import VERDICT_KINDS, Verdict


@dataclasses.dataclass(frozen=True)
class Decision:
    """What became of a claim."""

    claim: Claim
    verdict: str
    estimate: Estimate | None = None  # None where there is nothing to decide by
    alone: str = ""  # the verdict without correction for many claims
    p: float = 1.0  # of the claim's own test
    adjusted: float = 1.0  # by Holm over the primary, by Benjamini and Hochberg over the secondary claims
    sample: str = ""  # what a unit's number rests on

    @property
    def ours(self) -> str:
        """Our value with its interval and the number of units, or why there is none."""
        if self.estimate is None:
            return self.claim.reason
        n, of = len(self.estimate.values), f" of {self.sample}" if self.sample else ""
        return f"{effect(self.estimate, self.claim.unit)}, {n} {plural(self.claim.drawn)}{of}"

    @property
    def ours_in_full(self) -> str:
        """Our value, how it was measured, what counts, and which effect would have been seen with 80 % power."""
        if self.estimate is None:
            return self.claim.reason
        claim, parts = self.claim, [self.ours, f"{self.claim.instrument}: {self.claim.protocol}"]
        parts += [claim.rule.text(claim.unit), f"seen with 80 % power: {self._detectable()}"]
        if claim.family != "other":
            parts.append(f"{'Holm' if claim.family == 'primary' else 'BH'} p = {self.adjusted:.2g}")
        if self.alone == "smaller":
            parts.append("what counts is " + ("" if claim.rule.leaves_out(self.estimate) else "not ") + "left out")
        if self.alone != self.verdict:
            parts.append(f"alone: {self.alone}")
        if claim.against:
            parts.append("speaks against the paper where it holds")
        return "; ".join(parts)

    def _detectable(self) -> str:
        numbers = [self.estimate.detectable()]
        numbers += [self.estimate.detectable(RATE / 10)] if self.claim.family == "primary" else []
        relative = self.claim.unit in ("%", "log")
        text = [f"{100 * math.expm1(n):.2g} %" if relative else f"{n:.2g} {self.claim.unit}".strip() for n in numbers]
        return text[0] + (f" (one of ten: {text[1]})" if text[1:] else "")

    def as_verdict(self) -> Verdict:
        """Return the row of a verdict table."""
        return Verdict(self.claim.statement, self.claim.source, self.claim.paper, self.ours_in_full, self.verdict)

    def to_json(self) -> dict[str, object]:
        """Return the row for machines: numbers in the endpoint's own unit, a log ratio where that is one."""
        claim, found = self.claim, self.estimate
        numbers = dict.fromkeys(("value", "low", "high", "theta", "detectable"))
        if found:
            low, high = found.interval
            given = (found.mean, low, high, claim.rule.theta, found.detectable())
            numbers = {name: float(f"{x:.6g}") for name, x in zip(numbers, given, strict=True)}
        per_unit = self.sample.split(" ")[0].replace(",", "")
        return {
            "name": claim.name, "family": claim.family, "verdict": self.verdict, **numbers, "unit": claim.drawn,
            "n_units": len(found.values) if found else 0, "n_per_unit": int(per_unit) if per_unit else None,
            "instrument": claim.instrument, "paper": claim.paper, "p": float(f"{self.p:.4g}"),
            "adjusted_p": float(f"{self.adjusted:.4g}"), "alone": self.alone or self.verdict,
            "values": [float(f"{value:.6g}") for value in found.values] if found else [],
            "statement": claim.statement, "ours": self.ours,
        }  # fmt: skip


def plural(noun: str) -> str:
    """Return the plural of what a unit is called."""
    first, *rest = noun.split(" ", 1)
    return " ".join(["matrices" if first == "matrix" else f"{first}s", *rest])


def effect(estimate: Estimate, unit: str) -> str:
    """Return mean and interval as text; a log ratio as a change in percent (``"%"``) or a factor (``"log"``)."""
    numbers = [estimate.mean, *estimate.interval]
    if unit == "%":
        mean, low, high = (_signed(100 * math.expm1(number)) for number in numbers)
        return f"{mean} % [{low}, {high}]"
    if unit == "log":
        return "{:.2f} [{:.2f}, {:.2f}] times".format(*map(math.exp, numbers))
    mean, low, high = numbers
    digits = 2 if high - low >= 0.02 else 4
    return f"{mean:.{digits}f} [{low:.{digits}f}, {high:.{digits}f}]" + (f" {unit}" if unit else "")


def _signed(number: float) -> str:
    few = abs(round(number, 1)) < 10 or -100 < number < -99  # a change of −99.8 % is not one of −100 %
    number = round(number, 1 if few else 0) + 0.0  # no negative zero
    return f"{number:+.0e}" if abs(number) >= 1e4 else f"{number:+.1f}" if few else f"{number:+.0f}"


def decide(folder: Path, names: Iterable[str] | None = None) -> list[Decision]:
    """Decide claims, by default all, in the order of `CLAIMS`; corrections always run over whole families."""
    wanted = list(CLAIMS) if names is None else check_names(names)
    found = {name: Decision(claim, claim.settled or "not testable here") for name, claim in CLAIMS.items()}
    for name, claim in CLAIMS.items():
        if claim.endpoint is None:
            continue
        try:
            found[name] = _decide(claim, folder)
        except (FileNotFoundError, KeyError, ValueError) as error:
            if name in wanted:
                needed = f"records of {', '.join(claim.experiments)}, is made by: isodiff reproduce {name}"
                what = f"{name} cannot be decided from {folder} ({error.args[0]})"
                raise FileNotFoundError(f"{what}; what it needs, {needed}") from error
    for family, adjust in (("primary", holm), ("secondary", stats.false_discovery_control)):
        of = [name for name, d in found.items() if d.claim.family == family and d.claim.endpoint is not None]
        for name, p in zip(of, adjust([found[name].p for name in of]), strict=True):
            lost = family == "primary" and p > RATE and found[name].verdict in ("reproduced", "smaller")
            verdict = "undecided" if lost else found[name].verdict
            found[name] = dataclasses.replace(found[name], adjusted=float(p), verdict=verdict)
    return [found[name] for name in CLAIMS if name in wanted]


def _decide(claim: Claim, folder: Path) -> Decision:
    """Decide one claim by itself."""
    experiment, arm, quantity = claim.endpoint.sources[0]
    estimate = claim.endpoint(folder)
    body = load_run(record(folder, experiment, arm, seeds_of(folder, experiment, arm)[0]))
    verdict, p = claim.rule.decide(estimate)
    reach = INSTRUMENTS[claim.instrument].reach
    if reach is not None and abs(claim.rule.theta) > abs(reach(folder).mean):
        verdict = "not testable here"
    return Decision(claim, verdict, estimate, alone=verdict, p=p, sample=sample_of(body, quantity))


def over_trainings(rows: Iterable[Verdict], names: Mapping[str, str], folder: Path | None = None) -> list[Verdict]:
    """Give rows that show one training the verdict of the claim that they are a case of, and what several show.

    `names` are those of the claims, by what the rows say.
    """
    decisions = {d.claim.name: d for d in decide(folder or data_directory() / "results" / "reproduce", names.values())}
    found = []
    for row in rows:
        if (decision := decisions.get(names.get(row.claim, ""))) is not None:
            over = f"{row.ours}. That is one training; over retrained bases (`{decision.claim.name}`): {decision.ours}"
            row = dataclasses.replace(row, ours=over, verdict=decision.verdict)
        found.append(row)
    if missing := names.keys() - {row.claim for row in rows}:
        raise ValueError(f"no row says {', '.join(missing)}")
    return found


def check_names(names: Iterable[str]) -> list[str]:
    """Return the names of claims, each once; what no claim is called, as ``table1``, stands for all that begin so."""
    found: dict[str, None] = {}
    for name in names:
        matches = [name] if name in CLAIMS else [known for known in CLAIMS if known.startswith(f"{name}-")]
        if not matches:
            raise ValueError(f"no claim is called {name!r}; there are {', '.join(CLAIMS)}")
        found |= dict.fromkeys(matches)
    return list(found)


def arm_estimates(folder: Path, experiment: str, quantity: str, arms: Sequence[str]) -> dict[str, Estimate]:
    """Return one quantity of every arm that has it, over seeds."""
    found = {}
    for arm in arms:
        bodies = [load_run(record(folder, experiment, arm, seed)) for seed in seeds_of(folder, experiment, arm)]
        with suppress(KeyError):  # this arm is not asked for it
            values = [observe(body, quantity) for body in bodies]
            found |= {arm: Estimate.of(values)} if len(values) > 1 else {}
    return found


def arms_of(folder: Path, experiment: str) -> list[str]:
    """Return the arms of which there are records: in the experiment's own order, others last."""
    there = {file.stem.split("-seed")[0] for file in (folder / experiment).glob("*-seed*.json")}
    known = getattr(experiments("smoke").get(experiment), "arms", {})
    return [arm for arm in known if arm in there] + sorted(there - known.keys())


def tally(decisions: Iterable[Decision]) -> str:
    """Return how many claims there are of each verdict."""
    counts = Counter(decision.verdict for decision in decisions)
    return ", ".join(f"{counts[kind]} {kind}" for kind in VERDICT_KINDS if counts[kind])


def write_report(folder: Path) -> Path:
    """Write the verdicts of a folder of records beside them, a row a claim, and return the file."""
    rows = json.dumps([decision.to_json() for decision in decide(folder)], indent=1, ensure_ascii=False)
    write_whole(folder / "verdicts.json", rows + "\n")
    return folder / "verdicts.json"
