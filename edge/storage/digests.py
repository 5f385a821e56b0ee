"""Between the columns of `subscriber` and a credential: the hashes of a password, as Kamailio keeps them.

`ha1` is for a user name without domain in the digest, `ha1b` for clients that put `user@domain` there.
"""

import re

from edge.auth.credentials import Credential
from edge.auth.digest import MD5, SHA_256, ha1

_MD5_HEX = re.compile(r"[0-9a-f]{32}")
_SHA256_HEX = re.compile(r"[0-9a-f]{64}")


def hash_password(username: str, domain: str, realm: str, password: str) -> dict[str, str]:
    """Return the columns `ha1`, `ha1b` and `ha1_sha256` for a password, in lower-case hexadecimal digits."""
    user, host, name, secret = (text.encode() for text in (username, domain, realm, password))
    return {
        "ha1": ha1(user, name, secret, MD5).decode(),
        "ha1b": ha1(user + b"@" + host, name, secret, MD5).decode(),
        "ha1_sha256": ha1(user, name, secret, SHA_256).decode(),
    }


def credential_of(
    username: str, domain: str, password: str | None, md5: str | None, sha256: str | None = None, *, realm: str = ""
) -> Credential:
    """Make a credential of a row; where only the plain password is kept (Kamailio's `calculate_ha1`), hash it.

    It is hashed for `realm`, or the user's own domain where that is empty.
    A column that does not hold a hash of its kind counts as empty.
    """
    hashes = {"ha1": (md5 or "").strip().lower(), "ha1_sha256": (sha256 or "").strip().lower()}
    if password and not hashes["ha1"]:
        hashes = hash_password(username, domain, realm or domain, password)
    return Credential(
        hashes["ha1"].encode() if _MD5_HEX.fullmatch(hashes["ha1"]) else None,
        hashes["ha1_sha256"].encode() if _SHA256_HEX.fullmatch(hashes["ha1_sha256"]) else None,
    )
