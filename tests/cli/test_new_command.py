"""The command that makes a model: what it leaves, what it read, what it refuses."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM, AutoTokenizer

import stillhouse as sh
import tiny
from stillhouse.core.config import DataConfig
from stillhouse.core.seeding import derive
from stillhouse.data.chat import Conversation
from stillhouse.data.rows import folded_key
from stillhouse.data.shown import conversation
from stillhouse.data.sources import load
from stillhouse.models.generator import load_generator

Call = Callable[..., tuple[int, str, str]]
SMALL = ["--vocabulary", 290, "--width", 16, "--layers", 2, "--positions", 32]
COLUMNS = ["--text-column", "en", "--label-column", "de"]


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    rows = [(text, " ".join(reversed(text.split()))) for text, _ in tiny.sentences(120)]
    return tiny.write_csv(tmp_path_factory.mktemp("data") / "pairs.csv", ["en", "de"], rows)


def test_a_translation_models_folder_loads_and_says_what_is_in_it(
    call: Call, pairs: Path, cache: Path, tmp_path: Path
) -> None:
    words = ["new", "--task", "seq2seq", "--data", pairs, *COLUMNS, *SMALL, "--cache", cache]
    shape = ["--decoder-layers", 1, "--ffn", 24, "--heads", 4, "--dropout", 0.3]
    code, out, err = call(*words, *shape, "--out", tmp_path / "m")
    assert code == 0, err
    model = AutoModelForSeq2SeqLM.from_pretrained(tmp_path / "m")
    tokens = AutoTokenizer.from_pretrained(tmp_path / "m")
    config = model.config
    assert (config.model_type, config.vocab_size, config.dropout) == ("marian", 290, 0.3)
    assert (config.encoder_layers, config.decoder_layers, config.d_model) == (2, 1, 16)
    assert (config.encoder_ffn_dim, config.encoder_attention_heads) == (24, 4)
    assert len(tokens) == 290
    assert tokens.model_max_length == 32
    load_generator(str(tmp_path / "m"), "seq2seq")
    count = sum(p.numel() for p in model.parameters())
    assert f"a marian of {count:,} parameters, vocabulary of 290, " in out
    assert "tokens a text" in out
    code, out, _ = call(*words, *shape, "--out", tmp_path / "again", "--json")
    found = json.loads(out)
    assert (found["parameters"], found["vocabulary"], found["family"]) == (count, 290, "marian")
    texts = [t for e in load(DataConfig(path=str(pairs), text="en", label="de"), cache / "rows",
             texts=True).labelled for t in (e.text, e.label)]  # fmt: skip
    expected = np.mean([len(ids) for ids in tokens(texts)["input_ids"]])
    assert found["tokens_per_text"] == pytest.approx(expected)
    for name in ("model.safetensors", "tokenizer.json", "config.json"):  # the same each time
        assert (tmp_path / "m" / name).read_bytes() == (tmp_path / "again" / name).read_bytes()


def marked() -> list[tuple[str, str]]:
    """Rows each with a word of its own, six times."""
    letters = "bcdfghjklmnpqrstvwxz"
    rows = []
    for i in range(80):
        word = letters[i // 20] + letters[i % 20] + "qyqyq"
        rows.append((" ".join([word] * 6), " ".join([word.upper()] * 6)))
    return rows


def test_only_training_rows_are_read(call: Call, tmp_path: Path) -> None:
    """Every row has a word six times, which no other has: a whole word in the vocabulary gives
    away the row that it was read in."""
    data = tiny.write_csv(tmp_path / "d" / "pairs.csv", ["en", "de"], marked())
    words = ["new", "--task", "seq2seq", "--data", data, *COLUMNS, "--cache", tmp_path / "c"]
    code, _, err = call(*words, *SMALL[2:], "--vocabulary", 421, "--out", tmp_path / "m")
    assert code == 0, err
    splits = load(DataConfig(path=str(data), text="en", label="de"), tmp_path / "rows", texts=True)
    held = AutoTokenizer.from_pretrained(tmp_path / "m").get_vocab()

    def known(pool) -> list[bool]:
        return [
            f"Ġ{each}" in held for e in pool for each in (e.text.split()[0], e.label.split()[0])
        ]

    assert np.mean(known(splits.labelled)) > 0.9
    for pool in (splits.held_out, splits.reported):
        assert len(pool) > 2
        assert not any(known(pool))


def test_a_language_models_running_text_is_split_as_a_runs(call: Call, tmp_path: Path) -> None:
    """Lines drawn to be held out or reported on are not read."""
    lines = [text for text, _ in marked()] * 2
    text = tmp_path / "t.txt"
    text.write_text("\n".join(lines), encoding="utf-8")
    words = ["new", "--task", "causal_lm", "--data", text, "--family", "llama", *SMALL[2:]]
    code, _, err = call(*words, "--vocabulary", 400, "--out", tmp_path / "m")
    assert code == 0, err
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "m")
    assert model.config.model_type == "llama"
    held = AutoTokenizer.from_pretrained(tmp_path / "m").get_vocab()
    trains = {
        line: not any(
            derive(0, split, folded_key(line, None).hex()) < share * 2.0**63
            for split, share in (("held_out", 0.02), ("reported", 0.05))
        )
        for line in lines
    }
    assert not all(trains.values())
    assert all((f"Ġ{line.split()[0]}" in held) == seen for line, seen in trains.items())


def test_a_tokenizer_is_taken_whole_from_another_model(
    call: Call, pairs: Path, cache: Path, tmp_path: Path
) -> None:
    words = ["new", "--task", "seq2seq", "--cache", cache, "--width", 16, "--layers", 1]
    code, _, err = call(
        *words, "--data", pairs, *COLUMNS, "--vocabulary", 290, "--tokenizer", "unigram",
        "--out", tmp_path / "a",
    )  # fmt: skip
    assert code == 0, err
    code, out, err = call(
        *words, "--family", "t5", "--tokenizer-from", tmp_path / "a", "--out", tmp_path / "b"
    )
    assert code == 0, err
    assert "vocabulary of 290" in out
    assert "tokens a text" not in out
    both = [AutoTokenizer.from_pretrained(tmp_path / name)("a film")["input_ids"] for name in "ab"]
    assert both[0] == both[1]


def test_the_same_from_python(pairs: Path, cache: Path, tmp_path: Path) -> None:
    found = sh.new(
        "seq2seq", {"path": str(pairs), "text": "en", "label": "de"}, out=tmp_path / "m",
        cache=str(cache), vocabulary=290, width=16, layers=1,
    )  # fmt: skip
    assert found["vocabulary"] == 290
    assert (tmp_path / "m" / "model.safetensors").exists()


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--task", "seq2sqe", "--data", "{pairs}"], "did you mean 'seq2seq'?"),
        (["--task", "seq2seq"], "--data"),
        (["--task", "seq2seq", "--data", "none.csv"], "none.csv"),
        (["--task", "seq2seq", "--data", "{pairs}", "--text-column", "fr"], "it has en, de"),
        (["--task", "seq2seq", "--data", "{pairs}", *COLUMNS], "--vocabulary "),
        (
            ["--task", "seq2seq", "--data", "{pairs}", *COLUMNS, *map(str, SMALL), "--heads", "3"],
            "can't have 3 heads",
        ),
        (
            ["--task", "seq2seq", "--tokenizer-from", "x", "--vocabulary", "300"],
            "leave out vocabulary",
        ),
        (["--task", "seq2seq", "--tokenizer-from", "./x"], "no model folder"),
        (["--task", "seq2seq", "--data", "{pairs}", "--tokenizer", "bpee"], "did you mean 'bpe'?"),
    ],
)
def test_a_wrong_call_is_one_line_and_leaves_nothing(
    call: Call, words: list[str], says: str, pairs: Path, cache: Path, tmp_path: Path
) -> None:
    given = [str(pairs) if word == "{pairs}" else word for word in words]
    code, out, err = call("new", *given, "--cache", cache, "--out", tmp_path / "o")
    assert code == 2, err
    assert says in err
    assert out == ""
    assert len([line for line in err.splitlines() if line.startswith("stillhouse:")]) == 1
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_is_taken_is_left_alone(call: Call, pairs: Path, tmp_path: Path) -> None:
    (tmp_path / "m").mkdir()
    (tmp_path / "m" / "mine.txt").write_text("mine")
    code, _, err = call("new", "--task", "seq2seq", "--data", pairs, "--out", tmp_path / "m")
    assert (code, "exists: give another --out" in err) == (2, True)
    assert [path.name for path in (tmp_path / "m").iterdir()] == ["mine.txt"]


def test_conversations_get_a_chat_template(call: Call, cache: Path, tmp_path: Path) -> None:
    turns = [
        [{"role": "user", "content": asked}, {"role": "assistant", "content": said}]
        for asked, said in tiny.sentences(120)
    ]
    turns[0][1:1] = [{"role": "tool", "content": "seen", "name": "look"}]
    rows = tmp_path / "chat.jsonl"
    rows.write_text("".join(json.dumps({"messages": each}) + "\n" for each in turns))
    given = ["new", "--task", "causal_lm", "--data", rows, *SMALL, "--cache", cache]
    code, _, err = call(*given, "--out", tmp_path / "m")
    assert code == 0, err
    tokens = AutoTokenizer.from_pretrained(tmp_path / "m")
    prompt, whole, scored = conversation(
        Conversation(tuple(turns[0][:-1])), turns[0][-1]["content"], tokens
    )
    assert tokens.decode(prompt).endswith("assistant\n")
    answer = [token for token, mine in zip(whole, scored, strict=True) if mine]
    assert tokens.decode(answer) == turns[0][-1]["content"] + tokens.eos_token
