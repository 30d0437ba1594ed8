"""Nothing that was written is lost to a kill, a flipped bit, a signal or a loss that is not finite."""

import io
import json
import math
import multiprocessing
import random
import shutil
import signal
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from functools import partial
from itertools import islice
from multiprocessing.process import BaseProcess
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from diffusers import DDPMPipeline
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from isodiff.datasets.faces import FacesDataset
from isodiff.diffusion import Checkpoint, FinetuneConfig, TrainingInterrupted, load_pipeline, read_record
from isodiff.diffusion.finetune import TrainingState, finetune, train
from isodiff.files import data_directory

from .tiny import tiny_ddpm, weights

CONFIG = FinetuneConfig(
    **{"num_steps": 6, "batch_size": 2, "checkpoint_every": 2, "gradient_accumulation_steps": 2},
    **{"learning_rate": 1e-3, "lr_scheduler": "cosine", "warmup_steps": 2, "horizontal_flip": True, "normalize": True},
    **{"lambda_iso": 0.1, "p": 0.2, "regularize_every": 2, "regularize_fraction": 0.5, "isometry_route": "differences"},
)
DIGEST = 32  # bytes of the SHA-256 at the beginning of a checkpoint
WEIGHTS = Path("unet") / "diffusion_pytorch_model.safetensors"
_tiny = partial(tiny_ddpm, dropout=0.3)
Whole = tuple[torch.Tensor, list[TrainingState]]  # weights and states of the run that nothing disturbs


class _Images(FacesDataset):
    """Five faces; sends this process signals while the batch of the third step is loaded."""

    def __init__(self, *signals: int) -> None:
        super().__init__(8, num_images=5)
        self.signals, self.seen = signals, 0

    def __getitems__(self, indices: list[int]) -> list[torch.Tensor]:
        self.seen += len(indices) > 1  # one image is read before, for its shape
        for number in self.signals if self.seen == 3 else ():
            signal.raise_signal(number)  # handled before it returns, where one sent by kill may come late
        return super().__getitems__(indices)


def _start(pipeline: DDPMPipeline, file: Path | None, config: FinetuneConfig = CONFIG) -> Iterator[TrainingState]:
    return finetune(pipeline, _Images(), config, accelerator=Accelerator(cpu=True), checkpoint=file)


def _train(output: Path, config: FinetuneConfig = CONFIG, *signals: int, **facts: str) -> DDPMPipeline:
    options = {"accelerator": Accelerator(cpu=True), "progress": False, "provenance": facts}
    return train(_tiny(), _Images(*signals), config, output, **options)


def _content(file: Path) -> dict:
    return torch.load(io.BytesIO(file.read_bytes()[DIGEST:]), weights_only=True)


def _steps(file: Path) -> list[int]:
    return [_content(path)["step"] for path in (file, file.with_name("c.previous.pt"))]


@pytest.fixture(scope="module")
def whole() -> Whole:
    pipeline = _tiny()
    states = list(_start(pipeline, None))
    return weights(pipeline.unet), states


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Directory of a run dropped after step 5, as by a kill: checkpoints of steps 4 and 2."""
    directory = tmp_path_factory.mktemp("written")
    list(islice(_start(_tiny(), directory / "c.pt"), 5))
    return directory


@pytest.fixture
def file(written: Path, tmp_path: Path) -> Path:
    shutil.copytree(written, tmp_path, dirs_exist_ok=True)
    return tmp_path / "c.pt"


def test_a_run_goes_on_bit_by_bit_and_keeps_its_last_two_checkpoints(file: Path, whole: Whole) -> None:
    """With dropout too; recomputation may be switched on by the way, to fit into another memory."""
    assert sorted(path.name for path in file.parent.iterdir()) == ["c.previous.pt", "c.pt"]
    assert _steps(file) == [4, 2]
    pipeline, state = _tiny(seed=9), torch.get_rng_state()  # other weights, which are replaced
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        assert list(_start(pipeline, file, replace(CONFIG, gradient_checkpointing=True))) == whole[1][4:]
    assert torch.equal(weights(pipeline.unet), whole[0])
    assert torch.equal(torch.get_rng_state(), state), "the global generator is left alone"
    assert _steps(file) == [6, 4]


@given(where=st.floats(0, 1, exclude_max=True), bit=st.integers(-2, 7), header=st.booleans())
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_damaged_checkpoint_falls_back(written: Path, tmp_path: Path, where: float, bit: int, header: bool) -> None:
    """Whatever bit flips or is missing (-1), the whole file too (-2): what is read is what was written one before."""
    shutil.copytree(written, tmp_path, dirs_exist_ok=True)
    file, unet = tmp_path / "c.pt", tiny_ddpm(seed=9).unet
    content, before = bytearray(file.read_bytes()), _content(tmp_path / "c.previous.pt")
    position = int(where * (DIGEST if header else len(content)))
    content[position] ^= 1 << max(bit, 0)
    file.write_bytes(content[:position] if bit == -1 else content)
    if bit == -2:
        file.unlink()
    checkpoint = Checkpoint(file, {"model": unet}, before["settings"], Accelerator(cpu=True))
    why = "c.pt is missing" if bit == -2 else "c.pt is damaged: its SHA-256 is not the one it was written with"
    with pytest.warns(UserWarning, match=rf"{why}; going on from .*c\.previous\.pt, step 2"):
        assert checkpoint.restore() == 2
    assert all(torch.equal(unet.state_dict()[name], tensor) for name, tensor in before["parts"]["model"].items())


def test_a_damaged_file_does_not_take_the_place_of_the_good_one(file: Path, whole: Whole) -> None:
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.warns(UserWarning, match="is damaged"):
        list(islice(_start(_tiny(), file), 3))
    assert _steps(file) == [4, 2]
    assert list(_start(_tiny(), file)) == whole[1][4:]


def test_what_cannot_be_gone_on_from_is_refused(file: Path) -> None:
    before = file.read_bytes()
    other = replace(CONFIG, lambda_iso=0.2, seed=3, checkpoint_every=1, num_workers=1)
    run = finetune(tiny_ddpm(), FacesDataset(8, num_images=4), other, checkpoint=file, provenance={"dataset": "faces"})
    settings = r"lambda_iso = 0\.1 there, 0\.2 now, seed = 0 there, 3 now, num_images = 5 there, 4 now"
    with pytest.raises(ValueError, match=f"other settings: {settings}, dataset = None there, 'faces' now; give those"):
        next(run)
    pipeline = tiny_ddpm()
    pipeline.unet.conv_in = torch.nn.Conv2d(3, 5, 3)
    with pytest.raises(ValueError, match="another architecture"):
        next(_start(pipeline, file))
    assert file.read_bytes() == before


@pytest.mark.parametrize(
    ("steps", "message"),
    [(1, "step 6: L_dsm = nan, L_iso = .*, t = .*, gradient norm = .*;"), (2, "step 6 left weights that are not .*;")],
)
def test_what_is_not_finite_stops_the_run_and_is_not_written(file: Path, steps: int, message: str) -> None:
    before, pipeline = file.read_bytes(), _tiny()
    run = _start(pipeline, file)
    list(islice(run, steps))
    pipeline.unet.conv_out.bias.data.fill_(math.nan)
    told = rf"{message} the last good checkpoint is step 4, .*c\.pt\. Lower learning_rate"
    with pytest.raises(FloatingPointError, match=told):
        next(run)
    assert file.read_bytes() == before


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_the_run_after_the_step_with_a_checkpoint(number: int, tmp_path: Path, whole: Whole) -> None:
    handler, output = signal.getsignal(number), tmp_path / "run"
    expected = rf"stopped by {number.name} after step 3 of 6; the last good checkpoint is step 3, .*checkpoint\.pt"
    with pytest.raises(TrainingInterrupted, match=expected) as stopped:
        _train(output, CONFIG, number)
    assert stopped.value.signal == number
    assert signal.getsignal(number) is handler
    assert _content(output / "checkpoint.pt")["step"] == 3
    with pytest.raises(TrainingInterrupted, match="after step 6 of 6"):
        _train(output, CONFIG, number)
    assert torch.equal(weights(_train(output).unet), whole[0])
    told = {name: [asdict(state)[name] for state in whole[1]] for name in ("dsm", "anisotropy", "grad_norm")}
    assert read_record(output / "training.json")["curves"] == {"step": [1, 2, 3, 4, 5, 6], **told}
    assert not list(output.glob("*checkpoint*"))


def test_a_second_interrupt_ends_the_run_at_once(tmp_path: Path) -> None:
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it
    with pytest.raises(KeyboardInterrupt):
        _train(tmp_path / "o", CONFIG, signal.SIGINT, signal.SIGINT)
    signal.signal(signal.SIGINT, before)


@pytest.fixture
def start(monkeypatch: pytest.MonkeyPatch) -> Callable[..., BaseProcess]:
    """Train in a process forked from a server that has imported everything, so that it starts at once."""
    monkeypatch.syspath_prepend(Path(__file__).parent)
    from killed import train_until_killed

    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["isodiff.diffusion.finetune", "isodiff.datasets.faces", "diffusers.models.unets"])

    def forked(*arguments: object) -> BaseProcess:
        process = context.Process(target=train_until_killed, args=arguments)
        process.start()
        return process

    return forked


def _ended(process: BaseProcess) -> int:
    process.join()
    return process.exitcode


def _same(one: Path, other: Path) -> bool:
    records = [json.loads((folder / "training.json").read_text())["curves"] for folder in (one, other)]
    return records[0] == records[1] and (one / WEIGHTS).read_bytes() == (other / WEIGHTS).read_bytes()


def test_kills_change_no_bit(tmp_path: Path, start: Callable[..., BaseProcess]) -> None:
    """While images are read, before a checkpoint is begun, before each of its renames, before the record."""
    config = replace(CONFIG, num_steps=5, batch_size=4, checkpoint_every=1)
    whole = start(tmp_path / "whole", config)
    for doom in (("__getitems__", 2), ("open", 2), ("replace", 2), ("replace", 1), ("__getitems__", 3), ("replace", 3)):
        assert _ended(start(tmp_path / "killed", config, doom)) == -signal.SIGKILL, doom
        assert not (tmp_path / "killed" / "training.json").exists()
    assert [_ended(whole), _ended(start(tmp_path / "killed", config))] == [0, 0]
    assert _same(tmp_path / "whole", tmp_path / "killed")


@pytest.mark.exhaustive
def test_twenty_kills_at_random_moments_change_no_bit(tmp_path: Path, start: Callable[..., BaseProcess]) -> None:
    """A run is started, killed after a random time and started again until it ends, as often as the kills last."""
    config = replace(CONFIG, num_steps=40, batch_size=4, checkpoint_every=1, lambda_iso=1e-2)
    moments, kills, runs = random.Random(0), 0, 0
    _ended(start(tmp_path / "first", replace(config, num_steps=1)))  # the server's imports are no part of the duration
    began = time.monotonic()
    assert _ended(start(tmp_path / "whole", config)) == 0
    duration = time.monotonic() - began
    while kills < 20:
        runs, code = runs + 1, None
        while code != 0:
            process = start(tmp_path / f"run-{runs}", config)
            process.join(moments.uniform(0, duration / 2) if kills < 20 else None)
            process.kill()
            code = _ended(process)
            assert code in (0, -signal.SIGKILL)
            kills += code != 0
        assert _same(tmp_path / "whole", tmp_path / f"run-{runs}")


def test_the_result_is_an_ordinary_pipeline_with_a_record(tmp_path: Path) -> None:
    facts, output = {"command": "isodiff …", "dataset": "faces", "base": "none"}, tmp_path / "model"
    trained = _train(output, **facts)
    assert {path.name for path in output.iterdir()} == {"model_index.json", "scheduler", "training.json", "unet"}
    assert torch.equal(weights(DDPMPipeline.from_pretrained(output).unet), weights(trained.unet))
    record = read_record(output / "training.json")
    expected = {"config": asdict(CONFIG), "parameters": len(weights(trained.unet)), **facts}
    assert {name: record[name] for name in expected} == expected
    assert {"isodiff", "torch", "diffusers", "accelerate"} <= record["versions"].keys()

    # done: loaded, not repeated, whatever the command; any other run is refused
    before = (output / WEIGHTS).stat().st_mtime_ns
    assert torch.equal(weights(_train(output, **facts | {"command": "other"}).unet), weights(trained.unet))
    assert (output / WEIGHTS).stat().st_mtime_ns == before
    words = r"learning_rate = 0\.001 there, 0\.1 now, dataset = 'faces' there, 'digits' now"
    with pytest.raises(ValueError, match=f"model is of a run with other settings: {words}"):
        _train(output, replace(CONFIG, learning_rate=0.1), **facts | {"dataset": "digits"})


def test_a_model_that_cannot_be_written_is_one_clear_error(tmp_path: Path) -> None:
    """The checkpoint of the last step stays, and the same again only writes the model."""
    (tmp_path / "unet").write_text("in the way")
    (tmp_path / ".checkpoint.pt.partial").touch()  # a run of ours was killed there
    with pytest.raises(OSError, match=r" could not be written \(.+\); the checkpoints written before are whole"):
        _train(tmp_path)
    (tmp_path / "unet").unlink()
    pipeline = _train(tmp_path)
    assert torch.equal(weights(load_pipeline(tmp_path).unet), weights(pipeline.unet))


def test_records_of_shipped_models_are_read(tmp_path: Path) -> None:
    """Settings younger than a record had their defaults, those that are gone had them too."""
    files = [file for file in data_directory().glob("checkpoints/**/training.json") if (file.parent / "unet").exists()]
    assert len(files) > 5
    for file in files:
        record, names = read_record(file), set(asdict(CONFIG))
        gone = {name: value for name, value in record["config"].items() if name not in names}
        assert gone in ({}, {"channels_last": False, "compile": False})
        config = FinetuneConfig(**{name: value for name, value in record["config"].items() if name in names})
        (tmp_path / "training.json").write_text(file.read_text())
        with pytest.raises(ValueError, match=r"it holds training\.json"):  # of this run: only the model is missing
            _train(tmp_path, config, dataset=record["dataset"])
        with pytest.raises(ValueError, match=r"seed = \d+ there, 77 now"):
            _train(tmp_path, replace(config, seed=77), dataset=record["dataset"])
