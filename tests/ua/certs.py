"""A certificate authority for tests: server and client certificates in a temporary directory."""

import datetime as dt
import ipaddress
import ssl
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID


@dataclass(frozen=True, slots=True)
class Certificate:
    """Files of one key and its certificate (PEM)."""

    certificate: Path
    private_key: Path


class Authority:
    """A root that signs what a test asks for. `path` is its certificate, to be trusted."""

    def __init__(self, directory: Path, name: str = "Test Root") -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self.directory = directory
        self._name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        self._key = ec.generate_private_key(ec.SECP256R1())
        builder = _builder(self._name, self._name, self._key.public_key(), days=(-1, 30))
        builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        builder = builder.add_extension(_key_usage(authority=True), critical=True)
        builder = builder.add_extension(
            x509.SubjectKeyIdentifier.from_public_key(self._key.public_key()), critical=False
        )
        self._root = builder.sign(self._key, hashes.SHA256())
        self.path = directory / "root.crt"
        self.path.write_bytes(self._root.public_bytes(serialization.Encoding.PEM))

    def issue(
        self,
        name: str,
        *,
        dns: Iterable[str] = (),
        uris: Iterable[str] = (),
        ips: Iterable[str] = (),
        days: tuple[int, int] = (-1, 30),
        client: bool = True,
        server: bool = True,
    ) -> Certificate:
        """Make a certificate with these subjectAltNames.

        Args:
            uris: such as `sip:example.com` (RFC 5922 §7.1).
            days: validity from and to, counted from now; (-10, -1) is expired.
        """
        key = ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        alternatives: list[x509.GeneralName] = [x509.DNSName(value) for value in dns]
        alternatives += [x509.UniformResourceIdentifier(value) for value in uris]
        alternatives += [x509.IPAddress(ipaddress.ip_address(value)) for value in ips]
        builder = _builder(subject, self._name, key.public_key(), days=days)
        if alternatives:
            builder = builder.add_extension(x509.SubjectAlternativeName(alternatives), critical=False)
        usages = [ExtendedKeyUsageOID.SERVER_AUTH] * server + [ExtendedKeyUsageOID.CLIENT_AUTH] * client
        builder = builder.add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        builder = builder.add_extension(_key_usage(authority=False), critical=True)
        builder = builder.add_extension(x509.ExtendedKeyUsage(usages), critical=False)
        builder = builder.add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key(self._key.public_key()), critical=False
        )
        return self._write(name, builder.sign(self._key, hashes.SHA256()), key)

    def server_context(self, certificate: Certificate, *, client_certificates: bool = False) -> ssl.SSLContext:
        """Return a server context; `client_certificates` demands one signed by this authority."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate.certificate, certificate.private_key)
        if client_certificates:
            context.load_verify_locations(self.path)
            context.verify_mode = ssl.CERT_REQUIRED
        return context

    def client_context(self, certificate: Certificate | None = None, *, check_hostname: bool = True) -> ssl.SSLContext:
        """Return a client context that trusts this authority only, with a certificate to show if given."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname = check_hostname
        context.load_verify_locations(self.path)
        if certificate is not None:
            context.load_cert_chain(certificate.certificate, certificate.private_key)
        return context

    def _write(self, name: str, certificate: x509.Certificate, key: ec.EllipticCurvePrivateKey) -> Certificate:
        stem = "".join(char if char.isalnum() or char in ".-" else "_" for char in name)
        files = Certificate(self.directory / f"{stem}.crt", self.directory / f"{stem}.key")
        files.certificate.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
        files.private_key.write_bytes(
            key.private_bytes(
                serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
            )
        )
        files.private_key.chmod(0o600)
        return files


def _builder(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePublicKey, *, days: tuple[int, int]
) -> x509.CertificateBuilder:
    now = dt.datetime.now(dt.UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now + dt.timedelta(days=days[0]))
        .not_valid_after(now + dt.timedelta(days=days[1]))
    )


def _key_usage(*, authority: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not authority,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=authority,
        crl_sign=authority,
        encipher_only=False,
        decipher_only=False,
    )
