"""The README: its numbers are those of the records, its figures are there and small, its links lead somewhere."""

from __future__ import annotations

import json
import pydoc
import re
from pathlib import Path

from PIL import Image

from isodiff.files import data_directory, repository_root
from isodiff.reproduce.readme import fill_readme, readme_blocks
from isodiff.reproduce.report import decide, write_report
from isodiff.verdict import VERDICTS_MIME

RECORDS = data_directory() / "results" / "reproduce"
TEXT = (repository_root() / "README.md").read_text(encoding="utf-8")


def test_what_is_made_from_records_is_what_the_records_say(tmp_path: Path) -> None:
    filled = fill_readme(TEXT, readme_blocks(RECORDS))
    assert filled == TEXT, "refresh it with: isodiff reproduce --report --readme"
    for experiment in filter(Path.is_dir, RECORDS.iterdir()):
        (tmp_path / experiment.name).symlink_to(experiment)
    path = write_report(tmp_path)
    assert (RECORDS / path.name).read_text() == path.read_text(), "refresh it with: isodiff reproduce --report"


def test_no_two_places_judge_one_claim_differently() -> None:
    """A notebook's row is a claim's own, or one training beside it, and then has its verdict and number."""
    decisions = decide(RECORDS)
    by_name = {d.claim.name: d for d in decisions}
    by_row = {(d.claim.statement, d.claim.source, d.claim.paper): d for d in decisions}
    seen = set()
    for path in (repository_root() / "notebooks").glob("[0-9]*.ipynb"):
        cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
        tables = [o["data"].get(VERDICTS_MIME, []) for c in cells for o in c.get("outputs", []) if "data" in o]
        for row in (row for table in tables for row in table):
            beside = re.search(r"over several trainings \(`(.*?)`\): (.*)$", row["ours"])
            whole = by_row.get((row["claim"], row["source"], row["paper"]))
            decision = by_name[beside[1]] if beside else whole
            if decision is not None:
                assert row["verdict"] == decision.verdict, (path.name, row["claim"])
                assert (beside[2] == decision.ours) if beside else (row["ours"] == decision.ours_in_full), row["claim"]
                seen.add(decision.claim.name)
    assert seen == set(by_name), "notebook 13 has every claim"


def test_a_number_with_an_interval_comes_from_a_record_and_the_page_is_short() -> None:
    by_hand = re.sub(r"<!-- ([\w-]+) -->.*?<!-- /\1 -->", "", TEXT, flags=re.DOTALL)
    assert re.findall(r"\[[−+-]?[\d.]+, [^]]*\]|\d %", by_hand.replace("−12 to −28 %", "").replace("5 %", "")) == []
    words = [word for word in re.sub(r"<[^>]*>", "", TEXT).split() if re.search(r"\w", word)]
    assert len(words) <= 1_300


def test_figures_are_small_links_lead_somewhere_and_every_notebook_is_in_the_table() -> None:
    figures, links = set(re.findall(r"data/figures/[\w-]+\.png", TEXT)), set(re.findall(r"\]\(([^)#:]+)\)", TEXT))
    assert len(figures) >= 14
    for figure in figures:
        assert (repository_root() / figure).stat().st_size <= 100_000, figure
        Image.open(repository_root() / figure).verify()
    assert [link for link in links if not (repository_root() / link).exists()] == []
    assert {f"notebooks/{path.name}" for path in (repository_root() / "notebooks").glob("[0-9]*.ipynb")} <= links


def test_names_are_names_of_the_package() -> None:
    names = re.findall(r"`((?:geometry|diffusion|metrics|editing|reproduce)(?:\.\w+)+)`", TEXT)
    assert [name for name in names if pydoc.locate(f"isodiff.{name}") is None] == []
    assert [file for file in re.findall(r"`(isodiff/\S+)`", TEXT) if not (repository_root() / file).is_file()] == []
