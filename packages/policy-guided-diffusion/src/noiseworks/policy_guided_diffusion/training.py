"""Training of the trajectory model on recorded experience."""

import math
from typing import Any

import lightning as L  # noqa: TID253
import torch
from noiseworks.core.grids import log_normal_sigmas
from noiseworks.kits.rl.transitions import Transitions
from noiseworks.kits.training import Average, Batches, Fit, Run, fit, warm_decay
from noiseworks.policy_guided_diffusion.denoiser import LOG_SIGMA_MEAN, LOG_SIGMA_STD, denoising_loss
from noiseworks.policy_guided_diffusion.model import TrajectoryDiffusion
from noiseworks.policy_guided_diffusion.options import Architecture, Windows
from noiseworks.policy_guided_diffusion.windows import split, windows_of
from torch import Tensor

FIRST_RATE, PEAK_RATE, WARM_UP = 2e-4, 2e-3, 0.1
EMA_DECAY, EMA_EVERY = 0.995, 10


def learning_rate(step: int, total: int) -> float:
    """Return the rate of a step: up from 2e-4 to 2e-3 over the first tenth, then along a cosine to 0."""
    warm = max(1, round(WARM_UP * total))
    if step < warm:
        return FIRST_RATE + (PEAK_RATE - FIRST_RATE) * step / warm
    return 0.5 * PEAK_RATE * (1 + math.cos(math.pi * (step - warm) / max(1, total - warm)))


class TrajectoryModule(L.LightningModule):
    """The loss of windows with a noise level drawn for each, Adam, and the average that is sampled from.

    Args:
        model: The model, whose scale is set.
        total: Steps of the run, which the learning rate needs.
    """

    def __init__(self, model: TrajectoryDiffusion, total: int) -> None:
        super().__init__()
        self.model, self.total = model, total
        # The decay rises to its value, so that the average of a short run is not made of its first weights.
        self.average = Average(model.denoiser, warm_decay(EMA_DECAY))

    def training_step(self, batch: dict[str, Tensor], index: int) -> Tensor:
        """Return the loss of a batch of windows."""
        x = batch["x"]
        sigma = log_normal_sigmas(len(x), LOG_SIGMA_MEAN, LOG_SIGMA_STD).to(x.device)
        loss = denoising_loss(self.model.denoiser, x, sigma, torch.randn_like(x))
        self.log("loss", loss, prog_bar=True)
        return loss

    def validation_step(self, batch: dict[str, Tensor], index: int) -> None:
        """Log the averaged network's loss of held-out windows, with the same noise every time."""
        generator = torch.Generator().manual_seed(index)
        sigma = log_normal_sigmas(len(batch["x"]), LOG_SIGMA_MEAN, LOG_SIGMA_STD, generator=generator)
        noise = torch.randn(batch["x"].shape, generator=generator).to(batch["x"])
        self.log("val/loss", denoising_loss(self.average.model, batch["x"], sigma.to(noise.device), noise))

    def configure_optimizers(self) -> dict:
        """Return Adam with the rate of `learning_rate`."""
        optimizer = torch.optim.Adam(self.model.denoiser.parameters(), 1.0, fused=True)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: learning_rate(step, self.total))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        """Step, then move the average, every tenth step: a checkpoint of the step holds both."""
        super().optimizer_step(*args, **kwargs)
        if (self.global_step + 1) % EMA_EVERY == 0:
            self.average.update(self.model.denoiser)


def fit_trajectories(
    transitions: Transitions,
    architecture: Architecture,
    windows: Windows,
    options: Fit,
    run: Run | None = None,
) -> TrajectoryDiffusion:
    """Return a model of recorded trajectories, with the averaged weights.

    Args:
        transitions: What was recorded.
        architecture: Sizes.
        windows: Which windows are learned.
        options: Length and bookkeeping.
        run: The open run, None to keep nothing on the way.

    Raises:
        InputError: When no window remains, or there are fewer than a batch.
        NonFiniteError: When the loss is not finite.
    """
    learned, held = split(transitions, windows.held_out, options.seed)
    rows = windows_of(learned, architecture.horizon, windows.stride)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(options.seed)
        model = TrajectoryDiffusion(
            transitions.obs_dim, transitions.action_dim, architecture, {"data": dict(transitions.about)}
        )
        model.scaler.fit(rows)
        batches = Batches({"x": model.scaler.encode(rows)}, options.batch_size, seed=options.seed)
        validation = None
        if held is not None:
            unseen = model.scaler.encode(windows_of(held, architecture.horizon, windows.stride))
            size = min(len(unseen), 512)
            validation = Batches({"x": unseen}, size, seed=options.seed, repeat=True)
        module = TrajectoryModule(model, options.max_steps)
        every = max(len(batches), options.max_steps // 10)
        fit(module, batches, run=run, options=options, validation=validation, validate_every=every)
    model.denoiser.load_state_dict(module.average.model.state_dict())
    return model.eval().requires_grad_(False)
