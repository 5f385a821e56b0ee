"""Octets of the wire as text for hooks, and back: UTF-8; octets that are none survive unharmed (surrogates)."""

from __future__ import annotations

from edge.sip.grammar import is_token


def encode(text: str) -> bytes:
    """Turn a hook's text into octets; line ends in it are an error, for they would begin a header of their own."""
    data = text.encode("utf-8", "surrogateescape")
    if b"\r" in data or b"\n" in data or b"\0" in data:
        raise ValueError("no line ends in a header")
    return data


def decode(data: bytes) -> str:
    """Turn octets into text for a hook."""
    return data.decode("utf-8", "surrogateescape")


def header_line(name: str, value: str) -> bytes:
    """Write a header line; ValueError for what cannot be one."""
    if not is_token(encode(name)):
        raise ValueError(f"{name!r} is not the name of a header")
    return encode(name) + b": " + encode(value)
