"""Who is tried: models in folders and services at addresses, asked every question that was kept, in
the served model's own words."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stillhouse.core.errors import DataError, UsageError
from stillhouse.core.progress import Progress
from stillhouse.core.seeding import generator
from stillhouse.core.types import Example
from stillhouse.extract.prices import Tariff
from stillhouse.extract.victim import Described, is_endpoint
from stillhouse.flows.common import store_root
from stillhouse.guard.model import ServedModel
from stillhouse.guard.settings import VerifyConfig
from stillhouse.guard.trial import FORMS

BATCH = 256

Ask = Callable[[Sequence[Example]], list[str]]


@dataclass(frozen=True)
class Candidate:
    """A suspect or a control: its name, what stands for it, and how it is asked."""

    name: str
    fingerprint: str
    control: bool
    ask: Ask


@dataclass(frozen=True)
class Served:
    """What is known of the served model: its name, its task, and its labels."""

    name: str
    task: str
    choices: Sequence[str]


def said_by(
    each: Candidate, whole: Sequence[Example], progress: Progress
) -> dict[str, list[str]]:  # fmt: skip
    """What a suspect says of all kept questions, form by form."""
    found: dict[str, list[str]] = {}
    for form, examples in zip(FORMS, (whole, [changed(e, 0) for e in whole]), strict=True):
        with progress.stage(f"asking {each.name}, {form}", len(examples), "questions") as step:
            said: list[str] = []
            for at in range(0, len(examples), BATCH):
                few = examples[at : at + BATCH]
                said += each.ask(few)
                step(len(few))
        found[form] = said
    return found


def changed(example: Example, seed: int) -> Example:
    """A near-duplicate: of single texts and pairs one word is left out of the first text (of one
    word: said twice), and two that follow each other change places; of a question only the
    question changes, so that its answer stays."""
    rng = generator(seed, "changed", example.text, example.pair or "")
    words = example.text.split()
    if len(words) < 2:
        return Example(" ".join(words * 2), example.pair)
    if len(words) > 2:
        words.pop(int(rng.integers(len(words))))
    at = int(rng.integers(len(words) - 1)) if len(words) > 1 else 0
    words[at : at + 2] = reversed(words[at : at + 2])
    return Example(" ".join(words), example.pair)


def candidate(name: str, config: VerifyConfig, served: Served, *, control: bool) -> Candidate:
    """A model's folder or an API's description. Raises UsageError, ModelError."""
    if is_endpoint(name):
        return _api(name, config, served, control=control)
    model = ServedModel(
        name, precision=config.precision, trust_remote_code=config.trust_remote_code
    )
    if model.task != served.task:
        raise UsageError(f"{name} is a {model.task}, and {served.name} a {served.task}")
    ours = _names(name, model.choices, served, config.label_map)

    def ask(examples: Sequence[Example]) -> list[str]:
        return [
            each.text if each.text is not None else ours[_top(model, each.probabilities_K)]
            for each in model.answers(examples)
        ]

    return Candidate(Path(name).name, model.fingerprint, control, ask)


def _top(model: ServedModel, shares_K: Any) -> str:
    return model.choices[int(shares_K.argmax())]


def _names(
    name: str, theirs: Iterable[str], served: Served, label_map: Mapping[str, str]
) -> dict[str, str]:
    """Our name of each of a suspect's labels; case is forgiven. Raises UsageError for one that is
    none of ours."""
    folded = {each.casefold(): each for each in served.choices}
    found = {each: folded.get(label_map.get(each, each).casefold(), "") for each in theirs}
    strange = [each for each, ours in found.items() if not ours]
    if strange:
        raise UsageError(
            f"{name} answers {', '.join(strange[:5])}, and {served.name} has the labels "
            f"{', '.join(served.choices)}: say which is which with --label-map "
            f"{strange[0]}=..."
        )
    return found


def _api(name: str, config: VerifyConfig, served: Served, *, control: bool) -> Candidate:
    described = Described(Path(name))
    store = store_root(config.cache)

    def ask(examples: Sequence[Example]) -> list[str]:
        asking = described.open(store, Tariff(), config.limit)
        try:
            said = [_answer_of(each, name) for each in asking.ask(examples, lambda count: None)]
        finally:
            asking.close()
            asking.ledger.close()
        if not served.choices:
            return said
        ours = _names(name, set(said), served, config.label_map)
        return [ours[each] for each in said]

    return Candidate(described.name, described.fingerprint, control, ask)


def _answer_of(found: dict[str, Any], name: str) -> str:
    """An API's answer as a name or a text."""
    if "text" in found:
        return str(found["text"])
    if "label" in found:
        return str(found["label"])
    if "probabilities" in found:
        return max(found["probabilities"], key=found["probabilities"].__getitem__)
    raise DataError(f"{name} answers with values: marks are of labels and spans")
