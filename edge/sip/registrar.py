"""The registrar's decisions (RFC 3261 §10.3, RFC 5626 §6, RFC 3327 §5.3), sans-IO.

`plan` reads a REGISTER against the bindings there are and returns what is to change, or raises; nothing has changed by
then. Whoever drives it stores the plan, applies it and answers: all of it or nothing.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

from edge.connections import Connection
from edge.errors import RemoteError
from edge.sip import headers as h
from edge.sip.grammar import is_digits, parse_parameters, quote, split_list, syntax_error, unfold, unquote
from edge.sip.location import Binding, Location
from edge.sip.message import Message
from edge.sip.uri import SipUri, UriCache, parse_uri, uri_equal

_HOUR = 3600
MALFORMED_EXPIRES = 3600


@dataclass(frozen=True, slots=True)
class RegistrarSettings:
    """Bounds on registrations; seconds and counts. `bindings_per_aor` counts the flows of one instance once."""

    min_expires: int = 60
    max_expires: int = 3600
    default_expires: int = 3600
    bindings_per_aor: int = 10
    flows_per_instance: int = 4
    contacts_per_request: int = 10
    contact_octets: int = 1024
    instance_octets: int = 256


class Contact:
    """One value of a Contact header of a REGISTER, read once."""

    __slots__ = ("expires", "instance", "ours", "parameters", "q", "reg_id", "uri")

    uri: SipUri
    ours: bool  # it points at ourselves
    parameters: bytes  # to give back: without expires, and GRUUs, which are ours to give
    expires: bytes | None
    q: int
    instance: bytes
    reg_id: int


@dataclass(slots=True)
class Plan:
    """What a REGISTER changes.

    `put`: (binding to write, the one it replaces or None, seconds granted). `outbound` says that a binding with
    instance and reg-id was processed and `Require: outbound` is due (RFC 5626 §6). `epochs`: bindings that stay, whose
    instance gets a new epoch (`edge.sip.gruu`).
    """

    aor: bytes
    put: list[tuple[Binding, Binding | None, int]] = field(default_factory=list)
    remove: list[Binding] = field(default_factory=list)
    outbound: bool = False
    epochs: list[tuple[Binding, int]] = field(default_factory=list)


class Hop:
    """How a REGISTER reached us: over which flow, with which Path, and whether outbound may apply.

    A `connection` of None ties the contacts to no flow of ours: they are reached along the Path, or by their address.
    """

    __slots__ = ("connection", "flow", "lacks_outbound", "outbound", "path")

    def __init__(self, connection: Connection | None, path: tuple[bytes, ...], outbound: bool) -> None:
        self.connection = connection
        self.path = path
        self.outbound = outbound
        self.flow = b""
        self.lacks_outbound = False  # a proxy in front wrote no `ob`: 439 (RFC 5626 §6)


class Registrar:
    """Reads REGISTER requests. Contacts repeat, so their parsed form is remembered, within a bound.

    `is_ours` tells whether a URI leads back to this server.
    """

    __slots__ = ("_contacts", "_is_ours", "_settings", "_uris", "location")

    def __init__(
        self, location: Location, uris: UriCache, settings: RegistrarSettings, is_ours: Callable[[SipUri], bool]
    ) -> None:
        self.location = location
        self._uris = uris
        self._settings = settings
        self._is_ours = is_ours
        self._contacts: dict[bytes, list[Contact]] = {}

    def plan(self, message: Message, aor: bytes, hop: Hop, supports_outbound: bool, now: float) -> Plan:
        """Decide what `message` changes for `aor`.

        Raises:
            RemoteError: 400, 403, 423 or 439; nothing may be changed then.
        """
        plan = Plan(aor)
        values = message.values(h.CONTACT)
        if not values:
            return plan
        if any(value.strip() == b"*" for value in values):
            self._plan_removal_of_all(plan, message, values)
            return plan
        contacts = self._read_contacts(values)
        header_expires = message.value(h.EXPIRES)
        self._check_outbound(contacts, header_expires, hop, supports_outbound)
        if any(contact.uri.secure for contact in contacts):
            _check_secure(contacts, message, hop)
        call_id = message.value(h.CALL_ID) or b""
        for contact in contacts:
            self._plan_contact(plan, contact, header_expires, message, call_id, hop, now)
        plan.outbound = supports_outbound and hop.outbound and any(c.reg_id and c.instance for c in contacts)
        self._check_count(plan)
        return plan

    def _plan_removal_of_all(self, plan: Plan, message: Message, values: list[bytes]) -> None:
        expires = message.value(h.EXPIRES)
        if len(values) != 1 or expires is None or not is_digits(expires) or expires.strip(b"0"):
            raise syntax_error("contact_star", "Contact: * stands alone and with Expires: 0")
        call_id = message.value(h.CALL_ID)
        for binding in self.location.bindings(plan.aor):
            if binding.call_id == call_id and message.cseq <= binding.cseq:
                raise syntax_error("cseq_order", "the CSeq is not higher than before")
            plan.remove.append(binding)

    def _plan_contact(
        self,
        plan: Plan,
        contact: Contact,
        header_expires: bytes | None,
        message: Message,
        call_id: bytes,
        hop: Hop,
        now: float,
    ) -> None:
        outbound = bool(contact.reg_id and contact.instance and hop.outbound)
        old = self._find(self.location.bindings(plan.aor), contact, outbound)
        if old is not None and old.call_id == call_id and message.cseq <= old.cseq:
            raise syntax_error("cseq_order", "the CSeq is not higher than before")
        granted = self._grant(contact, header_expires)
        self._forget_earlier(plan, contact, outbound, old)
        if granted == 0:
            if old is not None:
                plan.remove.append(old)
            return
        if contact.ours and contact.instance and (b"gr" in contact.uri.parameters or contact.uri.aor() == plan.aor):
            raise RemoteError(403, "contact_gruu", "A contact is neither the address of record nor a GRUU")
        if contact.ours:
            raise syntax_error("contact_loop", "a contact points at this server")
        binding = _build(plan.aor, contact, outbound, hop, now)
        binding.call_id = call_id
        binding.cseq = message.cseq
        binding.expires_at = now + granted
        binding.user_agent = message.value(h.USER_AGENT) or b""
        plan.put.append((binding, old, granted))

    def _forget_earlier(self, plan: Plan, contact: Contact, outbound: bool, old: Binding | None) -> None:
        """Let the later of two values for one binding in one request count."""
        if old in plan.remove:
            plan.remove.remove(old)
        if plan.put:
            earlier = self._find([binding for binding, _, _ in plan.put], contact, outbound)
            plan.put = [item for item in plan.put if item[0] is not earlier and (old is None or item[1] is not old)]

    def _grant(self, contact: Contact, header_expires: bytes | None) -> int:
        """Return the seconds to grant (RFC 3261 §10.3 step 7): 0 removes, too short is a 423."""
        settings = self._settings
        wanted_text = contact.expires if contact.expires is not None else header_expires
        wanted = settings.default_expires if wanted_text is None else h.parse_delta(wanted_text, MALFORMED_EXPIRES)
        if 0 < wanted < settings.min_expires and wanted < _HOUR:
            raise RemoteError(423, "interval_too_brief")
        return min(wanted, settings.max_expires)

    def _find(self, bindings: list[Binding], contact: Contact, outbound: bool) -> Binding | None:
        for binding in bindings:
            if outbound:
                if binding.reg_id == contact.reg_id and binding.instance == contact.instance:
                    return binding
            elif not binding.reg_id and self._is_same(self._uris.parse(binding.contact), contact.uri):
                return binding
        return None

    def _is_same(self, known: SipUri, uri: SipUri) -> bool:
        """Whether two contacts are one: by URI comparison, sip and sips taken as one (RFC 5630 §5.1.1.1)."""
        if known.secure is not uri.secure:
            known = self._uris.parse((b"sips:" if uri.secure else b"sip:") + known.raw.partition(b":")[2])
        return uri_equal(known, uri)

    def _check_outbound(
        self, contacts: list[Contact], header_expires: bytes | None, hop: Hop, supports_outbound: bool
    ) -> None:
        flows = [contact for contact in contacts if contact.reg_id and contact.instance]
        if not flows:
            return
        if len(contacts) > 1:
            alive = [contact for contact in contacts if self._grant(contact, header_expires) > 0]
            if len(alive) > 1 and any(contact in flows for contact in alive):
                raise syntax_error("several_reg_ids", "one contact with a reg-id at a time")
        if hop.lacks_outbound and supports_outbound:
            raise RemoteError(439, "first_hop_lacks_outbound")

    def _check_count(self, plan: Plan) -> None:
        """Count what would be there: devices of the AOR, flows of each device; who was there may always come back."""
        if all(old is not None for _, old, _ in plan.put):
            return
        gone = [*plan.remove, *(old for _, old, _ in plan.put if old is not None)]
        known = self.location.bindings(plan.aor)
        before = Counter(map(_device, known))
        after = Counter(_device(binding) for binding in known if binding not in gone)
        after.update(_device(binding) for binding, _, _ in plan.put)
        if len(after) > self._settings.bindings_per_aor and after.keys() - before.keys():
            raise RemoteError(403, "too_many_bindings", "Too many contacts")
        most = self._settings.flows_per_instance
        if any(count > most and count > before[device] for device, count in after.items()):
            raise RemoteError(403, "too_many_flows", "Too many flows of one instance")

    def _read_contacts(self, values: list[bytes]) -> list[Contact]:
        contacts: list[Contact] = []
        for value in values:
            known = self._contacts.get(value)
            if known is None:
                known = [self._read_contact(item) for item in split_list(unfold(value))]
                if len(self._contacts) >= 1024:
                    self._contacts.clear()
                self._contacts[value] = known
            contacts += known
        if len(contacts) > self._settings.contacts_per_request:
            raise syntax_error("contacts", "too many contacts in one request")
        return contacts

    def _read_contact(self, item: bytes) -> Contact:
        address = h.parse_name_addr(item)
        contact = Contact()
        if len(address.uri) > self._settings.contact_octets:
            raise syntax_error("contact", "the contact is too long")
        try:
            contact.uri = self._uris.parse(address.uri)
        except RemoteError:
            if b"+sip.instance" in address.parameters.lower():  # RFC 5627 §5.1
                raise RemoteError(403, "contact", "A contact with an instance is a sip or sips URI") from None
            raise syntax_error("contact", "a contact is a sip or sips URI") from None
        parameters = parse_parameters(address.parameters)
        _check_once(parameters)
        values = dict(parameters)
        contact.expires = (values[b"expires"] or b"") if b"expires" in values else None
        contact.q = _read_q(values[b"q"]) if b"q" in values else 1000
        contact.instance = self._read_instance(values.get(b"+sip.instance"))
        reg_id = _read_reg_id(values[b"reg-id"]) if b"reg-id" in values else 0
        contact.reg_id = reg_id if contact.instance else 0
        contact.ours = self._is_ours(contact.uri)
        contact.parameters = b"".join(
            b";" + name + (b"" if content is None else b"=" + content)
            for name, content in parameters
            if name not in (b"expires", b"pub-gruu", b"temp-gruu")
        )
        return contact

    def _read_instance(self, value: bytes | None) -> bytes:
        if value is None:
            return b""
        if len(value) > self._settings.instance_octets:
            raise syntax_error("instance", "the instance is too long")
        return canonical_instance(value)


def _check_secure(contacts: list[Contact], message: Message, hop: Hop) -> None:
    """A sips contact wants the whole registration to be sips (RFC 5630 §5.2)."""
    uris = [message.uri, *(contact.uri.raw for contact in contacts)]
    uris += [h.parse_name_addr(value).uri for value in hop.path]
    if not all(uri[:5].lower() == b"sips:" for uri in uris):
        raise syntax_error("sips_contact", "a sips contact needs sips everywhere")


def _device(binding: Binding) -> bytes:
    """What counts as one device: an instance with all its flows, or a contact."""
    return binding.instance if binding.reg_id else b"\0" + binding.contact


def _build(aor: bytes, contact: Contact, outbound: bool, hop: Hop, now: float) -> Binding:
    binding = Binding()
    binding.aor = aor
    binding.contact = contact.uri.raw
    binding.parameters = contact.parameters if outbound else _without_reg_id(contact)
    binding.q = contact.q
    binding.instance = contact.instance
    binding.reg_id = contact.reg_id if outbound else 0
    binding.path = hop.path
    binding.flow = hop.flow
    binding.connection = None
    binding.refreshed_at = now
    return binding


def _without_reg_id(contact: Contact) -> bytes:
    """A reg-id that was ignored is not given back (RFC 5626 §6)."""
    if b"reg-id" not in contact.parameters:
        return contact.parameters
    kept = [(name, content) for name, content in parse_parameters(contact.parameters) if name != b"reg-id"]
    return b"".join(b";" + name + (b"" if content is None else b"=" + content) for name, content in kept)


def _check_once(parameters: list[tuple[bytes, bytes | None]]) -> None:
    names = [name for name, _ in parameters if name in (b"expires", b"q", b"reg-id", b"+sip.instance")]
    if len(names) != len(set(names)):
        raise syntax_error("duplicate_parameter", "a contact parameter occurs twice")


def _read_q(value: bytes | None) -> int:
    """Read a qvalue into thousandths (RFC 3261 §25.1)."""
    whole, dot, fraction = (value or b"").partition(b".")
    if whole not in (b"0", b"1") or len(fraction) > 3 or (fraction and not is_digits(fraction)):
        raise syntax_error("q", "q is 0 to 1 with at most three decimals")
    thousandths = int(whole) * 1000 + int((fraction + b"000")[:3] if dot else b"0")
    if thousandths > 1000:
        raise syntax_error("q", "q is at most 1")
    return thousandths


def _read_reg_id(value: bytes | None) -> int:
    if not value or not is_digits(value) or len(value) > 10 or not 0 < int(value) < 2**31:
        raise syntax_error("reg_id", "reg-id is 1 to 2147483647")
    return int(value)


def canonical_instance(value: bytes) -> bytes:
    """Return the URN of a +sip.instance value for comparison (RFC 5626 §4.1): no quotes, no brackets, folded case."""
    urn = unquote(value)
    if urn[:1] == b"<" and urn[-1:] == b">":
        urn = urn[1:-1]
    scheme, _, rest = urn.partition(b":")
    namespace, _, specific = rest.partition(b":")
    if namespace.lower() == b"uuid":
        specific = specific.lower()
    return scheme.lower() + b":" + namespace.lower() + b":" + specific


def contact_line(binding: Binding, now: float) -> bytes:
    """Write the Contact line of a 200 to REGISTER (RFC 3261 §10.3 step 8)."""
    left = max(0, round(binding.expires_at - now))
    return b"Contact: <%s>%s;expires=%d" % (binding.contact, binding.parameters, left)


def flow_contact(binding: Binding) -> SipUri:
    """Return the contact as a parsed URI."""
    return parse_uri(binding.contact)


__all__ = [
    "Contact", "Hop", "Plan", "Registrar", "RegistrarSettings", "canonical_instance", "contact_line", "flow_contact",
    "quote",
]  # fmt: skip
