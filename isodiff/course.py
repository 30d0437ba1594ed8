"""Run the course: notebooks in, executed notebooks and one HTML page of figures and verdicts out."""

from __future__ import annotations

import ast
import contextlib
import copy
import os
import re
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Self
from unittest.mock import patch

import torch
import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from isodiff.files import claim_folder, repository_root, resolve_device, write_whole
from isodiff.verdict import VERDICT_KINDS, VERDICTS_MIME

if TYPE_CHECKING:
    from nbformat import NotebookNode


class Parameters(BaseModel):
    """What every notebook is told; its own sizes are further fields, with types that pydantic checks."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, arbitrary_types_allowed=True)

    seed: int = Field(ge=0, lt=2**32)  # of all randomness
    device: Annotated[torch.device, BeforeValidator(resolve_device)]  # from "auto", "cpu", "cuda" or "cuda:N"

    @classmethod
    def of(cls, names: Mapping[str, Any]) -> Self:
        """Take each field from the parameters of a notebook: `settings = Settings.of(globals())`."""
        return cls(**{name: names[name] for name in cls.model_fields})


MATHJAX = Path("docs/vendor/tex-svg-full.js")  # sets the formulas of pages, beside which it lies
KINDS = ("image/png", VERDICTS_MIME)  # of output that the index shows


@dataclass
class Page:
    """What became of one notebook: its text and outputs, minutes of wall clock, and where it failed, if it did."""

    name: str
    notebook: NotebookNode
    minutes: float
    failure: str = ""

    def __post_init__(self) -> None:
        """Read what the index shows from the notebook."""
        cells = self.notebook.cells
        text = "\n".join(cell.source for cell in cells if cell.cell_type == "markdown")
        title = re.search(r"^# +(.+)$", text, re.MULTILINE)
        question = re.search(r"^\| *\**Question\** *\|(.+)\| *$", text, re.MULTILINE)
        self.title, self.question = title[1].strip() if title else self.name, question[1].strip() if question else ""
        shown = [output for cell in cells for output in cell.get("outputs", [])]
        self.figures, self.tables = ([o for o in shown if kind in o.get("data", {})] for kind in KINDS)


def run_notebooks(
    names: Iterable[str] = (),
    *,
    profile: str = "cpu",
    parameters: Mapping[str, Any] | None = None,
    output: str | Path | None = None,
    update: bool = False,
    jobs: int | None = None,
    folder: str | Path | None = None,
) -> list[Page]:
    """Run notebooks through papermill and write an index of their figures and verdicts; a failure stops no other.

    names: by full name or by number, "04" or "4". profile: "cpu", the values that stand in the notebooks, or "gpu",
    those of `gpu.yaml`. update: also write the notebooks back, clean. jobs share the processor's threads.
    """
    from tqdm.auto import tqdm

    folder = Path(folder) if folder else repository_root() / "notebooks"
    if not (available := sorted(folder.glob("[0-9][0-9]_*.ipynb"))):
        raise ValueError(f"there are no notebooks in {folder}; expected files such as 04_isometric_finetuning.ipynb")
    chosen, given = select(names, available), dict(parameters or {})
    if update and (given or profile != "cpu"):
        raise ValueError("--update rewrites the committed outputs, so it takes profile cpu and no parameters")
    if profile not in ("cpu", "gpu"):
        raise ValueError(f"profile is {profile!r}; accepted are cpu and gpu")
    scale = yaml.safe_load((folder / "gpu.yaml").read_text(encoding="utf-8")) if profile == "gpu" else {}
    changes = {path: check_parameters(path, {**scale.get(path.stem, {}), **given}) for path in chosen}
    cores = os.cpu_count() or 1
    jobs = min((1 if profile == "gpu" else cores) if jobs is None else jobs, len(chosen))
    if jobs < 1:
        raise ValueError(f"jobs must be at least 1; got {jobs}")
    output = Path(output or repository_root() / "runs" / profile)
    claim_folder(output, ["index.html", *(path.name for path in chosen)], overwrite=None, inputs=(folder,))
    write_whole(output / MATHJAX.name, (repository_root() / MATHJAX).read_bytes())
    with kernel_of_this_interpreter(threads=max(1, cores // jobs)), ThreadPoolExecutor(jobs) as pool:
        running = pool.map(lambda path: run_notebook(path, output / path.name, changes[path], update=update), chosen)
        pages = list(tqdm(running, total=len(chosen), unit="notebook", disable=len(chosen) < 2))
    index = index_notebook(pages, profile=profile, parameters=given)
    write_whole(output / "index.html", as_page(index, "isodiff: figures and verdicts", bare=True))
    for page in (failed := [page for page in pages if page.failure]):
        print(f"FAILED {page.name}, {page.failure}", file=sys.stderr)
    ran = f"{len(pages) - len(failed)} of {len(pages)} notebooks ran"
    print(f"{ran}; figures and verdicts: {output / 'index.html'}")
    return pages


def select(names: Iterable[str], available: list[Path]) -> list[Path]:
    """Return the notebooks that are named, each once, in the course's order; all if none is named."""
    wanted = {name: Path(name).stem.zfill(2) for name in names}
    known = {stem: path for path in available for stem in (path.stem, path.stem[:2])}
    for name, stem in wanted.items():
        if stem not in known:
            raise ValueError(f"no notebook is called {name!r}; there are {', '.join(p.stem for p in available)}")
    return sorted({known[stem] for stem in wanted.values()}) or available


def notebook_parameters(notebook: NotebookNode) -> dict[str, Any]:
    """Return the names and values in the cell tagged `parameters`, which holds `name = literal` only."""
    cells = [cell for cell in notebook.cells if "parameters" in cell.metadata.get("tags", [])]
    if len(cells) != 1:
        raise ValueError(f"{len(cells)} cells are tagged parameters; a notebook of the course has exactly one")
    defaults = {}
    for statement in ast.parse(cells[0].source).body:
        try:
            (target,) = statement.targets
            defaults[target.id] = ast.literal_eval(statement.value)
        except (AttributeError, ValueError):
            line = ast.unparse(statement)
            raise ValueError(f"the parameters cell holds {line!r}; it accepts only name = literal") from None
    return defaults


def check_parameters(path: Path, given: Mapping[str, Any]) -> dict[str, Any]:
    """Return the values to inject, of its parameters' types; the notebook's own `Settings` checks their ranges."""
    import nbformat

    defaults = notebook_parameters(nbformat.read(path, as_version=4))
    if unknown := sorted(given.keys() - defaults.keys()):
        accepted = ", ".join(sorted(defaults))
        raise ValueError(f"{path.stem} has no parameter called {', '.join(unknown)}; it accepts {accepted}")
    for name, value in given.items():
        default = defaults[name]
        is_number = isinstance(default, float) and type(value) is int
        if type(value) is not type(default) and None not in (value, default) and not is_number:
            kind = type(default).__name__
            raise ValueError(f"{name} is {value!r}; {path.stem} accepts a value of type {kind}, such as {default!r}")
    return {name: value for name, value in given.items() if value != defaults[name]}


def run_notebook(source: Path, target: Path, changes: Mapping[str, Any], *, update: bool = False) -> Page:
    """Execute one notebook into `target`, and its HTML page beside it; a failure is returned, not raised."""
    import nbformat
    import papermill
    from papermill.exceptions import PapermillExecutionError

    failure, started = "", time.perf_counter()
    # a scratch folder beside the target: papermill saves as it goes, and the move at the end is atomic
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=".running-") as scratch:
        executed = Path(scratch, source.name)
        try:
            papermill.execute_notebook(source, executed, changes, kernel_name="python3", progress_bar=False)
        except PapermillExecutionError as error:
            failure = f"cell [{error.exec_count}]: {error.ename}: {error.evalue}"
        except Exception as error:  # a kernel that died or never started, whatever the reason: the rest still runs
            failure = f"kernel: {type(error).__name__}: {error}"
        minutes = (time.perf_counter() - started) / 60
        notebook = nbformat.read(executed if executed.exists() else source, as_version=4)
    elsewhere = copy.deepcopy(notebook)
    way = Path(os.path.relpath(source.parents[1].resolve(), target.parent.resolve())).as_posix()
    for cell in elsewhere.cells:
        cell.source = cell.source.replace("](../", f"]({way}/")  # links to the package lead there from here, too
    write_whole(target, nbformat.writes(elsewhere) + "\n")
    write_whole(target.with_suffix(".html"), as_page(elsewhere, source.stem))
    if update and not failure:
        write_whole(source, nbformat.writes(clean(notebook)) + "\n")
    return Page(source.stem, notebook, minutes, " ".join(failure.split()))


def clean(notebook: NotebookNode) -> NotebookNode:
    """Return an executed notebook as it is committed: no timestamps, live widgets or traces of papermill."""
    from nbformat import NotebookNode

    notebook = copy.deepcopy(notebook)
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    notebook.metadata = NotebookNode(kernelspec=kernel, language_info={"name": "python"})
    for cell in notebook.cells:
        kept = {name: cell.metadata.get(name) for name in ("tags", "jupyter")}
        cell.metadata = NotebookNode({name: value for name, value in kept.items() if value})
        for output in cell.get("outputs", []):  # of a widget its text stays, which says to run the cell
            output.get("data", {}).pop("application/vnd.jupyter.widget-view+json", None)
    return notebook


@contextlib.contextmanager
def kernel_of_this_interpreter(threads: int = 1) -> Iterator[None]:
    """Make `python3` mean this very interpreter, whatever kernels the machine has registered, on so many threads."""
    from ipykernel.kernelspec import write_kernel_spec

    # idle threads sleep: where they spin, a busy machine slows a notebook many times over
    env = {"MPLBACKEND": "module://matplotlib_inline.backend_inline", "OMP_WAIT_POLICY": "PASSIVE"}
    env |= {name: str(threads) for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS") if name not in os.environ}
    quiet = ["--IPKernelApp.log_level=ERROR"]
    with tempfile.TemporaryDirectory() as folder:
        write_kernel_spec(Path(folder, "kernels", "python3"), overrides={"env": env}, extra_arguments=quiet)
        places = [folder, *filter(None, [os.environ.get("JUPYTER_PATH")])]
        with patch.dict(os.environ, JUPYTER_PATH=os.pathsep.join(places)):
            yield


def as_page(notebook: NotebookNode, title: str, *, bare: bool = False) -> str:
    """Return a notebook as HTML that loads nothing but the script beside it; bare: without code."""
    from nbconvert import HTMLExporter

    template = {"template_file": "page.html.j2", "extra_template_paths": [str(Path(__file__).parent)]}
    exporter = HTMLExporter(mathjax_url=MATHJAX.name, exclude_input=bare, exclude_output_prompt=bare, **template)
    return exporter.from_notebook_node(notebook, {"metadata": {"name": title}})[0]


def index_notebook(pages: list[Page], *, profile: str, parameters: Mapping[str, Any]) -> NotebookNode:
    """Return what a run ends with: what became of each notebook, its verdicts and figures."""
    from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

    counts = Counter(row["verdict"] for page in pages for output in page.tables for row in output.data[VERDICTS_MIME])
    tally = ", ".join(f"{counts[kind]} {kind}" for kind in VERDICT_KINDS if counts[kind])
    told = "".join(f", {name} = {value}" for name, value in parameters.items())
    front = f"# Isometric diffusion, run and checked\n\nProfile {escape(profile + told)}. "
    front += f"Verdicts: {tally}." if tally else "No verdicts."
    front += "\n\n| Notebook | Question | Minutes | |\n|---|---|---|---|\n"
    cells = [new_markdown_cell(front)]
    for page in pages:
        number, status = page.name.split("_")[0], "✗ failed" if page.failure else "✓ ran"
        row = f"[{number} · {page.title}](#{page.name}) | {page.question} | {page.minutes:.1f} | {status}"
        cells[0].source += f"| {row} |\n"
        head = f'<span id="{page.name}"></span>\n\n## {number} · {page.title}\n\n{page.question}\n\n{status}: '
        head += f"[read it]({page.name}.html), [open the notebook]({page.name}.ipynb)"
        head += f"\n\n<b>{escape(page.failure)}</b>" if page.failure else ""
        cells += [new_markdown_cell(head), new_code_cell(outputs=[*page.tables, *page.figures])]
    return new_notebook(cells=cells)
