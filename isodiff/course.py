"""Run the course: notebooks in, executed notebooks and one HTML index out.

Every choice is checked before the first cell runs, a failing notebook does not stop the others, and every
file is written whole or not at all.
"""

from __future__ import annotations

import ast
import copy
import json
import os
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import nbformat
import papermill
from ipykernel.kernelspec import write_kernel_spec
from nbconvert import HTMLExporter
from nbformat import NotebookNode
from papermill.exceptions import PapermillExecutionError
from tqdm.auto import tqdm

from isodiff import profiles
from isodiff.course_index import Failure, Outcome, index_page
from isodiff.files import write_whole
from isodiff.parameters import listing, parse_overrides
from isodiff.paths import repository_root, require_folder
from isodiff.source_links import with_links_from, with_source_links


def run_notebooks(
    names: Iterable[str] = (),
    *,
    profile: str = "cpu",
    parameters: Mapping[str, Any] | None = None,
    output: str | Path | None = None,
    update: bool = False,
    folder: str | Path | None = None,
) -> list[Outcome]:
    """Run notebooks through papermill and write an index of their figures and verdicts.

    Args:
        names: Notebooks, by full name or by number (``"04"`` or ``"4"``); all of them if empty.
        profile: ``"cpu"`` or ``"gpu"``.
        parameters: Values for the notebooks' parameters, or for the sizes of their settings.
        output: Folder for what is written, ``index.html`` too; by default ``runs/PROFILE`` of the repository.
        update: Also write the executed notebooks back, clean and with their links to the sources; for an unchanged
            run at profile ``cpu`` only.
        folder: Where the notebooks are; ``notebooks`` in the repository by default.

    Returns:
        One outcome per notebook, in order. What failed is printed, too.

    Raises:
        FileNotFoundError: If there are no notebooks.
        ValueError: For an unknown notebook, profile or parameter, or a value of the wrong type.
        OSError: If the output cannot be written.
    """
    folder = Path(folder) if folder else repository_root() / "notebooks"
    chosen = select(names, course_notebooks(folder))
    given = dict(parameters or {})
    if update and (given or profile != "cpu"):
        raise ValueError("--update rewrites the committed outputs, so it takes profile cpu and no parameters")
    changes = {path: check_parameters(path, profile, given) for path in chosen}

    output = Path(output) if output else repository_root() / "runs" / profile
    require_folder(output)
    output.mkdir(parents=True, exist_ok=True)
    outcomes = []
    with kernel_of_this_interpreter(), tqdm(chosen, unit="notebook", disable=len(chosen) < 2) as bar:
        for path in bar:
            bar.set_description(path.stem)
            outcome = run_notebook(path, output / path.name, changes[path])
            if update and outcome.failure is None:
                committed = clean(with_source_links(outcome.notebook))
                write_whole(path, nbformat.writes(committed) + "\n")
            outcomes.append(outcome)
    index = output / "index.html"
    write_whole(index, index_page(outcomes, profile=profile, parameters=given))
    report(outcomes, index)
    return outcomes


def course_notebooks(folder: Path) -> list[Path]:
    """Return the notebooks of a folder whose names begin with two digits, in order."""
    found = sorted(folder.glob("[0-9][0-9]_*.ipynb"))
    if not found:
        raise FileNotFoundError(f"{folder} holds no notebook named like 01_….ipynb")
    return found


def select(names: Iterable[str], available: list[Path]) -> list[Path]:
    """Return the notebooks that are named, each once, in the course's order; all if none is named."""
    wanted = set()
    for name in names:
        stem = Path(name).stem.zfill(2)
        matches = [path for path in available if stem in (path.stem, path.stem.split("_")[0])]
        if not matches:
            raise ValueError(f"no notebook is called {name!r}; there are {listing(p.stem for p in available)}")
        wanted.update(matches)
    return [path for path in available if path in wanted] or available


def notebook_parameters(notebook: NotebookNode) -> dict[str, Any]:
    """Return the names and default values in the cell tagged ``parameters``, which holds literals only."""
    cells = [cell for cell in notebook.cells if "parameters" in cell.metadata.get("tags", [])]
    if len(cells) != 1:
        raise ValueError(f"{len(cells)} cells are tagged parameters; a notebook of the course has exactly one")
    defaults = {}
    for statement in ast.parse(cells[0].source).body:
        match statement:
            case ast.Assign(targets=[ast.Name(id=name)], value=ast.Constant(value=value)):
                defaults[name] = value
            case _:
                line = ast.unparse(statement)
                raise ValueError(f"the parameters cell holds {line!r}; it accepts only name = literal")
    return defaults


def check_parameters(path: Path, profile: str, given: Mapping[str, Any]) -> dict[str, Any]:
    """Return what papermill must inject so that a notebook runs with the given values.

    A value is either one of the notebook's own parameters or a size of its settings; sizes are folded into
    the JSON object ``overrides``. All are checked here, by building the notebook's settings.

    Raises:
        ValueError: For a name the notebook does not know, or a value it does not accept.
    """
    if "profile" in given:
        raise ValueError("the profile is chosen with --profile, not as a parameter")
    defaults = notebook_parameters(nbformat.read(path, as_version=4))
    sizes = profiles.size_hints(path.stem, profile)
    if unknown := sorted(given.keys() - defaults.keys() - sizes.keys()):
        accepted = listing(sorted((defaults.keys() | sizes.keys()) - {"profile"}))
        raise ValueError(f"{path.stem} has no parameter called {listing(unknown)}; it accepts {accepted}")

    chosen = defaults | {"profile": profile} | {name: given[name] for name in given.keys() & defaults.keys()}
    if isinstance(chosen["overrides"], Mapping):
        chosen["overrides"] = json.dumps(chosen["overrides"])
    folded = {name: given[name] for name in given.keys() - defaults.keys()}
    if folded:
        chosen["overrides"] = json.dumps(parse_overrides(chosen["overrides"]) | folded)
    profiles.settings(path.stem, **chosen)
    return {name: value for name, value in chosen.items() if value != defaults[name]}


def run_notebook(source: Path, target: Path, changes: Mapping[str, Any]) -> Outcome:
    """Execute one notebook into ``target`` and its HTML page beside it; a failure is returned, not raised."""
    failure = None
    started = time.perf_counter()
    # a scratch folder beside the target: papermill saves as it goes, and the move at the end is atomic
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=".running-") as scratch:
        executed = Path(scratch, source.name)
        try:
            papermill.execute_notebook(
                str(source),
                str(executed),
                parameters=dict(changes),
                kernel_name="python3",
                progress_bar={"desc": source.stem, "leave": False},
            )
        except PapermillExecutionError as error:
            failure = Failure(f"cell [{error.exec_count}]", one_line(f"{error.ename}: {error.evalue}"))
        except Exception as error:  # a kernel that died or never started, whatever the reason: the rest still runs
            failure = Failure("kernel", one_line(f"{type(error).__name__}: {error}"))
        minutes = (time.perf_counter() - started) / 60
        notebook = nbformat.read(executed if executed.exists() else source, as_version=4)
    notebook = with_links_from(notebook, target.parent)
    write_whole(target, nbformat.writes(notebook) + "\n")
    write_whole(target.with_suffix(".html"), HTMLExporter().from_notebook_node(notebook)[0])
    return Outcome(source.stem, notebook, minutes, failure)


def one_line(text: str) -> str:
    """Return a message without its line breaks."""
    return " ".join(text.split())


def clean(notebook: NotebookNode) -> NotebookNode:
    """Return an executed notebook as it is committed: no timestamps, live widgets or traces of papermill.

    Of a widget its text stays, which says to run the cell; its model lived in the kernel that has ended.
    """
    notebook = copy.deepcopy(notebook)
    language = {"name": "python"}
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    notebook.metadata = NotebookNode(kernelspec=kernel, language_info=language)
    for cell in notebook.cells:
        tags = cell.metadata.get("tags")
        cell.metadata = NotebookNode(tags=tags) if tags else NotebookNode()
        for output in cell.get("outputs", []):
            output.get("data", {}).pop("application/vnd.jupyter.widget-view+json", None)
    return notebook


def report(outcomes: list[Outcome], index: Path) -> None:
    """Print what failed, where and why, and where the index is."""
    failed = [outcome for outcome in outcomes if outcome.failure]
    for outcome in failed:
        print(f"FAILED {outcome.name}, {outcome.failure.where}: {outcome.failure.what}", file=sys.stderr)
    ran = f"{len(outcomes) - len(failed)} of {len(outcomes)} notebooks ran"
    print(f"{ran} in {sum(outcome.minutes for outcome in outcomes):.1f} minutes; figures and verdicts: {index}")


@contextmanager
def kernel_of_this_interpreter() -> Iterator[None]:
    """Make ``python3`` mean this very interpreter, whatever kernels the machine has registered."""
    before = os.environ.get("JUPYTER_PATH")
    with tempfile.TemporaryDirectory() as folder:
        write_kernel_spec(
            Path(folder, "kernels", "python3"),
            overrides={"env": {"MPLBACKEND": "module://matplotlib_inline.backend_inline"}},
            extra_arguments=["--IPKernelApp.log_level=ERROR"],  # how the kernel is reached is no reader's concern
        )
        os.environ["JUPYTER_PATH"] = folder if before is None else folder + os.pathsep + before
        try:
            yield
        finally:
            if before is None:
                del os.environ["JUPYTER_PATH"]
            else:
                os.environ["JUPYTER_PATH"] = before
