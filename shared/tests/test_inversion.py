"""Inversion: round trips with an exact linear model, and noise maps that replay."""

import pytest
import torch
from noiseworks.core import inversion
from noiseworks.core.errors import InputError
from noiseworks.core.grids import timesteps
from noiseworks.core.schedules import stable_diffusion
from noiseworks.core.steps import ddim_step
from noiseworks.core.testing import convergence_order, max_relative_error, three_peaks

SD = stable_diffusion()
DATA_STD = 0.5
PEAKS = three_peaks()


def linear_epsilon(x, level):
    return level.sigma / (level.alpha**2 * DATA_STD**2 + level.sigma**2) * x


def rising(n, spacing="leading"):
    return [SD.level(-1)] + [SD.level(int(t)) for t in timesteps(spacing, 1000, n, steps_offset=1).flip(0)]


def sample():
    return PEAKS.sample(4, generator=torch.Generator().manual_seed(0))


def test_transfer_is_ddim_in_both_directions():
    x, epsilon = torch.randn(2, 3).double(), torch.randn(2, 3).double()
    high, low = SD.level(500), SD.level(300)
    x0 = (x - high.sigma * epsilon) / high.alpha
    down = inversion.transfer(x, epsilon, high, low)
    assert torch.allclose(down, ddim_step(x, x0, high, low).sample, rtol=1e-12)
    assert torch.allclose(inversion.transfer(down, epsilon, low, high), x, rtol=1e-12)


def test_plain_inversion_misses_by_one_over_steps():
    def error(n):
        levels = rising(n)[1:]
        top = inversion.ddim_invert(sample(), linear_epsilon, levels)[-1]
        return max_relative_error(inversion.ddim_generate(top, linear_epsilon, levels)[-1], sample())

    counts = [25, 50, 100, 200]
    assert convergence_order(counts, [error(n) for n in counts]) == pytest.approx(1, abs=0.35)


@pytest.mark.parametrize("predict", [linear_epsilon, PEAKS.epsilon], ids=["linear", "mixture"])
def test_fixed_point_inversion_is_exact(predict):
    levels = rising(50)
    if predict is linear_epsilon:
        refinements = 30
    else:
        levels, refinements = rising(100), 20
    x = sample()
    path = inversion.ddim_invert(x, predict, levels, refinements=refinements, evaluate_at_next=True)
    back = inversion.ddim_generate(path[-1], predict, levels)
    assert len(path) == len(levels)
    assert max_relative_error(back[-1], x) < 1e-8
    plain = inversion.ddim_invert(x, predict, levels, evaluate_at_next=True)[-1]
    assert max_relative_error(inversion.ddim_generate(plain, predict, levels)[-1], x) > 1e-4


@pytest.mark.parametrize("mix", [0.93, 1.0])
def test_coupled_inversion_is_exact_for_any_model(mix):
    def odd_model(x, level):
        return torch.sin(3 * x) + level.sigma * x.flip(1)

    levels, x = rising(30), sample()
    top = inversion.coupled_invert((x, x), odd_model, levels, mix=mix)
    back = inversion.coupled_generate(top, odd_model, levels, mix=mix)
    assert max_relative_error(back[0], x) < 1e-9
    assert max_relative_error(back[1], x) < 1e-9
    assert max_relative_error(top[0], x) > 0.1


def test_ddpm_noise_maps_replay_the_sample_and_edit_with_another_model():
    levels, x = rising(20)[1:], sample()
    generator = torch.Generator().manual_seed(1)
    noises = [torch.randn(x.shape, dtype=torch.float64, generator=generator) for _ in levels]
    top, maps = inversion.ddpm_noise_maps(x, PEAKS.x0, levels, noises)
    assert len(maps) == len(levels)
    assert max_relative_error(inversion.ddpm_replay(top, PEAKS.x0, levels, maps), x) < 1e-10

    def shifted(y, level):
        return PEAKS.x0(y, level) + 0.5

    assert max_relative_error(inversion.ddpm_replay(top, shifted, levels, maps), x) > 0.1


def test_noise_maps_start_from_independently_noised_samples():
    levels, x = rising(5)[1:], sample()
    noises = [torch.full_like(x, float(i)) for i in range(5)]
    top, maps = inversion.ddpm_noise_maps(x, PEAKS.x0, levels, noises)
    assert torch.allclose(top, levels[-1].alpha * x + levels[-1].sigma * 4)
    # the noisiest map leads from x_T to the independently noised x_{T−1}
    ratio = levels[-1].alpha / levels[-2].alpha
    beta = 1 - ratio**2
    mean = (
        levels[-2].alpha * beta * PEAKS.x0(top, levels[-1]) + ratio * levels[-2].sigma ** 2 * top
    ) / levels[-1].sigma ** 2
    std = (beta * levels[-2].sigma ** 2 / levels[-1].sigma ** 2).sqrt()
    assert torch.allclose(mean + std * maps[0], levels[-2].alpha * x + levels[-2].sigma * 3)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: inversion.ddim_invert(sample(), linear_epsilon, rising(5)[::-1]), "from clean to noisy"),
        (
            lambda: inversion.ddim_generate(sample(), linear_epsilon, rising(5)[:1]),
            "at least two levels, got 1",
        ),
        (lambda: inversion.ddim_invert(sample(), linear_epsilon, rising(5), refinements=-1), "refinements"),
        (
            lambda: inversion.coupled_invert((sample(), sample()), linear_epsilon, rising(5), mix=0.0),
            "mix must be",
        ),
        (
            lambda: inversion.ddpm_noise_maps(sample(), PEAKS.x0, rising(3)[1:], []),
            r"one tensor per level \(3\), got 0",
        ),
    ],
)
def test_bad_runs_are_refused(call, message):
    with pytest.raises(InputError, match=message):
        call()
