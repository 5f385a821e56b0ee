"""What may stand in the configuration beyond types and ranges: grammars, pairs of values, and what is merely risky.

Every check yields `(key, reason)` with the dotted key of the file. `problems` makes the configuration unusable,
`warnings` does not.
"""

import ipaddress
import re
from collections.abc import Callable, Iterator, Sequence
from typing import get_args

from edge.hookcheck import accounting_problems, hook_problems
from edge.settings import (
    TOKEN_KEY_OCTETS,
    Admin,
    Listen,
    Msrp,
    Settings,
    Storage,
    TransportName,
    is_address,
    is_host,
    is_loopback,
    split_host_port,
)

SMALLEST_CHUNK = 2048  # a chunk is never cut below this (RFC 4975 §7.1.1)
SHORTEST_IDLE_S = 32.0  # 64*T1: a shorter one cuts connections under running transactions (RFC 3261 §17)
_NEEDED_METHODS = ("SEND", "REPORT", "AUTH")

# Keys of the contract whose function this version does not have; the list shrinks as they arrive.
_NOT_AVAILABLE: tuple[tuple[str, Callable[[Settings], bool]], ...] = (
    ("storage.location", lambda settings: settings.storage.location.startswith(("redis:", "rediss:", "valkey:"))),
)
_STORAGE_URL = re.compile(r"(?:(?:sqlite|postgresql|mysql)(?:\+[a-z0-9_]+)?://.*|memory:)", re.DOTALL)
_NEXT_HOP = re.compile(r"sips?:(?P<host>[^;?@<>\s]+)(?:;transport=(?P<transport>[A-Za-z]+))?", re.IGNORECASE)
_URI_REST = r"[^;?@<>,\s]+"
_SERVICE_ROUTE = re.compile(rf"sips?:(?:{_URI_REST}@)?{_URI_REST}(?:;{_URI_REST})*;lr(?:;{_URI_REST})*", re.IGNORECASE)
_REALM = re.compile(r'[^\x00-\x1f\x7f"\\]*')


def problems(settings: Settings) -> Iterator[tuple[str, str]]:
    """Find what cannot be used although types and ranges are right."""
    yield from ((key, "not available in this version; remove it") for key, is_set in _NOT_AVAILABLE if is_set(settings))
    yield from _check_domains(settings.domains)
    if not settings.listen:
        yield "listen", "at least one address is needed"
    for index, listen in enumerate(settings.listen):
        yield from _check_listen(listen, f"listen[{index}]")
    yield from _duplicates([listen.bind for listen in settings.listen], "listen")
    yield from _check_credentials(settings)
    yield from _check_storage(settings.storage)
    yield from _check_routing(settings)
    yield from _check_expires(settings)
    yield from _check_limits(settings)
    yield from _check_admin(settings.admin)
    yield from hook_problems(settings.hooks)
    yield from accounting_problems(settings.accounting)


def _check_domains(domains: tuple[str, ...]) -> Iterator[tuple[str, str]]:
    if not domains:
        yield "domains", "at least one domain is needed"
    for index, domain in enumerate(domains):
        if not is_host(domain.removeprefix("[").removesuffix("]")):
            yield f"domains[{index}]", f'"{domain}" is not a host name'
    yield from _duplicates([domain.lower() for domain in domains], "domains")


def _check_listen(listen: Listen, key: str) -> Iterator[tuple[str, str]]:
    yield from _check_bind(listen.bind, f"{key}.bind")
    if listen.advertise:
        yield from _check_host_port(listen.advertise, f"{key}.advertise", default_port=5060)
    for name, values in (("transports", listen.transports), ("protocols", listen.protocols)):
        if not values:
            yield f"{key}.{name}", "empty: nothing would be served here"
        yield from _duplicates(values, f"{key}.{name}")
    yield from _check_networks(listen.proxy_protocol, f"{key}.proxy_protocol")


def _check_bind(bind: str, key: str) -> Iterator[tuple[str, str]]:
    yield from (found := list(_check_host_port(bind, key)))
    if not found and not is_address(split_host_port(bind)[0]):
        yield key, f'"{bind}" must start with an IP address, not a name'


def _check_host_port(text: str, key: str, default_port: int | None = None) -> Iterator[tuple[str, str]]:
    try:
        split_host_port(text, default_port)
    except ValueError as error:
        yield key, str(error)


def _check_networks(texts: tuple[str, ...], key: str) -> Iterator[tuple[str, str]]:
    for index, text in enumerate(texts):
        try:
            ipaddress.ip_network(text)
        except ValueError as error:
            yield f"{key}[{index}]", f"not a network: {error}"


def _duplicates(values: Sequence[str], key: str) -> Iterator[tuple[str, str]]:
    for value in dict.fromkeys(value for value in values if values.count(value) > 1):
        yield key, f'"{value}" is given twice'


def _check_credentials(settings: Settings) -> Iterator[tuple[str, str]]:
    if bool(settings.tls.certificate) != bool(settings.tls.private_key):
        key = "tls.private_key" if settings.tls.certificate else "tls.certificate"
        yield key, "required: certificate and private key are set together or not at all"
    if settings.tls.certificates and not settings.tls.certificate:
        yield "tls.certificate", "required beside tls.certificates: it is shown to who asks for no name of theirs"
    for index, pair in enumerate(settings.tls.certificates):
        for name in ("certificate", "private_key"):
            if not getattr(pair, name):
                yield f"tls.certificates[{index}].{name}", "required"
    if not settings.auth.algorithms:
        yield "auth.algorithms", "at least one algorithm is needed"
    yield from _duplicates(settings.auth.algorithms, "auth.algorithms")
    if not _REALM.fullmatch(settings.auth.realm):
        yield "auth.realm", "quotes, backslashes and control characters are not allowed"
    for index, key in enumerate(settings.outbound.token_keys):
        if not re.fullmatch(f"[0-9A-Fa-f]{{{2 * TOKEN_KEY_OCTETS}}}", key):
            yield f"outbound.token_keys[{index}]", f"expected {2 * TOKEN_KEY_OCTETS} hexadecimal digits"


def _check_storage(storage: Storage) -> Iterator[tuple[str, str]]:
    if not _STORAGE_URL.fullmatch(storage.url):
        yield "storage.url", 'expected "sqlite:///FILE", a "postgresql://" or "mysql://" URL, or "memory:"'
    if storage.location not in ("", "memory:"):
        yield "storage.location", 'expected "" (with the users) or "memory:"'


def _check_routing(settings: Settings) -> Iterator[tuple[str, str]]:
    if settings.role == "edge" and not settings.sip.next_hop:
        yield "sip.next_hop", 'required with role "edge"'
    if settings.sip.next_hop:
        yield from _check_next_hop(settings.sip.next_hop)
    if settings.msrp.use_path:
        yield from _check_host_port(settings.msrp.use_path, "msrp.use_path")
    for index, user in enumerate(settings.sip.third_party):
        if not re.fullmatch(r"[^@\s]+@[^@\s]+", user):
            yield f"sip.third_party[{index}]", f'expected "user@domain", got "{user}"'
    for index, uri in enumerate(settings.sip.service_route):
        if not _SERVICE_ROUTE.fullmatch(uri):
            yield f"sip.service_route[{index}]", f'expected "sip:host:port;transport=tcp;lr", got "{uri}"'
    yield from _check_networks(settings.sip.trusted_edges, "sip.trusted_edges")
    yield from _check_networks(settings.sip.trusted_core, "sip.trusted_core")
    yield from _check_networks(tuple(settings.outbound.force_sources), "outbound.force_sources")
    yield from _check_networks(settings.sip.allow_targets, "sip.allow_targets")
    for index, text in enumerate(settings.sip.nameservers):
        if problem := _nameserver_problem(text):
            yield f"sip.nameservers[{index}]", problem
    yield from _check_networks(settings.msrp.allow_targets, "msrp.allow_targets")
    yield from _check_networks(settings.limits.trusted, "limits.trusted")


def _nameserver_problem(text: str) -> str:
    try:
        host, port = (text, 53) if is_address(text) else split_host_port(text, 53)
    except ValueError as error:
        return str(error)
    return "" if is_address(host) and port else f'expected an IP address, with a port or without, got "{text}"'


def _check_next_hop(text: str) -> Iterator[tuple[str, str]]:
    found = _NEXT_HOP.fullmatch(text)
    if found is None:
        yield "sip.next_hop", f'expected "sip:host:port;transport=tcp", got "{text}"'
        return
    yield from _check_host_port(found["host"], "sip.next_hop", default_port=5060)
    if found["transport"] and found["transport"].lower() not in get_args(TransportName):
        yield "sip.next_hop", f'unknown transport "{found["transport"]}"'


def _check_expires(settings: Settings) -> Iterator[tuple[str, str]]:
    for name, section in (("sip", settings.sip), ("msrp", settings.msrp)):
        if section.min_expires > section.max_expires:
            yield f"{name}.min_expires", f"{section.min_expires} is above {name}.max_expires ({section.max_expires})"
        if not section.min_expires <= section.default_expires <= section.max_expires:
            between = f"{section.min_expires} and {section.max_expires}"
            yield f"{name}.default_expires", f"{section.default_expires} is not between {between}"
    sip = settings.sip
    if 0 < sip.session_expires < sip.min_session_expires:
        yield (
            "sip.session_expires",
            f"{sip.session_expires} is below sip.min_session_expires ({sip.min_session_expires})",
        )


def _check_limits(settings: Settings) -> Iterator[tuple[str, str]]:
    limits = settings.limits
    if limits.idle_timeout < SHORTEST_IDLE_S:
        yield "limits.idle_timeout", f"below {SHORTEST_IDLE_S:g} s connections would end under running transactions"
    if limits.request_uri >= limits.start_line:
        yield "limits.request_uri", f"must be below limits.start_line ({limits.start_line})"
    if limits.header_line > limits.header_block:
        yield "limits.header_line", f"is above limits.header_block ({limits.header_block})"
    yield from _check_relay(settings.msrp)


def _check_relay(msrp: Msrp) -> Iterator[tuple[str, str]]:
    sizes = {"msrp.max_chunk_size": msrp.max_chunk_size}
    for hop, size in msrp.chunk_sizes.items():
        yield from _check_host_port(hop, "msrp.chunk_sizes")
        sizes[f'msrp.chunk_sizes."{hop}"'] = size
    for key, size in sizes.items():
        if 0 < size < SMALLEST_CHUNK:
            yield key, f"expected 0 (no limit) or at least {SMALLEST_CHUNK}"
    for index, method in enumerate(msrp.blocked_methods):
        if not re.fullmatch("[A-Z_]+", method) or method in _NEEDED_METHODS:
            yield f"msrp.blocked_methods[{index}]", f'"{method}" is no method that can be left out'
    for index, name in enumerate(msrp.content_types):
        if not re.fullmatch(r"[\w!#$&^.+-]+/([\w!#$&^.+-]+|\*)", name, re.ASCII):
            yield f"msrp.content_types[{index}]", f'"{name}" is no media type such as "text/plain" or "image/*"'
    for index, user in enumerate(msrp.users):
        if not user or any(character.isspace() for character in user):
            yield f"msrp.users[{index}]", f'"{user}" is no user name'


def _check_admin(admin: Admin) -> Iterator[tuple[str, str]]:
    yield from (found := list(_check_bind(admin.bind, "admin.bind")))
    if not found and not admin.token and not is_loopback(admin.host):
        yield "admin.token", f"required because admin.bind ({admin.bind}) is not a loopback address"
    if not re.fullmatch(r"[!-~]*", admin.token):
        yield "admin.token", "only visible ASCII characters can travel in a header"


def warnings(settings: Settings) -> Iterator[tuple[str, str]]:
    """Find what works but is risky or of no effect."""
    public = [listen for listen in settings.listen if not is_loopback(listen.host)]
    transports = {transport for listen in settings.listen for transport in listen.transports}
    if public and not settings.auth.required:
        yield "auth.required", f"anyone who reaches {public[0].bind} can register and call without a password"
    if settings.auth.algorithms[0] == "MD5" and len(settings.auth.algorithms) > 1:
        yield "auth.algorithms", "MD5 comes first: most clients will use it although they can do better"
    if public and not settings.msrp.require_tls:
        yield "msrp.require_tls", f"MSRP logins and messages may cross {public[0].bind} unencrypted"
    if not settings.tls.certificate and transports & {"tls", "wss"}:
        yield "tls.certificate", "not set: a self-signed certificate is used, which clients do not trust by themselves"
    yield from _listen_warnings(settings)
    if settings.storage.url == "memory:":
        yield "storage.url", "users and registrations are lost when the server stops"
    if settings.storage.durability == "relaxed":
        yield "storage.durability", "a crash may lose registrations that were already answered"
    yield from _role_warnings(settings)
    yield from _third_party_warnings(settings)
    yield from _network_warnings(settings)
    if not is_loopback(settings.admin.host):
        yield "admin.bind", "the token travels unencrypted; put a TLS proxy in front"


def _listen_warnings(settings: Settings) -> Iterator[tuple[str, str]]:
    for index, listen in enumerate(settings.listen):
        if settings.msrp.require_tls and "msrp" in listen.protocols and not {"tls", "wss"} & set(listen.transports):
            yield f"listen[{index}].protocols", "MSRP clients cannot log in here: msrp.require_tls needs tls or wss"


def _role_warnings(settings: Settings) -> Iterator[tuple[str, str]]:
    if settings.role == "registrar" and not settings.sip.trusted_edges:
        yield "sip.trusted_edges", 'empty with role "registrar": no edge\'s Path is believed'
    if settings.role != "edge" and settings.sip.next_hop:
        yield "sip.next_hop", f'no effect with role "{settings.role}"'


def _third_party_warnings(settings: Settings) -> Iterator[tuple[str, str]]:
    for index, user in enumerate(settings.sip.third_party):
        if user.rpartition("@")[2].lower() not in settings.domains:
            yield f"sip.third_party[{index}]", f"no effect: the domain of {user} is not served here"


def _network_warnings(settings: Settings) -> Iterator[tuple[str, str]]:
    lists = [(f"listen[{index}].proxy_protocol", listen.proxy_networks) for index, listen in enumerate(settings.listen)]
    lists += [
        ("sip.trusted_edges", settings.sip.trusted_edge_networks),
        ("limits.trusted", settings.limits.trusted_networks),
    ]
    for key, networks in lists:
        if any(network.prefixlen == 0 for network in networks):
            yield key, "every address in the world is trusted"
