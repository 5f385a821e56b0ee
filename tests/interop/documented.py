"""The two routing examples in the documentation of Kamailio's msrp module, as installed here, made fit to run."""

from __future__ import annotations

import gzip
import re
from pathlib import Path

README = Path("/usr/share/doc/kamailio/modules/README.msrp.gz")

# The examples name an address, and things that version 5.6 has no longer, or writes otherwise in its own reference.
_ADAPTED = (
    ("listen=127.0.0.1:5060", "listen=tcp:127.0.0.1:@PORT@"),
    ("127.0.0.1:5060", "127.0.0.1:@PORT@"),
    ('mpath="modules_k/:modules/"\n', ""),
    ('loadmodule "mi_fifo.so"\n', ""),
    ('modparam("mi_fifo", "fifo_name", "/tmp/kamailio_fifo")\n', ""),
    ('"use_path_addr", "msrp://', '"use_path_addr", "'),  # host:port; with the scheme Use-Path begins msrp://msrp://
)


def read_example(word: str) -> str:
    """Return the example whose title has this word ("htable", "cmap"), with `@PORT@` where its port is to stand.

    Raises AssertionError if the documentation is not what it was.
    """
    text = gzip.decompress(README.read_bytes()).decode()
    titled = re.findall(r"Event Route \(([^)]*)\)\n\.\.\.\n(.*?)\n\.\.\.\n", text, re.DOTALL)
    [config] = [config for title, config in titled if word in title]
    for old, new in _ADAPTED:
        config = config.replace(old, new)
    assert "event_route[msrp:frame-in]" in config
    assert "@PORT@" in config
    return config
