"""Checks a verdict's folder by itself: every file, the key, the proofs, the time stamps, and the
result and the page reckoned anew. What is in the folder may be anything: nothing of it is trusted.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from stillhouse.core.errors import StillhouseError, UsageError
from stillhouse.core.settings import read_yaml
from stillhouse.core.times import minute
from stillhouse.core.verdict_results import Stamp, VerdictRecord
from stillhouse.guard.binding import binding
from stillhouse.guard.blind import SealedAnswers
from stillhouse.guard.chain import Head, SealedHead, is_chain, is_under
from stillhouse.guard.folder import BLIND, check_files, needs, read_json
from stillhouse.guard.keys import commitment_to, is_signed
from stillhouse.guard.settings import VerifyConfig
from stillhouse.guard.snapshot import Answered, Snapshot, digest
from stillhouse.guard.stamps import read_stamps, stamp_of
from stillhouse.guard.trial import truth_of, wrong_answer
from stillhouse.guard.verdict import answer_of, judge
from stillhouse.guard.watermark import draw

Found = list[tuple[str, bool]]
MALFORMED = (OSError, ValueError, TypeError, LookupError, ArithmeticError, AttributeError,
             RecursionError, AssertionError, StillhouseError)  # fmt: skip


def check(
    out: Path, *, public_key: str | None = None, head: str | None = None,
    stamp: Path | None = None, authorities: Sequence[Path] = (), answers: str | None = None,
) -> Found:  # fmt: skip
    """Whether a verdict's folder holds together. public_key, head (a hash, or the file that `guard
    heads --out` wrote), stamp (a response of an authority), authorities (PEM files of roots) and
    answers (the digest that a third party tells): what is known from elsewhere. Raises UsageError
    where there is no verdict, or for one of these that is none."""
    needs(out)
    known_head = None if head is None else head_of(head)
    try:
        record = VerdictRecord.model_validate(read_json(out / "record.json"))
    except MALFORMED:
        return [("record.json is a verdict's record", False)]
    found: Found = []
    if public_key is not None:
        same = record.public_key == public_key.strip().lower()
        found.append(("the public key is the known one", same))
    found += _signed(out, record)
    found += check_files(out, record.public_key)
    if not all(good for _, good in found):
        return found  # what was changed is not read any further
    try:
        content, heads, blind = _content(out, record)
    except MALFORMED as error:
        return [*found, (f"the files can be read ({_line(error)})", False)]
    return found + content + _known(heads, blind, known_head, stamp, authorities, answers)


def limits(out: Path, *, public_key: str | None, authorities: Sequence[Path] = ()) -> list[str]:
    """What a check that found nothing wrong does not show, a sentence each."""
    record = VerdictRecord.open(out, "verification")
    found = []
    if public_key is None:
        found.append(
            "no public key known from elsewhere was given (--public-key): the signatures show only "
            "that the folder holds together, not whose it is"
        )
    if record.heads is not None and authorities:
        heads = _heads(out)
        snapshot = Snapshot.of_json(read_json(out / "snapshot.json"))
        blind = _blind(out)
        by = binding(
            snapshot, heads, read_stamps(heads, roots=authorities),
            None if blind is None else blind.answers,
        )  # fmt: skip
        if by.marks is not None and by.key is not None and by.complete:
            found.append(
                "by the authorities that you named, the key and all questions were fixed by "
                f"{minute(max(by.marks, by.key))}"
            )
    found += [f"{each.what}: {each.how}" for each in record.facts if each.bound != "time stamp"]
    return found


def head_of(given: str) -> str:
    """The hash of a head: given, or in a file that `guard heads --out` wrote. Raises UsageError."""
    text = given.strip().lower()
    if len(text) == 64 and not set(text) - set("0123456789abcdef"):
        return text
    try:
        held = read_json(Path(given))
        head = Head.model_validate(held["head"])
    except MALFORMED:
        raise UsageError(
            f"{given} is no head: give its hash, or the file that guard heads --out wrote"
        ) from None
    return head.hash


def _signed(out: Path, record: VerdictRecord) -> Found:
    name = "the record is signed by its public key"
    try:
        signature = (out / "record.sig").read_text(encoding="ascii").strip()
        body = (out / "record.json").read_bytes()
        return [(name, is_signed(body, signature, record.public_key))]
    except (OSError, ValueError):
        return [(name, False)]


def _content(
    out: Path, record: VerdictRecord
) -> tuple[Found, list[SealedHead], SealedAnswers | None]:
    """Whether what the files say follows from the key, the log heads and the answers; the heads,
    and a third party's answers."""
    snapshot = Snapshot.of_json(read_json(out / "snapshot.json"))
    said: list[dict[str, Any]] = read_json(out / "answers.json")
    heads, blind = _heads(out), _blind(out)
    config = VerifyConfig.model_validate(read_yaml(out / "config.yaml"))
    read_json(out / "manifest.json")
    again = judge(
        snapshot, said, config, record.marking_key, record.public_key, heads=heads,
        stamps=record.stamps, blind=blind,
    )  # fmt: skip
    committed = commitment_to(bytes.fromhex(record.marking_key))
    found: Found = [
        ("the marking key is the committed one", committed == record.commitment),
        ("the snapshot is the record's", _digest(out, "snapshot.json") == record.snapshot),
        ("the answers are the record's", _digest(out, "answers.json") == record.answers),
        ("the log heads are the record's", _digest(out, "heads.json") == record.heads),
        ("marks and controls are the key's", _drawn(snapshot, record)),
        ("marks were answered wrongly and controls truly", _served(snapshot)),
        ("the log heads are a signed chain", is_chain(heads)),
        ("each question is under the log head that it names", _proved(snapshot, heads)),
        ("the time stamps are what the record says", _stamped(heads, record.stamps)),
        ("reckoned anew, the result is the same", _alike(again.model_dump(), record.model_dump())),
        ("the page says what the record says", _page(out)),
    ]  # fmt: skip
    if (blind is None) != (record.blind is None):
        found.append(("a third party's answers are there if the record names any", False))
    if blind is not None:
        found += _blind_holds(blind, snapshot, said, heads)
    return found, heads, blind


def _known(
    heads: Sequence[SealedHead], blind: SealedAnswers | None, known_head: str | None,
    stamp: Path | None, authorities: Sequence[Path], answers: str | None,
) -> Found:  # fmt: skip
    """Whether the folder agrees with what is known from elsewhere."""
    found: Found = []
    if known_head is not None:
        numbers = [each.head.number for each in heads if each.head.hash == known_head]
        where = f" (number {numbers[0]} of {len(heads)})" if numbers else ""
        found.append((f"the known head is one of the log heads{where}", bool(numbers)))
    if stamp is not None:
        try:
            read = stamp_of(stamp.read_bytes(), heads, roots=authorities)
        except OSError as error:
            raise UsageError(f"can't read {stamp}: {error.strerror}") from None
        except UsageError as error:
            found.append((f"{stamp.name} is a time stamp of a log head ({error})", False))
        else:
            found.append(
                (f"log head {read.head} was stamped on {minute(read.time)} by {read.authority}, "
                 "whose authority is trusted", read.public)
            )  # fmt: skip
    if answers is not None:
        same = blind is not None and blind.digest == answers.strip().lower()
        found.append(("the third party's answers are the known ones", same))
    return found


def _blind_holds(
    blind: SealedAnswers, snapshot: Snapshot, said: list[dict[str, Any]],
    heads: Sequence[SealedHead],
) -> Found:  # fmt: skip
    """Whether the verdict is on what the third party picked and was answered."""
    answers = blind.answers
    leaves = [hashed and hashed.hex() for hashed in map(snapshot.leaf, range(len(snapshot.kept)))]
    theirs = [each.model_dump() for each in answers.models]
    mine = [Answered.model_validate(each).model_dump() for each in said]
    offered = len(set(answers.offered)) == len(answers.offered)
    found: Found = [
        ("the questions are those that the third party picked", leaves == answers.picked),
        ("no question was offered to it twice", offered),
        ("the answers are the third party's", theirs == mine),
        ("it was given a log head of this chain", answers.head in {h.head.hash for h in heads}),
    ]
    if answers.public_key is not None:
        found.append(("the third party signed its answers", blind.is_signed))
    return found


def _heads(out: Path) -> list[SealedHead]:
    return [SealedHead.model_validate(each) for each in read_json(out / "heads.json")]


def _blind(out: Path) -> SealedAnswers | None:
    path = out / BLIND
    return SealedAnswers.model_validate(read_json(path)) if path.is_file() else None


def _digest(out: Path, name: str) -> str:
    return digest((out / name).read_bytes())


def _page(out: Path) -> bool:
    from stillhouse.report.html import own_page  # what draws pages loads slowly

    return own_page(out, "verify") == (out / "report.html").read_text(encoding="utf-8")


def _drawn(snapshot: Snapshot, record: VerdictRecord) -> bool:
    """Whether the key, and nothing else, chose which of the kept questions were marked, and their
    wrong answers."""
    key = bytes.fromhex(record.marking_key)
    for kept in snapshot.kept:
        whose = kept.client if kept.scope == "client" else ""
        drawn = draw(key, whose, kept.read)
        if kept.kind != drawn.band(kept.rate, kept.controls):
            return False
        if kept.target != wrong_answer(kept, drawn.pick, record.choices):
            return False
        if (kept.key, kept.model) != (snapshot.key, snapshot.model):
            return False
    return True


def _served(snapshot: Snapshot) -> bool:
    return all(
        answer_of(each) == (each.target if each.kind == "mark" else truth_of(each))
        for each in snapshot.kept
    )


def _proved(snapshot: Snapshot, heads: Sequence[SealedHead]) -> bool:
    """Whether each proof that there is leads to its head."""
    return len(snapshot.proofs) in (0, len(snapshot.kept)) and all(
        proof is None or is_under(snapshot.leaf(place) or b"", proof, heads)
        for place, proof in enumerate(snapshot.proofs)
    )


def _stamped(heads: Sequence[SealedHead], stamps: Sequence[Stamp]) -> bool:
    return read_stamps(heads) == list(stamps)


def _alike(mine: Any, theirs: Any, *, reckoned: bool = False) -> bool:
    """Whether two records say the same, but, of what is `reckoned`, for the last digits that other
    machines round."""
    if reckoned and isinstance(mine, float) and isinstance(theirs, float):
        return math.isclose(mine, theirs, rel_tol=1e-6, abs_tol=1e-300)
    if isinstance(mine, dict):
        return mine.keys() == theirs.keys() and all(
            _alike(mine[k], theirs[k], reckoned=reckoned or k == "trials") for k in mine
        )
    if isinstance(mine, list | tuple):
        return len(mine) == len(theirs) and all(
            _alike(*each, reckoned=reckoned) for each in zip(mine, theirs, strict=True)
        )
    return bool(mine == theirs)


def _line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:200]
