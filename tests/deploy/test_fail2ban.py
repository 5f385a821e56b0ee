"""deploy/fail2ban: bans the source of a failed login, and never an address that a stranger wrote into a field."""

from __future__ import annotations

import configparser
import ipaddress
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.conftest import ROOT
from tests.ua.wait import scaled

FILTER = ROOT / "deploy" / "fail2ban" / "filter.d" / "sip-msrp-edge.conf"
JAIL = ROOT / "deploy" / "fail2ban" / "jail.d" / "sip-msrp-edge.conf"

# fail2ban's own <HOST>, as far as addresses go.
HOST = r"(?:(?P<ip4>(?:\d{1,3}\.){3}\d{1,3})|\[?(?P<ip6>[0-9a-fA-F]*:[0-9a-fA-F:.]*[0-9a-fA-F])\]?)"

STAMP = "2026-11-20T19:40:42.123+00:00 WARNING "
BANNED = {
    'edge.security auth failed src=203.0.113.7 user="x" reason=wrong_password': "203.0.113.7",
    "edge.security auth failed src=203.0.113.7:40112 user=x reason=unknown_user": "203.0.113.7",
    'edge.security auth failed src=2001:db8::7 user="x" reason=wrong_password': "2001:db8::7",
    'edge.security auth failed src=[2001:db8::8]:5060 user="" reason=wrong_realm': "2001:db8::8",
    'edge.security: auth failed src=203.0.113.9 user="a b" reason=wrong_password': "203.0.113.9",
    'edge.security auth failed src=203.0.113.5 user="edge.security auth failed src=198.51.100.1 " reason=x': "203.0.113.5",
    'edge.security auth failed src=203.0.113.6 user="\\" reason=stale" reason=wrong_password': "203.0.113.6",
}
IGNORED = [
    "edge.security auth failed src=203.0.113.7 user=x reason=stale",
    'edge.security auth failed src=203.0.113.7 user="x" reason=stale',
    'edge.security auth failed src=203.0.113.7 user="" reason=no_credentials',
    'edge.conn closed src=203.0.113.7 reason="edge.security auth failed src=198.51.100.1 "',
    'edge.sip registered src=203.0.113.7 aor="edge.security auth failed src=198.51.100.1 "',
    "edge.security auth failed src=example.com",
]


def option(name: str) -> str:
    """One option of the filter's definition."""
    parser = configparser.RawConfigParser()
    parser.read(FILTER)
    return parser["Definition"][name]


def banned(line: str) -> str | None:
    """The address the filter would ban for a line, as fail2ban applies it (the time is cut out first)."""
    line = line.replace(STAMP, " WARNING ", 1)
    match = re.search(option("failregex").replace("<HOST>", HOST), line)
    if match is None or re.search(option("ignoreregex"), line):
        return None
    return str(ipaddress.ip_address(match["ip4"] or match["ip6"]))


@pytest.mark.parametrize(("line", "address"), BANNED.items())
def test_failed_login_bans_its_source(line: str, address: str) -> None:
    assert banned(STAMP + line) == address
    assert banned(f"myhost edge[4711]: {STAMP}{line}") == address


@pytest.mark.parametrize("line", IGNORED)
def test_other_lines_ban_nobody(line: str) -> None:
    assert banned(STAMP + line) is None


@pytest.mark.interop
@pytest.mark.skipif(shutil.which("fail2ban-regex") is None, reason="no fail2ban-regex here")
def test_fail2ban_agrees(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_text("".join(f"{STAMP}{line}\n" for line in [*BANNED, *IGNORED]))
    done = subprocess.run(
        ["fail2ban-regex", "--out", "ip", str(log), str(FILTER)],
        capture_output=True,
        text=True,
        timeout=scaled(60),
        check=False,
    )
    assert done.stdout.split() == list(BANNED.values()), done.stdout + done.stderr


def test_jail_uses_the_filter() -> None:
    parser = configparser.RawConfigParser()
    parser.read(JAIL)
    (name,) = parser.sections()
    assert parser[name]["filter"] == FILTER.stem
    assert parser[name]["protocol"] == "all"
