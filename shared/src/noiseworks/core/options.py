"""Groups of options: one frozen dataclass a group, the same object at the command line, in Python and in the loop.

    @dataclass(frozen=True)
    class Sampling(Options):  # its docstring has a line for each field under "Attributes:"
        temperature: Annotated[float, at_least(0)] = 1.0
        top_k: Annotated[int | None, at_least(1)] = None

    def sample(*, model: str, sampling: Spread[Sampling] = Sampling()) -> dict: ...

A field's annotation is its type and its bounds (of each number, for `Wholes`), which are checked whenever an
object is made; its line under "Attributes:" is the option's help. A command that takes `Spread[Sampling]` has one
option for each field. The module imports nothing heavy, so that a refusal and `--help` answer at once.
"""

import re
from dataclasses import dataclass, fields
from functools import cache
from pathlib import Path
from types import NoneType, UnionType
from typing import (
    TYPE_CHECKING,
    Annotated,
    Any,
    Literal,
    TypeVar,
    Union,
    get_args,
    get_origin,
    get_type_hints,
)

from cyclopts import Parameter
from noiseworks.core.checks import check_choice, check_number
from noiseworks.core.errors import InputError

if TYPE_CHECKING:
    import torch

T = TypeVar("T")
Spread = Annotated[T, Parameter(name="*")]


@dataclass(frozen=True)
class Bound:
    """One side of the range of a number; made by `at_least`, `above`, `at_most` and `below`."""

    low: float | None = None
    high: float | None = None
    low_open: bool = False
    high_open: bool = False


def at_least(low: float) -> Bound:
    """Allow `low` and everything above."""
    return Bound(low=low)


def above(low: float) -> Bound:
    """Allow everything above `low`, without `low` itself."""
    return Bound(low=low, low_open=True)


def at_most(high: float) -> Bound:
    """Allow `high` and everything below."""
    return Bound(high=high)


def below(high: float) -> Bound:
    """Allow everything below `high`, without `high` itself."""
    return Bound(high=high, high_open=True)


def whole_number(kind: type, tokens: Any) -> int:
    """Read a word of the command line as a whole number; 2.5 is not rounded, other scripts' digits are refused.

    Raises:
        ValueError: When the word is anything but ASCII digits with an optional sign.
    """
    (word,) = [token.value for token in tokens]
    if not re.fullmatch(r"[+-]?[0-9]+", word):
        raise ValueError(f"expected a whole number, got {word!r}")
    return int(word)


def seed_number(kind: type, tokens: Any) -> int:
    """Read a word of the command line as a seed, a whole number from 0 to 2^63 - 1.

    Raises:
        ValueError: When it is no whole number, or out of range.
    """
    seed = whole_number(kind, tokens)
    if not 0 <= seed < 2**63:
        raise ValueError(f"expected a seed from 0 to 2^63 - 1, got {seed}")
    return seed


def whole_numbers(kind: type, tokens: Any) -> tuple[int, ...]:
    """Read a word such as 64,256,1024 as whole numbers.

    Raises:
        ValueError: When a part is no whole number.
    """
    (word,) = [token.value for token in tokens]
    parts = [part.strip() for part in word.split(",")]
    if not all(re.fullmatch(r"[+-]?[0-9]+", part) for part in parts):
        raise ValueError(f"expected whole numbers with commas between, got {word!r}")
    return tuple(map(int, parts))


Wholes = Annotated[tuple[int, ...], Parameter(converter=whole_numbers, n_tokens=1)]
# For options of a command that stand in no group.
Whole = Annotated[int, Parameter(converter=whole_number)]
Seed = Annotated[int, Parameter(converter=seed_number)]


class Options:
    """Base of a group of options: checks every field against its annotation, then calls `check`."""

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        for name, hint in vars(cls).get("__annotations__", {}).items():
            if int in _alternatives(hint):
                cls.__annotations__[name] = Annotated[hint, Parameter(converter=whole_number)]

    def __post_init__(self) -> None:
        """Refuse a field that does not fit its annotation.

        Raises:
            InputError: Naming the field, the allowed values and the value.
        """
        for name, rule in rules_of(type(self)).items():
            rule.check(name, getattr(self, name))
        self.check()

    def check(self) -> None:
        """Refuse fields that do not fit each other; a subclass that has such fields overrides this."""


@dataclass(frozen=True)
class Rule:
    """What a field's annotation allows."""

    types: tuple[Any, ...]
    choices: tuple[Any, ...]
    bound: Bound

    def check(self, name: str, value: object) -> None:
        """Refuse a value.

        Raises:
            InputError: Naming the field, the allowed values and the value.
        """
        if value is None and NoneType in self.types:
            return
        if bool in self.types and isinstance(value, bool):
            return
        if self.choices:
            check_choice(name, value, self.choices)
        elif tuple[int, ...] in self.types:
            if not isinstance(value, tuple) or not value:
                raise InputError(f"{name} must be one or more whole numbers, got {value!r}")
            for item in value:
                check_number(name, item, **vars(self.bound), integer=True)
        elif float in self.types or int in self.types:
            if str in self.types and isinstance(value, str):
                return
            check_number(name, value, **vars(self.bound), integer=float not in self.types)
        elif self.types in ((str,), (bool,), (Path,)) and not isinstance(value, self.types):
            kind = {str: "a text", bool: "true or false", Path: "a path"}[self.types[0]]
            raise InputError(f"{name} must be {kind}, got {value!r}")


@cache
def rules_of(cls: type[Options]) -> dict[str, Rule]:
    """Return what each field of a group must be; `check(name, value)` of a rule raises InputError for what is not."""
    hints = get_type_hints(cls, include_extras=True)
    return {field.name: _rule(hints[field.name]) for field in fields(cls)}


def _rule(hint: Any) -> Rule:
    bounds = [bound for bound in _metadata(hint) if isinstance(bound, Bound)]
    lows = [bound for bound in bounds if bound.low is not None]
    highs = [bound for bound in bounds if bound.high is not None]
    low, high = (lows or [Bound()])[0], (highs or [Bound()])[0]
    bound = Bound(low.low, high.high, low.low_open, high.high_open)
    types = _alternatives(hint)
    choices = tuple(word for kind in types if get_origin(kind) is Literal for word in get_args(kind))
    return Rule(types, choices, bound)


def _metadata(hint: Any) -> tuple[Any, ...]:
    return getattr(hint, "__metadata__", ())


def _alternatives(hint: Any) -> tuple[Any, ...]:
    """Return the types that a hint allows, without annotations."""
    if get_origin(hint) is Annotated:
        return _alternatives(get_args(hint)[0])
    if get_origin(hint) in (Union, UnionType):
        return tuple(kind for part in get_args(hint) for kind in _alternatives(part))
    return (hint,)


DtypeName = Literal["auto", "float32", "bfloat16", "float16"]
_DEVICE = re.compile(r"auto|cpu|mps|cuda(:[0-9]+)?")


@dataclass(frozen=True)
class Place(Options):
    """Where a model runs.

    Attributes:
        device: auto (the GPU if there is one), cpu, cuda, cuda:N or mps.
    """

    device: str = "auto"

    def check(self) -> None:
        """Refuse a device that no machine has.

        Raises:
            InputError: Naming the device.
        """
        if not _DEVICE.fullmatch(self.device):
            raise InputError(f"unknown device {self.device!r}; use auto, cpu, cuda, cuda:N or mps")

    def torch_device(self) -> "torch.device":
        """Return the device.

        Raises:
            InputError: When it is not present on this machine.
        """
        from noiseworks.core.devices import resolve_device

        return resolve_device(self.device)


@dataclass(frozen=True)
class Hardware(Place):
    """Where a model runs and in which precision.

    Attributes:
        dtype: Type of the weights: auto (the checkpoint's own), float32, bfloat16 or float16.
    """

    dtype: DtypeName = "auto"

    def torch_dtype(self) -> "torch.dtype | None":
        """Return the type of the weights, or None for the checkpoint's own."""
        from noiseworks.core.devices import resolve_dtype

        return None if self.dtype == "auto" else resolve_dtype(self.dtype)
