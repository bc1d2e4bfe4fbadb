"""A student as ONNX and int8 ONNX, checked against the PyTorch model it came from.

Axes: N rows, K choices.
"""

from __future__ import annotations

import contextlib
import io
import logging
import re
import shutil
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from stillhouse.core.errors import RunError, StillhouseError, UsageError
from stillhouse.core.rundir import writes
from stillhouse.core.trouble import unwritten
from stillhouse.data.batching import sorted_batches
from stillhouse.models.forward import span_scores
from stillhouse.models.limits import positions
from stillhouse.tasks.base import Data, Task

PARITY = 1e-3  # how far an fp32 export's scores may be from PyTorch's, relative to their size
OPSET = 20
COLOURS = re.compile(r"\x1b\[\d*m")


class _Scores(nn.Module):
    """A model with named tensors in and scores out, as ONNX wants it: a classifier's N x K, or of
    spans, where they begin and where they end, N x 2 x tokens."""

    def __init__(self, model: nn.Module, names: list[str]) -> None:
        super().__init__()
        self.model, self.names = model, names
        self.scores = scored(model)

    def forward(self, *inputs: Tensor) -> Tensor:
        return self.scores(**dict(zip(self.names, inputs, strict=True)))


def scored(model: nn.Module) -> Callable[..., Tensor]:
    """A model's forward, to its scores alone."""

    def scores(**inputs: Tensor) -> Tensor:
        output = model(**inputs)
        if hasattr(output, "start_logits"):
            return torch.stack([output.start_logits, output.end_logits], 1)
        return output.logits

    return scores


def require_onnx() -> None:
    """Raises UsageError where the packages for export are not installed."""
    try:
        import onnx  # noqa: F401
        import onnxruntime  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise UsageError(
            f"export needs {error.name}: pip install 'stillhouse[export]', "
            "or --set export.onnx=false"
        ) from None


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keeps the exporter's notes about its own inside off the user's screen."""
    names = ("torch.onnx", "torch.export", "torch.fx", "onnxscript", "onnx_ir", "root")
    loggers = [logging.getLogger(name) for name in names]
    levels = [logger.level for logger in loggers]
    try:
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        # a graph that can't be exported is printed, hundreds of lines of it
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            with contextlib.redirect_stderr(io.StringIO()):
                warnings.simplefilter("ignore")
                yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def export_onnx(model: nn.Module, inputs: Mapping[str, Tensor], path: Path) -> Path:
    """Writes `model` to `path` with free batch and token axes. `inputs` is a sample batch of at
    least 2 rows. Raises RunError where the model can't be exported."""
    require_onnx()
    names = list(inputs)
    free = {
        0: torch.export.Dim("batch", min=1, max=65536),
        1: torch.export.Dim("tokens", min=2, max=positions(model)),
    }
    shapes = tuple({axis: free[axis] for axis in range(min(2, inputs[n].ndim))} for n in names)
    if "vectors" in inputs:
        shapes = ({0: free[0]},)
    wrapped = _Scores(model, names).eval()
    with (
        _part(path) as part,
        _quiet(),
        _said_as(path, f"can't export {type(model).__name__} to ONNX"),
    ):
        torch.onnx.export(
            wrapped,
            tuple(inputs.values()),
            str(part),
            dynamo=True,
            verbose=False,
            input_names=names,
            output_names=["scores"],
            dynamic_shapes=(shapes,),
            external_data=False,
            opset_version=OPSET,
        )
    return path


@contextlib.contextmanager
def _part(path: Path) -> Iterator[Path]:
    """Where an export is made before it becomes `path`. Raises RunError where it can't be
    written."""
    with writes(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=path.parent) as folder:
            part = Path(folder) / path.name
            yield part
            shutil.move(part, path)


@contextlib.contextmanager
def _said_as(path: Path, what: str) -> Iterator[None]:
    """Turns what exporter, quantiser or ONNX Runtime raise (many kinds, few of them public) into a
    RunError of one line; a disk that is full, as `path` not written."""
    try:
        yield
    except StillhouseError:
        raise
    except Exception as error:
        if (full := unwritten(path, error)) is not None:
            raise full from error
        root: BaseException = error
        while root.__cause__ is not None:  # the exporter wraps what went wrong in advice
            root = root.__cause__
        lines = [line.strip() for line in COLOURS.sub("", str(root)).splitlines() if line.strip()]
        raise RunError(f"{what}: {lines[0][:200] if lines else type(root).__name__}") from error


def quantize_int8(source: Path, path: Path) -> Path:
    """Writes `source` with int8 weights (activations quantised as they come)."""
    require_onnx()
    import onnx
    from onnxruntime.quantization import QuantType, quantize_dynamic

    model = onnx.load(source)
    del model.graph.value_info[:]  # the exporter's shape notes contradict the quantiser's inference
    with _part(path) as part, _quiet(), _said_as(path, "can't make an int8 ONNX file"):
        quantize_dynamic(model, part, weight_type=QuantType.QInt8, per_channel=True)
    return path


def onnx_runner(path: Path) -> Callable[[Mapping[str, Tensor]], np.ndarray]:
    """A function from model inputs to scores, run by ONNX Runtime on the CPU."""
    require_onnx()
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 3
    # threads that wait by spinning slow down whatever else is timed in turns, up to four times
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    with _said_as(path, f"ONNX Runtime can't load {path.name}"):
        session = onnxruntime.InferenceSession(
            str(path), options, providers=["CPUExecutionProvider"]
        )
    names = [entry.name for entry in session.get_inputs()]

    def run(inputs: Mapping[str, Tensor]) -> np.ndarray:
        with _said_as(path, f"ONNX Runtime can't run {path.name}"):
            found: Any = session.run(None, {name: inputs[name].numpy() for name in names})[0]
        return found

    return run


def onnx_scores(
    run: Callable[[Mapping[str, Tensor]], np.ndarray], data: Data, task: Task, *, size: int = 64
) -> np.ndarray:
    """What the task keeps of the scores of every row of `data`, in the data's order. `size`: rows
    together, on which an int8 file's scores depend: activations are quantised by what is largest
    in the whole batch."""
    out: np.ndarray | None = None
    for rows in sorted_batches(data.lengths, size=size, max_tokens=16_384):
        batch = data.batch(rows)
        found = torch.from_numpy(run(batch.inputs))
        if batch.answerable_BT is not None:
            found = span_scores(found, batch)
        assert batch.gold_N is not None
        kept = task.reduce(found, batch.gold_N).numpy()
        if out is None:
            out = np.empty((len(data.gold_N), kept.shape[1]), np.float32)
        out[data.places(rows)] = kept
    assert out is not None, "an empty split is never scored"
    return out


def check_parity(exported_NK: np.ndarray, original_NK: np.ndarray) -> float:
    """The largest difference of scores relative to their size. Raises RunError over PARITY."""
    worst = float(np.abs(exported_NK - original_NK).max() / max(1.0, np.abs(original_NK).max()))
    if not worst <= PARITY:
        raise RunError(
            f"the ONNX model's scores differ from PyTorch's by {worst:.2g}: not exported"
        )
    return worst
