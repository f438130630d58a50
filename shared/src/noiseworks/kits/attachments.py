"""One stack of attachments an object: methods that take the place of its methods, and leave in any order.

A method attaches by wrapping bound methods of objects that the user already has (a module's `forward`, a
policy's `encode`), or by replacing plain attributes of them. All that is attached to one method of one object
stands in one stack, the newest outermost; what others have put there (diffusers' hooks, accelerate's, a
function of the user's own) stays where it is, beneath or above. When the last attachment goes, the attribute is
what it was before, bit for bit.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial, reduce
from types import TracebackType
from typing import Any, Literal, Self

from noiseworks.core.errors import InputError, UnsupportedHostError
from torch import nn

_RECORD = "_noiseworks_attached"

Rows = Literal["any", "drops", "keeps"]


@dataclass(frozen=True, eq=False)
class Wrap:
    """A function around a bound method.

    Attributes:
        target: The object.
        function: Called as `function(beneath, *args, **kwargs)` in place of the method; `beneath` is what was
            there before: the method itself, or an older attachment.
        attribute: The method's name.
    """

    target: Any
    function: Callable[..., Any]
    attribute: str = "forward"


@dataclass(frozen=True, eq=False)
class Replace:
    """A value in place of an attribute.

    Attributes:
        target: The object.
        attribute: The attribute's name.
        value: What it holds while this is the newest attachment that replaces it.
    """

    target: Any
    attribute: str
    value: Any


class Attachment:
    """A method that is attached; made by `attach`. A context manager that detaches at its end.

    Attributes:
        name: The method's name.
        rows: What it does with batch rows, see `attach`.
    """

    def __init__(self, name: str, rows: Rows = "any") -> None:
        self.name, self.rows = name, rows
        self._undo: list[Callable[[], None]] = []

    @property
    def attached(self) -> bool:
        """Whether `detach` has not been called yet."""
        return bool(self._undo)

    def detach(self) -> None:
        """Take the method off, whatever was attached before or since; a second call does nothing."""
        while self._undo:
            self._undo.pop()()

    def __enter__(self) -> Self:
        """Return itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Detach."""
        self.detach()


def attach(name: str, parts: Sequence[Wrap | Replace], rows: Rows = "any") -> Attachment:
    """Attach a method: all of its parts, or nothing.

    Args:
        name: The method's name; an object takes each name once.
        parts: What is wrapped and replaced, in this order; later parts stand outside of earlier ones.
        rows: "drops" for a method that evaluates a network on some of the batch rows it is given, "keeps" for
            one that stores things tied to batch rows between calls (a feature cache), "any" for others.

    Returns:
        A handle with `detach()`, which is also a context manager.

    Raises:
        InputError: When a method of this name is attached to one of the objects already.
        UnsupportedHostError: When one method would drop the rows that another keeps.
    """
    targets = _targets(parts)
    for target in targets:
        for other in _attachments_within(target):
            if {other.rows, rows} == {"drops", "keeps"}:
                first, second = (name, other.name) if rows == "drops" else (other.name, name)
                raise UnsupportedHostError(
                    f"{first} drops batch rows between calls and {second} stores outputs by batch row, so they "
                    f"cannot be attached to one {type(target).__name__}: detach {other.name} first"
                )
        if name in attached_to(target):
            raise InputError(f"{name} is attached to this {type(target).__name__} already: detach it first")
    attachment = Attachment(name, rows)
    for target in targets:
        attachment._undo.append(_record(target, attachment))
    for part in parts:
        put_on = _wrap if isinstance(part, Wrap) else _replace
        attachment._undo.append(put_on(part, attachment))
    return attachment


def attached_to(target: Any) -> tuple[str, ...]:
    """Return the names of the methods that are attached to an object, oldest first."""
    return tuple(one.name for one in _attachments_of(target))


class _Stack:
    """Takes the place of a bound method: the attached functions, newest first, and beneath them the method.

    Without functions it only passes calls on. It then stays where somebody else's wrapper has closed over it.
    """

    __slots__ = ("__wrapped__", "base", "chain", "links", "own")

    def __init__(self, base: Callable[..., Any], own: bool) -> None:
        self.base = self.chain = self.__wrapped__ = base  # `inspect.signature` follows __wrapped__
        self.own = own
        self.links: list[tuple[Attachment, Callable[..., Any]]] = []

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.chain(*args, **kwargs)

    def set_links(self, links: list[tuple[Attachment, Callable[..., Any]]]) -> None:
        """Change what is attached; a call in progress goes on as it began."""
        self.links = links
        self.chain = reduce(lambda beneath, link: partial(link[1], beneath), links, self.base)

    def __reduce_ex__(self, protocol: Any) -> Any:
        if self.links:
            raise _no_copy([attachment for attachment, _ in self.links])
        return super().__reduce_ex__(protocol)


class _Slot:
    """The values that attachments put in place of an attribute, and what was there before."""

    def __init__(self, held: dict[str, Any], attribute: str) -> None:
        self.own, self.base = attribute in held, held.get(attribute)
        self.entries: list[tuple[Attachment, Any]] = []


class _Record:
    """What is attached to one object. Copying it is refused, and so is copying the object with it."""

    def __init__(self) -> None:
        self.attachments: list[Attachment] = []
        self.slots: dict[str, _Slot] = {}

    def __reduce_ex__(self, protocol: Any) -> Any:
        # A copy's methods would go on calling the original's, which the attached functions hold.
        raise _no_copy(self.attachments)


def _record(target: Any, attachment: Attachment) -> Callable[[], None]:
    held = vars(target)
    record = held.setdefault(_RECORD, _Record())
    record.attachments.append(attachment)

    def undo() -> None:
        record.attachments.remove(attachment)
        if not record.attachments:
            del held[_RECORD]

    return undo


def _wrap(part: Wrap, attachment: Attachment) -> Callable[[], None]:
    held, name = vars(part.target), part.attribute
    stack = held.get(name)
    if not isinstance(stack, _Stack):
        stack = held[name] = _Stack(getattr(part.target, name), name in held)
    stack.set_links([*stack.links, (attachment, part.function)])

    def undo() -> None:
        stack.set_links([link for link in stack.links if link[0] is not attachment])
        # Beneath somebody else's wrapper the empty stack has to stay.
        if stack.links or held.get(name) is not stack:
            return
        if stack.own:
            held[name] = stack.base
        else:
            del held[name]

    return undo


def _replace(part: Replace, attachment: Attachment) -> Callable[[], None]:
    held, name = vars(part.target), part.attribute
    slot = held[_RECORD].slots.setdefault(name, _Slot(held, name))
    slot.entries.append((attachment, part.value))
    held[name] = part.value

    def undo() -> None:
        newest = slot.entries[-1][1]
        slot.entries = [entry for entry in slot.entries if entry[0] is not attachment]
        if held.get(name) is not newest:  # somebody else has set it since
            return
        if slot.entries:
            held[name] = slot.entries[-1][1]
        elif slot.own:
            held[name] = slot.base
        else:
            del held[name]

    return undo


def _no_copy(attachments: Sequence[Attachment]) -> InputError:
    names = ", ".join(one.name for one in attachments)
    return InputError(f"an object with an attached method ({names}) cannot be copied: detach() first")


def _targets(parts: Sequence[Wrap | Replace]) -> list[Any]:
    return list({id(part.target): part.target for part in parts}.values())


def _attachments_of(target: Any) -> list[Attachment]:
    record = vars(target).get(_RECORD)
    return [] if record is None else record.attachments


def _attachments_within(target: Any) -> list[Attachment]:
    modules = target.modules() if isinstance(target, nn.Module) else [target]
    return [one for module in modules for one in _attachments_of(module)]
