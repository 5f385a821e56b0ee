"""Where the next relay of an AUTH listens when its URI names no port (RFC 4976 §8)."""

from __future__ import annotations

import ipaddress
from collections.abc import Callable, Sequence

from edge.connections import Address
from edge.sip.locating import Question, order_srvs
from edge.sip.resolver_client import DnsClient, parse_nameserver, system_nameservers

DEFAULT_PORT = 2855
_SERVERS_LIMIT = 4


class RelayFinder:
    """Asks for the SRV records of `_msrps._tcp` or `_msrp._tcp`; without any, the host itself on port 2855.

    `nameservers` and `timeout_s` are those of the SIP resolver. `random` returns as many octets as asked for.

    Raises:
        ValueError: a name server that is no numeric address.
    """

    def __init__(self, nameservers: Sequence[str], timeout_s: float, random: Callable[[int], bytes]) -> None:
        self.reload(nameservers)
        self._timeout_s = timeout_s
        self._random = random

    def reload(self, nameservers: Sequence[str]) -> None:
        """Ask other name servers from now on; none: the system's, as they are set now.

        Raises:
            ValueError: a name server that is no numeric address; nothing is changed.
        """
        self._client = DnsClient([parse_nameserver(text) for text in nameservers] or system_nameservers())

    async def find(self, host: str, secure: bool) -> list[Address]:
        """Return (name, port) pairs in the order to try them; none when the domain says that it has no relay."""
        try:
            ipaddress.ip_address(host)
        except ValueError:
            name = f"_{'msrps' if secure else 'msrp'}._tcp.{host.lower().rstrip('.')}"
            reply = await self._client.ask(Question(name, "SRV"), self._timeout_s)
            if reply.answer.srvs:
                ordered = order_srvs(reply.answer.srvs, self._random, _SERVERS_LIMIT)
                return [(server.target, server.port) for server in ordered if server.target != "." and server.port]
        return [(host, DEFAULT_PORT)]
