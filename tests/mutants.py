"""Mutants: deliberate defects, applied to a copy of this tree one at a time, and the tests that must catch each.

`make mutants` runs all of them, `make mutants ARGS="margin doubt"` those whose names contain one of the words. First
the tests pass without a defect, or their failing would say nothing. A mutant that survives is a hole in the tests.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent.parent
SECONDS = 300
"""For the tests of one mutant. One that makes them hang shows nothing."""

FENCE = "tests/simulation/test_fence.py"
SESSIONS = "tests/simulation/test_sessions.py"
STORIES = "tests/simulation/test_stories.py"
SINKS = "tests/simulation/test_sinks.py"
OUTBOX = "tests/unit/test_outbox.py"
WINDOWS = "tests/simulation/test_window_states.py"
ROUTED = "tests/simulation/test_routed_windows.py"
GATES = "tests/unit/test_gates.py"
BACKUP = "tests/unit/test_backup.py"
CANARY = "tests/simulation/test_canary.py"


class Mutant(NamedTuple):
    """A defect.

    Attributes:
        name: What is wrong then.
        file: Where, below `pipeline/gridscore/`.
        old: The right text; it is there once.
        new: The wrong text.
        tests: Arguments of pytest.
    """

    name: str
    file: str
    old: str
    new: str
    tests: tuple[str, ...]


MUTANTS = [
    Mutant(
        "a lease is never looked at before a write",
        "group/leases.py",
        'min(self.session.until, self.ends) if self.is_held else float("-inf")',
        'float("inf")',
        (FENCE, "-k", "lease_ends"),
    ),
    Mutant(
        "no second look at the clock before the system takes the bytes",
        "grid/outbox.py",
        "if time.monotonic() >= until:",
        "if False:",
        (OUTBOX,),
    ),
    Mutant(
        "no margin: results are sent until the lease ends",
        "group/sessions.py",
        "writer, *written, self.fence.send)",
        "writer, *written, self.fence.lease)",
        (FENCE, "-k", "lease_ends"),
    ),
    Mutant(
        "no bound on what the system holds",
        "scoring/worker.py",
        "transport.hold_at_most(self._grid.client, self._fence.hold)",
        "pass",
        (FENCE, "-k", "hold_of_the_same_worker or held_for"),
    ),
    Mutant(
        "results go through another member than the owner",
        "grid/transport.py",
        "if not message.is_for(self):",
        "if False:",
        (FENCE, "-k", "another_member"),
    ),
    Mutant(
        "no wait before a lease that has run out is taken",
        "group/leases.py",
        "await asyncio.sleep(SETTLE_SECONDS if records else 0.0)",
        "await asyncio.sleep(0)",
        (FENCE, "-k", "moves"),
    ),
    Mutant(
        "a lease that has run out is taken without a mark",
        "group/leases.py",
        "if record.heir == self.worker:",
        "if True:",
        (FENCE, "-k", "moves"),
    ),
    Mutant(
        "a session that has run out is not closed before what hangs on it is taken",
        "group/leases.py",
        "if await self.sessions.end(name) else",
        "if self.sessions.is_over(name) else",
        (SESSIONS, "-k", "renews_before"),
    ),
    Mutant(
        "what is only read back is taken for acknowledged",
        "group/lease_records.py",
        "return self.began > _UNSAID",
        "return True",
        (SESSIONS, "-k", "acknowledged"),
    ),
    Mutant(
        "a session is renewed that is older than its lease",
        "group/sessions.py",
        "if self._grid.clock() - session.renewed_at >= self.seconds:",
        "if False:",
        (SESSIONS, "-k", "older_than"),
    ),
    Mutant(
        "a lease of before in the same process is taken at once",
        "group/leases.py",
        "self._dropped.get(partition) == sight.record.session",
        "True",
        (SESSIONS, "-k", "same_process"),
    ),
    Mutant(
        "a lease stays on the session of a member that no longer has its partition",
        "group/leases.py",
        "settled.clear()",
        "pass",
        (SESSIONS, "-k", "has_moved"),
    ),
    Mutant(
        "a new owner has the epoch of the one before",
        "group/leases.py",
        "owner=self.worker, epoch=before + 1, session",
        "owner=self.worker, epoch=max(before, 1), session",
        (STORIES, "-k", "died_are_taken"),
    ),
    Mutant(
        "a failed compare-and-set is taken for a success",
        "group/lease_records.py",
        "written(index, records[index] if future.result() else None)",
        "written(index, records[index])",
        (SESSIONS, "-k", "comes_too_late"),
    ),
    Mutant(
        "a compare-and-set of unknown fate is taken for a success",
        "group/lease_records.py",
        "written(index, record._replace(began=_UNSAID) if found[partition] == record.text else None)",
        "written(index, record)",
        (FENCE, "-k", "unknown_fate"),
    ),
    Mutant(
        "what is written and not acknowledged is committed",
        "group/offsets.py",
        "return {partition: there[partition].acknowledged for partition in partitions if partition in there}",
        "return {p: there[p].acknowledged._replace(offset=there[p].written) for p in partitions if p in there}",
        (STORIES, "-k", "fate_is_unknown or holds_up or given_back"),
    ),
    Mutant(
        "an offset passes writes that are under way",
        "group/offsets.py",
        "while there.pending and there.pending[0].done:",
        "while there.pending:",
        (STORIES, "-k", "holds_up"),
    ),
    Mutant(
        "a partition is given back with writes under way",
        "group/group.py",
        "if lease is not None and not lease.unsettled and self._offsets.settled(partition):",
        "if lease is not None:",
        (STORIES, "-k", "while_it_gives_back"),
    ),
    Mutant(
        "a partition that was taken again is given back",
        "group/group.py",
        "self._giving.discard(lease.partition)",
        "pass",
        (STORIES, "-k", "taken_again"),
    ),
    Mutant(
        "one event is passed over where a partition is taken over",
        "group/group.py",
        "self._reader.start(lease.partition, offset, lease=lease, doubt=lease.doubt)",
        "self._reader.start(lease.partition, offset + 1, lease=lease, doubt=lease.doubt)",
        (STORIES, "-k", "died_are_taken"),
    ),
    Mutant(
        "results that stand are not looked at",
        "scoring/runner.py",
        "scored = await scored_in(self._grid, job.results, partition, page, origin)",
        "scored: set[int] = set()",
        (STORIES, "-k", "fate_is_unknown or may_die"),
    ),
    Mutant(
        "nothing is in doubt after a crash",
        "group/group.py",
        "lease.doubt, lease.is_doubted = max(lease.doubt, newest + 1), True",
        "pass",
        (STORIES, "-k", "may_die"),
    ),
    Mutant(
        "nothing is in doubt after a write of unknown fate",
        "group/group.py",
        "lease.doubt = max(lease.doubt, written)",
        "pass",
        (STORIES, "-k", "fate_is_unknown"),
    ),
    Mutant(
        "a write of unknown fate is not waited for",
        "group/group.py",
        "settled = await self._settle(partition, token)\n            finally:",
        "settled = True\n            finally:",
        (STORIES, "-k", "member_holds"),
    ),
    Mutant(
        "a result from before the journal began again counts",
        "scoring/prior_results.py",
        "if result.epoch >= origin}",
        "if result.epoch >= 0}",
        (STORIES, "-k", "say_nothing"),
    ),
    Mutant(
        "what was scored while its journal began again is written",
        "group/group.py",
        "current = [each for each in read if each.cursor.is_current]",
        "current = list(read)",
        (STORIES, "-k", "is_scored_while"),
    ),
    Mutant(
        "a gap in a journal is not looked into",
        "group/reader.py",
        "elif page.first > cursor.offset or page.first < cursor.doubt:",
        "elif page.first < cursor.doubt:",
        (STORIES, "-k", "overwritten_unread"),
    ),
    Mutant(
        "a journal that begins again is not noticed",
        "group/reader.py",
        "another = is_new or newest + 1 < before",
        "another = False",
        (STORIES, "-k", "began_again or destroyed"),
    ),
    Mutant(
        "dead letters hold up other partitions",
        "scoring/runner.py",
        "burials.get(part.partition, ())",
        "[task for tasks in burials.values() for task in tasks]",
        (STORIES, "-k", "dead_letter"),
    ),
    Mutant(
        "dead letters are not waited for",
        "scoring/runner.py",
        "            self._set_aside(each)\n",
        "            self._acknowledge(each.write, None)\n",
        (STORIES, "-k", "dead_letter"),
    ),
    Mutant(
        "dead letters have no bound in time",
        "scoring/runner.py",
        "new, left = await self._letters.put_in(place, until=until)",
        "new, left = await self._letters.put_in(place)",
        (STORIES, "-k", "dead_letter"),
    ),
    Mutant(
        "a rescan looks for events before it notes what arrives",
        "scoring/missing.py",
        """\
        with self._group.note_keys(partition) as arrived:
            missing = await still_without_result(self._grid, self._job, partition, events, rejected)
""",
        """\
        missing = await still_without_result(self._grid, self._job, partition, events, rejected)
        with self._group.note_keys(partition) as arrived:
""",
        (STORIES, "-k", "newer_one"),
    ),
    Mutant(
        "a rescan does not wait for the journal",
        "scoring/missing.py",
        "while (self._group.acknowledged_to(partition) or 0) <= newest:",
        "while False:",
        (STORIES, "-k", "only_waits"),
    ),
    Mutant(
        "a rescan puts an old event behind a new one of its key",
        "scoring/missing.py",
        "missing = [event for event in missing if event.key not in arrived]",
        "pass",
        (STORIES, "-k", "newer_one"),
    ),
    Mutant(
        "the last entries of a partition are not remembered",
        "group/reader.py",
        "_REMEMBERED = 128",
        "_REMEMBERED = 0",
        (STORIES, SINKS, "-k", "alone_had or only_those"),
    ),
    Mutant(
        "a sink does not look at its leases",
        "group/group.py",
        "ended = [each.cursor.partition for each in current if now >= each.cursor.until]",
        "ended: list[int] = []",
        (SINKS,),
    ),
    Mutant(
        "a sink commits what it is delivering",
        "sinks/runner.py",
        "done, sent, began, until = False, False, clock(), self._until(now)",
        "done, sent, began, until = True, False, clock(), self._until(now)",
        (SINKS,),
    ),
    Mutant(
        "an event that is read again is added to its windows again",
        "features/windows.py",
        "np.full(count, -1, np.int64) if sequences is None else np.array(sequences, np.int64)",
        "np.full(count, -1, np.int64)",
        (WINDOWS, "-k", "may_die or fate_is_unknown"),
    ),
    Mutant(
        "states are written before the results of their events",
        "scoring/runner.py",
        "        if keys and first.write.counts:\n            await self._results.put",
        "        if self._states is not None:\n"
        "            await self._states.put_partition(partition, list(states), list(states.values()))\n"
        "        if keys and first.write.counts:\n            await self._results.put",
        (WINDOWS, "-k", "may_die or fate_is_unknown"),
    ),
    Mutant(
        "events whose results stand are not added to windows",
        "scoring/runner.py",
        "return page._replace(scored=scored) if self._has_windows else without(page, scored)",
        "return without(page, scored)",
        (WINDOWS, "-k", "may_die or fate_is_unknown"),
    ),
    Mutant(
        "states are remembered though their partition is read anew",
        "scoring/window_states.py",
        "if there is None or there[0] is not cursor:",
        "if there is None:",
        (WINDOWS, "-k", "may_die or fate_is_unknown"),
    ),
    Mutant(
        "an event of the future is added to its windows",
        "scoring/window_states.py",
        "bad |= {row: text + why for row, text in ahead.items() if not scored[row]}",
        "pass",
        (WINDOWS, "-k", "of_the_future"),
    ),
    Mutant(
        "states are removed though events wait that they are for",
        "scoring/retention.py",
        "                await self._scored_past(partition, newest, [])\n",
        "",
        (WINDOWS, "-k", "events_wait"),
    ),
    Mutant(
        "an offset does not wait for states",
        "scoring/runner.py",
        "            await self._states.put_partition(partition, list(states)",
        "            self._states.put_partition(partition, list(states)",
        (WINDOWS, "-k", "may_die or fate_is_unknown"),
    ),
    Mutant(
        "a state of another revision stays as it is if an event changes nothing in this one",
        "scoring/window_states.py",
        "for key, state in states.items() if key not in fitted})",
        "for key, state in states.items()})",
        (WINDOWS, "-k", "another_revision"),
    ),
    Mutant(
        "what a history has counts once more",
        "operations/window_load.py",
        "loaded(state, found.until)",
        "state",
        ("tests/simulation/test_window_load.py", "-k", "count_once"),
    ),
    Mutant(
        "a request of the revision before is passed over",
        "scoring/window_messages.py",
        "        rows = dict(zip(there, columns, strict=True))\n",
        "        return None\n",
        (ROUTED, "-k", "revision_before"),
    ),
    Mutant(
        "an event that is asked for again is added to its windows again",
        "scoring/window_messages.py",
        "return lacks & (asked.numbers >= 0)",
        "return asked.numbers >= 0",
        (ROUTED, "-k", "may_die or paused"),
    ),
    Mutant(
        "a partition of entities does not remember which events it has",
        "scoring/window_stage.py",
        "ledger_keys[number]: state for number, state in ledger.changed().items()",
        "",
        (ROUTED, "-k", "may_die or paused"),
    ),
    Mutant(
        "an answer is taken for that of another event of its sequence",
        "scoring/window_messages.py",
        "return zlib.crc32(value, zlib.crc32(key))",
        "return 0",
        (ROUTED, "-k", "took_with"),
    ),
    Mutant(
        "who takes a partition over does not ask for what stands answered",
        "scoring/window_requests.py",
        "self._send(batch, batch.asked)",
        "self._send(batch, batch.rows)",
        (ROUTED, "-k", "took_with_it_after"),
    ),
    Mutant(
        "what waits to be read is asked for again",
        "scoring/window_requests.py",
        "if offset > end:",
        "if offset > -2:",
        (ROUTED, "-k", "answered_and_not"),
    ),
    Mutant(
        "a request that a member took with it while it waited is waited for",
        "scoring/window_requests.py",
        "min(newest, batch.ends.get(partition, newest))",
        "batch.ends.get(partition, newest)",
        (ROUTED, "-k", "while_it_waited"),
    ),
    Mutant(
        "what is answered is not asked for again with what is not",
        "scoring/window_requests.py",
        "(place in batch.rows or place[3] >= 0)",
        "place in batch.rows",
        (ROUTED, "-k", "took_with_it_after"),
    ),
    Mutant(
        "what stands answered is asked for again and again",
        "scoring/window_requests.py",
        "await self._rest(batch, stands)",
        "pass",
        (ROUTED, "-k", "stands_answered"),
    ),
    Mutant(
        "states are written before the answers that they gave",
        "scoring/window_stage.py",
        "            if others := [each for each in (answered",
        "            await self._states.put_partition(\n"
        "                part.partition, list(part.states), list(part.states.values()), until=None\n"
        "            )\n"
        "            if others := [each for each in (answered",
        (ROUTED, "-k", "may_die or fate_is_unknown or paused"),
    ),
    Mutant(
        "an overdue answer is given again though it stands",
        "scoring/window_stage.py",
        "if there == (origin, number, mark) or (",
        "if (",
        (ROUTED, "-k", "second_time"),
    ),
    Mutant(
        "a version that has not passed its gates goes live",
        "client/gates.py",
        "if failed and not self._override:",
        "if False and not self._override:",
        (GATES,),
    ),
    Mutant(
        "what gates have said holds for whatever the alias points at by then",
        "models/registry.py",
        "if approval is not None and before != version and current.last_move(alias) != approval.after:",
        "if False and approval is not None:",
        (GATES,),
    ),
    Mutant(
        "positions of sources are kept before the results of their events are out",
        "operations/backup.py",
        "if await self._has_come_out(mark):",
        "if await self._has_come_out(mark) or True:",
        (BACKUP, "-k", "has_come_out"),
    ),
    Mutant(
        "a look at a quiet cluster does not ask whether its points are still there",
        "operations/backup.py",
        "if not await self._is_as_left():\n                await",
        "if self._last is None:\n                await",
        (BACKUP, "-k", "made_whole"),
    ),
    Mutant(
        "a point is written under its own name",
        "operations/backup_stores.py",
        'new = path.with_name(f".{path.name}.new")',
        "new = path",
        (BACKUP, "-k", "crash_between"),
    ),
    Mutant(
        "an empty cluster takes the place of what was kept of another",
        "operations/backup.py",
        "            if known is None:\n                raise UsageError(",
        "            if False:\n                raise UsageError(",
        (BACKUP, "-k", "another_cluster"),
    ),
    Mutant(
        "a worker scores before it knows of an experiment",
        "scoring/runner.py",
        "        await self._experiment.start()\n",
        "",
        (CANARY,),
    ),
    Mutant(
        "entities are drawn anew at each step of a canary",
        "models/experiment.py",
        "zlib.crc32(self.id.encode())",
        'zlib.crc32(f"{self.id}{self.step}".encode())',
        (CANARY,),
    ),
    Mutant(
        "the challenger's results name the champion's version",
        "scoring/trial.py",
        "MadeBy([each.model.version for each in of], variants)",
        "MadeBy([champion.model.version for each in of], variants)",
        (CANARY,),
    ),
    Mutant(
        "a challenger that ends leaves its place to the next one",
        "models/experiment.py",
        'n * (each.state == "running")',
        "n",
        ("tests/unit/test_experiments.py", "-k", "moves_nobody"),
    ),
    Mutant(
        "a step goes on by labels that were looked at before it",
        "models/experiment.py",
        "elif outcomes.step != experiment.step or outcomes.is_old(now):",
        "elif outcomes.is_old(now):",
        ("tests/unit/test_experiment_outcomes.py", "-k", "nothing_old"),
    ),
    Mutant(
        "of a challenger with a small share as small a part of the labels is kept as of the champion",
        "scoring/outcomes.py",
        'for number in range(len(self._rows)) if self._experiment.kind == "shadow" else full:',
        "for number in range(len(self._rows)):",
        ("tests/unit/test_experiment_outcomes.py", "-k", "small_share"),
    ),
    Mutant(
        "intervals of outcomes are those of one look",
        "models/outcomes.py",
        "return math.sqrt((1 + 1 / variance) * math.log((1 + variance) / alpha**2))",
        "return 1.96",
        ("tests/unit/test_experiment_outcomes.py", "-k", "again_and_again"),
    ),
    Mutant(
        "an event in whose call a process ends once is set aside",
        "features/function_process.py",
        "_TRIES, _TRIES_FROM_OUTSIDE = 2, 3",
        "_TRIES, _TRIES_FROM_OUTSIDE = 1, 3",
        ("tests/unit/test_feature_functions.py", "-k", "damaged"),
    ),
    Mutant(
        "a new process of functions is not asked what an earlier one has answered",
        "features/function_process.py",
        "() if reply.why else self._warming.values()",
        "()",
        ("tests/unit/test_feature_functions.py", "-k", "no_longer_answers"),
    ),
]


def copy(target: Path) -> None:
    """Copy what tests need."""
    for name in ("pipeline", "tests", "jobs", "pyproject.toml", "hazelcast.yaml"):
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, target / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy2(source, target / name)


def run(tree: Path, arguments: tuple[str, ...]) -> str:
    """Run tests in a tree: `pass`, `fail`, or what else came of it."""
    environment = os.environ | {
        "PYTHONPATH": str(tree / "pipeline"),
        "PYTHONDONTWRITEBYTECODE": "1",
        "GRIDSCORE_SIMULATION_SHRINK": "0",
    }
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", "-p", "no:xdist", *arguments]
    try:
        done = subprocess.run(
            command, cwd=tree, env=environment, capture_output=True, text=True, timeout=SECONDS, check=False
        )
    except subprocess.TimeoutExpired:
        return f"no end in {SECONDS} s"
    return {0: "pass", 1: "fail"}.get(done.returncode, f"pytest ended with {done.returncode}")


def mutated(tree: Path, mutant: Mutant) -> str:
    """The text of its file with the defect.

    Raises:
        ValueError: Its text is not there once.
    """
    text = (tree / "pipeline/gridscore" / mutant.file).read_text()
    if text.count(mutant.old) != 1:
        raise ValueError(f"{mutant.name}: its text is {text.count(mutant.old)} times in {mutant.file}")
    return text.replace(mutant.old, mutant.new)


def main(words: list[str]) -> int:
    """Run the mutants whose names contain one of the words, or all; how many were not caught."""
    chosen = [each for each in MUTANTS if not words or any(word in each.name for word in words)]
    wrong = 0
    with tempfile.TemporaryDirectory() as name:
        tree = Path(name)
        copy(tree)
        files = sorted({argument for each in chosen for argument in each.tests if argument.endswith(".py")})
        if (healthy := run(tree, tuple(files))) != "pass":
            print(f"Nothing can be judged: without a defect, {healthy}: {' '.join(files)}")
            return 1
        for mutant in chosen:
            began, file = time.monotonic(), tree / "pipeline/gridscore" / mutant.file
            before = file.read_text()
            file.write_text(mutated(tree, mutant))
            outcome = run(tree, mutant.tests)
            file.write_text(before)
            word = {"pass": "SURVIVED", "fail": "caught"}.get(outcome, outcome)
            wrong += word != "caught"
            print(f"{word:<10}  {time.monotonic() - began:3.0f} s  {mutant.name}", flush=True)
    print(f"{len(chosen) - wrong} of {len(chosen)} mutants are caught")
    return wrong


if __name__ == "__main__":
    sys.exit(bool(main(sys.argv[1:])))
