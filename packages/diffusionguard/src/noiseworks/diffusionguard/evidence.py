"""What the claim protects, edits and reads on the testbed `shapes-inpaint`.

An object is kept by a mask and a prompt asks for another background. An edit came out when the oracle reads the wanted
background and the object as it was. A defence protected an edit that comes out on the original and not on the
protected image, from the same noise. All defences have one budget of change and as many passes of the U-Net.
"""

import time
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
from noiseworks.diffusionguard.methods import passes_a_step, protect_with
from noiseworks.diffusionguard.options import Guard, Strength
from noiseworks.kits.diffusers_hosts import load_pipeline
from noiseworks.kits.pictures import strip, to_pixels, write_picture
from noiseworks.kits.protection.editors import Call, inpaint
from noiseworks.kits.protection.files import to_tensor, within_budget
from noiseworks.kits.protection.hosts import host_of
from noiseworks.kits.protection.metrics import psnr, visibility
from noiseworks.kits.protection.purifiers import purify
from torch import Tensor

GUIDANCE = 2.0  # at which the testbed keeps colours best
SHRINK_SIZE = 128  # at which the masks of 32 pixels are shrunk


@dataclass(frozen=True, eq=False)
class Shared:
    """What the arms of a seed share.

    Attributes:
        pipe: The editor, which the defences know.
        edits: Scenes and what is asked for.
        pixels: The originals, uint8 [n, 32, 32, 3].
        masks: Kind -> [n, 1, 32, 32].
        clean: Kind -> edited originals [n, 3, 32, 32].
        came_out: Kind -> bool [n].
        seed: The seed.
    """

    pipe: Any
    edits: list[Edit]
    pixels: np.ndarray
    masks: dict[str, Tensor]
    clean: dict[str, Tensor]
    came_out: dict[str, np.ndarray]
    seed: int


@cache
def load(model: str | None, device: str) -> Any:
    """Return the editor, by default the testbed's."""
    return load_pipeline(model or "testbed:shapes-inpaint", device, families=("sd", "sdxl"))


def edit_originals(seed: int, context: Context) -> Shared:
    """Draw the scenes of a seed and edit the originals with every mask."""
    pipe = load(context.model, context.device)
    edits = sample_edits(int(context.settings["images"]), seed)
    pixels = np.round(render([edit.scene for edit in edits]) * 255).astype(np.uint8)
    masks = {kind: torch.from_numpy(edit_masks(edits, kind)) for kind in MASK_KINDS}
    shared = Shared(pipe, edits, pixels, masks, {}, {}, seed)
    for kind in MASK_KINDS:
        shared.clean[kind] = _edited(shared, pixels, kind, context)
        shared.came_out[kind] = _success(shared.clean[kind], edits)
    return shared


def _edited(shared: Shared, pixels: np.ndarray, kind: str, context: Context) -> Tensor:
    call = Call(
        int(context.settings["edit_steps"]), GUIDANCE, 1000 * shared.seed + 100 * MASK_KINDS.index(kind)
    )
    prompts = [edit.prompt for edit in shared.edits]
    return inpaint(shared.pipe, to_tensor(pixels), shared.masks[kind], prompts, call)


def _success(images: Tensor, edits: list[Edit]) -> np.ndarray:
    return edit_success(images.permute(0, 2, 3, 1).numpy(), edits)


def steps_of(arm: str, steps: int) -> int:
    """Return an arm's steps: as many passes of the U-Net as DiffusionGuard has, or its steps where there are none."""
    mine = passes_a_step(arm)
    return max(1, steps * passes_a_step("diffusionguard") // mine) if mine else steps


def measure(arm: str, shared: Shared, context: Context) -> Measurement:
    """Return the shares of edits that a defence protected, an image each, and what it cost."""
    steps = int(context.settings["steps"])
    strength = Strength(eps_255=16, step_255=1, steps=steps_of(arm, steps), seed=1000 * shared.seed)
    protected, seconds, passes = shared.pixels, 0.0, 0
    if arm != "unprotected":
        start = time.perf_counter()
        with host_of(shared.pipe) as host:
            guard = Guard(pool=int(context.settings["pool"]))
            found = protect_with(
                arm, host, to_tensor(shared.pixels), shared.masks["seen"], strength, guard,
                shrink=ContourShrink(size=SHRINK_SIZE),
            )  # fmt: skip
            passes = host.passes["unet"] + host.passes["unet backward"]
        seconds = time.perf_counter() - start
        protected = within_budget(found.images, shared.pixels, strength.eps_255)
    count = len(shared.edits)
    edits = {kind: _edited(shared, protected, kind, context) for kind in MASK_KINDS}
    cleaned = {kind: _edited(shared, purify("jpeg-75", protected), kind, context) for kind in UNSEEN}
    metrics = {
        "unseen": _protected(shared, edits, UNSEEN),
        "seen": _protected(shared, edits, ("seen",)),
        "purified": _protected(shared, cleaned, UNSEEN),
        "edit_psnr": torch.stack([psnr(shared.clean[k], edits[k]) for k in UNSEEN]).mean(0).tolist(),
        "ssim": visibility(to_tensor(shared.pixels), to_tensor(protected))["ssim"].tolist(),
        "unet_passes": passes / count,
        "seconds": seconds / count,
        "succeeds": np.mean([shared.came_out[kind] for kind in MASK_KINDS], axis=0).tolist(),
    }
    shown = min(8, count)
    rows = [
        shared.pixels[:shown],
        to_pixels(shared.clean["box"][:shown]),
        protected[:shown],
        to_pixels(edits["box"][:shown]),
    ]
    picture = write_picture(
        np.concatenate([strip(row, scale=2) for row in rows]), context.folder / f"{arm}.png"
    )
    return Measurement(metrics, images={f"original, its edit, protected, its edit: {arm}": picture})


def _protected(shared: Shared, edits: dict[str, Tensor], kinds: tuple[str, ...]) -> list[float]:
    """Return for each image the share of the clean edits that come out which fail when protected."""
    clean = np.stack([shared.came_out[kind] for kind in kinds])
    fails = np.stack([~_success(edits[kind], shared.edits) for kind in kinds])
    return ((clean & fails).sum(axis=0) / np.maximum(1, clean.sum(axis=0))).tolist()
