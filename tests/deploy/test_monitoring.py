"""deploy/prometheus and deploy/grafana: files parse, and ask for nothing the server does not export."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from typing import Any

import pytest
import yaml

from tests.conftest import ROOT, EdgeServerFactory
from tests.ua.wait import scaled

DEPLOY = ROOT / "deploy"
DASHBOARD = DEPLOY / "grafana" / "dashboards" / "edge.json"
ALERTS = DEPLOY / "prometheus" / "alerts.yml"

# Metric → its labels. docs/operations.md describes them.
METRICS: dict[str, set[str]] = {
    "edge_connections": {"transport"},
    "edge_connections_opened_total": {"transport"},
    "edge_connections_closed_total": {"reason"},
    "edge_connections_failed_total": {"reason"},
    "edge_connections_refused_total": {"reason"},
    "edge_udp_flows": set(),
    "edge_sip_flows": set(),
    "edge_datagrams_total": {"kind"},
    "edge_sip_requests_total": {"method"},
    "edge_sip_responses_total": {"code_class"},
    "edge_sip_rejected_total": {"reason"},
    "edge_sip_transactions": {"kind"},
    "edge_sip_registrations": set(),
    "edge_sip_retransmissions_total": set(),
    "edge_msrp_sessions": set(),
    "edge_msrp_frames_total": {"method"},
    "edge_msrp_responses_total": {"code"},
    "edge_msrp_rejected_total": {"reason"},
    "edge_msrp_reports_total": {"origin"},
    "edge_msrp_relayed_octets_total": set(),
    "edge_auth_failures_total": {"reason"},
    "edge_flow_failed_total": {"reason"},
    "edge_policy_errors_total": {"hook"},
    "edge_policy_counts_total": {"label"},
    "edge_policy_running": set(),
    "edge_hook_events_total": {"hook", "result"},
    "edge_event_stream_missed_total": set(),
    "edge_accounting_records_total": {"kind"},
    "edge_accounting_lost_total": {"reason"},
    "edge_accounting_waiting": set(),
    "edge_accounting_healthy": set(),
    "edge_storage_healthy": set(),
    "edge_storage_commits_total": set(),
    "edge_loop_lag_seconds": set(),
    "edge_config_last_reload_successful": set(),
    "edge_config_last_reload_timestamp_seconds": set(),
}
PROCESS = {
    "up",
    "process_start_time_seconds",
    "process_open_fds",
    "process_max_fds",
    "process_cpu_seconds_total",
    "process_resident_memory_bytes",
}
FROM_PROMETHEUS = {"instance", "job"}
METRIC = re.compile(r"\b(?:edge_\w+|process_\w+|up\b)")
GROUPING = re.compile(r"\bby\s*\(([^)]*)\)[^a-z]*(?:\(?\s*(?:rate|increase)\s*\(\s*)?(edge_\w+)\s*(?:\{([^}]*)\})?")


def rules() -> list[dict[str, Any]]:
    """All alert rules."""
    return [rule for group in yaml.safe_load(ALERTS.read_text())["groups"] for rule in group["rules"]]


def panels() -> list[dict[str, Any]]:
    """All panels of the dashboard but the headings."""
    return [panel for panel in json.loads(DASHBOARD.read_text())["panels"] if panel["type"] != "row"]


def expressions() -> Iterator[str]:
    """Every PromQL expression of the alerts and the dashboard."""
    for rule in rules():
        yield rule["expr"]
    for panel in panels():
        for target in panel["targets"]:
            yield target["expr"]


@pytest.mark.parametrize("expression", sorted(set(expressions())))
def test_expression_uses_metrics_and_labels_that_exist(expression: str) -> None:
    used = set(METRIC.findall(expression))
    assert used
    assert used <= METRICS.keys() | PROCESS
    for labels, metric, selectors in GROUPING.findall(expression):
        names = {name.strip() for name in labels.split(",")} | set(re.findall(r"(\w+)\s*=", selectors))
        assert names - FROM_PROMETHEUS <= METRICS[metric]


def test_every_metric_is_on_the_dashboard() -> None:
    shown = " ".join(target["expr"] for panel in panels() for target in panel["targets"])
    assert METRICS.keys() - set(METRIC.findall(shown)) == set()


def test_server_exports_every_metric(edge_server: EdgeServerFactory) -> None:
    families = edge_server().metrics().families
    assert {name for name in METRICS if name.removesuffix("_total") not in families} == set()
    assert {name for name in PROCESS - {"up"} if name.removesuffix("_total") not in families} == set()


def test_every_metric_and_alert_is_described_for_operators() -> None:
    page = (ROOT / "docs" / "operations.md").read_text()
    assert {name for name in METRICS if f"`{name}" not in page} == set()
    assert {rule["alert"] for rule in rules() if f"`{rule['alert']}`" not in page} == set()


def test_alerts_say_what_to_do() -> None:
    for rule in rules():
        assert rule["labels"]["severity"] in ("warning", "critical")
        assert rule["annotations"].keys() == {"summary", "description"}
    assert len({rule["alert"] for rule in rules()}) == len(rules())


@pytest.mark.interop
@pytest.mark.skipif(shutil.which("promtool") is None, reason="no promtool here")
def test_promtool_finds_no_fault() -> None:
    path = DEPLOY / "prometheus" / "prometheus.yml"
    done = subprocess.run(
        ["promtool", "check", "config", str(path)], capture_output=True, text=True, timeout=scaled(60), check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.interop
@pytest.mark.skipif(shutil.which("promtool") is None, reason="no promtool here")
def test_alerts_about_losses_fire_for_what_is_lost_and_for_nothing_else() -> None:
    rules = ROOT / "tests" / "deploy" / "alerts_test.yml"
    done = subprocess.run(
        ["promtool", "test", "rules", str(rules)], capture_output=True, text=True, timeout=scaled(60), check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_scrape_configuration_names_the_rules_and_the_job_the_alerts_know() -> None:
    config = yaml.safe_load((DEPLOY / "prometheus" / "prometheus.yml").read_text())
    assert [DEPLOY / "prometheus" / name for name in config["rule_files"]] == [ALERTS]
    (job,) = config["scrape_configs"]
    assert set(re.findall(r'job="(\w+)"', ALERTS.read_text())) == {job["job_name"]}
    assert job["static_configs"] == [{"targets": ["127.0.0.1:9060"]}]


def test_dashboard_panels_are_whole_and_do_not_overlap() -> None:
    board = json.loads(DASHBOARD.read_text())
    assert len({panel["id"] for panel in board["panels"]}) == len(board["panels"])
    taken: set[tuple[int, int]] = set()
    for panel in board["panels"]:
        place = panel["gridPos"]
        cells = {(place["x"] + x, place["y"] + y) for x in range(place["w"]) for y in range(place["h"])}
        assert not cells & taken, panel["title"]
        assert place["x"] + place["w"] <= 24
        taken |= cells


def test_provisioning_points_at_what_the_dashboard_uses() -> None:
    folder = DEPLOY / "grafana" / "provisioning"
    (source,) = yaml.safe_load((folder / "datasources" / "prometheus.yaml").read_text())["datasources"]
    (provider,) = yaml.safe_load((folder / "dashboards" / "edge.yaml").read_text())["providers"]
    assert source["type"] == "prometheus"
    volumes = yaml.safe_load((DEPLOY / "compose.yaml").read_text())["services"]["grafana"]["volumes"]
    assert f"./grafana/dashboards:{provider['options']['path']}:ro" in volumes
