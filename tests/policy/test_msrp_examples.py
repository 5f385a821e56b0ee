"""docs/examples/msrp_htable.py in the running server: its table. What it answers: tests/interop/test_documented_msrp.py."""

from __future__ import annotations

import shutil

import pytest

from tests.conftest import ROOT, EdgeServerFactory
from tests.server.agents import USERS, counted, msrp_client, open_config
from tests.ua.msrp import AuthFailed

MODULE = """
from msrp_htable import Htable

class Mine(Htable):
    def ended(self, what):
        before = len(self.last_source)
        super().ended(what)
        what.count(f"from_{before}_to_{len(self.last_source)}")
"""


async def test_the_table_forgets_each_session_that_ends(edge_server: EdgeServerFactory) -> None:
    server = edge_server({**open_config(), "policy": {"module": "mine:Mine"}}, USERS, started=False)
    shutil.copy(ROOT / "docs" / "examples" / "msrp_htable.py", server.directory)
    (server.directory / "mine.py").write_text(MODULE)
    server.start()
    async with msrp_client(server, "alice", "tcp") as alice, msrp_client(server, "bob", "tcp") as bob:
        await alice.auth()
        await bob.auth()
        for one, other in ((alice, bob), (bob, alice)):
            for _ in range(2):
                assert (await one.send([*one.use_path, *other.path], b"hello")).ok
        with pytest.raises(AuthFailed) as refused:
            await alice.auth(headers=[("Expires", "soon")])
        assert refused.value.status == 400  # the server's own answer to what is no number
    for label in ("from_2_to_1", "from_1_to_0"):
        assert await counted(server, "edge_policy_counts_total", label=label) == 1
