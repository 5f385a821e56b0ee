"""Requests whose flows have all failed, and which wait for their device to come back (RFC 3261 §16.5), sans-IO.

every flow of a device failed ─► waits ─┬─ the device registers ─► the request goes there
                                        └─ time is up           ─► as without waiting
"""

from __future__ import annotations

from edge.sip.branch import Target
from edge.sip.devices import Devices
from edge.sip.location import Binding
from edge.sip.proxy import ProxyContext
from edge.timers import Timed, TimerWheel


class Waiter(Timed):
    """One request that waits for one device; `breadth` is its share of Max-Breadth."""

    __slots__ = ("breadth", "context", "device", "latecomers")

    def __init__(
        self, latecomers: Latecomers, context: ProxyContext, device: tuple[bytes, bytes], breadth: int
    ) -> None:
        self._slot = None
        self.latecomers = latecomers
        self.context = context
        self.device = device
        self.breadth = breadth

    def handle_timer(self, now: float) -> None:
        """Go on without the device."""
        self.latecomers.forget(self)
        self.context.handle_late_flow(self, [], now)


class Latecomers:
    """Who waits. `seconds` is how long, 0 for not at all."""

    __slots__ = ("_devices", "_seconds", "_waiting", "_wheel")

    def __init__(self, wheel: TimerWheel, devices: Devices, seconds: float) -> None:
        self._wheel = wheel
        self._devices = devices
        self._seconds = seconds
        self._waiting: dict[tuple[bytes, bytes], list[Waiter]] = {}

    def __len__(self) -> int:
        return sum(len(waiters) for waiters in self._waiting.values())

    def wait(self, context: ProxyContext, target: Target, breadth: int, now: float, until: float) -> Waiter | None:
        """Have a request wait for the device of a target whose flows have failed; None where it does not.

        In no case longer than `until`.
        """
        binding = target.binding
        if not self._seconds or binding is None or not binding.reg_id or now >= until:
            return None
        waiter = Waiter(self, context, (binding.aor, binding.instance), breadth)
        self._waiting.setdefault(waiter.device, []).append(waiter)
        self._wheel.start(waiter, min(now + self._seconds, until))
        return waiter

    def forget(self, waiter: Waiter) -> None:
        """Take a request out that waits no more."""
        self._wheel.stop(waiter)
        waiters = self._waiting.get(waiter.device)
        if waiters is not None and waiter in waiters:
            waiters.remove(waiter)
            if not waiters:
                del self._waiting[waiter.device]

    def welcome(self, binding: Binding, now: float) -> None:
        """A binding was registered or refreshed: what waits for its device goes there."""
        if not self._waiting:
            return
        for waiter in self._waiting.pop((binding.aor, binding.instance), ()):
            self._wheel.stop(waiter)
            secure = waiter.context.message.uri[:5].lower() == b"sips:"
            target = self._devices.target(binding, secure, now)
            waiter.context.handle_late_flow(waiter, [] if target is None else [target], now)
