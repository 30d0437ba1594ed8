"""Data sets of the Hugging Face hub: found or refused at once, from the cache with HF_HUB_OFFLINE=1."""

import io
from contextlib import suppress
from pathlib import Path
from typing import Any

from PIL import Image

from isodiff.datasets.images import ImageDataset, Shape, check_count, gather

_SECONDS = 10.0  # for the one question
_ACCEPTED = "accepted are NAME[@REVISION][#SPLIT] of a data set on the hub, or a local directory of one"


def open_hub(source: str, shape: Shape, *, count: int | None = None) -> ImageDataset:
    """Open the first column of images of `NAME[@REVISION][#SPLIT]`, or of a local directory; names are positions."""
    table, column = load_table(source, streaming=False)
    check_count(f"hub:{source}", len(table), count)
    names = [f"{i:08d}" for i in range(len(table))]
    return gather(f"hub:{source}", names, lambda i: open_cell(table[i][column]), shape, range(len(table)))


def load_table(source: str, *, streaming: bool) -> tuple[Any, str]:
    """Load the one column of encoded images as a `datasets.Dataset`, or `IterableDataset`, and return its name, too."""
    import datasets
    from huggingface_hub import errors
    from huggingface_hub.utils import httpx  # under this name whichever of its versions the hub's library uses

    location, _, split = source.partition("#")
    name, _, revision = location.partition("@")
    unknown = errors.HFValidationError, errors.RepositoryNotFoundError, errors.RevisionNotFoundError, FileNotFoundError
    try:
        place, pinned = _locate(name, revision or None)
        table = datasets.load_dataset(place, revision=pinned, split=split or "train", streaming=streaming)
    except unknown as error:
        reason = str(error).partition("\n")[0]
        raise FileNotFoundError(f"no data set {name!r} was found ({reason}); {_ACCEPTED}") from error
    except (httpx.HTTPError, OSError) as error:
        command = f"hf download {name} --repo-type dataset" + (f" --revision {revision}" if revision else "")
        advice = f"on a machine with a connection, run `{command}`, bring its cache here and set HF_HUB_OFFLINE=1"
        asked = f"the hub could not be asked for {name!r} ({error!r})".replace("\n", " ")
        raise ConnectionError(f"{asked}; {advice}; {_ACCEPTED}") from error
    except ValueError as error:
        raise ValueError(f"data set {source!r} does not open ({error}); {_ACCEPTED}") from error
    features = table.features or {}
    column = next((key for key, feature in features.items() if isinstance(feature, datasets.Image)), None)
    if column is None:
        raise ValueError(f"data set {source!r} has no column of type Image, only {dict(features)}")
    return table.select_columns([column]).cast_column(column, datasets.Image(decode=False)), column


def open_cell(cell: dict[str, Any] | None) -> Image.Image:
    """Open one encoded image of a table."""
    if cell is None:
        raise ValueError("the cell is empty")
    if cell["bytes"] is not None:
        return Image.open(io.BytesIO(cell["bytes"]))
    import datasets

    return datasets.Image().decode_example(cell)  # opens paths inside archives and addresses, too


def _locate(name: str, revision: str | None) -> tuple[str, str | None]:
    """Return what to load: a directory as it is, a cached copy if offline, or a name that the hub just confirmed."""
    import datasets
    from huggingface_hub import HfApi, constants, errors, snapshot_download

    if Path(name).expanduser().is_dir():
        return str(Path(name).expanduser()), None
    if constants.HF_HUB_OFFLINE or datasets.config.HF_HUB_OFFLINE:
        with suppress(errors.LocalEntryNotFoundError):  # `datasets` may hold a converted copy, and does not ask either
            return snapshot_download(name, repo_type="dataset", revision=revision, local_files_only=True), None
    else:
        HfApi().dataset_info(name, revision=revision, timeout=_SECONDS)
    return name, revision
