"""The HTTP server of the admin listener, and who may use it.

    GET   /metrics  /healthz  /readyz  /api/{kind}  /api/events  /
    POST  /api/connections/{id}/disconnect

With a token set, everything but the two health checks wants `Authorization: Bearer TOKEN` (RFC 6750 §2.1). Without one,
whoever reaches the port may use it: the configuration allows that on loopback only. A web page elsewhere cannot make an
operator's browser post here, because its Origin gives it away.
"""

from __future__ import annotations

import hmac
import logging
import time
from collections.abc import Awaitable, Callable
from urllib.parse import urlsplit

from aiohttp import hdrs, web

from edge.admin.api import AdminSource, Api, json_response
from edge.admin.page import render_page
from edge.admin.stream import EventStream
from edge.config import DEFAULTS
from edge.errors import ConfigError
from edge.log import FieldAdapter, RateLimited, format_peer
from edge.metrics import CONTENT_TYPE
from edge.settings import split_host_port

log = logging.getLogger("edge.admin")
security = FieldAdapter(logging.getLogger("edge.security"))

OPEN_PATHS = frozenset(("/healthz", "/readyz"))
DENIALS_LOGGED_EVERY_S = 10.0  # for each source
_STOP_WITHIN_S = 2.0
_HEADERS = {
    hdrs.SERVER: "edge",
    hdrs.CACHE_CONTROL: "no-store",
    "X-Content-Type-Options": "nosniff",
    "Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'; frame-ancestors 'none'",
}

Handle = Callable[[web.Request], Awaitable[web.StreamResponse]]


class AdminServer:
    """The admin listener at `bind` ("127.0.0.1:9060", "[::1]:9060"; port 0 lets the system choose).

    `token` empty: nobody is asked for one. `metrics` returns a scrape in `edge.metrics.CONTENT_TYPE`. `config` is what
    a `ConfigError` names as its source. Without `events` there is no stream of them.
    """

    def __init__(
        self,
        bind: str,
        token: str,
        source: AdminSource,
        metrics: Callable[[], bytes],
        *,
        config: str = DEFAULTS,
        events: EventStream | None = None,
    ) -> None:
        self._bind = bind
        self._token = token.encode()
        self._source = source
        self._metrics = metrics
        self._config = config
        self._events = events
        self._denials = RateLimited(DENIALS_LOGGED_EVERY_S)
        self._runner: web.AppRunner | None = None

    @property
    def address(self) -> tuple[str, int]:
        """Where it listens, once it does."""
        assert self._runner is not None
        host, port = self._runner.addresses[0][:2]
        return host, port

    async def start(self) -> None:
        """Open the port.

        Raises:
            ConfigError: the address cannot be had; key `admin.bind`.
        """
        runner = web.AppRunner(self._build(), access_log=None, logger=log, shutdown_timeout=_STOP_WITHIN_S)
        await runner.setup()
        try:
            host, port = split_host_port(self._bind)
            await web.TCPSite(runner, host, port).start()
        except (OSError, ValueError) as error:
            await runner.cleanup()
            reason = getattr(error, "strerror", None) or str(error)
            raise ConfigError(self._config, "admin.bind", f"cannot listen on {self._bind}: {reason}") from error
        self._runner = runner
        log.info("listening bind=%s", format_peer(self.address))

    async def stop(self) -> None:
        """Close the port; requests under way have two seconds to finish."""
        if self._events is not None:
            self._events.close()
        runner, self._runner = self._runner, None
        if runner is not None:
            await runner.cleanup()

    def _build(self) -> web.Application:
        app = web.Application(middlewares=[_answer_errors_as_json, self._authorize], client_max_size=1024)
        app.add_routes(
            [
                web.get("/", self._page, allow_head=False),
                web.get("/metrics", self._scrape, allow_head=False),
                web.get("/healthz", self._health, allow_head=False),
                web.get("/readyz", self._readiness, allow_head=False),
                *([web.get("/api/events", self._events.handle, allow_head=False)] if self._events is not None else []),
                *Api(self._source).routes(),
            ]
        )
        app.on_response_prepare.append(_add_headers)
        return app

    # -- who may

    @web.middleware
    async def _authorize(self, request: web.Request, handler: Handle) -> web.StreamResponse:
        if request.path not in OPEN_PATHS and self._token:
            given = request.headers.get(hdrs.AUTHORIZATION, "")
            scheme, _, token = given.partition(" ")
            offered = token.strip().encode("utf-8", "surrogateescape")
            if scheme.lower() != "bearer" or not hmac.compare_digest(offered, self._token):
                self._report(request, "wrong_token" if given else "no_token")
                challenge = 'Bearer realm="edge"' + (', error="invalid_token"' if given else "")
                return json_response({"error": "a bearer token is needed"}, 401, {"WWW-Authenticate": challenge})
        if request.method == hdrs.METH_POST and not _is_same_origin(request):
            self._report(request, "origin")
            return json_response({"error": "posted from a page of another origin"}, 403)
        return await handler(request)

    def _report(self, request: web.Request, reason: str) -> None:
        """Log a denial: the path without its query, nothing of the token."""
        peer = request.transport.get_extra_info("peername") if request.transport else None
        source = (str(peer[0]), int(peer[1])) if peer else ("-", 0)
        held_back = self._denials.allow(source[0], time.monotonic())
        if held_back is not None:
            security.warning(
                "admin denied", src=format_peer(source), path=request.path, reason=reason, held_back=held_back
            )

    # -- what

    async def _scrape(self, request: web.Request) -> web.Response:
        return web.Response(body=self._metrics(), headers={hdrs.CONTENT_TYPE: CONTENT_TYPE})

    async def _health(self, request: web.Request) -> web.Response:
        healthy, detail = self._source.health()
        return json_response(detail, 200 if healthy else 503)

    async def _readiness(self, request: web.Request) -> web.Response:
        ready, detail = self._source.readiness()
        return json_response(detail, 200 if ready else 503)

    async def _page(self, request: web.Request) -> web.Response:
        return web.Response(text=render_page(self._source), content_type="text/html", charset="utf-8")


@web.middleware
async def _answer_errors_as_json(request: web.Request, handler: Handle) -> web.StreamResponse:
    """Write what aiohttp refuses by itself (404, 405, 413) as JSON like everything else."""
    try:
        return await handler(request)
    except web.HTTPException as error:
        kept = {"Allow": error.headers["Allow"]} if "Allow" in error.headers else None
        return json_response({"error": error.reason}, error.status, kept)


def _is_same_origin(request: web.Request) -> bool:
    """Whether the sender is no browser, or a browser on a page of ours (RFC 6454 §7)."""
    origin = request.headers.get(hdrs.ORIGIN)
    return origin is None or urlsplit(origin).netloc == request.host


async def _add_headers(_request: web.Request, response: web.StreamResponse) -> None:
    response.headers.update(_HEADERS)
