"""The owner's commands: keys, and the membership check; log heads and verdicts join them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from stillhouse.cli import console, evidence, options, verdicts
from stillhouse.cli.registry import REGISTRY, Url, needed, registry_at

app = typer.Typer(
    help="The owner's key, log heads, the membership check, and verdicts.", no_args_is_help=True
)


@app.command("keys")
def keys(
    out: Annotated[Path, typer.Argument(help="the new key's file")],
    registry: Annotated[
        str | None, typer.Option("--registry", help="also commit to the key there")
    ] = None,
) -> None:
    """Make the owner's key. Keep it: without it marks prove nothing.

    Example: stillhouse guard keys owner.key
    """
    needed()
    from stillhouse.guard.keys import new_keys

    made = new_keys(out)
    if registry is not None:
        held = registry_at(registry, new=True)
        held.commit_to(made)
        held.close()
    typer.echo(f"{out}: key {made.id}, commitment {made.commitment}, public key {made.public}")


@app.command("learn")
def learn(
    out: options.Out,
    model: Annotated[str | None, typer.Option("--model", help="the model that is served")] = None,
    data: options.Data = None,
    customers: Annotated[
        str | None, typer.Option("--customers", help="a file of texts that honest customers ask")
    ] = None,
    corpus: Annotated[
        str | None, typer.Option("--corpus", help="text that made-up questions come from")
    ] = None,
    features: Annotated[
        str | None, typer.Option("--features", help="both, last (states), or logits")
    ] = None,
    precision: options.Precision = None,
    text_column: options.Text = None,
    pair_column: options.Pair = None,
    label_column: options.Label = None,
    cache: options.Cache = None,
    config: options.Config = None,
    set_: options.SetOfCheck = None,
    trust_remote_code: options.Trust = False,
    json: options.Json = False,
) -> None:
    """Learn to tell questions like your data from made-up ones.

    Example: stillhouse guard learn --model my-teacher --data reviews.csv --out check
    """
    needed()
    from stillhouse.core.settings import parse
    from stillhouse.guard.settings import LearnConfig

    values = options.settings(
        config,
        "learn",
        {
            "model": model,
            **options.columns(data, text_column, pair_column, label_column),
            "data.unlabelled": customers,
            "corpus": corpus,
            "features": features,
            "precision": precision,
            "cache": cache,
            "trust_remote_code": trust_remote_code or None,
        },
        set_,
        LearnConfig,
    )
    options.required(values, "model", "data.path")
    checked = parse(LearnConfig, values)
    from stillhouse.core.console import Terminal
    from stillhouse.guard.learning import learn_check
    from stillhouse.guard.settings import Odds
    from stillhouse.guard.suspicion import blocks_of

    found = learn_check(checked, out, progress=Terminal())
    if json:
        console.print_json(found.as_json())
        return
    console.table(
        ("questions", "count", "AUC", "accuracy", "beyond the line"),
        [
            [q.kind, f"{q.count:,}", f"{q.auc:.3f}", f"{q.accuracy:.3f}", f"{q.at_line:.1%}"]
            for q in found.qualities
        ],
    )
    console.say(
        f"\nOf your reported rows {found.honest:.1%} are beyond the line: the setting "
        "guard.check.tolerance (0.1) must stay above that. How long bursts of odd questions are "
        "(guard.check.burst), clients you trust show: stillhouse guard bursts."
    )
    usual = Odds()
    least = blocks_of(usual.tolerance, usual.burst).expected
    if all(each.at_line <= least for each in found.qualities if each.kind != "shuffled"):
        console.say(
            f"It tells made-up questions so badly that at this tolerance (and guard.check.burst "
            f"{usual.burst:g}) it would flag nobody: give more rows, or another corpus."
        )


@app.command("bursts")
def bursts(
    client: Annotated[
        list[str] | None,
        typer.Option("--client", help="a client you trust (default: all that are not flagged)"),
    ] = None,
    registry: Url = REGISTRY,
    alpha: Annotated[float | None, typer.Option("--alpha", help="guard.check.alpha")] = None,
    tolerance: Annotated[
        float | None, typer.Option("--tolerance", help="guard.check.tolerance")
    ] = None,
    burst: Annotated[float | None, typer.Option("--burst", help="guard.check.burst")] = None,
    json: options.Json = False,
) -> None:
    """Learn from honest clients' questions how long their bursts of odd ones are, and what to set.

    Example: stillhouse guard bursts --client "Ann's shop" --client "Bob's shop"
    """
    needed()
    from stillhouse.core.settings import parse
    from stillhouse.guard.bursts import bursts_of
    from stillhouse.guard.settings import Odds

    values = {"alpha": alpha, "tolerance": tolerance, "burst": burst}
    odds = parse(Odds, {name: value for name, value in values.items() if value is not None})
    held = registry_at(registry)
    try:
        found = bursts_of(held, client or (), odds)
    finally:
        held.close()
    if json:
        console.print_json(found.as_json())
        return
    if not client:
        console.say("All clients that are not flagged are taken for honest (name some: --client).")
    for sentence in found.advice(odds):
        console.say(sentence)


app.command("heads")(evidence.heads)
app.command("blind-questions")(evidence.blind_questions)
app.command("blind-ask")(evidence.blind_ask)
app.command("check-verdict")(verdicts.check_verdict)
