"""Images of a class by DDIM with η = 1, on the paper's list of timesteps."""

from collections.abc import Sequence
from typing import get_args

from noiseworks.core.checks import check_choice, check_number
from noiseworks.core.errors import InputError
from noiseworks.core.schedules import TableSchedule
from noiseworks.kits.backbones import sample
from noiseworks.umd.model import UMD
from noiseworks.umd.options import Prediction
from torch import Tensor, nn


class CleanFirst(nn.Module):
    """A network whose predicted clean image (B, C, H, W) is its output; its predicted noise is left out.

    Args:
        model: The network.
    """

    def __init__(self, model: UMD) -> None:
        super().__init__()
        self.model, self.config, self.null_label = model, model.config, model.null_label

    def forward(self, x: Tensor, t: Tensor, y: Tensor | None = None) -> Tensor:
        """Return the predicted clean image; arguments as in `UMD.forward`."""
        return self.model(x, t, y)[:, self.config.channels :]


def time_list(num_steps: int, steps: int) -> list[int]:
    """Return T-1, T-1-s, ... above 0 with s = ceil(T / S), then 0: S + 1 network calls where S divides T.

    Args:
        num_steps: T.
        steps: S, from 1 to T.
    """
    check_number("steps", steps, low=1, high=num_steps, integer=True)
    return [*range(num_steps - 1, 0, -num_steps // steps), 0]  # // rounds down, so that s is rounded up


def draw(
    model: UMD,
    labels: Tensor,
    schedule: TableSchedule,
    *,
    steps: int = 125,
    guidance_scale: float = 1.0,
    eta: float = 1.0,
    seeds: Sequence[int] | None = None,
    by: Prediction = "epsilon",
) -> Tensor:
    """Return images (B, C, H, W) in [-1, 1].

    Args:
        model: A fine-tuned network; one without labels draws images of no class in particular.
        labels: (B,); `model.null_label` for none.
        schedule: The schedule that the model was trained with.
        steps: S of `time_list`.
        guidance_scale: w of `ε_∅ + w (ε_y - ε_∅)`; 1 for none.
        eta: 0 is deterministic.
        seeds: One for each image, by default 0 to B - 1.
        by: Which of the two predictions the sampler goes by, `epsilon` or `sample`.

    Raises:
        InputError: On guidance of a model without labels, or another prediction.
    """
    check_choice("by", by, get_args(Prediction))
    if guidance_scale != 1 and not model.config.classes:
        raise InputError("a model without labels takes no guidance; fine-tune it first, or use 1")
    return sample(
        model if by == "epsilon" else CleanFirst(model),
        labels,
        schedule,
        guidance_scale=guidance_scale,
        seeds=seeds,
        timesteps=time_list(schedule.num_steps, steps),
        eta=eta,
        prediction_type=by,
    )
