"""A distribution with a source or a sink of one's own: a half of `examples/sqlite-plugs`, under another name."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from gridscore.errors import UsageError
from gridscore.job.project import shipped, workflow

if TYPE_CHECKING:
    from gridscore.job.plugs.kinds import Side

_NAME = re.compile(r"[a-z][a-z0-9]{0,19}(-[a-z0-9]{1,20}){0,3}")

_README = """\
# gridscore-{name}

A {side} for Gridscore, of the kind `{name}`. It speaks to SQLite, until you put your own system in its place: what to
set is in `gridscore_{module}/settings.py`, the rest in `gridscore_{module}/{side}.py`, and what it has to promise in
`gridscore/{side}s/base.py`.

{promise}

```sh
pip install -e '.[test]'
pytest                       # no server needed
gridscore {side} {name} --help
```
"""


def files_of(name: str, side: Side) -> dict[str, str]:
    """The files of the distribution, by path; its tests pass as they are.

    Raises:
        UsageError: A kind cannot have this name.
    """
    if not _NAME.fullmatch(name):
        raise UsageError(
            f"A {side} cannot be called `{name}`.", "Take small letters, digits and `-`, as in `my-queue`."
        )
    other: Side = "sink" if side == "source" else "source"
    module, camel = name.replace("-", "_"), "".join(word.capitalize() for word in name.split("-"))
    example = shipped("examples/sqlite-plugs", "pyproject.toml")

    def named(text: str) -> str:
        for old, new in (("gridscore_sqlite", f"gridscore_{module}"), ("test_sqlite", f"test_{module}")):
            text = text.replace(old, new)
        return re.sub(r"(?<!\w)sqlite(?!\w)", name, re.sub(r"\bSqlite(?=S)", camel, text))

    files = {}
    for file in [example / "pyproject.toml", *sorted(example.rglob("*.py"))]:
        if other not in file.name:
            text = _half(file.read_text(encoding="utf-8"), side, other)
            files[named(file.relative_to(example).as_posix())] = named(text)
    whole = (example / "README.md").read_text(encoding="utf-8")
    promise = whole[whole.index(f"**A {side}**") :].partition("\n- ")[0]
    files["README.md"] = _README.format(name=name, side=side, module=module, promise=promise)
    files[".github/workflows/test.yml"] = workflow("-e '.[test]'", "pytest")
    files[".gitignore"] = ".venv/\n__pycache__/\n"
    return files


def _half(text: str, side: Side, other: Side) -> str:
    """A file without the paragraphs that begin with the other side."""
    text = text.replace("A source and a sink", f"A {side}")
    text = text.replace("SinkSettings, SourceSettings", f"{side.capitalize()}Settings")
    kept = []
    for part in re.split(r"(?<=\n)(?=\n+\S)", text):
        begin = " ".join(part.strip().splitlines()[:2]).lower()
        if other not in begin or side in begin:
            kept.append(part)
    return re.sub(r"\n{4,}", "\n\n\n", "".join(kept))
