"""Sections of a run's settings: its data and student, how it is trained, asked, measured."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import BeforeValidator, Field, model_validator

from stillhouse.core.terms import Config, Positive, Precision, Share


def _as_written(value: object) -> object:
    """A label that YAML takes for true or false, as it was written."""
    return str(value).lower() if isinstance(value, bool) else value


Beta = Annotated[float, Field(ge=0, lt=1)]
Metric = Literal[
    "accuracy",
    "macro_f1",
    "matthews",
    "pearson",
    "spearman",
    "f1",
    "exact_match",
    "bleu",
    "chrf",
    "log_likelihood",
]


Margin = Annotated[float, Field(ge=0, allow_inf_nan=False)] | None


class DataConfig(Config):
    """Where rows come from. `unlabelled` rows have text only; the teacher answers them. For a
    masked language model `path` is running text, cut into blocks of `max_length` tokens; of a
    question and its passage they are a window. Left out: 128 tokens, of windows 384, of prompts
    with their answers 512. target_length: tokens of an answer that an encoder-decoder writes (as
    many as max_length). separator: between prompt and answer of a language model. group: the
    column of a row's language or task. no_label: the label that stands for none; left out: -1 where
    the others are 0, 1, 2, ..."""

    path: str
    unlabelled: str | None = None
    text: str | None = None
    pair: str | None = None
    label: str | None = None
    no_label: Annotated[str | None, BeforeValidator(_as_written)] = None
    dev: str | None = None
    held_out: Share = 0.1
    held_out_rows: Positive = 2000
    dev_share: Share = 0.2
    labelled_rows: Positive | None = None
    max_length: Positive | None = None
    group: str | None = None
    target_length: Positive | None = None
    separator: str = "\n"
    label_map: dict[str, str] = Field(default_factory=dict)
    packed: bool = True

    def tokens(self, task: str) -> int:
        """The most tokens that a model is given at once."""
        return self.max_length or {"span": 384, "causal_lm": 512}.get(task, 128)


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
    teacher's embeddings. precision: of the masked language model's forward."""

    on_cpu: ClassVar[bool] = True
    copies: Positive = 20
    share: Share = 0.4
    candidates: Positive = 15
    model: str | None = None
    vectors: str | None = None
    precision: Precision = "auto"
    seed: int = 0


class StudentConfig(Config):
    """The student's shape: fewer of the teacher's layers (or of `source`'s), a fresh smaller one,
    or a named model. family distilbert: taken layers of a BERT without its token types and
    pooler. fresh: nothing of the teacher's weights but the shape. Of an encoder-decoder `layers`
    cuts both sides alike; decoder_layers is its decoder's own count or list."""

    layers: Positive | list[Positive] | None = None
    decoder_layers: Positive | list[Positive] | None = None
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
        shaped = self.layers or self.decoder_layers or self.width or self.ffn or self.heads
        if self.model is not None and shaped:
            raise ValueError("give either 'model' or a shape (layers, width, ffn, heads), not both")
        if self.model is not None and self.source is not None:
            raise ValueError("give either 'model' or 'source', not both")
        if self.fresh and self.model is not None:
            raise ValueError("a named model is not fresh: give its shape instead")
        if self.family == "distilbert" and (self.model or self.width or self.ffn or self.heads):
            raise ValueError("family distilbert takes layers of its source, no other shape")
        for layers in (self.layers, self.decoder_layers):
            if not isinstance(layers, list):
                continue
            if not layers or sorted(set(layers)) != layers:
                raise ValueError(f"an explicit list of layers must rise, got {layers}")
            if self.width or self.ffn or self.heads:
                raise ValueError(
                    "a fresh shape (width, ffn, heads) takes a count of layers, no list"
                )
        return self


class TrainingConfig(Config):
    """The loop's settings. `epochs` or `steps` ends it, whichever is given (`steps` wins).
    head_memory_mb: what the scores over a vocabulary may take at once; beyond it the loss is taken
    a few rows at a time."""

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
    betas: tuple[Beta, Beta] = (0.9, 0.999)
    precision: Precision = "auto"
    embeddings: Literal["rows", "dense", "frozen"] = "rows"
    dropout: Annotated[float, Field(ge=0, lt=1)] | None = None
    select: Literal["best", "last"] = "best"
    evaluations: Positive = 6
    patience: Positive | None = None
    log_every: Positive = 50
    checkpoint_s: Annotated[float, Field(gt=0)] = 60.0
    head_memory_mb: Positive = 256


class FinetuneTraining(TrainingConfig):
    """auto: chosen for the data and the model, see training/defaults. select: the weights that are
    kept, those that do best on the held-out rows or the last ones. class_weights: what a row counts
    for in the loss, by its class: the same, as many times more as the class is rarer (balanced), or
    the square root of that (sqrt); on average over the training rows it is 1."""

    epochs: Annotated[float, Field(gt=0)] | Literal["auto"] = "auto"  # pyright: ignore[reportIncompatibleVariableOverride]
    lr: Annotated[float, Field(gt=0)] | Literal["auto"] = "auto"  # pyright: ignore[reportIncompatibleVariableOverride]
    select: Literal["auto", "best", "last"] = "auto"  # pyright: ignore[reportIncompatibleVariableOverride]
    class_weights: Literal["none", "balanced", "sqrt"] = "none"


class LabelConfig(Config):
    """How the teacher is asked. states: inner states are read as they are needed (live), or kept
    on disk in bf16 or int8, which takes room and saves the teacher's forward in every epoch.

    tokens: a model that writes is asked in every step (live), or once, and part of its
    distributions kept on disk (sparse): of each token's the `top` likeliest choices, and `drawn`
    from the rest. estimator: what is made of these, see core.types.Sparse; auto: what comes
    closest to the whole on a probe batch."""

    on_cpu: ClassVar[bool] = True
    batch_size: Positive = 64
    max_tokens: Positive = 8192
    precision: Precision = "auto"
    check_rows: Positive = 64
    states: Literal["live", "bf16", "int8"] = "live"
    tokens: Literal["live", "sparse"] = "live"
    top: Annotated[int, Field(ge=0)] = 4
    drawn: Annotated[int, Field(ge=0)] = 28
    estimator: Literal["auto", "tail", "sampled", "renormalised"] = "auto"

    @model_validator(mode="after")
    def _keeps_what_it_needs(self) -> LabelConfig:
        needed = {"tail": "top", "renormalised": "top", "sampled": "drawn"}.get(self.estimator)
        if self.tokens == "sparse" and needed and not getattr(self, needed):
            raise ValueError(f"estimator {self.estimator} needs {needed} of 1 or more")
        if self.tokens == "sparse" and not self.top + self.drawn:
            raise ValueError("top and drawn are both 0: nothing would be kept")
        return self


class EvaluationConfig(Config):
    """What is measured and compared at the end. ablation: also train without each term. margin:
    the largest difference that counts as none, in points (of log-likelihoods in nats a token);
    left out, 1 point (0.01 nats)."""

    metric: Metric | None = None
    seeds: list[int] = Field(default_factory=lambda: [0, 1, 2])
    baseline: bool = True
    ablation: bool = False
    margin: Margin = None
    resamples: Annotated[int, Field(ge=2)] = 2000
    efficiency: bool = True

    @model_validator(mode="after")
    def _distinct(self) -> EvaluationConfig:
        if not self.seeds or len(set(self.seeds)) != len(self.seeds):
            raise ValueError(f"seeds must be distinct and at least one, got {self.seeds}")
        return self


class ExportConfig(Config):
    onnx: bool = True
    int8: bool = True
