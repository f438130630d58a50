"""The options of training and sampling; nothing heavy is imported."""

from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from noiseworks.core.errors import InputError
from noiseworks.core.options import Options, above, at_least, at_most, below
from noiseworks.kits.training import Fit

if TYPE_CHECKING:
    from noiseworks.ldm.diffusion.recipes import Recipe
    from noiseworks.ldm.diffusion.tiling import Tiles

Task = Literal["class", "text", "text-large", "layout", "semantic", "upscale", "inpaint", "unconditional"]
SHAPES = "shapes"
IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")


@dataclass(frozen=True)
class Images(Options):
    """The images.

    Attributes:
        data: A folder of images (captions and labels in its metadata.jsonl), or an .npz or .npy array [N, H, W, 3]
            (an .npz holds the task's label, caption, layout or segmentation as well), or shapes (the testbed's
            scenes, for train).
        size: Side of the images in pixels, for folders.
        validation_share: Share of the images held out in training.
        scenes: Number of the testbed's scenes.
    """

    data: str
    size: Annotated[int | None, at_least(8)] = None
    validation_share: Annotated[float, above(0), below(1)] = 0.05
    scenes: Annotated[int, at_least(2)] = 4096

    def check_present(self, *, scenes: bool = False) -> None:
        """Refuse data that are not there, before anything heavy is imported.

        Args:
            scenes: Whether the testbed's scenes will do.

        Raises:
            InputError: Naming what is missing.
        """
        path = Path(self.data)
        if path.is_dir():
            if self.size is None:
                raise InputError("a folder of images needs size, the side in pixels they are resized to")
            if not any(file.suffix.lower() in IMAGE_SUFFIXES for file in path.rglob("*")):
                raise InputError(f"no images ({', '.join(IMAGE_SUFFIXES)}) below {path}")
        elif not (scenes and self.data == SHAPES) and not (
            path.is_file() and path.suffix in (".npz", ".npy")
        ):
            raise InputError(
                f"no image data at {path}: name a folder of images, or an .npz or .npy array [N, H, W, 3]"
            )


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
    """

    kind: Literal["kl", "vq"] = "kl"
    factor: Literal[1, 2, 4, 8, 16, 32] = 4
    latent_channels: Annotated[int | None, at_least(1)] = None
    width: Annotated[int, at_least(8)] = 128
    layers: Annotated[int, at_least(1)] = 2
    codes: Annotated[int, at_least(2)] = 8192
    attention: bool = True
    in_channels: Annotated[int, at_least(1)] = 3

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
        ema_decay: Largest decay of averaged weights, which are then the ones written.
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
    ema_decay: Annotated[float | None, at_least(0), at_most(1)] = None


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
        condition_drop: Share of rows trained without condition; by default 0.1 for sequences and 0 for maps.
        ema_decay: Largest decay of the averaged weights.
        text_encoder: Directory or hub id of a transformers text encoder; by default one trains along.
        train_text_encoder: Whether the named encoder trains along.
        cache: Whether images are encoded once, before training (for inpaint never).
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
    condition_drop: Annotated[float | None, at_least(0), at_most(1)] = None
    ema_decay: Annotated[float, at_least(0), at_most(1)] = 0.9999
    text_encoder: str | None = None
    train_text_encoder: bool = False
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


@dataclass(frozen=True)
class Evaluation(Options):
    """What an autoencoder is measured on.

    Attributes:
        limit: Use the first so many images.
        batch_size: Images at once.
        feature_steps: Training steps of the net whose features the Fréchet distance is taken in.
        seed: Of that net.
    """

    limit: Annotated[int | None, at_least(65)] = None
    batch_size: Annotated[int, at_least(1)] = 32
    feature_steps: Annotated[int, at_least(1)] = 300
    seed: Annotated[int, at_least(0)] = 0


@dataclass(frozen=True)
class SampleSettings(Options):
    """The sampler, and what it draws.

    Attributes:
        sampler: ddim, plms (diffusers' PNDMScheduler) or ddpm (all steps).
        num_inference_steps: Number of steps; not read by ddpm.
        eta: Randomness of ddim; 0 is deterministic.
        guidance_scale: w in u + w (c - u); 1 is off.
        height: Of the images in pixels; by default what the condition says, or the training size.
        width: Likewise.
        tile: Side of overlapping windows in latent pixels, for sizes beyond the training size.
        tile_stride: Distance of the windows; half the side by default.
        seed: Sample i of a seed is the same whatever the batch size.
        batch_size: Images at once.
    """

    sampler: Literal["ddim", "plms", "ddpm"] = "ddim"
    num_inference_steps: Annotated[int, at_least(1)] = 50
    eta: Annotated[float, at_least(0), at_most(1)] = 0.0
    guidance_scale: float = 1.0
    height: Annotated[int | None, at_least(1)] = None
    width: Annotated[int | None, at_least(1)] = None
    tile: Annotated[int | None, at_least(1)] = None
    tile_stride: Annotated[int | None, at_least(1)] = None
    seed: Annotated[int, at_least(0), below(2**63)] = 0
    batch_size: Annotated[int, at_least(1)] = 16

    def check(self) -> None:
        """Refuse settings that do nothing, and windows with gaps between.

        Raises:
            InputError: Naming them.
        """
        if self.sampler != "ddim" and self.eta:
            raise InputError(f"{self.sampler} takes no eta; use ddim")
        if self.tile is None and self.tile_stride is not None:
            raise InputError("tile_stride needs tile, the side of the windows")
        if self.tile is not None and (self.tile_stride or 1) > self.tile:
            raise InputError(f"tile_stride must be at most tile ({self.tile}), got {self.tile_stride}")

    @property
    def tiles(self) -> "Tiles | None":
        """The windows of the latent; None runs the U-Net on the whole of it."""
        if self.tile is None:
            return None
        from noiseworks.ldm.diffusion.tiling import Tiles

        return Tiles(self.tile, self.tile_stride or max(1, self.tile // 2))


@dataclass(frozen=True)
class Asked(Options):
    """What is asked of a model: what its task takes, and nothing else.

    Attributes:
        prompt: Caption, or a file with one a line.
        label: Class; the number of classes itself is the null class.
        boxes: JSON file of a layout, a list of [class, x0, y0, x1, y1] with corners in [0, 1].
        segmentation: Single-channel or palette image file whose pixel values are classes.
        image: RGB image file to enlarge, or with mask to fill.
        mask: Single-channel image file of the same size; white is the hole.
    """

    prompt: str | None = None
    label: Annotated[int | None, at_least(0)] = None
    boxes: Path | None = None
    segmentation: Path | None = None
    image: Path | None = None
    mask: Path | None = None

    def check(self) -> None:
        """Refuse what no task takes together, and files that are not there.

        Raises:
            InputError: Naming them.
        """
        if len(self.given) > 1 and self.given != ("image", "mask"):
            raise InputError(f"no model takes {said(self.given)} together")
        for path in self.files:
            if not path.is_file():
                raise InputError(f"no file {path}")

    @property
    def given(self) -> tuple[str, ...]:
        """Names of what is there."""
        return tuple(field.name for field in fields(self) if getattr(self, field.name) is not None)

    @property
    def files(self) -> tuple[Path, ...]:
        """The files among it."""
        return tuple(path for name in self.given if isinstance(path := getattr(self, name), Path))


def said(names: tuple[str, ...]) -> str:
    """Return options as a sentence has them."""
    return " and ".join(f"--{name}" for name in names) or "nothing"
