"""The teacher's texts to the training sources, and which are learnt from (Kim & Rush 2016)."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from transformers import PreTrainedModel

from stillhouse.core.errors import UsageError
from stillhouse.core.progress import Progress
from stillhouse.core.terms import Precision
from stillhouse.core.writing import DecodeConfig
from stillhouse.data.encoding import pad_id, tokens_identity
from stillhouse.data.rows import content_key
from stillhouse.data.sources import Pool
from stillhouse.flows.setup import Setup
from stillhouse.models.decode import Decoding
from stillhouse.models.load import fingerprint
from stillhouse.models.reader import vocabulary
from stillhouse.models.rules import search_of
from stillhouse.numerics.sequences import Smoothing, closest
from stillhouse.signals.decoded import Decoded as Text
from stillhouse.signals.decoded import DecodedStore, decode_missing, filtered
from stillhouse.tasks.written import Written


@dataclass(frozen=True)
class Decoded:
    """The text to be learnt from of each row of a pool, None where there is none. `dropped`
    counts those that were left out, by reason."""

    texts: list[str | None]
    dropped: dict[str, int] = field(default_factory=dict)

    @property
    def texts_left(self) -> int:
        return sum(text is not None for text in self.texts)


def searching(config: DecodeConfig, precision: Precision, teacher: PreTrainedModel) -> Decoding:
    """How the teacher's texts are looked for."""
    search = search_of(teacher, beams=config.beams, length_penalty=config.length_penalty)
    beams = max(search.beams, config.best or 1)
    return Decoding(
        beams=beams,
        best=config.best or beams,
        length_penalty=search.length_penalty,
        early_stopping=search.early_stopping,  # pyright: ignore[reportArgumentType]
        max_tokens=config.max_tokens,
        relative_max=None if config.max_tokens else (2.0, 10.0),
        max_batch_tokens=config.batch_tokens * beams,
        precision=precision,
    )


def decoded(
    setup: Setup, pool: Pool, theirs: Written, progress: Progress, *, choose: bool
) -> Decoded:
    """The teacher's best text to each row's source; with `choose`, of its best the closest to the
    row's own. Decoded now where the store lacks them. `theirs`: the rows in the teacher's tokens.

    Raises UsageError where no text is left to learn from.
    """
    config = setup.config.decode
    examples = list(pool)
    sources = [each.text for each in examples]
    keys = b"".join(content_key(source, None) for source in sources)
    keys_N2 = np.frombuffer(keys, "<u8").reshape(-1, 2)
    store = _decoded(setup, keys_N2, theirs, progress)
    best = [store.read(key)[: config.best] for key in keys_N2]
    if choose:
        with progress.stage("choosing the closest texts", len(best), "sources") as advance:
            for place, answer in enumerate(theirs.answers):
                best[place] = _closest(best[place], answer, config.smoothing)
                advance(1)
    first = [texts[0] if texts else None for texts in best]
    ratio = config.ratio if theirs.pairs else None
    kept_N, dropped = filtered(first, sources, lengths=ratio)
    texts = [t.text if t and keep else None for t, keep in zip(first, kept_N, strict=True)]
    found = Decoded(texts, dropped)
    if not found.texts_left:
        raise UsageError(
            f"none of the teacher's {len(texts):,} texts is fit to learn from ({_told(dropped)}): "
            "is it trained for this task?"
        )
    left_out = f"; left out: {_told(dropped)}" if dropped else ""
    progress.note(f"{found.texts_left:,} of the teacher's {len(texts):,} texts{left_out}")
    return found


def _told(dropped: dict[str, int]) -> str:
    return ", ".join(f"{count:,} {reason}" for reason, count in dropped.items())


def _closest(texts: list[Text], gold: str | None, smoothing: Smoothing) -> list[Text]:
    """The text closest to the gold one by smoothed sentence BLEU of words; none without a gold
    one."""
    if gold is None or not texts:
        return []
    at = closest([each.text.split() for each in texts], gold.split(), smoothing=smoothing)
    return [texts[at]]


def _decoded(
    setup: Setup, keys_N2: np.ndarray, theirs: Written, progress: Progress
) -> DecodedStore:
    """The store with the teacher's texts to all sources, written now where it lacks them."""
    config, tokenizer = setup.config.decode, setup.teacher_tokenizer
    how = searching(config, setup.config.label.precision, setup.teacher)
    identity: dict[str, object] = {
        "teacher": fingerprint(setup.teacher),
        "tokenizer": tokens_identity(tokenizer),
        "words": repr(vocabulary(setup.teacher, pad_id=pad_id(tokenizer), choices=theirs.width)),
        "max_length": setup.teacher_length,
        "separator": setup.config.data.separator,
        "search": how.model_dump(mode="json", exclude={"max_batch_tokens"}),
    }
    store = DecodedStore(setup.store, identity)
    lacking = int(store.missing(keys_N2).sum())
    if not lacking:
        progress.note(f"the teacher has written to all {len(keys_N2):,} sources before")
        return store
    words = vocabulary(setup.teacher, pad_id=pad_id(tokenizer), choices=theirs.width)
    prompts = theirs.prompts(np.arange(len(theirs)))
    with progress.stage("decoding by the teacher", len(keys_N2), "texts") as advance:
        decode_missing(
            setup.teacher, tokenizer, store, keys_N2, prompts, how, words, progress=advance
        )
    return store
