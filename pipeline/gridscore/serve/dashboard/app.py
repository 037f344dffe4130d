"""The dashboard's addresses: who may see a page, and do something; headers that keep other pages out."""

from __future__ import annotations

import asyncio
import re
from importlib.resources import files
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qsl

from hazelcast.errors import HazelcastError
from starlette.applications import Starlette
from starlette.datastructures import MutableHeaders
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import RedirectResponse, Response
from starlette.routing import Route

from gridscore.errors import GridscoreError
from gridscore.keys import Role
from gridscore.models import Registry
from gridscore.operations.actions import MAX_WHY
from gridscore.serve import acting
from gridscore.serve.control import status_of
from gridscore.serve.dashboard.buttons import BUTTONS, Pressed
from gridscore.serve.dashboard.pages import Pages, address_of
from gridscore.serve.sessions import SECONDS, Visit, is_form_token, key_of, session_of
from gridscore.serve.verbs import Asked
from gridscore.sources.http.answer import failure
from gridscore.sources.http.gate import used_up

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from starlette.types import ASGIApp, Message, Receive, Scope, Send

    from gridscore.grid import Grid
    from gridscore.job.plugs.http import PostSettings
    from gridscore.serve.acting import Acting
    from gridscore.serve.observation import Observation
    from gridscore.sources.http.gate import Guard

MAX_FORM = 8_192
FORM_SECONDS = 10.0
PAGE_SECONDS = 25.0
_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; "
    "connect-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'",
    "X-Frame-Options": "DENY",
    "X-Content-Type-Options": "nosniff",
    # Not `no-referrer`: with that, browsers do not say which page sends a form.
    "Referrer-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}
_STATIC = {"dashboard.css": "text/css", "htmx.min.js": "text/javascript"}
DOCS = "/docs"
_NEXT = re.compile(rf"/|{DOCS}|/dashboard/(?!/)[^\\\x00-\x20]{{0,2000}}")


def is_page(path: str) -> bool:
    """Whether an address is the dashboard's."""
    return path in ("/", DOCS) or path.startswith("/dashboard/")


class Dashboard:
    """Answers requests for pages. `guard`: knows who comes; `describe`: all that is served, as OpenAPI."""

    def __init__(
        self,
        grid: Grid,
        settings: PostSettings,
        guard: Guard,
        doing: Acting,
        observation: Observation,
        describe: Callable[[], dict[str, Any]],
    ) -> None:
        self._grid, self._guard = grid, guard
        self._is_safe = settings.certificate is not None
        self._cookie = "__Host-gridscore" if self._is_safe else "gridscore"
        self._pages = Pages(grid, observation, describe)
        self._acting, self._observation = doing, observation
        folder = files("gridscore.serve.dashboard").joinpath("static")
        self._static = {name: folder.joinpath(name).read_bytes() for name in _STATIC}
        job = "/dashboard/jobs/{name}"
        self._app = Starlette(
            routes=[
                self._route("/", self._pages.overview),
                self._route(job, self._pages.job),
                self._route(f"{job}/result", self._pages.result),
                self._route(f"{job}/letters", self._pages.letters),
                self._route(f"{job}/letter", self._pages.letter),
                self._route("/dashboard/log", self._pages.log),
                self._route(DOCS, self._pages.docs),
                self._route(f"{job}/do/{{verb}}", self._act, Role.OPERATE, "GET", "POST"),
                Route("/dashboard/login", self._login, methods=["GET", "POST"]),
                self._route("/dashboard/logout", self._logout, Role.READ, "POST"),
                Route("/dashboard/static/{name}", self._get_static, methods=["GET"]),
            ],
            exception_handlers={
                HTTPException: self._refused,
                GridscoreError: self._refused,
                HazelcastError: self._refused,
                TimeoutError: self._refused,
                Exception: failure,
            },
        )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request; pages of other origins get nothing, however they ask."""

        async def with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in _HEADERS.items():
                    headers.setdefault(name, value)
            await send(message)

        request = Request(scope, receive)
        text = self._guard.refuses_page(request.headers)
        app: ASGIApp = Response(text, 403, media_type="text/plain") if text else self._app
        await app(scope, receive, with_headers)

    def _route(
        self, path: str, work: Callable[[Request, Visit], Awaitable[Response]], role: Role = Role.READ, *methods: str
    ) -> Route:
        async def answer(request: Request) -> Response:
            async with asyncio.timeout(PAGE_SECONDS if request.method == "GET" else 2 * acting.SECONDS):
                visit = await self._visit(request)
                if visit is None:
                    return self._login_page(request, 401, next_=address_of(request) if request.method == "GET" else "/")
                request.state.visit, name = visit, request.path_params.get("name")
                if not (visit.has(role) if name is None else visit.may(role, name)):
                    raise HTTPException(403, _lacks(visit, role, name))
                return await work(request, visit)

        return Route(path, answer, methods=list(methods) or ["GET"])

    async def _visit(self, request: Request) -> Visit | None:
        if not self._guard.asks:
            return Visit(None)
        session = request.cookies.get(self._cookie, "")
        key = await key_of(self._guard, session)
        shown = request.headers.get("authorization", "")
        if key is None and (shown or "gridscore.names" in request.scope):  # of a proxy that has asked who it is
            key, session = await self._guard.caller(request.scope, shown), ""
            if key is None:
                await self._guard.refuse(request.scope)
        if key is not None and (seconds := self._guard.wait(key)):
            raise HTTPException(429, used_up(key), {"Retry-After": f"{seconds}"})
        return None if key is None else Visit(key, session)

    async def _login(self, request: Request) -> Response:
        if request.method == "GET" or not self._guard.asks:
            return self._login_page(request, 200)
        form = await _form(request)
        next_ = form.get("next", "/")
        async with asyncio.timeout(PAGE_SECONDS):
            key = await self._guard.find(form.get("key", "").strip().encode())
        if key is None:
            await self._guard.refuse(request.scope)
            return self._login_page(request, 401, "The key is wrong, was revoked, or has expired.", next_)
        if Role.READ not in key.roles:
            return self._login_page(request, 403, f"The key {key.id} is not for pages: it needs the role `read`.")
        answer = RedirectResponse(next_ if _NEXT.fullmatch(next_) else "/", 303)
        self._set_cookie(answer, session_of(key), SECONDS)
        return answer

    def _login_page(self, request: Request, status: int, problem: str = "", next_: str = "/") -> Response:
        return self._pages.page("login.html", request, Visit(None), status, problem=problem, next=next_)

    async def _logout(self, request: Request, visit: Visit) -> Response:
        await self._own_form(request, visit)
        answer = RedirectResponse("/dashboard/login", 303)
        self._set_cookie(answer, "", 0)
        return answer

    def _set_cookie(self, answer: Response, value: str, seconds: int) -> None:
        answer.set_cookie(
            self._cookie, value, seconds, path="/", secure=self._is_safe, httponly=True, samesite="strict"
        )

    async def _own_form(self, request: Request, visit: Visit) -> dict[str, str]:
        """A form of one of our pages, in this session."""
        form = await _form(request)
        if visit.key is not None and not is_form_token(visit.key, visit.session, form.get("token", "")):
            raise HTTPException(403, "This form is of another session. Open its page again.")
        return form

    async def _act(self, request: Request, visit: Visit) -> Response:
        """Ask whether something is to be done; or do it."""
        button = BUTTONS.get(request.path_params["verb"])
        record = await self._pages.record(request)
        if button is None:
            raise HTTPException(404, "There is no such action.")
        model = record.job.model.name
        if button.of_model and not visit.may(Role.OPERATE, model):
            raise HTTPException(403, _lacks(visit, Role.OPERATE, model))
        number = request.query_params.get("version")
        if number is not None and not re.fullmatch("[1-9][0-9]{0,8}", number):
            raise HTTPException(400, "This is not a version.")
        points_at = None
        if button.of_model:
            points_at = (await Registry(self._grid).aliases(model)).get(record.job.model.alias or "", 0)
        letter, experiment = (request.query_params.get(name, "") for name in ("letter", "experiment"))
        pressed = Pressed(record, int(number) if number else None, letter, experiment, points_at=points_at)
        if request.method == "GET":
            return self._pages.page("confirm.html", request, visit, button=button, pressed=pressed, max_why=MAX_WHY)
        form = await self._own_form(request, visit)
        if button.of_model and form.get("points_at") != str(points_at):
            # Or two people who roll back at once would undo each other.
            text = f"The alias points at version {points_at} by now: somebody else has moved it. Look again."
            raise HTTPException(409, text)
        pressed = pressed._replace(why=form.get("why", "").strip()[:MAX_WHY])
        asked = Asked(self._grid, visit, Role.OPERATE, self._observation, "dashboard")
        outcome = await button.press(self._acting, asked, pressed)
        return self._pages.page("outcome.html", request, visit, button=button, record=record, outcome=outcome)

    async def _get_static(self, request: Request) -> Response:
        name = request.path_params["name"]
        if name not in self._static:
            raise HTTPException(404, "There is nothing at this address.")
        return Response(self._static[name], media_type=_STATIC[name], headers={"Cache-Control": "max-age=3600"})

    async def _refused(self, request: Request, error: Exception) -> Response:
        status, headers, hint = 503, {}, "The page can be loaded again."
        if isinstance(error, HTTPException):
            status, text, hint = error.status_code, error.detail, ""
            headers = dict(error.headers or {})
        elif isinstance(error, GridscoreError):
            status, text, hint = status_of(error), error.message, error.hint
        else:
            text = "The cluster does not answer."
        visit = getattr(request.state, "visit", Visit(None))
        more: dict[str, Any] = {}
        if status in (429, 503) and request.method == "GET":
            # What is refused only for now is asked for again by the page itself, and replaces it with its heading.
            more = {"is_live": True, "silence": "", "seen_at": "", "part": "main"}
        answer = self._pages.page("refused.html", request, visit, status, problem=text, hint=hint, **more)
        answer.headers.update(headers)
        return answer


async def _form(request: Request) -> dict[str, str]:
    """The fields of a posted form."""
    if request.headers.get("origin") is None:
        raise HTTPException(403, "The browser does not say which page sends this.")
    if request.headers.get("content-type", "").partition(";")[0] != "application/x-www-form-urlencoded":
        raise HTTPException(415, "This is not a form.")
    body = bytearray()
    try:
        async with asyncio.timeout(FORM_SECONDS):
            async for chunk in request.stream():
                body += chunk
                if len(body) > MAX_FORM:
                    raise HTTPException(413, "The form is too large.", {"Connection": "close"})
        return dict(parse_qsl(body.decode(), keep_blank_values=True, max_num_fields=10))
    except TimeoutError:
        raise HTTPException(408, "The form did not arrive in time.", {"Connection": "close"}) from None
    except ClientDisconnect:
        raise HTTPException(400, "The form did not arrive.") from None
    except ValueError:
        raise HTTPException(400, "The form cannot be read.") from None


def _lacks(visit: Visit, role: Role, name: str | None) -> str:
    if visit.key is None:
        return "Pages can only be read here: to act, start the server with --keys, and log in with a key."
    return f"The key {visit.by} is not for this: it needs the role `{role}`{f' with `{name}`' if name else ''}."
