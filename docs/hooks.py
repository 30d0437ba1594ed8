"""What is made of the site: notebooks as pages, texts filled from records, links that lead somewhere."""

from __future__ import annotations

import contextlib
import io
import json
import os
import posixpath
import pydoc
import re
from functools import cache
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING
from unittest.mock import patch

import jinja2
import yaml
from mkdocs.plugins import event_priority, get_plugin_logger
from mkdocs.structure.files import File

from isodiff import cli, reproduce
from isodiff.reproduce import rules
from isodiff.reproduce.report import plural
from isodiff.verdict import VERDICT_KINDS

if TYPE_CHECKING:
    from mkdocs.config.defaults import MkDocsConfig
    from mkdocs.structure.files import Files
    from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parents[1]
RECORDS = ROOT / "data" / "results" / "reproduce"
ELSEWHERE = ("notebooks/*.ipynb", "data/figures/*.png", "data/README.md", "CONTRIBUTING.md", "LICENSE", "CITATION.cff")
SOURCES = ("isodiff/reproduce/*.toml", "benchmarks/*.py", "notebooks/gpu.yaml", "isodiff/cli.py")
PAGES = {"README.md": "index.md", "isodiff/reproduce/claims.toml": "claims.md"}
FACADES = ("geometry", "diffusion", "metrics", "editing", "reproduce")
log = get_plugin_logger("isodiff")


@event_priority(100)  # before mkdocs-jupyter looks for notebooks
def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add what stands elsewhere in the repository."""
    for path in (path for pattern in (*ELSEWHERE, *SOURCES) for path in sorted(ROOT.glob(pattern))):
        files.append(File(path.relative_to(ROOT).as_posix(), str(ROOT), config.site_dir, config.use_directory_urls))
    return files


def on_page_markdown(text: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Fill a text from the records, and lead its links, which are right in the repository, through the site."""
    if page.file.src_uri.endswith(".ipynb"):
        return text
    if page.file.src_dir == config.docs_dir:
        environment = jinja2.Environment(undefined=jinja2.StrictUndefined, trim_blocks=True, comment_start_string="{##")
        text = environment.from_string(text).render(**facts())
    text = re.sub(rf"`((?:{'|'.join(FACADES)})(?:\.\w+)+)`", lambda name: f"[{name[0]}]({anchor(name[1])})", text)
    home = "" if page.file.src_dir == str(ROOT) else "docs/"
    return re.sub(r"(?<=\]\()[^)\s]+", lambda link: place(link[0], home + page.file.src_uri, page, files), text)


def on_page_content(html: str, page: Page, files: Files, **_: object) -> str:
    """Let a notebook load no script of others, fold the cells that only draw, and lead its links through the site."""
    if not page.file.src_uri.endswith(".ipynb"):
        return html
    page.title = f"{page.file.name[:2]} · {page.title}"
    loads = r'<script (src="[^"]*mathjax|type="(module|text/x-mathjax-config)").*?</script>'
    html = re.sub(loads, "", html, flags=re.DOTALL)
    cells = json.loads(Path(page.file.abs_src_path).read_text(encoding="utf-8"))["cells"]
    outputs = [output.get("data", {}) for cell in cells for output in cell.get("outputs", [])]
    told = iter(["".join(data.get("text/plain", "")) for data in outputs if "image/png" in data])
    html = re.sub(r'(?<=alt=")No description[^"]*', lambda _: escape(next(told)), html)
    for cell in cells:
        if cell["metadata"].get("jupyter", {}).get("source_hidden"):
            inside = r'(<div class="jp-Cell-inputWrapper".*?)(?=<div class="jp-Cell-outputWrapper")'
            folded = r"\1<details><summary>the code of this cell</summary>\2</details>"
            html = re.sub(rf'(id="cell-id={cell["id"]}">\s*){inside}', folded, html, count=1, flags=re.DOTALL)
    return re.sub(r'(?<= href=")[^"]+', lambda link: place(link[0], page.file.src_uri, page, files, ".html"), html)


def anchor(name: str) -> str:
    """Return where the API describes a public name such as ``geometry.slerp``."""
    thing = pydoc.locate(f"isodiff.{name}")
    module, own = getattr(thing, "__module__", None), getattr(thing, "__qualname__", None)
    described = f"#{module}.{own}" if own and module.startswith("isodiff.") else ""
    return f"../docs/api/{name.partition('.')[0]}.md{described}"


def place(link: str, origin: str, page: Page, files: Files, ending: str = "") -> str:
    """Return where a link that stands in a file of the repository leads on the site; `ending` once it is HTML."""
    path, hash_, anchor = link.partition("#")
    if not path or ":" in path:
        return link
    target = posixpath.normpath(posixpath.join(posixpath.dirname(origin), path))
    module = re.fullmatch(r"(isodiff/(\w+))(/\w+)?\.py", target)
    target = PAGES.get(target, target).removeprefix("docs/")
    if module and target not in files.src_uris:
        hash_, anchor = "#", target.removesuffix(".py").replace("/", ".")
        target = next((uri for uri in (f"api/{module[2]}.md", "api/rest.md") if uri in files.src_uris), target)
    if (found := files.src_uris.get(target)) is None:
        log.warning(f"{origin} links to {link}, which is not on the site")
        return link
    here = (
        found.url_relative_to(page.file) if ending else posixpath.relpath(target, posixpath.dirname(page.file.src_uri))
    )
    return here + hash_ + anchor


@cache
def facts() -> dict[str, object]:
    """Return what a page may name between {{ and }}."""
    rows = json.loads((RECORDS / "verdicts.json").read_text(encoding="utf-8"))
    for row in rows:
        row["claim"] = reproduce.CLAIMS[row["name"]]
        row["sign"], row["colour"] = VERDICT_KINDS[row["verdict"]]
        row["units"] = f"{row['n_units']} {plural(row['unit'])}"
    of = {row["name"]: row for row in rows}
    instruments = {}
    for name, instrument in reproduce.INSTRUMENTS.items():
        ends = [getattr(instrument, key) for key in ("built", "seen", "none")]
        instruments[name] = instrument.what, [reproduce.effect(end(RECORDS), "") if end else "–" for end in ends]
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    plain = re.sub(r"<!-- .*? -->", "", text)
    made = {name: re.search(rf"<!-- {name} -->\n(.*?)\n<!--", text, re.DOTALL)[1] for name in ("tally", "sizes")}
    return made | {
        "readme": lambda title: re.search(rf"^## {title}\n(.*?)^## ", plain, re.DOTALL | re.MULTILINE)[1],
        "rows": rows, "kinds": VERDICT_KINDS, "instruments": instruments, "help": help_of, "commands": cli.COMMANDS,
        "notebooks": notebooks(), "rules": rules.__doc__.partition("\n")[2],
        "here": lambda name: of[name]["effect"],
        "is": lambda name: of[name]["verdict"], "units": lambda name: of[name]["units"],
        "gpu": yaml.safe_load((ROOT / "notebooks" / "gpu.yaml").read_text(encoding="utf-8")),
        "count": lambda **of: sum(all(row[key] == value for key, value in of.items()) for row in rows),
    }  # fmt: skip


def help_of(*command: str) -> str:
    """Return what a command says of itself."""
    with patch.dict(os.environ, COLUMNS="88", NO_COLOR="1"), contextlib.redirect_stdout(io.StringIO()) as said:
        cli.main([*command, "--help"])
    return said.getvalue().strip()


def notebooks() -> list[dict[str, str]]:
    """Return title and front table of every notebook."""
    found = []
    for path in sorted(ROOT.glob("notebooks/*.ipynb")):
        front = "".join(json.loads(path.read_text(encoding="utf-8"))["cells"][0]["source"])
        rows = dict(re.findall(r"^\| \*\*(.+?)\*\* \| (.+?) \|$", front, re.MULTILINE))
        found.append({"file": path.name, "title": re.search(r"^# (.+)$", front, re.MULTILINE)[1], **rows})
    return found
