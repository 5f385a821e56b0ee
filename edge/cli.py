"""The `edge` command: serve, check, and the operator's view of users and of a running server.

What goes wrong is one line on standard error, `edge: FILE: key: reason` where a setting is to blame. Exit status:
0 done, 2 a setting or an argument is wrong, 1 everything else (no such user, the server does not answer).
"""

import getpass
import importlib.metadata
import json
import os
import sys
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from edge.certificates import SELF_SIGNED_CERTIFICATE, certificate_facts, client_ssl_context
from edge.config import DEFAULTS, Settings, find_config, load_settings, settings_warnings
from edge.errors import ConfigError, EdgeError
from edge.log import format_peer, printable, set_up_logging
from edge.tls import load_server_context

if TYPE_CHECKING:
    from edge.storage.users import User, UserTable

DISTRIBUTION = "sip-msrp-edge"
ANSWER_WITHIN_S = 10.0
BAD_LINES_SHOWN = 20

app = typer.Typer(
    help="SIP and MSRP edge server: one process, one port, every transport.",
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
user_app = typer.Typer(help="Who may log in. Works while the server runs.", rich_markup_mode=None)
app.add_typer(user_app, name="user")

ConfigOption = Annotated[
    Path | None, typer.Option("--config", metavar="FILE", help="Configuration; default: $EDGE_CONFIG, else none.")
]
AdminOption = Annotated[
    str, typer.Option("--admin", metavar="URL", help="The server's admin port; default: admin.bind.")
]
TokenOption = Annotated[str, typer.Option("--token", help="Bearer token; default: admin.token.")]
UserArgument = Annotated[str, typer.Argument(metavar="USER@DOMAIN")]


class CommandError(EdgeError):
    """A command cannot be carried out; `status` is the exit status."""

    def __init__(self, reason: str, status: int = 1) -> None:
        super().__init__(reason)
        self.status = status


class Kind(StrEnum):
    """What `edge show` can list."""

    connections = "connections"
    flows = "flows"
    registrations = "registrations"
    sessions = "sessions"
    transactions = "transactions"


# Columns in the order in which they are printed; whatever else the server sends comes after them.
COLUMNS: dict[Kind, tuple[str, ...]] = {
    Kind.connections: ("id", "transport", "protocol", "remote", "local", "state", "uses", "age", "idle", "queued"),
    Kind.flows: ("id", "token", "transport", "remote", "state", "connection", "age", "idle"),
    Kind.registrations: ("aor", "contact", "instance", "reg_id", "q", "expires", "flow", "connection", "user_agent"),
    Kind.sessions: ("id", "user", "connection", "remote", "expires", "sent", "received"),
    Kind.transactions: ("id", "kind", "method", "state", "uri", "connection", "age"),
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit status; the console script's entry point."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    try:
        return app(given or ["--help"], prog_name="edge", standalone_mode=False) or 0
    except typer.TyperException as error:
        return _complain(error.format_message(), error.exit_code)
    except CommandError as error:
        return _complain(str(error), error.status)
    except ConfigError as error:
        return _complain(str(error), 2)
    except EdgeError as error:
        return _complain(str(error), 1)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # the flush at exit must not fail again
        return 1
    except OSError as error:
        return _complain(f"{error.filename}: {error.strerror}" if error.filename else str(error), 1)
    except typer.Abort:
        return _complain("interrupted", 130)


def _print_version(wanted: bool) -> None:
    if wanted:
        print(f"edge {_version()}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", is_eager=True, callback=_print_version, help="Print the version and exit.")
    ] = False,
) -> None:
    """Take the options that stand before a command."""


@app.command()
def serve(config: ConfigOption = None) -> None:
    """Run the server in the foreground. SIGHUP reloads, SIGTERM drains and stops, a second SIGTERM stops now."""
    settings, source = _load(config)
    set_up_logging()
    from edge.process import run  # noqa: PLC0415 - the other commands start without it

    raise typer.Exit(run(settings, source))


@app.command()
def check(config: ConfigOption = None) -> None:
    """Validate the configuration and print what would listen."""
    settings, source = _load(config)
    lines = [("configuration", source), ("role", settings.role), ("domains", ", ".join(settings.domains))]
    lines += [("certificate", _check_certificate(settings, source)), ("storage", _check_storage(settings, source))]
    lines += _check_outside(settings, source)
    lines += [("admin", f"http://{settings.admin.bind}")]
    for name, text in lines:
        print(f"{name + ':':<15}{printable(text)}")
    print()
    _print_table(
        ("listen", "transports", "protocols", "advertise", "proxy_protocol"),
        [
            (
                item.bind,
                item.transports,
                item.protocols,
                format_peer((item.advertised_host, item.advertised_port)),
                item.proxy_protocol,
            )
            for item in settings.listen
        ],
    )
    for warning in settings_warnings(settings):
        print(f"edge: warning: {source}: {warning}", file=sys.stderr)


@user_app.command("add")
def add_user(
    address: UserArgument,
    password: Annotated[str | None, typer.Option("--password", metavar="PW", help="Others can see it in `ps`.")] = None,
    password_stdin: Annotated[
        bool, typer.Option("--password-stdin", help="Read it from the first line of input.")
    ] = False,
    config: ConfigOption = None,
) -> None:
    """Add a user, or give one who exists a new password."""
    with _users(config) as (table, settings):
        user = _parse_user(address)
        secret = _read_password(password, password_stdin)
        existed = table.exists(user)
        table.add([(user, secret)])
        print(f"{user} has a new password" if existed else f"{user} added")
        if user.domain not in settings.domains:
            print(f"edge: warning: {user.domain} is not among the domains served here", file=sys.stderr)


@user_app.command("import")
def import_users(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="Lines of user@domain:password; - for standard input.")],
    config: ConfigOption = None,
) -> None:
    """Add many users at once, all or none; those who exist get the new password."""
    from edge.storage.users import UserError, parse_import  # noqa: PLC0415 - as in serve

    with _users(config) as (table, _):
        data = sys.stdin.buffer.read() if str(file) == "-" else file.read_bytes()
        try:
            users = parse_import(data)
        except UserError as error:
            for reason in error.reasons[:BAD_LINES_SHOWN]:
                _complain(f"{file}: {reason}")
            raise CommandError(f"{file}: nothing imported, lines to correct: {len(error.reasons)}", status=2) from error
        table.add(users)
        print(f"{len(users)} users imported")


@user_app.command("remove")
def remove_user(address: UserArgument, config: ConfigOption = None) -> None:
    """Remove a user."""
    with _users(config) as (table, _):
        user = _parse_user(address)
        if not table.remove(user):
            raise CommandError(f"{user}: no such user")
        print(f"{user} removed")


@user_app.command("list")
def list_users(config: ConfigOption = None) -> None:
    """Print every user, one a line."""
    with _users(config) as (table, _):
        for user in table.everybody():
            print(user)


@app.command()
def show(
    kind: Kind,
    as_json: Annotated[bool, typer.Option("--json", help="Print what the server sends, as JSON.")] = False,
    admin: AdminOption = "",
    token: TokenOption = "",
    config: ConfigOption = None,
) -> None:
    """List connections, flows, registrations, sessions or transactions of a running server."""
    answer = _Admin.of(admin, token, config).request("GET", f"/api/{kind.value}")
    items = answer.get("items") if isinstance(answer, dict) else None
    if not isinstance(items, list) or not all(isinstance(item, dict) for item in items):
        raise CommandError(f"the server sent no list of {kind.value}")
    if as_json:
        print(json.dumps(answer, indent=2))
        return
    there = list(dict.fromkeys(name for item in items for name in item))
    columns = [name for name in COLUMNS[kind] if name in there or not items]
    columns += [name for name in there if name not in columns]
    _print_table(columns, [[item.get(name) for name in columns] for item in items])


@app.command()
def disconnect(
    connection: Annotated[str, typer.Argument(metavar="CONNECTION-ID")],
    admin: AdminOption = "",
    token: TokenOption = "",
    config: ConfigOption = None,
) -> None:
    """Close a connection of a running server."""
    path = f"/api/connections/{urllib.parse.quote(connection, safe='')}/disconnect"
    _Admin.of(admin, token, config).request("POST", path, f"{connection}: no such connection")
    print(f"{connection} disconnected")


@contextmanager
def _users(config: Path | None) -> "Iterator[tuple[UserTable, Settings]]":
    """Open the users table of a configuration for one command."""
    from edge.storage.base import StorageError  # noqa: PLC0415 - as in serve
    from edge.storage.schema import Database  # noqa: PLC0415 - as in serve
    from edge.storage.users import UserTable  # noqa: PLC0415 - as in serve

    settings, source = _load(config)
    if settings.storage.url == "memory:":
        raise ConfigError(source, "storage.url", "users in memory cannot be changed from outside")
    try:
        with closing(Database(settings.storage.url)) as database:
            yield UserTable(database, settings.auth.realm), settings
    except StorageError as error:
        raise ConfigError(source, "storage.url", str(error)) from error


@dataclass(frozen=True, slots=True)
class _Admin:
    """The admin port of a running server."""

    url: str
    token: str

    @classmethod
    def of(cls, url: str, token: str, config: Path | None) -> "_Admin":
        """Fill in from the configuration what the command line leaves open."""
        settings = _load(config)[0].admin
        host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(settings.host, settings.host)
        default = f"http://{format_peer((host, settings.port))}"
        if url and not url.startswith(("http://", "https://")):
            raise CommandError(f"--admin: {url} is not an http:// or https:// URL", status=2)
        return cls((url or default).rstrip("/"), token or settings.token)

    def request(self, method: str, path: str, not_found: str = "") -> Any:
        """Ask the server and return its answer, None where it says nothing; proxies in the environment are not used."""
        headers = {"Accept": "application/json"} | ({"Authorization": f"Bearer {self.token}"} if self.token else {})
        request = urllib.request.Request(self.url + path, headers=headers, method=method)  # noqa: S310 - checked in of()
        try:
            with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(
                request, timeout=ANSWER_WITHIN_S
            ) as answer:
                body = answer.read()
            return json.loads(body) if body else None
        except urllib.error.HTTPError as error:
            with error:
                raise CommandError(self._explain(error.code, path, not_found)) from error
        except (OSError, ValueError) as error:
            reason = getattr(error, "reason", None) or error
            reason = getattr(reason, "strerror", None) or reason
            raise CommandError(f"{self.url}: no answer from a running server: {reason}") from error

    def _explain(self, status: int, path: str, not_found: str) -> str:
        if status in (401, 403):
            return f"{self.url}: the token is {'wrong' if self.token else 'missing; give --token or set admin.token'}"
        return not_found if status == 404 and not_found else f"{self.url}{path}: the server answered {status}"


def _load(config: Path | None) -> tuple[Settings, str]:
    path = find_config(config)
    return load_settings(path), str(path) if path else DEFAULTS


def _version() -> str:
    try:
        return importlib.metadata.version(DISTRIBUTION)
    except importlib.metadata.PackageNotFoundError:
        return "(not installed)"


def _parse_user(text: str) -> "User":
    from edge.storage.users import UserError, parse_user  # noqa: PLC0415 - as in serve

    try:
        return parse_user(text)
    except UserError as error:
        raise CommandError(str(error), status=2) from error


def _read_password(given: str | None, from_stdin: bool) -> str:
    if given is not None and from_stdin:
        raise CommandError("give --password or --password-stdin, not both", status=2)
    if from_stdin:
        given = sys.stdin.readline().rstrip("\r\n")
    elif given is None:
        if not sys.stdin.isatty():
            raise CommandError("no terminal to ask for the password; give --password-stdin", status=2)
        given = getpass.getpass("Password: ")
        if getpass.getpass("Again: ") != given:
            raise CommandError("the two passwords differ", status=2)
    if not given:
        raise CommandError("the password is empty", status=2)
    return given


def _check_certificate(settings: Settings, source: str) -> str:
    tls = settings.tls
    client_ssl_context(tls.trust, source)
    if tls.certificate:
        load_server_context(tls.pairs, tls.client_ca, source)
        return "; ".join(f"{pair.certificate} ({certificate_facts(pair.certificate)})" for pair in tls.pairs)
    if not {"tls", "wss"} & {transport for listen in settings.listen for transport in listen.transports}:
        return "none needed"
    if SELF_SIGNED_CERTIFICATE.exists():
        return f"{SELF_SIGNED_CERTIFICATE} ({certificate_facts(SELF_SIGNED_CERTIFICATE)})"
    return f"{SELF_SIGNED_CERTIFICATE} (self-signed, made at the first start)"


def _check_storage(settings: Settings, source: str) -> str:
    from edge.storage.base import StorageError  # noqa: PLC0415 - as in serve
    from edge.storage.schema import probe  # noqa: PLC0415 - as in serve

    try:
        return probe(settings.storage.url)
    except StorageError as error:
        raise ConfigError(source, "storage.url", str(error)) from error


def _check_outside(settings: Settings, source: str) -> list[tuple[str, str]]:
    from edge.probing import probe_accounting, probe_hooks  # noqa: PLC0415 - as in serve

    accounting = probe_accounting(settings.accounting, source)
    hooks = ("hooks", probe_hooks(settings.hooks, source))
    return [("accounting", accounting), hooks, ("policy", _check_policy(settings, source))]


def _check_policy(settings: Settings, source: str) -> str:
    from edge.policy.loading import HOOKS, is_overridden, load_policy  # noqa: PLC0415 - as in serve

    policy = load_policy(settings.policy.module, source)
    if policy is None:
        return "none"
    return (
        f"{settings.policy.module} ({', '.join(hook for hook in HOOKS if is_overridden(policy, hook)) or 'no hooks'})"
    )


def _print_table(columns: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """Print a table; where nobody looks at it, as wide as it needs to be."""
    console = Console(highlight=False, width=None if sys.stdout.isatty() else 10_000)
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for name in columns:
        table.add_column(name.replace("_", " "), no_wrap=name in ("id", "connection"), overflow="fold")
    for row in rows:
        table.add_row(*(Text(_cell(value)) for value in row))
    console.print(table)


def _cell(value: object) -> str:
    """Write a value for a person; what came from the wire cannot steer the terminal."""
    if value is None or value in ("", [], ()):
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.3f}".rstrip("0").rstrip(".")
    if isinstance(value, list | tuple):
        return ", ".join(_cell(item) for item in value)
    return printable(json.dumps(value) if isinstance(value, dict) else str(value))


def _complain(reason: str, status: int = 1) -> int:
    print(f"edge: {printable(reason)}", file=sys.stderr)
    return status


if __name__ == "__main__":
    sys.exit(main())
