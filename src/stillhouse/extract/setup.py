"""An audit's parts, loaded and checked: data, queries, the victim, its task."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from stillhouse.core.config import DataConfig
from stillhouse.core.errors import DataError, UsageError
from stillhouse.core.progress import Progress
from stillhouse.core.seeding import derive
from stillhouse.core.types import Example, Predictions
from stillhouse.data.cells import fold_label
from stillhouse.data.columns import Columns
from stillhouse.data.documents import file_digest
from stillhouse.data.labels import LabelRule
from stillhouse.data.opening import open_unlabelled
from stillhouse.data.readers import Row
from stillhouse.data.rows import FORMAT, content_key, ingest
from stillhouse.data.sources import Part, Pool, Splits, load, shared
from stillhouse.extract.answers import Answers
from stillhouse.extract.config import AuditConfig, Form, Kind
from stillhouse.extract.corpus import QueryCorpus, read_corpus
from stillhouse.extract.queries import Source, queries
from stillhouse.extract.victim import Api, Described, OwnModel, Service, Victim, is_endpoint
from stillhouse.flows.common import (
    kind_of,
    load_answering,
    row_task,
    seen_labels,
    store_root,
    teacher_task,
)
from stillhouse.flows.labelling import label_rule
from stillhouse.tasks.base import Task
from stillhouse.tasks.classification import Classification, match_labels
from stillhouse.tasks.regression import Regression
from stillhouse.tasks.span import Span, parse_label


def size_of(config: AuditConfig, splits: Splits) -> int:
    """The size of a training set, which budgets are shares of."""
    return config.queries.of or len(splits.labelled) + len(splits.held_out)


def usual_form(kind: str, splits: Splits) -> Form:
    """How queries are made for a task of this data: single texts, edited pairs or questions."""
    if kind == "span":
        return "question"
    paired = splits.reported.at(np.array([0]))[0].pair is not None
    return "edited" if paired else "single"


class Audit:
    """What an audit asks about, and what with."""

    def __init__(
        self, config: AuditConfig, progress: Progress, *, service: Service | None = None
    ) -> None:
        """`service`: asked instead of what the config names."""
        self.config, self.progress = config, progress
        self.store = store_root(config.cache)
        rule = self._rule(service)
        self.splits = load(config.data, self.store / "rows", rule=rule, progress=progress)
        self.of = size_of(config, self.splits)
        self.most = max(1, round(config.queries.budgets[-1] * self.of))
        self.candidates = max(self.most, round(config.queries.candidates * self.most))
        self.form: Form = self._form()
        self.corpus: QueryCorpus = read_corpus(config.queries.corpus, self.store, progress)
        self.pool, self.notes = self._own_queries()

    def _rule(self, service: Service | None) -> LabelRule:
        """What is known of the labels: what the victim tells apart, if it says so or is a model
        here."""
        config = self.config
        if service is not None or is_endpoint(config.victim):
            known = tuple(service.choices or ()) if service is not None else ()
            return LabelRule(values=config.task == "regression", classes=known)
        return label_rule(
            config.task, config.victim, config.data.label_map,
            trust_remote_code=config.trust_remote_code,
        )  # fmt: skip

    @property
    def kind(self) -> str:
        """The task as far as the data tells it."""
        return row_task(self.config.task, [self.splits.reported])

    def _form(self) -> Form:
        """How queries are made for this data."""
        form = self.config.queries.form
        return usual_form(self.kind, self.splits) if form == "auto" else form

    def _own_queries(self) -> tuple[list[Example], list[str]]:
        """The user's pool, without rows that are reported on."""
        path = self.config.queries.pool
        if path is None:
            return [], []
        asked = DataConfig(path=path, unlabelled=path)
        try:
            rows = open_unlabelled(asked, self.store / "rows", progress=self.progress)
        except DataError as error:
            raise DataError(
                f"{error}; a pool's columns are called text and pair, or it is a .txt file of "
                "one query a line"
            ) from None
        whole = Pool([Part(rows, rows.kept, labelled=False)])
        leaked = shared(whole.folded_N2, self.splits.reported.folded_N2)
        found = [example for example, out in zip(whole, leaked, strict=True) if not out]
        told = f"{leaked.sum()} of the pool's texts are reported on: they are not asked"
        return found, [told] if leaked.any() else []

    def content(self, victim: Victim) -> dict[str, str]:
        """Fingerprints of what the config names by path."""
        found = {
            "victim": victim.fingerprint,
            "data": self.splits.fingerprint,
            "corpus": self.corpus.fingerprint,
        }
        if self.config.queries.pool:
            found["pool"] = file_digest(Path(self.config.queries.pool))
        return found

    def stream(self, kind: Kind, seed: int, count: int) -> Pool:
        """The first `count` queries of a kind that are no reported rows."""
        more = 0
        while True:
            drawn = self._drawn(kind, seed, count + more)
            leaked = shared(drawn.folded_N2, self.splits.reported.folded_N2)
            kept = np.flatnonzero(~leaked)
            if len(kept) >= count:
                (part,) = drawn.parts
                return Pool([Part(part.rows, part.indices[kept[:count]], labelled=False)])
            more = int(leaked.sum())
            told = (
                f"{kind} queries that are reported rows are not asked: {self.corpus.name} has some"
            )
            if told not in self.notes:
                self.notes.append(told)

    def _drawn(self, kind: Kind, seed: int, count: int) -> Pool:
        """The first `count` queries of a kind as rows."""
        settings = self.config.queries
        source = Source(
            self.corpus, kind, self.form, derive(seed, "audit"), self.pool, settings.vocabulary
        )
        turned = settings.passage == "text" and self.form in ("question", "yes-no")
        name = f"{derive(seed, 'queries', FORMAT, kind, self.form, self.corpus.fingerprint)}"
        name += f"-{settings.vocabulary}-{count}-{turned:d}"
        if kind == "pool":
            name += f"-{derive(0, *(content_key(e.text, e.pair).hex() for e in self.pool))}"
        folder = self.store / "queries" / f"rows-{derive(0, name):x}"

        def rows() -> Iterator[Row]:
            for line, each in enumerate(queries(source, count), 1):
                text, pair = (each.pair, each.text) if turned else (each.text, each.pair)
                yield line, {"text": text, **({"pair": pair} if pair is not None else {})}

        columns = Columns("text", "pair" if self.form != "single" else None)
        held = ingest(
            rows(), f"{kind} queries", columns, folder, labelled=False, progress=self.progress
        )
        return Pool([Part(held, held.kept, labelled=False)])


@contextmanager
def victim_of(
    config: AuditConfig, made: Audit, service: Service | None = None
) -> Iterator[tuple[Victim, Task]]:
    """The victim, ready to be asked, and its task with the labels named as the data names them.
    `service`: asked instead of what the config names. Raises UsageError, DataError, ModelError."""
    splits = made.splits
    labelled = [splits.labelled, splits.held_out, splits.reported]
    label_map, metric = config.data.label_map, config.evaluation.metric
    if service is None and is_endpoint(config.victim):
        service = Described(Path(config.victim))
    if service is None:
        trust = config.trust_remote_code
        asked = kind_of(config.victim) if made.kind == "auto" else made.kind
        model = load_answering(asked, config.victim, trust_remote_code=trust)
        task = teacher_task(model.config, labelled, asked=asked, label_map=label_map, metric=metric)
        yield OwnModel(
            model, config.victim, task, config.label, made.store,
            max_length=config.data.tokens(task.name), trust_remote_code=trust,
        ), task  # fmt: skip
        return
    with Api(service, config.tariff, made.store, limit=config.limit) as api:
        first = api.answers(splits.reported, "about reported rows", made.progress)
        if first.texts is not None:
            if made.kind != "span":
                raise UsageError(
                    f"{config.victim} answers in texts, and the data's labels are no answers in "
                    "SQuAD's form: read.label says where a label is"
                )
            yield api, Span(metric)
        elif first.values_N is not None:
            yield api, Regression(metric)
        else:
            api.names = _known(first, seen_labels(labelled), label_map)
            choices = match_labels(api.names, seen_labels(labelled), label_map)
            yield api, Classification(choices, metric)


def _known(first: Answers, data: set[str], label_map: dict[str, str]) -> list[str]:
    """The victim's labels: those it named, and where it names only its choice, the data's too."""
    if first.probabilities_NK is not None and not np.isnan(first.probabilities_NK).any():
        return first.choices
    met = {fold_label(label_map.get(name, name)) for name in first.choices}
    return [*first.choices, *sorted(name for name in data if fold_label(name) not in met)]


def judged(answers: Answers, task: Task, reported: Pool) -> Predictions:
    """A victim's answers to the reported rows beside the gold ones."""
    if isinstance(task, Span):
        assert answers.texts is not None
        labels = [str(label) for label in reported.labels]
        return task.judged(answers.texts, [parse_label(label) for label in labels])
    gold_N = task.gold(reported.labels).numpy()
    if answers.values_N is not None:
        return Predictions(answers.values_N, None, gold_N)
    if answers.labels_N is not None:
        return Predictions(answers.labels_N, None, gold_N)
    scores_NK = answers.scores()
    return Predictions(scores_NK.argmax(-1), np.exp(scores_NK), gold_N)
