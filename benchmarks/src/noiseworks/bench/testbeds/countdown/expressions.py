"""Exact arithmetic from text: a small parser that never evaluates text as code."""

import re
from collections import Counter
from collections.abc import Iterator
from fractions import Fraction

MAX_CHARACTERS, MAX_DEPTH = 400, 32
_TOKEN = re.compile(r"\s*(?:(\d{1,6})|([-+*/()]))", re.ASCII)


class ExpressionError(ValueError):
    """The text is no arithmetic expression of whole numbers."""


def evaluate(text: str) -> tuple[Fraction, Counter]:
    """Return the exact value of an expression, and how often it uses each number.

    Args:
        text: Whole numbers of at most six digits, `+ - * /` and parentheses nested at most `MAX_DEPTH` deep, at
            most `MAX_CHARACTERS` characters.

    Raises:
        ExpressionError: On anything else, a division by zero included.
    """
    if len(text) > MAX_CHARACTERS:
        raise ExpressionError(f"longer than {MAX_CHARACTERS} characters")
    parser = _Parser(list(_tokens(text)))
    value = parser.sum()
    if parser.tokens[parser.at] is not None:
        raise ExpressionError(f"unexpected {parser.tokens[parser.at]!r}")
    return value, parser.numbers


def _tokens(text: str) -> Iterator[str | None]:
    at, text = 0, text.rstrip()
    while at < len(text):
        match = _TOKEN.match(text, at)
        if match is None:
            raise ExpressionError(f"unexpected {text[at:].strip()[:1]!r}")
        yield match[1] or match[2]
        at = match.end()
    yield None


class _Parser:
    """Recursive descent, a method a rule of the grammar."""

    def __init__(self, tokens: list[str | None]) -> None:
        self.tokens, self.at, self.depth, self.numbers = tokens, 0, 0, Counter()

    def take(self, options: str) -> str | None:
        token = self.tokens[self.at]
        if token is not None and token in options:
            self.at += 1
            return token
        return None

    def sum(self) -> Fraction:
        value = self.product()
        while sign := self.take("+-"):
            other = self.product()
            value = value + other if sign == "+" else value - other
        return value

    def product(self) -> Fraction:
        value = self.factor()
        while sign := self.take("*/"):
            other = self.factor()
            if sign == "/" and other == 0:
                raise ExpressionError("division by zero")
            value = value * other if sign == "*" else value / other
        return value

    def factor(self) -> Fraction:
        if self.take("("):
            self.depth += 1
            if self.depth > MAX_DEPTH:
                raise ExpressionError(f"parentheses nested more than {MAX_DEPTH} deep")
            value = self.sum()
            if not self.take(")"):
                raise ExpressionError("a parenthesis is not closed")
            self.depth -= 1
            return value
        token = self.tokens[self.at]
        if token is None or not token.isdigit():
            raise ExpressionError("a number is missing")
        self.at += 1
        self.numbers[int(token)] += 1
        return Fraction(int(token))


def solves(text: str, numbers: tuple[int, ...], target: int) -> bool:
    """Return whether text reaches the target with every number used exactly once.

    Two forms are right: one expression, as `(7 - 3) * 12`, and steps whose results are used later, as
    `7 - 3 = 4 , 12 * 4 = 48`, each of which must hold.

    Args:
        text: The answer, at most `MAX_CHARACTERS` characters; nothing but the answer.
        numbers: What may and must be used.
        target: What it must give.
    """
    if len(text) > MAX_CHARACTERS:
        return False
    try:
        if "=" not in text:
            value, used = evaluate(text)
            return value == target and used == Counter(numbers)
        left = Counter(map(Fraction, numbers))
        for step in text.split(","):
            expression, separator, stated = step.partition("=")
            value, used = evaluate(expression)
            result, plain = evaluate(stated)
            used = Counter({Fraction(number): count for number, count in used.items()})
            if not separator or sum(plain.values()) != 1 or result != value or sum(used.values()) != 2:
                return False
            if used - left:
                return False
            left = left - used + Counter([value])
        return left == Counter([Fraction(target)])
    except ExpressionError:
        return False
