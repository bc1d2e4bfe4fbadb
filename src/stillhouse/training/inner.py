"""Terms between inner layers of student and teacher: which taps they read, and what they compare.

Axes: B examples, T tokens, H hidden, A heads, D width of a head.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from stillhouse.core.errors import UsageError
from stillhouse.core.terms import InnerTermConfig
from stillhouse.core.types import Batch, Signal, StudentOutput, Tap, states_of
from stillhouse.models.taps import Geometry
from stillhouse.numerics import matching as m
from stillhouse.numerics.layers import layer_map

PARTS = ("queries", "keys", "values")
# What a term uses where nothing is said: its paper's.
MAPS = {
    "attention": "uniform",
    "hidden": "uniform",
    "patience": "skip",
    "gram": "uniform",
    "cosine": "final",
    "attention_kl": "final",
    "relations": "final",
}
ATTENTION = ("attention", "attention_kl", "relations")
PROJECTED = ("hint", "patience", "embedding", "hidden", "cosine")
OPTIONS = {"of": ("relations",), "heads": ("relations",), "normalise": ("patience",)}
VARIANTS = ("hint", "patience", "embedding", "hidden")

Compare = Callable[[Tensor, Tensor, Tensor | None], Tensor]  # student, teacher, mask -> B


@dataclass(frozen=True)
class Inside:
    """What inner terms need to know of both models. `same_tokens`: whether they cut texts alike."""

    student: Geometry
    teacher: Geometry
    same_tokens: bool = True


@dataclass(frozen=True)
class InnerTerm:
    """A term's parts: taps of student and teacher pair by pair, and how a pair is compared.
    `bridge` takes the student's width to the teacher's."""

    pairs: tuple[tuple[Tap, Tap], ...]
    compare: Compare
    bridge: nn.Linear | None = None
    scale: float = 1.0
    first_token_only: bool = False

    def __call__(
        self, output: StudentOutput, signal: Signal | None, _: Batch, __: float
    ) -> tuple[Tensor, None]:
        """The sum over the pairs, an example each."""
        mine, theirs = output.states, states_of(signal)
        assert mine is not None, "the forward reads what the objective needs"
        mask_BT = None if bool(mine.mask_BT.all()) else mine.mask_BT  # cheaper where all are real
        found = []
        for student, teacher in self.pairs:
            x, y = mine[student], theirs[teacher]
            if self.first_token_only:
                x, y = x[:, :1], y[:, :1]
            if self.bridge is not None:
                x = nn.functional.linear(
                    x, self.bridge.weight.to(x.dtype), _cast(self.bridge.bias, x.dtype)
                )
            found.append(self.compare(x, y.to(x.dtype), mask_BT))
        return torch.stack(found).sum(0) * self.scale, None


def _cast(bias: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    return None if bias is None else bias.to(dtype)


def inner_term(config: InnerTermConfig, inside: Inside, shared: dict[str, nn.Linear]) -> InnerTerm:
    """The parts of one term. Raises UsageError where the two models can't be compared so.

    `shared`: bridges that several terms use (TinyBERT's reference code has one for all of them).
    """
    _check_options(config)
    kind = config.kind
    if not inside.same_tokens and kind != "patience":
        raise UsageError(
            f"{kind} term: it compares token by token, and the student has another tokenizer or "
            "length than its teacher: use patience (first token only), or the teacher's tokenizer"
        )
    if kind in ATTENTION and not (inside.student.heads and inside.teacher.heads):
        whose = "teacher" if inside.student.heads else "student"
        raise UsageError(f"{kind} term: the {whose} has no attention to read")
    layers = _layers(config, inside)
    what: Any = {"attention": "scores", "attention_kl": "scores"}.get(kind, "hidden")
    if kind == "relations":
        return _relations(config, inside, layers)
    pairs = tuple((Tap(what, s), Tap(what, t)) for s, t in layers)
    if kind == "gram":
        return InnerTerm(pairs, lambda x, y, mask: m.gram_mse(x, x, y, y, mask))
    if what == "scores":
        _check_heads(kind, inside)
        _check_local(kind, inside, layers)
        compare = m.attention_mse if kind == "attention" else m.attention_kl
        return InnerTerm(pairs, compare)
    mean = kind == "patience" and config.variant == "reference"  # its code's mse_loss
    bridge = _bridge(config, inside, shared)
    scale = 1.0 / len(pairs) if mean else 1.0
    return InnerTerm(pairs, _comparison(config), bridge, scale, kind == "patience")


def taps_of(term: InnerTerm) -> tuple[frozenset[Tap], frozenset[Tap]]:
    """What a term reads of the student, and of the teacher."""
    mine: set[Tap] = set()
    theirs: set[Tap] = set()
    for student, teacher in term.pairs:
        mine.add(student)
        theirs.add(teacher)
    return frozenset(mine), frozenset(theirs)


def _check_options(config: InnerTermConfig) -> None:
    for option, kinds in OPTIONS.items():
        if getattr(config, option) is not None and config.kind not in kinds:
            raise UsageError(f"a {config.kind} term takes no {option}: {', '.join(kinds)} does")
    if config.projection is not None and config.kind not in PROJECTED:
        raise UsageError(f"a {config.kind} term needs no projection: it compares tokens")
    if config.variant == "reference" and config.kind not in VARIANTS:
        raise UsageError(
            f"a {config.kind} term has no reference variant: {', '.join(VARIANTS)} have one"
        )
    if config.kind == "embedding" and config.layers is not None:
        raise UsageError("an embedding term compares the embeddings (layer 0): it takes no layers")


def _layers(config: InnerTermConfig, inside: Inside) -> list[tuple[int, int]]:
    student, teacher = inside.student.layers, inside.teacher.layers
    if config.kind == "embedding":
        return [(0, 0)]
    asked = config.layers
    if asked is None and config.kind == "hint":  # FitNets: the middle ones
        return [(max(1, student // 2), max(1, teacher // 2))]
    try:
        found = layer_map(MAPS[config.kind] if asked is None else asked, student, teacher)
    except ValueError as error:
        raise UsageError(f"{config.kind} term: {error}") from None
    if not found:
        raise UsageError(f"{config.kind} term: its list of layers is empty")
    lowest = 0 if config.kind in ("hint", "patience", "hidden", "cosine", "gram") else 1
    if any(min(pair) < lowest for pair in found):
        raise UsageError(f"{config.kind} term: the embeddings (layer 0) have no attention")
    return found


def _comparison(config: InnerTermConfig) -> Compare:
    if config.kind == "hint":
        return lambda x, y, mask: m.hint(x, y, mask, variant=config.variant)
    if config.kind == "patience":
        normalise = config.normalise is not False
        return lambda x, y, _: m.patience(x, y, normalise=normalise, variant=config.variant)
    return m.cosine if config.kind == "cosine" else m.hidden_mse


def _bridge(
    config: InnerTermConfig, inside: Inside, shared: dict[str, nn.Linear]
) -> nn.Linear | None:
    """The projection of a term, if it has one. The reference code of TinyBERT has one with a bias
    for the embeddings and all layers, whatever the widths; its paper one for each of the two."""
    mine, theirs = inside.student.width, inside.teacher.width
    reference = config.variant == "reference" and config.kind in ("embedding", "hidden")
    default = "always" if reference or config.kind == "hint" else "auto"
    asked = config.projection or default
    if asked == "never":
        if mine != theirs:
            raise UsageError(
                f"{config.kind} term: the student is {mine} wide and the teacher {theirs}: "
                "set its projection to auto"
            )
        return None
    if asked == "auto" and mine == theirs:
        return None
    if reference:
        return shared.setdefault("reference", nn.Linear(mine, theirs))
    return nn.Linear(mine, theirs, bias=config.kind == "hint")


def _check_heads(kind: str, inside: Inside) -> None:
    mine, theirs = inside.student.heads, inside.teacher.heads
    if mine != theirs:
        raise UsageError(
            f"{kind} term: the student has {mine} attention heads and the teacher {theirs}: it "
            "needs equally many; a relations term (method minilm2) takes any"
        )


def _check_local(kind: str, inside: Inside, layers: list[tuple[int, int]]) -> None:
    """Scores of tokens outside a layer's window are never used: there is nothing to learn."""
    for mine, theirs in layers:
        if mine in inside.student.local or theirs in inside.teacher.local:
            whole = sorted(set(range(1, inside.teacher.layers + 1)) - inside.teacher.local)
            raise UsageError(
                f"{kind} term: student layer {mine} or teacher layer {theirs} attends to a window "
                f"of tokens only; the teacher's layers {', '.join(map(str, whole)) or '(none)'} "
                "attend to all: pair such layers, or use a relations term"
            )


def _relations(config: InnerTermConfig, inside: Inside, layers: list[tuple[int, int]]) -> InnerTerm:
    """MiniLM's relations among queries, keys or values, re-split into as many heads on both sides:
    the sum over what is related and over layers, each a mean over heads and tokens."""
    kinds: tuple[Any, ...] = config.of or PARTS
    widths = inside.student.attention_width, inside.teacher.attention_width
    heads = config.heads or inside.teacher.heads
    if any(width % heads for width in widths):
        raise UsageError(
            f"relations term: {heads} relation heads don't divide the widths "
            f"{widths[0]} (student) and {widths[1]} (teacher): set its heads to a number that does"
        )
    pairs = tuple((Tap(what, s), Tap(what, t)) for s, t in layers for what in kinds)

    def compare(x: Tensor, y: Tensor, mask_BT: Tensor | None) -> Tensor:
        return m.relation_kl(m.split_heads(x, heads), m.split_heads(y, heads), mask_BT)

    return InnerTerm(pairs, compare)
