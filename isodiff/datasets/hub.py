"""Data sets of the Hugging Face hub: found at once or refused at once, and opened whole or as a stream.

Where the hub is out of reach, `datasets` and `huggingface_hub` try again for half a minute and then say little. Here
one question with a time limit comes first, and the error names the command that fetches the data set on a machine with
a connection. With ``HF_HUB_OFFLINE=1`` nothing is asked, and what that command put into the cache is used.
"""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

from PIL import Image

from isodiff.datasets.images import MEMORY_LIMIT, ImageDataset, check_count, gather

_TIMEOUT = 10.0  # seconds, for the one question that shows whether the hub answers
_ACCEPTED = "accepted are NAME[@REVISION][#SPLIT] of a data set on the hub, or a local directory of one"


def open_hub(
    source: str,
    resolution: int,
    *,
    memory_limit: int = MEMORY_LIMIT,
    count: int | None = None,
    column: str | None = None,
) -> ImageDataset:
    """Open a Hugging Face data set, with every image at hand in any order.

    Args:
        source: ``NAME[@REVISION][#SPLIT]``, for example ``"uoft-cs/cifar10"`` or ``"user/name@main#train+test"``; NAME
            may also be a local directory that ``datasets.load_dataset`` opens. The split is ``train`` unless
            told.
        resolution: Side R of the images in pixels.
        memory_limit: Bytes the decoded pixels may take; above it each image is decoded at every access.
        count: Number of images the split must hold, checked before any is decoded; by default any.
        column: The column of images; by default the first of type ``Image``.

    Returns:
        Images in the data set's own order, named by their zero-padded position.

    Raises:
        FileNotFoundError: If there is no such data set, as far as can be seen from here.
        ConnectionError: If the hub cannot be reached, or ``HF_HUB_OFFLINE`` is set and the data set is not cached.
        ValueError: If there is no such split, no such column, no readable image or another number of images.
    """
    table, column = load_table(source, column, streaming=False)
    check_count(f"hub:{source}", len(table), count)

    def read(position: int) -> Image.Image:
        return open_cell(table[position][column])

    names = [f"{i:08d}" for i in range(len(table))]
    return gather(f"hub:{source}", names, read, resolution, memory_limit)


def load_table(source: str, column: str | None, *, streaming: bool) -> tuple[Any, str]:
    """Load the one column of encoded images of a data set; arguments and errors as in `open_hub`.

    Returns:
        A ``datasets.Dataset``, or an ``IterableDataset`` if streaming, and the column's name.
    """
    import datasets

    location, _, split = source.partition("#")
    name, _, revision = location.partition("@")
    name, revision = _locate(name, revision or None)
    try:
        table = datasets.load_dataset(name, revision=revision, split=split or "train", streaming=streaming)
    except FileNotFoundError as error:
        raise FileNotFoundError(f"no data set {name!r} was found ({error}); {_ACCEPTED}") from error
    except OSError as error:
        raise _out_of_reach(name, revision, error) from error
    except ValueError as error:
        raise ValueError(f"data set {source!r} does not open ({error}); {_ACCEPTED}") from error
    features = table.features or {}
    columns = [key for key, feature in features.items() if isinstance(feature, datasets.Image)]
    if not columns or (column is not None and column not in columns):
        wanted = "column of type Image" if column is None else f"column {column!r} of type Image"
        raise ValueError(f"data set {source!r} has no {wanted}, only {dict(features)}")
    column = column or columns[0]
    return table.select_columns([column]).cast_column(column, datasets.Image(decode=False)), column


def open_cell(cell: dict[str, Any] | None) -> Image.Image:
    """Open one encoded image of a table; what is missing or foreign raises as Pillow does."""
    if cell is None:
        raise ValueError("the cell is empty")
    if cell["bytes"] is not None:
        return Image.open(io.BytesIO(cell["bytes"]))
    import datasets

    return datasets.Image().decode_example(cell)  # opens paths inside archives and addresses, too


def fetch_command(name: str, revision: str | None) -> str:
    """Return the command that puts a data set of the hub into the cache."""
    return f"hf download {name} --repo-type dataset" + (f" --revision {revision}" if revision else "")


def _locate(name: str, revision: str | None) -> tuple[str, str | None]:
    """Return what to load: a directory as it is, a cached copy if offline, or a name that the hub just confirmed."""
    if Path(name).expanduser().is_dir():
        return str(Path(name).expanduser()), None
    import datasets
    from huggingface_hub import HfApi, constants, snapshot_download
    from huggingface_hub.errors import (
        HFValidationError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )
    from huggingface_hub.utils import httpx  # under this name whichever of its versions the hub's library uses

    try:
        if constants.HF_HUB_OFFLINE or datasets.config.HF_HUB_OFFLINE:
            return snapshot_download(name, repo_type="dataset", revision=revision, local_files_only=True), None
        HfApi().dataset_info(name, revision=revision, timeout=_TIMEOUT)
    except (HFValidationError, RepositoryNotFoundError, RevisionNotFoundError) as error:
        raise FileNotFoundError(f"no data set {name!r} was found ({_first_line(error)}); {_ACCEPTED}") from error
    except LocalEntryNotFoundError:
        return name, revision  # `datasets` may hold a converted copy, and does not ask the hub either
    except (httpx.HTTPError, OSError) as error:
        raise _out_of_reach(name, revision, error) from error
    return name, revision


def _out_of_reach(name: str, revision: str | None, error: Exception) -> ConnectionError:
    return ConnectionError(
        f"the hub could not be asked for {name!r} ({_first_line(error)}); on a machine with a connection, run "
        f"`{fetch_command(name, revision)}`, bring its cache here and set HF_HUB_OFFLINE=1; {_ACCEPTED}"
    )


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0] or type(error).__name__
