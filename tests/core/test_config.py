"""Settings: unknown ones are refused with the nearest known one, wrong ones in one line."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from stillhouse.core.config import (
    DISTILBERT,
    SOFT_AND_GOLD,
    DataConfig,
    DistillConfig,
    StageConfig,
    StudentConfig,
    TrainingConfig,
)
from stillhouse.core.errors import UsageError
from stillhouse.core.settings import override, parse, quoted, read_yaml
from stillhouse.core.terms import TermConfig
from stillhouse.flows.methods import method

LEAST: dict[str, Any] = {"teacher": "t", "data": {"path": "d.csv"}}


def refused(**changes: Any) -> str:
    """The message that a config with `changes` is refused with."""
    with pytest.raises(UsageError) as caught:
        parse(DistillConfig, {**LEAST, **changes})
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    ("changes", "near"),
    [
        ({"techer": "t"}, "teacher"),
        ({"training": {"epoch": 3}}, "epochs"),
        ({"data": {"path": "d", "labelledrows": 3}}, "labelled_rows"),
        ({"objective": [{"kind": "soft", "temprature": 2}]}, "temperature"),
        ({"objective": [{"kind": "soft", "weight": {"start": 1, "ende": 2}}]}, "end"),
        ({"student": {"keep": "alternating"}}, "alternate"),
        ({"objective": [{"kind": "sotf"}]}, "soft"),
        ({"objective": [{"kind": "hiden"}]}, "hidden"),
        ({"objective": [{"kind": "hidden", "layer": "top"}]}, "layers"),
        ({"stages": [{"name": "a", "objective": [{"kind": "soft"}], "row": "all"}]}, "rows"),
    ],
)
def test_an_unknown_setting_names_the_nearest_known_one(changes: dict[str, Any], near: str) -> None:
    assert f"did you mean {near!r}?" in refused(**changes)


@pytest.mark.parametrize(
    "changes",
    [
        {"training": {"lr": 0}},
        {"training": {"steps": 0}},
        {"training": {"decay": "steep"}},
        {"data": {"path": "d", "held_out": 1.5}},
        {"evaluation": {"seeds": [1, 1]}},
        {"evaluation": {"seeds": []}},
        {"objective": [{"kind": "gold"}]},
        {"objective": [{"kind": "soft", "temperature": {"shape": "linear", "start": 2}}]},
        {"student": {"layers": [3, 2]}},
        {"student": {"layers": []}},
        {"student": {"layers": [1, 2], "width": 16}},
        {"student": {"layers": 0}},
        {"student": {"model": "m", "layers": 2}},
        {"student": {"model": "m", "source": "s"}},
        {"student": 3},
        {"training": {"dropout": 1.0}},
        {"stages": [{"name": "a", "objective": []}]},
        {"stages": [{"name": "a b", "objective": [{"kind": "soft"}]}]},
        {"stages": [{"name": "a", "objective": [{"kind": "soft"}]}] * 2},
        {"stages": [{"name": "a", "objective": [{"kind": "gold"}]}]},
        {
            "stages": [{"name": "a", "objective": [{"kind": "soft"}]}],
            "objective": [{"kind": "hard"}],
        },
        {"stages": [{"name": "a", "objective": [{"kind": "soft"}], "teacher": "t"}]},
        {
            "stages": [
                {
                    "name": "a",
                    "objective": [{"kind": "soft"}],
                    "rows": "labelled",
                    "corpus": {"path": "c"},
                }
            ]
        },
        {"objective": [{"kind": "hidden", "layers": [[1, 2, 3]]}]},
        {"masking": {"mask": 0.9, "random": 0.2}},
        {"student": {"model": "m", "fresh": True}},
        {"student": {"family": "distilbert", "width": 8}},
    ],
    ids=str,
)
def test_a_wrong_value_is_refused_in_one_line(changes: dict[str, Any]) -> None:
    assert refused(**changes)


def test_a_wrong_number_is_named_as_the_user_wrote_it() -> None:
    said = refused(student={"layers": "many"})
    assert said.startswith("setting student.layers: ")
    assert "constrained" not in refused(student={"layers": [1.5]})


def test_a_config_survives_its_own_dump() -> None:
    config = parse(DistillConfig, {**LEAST, "student": {"layers": [1, 3]}})
    assert parse(DistillConfig, config.model_dump(mode="json")) == config


def test_configs_are_frozen() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        StudentConfig().width = 3  # pyright: ignore


def test_a_number_is_a_constant_schedule() -> None:
    config = parse(DistillConfig, {**LEAST, "objective": [{"kind": "soft", "weight": 0.25}]})
    assert config.objective[0].weight.start == 0.25
    assert config.objective[0].weight.shape == "constant"


def test_override_reads_values_as_yaml() -> None:
    asked = [
        "training.lr=3e-5",
        "student.layers=[1, 3]",
        "evaluation.baseline=false",
        "teacher=m=1",
    ]
    values = override({}, asked)
    assert values == {
        "training": {"lr": 3e-5},
        "student": {"layers": [1, 3]},
        "evaluation": {"baseline": False},
        "teacher": "m=1",
    }


@pytest.mark.parametrize("setting", ["lr", "=3", "teacher.name=3", "student.layers=[1,"])
def test_override_refuses_what_is_no_setting(setting: str) -> None:
    with pytest.raises(UsageError) as caught:
        override({"teacher": "t"}, [setting])
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("text", [b"a: [1", b"- 1", b"", b"a: \xff"])
def test_read_yaml_refuses_a_file_without_settings(tmp_path: Path, text: bytes) -> None:
    path = tmp_path / "config.yaml"
    path.write_bytes(text)
    with pytest.raises(UsageError) as caught:
        read_yaml(path)
    assert "\n" not in str(caught.value)
    with pytest.raises(UsageError, match="no config file"):
        read_yaml(tmp_path / "other.yaml")


@pytest.mark.parametrize("layers", ["tops", [1, 2], "1-2", [[1, 2, 3]]], ids=str)
def test_a_wrong_layer_map_is_told_the_names_and_the_pairs(layers: object) -> None:
    message = refused(objective=[{"kind": "hidden", "layers": layers}])
    assert "uniform, top, bottom, skip, last, final, or pairs such as [[1, 2], [3, 6]]" in message


def test_stages_are_set_by_name_or_number() -> None:
    values: dict[str, Any] = {"stages": [{"name": "a"}, {"name": "b"}]}
    override(values, ["stages.b.training.epochs=2", "stages.0.training.epochs=3"])
    assert [stage["training"]["epochs"] for stage in values["stages"]] == [3, 2]
    with pytest.raises(UsageError, match="unknown entry '7'"):
        override(values, ["stages.7.training.epochs=2"])
    with pytest.raises(UsageError, match="this run has one stage"):
        override({"objective": []}, ["stages.a.training.epochs=2"])


SOFT = {"kind": "soft"}


def test_a_masked_language_model_has_distilberts_objective_unless_it_is_told_another() -> None:
    plain = {"teacher": "t", "data": {"path": "d"}}
    masked = {**plain, "task": "masked_lm"}
    assert parse(DistillConfig, plain).objective == SOFT_AND_GOLD
    assert parse(DistillConfig, masked).objective == DISTILBERT
    asked = parse(DistillConfig, {**masked, **method("kd")})
    assert [term.kind for term in asked.objective] == ["soft", "gold"]
    assert parse(DistillConfig, asked.model_dump(mode="json")) == asked
    default = parse(DistillConfig, masked)
    assert parse(DistillConfig, default.model_dump(mode="json")) == default


@pytest.mark.parametrize(
    "change", [{"corpus": {"path": "w.txt"}}, {"rows": "labelled"}, {"augment": {"copies": 2}}]
)
def test_a_masked_language_models_stage_has_no_data_of_its_own(change: dict[str, Any]) -> None:
    stages = [{"name": "one", "objective": [SOFT]}, {"name": "two", "objective": [SOFT], **change}]
    values = {"teacher": "t", "data": {"path": "d"}, "task": "masked_lm", "stages": stages}
    with pytest.raises(UsageError, match="stage two can have no corpus, rows or augment"):
        parse(DistillConfig, values)


def test_a_stage_made_in_python_inherits_as_one_in_yaml_does() -> None:
    made = StageConfig(
        name="one", objective=(TermConfig(kind="soft"),), training=TrainingConfig(select="last")
    )
    shared = {"epochs": 5.0, "lr": 1e-3}
    values = {"teacher": "t", "data": {"path": "d"}, "training": shared, "stages": (made,)}
    (stage,) = parse(DistillConfig, values).stages
    assert (stage.training.epochs, stage.training.lr, stage.training.select) == (5.0, 1e-3, "last")


def test_a_setting_that_every_stage_has_is_set_there() -> None:
    values = {"stages": [{"name": "one", "training": {"lr": 1e-4}}, {"name": "two"}]}
    assert override(values, ["training.lr=1e-3"])["training"] == {"lr": 1e-3}
    values["stages"][1]["training"] = {"lr": 1e-5}
    with pytest.raises(UsageError, match=r"set stages\.NAME\.training\.lr"):
        override(values, ["training.lr=1e-3"])
    assert override(values, ["training.epochs=2"])["training"]["epochs"] == 2


@pytest.mark.parametrize(
    "text",
    ["nan", "9", "-1", "true", "No", "007", "1e3", "2020-01-01", "[POS]", "a: b", "#n/a", "n/a"],
)
def test_a_text_is_what_was_written(text: str) -> None:
    """YAML takes these for numbers, truth values, dates, lists, and remarks."""
    asked = [f"data.no_label={text}", f"data.label={text}", f"stages.0.teacher={text}"]
    values = override({"stages": [{}]}, asked, DistillConfig)
    assert values["data"] == {"no_label": text, "label": text}
    assert values["stages"] == [{"teacher": text}]
    assert parse(DataConfig, {"path": "a", **values["data"]}).no_label == text


def test_a_text_is_unset_by_null_and_quoted_as_in_yaml() -> None:
    asked = ["student.source=null", "cache=", 'data.no_label="null"', r'data.separator="\n=\n"']
    values = override({}, [*asked, "training.lr=3e-5", "student.layers=[1]"], DistillConfig)
    assert values == {
        "student": {"source": None, "layers": [1]},
        "cache": None,
        "data": {"no_label": "null", "separator": "\n=\n"},
        "training": {"lr": 3e-5},
    }


@pytest.mark.parametrize("name", ["nan", "null", "NULL", "#n/a", "<na>", "n/a", "it's"])
def test_an_advised_setting_is_read_as_it_was_meant(name: str) -> None:
    (setting,) = shlex.split(quoted("data.no_label", name))
    assert override({}, [setting], DistillConfig) == {"data": {"no_label": name}}
