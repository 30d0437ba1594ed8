"""The course runner, on small notebooks that papermill really executes."""

import base64
import json
import os
import re
from collections.abc import Callable
from functools import partial
from pathlib import Path

import nbformat
import pytest
from nbformat import NotebookNode
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

from isodiff.course import Page, Parameters, as_page, clean, index_notebook, notebook_parameters, run_notebooks

FRONT = "# The length of $x_T$\n\n| | |\n|---|---|\n| **Question** | Is $\\|x\\| < \\sqrt{n}$ for *all* n < ∞? |"
PARAMETERS = 'seed = 0\ndevice = "auto"\nnum_samples = 10  # of them\ndimensions = [2, 3]\nrate = 0.5'
ECHO = "import json, os\nprint(json.dumps([seed, device, num_samples, dimensions, rate, os.getenv('OMP_NUM_THREADS')]))"
FIGURE = "import matplotlib.pyplot as plt\nplt.figure(figsize=(1, 1)); plt.plot([0, 1]); plt.show()"
VERDICTS = """from isodiff.verdict import Verdict, verdict_table
verdict_table([Verdict("a < b", "Tab. 1", "3", "4 [3, 5]", "reproduced")])"""


def parameters(source: str) -> NotebookNode:
    return new_code_cell(source, metadata={"tags": ["parameters"]})


def notebook(*code: str) -> NotebookNode:
    cells = [new_markdown_cell(FRONT), parameters(PARAMETERS)]
    cells.append(new_markdown_cell("## A line from 0 to $\\sqrt{n}$\n\nSee [the package](../isodiff/toy.py)."))
    cells += [new_code_cell(source, metadata={"jupyter": {"source_hidden": True}}) for source in code]
    kernel = {"name": "a-kernel-nobody-has", "display_name": "x", "language": "python"}
    return new_notebook(cells=cells, metadata={"kernelspec": kernel})


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


def test_a_run_goes_past_failures_to_an_index(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output, before = tmp_path / "deep" / "out", {path: path.read_bytes() for path in folder.iterdir()}
    options = {"profile": "gpu", "parameters": {"seed": 7, "dimensions": [4], "rate": 1}, "jobs": 2}
    pages = run_notebooks(["02", "01_good", "03_killed.ipynb"], output=output, folder=folder, **options)
    assert [page.name for page in pages] == ["01_good", "02_bad", "03_killed"]
    assert [page.failure.split(":")[0] for page in pages] == ["", "cell [3]", "kernel"]
    out, err = capsys.readouterr()
    assert "FAILED 02_bad, cell [3]: ZeroDivisionError: division by zero" in err
    assert "FAILED 03_killed, kernel: DeadKernelError" in err
    assert "1 of 3 notebooks ran" in out

    written = {f"{page.name}.{ending}" for page in pages for ending in ("ipynb", "html")}
    assert {path.name for path in output.iterdir()} == written | {"index.html", "tex-svg-full.js"}
    assert before == {path: path.read_bytes() for path in folder.iterdir()}
    executed = nbformat.read(output / "01_good.ipynb", as_version=4)
    (echo,) = [json.loads(cell.outputs[0].text) for cell in executed.cells if cell.source == ECHO]
    assert echo == [7, "auto", 1000, [4], 1, str(max(1, (os.cpu_count() or 1) // 2))]
    assert any("(../../isodiff/toy.py)" in cell.source for cell in executed.cells)

    page = (output / "index.html").read_text()
    marks = ("<h2", '"data:image/png', '<table class="verdicts"', "Verdicts: 1 reproduced.", "Profile gpu, seed = 7")
    assert [page.count(mark) for mark in marks] == [3, 1, 1, 1, 1]
    (image,) = re.findall(r'src="data:image/png;base64,([^"]+)"', page)
    assert base64.b64decode(image).startswith(b"\x89PNG")
    assert {name for name in re.findall(r'href="(?!#)([^"]+)"', page)} == written
    for name in ("index.html", "01_good.html", "02_bad.html"):
        loaded = re.findall(r'(?:src|import\()\s*=?\s*"(?!data:)([^"]+)"', (output / name).read_text())
        assert loaded == ["tex-svg-full.js"], "a page loads what does not lie beside it"


def test_update_writes_the_clean_notebook_back_unless_it_failed(folder: Path, tmp_path: Path) -> None:
    before = (folder / "02_bad.ipynb").read_bytes()
    run_notebooks(["01", "02"], update=True, output=tmp_path / "out", folder=folder)
    assert (folder / "02_bad.ipynb").read_bytes() == before
    updated = nbformat.read(folder / "01_good.ipynb", as_version=4)
    code = [cell for cell in updated.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == [1, 2, 3, 4]
    hidden = {"jupyter": {"source_hidden": True}}
    assert [dict(cell.metadata) for cell in code] == [{"tags": ["parameters"]}, hidden, hidden, hidden]
    assert updated.metadata.keys() == {"kernelspec", "language_info"}
    assert updated.metadata.kernelspec.name == "python3"
    assert not re.search(f"papermill|{tmp_path}", nbformat.writes(updated))


@pytest.mark.parametrize(
    ("attempt", "message"),
    [
        (lambda run: run(["09"]), "no notebook is called '09'; there are 01_good, 02_bad, 03_killed"),
        (lambda run: run([], folder=Path(__file__).parent), "there are no notebooks in"),
        (lambda run: run(["01"], profile="tpu"), "profile is 'tpu'; accepted are cpu and gpu"),
        (lambda run: run(["01"], parameters={"n": 3}), "01_good has no parameter called n; it accepts device, dimensi"),
        (lambda run: run(["01"], parameters={"num_samples": 1.5}), "01_good accepts a value of type int, such as 10"),
        (lambda run: run(["01"], parameters={"seed": 1}, update=True), "--update rewrites the committed outputs"),
        (lambda run: run(["01"], jobs=0), "jobs must be at least 1; got 0"),
        (lambda _: notebook_parameters(new_notebook(cells=[parameters("n = 1 + x")])), "holds 'n = 1 + x'"),
        (lambda _: notebook_parameters(new_notebook()), "0 cells are tagged"),
        (lambda _: Parameters(seed=2**32, device="cpu"), "seed"),
        (lambda _: Parameters(seed=True, device="cpu"), "seed"),
        (lambda _: Parameters(seed=1, device="abacus"), "device"),
        (lambda _: Parameters(seed=1, device="cpu", speed=3), "speed"),
    ],
)
def test_bad_choices_stop_before_anything_runs(attempt: Callable, message: str, folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        attempt(partial(run_notebooks, output=tmp_path / "out", folder=folder))
    assert not (tmp_path / "out").exists()


def test_a_notebook_may_have_more_parameters_than_the_common_ones() -> None:
    assert Parameters.of({"seed": 1, "device": "cpu", "more": 2}) == Parameters(seed=1, device="cpu")


def test_the_index_escapes_and_sets_formulas() -> None:
    cell = new_code_cell("", outputs=[new_output("display_data", {"image/png": "QUJD\n", "text/plain": "a < curve"})])
    cell.outputs[0]["data"]["application/vnd.jupyter.widget-view+json"] = {"model_id": "1"}
    page = Page("01_a", new_notebook(cells=[new_markdown_cell(FRONT), cell]), 1.0)
    assert page.question == r"Is $\|x\| < \sqrt{n}$ for *all* n < ∞?"
    html = as_page(index_notebook([page], profile="cpu", parameters={"a": "<b>"}), "all")
    expected = (r"\sqrt{n}$", "<em>all</em> n &lt; ∞", "a = &lt;b&gt;", 'alt="a &lt; curve"', 'base64,QUJD"')
    assert [text for text in expected if text not in html] == []
    assert "widget-view" not in nbformat.writes(clean(page.notebook))
