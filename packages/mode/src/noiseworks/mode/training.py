"""Training on Lightning: EDM loss, load balancing, EMA, the three-stage rate, and resume to the same numbers."""

import math
import warnings
from collections.abc import Mapping
from typing import Any

import torch
from noiseworks.core.checks import check_number
from noiseworks.core.noise import mix64
from noiseworks.kits.policies.training import PolicyTrainer
from noiseworks.kits.policies.transformer import optimizer_groups
from noiseworks.kits.training import Average, MuonWithAdamW, power_decay
from noiseworks.mode.config import Recipe
from noiseworks.mode.edm import edm_loss, sample_sigmas
from noiseworks.mode.model import MoDEModel
from noiseworks.mode.routing import Routing, load_balance, mean_over_layers, router_z_loss
from torch import Tensor

WATCHED_STEPS, LEAST_USE = 1000, 0.01


def three_stage_rate(
    step: int,
    total: int,
    *,
    start: float = 0.1,
    end: float = 1e-6,
    stages: tuple[float, float] = (0.02, 0.08),
) -> float:
    """Return the factor of the learning rate: linear warm-up, hold, cosine decay (2 %, 8 % and 90 % of `total`).

    Args:
        step: Optimizer step, from 0.
        total: Steps of the schedule.
        start: Factor at step 0.
        end: Factor at the last step.
        stages: Shares of warm-up and hold.
    """
    warm, hold = stages[0] * total, stages[1] * total
    if step < warm:
        return start + (1 - start) * step / warm
    if step < warm + hold:
        return 1.0
    share = min(1.0, (step - warm - hold) / max(1.0, total - warm - hold))
    return end + (1 - end) * 0.5 * (1 + math.cos(math.pi * share))


class MoDEModule(PolicyTrainer):
    """Trains a `MoDEModel`: loss = EDM + gamma LB + z (router z-loss); the averaged weights are the result.

    Noise, levels, dropout and the routers' draws of step s depend on (seed, s) alone, so a run that was stopped
    goes on to the same numbers.

    Args:
        model: The model that trains.
        recipe: Losses and optimiser; gamma is left out when the routers are frozen.
        total_steps: Steps of the three-stage rate (45,000 in the paper).
        seed: Of all draws.

    Raises:
        InputError: When a number is out of range.
    """

    def __init__(
        self, model: MoDEModel, recipe: Recipe = Recipe(), *, total_steps: int = 45_000, seed: int = 0
    ) -> None:
        check_number("total_steps", total_steps, low=1, integer=True)
        super().__init__(
            model,
            learning_rate=recipe.learning_rate,
            weight_decay=recipe.weight_decay,
            betas=recipe.BETAS,
            warmup_steps=0,
            total_steps=total_steps,
            seed=seed,
        )
        self.average = Average(model, power_decay(power=2 / 3, maximum=recipe.ema_decay))
        self.recipe = recipe
        if not model.config.dense:
            shape = (model.config.num_layers, model.config.num_routed)
            self.register_buffer("used", torch.zeros(shape, dtype=torch.int64))

    def averaged_host(self) -> MoDEModel:
        """Return the model with the averaged weights; it shares them with this module."""
        return self.average.model.eval()

    def loss(self, batch: Mapping[str, Tensor]) -> Tensor:
        """Return EDM + gamma LB + z z-loss of a batch under the noise of the current step."""
        generator = torch.Generator().manual_seed(mix64(self.seed, self.global_step, self.global_rank) >> 1)
        config = self.host.config
        clean = self.host.normalizer.normalize(batch["action"])
        noise = torch.randn(clean.shape, generator=generator).to(clean)
        sigma = sample_sigmas(
            len(clean),
            density=self.recipe.density,
            sigma_data=config.sigma_data,
            sigma_min=config.sigma_min,
            sigma_max=config.sigma_max,
            generator=generator,
        ).to(device=clean.device, dtype=torch.float32)
        edm, routings = self.losses(batch, clean, sigma, noise)
        self.log("edm_loss", edm.detach())
        if config.dense:
            return edm
        self.watch(routings)
        if self.host.routers_frozen:
            return edm
        balance = mean_over_layers([load_balance(r, config.balance) for r in routings])
        self.log("balance", balance.detach())
        total = edm + self.recipe.gamma * balance
        if self.recipe.z_weight:
            total = total + self.recipe.z_weight * mean_over_layers([router_z_loss(r) for r in routings])
        return total

    @torch.no_grad()
    def watch(self, routings: list[Routing]) -> None:
        """Count which experts tokens go to, and warn every 1,000 steps of experts below 1 % of them."""
        for layer, routing in enumerate(routings):
            self.used[layer] += torch.bincount(routing.ids.flatten(), minlength=self.used.shape[1])
        if (self.global_step + 1) % WATCHED_STEPS:
            return
        share = self.used / self.used.sum(dim=1, keepdim=True)
        config = self.host.config
        stuck = config.argmax_routing and config.balance == "masked"  # no gradient reaches what is not chosen
        advice = "only the softmax's balance reaches it" if stuck else "raise gamma, or train fewer experts"
        for layer, expert in (share < LEAST_USE).nonzero().tolist():
            warnings.warn(
                f"expert {expert} of layer {layer} took {float(share[layer, expert]):.2%} of the tokens in the last "
                f"{WATCHED_STEPS} steps: {advice}",
                stacklevel=2,
            )
        self.used.zero_()

    def losses(
        self, batch: Mapping[str, Tensor], clean: Tensor, sigma: Tensor, noise: Tensor
    ) -> tuple[Tensor, list[Routing]]:
        """Return the EDM loss and what each block's router did."""
        routings: list[Routing] = []
        denoiser = self.host.denoiser
        context, n = denoiser.context(self.host.encode(batch)), denoiser.noise_embedding(sigma)

        def network(scaled: Tensor) -> Tensor:
            return denoiser(scaled, n, context, record=routings)

        return edm_loss(network, clean, sigma, noise, self.host.config.sigma_data), routings

    def configure_optimizers(self) -> Any:
        """Return the optimizer with the three-stage rate; biases, gains and positions do not decay."""
        groups = optimizer_groups(self.host, self.weight_decay)
        groups = [g | {"params": [p for p in g["params"] if p.requires_grad]} for g in groups]
        if self.recipe.optimizer == "muon":
            inner = {id(p) for block in self.host.denoiser.blocks for p in block.parameters() if p.ndim == 2}
            matrices = [p for p in groups[0]["params"] if id(p) in inner]
            groups[0]["params"] = [p for p in groups[0]["params"] if id(p) not in inner]
            optimizer = MuonWithAdamW(matrices, groups, self.learning_rate, self.betas, self.weight_decay)
        else:
            optimizer = torch.optim.AdamW(groups, lr=self.learning_rate, betas=self.betas)
        schedule = torch.optim.lr_scheduler.LambdaLR(
            optimizer, lambda step: three_stage_rate(step, self.total_steps, stages=self.recipe.STAGES)
        )
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}
