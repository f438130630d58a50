"""The scenes that the claim asks for, their attributes as numbers, and what the oracle reads from images."""

from collections.abc import Sequence

import numpy as np
import torch
from noiseworks.bench.testbeds import shapes
from noiseworks.ldm.data import to_tensor
from noiseworks.ldm.first_stage.evaluation import reconstruct
from torch import Tensor, nn

TRAINING_SEED = 1  # of the scenes; the claim's seed draws weights, order, noise and evaluation prompts


def single_scenes(count: int, seed: int, split: str) -> list[shapes.Scene]:
    """Return the first `count` scenes with one object."""
    drawn = 2 * count + 64
    scenes = [scene for scene in shapes.sample_scenes(drawn, seed, split) if scene.kind == "single"]
    return scenes[:count]


def attribute_names(scene: shapes.Scene) -> tuple[str, ...]:
    """Return what is asked for: shape, colour, size, position, background."""
    item = scene.objects[0]
    return item.shape, item.color, scene.size, scene.position, scene.background


def attribute_values() -> tuple[tuple[str, ...], ...]:
    """Return the values of each attribute, sorted."""
    names = [attribute_names(scene) for scene in single_scenes(1000, TRAINING_SEED, "train")]
    return tuple(tuple(sorted(set(column))) for column in zip(*names, strict=True))


def attribute_numbers(scenes: Sequence[shapes.Scene], values: Sequence[Sequence[str]]) -> Tensor:
    """Return the attributes of scenes as int64 [n, 5]."""
    rows = [
        [v.index(name) for v, name in zip(values, attribute_names(scene), strict=True)] for scene in scenes
    ]
    return torch.tensor(rows)


def oracle_scores(images: Tensor, scenes: Sequence[shapes.Scene]) -> np.ndarray:
    """Return the share of attributes the oracle finds right in images [n, 3, 32, 32] in [-1, 1]."""
    return shapes.score(((images.clamp(-1, 1) + 1) / 2).permute(0, 2, 3, 1).cpu().numpy(), scenes)


def rendered(scenes: Sequence[shapes.Scene]) -> Tensor:
    """Return the images of scenes, [n, 3, 32, 32] in [-1, 1]."""
    return to_tensor(shapes.render(scenes))


def reconstruction_scores(vae: nn.Module | None, scenes: Sequence[shapes.Scene]) -> list[float]:
    """Return the oracle's scores of scenes after the first stage: what an arm can reach."""
    images = rendered(scenes)
    return oracle_scores(images if vae is None else reconstruct(vae, images)[0], scenes).tolist()
