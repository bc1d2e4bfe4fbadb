"""A small case: a guarded model whose clients asked, a suspect behind an address, an authority."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from authority import Authority, authority
from guarded import SECRET
from serving import serving

from stillhouse.core.settings import parse
from stillhouse.core.types import Example
from stillhouse.guard import heads as log
from stillhouse.guard import stamps
from stillhouse.guard.guard import Guard
from stillhouse.guard.keys import Keys
from stillhouse.guard.model import About, Truth
from stillhouse.guard.registry import Registry
from stillhouse.guard.settings import GuardConfig, VerifyConfig
from stillhouse.guard.snapshot import Snapshot, take

CHOICES = ["contradiction", "entailment", "neutral"]
ABOUT = About("model-1", "our model", "classification", CHOICES)
QUESTIONS = 400


def truth(text: str) -> int:
    """What the model says of a question: something of its letters."""
    return sum(map(ord, text)) % 3


def said(examples: Any) -> list[Truth]:
    return [Truth(probabilities_K=np.eye(3)[truth(e.text)]) for e in examples]


@dataclass(frozen=True)
class Case:
    """keys: the owner's; registry, with the questions of ann and bob; tsa: an authority."""

    folder: Path
    registry: Registry
    keys: Keys
    tsa: Authority

    @property
    def snapshot(self) -> Snapshot:
        return take(self.registry, self.keys)

    def ask(self, name: str, start: int, count: int) -> None:
        """A client asks so many new questions."""
        config = parse(GuardConfig, {"marks": {"rate": 0.05, "early": 0, "controls": 5}})
        with Guard(config, self.keys, Registry(str(self.registry.url)), ABOUT) as guard:
            known = {row.name: row.id for row in guard.registry.clients()}
            client = known.get(name) or guard.registry.create_client(name)[0].id
            asked = [Example(f"{name} asks about film {i}") for i in range(start, start + count)]
            for at in range(0, count, 100):
                guard.answer(client, asked[at : at + 100], said)
            guard.flush()

    def stamp(self) -> int:
        """Seals what is new and has the last head stamped; its number."""
        log.seal_all(self.registry, self.keys)
        last = log.sealed(self.registry)[-1].head
        log.bind(self.registry, last.number, stamp=self.tsa.stamp(stamps.request(last)))
        return last.number

    @contextmanager
    def thief(self) -> Iterator[str]:
        """The description of a suspect that gives what was served, marks included."""
        served = {kept.text: kept.served["label"] for kept in self.snapshot.kept}
        with self.suspect(lambda text: served.get(text, CHOICES[truth(text)])) as path:
            yield path

    @contextmanager
    def suspect(self, answer: Any) -> Iterator[str]:
        described = {"body": {"texts": "{texts}"}, "batch": 50,
                     "read": {"answers": "out", "label": "label"}}  # fmt: skip
        with serving(lambda text, pair: {"label": answer(text)}) as server:
            path = self.folder / "suspect.yaml"
            path.write_text(yaml.safe_dump(described | {"url": server.url}))
            yield str(path)

    def config(self, *suspects: str, **changes: Any) -> VerifyConfig:
        values = {"suspects": suspects, "cache": str(self.folder / "cache"), **changes}
        return parse(VerifyConfig, values)


def case(folder: Path) -> Case:
    """Two clients asked 400 questions each."""
    registry = Registry(f"sqlite:///{folder / 'registry.db'}")
    registry.upgrade()
    found = Case(folder, registry, Keys(SECRET), authority(folder / "tsa"))
    for name in ("ann", "bob"):
        found.ask(name, 0, QUESTIONS)
    return found


@contextmanager
def stamped(folder: Path) -> Iterator[Case]:
    """A case whose log is stamped, by an authority that counts as one under a public root."""
    with pytest.MonkeyPatch.context() as patch:
        found = case(folder)
        patch.setattr(stamps, "public_roots", lambda: tuple(found.tsa.roots))
        found.stamp()
        yield found
