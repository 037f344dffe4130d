"""What somebody on call sees when one thing breaks, and that it is over once that is repaired.

A fault is broken, shown, repaired, and must then be gone from `gridscore status`: one table, on one small cluster.

Alone, on two busy cores, the file takes 70 seconds.
"""

import asyncio
import contextlib
import io
import json
import os
import re
import subprocess
import sys
import threading
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from commands import GRIDSCORE, until

sys.path.insert(0, str(Path(__file__).parents[1] / "integration"))
import scoring
from hazelcast.core import HazelcastJsonValue

from pipeline.cli import main
from pipeline.client import connect
from pipeline.grid.member import Cluster
from pipeline.grid.writer import MapWriter
from pipeline.job.life import JOBS_MAP
from pipeline.models import Registry

JOB = "payments"


class Site:
    """A cluster with a job, its worker, and whoever is on call there."""

    def __init__(self, cluster, folder):
        self.cluster = cluster
        self.folder = folder
        self.hook = Hook()
        self._log = folder / "worker.log"
        self._environment = {
            **os.environ,
            "GRIDSCORE_MEMBERS": ",".join(cluster.addresses),
            "GRIDSCORE_CLUSTER_NAME": cluster.cluster_name,
            "GRIDSCORE_CONNECT_TIMEOUT": "3",
            "HOOK": "whsec_QUFBQUFBQUFBQUFBQUFBQUFBQUFBQUFBQUFBQUFBQUE=",
        }
        self._processes = {}
        self._told = 0

    def grid(self, use):
        async def main():
            async with connect(members=self.cluster.addresses, cluster_name=self.cluster.cluster_name) as client:
                return await use(client)

        return asyncio.run(main())

    def put(self, map_name, entries):
        self.grid(lambda client: client.put_events(map_name, entries))

    def submit(self):
        async def submit(client):
            await client.put_events(f"lookups.{JOB}", scoring.customers())
            await client.push_model(scoring.booster(), JOB, alias="champion")
            await client.submit(scoring.job(JOB))

        self.grid(submit)

    def start_worker(self):
        self.start("worker")

    def stop_worker(self):
        self.stop("worker")

    def start(self, *arguments):
        """Start a command that goes on; it is known by its first word."""
        with (self.folder / f"{arguments[0]}.log").open("a") as log:
            self._processes[arguments[0]] = subprocess.Popen(
                [*GRIDSCORE, *arguments], env=self._environment, stdout=log, stderr=log, stdin=subprocess.DEVNULL
            )

    def stop(self, name):
        process = self._processes.pop(name)
        process.terminate()
        code, said = process.wait(30), (self.folder / f"{name}.log").read_text()
        assert code == 0, said
        assert "Traceback" not in said, said

    def start_in_vain(self, *arguments):
        """Start a command that ends with an error."""
        self.start(*arguments)
        assert self._processes.pop(arguments[0]).wait(60) > 0

    def close(self):
        for process in self._processes.values():
            process.kill()
            process.wait()
        self.hook.close()

    def log(self):
        """What the worker has said since the last look."""
        text = self._log.read_text()[self._told :]
        assert "Traceback" not in text, text
        self._told += len(text)
        return text

    def command(self, *arguments):
        """Exit code of a command, and what it says; in this process, which spares the start of many."""
        said, before = io.StringIO(), (sys.argv, dict(os.environ))
        sys.argv = ["gridscore", *arguments]
        os.environ.update(self._environment)
        try:
            with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
                main()
            code = 0
        except SystemExit as ended:
            code = ended.code or 0
        finally:
            sys.argv = before[0]
            os.environ.clear()
            os.environ.update(before[1])
        assert "Traceback" not in said.getvalue(), said.getvalue()
        return code, said.getvalue()

    def purge(self, name, *more):
        code, said = self.command("dead-letters", "purge", name, "--all", "--yes", *more)
        assert code == 0, said

    def status(self):
        return self.command("status", "--for", "0")

    def well(self):
        code, said = self.status()
        return code == 0 and f"{JOB}: well, RUNNING" in said


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    with Cluster.start(1, port=0, heap="512m", register=False) as cluster:
        made = Site(cluster, tmp_path_factory.mktemp("site"))
        made.submit()
        made.start_worker()
        try:
            yield made
        finally:
            made.close()


@dataclass(frozen=True)
class Fault:
    """One thing that breaks.

    Attributes:
        name: What it is.
        findings: Those of docs/operations.md that it is about: `job lag` is the code `lag` of a job.
        happen: Breaks it.
        repair: What whoever is on call does then.
        code: Exit code of `gridscore status` meanwhile.
        shown: Each of these stands in what `gridscore status` prints.
        logged: Each of these stands in the worker's log.
        asked: What another command says then, by its words.
    """

    name: str
    findings: tuple[str, ...]
    happen: object
    repair: object
    code: int
    shown: tuple[str, ...]
    logged: tuple[str, ...] = ()
    asked: tuple[tuple[str, str], ...] = ()


class Hook:
    """A web hook: its port is its own from the beginning, but nobody answers there before `open`."""

    def __init__(self):
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), self._Answer, bind_and_activate=False)
        self._server.server_bind()
        self.url = f"http://127.0.0.1:{self._server.server_port}/hook"
        self._serving = None

    def open(self):
        self._server.server_activate()
        self._serving = threading.Thread(target=self._server.serve_forever)
        self._serving.start()

    def close(self):
        if self._serving is not None:
            self._server.shutdown()
            self._serving.join()
        self._server.server_close()

    class _Answer(BaseHTTPRequestHandler):
        def do_POST(self):
            self.rfile.read(int(self.headers["content-length"]))
            self.send_response(204)
            self.end_headers()

        def log_message(self, *_):
            pass


KNOWN = {**scoring.customers(), **{f"stranger{n}": {"age": 30.0, "limit": 100.0} for n in range(200)}}


def strangers(site):
    site.put(f"events.{JOB}", {f"s{n}": {"amount": 1.5, "user": f"stranger{n}"} for n in range(200)})


def introduce(site):
    repair_lookup(site)

    def scored():
        strangers(site)  # again, until the copy of the lookup has them
        return site.well()

    until(scored)


def bury(site):
    site.put(f"events.{JOB}", {"bad": {"amount": "much", "user": "u1"}})


def scribble(site):
    async def put(client):
        await (await client.grid.map(JOBS_MAP)).put("scribble", HazelcastJsonValue('{"state": 7}'))

    site.grid(put)


def lose_model(site):
    site.grid(lambda client: Registry(client.grid).delete_all(JOB))


def push_model(site):
    site.grid(lambda client: client.push_model(scoring.booster(), JOB, alias="champion"))


def read_wrongly(site):
    (site.folder / "access.log").write_text("this is not JSON\n" * 12)
    site.start(
        *("source", "logfile", "--path", str(site.folder / "access.log"), "--to", f"events.{JOB}"),
        *("--name", "access", "--max-dead-letters", "10"),
    )


def stop_reading(site):
    site.purge("access")
    until(lambda: "access: well, running" in site.status()[1])
    site.stop("source")


def listen_where_a_member_does(site):
    port = site.cluster.addresses[0].rpartition(":")[2]
    site.start_in_vain("source", "http", "--to", f"events.{JOB}", "--name", "till", "--port", port)


def read_from_nobody(site):
    site.start(
        *("source", "postgres", "--database", "postgresql://app@127.0.0.1:1/shop", "--table", "clients"),
        *("--key", "id", "--to", "lookups.clients", "--name", "crm"),
    )


def write_into_a_file(site):
    (site.folder / "archive").touch()
    site.start_in_vain(
        *("sink", "files", "--from", f"results.{JOB}", "--folder", str(site.folder / "archive"), "--name", "archive"),
        *("--format", "jsonl"),
    )


def overrun(site):
    """Put as a stranger does, who does not wait for the job."""
    site.command("suspend", JOB)
    text = json.dumps({"amount": 1.5, "user": "u1"}).encode()

    def put(client):
        return MapWriter(client.grid, f"events.{JOB}").put(("e0", text) for _ in range(3_100))

    until(lambda: site.grid(put) and site.status()[0])  # again, until the worker has heard that it is suspended


def deliver_to_nobody(site):
    site.start(
        *("sink", "webhook", "--from", f"results.{JOB}", "--url", site.hook.url, "--secret", "${HOOK}"),
        *("--name", "alerts", "--batch", "100"),
    )


def bring_hook(site):
    site.hook.open()
    until(lambda: "alerts: well, delivering" in site.status()[1])
    site.stop("sink")
    assert site.command("sink", "forget", "alerts")[0] == 0


def garbage(site):
    async def put(client):
        proxy = await client.grid.map(f"lookups.{JOB}")
        await proxy.put_all({key: HazelcastJsonValue('{"age": "old"}') for key in KNOWN})

    site.grid(put)


def repair_lookup(site):
    site.put(f"lookups.{JOB}", KNOWN)


def destroy_events(site):
    site.put(f"events.{JOB}", scoring.events(500))
    until(site.well)
    site.log()

    async def destroy(client):
        await (await client.grid.map(f"events.{JOB}")).destroy()

    site.grid(destroy)


FAULTS = [
    Fault(
        "no worker",
        ("job no_worker",),
        Site.stop_worker,
        Site.start_worker,
        10,
        ("not well, ", "No worker is running.", "Start one, anywhere: `gridscore worker`."),
        ("Worker stopped.",),
    ),
    Fault(  # the worker is new: it has scored no others
        "events that have no entry in a lookup",
        ("job lookup_misses",),
        strangers,
        introduce,
        10,
        (f"100% of the last events have no entry in `lookups.{JOB}`", "Is the map loaded, and is its key what"),
    ),
    Fault(
        "an event that cannot be scored",
        (),
        bury,
        lambda site: site.purge(JOB, "--with-events"),
        0,
        ("1 event could not be scored.", f"`gridscore dead-letters list {JOB}` says why"),
        asked=((f"dead-letters list {JOB}", "amount"),),
    ),
    Fault(
        "a control record that somebody scribbled over",
        (),
        scribble,
        lambda site: site.command("repair", "--yes"),
        10,
        ("It is not a job that can be scored", "`gridscore repair --dry-run` shows what can be done about it."),
        asked=(("doctor", "scribble"), ("repair --dry-run", "scribble")),
    ),
    Fault(
        "a model that is gone from the registry",
        ("job model",),
        lose_model,
        push_model,
        10,
        ("The model cannot be looked up, v1 goes on as it was loaded", "`gridscore model list`"),
    ),
    Fault(
        "a source that reads what is no event",
        ("source paused",),
        read_wrongly,
        stop_reading,
        10,
        ("access: not well, paused", "It reads nothing. Paused:", "`gridscore dead-letters list access` says why"),
        asked=(("dead-letters list access", "JSON"),),
    ),
    Fault(
        "a source that cannot listen",
        ("source failed",),
        listen_where_a_member_does,
        lambda site: site.command("source", "forget", "till"),
        10,
        ("till: not well, failed", "It has failed (", "cannot listen on 127.0.0.1", "`gridscore source forget till`"),
    ),
    Fault(
        "a source whose other side is away",
        ("source interrupted",),
        read_from_nobody,
        lambda site: site.stop("source"),
        10,
        ("crm: not well, interrupted", "It cannot read now: ", "127.0.0.1:1", "It tries again by itself"),
    ),
    Fault(
        "a sink that cannot write",
        ("sink failed",),
        write_into_a_file,
        lambda site: site.command("sink", "forget", "archive"),
        10,
        ("archive: not well, failed", "It has failed: ", "archive", "`gridscore sink forget archive`"),
    ),
    Fault(
        "a sink whose destination is away",
        ("sink away",),
        deliver_to_nobody,
        bring_hook,
        10,
        ("alerts: not well, waiting", "It waits for its destination:", "cannot be reached", "Bring it back."),
    ),
    Fault(
        "a lookup without one entry that can be read",
        (),
        garbage,
        repair_lookup,
        10,
        ("All 250 entries of the lookup `customer` cannot be read", "Correct them and put them again."),
    ),
    Fault(  # the search for events without a result is over before anybody can look
        "an event map that somebody destroyed",
        (),
        destroy_events,
        lambda site: site.command("status", JOB, "--acknowledge", "--for", "0"),
        0,
        ("and events that it still had were scored.", "Journals have begun again", f"status {JOB} --acknowledge"),
        ("its journal begins again at 0", "the map has lost writes, or was destroyed"),
    ),
    Fault(
        "a job that somebody suspended",
        (),
        lambda site: site.command("suspend", JOB),
        lambda site: site.command("resume", JOB),
        0,
        ("SUSPENDED", f"`gridscore resume {JOB}` goes on from the committed offsets."),
    ),
    Fault(
        "a suspended job whose events are overwritten next",
        ("job journal_full",),
        overrun,
        lambda site: site.command("resume", JOB),
        10,
        ("Suspended, and unread events fill ", f"`gridscore resume {JOB}`"),
    ),
    Fault(
        "a cluster that is gone",
        (),
        lambda site: site.cluster.kill(0),
        lambda site: site.cluster.restart(0),
        4,
        ("error: No connection to the cluster", "Is a member running there", "`gridscore up` starts one"),
        ("The connection to the cluster is lost, trying again",),
    ),
    Fault(  # the one before has left an empty one behind
        "a cluster that was replaced by an empty one",
        ("job cluster_replaced",),
        lambda _: None,
        Site.submit,
        10,
        (f"{JOB}: not well, GONE", "until the cluster was replaced by this one", "Push its model and submit it again"),
        ("Connected to the cluster again", "was replaced by another one", "Submit the jobs and push the models again"),
    ),
]


ELSEWHERE = {
    "job starting": "unit/test_health.py::test_a_job_that_is_starting_is_not_well_yet",
    "job no_owner": "unit/test_health.py::test_partitions_that_nobody_living_owns",
    "job journal_runs_out": "unit/test_health.py::test_when_unread_events_will_be_overwritten_is_told",
    "job lag": "unit/test_health.py::test_lag_that_grows_beyond_what_can_be_worked_off",
    "job stuck": "unit/test_health.py::test_nothing_committed_though_events_wait",
    "job no_journal": "unit/test_health.py::test_a_journal_that_cannot_be_read",
    "job rescan": "unit/test_health.py::test_loss_is_settled_when_no_rescan_is_left",
    "job loss": "unit/test_health.py::test_loss_that_nobody_makes_good_stays_until_it_is_acknowledged",
    "job dead_letters_full": "integration/test_letters_on_members.py"
    "::test_what_has_no_room_is_counted_said_and_found_again",
    "job lookup_old": "unit/test_health.py::test_models_that_are_refused_and_lookups_that_are_old",
    "job failed": "unit/test_health.py::test_a_failed_job_says_why_and_a_cancelled_one_is_as_it_should_be",
    "job unseen_categories": "unit/test_health.py::test_what_events_lack_is_told_by_its_share",
    "source heap": "unit/test_plug_health.py::test_a_source_that_waits_is_judged_and_advised_by_what_it_waits_for",
    "sink paused": "unit/test_plug_health.py::test_a_sink_that_is_paused_is_a_problem_if_it_lasts",
    "sink lag": "unit/test_plug_health.py::test_lag_that_grows_and_a_standstill_are_problems",
    "sink stuck": "unit/test_plug_health.py::test_lag_that_grows_and_a_standstill_are_problems",
    "sink journal_runs_out": "unit/test_plug_health.py::test_when_results_will_be_overwritten_is_told",
    "sink journal_full": "unit/test_plug_health.py"
    "::test_a_sink_that_is_stopped_is_a_problem_only_when_results_will_be_lost",
    "sink no_journal": "unit/test_plug_health.py::test_what_was_lost_or_refused_is_worth_a_word",
}
"""Faults of docs/operations.md that other tests are about: their node ids, under `tests`."""

BESIDES = {
    "the table of a PostgreSQL sink is renamed": "integration/test_postgres_sink.py"
    "::test_a_table_that_is_gone_is_waited_for",
    "doctor asks for SQL, and a member is out of heap": "unit/test_doctor_judgement.py"
    "::test_sql_is_blamed_only_for_what_it_says",
    "HTTP posts while the grid is away": "unit/test_http_flow.py::test_a_grid_that_does_not_answer_is_told_as_such",
    "HTTP posts of a key that is not scored as fast": "unit/test_http_flow.py"
    "::test_a_key_of_which_too_much_is_posted_holds_up_no_other_of_its_map",
    "top where COLUMNS exceeds the terminal": "unit/test_output.py::test_no_line_is_longer_than_the_terminal_is_wide",
}
"""Further ones, which `gridscore status` does not judge, in the same way."""


def test_every_fault_of_the_documentation_has_a_test():
    root = Path(__file__).parents[2]
    text = (root / "docs/operations.md").read_text()
    documented = []
    for kind, table in re.findall(r"^\| code, of a (\w+) \|.*\n((?:\|.*\n)+)", text, re.MULTILINE):
        documented += [f"{kind} {code}" for code in re.findall(r"^\| `(\w+)` \|", table, re.MULTILINE)]
    here = [finding for fault in FAULTS for finding in fault.findings]
    assert len(documented) > 25
    assert sorted(documented) == sorted([*here, *ELSEWHERE])
    for node in (*ELSEWHERE.values(), *BESIDES.values()):
        file, _, name = node.partition("::")
        assert re.search(rf"^ *(async )?def {name}\(", (root / "tests" / file).read_text(), re.MULTILINE), node


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name)
def test_what_is_shown_is_true_names_the_next_command_and_is_over_once_it_is_repaired(site, fault):
    if fault.name != "a cluster that was replaced by an empty one":  # which the one before has left behind
        until(site.well)
        site.log()
    # When it breaks
    fault.happen(site)
    # Then that is what is shown, and logged
    log, seen = "", ""

    def is_told():
        nonlocal log, seen
        log += site.log()
        code, seen = site.status()
        return (
            code == fault.code
            and all(text in seen for text in fault.shown)
            and all(text in log for text in fault.logged)
        )

    try:
        until(is_told)
    except AssertionError:
        pytest.fail(f"{fault.name}: {fault.code} {fault.shown}, {fault.logged}; but\n{seen}\n{log}")
    for words, answer in fault.asked:
        assert answer in site.command(*words.split())[1], (fault.name, words)
    # in few lines, without anything of Java
    assert len(log.splitlines()) < 30, (fault.name, log)
    assert not re.search(r"^\s*at [\w.$]+\(|\bcom\.hazelcast\.", log, re.MULTILINE), (
        fault.name,
        log,
    )
    # And when it is repaired, it is over
    fault.repair(site)
    if fault.code != 4:
        until(lambda: site.well() and fault.shown[0] not in site.status()[1], seconds=180)
