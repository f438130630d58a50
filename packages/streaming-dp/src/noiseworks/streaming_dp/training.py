"""Training on noise levels per position: the loss, the Lightning module and resumable runs."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from noiseworks.core.errors import InputError
from noiseworks.core.noise import mix64
from noiseworks.kits.policies import DenoiserHost
from noiseworks.kits.policies.hosts import trained_network
from noiseworks.kits.policies.training import PolicyTrainer, observations
from noiseworks.streaming_dp.edm import PerStepEDM, edm_loss, training_sigmas
from noiseworks.streaming_dp.hosts import StreamingHost, check_streams, reads_levels, save_converted
from noiseworks.streaming_dp.levels import DEFAULT_WEIGHTS, check_weights
from noiseworks.streaming_dp.options import TrainConfig
from noiseworks.streaming_dp.regimes import draw_regime, training_levels
from noiseworks.streaming_dp.solvers import per_step_scheduler
from torch import Tensor


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
        self.scheduler = per_step_scheduler(host.scheduler, None, steps)

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
        levels = training_levels(self.spec, regime, len(action), generator)
        if isinstance(self.scheduler, PerStepEDM):
            sigmas = training_sigmas(self.scheduler, levels, regime, generator).to(action.device)
            return edm_loss(self.host, self.scheduler, batch, sigmas, noise)
        return streaming_loss(self.host, self.scheduler, batch, levels.to(action.device), noise)


def train(
    host: DenoiserHost,
    table: Mapping[str, Tensor],
    folder: str | Path,
    config: TrainConfig = TrainConfig(),
    *,
    settings: Mapping[str, Any] | None = None,
    progress: bool = True,
) -> DenoiserHost:
    """Train or fine-tune a streaming host; the same call goes on with a run that was stopped, to the same numbers.

    Args:
        host: From `convert` or new; trained in place. Of another library's policy the encoders train as well.
        table: Windows from `noiseworks.kits.policies.windows` of the host's time window: `action`, and the
            observations under the names that the host reads.
        folder: The run's folder: settings, checkpoint, figures and, at the end, `model`.
        config: Settings.
        settings: What else makes the run, such as the names of policy and data: a folder that was begun with others
            is refused.
        progress: Whether to show a progress bar.

    Returns:
        The policy with averaged weights, which is also in `folder/model`: read it with
        `StreamingHost.from_pretrained`, another library's with `load_converted`.

    Raises:
        InputError: When an argument does not fit, or the folder holds another run.
        NonFiniteError: When the loss is NaN or infinite; the last checkpoint stays.
        Stopped: On Ctrl-C or termination, after a checkpoint.
    """
    from noiseworks.kits.training import Batches, fit, open_run

    if not reads_levels(host):
        raise InputError(
            f"train takes a policy that reads a level for each position, got {type(host).__name__}; convert it first"
        )
    window = (host.horizon, host.action_dim)
    if table["action"].shape[1:] != window:
        raise InputError(
            f"the windows hold actions {tuple(table['action'].shape[1:])}, the policy needs {window}"
        )
    batches = Batches(table, config.batch_size, seed=config.seed)
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
    sizes = {"horizon": host.horizon, "n_action_steps": host.n_action_steps, "windows": len(table["action"])}
    with open_run(folder, {**(settings or {}), "sizes": sizes, "fit": config}) as run:
        fit(module, batches, run=run, options=config, clip=1.0, progress=progress)
        made = module.averaged_host()
        if module.global_rank == 0:
            dtype = torch.float16 if config.half else torch.float32
            save_converted(made, Path(folder) / "model", dtype=dtype)
    return made
