"""The pages: what each shows, taken from what the commands of the same names show."""

from __future__ import annotations

import asyncio
import datetime as dt
import re
from importlib.metadata import version
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import msgspec
from hazelcast.errors import HazelcastError
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup, escape
from starlette.exceptions import HTTPException
from starlette.responses import HTMLResponse

from gridscore.dead_letters.letters import Listed, get_letter, list_letters
from gridscore.errors import GridscoreError, UsageError
from gridscore.job import Jobs
from gridscore.job.life import JobState
from gridscore.keys import Role
from gridscore.models import Registry
from gridscore.operations.actions import ActionLog
from gridscore.operations.drift import drift
from gridscore.operations.explain import explain
from gridscore.operations.health import fullest
from gridscore.serve.dashboard import figures
from gridscore.serve.dashboard.reference import operations
from gridscore.serve.observation import WAIT_SECONDS
from gridscore.serve.verbs import MAX_LETTERS
from gridscore.texts import clock_text, count_text, duration_text, milliseconds_text, visible

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from starlette.requests import Request
    from starlette.responses import Response

    from gridscore.grid import Grid
    from gridscore.job import JobRecord
    from gridscore.operations.flow import Findings, Flow
    from gridscore.operations.health import Finding
    from gridscore.operations.status import JobStatus
    from gridscore.serve.observation import Observation, Recent
    from gridscore.serve.sessions import Visit

LETTERS = 50  # dead letters of a page
_FAILURES = (GridscoreError, HazelcastError, TimeoutError)  # of a part of a page, which shows the rest all the same
_FEED = 20
_FEATURES, _VERSIONS = 15, 20
_RAW = 4_000  # characters of a dead letter's event that are shown
_CODE = re.compile("`([^`]+)`")
_MAX_KEY = 1_000
_WORK_SECONDS = 20.0


class Pages:
    """Makes pages."""

    def __init__(self, grid: Grid, observation: Observation, describe: Callable[[], dict[str, Any]]) -> None:
        self._grid, self._observation, self._describe = grid, observation, describe
        self._working = asyncio.Lock()  # one page at a time that reads much
        self._templates = Environment(
            loader=PackageLoader("gridscore.serve.dashboard"),
            autoescape=True,
            undefined=StrictUndefined,
            trim_blocks=True,
            lstrip_blocks=True,
            # What a browser would hide or turn around is spelled out, wherever it comes from.
            finalize=lambda value: (
                visible(value, layout=True) if isinstance(value, str) and not isinstance(value, Markup) else value
            ),
        )
        self._templates.filters |= {
            "count": lambda value: "–" if value is None else f"{value:,.0f}",  # noqa: RUF001
            "counted": count_text,
            "ms": milliseconds_text,
            "span": duration_text,
            "value": _value_text,
            "moment": _moment_text,
            "marked": _marked,
        }
        self._templates.globals |= {"Role": Role, "health": figures.health, "build": version("gridscore")}

    def page(self, template: str, request: Request, visit: Visit, code: int = 200, **values: Any) -> Response:
        values |= {"visit": visit, "path": request.scope["path"], "address": address_of(request)}
        values |= {"cluster": self._grid.settings.cluster_name, "clock": clock_text()}
        return HTMLResponse(self._templates.get_template(template).render(values), code)

    async def record(self, request: Request) -> JobRecord:
        name = request.path_params["name"]
        record = await Jobs(self._grid).find(name)
        if record is None:
            raise HTTPException(404, f"There is no job `{name}`.")
        return record

    async def overview(self, request: Request, visit: Visit) -> Response:
        """All jobs, sources and sinks."""
        flow, findings = await self._seen()

        def mine(statuses: Iterable[Any], by_name: Mapping[str, Sequence[Finding]]) -> list[Any]:
            named = [(getattr(each, "record", each).name, each) for each in statuses]
            return [(name, each, by_name[name]) for name, each in named if visit.may(Role.READ, name)]

        others: dict[str, Sequence[Finding]] = {}
        if visit.may(Role.READ, None):
            gone = {name: findings.jobs[name] for name in flow.gone}
            others = {"Members": findings.members, **gone, **findings.records}
        return self._live(
            "overview.html",
            request,
            visit,
            workers=len(flow.overview.workers),
            jobs=mine(flow.overview.jobs, findings.jobs),
            sources=mine(flow.sources, findings.sources),
            sinks=mine(flow.sinks, findings.sinks),
            others=others,
        )

    async def _seen(self) -> tuple[Flow, Findings]:
        flow = await self._observation.look()
        if flow is None:
            raise HTTPException(503, self._observation.watcher.silence or "The cluster has not answered yet.")
        return flow, self._observation.watcher.history.findings()

    async def job(self, request: Request, visit: Visit) -> Response:
        """One job: how it is, who works, what it decides, with which versions."""
        name = request.path_params["name"]
        flow, findings = await self._seen()
        status = next((s for s in flow.overview.jobs if s.record.name == name), None)
        if status is None:
            raise HTTPException(404, f"There is no job `{name}`, or its record cannot be used.")
        recent, recent_problem = await self._recent(status.record.job.results)
        points = self._observation.points(name)
        worst = max(range(len(status.positions)), key=lambda p: status.positions[p].full, default=None)
        return self._live(
            "job.html",
            request,
            visit,
            status=status,
            findings=findings.jobs[name],
            why=figures.why_lag_grows(points),
            charts=figures.charts(points) if len(points) > 1 else [],
            seconds=points[-1].at - points[0].at if points else 0,
            workers=figures.workers_of(flow.overview, status),
            full=fullest(status.positions),
            worst=worst,
            feed=recent[:_FEED],
            recent=len(recent),
            recent_problem=recent_problem,
            scores=figures.scores_of(recent),
            decisions=figures.decisions_of(recent),
            is_asleep=status.record.state in (JobState.SUSPENDED, JobState.FAILED),
            drift=await self._drift(status),
            **await self._versions(status, recent),
        )

    async def _recent(self, map_name: str) -> tuple[list[Recent], str]:
        try:
            return await self._observation.results(map_name), ""
        except _FAILURES as error:
            return [], _why(error)

    async def _drift(self, status: JobStatus) -> dict[str, Any] | None:
        """How far features have moved from the training, those farthest first; None if the job does not watch."""
        if status.record.job.drift is None:
            return None
        try:
            async with asyncio.timeout(WAIT_SECONDS):
                found = await drift(self._grid, status.record.name)
        except _FAILURES as error:
            return {"problem": _why(error)}
        windows = []
        for each in found["versions"]:
            if (window := each["window"]) is not None:
                moved = sorted(window["features"], key=lambda feature: -(feature["psi"] or 0.0))[:_FEATURES]
                rows = [(row, figures.against(row["training"], row["live"]) if row["live"] else None) for row in moved]
                windows.append((each["version"], window, rows))
        alerts: dict[tuple[str, str], str] = {}
        for alert in found["alerts"]:
            place = alert["version"], alert["feature"]
            alerts[place] = ", ".join(filter(None, (alerts.get(place), alert["measure"])))
        return {"problem": "", "windows": windows, "alerts": alerts}

    async def _versions(self, status: JobStatus, recent: Sequence[Recent]) -> dict[str, Any]:
        """The versions of a job's model, which one is meant, its scores, and what was done with them."""
        nothing = {"versions": [], "meant": 0, "log": [], "trained": None}
        ref, registry = status.record.job.model, Registry(self._grid)
        try:
            async with asyncio.timeout(WAIT_SECONDS):
                model, log = await registry.get(ref.name), await registry.log(ref.name)
                release = status.record.release
                meant = await registry.resolve(ref.name, alias=ref.alias, version=ref.version, release=release)
        except _FAILURES as error:
            return {**nothing, "versions_problem": _why(error)}
        rest = [each for each in model.versions[:_VERSIONS] if each.version != meant.version]
        versions = [(each, model.aliases_of(each.version)) for each in (meant, *rest)]
        scores = [each.result.score for each in recent if each.result.version == meant.version]
        outputs = meant.baseline.scores if meant.baseline is not None else ()
        single = [each for each in scores if isinstance(each, float)] if len(outputs) == 1 else []
        found = {"versions": versions, "meant": meant.version, "log": log[:-11:-1], "versions_problem": ""}
        return {**found, "trained": figures.scores_against(outputs[0] if outputs else None, single)}

    async def result(self, request: Request, visit: Visit) -> Response:
        """One event, from raw to decision: which model made it, and why."""
        record, key = await self.record(request), request.query_params.get("key", "")
        if not 1 <= len(key) <= _MAX_KEY:
            raise HTTPException(400, f"A key has 1 to {_MAX_KEY:,} characters.")
        try:
            found = await self._work(explain(self._grid, record.name, key))
        except UsageError as error:
            raise HTTPException(404, error.message) from None
        rows = figures.contributions_of(found)
        return self.page("result.html", request, visit, record=record, key=key, found=found, rows=rows)

    async def letters(self, request: Request, visit: Visit) -> Response:
        """Dead letters of a job, the latest first."""
        record, before = await self.record(request), request.query_params.get("before")
        last = Listed(before, await get_letter(self._grid, record.name, before)) if before else None
        total, found = await self._work(list_letters(self._grid, record.name, LETTERS, last, MAX_LETTERS))
        more = found[-1].id if total > len(found) > 0 else ""
        return self.page("letters.html", request, visit, record=record, total=total, letters=found, more=more)

    async def letter(self, request: Request, visit: Visit) -> Response:
        record, letter_id = await self.record(request), request.query_params.get("id", "")
        dead = await get_letter(self._grid, record.name, letter_id)
        raw = dead.raw_bytes[:_RAW].decode(errors="backslashreplace")
        cut = len(dead.raw_bytes) > _RAW or len(dead.raw_bytes) < dead.size
        return self.page("letter.html", request, visit, record=record, id=letter_id, dead=dead, raw=raw, cut=cut)

    async def log(self, request: Request, visit: Visit) -> Response:
        """What was done here, by whom."""
        found = [each for each in await ActionLog(self._grid).list() if visit.may(Role.READ, each.target)]
        return self.page("log.html", request, visit, actions=found[:200])

    async def docs(self, request: Request, visit: Visit) -> Response:
        """What is served, for who writes programs."""
        groups = operations(self._describe())
        return self.page("docs.html", request, visit, groups=groups)

    def _live(self, template: str, request: Request, visit: Visit, **values: Any) -> Response:
        """A page that is kept current, unless its reader has said otherwise; or why it cannot be."""
        watcher = self._observation.watcher
        return self.page(
            template,
            request,
            visit,
            is_live=request.query_params.get("live") != "off",
            silence=watcher.silence,
            seen_at=watcher.seen_at,
            **values,
        )

    async def _work(self, work: Any) -> Any:
        if self._working.locked():
            work.close()
            raise HTTPException(503, "Another page that reads much is being made. Try again.", {"Retry-After": "1"})
        async with self._working, asyncio.timeout(_WORK_SECONDS):
            return await work


def _why(error: Exception) -> str:
    return error.message if isinstance(error, GridscoreError) else "The cluster does not answer."


def _value_text(value: Any) -> str:
    if value is None:
        return "missing"
    if isinstance(value, float):
        return f"{value:.7g}"
    text = value if isinstance(value, str) else msgspec.json.encode(value, enc_hook=str).decode()
    return text if len(text) <= 1_000 else f"{text[:1_000]}…"


def address_of(request: Request) -> str:
    """Path and query of a request."""
    query = request.scope["query_string"].decode("latin-1")
    return quote(request.scope["path"]) + (f"?{query}" if query else "")


def _marked(text: str) -> Markup:
    """A message, with what stands between backticks set as code."""
    return Markup(_CODE.sub(r"<code>\1</code>", str(escape(visible(text, layout=True)))))  # noqa: S704 -- it is escaped first


def _moment_text(milliseconds: Any) -> str:
    try:
        return f"{dt.datetime.fromtimestamp(milliseconds / 1000, dt.UTC):%Y-%m-%d %H:%M:%S} UTC"
    except (TypeError, ValueError, OverflowError, OSError):
        return "unknown"
