"""What a user meets before a run: wrong calls, other people's files, a full disk. One line each."""

from __future__ import annotations

import copy
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import typer.main
from pydantic import BaseModel

import tiny
from limited import file_size
from stillhouse.cli.main import app
from stillhouse.cli.options import of_data
from stillhouse.core.config import DistillConfig, FinetuneConfig
from stillhouse.core.errors import UsageError
from stillhouse.core.sections import DataConfig
from stillhouse.core.settings import override, parse
from stillhouse.data.sources import load
from stillhouse.extract.config import AuditConfig
from stillhouse.guard.settings import LearnConfig, ServeConfig, VerifyConfig
from stillhouse.tickets.config import RemoveConfig, TicketsConfig

Call = Callable[..., tuple[int, str, str]]
DATA = {"path": "reviews.csv"}
PLAIN: dict[str, tuple[type[BaseModel], dict[str, Any]]] = {
    "distill": (DistillConfig, {"teacher": "t", "data": DATA}),
    "label": (DistillConfig, {"teacher": "t", "data": DATA}),
    "selfcheck": (DistillConfig, {"teacher": "t", "data": DATA}),
    "finetune": (FinetuneConfig, {"model": "m", "data": DATA}),
    "evaluate": (DistillConfig, {"teacher": "t", "data": DATA}),
    "recipes run": (DistillConfig, {"teacher": "t", "data": DATA}),
    "tickets find": (TicketsConfig, {"model": "m", "data": DATA}),
    "tickets remove": (RemoveConfig, {"model": "m", "data": DATA, "speedup": 2.0}),
    "audit": (AuditConfig, {"victim": "v", "data": DATA, "thieves": [{"model": "m"}]}),
    "serve": (ServeConfig, {"model": "m"}),
    "verify": (VerifyConfig, {"suspects": ["s"]}),
    "guard learn": (LearnConfig, {"model": "m", "data": DATA}),
}


def _commands(group: Any, above: tuple[str, ...] = ()) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, command in group.commands.items():
        inside = (*above, name)
        deeper = hasattr(command, "commands")
        found |= _commands(command, inside) if deeper else {" ".join(inside): command}
    return found


def _example(command: Any) -> str | None:
    """The example of its --set."""
    for option in command.params:
        if "--set" in option.opts:
            return option.help.removeprefix("any setting, e.g. ").split()[0]
    return None


def test_the_example_of_every_set_is_a_setting_of_its_command() -> None:
    commands = _commands(typer.main.get_command(app))
    examples = {name: _example(command) for name, command in commands.items()}
    assert {name for name, example in examples.items() if example} == set(PLAIN)
    for name, (kind, values) in PLAIN.items():
        example = examples[name]
        assert example is not None
        changed = override(copy.deepcopy(values), [example])
        if name == "tickets remove":
            recovery = changed.pop("recover")
            parse(DistillConfig, {**recovery, "teacher": "t", "data": DATA})
        assert parse(kind, changed) != parse(kind, values) or name == "tickets remove", name


@pytest.mark.parametrize(
    ("command", "setting", "says"),
    [
        ("audit", "training.lr=3e-5", "did you mean 'thieves.0.training.lr'?"),
        ("audit", "epochs=2", "did you mean 'thieves.0.training.epochs'?"),
        ("tickets remove", "training.lr=3e-5", "did you mean 'recover.training.lr'?"),
        ("tickets remove", "precision=bf16", "'recover.training.precision' or 'recover.label.pre"),
        ("distill", "lr=3e-5", "did you mean 'training.lr'?"),
        ("distill", "precision=bf16", "did you mean 'training.precision' or 'label.precision'?"),
        ("distill", "divergence=jsd", "did you mean 'objective.0.divergence'?"),
        ("tickets find", "prune.lr=1", "did you mean 'training.lr'?"),
        ("distill", "training.learning_rate=1", "unknown setting 'learning_rate' (known:"),
        ("distill", "export=false", "setting export: is a section: give its settings"),
        ("distill", "training.lr=inf", "training.lr: Input should be a finite number"),
        ("distill", "training.epochs=inf", "training.epochs: Input should be a finite number"),
        ("distill", "training.betas=[.nan,0.9]", "training.betas.0: Input should be a finite"),
        ("distill", "training.betas=[2,3]", "training.betas.0: Input should be less than 1"),
        ("distill", "objective.0.weight=2", "objective is not given: set the whole of it first"),
        ("distill", "a..b=2", "--set takes name=value"),
    ],
)
def test_a_wrong_setting_says_where_the_right_one_is(command: str, setting: str, says: str) -> None:
    kind, values = PLAIN[command]
    with pytest.raises(UsageError) as caught:
        parse(kind, override(copy.deepcopy(values), [setting]))
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


def test_one_setting_given_twice_is_refused() -> None:
    values = override({}, ["training.lr=1", "training.lr=1"])
    assert values == {"training": {"lr": 1}}
    with pytest.raises(UsageError, match=r"training\.lr is given twice: 1 and 2"):
        override({}, ["training.lr=1", "training.lr=2"])


CONFIGS: dict[str, tuple[str | bytes, str]] = {
    "a list": ("- a\n", "holds no settings, but a list"),
    "a word": ("teacher\n", "holds no settings, but a str"),
    "empty": ("", "holds no settings, it is empty"),
    "tabs": ("a:\n\tb: 1\n", r"line 2 is not YAML: found character '\t'"),
    "twice": ("teacher: a\nseed: 1\nteacher: b\n", "line 3 has 'teacher' again"),
    "twice below": ("training: {lr: 1,\n  lr: 2}\n", "line 2 has 'lr' again"),
    "a number's name": ("1: 2\n", "1 is no name of a setting"),
    "another flow": ("flow: finetune\n", "is of a finetune run, not distill"),
    "Latin-1": (b"teacher: caf\xe9\n", "is not UTF-8"),
    "not a number": ("training: {lr: .nan}\n", "training.lr: Input should be a finite number"),
    "an empty section": ("training:\n", "setting training: is a section"),
}


@pytest.mark.parametrize("config", list(CONFIGS))
def test_a_wrong_config_is_one_line(config: str, call: Call, tmp_path: Path) -> None:
    content, says = CONFIGS[config]
    path = tmp_path / "own.yaml"
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    words = ["--teacher", "t", "--data", "d.csv", "--out", tmp_path / "run"]
    if config in ("an empty section", "a number's name"):
        words += ["--seeds", 1]
    code, _, err = call("distill", "--config", path, *words)
    assert (code, err.count("\n")) == (2, 1)
    assert says in err
    assert not (tmp_path / "run").exists()


def test_a_folder_is_no_config_and_a_runs_one_is_named(call: Call, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    code, _, err = call("distill", "--config", tmp_path / "run", "--out", tmp_path / "x")
    assert (code, "Is a directory" in err) == (2, True)
    (tmp_path / "run" / "config.yaml").touch()
    code, _, err = call("distill", "--config", tmp_path / "run", "--out", tmp_path / "x")
    assert f"give {tmp_path / 'run' / 'config.yaml'}" in err


def test_a_config_may_name_data_and_student_in_one_word(tmp_path: Path) -> None:
    from stillhouse.cli.options import settings

    path = tmp_path / "own.yaml"
    path.write_text("teacher: t\ndata: reviews.csv\nstudent: small\ntraining:\n")
    given = {"data.text": "review", "data.path": None}
    found = settings(path, "distill", given, ["training.lr=1"], DistillConfig)
    checked = parse(DistillConfig, found)
    assert (checked.data.path, checked.data.text) == ("reviews.csv", "review")
    assert (checked.student.model, checked.training.lr) == ("small", 1)
    assert parse(DistillConfig, override({"teacher": "t"}, ["data=a.csv"])).data.path == "a.csv"


def test_home_is_the_users_wherever_a_path_is_given(
    call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    assert parse(DataConfig, {"path": "~/a.csv"}).path == str(tmp_path / "a.csv")
    code, _, err = call("evaluate", "--model=~/none", "--data=~/a.csv")
    assert (code, f"there is no model folder {tmp_path / 'none'}" in err) == (2, True)
    code, _, err = call("report", "x", "--out=~/there/page.html")
    assert (code, (tmp_path / "~").exists()) == (2, False)


def test_what_is_quoted_moves_no_cursor(call: Call, tmp_path: Path) -> None:
    code, _, err = call("report", tmp_path / "a\x1b[2Jb\x07")
    assert code == 2
    assert err.rstrip("\n").isprintable()


@pytest.mark.parametrize("words", [[], ["tickets"]])
def test_a_command_alone_shows_its_help_in_lines(words: list[str], call: Call) -> None:
    code, _, err = call(*words)
    assert code == 2
    assert err.startswith("Usage: ")
    assert err.count("\n") > 5


def _command(*words: str, **how: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "stillhouse", *words],
        text=True,
        stderr=subprocess.PIPE,
        check=False,
        **how,
    )


def test_a_reader_that_left_is_no_trouble() -> None:
    """As of any command before `head`: it ends, without a word."""
    read, write = os.pipe()
    os.close(read)
    done = _command("recipes", "list", stdout=write)
    os.close(write)
    assert (done.returncode, done.stderr) == (1, "")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="a device of Linux")
def test_output_to_a_full_disk_is_one_line() -> None:
    with Path("/dev/full").open("w") as full:
        done = _command("recipes", "list", stdout=full)
    assert done.returncode == 1
    assert re.fullmatch(r"stillhouse: no space left on device \(free some space.*\)\n", done.stderr)


def test_a_folder_that_is_gone_is_one_line(tmp_path: Path) -> None:
    gone = tmp_path / "gone"
    gone.mkdir()
    script = 'rmdir "$0"; exec "$@"'
    source = str(Path(__file__).parents[2] / "src")
    done = subprocess.run(
        ["sh", "-c", script, str(gone), sys.executable, "-m", "stillhouse", "report", "x"],
        cwd=gone, text=True, capture_output=True, check=False,
        env={**os.environ, "PYTHONPATH": source},
    )  # fmt: skip
    assert done.returncode in (1, 2)
    assert done.stderr.startswith("stillhouse: ")
    assert done.stderr.count("\n") == 1


def test_a_run_on_a_full_disk_is_one_line_and_goes_on_when_there_is_room(
    call: Call, teacher: Path, reviews: Path, tmp_path: Path
) -> None:
    quick = ["training.steps=3", "export.onnx=false", "evaluation.resamples=20",
             "evaluation.efficiency=false"]  # fmt: skip
    sets = [word for each in quick for word in ("--set", each)]

    def words(out: str) -> list[object]:
        return ["distill", "--teacher", teacher, "--data", reviews, "--student", "layers=1",
                "--seeds", 1, "--no-baseline", "--out", tmp_path / out,
                "--cache", tmp_path / "cache", *sets]  # fmt: skip

    with file_size(12_000):
        code, _, err = call(*words("full"))
    last = err.splitlines()[-1]
    assert code == 1
    assert re.match(r"stillhouse: file too large: \S+ is not written", last)
    assert "Traceback" not in err
    assert not [path for path in tmp_path.rglob("*") if ".part" in path.name]
    assert not (tmp_path / "full" / "student").exists()
    assert call(*words("full"))[0] == call(*words("whole"))[0] == 0
    one, other = (tmp_path / out / "student" / "model.safetensors" for out in ("full", "whole"))
    assert one.read_bytes() == other.read_bytes()


def test_evaluate_takes_settings_of_its_data(call: Call, teacher: Path, reviews: Path) -> None:
    words = ["evaluate", "--model", teacher, "--data", reviews]
    code, _, err = call(*words, "--set", "data.dev_share=2")
    assert (code, "data.dev_share" in err or "dev_share: Input should be less" in err) == (2, True)
    code, _, err = call(*words, "--set", "training.lr=2")
    assert (code, "only settings of data" in err) == (2, True)
    code, _, err = call(*words, "--precision", "fp8")
    assert (code, err.count("\n")) == (2, 1)


@pytest.mark.parametrize("command", ["distill", "label"])
def test_a_teacher_of_another_kind_leaves_nothing(
    command: str, call: Call, teacher: Path, reviews: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "teacher"
    shutil.copytree(teacher, folder)
    config = json.loads((folder / "config.json").read_text())
    config["architectures"] = ["BertForTokenClassification"]
    (folder / "config.json").write_text(json.dumps(config))
    code, _, err = call(command, "--teacher", folder, "--data", reviews, "--out", tmp_path / "out")
    assert code == 2
    assert "token classification is not supported yet" in err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["nan", "NULL", "#n/a"])
def test_what_a_note_advises_of_a_label_that_is_none_works(tmp_path: Path, name: str) -> None:
    rows = [(text, name if i % 3 else label) for i, (text, label) in enumerate(tiny.sentences(60))]
    data = {"path": str(tiny.write_csv(tmp_path / "a.csv", ["text", "label"], rows))}
    notes = load(parse(DataConfig, data), tmp_path / "store").notes
    (advice,) = [note.partition("--set ")[2] for note in notes if "name of a class" in note]
    changed = of_data(data, shlex.split(advice))
    found = load(parse(DataConfig, changed), tmp_path / "store")
    assert name not in {*found.labelled.labels, *found.reported.labels}
    assert len(found.unlabelled) > 10
