"""The sections of the configuration as frozen structs, with their defaults and ranges.

Attributes are named as the keys of the file; `docs/configuration.md` describes each. Types and ranges are enforced when
a file is read (`edge.config`), not by the constructors, so a test or an embedding program may build
`Limits(idle_timeout=0.2)` where a file may not say so. What needs a grammar or two values is in `edge.configcheck`.
"""

import ipaddress
import re
import socket
from collections.abc import Sequence
from typing import Annotated, Literal

import msgspec

Network = ipaddress.IPv4Network | ipaddress.IPv6Network
Role = Literal["single", "edge", "registrar"]
TransportName = Literal["udp", "tcp", "tls", "ws", "wss"]
ProtocolName = Literal["sip", "msrp"]
Algorithm = Literal["SHA-256", "MD5"]

# One day for a wait and ten years for a registration: longer ones are mistakes of unit.
Wait = Annotated[float, msgspec.Meta(gt=0, le=86400)]
Expires = Annotated[int, msgspec.Meta(ge=1, le=315_360_000)]
Count = Annotated[int, msgspec.Meta(ge=1, le=2**31 - 1)]
Octets = Annotated[int, msgspec.Meta(ge=64, le=2**31 - 1)]

TOKEN_KEY_OCTETS = 32  # AES-SIV with two 128-bit halves

_LABEL = r"[A-Za-z0-9_](?:[A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?"
_HOST = re.compile(rf"(?=.{{1,253}}\Z)(?:{_LABEL}\.)*(?![0-9]+\Z){_LABEL}")
_HOST_PORT = re.compile(r"(?:\[(?P<six>[^\[\]]*)\]|(?P<host>[^:\[\]]*))(?::(?P<port>[0-9]{1,5}))?")


class Section(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One table of the file."""


class Bound(Section, frozen=True):
    """An address to listen on."""

    bind: str

    @property
    def host(self) -> str:
        """Bound IP address, IPv6 without brackets."""
        return split_host_port(self.bind)[0]

    @property
    def port(self) -> int:
        """Bound port; 0 lets the system choose one."""
        return split_host_port(self.bind)[1]


class Listen(Bound, frozen=True):
    """One address to listen on, and what is served there."""

    advertise: str = ""
    transports: tuple[TransportName, ...] = ("udp", "tcp", "tls", "ws", "wss")
    protocols: tuple[ProtocolName, ...] = ("sip", "msrp")
    proxy_protocol: tuple[str, ...] = ()
    force: Literal["", "off", "streams", "all", "never"] = ""
    origins: tuple[str, ...] = ()

    @property
    def wildcard(self) -> bool:
        """Whether the bind address means every address of the machine."""
        return ipaddress.ip_address(self.host).is_unspecified

    @property
    def advertised_host(self) -> str:
        """Host for Via, Path, Record-Route and Use-Path, IPv6 without brackets; the bound one by default."""
        return split_host_port(self.advertise, self.port)[0] if self.advertise else self.host

    @property
    def advertised_port(self) -> int:
        """Port for Via, Path, Record-Route and Use-Path; the bound one by default."""
        return split_host_port(self.advertise, self.port)[1] if self.advertise else self.port

    @property
    def proxy_networks(self) -> tuple[Network, ...]:
        """Peers whose PROXY header is believed; parsed at every call, so keep the result."""
        return parse_networks(self.proxy_protocol)


class TlsCertificate(Section, frozen=True):
    """One more certificate, for clients that ask for one of its names (SNI)."""

    certificate: str = ""
    private_key: str = ""


class Tls(Section, frozen=True):
    """Certificates: the first, for who names nobody, and those of other names."""

    certificate: str = ""
    private_key: str = ""
    client_ca: str = ""
    trust: str = ""
    certificates: tuple[TlsCertificate, ...] = ()

    @property
    def pairs(self) -> tuple[TlsCertificate, ...]:
        """Every certificate with its key, the first first; none where we make our own."""
        return (TlsCertificate(self.certificate, self.private_key), *self.certificates) if self.certificate else ()


class Auth(Section, frozen=True):
    """Digest authentication."""

    required: bool = True
    algorithms: tuple[Algorithm, ...] = ("SHA-256", "MD5")
    realm: str = ""
    nonce_lifetime: Wait = 300.0


class Storage(Section, frozen=True):
    """Where users and registrations live."""

    url: str = "sqlite:///edge.db"
    durability: Literal["acknowledged", "relaxed"] = "acknowledged"
    location: str = ""


class Sip(Section, frozen=True):
    """SIP routing and registrations."""

    next_hop: str = ""
    trusted_edges: tuple[str, ...] = ()
    trusted_core: tuple[str, ...] = ()
    min_expires: Expires = 60
    max_expires: Expires = 3600
    default_expires: Expires = 3600
    udp_flow_timeout: Wait = 180.0
    allow_targets: tuple[str, ...] = ()
    nameservers: tuple[str, ...] = ()
    dns_timeout: Wait = 5.0
    recurse: bool = False
    forking: Literal["parallel", "serial"] = "parallel"
    websocket_received: bool = True
    third_party: tuple[str, ...] = ()
    strict_path: bool = False
    service_route: tuple[str, ...] = ()
    session_expires: Annotated[int, msgspec.Meta(ge=0, le=86400)] = 0
    min_session_expires: Annotated[int, msgspec.Meta(ge=90, le=86400)] = 90

    @property
    def allowed_networks(self) -> tuple[Network, ...]:
        """Networks that requests may be sent to besides public ones; parsed at every call, so keep the result."""
        return parse_networks(self.allow_targets)

    @property
    def trusted_core_networks(self) -> tuple[Network, ...]:
        """Servers behind an edge; parsed at every call, so keep the result."""
        return parse_networks(self.trusted_core)

    @property
    def reachable_networks(self) -> tuple[Network, ...]:
        """All networks requests may be sent to besides public ones: ours are among them without being named twice."""
        return (*self.allowed_networks, *self.trusted_edge_networks, *self.trusted_core_networks)

    @property
    def trusted_edge_networks(self) -> tuple[Network, ...]:
        """Edges whose Path is believed; parsed at every call, so keep the result."""
        return parse_networks(self.trusted_edges)


ForceMode = Literal["off", "streams", "all", "never"]


class Outbound(Section, frozen=True):
    """Flows (RFC 5626)."""

    flow_timer: Annotated[int, msgspec.Meta(ge=1, le=86400)] = 120
    token_keys: tuple[str, ...] = ()
    force: ForceMode = "streams"
    force_sources: dict[str, ForceMode] = msgspec.field(default_factory=dict)
    no_response: Annotated[float, msgspec.Meta(ge=0, le=32)] = 8.0
    path_double: bool = False
    path_always: bool = False
    without_path: Literal["add", "reject"] = "add"
    required: bool = False
    ob_position: Literal["last", "first", "any"] = "last"
    lenient: bool = False
    flow_order: Literal["recent", "regid"] = "recent"
    late_flow: Annotated[float, msgspec.Meta(ge=0, le=30)] = 0.0

    @property
    def token_key_bytes(self) -> tuple[bytes, ...]:
        """The keys in binary, 32 octets each; the first seals, all unseal."""
        return tuple(bytes.fromhex(key) for key in self.token_keys)


ChunkSize = Annotated[int, msgspec.Meta(ge=0, le=2**31 - 1)]


class Msrp(Section, frozen=True):
    """The MSRP relay (RFC 4976)."""

    min_expires: Expires = 60
    max_expires: Expires = 3600
    default_expires: Expires = 600
    max_chunk_size: ChunkSize = 65536
    require_tls: bool = True
    allow_targets: tuple[str, ...] = ()
    share_links: bool = False
    report_timeout: Wait = 30.0
    use_path: str = ""
    chunk_sizes: dict[str, ChunkSize] = msgspec.field(default_factory=dict)
    link_grace: Wait = 2.0
    websocket_piece: Annotated[int, msgspec.Meta(ge=2048, le=65536)] = 2048
    max_message_size: Annotated[int, msgspec.Meta(ge=0, le=2**62)] = 0
    blocked_methods: tuple[str, ...] = ()
    users: tuple[str, ...] = ()
    sessions_per_connection: Count = 32
    sessions_per_user: Annotated[int, msgspec.Meta(ge=0, le=2**31 - 1)] = 0
    octets_per_user: Annotated[int, msgspec.Meta(ge=0, le=2**62)] = 0
    connects_per_second: Count = 10
    content_types: tuple[str, ...] = ()

    @property
    def allowed_networks(self) -> tuple[Network, ...]:
        """Networks dialled besides public ones; parsed at every call, so keep the result."""
        return parse_networks(self.allow_targets)

    @property
    def next_hop_chunk_sizes(self) -> dict[tuple[str, int], int]:
        """`chunk_sizes` by host, in lower case, and port."""
        sizes = {split_host_port(hop): size for hop, size in self.chunk_sizes.items()}
        return {(host.lower(), port): size for (host, port), size in sizes.items()}


class Limits(Section, frozen=True):
    """Bounds; the defaults are those of sip-core 3.4 and MSRP-SEC."""

    connections: Count = 20000
    connections_per_source: Count = 256
    first_message_timeout: Wait = 20.0
    idle_timeout: Wait = 3605.0
    stall_timeout: Wait = 60.0
    trusted: tuple[str, ...] = ()
    handshake_timeout: Wait = 10.0
    message_timeout: Wait = 20.0
    proxy_header_timeout: Wait = 5.0
    start_line_timeout: Wait = 10.0
    handshakes: Count = 1000
    messages_per_source: Annotated[int, msgspec.Meta(ge=0, le=2**31 - 1)] = 0
    block_timeout: Wait = 10.0
    courtesies_per_source: Count = 1000
    start_line: Octets = 4096
    request_uri: Octets = 2048
    header_line: Octets = 8192
    header_lines: Count = 256
    vias: Count = 128
    header_block: Octets = 32768
    body: Octets = 65536
    send_queue: Octets = 262144
    udp_flows: Count = 100000
    transactions: Count = 100000
    bindings: Count = 200000
    bindings_per_aor: Count = 10
    flows_per_instance: Count = 4
    branches: Count = 12
    dns_addresses: Count = 8
    websocket_message: Octets = 1048576
    auth_failures: Count = 5
    drain_timeout: Annotated[float, msgspec.Meta(ge=0, le=86400)] = 10.0

    @property
    def trusted_networks(self) -> tuple[Network, ...]:
        """Networks exempt from limits for each source; parsed at every call, so keep the result."""
        return parse_networks(self.trusted)


class Policy(Section, frozen=True):
    """The operator's policy module."""

    module: str = ""


Scalar = str | int | float | bool


class Hook(Section, frozen=True):
    """One notification: a program, a URL or a Python function for some events."""

    events: tuple[str, ...] = ()
    exec: tuple[str, ...] = ()
    url: str = ""
    call: str = ""
    filter: dict[str, Scalar | tuple[Scalar, ...]] = msgspec.field(default_factory=dict)
    timeout: Wait = 10.0
    secret: str = ""
    retries: Annotated[int, msgspec.Meta(ge=0, le=100)] = 4
    backoff: Wait = 1.0
    queue: Count = 1000
    parallel: Annotated[int, msgspec.Meta(ge=1, le=64)] = 1
    name: str = ""

    def __repr__(self) -> str:
        """Show what it is for, never its secret."""
        return f"Hook(name={self.name!r}, events={self.events!r}, secret={'***' if self.secret else ''!r})"


RecordKind = Literal["call", "answer", "registration", "session", "message"]


class Accounting(Section, frozen=True):
    """Where accounting records go, and which."""

    url: str = ""
    records: tuple[RecordKind, ...] = ("call", "registration", "session")
    interval: Wait = 1.0
    queue: Count = 100000
    rotate_size: Annotated[int, msgspec.Meta(ge=0, le=2**62)] = 104857600
    keep: Annotated[int, msgspec.Meta(ge=0, le=1000)] = 10
    calls: Count = 100000
    call_limit: Annotated[float, msgspec.Meta(gt=0, le=2_592_000)] = 43200.0


class Admin(Bound, frozen=True):
    """The administration port."""

    bind: str = "127.0.0.1:9060"
    token: str = ""

    def __repr__(self) -> str:
        """Show whether there is a token, never which one."""
        return f"Admin(bind={self.bind!r}, token={'***' if self.token else ''!r})"


def default_domains() -> tuple[str, ...]:
    """Name the domains served without a configuration: `localhost` and the machine's name, where it is a host name."""
    name = socket.gethostname().lower()
    return ("localhost", name) if name != "localhost" and is_host(name) else ("localhost",)


def _default_listen() -> tuple[Listen, ...]:
    return (Listen(bind="0.0.0.0:5060"), Listen(bind="[::]:5060"))


class Settings(Section, frozen=True):
    """The whole configuration. Build a new one for a reload; never change one in use."""

    domains: tuple[str, ...] = msgspec.field(default_factory=default_domains)
    role: Role = "single"
    listen: tuple[Listen, ...] = msgspec.field(default_factory=_default_listen)
    tls: Tls = Tls()
    auth: Auth = Auth()
    storage: Storage = Storage()
    sip: Sip = Sip()
    outbound: Outbound = Outbound()
    msrp: Msrp = Msrp()
    limits: Limits = Limits()
    policy: Policy = Policy()
    hooks: tuple[Hook, ...] = ()
    accounting: Accounting = Accounting()
    admin: Admin = Admin()

    @property
    def realm(self) -> str:
        """Digest realm: `auth.realm`, or the first domain."""
        return self.auth.realm or self.domains[0]


def is_host(text: str) -> bool:
    """Tell whether this is a host name or an IP address (IPv6 without brackets)."""
    return is_address(text) or _HOST.fullmatch(text) is not None


def split_host_port(text: str, default_port: int | None = None) -> tuple[str, int]:
    """Split `host:port`, `[IPv6]:port` and, where a default is given, `host` or `[IPv6]`.

    Raises:
        ValueError: with the reason as text.
    """
    found = _HOST_PORT.fullmatch(text)
    if found is None:
        raise ValueError(f'expected "host:port" with IPv6 in brackets, got "{text}"')
    if (host := found["six"] or found["host"]) is None or not is_host(host) or bool(found["six"]) != (":" in host):
        raise ValueError(f'"{text}" has no valid host')
    if found["port"] is None and default_port is None:
        raise ValueError(f'expected "host:port", got "{text}" without a port')
    port = int(found["port"] or default_port or 0)
    if port > 65535:
        raise ValueError(f"port {port} is above 65535")
    return host, port


def parse_networks(texts: Sequence[str]) -> tuple[Network, ...]:
    """Read networks in prefix notation; a bare address is a network of one.

    Raises:
        ValueError: one of them is not a network, or has bits set beyond its prefix.
    """
    return tuple(ipaddress.ip_network(text) for text in texts)


def is_address(text: str) -> bool:
    """Tell whether this is an IP address (IPv6 without brackets)."""
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return True


def is_loopback(host: str) -> bool:
    """Tell whether an IP address is only reachable from this machine."""
    return ipaddress.ip_address(host).is_loopback
