"""What is left of each defence before an editor that it does not know, on a tuning seed.

    python packages/diffusionguard/studies/transfer.py --keep transfer-pictures

Scenes are protected against `testbed:shapes-inpaint` by the claim's arms at its settings and edited under all kinds of
masks by that editor and by `testbed:shapes-inpaint-narrow`, which shares nothing with it. A line for each editor and
defence: the edits of originals that come out, how many of these fail when protected, and how far edits move. Protected
pictures are kept in a folder, and used again by the next call.
"""

import argparse
import json
from functools import partial
from pathlib import Path

import numpy as np
import torch
from noiseworks.bench.testbeds.shapes.editing import edit_masks, sample_edits
from noiseworks.bench.testbeds.shapes.protection import (
    EDITORS,
    kept_pictures,
    originals_of,
    try_editor,
)
from noiseworks.diffusionguard.claim import ARMS
from noiseworks.diffusionguard.contours import ContourShrink
from noiseworks.diffusionguard.evidence import SHRINK_SIZE, steps_of
from noiseworks.diffusionguard.methods import protect_with
from noiseworks.diffusionguard.options import Guard, Strength
from noiseworks.kits.diffusers_hosts import load_pipeline
from noiseworks.kits.protection.files import to_tensor, within_budget
from noiseworks.kits.protection.hosts import Host, host_of

DEFENCES = tuple(arm.name for arm in ARMS if arm.name != "unprotected")


def protect(
    name: str, host: Host, originals: np.ndarray, masks: torch.Tensor, options: argparse.Namespace
) -> np.ndarray:
    """Return pictures uint8 [n, 32, 32, 3] under a defence at the claim's budget."""
    strength = Strength(16, 1, steps_of(name, options.steps), seed=1000 * options.seed)
    shrink = ContourShrink(size=SHRINK_SIZE)
    found = protect_with(name, host, to_tensor(originals), masks, strength, Guard(pool=16), shrink=shrink)
    return within_budget(found.images, originals, strength.eps_255)


def main(arguments: list[str] | None = None) -> None:
    """Protect, edit and print a line for each editor and defence."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--images", type=int, default=12)
    parser.add_argument("--steps", type=int, default=64)
    parser.add_argument("--edit-steps", type=int, default=10)
    parser.add_argument("--seed", type=int, default=100, help="below 1000: a measurement, not a judgement")
    parser.add_argument("--keep", type=Path, required=True)
    parser.add_argument("--defences", nargs="+", default=DEFENCES, choices=DEFENCES)
    parser.add_argument("--editors", nargs="+", default=EDITORS)
    options = parser.parse_args(arguments)
    edits = sample_edits(options.images, options.seed)
    originals = originals_of(edits)
    masks = torch.from_numpy(edit_masks(edits, "seen"))
    pipe, protected = load_pipeline(EDITORS[0], families=("sd", "sdxl")), {}
    for name in options.defences:
        path = options.keep / f"{name}-{options.images}-{options.steps}-{options.seed}.npz"
        with host_of(pipe) as host:
            make = partial(protect, name, host, originals, masks, options)
            protected[name] = kept_pictures(path, make)
    for editor in options.editors:
        for row in try_editor(editor, edits, protected, 1000 * options.seed, options.edit_steps):
            print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main()
