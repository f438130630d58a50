"""Pre-training, fine-tuning for classification, and both models as artifacts."""

import copy
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
from noiseworks.core.artifacts import save_artifact
from noiseworks.core.errors import InputError
from noiseworks.kits.backbones import fit_loss, load_network
from noiseworks.kits.backbones.masking import Masks, keep_count, masked_mean, random_masks
from noiseworks.kits.training import Rows, Run
from noiseworks.lmd.adan import Adan
from noiseworks.lmd.latents import Space, cached_latents, views_of
from noiseworks.lmd.mixing import mixed, smoothed
from noiseworks.lmd.model import LMD, UNDECAYED, Classifier, Encoder, normalise_patches
from noiseworks.lmd.options import FineTuning, Latents, LMDConfig, Masking, Network, Pretraining
from torch import Tensor, nn

MODEL, CLASSIFIER = "lmd/model", "lmd/classifier"
ADAN_BETAS = {Pretraining: (0.98, 0.92, 0.90), FineTuning: (0.98, 0.92, 0.99)}


def masked_loss(model: LMD, patches: Tensor, masks: Masks, normalise: bool) -> Tensor:
    """Return the squared error of the removed patches, `Σ mask mean_d (pred - target)² / Σ mask`.

    Args:
        model: The network.
        patches: (B, N, d).
        masks: At least one patch is removed.
        normalise: Whether each target is its patch less its mean over its deviation.
    """
    target = normalise_patches(patches)[0] if normalise else patches
    return masked_mean((model.predict(patches, masks) - target).square(), masks.removed)


def check_masks(config: LMDConfig, masking: Masking) -> None:
    """Refuse ratios at which no patch would be removed, or none kept.

    Raises:
        InputError: Naming the ratio and the patches.
    """
    for ratio in (masking.ratio(0, 1), masking.most):
        if keep_count(config.places, ratio) == config.places:
            raise InputError(
                f"a mask ratio of {ratio} removes none of {config.places} patches, and the loss is theirs; "
                "use a larger least, or a smaller patch"
            )


def config_of(network: Network, space: Space, images: Tensor) -> LMDConfig:
    """Return the sizes of an auto-encoder of a space's latents of images (n, C, H, W).

    Raises:
        InputError: On images that the autoencoder does not take, or sides that the patch does not divide.
    """
    space.check_images(images[:1])
    channels = images.shape[1] if space.vae is None else space.vae.config.latent_channels
    return LMDConfig(**vars(network), size=images.shape[-1] // space.factor, channels=channels)


def fitting_encoder(encoder: Encoder, space: Space, images: Tensor) -> Encoder:
    """Return the encoder, or one with interpolated positions where images have another side.

    Args:
        encoder: Pre-trained.
        space: What it was pre-trained on.
        images: (n, C, H, W).

    Raises:
        InputError: On images that the autoencoder or the patch does not take.
    """
    space.check_images(images[:1])
    size = images.shape[-1] // space.factor
    return encoder if size == encoder.config.size else encoder.resized(size)


def inputs_of(
    space: Space, images: Tensor, latents: Latents, recipe: Pretraining, folder: Path | None
) -> tuple[Tensor, Pretraining]:
    """Return what is masked, and the recipe for it: views are encoded once, pixels are cropped at every visit.

    Args:
        space: Images and their latents.
        images: (n, C, H, W) in [-1, 1].
        latents: Number of views.
        recipe: Whose crop, flip and seed make the views.
        folder: Where latents are kept; None to keep none.
    """
    if space.vae is None:
        return images, recipe
    views = views_of(images, latents.views, crop=recipe.crop, flip=recipe.flip, seed=recipe.seed)
    about = {"crop": recipe.crop, "flip": recipe.flip, "seed": recipe.seed}
    found = space.encode(views) if folder is None else cached_latents(folder, space, views, about=about)
    return found, replace(recipe, crop=1.0, flip=False)


def pretrain_model(
    config: LMDConfig,
    inputs: Tensor,
    masking: Masking,
    recipe: Pretraining,
    *,
    run: Run | None = None,
    progress: bool = True,
) -> LMD:
    """Train a new masked auto-encoder.

    Args:
        config: Its sizes.
        inputs: Latents, or images in [-1, 1], (n, C, H, W).
        masking: The ratio by step; it depends on the length of the run.
        recipe: How it is trained; crop and flip are for images.
        run: The open run, None to keep nothing.
        progress: Whether to show a bar.

    Raises:
        InputError: When no patch would be removed, or latents were to be cropped.
    """
    check_masks(config, masking)
    if (recipe.crop < 1 or recipe.flip) and float(inputs.abs().max()) > 1 + 1e-4:
        raise InputError("crop and flip change images; make views of them before they are encoded")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.seed)
        model = LMD(config)

    def loss(model: LMD, batch: dict[str, Tensor], step: int) -> dict[str, Tensor]:
        patches = model.patches(batch["x"])
        ratio = masking.ratio(step, recipe.max_steps)
        keep = keep_count(config.places, ratio)
        own = Rows.of(len(patches))
        masks = random_masks(own.total, config.places, keep, kind=masking.kind, device=patches.device)
        masks = masks.of_rows(own)
        return {"loss": masked_loss(model, patches, masks, recipe.normalise), "ratio": torch.tensor(ratio)}

    return fit_loss(
        model,
        {"x": inputs},
        loss,
        recipe,
        run=run,
        make_optimizer=optimizer_of(recipe),
        progress=progress,
    )


def optimizer_of(
    recipe: Pretraining | FineTuning, layer_decay: float = 1.0
) -> Callable[[nn.Module], torch.optim.Optimizer]:
    """Return a function that makes the recipe's optimiser of a model: no weight decay of vectors, rates by depth.

    Args:
        recipe: Rates, decay and kind.
        layer_decay: Factor of the rate from the head to the last block, and from each block to the one below it.
    """

    def make(model: nn.Module) -> torch.optim.Optimizer:
        groups: dict[tuple[int, bool], list[Tensor]] = {}
        for name, parameter in model.named_parameters():
            free = parameter.ndim < 2 or name.rpartition(".")[2] in UNDECAYED
            groups.setdefault((below_head(name, model), free), []).append(parameter)
        listed = [
            {
                "params": held,
                "lr": recipe.lr * layer_decay**below,
                "weight_decay": 0.0 if free else recipe.weight_decay,
            }
            for (below, free), held in sorted(groups.items(), key=lambda item: item[0])
        ]
        if recipe.optimizer == "adan":
            return Adan(listed, recipe.lr, betas=ADAN_BETAS[type(recipe)])
        return torch.optim.AdamW(listed, recipe.lr, betas=(0.9, recipe.beta2), fused=True)

    return make


def below_head(name: str, model: nn.Module) -> int:
    """Return how many layers a parameter of a classifier lies below its head: blocks, then the embeddings.

    Args:
        name: Of the parameter.
        model: A classifier; of another network all parameters are at 0.
    """
    if not isinstance(model, Classifier) or not name.startswith("encoder."):
        return 0
    depth, parts = len(model.encoder.blocks), name.split(".")
    return depth - int(parts[2]) if parts[1] == "blocks" else depth + 1


def finetune_model(
    encoder: Encoder,
    space: Space,
    images: Tensor,
    labels: Tensor,
    recipe: FineTuning,
    *,
    run: Run | None = None,
    progress: bool = True,
) -> Classifier:
    """Return a classifier made of a copy of the encoder, in evaluation mode.

    Latents are encoded once; where crops, mirror images or mixtures change the pixels, at every visit.

    Args:
        encoder: Pre-trained, or new for training from scratch.
        space: What it was pre-trained on.
        images: (n, C, H, W) in [-1, 1].
        labels: (n,), from 0.
        recipe: How it is trained.
        run: The open run, None to keep nothing.
        progress: Whether to show a bar.
    """
    classes = int(labels.max()) + 1
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.seed)
        model = Classifier(copy.deepcopy(encoder).requires_grad_(True), classes, recipe.drop_path).train()

    def loss(model: Classifier, batch: dict[str, Tensor], step: int) -> dict[str, Tensor]:
        x, shares = mixed(batch["x"], batch["y"], classes, recipe.mixup, recipe.cutmix)
        if recipe.changes_images:
            x = space.to(x.device).encode(x)
        found = nn.functional.cross_entropy(model(x), smoothed(shares, recipe.smoothing))
        return {"loss": found}

    rows = {"x": images if recipe.changes_images else space.encode(images), "y": labels}
    return fit_loss(
        model,
        rows,
        loss,
        recipe,
        run=run,
        make_optimizer=optimizer_of(recipe, recipe.layer_decay),
        progress=progress,
    )


@dataclass(frozen=True)
class Trained:
    """What a model was trained on.

    Attributes:
        vae: Name of the autoencoder, or pixels.
        scale_latents: Whether its latents are scaled.
        fingerprint: Of its weights.
        normalise: Whether the model predicts normalised patches.
    """

    vae: str
    scale_latents: bool
    fingerprint: str
    normalise: bool

    def space(self, vae: str | None = None) -> Space:
        """Return the space, from where the autoencoder was in training or is now.

        Raises:
            InputError: When it is another autoencoder.
        """
        name = vae or self.vae
        found = Space.load(Latents(name, self.scale_latents and name != "pixels"))
        if found.fingerprint != self.fingerprint:
            raise InputError(
                f"{name} is another autoencoder than the one the model was trained with, {self.vae}"
            )
        return found


def save_model(path: str | Path, model: LMD, trained: Trained) -> None:
    """Write an auto-encoder and what it was trained on."""
    config = {"model": asdict(model.config), "trained": asdict(trained)}
    save_artifact(path, MODEL, config, model.state_dict())


def load_model(path: str | Path) -> tuple[LMD, Trained]:
    """Read what `save_model` wrote, in evaluation mode.

    Raises:
        ArtifactError: When the folder holds no such model.
    """
    return load_network(
        path, MODEL, lambda config: (LMD(LMDConfig(**config["model"])), Trained(**config["trained"]))
    )


def save_classifier(path: str | Path, model: Classifier, trained: Trained) -> None:
    """Write a classifier and what its encoder was trained on."""
    classes = model.head.out_features
    config = {"model": asdict(model.encoder.config), "classes": classes, "trained": asdict(trained)}
    save_artifact(path, CLASSIFIER, config, model.state_dict())


def load_classifier(path: str | Path) -> tuple[Classifier, Trained]:
    """Read what `save_classifier` wrote, in evaluation mode.

    Raises:
        ArtifactError: When the folder holds no such model.
    """
    return load_network(
        path,
        CLASSIFIER,
        lambda config: (
            Classifier(Encoder(LMDConfig(**config["model"])), config["classes"]),
            Trained(**config["trained"]),
        ),
    )
