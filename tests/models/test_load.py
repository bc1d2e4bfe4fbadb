"""Loading: safetensors only, one line where it can't be done."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from transformers import BertModel

import tiny
from stillhouse.core.errors import ModelError
from stillhouse.models.load import (
    fingerprint,
    has_head,
    label_names,
    load_classifier,
    load_config,
    load_tokenizer,
    resolve,
)

Folders = Callable[..., Path]


def refused(name: Path | str, says: str, load: Callable[[str], object] = load_classifier) -> None:
    with pytest.raises(ModelError, match=says) as caught:
        load(str(name))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("kind", ["bert", "roberta", "distilbert"])
def test_what_was_saved_is_loaded(folders: Folders, kind: str) -> None:
    folder = folders(kind)
    model = load_classifier(str(folder))
    assert not model.training
    for name, tensor in tiny.model(kind).state_dict().items():
        assert torch.equal(model.state_dict()[name], tensor), name
    assert label_names(model.config) == tiny.SENTIMENT
    assert has_head(load_config(str(folder)))
    assert load_tokenizer(str(folder)).is_fast


def test_half_precision_weights_come_as_float32(tmp_path: Path) -> None:
    tiny.model().to(torch.bfloat16).save_pretrained(tmp_path)
    assert {p.dtype for p in load_classifier(str(tmp_path)).parameters()} == {torch.float32}


def test_a_runs_folder_stands_for_its_student(folders: Folders, tmp_path: Path) -> None:
    shutil.copytree(folders("bert"), tmp_path / "student")
    assert resolve(str(tmp_path)) == tmp_path / "student"


def test_pickled_weights_are_not_loaded(folders: Folders, tmp_path: Path) -> None:
    folder = shutil.copytree(folders("bert"), tmp_path / "m")
    (folder / "model.safetensors").unlink()
    torch.save(tiny.model().state_dict(), folder / "pytorch_model.bin")
    refused(folder, r"no \.safetensors weights")


def test_folders_that_are_no_models_are_one_line(tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "cat.jpg").touch()
    refused(tmp_path / "photos", "no config.json, it holds cat.jpg")
    refused(tmp_path / "nothing", "is no model folder")
    refused(tmp_path / "photos" / "cat.jpg", "is no model folder")
    refused("./nothing", "is no model folder")
    refused("nothing-of-that-name", "the hub gave no model of that name")


def test_broken_folders_are_one_line(folders: Folders, tmp_path: Path) -> None:
    folder = shutil.copytree(folders("bert"), tmp_path / "m")
    weights = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(weights[: len(weights) // 2])
    refused(folder, "its weights are cut short or damaged")
    (folder / "config.json").write_text("{", encoding="utf-8")
    refused(folder, "can't load")
    refused(folder, "can't load", load_config)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).unlink()
    refused(folder, "tokenizer|can't load", load_tokenizer)


def test_a_model_without_a_head_is_no_teacher(tmp_path: Path) -> None:
    base = tiny.model().base_model
    assert isinstance(base, BertModel)
    base.save_pretrained(tmp_path)
    assert not has_head(load_config(str(tmp_path)))
    refused(tmp_path, "no classification head")
    assert load_classifier(str(tmp_path), labels=["a", "b", "c"]).config.num_labels == 3


def test_a_head_for_other_labels_is_made_anew(folders: Folders) -> None:
    folder = str(folders("bert"))
    model = load_classifier(folder, labels=["a", "b", "c"])
    assert label_names(model.config) == ["a", "b", "c"]
    assert model.classifier.out_features == 3
    same = load_classifier(folder, labels=tiny.SENTIMENT)
    assert torch.equal(same.classifier.weight, tiny.model().classifier.weight)
    assert load_classifier(folder, labels=["value"]).config.problem_type == "regression"


def test_a_stored_head_is_put_in_the_order_of_the_labels(folders: Folders) -> None:
    stored = tiny.model().classifier
    turned = load_classifier(str(folders("bert")), labels=tiny.SENTIMENT[::-1])
    assert label_names(turned.config) == tiny.SENTIMENT[::-1]
    assert torch.equal(turned.classifier.weight, stored.weight.flip(0))
    assert torch.equal(turned.classifier.bias, stored.bias.flip(0))


@pytest.mark.parametrize("kind", ["bert", "roberta", "distilbert"])
def test_a_stored_head_of_as_many_other_labels_is_made_anew(folders: Folders, kind: str) -> None:
    """Its rows stand for other things: kept, they would be answers under wrong names."""
    stored = load_classifier(str(folders(kind)))
    torch.manual_seed(5)
    other = load_classifier(str(folders(kind)), labels=["spam", "ham"])
    name = next(n for n, p in stored.named_parameters() if p.ndim == 2 and len(p) == 2
                and n.startswith("classifier"))  # fmt: skip
    assert not torch.isclose(other.get_parameter(name), stored.get_parameter(name)).any()
    for mine, theirs in zip(
        other.base_model.parameters(), stored.base_model.parameters(), strict=True
    ):
        assert torch.equal(mine, theirs)


@pytest.mark.parametrize("labels", [None, ["a", "b", "c"]], ids=["teacher", "student"])
@pytest.mark.parametrize("change", [{"num_hidden_layers": 1}, {"num_hidden_layers": 3}])
def test_weights_that_are_not_the_configs_are_refused(
    folders: Folders, tmp_path: Path, change: dict[str, int], labels: list[str] | None
) -> None:
    """They would be left out, or random, without a word."""
    folder = shutil.copytree(folders("bert", layers=2), tmp_path / "m")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | change))
    with pytest.raises(ModelError, match=r"not those its config|lack"):
        load_classifier(str(folder), labels=labels)


def test_the_fingerprint_follows_weights_and_settings_not_the_folder(
    folders: Folders, tmp_path: Path
) -> None:
    folder = shutil.copytree(folders("bert"), tmp_path / "m")
    plain = fingerprint(load_classifier(str(folders("bert"))))
    model = load_classifier(str(folder))
    assert fingerprint(model) == plain
    with torch.no_grad():
        model.classifier.bias[0] += 1e-6
    assert fingerprint(model) != plain
    config = json.loads((folder / "config.json").read_text())
    config["layer_norm_eps"] = 1e-6
    (folder / "config.json").write_text(json.dumps(config))
    assert fingerprint(load_classifier(str(folder))) != plain


def test_code_that_comes_with_a_model_is_not_run(folders: Folders, tmp_path: Path) -> None:
    folder = shutil.copytree(folders("bert"), tmp_path / "m")
    config = json.loads((folder / "config.json").read_text())
    config["model_type"] = "strange"
    config["auto_map"] = {
        "AutoConfig": "theirs.Config",
        "AutoModelForSequenceClassification": "theirs.Model",
    }
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "theirs.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    refused(folder, "code of its own.*--trust-remote-code")
    refused(folder, "code of its own.*--trust-remote-code", load_config)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("labels", "says"),
    [
        ({"1": "a", "2": "b"}, "has ids 1, 2; 0 to 1 are needed"),
        ({"0": "a", "2": "b"}, "has ids 0, 2; 0 to 1 are needed"),
        (["a", "b"], "is a list: write a name for each id"),
    ],
)
def test_label_names_that_are_not_those_of_the_heads_rows(
    folders: Folders, tmp_path: Path, labels: object, says: str
) -> None:
    folder = tmp_path / "model"
    shutil.copytree(folders(), folder)
    config = json.loads((folder / "config.json").read_text())
    config["id2label"] = labels
    (folder / "config.json").write_text(json.dumps(config))
    refused(folder, says, lambda name: label_names(load_config(name)))


@pytest.mark.parametrize(
    "named", ["BartForSequenceClassification", "XLNetForSequenceClassification"]
)
def test_a_head_is_one_whatever_it_is_called(named: str) -> None:
    """BART's is classification_head, XLNet's logits_proj."""
    assert has_head(SimpleNamespace(architectures=[named]))
    assert not has_head(SimpleNamespace(architectures=[named.split("For")[0] + "ForMaskedLM"]))
    assert not has_head(SimpleNamespace(architectures=None))
