"""Certificates and TLS contexts."""

import datetime as dt
import ipaddress
import ssl
import warnings
from pathlib import Path

import pytest
from cryptography import x509

from edge.certificates import certificate_facts, client_ssl_context, load_ssl_context, make_self_signed, names_host
from edge.errors import ConfigError


@pytest.fixture
def pair(tmp_path: Path) -> tuple[Path, Path]:
    return make_self_signed(["edge.example", "127.0.0.1"], tmp_path / "a.crt", tmp_path / "a.key")


def handshake(server: ssl.SSLContext, client: ssl.SSLContext) -> ssl.SSLObject:
    """Join two contexts in memory; returns the client's side."""
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    ours = client.wrap_bio(to_client, to_server)
    theirs = server.wrap_bio(to_server, to_client, server_side=True)
    pending = [ours, theirs]
    for _ in range(10):
        for side in list(pending):
            try:
                side.do_handshake()
                pending.remove(side)
            except ssl.SSLWantReadError:
                continue
    assert not pending
    return ours


def test_self_signed_names_hosts_and_addresses(tmp_path: Path) -> None:
    certificate, key = make_self_signed(["edge.example", "192.0.2.1", "[2001:db8::1]"], tmp_path / "c", tmp_path / "k")
    parsed = x509.load_pem_x509_certificate(certificate.read_bytes())
    names = parsed.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.DNSName) == ["edge.example"]
    assert names.get_values_for_type(x509.IPAddress) == [ipaddress.ip_address(a) for a in ("192.0.2.1", "2001:db8::1")]
    assert parsed.not_valid_after_utc - dt.datetime.now(dt.UTC) > dt.timedelta(days=3000)
    assert key.stat().st_mode & 0o777 == 0o600
    assert [path.name for path in sorted(tmp_path.iterdir())] == ["c", "k"]


def test_self_signed_is_made_once(pair: tuple[Path, Path]) -> None:
    before = [path.read_bytes() for path in pair]
    make_self_signed(["other.example"], *pair)
    assert [path.read_bytes() for path in pair] == before


def test_half_a_pair_is_not_overwritten(pair: tuple[Path, Path]) -> None:
    pair[0].unlink()
    with pytest.raises(ConfigError, match=r"tls.certificate: .*a.key is there but .*a.crt is not"):
        make_self_signed(["edge.example"], *pair)
    assert pair[1].exists()


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"tls.certificate: cannot write .*No such file or directory"):
        make_self_signed(["edge.example"], tmp_path / "no" / "c", tmp_path / "no" / "k")


def test_a_client_that_trusts_the_certificate_connects(pair: tuple[Path, Path]) -> None:
    ours = handshake(load_ssl_context(*pair), client_ssl_context(pair[0]))
    assert ours.version() in ("TLSv1.2", "TLSv1.3")
    shown = ours.getpeercert()
    assert shown is not None
    assert names_host(shown, "EDGE.example")
    assert names_host(shown, "127.0.0.1")
    assert not names_host(shown, "other.example")


def test_a_client_that_does_not_trust_it_refuses(pair: tuple[Path, Path]) -> None:
    with pytest.raises(ssl.SSLCertVerificationError):
        handshake(load_ssl_context(*pair), client_ssl_context())


def speaks(version: ssl.TLSVersion, context: ssl.SSLContext, other: ssl.SSLContext) -> str | None:
    """What a context and one that offers nothing but `version` agree on, where no cipher policy forbids it."""
    context.set_ciphers("ALL:@SECLEVEL=0")
    other.set_ciphers("ALL:@SECLEVEL=0")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        other.minimum_version = other.maximum_version = version
    server, client = (other, context) if context.protocol is ssl.PROTOCOL_TLS_CLIENT else (context, other)
    return handshake(server, client).version()


@pytest.mark.requirement("SIP-TLS-01")
@pytest.mark.parametrize(("version", "good"), [("TLSv1", False), ("TLSv1_1", False), ("TLSv1_2", True)])
def test_rfc8996_versions_before_tls_1_2_are_refused_in_both_roles(
    pair: tuple[Path, Path], version: str, good: bool
) -> None:
    """The version alone decides: a system's policy for ciphers would refuse the old ones by itself."""
    for ours in (load_ssl_context, client_ssl_context):
        if ours is load_ssl_context:
            context, other = load_ssl_context(*pair), ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
            other.load_verify_locations(pair[0])
            other.check_hostname = False
        else:
            context, other = client_ssl_context(pair[0]), ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            other.load_cert_chain(*pair)
        if good:
            assert speaks(ssl.TLSVersion[version], context, other) == "TLSv1.2"
        else:
            with pytest.raises(ssl.SSLError, match=r"(?i)protocol.version|unsupported.protocol"):
                speaks(ssl.TLSVersion[version], context, other)


def test_a_client_certificate_is_optional_but_verified(pair: tuple[Path, Path], tmp_path: Path) -> None:
    other = make_self_signed(["client.example"], tmp_path / "b.crt", tmp_path / "b.key")
    server = load_ssl_context(*pair, client_ca=pair[0])
    handshake(server, client_ssl_context(pair[0]))
    known = client_ssl_context(pair[0])
    known.load_cert_chain(*pair)
    handshake(server, known)
    stranger = client_ssl_context(pair[0])
    stranger.load_cert_chain(*other)
    with pytest.raises(ssl.SSLError):
        handshake(server, stranger)


def encrypted(path: Path) -> None:
    from cryptography.hazmat.primitives import serialization as s

    key = s.load_pem_private_key(path.read_bytes(), None)
    path.write_bytes(key.private_bytes(s.Encoding.PEM, s.PrivateFormat.PKCS8, s.BestAvailableEncryption(b"pw")))


def damage(path: Path) -> None:
    lines = path.read_text().splitlines()
    path.write_text("\n".join([lines[0], "AAAA", lines[-1]]))


@pytest.mark.parametrize(
    ("which", "harm", "reason"),
    [
        (0, Path.unlink, "tls.certificate: cannot read .*: No such file or directory"),
        (1, Path.unlink, "tls.private_key: cannot read .*: No such file or directory"),
        (0, lambda path: path.write_text("x"), "tls.certificate: .* holds no certificate in PEM form"),
        (1, lambda path: path.write_text("x"), "tls.private_key: .* holds no private key in PEM form"),
        (0, damage, "tls.certificate: .* holds a damaged certificate"),
        (1, damage, "tls.private_key: .* cannot be used with"),
        (1, encrypted, "tls.private_key: .* the private key is encrypted"),
        (0, lambda path: (path.unlink(), path.mkdir()), "tls.certificate: cannot read .*: Is a directory"),
    ],
)
def test_the_wrong_file_is_named(pair: tuple[Path, Path], which: int, harm: object, reason: str) -> None:
    harm(pair[which])  # type: ignore[operator]
    with pytest.raises(ConfigError, match=reason):
        load_ssl_context(*pair, source="edge.toml")


def test_a_key_of_another_certificate_is_named(pair: tuple[Path, Path], tmp_path: Path) -> None:
    other = make_self_signed(["edge.example"], tmp_path / "b.crt", tmp_path / "b.key")
    with pytest.raises(ConfigError, match=r"edge.toml: tls.private_key: .*b.key is not the key of .*a.crt"):
        load_ssl_context(pair[0], other[1], source="edge.toml")


@pytest.mark.parametrize(("call", "key"), [(client_ssl_context, "tls.trust")])
def test_a_trust_file_without_certificates_is_named(call: object, key: str, tmp_path: Path) -> None:
    (tmp_path / "ca").write_text("nothing")
    with pytest.raises(ConfigError, match=f"{key}: .* holds no certificate in PEM form"):
        call(tmp_path / "ca")  # type: ignore[operator]


def test_facts_for_people(pair: tuple[Path, Path]) -> None:
    assert certificate_facts(pair[0]).startswith("edge.example, 127.0.0.1; valid until 20")


@pytest.mark.requirement("SIP-TLS-02")
@pytest.mark.parametrize(
    ("names", "host", "good"),
    [
        ([("URI", "sip:a.example"), ("DNS", "b.example")], "a.example", True),
        ([("URI", "sip:a.example"), ("DNS", "b.example")], "b.example", False),
        ([("URI", "SIP:A.Example")], "a.example", True),
        ([("URI", "sip:user@a.example"), ("DNS", "b.example")], "a.example", False),
        ([("URI", "sip:user@a.example"), ("DNS", "b.example")], "b.example", True),
        ([("URI", "https://a.example"), ("DNS", "b.example")], "b.example", True),
        ([("DNS", "*.example.com")], "sip.example.com", False),
        ([("DNS", "example.com")], "sip.example.com", False),
        ([("DNS", "b.example")], "cn.example", False),
        ([("IP Address", "192.0.2.1")], "cn.example", False),
        ([("email", "a@cn.example")], "cn.example", False),
        ([], "cn.example", True),
        ([("IP Address", "2001:DB8:0:0:0:0:0:1")], "2001:db8::1", True),
        ([("DNS", "b.example"), ("IP Address", "192.0.2.1")], "192.0.2.2", False),
    ],
)
def test_rfc5922_7_1_identities_of_a_peer(names: list[tuple[str, str]], host: str, good: bool) -> None:
    certificate = {"subject": ((("commonName", "cn.example"),),), "subjectAltName": tuple(names)}
    assert names_host(certificate, host) is good
