"""Asking an API: it is described in a few lines, a budget is never exceeded, nothing paid twice."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml
from serving import Server, saying, serving

from stillhouse.core.errors import DataError, RunError, UsageError
from stillhouse.core.settings import parse
from stillhouse.core.types import Example
from stillhouse.extract import client as asking_client
from stillhouse.extract.client import Client, OverBudget
from stillhouse.extract.endpoint import Endpoint, filled, read_endpoint
from stillhouse.extract.ledger import Ledger, Spent
from stillhouse.extract.prices import Tariff

QUERIES = [Example(f"text {number}") for number in range(25)]


def answer(text: str, pair: str | None) -> dict[str, Any]:
    good = (len(text) + int(text.split()[-1])) % 7 / 7
    return {"label": "good" if good > 0.5 else "bad", "scores": {"good": good, "bad": 1 - good}}


def described(url: str, **changes: Any) -> Endpoint:
    values: dict[str, Any] = {
        "url": url,
        "body": {"texts": "{texts}"},
        "read": {"answers": "out", "probabilities": "scores", "label": "label"},
        "batch": 4,
        "timeout_s": 0.3,
    }
    return parse(Endpoint, {**values, **changes})


@contextmanager
def client(
    folder: Path, server: Server, *, limit: int | None = None, **changes: Any
) -> Iterator[tuple[Client, Ledger]]:
    with Ledger(folder, Tariff()) as ledger:
        asking = Client(described(server.url, **changes), ledger, limit=limit, sleep=lambda s: None)
        try:
            yield asking, ledger
        finally:
            asking.close()


def expected(examples: Sequence[Example]) -> list[dict[str, Any]]:
    return [{"probabilities": a["scores"], "label": a["label"]}
            for a in (answer(e.text, e.pair) for e in examples)]  # fmt: skip


def test_every_query_is_answered_once(tmp_path: Path) -> None:
    with serving(answer) as server, client(tmp_path, server) as (asking, ledger):
        assert asking.ask(QUERIES) == expected(QUERIES)
        assert asking.ask([*QUERIES[5:9], QUERIES[0]]) == expected([*QUERIES[5:9], QUERIES[0]])
        assert server.requests == 7
        assert len(server.paid) == ledger.spent.queries == 25
        assert ledger.spent.characters == sum(len(e.text) for e in QUERIES)


@pytest.mark.parametrize(
    ("change", "other"),
    [({"url": "http://127.0.0.1:9/other"}, True), ({"body": {"texts": "{texts}", "v": 2}}, True),
     ({"method": "PUT"}, True), ({"parallel": 4}, False),
     ({"read": {"answers": "x", "label": "y"}}, False)],
)  # fmt: skip
def test_another_question_is_another_answer(change: dict[str, Any], *, other: bool) -> None:
    """What was paid for is kept by whom it was asked of, and how; not by pace or reading."""
    url = "http://127.0.0.1:9/"
    usual = described(url)
    changed = described(**{"url": url, **change})
    assert (changed.identity != usual.identity) is other


@pytest.mark.parametrize("parallel", [1, 4])
def test_trouble_is_overcome_and_paid_for(tmp_path: Path, parallel: int) -> None:
    trouble = ["", "429", "500", "slow", "cut", "no json", "429"]
    with serving(answer, trouble) as server:
        with client(tmp_path, server, parallel=parallel) as (asking, ledger):
            assert asking.ask(QUERIES) == expected(QUERIES)
            assert ledger.spent.queries == len(server.paid)
            assert len(server.paid) > 25


@pytest.mark.parametrize("parallel", [1, 3])
@pytest.mark.parametrize("limit", [4, 10, 23, 24])
def test_a_budget_is_never_exceeded_by_one_query(tmp_path: Path, limit: int, parallel: int) -> None:
    with serving(answer, ["", "500", "cut", "429"]) as server:
        with client(tmp_path, server, limit=limit, parallel=parallel) as (asking, ledger):
            with pytest.raises(OverBudget, match=f"limit of {limit} queries is reached"):
                asking.ask(QUERIES)
            assert len(server.paid) <= ledger.spent.queries <= limit
        with client(tmp_path, server, limit=limit) as (asking, ledger):
            with pytest.raises(OverBudget):
                asking.ask(QUERIES)
            assert len(server.paid) <= limit


def test_a_request_that_the_budget_cuts_is_cut_when_it_is_tried_again(tmp_path: Path) -> None:
    with (
        serving(answer, ["", "429"]) as server,
        client(tmp_path, server, limit=6) as (asking, _),
        pytest.raises(OverBudget),
    ):
        asking.ask(QUERIES[:8])
    assert len(server.paid) == 6


def test_what_was_answered_before_a_kill_is_not_paid_for_again(tmp_path: Path) -> None:
    with serving(answer) as server:
        with client(tmp_path, server) as (asking, _):
            asking.ask(QUERIES[:12])
        with (tmp_path / "ledger.jsonl").open("ab") as file:
            file.write(b'{"sent": {"queries": 4, "chara')  # killed while writing
        with client(tmp_path, server) as (asking, ledger):
            assert ledger.spent.queries == 12
            assert asking.ask(QUERIES) == expected(QUERIES)
        with client(tmp_path, server) as (asking, ledger):
            assert ledger.spent.queries == 25
        assert len(server.paid) == len(set(server.paid)) == 25


def test_what_was_sent_and_never_came_back_counts(tmp_path: Path) -> None:
    with serving(answer) as server:
        with Ledger(tmp_path, Tariff()) as ledger:
            ledger.send(QUERIES[:4])  # killed before the answer was written
        with client(tmp_path, server, limit=12) as (asking, ledger):
            assert ledger.spent.queries == 4
            asking.ask(QUERIES[:8])
            with pytest.raises(OverBudget):
                asking.ask(QUERIES[:9])
        assert len(server.paid) == 8


def test_units_follow_the_price_list(tmp_path: Path) -> None:
    with Ledger(tmp_path, Tariff(characters=4)) as ledger:
        ledger.send([Example("abcde"), Example("a", "bcd")])
        assert ledger.spent == Spent(queries=2, characters=9, units=3)
        ledger.refused([Example("a", "bcd")])
        assert ledger.spent == Spent(queries=1, characters=5, units=2)


def test_one_audit_at_a_time(tmp_path: Path) -> None:
    with Ledger(tmp_path, Tariff()), pytest.raises(RunError, match="another audit"):
        Ledger(tmp_path, Tariff())


def test_a_damaged_ledger_is_not_passed_over(tmp_path: Path) -> None:
    (tmp_path / "ledger.jsonl").write_text('{"sent": oops}\n{"answers": {}}\n')
    with pytest.raises(RunError, match="what was paid can't be told"):
        Ledger(tmp_path, Tariff())


@pytest.mark.parametrize(
    ("read", "says"),
    [
        ({"answers": "outs", "label": "label"}, "no list of answers to 4 queries at 'outs'"),
        ({"answers": "out[1:]", "label": "label"}, "3 answers to 4 queries"),
        ({"answers": "out", "label": "lable"}, "no label at 'lable' in {\"label\": "),
        ({"answers": "out", "probabilities": "label"}, "no probabilities by label at 'label'"),
        ({"answers": "out", "value": "scores"}, "no value at 'scores'"),
    ],
)
def test_an_answer_that_does_not_fit_is_shown(
    tmp_path: Path, read: dict[str, str], says: str
) -> None:
    with serving(answer) as server, client(tmp_path, server, read=read) as (asking, _):
        with pytest.raises(DataError, match="does not fit its description") as caught:
            asking.ask(QUERIES)
        assert says in str(caught.value)
        assert "\n" not in str(caught.value)
        assert server.requests == 1


@pytest.mark.parametrize("share", ["n/a", None, "nan", "inf", [], {"p": 1}])
def test_a_share_that_is_no_number_is_shown(tmp_path: Path, share: Any) -> None:
    """Also NaN and infinity, which some JSON has, in quotes or without."""

    def broken(text: str, pair: str | None) -> dict[str, Any]:
        return {"scores": {"good": 0.5, "bad": share}}

    read = {"answers": "out", "probabilities": "scores"}
    with serving(broken) as server, client(tmp_path, server, read=read) as (asking, _):
        with pytest.raises(DataError, match="a probability is no number"):
            asking.ask(QUERIES)


def test_lists_of_labels_and_of_shares_belong_together(tmp_path: Path) -> None:
    def listed(text: str, pair: str | None) -> dict[str, Any]:
        return {"all": [{"name": k, "p": v} for k, v in answer(text, pair)["scores"].items()]}

    read = {"answers": "out", "probabilities": "all[*].p", "labels": "all[*].name"}
    with serving(listed) as server, client(tmp_path, server, read=read) as (asking, _):
        found = asking.ask(QUERIES)
    assert [e["probabilities"] for e in found] == [e["probabilities"] for e in expected(QUERIES)]


@pytest.mark.parametrize("status", ["400", "401"])
def test_a_refused_request_is_not_tried_again(tmp_path: Path, status: str) -> None:
    with serving(answer, [status]) as server, client(tmp_path, server) as (asking, ledger):
        with pytest.raises(DataError, match=f"refuses the request .{status}.*no {status}"):
            asking.ask(QUERIES)
        assert (server.requests, ledger.spent.queries) == (1, 0)


def test_an_api_that_stays_down_ends_the_run_and_keeps_what_came(tmp_path: Path) -> None:
    with serving(answer, ["", *["500"] * 20]) as server:
        with client(tmp_path, server, retries=2) as (asking, ledger):
            with pytest.raises(RunError, match="says 500, 3 times: what was answered is kept"):
                asking.ask(QUERIES)
            assert [len(each.asked) for each in ledger.bodies] == [4]
    with client(tmp_path / "b", Server(answer, url="http://127.0.0.1:9/x"), retries=1) as (
        asking,
        ledger,
    ):
        with pytest.raises(RunError, match="can't be reached"):
            asking.ask(QUERIES)
        assert ledger.spent.queries == 0


def test_keys_come_from_the_environment_and_stay_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    headers = {"Authorization": "Bearer ${MY_KEY}"}
    with serving(answer) as server:
        monkeypatch.delenv("MY_KEY", raising=False)
        with pytest.raises(UsageError, match="MY_KEY is not in the environment"):
            with client(tmp_path / "a", server, headers=headers):
                pass
        monkeypatch.setenv("MY_KEY", "sesame")
        with client(tmp_path / "b", server, headers=headers) as (asking, _):
            asking.ask(QUERIES)
        assert {h["authorization"] for h in server.headers} == {"Bearer sesame"}
    with serving(lambda text, pair: {"got": "Bearer sesame"}) as server:
        with client(tmp_path / "c", server, headers=headers) as (asking, _):
            with pytest.raises(DataError, match=r"Bearer \*\*\*") as raised:
                asking.ask(QUERIES)
            assert "sesame" not in str(raised.value)
    folders = [tmp_path / "a", tmp_path / "b"]
    folders.append(tmp_path / "c")  # whose API said it
    files = [p for folder in folders for p in folder.rglob("*") if p.is_file()]
    written = b"".join(p.read_bytes() for p in files)
    assert b"sesame" not in written
    assert b"text 3" not in written


def test_a_pause_is_as_long_as_the_api_asks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(asking_client, "FIRST_PAUSE_S", 0.5)
    pauses: list[float] = []
    trouble = ["429", "429", "429:7", ""] * 2
    with serving(answer, trouble) as server, Ledger(tmp_path, Tariff()) as ledger:
        for query in QUERIES[:2]:
            asking = Client(described(server.url), ledger, sleep=pauses.append)
            asking.ask([query])
            asking.close()
    for first, second, third in (pauses[:3], pauses[3:]):
        assert 0.25 <= first <= 0.75
        assert 0.5 <= second <= 1.5
        assert third == 7
    assert len({first for first in pauses if first != 7}) == 4, "clients pause alike"


def test_bodies_are_filled_as_described(tmp_path: Path) -> None:
    pairs = [Example("a {pair}", "x"), Example('b "', "y")]
    each = described("http://x", body={"rows": [{"q": "{text}", "c": "{pair}"}], "s": "{texts}"})
    assert filled(each, pairs) == {
        "rows": [{"q": "a {pair}", "c": "x"}, {"q": 'b "', "c": "y"}], "s": ["a {pair}", 'b "'],
    }  # fmt: skip
    listed = described("http://x", body={"inputs": [{"text": "{text}"}]})
    assert filled(listed, pairs[:2]) == {"inputs": [{"text": "a {pair}"}, {"text": 'b "'}]}
    one = described("http://x", body={"q": "Is {text} so?", "n": 3}, batch=1)
    assert filled(one, pairs[:1]) == {"q": "Is a {pair} so?", "n": 3}


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"body": {"x": "y"}}, "the body has"),
        ({"body": {"x": "y"}, "batch": 1}, 'the body has no "{text}"'),
        ({"body": {"x": "{text}"}}, 'with batch over 1 the body has "{texts}", or a list'),
        ({"read": {"answers": "out"}}, "say where"),
        ({"read": {"label": "label"}}, "read.answers"),
        ({"read": {"answers": "[[", "label": "x"}}, "no JMESPath"),
        ({"url": "ftp://x"}, "begins with http"),
        ({"retires": 3}, "did you mean 'retries'"),
    ],
)
def test_a_description_that_can_not_work_is_refused(
    tmp_path: Path, changes: dict[str, Any], says: str
) -> None:
    values = json.loads(described("http://x").model_dump_json(exclude_unset=True)) | changes
    (tmp_path / "api.yaml").write_text(yaml.safe_dump(values))
    with pytest.raises(UsageError, match=says) as caught:
        read_endpoint(tmp_path / "api.yaml")
    assert "\n" not in str(caught.value)


def test_a_budget_below_one_request_is_refused(tmp_path: Path) -> None:
    with serving(answer) as server, pytest.raises(UsageError, match="less than one request, of 4"):
        with client(tmp_path, server, limit=3):
            pass


def test_an_answer_that_can_not_be_read_is_asked_for_again(tmp_path: Path) -> None:
    """Not kept as an answer for good: no description could read it."""
    loading, calls = {"error": "model is loading, try again"}, 0

    def once(text: str, pair: str | None) -> dict[str, Any]:
        nonlocal calls
        calls += 1
        return loading if calls == 7 else answer(text, pair)

    with serving(once) as server:
        with client(tmp_path, server) as (asking, ledger):
            with pytest.raises(DataError, match=r"model is loading.*run again"):
                asking.ask(QUERIES)
            assert (server.requests, ledger.spent.queries) == (2, 8)
        with client(tmp_path, server) as (asking, ledger):
            assert asking.ask(QUERIES) == expected(QUERIES)
            assert ledger.spent.queries == 26  # the one, twice
        assert [q for q in server.paid if server.paid.count(q) > 1] == [("text 6", None)] * 2
        with client(tmp_path, server) as (asking, ledger):
            assert asking.ask(QUERIES) == expected(QUERIES)
            assert ledger.spent.queries == 26


def test_a_reading_that_is_put_right_pays_for_nothing_twice(tmp_path: Path) -> None:
    with serving(answer) as server:
        with client(tmp_path, server) as (asking, _):
            asking.ask(QUERIES)
        wrong = {"answers": "out", "label": "lable"}
        with client(tmp_path, server, read=wrong) as (asking, _):
            with pytest.raises(DataError, match="no label"):
                asking.ask(QUERIES)
        assert server.requests == 8  # one, to see whether the API still answers so
        with client(tmp_path, server) as (asking, ledger):
            assert asking.ask(QUERIES) == expected(QUERIES)
            assert (server.requests, ledger.spent.queries) == (8, 29)


@pytest.mark.parametrize("deep", [150, 900, 100_000])
def test_a_deep_answer_is_none(tmp_path: Path, deep: int) -> None:
    with (
        saying(b'{"out": ' + b"[" * deep + b"]" * deep + b"}") as url,
        Ledger(tmp_path, Tariff()) as ledger,
    ):
        asking = Client(described(url, retries=1), ledger, sleep=lambda s: None)
        with pytest.raises(RunError, match="answered what is no JSON"):
            asking.ask(QUERIES[:1])
        asking.close()
        assert ledger.bodies == []


KEY = 'sk/long"key+and=more'


@pytest.mark.parametrize("status", [200, 400, 401, 302, 429])
@pytest.mark.parametrize(
    "written",
    [KEY, json.dumps(KEY)[1:-1], "sk%2Flong%22key%2Band%3Dmore", 'sk\\/long\\"key+and=more',
     "basic-dXNlcjpwdw==", "hush-password", "query-secret"],
)  # fmt: skip
def test_a_key_that_an_api_repeats_is_shown_and_kept_nowhere(
    written: str, status: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MY_KEY", KEY)
    body = json.dumps({"out": f"you sent {written}", written: [written]}).encode()
    if written.startswith("sk\\"):
        body = b'{"out": "you sent ' + written.encode() + b'"}'
    headers = {"location": f"http://x/?k={written}", "retry-after": written}
    with saying(body, status, headers) as url:
        place = url.replace("http://", "http://ann:hush-password@") + "?key=query-secret"
        endpoint = described(
            place, retries=0,
            headers={"Authorization": "Bearer $MY_KEY", "X-Other": "Basic basic-dXNlcjpwdw=="},
        )  # fmt: skip
        with Ledger(tmp_path, Tariff()) as ledger:
            asking = Client(endpoint, ledger, sleep=lambda s: None)
            with pytest.raises((DataError, RunError)) as caught:
                asking.ask(QUERIES[:1])
            asking.close()
    kept = b"".join(p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()).decode()
    for hidden in (KEY, written, "hush-password", "query-secret", "basic-dXNlcjpwdw"):
        assert hidden not in str(caught.value)
        assert hidden not in kept
        assert json.dumps(hidden)[1:-1] not in kept
    assert url in str(caught.value)


@pytest.mark.parametrize("key", ["sk-long\nkey", "sk-schlüssel"])
def test_a_key_that_no_header_can_have_is_one_line_without_it(
    key: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MY_KEY", key)
    endpoint = described("http://x", headers={"Authorization": "Bearer $MY_KEY"})
    with pytest.raises(UsageError, match="the header Authorization") as caught:
        endpoint.keyed()
    assert "sk-" not in str(caught.value)


@pytest.mark.parametrize("asked", ["1.2.3", ".", "-1", "soon"])
def test_a_pause_that_is_no_number_is_passed_over(tmp_path: Path, asked: str) -> None:
    with serving(answer, [f"429:{asked}"]) as server, client(tmp_path, server) as (asking, _):
        assert asking.ask(QUERIES[:1]) == expected(QUERIES[:1])


@pytest.mark.skipif(os.name != "posix", reason="files have no such modes")
def test_only_the_owner_can_read_a_ledger(tmp_path: Path) -> None:
    before, folder = os.umask(0o022), tmp_path / "apis" / "one"
    try:
        with Ledger(folder, Tariff()):
            pass
        found = {p.name: p.stat().st_mode & 0o777 for p in (folder, *folder.iterdir())}
        assert found.pop("one") == 0o700
        assert set(found.values()) == {0o600}
        folder.chmod(0o755)
        (folder / "ledger.jsonl").chmod(0o644)  # as an earlier version made them
        with Ledger(folder, Tariff()):
            assert folder.stat().st_mode & 0o777 == 0o700
            assert (folder / "ledger.jsonl").stat().st_mode & 0o777 == 0o600
    finally:
        os.umask(before)
