"""What all metrics share: units measured in pieces that are kept, numbers with intervals, and full precision.

A metric is a function of arrays; its driver makes the arrays of its units (images, pairs, latents, points) with
`over_units` or `over_points`, and hands one value a unit, or leave-one-group-out estimates, to a `Measurement`. Inside
``with cached(folder, model=digest):`` every finished piece is kept under the SHA-256 of all that decides it, so that a
killed measurement goes on where it stopped.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import io
import json
import math
import warnings
import zipfile
from collections.abc import Callable, Iterator, Mapping
from contextvars import ContextVar
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from scipy.stats import bootstrap
from scipy.stats import t as student
from tqdm import tqdm

from isodiff.files import write_whole

if TYPE_CHECKING:
    from accelerate import PartialState

Arrays = dict[str, np.ndarray]
Floats = NDArray[np.floating]
Statistic = Callable[..., Floats | float]
Work = tuple[Callable[[], Arrays], Mapping[str, Any]]
GROUPS = 20  # of a jackknife
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


_CACHE = ContextVar("cache", default=_Cache())  # noqa: B039 - frozen


@contextlib.contextmanager
def cached(
    folder: str | Path | None = None,
    *,
    progress: bool | None = None,
    processes: PartialState | None = None,
    **scope: Any,  # noqa: ANN401 - plain JSON values
) -> Iterator[None]:
    """Keep what metrics compute inside the block, in a folder; inside another block, what is not given stays.

    `scope` is a part of every key, such as ``model=model_digest(pipeline)``. Several processes from accelerate share
    the pieces through the folder, which all must see, and return the same arrays; they must ask for the same pieces in
    the same order. If one fails, the others fail as soon as it is gone (gloo) or the launcher ends them (NCCL).
    """
    outer = _CACHE.get()
    folder = outer.folder if folder is None else Path(folder)
    shown = outer.progress if progress is None else progress
    inner = _Cache(folder, shown, processes or outer.processes, {**outer.scope, **scope})
    if folder is None and inner.is_shared:
        raise ValueError(
            f"{inner.processes.num_processes} processes share their work through a folder and got none; give a cache "
            "directory that all of them see"
        )
    token = _CACHE.set(inner)
    try:
        yield
    finally:
        _CACHE.reset(token)


def is_cached() -> bool:
    """Return whether finished work is kept here: then its key must say all that decides it."""
    return _CACHE.get().folder is not None


def over_units(compute: Callable[[int, int], Arrays], count: int, *, size: int, what: str, **key: Any) -> Arrays:  # noqa: ANN401
    """Return arrays of `count` rows made in chunks of `size`, each kept as soon as it is made.

    ``compute(start, stop)`` makes the rows ``start … stop − 1`` of every array by name; they depend on these numbers,
    the key (plain JSON values) and the block's scope alone. `what` names the progress bar.
    """
    if count < 1 or size < 1:
        raise ValueError(f"count and size (batch_size, the rows at a time) must be at least 1; got {count} and {size}")
    bounds = [(start, min(start + size, count)) for start in range(0, count, size)]
    return _rows([(partial(compute, a, b), {"what": what, **key, "start": a, "stop": b}) for a, b in bounds])


def over_points(
    compute: Callable[[Any, int], Arrays],
    points: np.ndarray | torch.Tensor,
    *,
    size: int,
    what: str,
    numbered: bool = False,
    **key: Any,  # noqa: ANN401 - plain JSON values
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


def _rows(work: list[Work]) -> Arrays:
    pieces = _made(work)
    return {name: np.concatenate([piece[name] for piece in pieces]) for name in pieces[0]}


def _made(work: list[Work]) -> list[Arrays]:
    """Make or read each piece of work; of several processes each makes its share and reads the others'."""
    cache = _CACHE.get()
    with cache.processes.split_between_processes(work) if cache.is_shared else contextlib.nullcontext(work) as mine:
        hidden = not cache.progress or len(work) < 2
        bar = tqdm(mine, desc=str(work[0][1]["what"]), disable=hidden, leave=False)
        made = [_make(compute, _path(cache, key)) for compute, key in bar]
    if not cache.is_shared:
        return made
    cache.processes.wait_for_everyone()
    try:
        return [_load(_path(cache, key)) for _, key in work]
    except _DAMAGE as error:
        raise OSError(
            f"process {cache.processes.process_index} cannot read what another process has made ({error}); "
            "give a cache directory that all processes see"
        ) from error


def _path(cache: _Cache, key: Mapping[str, Any]) -> Path | None:
    if both := cache.scope.keys() & key.keys():
        raise ValueError(f"{', '.join(sorted(both))} is already in the scope of the cache")
    text = json.dumps({**cache.scope, **key}, sort_keys=True, allow_nan=False)
    digest = hashlib.sha256(text.encode()).hexdigest()
    return None if cache.folder is None else cache.folder / digest[:2] / f"{digest[2:]}.npz"


def _make(compute: Callable[[], Arrays], path: Path | None) -> Arrays:
    if path is None:
        return compute()
    if path.is_file():
        try:
            return _load(path)
        except _DAMAGE as error:
            warnings.warn(f"{path} is damaged ({error}); it is computed again", stacklevel=5)
    arrays, file = compute(), io.BytesIO()
    np.savez(file, **arrays)
    write_whole(path, file.getvalue(), advice=_ADVICE)
    return arrays


def _load(path: Path) -> Arrays:
    with np.load(path, allow_pickle=False) as file:
        return dict(file)


def content_digest(*parts: np.ndarray | torch.Tensor | str) -> str:
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


Replicates = Literal["mean", "jackknife"]


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class Measurement:
    """One metric of one model, with all it takes to believe, repeat and compare it."""

    name: str
    value: float
    interval: tuple[float, float] | None  # 95 %; None where the protocol has none
    n: int  # independent units measured
    unit: str  # what they are: "images", "pairs", "latents"
    seed: int  # of every draw
    protocol: Mapping[str, Any]  # everything else that decides the number, plain JSON values
    replicates: np.ndarray | None = None  # (R,) one value a unit, or leave-one-group-out estimates
    kind: Replicates = "mean"  # which of the two
    details: Mapping[str, Any] = dataclasses.field(default_factory=dict)  # further numbers, such as a curve

    @classmethod
    def from_units(cls, name: str, values: ArrayLike, **fields: Any) -> Measurement:  # noqa: ANN401 - the other fields
        """Make the measurement whose value is the mean of independent units, (n,) with n ≥ 2."""
        values = np.asarray(values, dtype=float)
        interval = bootstrap_interval(values)
        return cls(name=name, value=float(values.mean()), interval=interval, n=len(values), replicates=values, **fields)

    @classmethod
    def from_jackknife(cls, name: str, value: float, replicates: ArrayLike, **fields: Any) -> Measurement:  # noqa: ANN401
        """Make the measurement of any statistic from its leave-one-group-out estimates, (R,) with R ≥ 2."""
        replicates = np.asarray(replicates, dtype=float)
        interval = jackknife_interval(value, replicates)
        return cls(name=name, value=float(value), interval=interval, replicates=replicates, kind="jackknife", **fields)

    def __str__(self) -> str:
        """Return the value with its interval and n, such as ``16.2 [15.1, 17.4] (n = 100 pairs)``."""
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
        plain = dataclasses.asdict(self)
        plain["interval"] = None if self.interval is None else list(self.interval)
        if self.replicates is not None:
            plain["replicates"] = [float(f"{value:.6g}") for value in self.replicates]
        return plain

    @classmethod
    def from_json(cls, plain: Mapping[str, Any]) -> Measurement:
        """Read what `to_json` returned."""
        names = {field.name for field in dataclasses.fields(cls)}
        if odd := sorted(plain.keys() ^ names):
            fields = ", ".join(sorted(names))
            raise ValueError(f"a measurement has the fields {fields}; missing or unknown: {', '.join(odd)}")
        if plain["kind"] not in get_args(Replicates):
            raise ValueError(f"kind must be one of {', '.join(get_args(Replicates))}; got {plain['kind']!r}")
        interval = None if plain["interval"] is None else tuple(plain["interval"])
        replicates = None if plain["replicates"] is None else np.array(plain["replicates"], dtype=float)
        return cls(**{**plain, "interval": interval, "replicates": replicates})


@dataclasses.dataclass(frozen=True)
class Difference:
    """First minus second on the same draws, with its 95 % interval, which leaves out the chance of training."""

    value: float
    interval: tuple[float, float]

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


def bootstrap_interval(
    values: ArrayLike, statistic: Statistic = np.mean, *, num_resamples: int = 2000, seed: int = 0
) -> tuple[float, float]:
    """Return the 95 % percentile bootstrap interval of a statistic of independent values, (n,) with n ≥ 2 (Efron 1979).

    A statistic with an ``axis`` argument, as numpy's have, sees all resamples at once. With few values (n ≈ 10)
    about 90 % of nominal 95 % intervals cover.
    """
    if num_resamples < 1:
        raise ValueError(f"num_resamples must be at least 1, got {num_resamples}")
    return _bootstrap((_sample(values, "values"),), statistic, num_resamples, seed)


def paired_bootstrap_interval(first: ArrayLike, second: ArrayLike, *, seed: int = 0) -> tuple[float, float]:
    """Return the interval of the mean of the differences ``first − second`` of runs that share a seed, (n,) each."""
    one, other = _pair(first, second)
    return bootstrap_interval(one - other, seed=seed)


def paired_ratio_interval(first: ArrayLike, second: ArrayLike, *, seed: int = 0) -> tuple[float, float]:
    """Return the interval of ``mean(first) / mean(second)`` of pairs, (n,) each, the second's mean positive."""
    return _bootstrap(_pair(first, second), lambda a, b, axis=-1: a.mean(axis) / b.mean(axis), 2000, seed)


def _bootstrap(values: tuple[Floats, ...], statistic: Statistic, num_resamples: int, seed: int) -> tuple[float, float]:
    options = {"paired": True, "n_resamples": num_resamples, "method": "percentile", "rng": np.random.default_rng(seed)}
    low, high = bootstrap(values, statistic, **options).confidence_interval
    return float(low), float(high)


def jackknife_interval(estimate: float, replicates: ArrayLike) -> tuple[float, float]:
    """Return the 95 % interval of a smooth statistic from estimates that each leave out one of G equal groups of units.

    With ``θ₋g`` the estimate without group g, ``se² = (G − 1)/G · Σ (θ₋g − mean θ₋)²``, and the interval is θ ± t · se,
    with Student's t of G − 1 degrees of freedom (Tukey 1958). A bootstrap draws some units twice, which biases what
    sees the rank of a sample, such as the Fréchet distance; the jackknife does not. It fails for a median.
    """
    left_out = _sample(replicates, "replicates")
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


def _sample(values: ArrayLike, name: str) -> Floats:
    array = np.asarray(values, dtype=float)
    if array.ndim != 1 or array.size < 2:
        raise ValueError(f"{name} must be one-dimensional with at least 2 entries, got shape {array.shape}")
    if not np.isfinite(array).all():
        raise ValueError(f"{name} must be finite, got {np.count_nonzero(~np.isfinite(array))} NaN or infinite entries")
    return array


def _pair(first: ArrayLike, second: ArrayLike) -> tuple[Floats, Floats]:
    one, other = _sample(first, "first"), _sample(second, "second")
    if one.shape != other.shape:
        raise ValueError(f"first and second must be paired, got {one.size} and {other.size} values")
    return one, other


@contextlib.contextmanager
def full_precision() -> Iterator[None]:
    """Run a block in float32 or better: no autocast, no TF32, and convolutions that always take the same route.

    It is what a difference between two almost equal images needs: TF32, cuDNN's default, keeps 11 bits of each factor.
    """
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    cudnn = torch.backends.cudnn.flags(enabled=torch.backends.cudnn.enabled, deterministic=True, allow_tf32=False)
    try:
        with torch.autocast("cpu", enabled=False), torch.autocast("cuda", enabled=False), cudnn:
            yield
    finally:
        torch.set_float32_matmul_precision(before)
