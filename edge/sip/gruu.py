"""Globally routable user agent URIs (RFC 5627): made for a 200 to REGISTER, and read in a Request-URI, sans-IO.

    public      sip:bob@example.com;gr=urn:uuid:…        the AOR with the instance: the same for ever
    temporary   sip:tgruu.<sealed>@example.com;gr        says nothing, and no two of them look related

sealed = base64url(AES-SIV(key, P)), P = 8 random octets | epoch, 4 octets | length of the instance | instance | AOR

A UUID is kept in 16 octets, with length 0. Bindings carry the epoch of their instance: a temporary GRUU is valid while
a binding of its instance carries the same. So it ends with the last binding, and with a Call-ID that is new (§5.1).
Nothing is kept for each GRUU, and all of it survives a restart with the bindings.
"""

from __future__ import annotations

import base64
import binascii
import uuid
from collections.abc import Callable

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESSIV

from edge.errors import RemoteError
from edge.sip import headers as h
from edge.sip.addresses import Addresses
from edge.sip.grammar import unescape
from edge.sip.location import Binding
from edge.sip.message import Message
from edge.sip.registrar import Plan, canonical_instance
from edge.sip.uri import SipUri, UriCache

PREFIX = b"tgruu."
_CONTEXT = b"tgruu"
_NONCE_OCTETS = 8
_TAG_OCTETS = 16
_MAX_OCTETS = 1024
_UUID = b"urn:uuid:"
_USER_FREE = frozenset(b"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_.!~*'()&=+$,;?/")
_PARAMETER_FREE = frozenset(b"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_.!~*'()[]/:&+$")


class Named:
    """What a GRUU of ours names: an instance of an AOR; `epoch` of a temporary one, 0 for a public one."""

    __slots__ = ("aor", "epoch", "instance")

    def __init__(self, aor: bytes, instance: bytes, epoch: int) -> None:
        self.aor = aor
        self.instance = instance
        self.epoch = epoch

    def of(self, bindings: list[Binding]) -> list[Binding]:
        """Return the bindings it leads to, of those of its AOR; none once it is not valid any more."""
        found = [binding for binding in bindings if binding.instance == self.instance]
        if self.epoch and all(binding.epoch != self.epoch for binding in found):
            return []
        return found


class Gruus:
    """Makes and reads GRUUs. `key`: 32 octets, kept for as long as temporary ones shall be understood."""

    __slots__ = ("_addresses", "_cipher", "_random", "_uris")

    def __init__(self, key: bytes, random: Callable[[int], bytes], addresses: Addresses, uris: UriCache) -> None:
        self._cipher = AESSIV(key)
        self._random = random
        self._addresses = addresses
        self._uris = uris

    def new_epoch(self) -> int:
        """Return an epoch that no GRUU has had: 1 to 2**31 - 1, by chance."""
        return int.from_bytes(self._random(4), "big") % (2**31 - 1) + 1

    def settle(self, plan: Plan, bindings: list[Binding]) -> None:
        """Give the bindings to come the epoch of their instance: a new one where it is new, or its Call-ID is (§5.1).

        Other bindings of an instance that gets a new one are noted in the plan; `bindings` are those there are.
        """
        chosen: dict[bytes, int] = {}
        for new, _, _ in plan.put:
            if not new.instance:
                continue
            known = [b for b in bindings if b.instance == new.instance and b not in plan.remove]
            same = [b for b in known if b.reg_id == new.reg_id]
            moved = bool(same) and max(same, key=_age_of).call_id != new.call_id
            if new.instance not in chosen:
                kept = known[0].epoch if known and not moved else 0
                chosen[new.instance] = kept or self.new_epoch()
            new.epoch = chosen[new.instance]
            replaced = [old for _, old, _ in plan.put]
            plan.epochs += [(b, new.epoch) for b in known if b.epoch != new.epoch and b not in replaced]

    # -- making

    def parameters(self, binding: Binding, temporary: bytes) -> bytes:
        """Write the Contact parameters of a binding with an instance; `temporary` comes from `temporary` (§5.2)."""
        scheme = b"sips" if binding.contact[:5].lower() == b"sips:" else b"sip"
        host = binding.aor.rpartition(b"@")[2]
        public = _escape(binding.aor[: -len(host) - 1], _USER_FREE) + b"@" + host
        instance = _escape(binding.instance, _PARAMETER_FREE)
        return b';pub-gruu="%b:%b;gr=%b";temp-gruu="%b:%b@%b;gr"' % (
            scheme, public, instance, scheme, temporary, host,
        )  # fmt: skip

    def temporary(self, binding: Binding) -> bytes:
        """Make the user part of a new temporary GRUU for the instance of a binding (§5.1)."""
        packed = _pack_instance(binding.instance)
        plain = self._random(_NONCE_OCTETS) + binding.epoch.to_bytes(4, "big") + packed + binding.aor
        return PREFIX + base64.urlsafe_b64encode(self._cipher.encrypt(plain, [_CONTEXT])).rstrip(b"=")

    # -- reading

    def read(self, uri: SipUri) -> Named | None:
        """Read a URI of ours with `gr`: what it names, None for one that names nothing (RFC 5627 §6.1).

        That a URI is a GRUU shows in the parameter alone: a public one equals its AOR (RFC 3261 §19.1.4).
        """
        value = uri.parameters[b"gr"]
        if uri.user is None:
            return None
        if value:
            return Named(self._addresses.aor(uri), canonical_instance(unescape(value)), 0)
        return self._open(unescape(uri.user))

    def _open(self, user: bytes) -> Named | None:
        if not user.startswith(PREFIX) or len(user) > _MAX_OCTETS:
            return None
        text = user[len(PREFIX) :]
        try:
            sealed = base64.urlsafe_b64decode(text + b"=" * (-len(text) % 4))
            plain = self._cipher.decrypt(sealed, [_CONTEXT]) if len(sealed) > _TAG_OCTETS else b""
        except (binascii.Error, InvalidTag):
            return None
        if len(plain) <= _NONCE_OCTETS + 6:
            return None
        epoch = int.from_bytes(plain[_NONCE_OCTETS : _NONCE_OCTETS + 4], "big")
        instance, aor = _unpack_instance(plain[_NONCE_OCTETS + 4 :])
        return Named(aor, instance, epoch)

    def is_of(self, uri: SipUri, aor: bytes) -> bool:
        """Whether `uri` is the AOR itself or one of its GRUUs: nothing that could be a Contact of it (§5.1)."""
        if not self._addresses.serves(uri) or uri.user is None:
            return False
        named = self._open(unescape(uri.user)) if b"gr" in uri.parameters else None
        return (named.aor if named is not None else self._addresses.aor(uri)) == aor

    def claims_another(self, message: Message, sender: bytes) -> bool:
        """Whether the Contact of a request is a GRUU of ours, and not one of its proven sender (§6.2)."""
        if not message.first[h.CONTACT] or b";gr" not in message.texts[h.CONTACT].lower():
            return False
        try:
            uri = self._uris.parse(message.address(h.CONTACT).uri)
        except RemoteError:
            return False
        return b"gr" in uri.parameters and self._addresses.serves(uri) and not self.is_of(uri, sender)


def _age_of(binding: Binding) -> float:
    return binding.refreshed_at


def _pack_instance(instance: bytes) -> bytes:
    if instance.startswith(_UUID):
        try:
            identifier = uuid.UUID(instance[len(_UUID) :].decode("ascii"))
        except ValueError:
            pass
        else:
            if str(identifier).encode("ascii") == instance[len(_UUID) :]:
                return b"\0\0" + identifier.bytes
    return len(instance).to_bytes(2, "big") + instance


def _unpack_instance(data: bytes) -> tuple[bytes, bytes]:
    """Return the instance and what stands behind it."""
    length, rest = int.from_bytes(data[:2], "big"), data[2:]
    if length:
        return rest[:length], rest[length:]
    return _UUID + str(uuid.UUID(bytes=rest[:16])).encode("ascii"), rest[16:]


def _escape(value: bytes, free: frozenset[int]) -> bytes:
    return b"".join(bytes((octet,)) if octet in free else b"%%%02X" % octet for octet in value)
