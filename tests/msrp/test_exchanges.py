"""The worked exchanges of the requirements, byte for byte; ids, session ids and nonces come from a script."""

from __future__ import annotations

import pytest

from edge.connections import Transport
from tests.msrp.recorder import GT, MINA, NORA, PABLO, TARIQ, XM, XN, Bench, E, Recorder, ScriptedNonces

LOOM = b"loom.example"


def enrolling(opaque: str, nonces: list[str], algorithms: tuple[str, ...] = ("MD5",), **options: object) -> Bench:
    script = ScriptedNonces(LOOM, algorithms, opaque.encode(), [nonce.encode() for nonce in nonces])
    return Bench(nonces=script, algorithms=algorithms, **options)  # type: ignore[arg-type]


def nora_and_pablo(*ids: str) -> tuple[Bench, Recorder, Recorder]:
    """Nora owns XN; Pablo is connected already, or is dialled when she sends first."""
    bench = Bench(ids=ids)
    nora = bench.connect()
    bench.open(nora, XN, NORA)
    return bench, nora, bench.connect()


@pytest.mark.requirement("MSRP-AUTH-03", "MSRP-AUTH-18", "MSRP-AUTH-10", "MSRP-AUTH-04")
def test_e1_challenge_and_use_path() -> None:
    bench = enrolling(
        "5f1d0c7ae2b94836", ["MTc2MzY1-8c41e9d2b7f0", "MTc2MzY2-17aa60f4c93e"],
        session_ids=["Ub3nWq8ZkT1xY5cRm7VdHg"], next_nonce=True,
    )  # fmt: skip
    nora = bench.connect()
    nora.receive(E["E1.1"])
    assert nora.take() == E["E1.2"]
    nora.receive(E["E1.3"])
    assert nora.take() == E["E1.4"]


@pytest.mark.requirement("MSRP-AUTH-06", "MSRP-AUTH-12", "MSRP-AUTH-24")
def test_e2_two_challenges_answered_with_sha_256() -> None:
    bench = enrolling(
        "9e3077c1aa504bd2", ["MTc2MzY3-b02c5517de84"], ("SHA-256", "MD5"), session_ids=["V6dKe1oMx9Qa3Tz8Bs5LwF"]
    )
    nora = bench.connect()
    bench.open(nora, XN, NORA)
    nora.receive(E["E2.1"])
    assert nora.take() == E["E2.2"]
    nora.receive(E["E2.3"])
    assert nora.take() == E["E2.4"]
    assert len(bench.relay.table) == 2


@pytest.mark.requirement("MSRP-AUTH-15")
def test_e3_a_repeated_nonce_count_is_stale() -> None:
    script = ["MTc2MzY1-8c41e9d2b7f0", "MTc2MzY2-17aa60f4c93e", "MTc2MzY4-3d9f0ab64c21"]
    bench = enrolling("5f1d0c7ae2b94836", script, next_nonce=True)
    nora = bench.connect()
    nora.receive(E["E1.1"] + E["E1.3"])
    nora.take()
    nora.receive(E["E3.1"])
    # Every challenge of the examples has its own opaque; ours is the same while the relay runs.
    assert nora.take() == E["E3.2"].replace(b"c07b51e8d2f34a96", b"5f1d0c7ae2b94836")
    assert len(bench.relay.table) == 1


@pytest.mark.requirement("MSRP-AUTH-13")
def test_e3_a_wrong_password_is_challenged_without_stale() -> None:
    bench = enrolling("c07b51e8d2f34a96", ["MTc2MzY5-e6127cb830fd"])
    nora = bench.connect()
    nora.receive(E["E3.3"])
    assert nora.take() == E["E3.4"].replace(b"18d4e6b09c7f2a35", b"c07b51e8d2f34a96")


@pytest.mark.requirement("MSRP-AUTH-22", "MSRP-RESP-08")
def test_e4_expires_out_of_bounds() -> None:
    bench = enrolling("18d4e6b09c7f2a35", [])
    nora = bench.connect()
    nora.receive(E["E4.1"])
    assert nora.take() == E["E4.2"]
    nora.receive(E["E4.3"])
    assert nora.take() == E["E4.4"]
    assert len(bench.relay.table) == 0


@pytest.mark.requirement("MSRP-AUTH-26", "MSRP-AUTH-27", "MSRP-RESP-14")
def test_e5_auth_to_a_second_relay_through_the_first() -> None:
    bench = Bench(ids=["6f0c92ab4d17e835", "c3b8e05f719a2d64"])
    nora = bench.connect()
    bench.open(nora, XN, NORA)
    nora.receive(E["E5.1"])
    (gate,) = bench.dialled
    assert (gate.secure, gate.host, gate.port) == (True, "gate.fjord.example", 0)
    assert gate.connection.take() == E["E5.2"]
    gate.connection.receive(E["E5.3"])
    assert nora.take() == E["E5.4"]
    nora.receive(E["E5.5"])
    assert gate.connection.take() == E["E5.6"]
    gate.connection.receive(E["E5.7"])
    assert nora.take() == E["E5.8"]


@pytest.mark.requirement("MSRP-AUTH-25", "MSRP-AUTH-31")
def test_e5_as_the_second_relay_seen() -> None:
    nonces = ScriptedNonces(b"fjord.example", ("MD5",), b"7a90b3c1d2e4f586", [b"Z2F0ZS0wMS4x-70be21f5"])
    gate = Bench(
        nonces=nonces, algorithms=("MD5",), realm="fjord.example", name="gate.fjord.example",
        passwords={"nora": "salt-river-7"}, session_ids=["eC4uHs9wPj2kQz6RbA1oMt"],
    )  # fmt: skip
    edge = gate.connect(identities=("edge.loom.example",))
    edge.receive(E["E5.2"])
    assert edge.take() == E["E5.3"]
    edge.receive(E["E5.6"])
    assert edge.take() == E["E5.7"]


@pytest.mark.requirement("MSRP-SEND-03", "MSRP-SEND-06", "MSRP-SEND-07", "MSRP-CON-04", "MSRP-RESP-01")
def test_e6_send_in_both_directions() -> None:
    bench = Bench(ids=["1d7e60b9c4f2a853", "8a25f3d07be1964c"])
    nora = bench.connect()
    bench.open(nora, XN, NORA)
    nora.receive(E["E6.1"])
    assert nora.take() == E["E6.2"]
    (pablo,) = (dialled.connection for dialled in bench.dialled)
    assert pablo.take() == E["E6.3"]
    pablo.receive(E["E6.4"])
    pablo.receive(E["E6.5"])
    assert pablo.take() == E["E6.6"]
    assert nora.take() == E["E6.7"]
    nora.receive(E["E6.8"])
    assert nora.take() == b""
    assert len(bench.dialled) == 1


@pytest.mark.requirement("MSRP-SEND-05", "MSRP-RPT-01")
def test_e7_through_two_relays_and_the_report_back() -> None:
    edge = Bench(ids=["b94c07de21f85a63", "27d9c6f1803bea54"])
    gate = Bench(ids=["40e7a1c95d3b8f26", "e15f8b30a7c4d962"], name="gate.fjord.example")
    nora, tariq, gate_side = edge.connect(), gate.connect(), gate.connect()
    edge.open(nora, XN, NORA)
    gate.open(tariq, GT, TARIQ)
    nora.receive(E["E7.1"])
    assert nora.take() == E["E7.2"]
    edge_side = edge.dialled[0].connection
    assert edge_side.take() == E["E7.3"]
    gate_side.receive(E["E7.3"])
    assert gate_side.take() == E["E7.4"]
    edge_side.receive(E["E7.4"])
    assert tariq.take() == E["E7.5"]
    tariq.receive(E["E7.6"])
    assert tariq.take() == b""
    tariq.receive(E["E7.7"])
    assert tariq.take() == b""
    assert gate_side.take() == E["E7.8"]
    edge_side.receive(E["E7.8"])
    assert nora.take() == E["E7.9"]
    assert edge_side.take() == b""


@pytest.mark.requirement("MSRP-RPT-04", "MSRP-RPT-08")
def test_e8_a_refusal_after_our_200_becomes_a_report() -> None:
    gate = Bench(ids=["f60b29d4a8c7135e", "0a93d7e51bc8f462"], name="gate.fjord.example")
    tariq, edge_side = gate.connect(), gate.connect()
    gate.open(tariq, GT, TARIQ)
    sent = E["E8.1"].replace(b"f60b29d4a8c7135e", b"edge0008")
    incoming = sent.replace(f"To-Path: {TARIQ}".encode(), f"To-Path: {GT} {TARIQ}".encode())
    edge_side.receive(incoming.replace(f"From-Path: {GT} ".encode(), b"From-Path: "))
    assert b"200 OK" in edge_side.take()
    assert tariq.take() == E["E8.1"]
    tariq.receive(E["E8.2"])
    assert edge_side.take() == E["E8.3"]

    edge = Bench(ids=["93f4b7210ce5a8d6"])
    nora = edge.connect()
    session = edge.open(nora, XN, NORA)
    link = edge.connect()
    link.receive(E["E8.3"])
    assert nora.take() == E["E8.4"]
    assert link.take() == b""
    assert session.far


@pytest.mark.requirement("MSRP-RPT-05", "MSRP-TMR-02")
def test_e9_thirty_seconds_of_silence() -> None:
    bench = Bench(ids=["ab5e1709fd42c836", "7e20c8f3b596d14a"])
    nora = bench.connect()
    bench.open(nora, XN, NORA)
    nora.receive(E["E9.1"])
    assert b" 200 OK\r\n" in nora.take()
    pablo = bench.dialled[0].connection
    assert pablo.take() == E["E9.2"]
    bench.advance(29.5)
    assert nora.take() == b""
    bench.advance(2)
    assert nora.take() == E["E9.3"]
    pablo.receive(E["E6.4"].replace(b"1d7e60b9c4f2a853", b"ab5e1709fd42c836"))
    bench.advance(60)
    assert nora.take() == b""


@pytest.mark.requirement("MSRP-RPT-06", "MSRP-RPT-07", "MSRP-CHK-15", "MSRP-RESP-05")
def test_e10_next_hop_lost_in_the_middle_of_a_chunk() -> None:
    bench = Bench(ids=["c27f95d0e81b463a", "d81e4c06a97b352f"])
    nora = bench.connect()
    bench.open(nora, XN, NORA)
    nora.receive(E["E10.1"])
    assert nora.take().startswith(b"MSRP o1N2y7ojh1Xrk 200 OK\r\n")
    pablo = bench.dialled[0].connection
    assert pablo.take() == E["E10.2"]
    pablo.drain()  # it is up
    at = E["E10.5"].index(b"\r\n\r\n") + 4 + 1000
    nora.receive(E["E10.5"][:at])
    pablo.close("reset")
    assert nora.take() == E["E10.3"] + E["E10.4"]
    nora.receive(E["E10.5"][at:])
    assert nora.take() == b""
    assert len(bench.dialled) == 1


@pytest.mark.requirement("MSRP-WS-06", "MSRP-BIND-07", "MSRP-CHK-03", "MSRP-RPT-03")
def test_e11_a_big_chunk_becomes_three_websocket_messages() -> None:
    bench = Bench(ids=["9b06e4d2c17f8a35", "a417f5e3d2809b46", "b52806f4e391ac57", "f3a81d96c05e7b24"])
    nora, mina = bench.connect(), bench.connect(Transport.WSS)
    bench.open(nora, XN, NORA)
    bench.open(mina, XM, MINA, user="mina")
    nora.receive(E["E11.1"])
    assert nora.take() == E["E11.2"]
    assert mina.messages() == [E["E11.3"], E["E11.5"], E["E11.7"]]
    for name in ("E11.4", "E11.6", "E11.8"):
        mina.receive(E[name])
    assert not mina.messages()
    mina.receive(E["E11.9"])
    assert nora.take() == E["E11.10"]
    assert not mina.messages()


@pytest.mark.requirement("MSRP-CHK-10", "MSRP-FLOW-04")
def test_e12_a_chunk_is_cut_for_an_answer_and_goes_on() -> None:
    bench = Bench(ids=["e90b37f5c2d8a146", "0d86f2a4b7c9e513"], share_links=True)
    nora, other = bench.connect(), bench.connect()
    bench.open(nora, XN, NORA)
    bench.open(
        other, "msrps://edge.loom.example:2855/Dk3VgP8aZo6TfM1jXe5WnS;tcp", "msrps://192.0.2.99:1/o;tcp", user="o"
    )
    pieces = [body_of(E["E12.1"]), body_of(E["E12.3"])]
    head = E["E12.1"][: E["E12.1"].index(b"\r\n\r\n") + 4]
    head = head.replace(b"e90b37f5c2d8a146", b"nora0012")
    head = head.replace(f"To-Path: {GT}".encode(), f"To-Path: {XN} {GT}".encode())
    head = head.replace(f"From-Path: {XN} ".encode(), b"From-Path: ")
    nora.receive(head + pieces[0] + pieces[1][:1])
    gate = bench.dialled[0].connection
    mine = "msrps://edge.loom.example:2855/Dk3VgP8aZo6TfM1jXe5WnS;tcp"
    theirs = "msrps://gate.fjord.example:2855/Yt7RbE4kJm0NwC9xHs2UqL;tcp"
    gate.receive(
        f"MSRP 5a0d7c93e1b8f264 SEND\r\nTo-Path: {mine} msrps://192.0.2.99:1/o;tcp\r\nFrom-Path: {theirs}\r\n"
        "Message-ID: x\r\nByte-Range: 1-1/1\r\nContent-Type: text/plain\r\n\r\nx\r\n-------5a0d7c93e1b8f264$\r\n".encode()
    )
    assert gate.take() == E["E12.1"] + E["E12.2"]
    nora.receive(pieces[1][1:] + b"\r\n-------nora0012$\r\n")
    assert body_of(gate.take()) == pieces[1]
    assert nora.take().count(b" 200 OK\r\n") == 1


def body_of(frame: bytes) -> bytes:
    return frame[frame.index(b"\r\n\r\n") + 4 : frame.rindex(b"\r\n-------")]


@pytest.mark.requirement("MSRP-SEND-09", "MSRP-CHK-13")
def test_e13_the_sender_gives_up() -> None:
    bench, nora, _ = nora_and_pablo("18c5e7f902bd4a63")
    nora.receive(E["E13.1"])
    assert nora.take() == E["E13.2"]
    assert bench.dialled[0].connection.take() == E["E13.3"]


@pytest.mark.requirement("MSRP-SEND-02", "MSRP-RESP-09", "MSRP-RPT-02")
def test_e14_unknown_session() -> None:
    _, nora, pablo = nora_and_pablo()
    pablo.receive(E["E14.1"])
    assert pablo.take() == E["E14.2"]
    pablo.receive(E["E14.3"] + E["E14.4"])
    assert pablo.take() == b""
    assert nora.take() == b""
    assert not pablo.closed


@pytest.mark.requirement("MSRP-BIND-08", "MSRP-RESP-11")
def test_e15_bound_to_another_connection() -> None:
    bench, nora, pablo = nora_and_pablo()
    pablo.receive(E["E6.5"])
    nora.take()
    stranger = bench.connect()
    stranger.receive(E["E15.1"])
    assert stranger.take() == E["E15.2"]
    assert nora.take() == b""


@pytest.mark.requirement("MSRP-SEND-08")
def test_e16_partial() -> None:
    bench, nora, _ = nora_and_pablo("29d6f80a13ce5b74", "3ae7091b24df6c85")
    nora.receive(E["E16.1"])
    assert nora.take() == b""
    pablo = bench.dialled[0].connection
    assert pablo.take() == E["E16.2"]
    pablo.receive(E["E16.3"])
    assert nora.take() == E["E16.4"]


@pytest.mark.requirement("MSRP-METH-01", "MSRP-METH-02")
def test_e17_nickname() -> None:
    bench, nora, _ = nora_and_pablo("4bf81a2c35e07d96")
    nora.receive(E["E17.1"])
    pablo = bench.dialled[0].connection
    assert nora.take() == b""
    assert pablo.take() == E["E17.2"]
    pablo.receive(E["E17.3"])
    assert nora.take() == E["E17.4"]


@pytest.mark.requirement("MSRP-WS-07", "MSRP-WS-08")
def test_e18_websocket_client_and_plain_client() -> None:
    bench = enrolling(
        "0011223344556677", [], session_ids=["p0Lr6JtE2vNsC9aKf4XwQy"], ids=["5c092b3d46f18ea7"], default_expires=900
    )
    mina = bench.connect(Transport.WSS)
    mina.receive(E["E18.3"])
    assert mina.messages() == [E["E18.4"]]
    mina.receive(E["E18.5"])
    assert mina.messages() == [E["E18.6"]]
    assert bench.dialled[0].connection.take() == E["E18.7"]


@pytest.mark.requirement("MSRP-FRM-08")
def test_e20_bodiless_and_empty_are_different() -> None:
    bench = Bench(ids=["1111111111111111", "2222222222222222"])
    nora = bench.connect()
    bench.open(nora, XN, NORA)
    for name, identifier in (("E20.1", b"1111111111111111"), ("E20.2", b"2222222222222222")):
        frame = E[name].replace(
            b"msrps://edge.loom.example:2855/hJ5sT8yKb1Vn4Wq7Zr0Lcd;tcp msrp://198.51.100.44:9100/benLeg02Xv4yTt;tcp",
            f"{XN} {PABLO}".encode(),
        )
        frame = frame.replace(b"msrps://10.1.2.3:9/anaLeg01Kq7wZs;tcp", NORA.encode())
        nora.receive(frame)
        expected = frame.replace(f"{XN} {PABLO}".encode(), PABLO.encode()).replace(
            b"From-Path: ", f"From-Path: {XN} ".encode()
        )
        own = frame.split()[1]
        assert bench.dialled[0].connection.take() == expected.replace(own, identifier)
