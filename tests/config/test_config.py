"""The configuration file: what is accepted, what is refused and how that reads."""

import socket
from pathlib import Path

import pytest

from edge.config import Listen, Settings, build_settings, load_settings, settings_warnings, split_host_port
from edge.errors import ConfigError


@pytest.fixture(autouse=True)
def _no_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("EDGE_CONFIG", raising=False)


def write(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "edge.toml"
    path.write_text(text)
    return path


def refusal(text: str, tmp_path: Path) -> str:
    """The error without the folder of the file."""
    with pytest.raises(ConfigError) as caught:
        load_settings(write(tmp_path, text))
    return str(caught.value).replace(f"{tmp_path}/", "")


def test_without_a_file_it_is_a_working_single_server() -> None:
    settings = load_settings(None)
    assert [(item.host, item.port) for item in settings.listen] == [("0.0.0.0", 5060), ("::", 5060)]
    assert all(set(item.transports) == {"udp", "tcp", "tls", "ws", "wss"} for item in settings.listen)
    assert all(set(item.protocols) == {"sip", "msrp"} for item in settings.listen)
    assert settings.domains[0] == "localhost"
    assert socket.gethostname().lower() in (*settings.domains, "localhost")
    assert (settings.role, settings.storage.url, settings.admin.bind) == (
        "single",
        "sqlite:///edge.db",
        "127.0.0.1:9060",
    )
    assert settings.realm == "localhost"


def test_the_environment_names_the_file_unless_one_is_given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EDGE_CONFIG", str(write(tmp_path, 'domains = ["named.example"]')))
    assert load_settings(None).domains == ("named.example",)
    other = tmp_path / "other.toml"
    other.write_text('domains = ["given.example"]')
    assert load_settings(other).domains == ("given.example",)


def test_every_key_of_the_contract_is_read(tmp_path: Path) -> None:
    text = """
        domains = ["Example.com", "example.net"]
        role = "single"
        [[listen]]
        bind = "0.0.0.0:5060"
        advertise = "edge.example.com:5061"
        transports = ["udp", "tcp"]
        protocols = ["sip"]
        proxy_protocol = ["10.0.0.0/8", "2001:db8::/32"]
        [[listen]]
        bind = "[::1]:0"
        advertise = "edge6.example.com"
        [tls]
        certificate = "a.crt"
        private_key = "a.key"
        client_ca = "ca.crt"
        trust = "ca.crt"
        [auth]
        required = false
        algorithms = ["MD5"]
        realm = "a realm"
        nonce_lifetime = 60
        [storage]
        url = "postgresql://user:pw@db.example/edge"
        durability = "relaxed"
        location = "memory:"
        [sip]
        next_hop = "sip:registrar.example.com:5080;transport=tcp"
        trusted_edges = ["192.0.2.1"]
        min_expires = 30
        max_expires = 7200
        default_expires = 1800
        udp_flow_timeout = 90.5
        [outbound]
        flow_timer = 25
        token_keys = ["%s"]
        force = "all"
        [msrp]
        min_expires = 30
        max_expires = 1200
        default_expires = 300
        max_chunk_size = 0
        require_tls = false
        allow_targets = ["127.0.0.0/8"]
        share_links = true
        report_timeout = 5
        use_path = "relay.example.com:2855"
        [limits]
        connections = 10
        idle_timeout = 100
        trusted = ["192.0.2.0/24"]
        [policy]
        module = ""
        [accounting]
        url = ""
        [admin]
        bind = "0.0.0.0:9060"
        token = "visible"
    """ % ("0f" * 32)
    settings = load_settings(write(tmp_path, text))
    assert settings.domains == ("example.com", "example.net")
    first, second = settings.listen
    assert (first.advertised_host, first.advertised_port) == ("edge.example.com", 5061)
    assert (second.host, second.port, second.advertised_host, second.advertised_port) == (
        "::1",
        0,
        "edge6.example.com",
        0,
    )
    assert (first.wildcard, second.wildcard) == (True, False)
    assert [str(network) for network in first.proxy_networks] == ["10.0.0.0/8", "2001:db8::/32"]
    assert settings.outbound.token_key_bytes == (b"\x0f" * 32,)
    assert [str(network) for network in settings.sip.trusted_edge_networks] == ["192.0.2.1/32"]
    assert settings.sip.udp_flow_timeout == 90.5
    assert settings.limits.connections == 10
    assert settings.limits.connections_per_source == 256
    assert settings.realm == "a realm"


REFUSED = [
    ("domain = []", 'domain: unknown key; did you mean "domains"?'),
    ("[sip]\nmax_expirs = 1", 'sip.max_expirs: unknown key; did you mean "max_expires"?'),
    ("[[listen]]\nbnd = ''", 'listen[0].bnd: unknown key; did you mean "bind"?'),
    ("[policy]\nzzz = 1", "policy.zzz: unknown key; known here: module"),
    ("[[listen]]\nadvertise = 'a.example:5060'", "listen[0].bind: required"),
    ("[[listen]]\nbind = '::1:5060'", 'listen[0].bind: expected "host:port" with IPv6 in brackets, got "::1:5060"'),
    ("[[listen]]\nbind = '127.0.0.1'", 'listen[0].bind: expected "host:port", got "127.0.0.1" without a port'),
    ("[[listen]]\nbind = '127.0.0.1:70000'", "listen[0].bind: port 70000 is above 65535"),
    (
        "[[listen]]\nbind = 'localhost:5060'",
        'listen[0].bind: "localhost:5060" must start with an IP address, not a name',
    ),
    ("[[listen]]\nbind = '[127.0.0.1]:5060'", 'listen[0].bind: "[127.0.0.1]:5060" has no valid host'),
    (
        "[[listen]]\nbind = '127.0.0.1:1'\ntransports = ['tcp', 'sctp']",
        'listen[0].transports[1]: "sctp" is not one of udp, tcp, tls, ws, wss',
    ),
    (
        "[[listen]]\nbind = '127.0.0.1:1'\ntransports = []",
        "listen[0].transports: empty: nothing would be served here",
    ),
    (
        "[[listen]]\nbind = '127.0.0.1:1'\nprotocols = ['sip', 'sip']",
        'listen[0].protocols: "sip" is given twice',
    ),
    (
        "[[listen]]\nbind = '127.0.0.1:1'\nproxy_protocol = ['10.1.1.1/8']",
        "listen[0].proxy_protocol[0]: not a network: 10.1.1.1/8 has host bits set",
    ),
    ("[[listen]]\nbind = '127.0.0.1:1'\n[[listen]]\nbind = '127.0.0.1:1'", 'listen: "127.0.0.1:1" is given twice'),
    ("listen = []", "listen: at least one address is needed"),
    ("listen = 5060", "listen: expected a list, got a whole number"),
    ("domains = []", "domains: at least one domain is needed"),
    ("domains = ['a b']", 'domains[0]: "a b" is not a host name'),
    ("domains = ['a.example', 'A.example']", 'domains: "a.example" is given twice'),
    ("role = 'proxy'", 'role: "proxy" is not one of single, edge, registrar'),
    ("role = 'edge'", 'sip.next_hop: required with role "edge"'),
    (
        "[sip]\nnext_hop = 'registrar.example'",
        'sip.next_hop: expected "sip:host:port;transport=tcp", got "registrar.example"',
    ),
    (
        "[sip]\nservice_route = ['sip:home.example;transport=tcp']",
        'sip.service_route[0]: expected "sip:host:port;transport=tcp;lr", got "sip:home.example;transport=tcp"',
    ),
    ("[sip]\nnext_hop = 'sip:a.example;transport=sctp'", 'sip.next_hop: unknown transport "sctp"'),
    ("[sip]\nmax_expires = '1h'", "sip.max_expires: expected a whole number, got text"),
    ("[sip]\nmax_expires = 0", "sip.max_expires: expected a whole number >= 1, got 0"),
    ("[sip]\nmin_expires = 300\nmax_expires = 200", "sip.min_expires: 300 is above sip.max_expires (200)"),
    ("[msrp]\ndefault_expires = 5", "msrp.default_expires: 5 is not between 60 and 3600"),
    ("[msrp]\nmax_chunk_size = 100", "msrp.max_chunk_size: expected 0 (no limit) or at least 2048"),
    ("[msrp]\nuse_path = 'a'", 'msrp.use_path: expected "host:port", got "a" without a port'),
    (
        "[tls]\ncertificate = 'a'",
        "tls.private_key: required: certificate and private key are set together or not at all",
    ),
    ("[auth]\nalgorithms = ['SHA-1']", 'auth.algorithms[0]: "SHA-1" is not one of SHA-256, MD5'),
    ("[auth]\nalgorithms = []", "auth.algorithms: at least one algorithm is needed"),
    ("[auth]\nrequired = 1", "auth.required: expected true or false, got a whole number"),
    ("[auth]\nrealm = 'a\"b'", "auth.realm: quotes, backslashes and control characters are not allowed"),
    (
        "[storage]\nurl = 'redis://x'",
        'storage.url: expected "sqlite:///FILE", a "postgresql://" or "mysql://" URL, or "memory:"',
    ),
    ("[storage]\nlocation = 'disk'", 'storage.location: expected "" (with the users) or "memory:"'),
    ("[outbound]\ntoken_keys = ['00']", "outbound.token_keys[0]: expected 64 hexadecimal digits"),
    ("[outbound]\nforce = 'tcp'", 'outbound.force: "tcp" is not one of off, streams, all, never'),
    ("[limits]\nstall_timeout = 0", "limits.stall_timeout: expected a number > 0.0, got 0"),
    ("[limits]\nstall_timeout = nan", "limits.stall_timeout: expected a number > 0.0, got nan"),
    ("[limits]\nstall_timeout = inf", "limits.stall_timeout: expected a number <= 86400.0, got inf"),
    ("[limits]\nidle_timeout = 31", "limits.idle_timeout: below 32 s connections would end under running transactions"),
    (
        "[limits]\ntrusted = ['all']",
        "limits.trusted[0]: not a network: 'all' does not appear to be an IPv4 or IPv6 network",
    ),
    (
        "[sip]\nallow_targets = ['10.0.0.0/33']",
        "sip.allow_targets[0]: not a network: '10.0.0.0/33' does not appear to be an IPv4 or IPv6 network",
    ),
    (
        "[sip]\nnameservers = ['192.0.2.53', '[2001:db8::53]:5353', 'ns.example.com']",
        'sip.nameservers[2]: expected an IP address, with a port or without, got "ns.example.com"',
    ),
    ("[admin]\nbind = '0.0.0.0:1'", "admin.token: required because admin.bind (0.0.0.0:1) is not a loopback address"),
    ("[admin]\ntoken = 'env:EDGE_TEST_UNSET'", 'admin.token: environment variable "EDGE_TEST_UNSET" is not set'),
    ("[[hooks]]\nevents = ['flow.failed']", "hooks[0]: one of exec, url and call is needed, and no two of them"),
    (
        "[accounting]\nurl = 'a.jsonl'",
        'accounting.url: expected "file:NAME", or an sqlite://, postgresql:// or mysql:// URL',
    ),
    (
        "[accounting]\nurl = 'file:'",
        'accounting.url: expected "file:NAME", or an sqlite://, postgresql:// or mysql:// URL',
    ),
    ("[accounting]\nurl = 'file:a'\nrecords = []", "accounting.records: empty: nothing would be written"),
    (
        "[accounting]\nrecords = ['calls']",
        'accounting.records[0]: "calls" is not one of call, answer, registration, session, message',
    ),
    ("[storage]\nlocation = 'redis://x'", "storage.location: not available in this version; remove it"),
    ("sip = 1", "sip: expected a table, got a whole number"),
]


@pytest.mark.parametrize(("text", "reason"), REFUSED, ids=[reason.partition(": ")[0] for _, reason in REFUSED])
def test_one_reason_with_file_and_key(text: str, reason: str, tmp_path: Path) -> None:
    assert refusal(text, tmp_path) == f"edge.toml: {reason}"


def test_broken_toml_names_the_place(tmp_path: Path) -> None:
    assert refusal("a = ]\n", tmp_path).startswith("edge.toml: not valid TOML: ")
    assert "line 1" in refusal("a = ]\n", tmp_path)


def test_bytes_that_are_not_utf8_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "edge.toml"
    path.write_bytes(b'role = "\xff"')
    with pytest.raises(ConfigError, match="not valid TOML"):
        load_settings(path)


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read: No such file or directory"):
        load_settings(tmp_path / "none.toml")


def test_secrets_come_from_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TOKEN", "from-outside")
    monkeypatch.setenv("DATABASE", "mysql://u:p@h/d")
    settings = load_settings(write(tmp_path, '[admin]\ntoken = "env:TOKEN"\n[storage]\nurl = "env:DATABASE"'))
    assert settings.admin.token == "from-outside"
    assert settings.storage.url == "mysql://u:p@h/d"
    assert "from-outside" not in repr(settings)


def test_errors_do_not_repeat_the_storage_password(tmp_path: Path) -> None:
    assert "hunter2" not in refusal("[storage]\nurl = 'mssql://u:hunter2@h/d'", tmp_path)


def test_an_unset_default_lifetime_follows_the_bounds() -> None:
    assert build_settings({"sip": {"max_expires": 300}}, "t").sip.default_expires == 300
    assert build_settings({"msrp": {"min_expires": 900}}, "t").msrp.default_expires == 900
    with pytest.raises(ConfigError, match="default_expires: 400 is not between 60 and 300"):
        build_settings({"sip": {"max_expires": 300, "default_expires": 400}}, "t")


def test_the_defaults_of_msrp_lifetimes() -> None:
    msrp = Settings().msrp
    assert (msrp.default_expires, msrp.min_expires, msrp.max_expires) == (600, 60, 3600)


@pytest.mark.parametrize(
    ("data", "warning"),
    [
        ({"auth": {"required": False}}, "auth.required: anyone who reaches 0.0.0.0:5060"),
        ({"auth": {"algorithms": ["MD5", "SHA-256"]}}, "auth.algorithms: MD5 comes first"),
        ({"msrp": {"require_tls": False}}, "msrp.require_tls: "),
        ({"storage": {"url": "memory:"}}, "storage.url: "),
        ({"storage": {"durability": "relaxed"}}, "storage.durability: "),
        ({"sip": {"next_hop": "sip:a.example"}}, 'sip.next_hop: no effect with role "single"'),
        ({"limits": {"trusted": ["0.0.0.0/0"]}}, "limits.trusted: every address"),
        ({"admin": {"bind": "[::]:9060", "token": "t"}}, "admin.bind: "),
        ({"listen": [{"bind": "127.0.0.1:5060", "transports": ["tcp"]}]}, "listen[0].protocols: MSRP clients cannot"),
    ],
)
def test_what_is_risky_is_said(data: dict[str, object], warning: str) -> None:
    assert [text for text in settings_warnings(build_settings(data, "t")) if text.startswith(warning)]


def test_a_careful_configuration_has_no_warnings() -> None:
    data = {"listen": [{"bind": "127.0.0.1:5060"}], "tls": {"certificate": "a", "private_key": "b"}}
    assert settings_warnings(build_settings(data, "t")) == []


def test_no_authentication_on_loopback_alone_is_no_risk() -> None:
    data = {"listen": [{"bind": "127.0.0.1:5060"}], "auth": {"required": False}}
    assert not [text for text in settings_warnings(build_settings(data, "t")) if text.startswith("auth.")]


def test_sections_can_be_built_in_code_beyond_the_ranges_of_the_file() -> None:
    settings = Settings(domains=("a.example",), listen=(Listen(bind="127.0.0.1:0"),))
    assert settings.listen[0].advertised_host == "127.0.0.1"


@pytest.mark.parametrize("text", ["", ":5060", "a:b:1", "[::1", "a:", "a:123456", "[a]:1", "[]:1", "-a:1", "1.2.3:5"])
def test_not_an_address(text: str) -> None:
    with pytest.raises(ValueError):
        split_host_port(text)
