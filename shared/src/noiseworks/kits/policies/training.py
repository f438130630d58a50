"""The module that trains policies: one loss and one moving average; `kits.training.fit` runs it.

Noise, diffusion steps and dropout of step s are functions of (seed, s) alone, so a resumed run computes the same
numbers as one that was never stopped.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import lightning as L  # noqa: TID253
import torch
from noiseworks.core.checks import check_finite
from noiseworks.core.noise import mix64
from noiseworks.kits.policies.hosts import trained_network
from noiseworks.kits.policies.transformer import optimizer_groups
from noiseworks.kits.training import Average, power_decay
from torch import Tensor, nn

if TYPE_CHECKING:
    from noiseworks.kits.policies.native import NativePolicy
    from noiseworks.kits.policies.protocols import DenoiserHost


def observations(batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the entries of a batch of windows that are observations."""
    return {name: value for name, value in batch.items() if name not in ("action", "action_is_pad")}


def diffusion_loss(
    host: "DenoiserHost",
    batch: Mapping[str, Tensor],
    timesteps: Tensor,
    noise: Tensor,
    weights: Tensor | None = None,
) -> Tensor:
    """Return the mean squared error of the prediction (Chi et al. 2023, eq. 5).

    Args:
        host: The policy.
        batch: Observations [B, To, ...] under the host's names (a native policy's is `obs`) and `action`
            [B, Tp, Da] in environment units; `action_is_pad` bool [B, Tp], where given, leaves entries out.
        timesteps: Diffusion steps, int64 [B].
        noise: Standard normals [B, Tp, Da].
        weights: Weight of each diffusion step's error, [T]; 1 without them.
    """
    clean = host.normalizer.normalize(batch["action"])
    noisy = host.scheduler.add_noise(clean, noise, timesteps)
    predicted = host.denoise(noisy, timesteps, host.encode(observations(batch)))
    kind = host.scheduler.config.prediction_type
    if kind == "epsilon":
        target = noise
    elif kind == "sample":
        target = clean
    else:
        target = host.scheduler.get_velocity(clean, noise, timesteps)
    error = (predicted.float() - target).square()
    if weights is not None:
        error = error * weights[timesteps][:, None, None]
    if "action_is_pad" in batch:
        kept = (~batch["action_is_pad"])[..., None].expand_as(error)
        return error[kept].mean()
    return error.mean()


class PolicyTrainer(L.LightningModule):
    """The diffusion loss, AdamW and the moving average, whose weights are the ones to evaluate.

    Args:
        host: The policy that trains: a native one or another library's, whose encoders train as well.
        learning_rate: Peak rate.
        weight_decay: Of matrices.
        betas: Of AdamW.
        warmup_steps: Steps of linear warm-up.
        total_steps: Where the cosine of the rate ends; None for a constant rate after the warm-up.
        seed: Of noise, diffusion steps and dropout.
    """

    def __init__(
        self,
        host: "NativePolicy | DenoiserHost",
        *,
        learning_rate: float = 1e-4,
        weight_decay: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.95),
        warmup_steps: int = 500,
        total_steps: int | None = None,
        seed: int = 0,
        loss_weights: Tensor | None = None,
    ) -> None:
        super().__init__()
        self.register_buffer("loss_weights", loss_weights, persistent=False)
        network = trained_network(host)
        self.host, self.average = host, Average(network, power_decay())
        if not isinstance(host, nn.Module):  # an adapter, whose policy Lightning would not see
            self.policy = network
        self.learning_rate, self.weight_decay, self.betas = learning_rate, weight_decay, betas
        self.warmup_steps, self.total_steps, self.seed = warmup_steps, total_steps, seed

    def averaged_host(self) -> "NativePolicy | DenoiserHost":
        """Return the policy with the averaged weights.

        A native policy shares them with this trainer; into another library's they are written.
        """
        from noiseworks.kits.policies.native import NativePolicy

        host = self.host
        if not isinstance(host, NativePolicy):
            trained_network(host).load_state_dict(self.average.model.state_dict())
            trained_network(host).eval()
            return host
        return NativePolicy(host.config, self.average.model, host.normalizer, host.obs_normalizer).eval()

    def loss(self, batch: Mapping[str, Tensor]) -> Tensor:
        """Return the loss of a batch under the noise of the current step; methods override this."""
        generator = torch.Generator().manual_seed(mix64(self.seed, self.global_step, self.global_rank) >> 1)
        action, scheduler = batch["action"], self.host.scheduler
        noise = torch.randn(action.shape, generator=generator).to(action)
        steps = torch.randint(scheduler.config.num_train_timesteps, (len(action),), generator=generator).to(
            action.device
        )
        return diffusion_loss(self.host, batch, steps, noise, self.loss_weights)

    def training_step(self, batch: Mapping[str, Tensor], index: int) -> Tensor:
        """Return the loss; dropout is drawn from the step's own seed."""
        devices = [self.device] if self.device.type == "cuda" else []
        with torch.random.fork_rng(devices=devices):
            torch.manual_seed(mix64(self.seed, self.global_step, self.global_rank, 1) >> 1)
            loss = self.loss(batch)
        check_finite("loss", loss, self.global_step)
        self.log("loss", loss.detach(), prog_bar=True)
        return loss

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        """Step, then move the average."""
        super().optimizer_step(*args, **kwargs)
        self.average.update(trained_network(self.host))

    def configure_optimizers(self) -> Any:
        """Return AdamW with linear warm-up and, when `total_steps` is given, a cosine to 0."""
        groups = optimizer_groups(trained_network(self.host), self.weight_decay)
        optimizer = torch.optim.AdamW(groups, lr=self.learning_rate, betas=self.betas)
        if self.warmup_steps == 0 and self.total_steps is None:
            return optimizer
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, self._factor)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def _factor(self, step: int) -> float:
        rate = min(1.0, (step + 1) / max(1, self.warmup_steps))
        if self.total_steps is None:
            return rate
        share = min(1.0, max(0.0, (step - self.warmup_steps) / max(1, self.total_steps - self.warmup_steps)))
        return rate * 0.5 * (1 + float(torch.cos(torch.tensor(share * torch.pi))))
