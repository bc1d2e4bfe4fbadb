"""Settings of models that write: how they are judged, decoded, taught by several, and by what they
write themselves."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from stillhouse.core.terms import Config, Positive

Above = Annotated[float, Field(gt=0)]


class WritingConfig(Config):
    """How texts are written to be judged. `beams` of the search (a greedy one is made too);
    hypotheses are compared by log-probability / tokens^length_penalty; a text has at most
    `max_tokens` (left out: twice its source's and ten more). Where `beams` or `length_penalty` are
    left out, the model's own generation settings say, or else they are 5 and 1."""

    beams: Positive | None = None
    length_penalty: Annotated[float, Field(ge=0)] | None = None
    max_tokens: Positive | None = None
    batch_tokens: Positive = 4096


class DecodeConfig(Config):
    """The teacher's texts to the training sources (Kim & Rush 2016). Stages with targets decoded
    learn its best one; with targets closest the one of `best` (left out: of all beams') that is
    closest to the gold text by smoothed sentence BLEU: halving (theirs) or add_one (Marian's).
    Where `beams` or `length_penalty` are left out, the teacher's own generation settings say, or
    else they are 5 and 1.

    Left out are texts that are empty, repeat themselves, did not come to an end, or whose length
    is not within `ratio` times what the corpus's mean ratio lets expect."""

    beams: Positive | None = None
    best: Positive | None = None
    length_penalty: Annotated[float, Field(ge=0)] | None = None
    max_tokens: Positive | None = None
    batch_tokens: Positive = 4096
    smoothing: Literal["halving", "add_one"] = "halving"
    ratio: tuple[Above, Above] = (0.4, 2.5)

    @model_validator(mode="after")
    def _possible(self) -> DecodeConfig:
        if self.beams and self.best and self.best > self.beams:
            raise ValueError(f"best {self.best} of {self.beams} beams: raise beams, or lower best")
        if self.ratio[0] >= self.ratio[1]:
            raise ValueError(f"ratio goes from the shorter to the longer, got {self.ratio}")
        return self


class OnPolicyConfig(Config):
    """A `share` of a stage's batches is written by the student itself, sampled at `temperature`
    from the `top_k` likeliest tokens (0: all), and scored by the teacher. Agarwal et al. 2024
    (GKD)."""

    share: Annotated[float, Field(gt=0, le=1)] = 0.5
    temperature: Above = 1.0
    top_k: Annotated[int, Field(ge=0)] = 0
    max_tokens: Positive = 64


class TeacherConfig(Config):
    """One of several teachers: its share in a mean or a draw, or the group of rows it answers."""

    model: str
    weight: Above = 1.0
    group: str | None = None


class PassingConfig(Config):
    """When a group's teacher is switched off: once the student's score on held-out rows of the
    group is `margin` above its (Tan et al. 2019). always: never. adaptive: as their code's."""

    rule: Literal["threshold", "always", "adaptive"] = "threshold"
    margin: float = 1.0
