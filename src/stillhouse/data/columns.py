"""Which columns of a file hold the text, the label and the rest: named, or the usual names."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

from stillhouse.core.errors import DataError
from stillhouse.data.turns import CONVERSATIONS

TEXT = ("text", "sentence", "sentence1", "premise", "question1", "content", "review", "message")
PAIR = ("pair", "sentence2", "hypothesis", "question2", "text_pair")
OTHER = ("question", "passage", "context", "answer", "query", "title", "body", "document")
SQUAD = ("question", "context", "answers")  # text, pair and label of span question answering
LABEL = ("label", "labels", "intent", "category", "class", "target", "score")
SOURCE = ("source", "prompt", "instruction", "input", "article", "document", "question", "text")
TARGET = ("target", "completion", "response", "summary", "translation", "output", "answer", "label")
LIKE_TEXTS = (*TEXT, *PAIR, *OTHER)
GROUP = ("group", "language", "lang", "task")


@dataclass(frozen=True)
class Columns:
    """Which columns hold what. None: there is none (label) or the usual names are tried (text).
    texts: the label is a text too, the answer to be written; what is written for one source twice
    is no contradiction."""

    text: str | None = None
    pair: str | None = None
    label: str | None = None
    group: str | None = None
    texts: bool = False

    def find(self, names: Iterable[str], where: str, *, labelled: bool) -> Columns:
        """The columns as they are in a file. Raises DataError that lists what is there."""
        have = [name.encode(errors="replace").decode() for name in names]

        lower = {name.lower(): name for name in reversed(have)}
        whole = next((lower[name] for name in CONVERSATIONS if name in lower), None)
        named = self.text is None or (self.text == whole and self.label is None)
        if self.texts and whole is not None and named:
            group = self._present(self.group, have, where)
            return replace(self, text=whole, pair=None, label=None, group=group)
        if self == Columns() and {*SQUAD[: 3 if labelled else 2]} <= {*have}:
            return Columns(*SQUAD) if labelled else Columns(*SQUAD[:2])

        def pick(asked: str | None, usual: tuple[str, ...], *, need: str | None) -> str | None:
            if asked is not None:
                return self._present(asked, have, where)
            found = next((lower[name] for name in usual if name in lower), None)
            if found is None and need:
                hint = f"say which with --{need}-column"
                if not {*lower} & {*TEXT, *PAIR, *OTHER, *LABEL, *SOURCE, *TARGET}:
                    hint += " (its first line, or each object, names the columns)"
                raise DataError(
                    f"{where} has no {need} column; it has {', '.join(have) or 'none'}: {hint}"
                )
            return found

        group = self._present(self.group, have, where)
        if self.texts:
            text = pick(self.text, SOURCE, need="text")
            usual = tuple(name for name in TARGET if lower.get(name) != text)
            label = pick(self.label, usual, need="label") if labelled else None
            return replace(self, text=text, pair=None, label=label, group=group)
        text = pick(self.text, TEXT, need="text")
        label = pick(self.label, LABEL, need="label") if labelled else None
        usual_pair = tuple(name for name in PAIR if name != text)
        return Columns(text, pick(self.pair, usual_pair, need=None), label, group)

    @staticmethod
    def _present(asked: str | None, have: list[str], where: str) -> str | None:
        """`asked`, which may also be a field inside the objects of a column: text.body."""
        if asked is None or asked in have or ("." in asked and asked.split(".")[0] in have):
            return asked
        raise DataError(f"{where} has no column {asked!r}; it has {', '.join(have) or 'none'}")

    def unread(self, names: Iterable[str], asked: Columns) -> list[str]:
        """Columns that look like texts and are not read, where none were asked for by name."""
        if asked.text is not None or asked.pair is not None or asked.texts:
            return []
        read = (self.text, self.pair, self.label)
        return [name for name in names if name not in read and name.lower() in LIKE_TEXTS]

    def guessed(self, asked: Columns) -> str | None:
        """What was guessed of these, which were found: None if all that is read was asked for."""
        kinds = {"text": "text", "pair": "pair", "label": "labels"}
        found = [
            f"{said} from column {name}"
            for kind, said in kinds.items()
            if (name := getattr(self, kind)) is not None and name != getattr(asked, kind)
        ]
        return ", ".join(found) or None
