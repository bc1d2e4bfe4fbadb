"""Errors a user can meet. Each message is one line that says what to do.

StillhouseError
├── UsageError        the call was wrong (exit code 2)
│   ├── DataError     the data can't be used as asked
│   └── ModelError    the model can't be used as asked
└── RunError          the call was right, the run failed (exit code 1)
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class StillhouseError(Exception):
    exit_code = 1


class UsageError(StillhouseError):
    exit_code = 2


class DataError(UsageError):
    pass


class ModelError(UsageError):
    pass


class RunError(StillhouseError):
    pass


def unknown(kind: str, name: str, known: Iterable[str]) -> str:
    """`unknown loss 'fowrard_kl': did you mean 'forward_kl'? (known: ...)`."""
    choices = sorted(known)
    near = difflib.get_close_matches(name, choices, n=1, cutoff=0.5)
    hint = f": did you mean {near[0]!r}?" if near else ""
    return f"unknown {kind} {name!r}{hint} (known: {', '.join(choices)})"
