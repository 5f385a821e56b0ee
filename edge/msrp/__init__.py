"""The MSRP relay (RFC 4975, 4976, 7977): URIs, frames, sessions, routes, chunks, reports and AUTH.

No module here knows sockets, an event loop or a clock: bytes and a time come in, bytes go to `Connection` objects.
"""
