"""What a folder holds and what its head is for, by its true name."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from transformers import (
    BertConfig,
    BertForMaskedLM,
    BertForMultipleChoice,
    BertForNextSentencePrediction,
    BertForQuestionAnswering,
    BertForTokenClassification,
    BertModel,
    CLIPConfig,
    CLIPModel,
    ModernBertConfig,
    ModernBertForTokenClassification,
    ViTConfig,
    ViTForImageClassification,
    Wav2Vec2Config,
    Wav2Vec2ForSequenceClassification,
)

import tiny
from stillhouse.core.errors import ModelError
from stillhouse.flows.common import kind_of
from stillhouse.models.load import load_classifier, load_span_model, load_tokenizer, resolve

SMALL: dict[str, Any] = {
    "hidden_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 16,
}
SIGHT = {**SMALL, "image_size": 16, "patch_size": 8}
POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:ab\nsize 9\n"


def _bert(kind: Any) -> Any:
    return kind(BertConfig(vocab_size=80, max_position_embeddings=32, **SMALL))


def _modern() -> Any:
    config = ModernBertConfig(
        vocab_size=80, pad_token_id=0, cls_token_id=1, sep_token_id=2, **SMALL
    )
    return ModernBertForTokenClassification(config)


def _clip() -> Any:
    text = {**SMALL, "vocab_size": 80}
    return CLIPModel(CLIPConfig(text_config=text, vision_config=SIGHT, projection_dim=8))


def _sound() -> Any:
    shape = {"conv_dim": (8,), "conv_kernel": (3,), "conv_stride": (2,)}
    more = {"num_conv_pos_embeddings": 4, "num_conv_pos_embedding_groups": 2}
    return Wav2Vec2ForSequenceClassification(Wav2Vec2Config(**SMALL, **shape, **more))


MODELS: dict[str, tuple[Callable[[], Any], str]] = {
    "tokens": (lambda: _bert(BertForTokenClassification), "token classification is not supported"),
    "modern tokens": (_modern, "token classification is not supported yet"),
    "choice": (lambda: _bert(BertForMultipleChoice), "multiple choice is not supported yet"),
    "next": (
        lambda: _bert(BertForNextSentencePrediction),
        "next sentence prediction is not supported yet",
    ),
    "images": (
        lambda: ViTForImageClassification(ViTConfig(**SIGHT)),
        "image classification is not supported yet",
    ),
    "both": (_clip, "reading images and texts is not supported yet"),
    "sound": (_sound, "reading sound is not supported yet"),
    "masked": (lambda: _bert(BertForMaskedLM), "is a masked language model, which has no labels"),
    "spans": (
        lambda: _bert(BertForQuestionAnswering),
        "is a model for extractive question answering, and a classifier of texts is needed",
    ),
    "bare": (lambda: _bert(BertModel), "has no classification head"),
}


@pytest.mark.parametrize("kind", list(MODELS))
def test_a_teacher_of_another_kind_is_refused_by_its_true_name(kind: str, tmp_path: Path) -> None:
    make, says = MODELS[kind]
    make().save_pretrained(tmp_path / "it")
    with pytest.raises(ModelError, match=says) as caught:
        load_classifier(str(tmp_path / "it"))
    assert str(caught.value).startswith(str(tmp_path / "it"))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("kind", ["images", "both", "sound"])
def test_what_reads_no_text_is_no_start_either(kind: str, tmp_path: Path) -> None:
    make, says = MODELS[kind]
    make().save_pretrained(tmp_path / "it")
    for use in (
        lambda name: load_classifier(name, labels=["a", "b"]),
        lambda name: load_span_model(name, fresh_head=True),
        kind_of,
        load_tokenizer,
    ):
        with pytest.raises(ModelError, match=says):
            use(str(tmp_path / "it"))


@pytest.mark.parametrize("kind", ["tokens", "masked", "spans", "bare", "choice"])
def test_an_encoder_with_another_head_is_a_start_to_fine_tune(kind: str, tmp_path: Path) -> None:
    MODELS[kind][0]().save_pretrained(tmp_path / "it")
    model = load_classifier(str(tmp_path / "it"), labels=["a", "b", "c"])
    assert model.config.num_labels == 3


def test_a_sentence_embedding_model_is_named_and_is_a_start(tmp_path: Path) -> None:
    _bert(BertModel).save_pretrained(tmp_path)
    (tmp_path / "modules.json").write_text("[]")
    with pytest.raises(ModelError, match="sentence embedding is not supported yet"):
        load_classifier(str(tmp_path))
    assert load_classifier(str(tmp_path), labels=["a", "b"]).config.num_labels == 2


def test_a_classifier_is_no_model_of_spans(teacher: Path) -> None:
    with pytest.raises(ModelError, match="is a classifier of texts, and a model for extractive"):
        load_span_model(str(teacher))


def _without(name: str) -> Callable[[Path], None]:
    def take(folder: Path) -> None:
        for path in folder.glob(name):
            path.unlink()

    return take


def _instead(name: str, content: str | bytes) -> Callable[[Path], None]:
    def put(folder: Path) -> None:
        data = content.encode() if isinstance(content, str) else content
        (folder / name).write_bytes(data)

    return put


def _cut(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


def _of_its_own(folder: Path) -> None:
    path = folder / "config.json"
    held = json.loads(path.read_text())
    own = {"AutoConfig": "own.Config", "AutoModelForSequenceClassification": "own.Model"}
    path.write_text(json.dumps({**held, "model_type": "own", "auto_map": own}))


def _adapter(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "adapter_model.safetensors")
    about = {"peft_type": "LORA", "base_model_name_or_path": "some/base"}
    (folder / "adapter_config.json").write_text(json.dumps(about))


def _gguf(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    (folder / "model-q4.gguf").write_bytes(b"GGUF")


CHANGED: dict[str, tuple[Callable[[Path], None], str]] = {
    "no weights": (_without("*.safetensors"), "has no .safetensors weights"),
    "no config": (_without("config.json"), "is no model folder: it has no config.json"),
    "cut short": (_cut, "its weights are cut short or damaged"),
    "a pointer": (_instead("model.safetensors", POINTER), "is a git-LFS pointer.*git lfs pull"),
    "a page": (_instead("model.safetensors", "<!DOCTYPE html>\n"), "is a web page: download"),
    "a config's pointer": (_instead("config.json", POINTER), "config.json is a git-LFS pointer"),
    "no JSON": (_instead("config.json", "{"), "can't load .*JSON"),
    "no object": (_instead("config.json", "[]"), "can't load"),
    "own code": (_of_its_own, "comes with code of its own: read it.*--trust-remote-code"),
    "an adapter": (_adapter, r"is a PEFT adapter \(LORA\) of some/base.*merge_and_unload"),
    "GGUF": (_gguf, "holds GGUF weights"),
    "a pipeline": (_instead("model_index.json", "{}"), "is a diffusers pipeline"),
}


@pytest.mark.parametrize("change", list(CHANGED))
def test_a_folder_that_is_no_whole_model_says_what_it_is(
    change: str, teacher: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "it"
    shutil.copytree(teacher, folder)
    act, says = CHANGED[change]
    act(folder)
    with pytest.raises(ModelError, match=says) as caught:
        load_classifier(str(folder))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("damaged", [False, True])
def test_a_folder_without_its_tokenizer_is_refused(
    teacher: Path, tmp_path: Path, *, damaged: bool
) -> None:
    """Or transformers would make an empty one, to which every word is unknown."""
    folder = tmp_path / "it"
    shutil.copytree(teacher, folder)
    if damaged:
        (folder / "tokenizer.json").write_text("{}")
    else:
        _without("tokenizer*")(folder)
    says = "can't load" if damaged else "has no tokenizer"
    with pytest.raises(ModelError, match=says) as caught:
        load_tokenizer(str(folder))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("model.gguf", "is a file of GGUF weights"),
        ("model.onnx", "is an exported ONNX model"),
        ("model.safetensors", "is one file of a model: give its folder"),
        ("reviews.csv", "is no model folder but a file"),
        ("loop", "is a link that leads nowhere"),
        ("nowhere", "there is no model folder"),
    ],
)
def test_a_file_is_no_models_folder(name: str, says: str, tmp_path: Path) -> None:
    if name == "loop":
        (tmp_path / name).symlink_to(name)
    elif name != "nowhere":
        (tmp_path / name).touch()
    with pytest.raises(ModelError, match=says):
        resolve(str(tmp_path / name))


def test_a_home_is_where_a_shell_has_it(
    teacher: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(teacher, tmp_path / "it")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert resolve("~/it") == tmp_path / "it"
    with pytest.raises(ModelError, match="there is no model folder ~/other"):
        resolve("~/other")
    for nothing in ("", " ", "None"):
        with pytest.raises(ModelError, match="is no model"):
            resolve(nothing)


def test_spaces_and_letters_of_any_language_are_a_path(tmp_path: Path) -> None:
    folder = tiny.save(tmp_path / "mein Lehrer é 模型", "bert", layers=1)
    assert load_classifier(str(folder)).config.num_labels == 2
    assert load_tokenizer(str(folder))("good")["input_ids"]
