"""The loop optimises Eq. 7, and the same run gives the same weights however it is cut."""

from __future__ import annotations

import copy
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import ClassVar

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from diffusers import DDPMPipeline, UNet2DModel

from isodiff.datasets.faces import FacesDataset
from isodiff.diffusion.config import FinetuneConfig
from isodiff.diffusion.finetune import TrainingState, finetune
from isodiff.diffusion.hspace import encode
from isodiff.diffusion.pretrained import build_pipeline
from isodiff.diffusion.regularizer import draw_regularised_step
from isodiff.geometry.isometry import exact_isometry_loss

CONFIG = FinetuneConfig(
    num_steps=4, batch_size=4, learning_rate=1e-3, lambda_iso=0.1, normalize=True, checkpoint_every=2
)


@pytest.fixture
def pipeline() -> DDPMPipeline:
    return build_pipeline("digits16", resolution=8, channels=3)


@pytest.fixture
def images() -> FacesDataset:
    return FacesDataset(8, num_images=10)


def _run(
    pipeline: DDPMPipeline, images: FacesDataset, config: FinetuneConfig, **options: object
) -> list[TrainingState]:
    return list(finetune(pipeline, images, config, accelerator=Accelerator(cpu=True), **options))


def _weights(pipeline: DDPMPipeline) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in pipeline.unet.parameters()])


def test_the_isometry_term_moves_the_encoder(pipeline: DDPMPipeline, images: FacesDataset) -> None:
    """From one start, λ > 0 and λ = 0 see the same L_dsm at the first step; then the encoders part."""
    control = copy.deepcopy(pipeline)
    config = replace(CONFIG, num_steps=1, p=0.0, ema_decay=0.0)
    ours, theirs = _run(pipeline, images, config), _run(control, images, replace(config, lambda_iso=0.0))
    assert ours[0].dsm == theirs[0].dsm
    assert ours[0].isometry is not None
    assert theirs[0].isometry is None
    changed = {
        name.split(".")[0]
        for (name, p), q in zip(pipeline.unet.named_parameters(), control.unet.parameters(), strict=True)
        if not torch.equal(p, q)
    }
    assert {"conv_in", "down_blocks", "mid_block"} <= changed


def test_the_regulariser_makes_the_encoder_more_isometric(images: FacesDataset) -> None:
    pipeline = build_pipeline("digits16", resolution=8, channels=3)
    x = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(1))

    def measured() -> float:
        with torch.no_grad():
            return exact_isometry_loss(lambda y: encode(pipeline.unet, y, 800), x).item()

    before = measured()
    _run(pipeline, images, replace(CONFIG, num_steps=40, lambda_iso=1.0, p=0.5, batch_size=8))
    assert measured() < 0.8 * before


def test_a_resumed_run_equals_the_uninterrupted_one(
    pipeline: DDPMPipeline, images: FacesDataset, tmp_path: Path
) -> None:
    interrupted, config = (
        copy.deepcopy(pipeline),
        replace(CONFIG, warmup_steps=2, lr_scheduler="cosine", p=0.2, horizontal_flip=True),
    )
    states = _run(pipeline, images, config)

    partial = finetune(interrupted, images, config, checkpoint=tmp_path / "c", accelerator=Accelerator(cpu=True))
    first = [next(partial) for _ in range(3)]  # stopped one step after the checkpoint of step 2
    partial.close()
    resumed = build_pipeline("digits16", resolution=8, channels=3, seed=99)
    second = _run(resumed, images, config, checkpoint=tmp_path / "c")

    assert first[:2] + second == states
    assert torch.equal(_weights(resumed), _weights(pipeline))


def test_a_run_depends_on_its_seed_alone(pipeline: DDPMPipeline, images: FacesDataset) -> None:
    again, other = copy.deepcopy(pipeline), copy.deepcopy(pipeline)
    states = _run(pipeline, images, CONFIG)
    torch.randn(7)  # the global generator plays no part
    assert _run(again, images, CONFIG) == states
    assert _run(other, images, replace(CONFIG, seed=1)) != states


def test_every_image_is_seen_once_an_epoch(pipeline: DDPMPipeline) -> None:
    class Counting(FacesDataset):
        seen: ClassVar[Counter] = Counter()

        def __getitems__(self, indices: list[int]) -> list[torch.Tensor]:
            self.seen.update(indices)
            return super().__getitems__(indices)

    _run(pipeline, Counting(8, num_images=10), replace(CONFIG, num_steps=5, lambda_iso=0.0))
    assert Counting.seen == dict.fromkeys(range(10), 2)


@pytest.mark.parametrize("p", [0.0, 0.3, 0.5, 0.999, 1.0])
def test_the_indicator_of_equation_7(p: float) -> None:
    """T + 1 > pT: with probability 1 − p, uniform on what is left."""
    generator, horizon, draws = torch.Generator().manual_seed(0), 1000, 20_000
    drawn = [draw_regularised_step(horizon, p, generator) for _ in range(draws)]
    steps = torch.tensor([t for t in drawn if t is not None], dtype=torch.float64)
    assert abs(len(steps) / draws - (1 - p)) <= 4 * (p * (1 - p) / draws) ** 0.5
    if p < 1:
        assert steps.min() + 1 > p * horizon
        width = horizon * (1 - p)
        assert abs(steps.mean() - (horizon - 1 - (width - 1) / 2)) <= 4 * width / 12**0.5 / len(steps) ** 0.5 + 1e-9


def test_normalize_multiplies_by_the_rank(pipeline: DDPMPipeline, images: FacesDataset) -> None:
    rank = min(3 * 8 * 8 - 1, 48 * 2 * 2)
    state = _run(pipeline, images, replace(CONFIG, num_steps=1, p=0.0))[0]
    assert state.isotropy == pytest.approx(rank * state.isometry, rel=1e-6)


def test_v_prediction_trains(images: FacesDataset) -> None:
    pipeline = build_pipeline("digits16", resolution=8, channels=3)
    pipeline.scheduler.register_to_config(prediction_type="v_prediction")
    losses = [
        state.dsm for state in _run(pipeline, images, replace(CONFIG, num_steps=40, lambda_iso=0.0, batch_size=16))
    ]
    assert sum(losses[-10:]) < 0.8 * sum(losses[:10])


def test_mixed_precision_keeps_the_traces_in_float32(images: FacesDataset) -> None:
    exact = _run(build_pipeline("digits16", resolution=8, channels=3), images, replace(CONFIG, num_steps=1, p=0.0))[0]
    AcceleratorState._reset_state(reset_partial_state=True)  # accelerate keeps one precision a process
    accelerator = Accelerator(cpu=True, mixed_precision="bf16")
    pipeline = build_pipeline("digits16", resolution=8, channels=3)
    mixed = next(
        finetune(
            pipeline,
            images,
            replace(CONFIG, num_steps=1, p=0.0, mixed_precision="bf16"),
            accelerator=accelerator,
        )
    )
    AcceleratorState._reset_state(reset_partial_state=True)
    assert mixed.isometry == exact.isometry
    assert mixed.dsm != exact.dsm
    assert mixed.dsm == pytest.approx(exact.dsm, rel=0.02)


def test_a_loss_that_is_not_finite_stops_the_run(pipeline: DDPMPipeline, images: FacesDataset, tmp_path: Path) -> None:
    run = finetune(pipeline, images, CONFIG, checkpoint=tmp_path / "c", accelerator=Accelerator(cpu=True))
    next(run), next(run), next(run)
    with torch.no_grad():
        pipeline.unet.conv_in.weight[0, 0, 0, 0] = float("nan")
    with pytest.raises(FloatingPointError, match=r"step 4: L_dsm = nan.*last good checkpoint is step 2.*learning_rate"):
        next(run)


def test_bad_checkpoints_are_refused(pipeline: DDPMPipeline, images: FacesDataset, tmp_path: Path) -> None:
    file = tmp_path / "c"
    _run(copy.deepcopy(pipeline), images, CONFIG, checkpoint=file)
    with pytest.raises(ValueError, match=r"other settings: lambda_iso = 0\.1 there, 0\.2 now"):
        _run(copy.deepcopy(pipeline), images, replace(CONFIG, lambda_iso=0.2), checkpoint=file)
    other = build_pipeline("digits16", resolution=8, channels=3)
    blocks = {"down_block_types": ("DownBlock2D",) * 2, "up_block_types": ("UpBlock2D",) * 2}
    other.unet = UNet2DModel(sample_size=8, block_out_channels=(8, 16), norm_num_groups=4, **blocks)
    with pytest.raises(ValueError, match="another architecture"):
        _run(other, images, CONFIG, checkpoint=file)
    for one in (file, tmp_path / "c.previous"):
        one.write_bytes(one.read_bytes()[:-100])
    with pytest.raises(ValueError, match=r"no checkpoint is good: .*damaged.*damaged"):
        _run(copy.deepcopy(pipeline), images, CONFIG, checkpoint=file)


def test_images_that_do_not_fit_the_model_are_refused(pipeline: DDPMPipeline) -> None:
    with pytest.raises(ValueError, match=r"\(3, 16, 16\); this model needs \(3, 8, 8\)"):
        _run(pipeline, FacesDataset(16, num_images=4), CONFIG)


def test_a_model_without_a_bottleneck_is_refused(pipeline: DDPMPipeline, images: FacesDataset) -> None:
    pipeline.unet.mid_block = None
    with pytest.raises(ValueError, match="no mid block"):
        _run(pipeline, images, CONFIG)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("num_steps", 0, "at least 1; got 0"),
        ("batch_size", -2, "at least 1; got -2"),
        ("gradient_accumulation_steps", 0, "at least 1; got 0"),
        ("learning_rate", 0.0, "positive and finite; got 0.0"),
        ("learning_rate", float("nan"), "got nan"),
        ("lambda_iso", -1e-4, "at least 0 and finite; got -0.0001"),
        ("lambda_iso", float("inf"), "got inf"),
        ("p", 1.5, r"\[0, 1\]; got 1.5"),
        ("p", float("nan"), r"\[0, 1\]; got nan"),
        ("metric", "hyperbolic", "stereographic, chart_identity, euclidean; got 'hyperbolic'"),
        ("lr_scheduler", "polynomial", "constant, cosine; got 'polynomial'"),
        ("mixed_precision", "fp8", "no, fp16, bf16; got 'fp8'"),
        ("max_grad_norm", -1.0, "positive"),
        ("seed", -1, "at least 0; got -1"),
    ],
)
def test_settings_out_of_range_are_refused(field: str, value: object, message: str) -> None:
    with pytest.raises(ValueError, match=f"{field} must.*{message}"):
        FinetuneConfig(**{field: value})
