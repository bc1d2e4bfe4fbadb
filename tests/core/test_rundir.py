"""A run's folder: atomic files, and who a folder belongs to."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from stillhouse.core.errors import RunError, UsageError
from stillhouse.core.manifest import manifest
from stillhouse.core.rundir import atomic, claim, write_json


def test_atomic_keeps_the_old_file_when_the_block_fails(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    write_json(path, {"a": 1})
    with pytest.raises(ValueError, match="midway"), atomic(path) as temporary:  # noqa: PT012
        temporary.write_text("half")
        raise ValueError("midway")
    assert json.loads(path.read_text()) == {"a": 1}
    assert [p.name for p in tmp_path.iterdir()] == ["a.json"]


def test_a_write_that_fails_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "b").touch()
    with pytest.raises(RunError, match="is not written") as caught:
        write_json(tmp_path / "a", {})  # a folder with files in it can't be replaced
    assert "\n" not in str(caught.value)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a"]


def test_claim_finds_its_own_run_again(tmp_path: Path) -> None:
    claim(tmp_path / "run", {"seed": 1, "sizes": (1, 2)})
    claim(tmp_path / "run", {"seed": 1, "sizes": (1, 2)})


def test_claim_refuses_another_run_and_other_files(tmp_path: Path) -> None:
    claim(tmp_path / "run", {"seed": 1})
    with pytest.raises(UsageError, match=r"another run .its seed differ"):
        claim(tmp_path / "run", {"seed": 2})
    claim(tmp_path / "deep", {"evaluation": {"seeds": [0], "metric": None}, "task": "auto"})
    with pytest.raises(UsageError, match=r"its evaluation\.metric, evaluation\.seeds differ"):
        claim(tmp_path / "deep", {"evaluation": {"seeds": [0, 1], "metric": "f1"}, "task": "auto"})
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").touch()
    with pytest.raises(UsageError, match="is not a run"):
        claim(tmp_path / "mine", {"seed": 1})
    with pytest.raises(UsageError, match="is not a run"):
        claim(tmp_path / "mine" / "thesis.tex", {"seed": 1})


def test_claim_takes_a_folder_that_a_kill_left_half_claimed(tmp_path: Path) -> None:
    (tmp_path / ".config.yaml.abc.part").touch()
    claim(tmp_path, {"seed": 1})
    assert (tmp_path / "config.yaml").exists()


def test_the_manifest_holds_versions_and_facts() -> None:
    found = manifest(seeds=[1])
    assert found["seeds"] == [1]
    assert "torch" in found["versions"]  # pyright: ignore
    json.dumps(found)


def test_claim_refuses_content_that_changed(tmp_path: Path) -> None:
    claim(tmp_path / "run", {"seed": 1}, {"data": "a"})
    write_json(tmp_path / "run" / "manifest.json", manifest(content={"data": "a"}))
    claim(tmp_path / "run", {"seed": 1}, {"data": "a"})
    with pytest.raises(UsageError, match="the data changed since"):
        claim(tmp_path / "run", {"seed": 1}, {"data": "b"})
