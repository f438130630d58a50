"""Two recipes, so that methods and their baselines train in the same way.

`fit_denoiser`, for class-conditional denoisers: AdamW at a constant rate, a uniform timestep for each image, the
squared error of the noise, dropped labels. `fit_loss`, for a loss of the method's own: AdamW with warm-up and half a
cosine. Both return an average of the weights. The order of the data and all that is drawn depend on the seed alone:
several processes train to the weights of one, up to the order in which numbers are added.
"""

from collections.abc import Callable, Collection, Mapping
from typing import Any

import lightning as L  # noqa: TID253
import torch
from diffusers.optimization import get_cosine_schedule_with_warmup
from noiseworks.core.errors import InputError
from noiseworks.core.schedules import TableSchedule, add_noise, table_schedule
from noiseworks.kits.backbones.augmenting import crop_and_flip
from noiseworks.kits.backbones.options import LossRecipe, Recipe
from noiseworks.kits.training import Average, Batches, Rows, Run, fit, warm_decay
from torch import Tensor, nn

SNR_LIMIT = 5.0
ExtraLoss = Callable[[nn.Module, Tensor], Tensor]
Loss = Callable[[nn.Module, dict[str, Tensor], int], dict[str, Tensor]]
MakeOptimizer = Callable[[nn.Module], torch.optim.Optimizer]


def drop_labels(
    labels: Tensor,
    share: float,
    null_label: int,
    generator: torch.Generator | None = None,
    own: Rows | None = None,
) -> Tensor:
    """Return labels (B,) of which a share is replaced by `null_label`, once for the whole network.

    Args:
        labels: (B,).
        share: From 0 to 1.
        null_label: The label that stands for none.
        generator: Of the draws; the global one by default.
        own: Which rows of a batch these are, by default this process's.
    """
    own = own or Rows.of(len(labels))
    drawn = own.draw(lambda rows: torch.rand(rows, generator=generator, device=labels.device))
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


class AveragedModule(L.LightningModule):
    """A model that trains and the average of its weights.

    Args:
        model: The model.
        ema: Largest decay of the average, which starts lower and rises; 0 copies the weights.
    """

    def __init__(self, model: nn.Module, ema: float) -> None:
        super().__init__()
        self.model, self.average = model, Average(model, warm_decay(ema))

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        """Step, then move the average: before the checkpoint of the step is written."""
        super().optimizer_step(*args, **kwargs)
        self.average.update(self.model)


class DenoiserModule(AveragedModule):
    """The loss of the recipe, its optimiser and its average.

    Args:
        model: `model(x, t, y)` with `null_label`; its first channels predict the noise.
        recipe: The recipe.
        extra_loss: (model, timesteps) -> a further term of the loss.
    """

    def __init__(self, model: nn.Module, recipe: Recipe, extra_loss: ExtraLoss | None = None) -> None:
        super().__init__(model, recipe.ema)
        self.recipe, self.extra_loss = recipe, extra_loss
        self.schedule: TableSchedule = table_schedule(recipe.schedule)

    def training_step(self, batch: dict[str, Tensor], index: int) -> Tensor:
        """Return the loss of a batch of images `x` and labels `y`."""
        images = batch["x"]
        own = Rows.of(len(images))
        t = own.draw(lambda rows: torch.randint(self.schedule.num_steps, (rows,), device=images.device))
        noise = own.noise_like(images)
        labels = drop_labels(batch["y"], self.recipe.label_drop, self.model.null_label)
        found = self.model(add_noise(images, noise, self.schedule.level(t)), t, labels)
        error = (found[:, : images.shape[1]] - noise).square().flatten(1).mean(1)
        loss = (loss_weight(self.schedule.log_snr(t), self.recipe.weighting).to(error) * error).mean()
        self.log("loss", loss, prog_bar=True, sync_dist=True)
        if self.extra_loss is not None:
            extra = self.extra_loss(self.model, t)
            self.log("extra", extra, sync_dist=True)
            loss = loss + extra
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Return AdamW without weight decay."""
        trained = [p for p in self.model.parameters() if p.requires_grad]
        return torch.optim.AdamW(trained, self.recipe.lr, weight_decay=0.0, fused=True)


class LossModule(AveragedModule):
    """A model that trains by a loss of the method's own.

    Args:
        model: The model.
        recipe: The recipe.
        loss: (model, batch, step) -> figures, of which `loss` is minimised and all are logged.
        undecayed: Names of parameters without weight decay, beside all biases.
        make_optimizer: Returns another optimiser than AdamW, or other groups; the recipe's warm-up and cosine multiply
            the rate of every group.
    """

    def __init__(
        self,
        model: nn.Module,
        recipe: LossRecipe,
        loss: Loss,
        undecayed: Collection[str] = (),
        make_optimizer: MakeOptimizer | None = None,
    ) -> None:
        super().__init__(model, recipe.ema)
        self.recipe, self.loss, self.undecayed = recipe, loss, frozenset(undecayed)
        self.make_optimizer = make_optimizer or self._adamw

    def training_step(self, batch: dict[str, Tensor], index: int) -> Tensor:
        """Return the loss of a batch."""
        figures = self.loss(self.model, batch, self.global_step)
        self.log_dict({name: value for name, value in figures.items() if name != "loss"})
        self.log("loss", figures["loss"], prog_bar=True, sync_dist=True)
        return figures["loss"]

    def configure_optimizers(self) -> tuple[list, list]:
        """Return the optimiser and its rate by step."""
        optimizer, steps = self.make_optimizer(self.model), self.recipe.max_steps
        rate = get_cosine_schedule_with_warmup(optimizer, int(self.recipe.warmup * steps), steps)
        return [optimizer], [{"scheduler": rate, "interval": "step"}]

    def _adamw(self, model: nn.Module) -> torch.optim.Optimizer:
        free, decayed = [], []
        for name, parameter in model.named_parameters():
            if parameter.requires_grad:
                last = name.rpartition(".")[2]
                (free if last == "bias" or last in self.undecayed else decayed).append(parameter)
        groups = [
            {"params": decayed, "weight_decay": self.recipe.weight_decay},
            {"params": free, "weight_decay": 0.0},
        ]
        return torch.optim.AdamW(groups, self.recipe.lr, betas=(0.9, self.recipe.beta2), fused=True)


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


def fit_loss(
    model: nn.Module,
    rows: Mapping[str, Tensor],
    loss: Loss,
    recipe: LossRecipe,
    *,
    run: Run | None = None,
    undecayed: Collection[str] = (),
    make_optimizer: MakeOptimizer | None = None,
    unused_parameters: bool = False,
    progress: bool = True,
) -> nn.Module:
    """Train a model by a loss, and return its average, in evaluation mode and without gradients.

    Args:
        model: The model.
        rows: Name -> tensor of one row an image; crops and mirror images are made of `x`, (n, C, H, W) in [-1, 1].
        loss: See `LossModule`; what it draws must come from the global random state, and for the rows of all
            processes (`Rows`).
        recipe: Length, rates and bookkeeping.
        run: The open run, or None to keep nothing.
        undecayed: See `LossModule`.
        make_optimizer: See `LossModule`.
        unused_parameters: Whether some parameters have no part in the loss.
        progress: Whether to show a bar.

    Raises:
        InputError: With fewer rows than a batch.
        NonFiniteError: When the loss is not finite.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.seed)
        module = LossModule(model, recipe, loss, undecayed, make_optimizer)
        transform = crop_and_flip(recipe.crop, recipe.flip)
        batches = Batches(rows, recipe.batch_size, seed=recipe.seed, transform=transform)
        fit(
            module,
            batches,
            run=run,
            options=recipe,
            clip=recipe.clip,
            unused_parameters=unused_parameters,
            progress=progress,
        )
    return module.average.model
