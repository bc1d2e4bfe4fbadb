"""Settings of a run: frozen, unknown keys refused, written out in full to config.yaml."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from stillhouse.core.sections import (
    AugmentConfig,
    CorpusConfig,
    DataConfig,
    EvaluationConfig,
    ExportConfig,
    FinetuneTraining,
    LabelConfig,
    Margin,
    MaskingConfig,
    Metric,
    StudentConfig,
    TrainingConfig,
)
from stillhouse.core.terms import (
    AnyTerm,
    Config,
    InnerTermConfig,
    Positive,
    Schedule,
    Share,
    TermConfig,
)
from stillhouse.core.writing import (
    DecodeConfig,
    OnPolicyConfig,
    PassingConfig,
    TeacherConfig,
    WritingConfig,
)

__all__ = [
    "DISTILBERT",
    "POSITIONS",
    "SOFT_AND_GOLD",
    "WORD_LEVEL",
    "WRITING",
    "AugmentConfig",
    "CorpusConfig",
    "DataConfig",
    "DistillConfig",
    "EvaluationConfig",
    "ExportConfig",
    "FinetuneConfig",
    "FinetuneTraining",
    "GoldConfig",
    "LabelConfig",
    "Margin",
    "MaskingConfig",
    "Metric",
    "NewConfig",
    "StageConfig",
    "StudentConfig",
    "Task",
    "TrainingConfig",
]

Task = Literal["auto", "classification", "regression", "span", "masked_lm", "seq2seq", "causal_lm"]
WRITING = ("seq2seq", "causal_lm")  # tasks of models that write
POSITIONS = 512  # tokens of a text that a new model takes


SOFT_AND_GOLD: tuple[AnyTerm, ...] = (
    TermConfig(kind="soft", weight=Schedule(start=0.9), temperature=Schedule(start=2.0)),
    TermConfig(kind="gold", weight=Schedule(start=0.1)),
)
# The weights of DistilBERT's published run (Sanh et al. 2019), all terms on masked tokens. Its code
# takes the soft term over every token unless it is told to keep to the masked ones; only these pay
# for the vocabulary's head here.
DISTILBERT: tuple[AnyTerm, ...] = (
    TermConfig(kind="soft", weight=Schedule(start=5.0), temperature=Schedule(start=2.0)),
    TermConfig(kind="gold", weight=Schedule(start=2.0)),
    InnerTermConfig(kind="cosine", weight=Schedule(start=1.0)),
)


# Kim & Rush 2016, sec. 3.1: half of either, at a temperature of 1.
WORD_LEVEL: tuple[AnyTerm, ...] = (
    TermConfig(kind="soft", weight=Schedule(start=0.5)),
    TermConfig(kind="gold", weight=Schedule(start=0.5)),
)


class StageConfig(Config):
    """One part of a training, with its own data, terms, schedule and stop.

    rows: which of the run's rows; augment: with variants of them, which the teacher answers.
    corpus: running text instead of rows; the encoder is then trained as a masked language model.
    teacher: another model for this stage, such as the pretrained one. targets: the texts that a
    model that writes learns from: the data's own, the teacher's decoded ones, or of its best the
    closest to the data's. on_policy: a share of its batches it writes itself. What `training`
    leaves out is the run's.
    """

    name: Annotated[str, Field(pattern=r"^[A-Za-z][\w-]*$")]
    objective: Annotated[tuple[AnyTerm, ...], Field(min_length=1)]
    training: TrainingConfig = TrainingConfig()
    rows: Literal["all", "labelled", "unlabelled"] = "all"
    augment: AugmentConfig | None = None
    corpus: CorpusConfig | None = None
    masking: MaskingConfig = MaskingConfig()
    teacher: str | None = None
    targets: Literal["gold", "decoded", "closest"] = "gold"
    on_policy: OnPolicyConfig | None = None

    @model_validator(mode="after")
    def _one_source(self) -> StageConfig:
        if self.corpus and (self.augment or self.rows != "all"):
            raise ValueError("a stage trains on a corpus or on rows (rows, augment), not both")
        if self.teacher and not self.corpus:
            raise ValueError("only a stage on a corpus may have its own teacher")
        return self


class DistillConfig(Config):
    """`objective` and `training` are of a run of one stage; `stages` are several. Where neither is
    given, the objective is soft targets and gold answers, a masked language model's DistilBERT's.

    teachers: several of models that write; their answers are combined as the mean of their
    distributions, by drawing one a batch, or by asking each only for the rows of its group
    (data.group), where `passing` switches it off.
    """

    flow: Literal["distill"] = "distill"
    task: Task = "auto"
    teacher: str
    teachers: tuple[TeacherConfig, ...] = ()
    combine: Literal["mean", "random", "route"] = "mean"
    passing: PassingConfig | None = None
    data: DataConfig
    student: StudentConfig = StudentConfig()
    objective: tuple[AnyTerm, ...] = SOFT_AND_GOLD
    training: TrainingConfig = TrainingConfig()
    stages: tuple[StageConfig, ...] = ()
    masking: MaskingConfig = MaskingConfig()
    label: LabelConfig = LabelConfig()
    decode: DecodeConfig = DecodeConfig()
    writing: WritingConfig = WritingConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    export: ExportConfig = ExportConfig()
    cache: str | None = None
    trust_remote_code: bool = False
    keep_checkpoints: bool = False

    @model_validator(mode="before")
    @classmethod
    def _default(cls, values: Any) -> Any:
        """Gives a language model of one stage, with no objective, its own."""
        own = {"masked_lm": DISTILBERT, **dict.fromkeys(WRITING, WORD_LEVEL)}
        if not isinstance(values, dict) or values.get("task") not in own:
            return values
        if values.get("stages") or values.get("objective") is not None:
            return values
        return {**values, "objective": own[values["task"]]}

    @model_validator(mode="before")
    @classmethod
    def _first_teacher(cls, values: Any) -> Any:
        """Of several teachers the first is the run's, unless another is named."""
        if not isinstance(values, dict) or values.get("teacher") or not values.get("teachers"):
            return values
        first = values["teachers"][0]
        name = first.get("model") if isinstance(first, dict) else getattr(first, "model", None)
        return values if name is None else {**values, "teacher": name}

    @model_validator(mode="after")
    def _writing(self) -> DistillConfig:
        """Refuses what only models that write can have."""
        if self.task in WRITING:
            if self.combine == "route" and self.teachers and self.data.group is None:
                raise ValueError("teachers by group need a column that says it: set data.group")
            if self.combine == "route" and any(t.group is None for t in self.teachers):
                raise ValueError("combine route needs the group of every teacher")
            if self.passing and not (self.teachers and self.combine == "route"):
                raise ValueError("passing is for teachers by group: set teachers, combine: route")
            return self
        own = {"teachers": self.teachers, "passing": self.passing}
        own["label.tokens sparse"] = self.label.tokens == "sparse"
        own["targets"] = any(stage.targets != "gold" for stage in self.stages)
        own["on_policy"] = any(stage.on_policy for stage in self.stages)
        if given := [name for name, value in own.items() if value]:
            raise ValueError(f"{given[0]} is for models that write: set task seq2seq or causal_lm")
        return self

    @model_validator(mode="before")
    @classmethod
    def _inherit(cls, values: Any) -> Any:
        """Gives every stage the run's training settings where it has none of its own."""
        if not isinstance(values, dict) or not isinstance(values.get("stages"), list | tuple):
            return values
        shared = values.get("training") or {}
        shared = shared if isinstance(shared, dict) else shared.model_dump()
        stages = []
        for stage in values["stages"]:
            own = stage.model_dump(exclude_unset=True) if isinstance(stage, StageConfig) else stage
            if isinstance(own, dict) and isinstance(own.get("training", {}), dict):
                own = {**own, "training": {**shared, **own.get("training", {})}}
            stages.append(own)
        return {**values, "stages": stages}

    @model_validator(mode="after")
    def _terms(self) -> DistillConfig:
        if self.stages and self.objective != SOFT_AND_GOLD:
            raise ValueError("give either an objective or stages, which have their own")
        names = [stage.name for stage in self.stages]
        if len(set(names)) < len(names):
            raise ValueError(f"two stages have the same name: {', '.join(names)}")
        if self.task == "masked_lm":
            for stage in self.stages:
                if stage.corpus or stage.augment or stage.rows != "all":
                    raise ValueError(
                        f"a masked language model's stages all train on the run's text: stage "
                        f"{stage.name} can have no corpus, rows or augment"
                    )
        learns = any(term.kind != "gold" for stage in self.plan for term in stage.objective)
        if not learns and all(stage.targets == "gold" for stage in self.plan):
            raise ValueError("the objective uses no answer of the teacher: add a soft or hard term")
        return self

    @property
    def plan(self) -> tuple[StageConfig, ...]:
        """The stages; of a run of one, that one."""
        own = {"objective": self.objective, "training": self.training, "masking": self.masking}
        return self.stages or (StageConfig(name="distil", **own),)


class GoldConfig(Config):
    """What any training of a pretrained model on gold answers is made of."""

    task: Task = "auto"
    model: str
    data: DataConfig
    training: TrainingConfig = TrainingConfig()
    masking: MaskingConfig = MaskingConfig()
    writing: WritingConfig = WritingConfig()
    cache: str | None = None
    trust_remote_code: bool = False
    keep_checkpoints: bool = False


class FinetuneConfig(GoldConfig):
    """`masks`: a file of masks (a ticket's) whose weights stay 0; auto: the ones in the model's own
    folder, if it has any; none: every weight is trained. metric: what selects and is reported;
    left out, the task's own. efficiency: measure speed and memory too."""

    flow: Literal["finetune"] = "finetune"
    training: FinetuneTraining = FinetuneTraining()  # pyright: ignore[reportIncompatibleVariableOverride]
    metric: Metric | None = None
    masks: str = "auto"
    seed: int = 0
    resamples: Annotated[int, Field(ge=2)] = 2000
    efficiency: bool = True


class NewConfig(Config):
    """A new model: the tokenizer, learnt from `data` or taken from `tokenizer_from`, and the
    shape. family: marian, bart or t5 (seq2seq); gpt2 or llama (causal_lm)."""

    task: Literal["seq2seq", "causal_lm"]
    data: DataConfig | None = None
    tokenizer: Literal["bpe", "unigram"] = "bpe"
    vocabulary: Positive = 8000
    tokenizer_from: str | None = None
    family: str | None = None
    width: Positive = 256
    layers: Positive = 3
    decoder_layers: Positive | None = None
    ffn: Positive | None = None
    heads: Positive | None = None
    positions: Positive = POSITIONS
    dropout: Share = 0.1
    seed: int = 0
    cache: str | None = None

    @model_validator(mode="after")
    def _tokens(self) -> NewConfig:
        if self.data is None and self.tokenizer_from is None:
            raise ValueError("give data (--data) to learn a tokenizer from, or tokenizer_from")
        given = self.model_fields_set & {"tokenizer", "vocabulary"}
        if self.tokenizer_from is not None and given:
            raise ValueError(f"tokenizer_from is a whole tokenizer: leave out {', '.join(given)}")
        return self
