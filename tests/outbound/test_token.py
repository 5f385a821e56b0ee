"""Flow tokens: the layout and vectors of outbound.md 1.2."""

import base64
import itertools
import re
from hashlib import sha256

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge.connections import Transport
from edge.errors import LocalError
from edge.outbound.token import FlowId, TokenFault, TokenKeys, pack_address

KEY = bytes(range(0x20, 0x40))
OTHER_KEY = bytes(range(0x40, 0x60))
V6 = bytes.fromhex("20010db8007700000000000000000009")

T1 = FlowId(Transport.TCP, 3, 11, 0x6710A3C0, 0x1001)
T2 = FlowId(Transport.TCP, 1, 12, 0x6710A400, 0x2002)
T3 = FlowId(Transport.WSS, 2, 11, 0x6710A3C0, 0x1003)
T4 = FlowId(Transport.UDP, 0, 11, 0x6710A3C0, 0x1004, 1, bytes([203, 0, 113, 77]), 40112)
T5 = FlowId(Transport.UDP, 0, 11, 0x6710A3C0, 0x1005, 2, V6, 5062)
VECTORS = [
    (T1, b"f1.Nl1UGotpoesjrz-_-8zkp65NVqd4vVA8ZXQAfdD3"),
    (T2, b"f1.Nl0rjzcK7hku5MSa5UbixYU11yt4LhRuLsNi3PQj"),
    (T3, b"f1.Nl2dlUaeGqh-Xk_vlMNH8NRnk4MCAqtVAhSrwTNk"),
    (T4, b"f1.Nl1CLE7AkfshiJnVOGbRjROFZiwsNNVxOJlmj9bb8yA3k95zmQ"),
    (T5, b"f1.Nl2StEn41Jk_czE6ecO4Yc6KtjgaWpw5X-F7Qch8MZPvYsY80n6qD_rISmat4NYvMA"),
]

flows = st.builds(
    FlowId,
    st.sampled_from([Transport.TCP, Transport.TLS, Transport.WS, Transport.WSS]),
    st.integers(0, 255),
    st.integers(0, 65535),
    st.integers(0, 2**32 - 1),
    st.integers(0, 2**32 - 1),
) | st.builds(
    FlowId,
    st.just(Transport.UDP),
    st.integers(0, 255),
    st.integers(0, 65535),
    st.integers(0, 2**32 - 1),
    st.integers(0, 2**32 - 1),
    st.integers(0, 255),
    st.binary(min_size=4, max_size=4) | st.binary(min_size=16, max_size=16),
    st.integers(0, 65535),
)


@pytest.fixture(scope="module")
def keys() -> TokenKeys:
    return TokenKeys([KEY])


@pytest.mark.requirement("OB-TOK-03")
@pytest.mark.parametrize("flow, token", VECTORS)
def test_vectors_seal_and_open(keys: TokenKeys, flow: FlowId, token: bytes) -> None:
    assert keys.seal(flow) == token
    assert keys.unseal(token) == flow


@pytest.mark.requirement("OB-TOK-04", "OB-TOK-11")
@pytest.mark.parametrize("flow, token", VECTORS)
def test_no_bit_of_a_token_can_be_changed(keys: TokenKeys, flow: FlowId, token: bytes) -> None:
    for octet in range(len(token)):
        for bit in range(8):
            changed = bytearray(token)
            changed[octet] ^= 1 << bit
            assert isinstance(keys.unseal(bytes(changed)), TokenFault)
    for length in range(len(token)):
        assert isinstance(keys.unseal(token[:length]), TokenFault)


def test_rfc5626_5_3_1_a_changed_token_under_our_key_is_forged(keys: TokenKeys) -> None:
    assert keys.unseal(b"f1.Nl1UGotpoesjrz-_-8zkp65NVqd4vVA8ZXQAfdD2") is TokenFault.FORGED


def test_rfc5626_9_3_a_token_under_a_key_we_do_not_know_is_told_apart(keys: TokenKeys) -> None:
    foreign = b"f1.NuXSE32hYrqlXjdyb0iysTn_cnL_scYMTlUmFbT9"
    assert TokenKeys([OTHER_KEY]).seal(T1) == foreign
    assert keys.unseal(foreign) is TokenFault.UNKNOWN_KEY


@pytest.mark.parametrize(
    "user", [b"", b"lb1", b"tove", b"f2.Nl1UGotp", b"F1.Nl1UGotpoesjrz-_-8zkp65NVqd4vVA8ZXQAfdD3", b"f1"]
)
def test_another_user_part_is_no_token(keys: TokenKeys, user: bytes) -> None:
    assert keys.unseal(user) is TokenFault.NOT_A_TOKEN


@pytest.mark.requirement("OB-TOK-11")
@pytest.mark.parametrize(
    "user",
    [
        b"f1.",
        b"f1.Nl1U",
        b"f1.Nl1UGotpoesjrz-_-8zkp65NVqd4vVA8ZXQAfdD3=",
        b"f1.Nl1UGotpoesjrz+/+8zkp65NVqd4vVA8ZXQAfdD3",
        b"f1.Nl1UGotpoesjrz-_-8zkp65NVqd4vVA8ZXQAfdD3\n",
        b"f1.Nl1UGotpoesjrz-_-8zkp65NVqd4vVA8ZXQAfdD3A",
        # the last character of T4 carries four bits that are not used: the other spellings of the same octets
        b"f1.Nl1CLE7AkfshiJnVOGbRjROFZiwsNNVxOJlmj9bb8yA3k95zmR",
        b"f1.Nl1CLE7AkfshiJnVOGbRjROFZiwsNNVxOJlmj9bb8yA3k95zmf",
        b"f1." + b"A" * 78,
    ],
)
def test_only_the_spelling_we_write_is_accepted(keys: TokenKeys, user: bytes) -> None:
    assert keys.unseal(user) is TokenFault.FORGED


@pytest.mark.requirement("OB-TOK-11")
@pytest.mark.parametrize("user", [b"%661.", b"%66%31%2e", b"f%31%2E"])
def test_a_percent_escaped_spelling_is_understood(keys: TokenKeys, user: bytes) -> None:
    assert keys.unseal(user + VECTORS[0][1][3:]) == T1


@pytest.mark.requirement("OB-TOK-11")
def test_10000_tokens_keep_to_the_free_characters(keys: TokenKeys) -> None:
    for serial in range(5000):
        for flow in (
            FlowId(Transport.TLS, 1, 1, 7, serial),
            FlowId(Transport.UDP, 1, 1, 7, serial, 255, V6, 65535),
        ):
            token = keys.seal(flow)
            assert re.fullmatch(rb"[A-Za-z0-9_.-]{1,80}", token)


@pytest.mark.requirement("OB-TOK-10")
@pytest.mark.parametrize("flow", [T4, T5])
def test_nothing_of_the_flow_is_readable(keys: TokenKeys, flow: FlowId) -> None:
    token = keys.seal(flow)
    raw = base64.urlsafe_b64decode(token[3:] + b"=" * (-len(token[3:]) % 4))
    assert flow.address not in raw
    assert flow.port.to_bytes(2, "big") not in raw
    assert flow.boot.to_bytes(4, "big") not in raw
    neighbour = keys.seal(FlowId(flow.transport, 0, 11, flow.boot, flow.serial + 1, flow.listener, flow.address, 9))
    common = sum(a == b for a, b in zip(token[6:], neighbour[6:], strict=True))
    assert common < len(token) // 4


@pytest.mark.requirement("OB-TOK-08")
def test_the_first_key_seals_and_all_unseal() -> None:
    old, rotated, retired = TokenKeys([KEY]), TokenKeys([OTHER_KEY, KEY]), TokenKeys([OTHER_KEY])
    token = old.seal(T1)
    assert rotated.unseal(token) == T1
    assert rotated.seal(T1) == retired.seal(T1) != token
    assert retired.unseal(token) is TokenFault.UNKNOWN_KEY


def test_two_keys_with_one_fingerprint_are_both_tried() -> None:
    def fingerprint(key: bytes) -> bytes:
        return sha256(b"f1-fp" + key).digest()[:2]

    candidates = (number.to_bytes(32, "big") for number in itertools.count())
    second = next(key for key in candidates if fingerprint(key) == fingerprint(KEY))
    both = TokenKeys([KEY, second])
    assert both.unseal(TokenKeys([second]).seal(T3)) == T3
    assert both.unseal(TokenKeys([KEY]).seal(T3)) == T3


@pytest.mark.parametrize("bad", [[], [KEY[:31]], [KEY, b""]])
def test_keys_have_32_octets(bad: list[bytes]) -> None:
    with pytest.raises(LocalError):
        TokenKeys(bad)


@pytest.mark.requirement("OB-TOK-12")
def test_addresses_are_octets_and_mapped_ones_are_ipv4(keys: TokenKeys) -> None:
    assert pack_address("::ffff:203.0.113.77") == pack_address("203.0.113.77") == T4.address
    assert pack_address("2001:db8:77::9") == pack_address("2001:0DB8:0077:0:0:0:0:9") == V6
    assert T4.remote == ("203.0.113.77", 40112)
    assert T5.remote == ("2001:db8:77::9", 5062)
    assert len(keys.seal(T5)) == 69


@given(flows)
def test_every_flow_comes_back(flow: FlowId) -> None:
    keys = TokenKeys([KEY])
    assert keys.unseal(keys.seal(flow)) == flow


@given(st.binary(max_size=120))
def test_any_user_part_is_answered(user: bytes) -> None:
    keys = TokenKeys([KEY])
    for candidate in (user, b"f1." + user, b"f1.Nl1" + base64.urlsafe_b64encode(user)):
        assert isinstance(keys.unseal(candidate), TokenFault)
