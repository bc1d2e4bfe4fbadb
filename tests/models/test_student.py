"""Students: which layers stay, what fresh shapes get, what is refused.

Axes: B examples, T tokens, H hidden.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import (
    AutoModelForMaskedLM,
    AutoModelForSequenceClassification,
    PreTrainedModel,
)

import tiny
from families import zoo
from stillhouse.core.config import StudentConfig
from stillhouse.core.errors import ModelError
from stillhouse.models.load import load_classifier
from stillhouse.models.student import (
    blocks,
    build,
    choose_layers,
    distilbert,
    parameters,
    refuse_larger,
    take_layers,
)

DISTILBERT = StudentConfig(family="distilbert")
masked_or_not = pytest.mark.parametrize("masked", [False, True], ids=["classifier", "masked_lm"])


def texts() -> dict[str, Tensor]:
    found = [text for text, _ in tiny.sentences(6)]
    return dict(tiny.tokenizer()(found, padding=True, return_tensors="pt"))


def without_types(batch: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: t for name, t in batch.items() if name != "token_type_ids"}


@torch.no_grad()
def hidden(model: PreTrainedModel, batch: dict[str, Tensor]) -> list[Tensor]:
    mask_BT = batch["attention_mask"].bool()
    return [x[mask_BT] for x in model(**batch, output_hidden_states=True).hidden_states]


@pytest.mark.parametrize(
    ("total", "count", "keep", "layers"),
    [
        (12, 6, "alternate", [2, 4, 6, 8, 10, 12]),
        (6, 3, "alternate", [2, 4, 6]),
        (12, 4, "alternate", [3, 6, 9, 12]),
        (4, 1, "alternate", [4]),
        (5, 5, "alternate", [1, 2, 3, 4, 5]),
        (6, 2, "first", [1, 2]),
        (6, 2, "last", [5, 6]),
    ],
)
def test_layers_by_hand(total: int, count: int, keep: str, layers: list[int]) -> None:
    assert choose_layers(total, count, keep) == layers


def test_any_count_gives_that_many_rising_layers() -> None:
    for total in range(1, 25):
        for count in range(1, total + 1):
            for keep in ("alternate", "first", "last"):
                layers = choose_layers(total, count, keep)
                assert len(layers) == count
                assert layers == sorted(set(layers))
                assert layers[0] >= 1
                assert layers[-1] == total or keep == "first"


@pytest.mark.parametrize("kind", tiny.KINDS)
@masked_or_not
def test_a_student_of_all_layers_is_its_teacher(kind: str, masked: bool) -> None:
    source = tiny.model(kind, layers=3, masked=masked)
    student = take_layers(source, [1, 2, 3])
    assert type(student) is type(source)
    for name, tensor in source.state_dict().items():
        assert torch.equal(student.state_dict()[name], tensor), name
    assert not student.training


@pytest.mark.parametrize("kind", tiny.KINDS)
@masked_or_not
def test_taken_weights_are_copies(kind: str, masked: bool) -> None:
    source = tiny.model(kind, layers=3, masked=masked)
    before = {name: tensor.clone() for name, tensor in source.state_dict().items()}
    student = take_layers(source, [1, 3])
    with torch.no_grad():
        for parameter in student.parameters():
            parameter.add_(1.0)
    assert all(torch.equal(tensor, before[name]) for name, tensor in source.state_dict().items())
    assert source.config.num_hidden_layers == 3
    assert student.config.num_hidden_layers == 2


def test_the_label_names_come_along() -> None:
    student = build(tiny.model(labels=["no", "yes"], layers=2), StudentConfig())
    assert student.config.id2label == {0: "no", 1: "yes"}
    assert student.config.num_hidden_layers == 1


@pytest.mark.parametrize("kind", ["bert", "roberta", "distilbert", "electra"])
def test_a_fresh_shape_is_as_asked_and_follows_its_seed(kind: str) -> None:
    source = tiny.model(kind, layers=3)
    shape = StudentConfig(layers=2, width=16)
    student, same, other = (build(source, shape, seed=seed) for seed in (1, 1, 2))
    assert student.config.hidden_size == 16
    assert student.config.num_attention_heads == 1  # heads of the source's size
    ids = torch.tensor([[2, 10, 30, 3]])
    assert student(input_ids=ids).logits.shape == (1, 2)
    states = [model.state_dict() for model in (student, same, other)]
    name = next(name for name, tensor in states[0].items() if tensor.ndim == 2)
    assert torch.equal(states[0][name], states[1][name])
    assert not torch.equal(states[0][name], states[2][name])
    inner = [
        tuple(t.shape)
        for n, t in states[0].items()
        if n.endswith(("intermediate.dense.weight", "lin1.weight"))
    ]
    assert inner == [(32, 16)] * 2


def test_a_fresh_shape_of_equal_width_keeps_the_embeddings() -> None:
    source = tiny.model(layers=3)
    student = build(source, StudentConfig(ffn=24), seed=1)
    mine, theirs = (m.get_input_embeddings().weight for m in (student, source))
    assert torch.equal(mine, theirs)
    assert mine.data_ptr() != theirs.data_ptr()
    assert student.config.num_hidden_layers == 3
    assert student.config.intermediate_size == 24


def test_building_leaves_torchs_random_numbers_alone() -> None:
    source = tiny.model()
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    build(source, StudentConfig(width=16, layers=1), seed=5)
    assert torch.equal(torch.rand(3), expected)


@pytest.mark.parametrize(
    ("shape", "says"),
    [
        (StudentConfig(layers=5), "larger than its source's 4"),
        (StudentConfig(layers=[2, 5]), "not all among the source's 1 to 4"),
        (StudentConfig(width=18, heads=4), "not a multiple of 4 heads"),
    ],
)
def test_impossible_shapes_are_refused(shape: StudentConfig, says: str) -> None:
    with pytest.raises(ModelError, match=says) as caught:
        build(tiny.model(layers=4), shape)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("shape", "says"),
    [
        (
            StudentConfig(layers=[2, 4]),
            "layer 2 of a modernbert can't be a first one, which has no attn_norm",
        ),
        (StudentConfig(layers=5, ffn=24), "a student of 5 layers is larger than its source's 4"),
    ],
)
def test_modernberts_first_block_and_its_kinds_of_layers_are_minded(
    shape: StudentConfig, says: str
) -> None:
    source = tiny.model("modernbert", layers=4)
    with pytest.raises(ModelError, match=says) as caught:
        build(source, shape)
    assert "\n" not in str(caught.value)
    assert build(source, StudentConfig(layers=[1, 4])).config.layer_types == [
        "full_attention",
        "sliding_attention",
    ]
    kept = source.base_model.get_submodule("layers.2").state_dict()
    student = build(source, StudentConfig(layers=2))  # 1 and 3: no other may be the first
    assert student.config.layer_types == ["full_attention"] * 2
    mine = student.base_model.get_submodule("layers.1").state_dict()
    assert all(torch.equal(mine[name], kept[name]) for name in kept)


def test_a_larger_student_is_refused() -> None:
    small, big = tiny.model(layers=1), tiny.model(layers=2)
    refuse_larger(small, big)
    refuse_larger(big, big)
    with pytest.raises(ModelError, match=f"{parameters(big):,} against {parameters(small):,}"):
        refuse_larger(big, small)


@pytest.mark.parametrize("kind", tiny.KINDS)
def test_taken_layers_of_a_masked_language_model_keep_its_head_and_tie(kind: str) -> None:
    source = tiny.model(kind, layers=3, masked=True)
    student = take_layers(source, [1, 3])
    words = student.get_input_embeddings().weight
    tied = student.get_output_embeddings().weight is words
    assert tied
    assert torch.equal(words, source.get_input_embeddings().weight)
    inside = f"{source.base_model_prefix}."
    head = {n: t for n, t in source.state_dict().items() if not n.startswith(inside)}
    assert len(head) >= 4
    for name, tensor in head.items():
        assert torch.equal(student.state_dict()[name], tensor), name
    with torch.no_grad():
        words.add_(1.0)
    assert torch.equal(student.get_output_embeddings().weight, words)


@pytest.mark.parametrize("kind", tiny.KINDS)
@pytest.mark.parametrize(
    "other_shape", [{}, {"width": 16}, {"ffn": 24}], ids=["taken", "narrow", "same_width"]
)
@masked_or_not
def test_fresh_shares_no_weight_with_its_source(
    kind: str, other_shape: dict[str, int], masked: bool
) -> None:
    source = tiny.model(kind, layers=3, masked=masked)
    shape = StudentConfig(layers=2, keep="first", fresh=True, **other_shape)
    student, again, other = (build(source, shape, seed=seed) for seed in (1, 1, 2))
    held = list(source.parameters())
    for name, parameter in student.named_parameters():
        same = [p for p in held if p.shape == parameter.shape and torch.equal(p, parameter)]
        assert not same, name
        assert all(p.data_ptr() != parameter.data_ptr() for p in held), name
    assert student.config.num_hidden_layers == 2
    assert not student.training
    states = [model.state_dict() for model in (student, again, other)]
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    words = next(
        name
        for name in states[0]
        if name.endswith(("word_embeddings.weight", "tok_embeddings.weight"))
    )
    assert not torch.equal(states[0][words], states[2][words])


def test_fresh_of_family_distilbert_shares_no_weight_with_its_source() -> None:
    source = tiny.model(layers=3)
    shape = StudentConfig(layers=2, family="distilbert", fresh=True)
    student = build(source, shape, seed=1)
    assert student.config.model_type == "distilbert"
    held = list(source.state_dict().values())
    for name, parameter in student.named_parameters():
        same = [t for t in held if t.shape == parameter.shape and torch.equal(t, parameter)]
        assert not same, name


# Family distilbert.


@masked_or_not
def test_a_distilbert_of_all_layers_is_its_source(masked: bool) -> None:
    """For single texts: every token is then of the first type."""
    source, batch = tiny.model(layers=2, masked=masked), texts()
    student = build(source, StudentConfig(layers=2, family="distilbert"))
    expected = hidden(source, batch)
    for k, (mine, theirs) in enumerate(
        zip(hidden(student, without_types(batch)), expected, strict=True)
    ):
        torch.testing.assert_close(mine, theirs, atol=1e-5, rtol=1e-5, msg=f"layer {k}")
    types_TH = source.bert.embeddings.token_type_embeddings.weight
    assert float(types_TH[0].detach().norm()) > 0.1, "a type of zeros would hide a lost one"
    assert not student.training


@pytest.mark.parametrize("layers", [[1], [2, 4], [1, 3, 4]])
def test_distilbert_takes_the_named_layers(layers: list[int]) -> None:
    """The same as the source with these blocks only."""
    source, batch = tiny.model(layers=4), texts()
    student = build(source, StudentConfig(layers=layers, family="distilbert"))
    expected = hidden(take_layers(source, layers), batch)
    found = hidden(student, without_types(batch))
    for mine, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(mine, theirs, atol=1e-5, rtol=1e-5)


def test_distilbert_takes_layers_as_any_student_does() -> None:
    source, batch = tiny.model(layers=4), texts()
    found = hidden(build(source, DISTILBERT), without_types(batch))
    expected = hidden(build(source, StudentConfig(layers=[2, 4])), batch)
    torch.testing.assert_close(found[-1], expected[-1], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("tied", [True, False])
def test_a_masked_distilbert_gives_its_sources_vocabulary_scores(tied: bool) -> None:
    source = tiny.model(layers=2, masked=True, tie_word_embeddings=tied)
    batch = texts()
    student = build(source, StudentConfig(layers=2, family="distilbert"))
    with torch.no_grad():
        mine_BTV = student(**without_types(batch)).logits
        theirs_BTV = source(**batch).logits
    mask_BT = batch["attention_mask"].bool()
    torch.testing.assert_close(mine_BTV[mask_BT], theirs_BTV[mask_BT], atol=1e-4, rtol=1e-4)
    words, decoder = student.get_input_embeddings(), student.get_output_embeddings()
    assert (words.weight is decoder.weight) is tied


def test_a_distilberts_classifier_is_fresh_and_follows_its_seed() -> None:
    source = tiny.model(layers=2, labels=["no", "maybe", "yes"])
    student, same, other = (build(source, DISTILBERT, seed=seed) for seed in (1, 1, 2))
    assert student.config.id2label == {0: "no", 1: "maybe", 2: "yes"}
    assert student.config.problem_type == "single_label_classification"
    for name in ("pre_classifier", "classifier"):
        weights = [model.get_submodule(name).weight for model in (student, same, other)]
        assert torch.equal(weights[0], weights[1])
        assert not torch.equal(weights[0], weights[2])
        for held in (source.classifier.weight, source.bert.pooler.dense.weight):
            assert held.shape != weights[0].shape or not torch.equal(held, weights[0])
    inside = [n for n in student.state_dict() if n.startswith("distilbert.")]
    assert all(torch.equal(student.state_dict()[n], other.state_dict()[n]) for n in inside)


@masked_or_not
def test_a_distilberts_weights_are_copies_and_its_settings_its_sources(masked: bool) -> None:
    """Its padding too: a word at DistilBERT's own place of it would never be trained."""
    source = tiny.model(layers=2, masked=masked, dropout=0.3, pad_token_id=7)
    before = {name: tensor.clone() for name, tensor in source.state_dict().items()}
    student = build(source, DISTILBERT)
    with torch.no_grad():
        for parameter in student.parameters():
            parameter.add_(1.0)
    assert all(torch.equal(tensor, before[name]) for name, tensor in source.state_dict().items())
    assert student.get_input_embeddings().padding_idx == student.config.pad_token_id == 7
    assert student.config.dropout == student.config.attention_dropout == 0.3


def test_distilbert_leaves_torchs_random_numbers_alone() -> None:
    source = tiny.model()
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    build(source, DISTILBERT, seed=5)
    assert torch.equal(torch.rand(3), expected)


@pytest.mark.parametrize(
    ("kind", "settings", "layers", "says"),
    [
        ("roberta", {}, [1], "made of a BERT, not of a roberta"),
        ("distilbert", {}, [1], "made of a BERT, not of a distilbert"),
        ("electra", {}, [1], "made of a BERT, not of a electra"),
        ("bert", {"hidden_act": "relu"}, [1], "has gelu, this BERT has relu"),
        ("bert", {}, [1, 3], "not all among the source's 1 to 2"),
    ],
)
def test_what_no_distilbert_is_made_of(
    kind: str, settings: dict[str, str], layers: list[int], says: str
) -> None:
    with pytest.raises(ModelError, match=says) as caught:
        distilbert(tiny.model(kind, layers=2, **settings), layers, 0)
    assert "\n" not in str(caught.value)


@masked_or_not
@pytest.mark.parametrize("kind", [*tiny.KINDS, "bert to distilbert"])
def test_saved_and_loaded_by_transformers(kind: str, masked: bool, tmp_path: Path) -> None:
    family = "distilbert" if " " in kind else "same"
    source = tiny.model(kind.partition(" ")[0], layers=3, masked=masked)
    student = build(source, StudentConfig(layers=[1, 3], family=family), seed=3)
    student.save_pretrained(tmp_path)
    auto = AutoModelForMaskedLM if masked else AutoModelForSequenceClassification
    loaded, report = auto.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(report.values())
    assert type(loaded) is type(student)
    assert len(blocks(loaded)[1]) == 2
    batch = texts() if family == "same" else without_types(texts())
    if kind in ("distilbert", "modernbert"):
        batch = without_types(batch)
    if "roberta" in kind:
        batch = {name: t.clamp(max=64) for name, t in without_types(batch).items()}
    with torch.no_grad():
        torch.testing.assert_close(loaded(**batch).logits, student(**batch).logits)


@pytest.mark.parametrize("family", ["longformer", "gpt_neo", "modernbert", "gemma2"])
def test_settings_with_an_entry_a_layer_are_cut_with_the_layers(
    family: str, tmp_path: Path
) -> None:
    windows = {"attention_window": [2, 4, 6, 8]} if family == "longformer" else {}
    source = zoo.model(family, **windows)
    name = {"longformer": "attention_window", "gpt_neo": "attention_layers"}.get(
        family, "layer_types"
    )
    held = getattr(source.config, name)
    for shape, kept in (
        (StudentConfig(layers=[1, 4]), [held[0], held[3]]),
        (StudentConfig(layers=2, width=16), held[:2]),
    ):
        student = build(source, shape)
        assert list(getattr(student.config, name)) == list(kept)
        student.save_pretrained(tmp_path)
        assert list(getattr(load_classifier(str(tmp_path)).config, name)) == list(kept)


def test_a_list_as_long_as_there_are_layers_by_chance_stays() -> None:
    source = zoo.model("deberta", num_hidden_layers=2)
    assert len(source.config.pos_att_type) == 2
    assert build(source, StudentConfig(layers=1)).config.pos_att_type == ["c2p", "p2c"]


def test_all_parts_of_a_block_are_taken_wherever_they_are() -> None:
    source = zoo.model("xlm")
    student = build(source, StudentConfig(layers=[2, 4]))
    mine, theirs = student.state_dict(), source.state_dict()
    for part in ("attentions", "layer_norm1", "ffns", "layer_norm2"):
        inside = [key for key in mine if f".{part}.1." in key]
        assert inside
        for key in inside:
            assert torch.equal(mine[key], theirs[key.replace(f".{part}.1.", f".{part}.3.")])


def test_layers_that_share_their_weights_are_fewer_passes() -> None:
    source = zoo.model("albert")
    student = build(source, StudentConfig(layers=2))
    assert student.config.num_hidden_layers == 2
    mine, theirs = student.state_dict(), source.state_dict()
    assert all(torch.equal(mine[key], theirs[key]) for key in theirs)


@pytest.mark.parametrize("family", ["deberta-v2", "squeezebert", "falcon", "t5", "gpt2", "xlnet"])
def test_what_is_as_wide_as_the_model_follows_its_width(family: str) -> None:
    student = build(zoo.model(family), StudentConfig(layers=2, width=16))
    assert student.config.hidden_size == 16
    ids = torch.tensor([[0, 7, 8, 2]])
    with torch.no_grad():
        assert student(input_ids=ids, attention_mask=torch.ones_like(ids)).logits.shape == (1, 2)


def test_a_family_without_such_a_shape_is_one_line() -> None:
    with pytest.raises(ModelError, match="there is no reformer of that shape: ") as caught:
        build(zoo.model("reformer"), StudentConfig(width=16))
    assert "\n" not in str(caught.value)
