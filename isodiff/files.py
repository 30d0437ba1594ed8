"""Where the course's files are, how they are written, and which device and seed a command may name."""

from __future__ import annotations

import os
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


def repository_root() -> Path:
    """Return the folder that holds `notebooks/` and `data/`: `ISODIFF_ROOT` where set, else where isodiff lies."""
    chosen = os.environ.get("ISODIFF_ROOT")
    root = Path(chosen).expanduser() if chosen else Path(__file__).resolve().parents[1]
    if not (root / "notebooks").is_dir():
        where = f"{'ISODIFF_ROOT is' if chosen else 'isodiff is installed in'} {root}, which has no notebooks folder"
        raise FileNotFoundError(f"{where}; set ISODIFF_ROOT to a clone, or install one with: pip install -e .")
    return root.resolve()


def data_directory() -> Path:
    """Return the folder of shipped checkpoints, records and small data."""
    return repository_root() / "data"


def require_folder(path: Path) -> None:
    """Refuse a folder for output that cannot be made or written, before any work is done for it."""
    place = next(place for place in (path, *path.absolute().parents) if place.exists())
    if not place.is_dir():
        raise NotADirectoryError(f"{place} is a file; give a directory for the output, or the name of a new one")
    if not os.access(place, os.W_OK | os.X_OK):
        raise PermissionError(f"{place} cannot be written; give another directory for the output")


def claim_folder(
    path: str | Path, ours: Iterable[str], *, overwrite: bool | None = False, inputs: tuple[Path, ...] = ()
) -> Path:
    """Return the folder of a run, resolved; refuse one of the `inputs`, or one that holds things but none of `ours`.

    `overwrite` is None where the command has no such option.
    """
    folder = Path(path).expanduser().resolve()
    require_folder(folder)
    for source in map(Path.resolve, inputs):
        if folder.is_relative_to(source):
            raise ValueError(f"output {str(path)!r} is {source} itself or lies in it; give another directory")
    found = sorted(entry.name for entry in folder.iterdir()) if folder.is_dir() else []
    if found and not overwrite and not set(ours) & set(found):
        held = ", ".join(found[:3]) + (f" and {len(found) - 3} more" if len(found) > 3 else "")
        advice = "give another directory"
        advice += "" if overwrite is None else ", or --overwrite to replace what has the same names"
        raise FileExistsError(f"output {str(path)!r} holds {held}, which no run of isodiff wrote; {advice}")
    return folder


def write_whole(path: Path, content: str | bytes, *, advice: str = "make room there or choose another output") -> None:
    """Write a file whole or not at all, and make its folder; `advice` ends the message of the error that says so."""
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        partial.write_bytes(content if isinstance(content, bytes) else content.encode())
        partial.replace(path)
    except OSError as error:
        with suppress(OSError):
            partial.unlink(missing_ok=True)
        raise OSError(f"{path} could not be written ({error}); {advice}") from error


def check_seed(seed: object) -> int:
    """Return the seed if it is a whole number with 0 ≤ seed < 2³²; every generator accepts that range."""
    if isinstance(seed, bool) or not isinstance(seed, int) or not 0 <= seed < 2**32:
        raise ValueError(f"seed is {seed!r}; give a whole number from 0 to {2**32 - 1}")
    return seed


def resolve_device(device: str) -> torch.device:
    """Turn "auto" (CUDA where there is one), "cpu", "cuda" or "cuda:N" into a device; others lack float64."""
    import torch  # here, so that the command line does not wait for it

    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        resolved = torch.device(device)
    except (RuntimeError, TypeError):
        resolved = None
    if resolved is None or resolved.type not in ("cpu", "cuda"):
        raise ValueError(f"device is {device!r}; give 'auto', 'cpu', 'cuda' or 'cuda:N'")
    if resolved.type == "cuda" and (resolved.index or 0) >= torch.cuda.device_count():
        raise ValueError(f"device is {device!r}, but this machine has {torch.cuda.device_count()} CUDA devices")
    return resolved
