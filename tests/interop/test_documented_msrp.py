"""Kamailio's own examples of MSRP routing and ours, asked the same: the same answers, or a difference that is explained.

Every difference is a row of the table in docs/policy.md; one without a row fails, and so does a row nothing shows.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import ROOT, EdgeServerFactory, free_port
from tests.interop.conftest import LOOPBACK, StartProgram
from tests.interop.conversations import COMMON, EXPIRES, NAMES, PASSWORD, Record, play
from tests.interop.documented import README, read_example
from tests.interop.messaging import chat, endpoint, start_kamailio
from tests.interop.programs import needs
from tests.ua.msrp import MsrpEndpoint

pytestmark = [
    pytest.mark.interop,
    needs("kamailio"),
    pytest.mark.skipif(not README.exists(), reason=f"not installed: {README}"),
]


@dataclass(frozen=True)
class Difference:
    """One line that is not the same: `what` is a header's name, "start", "transaction id", "body" or "frame"."""

    step: str
    who: str
    what: str
    theirs: str
    ours: str


def compare(theirs: Record, ours: Record) -> list[Difference]:
    """Lay the frames of the two records side by side, by what they are and in their order."""
    found: list[Difference] = []
    for place in theirs:
        left, right = _by_kind(theirs[place]), _by_kind(ours[place])
        for kind in sorted({*left, *right}):
            if kind not in left or kind not in right:
                found.append(Difference(*place, "frame", kind if kind in left else "", kind if kind in right else ""))
            else:
                found += [
                    Difference(*place, what, left[kind].get(what, ""), right[kind].get(what, ""))
                    for what in {**left[kind], **right[kind]}
                    if left[kind].get(what) != right[kind].get(what)
                ]
                order = [what for what in left[kind] if what in right[kind]]
                assert order == [what for what in right[kind] if what in left[kind]], f"{place}: another order"
    return found


def _by_kind(frames: list[list[str]]) -> dict[str, dict[str, str]]:
    """Take frames apart; the key says which they are: "response 0", "SEND 1"."""
    found: dict[str, dict[str, str]] = {}
    for lines in frames:
        _, transaction_id, start = lines[0].split(" ", 2)
        word = "response" if start[0].isdigit() else start
        kind = next(name for name in (f"{word} {number}" for number in range(99)) if name not in found)
        head, _, body = "\n".join(lines[1:-1]).partition("\n\n")
        headers = dict(line.split(": ", 1) for line in head.split("\n"))
        assert lines[-1][:-1] == f"-------{transaction_id}"
        found[kind] = {"start": start, "transaction id": transaction_id, **headers, "body": body, "flag": lines[-1][-1]}
    return found


# ------------------------------------------------------------------------------------------ what is explained


def only(step: str) -> Callable[[Difference], bool]:
    return lambda difference: difference.step == step


EXPLAINED: dict[str, Callable[[Difference], bool]] = {
    "challenge": lambda d: (
        d.what == "WWW-Authenticate" and d.theirs and d.ours.endswith('opaque="*", algorithm=MD5, qop="auth"')
    ),
    "proof of the server": lambda d: d.what == "Authentication-Info" and not d.theirs,
    "unknown user": only("AUTH of an unknown user"),
    "transaction id": lambda d: d.what == "transaction id" and d.ours == "new",
    "Message-ID in a response": lambda d: d.what == "Message-ID" and not d.ours,
    "way out": only("SEND to the outside"),
    "no answer wanted": only("SEND without Failure-Report"),
    "third party": only("SEND of a third party"),
    "answer to a REPORT": only("REPORT to an unknown session"),
    "large message": only("SEND of 12,000 octets"),
    "path that ends here": only("SEND whose path ends at the relay"),
    "Expires within bounds": only("AUTH with Expires within bounds"),
}


def explain(difference: Difference) -> str:
    """Name the row that explains a difference; the first one, so the general ones stand in front."""
    for name, fits in EXPLAINED.items():
        if fits(difference):
            return name
    pytest.fail(f"not explained: {difference}")


def test_every_explanation_is_a_row_of_the_guide() -> None:
    guide = (ROOT / "docs" / "policy.md").read_text()
    table = guide.partition("### Where the answers differ")[2].partition("\n## ")[0]
    rows = re.findall(r"^\| ([^|]+) \|[^|]+\|[^|]+\|[^|]+\|$", table, re.MULTILINE)
    assert [row.strip() for row in rows[1:]] == list(EXPLAINED)


# ------------------------------------------------------------------------------------------ the two of them


def start_documented(start: StartProgram, directory: Path, word: str) -> int:
    """Start Kamailio with the example and return its port."""
    port = free_port()
    config = directory / "kamailio.cfg"
    config.write_text(read_example(word).replace("@PORT@", str(port)))
    arguments = ["kamailio", "-DD", "-E", "-f", config, "-P", directory / "kamailio.pid", "-Y", directory, "-m", "64"]
    start("kamailio", arguments).wait_ready(port)
    return port


def start_example(edge_server: EdgeServerFactory, module: str, min_expires: int, max_expires: int) -> int:
    """Start our server with the example and the settings that belong to it, and return its port."""
    config: dict[str, Any] = {
        "domains": ["myrealm"],
        "auth": {"algorithms": ["MD5"]},
        "msrp": {
            "require_tls": False,
            "allow_targets": LOOPBACK,
            "min_expires": min_expires,
            "default_expires": 3600,
            "max_expires": max_expires,
        },
        "limits": {"trusted": LOOPBACK},
        "policy": {"module": module},
    }
    users = {f"{name}@myrealm": PASSWORD for name in NAMES if name != "mallory"}
    server = edge_server(config, users, started=False)
    shutil.copy(ROOT / "docs" / "examples" / f"{module.partition(':')[0]}.py", server.directory)
    server.start()
    return server.port


@pytest.mark.parametrize(
    ("word", "module", "bounds", "not_shown"),
    [
        ("htable", "msrp_htable:Htable", (60, 86400), {"answer to a REPORT"}),  # the bounds are the policy's own
        (
            "cmap",
            "msrp_cmap:Cmap",
            (1800, 3600),
            {"Expires within bounds"},
        ),  # its AUTH with Expires is never answered by Kamailio
    ],
)
async def test_the_same_conversations_get_the_same_answers(
    word: str,
    module: str,
    bounds: tuple[int, int],
    not_shown: set[str],
    start: StartProgram,
    edge_server: EdgeServerFactory,
    tmp_path: Path,
) -> None:
    steps = {**COMMON, **(EXPIRES if word == "htable" else {})}
    theirs = await play(start_documented(start, tmp_path, word), steps)
    ours = await play(start_example(edge_server, module, *bounds), steps)
    assert sum(map(len, ours.values())) > 20
    explained = {explain(difference) for difference in compare(theirs, ours)}
    assert explained == EXPLAINED.keys() - not_shown


@pytest.mark.parametrize("module", ["msrp_htable:Htable", "msrp_cmap:Cmap"])
async def test_the_examples_relay_a_chat_with_kamailio_as_the_second_relay(
    module: str, start: StartProgram, edge_server: EdgeServerFactory, tmp_path: Path
) -> None:
    port, second = start_example(edge_server, module, 60, 86400), free_port()
    start_kamailio(start, tmp_path, second, port)
    async with MsrpEndpoint("alice", PASSWORD, relay=("127.0.0.1", port)) as alice, endpoint("bob", second) as bob:
        bob.algorithms = ("MD5",)
        await alice.auth()
        await bob.auth()
        await chat(alice, bob)
