"""Settings of a run: frozen, unknown keys refused, written out in full to config.yaml."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from stillhouse.core.terms import (
    AnyTerm,
    Config,
    InnerTermConfig,
    Positive,
    Schedule,
    Share,
    TermConfig,
)

Metric = Literal["accuracy", "macro_f1", "matthews", "pearson", "spearman", "f1", "exact_match"]


class DataConfig(Config):
    """Where rows come from. `unlabelled` rows have text only; the teacher answers them. For a
    masked language model `path` is running text, cut into blocks of `max_length` tokens; of a
    question and its passage they are a window. Left out: 128 tokens, of windows 384."""

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
    max_length: Positive | None = None
    label_map: dict[str, str] = Field(default_factory=dict)
    packed: bool = True

    def tokens(self, task: str) -> int:
        """The most tokens that a model is given at once."""
        return self.max_length or (384 if task == "span" else 128)


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
    or a named model. family distilbert: taken layers of a BERT without its token types and
    pooler. fresh: nothing of the teacher's weights but the shape."""

    layers: Positive | list[Positive] | None = None
    keep: Literal["alternate", "first", "last"] = "alternate"
    family: Literal["same", "distilbert"] = "same"
    source: str | None = None
    model: str | None = None
    width: Positive | None = None
    ffn: Positive | None = None
    heads: Positive | None = None
    fresh: bool = False

    @model_validator(mode="after")
    def _one_kind(self) -> StudentConfig:
        if self.model is not None and (self.layers or self.width or self.ffn or self.heads):
            raise ValueError("give either 'model' or a shape (layers, width, ffn, heads), not both")
        if self.model is not None and self.source is not None:
            raise ValueError("give either 'model' or 'source', not both")
        if self.fresh and self.model is not None:
            raise ValueError("a named model is not fresh: give its shape instead")
        if self.family == "distilbert" and (self.model or self.width or self.ffn or self.heads):
            raise ValueError("family distilbert takes layers of its source, no other shape")
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
    """How the teacher is asked. states: inner states are read as they are needed (live), or kept
    on disk in bf16 or int8, which takes room and saves the teacher's forward in every epoch."""

    batch_size: Positive = 64
    max_tokens: Positive = 8192
    precision: Literal["bf16", "float32"] = "bf16"
    check_rows: Positive = 64
    states: Literal["live", "bf16", "int8"] = "live"


class ProofConfig(Config):
    """What is measured and compared at the end. ablation: also train without each term."""

    metric: Metric | None = None
    seeds: list[int] = Field(default_factory=lambda: [0, 1, 2])
    baseline: bool = True
    ablation: bool = False
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


class StageConfig(Config):
    """One part of a training, with its own data, terms, schedule and stop.

    rows: which of the run's rows; augment: with variants of them, which the teacher answers.
    corpus: running text instead of rows; the encoder is then trained as a masked language model.
    teacher: another model for this stage, such as the pretrained one. What `training` leaves out
    is the run's.
    """

    name: Annotated[str, Field(pattern=r"^[A-Za-z][\w-]*$")]
    objective: Annotated[tuple[AnyTerm, ...], Field(min_length=1)]
    training: TrainingConfig = TrainingConfig()
    rows: Literal["all", "labelled", "unlabelled"] = "all"
    augment: AugmentConfig | None = None
    corpus: CorpusConfig | None = None
    masking: MaskingConfig = MaskingConfig()
    teacher: str | None = None

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
    """

    flow: Literal["distill"] = "distill"
    task: Literal["auto", "classification", "regression", "span", "masked_lm"] = "auto"
    teacher: str
    data: DataConfig
    student: StudentConfig = StudentConfig()
    objective: tuple[AnyTerm, ...] = SOFT_AND_GOLD
    training: TrainingConfig = TrainingConfig()
    stages: tuple[StageConfig, ...] = ()
    masking: MaskingConfig = MaskingConfig()
    label: LabelConfig = LabelConfig()
    proof: ProofConfig = ProofConfig()
    export: ExportConfig = ExportConfig()
    cache: str | None = None
    trust_remote_code: bool = False
    keep_checkpoints: bool = False

    @model_validator(mode="before")
    @classmethod
    def _default(cls, values: Any) -> Any:
        """Gives a masked language model of one stage, with no objective, its own."""
        if not isinstance(values, dict) or values.get("task") != "masked_lm":
            return values
        if values.get("stages") or values.get("objective") is not None:
            return values
        return {**values, "objective": DISTILBERT}

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
        if not any(term.kind != "gold" for stage in self.plan for term in stage.objective):
            raise ValueError("the objective uses no answer of the teacher: add a soft or hard term")
        return self

    @property
    def plan(self) -> tuple[StageConfig, ...]:
        """The stages; of a run of one, that one."""
        own = {"objective": self.objective, "training": self.training, "masking": self.masking}
        return self.stages or (StageConfig(name="distil", **own),)


class GoldConfig(Config):
    """What any training of a pretrained model on gold answers is made of."""

    task: Literal["auto", "classification", "regression", "span", "masked_lm"] = "auto"
    model: str
    data: DataConfig
    training: TrainingConfig = TrainingConfig()
    masking: MaskingConfig = MaskingConfig()
    cache: str | None = None
    trust_remote_code: bool = False
    keep_checkpoints: bool = False


class FinetuneConfig(GoldConfig):
    """`masks`: a file of masks (a ticket's) whose weights stay 0; auto: the ones in the model's own
    folder, if it has any; none: every weight is trained."""

    flow: Literal["finetune"] = "finetune"
    masks: str = "auto"
    seed: int = 0
    resamples: Annotated[int, Field(ge=2)] = 2000
