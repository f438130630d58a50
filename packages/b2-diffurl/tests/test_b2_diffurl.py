"""Stages, normalised rewards, chosen branches, trees of rollouts and a stage against numbers computed by hand."""

import pytest
import torch
from noiseworks.b2_diffurl import (
    B2DiffuRL,
    Branching,
    HistoryNormalizer,
    Stages,
    Training,
    explained_share,
    select_branches,
)
from noiseworks.core.errors import InputError
from noiseworks.kits.diffusers_hosts import tiny_pipeline
from noiseworks.kits.image_tuning import DDPO, DDPOSettings, Policy, Rollout, clipped_surrogate

PROMPTS = ["a red circle", "a blue square"]


def test_the_published_schedule():
    found = [Stages().split(stage, 100) for stage in range(100)]
    starts = [stage for stage in range(100) if stage == 0 or found[stage] != found[stage - 1]]
    assert starts == [0, 15, 29, 43, 58, 72, 86]
    assert sorted(set(found)) == list(range(14, 21))
    assert Stages().interval(0, 100, 20) == range(6, 20)
    assert Stages(direction="forward").interval(0, 100, 20) == range(14)
    assert Stages(direction="none").interval(0, 100, 20) == range(20)
    # Calls of a group of five: 76 at 14 trained steps, 100 at 20, 87.9 on average.
    calls = [20 - s + 5 * s for s in found]
    assert (calls[0], calls[-1]) == (76, 100)
    assert sum(calls) / 100 == pytest.approx(87.9, abs=0.1)
    with pytest.raises(InputError, match="left"):
        Stages(21, 20)
    with pytest.raises(InputError, match="right"):
        Stages().fits(19)


REWARDS = torch.tensor([0.20, 0.30, 0.25, 0.40, 0.10, 0.22, 0.24, 0.26, 0.28, 0.30], dtype=torch.float64)
Z = [-0.708409, 0.579607, -0.064401, 1.867624, -1.996425, -0.450806, -0.193202, 0.064401, 0.322004, 0.579607]


def test_rewards_are_normalised_and_branches_chosen():
    z = HistoryNormalizer().update(["a "] * 5 + [" a"] * 5, REWARDS)
    assert z.tolist() == pytest.approx(Z, abs=1e-6)
    rows, advantages = select_branches(z.view(2, 5))
    assert rows.tolist() == [3, 9, 4]
    assert advantages.tolist() == pytest.approx([1.867624, 0.579607, -1.996425], abs=1e-6)
    at = torch.tensor([[0.5, -0.5, 0.0]])
    assert select_branches(at)[0].tolist() == [0]  # a good one at its threshold, no bad one at its own
    assert select_branches(at, 0.6, -0.4)[0].tolist() == [1]
    with pytest.raises(InputError, match="two branches"):
        select_branches(torch.zeros(3, 1))


def test_history_counts_stages_and_forgets():
    normalizer = HistoryNormalizer(2)
    for first in (100.0, 1.0, 2.0):
        normalizer.update(["a"], torch.tensor([first]))
    stage = torch.tensor([3.0, 4.0], dtype=torch.float64)
    expected = (stage - 2.5) / torch.tensor([1.0, 2.0, 3.0, 4.0]).double().std()
    torch.testing.assert_close(normalizer.update(["a", "a"], stage), expected)
    again = HistoryNormalizer(2)
    again.load_state_dict(normalizer.state_dict())
    for value in (3.0, 5.0, 8.0):  # the window stays as long as it was
        other = torch.tensor([value, 1.0])
        assert torch.equal(again.update(["a", "a"], other), normalizer.update(["a", "a"], other))
    assert HistoryNormalizer().update(["a", "b", "a"], torch.tensor([1.0, 2.0, 1.0])).tolist() == [0, 0, 0]
    with pytest.raises(InputError, match="one prompt"):
        normalizer.update(["a"], torch.zeros(2))


def test_the_loss_of_a_step():
    for advantage, ratio, loss in (
        (1.2, 0.05, -1.2615253),
        (1.2, 0.2, -1.32),
        (-1.2, 0.2, 1.4656833),
        (-1.2, -0.2, 1.08),
    ):
        found = clipped_surrogate(torch.tensor([ratio]), torch.zeros(1), torch.tensor([advantage]), 0.1, None)
        assert float(found) == pytest.approx(loss, abs=1e-6)


def test_explained_share():
    assert explained_share(torch.tensor([[0.0, 0.0], [1.0, 1.0]])) == 1
    assert explained_share(torch.tensor([[0.0, 1.0], [1.0, 0.0]])) == 0


def test_branches_share_what_comes_before_they_part():
    policy = Policy(tiny_pipeline("sd"), PROMPTS, Rollout(4, 2.0, rollout_batch=4))
    drawn = policy.branch_out(torch.tensor([0, 1, 0]), [5, 6, 7], range(10, 16), 2, 2)
    first, second = drawn.latents[::2], drawn.latents[1::2]
    assert torch.equal(first[:, :3], second[:, :3])
    assert not torch.isclose(first[:, 3], second[:, 3]).flatten(1).all(1).any()
    assert torch.equal(drawn.log_probs[::2, :2], drawn.log_probs[1::2, :2])
    assert not (drawn.log_probs[::2, 2:] == drawn.log_probs[1::2, 2:]).any()
    assert drawn.prompt_ids.tolist() == [0, 0, 1, 1, 0, 0]
    assert not torch.equal(drawn.latents[0, 0], drawn.latents[4, 0])
    assert policy.calls == 2 * 3 * (2 + 2 * 2)  # guidance, groups, (T - s) + K s
    # Scored again they have the log-probabilities with which they were drawn.
    torch.testing.assert_close(policy.log_probs(drawn), drawn.log_probs, rtol=1e-5, atol=1e-5)
    # A tree that parts at once is a set of rollouts from the same noise.
    apart = policy.branch_out(torch.tensor([0]), [5], [10, 11], 2, 0)
    whole = policy.roll_out(torch.tensor([0, 0]), [5, 5], [10, 11])
    assert torch.equal(apart.latents, whole.latents)


def trainer_of(judge, branching=Branching(branches=3), **changes):
    settings = {
        "max_steps": 2,
        "batch_size": 2,
        "learning_rate": 1e-9,
        "device": "cpu",
        "inner_epochs": 1,
    } | changes
    start = (tiny_pipeline("sd"), PROMPTS, judge, Training(**settings), Rollout(3, 2.0))
    return B2DiffuRL(*start, Stages(1, 3), branching)


def test_a_stage_trains_the_last_steps_of_what_was_chosen():
    trainer = trainer_of(lambda images, prompts: images.flatten(1).mean(1))
    seen = []
    log_prob = trainer.log_prob
    trainer.log_prob = lambda drawn, rows, places: (
        seen.append((drawn, rows, places)) or log_prob(drawn, rows, places)
    )
    figures = trainer.round(0)
    drawn = seen[0][0]
    z = HistoryNormalizer().update(drawn.texts, drawn.rewards[:, 0])
    rows, advantages = select_branches(z.view(2, 3))
    assert {int(p) for _, _, places in seen for p in places} == {2}
    assert sorted(int(r) for _, some, _ in seen for r in some) == sorted(rows.tolist())
    assert figures["loss"] == pytest.approx(-float(advantages.mean()), abs=1e-4)  # the first ratios are 1
    assert figures["selected"] == pytest.approx(len(rows) / 6)
    assert (figures["trained_steps"], figures["queries"]) == (1, 6)


def test_without_both_parts_all_steps_of_whole_rollouts_are_trained():
    """Neither stages nor branches: DDPO's own rollouts, of which the best and the worst teach."""
    kept = {}
    start = (tiny_pipeline("sd"), PROMPTS, lambda images, prompts: images.flatten(1).mean(1))
    options = Training(max_steps=1, batch_size=2, learning_rate=1e-9, device="cpu", inner_epochs=1)
    both = Branching(branches=5, branching=False)
    trainer = B2DiffuRL(*start, options, Rollout(3, 2.0), Stages(1, 3, "none"), both)
    ddpo = DDPO(tiny_pipeline("sd"), *start[1:], options, Rollout(3, 2.0), DDPOSettings(copies=5))
    draw, learn = trainer.draw, trainer.optimise
    trainer.draw = lambda prompts, places: kept.setdefault("drawn", draw(prompts, places))
    trainer.optimise = lambda losses, *rest: kept.update(losses=losses, rest=rest) or learn(losses, *rest)
    trainer.round(0)
    drawn, (rows, places) = kept["drawn"], kept["rest"]
    expected = ddpo.roll_out(ddpo.draw_prompts(2).repeat_interleave(5))
    assert torch.equal(drawn.latents, expected.latents)
    assert torch.equal(drawn.rewards, expected.rewards)
    assert places.tolist() == [0, 1, 2]
    rewards = drawn.rewards.view(2, 5)
    ends = {
        5 * group + int(end) for group in (0, 1) for end in (rewards[group].argmax(), rewards[group].argmin())
    }
    assert set(rows.tolist()) == ends


def test_an_update_makes_good_branches_likelier():
    trainer = trainer_of(lambda images, prompts: images.flatten(1).mean(1))
    trainer.optimizer = torch.optim.SGD(trainer.trainable.values(), lr=1e-3)
    kept = {}
    learn = trainer.optimise
    trainer.optimise = lambda losses, rows, places: kept.update(rows=rows) or learn(losses, rows, places)
    draw = trainer.draw
    trainer.draw = lambda prompts, places: kept.setdefault("drawn", draw(prompts, places))
    trainer.round(0)
    drawn, rows = kept["drawn"], kept["rows"]
    gain = (trainer.policy.log_probs(drawn) - drawn.log_probs)[rows, 2]
    advantages = HistoryNormalizer().update(drawn.texts, drawn.rewards[:, 0])[rows]
    assert float((gain * advantages).sum()) > 0


def test_equal_rewards_choose_no_branch_and_change_nothing():
    trainer = trainer_of(lambda images, prompts: torch.ones(len(images)), learning_rate=1e-2)
    before = [p.detach().clone() for p in trainer.trainable.values()]
    with pytest.warns(UserWarning, match="no branch"):
        figures = trainer.round(0)
    assert figures["selected"] == 0
    assert all(torch.equal(a, b) for a, b in zip(before, trainer.trainable.values(), strict=True))


def test_weights_and_the_advantage_clip():
    trainer = trainer_of(None, Branching(positive_weight=2, negative_weight=0.5))
    assert trainer.weighted(torch.tensor([6.0, 1.0, -2.0])).tolist() == [10, 2, -1]


def test_branches_lower_the_variance_of_a_steps_gradient():
    """A chain of two steps that add noise; the reward is their sum, the gradient that of the second step's mean."""
    g = torch.Generator().manual_seed(0)
    first = 3 * torch.randn(4000, 1, generator=g)
    apart = 3 * torch.randn(4000, 4, generator=g)
    second = torch.randn(4000, 4, generator=g)

    def gradients(rewards):
        return ((rewards - rewards.mean(1, keepdim=True)) * second).sum(1) / 3

    branched, independent = gradients(first + second), gradients(apart + second)
    assert float(branched.mean()) == pytest.approx(1, abs=0.05)
    assert float(independent.mean()) == pytest.approx(1, abs=0.15)
    assert float(branched.var() / independent.var()) < 0.3
