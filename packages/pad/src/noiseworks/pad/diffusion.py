"""Noise, loss and sampling of all modalities in one process with one timestep (section 3.1 and 3.3).

z_t = sqrt(abar_t) z_0 + sqrt(1 - abar_t) eps with the same t for every modality of a sample and independent noise. The
schedule is DDPM's: 1000 linear betas from 1e-4 to 0.02. Timestep t means the level after t + 1 noising steps.
"""

import math
from collections.abc import Mapping, Sequence
from functools import cache

import torch
from noiseworks.core.grids import timesteps, with_clean_end
from noiseworks.core.params import to_epsilon, to_x0
from noiseworks.core.schedules import TableSchedule, add_noise, expand, table_schedule
from noiseworks.core.steps import ddim_step, ddpm_step
from noiseworks.kits.policies.loop import randn
from noiseworks.pad.options import Sampling
from noiseworks.pad.transformer import PADTransformer, Prediction, Values
from torch import Tensor

STEPS = 1000
HALF_BIN = 1 / 255  # half of the distance of two grey values in [-1, 1]
LARGEST_WEIGHT = 20.0


@cache
def schedule() -> TableSchedule:
    """Return the noise schedule."""
    return table_schedule("linear", STEPS)


def noised(values: Values, noise: Values, t: Tensor) -> dict[str, Tensor]:
    """Return z_t of every modality at timesteps [B]."""
    level = schedule().level(t)
    return {name: add_noise(value, noise[name], level) for name, value in values.items()}


def bits(x0: Tensor, x: Tensor, t: Tensor, found: Prediction) -> Tensor:
    """Return the variational bound of a step in bits per dimension, [B] (Nichol and Dhariwal 2021, eq. 4-7 and 15).

    The mean is detached, so that this term teaches the variance alone. At t = 0 it is the likelihood of the nearest of
    256 values in [-1, 1].

    Args:
        x0: Clean values [B, ...].
        x: Noisy values at t.
        t: Timesteps [B].
        found: The noise that the network predicts, and a variance.
    """
    now, then = schedule().level(t), schedule().level(t - 1)
    beta = 1 - (now.alpha / then.alpha) ** 2
    of_x0, of_x = then.alpha * beta / now.sigma**2, now.alpha / then.alpha * then.sigma**2 / now.sigma**2
    # The posterior of the last step has no variance; as in the released code it takes that of the step before.
    early = t.clamp(min=1)
    one, zero = schedule().level(early), schedule().level(early - 1)
    small = (1 - (one.alpha / zero.alpha) ** 2) * zero.sigma**2 / one.sigma**2
    log_small, log_large = expand(small.log(), x0), expand(beta.log(), x0)
    share = (found.variance.float() + 1) / 2
    log_variance = share * log_large + (1 - share) * log_small
    guess = (x.float() - expand(now.sigma, x0) * found.value.detach().float()) / expand(now.alpha, x0)
    mean = expand(of_x0, x0) * guess + expand(of_x, x0) * x
    true = expand(of_x0, x0) * x0 + expand(of_x, x0) * x
    divergence = 0.5 * (
        log_variance
        - log_small
        - 1
        + (log_small - log_variance).exp()
        + (true - mean) ** 2 * (-log_variance).exp()
    )
    found_bits = divergence.flatten(1).mean(1)
    last = t == 0
    if bool(last.any()):
        likelihood = _log_likelihood(x0[last], mean[last], 0.5 * log_variance[last])
        found_bits = found_bits.index_put((last,), -likelihood.flatten(1).mean(1))
    return found_bits / math.log(2)


def _log_likelihood(x: Tensor, mean: Tensor, log_std: Tensor) -> Tensor:
    """Return the log-probability of the grey value nearest to x, with the tanh approximation of the normal's CDF."""

    def below(value: Tensor) -> Tensor:
        return 0.5 * (1 + torch.tanh(math.sqrt(2 / math.pi) * (value + 0.044715 * value**3)))

    centred, scale = x - mean, (-log_std).exp()
    high, low = below(scale * (centred + HALF_BIN)), below(scale * (centred - HALF_BIN))
    share = torch.where(x < -0.999, high, torch.where(x > 0.999, 1 - low, high - low))
    return share.clamp(min=1e-12).log()


def losses(
    network: PADTransformer,
    values: Values,
    clean: Values,
    text: Tensor,
    t: Tensor,
    noise: Values,
    *,
    present: Values | None = None,
    balanced: bool = False,
) -> dict[str, Tensor]:
    """Return the loss of every modality and sample, [B] each: `mean (eps - eps_hat)^2 + VB` (section 3.3).

    A network that predicts what is clean has the error of that instead.

    Args:
        network: The transformer.
        values: Modality -> clean futures [B, noisy, ...].
        clean: Modality -> the present.
        text: Text embeddings.
        t: Timesteps [B].
        noise: Modality -> standard normals of the values' shapes.
        present: Modality -> whether each sample has it, bool [B]; the loss of one that lacks it is exactly 0, also for
            the gradient.
        balanced: Whether the squared error of the noise is weighted by 1 / sqrt(SNR), up to 20 and with mean 1 over the
            timesteps.
    """
    noisy = noised(values, noise, t)
    predictions = network(noisy, clean, t, text, present)
    clean_wanted = network.prediction == "sample"
    weight = error_weights()[t.cpu()].to(t.device) if balanced and not clean_wanted else 1.0
    level, found = schedule().level(t), {}
    for name, one in predictions.items():
        wanted = values[name] if clean_wanted else noise[name]
        error = weight * (one.value - wanted).square().flatten(1).mean(1)
        if one.variance is not None:
            epsilon = to_epsilon(one.value, noisy[name], level, network.prediction)
            error = error + bits(values[name], noisy[name], t, Prediction(epsilon, one.variance))
        rows = None if present is None else present.get(name)
        found[name] = error if rows is None else torch.where(rows, error, 0.0)
    return found


@cache
def error_weights() -> Tensor:
    """Return 1 / sqrt(SNR) of every timestep, up to 20, with mean 1, float32 [1000]."""
    weights = (-0.5 * schedule().log_snr(torch.arange(STEPS))).exp().clamp(max=LARGEST_WEIGHT)
    return (weights / weights.mean()).float()


@torch.no_grad()
def sample(
    network: PADTransformer,
    clean: Values,
    text: Tensor,
    sampling: Sampling,
    generator: torch.Generator | Sequence[torch.Generator] | None = None,
    present: Mapping[str, Tensor] | None = None,
) -> dict[str, Tensor]:
    """Return futures of every modality, denoised together (section 3.3).

    The present's tokens and the modulations of all steps are computed once.

    Args:
        network: The transformer.
        clean: Modality -> the present [B, clean, ...].
        text: Text embeddings [B, text_width].
        sampling: Solver, steps, clipping.
        generator: Noise: one for the batch, or one a row.
        present: As in `losses`.

    Returns:
        Modality -> [B, noisy, ...].
    """
    rows = len(text)
    parts = [one for one in network.modalities if one.noisy]
    x = {one.name: randn((rows, *one.shape(one.noisy)), generator, text) for one in parts}
    network.check(x, clean, text)
    grid = timesteps("linspace", STEPS, sampling.steps)
    base, allowed = network.embed(clean), network.allowed(present)
    modulation = network.modulation(grid[:, None].to(text.device), text)
    levels = [schedule().level(t) for t in with_clean_end(grid)]
    for step in range(len(grid)):
        now, then = levels[step], levels[step + 1]
        found = network.denoise(x, base, modulation.at(step), allowed)
        for one in parts:
            value, variance = found[one.name]
            guess = to_x0(value, x[one.name], now, network.prediction)
            if sampling.clip and one.bound is not None:
                guess = guess.clamp(-one.bound, one.bound)
            if sampling.solver == "ddim":
                x[one.name] = ddim_step(x[one.name], guess, now, then).sample
                continue
            last = step == len(grid) - 1
            noise = None if last else randn(value.shape, generator, text)
            kind = "small" if variance is None else "learned"
            moved = ddpm_step(x[one.name], guess, now, then, variance=kind, learned=variance, noise=noise)
            x[one.name] = moved.sample
    return x
