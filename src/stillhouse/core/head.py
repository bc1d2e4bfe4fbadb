"""A vocabulary's scores that are not multiplied out: states of rows, and the head that scores them.

Axes: N scored rows, K choices scored, H hidden, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor


@dataclass(frozen=True)
class Head:
    """softcap tanh(scale (hidden @ weight.T + bias) / softcap), without a softcap what is in its
    tanh; of the first `choices` rows of the weight (a padded vocabulary has more)."""

    weight_VH: Float[Tensor, "V H"]
    bias_V: Float[Tensor, " V"] | None = None
    scale: float = 1.0
    softcap: float | None = None
    choices: int | None = None

    @property
    def width(self) -> int:
        """K."""
        return len(self.weight_VH) if self.choices is None else self.choices

    @property
    def parameters(self) -> tuple[Tensor, Tensor | None]:
        """Weight and bias of the choices that are scored."""
        bias_K = None if self.bias_V is None else self.bias_V[: self.width]
        return self.weight_VH[: self.width], bias_K

    def transform(self, products_NK: Tensor) -> Tensor:
        """Scores from hidden @ weight.T + bias."""
        found_NK = products_NK if self.scale == 1.0 else products_NK * self.scale
        if self.softcap is None:
            return found_NK
        return (found_NK / self.softcap).tanh() * self.softcap

    def __call__(self, hidden_NH: Float[Tensor, "N H"]) -> Float[Tensor, "N K"]:
        """Scores, float32 (float64 of states that are)."""
        weight_KH, bias_K = self.parameters
        products_NK = torch.nn.functional.linear(hidden_NH, weight_KH, bias_K)
        wide = products_NK if products_NK.dtype == torch.float64 else products_NK.float()
        return self.transform(wide)


@dataclass(frozen=True)
class Factored:
    """N rows of scores as what they are made of. `precision` bf16: the product is taken in it."""

    hidden_NH: Float[Tensor, "N H"]
    head: Head
    precision: str = "float32"

    def __len__(self) -> int:
        return len(self.hidden_NH)

    @property
    def width(self) -> int:
        return self.head.width

    def part(self, rows: slice) -> Factored:
        return replace(self, hidden_NH=self.hidden_NH[rows])

    def dense(self) -> Float[Tensor, "N K"]:
        """All scores, float32."""
        device = self.hidden_NH.device.type
        with torch.autocast(device, dtype=torch.bfloat16, enabled=self.precision == "bf16"):
            return self.head(self.hidden_NH)
