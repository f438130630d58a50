"""Routing on a host: `kits.backbones.DiT`, a model in the released layout, or diffusers' DiT and PixArt models."""

from collections.abc import Callable

from noiseworks.dtr.options import Routing
from noiseworks.dtr.routing import route_block, route_mask
from noiseworks.kits.attachments import Attachment
from noiseworks.kits.backbones import around_blocks
from torch import Tensor, nn

NAME = "dtr"


def attach_routing(model: nn.Module, routing: Routing | None = None) -> Attachment:
    """Route every block of a model by the timestep, without a parameter or a buffer.

    Args:
        model: The host. Its class, its weights and its state dict stay as they are.
        routing: The settings, by default the paper's; β = 1 computes what the host does, bit for bit.

    Returns:
        A handle with `detach()`, which is also a context manager.

    Raises:
        InputError: When routing is attached already, or on a timestep outside the table.
        UnsupportedHostError: When the model has no blocks.
    """
    routing = routing or Routing()

    def routed(number: int, block: Callable[[Tensor], Tensor], x: Tensor, timesteps: Tensor) -> Tensor:
        return route_block(x, route_mask(routing, x.shape[-1], timesteps, number), block)

    return around_blocks(model, routed, NAME)
