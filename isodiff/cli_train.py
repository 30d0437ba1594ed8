"""The commands `isodiff pretrain` and `isodiff finetune`: a dataset, a model, a directory that resumes."""

from __future__ import annotations

import argparse
import sys
import typing
from dataclasses import MISSING, fields
from typing import TYPE_CHECKING, Any

from isodiff.diffusion.config import FinetuneConfig

if TYPE_CHECKING:
    from collections.abc import Callable

    from accelerate import Accelerator
    from diffusers import DiffusionPipeline
    from torch.utils.data import Dataset

_PRETRAIN_DEFAULTS = {
    "num_steps": 20_000,
    "learning_rate": 5e-4,
    "lr_scheduler": "cosine",
    "warmup_steps": 500,
}
_ISOMETRY_FIELDS = (
    *("lambda_iso", "normalize", "p", "metric", "num_probes"),
    *("regularize_every", "regularize_fraction", "isometry_route", "regularize_times", "estimator"),
)


def add_pretrain(subparsers: argparse._SubParsersAction) -> None:
    """Add ``isodiff pretrain``."""
    parser = subparsers.add_parser(
        "pretrain",
        help="train a small model from scratch",
        description="Train a DDPM, or with --autoencoder a latent-diffusion model, from scratch into a directory that "
        "stock diffusers loads. Run again, it resumes.",
    )
    parser.add_argument(
        "--architecture",
        default="faces32",
        help="faces32 (default), digits16, latent16, or a published one: ddpm-32, ddpm-256, ldm-256",
    )
    parser.add_argument("--resolution", type=int, help="side of the images in pixels (default: the architecture's)")
    parser.add_argument(
        "--autoencoder", metavar="DIR", help="train on the latents of this one, see isodiff train-autoencoder"
    )
    _add_common(parser)
    _add_config(parser, skip=_ISOMETRY_FIELDS, defaults=_PRETRAIN_DEFAULTS)
    parser.set_defaults(run=_pretrain)


def add_finetune(subparsers: argparse._SubParsersAction) -> None:
    """Add ``isodiff finetune``."""
    parser = subparsers.add_parser(
        "finetune",
        help="fine-tune a model with the isometry loss (Eq. 7), or without it as a control",
        description="Fine-tune a model on L_dsm + lambda_iso L_iso into a directory that stock diffusers loads. "
        "--lambda-iso 0 is the control. Run again, it resumes.",
    )
    parser.add_argument(
        "--base",
        required=True,
        help="a diffusers directory, a shipped model such as faces32/base, a published one such as "
        "google/ddpm-celebahq-256, or hub:OWNER/NAME[@REVISION]",
    )
    parser.add_argument("--prompt", help="held fixed; of a Stable Diffusion model only")
    _add_common(parser)
    _add_config(parser)
    parser.set_defaults(run=_finetune)


def _add_common(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--dataset", required=True, help="faces, digits, folder:PATH, hub:NAME, stream:NAME, or one such as celebahq"
    )
    parser.add_argument("--output", required=True, metavar="DIR", help="where the model goes")
    parser.add_argument("--half", action="store_true", help="store the weights in float16, at half the size")
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
    from isodiff.diffusion.latent import image_shape
    from isodiff.diffusion.pretrained import build_pipeline
    from isodiff.diffusion.published import ARCHITECTURES, AUTOENCODERS

    config = _config(options, lambda_iso=0.0)
    if options.architecture not in ARCHITECTURES:
        raise ValueError(f"architecture is {options.architecture!r}; accepted: {', '.join(ARCHITECTURES)}")
    facts, resolution = {"architecture": options.architecture}, options.resolution
    if options.autoencoder is not None:
        from isodiff.diffusion.autoencoder import load_autoencoder

        if resolution is not None:
            raise ValueError(f"resolution is the autoencoder's; leave it out, got {resolution}")
        pipeline = build_pipeline(
            options.architecture, autoencoder=load_autoencoder(options.autoencoder), seed=config.seed
        )
        images = open_dataset(options.dataset, image_shape(pipeline)[1], seed=config.seed)
        return _train(pipeline, images, config, options, {**facts, "autoencoder": options.autoencoder})
    if options.architecture in AUTOENCODERS:
        raise ValueError(f"architecture {options.architecture} works on latents; name a trained --autoencoder")
    resolution = ARCHITECTURES[options.architecture]["sample_size"] if resolution is None else resolution
    images = open_dataset(options.dataset, resolution, seed=config.seed)
    pipeline = build_pipeline(options.architecture, resolution=resolution, channels=images.channels, seed=config.seed)
    return _train(pipeline, images, config, options, facts)


def _finetune(options: argparse.Namespace) -> int:
    from isodiff.datasets import open_dataset
    from isodiff.diffusion.latent import image_shape
    from isodiff.diffusion.prompt import open_model

    config = _config(options)
    pipeline = open_model(options.base, options.prompt)
    images = open_dataset(options.dataset, image_shape(pipeline)[1], seed=config.seed)
    prompt = {} if options.prompt is None else {"prompt": options.prompt}
    return _train(pipeline, images, config, options, {"base": options.base, **prompt})


def interruptible(accelerator: Accelerator, train: Callable[[], object], done: str) -> int:
    """Run a training, print one line at its end from the main process, and return the exit status."""
    from isodiff.diffusion.finetune import TrainingInterrupted

    try:
        train()
    except TrainingInterrupted as interruption:
        if accelerator.is_main_process:
            print(f"isodiff: {interruption}", file=sys.stderr)
        return 128 + interruption.signal
    if accelerator.is_main_process:
        print(done)
    return 0


def _train(
    pipeline: DiffusionPipeline,
    images: Dataset,
    config: FinetuneConfig,
    options: argparse.Namespace,
    facts: dict[str, str],
) -> int:
    from isodiff.diffusion.execution import accelerator_for
    from isodiff.diffusion.training import command_line, train

    accelerator = accelerator_for(options.device, config.mixed_precision)
    facts = {"command": command_line(sys.argv[1:]), "dataset": options.dataset, **facts}
    return interruptible(
        accelerator,
        lambda: train(
            pipeline, images, config, options.output, provenance=facts, accelerator=accelerator, half=options.half
        ),
        f"{options.output}: done; load it with diffusers.DiffusionPipeline.from_pretrained({options.output!r})",
    )
