"""What a command loads before it needs it: nothing. Calls are made in a process of their own, as
this one has loaded everything."""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest

MODELS = {
    "torch", "transformers", "tokenizers", "accelerate", "datasets", "pyarrow", "pandas", "scipy",
    "sklearn", "sacrebleu", "huggingface_hub", "onnx", "onnxruntime", "safetensors", "jaxtyping",
}  # fmt: skip
HEAVY = MODELS | {
    "numpy", "matplotlib", "jinja2", "PIL", "sqlalchemy", "alembic", "cryptography", "fastapi",
    "uvicorn", "prometheus_client", "httpx",
}  # fmt: skip
ENOUGH_S = 1.2  # of processor time, for what takes 0.15 to 0.25 and took 2.6 with torch
WRONG = "--set=training.lr=-1"
RUN = ["--data=d", "--out=o"]


def calls(*words: list[str], **more: str) -> list[tuple[str, int, set[str], str]]:
    """Each call, its exit code, what it loaded first, and what it said."""
    script = Path(__file__).with_name("loading.py")
    done = subprocess.run(
        [sys.executable, str(script)], input=json.dumps(words), capture_output=True, text=True,
        check=True, env={**os.environ, "COLUMNS": "100", **more},
    )  # fmt: skip
    return [(" ".join(w), code, set(new), said) for w, code, new, said in json.loads(done.stdout)]


def test_no_help_loads_a_heavy_module() -> None:
    found = calls()
    known = {words.removesuffix("--help").strip() for words, *_ in found}
    assert {"", "distill", "audit", "clients create", "guard learn", "recipes run"} <= known
    assert {words: code for words, code, _, _ in found if code} == {}
    assert {words: new & HEAVY for words, _, new, _ in found if new & HEAVY} == {}


def test_commands_about_clients_keys_and_recipes_load_no_models(tmp_path: Path) -> None:
    at = ["--registry", f"sqlite:///{tmp_path / 'registry.db'}"]
    found = calls(
        ["--version"],
        ["recipes", "list"],
        ["recipes", "show", "sst2_teacher"],
        ["guard", "keys", str(tmp_path / "owner.key"), *at],
        ["clients", "create", "ann", *at],
        ["clients", "list", *at],
        ["clients", "unflag", "ann", *at],
        ["clients", "revoke", "ann", *at],
        ["clients", "forget", "ann", "--yes", *at],
    )
    assert {words: said for words, code, _, said in found if code} == {}
    assert {words: new & MODELS for words, _, new, _ in found if new & MODELS} == {}
    before_the_registry = set().union(*(new for _, _, new, _ in found[:3]))
    assert before_the_registry & HEAVY == set()


def test_a_registry_that_is_up_to_date_loads_no_migrations(tmp_path: Path) -> None:
    at = ["--registry", f"sqlite:///{tmp_path / 'registry.db'}"]
    ((_, code, new, said),) = calls(["clients", "create", "ann", *at])
    assert code == 0, said
    assert "alembic" in new
    ((_, code, new, said),) = calls(["clients", "list", *at])
    assert code == 0, said
    assert "ann" in said
    assert "sqlalchemy" in new
    assert new & {"alembic", "fastapi", "uvicorn", "prometheus_client"} == set()


def test_wrong_settings_are_refused_before_models_are_loaded(tmp_path: Path) -> None:
    found = calls(
        ["distill", *RUN],
        ["distill", "--teacher=t", *RUN, WRONG],
        ["finetune", "--model=m", *RUN, WRONG],
        ["label", "--teacher=t", *RUN, WRONG],
        ["selfcheck", "--teacher=t", "--data=d", WRONG],
        ["audit", "--victim=v", "--thief=t", *RUN, "--set=limit=0"],
        ["tickets", "find", "--model=m", *RUN, WRONG],
        ["tickets", "remove", "--model=m", *RUN],
        ["tickets", "transfer", "one", "--out=o"],
        ["new", "--task=seq2seq", "--out=o"],
        ["export", "m", "--to=tflite", "--out=o"],
        ["serve", "m", "--port=-1"],
        ["verify", "--suspect=s", "--set=alpha=2"],
        ["guard", "learn", "--model=m", *RUN, "--set=rows=0"],
        ["recipes", "run", "sst2_teacher", "--out=o", WRONG],
        ["recipes", "run", "sst2_audit", "--out=o", "--set=limit=0"],
        STILLHOUSE_DATA=str(tmp_path),
    )
    assert {words: (code, said) for words, code, _, said in found if code != 2} == {}
    assert {words: new & HEAVY for words, _, new, _ in found if new & HEAVY} == {}


def test_reading_what_was_found_loads_no_models(tmp_path: Path) -> None:
    """A verdict is reckoned anew with scipy's distributions, and a page is drawn with matplotlib;
    neither needs a model."""
    page, verdict = calls(["report", str(tmp_path)], ["guard", "check-verdict", str(tmp_path)])
    assert (page[1], verdict[1]) == (2, 2), (page[3], verdict[3])
    assert page[2] & MODELS == set()
    assert "matplotlib" in page[2]
    assert "scipy" in verdict[2]
    assert verdict[2] & (MODELS - {"scipy"}) == set()


@pytest.mark.parametrize("words", [["--help"], ["distill", "--help"], ["recipes", "list"]])
def test_starting_takes_little_time(words: list[str]) -> None:
    def seconds() -> float:
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        command = [sys.executable, "-m", "stillhouse", *words]
        subprocess.run(command, capture_output=True, check=True)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime

    assert min(seconds() for _ in range(2)) < ENOUGH_S
