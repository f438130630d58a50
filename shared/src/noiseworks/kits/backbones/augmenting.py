"""Random crops and mirror images of a batch, as `Batches` wants them."""

import torch
import torch.nn.functional as F
from noiseworks.kits.training import Rows
from noiseworks.kits.training.batches import Transform
from torch import Tensor

LOG_ASPECT = 0.2877  # log 4/3


def crop_and_flip(smallest: float, flip: bool) -> Transform | None:
    """Return a transform of batches with images `x` (B, C, H, W), or None for none.

    Args:
        smallest: Least share of the area that a crop keeps; its aspect lies between 3/4 and 4/3, as far as it fits
            (Szegedy et al. 2015). 1 crops nothing.
        flip: Whether half of the images are mirrored.
    """
    if smallest == 1 and not flip:
        return None

    def transform(batch: dict, generator: torch.Generator) -> dict:
        return batch | {"x": _changed(batch["x"], smallest, flip, generator)}

    return transform


def _changed(images: Tensor, smallest: float, flip: bool, generator: torch.Generator) -> Tensor:
    drawn = Rows.of(len(images)).draw(lambda rows: torch.rand(5, rows, generator=generator).T)
    area, aspect, *place, mirror = drawn.T
    if flip:
        images = torch.where((mirror < 0.5)[:, None, None, None], images.flip(-1), images)
    if smallest == 1:
        return images
    side = (smallest + (1 - smallest) * area).sqrt()
    stretch = ((2 * aspect - 1) * LOG_ASPECT / 2).exp()
    width, height = (side * stretch).clamp(max=1), (side / stretch).clamp(max=1)
    theta = images.new_zeros(len(images), 2, 3)
    theta[:, 0, 0], theta[:, 1, 1] = width, height
    theta[:, 0, 2] = (2 * place[0] - 1) * (1 - width)
    theta[:, 1, 2] = (2 * place[1] - 1) * (1 - height)
    grid = F.affine_grid(theta, list(images.shape), align_corners=False)
    found = F.grid_sample(images, grid, mode="bicubic", padding_mode="border", align_corners=False)
    return found.clamp(-1, 1)
