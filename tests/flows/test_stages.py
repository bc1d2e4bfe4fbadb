"""A training in stages: each trains what it says, is done once, and goes on after a kill."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import BertForMaskedLM

import tiny
from stillhouse.core.config import StageConfig
from stillhouse.core.errors import UsageError
from stillhouse.core.progress import Silent
from stillhouse.core.terms import InnerTermConfig, TermConfig
from stillhouse.flows import stages as staging
from stillhouse.flows.ablation import without
from stillhouse.flows.common import set_dropout, state_of
from stillhouse.flows.distill import _deciding, distill
from stillhouse.flows.methods import METHODS, OF_TEXTS, method
from stillhouse.flows.plan import Plan
from stillhouse.flows.prepare import prepare
from stillhouse.models.forward import run
from stillhouse.runs import run_distill
from stillhouse.training.loop import FitResult
from stillhouse.training.steps import plain_step

Distil = Callable[..., Any]

INNER = {"name": "inside", "objective": [{"kind": "attention"}, {"kind": "hidden"}]}
SOFT = {"name": "answers", "objective": [{"kind": "soft"}]}
GOLD = {"name": "labels", "objective": [{"kind": "gold"}], "rows": "labelled"}
TWO = {"stages": [INNER, SOFT], "student": {"layers": 2}}


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    path = tmp_path / "corpus.txt"
    path.write_text("".join(f"{text} .\n" for text, _ in tiny.sentences(700, 5)), encoding="utf-8")
    return path


def weights(run: Path, name: str) -> dict[str, torch.Tensor]:
    return load_file(run / "checkpoints" / f"{name}.safetensors")


def test_the_stages_follow_each_other_in_one_model(distil: Distil, tmp_path: Path) -> None:
    config = distil(**TWO, keep_checkpoints=True)
    outcome = distill(config, tmp_path / "run")
    between = weights(tmp_path / "run", "student-0.stage-0")
    start = outcome.setup.make(0).state_dict()
    moved = {key for key in start if not torch.equal(start[key], between[key])}
    assert any("layer.1" in key for key in moved)
    assert not any("classifier" in key or "pooler" in key for key in moved), (
        "the inner stage has no term on the answers"
    )
    again = outcome.setup.make(0)
    again.load_state_dict(between)
    alone = distil(student={"layers": 2}, objective=[{"kind": "soft"}])
    (stage,) = Plan(prepare(alone), Silent()).stages(alone.plan)
    staging._one("x", 0, again, stage, False, tmp_path, tmp_path / "half", Silent())
    for key, tensor in outcome.student.state_dict().items():
        torch.testing.assert_close(again.state_dict()[key], tensor, msg=key)


def test_a_killed_run_goes_on_inside_its_stage(
    distil: Distil, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed after every step of both stages, one after another: bit for bit the same."""
    bridged = {
        **INNER,
        "objective": [{"kind": "attention"}, {"kind": "hidden", "projection": "always"}],
    }
    config = distil(
        stages=[bridged, SOFT], student={"layers": 2}, keep_checkpoints=True,
        training={"checkpoint_s": 1e-9},
    )  # fmt: skip
    whole = distill(config, tmp_path / "whole")

    class Killed(BaseException):
        pass

    left = [1]

    def dying(advance: Any) -> Any:
        def callback(state: Any) -> None:
            left[0] -= 1
            if left[0] < 0:
                raise Killed

        return callback

    monkeypatch.setattr(staging, "advancing", dying)
    kills = 0
    while True:
        left[0] = 2
        try:
            cut = distill(config, tmp_path / "cut")
            break
        except Killed:
            kills += 1
    assert kills >= 4
    for key, tensor in whole.student.state_dict().items():
        assert torch.equal(cut.student.state_dict()[key], tensor), key
    assert np.array_equal(whole.best.scores_NK, cut.best.scores_NK)


def test_a_finished_stage_is_not_trained_again(
    distil: Distil, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = distil(**TWO, keep_checkpoints=True)
    distill(config, tmp_path / "run")
    (tmp_path / "run" / "checkpoints" / "student-0.safetensors").unlink()
    trained: list[str] = []
    one = staging._one

    def noted(role: str, seed: int, model: Any, stage: Any, *rest: Any) -> Any:
        trained.append(stage.name)
        return one(role, seed, model, stage, *rest)

    monkeypatch.setattr(staging, "_one", noted)
    distill(config, tmp_path / "run")
    assert trained == ["answers"]


def test_the_baseline_trains_as_many_steps_on_gold_answers_alone(
    distil: Distil, tmp_path: Path
) -> None:
    config = distil(
        student={"layers": 2},
        stages=[INNER, {**SOFT, "training": {"steps": 9}}, {**GOLD, "training": {"steps": 4}}],
        evaluation={"baseline": True},
        data={"labelled_rows": 40},
    )
    outcome = distill(config, tmp_path / "run")
    (fit,) = outcome.baselines[0].fits
    assert [f.steps for f in outcome.students[0].fits] == [6, 9, 4]
    assert fit.steps == 19
    (stage,) = Plan(outcome.setup, Silent()).alone(config.plan)
    assert stage.source is None
    assert len(stage.data) == len(outcome.setup.rows.labelled)


def test_a_pretrained_baseline_reads_as_much_text(
    distil: Distil, corpus: Path, tmp_path: Path
) -> None:
    """Well-read students: pre-training is no work of the teacher's, so the baseline has it too."""
    pretrain = {
        "name": "pretrain",
        "objective": [{"kind": "gold"}],
        "corpus": {"path": str(corpus), "length": 16},
        "training": {"steps": 5},
    }
    config = distil(stages=[pretrain, SOFT, GOLD], evaluation={"baseline": True})
    outcome = distill(config, tmp_path / "run")
    assert [fit.steps for fit in outcome.baselines[0].fits] == [5, 12]
    assert [fit.steps for fit in outcome.students[0].fits] == [5, 6, 6]
    assert outcome.students[0].fits[0].score is not None
    lines = [json.loads(x) for x in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    assert not any(x["run"] == "baseline" and x.get("stage") == "pretrain" for x in lines), (
        "the same training is not done twice"
    )
    before = outcome.setup.make(0).state_dict()
    after = outcome.student.state_dict()
    assert not any("cls.predictions" in key for key in after)
    assert any(not torch.equal(before[k], after[k]) for k in before if "layer.0" in k)


def test_inner_layers_can_be_distilled_on_running_text(
    distil: Distil, corpus: Path, tmp_path: Path
) -> None:
    general = {**INNER, "corpus": {"path": str(corpus), "length": 16}, "name": "general"}
    outcome = distill(distil(stages=[general, SOFT], student={"layers": 2}), tmp_path / "run")
    assert outcome.stages[0].described == "blocks of running text"
    assert outcome.students[0].fits[0].score is None
    assert outcome.students[0].fits[1].score is not None


def term(kind: str, **settings: Any) -> Any:
    return (TermConfig if kind in ("soft", "gold") else InnerTermConfig)(kind=kind, **settings)


def test_leaving_a_term_out() -> None:
    inner = StageConfig(name="inner", objective=(term("attention"), term("hidden")))
    answers = StageConfig(name="answers", objective=(term("soft"),))
    both = [inner, answers]
    kinds = lambda stages: [[t.kind for t in s.objective] for s in stages or []]  # noqa: E731
    assert kinds(without(both, "inner", "hidden")) == [["attention"], ["soft"]]
    changed = without(both, "answers", "soft")
    assert kinds(changed) == [["attention", "hidden"], ["gold"]]
    assert changed is not None
    assert changed[1].rows == "labelled", "unlabelled rows and variants would dilute gold answers"
    one = [StageConfig(name="inner", objective=(term("hint"),)), answers]
    assert kinds(without(one, "inner", "hint")) == [["soft"]]
    twice = [StageConfig(name="s", objective=(term("soft"), term("soft"), term("gold")))]
    assert kinds(without(twice, "s", "soft-2")) == [["soft", "gold"]]
    assert without([StageConfig(name="s", objective=(term("hint"),))], "s", "hint") is None


@pytest.mark.slow
def test_ablations_stand_in_the_record_and_start_from_shared_stages(
    distil: Distil, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    config = distil(
        **TWO,
        evaluation={"ablation": True, "baseline": True, "seeds": [0, 1]},
        data={"held_out": 0.5},  # enough tokens to compare states
    )
    record = run_distill(config, out, progress=Silent()).record
    assert [(a.stage, a.without) for a in record.ablations] == [
        ("inside", "attention"),
        ("inside", "hidden"),
        ("answers", "soft"),
    ]
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    stages = {(line["run"], line.get("stage")) for line in lines}
    assert ("student-without-answers-soft", "inside") not in stages, "it is the whole run's"
    assert ("student-without-inside-hidden", "inside") in stages
    assert [stage.name for stage in record.stages] == ["inside", "answers"]
    assert record.stages[0].score is None
    assert record.stages[0].metric is None
    assert record.stages[1].score is not None
    shares = record.stages[0].gradient_share
    assert set(shares) == {"attention", "hidden"}
    assert sum(shares.values()) == pytest.approx(1.0)
    assert record.similarity is not None
    student = np.array(record.similarity.student)
    assert student.shape == (3, 5)
    assert (student >= 0).all()
    assert (student <= 1 + 1e-6).all()
    assert student[0, 0] > 0.5, "the embeddings started as the teacher's"
    assert record.diagnosis
    assert (out / "report.html").exists()


@pytest.mark.parametrize("name", [name for name in METHODS if name not in OF_TEXTS])
def test_a_methods_baseline_trains_and_selects_as_its_last_stage_on_answers(
    name: str, distil: Distil, corpus: Path
) -> None:
    values = method(name, str(corpus) if name == "pretrained-distillation" else None)
    for stage in values.get("stages", []):
        if "augment" in stage:
            stage["augment"] = {"copies": 1}
        if "corpus" in stage:
            stage["corpus"]["length"] = 16
    config = distil(**values, student={"layers": 2}, training={"steps": None, "epochs": 1.0})
    plan = Plan(prepare(config), Silent())
    stages, alone = plan.stages(plan.setup.config.plan), plan.alone(plan.setup.config.plan)
    last = [stage for stage in stages if stage.objective.scores_student][-1]
    assert alone[-1].training.lr == last.training.lr == config.training.lr
    assert alone[-1].training.select == last.training.select == "best"
    assert alone[-1].evaluate is not None
    assert sum(s.steps(0) for s in alone) == sum(s.steps(0) for s in stages)


def test_a_baseline_takes_the_settings_of_the_longest_stage_on_answers(distil: Distil) -> None:
    config = distil(
        student={"layers": 2},
        stages=[
            {**INNER, "training": {"steps": 40, "lr": 1e-5, "select": "last"}},
            {**SOFT, "training": {"steps": 9, "lr": 3e-3}},
            {**GOLD, "training": {"steps": 8, "lr": 1e-5, "select": "last", "patience": 2}},
        ],
    )
    plan = Plan(prepare(config), Silent())
    (alone,) = plan.alone(plan.setup.config.plan)
    assert alone.steps(0) == 57
    assert (alone.training.lr, alone.training.select, alone.training.patience) == (3e-3, "last", 2)


@pytest.mark.parametrize("settings", [{"dropout": 0.0}, {"embeddings": "frozen"}], ids=str)
def test_a_stages_settings_end_with_it(
    distil: Distil, tmp_path: Path, settings: dict[str, Any]
) -> None:
    """So that a stage trains alike after its forerunner and from its file."""
    stages = [{**INNER, "training": settings}, SOFT]
    config = distil(stages=stages, student={"layers": 2}, keep_checkpoints=True)
    whole = distill(config, tmp_path / "run")
    (tmp_path / "run" / "checkpoints" / "student-0.safetensors").unlink()
    again = distill(config, tmp_path / "run")
    for key, tensor in whole.student.state_dict().items():
        assert torch.equal(again.student.state_dict()[key], tensor), key
    before = weights(tmp_path / "run", "student-0.stage-0")
    after = whole.student.state_dict()
    moved = "bert.embeddings.word_embeddings.weight"
    assert not torch.equal(before[moved], after[moved])


def test_no_text_of_a_reported_or_held_out_row_is_read_in_a_stage_on_text(
    distil: Distil, reviews: Path, tmp_path: Path
) -> None:
    """The rows themselves as the corpus: only the training ones stay."""
    with reviews.open(encoding="utf-8") as file:
        texts = [row["text"] for row in csv.DictReader(file)]
    corpus = tmp_path / "same.txt"
    corpus.write_text("".join(f"{text.upper()}  \n" for text in texts), encoding="utf-8")
    stage = {
        "name": "read",
        "objective": [{"kind": "gold"}],
        "corpus": {"path": str(corpus), "length": 32, "packed": False, "held_out": 0.3},
    }
    config = distil(stages=[stage, SOFT], data={"held_out": 0.3})
    plan = Plan(prepare(config), Silent())
    (first, _) = plan.stages(plan.setup.config.plan)
    splits = plan.setup.rows
    tokenizer = plan.setup.tokenizer
    read = set()
    for row in range(len(first.data)):
        ids = first.data._blocks.inputs(np.array([row]))["input_ids"][0]  # pyright: ignore
        read.add(tokenizer.decode(ids, skip_special_tokens=True))
    own = [tokenizer.decode(tokenizer(e.text)["input_ids"], skip_special_tokens=True)
           for e in (*splits.reported, *splits.held_out)]  # fmt: skip
    assert len(read) > 5
    assert not read & set(own)


def test_the_default_of_a_task_is_what_is_ablated(
    folders: Callable[..., Path], corpus: Path, cache: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "masked"
    BertForMaskedLM(tiny.model(layers=2).config).save_pretrained(folder)
    tiny.tokenizer().save_pretrained(folder)
    config = tiny.config(
        folder, corpus, cache, task="masked_lm", evaluation={"ablation": True},
        data={"max_length": 16}, training={"steps": 2},
    )  # fmt: skip
    outcome = distill(config, tmp_path / "run")
    assert [(a.term, a.gold_instead) for a in outcome.ablations] == [
        ("soft", False),
        ("cosine", False),
    ]


def test_two_runs_of_the_same_settings_are_the_same(distil: Distil, tmp_path: Path) -> None:
    first, second = (distill(distil(**TWO), tmp_path / name) for name in ("a", "b"))
    assert np.array_equal(first.best.scores_NK, second.best.scores_NK)


@pytest.mark.usefixtures("in_float32")  # bf16 states are exact where all is in bf16
def test_cached_states_train_as_live_ones_do(distil: Distil, tmp_path: Path) -> None:
    hidden = {
        "objective": [{"kind": "hidden"}, {"kind": "embedding"}, {"kind": "soft"}],
        "student": {"layers": 2},
    }
    live = distill(distil(**hidden), tmp_path / "live")
    kept = distill(distil(**hidden, label={"states": "bf16"}), tmp_path / "kept")
    np.testing.assert_allclose(live.best.scores_NK, kept.best.scores_NK, atol=0.03)
    assert not np.array_equal(live.best.scores_NK, kept.best.scores_NK)


def test_a_longer_batch_or_another_cut_changes_no_inner_gradient(
    distil: Distil, tmp_path: Path
) -> None:
    """Micro-batches and padding: inner terms are means over texts, whatever they are cut with."""
    config = distil(
        student={"layers": 2},
        objective=[
            {"kind": kind}
            for kind in ("attention", "hidden", "embedding", "attention_kl", "relations", "cosine")
        ],
    )
    plan = Plan(prepare(config), Silent())
    (stage,) = plan.stages(config.plan)
    rows = np.argsort(stage.data.lengths)[[0, 1, 2, 3, -4, -3, -2, -1]]

    def gradient(parts: int) -> torch.Tensor:
        model = plan.setup.make(0).eval()
        stage.objective.reset(0)
        settings: Any = {"precision": "float32", "reads": stage.objective.student_taps}
        plain_step(
            model,
            [stage.data.batch(part) for part in np.array_split(rows, parts)],
            stage.objective,
            stage.source,
            lambda m, batch, _: run(m, batch, **settings),
            progress=0.0,
            rngs=[np.random.default_rng(0)] * parts,
            totals={"examples": len(rows), "scored": len(rows)},
            norms=False,
        )
        return torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])

    whole = gradient(1)
    assert whole.norm() > 0
    for parts in (2, 8):
        torch.testing.assert_close(gradient(parts), whole, rtol=1e-4, atol=1e-6)


def test_nothing_is_claimed_before_a_stages_own_errors(
    distil: Distil, tmp_path: Path, corpus: Path
) -> None:
    """Correcting what the message names must do, with the same --out."""
    words = {"name": "words", "objective": [{"kind": "hidden"}], "corpus": {"path": "typo.txt"}}
    with pytest.raises(UsageError, match=r"typo\.txt"):
        distill(distil(stages=[words, SOFT]), tmp_path / "run")
    assert not (tmp_path / "run").exists()
    right = {**words, "corpus": {"path": str(corpus), "length": 16}}
    assert distill(distil(stages=[right, SOFT]), tmp_path / "run").students


def test_nothing_is_claimed_before_the_teacher_can_be_asked(distil: Distil, tmp_path: Path) -> None:
    """What only shows when a stage is made ready, after models and rows were checked."""
    kept = {**TWO, "label": {"states": "bf16"}}
    with pytest.raises(UsageError, match="leave it at live"):
        distill(distil(**kept), tmp_path / "run")
    assert not (tmp_path / "run").exists()
    assert distill(distil(**TWO), tmp_path / "run").students


def test_a_changed_corpus_is_noticed(distil: Distil, tmp_path: Path, corpus: Path) -> None:
    words = {
        "name": "words",
        "objective": [{"kind": "hidden"}],
        "corpus": {"path": str(corpus), "length": 16},
    }
    config = distil(stages=[words, SOFT])
    distill(config, tmp_path / "run")
    with corpus.open("a", encoding="utf-8") as file:
        file.write("a new line of words was very good .\n" * 3)
    with pytest.raises(UsageError, match="the corpus of stage words changed"):
        distill(config, tmp_path / "run")


def test_blocks_are_as_long_as_asked_whatever_rows_are(distil: Distil, corpus: Path) -> None:
    words = {
        "name": "words",
        "objective": [{"kind": "hidden"}],
        "corpus": {"path": str(corpus), "length": 48},
    }
    config = distil(stages=[words, SOFT])
    assert config.data.max_length < 48
    (first, _) = Plan(prepare(config), Silent()).stages(config.plan)
    assert int(first.data.lengths.max()) == 48


def test_gold_answers_on_unlabelled_rows_are_refused(distil: Distil, tmp_path: Path) -> None:
    stage = {"name": "none", "objective": [{"kind": "gold"}], "rows": "unlabelled"}
    with pytest.raises(UsageError, match=r"stage none: .*gold"):
        distill(distil(stages=[SOFT, stage]), tmp_path / "run")


def test_a_teacher_that_any_stage_asks_needs_a_head(
    distil: Distil, tmp_path: Path, corpus: Path
) -> None:
    headless = tmp_path / "headless"
    model: Any = tiny.model(masked=True)
    model.bert.save_pretrained(headless)
    tiny.tokenizer().save_pretrained(headless)
    text = {"corpus": {"path": str(corpus), "length": 16}, "teacher": str(headless)}
    inner = {"name": "inner", "objective": [{"kind": "hidden"}], **text}
    asks = {"name": "asks", "objective": [{"kind": "soft"}], **text}
    assert prepare(distil(stages=[inner, SOFT]))
    with pytest.raises(UsageError, match="head"):
        prepare(distil(stages=[inner, asks, SOFT]))


def test_the_seed_is_chosen_by_the_last_stage_on_the_runs_own_task() -> None:
    fits = [
        [FitResult(1, 1, score, 1, 1.0), FitResult(1, 1, other, 1, 1.0)]
        for score, other in ((0.9, 0.1), (0.8, 0.7))
    ]
    runs = [
        staging.Trained("student", seed, each, np.zeros((1, 1)), Path("x"))
        for seed, each in enumerate(fits)
    ]
    assert staging.best_of(runs, 0).seed == 0
    assert staging.best_of(runs).seed == 1


def test_a_late_stage_on_text_does_not_choose(distil: Distil, corpus: Path) -> None:
    words = {
        "name": "words",
        "objective": [{"kind": "gold"}],
        "corpus": {"path": str(corpus), "length": 16},
    }
    config = distil(stages=[SOFT, words])
    assert _deciding(Plan(prepare(config), Silent()).stages(config.plan)) == 0


@pytest.mark.parametrize("kind", tiny.KINDS)
def test_every_dropout_is_set_and_set_back(kind: str) -> None:
    """A model in training mode gives one answer where it has none, and others where it has."""
    model = tiny.model(kind, dropout=0.0)
    inputs = dict(tiny.tokenizer(kind)(["the good film was fine"], return_tensors="pt"))
    made = state_of(model)
    model.train()

    def spread() -> float:
        with torch.no_grad():
            one, two = (model(**inputs).logits for _ in range(2))
        return float((one - two).abs().max())

    assert spread() == 0
    set_dropout(model, 0.5)
    assert spread() > 0
    shares = {m.p for m in model.modules() if isinstance(m, torch.nn.Dropout)}
    assert shares == {0.5}
    if kind == "modernbert":
        assert {layer.attn.attention_dropout for layer in model.model.layers} == {0.5}
    made.restore()
    assert spread() == 0
