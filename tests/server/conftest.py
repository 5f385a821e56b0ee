"""One server for all tests of a module that need nothing but the usual configuration; room for many sockets."""

from __future__ import annotations

import resource
from collections.abc import Iterator

import pytest

from tests.conftest import EdgeServer
from tests.server.agents import USERS, open_config


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EdgeServer]:
    """A server with `open_config()` and `USERS`; each test uses what it opens itself and counts from where it began."""
    shared = EdgeServer(tmp_path_factory.mktemp("edge"), open_config())
    shared.import_users(USERS)
    shared.start()
    yield shared
    shared.finish()


@pytest.fixture
def many_descriptors() -> Iterator[None]:
    """Let this process open as many sockets as the machine allows."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
