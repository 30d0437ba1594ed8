"""Where the course's own files are, whatever the working directory."""

from __future__ import annotations

import os
from pathlib import Path


def repository_root() -> Path:
    """Return the folder that holds ``notebooks/`` and ``data/``.

    It is ``ISODIFF_ROOT`` where that is set, and otherwise the folder the package was installed from.

    Raises:
        FileNotFoundError: If there is no ``notebooks`` folder in it.
    """
    chosen = os.environ.get("ISODIFF_ROOT")
    root = Path(chosen).expanduser() if chosen else Path(__file__).resolve().parents[1]
    if not (root / "notebooks").is_dir():
        origin = "ISODIFF_ROOT is" if chosen else "isodiff is installed in"
        raise FileNotFoundError(
            f"{origin} {root}, which has no notebooks folder; set ISODIFF_ROOT to a clone of the repository, "
            "or install the clone with: pip install -e ."
        )
    return root.resolve()


def require_folder(path: Path) -> None:
    """Refuse a folder for output that cannot be made or written, before any work is done for it.

    Raises:
        NotADirectoryError: If the path, or one above it, is a file.
        PermissionError: If the folder, or the first above it that exists, cannot be written.
    """
    place = next(place for place in (path, *path.absolute().parents) if place.exists())
    if not place.is_dir():
        raise NotADirectoryError(f"{place} is a file; give a directory for the output, or the name of a new one")
    if not os.access(place, os.W_OK | os.X_OK):
        raise PermissionError(f"{place} cannot be written; give another directory for the output")


def data_directory() -> Path:
    """Return the folder of shipped checkpoints, records and small data."""
    return repository_root() / "data"
