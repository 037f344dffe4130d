"""What the pages take for given: jobs, files, and names that their blocks do not define; and what is another here."""

import json
from dataclasses import dataclass, field

JOB = """\
job: {name}
events: events.{name}
schema: {{customer: string, amount: float{time}}}
lookups: {{customer: {{map: lookups.customers, key: customer, fields: {{age: float?, limit: float?}}}}}}
{windows}features:
  amount: amount
  share: amount / customer.limit
  age: customer.age
  last: {last}
model: {name}
results: results.{name}
result: {{include: [customer, amount], features: all}}
decisions: [{{decision: decline, at_least: 0.5}}, {{decision: approve}}]
labels: {{map: labels.{name}}}
drift: {{}}
sources: {{clicks: {{kind: logfile, path: [clicks.jsonl], to: events.{name}, key: [id]}}}}
sinks: {{scores: {{kind: files, folder: scores}}}}
"""

FILES = """\
import pandas as pd, xgboost as xgb
from gridscore import load_job, offline_matrix
rows = 400
history = pd.read_csv("jobs/payments/history.csv").head(rows)
history["at"] = pd.date_range("2026-01-01", periods=rows, freq="min").strftime("%Y-%m-%dT%H:%M:%SZ")
history["id"] = history["purchase"] = history["payment_id"] = [f"e{n}" for n in range(rows)]
history["fraud"] = history["label"] = (history["amount"] > history["amount"].median()).astype(int)
for name in ("history.csv", "payments.csv"):
    history.to_csv(name, index=False)
for name in ("history.parquet", "payments.parquet"):
    history.to_parquet(name)
history[["id", "label"]].to_csv("outcomes.csv", index=False)
history.to_json("clicks.jsonl", orient="records", lines=True)
with open("bad.jsonl", "w") as bad:
    bad.writelines(f'{{"id": "bad{n}", "amount": "much"}}\\n' for n in range(9))
matrix = offline_matrix(load_job("job.yaml"), "history.csv", "lookups/", keep=["label"])
for name, rounds in (("model.ubj", 10), ("better.ubj", 20), ("m.ubj", 30)):
    booster = xgb.train({"objective": "binary:logistic", "nthread": 1}, matrix.dmatrix("label"), rounds)
    matrix.attach(booster)
    booster.save_model(name)
"""
"""Makes histories, labels, bad events, and models that fit the job beside it."""

CLIENT = """
from gridscore import connect
connecting = connect()
client = await connecting.__aenter__()
"""

TMP_PATH = """
from pathlib import Path
tmp_path = Path("servers")
tmp_path.mkdir(exist_ok=True)
"""


BENCH = {"bench job": "bench job --events 2000 --rounds 1 --seconds 1"}


@dataclass
class Scene:
    """What a page takes for given."""

    jobs: tuple[str, ...] = ()
    """Each has a model, events, and results; each has a file, that of the first is `job.yaml`, too."""
    windowed: tuple[str, ...] = ()
    """Those of them with a window."""
    is_live: bool = True
    """Whether they are in the cluster already."""
    more: str = ""
    """Commands before the first of the page."""
    here: dict = field(default_factory=dict)
    """Texts of the page, and what stands for them here: a text, or a function of who follows the page."""
    before: dict[str, str] = field(default_factory=dict)
    """By a piece of a block of Python: what stands before the block."""
    after: dict[str, str] = field(default_factory=dict)
    endless: tuple[str, ...] = ()
    """Pieces of blocks of Python that wait for results for ever."""


def text_of(name, windowed=()):
    """A job file; that of card-fraud has times, and a window if that is asked for."""
    if name != "card-fraud":
        return JOB.format(name=name, time="", windows="", last="customer.limit")
    if name not in windowed:
        return JOB.format(name=name, time=", at: timestamp", windows="order_by: at\n", last="customer.limit")
    windows = "order_by: at\nwindows: {customer: customer}\n"
    return JOB.format(name=name, time=", at: timestamp", windows=windows, last="sum(amount, customer, '24h')")


def member(follower):
    return follower.cluster.addresses[0]


def letter(name):
    """The id of a dead letter that is there now."""
    return lambda follower: json.loads(follower.shell.run(f"gridscore dead-letters list {name} --json").stdout)[0]["id"]


def key(follower):
    """The id of a key that is there now."""
    return json.loads(follower.shell.run("gridscore key list --json").stdout)[0]["id"]


SCENES = {
    "README.md": Scene(
        ("fraud",),
        more="gridscore model push better.ubj --name fraud",
        here={
            ". .venv/bin/activate": "true",
            "gridscore up": "gridscore up --heap 512m",
            "fraud p1": "fraud e1",
            "/backups": "b",
            **BENCH,
        },
    ),
    "docs/existing-cluster.md": Scene(
        ("payments",),
        is_live=False,
        here={"10.0.0.5:5701": member, "NAME=prod": lambda follower: f"NAME={follower.cluster.cluster_name}"},
    ),
    "docs/flow-control.md": Scene(
        ("payments",),
        before={"on_wait": "from gridscore import connect"},
    ),
    "docs/job-file.md": Scene(("payments",), is_live=False),
    "docs/listeners.md": Scene(
        ("payments",),
        here={"host:5701": member, "customer=c1": "customer=ann"},
        before={
            "block_card": f"{CLIENT}block_card = print",
            ".open()": """
import pandas as pd
from gridscore import connect
frame = pd.read_csv("history.csv").head(9)
""",
            "save_position": f"""{CLIENT}
load_position, save_position = lambda: None, print
async def act_on(result): ...
""",
            "NoResultError": f"{CLIENT}amount = 9",
        },
        after={"NoResultError": "assert not approved"},
        endless=("async def main", "block_card", ".open()", "save_position"),
    ),
    "docs/models.md": Scene(
        ("flights", "cards"),
        more="""
            gridscore model push better.ubj --name flights
            sed -i 's/at_least: 0.5/at_least: 0.6/' job.yaml
        """,
        here={"127.0.0.1:5701": member, "--key carrier": "--key customer"},
        before={
            "promote_model": f"""{CLIENT}
import xgboost as xgb
model = xgb.Booster(model_file="model.ubj")
await client.push_model(xgb.Booster(model_file="better.ubj"), "late", alias="champion")
""",
            "is_challengers": "import zlib",
            "update=True": f"""{CLIENT}
import xgboost as xgb
booster = xgb.Booster(model_file="model.ubj")
""",
            "best_iteration": """
import numpy as np, xgboost as xgb
data = xgb.DMatrix(np.eye(9), np.arange(9), feature_names=list("abcdefghi"))
booster = xgb.train({}, data, 9, evals=[(data, "d")], early_stopping_rounds=2, verbose_eval=False)
""",
        },
        after={
            "is_challengers": "assert is_challengers('ann', 'x', 100) and not is_challengers('ann', 'x', 0)",
            "best_iteration": """
assert len(xgb.Booster(model_file="model.ubj").get_dump()) == booster.best_iteration + 1
""",
        },
    ),
    "docs/operations.md": Scene(
        ("flights", "card-fraud", "spare"),
        windowed=("card-fraud",),
        more="""
            gridscore load --from bad.jsonl --to events.flights --key id
            gridscore model push better.ubj --name flights --alias challenger
            gridscore cancel spare
        """,
        here={
            "submit job.yaml --suspended": "suspend card-fraud",
            "4000-1234": "ann",
            "/backups/prod --every 5s": "backups/prod",
            "/backups": "backups",
            "wipe flights": "wipe spare",
            "17-9af3c0015b2e77d0": letter("flights"),
            **BENCH,
            "kafka:9092": lambda follower: follower.kafka("payments"),
        },
    ),
    "docs/proof.md": Scene(("card-fraud", "flights", "shop"), here={"c0012": "ann", "--model 4": "--model 1"}),
    "docs/security.md": Scene(("fraud",), here={"5f3a9c0d1e2b": key}),
    "docs/serving.md": Scene(("payments",)),
    "docs/sinks.md": Scene(
        ("payments", "flights"),
        here={"/data/": "", "postgresql://app:${DB_PASSWORD}@db/shop": lambda follower: follower.postgres()},
        before={
            "read_parquet": """
import pathlib, time
while not list(pathlib.Path("flights").glob("*.parquet")):
    time.sleep(0.1)
""",
            "standardwebhooks": """
import datetime, os, types
from starlette.responses import Response
os.environ["HOOK_SECRET"] = "whsec_" + "c2VjcmV0" * 4
""",
        },
        after={
            "standardwebhooks": """
now, hook = datetime.datetime.now(datetime.timezone.utc), Webhook(os.environ["HOOK_SECRET"])
async def body():
    return b"{}"
async def asked(signature):
    headers = {"webhook-id": "m", "webhook-timestamp": str(int(now.timestamp())), "webhook-signature": signature}
    return await decisions(types.SimpleNamespace(body=body, headers=headers))
assert await asked(hook.sign("m", now, "{}")) is None
assert (await asked("v1,bm8=")).status_code == 401
"""
        },
    ),
    "docs/sources.md": Scene(
        ("payments", "purchases"),
        more="""
            gridscore load --from bad.jsonl --to events.payments --key id
            gzip -k clicks.jsonl
            mkdir history
            cp clicks.jsonl history
            cp lookups/customer.csv customers.csv
            touch access.log
            gridscore source logfile --path access.log --to events.requests --name access-log --until-end
        """,
        here={
            "/var/log/nginx/access.log*": "access.log*",
            "--key session --key number": "--key id",
            "events.clicks --allow": "events.purchases --key purchase --results results.purchases --allow",
            "/events/events.clicks": "/events/events.purchases",
            '{"page": "/", "n": 1}': '{"purchase": "p0", "amount": 1.0, "customer": "ann"}',
            "kafka-events.payments": "payments",
            "postgresql://app:${DB_PASSWORD}@db/shop": lambda follower: follower.postgres(),
            '"amount": 12.5': '"amount": 12.5, "customer": "ann"',
            "&after=1041": "",
            "--replay-speed 60": "--replay-speed 6000",
        },
        before={
            "Script": """
import contextlib
from gridscore.testing import StubCluster
cluster = await StubCluster().__aenter__()
grid = await cluster.connect("source")
"""
        },
        after={"Script": "await cluster.__aexit__(None, None, None)"},
    ),
    "docs/testing.md": Scene(
        ("fraud",),
        is_live=False,
        here={"jobs/fraud/": "", "fraud.ubj": "model.ubj", ".payments": ".fraud", '"c1"': '"ann"'},
        before={"PostgresServer": TMP_PATH, "MqttBroker": TMP_PATH},
        after={"async def test_large": "await test_large_payments_are_declined()"},
    ),
    "jobs/flights/README.md": Scene(here={"gridscore up": "gridscore up --heap 512m"}),
    "jobs/payments/README.md": Scene(),
}
