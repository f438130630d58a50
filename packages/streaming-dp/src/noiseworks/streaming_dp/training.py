"""Training on noise levels per position: the loss, the Lightning module and resumable runs."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from noiseworks.core.checks import check_number
from noiseworks.core.errors import InputError
from noiseworks.core.noise import mix64
from noiseworks.kits.policies import DenoiserHost
from noiseworks.kits.policies.hosts import trained_network
from noiseworks.kits.policies.training import PolicyTrainer, fit, observations
from noiseworks.streaming_dp.hosts import StreamingHost, check_streams, reads_levels, save_converted
from noiseworks.streaming_dp.levels import DEFAULT_WEIGHTS, check_weights, draw_regime, training_levels
from noiseworks.streaming_dp.schedulers import per_step_scheduler
from torch import Tensor


@dataclass(frozen=True)
class TrainConfig:
    """Settings of a run; the defaults are the authors', except for the length.

    Attributes:
        max_steps: Optimizer steps.
        weights: Of the regimes constant, increasing, random and chunk-wise; they sum to 1.
        batch_size: Windows of a batch, over all processes.
        learning_rate: Peak rate of AdamW.
        warmup_steps: Steps of linear warm-up, before a cosine to 0 at `max_steps`.
        weight_decay: Of matrices.
        checkpoint_every: Steps between checkpoints.
        seed: Of batches, levels and noise.
        precision: Lightning's precision.
        device: `auto`, `cpu` or `cuda`.
        devices: Number of processes.
        strategy: Lightning's strategy.
    """

    max_steps: int = 10_000
    weights: tuple[float, float, float, float] = DEFAULT_WEIGHTS
    batch_size: int = 256
    learning_rate: float = 1e-4
    warmup_steps: int = 500
    weight_decay: float = 1e-6
    checkpoint_every: int = 500
    seed: int = 0
    precision: str = "32-true"
    device: str = "auto"
    devices: int = 1
    strategy: str = "auto"

    def __post_init__(self) -> None:
        check_number("max_steps", self.max_steps, low=1, integer=True)
        check_number("warmup_steps", self.warmup_steps, low=0, integer=True)
        check_number("learning_rate", self.learning_rate, low=0, low_open=True)
        check_number("weight_decay", self.weight_decay, low=0)
        check_number("seed", self.seed, low=0, integer=True)
        object.__setattr__(self, "weights", check_weights(self.weights))


def streaming_loss(
    host: DenoiserHost, scheduler: Any, batch: Mapping[str, Tensor], levels: Tensor, noise: Tensor
) -> Tensor:
    """Return the mean squared error of the prediction when every position has its own level.

    x_p = sqrt(abar_l(p)) a_p + sqrt(1 - abar_l(p)) eps_p; all positions weigh the same. Entries that a host's
    `impose` knows (inpainting) are given as they are and do not count.

    Args:
        host: The policy.
        scheduler: `PerStepDDPM` on the host's schedule.
        batch: Observations [B, To, ...] under the host's names and `action` [B, Tp, Da] in environment units.
        levels: Training timesteps, int64 [B, Tp].
        noise: Standard normals [B, Tp, Da].
    """
    clean = host.normalizer.normalize(batch["action"])
    noisy = scheduler.add_noise(clean, noise, levels)
    cond = host.encode(observations(batch))
    known = _imposed(host, noisy, cond)
    if known is not None:
        noisy = torch.where(known.isnan(), noisy, known)
    predicted = host.denoise(noisy, levels, cond).float()
    kind = scheduler.config.prediction_type
    if kind == "epsilon":
        target = noise
    elif kind == "sample":
        target = clean
    else:
        bar = scheduler.alphas_cumprod.to(clean.device)[levels].unsqueeze(-1)
        target = bar.sqrt() * noise - (1 - bar).sqrt() * clean
    error = (predicted - target).square()
    return error.mean() if known is None else error[known.isnan()].mean()


def _imposed(host: DenoiserHost, like: Tensor, cond: Any) -> Tensor | None:
    """Return the entries that a host knows, NaN elsewhere; None for a host without inpainting."""
    if not hasattr(host, "impose"):
        return None
    known = torch.full_like(like, torch.nan)
    host.impose(known, cond)
    return known


class StreamingModule(PolicyTrainer):
    """Trains a streaming host: a regime is drawn for each batch, then the levels of its positions.

    Args:
        host: The policy that trains: a `StreamingHost`, or `convert`'s of another library.
        weights: Of the regimes constant, increasing, random and chunk-wise.
        learning_rate: Peak rate of AdamW.
        weight_decay: Of matrices.
        warmup_steps: Steps of linear warm-up.
        total_steps: Where the cosine of the rate ends; None for a constant rate.
        seed: Of levels and noise.

    Raises:
        InputError: When the weights do not sum to 1 or the time window cannot stream.
    """

    def __init__(
        self,
        host: DenoiserHost,
        *,
        weights: tuple[float, ...] = DEFAULT_WEIGHTS,
        learning_rate: float = 1e-4,
        weight_decay: float = 1e-6,
        warmup_steps: int = 500,
        total_steps: int | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__(
            host,
            learning_rate=learning_rate,
            weight_decay=weight_decay,
            betas=(0.95, 0.999),
            warmup_steps=warmup_steps,
            total_steps=total_steps,
            seed=seed,
        )
        self.weights = check_weights(weights)
        steps = host.scheduler.config.num_train_timesteps
        self.spec = check_streams(host, host.n_action_steps, steps)
        self.scheduler = per_step_scheduler(host.scheduler, "ddpm", steps)

    def averaged_host(self) -> DenoiserHost:
        """Return the policy with the averaged weights, as `PolicyTrainer.averaged_host` does."""
        host = self.host
        if not isinstance(host, StreamingHost):
            return super().averaged_host()
        made = StreamingHost(host.config, self.average.model, host.normalizer, host.obs_normalizer)
        made.scheduler = host.scheduler
        return made.eval()

    def loss(self, batch: Mapping[str, Tensor]) -> Tensor:
        """Return the loss of a batch under the regime, levels and noise of the current step."""
        # The regime holds for the whole batch, so it is the same in all processes.
        shared = torch.Generator().manual_seed(mix64(self.seed, self.global_step, 2) >> 1)
        regime = draw_regime(self.weights, shared)
        generator = torch.Generator().manual_seed(mix64(self.seed, self.global_step, self.global_rank) >> 1)
        action = batch["action"]
        noise = torch.randn(action.shape, generator=generator).to(action)
        levels = training_levels(self.spec, regime, len(action), generator).to(action.device)
        return streaming_loss(self.host, self.scheduler, batch, levels, noise)


def train(
    host: DenoiserHost,
    table: Mapping[str, Tensor],
    folder: str | Path,
    config: TrainConfig | None = None,
    *,
    resume: bool = True,
    progress: bool = True,
    dtype: torch.dtype = torch.float32,
) -> DenoiserHost:
    """Train or fine-tune a streaming host; a run that was stopped goes on to the same numbers.

    Args:
        host: From `convert` or new; trained in place. Of another library's policy the encoders train as well.
        table: Windows from `noiseworks.kits.policies.windows` of the host's time window: `action`, and the
            observations under the names that the host reads.
        folder: The run's folder: checkpoints, logs and, at the end, `model`.
        config: Settings.
        resume: Whether to go on from the folder's checkpoint, or to refuse a used folder.
        progress: Whether to show a progress bar.
        dtype: Type of the stored weights.

    Returns:
        The policy with averaged weights, which is also in `folder/model`: read it with
        `StreamingHost.from_pretrained`, another library's with `load_converted`.

    Raises:
        InputError: When an argument does not fit.
        NonFiniteError: When the loss is NaN or infinite; the last checkpoint stays.
    """
    config = TrainConfig() if config is None else config
    if not reads_levels(host):
        raise InputError(
            f"train takes a policy that reads a level for each position, got {type(host).__name__}; convert it first"
        )
    window = (host.horizon, host.action_dim)
    if table["action"].shape[1:] != window:
        raise InputError(
            f"the windows hold actions {tuple(table['action'].shape[1:])}, the policy needs {window}"
        )
    trained_network(host).train()
    module = StreamingModule(
        host,
        weights=config.weights,
        learning_rate=config.learning_rate,
        weight_decay=config.weight_decay,
        warmup_steps=config.warmup_steps,
        total_steps=config.max_steps,
        seed=config.seed,
    )
    fit(
        module,
        table,
        folder,
        max_steps=config.max_steps,
        batch_size=config.batch_size,
        checkpoint_every=config.checkpoint_every,
        resume=resume,
        device=config.device,
        devices=config.devices,
        strategy=config.strategy,
        precision=config.precision,
        progress=progress,
    )
    made = module.averaged_host()
    if module.global_rank == 0:
        save_converted(made, Path(folder) / "model", dtype=dtype)
    return made
