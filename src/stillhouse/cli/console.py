"""What commands print: tables for people on standard output, JSON for machines. Libraries that draw
are loaded when something is drawn: every command imports this."""

from __future__ import annotations

import json
from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from stillhouse.core.results import Efficiency, ExportResult, ModelResult, Record


def say(text: str) -> None:
    print(text)


def print_json(value: object) -> None:
    print(json.dumps(value, indent=2, ensure_ascii=False, default=str))


def table(
    columns: Sequence[str], rows: Sequence[Sequence[str]], *, whole: Collection[str] = ()
) -> None:
    """The first column and those named in `whole` are never cut or broken, so that what stands in
    them can be copied: where a terminal is too narrow for that, it breaks the line."""
    from rich.cells import cell_len
    from rich.console import Console
    from rich.table import Table

    made = Table(box=None, padding=(0, 1, 0, 0), header_style="bold")
    least = 0
    for i, column in enumerate(columns):
        cells = [column, *(row[i] for row in rows)]
        kept = i == 0 or column in whole
        words = cells if kept else [word for cell in cells for word in cell.split()]
        width = max(map(cell_len, words), default=0)
        made.add_column(
            column, justify="left" if i == 0 else "right", no_wrap=kept, min_width=width
        )
        least += width + 1
    for row in rows:
        made.add_row(*row)
    screen = Console(highlight=False, markup=False, emoji=False)  # a name may be in brackets
    screen.width = max(screen.width, least)
    screen.print(made)


def number(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)


def count(value: float | None) -> str:
    """22,713,600 as 22.7M."""
    if value is None:
        return "-"
    for size, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= size:
            return f"{value / size:.1f}{letter}"
    return f"{value:.0f}"


def megabytes(value: int | None) -> str:
    return "-" if value is None else f"{value / 1e6:,.1f} MB"


def cost_cells(cost: Efficiency | ExportResult) -> list[str]:
    return [
        megabytes(cost.bytes),
        number(cost.latency_ms, ".2f"),
        number(cost.throughput_per_s, ",.0f"),
    ]


def record_table(record: Record) -> None:
    """The record's models and exports, and the verdict."""
    from stillhouse.core.results import TrainedResult
    from stillhouse.core.verdicts import in_words

    rows = []
    models: list[ModelResult | None] = [record.teacher, record.student, record.baseline]
    for model in models:
        if model is None:
            continue
        low, high = model.interval
        agreement = model.agreement if isinstance(model, TrainedResult) else None
        rows.append(
            [
                model.name,
                f"{model.score:.4f}",
                f"{low:.3f} - {high:.3f}",
                number(agreement, ".3f"),
                count(model.parameters),
                *cost_cells(model),
            ]
        )
    for export in record.exports:
        rows.append([export.format, f"{export.score:.4f}", "", "", "", *cost_cells(export)])
    columns = (
        record.metric,
        "score",
        "95 % interval",
        "agrees",
        "params",
        "size",
        "p50 ms",
        "rows/s",
    )
    table(["model", *columns[1:]], rows)
    for line in _measured_on(record):
        say(line)
    for each in record.ablations:
        low, high = each.gain.interval
        instead = ", gold answers instead" if each.gold_instead else ""
        say(
            f"without {each.without} ({each.stage}{instead}): {each.score:.4f}; the term is worth "
            f"{each.gain.value:+.4f} ({low:+.4f} to {high:+.4f}): "
            f"{in_words(each.verdict, each.gain)}"
        )
    for line in _writing(record):
        say(line)
    say(f"\n{record.sentence}")


def _measured_on(record: Record) -> list[str]:
    """What speeds were measured on, and what int8 answers owe to a batch."""
    from stillhouse.core.units import batches_told, cost_told

    student = record.student
    told = cost_told(student.tokens, student.batch, student.batch_tokens)
    lines = [told] if told and student.latency_ms is not None else []
    for each in record.exports:
        if each.batches is not None and each.batches.changed:
            lines.append(batches_told(**each.batches.model_dump(), metric=record.metric))
    return lines


def _writing(record: Record) -> list[str]:
    """What else is known of models of texts."""
    found = record.student.metrics
    lines = []
    if "perplexity" in found:
        of = "masked tokens" if record.task == "masked_lm" else "the gold texts"
        lines.append(f"perplexity of {of}: {found['perplexity']:.1f}")
    if "bleu_greedy" in found:
        lines.append(
            f"greedy: BLEU {found['bleu_greedy']:.1f}, chrF {found['chrf_greedy']:.1f}; with the "
            f"beam: BLEU {found['bleu']:.1f}, chrF {found['chrf']:.1f}; probability of its own "
            f"best text: {100 * found['mode_probability']:.2g} %"
        )
    if record.distributions is not None:
        lines.append(record.distributions.why)
    lines += [f"{name}: {signature}" for name, signature in record.signatures.items()]
    return lines


def efficiency_table(found: dict[str, Efficiency]) -> None:
    rows = [
        [
            name,
            count(cost.parameters),
            count(cost.flops),
            *cost_cells(cost),
            megabytes(cost.peak_memory_bytes),
        ]
        for name, cost in found.items()
    ]
    columns = ("model", "params", "FLOPs", "size", "p50 ms", "rows/s", "memory")
    table(columns, rows)
    from stillhouse.core.units import cost_told, rows_told

    for told in dict.fromkeys(
        f"{cost_told(cost.tokens, cost.batch, cost.batch_tokens)}; FLOPs: "
        f"{rows_told(1, cost.tokens)}; memory: {rows_told(cost.memory_batch, cost.tokens) or '-'}"
        for cost in found.values()
        if cost.tokens is not None
    ):
        say(told)
