"""What is left of each protection before models that it does not know: scenes on a tuning seed, and photographs.

    python packages/diff-protect/studies/transfer.py --keep transfer-pictures
    python packages/diff-protect/studies/transfer.py --photographs

Scenes are protected on `testbed:shapes` by the claim's arms at its settings and edited by inpainting under all kinds of
masks: by `testbed:shapes-inpaint`, whose first stage is the same, and by `testbed:shapes-inpaint-narrow`, which shares
nothing with it. Protected pictures are kept in a folder, and used again by the next call.

Photographs are what flat shapes are not; models of shapes cannot edit them, so for parts of the two that scikit-learn
bundles it is only measured how visible each protection is, how far it moves the latent of the first stage that it
knows and of the other one, and what purifiers leave of the first.
"""

import argparse
import json
from functools import partial
from pathlib import Path

import numpy as np
from noiseworks.bench.testbeds.shapes.editing import sample_edits
from noiseworks.bench.testbeds.shapes.protection import (
    EDITORS,
    kept_pictures,
    originals_of,
    photograph_crops,
    try_editor,
)
from noiseworks.diff_protect.claim import ARMS
from noiseworks.diff_protect.evidence import PROMPT
from noiseworks.diff_protect.methods import protect_with
from noiseworks.diff_protect.options import Method
from noiseworks.kits.diffusers_hosts import load_pipeline
from noiseworks.kits.protection.files import to_tensor, within_budget
from noiseworks.kits.protection.hosts import Host, host_of
from noiseworks.kits.protection.metrics import latent_shift, visibility
from noiseworks.kits.protection.options import Budget
from noiseworks.kits.protection.purifiers import purify

KNOWN = "testbed:shapes"
METHODS = tuple(arm.name for arm in ARMS)
PURIFIERS = ("jpeg-75", "crop-resize", "resize", "blur", "median", "adverse-cleaner")


def protect(name: str, host: Host, originals: np.ndarray, options: argparse.Namespace) -> np.ndarray:
    """Return pictures uint8 [n, H, W, 3] under a method at the claim's budget."""
    budget = Budget(16, 1, options.steps, seed=1000 * options.seed)
    found = protect_with(Method(method=name, prompt=PROMPT), host, to_tensor(originals), budget)
    return within_budget(found.images, originals, 16)


def scenes(options: argparse.Namespace) -> None:
    """Protect scenes, edit them and print a line for each editor and method."""
    edits = sample_edits(options.images, options.seed)
    originals, pipe, protected = originals_of(edits), load_pipeline(KNOWN, families=("sd", "sdxl")), {}
    for name in options.methods:
        path = options.keep / f"{name}-{options.images}-{options.steps}-{options.seed}.npz"
        with host_of(pipe, PROMPT) as host:
            make = partial(protect, name, host, originals, options)
            protected[name] = kept_pictures(path, make)
    for editor in options.editors:
        for row in try_editor(editor, edits, protected, 1000 * options.seed, options.edit_steps):
            print(json.dumps(row), flush=True)


def photographs(options: argparse.Namespace) -> None:
    """Protect parts of photographs and print a line for each method."""
    originals = photograph_crops(options.images)
    pipe, other = (load_pipeline(model, families=("sd", "sdxl")) for model in (KNOWN, EDITORS[1]))
    before = to_tensor(originals)
    with host_of(pipe, PROMPT) as host, host_of(other) as narrow:
        for name in options.methods:
            pixels = protect(name, host, originals, options)
            after = to_tensor(pixels)
            seen = visibility(before, after)
            shift = float(latent_shift(host, before, after).mean())
            left = {}
            for purifier in PURIFIERS:
                cleaned = (to_tensor(purify(purifier, part)) for part in (originals, pixels))
                left[purifier] = round(float(latent_shift(host, *cleaned).mean()) / shift, 3)
            shown = {key: round(float(seen[key].mean()), 4) for key in ("psnr", "ssim", "fine_share")}
            shifts = {
                "latent_shift": shift,
                "unknown_shift": float(latent_shift(narrow, before, after).mean()),
            }
            row = {"method": name, **shown, **{key: round(value, 4) for key, value in shifts.items()}}
            print(json.dumps(row | {"shift_left": left}), flush=True)


def main(arguments: list[str] | None = None) -> None:
    """Measure what was asked for."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--photographs", action="store_true")
    parser.add_argument("--images", type=int, default=12)
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--edit-steps", type=int, default=10)
    parser.add_argument("--seed", type=int, default=100, help="below 1000: a measurement, not a judgement")
    parser.add_argument("--keep", type=Path, default=Path("transfer-pictures"))
    parser.add_argument("--methods", nargs="+", default=METHODS, choices=METHODS)
    parser.add_argument("--editors", nargs="+", default=EDITORS)
    options = parser.parse_args(arguments)
    (photographs if options.photographs else scenes)(options)


if __name__ == "__main__":
    main()
