import pytest
import torch
from noiseworks.core.errors import InputError, NonFiniteError
from noiseworks.kits.protection import Budget, State, projected_gradient, random_signs
from noiseworks.kits.protection.engine import draw_normal, streams

EPS = 8 / 255


def linear(direction):
    return lambda images, generators: (direction.expand_as(images), (direction * images).flatten(1).sum(1))


@pytest.mark.parametrize("steps", [1, 5, 8, 20])
def test_a_linear_objective_gives_the_closed_form(steps):
    direction = torch.tensor([1.0, -2.0, 0.0], dtype=torch.float64).view(1, 3, 1, 1)
    images = torch.full((2, 3, 4, 4), 0.5, dtype=torch.float64)
    found = projected_gradient(images, linear(direction), Budget(8, 1, steps))
    expected = -min(steps, 8) / 255 * direction.sign().expand_as(images)
    torch.testing.assert_close(found.images - images, expected, rtol=0, atol=1e-12)
    assert found.silent == pytest.approx(1 / 3)


def test_the_papers_budget_is_used_up_at_step_sixteen_and_the_range_stops_it_earlier():
    images = torch.full((1, 3, 4, 4), 0.5, dtype=torch.float64)
    images[..., 0], images[..., 1], images[..., 2] = 0.0, 0.99, 3 / 255
    sign = torch.tensor([1.0, -1.0, 0.0], dtype=torch.float64).view(1, 3, 1, 1)
    for steps in (1, 15, 16, 100):
        size = min(steps, 16) / 255
        found = projected_gradient(images, linear(sign), Budget(16, 1, steps)).images
        torch.testing.assert_close(found, (images - size * sign).clamp(0, 1), rtol=0, atol=1e-12)
        assert (found[:, 0, :, 0] == 0).all()  # a pixel at 0 that is pushed down stays
    assert float((2 * (found - images)).abs().max()) == pytest.approx(0.1254902, abs=1e-7)


@pytest.mark.parametrize("columns", [4, 1])
@pytest.mark.parametrize(("eps", "step"), [(16, 5), (3, 5)])
def test_the_first_step_under_l2_has_the_steps_norm_or_the_budgets(eps, step, columns):
    """Also where only some columns may be changed, which the gradient of the others must not shorten."""
    images = torch.full((2, 3, 4, 4), 0.5, dtype=torch.float64)
    direction = torch.randn(1, 3, 4, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    support = (torch.arange(4) < columns).double().expand(2, 1, 4, 4)
    budget = Budget(eps, step, 1, norm="l2")
    found = projected_gradient(images, linear(direction), budget, support=support)
    norms = (found.images - images).flatten(1).norm(dim=1)
    torch.testing.assert_close(norms, torch.full_like(norms, min(eps, step) / 255), rtol=1e-8, atol=0)


def test_decaying_steps_are_those_of_photoguard_and_use_the_budget_up():
    budget = Budget(8, 1, 100, schedule="decaying")
    sizes = [budget.size(k) * 255 for k in range(100)]
    assert sizes[0] == 1
    assert sizes[-1] == pytest.approx(0.0199)
    assert sum(sizes) == pytest.approx(50.995)
    images = torch.full((1, 3, 4, 4), 0.5, dtype=torch.float64)
    seen = []
    found = projected_gradient(
        images,
        linear(torch.ones(1, 3, 1, 1).double()),
        budget,
        observe=lambda s: seen.append(s.delta.abs().max()),
    )
    torch.testing.assert_close(images - found.images, torch.full_like(images, EPS))
    assert max(seen) <= EPS


def test_range_support_and_l2_hold_after_every_step():
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(2, 3, 6, 6, generator=generator, dtype=torch.float64)
    images[0, :, 0] = torch.tensor(0.99).double()
    images[1, :, 1] = 0.0
    support = torch.zeros(2, 1, 6, 6)
    support[..., :3] = 1

    def rough(x, generators):
        return draw_normal(generators, x.shape[1:], x), x.flatten(1).sum(1)

    for norm, limit in (("linf", 16 / 255), ("l2", 16 / 255)):
        steps = []
        budget = Budget(16, 5, 12, norm=norm, start="uniform" if norm == "linf" else "zero")
        projected_gradient(
            images, rough, budget, support=support, observe=lambda s, kept=steps: kept.append(s.delta)
        )
        for delta in steps:
            size = delta.abs().max() if norm == "linf" else delta.flatten(1).norm(dim=1).max()
            assert size <= limit + 1e-9
            assert (delta[..., 3:] == 0).all()
            assert (images + delta).min() >= 0
            assert (images + delta).max() <= 1
        if norm == "l2":
            assert float(steps[0].flatten(1).norm(dim=1).max()) <= 5 / 255 + 1e-9


def test_the_engine_equals_a_plain_autograd_loop():
    generator = torch.Generator().manual_seed(1)
    images = torch.rand(3, 3, 5, 5, generator=generator, dtype=torch.float64)
    weight = torch.randn(4, 75, generator=generator, dtype=torch.float64)

    def objective(x):
        return (weight @ x.flatten(1).T).square().sum(0).sqrt()

    def gradient(x, generators):
        x = x.detach().requires_grad_()
        value = objective(x)
        return torch.autograd.grad(value.sum(), x)[0], value

    budget = Budget(6, 0.7, 25)
    found = projected_gradient(images, gradient, budget)
    plain = images.clone()
    for _ in range(25):
        plain.requires_grad_()
        (slope,) = torch.autograd.grad(objective(plain).sum(), plain)
        plain = (plain - 0.7 / 255 * slope.sign()).detach()
        plain = torch.minimum(torch.maximum(plain, images - 6 / 255), images + 6 / 255).clamp(0, 1)
    torch.testing.assert_close(found.images, plain, rtol=0, atol=1e-12)
    assert float(found.history[-1]) < float(found.history[0])


def noisy(x, generators):
    return x - 0.5 + draw_normal(generators, x.shape[1:], x), x.flatten(1).sum(1)


def test_a_stopped_run_goes_on_to_the_same_numbers_and_a_batch_is_its_images():
    images = torch.rand(2, 3, 4, 4, generator=torch.Generator().manual_seed(2))
    budget = Budget(8, 1, 9, start="uniform", seed=5)
    states: list[State] = []
    whole = projected_gradient(images, noisy, budget, observe=states.append)
    resumed = projected_gradient(images, noisy, budget, state=states[3])
    assert torch.equal(whole.images, resumed.images)
    assert torch.equal(whole.history, resumed.history)
    second = projected_gradient(images[1:], noisy, budget, generators=streams(budget, 1, first=1))
    assert torch.equal(whole.images[1:], second.images)


def test_what_cannot_be_protected_is_refused():
    images = torch.full((1, 3, 4, 4), 0.5)
    assert torch.equal(projected_gradient(images, noisy, Budget(0, 1, 3)).images, images)
    with pytest.raises(InputError, match=r"\[0, 1\]"):
        projected_gradient(images * 3, noisy, Budget())
    with pytest.raises(NonFiniteError, match="gradient"):
        projected_gradient(images, lambda x, g: (x * torch.nan, x.flatten(1).sum(1)), Budget())
    for bad in ({"eps_255": -1}, {"step_255": 0}, {"steps": 0}, {"norm": "l1"}):
        with pytest.raises(InputError):
            Budget(**bad)


def test_random_signs_use_the_whole_budget_inside_the_support():
    images = torch.full((2, 3, 8, 8), 0.5)
    support = torch.zeros(2, 1, 8, 8)
    support[..., :4, :] = 1
    change = random_signs(images, Budget(16), support=support).images - images
    torch.testing.assert_close(change[..., :4, :].abs(), torch.full((2, 3, 4, 8), 16 / 255))
    assert (change[..., 4:, :] == 0).all()
