"""Schedulers: with equal levels they are diffusers', and every position goes at its own level."""

import pytest
import torch
from diffusers import DDIMScheduler
from noiseworks.core.errors import InputError, UnsupportedHostError
from noiseworks.kits.policies import make_scheduler
from noiseworks.streaming_dp import PerStepDDIM, PerStepDDPM

KINDS = ["epsilon", "sample", "v_prediction"]


def samples(seed=0, shape=(3, 4, 2)):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=generator) for _ in range(2)]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("k", [99, 50, 1, 0])
def test_equal_levels_give_the_ddpm_step(kind, k):
    theirs = make_scheduler(100, kind)
    ours = PerStepDDPM.from_config(theirs.config)
    x, out = samples()
    expected = theirs.step(out, k, x, generator=torch.Generator().manual_seed(0)).prev_sample
    levels = torch.full((3, 4), k)
    found = ours.step(out, levels, x, generator=torch.Generator().manual_seed(0)).prev_sample
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=2e-5)


def test_the_written_out_figure_of_one_step():
    ours = PerStepDDPM.from_config(make_scheduler(100).config)
    x, out = torch.ones(1, 1, 1), torch.full((1, 1, 1), 0.5)
    found = ours.step(out, torch.tensor([[50]]), x, generator=torch.Generator().manual_seed(0))
    assert found.prev_sample.item() == pytest.approx(1.26355, abs=1e-5)


def test_posterior_in_float64():
    """Ho et al. 2020, eq. 6-7, written out."""
    ours = PerStepDDPM.from_config(make_scheduler(100, clip_sample=False).config)
    x, out = samples(1)
    k = torch.tensor([[0, 30, 70, 99]]).expand(3, 4)
    bar = torch.cat((ours.alphas_cumprod.double(), torch.ones(1, dtype=torch.float64)))
    now, then = bar[k][..., None], bar[k - 1][..., None]
    x0 = (x - (1 - now).sqrt() * out) / now.sqrt()
    beta = 1 - now / then
    mean = (then.sqrt() * beta * x0 + (1 - beta).sqrt() * (1 - then) * x) / (1 - now)
    noise = torch.randn(x.shape, generator=torch.Generator().manual_seed(3))
    expected = mean + ((1 - then) / (1 - now) * beta).sqrt() * noise
    found = ours.step(out, k, x, generator=torch.Generator().manual_seed(3)).prev_sample
    torch.testing.assert_close(found.double(), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_fewer_levels_equal_trailing_ddim(kind):
    theirs = DDIMScheduler.from_config(
        make_scheduler(100, kind).config, timestep_spacing="trailing", set_alpha_to_one=True
    )
    theirs.set_timesteps(10)
    ours = PerStepDDIM.from_config(theirs.config)
    ours.set_timesteps(10)
    assert ours.timesteps.tolist() == theirs.timesteps.tolist()
    x, out = samples(2)
    for k in (99, 49, 9):
        expected = theirs.step(out, k, x).prev_sample
        found = ours.step(out, torch.full((3, 4), k), x).prev_sample
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", [PerStepDDPM, PerStepDDIM])
def test_positions_go_each_at_their_own_level_and_clean_ones_stay(kind):
    ours = kind.from_config(make_scheduler(100).config)
    x, out = samples(3)
    levels = torch.tensor([[-1, 0, 40, 99]]).expand(3, 4)
    options = {"generator": torch.Generator().manual_seed(5)} if kind is PerStepDDPM else {}
    found = ours.step(out, levels, x, **options).prev_sample
    assert torch.equal(found[:, 0], x[:, 0])
    for position, level in enumerate((0, 40, 99), start=1):
        if kind is PerStepDDPM:
            options = {"generator": torch.Generator().manual_seed(5)}
        alone = ours.step(out, torch.full((3, 4), level), x, **options).prev_sample
        assert torch.equal(found[:, position], alone[:, position])


def test_noise_of_each_position():
    ours = PerStepDDPM.from_config(make_scheduler(100).config)
    x, noise = samples(4)
    levels = torch.tensor([[-1, 0, 40, 99]]).expand(3, 4)
    found = ours.add_noise(x, noise, levels)
    assert torch.equal(found[:, 0], x[:, 0])
    bar = ours.alphas_cumprod[40]
    torch.testing.assert_close(found[:, 2], bar.sqrt() * x[:, 2] + (1 - bar).sqrt() * noise[:, 2])
    torch.testing.assert_close(
        ours.add_noise(x, noise, torch.full((3,), 40)),
        make_scheduler(100).add_noise(x, noise, torch.full((3,), 40)),
    )


def test_half_precision_is_stepped_in_float32():
    """At the last level 1 / sqrt(abar) is 2,000: half-precision arithmetic would overflow before the clip."""
    ours = PerStepDDPM.from_config(make_scheduler(100).config)
    x, out = (t.half() for t in samples(5))
    options = [{"generator": torch.Generator().manual_seed(0)} for _ in range(2)]
    found = ours.step(1e3 * out, torch.full((3, 4), 99), x, **options[0]).prev_sample
    exact = ours.step(1e3 * out.float(), torch.full((3, 4), 99), x.float(), **options[1]).prev_sample
    assert found.dtype == torch.float16
    assert bool(found.isfinite().all())
    torch.testing.assert_close(found.float(), exact, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(
    "levels", [torch.full((3, 4), 100), torch.full((3, 4), -2), torch.full((3, 5), 1), torch.zeros(3, 4)]
)
def test_levels_out_of_range_are_refused(levels):
    ours = PerStepDDPM.from_config(make_scheduler(100).config)
    x, out = samples()
    with pytest.raises(InputError):
        ours.step(out, levels, x)


def test_levels_between_the_inference_levels_are_refused():
    ours = PerStepDDIM.from_config(make_scheduler(100).config)
    ours.set_timesteps(10)
    x, out = samples()
    with pytest.raises(InputError, match="among the 10"):
        ours.step(out, torch.full((3, 4), 50), x)


def test_schedules_that_are_not_supported_are_refused():
    ours = PerStepDDPM.from_config(make_scheduler(100).config, variance_type="learned")
    with pytest.raises(UnsupportedHostError, match="learned"):
        ours.set_timesteps(10)
