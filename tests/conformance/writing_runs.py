"""Settings of models that write, each in a run of test_writing_options.py. TEACHER and OTHER stand
for the folders of two teachers."""

from __future__ import annotations

from typing import Any

SOFT = [{"kind": "soft"}]
BY_GROUP = {
    "teachers": [{"model": "TEACHER", "group": "de"}, {"model": "OTHER", "group": "fr"}],
    "combine": "route",
    "data": {"group": "language"},
}


def stage(**settings: Any) -> dict[str, Any]:
    return {"stages": [{"name": "only", "objective": [{"kind": "gold"}], **settings}]}


RUNS: dict[str, dict[str, Any]] = {
    "live": {"task": "seq2seq", "label": {"tokens": "live"}, "training": {"head_memory_mb": 1}},
    "hard": {"objective": [{"kind": "hard"}]},
    "sparse": {"label": {"tokens": "sparse", "top": 3, "drawn": 5, "estimator": "auto"}},
    "tail": {
        "label": {"tokens": "sparse", "top": 6, "drawn": 0, "estimator": "tail"},
        "objective": [{"kind": "soft", "divergence": "jsd", "beta": 0.3}],
    },
    "sampled": {"label": {"tokens": "sparse", "top": 0, "drawn": 6, "estimator": "sampled"}},
    "renormalised": {"label": {"tokens": "sparse", "estimator": "renormalised"}},
    "gold-targets": {"stages": [{"name": "word", "objective": SOFT, "targets": "gold"}]},
    "decoded": {
        **stage(targets="decoded"),
        "decode": {
            "beams": 3,
            "best": 2,
            "length_penalty": 0.5,
            "max_tokens": 20,
            "batch_tokens": 300,
            "ratio": [0.01, 50.0],
        },
    },
    "halving": {**stage(targets="closest"), "decode": {"smoothing": "halving"}},
    "add_one": {**stage(targets="closest"), "decode": {"smoothing": "add_one"}},
    "on-policy": {
        "stages": [
            {
                "name": "only",
                "objective": SOFT,
                "on_policy": {"share": 1.0, "temperature": 0.7, "top_k": 5, "max_tokens": 9},
            }
        ]
    },
    "mean": {
        "teachers": [{"model": "TEACHER", "weight": 2.0}, {"model": "OTHER"}],
        "combine": "mean",
    },
    "random": {"teachers": [{"model": "TEACHER"}, {"model": "OTHER"}], "combine": "random"},
    "route": BY_GROUP,
    "threshold": {**BY_GROUP, "passing": {"rule": "threshold", "margin": 2.0}},
    "always": {**BY_GROUP, "passing": {"rule": "always"}},
    "adaptive": {**BY_GROUP, "passing": {"rule": "adaptive"}},
    "bleu": {"evaluation": {"metric": "bleu"}, "data": {"target_length": 12}},
    "chrf": {
        "evaluation": {"metric": "chrf"},
        "writing": {"beams": 3, "length_penalty": 0.3, "max_tokens": 15, "batch_tokens": 200},
    },
    "log_likelihood": {"evaluation": {"metric": "log_likelihood"}},
    "shallow": {"student": {"layers": 1, "decoder_layers": 1}},
    "prompts": {"task": "causal_lm", "data": {"separator": " -> "}},
}
