"""What a verification found, as it stands in record.json: frozen, readable without torch."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from stillhouse.core.results import Interval, Result

Verdict = Literal["copy", "no evidence", "too few marks"]


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
    """One model that was asked. control: known to be independent, for comparison."""

    name: str
    fingerprint: str
    control: bool
    verdict: Verdict
    clients: list[str]  # those whose marks it has
    trials: list[ClientTrial]


class VerdictRecord(Result):
    """A verification's result. Stable: new fields may come, these stay. marking_key: what marks are
    drawn with, by which all this can be checked; commitment: what the registry had of it, since
    `committed` (Unix time). snapshot, answers: SHA-256 of these files."""

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
    suspects: list[Suspect]
    sentence: str
    warnings: list[str] = Field(default_factory=list)
