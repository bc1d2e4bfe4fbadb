"""Cut a fine-tuned model to three narrow layers, teach it again, and load it anywhere.

python examples/cut_to_speed.py my-teacher reviews.csv
"""

import sys

from transformers import AutoModelForSequenceClassification

import stillhouse as sh

teacher, data = sys.argv[1:3]
run = sh.remove(
    teacher,
    data,
    out="cut-to-speed",
    layers=3,
    neurons=32,
    recover={"training": {"epochs": 2}, "evaluation": {"seeds": [0, 1]}},
)

for layer in run.removed.layers:
    print(f"layer {layer.layer}: {layer.heads} heads, {layer.neurons} neurons stay")
assert run.run is not None  # it was taught again
print(run.run.record.sentence)
print(f"score {run.run.record.student.score:.3f}, without the teacher's answers", end=" ")
print("-" if run.run.record.baseline is None else f"{run.run.record.baseline.score:.3f}")

student = AutoModelForSequenceClassification.from_pretrained("cut-to-speed/student")
print("student:", type(student).__name__, f"{sum(p.numel() for p in student.parameters()):,}")
