"""The labelling page's web application: it lends items and takes judgements.

The browser sees responses in the order in which they are shown, and answers by that order. The store knows the item's
own order, so nothing in the browser tells one policy from another.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib.resources import files
from typing import Annotated, Any, Literal

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from pydantic import BaseModel, ConfigDict, Field
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp

from rlhf_gym.labeling.guard import Guard, Hosts
from rlhf_gym.labeling.store import (
    LEASE_SECONDS,
    MAX_NAME,
    MAX_REASON,
    MAX_SECONDS,
    Assignment,
    ConflictError,
    Judgement,
    LabelStore,
)
from rlhf_gym.lm.chat import to_json

PAGES = {
    "/": ("page.html", "text/html; charset=utf-8"),
    "/page.css": ("page.css", "text/css; charset=utf-8"),
    "/page.js": ("page.js", "text/javascript; charset=utf-8"),
    "/cards.js": ("cards.js", "text/javascript; charset=utf-8"),
    "/outbox.js": ("outbox.js", "text/javascript; charset=utf-8"),
    "/icon.svg": ("icon.svg", "image/svg+xml"),
}


@dataclass(frozen=True)
class Session:
    """A labelling session: what is labelled, and by which rules."""

    store: LabelStore
    """The store that judgements go to."""
    batch: str
    """The batch of its items that is served."""
    token: str
    """The token that every request of the page must carry."""
    title: str = ""
    """The title at the top of the page."""
    guidelines: str = ""
    """The guidelines for annotators."""
    target: int | None = None
    """How many labels are enough; None for all that are wanted."""
    lease_seconds: float = LEASE_SECONDS
    """How long an item that is shown to one annotator is kept from the others."""
    hosts: Hosts = field(default_factory=Hosts)
    """The names under which a browser may ask for the page."""
    annotators: tuple[str, ...] = ()
    """The annotators who are let in, each by a token of their own (`own_token`); none for anybody with the token."""

    @property
    def enough(self) -> int:
        """How many labels end the session."""
        wanted = self.store.progress(self.batch).wanted
        return wanted if self.target is None else min(self.target, wanted)


class _Body(BaseModel):
    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)
    annotator: Annotated[str, Field(min_length=1, max_length=MAX_NAME)]


ItemNumber = Annotated[int, Field(ge=0, lt=2**63)]  # SQLite has no larger ones


class LeaseBody(_Body):
    """A request for items."""

    count: Annotated[int, Field(ge=0, le=20)] = 1
    exclude: Annotated[list[ItemNumber], Field(max_length=500)] = []


class JudgementBody(_Body):
    """A judgement, by the order in which the responses were shown."""

    id: Annotated[str, Field(min_length=8, max_length=100)]
    item: ItemNumber
    action: Literal["chosen", "tie", "ranking", "ratings", "skip"]
    value: Annotated[list[float], Field(max_length=100)] = []
    seconds: Annotated[float, Field(ge=0, le=MAX_SECONDS)] = 0.0
    reason: Annotated[str, Field(max_length=MAX_REASON)] = ""


class UndoBody(_Body):
    """A request to undo the judgement of an item, or this annotator's last judgement."""

    id: Annotated[str, Field(min_length=8, max_length=100)]
    item: ItemNumber | None = None


class StrangerError(Exception):
    """A token was used under the name of somebody else."""


def create_app(session: Session) -> ASGIApp:
    """The web application, with the guard in front of it."""
    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_exception_handler(LookupError, _answer(404))
    app.add_exception_handler(ConflictError, _answer(409))
    app.add_exception_handler(ValueError, _answer(422))
    app.add_exception_handler(StrangerError, _answer(403))
    app.add_exception_handler(sqlite3.OperationalError, _unavailable)
    app.add_exception_handler(HTTPException, _unknown)
    _add_pages(app)
    _add_api(app, session)
    return Guard(app, session.token, session.hosts, session.annotators)


def _add_pages(app: FastAPI) -> None:
    folder = files("rlhf_gym.labeling") / "static"

    def page(content: bytes, kind: str) -> Callable[[], Response]:
        return lambda: Response(content, media_type=kind)

    for path, (name, kind) in PAGES.items():
        app.add_api_route(path, page((folder / name).read_bytes(), kind), methods=["GET"])


def _add_api(app: FastAPI, session: Session) -> None:
    store = session.store
    batch = session.batch

    def check_who(request: Request, annotator: str) -> None:
        own = request.state.annotator
        if own and annotator.strip() != own:
            raise StrangerError(f"expected the annotator {own!r}, whose token it is, got {annotator.strip()!r}")

    @app.get("/api/session")
    def about(request: Request) -> dict[str, Any]:
        who = {"annotator": request.state.annotator}
        return {"store": f"{store.name}/{batch}", "title": session.title, "guidelines": session.guidelines} | who

    @app.post("/api/lease")
    def lease(body: LeaseBody, request: Request) -> dict[str, Any]:
        check_who(request, body.annotator)
        enough = session.enough
        progress = store.progress(batch, body.annotator.strip())
        found: list[Assignment] = []
        if progress.labels < enough:
            found = store.lease(
                body.annotator, batch, count=body.count, exclude=body.exclude, seconds=session.lease_seconds
            )
        waiting = not found and progress.labels < enough and store.has_open(body.annotator, batch, exclude=body.exclude)
        return {
            "items": [_shown(assignment) for assignment in found],
            "progress": progress._asdict() | {"enough": enough},
            "waiting": waiting,
        }

    @app.post("/api/judgements")
    def judge(body: JudgementBody, request: Request) -> dict[str, Any]:
        check_who(request, body.annotator)
        annotator = body.annotator.strip()
        shown = store.shown(annotator, body.item)
        if shown is None:
            raise ConflictError(f"expected an item that was lent to {annotator!r}, got item {body.item}")
        value = by_item(body.action, body.value, shown)
        reason = body.reason.strip()
        judgement = Judgement(body.id, body.item, annotator, body.action, value, body.seconds, shown, reason)
        return {"new": store.record(judgement)}

    @app.post("/api/undo")
    def undo(body: UndoBody, request: Request) -> dict[str, Any]:
        check_who(request, body.annotator)
        number = body.item
        if number is None:  # the same undo may come again after a lost reply
            last = store.find(body.id) or store.last(body.annotator, batch)
            if last is None:
                raise ConflictError(f"expected a judgement of {body.annotator!r} to undo, got none")
            number = last.item
        new = store.record(Judgement(body.id, number, body.annotator, "undo"))
        again = store.assignment(body.annotator, number, seconds=session.lease_seconds)
        return {"new": new, "item": _shown(again)}


def by_item(action: str, value: list[float], shown: tuple[int, ...]) -> tuple[float, ...]:
    """Translate a judgement from the order shown to the item's own order: shown[d] is the index of the response at d.

    Raises:
        ValueError: the value does not fit the number of responses.
    """
    if action == "chosen":
        if len(value) != 1 or value[0] not in range(len(shown)):
            raise ValueError(f"expected the place of the chosen one of {len(shown)} responses, got {value}")
        return (shown[int(value[0])],)
    if action in ("ranking", "ratings"):
        if len(value) != len(shown):
            raise ValueError(f"expected {len(shown)} values, one for each response, got {len(value)}")
        placed = dict(zip(shown, value, strict=True))
        return tuple(placed[i] for i in range(len(shown)))
    return tuple(value)


def _shown(assignment: Assignment) -> dict[str, Any]:
    item = assignment.item
    return {
        "id": item.id,
        "kind": item.kind,
        "prompt": to_json(item.prompt),
        "responses": [to_json(item.responses[i]) for i in assignment.shown],
    }


def _answer(status: int) -> Callable[[Request, Exception], JSONResponse]:
    def handle(request: Request, error: Exception) -> JSONResponse:
        return _error(str(error.args[0] if error.args else error), status)

    return handle


def _error(message: str, status: int, headers: Mapping[str, str] | None = None) -> JSONResponse:
    """An answer that says what is wrong; what the message quotes of the request need not be text."""
    said = message.encode(errors="backslashreplace").decode()
    return JSONResponse({"error": said}, status_code=status, headers=headers)


def _unavailable(request: Request, error: Exception) -> JSONResponse:
    """The store could not be read or written just now: locked, or its disk is full. The page keeps what it sent."""
    said = f"expected a store that can be written to, got: {error}; it is tried again"
    return _error(said, 503, {"Retry-After": "2"})


def _unknown(request: Request, error: Exception) -> JSONResponse:
    """A path or a method that there is not, or a body that is no JSON."""
    assert isinstance(error, HTTPException)
    said = f"expected a request that the page makes, got {request.method} {request.url.path}: {error.detail}"
    return _error(said, error.status_code, error.headers)


def _invalid(request: Request, error: Exception) -> JSONResponse:
    """One message that names each bad field, what was expected and what came."""
    assert isinstance(error, RequestValidationError)
    problems = [
        f"expected {'.'.join(str(part) for part in problem['loc'][1:]) or 'the request'}: {problem['msg']}, "
        f"got {repr(problem.get('input'))[:80]}"
        for problem in error.errors()
    ]
    return _error("; ".join(problems), 422)
