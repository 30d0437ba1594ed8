"""Pictures, archives and data sets of the hub's own format, made on the spot."""

import io
import tarfile
from pathlib import Path

import datasets
import numpy as np
from PIL import Image


def encoded(picture: Image.Image, form: str = "PNG", **options: object) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, form, **options)
    return buffer.getvalue()


def flat(*colour: int) -> bytes:
    return encoded(Image.new("RGB", (8, 8), colour))


def noise(seed: int, size: int = 12) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (size, size, 3), dtype=np.uint8))


def write_tar(path: Path, files: dict[str, bytes], mode: str = "w", form: int = tarfile.PAX_FORMAT) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, mode, format=form) as tar:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return path


def write_table(folder: Path, images: list[bytes | None], *, split: str = "train", card: int | None = None) -> Path:
    """Write labels and images in shards of seven; `card` is the number of images that the data set's card states."""
    folder.mkdir(parents=True, exist_ok=True)
    features = datasets.Features({"label": datasets.Value("int64"), "drawing": datasets.Image()})
    cells = [None if image is None else {"bytes": image, "path": None} for image in images]
    for shard in range(0, len(cells), 7):
        rows = {"label": list(range(len(cells)))[shard : shard + 7], "drawing": cells[shard : shard + 7]}
        datasets.Dataset.from_dict(rows, features=features).to_parquet(folder / f"{split}-{shard:05d}.parquet")
    if card is not None:
        (folder / "README.md").write_text(
            "---\ndataset_info:\n  features:\n  - name: label\n    dtype: int64\n  - name: drawing\n    dtype: image\n"
            f"  splits:\n  - name: {split}\n    num_bytes: 1\n    num_examples: {card}\n---\n"
        )
    return folder
