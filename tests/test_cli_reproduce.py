"""``isodiff reproduce``: what it lists, decides from records alone and runs, and one line for bad input."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from isodiff import cli
from isodiff.reproduce import CLAIMS, command, reproduce_claims

from .reproduce.synthetic import write_records


@pytest.fixture
def course(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A course with nothing in it but a README with a place for the tally."""
    (tmp_path / "notebooks").mkdir()
    (tmp_path / "README.md").write_text("<!-- tally -->\nold\n<!-- /tally -->")
    monkeypatch.setenv("ISODIFF_ROOT", str(tmp_path))
    return tmp_path


def test_the_list_has_every_claim_with_what_decides_it(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["reproduce", "--list"]) == 0
    text = capsys.readouterr().out
    assert [line.split()[0] for line in text.splitlines() if not line.startswith(" ")] == list(CLAIMS)
    assert all(claim.statement in text and (claim.protocol or claim.reason) in text for claim in CLAIMS.values())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("dsm table9 --list", "no claim is called 'table9'; there are table1-ppl"),
        ("dsm --profile tpu --report", "profile is 'tpu'; reproduce accepts smoke, cpu, gpu"),
        ("trace-error --profile smoke --jobs 0", "jobs must be at least 1; got 0"),
        ("--report", "is made by: isodiff reproduce "),
        ("table1-ppl --photographs README.md", "none of these claims is about photographs"),
        ("dsm --readme", "README.md tells of all claims at profile cpu"),
    ],
)
def test_bad_input_is_one_line(arguments: str, message: str, capsys: pytest.CaptureFixture[str], course: Path) -> None:
    before = sorted(course.rglob("*"))
    assert cli.main(["reproduce", *arguments.split()]) == 2
    assert re.fullmatch(f"isodiff: .*{re.escape(message)}.*\n", capsys.readouterr().err)
    assert sorted(course.rglob("*")) == before


def test_a_report_is_made_from_records_alone(
    capsys: pytest.CaptureFixture[str], course: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    records, page = course / "data" / "results" / "reproduce", course / "README.md"
    write_records(records)
    before = page.read_text()
    assert reproduce_claims(["sphere-thickness", "dsm"], report=True) == 0
    assert "\n2 claims: " in capsys.readouterr().out
    assert not (records / "verdicts.json").exists(), "a part is no report"
    assert reproduce_claims(report=True) == 0
    assert [row["name"] for row in json.loads((records / "verdicts.json").read_text())] == list(CLAIMS)
    assert page.read_text() == before
    monkeypatch.setattr(command, "readme_blocks", lambda records: {"tally": "new"})
    monkeypatch.setattr(command, "write_figures", lambda records, notebooks, output: [output / "verdicts.png"])
    assert reproduce_claims(report=True, readme=True) == 0
    assert page.read_text() == before.replace("old", "new")
    assert sorted(path.name for path in course.iterdir()) == ["README.md", "data", "notebooks"], "nothing was run"


def test_only_what_decides_a_claim_is_run(course: Path) -> None:
    assert cli.main(["reproduce", "trace-error", "--profile", "smoke", "--jobs", "1", "--no-progress"]) == 0
    records = course / "runs" / "reproduce" / "smoke" / "records"
    assert [path.name for path in records.iterdir()] == ["trace"]


@pytest.mark.exhaustive
def test_every_claim_is_decided_from_scratch_at_profile_smoke(tmp_path: Path) -> None:
    folders = {"output": tmp_path / "records", "work": tmp_path / "work"}
    assert reproduce_claims(profile="smoke", jobs=1, progress=False, **folders) == 0
    assert [row["name"] for row in json.loads((tmp_path / "records" / "verdicts.json").read_text())] == list(CLAIMS)
