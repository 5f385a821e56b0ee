"""Bindings between memory and storage: rows out, rows in after a restart (RFC 5626 §6, OB-REG-17)."""

from __future__ import annotations

from collections.abc import Callable

from edge.connections import Connection
from edge.outbound.flows import FlowFault, FlowTable
from edge.sip.grammar import split_list
from edge.sip.location import Binding, Location
from edge.storage.base import BindingChange, BindingRow, BindingStore, PutBinding, RemoveBinding


class BindingKeeper:
    """Writes bindings to a store and reads them back. Monotonic and wall clock meet here."""

    def __init__(
        self, store: BindingStore, flows: FlowTable, clock: Callable[[], float], wall_clock: Callable[[], float]
    ) -> None:
        self._store = store
        self._flows = flows
        self._clock = clock
        self._wall_clock = wall_clock

    def save(self, put: list[Binding], removed: list[Binding], done: Callable[[Exception | None], None] | None) -> None:
        """Store changes; `done` once they are safe."""
        offset = self._wall_clock() - self._clock()
        changes: list[BindingChange] = [RemoveBinding(_text(b.aor), _text(b.key)) for b in removed]
        changes += [PutBinding(_row(binding, offset)) for binding in put]
        self._store.save(changes, done)

    def restore(self, location: Location) -> tuple[int, int]:
        """Fill the location from storage: (bindings that live again, bindings whose flow died with the old process)."""
        now = self._clock()
        offset = self._wall_clock() - now
        alive, dead = 0, []
        for row in self._store.load():
            binding = _binding(row, offset)
            connection: Connection | None = None
            if row.flow:
                found = self._flows.resolve(row.flow, now)
                if isinstance(found, FlowFault):
                    dead.append(binding)
                    location.note_departed(binding)
                    continue
                connection = found
            location.put(binding, connection)
            if connection is not None:
                left = binding.expires_at - now
                self._flows.register(connection, binding.aor, binding.instance, binding.reg_id, left, now)
            alive += 1
        if dead:
            self.save([], dead, None)
        return alive, len(dead)


def _text(value: bytes) -> str:
    return value.decode("latin-1")


def _row(binding: Binding, offset: float) -> BindingRow:
    return BindingRow(
        aor=_text(binding.aor),
        key=_text(binding.key),
        contact=binding.contact,
        params=binding.parameters,
        path=b", ".join(binding.path),
        call_id=binding.call_id,
        cseq=binding.cseq,
        instance=binding.instance,
        reg_id=binding.reg_id,
        q=binding.q,
        expires_at=binding.expires_at + offset,
        flow=binding.flow,
        refreshed_at=binding.refreshed_at + offset,
        user_agent=binding.user_agent,
        epoch=binding.epoch,
    )


def _binding(row: BindingRow, offset: float) -> Binding:
    binding = Binding()
    binding.aor = row.aor.encode("latin-1")
    binding.contact, binding.parameters = row.contact, row.params
    binding.path = tuple(split_list(row.path)) if row.path else ()
    binding.call_id, binding.cseq = row.call_id, row.cseq
    binding.instance, binding.reg_id, binding.q = row.instance, row.reg_id, row.q
    binding.expires_at, binding.refreshed_at = row.expires_at - offset, row.refreshed_at - offset
    binding.flow, binding.user_agent = row.flow, row.user_agent
    binding.epoch = row.epoch
    binding.connection = None
    return binding
