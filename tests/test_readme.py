"""The README: its numbers are those of the records, its figures are there and small, its links lead somewhere."""

from __future__ import annotations

import re

import pytest
from PIL import Image

from isodiff.paths import data_directory, repository_root
from isodiff.reproduce.claims import CLAIMS
from isodiff.reproduce.readme import HEADLINES, fill_readme, readme_blocks
from isodiff.reproduce.report import write_report

RECORDS = data_directory() / "results" / "reproduce"
TEXT = (repository_root() / "README.md").read_text(encoding="utf-8")


def test_what_is_made_from_records_is_what_the_records_say() -> None:
    filled = fill_readme(TEXT, readme_blocks(RECORDS, repository_root() / "notebooks"))
    assert filled == TEXT, "refresh it with: isodiff reproduce --report --readme"


def test_the_whole_list_is_what_the_records_say(tmp_path: pytest.TempPathFactory) -> None:
    for experiment in RECORDS.iterdir():
        if experiment.is_dir():
            (tmp_path / experiment.name).symlink_to(experiment)
    for path in write_report(tmp_path):
        assert (RECORDS / path.name).read_text() == path.read_text(), "refresh it with: isodiff reproduce --report"


def test_every_row_names_the_claim_that_makes_it() -> None:
    assert set(HEADLINES) <= set(CLAIMS)
    assert all(f"`{name}`" in TEXT for name in HEADLINES)


def test_figures_are_there_and_small() -> None:
    figures = re.findall(r"data/figures/[\w-]+\.png", TEXT)
    assert len(figures) >= 14
    for figure in figures:
        path = repository_root() / figure
        assert path.stat().st_size <= 100_000, figure
        Image.open(path).verify()


def test_links_lead_somewhere() -> None:
    links = re.findall(r"\]\(([^)#:]+)\)", TEXT)
    assert links
    assert [link for link in links if not (repository_root() / link).exists()] == []


def test_every_notebook_is_in_the_table() -> None:
    for path in (repository_root() / "notebooks").glob("[0-9]*.ipynb"):
        assert f"(notebooks/{path.name})" in TEXT
