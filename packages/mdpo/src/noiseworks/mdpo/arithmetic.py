"""Exact arithmetic on text that a model wrote: a small parser, never Python's own evaluation."""

import re
from fractions import Fraction

# Bounds that keep the time linear and the numbers small, whatever the text is.
MAX_CHARACTERS = 512
MAX_DIGITS = 15
MAX_DEPTH = 32
_TOKEN = re.compile(r"\s*(?:(\d+(?:\.\d+)?|\.\d+)|([-+*/()]))")


class ArithmeticSyntaxError(ValueError):
    """Text that is no arithmetic expression, or one beyond the parser's bounds."""


def tokenize(text: str) -> list[str]:
    """Split an expression into numbers, operators and brackets.

    Raises:
        ArithmeticSyntaxError: On any other character, and on too long text or numbers.
    """
    if len(text) > MAX_CHARACTERS:
        raise ArithmeticSyntaxError(f"longer than {MAX_CHARACTERS} characters")
    tokens, position, text = [], 0, text.rstrip()
    while position < len(text):
        found = _TOKEN.match(text, position)
        if found is None:
            raise ArithmeticSyntaxError(f"unexpected character {text[position]!r}")
        tokens.append(found.group(1) or found.group(2))
        if len(tokens[-1]) > MAX_DIGITS:
            raise ArithmeticSyntaxError(f"a number of more than {MAX_DIGITS} digits")
        position = found.end()
    return tokens


class _Parser:
    """Recursive descent: sum of products of signed numbers and brackets."""

    def __init__(self, tokens: list[str]) -> None:
        self.tokens, self.position, self.depth = tokens, 0, 0

    def peek(self) -> str:
        return self.tokens[self.position] if self.position < len(self.tokens) else ""

    def take(self) -> str:
        token = self.peek()
        self.position += 1
        return token

    def sum(self) -> Fraction:
        value = self.product()
        while self.peek() in ("+", "-"):
            value = value + self.product() if self.take() == "+" else value - self.product()
        return value

    def product(self) -> Fraction:
        value = self.factor()
        while self.peek() in ("*", "/"):
            if self.take() == "*":
                value *= self.factor()
                continue
            divisor = self.factor()
            if divisor == 0:
                raise ArithmeticSyntaxError("division by zero")
            value /= divisor
        return value

    def factor(self) -> Fraction:
        self.depth += 1
        if self.depth > MAX_DEPTH:
            raise ArithmeticSyntaxError(f"nested deeper than {MAX_DEPTH}")
        token = self.take()
        if token in ("+", "-"):
            value = self.factor() if token == "+" else -self.factor()
        elif token == "(":
            value = self.sum()
            if self.take() != ")":
                raise ArithmeticSyntaxError("a bracket is not closed")
        elif token[:1].isdigit() or token[:1] == ".":
            value = Fraction(token)
        else:
            raise ArithmeticSyntaxError(f"expected a number or a bracket, got {token!r}")
        self.depth -= 1
        return value


def evaluate(text: str) -> Fraction:
    """Return the exact value of an expression of numbers, + − * / and brackets.

    Raises:
        ArithmeticSyntaxError: When the text is none, divides by zero or is beyond the bounds.
    """
    parser = _Parser(tokenize(text))
    value = parser.sum()
    if parser.peek():
        raise ArithmeticSyntaxError(f"unexpected {parser.peek()!r}")
    return value


def numbers_in(text: str) -> list[int]:
    """Return the whole numbers of an expression, in order.

    Raises:
        ArithmeticSyntaxError: When it holds anything but numbers, operators and brackets, or a decimal.
    """
    numbers = [token for token in tokenize(text) if token not in "+-*/()"]
    if any("." in number for number in numbers):
        raise ArithmeticSyntaxError("a decimal number")
    return [int(number) for number in numbers]
