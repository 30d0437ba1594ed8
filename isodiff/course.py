"""Run the course: notebooks in, executed notebooks and one HTML page of figures and verdicts out.

Names and types are checked before the first cell runs, a failing notebook does not stop the others, and every file is
written whole or not at all. Heavy modules are imported where they run: every notebook takes `Parameters` from here.
"""

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
from dataclasses import dataclass, field
from html import unescape
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Self

import torch
import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from isodiff.files import repository_root, require_folder, resolve_device, write_whole
from isodiff.verdict import VERDICT_KINDS, VERDICTS_MIME, Verdict, verdict_table

if TYPE_CHECKING:
    from nbformat import NotebookNode


class Parameters(BaseModel):
    """What every notebook is told; its own sizes are further fields, with types that pydantic checks.

    seed: of all randomness, 0 ≤ seed < 2³². device: "auto", "cpu", "cuda" or "cuda:N"; read as a `torch.device`.
    An unknown name, another type or a value out of range is refused by name, and nothing can be changed later.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, arbitrary_types_allowed=True)

    seed: int = Field(ge=0, lt=2**32)
    device: Annotated[torch.device, BeforeValidator(resolve_device)]

    @classmethod
    def of(cls, names: Mapping[str, Any]) -> Self:
        """Take each field from the parameters of a notebook: `settings = Settings.of(globals())`."""
        return cls(**{name: names[name] for name in cls.model_fields})


@dataclass
class Page:
    """What became of one notebook: its text and outputs, minutes of wall clock, and where it failed, if it did."""

    name: str
    notebook: NotebookNode
    minutes: float
    failure: str = ""
    number: str = field(init=False)
    title: str = field(init=False)
    question: str = field(init=False)
    verdicts: list[str] = field(init=False)
    figures: list[dict[str, str]] = field(init=False)

    def __post_init__(self) -> None:
        """Read what the index shows from the notebook."""
        text = "\n".join(cell.source for cell in self.notebook.cells if cell.cell_type == "markdown")
        found = {key: re.search(pattern, text, re.MULTILINE) for key, pattern in _FRONT.items()}
        self.number = self.name.split("_")[0]
        self.title = found["title"][1].strip() if found["title"] else self.name
        self.question = found["question"][1].strip() if found["question"] else ""
        self.verdicts = [verdict_table(rows).to_html() for rows in verdict_rows(self.notebook)]
        self.figures = list(figures(self.notebook))


_FRONT = {"title": r"^# +(.+)$", "question": r"^\| *\**Question\** *\|(.+)\| *$"}


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
    """Run notebooks through papermill and write an index of their figures and verdicts.

    names: by full name or by number, "04" or "4"; all of them if empty. profile: "cpu", the values that stand in the
    notebooks, or "gpu", those of `gpu.yaml`. parameters: values that replace these. output: `runs/PROFILE` in the
    repository by default. update: also write the executed notebooks back, clean; for an unchanged run only. jobs:
    notebooks at a time, by default one a processor (on a GPU one); each takes its share of threads, so that none waits
    for another. What failed is told in its page and printed.

    Raises:
        FileNotFoundError: there are no notebooks.
        ValueError: an unknown notebook, profile or parameter, or a value of another type.
        OSError: the output cannot be written.
    """
    folder = Path(folder) if folder else repository_root() / "notebooks"
    chosen = select(names, course_notebooks(folder))
    given = dict(parameters or {})
    if update and (given or profile != "cpu"):
        raise ValueError("--update rewrites the committed outputs, so it takes profile cpu and no parameters")
    if profile not in ("cpu", "gpu"):
        raise ValueError(f"profile is {profile!r}; accepted are cpu and gpu")
    scale = yaml.safe_load((folder / "gpu.yaml").read_text(encoding="utf-8")) if profile == "gpu" else {}
    changes = {path: check_parameters(path, {**scale.get(path.stem, {}), **given}) for path in chosen}
    cores = os.cpu_count() or 1
    jobs = (1 if profile == "gpu" else cores) if jobs is None else jobs
    if jobs < 1:
        raise ValueError(f"jobs must be at least 1; got {jobs}")
    jobs = min(jobs, len(chosen))

    output = Path(output) if output else repository_root() / "runs" / profile
    require_folder(output)
    output.mkdir(parents=True, exist_ok=True)
    environment = kernel_of_this_interpreter(threads=max(1, cores // jobs))
    with environment, ThreadPoolExecutor(jobs) as pool, contextlib.closing(_bar(chosen)) as bar:

        def run(path: Path) -> Page:
            page = run_notebook(path, output / path.name, changes[path])
            if update and not page.failure:
                import nbformat

                write_whole(path, nbformat.writes(clean(page.notebook)) + "\n")
            bar.update()
            return page

        pages = list(pool.map(run, chosen))
    write_whole(output / "index.html", index_page(pages, profile=profile, parameters=given))
    failed = [page for page in pages if page.failure]
    for page in failed:
        print(f"FAILED {page.name}, {page.failure}", file=sys.stderr)
    minutes = sum(page.minutes for page in pages) / jobs
    print(f"{len(pages) - len(failed)} of {len(pages)} notebooks ran", end=" ")
    print(f"in some {minutes:.0f} minutes; figures and verdicts: {output / 'index.html'}")
    return pages


def _bar(chosen: list[Path]) -> Any:  # noqa: ANN401 - a progress bar
    from tqdm.auto import tqdm

    return tqdm(total=len(chosen), unit="notebook", disable=len(chosen) < 2)


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
            raise ValueError(f"no notebook is called {name!r}; there are {', '.join(p.stem for p in available)}")
        wanted.update(matches)
    return [path for path in available if path in wanted] or available


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
    """Return the values to inject, if a notebook has such parameters and they are of its types.

    Ranges are checked in the notebook's own `Settings`, by its first cell.
    """
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


def run_notebook(source: Path, target: Path, changes: Mapping[str, Any]) -> Page:
    """Execute one notebook into `target`, and its HTML page beside it; a failure is returned, not raised."""
    import nbformat
    import papermill
    from nbconvert import HTMLExporter
    from papermill.exceptions import PapermillExecutionError

    failure = ""
    started = time.perf_counter()
    # a scratch folder beside the target: papermill saves as it goes, and the move at the end is atomic
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=".running-") as scratch:
        executed = Path(scratch, source.name)
        try:
            papermill.execute_notebook(
                str(source), str(executed), dict(changes), kernel_name="python3", progress_bar=False
            )
        except PapermillExecutionError as error:
            failure = f"cell [{error.exec_count}]: {error.ename}: {error.evalue}"
        except Exception as error:  # a kernel that died or never started, whatever the reason: the rest still runs
            failure = f"kernel: {type(error).__name__}: {error}"
        minutes = (time.perf_counter() - started) / 60
        notebook = nbformat.read(executed if executed.exists() else source, as_version=4)
    page = Page(source.stem, notebook, minutes, " ".join(failure.split()))
    elsewhere = copy.deepcopy(notebook)  # links to the package's files lead there from the other folder, too
    for cell in elsewhere.cells:
        if cell.cell_type == "markdown":
            cell.source = cell.source.replace("](../", f"]({_way(target.parent, source.parents[1])}/")
    write_whole(target, nbformat.writes(elsewhere) + "\n")
    write_whole(target.with_suffix(".html"), HTMLExporter().from_notebook_node(elsewhere)[0])
    return page


def _way(start: Path, end: Path) -> str:
    """Return the way from one folder to another as a link, relative unless they are on different drives."""
    start, end = start.resolve(), end.resolve()
    return Path(os.path.relpath(end, start)).as_posix() if start.anchor == end.anchor else end.as_uri()


def clean(notebook: NotebookNode) -> NotebookNode:
    """Return an executed notebook as it is committed: no timestamps, live widgets or traces of papermill.

    Of a widget its text stays, which says to run the cell; its model lived in the kernel that has ended.
    """
    from nbformat import NotebookNode

    notebook = copy.deepcopy(notebook)
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    notebook.metadata = NotebookNode(kernelspec=kernel, language_info={"name": "python"})
    for cell in notebook.cells:
        kept = {name: cell.metadata[name] for name in ("tags", "jupyter") if cell.metadata.get(name)}
        if "jupyter" in kept:  # whether a cell is collapsed is ours, the rest papermill's
            kept["jupyter"] = {k: v for k, v in kept["jupyter"].items() if k == "source_hidden" and v}
        cell.metadata = NotebookNode({name: value for name, value in kept.items() if value})
        for output in cell.get("outputs", []):
            output.get("data", {}).pop("application/vnd.jupyter.widget-view+json", None)
    return notebook


@contextlib.contextmanager
def kernel_of_this_interpreter(threads: int = 1) -> Iterator[None]:
    """Make `python3` mean this very interpreter, whatever kernels the machine has registered, on so many threads.

    Threads that have nothing to do sleep: where they spin, a busy machine slows a notebook many times over.
    """
    from ipykernel.kernelspec import write_kernel_spec

    env = {"MPLBACKEND": "module://matplotlib_inline.backend_inline", "OMP_WAIT_POLICY": "PASSIVE"}
    env |= {name: str(threads) for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS") if name not in os.environ}
    before = os.environ.get("JUPYTER_PATH")
    with tempfile.TemporaryDirectory() as folder:
        write_kernel_spec(
            Path(folder, "kernels", "python3"),
            overrides={"env": env},
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


def verdict_rows(notebook: NotebookNode) -> list[list[Verdict]]:
    """Return the rows of every verdict table among the outputs."""
    data = [output.get("data", {}) for cell in notebook.cells for output in cell.get("outputs", [])]
    return [[Verdict(**row) for row in bundle[VERDICTS_MIME]] for bundle in data if VERDICTS_MIME in bundle]


def figures(notebook: NotebookNode) -> Iterator[dict[str, str]]:
    """Yield every figure: the nearest heading above it, what it says to those who do not see it, its base64 PNG."""
    heading = ""
    for cell in notebook.cells:
        if cell.cell_type == "markdown" and (found := re.findall(r"^#+ +(.+)$", cell.source, re.MULTILINE)):
            heading = found[-1].strip()
        for output in cell.get("outputs", []):
            if png := output.get("data", {}).get("image/png"):
                spoken = output.data.get("text/plain", "")
                if not spoken or spoken.startswith("<Figure"):  # what matplotlib says by itself is no help
                    spoken = heading
                yield {"heading": heading, "spoken": spoken, "png": "".join(png.split())}


def index_page(pages: list[Page], *, profile: str, parameters: Mapping[str, Any]) -> str:
    """Return the page a run ends with, as HTML that loads nothing from anywhere."""
    from jinja2 import Environment

    counts = Counter(row.verdict for page in pages for rows in verdict_rows(page.notebook) for row in rows)
    tally = " · ".join(f"{counts[kind]} {kind}" for kind in VERDICT_KINDS if counts[kind])
    environment = Environment(autoescape=True)
    environment.filters["markdown"] = _inline
    template = environment.from_string(Path(__file__).with_name("index.html.j2").read_text(encoding="utf-8"))
    return template.render(pages=pages, profile=profile, parameters=parameters, tally=tally) + "\n"


def _inline(text: str) -> str:
    """Return one line of Markdown as HTML, its formulas as MathML, which browsers set without scripts."""
    import mistune
    from latex2mathml.converter import convert
    from markupsafe import Markup

    html = mistune.create_markdown(plugins=["math"])(text).strip().removeprefix("<p>").removesuffix("</p>")
    formula = r'<span class="math">\\\((.+?)\\\)</span>'
    return Markup(re.sub(formula, lambda found: convert(unescape(found[1])), html))
