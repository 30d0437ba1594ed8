"""The command `isodiff train-autoencoder`: what latent diffusion starts from."""

from __future__ import annotations

import argparse
import sys
import typing
from dataclasses import fields

from isodiff.diffusion.autoencoder_config import AutoencoderConfig


def add_train_autoencoder(subparsers: argparse._SubParsersAction) -> None:
    """Add ``isodiff train-autoencoder``."""
    parser = subparsers.add_parser(
        "train-autoencoder",
        help="train a small KL autoencoder for latent diffusion",
        description="Train a KL autoencoder into a directory that stock diffusers loads, and that pretrain "
        "--autoencoder takes. Run again, it resumes.",
    )
    parser.add_argument(
        "--dataset", required=True, help="faces, digits, folder:PATH, hub:NAME, stream:NAME, or one such as celebahq"
    )
    parser.add_argument("--resolution", type=int, default=64, help="side of the images in pixels (default: 64)")
    parser.add_argument("--output", required=True, metavar="DIR", help="where the autoencoder goes")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N (default: auto)")
    _add_settings(parser)
    parser.set_defaults(run=_train)


def _add_settings(parser: argparse.ArgumentParser) -> None:
    hints = typing.get_type_hints(AutoencoderConfig)
    group = parser.add_argument_group("settings")
    for field in fields(AutoencoderConfig):
        flag, text = "--" + field.name.replace("_", "-"), f"default: {field.default}"
        group.add_argument(flag, type=hints[field.name], default=field.default, help=text, metavar=field.name.upper())


def _train(options: argparse.Namespace) -> int:
    from isodiff.cli_train import interruptible
    from isodiff.datasets import open_dataset
    from isodiff.diffusion.autoencoder import train_autoencoder
    from isodiff.diffusion.execution import accelerator_for
    from isodiff.diffusion.training import command_line

    config = AutoencoderConfig(**{field.name: getattr(options, field.name) for field in fields(AutoencoderConfig)})
    images = open_dataset(options.dataset, options.resolution, seed=config.seed)
    facts = {"command": command_line(sys.argv[1:]), "dataset": options.dataset, "resolution": str(options.resolution)}
    accelerator = accelerator_for(options.device)
    return interruptible(
        accelerator,
        lambda: train_autoencoder(images, config, options.output, provenance=facts, accelerator=accelerator),
        f"{options.output}: done; load it with diffusers.AutoencoderKL.from_pretrained({options.output!r})",
    )
