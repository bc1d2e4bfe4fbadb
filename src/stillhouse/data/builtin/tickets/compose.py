"""Messages without labels for the ticket example, composed from the parts in parts.yaml.

Unlabelled text is what a student learns from when a teacher answers for it, so it is made to be
as untidy as what customers send: greetings, asides, typing slips, messages with two requests in
one, and now and then small talk that is no request at all.
"""

import csv
import functools
import itertools
import random
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import yaml

INTENTS: Final = (
    "billing",
    "refund",
    "delivery",
    "account_access",
    "technical_problem",
    "cancellation",
    "product_question",
    "complaint",
)

DISTINCT: Final = 20_000
"""How many messages of one stream are certain to differ from each other."""

SMALL_TALK_SHARE: Final = 0.03
MIXED_SHARE: Final = 0.12
OPENER_SHARE: Final = 0.45
CONTEXT_SHARE: Final = 0.4
CLOSER_SHARE: Final = 0.4
LOWER_SHARE: Final = 0.25
BARE_SHARE: Final = 0.15
SHORTHAND_SHARE: Final = 0.1
TYPO_SHARE: Final = 0.2

_HERE: Final = Path(__file__).resolve().parent
_SLOT: Final = re.compile(r"\{(\w+)\}")
_WORD: Final = re.compile(r"[A-Za-z]+")
_FIRST_PERSON: Final = re.compile(r"I\b")
_SLOT_DEPTH: Final = 3
_SLIP_LENGTH: Final = 4


@dataclass(frozen=True, slots=True)
class Parts:
    """The pieces that messages are composed from, as parts.yaml holds them."""

    slots: Mapping[str, Sequence[str]]
    openers: Sequence[str]
    contexts: Sequence[str]
    closers: Sequence[str]
    connectors: Sequence[str]
    abbreviations: Mapping[str, str]
    smalltalk: Sequence[str]
    intents: Mapping[str, Sequence[str]]


@functools.lru_cache(maxsize=1)
def parts() -> Parts:
    """The parts in parts.yaml, read once; ValueError where its intents are not INTENTS."""
    raw: dict[str, Any] = yaml.safe_load((_HERE / "parts.yaml").read_text(encoding="utf-8"))
    read = Parts(**raw)
    if set(read.intents) != set(INTENTS):
        raise ValueError(f"parts.yaml names the intents {sorted(read.intents)}, not {INTENTS}")
    return read


def fold(text: str) -> str:
    """The text with case, punctuation and spacing folded away, to tell repeats by."""
    return " ".join(re.findall(r"\w+", text.casefold().replace("'", "")))


def unlabelled(count: int, *, seed: int = 0) -> Iterator[str]:
    """An iterator over `count` composed messages, the same ones for the same seed.

    A shorter stream is the beginning of a longer one with the same seed. The first 20,000
    messages differ from each other, also once case and punctuation are folded away. Later ones
    differ from those 20,000, but may now and then repeat among themselves: that keeps the memory
    bounded however long the stream is. No message equals one of the hand-written ones.
    """
    if count < 0:
        raise ValueError(f"count must not be negative, got {count}")
    return _stream(count, random.Random(seed))


def _stream(count: int, rng: random.Random) -> Iterator[str]:
    """The messages of one stream, lazily, without those seen before."""
    known = parts()
    seen = set(_hand_written())
    limit = len(seen) + DISTINCT
    made = 0
    while made < count:
        text = _message(known, rng)
        key = fold(text)
        if key in seen:
            continue
        if len(seen) < limit:
            seen.add(key)
        made += 1
        yield text


@functools.lru_cache(maxsize=1)
def _hand_written() -> frozenset[str]:
    """The folded texts of the labelled messages, which no composed message may equal."""
    texts: set[str] = set()
    for name in ("train.csv", "dev.csv", "test.csv"):
        with (_HERE / name).open(encoding="utf-8", newline="") as file:
            texts.update(fold(row["text"]) for row in csv.DictReader(file))
    return frozenset(texts)


def _message(known: Parts, rng: random.Random) -> str:
    """One message: a body between optional shared parts, filled in and made untidy."""
    pieces = [
        *_maybe(known.openers, OPENER_SHARE, rng),
        *_maybe(known.contexts, CONTEXT_SHARE, rng),
        *_body(known, rng),
        *_maybe(known.closers, CLOSER_SHARE, rng),
    ]
    filled = [_fill(piece, known.slots, rng) for piece in pieces]
    return _untidy(_join(filled), known.abbreviations, rng)


def _maybe(choices: Sequence[str], share: float, rng: random.Random) -> list[str]:
    """One of the choices with probability `share`, else nothing."""
    return [rng.choice(choices)] if rng.random() < share else []


def _body(known: Parts, rng: random.Random) -> list[str]:
    """What the message is about: one request, two of different intents, or small talk."""
    kind = rng.random()
    if kind < SMALL_TALK_SHARE:
        return [rng.choice(known.smalltalk)]
    if kind < SMALL_TALK_SHARE + MIXED_SHARE:
        first, second = rng.sample(INTENTS, 2)
        clauses = rng.choice(known.intents[first]), rng.choice(known.intents[second])
        return [clauses[0], rng.choice(known.connectors), clauses[1]]
    return [rng.choice(known.intents[rng.choice(INTENTS)])]


def _fill(template: str, slots: Mapping[str, Sequence[str]], rng: random.Random) -> str:
    """The template with its slots chosen and every hash sign turned into a digit."""
    text = template
    for _ in range(_SLOT_DEPTH):
        text = _SLOT.sub(lambda match: rng.choice(slots[match[1]]), text)
    return re.sub("#", lambda _: str(rng.randint(1, 9)), text)


def _join(pieces: Sequence[str]) -> str:
    """The pieces as one text, going on in lower case after a piece without a full stop."""
    text = _capital(pieces[0])
    for before, piece in itertools.pairwise(pieces):
        goes_on = before[-1] not in ".!?" and not _FIRST_PERSON.match(piece)
        text += " " + (piece[0].lower() + piece[1:] if goes_on else _capital(piece))
    return text


def _capital(text: str) -> str:
    """The text with its first letter in upper case and the others as they are."""
    return text[:1].upper() + text[1:]


def _untidy(text: str, abbreviations: Mapping[str, str], rng: random.Random) -> str:
    """The text with some of: shorthand, a typing slip, lost punctuation, lower case."""
    if rng.random() < SHORTHAND_SHARE:
        text = _WORD.sub(lambda match: abbreviations.get(match[0].lower(), match[0]), text)
    if rng.random() < TYPO_SHARE:
        text = _slip(text, rng)
    if rng.random() < BARE_SHARE:
        text = " ".join(re.sub(r"[.,!?'](?=\s|[a-z]|$)", "", text).split())
    if rng.random() < LOWER_SHARE:
        text = text.lower()
    return text


def _slip(text: str, rng: random.Random) -> str:
    """The text with one word of some length mistyped: letters swapped, one lost or doubled."""
    words = [match for match in _WORD.finditer(text) if len(match[0]) >= _SLIP_LENGTH]
    if not words:
        return text
    word = rng.choice(words)
    at = word.start() + rng.randrange(1, len(word[0]) - 1)
    here, after = text[at], text[at + 1]
    changed = rng.choice((after + here, after, here + here + after))
    return text[:at] + changed + text[at + 2 :]
