"""Every metric of one model, at given sizes, into one record.

All draws are functions of the seed and the number of a unit, so that models measured alike are measured on the same
latents and compare in pairs. What is finished is kept in a store, so that an evaluation that was killed goes on where
it stopped and gives the same figures.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from tqdm import tqdm

from isodiff.datasets import open_dataset
from isodiff.diffusion.latent import autoencoder_of, image_shape, images_to_latents
from isodiff.diffusion.prompt import open_model
from isodiff.metrics.attributes import AttributeClassifier, open_attributes
from isodiff.metrics.fidelity import extract_features
from isodiff.metrics.generator import Generator, check_images, draw_latents, model_digest, to_uint8
from isodiff.metrics.networks import inception_features
from isodiff.metrics.record import Record, git_revision, versions
from isodiff.metrics.store import Store
from isodiff.metrics.suite import SUITE
from isodiff.profiles import settings as settings_of

if TYPE_CHECKING:
    from accelerate import PartialState
    from diffusers import DiffusionPipeline

    from isodiff.metrics.measurement import Measurement
    from isodiff.sizes_evaluation import EvaluationSettings

# Real images come from another part of an endless data set than the images a model was trained on.
_REAL_SEED = 2**20


def evaluate(
    model: str | Path | DiffusionPipeline,
    metrics: Iterable[str] | None = None,
    *,
    dataset: str = "faces",
    prompt: str | None = None,
    attributes: str | None = "auto",
    profile: str = "cpu",
    seed: int = 0,
    device: str = "auto",
    overrides: str = "{}",
    cache: str | Path | None = None,
    progress: bool = False,
    processes: PartialState | None = None,
) -> Record:
    """Measure one model.

    Args:
        model: What `load_pipeline` takes, or a pipeline.
        metrics: Names in `SUITE`; by default all that apply to this model, and the record says why others do not.
        dataset: The real images: `"faces"`, `"digits"`, `"folder:PATH"` or `"hub:NAME"`.
        prompt: Of a Stable Diffusion model, which is held fixed; None of any other.
        attributes: What labels generated images: `"faces"`, a folder that `isodiff train-attributes` wrote, or None;
            `"auto"` is the faces' own factors where the data set is faces, and None elsewhere.
        profile: `"cpu"`, `"record"` or `"gpu"`: the sizes, in `isodiff.profiles`.
        seed: Of every draw; records of one seed compare in pairs.
        device: `"auto"`, `"cpu"`, `"cuda"` or `"cuda:N"`.
        overrides: JSON object that replaces single sizes.
        cache: Folder that keeps finished work; None keeps nothing.
        progress: Whether to show progress bars.
        processes: Those that share the work through the cache, see `Store`; all return the same record.

    Returns:
        The record.

    Raises:
        ValueError: An unknown metric, one that does not apply to this model, or a size out of range.
        FileNotFoundError: No such model, or no weights, with the command that fetches them.
    """
    sizes = settings_of("evaluation", profile=profile, seed=seed, device=device, overrides=overrides)
    chosen = list(SUITE) if metrics is None else list(dict.fromkeys(metrics))
    if unknown := [name for name in chosen if name not in SUITE]:
        raise ValueError(f"no metric is called {', '.join(unknown)}; there are {', '.join(SUITE)}")
    pipeline = open_model(model, prompt) if isinstance(model, str | Path) else model
    for part in (pipeline.unet, autoencoder_of(pipeline)):
        if part is not None:
            part.to(sizes.device).eval().requires_grad_(False)
    run = Evaluation(pipeline, sizes, dataset, attributes, Store(cache, progress=progress, processes=processes))
    left_out = {name: reason for name in chosen if (reason := SUITE[name].obstacle(run))}
    if metrics is not None and left_out:
        raise ValueError("; ".join(f"{name} cannot be measured: {reason}" for name, reason in left_out.items()))
    if "separability" in chosen and "separability" not in left_out:
        run.attributes = open_attributes(run.attributes_source)  # if there are none, say so before hours of sampling
    measurements: dict[str, Measurement] = {}
    bar = tqdm([name for name in chosen if name not in left_out], disable=not progress)
    for name in bar:
        bar.set_description(f"{Path(str(model)).name if isinstance(model, str | Path) else 'model'}: {name}")
        measurements |= SUITE[name].measure(run)
    return Record(
        model=str(model) if isinstance(model, str | Path) else type(model).__name__,
        digest=run.digest,
        dataset=dataset,
        profile=profile,
        seed=seed,
        device=sizes.device.type,
        settings={k: v for k, v in dataclasses.asdict(sizes).items() if k not in ("profile", "seed", "device")}
        | ({} if prompt is None else {"prompt": prompt}),
        versions=versions(),
        revision=git_revision(),
        measurements=measurements,
        left_out=left_out,
    )


class Evaluation:
    """One model, what it is compared with, and the images that several metrics share.

    Args:
        pipeline: A model as `Generator` takes it, already on its device.
        settings: The sizes.
        dataset: As in `evaluate`.
        attributes: As in `evaluate`.
        store: Where finished work is kept.
    """

    def __init__(
        self,
        pipeline: DiffusionPipeline,
        settings: EvaluationSettings,
        dataset: str,
        attributes: str | None,
        store: Store,
    ) -> None:
        self.pipeline, self.settings, self.dataset = pipeline, settings, dataset
        self.unet, self.scheduler, self.seed = pipeline.unet, pipeline.scheduler, settings.seed
        self.autoencoder, self.image_shape = autoencoder_of(pipeline), image_shape(pipeline)
        self.attributes_source = ("faces" if dataset == "faces" else None) if attributes == "auto" else attributes
        self.digest = model_digest(pipeline)
        self.shared = store
        self.store = store.scoped(model=self.digest)

    def store_of(self, generate: Generator) -> Store:
        """Return the store of what depends on the sampler with its number of steps, too."""
        return self.shared.scoped(model=generate.digest)

    def generator(self, num_steps: int) -> Generator:
        """Return the sampler with a number of DDIM steps."""
        return Generator(self.pipeline, num_steps)

    def samples(self, count: int, num_steps: int) -> np.ndarray:
        """Return the images of the first latents of the stream "samples", uint8 (count, C, H, W)."""
        generate = self.generator(num_steps)

        def compute(start: int, stop: int) -> dict[str, np.ndarray]:
            latents = draw_latents(generate.shape, start, stop, seed=self.seed, stream="samples")
            with torch.no_grad():
                images = check_images(generate(latents), stop - start)
            return {"images": to_uint8(images).cpu().numpy()}

        key = {"what": "samples", "version": 1, "num_steps": num_steps, "seed": self.seed}
        return self.store.chunks(compute, count, size=self.settings.batch_size, **key)["images"]

    def real_images(self, count: int) -> torch.Tensor:
        """Return the first of this evaluation's real images, see `real_images`."""
        return real_images(self.dataset, self.image_shape[1], count, seed=self.seed)

    @torch.no_grad()
    def real_latents(self, count: int) -> torch.Tensor:
        """Return what the model denoises of the same images: themselves, or their latents."""
        images = self.real_images(count).split(self.settings.batch_size)
        return torch.cat([images_to_latents(self.autoencoder, part).cpu() for part in images])

    @cached_property
    def attributes(self) -> AttributeClassifier:
        """What labels the generated images."""
        return open_attributes(self.attributes_source)

    @cached_property
    def features(self) -> tuple[np.ndarray, np.ndarray]:
        """Inception features of real and of generated images, (n, 2048) each."""
        count = self.settings.num_fid_images
        extractor = inception_features(device=self.settings.device)
        real = to_uint8(self.real_images(count)).numpy()
        generated = self.samples(count, self.settings.fid_steps)
        return tuple(extract_features(images, extractor, store=self.shared) for images in (real, generated))


def real_images(dataset: str, resolution: int, count: int, *, seed: int = 0) -> torch.Tensor:
    """Return the real images that an evaluation compares with.

    Args:
        dataset: As in `evaluate`.
        resolution: Side in pixels.
        count: How many.
        seed: Of the evaluation.

    Returns:
        (count, C, R, R) in [−1, 1]: a fixed random choice, of which a smaller one is a part; of a stream, which is
        shuffled by itself, the first.

    Raises:
        ValueError: If the data set has fewer.
    """
    real = open_dataset(dataset, resolution, seed=_REAL_SEED + seed)
    if count > len(real):
        raise ValueError(f"{dataset} has {len(real):,} images and {count:,} are asked for; ask for fewer")
    if getattr(real, "sequential", False):
        return torch.stack(list(real.__getitems__(list(range(count)))))
    chosen = np.random.default_rng([_REAL_SEED, seed]).permutation(len(real))[:count]
    return torch.stack(list(real.__getitems__(chosen.tolist())))
