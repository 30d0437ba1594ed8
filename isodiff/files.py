"""Files that are at every moment either the old ones or the new ones."""

from __future__ import annotations

from pathlib import Path


def write_whole(path: Path, content: str | bytes, *, advice: str = "make room there or choose another output") -> None:
    """Write a file whole or not at all, and make its folder.

    Args:
        path: What to write. It is replaced in one step, from a neighbour that is gone if anything fails.
        content: Text, written as UTF-8, or bytes.
        advice: What to do if it fails; ends the message.

    Raises:
        OSError: If it cannot be written.
    """
    partial = path.with_name(f".{path.name}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        partial.write_bytes(content if isinstance(content, bytes) else content.encode())
        partial.replace(path)
    except OSError as error:
        partial.unlink(missing_ok=True)
        raise OSError(f"{path} could not be written ({error}); {advice}") from error
