"""Distil by stages of one's own, see which terms counted, and look inside both models.

python examples/inside_the_teacher.py my-teacher reviews.csv
"""

import sys

import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

import stillhouse as sh

teacher, data = sys.argv[1:3]
run = sh.distill(
    teacher=teacher,
    data=data,
    student=sh.layers(3),
    out="small-inside",
    stages=[
        {
            "name": "inside",
            "objective": [{"kind": "hidden"}, {"kind": "attention"}],
            "training": {"epochs": 2, "select": "last"},
        },
        {"name": "answers", "objective": [{"kind": "soft", "temperature": 2.0}, {"kind": "gold"}]},
    ],
    evaluation={"ablation": True},
)

print(run.record.sentence)
for each in run.record.ablations:
    print(f"without {each.without}: {each.score:.4f}, {each.verdict}, {each.gain.interval}")
for line in run.record.diagnosis:
    print(line)

tokenizer = AutoTokenizer.from_pretrained(teacher)
batch = tokenizer("The soup was cold.", return_tensors="pt")
scores = sh.Tap("scores", layer=1)
for name in (teacher, "small-inside/student"):
    model = AutoModelForSequenceClassification.from_pretrained(name).eval()
    with torch.no_grad(), sh.reading(model, [scores]) as found:
        model(**batch)
    print(name, tuple(found[scores].shape))
