"""The course runner, on small notebooks that papermill really executes."""

from __future__ import annotations

import base64
import dataclasses
import json
import re
from pathlib import Path

import nbformat
import pytest
from nbformat import NotebookNode
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

from isodiff import course_index, profiles
from isodiff.course import Outcome, check_parameters, clean, notebook_parameters, run_notebooks, select

FRONT = r"""# The length of $x_T$

| | |
|---|---|
| **Question** | Is $\|x\|$ about $\sqrt{n}$ for *all* n < ∞? |
| Time | a second |
"""
PARAMETERS = 'profile = "cpu"\nseed = 0\ndevice = "auto"\noverrides = "{}"'
FIGURE = "import matplotlib.pyplot as plt\nplt.figure(figsize=(1, 1)); plt.plot([0, 1]); plt.show()"
VERDICTS = """from isodiff.results import Verdict, verdict_table
verdict_table([Verdict("a < b", "Tab. 1", "3", "4 [3, 5]", "reproduced")])"""
ECHO = "import json, sys\nprint(json.dumps([profile, seed, device, overrides]))"


@dataclasses.dataclass(frozen=True, kw_only=True)
class TinySettings(profiles.Settings):
    """Sizes of the notebooks below."""

    num_samples: int
    dimensions: tuple[int, ...] = (2, 3)


def notebook(*code: str) -> NotebookNode:
    return new_notebook(
        cells=[
            new_markdown_cell(FRONT),
            new_code_cell(PARAMETERS, metadata={"tags": ["parameters"]}),
            new_markdown_cell("## A line from 0 to $\\sqrt{n}$"),
            *[new_code_cell(source) for source in code],
        ],
        metadata={"kernelspec": {"name": "a-kernel-nobody-has", "display_name": "x", "language": "python"}},
    )


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "notebooks"
    folder.mkdir()
    nbformat.write(notebook(ECHO, FIGURE, VERDICTS), folder / "01_good.ipynb")
    nbformat.write(notebook("1 / 0", "print('never')"), folder / "02_bad.ipynb")
    nbformat.write(notebook("import os\nos._exit(1)"), folder / "03_killed.ipynb")
    for path in folder.iterdir():
        monkeypatch.setitem(profiles.PROFILES, path.stem, {"cpu": TinySettings(num_samples=10)})
    return folder


def test_a_run_goes_on_after_failures_and_ends_in_an_index(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "deep" / "out"
    before = {path: path.read_bytes() for path in folder.iterdir()}
    outcomes = run_notebooks(
        ["02", "01_good", "03_killed.ipynb"],
        parameters={"seed": 7, "num_samples": 5, "dimensions": [4]},
        output=output,
        folder=folder,
    )

    assert [outcome.name for outcome in outcomes] == ["01_good", "02_bad", "03_killed"]
    good, bad, killed = outcomes
    assert good.failure is None
    assert (bad.failure.where, bad.failure.what) == ("cell [3]", "ZeroDivisionError: division by zero")
    assert (killed.failure.where, killed.failure.what.split(":")[0]) == ("kernel", "DeadKernelError")

    captured = capsys.readouterr()
    assert "FAILED 02_bad, cell [3]: ZeroDivisionError: division by zero" in captured.err
    assert "FAILED 03_killed, kernel: DeadKernelError" in captured.err
    assert "FAILED 01" not in captured.err
    assert "1 of 3 notebooks ran" in captured.out

    names = {f"{stem}.{ending}" for stem in ("01_good", "02_bad", "03_killed") for ending in ("ipynb", "html")}
    assert {path.name for path in output.iterdir()} == names | {"index.html"}
    assert before == {path: path.read_bytes() for path in folder.iterdir()}

    executed = nbformat.read(output / "01_good.ipynb", as_version=4)
    (echo,) = [cell for cell in executed.cells if cell.source == ECHO]
    profile, seed, device, overrides = json.loads(echo.outputs[0].text)
    assert (profile, seed, device) == ("cpu", 7, "auto")
    assert json.loads(overrides) == {"num_samples": 5, "dimensions": [4]}

    page = (output / "index.html").read_text()
    assert page.count("<section") == page.count("</section>") == 3
    assert page.count("<figure>") == 1
    assert page.count('<table class="verdicts"') == 1
    assert "a &lt; b" in page
    assert "Verdicts: 1 reproduced." in page
    assert "num_samples = 5" in page
    (image,) = re.findall(r'src="data:image/png;base64,([^"]+)"', page)
    assert base64.b64decode(image).startswith(b"\x89PNG")
    assert not re.search(r'(src|href)="(?!data:|#|0[123]_\w+\.(html|ipynb)")', page), "the index loads something"


def test_update_writes_the_clean_notebook_back(folder: Path, tmp_path: Path) -> None:
    (outcome,) = run_notebooks(["01"], update=True, output=tmp_path / "out", folder=folder)
    assert outcome.failure is None
    text = (folder / "01_good.ipynb").read_text()
    updated = nbformat.reads(text, as_version=4)
    code = [cell for cell in updated.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == [1, 2, 3, 4]
    assert [dict(cell.metadata) for cell in code] == [{"tags": ["parameters"]}, {}, {}, {}]
    assert updated.metadata.keys() == {"kernelspec", "language_info"}
    assert updated.metadata.kernelspec.name == "python3"
    assert json.loads(code[1].outputs[0].text) == ["cpu", 0, "auto", "{}"]
    assert "papermill" not in text
    assert str(tmp_path) not in text


def test_update_leaves_a_failed_notebook_alone(folder: Path, tmp_path: Path) -> None:
    before = (folder / "02_bad.ipynb").read_bytes()
    run_notebooks(["02"], update=True, output=tmp_path / "out", folder=folder)
    assert (folder / "02_bad.ipynb").read_bytes() == before


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"names": ["09"]}, "no notebook is called '09'; there are 01_good, 02_bad, 03_killed"),
        ({"profile": "tpu"}, "profile is 'tpu'; 01_good accepts cpu"),
        (
            {"parameters": {"n": 3}},
            "01_good has no parameter called n; it accepts device, dimensions, num_samples",
        ),
        ({"parameters": {"num_samples": 1.5}}, "num_samples is 1.5; it accepts a whole number"),
        ({"parameters": {"seed": "x"}}, "seed is 'x'"),
        ({"parameters": {"overrides": "{"}}, "overrides is '{', which is not JSON"),
        ({"parameters": {"overrides": '{"n": 3}'}}, "no parameter called n"),
        ({"parameters": {"profile": "cpu"}}, "chosen with --profile"),
        ({"parameters": {"seed": 1}, "update": True}, "--update rewrites the committed outputs"),
    ],
)
def test_bad_choices_stop_before_anything_runs(
    folder: Path, tmp_path: Path, options: dict[str, object], message: str
) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        run_notebooks(**options, output=tmp_path / "out", folder=folder)
    assert not (tmp_path / "out").exists()


def test_an_empty_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="holds no notebook"):
        run_notebooks(folder=tmp_path)


def test_select_keeps_the_order_of_the_course() -> None:
    available = [Path("01_a.ipynb"), Path("02_b.ipynb"), Path("03_c.ipynb")]
    assert select([], available) == available
    assert select(["03", "01_a", "1"], available) == [available[0], available[2]]


def test_sizes_are_folded_into_the_given_overrides(folder: Path) -> None:
    given = {"overrides": '{"num_samples": 3}', "dimensions": [1]}
    changes = check_parameters(folder / "01_good.ipynb", "cpu", given)
    assert changes.keys() == {"overrides"}
    assert json.loads(changes["overrides"]) == {"num_samples": 3, "dimensions": [1]}
    as_object = check_parameters(folder / "01_good.ipynb", "cpu", {"overrides": {"num_samples": 3}})
    assert json.loads(as_object["overrides"]) == {"num_samples": 3}
    assert check_parameters(folder / "01_good.ipynb", "cpu", {}) == {}


@pytest.mark.parametrize("source", ["n = 1 + x", "import os", "n: int = 3", "a = b = 3", "f(3)", "n = [1]"])
def test_parameters_are_literals(source: str) -> None:
    with pytest.raises(ValueError, match="accepts only name = literal"):
        notebook_parameters(new_notebook(cells=[new_code_cell(source, metadata={"tags": ["parameters"]})]))


def test_parameters_cell_is_needed() -> None:
    with pytest.raises(ValueError, match="0 cells are tagged parameters"):
        notebook_parameters(new_notebook(cells=[new_code_cell("n = 3")]))


def test_cleaning_keeps_outputs_and_tags_only() -> None:
    cell = new_code_cell("1", execution_count=1, metadata={"tags": ["a"], "execution": {}, "papermill": {}})
    cell.outputs = [new_output("stream", text="1")]
    dirty = new_notebook(cells=[cell], metadata={"widgets": {}, "papermill": {"path": "x"}})
    cleaned = clean(dirty)
    assert cleaned.cells[0].metadata == {"tags": ["a"]}
    assert cleaned.cells[0].outputs == cell.outputs
    assert cleaned.metadata.keys() == {"kernelspec", "language_info"}
    assert dirty.metadata.papermill == {"path": "x"}


def test_cleaning_leaves_the_text_of_a_widget() -> None:
    bundle = {"application/vnd.jupyter.widget-view+json": {"model_id": "1"}, "text/plain": "run this cell"}
    cell = new_code_cell("1", execution_count=1, outputs=[new_output("execute_result", data=bundle)])
    cleaned = clean(new_notebook(cells=[cell]))
    assert cleaned.cells[0].outputs[0].data == {"text/plain": "run this cell"}
    assert len(cell.outputs[0].data) == 2


def test_front_matter_and_title() -> None:
    read = notebook()
    assert course_index.title(read) == "The length of $x_T$"
    assert course_index.front_matter(read) == {
        "question": r"Is $\|x\|$ about $\sqrt{n}$ for *all* n < ∞?",
        "time": "a second",
    }


def test_index_typesets_formulas_and_escapes_text() -> None:
    page = course_index.index_page([Outcome("01_good", notebook(), 0.1)], profile="cpu", parameters={"a": "<b>"})
    assert "<em>all</em> n &lt; ∞" in page
    assert page.count(r'alt="\sqrt{n}" src="data:image/svg+xml;base64,') == 2
    assert "a = &lt;b&gt;" in page
    assert "No verdicts." in page


def test_formula_that_cannot_be_drawn_shows_its_source() -> None:
    broken = new_notebook(cells=[new_markdown_cell(r"# On $\nosuchcommand$")])
    page = course_index.index_page([Outcome("01_x", broken, 0.1)], profile="cpu", parameters={})
    assert r"<code>\nosuchcommand</code>" in page
