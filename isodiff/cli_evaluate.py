"""The commands `isodiff evaluate` and `isodiff compare`: metrics of checkpoints, side by side."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from isodiff.parameters import key_value
from isodiff.paths import repository_root


def add_evaluate(subparsers: argparse._SubParsersAction) -> None:
    """Add ``isodiff evaluate``."""
    parser = subparsers.add_parser(
        "evaluate",
        help="measure checkpoints on every metric, with intervals",
        description="Measure diffusers DDPMs; write one JSON record each and print them side by side, later ones also "
        "as the paired difference from the first. Interrupted, it goes on when it is given again.",
    )
    parser.add_argument(
        "models", nargs="+", metavar="CHECKPOINT", help="a DDPM directory, or a shipped one such as faces32/base"
    )
    parser.add_argument(
        "--metrics", metavar="NAME[,NAME…]", help="fid, kid, ppl, …; default: all that apply to the model"
    )
    parser.add_argument(
        "--dataset", default="faces", help="real images: faces (default), digits, folder:PATH, hub:NAME"
    )
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
    paths = [output / f"{_record_name(model)}.json" for model in options.models]
    if len(set(paths)) < len(paths):
        raise ValueError(f"two checkpoints would write the same record; give each a name of its own: {options.models}")
    records = []
    for model, path in zip(options.models, paths, strict=True):
        record = evaluate(
            model,
            options.metrics.split(",") if options.metrics else None,
            dataset=options.dataset,
            attributes=None if options.attributes == "none" else options.attributes,
            profile=options.profile,
            seed=options.seed,
            device=options.device,
            overrides=json.dumps(dict(options.sizes)),
            cache=options.cache or repository_root() / "runs" / "cache",
            progress=not options.no_progress,
        )
        record.save(path)
        for name, reason in record.left_out.items():
            print(f"{model}: {name} left out: {reason}", file=sys.stderr)
        records.append(record)
    print(comparison_table(records))
    print("\n" + "\n".join(f"record: {path}" for path in paths))
    return 0


def _record_name(model: str) -> str:
    """Return the last two parts of a checkpoint's path, joined: ``faces32/base`` becomes ``faces32-base``."""
    return "-".join(part for part in Path(model).parts[-2:] if part not in ("/", ".", ".."))


def _compare(options: argparse.Namespace) -> int:
    from isodiff.metrics.record import Record, comparison_table

    print(comparison_table([Record.load(path) for path in options.records]))
    return 0
