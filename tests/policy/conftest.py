"""Servers with a policy of a test's own."""

from __future__ import annotations

from collections.abc import Callable
from textwrap import dedent
from typing import Any

import pytest

from tests.conftest import EdgeServer, EdgeServerFactory
from tests.server.agents import USERS, open_config

MODULE = """
import asyncio
from edge.policy import *

class Mine(Policy):
    async_timeout = 1.0

"""
PolicyFactory = Callable[..., EdgeServer]


def write_policy(server: EdgeServer, methods: str) -> None:
    """Put these methods into the policy of a server; they are read at its start and on SIGHUP."""
    (server.directory / "mine.py").write_text(
        MODULE + "".join(f"    {line}\n" for line in dedent(methods).splitlines())
    )


@pytest.fixture
def with_policy(edge_server: EdgeServerFactory) -> PolicyFactory:
    """Start a server whose policy has these methods; other sections of its configuration by name."""

    def make(methods: str, **sections: Any) -> EdgeServer:
        config = {**open_config(), "policy": {"module": "mine:Mine"}, **sections}
        server = edge_server(config, USERS, started=False)
        write_policy(server, methods)
        server.start()
        return server

    return make
