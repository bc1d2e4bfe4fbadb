"""Settings of a run: frozen, unknown keys refused, written out in full to config.yaml."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, get_args

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from stillhouse.core.errors import UsageError, unknown

C = TypeVar("C", bound=BaseModel)

Positive = Annotated[int, Field(gt=0)]
Share = Annotated[float, Field(ge=0, le=1)]


class Config(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class DataConfig(Config):
    """Where rows come from. `unlabelled` rows have text only; the teacher answers them."""

    path: str
    unlabelled: str | None = None
    text: str | None = None
    pair: str | None = None
    label: str | None = None
    dev: str | None = None
    held_out: Share = 0.1
    held_out_rows: Positive = 2000
    dev_share: Share = 0.2
    labelled_rows: Positive | None = None
    max_length: Positive = 128
    label_map: dict[str, str] = {}


class Schedule(Config):
    """A value that moves from `start` to `end` over the run's steps."""

    shape: Literal["constant", "linear", "cosine"] = "constant"
    start: float
    end: float | None = None

    @model_validator(mode="before")
    @classmethod
    def _number(cls, value: object) -> object:
        return {"start": value} if isinstance(value, int | float) else value

    @model_validator(mode="after")
    def _needs_end(self) -> Schedule:
        if self.shape != "constant" and self.end is None:
            raise ValueError(f"a {self.shape} schedule needs 'end'")
        return self


class TermConfig(Config):
    """One term of the objective.

    soft: a divergence between teacher and student at a temperature, times T^2 (T for total
    variation); logit_mse is taken of the raw scores, whatever the temperature.
    hard: cross-entropy with the teacher's choice. gold: the data's own labels, where it has them.
    """

    kind: Literal["soft", "hard", "gold"]
    weight: Schedule = Schedule(start=1.0)
    divergence: str = "forward_kl"
    temperature: Schedule = Schedule(start=1.0)
    squared_temperature: bool = True
    standardise: bool = False
    beta: float | None = None
    alpha: float | None = None


Pairs = list[tuple[Annotated[int, Field(ge=0)], Annotated[int, Field(ge=0)]]]


class InnerTermConfig(Config):
    """A term between inner layers of the student and of the teacher.

    layers: which student layer learns from which of the teacher's. uniform: m from m L_T / L_S;
    top: m from m + L_T - L_S; bottom: m from m; skip and last: as uniform and top without the
    student's last layer; final: last from last; or pairs [student, teacher], from 1 (0: the
    embeddings). Left out: what the term's paper uses.
    projection: a learnt matrix from the student's width to the teacher's, trained along and thrown
    away. auto: where the widths differ.
    variant: where a paper and its code differ. heads, of: for relations. normalise: for patience.
    """

    kind: Literal[
        "hint",
        "patience",
        "embedding",
        "hidden",
        "attention",
        "attention_kl",
        "relations",
        "cosine",
        "gram",
    ]
    weight: Schedule = Schedule(start=1.0)
    variant: Literal["paper", "reference"] = "paper"
    layers: Literal["uniform", "top", "bottom", "skip", "last", "final"] | Pairs | None = None
    projection: Literal["auto", "always", "never"] | None = None
    of: tuple[Literal["queries", "keys", "values"], ...] | None = None
    heads: Positive | None = None
    normalise: bool | None = None


AnyTerm = TermConfig | InnerTermConfig


class MaskingConfig(Config):
    """Which tokens a masked language model has to guess, drawn anew for every batch.

    `share` of the tokens that are not special; of these `mask` become the mask token and
    `random` a random one, the rest stay. frequency_power: -0.7 makes rare tokens likelier, as
    their count in the corpus to that power.
    """

    share: Annotated[float, Field(gt=0, lt=1)] = 0.15
    mask: Share = 0.8
    random: Share = 0.1
    frequency_power: Annotated[float, Field(ge=-2, le=0)] | None = None

    @model_validator(mode="after")
    def _parts(self) -> MaskingConfig:
        if self.mask + self.random > 1:
            raise ValueError(f"mask and random are shares: {self.mask} + {self.random} is over 1")
        return self


class CorpusConfig(Config):
    """Running text: a .txt file, or a folder with train.txt and perhaps valid.txt and test.txt.

    packed: documents one after another, cut into blocks of `length` tokens; else each document by
    itself, cut where it is longer. A line is a document.
    """

    path: str
    length: Annotated[int, Field(ge=8)] = 128
    packed: bool = True
    held_out: Share = 0.02
    reported: Share = 0.05
    rows: Positive | None = None


class AugmentConfig(Config):
    """TinyBERT's augmentation: `copies` variants of each row, in which a word is replaced with
    probability `share` by one of `candidates` words: a masked language model's best guesses for
    a word of one piece (`model`), the nearest words by embedding for the others, or for all
    where there is no `model`. vectors: a text file of word vectors (GloVe's form) instead of the
    teacher's embeddings."""

    copies: Positive = 20
    share: Share = 0.4
    candidates: Positive = 15
    model: str | None = None
    vectors: str | None = None
    seed: int = 0


class StudentConfig(Config):
    """The student's shape: fewer of the teacher's layers (or of `source`'s), a fresh smaller one,
    or a named model."""

    layers: Positive | list[Positive] | None = None
    keep: Literal["alternate", "first", "last"] = "alternate"
    source: str | None = None
    model: str | None = None
    width: Positive | None = None
    ffn: Positive | None = None
    heads: Positive | None = None

    @model_validator(mode="after")
    def _one_kind(self) -> StudentConfig:
        if self.model is not None and (self.layers or self.width or self.ffn or self.heads):
            raise ValueError("give either 'model' or a shape (layers, width, ffn, heads), not both")
        if self.model is not None and self.source is not None:
            raise ValueError("give either 'model' or 'source', not both")
        if isinstance(self.layers, list):
            if not self.layers or sorted(set(self.layers)) != self.layers:
                raise ValueError(f"an explicit list of layers must rise, got {self.layers}")
            if self.width or self.ffn or self.heads:
                raise ValueError(
                    "a fresh shape (width, ffn, heads) takes a count of layers, no list"
                )
        return self


class TrainingConfig(Config):
    """The loop's settings. `epochs` or `steps` ends it, whichever is given (`steps` wins)."""

    epochs: Annotated[float, Field(gt=0)] = 3.0
    steps: Positive | None = None
    batch_size: Positive = 32
    max_tokens: Positive = 8192
    accumulation: Positive = 1
    lr: Annotated[float, Field(gt=0)] = 5e-5
    warmup: Share = 0.1
    decay: Literal["linear", "cosine", "constant"] = "linear"
    weight_decay: Annotated[float, Field(ge=0)] = 0.01
    clip: Annotated[float, Field(gt=0)] | None = 1.0
    betas: tuple[float, float] = (0.9, 0.999)
    precision: Literal["bf16", "float32"] = "bf16"
    embeddings: Literal["rows", "dense", "frozen"] = "rows"
    dropout: Annotated[float, Field(ge=0, lt=1)] | None = None
    select: Literal["best", "last"] = "best"
    evaluations: Positive = 6
    patience: Positive | None = None
    log_every: Positive = 50
    checkpoint_s: Annotated[float, Field(gt=0)] = 60.0


class LabelConfig(Config):
    """How the teacher is asked."""

    batch_size: Positive = 64
    max_tokens: Positive = 8192
    precision: Literal["bf16", "float32"] = "bf16"
    check_rows: Positive = 64


class ProofConfig(Config):
    """What is measured and compared at the end."""

    metric: Literal["accuracy", "macro_f1", "matthews", "pearson", "spearman"] | None = None
    seeds: list[int] = [0, 1, 2]
    baseline: bool = True
    resamples: Annotated[int, Field(ge=2)] = 2000
    efficiency: bool = True

    @model_validator(mode="after")
    def _distinct(self) -> ProofConfig:
        if not self.seeds or len(set(self.seeds)) != len(self.seeds):
            raise ValueError(f"seeds must be distinct and at least one, got {self.seeds}")
        return self


class ExportConfig(Config):
    onnx: bool = True
    int8: bool = True


SOFT_AND_GOLD = (
    TermConfig(kind="soft", weight=Schedule(start=0.9), temperature=Schedule(start=2.0)),
    TermConfig(kind="gold", weight=Schedule(start=0.1)),
)


class DistillConfig(Config):
    flow: Literal["distill"] = "distill"
    task: Literal["auto", "classification", "regression"] = "auto"
    teacher: str
    data: DataConfig
    student: StudentConfig = StudentConfig()
    objective: tuple[TermConfig, ...] = SOFT_AND_GOLD
    training: TrainingConfig = TrainingConfig()
    label: LabelConfig = LabelConfig()
    proof: ProofConfig = ProofConfig()
    export: ExportConfig = ExportConfig()
    cache: str | None = None
    trust_remote_code: bool = False
    keep_checkpoints: bool = False

    @model_validator(mode="after")
    def _terms(self) -> DistillConfig:
        if not any(term.kind in ("soft", "hard") for term in self.objective):
            raise ValueError("the objective uses no answer of the teacher: add a soft or hard term")
        return self


class FinetuneConfig(Config):
    flow: Literal["finetune"] = "finetune"
    task: Literal["auto", "classification", "regression"] = "auto"
    model: str
    data: DataConfig
    training: TrainingConfig = TrainingConfig()
    seed: int = 0
    resamples: Annotated[int, Field(ge=2)] = 2000
    cache: str | None = None
    trust_remote_code: bool = False
    keep_checkpoints: bool = False


def parse(kind: type[C], values: Mapping[str, Any]) -> C:
    """`values` as a checked config. Raises UsageError with one line on the first thing wrong."""
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        inner = ("constrained-", "list[", "function-", "tuple[")  # how pydantic names alternatives
        loc = [str(part) for part in first["loc"]]
        shown = [p for p in loc if not p.startswith(inner) and p not in ("int", "float")]
        where = ".".join(shown)
        if first["type"] == "extra_forbidden":
            known = _known(kind, first["loc"][:-1])
            raise UsageError(unknown("setting", str(first["loc"][-1]), known)) from None
        if first["type"] == "literal_error" and isinstance(first["input"], str):
            known = re.findall(r"'([^']*)'", first.get("ctx", {})["expected"])
            raise UsageError(unknown(where, first["input"], known)) from None
        message = first["msg"].removeprefix("Value error, ")
        raise UsageError(f"setting {where or 'config'}: {message}") from None


def _known(kind: type[BaseModel], path: Iterable[str | int]) -> list[str]:
    """Names of the settings of the section at `path`."""
    for part in path:
        if isinstance(part, str) and part in kind.model_fields:
            kind = next(_sections(kind.model_fields[part].annotation), kind)
    return list(kind.model_fields)


def _sections(annotation: object) -> Iterator[type[BaseModel]]:
    """The configs in an annotation: of a section itself, or of a tuple of sections."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for inner in get_args(annotation):
        yield from _sections(inner)


def read_yaml(path: Path) -> dict[str, Any]:
    """A config file's settings, unchecked."""
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UsageError(f"there is no config file {path}") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UsageError(f"{path} is not YAML: {str(error).splitlines()[0]}") from None
    if not isinstance(values, dict):
        raise UsageError(f"{path} holds no settings")
    return values


def override(values: dict[str, Any], settings: Iterable[str]) -> dict[str, Any]:
    """`values` with each 'a.b=value' of `settings` put in; values are read as YAML."""
    for setting in settings:
        name, equals, text = setting.partition("=")
        if not equals or not name:
            raise UsageError(f"--set takes name=value, as in training.lr=3e-5; got {setting!r}")
        *sections, last = name.split(".")
        place = values
        for section in sections:
            inner = place.setdefault(section, {})
            if not isinstance(inner, dict):
                raise UsageError(f"--set {name}: {section} is not a section")
            place = inner
        place[last] = _value(text)
    return values


def _value(text: str) -> Any:
    """YAML's reading of `text`, and numbers such as 3e-5, which YAML 1.1 takes for words."""
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError:
        raise UsageError(f"--set: can't read the value {text!r}") from None
    if isinstance(value, str):
        try:
            return float(value)
        except ValueError:
            return value
    return value
