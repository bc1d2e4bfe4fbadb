"""The model that is audited, asked as a stranger would ask it.

A victim is a model of ours, or any JSON API. Either way every answer is kept by content: a killed
audit asks for nothing twice, and views that show less are cut from what was answered once.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
from scipy.special import softmax
from transformers import PreTrainedModel

from stillhouse.core.config import LabelConfig
from stillhouse.core.errors import DataError, UsageError
from stillhouse.core.progress import Advance, Progress
from stillhouse.core.types import Batch, Example
from stillhouse.data.encoding import tokenizer_fingerprint
from stillhouse.data.sources import Pool
from stillhouse.extract.answers import Answers, from_json
from stillhouse.extract.client import Client
from stillhouse.extract.endpoint import Endpoint, read_endpoint
from stillhouse.extract.ledger import Ledger, Spent, answered
from stillhouse.extract.prices import Tariff
from stillhouse.flows.common import dataset
from stillhouse.models.limits import check_tokenizer, max_tokens
from stillhouse.models.load import fingerprint, load_tokenizer
from stillhouse.signals.cache import AnswerCache
from stillhouse.signals.teacher import LiveTeacher, ask
from stillhouse.tasks.base import Task
from stillhouse.tasks.span import Span, Spans

SPAN = ["first", "its score", "last", "score"]  # what is kept of a window


@runtime_checkable
class Victim(Protocol):
    """`charged`: what it was asked so far in earnest; None for a model of our own."""

    fingerprint: str

    def answers(self, pool: Pool, of: str, progress: Progress) -> Answers: ...

    @property
    def charged(self) -> Spent | None: ...


class OwnModel:
    """A model in a folder: asked in batches sorted by length, its logits kept on disk."""

    charged = None

    def __init__(
        self, model: PreTrainedModel, name: str, task: Task, config: LabelConfig, store: Path,
        *, max_length: int, trust_remote_code: bool = False,
    ) -> None:  # fmt: skip
        self._model, self._task, self._config, self._store = model, task, config, store
        self._again = partial(
            OwnModel, model, name, task, store=store, max_length=max_length,
            trust_remote_code=trust_remote_code,
        )  # fmt: skip
        self._tokenizer = load_tokenizer(name, trust_remote_code=trust_remote_code)
        check_tokenizer(model, self._tokenizer)
        self._length = max_tokens(model, max_length)
        self._identity: dict[str, object] = {
            "teacher": fingerprint(model),
            "tokenizer": tokenizer_fingerprint(self._tokenizer),
            "max_length": self._length,
            "precision": config.precision,
            "choices": SPAN if task.name == "span" else task.choices,
        }
        self.fingerprint = str(self._identity["teacher"])

    def in_float32(self) -> OwnModel:
        """The same, as it computes where nothing is rounded."""
        return self._again(config=self._config.model_copy(update={"precision": "float32"}))

    def answers(self, pool: Pool, of: str, progress: Progress) -> Answers:
        """From the cache, asked now where it lacks them."""
        data = dataset(
            self._task, pool, self._tokenizer, self._store, max_length=self._length,
            progress=progress, title=of,
        )  # fmt: skip
        cache = AnswerCache(self._store, self._identity)
        live = LiveTeacher(
            self._model, data, fingerprint=cache.fingerprint, precision=self._config.precision
        )
        if len(cache.pending(data.keys_N2)):
            with progress.stage(f"asking the victim {of}", len(data), "queries") as advance:
                ask(live, cache, partial(self._kept, live), self._config, progress=advance)
        scores_NK = cache.scores(cache.positions(data.keys_N2))
        if isinstance(self._task, Span):
            assert isinstance(data, Spans)
            return Answers([], texts=self._task.texts(scores_NK, data))
        if self._task.name == "regression":
            return Answers([], values_N=scores_NK[:, 0])
        return Answers(self._task.choices, softmax(scores_NK.astype(np.float64), -1))

    def _kept(self, live: LiveTeacher, batch: Batch) -> np.ndarray:
        """What is kept of each example's scores: of a span, where it begins and ends."""
        scores_NK = live.scores(batch).cpu()
        if isinstance(self._task, Span):
            assert batch.gold_N is not None
            return self._task.reduce(scores_NK, batch.gold_N).reshape(len(batch.rows), 4).numpy()
        return scores_NK.numpy()


@runtime_checkable
class Asking(Protocol):
    """Somebody who answers as an API does: an object of probabilities, label, value or text a
    query. A ledger keeps what was answered."""

    ledger: Ledger

    def ask(self, examples: Sequence[Example], progress: Advance) -> list[dict[str, Any]]: ...

    def close(self) -> None: ...


@runtime_checkable
class Service(Protocol):
    """What an audit may ask instead of a model: `fingerprint` stands for it, `name` tells the user,
    `choices` are its labels where its answers don't name them all."""

    fingerprint: str
    name: str
    choices: Sequence[str] | None

    def open(self, store: Path, tariff: Tariff, limit: int | None) -> Asking: ...


class Described:
    """An API by its description; its ledger is by address and body. Raises UsageError."""

    def __init__(self, path: Path) -> None:
        self._endpoint: Endpoint = read_endpoint(path)
        self._endpoint.keyed()  # before anything is made
        self.fingerprint, self.name = self._endpoint.fingerprint, self._endpoint.place
        self.choices: Sequence[str] | None = self._endpoint.choices

    def answered(self, store: Path) -> tuple[set[str], int]:
        """What was answered before, and how many queries were sent."""
        return answered(store / "apis" / self._endpoint.identity)

    def open(self, store: Path, tariff: Tariff, limit: int | None) -> Asking:
        ledger = Ledger(store / "apis" / self._endpoint.identity, tariff)
        try:
            return Client(self._endpoint, ledger, limit=limit)
        except BaseException:
            ledger.close()
            raise


class Api:
    """A service as a victim."""

    def __init__(
        self, service: Service, tariff: Tariff, store: Path, *, limit: int | None = None
    ) -> None:
        self.names: list[str] | None = None  # of the labels, in the order of the first answers
        self.fingerprint = service.fingerprint
        self._shares = False  # whether it ever showed probabilities
        self._service = service
        self._asking = service.open(store, tariff, limit)

    def __enter__(self) -> Api:
        return self

    def __exit__(self, *_: object) -> None:
        self._asking.close()
        self._asking.ledger.close()

    @property
    def charged(self) -> Spent:
        return self._asking.ledger.spent

    def answers(self, pool: Pool, of: str, progress: Progress) -> Answers:
        examples, name = list(pool), self._service.name
        with progress.stage(f"asking {name} {of}", len(examples), "queries") as step:
            found = self._asking.ask(examples, step)
        answers = from_json(found, self.names or self._service.choices)
        if self.names is not None and len(answers.choices) > len(self.names):
            new = ", ".join(answers.choices[len(self.names) :])
            raise DataError(
                f"{name} answers {new}, which neither the data nor its first answers have: name "
                "all labels in the description's choices"
            )
        self._shares = self._shares or answers.probabilities_NK is not None
        return answers.sure() if self._shares else answers


def is_endpoint(victim: str) -> bool:
    """Whether `victim` is an API's description. Raises UsageError for one that isn't there."""
    if victim.startswith(("http://", "https://")):
        raise UsageError(
            f"{victim} is an address: give a YAML file that describes the API (see the README)"
        )
    path = Path(victim)
    if path.suffix in (".yaml", ".yml"):
        if not path.is_file():
            raise UsageError(
                f"there is no file {path}: give a model's folder or an API's description"
            )
        return True
    return False
