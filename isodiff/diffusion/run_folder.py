"""The folder of a training run: checkpoints while it lasts, the model and its record when it is done.

A checkpoint is one file with its SHA-256, replaced atomically, the last two kept; accelerate's `save_state` writes a
folder, which no single rename replaces, without checksums.
"""

import hashlib
import io
import json
import os
import platform
import signal
import threading
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, fields
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list
from safetensors import SafetensorError
from torch.nn import Module
from tqdm.auto import tqdm

from isodiff.diffusion.config import TrainingConfig
from isodiff.files import claim_folder, write_whole

RECORD = "training.json"
CHECKPOINTS = ("checkpoint.pt", "checkpoint.previous.pt", ".checkpoint.pt.partial")
_FREE = ("command", "checkpoint_every", "num_workers", "gradient_checkpointing")  # they change no bit of the result
_DIGEST = 32  # bytes of SHA-256, at the beginning of the file
_ADVICE = "Make room and run the same command again to go on"


def require_same_run(there: Mapping[str, Any], now: Mapping[str, Any], place: str) -> None:
    """Refuse what a run with other settings or facts has left, naming all that differ and could change the result."""
    if names := [name for name in {**now, **there} if name not in _FREE and there.get(name) != now.get(name)]:
        differ = ", ".join(f"{name} = {there.get(name)!r} there, {now.get(name)!r} now" for name in names)
        raise ValueError(f"{place} is of a run with other settings: {differ}; give those, or choose another output")


class TrainingInterrupted(RuntimeError):
    """The run was asked to stop and has written its checkpoint; `signal` is the number of the signal that asked."""

    def __init__(self, message: str, number: int) -> None:
        super().__init__(message)
        self.signal = number


class Checkpoint:
    """The states of a run's parts, its settings and its log, in a file; every method is called by all processes."""

    def __init__(
        self, path: str | Path, parts: Mapping, settings: Mapping, accelerator: Accelerator, log: list | None = None
    ) -> None:
        self.path, self.parts, self.settings, self.accelerator = Path(path), parts, dict(settings), accelerator
        self.log = [] if log is None else log
        self.previous = self.path.with_name(f"{self.path.stem}.previous{self.path.suffix}")
        self.partial = self.path.with_name(f".{self.path.name}.partial")
        self.step, self.last_good = 0, None
        self._warn = warnings.warn if accelerator.is_main_process else lambda _: None

    @property
    def kept(self) -> str:
        """What an interrupted run can go on from, for a message."""
        last = f"the last good checkpoint is step {self.step}, {self.last_good}"
        return last if self.last_good else "there is no checkpoint yet"

    def save(self, step: int) -> None:
        """Write the state after so many steps; an OSError of the main process is one on all."""
        reason = [None]
        try:
            if self.accelerator.is_main_process:
                self._write(step)
        except OSError as error:
            reason = [str(error)]
            self.partial.unlink(missing_ok=True)
        if broadcast_object_list(reason)[0] is not None:
            problem = f"the checkpoint of step {step} could not be written to {self.path} ({reason[0]}); {self.kept}"
            raise OSError(f"{problem}, and nothing written before is lost. {_ADVICE}")
        self.step, self.last_good = step, self.path

    def restore(self) -> int:
        """Load the newest file that is whole, warn if that is the one before, and return the steps done, 0 if none."""
        refused = []
        for path in filter(Path.exists, (self.path, self.previous)):
            content = path.read_bytes()
            if hashlib.sha256(content[_DIGEST:]).digest() == content[:_DIGEST]:
                self._load(path, content[_DIGEST:])
                if path == self.previous:
                    why = refused[0] if refused else f"{self.path} is missing"
                    self._warn(f"{why}; going on from {path}, step {self.step}")
                break
            refused.append(f"{path} is damaged: its SHA-256 is not the one it was written with")
        if refused and self.last_good is None:
            raise ValueError(f"no checkpoint is good: {'; '.join(refused)}. Put a copy in place, or delete them")
        steps = self.accelerator.gather(torch.tensor([self.step], device=self.accelerator.device)).tolist()
        if len(set(steps)) > 1:
            raise ValueError(f"the processes found steps {steps} at {self.path}; all must read one, on a shared disk")
        return self.step

    def discard(self) -> None:
        """Remove what a finished run needs no more."""
        if self.accelerator.is_main_process:
            for file in (self.path, self.previous, self.partial):
                file.unlink(missing_ok=True)

    def _write(self, step: int) -> None:
        content = {"step": step, "settings": self.settings, "processes": self.accelerator.num_processes}
        content |= {"log": self.log, "parts": {name: part.state_dict() for name, part in self.parts.items()}}
        payload = io.BytesIO()  # in memory first: torch would report a full disk as a defect of its own
        torch.save(content, payload)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.partial.open("wb") as file:
            file.writelines((hashlib.sha256(payload.getbuffer()).digest(), payload.getbuffer()))
            file.flush()
            os.fsync(file.fileno())
        if self.last_good == self.path:  # a damaged file must not take the place of the good one before it
            self.last_good = self.path.replace(self.previous)
        self.partial.replace(self.path)

    def _load(self, path: Path, payload: bytes) -> None:
        found = torch.load(io.BytesIO(payload), map_location="cpu", weights_only=True)  # each part moves its own
        require_same_run(found["settings"], self.settings, f"the checkpoint {path}")
        try:
            for name, part in self.parts.items():
                part.load_state_dict(found["parts"][name])
        except RuntimeError as error:
            raise ValueError(f"the checkpoint {path} is of another architecture; delete it to start again") from error
        self.step, self.last_good, self.log[:] = found["step"], path, found["log"]
        if found["processes"] != self.accelerator.num_processes:
            self._warn(f"{path} was written by {found['processes']} processes: it goes on the same to rounding")


def train_into(
    output: str | Path,
    config: TrainingConfig,
    model: Module,
    steps: Callable[..., Iterator[Any]],
    save: Callable[[Path], object],
    *,
    accelerator: Accelerator | None = None,
    provenance: Mapping[str, Any] | None = None,
    progress: bool = True,
    overwrite: bool = False,
) -> bool:
    """Take all `steps` of a run into a folder, `save` the model there and record the run; False if it was done already.

    SIGTERM and SIGINT end it after the step, with a checkpoint. The folder of a run with other settings or facts (its
    `provenance`) is refused, and one with other things in it, unless it is to `overwrite` files of the same names.
    """
    accelerator = accelerator or Accelerator(mixed_precision=config.mixed_precision)
    folder, facts = claim_folder(output, (RECORD, *CHECKPOINTS), overwrite=overwrite), dict(provenance or {})
    checkpoint = Checkpoint(folder / "checkpoint.pt", {}, {}, accelerator)
    if (folder / RECORD).exists():
        record, now = read_record(folder / RECORD), asdict(config) | facts
        # a setting younger than the record had its default
        there = {field.name: field.default for field in fields(config)} | record["config"] | record
        require_same_run({name: there.get(name) for name in now}, now, folder.name)
        checkpoint.discard()  # a kill may have come between the record and this
        return False
    log: list[dict[str, Any]] = []
    shared = {"checkpoint": checkpoint.path, "accelerator": accelerator, "provenance": facts, "log": log}
    silent = not (accelerator.is_main_process and progress)
    with stop_signals() as stop, tqdm(total=config.num_steps, desc=folder.name, unit="step", disable=silent) as bar:
        for _ in steps(**shared, stop=stop):
            bar.update(len(log) - bar.n)
            if len(log) % 20 == 0:
                bar.set_postfix({name: values[0] for name, values in _curves(log[-100:], 1).items()}, refresh=False)
    if accelerator.is_main_process:
        packages = {name: version(name) for name in ("isodiff", "torch", "diffusers", "accelerate")}
        record = {"config": asdict(config), **facts, "versions": packages, "python": platform.python_version()}
        try:
            save(folder)
            record |= {"parameters": sum(p.numel() for p in model.parameters()), "curves": _curves(log)}
            write_whole(folder / RECORD, json.dumps(record, indent=1) + "\n")
        except (OSError, SafetensorError) as error:
            problem = f"{folder} could not be written ({error}); the checkpoints written before are whole"
            raise OSError(f"{problem}. {_ADVICE}") from error
    checkpoint.discard()
    accelerator.wait_for_everyone()
    return True


def _curves(log: list[dict[str, Any]], points: int = 200) -> dict[str, list[float | None]]:
    """Means over equal stretches of the run, of what there is of each value, and the last step of each stretch."""
    size = max(1, len(log) // points)
    stretches = [log[start : start + size] for start in range(0, len(log), size)]
    curves: dict[str, list[float | None]] = {"step": [min(size * i, len(log)) for i, _ in enumerate(stretches, 1)]}
    for name in log[0]:
        told = [[state[name] for state in stretch if state[name] is not None] for stretch in stretches]
        curves[name] = [sum(values) / len(values) if values else None for values in told]
    return curves


def read_record(file: Path) -> dict[str, Any]:
    """Read the record of a finished run, or say that it is damaged."""
    try:
        record = json.loads(file.read_text())
        return record | {"config": dict(record["config"])}
    except (ValueError, TypeError, KeyError) as error:
        raise ValueError(f"{file} is damaged ({error!r}); put a copy in place, or delete the directory") from error


@contextmanager
def stop_signals() -> Iterator[Callable[[], int]]:
    """Yield a function that tells the number of the first SIGTERM or SIGINT, 0 before; the second acts as ever."""
    received: list[int] = []
    main = threading.current_thread() is threading.main_thread()  # Python lets no other handle signals
    with ExitStack() as restore:

        def note(number: int, _frame: object) -> None:
            received.append(number)
            restore.close()

        for number in (signal.SIGTERM, signal.SIGINT) if main else ():
            restore.callback(signal.signal, number, signal.signal(number, note) or signal.SIG_DFL)
        yield lambda: received[0] if received else 0
