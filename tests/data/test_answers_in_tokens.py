"""Texts and answers in tokens: what is scored, what is cut, what a template may do."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from stillhouse.core.errors import DataError
from stillhouse.data.chat import Conversation
from stillhouse.data.columns import Columns
from stillhouse.data.rows import ingest
from stillhouse.data.shown import conversation
from stillhouse.data.sources import Part, Pool
from stillhouse.data.tokens import train_tokenizer
from stillhouse.data.written import Rules, Tokens, gold_texts, tokens_of

TEXTS = ["the cat sat on the mat", "a dog ran to the house", "two birds sing", "the end"] * 3
TEMPLATE = (
    "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}<|endoftext|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


def tokenizer(task: Any) -> Any:
    return train_tokenizer(TEXTS, kind="bpe", size=270, task=task)


def pool(rows: list[dict[str, Any]], folder: Path) -> Pool:
    columns = Columns(texts=True)
    found = ingest(enumerate(rows, 1), "rows", columns, folder, labelled=True)
    return Pool([Part(found, found.kept, labelled=True)])


def tokens(rows: list[dict[str, Any]], made: Any, rules: Rules, tmp_path: Path) -> Tokens:
    return tokens_of(pool(rows, tmp_path / "rows"), made, tmp_path / "tokens", rules)


def test_a_pair_is_source_and_target_each_with_its_end(tmp_path: Path) -> None:
    made = tokenizer("seq2seq")
    found = tokens(
        [{"source": "the cat", "target": "two birds"}], made, Rules("seq2seq", 50, 50), tmp_path
    )
    assert found.before[0].tolist() == made("the cat")["input_ids"]
    assert made.decode(found.ids[0], skip_special_tokens=True) == "two birds"
    assert found.ids[0][-1] == made.eos_token_id
    assert found.scored[0].all()


def test_only_the_answer_and_its_end_are_scored(tmp_path: Path) -> None:
    made = tokenizer("causal_lm")
    rows = [{"prompt": "the cat", "completion": "sat"}]
    found = tokens(rows, made, Rules("causal_lm", 50, 50), tmp_path)
    ids, scored = found.ids[0], found.scored[0].astype(bool)
    assert made.decode(ids[~scored]) == "the cat\n"
    assert made.decode(ids[scored]) == "sat<|endoftext|>"
    assert ids[~scored].tolist() == found.before[0].tolist()


def test_the_end_is_scored_though_it_is_the_padding_too(tmp_path: Path) -> None:
    made = tokenizer("causal_lm")
    made.pad_token = made.eos_token
    found = tokens(
        [{"prompt": "the cat", "completion": "sat"}], made, Rules("causal_lm", 50, 50), tmp_path
    )
    assert found.ids[0][-1] == made.eos_token_id
    assert found.scored[0][-1]


def test_a_cut_answer_has_no_end_to_learn(tmp_path: Path) -> None:
    made = tokenizer("seq2seq")
    rows = [{"source": "the cat sat on the mat", "target": "a dog ran to the house"}]
    found = tokens(rows, made, Rules("seq2seq", 4, 3), tmp_path)
    assert found.cut == 1
    assert len(found.ids[0]) == 3
    assert made.eos_token_id not in found.ids[0]
    assert found.before[0][-1] == made.eos_token_id  # an encoder is used to it
    assert len(found.before[0]) == 4


def test_a_row_without_an_answer_has_nothing_to_score(tmp_path: Path) -> None:
    for task, rules in (
        ("seq2seq", Rules("seq2seq", 9, 9)),
        ("causal_lm", Rules("causal_lm", 9, 9)),
    ):
        rows = [{"source": "the cat", "target": None}, {"source": "the end", "target": "x"}]
        found = tokens(rows, tokenizer(task), rules, tmp_path / task)
        assert found.scored[0].sum() == 0
        assert found.scored[1].sum() > 0


def test_other_answers_can_take_the_place_of_the_rows_own(tmp_path: Path) -> None:
    made = tokenizer("seq2seq")
    own = pool([{"source": "the cat", "target": "x"}], tmp_path / "rows")
    rules = Rules("seq2seq", 50, 50)
    plain = tokens_of(own, made, tmp_path / "tokens", rules)
    other = tokens_of(own, made, tmp_path / "tokens", rules, answers=["two birds"])
    assert made.decode(plain.ids[0], skip_special_tokens=True) == "x"
    assert made.decode(other.ids[0], skip_special_tokens=True) == "two birds"


def test_one_source_may_have_several_answers(tmp_path: Path) -> None:
    rows = [{"source": "a", "target": x} for x in ("b", "c", "b")]
    found = pool(rows, tmp_path / "rows")
    assert found.labels.tolist() == ["b", "c"]
    assert len(np.unique(found.folded_N2, axis=0)) == 1  # they never part into train and dev


TURNS = (
    {"role": "user", "content": "the cat"},
    {"role": "assistant", "content": "sat on"},
    {"role": "tool", "content": "two birds"},
    {"role": "assistant", "content": ""},
    {"role": "user", "content": "the end"},
)


def test_in_a_conversation_only_the_assistant_is_scored() -> None:
    made = tokenizer("causal_lm")
    made.chat_template = TEMPLATE
    prompt, ids, scored = conversation(Conversation(TURNS), "a dog", made)
    said = [i for i, flag in zip(ids, scored, strict=True) if flag]
    assert made.decode(said) == "sat on<|endoftext|><|endoftext|>a dog<|endoftext|>"
    shown = (
        "<|user|>the cat<|endoftext|><|assistant|>sat on<|endoftext|><|tool|>two birds<|endoftext|>"
        "<|assistant|><|endoftext|><|user|>the end<|endoftext|><|assistant|>"
    )
    assert made.decode(prompt) == shown
    assert ids[: len(prompt)] == prompt


def test_a_template_that_rewrites_earlier_turns_is_refused() -> None:
    made = tokenizer("causal_lm")
    made.chat_template = (
        "{% for m in messages %}{% if loop.last %}!{% endif %}{{ m.content }}{% endfor %}"
    )
    with pytest.raises(DataError, match="shows a turn differently once others follow"):
        conversation(Conversation(TURNS), "a dog", made)


def test_a_conversation_needs_a_template() -> None:
    with pytest.raises(DataError, match="no chat template"):
        conversation(Conversation(TURNS), "a dog", tokenizer("causal_lm"))


def test_a_tokenizer_without_an_end_is_refused(tmp_path: Path) -> None:
    made = tokenizer("causal_lm")
    made.eos_token = None
    with pytest.raises(DataError, match="no end-of-text token"):
        tokens([{"prompt": "a", "completion": "b"}], made, Rules("causal_lm", 9, 9), tmp_path)


def said(made: Any, turns: list[Any], answer: str | None, **more: Any) -> str:
    """What is scored, each stretch in brackets."""
    _, ids, scored = conversation(Conversation(tuple(turns), **more), answer, made)
    found, inside = "", False
    for i, flag in zip(ids, scored, strict=True):
        found += "[" * (flag > inside) + "]" * (flag < inside) + made.decode([i])
        inside = bool(flag)
    return found + "]" * inside


def test_a_turn_of_weight_0_is_context() -> None:
    made = tokenizer("causal_lm")
    made.chat_template = TEMPLATE
    turns = [TURNS[0], {**TURNS[1], "weight": 0}, TURNS[4]]
    assert said(made, turns, "a dog") == (
        "<|user|>the cat<|endoftext|><|assistant|>sat on<|endoftext|><|user|>the end<|endoftext|>"
        "<|assistant|>[a dog<|endoftext|>]"
    )


def test_weight_0_makes_templates_that_rewrite_earlier_turns_usable() -> None:
    made = tokenizer("causal_lm")
    made.chat_template = (
        "{% for m in messages %}{{ m.role }}:"
        "{% if m.role == 'assistant' and loop.last %}(thought){% endif %}{{ m.content }}"
        "<|endoftext|>{% endfor %}{% if add_generation_prompt %}assistant:{% endif %}"
    )
    with pytest.raises(DataError, match="differently once others follow"):
        said(made, [TURNS[0], TURNS[1], TURNS[4]], "a dog")
    turns = [TURNS[0], {**TURNS[1], "weight": 0}, TURNS[4]]
    assert said(made, turns, "a dog").endswith("[(thought)a dog<|endoftext|>]")


def test_tools_are_given_to_the_template() -> None:
    made = tokenizer("causal_lm")
    made.chat_template = "{% if tools %}{{ tools[0].name }};{% endif %}" + TEMPLATE
    tools: Any = ({"name": "add"},)
    assert said(made, [TURNS[0]], "a dog", tools=tools).startswith("add;<|user|>the cat")


@pytest.mark.parametrize("before", ["", "{% generation %}"])
def test_templates_that_mark_what_is_generated_are_shown_as_they_are(before: str) -> None:
    made = tokenizer("causal_lm")
    after = "{% endgeneration %}" if before else ""
    made.chat_template = (
        "{{ bos_token }}{% for m in messages %}<|{{ m.role }}|>"
        + before + "{{ m.content }}<|endoftext|>" + after + "{% endfor %}"
        "{% if add_generation_prompt %}<|assistant|>{% endif %}"
    )  # fmt: skip
    found = said(made, [TURNS[0]], "a dog")
    assert found.endswith("<|assistant|>[a dog<|endoftext|>]")
    assert not found.startswith(made.bos_token * 2)


@pytest.mark.parametrize(
    ("template", "says"),
    [
        ("{{ raise_exception('Roles must alternate') }}", "Roles must alternate"),
        ("{{ messages[0]['content'] + 1 }}", "can only concatenate"),
        ("{{ messages[0].nothing.more }}", "has no attribute"),
        ("{{ 1 // 0 if messages else '' }}", "zero"),
    ],
)
def test_what_a_template_refuses_is_told_with_its_row(
    template: str, says: str, tmp_path: Path
) -> None:
    made = tokenizer("causal_lm")
    made.chat_template = template
    rows = [{"messages": []}, {"messages": [*TURNS, TURNS[1]]}]
    with pytest.raises(DataError, match=f"^rows line 2: the chat template can't show.*{says}"):
        tokens(rows, made, Rules("causal_lm", 50, 50), tmp_path)


def test_gold_texts_are_what_the_model_is_to_write(tmp_path: Path) -> None:
    made = tokenizer("causal_lm")
    made.chat_template = TEMPLATE.replace(
        "{{ m.content }}", "{{ m.content }}{% for c in m.tool_calls or [] %}call {{ c.name }}"
        "{% endfor %}"
    )  # fmt: skip
    answers = [
        {"role": "assistant", "content": " two birds ", "tool_calls": []},
        {"role": "assistant", "content": "sing", "refusal": "x"},
        {"role": "assistant", "content": None, "tool_calls": [{"name": "the cat"}]},
    ]
    rows = [{"messages": [{"role": "user", "content": str(i)}, each]}
            for i, each in enumerate(answers)]  # fmt: skip
    own = pool(rows, tmp_path / "rows")
    assert gold_texts(own, made) == ["two birds", "sing", "call the cat"]
