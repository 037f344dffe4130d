"""What the pages take for given: jobs, files, and names that their blocks do not define; and what is another here."""

import json
import time
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
history["at"] = pd.date_range("2026-01-01", periods=rows, freq="h").strftime("%Y-%m-%dT%H:%M:%SZ")
history["session"], history["number"] = "s1", range(rows)
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
    ends: dict[str, str] = field(default_factory=dict)
    """By a piece of a command: which commands, that the page has begun, are ended before it."""
    arrives: dict[str, tuple[str, int]] = field(default_factory=dict)
    """By a piece of a command that goes on: a map, and how many entries it has at last."""
    trusts_servers: bool = False
    """Whether the certificate of MQTT and Redis is the only one that is trusted."""


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
    """The id of a dead letter that is there when all events are scored."""

    def look(follower):
        def asked(words):
            return json.loads(follower.shell.run(f"gridscore {words} --json").stdout)

        while any(job["lag"] for job in asked("jobs") if job["name"] == name):
            time.sleep(0.1)
        return asked(f"dead-letters list {name}")[0]["id"]

    return look


def shop(follower):
    """What stands for a database: the address of a server that has it."""
    return f"@{follower.servers.postgres()}/shop"


def certificate(follower):
    return follower.servers.certificate[0]


def kafka(*topics):
    return lambda follower: follower.servers.kafka(*topics)


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
            gridscore model push m.ubj --name flights
            sed -i 's/at_least: 0.5/at_least: 0.6/' job.yaml
        """,
        here={"127.0.0.1:5701": member, "--key carrier": "--key customer"},
        before={
            "promote_model": f"""{CLIENT}
import xgboost as xgb
model = xgb.Booster(model_file="model.ubj")
await client.push_model(xgb.Booster(model_file="better.ubj"), "late", alias="champion")
""",
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
            "crc32": """
import numpy as np
from gridscore.models.experiment import Challenger, Experiment

texts = dict.fromkeys(("job", "model", "submitted_at", "since", "by"), "")
challengers = (Challenger(2), Challenger(3))
experiment = Experiment(id="x7", kind="split", challengers=challengers, steps=(20.0,), **texts)
people = [f"customer {number}" for number in range(1_000)]
drawn = experiment.variants(experiment.draws([each.encode() for each in people]))
assert [variant(each, "x7", 20.0, 2) for each in people] == drawn.tolist()
assert {*drawn} == {0, 1, 2}
""",
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
            "|| page somebody": "|| true",
            "submit job.yaml --suspended": "suspend card-fraud",
            "submit job.yaml --history": "submit card-fraud.yaml --update --history",
            "4000-1234": "ann",
            "/backups/prod --every 5s": "backups/prod",
            "restore --from /backups/prod": "restore --merge --from backups/prod",  # the cluster is not an empty one
            "/backups": "backups",
            "backup:${BACKUP_PASSWORD}@db:5432/gridscore?sslmode=verify-full": lambda f: (
                f"app:${{DB_PASSWORD}}{shop(f)}"
            ),
            "wipe flights --results": "wipe spare --yes --results",  # there is no terminal that could be asked
            "17-9af3c0015b2e77d0": letter("flights"),
            **BENCH,
            "kafka:9092": kafka("payments"),
        },
        ends={"gridscore restore": "gridscore source"},
    ),
    "docs/proof.md": Scene(("card-fraud", "flights", "shop"), here={"c0012": "e7", "--model 4": "--model 1"}),
    "docs/security.md": Scene(
        ("fraud",),
        here={
            "5f3a9c0d1e2b": key,
            "https://login.example.com": lambda follower: follower.servers.issuer(),
            "server.pem": certificate,
            "server.key": lambda follower: follower.servers.certificate[1],
            "ca.pem": certificate,
        },
    ),
    "docs/serving.md": Scene(("payments",), more="gridscore model push better.ubj --name payments"),
    "docs/sinks.md": Scene(
        ("payments", "flights"),
        more="gridscore load --from bad.jsonl --to events.payments --key id",
        here={
            "/data/": "",
            "@db/shop": shop,
            "@db:5432/shop": shop,
            "--database … ": lambda follower: f"--database 'postgresql://app:${{DB_PASSWORD}}{shop(follower)}' ",
            "SINK ID": lambda follower: f"payments {letter('payments')(follower)}",
            "SINK": "payments",
            "kafka:9092": kafka("scores"),
            "export HOOK_SECRET=whsec_…": "true",
            "https://shop.example.com": lambda follower: follower.servers.receiver(),
        },
        arrives={"gridscore sink postgres": ("gridscore.sinks", 1)},  # what is forgotten must be known
        before={
            "read_parquet": """
import pathlib, time
while not list(pathlib.Path("flights").glob("*.parquet")):
    time.sleep(0.1)
""",
            "standardwebhooks": """
import datetime, os, types
from starlette.responses import Response
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
            echo '10.0.0.7 - - [31/Jan/2026:12:00:00 +0000] "GET / HTTP/1.1" 200 512 "-" "curl/8"' > access.log
            gridscore source logfile --path access.log --format combined --name access-log \\
                --to events.requests --until-end
        """,
        here={
            "broker:9092": kafka("payments"),
            "broker:9093": lambda follower: follower.servers.kafka_of_users("payments"),
            "kafka:9092": kafka("clicks"),
            "kafka:9093": lambda follower: follower.servers.kafka_of_users("payments"),
            "https://registry:8081": lambda follower: follower.servers.registry(),
            "SASL_SSL": "SASL_PLAINTEXT",
            "sasl.username=app": "sasl.username=alice",
            "export KAFKA_PASSWORD=…": "true",
            "mqtts://broker:8883": lambda follower: follower.servers.mqtt(),
            "--username line": "--username device",
            "redis://localhost:6379": lambda follower: follower.servers.redis(),
            "rediss://redis:6379": lambda follower: follower.servers.redis_of_users(),
            "@db/shop": shop,
            "/var/log/nginx/": "",
            "?wait=2s&after=1041": "?wait=60s",
            "--replay-speed 60": "--replay-speed 360000",
        },
        arrives={
            "--topic payments --to events.payments": ("events.payments", 418),
            "--topic clicks": ("events.clicks", 9),
            "--to events.requests": ("events.requests", 1),
            "source mqtt": ("events.readings", 1),
            "--stream payments": ("events.payments", 827),
            "--stream orders": ("events.orders", 9),
        },
        trusts_servers=True,
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
