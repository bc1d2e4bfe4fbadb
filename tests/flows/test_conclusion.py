"""What a distillation is said to come to, for each verdict and each doubt."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from stillhouse.core.results import (
    FloorResult,
    Gain,
    ModelResult,
    Needed,
    TrainedResult,
    Verdict,
)
from stillhouse.evaluation.comparison import trained_on
from stillhouse.flows.conclusion import Findings, lead, sentence, weak_signs
from stillhouse.flows.unfinished import unfinished

COST = {"bytes": 4_000, "interval": (0.0, 1.0), "metrics": {}}
TEACHER = ModelResult(name="teacher", score=0.9, parameters=1_000, latency_ms=10.0, **COST)
FLOOR = FloorResult(
    name="TF-IDF with logistic regression", score=0.654, interval=(0.6, 0.7),
    metrics={"accuracy": 0.654}, rows=900, seconds=0.3,
)  # fmt: skip


def trained(name: str, score: float, seeds: int = 2) -> TrainedResult:
    return TrainedResult(
        name=name, score=score, parameters=250, latency_ms=2.0, seeds=[score] * seeds,
        retention=score / 0.9, **COST,
    )  # fmt: skip


def found(
    verdict: Verdict | None, student: float, baseline: float | None, *ends: float, seeds: int = 2,
    **changes: Any,
) -> Findings:  # fmt: skip
    gain = None
    if baseline is not None:
        gain = Gain(
            value=student - baseline, interval=(ends[0], ends[1]), p_value=0.5, margin=0.01,
            seeds=seeds, needed=changes.pop("needed", None),
        )  # fmt: skip
    values: dict[str, Any] = {
        "metric": "accuracy", "teacher": TEACHER, "student": trained("student", student, seeds),
        "rows": "1,069 test rows", "gain": gain, "verdict": verdict,
        "baseline": None if baseline is None else trained("baseline", baseline, seeds),
    }  # fmt: skip
    return Findings(**values | changes)


BY = "against its baseline, the same student trained without the teacher's answers (95 % interval"


def test_helped_leads_with_the_student_its_gain_and_seeds() -> None:
    one = found("helped", 0.88, 0.85, 0.007, 0.053)
    assert sentence(one) == (
        f"Use the student: distilling helped, +3.0 points {BY} +0.7 to +5.3, 2 seeds). The student "
        "keeps 97.8 % of the teacher's accuracy at 5.0 times its speed and 25 % of its parameters."
    )


def test_hurt_leads_with_the_baseline_and_where_it_is() -> None:
    one = found("hurt", 0.80, 0.85, -0.09, -0.01)
    assert sentence(one) == (
        f"Use the baseline, not the student: distilling hurt, -5.0 points {BY} -9.0 to -1.0, "
        "2 seeds). The baseline keeps 94.4 % of the teacher's accuracy at 5.0 times its speed and "
        "25 % of its parameters. The baseline is kept in baseline/."
    )


@pytest.mark.parametrize(
    ("ends", "says"),
    [
        ((-0.004, 0.008), "all of it within the margin of 1.0 points"),
        (
            (0.001, 0.009),
            "a difference, but all of it within the margin of 1.0 points",
        ),
        (
            (-0.009, -0.001),
            "a difference, but all of it within the margin of 1.0 points",
        ),
    ],
)
def test_no_difference_names_the_margin(ends: tuple[float, float], says: str) -> None:
    said = lead(found("no difference", 0.882, 0.88, *ends))
    assert said.startswith("Student and baseline are equally good (accuracy 0.882 and 0.880): +0.2")
    assert said.endswith(f"2 seeds), {says}.")


def test_an_open_verdict_says_who_is_ahead_and_what_would_decide() -> None:
    needed = Needed(more_seeds=4, more_rows=1_873)
    said = sentence(found("can't tell", 0.607, 0.720, -0.241, 0.017, needed=needed))
    assert said.startswith(
        "The baseline, the same student trained without the teacher's answers, is better so far "
        "(accuracy 0.720 against 0.607), but 2 seeds and 1,069 test rows can't tell whether "
        "distilling helps or hurts: -11.3 points (95 % interval -24.1 to +1.7). About 4 more "
        "seeds, or 1,900 more test rows, would decide"
    )
    assert said.endswith("The baseline is kept in baseline/.")
    ahead = sentence(found("can't tell", 0.72, 0.70, -0.01, 0.05))
    assert ahead.startswith("The student is ahead so far of its baseline, the same student")
    assert "(accuracy 0.720 and 0.700), but 2 seeds" in ahead
    assert "baseline/" not in ahead
    level = lead(found("can't tell", 0.7, 0.7, -0.04, 0.04))
    assert level.startswith("The student is level so far with its baseline")


def test_what_is_not_comparable_says_why_and_praises_nothing() -> None:
    why = "the teacher was trained on 12.0 % of the test rows"
    said = sentence(found("not comparable", 0.88, 0.85, 0.01, 0.05, reason=why))
    assert said == (
        f"Student and baseline are not comparable (accuracy 0.880 and 0.850, 2 seeds): {why}. The "
        "student scores 0.880 in accuracy at 5.0 times the teacher's speed and 25 % of its "
        "parameters."
    )


def test_without_a_baseline_it_is_open() -> None:
    said = sentence(found(None, 0.88, None, seeds=1))
    assert said.startswith("The student scores 0.880 in accuracy (one seed), and no baseline was "
                           "trained, so whether distilling helped is open. ")  # fmt: skip


def test_without_a_baseline_a_teacher_that_knows_the_test_rows_is_no_yardstick() -> None:
    why = trained_on(0.4, 0.01, "accuracy")
    said = sentence(found(None, 0.88, None, reason=why))
    assert "helped is open; one of the models, or what it is made of, was trained on 40.0 %" in (
        lead(found(None, 0.88, None, reason=why))
    )
    assert said.endswith(
        "The student runs at 5.0 times the teacher's speed and 25 % of its parameters."
    )


@pytest.mark.parametrize(
    ("verdict", "ends", "before"),
    [
        ("helped", (0.01, 0.05), "distilling helped, "),
        ("hurt", (-0.05, -0.01), "distilling hurt, "),
        ("no difference", (-0.004, 0.004), "equally good, "),
    ],
)
def test_one_seed_is_of_these_two_models_only(
    verdict: Verdict, ends: tuple[float, float], before: str
) -> None:
    said = lead(found(verdict, 0.88, 0.85, *ends, seeds=1))
    assert f"{before}for these two models only (one seed says nothing of the recipe)" in said
    open_ = lead(found("can't tell", 0.88, 0.85, -0.01, 0.07, seeds=1))
    assert "even for these two models" in open_


def test_a_weak_teacher_is_in_the_first_sentence_by_each_sign() -> None:
    teacher = TEACHER.model_copy(
        update={
            "score": 0.593,
            "never_predicted": ["card", "fee", "loan", "rate"],
            "confusion": [[0, 1], [2, 0], [0, 0], [1, 0]],
        }
    )
    baseline = trained("baseline", 0.720)
    learning = "its training ended while it still learned (its loss fell from 2.41 to 2.10)"
    signs = weak_signs("accuracy", teacher, baseline, FLOOR, margin=0.01, unfinished=learning)
    assert signs == [
        "the baseline, which had none of its answers, beats it (0.720)",
        "a bag of words beats it (TF-IDF with logistic regression, 0.654)",
        learning,
        "it never answers 4 of the 3 classes (card, fee, loan, ...)",
    ]
    one = found(
        "can't tell", 0.607, 0.720, -0.241, 0.017, teacher=teacher, weak=signs, floor=FLOOR
    )  # fmt: skip
    assert lead(one).endswith(
        f"; the teacher (0.593) is weak: {', '.join(signs[:3])}, and {signs[3]}."
    )
    assert "keeps" not in sentence(one), "a weak teacher is no yardstick"
    assert "The baseline scores 0.720 in accuracy" in sentence(one)


def test_a_sound_teacher_has_no_signs() -> None:
    sound = weak_signs(
        "accuracy", TEACHER, trained("baseline", 0.9), FLOOR, margin=0.01, unfinished=None
    )
    assert sound == []
    assert weak_signs("accuracy", TEACHER, None, None, margin=0.01, unfinished=None) == []


@pytest.mark.parametrize(
    ("student", "baseline", "says"),
    [(0.654, 0.654, "neither is better"), (0.654, None, "it is not better"), (0.60, 0.70, None),
     (0.66, None, None)],
)  # fmt: skip
def test_a_bag_of_words_that_does_as_well_is_named(
    student: float, baseline: float | None, says: str | None
) -> None:
    verdict: Verdict | None = None if baseline is None else "can't tell"
    said = lead(found(verdict, student, baseline, -0.1, 0.1, floor=FLOOR))
    words = f"; {says} than a bag of words (TF-IDF with logistic regression, 0.654)."
    assert said.endswith(words) if says else "bag of words" not in said


@pytest.mark.parametrize(
    ("verdict", "student", "baseline", "then"),
    [
        ("helped", 0.60, 0.50, "Of the small models, use the student: distilling helped, "),
        ("hurt", 0.50, 0.60, "Of the small models, use the baseline, not the student: "),
        ("can't tell", 0.60, 0.59, "The student is ahead so far of its baseline, "),
        (None, 0.60, None, "The student scores 0.600 in "),
    ],
)
def test_a_better_bag_of_words_is_what_to_take(
    verdict: Verdict | None, student: float, baseline: float | None, then: str
) -> None:
    best = "baseline" if verdict == "hurt" else "student"
    said = lead(found(verdict, student, baseline, 0.05, 0.15, floor=FLOOR))
    first = "Use the bag of words (TF-IDF with logistic regression): it scores 0.654, better than "
    assert said.startswith(f"{first}the {best}'s 0.600. {then}")


@pytest.mark.parametrize(("score", "signs"), [(0.909, 0), (0.911, 1)])
def test_a_teacher_is_weak_where_it_is_beaten_by_more_than_the_margin(
    score: float, signs: int
) -> None:
    theirs = trained("baseline", score)
    told = weak_signs("accuracy", TEACHER, theirs, None, margin=0.01, unfinished=None)
    assert TEACHER.score == 0.9
    assert len(told) == signs


def test_the_first_sentence_begins_the_whole() -> None:
    one = found("can't tell", 0.6, 0.7, -0.2, 0.1, floor=FLOOR, weak=["a sign"])
    assert sentence(one).startswith(lead(one))


# --- a teacher whose training ended too early --------------------------------------------------


def fine_tuned(folder: Path, losses: list[float], scores: list[float], **changes: Any) -> Path:
    """The folder of a fine-tuning with this log."""
    folder.mkdir()
    model = trained("model", 0.6, 1).model_dump()
    record: dict[str, Any] = {
        "schema": 2, "flow": "finetune", "task": "classification", "metric": "accuracy",
        "data": {"train": 1, "labelled": 1, "unlabelled": 0, "held_out": 1, "reported": 1,
                 "labels": []},
        "teacher": None, "student": model, "baseline": None, "gain": None, "verdict": None,
        "sentence": "S.", "timing": {"teacher_s": 0, "student_s": 1, "total_s": 1,
                                     "examples_per_s": 1},
    }  # fmt: skip
    (folder / "record.json").write_text(json.dumps(record | changes), encoding="utf-8")
    lines = [{"step": i, "loss": loss} for i, loss in enumerate(losses)]
    lines += [{"step": i, "event": "evaluate", "score": score} for i, score in enumerate(scores)]
    (folder / "metrics.jsonl").write_text(
        "".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8"
    )
    return folder


FALLING, FLAT = [4.3, 4.0, 3.2, 2.8, 2.2, 2.0], [4.3, 3.0, 2.0, 2.0, 1.95, 1.95]


@pytest.mark.parametrize(
    ("losses", "scores", "says"),
    [
        (FALLING, [0.2, 0.5, 0.505], "its loss fell from 3.00 to 2.10 at the end"),
        (FLAT, [0.2, 0.4, 0.593], "its held-out score rose from 0.400 to 0.593 at the end"),
        (FALLING, [0.2, 0.4, 0.593], "and its held-out score rose"),
        (FLAT, [0.2, 0.59, 0.6], None),  # by no more than the margin
        (FLAT, [0.2, 0.6, 0.5], None),
        ([4.3, 2.0, 0.8, 0.6, 0.3, 0.2], [0.5, 0.9, 0.9], None),  # low: nothing is left to learn
        (FALLING[:5], [0.5, 0.5], None),  # too short a log
    ],
)
def test_a_log_tells_whether_a_teacher_was_done(
    tmp_path: Path, losses: list[float], scores: list[float], says: str | None
) -> None:
    said = unfinished(fine_tuned(tmp_path / "teacher", losses, scores))
    if says is None:
        assert said is None
    else:
        assert said is not None
        assert says in said
        assert said.startswith("its training ended while it still learned (")


def test_other_models_say_nothing_of_their_training(tmp_path: Path) -> None:
    assert unfinished(tmp_path) is None
    assert unfinished("some-hub/name") is None
    other = fine_tuned(tmp_path / "student", FALLING, [0.1, 0.9], flow="distill")
    assert unfinished(other) is None
    (fine_tuned(tmp_path / "torn", FALLING, [0.1]) / "metrics.jsonl").write_text("{", "utf-8")
    assert unfinished(tmp_path / "torn") is None
