"""One recipe for class-conditional denoisers, so that methods and their baselines train in the same way.

AdamW at a constant rate, a uniform timestep for each image, the squared error of the noise, dropped labels, and an
average of the weights that is what comes out. The order of the data, timesteps and noise depend on the seed alone.
"""

from collections.abc import Callable
from typing import Any

import lightning as L  # noqa: TID253
import torch
from noiseworks.core.errors import InputError
from noiseworks.core.schedules import TableSchedule, add_noise, table_schedule
from noiseworks.kits.backbones.options import Recipe
from noiseworks.kits.training import Average, Batches, Run, fit, warm_decay
from torch import Tensor, nn

SNR_LIMIT = 5.0
ExtraLoss = Callable[[nn.Module, Tensor], Tensor]


def drop_labels(
    labels: Tensor, share: float, null_label: int, generator: torch.Generator | None = None
) -> Tensor:
    """Return labels (B,) of which a share is replaced by `null_label`, once for the whole network."""
    drawn = torch.rand(labels.shape, generator=generator, device=labels.device)
    return torch.where(drawn < share, null_label, labels)


def loss_weight(log_snr: Tensor, weighting: str) -> Tensor:
    """Return the weight of the noise prediction's loss at levels (B,).

    Args:
        log_snr: Logarithm of ᾱ / (1 - ᾱ).
        weighting: constant (1), min_snr (`min(SNR, 5) / SNR`, Hang et al. 2023) or p2 (`1 / (1 + SNR)`, Choi et al.
            2022 with k = γ = 1).
    """
    match weighting:
        case "min_snr":
            return (SNR_LIMIT * (-log_snr).exp()).clamp(max=1)
        case "p2":
            return torch.sigmoid(-log_snr)
        case _:
            return torch.ones_like(log_snr)


class DenoiserModule(L.LightningModule):
    """The loss of the recipe, its optimiser and its average.

    Args:
        model: `model(x, t, y)` with `null_label`; its first channels predict the noise.
        recipe: The recipe.
        extra_loss: (model, timesteps) -> a further term of the loss.
    """

    def __init__(self, model: nn.Module, recipe: Recipe, extra_loss: ExtraLoss | None = None) -> None:
        super().__init__()
        self.model, self.recipe, self.extra_loss = model, recipe, extra_loss
        self.schedule: TableSchedule = table_schedule(recipe.schedule)
        self.average = Average(model, warm_decay(recipe.ema))

    def training_step(self, batch: dict[str, Tensor], index: int) -> Tensor:
        """Return the loss of a batch of images `x` and labels `y`."""
        images = batch["x"]
        t = torch.randint(self.schedule.num_steps, (len(images),), device=images.device)
        noise = torch.randn_like(images)
        labels = drop_labels(batch["y"], self.recipe.label_drop, self.model.null_label)
        found = self.model(add_noise(images, noise, self.schedule.level(t)), t, labels)
        error = (found[:, : images.shape[1]] - noise).square().flatten(1).mean(1)
        loss = (loss_weight(self.schedule.log_snr(t), self.recipe.weighting).to(error) * error).mean()
        self.log("loss", loss, prog_bar=True)
        if self.extra_loss is not None:
            extra = self.extra_loss(self.model, t)
            self.log("extra", extra)
            loss = loss + extra
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Return AdamW without weight decay."""
        trained = [p for p in self.model.parameters() if p.requires_grad]
        return torch.optim.AdamW(trained, self.recipe.lr, weight_decay=0.0, fused=True)

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        """Step, then move the average: before the checkpoint of the step is written."""
        super().optimizer_step(*args, **kwargs)
        self.average.update(self.model)


def fit_denoiser(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    recipe: Recipe,
    *,
    run: Run | None = None,
    extra_loss: ExtraLoss | None = None,
    around: Callable[[nn.Module], object] | None = None,
    progress: bool = True,
) -> nn.Module:
    """Train a model and return its average, in evaluation mode and without gradients.

    Args:
        model: See `DenoiserModule`.
        images: (n, C, H, W) in [-1, 1].
        labels: (n,).
        recipe: Length, rates and bookkeeping.
        run: The open run, or None to keep nothing.
        extra_loss: A further term of the loss.
        around: Attaches a method to the model that trains. What it returns has `detach()`, which is called before the
            average is returned: attach the method to that anew.
        progress: Whether to show a bar.

    Raises:
        InputError: On labels that the model does not have, or fewer images than a batch.
        NonFiniteError: When the loss is not finite.
    """
    if int(labels.max()) >= model.null_label:
        raise InputError(f"labels go up to {int(labels.max())}, the model has {model.null_label} classes")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.seed)
        module = DenoiserModule(model, recipe, extra_loss)
        attached = None if around is None else around(model)
        try:
            batches = Batches({"x": images, "y": labels}, recipe.batch_size, seed=recipe.seed)
            fit(module, batches, run=run, options=recipe, progress=progress)
        finally:
            if attached is not None:
                attached.detach()
    return module.average.model
