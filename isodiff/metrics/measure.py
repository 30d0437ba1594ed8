"""What all metrics share: units measured in pieces that are kept, numbers with intervals, and the records of a model.

Inside ``with cached(folder, model=digest):`` a killed measurement goes on where it stopped.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import io
import json
import math
import platform
import re
import shutil
import subprocess
import warnings
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextvars import ContextVar
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from scipy.stats import bootstrap
from scipy.stats import t as student
from tqdm import tqdm

from isodiff import __version__
from isodiff.files import write_whole

if TYPE_CHECKING:
    from accelerate import PartialState

Array = np.ndarray | torch.Tensor
Arrays = dict[str, np.ndarray]
Floats = NDArray[np.floating]
Interval = tuple[float, float]
Statistic = Callable[..., Floats | float]
GROUPS = 20  # of a jackknife
FORMAT = "isodiff-evaluation-1"
_LIBRARIES = ("torch", "diffusers", "torch-fidelity", "lpips", "scikit-learn", "scipy", "numpy")
_ADVICE = "make room there or choose another folder with --cache; what was finished is kept"
_DAMAGE = (OSError, ValueError, EOFError, zipfile.BadZipFile)


@dataclasses.dataclass(frozen=True)
class _Cache:
    folder: Path | None = None
    progress: bool = False
    processes: PartialState | None = None
    scope: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    @property
    def is_shared(self) -> bool:
        return self.processes is not None and self.processes.num_processes > 1

    def path(self, key: Mapping[str, Any]) -> Path | None:
        if both := self.scope.keys() & key.keys():
            raise ValueError(f"{', '.join(sorted(both))} is already in the scope of the cache")
        text = json.dumps({**self.scope, **key}, sort_keys=True, allow_nan=False)
        digest = hashlib.sha256(text.encode()).hexdigest()
        return None if self.folder is None else self.folder / digest[:2] / f"{digest[2:]}.npz"


_CACHE = ContextVar("cache", default=_Cache())  # noqa: B039 - frozen


@contextlib.contextmanager
def cached(
    folder: str | Path | None = None,
    *,
    progress: bool | None = None,
    processes: PartialState | None = None,
    **scope: object,
) -> Iterator[None]:
    """Keep what metrics compute inside the block, in a folder; inside another block, what is not given stays.

    `scope`, plain JSON values, is a part of every key. Several processes from accelerate share the pieces through the
    folder, which all must see; they must ask for the same pieces in the same order. If one fails, all do.
    """
    outer = _CACHE.get()
    place = outer.folder if folder is None else Path(folder)
    shown = outer.progress if progress is None else progress
    inner = _Cache(place, shown, processes or outer.processes, {**outer.scope, **scope})
    if place is None and inner.is_shared:
        count = inner.processes.num_processes
        raise ValueError(f"{count} processes share their work through a folder and got none; give one that all see")
    token = _CACHE.set(inner)
    try:
        yield
    finally:
        _CACHE.reset(token)


def is_cached() -> bool:
    """Return whether finished work is kept here: then its key must say all that decides it."""
    return _CACHE.get().folder is not None


def over_units(compute: Callable[[int, int], Arrays], count: int, *, size: int, what: str, **key: object) -> Arrays:
    """Return arrays of `count` rows made in chunks of `size`, each kept as soon as it is made.

    ``compute(start, stop)`` makes the rows ``start … stop − 1`` of every array by name; they depend on these numbers,
    the key (`what`, a label, and plain JSON values) and the block's scope alone.
    """
    if count < 1 or size < 1:
        raise ValueError(f"count and size (batch_size, the rows at a time) must be at least 1; got {count} and {size}")
    bounds = [(a, min(a + size, count)) for a in range(0, count, size)]
    return _rows([(partial(compute, a, b), {"what": what, **key, "start": a, "stop": b}) for a, b in bounds])


def over_points(
    compute: Callable[[Any, int], Arrays], points: Array, *, size: int, what: str, numbered: bool = False, **key: object
) -> Arrays:
    """Return arrays with a row for each point, each chunk of `size` kept under the digest of its points' values.

    ``compute(chunk, start)`` gets the points and the number of the first; `numbered` results depend on the number too.
    """
    if len(points) < 1 or size < 1:
        raise ValueError(f"there must be points and batch_size at least 1; got {len(points)} points and {size}")
    work = []
    for start in range(0, len(points), size):
        chunk = points[start : start + size]
        entry = {"what": what, **key, "points": content_digest(chunk), **({"start": start} if numbered else {})}
        work.append((partial(compute, chunk, start), entry))
    return _rows(work)


def _rows(work: list[tuple[Callable[[], Arrays], Mapping[str, Any]]]) -> Arrays:
    """Make or read each piece; of several processes each makes its share and reads the others'."""
    cache = _CACHE.get()
    with cache.processes.split_between_processes(work) if cache.is_shared else contextlib.nullcontext(work) as mine:
        bar = tqdm(mine, str(work[0][1]["what"]), disable=not cache.progress or len(work) < 2, leave=False)
        pieces = [_make(compute, cache.path(key)) for compute, key in bar]
    if cache.is_shared:
        cache.processes.wait_for_everyone()
        try:
            pieces = [_load(cache.path(key)) for _, key in work]
        except _DAMAGE as error:
            place = f"process {cache.processes.process_index} cannot read what another has made ({error})"
            raise OSError(f"{place}; give a cache directory that all processes see") from error
    return {name: np.concatenate([piece[name] for piece in pieces]) for name in pieces[0]}


def _make(compute: Callable[[], Arrays], path: Path | None) -> Arrays:
    if path is None:
        return compute()
    if path.is_file():
        try:
            return _load(path)
        except _DAMAGE as error:
            warnings.warn(f"{path} is damaged ({error}); it is computed again", stacklevel=4)
    arrays, file = compute(), io.BytesIO()
    np.savez(file, **arrays)
    write_whole(path, file.getvalue(), advice=_ADVICE)
    return arrays


def _load(path: Path) -> Arrays:
    with np.load(path, allow_pickle=False) as file:
        return dict(file)


def content_digest(*parts: Array | str) -> str:
    """Return the SHA-256 of arrays (type, shape and bytes) and texts, in order."""
    digest = hashlib.sha256()
    for part in parts:
        if isinstance(part, str):
            digest.update(part.encode() + b"\0")
        else:
            array = np.ascontiguousarray(part.detach().cpu().numpy() if isinstance(part, torch.Tensor) else part)
            digest.update(f"{array.dtype.str}{array.shape}".encode())
            digest.update(array.data)
    return digest.hexdigest()


@contextlib.contextmanager
def full_precision() -> Iterator[None]:
    """Run a block in float32 or better: no autocast, no TF32 (of 11 bits a factor), convolutions by one route only."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    cudnn = torch.backends.cudnn.flags(enabled=torch.backends.cudnn.enabled, deterministic=True, allow_tf32=False)
    try:
        with torch.autocast("cpu", enabled=False), torch.autocast("cuda", enabled=False), cudnn:
            yield
    finally:
        torch.set_float32_matmul_precision(before)


def bootstrap_interval(
    values: ArrayLike, statistic: Statistic = np.mean, *, num_resamples: int = 2000, seed: int = 0
) -> Interval:
    """Return the 95 % percentile bootstrap interval of a statistic of independent values, (n,), n ≥ 2 (Efron 1979)."""
    if num_resamples < 1:
        raise ValueError(f"num_resamples must be at least 1, got {num_resamples}")
    return _bootstrap((finite(values, "values", 2),), statistic, num_resamples, seed)


def means(columns: Floats) -> dict[str, list]:
    """Return the means of columns over rows, with their bootstrap intervals."""
    return {"value": columns.mean(axis=0).tolist(), "interval": [list(bootstrap_interval(c)) for c in columns.T]}


def paired_bootstrap_interval(first: ArrayLike, second: ArrayLike, *, seed: int = 0) -> Interval:
    """Return the interval of the mean of the differences ``first − second`` of runs that share a seed, (n,) each."""
    return bootstrap_interval(np.subtract(*_pair(first, second)), seed=seed)


def paired_ratio_interval(first: ArrayLike, second: ArrayLike, *, seed: int = 0) -> Interval:
    """Return the interval of ``mean(first) / mean(second)`` of pairs, (n,) each, the second's mean positive."""
    return _bootstrap(_pair(first, second), lambda a, b, axis=-1: a.mean(axis) / b.mean(axis), 2000, seed)


def _bootstrap(values: tuple[Floats, ...], statistic: Statistic, num_resamples: int, seed: int) -> Interval:
    options = {"paired": True, "n_resamples": num_resamples, "method": "percentile", "rng": np.random.default_rng(seed)}
    low, high = bootstrap(values, statistic, **options).confidence_interval
    return float(low), float(high)


def jackknife_interval(estimate: float, replicates: ArrayLike) -> Interval:
    """Return the 95 % interval of a smooth statistic from estimates that each leave out one of G equal groups of units.

    ``se² = (G − 1)/G · Σ (θ₋g − mean θ₋)²``, and the interval is θ ± t · se, with Student's t of G − 1 degrees of
    freedom (Tukey 1958). A bootstrap would bias what sees the rank of a sample.
    """
    left_out = finite(replicates, "replicates", 2)
    if not np.isfinite(estimate):
        raise ValueError(f"estimate must be finite, got {estimate}")
    groups = left_out.size
    error = np.sqrt((groups - 1) / groups * np.square(left_out - left_out.mean()).sum())
    reach = float(student.ppf(0.975, groups - 1) * error)
    return float(estimate) - reach, float(estimate) + reach


def leave_groups_out(statistic: Callable[[np.ndarray], float], values: np.ndarray) -> tuple[float, np.ndarray]:
    """Return the statistic of all rows, and without each of at most 20 groups; row i is in group i modulo them."""
    groups = min(GROUPS, len(values))
    left_out = [statistic(values[np.arange(len(values)) % groups != g]) for g in range(groups)]
    return statistic(values), np.array(left_out)


def finite(values: ArrayLike | torch.Tensor, name: str, *smallest: int) -> Floats:
    """Return values as float64 if they are finite and every dimension is at least as large as given."""
    array = np.asarray(values.detach().cpu() if isinstance(values, torch.Tensor) else values, dtype=float)
    if array.ndim != len(smallest) or np.less(array.shape, smallest).any():
        raise ValueError(f"{name} must have shape ({', '.join(f'≥ {n}' for n in smallest)}); got shape {array.shape}")
    if not np.isfinite(array).all():
        raise ValueError(f"{name} must be finite; got {np.count_nonzero(~np.isfinite(array))} NaN or infinite values")
    return array


def _pair(first: ArrayLike, second: ArrayLike) -> tuple[Floats, Floats]:
    one, other = finite(first, "first", 2), finite(second, "second", 2)
    if one.shape != other.shape:
        raise ValueError(f"first and second must be paired, got {one.size} and {other.size} values")
    return one, other


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class Measurement:
    """One metric of one model, with all it takes to believe, repeat and compare it."""

    name: str
    value: float
    interval: Interval | None  # 95 %; None where the protocol has none
    n: int  # independent units measured
    unit: str  # what they are: "images", "pairs", "latents"
    seed: int  # of every draw
    protocol: Mapping[str, Any]  # everything else that decides the number, plain JSON values
    replicates: np.ndarray | None = None  # (R,) one value a unit, or leave-one-group-out estimates
    kind: Literal["mean", "jackknife"] = "mean"  # which of the two
    details: Mapping[str, Any] = dataclasses.field(default_factory=dict)  # further numbers, such as a curve

    @classmethod
    def from_units(cls, name: str, values: ArrayLike, **fields: object) -> Measurement:
        """Make the measurement whose value is the mean of independent units, (n,) with n ≥ 2."""
        values = np.asarray(values, dtype=float)
        interval = bootstrap_interval(values)
        return cls(name=name, value=float(values.mean()), interval=interval, n=len(values), replicates=values, **fields)

    @classmethod
    def from_jackknife(cls, name: str, value: float, replicates: ArrayLike, **fields: object) -> Measurement:
        """Make the measurement of any statistic from its leave-one-group-out estimates, (R,) with R ≥ 2."""
        replicates = np.asarray(replicates, dtype=float)
        interval = jackknife_interval(value, replicates)
        return cls(name=name, value=float(value), interval=interval, replicates=replicates, kind="jackknife", **fields)

    def __str__(self) -> str:
        return f"{self.number()} (n = {self.n:,} {self.unit})"

    def number(self) -> str:
        """Return the value with its interval, to the digits that the interval supports."""
        if self.interval is None:
            return f"{self.value:.4g}"
        low, high = self.interval
        largest = max(abs(low), abs(high), abs(self.value))
        digits = 3 if high <= low or largest == 0 else max(2, math.ceil(math.log10(largest / (high - low))) + 2)
        value, low, high = (f"{v:.{digits}g}" if abs(v) < 10**digits else f"{v:.0f}" for v in (self.value, low, high))
        return f"{value} [{low}, {high}]"

    def to_json(self) -> dict[str, Any]:
        """Return plain values; replicates are kept to six significant digits."""
        interval = None if self.interval is None else list(self.interval)
        replicates = None if self.replicates is None else [float(f"{value:.6g}") for value in self.replicates]
        return dataclasses.asdict(self) | {"interval": interval, "replicates": replicates}

    @classmethod
    def from_json(cls, plain: Mapping[str, Any]) -> Measurement:
        """Read what `to_json` returned."""
        if plain["kind"] not in ("mean", "jackknife"):
            raise ValueError(f"kind must be mean or jackknife; got {plain['kind']!r}")
        interval = None if plain["interval"] is None else tuple(plain["interval"])
        replicates = None if plain["replicates"] is None else np.array(plain["replicates"], dtype=float)
        return cls(**{**plain, "interval": interval, "replicates": replicates})


@dataclasses.dataclass(frozen=True)
class Difference:
    """First minus second on the same draws, with its 95 % interval, which leaves out the chance of training."""

    value: float
    interval: Interval

    @property
    def is_outside_noise(self) -> bool:
        """Whether the interval leaves out zero."""
        return not self.interval[0] <= 0 <= self.interval[1]


def compare(first: Measurement, second: Measurement) -> Difference:
    """Return the paired difference of one metric between two models measured on the same draws."""
    for field in ("name", "seed", "n", "unit", "kind", "protocol"):
        one, other = getattr(first, field), getattr(second, field)
        if one != other:
            raise ValueError(f"only one protocol compares with itself: {field} is {one!r} and {other!r}")
    if first.replicates is None or second.replicates is None:
        raise ValueError(f"{first.name} carries no replicates, so a difference has no interval")
    value, (one, other) = first.value - second.value, _pair(first.replicates, second.replicates)
    interval = bootstrap_interval(one - other) if first.kind == "mean" else jackknife_interval(value, one - other)
    return Difference(value, interval)


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
        plain = {"format": FORMAT, **vars(self), "measurements": {k: m.to_json() for k, m in self.measurements.items()}}
        text = json.dumps(plain, indent=1, ensure_ascii=False, allow_nan=False)
        # every list of numbers on one line
        text = re.sub(r"\[\n\s+([-+.\deE,\s]+?)\n\s*\]", lambda found: f"[{' '.join(found[1].split())}]", text)
        again = "make room and run the same command again, which computes nothing that is in the cache"
        write_whole(Path(path), text + "\n", advice=again)

    @classmethod
    def load(cls, path: str | Path) -> Record:
        """Read a record."""
        if not Path(path).is_file():
            raise FileNotFoundError(f"no record at {path}; `isodiff evaluate` writes one")
        try:
            plain = json.loads(Path(path).read_text(encoding="utf-8"))
            if (form := plain.pop("format", None)) != FORMAT:
                raise ValueError(f"its format is {form!r}")
            measured = {name: Measurement.from_json(m) for name, m in plain.pop("measurements").items()}
            return cls(**plain, measurements=measured)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise ValueError(f"{path} is no record, or damaged: {error!r}; `isodiff evaluate` writes one") from error


def versions() -> dict[str, str]:
    """Return the versions of Python, the package and the libraries behind the metrics."""
    libraries = {name: metadata.version(name) for name in _LIBRARIES}
    return {"python": platform.python_version(), "isodiff": __version__, **libraries}


def git_revision() -> str | None:
    """Return the commit the package runs from, with ``+`` if the package's own files differ; None outside a clone."""

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(Path(__file__).parents[1]), *arguments]
        return subprocess.run(command, check=False, capture_output=True, text=True).stdout.strip()

    if not shutil.which("git") or not git("ls-files", "--error-unmatch", __file__):  # not in someone else's clone
        return None
    return git("rev-parse", "HEAD") + ("+" if git("status", "--porcelain", "--", ".") else "")


def comparison_table(records: Sequence[Record]) -> str:
    """Return metrics × models as text, with paired differences from the first, ``*`` if outside the draws' noise."""
    first, *others = records
    for record, field in ((record, field) for record in others for field in ("seed", "profile", "dataset")):
        one, other = getattr(first, field), getattr(record, field)
        if one != other:
            both = f"{first.model} and {record.model} do not compare"
            raise ValueError(f"{both}: {field} is {one!r} and {other!r}; evaluate alike")
    rows = [["metric", "n", first.model, *(cell for r in others for cell in (r.model, f"− {first.model}"))]]
    for name in dict.fromkeys(name for record in records for name in record.measurements):
        measured = [record.measurements.get(name) for record in records]
        some = next(m for m in measured if m is not None)
        cells = [cell for m in measured for cell in ("–" if m is None else m.number(), _difference(m, measured[0]))]
        del cells[1]  # the first has no difference from itself
        rows.append([name, f"{some.n:,} {some.unit}", *cells])
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    return "\n".join([lines[0], "  ".join("─" * width for width in widths), *lines[1:]])


def _difference(measured: Measurement | None, first: Measurement | None) -> str:
    if any(m is None or m.replicates is None for m in (measured, first)):
        return "–"
    if measured.protocol != first.protocol or measured.n != first.n:
        return "protocols differ"
    difference = compare(measured, first)
    text = "{:+.3g} [{:+.3g}, {:+.3g}]".format(difference.value, *difference.interval)
    return text + " *" * difference.is_outside_noise
