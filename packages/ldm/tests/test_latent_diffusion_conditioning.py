import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL
from noiseworks.core.errors import InputError
from noiseworks.ldm.conditioning.conditioners import ClassConditioner, LayoutConditioner
from noiseworks.ldm.conditioning.spatial import (
    MaskConditioner,
    SemanticConditioner,
    low_resolution,
    random_masks,
)
from torch import nn

VAE = {
    "down_block_types": ("DownEncoderBlock2D",) * 3,
    "up_block_types": ("UpDecoderBlock2D",) * 3,
    "block_out_channels": (8, 8, 8),
    "norm_num_groups": 4,
    "latent_channels": 3,
}
DROP = torch.tensor([False, True])


def tiny_layout():
    return LayoutConditioner(7, grid=16, max_objects=3, dim=16, num_layers=1, num_heads=2)


def test_layout_tokens_name_class_and_cells_and_come_back():
    conditioner = tiny_layout()
    ids = conditioner.tokenize([[(6, 0.0, 0.5, 0.99, 1.0)], []])
    assert ids.tolist() == [[7, 8, 16, 23, 23, *[0] * 10], [0] * 15]
    layout = [[(2, 0.11, 0.2, 0.73, 0.9), (0, 0.5, 0.5, 0.5, 0.5)]]
    back = conditioner.detokenize(conditioner.tokenize(layout))
    for (kind, *corners), (expected, *given) in zip(back[0], layout[0], strict=True):
        assert kind == expected
        assert np.abs(np.array(corners) - given).max() <= 1 / 32 + 1e-9


@pytest.mark.parametrize(
    ("layout", "message"),
    [
        ([(7, 0, 0, 1, 1)], "class in layout 0"),
        ([(0, 0, 0, 1.5, 1)], "corner in layout 0"),
        ([(0, 0.5, 0, 0.1, 1)], "x0 <= x1"),
        ([(0, 0, 0, 1, 1)] * 4, "limit is 3"),
    ],
)
def test_bad_layouts_are_refused(layout, message):
    with pytest.raises(InputError, match=message):
        tiny_layout().tokenize([layout])


def test_dropped_rows_are_those_of_the_null_condition():
    layout = tiny_layout().eval()
    layouts = [[(1, 0, 0, 1, 1)], [(2, 0, 0, 1, 1)]]
    states = layout({"layout": layouts}, DROP).crossattn
    torch.testing.assert_close(states[1], layout({"layout": [[]]}).crossattn[0])
    torch.testing.assert_close(states[0], layout({"layout": layouts}).crossattn[0])
    classes = ClassConditioner(3, 8)
    tokens = classes({"label": torch.tensor([1, 1])}, DROP).crossattn
    assert torch.equal(tokens[1, 0], classes.embedding.weight[3])
    labels = ClassConditioner(3, kind="adm")({"label": torch.tensor([1, 1])}, DROP).adm
    assert labels.tolist() == [1, 3]


def test_semantic_map_equals_two_halvings_and_a_convolution():
    conditioner = SemanticConditioner(5, 3, 4)
    labels = torch.randint(5, (2, 16, 8))
    maps = nn.functional.one_hot(labels, 5).permute(0, 3, 1, 2).float()
    for _ in range(2):
        maps = nn.functional.interpolate(maps, scale_factor=0.5, mode="bilinear")
    expected = nn.functional.conv2d(maps, conditioner.table.T[:, :, None, None])
    found = conditioner({"segmentation": labels}).concat
    torch.testing.assert_close(found, expected)
    assert conditioner({"segmentation": labels}, DROP).concat[1].abs().max() == 0
    with pytest.raises(InputError, match=r"0\.\.4"):
        conditioner({"segmentation": labels + 5})


def test_mask_condition_has_a_black_hole_and_a_signed_mask():
    torch.manual_seed(0)
    vae = AutoencoderKL(**VAE)
    conditioner = MaskConditioner(vae)
    images, mask = torch.rand(2, 3, 16, 16), torch.zeros(2, 1, 16, 16)
    mask[:, :, 4:8, 4:8] = 0.7
    masked = conditioner.masked_image(images, mask)
    assert (masked[:, :, 4:8, 4:8] == -1).all()
    assert torch.equal(masked[:, :, 8:], images[:, :, 8:])
    maps = conditioner({"image": images, "mask": mask}).concat
    assert maps.shape == (2, 4, 4, 4)
    assert maps[:, 3].unique().tolist() == [-1.0, 1.0]
    assert maps[0, 3, 1, 1] == 1
    torch.testing.assert_close(maps[:, :3], vae.encode(masked).latent_dist.mode())
    with pytest.raises(InputError, match="one channel"):
        conditioner({"image": images, "mask": images})
    with pytest.raises(InputError, match="RGB"):
        conditioner({"image": images[:, :1], "mask": mask})


def test_low_resolution_images_keep_flat_colours_and_need_whole_pixels():
    images = torch.rand(3, 3, 32, 32) * 2 - 1
    assert low_resolution(images, 4).shape == (3, 3, 8, 8)
    flat = torch.full((1, 3, 16, 16), 0.25)
    torch.testing.assert_close(low_resolution(flat, 4), flat[..., :4, :4])
    with pytest.raises(InputError, match="multiples of 4"):
        low_resolution(images[..., :30], 4)


def test_random_masks_depend_on_the_generator_and_leave_something_to_see():
    masks = random_masks(200, 32, 32, torch.Generator().manual_seed(0))
    assert torch.equal(masks, random_masks(200, 32, 32, torch.Generator().manual_seed(0)))
    assert set(masks.unique().tolist()) == {0.0, 1.0}
    shares = masks.mean((1, 2, 3))
    assert 0.15 < shares.mean() < 0.5
    assert shares.max() < 0.95
