"""A verdict's folder: any change of any file is found, what its owner signs anew as well; and
whatever is in it, a check ends in lines, not in an error."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from authority import authority, needed
from trials import Case, stamped

from stillhouse.core.errors import UsageError
from stillhouse.core.progress import Silent
from stillhouse.core.verdict_results import VerdictRecord
from stillhouse.guard import checking
from stillhouse.guard import heads as log
from stillhouse.guard import stamps as stamping
from stillhouse.guard.checking import check, limits
from stillhouse.guard.folder import FILES, LIST, SIGNATURE, sign_files
from stillhouse.guard.keys import Keys
from stillhouse.guard.snapshot import written
from stillhouse.guard.verify import run_verify

pytestmark = needed
JSONS = [name for name in (*FILES, LIST) if name.endswith(".json")]
CONTENT = ["record.json", "snapshot.json", "heads.json", "answers.json"]


@pytest.fixture(scope="module")
def tried(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Case]:
    """A stamped case with a verdict in folder/verdict."""
    with stamped(tmp_path_factory.mktemp("case")) as found:
        log.bind(found.registry, 1, published="a newspaper")
        with found.thief() as suspect:
            config = found.config(suspect)
            run_verify(config, found.registry, found.keys, found.folder / "verdict",
                       progress=Silent())  # fmt: skip
        yield found


@pytest.fixture
def folder(tried: Case, tmp_path: Path) -> Path:
    """A copy of the verdict that a test may change."""
    return Path(shutil.copytree(tried.folder / "verdict", tmp_path / "verdict"))


def failed(folder: Path, **known: Any) -> list[str]:
    return [name for name, good in check(folder, **known) if not good]


def signed_anew(folder: Path, keys: Keys) -> None:
    """As an owner does who changed a file."""
    body = (folder / "record.json").read_bytes()
    (folder / "record.sig").write_text(keys.sign(body) + "\n")
    sign_files(folder, keys)


def test_a_verdict_holds_together(folder: Path, tried: Case) -> None:
    assert failed(folder, public_key=tried.keys.public) == []
    record = VerdictRecord.open(folder, "verification")
    assert record.suspects[0].verdict == "copy"
    assert record.suspects[0].asked is not None
    assert {path.name for path in folder.iterdir()} == {*FILES, LIST, SIGNATURE}
    assert failed(folder, public_key="00" * 32) == ["the public key is the known one"]


@pytest.mark.parametrize("name", [*FILES, LIST, SIGNATURE])
def test_a_file_that_is_changed_or_missing_is_found(name: str, folder: Path) -> None:
    data = (folder / name).read_bytes()
    for changed in (data + b"\n", data[:-2], b"", b"\xff\xfe", b"[" * 100_000, None):
        if changed is None:
            (folder / name).unlink()
        else:
            (folder / name).write_bytes(changed)
        if changed == data + b"\n" and name == SIGNATURE:
            continue  # white space around a signature is none of it
        if changed is None and name == "record.json":
            with pytest.raises(UsageError, match="no finished verification"):
                failed(folder)
        else:
            assert failed(folder), changed


def test_a_file_that_nobody_signed_is_found(folder: Path) -> None:
    (folder / "more.txt").write_text("not guilty")
    assert failed(folder) == ["there is no file that the list doesn't name (more.txt)"]


def places(value: Any, most: int, at: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Where in a JSON value something stands; of lists the first few entries."""
    if isinstance(value, dict):
        for name in value:
            yield from places(value[name], most, (*at, name))
    elif isinstance(value, list):
        yield from (place for i, each in enumerate(value[:most])
                    for place in places(each, most, (*at, i)))  # fmt: skip
    if at:
        yield at


def other(value: Any) -> Any:
    """Another value of the same kind."""
    if isinstance(value, bool):
        return not value
    if isinstance(value, int | float):
        return value + 1
    if isinstance(value, str):
        digits = "0123456789abcdef"
        if value and not set(value) - set(digits):
            return digits[(digits.index(value[0]) + 1) % 16] + value[1:]
        return value + "!"
    if isinstance(value, list):
        return value[1:] if value else ["x"]
    return {name: value[name] for name in list(value)[1:]} if value else "x"


def put(held: Any, place: tuple[Any, ...], value: Any) -> None:
    for step in place[:-1]:
        held = held[step]
    held[place[-1]] = value


def changes(file: Path, most: int) -> Iterator[Any]:
    """Changes one field of a JSON file after another: which."""
    whole = file.read_text()
    for place in places(json.loads(whole), most):
        held = json.loads(whole)
        value = held
        for step in place:
            value = value[step]
        put(held, place, other(value))
        file.write_text(written(held))
        yield place


@pytest.mark.parametrize("name", JSONS)
def test_any_field_that_is_changed_is_found(name: str, folder: Path) -> None:
    found = [(place, failed(folder)) for place in changes(folder / name, 2)]
    assert found
    assert [place for place, wrong in found if not wrong] == []


@pytest.mark.slow
@pytest.mark.parametrize("name", CONTENT)
def test_any_field_that_its_owner_signs_anew_is_found(name: str, folder: Path, tried: Case) -> None:
    """By what else is in the folder: digests, the key, proofs, stamps, and the reckoning."""
    for place in changes(folder / name, 1):
        signed_anew(folder, tried.keys)
        assert failed(folder), place


def test_another_page_is_found_though_its_owner_signs_it(folder: Path, tried: Case) -> None:
    page = (folder / "report.html").read_text()
    record = VerdictRecord.open(folder, "verification")
    assert record.sentence[:20] in page
    (folder / "report.html").write_text(page.replace("is a copy", "is surely a copy"))
    signed_anew(folder, tried.keys)
    assert failed(folder) == ["the page says what the record says"]


@pytest.mark.parametrize(
    ("old", "new"), [("alpha: 0.001", "alpha: 0.5"), ("released: null", "released: '2020-01-01'"),
                     ("alpha: 0.001", "alpha: !!python/object/apply:os.mkdir [PWNED]"),
                     ("alpha: 0.001", "alpha: [1"), ("flow: verify", "flow: audit")],
)  # fmt: skip
def test_other_settings_are_found_though_their_owner_signs_them(
    old: str, new: str, folder: Path, tried: Case, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No YAML runs anything."""
    monkeypatch.chdir(folder.parent)
    text = (folder / "config.yaml").read_text()
    assert old in text
    (folder / "config.yaml").write_text(text.replace(old, new))
    signed_anew(folder, tried.keys)
    assert failed(folder)
    assert not (folder.parent / "PWNED").exists()


def to(value: Any, *at: Any) -> Any:
    """A change: what stands there becomes `value`."""

    def change(held: Any) -> Any:
        if not at:
            return value
        put(held, at, value)
        return held

    return change


def without(*at: Any) -> Any:
    def change(held: Any) -> Any:
        inside = held
        for step in at[:-1]:
            inside = inside[step]
        del inside[at[-1]]
        return held

    return change


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("snapshot", to({}, "kept", 0, "truth")),
        ("snapshot", to({"label": "nothing"}, "kept", 0, "truth")),
        ("snapshot", to({}, "kept", 0, "served")),
        ("snapshot", to(None, "kept", 0, "text")),
        ("snapshot", to(float("nan"), "kept", 0, "rate")),
        ("snapshot", to(0, "kept", 0, "rate")),
        ("snapshot", to(-1e308, "kept", 0, "rate")),
        ("snapshot", to(1e300, "kept", 0, "time")),
        ("snapshot", to(10**30, "kept", 0, "controls")),
        ("snapshot", to("no hex", "kept", 0, "query")),
        ("snapshot", to("nobody", "kept", 0, "client")),
        ("snapshot", to(1, "kept", 0, "more")),
        ("snapshot", to([], "kept")),
        ("snapshot", to(5, "kept")),
        ("snapshot", to(["a"], "choices")),
        ("snapshot", to([], "choices")),
        ("snapshot", to([None], "proofs")),
        ("snapshot", to(10**30, "proofs", 0, "place")),
        ("snapshot", to("zz", "proofs", 0, "salt")),
        ("snapshot", without("clients")),
        ("snapshot", to([])),
        ("answers", to([])),
        ("answers", to("x")),
        ("answers", to(["x"])),
        ("answers", without(0, "said", "changed")),
        ("answers", without(0, "said", "changed", 0)),
        ("answers", to(1e300, 0, "first")),
        ("heads", to({})),
        ("heads", to(["00"], -1, "stamps")),
        ("heads", to([], -1, "stamps")),
        ("heads", to([], 0, "published")),
        ("heads", without(0)),
        ("record", to("zz", "marking_key")),
        ("record", to("", "marking_key")),
        ("record", to("", "public_key")),
        ("record", to(1e300, "committed")),
        ("record", to(float("inf"), "alpha")),
        ("record", to([], "suspects")),
        ("record", to([], "suspects", 0, "trials")),
        ("record", without("head")),
        ("record", to([])),
        ("manifest", to(float("nan"))),
    ],
)  # fmt: skip
def test_whatever_is_in_it_a_check_ends_in_lines(
    name: str, change: Any, folder: Path, tried: Case
) -> None:
    path = folder / f"{name}.json"
    path.write_text(written(change(json.loads(path.read_text()))))
    signed_anew(folder, tried.keys)
    lines = failed(folder)
    assert lines
    assert all("\n" not in line for line in lines)


def test_a_signature_of_another_is_told_only_with_a_known_key(folder: Path, tried: Case) -> None:
    """Whoever signs all anew with a key of its own passes, and it is said what that shows."""
    other_keys = Keys(bytes(32))
    held = json.loads((folder / "record.json").read_text())
    held["public_key"] = other_keys.public
    (folder / "record.json").write_text(written(held))
    from stillhouse.report import render

    render([folder], folder / "report.html")
    signed_anew(folder, other_keys)
    assert failed(folder, public_key=tried.keys.public) == ["the public key is the known one"]
    said = limits(folder, public_key=None)
    assert "not whose it is" in said[0]
    assert not any("not whose it is" in each for each in limits(folder, public_key="00"))


# what is known from elsewhere


def test_a_known_head_is_one_of_the_chain(folder: Path, tried: Case, tmp_path: Path) -> None:
    head = log.sealed(tried.registry)[0]
    (tmp_path / "head.json").write_bytes(head.line)
    for given in (head.head.hash, head.head.hash.upper(), str(tmp_path / "head.json")):
        assert failed(folder, head=given) == []
    assert failed(folder, head="00" * 32) == ["the known head is one of the log heads"]
    for wrong in ("x", str(tmp_path), str(folder / "record.json")):
        with pytest.raises(UsageError, match="is no head"):
            check(folder, head=wrong)


def test_a_stamp_had_from_elsewhere(
    folder: Path, tried: Case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    head = log.sealed(tried.registry)[0].head
    (tmp_path / "s.tsr").write_bytes(tried.tsa.stamp(stamping.request(head)))
    assert failed(folder, stamp=tmp_path / "s.tsr") == []
    (tmp_path / "no.tsr").write_bytes(b"no stamp")
    assert "no.tsr is a time stamp" in failed(folder, stamp=tmp_path / "no.tsr")[0]
    with pytest.raises(UsageError, match="can't read"):
        check(folder, stamp=tmp_path / "nowhere.tsr")
    mine = authority(tmp_path / "mine")
    (tmp_path / "m.tsr").write_bytes(mine.stamp(stamping.request(head)))
    (line,) = failed(folder, stamp=tmp_path / "m.tsr")
    assert "whose authority is trusted" in line
    assert failed(folder, stamp=tmp_path / "m.tsr", authorities=[mine.root]) == []


def test_a_record_that_trusts_an_unknown_authority_is_found(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the judge's public roots have no such authority, the stamp is none that binds."""
    others = tuple(authority(tmp_path / "o").roots)
    monkeypatch.setattr(stamping, "public_roots", lambda: others)
    assert failed(folder) == ["the time stamps are what the record says"]


def test_a_judge_may_trust_an_authority_that_is_not_public(
    tried: Case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    others = tuple(authority(tmp_path / "o").roots)
    monkeypatch.setattr(stamping, "public_roots", lambda: others)
    with tried.thief() as suspect:
        record = run_verify(tried.config(suspect), tried.registry, tried.keys, tmp_path / "v",
                            progress=Silent())  # fmt: skip
    assert record.suspects[0].verdict == "consistent with a copy"
    assert failed(tmp_path / "v") == []
    said = limits(tmp_path / "v", public_key="", authorities=[tried.tsa.root])
    assert "by the authorities that you named" in said[0]
    assert not any("that you named" in each for each in limits(tmp_path / "v", public_key=""))


def test_limits_name_what_rests_on_the_owner(folder: Path) -> None:
    said = limits(folder, public_key="00" * 32)
    assert any(each.startswith("What the models answered: The owner asked") for each in said)
    assert not any(each.startswith("The secret key") for each in said)


def test_an_empty_folder_is_no_verdict(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no finished verification"):
        check(tmp_path)


def test_a_check_reads_no_yaml_but_safely() -> None:
    assert checking.read_yaml.__module__ == "stillhouse.core.settings"
