"""The membership check: a linear head on the frozen model's last layer and its logits, which tells
questions like the owner's data from made-up ones. Krishna et al. 2020 sec. 6.1.

The features are there already when a question is answered. Different from the published one: the
pooled output, which is a function of the first token's state, is left out.

Axes: B questions, T tokens, H hidden, K choices.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from stillhouse.core.errors import ModelError
from stillhouse.core.rundir import atomic
from stillhouse.guard.settings import Features

FILE = "membership.safetensors"


@dataclass(frozen=True)
class Head:
    """A trained check of the model with this fingerprint. line: a question whose score is above it
    is odd; of owner's data kept out of training, `beyond` was the share of such."""

    states_TH: Tensor
    logits_K: Tensor
    bias: Tensor
    line: float
    beyond: float
    features: Features
    model: str

    @property
    def reads_states(self) -> bool:
        return self.features != "logits"

    def check(self, fingerprint: str) -> None:
        """Raises ModelError for another model than it was learned on."""
        if fingerprint != self.model:
            raise ModelError(
                "the membership check was learned on another model: stillhouse guard learn makes "
                "one for this"
            )

    def scores(self, states_BTH: Tensor | None, mask_BT: Tensor, logits_BK: Tensor) -> Tensor:
        """How odd questions look, above 0 where they are, B. Tokens beyond T don't count."""
        return self.raw(states_BTH, mask_BT, logits_BK) - self.line

    def raw(self, states_BTH: Tensor | None, mask_BT: Tensor, logits_BK: Tensor) -> Tensor:
        """The linear function itself."""
        found_B = self.bias.expand(len(logits_BK)).clone()
        if self.features != "last":
            found_B = found_B + logits_BK @ self.logits_K
        if states_BTH is not None and self.reads_states:
            length = min(states_BTH.shape[1], len(self.states_TH))
            held_BTH = states_BTH[:, :length] * mask_BT[:, :length, None]
            found_B = found_B + torch.einsum("bth,th->b", held_BTH, self.states_TH[:length])
        return found_B

    def save(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        said = {
            "line": self.line, "beyond": self.beyond, "features": self.features, "model": self.model
        }  # fmt: skip
        tensors = {
            "states": self.states_TH.contiguous(), "logits": self.logits_K.contiguous(),
            "bias": self.bias.contiguous(),
        }  # fmt: skip
        with atomic(folder / FILE) as temporary:
            save_file(tensors, temporary, metadata={"check": json.dumps(said)})

    @classmethod
    def load(cls, folder: Path) -> Head:
        """Raises ModelError."""
        try:
            with safe_open(folder / FILE, framework="pt") as file:
                said = json.loads((file.metadata() or {})["check"])
                states, logits, bias = (file.get_tensor(n) for n in ("states", "logits", "bias"))
        except FileNotFoundError:
            raise ModelError(f"{folder} has no {FILE}: stillhouse guard learn makes it") from None
        except (SafetensorError, KeyError, ValueError) as error:
            raise ModelError(f"{folder / FILE} is no membership check: {error}") from None
        return cls(states, logits, bias, **said)
