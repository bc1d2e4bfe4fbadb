"""Loads and checks everything that a run of models that write needs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from stillhouse.core.config import WRITING, DataConfig, DistillConfig, StageConfig
from stillhouse.core.errors import UsageError
from stillhouse.core.progress import Progress
from stillhouse.core.terms import InnerTermConfig, Precision
from stillhouse.core.types import Batch
from stillhouse.core.writing import OnPolicyConfig, WritingConfig
from stillhouse.data.corpus import Corpus, load_corpus
from stillhouse.data.encoding import pad_id
from stillhouse.data.sources import Pool, Splits, load
from stillhouse.data.tokens import same_tokens, word_level_refusal
from stillhouse.data.written import Kind, Rules, gold_texts, tokens_of
from stillhouse.flows.common import corpus_of, cut_note, kind_of, load_answering, trained_length
from stillhouse.flows.conversations import check_rows, forms_of
from stillhouse.flows.training_data import seen_before, seen_share
from stillhouse.models.decode import Decoding, decode
from stillhouse.models.generator import load_generator, used_choices
from stillhouse.models.limits import max_tokens
from stillhouse.models.load import load_tokenizer
from stillhouse.models.rules import not_followed
from stillhouse.tasks.base import Data, Task
from stillhouse.tasks.writing import TEXT_METRICS, Texts, Tokens
from stillhouse.tasks.written import RunningText, Written
from stillhouse.training.on_policy import Write


def is_running_text(data: DataConfig) -> bool:
    """Whether a language model's data are text to go on with, rather than prompts with answers."""
    path = Path(data.path)
    return path.suffix.lower() == ".txt" or (path / "train.txt").is_file()


def check_named(task: str, model: str) -> None:
    """Raises UsageError for a model that writes where its task wasn't asked for."""
    kind = kind_of(model) if task == "auto" else task
    if task == "auto" and kind in WRITING:
        raise UsageError(f"{model} is a model that writes: say so with --task {kind}")


def writing_task(
    kind: Kind,
    metric: str | None,
    writing: WritingConfig,
    tokenizer: PreTrainedTokenizerBase,
    model: PreTrainedModel,
    *,
    texts: bool,
) -> Task:
    """A translation is judged by its text; what goes on with running text, by its tokens. `texts`:
    whether there are answers to judge. Raises UsageError, also where a model and its tokenizer
    don't go together."""
    width = width_of(tokenizer, model)
    if texts and tokenizer.eos_token_id is None:
        raise UsageError("the tokenizer has no end-of-text token: set its eos_token and save it")
    chosen = metric or ("bleu" if kind == "seq2seq" else "log_likelihood")
    if chosen in TEXT_METRICS:
        if not texts:
            raise UsageError(f"running text has no answers to take the {chosen} of")
        return Texts(kind, chosen, width=width, writing=writing)
    return Tokens(kind, chosen, width=width)


def splits_of(data: DataConfig, store: Path, progress: Progress) -> Splits:
    return load(data, store / "rows", texts=True, progress=progress)


def check_writers(
    splits: Splits,
    kind: Kind,
    models: Sequence[tuple[PreTrainedTokenizerBase, PreTrainedModel]],
    progress: Progress,
) -> None:
    """Says what chat templates leave out of the rows, and which generation settings are not
    followed. Raises UsageError, DataError where one of the models can't learn the rows, or would
    not stop after what it has learnt."""
    forms, told = forms_of(splits, kind), set()
    for tokenizer, model in models:
        told |= set(check_rows(forms, tokenizer, model))
        if names := not_followed(model):
            told.add(
                f"of a model's generation settings {', '.join(names)} {_are(names)} not followed: "
                "its generate() may write other texts"
            )
    for note in sorted(told):
        progress.note(note)


def _are(names: Sequence[str]) -> str:
    return "is" if len(names) == 1 else "are"


def corpus_for(
    config: DataConfig, tokenizer: PreTrainedTokenizerBase, store: Path, length: int,
    progress: Progress,
) -> Corpus:  # fmt: skip
    """A language model's running text in blocks. One more token than it reads: the last is only
    predicted."""
    used = corpus_of(config)
    with progress.stage(f"reading {Path(config.path).name}", 1, "files") as advance:
        found = load_corpus(used, tokenizer, store, max_length=length, causal=True)
        advance(1)
    return found


def check_teaching(
    config: DistillConfig,
    mine: PreTrainedTokenizerBase,
    teachers: list[tuple[str, PreTrainedTokenizerBase]],
    probe: list[str],
) -> None:
    """Raises UsageError where a stage compares token by token, and the tokenizers don't cut alike;
    or asks for what models that write don't have."""
    for stage in config.plan:
        _check_stage(stage)
    if not any(_by_token(stage) for stage in config.plan):
        return
    for name, theirs in teachers:
        difference = same_tokens(mine, theirs, probe)
        if difference is not None:
            raise UsageError(f"{word_level_refusal(difference)} (its teacher is {name})")


def check_starts(
    config: DistillConfig, student: PreTrainedModel, teachers: list[PreTrainedModel]
) -> None:
    """Raises UsageError where a stage compares token by token, and a teacher's targets begin with
    another token than the student's: it would be asked about texts it has never seen begin so."""
    if not any(_by_token(stage) for stage in config.plan):
        return
    for teacher in teachers:
        if start_of(student) != start_of(teacher):
            raise UsageError(
                f"the student's targets begin with id {start_of(student)}, its teacher's with "
                f"{start_of(teacher)} (decoder_start_token_id): make them the same, or distil at "
                "sequence level (--method seq-kd)"
            )


def _check_stage(stage: StageConfig) -> None:
    if any(isinstance(term, InnerTermConfig) for term in stage.objective):
        raise UsageError(
            f"stage {stage.name}: inner terms read encoders (BERT and the like); a model that "
            "writes has soft, hard and gold terms"
        )
    if stage.corpus or stage.augment or stage.teacher:
        raise UsageError(
            f"stage {stage.name}: a stage of a model that writes has no corpus, augment or teacher "
            "of its own"
        )
    if stage.on_policy and stage.targets != "gold":
        raise UsageError(
            f"stage {stage.name}: on_policy mixes the data's targets with what the student writes: "
            "leave targets out"
        )
    if stage.on_policy and not _by_token(stage):
        raise UsageError(f"stage {stage.name}: on_policy needs a soft term: the teacher scores")


def _by_token(stage: StageConfig) -> bool:
    """Whether a stage compares the teacher's answers token by token."""
    return any(term.kind in ("soft", "hard") for term in stage.objective)


def written_data(
    pool: Pool,
    tokenizer: PreTrainedTokenizerBase,
    config: DataConfig,
    kind: Kind,
    store: Path,
    progress: Progress,
    title: str,
    *,
    length: int,
    start: int | None,
    answers: Sequence[str | None] | None = None,
) -> Written:
    """A pool in one tokenizer's tokens, at most `length` of each text; with `answers`, these
    instead of its own."""
    rules = Rules(kind, length, min(config.target_length or length, length), config.separator)
    with progress.stage(f"reading {title}", len(pool), "rows") as advance:
        tokens = tokens_of(
            pool, tokenizer, store / "tokens", rules, answers=answers, progress=advance
        )
    if tokens.cut:
        progress.note(cut_note(tokens.cut, len(pool), title, length))
    gold = gold_texts(pool, tokenizer) if answers is None else list(answers)
    return Written(kind, tokens, tokenizer, gold, start)


def load_any(kind: str, name: str) -> PreTrainedModel:
    """A model of any task, by what `kind_of` says of it."""
    if kind in WRITING:
        return load_generator(name, "seq2seq" if kind == "seq2seq" else "causal_lm")
    return load_answering(kind, name)


def reported_by_writer(
    name: str, kind: Kind, config: DataConfig, store: Path, progress: Progress
) -> tuple[PreTrainedModel, Task, Data, Pool | None, float]:
    """A model that writes with the reported rows in its own tokens and as they were read (None for
    running text), and the share of them that it says it was trained on."""
    model, tokenizer = load_generator(name, kind), load_tokenizer(name)
    texts = not (kind == "causal_lm" and is_running_text(config))
    task = writing_task(kind, None, WritingConfig(), tokenizer, model, texts=texts)
    if not texts:
        length = max_tokens(model, config.tokens("masked_lm"))
        corpus = corpus_for(config, tokenizer, store, length, progress)
        seen = _say_seen(name, corpus, progress)
        return model, task, RunningText(corpus.reported, tokenizer), None, seen
    splits = splits_of(config, store, progress)
    for note in splits.notes:
        progress.note(note)
    seen = _say_seen(name, splits, progress)
    check_writers(splits, kind, [(tokenizer, model)], progress)
    pool = splits.reported
    length = max_tokens(model, config.max_length or trained_length(name, kind))
    rows = written_data(
        pool, tokenizer, config, kind, store, progress, "reported rows",
        length=length, start=start_of(model),
    )  # fmt: skip
    return model, task, rows, pool, seen


def _say_seen(name: str, data: Splits | Corpus, progress: Progress) -> float:
    for note in seen_before([(name, name)], data):
        progress.note(note)
    return seen_share([(name, name)], data)


def own_texts(data: Any, config: OnPolicyConfig, precision: Precision) -> Write:
    """What writes a batch anew: the student's own texts to its sources."""
    searching = Decoding(
        beams=1,
        sample=True,
        temperature=config.temperature,
        top_k=config.top_k or None,
        max_tokens=config.max_tokens,
        precision=precision,
    )

    def write(model: nn.Module, batch: Batch, rng: np.random.Generator) -> Batch:
        prompts = data.prompts(batch.rows)
        found = decode(
            model,  # pyright: ignore[reportArgumentType]
            prompts,
            searching,
            pad_id=pad_id(data.tokenizer),
            choices=data.width,
            rng=rng,
        )
        texts = [best.ids if best.end is None else [*best.ids, best.end] for best, *_ in found]
        return data.rewritten(batch.rows, [np.asarray(text, np.int64) for text in texts])

    return write


def width_of(mine: PreTrainedTokenizerBase, model: PreTrainedModel) -> int:
    """How many choices are scored: ids the tokenizer can give. Raises UsageError where the model
    has fewer."""
    used, there = used_choices(mine), int(model.config.vocab_size)
    if used > there:
        raise UsageError(
            f"the tokenizer gives ids up to {used - 1}, and the model's vocabulary has {there}: "
            "resize its embeddings (resize_token_embeddings)"
        )
    return used


def start_of(model: PreTrainedModel) -> int | None:
    """The id before an encoder-decoder's first token. Raises UsageError where it isn't set."""
    if not model.config.is_encoder_decoder:
        return None
    start = model.config.decoder_start_token_id
    if start is None:
        start = model.generation_config.decoder_start_token_id  # pyright: ignore
    if start is None:
        raise UsageError("the model's config has no decoder_start_token_id: set it")
    return int(start)
