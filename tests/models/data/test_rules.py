"""The language of polarity rules: what it says, what it refuses."""

import polars as pl
import pytest

from mixpol_models.data.rules import parse_rule

FRAME = pl.DataFrame(
    {
        "watch": [0.1, 0.5, None, 2.5],
        "click": [1, 0, 1, 0],
        "liked": [False, True, True, False],
        "page": ["home", "feed", "home", "search"],
        "play ms": [10, 20, 30, 40],
        "full": [10, 15, 35, 40],
    }
)


@pytest.mark.parametrize(
    ("rule", "expected"),
    [
        ("watch < 0.3: negative", [False, True, None, True]),
        ("watch < 0.3", [True, False, None, False]),
        ("watch >= 5e-1 : positive", [False, True, None, True]),
        ("click", [True, False, True, False]),
        ("not liked", [True, False, False, True]),
        ("click == 1 or liked and page == 'feed'", [True, True, True, False]),
        ('(click == 1 or liked) and page != "home"', [False, True, False, False]),
        ("page in ['home', 'search']", [True, False, True, True]),
        ("`play ms` in [10, 40]", [True, False, False, True]),
        ("`play ms` >= full", [True, True, False, True]),
        ("not not click", [True, False, True, False]),
        ("watch > -1", [True, True, None, True]),
    ],
)
def test_rules(rule: str, expected: list):
    assert FRAME.select(parse_rule(rule, FRAME.schema)).to_series().to_list() == expected


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        ("", "the end at place 1; expected a column"),
        ("watched > 1", r"names the column 'watched'; expected one of \['click'"),
        ("watch >", "the end at place 8; expected a number"),
        ("watch > 'a lot'", "expected a number, since the column is Float64"),
        ("page == 1", "expected a text in quotes, since the column is String"),
        ("page == click", "expected a text in quotes"),
        ("watch", "expected a comparison, since column 'watch' is Float64"),
        ("watch > 1: good", "'good' at place 12; expected 'positive' or 'negative'"),
        ("watch > 1 click", "'click' at place 11; expected 'and', 'or', ':' or the end"),
        ("watch > 1 + 1", r"'\+ 1' at place 11; expected a rule"),
        ("(watch > 1", "the end at place 11; expected '\\)'"),
        ("page in []", "expected a number or a quoted text"),
        ("and > 1", "'and' at place 1; expected a column"),
        ("watch = 1", "expected a rule"),
        ("__import__('os').system('true')", "expected a rule"),
        ("watch.sum() > 1", "expected a rule"),
        ("not " * 300 + "click", "over 200 words"),
        ("(" * 300 + "click", "over 200 words"),
    ],
)
def test_refusals(rule: str, message: str):
    with pytest.raises(ValueError, match=message) as error:
        parse_rule(rule, FRAME.schema, argument="label")
    assert str(error.value).startswith("label ")


def test_a_column_alone_must_be_0_or_1():
    frame = pl.DataFrame({"x": [0, 1, 2]})
    assert frame.select(parse_rule("x", frame.schema)).to_series().to_list() == [False, True, None]
