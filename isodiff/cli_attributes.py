"""The command `isodiff train-attributes`: labelled images in, a classifier with its held-out accuracies out."""

from __future__ import annotations

import argparse
import shlex
import sys
import typing
from dataclasses import fields
from typing import TYPE_CHECKING

from isodiff.metrics.attribute_config import AttributeConfig

if TYPE_CHECKING:
    from torch.utils.data import Dataset

    from isodiff.metrics.attribute_labels import Labels
    from isodiff.metrics.attributes import NetworkAttributes

_NUM_FACES = 10_000  # the renderer has no end of them


def add_train_attributes(subparsers: argparse._SubParsersAction) -> None:
    """Add ``isodiff train-attributes``."""
    parser = subparsers.add_parser(
        "train-attributes",
        help="train the attribute classifier behind linear separability",
        description="Train a torchvision network to tell the attributes of labelled images, into a directory, and "
        "print its accuracies on images held out. Run again, it resumes.",
    )
    parser.add_argument("--dataset", required=True, help="faces, folder:PATH, hub:NAME, or one such as celebahq")
    parser.add_argument(
        "--labels",
        required=True,
        help="age-gender (from names such as 00000_age26_gender0.jpg), celeba:FILE (a list_attr_celeba.txt), "
        "or factors (of the dataset faces)",
    )
    parser.add_argument("--output", required=True, metavar="DIR", help="where the classifier goes")
    parser.add_argument("--resolution", type=int, default=64, help="side of the images in pixels (default: 64)")
    parser.add_argument(
        "--num-images", type=int, help=f"use the first so many images (default: all; of faces {_NUM_FACES:,})"
    )
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N (default: auto)")
    parser.add_argument("--num-workers", type=int, default=0, help="processes that load images (default: 0)")
    group, hints = parser.add_argument_group("settings"), typing.get_type_hints(AttributeConfig)
    for field in fields(AttributeConfig):
        group.add_argument(
            "--" + field.name.replace("_", "-"),
            type=hints[field.name],
            default=field.default,
            help=f"default: {field.default}",
            metavar=field.name.upper(),
        )
    parser.set_defaults(run=_train_attributes)


def _train_attributes(options: argparse.Namespace) -> int:
    from isodiff.datasets import open_dataset
    from isodiff.metrics.attribute_training import train_attributes
    from isodiff.parameters import resolve_device

    config = AttributeConfig(**{field.name: getattr(options, field.name) for field in fields(AttributeConfig)})
    device = resolve_device(options.device)
    images = open_dataset(options.dataset, options.resolution, seed=config.seed)
    labels = _read_labels(options, images)
    trained = train_attributes(
        images,
        labels.values,
        labels.names,
        options.output,
        config,
        provenance={
            "command": shlex.join(["isodiff", *sys.argv[1:]]),
            "dataset": options.dataset,
            "labels": options.labels,
        },
        device=device,
        num_workers=options.num_workers,
        progress=True,
    )
    print(held_out_table(trained))
    print(f"{options.output}: done; isodiff.metrics.attributes.open_attributes({options.output!r}) opens it")
    return 0


def _read_labels(options: argparse.Namespace, images: Dataset) -> Labels:
    from isodiff.metrics.attribute_labels import age_gender_labels, celeba_labels, factor_labels

    count = options.num_images
    if count is None:
        count = min(len(images), _NUM_FACES) if options.dataset == "faces" else len(images)
    if not 1 <= count <= len(images):
        raise ValueError(f"num-images must be 1 to {len(images)}, the number of images; got {count}")
    kind, _, file = options.labels.partition(":")
    if options.labels == "factors":
        if options.dataset != "faces":
            raise ValueError(f"only the dataset 'faces' has factors; got {options.dataset!r}")
        return factor_labels(images.factors[:count])
    if options.labels == "age-gender" or (kind == "celeba" and file):
        if options.dataset == "faces":
            raise ValueError(f"rendered faces have no file names; give --labels factors instead of {options.labels!r}")
        names = images.names[:count]
        return age_gender_labels(names) if kind == "age-gender" else celeba_labels(file, names)
    raise ValueError(f"labels is {options.labels!r}; accepted: 'age-gender', 'celeba:FILE' or 'factors'")


def held_out_table(trained: NetworkAttributes) -> str:
    """Return the accuracies on held-out images as text, an attribute a line."""
    width = max(len(name) for name in (*trained.names, "attribute"))
    lines = [f"{'attribute':{width}}  accuracy  95 % interval  chance  beats chance"]
    for name, row in trained.record["held_out"].items():
        low, high = row["interval"]
        lines.append(
            f"{name:{width}}  {row['accuracy']:8.3f}  {low:.3f} to {high:.3f}  {row['chance']:.3f}   "
            f"{'yes' if row['beats_chance'] else 'no'}"
        )
    record = trained.record
    lines.append(f"n = {record['num_held_out']:,} held out, {record['num_train']:,} trained on")
    return "\n".join(lines)
