"""What an evaluation leaves behind: one JSON record a model, and tables that set several side by side."""

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
from isodiff.metrics.measurement import Measurement, compare

FORMAT = "isodiff-evaluation-1"
_LIBRARIES = ("torch", "diffusers", "torch-fidelity", "lpips", "scikit-learn", "scipy", "numpy")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Record:
    """Every measurement of one model, and what is needed to make them again.

    Attributes:
        model: The checkpoint as it was named.
        digest: SHA-256 of its weights and scheduler settings.
        dataset: What it was compared with.
        profile: Name of the sizes.
        seed: Seed of every draw.
        device: Kind of device.
        settings: The sizes themselves.
        versions: Of Python, the package and the libraries behind the metrics.
        revision: Git commit of the package, with ``+`` if its files had changed since; None outside a clone.
        measurements: By name.
        left_out: Metrics that do not apply to this model, each with the reason.
    """

    model: str
    digest: str
    dataset: str
    profile: str
    seed: int
    device: str
    settings: Mapping[str, Any]
    versions: Mapping[str, str]
    revision: str | None
    measurements: Mapping[str, Measurement]
    left_out: Mapping[str, str] = dataclasses.field(default_factory=dict)

    def save(self, path: str | Path) -> None:
        """Write the record as JSON, whole or not at all."""
        path = Path(path)
        plain = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        plain["measurements"] = {name: m.to_json() for name, m in self.measurements.items()}
        text = json.dumps({"format": FORMAT, **plain}, indent=1, ensure_ascii=False, allow_nan=False)
        again = "make room and run the same command again, which computes nothing that is in the cache"
        write_whole(path, _short_lists(text) + "\n", advice=again)

    @classmethod
    def load(cls, path: str | Path) -> Record:
        """Read a record.

        Raises:
            FileNotFoundError: If there is none.
            ValueError: If the file is not a record of this format.
        """
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
    return {
        "python": platform.python_version(),
        "isodiff": __version__,
        **{name: metadata.version(name) for name in _LIBRARIES},
    }


def git_revision() -> str | None:
    """Return the commit the package runs from, with ``+`` if the package's own files differ; None outside a clone."""
    folder = Path(__file__).resolve().parents[1]

    def git(*arguments: str) -> str | None:
        try:
            finished = subprocess.run(
                ["git", *arguments], cwd=folder, capture_output=True, text=True, check=False, timeout=30
            )
        except (OSError, subprocess.TimeoutExpired):
            return None
        return finished.stdout.strip() if finished.returncode == 0 else None

    commit = git("rev-parse", "HEAD")
    if not commit or git("ls-files", "--error-unmatch", __file__) is None:  # not in a clone, or in someone else's
        return None
    return commit + ("+" if git("status", "--porcelain", "--", ".") else "")


def comparison_table(records: Sequence[Record]) -> str:
    """Return metrics × models as aligned text; every later model also shows its paired difference from the first.

    Args:
        records: At least one.

    Returns:
        Lines of text; a difference outside the noise of the draws is marked ``*``.

    Raises:
        ValueError: If there is no record, or two differ in seed or profile, so that nothing would pair.
    """
    if not records:
        raise ValueError("comparison_table got no records; give at least one")
    first = records[0]
    for record in records[1:]:
        for field in ("seed", "profile", "dataset"):
            one, other = getattr(first, field), getattr(record, field)
            if one != other:
                raise ValueError(
                    f"{first.model} and {record.model} do not compare: {field} is {one!r} and {other!r}; "
                    "evaluate them alike"
                )
    head = ["metric", "n"]
    for record in records:
        head += [record.model] if record is first else [record.model, f"− {first.model}"]
    names = dict.fromkeys(name for record in records for name in record.measurements)
    rows = [head] + [_row(name, records) for name in names]
    widths = [max(len(row[i]) for row in rows) for i in range(len(head))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    lines.insert(1, "  ".join("─" * width for width in widths))
    return "\n".join(lines)


def _row(name: str, records: Sequence[Record]) -> list[str]:
    first = records[0].measurements.get(name)
    some = next(record.measurements[name] for record in records if name in record.measurements)
    row = [name, f"{some.n:,} {some.unit}"]
    for record in records:
        measured = record.measurements.get(name)
        row.append("–" if measured is None else measured.number())
        if record is not records[0]:
            row.append(_difference(measured, first))
    return row


def _difference(measured: Measurement | None, first: Measurement | None) -> str:
    if measured is None or first is None or measured.replicates is None or first.replicates is None:
        return "–"
    if measured.protocol != first.protocol or measured.n != first.n:
        return "protocols differ"
    difference = compare(measured, first)
    low, high = difference.interval
    return f"{difference.value:+.3g} [{low:+.3g}, {high:+.3g}]{' *' if difference.is_outside_noise else ''}"


def _short_lists(text: str) -> str:
    """Put every list of numbers on one line: a record is read by people too."""
    return re.sub(r"\[\n\s+([-+.\deE,\s]+?)\n\s*\]", lambda found: f"[{' '.join(found[1].split())}]", text)
