"""Editing protected pictures by SDEdit, and comparing methods on them."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from noiseworks.core.memory import peak_mib
from noiseworks.core.options import Hardware
from noiseworks.diff_protect.methods import protect_with
from noiseworks.diff_protect.options import Editing, Method
from noiseworks.kits.diffusers_hosts import load_pipeline
from noiseworks.kits.protection.editors import Call, check_editor, sdedit
from noiseworks.kits.protection.files import Picture, read_picture, to_tensor
from noiseworks.kits.protection.hosts import Host, host_of
from noiseworks.kits.protection.metrics import visibility
from noiseworks.kits.protection.options import Budget
from noiseworks.kits.protection.running import Assessment, Job, Protect, assess, protect_one, stacked

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline


def load(model: str, hardware: Hardware, families: Sequence[str]) -> "DiffusionPipeline":
    """Return a pipeline, in single precision unless the user asks for another."""
    return load_pipeline(model, hardware.torch_device(), hardware.torch_dtype() or torch.float32, families)


def protector(host: Host, method: Method, budget: Budget) -> Protect:
    """Return a method as `kits.protection.running` takes it; a target is fitted to each picture's size."""
    target = None if method.target is None else to_tensor(read_picture(method.target).pixels)

    def run(inner, mask, generators, state, observe):
        inner = inner.to(host.vae.device)
        goal = None
        if target is not None:
            goal = torch.nn.functional.interpolate(target, size=inner.shape[-2:], mode="bicubic").clamp(0, 1)
        more = {"generators": generators, "state": state, "observe": observe}
        return protect_with(method, host, inner, budget, target=goal, **more).cpu()

    return run


def assess_pictures(
    pipe: "DiffusionPipeline", jobs: Sequence[Job], protected: Sequence[Picture], editing: Editing
) -> dict[float, Assessment]:
    """Return what SDEdit does to originals and protected pictures of one size, by strength.

    Raises:
        InputError: When sizes differ.
    """
    with host_of(pipe) as host:
        factor = host.factor
    both = stacked([job.picture for job in jobs] + list(protected), factor)
    count = len(jobs)
    call = Call(editing.num_inference_steps, editing.guidance_scale, editing.edit_seed)
    prompts = [editing.edit_prompt] * count
    names = [job.path.name for job in jobs]
    return {
        strength: assess(
            names,
            both[:count],
            both[count:],
            lambda images, purifier, strength=strength: sdedit(pipe, images, prompts, strength, call),
            editing.chosen,
        )
        for strength in editing.levels
    }


def compare_methods(
    editors: Mapping[str, "DiffusionPipeline"],
    jobs: Sequence[Job],
    methods: Sequence[Method],
    budget: Budget,
    editing: Editing,
) -> tuple[list[dict[str, Any]], dict[str, np.ndarray]]:
    """Return a row a method, editor, strength and purifier, and a picture a method and editor at the middle strength.

    Args:
        editors: Name -> pipeline; the first is what pictures are protected against, others show how that transfers.
        jobs: Pictures of one size.
        methods: Protections.
        budget: The same for all.
        editing: How pictures are edited.
    """
    for pipe in editors.values():
        check_editor(pipe, masks=False)
    known = next(iter(editors.values()))
    rows, pictures = [], {}
    for method in methods:
        start = time.perf_counter()
        with host_of(known, method.prompt) as host:
            run = protector(host, method, budget)
            protected = [protect_one(job, run, budget, host.factor, 512, i)[0] for i, job in enumerate(jobs)]
            passes = dict(host.passes)
            seconds = (time.perf_counter() - start) / len(jobs)
            short = protector(host, method, replace(budget, steps=1))
            _, peak = peak_mib(partial(protect_one, jobs[0], short, budget, host.factor, 512), known.device)
        seen = [
            visibility(to_tensor(job.picture.pixels), to_tensor(picture.pixels))
            for job, picture in zip(jobs, protected, strict=True)
        ]
        shown = {
            f"visible_{k}": float(np.mean([float(s[k][0]) for s in seen]))
            for k in ("psnr", "ssim", "fine_share")
        }
        cost = {"seconds": round(seconds, 3), "peak_mib": round(peak, 2)} | {
            f"{name.replace(' ', '_')}_passes": passes.get(name, 0) // len(jobs)
            for name in ("encoder", "unet", "unet backward")
        }
        for editor, pipe in editors.items():
            found = assess_pictures(pipe, jobs, protected, editing)
            rows += [
                {"method": method.method, "editor": editor, "strength": strength, "purifier": line["purifier"],
                 **cost, **shown, "edit_psnr": line["psnr"], "edit_feature_distance": line["feature_distance"]}
                for strength, one in found.items()
                for line in one.table
            ]  # fmt: skip
            middle = list(found.values())[len(found) // 2].picture
            pictures[method.method if pipe is known else f"{method.method}-transfer"] = middle
    return rows, pictures
