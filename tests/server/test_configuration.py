"""A server that cannot start says why in one line, names file, key and reason, and leaves nothing behind."""

from __future__ import annotations

import socket
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conftest import EdgeServer, EdgeServerFactory
from tests.ua.certs import Authority

Prepare = Callable[[EdgeServer, Path], dict[str, object]]


def wrong_key(server: EdgeServer, folder: Path) -> dict[str, object]:
    return {"sip": {"max_expirs": 60}}


def wrong_value(server: EdgeServer, folder: Path) -> dict[str, object]:
    return {"limits": {"idle_timeout": "soon"}}


def missing_certificate(server: EdgeServer, folder: Path) -> dict[str, object]:
    return {"tls": {"certificate": "nowhere.crt", "private_key": "nowhere.key"}}


def broken_certificate(server: EdgeServer, folder: Path) -> dict[str, object]:
    (folder / "broken.crt").write_text("-----BEGIN CERTIFICATE-----\nno\n")
    key = Authority(folder / "ca").issue("one", dns=["example.com"]).private_key
    return {"tls": {"certificate": "broken.crt", "private_key": str(key)}}


def key_of_another(server: EdgeServer, folder: Path) -> dict[str, object]:
    authority = Authority(folder / "ca")
    one, other = authority.issue("one", dns=["example.com"]), authority.issue("other", dns=["example.com"])
    return {"tls": {"certificate": str(one.certificate), "private_key": str(other.private_key)}}


def no_database(server: EdgeServer, folder: Path) -> dict[str, object]:
    return {"storage": {"url": f"sqlite:///{folder}/no/such/folder/edge.db"}}


@pytest.mark.parametrize(
    ("prepare", "key", "reason"),
    [
        (wrong_key, "sip.max_expirs", 'unknown key; did you mean "max_expires"?'),
        (wrong_value, "limits.idle_timeout", "expected"),
        (missing_certificate, "tls.certificate", "cannot read nowhere.crt: No such file or directory"),
        (broken_certificate, "tls.certificate", "broken.crt"),
        (key_of_another, "tls.private_key", "other.key"),
        (no_database, "storage.url", "no/such/folder/edge.db: No such file or directory"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_a_configuration_that_cannot_be_used_is_one_line_and_exit_2(
    edge_server: EdgeServerFactory, prepare: Prepare, key: str, reason: str
) -> None:
    server = edge_server(started=False)
    server.write_config(prepare(server, server.directory))
    one_line(server.run("serve", "--config", str(server.config_path), check=False), server, key, reason)


def one_line(done: subprocess.CompletedProcess[str], server: EdgeServer, key: str, reason: str) -> None:
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert line.startswith(f"edge: {server.config_path}: {key}: ")
    assert reason in line
    assert "Traceback" not in done.stdout + done.stderr


@pytest.mark.requirement("SIP-TRP-12")
@pytest.mark.parametrize("kind", [socket.SOCK_STREAM, socket.SOCK_DGRAM], ids=["tcp", "udp"])
def test_a_port_in_use_is_one_line_and_exit_2(edge_server: EdgeServerFactory, kind: socket.SocketKind) -> None:
    server = edge_server(started=False)
    with socket.socket(socket.AF_INET, kind) as taken:
        taken.bind(("127.0.0.1", server.port))
        if kind is socket.SOCK_STREAM:
            taken.listen()
        done = server.run("serve", "--config", str(server.config_path), check=False)
    one_line(done, server, "listen[0].bind", f"cannot listen on 127.0.0.1:{server.port}: Address already in use")
    assert not (server.directory / "edge.db").exists()


def test_an_admin_port_in_use_is_one_line_and_exit_2(edge_server: EdgeServerFactory) -> None:
    server = edge_server(started=False)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", server.admin_port))
        taken.listen()
        done = server.run("serve", "--config", str(server.config_path), check=False)
    assert done.returncode == 2
    assert f"{server.config_path}: admin.bind: " in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stdout + done.stderr
