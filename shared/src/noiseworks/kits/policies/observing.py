"""What a policy is given at every step: the entries it reads, their shapes, and finite numbers, or a refusal."""

from collections.abc import Mapping, Sequence

from noiseworks.core.errors import InputError, NonFiniteError
from torch import Tensor

Shapes = Mapping[str, tuple[int, ...] | None]


def check_observation(
    obs: Mapping[str, Tensor], shapes: Shapes, lead: tuple[int | None, ...], ids: Sequence[int] | None = None
) -> dict[str, Tensor]:
    """Return the entries of an observation that a policy reads.

    On a robot an entry that is missing, cut or not finite must stop the policy at the step at which it comes, not when
    the next plan is made. Further entries, such as a language instruction, are left out.

    Args:
        obs: Tensors by name.
        shapes: Shape of one environment's single observation, by name, None for any; empty takes all entries of any
            shape.
        lead: What stands before those shapes: [rows] or [rows, steps], None for any number.
        ids: The environments of the rows, for the message.

    Raises:
        InputError: When an entry is missing, is no tensor, or has another shape.
        NonFiniteError: When one holds NaN or infinity, naming the environments.
    """
    if not isinstance(obs, Mapping) or not obs:
        raise InputError(f"an observation is a mapping from names to tensors, got {type(obs).__name__}")
    if missing := sorted(set(shapes) - set(obs)):
        raise InputError(
            f"the observation lacks {', '.join(missing)}, which the policy reads; it holds "
            f"{', '.join(sorted(map(str, obs)))}"
        )
    found = {name: obs[name] for name in shapes or obs}
    rows = lead[0]
    for name, value in found.items():
        if not isinstance(value, Tensor):
            raise InputError(f"{name} must be a tensor, got {type(value).__name__}")
        rows = len(value) if rows is None and value.ndim else rows
        stated = shapes.get(name)
        expected = ((rows, *lead[1:]), None if stated is None else tuple(stated))
        if ids is not None and len(value.shape) > 0 and len(value) != rows and value.shape[1:] == expected[1]:
            raise InputError(
                f"expected observations of {rows} environments, got {name} of {len(value)}; reset before the batch "
                "changes"
            )
        if not _fits(tuple(value.shape), *expected):
            raise InputError(f"{name} must have the shape {_written(*expected)}, got {list(value.shape)}")
        if value.is_floating_point() and not bool(value.isfinite().all()):
            broken = (~value.isfinite()).flatten(1).any(1).nonzero().flatten().tolist()
            named = [row if ids is None else ids[row] for row in broken]
            raise NonFiniteError(f"{name} holds NaN or infinity in environments {named}: nothing was done")
    return found


def _fits(shape: tuple[int, ...], lead: tuple[int | None, ...], rest: tuple[int, ...] | None) -> bool:
    given = shape[: len(lead)]
    if len(given) < len(lead) or any(n not in (None, m) for n, m in zip(lead, given, strict=True)):
        return False
    return rest is None or shape[len(lead) :] == rest


def _written(lead: tuple[int | None, ...], rest: tuple[int, ...] | None) -> str:
    words = ["B" if n is None else str(n) for n in lead]
    return f"[{', '.join([*words, *(['...'] if rest is None else map(str, rest))])}]"
