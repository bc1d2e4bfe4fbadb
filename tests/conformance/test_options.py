"""Row: an advertised option raises KeyError. Every setting of a distillation, and every word that a
setting may be, is exercised by a run; the last test notices a new one without a run.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import numpy as np
import pytest
from pydantic import BaseModel
from writing_runs import RUNS as WRITING_RUNS

import tiny
from stillhouse.core.config import DistillConfig
from stillhouse.flows.distill import distill
from stillhouse.numerics.divergences import DIVERGENCES

Distil = Callable[..., Any]


def inner(kind: str, **settings: Any) -> dict[str, Any]:
    return {"objective": [{"kind": kind, **settings}, {"kind": "soft"}, GOLD]}


MOVING = {"start": 4.0, "end": 1.0}
TWO = {"student": {"layers": 2}}
GOLD = {"kind": "gold", "weight": 0.2}


def objective(**soft: Any) -> dict[str, Any]:
    return {"objective": [{"kind": "soft", **soft}, GOLD]}


RUNS: dict[str, dict[str, Any]] = {
    **{name: objective(divergence=name, **tiny.DIVERGENCES[name]) for name in tiny.DIVERGENCES},
    "linear": objective(temperature={"shape": "linear", **MOVING}),
    "cosine": objective(temperature={"shape": "cosine", **MOVING}),
    "constant": objective(weight={"shape": "constant", "start": 0.5}),
    "standardised": objective(standardise=True, temperature=2.0, squared_temperature=False),
    "hard": {
        "objective": [{"kind": "hard"}, {"kind": "soft"}, {"kind": "soft", "temperature": 3.0}]
    },
    "alternate": {"student": {"layers": 2, "keep": "alternate"}},
    "first": {"student": {"layers": 2, "keep": "first"}},
    "last": {"student": {"layers": 2, "keep": "last"}},
    "listed": {"student": {"layers": [1, 4]}},
    "half": {"student": {"layers": None}},
    "narrow": {"student": {"layers": 2, "width": 16, "heads": 2, "ffn": 24}},
    "source": {"student": {"layers": 1, "source": "bert"}},
    "model": {"student": {"layers": None, "model": "bert"}},
    "distilbert": {"student": {"layers": None, "model": "distilbert"}},
    "rows": {"training": {"embeddings": "rows"}},
    "dense": {"training": {"embeddings": "dense"}},
    "frozen": {"training": {"embeddings": "frozen"}},
    "best": {"training": {"select": "best", "patience": 1, "evaluations": 6}},
    "keep-last": {"training": {"select": "last", "checkpoint_s": 1e-9, "log_every": 1}},
    "decay-linear": {"training": {"decay": "linear", "warmup": 0.5, "weight_decay": 0.0}},
    "decay-cosine": {"training": {"decay": "cosine", "warmup": 0.0, "clip": None}},
    "decay-constant": {"training": {"decay": "constant", "clip": 0.1, "betas": [0.8, 0.9]}},
    "bf16": {"training": {"precision": "bf16"}, "label": {"precision": "bf16"}},
    "float32": {"training": {"precision": "float32"}, "label": {"precision": "float32"}},
    "faster": {"training": {"precision": "auto"}, "label": {"precision": "auto"}},
    "epochs": {"training": {"steps": None, "epochs": 1.5, "accumulation": 2, "max_tokens": 128}},
    "dropout": {"training": {"dropout": 0.0}},
    "labelling": {"label": {"batch_size": 5, "max_tokens": 64, "check_rows": 1}},
    "few-labels": {
        "data": {"labelled_rows": 30, "dev_share": 0.3, "held_out": 0.2, "held_out_rows": 3}
    },
    "nothing-held-out": {"data": {"held_out": 0.0}, "training": {"select": "best"}},
    "short": {"data": {"max_length": 6, "text": "text", "label": "label"}},
    "renamed": {"data": {"label_map": {"positive": "positive"}}},
    "classification": {"task": "classification", "evaluation": {"seeds": [1, 2], "baseline": True}},
    "auto": {"task": "auto", "keep_checkpoints": True},
    "accuracy": {"evaluation": {"metric": "accuracy"}},
    "macro_f1": {"evaluation": {"metric": "macro_f1", "margin": 2.0}},
    "matthews": {"evaluation": {"metric": "matthews"}},
    "soft-reference": objective(variant="reference"),
    "soft-paper": objective(variant="paper"),
    "hint": inner("hint", variant="reference", layers=[[1, 2]]),
    "hint-middle": inner("hint", variant="paper", weight={"shape": "linear", **MOVING}),
    "patience-skip": {**inner("patience", layers="skip", normalise=False), **TWO},
    "patience-last": {
        **inner("patience", layers="last", weight={"shape": "cosine", **MOVING}),
        **TWO,
    },
    "embedding": inner("embedding", projection="always"),
    "hidden-uniform": inner("hidden", layers="uniform", projection="auto"),
    "hidden-top": inner("hidden", layers="top", projection="never"),
    "hidden-reference": inner("hidden", variant="reference"),
    "attention": inner("attention", layers="bottom"),
    "attention_kl": inner("attention_kl", layers="final", weight={"shape": "constant", "start": 2}),
    "relations": inner("relations", of=["queries", "keys", "values"], heads=4),
    "cosine-term": inner("cosine"),
    "gram": inner("gram"),
    "states-bf16": {**inner("hidden"), "label": {"states": "bf16"}},
    "states-int8": {**inner("patience"), **TWO, "label": {"states": "int8"}},
    "states-live": {**inner("hidden"), "label": {"states": "live"}},
    "family": {"student": {"layers": 2, "family": "distilbert"}},
    "same": {"student": {"layers": 2, "family": "same", "fresh": True}},
    "ablation": {**inner("attention"), "evaluation": {"ablation": True}},
    "stages": {
        "data": {"labelled_rows": 40},
        "stages": [
            {"name": "one", "objective": [{"kind": "attention"}, {"kind": "hidden"}],
             "augment": {"copies": 1, "share": 0.5, "candidates": 3, "seed": 1}},
            {"name": "two", "objective": [{"kind": "soft"}], "rows": "unlabelled"},
            {"name": "three", "objective": [{"kind": "hard"}], "rows": "all"},
            {"name": "four", "objective": [GOLD], "rows": "labelled",
             "training": {"steps": 2}},
        ],
    },
}  # fmt: skip
ELSEWHERE = {
    "data.unlabelled",
    "data.dev",
    "data.pair",
    "data.no_label",  # tests/data/test_labels.py
    "task=regression",
    "task=span",  # tests/tasks/test_span.py, as are its metrics
    "evaluation.metric=f1",
    "evaluation.metric=exact_match",
    "evaluation.metric=pearson",
    "evaluation.metric=spearman",  # tests/flows/test_distill.py
    "export.onnx",
    "export.int8",
    "evaluation.resamples",
    "evaluation.efficiency",
    "trust_remote_code",
    "task=masked_lm",  # tests/flows/test_masked_lm.py, as are the settings of a corpus
    "masking.share",
    "masking.mask",
    "masking.random",
    "masking.frequency_power",
    "data.packed",
    "stages.teacher",
    "stages.masking.share",
    "stages.masking.mask",
    "stages.masking.random",
    "stages.masking.frequency_power",
    "stages.corpus.path",
    "stages.corpus.length",
    "stages.corpus.packed",
    "stages.corpus.held_out",
    "stages.corpus.reported",
    "stages.corpus.rows",
    "stages.augment.model",  # tests/flows/test_augmented.py
    "stages.augment.vectors",
    "stages.augment.precision",  # tests/models/test_vocabulary.py, tests/core/test_machine.py
    "stages.augment.precision=auto",
    "stages.augment.precision=bf16",
    "stages.augment.precision=float32",
    "flow",
    "flow=distill",
}


@pytest.mark.slow
@pytest.mark.parametrize("name", RUNS)
def test_every_option_trains_a_student(
    name: str, distil: Distil, folders: Callable[..., Path], tmp_path: Path
) -> None:
    changes = dict(RUNS[name])
    if "student" in changes:
        shape = dict(changes["student"])
        for key in ("source", "model"):
            if key in shape:
                shape[key] = str(folders(shape[key], layers=2))
        changes["student"] = shape
    outcome = distill(distil(**changes), tmp_path / "run")
    for trained in [*outcome.students, *outcome.baselines]:
        assert np.isfinite(trained.scores_NK).all()
        assert trained.fit.steps >= 1
    before = outcome.setup.make(outcome.best.seed).state_dict()
    after = outcome.student.state_dict()
    moved = [key for key in before if not bool((before[key] == after[key]).all())]
    assert any("layer" in key for key in moved)
    frozen = changes.get("training", {}).get("embeddings") == "frozen"
    assert any("word_embeddings" in key for key in moved) != frozen


def settings(kind: type[BaseModel], prefix: str = "") -> Iterator[str]:
    """Every setting of a config, and every word that it may be."""
    for name, field in kind.model_fields.items():
        sections = list(parts(field.annotation, BaseModel))
        for section in sections:
            yield from settings(section, f"{prefix}{name}.")
        if not sections:
            yield prefix + name
        for words in literals(field.annotation):
            yield from (f"{prefix}{name}={word}" for word in words)


def parts(annotation: Any, kind: type) -> Iterator[Any]:
    if isinstance(annotation, type) and not get_origin(annotation) and issubclass(annotation, kind):
        yield annotation
    for inner in get_args(annotation):
        yield from parts(inner, kind)


def literals(annotation: Any) -> Iterator[tuple[Any, ...]]:
    if get_origin(annotation) is Literal:
        yield get_args(annotation)
    else:
        for inner in get_args(annotation):
            yield from literals(inner)


def given(values: Any, prefix: str = "") -> Iterator[str]:
    """The settings in `values`, by the same names."""
    for name, value in values.items():
        for inner in value if isinstance(value, list | tuple) else [value]:
            if isinstance(inner, dict) and name != "label_map":
                yield from given(inner, f"{prefix}{name}.")
            elif isinstance(inner, str):
                yield f"{prefix}{name}={inner}"
        yield prefix + name
        yield f"{prefix}{name}={value}"


def inherited(name: str) -> bool:
    """Whether a stage's setting is one that a run of one stage has too."""
    return name.startswith(("stages.training.", "stages.objective."))


def test_no_option_lacks_a_run(tmp_path: Path) -> None:
    base = tiny.settings(tmp_path, tmp_path, tmp_path)
    runs = [base, *RUNS.values(), *WRITING_RUNS.values()]
    exercised = {name for run in runs for name in given(run)} | ELSEWHERE
    wanted = {name for name in settings(DistillConfig) if not inherited(name)}
    assert (
        wanted
        - exercised
        - {
            "objective.weight.end",
            "objective.weight.shape=linear",
            "objective.weight.shape=cosine",
            "objective.temperature.shape=constant",
        }
        == set()
    )
    used = {term.get("divergence") for run in RUNS.values() for term in run.get("objective", [])}
    assert set(DIVERGENCES) <= used
