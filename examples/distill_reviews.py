"""Distil a teacher of yours in one call, and read what came out.

python examples/distill_reviews.py my-teacher reviews.csv
"""

import sys

import stillhouse as sh

teacher, data = sys.argv[1:3]
run = sh.distill(teacher=teacher, data=data, student=sh.layers(3), out="small")

record = run.record
print(record.sentence)
print("teacher  ", record.teacher.score, record.teacher.latency_ms)
print("student  ", record.student.score, record.student.latency_ms, record.student.seeds)
print("baseline ", record.baseline.score)
print("gain     ", record.gain.value, record.gain.interval, record.gain.p_value)
for export in record.exports:
    print(export.format, export.score, export.latency_ms, export.bytes)
for row in record.disagreements[:3]:
    print(f"{row.text!r}: teacher {row.teacher}, student {row.student}, gold {row.gold}")
