"""Nothing that was written is lost to a kill, a flipped bit, a full disk, a signal or a loss that is not finite."""

from __future__ import annotations

import copy
import json
import resource
import signal
import sys
import warnings
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from diffusers import DDPMPipeline, DDPMScheduler, UNet2DModel
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import isodiff.datasets
from isodiff.cli import main
from isodiff.datasets.faces import FacesDataset
from isodiff.diffusion.config import FinetuneConfig
from isodiff.diffusion.finetune import TrainingInterrupted, TrainingState, finetune
from isodiff.diffusion.pretrained import load_pipeline, save_pipeline
from isodiff.diffusion.training import train

CONFIG = FinetuneConfig(num_steps=6, batch_size=2, learning_rate=1e-3, lambda_iso=0.1, p=0.0, checkpoint_every=2)
BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


def _tiny(*, dropout: float = 0.0) -> DDPMPipeline:
    """A U-Net of about 14,000 parameters, attention at the bottleneck included."""
    torch.manual_seed(0)
    unet = UNet2DModel(
        sample_size=8,
        block_out_channels=(4, 8),
        norm_num_groups=4,
        layers_per_block=1,
        down_block_types=("DownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "UpBlock2D"),
        dropout=dropout,
    )
    return DDPMPipeline(unet=unet, scheduler=DDPMScheduler())


def _images() -> FacesDataset:
    return FacesDataset(8, num_images=5)


def _run(
    pipeline: DDPMPipeline, file: Path | None, config: FinetuneConfig = CONFIG, *, until: int | None = None
) -> list[TrainingState]:
    """Train to the end, or drop the run while its next step after `until` is under way, as a kill would."""
    run = finetune(pipeline, _images(), config, checkpoint=file, accelerator=Accelerator(cpu=True))
    states = []
    for state in run:
        states.append(state)
        if state.step == until:
            run.close()
            break
    return states


def _weights(pipeline: DDPMPipeline) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in pipeline.unet.parameters()])


def _step(file: Path) -> int:
    with safe_open(file, framework="pt") as opened:
        return int(opened.metadata()["step"])


@pytest.fixture(scope="module")
def whole() -> tuple[torch.Tensor, list[TrainingState]]:
    """Weights and states of the run that nothing disturbs."""
    pipeline = _tiny()
    states = _run(pipeline, None)
    return _weights(pipeline), states


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Directory of a run dropped after step 5: checkpoints of steps 4 and 2."""
    directory = tmp_path_factory.mktemp("written")
    _run(_tiny(), directory / "c.safetensors", until=5)
    return directory


@pytest.fixture
def file(written: Path, tmp_path: Path) -> Path:
    """Return a copy of the newest checkpoint, with the one before beside it."""
    for source in written.iterdir():
        (tmp_path / source.name).write_bytes(source.read_bytes())
    return tmp_path / "c.safetensors"


def test_the_last_two_are_kept(file: Path) -> None:
    assert sorted(p.name for p in file.parent.iterdir()) == ["c.previous.safetensors", "c.safetensors"]
    assert [_step(file), _step(file.with_name("c.previous.safetensors"))] == [4, 2]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        _run(_tiny(), file)
    assert [_step(file), _step(file.with_name("c.previous.safetensors"))] == [6, 4]


def test_a_checkpoint_that_is_gone_is_replaced_by_the_one_before(
    file: Path, whole: tuple[torch.Tensor, list[TrainingState]]
) -> None:
    """As after a kill between the two renames."""
    file.rename(file.with_name(".c.safetensors.partial"))
    pipeline = _tiny()
    with pytest.warns(UserWarning, match=r"c\.safetensors is missing; going on from .*c\.previous.*, step 2"):
        states = _run(pipeline, file)
    assert torch.equal(_weights(pipeline), whole[0])
    assert states == whole[1][2:]
    assert not file.with_name(".c.safetensors.partial").exists()


@given(cut=st.floats(0, 1, exclude_max=True))
@settings(max_examples=5, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_truncated_checkpoint_falls_back(written: Path, tmp_path: Path, cut: float) -> None:
    for source in written.iterdir():
        (tmp_path / source.name).write_bytes(source.read_bytes())
    file = tmp_path / "c.safetensors"
    file.write_bytes(file.read_bytes()[: int(cut * file.stat().st_size)])
    with pytest.warns(UserWarning, match=r"c\.safetensors is damaged \(.+\); going on from .*c\.previous.*, step 2"):
        assert _run(_tiny(), file, until=3)[0].step == 3


@given(where=st.floats(0, 1, exclude_max=True), bit=st.integers(0, 7), header=st.booleans())
@settings(max_examples=12, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_no_flipped_bit_gets_into_the_weights(
    written: Path, tmp_path: Path, where: float, bit: int, header: bool
) -> None:
    """Whatever bit flips, in the header or in the data: what is read is what was written, here or one before."""
    for source in written.iterdir():
        (tmp_path / source.name).write_bytes(source.read_bytes())
    file = tmp_path / "c.safetensors"
    content = bytearray(file.read_bytes())
    size = int.from_bytes(content[:8], "little") + 8 if header else len(content)
    content[int(where * size)] ^= 1 << bit
    expected = {step: load_file(written / name) for step, name in ((5, "c.safetensors"), (3, "c.previous.safetensors"))}
    file.write_bytes(content)
    pipeline = _tiny()
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always", UserWarning)
        run = finetune(pipeline, _Watched(8, num_images=5), CONFIG, checkpoint=file, accelerator=Accelerator(cpu=True))
        _Watched.pipeline = pipeline
        first = next(run).step
        run.close()
    assert first == 3 or not any("damaged" in str(w.message) for w in warned)
    weights = [expected[first][f"weight.{i}"].flatten() for i in range(len(list(pipeline.unet.parameters())))]
    assert torch.equal(_Watched.weights, torch.cat(weights))


class _Watched(FacesDataset):
    """Notes the weights that a run starts from when it asks for the first images."""

    pipeline: DDPMPipeline
    weights: torch.Tensor

    def __getitems__(self, indices: list[int]) -> list[torch.Tensor]:
        type(self).weights = _weights(self.pipeline)
        return super().__getitems__(indices)


def test_a_damaged_file_does_not_take_the_place_of_the_good_one(
    file: Path, whole: tuple[torch.Tensor, list[TrainingState]]
) -> None:
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    pipeline = _tiny()
    with pytest.warns(UserWarning, match=r"its SHA-256 is [0-9a-f]{12}…, and [0-9a-f]{12}… when it was written"):
        _run(pipeline, file, until=5)
    assert [_step(file), _step(file.with_name("c.previous.safetensors"))] == [4, 2]
    _run(pipeline, file)
    assert torch.equal(_weights(pipeline), whole[0])


def test_no_good_checkpoint_is_an_error_that_names_all(file: Path) -> None:
    save_file(load_file(file), file, {"step": "4", "config": "{}"})
    file.with_name("c.previous.safetensors").write_bytes(b"")
    with pytest.raises(
        ValueError,
        match=r"no checkpoint is good: .*/c\.safetensors is damaged \(it carries no SHA-256\); "
        r".*/c\.previous\.safetensors is damaged \(.+\)\. Put a copy in place, or delete them",
    ):
        _run(_tiny(), file)


def test_every_setting_that_differs_is_named(file: Path) -> None:
    other = replace(CONFIG, lambda_iso=0.2, seed=3, checkpoint_every=1, gradient_accumulation_steps=2)
    expected = (
        r"gradient_accumulation_steps = 1 there, 2 now, lambda_iso = 0\.1 there, 0\.2 now, seed = 0 there, 3 now, "
        r"num_images = 5 there, 4 now, dataset = None there, 'faces' now; give those"
    )
    before = file.read_bytes()
    accelerator = Accelerator(cpu=True)
    run = finetune(
        _tiny(),
        FacesDataset(8, num_images=4),
        other,
        checkpoint=file,
        accelerator=accelerator,
        provenance={"dataset": "faces"},
    )
    with pytest.raises(ValueError, match=expected):
        next(run)
    assert file.read_bytes() == before


def test_a_full_disk_loses_nothing(file: Path, whole: tuple[torch.Tensor, list[TrainingState]]) -> None:
    """The kernel refuses the write half way; both files before stay, and the run goes on from them."""
    before = {p.name: p.read_bytes() for p in file.parent.iterdir()}
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    run = finetune(_tiny(), _images(), CONFIG, checkpoint=file, accelerator=Accelerator(cpu=True))
    assert [next(run).step, next(run).step] == [5, 6]
    # Stands for a disk with less room than the file needs: the same call fails at the same place.
    resource.setrlimit(resource.RLIMIT_FSIZE, (file.stat().st_size // 2, hard))
    try:
        with pytest.raises(
            OSError,
            match=r"the checkpoint of step 6 could not be written to .*c\.safetensors \(.*File too large.*\); the last "
            r"good checkpoint is step 4, .*c\.safetensors, and nothing written before is lost\. Make room",
        ):
            next(run)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert {p.name: p.read_bytes() for p in file.parent.iterdir()} == before
    pipeline = _tiny()
    _run(pipeline, file)
    assert torch.equal(_weights(pipeline), whole[0])


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full, a device that is always full")
def test_a_log_on_a_full_disk_is_one_clear_error(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "steps.jsonl").symlink_to("/dev/full")
    with pytest.raises(OSError, match=r"steps\.jsonl could not be written \(.*No space left on device\)"):
        train(_tiny(), _images(), CONFIG, tmp_path / "run", accelerator=Accelerator(cpu=True))


def test_a_loss_that_is_not_finite_leaves_the_checkpoint_alone(file: Path) -> None:
    before = file.read_bytes()
    pipeline = _tiny()
    run = finetune(pipeline, _images(), CONFIG, checkpoint=file, accelerator=Accelerator(cpu=True))
    next(run)
    with torch.no_grad():
        pipeline.unet.conv_out.bias.fill_(float("inf"))
    with pytest.raises(
        FloatingPointError, match=r"step 6: L_dsm = inf.*the last good checkpoint is step 4, .*/c\.safetensors\. Lower"
    ):
        next(run)
    assert file.read_bytes() == before


def test_weights_that_are_not_finite_are_never_written(file: Path) -> None:
    before = file.read_bytes()
    pipeline = _tiny()
    run = finetune(pipeline, _images(), CONFIG, checkpoint=file, accelerator=Accelerator(cpu=True))
    next(run), next(run)
    with torch.no_grad():
        pipeline.unet.conv_out.bias.fill_(float("nan"))
    with pytest.raises(FloatingPointError, match=r"step 6 left weights that are not finite; .* is step 4, .*c\.safe"):
        next(run)
    assert file.read_bytes() == before


def test_dropout_resumes_exactly_and_leaves_global_randomness_alone(tmp_path: Path) -> None:
    straight, resumed = _tiny(dropout=0.3), _tiny(dropout=0.3)
    state = torch.get_rng_state()
    states = _run(straight, None)
    assert torch.equal(torch.get_rng_state(), state)
    assert states != _run(_tiny(), None)  # the dropout is there
    first = _run(copy.deepcopy(resumed), tmp_path / "c", until=4)[:2]
    torch.rand(3)
    assert first + _run(resumed, tmp_path / "c") == states
    assert torch.equal(_weights(resumed), _weights(straight))


class _Signalling(FacesDataset):
    """Sends this process signals while the batch of one step is loaded."""

    signals: tuple[int, ...] = ()
    at, seen = 3, 0

    def __getitems__(self, indices: list[int]) -> list[torch.Tensor]:
        self.seen += 1
        for number in self.signals if self.seen == self.at else ():
            signal.raise_signal(number)  # handled before it returns, where one sent by kill may come late
        return super().__getitems__(indices)


def _signalling(*signals: int) -> _Signalling:
    images = _Signalling(8, num_images=5)
    images.signals = signals
    return images


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_the_run_after_the_step_with_a_checkpoint(
    number: int, tmp_path: Path, whole: tuple[torch.Tensor, list[TrainingState]]
) -> None:
    handler = signal.getsignal(number)
    output, accelerator = tmp_path / "run", Accelerator(cpu=True)
    expected = rf"stopped by {number.name} after step 3 of 6; .*checkpoint\.safetensors is written, run the same again"
    with pytest.raises(TrainingInterrupted, match=expected) as stopped:
        train(_tiny(), _signalling(number), CONFIG, output, accelerator=accelerator)
    assert stopped.value.signal == number
    assert signal.getsignal(number) is handler
    assert _step(output / "checkpoint.safetensors") == 3
    pipeline = train(_tiny(), _images(), CONFIG, output, accelerator=accelerator)
    assert torch.equal(_weights(pipeline), whole[0])
    assert json.loads((output / "training.json").read_text())["curves"]["dsm"] == [state.dsm for state in whole[1]]
    assert not [p.name for p in output.iterdir() if "checkpoint" in p.name or p.suffix == ".jsonl"]


def test_a_second_interrupt_ends_the_run_at_once(tmp_path: Path) -> None:
    images, accelerator = _signalling(signal.SIGINT, signal.SIGINT), Accelerator(cpu=True)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it
    try:
        with pytest.raises(KeyboardInterrupt):
            train(_tiny(), images, CONFIG, tmp_path / "o", accelerator=accelerator)
    finally:
        signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_the_command_ends_in_one_line_and_the_conventional_status(
    number: int, status: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    save_pipeline(_tiny(), tmp_path / "base")
    monkeypatch.setattr(isodiff.datasets, "open_dataset", lambda *_args, **_options: _signalling(number))
    options = {"base": tmp_path / "base", "dataset": "faces", "output": tmp_path / "o", "device": "cpu"}
    options |= {"num-steps": 5, "batch-size": 2}
    arguments = [text for name, value in options.items() for text in (f"--{name}", str(value))]
    assert main(["finetune", *arguments]) == status
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith(f"isodiff: stopped by {number.name} after step 3 of 5; ")
    assert main(["finetune", *arguments, "--seed", "1"]) == 2
    assert "seed = 0 there, 1 now" in capsys.readouterr().err
    monkeypatch.setattr(isodiff.datasets, "open_dataset", lambda *_args, **_options: _images())
    assert main(["finetune", *arguments]) == 0
    assert load_pipeline(tmp_path / "o").unet.config.sample_size == 8


def test_a_line_of_the_log_that_was_cut_short_costs_no_other(tmp_path: Path) -> None:
    """Cut, resumed, interrupted and resumed again: the record still has every step."""
    output, accelerator = tmp_path / "run", Accelerator(cpu=True)
    with pytest.raises(TrainingInterrupted):
        train(_tiny(), _signalling(signal.SIGTERM), CONFIG, output, accelerator=accelerator)
    log = output / "steps.jsonl"
    log.write_bytes(log.read_bytes() + b'\n{"step": 4, "ds')
    images = _signalling(signal.SIGTERM)
    images.at = 2
    with pytest.raises(TrainingInterrupted):
        train(_tiny(), images, CONFIG, output, accelerator=accelerator)
    train(_tiny(), _images(), CONFIG, output, accelerator=accelerator)
    assert json.loads((output / "training.json").read_text())["curves"]["step"] == [1, 2, 3, 4, 5, 6]


@pytest.mark.skipif(sys.platform == "win32", reason="needs fork")
def test_three_kills_change_no_bit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(BENCHMARKS)
    from kill_and_resume import kill_and_resume

    lines = []
    assert kill_and_resume(tmp_path, kills=3, num_steps=12, show=lines.append) == 0
    assert [line for line in lines if line.startswith("kill ")][-1].startswith("kill 3/3: ")
    assert lines[-1].endswith("ended, equal bit by bit")
