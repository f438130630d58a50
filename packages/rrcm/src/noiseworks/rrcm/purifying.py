"""The lines of defence that clean an image first: a denoiser, then a classifier of clean images.

A noise of σ beside images in [0, 1] is the level of a variance-preserving schedule at which √(1 - ᾱ) / √ᾱ = 2σ.
"""

import torch
from noiseworks.core.errors import InputError
from noiseworks.core.schedules import TableSchedule
from torch import Tensor, nn

CLEAN = -1  # the level of a schedule before its first


class DenoiseThenClassify(nn.Module):
    """Noisy images -> logits, by a noise prediction and a classifier (Carlini et al. 2023; several steps: DDIM).

    Args:
        denoiser: (x_t, t) -> predicted noise; diffusers' models that return a sample, or any module.
        schedule: Its noise schedule.
        classifier: Images in [0, 1] -> logits.
        sigma: Noise beside images in [0, 1].
        steps: Calls of the denoiser.

    Raises:
        InputError: When the schedule has no level of that noise, or no room for the steps.
    """

    def __init__(
        self,
        denoiser: nn.Module,
        schedule: TableSchedule,
        classifier: nn.Module,
        *,
        sigma: float,
        steps: int = 1,
    ) -> None:
        super().__init__()
        self.denoiser, self.schedule, self.classifier, self.steps = denoiser, schedule, classifier, steps
        level = schedule.level(torch.arange(schedule.num_steps))
        ratio = level.sigma / level.alpha
        if not float(ratio[0]) <= 2 * sigma <= float(ratio[-1]):
            raise InputError(f"the denoiser's schedule has no noise of sigma {sigma}")
        self.start = int((ratio - 2 * sigma).abs().argmin())
        if steps < 1 or steps > self.start + 1:
            raise InputError(f"steps must be from 1 to {self.start + 1} at sigma {sigma}, got {steps}")

    def clean(self, x: Tensor) -> Tensor:
        """Return cleaned images in [0, 1] of noisy ones."""
        timesteps = torch.linspace(self.start, 0, self.steps + 1).round().long()[:-1].tolist()
        state = (2 * x - 1) * self._level(timesteps[0], x)[0]
        for t, after in zip(timesteps, [*timesteps[1:], CLEAN], strict=True):
            alpha, sigma = self._level(t, x)
            noise = self.denoiser(state, torch.full((len(x),), t, device=x.device))
            noise = getattr(noise, "sample", noise)
            image = ((state - sigma * noise) / alpha).clamp(-1, 1)
            then, left = self._level(after, x)
            state = then * image + left * (state - alpha * image) / sigma
        return state / 2 + 0.5

    def _level(self, t: int, like: Tensor) -> tuple[Tensor, Tensor]:
        level = self.schedule.level(torch.tensor(t))
        return level.alpha.to(like), level.sigma.to(like)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits (B, K) of noisy images beside [0, 1]."""
        return self.classifier(self.clean(x))


class Unlabelled(nn.Module):
    """A class-conditional denoiser that is told no label.

    Args:
        model: `model(x, t, y)` with `null_label`; its first channels predict the noise.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        """Return the predicted noise (B, C, H, W)."""
        return self.model(x, t, torch.full_like(t, self.model.null_label))[:, : x.shape[1]]
