"""What a distillation is made of, loaded and checked."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from stillhouse.core.config import WRITING, DistillConfig
from stillhouse.core.precision import Auto
from stillhouse.data.corpus import Corpus
from stillhouse.data.documents import file_digest, text_files
from stillhouse.data.encoding import tokenizer_fingerprint, tokens_identity
from stillhouse.data.sources import Splits
from stillhouse.data.tokens import same_tokens
from stillhouse.models.load import fingerprint, folder_fingerprint, resolve
from stillhouse.tasks.base import Task
from stillhouse.training.objective import Objective
from stillhouse.training.sparse import MASKS

Make = Callable[[int], PreTrainedModel]


@dataclass
class Setup:
    """Everything checked and ready. A run is on rows (`splits`) or on running text (`corpus`)."""

    config: DistillConfig
    task: Task
    splits: Splits | None
    corpus: Corpus | None
    teacher: PreTrainedModel
    teacher_tokenizer: PreTrainedTokenizerBase
    tokenizer: PreTrainedTokenizerBase
    make: Make
    store: Path
    length: int
    teacher_length: int
    teachers: dict[str, PreTrainedModel]  # of single stages, by name
    objectives: dict[str, Objective]  # by stage
    auto: Auto  # what `precision: auto` is in `config`
    doubts: list[str] = field(default_factory=list)  # found in the dry run

    @property
    def rows(self) -> Splits:
        assert self.splits is not None, "asked of runs on rows only"
        return self.splits

    @property
    def data(self) -> Splits | Corpus:
        found = self.splits or self.corpus
        assert found is not None
        return found

    @property
    def notes(self) -> list[str]:
        found = [*self.data.notes, *self.doubts]
        named = self.config.student.model or self.config.student.source
        if named and isinstance(folder := resolve(named), Path) and (folder / MASKS).is_file():
            found.append(f"the masks of {named} are not held: its zeros are trained like the rest")
        return found

    @property
    def writes(self) -> bool:
        """Whether its models write texts."""
        return self.config.task in WRITING

    @property
    def same_tokens(self) -> bool:
        if self.writes and self.length == self.teacher_length:
            shown = (self.tokenizer.chat_template, self.teacher_tokenizer.chat_template)
            alike_ids = same_tokens(self.tokenizer, self.teacher_tokenizer, []) is None
            return alike_ids and shown[0] == shown[1]
        return alike(self.tokenizer, self.teacher_tokenizer) and self.length == self.teacher_length

    @property
    def same_inputs(self) -> bool:
        """Whether the student's tokens, all of them, are what the teacher takes."""
        mine, theirs = self.tokenizer, self.teacher_tokenizer
        return self.same_tokens and mine.model_input_names == theirs.model_input_names

    @property
    def content(self) -> dict[str, str]:
        """Fingerprints of what the config names by path."""
        named_tokens = tokens_identity if self.writes else tokenizer_fingerprint
        found = {
            "teacher": fingerprint(self.teacher),
            "teacher's tokenizer": named_tokens(self.teacher_tokenizer),
            "data": self.data.fingerprint,
        }
        if named := self.config.student.model or self.config.student.source:
            found["student's model"] = folder_fingerprint(named)
        for name in self.teachers:
            found[f"teacher {name}"] = folder_fingerprint(name)
        for stage in self.config.stages:
            if stage.corpus:
                files = text_files(stage.corpus)
                digests = {split: file_digest(path) for split, path in files.items()}
                found[f"corpus of stage {stage.name}"] = repr(sorted(digests.items()))
            if stage.augment and stage.augment.vectors:
                vectors = file_digest(Path(stage.augment.vectors))
                found[f"word vectors of stage {stage.name}"] = vectors
            if stage.augment and stage.augment.model:
                model = folder_fingerprint(stage.augment.model)
                found[f"augmentation's model of stage {stage.name}"] = model
        return found


def alike(mine: PreTrainedTokenizerBase, theirs: PreTrainedTokenizerBase) -> bool:
    """Whether two tokenizers make the same tokens of a text."""
    return mine is theirs or tokenizer_fingerprint(mine) == tokenizer_fingerprint(theirs)
