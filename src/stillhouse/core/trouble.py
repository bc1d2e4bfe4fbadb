"""What the operating system refused, in one line, whatever library it comes through.

Python's own functions raise OSError with a number. Libraries in Rust (safetensors, tokenizers),
C++ (Arrow, numpy's tofile) and databases raise errors of their own, with the number or the
system's words somewhere in the text. Errors about values quote what a user wrote, which may be the
same words: their texts are not searched.
"""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Iterator
from pathlib import Path

from stillhouse.core.errors import RunError, StillhouseError, UsageError

AGAIN = "free some space, then the same command goes on from what was kept"
ELSEWHERE = "choose a folder that you may write to"
ADVICE = {
    errno.ENOSPC: AGAIN,
    errno.EDQUOT: AGAIN,
    errno.EFBIG: "raise the limit on a file's size (ulimit -f), or choose another disk",
    errno.EROFS: ELSEWHERE,
    errno.EACCES: ELSEWHERE,
    errno.EPERM: ELSEWHERE,
    errno.ENAMETOOLONG: "choose a shorter path",
    errno.ENOTDIR: "a file is where a folder is due: choose another path",
    errno.EEXIST: "a file is where a folder is due: choose another path",
    errno.EISDIR: "a folder is where a file is due: choose another path",
    errno.ELOOP: "links lead in a circle there: choose another path",
    errno.EMFILE: "raise the limit on open files (ulimit -n)",
}
WRONG = (  # of a path that was given: the call was wrong
    errno.ENAMETOOLONG, errno.ENOTDIR, errno.EEXIST, errno.EISDIR, errno.ELOOP,
)  # fmt: skip
VALUES = (StillhouseError, ValueError, TypeError, LookupError)  # Arrow's among them
LIBRARIES = ("safetensors", "tokenizers", "pyarrow", "sqlite3", "psycopg")
NUMBER = re.compile(r"\(os error (\d+)\)|\[[Ee]rrno (\d+)\]")
WORDS = {os.strerror(number): number for number in ADVICE} | {
    "database or disk is full": errno.ENOSPC,
    "disk I/O error": errno.EIO,
    "attempt to write a readonly database": errno.EROFS,
}
SHORT = re.compile(r"\d+ requested and \d+ written")  # numpy's, of a write that was cut short


def _chain(error: BaseException) -> Iterator[BaseException]:
    """An error, and those that it was raised from."""
    seen: list[BaseException] = []
    found: BaseException | None = error
    while found is not None and found not in seen:
        yield found
        seen.append(found)
        found = found.__cause__


def refused(error: BaseException) -> tuple[int, str | None] | None:
    """The system's number behind an error, and the file if it says which; None for an error that is
    none of the system's."""
    for each in _chain(error):
        if isinstance(each, OSError) and each.errno:
            return each.errno, None if each.filename is None else os.fsdecode(each.filename)
        if isinstance(each, VALUES) and not isinstance(each, OSError):
            continue
        text = str(each)
        if found := NUMBER.search(text):
            return int(found[1] or found[2]), None
        if isinstance(each, OSError) and SHORT.search(text):
            return errno.ENOSPC, None
        for words, number in WORDS.items() if _has_words(each) else ():
            if words in text:
                return number, None
    return None


def _has_words(error: BaseException) -> bool:
    """Whether an error may be told in the system's words: the system's own, a library's, or one of
    no kind, as Rust's are."""
    library = type(error).__module__.partition(".")[0]
    return isinstance(error, OSError) or library in LIBRARIES or type(error) is Exception


def told(error: BaseException) -> StillhouseError | None:
    """`no space left on device: out/x` and what to do, of an error that nobody expected; None for
    one of another kind."""
    found = refused(error)
    if found is None:  # an OSError without a number is a library's own, in its words
        return RunError(str(error)) if isinstance(error, OSError) else None
    number, path = found
    where = f": {path}" if path else ""
    advice = None if number in (errno.EACCES, errno.EPERM) else ADVICE.get(number)  # of reading?
    return _kind(number)(
        f"{_lower(os.strerror(number))}{where}" + (f" ({advice})" if advice else "")
    )


def _kind(number: int) -> type[StillhouseError]:
    return UsageError if number in WRONG else RunError


def unwritten(
    path: Path, error: BaseException, *, kept: str = "", asked: bool = False
) -> StillhouseError | None:
    """The error of a file or folder that couldn't be written, `kept` what is still there of it;
    None where the system refused nothing, or the error says all that already. `asked`: the path is
    the caller's own, and may be wrong. Where another file was refused, such as one that was read
    meanwhile, the error is of that."""
    found = None if isinstance(error, StillhouseError) else refused(error)
    if found is None:
        return None
    if _is_of_another(path, error):
        return told(error)
    reason, advice = _lower(os.strerror(found[0])), ADVICE.get(found[0])
    kind = _kind(found[0]) if asked else RunError
    return kind(f"{reason}: {path} is not written{kept}" + (f": {advice}" if advice else ""))


def _is_of_another(path: Path, error: BaseException) -> bool:
    """Whether an error names files, and none of them is `path`, inside it, above it, or a file
    beside it that is to become it."""
    named = [
        Path(os.fsdecode(name)).absolute()
        for each in _chain(error)
        if isinstance(each, OSError)
        for name in (each.filename, each.filename2)
        if isinstance(name, str | bytes | os.PathLike)
    ]
    whole = path.absolute()
    return bool(named) and not any(
        name.is_relative_to(whole)
        or whole.is_relative_to(name)
        or (name.parent == whole.parent and (whole.name in name.name or name.name[:1] == "."))
        for name in named
    )


def _lower(words: str) -> str:
    return words[:1].lower() + words[1:]
