"""What the claim protects, edits and reads on the testbed `shapes-inpaint`.

An object is kept by a mask and a prompt asks for another background. An edit came out when the oracle reads the wanted
background and the object as it was. A defence protected an edit that comes out on the original and not on the
protected image, from the same noise. All defences have one budget of change and as many passes of the U-Net. What is
left of a protection after a purifier is measured against originals that went the same way.
"""

import time
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import torch
from noiseworks.bench.claims import Context, Measurement
from noiseworks.bench.testbeds.shapes import render
from noiseworks.bench.testbeds.shapes.editing import (
    MASK_KINDS,
    UNSEEN,
    Edit,
    edit_masks,
    edit_success,
    sample_edits,
)
from noiseworks.diffusionguard.contours import ContourShrink
from noiseworks.diffusionguard.early_stage import noise_norms
from noiseworks.diffusionguard.methods import passes_a_step, protect_with
from noiseworks.diffusionguard.options import Guard, Strength
from noiseworks.kits.diffusers_hosts import load_pipeline
from noiseworks.kits.pictures import strip, to_pixels, write_picture
from noiseworks.kits.protection.editors import Call, inpaint
from noiseworks.kits.protection.engine import draw_normal, streams
from noiseworks.kits.protection.files import to_tensor, within_budget
from noiseworks.kits.protection.hosts import Host, host_of
from noiseworks.kits.protection.metrics import psnr, visibility
from noiseworks.kits.protection.objectives import masked_image
from noiseworks.kits.protection.purifiers import follow, purify
from torch import Tensor

EDITOR = "testbed:shapes-inpaint"
GUIDANCE = 2.0  # at which the testbed keeps colours best
SHRINK_SIZE = 128  # at which small masks are shrunk
PURIFIERS = ("jpeg-75", "crop-resize", "adverse-cleaner")
LOOSE = "box"  # the unseen mask under which what is left of a protection is measured
BATCH = 64  # images at once


@dataclass(frozen=True, eq=False)
class Shared:
    """What the arms of a seed share.

    Attributes:
        pipe: The editor, which the defences know.
        edits: Scenes and what is asked for.
        pixels: The originals, uint8 [n, 32, 32, 3].
        masks: Kind -> [n, 1, 32, 32].
        clean: Kind or purifier -> edited originals [n, 3, 32, 32].
        seed: The seed.
    """

    pipe: Any
    edits: list[Edit]
    pixels: np.ndarray
    masks: dict[str, Tensor]
    clean: dict[str, Tensor]
    seed: int


@cache
def load(model: str, device: str) -> Any:
    """Return an editor."""
    return load_pipeline(model, device, families=("sd", "sdxl"))


def edit_originals(seed: int, context: Context) -> Shared:
    """Draw the scenes of a seed and edit the originals with every mask and after every purifier."""
    pipe = load(context.model or EDITOR, context.device)
    edits = sample_edits(int(context.settings["images"]), seed)
    pixels = np.round(render([edit.scene for edit in edits]) * 255).astype(np.uint8)
    masks = {kind: torch.from_numpy(edit_masks(edits, kind)) for kind in MASK_KINDS}
    shared = Shared(pipe, edits, pixels, masks, {}, seed)
    shared.clean.update(_edited(shared, pixels, context))
    return shared


def _edited(shared: Shared, pixels: np.ndarray, context: Context) -> dict[str, Tensor]:
    """Return what becomes of images under each mask and after each purifier, in one call; noise belongs to the row."""
    views = {kind: (to_tensor(pixels), mask) for kind, mask in shared.masks.items()}
    for name in PURIFIERS[: int(context.settings["purifiers"])]:
        views[name] = to_tensor(purify(name, pixels)), follow(name, shared.masks[LOOSE])
    prompts = [edit.prompt for edit in shared.edits]
    call = Call(int(context.settings["edit_steps"]), GUIDANCE, 1000 * shared.seed, BATCH)
    images, masks = (torch.cat(parts) for parts in zip(*views.values(), strict=True))
    rows = inpaint(shared.pipe, images, masks, prompts * len(views), call).split(len(prompts))
    return dict(zip(views, rows, strict=True))


def _success(images: Tensor, edits: list[Edit]) -> np.ndarray:
    return edit_success(images.permute(0, 2, 3, 1).numpy(), edits)


def steps_of(arm: str, steps: int) -> int:
    """Return an arm's steps: as many passes of the U-Net as DiffusionGuard has, or its steps where there are none."""
    mine = passes_a_step(arm)
    return max(1, steps * passes_a_step("diffusionguard") // mine) if mine else steps


@torch.no_grad()
def first_step_ratio(host: Host, shared: Shared, protected: np.ndarray, early_steps: int) -> list[float]:
    """Return the norm of the noise predicted at t* for protected images, relative to that for the originals."""
    norms, mask = [], shared.masks["seen"]
    for pixels in (shared.pixels, protected):
        masked = host.encode(masked_image(to_tensor(pixels), mask))
        start = draw_normal(streams(Strength(seed=1000 * shared.seed), len(pixels)), masked.shape[1:], masked)
        norms.append(noise_norms(host.predict(start, host.first_timestep(early_steps), masked, mask)))
    return (norms[1] / norms[0]).tolist()


def measure(arm: str, shared: Shared, context: Context) -> Measurement:
    """Return the shares of edits that a defence protected, an image each, and what it cost."""
    steps = int(context.settings["steps"])
    strength = Strength(eps_255=16, step_255=1, steps=steps_of(arm, steps), seed=1000 * shared.seed)
    protected, seconds, passes, ratio = shared.pixels, 0.0, 0, [1.0] * len(shared.edits)
    if arm != "unprotected":
        start = time.perf_counter()
        with host_of(shared.pipe) as host:
            guard = Guard(pool=int(context.settings["pool"]))
            found = protect_with(
                arm, host, to_tensor(shared.pixels), shared.masks["seen"], strength, guard,
                shrink=ContourShrink(size=SHRINK_SIZE),
            )  # fmt: skip
            seconds = time.perf_counter() - start
            passes = host.passes["unet"] + host.passes["unet backward"]
            protected = within_budget(found.images, shared.pixels, strength.eps_255)
            ratio = first_step_ratio(host, shared, protected, guard.early_steps)
    count = len(shared.edits)
    edits = shared.clean if arm == "unprotected" else _edited(shared, protected, context)
    came = {name: _success(part, shared.edits) for name, part in shared.clean.items()}
    fails = {name: came[name] & ~_success(part, shared.edits) for name, part in edits.items()}

    def protected_of(names: Iterable[str]) -> list[float]:
        """Return for each image the share of the clean edits that come out which fail when protected."""
        right = np.sum([came[name] for name in names], axis=0)
        return (np.sum([fails[name] for name in names], axis=0) / np.maximum(1, right)).tolist()

    metrics = {
        "unseen": protected_of(UNSEEN),
        **{name: protected_of([name]) for name in edits if name not in UNSEEN},
        "edit_psnr": torch.stack([psnr(shared.clean[k], edits[k]) for k in UNSEEN]).mean(0).tolist(),
        "ssim": visibility(to_tensor(shared.pixels), to_tensor(protected))["ssim"].tolist(),
        "norm_ratio": ratio,
        "unet_passes": passes / count,
        "seconds": seconds / count,
        "succeeds": np.mean([came[kind] for kind in MASK_KINDS], axis=0).tolist(),
    }
    shown = min(8, count)
    rows = [
        shared.pixels[:shown],
        to_pixels(shared.clean[LOOSE][:shown]),
        protected[:shown],
        to_pixels(edits[LOOSE][:shown]),
    ]
    picture = write_picture(
        np.concatenate([strip(row, scale=2) for row in rows]), context.folder / f"{arm}.png"
    )
    return Measurement(metrics, images={f"original, its edit, protected, its edit: {arm}": picture})
