"""Fuzzes the expression language: any text is refused in good order, or computes; nothing runs code, or takes much.

`python tests/fuzz_expressions.py --minutes 60` makes texts by a grammar and by damaging others, and prints a line of
JSON for each finding. A case is known by its number: `--first N --count 1` makes it again. Cases run in a process of
its own, which has little memory, whose CPU time is bounded, and in which Python tells of all code that is run and files
that are opened (`sys.addaudithook`); where it dies, the next goes on behind the case.
"""

# ruff: noqa: SIM905 -- many short texts read best in one line

from __future__ import annotations

import argparse
import json
import mmap
import os
import random
import re
import resource
import signal
import struct
import sys
import time
import traceback
from pathlib import Path

import numpy as np

from gridscore.errors import GridscoreError, JobFileError
from gridscore.features import EventDecoder, FeaturePlan, LookupTable
from gridscore.features.windows import History
from gridscore.job import parse_job
from gridscore.job.functions import FUNCTIONS, NAMES, OF_ARRAYS, SPECIAL, WINDOWED
from gridscore.job.types import Type

DOCS = Path(__file__).resolve().parents[1] / "docs"
CPU_SECONDS = 3.0
"""Of one case: a job file with a few expressions, checked, and computed for `EVENTS` events."""
MEMORY = 1 << 30
"""Bytes of addresses that the process may take beyond what it has when it begins."""
EVENTS = 16
JOB = """\
job: fuzz
events: events.fuzz
results: results.fuzz
model: fuzz
order_by: t
schema:
  {a: float?, b: float?, n: int, i: int?, s: string?, r: string, f: bool?, g: bool, t: timestamp,
   u: {type: timestamp, unit: ms, optional: true}, amount: float, card: string, merchant: string?,
   items: {type: array, of: {price: float?, name: string?}}, tags: [string]}
lookups: {l: {map: lookups.l, key: %(key)s, fields: {x: float?, name: string?, id: int?}}}
windows: {w: %(window)s}
features: {v: {expression: %(one)s}, q: {expression: %(two)s}}
decisions: [{decision: d, when: %(when)s}, {decision: e}]
"""
HOSTILE = (
    "__import__('os').system('true')",
    "().__class__.__bases__[0].__subclasses__()",
    "a.__class__",
    "open('/etc/passwd')",
    "eval('1')",
    "exec('1')",
    "[x for x in (1, 2)]",
    "(lambda: 1)()",
    "9**9**9**9",
    "'a' * 10**9",
    "10**400",
    "0x" + "f" * 900,
    "f'{a}'",
    "r + r + r + r",
    "replace(replace(replace(r, '', r), '', r), '', r)",
    'regex(r, "(a*)*b")',
    'regex(r, "(.{1,30}){1,30}")',
    'hour(t, "../../etc/passwd")',
    "category(r + string(a))",
    "-" * 90 + "1",
    "(" * 90 + "1" + ")" * 90,
    "a " + "< a " * 200,
    "a if a else " * 60 + "a",
    "l.x + l.id",
    "items[0].price",
    "sum(items.price)",
    "count(w, last=100)",
    'distinct(merchant, w, "90d", where=contains(r, "x"))',
    "\N{FULLWIDTH LATIN SMALL LETTER A} + 1",
    "a\x00b",
)
ATOMS = {
    Type.NUMBER: "a b n i amount v l.x l.id f g items[0].price items[-1].price 0 1 -1 2.5 1e308 1e-320 9007199254740993"
    " len(items) sum(items.price)".split(),
    Type.STRING: "s r merchant l.name items[0].name tags[1000] tags[-1] 'a' '' '\u00df\U0001f600'".split(),
    Type.BOOL: ["f", "g", "True", "(a > 1)", "(s is None)"],
    Type.TIMESTAMP: ["t", "u", 'timestamp("9999-12-31T23:59:59Z")', 'timestamp("0001-01-01T00:00:00Z")'],
}
KEPT = ("t", "w", "card", "last", "where", "condition", "smoothing")
OPERATORS = "+ - * / // % ** == != < <= > >= and or & | in is".split()
MARKS = [*OPERATORS, *"( ) [ ] , . ' \" : { } = if else lambda not ~ ; # @ \\ `".split(), "\n", "not in"]


class Texts:
    """Draws expressions: of a grammar, of those that the documentation shows, and of hostile ones; some are damaged."""

    def __init__(self, draw: random.Random, known: list[str]) -> None:
        self._draw = draw
        self._known = known

    def one(self, kind: Type) -> str:
        draw = self._draw
        text = draw.choice(self._known) if draw.random() < 0.15 else self._made(draw.choice((2, 3, 4, 5, 8)), kind)
        for _ in range(draw.choice((0, 0, 0, 0, 0, 0, 1, 3))):
            text = self._damaged(text)
        return text[:20_000]

    def _made(self, depth: int, kind: Type | None = None) -> str:
        """An expression, mostly of that type."""
        draw = self._draw
        if kind is None or draw.random() < 0.01:
            kind = draw.choice(list(ATOMS))
        if depth <= 0 or draw.random() < 0.1:
            return draw.choice(ATOMS[kind])
        made = self._made
        if draw.random() < 0.12:
            return f"({made(depth - 1, kind)} if {made(depth - 1, Type.BOOL)} else {made(depth - 2, kind)})"
        if draw.random() < 0.45:
            return self._operation(depth - 1, kind)
        if kind == Type.NUMBER and draw.random() < 0.3:
            return self._special(depth - 1)
        names = [name for name, each in FUNCTIONS.items() if each.gives == kind]
        if not names:
            return draw.choice(ATOMS[kind])
        function = FUNCTIONS[name := draw.choice(names)]
        if function.constant or draw.random() < 0.1:
            return self._filled(function.example, depth - 1)
        return f"{name}({', '.join(made(depth - 1, each) for each in function.takes)})"

    def _operation(self, depth: int, kind: Type) -> str:
        draw, made = self._draw, self._made
        if kind == Type.NUMBER:
            return f"({made(depth, kind)} {draw.choice(['+', '-', '*', '/', '//', '%', '**'])} {made(depth, kind)})"
        if kind == Type.STRING:
            return f"({made(depth, kind)} + {made(depth, kind)})"
        if kind == Type.TIMESTAMP:
            return draw.choice(ATOMS[kind])
        if draw.random() < 0.4:
            return draw.choice(("(not {0})", "({0} and {1})", "({0} or {1})", "(~{0} | {1})")).format(
                made(depth, kind), made(depth - 1, kind)
            )
        other = draw.choice((Type.NUMBER, Type.NUMBER, Type.STRING, Type.TIMESTAMP))
        forms = "({0} < {1})|({0} == {1})|({1} <= {0} < {1})|({0} is None)|({0} in ({2}, {2}))|({0} != {1})"
        form = draw.choice(forms.split("|"))
        return form.format(made(depth, other), made(depth, other), {Type.STRING: "'a'"}.get(other, "1"))

    def _special(self, depth: int) -> str:
        """What is neither an operation nor a plain function."""
        draw, made = self._draw, self._made
        name = draw.choice((*SPECIAL, *WINDOWED, *OF_ARRAYS))
        if name in OF_ARRAYS and draw.random() < 0.3:
            return f"{name}({draw.choice(('items', 'items.price', 'tags', 'items.name'))})"
        if name == "len":
            return f"len({made(depth, Type.STRING)})"
        if name in WINDOWED:
            span = draw.choice(('"1h"', '"90d"', '"1s"', "last=10", "last=100"))
            what = {"count": "", "seconds_since_last": ""}.get(
                name, draw.choice(("amount, ", "len(r), ", "merchant, "))
            )
            rest = {"seconds_since_last": "", "lag": ", 2", "decayed": ', "1h"'}.get(name, f", {span}")
            where = draw.choice(("", "", f", where={made(depth - 1, Type.BOOL)}"))
            return f"{name}({what}w{rest}{where})"
        return self._filled(SPECIAL[name], depth)

    def _filled(self, example: str, depth: int) -> str:
        """An example of a function, with some of its names replaced."""
        wanted = {"card": "w", "text": "r", "condition": "g", "flag": "f", "x": "a", "y": "b", "merchant": "merchant"}
        texts = {"text", "merchant", "country", "carrier"}

        def other(found: re.Match[str]) -> str:
            if found[0] in NAMES or found[0] in KEPT or self._draw.random() < 0.5:
                return wanted.get(found[0], found[0])
            return self._made(depth, Type.STRING if found[0] in texts else Type.NUMBER)

        return re.sub(r"""(?<!["'A-Za-z_])[a-z_][a-z_0-9]*\b(?![("'=])""", other, example)

    def _damaged(self, text: str) -> str:
        draw = self._draw
        place, end = sorted(draw.randrange(len(text) + 1) for _ in range(2))
        match draw.randrange(7):
            case 0:
                return text[:place] + draw.choice(MARKS) + text[place:]
            case 1:
                return text[:place] + text[end:]
            case 2:
                return text[:end] + text[place:end] * draw.choice((1, 2, 30)) + text[end:]
            case 3:
                sign = draw.choice((0, 9, 127, 0xAD, 0xFEFF, 0x2028, 0x1F600, draw.randrange(0x3000)))
                return text[:place] + chr(sign) + text[end:]
            case 4:
                return text[:place] + draw.choice(self._known) + text[end:]
            case 5:
                return "(" * (count := draw.choice((1, 5, 60, 150))) + text + ")" * count
            case _:
                return text.replace(draw.choice(ATOMS[Type.NUMBER]), self._made(1), draw.choice((1, -1)))


def known_texts() -> list[str]:
    """What the documentation writes as code, and what is hostile."""
    text = "".join((DOCS / name).read_text() for name in ("expressions.md", "job-file.md"))
    written = {each for each in re.findall(r"`([^`\n]{3,200})`", text) if "(" in each or " " in each}
    return [*HOSTILE, *HOSTILE, *sorted(written)]


def events_of(draw: random.Random) -> list[bytes]:
    """Events whose values are extreme."""
    numbers = (0, -0.0, 1, -1.5, 1e308, -1e308, 5e-324, 2**53 + 1, 1e15, None)
    texts = (*"|a|Ab-c,d|1e999|x\0y|2013-03-10T07:30:15Z".split("|"), "\u00df\U0001f600" * 9, "a" * 60_000, None)
    times = "0001-01-01T00:00:00Z 9999-12-31T23:59:59Z 2013-03-10T07:30:15.25Z 1969-12-31T23:59:59.5Z".split()
    rows = []
    for _ in range(EVENTS):
        pick = draw.choice
        rows.append(
            {
                **{name: pick(numbers) for name in "ab"},
                "n": pick((0, 7, -(2**63), 2**63 - 1)),
                "i": pick((0, 2**53 + 1, None)),
                "s": pick(texts),
                "r": pick(texts) or "x",
                "f": pick((True, False, None)),
                "g": pick((True, False)),
                "t": pick(times),
                "u": pick((0, 1_700_000_000_000, -(2**53), None)),
                "amount": pick(numbers) or 0.0,
                "card": pick(("c1", "c2")),
                "merchant": pick(texts),
                "items": [{"price": pick(numbers), "name": pick(texts)} for _ in range(pick((0, 1, 40)))],
                "tags": [pick(texts) or "" for _ in range(pick((0, 3)))],
            }
        )
    return [json.dumps(row).encode() for row in rows]


def run_case(number: int, known: list[str]) -> str:
    """One case; returns how it ended: `refused`, `computed`, or `rejected` if no value came of it for all events."""
    draw = random.Random(number)
    texts = Texts(draw, known)
    plain = {"key": "r", "window": "card", "one": "a", "two": "b", "when": "score > 0.5"}
    for name in draw.choice((("one",), ("one", "two"), ("one", "when"), ("one", "window"), ("key",))):
        kind = {"when": Type.BOOL, "key": Type.STRING, "window": Type.STRING}.get(name)
        plain[name] = texts.one(kind or draw.choice((Type.NUMBER, Type.NUMBER, Type.BOOL)))
    if plain["window"] != "card":
        plain["two"] = 'count(w, "1h")'
    try:
        job = parse_job(JOB % {name: json.dumps(text, ensure_ascii=False) for name, text in plain.items()}, "fuzz")
    except JobFileError:
        return "refused"
    table = LookupTable(job.lookups["l"])
    table.put("x", '{"x": 2.5, "name": "first", "id": 9007199254740993}')
    learnt = {name: ["a", "x"] for name in job.features}
    try:
        plan = FeaturePlan(job, {"l": table}, learnt)
        events, _ = EventDecoder(job).decode_good(events_of(draw))
        events = History(job).add(events)
        plan.matrix(events)
        if plan.decider is not None:
            plan.decider.decide(events, np.linspace(0, 1, len(events), dtype=np.float32))
    except GridscoreError:
        return "rejected"
    return "computed"


class Audit:
    """What Python tells of: anything but reading and computing is a finding."""

    _DENIED = re.compile(
        r"^(exec|import|os\.|subprocess\.|socket\.|shutil\.|ctypes\.dl|pty\.|code\.|pickle\.|marshal\.)"
    )

    def __init__(self) -> None:
        self.is_on = False
        self.found: list[str] = []

    def __call__(self, event: str, args: tuple[object, ...]) -> None:
        if not self.is_on or len(self.found) > 10:
            return
        # `ast.parse` only reads; a module of ours or of a library that is imported late is run once.
        told = event == "open" and not re.search(r"site-packages|/lib/python|/gridscore/", str(args[0]))
        if told or (self._DENIED.match(event) and not _is_module(event, args)):
            self.found.append(f"{event} {args!r:.200}")


def _is_module(event: str, args: tuple[object, ...]) -> bool:
    """Whether it is a module that is imported, as a rarely needed library."""
    name = getattr(args[0], "co_name", args[0]) if args else ""
    frame = sys._getframe(2)
    while frame is not None:
        if "importlib" in frame.f_code.co_filename:
            return True
        frame = frame.f_back
    return event == "import" and str(name).split(".")[0] in sys.stdlib_module_names


def child(first: int, end: int, deadline: float, shared: mmap.mmap) -> None:
    """Run cases until one of the bounds, and tell in which it is."""
    known, audit = known_texts(), Audit()
    for number in range(-300, 0):
        run_case(number, known)  # modules that are needed late
    sys.addaudithook(audit)
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    resource.setrlimit(resource.RLIMIT_AS, (pages * mmap.PAGESIZE + MEMORY,) * 2)
    ends: dict[str, int] = {}
    longest = (0.0, -1)
    for number in range(first, end):
        struct.pack_into("<q", shared, 0, number)
        began = time.process_time()
        signal.setitimer(signal.ITIMER_PROF, 5 * CPU_SECONDS)  # ends the process
        audit.is_on = True
        ended = "another error"
        try:
            ended = run_case(number, known)
        except BaseException as error:  # noqa: BLE001 -- whatever it is, it is a finding
            audit.is_on = False
            tell({"case": number, "end": f"{type(error).__name__}: {error}"[:300]})
        audit.is_on = False
        signal.setitimer(signal.ITIMER_PROF, 0)
        spent = time.process_time() - began
        longest = max(longest, (round(spent, 3), number))
        if spent > CPU_SECONDS:
            tell({"case": number, "end": f"took {spent:.1f} s"})
        if audit.found:
            tell({"case": number, "end": f"ran or opened: {audit.found}"})
            audit.found.clear()
        ends[ended] = ends.get(ended, 0) + 1
        if time.monotonic() > deadline:
            end = number + 1
            break
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10
    struct.pack_into("<q", shared, 0, end)
    tell({"ends": ends, "longest_seconds": longest, "peak_mib": peak})


def tell(line: dict[str, object]) -> None:
    """Print a line."""
    sys.stdout.write(json.dumps(line) + "\n")
    sys.stdout.flush()


def main() -> None:
    """Run cases, in one process after the other."""
    options = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    options.add_argument("--minutes", type=float, default=1.0)
    options.add_argument("--first", type=int, default=0)
    options.add_argument("--count", type=int, default=1 << 40)
    given = options.parse_args()
    deadline, end = time.monotonic() + given.minutes * 60, given.first + given.count
    shared, first = mmap.mmap(-1, 8), given.first
    while first < end and time.monotonic() < deadline:
        struct.pack_into("<q", shared, 0, first)
        sys.stdout.flush()
        process = os.fork()
        if process == 0:
            code = 70
            try:
                child(first, end, deadline, shared)
                code = 0
            except BaseException:  # noqa: BLE001 -- the parent tells of it
                traceback.print_exc()
            finally:
                os._exit(code)
        _, status = os.waitpid(process, 0)
        (case,) = struct.unpack_from("<q", shared, 0)
        if status:
            tell({"case": case, "end": f"the process ended with {os.waitstatus_to_exitcode(status)}"})
            case += 1
        first = case


if __name__ == "__main__":
    main()
