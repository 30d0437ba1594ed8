"""Say in each notebook where everything it takes from the package is defined, to the line.

``python -m isodiff.source_links`` brings the last cell of every notebook of the course up to date, and nothing
else; ``isodiff run NAME --update`` does the same for the notebooks it executes. Sources are read, not imported.
"""

from __future__ import annotations

import ast
import copy
import importlib
import os
from collections.abc import Iterator
from pathlib import Path

import nbformat
from nbformat import NotebookNode
from nbformat.v4 import new_markdown_cell

from isodiff.files import write_whole
from isodiff.paths import repository_root

HEADING = "## Where to find it"
PACKAGE = Path(__file__).resolve().parent


def source_links(notebook: NotebookNode) -> str:
    """Return the Markdown of the table of links, or an empty string if the notebook takes nothing from the package.

    Raises:
        ImportError: If the package does not define a name that the notebook imports or uses.
    """
    found = sorted({(*definition(module, name), name) for module, name in used_names(notebook)})
    if not found:
        return ""
    links: dict[str, list[str]] = {}
    for path, line, name in found:
        links.setdefault(path, []).append(f"[`{name}`](../{path}#L{line})")
    rows = [f"| `{path}` | {', '.join(names)} |" for path, names in links.items()]
    opening = "What this notebook takes from the package, each name linked to the line that defines it."
    return "\n".join([HEADING, "", opening, "", "| file | defined there |", "|---|---|", *rows])


def with_source_links(notebook: NotebookNode) -> NotebookNode:
    """Return a copy of a notebook whose last cell is its table of links, in the place of any older one."""
    notebook = copy.deepcopy(notebook)
    notebook.cells = [cell for cell in notebook.cells if not is_table(cell)]
    if text := source_links(notebook):
        notebook.cells.append(new_markdown_cell(text, id="where-to-find-it"))
    return notebook


def with_links_from(notebook: NotebookNode, folder: Path) -> NotebookNode:
    """Return a copy of a notebook whose table leads to the same sources from another folder than ``notebooks``."""
    notebook, root = copy.deepcopy(notebook), PACKAGE.parent
    near = folder.resolve().anchor == root.anchor  # not so on another drive of Windows
    start = Path(os.path.relpath(root, folder)).as_posix() if near else root.as_uri()
    for cell in filter(is_table, notebook.cells):
        cell.source = cell.source.replace(f"](../{PACKAGE.name}/", f"]({start}/{PACKAGE.name}/")
    return notebook


def is_table(cell: NotebookNode) -> bool:
    """Return whether a cell is a table of links, by its heading."""
    return cell.cell_type == "markdown" and cell.source.partition("\n")[0].strip() == HEADING


def used_names(notebook: NotebookNode) -> set[tuple[str, str]]:
    """Return (module, name) of all that is imported from the package; of a module, the attributes that are used."""
    code = [cell.source.splitlines() for cell in notebook.cells if cell.cell_type == "code"]
    python = "\n".join(line for lines in code for line in lines if not line.startswith(("%", "!")))  # no magics
    nodes = list(ast.walk(ast.parse(python)))
    modules: dict[str, str] = {}  # what a module is called here, and what it is
    used = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            modules |= {alias.asname or alias.name: alias.name for alias in node.names if _is_ours(alias.name)}
        elif isinstance(node, ast.ImportFrom) and _is_ours(node.module or ""):
            for alias in node.names:
                if _file(f"{node.module}.{alias.name}"):
                    modules[alias.asname or alias.name] = f"{node.module}.{alias.name}"
                else:
                    used.add((node.module, alias.name))
    for node in nodes:
        module = modules.get(ast.unparse(node.value)) if isinstance(node, ast.Attribute) else None
        if module and not _file(f"{module}.{node.attr}"):
            used.add((module, node.attr))
    return used


def definition(module: str, name: str) -> tuple[str, int]:
    """Return the file, relative to the repository, and the line that define a name of a module.

    Imports are followed to where a function, class or constant is written.

    Raises:
        ImportError: If the module, or the name in it, does not exist.
    """
    file = _file(module)
    if file is None:
        raise ImportError(f"there is no module {module}, from which a notebook takes {name}")
    tree = ast.parse(file.read_text(encoding="utf-8"))
    for node in tree.body:
        if isinstance(node, ast.ImportFrom):
            for alias in node.names:
                if (alias.asname or alias.name) == name and _is_ours(node.module or ""):
                    return definition(node.module, alias.name)
        elif name in _names(node):
            return file.relative_to(PACKAGE.parent).as_posix(), node.lineno
    if "__getattr__" in {defined for node in tree.body for defined in _names(node)}:  # loaded when first asked for
        found = getattr(importlib.import_module(module), name, None)
        if getattr(found, "__module__", module) != module:
            return definition(found.__module__, name)
    raise ImportError(f"{module} defines no {name}, which a notebook takes from it")


def _is_ours(module: str) -> bool:
    return module.split(".")[0] == PACKAGE.name


def _file(module: str) -> Path | None:
    path = PACKAGE.parent.joinpath(*module.split("."))
    return next((file for file in (path.with_suffix(".py"), path / "__init__.py") if file.is_file()), None)


def _names(node: ast.stmt) -> Iterator[str]:
    if isinstance(node, ast.FunctionDef | ast.ClassDef):
        yield node.name
    elif isinstance(node, ast.Assign | ast.AnnAssign):
        for target in node.targets if isinstance(node, ast.Assign) else [node.target]:
            yield from (part.id for part in ast.walk(target) if isinstance(part, ast.Name))


def main() -> None:
    """Rewrite the table of every notebook of the course, in place, and name the notebooks that changed."""
    from isodiff.course import course_notebooks  # here, as that module uses this one

    for path in course_notebooks(repository_root() / "notebooks"):
        before = path.read_text(encoding="utf-8")
        after = nbformat.writes(with_source_links(nbformat.reads(before, as_version=4))) + "\n"
        if after != before:
            write_whole(path, after)
            print(path.name)


if __name__ == "__main__":
    main()
