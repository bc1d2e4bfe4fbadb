"""Distilling models that write, from their settings to their record."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForSeq2SeqLM

import stillhouse as sh
import written
from stillhouse.core.config import DataConfig
from stillhouse.core.errors import UsageError
from stillhouse.core.progress import Silent
from stillhouse.core.settings import parse, section
from stillhouse.core.writing import OnPolicyConfig
from stillhouse.flows.methods import method
from stillhouse.flows.writers import own_texts, reported_by_writer
from stillhouse.tasks.written import Written


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Rows, a teacher trained on them, a student to be."""
    folder = tmp_path_factory.mktemp("written")
    data = written.pairs(folder / "rows.jsonl", 400)
    start = written.fresh(folder / "start", data)
    teacher = written.teacher(folder / "teacher", data, start)
    small = folder / "small"
    sh.new("seq2seq", out=small, tokenizer_from=str(start), width=16, layers=1, heads=2,
           progress=Silent())  # fmt: skip
    return {"data": data, "teacher": teacher, "small": small, "folder": folder}


def distil(made: dict[str, Path], out: Path, **changes: Any) -> sh.Run:
    student = changes.pop("student", made["small"])
    return written.run(out, made["teacher"], made["data"], student, **changes)


def test_a_teacher_learns_the_language(made: dict[str, Path]) -> None:
    record = sh.Run.open(made["teacher"]).record
    assert record.metric == "bleu"
    assert record.student.score > 30
    assert record.student.metrics["bleu_greedy"] > 30
    assert record.student.metrics["perplexity"] < 3
    assert record.signatures["bleu"].startswith("nrefs:1|case:mixed|eff:no|tok:13a")


@pytest.mark.slow
def test_word_level_leaves_a_whole_run(made: dict[str, Path], tmp_path: Path) -> None:
    run = distil(made, tmp_path / "run", evaluation={"baseline": True, "efficiency": True})
    record = run.record
    assert [s.terms for s in record.stages] == [["soft", "gold"]]
    assert record.gain is not None
    assert record.student.tokens_per_s
    assert {"bleu", "bleu_greedy", "chrf", "perplexity", "mode_probability"} <= {
        *record.student.metrics
    }
    page = (tmp_path / "run" / "report.html").read_text()
    assert "sacrebleu" in page
    assert AutoModelForSeq2SeqLM.from_pretrained(tmp_path / "run" / "student").config.d_model == 16
    again = distil(made, tmp_path / "run", evaluation={"baseline": True, "efficiency": True})
    assert again.record == record


def test_its_own_teacher_gives_no_loss(made: dict[str, Path], tmp_path: Path) -> None:
    """A student that is its teacher has nothing to learn from it."""
    distil(
        made,
        tmp_path / "run",
        student=made["teacher"],
        objective=[{"kind": "soft"}],
        training={"dropout": 0.0, "steps": 1},
    )
    first = json.loads((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()[0])
    assert first["loss"] == pytest.approx(0.0, abs=1e-6)


@pytest.mark.slow
def test_kept_distributions_are_measured_and_used(made: dict[str, Path], tmp_path: Path) -> None:
    found = distil(made, tmp_path / "run", label={"tokens": "sparse", "top": 4, "drawn": 4})
    kept = found.record.distributions
    assert kept is not None
    assert kept.estimator in ("tail", "sampled")
    assert kept.bytes_per_token < 20
    assert 0 < kept.covered <= 1
    assert set(kept.before) == set(kept.after) == {"tail", "sampled", "renormalised"}
    page = (tmp_path / "run" / "report.html").read_text()
    assert "(taken)" in page


@pytest.mark.slow
def test_rows_without_an_answer_are_not_kept(made: dict[str, Path], tmp_path: Path) -> None:
    """Where nearly all are: those of the probe that have none are left out of it."""
    rows = [json.loads(line) for line in made["data"].read_text().splitlines()]
    few = [row if 80 <= i < 140 else {**row, "target": None} for i, row in enumerate(rows)]
    (folder := tmp_path / "rows").mkdir()
    for name, part in (("train", few), ("dev", rows[:40]), ("test", rows[40:80])):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in part))
    found = distil(
        made,
        tmp_path / "run",
        data={"path": str(folder)},
        training={"steps": 2},
        label={"tokens": "sparse"},
    )
    assert found.record.distributions is not None


@pytest.mark.slow
@pytest.mark.parametrize(("divergence", "taken"), [("forward_kl", "sampled"), ("jsd", "tail")])
def test_draws_stand_for_the_rest_where_the_divergence_is_linear(
    made: dict[str, Path], tmp_path: Path, divergence: str, taken: str
) -> None:
    beta = {"beta": 0.5} if divergence == "jsd" else {}
    objective = [{"kind": "soft", "divergence": divergence, **beta}]
    found = distil(
        made,
        tmp_path / "run",
        objective=objective,
        training={"steps": 1},
        label={"tokens": "sparse", "top": 1, "drawn": 200},
    )
    assert found.record.distributions is not None
    assert found.record.distributions.estimator == taken


@pytest.mark.slow
def test_with_everything_kept_it_is_the_live_run(made: dict[str, Path], tmp_path: Path) -> None:
    live = distil(made, tmp_path / "live", objective=[{"kind": "soft"}], training={"dropout": 0.0})
    sparse = distil(
        made,
        tmp_path / "sparse",
        objective=[{"kind": "soft"}],
        training={"dropout": 0.0},
        label={"tokens": "sparse", "top": 120, "drawn": 0, "estimator": "tail"},
    )
    mine, theirs = (
        AutoModelForSeq2SeqLM.from_pretrained(tmp_path / each / "student").state_dict()
        for each in ("live", "sparse")
    )
    for name in mine:
        torch.testing.assert_close(mine[name], theirs[name], atol=2e-3, rtol=0.05)
    assert live.record.student.metrics["perplexity"] == pytest.approx(
        sparse.record.student.metrics["perplexity"], rel=0.02
    )


@pytest.mark.slow
def test_sequence_level_takes_any_tokenizer(made: dict[str, Path], tmp_path: Path) -> None:
    other = written.fresh(
        tmp_path / "other", made["data"], tokenizer="unigram", vocabulary=290, width=16
    )
    values = method("seq-kd")
    found = distil(made, tmp_path / "run", student=other, **values).record
    (learnt,) = found.decoded
    assert (learnt.stage, learnt.targets) == ("distil", "decoded")
    assert learnt.texts > 200
    with pytest.raises(UsageError, match=r"cut texts differently.*seq-kd"):
        distil(made, tmp_path / "word", student=other)
    assert not (tmp_path / "word").exists()


COMBINED = {
    "seq-inter": {"inter": "closest"},
    "word-kd+seq-kd": {"distil": "decoded"},
    "word-kd+seq-inter": {"inter": "closest"},
    "seq-kd+seq-inter": {"distil": "decoded", "inter": "closest"},
    "word-kd+seq-kd+seq-inter": {"distil": "decoded", "inter": "closest"},
}


@pytest.mark.slow
@pytest.mark.parametrize("name", COMBINED)
def test_combinations_train_their_stages(made: dict[str, Path], tmp_path: Path, name: str) -> None:
    found = distil(made, tmp_path / "run", **method(name)).record
    assert {each.stage: each.targets for each in found.decoded} == COMBINED[name]


@pytest.mark.parametrize("name", ["seq-kd", "seq-inter", "gkd"])
def test_a_method_of_texts_needs_its_task(name: str, made: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="is for models that write: set task seq2seq or causal_lm"):
        distil(made, tmp_path / "run", **method(name), task="auto")


@pytest.mark.slow
def test_the_student_writes_what_the_teacher_scores(made: dict[str, Path], tmp_path: Path) -> None:
    distil(made, tmp_path / "run", **method("gkd"))
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    losses = [row["loss"] for row in map(json.loads, lines) if "loss" in row]
    assert all(0 <= loss <= 4 * math.log(2) for loss in losses)  # the divergence's bound at 1/2


@pytest.mark.slow
@pytest.mark.parametrize("combine", ["mean", "random"])
def test_several_teachers_agree_with_themselves(
    made: dict[str, Path], tmp_path: Path, combine: str
) -> None:
    again = [{"model": str(made["teacher"])}, {"model": str(made["teacher"]), "weight": 2.0}]
    found = distil(made, tmp_path / "run", teachers=again, combine=combine).record
    assert found.teachers is not None
    (pair,) = found.teachers.pairs
    assert pair.same_choice == 1.0
    assert pair.divergence == pytest.approx(0.0, abs=1e-6)


def test_what_the_student_writes_ends_only_where_it_did(made: dict[str, Path]) -> None:
    data = section(DataConfig, {"path": str(made["data"]), "max_length": 48}, "path")
    store = made["folder"] / "cache"
    model, _, rows, *_ = reported_by_writer(
        str(made["teacher"]), "seq2seq", parse(DataConfig, data), store, Silent()
    )
    assert isinstance(rows, Written)

    def ended(max_tokens: int) -> np.ndarray:
        """Whether the last scored token of each text is the end's."""
        write = own_texts(rows, OnPolicyConfig(temperature=0.01, max_tokens=max_tokens), "float32")
        batch = write(model, rows.batch(np.arange(8)), np.random.default_rng(0))
        assert batch.gold_N is not None
        assert batch.scored_N is not None
        text_N = batch.scored_N // batch.inputs["decoder_input_ids"].shape[1]
        last_B = torch.searchsorted(text_N, torch.arange(8), right=True) - 1
        return (batch.gold_N[last_B] == rows.tokenizer.eos_token_id).numpy()

    assert ended(24).all()
    assert not ended(2).any()


def test_on_policy_needs_a_live_teacher(made: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"leave label\.tokens at live"):
        distil(made, tmp_path / "run", **method("gkd"), label={"tokens": "sparse"})


def test_a_model_that_would_not_stop_is_refused(made: dict[str, Path], tmp_path: Path) -> None:
    odd = shutil.copytree(made["small"], tmp_path / "odd")
    for name in ("config.json", "generation_config.json"):
        settings = json.loads((odd / name).read_text())
        (odd / name).write_text(json.dumps({**settings, "eos_token_id": 7}))
    says = r"ends a text with id \d+, the model with 7: it would never stop"
    with pytest.raises(UsageError, match=says):
        distil(made, tmp_path / "run", student=odd)
    with pytest.raises(UsageError, match=says):
        sh.finetune(odd, str(made["data"]), out=tmp_path / "tuned", task="seq2seq")
    with pytest.raises(UsageError, match=says):
        sh.evaluate(odd, str(made["data"]))


@pytest.mark.parametrize(
    ("label", "term", "says"),
    [
        ({"top": 0, "drawn": 0}, {"kind": "soft"}, "nothing would be kept"),
        ({"top": 0, "estimator": "tail"}, {"kind": "soft"}, "tail needs top of 1 or more"),
        ({"drawn": 0, "estimator": "sampled"}, {"kind": "soft"}, "sampled needs drawn"),
        ({"top": 0}, {"kind": "hard"}, "set label.top to 1"),
        ({"top": 0}, {"kind": "soft", "divergence": "reverse_kl"}, "set label.top to 1"),
        ({}, {"kind": "soft", "divergence": "logit_mse"}, "leave label.tokens at live"),
    ],
)
def test_a_term_needs_what_is_kept(
    made: dict[str, Path], tmp_path: Path, label: dict[str, Any], term: dict[str, Any], says: str
) -> None:
    with pytest.raises(UsageError, match=says):
        distil(made, tmp_path / "run", objective=[term], label={"tokens": "sparse", **label})


def test_inner_terms_are_refused(made: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="inner terms read encoders"):
        distil(made, tmp_path / "run", objective=[{"kind": "hidden"}, {"kind": "soft"}])


@pytest.mark.slow
def test_a_teacher_by_language_is_switched_off_when_passed(
    made: dict[str, Path], tmp_path: Path
) -> None:
    data = written.pairs(tmp_path / "both.jsonl", 200, languages=("de", "fr"))
    start = written.fresh(tmp_path / "start", data)
    taught = written.teacher(tmp_path / "good", data, start, steps=250)
    shared = {"tokenizer_from": str(start), "width": 32, "layers": 1, "heads": 2}
    sh.new("seq2seq", out=tmp_path / "bad", progress=Silent(), **shared)
    found = written.run(
        tmp_path / "run",
        taught,
        data,
        taught,
        data={"group": "language"},
        teachers=[
            {"model": str(taught), "group": "de"},
            {"model": str(tmp_path / "bad"), "group": "fr"},
        ],
        combine="route",
        passing={"margin": 5.0},
        training={"lr": 1e-6, "steps": 4, "evaluations": 2},
    ).record
    assert found.teachers is not None
    assert found.teachers.passed == {"0": ["fr"]}
    # The student is still the good one, the teacher of half of the rows the bad one.
    good, both = found.student.metrics, found.teacher
    assert both is not None
    assert both.metrics["accuracy"] < 0.8 * good["accuracy"]
    assert both.score < 0.8 * found.student.score
