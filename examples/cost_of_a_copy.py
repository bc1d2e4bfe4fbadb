"""What a copy of your own classifier costs a stranger who can only ask it.

python examples/cost_of_a_copy.py my-teacher reviews.csv
"""

import sys

import stillhouse as sh

teacher, data = sys.argv[1:3]
run = sh.audit(
    teacher,
    data,
    # the stranger has a public model: here one of your own's shape, with fresh weights
    thieves=[{"source": teacher, "fresh": True, "name": "fresh", "training": {"epochs": 2}}],
    queries={"kinds": ["wiki"], "budgets": [1.0, 4.0]},
    views=["probabilities", "label"],
    seeds=2,
    out="cost-of-a-copy",
)

for copy in run.record.copies:
    print(f"{copy.queries:6,} queries, {copy.view}: {copy.score:.3f}, ${copy.money:.2f}")
print(run.record.sentence)
for leak in run.record.leaks:
    print(f"{leak.name}: {leak.finding}")
