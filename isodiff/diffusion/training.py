"""A training run kept in a directory: resumed after an interruption, recorded when done."""

from __future__ import annotations

import json
import platform
import shlex
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

from tqdm.auto import tqdm

from isodiff.diffusion.finetune import FinetuneConfig, TrainingState, finetune
from isodiff.diffusion.pretrained import load_pipeline, save_pipeline

if TYPE_CHECKING:
    from accelerate import Accelerator
    from diffusers import DDPMPipeline
    from torch.utils.data import Dataset

RECORD = "training.json"
_CURVE_POINTS = 200


def train(
    pipeline: DDPMPipeline,
    images: Dataset,
    config: FinetuneConfig,
    output: str | Path,
    *,
    provenance: dict[str, str] | None = None,
    accelerator: Accelerator | None = None,
) -> DDPMPipeline:
    """Train a model into a directory, with a progress bar.

    The directory becomes an ordinary diffusers pipeline with the averaged weights, and beside it `training.json`:
    settings, provenance, versions and loss curves. Interrupted and called again, it goes on from the last checkpoint;
    called once more when done, it loads the result.

    Args:
        pipeline: the starting point; trained in place.
        images: the dataset.
        config: the settings of `finetune`.
        output: the directory.
        provenance: facts to record, for example the command, the dataset and the base.
        accelerator: passed on to `finetune`.

    Returns:
        The trained pipeline.

    Raises:
        ValueError: the directory holds a model trained with other settings or from other data.
    """
    output, provenance = Path(output), provenance or {}
    record_file, checkpoint, log = output / RECORD, output / "checkpoint.safetensors", output / "steps.jsonl"
    if record_file.exists():
        _require_same(json.loads(record_file.read_text()), config, provenance, output)
        return load_pipeline(output)
    output.mkdir(parents=True, exist_ok=True)
    done = _read_log(log)

    steps = finetune(pipeline, images, config, checkpoint=checkpoint, accelerator=accelerator)
    with (
        tqdm(total=config.num_steps, desc=output.name, unit="step", mininterval=1.0) as bar,
        log.open("a", buffering=1) as file,
    ):
        for state in steps:
            if bar.n == 0 and state.step > 1:
                bar.update(state.step - 1)
            file.write(json.dumps(asdict(state)) + "\n")
            done[state.step] = state
            bar.update()
            if state.step % 20 == 0:
                bar.set_postfix(_recent(done, state.step), refresh=False)
    save_pipeline(pipeline, output)
    record = {
        "config": asdict(config),
        **provenance,
        "versions": {name: version(name) for name in ("isodiff", "torch", "diffusers", "accelerate")},
        "python": platform.python_version(),
        "parameters": sum(p.numel() for p in pipeline.unet.parameters()),
        "curves": _curves([done[step] for step in sorted(done)]),
    }
    partial = output / f".{RECORD}.partial"
    partial.write_text(json.dumps(record, indent=1) + "\n")
    partial.replace(record_file)
    checkpoint.unlink(missing_ok=True)
    log.unlink(missing_ok=True)
    return pipeline


def command_line(arguments: list[str]) -> str:
    """Return the command that was typed, to be recorded."""
    return shlex.join(["isodiff", *arguments])


def _read_log(log: Path) -> dict[int, TrainingState]:
    """Steps logged so far, by number; a step run again after an interruption replaces its first run."""
    states = {}
    for line in log.read_text().splitlines() if log.exists() else []:
        try:
            state = TrainingState(**json.loads(line))
        except json.JSONDecodeError:  # the line that a kill cut short
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


def _require_same(record: dict, config: FinetuneConfig, provenance: dict[str, str], output: Path) -> None:
    wanted = asdict(config) | {k: v for k, v in provenance.items() if k != "command"}
    found = record["config"] | {k: v for k, v in record.items() if k in provenance}
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
