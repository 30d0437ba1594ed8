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


def data_directory() -> Path:
    """Return the folder of shipped checkpoints, records and small data."""
    return repository_root() / "data"
