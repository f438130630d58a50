"""SSIM of images whose darkest pixel is 0, as torchmetrics has it; ldm's tests check images in [-1, 1]."""

import torch
import torchmetrics.functional.image as metrics
from noiseworks.kits.images import structural_similarity


def test_similarity_of_images_between_0_and_1_is_the_common_one():
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(3, 3, 32, 32, generator=generator, dtype=torch.float64)
    others = (images + 0.1 * torch.randn(images.shape, generator=generator)).clamp(0, 1)
    _, full = metrics.structural_similarity_index_measure(
        others, images, data_range=1.0, reduction="none", return_full_image=True
    )
    inner = full[..., 5:-5, 5:-5].flatten(1).mean(dim=1)  # where no pixel is mirrored
    found = structural_similarity(images, others, darkest=0.0)
    torch.testing.assert_close(found, inner, rtol=1e-6, atol=1e-6)
    assert not torch.allclose(found, structural_similarity(2 * images - 1, 2 * others - 1), atol=1e-3)
