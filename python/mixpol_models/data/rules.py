"""Polarity rules in words: `watch_ratio < 0.3: negative` becomes a polars expression.

    rule       = condition [":" ("positive" | "negative")]          without a word: positive
    condition  = and-part {"or" and-part}
    and-part   = part {"and" part}
    part       = "not" part | "(" condition ")" | column [comparison]
    comparison = ("<" | "<=" | ">" | ">=" | "==" | "!=") (value | column)
               | "in" "[" value {"," value} "]"
    value      = number | 'text' | "true" | "false"

A column alone must be boolean or an integer that is 0 or 1. A name with other signs stands in backquotes. NaN is a
missing value: whatever it is compared with, the outcome is null, as with null. Nothing is ever evaluated as Python.
"""

from __future__ import annotations

import operator
import re
from collections.abc import Mapping
from dataclasses import dataclass

import polars as pl

_TOKEN = re.compile(
    r"\s*(?:(?P<number>[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?)(?![\w.])|(?P<text>'[^']*'|\"[^\"]*\")|`(?P<quoted>[^`]+)`"
    r"|(?P<word>[^\W\d]\w*)|(?P<sign><=|>=|==|!=|[<>()\[\],:]))"
)
_COMPARE = {
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
    "==": operator.eq,
    "!=": operator.ne,
}
_WORDS = ("and", "or", "not", "in")
_TRUTH = {"true": True, "false": False}
_EXAMPLE = "'watch_ratio < 0.3: negative' or 'is_click == 1 and tab in [0, 1]' are rules"


@dataclass(frozen=True)
class _Token:
    kind: str
    text: str
    place: int


def parse_rule(text: str, schema: Mapping[str, pl.DataType], *, argument: str = "polarity") -> pl.Expr:
    """The expression of a rule: true for positive rows, null where it hangs on a missing value (null or NaN).

    Args:
        text: the rule, in the grammar above.
        schema: the columns it may name, with their types.
        argument: what the rule was given as, for messages.

    Raises:
        ValueError: not a rule, an unknown column, or a comparison of a number with text.

    >>> frame = pl.DataFrame({"watch_ratio": [0.1, 0.9], "tab": [0, 1]})
    >>> frame.select(parse_rule("watch_ratio < 0.3: negative", frame.schema)).to_series().to_list()
    [False, True]
    """
    return _Parser(text, schema, argument).rule()


class _Parser:
    def __init__(self, text: str, schema: Mapping[str, pl.DataType], argument: str) -> None:
        self.text, self.schema, self.argument = text, schema, argument
        self.tokens = self._tokens()
        self.at = 0

    def rule(self) -> pl.Expr:
        positive = self._condition()
        if self._take(":"):
            word = self._next("'positive' or 'negative'")
            if word.text not in ("positive", "negative"):
                raise self._error(word, "'positive' or 'negative'")
            positive = positive if word.text == "positive" else ~positive
        if self._peek().kind != "end":
            raise self._error(self._peek(), "'and', 'or', ':' or the end")
        return positive

    def _condition(self) -> pl.Expr:
        either = self._both()
        while self._take("or"):
            either = either | self._both()
        return either

    def _both(self) -> pl.Expr:
        both = self._part()
        while self._take("and"):
            both = both & self._part()
        return both

    def _part(self) -> pl.Expr:
        # A long row of "not" or "(" must not exhaust the stack.
        if self.at > 200:
            raise ValueError(f"{self.argument} has over 200 words, expected a short rule: make it a column of the data")
        if self._take("not"):
            return ~self._part()
        if self._take("("):
            inside = self._condition()
            self._expect(")")
            return inside
        return self._comparison()

    def _comparison(self) -> pl.Expr:
        left, dtype, name = self._column()
        sign = self._peek()
        if self._take("in"):
            self._expect("[")
            values = [self._value(dtype)]
            while self._take(","):
                values.append(self._value(dtype))
            self._expect("]")
            return pl.any_horizontal(left == value for value in values)
        if sign.text in _COMPARE and sign.kind == "sign":
            self.at += 1
            right = self._peek()
            named = right.kind == "word" and right.text not in _WORDS and not self._is_value(right)
            if named or right.kind == "quoted":
                other, other_dtype, _ = self._column()
                self._same_kind(right, dtype, _is_number(other_dtype))
                return _COMPARE[sign.text](left, other)
            return _COMPARE[sign.text](left, self._value(dtype))
        if dtype == pl.Boolean:
            return left
        if dtype.is_integer():
            # Other values than 0 and 1 are left as null, which the log refuses by name.
            return pl.when(left.is_between(0, 1)).then(left == 1)
        raise self._error(sign, f"a comparison, since column {name!r} is {dtype}")

    def _column(self) -> tuple[pl.Expr, pl.DataType, str]:
        token = self._next("a column")
        if token.kind not in ("word", "quoted") or (token.kind == "word" and token.text in _WORDS):
            raise self._error(token, "a column")
        if token.text not in self.schema:
            raise ValueError(
                f"{self.argument} is {self.text!r}, which names the column {token.text!r}; expected one of "
                f"{sorted(self.schema)}: mend the name"
            )
        dtype = self.schema[token.text]
        if not (_is_number(dtype) or isinstance(dtype, pl.String | pl.Categorical | pl.Enum)):
            raise self._error(token, f"a column of numbers, texts or booleans, and {token.text!r} is {dtype}")
        column = pl.col(token.text)
        # Polars orders NaN above all numbers.
        return column.fill_nan(None) if dtype.is_float() else column, dtype, token.text

    def _is_value(self, token: _Token) -> bool:
        """Whether the word is true or false, and no column's name."""
        return token.kind == "word" and token.text in _TRUTH and token.text not in self.schema

    def _value(self, dtype: pl.DataType) -> pl.Expr:
        token = self._next("a number or a quoted text")
        if self._is_value(token):
            if dtype != pl.Boolean:
                kind = "a number" if _is_number(dtype) else "a text in quotes"
                raise self._error(token, f"{kind}, since the column is {dtype}")
            return pl.lit(_TRUTH[token.text])
        if token.kind not in ("number", "text"):
            raise self._error(token, "a number or a quoted text")
        self._same_kind(token, dtype, token.kind == "number")
        if token.kind == "text":
            return pl.lit(token.text[1:-1])
        return pl.lit(int(token.text) if re.fullmatch(r"[-+]?\d+", token.text) else float(token.text))

    def _same_kind(self, token: _Token, dtype: pl.DataType, number: bool) -> None:
        if _is_number(dtype) != number:
            kind = "a number" if not number else "a text in quotes"
            raise self._error(token, f"{kind}, since the column is {dtype}")

    def _tokens(self) -> list[_Token]:
        tokens, place = [], 0
        end = len(self.text.rstrip())
        while place < end:
            match = _TOKEN.match(self.text, place)
            if match is None:
                rest = self.text[place:].strip()
                raise self._error(_Token("", rest, self.text.index(rest, place)), "a rule")
            kind = match.lastgroup or ""
            tokens.append(_Token(kind, match[kind], match.start(kind)))
            place = match.end()
        return [*tokens, _Token("end", "", end)]

    def _peek(self) -> _Token:
        return self.tokens[self.at]

    def _next(self, expected: str) -> _Token:
        token = self._peek()
        if token.kind == "end":
            raise self._error(token, expected)
        self.at += 1
        return token

    def _take(self, text: str) -> bool:
        token = self._peek()
        taken = token.text == text and token.kind in ("word", "sign")
        self.at += taken
        return taken

    def _expect(self, text: str) -> None:
        if not self._take(text):
            raise self._error(self._peek(), repr(text))

    def _error(self, token: _Token, expected: str) -> ValueError:
        found = repr(token.text) if token.text else "the end"
        return ValueError(
            f"{self.argument} is {self.text!r}, with {found} at place {token.place + 1}; expected {expected}: "
            f"{_EXAMPLE}"
        )


def _is_number(dtype: pl.DataType) -> bool:
    return dtype.is_numeric() or dtype == pl.Boolean
