"""Span question answering: windows, gold places, the best span, SQuAD's scores, whole runs."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForQuestionAnswering

import stillhouse as sh
import tiny
from stillhouse.core.config import DataConfig, TrainingConfig
from stillhouse.core.errors import DataError, ModelError, UsageError
from stillhouse.core.progress import Silent
from stillhouse.core.terms import TermConfig
from stillhouse.core.types import NO_LABEL
from stillhouse.data.cells import is_answers
from stillhouse.data.columns import Columns
from stillhouse.data.rows import ingest
from stillhouse.data.sources import Part, Pool, load
from stillhouse.evaluation.evaluate import predict, score_rows
from stillhouse.flows.common import set_dropout
from stillhouse.models.forward import IMPOSSIBLE, has_fast_path, run, training_mode
from stillhouse.models.load import load_span_model
from stillhouse.numerics.qa_metrics import exact_match, f1, words
from stillhouse.tasks.base import Data
from stillhouse.tasks.span import Answer, Span, Spans, parse_label, place, span_data
from stillhouse.training import objective as objectives
from stillhouse.training.steps import TextForward, plain_step

FAST = ["bert", "roberta", "xlm-roberta", "distilbert"]


def rows(count: int, seed: int = 0, longest: int = 30) -> list[dict[str, Any]]:
    """What of the passage is good? Its one good word."""
    rng = np.random.default_rng(seed)
    found = []
    for number in range(count):
        plain = rng.choice(tiny.PLAIN[2:26], size=rng.integers(3, longest)).tolist()
        answer = str(rng.choice(tiny.GOOD))
        at = int(rng.integers(len(plain) + 1))
        passage = " ".join([*plain[:at], answer, *plain[at:]])
        start = passage.index(answer)
        found.append(
            {
                "question": f"what is it {tiny.PLAIN[number % 20]} ?",
                "context": passage,
                "answers": {"text": [answer], "answer_start": [start]},
            }
        )
    return found


def write(path: Path, found: Sequence[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in found), encoding="utf-8")
    return path


def data(
    folder: Path, found: Sequence[dict[str, Any]], kind: str = "bert", *, max_length: int = 32
) -> Spans:
    held = ingest(enumerate(found, 1), "rows", Columns(), folder / "rows", labelled=True)
    pool = Pool([Part(held, held.kept, labelled=True)])
    return span_data(
        pool, tiny.tokenizer(kind), folder / "store", max_length=max_length, progress=Silent(),
        title="rows",
    )  # fmt: skip


@pytest.mark.parametrize(
    ("label", "answers"),
    [
        ('{"answer_start": [3, 9], "text": ["a b", "b"]}', [Answer("a b", 3), Answer("b", 9)]),
        ('{"text": ["a"]}', [Answer("a")]),
        ('{"text": "a", "answer_start": 4}', [Answer("a", 4)]),
        ('[{"answer_start": 1, "text": "x"}, {"text": "y"}]', [Answer("x", 1), Answer("y")]),
        ("plain text", [Answer("plain text")]),
        ("1984", [Answer("1984")]),
        ("", [Answer("")]),
    ],
)
def test_answers_are_read(label: str, answers: list[Answer]) -> None:
    assert parse_label(label) == answers


@pytest.mark.parametrize(
    "label", ['{"text": [1]}', '{"answers": 3}', "[1, 2]", '{"text": ["a"], "answer_start": []}']
)
def test_what_is_no_answer_is_one_line(label: str) -> None:
    with pytest.raises(DataError, match="as in SQuAD") as raised:
        parse_label(label)
    assert "\n" not in str(raised.value)


def test_only_squads_form_makes_a_span_task() -> None:
    assert is_answers('{"answer_start": [1], "text": ["a"]}')
    assert not is_answers("positive")
    assert not is_answers("3.5")


@pytest.mark.parametrize(
    ("answer", "span"),
    [
        (Answer("b", 6), (6, 7)),
        (Answer("b", 5), (6, 7)),
        (Answer("b"), (2, 3)),
        (Answer("z", 2), None),
        (Answer("", 0), None),
    ],
)
def test_an_answer_stands_where_it_says_or_nearest(
    answer: Answer, span: tuple[int, int] | None
) -> None:
    assert place("a b a b", answer) == span


def test_scores_are_squads() -> None:
    assert words("The  Cat's, hat!") == ("cats", "hat")
    assert exact_match("the cat.", ("dog", "Cat")) == 1.0
    assert exact_match("cats", ("cat",)) == 0.0
    assert f1("big black cat", ("black cat",)) == pytest.approx(0.8)
    assert f1("black", ("cat", "black cat")) == pytest.approx(2 / 3)
    assert f1("x x y", ("x y y",)) == pytest.approx(2 / 3)
    assert f1("x", ()) == 0.0
    assert f1("the", ("a",)) == 1.0  # nothing is left of either
    assert f1("the", ("cat",)) == 0.0


@pytest.mark.parametrize("kind", ["bert", "roberta"])
def test_every_token_of_a_passage_knows_its_place(tmp_path: Path, kind: str) -> None:
    found = data(tmp_path, rows(30, longest=60), kind)
    tokenizer = tiny.tokenizer(kind)
    assert len(found) > 30  # some passages take several windows
    assert found.owners_W.tolist() == sorted(found.owners_W.tolist())
    seen: dict[int, set[str]] = {}
    for window in range(len(found)):
        batch = found.batch(np.array([window]))
        ids_T = batch.inputs["input_ids"][0].tolist()
        assert batch.answerable_BT is not None
        for place_, (id_, open_) in enumerate(zip(ids_T, batch.answerable_BT[0], strict=True)):
            if open_:
                text = found.text(window, place_, place_)
                assert tokenizer.convert_ids_to_tokens(id_) == text
                seen.setdefault(int(found.owners_W[window]), set()).add(text)
        if "token_type_ids" in batch.inputs:
            kinds_T = batch.inputs["token_type_ids"][0]
            assert (kinds_T[batch.answerable_BT[0]] == 1).all()
    for owner, passage in enumerate(found.passages):
        assert seen[owner] == set(passage.split())


def test_gold_tokens_spell_the_answer_and_are_in_one_window_at_least(tmp_path: Path) -> None:
    found = data(tmp_path, rows(30, longest=60))
    gold_W2 = found.gold_N.view(-1, 2)
    for owner, answers in enumerate(found.answers):
        mine = np.flatnonzero(found.owners_W == owner).tolist()
        held = [w for w in mine if gold_W2[w, 0] != NO_LABEL]
        assert held
        for window in held:
            assert found.text(window, *gold_W2[window].tolist()) == answers[0].text
    assert (gold_W2 == NO_LABEL).any()
    assert len(np.unique(found.keys_N2, axis=0)) == len(found)


def test_long_questions_leave_room_for_the_passage(tmp_path: Path) -> None:
    row = rows(1)[0] | {"question": " ".join(["film"] * 500)}
    found = data(tmp_path, [row, *rows(2, seed=1)])
    assert (found.lengths <= 32).all()
    assert (found.batch(np.array([0])).answerable_BT.sum() >= 8).item()  # pyright: ignore


def test_the_best_span_is_the_best_of_all(tmp_path: Path) -> None:
    draw = torch.Generator().manual_seed(0)
    scores_NK = torch.randn(2 * 20, 50, generator=draw)
    scores_NK[:, 40:] = IMPOSSIBLE
    kept_W22 = Span().reduce(scores_NK, torch.zeros(40)).view(20, 2, 2)
    for window in range(20):
        begins, ends = scores_NK[2 * window], scores_NK[2 * window + 1]
        score, first, last = max(
            (float(begins[i] + ends[j]), i, j) for i in range(50) for j in range(i, min(50, i + 30))
        )
        assert kept_W22[window, :, 0].tolist() == [first, last]
        assert kept_W22[window, :, 1].tolist() == pytest.approx([score, score])


def test_of_several_windows_the_surest_answers(tmp_path: Path) -> None:
    found, task = data(tmp_path, rows(12, longest=60)), Span()
    gold_W2 = found.gold_N.view(-1, 2)
    kept = np.zeros((len(found), 2, 2), np.float32)
    for window in range(len(found)):
        right = gold_W2[window, 0] != NO_LABEL
        at = gold_W2[window].numpy() if right else np.full(2, int(found.lengths[window]) - 2)
        kept[window, :, 0], kept[window, :, 1] = at, 2.0 if right else 1.0
    answers = task.predictions(kept.reshape(-1, 2), found)
    assert task.score(answers) == {"f1": 1.0, "exact_match": 1.0}
    kept[:, :, 1] *= -1
    assert task.score(task.predictions(kept.reshape(-1, 2), found))["f1"] < 1.0


@pytest.mark.parametrize("kind", FAST)
def test_fast_scores_equal_the_models_own(kind: str, tmp_path: Path) -> None:
    tiny.save(tmp_path / "model", kind, layers=3, dropout=0.0)
    model = load_span_model(str(tmp_path / "model"), fresh_head=True)
    assert has_fast_path(model)
    found = data(tmp_path, rows(8, longest=60), kind)
    batch = found.batch(np.arange(len(found)))
    own_NK, fast_NK = (
        run(model, batch, precision="float32", fast=fast).scores_NK for fast in (False, True)
    )
    assert own_NK.shape == (2 * len(found), batch.inputs["input_ids"].shape[1])
    torch.testing.assert_close(fast_NK, own_NK, atol=1e-5, rtol=1e-5)
    output = model(
        **{
            k: v
            for k, v in batch.inputs.items()
            if k in ("input_ids", "attention_mask", "token_type_ids")
        }
    )
    open_BT = batch.answerable_BT
    assert open_BT is not None
    torch.testing.assert_close(own_NK[0::2][open_BT], output.start_logits[open_BT])
    torch.testing.assert_close(own_NK[1::2][open_BT], output.end_logits[open_BT])
    assert (own_NK[0::2][~open_BT] == IMPOSSIBLE).all()
    with training_mode(model, on=True):
        (fast_NK * (fast_NK > IMPOSSIBLE)).sum().backward()
    assert model.qa_outputs.weight.grad.abs().sum() > 0  # pyright: ignore


def test_columns_of_squad_are_found_and_empty_answers_are_none(tmp_path: Path) -> None:
    found = [*rows(30), rows(1, seed=9)[0] | {"answers": {"text": [], "answer_start": []}}]
    path = write(tmp_path / "rows.jsonl", found)
    splits = load(DataConfig(path=str(path)), tmp_path / "store")
    first = splits.labelled.at(np.array([0]))[0]
    assert first.text.startswith("what is it")
    assert first.pair
    assert len(splits.unlabelled) == 1


def test_a_question_without_its_passage_is_one_line(tmp_path: Path) -> None:
    found = [
        {"text": r["question"], "label": json.dumps(r["answers"], sort_keys=True)} for r in rows(30)
    ]
    with pytest.raises(DataError, match="no passage"):
        sh.finetune(
            tiny.save(tmp_path / "model"), str(write(tmp_path / "rows.jsonl", found)),
            out=tmp_path / "out", cache=str(tmp_path / "cache"), progress=Silent(),
        )  # fmt: skip


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("spans")
    tiny.save(folder / "model")
    write(folder / "rows.jsonl", rows(240))
    run_ = sh.finetune(
        str(folder / "model"),
        {"path": str(folder / "rows.jsonl"), "max_length": 32},
        out=folder / "teacher",
        training={"steps": 150, "batch_size": 32, "lr": 5e-3, "evaluations": 3},
        resamples=100,
        cache=str(folder / "cache"),
        progress=Silent(),
    )
    assert run_.record.task == "span"
    assert run_.record.metric == "f1"
    return folder


@pytest.mark.slow
def test_a_model_learns_where_answers_are(teacher: Path) -> None:
    found = sh.evaluate(
        teacher / "teacher", {"path": str(teacher / "rows.jsonl"), "max_length": 32},
        cache=str(teacher / "cache"), progress=Silent(),
    )  # fmt: skip
    assert found["f1"] > 0.8
    assert found["exact_match"] <= found["f1"] + 1e-9
    low, high = found["interval"]
    assert low <= found["f1"] <= high
    assert found["calibration_error"] is None
    model = AutoModelForQuestionAnswering.from_pretrained(teacher / "teacher")
    assert type(model).__name__ == "BertForQuestionAnswering"


@pytest.mark.slow
def test_spans_are_distilled_from_a_live_teacher(teacher: Path, tmp_path: Path) -> None:
    run_ = sh.distill(
        teacher / "teacher",
        {"path": str(teacher / "rows.jsonl"), "max_length": 32},
        student=sh.layers(1),
        out=tmp_path / "run",
        seeds=1,
        training={"steps": 60, "batch_size": 32, "lr": 5e-3, "evaluations": 2},
        evaluation={"resamples": 100, "metric": "exact_match"},
        cache=str(teacher / "cache"),
        progress=Silent(),
    )
    record = run_.record
    assert (record.task, record.metric) == ("span", "exact_match")
    assert set(record.student.metrics) == {"f1", "exact_match"}
    assert record.student.agreement is not None
    assert record.student.score > 0.5
    assert {each.format for each in record.exports} == {"onnx", "onnx-int8"}
    assert record.exports[0].agreement == pytest.approx(1.0)
    for each in record.disagreements:
        assert each.teacher != each.student
        assert each.gold in tiny.GOOD
    page = (tmp_path / "run" / "report.html").read_text(encoding="utf-8")
    assert "Exact match" in page
    card = (tmp_path / "run" / "student" / "README.md").read_text(encoding="utf-8")
    assert "AutoModelForQuestionAnswering" in card


@pytest.mark.slow
def test_live_answers_and_saved_models_agree(teacher: Path, tmp_path: Path) -> None:
    found = data(tmp_path, rows(20, seed=5, longest=60))
    model, task = load_span_model(str(teacher / "teacher")), Span()
    slow, fast = (score_rows(model, found, task, fast=fast) for fast in (False, True))
    np.testing.assert_array_equal(slow[:, 0], fast[:, 0])
    assert isinstance(found, Data)
    assert task.score(predict(model, found, task))["f1"] > 0.5


@pytest.mark.slow
def test_what_can_not_be_is_refused(teacher: Path, tmp_path: Path) -> None:
    place_ = {"path": str(teacher / "rows.jsonl"), "max_length": 32}
    with pytest.raises(ModelError, match="is a classifier of texts"):
        load_span_model(str(teacher / "model"))
    with pytest.raises(UsageError, match="fewer layers"):
        sh.remove(teacher / "teacher", place_, out=tmp_path / "a", speedup=2, progress=Silent())
    tiny.save(tmp_path / "other", "roberta")
    with pytest.raises(UsageError, match="another tokenizer"):
        sh.distill(teacher / "teacher", place_, student=str(tmp_path / "other"),
                   out=tmp_path / "b", progress=Silent())  # fmt: skip
    with pytest.raises(UsageError, match="asked live"):
        sh.label(teacher / "teacher", place_, out=tmp_path / "c", progress=Silent())
    assert not (tmp_path / "a").exists()


@pytest.mark.slow
def test_a_loss_is_a_mean_over_both_ends(teacher: Path, tmp_path: Path) -> None:
    found = data(tmp_path, rows(6, longest=60))
    whole = found.batch(np.arange(len(found)))
    assert whole.scored == 2 * len(found)
    model = load_span_model(str(teacher / "teacher"))
    set_dropout(model, 0.0)
    gold = objectives.build([TermConfig(kind="gold")], choices=32, signal=None, has_gold=True)
    parts = [found.batch(np.arange(3)), found.batch(np.arange(3, len(found)))]
    losses = []
    for batches in ([whole], parts):
        stats = plain_step(
            model, batches, gold, None, TextForward(TrainingConfig(precision="float32")),
            progress=0.0, rngs=[np.random.default_rng(0)] * len(batches), norms=False,
            totals={"examples": len(found), "scored": whole.scored},
        )  # fmt: skip
        losses.append(float(stats.loss))
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)
    scores_NK = run(model, whole, precision="float32").scores_NK
    has_N = whole.gold_N != NO_LABEL
    by_hand = torch.nn.functional.cross_entropy(
        scores_NK[has_N], whole.gold_N[has_N], reduction="sum"
    )
    assert losses[0] == pytest.approx(float(by_hand.detach()) / whole.scored, rel=1e-4)
