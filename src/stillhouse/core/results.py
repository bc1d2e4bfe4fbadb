"""What a run found, as it stands in record.json: frozen, versioned, readable without torch."""

from __future__ import annotations

from pathlib import Path
from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field

from stillhouse.core.errors import UsageError

SCHEMA = 2

Interval = tuple[float, float]
Verdict = Literal["helped", "hurt", "no difference", "can't tell", "not comparable"]


class Result(BaseModel):
    model_config = ConfigDict(
        frozen=True, extra="forbid", validate_by_name=True, serialize_by_alias=True
    )

    @classmethod
    def open(cls, out: Path, what: str) -> Self:
        """The record of the finished run in `out`. Raises UsageError if there is none, which calls
        it `what`."""
        path = out / "record.json"
        try:
            return cls.model_validate_json(path.read_text(encoding="utf-8"))
        except OSError:
            raise UsageError(f"{out} is no finished {what}: it has no record.json") from None
        except ValueError:  # pydantic's and UTF-8's are both one
            raise UsageError(
                f"{path} is damaged, or no {what}'s: delete it, and run its command again"
            ) from None


class Bin(Result):
    """One bin of the reliability diagram: mean confidence and accuracy of the rows in it."""

    confidence: float
    accuracy: float
    count: int


class Efficiency(Result):
    """What running a model costs. None means it was not measured. Of a model that writes, latency
    and throughput are of whole texts written greedily, and so are tokens.

    Latency and FLOPs are of one row of `tokens` tokens; throughput is of `batch` rows together, of
    `batch_tokens` tokens each; peak memory of `memory_batch` rows of `tokens` tokens."""

    parameters: int
    bytes: int
    flops: int | None = None
    latency_ms: float | None = None
    latency_p95_ms: float | None = None
    throughput_per_s: float | None = None
    tokens_per_s: float | None = None
    peak_memory_bytes: int | None = None
    tokens: int | None = None
    batch: int | None = None
    batch_tokens: int | None = None
    memory_batch: int | None = None


class ClassResult(Result):
    """One label's rows among those reported. None: no row has that gold label (recall), or that
    answer (precision), or either (f1). `confused_with`: the answer most often given instead."""

    label: str
    rows: int
    answered: int
    precision: float | None
    recall: float | None
    f1: float | None
    confused_with: str | None = None
    confused_rows: int = 0


class ModelResult(Efficiency):
    """One model on the reported rows. `score` is the record's `metric`; for a trained
    model it is the mean over seeds, and `interval` covers rows and seeds. `never_predicted`: the
    classes that at least one reported row has, and that the model answers to none of them."""

    name: str
    score: float
    interval: Interval
    metrics: dict[str, float]
    calibration_error: float | None = None
    reliability: list[Bin] = []
    confusion: list[list[int]] | None = None
    never_predicted: list[str] = []
    classes: list[ClassResult] = []


class FloorResult(Result):
    """A bag of words that learnt from `rows` of the labelled rows in `seconds`, on the reported
    rows, in the record's `metric`: what a model should be better than."""

    name: str
    score: float
    interval: Interval
    metrics: dict[str, float]
    rows: int
    seconds: float


class TrainedResult(ModelResult):
    """A student or its baseline. `agreement` is the share of rows answered as the teacher does
    (for regression: the Pearson correlation with its answers). The shipped seed is the best on
    the held-out rows; calibration, confusion and never_predicted are its."""

    seeds: list[float]
    shipped_seed: int | None = None
    shipped_score: float | None = None
    agreement: float | None = None
    retention: float | None = None
    best_steps: list[int] = []


class Needed(Result):
    """How many more seeds (on as many rows), or more test rows (with as many seeds), would decide
    an open verdict, if the gain stays what it is. None: no number of them alone; of seeds also:
    there is one so far."""

    more_seeds: int | None
    more_rows: int | None


class Gain(Result):
    """Student minus baseline, paired by row and seed. `p_value` is two-sided. `margin`: the
    largest difference that counts as none, in the metric's values; `seeds`: how many of each side
    (with one, all is said of these two models only); `needed`: what would decide, where the
    verdict is "can't tell"; `reason`: why the two are not comparable, where they are not."""

    value: float
    interval: Interval
    p_value: float
    margin: float = 0.0
    seeds: int = 1
    needed: Needed | None = None
    reason: str | None = None


class BatchResult(Result):
    """The same file on the same `rows`, each alone and in batches of `batch`: the metric of both,
    and how many answers differ."""

    rows: int
    batch: int
    alone: float
    together: float
    changed: int


class ExportResult(Result):
    """An exported model: its parity with the PyTorch student and its own cost, on rows as in
    `Efficiency`. `batches`: of int8, whose answers depend on the rows beside them."""

    format: Literal["onnx", "onnx-int8"]
    path: str
    bytes: int
    latency_ms: float | None
    latency_p95_ms: float | None
    throughput_per_s: float | None
    score: float
    agreement: float
    max_difference: float
    tokens: int | None = None
    batch: int | None = None
    batch_tokens: int | None = None
    batches: BatchResult | None = None


class Disagreement(Result):
    """A reported row on which the student and the teacher answer differently."""

    text: str
    pair: str | None = None
    gold: str
    teacher: str
    student: str
    teacher_confidence: float | None = None
    student_confidence: float | None = None


class StageResult(Result):
    """One stage of the student's training, over all seeds. `score` is the held-out `metric` of the
    kept weights, mean over seeds. `gradient_share`: each term's part of the sum of the terms'
    gradient norms, mean over seeds and logged steps."""

    name: str
    data: str
    rows: int
    terms: list[str]
    steps: int
    best_steps: list[int]
    seconds: float
    metric: str | None = None
    score: float | None = None
    gradient_share: dict[str, float] = {}


class Ablation(Result):
    """The same run without one term, or with gold answers in its place where the stage would have
    none to learn from. `gain` is the whole run minus this one."""

    stage: str
    without: str
    gold_instead: bool = False
    score: float
    interval: Interval
    seeds: list[float]
    gain: Gain
    verdict: Verdict


class Similarity(Result):
    """Linear CKA between the states of student layers (rows) and teacher layers (columns), from
    0, the embeddings' output, on `tokens` tokens of held-out rows."""

    tokens: int
    student: list[list[float]]
    baseline: list[list[float]] | None = None


class EstimatorResult(Result):
    """The gradient that sparse distributions give, against the dense one on the probe batch:
    angle in degrees and ratio of the norms; relative error that stays, and that of one batch."""

    angle: float
    norm: float
    bias: float
    noise: float


class DistributionResult(Result):
    """What is kept of a teacher's distributions: so many of the likeliest choices of a token and so
    many drawn, `bytes_per_token`; the teacher's probability that is kept exactly; which estimator
    was taken, and why. `before` and `after`: by estimator, for the student before its training and
    after it."""

    top: int
    drawn: int
    bytes_per_token: float
    covered: float
    estimator: str
    why: str
    tokens: int
    before: dict[str, EstimatorResult]
    after: dict[str, EstimatorResult]


class PairResult(Result):
    """Two teachers on held-out tokens: for what share of them they find the same choice likeliest,
    and the Jensen-Shannon divergence of their distributions, nats."""

    models: tuple[str, str]
    same_choice: float
    divergence: float


class TeachersResult(Result):
    """How far several teachers agree on held-out rows. `disagreement`: the entropy of their mean
    less the mean of their entropies, nats. `passed`: by seed, the groups whose teachers were
    switched off at the end."""

    models: list[str]
    combine: str
    pairs: list[PairResult] = []
    disagreement: float | None = None
    passed: dict[str, list[str]] = {}


class DecodedResult(Result):
    """The teacher's texts that a stage learnt from, and those left out, by reason."""

    stage: str
    targets: str
    texts: int
    dropped: dict[str, int]


class DataSummary(Result):
    """How many rows went where, and what was left out."""

    train: int
    labelled: int
    unlabelled: int
    held_out: int
    reported: int
    labels: list[str]
    dropped: dict[str, int] = {}


class Timing(Result):
    """Wall seconds. `examples_per_s` is the student's training rate over all its epochs. The
    teacher was asked about `teacher_asked` rows in `teacher_s`; it had answered `teacher_cached`
    before this run, in no time. None: its answers were not kept."""

    teacher_s: float
    student_s: float
    baseline_s: float | None = None
    total_s: float
    examples_per_s: float
    teacher_asked: int | None = None
    teacher_cached: int | None = None


class KeptLayer(Result):
    """What stays of a layer, of how much; 0 of both: the layer is gone."""

    layer: int
    heads: int
    of_heads: int
    neurons: int
    of_neurons: int


class Removed(Result):
    """What was cut out of a model before it was distilled. `damage`: how far its answers to the
    scored training rows were from the whole model's then (nats; of a regression, squared
    differences over the variance). Latency in `runtime` at `batch` rows, where speed was asked."""

    layers: list[KeptLayer]
    parameters: int
    parameters_before: int
    damage: float
    runtime: str | None = None
    batch: int | None = None
    latency_ms: float | None = None
    latency_before_ms: float | None = None


class Record(Result):
    """A distillation's result. Stable: new fields may come, these stay. `best`: which model to
    take, by its mean score; `lead`: the sentence's first part, which says so; `weak_teacher`: each
    sign that the teacher is weak; `not_comparable`: why, where the verdict is that; without a
    baseline, why the teacher's score is no yardstick."""

    version: Literal[2] = Field(default=SCHEMA, alias="schema")
    flow: Literal["distill", "finetune"]
    task: str
    metric: str
    data: DataSummary
    teacher: ModelResult | None
    student: TrainedResult
    baseline: TrainedResult | None
    gain: Gain | None
    verdict: Verdict | None
    not_comparable: str | None = None
    best: Literal["student", "baseline"] = "student"
    lead: str = ""
    sentence: str
    weak_teacher: list[str] = []
    timing: Timing
    exports: list[ExportResult] = []
    disagreements: list[Disagreement] = []
    warnings: list[str] = []
    temperature: float | None = None
    stages: list[StageResult] = []
    ablations: list[Ablation] = []
    similarity: Similarity | None = None
    diagnosis: list[str] = []
    distributions: DistributionResult | None = None
    teachers: TeachersResult | None = None
    decoded: list[DecodedResult] = []
    signatures: dict[str, str] = {}
    removed: Removed | None = None
    floor: FloorResult | None = None
