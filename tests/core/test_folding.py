"""What nobody tells apart is one text once it is folded."""

from __future__ import annotations

import sys
import time
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stillhouse.core.folding import INVISIBLE, folded

FORMS = ("NFC", "NFD", "NFKC", "NFKD")
CASES = (str.upper, str.lower, str.title, str.swapcase, str.casefold)


def test_every_character_is_one_with_its_cases_and_forms() -> None:
    """All of Unicode, each between two letters, where a mark finds something to sit on."""
    bad = []
    for code in (*range(0xD800), *range(0xE000, sys.maxunicode + 1)):
        plain = chr(code)
        others = {change(plain) for change in CASES}
        others |= {unicodedata.normalize(form, plain) for form in FORMS} - {plain}
        for other in others - {plain}:
            if folded(f"a{plain}b") != folded(f"a{other}b"):
                bad.append((hex(code), other))
    assert bad == []


def test_no_invisible_character_is_left() -> None:
    for code in (0x00, 0x7F, 0xAD, 0x200B, 0x200D, 0x2060, 0x202E, 0xFE0F, 0xFEFF, 0xFFF9, 0xE0041):
        assert folded(f"a{chr(code)}b") == "ab"
        assert INVISIBLE.fullmatch(chr(code))


@pytest.mark.parametrize("text", ["a film", "été, naïve", "жизнь", "映画は面白い", "영화", "ταΐζω"])
def test_text_that_is_folded_stays_as_it_is(text: str) -> None:
    """NFKC and one casefold, as rows were folded before: splits of such texts stay."""
    assert folded(text) == unicodedata.normalize("NFKC", text).casefold()


@given(st.text())
def test_folding_twice_is_folding_once(text: str) -> None:
    assert folded(folded(text)) == folded(text)


@given(st.text(), st.sampled_from(FORMS))
def test_no_unicode_form_changes_a_folded_text(text: str, form: str) -> None:
    assert folded(unicodedata.normalize(form, text)) == folded(text)


@pytest.mark.parametrize(
    ("one", "other"),
    [("Ü ber", "uber"), ("resume", "résumé"), ("a b", "ab"), ("don't", "don’t"), ("日本", "日木")],
)
def test_what_one_can_tell_apart_stays_apart(one: str, other: str) -> None:
    assert folded(one) != folded(other)


def test_a_long_text_is_folded_within_bounds() -> None:
    """U+FDFA stands for eighteen characters. Case, white space and what is not seen go in all of a
    text, its Unicode form in the first characters only."""
    long = "Ä\u200b  " * 1000
    assert folded(long, most=10) == folded(long)
    assert folded("\ufdfa" * 50, most=10) == folded("\ufdfa" * 10) + "\ufdfa" * 40
    begun = time.process_time()
    folded("\ufdfa" * 1_200_000, most=1 << 15)
    assert time.process_time() - begun < 2  # without a bound 5 s and more
