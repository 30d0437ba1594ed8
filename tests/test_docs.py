"""README and site: results are those of the records, figures small, symbols, names, links and menus of the course."""

import hashlib
import json
import pydoc
import re
import runpy
import shlex
from pathlib import Path

import pytest
from PIL import Image

from isodiff import cli
from isodiff.reproduce.report import decide, write_report
from isodiff.verdict import VERDICTS_MIME

ROOT = Path(__file__).resolve().parents[1]
RECORDS = ROOT / "data/results/reproduce"
README = (ROOT / "README.md").read_text("utf-8")
MAKER = runpy.run_path(str(ROOT / "docs" / "readme.py"))
TEXTS = {path.relative_to(ROOT / "docs").as_posix(): path.read_text("utf-8") for path in ROOT.glob("docs/**/*.md")}
NOTEBOOKS = sorted(path.name for path in ROOT.glob("notebooks/*.ipynb"))


def markdown(name: str) -> str:
    cells = json.loads((ROOT / "notebooks" / name).read_text("utf-8"))["cells"]
    return "\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "markdown")


@pytest.mark.parametrize("name", [*sorted(TEXTS), "../data/README.md"])
def test_no_result_is_typed(name: str) -> None:
    """A percentage or an interval stands between braces, which are filled from records; 95 % is a convention."""
    typed = re.sub(
        r"\{\{.*?\}\}|```.*?```|`[^`]*`|\$[^$]*\$|95 %", "", (ROOT / "docs" / name).read_text("utf-8"), flags=re.DOTALL
    )
    assert re.findall(r"[-+−]?\d[\d.,]* ?%|\[[-+−]?\d[\d.]*, ?[-+−]?\d[\d.]*\]", typed) == []


def test_every_page_is_in_the_menu_once() -> None:
    there = re.findall(r" ([\w/]+\.(?:md|ipynb))$", (ROOT / "mkdocs.yml").read_text("utf-8"), re.MULTILINE)
    pages = {*TEXTS, *(f"notebooks/{name}" for name in NOTEBOOKS), "data/README.md", "CONTRIBUTING.md"}
    assert sorted(there) == sorted(pages)


def test_a_symbol_stands_once_with_the_notebook_that_uses_it_first() -> None:
    row = r"^\| (\$.+?\$).*? \|.*\| \[(\d\d)\]\(\.\./notebooks/(\S+)\) \|$"
    rows = re.findall(row, TEXTS["symbols.md"], re.MULTILINE)
    assert len(rows) > 60
    symbols = [(part, name) for cell, number, name in rows for part in re.split(r",\\;\s*", cell.strip("$"))]
    assert sorted({part for part, _ in symbols}) == sorted(part for part, _ in symbols)
    assert all(name.startswith(number) for _, number, name in rows)
    texts = {name: markdown(name) for name in NOTEBOOKS}
    single = [(part, name) for part, name in symbols if re.fullmatch(r"\\?(hat |bar\\?)?\w+(_\\?\w+|_\{\w+\})?", part)]
    assert [(part, name) for part, name in single if part not in texts[name]] == []


def test_names_are_names_of_the_package_and_files_are_there() -> None:
    text = "\n".join([README, *TEXTS.values()])
    names = re.findall(r"`((?:geometry|diffusion|metrics|editing|reproduce)(?:\.\w+)+)`", text)
    assert len(names) > 30
    assert [name for name in names if pydoc.locate(f"isodiff.{name}") is None] == []
    files = re.findall(r"`((?:isodiff|benchmarks|docs)/[^`\s]+)`", text)
    assert [file for file in files if not (ROOT / file).exists()] == []


def test_every_command_is_understood() -> None:
    texts = [
        README,
        *TEXTS.values(),
        *((ROOT / name).read_text("utf-8") for name in ("data/README.md", "CONTRIBUTING.md")),
    ]
    blocks = re.findall(r"```\w*\n(.*?)```", "\n".join(texts).replace("\\\n", " "), re.DOTALL)
    commands = re.findall(r"^isodiff .+$", "\n".join(blocks), re.MULTILINE)
    assert len(commands) > 40
    for command in commands:
        assert callable(cli.parse(shlex.split(command, comments=True)[1:])), command


def test_scripts_of_others_are_as_published() -> None:
    known = {
        "tex-svg-full.js": "a4354ff94fd868aea0cc6eaaa79a57fda0588646fc46ee3700a349ee0a11cbe6",
        "iframe-worker.js": "e8e412dbcfea9b7e31b5ffa288d7b6035915e714c542f4176a0cdbe262fc9609",
    }
    for name, digest in known.items():
        content = (ROOT / "docs" / "vendor" / name).read_bytes()
        assert hashlib.sha256(content).hexdigest() == digest, name
        assert (ROOT / "docs" / "vendor" / name.replace(".js", ".LICENSE.txt")).is_file()


def test_what_is_made_from_records_is_what_the_records_say(tmp_path: Path) -> None:
    assert MAKER["fill"](README, MAKER["blocks"](RECORDS)) == README, "refresh it with: python docs/readme.py"
    made = MAKER["figures"](ROOT / "notebooks")
    for name in MAKER["WHOLE"]:  # small ones may depend on the library that shrinks them
        assert (ROOT / "data" / "figures" / f"{name}.png").read_bytes() == made[name], name
    for experiment in filter(Path.is_dir, RECORDS.iterdir()):
        (tmp_path / experiment.name).symlink_to(experiment)
    path = write_report(tmp_path)
    assert (RECORDS / path.name).read_text() == path.read_text(), "refresh it with: isodiff reproduce --report"


def test_only_what_stands_between_markers_is_replaced() -> None:
    page = "# A\n<!-- tally -->\n{}\n<!-- /tally -->\nb <!-- c --> by <!-- d-1 -->{}<!-- /d-1 -->.\n"
    new = {"tally": r"3 of 4 \1", "d-1": "−3 % [−4, −2]", "unused": "e"}
    assert MAKER["fill"](page.format("old\nand older", ""), new) == page.format(*new.values())
    with pytest.raises(ValueError, match="nothing is called 'd-1'; there are tally"):
        MAKER["fill"](page, {"tally": "new"})


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_an_interval_in_the_text_is_one_of_an_output_or_of_a_claim(name: str) -> None:
    """[2.8, 6.7] is told where −4.7 % [−6.73, −2.81] is printed; answers of exercises are not asked."""

    def bounds(text: str) -> list[list[str]]:
        pairs = re.findall(r"(?<=[%.\w ] )\[(?:to )?([−+-]?\d[\d.,]*?), ([−+-]?\d[\d.,]*?)\]", text)
        return [sorted((n.strip("−+-").replace(",", "") for n in pair), key=float) for pair in pairs]

    cells = json.loads((ROOT / "notebooks" / name).read_text("utf-8"))["cells"]
    outputs = [o for cell in cells for o in cell.get("outputs", [])]
    printed = ["".join(o.get("text", "")) + "".join(o.get("data", {}).get("text/plain", "")) for o in outputs]
    effects = [row["effect"] for row in json.loads((RECORDS / "verdicts.json").read_text("utf-8"))]
    known = [[float(n) for n in pair] for pair in bounds("\n".join([*printed, *effects]))]
    told = bounds(re.sub(r"<details>.*?</details>|```.*?```|\$[^$]*\$", "", markdown(name), flags=re.DOTALL))

    def is_known(pair: list[str]) -> bool:
        reach = [0.50001 * 10 ** -len(n.partition(".")[2]) for n in pair]
        return any(all(abs(float(n) - k) <= r for n, k, r in zip(pair, one, reach, strict=True)) for one in known)

    assert [pair for pair in told if not is_known(pair)] == []


def test_no_two_places_judge_one_claim_differently() -> None:
    """A notebook's row is a claim's own, or one training beside it, and then has its verdict and number."""
    decisions = decide(RECORDS)
    by_name = {d.claim.name: d for d in decisions}
    by_row = {(d.claim.statement, d.claim.source, d.claim.paper): d for d in decisions}
    seen = set()
    for path in (ROOT / "notebooks").glob("[0-9]*.ipynb"):
        cells = json.loads(path.read_text("utf-8"))["cells"]
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


def test_the_readme_is_short_and_its_intervals_come_from_records() -> None:
    by_hand = re.sub(r"<!-- ([\w-]+) -->.*?<!-- /\1 -->", "", README, flags=re.DOTALL)
    assert re.findall(r"\[[−+-]?[\d.]+, [^]]*\]|\d %", by_hand.replace("−12 to −28 %", "").replace("5 %", "")) == []
    words = [word for word in re.sub(r"<[^>]*>", "", README).split() if re.search(r"\w", word)]
    assert len(words) <= 1_300


def test_figures_of_the_readme_are_small_links_lead_somewhere_and_every_notebook_is_there() -> None:
    figures, links = set(re.findall(r"data/figures/[\w-]+\.png", README)), set(re.findall(r"\]\(([^)#:]+)\)", README))
    assert len(figures) >= 14
    for figure in figures:
        assert (ROOT / figure).stat().st_size <= 100_000, figure
        Image.open(ROOT / figure).verify()
    assert [link for link in links if not (ROOT / link).exists()] == []
    assert {f"notebooks/{path.name}" for path in (ROOT / "notebooks").glob("[0-9]*.ipynb")} <= links
