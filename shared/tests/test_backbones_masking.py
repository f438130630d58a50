"""Masks of patches, crops, folders of images and the recipe for any loss."""

import pytest
import torch
from noiseworks.core.errors import InputError
from noiseworks.kits.backbones import (
    LossRecipe,
    fit_loss,
    gather_tokens,
    keep_count,
    load_images,
    masked_mean,
    random_masks,
    restore_tokens,
    to_images,
    to_patches,
)
from noiseworks.kits.backbones.augmenting import crop_and_flip
from noiseworks.kits.backbones.layers import PatchEmbed


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_keep_counts_are_those_of_the_papers():
    wanted = {
        256: {0.375: 160, 0.75: 64, 0.5: 128},
        64: {0.375: 40, 0.75: 16, 0.15: 54, 0.4: 38, 0.5: 32},
        49: {0.375: 30, 0.75: 12, 0.15: 41, 0.4: 29, 0.5: 24},
        196: {0.15: 166, 0.4: 117, 0.5: 98, 0.75: 49},
        16: {0.375: 10, 0.75: 4, 0.15: 13, 0.4: 9, 0.5: 8},
        10: {0.9: 1},
    }
    for places, counts in wanted.items():
        assert {ratio: keep_count(places, ratio) for ratio in counts} == counts
    for ratio in (-0.1, 1.0):
        with pytest.raises(InputError, match="mask ratio"):
            keep_count(16, ratio)
    with pytest.raises(InputError, match="leaves none"):
        keep_count(4, 0.9)


@pytest.mark.parametrize("kind", ["random", "block", "grid"])
def test_masks_remove_exactly_the_rest_and_tokens_return_to_their_places(kind):
    tokens = torch.randn(5, 36, 3, generator=generator())
    masks = random_masks(5, 36, 13, kind=kind, generator=generator())
    assert masks.removed.sum(1).tolist() == [23] * 5
    back = restore_tokens(gather_tokens(tokens, masks.kept), torch.full((1, 1, 3), 7.0), masks.restore)
    assert torch.equal(back, torch.where(masks.removed[..., None], 7.0, tokens))
    again = random_masks(5, 36, 13, kind=kind, generator=generator())
    assert torch.equal(again.removed, masks.removed)
    assert not torch.equal(masks.removed[0], masks.removed[1])


def test_blocks_are_removed_whole_and_grids_are_even():
    block = random_masks(50, 64, 55, kind="block", generator=generator()).removed.reshape(50, 8, 8)
    rows, columns = block.any(2).sum(1), block.any(1).sum(1)
    assert int(rows.max()) <= 5
    assert int(columns.max()) <= 5
    grid = random_masks(50, 64, 16, kind="grid", generator=generator()).removed.reshape(50, 4, 2, 4, 2)
    assert ((~grid).sum((2, 4)) == 1).all()  # one of every two by two


def test_patches_are_in_row_column_channel_order_and_come_back():
    images = torch.randn(2, 4, 8, 8, generator=generator())
    patches = to_patches(images, 2)
    assert patches.shape == (2, 16, 16)
    assert torch.equal(patches[0, 5].reshape(2, 2, 4), images[0, :, 2:4, 2:4].permute(1, 2, 0))
    assert torch.equal(to_images(patches, 2, 4), images)
    embed = PatchEmbed(2, 4, 6)
    torch.testing.assert_close(embed.embed(patches), embed(images))
    with pytest.raises(InputError, match="multiples of patch 3"):
        to_patches(images, 3)


def test_masked_mean_is_the_mean_over_masked_pixels():
    images = torch.randn(3, 1, 8, 8, generator=generator())
    removed = random_masks(3, 16, 4, generator=generator()).removed
    pixels = to_images(removed[..., None].expand(-1, -1, 4).float(), 2, 1)
    by_pixels = (pixels * images.square()).mean() / pixels.mean()
    torch.testing.assert_close(masked_mean(to_patches(images, 2).square(), removed), by_pixels)


def test_crops_keep_a_constant_and_mirror_half():
    assert crop_and_flip(1.0, False) is None
    flat = torch.full((4, 3, 8, 8), 0.25)
    cropped = crop_and_flip(0.5, True)({"x": flat, "y": torch.arange(4)}, generator())
    torch.testing.assert_close(cropped["x"], flat)
    ramp = torch.linspace(-1, 1, 8).expand(1000, 1, 8, 8)
    mirrored = crop_and_flip(1.0, True)({"x": ramp}, generator())["x"]
    share = float((mirrored[:, 0, 0, 0] > 0).float().mean())
    assert share == pytest.approx(0.5, abs=0.05)
    zoomed = crop_and_flip(0.5, False)({"x": ramp}, generator())["x"]
    assert float((zoomed[:, 0, 0, -1] - zoomed[:, 0, 0, 0]).mean()) < 1.9


def test_a_folder_is_classes_by_sub_folder(tmp_path):
    import numpy as np
    from PIL import Image

    for name, value in (("b", 200), ("a", 50)):
        (tmp_path / "set" / name).mkdir(parents=True)
        Image.fromarray(np.full((10, 14, 3), value, np.uint8)).save(tmp_path / "set" / name / "0.png")
    images, labels = load_images(str(tmp_path / "set"), needs="umd", size=4)
    assert images.shape == (2, 3, 4, 4)
    assert labels.tolist() == [0, 1]
    torch.testing.assert_close(images[0], torch.full((3, 4, 4), 50 / 127.5 - 1))
    with pytest.raises(InputError, match="needs size"):
        load_images(str(tmp_path / "set"), needs="umd")
    (tmp_path / "set" / "a" / "1.png").write_bytes(b"no image")
    with pytest.raises(InputError, match=r"1\.png"):
        load_images(str(tmp_path / "set"), needs="umd", size=4)


def test_scenes_have_24_classes():
    images, labels = load_images("shapes", needs="umd", split="test")
    assert images.shape[1:] == (3, 32, 32)
    assert len(labels.unique()) == 24
    assert float(images.min()) >= -1


def test_a_loss_of_ones_own_is_minimised_at_a_rate_that_rises_and_falls():
    rates = []

    def loss(model, batch, step):
        rates.append(step)
        return {"loss": (model(batch["x"].flatten(1)) - 1).square().mean()}

    model = torch.nn.Linear(4, 1)
    recipe = LossRecipe(max_steps=40, batch_size=8, lr=0.1, device="cpu")
    rows = {"x": torch.ones(16, 1, 2, 2)}
    trained = fit_loss(model, rows, loss, recipe, progress=False)
    assert rates == list(range(40))
    assert float(trained(torch.ones(1, 4))) == pytest.approx(1, abs=0.1)
    assert all(torch.equal(a, b) for a, b in zip(trained.parameters(), model.parameters(), strict=True))
