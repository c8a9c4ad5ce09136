"""What the site has that no file of docs/ holds: notebooks as pages, commands, operations, pages at the project's top.

mkdocs calls the functions whose names begin with ``on_``; see mkdocs.yml.
"""

from __future__ import annotations

import html
import json
import posixpath
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import typer
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parent.parent
PROJECT = {
    "ARCHITECTURE.md": "project/architecture.md",
    "CHANGELOG.md": "project/changelog.md",
    "CONTRIBUTING.md": "project/contributing.md",
    "SECURITY.md": "project/security.md",
    "examples/imagenette.md": "project/imagenette.md",
}
"""Files outside docs/ that are pages of the site."""
_LINK = re.compile(r"\]\((?!https?:|data:|#)([^)#\s]+)(#[^)\s]*)?\)")
# A reference in a docstring, as it looks once Markdown has been over it.
_ROLE = re.compile(r":(?:func|class|mod|meth|data|attr|exc):<code>~?([\w.]+)</code>")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages that other files make."""
    made = {page: (ROOT / path).read_text(encoding="utf-8") for path, page in PROJECT.items()}
    for path in sorted((ROOT / "docs" / "notebooks").glob("*.ipynb")):
        made[f"notebooks/{path.stem}.md"] = notebook_page(path)
    for page, content in made.items():
        files.append(File.generated(config, page, content=content))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Fill in what a page leaves to be made, and let links between files lead to the pages that these have become."""
    for marker, made in (("<!-- commands -->", commands), ("<!-- operations -->", operations)):
        if marker in markdown:
            markdown = markdown.replace(marker, "\n".join(made()))
    here = page.file.src_uri
    origin = next((path for path, made in PROJECT.items() if made == here), f"docs/{here}")

    def led(match: re.Match[str]) -> str:
        target = posixpath.normpath(posixpath.join(posixpath.dirname(origin), match[1]))
        found = {"README.md": "index.md", **PROJECT}.get(target, target.removeprefix("docs/"))
        if found.startswith("notebooks/"):
            found = found.replace(".ipynb", ".md")
        return f"]({posixpath.relpath(found, posixpath.dirname(here) or '.')}{match[2] or ''})"

    return _LINK.sub(led, markdown)


def on_page_content(content: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Turn the references of docstrings into links, where the site has what they name."""
    return _ROLE.sub(r'<autoref optional identifier="\1"><code>\1</code></autoref>', content)


# ---------------------------------------------------------------- notebooks


def notebook_page(path: Path) -> str:
    """Return an executed notebook as Markdown, with what its cells showed."""
    parts = [f"[This notebook](<{path.name}>) as it ran; `pip install '.[notebooks,demo]'` in a clone runs it."]
    for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]:
        source = "".join(cell["source"])
        if cell["cell_type"] == "markdown":
            parts.append(source)
        else:
            parts += [f"```python\n{source}\n```", *(_shown(output) for output in cell["outputs"])]
    title, *rest = parts[1:]
    return "\n\n".join([title, parts[0], *rest])


def _shown(output: dict[str, Any]) -> str:
    """Return what one output of a cell looks like: the richest form that it has."""
    data = output.get("data", {"text/plain": output.get("text", "")})
    if "image/png" in data:
        return f"![What the cell above draws](data:image/png;base64,{''.join(data['image/png']).replace(chr(10), '')})"
    if "text/html" in data:
        lines = (line for line in "".join(data["text/html"]).splitlines() if line.strip())  # a blank one ends HTML
        return '<div class="output">' + "\n".join(lines) + "</div>"
    return f"```text\n{''.join(data['text/plain']).rstrip()}\n```"


# ---------------------------------------------------------------- commands


def commands() -> Iterator[str]:
    """Yield what ``--help`` has of every command."""
    from bcos_fx.cli import app

    found = typer.main.get_command(app).commands  # type: ignore[attr-defined]
    for name, command in found.items():
        if command.hidden:
            continue
        yield f"## bcos-fx {name}\n\n{html.escape(command.help or '', quote=False)}\n"
        yield "| argument or option | what it is |\n|---|---|"
        for parameter in command.params:
            if parameter.name == "help" or getattr(parameter, "hidden", False):
                continue
            option = parameter.param_type_name == "option"
            words = parameter.opts if option else [(parameter.metavar or parameter.name).strip("{}")]
            names = ", ".join(f"`{word}`" for word in words)
            yield f"| {names} | {_cell(parameter.help or '')} |"
        if command.epilog:
            yield "\n```text\n" + re.sub(r"\n\n+", "\n", command.epilog.replace("\\[", "[")).strip() + "\n```\n"


def _cell(text: str) -> str:
    return html.escape(" ".join(text.split()), quote=False).replace("|", "\\|")


# ---------------------------------------------------------------- operations


def operations() -> Iterator[str]:
    """Yield the op vocabulary, from the files that declare it."""
    known = tomllib.loads((ROOT / "rules" / "ops.toml").read_text(encoding="utf-8"))
    refused = tomllib.loads((ROOT / "rules" / "refused.toml").read_text(encoding="utf-8"))
    yield "## What is known\n\n| operation | class | spelled |\n|---|---|---|"
    for name, op in known.items():
        spelled = [*op.get("modules", []), *op.get("functions", []), *(f".{m}" for m in op.get("methods", []))]
        yield f"| `{name}` | {op['class']} | {', '.join(f'`{word}`' for word in spelled)} |"
    yield "\n## What is refused, and why\n\n| reason | in its place | names |\n|---|---|---|"
    for group in refused.values():
        names = ", ".join(f"`{name}`" for name in group["names"])
        yield f"| {_cell(group['reason'])} | {_cell(group.get('instead', ''))} | {names} |"
