"""The verdicts and the tables, from records alone: nothing here trains or measures."""

from __future__ import annotations

import dataclasses
import json
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from isodiff.files import write_whole
from isodiff.parameters import listing
from isodiff.reproduce.claims import CLAIMS, Claim
from isodiff.reproduce.decide import Estimate, survivors
from isodiff.reproduce.endpoints import record
from isodiff.reproduce.observations import load_run, observe, sample_of, seeds_of
from isodiff.results import VERDICT_KINDS, Verdict


@dataclasses.dataclass(frozen=True)
class Decision:
    """What became of a claim.

    Attributes:
        claim: The claim.
        estimate: Its endpoint over seeds, or None if it cannot be decided here.
        verdict: One of `isodiff.results.VERDICT_KINDS`.
        p: Of the test the verdict rests on; 1 where there is none.
        corrected: Whether the correction for many claims turned the verdict into "underpowered".
        sample: What a seed's number rests on.
    """

    claim: Claim
    estimate: Estimate | None
    verdict: str
    p: float = 1.0
    corrected: bool = False
    sample: str = ""

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
        claim = self.claim
        if self.estimate is None:
            return self.ours
        return "; ".join(filter(None, (self.ours, claim.protocol, claim.rule.text(claim.unit))))

    def as_verdict(self) -> Verdict:
        """Return the row of a verdict table."""
        claim = self.claim
        ours = self.ours_in_full
        if self.corrected:
            ours += "; decided alone, but not among all claims at once"
        return Verdict(claim.statement, claim.source, claim.paper, ours, self.verdict)


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
    """Decide claims from the records of a folder.

    Args:
        folder: What `isodiff reproduce` wrote.
        names: Claims to return; all of them by default. The correction always runs over all that have an endpoint.

    Returns:
        Decisions, in the order of `CLAIMS`.

    Raises:
        ValueError: For an unknown claim.
        FileNotFoundError: If a claim that is asked for has no records; others without records are passed over.
    """
    wanted = list(CLAIMS) if names is None else check_names(names)
    found: dict[str, Decision] = {}
    for name, claim in CLAIMS.items():
        if claim.endpoint is None:
            found[name] = Decision(claim, None, claim.settled or "not testable here")
            continue
        try:
            estimate, sample = claim.endpoint(folder), _sample(claim, folder)
        except (FileNotFoundError, KeyError, ValueError) as error:
            if name in wanted:
                raise FileNotFoundError(
                    f"{name} cannot be decided from {folder} ({error.args[0]}); what it needs, records of "
                    f"{listing(claim.experiments)}, is made by: isodiff reproduce {name}"
                ) from error
            continue
        found[name] = Decision(claim, estimate, *claim.rule.decide(estimate), sample=sample)
    # a claim without records is one of the family all the same, and decides nothing
    family = [name for name, claim in CLAIMS.items() if claim.endpoint is not None]
    kept = survivors({name: found[name].p if name in found else 1.0 for name in family})
    for name in family:
        if name in found and name not in kept and found[name].verdict != "underpowered":
            found[name] = dataclasses.replace(found[name], verdict="underpowered", corrected=True)
    return [found[name] for name in CLAIMS if name in wanted]


def _sample(claim: Claim, folder: Path) -> str:
    experiment, arm, quantity = claim.endpoint.sources[0]
    return sample_of(load_run(record(folder, experiment, arm, seeds_of(folder, experiment, arm)[0])), quantity)


def check_names(names: Iterable[str]) -> list[str]:
    """Return the names of claims, each once; what no claim is called, such as ``table1``, stands for all that begin so.

    Raises:
        ValueError: For a name that no claim has or begins with.
    """
    found: dict[str, None] = {}
    for name in names:
        matches = [name] if name in CLAIMS else [known for known in CLAIMS if known.startswith(f"{name}-")]
        if not matches:
            raise ValueError(f"no claim is called {name!r}; there are {listing(CLAIMS)}")
        found |= dict.fromkeys(matches)
    return list(found)


# heading of a table → experiment, quantities by heading
TABLES: dict[str, tuple[str, Mapping[str, str]]] = {
    "Tab. 1 and 2, faces at 32²": (
        "faces32",
        {
            "FID": "fid",
            "PPL": "ppl_alex_full",
            "mRTL": "mrtl",
            "MCN": "mcn",
            "VoR": "vor",
            "LS": "ls_linear_cross-validated",
            "LS (radial)": "ls_rbf_cross-validated",
            "LS, shuffled": "ls_linear_shuffled",
            "isotropy": "isotropy",
            "excess": "factor_excess",
            "distance": "manifold_distance",
        },
    ),
    "Tab. 1 and 3, faces at 16²": (
        "faces16",
        {
            "FID": "fid",
            "PPL": "ppl_alex_full",
            "mRTL": "mrtl",
            "RTL, t ≥ 500": "rtl_late",
            "MCN": "mcn",
            "VoR": "vor",
            "isotropy": "isotropy",
            "excess": "factor_excess",
            "distance": "manifold_distance",
            "spill-over": "spill_over",
        },
    ),
    "Tab. I, latent diffusion": (
        "latent64",
        {"FID": "fid", "PPL": "ppl_alex_full", "mRTL": "mrtl", "MCN": "mcn", "VoR": "vor", "isotropy": "isotropy"},
    ),
}


def arm_estimates(folder: Path, experiment: str, quantity: str, arms: Sequence[str]) -> dict[str, Estimate]:
    """Return one quantity of every arm that has it, over seeds."""
    found = {}
    for arm in arms:
        bodies = [load_run(record(folder, experiment, arm, s)) for s in seeds_of(folder, experiment, arm)]
        try:
            values = [observe(body, quantity) for body in bodies]
        except KeyError:  # this arm is not asked for it
            continue
        if len(values) > 1:
            found[arm] = Estimate.of(values)
    return found


def arms_of(folder: Path, experiment: str) -> list[str]:
    """Return the arms of which there are records: in the experiment's own order, others last."""
    from isodiff.reproduce.experiments import Experiment, experiments

    there = {file.stem.split("-seed")[0] for file in (folder / experiment).glob("*-seed*.json")}
    known = experiments("smoke").get(experiment)
    order = list(known.arms) if isinstance(known, Experiment) else []
    return [arm for arm in order if arm in there] + sorted(there - set(order))


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
        paper = f"{claim.source}" + ("" if claim.paper == "–" else f": {claim.paper}")
        verdict = f"{sign} {decision.verdict}" + (" ᶜ" if decision.corrected else "")
        row = (f"{claim.statement}<br>`{claim.name}`", paper, decision.ours_in_full, verdict)
        lines.append("| " + " | ".join(_cell(text) for text in row) + " |")
    return "\n".join(lines)


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")


def tally(decisions: Iterable[Decision]) -> str:
    """Return how many claims there are of each verdict."""
    counts = Counter(decision.verdict for decision in decisions)
    return ", ".join(f"{counts[kind]} {kind}" for kind in VERDICT_KINDS if counts[kind])


def write_report(folder: Path) -> list[Path]:
    """Write the verdicts and tables of a folder of records beside them, as Markdown and JSON."""
    decisions = decide(folder)
    grouped: dict[str, list[Decision]] = {}
    for decision in decisions:
        grouped.setdefault(decision.claim.group, []).append(decision)
    text = ["# Verdicts", "", f"{len(decisions)} claims: {tally(decisions)}.", ""]
    for group, rows in grouped.items():
        text += [f"## {group}", "", verdicts_markdown(rows), ""]
    text += ["ᶜ decided alone, but not among all claims at once (false discovery rate of 5 %).", ""]
    for heading in TABLES:
        text += [f"## {heading}", "", table_markdown(folder, heading), ""]
    text += ["Mean over seeds ± standard error of the mean.", ""]
    plain = [
        {
            "claim": d.claim.name,
            "verdict": d.verdict,
            "corrected": d.corrected,
            "p": float(f"{d.p:.4g}"),
            "values": [] if d.estimate is None else [float(f"{v:.6g}") for v in d.estimate.values],
            "ours": d.ours,
        }
        for d in decisions
    ]
    files = {folder / "verdicts.md": "\n".join(text), folder / "verdicts.json": json.dumps(plain, indent=1) + "\n"}
    for path, content in files.items():
        write_whole(path, content)
    return list(files)
