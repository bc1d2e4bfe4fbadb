"""The README.md of a student's folder, or its baseline's: what it is, how good, how it was made."""

from __future__ import annotations

from typing import Literal

from stillhouse.core.inference import Inference
from stillhouse.core.results import Record
from stillhouse.core.units import batches_told, cost_told

TEMPLATE = """---
library_name: transformers
pipeline_tag: {pipeline}
tags: [distillation, stillhouse]
---

# {title}

{sentence}

| | {metric} | 95 % interval | parameters | latency |
|---|---|---|---|---|
{rows}

{cost}{shipped}{usage}{onnx}{known}## How it was made

{made}

It was trained by [Stillhouse](https://pypi.org/project/stillhouse/). The run's
record.json, config.yaml and manifest.json hold every setting, version and seed.
"""

ROWS = """{train:,} training rows ({labelled:,} labelled, the others answered by the teacher only),
{held_out:,} held-out rows chose the checkpoint, {reported:,} rows were read once to report."""
BLOCKS = """{train:,} blocks of running text, {held_out:,} held-out ones chose the checkpoint,
{reported:,} were read once to report. Perplexity of their masked tokens: {perplexity:.1f}."""
MASKED_USAGE = """```python
from transformers import pipeline

fill = pipeline("fill-mask", model="this-folder")
fill(f"... {fill.tokenizer.mask_token} ...")
```

"""
USAGE = """```python
from transformers import pipeline

classify = pipeline("text-classification", model="this-folder")
classify({texts})
```

"""
SPAN_USAGE = """```python
import torch
from transformers import AutoModelForQuestionAnswering, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained("this-folder")
model = AutoModelForQuestionAnswering.from_pretrained("this-folder")
inputs = tokenizer("question", "passage", truncation="only_second", return_tensors="pt")
with torch.no_grad():
    found = model(**inputs)
first, last = found.start_logits.argmax(), found.end_logits.argmax()
print(tokenizer.decode(inputs["input_ids"][0, first : last + 1]))
```

"""
ONNX_USAGE = """With the folder of the ONNX files, and neither torch nor transformers{smaller}:

```python
import json, numpy, onnxruntime, pathlib, tokenizers

folder = pathlib.Path("onnx")  # wherever it is
facts = json.loads((folder / "inference.json").read_text("utf-8"))
session = onnxruntime.InferenceSession(folder / "model.onnx")
tokenizer = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
tokenizer.enable_truncation(facts["max_length"])
coded = tokenizer.encode({texts})
ids = {{"input_ids": coded.ids, "attention_mask": coded.attention_mask,
       "token_type_ids": coded.type_ids}}
scores = session.run(
    None, {{each.name: numpy.array([ids[each.name]]) for each in session.get_inputs()}}
)[0][0]
print({answer})
```

`stillhouse predict onnx/model.onnx rows.csv` answers many rows.

"""
SMALLER = " (`model-int8.onnx` is the smaller one)"
INT8 = "The file's {told}.\n\n"
APART = ": ask it about one row at a time where an answer must not depend on others"
PIPELINES = {"masked_lm": "fill-mask", "span": "question-answering"}


def _latency(value: float | None) -> str:
    return "not measured" if value is None else f"{value:.2f} ms"


TITLES = {
    "student": "A distilled student of {teacher}",
    "baseline": "The baseline of a distilled student of {teacher}",
}
MADE = {
    "student": "",
    "baseline": "It has the student's shape and starting weights, and learnt from gold answers "
    "only, without the teacher.\n\n",
}


def _cost(record: Record) -> str:
    told = cost_told(record.student.tokens, record.student.batch, record.student.batch_tokens)
    known = told and record.student.latency_ms is not None
    return f"{told[:1].upper()}{told[1:]}.\n\n" if known else ""


def onnx_usage(record: Record, inference: Inference | None) -> str:
    """How to use the ONNX file, with what int8 owes to a batch; nothing where there is none, and
    no code for answers in passages, whose windows take more than ten lines."""
    if inference is None or not record.exports:
        return ""
    found = ""
    if inference.task in ("classification", "regression"):
        texts = '"...", "..."' if inference.pair else '"..."'
        value = inference.task == "regression"
        answer = "scores[0]" if value else 'facts["labels"][scores.argmax()]'
        small = any(each.format == "onnx-int8" for each in record.exports)
        found = ONNX_USAGE.format(texts=texts, answer=answer, smaller=SMALLER if small else "")
    for each in record.exports:
        if each.batches is not None:
            told = batches_told(**each.batches.model_dump(), metric=record.metric)
            found += INT8.format(told=told + (APART if each.batches.changed else ""))
    return found


def _known(record: Record) -> str:
    """The run's warnings as a list; nothing where there are none."""
    listed = "".join(f"- {warning}\n" for warning in record.warnings)
    return f"## What to know\n\n{listed}\n" if listed else ""


def model_card(
    record: Record,
    *,
    teacher: str,
    role: Literal["student", "baseline"] = "student",
    inference: Inference | None = None,
) -> str:
    """Markdown for the student of `record`, or for its baseline, which there must be and which is
    not exported. `inference`: what stands beside the model, and beside the student's ONNX files."""
    found = [m for m in (record.teacher, record.student, record.baseline) if m is not None]
    rows = "\n".join(
        f"| {m.name} | {m.score:.4f} | {m.interval[0]:.4f} to {m.interval[1]:.4f} | "
        f"{m.parameters:,} | {_latency(m.latency_ms)} |"
        for m in found
    )
    data, model = record.data, record.baseline if role == "baseline" else record.student
    assert model is not None, "only a baseline that was trained has a card"
    shipped = ""
    if len(model.seeds) > 1 and model.shipped_score is not None:
        shipped = (
            f"Scores are means over {len(model.seeds)} seeds, on the test rows. These weights are "
            f"of seed {model.shipped_seed}, which was the best on the held-out rows; on the test "
            f"rows it scores {model.shipped_score:.4f}.\n\n"
        )
    masked = record.task == "masked_lm"
    facts = data.model_dump()
    if masked:
        made = BLOCKS.format(**facts, perplexity=model.metrics["perplexity"])
    else:
        made = ROWS.format(**facts)
        if data.labels:
            made += f"\nLabels: {', '.join(data.labels)}."
    usage = {"masked_lm": MASKED_USAGE, "span": SPAN_USAGE}.get(record.task)
    paired = inference is not None and inference.pair
    texts = '{"text": "...", "text_pair": "..."}' if paired else '"..."'
    return TEMPLATE.format(
        pipeline=PIPELINES.get(record.task, "text-classification"),
        title=TITLES[role].format(teacher=teacher),
        sentence=record.sentence,
        metric=record.metric,
        rows=rows,
        cost=_cost(record),
        shipped=shipped,
        onnx=onnx_usage(record, inference) if role == "student" else "",
        usage=usage or USAGE.format(texts=texts),
        known=_known(record),
        made=MADE[role] + made,
    )
