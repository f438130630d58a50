"""What `train-ae` does: a first stage from a folder of images to a diffusers autoencoder."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from lightning.pytorch.callbacks import ModelCheckpoint  # noqa: TID253
from noiseworks.core.artifacts import HOST_FOLDER, atomic_directory
from noiseworks.core.errors import InputError
from noiseworks.kits.training import Batches, fit, open_run
from noiseworks.ldm.data import Rows, holdout, load_images
from noiseworks.ldm.diffusion.scaling import estimate_scale
from noiseworks.ldm.first_stage.discriminator import PatchDiscriminator
from noiseworks.ldm.first_stage.losses import PerceptualAdversarialLoss
from noiseworks.ldm.first_stage.perceptual import Perceptual, train_features
from noiseworks.ldm.first_stage.trainer import FirstStageTrainer, scaled_learning_rate
from noiseworks.ldm.options import AutoencoderOptions, LossOptions, RunOptions
from torch.utils.data import DataLoader, Dataset

if TYPE_CHECKING:
    from diffusers import AutoencoderKL, VQModel

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


@dataclass(frozen=True)
class TrainedAutoencoder:
    """What the training made.

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
    )


def run_training(settings: Mapping[str, Any], out: Path) -> TrainedAutoencoder:
    """Train in a folder and write the autoencoder; see the command `train-ae`.

    Args:
        settings: `images`, `model`, `loss` and `run`: options as the command has them, which name the run.
        out: The run's folder.

    Raises:
        InputError: When the data do not fit, or `out` holds another run.
    """
    images, model, loss, run = (settings[name] for name in ("images", "model", "loss", "run"))
    dataset = load_images(images)
    training, held = (Rows(dataset, rows) for rows in holdout(dataset, images.validation_share, run.seed))
    batches = Batches(
        training,
        run.batch_size,
        seed=run.seed,
        accumulate=run.accumulate,
        num_workers=run.num_workers,
    )
    vae = make_autoencoder(model, dataset[0]["image"].shape[-1], run.seed)
    module = make_trainer(vae, make_loss(model.kind, loss, training, run.seed), loss, run)
    if module.loss.disc is not None:
        module.loss.disc.check_size(run.batch_size // run.devices, *dataset[0]["image"].shape[-2:])
    module.loss.warn_if_never_adversarial(run.max_steps * run.accumulate)
    best = ModelCheckpoint(
        out / "checkpoints",
        filename="best",
        monitor="val/rec_loss",
        save_weights_only=True,
        enable_version_counter=False,
    )
    with open_run(out, settings) as opened:
        done = fit(
            module,
            batches,
            run=opened,
            options=run,
            # All held-out images in a fixed order.
            validation=DataLoader(held, run.batch_size // run.devices, collate_fn=lambda batch: batch),
            validate_every=run.validate_every,
            callbacks=(best,),
            unused_parameters=True,  # the steps of autoencoder and discriminator leave each other's alone
        )
        return _finish(module, best, done.validation["val/rec_loss"], training, out)


def make_trainer(
    vae: "AutoencoderKL | VQModel",
    loss: PerceptualAdversarialLoss,
    options: LossOptions,
    run: RunOptions,
) -> FirstStageTrainer:
    """Return the module that trains an autoencoder with a loss."""
    scale = scaled_learning_rate(1.0, run.batch_size, 1, run.accumulate) if options.scale_lr else 1.0
    return FirstStageTrainer(
        vae,
        loss,
        learning_rate=options.learning_rate * scale,
        ema_decay=options.ema_decay,
        seed=run.seed,
        accumulate=run.accumulate,
    )


def _finish(
    module: FirstStageTrainer, best: ModelCheckpoint, rec_loss: float, training: Dataset, out: Path
) -> TrainedAutoencoder:
    """Write the weights of the best validation as an autoencoder with its scale."""
    if best.best_model_score is not None and float(best.best_model_score) < rec_loss:
        rec_loss = float(best.best_model_score)
        state = torch.load(best.best_model_path, map_location="cpu", weights_only=True)["state_dict"]
        module.load_state_dict(state)
    vae = module.vae if module.average is None else module.average.model
    scale = 1.0
    if module.loss.kind == "kl":
        rows = range(min(len(training), 256))
        images = ({"image": training[row]["image"][None]} for row in rows)
        scale = estimate_scale(vae, images, batches=len(rows))
    vae.register_to_config(scaling_factor=scale)
    if module.global_rank == 0:
        with atomic_directory(out / "vae", HOST_FOLDER) as folder:
            vae.save_pretrained(folder)
    return TrainedAutoencoder(out / "vae", module.batches_done, rec_loss, scale)
