"""What the admin listener asks of the server, and `/api`: the lists behind `edge show` and `edge disconnect`.

    GET  /api/{kind}?limit=N                  {"items": [{...}, ...], "more": false}
    POST /api/connections/{id}/disconnect     {"disconnected": "0-6560a3f1-17"}

An error is `{"error": "..."}` with a 4xx status. A long list is made in portions with the event loop in between, so it
is no snapshot: what ends meanwhile may still be in it.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from itertools import islice
from typing import Protocol

import msgspec
from aiohttp import web

Row = dict[str, object]

PORTION = 200  # rows made without giving the loop a turn: about 2 ms
KINDS = ("connections", "flows", "registrations", "sessions", "transactions")


class AdminSource(Protocol):
    """The running server as operators see it.

    Rows have the columns that `edge show` prints, and may have more. Times are seconds: `age` since it began, `idle`
    since it last spoke, `expires` until it ends. Text from the wire is in them as it came, as far as it is UTF-8.
    """

    def connections(self) -> Iterable[Row]:
        """Every connection and UDP flow."""

    def flows(self) -> Iterable[Row]:
        """The connections that somebody registered over (RFC 5626)."""

    def registrations(self) -> Iterable[Row]:
        """Every binding of every address of record."""

    def sessions(self) -> Iterable[Row]:
        """MSRP sessions; their ids are hashes, never a session-id."""

    def transactions(self) -> Iterable[Row]:
        """SIP transactions, server and client."""

    def numbers(self) -> dict[str, int]:
        """How many there are of each kind; cheap."""

    def disconnect(self, name: str) -> bool:
        """Close the connection with this id; False when there is none."""

    def health(self) -> tuple[bool, Row]:
        """Whether the process is alive, and what to say about it."""

    def readiness(self) -> tuple[bool, Row]:
        """Whether new traffic is welcome, and if not, why."""


class Api:
    """The handlers of `/api`."""

    def __init__(self, source: AdminSource) -> None:
        self._source = source

    def routes(self) -> list[web.RouteDef]:
        """Return the routes to serve."""
        return [
            web.get("/api/{kind}", self._list, allow_head=False),
            web.post("/api/connections/{id}/disconnect", self._disconnect),
        ]

    async def _list(self, request: web.Request) -> web.Response:
        kind = request.match_info["kind"]
        lists: dict[str, Callable[[], Iterable[Row]]] = {name: getattr(self._source, name) for name in KINDS}
        if kind not in lists:
            return json_response({"error": f"no such list; there are {', '.join(KINDS)}"}, 404)
        try:
            limit = _parse_limit(request.query.get("limit"))
        except ValueError:
            return json_response({"error": "limit must be a whole number above 0"}, 400)
        rows = iter(lists[kind]())
        portions = [portion async for portion in _encode_rows(islice(rows, limit))]
        more = b"true" if next(rows, None) is not None else b"false"
        body = b'{"items":[%b],"more":%b}' % (b",".join(portions), more)
        return web.Response(body=body, content_type="application/json")

    async def _disconnect(self, request: web.Request) -> web.Response:
        name = request.match_info["id"]
        if not self._source.disconnect(name):
            return json_response({"error": "no such connection"}, 404)
        return json_response({"disconnected": name})


def json_response(value: object, status: int = 200, headers: dict[str, str] | None = None) -> web.Response:
    """Answer with a JSON document."""
    return web.Response(
        body=msgspec.json.encode(value), status=status, headers=headers, content_type="application/json"
    )


async def _encode_rows(rows: Iterator[Row]) -> AsyncIterator[bytes]:
    """Yield JSON rows joined by commas, a portion at a time, with turns of the event loop between portions."""
    while portion := list(islice(rows, PORTION)):
        yield msgspec.json.encode(portion)[1:-1]
        await asyncio.sleep(0)


def _parse_limit(text: str | None) -> int | None:
    if text is None:
        return None
    if not (text.isascii() and text.isdigit() and len(text) <= 9 and int(text)):
        raise ValueError(text)
    return int(text)
