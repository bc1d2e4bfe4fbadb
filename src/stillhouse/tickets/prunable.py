"""Which weights of a model may be pruned, and which of these feed its output.

For an encoder these are the matrices of its blocks and the pooler's (Chen et al. 2020,
BERT-Tickets): not embeddings, norms, biases, or the task's head. For other models, every linear
and convolution layer's weight (Frankle & Carbin 2019).
"""

from __future__ import annotations

from collections.abc import Sequence
from fnmatch import fnmatchcase
from typing import Any

from torch import Tensor, nn

from stillhouse.core.errors import ModelError, UsageError
from stillhouse.models.student import blocks

TYPES = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)


def weights(model: nn.Module) -> dict[str, Tensor]:
    """The weights of linear and convolution layers by name; shared ones once."""
    layers = {id(m.weight) for m in model.modules() if isinstance(m, TYPES)}
    return {name: p.detach() for name, p in model.named_parameters() if id(p) in layers}


def prunable(
    model: nn.Module, *, include: Sequence[str] = (), exclude: Sequence[str] = ()
) -> dict[str, Tensor]:
    """The prunable weights by name. `include` are patterns of names in place of the usual ones,
    also of embeddings. Raises UsageError where a pattern matches nothing, or nothing is left."""
    everything = {name: p.detach() for name, p in model.named_parameters() if p.ndim >= 2}
    found = {n: p for n, p in everything.items() if _matches(n, include)} or _usual(model)
    for pattern in (*include, *exclude):
        if not any(fnmatchcase(name, pattern) for name in everything):
            close = ", ".join(list(_usual(model))[:3])
            raise UsageError(
                f"no weight's name matches {pattern!r}: they are like {close or 'none'}"
            )
    kept = {name: p for name, p in found.items() if not _matches(name, exclude)}
    if not kept and not exclude:
        raise UsageError(
            f"what to prune of a {type(model).__name__} is not known here: name its weights with "
            "--set prune.include='[...]'"
        )
    if not kept:
        raise UsageError("nothing is left to prune: exclude less")
    return kept


def _matches(name: str, patterns: Sequence[str]) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in patterns)


def _usual(model: Any) -> dict[str, Tensor]:
    found = weights(model)
    inside = _encoder_prefixes(model)
    if inside is None:
        return found
    return {name: p for name, p in found.items() if name.startswith(inside)}


def _encoder_prefixes(model: Any) -> tuple[str, ...] | None:
    """Where an encoder has its blocks and its pooler; None for a model without blocks."""
    try:
        place, _ = blocks(model)
    except ModelError:
        return None
    return (f"{place}.", f"{model.base_model_prefix}.pooler.")


def output_weights(model: nn.Module) -> frozenset[str]:
    """The names of the weights whose products are the model's output: the last linear layer's,
    and a tied or masked-LM head's."""
    head = getattr(model, "get_output_embeddings", lambda: None)()
    if head is not None:
        held = getattr(head, "weight", None)
        return frozenset(name for name, p in model.named_parameters() if p is held)
    return frozenset(list(weights(model))[-1:])
