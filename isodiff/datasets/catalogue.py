"""The data sets of the papers, by name: where they are, how many images they hold, and what the paper says of them.

Hahm et al. 2024, Sec. 4.1: "The training partition of each dataset consists of 50,000, 14,342, 126,227, and 3,033,042
samples", of CIFAR-10, CelebA-HQ, LSUN-Church and LSUN-Bedrooms; all but CIFAR-10 at 256 pixels, mirrored with
probability 1/2. The counts of CIFAR-10 and of both LSUN categories are those of the whole training partitions.
CelebA-HQ has 30,000 images, and the paper does not say which 14,342 of them are its own. FFHQ and ImageNet are not in
the paper; they are here for the question whether noise on their images keeps to a sphere (`isodiff.metrics.shell`).
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Source:
    """One data set of the hub, and what the paper has of it.

    Attributes:
        repository: Its name on the hub.
        split: Of the training images; ``+`` joins several.
        column: The column of images.
        count: Images in that split, as the repository's card states; another number is refused.
        revision: The commit whose card was read; None is the hub's main branch. Any other: ``hub:NAME@REVISION``.
        paper_count: Images the paper trained on, or None if it did not.
        resolution: Side in pixels of the paper's images, or of the stored ones if it had none.
        streamed: Whether it is read as a stream, being too large to fetch and index first.
        terms: Licence or terms of the images.
        note: Whatever else a reader must know.
    """

    repository: str
    split: str
    column: str
    count: int
    revision: str | None
    paper_count: int | None
    resolution: int
    streamed: bool
    terms: str
    note: str = ""

    @property
    def spec(self) -> str:
        """The data set as `open_dataset` accepts it, without the checks of the table."""
        revision = f"@{self.revision}" if self.revision else ""
        return f"{'stream' if self.streamed else 'hub'}:{self.repository}{revision}#{self.split}"


CATALOGUE = {
    "cifar10": Source(
        "uoft-cs/cifar10",
        "train",
        "img",
        count=50_000,
        revision=None,
        paper_count=50_000,
        resolution=32,
        streamed=False,
        terms="no licence stated; its authors ask to cite Krizhevsky 2009",
    ),
    "celebahq": Source(
        "mattymchen/celeba-hq",
        "train",
        "image",
        count=28_000,
        revision="1bc5dfbeb766d03abeddf5a48b9871479a4395bb",
        paper_count=14_342,
        resolution=256,
        streamed=False,
        terms="photographs of the CelebA data set, non-commercial research only",
        note="the paper does not say which images of CelebA-HQ are its own",
    ),
    "lsun-church": Source(
        "tglcourse/lsun_church_train",
        "train+test",
        "image",
        count=126_227,
        revision="bce8c61d61fe7ced008dc92b345451f380e12414",
        paper_count=126_227,
        resolution=256,
        streamed=False,
        terms="no licence stated; see the LSUN project",
        note="LSUN's training partition, which the repository divides into train and test",
    ),
    "lsun-bedroom": Source(
        "pcuenq/lsun-bedrooms",
        "train+test",
        "image",
        count=303_125,
        revision="1acf5c322e8f1e3e440adf7130d697a677110119",
        paper_count=3_033_042,
        resolution=256,
        streamed=True,
        terms="no licence stated for the images; see the LSUN project",
        note="a sample of LSUN's training partition: no copy of all of it is known on the hub",
    ),
    "ffhq": Source(
        "merkol/ffhq-256",
        "train",
        "image",
        count=70_000,
        revision="f23c0e21f6fe222b4429272a86be00e4583b0298",
        paper_count=None,
        resolution=256,
        streamed=False,
        terms="CC BY-NC-SA 4.0 as a data set, each photograph under its own licence",
    ),
    "imagenet": Source(
        "ILSVRC/imagenet-1k",
        "train",
        "image",
        count=1_281_167,
        revision=None,
        paper_count=None,
        resolution=256,
        streamed=True,
        terms="non-commercial research and education, terms to be accepted on the hub (`hf auth login`)",
    ),
}
