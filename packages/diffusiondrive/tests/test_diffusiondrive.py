"""Each equation against numbers of the authors' code or closed forms, and what must not depend on what."""

from dataclasses import replace
from itertools import permutations

import numpy as np
import pytest
import torch
from noiseworks.core.errors import ArtifactError, InputError
from noiseworks.diffusiondrive import (
    Architecture,
    Denoising,
    Fitting,
    Normalizer,
    Plans,
    diversity,
    fit_anchors,
)
from noiseworks.diffusiondrive.baselines import with_headings
from noiseworks.diffusiondrive.data import read_anchors
from noiseworks.diffusiondrive.decoder import DecoderLayer, Scene, embed_points
from noiseworks.diffusiondrive.evaluation import any_route
from noiseworks.diffusiondrive.losses import agent_loss, focal_loss, plan_loss, positive_mode
from noiseworks.diffusiondrive.planner import Planner, joint_loss
from noiseworks.diffusiondrive.training import fit_planners
from noiseworks.diffusiondrive.truncation import (
    alphas_cumprod,
    check_anchors,
    ddim,
    levels_of,
    next_level,
    start_of,
)
from noiseworks.kits.driving import score_plans


def planner(design="diffusiondrive", draws=1):
    times = 0.5 * torch.arange(1, 9)
    anchors = torch.stack([torch.stack((5 * times, side * times), -1) for side in (-1.0, 0.0, 1.0)])
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        architecture = Architecture(design=design, width=16, modes=3, draws=draws)
        return Planner(architecture, anchors, Normalizer.navsim()).eval().requires_grad_(False)


@pytest.fixture
def scene():
    generator = torch.Generator().manual_seed(1)
    parts = (torch.randn(2, 16, *size, generator=generator) for size in ((8, 8), (5,), (1,)))
    view, agents, ego = parts
    return Scene(view, agents.mT, ego.mT)


def randomised(module):
    """Give every parameter another value, so that nothing is hidden by an initial zero."""
    generator = torch.Generator().manual_seed(2)
    for parameter in module.parameters():
        parameter.data = parameter + 0.3 * torch.randn(parameter.shape, generator=generator)
    return module


# --- Truncation ---


@pytest.mark.parametrize(("level", "sigma"), [(8, 0.0315886), (10, 0.0353650), (49, 0.0942538)])
def test_noise_of_the_truncated_levels(level, sigma):
    assert float((1 - alphas_cumprod()[level]).sqrt()) == pytest.approx(
        sigma, abs=1e-6
    )  # the release computes in float32


def test_the_schedule_ends_where_diffusers_does():
    bars = alphas_cumprod()
    assert float(bars[0]) == pytest.approx(0.9999)
    assert float(bars[999]) == pytest.approx(7.3341e-4, rel=1e-4)


def test_steps_between_levels():
    half, fifth, two = (torch.tensor(value, dtype=torch.float64) for value in (0.5, 0.2, 2.0))
    assert float(ddim(half, fifth, 10, 9)) == pytest.approx(0.4843, abs=5e-5)
    assert float(ddim(half, fifth, 10, 0)) == pytest.approx(0.28486, abs=5e-6)
    assert float(ddim(half, fifth, 0, -1)) == pytest.approx(0.2)
    assert float(ddim(half, two, 0, -1)) == 1.0
    # The noise is that of the prediction before it is clipped, as in the scheduler that the release uses.
    now, then = alphas_cumprod()[[10, 9]]
    noise = (half - now.sqrt() * two) / (1 - now).sqrt()
    assert float(ddim(half, two, 10, 9)) == pytest.approx(float(then.sqrt() + (1 - then).sqrt() * noise))


def test_levels_and_starts_of_both_ways():
    assert levels_of(2) == [10, 0]
    assert levels_of(1) == [0]
    assert levels_of(4) == [15, 10, 5, 0]
    assert [next_level([10, 0], index, "reference") for index in (0, 1)] == [9, -1]
    assert [next_level([10, 0], index, "consistent") for index in (0, 1)] == [0, -1]
    assert start_of(Denoising()) == 8
    assert start_of(Denoising(stepping="consistent", steps=4)) == 15
    assert start_of(Denoising(start=3)) == 3


def test_the_normaliser_of_the_release_and_one_of_data():
    navsim = Normalizer.navsim()
    assert navsim.normalize(torch.zeros(2, dtype=torch.float64)).tolist() == pytest.approx(
        [-0.9578207, -0.1304348]
    )
    plans = np.random.default_rng(0).normal(size=(50, 8, 3)) * 9
    own = Normalizer.fit(plans)
    points = torch.as_tensor(plans[..., :2])
    assert float(own.normalize(points).abs().max()) == pytest.approx(1 / 1.04)
    assert torch.allclose(own.denormalize(own.normalize(points)), points)


def test_anchors_are_the_means_of_clusters_sorted_by_angle():
    rng = np.random.default_rng(0)
    ends = np.array([(10.0, -5.0), (10.0, 5.0), (12.0, 0.0)])
    ways = ends[:, None] * (np.arange(1, 9) / 8)[:, None]
    plans = np.concatenate([way + 0.01 * rng.normal(size=(20, 8, 2)) for way in ways])
    anchors = fit_anchors(plans, 3)
    assert anchors[:, -1].numpy() == pytest.approx(ends[[0, 2, 1]], abs=0.02)
    with pytest.raises(InputError, match="different plans"):
        fit_anchors(np.repeat(plans[:1], 5, axis=0), 3)
    for bad, words in ((anchors[:, :6], "8, 2"), (anchors * np.nan, "NaN"), (anchors * 99, "range")):
        with pytest.raises(InputError, match=words):
            check_anchors(bad, Normalizer.navsim(), 8)


def test_anchors_of_the_users(tmp_path):
    np.save(tmp_path / "mine.npy", np.ones((4, 8, 2)) * np.arange(8)[:, None])
    assert read_anchors(tmp_path / "mine.npy").shape == (4, 8, 2)
    np.save(tmp_path / "short.npy", np.ones((4, 6, 2)))
    (tmp_path / "text.npy").write_text("no numbers")
    for name, words in (
        ("short", r"\[N, 8, 2\] for this model, got \[4, 6, 2\]"),
        ("text", "holds no anchors"),
    ):
        with pytest.raises(InputError, match=words):
            read_anchors(tmp_path / f"{name}.npy")


# --- The decoder ---


def test_embedded_points():
    found = embed_points(torch.tensor([[1.25, -0.5]], dtype=torch.float64))
    assert found[:4].tolist() == pytest.approx([0, -1, -0.98088, -0.19460], abs=1e-5)
    assert found[32:36].tolist() == pytest.approx([1, 0, -0.95658, -0.29148], abs=1e-5)
    whole = embed_points(torch.tensor([[3.0, 7.0]], dtype=torch.float64))
    assert whole[[0, 32]].tolist() == pytest.approx([0, 0], abs=1e-12)


def test_a_plans_points_weigh_the_same_at_the_beginning():
    layer = DecoderLayer(16, 8, 32.0)
    assert torch.equal(layer.sampled.weights(torch.randn(2, 16)).softmax(-1), torch.full((2, 8), 1 / 8))


def test_the_view_is_sampled_with_x_along_rows(scene):
    layer = DecoderLayer(16, 8, 4.0).eval()
    values = torch.zeros(1, 16, 8, 8)
    values[:, :, 6, 1] = 1.0  # the cell of x in [2, 3], y in [-3, -2]
    points = torch.tensor([2.5, -2.5]).expand(1, 1, 8, 2)
    torch.nn.init.eye_(layer.sampled.out.weight)
    assert torch.allclose(layer.sampled(torch.zeros(1, 1, 16), points, values), torch.ones(1, 1, 16))


def test_a_layer_equals_the_written_out_one(scene):
    """With torch's own attention modules for agents and ego, and the convolution made anew in the step."""
    layer = randomised(DecoderLayer(16, 8, 32.0)).eval()
    queries, points, level = torch.randn(2, 3, 16), 20 * torch.randn(2, 3, 8, 2), torch.randn(2, 16)
    poses, scores = layer(queries, points, layer.hoist(scene), level)
    values = layer.sampled.value(scene.view).relu()
    grid = torch.stack((points[..., 1], points[..., 0]), -1) / 32
    seen = torch.nn.functional.grid_sample(values, grid, align_corners=False).permute(0, 2, 3, 1)
    weights = layer.sampled.weights(queries).softmax(-1)[..., None]
    q = queries + layer.sampled.out((weights * seen).sum(2))
    q = layer.norms[0](q + layer.agents(q, scene.agents, scene.agents)[0])
    q = layer.norms[1](q + layer.ego(q, scene.ego, scene.ego)[0])
    q = layer.norms[2](layer.feed_forward(q))
    scale, shift = layer.modulation(level).chunk(2, -1)
    q = q * (1 + scale[:, None]) + shift[:, None]
    assert torch.allclose(scores, layer.score(q)[..., 0], atol=1e-5)
    assert torch.allclose(poses[..., :2], layer.plan(q).unflatten(-1, (8, 3))[..., :2] + points, atol=1e-4)
    assert poses[..., 2].abs().max() <= torch.pi


def test_modes_do_not_mix(scene):
    head = randomised(planner().head)
    x, order = torch.randn(2, 3, 8, 2), torch.tensor([2, 0])
    poses, scores = head.step(x, head.decoder.hoist(scene), 10)
    some, of_some = head.step(x[:, order], head.decoder.hoist(scene), 10)
    assert torch.allclose(poses[:, order], some, atol=1e-5)
    assert torch.allclose(scores[:, order], of_some, atol=1e-5)


def test_some_modes_may_be_drawn_and_all_are_the_default(scene):
    head = planner().head
    every = head.plan(scene, Denoising(), modes=torch.arange(3))
    assert torch.equal(every.poses, head.plan(scene, Denoising()).poses)
    assert head.plan(scene, Denoising(steps=3), modes=torch.tensor([1])).poses.shape == (2, 1, 8, 3)


def test_with_heads_of_zero_the_plans_are_the_noisy_anchors(scene):
    head = planner().head
    for layer in head.decoder.layers:
        torch.nn.init.zeros_(layer.plan[-1].weight)
        torch.nn.init.zeros_(layer.plan[-1].bias)
    x = head.normalizer.normalize(head.anchors).expand(2, -1, -1, -1)
    poses, _ = head.step(x, head.decoder.hoist(scene), 0)
    assert torch.allclose(poses[..., :2], head.anchors.expand(2, -1, -1, -1), atol=1e-5)
    assert torch.equal(poses[..., 2], torch.zeros(2, 3, 8))
    noisy = head.plan(scene, Denoising(stepping="consistent", steps=1, start=8)).poses[..., :2] - head.anchors
    assert 0.5 < float(noisy[..., 0].std()) < 1.3  # 0.90 m


def test_a_learned_share_of_the_points_is_all_of_them_at_first(scene):
    layer = DecoderLayer(16, 8, 32.0, learned_skip=True).eval()
    torch.nn.init.zeros_(layer.plan[-1].weight)
    torch.nn.init.zeros_(layer.plan[-1].bias)
    queries, points, level = torch.randn(2, 3, 16), torch.randn(2, 3, 8, 2), torch.randn(2, 16)
    poses, _ = layer(queries, points, layer.hoist(scene), level)
    assert torch.equal(poses[..., :2], points)
    torch.nn.init.normal_(layer.skip.weight)
    poses, _ = layer(queries, points, layer.hoist(scene), level)
    share = 1 + level @ layer.skip.weight[0]  # a number for each scene's level
    assert torch.allclose(poses[..., :2], share[:, None, None, None] * points, atol=1e-5)


def test_the_second_layer_does_not_teach_the_first_through_its_points(scene):
    head = planner().head.requires_grad_(True)
    points = head.anchors.expand(2, -1, -1, -1)
    (_, _), (poses, _) = head.decoder(points, head.decoder.hoist(scene), torch.zeros(2, dtype=torch.int64))
    poses.sum().backward()
    first = head.decoder.layers[0]
    assert all(parameter.grad is None for parameter in first.plan.parameters())
    assert head.decoder.layers[1].plan[0].weight.grad.abs().sum() > 0


# --- Losses ---


def test_the_focal_loss_of_equal_scores():
    mode = torch.zeros(1, dtype=torch.int64)
    assert float(focal_loss(torch.zeros(1, 20), mode)) == pytest.approx(0.1256329, abs=1e-7)
    low = torch.full((1, 20), -float(np.log(99)))
    assert float(focal_loss(low, mode)) == pytest.approx(0.0564198, abs=1e-6)


def test_the_positive_mode_is_the_nearest_anchor_by_mean_distance():
    anchors = torch.zeros(3, 8, 2)
    anchors[1, :, 0], anchors[2, -1, 0] = 1.0, 4.0
    target = torch.zeros(2, 8, 3)
    target[0, :, 0], target[1, -1, 0] = 0.9, 3.0
    assert positive_mode(anchors, target).tolist() == [1, 2]


def test_agents_are_matched_at_least_cost():
    boxes = torch.tensor([[[0.0, 0, 0, 4, 2], [9.0, 0, 0, 4, 2], [5.0, 5, 0, 4, 2]]])
    classes = torch.full((1, 3), 20.0)
    classes[0, 2] = -20.0
    target = torch.zeros(1, 2, 6)
    target[0, 0, :], target[0, 1, :] = torch.tensor([9.0, 0, 0, 4, 2, 1]), torch.tensor([0.0, 0, 0, 4, 3, 1])
    assert float(agent_loss(classes, boxes, target)) == pytest.approx(
        0.5, abs=1e-6
    )  # one box is 1 m too narrow


def test_the_agents_of_a_batch_are_matched_by_the_best_of_all_permutations():
    draw = torch.Generator().manual_seed(3)
    classes, boxes = torch.randn(3, 4, generator=draw), 3 * torch.randn(3, 4, 5, generator=draw)
    target = 3 * torch.randn(3, 3, 6, generator=draw)
    target[..., 5] = torch.tensor([[1.0, 0, 1], [0, 0, 0], [1, 1, 1]])
    wanted, far = torch.zeros(3, 4), 0.0
    missed = torch.nn.functional.binary_cross_entropy_with_logits
    for b in range(3):

        def cost(order, b=b):
            each = 0.0
            for k, agent in enumerate(order):
                there = target[b, k, 5]
                apart = (boxes[b, agent, :2] - target[b, k, :2]).abs().sum() * there
                each += float(10 * missed(classes[b, agent], there) + apart)
            return each

        for k, agent in enumerate(min(permutations(range(4), 3), key=cost)):
            if target[b, k, 5]:
                wanted[b, agent] = 1.0
                far += float((boxes[b, agent] - target[b, k, :5]).abs().sum())
    assert float(agent_loss(classes, boxes, target)) == pytest.approx(
        float(10 * missed(classes, wanted)) + far / 5, rel=1e-5
    )
    target[..., 5] = 0.0  # nobody there: no box counts
    assert float(agent_loss(classes, boxes, target)) == pytest.approx(float(10 * missed(classes, 0 * wanted)))


def test_further_draws_are_regressed_and_not_classified(scene):
    anchors, target = planner().head.anchors, torch.randn(2, 8, 3)
    poses, scores = torch.randn(2, 5, 8, 3), torch.randn(2, 5)
    mode = positive_mode(anchors, target)
    chosen = [poses[torch.arange(2), mode], poses[:, 3], poses[:, 4]]
    away = sum((one - target).abs().mean() for one in chosen) / 3
    found = plan_loss(poses, scores, anchors, target)
    assert float(found) == pytest.approx(float(10 * focal_loss(scores[:, :3], mode) + 8 * away))
    # Their plans are noisy ones of the right anchor, at the scene's level.
    head, seen = planner(draws=3).head, []
    head.decoder.register_forward_hook(lambda module, given, made: seen.append(given[0]))
    head.loss(scene, torch.cat((anchors[:2], torch.zeros(2, 8, 1)), -1))
    apart = (seen[0][:, 3:] - anchors[:2, None]).abs()
    assert seen[0].shape == (2, 5, 8, 2)
    assert 0 < float(apart.mean()) < 4
    assert not torch.equal(apart[:, 0], apart[:, 1])


# --- Measures ---


def test_diversity_of_equal_and_of_separate_plans():
    times = np.arange(1, 9)
    ahead = np.stack((3.0 * times, 0.0 * times), axis=-1)
    assert diversity(np.stack([ahead] * 3)) == pytest.approx(0.0)
    turned = np.stack((-ahead[:, 0], ahead[:, 1]), axis=-1)
    assert 0.45 < diversity(np.stack([ahead, turned])) < 0.5  # they share the ground around the origin


def test_any_admissible_route_is_as_good_as_the_experts():
    from noiseworks.bench.testbeds.drive import label

    labelled = label(5, 24)
    other = replace(
        labelled, scenes=replace(labelled.scenes, chosen=labelled.scenes.admissible.argmax(axis=1))
    )
    along = any_route(labelled.plans, labelled)
    assert (along >= labelled.scores - 1e-9).all()
    assert any_route(labelled.plans, other) == pytest.approx(along)  # whichever one the expert took
    turned = score_plans(labelled.plans[:, None], other.scenes, other.reference).score[:, 0]
    assert turned.mean() < along.mean() - 0.01


def test_a_standing_plan_keeps_its_heading():
    points = torch.tensor([[1.0, 1.0], [1.01, 1.0], [1.01, 3.0]])
    assert with_headings(points)[:, 2].tolist() == pytest.approx([np.pi / 4, np.pi / 4, np.pi / 2])


def test_the_best_plan_is_the_one_of_highest_score():
    plans = Plans(torch.arange(48.0).reshape(1, 2, 8, 3), torch.tensor([[0.0, 1.0]]), 2)
    assert torch.equal(plans.best, plans.poses[:, 1])


# --- The planner ---


@pytest.mark.parametrize("design", ["diffusiondrive", "no_cascade", "regression", "anchors", "diffusion"])
def test_every_design_plans_trains_and_is_saved(design, tmp_path):
    made = planner(design)
    view, status = torch.zeros(2, 7, 64, 64), torch.zeros(2, 8)
    plans = made.plan(view, status)
    assert plans.best.shape == (2, 8, 3)
    assert plans.poses.isfinite().all()
    made.train().requires_grad_(True)
    target = torch.zeros(2, 8, 3)
    made.loss(view, status, target, torch.zeros(2, 12, 6))["loss"].backward()
    assert all(parameter.grad is not None for parameter in made.head.parameters())
    made.eval().save_pretrained(tmp_path / "planner")
    again = Planner.from_pretrained(tmp_path / "planner")
    assert torch.allclose(again.plan(view, status).poses, made.plan(view, status).poses, atol=1e-4)
    assert all(torch.equal(value, made.state_dict()[name]) for name, value in again.state_dict().items())


def test_planners_that_learn_together_share_a_backbone_and_add_their_losses():
    rng = torch.Generator().manual_seed(3)
    table = {
        "view": torch.randint(-127, 128, (8, 7, 64, 64), generator=rng, dtype=torch.int8),
        "status": torch.randn(8, 8, generator=rng),
        "plan": torch.randn(8, 8, 3, generator=rng),
        "agents": torch.zeros(8, 12, 6),
    }
    sizes = [Architecture(design=design, width=16, modes=3) for design in ("regression", "anchors")]
    made = fit_planners(table, sizes, Fitting(max_steps=1, batch_size=4, device="cpu"), progress=False)
    assert made[0].backbone is made[1].backbone
    given = table["view"] / 127, table["status"], table["plan"], table["agents"]
    together, alone = joint_loss(made, *given), [one.loss(*given) for one in made]
    expected = 12 * (alone[0]["regression"] + alone[1]["anchors"]) + alone[0]["agents"]
    assert float(together["loss"]) == pytest.approx(float(expected), rel=1e-5)


def test_what_does_not_fit_is_refused():
    with pytest.raises(InputError, match="the planner sees"):
        planner().plan(torch.zeros(1, 7, 32, 32), torch.zeros(1, 8))
    made = planner()
    with pytest.raises(ArtifactError, match="no whole planner"):
        Planner.from_parts({}, made.state_dict())
