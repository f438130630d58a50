"""Editing protected pictures by inpainting, and comparing defences on them."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from noiseworks.core.memory import peak_mib
from noiseworks.core.options import Hardware
from noiseworks.diffusionguard.methods import protect_with
from noiseworks.diffusionguard.options import Editing, Guard, Strength
from noiseworks.kits.diffusers_hosts import load_pipeline
from noiseworks.kits.protection.editors import Call, check_editor, inpaint
from noiseworks.kits.protection.files import Picture, to_tensor
from noiseworks.kits.protection.hosts import Host, host_of
from noiseworks.kits.protection.metrics import visibility
from noiseworks.kits.protection.purifiers import follow
from noiseworks.kits.protection.running import Assessment, Job, Protect, assess, protect_one, stacked

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline


def load_editor(model: str, hardware: Hardware, families: Sequence[str]) -> "DiffusionPipeline":
    """Return a pipeline, in single precision unless the user asks for another."""
    return load_pipeline(model, hardware.torch_device(), hardware.torch_dtype() or torch.float32, families)


def assess_pictures(
    pipe: "DiffusionPipeline", jobs: Sequence[Job], protected: Sequence[Picture], editing: Editing
) -> Assessment:
    """Return what inpainting does to originals and protected pictures of one size.

    Raises:
        InputError: When sizes differ, or a protected picture has another size than its original.
    """
    with host_of(pipe) as host:
        factor = host.factor
    originals = stacked([job.picture for job in jobs] + list(protected), factor)
    count = len(jobs)
    height, width = originals.shape[1:3]
    keep = np.stack([job.keep[:height, :width] for job in jobs])
    masks = torch.from_numpy(~keep)[:, None].float()
    call = Call(editing.num_inference_steps, editing.guidance_scale, editing.edit_seed)
    prompts = [editing.prompt] * count

    def edit(images: torch.Tensor, purifier: str) -> torch.Tensor:
        return inpaint(pipe, images, follow(purifier, masks), prompts, call)

    return assess([job.path.name for job in jobs], originals[:count], originals[count:], edit, editing.chosen)


def protector(name: str, host: Host, strength: Strength, guard: Guard) -> Protect:
    """Return a defence as `kits.protection.running` takes it."""

    def run(inner, mask, generators, state, observe):
        more = {"generators": generators, "state": state, "observe": observe}
        return protect_with(name, host, inner.to(host.vae.device), mask, strength, guard, **more).cpu()

    return run


def compare_defences(
    editors: Mapping[str, "DiffusionPipeline"],
    jobs: Sequence[Job],
    names: Sequence[str],
    strength: Strength,
    guard: Guard,
    editing: Editing,
) -> tuple[list[dict[str, Any]], dict[str, np.ndarray]]:
    """Return a row a defence, editor and purifier, and a picture a defence and editor.

    Args:
        editors: Name -> pipeline; the first is what pictures are protected against, others show how that transfers.
        jobs: Pictures of one size, with masks.
        names: Defences.
        strength: The same for all.
        guard: Of DiffusionGuard.
        editing: How pictures are edited.
    """
    for pipe in editors.values():
        check_editor(pipe, masks=True)
    known = next(iter(editors.values()))
    rows, pictures = [], {}
    for name in names:
        start = time.perf_counter()
        with host_of(known) as host:
            run = protector(name, host, strength, guard)
            protected = [
                protect_one(job, run, strength, host.factor, 512, index)[0] for index, job in enumerate(jobs)
            ]
            passes = host.passes["unet"] + host.passes["unet backward"]
            seconds = (time.perf_counter() - start) / len(jobs)
            short = protector(name, host, replace(strength, steps=1), guard)
            _, peak = peak_mib(partial(protect_one, jobs[0], short, strength, host.factor, 512), known.device)
        seen = [
            visibility(to_tensor(job.picture.pixels), to_tensor(picture.pixels))
            for job, picture in zip(jobs, protected, strict=True)
        ]
        shown = {
            f"visible_{key}": float(np.mean([float(one[key][0]) for one in seen]))
            for key in ("largest_255", "psnr", "ssim")
        }
        cost = {"seconds": round(seconds, 3), "peak_mib": round(peak, 2), "unet_passes": passes // len(jobs)}
        for editor, pipe in editors.items():
            found = assess_pictures(pipe, jobs, protected, editing)
            rows += [
                {"method": name, "editor": editor, "purifier": line["purifier"], **cost, **shown,
                 "edit_psnr": line["psnr"], "edit_feature_distance": line["feature_distance"]}
                for line in found.table
            ]  # fmt: skip
            pictures[name if pipe is known else f"{name}-transfer"] = found.picture
    return rows, pictures
