"""EDM with a noise level for each position (Karras et al. 2022), on diffusers' `EDMEulerScheduler`.

A position at level sigma holds x = a + sigma n. The network F reads x / s with s = sqrt(sigma^2 + sigma_data^2), and
D = sigma_data^2 / s^2 x + sigma sigma_data / s F is the clean action that it predicts (table 1). Euler's step to the
level below, at sigma', is x' = D + sigma' / sigma (x - D) (algorithm 1 without its second evaluation).

With churn (algorithm 2) noise is added before a network call, which then sees sigma_hat = (1 + gamma) sigma. Here it
is added at the end of the step before: a position waits at sigma_hat, the level that the next call reads.

A stream keeps its buffer in the network's units, y = x / s, where all levels have variance 1. There the network is a
v-predictor, D / sigma_data = sigma_data / s y + sigma / s F, and a step is a row of the kit's coefficients.
"""

from collections.abc import Mapping
from typing import Any

import torch
from diffusers import EDMEulerScheduler
from diffusers.schedulers.scheduling_edm_euler import EDMEulerSchedulerOutput
from noiseworks.core.checks import check_number
from noiseworks.core.errors import UnsupportedHostError
from noiseworks.kits.policies import DenoiserHost
from noiseworks.kits.policies.loop import randn
from noiseworks.kits.policies.protocols import Generators
from noiseworks.kits.policies.steps import StepRow
from noiseworks.kits.policies.training import observations
from noiseworks.streaming_dp.schedulers import LevelTable, per_position
from torch import Tensor

# Where churn acts and what its noise is multiplied by: Karras et al. 2022, table 5, and the authors' earlier code.
CHURN_RANGE, CHURN_NOISE = (0.03, 25.0), 1.005
P_MEAN, P_STD = -1.2, 1.2  # of ln sigma in training, table 1
# Fields of the scheduler that are stored with a policy.
STORED = ("sigma_min", "sigma_max", "sigma_data", "rho", "prediction_type")


class PerStepEDM(EDMEulerScheduler):
    """diffusers' `EDMEulerScheduler` with one level per position, -1 for clean, and churn.

    Levels are places in the grid of `set_timesteps`, from 0, the least noisy one.

    Raises:
        UnsupportedHostError: When the last sigma is not zero.
    """

    def set_timesteps(
        self,
        num_inference_steps: int,
        device: Any = None,
        *,
        s_churn: float = 0.0,
        s_range: tuple[float, float] = CHURN_RANGE,
        s_noise: float = CHURN_NOISE,
    ) -> None:
        """Choose the M levels of the configuration's grid, and the churn.

        Args:
            num_inference_steps: M, from 1.
            device: Where `timesteps` go.
            s_churn: Added noise of a run; gamma = min(s_churn / M, sqrt(2) - 1).
            s_range: Least and greatest sigma at which noise is added.
            s_noise: Factor of the added noise.

        Raises:
            InputError: When a number is out of range.
        """
        check_number("num_levels", num_inference_steps, low=1, integer=True)
        check_number("churn", s_churn, low=0)
        if self.config.final_sigmas_type != "zero":
            raise UnsupportedHostError(
                f"final_sigmas_type {self.config.final_sigmas_type!r} is not supported: below the least level is clean"
            )
        super().set_timesteps(num_inference_steps, device)
        sigma = self.sigmas[:-1].flip(0).double()
        churned = (s_range[0] <= sigma) & (sigma <= s_range[1])
        gamma = torch.where(churned, min(s_churn / num_inference_steps, 2**0.5 - 1), 0.0)
        clean = torch.zeros(1, dtype=torch.float64)
        # Entry 0 is for clean positions.
        self.level_sigmas = torch.cat((clean, sigma))
        self.hat_sigmas = torch.cat((clean, (1 + gamma) * sigma))
        self.churn = s_noise * (self.hat_sigmas.square() - self.level_sigmas.square()).sqrt()

    def step(
        self,
        model_output: Tensor,
        levels: Tensor | int,
        sample: Tensor,
        generator: Generators = None,
        return_dict: bool = True,
    ) -> EDMEulerSchedulerOutput | tuple[Tensor, Tensor]:
        """Take every position from its `hat_sigmas` to that of the level below; -1 stays as it is.

        Args:
            model_output: The network's output F [B, T, Da] for `precondition_inputs(sample, hat sigma)`.
            levels: (B, T), (B,) or one number, -1 to M - 1.
            sample: x [B, T, Da]; computed in float32, or in float64 where it is.
            generator: Noise of the churn: one for the batch, one a row, or None.
            return_dict: Whether to return an output object instead of a tuple.

        Raises:
            InputError: When a level is out of range.
        """
        index = per_position(levels, sample, len(self.level_sigmas) - 2) + 1
        below = (index - 1).clamp(min=0)
        dtype = torch.promote_types(sample.dtype, torch.float32)
        x = sample.to(dtype)

        def at(values: Tensor, places: Tensor) -> Tensor:
            return values.to(x)[places].unsqueeze(-1)

        sigma = torch.where(index.unsqueeze(-1) > 0, at(self.hat_sigmas, index), 1.0)
        clean = self.precondition_outputs(x, model_output.to(dtype), sigma)
        done = clean + at(self.level_sigmas, below) / sigma * (x - clean)
        if bool((self.churn > 0).any()):
            done = done + at(self.churn, below) * randn(x.shape, generator, like=x).to(dtype)
        done = torch.where(index.unsqueeze(-1) > 0, done, x).to(sample.dtype)
        clean = clean.to(sample.dtype)
        return EDMEulerSchedulerOutput(done, clean) if return_dict else (done, clean)

    def add_noise(self, original_samples: Tensor, noise: Tensor, sigmas: Tensor) -> Tensor:
        """Return x + sigma noise with one sigma per position, (B, T), which need not be the grid's; 0 is clean."""
        return (original_samples + sigmas.unsqueeze(-1) * noise).to(original_samples.dtype)

    def labels(self, sigmas: Tensor) -> Tensor:
        """Return what the network is told of sigmas: `precondition_noise`, ln(sigma) / 4, stretched to 0 to N - 1.

        The stretch is because the policies' embedding is made for the whole numbers of N training timesteps.
        """
        low, high = (
            self.precondition_noise(torch.tensor(end, dtype=torch.float64)).item()
            for end in (self.config.sigma_min, self.config.sigma_max)
        )
        found = self.precondition_noise(sigmas.clamp(min=self.config.sigma_min))
        return (found - low) / (high - low) * (self.config.num_train_timesteps - 1)

    @property
    def data_scale(self) -> float:
        """What a clean value of the buffer has to be multiplied by: sigma_data."""
        return self.config.sigma_data

    @property
    def noising(self) -> tuple[Tensor, Tensor]:
        """Factors of a clean value and of noise in the buffer at each level, [M + 1] each; row 0 is clean."""
        scale = self._scale()
        std = (self.level_sigmas.square() + self.churn.square()).sqrt()
        return (self.config.sigma_data / scale).float(), (std / scale).float()

    @property
    def table(self) -> LevelTable:
        """Coefficients of a step of the buffer at every level, row 0 for clean positions; float64."""
        scale, data = self._scale(), self.config.sigma_data
        below = torch.cat((torch.zeros(1, dtype=torch.long), torch.arange(len(scale) - 1)))
        ratio = self.level_sigmas[below] / self.hat_sigmas
        of_x0, of_x = (1 - ratio) * data / scale[below], ratio * scale / scale[below]
        of_x0[0], of_x[0] = 0.0, 1.0
        noisy = bool((self.churn > 0).any())
        row = StepRow(of_x0, of_x, None, self.churn[below] / scale[below] if noisy else None)
        sign = 1.0 if self.config.prediction_type == "v_prediction" else -1.0
        sigma = sign * self.hat_sigmas / scale
        sigma[0] = 1.0  # not used, and divided by
        return LevelTable(data / scale, sigma, row, self.labels(self.hat_sigmas), "v_prediction", None)

    def _scale(self) -> Tensor:
        return (self.hat_sigmas.square() + self.config.sigma_data**2).sqrt()


def training_sigmas(
    scheduler: PerStepEDM, levels: Tensor, regime: str, generator: torch.Generator | None
) -> Tensor:
    """Return the sigmas of a training batch, float32 [B, Tp].

    Args:
        scheduler: With all N levels and without churn.
        levels: Of `training_levels`, which become the grid's sigmas.
        regime: `random` draws ln sigma ~ N(-1.2, 1.2^2) for each position instead, within the grid's ends.
        generator: Of these draws.
    """
    if regime != "random":
        return scheduler.level_sigmas[levels + 1].float()
    drawn = (P_MEAN + P_STD * torch.randn(levels.shape, generator=generator)).exp()
    return drawn.clamp(scheduler.config.sigma_min, scheduler.config.sigma_max)


def edm_loss(
    host: DenoiserHost, scheduler: PerStepEDM, batch: Mapping[str, Tensor], sigmas: Tensor, noise: Tensor
) -> Tensor:
    """Return the mean of lambda(sigma) |D(a + sigma n; sigma) - a|^2 (Karras et al. 2022, eq. 2 and 8).

    The weight lambda = (sigma^2 + sigma_data^2) / (sigma sigma_data)^2 makes it the plain error of the network F.

    Args:
        host: The policy.
        scheduler: Its schedule.
        batch: Observations [B, To, ...] under the host's names and `action` [B, Tp, Da] in environment units.
        sigmas: [B, Tp].
        noise: Standard normals [B, Tp, Da].
    """
    clean = host.normalizer.normalize(batch["action"])
    noisy, at, data = scheduler.add_noise(clean, noise, sigmas), sigmas.unsqueeze(-1), scheduler.data_scale
    cond = host.encode(observations(batch))
    output = host.denoise(scheduler.precondition_inputs(noisy, at), scheduler.labels(sigmas), cond).float()
    error = scheduler.precondition_outputs(noisy, output, at) - clean
    return (error.square() * (at.square() + data**2) / (at * data).square()).mean()
