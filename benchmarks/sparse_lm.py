"""A language model on WikiText-2 from what is kept of its teacher's distributions.

command    python benchmarks/sparse_lm.py --data $STILLHOUSE_DATA --out lm
           the full table: --blocks 0 --teacher-blocks 0 --epochs 6 --teacher-epochs 8 --seeds 3
hardware   two CPU cores; see docs/results.md for the time it took
result     see docs/results.md, "Sparse distributions"

The teacher is a GPT-2 of four layers, trained here with its tokenizer; the student has two of its
half width. Every row trains the same student as long on the same blocks: on the text alone, on the
teacher's whole distributions, and on what is kept of them. Angles are between the gradients of all
the student's parameters, those of the whole distributions and those of what is kept (packed and
unpacked), on 4,096 tokens of training text: for the student as it starts, and trained on the whole.
"""

from __future__ import annotations

import argparse
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer

import stillhouse as sh
from stillhouse.core.console import Terminal
from stillhouse.core.rundir import write_text
from stillhouse.numerics.packing import decode, encode, position_bytes
from stillhouse.numerics.sparse import choose, divergence

SOFT = [{"kind": "soft"}]
ANGLE_TOKENS = 4096
LENGTH = 128
ROWS: dict[str, dict[str, Any]] = {
    "dense": {},
    "top-12 renormalised": {"top": 12, "drawn": 0, "estimator": "renormalised"},
    "top-12 + tail": {"top": 12, "drawn": 0, "estimator": "tail"},
    "top-17 + tail": {"top": 17, "drawn": 0, "estimator": "tail"},
    "25 drawn": {"top": 0, "drawn": 25, "estimator": "sampled"},
    "top-4 + 29 drawn": {"top": 4, "drawn": 29, "estimator": "sampled"},
    "40 drawn": {"top": 0, "drawn": 40, "estimator": "sampled"},
}


def text(args: argparse.Namespace) -> Path:
    folder = args.out / "text"
    folder.mkdir(parents=True, exist_ok=True)
    for name, lines in (("train", None), ("valid", args.lines), ("test", args.lines)):
        whole = (args.data / "wikitext2" / f"{name}.txt").read_text(encoding="utf-8")
        write_text(folder / f"{name}.txt", "".join(whole.splitlines(keepends=True)[:lines]))
    return folder


def training(args: argparse.Namespace, epochs: float, lr: float) -> dict[str, Any]:
    return {
        "epochs": epochs,
        "lr": lr,
        "batch_size": args.batch,
        "evaluations": 2,
        "precision": args.precision,
        "dropout": 0.0,
    }


def blocks(args: argparse.Namespace, count: int) -> dict[str, Any]:
    return {"path": str(args.text), "max_length": LENGTH, "labelled_rows": count or None}


def new(args: argparse.Namespace, name: str, seed: int, **shape: Any) -> Path:
    folder = args.out / "start" / f"{name}-{seed}"
    if not folder.exists():
        first = args.out / "start" / "teacher-0"
        if name == "teacher":
            sh.new("causal_lm", blocks(args, 0), out=folder, vocabulary=args.vocabulary, **shape)
        else:
            sh.new("causal_lm", out=folder, tokenizer_from=str(first), seed=seed, **shape)
    return folder


def finetuned(args: argparse.Namespace, name: str, model: Path, count: int, **kind: Any) -> sh.Run:
    return sh.finetune(
        model,
        blocks(args, count),
        out=args.out / "runs" / name,
        task="causal_lm",
        cache=str(args.out / "cache"),
        resamples=200,
        **kind,
    )


def distilled(args: argparse.Namespace, row: str, seed: int, model: Path) -> sh.Run:
    kept = {"tokens": "sparse", **ROWS[row]} if ROWS[row] else {}
    return sh.distill(
        args.out / "runs" / "teacher",
        blocks(args, args.blocks),
        task="causal_lm",
        student={"model": str(model)},
        out=args.out / "runs" / f"{row.replace(' ', '-')}-{seed}",
        objective=SOFT,
        training=training(args, args.epochs, args.lr),
        label={"precision": args.precision, **kept},
        cache=str(args.out / "cache"),
        evaluation={"seeds": [seed], "baseline": False, "efficiency": False, "resamples": 200},
    )


def angles(args: argparse.Namespace, student: Path) -> dict[str, float]:
    """Degrees between each sparse row's gradient and the dense one."""
    torch.manual_seed(0)
    tokenizer = AutoTokenizer.from_pretrained(student)
    teacher, mine = (
        AutoModelForCausalLM.from_pretrained(x).eval() for x in (args.out / "runs/teacher", student)
    )
    blocks = -(-ANGLE_TOKENS // (LENGTH - 1))
    words = (args.text / "train.txt").read_text(encoding="utf-8")[: 16 * blocks * LENGTH]
    ids = tokenizer(words, return_tensors="pt").input_ids[0, : blocks * LENGTH].view(blocks, LENGTH)
    with torch.no_grad():
        logp_NK = scores(teacher, ids).log_softmax(-1)

    def gradient(loss_N: Tensor) -> Tensor:
        parts = torch.autograd.grad(loss_N.mean(), list(mine.parameters()))
        return torch.cat([part.flatten() for part in parts]).double()

    student_NK = scores(mine, ids).log_softmax(-1)
    dense = gradient((logp_NK.exp() * (logp_NK - student_NK)).sum(-1))
    found: dict[str, float] = {}
    for row, settings in ROWS.items():
        if not settings:
            continue
        top, drawn, K = settings["top"], settings["drawn"], logp_NK.shape[1]
        kept = choose(logp_NK, torch.rand(len(logp_NK), 1), top=top, drawn=drawn)
        packed_NY = encode(*(x.numpy() for x in kept), choices=K)
        assert packed_NY.shape[1] == position_bytes(K, top, drawn)
        read = map(torch.as_tensor, decode(packed_NY, choices=K, top=top, drawn=drawn))
        estimated = divergence(
            "forward_kl",
            scores(mine, ids),
            *read,
            estimator=settings["estimator"],
            temperature=1.0,
        )
        cosine = torch.cosine_similarity(gradient(estimated), dense, dim=0)
        found[row] = math.degrees(math.acos(min(1.0, float(cosine))))
    return found


def scores(model: Any, ids_BL: Tensor) -> Tensor:
    """Of every token but each block's first, (ANGLE_TOKENS, K)."""
    return model(input_ids=ids_BL).logits[:, :-1].flatten(0, 1)[:ANGLE_TOKENS].float()


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--blocks", type=int, default=3000, help="training blocks (0: all)")
    parser.add_argument("--teacher-blocks", type=int, default=6000, help="the teacher's (0: all)")
    parser.add_argument("--lines", type=int, default=600, help="of valid and of test")
    parser.add_argument("--vocabulary", type=int, default=8192)
    parser.add_argument("--teacher-epochs", type=float, default=3)
    parser.add_argument("--epochs", type=float, default=3)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--lr", type=float, default=2e-3)
    parser.add_argument("--precision", choices=("auto", "bf16", "float32"), default="auto")
    args = parser.parse_args()
    args.text = text(args)
    first = new(args, "teacher", 0, width=256, layers=4, heads=4)
    lessons = training(args, args.teacher_epochs, 1e-3)
    teacher = finetuned(args, "teacher", first, args.teacher_blocks, training=lessons)
    found: dict[str, list[dict[str, Any]]] = {"teacher": [of(teacher)]}
    for seed in range(args.seeds):
        model = new(args, "student", seed, width=128, layers=2, heads=4)
        alone = {"training": training(args, args.epochs, args.lr), "seed": seed}
        runs = {"text alone": finetuned(args, f"alone-{seed}", model, args.blocks, **alone)}
        for row in ROWS:
            runs[row] = distilled(args, row, seed, model)
        near = angles(args, model), angles(args, runs["dense"].out / "student")
        for row, run in runs.items():
            degrees = {"angle_start": near[0].get(row), "angle_trained": near[1].get(row)}
            over = against_dense(args, run, runs["dense"])
            found.setdefault(row, []).append(of(run) | over | (degrees if ROWS.get(row) else {}))
        (args.out / "table.json").write_text(json.dumps(found, indent=1), encoding="utf-8")
    for row, seeds in found.items():
        loss = np.mean([each["loss"] for each in seeds])
        Terminal().note(f"{row}: {loss:.4f} nats a token, {json.dumps(seeds[0])}")


def against_dense(args: argparse.Namespace, run: sh.Run, dense: sh.Run) -> dict[str, Any]:
    """Nats a token over the student of whole distributions, paired by block."""
    mine, theirs = (
        x.out / "student" if (x.out / "student").exists() else x.out for x in (run, dense)
    )
    if mine == theirs:
        return {}
    found = sh.evaluate(mine, blocks(args, 0), against=theirs, cache=str(args.out / "cache"))
    low, high = found["against"]["interval"]
    return {"over_dense": -found["against"]["gain"], "over_dense_interval": [-high, -low]}


def of(run: sh.Run) -> dict[str, Any]:
    """What the table says of a run."""
    student, kept = run.record.student, run.record.distributions
    found: dict[str, Any] = {
        "loss": -student.metrics["log_likelihood"],
        "interval": [-student.interval[1], -student.interval[0]],
        "perplexity": student.metrics["perplexity"],
        "ece": student.calibration_error,
    }
    if kept is not None:
        found |= {"bytes": kept.bytes_per_token, "covered": kept.covered, "tokens": kept.tokens}
        found |= {
            when: {name: each.angle for name, each in angles.items()}
            for when, angles in (("angle_before", kept.before), ("angle_after", kept.after))
        }
    return found


if __name__ == "__main__":
    main()
