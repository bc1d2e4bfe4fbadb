"""What one request is charged, and given back where it is not answered."""

from __future__ import annotations

import threading
from collections.abc import Sequence

from stillhouse.core.types import Example
from stillhouse.guard.guard import Guard


class Bill:
    """The charge of one request: its questions before they are read, its tokens before they are
    answered. Once it is given back, so is what is charged after that: a thread that waits for the
    registry goes on when its request was given up."""

    def __init__(self, guard: Guard, client: str, examples: Sequence[Example]) -> None:
        self._guard, self._client, self._examples = guard, client, examples
        self._asked, self._tokens, self._back = False, 0, False
        self._lock = threading.Lock()

    def admit_now(self) -> bool:
        """Charges the questions from what is held here; whether that was enough."""
        done = self._guard.admit_now(self._client, self._examples)
        if done:
            self._add(asked=True)
        return done

    def admit(self) -> None:
        """Charges the questions. Raises Denied."""
        self._guard.admit(self._client, self._examples)
        self._add(asked=True)

    def admit_tokens_now(self, tokens: int) -> bool:
        """Charges the tokens from what is held here; whether that was enough."""
        done = self._guard.admit_tokens_now(self._client, tokens)
        if done:
            self._add(tokens=tokens)
        return done

    def admit_tokens(self, tokens: int) -> None:
        """Charges the tokens. Raises Denied."""
        self._guard.admit_tokens(self._client, tokens)
        self._add(tokens=tokens)

    def refund(self) -> None:
        """Gives back what was charged, and what is charged after this."""
        with self._lock:
            asked, tokens, self._back = self._asked, self._tokens, True
            self._asked, self._tokens = False, 0
        self._return(asked=asked, tokens=tokens)

    def _add(self, *, asked: bool = False, tokens: int = 0) -> None:
        with self._lock:
            if not self._back:
                self._asked |= asked
                self._tokens += tokens
                return
        self._return(asked=asked, tokens=tokens)

    def _return(self, *, asked: bool, tokens: int) -> None:
        if asked or tokens:
            self._guard.refund(self._client, self._examples if asked else (), tokens=tokens)
