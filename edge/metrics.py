"""Prometheus metrics, all in one place: read from the objects' plain integers when somebody scrapes.

Nothing here is touched by a message, and nothing loops over connections: a scrape costs the same with ten of them as
with 20,000. `docs/operations.md` describes every metric. A label value is one of ours or `_other`: a stranger cannot
make a time series.
"""

from __future__ import annotations

import asyncio
import os
import re
import resource
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Protocol

from prometheus_client import CollectorRegistry, GCCollector, PlatformCollector, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from edge.accounting.ledger import NOTHING_WRITTEN, Ledger
from edge.connections import ConnectionTable, Transport
from edge.events import AuthenticationFailed, EventBus, FlowFailed
from edge.msrp.relay import Relay
from edge.sip.core import SipCore
from edge.storage.base import Storage

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
OTHER = "_other"
LAG_PERIOD_S = 1.0
LAG_WINDOW = 15  # measurements

# The methods IANA knows; those of RFC 4975, 4976 and 7701 and their status codes.
SIP_METHODS = frozenset(
    (
        "ACK", "BYE", "CANCEL", "INFO", "INVITE", "MESSAGE", "NOTIFY", "OPTIONS", "PRACK", "PUBLISH", "REFER",
        "REGISTER", "SUBSCRIBE", "UPDATE",
    )
)  # fmt: skip
MSRP_METHODS = frozenset(("AUTH", "NICKNAME", "REPORT", "SEND"))
_CODES = (200, 400, 401, 403, 404, 408, 413, 415, 423, 424, 425, 426, 428, 481, 501, 503, 506)
MSRP_CODES = frozenset(map(str, _CODES))

_WORD = re.compile(r"[a-z][a-z0-9_]{0,39}")
_MOST_WORDS = 64  # time series of one metric
_LIST_DESCRIPTORS_EVERY_S = 60.0


class PolicyCounts(Protocol):
    """What is counted of an operator's policy: errors by hook, under labels of its own, and what is under way."""

    @property
    def errors(self) -> Mapping[str, int]: ...

    @property
    def counts(self) -> Mapping[str, int]: ...

    @property
    def running(self) -> int: ...


class LoopLag:
    """How late the event loop is: one timer a second, and how long after its time it ran.

    Created on a loop and running until `stop`.
    """

    __slots__ = ("_due", "_late", "_loop", "_timer")

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._late: deque[float] = deque(maxlen=LAG_WINDOW)
        self._due = loop.time() + LAG_PERIOD_S
        self._timer = loop.call_at(self._due, self._measure)

    @property
    def worst_s(self) -> float:
        """The worst of the last 15 seconds, the delay that is going on included."""
        return max(self._overdue(), max(self._late, default=0.0))

    def stop(self) -> None:
        """Measure no more."""
        self._timer.cancel()

    def _overdue(self) -> float:
        return max(0.0, self._loop.time() - self._due)

    def _measure(self) -> None:
        self._late.append(self._overdue())
        self._due = self._loop.time() + LAG_PERIOD_S
        self._timer = self._loop.call_at(self._due, self._measure)


class EdgeCollector:
    """Reads the server's counters at scrape time; register it with `build_registry`.

    `reload_successful` and `reload_timestamp` (seconds since 1970) are the server's to set at its start and at every
    SIGHUP. Events which have no counter elsewhere are counted here: flows that failed and, for MSRP, refused logins.
    `commits` says how many transactions the storage has committed, `hooks` how many events ended how (by hook and
    result), `missed` how many readers of the event stream did not get; None where there are none.
    """

    def __init__(
        self,
        bus: EventBus,
        table: ConnectionTable,
        storage: Storage,
        lag: LoopLag,
        *,
        core: SipCore | None = None,
        relay: Relay | None = None,
        commits: Callable[[], int] | None = None,
        hooks: Callable[[], Mapping[tuple[str, str], int]] | None = None,
        missed: Callable[[], int] | None = None,
        accounting: Ledger | None = None,
        policy: PolicyCounts | None = None,
    ) -> None:
        self.reload_successful = True
        self.reload_timestamp = 0.0
        self._table = table
        self._storage = storage
        self._lag = lag
        self._core = core
        self._relay = relay
        self._commits = commits
        self._hooks = hooks
        self._missed = missed
        self._accounting = accounting
        self._policy = policy
        self._flows_failed: dict[str, int] = {}
        self._msrp_auth_failed: dict[str, int] = {}
        bus.subscribe(FlowFailed, self._count_flow)
        bus.subscribe(AuthenticationFailed, self._count_login)

    def collect(self) -> Iterator[Metric]:
        """Yield every family, without samples where this server has no such part."""
        yield from self._connections()
        yield from self._sip()
        yield from self._transactions()
        yield from self._msrp()
        yield from self._logins()
        yield from self._watchers()
        yield from self._records()
        yield from self._process()

    def _connections(self) -> Iterator[Metric]:
        table = self._table
        yield _gauges("edge_connections", "Connections open now", "transport", _by_transport(table.live))
        yield _counters(
            "edge_connections_opened", "Connections accepted and dialled", "transport", _by_transport(table.opened)
        )
        yield _counters("edge_connections_closed", "Orderly ends", "reason", fold_words(table.closed_by_reason))
        yield _counters("edge_connections_failed", "Other ends", "reason", fold_words(table.failed_by_reason))
        yield _counters(
            "edge_connections_refused", "Turned away unheard", "reason", fold_words(table.refused_by_reason)
        )
        yield GaugeMetricFamily("edge_udp_flows", "UDP flows alive", table.flows)
        yield _counters("edge_datagrams", "Datagrams that were no SIP", "kind", fold_words(table.datagrams))

    def _sip(self) -> Iterator[Metric]:
        core = self._core
        requests = fold(core.stats.requests, SIP_METHODS) if core else {}
        answers = {f"{number}xx": core.stats.answers[number] for number in range(1, 7)} if core else {}
        rejected = fold_words(core.stats.rejected) if core else {}
        yield _counters("edge_sip_requests", "Requests received, repeats left out", "method", requests)
        yield _counters("edge_sip_responses", "Responses sent and forwarded", "code_class", answers)
        yield _counters("edge_sip_rejected", "Messages that broke a rule", "reason", rejected)
        yield GaugeMetricFamily("edge_sip_registrations", "Bindings alive", core.location.count if core else 0)
        yield GaugeMetricFamily("edge_sip_flows", "Flows in the table", len(core.flows) if core else 0)

    def _transactions(self) -> Iterator[Metric]:
        layer = self._core.transactions if self._core else None
        alive = {"server": len(layer.servers), "client": len(layer.clients)} if layer else {}
        again = layer.retransmissions_absorbed + layer.retransmissions_sent if layer else 0
        yield _gauges("edge_sip_transactions", "Transactions alive", "kind", alive)
        yield CounterMetricFamily("edge_sip_retransmissions", "Retransmissions absorbed and sent", again)

    def _msrp(self) -> Iterator[Metric]:
        relay = self._relay
        stats = relay.stats if relay else None
        requests = fold(stats.frames, MSRP_METHODS) if stats else {}
        responses = fold({str(code): count for code, count in stats.responses.items()}, MSRP_CODES) if stats else {}
        reports = {"peer": stats.reports_relayed, "relay": stats.reports_made} if stats else {}
        octets = stats.octets if stats else 0
        yield GaugeMetricFamily("edge_msrp_sessions", "MSRP sessions alive", len(relay.table) if relay else 0)
        yield _counters("edge_msrp_frames", "MSRP requests received", "method", requests)
        yield _counters("edge_msrp_responses", "MSRP responses sent", "code", responses)
        yield _counters("edge_msrp_rejected", "What broke a rule", "reason", fold_words(stats.refused) if stats else {})
        yield _counters("edge_msrp_reports", "REPORTs, by who wrote them", "origin", reports)
        yield CounterMetricFamily("edge_msrp_relayed_octets", "Octets of body passed on", octets)

    def _logins(self) -> Iterator[Metric]:
        failures = dict(self._msrp_auth_failed)
        for reason, count in self._core.access.failures.items() if self._core else ():
            failures[reason] = failures.get(reason, 0) + count
        if self._relay and (locked_out := self._relay.stats.refused.get("locked_out")):
            failures["locked_out"] = failures.get("locked_out", 0) + locked_out
        yield _counters("edge_auth_failures", "Logins that failed, SIP and MSRP", "reason", fold_words(failures))
        yield _counters("edge_flow_failed", "Flows that failed", "reason", fold_words(self._flows_failed))

    def _watchers(self) -> Iterator[Metric]:
        hooks = CounterMetricFamily(
            "edge_hook_events", "Events given to hooks, by their end", labels=("hook", "result")
        )
        for (hook, result), count in self._hooks().items() if self._hooks else ():
            hooks.add_metric((hook, result), count)
        yield hooks
        policy = self._policy
        yield _counters(
            "edge_policy_errors",
            "Hooks of the policy that raised, were too slow or found no room",
            "hook",
            policy.errors if policy else {},
        )
        counts = fold_words(policy.counts) if policy else {}
        yield _counters("edge_policy_counts", "What the policy counts", "label", counts)
        running = policy.running if policy else 0
        yield GaugeMetricFamily("edge_policy_running", "Async hooks of the policy that are under way", running)
        missed = self._missed() if self._missed else 0
        yield CounterMetricFamily("edge_event_stream_missed", "Events that readers of /api/events missed", missed)

    def _records(self) -> Iterator[Metric]:
        ledger = self._accounting
        written, lost = ledger.counts() if ledger else NOTHING_WRITTEN
        yield _counters("edge_accounting_records", "Accounting records written", "kind", written)
        yield _counters("edge_accounting_lost", "Accounting records lost", "reason", lost)
        waiting = ledger.waiting if ledger else 0
        yield GaugeMetricFamily("edge_accounting_waiting", "Accounting records that are not written yet", waiting)
        healthy = ledger is None or ledger.healthy
        yield GaugeMetricFamily("edge_accounting_healthy", "1 while accounting records can be written", healthy)

    def _process(self) -> Iterator[Metric]:
        yield GaugeMetricFamily("edge_storage_healthy", "1 while the storage takes writes", self._storage.healthy)
        yield CounterMetricFamily(
            "edge_storage_commits", "Transactions committed", self._commits() if self._commits else None
        )
        yield GaugeMetricFamily("edge_loop_lag_seconds", "How late the event loop is", self._lag.worst_s)
        yield GaugeMetricFamily(
            "edge_config_last_reload_successful", "1 if the last start or SIGHUP worked", self.reload_successful
        )
        yield GaugeMetricFamily("edge_config_last_reload_timestamp_seconds", "When that was", self.reload_timestamp)

    def _count_flow(self, event: FlowFailed) -> None:
        self._flows_failed[event.reason] = self._flows_failed.get(event.reason, 0) + 1

    def _count_login(self, event: AuthenticationFailed) -> None:
        if event.protocol == "msrp":  # those of SIP are counted where they are refused, with more reasons
            self._msrp_auth_failed[event.reason] = self._msrp_auth_failed.get(event.reason, 0) + 1


class ProcessFigures:
    """The `process_*` metrics of the client library, without its listing of every open descriptor at every scrape.

    With 20,000 connections that takes 30 ms, during which nothing else is done. Linux 6.2 and later just say the
    number; on an older one they are listed once a minute.
    """

    def __init__(self, proc: Path = Path("/proc/self")) -> None:
        self._proc = proc
        self._page = resource.getpagesize()
        self._listed = 0
        self._list_at = float("-inf")
        ticks = int((proc / "stat").read_bytes().rpartition(b")")[2].split()[19])
        up_s = time.clock_gettime(time.CLOCK_BOOTTIME) - ticks / os.sysconf("SC_CLK_TCK")
        self._started_at = time.time() - up_s

    def collect(self) -> Iterator[Metric]:
        """Yield the families."""
        virtual, resident = (int(pages) * self._page for pages in (self._proc / "statm").read_bytes().split()[:2])
        limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        yield CounterMetricFamily("process_cpu_seconds", "CPU time, user and system", time.process_time())
        yield GaugeMetricFamily("process_virtual_memory_bytes", "Virtual memory", virtual)
        yield GaugeMetricFamily("process_resident_memory_bytes", "Resident memory", resident)
        yield GaugeMetricFamily("process_start_time_seconds", "Start, since 1970", self._started_at)
        yield GaugeMetricFamily("process_open_fds", "Open file descriptors", self._open_descriptors())
        yield GaugeMetricFamily("process_max_fds", "Most file descriptors there may be", limit)

    def _open_descriptors(self) -> int:
        if count := (self._proc / "fd").stat().st_size:
            return count
        now = time.monotonic()
        if now >= self._list_at:
            self._list_at = now + _LIST_DESCRIPTORS_EVERY_S
            self._listed = len(os.listdir(self._proc / "fd"))  # noqa: PTH208 - names are not needed
        return self._listed


def build_registry(collector: EdgeCollector) -> CollectorRegistry:
    """Return a registry of our own with the server's metrics and those of the process."""
    registry = CollectorRegistry()
    registry.register(collector)
    registry.register(ProcessFigures())
    PlatformCollector(registry=registry)
    GCCollector(registry=registry)
    return registry


def expose(registry: CollectorRegistry) -> bytes:
    """Write everything in the Prometheus text format; `CONTENT_TYPE` is its media type."""
    return generate_latest(registry)


def fold(counts: Mapping[str, int], known: Iterable[str]) -> dict[str, int]:
    """Return the counts of the known values, the others together as `_other`."""
    folded = {value: counts[value] for value in known if value in counts}
    if rest := sum(counts.values()) - sum(folded.values()):
        folded[OTHER] = rest
    return folded


def fold_words(counts: Mapping[str, int]) -> dict[str, int]:
    """Return the counts of the first 64 values that look like a word of ours, the others together as `_other`."""
    return fold(counts, [value for value in counts if _WORD.fullmatch(value)][:_MOST_WORDS])


def _by_transport(counts: list[int]) -> dict[str, int]:
    return {transport.name.lower(): counts[transport] for transport in Transport}


def _counters(name: str, text: str, label: str, values: Mapping[str, int]) -> CounterMetricFamily:
    family = CounterMetricFamily(name, text, labels=[label])
    for value, count in values.items():
        family.add_metric([value], count)
    return family


def _gauges(name: str, text: str, label: str, values: Mapping[str, int]) -> GaugeMetricFamily:
    family = GaugeMetricFamily(name, text, labels=[label])
    for value, count in values.items():
        family.add_metric([value], count)
    return family
