"""Stages with one term left out."""

from __future__ import annotations

from collections.abc import Sequence

from stillhouse.core.config import StageConfig
from stillhouse.core.terms import AnyTerm, TermConfig
from stillhouse.training.objective import term_names

GOLD: tuple[AnyTerm, ...] = (TermConfig(kind="gold"),)


def without(configs: Sequence[StageConfig], stage: str, term: str) -> list[StageConfig] | None:
    """The stages without one term. A stage that loses its only term on answers gets gold answers
    instead (on labelled rows); one that had no other term is left out; None where none remains."""
    found: list[StageConfig] = []
    for config in configs:
        if config.name != stage:
            found.append(config)
            continue
        named = zip(term_names(config.objective), config.objective, strict=True)
        terms = tuple(each for name, each in named if name != term)
        changes: dict[str, object] = {"objective": terms}
        if gold_instead(config, term):
            changes["objective"] = (*terms, *GOLD)
            if not config.corpus:
                changes |= {"rows": "labelled", "augment": None}
        if changes["objective"]:
            found.append(config.model_copy(update=changes))
    return found or None


def gold_instead(config: StageConfig, term: str) -> bool:
    """Whether gold answers take a term's place: a stage's only term on answers."""
    named = zip(term_names(config.objective), config.objective, strict=True)
    return [name for name, each in named if isinstance(each, TermConfig)] == [term]
