"""What a verification found, as it stands in record.json: frozen, readable without torch."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from stillhouse.core.results import Interval, Result

Verdict = Literal["copy", "consistent with a copy", "no evidence", "too few marks"]
Bound = Literal["time stamp", "third party", "the owner's word"]


class ClientTrial(Result):
    """One client's marks against one suspect, in one form of the questions. hits: marked questions
    answered with their keyed wrong answer; chance_hits: control questions answered with theirs.
    p_value: Fisher's; adjusted: by Holm, over all clients, suspects and forms; rekeyed: by fresh
    keys; conditional: of the wrong answers to marks alone (three choices and more). power: of a
    copy that learned such a share of its marks."""

    client: str
    form: str
    marks: int
    hits: int
    controls: int
    chance_hits: int
    true: float
    effect: float
    interval: Interval
    p_value: float
    adjusted: float
    rekeyed: float
    conditional: float
    power: dict[str, float]


class Suspect(Result):
    """One model that was asked. control: said to be independent, for comparison. verdict: "copy"
    only where outside time stamps bind the evidence to a time before the model was asked; the same
    p-values without them are "consistent with a copy"."""

    name: str
    fingerprint: str
    control: bool
    verdict: Verdict
    clients: list[str]  # those whose marks it has
    trials: list[ClientTrial]
    asked: Interval | None = None  # Unix time, from and to


class Stamp(Result):
    """An outside time stamp (RFC 3161) of a log head. public: whether its authority's certificate
    leads to a public root; certificate: its SHA-256."""

    head: int
    time: float
    authority: str
    certificate: str
    public: bool


class Fact(Result):
    """One thing that a verdict rests on. bound: by what; since: the Unix time by which an outside
    stamp shows it was fixed; how: the same in words, with what a judge must still ask."""

    what: str
    bound: Bound
    since: float | None = None
    how: str


class Example(Result):
    """A kept question with its true answer, the one that was given, the key's wrong one, and what
    each model said of it as it was asked."""

    kind: Literal["mark", "control"]
    client: str
    time: float
    text: str
    pair: str | None
    truth: str
    served: str
    target: str
    said: dict[str, str]


class VerdictRecord(Result):
    """A verification's result. Stable: new fields may come, these stay. marking_key: what marks are
    drawn with, by which all this can be checked; commitment: what the registry had of it, since
    `committed` (Unix time). snapshot, answers, heads, blind: SHA-256 of these files. facts: what
    the verdict rests on, and what binds each; asked_by: who asked the models; questions: when the
    first and the last kept question was asked; head: the hash of the last log head; left_out:
    questions that no time stamp binds yet, and that were not used; examples: the first marked and
    control questions."""

    version: Literal[1] = Field(default=1, alias="schema")
    flow: Literal["verify"] = "verify"
    alpha: float
    model: str
    model_name: str
    task: str
    choices: list[str]
    key: str
    marking_key: str
    commitment: str
    committed: float
    public_key: str
    snapshot: str
    answers: str
    heads: str | None = None
    blind: str | None = None
    suspects: Annotated[list[Suspect], Field(min_length=1)]
    sentence: str
    facts: list[Fact] = Field(default_factory=list)
    asked_by: str = "the owner"
    questions: Interval | None = None
    head: str | None = None
    sealed: float | None = None  # the time of the last head, by the owner's clock
    stamps: list[Stamp] = Field(default_factory=list)
    left_out: int = 0
    examples: list[Example] = Field(default_factory=list)
    warnings: list[str] = Field(default_factory=list)
