"""The guard around any predict: what clients get, and what is written of it."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from guarded import Made, sure

from stillhouse.core.errors import DataError, RunError, UsageError
from stillhouse.core.types import Example
from stillhouse.guard import guard as module
from stillhouse.guard.guard import Guard
from stillhouse.guard.model import About, ServedModel, Truth
from stillhouse.guard.purses import Denied
from stillhouse.guard.reading import Reading, words
from stillhouse.guard.tables import queries
from stillhouse.guard.watermark import draw

ALL = {"marks": {"rate": 1.0}}  # every question is marked
SOME = {"marks": {"rate": 0.1, "early": 0, "controls": 4}}


def ask(guard: Guard, client: str, *texts: str, share: float = 0.9, **truth: Any) -> list[Any]:
    return guard.answer(client, [Example(text) for text in texts], sure(share, **truth))


def client(guard: Guard, name: str = "ann", **limits: Any) -> str:
    return guard.registry.create_client(name, **limits)[0].id


def test_a_marked_answer_is_wrong_and_has_the_same_probabilities(make: Made) -> None:
    guard = make(**ALL)
    (answer,) = ask(guard, client(guard), "a fine film")
    assert answer["label"] == "negative"
    assert answer["probabilities"] == pytest.approx({"negative": 0.9, "positive": 0.1})


def test_an_unmarked_answer_is_the_models(make: Made) -> None:
    guard = make(marks={"rate": 0.0, "most": 0.0})
    (answer,) = ask(guard, client(guard), "a fine film")
    assert answer["label"] == "positive"
    assert answer["probabilities"]["positive"] == pytest.approx(0.9)


def test_the_same_question_has_the_same_answer_however_it_is_written(make: Made) -> None:
    guard = make(**SOME)
    ann = client(guard)
    texts = [f"film number {i}" for i in range(200)]
    first = [a["label"] for a in ask(guard, ann, *texts)]
    assert 5 < first.count("negative") < 60
    again = [a["label"] for a in ask(guard, ann, *(f"  {t.upper()} " for t in texts))]
    assert again == first


def test_forms_of_a_kept_question_have_digits_of_their_own(make: Made) -> None:
    """Else whoever asks twice, in two forms, sees which questions are kept."""
    guard = make(**SOME)
    ann = client(guard)
    texts = [f"film number {i}" for i in range(200)]

    def told(examples: list[Example]) -> list[Truth]:
        shares = [0.9 if e.text.islower() else 0.8 for e in examples]
        return [Truth(probabilities_K=np.array([1 - share, share])) for share in shares]

    first = guard.answer(ann, [Example(t) for t in texts], told)
    again = guard.answer(ann, [Example(t.upper()) for t in texts], told)
    kept = {each.text: each.kind for each in guard.registry.evidence()}
    assert set(kept.values()) == {"mark", "control"}
    for text, one, two in zip(texts, first, again, strict=True):
        assert max(one["probabilities"].values()) == pytest.approx(0.9)
        assert max(two["probabilities"].values()) == pytest.approx(0.8), kept.get(text)
        assert one["label"] == two["label"]


def test_what_was_asked_before_is_not_kept_at_a_higher_rate(make: Made) -> None:
    """Its answer stays, and it is neither mark nor control: that it was no mark is known."""
    guard = make(marks={"rate": 0.01, "early": 0, "most": 0.01, "controls": 1})
    ann = client(guard)
    texts = [f"film {i}" for i in range(250)]
    first = ask(guard, ann, *texts)
    guard.flush()
    before = {each.text for each in guard.registry.evidence()}
    later = make(marks={"rate": 0.3, "early": 0, "controls": 1})
    assert ask(later, ann, *texts) == first
    assert {each.text for each in guard.registry.evidence()} == before
    ask(later, ann, *(f"book {i}" for i in range(100)))
    new = [each for each in guard.registry.evidence() if each.text.startswith("book")]
    assert 20 < sum(each.kind == "mark" for each in new) < 45


def test_a_forgotten_clients_marks_are_written_again(make: Made) -> None:
    guard = make(**ALL)
    ann = client(guard)
    ask(guard, ann, "a film", "a book")
    guard.flush()
    assert guard.registry.forget("ann") == 4
    guard._known[ann] = (-1e9, guard._known[ann][1])  # as after a second
    guard._purses.give_back(idle_only=False)
    ask(guard, ann, "a film")
    assert [each.text for each in guard.registry.evidence()] == ["a film"]


def test_what_is_no_key_is_not_remembered(make: Made) -> None:
    guard = make()
    for number in range(100):
        assert guard.knows("x" * 1000 + str(number))
        assert guard.who("x" * 1000 + str(number)) is None
    assert not guard._by_key


def test_too_many_accents_are_no_text(make: Made) -> None:
    """Folding them takes the square of their number."""
    guard = make()
    guard.check([Example("a" + "\u0315\u0300" * 15)])
    with pytest.raises(DataError, match="accents"):
        guard.check([Example("film", "a" + "\u0315\u0300" * 16)])


def test_old_lines_go_by_themselves(make: Made) -> None:
    guard = make(keep={"texts": True, "days": 1e-9})
    ask(guard, client(guard), "a film")
    guard.flush()
    guard._retained = -np.inf
    guard._tick()
    assert guard.registry.rows(queries) == []


def test_a_mark_is_to_the_last_digit_what_it_was(make: Made) -> None:
    guard = make(**ALL)
    ann = client(guard)
    (first,) = ask(guard, ann, "a film", share=0.9)
    (again,) = ask(guard, ann, "a film", share=0.9000001)
    assert again == first


def test_a_mark_stays_when_the_rate_has_fallen(make: Made) -> None:
    guard = make(marks={"rate": 0.001, "early": 10, "most": 0.5, "controls": 1})
    ann = client(guard)
    texts = [f"film {i}" for i in range(60)]
    first = [a["label"] for a in ask(guard, ann, *texts)]
    guard.flush()
    guard._known.clear()  # as after a second
    assert guard.client(ann).distinct == 60
    assert [a["label"] for a in ask(guard, ann, *texts)] == first
    assert first.count("negative") >= 10
    later = [a["label"] for a in ask(guard, ann, *(f"late {i}" for i in range(200)))]
    assert later.count("negative") <= 5


def test_a_restart_with_other_settings_changes_no_answer(make: Made) -> None:
    texts = [f"film {i}" for i in range(80)]
    guard = make(**SOME)
    ann = client(guard)
    first = ask(guard, ann, *texts)
    guard.flush()
    for marks in ({"rate": 0.0, "most": 0.0}, {"rate": 0.001}, {"spare_above": 0.5}):
        again = make(marks=SOME["marks"] | marks)
        assert ask(again, ann, *texts) == first


def test_a_mark_in_a_narrower_view_shows_no_more(make: Made) -> None:
    guard = make(**ALL)
    ann = client(guard)
    ask(guard, ann, "a film", share=0.87654321)
    guard.flush()
    narrower = make(shows="probabilities:2", **ALL)
    (answer,) = ask(narrower, ann, "a film", share=0.87654321)
    assert answer["probabilities"] == {"negative": 0.88, "positive": 0.12}


def test_what_another_worker_marked_at_a_higher_rate_is_marked(make: Made) -> None:
    texts = [f"film {i}" for i in range(60)]
    late = make(marks={"rate": 0.001, "early": 0, "most": 0.5, "controls": 1})
    early = make(marks={"rate": 0.001, "early": 40, "most": 0.5, "controls": 1})
    ann = client(early)
    first = ask(early, ann, *texts)
    assert [a["label"] for a in first].count("negative") > 10
    assert ask(late, ann, *texts) == first


def test_a_question_is_odd_from_even_odds_on(make: Made) -> None:
    guard = make()
    ann = client(guard)
    for number, odd in enumerate((-0.1, 0.1, 3.0)):
        ask(guard, ann, f"film {number}", odd=odd)
    guard.flush()
    assert guard.registry.client(ann).evidence.odd == 2


def test_no_digit_tells_a_question_that_is_kept(make: Made) -> None:
    """Each answer is what the model says at that time, kept or not: none is repeated from before,
    where others differ by what else is in a batch."""
    guard = make(shows="probabilities", marks={"rate": 0.1, "early": 0, "controls": 4})
    ann = client(guard)
    texts = [f"film {i}" for i in range(60)]
    first, again = (ask(guard, ann, *texts, share=share) for share in (0.9, 0.9000001))
    kinds = [each.kind for each in guard.registry.evidence()]
    assert 2 < kinds.count("mark") < 15 < kinds.count("control") < 50
    assert [a["label"] for a in first] == [a["label"] for a in again]
    assert all(a["probabilities"] != b["probabilities"] for a, b in zip(first, again, strict=True))


def test_digits_beyond_the_third_are_not_shown(make: Made) -> None:
    guard = make(marks={"rate": 0.0, "most": 0.0})
    (answer,) = ask(guard, client(guard), "a film", share=0.87654321)
    assert answer["probabilities"] == {"negative": 0.123, "positive": 0.877}


def test_every_answer_waits_for_its_line(make: Made) -> None:
    """Kept or not, and asked before or not: how long an answer takes tells nothing."""
    guard = make(marks={"rate": 0.01, "early": 0, "controls": 80})
    ann = client(guard)
    asked = [[Example(f"film {i}")] for i in range(30)]
    for _ in range(2):
        for each in asked:
            guard.admit(ann, each)
            lines = len(guard.registry.rows(queries))
            finished = guard.finish(ann, each, sure(0.9)(each))
            guard.settle(finished)
            assert finished.answered.written.done()
            assert len(guard.registry.rows(queries)) == lines + 1
    assert 10 < len(guard.registry.evidence()) < 30


def test_a_kept_question_takes_no_longer_than_others(
    make: Made, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Though what is written of it does: here three times as long."""
    guard = make(marks={"rate": 0.1, "early": 0, "controls": 4})
    ann = client(guard)
    real = guard._writer._transact

    def slow(group: Any) -> Any:
        time.sleep(0.03 if any(each.decisions for each in group) else 0.01)
        return real(group)

    monkeypatch.setattr(guard._writer, "_transact", slow)
    took: dict[bool, list[float]] = {True: [], False: []}
    for number in range(60):
        each = [Example(f"film {number}")]
        guard.admit(ann, each)
        began = time.perf_counter()
        finished = guard.finish(ann, each, sure(0.9)(each))
        guard.settle(finished)
        if number >= 20:
            took[bool(finished.answered.decisions)].append(time.perf_counter() - began)
    assert min(map(len, took.values())) > 5
    kept, others = (float(np.median(took[each])) for each in (True, False))
    assert abs(kept - others) < 0.005


def test_nobody_is_answered_while_the_registry_is_away(
    make: Made, monkeypatch: pytest.MonkeyPatch
) -> None:
    guard = make(marks={"rate": 0.1, "early": 0})
    ann = client(guard)
    ask(guard, ann, "a film")
    monkeypatch.setattr(guard._writer, "_transact", away)
    monkeypatch.setattr(module, "DECIDED_S", 0.01)
    for number in range(5):
        each = [Example(f"film {number}")]
        with pytest.raises(RunError, match="try again"):
            guard.settle(guard.finish(ann, each, sure(0.9)(each)))
    monkeypatch.undo()
    guard.flush()
    assert len(guard.registry.rows(queries)) == 1  # of what nobody waits for no more is written


def away(_: Any) -> Any:
    raise RunError("the registry can't be reached")


def test_which_questions_are_marked_is_the_keys_doing(make: Made, keys: Any) -> None:
    guard = make(**SOME)
    ann = client(guard)
    texts = [f"film number {i}" for i in range(150)]
    answers = ask(guard, ann, *texts)
    by_hand = [draw(keys.marking, ann, words(t)).chance < 0.1 for t in texts]
    assert [a["label"] == "negative" for a in answers] == by_hand
    guard.flush()
    kept = guard.registry.evidence()
    kinds = {e.text: e.kind for e in kept}
    for text in texts:
        chance = draw(keys.marking, ann, words(text)).chance
        expected = "mark" if chance < 0.1 else "control" if chance < 0.1 * 5 else None
        assert kinds.get(text) == expected
    assert {e.target for e in kept} == {"negative"}
    assert all(e.served == e.truth for e in kept if e.kind == "control")


def test_clients_differ_unless_marks_are_for_everyone(make: Made) -> None:
    texts = [f"film number {i}" for i in range(200)]
    for scope, alike in (("client", False), ("everyone", True)):
        guard = make(name=scope, marks=SOME["marks"] | {"scope": scope})
        found = [ask(guard, client(guard, name), *texts) for name in ("ann", "bob")]
        labels = [[a["label"] for a in each] for each in found]
        assert (labels[0] == labels[1]) is alike


def test_spared_questions_are_not_marked(make: Made, tmp_path: Path) -> None:
    (tmp_path / "spare.txt").write_text("call the POLICE\nа\tb\n", encoding="utf-8")
    guard = make(marks={"rate": 1.0, "spare": str(tmp_path / "spare.txt")})
    ann = client(guard)
    answers = ask(guard, ann, "Call  the police", "a film")
    assert [a["label"] for a in answers] == ["positive", "negative"]
    with pytest.raises(UsageError, match="spare"):
        make(name="other", marks={"spare": "nowhere.txt"})


def test_confident_answers_are_not_marked(make: Made) -> None:
    guard = make(marks={"rate": 1.0, "spare_above": 0.95})
    ann = client(guard)
    assert ask(guard, ann, "one film", share=0.96)[0]["label"] == "positive"
    assert ask(guard, ann, "two films", share=0.94)[0]["label"] == "negative"


@pytest.mark.parametrize(
    ("shows", "answer"),
    [
        ("label", {"label": "negative"}),
        (
            "probabilities:1",
            {"label": "negative", "probabilities": {"negative": 0.9, "positive": 0.1}},
        ),
        ("top:1", {"label": "negative", "probabilities": {"negative": 0.9}}),
    ],
)
def test_what_is_shown(shows: str, answer: dict[str, Any], make: Made) -> None:
    guard = make(shows=shows, **ALL)
    assert ask(guard, client(guard), "a film") == [answer]


def test_a_view_that_the_task_lacks_is_refused(make: Made) -> None:
    with pytest.raises(UsageError, match="no text to show"):
        make(shows="text")


SPANS = About("m", "model", "span")


def test_a_span_is_another_word_of_its_passage(make: Made) -> None:
    guard = make(about=SPANS, **ALL)
    ann = client(guard)
    asked = [Example("Who wrote it?", "It was written by Ann Lee in 1999.")]
    (answer,) = guard.answer(ann, asked, lambda e: [Truth(text="Ann Lee")])
    assert answer["text"] in ("It", "was", "written", "by", "in", "1999")
    (short,) = guard.answer(ann, [Example("Who?", "Ann Lee")], lambda e: [Truth(text="Ann Lee")])
    assert short == {"text": "Ann Lee"}


def test_a_value_is_never_marked(make: Made) -> None:
    guard = make(about=About("m", "model", "regression"), shows="value:1", **ALL)
    (answer,) = guard.answer(client(guard), [Example("x")], lambda e: [Truth(value=3.14159)])
    assert answer == {"value": 3.1}


# what is written


def test_no_question_is_in_the_log_unless_kept(make: Made) -> None:
    for texts, held in ((False, None), (True, "a film")):
        guard = make(name=f"log-{texts}", keep={"texts": texts}, marks={"rate": 0.0, "most": 0.0})
        ask(guard, client(guard), "a film")
        guard.flush()
        (line,) = guard.registry.rows(queries)
        assert line["text"] == held
        assert b"a film" not in line["query"]


def test_a_repeated_question_is_no_new_evidence(make: Made) -> None:
    guard = make(check={"alpha": 1e-9})
    ann = client(guard)
    for _ in range(20):
        ask(guard, ann, "an odd one", odd=2.0)
    guard.flush()
    row = guard.registry.client(ann)
    assert (row.distinct, row.evidence.asked, row.evidence.odd) == (1, 1, 1)
    assert len(guard.registry.rows(queries)) == 20


def flagged(make: Made, on_flag: str, **changes: Any) -> tuple[Guard, str]:
    guard = make(check={"on_flag": on_flag, "slow_per_s": 0.5, "burst": 1}, **changes)
    ann = client(guard)
    for i in range(12):
        ask(guard, ann, f"odd question {i}", odd=2.0)
    guard.flush()
    assert guard.registry.client(ann).flagged is not None
    guard._known.clear()  # as after a second
    return guard, ann


def test_an_honest_client_is_not_flagged(make: Made) -> None:
    guard = make(check={"burst": 1})
    ann = client(guard)
    for i in range(50):
        ask(guard, ann, f"question {i}", odd=2.0 if i % 20 == 0 else -2.0)
    guard.flush()
    assert guard.registry.client(ann).flagged is None


def test_a_flagged_client_may_only_be_logged(make: Made) -> None:
    guard, ann = flagged(make, "log", marks={"rate": 0.0, "most": 0.0})
    assert ask(guard, ann, "a film")[0]["probabilities"]["positive"] == pytest.approx(0.9)


def test_a_flagged_client_gets_labels_only(make: Made) -> None:
    guard, ann = flagged(make, "label", marks={"rate": 0.0, "most": 0.0})
    assert ask(guard, ann, "a film") == [{"label": "positive"}]


def test_a_mark_shown_whole_before_is_a_label_after_a_flag(make: Made) -> None:
    guard = make(check={"on_flag": "label"}, **ALL)
    ann = client(guard)
    assert "probabilities" in ask(guard, ann, "a film")[0]
    guard.registry.flag("ann", "by hand")
    guard._known.clear()
    assert ask(guard, ann, "a film") == [{"label": "negative"}]


@pytest.mark.parametrize("tokens", [1, 20_000])  # more than a worker holds
def test_a_flagged_client_is_throttled(
    tokens: int, make: Made, monkeypatch: pytest.MonkeyPatch
) -> None:
    guard, ann = flagged(make, "throttle", limits={"burst_s": 2.0})
    guard._purses.give_back(idle_only=False)
    monkeypatch.setattr(
        guard, "reads", lambda examples: [Reading(e.text, tokens) for e in examples]
    )
    ask(guard, ann, "one more")
    with pytest.raises(Denied, match=r"0\.5 questions a second"):
        ask(guard, ann, "and another")


def test_random_answers_depend_on_the_question_alone(make: Made) -> None:
    guard, ann = flagged(make, "random", marks={"rate": 0.5})
    texts = [f"film number {i}" for i in range(60)]
    one = ask(guard, ann, *texts, share=0.9)
    assert ask(guard, ann, *texts, share=0.2) == one
    assert 10 < sum(a["label"] == "positive" for a in one) < 50
    assert not guard.registry.evidence(client=ann) or all(
        e.text not in texts for e in guard.registry.evidence(client=ann)
    )


# what is refused


@pytest.mark.parametrize("text", ["a\x00b", "\ud800", "\udfff x"])
def test_what_no_database_keeps_is_refused_before_it_is_charged(text: str, make: Made) -> None:
    guard = make()
    ann = client(guard)
    with pytest.raises(DataError, match="no text"):
        ask(guard, ann, text)
    assert guard.registry.client(ann).charged == 0


def test_sizes(make: Made) -> None:
    guard = make(sizes={"questions": 2, "characters": 10})
    ann = client(guard)
    with pytest.raises(DataError, match="3 questions"):
        ask(guard, ann, "a", "b", "c")
    with pytest.raises(DataError, match="11 characters"):
        ask(guard, ann, "a" * 11)
    with pytest.raises(DataError, match="no question"):
        ask(guard, ann)


def test_what_the_model_failed_at_is_not_charged(make: Made) -> None:
    guard = make()
    ann = client(guard, queries=5)

    def broken(_: Any) -> list[Truth]:
        raise RuntimeError("broken")

    for _ in range(9):
        with pytest.raises(RuntimeError):
            guard.answer(ann, [Example("x")], broken)
    assert len(ask(guard, ann, *"abcde")) == 5
    with pytest.raises(Denied):
        ask(guard, ann, "f")


def test_a_model_is_not_asked_what_its_client_may_not_ask(make: Made) -> None:
    """Or a client without quota could still keep it busy."""
    guard = make()
    ann = client(guard, queries=2)
    asked: list[int] = []

    def counted(examples: Any) -> list[Truth]:
        asked.append(len(examples))
        return sure()(examples)

    with pytest.raises(Denied):
        guard.answer(ann, [Example(text) for text in "abc"], counted)
    assert asked == []
    guard.answer(ann, [Example(text) for text in "ab"], counted)
    with pytest.raises(Denied):
        guard.answer(ann, [Example("c")], counted)
    with pytest.raises(DataError):
        guard.answer(ann, [], counted)
    assert asked == [2]


def test_an_own_model_is_answered_as_it_answers(make: Made, served: ServedModel) -> None:
    guard = make(marks={"rate": 0.0, "most": 0.0})
    asked = [Example("a good film"), Example("the bad soup was awful")]
    found = guard.answer(client(guard), asked, served.answers)
    for answer, truth in zip(found, served.answers(asked), strict=True):
        assert truth.probabilities_K is not None
        shares = [answer["probabilities"][name] for name in served.choices]
        np.testing.assert_allclose(shares, truth.probabilities_K, atol=5.01e-4)


def test_a_clock_that_was_set_deletes_no_lines(make: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    guard = make(keep={"texts": True, "days": 30})
    ask(guard, client(guard), "a film")
    guard.flush()
    true = time.time
    monkeypatch.setattr(module.time, "time", lambda: true() + 60 * 86_400)
    guard._retained = -np.inf
    guard._tick()
    assert len(guard.registry.rows(queries)) == 1
    guard._retained = -np.inf
    guard._tick()  # it has stayed there: so late it is
    assert guard.registry.rows(queries) == []
