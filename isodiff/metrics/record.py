"""What is left of an evaluation: every measurement of one model, with what is needed to make them again."""

from __future__ import annotations

import dataclasses
import json
import platform
import re
import subprocess
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

from isodiff import __version__
from isodiff.files import write_whole
from isodiff.metrics.measure import Measurement, compare

FORMAT = "isodiff-evaluation-1"
_LIBRARIES = ("torch", "diffusers", "torch-fidelity", "lpips", "scikit-learn", "scipy", "numpy")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Record:
    """Every measurement of one model, and what is needed to make them again."""

    model: str  # the checkpoint as it was named
    digest: str  # SHA-256 of its weights and scheduler settings
    dataset: str  # what it was compared with
    profile: str  # name of the sizes
    seed: int  # of every draw
    device: str  # kind of device
    settings: Mapping[str, Any]  # the sizes themselves
    versions: Mapping[str, str]
    revision: str | None  # see `git_revision`
    measurements: Mapping[str, Measurement]
    left_out: Mapping[str, str] = dataclasses.field(default_factory=dict)  # what does not apply, each with the reason

    def save(self, path: str | Path) -> None:
        """Write the record as JSON, whole or not at all."""
        plain = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        plain["measurements"] = {name: m.to_json() for name, m in self.measurements.items()}
        text = json.dumps({"format": FORMAT, **plain}, indent=1, ensure_ascii=False, allow_nan=False)
        # people read records, too: every list of numbers on one line
        text = re.sub(r"\[\n\s+([-+.\deE,\s]+?)\n\s*\]", lambda found: f"[{' '.join(found[1].split())}]", text)
        again = "make room and run the same command again, which computes nothing that is in the cache"
        write_whole(Path(path), text + "\n", advice=again)

    @classmethod
    def load(cls, path: str | Path) -> Record:
        """Read a record."""
        path = Path(path)
        if not path.is_file():
            raise FileNotFoundError(f"no record at {path}; `isodiff evaluate` writes one")
        try:
            plain = json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise ValueError(f"{path} is not JSON ({error}); write it again with `isodiff evaluate`") from error
        if not isinstance(plain, dict) or plain.pop("format", None) != FORMAT:
            raise ValueError(f"{path} is not a record of format {FORMAT!r}; `isodiff evaluate` writes one")
        try:
            measured = {name: Measurement.from_json(m) for name, m in plain.pop("measurements").items()}
            return cls(**plain, measurements=measured)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise ValueError(f"{path} is damaged: {error}; write it again with `isodiff evaluate`") from error


def versions() -> dict[str, str]:
    """Return the versions of Python, the package and the libraries behind the metrics."""
    libraries = {name: metadata.version(name) for name in _LIBRARIES}
    return {"python": platform.python_version(), "isodiff": __version__, **libraries}


def git_revision() -> str | None:
    """Return the commit the package runs from, with ``+`` if the package's own files differ; None outside a clone."""

    def git(*arguments: str) -> str | None:
        options = {"cwd": Path(__file__).resolve().parents[1], "capture_output": True, "text": True, "timeout": 30}
        try:
            finished = subprocess.run(["git", *arguments], check=False, **options)
        except (OSError, subprocess.TimeoutExpired):
            return None
        return finished.stdout.strip() if finished.returncode == 0 else None

    commit = git("rev-parse", "HEAD")
    if not commit or git("ls-files", "--error-unmatch", __file__) is None:  # not in a clone, or in someone else's
        return None
    return commit + ("+" if git("status", "--porcelain", "--", ".") else "")


def comparison_table(records: Sequence[Record]) -> str:
    """Return metrics × models as aligned text; every later model also shows its paired difference from the first.

    A difference outside the noise of the draws is marked ``*``.
    """
    if not records:
        raise ValueError("comparison_table got no records; give at least one")
    first, *others = records
    for record in others:
        for field in ("seed", "profile", "dataset"):
            one, other = getattr(first, field), getattr(record, field)
            if one != other:
                raise ValueError(
                    f"{first.model} and {record.model} do not compare: {field} is {one!r} and {other!r}; "
                    "evaluate them alike"
                )
    rows = [["metric", "n", first.model, *(cell for r in others for cell in (r.model, f"− {first.model}"))]]
    for name in dict.fromkeys(name for record in records for name in record.measurements):
        measured = [record.measurements.get(name) for record in records]
        some = next(m for m in measured if m is not None)
        cells = [("–" if m is None else m.number(), _difference(m, measured[0])) for m in measured]
        # the first has no difference from itself
        rows.append([name, f"{some.n:,} {some.unit}", cells[0][0], *(cell for pair in cells[1:] for cell in pair)])
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    lines.insert(1, "  ".join("─" * width for width in widths))
    return "\n".join(lines)


def _difference(measured: Measurement | None, first: Measurement | None) -> str:
    if measured is None or first is None or measured.replicates is None or first.replicates is None:
        return "–"
    if measured.protocol != first.protocol or measured.n != first.n:
        return "protocols differ"
    difference = compare(measured, first)
    low, high = difference.interval
    return f"{difference.value:+.3g} [{low:+.3g}, {high:+.3g}]{' *' if difference.is_outside_noise else ''}"
