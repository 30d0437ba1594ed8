"""``isodiff reproduce``: what it lists, what it decides from records alone, and one line for bad input."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import SimpleNamespace

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_notebook, new_output

from isodiff import cli
from isodiff.reproduce import runner
from isodiff.reproduce.claims import CLAIMS
from isodiff.reproduce.runner import Place

from .reproduce.synthetic import write_records


@pytest.fixture
def never(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let nothing run."""

    def run(*_arguments: object, **_options: object) -> list[str]:
        raise AssertionError("something was run")

    monkeypatch.setattr(runner, "reproduce", run)


@pytest.fixture
def course(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A course with nothing in it but a README with places for verdicts."""
    (tmp_path / "course" / "notebooks").mkdir(parents=True)
    bill = new_output("stream", text="plain : 1.0e+17 operations,  1.0 hours,    2 dollars\n")
    cell = new_code_cell("", outputs=[bill])
    nbformat.write(new_notebook(cells=[cell]), tmp_path / "course" / "notebooks" / "10_real_models.ipynb")
    blocks = ("tally", "sizes", "verdicts", "undecided", "bill")
    (tmp_path / "course" / "README.md").write_text("\n".join(f"<!-- {b} -->\nold\n<!-- /{b} -->" for b in blocks))
    monkeypatch.setenv("ISODIFF_ROOT", str(tmp_path / "course"))
    return tmp_path / "course"


def _listed(text: str) -> list[str]:
    return [line.split()[0] for line in text.splitlines() if line and not line.startswith(" ")]


def test_the_list_has_every_claim_with_what_decides_it(
    never: None, capsys: pytest.CaptureFixture[str], course: Path
) -> None:
    assert cli.main(["reproduce", "--list"]) == 0
    text = capsys.readouterr().out
    assert _listed(text) == list(CLAIMS)
    for claim in CLAIMS.values():
        assert claim.statement in text
        assert (claim.protocol or claim.reason) in text
    assert sorted(path.name for path in course.iterdir()) == ["README.md", "notebooks"]


def test_a_part_of_the_list(never: None, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["reproduce", "table2", "dsm", "--list"]) == 0
    assert _listed(capsys.readouterr().out) == ["table2-linear", "table2-rbf", "table2-protocol", "dsm"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["table9"], "no claim is called 'table9'; there are table1-ppl-faces32"),
        (["dsm", "table9", "--list"], "no claim is called 'table9'"),
        (["--profile", "tpu"], "profile is 'tpu'; reproduce accepts smoke, cpu, gpu"),
        (["dsm", "--profile", "tpu", "--report"], "profile is 'tpu'"),
        (["trace-error", "--profile", "smoke", "--jobs", "0"], "jobs must be at least 1; got 0"),
        (["trace-error", "--profile", "smoke", "--device", "abacus"], "device is 'abacus'"),
        (["trace-error", "--output", "{text}"], "text is a file"),
        (["trace-error", "--work", "{text}/models"], "text is a file"),
        (["trace-error", "--report"], "records of trace"),
        (["--report"], "is made by: isodiff reproduce "),
    ],
)
def test_bad_input_is_one_line(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str], tmp_path: Path, course: Path
) -> None:
    text = tmp_path / "text"
    text.write_text("not what anybody expects\n")
    before = sorted(tmp_path.rglob("*"))
    assert cli.main(["reproduce", *(argument.format(text=text) for argument in arguments)]) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith("isodiff: ")
    assert captured.err.count("\n") == 1
    assert message in captured.err
    assert sorted(tmp_path.rglob("*")) == before


def test_a_word_for_a_number_points_to_the_help(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        cli.main(["reproduce", "--jobs", "many"])
    assert stopped.value.code == 2
    assert "invalid int value: 'many'" in capsys.readouterr().err


def test_a_report_from_records_alone(
    never: None, capsys: pytest.CaptureFixture[str], tmp_path: Path, course: Path
) -> None:
    records = tmp_path / "records"
    write_records(records)
    readme = (course / "README.md").read_text()
    assert cli.main(["reproduce", "sphere-thickness", "dsm", "--report", "--output", str(records)]) == 0
    assert "\n2 claims: " in capsys.readouterr().out
    assert not (records / "verdicts.md").exists(), "a part is no report"
    assert cli.main(["reproduce", "--report", "--output", str(records)]) == 0
    printed = capsys.readouterr().out
    assert f"\n{len(CLAIMS)} claims: " in printed
    assert all(name in printed for name in CLAIMS)
    assert [row["claim"] for row in json.loads((records / "verdicts.json").read_text())] == list(CLAIMS)
    assert (course / "README.md").read_text() == readme
    assert sorted(path.name for path in course.iterdir()) == ["README.md", "notebooks"]


def test_the_readme_is_filled_where_it_is_asked_for(
    never: None, capsys: pytest.CaptureFixture[str], course: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From records at the default place of profile cpu; its figures are another matter."""
    figures = SimpleNamespace(write_figures=lambda records, notebooks, output: [output / "verdicts.png"])
    monkeypatch.setitem(sys.modules, "isodiff.reproduce.figures", figures)
    write_records(course / "data" / "results" / "reproduce")
    assert cli.main(["reproduce", "--report", "--readme"]) == 0
    filled = (course / "README.md").read_text(encoding="utf-8")
    assert f"<!-- tally -->\nOf {len(CLAIMS)} claims: " in filled
    assert "| claim | paper |" in filled
    assert f"written: {course / 'README.md'}" in capsys.readouterr().out


def test_only_what_decides_a_claim_is_run(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], course: Path
) -> None:
    received = []

    def run(place: Place, names: list[str], **options: object) -> list[str]:
        received.append((place, list(names), options))
        return ["trace/run-seed0.json: ValueError: no"] if len(received) == 1 else []

    monkeypatch.setattr(runner, "reproduce", run)
    command = ["reproduce", "trace-error", "size-raw", "--profile", "smoke", "--jobs", "3", "--no-progress"]
    assert cli.main(command) == 1
    captured = capsys.readouterr()
    assert captured.err == "FAILED trace/run-seed0.json: ValueError: no\n"
    assert captured.out == "", "no verdict where a run has failed"
    own = course / "runs" / "reproduce" / "smoke"
    place, names, options = received[0]
    assert (place.profile, place.output, place.work, place.device) == ("smoke", own / "records", own / "work", "cpu")
    assert sorted(names) == ["faces16", "faces32", "latent64", "trace"]
    assert options == {"jobs": 3, "progress": False}
    write_records(own / "records")
    assert cli.main(command) == 0
    assert "trace-error" in capsys.readouterr().out
