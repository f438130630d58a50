"""`around_blocks`: a method between the blocks of a DiT, with the timesteps at hand.

    def double_late(number, block, x, timesteps):
        return block(x) * torch.where(timesteps > 500, 2, 1)[:, None, None]

    with around_blocks(model, double_late, "double-late"):
        ...

It takes `DiT`, models in the released layout (`blocks` called with tokens and a condition) and diffusers' models
(`transformer_blocks` called with the timestep). Nothing about a call is kept on a module, so that gradient
checkpointing, which computes blocks again after the forward pass has ended, sees the same timesteps.
"""

import inspect
from collections import OrderedDict
from collections.abc import Callable
from contextvars import ContextVar
from typing import Any

import torch
from noiseworks.core.errors import InputError, UnsupportedHostError
from noiseworks.kits.attachments import Attachment, Rows, Wrap, attach
from torch import Tensor, nn

Block = Callable[[Tensor], Tensor]
BlockFunction = Callable[[int, Block, Tensor, Tensor], Tensor]
_NAMES = ("timestep", "timesteps", "t")
_REMEMBERED = 1024  # forward passes whose backward may still come
_TIMESTEP_PLACE = 3  # of diffusers' blocks under gradient checkpointing, counted behind the tokens


def blocks_of(model: nn.Module) -> list[nn.Module]:
    """Return a DiT's blocks.

    Raises:
        UnsupportedHostError: When the model has neither `blocks` nor `transformer_blocks`.
    """
    for name in ("transformer_blocks", "blocks"):
        found = getattr(model, name, None)
        if isinstance(found, nn.ModuleList) and len(found):
            return list(found)
    raise UnsupportedHostError(
        f"{type(model).__name__} has no list of blocks or transformer_blocks; name a DiT such as "
        "kits.backbones.DiT, a model in its released layout, or diffusers' DiTTransformer2DModel"
    )


def around_blocks(model: nn.Module, function: BlockFunction, name: str, rows: Rows = "any") -> Attachment:
    """Attach a function around every block.

    Args:
        model: The DiT.
        function: `function(number, block, x, timesteps) -> x` with the block's number, the block as a function of
            its tokens alone, the tokens (B, N, D), and the timesteps (B,) as the model was given them.
        name: Of the method; a model takes each once.
        rows: As in `kits.attachments.attach`.

    Raises:
        InputError: When it is attached already.
        UnsupportedHostError: On a model without blocks, or whose forward has no timesteps.
    """
    blocks, place = blocks_of(model), _place_of_timesteps(model)
    current: ContextVar[Tensor | None] = ContextVar(f"{name} timesteps", default=None)
    # By the memory of the condition: one that is computed with again is alive, so its memory is no other's.
    of_condition: OrderedDict[tuple, Tensor] = OrderedDict()

    def whole(beneath: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        given = next((kwargs[key] for key in _NAMES if key in kwargs), None)
        given = args[place] if given is None and len(args) > place else given
        token = current.set(None if given is None else torch.as_tensor(given))
        try:
            return beneath(*args, **kwargs)
        finally:
            current.reset(token)

    def timesteps_of(x: Tensor, args: tuple, kwargs: dict[str, Any]) -> Tensor:
        given = kwargs.get("timestep")
        if given is None and len(args) > _TIMESTEP_PLACE:
            given = args[_TIMESTEP_PLACE]
        if given is None:
            # A block that is computed again in the backward pass has only its condition to know its timesteps by.
            condition = next((arg for arg in args if isinstance(arg, Tensor)), None)
            key = None if condition is None else (condition.data_ptr(), condition.shape)
            given = current.get()
            if given is None:
                given = of_condition.get(key)
            elif torch.is_grad_enabled() and key is not None:
                of_condition[key] = given
                of_condition.move_to_end(key)
                if len(of_condition) > _REMEMBERED:
                    of_condition.popitem(last=False)
        if given is None:
            raise InputError(
                f"{name} cannot tell the timesteps of this call of a block: call the whole model with timesteps"
            )
        return torch.as_tensor(given, device=x.device).reshape(-1).expand(len(x))

    def part(number: int) -> Callable[..., Tensor]:
        def wrapped(beneath: Callable[..., Tensor], x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
            timesteps = timesteps_of(x, args, kwargs)
            return function(number, lambda tokens: beneath(tokens, *args, **kwargs), x, timesteps)

        return wrapped

    parts = [Wrap(block, part(number)) for number, block in enumerate(blocks)]
    return attach(name, [Wrap(model, whole), *parts], rows)


def _place_of_timesteps(model: nn.Module) -> int:
    parameters = list(inspect.signature(model.forward).parameters)
    for name in _NAMES:
        if name in parameters:
            return parameters.index(name)
    raise UnsupportedHostError(f"{type(model).__name__}.forward has no argument {', '.join(_NAMES)}")
