"""A model in an ONNX file, with what stands beside it. Needs neither torch nor transformers.

Axes: N rows, K choices, T tokens.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from stillhouse.core.errors import ModelError, RunError, UsageError
from stillhouse.core.inference import (
    ANSWERING,
    Inference,
    default_length,
    read_inference,
    reading,
    value_guessed,
)
from stillhouse.data.cells import SEVERAL_LABELS

NAMES = ("model.onnx", "model-int8.onnx")
UNNAMED = ["LABEL_0", "LABEL_1"]  # of a config.json that names none: transformers' default
ONE_LOGIT = ["0", "1"]  # classes of a file that gives the logit of the second
# Families whose table of positions begins after padding's id, as models/limits finds in the model.
FROM_PADDING = {
    "camembert", "data2vec-text", "ibert", "longformer", "mpnet", "roberta", "roberta-prelayernorm",
    "xlm-roberta", "xlm-roberta-xl", "xmod",
}  # fmt: skip
NO_LIMIT = 1_000_000  # transformers writes a huge number for a tokenizer without one


def onnx_file(name: str) -> Path | None:
    """The ONNX file that a name stands for: itself, or what a folder without weights holds. None
    where it stands for another model. Raises ModelError for a file that isn't there."""
    path = Path(name).expanduser()
    if path.suffix.lower() == ".onnx":
        if not path.is_file():
            raise ModelError(f"there is no file {path}")
        return path
    if not path.is_dir() or any(path.glob("*.safetensors")) or (path / "student").is_dir():
        return None
    held = [path / known for known in NAMES if (path / known).is_file()]
    return held[0] if held else next(iter(sorted(path.glob("*.onnx"))), None)


def facts_beside(path: Path) -> Inference:
    """What stands beside an ONNX file: our own description, or what its config.json tells. Raises
    ModelError."""
    return _facts_and_notes(path)[0]


def _facts_and_notes(path: Path) -> tuple[Inference, list[str]]:
    """`facts_beside`, and what of it was guessed."""
    if (found := read_inference(path.parent)) is not None:
        return found, []
    beside = path.parent / "config.json"
    try:
        config = json.loads(beside.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        raise ModelError(
            f"{path} has neither inference.json nor config.json beside it, so what its answers "
            "mean is not known: export the model again, or copy its config.json there"
        ) from None
    spans = any(each.endswith("ForQuestionAnswering") for each in config.get("architectures") or [])
    named = config.get("id2label") or {}
    labels = [str(named[key]) for key in sorted(named, key=int)] or UNNAMED
    if config.get("problem_type") == "multi_label_classification" and not spans:
        if len(labels) > 1:
            raise ModelError(f"{path} gives {SEVERAL_LABELS}")
        labels = ONE_LOGIT
    task = "span" if spans else "regression" if len(labels) == 1 else "classification"
    pad, most = _pad_and_positions(config, path.parent)
    length = default_length(task)
    facts = Inference(
        task=task,
        labels=labels if task == "classification" else [],
        max_length=length if most is None else min(length, most),
        positions=most,
        pad_id=pad,
    )
    return facts, value_guessed(task, config.get("problem_type"), described=False)


def _pad_and_positions(config: Mapping[str, Any], folder: Path) -> tuple[int, int | None]:
    """Padding's id, and the most tokens that a row may have, by the model's settings, as of its
    folder; where they name none, by its tokenizer's, and None for no limit."""
    shifted = config.get("model_type") in FROM_PADDING
    pad, places = config.get("pad_token_id"), config.get("max_position_embeddings")
    pad = pad if isinstance(pad, int) else int(shifted)
    if isinstance(places, int) and places > 0:
        return pad, places - (pad + 1 if shifted else 0)
    try:
        told = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
        most = int(told["model_max_length"])
    except (OSError, ValueError, TypeError, KeyError):
        return pad, None
    return pad, most if 0 < most < NO_LIMIT else None


class OnnxModel:
    """Scores of passes by ONNX Runtime on the CPU. Raises UsageError, ModelError."""

    def __init__(self, path: Path, *, max_length: int | None = None) -> None:
        session = _session(path)
        held, self.notes = _facts_and_notes(path)
        if held.task not in ANSWERING:
            raise ModelError(f"{path} is a {held.task}: it has no answer for a row")
        self._names = [each.name for each in session.get_inputs()]
        known = {"input_ids", "attention_mask", "token_type_ids"}
        if strange := sorted(set(self._names) - known):
            raise ModelError(f"{path} takes {', '.join(strange)}, which no text has")
        self.facts = reading(held.model_copy(update={"inputs": self._names}), max_length)
        self._path, self._session = path, session

    def scores(
        self, inputs: Mapping[str, np.ndarray], answerable_BT: np.ndarray | None
    ) -> np.ndarray:
        """N x K; of spans N x 2 x T."""
        del answerable_BT  # the file scores every place
        try:
            found: Any = self._session.run(None, {name: inputs[name] for name in self._names})
        except Exception as error:  # onnxruntime's errors share no public class
            first = str(error).strip().splitlines()[0][:200]
            raise RunError(f"{self._path} can't be run: {first}") from error
        if self.facts.task == "span" and len(found) > 1:
            return np.stack(found[:2], 1)
        scores: np.ndarray = found[0]
        if self.facts.task == "classification" and scores.shape[-1] == 1:
            return np.concatenate([np.zeros_like(scores), scores], -1)  # sigmoid as softmax
        return scores


def _session(path: Path) -> Any:
    try:
        import onnxruntime
    except ImportError:
        raise UsageError("ONNX files need onnxruntime: pip install 'stillhouse[export]'") from None
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    if given := os.environ.get("OMP_NUM_THREADS", "").strip():
        options.intra_op_num_threads = int(given) if given.isdigit() else 0
    try:
        return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime's errors share no public class
        first = str(error).strip().splitlines()[0][:200]
        raise ModelError(f"{path} is no ONNX model that can be run: {first}") from None
