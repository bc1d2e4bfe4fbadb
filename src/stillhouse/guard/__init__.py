"""A model served behind a guard: answers metered, logged, a few of them marked; and the proof."""

from stillhouse.core.types import Example
from stillhouse.guard.client import GuardedModel
from stillhouse.guard.guard import Guard
from stillhouse.guard.keys import Keys, new_keys, read_keys
from stillhouse.guard.membership import Head
from stillhouse.guard.middleware import GuardMiddleware, Outside
from stillhouse.guard.model import About, ServedModel, Truth
from stillhouse.guard.registry import Registry
from stillhouse.guard.settings import GuardConfig

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
    "Registry",
    "ServedModel",
    "Truth",
    "new_keys",
    "read_keys",
]
