"""What an owner writes down: how a model is guarded and served, how its check is learned, and who
is tried for copying it."""

from __future__ import annotations

import datetime
from typing import Annotated, ClassVar, Literal

from pydantic import Field, field_validator, model_validator

from stillhouse.core.config import DataConfig
from stillhouse.core.errors import UsageError
from stillhouse.core.terms import Config, Positive, Precision, Share
from stillhouse.extract.prices import Tariff
from stillhouse.extract.views import View

OnFlag = Literal["log", "throttle", "label", "random"]
Features = Literal["both", "last", "logits"]
USUAL = "probabilities:3"  # the digits beyond depend on what else is in a pass


class MarksConfig(Config):
    """rate: the share of a client's questions that is marked in the long run. early: expected marks
    that a client reaches at the rate `most`, before it falls to `rate` (0: `rate` from the start).
    controls: unmarked questions kept beside each mark. spare: a file of texts, one a line, that are
    never marked. spare_above: nor are answers with a greater probability. scope everyone: the same
    question is marked alike for all, at `rate` from the start, so that two clients can't find marks
    by comparing, and a mark no longer tells whose copy it is."""

    rate: Share = 0.001
    early: int = 40
    most: Share = 0.005
    controls: Positive = 10
    spare: str | None = None
    spare_above: Share | None = None
    scope: Literal["client", "everyone"] = "client"

    def at(self, asked: int) -> float:
        """The rate for a client that has asked so many different questions; it never rises."""
        if self.rate == 0 or self.most <= self.rate or self.scope == "everyone":
            return self.rate
        return self.most if asked * self.most < self.early else self.rate


class LimitsConfig(Config):
    """What every client may ask, unless it has limits of its own: queries, money and tokens in all
    (tokens are what the model reads, all windows of a passage), and questions and tokens a second
    (with as many at once as `burst_s` seconds bring)."""

    queries: Positive | None = None
    money: Annotated[float, Field(ge=0)] | None = None
    tokens: Positive | None = None
    per_s: Annotated[float, Field(gt=0)] | None = None
    tokens_per_s: Annotated[float, Field(gt=0)] | None = None
    burst_s: Annotated[float, Field(gt=0)] = 10.0


class Odds(Config):
    """alpha: the chance that an honest client is ever flagged. Honest is one whose share of odd
    questions is at most `tolerance` in the long run, and whose odd questions come in bursts of
    `burst` questions in the mean at most (1: independent of each other). Not covered: a share that
    stays above the tolerance for longer than such bursts, and bursts that are longer, or of which
    some are very much longer, than that. A thief is found after a time that grows with `burst`."""

    alpha: Annotated[float, Field(gt=0, lt=1)] = 1e-3
    tolerance: Annotated[Share, Field(gt=0, lt=1)] = 0.1
    burst: Annotated[float, Field(ge=1, le=1e6)] = 50.0


class CheckConfig(Odds):
    """What happens to a client that is flagged. log: nothing; throttle: it gets `slow_per_s`
    questions a second; label: labels only; random: answers that have nothing to do with the
    questions, though the same question has the same one."""

    on_flag: OnFlag = "log"
    slow_per_s: Annotated[float, Field(gt=0)] = 0.1


class KeepConfig(Config):
    """texts: whether the log has the questions themselves; evidence has, in any case. days: how
    long the log is kept (None: always)."""

    texts: bool = False
    days: Annotated[float, Field(gt=0)] | None = None


class SizesConfig(Config):
    """questions: of one request; characters: of one question, both texts together; tokens: that the
    model reads for one request, all windows of its passages."""

    questions: Positive = 256
    characters: Positive = 50_000
    tokens: Positive = 262_144


class QueueConfig(Config):
    """What may wait for the model. questions, tokens: of all clients; one that has less than an
    equal share of either is let in even then. time_s: how long a request may take, waiting
    included."""

    questions: Positive = 4096
    tokens: Positive = 1_048_576
    time_s: Annotated[float, Field(gt=0)] = 30.0


class GuardConfig(Config):
    """How a model is guarded. shows: what answers have, as an audit's views: probabilities,
    probabilities:3, top:2, label, value, text (left out: what a task has, probabilities to three
    digits)."""

    shows: str | None = None
    marks: MarksConfig = MarksConfig()
    limits: LimitsConfig = LimitsConfig()
    check: CheckConfig = CheckConfig()
    keep: KeepConfig = KeepConfig()
    sizes: SizesConfig = SizesConfig()
    tariff: Tariff = Tariff()

    @field_validator("shows")
    @classmethod
    def _view(cls, name: str | None) -> str | None:
        return None if name is None else View.read(name).name

    def view(self, task: str) -> View:
        """What of a task's answers is shown. Raises UsageError for what it has not."""
        usual = {"regression": "value", "span": "text"}.get(task, USUAL)
        found = View.read(self.shows or usual)
        fits = {"regression": ("value",), "span": ("text",)}.get(task, ("probabilities", "label"))
        if found.shows not in fits:
            raise UsageError(f"a {task} has no {found.shows} to show: one of {', '.join(fits)}")
        return found


class ServeConfig(Config):
    """A guarded service. key: the owner's file (left out: from the environment). membership: the
    folder of a learned check; curve: that of an audit. guarded: False serves without a guard, for
    comparison. threads: of torch, a worker (0: all cores shared by the workers). rows: questions
    that share a pass of the model at most. queue: what may wait, and how long. behind_tls: a proxy
    in front encrypts, so that nobody is warned of a host that others get to."""

    on_cpu: ClassVar[bool] = True
    flow: Literal["serve"] = "serve"
    model: str
    registry: str = "sqlite:///stillhouse-guard.db"
    key: str | None = None
    guard: GuardConfig = GuardConfig()
    membership: str | None = None
    curve: str | None = None
    host: str = "127.0.0.1"
    port: Annotated[int, Field(ge=0, le=65535)] = 8000
    workers: Positive = 1
    threads: Annotated[int, Field(ge=0)] = 0
    rows: Positive = 64
    queue: QueueConfig = QueueConfig()
    behind_tls: bool = False
    body_bytes: Positive = 4 << 20
    max_length: Positive | None = None
    precision: Precision = "auto"
    guarded: bool = True
    trust_remote_code: bool = False


class Outside(Config):
    """Where a foreign service has its questions and answers. path: the route that is guarded. text,
    pair: of a request of one question; texts, pairs: of one with many (JMESPath). answers: the
    list of answers in the response (left out: the whole is one); probabilities (an object by
    label), label, value, answer (a span's text): in each, names of its members. failing: what
    happens when the registry is away: closed (503) or open (true answers, unlogged)."""

    path: str
    text: str | None = None
    pair: str | None = None
    texts: str | None = None
    pairs: str | None = None
    answers: str | None = None
    probabilities: str | None = None
    label: str | None = None
    value: str | None = None
    answer: str | None = None
    failing: str = "closed"
    body_bytes: Positive = 4 << 20

    @field_validator("failing")
    @classmethod
    def _known(cls, value: str) -> str:
        if value not in ("open", "closed"):
            raise ValueError("open or closed")
        return value


class LearnConfig(Config):
    """data: the owner's, its unlabelled rows what honest customers ask; corpus: text that made-up
    questions come from (left out: the documentation strings of Python's library). rows: of either,
    at most. beyond: the share of honest questions, kept out of training, that are to look odd."""

    on_cpu: ClassVar[bool] = True
    flow: str = "learn"
    model: str
    data: DataConfig
    corpus: str | None = None
    features: Features = "both"
    rows: Positive | None = None
    lr: float = 3e-4
    epochs: Positive = 1
    beyond: Share = Field(default=0.01, gt=0)
    precision: Precision = "auto"
    seed: int = 0
    cache: str | None = None
    max_length: Positive | None = None
    trust_remote_code: bool = False


class VerifyConfig(Config):
    """suspects: model folders, or YAML descriptions of APIs; controls: models known to be
    independent. answers: a third party's sealed answers, instead of both. clients: whose marks are
    looked for (left out: everyone's). alpha: the chance that an independent model is called a copy.
    limit: queries that an API may be asked in all. model: the fingerprint of the model that was
    served, where the registry has several. label_map: the served model's names for the suspects'
    labels. unstamped: whether questions are used too that no outside time stamp binds, though
    others are bound. released: the day (2026-05-01, UTC) on which a suspect could first be asked,
    where stamps are to be older than that, not only than this test."""

    on_cpu: ClassVar[bool] = True
    flow: Literal["verify"] = "verify"
    suspects: tuple[str, ...] = ()
    controls: tuple[str, ...] = ()
    answers: str | None = None
    clients: tuple[str, ...] = ()
    model: str | None = None
    label_map: dict[str, str] = Field(default_factory=dict)
    alpha: Annotated[float, Field(gt=0, lt=1)] = 1e-3
    limit: Positive | None = None
    unstamped: bool = False
    released: str | None = None
    precision: Precision = "auto"
    cache: str | None = None
    trust_remote_code: bool = False

    @field_validator("released")
    @classmethod
    def _day(cls, value: str | None) -> str | None:
        if value is not None:
            datetime.date.fromisoformat(value)
        return value

    @model_validator(mode="after")
    def _tries(self) -> VerifyConfig:
        if self.answers is None and not self.suspects:
            raise ValueError("name a suspect, or a third party's answers")
        if self.answers is not None and (self.suspects or self.controls):
            raise ValueError("the answers say who was asked: name no suspects or controls")
        return self

    @property
    def known_from(self) -> float | None:
        """`released` in Unix time."""
        if self.released is None:
            return None
        day = datetime.date.fromisoformat(self.released)
        return datetime.datetime(day.year, day.month, day.day, tzinfo=datetime.UTC).timestamp()
