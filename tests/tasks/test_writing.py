"""Scores of models that write."""

import math

import numpy as np
import pytest
import sacrebleu
import torch

from stillhouse.core.errors import RunError
from stillhouse.core.types import Batch
from stillhouse.core.writing import WritingConfig
from stillhouse.tasks.writing import Texts, Tokens, judged, kept, perplexity, unkept

GOLD = torch.tensor([1, 2, 0, 1])


class Two:
    gold_N = GOLD
    answers = ("ein Hund läuft schnell über", "zwei Vögel singen laut heute")

    lengths, keys_N2 = np.array([3, 1]), np.zeros((2, 2), "<u8")

    def __len__(self) -> int:
        return 2

    def batch(self, rows: np.ndarray, rng: np.random.Generator | None = None) -> Batch:
        raise NotImplementedError

    def places(self, rows: np.ndarray) -> np.ndarray:
        raise NotImplementedError

    def scored_counts(self, rows: np.ndarray) -> np.ndarray:
        return np.array([3, 1])[rows]


def test_log_likelihood_is_of_tokens_not_of_texts() -> None:
    task = Tokens("causal_lm", None, width=3)
    scores_NK = torch.tensor([[0.0, 1, 2], [3, 0, 0], [0, 0, 0], [1, 5, 1]])
    found = task.predictions(task.reduce(scores_NK, GOLD).numpy(), Two())
    logp = scores_NK.log_softmax(-1).gather(1, GOLD[:, None])[:, 0]
    score = task.score(found)
    assert score["log_likelihood"] == pytest.approx(float(logp.mean()), rel=1e-6)
    assert score["perplexity"] == pytest.approx(math.exp(-float(logp.mean())), rel=1e-6)
    assert score["accuracy"] == pytest.approx(0.5)
    assert found.answers_N["tokens"].tolist() == [3, 1]
    assert found.right_N is not None
    assert found.right_N.tolist() == [False, False, True, True]
    assert task.agreement(found.answers_N, found.answers_N) == 1.0


def test_a_score_that_is_no_number_ends_the_run() -> None:
    task = Tokens("causal_lm", None, width=3)
    scores_NK = torch.full((4, 3), float("nan"))
    with pytest.raises(RunError, match="not finite in 4 of 4 tokens"):
        task.predictions(task.reduce(scores_NK, GOLD).numpy(), Two())


def test_perplexity_of_a_hopeless_model_is_infinite() -> None:
    assert perplexity(1e5) == math.inf


def test_a_corpus_scores_what_sacrebleu_says() -> None:
    texts = ["ein Hund läuft über", "zwei Vögel singen laut heute"]
    task = Texts("seq2seq", None, width=9, writing=WritingConfig())
    answers = judged(texts, Two.answers)
    gold = [list(Two.answers)]
    assert task.metric_of(answers, np.empty(0), "bleu") == pytest.approx(
        sacrebleu.corpus_bleu(texts, gold).score
    )
    assert task.metric_of(answers, np.empty(0), "chrf") == pytest.approx(
        sacrebleu.corpus_chrf(texts, gold).score
    )
    assert task.agreement(answers, answers) == pytest.approx(1.0)


def test_facts_and_texts_survive_as_numbers() -> None:
    facts = np.array([[12.5, 4, 2, -3.25, -4.5], [1, 1, 0, -0.5, -0.5]])
    greedy, beam = ["ü 𐍈!", ""], ["", "zwei\tVögel"]
    found, texts = unkept(kept(facts, greedy, beam))
    assert np.array_equal(found, facts)
    assert texts == (greedy, beam)


def test_a_texts_task_reports_both_searches_and_its_own_probabilities() -> None:
    task = Texts("seq2seq", None, width=9, writing=WritingConfig())
    facts = np.array([[6.0, 4, 2, math.log(0.5), math.log(0.25)], [2, 4, 4, 0, 0]])
    gold = list(Two.answers)
    found = task.score(task.predictions(kept(facts, ["falsch", gold[1]], gold), Two()))
    assert found["bleu"] == pytest.approx(100.0)
    assert found["bleu_greedy"] < 100
    assert found["perplexity"] == pytest.approx(math.exp(1.0))
    assert found["accuracy"] == pytest.approx(0.75)
    assert found["mode_probability"] == pytest.approx(0.75)
    assert found["greedy_probability"] == pytest.approx(0.625)
