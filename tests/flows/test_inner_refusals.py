"""Inner terms that two models can't have: one line each, before anything is trained."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from transformers import FNetConfig, FNetForSequenceClassification

import tiny
from families import zoo
from stillhouse.core.errors import UsageError
from stillhouse.flows.distill import distill
from stillhouse.flows.prepare import prepare
from stillhouse.models.load import head_settings

Distil = Callable[..., Any]
SOFT = {"kind": "soft"}
NARROW = {"layers": 2, "width": 16, "heads": 1}


@pytest.mark.parametrize(
    ("term", "student", "says"),
    [
        ({"kind": "hidden", "layers": [[1, 9]]}, {}, "teacher layer 9.*1 to 4"),
        ({"kind": "hidden", "layers": [[3, 4]]}, {}, "student layer 3.*1 to 2"),
        ({"kind": "attention", "layers": [[0, 0]]}, {}, "embeddings .layer 0. have no attention"),
        ({"kind": "patience"}, {"layers": 1}, "use final"),
        ({"kind": "hidden", "layers": []}, {}, "empty"),
        ({"kind": "hidden", "projection": "never"}, NARROW, "16 wide and the teacher 32"),
        ({"kind": "patience", "projection": "never"}, NARROW, "set its projection to auto"),
        ({"kind": "attention"}, NARROW, "1 attention heads and the teacher 2"),
        ({"kind": "attention_kl"}, NARROW, r"a relations term .* takes any"),
        ({"kind": "relations", "heads": 5}, {}, "5 relation heads don't divide"),
        ({"kind": "relations", "heads": 32}, NARROW, "set its heads"),
        ({"kind": "hidden", "heads": 2}, {}, "takes no heads"),
        ({"kind": "attention", "projection": "auto"}, {}, "needs no projection"),
        ({"kind": "cosine", "normalise": True}, {}, "takes no normalise"),
        ({"kind": "gram", "variant": "reference"}, {}, "no reference variant"),
        ({"kind": "embedding", "layers": "uniform"}, {}, "takes no layers"),
    ],
    ids=str,
)
def test_one_line_says_what_to_do(
    term: dict[str, Any], student: dict[str, Any], says: str, distil: Distil, tmp_path: Path
) -> None:
    config = distil(objective=[term, SOFT], student={"layers": 2, **student})
    with pytest.raises(UsageError, match=says) as caught:
        distill(config, tmp_path / "run")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "run").exists()


def test_a_stage_is_named(distil: Distil, tmp_path: Path) -> None:
    stages = [
        {"name": "first", "objective": [{"kind": "hidden", "layers": [[1, 9]]}]},
        {"name": "second", "objective": [SOFT]},
    ]
    with pytest.raises(UsageError, match=r"^stage first: hidden term: "):
        distill(distil(stages=stages), tmp_path / "run")


def fnet(folder: Path) -> Path:
    """A teacher whose blocks mix by Fourier transforms."""
    FNetForSequenceClassification(
        FNetConfig(
            vocab_size=len(tiny.WORDS) + 5,
            hidden_size=32,
            num_hidden_layers=2,
            intermediate_size=64,
            max_position_embeddings=66,
            pad_token_id=0,
            **head_settings(tiny.SENTIMENT),
        )
    ).save_pretrained(folder)
    tiny.tokenizer().save_pretrained(folder)
    return folder


@pytest.mark.parametrize("kind", ["attention", "attention_kl", "relations"])
def test_a_teacher_without_attention(kind: str, distil: Distil, tmp_path: Path) -> None:
    config = distil(of=fnet(tmp_path / "fnet"), objective=[{"kind": kind}, SOFT])
    with pytest.raises(UsageError, match=r"attention") as caught:
        distill(config, tmp_path / "run")
    assert "\n" not in str(caught.value)


def test_hidden_states_can_be_had_where_attention_cannot(distil: Distil, tmp_path: Path) -> None:
    teacher = zoo.save(tmp_path / "megatron", "megatron-bert", num_hidden_layers=2)
    with pytest.raises(UsageError, match="attention of megatron-bert can't be read"):
        prepare(distil(of=teacher, objective=[{"kind": "attention"}, SOFT]))
    config = distil(of=teacher, objective=[{"kind": "hidden"}, SOFT])
    taps = prepare(config).objectives["distil"].teacher_taps
    assert {(tap.what, tap.layer) for tap in taps} == {("hidden", 2)}


def test_another_tokenizer_takes_first_tokens_only(
    distil: Distil, folders: Callable[..., Path], tmp_path: Path
) -> None:
    student = {"layers": None, "model": str(folders("roberta", layers=2))}
    config = distil(objective=[{"kind": "hidden"}, SOFT], student=student)
    with pytest.raises(UsageError, match=r"another tokenizer.*use patience"):
        distill(config, tmp_path / "run")
    config = distil(objective=[{"kind": "patience"}, SOFT], student=student)
    assert distill(config, tmp_path / "run").students[0].fit.steps == 6


@pytest.mark.parametrize(
    "terms", [[{"kind": "cosine"}], [{"kind": "hidden"}, {"kind": "attention"}]]
)
def test_a_head_that_nothing_trains_is_refused(
    terms: list[dict[str, Any]], distil: Distil, tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match="add a soft or gold term") as caught:
        distill(distil(objective=terms), tmp_path / "run")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "run").exists()


def test_kept_states_are_hidden_ones(distil: Distil, tmp_path: Path) -> None:
    config = distil(objective=[{"kind": "attention"}, SOFT], label={"states": "int8"})
    with pytest.raises(UsageError, match="leave it at live"):
        distill(config, tmp_path / "run")


def test_a_corpus_stage_needs_a_masked_teacher_to_answer(distil: Distil, tmp_path: Path) -> None:
    stage = {"name": "read", "objective": [SOFT], "corpus": {"path": "nowhere.txt"}}
    with pytest.raises(UsageError, match=r"stage read: on a corpus, soft and hard terms need"):
        distill(distil(stages=[stage]), tmp_path / "run")


@pytest.mark.parametrize("kind", ["attention", "attention_kl"])
def test_scores_outside_a_layers_window_are_nobodys(
    kind: str, distil: Distil, folders: Callable[..., Path], tmp_path: Path
) -> None:
    """A tiny ModernBERT's second block attends to neighbours only."""
    teacher = folders("modernbert", layers=3)
    student = {"layers": [1, 3]}
    local = [{"kind": kind, "layers": [[2, 2]]}, SOFT]
    with pytest.raises(UsageError, match="attends to a window of tokens only"):
        distill(distil(of=teacher, objective=local, student=student), tmp_path / "run")
    whole = [{"kind": kind, "layers": [[1, 1]]}, SOFT]
    assert prepare(distil(of=teacher, objective=whole, student=student))
