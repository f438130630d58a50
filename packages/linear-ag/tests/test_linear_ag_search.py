"""Policy search: the relaxation against its definition, the searches on problems with a known answer."""

import pytest
import torch
from noiseworks.core.errors import InputError
from noiseworks.linear_ag.options import SearchSettings
from noiseworks.linear_ag.search import (
    discretise,
    expected_nfe,
    local_search,
    mixture,
    mixture_of_three,
    option_costs,
    relaxed_search,
    relaxed_weights,
    search_loss,
    truncation_policies,
)


def test_mixture_is_the_weighted_sum_of_the_options():
    uncond, cond = torch.randn(2, 3, 4, dtype=torch.float64)
    weights = torch.tensor([0.1, 0.2, 0.3, 0.4], dtype=torch.float64)
    options = [uncond, cond, uncond + 7.5 * (cond - uncond), uncond + 3.0 * (cond - uncond)]
    expected = sum(w * option for w, option in zip(weights, options, strict=True))
    torch.testing.assert_close(mixture(uncond, cond, weights, (7.5, 3.0)), expected)


def test_expected_cost_counts_one_one_two():
    weights = torch.tensor([[1.0, 0.0, 0.0, 0.0], [0.0, 1.0, 0.0, 0.0], [0.0, 0.0, 0.25, 0.75]])
    assert float(expected_nfe(weights, option_costs((7.5, 3.0)))) == 4.0
    assert float(expected_nfe(weights, option_costs((7.5,), 3))) == 1.0 + 1.0 + 0.25 * 2 + 0.75 * 3


def test_mixture_of_three_is_the_weighted_sum_of_what_the_host_makes_of_each_option():
    def host(e1, e2, e3):
        return e3 + 7.5 * (e1 - e2) + 1.5 * (e2 - e3)

    e1, e2, e3 = torch.randn(3, 3, 4, dtype=torch.float64)
    weights = torch.tensor([0.1, 0.2, 0.3, 0.4], dtype=torch.float64)
    options = [host(e3, e3, e3), host(e1, e1, e1), host(e1, e1, e3), host(e1, e2, e3)]
    expected = sum(w * option for w, option in zip(weights, options, strict=True))
    torch.testing.assert_close(mixture_of_three(e1, e2, e3, weights, 7.5, 1.5), expected)


def test_loss_adds_budget_and_entropy():
    weights = torch.full((2, 3), 1 / 3)
    latents, target = torch.ones(1, 4), torch.zeros(1, 4)
    settings = SearchSettings(budget=2.0, cost_weight=0.5, entropy_weight=0.1)
    expected = 1.0 + 0.5 * (8 / 3 - 2.0) + 0.1 * torch.log(torch.tensor(3.0)).item()
    assert float(search_loss(latents, target, weights, settings, (1.0, 1.0, 2.0))) == pytest.approx(
        expected, rel=1e-5
    )


def test_gumbel_noise_shifts_the_scores():
    alpha, noise = torch.zeros(1, 3), torch.tensor([[0.0, 1.0, 2.0]])
    torch.testing.assert_close(relaxed_weights(alpha, 0.5, noise), torch.softmax(2 * noise, dim=-1))


@pytest.mark.parametrize("gumbel", [False, True])
def test_relaxed_search_finds_where_guidance_matters(gumbel):
    """Guidance moves the result at the first two of six steps and by nothing later; the budget is eight."""
    importance = torch.tensor([1.0, 1.0, 0.0, 0.0, 0.0, 0.0])

    def sampler(weights, update):
        effect = weights @ torch.tensor([-1.0, 0.0, 1.0])
        return (importance * effect)[None], importance[None]

    settings = SearchSettings(
        scales=(7.5,), budget=8.0, updates=200, learning_rate=0.1, cost_weight=0.2, gumbel=gumbel
    )
    actions = discretise(relaxed_search(sampler, 6, settings), settings.scales, 7.5).actions
    assert actions[:2] == "22"
    assert "2" not in actions[2:]


def test_discretised_scales_become_strengths():
    alpha = torch.tensor([[0.0, 0.0, 1.0, 0.0], [0.0, 0.0, 0.0, 1.0], [0.0, 1.0, 0.0, 0.0]])
    policy = discretise(alpha, (7.5, 3.0), 7.5)
    assert policy.actions == "221"
    assert policy.strengths == (1.0, 2.0 / 6.5, 1.0)


def test_an_option_that_the_host_lacks_is_never_chosen():
    def sampler(weights, update):
        return weights[:, 0][None], torch.ones(1, 4)  # only e_u would help

    settings = SearchSettings(scales=(7.5,), updates=20, gumbel=True, entropy_weight=0.1)
    alpha = relaxed_search(sampler, 4, settings, has_uncond=False)
    assert bool(alpha[:, 1:].isfinite().all())
    assert "0" not in discretise(alpha, settings.scales, 7.5).actions


def test_options_of_three_predictions_become_their_digits():
    assert discretise(torch.eye(4), (7.5,), 7.5, num_roles=3).actions == "0152"


def test_local_search_moves_guided_steps_at_the_same_cost():
    def loss(policy):
        return sum(k for k, digit in enumerate(policy) if digit == "2")

    best, value = local_search(loss, "112121", 200)
    assert (best, value) == ("221111", 1)
    assert local_search(loss, "112121", 1) == ("112121", 6)


def test_local_search_of_reused_differences_keeps_them_behind_the_first_guided_step():
    tried = []

    def loss(policy):
        tried.append(policy)
        return abs(policy.find("2") - 1) + abs(policy.rfind("2") - 4)

    assert local_search(loss, "224444", 200) == ("124424", 0)
    for policy in tried:
        head, _, tail = policy.partition("2")
        assert not set(head) - {"1"}
        assert not set(tail) - {"2", "4"}
        assert policy.count("2") == 2


def test_truncations_cover_every_length():
    assert truncation_policies(2) == ["11", "21", "22"]


@pytest.mark.parametrize(
    "bad",
    [
        {"scales": (1.0,)},
        {"budget": 0.0},
        {"updates": 0},
        {"temperature": 0.0},
        {"learning_rate": -1.0},
        {"compare": "pixels"},
    ],
)
def test_bad_search_settings_are_refused(bad):
    with pytest.raises(InputError):
        SearchSettings(**bad)
