r"""Content injection: one image's bottleneck features blended into the sampling of another.

The donor is sampled from x'_T, and its features h'_t are kept; the receiver is sampled from x_T with h̃_t in the place
of its own h_t, at the steps t ≥ t_edit. There are two ways to blend:

    add    h̃ = h + γ h'                            (App. G, Hahm et al. 2024, with γ = 1.5)
    slerp  h̃ = slerp(h, h' ‖h‖ / ‖h'‖, γ)          (Jeong et al. 2024, InjectFusion, with γ ≈ 0.3)

The second keeps the norm of h. An edit of the whole noise estimate nearly cancels (Kwon et al. 2023). Hence the
asymmetric step of InjectFusion (without its calibration and noise) takes only x̂₀ from the edited model:
x_s = √ᾱ_s x̂₀(x_t, h̃_t) + √(1 − ᾱ_s) ε_θ(x_t, h_t).
"""

import math
from typing import Literal, get_args

import torch
from diffusers import SchedulerMixin, UNet2DModel
from torch import Tensor

from isodiff.diffusion.hspace import bottleneck_hook, check_latents
from isodiff.diffusion.process import NoiseSchedule, ddim_step, ddim_trajectory, predict
from isodiff.geometry import slerp

Form = Literal["add", "slerp"]


@torch.no_grad()
def inject(
    unet: UNet2DModel,
    scheduler: SchedulerMixin,
    x_T: Tensor,
    x_T_donor: Tensor,
    num_steps: int,
    *,
    gamma: float,
    form: Form = "add",
    t_edit: int = 0,
    asymmetric: bool = True,
) -> Tensor:
    """Sample the receiver with the donor's bottleneck features blended into its own.

    Latents are (B, C, H, W). γ is any finite number for "add", 0 … 1 for "slerp", which is of a row's whole features;
    InjectFusion's `t_edit` is 400 to 500. Without `asymmetric` the edited model takes the whole step.
    """
    check_latents(unet, x_T, "x_T")
    check_latents(unet, x_T_donor, "x_T_donor")
    if x_T.shape != x_T_donor.shape:
        raise ValueError(f"x_T_donor must have the shape of x_T, {tuple(x_T.shape)}; got {tuple(x_T_donor.shape)}")
    if form not in get_args(Form):
        raise ValueError(f"form must be one of {get_args(Form)}; got {form!r}")
    if not math.isfinite(gamma) or (form == "slerp" and not 0 <= gamma <= 1):
        raise ValueError(f"gamma must be finite, and in [0, 1] in the form 'slerp'; got {gamma}")
    schedule = NoiseSchedule.of(scheduler)
    schedule.check_steps(t_edit)
    donor = ddim_trajectory(unet, scheduler, x_T_donor, num_steps)

    def predict_edited(x: Tensor, t: int) -> Tensor:
        features: list[Tensor] = []
        with bottleneck_hook(unet, features.append):  # append returns None: the donor's h stays as it is
            next(donor)
        with bottleneck_hook(unet, lambda h: blend(h, features[0], gamma, form)):
            return predict(unet, x, t)

    x = x_T
    for t, s in schedule.steps(num_steps):
        edited = predict_edited(x, t) if t >= t_edit else None
        clean = None if edited is None else schedule.split(edited, x, t)[0]
        prediction = predict(unet, x, t) if edited is None or asymmetric else edited
        x = ddim_step(schedule, prediction, x, t, s, clean)
    return x


def blend(h: Tensor, donor: Tensor, gamma: float, form: Form) -> Tensor:
    """Return the blended features h̃ (B, *S) of two of that shape, "add" or "slerp" as the module defines them."""
    if form == "add":
        return h + gamma * donor
    norm, donor_norm = (features.flatten(1).norm(dim=1).view(-1, *[1] * (h.ndim - 1)) for features in (h, donor))
    return slerp(h, donor * (norm / donor_norm), gamma)
