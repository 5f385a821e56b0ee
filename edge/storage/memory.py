"""Stores that keep nothing on disk: for tests, for trials, and for `storage.location = "memory:"`."""

from collections.abc import Sequence

from edge.auth.credentials import Credential
from edge.storage.base import BindingChange, BindingRow, ChangeListener, FetchDone, SaveDone


class MemoryUserStore:
    """Users in a dictionary."""

    def __init__(self) -> None:
        self._users: dict[tuple[str, str], Credential] = {}

    def put(self, username: str, domain: str, credential: Credential) -> None:
        """Add a user or replace the credential of one."""
        self._users[username, domain] = credential

    def fetch(self, username: str, domain: str, done: FetchDone) -> None:
        """Answer at once."""
        done(self._users.get((username, domain)))


class MemoryBindingStore:
    """Bindings which end with the process; the location service has them already, so nothing is kept twice."""

    def load(self) -> list[BindingRow]:
        """Return nothing: no process before this one left any."""
        return []

    def save(self, changes: Sequence[BindingChange], done: SaveDone | None) -> None:
        """Answer at once."""
        if done is not None:
            done(None)


class MemorySecretStore:
    """Secrets in a dictionary."""

    def __init__(self) -> None:
        self._secrets: dict[str, bytes] = {}

    def get(self, name: str) -> bytes | None:
        """Return the secret, None where there is none."""
        return self._secrets.get(name)

    def put(self, name: str, value: bytes) -> None:
        """Keep a secret under this name, instead of an older one."""
        self._secrets[name] = value


class MemoryStorage:
    """All three stores in memory; always well."""

    healthy = True
    last_error = ""
    commits = 0

    def __init__(self) -> None:
        self.users = MemoryUserStore()
        self.bindings = MemoryBindingStore()
        self.secrets = MemorySecretStore()

    def on_change(self, listener: ChangeListener) -> None:
        """Nothing will change."""

    def close(self) -> None:
        """Nothing waits."""
