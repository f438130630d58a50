"""Schedulers whose `step` and `add_noise` take one timestep per position, (B, T), and the table they step by.

A reverse step is linear in the sample x, the network's output, the predicted clean sample and the noise, so one
table of coefficients per level covers all prediction types and both solvers; -1 (clean) has the identity's row.
"""

from typing import Any, NamedTuple

import torch
from diffusers import DDIMScheduler, DDPMScheduler
from diffusers.schedulers.scheduling_ddim import DDIMSchedulerOutput
from diffusers.schedulers.scheduling_ddpm import DDPMSchedulerOutput
from noiseworks.core.errors import InputError, UnsupportedHostError
from noiseworks.kits.policies import randn
from noiseworks.kits.policies.protocols import Generators
from noiseworks.streaming_dp.levels import inference_timesteps
from torch import Tensor


class StepTable(NamedTuple):
    """Coefficients of a reverse step at every level, each of the same shape.

    x0 = clip(`x0_x` x + `x0_out` out), and the next sample is
    `to_x0` x0 + `to_x` x + `to_out` out + `to_noise` z.

    Attributes:
        x0_x: Of the sample in the predicted clean sample.
        x0_out: Of the network's output in the predicted clean sample.
        to_x0: Of the predicted clean sample in the next sample.
        to_x: Of the sample in the next sample.
        to_out: Of the network's output in the next sample; 0 for DDPM.
        to_noise: Of the fresh noise; 0 at level 0 and for DDIM.
    """

    x0_x: Tensor
    x0_out: Tensor
    to_x0: Tensor
    to_x: Tensor
    to_out: Tensor
    to_noise: Tensor

    def at(self, levels: Tensor) -> "StepTable":
        """Return the coefficients [..., 1] of levels [...], where -1 is clean."""
        return StepTable(*(column[levels + 1].unsqueeze(-1).float() for column in self))


def reverse_step_(
    x: Tensor, out: Tensor, noise: Tensor | None, table: StepTable, clip: float | None, scratch: Tensor
) -> Tensor:
    """Take a reverse step of every position at its own level, in place and without allocating.

    Args:
        x: Samples [B, T, Da], overwritten.
        out: The network's output, of the same shape.
        noise: Standard normals of the same shape, or None when the solver draws none.
        table: Coefficients that broadcast to x.
        clip: Largest absolute value of the predicted clean sample, or None.
        scratch: Space of x's shape.

    Returns:
        x.
    """
    x0 = torch.mul(x, table.x0_x, out=scratch).addcmul_(out, table.x0_out)
    if clip is not None:
        x0.clamp_(-clip, clip)
    x.mul_(table.to_x).addcmul_(x0, table.to_x0)
    if noise is None:
        return x.addcmul_(out, table.to_out)
    return x.addcmul_(noise, table.to_noise)


def clean_from_output(prediction_type: str, alpha: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
    """Return the coefficients of x and of the network's output in the predicted clean sample."""
    if prediction_type == "epsilon":
        return 1 / alpha, -sigma / alpha
    if prediction_type == "sample":
        return torch.zeros_like(alpha), torch.ones_like(alpha)
    if prediction_type == "v_prediction":
        return alpha, -sigma
    raise UnsupportedHostError(f"prediction_type {prediction_type!r} is not supported")


def noise_from_output(prediction_type: str, alpha: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
    """Return the coefficients of x and of the network's output in the predicted noise."""
    if prediction_type == "epsilon":
        return torch.zeros_like(alpha), torch.ones_like(alpha)
    if prediction_type == "sample":
        return 1 / sigma, -alpha / sigma
    return sigma, alpha


class _PerPosition:
    """What the two schedulers share; the first base of each, in front of the diffusers class."""

    def set_timesteps(self, num_inference_steps: int, device: Any = None) -> None:
        """Choose the inference levels: M training timesteps, the last of which is the noisiest."""
        steps = inference_timesteps(num_inference_steps, self.config.num_train_timesteps)
        self.num_inference_steps = num_inference_steps
        self.level_timesteps, self.timesteps = steps, steps.flip(0).to(device)
        # Clean positions are told apart by -1, which indexes the last entry.
        self._level_of = torch.full((self.config.num_train_timesteps + 1,), -2)
        self._level_of[steps], self._level_of[-1] = torch.arange(len(steps)), -1
        self._table = self._make_table(steps)

    @property
    def table(self) -> StepTable:
        """Coefficients of every inference level, row 0 for clean positions; float64."""
        if getattr(self, "_table", None) is None:
            self.set_timesteps(self.config.num_train_timesteps)
        return self._table

    @property
    def clip(self) -> float | None:
        """Bound of the predicted clean sample."""
        return self.config.clip_sample_range if self.config.clip_sample else None

    def levels_of(self, timestep: Tensor | int, sample: Tensor) -> Tensor:
        """Return the inference levels of timesteps, which are one number, (B,) or (B, T), as (B, T) or (B, 1).

        Raises:
            InputError: When a timestep is neither -1 nor one of `timesteps`.
        """
        last = self.config.num_train_timesteps - 1
        steps = _per_position(timestep, sample, last)
        _ = self.table
        levels = self._level_of.to(steps.device)[steps]
        if bool((levels < -1).any()):
            raise InputError(
                f"timesteps must be -1 or among the {self.num_inference_steps} of set_timesteps; got others"
            )
        return levels

    def add_noise(self, original_samples: Tensor, noise: Tensor, timesteps: Tensor | int) -> Tensor:
        """Return sqrt(abar) x + sqrt(1 - abar) noise with one timestep per position; -1 leaves it clean.

        Args:
            original_samples: [B, T, Da].
            noise: Standard normals of the same shape.
            timesteps: (B, T), (B,) or one number, -1 to the number of training timesteps - 1.
        """
        steps = _per_position(timesteps, original_samples, self.config.num_train_timesteps - 1)
        bar = self.alphas_cumprod.to(original_samples.device)
        bar = torch.cat((bar, bar.new_ones(1)))[steps].unsqueeze(-1)
        return (bar.sqrt() * original_samples + (1 - bar).sqrt() * noise).to(original_samples.dtype)

    def _next_sample(
        self, output: Tensor, timestep: Tensor | int, sample: Tensor, noise: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        levels = self.levels_of(timestep, sample)
        rows = self.table.at(levels.cpu())
        table = StepTable(*(column.to(sample.device) for column in rows))
        x, scratch = sample.float().clone(), torch.empty_like(sample, dtype=torch.float32)
        reverse_step_(x, output.float(), noise, table, self.clip, scratch)
        return x.to(sample.dtype), scratch.to(sample.dtype)

    def _levels_in_float64(self, steps: Tensor) -> tuple[Tensor, Tensor]:
        if self.config.get("thresholding") or self.config.get("rescale_betas_zero_snr"):
            raise UnsupportedHostError("thresholding and zero-terminal-SNR schedules are not supported")
        bar = self.alphas_cumprod.double().cpu()[steps]
        return bar, torch.cat((torch.ones(1, dtype=torch.float64), bar[:-1]))


class PerStepDDPM(_PerPosition, DDPMScheduler):
    """diffusers' `DDPMScheduler` with one timestep per position and "trailing" inference levels.

    Raises:
        UnsupportedHostError: On a learned variance, thresholding or a zero-terminal-SNR schedule.
    """

    def step(
        self,
        model_output: Tensor,
        timestep: Tensor | int,
        sample: Tensor,
        generator: Generators = None,
        return_dict: bool = True,
    ) -> DDPMSchedulerOutput | tuple[Tensor, Tensor]:
        """Take every position to the next less noisy level (Ho et al. 2020, eq. 7); -1 stays as it is.

        Args:
            model_output: The network's output [B, T, Da].
            timestep: Training timesteps (B, T), (B,) or one number; -1 for clean positions.
            sample: [B, T, Da]; computed in float32 and returned in its own type.
            generator: Noise: one for the batch, one a row, or None.
            return_dict: Whether to return an output object instead of a tuple.
        """
        noise = randn(sample.shape, generator, like=sample)
        done, clean = self._next_sample(model_output, timestep, sample, noise)
        return DDPMSchedulerOutput(done, clean) if return_dict else (done, clean)

    def _make_table(self, steps: Tensor) -> StepTable:
        bar, bar_next = self._levels_in_float64(steps)
        alpha, sigma = bar.sqrt(), (1 - bar).sqrt()
        ratio = bar / bar_next
        beta = 1 - ratio
        x0_x, x0_out = clean_from_output(self.config.prediction_type, alpha, sigma)
        variance = beta * (1 - bar_next) / (1 - bar)
        if self.config.variance_type == "fixed_large":
            variance = beta.clone()
        elif self.config.variance_type not in ("fixed_small", "fixed_small_log"):
            raise UnsupportedHostError(f"variance_type {self.config.variance_type!r} is not supported")
        variance[0] = 0  # the last step of a position adds no noise
        to_x0, to_x = bar_next.sqrt() * beta / (1 - bar), ratio.sqrt() * (1 - bar_next) / (1 - bar)
        return _with_clean_row(x0_x, x0_out, to_x0, to_x, torch.zeros_like(bar), variance.sqrt())


class PerStepDDIM(_PerPosition, DDIMScheduler):
    """diffusers' deterministic `DDIMScheduler` with one timestep per position and "trailing" inference levels.

    Raises:
        UnsupportedHostError: On thresholding or a zero-terminal-SNR schedule.
    """

    def step(
        self, model_output: Tensor, timestep: Tensor | int, sample: Tensor, return_dict: bool = True
    ) -> DDIMSchedulerOutput | tuple[Tensor, Tensor]:
        """Take every position to the next less noisy level (Song et al. 2021, eq. 12 with eta 0); -1 stays.

        Args:
            model_output: The network's output [B, T, Da].
            timestep: Training timesteps (B, T), (B,) or one number; -1 for clean positions.
            sample: [B, T, Da]; computed in float32 and returned in its own type.
            return_dict: Whether to return an output object instead of a tuple.
        """
        done, clean = self._next_sample(model_output, timestep, sample, None)
        return DDIMSchedulerOutput(done, clean) if return_dict else (done, clean)

    def _make_table(self, steps: Tensor) -> StepTable:
        bar, bar_next = self._levels_in_float64(steps)
        alpha, sigma = bar.sqrt(), (1 - bar).sqrt()
        kind = self.config.prediction_type
        x0_x, x0_out = clean_from_output(kind, alpha, sigma)
        noise_x, noise_out = noise_from_output(kind, alpha, sigma)
        spread = (1 - bar_next).sqrt()
        zero = torch.zeros_like(bar)
        return _with_clean_row(x0_x, x0_out, bar_next.sqrt(), spread * noise_x, spread * noise_out, zero)


def _with_clean_row(*columns: Tensor) -> StepTable:
    clean = (0.0, 0.0, 0.0, 1.0, 0.0, 0.0)
    rows = (torch.cat((c.new_full((1,), value), c)) for c, value in zip(columns, clean, strict=True))
    return StepTable(*rows)


def _per_position(timestep: Tensor | int, sample: Tensor, last: int) -> Tensor:
    steps = torch.as_tensor(timestep, device=sample.device)
    if steps.is_floating_point() or steps.ndim > 2:
        raise InputError(f"timesteps must be whole numbers of shape (B, T), (B,) or (), got {steps.dtype}")
    steps = steps[:, None] if steps.ndim == 1 else steps.reshape(1, 1) if steps.ndim == 0 else steps
    shape = tuple(steps.shape)
    if shape[0] not in (1, len(sample)) or shape[1] not in (1, sample.shape[1]):
        raise InputError(f"timesteps of shape {shape} do not fit a sample of shape {tuple(sample.shape)}")
    if bool((steps < -1).any()) or bool((steps > last).any()):
        found = f"{int(steps.min())} to {int(steps.max())}"
        raise InputError(f"timesteps must lie in -1 to {last}, got {found}")
    return steps.long()


def per_step_scheduler(scheduler: Any, solver: str, num_levels: int) -> PerStepDDPM | PerStepDDIM:
    """Return a scheduler per position on a checkpoint's own schedule, with M inference levels.

    Args:
        scheduler: The host's diffusers scheduler; left as it is.
        solver: `ddpm` or `ddim`.
        num_levels: M, 1 to the number of training timesteps.

    Raises:
        InputError: When an argument is out of range.
    """
    kinds = {"ddpm": PerStepDDPM, "ddim": PerStepDDIM}
    if solver not in kinds:
        raise InputError(f"solver must be one of {', '.join(kinds)}, got {solver!r}")
    made = kinds[solver].from_config(scheduler.config)
    made.set_timesteps(num_levels)
    return made
