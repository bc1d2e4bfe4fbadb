"""What an owner writes down: how a model is guarded, and who is tried for copying it."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, field_validator

from stillhouse.core.errors import UsageError
from stillhouse.core.terms import Config, Positive, Precision
from stillhouse.extract.answers import View
from stillhouse.extract.prices import Tariff
from stillhouse.guard.purses import LimitsConfig
from stillhouse.guard.suspicion import Odds
from stillhouse.guard.watermark import MarksConfig

OnFlag = Literal["log", "throttle", "label", "random"]


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
    """questions: of one request; characters: of one question, both texts together."""

    questions: Positive = 256
    characters: Positive = 50_000


class GuardConfig(Config):
    """How a model is guarded. shows: what answers have, as an audit's views: probabilities,
    probabilities:3, top:2, label, value, text (left out: all there is)."""

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
        usual = {"regression": "value", "span": "text"}.get(task, "probabilities")
        found = View.read(self.shows or usual)
        fits = {"regression": ("value",), "span": ("text",)}.get(task, ("probabilities", "label"))
        if found.shows not in fits:
            raise UsageError(f"a {task} has no {found.shows} to show: one of {', '.join(fits)}")
        return found


class VerifyConfig(Config):
    """suspects: model folders, or YAML descriptions of APIs; controls: models known to be
    independent. clients: whose marks are looked for (left out: everyone's). alpha: the chance that
    an independent model is called a copy. limit: queries that an API may be asked in all. model:
    the fingerprint of the model that was served, where the registry has several. label_map: the
    served model's names for the suspects' labels."""

    flow: Literal["verify"] = "verify"
    suspects: Annotated[tuple[str, ...], Field(min_length=1)]
    controls: tuple[str, ...] = ()
    clients: tuple[str, ...] = ()
    model: str | None = None
    label_map: dict[str, str] = Field(default_factory=dict)
    alpha: Annotated[float, Field(gt=0, lt=1)] = 1e-3
    limit: Positive | None = None
    precision: Precision = "auto"
    cache: str | None = None
    trust_remote_code: bool = False
