"""Masked language models: fine-tuned, distilled, and what their runs leave."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForMaskedLM, AutoTokenizer, BertForMaskedLM

import tiny
from stillhouse.core.config import DISTILBERT, DistillConfig, FinetuneConfig
from stillhouse.core.errors import UsageError
from stillhouse.core.progress import Silent
from stillhouse.core.settings import parse
from stillhouse.flows.distill import distill, label_only
from stillhouse.flows.prepare import prepare
from stillhouse.runs import run_distill, run_finetune

TRAINING = {"steps": 8, "batch_size": 8, "lr": 2e-3, "evaluations": 2, "log_every": 4,
            "precision": "float32"}  # fmt: skip


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("text") / "corpus.txt"
    path.write_text("".join(f"{text} .\n" for text, _ in tiny.sentences(800, 5)), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("masked")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        BertForMaskedLM(tiny.model(layers=4).config).save_pretrained(folder)
    tiny.tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture
def settings(teacher: Path, corpus: Path, cache: Path) -> Callable[..., DistillConfig]:
    def make(**changes: Any) -> DistillConfig:
        values = tiny.settings(teacher, corpus, cache, task="masked_lm", **changes)
        values["training"] = {**TRAINING, **changes.get("training", {})}
        values["data"]["max_length"] = 16
        return parse(DistillConfig, values)

    return make


def test_the_default_objective_is_distilberts(settings: Callable[..., DistillConfig]) -> None:
    setup = prepare(settings(student={"layers": 2}))
    terms = setup.objectives["distil"].terms
    assert [(t.name, t.weight.start) for t in terms] == [
        ("soft", 5.0),
        ("gold", 2.0),
        ("cosine", 1.0),
    ]
    assert [t.unit for t in terms] == ["scored", "scored", "examples"]
    assert DISTILBERT[0].temperature.start == 2.0  # pyright: ignore
    assert setup.task.width == setup.teacher.config.vocab_size


def test_a_run_leaves_a_masked_language_model(
    settings: Callable[..., DistillConfig], tmp_path: Path
) -> None:
    out = tmp_path / "run"
    config = settings(
        student={"layers": 2, "family": "distilbert"},
        evaluation={"baseline": True, "seeds": [0, 1]},
    )
    run = run_distill(config, out, progress=Silent())
    record = run.record
    assert record.task == "masked_lm"
    assert record.metric == "accuracy"
    assert set(record.student.metrics) == {"accuracy", "perplexity"}
    assert record.student.metrics["perplexity"] > 1
    assert record.exports == []
    assert record.disagreements == []
    assert record.data.labels == []
    assert record.stages[0].terms == ["soft", "gold", "cosine"]
    student = AutoModelForMaskedLM.from_pretrained(out / "student")
    assert student.config.model_type == "distilbert"
    tokenizer = AutoTokenizer.from_pretrained(out / "student")
    batch = tokenizer("the film was good", return_tensors="pt")
    assert "token_type_ids" not in batch
    assert student(**batch).logits.shape[-1] == student.config.vocab_size
    assert (out / "report.html").exists()
    again = run_distill(config, out, progress=Silent())
    assert again.record == record


def test_the_recorded_perplexity_is_the_saved_models_own(
    settings: Callable[..., DistillConfig], tmp_path: Path
) -> None:
    """Over again from the folder: transformers' own forward, all logits, the same fixed masks."""
    out = tmp_path / "run"
    config = settings(student={"layers": 2})
    record = run_distill(config, out, progress=Silent()).record
    setup = prepare(config)
    from stillhouse.flows.plan import Plan

    reported = Plan(setup, Silent()).reported
    model = AutoModelForMaskedLM.from_pretrained(out / "student").eval()
    right, logp, count = 0, 0.0, 0
    with torch.no_grad():
        for row in range(len(reported)):
            batch = reported.batch(np.array([row]))
            logits_TV = model(**batch.inputs).logits[0]
            assert batch.scored_N is not None
            assert batch.gold_N is not None
            own = logits_TV[batch.scored_N].log_softmax(-1)
            right += int((own.argmax(-1) == batch.gold_N).sum())
            logp += float(own[torch.arange(len(own)), batch.gold_N].sum())
            count += len(own)
    assert record.student.metrics["accuracy"] == pytest.approx(right / count)
    assert record.student.metrics["perplexity"] == pytest.approx(np.exp(-logp / count), rel=1e-4)


def test_only_masked_tokens_reach_the_vocabulary_head(
    settings: Callable[..., DistillConfig], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from stillhouse.models import forward, masked

    seen: list[tuple[int, int]] = []

    def counted(model: Any, hidden_NH: torch.Tensor) -> torch.Tensor:
        seen.append((len(hidden_NH), 0))
        return masked.vocabulary_scores(model, hidden_NH)

    monkeypatch.setattr(forward, "vocabulary_scores", counted)
    outcome = distill(settings(student={"layers": 2}), tmp_path / "run")
    tokens = 8 * 16
    assert outcome.students[0].fit.steps == 8
    assert max(rows for rows, _ in seen[:8]) <= round(0.15 * tokens) + 1


def test_micro_batches_of_masked_tokens_are_one_mean(
    settings: Callable[..., DistillConfig], tmp_path: Path
) -> None:
    """Terms over tokens divide by all masked tokens of the step, terms over texts by all texts."""
    from stillhouse.flows.plan import Plan
    from stillhouse.models.forward import run
    from stillhouse.training.steps import plain_step

    config = settings(student={"layers": 2})
    plan = Plan(prepare(config), Silent())
    (stage,) = plan.stages(config.plan)
    cut = [stage.data.batch(np.array(rows)) for rows in ([0, 1, 2], [3], [4, 5])]
    reads: Any = {"precision": "float32", "reads": stage.objective.student_taps}

    def gradient(batches: list[Any]) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        model = plan.setup.make(0).eval()
        found = plain_step(
            model,
            batches,
            stage.objective,
            stage.source,
            lambda m, batch, _: run(m, batch, **reads),
            progress=0.0,
            rngs=[np.random.default_rng(0)] * len(batches),
            totals={"examples": 6, "scored": sum(len(b.gold_N) for b in batches)},
            norms=False,
        )
        grads = [p.grad.flatten() for p in model.parameters() if p.grad is not None]
        return torch.cat(grads), found.values

    batch = stage.data.batch(np.arange(6))
    (whole, values), (parts, again) = gradient([batch]), gradient(cut)
    torch.testing.assert_close(parts, whole, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(again, values)
    assert batch.scored_N is not None
    with torch.no_grad():
        logits = plan.setup.make(0).eval()(**batch.inputs).logits.flatten(0, 1)[batch.scored_N]
    by_hand = torch.nn.functional.cross_entropy(logits, batch.gold_N)
    torch.testing.assert_close(values["gold"], by_hand)


def test_finetune_makes_a_masked_teacher_that_distils(
    folders: Callable[..., Path], corpus: Path, cache: Path, tmp_path: Path
) -> None:
    values = {
        "model": str(folders("bert", layers=4)),
        "data": {"path": str(corpus), "max_length": 16},
        "task": "masked_lm",
        "training": {**TRAINING, "steps": 60, "lr": 5e-3},
        "masking": {"frequency_power": -0.7},
        "cache": str(cache),
    }
    run = run_finetune(parse(FinetuneConfig, values), tmp_path / "teacher", progress=Silent())
    assert run.record.student.metrics["perplexity"] < len(tiny.WORDS) + 5, "better than guessing"
    config = tiny.config(tmp_path / "teacher", corpus, cache, task="masked_lm", training=TRAINING)
    outcome = distill(config, tmp_path / "run")
    assert np.isfinite(outcome.best.scores_NK).all()
    assert not any("lines to report on" in note for note in outcome.notes)
    other = tmp_path / "other"
    other.mkdir()
    for name, source in (
        ("train", tiny.sentences(300, 77)),
        ("test", tiny.sentences(800, 5)[:200]),
    ):
        text = "".join(f"{text} .\n" for text, _ in source)
        (other / f"{name}.txt").write_text(text.upper(), encoding="utf-8")
    config = tiny.config(tmp_path / "teacher", other, cache, task="masked_lm", training=TRAINING)
    notes = distill(config, tmp_path / "seen").notes
    assert any("the teacher was trained on 1" in n and "the 200 lines" in n for n in notes), notes
    assert any("chose its checkpoint on" in n and "the 200 lines" in n for n in notes)


def test_a_stage_with_a_masked_teacher(
    teacher: Path, folders: Callable[..., Path], reviews: Path, corpus: Path, cache: Path,
    tmp_path: Path,
) -> None:  # fmt: skip
    stage = {
        "name": "read",
        "objective": [{"kind": "soft"}, {"kind": "gold"}, {"kind": "cosine"}],
        "corpus": {"path": str(corpus), "length": 16, "packed": False},
        "teacher": str(teacher),
        "masking": {"share": 0.3, "mask": 1.0, "random": 0.0},
    }
    config = tiny.config(
        folders("bert", layers=4), reviews, cache,
        stages=[stage, {"name": "answers", "objective": [{"kind": "soft"}]}],
    )  # fmt: skip
    outcome = distill(config, tmp_path / "run")
    assert outcome.stages[0].metric == "masked accuracy"
    assert outcome.students[0].fits[0].score is not None


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"evaluation": {"metric": "macro_f1"}}, "masked_lm has no metric macro_f1"),
        ({"student": {"layers": 2, "keep": "first"}, "data": {"path": "no.txt"}}, "no.txt"),
    ],
)
def test_what_cannot_work_is_one_line(
    settings: Callable[..., DistillConfig], changes: dict[str, Any], says: str, tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match=says) as caught:
        distill(settings(**changes), tmp_path / "run")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "run").exists()


def test_a_model_without_a_masked_head_is_no_teacher(
    folders: Callable[..., Path], corpus: Path, cache: Path, tmp_path: Path
) -> None:
    config = tiny.config(folders("bert", layers=4), corpus, cache, task="masked_lm")
    with pytest.raises(UsageError, match="fine-tune it with --task masked_lm first"):
        distill(config, tmp_path / "run")


def test_there_is_nothing_to_label(settings: Callable[..., DistillConfig]) -> None:
    with pytest.raises(UsageError, match="asked anew for every mask"):
        label_only(settings())


def test_the_metrics_log_names_terms_and_scores(
    settings: Callable[..., DistillConfig], tmp_path: Path
) -> None:
    distill(settings(student={"layers": 2}), tmp_path / "run")
    lines = [json.loads(x) for x in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    assert set(lines[0]["terms"]) == {"soft", "gold", "cosine"}
    assert all(0 <= x["score"] <= 1 for x in lines if x.get("event") == "evaluate")
