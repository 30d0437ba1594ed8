"""Isotropy of an encoder, step by step."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest
import torch

from isodiff.diffusion.hspace import encode
from isodiff.diffusion.pretrained import build_pipeline
from isodiff.geometry.isometry import exact_isometry_loss, isotropy
from isodiff.metrics.isotropy import encoder_isotropy


def _images(num: int) -> torch.Tensor:
    return torch.rand(num, 1, 8, 8, generator=torch.Generator().manual_seed(0)) * 2 - 1


def test_estimate_agrees_with_the_dense_oracle() -> None:
    pipeline = build_pipeline("digits16", resolution=8)
    x_0, t = _images(8), 700
    estimates = encoder_isotropy(pipeline.unet, pipeline.scheduler, x_0, t, num_batches=4, num_probes=64, seed=3)
    exact = []
    for index, batch in enumerate(x_0.split(2)):
        eps = torch.randn(batch.shape, generator=torch.Generator().manual_seed(3000 + index))
        x_t = pipeline.scheduler.add_noise(batch, eps, torch.full((2,), t))
        with torch.no_grad():
            loss = exact_isometry_loss(partial(encode, pipeline.unet, t=t), x_t)
        exact.append(isotropy(loss.item(), 64, 48 * 2 * 2))
    np.testing.assert_allclose(estimates, exact, rtol=0.25)
    assert estimates.mean() == pytest.approx(np.mean(exact), rel=0.1)


def test_estimate_is_seeded() -> None:
    pipeline = build_pipeline("digits16", resolution=8)
    measure = partial(encoder_isotropy, pipeline.unet, pipeline.scheduler, _images(4), 500, num_batches=2)
    np.testing.assert_array_equal(measure(seed=1), measure(seed=1))
    assert not np.array_equal(measure(seed=1), measure(seed=2))


@pytest.mark.parametrize(("t", "batches", "message"), [(1000, 2, "0 to 999"), (500, 5, "number of images, 4; got 5")])
def test_bad_input_is_refused(t: int, batches: int, message: str) -> None:
    pipeline = build_pipeline("digits16", resolution=8)
    with pytest.raises(ValueError, match=message):
        encoder_isotropy(pipeline.unet, pipeline.scheduler, _images(4), t, num_batches=batches)
