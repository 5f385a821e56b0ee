"""What the edge wants from a storage: users to authenticate, bindings that outlive a restart, a few secrets.

Nothing here blocks the event loop: questions are handed over with a callback, which runs on the loop. Only what happens
once at start (`load`, secrets) and at the end (`close`) may wait for a disk or a server.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from edge.auth.credentials import Credential
from edge.errors import EdgeError

FetchDone = Callable[[Credential | Exception | None], None]
SaveDone = Callable[[Exception | None], None]


ChangeListener = Callable[[bool, str], None]


class StorageError(EdgeError):
    """The storage cannot do what was asked, now or at all; the text is one line and holds no password."""


class UnusableUrlError(StorageError):
    """The URL itself is wrong, or its driver is not installed: trying again will not help."""


@dataclass(slots=True)
class BindingRow:
    """One registered contact as it is kept over a restart (RFC 3261 §10.3, RFC 5626 §6).

    `aor` and `key` together are unique. `q` counts thousandths. `expires_at` and `refreshed_at` are seconds of the wall
    clock since 1970, because a monotonic clock does not survive a restart. `epoch` is that of the instance's temporary
    GRUUs. Once given to `save`, a row is not changed.
    """

    aor: str
    key: str
    contact: bytes
    params: bytes
    path: bytes
    call_id: bytes
    cseq: int
    instance: bytes
    reg_id: int
    q: int
    expires_at: float
    flow: bytes
    refreshed_at: float
    user_agent: bytes
    epoch: int = 0


@dataclass(slots=True)
class PutBinding:
    """Write a row, over the one with the same `aor` and `key` if there is one."""

    row: BindingRow


@dataclass(slots=True)
class RemoveBinding:
    """Forget a row; one that is not there is no error."""

    aor: str
    key: str


BindingChange = PutBinding | RemoveBinding


class UserStore(Protocol):
    """Who may log in."""

    def fetch(self, username: str, domain: str, done: FetchDone) -> None:
        """Look a user up without blocking; `done` gets the credential, None for nobody, or the error, on the loop.

        A store that need not ask anybody calls `done` before it returns.
        """


class BindingStore(Protocol):
    """The registrations that survive a restart."""

    def load(self) -> list[BindingRow]:
        """Return every row that has not expired; blocks, for use at start only.

        Raises:
            StorageError: the storage cannot be read.
        """

    def save(self, changes: Sequence[BindingChange], done: SaveDone | None) -> None:
        """Write changes without blocking, all or none, in the order of the calls.

        `done` gets None once they are committed, or the error that kept them out. It runs on the event loop; before
        `save` returns where nothing is waited for (memory, relaxed durability) and where nothing more can be taken.
        Changes nobody waits for are tried again when the storage comes back.
        """


class SecretStore(Protocol):
    """Named secrets which the server made for itself and must find again after a restart. Blocks; for use at start."""

    def get(self, name: str) -> bytes | None:
        """Return the secret, None where there is none.

        Raises:
            StorageError: the storage cannot be read.
        """

    def put(self, name: str, value: bytes) -> None:
        """Keep a secret under this name, instead of an older one.

        Raises:
            StorageError: the storage cannot be written.
        """


class Storage(Protocol):
    """The three stores, opened together."""

    @property
    def users(self) -> UserStore:
        """Who may log in."""

    @property
    def bindings(self) -> BindingStore:
        """The registrations that survive a restart."""

    @property
    def secrets(self) -> SecretStore:
        """The server's own secrets."""

    @property
    def healthy(self) -> bool:
        """Whether the last thing asked of the database worked."""

    @property
    def last_error(self) -> str:
        """Why it did not; the last reason stays readable after recovery, empty if there never was one."""

    @property
    def commits(self) -> int:
        """Transactions that changed bindings and were committed; none where nothing is kept."""

    def on_change(self, listener: ChangeListener) -> None:
        """Have `listener(healthy, reason)` called on the loop whenever `healthy` changes."""

    def close(self) -> None:
        """Write what waits, answer everyone, end the threads. Blocks; call it once."""
