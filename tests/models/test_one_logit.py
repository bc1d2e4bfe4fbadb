"""A binary classifier of one output has the same probabilities as one of two classes."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

import tiny
from stillhouse.core.errors import ModelError
from stillhouse.models.one_logit import as_two_classes, is_one_logit


@pytest.mark.parametrize("kind", ["bert", "roberta", "distilbert"])
def test_two_classes_have_the_probability_of_the_one_output(kind: str) -> None:
    model = tiny.model(kind, labels=["value"]).eval()
    ids = torch.randint(5, 60, (4, 7), generator=torch.Generator().manual_seed(1))
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    with torch.no_grad():
        before = model(**inputs).logits
        after = as_two_classes(model)(**inputs).logits
    assert before.shape == (4, 1)
    torch.testing.assert_close(after.softmax(-1)[:, 1], before[:, 0].sigmoid())
    assert (after[:, 0] == 0).all()
    assert (model.config.num_labels, model.config.id2label) == (2, {0: "0", 1: "1"})


def test_a_head_of_another_form_is_refused() -> None:
    with pytest.raises(ModelError, match="save it with two outputs"):
        as_two_classes(tiny.model("bert", labels=["a", "b"]))


@pytest.mark.parametrize(
    ("heads", "problem", "task", "found"),
    [
        (1, None, "auto", False),  # it may be either: asked of the user
        (1, None, "classification", True),
        (1, "multi_label_classification", "auto", True),
        (1, "regression", "auto", False),
        (1, None, "regression", False),
        (2, None, "classification", False),
    ],
)
def test_what_one_output_means(heads: int, problem: str | None, task: str, *, found: bool) -> None:
    config = SimpleNamespace(num_labels=heads, problem_type=problem)
    assert is_one_logit(config, task) is found
