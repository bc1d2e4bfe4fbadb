"""What a generator writes: by beam search, greedily or drawn, many texts at a time; and how likely
given texts are to it.

Texts of similar length go together. What a text gets does not depend on those beside it, up to
rounding.

Axes: N texts, S texts of a batch, T tokens, V vocabulary that is scored.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from jaxtyping import Float
from transformers import PreTrainedModel

from stillhouse.core.errors import DataError, UsageError
from stillhouse.core.precision import Settled, precision_of
from stillhouse.core.progress import Advance
from stillhouse.core.terms import Precision
from stillhouse.models.limits import positions
from stillhouse.models.reader import (
    Ids,
    Reader,
    Vocabulary,
    evaluating,
    log_probabilities,
    padded,
    vocabulary,
)
from stillhouse.models.search import Decoding, Hypothesis, search

SHORT = 16  # a source counts as that long at least when batches are cut


def decode(
    model: PreTrainedModel,
    sources: Sequence[Ids],
    config: Decoding,
    *,
    pad_id: int,
    choices: int | None = None,
    suppressed: Sequence[int] = (),
    forced_bos: int | None = None,
    rng: np.random.Generator | None = None,
    progress: Advance = lambda texts: None,
) -> list[list[Hypothesis]]:
    """Of each source (for a causal model: prompt) the `best` texts, best first; in the sources'
    order. Fewer where no more can be written. See `Vocabulary` for the tokens.

    Raises DataError for a source that is empty or too long for the model, ModelError, and RunError
    where the scores are not finite.
    """
    words = vocabulary(
        model, pad_id=pad_id, choices=choices, suppressed=suppressed, forced_bos=forced_bos
    )
    found: list[list[Hypothesis]] = [[] for _ in sources]
    for rows, texts in decode_batches(model, sources, config, words, rng=rng):
        for row, each in zip(rows, texts, strict=True):
            found[row] = each
        progress(len(rows))
    return found


def decode_batches(
    model: PreTrainedModel,
    sources: Sequence[Ids],
    config: Decoding,
    words: Vocabulary,
    *,
    rng: np.random.Generator | None = None,
) -> Iterator[tuple[np.ndarray, list[list[Hypothesis]]]]:
    """`decode`, batch by batch, longest sources first: positions in `sources`, and their texts."""
    lengths_N = np.array([len(each) for each in sources], np.int64)
    limits_N = _limits(model, lengths_N, config)
    if config.sample and rng is None:
        raise UsageError("drawing texts needs a generator: give rng")
    seeds_N = None if rng is None else rng.integers(2**63, size=len(sources))
    budget = max(1, config.max_batch_tokens // config.beams)
    for rows in _batches(np.maximum(lengths_N, SHORT), budget):
        seeds = seeds_N[rows] if config.sample and seeds_N is not None else None
        with evaluating(model):
            reader = Reader(model, [sources[row] for row in rows], words, config.precision)
            found = search(reader, limits_N[rows], config, words, seeds)
        yield rows, found


def _limits(model: PreTrainedModel, lengths_N: np.ndarray, config: Decoding) -> np.ndarray:
    """How many tokens may be written for sources of these lengths."""
    if not lengths_N.all():
        raise DataError("a source is empty: give it a token at least, or leave it out")
    limits_N = config.limits(lengths_N)
    places = positions(model)
    if places is not None:
        of_encoder = bool(model.config.is_encoder_decoder)
        if len(lengths_N) and (longest := lengths_N.max()) >= places + of_encoder:
            raise DataError(
                f"a source has {longest} tokens, the model {places} positions: cut it shorter"
            )
        limits_N = np.minimum(limits_N, places - (0 if of_encoder else lengths_N))
    if len(limits_N) and limits_N.max() == np.iinfo(np.int64).max:
        raise UsageError("nothing limits the texts' length: set max_tokens or relative_max")
    return limits_N


def _batches(lengths_N: np.ndarray, budget: int) -> Iterator[np.ndarray]:
    """Positions, longest first, in batches of at most `budget` padded tokens, or of one text."""
    order = np.argsort(-lengths_N, kind="stable")
    start = 0
    while start < len(order):
        size = max(1, budget // int(lengths_N[order[start]]))
        yield order[start : start + size]
        start += size


def sequence_logp(
    model: PreTrainedModel,
    sources: Sequence[Ids],
    targets: Sequence[Ids],
    *,
    pad_id: int,
    choices: int | None = None,
    max_batch_tokens: int = 4096,
    precision: Precision = "auto",
) -> Float[np.ndarray, " N"]:
    """Log-probability of each whole target given its source, nats: give the end token with it.

    Of what `decode` found it is the `logp`: exp of it is the mode's probability (Kim & Rush 2016).
    `max_batch_tokens`: source and target tokens of a batch, padded.
    """
    words = vocabulary(model, pad_id=pad_id, choices=choices)
    lengths_N = np.array([len(s) + len(t) for s, t in zip(sources, targets, strict=True)])
    found_N = np.zeros(len(sources))
    for rows in _batches(lengths_N, max_batch_tokens):
        given, wanted = [sources[row] for row in rows], [targets[row] for row in rows]
        with evaluating(model):
            found_N[rows] = _sum_logp(model, given, wanted, words, precision_of(precision))
    return found_N


def _sum_logp(
    model: PreTrainedModel,
    sources: Sequence[Ids],
    targets: Sequence[Ids],
    words: Vocabulary,
    precision: Settled,
) -> list[float]:
    device = model.device
    if model.config.is_encoder_decoder:
        ids_ST, mask_ST = padded(sources, words.pad)
        assert words.start is not None, "vocabulary() has seen to it"
        before = [np.append([words.start], target[:-1]) for target in targets]
        inputs = {"decoder_input_ids": padded(before, words.pad)[0].to(device)}
        starts = [0] * len(sources)
    else:
        whole = [np.append(s, t[:-1]) for s, t in zip(sources, targets, strict=True)]
        (ids_ST, mask_ST), inputs = padded(whole, words.pad), {}
        starts = [len(source) - 1 for source in sources]
    with torch.autocast(device.type, dtype=torch.bfloat16, enabled=precision == "bf16"):
        scores_STV = model(
            input_ids=ids_ST.to(device),
            attention_mask=mask_ST.to(device),
            use_cache=False,
            **inputs,
        ).logits
    found = []
    for row, (start, target) in enumerate(zip(starts, targets, strict=True)):
        logp_TV = log_probabilities(scores_STV[row, start : start + len(target)], words.choices)
        wanted_T1 = torch.from_numpy(np.asarray(target, np.int64))[:, None].to(device)
        found.append(float(logp_TV.gather(1, wanted_T1).double().sum()))
    return found
