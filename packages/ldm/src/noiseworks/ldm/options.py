"""The options of training; nothing heavy is imported."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from noiseworks.core.errors import InputError
from noiseworks.core.options import Options, above, at_least, at_most
from noiseworks.kits.training import Fit

if TYPE_CHECKING:
    from noiseworks.ldm.diffusion.recipes import Recipe

FACTORS = (1, 2, 4, 8, 16, 32)


@dataclass(frozen=True)
class RunOptions(Fit):
    """Length, speed and bookkeeping of a training run.

    Attributes:
        batch_size: Images of a batch, over all processes.
        accumulate: Batches of an optimiser step, whose gradients are averaged.
        validate_every: Steps between two validations; by default once an epoch.
        num_workers: Loading processes.
    """

    FREE = Fit.FREE | {
        "max_steps",
        "num_workers",
    }  # rates do not depend on the end, so a run may be made longer

    batch_size: Annotated[int, at_least(1)] = 8
    accumulate: Annotated[int, at_least(1)] = 1
    validate_every: Annotated[int | None, at_least(1)] = None
    num_workers: Annotated[int, at_least(0)] = 0


@dataclass(frozen=True)
class AutoencoderOptions(Options):
    """The autoencoder.

    Attributes:
        kind: KL-regularised or vector-quantised.
        factor: f, the ratio of image to latent side: 1, 2, 4, 8, 16 or 32.
        latent_channels: Channels of the latent; by default 3 up to f = 4, then 4, 16 and 64.
        width: Channels of the first level, a multiple of 8 (128 in the paper).
        layers: Residual blocks a level; the decoder has one more.
        codes: Codebook size (VQ).
        attention: Whether the middle block attends.
        in_channels: Image channels.
        codebook_decay: Decay of a codebook that is a moving average instead of trained by gradient (VQ).
        restart_every: Batches between restarts of unused codes (VQ; 0: never).
    """

    kind: Literal["kl", "vq"] = "kl"
    factor: Literal[1, 2, 4, 8, 16, 32] = 4
    latent_channels: Annotated[int | None, at_least(1)] = None
    width: Annotated[int, at_least(8)] = 128
    layers: Annotated[int, at_least(1)] = 2
    codes: Annotated[int, at_least(2)] = 8192
    attention: bool = True
    in_channels: Annotated[int, at_least(1)] = 3
    codebook_decay: Annotated[float | None, at_least(0), at_most(1)] = None
    restart_every: Annotated[int, at_least(0)] = 0

    def check(self) -> None:
        """Refuse a width that the groups of the norms do not divide.

        Raises:
            InputError: Naming it.
        """
        if self.width % 8:
            raise InputError(f"width must be a multiple of 8 (the groups of the norms), got {self.width}")


@dataclass(frozen=True)
class LossOptions(Options):
    """The loss and its optimisers.

    Attributes:
        learning_rate: Base rate of both optimisers.
        scale_lr: Whether the rate is base x batch size x accumulation.
        perceptual: Perceptual distance: a net that is trained on the data first, LPIPS, or none.
        feature_steps: Steps of the trained net.
        vgg_weights: VGG16 weights for LPIPS.
        lpips_weights: Channel weights for LPIPS.
        kl_weight: Weight of the KL divergence.
        adversarial: Whether a patch discriminator takes part.
        disc_start: Batches before it does; 50,001 (KL) or 0 (VQ) by default.
        disc_weight: Its weight; 0.5 (KL) or 0.75 (VQ) by default.
        disc_width: Its channels.
        disc_norm: Its normalisation; group for several processes or batches of one.
        learn_logvar: Whether the scalar log-variance of the KL loss is learned.
        ema_decay: Largest decay of averaged weights, which are then the ones written.
        resize_range: Smallest and largest side of random resizing, multiples of 16.
    """

    learning_rate: Annotated[float, above(0)] = 4.5e-6
    scale_lr: bool = True
    perceptual: Literal["trained", "lpips", "none"] = "trained"
    feature_steps: Annotated[int, at_least(1)] = 300
    vgg_weights: Path | None = None
    lpips_weights: Path | None = None
    kl_weight: Annotated[float, at_least(0)] = 1e-6
    adversarial: bool = True
    disc_start: Annotated[int | None, at_least(0)] = None
    disc_weight: Annotated[float | None, at_least(0)] = None
    disc_width: Annotated[int, at_least(1)] = 64
    disc_norm: Literal["batch", "group"] = "batch"
    learn_logvar: bool = False
    ema_decay: Annotated[float | None, at_least(0), at_most(1)] = None
    resize_range: tuple[int, int] | None = None


@dataclass(frozen=True)
class DiffusionOptions(Options):
    """The model and its training.

    Attributes:
        preset: The paper's model of the task, or a tiny one.
        width: Channels of the U-Net's first level, instead of the preset's.
        learning_rate: Base rate, instead of the preset's.
        scale_lr: Whether the rate is base x batch size, instead of the preset's choice.
        warmup_steps: Steps of linear warm-up.
        loss: l1 or l2, instead of the preset's.
        prediction_type: What the U-Net predicts.
        beta_schedule: Family of the noise schedule.
        scale_factor: What latents are multiplied with; by default 1/std of the first batch (KL) or 1 (VQ).
        learn_logvar: Whether a log-variance per timestep is learned.
        elbo_weight: Weight of the variational bound.
        condition_drop: Share of rows trained without condition; by default 0.1 for sequences and 0 for maps.
        ema_decay: Largest decay of the averaged weights.
        text_encoder: Directory or hub id of a transformers text encoder; by default one trains along.
        train_text_encoder: Whether the named encoder trains along.
        degradation: How low-resolution images are made for upscale.
        cache: Whether images are encoded once, before training (upscale with bsr and inpaint never do).
    """

    preset: Literal["paper", "tiny"] = "tiny"
    width: Annotated[int | None, at_least(8)] = None
    learning_rate: Annotated[float | None, above(0)] = None
    scale_lr: bool | None = None
    warmup_steps: Annotated[int, at_least(0)] = 0
    loss: Literal["l1", "l2"] | None = None
    prediction_type: Literal["epsilon", "sample", "v_prediction"] = "epsilon"
    beta_schedule: Literal["scaled_linear", "linear", "cosine", "sqrt"] = "scaled_linear"
    scale_factor: Annotated[float | None, above(0)] = None
    learn_logvar: bool = False
    elbo_weight: Annotated[float, at_least(0)] = 0.0
    condition_drop: Annotated[float | None, at_least(0), at_most(1)] = None
    ema_decay: Annotated[float, at_least(0), at_most(1)] = 0.9999
    text_encoder: str | None = None
    train_text_encoder: bool = False
    degradation: Literal["bicubic", "bsr"] = "bicubic"
    cache: bool = True

    def recipe(self, task: str) -> "Recipe":
        """Return the task's recipe with these options in place."""
        from noiseworks.ldm.diffusion.recipes import recipe

        chosen = {
            name: value
            for name in ("width", "learning_rate", "scale_lr", "loss")
            if (value := getattr(self, name)) is not None
        }
        return replace(recipe(task, self.preset), **chosen)
