"""What is cut out leaves nothing behind that the dense computation did not have.

Axes: N rows, K choices.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModel, AutoModelForMaskedLM, AutoModelForSequenceClassification

import tiny
from stillhouse.core.errors import ModelError
from stillhouse.core.types import Tap
from stillhouse.export import export_onnx, onnx_runner
from stillhouse.models import slim
from stillhouse.models.forward import has_fast_path, scores
from stillhouse.models.student import blocks, like, parameters
from stillhouse.models.surgery import Kept, cut, everything, parts_of, sizes
from stillhouse.models.taps import geometry, reading

KINDS = ["bert", "roberta", "distilbert"]
TEXTS = [text for text, _ in tiny.sentences(9)]
SOME = [Kept(1, (1,), (0, 3, 5, 60)), Kept(2, (0, 1), tuple(range(64))), Kept(3, (0,), (7, 8))]
every_kind = pytest.mark.parametrize("kind", KINDS)


def inputs(kind: str) -> dict[str, Any]:
    return dict(tiny.tokenizer(kind)(TEXTS, padding=True, return_tensors="pt"))


def silenced(model: Any, kept: list[Kept]) -> Any:
    """The dense model with what is not kept multiplied by 0; layers all stay."""
    own = sizes(model)
    heads, after, _, second = slim.PARTS[slim.family(model.config.model_type)]
    del heads
    with torch.no_grad():
        for each in kept:
            block = blocks(model)[1][each.layer - 1]
            for a in set(range(own.heads[each.layer - 1])) - set(each.heads):
                block.get_submodule(after).weight[:, a * own.head : (a + 1) * own.head] = 0
            gone = sorted(set(range(own.neurons[each.layer - 1])) - set(each.neurons))
            block.get_submodule(second).weight[:, gone] = 0
    return model


@every_kind
def test_the_cut_model_computes_what_the_silenced_one_does(kind: str) -> None:
    model = tiny.model(kind, layers=3)
    small = cut(model, SOME)
    assert sizes(small).heads == (1, 2, 1)
    assert sizes(small).neurons == (4, 64, 2)
    dense = silenced(tiny.model(kind, layers=3), SOME)
    given = inputs(kind)
    with torch.no_grad():
        torch.testing.assert_close(small(**given).logits, dense(**given).logits)
        assert not torch.allclose(small(**given).logits, model(**given).logits, atol=1e-3)


@every_kind
def test_keeping_everything_changes_nothing_but_the_folder(kind: str) -> None:
    model = tiny.model(kind, layers=2)
    same = cut(model, everything(model))
    assert type(same) is type(model)
    for name, tensor in model.state_dict().items():
        assert torch.equal(same.state_dict()[name], tensor), name


@every_kind
def test_layers_can_go_too(kind: str) -> None:
    model = tiny.model(kind, layers=3)
    small = cut(model, [SOME[0], SOME[2]])
    assert len(blocks(small)[1]) == 2
    alone = silenced(tiny.model(kind, layers=3), SOME)
    from stillhouse.models.student import take_layers

    expected = take_layers(alone, [1, 3])
    with torch.no_grad():
        torch.testing.assert_close(small(**inputs(kind)).logits, expected(**inputs(kind)).logits)


@every_kind
def test_one_width_of_neurons_fits_the_stock_class(kind: str, tmp_path: Path) -> None:
    model = tiny.model(kind, layers=2)
    kept = [Kept(k, (0, 1), tuple(range(k, 40 + k))) for k in (1, 2)]
    small = cut(model, kept)
    assert type(small) is type(model)
    small.save_pretrained(tmp_path / "small")
    again = AutoModelForSequenceClassification.from_pretrained(tmp_path / "small")
    assert type(again) is type(model)
    with torch.no_grad():
        assert torch.equal(again(**inputs(kind)).logits, small(**inputs(kind)).logits)
    assert not list((tmp_path / "small").glob("*.py"))


@every_kind
@pytest.mark.parametrize("masked", [False, True])
def test_a_slim_model_is_saved_loaded_and_cut_again(
    kind: str, masked: bool, tmp_path: Path
) -> None:
    model = tiny.model(kind, layers=3, masked=masked)
    small = cut(model, SOME)
    small.save_pretrained(tmp_path / "small")
    auto = AutoModelForMaskedLM if masked else AutoModelForSequenceClassification
    again = auto.from_pretrained(tmp_path / "small").eval()
    assert sizes(again) == sizes(small)
    for name, tensor in small.state_dict().items():
        assert torch.equal(again.state_dict()[name], tensor), name
    twice = cut(again, [Kept(2, (1,), (0, 1)), Kept(3, (0,), (1,))])
    assert sizes(twice).heads == (1, 1)
    once = cut(model, [Kept(2, (1,), (0, 1)), Kept(3, (0,), (8,))])
    with torch.no_grad():
        torch.testing.assert_close(twice(**inputs(kind)).logits, once(**inputs(kind)).logits)


@pytest.mark.slow
def test_it_loads_without_stillhouse_where_its_code_is_trusted(tmp_path: Path) -> None:
    small = cut(tiny.model("bert", layers=3), SOME)
    small.save_pretrained(tmp_path / "small")
    with torch.no_grad():
        expected = small(input_ids=torch.tensor([[2, 7, 8, 3]])).logits.tolist()
    code = (
        "import sys\n"
        "sys.modules['stillhouse'] = None\n"
        "import torch\n"
        "from transformers import AutoModelForSequenceClassification as Auto\n"
        f"model = Auto.from_pretrained({str(tmp_path / 'small')!r}, trust_remote_code=True)\n"
        "print(model.eval()(input_ids=torch.tensor([[2, 7, 8, 3]])).logits.tolist())\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True,
        env={"HF_MODULES_CACHE": str(tmp_path / "cache"), "HF_HUB_OFFLINE": "1", "PATH": ""},
    )  # fmt: skip
    found = np.array(eval(done.stdout.strip().splitlines()[-1]))
    np.testing.assert_allclose(found, expected, atol=1e-6)


@every_kind
@pytest.mark.parametrize("precision", ["float32", "bf16"])
def test_the_fast_path_takes_slim_models(kind: str, precision: str) -> None:
    small = cut(tiny.model(kind, layers=3), SOME)
    assert has_fast_path(small)
    given = inputs(kind)
    with torch.no_grad():
        fast = scores(small, given, precision=precision)
        own = scores(small, given, precision=precision, fast=False)
    tolerance = 1e-5 if precision == "float32" else 0.05
    torch.testing.assert_close(fast, own, atol=tolerance, rtol=tolerance)


def test_taps_read_slim_models() -> None:
    small = cut(tiny.model("bert", layers=3), SOME)
    with reading(small, [Tap("scores", 1), Tap("scores", 2), Tap("hidden", 3)]) as found:
        small(**inputs("bert"))
    assert [found[Tap("scores", k)].shape[1] for k in (1, 2)] == [1, 2]
    assert geometry(small).heads == 0
    even = cut(tiny.model("bert", layers=2), [Kept(k, (1,), (0,)) for k in (1, 2)])
    assert geometry(even).heads == 1


@pytest.mark.slow
def test_it_is_smaller_and_exports(tmp_path: Path) -> None:
    model = tiny.model("bert", layers=3)
    small = cut(model, SOME)
    assert parameters(small) < parameters(model)
    given = inputs("bert")
    path = export_onnx(small, given, tmp_path / "small.onnx")
    with torch.no_grad():
        expected = small(**given).logits.numpy()
    np.testing.assert_allclose(onnx_runner(path)(given), expected, atol=1e-4)


@pytest.mark.parametrize(
    ("kept", "says"),
    [
        ([], "keep at least one layer"),
        ([Kept(4, (0,), (0,))], "no layer 4 to keep of 3"),
        ([Kept(1, (), (0,))], "at least one of its heads"),
        ([Kept(1, (0,), ())], "at least one of its neurons"),
        ([Kept(1, (0, 2), (0,))], "heads of layer 1 are 0 to 1, rising"),
        ([Kept(1, (0,), (5, 3))], "neurons of layer 1 are 0 to 63, rising"),
    ],
)
def test_what_is_not_there_cannot_be_kept(kept: list[Kept], says: str) -> None:
    with pytest.raises(ModelError, match=says):
        cut(tiny.model("bert", layers=3), kept)


@pytest.mark.parametrize("kind", ["electra", "modernbert"])
def test_a_family_that_cannot_be_cut_is_named(kind: str) -> None:
    with pytest.raises(ModelError, match=f"of a {kind} can't be removed, only those of bert"):
        sizes(tiny.model(kind))


@every_kind
def test_a_fresh_slim_model_starts_as_a_stock_one_does(kind: str) -> None:
    whole = tiny.model(kind, initializer_range=0.3)
    kept = [Kept(k.layer, k.heads[:1], k.neurons[:20]) for k in everything(whole)]
    slim = cut(whole, kept)
    made = like(slim, slim.config)
    for block in blocks(made)[1]:
        for part in (*parts_of(made)[0], *parts_of(made)[1:]):
            layer = block.get_submodule(part)
            assert layer.weight.std().item() == pytest.approx(0.3, rel=0.2), part
            assert not layer.bias.any(), part


@every_kind
def test_its_encoder_loads_alone(kind: str, tmp_path: Path) -> None:
    whole = tiny.model(kind)
    slim = cut(whole, [Kept(k.layer, k.heads[:1], k.neurons[:20]) for k in everything(whole)])
    slim.save_pretrained(tmp_path)
    alone = AutoModel.from_pretrained(tmp_path).eval()
    given = inputs(kind)
    with torch.no_grad():
        hidden = slim.base_model(**given).last_hidden_state
        assert torch.allclose(alone(**given).last_hidden_state, hidden)
