"""The commands `isodiff pretrain` and `isodiff finetune`: a dataset, a model, a directory that resumes."""

from __future__ import annotations

import argparse
import sys
import typing
from dataclasses import MISSING, fields
from typing import TYPE_CHECKING, Any

from isodiff.diffusion.config import FinetuneConfig

if TYPE_CHECKING:
    from diffusers import DDPMPipeline
    from torch.utils.data import Dataset

_PRETRAIN_DEFAULTS = {
    "num_steps": 20_000,
    "learning_rate": 5e-4,
    "lr_scheduler": "cosine",
    "warmup_steps": 500,
}
_ISOMETRY_FIELDS = ("lambda_iso", "normalize", "p", "metric", "num_probes")


def add_pretrain(subparsers: argparse._SubParsersAction) -> None:
    """Add ``isodiff pretrain``."""
    parser = subparsers.add_parser(
        "pretrain",
        help="train a small DDPM from scratch",
        description="Train a DDPM from scratch into a directory that stock diffusers loads. Run again, it resumes.",
    )
    parser.add_argument("--architecture", default="faces32", help="faces32 or digits16 (default: faces32)")
    parser.add_argument("--resolution", type=int, help="side of the images in pixels (default: the architecture's)")
    _add_common(parser)
    _add_config(parser, skip=_ISOMETRY_FIELDS, defaults=_PRETRAIN_DEFAULTS)
    parser.set_defaults(run=_pretrain)


def add_finetune(subparsers: argparse._SubParsersAction) -> None:
    """Add ``isodiff finetune``."""
    parser = subparsers.add_parser(
        "finetune",
        help="fine-tune a DDPM with the isometry loss (Eq. 7), or without it as a control",
        description="Fine-tune a DDPM on L_dsm + lambda_iso L_iso into a directory that stock diffusers loads. "
        "--lambda-iso 0 is the control. Run again, it resumes.",
    )
    parser.add_argument(
        "--base", required=True, help="a diffusers DDPM directory, or a shipped one such as faces32/base"
    )
    _add_common(parser)
    _add_config(parser)
    parser.set_defaults(run=_finetune)


def _add_common(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--dataset", required=True, help="faces, digits, folder:PATH or hub:NAME")
    parser.add_argument("--output", required=True, metavar="DIR", help="where the model goes")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N (default: auto)")


def _add_config(
    parser: argparse.ArgumentParser, *, skip: tuple[str, ...] = (), defaults: dict[str, Any] | None = None
) -> None:
    """One option for each field of `FinetuneConfig`; its values are checked there."""
    hints = typing.get_type_hints(FinetuneConfig)
    group = parser.add_argument_group("settings")
    for field in fields(FinetuneConfig):
        if field.name in skip:
            continue
        default = (defaults or {}).get(field.name, field.default)
        assert default is not MISSING  # every setting has a default
        flag = "--" + field.name.replace("_", "-")
        text = f"default: {'the dataset decides' if default is None else default}"
        if hints[field.name] in (bool, bool | None):
            group.add_argument(flag, action=argparse.BooleanOptionalAction, default=default, help=text)
        else:
            group.add_argument(flag, type=hints[field.name], default=default, help=text, metavar=field.name.upper())


def _config(options: argparse.Namespace, **fixed: Any) -> FinetuneConfig:  # noqa: ANN401
    names = [field.name for field in fields(FinetuneConfig)]
    return FinetuneConfig(**{name: getattr(options, name) for name in names if hasattr(options, name)} | fixed)


def _pretrain(options: argparse.Namespace) -> int:
    from isodiff.datasets import open_dataset
    from isodiff.diffusion.pretrained import ARCHITECTURES, build_pipeline

    config = _config(options, lambda_iso=0.0)
    if options.architecture not in ARCHITECTURES:
        raise ValueError(f"architecture is {options.architecture!r}; accepted: {', '.join(ARCHITECTURES)}")
    resolution = options.resolution or ARCHITECTURES[options.architecture]["sample_size"]
    images = open_dataset(options.dataset, resolution, seed=config.seed)
    pipeline = build_pipeline(options.architecture, resolution=resolution, channels=images.channels, seed=config.seed)
    return _train(pipeline, images, config, options, {"architecture": options.architecture})


def _finetune(options: argparse.Namespace) -> int:
    from isodiff.datasets import open_dataset
    from isodiff.diffusion.pretrained import load_pipeline

    config = _config(options)
    pipeline = load_pipeline(options.base)
    images = open_dataset(options.dataset, pipeline.unet.config.sample_size, seed=config.seed)
    return _train(pipeline, images, config, options, {"base": options.base})


def _train(
    pipeline: DDPMPipeline, images: Dataset, config: FinetuneConfig, options: argparse.Namespace, facts: dict[str, str]
) -> int:
    from accelerate import Accelerator

    from isodiff.diffusion.finetune import TrainingInterrupted
    from isodiff.diffusion.training import command_line, train
    from isodiff.parameters import resolve_device

    device = resolve_device(options.device)
    accelerator = Accelerator(mixed_precision=config.mixed_precision, cpu=device.type == "cpu")
    facts = {"command": command_line(sys.argv[1:]), "dataset": options.dataset, **facts}
    try:
        train(pipeline, images, config, options.output, provenance=facts, accelerator=accelerator)
    except TrainingInterrupted as interruption:
        if accelerator.is_main_process:
            print(f"isodiff: {interruption}", file=sys.stderr)
        return 128 + interruption.signal
    if accelerator.is_main_process:
        print(f"{options.output}: done; load it with diffusers.DDPMPipeline.from_pretrained({options.output!r})")
    return 0
