"""Two processes: an edge, and behind it a registrar that believes its Path and holds the users."""

from __future__ import annotations

import pytest

from tests.conftest import EdgeServer, EdgeServerFactory
from tests.server.agents import LOOPBACK, USERS, exchange_messages, open_config, sip_ua


@pytest.fixture
def home(edge_server: EdgeServerFactory) -> EdgeServer:
    return edge_server({**open_config(sip={"trusted_edges": LOOPBACK}), "role": "registrar"}, USERS)


@pytest.fixture
def edge(edge_server: EdgeServerFactory, home: EdgeServer) -> EdgeServer:
    next_hop = f"sip:127.0.0.1:{home.port};transport=tcp"
    return edge_server({**open_config(sip={"next_hop": next_hop}), "role": "edge"})


@pytest.mark.parametrize("transport", ["tcp", "tls", "wss"])
async def test_rfc5626_clients_register_through_an_edge_with_the_passwords_of_the_registrar_and_reach_each_other(
    edge: EdgeServer, transport: str
) -> None:
    async with sip_ua(edge, "alice", transport) as alice, sip_ua(edge, "bob", "tcp") as bob:
        assert (await alice.register()).status == 200
        assert (await bob.register()).status == 200
        assert (await exchange_messages(alice, bob)).status == 200
        assert (await exchange_messages(bob, alice)).status == 200
