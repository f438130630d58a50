"""Two processes train to the weights of one: rows, noise, timesteps, labels, crops and masks are the batch's."""

import sys
from unittest.mock import patch

import pytest
import torch
from noiseworks.kits.backbones import DiT, DiTConfig, LossRecipe, Recipe, drop_labels, fit_denoiser, fit_loss
from noiseworks.kits.backbones.augmenting import crop_and_flip
from noiseworks.kits.backbones.masking import masked_mean, random_masks, to_patches
from noiseworks.kits.training import Rows

COMMON = {"max_steps": 5, "batch_size": 8, "precision": "64-true", "device": "cpu"}


def masked_loss(model, batch, step):
    """Compare noised images with what a linear map makes of their visible patches."""
    images, own = batch["x"], Rows.of(len(batch["x"]))
    noised = images + own.noise_like(images)
    masks = random_masks(own.total, 4, 2).of_rows(own)
    patches = to_patches(noised, 4)
    error = (model(torch.where(masks.removed[..., None], 0, patches)) - to_patches(images, 4)).square()
    return {"loss": masked_mean(error, masks.removed)}


def train_both(devices):
    """Train a DiT by the one recipe and a linear map by the other, and return the weights of both."""
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(40, 1, 8, 8, generator=generator, dtype=torch.float64) * 2 - 1
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        dit = DiT(DiTConfig(depth=1, width=16, heads=2, classes=3))
        linear = torch.nn.Linear(16, 16)
    recipe = Recipe(**COMMON, devices=devices, label_drop=0.3)
    first = fit_denoiser(dit, images, torch.arange(40) % 3, recipe, progress=False)
    recipe = LossRecipe(**COMMON, devices=devices, crop=0.6, flip=True)
    second = fit_loss(linear, {"x": images}, masked_loss, recipe, progress=False)
    return {
        f"{name}.{key}": p
        for name, m in (("dit", first), ("linear", second))
        for key, p in m.state_dict().items()
    }


@pytest.mark.slow
def test_two_processes_train_to_the_weights_of_one(tmp_path, warm):
    out = str(tmp_path / "state")
    for done in warm.ranks("python", __file__, out, cwd=tmp_path):
        assert done.returncode == 0, done.stderr[-4000:]
    states = [torch.load(f"{out}-{rank}", weights_only=True) for rank in (0, 1)]
    for name, value in train_both(1).items():
        assert torch.equal(states[0][name], states[1][name]), name
        torch.testing.assert_close(states[0][name], value, atol=1e-9, rtol=1e-9)


def test_what_processes_draw_together_is_what_one_draws():
    images = torch.rand(6, 1, 8, 8, generator=torch.Generator().manual_seed(0)) * 2 - 1
    labels, crop = torch.zeros(6, dtype=torch.int64), crop_and_flip(0.5, True)

    def drawn(rows: Rows):
        own, generator = rows.take(images), torch.Generator().manual_seed(1)
        with torch.random.fork_rng(devices=[]), patch.object(Rows, "of", lambda count: rows):
            torch.manual_seed(2)
            return (
                crop({"x": own}, generator)["x"],
                drop_labels(rows.take(labels), 0.5, 9),
                rows.noise_like(own),
                random_masks(rows.total, 9, 4).of_rows(rows).kept,
            )

    whole = drawn(Rows(0, 6, 6))
    parts = [drawn(Rows(first, 2, 6)) for first in (0, 2, 4)]
    for one, several in zip(whole, zip(*parts, strict=True), strict=True):
        assert torch.equal(one, torch.cat(several))
    assert Rows.of(5) == Rows(0, 5, 5)


if __name__ == "__main__":
    state = train_both(2)
    torch.save(state, f"{sys.argv[1]}-{torch.distributed.get_rank()}")
