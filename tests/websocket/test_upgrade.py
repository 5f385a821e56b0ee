"""The opening handshake: RFC 6455 §4.2, RFC 7118 §4.1, RFC 7977 §4.1; outbound.md E12, msrp.md E18."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge.demux import Protocol, StreamSniffer
from edge.websocket import Refusal, Upgrade, UpgradeRules, WebSocketUpgrade

E12 = (
    b"GET /sip HTTP/1.1\r\n"
    b"Host: e1.calm.example\r\n"
    b"Upgrade: websocket\r\n"
    b"Connection: Upgrade\r\n"
    b"Sec-WebSocket-Key: X6Wu7PtnC0IO47UX/cACKw==\r\n"
    b"Sec-WebSocket-Version: 13\r\n"
    b"Sec-WebSocket-Protocol: msrp, sip\r\n"
    b"Origin: https://app.calm.example\r\n\r\n"
)
E12_ANSWER = (
    b"HTTP/1.1 101 Switching Protocols\r\n"
    b"Upgrade: websocket\r\n"
    b"Connection: Upgrade\r\n"
    b"Sec-WebSocket-Accept: D48mVZ6VLjbGD+Uce3pB5tFxiZA=\r\n"
    b"Sec-WebSocket-Protocol: sip\r\n\r\n"
)
E18 = (
    b"GET / HTTP/1.1\r\n"
    b"Host: edge.loom.example\r\n"
    b"Upgrade: websocket\r\n"
    b"Connection: Upgrade\r\n"
    b"Sec-WebSocket-Key: bG9vbS1lZGdlLWtleS0wMQ==\r\n"
    b"Origin: https://app.loom.example\r\n"
    b"Sec-WebSocket-Protocol: msrp\r\n"
    b"Sec-WebSocket-Version: 13\r\n\r\n"
)
E18_ANSWER = (
    b"HTTP/1.1 101 Switching Protocols\r\n"
    b"Upgrade: websocket\r\n"
    b"Connection: Upgrade\r\n"
    b"Sec-WebSocket-Accept: 4kuriw8JckkEPWFOS7+e+ycEKyM=\r\n"
    b"Sec-WebSocket-Protocol: msrp\r\n"
    b"Access-Control-Allow-Origin: https://app.loom.example\r\n\r\n"
)


def shake(request: bytes, rules: UpgradeRules | None = None, *, secure: bool = True) -> Upgrade:
    upgrade = WebSocketUpgrade(rules or UpgradeRules(), secure=secure).receive_data(request)
    assert upgrade is not None
    if upgrade.accepted is None:
        assert upgrade.response.startswith(b"HTTP/1.1 %d " % upgrade.status)
        assert b"\r\nConnection: close" in upgrade.response
        head, _, body = upgrade.response.partition(b"\r\n\r\n")
        assert b"\r\nContent-Length: %d\r\n" % len(body) in head
    return upgrade


def change(old: bytes, new: bytes, request: bytes = E12) -> bytes:
    assert request.count(old) == 1
    return request.replace(old, new)


@pytest.mark.requirement("OB-WS-01", "SIP-WSS-02")
def test_e12_byte_for_byte_on_a_path_that_is_sip_only() -> None:
    upgrade = shake(E12)
    assert upgrade.response == E12_ANSWER
    assert upgrade.accepted is not None
    assert (upgrade.accepted.subprotocol, upgrade.accepted.path, upgrade.rest) == ("sip", "/sip", b"")


@pytest.mark.requirement("MSRP-WS-01", "MSRP-WS-10")
def test_e18_byte_for_byte_with_a_list_of_origins() -> None:
    assert shake(E18, UpgradeRules(origins=("https://app.loom.example",))).response == E18_ANSWER


@pytest.mark.requirement("SIP-WSS-01")
def test_rfc6455_1_3_key_and_accept() -> None:
    request = change(b"X6Wu7PtnC0IO47UX/cACKw==", b"dGhlIHNhbXBsZSBub25jZQ==")
    assert b"\r\nSec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n" in shake(request).response


@pytest.mark.parametrize("cut", [1, 3, 50])
def test_the_request_may_come_in_pieces(cut: int) -> None:
    upgrade, decisions = WebSocketUpgrade(UpgradeRules(), secure=True), []
    for start in range(0, len(E12), cut):
        decisions.append(upgrade.receive_data(E12[start : start + cut]))
    assert [d for d in decisions if d] == [decisions[-1]]
    assert decisions[-1] is not None
    assert decisions[-1].response == E12_ANSWER


def test_octets_behind_the_request_are_kept_for_the_stream() -> None:
    assert shake(E12 + b"\x81\x80abcd").rest == b"\x81\x80abcd"


# -- subprotocols


@pytest.mark.requirement("OB-WS-01", "MSRP-WS-01", "SIP-WSS-02")
@pytest.mark.parametrize(
    "path, offered, served, chosen",
    [
        (b"/", b"msrp, sip", ("sip", "msrp"), "msrp"),
        (b"/", b"sip, msrp", ("sip", "msrp"), "sip"),
        (b"/", b"sip,msrp", ("msrp",), "msrp"),
        (b"/chat?token=7", b"xmpp, sip", ("sip", "msrp"), "sip"),
        (b"/sip", b"msrp, sip", ("sip", "msrp"), "sip"),
        (b"/msrp?x", b"sip, msrp", ("sip", "msrp"), "msrp"),
        (b"/", b"sip\r\nSec-WebSocket-Protocol: msrp", ("sip", "msrp"), "sip"),
    ],
)
def test_the_first_of_the_client_that_is_served_here_is_chosen(
    path: bytes, offered: bytes, served: tuple[str, ...], chosen: str
) -> None:
    request = change(b"/sip HTTP", path + b" HTTP")
    upgrade = shake(change(b"msrp, sip", offered, request), UpgradeRules(subprotocols=served))
    assert upgrade.response.endswith(b"\r\nSec-WebSocket-Protocol: " + chosen.encode() + b"\r\n\r\n")
    assert upgrade.accepted is not None
    assert upgrade.accepted.subprotocol == chosen


@pytest.mark.requirement("OB-WS-01", "MSRP-WS-01", "SIP-WSS-02")
@pytest.mark.parametrize("offered", [b"sipx", b"xmsrp", b"chat", b"SIP", b"sip msrp", b"msrp;sip"])
def test_no_common_subprotocol_gives_400(offered: bytes) -> None:
    assert shake(change(b"msrp, sip", offered)).status == 400


@pytest.mark.requirement("OB-WS-01", "MSRP-WS-01", "SIP-WSS-02")
def test_none_offered_or_not_enabled_gives_400() -> None:
    assert shake(change(b"Sec-WebSocket-Protocol: msrp, sip\r\n", b"")).status == 400
    assert shake(E12, UpgradeRules(subprotocols=("msrp",))).status == 400


@pytest.mark.requirement("MSRP-WS-02")
def test_msrp_without_tls_gives_403_unless_allowed() -> None:
    rules = UpgradeRules(tls_only=("msrp",))
    assert shake(E18, rules, secure=False).status == 403
    assert shake(E18, rules, secure=True).status == 101
    assert shake(E18, UpgradeRules(), secure=False).status == 101
    both = shake(change(b"/sip HTTP", b"/ HTTP"), rules, secure=False)
    assert both.accepted is not None
    assert both.accepted.subprotocol == "sip"


@pytest.mark.requirement("MSRP-WS-13")
def test_compression_is_declined() -> None:
    request = change(b"\r\n\r\n", b"\r\nSec-WebSocket-Extensions: permessage-deflate; client_max_window_bits\r\n\r\n")
    assert shake(request).response == E12_ANSWER


# -- what is wrong with it


@pytest.mark.requirement("SIP-WSS-01")
@pytest.mark.parametrize(
    "old, new, status",
    [
        (b"GET", b"POST", 405),
        (b"GET", b"OPTIONS", 405),
        (b"HTTP/1.1", b"HTTP/1.0", 400),
        (b"Host: e1.calm.example\r\n", b"", 400),
        (b"Host: e1.calm.example\r\n", b"Host: a\r\nHost: b\r\n", 400),
        (b"Upgrade: websocket\r\n", b"", 400),
        (b"Upgrade: websocket\r\n", b"Upgrade: h2c\r\n", 400),
        (b"Connection: Upgrade\r\n", b"", 400),
        (b"Connection: Upgrade\r\n", b"Connection: keep-alive\r\n", 400),
        (b"Sec-WebSocket-Key: X6Wu7PtnC0IO47UX/cACKw==\r\n", b"", 400),
        (b"X6Wu7PtnC0IO47UX/cACKw==", b"X6Wu7PtnC0IO47UX/cAC", 400),
        (b"X6Wu7PtnC0IO47UX/cACKw==", b"!!!", 400),
        (b"Sec-WebSocket-Version: 13\r\n", b"", 400),
        (b"Sec-WebSocket-Version: 13\r\n", b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Version: 13\r\n", 400),
        (b"Sec-WebSocket-Version: 13\r\n", b"Sec-WebSocket-Version: 8\r\n", 426),
        (b"GET /sip", b"GET sip", 400),
        (b"GET /sip", b"GET  /sip", 400),
        (b"GET /sip", b"GET /s\xc3\xbc", 400),
        (b"Origin: ", b"Bad Name: ", 400),
        (b"Origin: ", b"Content-Length: 5\r\nOrigin: ", 400),
    ],
)
def test_a_bad_handshake_is_refused(old: bytes, new: bytes, status: int) -> None:
    upgrade = shake(change(old, new) if E12.count(old) == 1 else E12.replace(old, new, 1))
    assert (upgrade.status, upgrade.accepted) == (status, None)


@pytest.mark.requirement("SIP-WSS-01")
def test_rfc6455_4_4_another_version_is_told_ours() -> None:
    response = shake(change(b"Version: 13", b"Version: 8")).response
    assert b"\r\nSec-WebSocket-Version: 13\r\n" in response
    assert b"\r\nUpgrade: websocket\r\n" in response
    assert b"\r\nConnection: close, Upgrade\r\n" in response


def test_connection_and_upgrade_are_lists_without_case() -> None:
    request = change(b"Connection: Upgrade", b"Connection: keep-alive, uPGRADE")
    assert shake(change(b"Upgrade: websocket", b"Upgrade: WebSocket", request)).status == 101


@pytest.mark.requirement("SIP-DMX-03")
@pytest.mark.parametrize(
    "line, status",
    [
        (b"OPTIONS * HTTP/1.1", 405),
        (b"PUT /x HTTP/1.1", 405),
        (b"GET / HTTP/1.1", 426),
        (b"GET / HTTP/1.0", 426),
        (b"GET /favicon.ico HTTP/1.1", 404),
    ],
)
def test_other_http_is_answered_and_the_same_methods_in_sip_are_not_http(line: bytes, status: int) -> None:
    request = line + b"\r\nHost: e1.calm.example\r\n\r\n"
    decision = StreamSniffer().receive_data(request, 0.0)
    assert decision is not None
    assert decision.protocol is Protocol.HTTP
    assert shake(decision.data).status == status
    method = line.split(b" ")[0]
    decision = StreamSniffer().receive_data(method + b" sip:calm.example SIP/2.0\r\n", 0.0)
    assert decision is not None
    assert decision.protocol is Protocol.SIP


def test_405_names_the_method() -> None:
    assert b"\r\nAllow: GET\r\n" in shake(b"POST / HTTP/1.1\r\nHost: e1\r\nContent-Length: 3\r\n\r\nabc").response


def test_a_request_has_8_kib_and_no_bare_lf() -> None:
    upgrade = WebSocketUpgrade(UpgradeRules(), secure=True)
    assert upgrade.receive_data(b"GET / HTTP/1.1\r\nX: " + b"x" * 8000) is None
    refused = upgrade.receive_data(b"x" * 300)
    assert refused is not None
    assert refused.status == 400
    assert shake(change(b"Origin: ", b"X: " + b"x" * 9000 + b"\r\nOrigin: ")).status == 400
    assert shake(E12.replace(b"\r\n", b"\n")).status == 400


# -- origin and hook


@pytest.mark.requirement("SIP-WSS-05", "MSRP-WS-10")
def test_a_foreign_origin_gives_403() -> None:
    rules = UpgradeRules(origins=("https://app.calm.example",))
    refused = shake(change(b"https://app.calm.example", b"https://evil.example"), rules)
    assert refused.status == 403
    assert b"Access-Control-Allow-Origin" not in refused.response
    assert b"\r\nAccess-Control-Allow-Origin: https://app.calm.example\r\n" in shake(E12, rules).response
    native = shake(change(b"Origin: https://app.calm.example\r\n", b""), rules)
    assert native.status == 101
    assert b"Access-Control" not in native.response
    assert b"Access-Control" not in shake(E12).response


def test_rfc7118_7_who_decides_sees_the_request_and_may_refuse_it() -> None:
    upgrade = shake(change(b"GET /sip", b"GET /sip?room=7"))
    wanted = upgrade.accepted
    assert wanted is not None
    assert (wanted.path, wanted.query, wanted.origin) == ("/sip", "room=7", "https://app.calm.example")
    asked = upgrade.refused(Refusal(401, (("WWW-Authenticate", 'Basic realm="calm"'),)))
    assert (asked.status, asked.accepted) == (401, None)
    assert asked.response.startswith(b"HTTP/1.1 401 ")
    assert b'\r\nWWW-Authenticate: Basic realm="calm"\r\n' in asked.response
    assert shake(E12, UpgradeRules(closed=True)).status == 403


@given(st.binary(max_size=300))
def test_any_request_is_answered(noise: bytes) -> None:
    for data in (
        b"GET /" + noise + b"\r\n\r\n",
        E12[:-4] + b"\r\n" + noise + b"\r\n\r\n",
        noise + b" HTTP/1.1\r\n\r\n",
    ):
        upgrade = WebSocketUpgrade(UpgradeRules(), secure=True).receive_data(data)
        assert upgrade is not None
        assert upgrade.response.startswith(b"HTTP/1.1 ")
