"""Answers to rows are the model's own, by every road to them."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer

import stillhouse as sh
import tiny
import written
from stillhouse.core.errors import DataError, ModelError, UsageError
from stillhouse.core.inference import Inference, read_inference, write_inference
from stillhouse.core.progress import Silent
from stillhouse.core.types import Batch, Example
from stillhouse.data.encoding import encode_now
from stillhouse.data.windows import cut
from stillhouse.models.forward import span_scores
from stillhouse.prediction.answers import best_spans, likeliest
from stillhouse.prediction.encoding import Encoder
from stillhouse.prediction.onnx_model import facts_beside
from stillhouse.prediction.run import CHUNK, Counts, Predictor
from stillhouse.tasks.span import Span

Exported = Callable[[str], tuple[Path, Path]]
LONG = "the film was very good but the meal was quite awful and the staff not kind"
AWKWARD = [
    "good film",
    LONG,
    "  Ünïcode 中文 \U0001f943 ",
    'a "quoted", meal',
    "bad\ttab",
    "x" * 9000,
]
QUESTION, PASSAGE = "was the film good ?", " ".join([LONG] * 3)


def test_a_folder_an_onnx_file_and_evaluate_answer_alike(
    exported: Exported, tmp_path: Path, in_float32: None
) -> None:
    folder, onnx = exported("classification")
    rows = [(text, ["no", "so", "yes"][i % 3]) for i, (text, _) in enumerate(tiny.sentences(90))]
    rows += [(f"{LONG} {word}", "no") for word in tiny.GOOD]
    data = tiny.write_csv(tmp_path / "rows.csv", ["text", "label"], rows)
    told = tmp_path / "told.jsonl"
    score = sh.evaluate(
        folder, str(data), against=onnx / "model.onnx", predictions=told, resamples=20,
        cache=str(tmp_path / "cache"), progress=Silent(),
    )  # fmt: skip
    asked = [json.loads(line) for line in told.read_text().splitlines()]
    texts = [row["text"] for row in asked]
    assert any(len(text.split()) > 12 for text in texts), "some must be cut"
    assert score["against"]["agreement"] == 1
    for model in (folder, onnx / "model.onnx", onnx):
        found = sh.predict(model, texts, top=None)
        assert [row["answer"] for row in found] == [row["model"] for row in asked]
        for mine, theirs in zip(found, asked, strict=True):
            assert mine["probability"] == pytest.approx(theirs["model_probability"], abs=1e-4)
            assert mine["probabilities"] == pytest.approx(theirs["model_probabilities"], abs=1e-4)
    right = np.mean([row["gold"] == row["model"] for row in asked])
    assert score["accuracy"] == pytest.approx(right)
    assert [rows[row["line"] - 2][0] for row in asked] == texts


@pytest.mark.parametrize("task", ["regression", "span"])
def test_other_tasks_answer_alike(exported: Exported, task: str, in_float32: None) -> None:
    folder, onnx = exported(task)
    rows: list[Any] = [*AWKWARD]
    if task == "span":
        rows = [
            (QUESTION, PASSAGE),
            (QUESTION, "the meal"),
            ("is it a very long question ? " * 9, LONG),
        ]
    mine, theirs = sh.predict(folder, rows), sh.predict(onnx / "model.onnx", rows)
    for a, b, row in zip(mine, theirs, rows, strict=True):
        if task == "span":
            assert a == b
            start = a["answer_start"]
            assert row[1][start : start + len(a["answer"])] == a["answer"]
        else:
            assert a["answer"] == pytest.approx(b["answer"], abs=1e-4)


@pytest.mark.parametrize("kind", tiny.KINDS)
@pytest.mark.parametrize("paired", [False, True])
def test_rows_become_the_tokens_that_training_makes_of_them(kind: str, paired: bool) -> None:
    tokenizer = tiny.tokenizer(kind)
    types = "token_type_ids" in tokenizer.model_input_names
    inputs = ["input_ids", "attention_mask", *(["token_type_ids"] if types else [])]
    facts = Inference(
        task="classification", max_length=12, inputs=inputs, pad_id=tokenizer.pad_token_id
    )
    encoder = Encoder(tokenizer.backend_tokenizer, facts)
    pairs = [LONG if paired else None for _ in AWKWARD]
    pieces = encoder.pieces(AWKWARD, pairs)
    for text, pair, piece in zip(AWKWARD, pairs, pieces, strict=True):
        (made,) = encoder.passes([piece], size=1)
        wanted = encode_now([Example(text, pair)], tokenizer, max_length=12)
        assert {n: t.tolist() for n, t in made.inputs.items()} == {
            n: t.tolist() for n, t in wanted.items()
        }
        whole = len(tokenizer(text, pair)["input_ids"])
        assert piece.cut == (whole > 12)


def test_passages_become_the_windows_that_training_makes_of_them() -> None:
    tokenizer = tiny.tokenizer()
    rows = [Example(QUESTION, PASSAGE), Example("film " * 30, LONG), Example("is", "good")]
    encoder = Encoder(tokenizer.backend_tokenizer, Inference(task="span", max_length=24))
    mine = encoder.pieces([row.text for row in rows], [row.pair for row in rows])
    theirs = list(cut(rows, tokenizer, max_length=24))
    assert len(mine) == len(theirs) > len(rows)
    for a, b in zip(mine, theirs, strict=True):
        assert (a.owner, a.second) == (b.owner, b.second)
        assert a.ids_T.tolist() == b.ids_T.tolist()
        assert a.chars_T2 is not None
        assert a.chars_T2.tolist() == b.chars_T2.tolist()


def test_the_best_span_is_the_tasks() -> None:
    rng = np.random.default_rng(0)
    scores_W2T = rng.normal(size=(20, 2, 50)).astype(np.float32)
    answerable_WT = rng.random((20, 50)) < 0.7
    batch = Batch({}, np.arange(20), answerable_BT=torch.from_numpy(answerable_WT))
    held = span_scores(torch.from_numpy(scores_W2T), batch)
    theirs = Span().reduce(held, torch.empty(0)).view(-1, 2, 2).numpy()
    mine = best_spans(scores_W2T, answerable_WT)
    assert [(a, b) for a, b, _ in mine] == [(int(s[0, 0]), int(s[1, 0])) for s in theirs]


def test_the_likeliest_come_first_and_all_of_them_add_up() -> None:
    shares = np.array([0.2, 0.5, 0.2, 0.1])
    assert list(likeliest(shares, list("abcd"), 3).items()) == [("b", 0.5), ("a", 0.2), ("c", 0.2)]
    assert sum(likeliest(shares, list("abcd"), None).values()) == pytest.approx(1)


def test_a_model_that_writes_gives_texts(tmp_path: Path) -> None:
    data = written.pairs(tmp_path / "pairs.jsonl", 60)
    model = written.fresh(tmp_path / "model", data)
    sources = ["rot katze", "", "gross haus alt"]
    found = sh.predict(model, sources)
    assert [row["text"] for row in found] == sources
    assert [isinstance(row["answer"], str) for row in found] == [True, False, True]
    alone = sh.predict(model, [sources[2]])
    assert alone[0]["answer"] == found[2]["answer"]


def test_labels_are_the_datas_where_the_head_has_others(tmp_path: Path) -> None:
    folder = tiny.save(tmp_path / "model")
    facts = Inference(task="classification", max_length=16, labels=["thumbs down", "thumbs up"])
    write_inference(folder, facts)
    assert {row["answer"] for row in sh.predict(folder, AWKWARD)} <= set(facts.labels)


def test_a_masked_language_model_is_refused_in_one_line(tmp_path: Path) -> None:
    folder = tiny.save(tmp_path / "masked", masked=True)
    with pytest.raises(ModelError, match=r"masked language model.*no answer for a row"):
        sh.predict(folder, ["good"])


def test_rows_keep_their_place_and_say_what_is_wrong(exported: Exported) -> None:
    folder, _ = exported("classification")
    rows = ["good", None, {"text": "bad", "id": 7}, {"text": ["a"]}, {"text": "\ud800"}, "  "]
    found = sh.predict(folder, [row if isinstance(row, dict) else {"text": row} for row in rows])
    assert ["error" in row for row in found] == [False, True, False, True, True, True]
    assert [row["answer"] is None for row in found] == [False, True, False, True, True, True]
    assert found[2]["id"] == 7
    with pytest.raises(DataError, match="no row that can be answered"):
        sh.predict(folder, ["", " "])
    with pytest.raises(DataError, match="no row that can be answered: it is empty"):
        sh.predict(folder, [])


def test_a_column_with_our_name_is_kept_under_another(exported: Exported) -> None:
    folder, _ = exported("classification")
    (found,) = sh.predict(folder, [{"text": "good", "answer": "mine", "error": 3}])
    assert (found["input_answer"], found["input_error"]) == ("mine", 3)
    assert found["answer"] in ("no", "so", "yes")


def _frame(rows: list[dict[str, Any]], library: str) -> Any:
    made = pytest.importorskip(library)
    if library == "pyarrow":
        return made.Table.from_pylist(rows)
    return made.Dataset.from_list(rows) if library == "datasets" else made.DataFrame(rows)


@pytest.mark.parametrize("library", ["pandas", "polars", "pyarrow", "datasets"])
def test_tables_in_memory_are_answered_as_their_rows_are(exported: Exported, library: str) -> None:
    folder, _ = exported("classification")
    rows = [{"id": i, "text": text} for i, text in enumerate(["good film", "bad", LONG])]
    assert sh.predict(folder, _frame(rows, library)) == sh.predict(folder, rows)


def test_pairs_may_be_tuples_or_lists(exported: Exported) -> None:
    folder, _ = exported("span")
    (mine,), (theirs,) = (
        sh.predict(folder, [pair]) for pair in ((QUESTION, PASSAGE), [QUESTION, PASSAGE])
    )
    assert mine == theirs
    assert mine["pair"] == PASSAGE


def test_a_second_text_is_asked_for_where_the_model_needs_one(exported: Exported) -> None:
    folder, _ = exported("span")
    with pytest.raises(DataError, match="--pair-column"):
        sh.predict(folder, [{"text": "was it good ?", "id": 1}])
    tabbed, missing = sh.predict(folder, ["was it good ?\tit was very good", "was it ?"])
    assert tabbed["answer"]
    assert missing["error"] == "it has no second text"


def test_a_second_text_that_the_model_never_saw_is_not_read(tmp_path: Path) -> None:
    folder = tiny.save(tmp_path / "model")
    write_inference(folder, Inference(task="classification", max_length=16, pair=False))
    both, single = (
        sh.predict(folder, [row])[0]["probability"]
        for row in ({"text": "good film", "pair": "bad meal"}, {"text": "good film"})
    )
    assert both == single


def test_answers_come_while_rows_are_read(exported: Exported) -> None:
    """No more rows are held than are answered together."""
    folder, _ = exported("classification")
    read = 0

    def rows() -> Any:
        nonlocal read
        for read in range(1, 10 * CHUNK):  # noqa: B007
            yield "good film"

    answers = Predictor(folder).rows(rows())
    next(answers)
    assert read <= CHUNK + 1


def test_an_int8_files_answers_one_by_one_depend_on_no_other_row(exported: Exported) -> None:
    _, onnx = exported("classification")
    texts = [text for text, _ in tiny.sentences(40)]
    alone = [sh.predict(onnx / "model-int8.onnx", [text])[0]["probability"] for text in texts]
    single = sh.predict(onnx / "model-int8.onnx", texts, batch_size=1)
    assert [row["probability"] for row in single] == alone
    together = sh.predict(onnx / "model-int8.onnx", texts, batch_size=32)
    assert [row["probability"] for row in together] != alone


def test_an_onnx_file_needs_no_torch(exported: Exported) -> None:
    _, onnx = exported("classification")
    code = (
        "import sys, stillhouse as sh\n"
        f"rows = sh.predict({str(onnx / 'model.onnx')!r}, ['good film'])\n"
        "assert rows[0]['answer'] in ('no', 'so', 'yes')\n"
        "print(*{'torch', 'transformers', 'scipy', 'pyarrow', 'pandas'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        ("tokenizer.json", "no tokenizer.json beside it"),
        ("inference.json config.json", "neither inference.json nor config.json"),
        ("model.onnx", "there is no file"),
    ],
)
def test_what_is_missing_beside_an_onnx_file_is_named(
    exported: Exported, tmp_path: Path, spoil: str, said: str
) -> None:
    _, onnx = exported("classification")
    for file in onnx.iterdir():
        if file.name not in spoil.split():
            (tmp_path / file.name).write_bytes(file.read_bytes())
    with pytest.raises(ModelError, match=said):
        sh.predict(tmp_path / "model.onnx", ["good"])


def test_a_file_that_is_no_onnx_model_is_named(exported: Exported, tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    path.write_text("no model")
    with pytest.raises(ModelError, match="no ONNX model that can be run"):
        sh.predict(path, ["good"])


def test_an_export_made_elsewhere_is_read_by_its_config(
    exported: Exported, tmp_path: Path, in_float32: None
) -> None:
    folder, onnx = exported("classification")
    for name in ("model.onnx", "config.json", "tokenizer.json"):
        (tmp_path / name).write_bytes((onnx / name).read_bytes())
    mine = sh.predict(tmp_path / "model.onnx", ["good film"])[0]
    assert mine["answer"] == sh.predict(folder, ["good film"])[0]["answer"]


def _made_elsewhere(onnx: Path, folder: Path, **changes: Any) -> Path:
    """An ONNX file with a config.json of other members; None takes one out."""
    config = json.loads((onnx / "config.json").read_text()) | changes
    held = {name: value for name, value in config.items() if value is not None}
    (folder / "config.json").write_text(json.dumps(held))
    for name in ("model.onnx", "tokenizer.json"):
        (folder / name).write_bytes((onnx / name).read_bytes())
    return folder / "model.onnx"


def test_labels_that_no_config_names_are_those_of_transformers(
    exported: Exported, tmp_path: Path
) -> None:
    """It writes the names of two classes only where they are not LABEL_0 and LABEL_1."""
    path = _made_elsewhere(exported("classification")[1], tmp_path, id2label=None, label2id=None)
    facts = facts_beside(path)
    assert (facts.task, facts.labels) == ("classification", ["LABEL_0", "LABEL_1"])


def test_a_file_of_several_labels_is_refused_as_its_folder_is(
    exported: Exported, tmp_path: Path
) -> None:
    problem = {"problem_type": "multi_label_classification"}
    path = _made_elsewhere(exported("classification")[1], tmp_path, **problem)
    with pytest.raises(ModelError, match="several labels a row"):
        sh.predict(path, ["good"])


def test_a_file_of_one_sigmoid_answers_with_two_classes(
    exported: Exported, tmp_path: Path, in_float32: None
) -> None:
    onnx = exported("regression")[1]
    plain = sh.predict(onnx / "model.onnx", ["good film"])[0]
    problem = {"problem_type": "multi_label_classification"}
    found = sh.predict(_made_elsewhere(onnx, tmp_path, **problem), ["good film"])[0]
    share = 1 / (1 + np.exp(-plain["answer"]))
    assert found["probabilities"] == pytest.approx({"0": 1 - share, "1": share}, abs=1e-6)


def test_labels_of_an_export_made_elsewhere_stand_in_the_order_of_their_numbers(
    tmp_path: Path,
) -> None:
    """10 comes after 2, however config.json orders its texts."""
    named = {str(i): f"class {i}" for i in (10, 2, 0, 11, 1, 3, 4, 5, 6, 7, 8, 9)}
    (tmp_path / "config.json").write_text(json.dumps({"id2label": named}), encoding="utf-8")
    assert facts_beside(tmp_path / "model.onnx").labels == [f"class {i}" for i in range(12)]


def test_a_span_has_up_to_thirty_tokens() -> None:
    scores_W2T = np.zeros((2, 2, 40), np.float32)
    scores_W2T[0, 0, 5] = scores_W2T[0, 1, 34] = 9.0  # thirty, both ends counted
    scores_W2T[1, 0, 5] = scores_W2T[1, 1, 35] = 9.0  # one more
    inside, outside = best_spans(scores_W2T, np.ones((2, 40), bool))
    assert inside == (5, 34, 18.0)
    assert outside[1] - outside[0] < 30
    assert outside[2] == 9.0


def test_data_that_is_no_rows_is_refused(exported: Exported) -> None:
    folder, _ = exported("classification")
    for data in (3, {"text": "good"}, b"good"):
        with pytest.raises(UsageError, match="data is a file, or a list"):
            sh.predict(folder, data)
    with pytest.raises(UsageError, match="models in memory are not supported"):
        sh.predict(tiny.model(), ["good"])  # pyright: ignore[reportArgumentType]


def test_the_tokenizers_own_padding_and_truncation_count_for_nothing() -> None:
    made: Any = Tokenizer.from_str(tiny.tokenizer().backend_tokenizer.to_str())
    made.enable_truncation(3)
    made.enable_padding(length=40)
    encoder = Encoder(made, Inference(task="classification", max_length=12))
    assert [len(piece.ids_T) for piece in encoder.pieces(["good film was", LONG], [None] * 2)] == [
        5,
        12,
    ]


def test_more_tokens_than_a_model_can_read_are_refused(exported: Exported, tmp_path: Path) -> None:
    folder, onnx = exported("classification")
    facts = read_inference(onnx)
    assert facts is not None
    most = facts.positions
    assert most == json.loads((folder / "config.json").read_text())["max_position_embeddings"]
    elsewhere = shutil.copytree(onnx, tmp_path / "elsewhere")
    (elsewhere / "inference.json").unlink()
    for model in (folder, onnx / "model-int8.onnx", elsewhere):
        with pytest.raises(UsageError, match=f"{most + 1}: the model reads at most {most} tokens"):
            Predictor(model, max_length=most + 1)
        assert Predictor(model, max_length=most).facts.max_length == most


def test_one_output_that_nothing_describes_is_said_to_be_taken_for_a_value(
    exported: Exported, tmp_path: Path
) -> None:
    folder, onnx = exported("regression")
    assert Predictor(onnx / "model.onnx").notes(Counts()) == []
    bare = shutil.copytree(folder, tmp_path / "bare")
    (bare / "inference.json").unlink(missing_ok=True)
    config = json.loads((bare / "config.json").read_text())
    for problem, said in ((None, 1), ("regression", 0), ("multi_label_classification", 0)):
        held = {**config, "problem_type": problem}
        (bare / "config.json").write_text(json.dumps(held))
        made = _made_elsewhere(onnx, tmp_path, problem_type=problem)
        for model in (bare, made):
            notes = Predictor(model).notes(Counts())
            assert len(notes) == said
            assert all("if it is the logit of a class" in note for note in notes)
