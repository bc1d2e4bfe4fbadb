"""The commands about tickets and removal as a user meets them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from stillhouse.cli import recipes
from stillhouse.models.load import load_classifier
from stillhouse.models.surgery import sizes

Call = Callable[..., tuple[int, str, str]]
TINY = {"steps": 4, "batch_size": 8, "precision": "float32"}
QUICK = {"training.steps": 4, "training.batch_size": 8, "evaluation.resamples": 50}
FIND = [word for key, value in QUICK.items() for word in ("--set", f"{key}={value}")]
FIND += ["--seeds", "1", "--rounds", "2"]
RECOVER = ["--set", "recover.training.steps=4", "--set", "recover.evaluation.resamples=50",
           "--set", "recover.evaluation.efficiency=false", "--set", "recover.export.onnx=false",
           "--set", "recover.export.int8=false", "--seeds", "1"]  # fmt: skip


@pytest.fixture(scope="module")
def searches(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("searches")


@pytest.mark.slow
def test_a_ticket_is_found_and_moved(
    call: Call, searches: Path, teacher: Path, reviews: Path, cache: Path
) -> None:
    for name in ("one", "two"):
        code, out, err = call("tickets", "find", "--model", teacher, "--data", reviews, "--out",
                              searches / name, "--sparsity", 0.7, "--cache", cache,
                              *FIND)  # fmt: skip
        assert code == 0, err
    for kind in ("dense", "ticket", "random", "reinitialised"):
        assert kind in out
    assert "30.0 %" in out
    assert f"Report: {searches / 'two' / 'report.html'}" in out.replace("\n", "")
    code, out, err = call("tickets", "transfer", searches / "one", searches / "two", "--out",
                          searches / "matrix")  # fmt: skip
    assert code == 0, err
    assert "ticket of" in out
    assert "on two" in out
    code, out, _ = call("tickets", "transfer", searches / "one", searches / "two", "--out",
                        searches / "matrix", "--json")  # fmt: skip
    assert [cell["source"] for cell in json.loads(out)["cells"]] == ["one", "two", "one", "two"]
    code, _, err = call("report", searches / "one", searches / "two", "--out",
                        searches / "both.html")  # fmt: skip
    assert code == 2
    assert "a page of its own: name one folder" in err


@pytest.mark.slow
def test_a_model_is_cut_and_taught_again(
    call: Call, tmp_path: Path, teacher: Path, reviews: Path, cache: Path
) -> None:
    words = ["tickets", "remove", "--model", teacher, "--data", reviews, "--out", tmp_path / "cut",
             "--layers", 3, "--heads", 1, "--cache", cache]  # fmt: skip
    code, out, err = call(*words, *RECOVER)
    assert code == 0, err
    assert "layers that stay" in err
    assert "Report:" in out
    found = sizes(load_classifier(str(tmp_path / "cut" / "student")))
    assert found.heads == (1, 1, 1)
    code, out, _ = call(*words, *RECOVER, "--json")
    told = json.loads(out)
    assert [each["heads"] for each in told["removal"]["layers"]].count(1) == 3
    assert told["record"]["student"]["parameters"] == told["removal"]["parameters"]
    only = [*words[:7], tmp_path / "only", *words[8:]]
    code, out, err = call(*only, "--no-recover", "--json")
    assert code == 0, err
    assert json.loads(out)["record"] is None
    code, out, _ = call(*only, "--no-recover")
    assert code == 0
    assert f"The cut model: {tmp_path / 'only' / 'cut'}" in out
    code, out, err = call("evaluate", "--model", tmp_path / "only", "--data", reviews)
    assert code == 0, err


@pytest.mark.slow
def test_recipes_of_both_kinds_run(
    call: Call, tmp_path: Path, teacher: Path, reviews: Path, cache: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    shared: dict[str, Any] = {"model": str(teacher), "data": {"path": str(reviews)}}
    shared["cache"] = str(cache)
    proof = {"seeds": [0], "resamples": 50}
    search = {"flow": "tickets", "training": TINY, "prune": {"rounds": 1}, "evaluation": proof}
    recover = {"training": TINY, "evaluation": {**proof, "efficiency": False},
               "export": {"onnx": False, "int8": False}}  # fmt: skip
    removal = {"flow": "remove", "layers": 2, "recover": recover}
    for name, settings in (("search", search), ("removal", removal)):
        (tmp_path / f"{name}.yaml").write_text(f"# {name}\n{yaml.safe_dump(shared | settings)}")
    monkeypatch.setattr(recipes, "folder", lambda: tmp_path)
    code, out, err = call("recipes", "run", "search", "--out", tmp_path / "a", "--json")
    assert code == 0, err
    assert json.loads(out)["flow"] == "tickets"
    code, out, err = call("recipes", "run", "removal", "--out", tmp_path / "b")
    assert code == 0, err
    assert "layers that stay" in err


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["find", "--sparsity", "60"], "a share over 0 and under 1, such as 0.6, not 60"),
        (["find", "--sparsity", "0"], "sparsity"),
        (["find", "--set", 'prune.include=["*.nothing.weight"]'], "match"),
        (["find", "--score", "magnitud"], "magnitude"),
        (["find", "--set", "prune.controls=[random]"], "did you mean 'evaluation.controls'?"),
        (["find", "--set", "score_rows=64"], "did you mean 'prune.score_rows'?"),
        (["find", "--rewind", "soon"], "or none, not 'soon'"),
        (["find", "--set", "training.steps=4", "--rewind", "4"], "can't rewind to step 4 of 4"),
        (["transfer"], "argument 'runs'"),
        (["transfer", "a"], "at least two finished searches"),
        (["transfer", "a", "b"], "run tickets find first"),
        (["remove"], "give one target"),
        (["remove", "--speedup", "2", "--layers", "1"], "give one target"),
        (["remove", "--parameters", "0.01"], "the nearest leaves"),
        (["remove", "--layers", "9"], "9 layers can't stay of 4"),
        (
            ["remove", "--layers", "1", "--what", "layers,head"],
            "unknown what 'head': did you mean 'heads'?",
        ),
    ],
)
def test_what_cannot_be_done_is_one_line(
    call: Call, tmp_path: Path, teacher: Path, reviews: Path, cache: Path, words: list[str],
    says: str,
) -> None:  # fmt: skip
    given: list[object] = ["--out", tmp_path / "out"]
    if words[0] != "transfer":
        given += ["--model", teacher, "--data", reviews, "--cache", cache]
    code, out, err = call("tickets", *words, *given)
    assert code not in (0, None)
    assert says in err
    assert "Traceback" not in out + err
    assert not (tmp_path / "out" / "record.json").exists()
