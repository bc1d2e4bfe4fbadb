"""The audit: queries asked, thieves trained, copies measured.

One's own model is audited, or one's own API: nothing but these is contacted.

Axes: N rows or queries, K choices.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from stillhouse.core.audit_results import Leak
from stillhouse.core.errors import UsageError
from stillhouse.core.progress import Progress, Silent
from stillhouse.core.rundir import claim, manifest, write_json
from stillhouse.core.seeding import derive, generator
from stillhouse.core.types import Example, Predictions
from stillhouse.data.documents import file_digest
from stillhouse.data.readers import Row
from stillhouse.data.rows import FORMAT, Columns, folded_key, ingest
from stillhouse.data.sources import Part, Pool, Splits, load, shared
from stillhouse.extract import leaks
from stillhouse.extract.answers import Answers, View
from stillhouse.extract.config import AuditConfig
from stillhouse.extract.corpus import QueryCorpus, read_corpus
from stillhouse.extract.ledger import cost_of
from stillhouse.extract.queries import Form, Kind, Source, queries
from stillhouse.extract.thief import Thief
from stillhouse.extract.victim import Api, OwnModel, Victim, is_endpoint
from stillhouse.flows.common import dataset, seen_labels, store_root, teacher_task
from stillhouse.flows.stages import Trained
from stillhouse.models.load import load_classifier
from stillhouse.tasks.base import Task
from stillhouse.tasks.classification import Classification, match_labels
from stillhouse.tasks.regression import Regression


@dataclass(frozen=True)
class Cell:
    """One point of the sweep."""

    kind: Kind
    view: str
    thief: int
    budget: float
    queries: int

    @property
    def title(self) -> str:
        view = self.view.replace(":", "-")
        return f"{self.kind}-{self.budget:g}-{view}-{self.thief}"


@dataclass
class Audited:
    """What an audit leaves for the record. `spent`: units by kind, budget and seed."""

    config: AuditConfig
    task: Task
    splits: Splits
    thieves: list[Thief]
    trained: dict[Cell, list[Trained]]
    victim: Predictions
    gold_N: np.ndarray
    units: dict[tuple[str, int], list[int]]
    asked: dict[str, tuple[list[Example], Answers]]
    charged: int | None
    leaks: list[Leak] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    victim_s: float = 0.0
    total_s: float = 0.0


def cells(config: AuditConfig, of: int) -> list[Cell]:
    """The sweep: the first view and thief with every kind, others with the first kind."""
    kinds, views = config.queries.kinds, config.views
    plans: list[tuple[Kind, str, int]] = [
        *((kind, views[0], 0) for kind in kinds),
        *((kinds[0], view, 0) for view in views[1:]),
        *((kinds[0], views[0], number) for number in range(1, len(config.thieves))),
    ]
    return [
        Cell(kind, view, thief, budget, max(1, round(budget * of)))
        for kind, view, thief in plans
        for budget in config.queries.budgets
    ]


def form_of(config: AuditConfig, splits: Splits) -> Form:
    """How queries are made for this data."""
    form = config.queries.form
    if form != "auto":
        return form
    paired = splits.reported.at(np.array([0]))[0].pair is not None
    return "edited" if paired else "single"


class Audit:
    """An audit's parts, loaded and checked."""

    def __init__(self, config: AuditConfig, progress: Progress) -> None:
        self.config, self.progress = config, progress
        self.store = store_root(config.cache)
        self.splits = load(config.data, self.store / "rows")
        self.of = config.queries.of or len(self.splits.labelled) + len(self.splits.held_out)
        self.cells = cells(config, self.of)
        self.form: Form = form_of(config, self.splits)
        self.corpus: QueryCorpus = read_corpus(config.queries.corpus, self.store, progress)
        self.pool, self.notes = self._own_queries()

    def _own_queries(self) -> tuple[list[Example], list[str]]:
        """The user's pool, without rows that are reported on."""
        path = self.config.queries.pool
        if path is None:
            return [], []
        from stillhouse.core.config import DataConfig
        from stillhouse.data.sources import _unlabelled

        columns = self.config.data.model_dump(include={"text", "pair"})
        rows = _unlabelled(DataConfig(path=path, unlabelled=path, **columns), self.store / "rows")
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
        """The first `count` queries of a kind as rows."""
        settings = self.config.queries
        source = Source(
            self.corpus, kind, self.form, derive(seed, "audit"), self.pool, settings.vocabulary
        )
        turned = settings.passage == "text" and self.form in ("question", "yes-no")
        name = f"{derive(seed, 'queries', FORMAT, kind, self.form, self.corpus.fingerprint)}"
        name += f"-{settings.vocabulary}-{count}-{turned:d}"
        if kind == "pool":
            name += f"-{derive(0, *(folded_key(e.text, e.pair).hex() for e in self.pool))}"
        folder = self.store / "queries" / f"rows-{derive(0, name):x}"

        def rows() -> Iterator[Row]:
            for line, each in enumerate(queries(source, count), 1):
                text, pair = (each.pair, each.text) if turned else (each.text, each.pair)
                yield line, {"text": text, **({"pair": pair} if pair is not None else {})}

        columns = Columns("text", "pair" if self.form != "single" else None)
        held = ingest(rows(), f"{kind} queries", columns, folder, labelled=False)
        return Pool([Part(held, held.kept, labelled=False)])


def audit(config: AuditConfig, out: Path, *, progress: Progress | None = None) -> Audited:
    """Runs the audit in the run folder `out`; a killed one goes on, and pays nothing twice. Raises
    UsageError, DataError, ModelError, RunError."""
    progress = progress or Silent()
    started = time.perf_counter()
    made = Audit(config, progress)
    with victim_of(config, made) as (victim, task):
        content = made.content(victim)
        thieves = [
            Thief(each, task, trust_remote_code=config.trust_remote_code) for each in config.thieves
        ]
        _refuse_the_victim(config, thieves)
        claim(out, config.model_dump(mode="json"), content)
        write_json(out / "manifest.json", manifest(content=content, seeds=config.proof.seeds))
        for note in (*made.splits.notes, *made.notes):
            progress.note(note)
        progress.note(f"only {config.victim} is asked; it must be yours, or its owner must agree")
        return _swept(made, victim, task, thieves, out, started)


def _refuse_the_victim(config: AuditConfig, thieves: Sequence[Thief]) -> None:
    """Raises UsageError for a thief that begins with the victim's own weights."""
    for thief in thieves:
        if (
            Path(thief.named).exists()
            and Path(thief.named).resolve() == Path(config.victim).resolve()
        ):
            raise UsageError(
                f"the thief {thief.named} is the victim: a stranger has none of its weights"
            )


@contextmanager
def victim_of(config: AuditConfig, made: Audit) -> Iterator[tuple[Victim, Task]]:
    """The victim, ready to be asked, and its task with the labels named as the data names them."""
    splits = made.splits
    labelled = [splits.labelled, splits.held_out, splits.reported]
    label_map, metric = config.data.label_map, config.proof.metric
    if not is_endpoint(config.victim):
        trust = config.trust_remote_code
        model = load_classifier(config.victim, trust_remote_code=trust)
        task = teacher_task(
            model.config, labelled, asked=config.task, label_map=label_map, metric=metric
        )
        yield OwnModel(
            model, config.victim, task, config.label, made.store,
            max_length=config.data.max_length, trust_remote_code=trust,
        ), task  # fmt: skip
        return
    with Api(Path(config.victim), config.tariff, made.store, limit=config.limit) as api:
        first = api.answers(splits.reported, "about reported rows", made.progress)
        if first.values_N is not None:
            yield api, Regression(metric)
            return
        api.names = first.choices
        choices = match_labels(first.choices, seen_labels(labelled), label_map)
        yield api, Classification(choices, metric)


def _swept(
    made: Audit, victim: Victim, task: Task, thieves: Sequence[Thief], out: Path, started: float
) -> Audited:
    """Everything asked, then every thief trained."""
    config, progress = made.config, made.progress
    asked_s = time.perf_counter()
    reported = made.splits.reported
    theirs = victim.answers(reported, "about reported rows", progress)
    gold_N = task.gold(reported.labels)
    own = task.predictions(theirs.scores(), gold_N)
    found = Audited(
        config, task, made.splits, list(thieves), {}, own, gold_N.numpy(), {}, {},
        None, notes=[*made.splits.notes, *made.notes],
    )  # fmt: skip
    streams: dict[tuple[Kind, int], tuple[Pool, Answers]] = {}
    kinds = config.queries.kinds
    for kind in kinds:
        most = max(cell.queries for cell in made.cells if cell.kind == kind)
        for seed in config.proof.seeds:
            if not config.queries.fresh and seed != config.proof.seeds[0]:
                streams[kind, seed] = streams[kind, config.proof.seeds[0]]
                continue
            pool = made.stream(kind, seed, most)
            answers = victim.answers(pool, f"{kind} queries, seed {seed}", progress)
            streams[kind, seed] = pool, answers
            few = pool.at(np.arange(min(len(pool), 5)))
            found.asked.setdefault(kind, (few, answers.first(len(few))))
    found.leaks = _leaks(made, thieves[0], task, *streams[kinds[0], config.proof.seeds[0]])
    found.victim_s = time.perf_counter() - asked_s
    for cell in made.cells:
        thief, trained = thieves[cell.thief], []
        for seed in config.proof.seeds:
            pool, answers = streams[cell.kind, seed]
            given = Pool(
                [Part(p.rows, p.indices[: cell.queries], labelled=False) for p in pool.parts]
            )
            if (cell.kind, cell.queries) not in found.units or seed != config.proof.seeds[0]:
                units = cost_of(list(given), config.tariff).units
                found.units.setdefault((cell.kind, cell.queries), []).append(units)
            data, rows = (
                dataset(task, each, thief.tokenizer, made.store,
                        max_length=config.data.max_length, progress=progress, title=title)
                for each, title in ((given, "queries"), (reported, "reported rows"))
            )  # fmt: skip
            shown = answers.first(cell.queries).seen(View.read(cell.view))
            trained.append(thief.learn(cell.title, seed, data, shown, rows, out, progress))
        found.trained[cell] = trained
    charged = victim.charged
    found.charged = None if charged is None else charged.queries
    found.total_s = time.perf_counter() - started
    return found


def _leaks(made: Audit, thief: Thief, task: Task, pool: Pool, answers: Answers) -> list[Leak]:
    """What the first view of the answers gives away by itself."""
    config = made.config
    shown = answers.seen(View.read(config.views[0]))
    if shown.labels_N is not None or shown.texts is not None:
        return []
    found = [] if shown.probabilities_NK is None else [leaks.digits(shown)]
    found.append(leaks.hidden_size(shown.scores()))
    public = thief.public()
    few = min(len(pool), 4 * public.config.hidden_size)
    asked = Pool([Part(p.rows, p.indices[:few], labelled=False) for p in pool.parts])
    data = dataset(
        task, asked, thief.tokenizer, made.store, max_length=config.data.max_length,
        progress=made.progress, title="queries",
    )  # fmt: skip
    features = leaks.public_features(public, data)
    rng = generator(config.proof.seeds[0], "frozen encoder")
    name = Path(thief.named).name
    return [*found, leaks.frozen_encoder(shown.first(few), features, name, rng)]
