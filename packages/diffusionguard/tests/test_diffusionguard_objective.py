"""The objective and the mask augmentation against closed forms and the facts of the released code."""

from collections import Counter
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from noiseworks.core.errors import InputError, UnsupportedHostError
from noiseworks.diffusionguard import ContourShrink, DiffusionGuard, EarlyStage, Guard, early_stage_loss
from noiseworks.diffusionguard.contours import disc_radius, filled, largest_contour, reference_radius
from noiseworks.diffusionguard.methods import METHODS, passes_a_step, protect_with
from noiseworks.kits.diffusers_hosts import tiny_pipeline
from noiseworks.kits.protection import Budget, host_of
from noiseworks.kits.protection.engine import streams
from noiseworks.kits.protection.hosts import Host


def test_the_joint_norm_is_divided_by_the_batch():
    assert float(early_stage_loss(torch.ones(1, 4, 8, 8))) == -16.0
    assert float(early_stage_loss(torch.ones(4, 4, 8, 8))) == -8.0


class Identity:
    dtype = torch.float32
    config = SimpleNamespace(latent_channels=3, scaling_factor=1.0, block_out_channels=(1,))

    def encode(self, x):
        return SimpleNamespace(latent_dist=SimpleNamespace(mean=x, std=torch.zeros_like(x)))


class MaskedPart:
    """A denoiser that gives its masked latent back."""

    dtype = torch.float32
    config = SimpleNamespace(in_channels=7, block_out_channels=(1,))

    def __call__(self, x, t, return_dict=False):
        return (x[:, 4:],)


def stub_host():
    abar = torch.linspace(0.999, 0.01, 1000)
    scheduler = SimpleNamespace(alphas_cumprod=abar, config=SimpleNamespace(prediction_type="epsilon"),
                                init_noise_sigma=1.0, timesteps=[751], set_timesteps=lambda n: None)  # fmt: skip
    return Host(Identity(), MaskedPart(), scheduler, {}, {}, Counter())


@pytest.mark.parametrize(("norm", "steps"), [("l2", 5), ("l2", 11), ("l2sq", 5), ("l1", 5)])
def test_kept_pixels_move_away_from_grey_and_others_stay(norm, steps):
    images = 0.3 + 0.4 * torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    masks = torch.zeros(2, 1, 8, 8)
    masks[..., :3] = 1
    budget = Budget(8, 1, steps)
    found = DiffusionGuard(stub_host(), budget, Guard(noise_norm=norm, contours="single")).protect(
        images, masks
    )
    expected = min(steps, 8) / 255 * (images - 0.5).sign() * (1 - masks)
    torch.testing.assert_close(found.images - images, expected, rtol=0, atol=1e-6)
    assert torch.equal(found.images[..., :3], images[..., :3])


def test_radii_and_reach_are_those_of_the_released_code():
    assert reference_radius(10_000) == pytest.approx(125.3314, abs=1e-4)
    assert disc_radius(10_000) == pytest.approx(56.4190, abs=1e-4)
    assert int(reference_radius(10_000) * 1.1) == 137
    assert 0.1 * reference_radius(10_000) == pytest.approx(12.53, abs=0.01)


def test_contours_of_boxes_are_their_corners_and_fill_to_the_boxes():
    region = np.zeros((20, 30), bool)
    region[4:15, 6:22] = True
    region[1:3, 1:3] = True  # a smaller one, which is left out
    vertices = largest_contour(region)
    assert {tuple(v) for v in vertices.tolist()} >= {(6, 4), (21, 4), (21, 14), (6, 14)}
    box = region.copy()
    box[1:3, 1:3] = False
    assert np.array_equal(filled(vertices, region.shape), box)


def test_contours_of_what_is_not_convex_stay_on_its_border():
    y, x = np.indices((40, 40))
    for region in (
        ((abs(y - 20) < 5) & (abs(x - 20) < 18)) | ((abs(x - 20) < 5) & (abs(y - 20) < 18)),
        ((y - 20) ** 2 + (x - 20) ** 2 < 300) & ~((y < 20) & (abs(x - 20) < 6)),
    ):
        vertices = largest_contour(region)
        assert region[vertices[:, 1], vertices[:, 0]].all()
        assert np.array_equal(filled(vertices, region.shape), region)


def test_shrunk_masks_lie_inside_cover_every_part_and_differ():
    y, x = np.indices((64, 64))
    keep = ((y - 20) ** 2 + (x - 20) ** 2 < 150) | ((abs(y - 48) < 9) & (abs(x - 46) < 12))
    shrunk = ContourShrink(size=128).sample(keep, 12, seed=0)
    assert not (shrunk & ~keep).any()
    assert all(one[:34, :34].any() and one[36:, 30:].any() for one in shrunk)
    shares = shrunk.sum((1, 2)) / keep.sum()
    assert shares.min() < 0.8
    assert shares.max() <= 1
    assert len(set(shares.round(4))) > 6
    assert np.array_equal(shrunk, ContourShrink(size=128).sample(keep, 12, seed=0))
    with pytest.raises(InputError, match="keeps nothing"):
        ContourShrink().sample(np.zeros((8, 8), bool), 1, 0)


@pytest.fixture(scope="module")
def pipe():
    return tiny_pipeline("sd-inpaint")


@pytest.fixture(scope="module")
def case():
    masks = torch.ones(2, 1, 16, 16)
    masks[..., 3:13, 3:13] = 0
    return torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(1)), masks


def test_the_norm_rises_and_an_image_does_not_depend_on_its_batch(pipe, case):
    images, masks = case
    guard, budget = Guard(pool=4), Budget(16, 2, 20, seed=3)
    with host_of(pipe) as host:
        assert host.first_timestep(4) == 751
        both = DiffusionGuard(host, budget, guard, ContourShrink(size=16)).protect(images, masks)
        alone = DiffusionGuard(host, budget, guard, ContourShrink(size=16)).protect(
            images[1:], masks[1:], generators=streams(budget, 1, first=1)
        )
        assert host.passes["unet"] == host.passes["unet backward"] == 60
    torch.testing.assert_close(both.images[1:], alone.images)
    # The first and last tenth of the steps.
    assert both.history[-2:].mean() < both.history[:2].mean()
    change = both.images - images
    assert change.abs().max() <= 16 / 255 + 1e-6
    assert (change * masks == 0).all()
    assert change.abs().sum() > 0


@pytest.mark.parametrize("two_stages", [False, True])
def test_the_run_equals_a_plain_loop_over_the_masked_image(case, two_stages):
    """The released code's loop: the masked image is the leaf, its gradient is cut at the mask, then sign and clips."""
    images, masks = (part[:1].double() for part in case)
    pipe = tiny_pipeline("sd-inpaint")
    for module in (pipe.unet, pipe.vae, pipe.text_encoder):
        module.double()
    budget = Budget(6, 1, 7, seed=4)
    with host_of(pipe) as host:
        guard = Guard(contours="single", two_stages=two_stages)
        found = DiffusionGuard(host, budget, guard).protect(images, masks)
        shape, scale = host.latent_shape(images), pipe.vae.config.scaling_factor
        (generator,) = streams(budget, 1)
        small = torch.nn.functional.interpolate(masks, size=shape[1:])
        original = 2 * images - 1
        changed = original.clone()
        for _ in range(budget.steps):
            leaf = (changed * (masks < 0.5)).requires_grad_()
            posterior = pipe.vae.encode(leaf).latent_dist
            spread, start = (torch.randn(*shape, generator=generator)[None].double() for _ in range(2))
            latent = scale * (posterior.mean + posterior.std * spread)
            inputs = torch.cat([start, small, latent], dim=1)
            loss = early_stage_loss(pipe.unet(inputs, 751, **host.empty, return_dict=False)[0])
            slope = torch.autograd.grad(loss, leaf)[0] * (1 - masks)
            changed = changed - slope.sign() * 2 / 255
            changed = torch.minimum(torch.maximum(changed, original - 12 / 255), original + 12 / 255)
            changed = changed.clamp(-1, 1)
    torch.testing.assert_close(2 * found.images - 1, changed, rtol=0, atol=1e-12)


def test_one_mask_has_no_randomness_and_no_mask_keeps_everything(pipe, case):
    images, masks = case
    with host_of(pipe) as host:
        single = DiffusionGuard(host, Budget(), Guard(contours="single"))
        assert torch.equal(single.pools(masks, [0, 1]), masks[:, None])
        whole = EarlyStage(host, torch.zeros(2, 1, 1, 16, 16), 751)(images, streams(Budget(), 2))
        found = DiffusionGuard(host, Budget(steps=1, step_255=16)).protect(images)
        torch.testing.assert_close(
            (found.images - images).sign(), -whole[0].sign() * ((found.images - images) != 0)
        )


def test_without_a_mask_the_model_is_conditioned_on_the_whole_image(pipe, case):
    images, _ = case
    with host_of(pipe) as host:
        _, value = EarlyStage(host, torch.zeros(2, 1, 1, 16, 16), 751)(images, streams(Budget(), 2))
        shape, again = host.latent_shape(images), streams(Budget(), 2)
        drawn = [torch.stack([torch.randn(*shape, generator=g) for g in again]) for _ in range(2)]
        with torch.no_grad():
            posterior = pipe.vae.encode(2 * images - 1).latent_dist
            latent = pipe.vae.config.scaling_factor * (posterior.mean + posterior.std * drawn[0])
            inputs = torch.cat([drawn[1], torch.zeros(2, 1, *shape[1:]), latent], dim=1)
            states = host.empty["encoder_hidden_states"].expand(2, -1, -1)
            predicted = pipe.unet(inputs, 751, encoder_hidden_states=states, return_dict=False)[0]
    torch.testing.assert_close(value, -predicted.flatten(1).norm(dim=1))


def test_half_precision_takes_nearly_the_same_signs(case):
    images, masks = case
    changes = []
    for dtype in (torch.float32, torch.float16):
        pipe = tiny_pipeline("sd-inpaint")
        for module in (pipe.unet, pipe.vae, pipe.text_encoder):
            module.to(dtype)
        with host_of(pipe) as host:
            found = DiffusionGuard(host, Budget(16, 1, 10), Guard(contours="single")).protect(images, masks)
        changes.append((found.images.float() - images)[(masks == 0).expand_as(images)])
    moved = changes[0] != 0
    assert moved.float().mean() > 0.5
    assert (changes[0].sign() == changes[1].sign())[moved].float().mean() >= 0.95


@pytest.mark.parametrize("name", ["random", "no-augmentation", *METHODS])
def test_every_defence_keeps_the_budget_the_support_and_its_count_of_passes(pipe, case, name):
    images, masks = case
    with host_of(pipe) as host:
        found = protect_with(name, host, images, masks, Budget(16, 8, 2))
        assert host.passes["unet"] + host.passes["unet backward"] == 2 * 2 * passes_a_step(name)
    change = found.images - images
    assert 0 < change.abs().max() <= 16 / 255 + 1e-6
    assert (change * masks == 0).all()


def test_hardening_changes_the_gradient_and_not_the_support(pipe, case):
    images, masks = case
    with host_of(pipe) as host:
        plain, hard = (
            DiffusionGuard(host, Budget(16, 8, 2), Guard(contours="single", hardened=names)).protect(
                images, masks
            )
            for names in ("", "jpeg,blur")
        )
    assert not torch.equal(plain.images, hard.images)
    assert (((hard.images - images) * masks) == 0).all()


def test_models_that_do_not_inpaint_are_sent_elsewhere(case):
    with host_of(tiny_pipeline("sd")) as host, pytest.raises(UnsupportedHostError, match="diff-protect"):
        DiffusionGuard(host, Budget(steps=1)).protect(*case)
