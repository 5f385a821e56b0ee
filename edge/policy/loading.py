"""The operator's class, found by `module:Class`, read anew and checked before it is used."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import sys
from pathlib import Path
from types import ModuleType

from edge.errors import ConfigError
from edge.policy.base import Policy

HOOKS = (
    "connection_accepted", "websocket_upgrade", "sip_request", "sip_response", "before_forward", "registration",
    "user_known", "msrp_frame", "ended",
)  # fmt: skip


def load_policy(where: str, source: str) -> Policy | None:
    """Make the policy of `[policy] module`, None when that is empty; modules beside the file `source` come first.

    Raises:
        ConfigError: it cannot be loaded, or is no policy; says why.
    """
    if not where:
        return None
    name, _, attribute = where.partition(":")
    try:
        kind = getattr(_read_module(name, Path(source).resolve().parent), attribute)
        problem = _find_problem(kind)
        policy = None if problem else kind()
    except Exception as error:
        raise ConfigError(source, "policy.module", f"{type(error).__name__}: {error}") from error
    if policy is None or not isinstance(policy, Policy):
        raise ConfigError(source, "policy.module", problem)
    return policy


def is_overridden(policy: Policy, hook: str) -> bool:
    """Tell whether a policy has a hook of its own."""
    return getattr(type(policy), hook) is not getattr(Policy, hook)


def _read_module(name: str, folder: Path) -> ModuleType:
    """Read a module anew, without touching the one in use: a policy that is not taken leaves nothing behind."""
    path = folder / (name.replace(".", "/") + ".py")
    if not path.exists():
        return importlib.import_module(name)
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise ImportError(f"{path} cannot be read")
    module = importlib.util.module_from_spec(spec)
    before = sys.modules.get(name)
    sys.modules[name] = module  # dataclasses look there
    sys.path.insert(0, str(folder))
    try:
        code = compile(path.read_bytes(), str(path), "exec")  # never from a cache: two edits may fall into one second
        exec(code, module.__dict__)  # noqa: S102 - the operator's own code
    except BaseException:
        if before is None:
            del sys.modules[name]
        else:
            sys.modules[name] = before
        raise
    finally:
        sys.path.remove(str(folder))
    return module


def _find_problem(kind: object) -> str:
    """Say what is wrong with a class, "" when nothing is."""
    if not inspect.isclass(kind) or not issubclass(kind, Policy):
        return f"{kind!r} is not derived from edge.policy.Policy"
    for hook in HOOKS:
        function = getattr(kind, hook)
        try:
            inspect.signature(function).bind(None, None)
        except TypeError as error:
            return f"{hook}: {error}"
    return ""
