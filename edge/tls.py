"""The TLS contexts of the running server: loaded, reloaded when a file changes or an operator says so."""

from __future__ import annotations

import logging
import ssl
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from edge.certificates import client_ssl_context, file_names, load_ssl_context, make_self_signed, missing_names
from edge.config import Settings, TlsCertificate
from edge.errors import ConfigError

log = logging.getLogger("edge.server")

Choose = Callable[[ssl.SSLSocket | ssl.SSLObject, str | None, ssl.SSLContext], None]


def load_server_context(
    pairs: Sequence[TlsCertificate], client_ca: str, source: str, section: str = "tls"
) -> ssl.SSLContext:
    """Make the context for connections we accept; it shows the certificate that has the name the client asks for.

    `pairs` is not empty: the first is for who asks for no name, or for none of these. Where several have a name, the
    earlier is shown (RFC 6066 §3).

    Raises:
        ConfigError: a file cannot be used; the key says which.
    """
    by_name: dict[str, ssl.SSLContext] = {}
    for index in reversed(range(1, len(pairs))):
        place = f"{section}.certificates[{index - 1}]"
        context = load_ssl_context(pairs[index].certificate, pairs[index].private_key, client_ca, source, place)
        by_name |= dict.fromkeys(file_names(pairs[index].certificate), context)
    first = load_ssl_context(pairs[0].certificate, pairs[0].private_key, client_ca, source, section)
    if by_name:
        for name in file_names(pairs[0].certificate):
            by_name.pop(name, None)
        first.sni_callback = _choose_from(by_name)
    return first


def _choose_from(by_name: Mapping[str, ssl.SSLContext]) -> Choose:
    def choose(connection: ssl.SSLSocket | ssl.SSLObject, name: str | None, _context: ssl.SSLContext) -> None:
        """Change to the context of a name, or of `*` and what follows its first label; never refuse."""
        asked = (name or "").lower()
        other = by_name.get(asked) or by_name.get("*." + asked.partition(".")[2])
        if other is not None:
            connection.context = other

    return choose


class TlsContexts:
    """`server()` and `client()` give the contexts of now; a reload that fails leaves the old ones in use.

    Raises:
        ConfigError: at the start, when a certificate, key or trust file cannot be used.
    """

    def __init__(self, settings: Settings, source: str) -> None:
        self.self_signed = not settings.tls.certificate
        self._settings = settings
        self._source = source
        self._server, self._client = self._load()
        self._stamps = self._stamp()

    def server(self) -> ssl.SSLContext:
        """Return the context for connections we accept."""
        return self._server

    def client(self) -> ssl.SSLContext:
        """Return the context for connections we open."""
        return self._client

    def missing_names(self, hosts: Sequence[str]) -> list[str]:
        """Return those of `hosts` that none of our certificates names."""
        for pair in self._pairs():
            hosts = missing_names(pair.certificate, hosts)
        return list(hosts)

    def reload(self, settings: Settings) -> None:
        """Load the files again. Raises ConfigError; the old contexts stay then."""
        before, self._settings = self._settings, settings
        self.self_signed = not settings.tls.certificate
        try:
            self._server, self._client = self._load()
        except ConfigError:
            self._settings = before
            self.self_signed = not before.tls.certificate
            raise
        self._stamps = self._stamp()

    def reload_if_changed(self) -> None:
        """Look at the files; reload when one is newer. A broken new one is logged, once."""
        stamps = self._stamp()
        if stamps == self._stamps:
            return
        self._stamps = stamps
        try:
            self._server, self._client = self._load()
        except ConfigError as error:
            log.error("certificate not reloaded reason=%s", error)
        else:
            log.info("certificate reloaded")

    def _load(self) -> tuple[ssl.SSLContext, ssl.SSLContext]:
        tls, pairs = self._settings.tls, self._pairs()
        server = load_server_context(pairs, tls.client_ca, self._source)
        client = client_ssl_context(tls.trust, self._source)
        if not self.self_signed:  # to peers who ask for one; one of our own making would only turn them away
            client.load_cert_chain(pairs[0].certificate, pairs[0].private_key)
        return server, client

    def _pairs(self) -> tuple[TlsCertificate, ...]:
        if pairs := self._settings.tls.pairs:
            return pairs
        certificate, key = make_self_signed(self._settings.domains, source=self._source)
        return (TlsCertificate(str(certificate), str(key)),)

    def _stamp(self) -> list[tuple[str, int]]:
        tls = self._settings.tls
        paths = [path for pair in self._pairs() for path in (pair.certificate, pair.private_key)]
        paths += [tls.client_ca, tls.trust]
        return [(path, Path(path).stat().st_mtime_ns) for path in paths if path and Path(path).exists()]
