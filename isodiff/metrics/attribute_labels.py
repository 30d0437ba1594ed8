"""Where labelled images come from: file names with age and gender, CelebA's table, and the factors of rendered faces.

Each reader returns (N, A) true or false, one row an image in the order asked for, and the names of the A attributes.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import NamedTuple

import numpy as np
from torch import Tensor

from isodiff.datasets.faces import FACTORS


class Labels(NamedTuple):
    """Which image shows what.

    Attributes:
        values: (N, A) true or false.
        names: Of the A attributes.
    """

    values: np.ndarray
    names: tuple[str, ...]


def age_gender_labels(names: Sequence[str], *, age: int | None = None) -> Labels:
    """Read age and gender from file names such as ``00000_age26_gender0.jpg``.

    Args:
        names: Of N images; folders before the name do not matter.
        age: Years from which ``age>=…`` is true; by default the median age, rounded up.

    Returns:
        ``age>=…`` and ``gender1``.

    Raises:
        ValueError: If there is no name, or one does not say age and gender.
    """
    found = [re.search(r"_age(\d+)_gender([01])(?!\d)", PurePosixPath(name).name) for name in names]
    if not found or None in found:
        odd = repr(names[found.index(None)]) if found else "no images"
        raise ValueError(f"names must hold age and gender as in 00000_age26_gender0.jpg; got {odd}")
    ages, genders = np.array([[int(match[1]), int(match[2])] for match in found]).T
    age = int(np.ceil(np.median(ages))) if age is None else age
    return Labels(np.stack([ages >= age, genders == 1], axis=1), (f"age>={age}", "gender1"))


def celeba_labels(path: str | Path, names: Sequence[str]) -> Labels:
    """Read attributes from CelebA's ``list_attr_celeba.txt``.

    Its first line is the number of images, its second the names of the attributes, and every other an image with −1 or
    1 for each.

    Args:
        path: The file.
        names: Of N images, found in it by their last part.

    Returns:
        The attributes of the file, 40 in CelebA's own.

    Raises:
        FileNotFoundError: If there is no file.
        ValueError: If it is not of this format, naming the line, or lacks an image.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no such file: {path}; give CelebA's list_attr_celeba.txt")
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    if len(lines) < 3 or not lines[0].strip().isdigit():
        raise ValueError(
            f"{path} must begin with a line that counts the images and one that names the attributes; "
            f"got {(lines or [''])[0][:60]!r}"
        )
    attributes = tuple(lines[1].split())
    table = {}
    for number, line in enumerate(lines[2:], start=3):
        image, *values = line.split() or [""]
        if len(values) != len(attributes) or not set(values) <= {"-1", "1"}:
            raise ValueError(
                f"line {number} of {path} must be an image and {len(attributes)} values −1 or 1; got {line[:60]!r}"
            )
        table[image] = [value == "1" for value in values]
    if len(table) != int(lines[0]):
        raise ValueError(f"{path} announces {int(lines[0])} images and lists {len(table)}; fetch it again")
    files = [PurePosixPath(name).name for name in names]
    if missing := [file for file in files if file not in table]:
        raise ValueError(f"{path} lacks {len(missing)} of {len(files)} images, such as {missing[0]!r}")
    return Labels(np.array([table[file] for file in files], dtype=bool).reshape(len(files), -1), attributes)


def factor_labels(factors: Tensor) -> Labels:
    """Label rendered faces with the sign of each of their factors.

    Args:
        factors: (N, 10) in [−1, 1], such as `FacesDataset.factors`.

    Returns:
        The factors, true above 0.

    Raises:
        ValueError: If the shape is another.
    """
    if factors.ndim != 2 or factors.shape[1] != len(FACTORS):
        raise ValueError(f"factors must be (N, {len(FACTORS)}); got shape {tuple(factors.shape)}")
    return Labels((factors > 0).cpu().numpy(), FACTORS)
