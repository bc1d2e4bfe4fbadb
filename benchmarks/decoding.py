"""How many sentences a second are decoded, against a plain loop of transformers' `generate`.

command    python benchmarks/decoding.py
hardware   two CPU cores; minutes
result     see docs/results.md, "Decoding"

A Marian model of random weights; sources of 5 to 40 tokens, most of them short, as captions are. An
end token grows likely once a text is about as long as its source, whoever searches, so that texts
get the lengths of translations. Beam and setting of early stopping are the same, but by its source
`generate` has one limit of length for a batch, ours one for each text; with --limit both have one
for all. What is found is compared. In turns; medians. CPU seconds are of the process, and tell less
of what else runs there.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from transformers import MarianConfig, MarianMTModel

from stillhouse.core.machine import machine
from stillhouse.models.decode import decode
from stillhouse.models.search import Decoding

PAD, END = 0, 1
Texts = list[list[int]]


class Ending(MarianMTModel):
    """Ends its texts after about as many tokens as their source has."""

    def forward(self, **inputs: Any) -> Any:  # pyright: ignore
        out: Any = super().forward(**inputs)
        cache = out.past_key_values.get_seq_length()
        over_R = cache - inputs["attention_mask"].sum(-1)
        out.logits[:, -1, END] += 2.0 * over_R
        return out


def made(vocabulary: int) -> MarianMTModel:
    torch.manual_seed(0)
    config = MarianConfig(
        vocab_size=vocabulary,
        d_model=256,
        encoder_ffn_dim=1024,
        decoder_ffn_dim=1024,
        encoder_layers=3,
        decoder_layers=3,
        encoder_attention_heads=4,
        decoder_attention_heads=4,
        pad_token_id=PAD,
        eos_token_id=END,
        decoder_start_token_id=PAD,
        forced_eos_token_id=None,
        init_std=0.1,
    )
    model = Ending(config).eval()
    model.generation_config.forced_eos_token_id = None
    return model


def captions(count: int, vocabulary: int) -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    lengths = np.clip(rng.lognormal(np.log(13), 0.4, count).astype(int), 5, 40)
    return [rng.integers(2, vocabulary, length) for length in lengths]


def plain(model: MarianMTModel, sources: list[np.ndarray], config: Decoding, size: int) -> Texts:
    """`generate`, `size` sources at a time, in the order they come in."""
    found: Texts = []
    for start in range(0, len(sources), size):
        part = sources[start : start + size]
        longest = max(map(len, part))
        ids = torch.full((len(part), longest), PAD)
        for row, source in enumerate(part):
            ids[row, : len(source)] = torch.from_numpy(source)
        out: Any = model.generate(
            ids,
            attention_mask=(ids != PAD).long(),
            num_beams=config.beams,
            do_sample=False,
            max_new_tokens=int(config.limits(np.array([longest]))[0]),
            length_penalty=config.length_penalty,
            early_stopping=config.early_stopping,
            bad_words_ids=[[PAD]],
        )
        for text in out[:, 1:].tolist():
            found.append(text[: text.index(END)] if END in text else text)
    return found


def ours(model: MarianMTModel, sources: list[np.ndarray], config: Decoding) -> Texts:
    found = decode(model, sources, config, pad_id=PAD)
    return [texts[0].ids.tolist() for texts in found]


def in_parts(model: MarianMTModel, sources: list[np.ndarray], config: Decoding, size: int) -> Texts:
    whole = config.model_copy(update={"max_batch_tokens": 10**9})
    parts = (sources[start : start + size] for start in range(0, len(sources), size))
    return [text for part in parts for text in ours(model, part, whole)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sentences", type=int, default=512)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--beams", type=int, default=5)
    parser.add_argument("--vocabulary", type=int, default=8000)
    parser.add_argument("--early-stopping", default="never", choices=["never", "false", "true"])
    parser.add_argument("--limit", type=int, help="tokens of any text (left out: by its source)")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=5)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    early: Any = {"never": "never", "false": False, "true": True}[args.early_stopping]
    limit = {"max_tokens": args.limit} if args.limit else {"relative_max": (1.2, 8)}
    config = Decoding(beams=args.beams, early_stopping=early, precision="float32", **limit)
    narrow = config.model_copy(update={"precision": "bf16"})
    model, sources = made(args.vocabulary), captions(args.sentences, args.vocabulary)
    ways: dict[str, Callable[[], Texts]] = {
        "generate": lambda: plain(model, sources, config, args.batch),
        "same batches": lambda: in_parts(model, sources, config, args.batch),
        "sorted": lambda: ours(model, sources, config),
    }
    if machine().precision == "bf16":
        ways["sorted, bf16"] = lambda: ours(model, sources, narrow)
    speeds: dict[str, list[float]] = {way: [] for way in ways}
    spent: dict[str, list[float]] = {way: [] for way in ways}
    texts: dict[str, Texts] = {}
    for repeat in range(args.repeats + 1):  # in turns; the first round warms up
        for way, run in ways.items():
            started, used = time.perf_counter(), time.process_time()
            texts[way] = run()
            if repeat:
                spent[way].append(time.process_time() - used)
                speeds[way].append(len(sources) / (time.perf_counter() - started))
    base = texts["generate"]
    lengths = [len(text) for text in base]
    print(f"sources of {np.mean([len(s) for s in sources]):.1f} tokens, texts of", end=" ")
    print(f"{np.mean(lengths):.1f} ({min(lengths)} to {max(lengths)})")
    for way, found in speeds.items():
        same = sum(a == b for a, b in zip(texts[way], base, strict=True)) / len(base)
        median = statistics.median(found)
        ratios = [a / b for a, b in zip(found, speeds["generate"], strict=True)]
        print(
            f"{way:14} {median:7.1f} sentences/s ({min(found):.1f} to {max(found):.1f}), "
            f"{statistics.median(ratios):.2f} x, CPU {statistics.median(spent[way]):.1f} s, "
            f"same text {same:.1%}"
        )


if __name__ == "__main__":
    main()
