"""The error tree of the edge.

EdgeError
├── RemoteError    the peer broke a rule: answer, count, maybe close
├── LocalError     our own bug or misuse: log with traceback, answer 500
└── ConfigError    the configuration cannot be used: name file, key and reason, exit 2
"""


class EdgeError(Exception):
    """Root of every error this package raises on purpose."""


class RemoteError(EdgeError):
    """A peer broke a rule of its protocol.

    `status` is the SIP or MSRP status code to answer with, 0 where nothing can be answered.
    `label` is one of a fixed set of short words and goes into metrics; `detail` is for the reason phrase
    and must not repeat bytes of the peer.
    """

    def __init__(self, status: int, label: str, detail: str = "") -> None:
        super().__init__(f"{status} {label}" + (f": {detail}" if detail else ""))
        self.status = status
        self.label = label
        self.detail = detail


class LocalError(EdgeError):
    """Our own bug or misuse of an interface."""


class ConfigError(EdgeError):
    """The configuration cannot be used.

    `source` is the file (or "defaults"), `key` the dotted key (or "" for the whole file), `reason` one sentence.
    """

    def __init__(self, source: str, key: str, reason: str) -> None:
        where = f"{source}: {key}" if key else source
        super().__init__(f"{where}: {reason}")
        self.source = source
        self.key = key
        self.reason = reason
