"""Advantages, step selection and losses against worked figures, closed forms and gradients."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from noiseworks.core.errors import InputError
from noiseworks.mdpo.advantages import compute_advantages, select_steps, step_returns
from noiseworks.mdpo.objective import diffu_grpo_loss, kl_estimate, mdpo_loss, sft_loss, token_log_probs
from noiseworks.mdpo.policy import masked_positions

TWO = torch.tensor([[0.0, 1, 1, 0], [0, 0, 1, 1]])
FOUR = torch.tensor([[0.0, 0, 1, 1, 1, 1], [0, 1, 1, 0, 0, 0], [1, 1, 1, 1, 1, 1], [0, 0, 0, 0, 0, 0]])


def close(actual, expected, atol=1e-6):
    torch.testing.assert_close(
        actual.double(), torch.tensor(expected, dtype=torch.float64), atol=atol, rtol=0
    )


def test_returns_and_advantages_of_the_worked_example():
    close(step_returns(TWO), [[5 / 3, 2.5, 1, 0], [5 / 3, 2, 3, 2]])
    expected = [[0, 0.706907, -0.707057, -0.707057], [0, -0.706907, 0.707057, 0.707057]]
    close(compute_advantages(TWO), expected)


def test_steps_with_the_largest_advantages_are_chosen():
    close(compute_advantages(TWO).abs().sum(0)[2:], [1.414114, 1.414114])
    assert select_steps(compute_advantages(TWO), 1).tolist() == [2]
    scores = [2.777139, 2.930891, 3.133071, 3.133071, 3.463502, 3.463502]
    close(compute_advantages(FOUR).abs().sum(0), scores)
    assert select_steps(compute_advantages(FOUR), 2).tolist() == [4, 5]
    assert select_steps(compute_advantages(FOUR), 3).tolist() == [2, 4, 5]


def test_variants_of_the_return():
    r = torch.tensor([[0.0, 1, 0.5]])
    close(step_returns(r, "diff"), [[0, 1, -0.5]])
    close(step_returns(r, "future"), [[0.5, 0.75, 0.5]])
    close(step_returns(r, "step"), [[0, 1, 0.5]])
    close(step_returns(r, "final"), [[0.5] * 3])
    with pytest.raises(InputError, match="best"):
        step_returns(r, "best")


@pytest.mark.parametrize("kind", ["diff+future", "diff", "future", "step", "final"])
@given(data=st.data())
@settings(max_examples=20, deadline=None)
def test_a_constant_reward_changes_no_advantage(kind, data):
    numbers = st.floats(-2, 2, allow_nan=False).map(lambda v: round(v, 3))
    rewards = torch.tensor(
        data.draw(st.lists(st.lists(numbers, min_size=5, max_size=5), min_size=3, max_size=3))
    )
    shifted = compute_advantages(rewards.double() + 0.75, kind)
    # Returns that agree up to rounding have a spread of 1e-12 at most, and count as equal.
    torch.testing.assert_close(shifted, compute_advantages(rewards, kind), atol=1e-6, rtol=1e-6)


def test_equal_rollouts_have_no_advantage_and_batches_are_groups_side_by_side():
    assert not compute_advantages(torch.full((4, 3), 0.1)).any()
    both = compute_advantages(torch.stack([FOUR, FOUR.flip(0)]))
    torch.testing.assert_close(both[0], compute_advantages(FOUR))
    torch.testing.assert_close(both[1], compute_advantages(FOUR.flip(0)))
    assert select_steps(both, 2).tolist() == [[4, 5], [4, 5]]


def test_rewards_that_cannot_be_compared_are_refused():
    with pytest.raises(InputError, match="G >= 2"):
        compute_advantages(torch.zeros(1, 4))
    with pytest.raises(InputError, match="finite"):
        compute_advantages(torch.tensor([[float("nan")], [0.0]]))
    with pytest.raises(InputError, match="sample_train_steps"):
        select_steps(torch.zeros(2, 4), 5)


# --- Losses ---

MASK = torch.tensor([[True, False, True, False]])
WEIGHT = torch.tensor([[0.8, 9.0, 0.4, 9.0]], dtype=torch.float64)


def worked(weight, **words):
    logp = torch.full((1, 4), -1.0, dtype=torch.float64, requires_grad=True)
    ref = logp.detach() + torch.tensor([[0.1, 5.0, -0.2, 5.0]], dtype=torch.float64)
    loss, stats = mdpo_loss(logp, None, ref, torch.tensor([0.5]), MASK, weight, **words)
    return logp, loss, stats


def test_loss_of_the_worked_example():
    close(worked(WEIGHT)[1].detach(), -0.59982001, atol=1e-8)
    close(worked(None)[1].detach(), -0.99965002, atol=1e-8)
    stats = worked(None)[2]
    assert stats.kl == pytest.approx(0.0125)
    assert (stats.ratio, stats.clipped, stats.tokens) == (1.0, 0.0, 2)


def test_policy_gradient_is_minus_weight_advantage_lambda_over_n():
    logp, loss, _ = worked(WEIGHT, beta=0.0)
    loss.backward()
    scale = 0.5 * 4 / 2.0001 / 2.0001
    close(logp.grad, [[-0.8 * scale, 0, -0.4 * scale, 0]], atol=1e-12)


def test_clip_stops_the_gradient_of_ratios_that_went_far_enough():
    old = torch.zeros(2, 2, dtype=torch.float64)
    logp = torch.tensor([[0.5, -0.5], [0.5, -0.5]], dtype=torch.float64, requires_grad=True)
    mask = torch.ones(2, 2, dtype=torch.bool)
    loss, stats = mdpo_loss(logp, old, None, torch.tensor([1.0, -1.0]), mask)
    loss.backward()
    # Positive advantage: growth beyond 1.2 is cut; negative: shrinking below 0.8 is cut.
    assert (logp.grad != 0).tolist() == [[False, True], [True, False]]
    assert stats.clipped == 0.5
    lam = 2 / 2.0001
    terms = [-1.2, -(torch.e**-0.5), torch.e**0.5, 0.8]
    close(loss.detach(), sum(terms) * lam / 4.0001)


def test_lambda_leaves_the_kl_term_alone_and_uses_the_whole_length():
    logp = torch.zeros(1, 2, dtype=torch.float64)
    mask = torch.tensor([[True, False]])
    loss, _ = mdpo_loss(logp, None, logp + 0.3, torch.tensor([1.0]), mask, beta=2.0, length=10)
    close(loss, (-10 / 1.0001 + 2 * 0.045) / 1.0001)


def test_groups_of_one_batch_are_averaged():
    torch.manual_seed(0)
    logp, ref = torch.randn(2, 3, 4), torch.randn(2, 3, 4)
    advantages, mask = torch.randn(2, 3), torch.rand(2, 3, 4) > 0.4
    both, _ = mdpo_loss(logp, None, ref, advantages, mask)
    each = [mdpo_loss(logp[i], None, ref[i], advantages[i], mask[i])[0] for i in range(2)]
    torch.testing.assert_close(both, sum(each) / 2)


P, Q = ([0.6, 0.3, 0.1], [0.5, 0.3, 0.2])


@pytest.mark.parametrize("kind", ["k1", "k3"])
def test_k1_and_k3_have_the_mean_of_the_divergence(kind):
    p, q = torch.tensor(P, dtype=torch.float64), torch.tensor(Q, dtype=torch.float64)
    torch.testing.assert_close((p * kl_estimate(p.log(), q.log(), kind)).sum(), (p * (p / q).log()).sum())
    assert kl_estimate(p.log(), p.log(), kind).abs().max() == 0


def test_k2_has_the_gradient_of_the_divergence():
    theta = torch.tensor(P, dtype=torch.float64).log().requires_grad_()
    log_q = torch.tensor(Q, dtype=torch.float64).log()
    logp = theta.log_softmax(0)
    (estimated,) = torch.autograd.grad((logp.exp().detach() * kl_estimate(logp, log_q, "k2")).sum(), theta)
    logp = theta.log_softmax(0)
    (exact,) = torch.autograd.grad((logp.exp() * (logp - log_q)).sum(), theta)
    torch.testing.assert_close(estimated, exact)


def test_kl_of_another_name_and_shapes_that_do_not_fit_are_refused():
    with pytest.raises(InputError, match="k4"):
        kl_estimate(torch.zeros(1), torch.zeros(1), "k4")
    with pytest.raises(InputError, match=r"\[..., G, L\]"):
        mdpo_loss(torch.zeros(2, 3), None, None, torch.zeros(3), torch.ones(2, 3, dtype=torch.bool))


def test_log_probs_are_tempered_and_in_float32():
    logits = torch.randn(2, 3, 5)
    targets = torch.randint(5, (2, 3))
    expected = (logits / 0.4).log_softmax(-1).gather(-1, targets[..., None])[..., 0]
    torch.testing.assert_close(token_log_probs(logits, targets, 0.4), expected)
    assert token_log_probs(logits.bfloat16(), targets, 0.4).dtype == torch.float32
    with pytest.raises(InputError, match="temperature"):
        token_log_probs(logits, targets, 0.0)


def test_diffu_grpo_loss_is_the_clipped_mean_with_k3():
    logp = torch.tensor([[-1.0, -2.0], [-0.5, -1.5]], dtype=torch.float64)
    ref = logp + 0.2
    loss, stats = diffu_grpo_loss(logp, None, ref, torch.tensor([1.0, -1.0]), beta=0.1)
    k3 = torch.e**0.2 - 1 - 0.2
    close(loss, 0.1 * k3)
    assert stats.kl == pytest.approx(k3)


def test_supervised_loss_divides_by_masking_probability_and_length():
    logp = torch.tensor([[-1.0, -2.0], [-3.0, -4.0]])
    mask = torch.tensor([[True, False], [True, True]])
    loss = sft_loss(logp, mask, torch.tensor([0.5, 0.25]), torch.tensor([2, 2]))
    close(loss, (1 / (0.5 * 2) + 7 / (0.25 * 2)) / 2)


def test_masked_positions_come_first_and_are_told_apart():
    mask = torch.tensor([[False, True, False, True], [False, False, True, False]])
    positions, real = masked_positions(mask)
    assert positions[0].tolist() == [1, 3]
    assert positions[1, 0] == 2
    assert real.tolist() == [[True, True], [True, False]]
