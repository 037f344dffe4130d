"""What `compose/` has for Prometheus and Grafana: valid, of metrics that there are, a runbook for each alert."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest
import yaml
from promtool import promtool, samples
from servers import not_here
from serving import PLAIN, client, prepared, serving
from test_metrics import DRIFT, cards, finished, until
from test_page_links import anchors

from gridscore.cli.metrics import address_of
from gridscore.grid import Records
from gridscore.models.drift import DRIFT_MAP
from gridscore.operations import metrics as module
from gridscore.operations.backup import BACKUPS_MAP
from gridscore.testing import StubCluster

ROOT = Path(__file__).parents[2]
COMPOSE = ROOT / "compose"
ALERTS = COMPOSE / "prometheus" / "alerts.yaml"
DASHBOARD = COMPOSE / "grafana" / "dashboards" / "gridscore.json"
RULES = [rule for group in yaml.safe_load(ALERTS.read_text())["groups"] for rule in group["rules"]]
OVERLAY = yaml.safe_load((COMPOSE / "metrics.yaml").read_text())


def questions():
    """What the dashboard's panels ask."""
    panels = json.loads(DASHBOARD.read_text())["panels"]
    return [target["expr"] for panel in panels for target in panel.get("targets", ())]


def names(text):
    return set(re.findall(r"\b(?:gridscore|process)_\w+", text))


@pytest.fixture
async def known(monkeypatch):
    """The names of all metrics of workers, sources, sinks and servers."""
    monkeypatch.setattr(module, "TREND_SECONDS", -1.0)
    async with StubCluster(partitions=5) as cluster:
        await cards(cluster)
        async with cluster.worker(times=True) as worker:
            await until(lambda: "cards" in worker.runners and worker.runners["cards"].stats.copies)
            worker._grid.journalled |= dict.fromkeys(("events.cards", "results.cards"), 5_000)  # as members tell
            await Records(worker._grid, DRIFT_MAP).put("cards", msgspec.to_builtins(DRIFT))
            await Records(worker._grid, BACKUPS_MAP).put("a", {"to": "there", "at": 1, "point": 1, "every": 5})
            text = await finished(worker, lambda metrics: metrics.text())
    async with StubCluster(partitions=5) as cluster:
        await prepared(cluster, PLAIN)
        async with serving(cluster, "plain", to="events.plain") as server, client(server) as http:
            await http.post("/score/plain", json={"amount": 1})
            text += (await http.get("/metrics")).content
    return {name for name, *_ in samples(text.decode())}


async def test_alerts_and_panels_ask_for_metrics_that_there_are(known):
    asked = {name for rule in RULES for name in names(rule["expr"])}
    shown = {name for expression in questions() for name in names(expression)}
    assert asked - known == shown - known == set()
    assert {"gridscore_worker_journal_left_seconds", "gridscore_sink_journal_left_seconds"} <= asked & shown


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule["alert"])
def test_each_alert_has_a_runbook_that_names_it(rule):
    page, _, anchor = rule["annotations"]["runbook_url"].partition("#")
    text = (ROOT / page).read_text()
    assert anchor in anchors(ROOT / page)
    sections = re.split(r"^#+ (.*)$", text, flags=re.MULTILINE)
    headings = {
        re.sub(r"[^\w\- ]", "", each.lower()).replace(" ", "-"): body
        for each, body in zip(sections[1::2], sections[2::2], strict=True)
    }
    assert f"`{rule['alert']}`" in headings[anchor]
    assert rule["labels"]["severity"] in ("page", "ticket")


def test_rules_fire_when_they_should_and_only_then():
    promtool("check", "config", COMPOSE / "prometheus" / "prometheus.yaml")
    promtool("test", "rules", Path(__file__).with_name("alerts.yaml"))


def test_prometheus_understands_what_the_panels_ask(tmp_path):
    texts = [each.replace("$__rate_interval", "1m").replace("$job", ".*") for each in questions()]
    assert len(texts) > 20
    assert not any("$" in each for each in texts)
    rules = [{"record": f"panel:number{n}", "expr": each} for n, each in enumerate(texts)]
    file = tmp_path / "rules.yaml"
    file.write_text(json.dumps({"groups": [{"name": "panels", "rules": rules}]}))
    promtool("check", "rules", file)


def test_prometheus_asks_where_each_process_serves():
    [job] = yaml.safe_load((COMPOSE / "prometheus" / "prometheus.yaml").read_text())["scrape_configs"]
    [found] = job["dns_sd_configs"]
    serving = {}
    for file in COMPOSE.glob("*.yaml"):
        for name, service in (yaml.safe_load(file.read_text()).get("services") or {}).items():
            words = " ".join(map(str, [service.get("command", "")])).split()
            if "--metrics" in words:
                serving[name] = address_of(words[words.index("--metrics") + 1].rstrip("]'"))
    assert set(serving) == set(found["names"])
    assert set(serving.values()) == {("0.0.0.0", found["port"])}  # noqa: S104 -- the network of Compose


def test_the_overlays_are_rendered_together():
    if shutil.which("podman") is None:
        not_here("podman is not installed, which podman-compose asks for its version")
    files = [part for name in ("compose", "kafka", "metrics") for part in ("-f", COMPOSE / f"{name}.yaml")]
    # podman-compose finds no relative folder of a service that an overlay extends.
    environment = {**os.environ, "JOB": str(ROOT / "jobs" / "payments")}
    command = [sys.executable, "-m", "podman_compose", *map(str, files), "config"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stderr
    services = yaml.safe_load(done.stdout)["services"]
    assert {"worker", "kafka-source", "prometheus", "grafana", "member-1"} <= set(services)
    assert services["worker"]["image"] == "gridscore"
    assert " ".join(services["worker"]["command"]) == "worker --metrics 0.0.0.0:9464"
    assert "ports" not in services["worker"]


def test_the_overlay_is_pinned_closed_and_finds_its_files():
    services = {name: each for name, each in OVERLAY["services"].items() if name != "worker"}
    for name, service in services.items():
        assert re.fullmatch(r"docker\.io/\w+/\w+:\$\{\w+:-v?[\d.]+\}", service["image"])
        assert all(port.startswith("127.0.0.1:") for port in service["ports"]), name
        assert service["cap_drop"] == ["ALL"]
        for volume in service["volumes"]:
            source = volume.split(":")[0]
            assert (COMPOSE / source).is_dir() if source.startswith("./") else source in OVERLAY["volumes"]
    folder = COMPOSE / "grafana" / "provisioning"
    [source] = yaml.safe_load((folder / "datasources" / "prometheus.yaml").read_text())["datasources"]
    assert source["url"] == "http://prometheus:9090"
    [provider] = yaml.safe_load((folder / "dashboards" / "gridscore.yaml").read_text())["providers"]
    assert any(each.split(":")[1] == provider["options"]["path"] for each in services["grafana"]["volumes"])
