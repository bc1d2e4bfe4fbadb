"""A model served behind a guard: answers metered, logged, a few of them marked; and the proof.

Names load when they are first used: a registry and its keys need no torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from stillhouse.core.types import Example
    from stillhouse.guard.client import GuardedModel
    from stillhouse.guard.guard import Guard
    from stillhouse.guard.keys import Keys, new_keys, read_keys
    from stillhouse.guard.membership import Head
    from stillhouse.guard.middleware import GuardMiddleware
    from stillhouse.guard.model import About, ServedModel, Truth
    from stillhouse.guard.reading import Reading, TokenizerReads
    from stillhouse.guard.registry import Registry
    from stillhouse.guard.settings import GuardConfig, Outside

__all__ = [
    "About",
    "Example",
    "Guard",
    "GuardConfig",
    "GuardMiddleware",
    "GuardedModel",
    "Head",
    "Keys",
    "Outside",
    "Reading",
    "Registry",
    "ServedModel",
    "TokenizerReads",
    "Truth",
    "new_keys",
    "read_keys",
]

HOMES = {
    "stillhouse.core.types": ("Example",),
    "stillhouse.guard.client": ("GuardedModel",),
    "stillhouse.guard.guard": ("Guard",),
    "stillhouse.guard.keys": ("Keys", "new_keys", "read_keys"),
    "stillhouse.guard.membership": ("Head",),
    "stillhouse.guard.middleware": ("GuardMiddleware",),
    "stillhouse.guard.model": ("About", "ServedModel", "Truth"),
    "stillhouse.guard.reading": ("Reading", "TokenizerReads"),
    "stillhouse.guard.registry": ("Registry",),
    "stillhouse.guard.settings": ("GuardConfig", "Outside"),
}


def __getattr__(name: str) -> Any:
    for home, names in HOMES.items():
        if name in names:
            return getattr(import_module(home), name)
    raise AttributeError(f"module 'stillhouse.guard' has no attribute {name!r}")


def __dir__() -> list[str]:
    return list(__all__)
