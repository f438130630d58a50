"""The command `train-ae`: a first stage from a folder of images to a diffusers autoencoder."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import lightning as L  # noqa: TID253
import torch
from cyclopts import Parameter
from lightning.pytorch.callbacks import ModelCheckpoint  # noqa: TID253
from noiseworks.core.artifacts import HOST_FOLDER, atomic_directory, check_folder
from noiseworks.core.checks import check_choice, check_number
from noiseworks.core.errors import InputError
from noiseworks.ldm.data import Rows, holdout, load_images
from noiseworks.ldm.discriminator import PatchDiscriminator
from noiseworks.ldm.first_stage import CodebookOptions, FirstStageTrainer, scaled_learning_rate
from noiseworks.ldm.loader import ResumableLoader
from noiseworks.ldm.losses import PerceptualAdversarialLoss
from noiseworks.ldm.perceptual import Perceptual, train_features
from noiseworks.ldm.runs import CHECKPOINT, RunOptions, make_trainer, open_run
from noiseworks.ldm.scaling import estimate_scale
from torch.utils.data import DataLoader, Dataset

if TYPE_CHECKING:
    from diffusers import AutoencoderKL, VQModel

FACTORS = (1, 2, 4, 8, 16, 32)
_MULTIPLIERS = {
    1: (1,),
    2: (1, 2),
    4: (1, 2, 4),
    8: (1, 2, 4, 4),
    16: (1, 1, 2, 2, 4),
    32: (1, 1, 2, 2, 4, 4),
}
_LATENT_CHANNELS = {1: 3, 2: 3, 4: 3, 8: 4, 16: 16, 32: 64}
_FEATURE_IMAGES = 1024


@Parameter(name="*")
@dataclass(frozen=True)
class AutoencoderOptions:
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
    factor: int = 4
    latent_channels: int | None = None
    width: int = 128
    layers: int = 2
    codes: int = 8192
    attention: bool = True
    in_channels: int = 3
    codebook_decay: float | None = None
    restart_every: int = 0


@Parameter(name="*")
@dataclass(frozen=True)
class LossOptions:
    """The loss and its optimisers.

    Attributes:
        learning_rate: Base rate of both optimisers.
        scale_lr: Whether the rate is base x processes x batch size.
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

    learning_rate: float = 4.5e-6
    scale_lr: bool = True
    perceptual: Literal["trained", "lpips", "none"] = "trained"
    feature_steps: int = 300
    vgg_weights: Path | None = None
    lpips_weights: Path | None = None
    kl_weight: float = 1e-6
    adversarial: bool = True
    disc_start: int | None = None
    disc_weight: float | None = None
    disc_width: int = 64
    disc_norm: Literal["batch", "group"] = "batch"
    learn_logvar: bool = False
    ema_decay: float | None = None
    resize_range: tuple[int, int] | None = None


@dataclass(frozen=True)
class TrainedAutoencoder:
    """What `train_autoencoder` made.

    Attributes:
        vae: Directory of the autoencoder, for `from_pretrained`.
        batches: Batches trained on.
        rec_loss: Smallest validation reconstruction loss; these weights are in `vae`.
        scaling_factor: Written to the autoencoder's config; 1 for VQ.
    """

    vae: Path
    batches: int
    rec_loss: float
    scaling_factor: float


def make_autoencoder(
    options: AutoencoderOptions, size: int = 256, seed: int = 0
) -> "AutoencoderKL | VQModel":
    """Return a new autoencoder with the paper's channel multipliers for its factor.

    Args:
        options: Kind, factor and widths.
        size: Side of the training images, noted in the config.
        seed: Of the initial weights.

    Raises:
        InputError: When an option is outside its range.
    """
    check_choice("kind", options.kind, ("kl", "vq"))
    check_choice("factor", options.factor, FACTORS)
    check_number("width", options.width, low=8, integer=True)
    if options.width % 8:
        raise InputError(f"width must be a multiple of 8 (the groups of the norms), got {options.width}")
    if size % options.factor:
        raise InputError(
            f"the image size {size} is not a multiple of f = {options.factor}; choose another size"
        )
    from diffusers import AutoencoderKL, VQModel

    widths = tuple(options.width * multiplier for multiplier in _MULTIPLIERS[options.factor])
    channels = options.latent_channels or _LATENT_CHANNELS[options.factor]
    common = {
        "in_channels": options.in_channels,
        "out_channels": options.in_channels,
        "down_block_types": ("DownEncoderBlock2D",) * len(widths),
        "up_block_types": ("UpDecoderBlock2D",) * len(widths),
        "block_out_channels": widths,
        "layers_per_block": options.layers,
        "latent_channels": channels,
        "sample_size": size,
        "norm_num_groups": 32 if options.width % 32 == 0 else 8,
        "mid_block_add_attention": options.attention,
        "scaling_factor": 1.0,
    }
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if options.kind == "kl":
            return AutoencoderKL(**common)
        return VQModel(**common, num_vq_embeddings=options.codes, vq_embed_dim=channels)


def make_loss(kind: str, options: LossOptions, dataset: Dataset, seed: int = 0) -> PerceptualAdversarialLoss:
    """Return the loss of a run; a `"trained"` perceptual net is trained here, on images of `dataset`."""
    features = None
    if options.perceptual == "trained":
        count = min(len(dataset), _FEATURE_IMAGES)
        images = torch.stack([dataset[row]["image"] for row in range(count)])
        features, _ = train_features(images, steps=options.feature_steps, seed=seed)
    perceptual = Perceptual(options.perceptual, features, options.vgg_weights, options.lpips_weights)
    disc = None
    if options.adversarial:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed + 1)
            channels = dataset[0]["image"].shape[0]
            disc = PatchDiscriminator(channels, width=options.disc_width, norm=options.disc_norm)
    return PerceptualAdversarialLoss(
        kind,
        perceptual,
        disc,
        kl_weight=options.kl_weight,
        disc_weight=options.disc_weight,
        disc_start=options.disc_start,
        learn_logvar=options.learn_logvar,
    )


def train_autoencoder(
    data: str,
    out: Path,
    *,
    size: int | None = None,
    validation_share: float = 0.05,
    model: AutoencoderOptions | None = None,
    loss: LossOptions | None = None,
    run: RunOptions | None = None,
) -> TrainedAutoencoder:
    """Train a first stage and write it as a diffusers autoencoder, `OUT/vae`.

    `OUT` holds config.yaml, metrics.csv, TensorBoard logs and checkpoints. A killed run goes on with
    --resume, to the numbers of an uninterrupted one.

    Args:
        data: A folder of images, or an .npz or .npy array [N, H, W, 3].
        out: The run's folder.
        size: Side of the images in pixels, for folders.
        validation_share: Share of the images held out.
        model: The autoencoder.
        loss: The loss and its optimisers.
        run: Length, speed and bookkeeping.

    Raises:
        InputError: When an option is out of range, the data do not fit, or `out` holds another run.
    """
    model, loss, run = model or AutoencoderOptions(), loss or LossOptions(), run or RunOptions()
    out = Path(out)
    check_folder(out / "vae", HOST_FOLDER, sources=(data,))
    dataset = load_images(data, size)
    training, held = (Rows(dataset, rows) for rows in holdout(dataset, validation_share, run.seed))
    vae = make_autoencoder(model, dataset[0]["image"].shape[-1], run.seed)
    if run.devices > 1 and loss.adversarial and loss.disc_norm == "batch":
        raise InputError(
            "several processes need --disc-norm group: batch statistics would differ between them"
        )
    trainer = make_trainer(out, run, (_best(out),))
    places = {"rank": trainer.global_rank, "world_size": trainer.world_size, "num_workers": run.num_workers}
    loaders = [
        ResumableLoader(training, run.batch_size, seed=run.seed, accumulate=run.accumulate, **places),
        # All held-out images in a fixed order, so that a resumed run measures the same.
        DataLoader(held, run.batch_size, collate_fn=lambda batch: batch),
    ]
    rate = loss.learning_rate * (
        scaled_learning_rate(1.0, run.batch_size, run.devices, run.accumulate) if loss.scale_lr else 1.0
    )
    module = FirstStageTrainer(
        vae,
        make_loss(model.kind, loss, training, run.seed),
        learning_rate=rate,
        ema_decay=loss.ema_decay,
        resize_range=loss.resize_range,
        codebook=CodebookOptions(average_decay=model.codebook_decay, restart_every=model.restart_every),
        seed=run.seed,
        accumulate=run.accumulate,
    )
    settings = (
        {"data": data, "size": size, "validation_share": validation_share} | asdict(model) | asdict(loss)
    )
    if module.loss.disc is not None:
        module.loss.disc.check_size(run.batch_size, *dataset[0]["image"].shape[-2:])
    if run.batches is not None:
        module.loss.warn_if_never_adversarial(run.batches)
    settings |= {"batch_size": run.batch_size, "accumulate": run.accumulate, "seed": run.seed}
    checkpoint = open_run(out, settings, run.resume)
    trainer.fit(module, *loaders, ckpt_path=checkpoint, weights_only=True)
    return _finish(trainer, module, training, out)


def _best(out: Path) -> ModelCheckpoint:
    folder = out / CHECKPOINT.parent
    return ModelCheckpoint(
        folder, filename="best", monitor="val/rec_loss", save_weights_only=True, enable_version_counter=False
    )


def _finish(
    trainer: L.Trainer, module: FirstStageTrainer, training: Dataset, out: Path
) -> TrainedAutoencoder:
    """Write the last checkpoint, and the weights of the best validation as an autoencoder with its scale."""
    trainer.save_checkpoint(out / CHECKPOINT, weights_only=False)
    trainer.validate(module, trainer.val_dataloaders, verbose=False)
    rec_loss, best = float(trainer.callback_metrics["val/rec_loss"]), trainer.checkpoint_callback
    if best.best_model_score is not None and float(best.best_model_score) < rec_loss:
        rec_loss = float(best.best_model_score)
        state = torch.load(best.best_model_path, map_location="cpu", weights_only=True)["state_dict"]
        module.load_state_dict(state)
    vae = module.average if module.average is not None else module.vae
    scale = 1.0
    if module.loss.kind == "kl":
        rows = range(min(len(training), 256))
        images = ({"image": training[row]["image"][None]} for row in rows)
        scale = estimate_scale(vae, images, batches=len(rows))
    vae.register_to_config(scaling_factor=scale)
    if trainer.is_global_zero:
        with atomic_directory(out / "vae", HOST_FOLDER) as folder:
            vae.save_pretrained(folder)
    return TrainedAutoencoder(out / "vae", module.batches_done, rec_loss, scale)
