"""Similarity, policies and substitutes against closed forms and the paper's counts."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from noiseworks.core.errors import ArtifactError, InputError
from noiseworks.linear_ag import AdaptiveGuidance, FixedPolicy, IntervalGuidance
from noiseworks.linear_ag.artifacts import load_policy, save_policy
from noiseworks.linear_ag.guidance import Action, GuidanceState, cosine, fill, in_space, required, strengthen
from noiseworks.linear_ag.policies import ReuseGuidance, alternating
from noiseworks.linear_ag.thresholds import nfe_of_traces, threshold_for_nfe

T = 20


def run_policy(policy, gamma):
    """Feed recorded similarities `[T, B]` to a policy; returns actions `[T, B]` and evaluations `[B]`."""
    state = GuidanceState.empty(gamma.shape[0], gamma.shape[1])
    for step in range(gamma.shape[0]):
        actions = policy.decide(step, state)
        state.actions[step] = actions
        state.gamma[step, :, 0] = torch.where(actions == Action.CFG, gamma[step], math.nan)
        state.nfe += required(actions, 2).sum(dim=0)
    return state.actions, state.nfe


def rising(batch=1, steps=T):
    return torch.linspace(0.3, 0.999, steps, dtype=torch.float64)[:, None].expand(steps, batch).clone()


def test_threshold_above_one_guides_throughout_and_minus_one_only_once():
    assert run_policy(AdaptiveGuidance(threshold=1.1), rising())[1].tolist() == [2 * T]
    assert run_policy(AdaptiveGuidance(threshold=-1.0), rising())[1].tolist() == [T + 1]


@pytest.mark.parametrize("k", [0, 3, 11, 19])
def test_a_sample_that_converges_at_step_k_costs_what_the_paper_says(k):
    gamma = torch.full((T, 1), 0.5, dtype=torch.float64)
    gamma[k:] = 0.999
    actions, nfe = run_policy(AdaptiveGuidance(threshold=0.99), gamma)
    assert nfe.tolist() == [2 * (k + 1) + (T - k - 1)]
    assert actions[k].item() == Action.CFG  # the step that triggers keeps its guidance


@pytest.mark.parametrize(
    ("digits", "nfe"), [("2" * 10 + "1" * 10, 30), ("2" * 12 + "1" * 8, 32), ("1" * 20, 20)]
)
def test_fixed_policies_cost_their_digits(digits, nfe):
    policy = FixedPolicy(actions=digits)
    assert policy.nfe == nfe
    assert run_policy(policy, rising())[1].tolist() == [nfe]


def test_noise_space_waits_a_quarter_of_the_steps():
    gamma = torch.full((T, 1), 0.9999, dtype=torch.float64)
    assert run_policy(AdaptiveGuidance(threshold=0.99, space="eps"), gamma)[1].tolist() == [T + 6]
    assert run_policy(AdaptiveGuidance(threshold=0.99, space="eps", min_step=0), gamma)[1].tolist() == [T + 1]
    armed = AdaptiveGuidance(threshold=0.99, space="eps", armed=True)
    assert run_policy(armed, gamma)[1].tolist() == [2 * T]
    gamma[3] = 0.9
    assert run_policy(armed, gamma)[1].tolist() == [2 * 5 + (T - 5)]


def test_batch_decision_waits_for_the_last_sample():
    gamma = rising(2)
    gamma[:, 1] = 0.5
    apart = run_policy(AdaptiveGuidance(threshold=0.9), gamma)[1]
    together = run_policy(AdaptiveGuidance(threshold=0.9, per_sample=False), gamma)[1]
    assert apart[0] < apart[1] == 2 * T
    assert together.tolist() == [2 * T] * 2
    gamma[:, 1] = gamma[:, 0]
    assert run_policy(AdaptiveGuidance(threshold=0.9, per_sample=False), gamma)[1].tolist() == [apart[0]] * 2


def test_without_stickiness_every_other_step_is_measured_again():
    gamma = torch.full((6, 1), 0.999, dtype=torch.float64)
    actions, _ = run_policy(AdaptiveGuidance(threshold=0.99, sticky=False), gamma)
    assert "".join(str(a) for a in actions[:, 0].tolist()) == "212121"


@pytest.mark.parametrize("decay", [0.0, 0.5])
def test_keeping_the_difference_costs_nothing_and_marks_its_steps(decay):
    gamma = torch.full((6, 2), 0.5, dtype=torch.float64)
    gamma[2:, 0] = 0.999
    actions, nfe = run_policy(AdaptiveGuidance(threshold=0.99, decay=decay), gamma)
    kept = Action.REUSE if decay else Action.COND
    assert actions[:, 0].tolist() == [Action.CFG] * 3 + [kept] * 3
    assert nfe.tolist() == [2 * 3 + 3, 2 * 6]


def test_steps_since_a_sample_was_guided_are_counted_for_each_row():
    state = GuidanceState.empty(5, 2)
    assert state.since_guided(0).tolist() == [1, 1]
    state.actions[:4] = torch.tensor([[2, 2], [2, 1], [4, 2], [4, 4]])
    assert state.since_guided(4).tolist() == [3, 2]


def test_delayed_start_interval_and_reuse():
    gamma = rising(1, 10)
    texts = [
        "".join(str(a) for a in run_policy(policy, gamma)[0][:, 0].tolist())
        for policy in (
            AdaptiveGuidance(threshold=1.1, start=0.2),
            IntervalGuidance(start=0.3, stop=0.6),
            IntervalGuidance(stop=0.5),
            ReuseGuidance(every=3),
            ReuseGuidance(every=3, warm=0.2),
            alternating(10),
        )
    ]
    assert texts == ["1122222222", "1112221111", "2222211111", "2442442442", "2224424424", "2121212121"]


def test_offline_rule_takes_the_last_uninterrupted_run_and_the_slowest_prompt():
    gamma = torch.tensor([[0.99, 0.5], [0.5, 0.5], [0.99, 0.5], [0.99, 0.99]])
    assert FixedPolicy.from_traces(gamma, 0.9).actions == "2221"
    assert FixedPolicy.from_traces(gamma[:, :1], 0.9).actions == "2211"
    assert FixedPolicy.from_traces(gamma, 0.999).actions == "2222"


def test_chain_of_three_shrinks_pair_by_pair():
    state = GuidanceState.empty(4, 3, pairs=2)
    state.gamma[0] = torch.tensor([[0.5, 0.5], [0.99, 0.5], [0.99, 0.99]])
    policy = AdaptiveGuidance(threshold=0.9)
    assert policy.decide(0, state).tolist() == [Action.CFG] * 3
    assert policy.decide(1, state).tolist() == [Action.CFG, Action.PAIR, Action.COND]
    assert required(policy.decide(1, state), 3).sum(dim=0).tolist() == [3, 2, 1]
    assert int(required(torch.full((T,), Action.CFG), 3).sum()) == 3 * T


@settings(max_examples=30, deadline=None)
@given(st.floats(1.1, 30.0), st.integers(0, 10_000))
def test_equal_predictions_make_the_hosts_formula_return_the_conditional_one(scale, seed):
    predictions = torch.randn(2, 3, 4, 5, generator=torch.Generator().manual_seed(seed))
    cond, uncond = fill(predictions, torch.tensor([1, 1, 1]), None, None)
    assert torch.equal(uncond + scale * (cond - uncond), predictions[0])


def test_substitutes_are_per_sample():
    predictions = torch.arange(2 * 5 * 1, dtype=torch.float64).reshape(2, 5, 1)
    difference = torch.stack([torch.zeros(5, 1), torch.full((5, 1), 0.25)]).double()
    estimate = torch.full((5, 1), 7.0, dtype=torch.float64)
    cond, uncond = fill(predictions, torch.tensor([0, 1, 2, 3, 4]), estimate, difference)
    assert cond.flatten().tolist() == [5, 1, 2, 3, 4]
    assert uncond.flatten().tolist() == [5, 1, 7, 7, 3.75]


def test_strength_is_another_scale():
    cond, uncond = torch.randn(2, 3, 4, dtype=torch.float64)
    c, u = strengthen(torch.stack([cond, uncond]), (3.0 - 1) / (7.5 - 1))
    torch.testing.assert_close(u + 7.5 * (c - u), uncond + 3.0 * (cond - uncond), rtol=0, atol=1e-12)


def test_cosine_in_half_precision_keeps_one_minus_gamma():
    a = torch.randn(2, 65_536, generator=torch.Generator().manual_seed(0)).half()
    b = (a.float() + 0.03 * torch.randn(2, 65_536, generator=torch.Generator().manual_seed(1))).half()
    expected = torch.nn.functional.cosine_similarity(a.double(), b.double())
    torch.testing.assert_close(cosine(a, b).double(), expected, rtol=0, atol=1e-6)
    assert cosine(torch.zeros(1, 4), torch.ones(1, 4)).item() == 1.0


def test_gaussian_data_have_the_similarity_of_their_closed_form():
    """x_0 | c ~ N(mu_c, v I): E[x_0 | x] = mu + (alpha v / S)(x - alpha mu), S = alpha^2 v + sigma^2.

    With means m and -m and x = 0, the denoised samples are +-(sigma^2 / S) m so gamma in x_0 space is -1;
    for any x the predicted noise differs by an amount that does not depend on x.
    """
    alpha, sigma, v = 0.6, 0.8, 0.5
    mean = torch.tensor([[1.0, -2.0, 0.5]], dtype=torch.float64)
    S = alpha**2 * v + sigma**2

    def eps(x, mu):
        return sigma * (x - alpha * mu) / S

    level = (alpha, sigma, "epsilon")
    zero = torch.zeros_like(mean)
    vectors = [in_space(eps(zero, mu), zero, "x0", level) for mu in (mean, -mean)]
    torch.testing.assert_close(vectors[0] / alpha, sigma**2 / S * mean)
    assert cosine(*vectors).item() == pytest.approx(-1.0)
    for scale in (0.0, 1.0, 5.0):
        x = scale * torch.tensor([[0.3, 0.1, -0.7]], dtype=torch.float64)
        torch.testing.assert_close(eps(x, mean) - eps(x, -mean), -2 * sigma * alpha / S * mean)
    x = torch.tensor([[30.0, 20.0, -70.0]], dtype=torch.float64)
    far = [in_space(eps(x, mu), x, "x0", level) for mu in (mean, -mean)]
    assert cosine(*far).item() > 0.99


@pytest.mark.parametrize("space", ["x0", "eps"])
def test_spaces_agree_over_prediction_types(space):
    """The same state given as noise, velocity or denoised sample has the same similarity."""
    alpha, sigma = 0.6, 0.8
    x0 = torch.randn(2, 4, 16, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    x = torch.randn(4, 16, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    noise = (x - alpha * x0) / sigma
    forms = {"epsilon": noise, "sample": x0, "v_prediction": alpha * noise - sigma * x0}
    found = [
        cosine(*(in_space(p, x, space, (alpha, sigma, kind)) for p in form)) for kind, form in forms.items()
    ]
    torch.testing.assert_close(found[1], found[0])
    torch.testing.assert_close(found[2], found[0])
    flow_alpha = 1.0 - sigma
    flow_noise = (x - flow_alpha * x0) / sigma
    flow = [
        in_space(n - d, x, "x0", (flow_alpha, sigma, "flow_prediction"))
        for n, d in zip(flow_noise, x0, strict=True)
    ]
    torch.testing.assert_close(torch.stack(flow), x0)


def test_trace_costs_are_exact_and_thresholds_meet_a_budget():
    generator = torch.Generator().manual_seed(0)
    gamma = (rising(40) - 0.05 * torch.rand(T, 40, generator=generator, dtype=torch.float64)).clamp(max=1)
    for threshold in (0.5, 0.8, 0.95):
        policy = AdaptiveGuidance(threshold=threshold)
        assert torch.equal(nfe_of_traces(gamma, policy), run_policy(policy, gamma)[1])
    for target in (25.0, 30.0, 38.0):
        found = threshold_for_nfe(gamma, target, AdaptiveGuidance())
        mean = nfe_of_traces(gamma, AdaptiveGuidance(threshold=found)).double().mean()
        assert float(mean) == pytest.approx(target, abs=0.1)
    with pytest.raises(InputError, match="target_nfe"):
        threshold_for_nfe(gamma, 20.0, AdaptiveGuidance())


@pytest.mark.parametrize(
    "make",
    [
        lambda: AdaptiveGuidance(threshold=math.nan),
        lambda: AdaptiveGuidance(threshold=-1.5),
        lambda: AdaptiveGuidance(space="pixels"),
        lambda: AdaptiveGuidance(min_step=-1),
        lambda: AdaptiveGuidance(start=1.5),
        lambda: FixedPolicy(actions=""),
        lambda: FixedPolicy(actions="22x"),
        lambda: FixedPolicy(actions="422"),
        lambda: FixedPolicy(actions="22", strengths=(1.0,)),
        lambda: IntervalGuidance(start=0.5, stop=0.4),
        lambda: ReuseGuidance(every=0),
    ],
)
def test_bad_policies_are_refused(make):
    with pytest.raises(InputError):
        make()


@pytest.mark.parametrize(
    "policy",
    [
        AdaptiveGuidance(threshold=0.97, space="x0", min_step=2),
        FixedPolicy(actions="2211", strengths=(1.0, 2.0, 1.0, 1.0)),
        IntervalGuidance(stop=0.5),
        ReuseGuidance(every=3),
    ],
)
def test_policies_survive_saving(policy, tmp_path):
    save_policy(tmp_path / "policy", policy, torch.rand(4, 2))
    assert load_policy(tmp_path / "policy") == policy


def test_corrupt_policy_files_are_refused(tmp_path):
    with pytest.raises(ArtifactError):
        load_policy(tmp_path / "none")
    save_policy(tmp_path / "policy", ReuseGuidance())
    config = tmp_path / "policy" / "config.json"
    config.write_text(config.read_text().replace("ReuseGuidance", "Unknown"))
    with pytest.raises(ArtifactError, match="corrupt"):
        load_policy(tmp_path / "policy")
