"""Vectors as inputs, and the IDX files that images come in."""

from __future__ import annotations

import gzip
from pathlib import Path

import numpy as np
import pytest
import torch

from stillhouse.core.errors import DataError
from stillhouse.models.mlp import MLPClassifier, MLPConfig
from stillhouse.tasks.vectors import Vectors, read_idx


def idx(values: np.ndarray) -> bytes:
    head = bytes([0, 0, 8, values.ndim]) + np.array(values.shape, ">u4").tobytes()
    return head + values.astype(np.uint8).tobytes()


@pytest.mark.parametrize("shape", [(5,), (3, 4, 2)])
def test_an_idx_file_is_read_gzipped_or_not(tmp_path: Path, shape: tuple[int, ...]) -> None:
    values = np.arange(np.prod(shape)).reshape(shape)
    (tmp_path / "a-idx").write_bytes(idx(values))
    (tmp_path / "a.gz").write_bytes(gzip.compress(idx(values)))
    for name in ("a-idx", "a.gz"):
        assert (read_idx(tmp_path / name) == values).all()


@pytest.mark.parametrize("content", [b"", b"\x00\x00\x0d\x01", idx(np.arange(9))[:-1]])
def test_other_files_are_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a").write_bytes(content)
    with pytest.raises(DataError, match=r"not an IDX file|cut short"):
        read_idx(tmp_path / "a")
    with pytest.raises(DataError, match="no file"):
        read_idx(tmp_path / "b")


def test_rows_are_inputs_known_by_content() -> None:
    source = Vectors(np.array([[1, 2], [3, 4], [1, 2]]))
    assert source.inputs(np.array([1, 0]))["vectors"].tolist() == [[3.0, 4.0], [1.0, 2.0]]
    keys = source.keys()
    assert (keys[0] == keys[2]).all()
    assert (keys[0] != keys[1]).any()
    with pytest.raises(DataError, match="rows of one width"):
        Vectors(np.zeros(3))


def test_a_perceptron_is_saved_and_loaded_like_any_model(tmp_path: Path) -> None:
    model = MLPClassifier(MLPConfig(inputs=6, hidden=(5, 4), num_labels=3)).eval()
    model.save_pretrained(tmp_path)
    again = MLPClassifier.from_pretrained(tmp_path).eval()
    x = torch.randn(2, 6, generator=torch.Generator().manual_seed(0))
    assert torch.equal(model(vectors=x).logits, again(vectors=x).logits)
    assert model(vectors=x).logits.shape == (2, 3)
