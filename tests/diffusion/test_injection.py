"""The encoder is the first half of the U-Net, exactly; injection changes nothing where nothing is injected."""

import math
from collections.abc import Callable, Iterator
from functools import partial

import pytest
import torch
from diffusers import DDIMScheduler, DDPMPipeline
from torch import Tensor, nn
from torch.nn.functional import cosine_similarity, normalize

from isodiff.diffusion.hspace import bottleneck_hook, encode
from isodiff.diffusion.injection import blend, inject
from isodiff.diffusion.models import load_pipeline
from isodiff.diffusion.process import ddim_sample, ddim_trajectory

from ..geometry.tensors import refusals
from .tiny import noise, tiny_unet

STEPS = 4  # 999, 749, 499, 249
latents = partial(noise, 2, 1, 16, 16)
close = partial(torch.testing.assert_close, atol=1e-4, rtol=0)


@pytest.fixture(scope="module")
def pipeline() -> DDPMPipeline:
    return load_pipeline("digits16/base")


@pytest.fixture(autouse=True)
def _without_gradients() -> Iterator[None]:
    with torch.no_grad():
        yield


def run(pipeline: DDPMPipeline, x: Tensor, donor: Tensor, **options: object) -> Tensor:
    return inject(pipeline.unet, pipeline.scheduler, x, donor, STEPS, **{"gamma": 0.3, "form": "slerp"} | options)


def plain(pipeline: DDPMPipeline, x: Tensor) -> Tensor:
    return ddim_sample(pipeline.unet, pipeline.scheduler, x, STEPS)


@pytest.mark.parametrize("asymmetric", [True, False])
@pytest.mark.parametrize(("form", "gamma", "donor"), [("add", 0.0, 1), ("slerp", 0.0, 1), ("slerp", 0.7, 0)])
def test_nothing_changes_without_strength_or_from_oneself(
    pipeline: DDPMPipeline, form: str, gamma: float, donor: int, asymmetric: bool
) -> None:
    images = run(pipeline, latents(), latents(seed=donor), gamma=gamma, form=form, asymmetric=asymmetric)
    close(images, plain(pipeline, latents()))


@pytest.mark.parametrize("asymmetric", [True, False])
def test_an_edited_step_is_its_equation(pipeline: DDPMPipeline, asymmetric: bool) -> None:
    """x_s = √ᾱ_s x̂₀(h̃) + √(1−ᾱ_s) ε, ε at h or h̃, written out for the first of four steps; others are not edited."""
    unet, scheduler, x, donor = pipeline.unet, pipeline.scheduler, latents(), latents(seed=1)
    edited_h = encode(unet, x, 999) + 1.5 * encode(unet, donor, 999)
    with bottleneck_hook(unet, lambda _: edited_h):
        edited = unet(x, 999).sample
    now, then = scheduler.alphas_cumprod[999], scheduler.alphas_cumprod[749]
    clean = ((x - (1 - now).sqrt() * edited) / now.sqrt()).clamp(-1, 1)
    x_s = then.sqrt() * clean + (1 - then).sqrt() * (unet(x, 999).sample if asymmetric else edited)
    ddim = DDIMScheduler.from_config(scheduler.config)
    ddim.set_timesteps(STEPS)
    for t in ddim.timesteps[1:]:
        x_s = ddim.step(unet(x_s, t).sample, t, x_s).prev_sample
    close(run(pipeline, x, donor, gamma=1.5, form="add", t_edit=999, asymmetric=asymmetric), x_s)


def test_the_donor_is_read_along_its_own_trajectory(pipeline: DDPMPipeline) -> None:
    """At γ = 1 in the form slerp, what the decoder receives points where the donor's own h does, step by step."""
    steps = ddim_trajectory(pipeline.unet, pipeline.scheduler, latents(seed=1), STEPS)
    expected = [encode(pipeline.unet, x_t, t) for t, x_t, _ in steps]
    received: list[Tensor] = []
    handle = pipeline.unet.up_blocks[0].register_forward_pre_hook(lambda _, inputs: received.append(inputs[0]))
    run(pipeline, latents(), latents(seed=1), gamma=1.0, asymmetric=False)
    handle.remove()
    for edited, h in zip(received[1::2], expected, strict=True):  # the donor and the receiver take turns
        close(cosine_similarity(edited.flatten(1), h.flatten(1)), torch.ones(2))


def test_nothing_is_edited_below_t_edit(pipeline: DDPMPipeline) -> None:
    """Limits between the same two steps give the same images."""
    early, same, late = (run(pipeline, latents(), latents(seed=1), t_edit=t) for t in (500, 749, 499))
    assert torch.equal(early, same)
    assert not torch.allclose(early, late, atol=1e-3)


def test_slerp_of_features_keeps_the_norm_of_the_receiver() -> None:
    h, donor = (noise(3, 4, 2, 2, seed=seed, dtype=torch.float64) for seed in (0, 1))
    norm = blend(h, 7 * donor, 0.3, "slerp").flatten(1).norm(dim=1)
    torch.testing.assert_close(norm, h.flatten(1).norm(dim=1))
    whole = blend(h, 7 * donor, 1.0, "slerp").flatten(1)
    torch.testing.assert_close(normalize(whole), normalize(donor.flatten(1)))
    torch.testing.assert_close(blend(h, donor, 1.5, "add"), h + 1.5 * donor)


def test_the_model_is_left_without_hooks_also_after_an_error(pipeline: DDPMPipeline) -> None:
    handle = pipeline.unet.conv_out.register_forward_pre_hook(lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        run(pipeline, latents(), latents(seed=1))
    handle.remove()
    assert not pipeline.unet.mid_block._forward_hooks


def attempt(**options: object) -> Callable[[], Tensor]:
    return lambda: run(load_pipeline("digits16/base"), **{"x": latents(), "donor": latents(seed=1)} | options)


test_bad_input_is_refused = refusals(
    (attempt(gamma=math.nan), "gamma must be finite, .*; got nan"),
    (attempt(gamma=1.5), r"gamma must be finite, and in \[0, 1\] in the form 'slerp'; got 1.5"),
    (attempt(form="lerp"), "form must be one of .*add.*slerp.*; got 'lerp'"),
    (attempt(t_edit=1000), "0 to 999; got 1000"),
    (attempt(x=torch.zeros(2, 1, 32, 32)), r"x_T must have the shape \(B, 1, 16, 16\).*got \(2, 1, 32, 32\)"),
    (attempt(donor=torch.zeros(3, 1, 16, 16)), r"x_T_donor must have the shape of x_T, \(2, 1, 16, 16\); got \(3,"),
    (attempt(donor=torch.full((2, 1, 16, 16), math.nan)), "x_T_donor must be floating-point and finite"),
)


ATTENTION = {"down_block_types": ("DownBlock2D", "AttnDownBlock2D"), "up_block_types": ("AttnUpBlock2D", "UpBlock2D")}
SKIP = {"down_block_types": ("SkipDownBlock2D",) * 2, "up_block_types": ("SkipUpBlock2D",) * 2}
SKIP |= {"block_out_channels": (8, 16), "norm_num_groups": 8}
LAYOUTS = {"plain": {}, "attention": ATTENTION, "skip": SKIP, "centred": {"center_input_sample": True}}


@torch.no_grad()
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("t", [700, torch.tensor([3, 400, 999])])
def test_encode_is_what_a_hook_on_the_mid_block_sees_and_replaces(layout: str, t: Tensor | int) -> None:
    unet, x, seen = tiny_unet(**LAYOUTS[layout]), noise(3, 3, 8, 8), []
    with bottleneck_hook(unet, seen.append):
        watched = unet(x, t).sample
    torch.testing.assert_close(encode(unet, x, t), seen[0], atol=0, rtol=0)
    torch.testing.assert_close(watched, unet(x, t).sample, atol=0, rtol=0)
    with bottleneck_hook(unet, lambda h: 9 * torch.ones_like(h)):
        assert not torch.allclose(unet(x, t).sample, watched, atol=1e-3)
    unet.up_blocks = unet.conv_out = None
    assert encode(unet, x, t).shape == seen[0].shape, "the decoder is not run"


X = torch.zeros(1, 3, 8, 8)
test_what_cannot_be_encoded_is_refused = refusals(
    (lambda: encode(tiny_unet(), torch.zeros(1, 1, 8, 8), 0), r"\(B, 3, H, W\).*\(1, 1, 8, 8\)"),
    (lambda: encode(tiny_unet(), X.expand(2, -1, -1, -1), torch.tensor([1, 2, 3])), r"one per row \(2\).*\(3,\)"),
    (lambda: encode(tiny_unet(mid_block_type=None), X, 0), "no mid block"),
    (lambda: encode(tiny_unet(num_class_embeds=3), X, 0), "class-conditional"),
    (lambda: encode(nn.Linear(1, 1), X, 0), "UNet2DModel; Linear has no conv_in"),
    errors=(ValueError, TypeError),
)
