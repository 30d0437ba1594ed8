"""The verdicts and the tables, from records alone: nothing here trains or measures."""

from __future__ import annotations

import dataclasses
import json
import math
from collections import Counter
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path

from isodiff.files import write_whole
from isodiff.reproduce.claims import CLAIMS, TABLES, Claim, experiments
from isodiff.reproduce.endpoints import load_run, observe, record, sample_of, seeds_of
from isodiff.reproduce.rules import Estimate, survivors
from isodiff.verdict import VERDICT_KINDS, Verdict


@dataclasses.dataclass(frozen=True)
class Decision:
    """What became of a claim."""

    claim: Claim
    estimate: Estimate | None  # None where it cannot be decided here
    verdict: str
    p: float = 1.0  # of the test that the verdict rests on
    corrected: bool = False  # whether the correction for many claims made it underpowered
    sample: str = ""  # what a seed's number rests on

    @property
    def ours(self) -> str:
        """Our value with its interval and the number of seeds, or why there is none."""
        if self.estimate is None:
            return self.claim.reason
        of = f" of {self.sample}" if self.sample else ""
        return f"{effect(self.estimate, self.claim.unit)}, {len(self.estimate.values)} seeds{of}"

    @property
    def ours_in_full(self) -> str:
        """Our value, how it was measured and what counts."""
        how = f"; {self.claim.protocol}; {self.claim.rule.text(self.claim.unit)}" if self.estimate else ""
        return self.ours + how

    def as_verdict(self) -> Verdict:
        """Return the row of a verdict table."""
        claim, alone = self.claim, "; decided alone, but not among all claims at once" if self.corrected else ""
        return Verdict(claim.statement, claim.source, claim.paper, self.ours_in_full + alone, self.verdict)


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
    """Decide claims, by default all, in the order of `CLAIMS`; the correction always runs over all with an endpoint."""
    wanted = list(CLAIMS) if names is None else check_names(names)
    found = {name: Decision(claim, None, claim.settled or "not testable here") for name, claim in CLAIMS.items()}
    p_values = {name: 1.0 for name, claim in CLAIMS.items() if claim.endpoint is not None}
    for name in p_values:
        claim = CLAIMS[name]
        experiment, arm, quantity = claim.endpoint.sources[0]
        try:
            estimate = claim.endpoint(folder)
            body = load_run(record(folder, experiment, arm, seeds_of(folder, experiment, arm)[0]))
        except (FileNotFoundError, KeyError, ValueError) as error:
            if name in wanted:
                needed = f"records of {', '.join(claim.endpoint.experiments)}, is made by: isodiff reproduce {name}"
                what = f"{name} cannot be decided from {folder} ({error.args[0]})"
                raise FileNotFoundError(f"{what}; what it needs, {needed}") from error
            continue
        verdict, p_values[name] = claim.rule.decide(estimate)
        found[name] = Decision(claim, estimate, verdict, p_values[name], sample=sample_of(body, quantity))
    for name in p_values.keys() - survivors(p_values):
        if found[name].verdict in ("reproduced", "not reproduced"):
            found[name] = dataclasses.replace(found[name], verdict="underpowered", corrected=True)
    return [found[name] for name in CLAIMS if name in wanted]


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


def table_markdown(folder: Path, heading: str) -> str:
    """Return one of `TABLES` as Markdown: arms × quantities, mean over seeds with the standard error of the mean."""
    experiment, quantities = TABLES[heading]
    arms = arms_of(folder, experiment)
    columns = {title: arm_estimates(folder, experiment, quantity, arms) for title, quantity in quantities.items()}
    lines = [f"| arm | {' | '.join(columns)} |", f"|---|{'---|' * len(columns)}"]
    for arm in arms:
        cells = [f"{e.mean:.3g} ± {e.error:.1g}" if (e := column.get(arm)) else "–" for column in columns.values()]
        lines.append(f"| {arm} | {' | '.join(cells)} |")
    return "\n".join(lines)


def verdicts_markdown(decisions: Iterable[Decision]) -> str:
    """Return decisions as a Markdown table, each with the name that `isodiff reproduce` makes its row by."""
    lines = ["| claim | paper | ours, 95 % interval | verdict |", "|---|---|---|---|"]
    for decision in decisions:
        claim, sign = decision.claim, VERDICT_KINDS[decision.verdict][0]
        paper = claim.source + ("" if claim.paper == "–" else f": {claim.paper}")
        verdict = f"{sign} {decision.verdict}" + (" ᶜ" if decision.corrected else "")
        row = (f"{claim.statement}<br>`{claim.name}`", paper, decision.ours_in_full, verdict)
        lines.append("| " + " | ".join(text.replace("|", "\\|").replace("\n", " ") for text in row) + " |")
    return "\n".join(lines)


def tally(decisions: Iterable[Decision]) -> str:
    """Return how many claims there are of each verdict."""
    counts = Counter(decision.verdict for decision in decisions)
    return ", ".join(f"{counts[kind]} {kind}" for kind in VERDICT_KINDS if counts[kind])


def write_report(folder: Path) -> list[Path]:
    """Write the verdicts and tables of a folder of records beside them, as Markdown and JSON."""
    decisions = decide(folder)
    text = ["# Verdicts", f"{len(decisions)} claims: {tally(decisions)}."]
    for group in dict.fromkeys(decision.claim.group for decision in decisions):
        text += [f"## {group}", verdicts_markdown(d for d in decisions if d.claim.group == group)]
    text += ["ᶜ decided alone, but not among all claims at once (false discovery rate of 5 %)."]
    for heading in TABLES:
        text += [f"## {heading}", table_markdown(folder, heading)]
    text += ["Mean over seeds ± standard error of the mean."]
    plain = []
    for d in decisions:
        facts = {"claim": d.claim.name, "verdict": d.verdict, "corrected": d.corrected, "p": float(f"{d.p:.4g}")}
        values = d.estimate.values if d.estimate else ()
        plain.append(facts | {"values": [float(f"{value:.6g}") for value in values], "ours": d.ours})
    write_whole(folder / "verdicts.md", "\n\n".join(text) + "\n")
    write_whole(folder / "verdicts.json", json.dumps(plain, indent=1) + "\n")
    return [folder / "verdicts.md", folder / "verdicts.json"]
