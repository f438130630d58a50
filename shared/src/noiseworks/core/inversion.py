"""From a clean sample back to noise: DDIM inversion, its exact forms, and DDPM noise maps.

A run visits levels from clean to noisy; `levels[0]` is the level of the sample given (often clean) and
`levels[-1]` the noisiest. `predict(x, level) -> ε` is the noise prediction of the model.
"""

from collections.abc import Callable, Sequence
from itertools import pairwise

import torch
from noiseworks.core.checks import check_number
from noiseworks.core.errors import InputError
from noiseworks.core.schedules import Level, add_noise, expand
from noiseworks.core.steps import ddpm_step
from torch import Tensor

Predict = Callable[[Tensor, Level], Tensor]


def transfer(x: Tensor, epsilon: Tensor, level: Level, to: Level) -> Tensor:
    """Return the DDIM move between any two levels, `a x + (σ_to − a σ) ε` with `a = α_to/α`."""
    a = to.alpha / level.alpha
    return (expand(a, x) * x + expand(to.sigma - a * level.sigma, x) * epsilon).to(x.dtype)


def check_rising(levels: Sequence[Level]) -> None:
    """Refuse levels that do not run from clean to noisy.

    Raises:
        InputError: When there are fewer than two, or one is no noisier than the one before.
    """
    if len(levels) < 2:
        raise InputError(f"inversion needs at least two levels, got {len(levels)}")
    for low, high in pairwise(levels):
        if not bool((high.sigma * low.alpha > low.sigma * high.alpha).all()):
            raise InputError("inversion needs levels from clean to noisy; reverse the list")


def ddim_invert(
    x: Tensor,
    predict: Predict,
    levels: Sequence[Level],
    *,
    refinements: int = 0,
    evaluate_at_next: bool = False,
) -> list[Tensor]:
    """Run DDIM backwards from a clean sample (Song et al. 2021, section 4.3; Mokady et al. 2023).

    Without refinements each step takes ε where it starts, which misses the forward run by O(1/steps). Every
    refinement solves the implicit step once more, taking ε at its end; the fixed point is inverted exactly
    (Pan et al. 2023, accelerated iterative diffusion inversion).

    Args:
        x: Sample at `levels[0]`, (B, ...).
        predict: `(x, level) -> ε`.
        levels: Rising levels, at least two.
        refinements: Fixed-point iterations a step; each costs one prediction.
        evaluate_at_next: Give `predict` the level of the step's end in the first guess too, for networks that
            were never trained at the clean level.

    Returns:
        The samples at all levels, `levels[0]` first.

    Raises:
        InputError: When the levels do not rise.
    """
    check_rising(levels)
    check_number("refinements", refinements, low=0, integer=True)
    path = [x]
    for low, high in pairwise(levels):
        start = path[-1]
        end = transfer(start, predict(start, high if evaluate_at_next else low), low, high)
        for _ in range(refinements):
            end = transfer(start, predict(end, high), low, high)
        path.append(end)
    return path


def ddim_generate(x: Tensor, predict: Predict, levels: Sequence[Level]) -> list[Tensor]:
    """Run DDIM over the same levels from a sample at `levels[-1]` to `levels[0]`, the noisiest first.

    Raises:
        InputError: When the levels do not rise.
    """
    check_rising(levels)
    path = [x]
    for low, high in zip(levels[-2::-1], levels[:0:-1], strict=True):
        path.append(transfer(path[-1], predict(path[-1], high), high, low))
    return path


def coupled_generate(
    pair: tuple[Tensor, Tensor], predict: Predict, levels: Sequence[Level], *, mix: float = 0.93
) -> tuple[Tensor, Tensor]:
    """Generate with two coupled samples, each stepped with the other's noise (Wallace et al. 2023, EDICT).

    Args:
        pair: Two samples at `levels[-1]`, equal at the start of a fresh run.
        predict: `(x, level) -> ε`, called twice a step.
        levels: Rising levels.
        mix: p in (0, 1], how much of each is kept when the two are averaged.

    Returns:
        The pair at `levels[0]`.

    Raises:
        InputError: When the levels do not rise or mix is out of range.
    """
    check_rising(levels)
    check_number("mix", mix, low=0, high=1, low_open=True)
    x, y = pair
    for low, high in zip(levels[-2::-1], levels[:0:-1], strict=True):
        x = transfer(x, predict(y, high), high, low)
        y = transfer(y, predict(x, high), high, low)
        x = mix * x + (1 - mix) * y
        y = mix * y + (1 - mix) * x
    return x, y


def coupled_invert(
    pair: tuple[Tensor, Tensor], predict: Predict, levels: Sequence[Level], *, mix: float = 0.93
) -> tuple[Tensor, Tensor]:
    """Invert `coupled_generate` exactly, up to rounding (Wallace et al. 2023); same arguments.

    Returns:
        The pair at `levels[-1]`.

    Raises:
        InputError: When the levels do not rise or mix is out of range.
    """
    check_rising(levels)
    check_number("mix", mix, low=0, high=1, low_open=True)
    x, y = pair
    for low, high in pairwise(levels):
        y = (y - (1 - mix) * x) / mix
        x = (x - (1 - mix) * y) / mix
        y = transfer(y, predict(x, high), low, high)
        x = transfer(x, predict(y, high), low, high)
    return x, y


def ddpm_noise_maps(
    x0: Tensor,
    denoise: Predict,
    levels: Sequence[Level],
    noises: Sequence[Tensor],
) -> tuple[Tensor, list[Tensor]]:
    """Return the noise maps with which DDPM sampling makes a sample again (Huberman-Spiegelglas et al. 2024).

    Every x_t is noised from x_0 on its own, and `z_t = (x_s − mean(x_t)) / std`.

    Args:
        x0: Clean sample, (B, ...).
        denoise: `(x, level) -> x_0`.
        levels: Rising levels from the first noisy one up; the clean end is added here.
        noises: One standard normal tensor a level.

    Returns:
        The sample at `levels[-1]`, and the maps, that of the noisiest step first. The last step has no
        randomness; its map is what it misses x_0 by, so `ddpm_replay` adds it as it is.

    Raises:
        InputError: When the levels do not rise or the counts differ.
    """
    check_rising(levels)
    if len(noises) != len(levels):
        raise InputError(f"noises must hold one tensor per level ({len(levels)}), got {len(noises)}")
    noisy = [add_noise(x0, noise, level) for level, noise in zip(levels, noises, strict=True)]
    maps = []
    targets = [x0, *noisy[:-1]]
    for x, level, target, low in zip(
        noisy[::-1], levels[::-1], targets[::-1], _lower(levels)[::-1], strict=True
    ):
        step = ddpm_step(x, denoise(x, level), level, low)
        maps.append((target - step.mean) / torch.where(step.std > 0, step.std, 1.0))
    return noisy[-1], maps


def ddpm_replay(x: Tensor, denoise: Predict, levels: Sequence[Level], maps: Sequence[Tensor]) -> Tensor:
    """Sample by DDPM with the maps of `ddpm_noise_maps`; with the same `denoise` it returns the same x_0.

    Args:
        x: Sample at `levels[-1]`.
        denoise: `(x, level) -> x_0`, for editing that of another prompt.
        levels: The rising levels of the extraction.
        maps: The maps, noisiest first.
    """
    check_rising(levels)
    for level, low, noise in zip(levels[::-1], _lower(levels)[::-1], maps, strict=True):
        step = ddpm_step(x, denoise(x, level), level, low)
        x = (step.mean + torch.where(step.std > 0, step.std, 1.0) * noise).to(x.dtype)
    return x


def _lower(levels: Sequence[Level]) -> list[Level]:
    clean = Level(torch.ones_like(levels[0].alpha), torch.zeros_like(levels[0].sigma))
    return [clean, *levels[:-1]]
