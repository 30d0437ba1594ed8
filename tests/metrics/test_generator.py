"""Latents by number, the sampler as a map, and what counts as an image."""

from __future__ import annotations

import pytest
import torch

from isodiff.diffusion.pretrained import build_pipeline
from isodiff.diffusion.process import ddim_sample
from isodiff.metrics.generator import Generator, check_images, draw_latents, model_digest, number_generator, to_uint8

SHAPE = (1, 16, 16)


def test_a_latent_is_a_function_of_its_number() -> None:
    all_at_once = draw_latents(SHAPE, 0, 10, seed=3)
    assert torch.equal(draw_latents(SHAPE, 4, 7, seed=3), all_at_once[4:7])


def test_seeds_and_streams_are_independent() -> None:
    draws = [
        draw_latents((5000,), 0, 1, seed=0),
        draw_latents((5000,), 1, 2, seed=0),
        draw_latents((5000,), 0, 1, seed=1),
        draw_latents((5000,), 0, 1, seed=0, stream="pairs"),
    ]
    correlation = torch.corrcoef(torch.cat(draws))
    assert (correlation - torch.eye(4)).abs().max() < 5 / 5000**0.5


def test_latents_are_standard_normal() -> None:
    from scipy.stats import kstest

    assert kstest(draw_latents((100,), 0, 200, seed=0).flatten().numpy(), "norm").pvalue > 0.01


def test_units_have_their_own_generator() -> None:
    first, second = (torch.rand((), generator=number_generator(0, "position", i)).item() for i in range(2))
    assert first != second
    assert first == torch.rand((), generator=number_generator(0, "position", 0)).item()


@pytest.mark.parametrize(("start", "stop"), [(3, 3), (4, 2), (-1, 2)])
def test_an_empty_range_is_refused(start: int, stop: int) -> None:
    with pytest.raises(ValueError, match=r"start and stop .* got"):
        draw_latents(SHAPE, start, stop, seed=0)


def test_the_generator_is_ddim_within_the_range_of_images() -> None:
    pipeline = build_pipeline("digits16")
    generate = Generator(pipeline, num_steps=3)
    latents = draw_latents(generate.shape, 0, 2, seed=0)
    with torch.no_grad():
        assert torch.equal(generate(latents), ddim_sample(pipeline.unet, pipeline.scheduler, latents, 3).clamp(-1, 1))
    assert generate.shape == SHAPE


def test_the_digest_follows_weights_settings_and_steps() -> None:
    pipeline = build_pipeline("digits16")
    digests = {Generator(pipeline, 3).digest, Generator(pipeline, 4).digest}
    before = model_digest(pipeline)
    assert before == model_digest(build_pipeline("digits16"))
    pipeline.scheduler.register_to_config(clip_sample=False)
    digests.add(Generator(pipeline, 3).digest)
    pipeline.unet.conv_in.bias.data[0] += 1e-3
    digests.add(Generator(pipeline, 3).digest)
    assert len(digests) == 4


@pytest.mark.parametrize(
    ("images", "error", "message"),
    [
        (torch.zeros(2, 3, 8, 8, dtype=torch.uint8), TypeError, "floating-point"),
        ([1.0], TypeError, "list"),
        (torch.zeros(3, 3, 8, 8), ValueError, r"\(2, 1 or 3, H, W\); got shape \(3, 3, 8, 8\)"),
        (torch.zeros(2, 4, 8, 8), ValueError, "got shape"),
        (torch.full((2, 3, 8, 8), torch.nan), ValueError, "384 NaN or infinite"),
        (torch.full((2, 3, 8, 8), 1.5), ValueError, r"\[−1, 1\]; got values from 1.5 to 1.5"),
        (torch.full((2, 3, 8, 8), 255.0), ValueError, r"rescale"),
    ],
)
def test_what_is_no_image_is_refused(images: object, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        check_images(images, 2)


def test_images_come_back_in_float32_without_a_graph() -> None:
    images = torch.zeros(2, 1, 8, 8, dtype=torch.float64, requires_grad=True)
    checked = check_images(images, 2)
    assert checked.dtype == torch.float32
    assert not checked.requires_grad


def test_levels_are_rounded_as_diffusers_rounds_them() -> None:
    from diffusers.image_processor import VaeImageProcessor

    images = torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(0)) * 2 - 1
    numpy = VaeImageProcessor.pt_to_numpy(VaeImageProcessor.denormalize(images))
    assert torch.equal(to_uint8(images), torch.from_numpy((numpy * 255).round().astype("uint8")).permute(0, 3, 1, 2))
