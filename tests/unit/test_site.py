"""The site is made without a warning, each of its links leads somewhere, and its reference is of today's code."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import gridscore
from gridscore.cli import _COMMANDS

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(folder)]
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False, timeout=200)
    assert done.returncode == 0, done.stdout + done.stderr
    return {page: page.read_text() for page in folder.rglob("*.html") if page.name != "404.html"}


def test_every_link_leads_to_a_page_and_a_heading(site):
    broken = []
    for page, text in site.items():
        for target in re.findall(r'(?:href|src|srcset)="([^"]+)"', text):
            path, _, anchor = target.partition("#")
            if re.match(r"[a-z]+:|//", target):
                continue
            found = Path(os.path.normpath(page.parent / path)) if path else page
            found = found / "index.html" if found.is_dir() else found
            if not found.exists() or (anchor and found in site and f'id="{anchor}"' not in site[found]):
                broken.append((page.name, target))
    assert broken == []


def test_nothing_is_fetched_from_elsewhere(site):
    for page, text in site.items():
        assert re.findall(r'<(?:script|img|iframe)[^>]+src="(?:https?:)?//', text) == [], page
        assert re.findall(r'<link[^>]+rel="stylesheet"[^>]+href="(?:https?:)?//', text) == [], page


def test_the_reference_has_every_command_and_name(site):
    pages = {page.stem: text for page, text in site.items() if page.parent.name == "reference"}
    for name in (name for commands in _COMMANDS.values() for name in commands):
        assert f"gridscore {name}" in pages["commands"]
    for name in gridscore.__all__:
        assert f'.{name}"' in pages["python"], name
    assert "max_dead_letter_bytes" in pages["job-file"]
