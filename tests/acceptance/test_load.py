"""`gridscore load`: what it puts is what the offline matrix was computed from."""

import asyncio
import os
import subprocess
import sys
from pathlib import Path

import pandas as pd

from gridscore.client import connect

ROOT = Path(__file__).parents[2]


def load(cluster, *arguments):
    env = {
        **os.environ,
        "GRIDSCORE_MEMBERS": ",".join(cluster.addresses),
        "GRIDSCORE_CLUSTER_NAME": cluster.cluster_name,
    }
    command = [sys.executable, "-m", "gridscore.cli", "load", *map(str, arguments)]
    return subprocess.run(command, env=env, capture_output=True, text=True, timeout=60, check=False)


def test_tables_are_loaded_into_the_maps_of_the_job(cluster, tmp_path, unique):
    job = tmp_path / "job.yaml"
    text = (ROOT / "jobs/payments/job.yaml").read_text()
    job.write_text(
        text.replace("events.payments", f"events.{unique}").replace("lookups.customers", f"lookups.{unique}")
    )
    history = pd.read_csv(ROOT / "jobs/payments/history.csv").head(100).assign(id=range(100))
    history.to_csv(tmp_path / "history.csv", index=False)

    done = load(
        cluster,
        *(job, "--lookups", ROOT / "jobs/payments/lookups", "--events", tmp_path / "history.csv"),
        *("--key", "customer", "--key", "id"),
    )

    assert done.returncode == 0, done.stderr
    assert f"lookups.{unique}: 60 entries" in done.stdout
    assert f"events.{unique}: 100 entries" in done.stdout

    async def look():
        async with connect(members=cluster.addresses, cluster_name=cluster.cluster_name) as client:
            row = history.iloc[3]
            event = await client.result(f"events.{unique}", f"{row.customer}|3")
            assert (event["customer"], event["amount"]) == (row.customer, row.amount)
            assert await client.result(f"lookups.{unique}", "ann") == {"age": 59.0, "limit": 500.0}

    asyncio.run(look())


def test_a_wrong_file_leaves_nothing_behind(cluster, tmp_path):
    done = load(cluster, ROOT / "jobs/payments/job.yaml", "--lookups", tmp_path)
    assert done.returncode == 2
    assert "customer_record" in done.stderr
    assert "Traceback" not in done.stderr
