"""Training tokenizers on a user's own text, and telling whether two cut texts alike."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Literal

from tokenizers import (
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from stillhouse.core.errors import DataError, unknown

Kind = Literal["bpe", "unigram"]
GeneratorTask = Literal["seq2seq", "causal_lm"]

KINDS: tuple[Kind, ...] = ("bpe", "unigram")
# Special tokens by what they are for, in the order of their ids.
SPECIAL: dict[GeneratorTask, dict[str, str]] = {
    "seq2seq": {"pad": "<pad>", "eos": "</s>", "unk": "<unk>"},
    "causal_lm": {"eos": "<|endoftext|>", "pad": "<pad>", "unk": "<unk>"},
}
BYTES = [f"<0x{i:02X}>" for i in range(256)]
SEEN = 2  # times that a merge must have been seen
MAX_LENGTH = 512  # tokens, until a model says otherwise
STEP = 1e-4  # what `tokenizers` tells characters apart by that it gave no score of their own
DIGITS = 6  # of a score: the rest is the order in which a hash map was read

# Texts on which tokenizers differ: case, digits, white space, joined and composed letters, other
# scripts, signs, code, emoji of several code points.
PROBE = (
    "Stillhouse: 1,234.5 naïve cafés don't — they won't; I'd say “quoted” and (bracketed)…",
    "ÄÖÜ straße, cafe\u0301, ﬁne, ½ m², 10€ – 2×3≠7 £5 100%",
    "  two leading spaces,  two  inside\tand a tab\nand a line\r\nand two\n\nends  ",
    "UPPER lower CamelCase snake_case kebab-case x2y 3rd 2024-01-31 007 0.001 12345678901234567890",
    "Съешь ещё этих мягких булок, שלום עולם, مرحبا, नमस्ते दुनिया, 你好，世界, こんにちは, 안녕하세요",
    "def f(x):\n    return {'a': [1, 2], \"b\": x ** 2}  # https://example.org/?q=1&r=%20",
    "👩\u200d👩\u200d👧 🇩🇪 ❤\ufe0f \u200b \ufeff \u00a0 \u0000 ▁ ## </w> <s> [CLS]",
    "antidisestablishmentarianism pneumonoultramicroscopicsilicovolcanoconiosis aaaaaaaaaaaaaaaa",
    "Donaudampfschifffahrtsgesellschaftskapitän, l'œuvre d'été, ¿qué?, żółć, İstanbul",
    "",
    "a",
    " ",
)


def train_tokenizer(
    texts: Iterable[str], *, kind: Kind, size: int, task: GeneratorTask
) -> PreTrainedTokenizerFast:
    """A tokenizer of `size` entries, learnt from `texts`; the same texts in the same order give
    the same one.

    bpe: on bytes, any text comes back as it was. unigram: on words with ▁ for the space before
    them (Kudo 2018), bytes for what was never seen; a text comes back in Unicode's NFC, without
    one leading space, its own ▁ as spaces. seq2seq: each text ends with </s>, both sides share
    the entries. causal_lm: nothing is added; <|endoftext|> is the first and the last token.

    Raises DataError where the text is too little for `size`, or `size` too small for the text.
    """
    if kind not in KINDS:
        raise DataError(unknown("kind of tokenizer", kind, KINDS))
    special = SPECIAL[task]
    names = [token for name, token in special.items() if name != "unk" or _has_unknown(kind, task)]
    least = len(names) + len(BYTES)
    if size < least + (kind == "unigram"):
        raise DataError(f"a vocabulary of {size} can't hold the {least} entries that every one has")
    core = (_bpe if kind == "bpe" else _unigram)(_some(texts), size, names)
    if (found := core.get_vocab_size()) < size:
        raise DataError(
            f"the training text is too little for a vocabulary of {size}: it fills {found}; ask "
            f"for {found} or fewer (--vocabulary {found}), or give more text"
        )
    if task == "seq2seq":
        eos = special["eos"]
        core.post_processor = processors.TemplateProcessing(
            single=f"$A {eos}",
            pair=f"$A {eos} $B:1 {eos}:1",
            special_tokens=[(eos, core.token_to_id(eos))],
        )
    given = {f"{name}_token": token for name, token in special.items() if token in names}
    if task == "causal_lm":
        given["bos_token"] = special["eos"]
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        model_input_names=["input_ids", "attention_mask"],
        model_max_length=MAX_LENGTH,
        padding_side="right",
        clean_up_tokenization_spaces=False,
        **given,
    )


def _has_unknown(kind: Kind, task: GeneratorTask) -> bool:
    """Bytes leave nothing unknown; encoder-decoders have the entry all the same."""
    return kind == "unigram" or task == "seq2seq"


def _some(texts: Iterable[str]) -> Iterator[str]:
    """The texts. Raises DataError where none holds anything."""
    empty = True
    for text in texts:
        if text.strip():
            empty = False
            yield text
    if empty:
        raise DataError("there is no text to learn a tokenizer from")


def _bpe(texts: Iterable[str], size: int, names: list[str]) -> Tokenizer:
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        min_frequency=SEEN,
        special_tokens=names,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    core.train_from_iterator(texts, trainer)
    return core


def _unigram(texts: Iterable[str], size: int, names: list[str]) -> Tokenizer:
    """The trainer's pieces in an order of ours, after an entry for each byte."""
    core = Tokenizer(models.Unigram())
    core.normalizer = normalizers.NFC()
    core.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Metaspace(prepend_scheme="always"),
            pre_tokenizers.Split(Regex("<(?=0x)"), "isolated"),  # a text's own <0x41> is no byte
        ]
    )
    trainer = trainers.UnigramTrainer(
        vocab_size=size - len(BYTES),
        special_tokens=names,
        unk_token=SPECIAL["seq2seq"]["unk"],
        show_progress=False,
    )
    characters = {"▁"}
    try:
        core.train_from_iterator(_noting(texts, characters), trainer)
    except DataError:
        raise
    except Exception as error:  # it has no type of its own
        if "not large enough" not in str(error):
            raise
        raise _too_small(size, len(names) + len(BYTES), characters) from error
    held: list[tuple[str, float]] = json.loads(core.to_str())["model"]["vocab"]
    if len(held) + len(BYTES) > size:
        raise _too_small(size, len(names) + len(BYTES), characters)
    pieces = _ordered([(piece, score) for piece, score in held if piece not in names])
    lowest = pieces[-1][1] if pieces else 0.0
    entries = [*((name, 0.0) for name in names), *((byte, lowest) for byte in BYTES), *pieces]
    unknown_id = names.index(SPECIAL["seq2seq"]["unk"])
    core.model = models.Unigram(entries, unknown_id, byte_fallback=True)
    core.add_special_tokens(names)
    core.decoder = decoders.Sequence(
        [
            decoders.ByteFallback(),
            decoders.Metaspace(prepend_scheme="always"),
            decoders.Fuse(),
        ]
    )
    return core


def _too_small(size: int, fixed: int, characters: set[str]) -> DataError:
    least = fixed + len(characters)
    return DataError(
        f"a vocabulary of {size} can't hold the {len(characters)} characters of the training "
        f"text: ask for {least} at least (--vocabulary {least}), or take bpe, which is made of "
        "bytes"
    )


def _noting(texts: Iterable[str], characters: set[str]) -> Iterator[str]:
    """The texts, whose characters join `characters` on the way."""
    form = normalizers.NFC()
    for text in texts:
        characters.update(form.normalize_str(text).replace(" ", "▁"))
        yield text


def _ordered(held: list[tuple[str, float]]) -> list[tuple[str, float]]:
    """Pieces by falling score, of equals by name.

    The trainer reads its words in an order that changes from call to call: sums differ in their
    last digits, and characters that got no score of their own share out an arithmetic series from
    the lowest score up. Both would give a piece another id each time.
    """
    if not held:
        return []
    lowest = min(score for _, score in held)
    series: dict[str, int] = {}
    for piece, score in held:
        steps = (score - lowest) / STEP
        if len(piece) == 1 and steps < len(held) and abs(steps - round(steps)) < 0.01:
            series[piece] = round(steps)
    again = dict(zip(sorted(series), sorted(series.values()), strict=True))
    found = [
        (piece, round(lowest + STEP * again[piece] if piece in again else score, DIGITS))
        for piece, score in held
    ]
    return sorted(found, key=lambda entry: (-entry[1], entry[0]))


def same_tokens(
    mine: PreTrainedTokenizerBase, theirs: PreTrainedTokenizerBase, probe: Sequence[str] = ()
) -> str | None:
    """None where both cut `PROBE` and `probe` (some of the user's texts) into the same ids, as
    they are and with the special tokens around them, and end a text with the same id; else what
    differs first. Entries that no text uses, and what pads, may differ."""
    for special in (False, True):
        for text in (*PROBE, *probe):
            pair = [_ids(each, text, special=special) for each in (mine, theirs)]
            if pair[0] != pair[1]:
                how = (
                    "frame texts with other special tokens" if special else "cut texts differently"
                )
                return f"they {how} (first: {_difference(text, *pair)})"
    if mine.eos_token_id != theirs.eos_token_id:
        return f"they end a text with other ids ({mine.eos_token_id} and {theirs.eos_token_id})"
    return None


def word_level_refusal(difference: str) -> str:
    """What a user reads whose tokenizers differ, in the words of `same_tokens`."""
    return (
        "teacher and student don't have the same tokenizer, which word level needs: "
        f"{difference}: distil at sequence level, --method seq-kd, which takes any tokenizer"
    )


def _ids(tokenizer: PreTrainedTokenizerBase, text: str, *, special: bool) -> list[int]:
    coded: Any = tokenizer(text, add_special_tokens=special, verbose=False)
    return list(coded["input_ids"])


def _difference(text: str, mine: list[int], theirs: list[int]) -> str:
    """Where two encodings part, with the few ids from there on."""
    pairs = zip(mine, theirs, strict=False)
    start = next((i for i, (a, b) in enumerate(pairs) if a != b), min(len(mine), len(theirs)))
    shown = [ids[start : start + 4] for ids in (mine, theirs)]
    short = text if len(text) <= 40 else f"{text[:40]}…"
    return f"{short!r} -> from token {start + 1} on {shown[0]} and {shown[1]}"
