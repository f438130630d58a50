"""A diffusion model as a prior of images: a noise prediction at an index of a table of noise levels."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from noiseworks.core.errors import InputError
from noiseworks.core.noise import SeedSpec, normal
from noiseworks.core.params import to_epsilon
from noiseworks.core.schedules import Level, TableSchedule
from torch import Tensor

XT, X0, START, MEASURED = range(4)  # independent streams of a sample's noise


@dataclass(frozen=True, eq=False)
class Prior:
    """A frozen diffusion model.

    Attributes:
        predict: `predict(x_t, t)` -> the network's output `[B, >= C, H, W]`; further channels, such as a learned
            variance, are dropped.
        schedule: Its noise levels.
        shape: (C, H, W) of what it denoises.
        prediction_type: What it predicts, as in diffusers.
    """

    predict: Callable[[Tensor, int], Tensor]
    schedule: TableSchedule
    shape: tuple[int, int, int]
    prediction_type: str = "epsilon"

    def __post_init__(self) -> None:
        if float(self.schedule.alphas_cumprod[-1]) == 0:
            raise InputError(
                "the schedule ends in pure noise (zero terminal SNR), where sigma / alpha is infinite; "
                "give it a schedule without that"
            )

    def level(self, t: int) -> Level:
        """Return (alpha, sigma) at index t; -1 is the clean image."""
        return self.schedule.level(t)

    def epsilon(self, x: Tensor, t: int) -> Tensor:
        """Return the predicted noise of x_t, `[B, C, H, W]`; gradients pass."""
        output = self.predict(x, t)[:, : self.shape[0]]
        return to_epsilon(output, x, self.level(t), self.prediction_type)


def noise_for(x: Tensor, seeds: Sequence[int], stream: int, step: int = 0) -> Tensor:
    """Return standard normal noise like x, `[B, ...]`; that of a sample depends on its seed, stream and step alone.

    Args:
        x: What the noise is for.
        seeds: One whole number a sample.
        stream: `XT`, `X0`, `START` or `MEASURED`.
        step: Number of the draw.
    """
    per_step = x[0].numel() // 4 + 1
    keys = SeedSpec(0, stream).keys(seeds)
    drawn = normal(keys, x.shape[1:], counter0=step * per_step, dtype=x.dtype)
    return drawn.to(x.device)
