"""A shell that completes a word gets the names in the cluster, soon; and nothing else, whatever happens."""

import os
import pty
import select
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from commands import with_client
from servers import not_here
from sklearn.datasets import load_breast_cancer
from typer.testing import CliRunner
from xgboost import XGBClassifier

from gridscore.cli import _commands
from gridscore.job import parse_job


def asked(line):
    """What bash sets to complete the end of a line."""
    words = line.split(" ")
    place = {"COMP_WORDS": "\n".join(words), "COMP_CWORD": str(len(words) - 1)}
    return {"_GRIDSCORE_COMPLETE": "complete_bash", **place}


@pytest.fixture
def offered(environment):
    """What is offered, however long it takes."""

    def go(line):
        app = _commands(line.split(" ")[1])
        done = CliRunner().invoke(app, [], prog_name="gridscore", env=environment | asked(line))
        assert (done.exit_code, done.stderr) == (0, "")
        return done.stdout.split()

    return go


def test_names_of_the_cluster_are_offered(offered, cluster, unique):
    names = [f"{unique}-two", f"{unique}-one"]

    async def put(client):
        model = XGBClassifier(n_estimators=1, n_jobs=1).fit(*load_breast_cancer(return_X_y=True, as_frame=True))
        await client.push_model(model, unique, alias="champion")
        for name in names:
            text = f"job: {name}\nevents: events.{name}\nmodel: {unique}\nresults: results.{name}\n"
            await client.submit(parse_job(text, "test"))
        for name in (unique, f"{unique};reboot", f"{unique}\nreboot", f"{unique} $(reboot)"):
            await client.put_events(f"lookups.{name}", {"a": {"x": 1}})

    with_client(cluster, put)
    where = f"--members {cluster.addresses[0]} --cluster-name {cluster.cluster_name}"
    assert offered(f"gridscore suspend {unique}") == sorted(names)
    assert offered(f"gridscore drift {where} {unique}-t") == [f"{unique}-two"]
    assert offered(f"gridscore model show {unique}") == [unique]
    # A shell puts names into the command line as they are.
    assert offered(f"gridscore load --to lookups.{unique}") == [f"lookups.{unique}"]
    assert offered(f"gridscore source logfile --to lookups.{unique}") == [f"lookups.{unique}"]


def shell(name):
    return shutil.which(name) or not_here(f"no {name}: install Debian's `{name}`")


@pytest.fixture
def typing(environment, tmp_path):
    """What a person sees in zsh who types these, a tab after each, once the text is there."""

    def go(*typed, until):
        words = [shell("zsh"), "-f", "-i"]
        screen, keyboard = pty.openpty()
        here = environment | {
            "PATH": f"{Path(sys.executable).parent}:{environment['PATH']}",
            "PS1": "% ",
            "TERM": "dumb",
        }
        with subprocess.Popen(words, stdin=keyboard, stdout=keyboard, stderr=keyboard, env=here, cwd=tmp_path) as zsh:
            try:
                os.write(screen, b'autoload -U compinit; compinit -u -D; eval "$(gridscore --show-completion)"\n')
                seen = ""
                for each in typed:
                    os.write(screen, f"{each}\t".encode())
                while until not in seen:
                    assert select.select([screen], [], [], 60)[0], seen
                    seen += os.read(screen, 65536).decode(errors="replace")
            finally:
                zsh.kill()
                os.close(screen)
                os.close(keyboard)

    return go


def test_zsh_completes_commands_and_names(typing, cluster, unique):
    with_client(cluster, lambda client: client.put_events(f"lookups.{unique}", {"a": {"x": 1}}))
    typing("gridscore loa", f"--to lookups.{unique[:6]}", until=f"--to lookups.{unique} ")


def test_fish_completes_commands_and_names_and_breaks_no_help_into_lines(environment, cluster, unique):
    with_client(cluster, lambda client: client.put_events(f"lookups.{unique}", {"a": {"x": 1}}))
    here = environment | {"PATH": f"{Path(sys.executable).parent}:{environment['PATH']}"}
    lines = ("gridscore mod", f"gridscore load --to lookups.{unique[:6]}", "gridscore model show --mem")
    asked = "; ".join(["gridscore --show-completion | source", *(f"complete -C '{line}'" for line in lines)])
    done = subprocess.run(
        [shell("fish"), "-c", asked], env=here, capture_output=True, text=True, timeout=120, check=True
    )
    command, name, option = done.stdout.splitlines()
    assert command.startswith("model\tModels in the cluster")
    assert name == f"lookups.{unique}"
    assert option.endswith("that `gridscore up` runs on this machine.")


def test_a_cluster_that_is_silent_offers_nothing():
    with socket.create_server(("127.0.0.1", 0)) as silent:  # accepts, and never answers
        where = {"GRIDSCORE_MEMBERS": f"127.0.0.1:{silent.getsockname()[1]}", "GRIDSCORE_CONNECT_TIMEOUT": "1000"}
        there = os.environ | asked("gridscore model show ") | where
        program = Path(sys.executable).with_name("gridscore")
        done = subprocess.run([program], env=there, capture_output=True, text=True, timeout=120, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_settings_that_cannot_be_read_offer_nothing():
    there = asked("gridscore suspend ") | {"GRIDSCORE_CONFIG": "nowhere.toml"}
    done = CliRunner().invoke(_commands("suspend"), [], prog_name="gridscore", env=there)
    assert (done.exit_code, done.stdout.split(), done.stderr) == (0, [], "")
