"""The one door to images, and the data sets of Hahm et al. 2024 (Sec. 4.1: CIFAR-10 to LSUN) and two more by name."""

import warnings
from typing import NamedTuple

from torch import Tensor
from torch.utils.data import Dataset

from isodiff.datasets.faces import FacesDataset
from isodiff.datasets.folders import open_folder
from isodiff.datasets.hub import open_hub
from isodiff.datasets.images import Shape, open_digits
from isodiff.datasets.stream import StreamDataset


class Source(NamedTuple):
    """One data set of the hub."""

    spec: str  # what `open_dataset` opens
    count: int  # of the images, as its card states
    paper_count: int | None = None  # None: not in the paper
    note: str = ""  # why the two differ


# Terms: none stated of CIFAR-10 (see Krizhevsky 2009) and LSUN (see its project); non-commercial research for CelebA-HQ
# and ImageNet, to be accepted on the hub (`hf auth login`); CC BY-NC-SA 4.0 for FFHQ, each photograph under its own.
CATALOGUE = {
    "cifar10": Source("hub:uoft-cs/cifar10#train", 50_000, 50_000),
    "celebahq": Source(
        *("hub:mattymchen/celeba-hq@1bc5dfbeb766d03abeddf5a48b9871479a4395bb#train", 28_000, 14_342),
        note="the paper does not say which images of CelebA-HQ are its own",
    ),
    "lsun-church": Source(  # LSUN's training partition, which the repository divides into train and test
        "hub:tglcourse/lsun_church_train@bce8c61d61fe7ced008dc92b345451f380e12414#train+test", 126_227, 126_227
    ),
    "lsun-bedroom": Source(
        *("stream:pcuenq/lsun-bedrooms@1acf5c322e8f1e3e440adf7130d697a677110119#train+test", 303_125, 3_033_042),
        note="a sample of LSUN's training partition: no copy of all of it is known on the hub",
    ),
    "ffhq": Source("hub:merkol/ffhq-256@f23c0e21f6fe222b4429272a86be00e4583b0298#train", 70_000),
    "imagenet": Source("stream:ILSVRC/imagenet-1k#train", 1_281_167),
}


def open_dataset(spec: str, shape: int | Shape, *, seed: int = 0) -> Dataset[Tensor]:
    """Open images of a shape (C, H, W), or squares of so many pixels in their own colours, float32 in [-1, 1], by name.

    `spec` is "faces", "digits", "folder:PATH" (images, tar archives of images, or one archive),
    `"hub:NAME[@REVISION][#SPLIT]"` (of the hub or a local directory; split train unless told),
    `"stream:NAME[@REVISION][#SPLIT[=COUNT]]"` (the same, read in order as training goes on), or a name of `CATALOGUE`,
    whose number of images is checked; "cifar10=folder:PATH" checks a copy of your own against the paper's. `seed` draws
    the factors of faces and the order of a stream. The result has `channels`, `resolution`, `horizontal_flip` (whether
    training may mirror images) and `__getitems__`; a stream has `sequential = True`.
    """
    sides = shape if isinstance(shape, tuple) else (1 if spec == "digits" else 3, shape, shape)
    if len(sides) != 3 or any(isinstance(n, bool) or not isinstance(n, int) or n < 1 for n in sides):
        raise ValueError(f"shape must be a positive whole number of pixels, or three, (C, H, W); got {shape!r}")
    if sides[0] not in (1, 3):
        raise ValueError(f"images have 1 or 3 channels; got a shape {sides} of {sides[0]}")
    if spec == "faces":
        if sides != (3, sides[1], sides[1]):
            raise ValueError(f"faces are squares in colour, (3, R, R); got the shape {sides}")
        return FacesDataset(sides[1], seed=seed)
    if spec == "digits":
        return open_digits(sides)
    name, own, copy = spec.partition("=")
    source, stored, count = CATALOGUE.get(name), spec, None
    if source is not None:
        stored, count = (copy, source.paper_count or source.count) if own else (source.spec, source.count)
    kind, _, place = stored.partition(":")
    if kind not in ("folder", "hub", "stream") or not place:
        kinds = "'faces', 'digits', 'folder:PATH', 'hub:NAME[@REVISION][#SPLIT]', 'stream:…[#SPLIT[=COUNT]]'"
        named = f"{', '.join(map(repr, CATALOGUE))}, each also with a copy of your own, as 'cifar10=folder:PATH'"
        raise ValueError(f"unknown dataset {spec!r}; accepted are {kinds}, and of the papers {named}")
    try:
        if kind == "stream":
            images = StreamDataset(place, sides, seed=seed, count=count)
        else:
            images = (open_folder if kind == "folder" else open_hub)(place, sides, count=count)
    except (FileNotFoundError, ConnectionError) as error:
        if source is None:
            raise
        raise type(error)(f"{name}: {error}") from error
    if source is not None and not own and source.paper_count not in (None, source.count):
        differ = f"{source.count:,} images, where the paper has {source.paper_count:,}: {source.note}"
        advice = f"{name}=folder:PATH opens a copy of your own and checks it against the paper's number"
        warnings.warn(f"{name} is {source.spec} with {differ}; {advice}", stacklevel=2)
    return images
