"""Compile the modules every message passes through with mypyc; everything else is in pyproject.toml.

Without a C compiler, or with EDGE_COMPILE=0, the same modules run as ordinary Python: slower, and alike in all they do.
"""

from __future__ import annotations

import os
import shutil
import sys
import sysconfig
from pathlib import Path

from setuptools import Extension, setup

ROOT = Path(__file__).parent
MODULES = ("connections", "datagram", "demux", "errors", "networks", "rates", "stream", "timers", "wsframes")
PACKAGES = ("auth", "msrp", "outbound", "sip")
INTERPRETED = {"edge/sip/reach.py", "edge/sip/resolver.py", "edge/sip/resolver_client.py"}  # the world outside: asyncio


def compiled_paths() -> list[str]:
    """Name the modules to compile, relative to the root."""
    paths = [f"edge/{name}.py" for name in MODULES]
    for package in PACKAGES:
        paths += sorted(str(path.relative_to(ROOT)) for path in (ROOT / "edge" / package).glob("*.py"))
    return [path for path in paths if path not in INTERPRETED and not path.endswith("__init__.py")]


def mend_slices(folder: Path) -> str:
    """Write a mended copy of the slicing of bytes and return its folder.

    In mypyc 2.4 `data[start:stop]` with start behind stop raises SystemError, where Python gives no octets.
    """
    import mypyc

    source = (Path(mypyc.__file__).parent / "lib-rt" / "bytes_ops.c").read_text()
    before, after = "slice_len = endn - startn;", "slice_len = endn > startn ? endn - startn : 0;"
    if source.count(before) != 1:
        raise SystemExit("this version of mypyc slices in another way: look at mend_slices in setup.py")
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "bytes_ops.c").write_text(source.replace(before, after))
    return str(folder)


def can_compile() -> bool:
    """Look for a C compiler and Python's headers."""
    compiler = (sysconfig.get_config_var("CC") or "cc").split()[0]
    return shutil.which(compiler) is not None and (Path(sysconfig.get_path("include")) / "Python.h").exists()


def extensions() -> list[Extension]:
    """Return what is to be compiled; failing to compile is no failure of the installation."""
    builds = {"bdist_wheel", "build", "build_ext"}.intersection(sys.argv)  # and is not asked for metadata alone
    if os.environ.get("EDGE_COMPILE", "1") == "0" or not builds or not can_compile():
        return []
    from mypyc.build import mypycify

    options = ["--config-file=", "--python-version=3.11", "--ignore-missing-imports", "--follow-imports=silent"]
    found = mypycify([*options, *compiled_paths()], opt_level="2", debug_level="0")
    for extension in found:
        extension.include_dirs.insert(0, mend_slices(ROOT / "build" / "mended"))
        extension.optional = True
    return found


setup(ext_modules=extensions())
