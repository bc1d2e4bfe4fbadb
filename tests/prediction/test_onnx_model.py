"""What is known of an ONNX file that nothing but its config.json describes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from families import zoo
from stillhouse.models.limits import positions
from stillhouse.prediction.onnx_model import FROM_PADDING, facts_beside

LEARNED = ("bert", "electra", "distilbert", "xlm")  # positions from 0 on


@pytest.mark.parametrize(
    "family", [each for each in (*LEARNED, *sorted(FROM_PADDING)) if each in zoo.FAMILIES]
)
def test_a_row_may_have_as_many_tokens_as_the_model_has_places(family: str, tmp_path: Path) -> None:
    """As the model itself says: RoBERTa's relatives count places from the one of padding on."""
    model = zoo.model(family)
    model.config.save_pretrained(tmp_path)
    facts = facts_beside(tmp_path / "model.onnx")
    assert facts.positions == positions(model)
    assert facts.pad_id == (model.config.pad_token_id or 0)
    assert facts.max_length == min(128, facts.positions or 128)


@pytest.mark.parametrize(
    ("longest", "most"), [(48, 48), (1000, 1000), (10**30, None), (None, None), ("x", None)]
)
def test_a_tokenizer_says_how_much_a_model_reads_that_does_not_say_it(
    longest: object, most: int | None, tmp_path: Path
) -> None:
    config = {"model_type": "gpt2", "n_positions": 1000}
    (tmp_path / "config.json").write_text(json.dumps(config), encoding="utf-8")
    held = {} if longest is None else {"model_max_length": longest}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(held), encoding="utf-8")
    assert facts_beside(tmp_path / "model.onnx").positions == most
    config["max_position_embeddings"] = 66
    (tmp_path / "config.json").write_text(json.dumps(config), encoding="utf-8")
    assert facts_beside(tmp_path / "model.onnx").positions == 66
