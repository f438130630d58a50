"""The variational sampler and the baselines on priors whose score is known, and numbers of the released code."""

import pytest
import torch
from noiseworks.core.closed_form import GaussianMixture, gaussian
from noiseworks.core.errors import InputError
from noiseworks.core.schedules import Level, table_schedule
from noiseworks.core.steps import ddim_std
from noiseworks.red_diff import Baselines, Plan, Prior, RedDiff, measure, restore, steps_of
from noiseworks.red_diff import operators as ops
from noiseworks.red_diff.sampling import Spectrum, ddrm_update
from noiseworks.red_diff.variational import prior_gradient, residual
from noiseworks.red_diff.weights import WEIGHTS, ordered, timestep_grid, weight_of

SCHEDULE = table_schedule("linear")
LINE = (1, 1, 4)


def prior_from(mixture, shape=LINE):
    def predict(x, t):
        return mixture.epsilon(x.flatten(1), SCHEDULE.level(t)).reshape(x.shape).to(x.dtype)

    return Prior(predict, SCHEDULE, shape)


def normal_prior(mean=0.0, variance=1.0, shape=LINE):
    """Return the exact prior N(mean, variance I), whose network is differentiable and cheap."""

    def predict(x, t):
        alpha, sigma = SCHEDULE.level(t)
        return sigma * (x - alpha * mean) / (alpha**2 * variance + sigma**2)

    return Prior(predict, SCHEDULE, shape)


PARITY = {
    "linear": (0.7710114, -0.3297615, 0.0075206, 0.0456168),
    "sqrt": (0.8378838, -0.4905079, -0.0306107, 0.0582451),
    "square": (0.7743001, -0.2764802, 0.2048475, -0.0877848),
    "log": (0.8527039, -0.5259258, -0.0370096, 0.0583589),
    "trunc_linear": (1.0378189, -0.5281402, -0.0394516, 0.0589014),
    "power2over3": (0.8173856, -0.4277962, -0.0242926, 0.0573904),
    "const": (0.9711143, -0.4740007, -0.0368204, 0.0489802),
}


@pytest.mark.parametrize("weight", WEIGHTS)
def test_three_steps_give_the_released_codes_numbers(weight, monkeypatch):
    monkeypatch.setattr("noiseworks.red_diff.variational.timestep_grid", lambda *_: [900, 500, 100])
    noise = torch.tensor([(0.5, -0.25, 1, -1), (-1, 0.5, 0.25, 0.75), (0.1, 0.2, -0.3, 0.4)]).double()
    drawn = "noiseworks.red_diff.variational.noise_for"
    monkeypatch.setattr(drawn, lambda mu, seeds, stream, step: noise[step].reshape(1, *LINE))
    operator = ops.Inpainting(torch.tensor([[True, True, False, False]]), 1)
    y = torch.tensor([[[[1, -0.5, 0, 0]]]]).double()
    settings = RedDiff(num_steps=3, learning_rate=0.1, weight=weight)
    steps = [
        (one.image.flatten().clone(), float(one.loss()))
        for one in steps_of(normal_prior(), operator, y, settings)
    ]
    assert steps[-1][0].tolist() == pytest.approx(PARITY[weight], abs=1e-6)
    if weight == "linear":
        losses = [loss for _, loss in steps]
        assert losses == pytest.approx((0.077461821, 0.078813118, 0.014242509), abs=1e-8)
        level = SCHEDULE.level(900)
        first = prior_gradient(normal_prior(), y, noise[0].reshape(1, *LINE), 900, 0.25 * level.sigma_ve)
        expected = (0.0619695, -0.0309847, -0.0010273, 0.0010273)
        assert (first / 4).flatten().tolist() == pytest.approx(expected, abs=1e-7)


def test_weights_at_known_levels():
    levels = [SCHEDULE.level(t) for t in (10, 259, 500, 990)]
    rho = [float(weight_of(level, "linear")) for level in levels]
    assert rho == pytest.approx((0.046885, 1.004784, 3.442967, 143.780274), abs=2e-6)
    logs = [float(weight_of(level, "log")) for level in levels]
    assert logs == pytest.approx((0.045820, 0.695536, 1.491322, 4.975217), abs=2e-6)
    assert float(weight_of(SCHEDULE.level(258), "linear")) < 1
    assert float(weight_of(levels[3], "trunc_linear")) == 1


def test_grid_and_orders():
    assert timestep_grid(100)[:2] == [990, 980]
    assert timestep_grid(50)[-2:] == [20, 0]
    assert len(timestep_grid(1000)) == 1000
    with pytest.raises(InputError, match="ask for 334"):
        timestep_grid(300)
    grid = timestep_grid(20)
    assert ordered(grid, "ascending") == grid[::-1]
    assert sorted(ordered(grid, "random_permutation", seed=1), reverse=True) == grid
    assert set(ordered(grid, "random", seed=1)) < set(grid)
    assert ordered(grid, "fixed", fixed=300) == [300] * 20


def test_ddim_coefficients_of_the_released_code():
    level, after = SCHEDULE.level(500), SCHEDULE.level(490)
    for eta, c1, c2 in ((0, 0, 0.956036), (0.5, 0.153703, 0.943599), (1, 0.307407, 0.905265)):
        std = ddim_std(level, after, eta)
        assert float(std) == pytest.approx(c1, abs=1e-6)
        assert float((after.sigma**2 - std**2).sqrt()) == pytest.approx(c2, abs=1e-6)
    clean = SCHEDULE.level(-1)
    for eta in (0.0, 0.5, 1.0):  # the last step ends at the prediction itself
        assert (float(ddim_std(SCHEDULE.level(0), clean, eta)), float(clean.sigma)) == (0.0, 0.0)


def test_expected_prior_gradient_of_a_gaussian():
    for variance, factor in ((1.0, 0.922203), (0.25, 0.979346)):
        prior = normal_prior(0.3, variance, (1, 1, 1))
        mu = torch.full((200_000, 1, 1, 1), 0.8, dtype=torch.float64)
        noise = torch.randn(100_000, 1, 1, 1, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        noise = torch.cat([noise, -noise])  # pairs, whose mean is exact for a prior with a linear score
        level = SCHEDULE.level(500)
        found = prior_gradient(prior, mu, noise, 500, 0.25 * level.sigma_ve).mean()
        exact = level.sigma**2 / (level.alpha**2 * variance + level.sigma**2)
        assert float(exact) == pytest.approx(factor, abs=1e-6)
        assert float(found) / (0.25 * 0.5) == pytest.approx(factor, abs=2e-3)
    squares = [float(SCHEDULE.sigma(t)) ** 2 for t in timestep_grid(100)]
    assert sum(squares) / 100 == pytest.approx(0.719986, abs=1e-6)


def test_the_fixed_point_of_gradient_descent_on_a_gaussian_prior():
    """Sum reduction, identity, SGD in random order: (y + lambda w m) / (1 + lambda w) with the mean weight w."""
    m, strength = -0.5, 0.5
    operator, y = ops.Inpainting(torch.ones(1, 4), 1), torch.full((512, *LINE), 0.75, dtype=torch.float64)
    sgd = {"optimizer": "sgd", "learning_rate": 0.005, "reduction": "sum"}
    settings = RedDiff(num_steps=1000, strength=strength, order="random_permutation", **sgd)
    *_, last = steps_of(normal_prior(m), operator, y, settings)
    w = sum(float(SCHEDULE.sigma(t)) ** 2 for t in range(1000)) / 1000
    assert w == pytest.approx(0.724487, abs=1e-6)
    assert float(last.image.mean()) == pytest.approx((0.75 + strength * w * m) / (1 + strength * w), abs=0.02)


def test_without_prior_or_without_data():
    operator, y = ops.Inpainting(torch.ones(1, 4), 1), torch.full((1, *LINE), 0.7)
    start = torch.zeros(1, *LINE)
    *_, last = steps_of(normal_prior(), operator, y, RedDiff(num_steps=200, strength=0.0), start=start)
    torch.testing.assert_close(last.image, y, atol=1e-3, rtol=0)
    sds = RedDiff(num_steps=200, data_weight=0.0, learning_rate=0.05, weight="linear")
    *_, last = steps_of(normal_prior(0.2, 1e-4), operator, y, sds, start=start)
    torch.testing.assert_close(last.image, torch.full_like(y, 0.2), atol=0.02, rtol=0)


MIXTURE = GaussianMixture(
    torch.tensor([0.6, 0.4]).double(),
    torch.tensor([[0.6, 0.5, -0.4, 0.3], [-0.5, -0.6, 0.4, -0.2]]).double(),
    torch.stack([0.02 * torch.eye(4), 0.01 * torch.eye(4) + 0.005]).double(),
)


def posterior(mixture, matrix, y, sigma_y):
    """Return the exact posterior of a mixture given y = A x + sigma_y n of one sample, as a mixture."""
    noise = sigma_y**2 * torch.eye(len(matrix), dtype=torch.float64)
    logs, means, covariances = [], [], []
    for weight, mean, covariance in zip(mixture.weights, mixture.means, mixture.covariances, strict=True):
        spread = matrix @ covariance @ matrix.T + noise
        gain = covariance @ matrix.T @ torch.linalg.inv(spread)
        means.append(mean + gain @ (y - matrix @ mean))
        covariances.append(covariance - gain @ matrix @ covariance)
        seen = torch.distributions.MultivariateNormal(matrix @ mean, spread)
        logs.append(weight.log() + seen.log_prob(y))
    return GaussianMixture(torch.stack(logs).softmax(0), torch.stack(means), torch.stack(covariances))


def test_methods_come_near_the_exact_posterior_of_a_mixture():
    """No estimate beats the posterior's mean; each method is far nearer to it than the pseudo-inverse is."""
    sigma_y, count = 0.1, 48
    x = MIXTURE.sample(count, generator=torch.Generator().manual_seed(0)).reshape(count, *LINE)
    operator = ops.Inpainting(torch.tensor([[True, True, False, False]]), 1)
    y = measure(operator, x, sigma_y, range(count))
    matrix = torch.eye(4, dtype=torch.float64)[:2]
    exact = [posterior(MIXTURE, matrix, one.flatten()[:2], sigma_y) for one in y]
    mean = torch.stack([p.weights @ p.means for p in exact]).reshape(x.shape)
    mode = torch.stack([p.means[p.weights.argmax()] for p in exact]).reshape(x.shape)
    least = float((mean - x).square().mean())
    prior = prior_from(MIXTURE)
    start = float((operator.start(y) - mean).square().mean())
    errors = {}
    settings = RedDiff(num_steps=200, strength=0.05, learning_rate=0.05, reduction="sum")
    for method in ("red-diff", "dps", "pigdm", "ddrm"):
        knobs = Baselines(step_size=0.1, eta=1.0) if method == "dps" else Baselines()
        found = restore(prior, operator, y, Plan(method, settings, knobs, sigma_y))
        errors[method] = float((found.images - mean).square().mean())
        assert float((found.images - x).square().mean()) > 0.98 * least
        assert errors[method] < 0.25 * start, errors
        if method == "red-diff":
            assert float((found.images - mode).square().mean()) < 0.01


def test_a_sample_does_not_depend_on_its_batch_and_the_network_leaves_no_graph():
    saved = []
    prior = normal_prior(0.1, 0.3)
    operator = ops.Inpainting(torch.tensor([[True, False, True, False]]), 1)
    y = (
        torch.randn(8, *LINE, generator=torch.Generator().manual_seed(0))
        * operator.singulars.reshape(LINE).float()
    )
    settings = RedDiff(num_steps=20, sigma_x0=1e-2)
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
        batch = restore(prior, operator, y, Plan(settings=settings), seeds=range(8))
    assert not saved
    for method in ("red-diff", "dps", "pigdm", "ddrm"):
        batch = restore(prior, operator, y, Plan(method, settings), seeds=range(8))
        alone = restore(prior, operator, y[3:4], Plan(method, settings), seeds=[3])
        torch.testing.assert_close(batch.images[3:4], alone.images, atol=1e-6, rtol=0)


def test_noiseless_ddrm_and_pigdm_keep_what_was_measured():
    operator = ops.BlockAverage((1, 4, 4), 2)
    x = torch.rand(3, 1, 4, 4, dtype=torch.float64)
    y, prior = operator.forward(x), normal_prior(0.2, 0.05, (1, 4, 4))
    for method in ("ddrm", "pigdm"):
        found = restore(prior, operator, y, Plan(method))
        assert float(found.residual.max()) < (1e-6 if method == "ddrm" else 0.03)
        torch.testing.assert_close(found.residual * 2, residual(operator, found.images, y))


def test_a_run_that_goes_on_equals_one_that_was_never_stopped():
    """Bit for bit: noise belongs to a step, so image, moments and the step's number are all there is to keep."""
    prior, operator = normal_prior(0.1, 0.3), ops.Inpainting(torch.tensor([[True, False, True, False]]), 1)
    y = operator.forward(torch.randn(2, *LINE, generator=torch.Generator().manual_seed(1)))
    for extra in ({}, {"order": "random", "sigma_x0": 1e-2}, {"optimizer": "sgd"}):
        settings = RedDiff(num_steps=20, **extra)
        whole = [
            (one.step, one.image.clone()) for one in steps_of(prior, operator, y, settings, seeds=[3, 8])
        ]
        stopped = steps_of(prior, operator, y, settings, seeds=[3, 8])
        for _ in range(7):
            state = next(stopped).state()
        list(stopped)  # what goes on changes nothing that was kept
        rest = [
            (one.step, one.image.clone())
            for one in steps_of(prior, operator, y, settings, seeds=[3, 8], start=state)
        ]
        assert [step for step, _ in rest] == list(range(8, 21))
        assert all(torch.equal(a, b) for (_, a), (_, b) in zip(whole[7:], rest, strict=True))


def test_measurements_of_a_mode_stay_there():
    prior, operator = normal_prior(0.4, 1e-4), ops.Inpainting(torch.ones(1, 4), 1)
    y = torch.full((1, *LINE), 0.4)
    *_, last = steps_of(prior, operator, y, RedDiff(num_steps=100, strength=0.01, learning_rate=0.02))
    torch.testing.assert_close(last.image, y, atol=5e-3, rtol=0)


def test_restarts_keep_what_explains_a_measurement_best():
    prior, phase = normal_prior(0.1, 0.2, (1, 4, 4)), ops.PhaseRetrieval((1, 4, 4))
    y = phase.forward(torch.rand(5, 1, 4, 4, generator=torch.Generator().manual_seed(0)))
    settings = RedDiff(num_steps=20)
    once = [
        restore(prior, phase, y, Plan(settings=settings), seeds=[i + (k << 32) for i in range(5)])
        for k in range(3)
    ]
    best = restore(prior, phase, y, Plan(settings=settings, restarts=3))
    residuals = torch.stack([one.residual for one in once])
    assert len(set(residuals.argmin(0).tolist())) > 1
    torch.testing.assert_close(best.residual, residuals.min(0).values)
    assert best.steps == 60
    for i, k in enumerate(residuals.argmin(0)):
        assert torch.equal(best.images[i], once[k].images[i])


def test_ddrm_update_by_cases():
    one = torch.ones(1, 3, dtype=torch.float64)
    x0, epsilon, noise, target = 0.5 * one, 2 * one, 0 * one, 1.5 * one
    known, spread = torch.tensor([[False, True, True]]), torch.tensor([[0.0, 0.1, 4.0]]).double()
    found = ddrm_update(x0, epsilon, Spectrum(target, spread, known), 1.0, 0.6, noise)
    assert found[0].tolist() == pytest.approx([0.5 + 0.8 * 2, 1.5, 0.5 + 0.8 * (1.5 - 0.5) / 4])
    noisy = ddrm_update(x0, epsilon, Spectrum(target, spread, known), 1.0, 0.6, one) - found
    assert noisy[0].tolist() == pytest.approx([0.6, (1 - 0.01) ** 0.5, 0.6])


def test_dps_divides_the_gradient_of_the_square_by_the_norm():
    prior, operator = normal_prior(), ops.Inpainting(torch.ones(1, 4), 1)
    y = torch.tensor([[[[0.9, -0.2, 0.4, 0.1]]]]).double()

    def last(step_size):
        return restore(
            prior, operator, y, Plan("dps", RedDiff(num_steps=1), Baselines(step_size=step_size))
        ).images

    x0 = last(0.0)  # one step from t = 0 to clean
    level: Level = SCHEDULE.level(0)
    slope = level.alpha / (level.alpha**2 + level.sigma**2)
    unit = (x0 - y) / (x0 - y).norm()
    torch.testing.assert_close(x0 - last(0.3), 0.3 * 2 * slope * unit)


def test_what_cannot_be_done_is_refused():
    prior, phase = normal_prior(shape=(1, 8, 8)), ops.PhaseRetrieval((1, 8, 8))
    y = phase.forward(torch.rand(1, 1, 8, 8))
    with pytest.raises(InputError, match="DDRM needs"):
        restore(prior, phase, y, Plan("ddrm", RedDiff(num_steps=2)))
    with pytest.raises(InputError, match="works on"):
        restore(normal_prior(), phase, y, Plan(settings=RedDiff(num_steps=2)))
    with pytest.raises(InputError, match="PiGDM with noise"):
        restore(prior, phase, y, Plan("pigdm", RedDiff(num_steps=2), sigma_y=0.1))
    from noiseworks.core.schedules import zero_terminal

    with pytest.raises(InputError, match="zero terminal"):
        Prior(lambda x, t: x, zero_terminal(SCHEDULE), LINE)


def test_one_gaussian_mixture_component_is_the_gaussian():
    mixture = gaussian(torch.full((4,), 0.3).double(), torch.eye(4).double())
    x = torch.randn(2, *LINE, dtype=torch.float64)
    torch.testing.assert_close(prior_from(mixture).epsilon(x, 400), normal_prior(0.3).epsilon(x, 400))
