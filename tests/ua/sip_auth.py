"""How the simulated SIP UA answers challenges (RFC 3261 §22, RFC 7616, RFC 8760)."""

from collections import defaultdict

from tests.ua import digest
from tests.ua.sip_message import HeaderList, Response

MAX_CHALLENGES = 4
HEADERS = {401: ("WWW-Authenticate", "Authorization"), 407: ("Proxy-Authenticate", "Proxy-Authorization")}


class SipCredentials:
    """One user's name and password, the challenges known, and how often each nonce was used.

    Attributes:
        challenges: 401 and 407 answered so far. answer: the last credentials made.
    """

    def __init__(self, user: str, password: str | None, algorithms: tuple[str, ...]) -> None:
        self.user, self.password, self.algorithms = user, password, algorithms
        self.challenges = 0
        self.answer: digest.Answer | None = None
        self._uses: defaultdict[str, int] = defaultdict(int)
        self._known: dict[tuple[str, str], digest.Challenge] = {}

    def retry(self, response: Response, headers: HeaderList, answered: int) -> HeaderList | None:
        """Return the headers with credentials for a challenge, or None where there is nothing (more) to try.

        Credentials for the same realm that were refused are tried again only if the challenge says stale.
        """
        if response.status not in HEADERS or self.password is None or answered >= MAX_CHALLENGES:
            return None
        asked, name = HEADERS[response.status]
        challenge = digest.choose(response.all(asked), self.algorithms)
        request = response.request
        if challenge is None or request is None:
            return None
        realm = f'realm="{challenge.realm}"'
        if any(realm in value for value in headers.all(name)) and not challenge.stale:
            return None
        self.challenges += 1
        self._known[name, challenge.realm] = challenge
        others = [(name, value) for value in headers.all(name) if realm not in value]
        return headers.override([*others, (name, self._make(challenge, request.method, request.uri))])

    def in_advance(self, method: str, uri: str, headers: HeaderList) -> HeaderList:
        """Return the headers with credentials for every challenge known, nc one higher than last time."""
        made = [
            (name, self._make(challenge, method, uri))
            for (name, _), challenge in self._known.items()
            if name not in headers
        ]
        return HeaderList([*headers, *made])

    def learn(self, response: Response) -> None:
        """Take over the nextnonce of an Authentication-Info header (RFC 7616 §3.5)."""
        value = response.get("Authentication-Info")
        nonce = digest.parse_parameters(value).get("nextnonce") if value else None
        if nonce is not None and self.answer is not None:
            old = self.answer.challenge
            self._known["Authorization", old.realm] = digest.Challenge(
                old.realm, nonce, old.algorithm, old.opaque, old.qop
            )

    def _make(self, challenge: digest.Challenge, method: str, uri: str) -> str:
        self._uses[challenge.nonce] += 1
        count = self._uses[challenge.nonce]
        self.answer = digest.answer(challenge, self.user, self.password or "", method, uri, count=count)
        return self.answer.header
