"""The tutorial, followed as it stands there: in an empty folder, with an environment that has nothing yet."""

import os
import re
import sys

import pytest
from pages import ROOT, blocks_of, commands_of
from readme_shell import shell_in

TUTORIAL = ROOT / "docs/tutorial.md"


@pytest.fixture(scope="module")
def followed(cluster, wheel, tmp_path_factory):  # noqa: ARG001 -- the cluster tells whether a member can be had here
    """What each command printed, once all are done; and the shell."""
    folder = tmp_path_factory.mktemp("tutorial")
    with shell_in(folder, PIP_FIND_LINKS=f"{wheel.parent} {os.environ.get('PIP_FIND_LINKS', '')}") as shell:
        # Not what the tests' own environment has.
        shell.environment["PATH"] = f"{sys.base_prefix}/bin{os.pathsep}{os.environ['PATH']}"
        yield dict(follow(shell)), shell


def follow(shell):
    text, at = TUTORIAL.read_text(), 0
    for block in blocks_of(TUTORIAL):
        begin = text.index(f"```{block.language}\n{block.text}", at)
        if block.language == "sh":
            for line in commands_of(block.text):
                yield line, do(shell, line)
        else:
            [name] = re.findall(r"[Ss]ave (?:this|it) as\s+`([\w.]+)`", text[at:begin])
            (shell.folder / name).write_text(block.text)
        at = begin


def do(shell, line):
    if line.startswith("kill "):
        started = list(shell.running)
        return [shell.stop(started[int(number) - 1]) for number in re.findall(r"%(\d)", line)]
    if line.endswith("&"):
        name = line.split()[1]
        shell.start(name, line.removesuffix("&"))
        if name == "up":
            shell.until(lambda: " is up: " in shell.log(name), name)
        return ""
    done = shell.run(line, timeout=600)
    assert done.returncode == 0, (line, done.stdout, done.stderr)
    return done.stdout


@pytest.mark.timeout(900)
def test_the_scores_of_the_stream_are_those_of_the_notebook(followed):
    printed, shell = followed
    said = printed["python compare.py"]
    assert "1,000 of 1,000 scores are the notebook's" in said
    assert all(re.search(rf"{decision} +\d+", said) for decision in ("decline", "review", "approve"))
    assert printed["python ask.py"].startswith("decline 0.9")
    assert all(why in printed["gridscore model log fraud"] for why in ("more trees", "only a drill"))
    assert printed["kill %2 %1"] == [0, 0], (shell.log("worker"), shell.log("up"))


def test_the_job_file_has_no_more_than_ten_lines_and_nobody_needs_docker_or_java():
    blocks = list(blocks_of(TUTORIAL))
    assert sum(len(block.text.splitlines()) for block in blocks if block.language == "yaml") <= 10
    assert not re.search(r"docker|java", "".join(block.text for block in blocks))
