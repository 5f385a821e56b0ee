"""edge/metrics.py: what a scrape says of clients that are really there, and what it costs."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import ProcessCollector

from edge.events import AuthenticationFailed, EventBus, FlowFailed
from edge.metrics import (
    LAG_PERIOD_S,
    LAG_WINDOW,
    MSRP_METHODS,
    SIP_METHODS,
    EdgeCollector,
    LoopLag,
    ProcessFigures,
    build_registry,
    expose,
    fold,
    fold_words,
)
from tests.admin.conftest import Admin, Edge, fill, link_of, ringing
from tests.conftest import Metrics
from tests.deploy.test_monitoring import METRICS, PROCESS
from tests.ua.msrp import AuthFailed, MsrpEndpoint
from tests.ua.sip import SipUA
from tests.ua.wait import eventually


def sip(edge: Edge, user: str, **options: Any) -> SipUA:
    return SipUA(user, server=edge.address, transport=options.pop("transport", "tcp"), **options)


def failed(reason: str) -> FlowFailed:
    return FlowFailed("0-1-1", "tcp", "192.0.2.1:1", "192.0.2.2:2", reason, 1.0, 1.0)


def refused(protocol: str, reason: str) -> AuthenticationFailed:
    return AuthenticationFailed(protocol, "192.0.2.1", "mallory", reason)


# -- names


async def test_every_family_is_there_from_the_start(admin: Admin) -> None:
    families = (await admin.metrics()).families
    assert {name for name in METRICS if name.removesuffix("_total") not in families} == set()
    assert {name for name in PROCESS - {"up"} if name.removesuffix("_total") not in families} == set()


async def test_labels_and_types_are_those_of_alerts_and_dashboard(edge: Edge, admin: Admin) -> None:
    async with sip(edge, "bob", reg_id=1) as bob, MsrpEndpoint("alice", "wonderland", relay=edge.address) as chat:
        await bob.register()
        await chat.auth()
        edge.table.refuse("192.0.2.1", "source_limit")
        edge.bus.publish(failed("reset"))
        edge.bus.publish(refused("msrp", "unknown_user"))
        edge.core.stats.reject("loop")
        edge.relay.stats.refuse("session")
        edge.table.datagrams["junk"] = 1
    await eventually(lambda: not edge.table.connections)
    edge.table.failed_by_reason["reset"] = 1
    response, body = await admin.ask("/metrics")
    assert response.headers["Content-Type"] == "text/plain; version=0.0.4; charset=utf-8"
    samples = {s.name: s for s in Metrics(body.decode()).samples if s.name.startswith("edge_")}
    assert {name: set(sample.labels) for name, sample in samples.items()} == METRICS
    for name in METRICS:
        kind = "counter" if name.endswith("_total") else "gauge"
        assert f"# TYPE {name} {kind}\n" in body.decode()


# -- values


async def test_connections(edge: Edge, admin: Admin) -> None:
    async with sip(edge, "alice") as alice, sip(edge, "bob", transport="ws") as bob:
        await alice.register()
        await bob.register()
        now = await admin.metrics()
        assert {t: now.value("edge_connections", transport=t) for t in ("udp", "tcp", "tls", "ws", "wss")} == {
            "udp": 0, "tcp": 1, "tls": 0, "ws": 1, "wss": 0,
        }  # fmt: skip
    await eventually(lambda: not edge.table.connections)
    later = await admin.metrics()
    assert later.value("edge_connections") == 0
    assert later.value("edge_connections_opened_total") >= 2
    assert later.value("edge_connections_closed_total") + later.value("edge_connections_failed_total") == 2


async def test_udp_flows(edge: Edge, admin: Admin) -> None:
    edge.table.flows = 7
    assert (await admin.metrics()).value("edge_udp_flows") == 7


async def test_ends_by_reason(edge: Edge, admin: Admin) -> None:
    async with sip(edge, "bob") as bob:
        await bob.register()
        (connection,) = edge.table.connections.values()
        connection.fail("stalled")
        await link_of(bob).wait_closed()
    edge.table.refuse("192.0.2.1", "source_limit")
    now = await admin.metrics()
    assert now.value("edge_connections_failed_total", reason="stalled") == 1
    assert now.value("edge_connections_refused_total", reason="source_limit") == 1


async def test_what_was_thrown_away_by_kind(edge: Edge, admin: Admin) -> None:
    edge.table.datagrams["junk"] = 3
    edge.relay.stats.refuse("session")
    now = await admin.metrics()
    assert now.value("edge_datagrams_total", kind="junk") == 3
    assert now.value("edge_msrp_rejected_total", reason="session") == 1


async def test_sip(edge: Edge, admin: Admin) -> None:
    async with sip(edge, "alice") as alice, sip(edge, "bob") as bob:
        await alice.options("sip:example.com")
        assert (await alice.request("MESSAGE", "sip:nobody@example.com")).status == 404
        async with ringing(edge, alice, bob):
            now = await admin.metrics()
        for method in ("REGISTER", "OPTIONS", "MESSAGE", "INVITE"):
            assert now.value("edge_sip_requests_total", method=method) == 1
        assert now.value("edge_sip_responses_total", code_class="2xx") == 2
        assert now.value("edge_sip_responses_total", code_class="4xx") == 1
        assert now.value("edge_sip_responses_total", code_class="5xx") == 0
        assert now.value("edge_sip_registrations") == 1
        assert now.value("edge_sip_transactions", kind="server") == 1
        assert now.value("edge_sip_transactions", kind="client") == 1


async def test_sip_counters_are_those_of_the_core(edge: Edge, admin: Admin) -> None:
    edge.core.transactions.retransmissions_absorbed = 3
    edge.core.transactions.retransmissions_sent = 4
    edge.core.stats.answers[5] = 6
    edge.core.stats.reject("max_forwards")
    edge.core.access.failures["wrong_password"] = 2
    now = await admin.metrics()
    assert now.value("edge_sip_retransmissions_total") == 7
    assert now.value("edge_sip_responses_total", code_class="5xx") == 6
    assert now.value("edge_sip_rejected_total", reason="max_forwards") == 1
    assert now.value("edge_auth_failures_total", reason="wrong_password") == 2


async def test_msrp(edge: Edge, admin: Admin) -> None:
    async with (
        MsrpEndpoint("alice", "wonderland", relay=edge.address) as alice,
        MsrpEndpoint("alice", "wonderland", relay=edge.address) as bob,
        MsrpEndpoint("alice", "not-the-password", relay=edge.address) as mallory,
    ):
        await alice.auth()
        await bob.auth()
        with pytest.raises(AuthFailed):
            await mallory.auth()
        await alice.send(alice.use_path + bob.path, b"x" * 5000, "text/plain")
        assert len((await bob.next_message()).data) == 5000
        now = await admin.metrics()
        assert now.value("edge_msrp_sessions") == 2
        assert now.value("edge_msrp_frames_total", method="AUTH") == edge.relay.stats.frames["AUTH"] >= 6
        assert now.value("edge_msrp_frames_total", method="SEND") >= 1
        assert now.value("edge_msrp_responses_total", code="200") == edge.relay.stats.responses[200] >= 3
        assert now.value("edge_msrp_responses_total", code="401") >= 4
        assert now.value("edge_msrp_relayed_octets_total") >= 5000
        assert now.value("edge_auth_failures_total") == 1
    edge.relay.stats.reports_made, edge.relay.stats.reports_relayed = 5, 6
    now = await admin.metrics()
    assert now.value("edge_msrp_reports_total", origin="relay") == 5
    assert now.value("edge_msrp_reports_total", origin="peer") == 6


async def test_failed_flows_and_logins_are_counted_from_events(edge: Edge, admin: Admin) -> None:
    for event in (
        failed("reset"),
        failed("reset"),
        failed("silent"),
        refused("msrp", "stale"),
        refused("sip", "stale"),
    ):
        edge.bus.publish(event)
    now = await admin.metrics()
    assert now.value("edge_flow_failed_total", reason="reset") == 2
    assert now.value("edge_flow_failed_total", reason="silent") == 1
    assert now.value("edge_auth_failures_total", reason="stale") == 1  # SIP's own are counted where they are refused


async def test_a_flow_that_fails_is_counted(edge: Edge, admin: Admin) -> None:
    async with sip(edge, "bob", reg_id=1) as bob:
        await bob.register()
        (connection,) = edge.table.connections.values()
        edge.flows.handle_connection_lost(connection, "reset", edge.loop.time())
        assert (await admin.metrics()).value("edge_flow_failed_total", reason="reset") == 1


async def test_storage_and_reload(edge: Edge, admin: Admin) -> None:
    now = await admin.metrics()
    assert (now.value("edge_storage_healthy"), now.value("edge_storage_commits_total")) == (1, 17)
    assert now.value("edge_config_last_reload_successful") == 1
    edge.storage.healthy = False
    edge.collector.reload_successful, edge.collector.reload_timestamp = False, 1_795_204_800.0
    now = await admin.metrics()
    assert now.value("edge_storage_healthy") == 0
    assert now.value("edge_config_last_reload_successful") == 0
    assert now.value("edge_config_last_reload_timestamp_seconds") == 1_795_204_800.0


async def test_an_edge_without_sip_and_msrp_has_the_families(edge: Edge) -> None:
    collector = EdgeCollector(EventBus(), edge.table, edge.storage, edge.lag)
    families = Metrics(expose(build_registry(collector)).decode()).families
    assert {name for name in METRICS if name.removesuffix("_total") not in families} == set()


# -- labels nobody can invent


async def test_invented_methods_make_one_series(edge: Edge, admin: Admin) -> None:
    for number in range(50):
        edge.core.stats.count_request(b"X%d" % number)
    for _ in range(3):
        edge.core.stats.count_request(b"INVITE")
    now = await admin.metrics()
    assert now.value("edge_sip_requests_total", method="_other") == 50
    assert now.value("edge_sip_requests_total", method="INVITE") == 3
    assert {s.labels["method"] for s in now.samples if s.name == "edge_sip_requests_total"} == {"INVITE", "_other"}


counts = st.dictionaries(st.text() | st.from_regex(r"[a-z][a-z0-9_]{0,45}", fullmatch=True), st.integers(0, 1000))


@given(counts, st.sampled_from([SIP_METHODS, MSRP_METHODS]))
def test_folding_keeps_the_sum_and_only_known_values(values: dict[str, int], known: frozenset[str]) -> None:
    folded = fold(values, known)
    assert sum(folded.values()) == sum(values.values())
    assert set(folded) <= known | {"_other"}


@given(counts)
def test_words_are_few_and_plain(values: dict[str, int]) -> None:
    folded = fold_words(values)
    assert sum(folded.values()) == sum(values.values())
    assert len(folded) <= 65
    assert all(word == "_other" or (word.isascii() and len(word) <= 40) for word in folded)


def test_a_series_that_exists_stays_when_others_come() -> None:
    values = {f"reason_{number}": 1 for number in range(64)}
    assert fold_words(values) == values
    values |= {f"a{number}": 1 for number in range(10)}
    assert fold_words(values) == {f"reason_{number}": 1 for number in range(64)} | {"_other": 10}


# -- what it costs


async def test_a_scrape_does_not_look_at_every_connection(edge: Edge) -> None:
    def events() -> int:
        """Calls of functions written in Python during one collection."""
        calls = 0

        def count(frame: Any, event: str, argument: Any) -> None:
            nonlocal calls
            calls += event == "call"

        sys.setprofile(count)
        try:
            list(edge.collector.collect())
        finally:
            sys.setprofile(None)
        return calls

    few = events()
    fill(edge, 20_000)
    assert events() < 2 * few
    assert Metrics(expose(build_registry(edge.collector)).decode()).value("edge_connections", transport="udp") == 20_000


# -- the process


def test_process_figures_are_those_of_this_process() -> None:
    theirs = {
        sample.name: sample.value for family in ProcessCollector(registry=None).collect() for sample in family.samples
    }
    ours = {sample.name: sample.value for family in ProcessFigures().collect() for sample in family.samples}
    assert set(ours) == set(theirs)
    assert ours["process_max_fds"] == theirs["process_max_fds"]
    assert ours["process_start_time_seconds"] == pytest.approx(theirs["process_start_time_seconds"], abs=2)
    assert ours["process_open_fds"] == pytest.approx(theirs["process_open_fds"], abs=1)  # listing them opens one
    assert ours["process_cpu_seconds_total"] == pytest.approx(theirs["process_cpu_seconds_total"], abs=1)
    for name in ("process_resident_memory_bytes", "process_virtual_memory_bytes"):
        assert ours[name] == pytest.approx(theirs[name], rel=0.1)


@pytest.mark.parametrize("folder", ["fd", "task"])
def test_open_descriptors_are_counted_by_old_and_new_kernels(folder: str, tmp_path: Path) -> None:
    """Since Linux 6.2 /proc/self/fd tells its size; before that it had size 0, as /proc/self/task has today."""
    for name in ("stat", "statm"):
        (tmp_path / name).write_bytes(Path("/proc/self", name).read_bytes())
    (tmp_path / "fd").symlink_to(f"/proc/self/{folder}")
    values = [s.value for f in ProcessFigures(tmp_path).collect() for s in f.samples if s.name == "process_open_fds"]
    assert values == [pytest.approx(len(list(Path("/proc/self", folder).iterdir())), abs=1)]


# -- the loop's lag


async def test_a_blocked_loop_shows(edge: Edge, admin: Admin) -> None:
    assert (await admin.metrics()).value("edge_loop_lag_seconds") < LAG_PERIOD_S
    time.sleep(LAG_PERIOD_S + 0.3)  # what an operator's hook must not do
    assert edge.lag.worst_s >= 0.2
    assert (await admin.metrics()).value("edge_loop_lag_seconds") >= 0.2


class Calls:
    """The part of an event loop that LoopLag uses, with a clock that is set by hand."""

    def __init__(self) -> None:
        self.now = 100.0
        self.call: tuple[float, Any] | None = None

    def time(self) -> float:
        return self.now

    def call_at(self, when: float, callback: Any) -> Calls:
        self.call = (when, callback)
        return self

    def cancel(self) -> None:
        self.call = None

    def run_late(self, late_s: float) -> None:
        assert self.call is not None
        when, callback = self.call
        self.now = when + late_s
        callback()


def test_the_worst_is_forgotten_after_its_window() -> None:
    loop: Any = Calls()
    lag = LoopLag(loop)
    assert lag.worst_s == 0.0
    loop.run_late(0.5)
    for _ in range(LAG_WINDOW - 1):
        loop.run_late(0.01)
        assert lag.worst_s == pytest.approx(0.5)
    loop.run_late(0.01)
    assert lag.worst_s == pytest.approx(0.01)


def test_a_delay_that_goes_on_counts_and_stop_ends_the_timer() -> None:
    loop: Any = Calls()
    lag = LoopLag(loop)
    loop.now += LAG_PERIOD_S + 2.0
    assert lag.worst_s == pytest.approx(2.0)
    lag.stop()
    assert loop.call is None
