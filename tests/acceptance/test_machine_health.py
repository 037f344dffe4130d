"""The example with the sensors: the commands of its README one after the other, from nothing to remaining hours."""

import json
import re

import pandas as pd
import pytest
from readme_shell import ROOT, commands_of, shell_in
from servers import not_here

from gridscore.testing.mqtt import MqttBroker, available

EXAMPLE = ROOT / "jobs/machine-health"


@pytest.fixture(scope="module")
def plant(cluster, tmp_path_factory):  # noqa: ARG001 -- the cluster tells whether a member can be had here
    """What stands after the commands of the README: the shell, and what each printed."""
    if not available():
        not_here("no MQTT broker: install mosquitto")
    folder = tmp_path_factory.mktemp("machine-health")
    with MqttBroker.start(folder) as broker, shell_in(folder) as shell:
        yield shell, follow_the_readme(shell, broker)


def follow_the_readme(shell, broker):
    job = shell.folder / "job.yaml"  # with a broker of the test's own
    job.write_text((EXAMPLE / "job.yaml").read_text().replace("mqtt://localhost:1883", broker.url))
    printed = {}
    for line in commands_of(EXAMPLE / "README.md", "From nothing to remaining hours"):
        words = line.replace("jobs/machine-health/job.yaml", str(job)).removesuffix(" &")
        if line.startswith("mosquitto"):
            continue
        if line == "gridscore up &":
            shell.start_cluster()
        elif line.endswith("&"):
            shell.start(words.split()[1], words)
        elif line == "gridscore source list":
            shell.until(lambda: " running " in shell.run("gridscore source list").stdout, "source")
        else:
            if line.startswith("gridscore parity"):
                shell.until(lambda: all_scored(shell), "worker")
            done = shell.run(words + (f" --broker {broker.url}" if "sensors.py" in line else ""))
            assert done.returncode == 0, (line, done.stdout, done.stderr, shell.log("worker"))
            name = words.split()[1]
            printed[name.rpartition("/")[2]] = done.stdout
    return printed


def all_scored(shell):
    """Whether each reading that was sent has its result."""
    compared = json.loads(shell.run("gridscore parity machine-health --json").stdout)
    return compared["judged"] == len(pd.read_csv(shell.folder / "data/later.csv"))


def test_the_readme_shows_what_the_commands_print(plant):
    shell, printed = plant
    readme = (EXAMPLE / "README.md").read_text()
    later = pd.read_csv(shell.folder / "data/later.csv")
    readings = len(pd.read_csv(shell.folder / "data/history.csv")) + len(later)
    assert f"{readings:,} readings" in readme
    quality = r"off by ([\d.]+) hours \(RMSE\), on their last day by ([\d.]+); who always says the mean, by ([\d.]+)"
    texts = readme, printed["train.py"]
    shown, found = ([float(each) for each in re.search(quality, text).groups()] for text in texts)
    assert found == pytest.approx(shown, rel=0.05)
    assert found[1] < found[0] < found[2] / 2
    assert f"{len(later):,} readings sent" in printed["sensors.py"]


def test_every_reading_was_scored_with_its_machines_windows_as_offline(plant):
    shell, printed = plant
    count = len(pd.read_csv(shell.folder / "data/later.csv"))
    assert printed["parity"].startswith(f"{count:,} of {count:,} equal")
    offline = re.search(r"RMSE +([\d.]+)", printed["backtest"])[1]
    assert f"off by {float(offline):.1f} hours" in printed["train.py"]
    assert "24h" in printed["state"]
