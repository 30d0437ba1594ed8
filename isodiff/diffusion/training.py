"""A training run kept in a directory: resumed after an interruption, recorded when done."""

from __future__ import annotations

import json
import os
import platform
import shlex
import signal
import threading
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, fields
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

from accelerate import Accelerator
from safetensors import SafetensorError
from tqdm.auto import tqdm

from isodiff.diffusion.checkpoint import checkpoint_files
from isodiff.diffusion.finetune import FinetuneConfig, TrainingState, finetune
from isodiff.diffusion.pretrained import load_pipeline, save_pipeline
from isodiff.paths import require_folder

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from diffusers import DiffusionPipeline
    from torch.utils.data import Dataset

RECORD = "training.json"
_CURVE_POINTS = 200


def train(
    pipeline: DiffusionPipeline,
    images: Dataset,
    config: FinetuneConfig,
    output: str | Path,
    *,
    provenance: dict[str, str] | None = None,
    accelerator: Accelerator | None = None,
    half: bool = False,
    progress: bool = True,
) -> DiffusionPipeline:
    """Train a model into a directory, with a progress bar.

    The directory becomes an ordinary diffusers pipeline with the averaged weights, and beside it `training.json`:
    settings, provenance, versions and loss curves. Interrupted and called again, it goes on from the last checkpoint;
    called once more when done, it loads the result. SIGTERM and SIGINT end the run after the step, with a checkpoint;
    the second of them at once. Of several processes, the main one writes.

    Args:
        pipeline: the starting point; trained in place.
        images: the dataset.
        config: the settings of `finetune`.
        output: the directory.
        provenance: facts to record, for example the command, the dataset and the base; all but the command must be the
            same when the run goes on.
        accelerator: passed on to `finetune`.
        half: store the weights in float16.
        progress: whether to show the bar.

    Returns:
        The trained pipeline.

    Raises:
        ValueError: the directory holds a model trained with other settings or from other data.
        OSError: the disk is full, or cannot be written for another reason; checkpoints written before are whole.
        TrainingInterrupted: a signal came; the checkpoint is written.
    """
    output, provenance = Path(output), provenance or {}
    accelerator = accelerator or Accelerator(mixed_precision=config.mixed_precision)
    record_file, checkpoint, log = output / RECORD, output / "checkpoint.safetensors", output / "steps.jsonl"
    main = accelerator.is_main_process
    lasting = {name: fact for name, fact in provenance.items() if name != "command"}
    require_folder(output)
    if record_file.exists():
        require_same_run(read_record(record_file), config, lasting, output)
        if main:
            discard_checkpoint(checkpoint, log)  # a kill may have come between the record and this
        return load_pipeline(output)

    done = _read_log(log)
    with (
        stop_signals() as received,
        _append_to(log, enabled=main) as append,
        tqdm(
            total=config.num_steps, desc=output.name, unit="step", mininterval=1.0, disable=not (main and progress)
        ) as bar,
    ):
        steps = finetune(
            pipeline,
            images,
            config,
            checkpoint=checkpoint,
            accelerator=accelerator,
            provenance=lasting,
            stop=received,
        )
        for state in steps:
            if bar.n == 0 and state.step > 1:
                bar.update(state.step - 1)
            append(state, flush=state.step % config.checkpoint_every == 0)
            done[state.step] = state
            bar.update()
            if state.step % 20 == 0:
                bar.set_postfix(_recent(done, state.step), refresh=False)
    if main:
        record = {
            "config": asdict(config),
            **provenance,
            **versions(),
            "parameters": sum(p.numel() for p in pipeline.unet.parameters()),
            "curves": _curves([done[step] for step in sorted(done)]),
        }
        partial = output / f".{RECORD}.partial"
        with explained(output):
            save_pipeline(pipeline, output, half=half)
            partial.write_text(json.dumps(record, indent=1) + "\n")
            partial.replace(record_file)
        discard_checkpoint(checkpoint, log)
    accelerator.wait_for_everyone()
    return pipeline


def versions() -> dict[str, object]:
    """Return the versions that a record of a run names."""
    packages = {name: version(name) for name in ("isodiff", "torch", "diffusers", "accelerate")}
    return {"versions": packages, "python": platform.python_version()}


def command_line(arguments: list[str]) -> str:
    """Return the command that was typed, to be recorded."""
    return shlex.join(["isodiff", *arguments])


@contextmanager
def stop_signals() -> Iterator[Callable[[], int]]:
    """Yield a function that tells the number of the first SIGTERM or SIGINT, 0 before; the second acts as ever."""
    received: list[int] = []
    before = {}

    def note(number: int, _frame: object) -> None:
        received.append(number)
        for each, handler in before.items():
            signal.signal(each, handler)

    if threading.current_thread() is threading.main_thread():  # Python lets no other thread handle signals
        before = {number: signal.signal(number, note) or signal.SIG_DFL for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield lambda: received[0] if received else 0
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def explained(path: Path) -> Iterator[None]:
    """Say in one line what could not be written and what there still is."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        raise OSError(
            f"{path} could not be written ({error}); the checkpoints written before are whole. "
            "Make room and run the same command again to go on"
        ) from error


@contextmanager
def _append_to(log: Path, *, enabled: bool) -> Iterator[Callable[..., None]]:
    """Yield a function that logs a step, and waits until the log is on disk where it is told to."""
    if not enabled:
        yield lambda _state, **_options: None
        return
    with ExitStack() as opened:
        file = None

        def append(state: TrainingState, *, flush: bool) -> None:
            nonlocal file
            line = f"\n{json.dumps(asdict(state))}".encode()  # so that it does not join a line that a kill cut short
            with explained(log):
                if file is None:  # with the first step, as a run that is refused leaves nothing
                    log.parent.mkdir(parents=True, exist_ok=True)
                    # with a buffer, a full disk would fail once more on closing
                    file = opened.enter_context(log.open("ab", buffering=0))
                if file.write(line) < len(line):
                    raise OSError("the line was cut short")
                if flush:
                    os.fsync(file.fileno())

        yield append


def discard_checkpoint(checkpoint: Path, *others: Path) -> None:
    """Remove what a finished run needs no more."""
    for file in (*checkpoint_files(checkpoint), *others):
        file.unlink(missing_ok=True)


def _read_log(log: Path) -> dict[int, TrainingState]:
    """Steps logged so far, by number; a step run again after an interruption replaces its first run."""
    states = {}
    for line in log.read_text(errors="replace").splitlines() if log.is_file() else []:
        try:
            state = TrainingState(**json.loads(line))
        except json.JSONDecodeError:  # a line that a kill cut short, or the empty first one
            continue
        states[state.step] = state
    return states


def _recent(done: dict[int, TrainingState], step: int, window: int = 100) -> dict[str, str]:
    states = [done[i] for i in range(max(1, step - window + 1), step + 1) if i in done]
    shown = {"L_dsm": f"{_mean([s.dsm for s in states]):.4f}"}
    regularised = [s.isotropy for s in states if s.isotropy is not None]
    return shown | ({"isotropy": f"{_mean(regularised):.2f}"} if regularised else {})


def _mean(values: list[float]) -> float:
    return sum(values) / len(values)


def _curves(states: list[TrainingState]) -> dict[str, list[float | None]]:
    """Means over equal stretches of the run, each with its last step; isotropy where it was regularised."""
    size = max(1, len(states) // _CURVE_POINTS)
    curves: dict[str, list[float | None]] = {"step": [], "dsm": [], "isotropy": [], "grad_norm": []}
    for start in range(0, len(states), size):
        stretch = states[start : start + size]
        isotropies = [s.isotropy for s in stretch if s.isotropy is not None]
        curves["step"].append(stretch[-1].step)
        curves["dsm"].append(_mean([s.dsm for s in stretch]))
        curves["isotropy"].append(_mean(isotropies) if isotropies else None)
        curves["grad_norm"].append(_mean([s.grad_norm for s in stretch]))
    return curves


def read_record(file: Path) -> dict:
    """Read the record of a finished run, or say that it is damaged."""
    try:
        record = json.loads(file.read_text())
        dict(record["config"])
    except (ValueError, TypeError, KeyError) as error:
        raise ValueError(f"{file} is damaged ({error!r}); put a copy in place, or delete the directory") from error
    return record


def require_same_run(record: dict, config: FinetuneConfig, provenance: dict[str, str], output: Path) -> None:
    """Refuse a finished directory whose record tells of other settings or other data; any config dataclass will do."""
    wanted = asdict(config) | provenance
    # A setting newer than the record had its default: none changes what a run does unless it is given.
    defaults = {field.name: field.default for field in fields(config)}
    found = defaults | record["config"] | {k: v for k, v in record.items() if k in provenance}
    differ = [
        f"{name} = {found.get(name)!r} there, {value!r} now"
        for name, value in wanted.items()
        if found.get(name) != value
    ]
    if differ:
        raise ValueError(
            f"{output.name} holds a model trained with other settings: {'; '.join(differ)}. "
            "Choose another output or delete it"
        )
