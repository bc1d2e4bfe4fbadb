"""A blind test: a third party picks the questions, asks the models, and seals the answers before
anybody has told it which questions are marked.

The owner exports the kept questions, in the order of their leaves' hashes, which tells nothing of
them. The third party picks some by a number of its own. The owner opens: the key is shown, and the
verdict is on these answers alone. As the pick knows nothing of the marks, the test stays exact.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal, TypeVar

from pydantic import Field, ValidationError

from stillhouse.core.errors import UsageError
from stillhouse.core.results import Result
from stillhouse.guard.chain import (
    Digest,
    SealedHead,
    canonical_json,
    is_chain,
    root_by,
)
from stillhouse.guard.keys import Keys, is_signed
from stillhouse.guard.snapshot import Answered, Snapshot

T = TypeVar("T", bound=Result)


class BlindQuestion(Result):
    """A kept question without its kind, its true and its wrong answer. leaf: its hash, by which the
    log head has it, salted so that nobody can guess these; head, place, path: where."""

    leaf: Digest
    text: str
    pair: str | None
    head: int
    place: int
    path: list[Digest]


class BlindQuestions(Result):
    """What an owner gives to a third party: the questions in the order of their hashes, and the log
    heads that bind the rest."""

    kind: Literal["stillhouse blind questions"] = "stillhouse blind questions"
    model: str
    name: str
    task: str
    choices: list[str]
    heads: list[SealedHead]
    questions: list[BlindQuestion]


class BlindAnswers(Result):
    """What a third party found: who it is, its number, the questions that it was offered (by their
    hashes), how many of these it took, and what each model said of those, in the order of `pick`.
    head: the hash of the last log head that it was given."""

    kind: Literal["stillhouse blind answers"] = "stillhouse blind answers"
    asked_by: Annotated[str, Field(min_length=1, max_length=200)]
    head: Digest
    model: str
    nonce: Digest
    offered: list[Digest]
    take: Annotated[int, Field(ge=1)]
    models: Annotated[list[Answered], Field(min_length=1)]
    public_key: Digest | None = None

    @property
    def picked(self) -> list[str]:
        return pick(self.nonce, self.offered, self.take)


class SealedAnswers(Result):
    """Blind answers and their third party's signature, where it has a key."""

    answers: BlindAnswers
    signature: Annotated[str, Field(pattern=r"^[0-9a-f]{128}$")] | None = None

    @property
    def digest(self) -> str:
        """SHA-256 of the answers: what the third party keeps, and tells the judge."""
        return hashlib.sha256(canonical_json(self.answers.model_dump(mode="json"))).hexdigest()

    @property
    def is_signed(self) -> bool:
        key = self.answers.public_key
        return bool(key and self.signature and is_signed(self._body, self.signature, key))

    @property
    def _body(self) -> bytes:
        return canonical_json(self.answers.model_dump(mode="json"))


def pick(nonce: str, offered: Sequence[str], take: int) -> list[str]:
    """So many of the offered hashes: those that come first by SHA-256 of the number and the hash,
    which nobody can steer who doesn't know the number."""
    salt = bytes.fromhex(nonce)
    return sorted(offered, key=lambda each: hashlib.sha256(salt + bytes.fromhex(each)).digest())[
        :take
    ]


def questions_of(snapshot: Snapshot, heads: Sequence[SealedHead]) -> BlindQuestions:
    """What a third party gets of a snapshot. Raises UsageError where one is under no head."""
    found = []
    for place, (kept, proof) in enumerate(zip(snapshot.kept, snapshot.proofs, strict=True)):
        hashed = snapshot.leaf(place)
        if proof is None or hashed is None:
            raise UsageError("a question is under no log head: stillhouse guard heads --seal")
        found.append(
            BlindQuestion(
                leaf=hashed.hex(), text=kept.text, pair=kept.pair, head=proof.head,
                place=proof.place, path=proof.path,
            )
        )  # fmt: skip
    return BlindQuestions(
        model=snapshot.model, name=snapshot.name, task=snapshot.task, choices=snapshot.choices,
        heads=list(heads), questions=sorted(found, key=lambda each: each.leaf),
    )  # fmt: skip


def check_questions(given: BlindQuestions) -> None:
    """Raises UsageError where the questions are not all under the log heads that come with them."""
    if not given.heads or not is_chain(given.heads):
        raise UsageError("the questions' log heads are no whole, signed chain")
    for each in given.questions:
        head = given.heads[each.head - 1].head if 0 < each.head <= len(given.heads) else None
        path = [bytes.fromhex(step) for step in each.path]
        root = head and root_by(bytes.fromhex(each.leaf), each.place, head.leaves, path)
        if head is None or root is None or root.hex() != head.root:
            raise UsageError("a question is not under the log head that it names")
    if len({each.leaf for each in given.questions}) < len(given.questions):
        raise UsageError("a question is there twice")


def sealed_answers(answers: BlindAnswers, keys: Keys | None) -> SealedAnswers:
    """Answers with the third party's signature, where it has a key."""
    if keys is None:
        return SealedAnswers(answers=answers)
    named = answers.model_copy(update={"public_key": keys.public})
    return SealedAnswers(
        answers=named, signature=keys.sign(canonical_json(named.model_dump(mode="json")))
    )


def picked_of(snapshot: Snapshot, answers: BlindAnswers) -> Snapshot:
    """The snapshot of the questions that a third party picked, in its order. Raises UsageError for
    answers about other questions."""
    places = {
        hashed.hex(): place
        for place in range(len(snapshot.kept))
        if (hashed := snapshot.leaf(place)) is not None
    }
    if answers.model != snapshot.model or set(answers.offered) - places.keys():
        raise UsageError("the answers are about questions that the registry has not")
    return snapshot.only([places[each] for each in answers.picked])


def read_questions(path: Path) -> BlindQuestions:
    """Raises UsageError."""
    return _read(BlindQuestions, path, "guard blind-questions")


def read_answers(path: Path) -> SealedAnswers:
    """Raises UsageError."""
    return _read(SealedAnswers, path, "guard blind-ask")


def _read(kind: type[T], path: Path, command: str) -> T:
    try:
        return kind.model_validate_json(path.read_bytes())
    except OSError as error:
        raise UsageError(f"can't read {path}: {error.strerror}") from None
    except (ValidationError, ValueError):
        raise UsageError(f"{path} is not what stillhouse {command} wrote") from None
