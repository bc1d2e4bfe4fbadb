"""From nothing to a small translator: a tokenizer, a teacher, and a student of its texts.

python examples/small_translator.py

It translates numbers: "three hundred forty-two" into "dreihundertzweiundvierzig".
"""

import json
from pathlib import Path

import stillhouse as sh

ENGLISH = "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen"
ENGLISH += " fifteen sixteen seventeen eighteen nineteen"
GERMAN = "null eins zwei drei vier fünf sechs sieben acht neun zehn elf zwölf dreizehn vierzehn"
GERMAN += " fünfzehn sechzehn siebzehn achtzehn neunzehn"
ENGLISH_TENS = "twenty thirty forty fifty sixty seventy eighty ninety"
GERMAN_TENS = "zwanzig dreißig vierzig fünfzig sechzig siebzig achtzig neunzig"


def english(number: int) -> str:
    if number >= 100:
        rest = number % 100
        return f"{english(number // 100)} hundred" + (f" {english(rest)}" if rest else "")
    if number < 20:
        return ENGLISH.split()[number]
    one, ten = number % 10, ENGLISH_TENS.split()[number // 10 - 2]
    return f"{ten}-{english(one)}" if one else ten


def german(number: int) -> str:
    if number >= 100:
        hundreds = "ein" if number < 200 else german(number // 100)
        rest = number % 100
        return f"{hundreds}hundert" + (german(rest) if rest else "")
    if number < 20:
        return GERMAN.split()[number]
    one, ten = number % 10, GERMAN_TENS.split()[number // 10 - 2]
    return f"{'ein' if one == 1 else german(one)}und{ten}" if one else ten


rows = [{"source": english(number), "target": german(number)} for number in range(1000)]
pairs = Path("numbers.jsonl")
pairs.write_text("".join(f"{json.dumps(row)}\n" for row in rows), encoding="utf-8")

lessons = {"epochs": 25, "lr": 5e-3, "evaluations": 2}
sh.new("seq2seq", pairs, out="start", vocabulary=350, width=64, layers=1)
sh.finetune("start", pairs, out="translator", task="seq2seq", metric="chrf", training=lessons)
run = sh.distill(
    "translator",
    pairs,
    method="seq-kd",
    task="seq2seq",
    student={"width": 32, "layers": 1, "heads": 2},
    training=lessons,
    evaluation={"metric": "chrf"},
    out="small-translator",
    seeds=1,
)

record = run.record
print(record.sentence)
print("teacher  ", record.teacher.metrics)
print("student  ", record.student.metrics)
print("baseline ", record.baseline.metrics)
for stage in record.decoded:
    print(f"{stage.texts} of the teacher's texts; left out: {stage.dropped or 'none'}")
