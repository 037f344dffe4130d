"""What `make site` adds to the pages: the README and its like, examples, notebooks, and references made of the code."""

import json
import os
import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File

ROOT = Path(__file__).parents[1]
PAGES = {
    "README.md": "index.md",
    "CHANGELOG.md": "changelog.md",
    "CONTRIBUTING.md": "contributing.md",
    "SECURITY.md": "security-policy.md",
    **{
        f"jobs/{each}/README.md": f"examples/{each}.md"
        for each in ("flights", "payments", "card-fraud", "machine-health")
    },
    "examples/sqlite-plugs/README.md": "examples/sqlite-plugs.md",
    **{
        f"docs/notebooks/{each.name}": f"notebooks/{each.stem}.md" for each in (ROOT / "docs/notebooks").glob("*.ipynb")
    },
}
"""Other files that are pages, and where."""


def on_files(files: Any, config: Any) -> Any:
    """Add pages, and files that pages lead to."""
    made = {where: _page(ROOT / path) for path, where in PAGES.items()}
    made |= {
        "reference/commands.md": _commands(),
        "reference/job-file.md": _job_file(),
        "reference/python.md": _python(),
    }
    sources = {where: path for path, where in PAGES.items()}
    sources |= {file.src_uri: f"docs/{file.src_uri}" for file in files.documentation_pages()}
    for file in list(files.documentation_pages()):
        made.setdefault(file.src_uri, file.content_string)
        files.remove(file)
    others: set[str] = set()
    for where, text in made.items():
        linked = _relinked(text, sources[where], where, others) if where in sources else text
        files.append(File.generated(config, where, content=linked))
    for path in sorted(others):
        files.append(File.generated(config, f"files/{path}", content=(ROOT / path).read_bytes()))
    return files


def on_page_content(html: str, **_: Any) -> str:
    """Leave out the roles of docstrings, which are Sphinx's."""
    return re.sub(r":(?:attr|class|func|meth|mod):(?=<code>)", "", html)


def _page(file: Path) -> str:
    text = file.read_text()
    if file.suffix != ".ipynb":
        return text
    cells = [(each["cell_type"], "".join(each["source"])) for each in json.loads(text)["cells"]]
    return "\n\n".join(text if kind == "markdown" else f"```python\n{text}\n```" for kind, text in cells)


def _relinked(text: str, source: str, where: str, others: set[str]) -> str:
    """A page whose links lead where the files are on the site; files that are not pages are noted in `others`."""

    def link(found: re.Match[str]) -> str:
        before, target, after = found.groups()
        path, mark, anchor = target.partition("#")
        if not path or ":" in path:
            return found[0]
        inside = os.path.normpath(Path(source).parent / path)
        if inside in PAGES:
            at = PAGES[inside]
        elif inside.startswith("docs/"):
            at = inside.removeprefix("docs/")
        else:
            others.add(inside)
            at = f"files/{inside}"
        return f"{before}{os.path.relpath(at, Path(where).parent)}{mark}{anchor}{after}"

    return re.sub(r"(\]\(|src(?:set)?=\")([^)\"\s]+)([)\"])", link, text)


def _commands() -> str:
    """Every command's own help, as a terminal shows it."""
    import typer
    from typer.testing import CliRunner

    from gridscore.cli import _commands as app

    runner = CliRunner(env={"COLUMNS": "80", "TERM": "dumb", "NO_COLOR": "1"})
    parts = ["# Commands", "What `gridscore COMMAND --help` says."]

    def add(command: Any, path: tuple[str, ...]) -> None:
        if command.hidden:
            return
        inner = getattr(command, "commands", {})
        text = runner.invoke(app(), [*path, "--help"]).stdout.strip("\n")
        parts.append(f"{'#' * min(len(path) + 1, 3)} gridscore {' '.join(path)}\n\n```text\n{text}\n```")
        for name, each in inner.items():
            add(each, (*path, name))

    for name, command in typer.main.get_command(app()).commands.items():  # type: ignore[attr-defined]
        add(command, (name,))
    return "\n\n".join(parts)


def _job_file() -> str:
    """The job file's JSON Schema as tables."""
    from gridscore.job import job_json_schema

    schema = job_json_schema()
    parts = [
        "# Job file: reference",
        "Made of the JSON Schema that `gridscore job schema` prints. [Job file](../job-file.md) explains it.",
        _table(schema),
    ]
    for name, each in schema["$defs"].items():
        forms = [form for form in each.get("anyOf", [each]) if "properties" in form]
        parts += [f"## {name}", *(f"{form.get('description', '')}\n\n{_table(form)}" for form in forms)]
    return "\n\n".join(parts)


def _table(schema: dict[str, Any]) -> str:
    rows = ["| key | type | default | |", "|---|---|---|---|"]
    for name, each in schema["properties"].items():
        default = f"`{each['default']}`" if each.get("default") not in (None, "") else ""
        if name in schema.get("required", ()):
            default = "required"
        words = (f"`{name}`", _type(each), default, " ".join(each.get("description", "").split()))
        rows.append("| " + " | ".join(word.replace("|", "\\|") for word in words) + " |")
    return "\n".join(rows)


def _type(schema: dict[str, Any]) -> str:
    if "$ref" in schema:
        name = schema["$ref"].rpartition("/")[2]
        return f"[{name}](#{name.lower()})"
    if "anyOf" in schema:
        return " or ".join(dict.fromkeys(_type(each) for each in schema["anyOf"] if each.get("type") != "null"))
    if "enum" in schema or "const" in schema:
        return ", ".join(f"`{each}`" for each in schema.get("enum", [schema.get("const")]))
    kind = schema.get("type", "any")
    if isinstance(schema.get("additionalProperties"), dict):
        return f"{_type(schema['additionalProperties'])} by name"
    if "items" in schema:
        return f"list of {_type(schema['items'])}"
    low, high = (schema.get(each, schema.get(f"exclusive{each.title()}")) for each in ("minimum", "maximum"))
    bounds = f", {'' if low is None else low} to {'' if high is None else high}" if (low, high) != (None, None) else ""
    return (" or ".join(kind) if isinstance(kind, list) else kind) + bounds


def _python() -> str:
    """What the package offers by name."""
    import gridscore

    offered = {name: getattr(gridscore, name) for name in gridscore.__all__}
    names = "\n\n".join(f"::: {what.__module__}.{name}" for name, what in offered.items())
    return f"# Python\n\nWhat `gridscore` offers; everything else may change with any release.\n\n{names}"
