"""What bounds the connections of one process; the settings have these names."""

from __future__ import annotations

from typing import Protocol


class Limits(Protocol):
    """The settings that a connection table reads; `config.Limits` has them all."""

    @property
    def connections(self) -> int:
        """Streams and handshakes at a time."""
        ...

    @property
    def connections_per_source(self) -> int:
        """Of one address."""
        ...

    @property
    def first_message_timeout(self) -> float:
        """Seconds until a first whole message."""
        ...

    @property
    def idle_timeout(self) -> float:
        """Seconds without an octet in either direction."""
        ...

    @property
    def stall_timeout(self) -> float:
        """Seconds in which a receiver takes nothing."""
        ...

    @property
    def send_queue(self) -> int:
        """Octets that may wait for a receiver."""
        ...

    @property
    def udp_flows(self) -> int:
        """UDP flows remembered at a time."""
        ...
