"""Latents by number, the sampler as a map, and what counts as an image."""

import torch
from diffusers.image_processor import VaeImageProcessor
from scipy.stats import kstest

from isodiff.datasets import check_images
from isodiff.diffusion import build_pipeline
from isodiff.metrics.generator import Generator, draw_latents, model_digest, to_uint8

from ..geometry.tensors import refusals

SHAPE = (1, 16, 16)


def test_latents_are_standard_normal_and_functions_of_number_seed_and_stream() -> None:
    assert torch.equal(draw_latents(SHAPE, 4, 7, seed=3), draw_latents(SHAPE, 0, 10, seed=3)[4:7])
    draws = [draw_latents((5000,), 0, 2, seed=0), draw_latents((5000,), 0, 1, seed=1)]
    draws += [draw_latents((5000,), 0, 1, seed=0, stream="pairs")]
    assert (torch.corrcoef(torch.cat(draws)) - torch.eye(4)).abs().max() < 5 / 5000**0.5
    assert kstest(torch.cat(draws).flatten().numpy(), "norm").pvalue > 0.01


def test_the_digest_follows_weights_settings_and_steps() -> None:
    pipeline = build_pipeline("digits16")
    assert model_digest(pipeline) == model_digest(build_pipeline("digits16"))
    digests = {Generator(pipeline, 3).digest, Generator(pipeline, 4).digest}
    pipeline.scheduler.register_to_config(clip_sample=False)
    digests.add(Generator(pipeline, 3).digest)
    pipeline.unet.conv_in.bias.data[0] += 1e-3
    assert len(digests | {Generator(pipeline, 3).digest}) == 4


def test_levels_are_rounded_as_diffusers_rounds_them(generator: torch.Generator) -> None:
    images = torch.rand(2, 3, 8, 8, generator=generator) * 2 - 1
    numpy = VaeImageProcessor.pt_to_numpy(VaeImageProcessor.denormalize(images))
    assert torch.equal(to_uint8(images), torch.from_numpy((numpy * 255).round().astype("uint8")).permute(0, 3, 1, 2))


ONE = torch.ones(2, 3, 8, 8)
test_other_input_is_refused = refusals(
    (lambda: draw_latents(SHAPE, 3, 3, seed=0), "start and stop .* got 3 and 3"),
    (lambda: check_images(ONE.byte(), 2), "floating-point"),
    (lambda: check_images(ONE, 3), r"\(3, 1 or 3, H, W\); got shape \(2, 3, 8, 8\)"),
    (lambda: check_images(ONE * torch.nan, 2), "384 NaN or infinite"),
    (lambda: check_images(1.5 * ONE, 2), r"\[−1, 1\]; got values from 1.5 to 1.5; .*rescale"),
    errors=(ValueError, TypeError),
)
