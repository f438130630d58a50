"""What the claim measures: time to a reference loss, features, and filled-in images, on scenes of one object.

All arms are hidden the same squares of 8 pixels in the same order of the same images, and are judged in pixels: a
latent model's prediction goes through the decoder of the frozen autoencoder first. Time is that of the process, so that
neighbours on the machine cost nothing; encoding the latents once is given beside it.
"""

import time
from dataclasses import dataclass, field
from typing import Any

import torch
from noiseworks.bench.claims import Context, Measurement
from noiseworks.bench.testbeds.shapes import render, sample_scenes
from noiseworks.bench.testbeds.shapes.scenes import COLORS, POSITIONS, SHAPES
from noiseworks.core.artifacts import load_artifact, save_artifact
from noiseworks.core.devices import resolve_device
from noiseworks.core.timing import synchronize
from noiseworks.kits.backbones import few_shot, fit_loss
from noiseworks.kits.backbones.masking import Masks, keep_count, random_masks
from noiseworks.lmd.features import features_of, psnr, untrained
from noiseworks.lmd.latents import Space
from noiseworks.lmd.model import LMD
from noiseworks.lmd.options import Latents, LMDConfig, Masking, Network, Pretraining
from noiseworks.lmd.training import masked_loss, optimizer_of
from torch import Tensor

BLOCK = 8  # side in pixels of what is hidden at once: a patch of two latent pixels
PIXELS, COARSE = 4, 8  # patches of the two masked auto-encoders of pixels
RATIOS = (0.25, 0.5, 0.75)
KEPT = "lmd/claim-training"


@dataclass
class Shared:
    """What the arms of a seed share.

    Attributes:
        seed: Of weights, batches and masks.
        images: To learn from.
        held: To judge by.
        attributes: Of each of shape, colour and place: labels of the images, and of the held-out ones.
        space: The frozen autoencoder.
        latents: Of the images.
        encoding: Seconds that those took.
        reference: What the pixels' auto-encoder ends with.
        pixels: What it measured.
    """

    seed: int
    images: Tensor
    held: Tensor
    attributes: list[tuple[Tensor, Tensor]]
    space: Space
    latents: Tensor
    encoding: float
    reference: float = 0.0
    pixels: dict[str, Any] = field(default_factory=dict)


class Clock:
    """Seconds of a training, without what is measured in between.

    Args:
        device: Where it runs; on a CPU only the process's own time counts.
    """

    def __init__(self, device: torch.device) -> None:
        self.device, self.now = device, time.process_time if device.type == "cpu" else time.perf_counter
        self.begun, self.paused = self.now(), 0.0

    @property
    def seconds(self) -> float:
        """Seconds so far."""
        synchronize(self.device)
        return self.now() - self.begun - self.paused


def scenes(count: int, split: str) -> tuple[Tensor, list[Tensor]]:
    """Return images of one object in [-1, 1], and their shapes, colours and places."""
    found = [scene for scene in sample_scenes(count, 0, split) if scene.kind == "single"]
    images = torch.as_tensor(render(found) * 2 - 1).permute(0, 3, 1, 2).float().contiguous()
    names = [(s.objects[0].shape, s.objects[0].color, s.position) for s in found]
    orders = (SHAPES, list(COLORS), list(POSITIONS))
    columns = zip(orders, zip(*names, strict=True), strict=True)
    return images, [torch.tensor([order.index(n) for n in column]) for order, column in columns]


def prepare_seed(seed: int, context: Context) -> Shared:
    """Draw the scenes, encode them, and train the pixels' auto-encoder, whose last loss is the reference."""
    sizes = context.settings
    images, known = scenes(sizes["scenes"], "train")
    held, asked = scenes(sizes["scenes"] // 4, "test")
    space = Space.load(Latents(scale_latents=True)).to(resolve_device(context.device))
    clock = Clock(resolve_device(context.device))
    latents = space.encode(images)
    attributes = list(zip(known, asked, strict=True))
    shared = Shared(seed, images, held, attributes, space, latents, clock.seconds)
    shared.pixels = kept(
        "pixels", shared, context, Space(None), images, PIXELS, Masking("fixed"), sizes["steps"]
    )
    shared.reference = shared.pixels["curve"][-1][2]
    return shared


def on_grid(coarse: Masks, side: int) -> Masks:
    """Return masks of a square grid of patches that hide the same squares as masks of a coarser one.

    Args:
        coarse: Masks of a grid whose side divides `side`.
        side: Patches on a side.
    """
    removed = coarse.removed.unflatten(1, (int(coarse.removed.shape[1] ** 0.5), -1))
    factor = side // removed.shape[1]
    fine = removed.repeat_interleave(factor, 1).repeat_interleave(factor, 2).flatten(1)
    return Masks.of_scores(fine.float(), int((~fine[0]).sum()))


def squares(count: int, image_side: int, side: int, ratio: float, generator: torch.Generator | None) -> Masks:
    """Return masks of a grid that hide squares of 8 pixels."""
    places = (image_side // BLOCK) ** 2
    return on_grid(random_masks(count, places, keep_count(places, ratio), generator=generator), side)


def filled_in(
    model: LMD, space: Space, images: Tensor, ratio: float, device: torch.device
) -> tuple[Tensor, Tensor]:
    """Return images whose hidden squares a model filled in, and where those are, bool (n, 1, H, W)."""
    generator = torch.Generator().manual_seed(0)
    side = images.shape[-1]
    coarse = random_masks(
        len(images), (side // BLOCK) ** 2, keep_count((side // BLOCK) ** 2, ratio), generator=generator
    )
    masks = on_grid(coarse, model.config.size // model.config.patch)
    masks = Masks(*(part.to(device) for part in masks))
    with torch.inference_mode():
        made = space.decode(model.reconstruct(space.encode(images.to(device)), masks)).cpu()
    hidden = on_grid(coarse, side).removed.unflatten(1, (1, side, side))
    return made, hidden


def loss_of(model: LMD, space: Space, images: Tensor, mean: Tensor, device: torch.device) -> float:
    """Return the squared error of hidden pixels at 0.75, as a share of that of the mean image."""
    made, hidden = filled_in(model, space, images, RATIOS[-1], device)
    own, plain = (((x - images).square() * hidden).sum() for x in (made, mean))
    return float(own / plain)


def kept(
    name: str,
    shared: Shared,
    context: Context,
    space: Space,
    inputs: Tensor,
    patch: int,
    masking: Masking,
    steps: int,
) -> dict[str, Any]:
    """Train one auto-encoder, or take the one that a run of this seed which was stopped has trained already.

    Returns:
        `model`, and `curve`, its (step, seconds, loss).
    """
    folder, device = context.folder / name, resolve_device(context.device)
    network = Network(**context.settings["network"], patch=patch)
    config = LMDConfig(**vars(network), size=inputs.shape[-1], channels=inputs.shape[1])
    model = untrained(config, shared.seed)
    if folder.is_dir():
        found, weights = load_artifact(folder, KEPT)
        model.load_state_dict(weights)
        return {"model": model.requires_grad_(False).to(device), "curve": found["curve"]}
    made, curve = trained(model, shared, context, space, inputs, masking, steps)
    save_artifact(folder, KEPT, {"curve": curve}, made.state_dict())
    return {"model": made, "curve": curve}


def trained(
    model: LMD, shared: Shared, context: Context, space: Space, inputs: Tensor, masking: Masking, steps: int
) -> tuple[LMD, list[tuple[int, float, float]]]:
    """Train a new auto-encoder, and return it and its curve of (step, seconds, loss)."""
    sizes, device = context.settings, resolve_device(context.device)
    recipe = Pretraining(
        max_steps=steps,
        batch_size=sizes["batch"],
        seed=shared.seed,
        normalise=False,
        device=context.device,
    )
    model, side = model.train(), model.config.size // model.config.patch
    judged, mean = shared.held[: sizes["judged"]], shared.images.mean(0)
    clock, curve = Clock(device), []

    def look(model: LMD, step: int) -> None:
        seconds, begun = clock.seconds, clock.now()
        curve.append((step, seconds, loss_of(model, space, judged, mean, device)))
        clock.paused += clock.now() - begun

    def loss(model: LMD, batch: dict[str, Tensor], step: int) -> dict[str, Tensor]:
        if step and step % sizes["every"] == 0:
            look(model, step)
        patches = model.patches(batch["x"])
        masks = squares(
            len(patches), shared.images.shape[-1], side, masking.ratio(step, recipe.max_steps), None
        )
        masks = Masks(*(part.to(patches.device) for part in masks))
        return {"loss": masked_loss(model, patches, masks, normalise=False)}

    made = fit_loss(
        model, {"x": inputs}, loss, recipe, make_optimizer=optimizer_of(recipe), progress=False
    ).to(device)
    look(made, recipe.max_steps)
    return made, curve


def probe(shared: Shared, features: tuple[Tensor, Tensor], shots: int) -> float:
    """Return the few-shot accuracy of shape, colour and place."""
    known, asked = features
    found = [few_shot((known, a), (asked, b), shots) for a, b in shared.attributes]
    return sum(found) / len(found)


def measure_arm(arm: str, shared: Shared, context: Context) -> Measurement:
    """Train one arm and measure it; the pixels' one has been trained already."""
    shots, device = context.settings["shots"], resolve_device(context.device)
    if arm == "raw":
        rows = (shared.images.flatten(1), shared.held.flatten(1))
        return Measurement({"probe": probe(shared, rows, shots)})
    latent = arm in ("untrained", "fixed", "lmd")
    space = shared.space if latent else Space(None)
    inputs = shared.latents if latent else shared.images
    asked = space.encode(shared.held.to(device)).cpu()
    if arm == "untrained":
        network = LMDConfig(
            **context.settings["network"], patch=2, size=inputs.shape[-1], channels=inputs.shape[1]
        )
        encoder = untrained(network, shared.seed).encoder
        rows = (features_of(encoder, inputs), features_of(encoder, asked))
        return Measurement({"probe": probe(shared, rows, shots)})
    if arm == "pixels":
        found = shared.pixels
    else:
        patch, schedule = {"coarse": (COARSE, "fixed"), "fixed": (2, "fixed"), "lmd": (2, "cosine")}[arm]
        found = kept(arm, shared, context, space, inputs, patch, Masking(schedule), context.settings["short"])
    model, curve = found["model"], found["curve"]
    reached = next((seconds for _, seconds, loss in curve if loss <= shared.reference), None)
    seconds = curve[-1][1] if reached is None else reached
    images = curve[-1][0] * context.settings["batch"]
    rows = (features_of(model.encoder, inputs), features_of(model.encoder, asked))
    judged = shared.held[: context.settings["judged"]]
    metrics: dict[str, Any] = {
        "seconds": seconds,
        "with_encoding": seconds + (shared.encoding if latent else 0.0),
        "milliseconds": 1000 * curve[-1][1] / images,
        "reached": float(reached is not None),
        "loss": curve[-1][2],
        "probe": probe(shared, rows, shots),
    }
    for ratio in RATIOS:
        made, _ = filled_in(model, space, judged, ratio, device)
        metrics[f"psnr{ratio:g}".replace(".", "")] = psnr(made, judged).tolist()
    series = {"loss": ([s for _, s, _ in curve], [v for _, _, v in curve])}
    notes = (
        []
        if reached is not None
        else [f"{arm}: the reference loss was not reached; its seconds are the whole run"]
    )
    return Measurement(metrics, series=series, notes=notes)
