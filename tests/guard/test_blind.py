"""Blind tests: a third party picks and asks; the owner opens; nobody steers in between."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from authority import needed
from trials import CHOICES, Case, stamped, truth

from stillhouse.core.errors import UsageError
from stillhouse.core.progress import Silent
from stillhouse.core.verdict_results import VerdictRecord
from stillhouse.guard.blind import (
    BlindAnswers,
    SealedAnswers,
    check_questions,
    pick,
    picked_of,
    read_answers,
    sealed_answers,
)
from stillhouse.guard.checking import check
from stillhouse.guard.folder import sign_files
from stillhouse.guard.keys import Keys
from stillhouse.guard.snapshot import take, written
from stillhouse.guard.verify import ask_blind, export_questions, run_verify

pytestmark = needed
NONCE = "17" * 32
THIRD = Keys(b"t" * 32)


@pytest.fixture(scope="module")
def tried(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Case]:
    with stamped(tmp_path_factory.mktemp("case")) as found:
        yield found


def asked(
    tried: Case, suspect: str, *, take: int = 150, keys: Keys | None = THIRD
) -> SealedAnswers:  # fmt: skip
    given = export_questions(tried.config("-"), tried.registry, tried.keys)
    return ask_blind(
        tried.config(suspect), given, take=take, nonce=NONCE, asked_by="Dr. Lee", keys=keys,
        progress=Silent(),
    )  # fmt: skip


def opened(tried: Case, found: SealedAnswers, out: Path) -> VerdictRecord:
    path = out.parent / "answers.json"
    path.write_text(written(found.model_dump(mode="json")))
    return run_verify(tried.config(answers=str(path)), tried.registry, tried.keys, out,
                      progress=Silent())  # fmt: skip


def test_what_a_third_party_gets_tells_no_mark(tried: Case) -> None:
    given = export_questions(tried.config("-"), tried.registry, tried.keys)
    kept = take(tried.registry, tried.keys).kept
    assert sorted(each.text for each in given.questions) == sorted(each.text for each in kept)
    text = given.model_dump_json()
    for word in ("target", 'kind":"mark', "salt", "truth", "served", tried.keys.marking.hex()):
        assert word not in text, word
    leaves = [each.leaf for each in given.questions]
    assert leaves == sorted(leaves)
    check_questions(given)


def test_a_copy_that_a_third_party_asked(tried: Case, tmp_path: Path) -> None:
    with tried.thief() as suspect:
        found = asked(tried, suspect)
    record = opened(tried, found, tmp_path / "v")
    assert record.suspects[0].verdict == "copy"
    assert record.asked_by == "Dr. Lee"
    assert record.blind == found.digest
    (fact,) = [each for each in record.facts if each.what == "What the models answered"]
    assert fact.bound == "third party"
    assert "Dr. Lee asked them" in fact.how
    assert f"150 of {len(found.answers.offered)}" in fact.how
    assert THIRD.public in fact.how
    assert "Dr. Lee asked" in (tmp_path / "v" / "report.html").read_text()
    assert [name for name, good in check(tmp_path / "v", answers=found.digest) if not good] == []
    failed = [name for name, good in check(tmp_path / "v", answers="00" * 32) if not good]
    assert failed == ["the third party's answers are the known ones"]
    again = opened(tried, found, tmp_path / "v")
    assert again == record


def test_an_innocent_model_is_none(tried: Case, tmp_path: Path) -> None:
    with tried.suspect(lambda text: CHOICES[truth(text)]) as suspect:
        found = asked(tried, suspect, keys=None)
    record = opened(tried, found, tmp_path / "v")
    assert record.suspects[0].verdict == "no evidence"
    (fact,) = [each for each in record.facts if each.what == "What the models answered"]
    assert "did not sign" in fact.how


def test_the_pick_is_the_numbers(tried: Case) -> None:
    offered = [f"{i:064x}" for i in range(200)]
    first = pick(NONCE, offered, 50)
    assert len(set(first)) == 50
    assert pick(NONCE, list(reversed(offered)), 50) == first
    assert pick(NONCE, offered, 60)[:50] == first
    other = pick("18" * 32, offered, 50)
    assert 2 < len(set(first) & set(other)) < 30  # 12.5 expected
    assert pick(NONCE, offered, 999) == pick(NONCE, offered, 200)


def test_questions_that_no_head_holds_are_refused(tried: Case) -> None:
    given = export_questions(tried.config("-"), tried.registry, tried.keys)
    first = given.questions[0]
    for change in ({"leaf": "00" * 32}, {"head": 9}, {"place": 10**9}, {"path": []}):
        wrong = [first.model_copy(update=change), *given.questions[1:]]
        with pytest.raises(UsageError, match="not under the log head"):
            check_questions(given.model_copy(update={"questions": wrong}))
    twice = [first, *given.questions]
    with pytest.raises(UsageError, match="twice"):
        check_questions(given.model_copy(update={"questions": twice}))
    with pytest.raises(UsageError, match="chain"):
        check_questions(given.model_copy(update={"heads": given.heads[:0]}))


@pytest.fixture
def verdict(tried: Case, tmp_path: Path) -> Path:
    with tried.thief() as suspect:
        opened(tried, asked(tried, suspect), tmp_path / "v")
    return tmp_path / "v"


@pytest.mark.parametrize(
    ("change", "fails"),
    [
        ({"nonce": "18" * 32}, "picked"),
        ({"take": 149}, "picked"),
        ({"asked_by": "Dr. No"}, "signed"),
        ({"head": "00" * 32}, "log head"),
        ({"public_key": None}, ""),
    ],
)
def test_what_an_owner_changes_of_the_answers_is_found(
    change: dict[str, object], fails: str, verdict: Path, tried: Case
) -> None:
    """Though it signs the folder anew."""
    held = json.loads((verdict / "blind.json").read_text())
    held["answers"].update(change)
    (verdict / "blind.json").write_text(written(held))
    sign_files(verdict, tried.keys)
    failed = [name for name, good in check(verdict) if not good]
    assert failed
    assert not fails or any(fails in name for name in failed), failed


def test_a_picked_question_can_not_be_dropped(verdict: Path, tried: Case) -> None:
    (verdict / "blind.json").unlink()
    sign_files(verdict, tried.keys)
    failed = [name for name, good in check(verdict) if not good]
    assert any("third party's answers are there" in name for name in failed)


def test_a_list_that_leaves_questions_out_is_not_whole(tried: Case, tmp_path: Path) -> None:
    """The owner offers those that suit it: the heads count more."""
    given = export_questions(tried.config("-"), tried.registry, tried.keys)
    few = given.model_copy(update={"questions": given.questions[:-1]})
    with tried.thief() as suspect:
        found = ask_blind(tried.config(suspect), few, take=150, nonce=NONCE, asked_by="Dr. Lee",
                          progress=Silent())  # fmt: skip
    record = opened(tried, found, tmp_path / "v")
    assert record.suspects[0].verdict == "consistent with a copy"
    (fact,) = [each for each in record.facts if "left out" in each.what]
    assert fact.bound == "the owner's word"


def test_answers_about_other_questions_are_refused(tried: Case, tmp_path: Path) -> None:
    foreign = BlindAnswers(
        asked_by="x", head="00" * 32, model="model-1", nonce=NONCE, offered=["ab" * 32], take=1,
        models=[{"name": "m", "fingerprint": "f", "control": False, "said": {}}],  # pyright: ignore
    )  # fmt: skip
    with pytest.raises(UsageError, match="questions that the registry has not"):
        opened(tried, sealed_answers(foreign, None), tmp_path / "v")
    with pytest.raises(UsageError, match="questions that the registry has not"):
        picked_of(tried.snapshot, foreign)
    (tmp_path / "no.json").write_text("{}")
    with pytest.raises(UsageError, match="blind-ask wrote"):
        read_answers(tmp_path / "no.json")


def test_later_questions_change_no_blind_verdict(tried: Case, tmp_path: Path) -> None:
    """What was asked and stamped after the export is no part of it."""
    with tried.thief() as suspect:
        found = asked(tried, suspect)
    tried.ask("ann", 400, 100)
    tried.stamp()
    assert opened(tried, found, tmp_path / "v").suspects[0].verdict == "copy"
