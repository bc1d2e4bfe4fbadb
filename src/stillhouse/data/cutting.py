"""Documents on their way to blocks of tokens, as masked and as causal language models take them.

Axes: T tokens.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from transformers import PreTrainedTokenizerBase

from stillhouse.core.errors import DataError
from stillhouse.data.written import end_of

TAIL = 8  # tokens that the last, incomplete packed block must have to stay
SHORTEST = 12  # tokens, special ones too, that a chunked block must have (DistilBERT's)
UNKNOWN = 0.5  # share of its tokens from which on a chunked block is left out (DistilBERT's)


@dataclass(frozen=True)
class Rules:
    """How documents become blocks: `inside` tokens between a first and a last one."""

    inside: int
    packed: bool
    first: int
    last: int
    unknown: int
    causal: bool = False

    @classmethod
    def of(
        cls, tokenizer: PreTrainedTokenizerBase, *, length: int, packed: bool, causal: bool
    ) -> Rules:
        """Raises DataError where no block can be made."""
        if length < (least := TAIL if packed or causal else SHORTEST):
            raise DataError(f"blocks of {length} tokens are too short: give at least {least}")
        if causal:
            end = end_of(tokenizer)
            return cls(length, packed, end, end, -1, causal=True)
        ids = [
            next((i for i in pair if isinstance(i, int)), None)
            for pair in (
                (tokenizer.cls_token_id, tokenizer.bos_token_id),
                (tokenizer.sep_token_id, tokenizer.eos_token_id),
            )
        ]
        if ids[0] is None or ids[1] is None:
            raise DataError(
                "the tokenizer has no token for the beginning or the end of a text "
                "([CLS], <s>; [SEP], </s>): take a model that has both"
            )
        unknown = tokenizer.unk_token_id if isinstance(tokenizer.unk_token_id, int) else -1
        return cls(length - 2, packed, ids[0], ids[1], unknown)


class BlockWriter:
    """One split's blocks on their way to disk, in the form that Encoded reads."""

    def __init__(self, folder: Path, rules: Rules, stack: ExitStack) -> None:
        folder.mkdir()
        self.folder, self.rules = folder, rules
        self.file = stack.enter_context((folder / "ids.bin").open("wb"))
        self.keys, self.lengths = bytearray(), [0]
        self.carry_T = np.empty(0, "<i4")
        self.begun = False
        self.dropped: Counter[str] = Counter()

    def add(self, document_T: np.ndarray) -> None:
        """A document's ids, without special tokens around them."""
        if not len(document_T):
            return
        if self.rules.causal:
            return self._stream(document_T)
        if self.rules.packed:
            joint_T = np.full(int(self.begun), self.rules.last, "<i4")
            ids_T = np.concatenate([self.carry_T, joint_T, document_T])
            full, self.begun = len(ids_T) - len(ids_T) % self.rules.inside, True
            ids_T, self.carry_T = ids_T[:full], ids_T[full:]
        else:
            ids_T = document_T
        for start in range(0, len(ids_T), self.rules.inside):
            self._put(ids_T[start : start + self.rules.inside])

    def _stream(self, document_T: np.ndarray) -> None:
        """A language model's: the carry begins with the token before what is still to be cut."""
        length, ends = self.rules.inside, [self.rules.last]
        if not len(self.carry_T) or not self.rules.packed:
            self.carry_T = np.array([self.rules.first], "<i4")
        ids_T = np.concatenate([self.carry_T, document_T, ends]).astype("<i4")
        while len(ids_T) >= length:
            self._keep(ids_T[:length])
            ids_T = ids_T[length - 1 :]
        self.carry_T = ids_T
        if not self.rules.packed and len(ids_T) > 1:
            self._keep(ids_T)

    def _put(self, inside_T: np.ndarray) -> None:
        tokens = len(inside_T) + 2
        if not self.rules.packed:
            if tokens < SHORTEST:
                self.dropped[f"of fewer than {SHORTEST} tokens"] += 1
                return
            if np.count_nonzero(inside_T == self.rules.unknown) >= UNKNOWN * tokens:
                self.dropped["of mostly unknown tokens"] += 1
                return
        self._keep(np.concatenate([[self.rules.first], inside_T, [self.rules.last]]))

    def _keep(self, block_T: np.ndarray) -> None:
        block = block_T.astype("<i4").tobytes()
        self.file.write(block)
        self.keys += hashlib.blake2b(block, digest_size=16).digest()
        self.lengths.append(len(block_T))

    def close(self) -> None:
        if self.rules.causal:
            if self.rules.packed and len(self.carry_T) > TAIL:
                self._keep(self.carry_T)
        elif np.count_nonzero(self.carry_T != self.rules.last) >= TAIL:
            self._put(self.carry_T)
        np.save(self.folder / "offsets.npy", np.cumsum(np.array(self.lengths, np.int64)))
        np.save(self.folder / "seconds.npy", np.array(self.lengths[1:], np.int32))
        keys_N2 = np.frombuffer(bytes(self.keys), "<u8").reshape(-1, 2)
        np.save(self.folder / "keys.npy", keys_N2)
