"""The verdicts, from records alone: nothing here trains or measures."""

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
    p: float | None = None  # of the claim's own test
    adjusted: float | None = None  # by Holm over the primary, by Benjamini and Hochberg over the secondary claims
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
        if self.adjusted is not None:
            parts.append(f"{'Holm' if claim.family == 'primary' else 'BH'} p = {self.adjusted:.2g}")
        if self.alone == "smaller":
            parts.append("what counts is " + ("" if claim.rule.leaves_out(self.estimate) else "not ") + "left out")
        if self.alone != self.verdict:
            parts.append(f"alone: {self.alone}")
        if claim.against:
            parts.append("speaks against the paper where it holds")
        return "; ".join(parts)

    def _detectable(self) -> str:
        numbers, unit = [self.estimate.detectable()], self.claim.unit
        numbers += [self.estimate.detectable(RATE / 10)] if self.claim.family == "primary" else []
        sign = getattr(self.claim.rule, "sign", 0)  # a bound may be passed on either side
        if unit in ("%", "log"):
            numbers, unit = [100 * (sign or 1) * math.expm1((sign or 1) * n) for n in numbers], "%"
        before = {-1: "−", 0: "±", 1: "+"}[sign]
        text = [f"{before}{n:.{2 if n < 99.5 else 3}g} {unit}".strip() for n in numbers]
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
        p, adjusted = (None if x is None else float(f"{x:.4g}") for x in (self.p, self.adjusted))
        return {
            "name": claim.name, "family": claim.family, "verdict": self.verdict, **numbers, "unit": claim.drawn,
            "n_units": len(found.values) if found else 0, "n_per_unit": int(per_unit) if per_unit else None,
            "instrument": claim.instrument, "paper": claim.paper, "p": p, "adjusted_p": adjusted,
            "alone": self.alone or self.verdict,
            "values": [float(f"{value:.6g}") for value in found.values] if found else [],
            "statement": claim.statement, "ours": self.ours, "sample": self.sample,
            "effect": effect(found, claim.unit) if found else "", "source": claim.source, "protocol": claim.protocol,
            "rule": claim.rule.text(claim.unit) if claim.rule else None, "group": claim.group,
            "detectable_text": self._detectable() if found else None, "against_the_paper": claim.against,
        }  # fmt: skip


def plural(noun: str) -> str:
    """Return the plural of what a unit is called."""
    first, *rest = noun.split(" ", 1)
    return " ".join(["matrices" if first == "matrix" else f"{first}s", *rest])


def effect(estimate: Estimate, unit: str) -> str:
    """Return mean and interval as text, to two digits of the interval's width, at most four decimals.

    A log ratio is shown as a change in percent (``"%"``) or as a factor (``"log"``).
    """
    numbers = [estimate.mean, *estimate.interval]
    if unit == "%":
        numbers = [100 * math.expm1(number) for number in numbers]
    elif unit == "log":
        numbers, unit = [math.exp(number) for number in numbers], "times"
    width, sign = numbers[2] - numbers[1], "+" if unit in ("%", "nats", "part", "in ρ") else ""
    digits = min(4, max(0, 1 - math.floor(math.log10(width)))) if width else 4
    if unit == "%" and 0 < 100 + numbers[0] < 1:  # −99.99 % is not −100 %
        digits = max(digits, min(2, 1 - math.floor(math.log10(100 + numbers[0]))))
    form = f"{sign}.{digits}f" if max(map(abs, numbers)) < 1e5 else f"{sign}.0e"
    mean, low, high = (f"{round(number, digits) + 0.0:{form}}".replace("-", "−") for number in numbers)
    return f"{mean} % [{low}, {high}]" if unit == "%" else f"{mean} [{low}, {high}] {unit}".rstrip()


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
            begun = any((folder / experiment).is_dir() for experiment in claim.experiments)
            if name in wanted and (begun or not claim.reason):
                needed = f"records of {', '.join(claim.experiments)}, is made by: isodiff reproduce {name}"
                what = f"{name} cannot be decided from {folder} ({error.args[0]})"
                raise FileNotFoundError(f"{what}; what it needs, {needed}") from error
    for family, adjust in (("primary", holm), ("secondary", stats.false_discovery_control)):
        of = [name for name, d in found.items() if d.claim.family == family and d.p is not None]
        for name, p in zip(of, adjust([found[name].p for name in of]), strict=True):
            lost = family == "primary" and p > RATE and found[name].verdict in ("reproduced", "smaller")
            verdict = "undecided" if lost else found[name].verdict
            found[name] = dataclasses.replace(found[name], adjusted=float(p), verdict=verdict)
    return [found[name] for name in CLAIMS if name in wanted]


def _decide(claim: Claim, folder: Path) -> Decision:
    """Decide one claim by itself."""
    experiment, arm, quantity = claim.endpoint.sources[-1]
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
            over = (
                f"{row.ours}. That is one training; over several trainings (`{decision.claim.name}`): {decision.ours}"
            )
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
