"""The moving average of a model's weights (EMA).

`torch.optim.swa_utils.AveragedModel` copies the weights at the first update and averages batch-norm parameters with all
others; the published recipes of this field decay from the first update on and copy them.
"""

import copy
from collections.abc import Callable

import torch
from noiseworks.core.checks import check_number
from torch import nn

Decay = Callable[[int], float]


def warm_decay(maximum: float = 0.9999) -> Decay:
    """Return the decay min(maximum, (1 + n) / (10 + n)) of update n, counted from 1 (Rombach et al. 2022)."""
    check_number("ema_decay", maximum, low=0, high=1)
    return lambda update: min(maximum, (2 + update) / (11 + update))


def power_decay(*, power: float = 0.75, maximum: float = 0.9999, inv_gamma: float = 1.0) -> Decay:
    """Return the decay 1 - (1 + s / inv_gamma)^-power with s = max(0, n - 1) of update n, counted from 0.

    It is 0 while s is 0, so the first updates copy the weights, and never above `maximum` (Chi et al. 2023).
    """
    check_number("ema_decay", maximum, low=0, high=1)

    def decay(update: int) -> float:
        check_number("update", update, low=0, integer=True)
        step = max(0, update - 1)
        return 0.0 if step == 0 else min(max(1 - (1 + step / inv_gamma) ** -power, 0.0), maximum)

    return decay


class Average(nn.Module):
    """A copy of a model whose weights follow the model's; batch-norm parameters and buffers are copied.

    Its weights and its count of updates are part of the state of the module that holds it.

    Args:
        model: The model that trains.
        decay: Number of the update, from 0 -> share of the average that stays.

    Attributes:
        model: The averaged model, in evaluation mode and without gradients.
    """

    def __init__(self, model: nn.Module, decay: Decay) -> None:
        super().__init__()
        self.model = copy.deepcopy(model).requires_grad_(False).eval()
        self.decay = decay
        self.register_buffer("updates", torch.zeros((), dtype=torch.int64))

    def train(self, mode: bool = True) -> "Average":
        """Set the mode of the module; the averaged model stays in evaluation mode."""
        super().train(mode)
        self.model.eval()
        return self

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        """Move the average towards the model's weights."""
        decay = self.decay(int(self.updates))
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
