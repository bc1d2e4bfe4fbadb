"""The command as a user meets it: from a tiny teacher to a report, and every message on the way."""

from __future__ import annotations

import io
import json
import shutil
import sys
from collections.abc import Callable
from contextlib import redirect_stdout
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

import killing
import tiny
from stillhouse.cli import console, recipes
from stillhouse.cli.main import app, main
from stillhouse.core.config import DistillConfig, FinetuneConfig
from stillhouse.core.results import Record, Verdict
from stillhouse.core.settings import parse
from stillhouse.evaluation import efficiency
from stillhouse.evaluation.efficiency import peak_memory  # before the tests put another there
from stillhouse.extract.config import AuditConfig
from stillhouse.tickets.config import RemoveConfig, TicketsConfig

Call = Callable[..., tuple[int, str, str]]
QUICK = [
    "--set",
    "training.steps=4",
    "--set",
    "training.batch_size=8",
    "--set",
    "evaluation.resamples=50",
    "--seeds",
    "2",
]


@pytest.fixture(scope="module")
def small(
    tmp_path_factory: pytest.TempPathFactory, teacher: Path, reviews: Path, cache: Path
) -> Path:
    """A finished distillation made by the command, its models' memory measured."""
    out = tmp_path_factory.mktemp("runs") / "small"
    words = [
        "distill",
        "--teacher",
        teacher,
        "--data",
        reviews,
        "--student",
        "layers=2",
        "--out",
        out,
        "--cache",
        cache,
        *QUICK,
    ]
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(io.StringIO()) as said:
        patch.setattr(sys, "argv", ["stillhouse", *map(str, words)])
        patch.setattr(efficiency, "peak_memory", peak_memory)
        assert main() in (0, None)
    assert "Report:" in said.getvalue()
    return out


def test_every_command_has_help_with_an_example(call: Call) -> None:
    names = [info.callback.__name__ for info in app.registered_commands if info.callback]
    assert len(names) == 15
    for name in names:
        code, out, _ = call(name, "--help")
        assert code == 0
        assert f"stillhouse {name}" in out, name


def test_a_run_leaves_what_the_contract_says(small: Path) -> None:
    names = {path.name for path in small.iterdir()}
    best = json.loads((small / "record.json").read_text())["best"]
    kept = {"baseline"} if best == "baseline" else set()
    assert (
        names
        == {
            "config.yaml",
            "manifest.json",
            "metrics.jsonl",
            "predictions.jsonl",
            "record.json",
            "report.html",
            "student",
            "onnx",
        }
        | kept
    )
    record = json.loads((small / "record.json").read_text())
    assert record["schema"] == 2
    assert record["flow"] == "distill"
    for part in ("teacher", "student", "baseline"):
        assert {"score", "interval", "parameters", "latency_ms", "bytes"} <= set(record[part])
    assert all(record[part]["peak_memory_bytes"] > 1_000 for part in ("teacher", "student"))
    assert len(record["student"]["seeds"]) == len(record["baseline"]["seeds"]) == 2
    assert record["verdict"] in get_args(Verdict)
    assert {e["format"] for e in record["exports"]} == {"onnx", "onnx-int8"}
    assert Record.model_validate(record).model_dump(mode="json", by_alias=True) == record


def test_the_student_folder_loads_and_gives_the_recorded_score(small: Path, reviews: Path) -> None:
    model = AutoModelForSequenceClassification.from_pretrained(small / "student")
    tokens = AutoTokenizer.from_pretrained(small / "student")
    with torch.no_grad():
        scores = model(**tokens("the film was good", return_tensors="pt")).logits
    assert scores.shape == (1, 2)
    assert sorted(model.config.label2id) == tiny.SENTIMENT
    assert "pipeline(" in (small / "student" / "README.md").read_text()


def test_the_exported_model_answers_as_the_student_does(small: Path) -> None:
    import onnxruntime

    session = onnxruntime.InferenceSession(str(small / "onnx" / "model.onnx"))
    model = AutoModelForSequenceClassification.from_pretrained(small / "student").eval()
    tokens = AutoTokenizer.from_pretrained(small / "student")
    for texts in (["good"], ["the film was bad and dull", "good", "they was kind ."] * 3):
        inputs = tokens(texts, padding=True, return_tensors="pt")
        with torch.no_grad():
            expected = model(**inputs).logits.numpy()
        found = session.run(None, {k: v.numpy() for k, v in inputs.items()})[0]
        np.testing.assert_allclose(found, expected, atol=1e-4)


def test_the_same_command_finds_the_run_done_and_another_is_refused(
    call: Call, small: Path, teacher: Path, reviews: Path, cache: Path
) -> None:
    words = ["distill", "--teacher", teacher, "--data", reviews, "--out", small, "--cache", cache]
    code, _, err = call(*words, "--student", "layers=2", *QUICK)
    assert (code, "finished already" in err) == (0, True)
    code, _, err = call(*words, "--student", "layers=1", *QUICK)
    assert code == 2
    assert "holds another run" in err
    assert "student" in err


@pytest.mark.slow
def test_config_yaml_repeats_the_run(call: Call, small: Path, tmp_path: Path) -> None:
    code, out, _ = call(
        "distill", "--config", small / "config.yaml", "--out", tmp_path / "again", "--json"
    )
    assert code == 0
    first = Record.model_validate_json((small / "record.json").read_text())
    second = Record.model_validate(json.loads(out))
    assert second.student.seeds == first.student.seeds
    assert second.student.reliability == first.student.reliability
    assert second.gain == first.gain


@pytest.mark.slow
def test_labelled_answers_are_not_asked_for_again(
    call: Call, teacher: Path, reviews: Path, tmp_path: Path
) -> None:
    words = ["--teacher", teacher, "--data", reviews]
    code, out, _ = call("label", *words, "--out", tmp_path / "answers", "--json")
    assert code == 0
    assert json.loads(out)["rows"] > 50
    shards = {p: p.read_bytes() for p in (tmp_path / "answers" / "answers").rglob("shard-*.bin")}
    assert shards
    code, _, _ = call(
        "distill",
        *words,
        "--cache",
        tmp_path / "answers",
        "--out",
        tmp_path / "run",
        "--student",
        "layers=1",
        "--no-baseline",
        *QUICK,
    )
    assert code == 0
    assert all(path.read_bytes() == held for path, held in shards.items())
    assert (
        Record.model_validate_json((tmp_path / "run" / "record.json").read_text()).verdict is None
    )


def test_evaluate_compares_two_models(
    call: Call, small: Path, teacher: Path, reviews: Path
) -> None:
    code, out, _ = call(
        "evaluate", "--model", small, "--data", reviews, "--against", teacher, "--json"
    )
    found = json.loads(out)
    record = Record.model_validate_json((small / "record.json").read_text())
    assert code == 0
    assert found["against"]["accuracy"] == record.teacher.score
    assert found["accuracy"] in record.student.seeds
    low, high = found["against"]["interval"]
    assert low <= found["against"]["gain"] <= high
    assert found["against"]["gain"] == pytest.approx(
        found["accuracy"] - found["against"]["accuracy"]
    )
    assert found["against"]["caveat"] == "these two models only"
    assert found["against"]["margin"] == 0.01
    words = ["evaluate", "--model", small, "--data", reviews, "--against", teacher]
    _, said, _ = call(*words, "--margin", 100)
    same = "not comparable" if found["against"]["not_comparable"] else "no difference, these two"
    assert same in said


@pytest.mark.slow
def test_bench_export_and_report(call: Call, small: Path, teacher: Path, tmp_path: Path) -> None:
    code, out, _ = call("bench", teacher, small, "--tokens", 8, "--json")
    costs = json.loads(out)
    assert code == 0
    assert costs[str(teacher)]["parameters"] > costs[str(small)]["parameters"]
    assert costs[str(teacher)]["flops"] > 1.5 * costs[str(small)]["flops"]
    code, out, _ = call("export", small, "--int8", "--out", tmp_path / "onnx")
    assert code == 0
    assert (tmp_path / "onnx" / "model-int8.onnx").stat().st_size > 0
    code, _, _ = call("report", small, small, "--out", tmp_path / "both.html")
    assert code == 0
    assert "<svg" in (tmp_path / "both.html").read_text()


@pytest.mark.slow
def test_finetune_makes_a_teacher(
    call: Call, reviews: Path, folders: Callable, tmp_path: Path
) -> None:
    base = folders("bert", layers=2, labels=["a", "b", "c"])
    code, out, _ = call(
        "finetune",
        "--model",
        base,
        "--data",
        reviews,
        "--out",
        tmp_path / "t",
        "--set",
        "training.epochs=20",
        "--set",
        "training.lr=5e-3",
        "--set",
        "seed=4",  # of 86 rows in 60 steps not every seed learns much
        "--json",
    )
    record = Record.model_validate(json.loads(out))
    assert code == 0
    assert record.data.labels == tiny.SENTIMENT
    assert record.student.score > 0.7
    code, _, err = call(
        "distill",
        "--teacher",
        tmp_path / "t",
        "--data",
        reviews,
        "--out",
        tmp_path / "s",
        "--student",
        "layers=1",
        *QUICK,
    )
    assert code == 0, err


def test_selfcheck_passes_on_a_sound_pair_and_names_what_is_not(
    call: Call, teacher: Path, reviews: Path, tmp_path: Path
) -> None:
    words = ["selfcheck", "--data", reviews, "--student", "layers=2", "--cache", tmp_path / "c"]
    code, out, _ = call(*words, "--teacher", teacher, "--json")
    found = json.loads(out)
    assert code == 0, found
    assert len(found) == 8
    assert all(check["passed"] for check in found)
    broken = AutoModelForSequenceClassification.from_pretrained(teacher)
    with torch.no_grad():
        broken.classifier.weight.mul_(1e25)  # finite scores, whose differences are not
    broken.save_pretrained(tmp_path / "broken")
    AutoTokenizer.from_pretrained(teacher).save_pretrained(tmp_path / "broken")
    code, out, _ = call(*words, "--teacher", tmp_path / "broken", "--json")
    assert code == 1
    assert not all(check["passed"] for check in json.loads(out))
    with torch.no_grad():
        broken.classifier.weight.fill_(float("nan"))
    broken.save_pretrained(tmp_path / "broken")
    code, _, err = call(*words, "--teacher", tmp_path / "broken", "--json")
    assert (code, "its scores are not finite numbers" in err) == (2, True)


def test_recipes_are_listed_shown_and_refused_by_name(call: Call, monkeypatch) -> None:
    code, out, _ = call("recipes", "list", "--json")
    names = json.loads(out)
    assert code == 0
    assert {"sst2_teacher", "sst2_student", "mnist_hinton"} <= set(names)
    code, out, _ = call("recipes", "show", "sst2_student")
    assert "command" in out
    code, _, err = call("recipes", "show", "sst2_studnet")
    assert (code, "did you mean 'sst2_student'?" in err) == (2, True)
    monkeypatch.delenv("STILLHOUSE_DATA", raising=False)
    code, _, err = call("recipes", "run", "sst2_student", "--out", "x")
    assert (code, "STILLHOUSE_DATA" in err) == (2, True)


@pytest.mark.parametrize("path", sorted(recipes.folder().glob("*.yaml")), ids=lambda p: p.stem)
def test_recipes_are_complete_configs(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STILLHOUSE_DATA", "/data")
    monkeypatch.setattr("stillhouse.models.builtin.minilm", lambda: Path("minilm"))
    values = recipes.read(path)
    kinds = {
        "finetune": FinetuneConfig,
        "tickets": TicketsConfig,
        "remove": RemoveConfig,
        "audit": AuditConfig,
    }
    values.pop("recover", None)
    parse(kinds.get(values["flow"], DistillConfig), values)
    header = path.read_text(encoding="utf-8").split("flow:")[0]
    assert all(f"# {word}" in header for word in ("command", "hardware", "result"))


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["distil"], "Did you mean 'distill'?"),
        (["distill", "--techer", "t", "--out", "o"], "--teacher"),
        (["distill", "--teacher", "{teacher}", "--out", "o"], "give --data"),
        (["distill", "--teacher", "{teacher}", "--data", "no.csv", "--out", "o"], "no.csv"),
        (["distill", "--teacher", "nowhere/", "--data", "{reviews}", "--out", "o"], "nowhere"),
        (["distill", "--teacher", "{data}", "--data", "{reviews}", "--out", "o"], "config.json"),
        (
            [
                "distill",
                "--teacher",
                "{teacher}",
                "--data",
                "{reviews}",
                "--out",
                "o",
                "--student",
                "layers=9",
            ],
            "larger",
        ),
        (
            [
                "distill",
                "--teacher",
                "{teacher}",
                "--data",
                "{reviews}",
                "--out",
                "o",
                "--student",
                "3",
            ],
            "layers=3",
        ),
        (
            [
                "distill",
                "--teacher",
                "{teacher}",
                "--data",
                "{reviews}",
                "--out",
                "o",
                "--text-column",
                "txt",
            ],
            "it has text, label",
        ),
        (
            [
                "distill",
                "--teacher",
                "{teacher}",
                "--data",
                "{reviews}",
                "--out",
                "o",
                "--set",
                "training.lrr=1",
            ],
            "did you mean 'lr'?",
        ),
        (
            [
                "distill",
                "--teacher",
                "{teacher}",
                "--data",
                "{reviews}",
                "--out",
                "o",
                "--set",
                "objective=[{kind: soft, divergence: fowrard_kl}]",
            ],
            "'forward_kl'",
        ),
        (["report", "{data}"], "not a finished run"),
        (["export", "{teacher}", "--to", "onxn", "--out", "o"], "'onnx'"),
    ],
)
def test_a_wrong_call_is_one_line_and_leaves_nothing(
    call: Call,
    words: list[str],
    says: str,
    teacher: Path,
    reviews: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("STILLHOUSE_CACHE", str(tmp_path / "cache"))
    places = {"teacher": teacher, "reviews": reviews, "data": reviews.parent}
    code, out, err = call(*(word.format(**places) if word[0] == "{" else word for word in words))
    assert code == 2
    assert out == ""
    assert err.count("\n") == 1, err
    assert says in err
    assert not (tmp_path / "o").exists()


def test_tables_fit_a_terminal_of_80_columns(
    small: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    record = Record.model_validate_json((small / "record.json").read_text())
    big = {"parameters": 109_483_778, "bytes": 437_935_112, "latency_ms": 123.456}
    console.record_table(
        record.model_copy(update={"teacher": record.teacher.model_copy(update=big)})
    )
    console.efficiency_table({"a-teacher": record.teacher, "student": record.student})
    text = capsys.readouterr().out
    assert "…" not in text
    heads = [line for line in text.splitlines() if "rows/s" in line]
    assert len(heads) == 2
    assert "109.5M" in text
    assert "437.9 MB" in text


def test_ctrl_c_is_one_line(
    call: Call, teacher: Path, reviews: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("stillhouse.runs.run_distill", stop)
    code, _, err = call("distill", "--teacher", teacher, "--data", reviews, "--out", tmp_path / "o")
    assert (code, err) == (
        130,
        "stillhouse: stopped; the same command goes on from what was kept\n",
    )


def test_a_folder_of_exports_and_a_torn_record_are_one_line(
    call: Call, small: Path, reviews: Path, tmp_path: Path
) -> None:
    words = ["distill", "--teacher", small / "onnx", "--data", reviews, "--out", tmp_path / "out"]
    code, _, err = call(*words)
    assert (code, "exported ONNX model" in err) == (2, True)
    torn = shutil.copytree(small, tmp_path / "torn")
    (torn / "record.json").write_text((small / "record.json").read_text()[:500])
    code, _, err = call("report", torn, "--out", tmp_path / "r.html")
    assert (code, err.count("\n")) == (2, 1)


LIMITED = """
import resource, signal, sys
sys.dont_write_bytecode = True
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv.pop(1)),) * 2)
from stillhouse.cli.main import main
sys.argv[0] = "stillhouse"
sys.exit(main())
"""


@pytest.mark.slow
@pytest.mark.parametrize("limit", [600, 3_000, 20_000, 60_000])
def test_a_disk_that_fills_up_is_one_line_and_the_next_try_finishes(
    limit: int, teacher: Path, reviews: Path, tmp_path: Path
) -> None:
    words = [
        "distill",
        "--teacher",
        teacher,
        "--data",
        reviews,
        "--student",
        "layers=1",
        "--out",
        tmp_path / "run",
        "--cache",
        tmp_path / "cache",
        *QUICK,
    ]
    full = killing.run(LIMITED, str(limit), *map(str, words))
    assert full.returncode == 1
    assert full.stderr.strip().splitlines()[-1].startswith("stillhouse: file too large: ")
    assert "Traceback" not in full.stderr
    assert not (tmp_path / "run" / "report.html").exists()
    again = killing.run(killing.COMMAND, *map(str, words))
    assert again.returncode == 0, again.stderr
    assert not list(tmp_path.rglob("*.part"))
