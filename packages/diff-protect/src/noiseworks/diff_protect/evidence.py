"""What the claim protects, edits and measures on the testbed `shapes`.

Scenes with one object are edited by SDEdit at three strengths under a prompt that asks for another colour, from the
same noise for original and protected image. Time is that of a gradient step, memory what autograd keeps for one.
"""

import time
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import numpy as np
import torch
from noiseworks.bench.claims import Context, Measurement
from noiseworks.bench.testbeds.shapes import Scene, caption, render, sample_scenes, score
from noiseworks.diff_protect.bottleneck import random_shift
from noiseworks.diff_protect.methods import METHODS, Case, protect_with
from noiseworks.diff_protect.options import Method
from noiseworks.kits.diffusers_hosts import load_pipeline
from noiseworks.kits.pictures import strip, to_pixels, write_picture
from noiseworks.kits.protection.editors import Call, sdedit
from noiseworks.kits.protection.engine import streams
from noiseworks.kits.protection.files import to_tensor, within_budget
from noiseworks.kits.protection.hosts import Host, host_of
from noiseworks.kits.protection.metrics import feature_distance, latent_shift, psnr, visibility
from noiseworks.kits.protection.objectives import stripes
from noiseworks.kits.protection.options import Budget
from noiseworks.kits.protection.purifiers import purify
from torch import Tensor

STRENGTHS, GUIDANCE = (0.3, 0.5, 0.7), 4.0
PROMPT = "a red circle on a white background"  # the captions of the testbed know no photos


@dataclass(frozen=True, eq=False)
class Shared:
    """What the arms of a seed share.

    Attributes:
        pipe: The model.
        scenes: What edits ask for.
        pixels: The originals, uint8 [n, 32, 32, 3].
        clean: Strength -> edited originals.
        seed: The seed.
    """

    pipe: Any
    scenes: list[Scene]
    pixels: np.ndarray
    clean: dict[float, Tensor]
    seed: int


@cache
def load(model: str | None, device: str) -> Any:
    """Return the model, by default the testbed's."""
    return load_pipeline(model or "testbed:shapes", device, families=("sd", "sdxl"))


def recoloured(scene: Scene) -> Scene:
    """Return a scene whose object has another colour."""
    item = scene.objects[0]
    other = "blue" if item.color != "blue" else "red"
    return replace(scene, objects=(replace(item, color=other),))


def edit_originals(seed: int, context: Context) -> Shared:
    """Draw the scenes of a seed and edit the originals at every strength."""
    count = int(context.settings["images"])
    scenes = [scene for scene in sample_scenes(4 * count + 16, seed, "test") if scene.kind == "single"][
        :count
    ]
    pixels = np.round(render(scenes) * 255).astype(np.uint8)
    shared = Shared(load(context.model, context.device), [recoloured(s) for s in scenes], pixels, {}, seed)
    shared.clean.update({strength: _edited(shared, pixels, strength, context) for strength in STRENGTHS})
    return shared


def _edited(shared: Shared, pixels: np.ndarray, strength: float, context: Context) -> Tensor:
    prompts = [caption(scene) for scene in shared.scenes]
    call = Call(int(context.settings["edit_steps"]), GUIDANCE, 1000 * shared.seed + round(100 * strength))
    return sdedit(shared.pipe, to_tensor(pixels), prompts, strength, call)


def measure(arm: str, shared: Shared, context: Context) -> Measurement:
    """Return strength, visibility and cost of a method, an image each where they are."""
    budget = Budget(16, 1, int(context.settings["steps"]), seed=1000 * shared.seed)
    images, method = to_tensor(shared.pixels), Method(method=arm, prompt=PROMPT)
    with host_of(shared.pipe, PROMPT) as host:
        protected = within_budget(protect_with(method, host, images, budget).images, shared.pixels, 16)
        shift = latent_shift(host, images, to_tensor(protected))
        control = random_shift(host, images, budget)
        seconds, saved = (0.0, 0.0) if arm == "random" else step_cost(arm, host, images, budget)
    edits = {s: _edited(shared, protected, s, context) for s in STRENGTHS}
    jpeg = purify("jpeg-75", protected)
    cleaned = {s: _edited(shared, jpeg, s, context) for s in STRENGTHS}
    seen = visibility(images, to_tensor(protected))
    asked = np.stack([_right(edits[s], shared.scenes) for s in STRENGTHS])
    metrics = {
        "moved": torch.stack([feature_distance(shared.clean[s], edits[s]) for s in STRENGTHS])
        .mean(0)
        .tolist(),
        "edit_psnr": torch.stack([psnr(shared.clean[s], edits[s]) for s in STRENGTHS]).mean(0).tolist(),
        "purified": torch.stack([feature_distance(shared.clean[s], cleaned[s]) for s in STRENGTHS])
        .mean(0)
        .tolist(),
        "failed": (1 - asked.mean(axis=0)).tolist(),
        "succeeds": np.mean([_right(shared.clean[s], shared.scenes) for s in STRENGTHS], axis=0).tolist(),
        "ssim": seen["ssim"].tolist(),
        "fine_share": seen["fine_share"].tolist(),
        "shift": shift.tolist(),
        "shift_ratio": float(shift.mean()) / control,
        "seconds": seconds,
        "saved_bytes": saved,
    }
    middle, shown = STRENGTHS[1], min(8, len(images))
    rows = [shared.pixels, to_pixels(shared.clean[middle]), protected, to_pixels(edits[middle])]
    picture = np.concatenate([strip(row[:shown], scale=2) for row in rows])
    path = write_picture(picture, context.folder / f"{arm}.png")
    return Measurement(metrics, images={f"original, its edit, protected, its edit: {arm}": path})


def _right(images: Tensor, scenes: list[Scene]) -> np.ndarray:
    """Return whether all attributes that were asked for are right, [n]."""
    return (score(images.permute(0, 2, 3, 1).numpy(), scenes) == 1).astype(float)


def step_cost(arm: str, host: Host, images: Tensor, budget: Budget, repeats: int = 5) -> tuple[float, float]:
    """Return the median seconds of a gradient, and the bytes that autograd keeps for it."""
    case = Case(host, images, stripes(*images.shape[-2:]), 5.0, sample=True)
    gradient, generators = METHODS[arm](case), streams(budget, len(images))
    sizes: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        sizes[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    weights = {p.untyped_storage().data_ptr() for m in (host.vae, host.unet) for p in m.parameters()}
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        gradient(images, generators)
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        gradient(images, generators)
        seconds.append(time.perf_counter() - start)
    return float(np.median(seconds)), float(sum(size for at, size in sizes.items() if at not in weights))
