"""The addresses of this machine, for a listener that listens on all of them."""

import ipaddress
import socket
from itertools import pairwise
from pathlib import Path

_IPV4_TABLE = Path("/proc/net/fib_trie")
_IPV6_TABLE = Path("/proc/net/if_inet6")


def local_addresses() -> tuple[str, ...]:
    """Return the IP addresses of this machine's interfaces, loopback included, IPv6 without brackets or zone."""
    found = {"127.0.0.1", "::1", *_read_ipv4(), *_read_ipv6()}
    if len(found) == 2:
        found.update(_ask_resolver())
    return tuple(sorted(found))


def _read_ipv4() -> set[str]:
    """Read the kernel's table: an address line is followed by `/32 host LOCAL` where the address is ours."""
    try:
        lines = _IPV4_TABLE.read_text().splitlines()
    except OSError:
        return set()
    return {before.rpartition("-- ")[2].strip() for before, line in pairwise(lines) if "/32 host LOCAL" in line}


def _read_ipv6() -> set[str]:
    try:
        lines = _IPV6_TABLE.read_text().splitlines()
    except OSError:
        return set()
    addresses = (ipaddress.IPv6Address(bytes.fromhex(line.split()[0])) for line in lines if line.strip())
    return {str(address) for address in addresses if not address.is_link_local}


def _ask_resolver() -> set[str]:
    try:
        found = socket.getaddrinfo(socket.gethostname(), None)
    except OSError:
        return set()
    return {str(info[4][0]).partition("%")[0] for info in found}
