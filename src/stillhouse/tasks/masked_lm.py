"""Masked language modelling: a corpus whose scored rows are the masked tokens.

Axes: N scored rows, K choices (the vocabulary), B blocks, T tokens, V ids.
"""

from __future__ import annotations

import math
from functools import cached_property
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from stillhouse.core.config import MaskingConfig
from stillhouse.core.errors import DataError, RunError
from stillhouse.core.seeding import generator
from stillhouse.core.types import NO_LABEL, Batch, Predictions
from stillhouse.data.corpus import Blocks
from stillhouse.data.masking import choose, corrupt
from stillhouse.numerics import metrics
from stillhouse.tasks.base import Data
from stillhouse.tasks.written import ranges


class MaskedBlocks:
    """Blocks as the loop sees them: `len` and `lengths` are of blocks, `gold_N` of masked tokens.

    With a generator, a batch's mask is drawn anew, over the whole batch (DistilBERT), by frequency
    if the config says so (`counts`: of these blocks unless others are given). Without one it is
    fixed: a block's mask follows from its content key, in any batch and for every model.
    """

    def __init__(
        self,
        blocks: Blocks,
        config: MaskingConfig,
        tokenizer: PreTrainedTokenizerBase,
        *,
        counts: Int[np.ndarray, " V"] | None = None,
    ) -> None:
        if not isinstance(tokenizer.mask_token_id, int):
            raise DataError("the tokenizer has no mask token: take a masked language model's")
        self._blocks, self._config, self._mask_id = blocks, config, tokenizer.mask_token_id
        ids = {*tokenizer.get_vocab().values()}
        self._ordinary = np.array(sorted(ids - blocks.special), dtype=np.int64)
        self._text_V = np.zeros(max(ids) + 1, dtype=bool)
        self._text_V[self._ordinary] = True
        self._weights_V: np.ndarray | None = None
        if config.frequency_power is not None:
            counts = blocks.counts() if counts is None else counts
            if len(counts) != len(self._text_V):
                raise ValueError(f"counts of {len(counts)} ids, but there are {len(self._text_V)}")
            self._weights_V = np.maximum(counts, 1.0) ** config.frequency_power

    def __len__(self) -> int:
        return len(self._blocks)

    @property
    def lengths(self) -> np.ndarray:
        return self._blocks.lengths

    @property
    def keys_N2(self) -> np.ndarray:
        return self._blocks.keys_N2

    def batch(self, rows: np.ndarray, rng: np.random.Generator | None = None) -> Batch:
        """The blocks at `rows`, masked; `scored_N` are the masked tokens' places in B x T, rising,
        and `gold_N` what stood there."""
        inputs = self._blocks.inputs(rows)
        ids_BT = inputs["input_ids"].numpy()
        if rng is None:
            seen_BT, places = self._fixed(ids_BT, rows)
        else:
            maskable_BT = self._maskable(ids_BT, self.lengths[rows])
            weights_BT = None if self._weights_V is None else self._weights_V[ids_BT]
            places = choose(maskable_BT, self._config.share, rng, weights_BT=weights_BT)
            seen_BT = self._corrupt(ids_BT, places, rng)
        gold_N = torch.from_numpy(ids_BT.reshape(-1)[places])
        masked = {**inputs, "input_ids": torch.from_numpy(seen_BT)}
        return Batch(masked, rows, gold_N, torch.from_numpy(places))

    @property
    def gold_N(self) -> Tensor:
        """What the fixed masks hide, of all blocks in their order."""
        return torch.from_numpy(self._gold[0])

    def places(self, rows: np.ndarray) -> np.ndarray:
        """Where in `gold_N` the scored rows of `batch(rows)` stand, in its order."""
        return ranges(self._gold[1], rows)

    @cached_property
    def _gold(self) -> tuple[np.ndarray, np.ndarray]:
        """Gold of all blocks, and where each block's begins in it (one more at the end)."""
        found, counts = [np.empty(0, np.int64)], [0]
        for row in range(len(self)):
            gold_N = self.batch(np.array([row])).gold_N
            assert gold_N is not None
            found.append(gold_N.numpy())
            counts.append(len(gold_N))
        return np.concatenate(found), np.cumsum(counts)

    @property
    def groups_N(self) -> np.ndarray:
        """The block of each masked token: those of one text are no independent evidence."""
        return np.repeat(np.arange(len(self)), np.diff(self._gold[1]))

    def _fixed(self, ids_BT: np.ndarray, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """What is seen, and the masked places, by each block's content alone."""
        seen_BT, places = ids_BT.copy(), [np.empty(0, np.int64)]
        for i, row in enumerate(rows):
            length = self.lengths[row : row + 1]
            ids_1T = ids_BT[i : i + 1, : length[0]]
            rng = generator(0, "mask", self.keys_N2[row].tobytes().hex())
            inside = choose(self._maskable(ids_1T, length), self._config.share, rng)
            seen_BT[i, : length[0]] = self._corrupt(ids_1T, inside, rng)[0]
            places.append(inside + i * ids_BT.shape[1])
        return seen_BT, np.concatenate(places)

    def _maskable(self, ids_BT: np.ndarray, lengths_B: np.ndarray) -> np.ndarray:
        real_BT = np.arange(ids_BT.shape[1])[None, :] < lengths_B[:, None]
        return real_BT & self._text_V[ids_BT]

    def _corrupt(
        self, ids_BT: np.ndarray, places: np.ndarray, rng: np.random.Generator
    ) -> np.ndarray:
        return corrupt(
            ids_BT,
            places,
            rng,
            mask_id=self._mask_id,
            ordinary=self._ordinary,
            mask=self._config.mask,
            random=self._config.random,
        )


class MaskedLM:
    """Guessing masked tokens: accuracy, and perplexity exp(-mean log-probability of the gold)."""

    name = "masked_lm"
    judges_texts = False

    def __init__(self, tokenizer: PreTrainedTokenizerBase, *, width: int | None = None) -> None:
        """`width`: of the model's output, where it has more ids than the tokenizer."""
        self.metric = "accuracy"
        self.choices: list[str] = []
        self.labels: list[str] = []
        self.width = max(tokenizer.get_vocab().values()) + 1 if width is None else width
        if self.width > 2**24:  # beyond it `reduce` would round ids
            raise ValueError(f"a vocabulary has at most {2**24} ids, got {self.width}")
        self._tokenizer = tokenizer

    def gold(self, labels: np.ndarray) -> Tensor:
        """No gold for any row: a corpus has no labels, its gold is the text (MaskedBlocks)."""
        return torch.full((len(labels),), NO_LABEL)

    def has_gold(self, gold_N: Tensor) -> Tensor:
        return gold_N != NO_LABEL

    def reduce(
        self, scores_NK: Float[Tensor, "N K"], gold_N: Int[Tensor, " N"]
    ) -> Float[Tensor, "N 2"]:
        """What is kept of a batch's scores, float32: the likeliest id (exact: ids are below 2^24)
        and the log-probability of the gold one, nats."""
        logp_NK = scores_NK.float().log_softmax(-1)
        logp_N = logp_NK.gather(1, gold_N[:, None])[:, 0]
        return torch.stack([scores_NK.argmax(-1).float(), logp_N], dim=1)

    def predictions(self, scores_NK: np.ndarray, data: Data) -> Predictions:
        """Raises RunError where there is nothing to score, or a score is not a number."""
        answers_N, logp_N = scores_NK[:, 0].astype(np.int64), scores_NK[:, 1]
        if not len(logp_N):
            raise RunError("no token of the text can be masked: is it in the model's language?")
        if bad := int(np.isnan(logp_N).sum()):
            raise RunError(f"the model's answers are not finite in {bad} of {len(logp_N)} rows")
        return Predictions(answers_N, None, data.gold_N.numpy(), logp_N)

    def metric_of(self, answers_N: np.ndarray, gold_N: np.ndarray, name: str) -> float:
        if name != "accuracy":
            raise ValueError(f"answers have an accuracy, no {name!r}")
        return metrics.accuracy(answers_N, gold_N)

    def score(self, predictions: Predictions) -> dict[str, float]:
        """accuracy; perplexity, inf where that is beyond any float."""
        assert predictions.logp_N is not None
        accuracy = self.metric_of(predictions.answers_N, predictions.gold_N, "accuracy")
        try:
            perplexity = math.exp(-float(predictions.logp_N.mean(dtype=np.float64)))
        except OverflowError:
            perplexity = math.inf
        return {"accuracy": accuracy, "perplexity": perplexity}

    def agreement(self, mine_N: np.ndarray, theirs_N: np.ndarray) -> float:
        return float((mine_N == theirs_N).mean())

    def show(self, answer: Any) -> str:
        token = self._tokenizer.convert_ids_to_tokens(int(answer))
        return token if isinstance(token, str) else f"id {int(answer)}"
