"""TLS contexts, and the certificate a server makes for itself when it is given none.

A context that cannot be made is a `ConfigError` with the key of the setting that is wrong.
"""

import contextlib
import datetime as dt
import ipaddress
import os
import ssl
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from edge.errors import ConfigError

SELF_SIGNED_CERTIFICATE = Path("edge.crt")
SELF_SIGNED_KEY = Path("edge.key")
LIFETIME = dt.timedelta(days=3650)  # nobody renews it by itself, and it is trusted by hand or not at all
BACKDATED = dt.timedelta(days=1)  # peers whose clock is behind


def make_self_signed(
    names: Sequence[str],
    certificate: Path = SELF_SIGNED_CERTIFICATE,
    private_key: Path = SELF_SIGNED_KEY,
    source: str = "defaults",
) -> tuple[Path, Path]:
    """Make a certificate (EC P-256, ten years) for host names and IP addresses, unless both files are there already.

    The key can be read by its owner alone. Each file appears complete or not at all. Returns the two paths.

    Raises:
        ConfigError: a file cannot be written, or there is only one of the two.
    """
    if certificate.exists() != private_key.exists():
        there, missing = (certificate, private_key) if certificate.exists() else (private_key, certificate)
        raise ConfigError(source, "tls.certificate", f"{there} is there but {missing} is not; remove or restore one")
    if not certificate.exists():
        key = ec.generate_private_key(ec.SECP256R1())
        try:
            _write(private_key, key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()), 0o600)
            _write(certificate, _build(key, names).public_bytes(Encoding.PEM), 0o644)
        except OSError as error:
            raise ConfigError(source, "tls.certificate", f"cannot write {error.filename}: {error.strerror}") from error
    return certificate, private_key


def load_ssl_context(
    certificate: str | Path,
    private_key: str | Path,
    client_ca: str | Path = "",
    source: str = "defaults",
    section: str = "tls",
) -> ssl.SSLContext:
    """Make the context for connections we accept: TLS 1.2 and later (RFC 8996).

    With `client_ca` a client may show a certificate, which is then verified; it need not (RFC 5922 §7.4).

    Raises:
        ConfigError: with the key `tls.certificate`, `tls.private_key` (of `section`) or `tls.client_ca`.
    """
    _check_file(certificate, f"{section}.certificate", source, b"-----BEGIN CERTIFICATE-----")
    _check_file(private_key, f"{section}.private_key", source, b"PRIVATE KEY-----")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.options |= ssl.OP_NO_RENEGOTIATION
    try:
        context.load_cert_chain(certificate, private_key, password=_refuse_password)
    except (ssl.SSLError, OSError, ValueError) as error:
        raise _explain_pair(error, certificate, private_key, source, section) from error
    if client_ca:
        _load_trust(context, client_ca, "tls.client_ca", source)
        context.verify_mode = ssl.CERT_OPTIONAL
    return context


def client_ssl_context(trust: str | Path = "", source: str = "defaults") -> ssl.SSLContext:
    """Make the context for connections we open: TLS 1.2 and later, chain verified.

    The roots are those in the file `trust`, or the system's.

    Whether the certificate names the peer is not checked by this context: Python accepts wildcards, which SIP does not
    (RFC 5922 §7.2), so whoever dials asks `names_host` after the handshake.

    Raises:
        ConfigError: with the key `tls.trust`.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.check_hostname = False
    if trust:
        _load_trust(context, trust, "tls.trust", source)
    else:
        context.load_default_certs(ssl.Purpose.SERVER_AUTH)
    return context


def certificate_facts(path: str | Path, source: str = "defaults") -> str:
    """Say whom a certificate file is for and until when, for people.

    Raises:
        ConfigError: with the key `tls.certificate`.
    """
    try:
        certificate = x509.load_pem_x509_certificate(Path(path).read_bytes())
    except (ValueError, OSError) as error:
        raise ConfigError(source, "tls.certificate", f"{path}: {error}") from error
    names = certificate.subject.rfc4514_string()
    with contextlib.suppress(x509.ExtensionNotFound):
        alternatives = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        names = ", ".join(str(name.value) for name in alternatives)
    until = certificate.not_valid_after_utc
    return f"{names}; {'EXPIRED' if until < dt.datetime.now(dt.UTC) else 'valid until'} {until:%Y-%m-%d}"


def missing_names(path: str | Path, hosts: Sequence[str]) -> list[str]:
    """Return those of `hosts` that the certificate in a file does not name (RFC 4976 §9.2)."""
    names = file_names(path)
    return [host for host in hosts if _canonical(host) not in names]


def file_names(path: str | Path) -> set[str]:
    """Return the alternative names of the certificate in a file, lower case."""
    certificate = x509.load_pem_x509_certificate(Path(path).read_bytes())
    with contextlib.suppress(x509.ExtensionNotFound):
        alternatives = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        return {_canonical(str(name.value)).removeprefix("sip:") for name in alternatives}
    return set()


def names_host(certificate: Mapping[str, Any], host: str) -> bool:
    """Tell whether a verified certificate (as `getpeercert` gives it) is one for this host (RFC 5922 §7.2).

    Whole names are compared without case: no wildcards, no suffixes. An IP address is compared as one.
    """
    return names_one_of(peer_names(certificate), host)


def names_one_of(names: Sequence[str], host: str) -> bool:
    """Tell whether a host is among names that `peer_names` gave."""
    return _canonical(host) in names


def peer_names(certificate: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the hosts a verified certificate (as `getpeercert` gives it) stands for, lower case (RFC 5922 §7.1).

    SIP URIs without user part count; without any, DNS names; the common name only where there is no alternative name
    at all.
    """
    alternatives: Sequence[tuple[str, str]] = certificate.get("subjectAltName", ())
    sip = [text[4:] for kind, text in alternatives if kind == "URI" and text[:4].lower() == "sip:" and "@" not in text]
    names = sip or [text for kind, text in alternatives if kind == "DNS"]
    if not alternatives:
        names = [text for part in certificate.get("subject", ()) for kind, text in part if kind == "commonName"]
    names += [text for kind, text in alternatives if kind == "IP Address"]
    return tuple(_canonical(name) for name in names)


def _canonical(host: str) -> str:
    try:
        return str(ipaddress.ip_address(host.removeprefix("[").removesuffix("]")))
    except ValueError:
        return host.lower()


def _build(key: ec.EllipticCurvePrivateKey, names: Sequence[str]) -> x509.Certificate:
    now = dt.datetime.now(dt.UTC)
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, names[0][:64])])
    constraints = x509.BasicConstraints(ca=True, path_length=0)  # so that it can be installed as its own trust anchor
    usage = x509.KeyUsage(
        digital_signature=True,
        key_cert_sign=True,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        crl_sign=False,
        encipher_only=False,
        decipher_only=False,
    )
    purposes = x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH])
    builder = x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
    builder = builder.not_valid_before(now - BACKDATED).not_valid_after(now + LIFETIME)
    builder = builder.add_extension(
        x509.SubjectAlternativeName([_general_name(text) for text in names]), critical=False
    )
    builder = builder.add_extension(constraints, critical=True).add_extension(usage, critical=True)
    builder = builder.add_extension(purposes, critical=False)
    builder = builder.add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
    return builder.sign(key, hashes.SHA256())


def _general_name(text: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(text.removeprefix("[").removesuffix("]")))
    except ValueError:
        return x509.DNSName(text)


def _write(path: Path, data: bytes, mode: int) -> None:
    """Write a file under another name and rename it, so that nobody reads half of it."""
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(handle)
        Path(name).chmod(mode)
        Path(name).replace(path)
    except OSError:
        with contextlib.suppress(OSError):
            Path(name).unlink()
        raise


def _check_file(path: str | Path, key: str, source: str, marker: bytes) -> None:
    try:
        data = Path(path).read_bytes()
    except OSError as error:
        raise ConfigError(source, key, f"cannot read {path}: {error.strerror}") from error
    if marker not in data:
        what = marker.decode().strip("-").removeprefix("BEGIN ").lower()
        raise ConfigError(source, key, f"{path} holds no {what} in PEM form")


def _refuse_password() -> str:
    raise ValueError("the private key is encrypted")


def _explain_pair(
    error: Exception, certificate: str | Path, private_key: str | Path, source: str, section: str
) -> ConfigError:
    """Find out which of the two files a chain failed for."""
    reason = getattr(error, "reason", None) or str(error)
    if reason in ("KEY_VALUES_MISMATCH", "KEY_TYPE_MISMATCH"):
        return ConfigError(source, f"{section}.private_key", f"{private_key} is not the key of {certificate}")
    if isinstance(error, ValueError) and not isinstance(error, OSError):
        return ConfigError(source, f"{section}.private_key", f"{private_key}: {reason}")
    try:
        x509.load_pem_x509_certificates(Path(certificate).read_bytes())
    except (ValueError, OSError):
        return ConfigError(source, f"{section}.certificate", f"{certificate} holds a damaged certificate")
    return ConfigError(source, f"{section}.private_key", f"{private_key} cannot be used with {certificate}: {reason}")


def _load_trust(context: ssl.SSLContext, path: str | Path, key: str, source: str) -> None:
    _check_file(path, key, source, b"-----BEGIN CERTIFICATE-----")
    try:
        context.load_verify_locations(path)
    except (ssl.SSLError, OSError) as error:
        raise ConfigError(source, key, f"{path} cannot be used: {getattr(error, 'reason', None) or error}") from error
