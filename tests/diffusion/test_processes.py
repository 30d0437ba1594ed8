"""Two processes, or two passes, train as one: the same losses, the same gradient, one checkpoint, one end.

`accelerate launch` runs this very file on two processes; what they find is compared here with one process.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from diffusers import DDPMPipeline, DDPMScheduler, UNet2DModel
from safetensors.torch import load_file
from torch import Tensor, nn

from isodiff.cli import main
from isodiff.datasets.faces import FacesDataset
from isodiff.diffusion import checkpoint as checkpoint_module
from isodiff.diffusion.config import FinetuneConfig
from isodiff.diffusion.finetune import TrainingInterrupted, TrainingState, finetune
from isodiff.diffusion.pretrained import save_pipeline
from isodiff.geometry.isometry import isometry_loss, isometry_loss_share, trace_samples

ONE_STEP = FinetuneConfig(
    num_steps=1, batch_size=16, lambda_iso=0.3, normalize=True, p=0.0, num_probes=2, max_grad_norm=1e9, ema_decay=0.0
)
CHEAP = replace(ONE_STEP, regularize_fraction=0.5, regularize_every=2, isometry_route="differences")
STEPS = replace(ONE_STEP, num_steps=4, batch_size=4, checkpoint_every=2, horizontal_flip=True)
DTYPES = {"float64": torch.float64, "float32": torch.float32}


def _tiny(dtype: torch.dtype = torch.float32, *, seed: int = 0) -> DDPMPipeline:
    torch.manual_seed(seed)
    unet = UNet2DModel(
        sample_size=8,
        block_out_channels=(4, 8),
        norm_num_groups=4,
        layers_per_block=1,
        down_block_types=("DownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "UpBlock2D"),
    )
    return DDPMPipeline(unet=unet.to(dtype), scheduler=DDPMScheduler())


def _images() -> FacesDataset:
    return FacesDataset(8, num_images=20)


def _weights(pipeline: DDPMPipeline) -> Tensor:
    return torch.cat([p.detach().flatten() for p in pipeline.unet.parameters()])


def _one_step(file: Path, config: FinetuneConfig, dtype: torch.dtype) -> dict[str, float]:
    """Take one step; its gradient is in the checkpoint, as ten times Adam's first moment."""
    run = finetune(_tiny(dtype), _images(), config, checkpoint=file, accelerator=Accelerator(cpu=True))
    (state,) = run  # to the end, where the checkpoint is written
    return vars(state)


def _gradient(file: Path) -> Tensor:
    tensors = load_file(file)
    names = sorted(name for name in tensors if name.startswith("exp_avg."))
    return 10 * torch.cat([tensors[name].flatten() for name in names])


def _fails(attempt: Callable[[], object]) -> str:
    try:
        attempt()
    except (OSError, ValueError) as error:
        return f"{type(error).__name__}: {error}"
    return "nothing was raised"


def _two_processes(folder: Path) -> None:
    """Do on each process what the tests look at, and write down what it saw."""
    accelerator = Accelerator(cpu=True)
    rank, seen = accelerator.process_index, {"num_processes": accelerator.num_processes}
    if rank:

        def forbidden(*_arguments: object) -> None:
            raise AssertionError("a process other than the main one wrote a checkpoint")

        checkpoint_module.save = forbidden

    for name, dtype in DTYPES.items():
        for passes in (1, 2):
            config = replace(ONE_STEP, gradient_accumulation_steps=passes)
            seen[f"{name}-{passes}"] = _one_step(folder / f"{name}-{passes}", config, dtype)
    cheap = replace(CHEAP, gradient_accumulation_steps=4, channels_last=True)
    seen["cheap"] = _one_step(folder / "cheap", cheap, torch.float64)

    def run(file: Path, **options: object) -> tuple[DDPMPipeline, list[TrainingState]]:
        pipeline = _tiny(seed=rank)  # the second process starts from other weights, which must not matter
        steps = finetune(pipeline, _images(), STEPS, checkpoint=file, accelerator=accelerator, **options)
        states = []
        with contextlib.suppress(TrainingInterrupted):
            states.extend(steps)
        return pipeline, states

    pipeline, states = run(folder / "straight")
    seen["straight"] = [vars(state) for state in states]
    asked = iter([0, 0, signal.SIGTERM if rank else 0, 0])  # one process alone receives the signal, at step 3
    _, states = run(folder / "stopped", stop=lambda: next(asked))
    seen["stopped after"] = len(states)
    resumed, states = run(folder / "stopped")
    seen["resumed at"] = states[0].step
    torch.save([_weights(pipeline), _weights(resumed)], folder / f"weights-{rank}.pt")

    def full(*_arguments: object) -> None:
        raise OSError(28, "No space left on device")

    writer, checkpoint_module.save = checkpoint_module.save, full
    seen["full disk"] = _fails(partial(run, folder / "full"))
    checkpoint_module.save = writer
    odd = finetune(_tiny(), _images(), replace(STEPS, batch_size=5), accelerator=accelerator)
    seen["odd batch"] = _fails(partial(next, odd))

    with contextlib.redirect_stdout(io.StringIO()) as printed:
        seen["status"] = main(_command(folder / "base", folder / "command"))
    seen["printed"] = printed.getvalue()
    (folder / f"seen-{rank}.json").write_text(json.dumps(seen))


def _command(base: Path, output: Path) -> list[str]:
    options = {"base": base, "output": output, "dataset": "faces", "device": "cpu", "num-steps": 2, "batch-size": 4}
    return ["finetune", *(text for name, value in options.items() for text in (f"--{name}", str(value)))]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Directory in which two processes have done `_two_processes`."""
    folder = tmp_path_factory.mktemp("processes")
    save_pipeline(_tiny(), folder / "base")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    # On a machine without GPU, --multi_gpu means several processes; --cpu would start one, whatever --num_processes.
    launch = ["--multi_gpu", "--num_processes", "2", "--main_process_port", str(port), __file__, str(folder)]
    command = [sys.executable, "-m", "accelerate.commands.launch", *launch]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo", "CUDA_VISIBLE_DEVICES": ""}
    finished = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert finished.returncode == 0, finished.stderr[-5000:]
    return folder


@pytest.fixture(scope="module")
def seen(folder: Path) -> list[dict]:
    """What each of the two processes saw."""
    return [json.loads((folder / f"seen-{rank}.json").read_text()) for rank in (0, 1)]


@pytest.mark.parametrize(("dtype", "tolerance"), [("float64", 1e-10), ("float32", 1e-5)])
def test_processes_and_passes_give_the_loss_and_gradient_of_one(
    folder: Path, seen: list[dict], tmp_path: Path, dtype: str, tolerance: float
) -> None:
    assert [process["num_processes"] for process in seen] == [2, 2]
    one = _one_step(tmp_path / "one", ONE_STEP, DTYPES[dtype])
    gradient = _gradient(tmp_path / "one")
    others = {"one process, two passes": tmp_path / "passes"}
    config = replace(ONE_STEP, gradient_accumulation_steps=2)
    states = {"one process, two passes": _one_step(tmp_path / "passes", config, DTYPES[dtype])}
    for passes in (1, 2):
        others[f"two processes, {passes} passes"] = folder / f"{dtype}-{passes}"
        states |= {f"process {rank}, {passes} passes": seen[rank][f"{dtype}-{passes}"] for rank in (0, 1)}
    for name, state in states.items():
        assert state == pytest.approx(one, rel=tolerance), name
    for name, file in others.items():
        assert (_gradient(file) - gradient).norm() <= tolerance * gradient.norm(), name


def test_a_cheaper_term_is_the_same_however_it_is_cut(folder: Path, seen: list[dict], tmp_path: Path) -> None:
    """Half of the rows, by differences: two processes of four passes, channels last, against one process and pass."""
    one = _one_step(tmp_path / "one", CHEAP, torch.float64)
    assert [process["cheap"] for process in seen] == [pytest.approx(one, rel=1e-7)] * 2
    gradient = _gradient(tmp_path / "one")
    assert (_gradient(folder / "cheap") - gradient).norm() <= 1e-7 * gradient.norm()


def test_the_isometry_term_has_a_share_in_that_gradient(tmp_path: Path) -> None:
    _one_step(tmp_path / "with", ONE_STEP, torch.float64)
    _one_step(tmp_path / "without", replace(ONE_STEP, lambda_iso=0.0), torch.float64)
    gradient = _gradient(tmp_path / "with")
    assert (_gradient(tmp_path / "without") - gradient).norm() > 0.1 * gradient.norm()


def test_two_processes_resume_to_the_same_bits(folder: Path, seen: list[dict]) -> None:
    weights = [torch.load(folder / f"weights-{rank}.pt") for rank in (0, 1)]
    assert all(torch.equal(weights[0][0], other) for other in (weights[0][1], *weights[1]))
    assert seen[0]["straight"] == seen[1]["straight"]


def test_what_one_process_is_asked_all_do(seen: list[dict]) -> None:
    assert [process["stopped after"] for process in seen] == [3, 3]
    assert [process["resumed at"] for process in seen] == [4, 4]


def test_one_process_goes_on_from_the_checkpoint_of_two(folder: Path, seen: list[dict], tmp_path: Path) -> None:
    file = tmp_path / "c"
    file.write_bytes((folder / "straight.previous").read_bytes())
    run = finetune(_tiny(), _images(), STEPS, checkpoint=file, accelerator=Accelerator(cpu=True))
    with pytest.warns(UserWarning, match="was written by 2 processes and there are 1 now: .* up to rounding"):
        states = list(run)
    assert [vars(state) for state in states] == [pytest.approx(state, rel=1e-3) for state in seen[0]["straight"][2:]]


def test_a_full_disk_ends_all_processes(seen: list[dict]) -> None:
    expected = "OSError: the checkpoint of step 2 could not be written to "
    assert all(process["full disk"].startswith(expected) for process in seen)
    assert all("No space left on device" in process["full disk"] for process in seen)


def test_a_batch_that_cannot_be_cut_evenly_is_refused(seen: list[dict]) -> None:
    expected = "batch_size must be a multiple of processes × gradient_accumulation_steps = 2 × 1; got 5"
    assert [process["odd batch"] for process in seen] == [f"ValueError: {expected}"] * 2
    run = finetune(_tiny(), _images(), replace(STEPS, gradient_accumulation_steps=3), accelerator=Accelerator(cpu=True))
    with pytest.raises(ValueError, match="= 1 × 3; got 4"):
        next(run)


def test_the_command_on_two_processes_writes_one_model(folder: Path, seen: list[dict], tmp_path: Path) -> None:
    assert [process["status"] for process in seen] == [0, 0]
    assert "done; load it" in seen[0]["printed"]
    assert seen[1]["printed"] == ""
    assert main(_command(folder / "base", tmp_path / "command")) == 0
    curves = [json.loads((f / "command" / "training.json").read_text())["curves"] for f in (folder, tmp_path)]
    assert curves[0]["step"] == curves[1]["step"] == [1, 2]
    assert curves[0]["dsm"] == pytest.approx(curves[1]["dsm"], rel=1e-5)


@pytest.mark.parametrize("parts", [1, 2, 3, 6])
@pytest.mark.parametrize("metric", ["stereographic", "chart_identity", "euclidean"])
def test_the_shares_average_to_the_loss_and_their_gradients_to_its_gradient(parts: int, metric: str) -> None:
    """In float64, for any number of equal parts; the ratios of the parts themselves do not."""
    torch.manual_seed(1)
    f = nn.Sequential(nn.Linear(6, 12), nn.Tanh(), nn.Linear(12, 4)).double()
    generator = torch.Generator().manual_seed(2)
    x, v = (torch.randn(*shape, 6, generator=generator, dtype=torch.float64) for shape in ((6,), (2, 6)))
    first, second = trace_samples(f, x, metric=metric, probes=v)
    loss = second.mean() / first.mean().square()
    pieces = [
        trace_samples(f, z, metric=metric, probes=w) for z, w in zip(x.chunk(parts), v.chunk(parts, 1), strict=True)
    ]
    shares = torch.stack([isometry_loss_share(*piece, first.mean(), second.mean()) for piece in pieces])
    parameters = [p for p in f.parameters() if p.ndim == 2]
    torch.testing.assert_close(shares.mean(), loss, rtol=1e-12, atol=0)
    expected, found = (torch.autograd.grad(y, parameters, retain_graph=True) for y in (loss, shares.mean()))
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-14)
    if parts > 1:
        naive = torch.stack([b.mean() / a.mean().square() for a, b in pieces]).mean()
        assert abs(naive - loss) > 1e-2 * loss


def test_given_probes_are_used_as_drawn_ones_are() -> None:
    f, x = nn.Tanh(), torch.randn(4, 5, dtype=torch.float64)
    generator = torch.Generator().manual_seed(3)
    drawn = torch.stack([torch.randn(4, 5, generator=generator, dtype=torch.float64) for _ in range(2)])
    first, second = trace_samples(f, x, probes=drawn)
    loss = isometry_loss(f, x, num_probes=2, generator=torch.Generator().manual_seed(3))
    assert second.mean() / first.mean().square() == loss
    for probes in (drawn[0], drawn[:0], drawn[:, :3]):
        with pytest.raises(ValueError, match=r"probes must have shape \(K, 4, 5\), got "):
            trace_samples(f, x, probes=probes)


if __name__ == "__main__":
    _two_processes(Path(sys.argv[1]))
