"""The table of methods, what each costs, and what each does to losses and latents."""

import pytest
import torch
from noiseworks.bench.testbeds.shapes import caption, render, sample_scenes
from noiseworks.diff_protect import METHODS, Method, analyse_bottleneck, attack_latents, protect_with
from noiseworks.diff_protect.methods import FROM_ZERO
from noiseworks.diff_protect.options import NAMES
from noiseworks.kits.diffusers_hosts import load_pipeline, tiny_pipeline
from noiseworks.kits.protection import Budget, host_of, projected_gradient
from noiseworks.kits.protection.editors import denoise_from, one_step
from noiseworks.kits.protection.engine import draw_normal, streams
from noiseworks.kits.protection.objectives import semantic_loss


@pytest.fixture(scope="module")
def host():
    with host_of(tiny_pipeline("sd"), "a red circle") as host:
        yield host


@pytest.fixture(scope="module")
def images():
    return torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))


def test_the_table_is_whole():
    assert {*METHODS, "sds-z", "random"} == set(NAMES)


@pytest.mark.parametrize("name", sorted(METHODS))
def test_each_method_keeps_the_budget_and_only_advdm_and_mist_run_backward_through_the_unet(
    host, images, name
):
    host.passes.clear()
    found = protect_with(Method(method=name), host, images, Budget(16, 8, 2))
    assert 0 < (found.images - images).abs().max() <= 16 / 255 + 1e-6
    through = name.startswith(("advdm", "mist"))
    assert host.passes["unet backward"] == (4 if through else 0)
    assert host.passes["unet"] == (0 if name in ("photoguard", "texture-self") else 4)
    again = protect_with(Method(method=name), host, images, Budget(16, 8, 2))
    assert torch.equal(found.images, again.images)


def test_methods_start_where_they_should(host, images):
    def first(name):
        seen = []
        goal = METHODS[name]

        def watched(case):
            inner = goal(case)
            return lambda x, g: (seen.append(x.clone()), inner(x, g))[1]

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("noiseworks.diff_protect.methods.METHODS", {name: watched})
            protect_with(Method(method=name), host, images, Budget(16, 1, 1))
        return seen[0]

    for name in ("sds-", "advdm+"):
        assert torch.equal(first(name), images) == (name in FROM_ZERO)


def denoising_loss(host, images):
    """The mean of L_S over 64 fixed draws, 16 an image."""
    times = torch.arange(5, 1000, 66)
    with torch.no_grad():
        latents = host.encode(images)
        noise = [
            draw_normal(streams(Budget(seed=int(t)), len(images)), latents.shape[1:], latents) for t in times
        ]
        steps, noise = times.repeat_interleave(len(images)), torch.cat(noise)
        noisy = host.noised(latents.repeat(len(times), 1, 1, 1), noise, steps)
        return float(semantic_loss(host.predict(noisy, steps), noise).mean())


def test_ascending_raises_and_descending_lowers_the_denoising_loss():
    # Dropping the Jacobian is only sound for a trained denoiser; and flat renders are at its loss's minimum already.
    scenes = [scene for scene in sample_scenes(12, 3) if scene.kind == "single"][:4]
    images = torch.from_numpy(render(scenes)).permute(0, 3, 1, 2)
    images = (images + 0.06 * torch.randn(images.shape, generator=torch.Generator().manual_seed(0))).clamp(
        0, 1
    )
    with host_of(load_pipeline("testbed:shapes"), caption(scenes[0])) as host:
        before = denoising_loss(host, images)
        loss = {
            name: denoising_loss(
                host, protect_with(Method(method=name), host, images, Budget(16, 2, 12)).images
            )
            for name in ("sds+", "sds-", "advdm+", "advdm-")
        }
    assert loss["sds-"] < before < loss["sds+"]
    assert loss["advdm-"] < before < loss["advdm+"]


def test_any_positive_factor_of_the_score_gives_the_same_image(host, images):
    gradient = METHODS["sds-"](_case(host, images))
    budget = Budget(16, 2, 4)
    plain = projected_gradient(images, gradient, budget).images

    def scaled(x, g):
        found, value = gradient(x, g)
        return 8 * found, value

    assert torch.equal(projected_gradient(images, scaled, budget).images, plain)


def _case(host, images):
    from noiseworks.diff_protect.methods import Case

    return Case(host, images, images, 5.0, sample=False)


def test_targets_pull_and_the_own_image_pushes(host, images):
    falls = protect_with(
        Method(method="photoguard", posterior="mean"), host, images, Budget(16, 1, 10)
    ).history
    rises = -protect_with(
        Method(method="texture-self", posterior="mean"), host, images, Budget(16, 1, 10)
    ).history
    assert falls[-1] < falls[0]
    assert rises[-1] > rises[0]


def test_the_latent_attack_leaves_the_budget_of_pixels_and_keeps_that_of_latents(host, images):
    found = attack_latents(host, images, Budget(16, 8, 3))
    assert found.images.shape == images.shape
    assert host.passes["unet backward"] >= 0
    assert float((found.images - images).abs().max()) > 16 / 255


@pytest.mark.parametrize("change", [{"purified_steps": True}, {"hardened": "jpeg"}])
def test_denoised_and_hardened_steps_change_the_gradient_and_not_the_budget(host, images, change):
    plain = protect_with(Method(), host, images, Budget(16, 8, 2)).images
    other = protect_with(Method(**change), host, images, Budget(16, 8, 2)).images
    assert not torch.equal(plain, other)
    assert (other - images).abs().max() <= 16 / 255 + 1e-6


def test_sdedit_at_its_ends(host, images):
    generators = streams(Budget(), 2)
    with torch.no_grad():
        copy = host.decode(host.encode(images)).clamp(0, 1)
        assert torch.equal(one_step(host, images, 0.0, generators), copy)
        host.passes.clear()
        denoise_from(host, images, 0.01, streams(Budget(), 2))
        # Grid values 1 and 11: one step of DDIM and the last one to the image.
        assert host.passes["unet"] == 4
        labels = []
        plain = host.predict
        host.predict = lambda noisy, step: (labels.append(step), plain(noisy, step))[1]
        try:
            denoise_from(host, images, 0.3, streams(Budget(), 2))
        finally:
            del host.predict
        # The first step carries the label of the noise that the latent has, and not that below it (291).
        assert labels == list(range(301, 0, -10))


def test_the_bottleneck_is_measured_for_every_method(host, images):
    found = analyse_bottleneck(host, images, Budget(16, 2, 4), ("random", "photoguard"))
    assert found.latent_shift["photoguard"] > found.latent_shift["random"] > 0
    assert all(value > 0 for value in found.amplification.values())
    assert all(-1.001 <= value <= 1.001 for value in found.gradient_agreement)
    assert found.gradient_agreement[1] > found.gradient_agreement[0]
