"""Answers to rows, a few hundred at a time: memory doesn't grow with the file."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stillhouse.core.config import WRITING
from stillhouse.core.errors import DataError
from stillhouse.core.inference import Inference
from stillhouse.core.settings import model_path
from stillhouse.data.columns import Columns
from stillhouse.prediction.answers import OUTPUTS, Answer, from_scores
from stillhouse.prediction.encoding import Encoder, tokenizer_in
from stillhouse.prediction.onnx_model import OnnxModel, onnx_file
from stillhouse.prediction.output import Writer, check_out, format_of, kept_columns, opened
from stillhouse.prediction.rows import AskedRow, asked_rows, source_of

if TYPE_CHECKING:
    from stillhouse.prediction.torch_model import FolderModel

CHUNK, FEW = 512, 32  # rows that are read together, of encoders and of models that write
TOP, SIZE = 5, 32
SHOWN = 5  # line numbers
Answering = Callable[[Sequence[AskedRow]], tuple[list[Answer], list[bool]]]


@dataclass
class Counts:
    """What became of the rows. `errors` and `cut`: the lines of those that have no answer, by
    reason, and of those that were longer than the model reads."""

    rows: int = 0
    errors: dict[str, list[int]] = field(default_factory=dict)
    failed: int = 0
    cut: int = 0
    cut_lines: list[int] = field(default_factory=list)
    numbers: dict[str, int] = field(default_factory=dict)

    def add(self, row: AskedRow, *, cut: bool) -> None:
        self.rows += 1
        if row.error is not None:
            self.failed += 1
            self.numbers[row.error] = self.numbers.get(row.error, 0) + 1
            _note(self.errors.setdefault(row.error, []), row.line)
        elif cut:
            self.cut += 1
            _note(self.cut_lines, row.line)

    def notes(self, facts: Inference) -> list[str]:
        """What a user should be told."""
        found = [
            f"{self.numbers[why]:,} of {self.rows:,} rows have no answer: {why} "
            f"(line {_listed(lines, self.numbers[why])})"
            for why, lines in self.errors.items()
        ]
        if self.cut:
            found.append(
                f"{self.cut:,} of {self.rows:,} texts cut: longer than the {facts.max_length} "
                f"tokens that the model reads (line {_listed(self.cut_lines, self.cut)})"
                + ("" if facts.max_length == facts.positions else "; --max-length sets another")
            )
        return found


def _note(lines: list[int], line: int) -> None:
    if len(lines) < SHOWN:
        lines.append(line)


def _listed(lines: Sequence[int], count: int) -> str:
    return ", ".join(map(str, lines)) + (", ..." if count > len(lines) else "")


class Predictor:
    """A model that is ready to answer rows: a folder, a run's, a hub name, or an ONNX file. Raises
    ModelError, UsageError."""

    def __init__(
        self, model: str | Path, *, top: int | None = TOP, batch_size: int = SIZE,
        max_length: int | None = None, precision: str = "auto", trust_remote_code: bool = False,
    ) -> None:  # fmt: skip
        self.top, self.size = top, batch_size
        self._encoder: Encoder | None = None
        name = model_path(model, "model")
        path = onnx_file(name)
        self._model: OnnxModel | FolderModel
        if path is not None:
            self._model = OnnxModel(path, max_length=max_length)
            made, side = tokenizer_in(path.parent)
        else:
            from stillhouse.prediction.torch_model import FolderModel

            self._model = FolderModel(
                name, max_length=max_length, precision=precision,
                trust_remote_code=trust_remote_code,
            )  # fmt: skip
            made, side = self._model.tokenizer
        self.facts = self._model.facts
        if not self.writes:
            self._encoder = Encoder(made, self.facts, side=side)

    @property
    def writes(self) -> bool:
        return self.facts.task in WRITING

    @property
    def columns(self) -> tuple[str, ...]:
        """What an answer has."""
        return OUTPUTS[self.facts.task]

    def notes(self, counts: Counts) -> list[str]:
        """What a user should be told of the model, and of the rows that were answered."""
        return [*self._model.notes, *counts.notes(self.facts)]

    def answers(self, rows: Sequence[AskedRow]) -> tuple[list[Answer], list[bool]]:
        """The answers to rows without errors, and which of them were cut."""
        if not rows:
            return [], []
        if self._encoder is None:
            return self._model.generate([row.text for row in rows])  # pyright: ignore
        pairs = [row.pair for row in rows]
        pieces = self._encoder.pieces([row.text for row in rows], pairs)
        scores: list[Any] = [None] * len(pieces)
        answerable: list[Any] = [None] * len(pieces)
        for each in self._encoder.passes(pieces, size=self.size):
            found = self._model.scores(each.inputs, each.answerable_BT)
            for i, piece in enumerate(each.pieces):
                scores[piece] = found[i]
                if each.answerable_BT is not None:
                    answerable[piece] = each.answerable_BT[i]
        passages = [pair or "" for pair in pairs]
        answers = from_scores(scores, pieces, answerable, passages, self.facts, self.top)
        return answers, [piece.cut for piece in pieces] if self.facts.task != "span" else [
            False
        ] * len(rows)

    def rows(
        self,
        data: Any,
        *,
        columns: Columns | None = None,
        counts: Counts | None = None,
        progress: Callable[[int], None] = lambda rows: None,
    ) -> Iterator[dict[str, Any]]:
        """Every row of `data` with its answer, in order; one without has the error in its place.
        Raises DataError where no row has an answer."""
        counts = Counts() if counts is None else counts
        source, where, plain = source_of(data)
        columns = columns or Columns()
        if self.facts.task in WRITING:
            columns = Columns(columns.text, None, None, texts=True)
        asked = asked_rows(source, where, columns, self.facts, plain=plain)
        for chunk in _chunks(asked, FEW if self.writes else CHUNK):
            good = [row for row in chunk if row.error is None]
            answers, cut = self.answers(good)
            found = iter(zip(answers, cut, strict=True))
            for row in chunk:
                answer, long = next(found) if row.error is None else ({"answer": None}, False)
                counts.add(row, cut=long)
                told = {} if row.error is None else {"error": row.error}
                yield {**kept_columns(row.columns), **answer, **told}
            progress(len(chunk))
        if counts.rows == counts.failed:
            why = f": {next(iter(counts.errors))}" if counts.errors else ": it is empty"
            raise DataError(f"{where} has no row that can be answered{why}")


def _chunks(rows: Iterable[AskedRow], size: int) -> Iterator[list[AskedRow]]:
    held = iter(rows)
    while chunk := list(islice(held, size)):
        yield chunk


def predict(
    model: str | Path,
    data: Any,
    *,
    out: str | Path | None = None,
    format: str | None = None,
    top: int | None = TOP,
    text_column: str | None = None,
    pair_column: str | None = None,
    batch_size: int = SIZE,
    max_length: int | None = None,
    precision: str = "auto",
    trust_remote_code: bool = False,
    progress: Any = None,
) -> list[dict[str, Any]]:
    """Answers to the rows of `data`: a CSV, TSV, JSONL, Parquet or text file, or a list of texts,
    of pairs, or of dicts.

    `model`: a folder, a run's, a hub name, or an ONNX file with its tokenizer beside it, which
    needs no torch. A row keeps its columns and its place, and gets `answer`, and of a
    classification `probability` and the `top` likeliest labels' `probabilities` (None: all); one
    that can't be asked about has no answer but an `error`. With `out` (JSONL or CSV) they are
    written there, however many, and the list is empty. Raises UsageError, DataError, ModelError.
    """
    columns = Columns(text=text_column, pair=pair_column)
    target = None if out is None else str(Path(out).expanduser())
    form = format_of(format, target)
    check_out(target, data)
    predictor = Predictor(
        model, top=top, batch_size=batch_size, max_length=max_length, precision=precision,
        trust_remote_code=trust_remote_code,
    )  # fmt: skip
    counts = Counts()
    if target is None:
        found = list(predictor.rows(data, columns=columns, counts=counts))
    else:
        write(predictor, data, target, form, columns=columns, counts=counts)
        found = []
    if progress is not None:
        for note in predictor.notes(counts):
            progress.note(note)
    return found


def write(
    predictor: Predictor, data: Any, out: str | None, form: Any, *, columns: Columns,
    counts: Counts, progress: Callable[[int], None] = lambda rows: None,
) -> list[str]:  # fmt: skip
    """Writes every row with its answer to `out`; the columns that a CSV has no place for. Reading
    begins first: what can't be read is no fault of `out`."""

    def advance(count: int) -> None:
        file.flush()  # open by then: the first row comes before
        progress(count)

    rows = predictor.rows(data, columns=columns, counts=counts, progress=advance)
    first = next(rows)  # of none it raises
    with opened(out) as file:
        writer = Writer(file, form, predictor.columns)
        for row in chain([first], rows):
            writer.add(row)
    return sorted(writer.left)
