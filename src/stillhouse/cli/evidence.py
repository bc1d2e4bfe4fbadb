"""The commands about what binds a verdict: log heads, their time stamps, and blind tests."""

from __future__ import annotations

import secrets
from pathlib import Path
from typing import Annotated

import typer

from stillhouse.cli import console, options
from stillhouse.cli.registry import REGISTRY, Key, Url, needed, registry_at
from stillhouse.core.errors import UsageError
from stillhouse.core.times import minute


def heads(
    registry: Url = REGISTRY,
    key: Key = None,
    seal: Annotated[
        bool, typer.Option("--seal", help="seal what is new now (a service does once a day)")
    ] = False,
    number: Annotated[
        int | None, typer.Option("--number", min=1, help="which head (default: the last)")
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--out", help="write the head to a file, to be published")
    ] = None,
    request: Annotated[
        Path | None, typer.Option("--request", help="write a time-stamp request (RFC 3161)")
    ] = None,
    stamp: Annotated[
        Path | None, typer.Option("--stamp", help="keep an authority's response to a request")
    ] = None,
    tsa: Annotated[
        str | None,
        typer.Option("--tsa", metavar="URL", help="ask this authority for a time stamp, and keep"),
    ] = None,
    published: Annotated[
        str | None, typer.Option("--published", help="where and when the head was published")
    ] = None,
    json: options.Json = False,
) -> None:
    """List the log heads, and bind them from outside: each shows that the key, the marks and the
    answers before it were fixed by the time at which it was stamped or published.

    Example: stillhouse guard heads --seal --key owner.key --tsa http://timestamp.example.org
    """
    needed()
    from stillhouse.guard import heads as log
    from stillhouse.guard import stamps

    held = registry_at(registry)
    try:
        if seal:
            from stillhouse.guard.keys import read_keys

            owner = read_keys(key)
            log.may_seal(held, owner)
            log.seal_all(held, owner)
        chain = log.sealed(held)
        if not chain and (number or out or request or stamp or tsa or published):
            raise UsageError("there is no log head yet: make one with --seal")
        if number is not None and number > len(chain):
            raise UsageError(f"there is no head {number}: the last is {len(chain)}")
        chosen = chain[(number or len(chain)) - 1] if chain else None
        if chosen is not None:
            if out is not None:
                _write(out, chosen.line)
            if request is not None:
                _write(request, stamps.request(chosen.head))
            if tsa is not None:
                stamped = stamps.asked_of(tsa, chosen.head)
                stamps.stamp_of(stamped, [chosen])
                log.bind(held, chosen.head.number, stamp=stamped)
            if stamp is not None:
                response = _read(stamp)
                log.bind(held, stamps.stamp_of(response, chain).head, stamp=response)
            if published is not None:
                log.bind(held, chosen.head.number, published=published)
        chain = log.sealed(held)
        found = stamps.read_stamps(chain)
    finally:
        held.close()
    if json:
        console.print_json(
            [each.model_dump(mode="json") | {"hash": each.head.hash} for each in chain]
        )
        return
    by_head = {
        number: [s for s in found if s.head == number] for number in range(1, len(chain) + 1)
    }
    rows = [
        [
            str(each.head.number), minute(each.head.time), f"{each.head.decisions:,}",
            each.head.hash[:16], "; ".join(
                f"{minute(s.time)} by {s.authority}{'' if s.public else ' (no public root)'}"
                for s in by_head[each.head.number]
            ), "; ".join(each.published),
        ]
        for each in chain
    ]  # fmt: skip
    console.table(("head", "sealed", "decisions", "hash", "stamped", "published"), rows)
    if any(not each.public for each in found):
        console.say(
            "\nA stamp without a public root binds only for who trusts its authority: a judge "
            "gives that one's root to check-verdict --authority."
        )


def blind_questions(
    out: Annotated[Path, typer.Option("--out", help="the file for the third party")],
    registry: Url = REGISTRY,
    key: Key = None,
    client: Annotated[
        list[str] | None, typer.Option("--client", help="whose marks (default: everyone's)")
    ] = None,
    model: Annotated[
        str | None, typer.Option("--model", help="the served model's fingerprint, of several")
    ] = None,
) -> None:
    """Export the questions of a verdict, marks hidden, for a third party that asks the suspect.

    Example: stillhouse guard blind-questions --key owner.key --out questions.json
    """
    needed()
    from stillhouse.core.settings import parse
    from stillhouse.guard.keys import read_keys
    from stillhouse.guard.settings import VerifyConfig
    from stillhouse.guard.snapshot import digest, written
    from stillhouse.guard.verify import export_questions

    config = parse(
        VerifyConfig, {"suspects": ["not yet known"], "clients": client or [], "model": model}
    )
    held = registry_at(registry)
    try:
        found = export_questions(config, held, read_keys(key))
    finally:
        held.close()
    text = written(found.model_dump(mode="json")).encode()
    _write(out, text)
    console.say(
        f"{out}: {len(found.questions):,} questions under log head {len(found.heads)} "
        f"({found.heads[-1].head.hash}), SHA-256 {digest(text)}. It has neither marks nor answers."
    )


def blind_ask(
    questions: Annotated[Path, typer.Option("--questions", help="what the owner exported")],
    out: Annotated[Path, typer.Option("--out", help="the file of sealed answers")],
    name: Annotated[str, typer.Option("--name", help="who asks: stands in the verdict")],
    suspect: Annotated[
        list[str], typer.Option("--suspect", help="a model's folder, or an API's description")
    ],
    control: Annotated[
        list[str] | None, typer.Option("--control", help="an independent model of your own")
    ] = None,
    take: Annotated[
        int | None, typer.Option("--take", min=1, help="how many questions (default: all)")
    ] = None,
    key: Annotated[
        Path | None, typer.Option("--key", help="your own key, to sign (guard keys makes one)")
    ] = None,
    limit: Annotated[
        int | None, typer.Option("--limit", help="queries that an API may be asked in all")
    ] = None,
    label_map: Annotated[
        str | None,
        typer.Option("--label-map", metavar="SUSPECT=OURS,...", help="the owner's names"),
    ] = None,
    precision: options.Precision = None,
    trust_remote_code: options.Trust = False,
) -> None:
    """Ask suspects as a third party, without knowing which questions are marked, and seal what they
    say. Keep the digest that is printed, and tell it to nobody but the judge.

    Example: stillhouse guard blind-ask --questions questions.json --suspect their-model --control mine --name "Dr. Lee" --out answers.json
    """  # noqa: E501
    needed()
    from stillhouse.core.settings import parse
    from stillhouse.guard.blind import read_questions
    from stillhouse.guard.keys import read_keys
    from stillhouse.guard.settings import VerifyConfig
    from stillhouse.guard.snapshot import written
    from stillhouse.guard.verify import ask_blind

    given = read_questions(questions)
    values = {
        "suspects": suspect, "controls": control or [], "limit": limit,
        "label_map": options.pairs(label_map, "--label-map") if label_map else {},
        "trust_remote_code": trust_remote_code,
    }  # fmt: skip
    if precision is not None:
        values["precision"] = precision
    if out.exists():
        raise UsageError(f"{out} exists: give another --out")
    found = ask_blind(
        parse(VerifyConfig, values), given, take=take or len(given.questions),
        nonce=secrets.token_hex(32), asked_by=name, keys=None if key is None else read_keys(key),
    )  # fmt: skip
    _write(out, written(found.model_dump(mode="json")).encode())
    signed = f", signed with {found.answers.public_key}" if found.signature else ", unsigned"
    console.say(
        f"{out}: answers of {len(found.answers.models)} models to {found.answers.take:,} of "
        f"{len(found.answers.offered):,} questions{signed}. Keep this digest: {found.digest}"
    )


def _write(path: Path, data: bytes) -> None:
    from stillhouse.core.rundir import atomic

    with atomic(path) as temporary:
        temporary.write_bytes(data)


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise UsageError(f"can't read {path}: {error.strerror}") from None
