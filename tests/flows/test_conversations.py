"""What a chat template or a model can't do with conversations is found before anything is
trained."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import stillhouse as sh
from stillhouse.core.config import DistillConfig
from stillhouse.core.errors import DataError, UsageError
from stillhouse.core.progress import Silent
from stillhouse.core.settings import parse
from stillhouse.data.columns import Columns
from stillhouse.data.rows import ingest
from stillhouse.data.sources import Part, Pool, Splits
from stillhouse.flows.conversations import check_rows, forms_of
from stillhouse.flows.prepare import prepare
from stillhouse.models.generator import load_generator
from stillhouse.models.load import load_tokenizer

USER, ANSWER = {"role": "user", "content": "the cat"}, {"role": "assistant", "content": "sat"}
CALL = {"role": "assistant", "content": "", "tool_calls": [{"name": "add", "arguments": {}}]}
CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
STRICT = "{% if messages[0].role == 'system' %}{{ raise_exception('No system role') }}{% endif %}"
ENDED = CHATML.replace("'<|im_end|>\n'", "eos_token")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a small language model (`m`) and rows of conversations."""
    folder = tmp_path_factory.mktemp("chat")
    lines = [
        {"messages": [{"role": "user", "content": f"say {i}"}, {**ANSWER, "content": f"it is {i}"}]}
        for i in range(60)
    ]
    (folder / "rows.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    shape = {"width": 16, "layers": 2, "heads": 2, "vocabulary": 300, "positions": 64}
    sh.new("causal_lm", str(folder / "rows.jsonl"), out=folder / "m", progress=Silent(), **shape)
    return folder


@pytest.fixture
def models(made: Path) -> tuple[Any, Any]:
    tokenizer = copy.deepcopy(load_tokenizer(str(made / "m")))
    return tokenizer, load_generator(str(made / "m"), "causal_lm")


def splits(rows: list[dict[str, Any]], folder: Path) -> Splits:
    found = ingest(enumerate(rows, 1), "x", Columns(texts=True), folder, labelled=True)
    empty = Pool([])
    pool = Pool([Part(found, found.kept, labelled=True)])
    return Splits(pool, empty, empty, empty, {}, [])


def checked(rows: list[dict[str, Any]], models: tuple[Any, Any], tmp_path: Path) -> list[str]:
    return check_rows(forms_of(splits(rows, tmp_path / "rows"), "causal_lm"), *models)


def test_a_turn_whose_end_is_no_token_is_refused(models: Any, tmp_path: Path) -> None:
    models[0].chat_template = CHATML
    says = r"ends an answer with '<\|im_end\|>\\n'.* it would never stop.*eos_token"
    with pytest.raises(UsageError, match=says):
        checked([{"messages": [USER, ANSWER]}], models, tmp_path)


def test_a_turn_that_ends_with_anothers_end_is_refused_until_the_model_ends_there(
    models: Any, tmp_path: Path
) -> None:
    tokenizer, model = models
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_end|>"]})
    tokenizer.chat_template = CHATML
    end = tokenizer.convert_tokens_to_ids("<|im_end|>")
    with pytest.raises(UsageError, match=f"add id {end} to eos_token_id in its generation_config"):
        checked([{"messages": [USER, ANSWER]}], models, tmp_path)
    model.generation_config.eos_token_id = [tokenizer.eos_token_id, end]
    assert checked([{"messages": [USER, ANSWER]}], models, tmp_path) == []


def test_the_tokenizers_own_end_matters_for_plain_texts_only(models: Any, tmp_path: Path) -> None:
    tokenizer, model = models
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_end|>"]})
    tokenizer.chat_template = CHATML
    model.generation_config.eos_token_id = tokenizer.convert_tokens_to_ids("<|im_end|>")
    assert checked([{"messages": [USER, ANSWER]}], models, tmp_path) == []
    with pytest.raises(UsageError, match="the tokenizer ends a text with id"):
        checked([{"prompt": "a", "completion": "b"}], models, tmp_path / "plain")


def test_a_refusal_of_the_template_names_the_row(models: Any, tmp_path: Path) -> None:
    models[0].chat_template = STRICT + ENDED
    rows = [{"messages": [USER, ANSWER]}] + [
        {"messages": [{"role": "system", "content": str(i)}, USER, ANSWER]} for i in range(2)
    ]
    with pytest.raises(DataError, match=r"^x line 2: .*No system role; its roles: system, user"):
        checked(rows, models, tmp_path)


def test_calls_that_the_template_leaves_out_are_refused(models: Any, tmp_path: Path) -> None:
    rows = [{"messages": [USER, CALL]}]
    assert checked(rows, models, tmp_path) == []  # the template of new models shows them
    models[0].chat_template = ENDED
    with pytest.raises(DataError, match="x line 1: the chat template doesn't show calls"):
        checked(rows, models, tmp_path)


def test_tools_and_roles_that_the_template_leaves_out_are_told(models: Any, tmp_path: Path) -> None:
    note = {"role": "developer", "content": "be brief"}
    rows = [{"messages": [note, USER, ANSWER], "tools": [{"name": "add"}]}]
    assert checked(rows, models, tmp_path) == []
    models[0].chat_template = (
        "{% for m in messages if m.role != 'developer' %}{{ m.role + m.content + eos_token }}"
        "{% endfor %}{% if add_generation_prompt %}assistant{% endif %}"
    )
    assert checked(rows, models, tmp_path) == [
        "the chat template doesn't show tools: the column tools changes nothing",
        "the chat template doesn't show what is said by developer",
    ]


def test_conversations_are_for_language_models(tmp_path: Path) -> None:
    rows = splits([{"messages": [USER, ANSWER]}], tmp_path / "rows")
    with pytest.raises(DataError, match="x line 1: conversations are for language models"):
        forms_of(rows, "seq2seq")


@pytest.mark.parametrize("command", ["finetune", "distill", "evaluate"])
def test_commands_refuse_before_they_write(made: Path, tmp_path: Path, command: str) -> None:
    load_generator(str(made / "m"), "causal_lm").save_pretrained(tmp_path / "odd")
    tokenizer = copy.deepcopy(load_tokenizer(str(made / "m")))
    tokenizer.chat_template = CHATML
    tokenizer.save_pretrained(tmp_path / "odd")
    odd, data, out = str(tmp_path / "odd"), str(made / "rows.jsonl"), tmp_path / "out"
    given = {"task": "causal_lm", "teacher": odd, "data": {"path": data}, "student": {"layers": 1}}
    run = {
        "finetune": lambda: sh.finetune(odd, data, out=out, task="causal_lm", progress=Silent()),
        "distill": lambda: prepare(parse(DistillConfig, given), progress=Silent()),
        "evaluate": lambda: sh.evaluate(odd, data),
    }
    with pytest.raises(UsageError, match="it would never stop"):
        run[command]()
    assert not out.exists()


def test_a_pool_names_its_rows(tmp_path: Path) -> None:
    rows = [{"prompt": "a", "completion": "b"}, {"prompt": None}, {"prompt": "c"}]
    found = ingest(enumerate(rows, 1), "x", Columns(texts=True), tmp_path / "a", labelled=True)
    pool = Pool([Part(found, np.array([1]), True), Part(found, np.array([0]), True)])
    assert [pool.place(0), pool.place(1)] == ["x line 3", "x line 1"]
