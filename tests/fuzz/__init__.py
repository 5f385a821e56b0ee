"""Throwing octets at whatever reads them. `python -m tests.fuzz.run` does so for a bounded time; see `make fuzz`."""
