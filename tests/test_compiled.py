"""Which form of the hot modules is tested: the sources, or with EDGE_TEST_COMPILED=1 what `make` compiled and installed."""

from __future__ import annotations

import importlib
import os
from pathlib import Path

import pytest

from edge.errors import RemoteError
from edge.sip.grammar import split_host_port

HOT = (
    "edge.connections",
    "edge.stream",
    "edge.datagram",
    "edge.sip.core",
    "edge.msrp.handler",
    "edge.auth.digest",
    "edge.outbound.flows",
)


@pytest.mark.parametrize("name", HOT)
def test_the_modules_tested_are_those_that_were_asked_for(name: str) -> None:
    compiled = os.environ.get("EDGE_TEST_COMPILED") == "1"
    assert (Path(importlib.import_module(name).__file__ or "").suffix == ".so") is compiled


@pytest.mark.parametrize("text", [b"[", b"[]", b"[]:5060"])
def test_a_slice_that_ends_before_it_begins_is_empty(text: bytes) -> None:
    with pytest.raises(RemoteError):
        split_host_port(text)
