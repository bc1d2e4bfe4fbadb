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
        if self.width == len(self.weight_VH):  # a slice's gradient would be another V x H
            return self.weight_VH, self.bias_V
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
        return self.scores(torch.nn.functional.linear(hidden_NH, *self.parameters))

    def scores(self, products_NK: Tensor) -> Tensor:
        """Scores from hidden @ weight.T + bias, float32 (float64 of products that are)."""
        wide = products_NK if products_NK.dtype == torch.float64 else products_NK.float()
        return self.transform(wide)

    def bend_(self, scores_NK: Tensor) -> Tensor | float:
        """Derivative of `transform` where it gave these scores, which are lost."""
        if self.softcap is None:
            return self.scale
        return scores_NK.div_(self.softcap).square_().neg_().add_(1.0).mul_(self.scale)


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

    @property
    def dtype(self) -> torch.dtype:
        """What the products are taken in."""
        return torch.bfloat16 if self.precision == "bf16" else self.head.weight_VH.dtype

    def products(self, weight_KH: Tensor, out_NK: Tensor) -> Tensor:
        """hidden @ weight.T + bias, into rows of `out_NK`, with no gradient. The weight is given
        in `dtype`, so that it is turned into it once for many parts."""
        with torch.no_grad():
            found_NK = out_NK[: len(self)]
            torch.mm(self.hidden_NH.to(self.dtype), weight_KH.T, out=found_NK)
            bias_K = self.head.parameters[1]
            return found_NK if bias_K is None else found_NK.add_(bias_K)

    def dense(self) -> Float[Tensor, "N K"]:
        """All scores, float32."""
        device = self.hidden_NH.device.type
        with torch.autocast(device, dtype=torch.bfloat16, enabled=self.precision == "bf16"):
            return self.head(self.hidden_NH)
