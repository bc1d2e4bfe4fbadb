"""Cells of the models' table: what a model costs, and on how many rows of how many tokens that was
measured."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from stillhouse.core.results import BatchResult, Efficiency, ExportResult, ModelResult
from stillhouse.core.units import rows_told
from stillhouse.report import format as fmt

Model = ModelResult | ExportResult


@dataclass(frozen=True)
class Cell:
    """`text` None: it was not measured. An empty text: it has no meaning for this model."""

    text: str | None
    detail: str = ""


def alone(metric: str) -> Callable[[Model], Cell]:
    """An int8 file's score of rows that it answers one by one."""

    def cell(model: Model) -> Cell:
        found = model.batches if isinstance(model, ExportResult) else None
        return Cell("" if found is None else fmt.score(found.alone, metric), _sampled(found))

    return cell


def _sampled(found: BatchResult | None) -> str:
    return "" if found is None else f"{fmt.count(found.rows)} rows"


def together(metric: str) -> Callable[[Model], Cell]:
    def cell(model: Model) -> Cell:
        found = model.batches if isinstance(model, ExportResult) else None
        if found is None:
            return Cell("")
        detail = f"{found.batch} a batch: {found.changed} of {fmt.count(found.rows)} answers change"
        return Cell(fmt.score(found.together, metric), detail)

    return cell


def _cost(
    field: str,
    show: Callable[[float], str],
    measured_on: Callable[[Model], str] = lambda model: "",
) -> Callable[[Model], Cell]:
    """A cost, with the rows that it was measured on."""

    def cell(model: Model) -> Cell:
        if isinstance(model, ExportResult) and field not in ExportResult.model_fields:
            return Cell("")
        value: float | None = getattr(model, field)
        return Cell(None) if value is None else Cell(show(value), measured_on(model))

    return cell


def _one_row(model: Model) -> str:
    return rows_told(1, model.tokens)


def _batch(model: Model) -> str:
    return rows_told(model.batch, model.batch_tokens)


def _memory_batch(model: Model) -> str:
    known = isinstance(model, Efficiency)
    return rows_told(model.memory_batch, model.tokens) if known else ""


def size(value: float) -> str:
    return fmt.scaled(value, "B")


COSTS: Sequence[tuple[str, Callable[[Model], Cell]]] = (
    ("Parameters", _cost("parameters", fmt.scaled)),
    ("Size", _cost("bytes", size)),
    ("FLOPs per example", _cost("flops", fmt.scaled, _one_row)),
    ("Latency, median", _cost("latency_ms", fmt.milliseconds, _one_row)),
    ("Latency, 95th percentile", _cost("latency_p95_ms", fmt.milliseconds, _one_row)),
    ("Rows per second", _cost("throughput_per_s", fmt.scaled, _batch)),
    ("Tokens per second", _cost("tokens_per_s", fmt.scaled, _batch)),
    ("Peak memory", _cost("peak_memory_bytes", size, _memory_batch)),
)
