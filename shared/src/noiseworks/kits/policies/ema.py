"""The moving average of a policy's weights, with the published warm-up of its decay."""

import copy

import torch
from noiseworks.core.checks import check_number
from torch import nn


def ema_decay(update: int, *, inv_gamma: float = 1.0, power: float = 0.75, maximum: float = 0.9999) -> float:
    """Return the decay of update n (0-based): `1 - (1 + s / inv_gamma)^-power` with s = max(0, n - 1).

    It is 0 while s is 0, so the first updates copy the weights, and never above `maximum`.
    """
    check_number("update", update, low=0, integer=True)
    step = max(0, update - 1)
    return 0.0 if step == 0 else min(max(1 - (1 + step / inv_gamma) ** -power, 0.0), maximum)


class EMA(nn.Module):
    """A copy of a model whose weights follow the model's; batch-norm parameters and buffers are copied.

    Args:
        model: The model that trains.
        power: Exponent of the decay's warm-up.
        maximum: Largest decay.
    """

    def __init__(self, model: nn.Module, *, power: float = 0.75, maximum: float = 0.9999) -> None:
        super().__init__()
        self.model = copy.deepcopy(model).requires_grad_(False).eval()
        self.power, self.maximum = power, maximum
        self.register_buffer("updates", torch.zeros((), dtype=torch.int64))

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        """Move the average towards the model's weights."""
        decay = ema_decay(int(self.updates), power=self.power, maximum=self.maximum)
        averaged, copied = [], []
        for module, own in zip(model.modules(), self.model.modules(), strict=True):
            norm = isinstance(module, nn.modules.batchnorm._BatchNorm)
            pairs = zip(own.parameters(recurse=False), module.parameters(recurse=False), strict=True)
            (copied if norm else averaged).extend(pairs)
            copied.extend(zip(own.buffers(recurse=False), module.buffers(recurse=False), strict=True))
        if averaged:
            torch._foreach_lerp_([a for a, _ in averaged], [b.detach() for _, b in averaged], 1 - decay)
        for own, theirs in copied:
            own.copy_(theirs)
        self.updates += 1
