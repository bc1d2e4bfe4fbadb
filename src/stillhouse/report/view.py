"""A record laid out for reading: the rows, columns and headline numbers of its page."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from stillhouse.core.results import (
    Efficiency,
    ExportResult,
    Gain,
    ModelResult,
    Record,
    Timing,
    TrainedResult,
    Verdict,
)
from stillhouse.core.units import LOWER_IS_BETTER, WRITTEN
from stillhouse.core.verdicts import in_words
from stillhouse.report import format as fmt
from stillhouse.report.cells import COSTS, Cell, Model, alone, size, together

EXPORT_NAMES = {"onnx": "ONNX", "onnx-int8": "ONNX int8"}
ACRONYMS = {
    "f1": "F1",
    "auc": "AUC",
    "rmse": "RMSE",
    "mse": "MSE",
    "mae": "MAE",
    "bleu": "BLEU",
    "chrf": "chrF",
}
AGREEMENT = "Agreement with the teacher"
TOP_CONFUSIONS = 20
TASKS = {
    "masked_lm": "masked language model",
    "causal_lm": "language model",
    "seq2seq": "sequence to sequence",
}


@dataclass(frozen=True)
class Entry:
    """One column of the models' table, one point of the scatter."""

    role: str
    title: str
    model: Model


@dataclass(frozen=True)
class Row:
    """`detail`: what all of its cells have in common."""

    label: str
    cells: Sequence[Cell]
    detail: str = ""


@dataclass(frozen=True)
class Group:
    title: str
    rows: Sequence[Row]


@dataclass(frozen=True)
class Headline:
    value: str
    label: str
    detail: str = ""


@dataclass(frozen=True)
class Confusion:
    gold: str
    answer: str
    rows: int
    share: str


SIGNS = {
    "helped": "▲",
    "hurt": "▼",
    "no difference": "=",
    "can't tell": "?",
    "not comparable": "≠",
}


def sign(verdict: str) -> str:
    return SIGNS[verdict]


def slug(verdict: str) -> str:
    """A verdict as the name of a style."""
    return verdict.replace("'", "").replace(" ", "-")


def gain_in_words(gain: Gain, verdict: Verdict | None, metric: str = "") -> str:
    """A gain with its interval, and what it amounts to."""
    told = f"{fmt.signed(gain.value, metric)} ({fmt.interval(gain.interval, metric)})"
    return told if verdict is None else f"{told}, {in_words(verdict, gain)}"


def role_names(record: Record) -> dict[str, str]:
    """What the page calls each run: a fine-tuned model is nobody's student."""
    student = "Student" if record.flow == "distill" else "Model"
    return {"teacher": "Teacher", "student": student, "baseline": "Baseline"}


def entries(record: Record) -> list[Entry]:
    names = role_names(record)
    models = {"teacher": record.teacher, "student": record.student, "baseline": record.baseline}
    found = [Entry(role, names[role], model) for role, model in models.items() if model is not None]
    exports = [Entry("export", EXPORT_NAMES[each.format], each) for each in record.exports]
    return found + exports


def groups(record: Record) -> list[Group]:
    """The models' table: what each is worth, and what it costs. Rows nobody has are left out."""
    models = [entry.model for entry in entries(record)]
    extra = dict.fromkeys(name for m in models if isinstance(m, ModelResult) for name in m.metrics)
    quality: list[tuple[str, Callable[[Model], Cell]]] = [
        (_row_name(record.metric), _score(record.metric)),
        ("Score of each seed", _seeds(record.metric)),
        *([(AGREEMENT, _agreement)] if record.teacher else []),
        *((_row_name(name), _metric(name)) for name in extra if name != record.metric),
        ("Calibration error (ECE)", _calibration),
        ("Agreement with its PyTorch model", _parity),
        ("Largest difference from it", _difference),
        (f"{_row_name(record.metric)}, rows one by one", alone(record.metric)),
        (f"{_row_name(record.metric)}, the same rows in batches", together(record.metric)),
    ]
    return [
        Group("Quality", _rows(quality, models)),
        Group("Cost", [_shared(row) for row in _rows(COSTS, models)]),
    ]


def _shared(row: Row) -> Row:
    """A row whose cells all say what they were measured on, and the same: it says so once."""
    details = {cell.detail for cell in row.cells if cell.text}
    if len(details) != 1:
        return row
    return Row(row.label, [Cell(cell.text) for cell in row.cells], details.pop())


def _rows(
    kinds: Sequence[tuple[str, Callable[[Model], Cell]]], models: Sequence[Model]
) -> list[Row]:
    made = [Row(label, [cell(model) for model in models]) for label, cell in kinds]
    return [row for row in made if any(cell.text for cell in row.cells)]


def metric_name(name: str) -> str:
    """`macro_f1` as Macro F1."""
    first, *others = name.split("_")
    begins = ACRONYMS.get(first, first[:1].upper() + first[1:])
    return " ".join([begins, *(ACRONYMS.get(word, word) for word in others)])


def lowered(metric: str) -> str:
    """A metric's name inside a sentence."""
    return WRITTEN.get(metric) or metric_name(metric).lower()


def _row_name(metric: str) -> str:
    return metric_name(metric) + (" (lower is better)" if metric in LOWER_IS_BETTER else "")


def of_tokens(record: Record) -> bool:
    """Whether what is scored is tokens, which have neither labels nor rows that lack one."""
    return record.task == "masked_lm" or record.metric == "log_likelihood"


def task_name(task: str) -> str:
    return TASKS.get(task, task.replace("_", " "))


def _score(metric: str) -> Callable[[Model], Cell]:
    def cell(model: Model) -> Cell:
        known = isinstance(model, ModelResult)
        detail = fmt.interval(model.interval, metric) if known else ""
        return Cell(fmt.score(model.score, metric), detail)

    return cell


def _seeds(metric: str) -> Callable[[Model], Cell]:
    def cell(model: Model) -> Cell:
        if isinstance(model, TrainedResult) and len(model.seeds) > 1:
            return Cell(" · ".join(fmt.score(seed, metric) for seed in model.seeds))
        return Cell("")

    return cell


def _agreement(model: Model) -> Cell:
    if isinstance(model, TrainedResult) and model.agreement is not None:
        return Cell(fmt.score(model.agreement))
    return Cell("")


def _parity(model: Model) -> Cell:
    return Cell(fmt.score(model.agreement) if isinstance(model, ExportResult) else "")


def _metric(name: str) -> Callable[[Model], Cell]:
    def cell(model: Model) -> Cell:
        if not isinstance(model, ModelResult):
            return Cell("")
        value = model.metrics.get(name)
        return Cell(None if value is None else fmt.score(value, name))

    return cell


def _calibration(model: Model) -> Cell:
    if not isinstance(model, ModelResult):
        return Cell("")
    value = model.calibration_error
    return Cell(None if value is None else fmt.score(value))


def _difference(model: Model) -> Cell:
    return Cell(fmt.tiny(model.max_difference) if isinstance(model, ExportResult) else "")


def headlines(record: Record) -> list[Headline]:
    """Three numbers of the model to take: quality kept, size, speed; against the teacher where
    there is one."""
    student, teacher = best(record), record.teacher
    metric = lowered(record.metric)
    if teacher is None:
        detail = fmt.interval(student.interval, record.metric)
        quality = Headline(fmt.score(student.score, record.metric), metric, detail)
        return [quality, _own_size(student), _own_speed(student)]
    return [
        _kept(record),
        _ratio(
            teacher.bytes,
            student.bytes,
            ("smaller", "larger", "the size"),
            size,
            "size not measured",
        ),
        _ratio(
            teacher.latency_ms,
            student.latency_ms,
            ("faster", "slower", "the speed"),
            fmt.milliseconds,
            "latency not measured",
        ),
    ]


def _own_size(model: Efficiency) -> Headline:
    return Headline(size(model.bytes), "on disk", f"{fmt.scaled(model.parameters)} parameters")


def _own_speed(model: Efficiency) -> Headline:
    if model.latency_ms is None:
        return Headline(fmt.DASH, "latency not measured")
    return Headline(fmt.milliseconds(model.latency_ms), "median latency")


def best(record: Record) -> TrainedResult:
    """The model to take: the student, or a baseline that is better."""
    if record.best == "baseline" and record.baseline is not None:
        return record.baseline
    return record.student


def retention(record: Record, model: TrainedResult) -> float | None:
    """The share of the teacher's quality that a model keeps, where it says something: not where
    lower is better, where the teacher is weak, or where its score is not to be compared."""
    doubtful = bool(record.weak_teacher) or record.not_comparable is not None
    if doubtful or record.metric in LOWER_IS_BETTER:
        return None
    return model.retention


def _kept(record: Record) -> Headline:
    assert record.teacher is not None
    model, metric = best(record), record.metric
    by = " (the baseline)" if model is record.baseline else ""
    name, own = lowered(metric), fmt.score(model.score, metric)
    weak = "a weak teacher's " if record.weak_teacher else ""
    detail = f"{own} against {weak}{fmt.score(record.teacher.score, metric)}"
    kept = retention(record, model)
    if kept is None:
        return Headline(own, f"{name}{by}", detail)
    return Headline(fmt.percent(kept), f"of the teacher's {name}{by}", detail)


def _ratio(
    teacher: float | None,
    student: float | None,
    words: tuple[str, str, str],
    show: Callable[[float], str],
    unmeasured: str,
) -> Headline:
    if not teacher or not student:
        return Headline(fmt.DASH, unmeasured)
    ratio = teacher / student
    detail = f"{show(student)} against {show(teacher)}"
    if 0.995 <= ratio < 1.005:
        return Headline(fmt.times(1), f"{words[2]} of the teacher", detail)
    word = words[0] if ratio > 1 else words[1]
    return Headline(fmt.times(max(ratio, 1 / ratio)), f"{word} than the teacher", detail)


def confusions(matrix: Sequence[Sequence[int]], labels: Sequence[str]) -> list[Confusion]:
    """The most frequent wrong answers, most frequent first."""
    wrong = [
        (rows, gold, answer)
        for gold, row in enumerate(matrix)
        for answer, rows in enumerate(row)
        if gold != answer and rows
    ]
    wrong.sort(key=lambda each: (-each[0], each[1], each[2]))
    return [
        Confusion(labels[gold], labels[answer], rows, fmt.percent(rows / sum(matrix[gold])))
        for rows, gold, answer in wrong[:TOP_CONFUSIONS]
    ]


def label_names(record: Record, matrix: Sequence[Sequence[int]]) -> list[str]:
    """The labels' names, or their numbers where there aren't as many names as rows."""
    labels = record.data.labels
    return list(labels) if len(labels) == len(matrix) else [str(i) for i in range(len(matrix))]


def teacher_told(timing: Timing) -> tuple[str, str] | None:
    """What asking the teacher took; answers that were kept before took nothing."""
    asked, kept = timing.teacher_asked, timing.teacher_cached
    if asked is None or kept is None:
        return ("Teacher took", fmt.seconds(timing.teacher_s)) if timing.teacher_s else None
    if not asked:
        return "Teacher's answers", f"{fmt.count(kept)} rows, all from the cache"
    told = f"{fmt.seconds(timing.teacher_s)} for {fmt.count(asked)} rows"
    return "Teacher took", f"{told}; {fmt.count(kept)} from the cache" if kept else told
