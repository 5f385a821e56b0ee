"""The TLS contexts of the running server: loaded, reloaded when a file changes or an operator says so."""

from __future__ import annotations

import logging
import ssl
from collections.abc import Sequence
from pathlib import Path

from edge.certificates import client_ssl_context, load_ssl_context, make_self_signed, missing_names
from edge.config import Settings
from edge.errors import ConfigError

log = logging.getLogger("edge.server")


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
        """Return those of `hosts` that our certificate does not name."""
        return missing_names(self._paths()[0], hosts)

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
        certificate, key = self._paths()
        tls = self._settings.tls
        server = load_ssl_context(certificate, key, tls.client_ca, self._source)
        client = client_ssl_context(tls.trust, self._source)
        if not self.self_signed:  # to peers who ask for one; one of our own making would only turn them away
            client.load_cert_chain(certificate, key)
        return server, client

    def _paths(self) -> tuple[Path, Path]:
        tls = self._settings.tls
        if tls.certificate:
            return Path(tls.certificate), Path(tls.private_key)
        return make_self_signed(self._settings.domains, source=self._source)

    def _stamp(self) -> list[tuple[str, int]]:
        tls = self._settings.tls
        paths = [*map(str, self._paths()), tls.client_ca, tls.trust]
        return [(path, Path(path).stat().st_mtime_ns) for path in paths if path and Path(path).exists()]
