import math

import pytest

from stillhouse.report import format as fmt


@pytest.mark.parametrize(
    ("shown", "expected"),
    [
        (fmt.score(0.9186), "0.919"),
        (fmt.score(-0.0123), "\u22120.012"),
        (fmt.score(23.456), "23.5"),
        (fmt.score(-23.456), "\u221223.5"),
        (fmt.score(math.nan), "not a number"),
        (fmt.signed(0.018), "+0.018"),
        (fmt.signed(-0.018), "\u22120.018"),
        (fmt.interval((-0.004, 0.014)), "\u22120.004 to 0.014"),
        (fmt.p_value(0.0004), "p\u00a0<\u00a00.001"),
        (fmt.p_value(0.28), "p\u00a0=\u00a00.280"),
        (fmt.percent(0.9839), "98.4\u2009%"),
        (fmt.scaled(66_400_000), "66.4\u2009M"),
        (fmt.scaled(999_600, "B"), "1.00\u2009MB"),
        (fmt.scaled(912), "912"),
        (fmt.significant(3.2), "3.20"),
        (fmt.significant(9.996), "10.0"),
        (fmt.significant(1240), "1,240"),
        (fmt.tiny(2.4e-6), "2.4\u00a0\u00d7\u00a010\u207b\u2076"),
        (fmt.tiny(0.18), "0.18"),
        (fmt.seconds(41.2), "41.2\u2009s"),
        (fmt.seconds(734), "12\u2009min 14\u2009s"),
        (fmt.seconds(5125), "1\u2009h 25\u2009min"),
        (fmt.times(4.819), "4.82\u00d7"),
        (fmt.shorten("abcdef", 4), "abc\u2026"),
    ],
)
def test_number_is_shown_as_people_read_it(shown: str, expected: str) -> None:
    assert shown == expected
