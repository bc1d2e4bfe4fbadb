"""What a model can be given, asked of models of many families."""

from __future__ import annotations

import pytest
import torch

import tiny
from families import zoo
from stillhouse.core.errors import ModelError
from stillhouse.models.limits import (
    check_padding,
    check_vocabulary,
    max_tokens,
    positions,
    takes_token_types,
    tokenizer_for,
)

TABLES = {  # learned positions: the first one that a token takes is 0, or the one after padding's
    "bert": 66,
    "electra": 66,
    "gpt2": 66,
    "nystromformer": 66,
    "bart": 66,
    "opt": 66,
    "xlm": 66,
    "camembert": 64,
    "data2vec-text": 64,
    "mpnet": 64,
    "roberta": 64,
    "roberta-prelayernorm": 64,
    "xlm-roberta": 64,
    "xlm-roberta-xl": 64,
}


def answer(model: torch.nn.Module, tokens: int) -> None:
    ids = torch.full((2, tokens), 7)
    ids[:, -1] = 2  # a BART's end
    with torch.no_grad():
        model(input_ids=ids, attention_mask=torch.ones_like(ids))


@pytest.mark.parametrize(("family", "most"), TABLES.items(), ids=TABLES)
def test_a_row_may_be_as_long_as_there_are_positions_and_no_longer(family: str, most: int) -> None:
    model = zoo.model(family)
    assert positions(model) == most
    answer(model, most)
    with pytest.raises((IndexError, RuntimeError)):
        answer(model, most + 1)


@pytest.mark.parametrize("family", ["xlnet", "t5", "bloom"])
def test_models_without_a_limit_take_what_is_asked(family: str) -> None:
    model = zoo.model(family)
    assert positions(model) is None
    assert max_tokens(model, 100) == 100
    answer(model, 100)


@pytest.mark.parametrize(("types", "told"), [(0, False), (1, False), (2, True)])
def test_a_single_token_type_is_none_to_choose_from(types: int, told: bool) -> None:
    model = tiny.model(type_vocab_size=types) if types else zoo.model("deberta")
    given = tiny.tokenizer()
    assert takes_token_types(model) is told
    assert ("token_type_ids" in tokenizer_for(model, given).model_input_names) is told
    assert "token_type_ids" in given.model_input_names, "the tokenizer given stays as it is"


def test_a_token_that_was_added_needs_a_row_in_the_embeddings() -> None:
    model, words = tiny.model(), tiny.tokenizer()
    check_vocabulary(model, words)
    words.add_tokens(["<url>", "<user>"])
    says = r"has 67 tokens, .* have 65 rows: call model.resize_token_embeddings\(67\)"
    with pytest.raises(ModelError, match=says):
        check_vocabulary(model, words)
    model.resize_token_embeddings(67)
    check_vocabulary(model, words)


def test_padding_that_the_model_takes_for_words_is_refused() -> None:
    words = tiny.tokenizer()
    check_padding(tiny.model(), words)
    with pytest.raises(ModelError, match="pads with id 0, the model's config says 5"):
        check_padding(tiny.model(pad_token_id=5), words)
    words.padding_side = "left"
    with pytest.raises(ModelError, match="pads on the left"):
        check_padding(tiny.model(), words)
