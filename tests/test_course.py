"""The course runner, on small notebooks that papermill really executes."""

from __future__ import annotations

import base64
import json
import re
from pathlib import Path

import nbformat
import pytest
from nbformat import NotebookNode
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

from isodiff.course import Page, Parameters, clean, figures, index_page, notebook_parameters, run_notebooks, select

FRONT = r"""# The length of $x_T$

| | |
|---|---|
| **Question** | Is $\|x\|$ about $\sqrt{n}$ for *all* n < ∞? |
| Time | a second |
"""
PARAMETERS = 'seed = 0\ndevice = "auto"\nnum_samples = 10  # of them\ndimensions = [2, 3]\nshare = 0.5'
FIGURE = "import matplotlib.pyplot as plt\nplt.figure(figsize=(1, 1)); plt.plot([0, 1]); plt.show()"
VERDICTS = """from isodiff.verdict import Verdict, verdict_table
verdict_table([Verdict("a < b", "Tab. 1", "3", "4 [3, 5]", "reproduced")])"""
ECHO = """import json, os
print(json.dumps([seed, device, num_samples, dimensions, share, os.environ['OMP_NUM_THREADS']]))"""


def notebook(*code: str) -> NotebookNode:
    return new_notebook(
        cells=[
            new_markdown_cell(FRONT),
            new_code_cell(PARAMETERS, metadata={"tags": ["parameters"]}),
            new_markdown_cell("## A line from 0 to $\\sqrt{n}$\n\nSee [the package](../isodiff/toy.py)."),
            *[new_code_cell(source, metadata={"jupyter": {"source_hidden": True}}) for source in code],
        ],
        metadata={"kernelspec": {"name": "a-kernel-nobody-has", "display_name": "x", "language": "python"}},
    )


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    folder = tmp_path / "notebooks"
    folder.mkdir()
    nbformat.write(notebook(ECHO, FIGURE, VERDICTS), folder / "01_good.ipynb")
    nbformat.write(notebook("1 / 0", "print('never')"), folder / "02_bad.ipynb")
    nbformat.write(notebook("import os\nos._exit(1)"), folder / "03_killed.ipynb")
    (folder / "gpu.yaml").write_text("01_good: {num_samples: 1000}\n")
    return folder


def test_a_run_goes_on_after_failures_and_ends_in_an_index(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "deep" / "out"
    before = {path: path.read_bytes() for path in folder.iterdir()}
    changes = {"seed": 7, "num_samples": 5, "dimensions": [4], "share": 1}
    good, bad, killed = run_notebooks(
        ["02", "01_good", "03_killed.ipynb"], parameters=changes, output=output, folder=folder, jobs=2
    )
    assert [page.name for page in (good, bad, killed)] == ["01_good", "02_bad", "03_killed"]
    assert [page.failure.split(":")[0] for page in (good, bad, killed)] == ["", "cell [3]", "kernel"]
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
    *values, threads = json.loads(echo.outputs[0].text)
    assert values == [7, "auto", 5, [4], 1]
    assert int(threads) >= 1
    assert any("(../../isodiff/toy.py)" in cell.source for cell in executed.cells)

    page = (output / "index.html").read_text()
    assert page.count("<section") == page.count("</section>") == 3
    assert page.count("<figure>") == 1
    assert page.count('<table class="verdicts"') == 1
    assert "Verdicts: 1 reproduced." in page
    assert "num_samples = 5" in page
    (image,) = re.findall(r'src="data:image/png;base64,([^"]+)"', page)
    assert base64.b64decode(image).startswith(b"\x89PNG")
    assert not re.search(r'(src|href)="(?!data:|#|0[123]_\w+\.(html|ipynb)")', page), "the index loads something"


def test_the_profile_gpu_takes_its_values_from_the_file(folder: Path, tmp_path: Path) -> None:
    (page,) = run_notebooks(["01"], profile="gpu", parameters={"seed": 3}, output=tmp_path / "out", folder=folder)
    (echo,) = [cell for cell in page.notebook.cells if cell.source == ECHO]
    assert json.loads(echo.outputs[0].text)[:3] == [3, "auto", 1000]


def test_update_writes_the_clean_notebook_back_unless_it_failed(folder: Path, tmp_path: Path) -> None:
    before = (folder / "02_bad.ipynb").read_bytes()
    run_notebooks(["01", "02"], update=True, output=tmp_path / "out", folder=folder)
    assert (folder / "02_bad.ipynb").read_bytes() == before
    text = (folder / "01_good.ipynb").read_text()
    updated = nbformat.reads(text, as_version=4)
    code = [cell for cell in updated.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == [1, 2, 3, 4]
    hidden = {"jupyter": {"source_hidden": True}}
    assert [dict(cell.metadata) for cell in code] == [{"tags": ["parameters"]}, hidden, hidden, hidden]
    assert updated.metadata.keys() == {"kernelspec", "language_info"}
    assert updated.metadata.kernelspec.name == "python3"
    assert "papermill" not in text
    assert str(tmp_path) not in text


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"names": ["09"]}, "no notebook is called '09'; there are 01_good, 02_bad, 03_killed"),
        ({"profile": "tpu"}, "profile is 'tpu'; accepted are cpu and gpu"),
        ({"parameters": {"n": 3}}, "01_good has no parameter called n; it accepts device, dimensions, num_samples"),
        ({"parameters": {"num_samples": 1.5}}, "num_samples is 1.5; 01_good accepts a value of type int, such as 10"),
        ({"parameters": {"num_samples": True}}, "num_samples is True"),
        ({"parameters": {"dimensions": 3}}, "dimensions is 3; 01_good accepts a value of type list"),
        ({"parameters": {"seed": "x"}}, "seed is 'x'"),
        ({"parameters": {"seed": 1}, "update": True}, "--update rewrites the committed outputs"),
        ({"jobs": 0}, "jobs must be at least 1; got 0"),
    ],
)
def test_bad_choices_stop_before_anything_runs(
    folder: Path, tmp_path: Path, options: dict[str, object], message: str
) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        run_notebooks(**{"names": ["01"], "output": tmp_path / "out", "folder": folder} | options)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("source", "message"), [("n = 1 + x", "holds 'n = 1 \\+ x'"), ("import os", "holds"), (None, "0 cells are tagged")]
)
def test_a_parameters_cell_holds_literals_only(source: str | None, message: str) -> None:
    cells = [] if source is None else [new_code_cell(source, metadata={"tags": ["parameters"]})]
    with pytest.raises(ValueError, match=message):
        notebook_parameters(new_notebook(cells=cells))


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"seed": -1}, "seed"),
        ({"seed": 2**32}, "seed"),
        ({"seed": True}, "seed"),
        ({"device": "abacus"}, "device is 'abacus'; give 'auto'"),
        ({"speed": 3}, "speed"),
    ],
)
def test_parameters_refuse_what_is_out_of_range_by_name(changed: dict[str, object], message: str) -> None:
    assert Parameters.of({"seed": 1, "device": "cpu", "more": 2}) == Parameters(seed=1, device="cpu")
    with pytest.raises(ValueError, match=message):
        Parameters(**{"seed": 1, "device": "cpu"} | changed)


def test_names_are_found_by_number_and_in_order(folder: Path) -> None:
    paths = sorted(folder.glob("*.ipynb"))
    assert select(["2", "01", "1"], paths) == paths[:2]
    assert select([], paths) == paths


def test_the_index_escapes_and_sets_formulas() -> None:
    cell = new_code_cell("", outputs=[new_output("display_data", {"image/png": "QUJD\n", "text/plain": "a < curve"})])
    cell.outputs[0]["data"]["application/vnd.jupyter.widget-view+json"] = {"model_id": "1"}
    page = Page("01_a", new_notebook(cells=[new_markdown_cell(FRONT), cell]), 1.0)
    assert page.question == r"Is $\|x\|$ about $\sqrt{n}$ for *all* n < ∞?"
    (figure,) = figures(page.notebook)
    assert figure == {"heading": "The length of $x_T$", "spoken": "a < curve", "png": "QUJD"}
    html = index_page([page], profile="cpu", parameters={"a": "<b>"})
    assert "<msqrt>" in html
    assert "<em>all</em> n &lt; ∞" in html
    assert "a = &lt;b&gt;" in html
    assert 'alt="a &lt; curve"' in html
    assert "$" not in html
    assert "widget-view" not in nbformat.writes(clean(page.notebook))
