"""Batches, steps and gradients of one run over several processes: two of them, or two passes, train as one.

`accelerate launch` runs this very module on two processes; what they find is compared here with one process.
"""

import contextlib
import io
import json
import os
import signal
import socket
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from isodiff.datasets.faces import FacesDataset
from isodiff.diffusion import FinetuneConfig, TrainingInterrupted, train, training
from isodiff.diffusion.finetune import finetune
from isodiff.diffusion.run_folder import Checkpoint
from isodiff.diffusion.training import TrainingStep, derived_seed, global_batches, seeded

from .tiny import tiny_ddpm, weights

IMAGES = FacesDataset(8, num_images=20)
ONE_STEP = FinetuneConfig(
    num_steps=1, batch_size=16, lambda_iso=0.3, normalize=True, p=0.0, num_probes=2, max_grad_norm=1e9, ema_decay=0.0
)
CHEAP = replace(ONE_STEP, regularize_fraction=0.5, regularize_every=2, isometry_route="differences")
TERMS = {"exact": ONE_STEP, "cheap": CHEAP}
STEPS = replace(ONE_STEP, num_steps=4, batch_size=4, checkpoint_every=2, horizontal_flip=True)


def _one_step(config: FinetuneConfig, file: Path, passes: int = 1) -> tuple[dict[str, float], Tensor]:
    """Take one step and return its state and gradient, which the checkpoint has as Adam's first moment, a tenth."""
    pipeline, config = tiny_ddpm(), replace(config, gradient_accumulation_steps=passes)
    pipeline.unet.double()
    (state,) = finetune(pipeline, IMAGES, config, accelerator=Accelerator(cpu=True), checkpoint=file)
    moments = torch.load(io.BytesIO(file.read_bytes()[32:]), weights_only=True)["parts"]["optimizer"]["state"]
    return vars(state), 10 * torch.cat([moments[i]["exp_avg"].flatten() for i in range(len(moments))])


def _two_processes(folder: Path) -> None:
    accelerator = Accelerator(cpu=True)
    rank, seen = accelerator.process_index, {"num_processes": accelerator.num_processes}
    if rank:
        Checkpoint._write = None  # it may not be called: the main process writes
    for term, config in TERMS.items():
        seen[term] = [_one_step(config, folder / f"{term}-{passes}", passes) for passes in (1, 4)]

    def run(file: Path, **options: object) -> tuple[list[dict], Tensor]:
        pipeline, states = tiny_ddpm(seed=rank), []  # the second process's other weights must not matter
        with contextlib.suppress(TrainingInterrupted):
            steps = finetune(pipeline, IMAGES, STEPS, checkpoint=file, accelerator=accelerator, **options)
            states.extend(vars(state) for state in steps)
        return states, weights(pipeline.unet)

    seen["straight"] = run(folder / "straight.pt")
    asked = iter([0, 0, signal.SIGTERM if rank else 0, 0])  # one process alone receives the signal, at step 3
    seen["stopped"] = run(folder / "stopped.pt", stop=lambda: next(asked))
    seen["resumed"] = run(folder / "stopped.pt")
    train(tiny_ddpm(seed=rank), IMAGES, STEPS, folder / "model", accelerator=accelerator, progress=False)
    with pytest.raises(ValueError, match=r"processes × gradient_accumulation_steps = 2 × 1; got 5"):
        next(finetune(tiny_ddpm(), IMAGES, replace(STEPS, batch_size=5), accelerator=accelerator))

    def full(*_arguments: object) -> None:
        raise OSError(28, "No space left on device")

    Checkpoint._write = full
    with pytest.raises(OSError, match=r"the checkpoint of step 2 could not be written to .*No space left on device"):
        run(folder / "full.pt")
    torch.save(seen, folder / f"seen-{rank}.pt")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Directory in which two processes have done `_two_processes`: a full disk and an odd batch end both of them."""
    folder = tmp_path_factory.mktemp("processes")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    # On a machine without GPU, --multi_gpu means several processes; --cpu would start one, whatever --num_processes.
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2"]
    command = [*launch, "--main_process_port", str(port), "--module", "diffusion.test_training", str(folder)]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo", "CUDA_VISIBLE_DEVICES": ""}
    tests = Path(__file__).parents[1]
    finished = subprocess.run(command, cwd=tests, env=environment, capture_output=True, text=True)
    assert finished.returncode == 0, finished.stderr[-5000:]
    return folder


@pytest.fixture(scope="module")
def seen(folder: Path) -> list[dict]:
    return [torch.load(folder / f"seen-{rank}.pt") for rank in (0, 1)]


@pytest.mark.parametrize(("term", "tolerance"), [("exact", 1e-10), ("cheap", 1e-7)])
def test_processes_and_passes_give_the_loss_and_gradient_of_one(
    seen: list[dict], tmp_path: Path, term: str, tolerance: float
) -> None:
    """Two processes of one or four passes, and one process of four; also half of the rows, by differences."""
    assert [process["num_processes"] for process in seen] == [2, 2]
    one, gradient = _one_step(TERMS[term], tmp_path / "one")
    for state, other in (*seen[0][term], *seen[1][term], _one_step(TERMS[term], tmp_path / "four", 4)):
        assert state == pytest.approx(one, rel=tolerance)
        assert (other - gradient).norm() <= tolerance * gradient.norm()
    _, plain = _one_step(replace(TERMS[term], lambda_iso=0.0), tmp_path / "plain")
    assert (plain - gradient).norm() > 0.1 * gradient.norm(), "the isometry term has a share in it"


def test_two_processes_resume_to_the_same_bits_end_together_and_write_one_model(folder: Path, seen: list[dict]) -> None:
    straight, end = seen[0]["straight"]
    assert seen[1]["straight"][0] == straight
    for process in seen:
        assert torch.equal(process["straight"][1], end)
        assert torch.equal(process["resumed"][1], end)
        assert (len(process["stopped"][0]), process["resumed"][0][0]["step"]) == (3, 4)
    curves = json.loads((folder / "model" / "training.json").read_text())["curves"]
    assert curves["dsm"] == [state["dsm"] for state in straight]


def test_one_process_goes_on_from_the_checkpoint_of_two(folder: Path, seen: list[dict], tmp_path: Path) -> None:
    (tmp_path / "c.pt").write_bytes((folder / "straight.previous.pt").read_bytes())
    run = finetune(tiny_ddpm(), IMAGES, STEPS, checkpoint=tmp_path / "c.pt", accelerator=Accelerator(cpu=True))
    with pytest.warns(UserWarning, match="was written by 2 processes: it goes on the same to rounding"):
        states = [vars(state) for state in run]
    assert states == [pytest.approx(state, rel=1e-3) for state in seen[0]["straight"][0][2:]]


@pytest.mark.parametrize(("flags", "words"), [("fpu avx512_bf16", None), ("fpu avx2", "no bf16 instructions")])
def test_bf16_without_its_instructions_is_said_once(
    flags: str, words: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "cpuinfo").write_text(f"flags : {flags}")
    monkeypatch.setattr(training, "CPU_INFO", tmp_path / "cpuinfo")
    monkeypatch.setattr(training, "Accelerator", lambda **options: options)  # a real one would keep its precision
    with contextlib.nullcontext() if words is None else pytest.warns(UserWarning, match=words):
        assert training.accelerator_for("cpu", "bf16") == {"mixed_precision": "bf16", "cpu": True}


def test_a_batch_or_images_that_do_not_fit_are_refused() -> None:
    odd, wide = replace(STEPS, gradient_accumulation_steps=3), FacesDataset(16, num_images=4)
    shapes = r"\(3, 16, 16\); this model needs \(3, 8, 8\)"
    for images, config, message in ((IMAGES, odd, "= 1 × 3; got 4"), (wide, STEPS, shapes)):
        with pytest.raises(ValueError, match=message):
            next(finetune(tiny_ddpm(), images, config, accelerator=Accelerator(cpu=True)))


def _batches(num_images: int, config: FinetuneConfig, start: int = 0, **options: bool) -> list[list[int]]:
    return list(global_batches(num_images, config, start, Accelerator(cpu=True), **options))


@given(st.integers(1, 12), st.integers(1, 9), st.integers(1, 12), st.booleans())
def test_a_run_that_starts_later_goes_on_as_the_whole(images: int, size: int, steps: int, sequential: bool) -> None:
    """From any step, in either order; an epoch holds every image once, and a stream's positions go on beyond it."""
    config = FinetuneConfig(num_steps=steps, batch_size=size, seed=3)
    whole = _batches(images, config, sequential=sequential)
    assert [len(batch) for batch in whole] == [size] * steps
    for start in range(steps + 1):
        assert _batches(images, config, start, sequential=sequential) == whole[start:]
    rows = [position for batch in whole for position in batch]
    assert not sequential or rows == list(range(size * steps))
    for epoch in range(len(rows) // images):
        part = rows[epoch * images : (epoch + 1) * images]
        assert sorted(position % images for position in part) == list(range(images))


def test_random_numbers_are_what_they_were_for_every_run_so_far() -> None:
    """So that shipped models can be made again: seeds of NumPy's seed sequence over (seed, step, purpose's place)."""
    accelerator = Accelerator(cpu=True)
    step, purposes = TrainingStep(3, 7, accelerator), ("epoch", "flip", "dsm", "isometry", "layers", "posterior")
    for place, purpose in enumerate(purposes):
        assert step.generator(purpose).initial_seed() == derived_seed(7, 3, place)
    assert derived_seed(7, 3, 2) == 8034915097316094625
    epochs = [TrainingStep(epoch, 7, accelerator).generator("epoch") for epoch in range(2)]
    expected = torch.cat([torch.randperm(10, generator=epoch) for epoch in epochs]).tolist()
    batches = torch.tensor(_batches(10, FinetuneConfig(num_steps=5, batch_size=4, seed=7)))
    assert batches.flatten().tolist() == expected


def test_layers_draw_the_same_at_the_same_step_and_pass_alone() -> None:
    before, drawn = torch.get_rng_state(), []
    for number, part in ((1, 0), (1, 0), (1, 1), (2, 0)):
        with TrainingStep(number, 0, Accelerator(cpu=True)).layers(part):
            drawn.append(tuple(torch.rand(3).tolist()))
    assert drawn[0] == drawn[1]
    assert len(set(drawn)) == 3
    with seeded(5, torch.device("cpu")):
        assert torch.equal(torch.rand(2), torch.rand(2, generator=torch.Generator().manual_seed(5)))
    assert torch.equal(torch.get_rng_state(), before)


if __name__ == "__main__":
    _two_processes(Path(sys.argv[1]))
