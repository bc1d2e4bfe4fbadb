"""The command that makes a small model where there is no pretrained one: new."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from stillhouse.cli import console, options


def new(
    task: Annotated[str, typer.Option("--task", help="seq2seq (translate, sum up) or causal_lm")],
    out: Annotated[Path, typer.Option("--out", help="the model's folder")],
    data: Annotated[
        str | None,
        typer.Option(
            "--data", help="as for distill, or running text (causal_lm); training rows are read"
        ),
    ] = None,
    text_column: options.Text = None,
    label_column: options.Label = None,
    tokenizer: Annotated[
        str | None, typer.Option("--tokenizer", help="learn bpe (default) or unigram")
    ] = None,
    vocabulary: Annotated[
        int | None, typer.Option("--vocabulary", help="entries of the tokenizer (default: 8000)")
    ] = None,
    tokenizer_from: Annotated[
        str | None,
        typer.Option("--tokenizer-from", help="a model's folder whose tokenizer to take"),
    ] = None,
    family: Annotated[
        str | None,
        typer.Option(
            "--family", help="seq2seq: marian (default), bart, t5; causal_lm: gpt2, llama"
        ),
    ] = None,
    width: Annotated[int, typer.Option("--width", help="of its vectors")] = 256,
    layers: Annotated[int, typer.Option("--layers", help="of the encoder; of the whole")] = 3,
    decoder_layers: Annotated[
        int | None, typer.Option("--decoder-layers", help="of the decoder (default: as --layers)")
    ] = None,
    ffn: Annotated[
        int | None, typer.Option("--ffn", help="feed-forward width (default: four times the width)")
    ] = None,
    heads: Annotated[
        int | None, typer.Option("--heads", help="attention heads (default: of 64, at least two)")
    ] = None,
    positions: Annotated[int, typer.Option("--positions", help="the most tokens of a text")] = 512,
    dropout: Annotated[float, typer.Option("--dropout", help="share dropped in training")] = 0.1,
    seed: Annotated[int, typer.Option("--seed", help="the seed")] = 0,
    cache: options.Cache = None,
    json: options.Json = False,
) -> None:
    """Make a small untrained model and its tokenizer, learnt from the training rows only.

    Example: stillhouse new --task seq2seq --data pairs.jsonl --text-column en --label-column de
    --vocabulary 8000 --width 256 --layers 3 --out start
    """
    from stillhouse.core.config import NewConfig
    from stillhouse.core.settings import parse

    columns = {"path": data, "text": text_column, "label": label_column}
    given = {"tokenizer": tokenizer, "vocabulary": vocabulary, "tokenizer_from": tokenizer_from}
    values = {
        "task": task,
        "data": None if data is None else columns,
        "family": family,
        "width": width,
        "layers": layers,
        "decoder_layers": decoder_layers,
        "ffn": ffn,
        "heads": heads,
        "positions": positions,
        "dropout": dropout,
        "seed": seed,
        "cache": cache,
        **{name: value for name, value in given.items() if value is not None},
    }
    checked = parse(NewConfig, values)
    from stillhouse.core.console import Terminal
    from stillhouse.flows.new import run_new

    found = run_new(checked, out, Terminal()).facts
    if json:
        console.print_json(found)
        return
    cut = found["tokens_per_text"]
    tokens = "" if cut is None else f", {cut:.1f} tokens a text (of {found['texts']:,})"
    console.say(
        f"{out}: a {found['family']} of {found['parameters']:,} parameters, vocabulary of "
        f"{found['vocabulary']:,}{tokens}"
    )
