"""Models go in and out as ordinary diffusers pipelines, and the commands survive interruption."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from diffusers import DDPMPipeline

from isodiff.cli import main
from isodiff.diffusion.pretrained import build_pipeline, build_unet, load_pipeline, save_pipeline

SMALL = ["--dataset", "digits", "--batch-size", "2", "--device", "cpu", "--checkpoint-every", "2"]


def _pretrain(output: Path, *options: str) -> list[str]:
    return [
        "pretrain",
        "--architecture",
        "digits16",
        "--output",
        str(output),
        "--num-steps",
        "3",
        *SMALL,
        *options,
    ]


def _finetune(base: Path, output: Path, *options: str) -> list[str]:
    return [
        "finetune",
        "--base",
        str(base),
        "--output",
        str(output),
        "--num-steps",
        "2",
        "--p",
        "0",
        *SMALL,
        *options,
    ]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("models") / "base"
    assert main(_pretrain(output)) == 0
    return output


def test_the_result_is_an_ordinary_pipeline(base: Path) -> None:
    assert sorted(p.name for p in base.iterdir()) == [
        "model_index.json",
        "scheduler",
        "training.json",
        "unet",
    ]
    assert [p.name for p in (base / "unet").iterdir() if p.suffix != ".json"] == ["diffusion_pytorch_model.safetensors"]
    code = (
        "import sys; from diffusers import DDPMPipeline; p = DDPMPipeline.from_pretrained(sys.argv[1]);"
        "p.set_progress_bar_config(disable=True); print(p(num_inference_steps=2, output_type='np').images.shape);"
        "assert not any(m.startswith('isodiff') for m in sys.modules)"
    )
    shown = subprocess.run([sys.executable, "-c", code, str(base)], capture_output=True, text=True, check=True)
    assert shown.stdout.split("\n")[0] == "(1, 16, 16, 1)"


def test_finetune_records_what_was_done(base: Path, tmp_path: Path) -> None:
    assert main(_finetune(base, tmp_path / "iso", "--lambda-iso", "0.5", "--normalize")) == 0
    record = json.loads((tmp_path / "iso" / "training.json").read_text())
    assert record["config"]["lambda_iso"] == 0.5
    assert record["config"]["normalize"] is True
    assert record["dataset"] == "digits"
    assert record["base"] == str(base)
    assert len(record["curves"]["step"]) == 2
    assert all(value > 0 for value in record["curves"]["isotropy"])
    assert {"isodiff", "torch", "diffusers", "accelerate"} <= record["versions"].keys()
    assert not any(str(base) in file.read_text() for file in (tmp_path / "iso" / "unet").glob("*.json"))
    changed = load_pipeline(tmp_path / "iso").unet.conv_in.weight - load_pipeline(base).unet.conv_in.weight
    assert changed.abs().max() > 0


def test_a_finished_run_is_not_repeated_or_overwritten(base: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = (base / "unet" / "diffusion_pytorch_model.safetensors").stat().st_mtime_ns
    assert main(_pretrain(base)) == 0
    assert (base / "unet" / "diffusion_pytorch_model.safetensors").stat().st_mtime_ns == before
    assert main(_pretrain(base, "--learning-rate", "0.1")) == 2
    assert "learning_rate = 0.0005 there, 0.1 now" in capsys.readouterr().err


def test_a_killed_command_resumes_to_the_same_weights(tmp_path: Path) -> None:
    options = ["--num-steps", "20", "--seed", "7", "--resolution", "8"]
    command = [sys.executable, "-m", "isodiff", *_pretrain(tmp_path / "killed", *options)]
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL, env=os.environ | {"OMP_NUM_THREADS": "1"})
    deadline = time.monotonic() + 120
    while not (tmp_path / "killed" / "checkpoint.safetensors").exists():
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (tmp_path / "killed" / "model_index.json").exists()
    for name in ("killed", "whole"):
        resumed = [sys.executable, "-m", "isodiff", *_pretrain(tmp_path / name, *options)]
        subprocess.run(resumed, check=True, capture_output=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
    weights = [load_pipeline(tmp_path / name).unet.state_dict() for name in ("killed", "whole")]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
    records = [json.loads((tmp_path / name / "training.json").read_text()) for name in ("killed", "whole")]
    assert records[0]["curves"] == records[1]["curves"]


def test_round_trip_is_bit_exact(tmp_path: Path) -> None:
    pipeline = build_pipeline("digits16", seed=4)
    save_pipeline(pipeline, tmp_path / "m")
    save_pipeline(pipeline, tmp_path / "m")  # over an existing model
    loaded = DDPMPipeline.from_pretrained(tmp_path / "m")
    for name, tensor in pipeline.unet.state_dict().items():
        assert torch.equal(tensor, loaded.unet.state_dict()[name])
    assert loaded.scheduler.config.timestep_spacing == "trailing"
    assert not list(tmp_path.glob(".*"))


def test_a_checkpoint_cut_short_is_refused(tmp_path: Path) -> None:
    save_pipeline(build_pipeline("digits16"), tmp_path / "m")
    file = tmp_path / "m" / "unet" / "diffusion_pytorch_model.safetensors"
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    with pytest.raises(ValueError, match=r"cannot load the pipeline in 'm'.*train it again"):
        load_pipeline(tmp_path / "m")


def test_pickled_weights_are_refused(tmp_path: Path) -> None:
    build_pipeline("digits16").save_pretrained(tmp_path / "m", safe_serialization=False)
    with pytest.raises(ValueError, match="cannot load the pipeline"):
        load_pipeline(tmp_path / "m")


def test_unknown_models_are_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"model_index\.json, one shipped here"):
        load_pipeline(tmp_path / "nothing")
    with pytest.raises(ValueError, match="unknown architecture 'vgg'; accepted: faces32, digits16"):
        build_unet("vgg")
    with pytest.raises(ValueError, match="multiple of 4, at least 8; got 30"):
        build_unet("digits16", resolution=30)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["pretrain", "--dataset", "cats", "--output", "o"], "unknown dataset 'cats'"),
        (["pretrain", "--dataset", "folder:/nowhere", "--output", "o"], "/nowhere"),
        (
            ["pretrain", "--dataset", "digits", "--architecture", "vgg", "--output", "o"],
            "accepted: faces32, digits16",
        ),
        (
            ["pretrain", "--dataset", "digits", "--output", "o", "--batch-size", "0"],
            "batch_size must be at least 1; got 0",
        ),
        (["pretrain", "--dataset", "digits", "--output", "o", "--device", "quantum"], "quantum"),
        (
            ["finetune", "--base", "nowhere", "--dataset", "faces", "--output", "o"],
            "no diffusers pipeline at 'nowhere'",
        ),
        (
            ["finetune", "--base", "nowhere", "--dataset", "faces", "--output", "o", "--p", "2"],
            "p must lie in [0, 1]; got 2.0",
        ),
    ],
)
def test_bad_commands_end_in_one_line(
    arguments: list[str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(arguments) == 2
    error = capsys.readouterr().err.strip()
    assert message in error
    assert "\n" not in error
    assert not (tmp_path / "o").exists()
