"""Open the storage the settings describe."""

import asyncio

from edge.config import Storage as StorageSettings
from edge.storage.base import Storage
from edge.storage.memory import MemoryBindingStore, MemoryStorage
from edge.storage.schema import Database
from edge.storage.sql import SqlBindingStore, SqlStorage, SqlUserStore


def open_storage(settings: StorageSettings, loop: asyncio.AbstractEventLoop, realm: str = "") -> Storage:
    """Connect, create what is missing, start the threads; blocks, for use at start only.

    `loop` is where results are delivered, `realm` what plain passwords are hashed for (default: each user's domain).
    Close what is returned.

    Raises:
        UnusableUrlError: nothing can ever be reached with this URL.
        StorageError: the database cannot be used now; the text of both goes with the key `storage.url`.
    """
    if settings.url == "memory:":
        return MemoryStorage()
    durable = settings.durability == "acknowledged"
    database = Database(settings.url, durable=durable)
    users = SqlUserStore(database, loop, realm=realm)
    if settings.location == "memory:":
        return SqlStorage(database, users, MemoryBindingStore())
    return SqlStorage(database, users, SqlBindingStore(database, loop, acknowledged=durable))
