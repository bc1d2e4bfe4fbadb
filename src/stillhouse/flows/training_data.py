"""What a model was trained on, written beside its weights, and asked of every model that a run
starts from: a score on rows that a model has seen is flattered."""

from __future__ import annotations

import shutil
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from stillhouse.core.errors import DataError
from stillhouse.core.rundir import atomic
from stillhouse.data.corpus import Corpus
from stillhouse.data.sources import Splits, shared
from stillhouse.models.load import resolve

# In a model's folder: folded keys of the rows (of running text, the lines) that it was trained on,
# and of those that chose its checkpoint.
TRAINED_ON = "trained-on.npy"
SELECTED_ON = "selected-on.npy"
SEEN = {
    TRAINED_ON: "was trained on {found}: scores on them are flattered",
    SELECTED_ON: "chose its checkpoint on {found}: scores on them are somewhat flattered",
}


def write_training_data(
    folder: Path, data: Splits | Corpus, *, before: Iterable[str], unlabelled: bool = False
) -> None:
    """Leaves in a model's folder which data it was trained on and which selected it. `before`:
    models that it knows something from; what they have seen it has seen. `unlabelled`: whether it
    learnt from unlabelled rows too."""
    folders = [found for name in before if isinstance(found := resolve(name), Path)]
    if isinstance(data, Corpus):
        keys = {TRAINED_ON: data.lines_N2["train"], SELECTED_ON: data.lines_N2["held_out"]}
    else:
        trained = data.train if unlabelled else data.labelled
        keys = {TRAINED_ON: trained.folded_N2, SELECTED_ON: data.held_out.folded_N2}
    for name, keys_N2 in keys.items():
        with atomic(folder / name) as temporary, temporary.open("wb") as file:
            theirs = [_keys(each / name) for each in folders if (each / name).is_file()]
            np.save(file, np.unique(np.concatenate([keys_N2, *theirs]), axis=0))


def copy_training_data(source: Path, folder: Path) -> None:
    """Leaves beside a model's exports what its own folder says that it was trained on."""
    if source.resolve() == folder.resolve():
        return
    for name in SEEN:
        if (source / name).is_file():
            with atomic(folder / name) as temporary:
                shutil.copyfile(source / name, temporary)
        else:
            (folder / name).unlink(missing_ok=True)  # of another model's export


def seen_before(models: Iterable[tuple[str, str | Path]], data: Splits | Corpus) -> list[str]:
    """A warning for each model that has seen data to report on, if it says what it has seen: what
    it is, and its name, or the folder (a Path) that holds what it says. Raises DataError for a file
    that is damaged."""
    reported_N2, unit = _reported(data)
    notes: list[str] = []
    for what, name in models:
        folder = _place(name)
        for file, sentence in SEEN.items():
            if isinstance(folder, Path) and (folder / file).is_file():
                count = int(shared(reported_N2, _keys(folder / file)).sum())
                found = f"{count} of the {len(reported_N2)} {unit} to report on"
                notes += [f"{what} {sentence.format(found=found)}"] if count else []
    return notes


def seen_share(models: Iterable[tuple[str, str | Path]], data: Splits | Corpus) -> float:
    """The largest share of the data to report on that one of the models was trained on, if it says
    so; `models` as for `seen_before`."""
    reported_N2, _ = _reported(data)
    folders = [found for _, name in models if isinstance(found := _place(name), Path)]
    known = [folder / TRAINED_ON for folder in folders if (folder / TRAINED_ON).is_file()]
    shares = [float(shared(reported_N2, _keys(path)).mean()) for path in known]
    return max(shares, default=0.0) if len(reported_N2) else 0.0


def _place(name: str | Path) -> Path | str:
    return name if isinstance(name, Path) else resolve(name)


def _reported(data: Splits | Corpus) -> tuple[np.ndarray, str]:
    """Folded keys of what is reported on, and what each is of."""
    if isinstance(data, Corpus):
        return data.lines_N2["reported"], "lines"
    return data.reported.folded_N2, "rows"


def _keys(path: Path) -> np.ndarray:
    try:
        keys_N2 = np.load(path)
    except (OSError, ValueError, EOFError) as error:
        raise DataError(f"can't read {path}: delete it, or copy it again") from error
    if keys_N2.dtype != np.dtype("<u8") or keys_N2.shape[1:] != (2,):
        raise DataError(f"{path} holds no keys of rows: delete it, or copy it again")
    return keys_N2
