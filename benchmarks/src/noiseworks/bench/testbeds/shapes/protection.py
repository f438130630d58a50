"""What protections are tried on beside their claims: a second editor that they do not know, and photographs.

A protection that was made on the first pair of first stage and U-Net (`shapes`, `shapes-inpaint`) transfers when the
edits of the second editor fail too: `shapes-inpaint-narrow` has a first stage, text encoder and U-Net of its own,
narrower and trained from other weights and scenes.
"""

from collections.abc import Callable, Mapping, Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from noiseworks.bench.testbeds.shapes import render
from noiseworks.bench.testbeds.shapes.editing import MASK_KINDS, Edit, edit_masks, edit_success
from noiseworks.core.artifacts import atomic_write
from noiseworks.core.checks import check_number

EDITORS = ("testbed:shapes-inpaint", "testbed:shapes-inpaint-narrow")
GUIDANCE, EDIT_STEPS = 2.0, 10
SHRINK = 2  # photographs are halved before they are cut


def originals_of(edits: Sequence[Edit]) -> np.ndarray:
    """Return the pictures that edits start from, uint8 [n, 32, 32, 3]."""
    return np.round(render([edit.scene for edit in edits]) * 255).astype(np.uint8)


def kept_pictures(path: Path, protect: Callable[[], np.ndarray]) -> np.ndarray:
    """Return a .npz file's pictures, uint8 [n, H, W, 3]; where it is missing, what `protect` makes is kept there."""
    if not path.is_file():
        written = BytesIO()
        np.savez_compressed(written, pixels=protect())
        atomic_write(path, written.getvalue())
    return np.load(path)["pixels"]


def try_editor(
    model: str, edits: Sequence[Edit], protected: Mapping[str, np.ndarray], seed: int, steps: int = EDIT_STEPS
) -> list[dict[str, Any]]:
    """Return what an editor makes of originals and of protected pictures under all kinds of masks, a row a defence.

    Args:
        model: The editor, an inpainting pipeline.
        edits: What is asked for.
        protected: Defence -> pictures uint8 [n, 32, 32, 3].
        seed: Picture i is edited with the noise of seed + i, whatever its defence.
        steps: Of the editor.

    Returns:
        For each defence the share of the originals' edits that come out, the share of these that fail when protected
        (under all masks together) and the mean feature distance of the two edits.
    """
    import torch
    from noiseworks.kits.diffusers_hosts import load_pipeline
    from noiseworks.kits.protection.editors import Call, inpaint
    from noiseworks.kits.protection.files import to_tensor
    from noiseworks.kits.protection.metrics import feature_distance

    pipe = load_pipeline(model, families=("sd", "sdxl"))
    masks = torch.cat([torch.from_numpy(edit_masks(edits, kind)) for kind in MASK_KINDS])
    prompts = [edit.prompt for edit in edits] * len(MASK_KINDS)

    def edited(pixels: np.ndarray) -> tuple[Any, np.ndarray]:
        images = to_tensor(pixels).repeat(len(MASK_KINDS), 1, 1, 1)
        found = inpaint(pipe, images, masks, prompts, Call(steps, GUIDANCE, seed, batch_size=64))
        return found, edit_success(found.permute(0, 2, 3, 1).numpy(), list(edits) * len(MASK_KINDS))

    clean, came = edited(originals_of(edits))
    rows = []
    for name, pixels in protected.items():
        found, right = edited(pixels)
        rows.append({
            "editor": model,
            "defence": name,
            "originals_right": round(float(came.mean()), 3),
            "fail_when_protected": round(float((came & ~right).sum() / max(1, came.sum())), 3),
            "feature_distance": round(float(feature_distance(clean, found).mean()), 4),
        })  # fmt: skip
    return rows


def photograph_crops(count: int = 12, side: int = 64) -> np.ndarray:
    """Return square parts of the two photographs that scikit-learn bundles, uint8 [count, side, side, 3].

    The photographs are halved and cut along a grid, and parts of the two taken in turns from all over them; the same
    arguments always give the same parts.

    Args:
        count: Number of parts.
        side: Of a part.

    Raises:
        InputError: When there are not so many parts of that side.
    """
    from sklearn.datasets import load_sample_images

    parts = []
    for photograph in load_sample_images().images:
        height, width = (size // SHRINK * SHRINK for size in photograph.shape[:2])
        blocks = photograph[:height, :width].reshape(height // SHRINK, SHRINK, width // SHRINK, SHRINK, 3)
        small = np.round(blocks.mean(axis=(1, 3))).astype(np.uint8)
        rows, columns = (range(0, size - side + 1, side) for size in small.shape[:2])
        grid = [small[y : y + side, x : x + side] for y in rows for x in columns]
        parts.append([grid[i] for i in np.random.default_rng(0).permutation(len(grid))])
    turns = [part for pair in zip(*parts, strict=True) for part in pair]
    check_number("count", count, low=1, high=len(turns), integer=True)
    return np.stack(turns[:count])
