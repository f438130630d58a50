"""Schedulers whose `step` and `add_noise` take one timestep per position, (B, T), and the table they step by.

A reverse step is linear in the predicted clean sample, the sample, the network's output and the noise, so one row of
the kit's coefficients per level covers all prediction types and both solvers; -1 (clean) has the identity's row.
"""

from dataclasses import dataclass
from typing import Any

import torch
from diffusers import DDIMScheduler, DDPMScheduler
from diffusers.schedulers.scheduling_ddim import DDIMSchedulerOutput
from diffusers.schedulers.scheduling_ddpm import DDPMSchedulerOutput
from noiseworks.core.errors import InputError, UnsupportedHostError
from noiseworks.kits.policies.loop import randn
from noiseworks.kits.policies.protocols import Generators
from noiseworks.kits.policies.schedulers import Solver
from noiseworks.kits.policies.steps import (
    StepRow,
    StepTable,
    check_scheduler,
    clip_of,
    predict_clean_,
    reverse_step_,
    step_row,
)
from noiseworks.streaming_dp.regimes import inference_timesteps, karras_timesteps
from torch import Tensor


@dataclass(frozen=True)
class LevelTable:
    """Coefficients of a reverse step at every level, each [M + 1]; row 0 is for clean positions, which stay.

    Attributes:
        signal: sqrt(abar); 1 in row 0, where it is not used.
        sigma: sqrt(1 - abar), likewise.
        row: The kit's coefficients; None where the solver leaves a part out.
        timesteps: Training timestep of each row; a clean position is read as the least noisy one.
        prediction_type: What the network predicts.
        clip: Bound of the predicted clean sample, or None.
    """

    signal: Tensor
    sigma: Tensor
    row: StepRow
    timesteps: Tensor
    prediction_type: str
    clip: float | None

    def at(self, levels: Tensor, device: torch.device | str = "cpu") -> StepTable:
        """Return the steps of levels [S, ...], -1 for clean, with coefficients [..., 1]."""
        index = levels + 1

        def steps(column: Tensor | None) -> list[Any]:
            found = column if column is None else column[index].unsqueeze(-1).float().to(device)
            return [None] * len(levels) if found is None else list(found.unbind(0))

        rows = zip(*map(steps, self.row), strict=True)
        return StepTable(
            tuple(tuple(row) for row in self.timesteps[index].flatten(1).tolist()),
            tuple(steps(self.signal)),
            tuple(steps(self.sigma)),
            tuple(StepRow(*row) for row in rows),
            self.prediction_type,
            self.clip,
        )


def level_table(scheduler: Any, steps: Tensor, solver: Solver) -> LevelTable:
    """Return the coefficients of inference levels, each leading to the level below; computed in float64.

    Args:
        scheduler: A diffusers scheduler.
        steps: Training timestep of each level, int64 [M], increasing.
        solver: `ddpm` or `ddim`.

    Raises:
        UnsupportedHostError: On a learned variance, thresholding or a zero-terminal-SNR schedule.
    """
    check_scheduler(scheduler)
    if scheduler.config.get("rescale_betas_zero_snr"):
        raise UnsupportedHostError("zero-terminal-SNR schedules are not supported")
    bar = scheduler.alphas_cumprod.double().cpu()[steps]
    rows = [step_row(scheduler, now, bar[k - 1] if k else None, solver=solver) for k, now in enumerate(bar)]
    zero, one = (torch.tensor(value, dtype=torch.float64) for value in (0.0, 1.0))
    rows = [StepRow(zero, one, None, None), *rows]
    # DDPM never reads the output again, and DDIM draws no noise.
    used = (True, True, solver == "ddim", solver == "ddpm")
    columns = [
        torch.stack([zero if part is None else part for part in column]) if kept else None
        for column, kept in zip(zip(*rows, strict=True), used, strict=True)
    ]
    signal, sigma = (torch.cat((one[None], part)) for part in (bar.sqrt(), (1 - bar).sqrt()))
    kind = scheduler.config.get("prediction_type", "epsilon")
    labels = torch.cat((steps[:1], steps))
    return LevelTable(signal, sigma, StepRow(*columns), labels, kind, clip_of(scheduler))


class _PerPosition:
    """What the two schedulers share; the first base of each, in front of the diffusers class."""

    data_scale = 1.0  # what a clean value of a stream's buffer is multiplied by

    def set_timesteps(self, num_inference_steps: int, device: Any = None, *, karras: bool = False) -> None:
        """Choose the inference levels: M training timesteps, the last of which is the noisiest.

        Args:
            num_inference_steps: M.
            device: Where `timesteps` go.
            karras: Whether they lie on Karras' grid of sigmas; else they are evenly spaced.
        """
        if karras:
            steps = karras_timesteps(self.alphas_cumprod, num_inference_steps)
        else:
            steps = inference_timesteps(num_inference_steps, self.config.num_train_timesteps)
        self.num_inference_steps = num_inference_steps
        self.level_timesteps, self.timesteps = steps, steps.flip(0).to(device)
        # Clean positions are told apart by -1, which indexes the last entry.
        self._level_of = torch.full((self.config.num_train_timesteps + 1,), -2)
        self._level_of[steps], self._level_of[-1] = torch.arange(len(steps)), -1
        self._table = level_table(self, steps, self.solver)

    @property
    def table(self) -> LevelTable:
        """Coefficients of every inference level, row 0 for clean positions; float64."""
        if getattr(self, "_table", None) is None:
            self.set_timesteps(self.config.num_train_timesteps)
        return self._table

    @property
    def noising(self) -> tuple[Tensor, Tensor]:
        """Factors of a clean value and of noise in the buffer at each inference level, [M + 1]; row 0 is clean."""
        _ = self.table
        bar = torch.cat((torch.ones(1), self.alphas_cumprod[self.level_timesteps]))
        return bar.sqrt(), (1 - bar).sqrt()

    def levels_of(self, timestep: Tensor | int, sample: Tensor) -> Tensor:
        """Return the inference levels of timesteps, which are one number, (B,) or (B, T), as (B, T) or (B, 1).

        Raises:
            InputError: When a timestep is neither -1 nor one of `timesteps`.
        """
        last = self.config.num_train_timesteps - 1
        steps = per_position(timestep, sample, last)
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
        steps = per_position(timesteps, original_samples, self.config.num_train_timesteps - 1)
        bar = self.alphas_cumprod.to(original_samples.device)
        bar = torch.cat((bar, bar.new_ones(1)))[steps].unsqueeze(-1)
        return (bar.sqrt() * original_samples + (1 - bar).sqrt() * noise).to(original_samples.dtype)

    def _next_sample(
        self, output: Tensor, timestep: Tensor | int, sample: Tensor, noise: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        levels = self.levels_of(timestep, sample)
        table = self.table.at(levels[None].cpu(), sample.device)
        x, clean = sample.float().clone(), torch.empty_like(sample, dtype=torch.float32)
        reverse_step_(x, output.float(), clean, noise, table, 0)
        # The step uses the clean sample up.
        predict_clean_(clean, sample.float(), output.float(), table, 0)
        return x.to(sample.dtype), clean.to(sample.dtype)


class PerStepDDPM(_PerPosition, DDPMScheduler):
    """diffusers' `DDPMScheduler` with one timestep per position and "trailing" inference levels.

    Raises:
        UnsupportedHostError: On a learned variance, thresholding or a zero-terminal-SNR schedule.
    """

    solver: Solver = "ddpm"

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


class PerStepDDIM(_PerPosition, DDIMScheduler):
    """diffusers' deterministic `DDIMScheduler` with one timestep per position and "trailing" inference levels.

    Raises:
        UnsupportedHostError: On thresholding or a zero-terminal-SNR schedule.
    """

    solver: Solver = "ddim"

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


def per_position(timestep: Tensor | int, sample: Tensor, last: int) -> Tensor:
    """Return timesteps, which are one number, (B,) or (B, T), as int64 (B, T), (B, 1) or (1, 1).

    Raises:
        InputError: When they are not whole numbers of -1 to `last` that fit the sample.
    """
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
