"""The estimator and the similarity on real digits, under the exact denoiser of a smoothed data set.

Each digit of the training split is the centre of a Gaussian of deviation h. For such data E[x_0 | x_t] is known, with
and without the class, so both predictions are exact and nothing has to be trained.
"""

import pytest
import torch
from noiseworks.bench.testbeds import digits
from noiseworks.linear_ag import AdaptiveGuidance
from noiseworks.linear_ag.guidance import Action, cosine, fill, in_space
from noiseworks.linear_ag.linear import (
    estimate_uncond,
    every_second_policy,
    fit_from_gram,
    gram_matrix,
    paper_policy,
    r2_of,
)
from noiseworks.linear_ag.thresholds import nfe_of_traces

T, SCALE, COUNT, H = 20, 3.0, 60, 0.3
ABAR = (1 - torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64)).cumprod(0)
TIMES = list(range(951, 0, -50))


@pytest.fixture(scope="module")
def data():
    images, labels = digits.load("train")
    return torch.from_numpy(images).flatten(1).double(), torch.from_numpy(labels)


def predictions(data, x, t, classes):
    """Return (e_c, e_u): e = (x - alpha E[x_0 | x]) / sigma, over all centres or those of the class."""
    centres, labels = data
    alpha, sigma = ABAR[t].sqrt(), (1 - ABAR[t]).sqrt()
    spread = alpha**2 * H**2 + sigma**2
    # -|x - alpha m|^2 / (2 spread) without what all centres share; far faster than torch.cdist
    logits = (alpha * x @ centres.T - alpha**2 / 2 * centres.square().sum(1)) / spread

    def epsilon(scores):
        x0 = scores.softmax(1) @ centres
        x0 = x0 + alpha * H**2 / spread * (x - alpha * x0)
        return (x - alpha * x0) / sigma

    return epsilon(logits.masked_fill(classes[:, None] != labels, -torch.inf)), epsilon(logits)


def run(data, seed, actions, coefficients=None):
    """Follow a policy with DDIM; returns the images, both predictions `[T, n, 64]` and the states x_t."""
    x = torch.randn(COUNT, 64, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    classes, conds, unconds, states = torch.arange(COUNT) % 10, [], [], []
    for k, t in enumerate(TIMES):
        cond, uncond = predictions(data, x, t, classes)
        states.append(x)
        conds.append(cond)
        estimate = None
        if actions[k] == "3":
            estimate = estimate_uncond(coefficients, k, torch.stack(conds), torch.stack(unconds))
        taken = torch.full((COUNT,), Action(int(actions[k])))
        uncond = fill(torch.stack([cond, uncond]), taken, estimate, None)[1]
        unconds.append(uncond)
        epsilon = uncond + SCALE * (cond - uncond)
        after = ABAR[TIMES[k + 1]] if k + 1 < T else torch.ones((), dtype=torch.float64)
        x0 = (x - (1 - ABAR[t]).sqrt() * epsilon) / ABAR[t].sqrt()
        x = after.sqrt() * x0 + (1 - after).sqrt() * epsilon
    return x, torch.stack(conds), torch.stack(unconds), torch.stack(states)


@pytest.fixture(scope="module")
def guided(data):
    return run(data, 1, "2" * T), run(data, 2, "2" * T)


def test_regression_explains_more_than_the_copy_on_other_runs(guided):
    (_, cond, uncond, _), (_, cond_new, uncond_new, _) = guided
    gram = gram_matrix(cond_new, uncond_new)
    missing = 1 - r2_of(fit_from_gram(gram_matrix(cond, uncond), T), gram)
    missing_by_copy = 1 - fit_from_gram(gram, T).r2_copy
    differing = missing_by_copy > 1e-4
    differing[0] = False  # the first step can do no more than scale
    assert int(differing.sum()) >= 8
    assert bool((missing[differing] < 0.5 * missing_by_copy[differing]).all())
    assert float(missing.sum()) < 0.05 * float(missing_by_copy.sum())


def test_regressed_steps_stay_closer_to_full_guidance_than_steps_without(data, guided):
    (_, cond, uncond, _), (target, *_) = guided
    coefficients = fit_from_gram(gram_matrix(cond, uncond), T)

    def error(actions):
        return float((run(data, 2, actions, coefficients)[0] - target).square().mean())

    paper, every = paper_policy(T), every_second_policy(T)
    naive = error(paper.replace("3", "1"))
    assert error(paper) < 0.5 * naive
    assert error(every) < 0.01 * naive  # no truncation either


def test_noise_space_fires_at_once_and_the_default_space_does_not(guided):
    """cos(e_c, e_u) starts at 1, dips and comes back; that of x - e rises all the way."""
    _, cond, uncond, states = guided[0]
    gamma = {}
    for space in ("eps", "x_minus_eps"):
        steps = []
        for k, t in enumerate(TIMES):
            level = (float(ABAR[t].sqrt()), float((1 - ABAR[t]).sqrt()), "epsilon")
            steps.append(cosine(*(in_space(e[k], states[k], space, level) for e in (cond, uncond))))
        gamma[space] = torch.stack(steps)
    noise, default = gamma["eps"].mean(1), gamma["x_minus_eps"].mean(1)
    assert float(noise[0]) > 0.9999 > 0.999 > float(noise.min())
    assert 4 < int(noise.argmin()) < 15
    assert bool((default.diff() > -1e-9).all())
    assert float(default[0]) < 0.9
    trap = AdaptiveGuidance(threshold=0.999, space="eps", min_step=0)
    assert nfe_of_traces(gamma["eps"], trap).tolist() == [T + 1] * COUNT
    default_policy = AdaptiveGuidance(threshold=0.999)
    assert int(nfe_of_traces(gamma["x_minus_eps"], default_policy).min()) > T + 4
    armed = AdaptiveGuidance(threshold=0.999, space="eps", armed=True)
    assert int(nfe_of_traces(gamma["eps"], armed).min()) > T + 4
