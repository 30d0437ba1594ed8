"""The commands `isodiff evaluate` and `isodiff compare`: metrics of checkpoints, side by side."""

from __future__ import annotations

import argparse
import json
import os
import re
import sys
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING

from isodiff.parameters import key_value, resolve_device
from isodiff.paths import repository_root, require_folder

if TYPE_CHECKING:
    from accelerate import PartialState

_PATIENCE = timedelta(days=1)  # for the slowest process, with a piece of work that only one of them does


def add_evaluate(subparsers: argparse._SubParsersAction) -> None:
    """Add ``isodiff evaluate``."""
    parser = subparsers.add_parser(
        "evaluate",
        help="measure checkpoints on every metric, with intervals",
        description="Measure diffusion models; write one JSON record each and print them side by side, later ones also "
        "as the paired difference from the first. Interrupted, it goes on when it is given again. Started by "
        "accelerate launch on several processes, each with a device of its own, it shares the work among them.",
    )
    parser.add_argument(
        "models",
        nargs="+",
        metavar="CHECKPOINT",
        help="a diffusers directory, a shipped model such as faces32/base, a published one, or hub:OWNER/NAME",
    )
    parser.add_argument("--prompt", help="held fixed; of Stable Diffusion models only")
    parser.add_argument(
        "--metrics", metavar="NAME[,NAME…]", help="fid, kid, ppl, …; default: all that apply to the model"
    )
    parser.add_argument("--dataset", default="faces", help="real images: faces (default), or as for finetune")
    parser.add_argument(
        "--attributes",
        default="auto",
        help="what labels generated images for separability: faces, a folder that train-attributes wrote, or none "
        "(default: faces for the data set faces, none elsewhere)",
    )
    parser.add_argument("--profile", default="cpu", help="sizes: cpu (minutes), record (hours) or gpu (paper scale)")
    parser.add_argument(
        "-p",
        "--size",
        dest="sizes",
        action="append",
        type=key_value,
        default=[],
        metavar="NAME=VALUE",
        help="replace one size, such as num_fid_images=1000; may be repeated",
    )
    parser.add_argument("--seed", type=int, default=0, help="of every draw (default: 0)")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N (default: auto)")
    parser.add_argument("--output", metavar="DIR", help="where records go (default: runs/evaluation in the repository)")
    parser.add_argument("--cache", metavar="DIR", help="where finished work is kept (default: runs/cache)")
    parser.add_argument("--no-progress", action="store_true", help="no progress bars")
    parser.set_defaults(run=_evaluate)


def add_compare(subparsers: argparse._SubParsersAction) -> None:
    """Add ``isodiff compare``."""
    parser = subparsers.add_parser(
        "compare",
        help="set records of isodiff evaluate side by side",
        description="Print records side by side; later ones also as the paired difference from the first.",
    )
    parser.add_argument("records", nargs="+", metavar="RECORD", help="JSON files that isodiff evaluate wrote")
    parser.set_defaults(run=_compare)


def _evaluate(options: argparse.Namespace) -> int:
    from isodiff.metrics.evaluation import evaluate
    from isodiff.metrics.record import comparison_table

    output = Path(options.output) if options.output else repository_root() / "runs" / "evaluation"
    paths = [output / f"{_record_name(model, options.prompt)}.json" for model in options.models]
    if len(set(paths)) < len(paths):
        raise ValueError(f"two checkpoints would write the same record; give each a name of its own: {options.models}")
    require_folder(output)
    processes, device = _join(options.device)
    records = []
    for model, path in zip(options.models, paths, strict=True):
        record = evaluate(
            model,
            None if options.metrics is None else options.metrics.split(","),
            dataset=options.dataset,
            prompt=options.prompt,
            attributes=None if options.attributes == "none" else options.attributes,
            profile=options.profile,
            seed=options.seed,
            device=device,
            overrides=json.dumps(dict(options.sizes)),
            cache=options.cache or repository_root() / "runs" / "cache",
            progress=processes.is_main_process and not options.no_progress,
            processes=processes,
        )
        records.append(record)
        if processes.is_main_process:
            record.save(path)
            for name, reason in record.left_out.items():
                print(f"{model}: {name} left out: {reason}", file=sys.stderr)
    if processes.is_main_process:
        print(comparison_table(records))
        print("\n" + "\n".join(f"record: {path}" for path in paths))
    return 0


def _join(device: str) -> tuple[PartialState, str]:
    """Join the processes that a launcher started, if it did, and return the device of this one."""
    import torch
    from accelerate import PartialState

    chosen, here = resolve_device(device), int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    if chosen.type == "cuda" and here > 1:
        if chosen.index is not None:
            raise ValueError(f"device is {device!r} for {here} processes; give 'cuda', and each takes its own")
        if here > torch.cuda.device_count():
            raise ValueError(
                f"{here} processes need a CUDA device each, but this machine has {torch.cuda.device_count()}; "
                "start as many"
            )
    processes = PartialState(cpu=chosen.type == "cpu", timeout=_PATIENCE)
    return processes, str(processes.device) if processes.num_processes > 1 else device


def _record_name(model: str, prompt: str | None) -> str:
    """Return the last two parts of a checkpoint's name and the prompt, joined: ``faces32/base`` is ``faces32-base``."""
    parts = [part for part in Path(model.removeprefix("hub:")).parts[-2:] if part not in ("/", ".", "..")]
    return re.sub(r"[^\w.-]+", "_", "-".join(parts if prompt is None else [*parts, prompt or "no prompt"]))


def _compare(options: argparse.Namespace) -> int:
    from isodiff.metrics.record import Record, comparison_table

    print(comparison_table([Record.load(path) for path in options.records]))
    return 0
