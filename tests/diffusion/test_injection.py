"""Injection changes nothing where nothing is injected, and leaves the model as it was."""

from __future__ import annotations

import math
from collections.abc import Iterator

import pytest
import torch
from diffusers import DDIMScheduler, DDPMPipeline
from torch import Tensor

from isodiff.diffusion.hspace import bottleneck_hook, encode
from isodiff.diffusion.injection import blend, inject
from isodiff.diffusion.models import build_unet, load_pipeline
from isodiff.diffusion.process import ddim_sample, ddim_trajectory

STEPS = 4


@pytest.fixture(scope="module")
def pipeline() -> DDPMPipeline:
    return load_pipeline("digits16/base")


@pytest.fixture(autouse=True)
def _without_gradients() -> Iterator[None]:
    with torch.no_grad():
        yield


def latents(seed: int, count: int = 2) -> Tensor:
    return torch.randn(count, 1, 16, 16, generator=torch.Generator().manual_seed(seed))


def run(pipeline: DDPMPipeline, x: Tensor, donor: Tensor, **options: object) -> Tensor:
    return inject(pipeline.unet, pipeline.scheduler, x, donor, STEPS, **{"gamma": 0.3, "form": "slerp"} | options)


def plain(pipeline: DDPMPipeline, x: Tensor) -> Tensor:
    return ddim_sample(pipeline.unet, pipeline.scheduler, x, STEPS)


@pytest.mark.parametrize("asymmetric", [True, False])
@pytest.mark.parametrize("form", ["add", "slerp"])
def test_nothing_changes_without_strength(pipeline: DDPMPipeline, form: str, asymmetric: bool) -> None:
    for seed in (1, 2):
        images = run(pipeline, latents(0), latents(seed), gamma=0.0, form=form, asymmetric=asymmetric)
        torch.testing.assert_close(images, plain(pipeline, latents(0)), atol=1e-4, rtol=0)


@pytest.mark.parametrize("asymmetric", [True, False])
@pytest.mark.parametrize("gamma", [0.0, 0.3, 1.0])
def test_slerp_from_oneself_changes_nothing(pipeline: DDPMPipeline, gamma: float, asymmetric: bool) -> None:
    images = run(pipeline, latents(0), latents(0), gamma=gamma, asymmetric=asymmetric)
    torch.testing.assert_close(images, plain(pipeline, latents(0)), atol=1e-4, rtol=0)


@pytest.mark.parametrize(("form", "gamma"), [("add", 1.5), ("slerp", 0.3)])
def test_a_donor_changes_the_image_and_which_donor_matters(pipeline: DDPMPipeline, form: str, gamma: float) -> None:
    one, other = (run(pipeline, latents(0), latents(seed), gamma=gamma, form=form) for seed in (1, 2))
    assert (one - plain(pipeline, latents(0))).abs().max() > 0.05
    assert (one - other).abs().max() > 0.05
    assert one.abs().max() <= 1  # the scheduler's clipping holds for the edited estimates, too


def test_one_edited_step_is_the_asymmetric_equation(pipeline: DDPMPipeline) -> None:
    """x_s = √ᾱ_s x̂₀(h̃) + √(1−ᾱ_s) ε(h), written out for the first of four steps; the others are not edited."""
    unet, scheduler, x, donor = pipeline.unet, pipeline.scheduler, latents(0), latents(1)
    edited_h = encode(unet, x, 999) + 1.5 * encode(unet, donor, 999)
    with bottleneck_hook(unet, lambda _: edited_h):
        edited = unet(x, 999).sample
    now, then = scheduler.alphas_cumprod[999], scheduler.alphas_cumprod[749]
    clean = ((x - (1 - now).sqrt() * edited) / now.sqrt()).clamp(-1, 1)
    x_s = then.sqrt() * clean + (1 - then).sqrt() * unet(x, 999).sample
    ddim = DDIMScheduler.from_config(scheduler.config)
    ddim.set_timesteps(STEPS)
    for t in ddim.timesteps[1:]:
        x_s = ddim.step(unet(x_s, t).sample, t, x_s).prev_sample
    images = run(pipeline, x, donor, gamma=1.5, form="add", t_edit=999)
    torch.testing.assert_close(images, x_s, atol=1e-4, rtol=0)


def test_the_symmetric_form_runs_the_edited_model(pipeline: DDPMPipeline) -> None:
    """With the donor's h at its own steps put in by hand, every step is the plain sampler's."""
    unet, x, donor = pipeline.unet, latents(0), latents(1)
    features: list[Tensor] = []
    with bottleneck_hook(unet, features.append):
        plain(pipeline, donor)
    ddim = DDIMScheduler.from_config(pipeline.scheduler.config)
    ddim.set_timesteps(STEPS)
    by_hand = x
    for t, h_donor in zip(ddim.timesteps, features, strict=True):
        h = encode(unet, by_hand, t) - 0.5 * h_donor
        with bottleneck_hook(unet, lambda _, h=h: h):
            by_hand = ddim.step(unet(by_hand, t).sample, t, by_hand).prev_sample
    images = run(pipeline, x, donor, gamma=-0.5, form="add", asymmetric=False)
    torch.testing.assert_close(images, by_hand, atol=1e-4, rtol=0)


def test_nothing_is_edited_below_t_edit(pipeline: DDPMPipeline) -> None:
    """The steps are 999, 749, 499, 249: limits between the same two steps give the same images."""
    early = run(pipeline, latents(0), latents(1), t_edit=500)
    assert torch.equal(early, run(pipeline, latents(0), latents(1), t_edit=749))
    assert not torch.allclose(early, run(pipeline, latents(0), latents(1), t_edit=499), atol=1e-3)
    assert torch.equal(run(pipeline, latents(0), latents(1), t_edit=0), run(pipeline, latents(0), latents(1)))


def test_slerp_of_features_keeps_the_norm_of_the_receiver() -> None:
    h, donor = (torch.randn(3, 4, 2, 2, generator=torch.Generator().manual_seed(i)).double() for i in (0, 1))
    for gamma in (0.0, 0.3, 1.0):
        norm = blend(h, 7 * donor, gamma, "slerp").flatten(1).norm(dim=1)
        torch.testing.assert_close(norm, h.flatten(1).norm(dim=1))
    whole = blend(h, 7 * donor, 1.0, "slerp").flatten(1)
    torch.testing.assert_close(whole / whole.norm(dim=1, keepdim=True), torch.nn.functional.normalize(donor.flatten(1)))
    torch.testing.assert_close(blend(h, donor, 1.5, "add"), h + 1.5 * donor)


def test_the_model_is_left_without_hooks_also_after_an_error(pipeline: DDPMPipeline) -> None:
    run(pipeline, latents(0), latents(1))
    assert not pipeline.unet.mid_block._forward_hooks
    unet = build_unet("digits16")
    unet.conv_out.register_forward_pre_hook(lambda *_: (_ for _ in ()).throw(RuntimeError("stopped on the way")))
    with pytest.raises(RuntimeError, match="stopped on the way"):
        inject(unet, pipeline.scheduler, latents(0), latents(1), STEPS, gamma=0.3)
    assert not unet.mid_block._forward_hooks

    def fail(h: Tensor) -> Tensor:
        raise KeyError("from the edit")

    with pytest.raises(KeyError, match="from the edit"), bottleneck_hook(pipeline.unet, fail):
        pipeline.unet(latents(0), 5)
    assert not pipeline.unet.mid_block._forward_hooks


def test_rows_are_paired(pipeline: DDPMPipeline) -> None:
    together = run(pipeline, latents(0), latents(1))
    alone = run(pipeline, latents(0)[1:], latents(1)[1:])
    torch.testing.assert_close(together[1:], alone, atol=1e-4, rtol=0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"gamma": math.nan}, "gamma must be finite; got nan"),
        ({"gamma": math.inf, "form": "add"}, "gamma must be finite; got inf"),
        ({"gamma": 1.5}, r"gamma must lie in \[0, 1\] in the form 'slerp'; got 1.5"),
        ({"gamma": -0.1}, r"gamma must lie in \[0, 1\]"),
        ({"form": "lerp"}, "form must be one of .*add.*slerp.*; got 'lerp'"),
        ({"t_edit": 1000}, "0 to 999; got 1000"),
        ({"t_edit": -1}, "0 to 999; got -1"),
        ({"t_edit": 0.5}, "integer steps 0 to 999; got 0.5"),
        ({"x": torch.zeros(2, 1, 32, 32)}, r"x_T must have the shape \(B, 1, 16, 16\).*got \(2, 1, 32, 32\)"),
        ({"donor": torch.zeros(2, 3, 16, 16)}, r"x_T_donor must have the shape \(B, 1, 16, 16\)"),
        ({"donor": torch.zeros(3, 1, 16, 16)}, r"x_T_donor must have the shape of x_T, \(2, 1, 16, 16\); got \(3,"),
        ({"donor": torch.full((2, 1, 16, 16), math.nan)}, "x_T_donor must be floating-point and finite"),
    ],
)
def test_bad_input_is_refused(pipeline: DDPMPipeline, options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        run(pipeline, **{"x": latents(0), "donor": latents(1)} | options)


def test_models_without_a_bottleneck_are_refused(pipeline: DDPMPipeline) -> None:
    unet = build_unet("digits16")
    unet.mid_block = None
    with pytest.raises(ValueError, match="no mid block"):
        inject(unet, pipeline.scheduler, latents(0), latents(1), STEPS, gamma=0.3)


def test_the_donor_is_read_along_its_own_trajectory(pipeline: DDPMPipeline) -> None:
    """At γ = 1 in the form slerp, what the decoder receives points where the donor's own h does, step by step."""
    steps = ddim_trajectory(pipeline.unet, pipeline.scheduler, latents(1), STEPS)
    expected = [encode(pipeline.unet, x_t, t) for t, x_t, _ in steps]
    received: list[Tensor] = []
    handle = pipeline.unet.up_blocks[0].register_forward_pre_hook(lambda _, inputs: received.append(inputs[0]))
    run(pipeline, latents(0), latents(1), gamma=1.0, asymmetric=False)
    handle.remove()
    for edited, h in zip(received[1::2], expected, strict=True):  # the donor and the receiver take turns
        cosine = torch.nn.functional.cosine_similarity(edited.flatten(1), h.flatten(1))
        torch.testing.assert_close(cosine, torch.ones(2), atol=1e-4, rtol=0)
