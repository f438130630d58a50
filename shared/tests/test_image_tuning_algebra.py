"""Steps, labels, losses and statistics against the numbers of their definitions."""

import math

import pytest
import torch
import torch.nn.functional as F
from diffusers import (
    DDIMScheduler,
    EulerAncestralDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    LCMScheduler,
)
from noiseworks.core.errors import InputError, NonFiniteError
from noiseworks.kits.image_tuning import (
    InRandomOrder,
    PromptStatistics,
    Rollout,
    chain_of,
    clipped_surrogate,
    denoising_delta,
    dominance,
    implicit_accuracy,
    named_reward,
    preference_link,
    score,
    step_ratio_loss,
    win_interval,
)
from noiseworks.kits.image_tuning.chain import sampling_scheduler
from noiseworks.kits.image_tuning.preferences import kappa_of
from noiseworks.kits.image_tuning.rewards import Weighted
from torch.autograd import gradcheck

BETAS = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
X, M, NEXT = (
    torch.linspace(*ends, 8, dtype=torch.float64).reshape(1, 2, 2, 2)
    for ends in ((-1, 1), (0.5, -0.5), (-0.8, 0.9))
)


def ddim(prediction_type="epsilon", eta=1.0, steps=20, **changes):
    settings = {"clip_sample": False, "set_alpha_to_one": False, "steps_offset": 1} | changes
    scheduler = DDIMScheduler(**BETAS, prediction_type=prediction_type, **settings)
    scheduler.set_timesteps(steps)
    return chain_of(scheduler, Rollout(num_inference_steps=steps, eta=eta))


def at(chain, timestep):
    return torch.tensor([chain.timesteps.tolist().index(timestep)])


def logp(chain, timestep):
    return float(chain.step(M, X, at(chain, timestep), sample=NEXT).log_prob)


def test_the_levels_are_those_of_the_scheduler():
    chain = ddim()
    assert chain.timesteps.tolist() == list(range(951, 0, -50))
    found = {t: float(chain.level.alpha[i] ** 2) for i, t in enumerate(chain.timesteps.tolist())}
    expected = {951: 0.0081549985, 901: 0.0140048889, 501: 0.2749988437, 451: 0.3455579877, 51: 0.9505240917}
    for timestep, value in (expected | {1: 0.9982960224}).items():
        assert found[timestep] == pytest.approx(value, rel=2e-6)
    assert float(chain.next_level.alpha[-1] ** 2) == pytest.approx(0.9991499782, rel=1e-6)
    for timestep, value in {951: 0.64439106, 501: 0.42932126, 51: 0.04059679, 1: 0.02064822}.items():
        assert float(chain.transition(M, X, at(chain, timestep)).std) == pytest.approx(value, rel=1e-5)


@pytest.mark.parametrize(
    ("eta", "expected"),
    [
        (1.0, {951: -0.7615039, 501: -0.2712246, 51: -9.0386438, 1: -12.9638767}),
        (0.5, {951: -0.6529124, 501: -0.0041189, 51: -38.2016029, 1: -57.9082298}),
    ],
)
def test_log_probabilities_of_ddim_steps(eta, expected):
    for timestep, value in expected.items():
        assert logp(ddim(eta=eta), timestep) == pytest.approx(value, rel=1e-5, abs=1e-7)


def test_other_predictions_and_the_end_of_the_chain():
    assert logp(ddim("v_prediction"), 501) == pytest.approx(-0.0949022, rel=1e-5)
    mean = ddim().transition(M, X, at(ddim(), 501)).mean.flatten()
    assert mean[[0, 1, -1]].tolist() == pytest.approx([-1.2553815, -0.8967011, 1.2553815], rel=1e-6)
    assert logp(ddim(set_alpha_to_one=True), 1) == pytest.approx(-12.9638767, rel=1e-5)
    x0 = (X - 0.8514695 * M) / math.sqrt(0.2749988437)
    assert logp(ddim("sample"), 501) != logp(ddim(), 501)
    sample = ddim("sample").step(x0, X, at(ddim(), 501), sample=NEXT).log_prob
    assert float(sample) == pytest.approx(-0.2712246, rel=1e-4)


def test_log_probabilities_of_renoising_steps():
    scheduler = LCMScheduler(**BETAS)
    scheduler.set_timesteps(4)
    chain = chain_of(scheduler, Rollout(num_inference_steps=4))
    assert chain.kind == "renoising"
    assert chain.stochastic == 3
    # The definition's own timesteps, which are those of trailing spacing.
    trailing = DDIMScheduler(**BETAS, timestep_spacing="trailing")
    trailing.set_timesteps(4)
    scheduler.timesteps = trailing.timesteps
    chain = chain_of(scheduler, Rollout(num_inference_steps=4))
    assert chain.timesteps.tolist() == [999, 749, 499, 249]
    assert logp(chain, 999) == pytest.approx(-5.2380981, rel=1e-5)
    assert logp(chain, 499) == pytest.approx(-1.6037078, rel=1e-5)


def test_log_probabilities_of_ancestral_steps():
    scheduler = EulerAncestralDiscreteScheduler(**BETAS, timestep_spacing="trailing")
    scheduler.set_timesteps(4)
    chain = chain_of(scheduler, Rollout(num_inference_steps=4))
    sigmas = [14.6146469, 4.0817308, 1.6128870, 0.6932054]
    assert chain.level.sigma_ve.tolist() == pytest.approx(sigmas, rel=1e-6)
    for timestep, value in {999: -2.9466581, 749: -1.6548016, 499: -0.8102219}.items():
        assert logp(chain, timestep) == pytest.approx(value, rel=1e-5)
    assert chain.stochastic == 3, "the last step draws nothing"
    last = chain.step(M, X, torch.tensor([3]))
    assert float(last.std) == 0
    assert float(last.log_prob) == 0


def test_log_probability_of_a_flow_step():
    scheduler = FlowMatchEulerDiscreteScheduler(shift=1.0)
    scheduler.set_timesteps(10)
    chain = chain_of(scheduler, Rollout(num_inference_steps=10, noise_level=0.7))
    third = torch.tensor([3])
    assert float(chain.step(M, X, third, sample=NEXT).log_prob) == pytest.approx(0.1409012, rel=1e-5)
    dt = float(chain.level.sigma[3] - chain.next_level.sigma[3])
    assert float(chain.transition(M, X, third).std) / math.sqrt(dt) == pytest.approx(0.9906924, rel=1e-6)
    assert chain.stochastic == 10
    assert math.isfinite(logp(chain, 1000.0)), "pure noise has a density as well"


def test_a_step_is_scored_as_it_is_stored():
    chain, g = ddim(), torch.Generator().manual_seed(0)
    x, m, noise = (torch.randn(2, 4, 8, 8, generator=g) for _ in range(3))
    last = torch.tensor([19, 19])
    drawn = chain.step(m.half(), x.half(), last, noise=noise)
    assert drawn.sample.dtype == torch.float16
    again = chain.step(m.half(), x.half(), last, sample=drawn.sample)
    assert torch.equal(drawn.log_prob, again.log_prob)


def test_rows_are_scored_alone_and_the_gradient_vanishes_at_the_mean():
    chain, g = ddim(), torch.Generator().manual_seed(0)
    x, m, sample = (torch.randn(4, 2, 2, 2, generator=g, dtype=torch.float64) for _ in range(3))
    places = torch.tensor([0, 5, 10, 19])
    together = chain.step(m, x, places, sample=sample).log_prob
    alone = [
        chain.step(*(t[i : i + 1] for t in (m, x, places)), sample=sample[i : i + 1]).log_prob
        for i in range(4)
    ]
    torch.testing.assert_close(together, torch.cat(alone), rtol=1e-12, atol=0)
    turned = torch.tensor([2, 0, 3, 1])
    permuted = chain.step(m[turned], x[turned], places[turned], sample=sample[turned]).log_prob
    torch.testing.assert_close(permuted, together[turned], rtol=1e-12, atol=0)
    m = m.requires_grad_()
    at_mean = chain.transition(m, x, places).mean.detach()
    (gradient,) = torch.autograd.grad(chain.step(m, x, places, sample=at_mean).log_prob.sum(), m)
    assert gradient.abs().max() < 1e-9
    assert gradcheck(lambda p: chain.step(p, x, places, sample=sample).log_prob, m)


def test_what_has_no_density_is_refused():
    with pytest.raises(InputError, match="eta"):
        Rollout(eta=0)
    with pytest.raises(InputError, match="clip_sample"):
        sampling_scheduler(DDIMScheduler(**BETAS))
    with pytest.warns(UserWarning, match="last timestep is 0"):
        assert len(ddim(steps_offset=0)) == 19


def test_dominance():
    rewards = torch.tensor(
        [[[30, 8, 6], [20, 8, 5]], [[40, 4, 4], [30, 8, 6]], [[1, 1, 1], [1, 1, 1]]]
    ).float()
    assert dominance(rewards).tolist() == [[1, -1], [0, 0], [0, 0]]
    assert dominance(torch.tensor([[[1.0], [2.0]]])).tolist() == [[-1, 1]]


def test_the_step_ratio_loss():
    d = torch.tensor([[0.05, -0.02]], dtype=torch.float64, requires_grad=True)
    first, second, tie = (torch.tensor([h], dtype=torch.float64) for h in ((1, -1), (-1, 1), (0, 0)))
    far = torch.tensor([[5.0, -5.0]], dtype=torch.float64)
    expected = [(d, first, 0.6896533), (d, second, 0.6966533), (d, tie, math.log(2)), (far, first, 0.6831640)]
    for ratio, h, value in [*expected, (far, second, 0.7032311)]:
        assert float(step_ratio_loss(ratio.detach(), h, 0.1, 0.1)) == pytest.approx(value, abs=1e-7)
    assert float(step_ratio_loss(d.detach(), first, 50, 0.1)) == pytest.approx(0.0297504, abs=1e-7)
    (gradient,) = torch.autograd.grad(step_ratio_loss(d, first, 0.1, 0.1).sum(), d)
    assert float(gradient[0, 0]) == pytest.approx(-0.0498250, abs=1e-7)
    outside = torch.tensor([[0.2, 0.0]], requires_grad=True)
    (gradient,) = torch.autograd.grad(step_ratio_loss(outside, first, 0.1, 0.1).sum(), outside)
    assert float(gradient[0, 0]) == 0
    swapped = step_ratio_loss(d.flip(1), first.flip(1), 0.1, 0.1)
    assert torch.equal(swapped, step_ratio_loss(d, first, 0.1, 0.1))
    assert float(step_ratio_loss(torch.full((1, 2), 900.0), first, 0.1, 0.1)) == pytest.approx(math.log(2))


def test_the_denoising_loss_is_that_of_the_example_of_diffusers():
    g = torch.Generator().manual_seed(3)
    prediction, reference, target = (torch.randn(6, 4, 8, 8, generator=g) for _ in range(3))
    beta = 2500.0
    # Its lines, which stack winners before losers.
    losses = F.mse_loss(prediction, target, reduction="none").mean(dim=(1, 2, 3))
    won, lost = losses.chunk(2)
    ref_won, ref_lost = F.mse_loss(reference, target, reduction="none").mean(dim=(1, 2, 3)).chunk(2)
    logits = (ref_won - ref_lost) - (won - lost)
    expected = {"sigmoid": -F.logsigmoid(beta * logits), "hinge": torch.relu(1 - beta * logits)}
    expected["ipo"] = (logits - 1 / (2 * beta)) ** 2
    delta = denoising_delta(losses.view(2, 3).T, torch.stack([ref_won, ref_lost], 1))
    for link, value in expected.items():
        torch.testing.assert_close(preference_link(-delta, kappa_of(beta), link), value, rtol=1e-4, atol=1e-6)
    assert kappa_of(5000, "dpo") == kappa_of(2500)
    assert implicit_accuracy(torch.tensor([0.1, 0.0, -2.0])).tolist() == [1, 0.5, 0]


def test_the_clipped_surrogate():
    cases = [
        (1.2, 0.05, -1.2615253),
        (1.2, 0.2, -1.32),
        (-1.2, 0.2, 1.4656833),
        (-1.2, -0.2, 1.08),
        (6, 0, -5),
    ]
    for advantage, ratio, value in cases:
        found = clipped_surrogate(
            torch.tensor([float(ratio)]), torch.zeros(1), torch.tensor([float(advantage)]), 0.1
        )
        assert float(found) == pytest.approx(value, abs=1e-6)
    assert float(clipped_surrogate(torch.zeros(1), torch.zeros(1), torch.tensor([6.0]), 0.1, None)) == -6


def test_the_statistics_of_prompts():
    rewards, prompts = torch.tensor([1.0, 2.0, 3.0, 6.0]), ["a", "b", "a ", "b"]
    assert PromptStatistics(32, 2).update(prompts, rewards).tolist() == pytest.approx(
        [-1, -1, 1, 1], abs=1e-5
    )
    tracker = PromptStatistics(32, 16)
    expected = [-1.0690, -0.5345, 0, 1.6036]
    assert tracker.update(prompts, rewards).tolist() == pytest.approx(expected, abs=1e-4)
    other = PromptStatistics(32, 16)
    other.load_state_dict(tracker.state_dict())
    assert torch.equal(other.update(prompts, rewards), tracker.update(prompts, rewards))
    with pytest.raises(InputError, match="one reward a prompt"):
        tracker.update(["a"], rewards)


def test_rewards_are_checked():
    images = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    small, large = named_reward("compressibility", "x"), named_reward("incompressibility", "x")
    assert torch.equal(score(small, images, "ab"), -score(large, images, "ab"))
    assert float(score(large, torch.ones(1, 3, 16, 16), "a")) < float(score(large, images, "ab").min())
    assert score(named_reward("brightness", "x"), torch.ones(1, 3, 4, 4), "a").tolist() == [[1.0]]
    red = torch.tensor([1.0, 0, 0]).view(1, 3, 1, 1).expand(1, 3, 4, 4)
    assert score(named_reward("redness", "x"), red, "a").tolist() == [[1.0]]
    both = [named_reward("brightness", "x"), named_reward("redness", "x")]
    assert score(Weighted(both), red, "a").shape == (1, 2)
    assert float(score(Weighted(both, [3, 1]), red, "a")) == pytest.approx(2)
    with pytest.raises(NonFiniteError, match="'b'"):
        score(lambda i, p: torch.tensor([0.0, math.nan]), images, ["a", "b"])
    with pytest.raises(InputError, match="2 images"):
        score(lambda i, p: torch.zeros(3), images, ["a", "b"])
    for name in ("nothing:here", "math:nothing", "clip:missing"):
        with pytest.raises(InputError):
            named_reward(name, "x")


def test_the_controls_rewards_are_the_images_own_in_another_order():
    images = torch.linspace(0, 1, 8).view(8, 1, 1, 1).expand(8, 3, 4, 4)
    told = InRandomOrder(named_reward("brightness", "x"), 3)
    first, second = (score(told, images, "abcdefgh").flatten() for _ in range(2))
    for found in (first, second):
        torch.testing.assert_close(found.sort().values, images[:, 0, 0, 0], rtol=1e-6, atol=1e-6)
    assert not torch.equal(first, second), "each call has an order of its own"
    again = InRandomOrder(named_reward("brightness", "x"), 3)
    assert torch.equal(score(again, images, "abcdefgh").flatten(), first)


def test_the_interval_of_wins_is_as_wide_as_prompts_and_images_differ():
    g = torch.Generator().manual_seed(0)
    wins = (torch.rand(400, generator=g) < 0.6).double()
    low, high = win_interval(wins, torch.zeros(400, dtype=torch.long))
    width = 2 * 1.96 * math.sqrt(float(wins.var(correction=0)) / 400)
    assert (low + high) / 2 == pytest.approx(float(wins.mean()), abs=0.01)
    assert high - low == pytest.approx(width, rel=0.1)
    # Wins that are the prompt's: as if there were as many images as prompts, however many of each were drawn.
    groups = torch.arange(16).repeat(25)
    low, high = win_interval((groups < 8).double(), groups)
    assert high - low == pytest.approx(2 * 1.96 * 0.5 / 4, rel=0.1)
    # Groups of different sizes: each image counts once, and no member of a small group is drawn for a large one.
    groups = torch.arange(4).repeat_interleave(torch.tensor([1, 1, 1, 97]))
    low, high = win_interval((groups == 3).double(), groups)
    assert low == 0
    assert high == pytest.approx(291 / 292)  # three of the four drawn are the large one
    assert win_interval(torch.ones(5), torch.arange(5)) == (1, 1)
