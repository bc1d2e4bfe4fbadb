"""What binds a verdict: stamped before the suspect was asked it says "is a copy", else never."""

from __future__ import annotations

import random
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from authority import authority, needed
from trials import CHOICES, Case, case

from stillhouse.core.errors import DataError, UsageError
from stillhouse.core.verdict_results import Fact, VerdictRecord
from stillhouse.guard import heads as log
from stillhouse.guard import stamps as stamping
from stillhouse.guard.chain import SealedHead
from stillhouse.guard.keys import Keys
from stillhouse.guard.registry import Kept
from stillhouse.guard.snapshot import Snapshot
from stillhouse.guard.stamps import read_stamps
from stillhouse.guard.verdict import judge
from stillhouse.guard.verify import gathered
from stillhouse.guard.watermark import draw, wrong_choice

pytestmark = needed
OWN = "the owner's word"


@pytest.fixture
def tried(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Case:
    """A case whose authority everybody trusts."""
    found = case(tmp_path)
    monkeypatch.setattr(stamping, "public_roots", lambda: tuple(found.tsa.roots))
    return found


def copied(snapshot: Snapshot, *, first: float | None = None) -> dict[str, Any]:
    """A copy's answers, asked now."""
    told = [kept.served["label"] for kept in snapshot.kept]
    when = time.time() if first is None else first
    return {"name": "rival", "fingerprint": "r", "control": False, "first": when,
            "last": when + 1, "said": {"as asked": told, "changed": told}}  # fmt: skip


def verdict(tried: Case, *, first: float | None = None, **changes: Any) -> VerdictRecord:
    """The owner's verdict, of a copy."""
    config = tried.config("rival", **changes)
    snapshot, heads, stamps = gathered(config, tried.registry, tried.keys)
    return judged(tried, snapshot, heads, [copied(snapshot, first=first)], stamps, **changes)


def judged(
    tried: Case, snapshot: Snapshot, heads: list[SealedHead], answers: list[dict[str, Any]],
    stamps: Any = None, **changes: Any,
) -> VerdictRecord:  # fmt: skip
    return judge(
        snapshot, answers, tried.config("rival", **changes), tried.keys.marking.hex(),
        tried.keys.public, heads=heads, stamps=read_stamps(heads) if stamps is None else stamps,
    )  # fmt: skip


def fact(record: VerdictRecord, what: str) -> Fact:
    (found,) = [each for each in record.facts if what in each.what]
    return found


def test_without_a_stamp_nothing_is_a_copy(tried: Case) -> None:
    record = verdict(tried)
    assert record.suspects[0].verdict == "consistent with a copy"
    assert "rival is consistent with a copy of our model" in record.sentence
    assert "is a copy" not in record.sentence
    assert "owner's word" in record.sentence
    assert {each.bound for each in record.facts} == {OWN}


def test_stamped_before_it_was_asked_it_is_a_copy(tried: Case) -> None:
    tried.stamp()
    record = verdict(tried)
    assert record.suspects[0].verdict == "copy"
    assert "rival is a copy of our model" in record.sentence
    assert "time-stamped by 20" in record.sentence
    for what in ("Which questions were marked", "secret key", "left out"):
        assert fact(record, what).bound == "time stamp", what
        assert abs((fact(record, what).since or 0) - time.time()) < 60
    for what in ("What the models answered", "Which models were tried"):
        assert fact(record, what).bound == OWN, what
    how = fact(record, "Which questions were marked").how
    assert "CN=Tiny Time" in how
    assert "could the owner know the suspect's answers before" in how


def test_stamped_after_it_was_asked_proves_nothing(tried: Case) -> None:
    asked = time.time() - 60
    tried.stamp()
    record = verdict(tried, first=asked)
    assert record.suspects[0].verdict == "consistent with a copy"
    assert "not before the suspect" in fact(record, "Which questions were marked").how


def test_what_could_be_asked_before_the_stamp_is_no_copy(tried: Case) -> None:
    """Where the suspect is older than the stamp, its answers could be known."""
    tried.stamp()
    today = time.strftime("%Y-%m-%d", time.gmtime())
    later = time.strftime("%Y-%m-%d", time.gmtime(time.time() + 5 * 86_400))
    assert verdict(tried, released=today).suspects[0].verdict == "consistent with a copy"
    assert verdict(tried, released=later).suspects[0].verdict == "copy"
    early = verdict(tried, released=later, first=time.time() - 60)  # asked all the same
    assert early.suspects[0].verdict == "consistent with a copy"


def test_an_authority_of_the_owners_own_binds_nothing(
    tried: Case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stamping, "public_roots", lambda: tuple(authority(tmp_path / "o").roots))
    tried.stamp()
    record = verdict(tried)
    assert record.suspects[0].verdict == "consistent with a copy"
    assert "no public root vouches" in fact(record, "Which questions were marked").how
    assert not record.stamps[0].public


def test_what_was_published_is_told_and_is_the_owners_word(tried: Case) -> None:
    log.seal(tried.registry, tried.keys)
    log.bind(tried.registry, 1, published="The Times, 2026-01-02, page 7")
    record = verdict(tried)
    found = fact(record, "Which questions were marked")
    assert found.bound == OWN
    assert "published: The Times, 2026-01-02, page 7. Look it up" in found.how
    assert record.suspects[0].verdict == "consistent with a copy"


def test_later_questions_wait_for_a_later_stamp(tried: Case) -> None:
    tried.stamp()
    before = len(verdict(tried).examples), len(tried.snapshot.kept)
    tried.ask("ann", 400, 200)
    record = verdict(tried)
    assert record.suspects[0].verdict == "copy"
    assert record.left_out == len(tried.snapshot.kept) - before[1] > 0
    assert "later questions were left out" in record.warnings[-1]
    whole = verdict(tried, unstamped=True)
    assert whole.left_out == 0
    assert whole.suspects[0].verdict == "consistent with a copy"
    tried.stamp()
    assert verdict(tried).left_out == 0
    assert verdict(tried).suspects[0].verdict == "copy"


def test_no_question_can_be_left_out_of_what_was_stamped(tried: Case) -> None:
    """Controls that speak for the suspect, dropped; a whole client's are no part of its own."""
    tried.stamp()
    snapshot, heads, _ = gathered(tried.config("rival"), tried.registry, tried.keys)
    assert judged(tried, snapshot, heads, [copied(snapshot)]).suspects[0].verdict == "copy"
    few = snapshot.only(range(1, len(snapshot.kept)))
    record = judged(tried, few, heads, [copied(few)])
    assert record.suspects[0].verdict == "consistent with a copy"
    assert fact(record, "left out").bound == OWN
    without = replace(few, tallies=[])
    assert judged(tried, without, heads, [copied(without)]).facts[2].bound == OWN
    twice = snapshot.only([0, *range(len(snapshot.kept))])
    assert judged(tried, twice, heads, [copied(twice)]).suspects[0].verdict != "copy"
    ann = gathered(tried.config("rival", clients=["ann"]), tried.registry, tried.keys)[0]
    assert judged(tried, ann, heads, [copied(ann)]).suspects[0].verdict == "copy"


def test_an_earlier_count_is_not_the_last_one(tried: Case) -> None:
    """Whoever stops at a head that suits him shows that head's count and fewer questions."""
    tried.stamp()
    early, *_ = gathered(tried.config("rival"), tried.registry, tried.keys)
    tried.ask("ann", 400, 200)
    tried.stamp()
    late, heads, _ = gathered(tried.config("rival"), tried.registry, tried.keys)
    mixed = replace(late, tallies=early.tallies)
    assert judged(tried, mixed, heads, [copied(mixed)]).facts[2].bound == OWN


@pytest.mark.parametrize(
    "field", ["truth", "served", "target", "time", "kind", "rate", "text", "read"]
)
def test_a_changed_question_is_bound_by_nothing(field: str, tried: Case) -> None:
    tried.stamp()
    snapshot, heads, _ = gathered(tried.config("rival"), tried.registry, tried.keys)
    other = {
        "truth": {"label": "neutral?"}, "served": {"label": "x"}, "target": "x", "time": 1.0,
        "kind": "control" if snapshot.kept[0].kind == "mark" else "mark", "rate": 0.06,
        "text": "another question", "read": "another question",
    }[field]  # fmt: skip
    kept = [replace(snapshot.kept[0], **{field: other}), *snapshot.kept[1:]]
    if field == "truth":
        kept[0] = replace(snapshot.kept[0], truth={"label": _other(snapshot.kept[0])})
    changed = replace(snapshot, kept=kept)
    record = judged(tried, changed, heads, [copied(changed)])
    assert record.suspects[0].verdict != "copy"
    assert fact(record, "Which questions were marked").bound == OWN


def _other(kept: Kept) -> str:
    return next(c for c in CHOICES if c != kept.truth["label"])


def test_a_broken_chain_binds_nothing(tried: Case) -> None:
    tried.ask("ann", 400, 50)
    tried.stamp()
    snapshot, heads, stamps = gathered(tried.config("rival"), tried.registry, tried.keys)
    assert len(heads) > 1
    forged = heads[0].model_copy(
        update={"head": heads[0].head.model_copy(update={"time": 5.0})}
    )  # fmt: skip
    for chain in ([], heads[1:], [forged, *heads[1:]], heads[:-1]):
        kept_stamps = stamps if chain else []
        record = judged(tried, snapshot, list(chain), [copied(snapshot)], kept_stamps)
        assert record.suspects[0].verdict == "consistent with a copy"


def test_a_key_that_no_head_commits_to_is_not_bound(tried: Case) -> None:
    tried.stamp()
    snapshot, heads, stamps = gathered(tried.config("rival"), tried.registry, tried.keys)
    other = replace(snapshot, commitment=Keys(bytes(32)).commitment)
    record = judged(tried, other, heads, [copied(other)], stamps)
    assert record.suspects[0].verdict == "consistent with a copy"
    assert fact(record, "secret key").bound == OWN


def forged(keys: Keys, rng: random.Random) -> tuple[Snapshot, list[str]]:
    """A dishonest owner's: an innocent model is asked first; then "true" answers are made up such
    that the wrong answer that the key gives is what that model says."""
    kept: list[Kept] = []
    told: list[str] = []
    for number in range(100_000):
        text = f"a question about film {number}"
        drawn = draw(keys.marking, "abcdef012345", text)
        band = drawn.band(0.005, 10)
        if band == "plain":
            continue
        says = rng.choice(CHOICES)
        true = says
        if band == "mark":
            true = next(
                c for i, c in enumerate(CHOICES)
                if CHOICES[wrong_choice(drawn.pick, i, len(CHOICES))] == says
            )  # fmt: skip
        target = CHOICES[wrong_choice(drawn.pick, CHOICES.index(true), len(CHOICES))]
        name = number.to_bytes(16, "big")
        kept.append(
            Kept("abcdef012345", name, band, text, None, text, {"label": true}, {"label": says},
                 target, "label", 0.005, 10, "client", keys.id, "f" * 64, 1e9)
        )  # fmt: skip
        told.append(says)
        if sum(each.kind == "mark" for each in kept) == 20:
            break
    found = Snapshot(
        keys.id, keys.commitment, 1e9, "f" * 64, "teacher", "classification", CHOICES,
        {"abcdef012345": "Rival Inc"}, kept,
    )  # fmt: skip
    return found, told


def test_a_forgery_is_called_what_it_is(tried: Case) -> None:
    """It passes every test of chance; the word says that it rests on the owner's word."""
    snapshot, told = forged(tried.keys, random.Random(0))
    answers = [{"name": "rival", "fingerprint": "e" * 64, "control": False,
                "said": {"as asked": told, "changed": told}}]  # fmt: skip
    record = judged(tried, snapshot, [], answers)
    assert record.suspects[0].trials[0].adjusted < 1e-6
    assert record.suspects[0].verdict == "consistent with a copy"
    assert "is a copy" not in record.sentence
    assert "rests on the owner's word" in record.sentence
    assert "made up afterwards" in fact(record, "Which questions were marked").how


@pytest.mark.parametrize(
    "said", [{}, {"as asked": []}, {"as asked": ["x"], "changed": ["x"]},
             {"as asked": [], "changed": [], "third": []}],
)  # fmt: skip
def test_answers_that_are_not_one_a_question_are_refused(
    said: dict[str, list[str]], tried: Case
) -> None:
    snapshot = tried.snapshot
    wrong = copied(snapshot) | {"said": said}
    with pytest.raises(DataError, match="not one a question"):
        judged(tried, snapshot, [], [wrong])


def test_nothing_stamped_of_a_client_is_told(tried: Case) -> None:
    tried.stamp()
    tried.ask("carl", 0, 200)
    with pytest.raises(UsageError, match="--unstamped"):
        verdict(tried, clients=["carl"])
