"""Every command of a source or sink that the pages and Compose files show is one that gridscore takes."""

import re
import shlex
from pathlib import Path

import pytest
import typer
import yaml
from typer.testing import CliRunner

from gridscore.cli.plugs import command_of
from gridscore.sinks import base as sinks
from gridscore.sources import base as sources

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")), *sorted((ROOT / "jobs").glob("*/README.md"))]
REGISTRIES = {"source": sources, "sink": sinks}


def commands():
    """Page and words of each: a line of a block, or a piece of text between backquotes; the command of a service."""
    for file in sorted((ROOT / "compose").glob("*.yaml")):
        for name, service in yaml.safe_load(file.read_text()).get("services", {}).items():
            command = service.get("command", "")
            text = command if isinstance(command, str) else " ".join(command)
            words = ["gridscore", *shlex.split(text.rpartition("gridscore ")[2])]
            if words[1:] and words[1] in REGISTRIES:
                yield pytest.param(words, id=f"{file.name}: {name}")
    for page in PAGES:
        text = page.read_text().replace("\\\n", " ")
        found = re.findall(r"^(?: {4})?(gridscore (?:source|sink) .*)$", text, re.MULTILINE)
        found += re.findall(r"`(gridscore (?:source|sink) [^`]*)`", text)
        for line in found:
            words = shlex.split(line.replace("\\|", "|"), comments=True)
            whole = len(words) > 3 and "…" not in line and "--help" not in words
            if whole and words[2] in REGISTRIES[words[1]].KINDS.available:
                yield pytest.param(words, id=f"{page.stem}: {' '.join(words[1:])[:60]}")


@pytest.mark.parametrize("words", list(commands()))
def test_a_command_of_the_pages_is_taken(words):
    taken = []
    app = typer.Typer()
    model = REGISTRIES[words[1]].KINDS[words[2]].settings_class()
    app.command()(command_of(model, lambda *given: taken.append(given), help_text="Help."))
    done = CliRunner().invoke(app, [word for word in words[3:] if word != "&"])
    assert taken, (done.output, done.exception)


def test_the_pages_show_every_kind():
    shown = {(param.values[0][1], param.values[0][2]) for param in commands()}
    assert shown == {(side, kind) for side, registry in REGISTRIES.items() for kind in registry.KINDS.available}
