"""The network: sizes, tokens, causality, routing, the mixture and the balancing loss."""

import pytest
import torch
import torch.nn.functional as F
from noiseworks.core.errors import InputError
from noiseworks.mode.config import MoDEConfig
from noiseworks.mode.experts import SwiGLU, mixture
from noiseworks.mode.network import Condition, MoDEDenoiser
from noiseworks.mode.routing import (
    Router,
    Routing,
    load_balance,
    probabilities,
    router_z_loss,
    select_experts,
    usage_information,
)

SMALL = {"action_dim": 4, "obs_dim": 16, "goal_dim": 8, "width": 64, "num_layers": 2, "num_heads": 4}


def make(seed=0, **changes):
    torch.manual_seed(seed)
    model = MoDEDenoiser(MoDEConfig(**(SMALL | changes))).eval()
    for parameter in model.parameters():  # larger than at the start, so that everything matters
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=0.15)
    return model


def inputs(batch=3, seed=1, **changes):
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape):
        return torch.randn(shape, generator=generator)

    return draw(batch, 10, 4), draw(batch).exp(), Condition(draw(batch, 8), draw(batch, 1, 16))


def run(model, actions, sigma, cond, **more):
    return model(actions, model.noise_embedding(sigma), model.context(cond), **more)


def count(module):
    return sum(p.numel() for p in module.parameters())


def test_parameter_counts_are_those_of_the_published_network():
    # The published network also holds an unused second camera projection of 16 x 64.
    assert count(MoDEDenoiser(MoDEConfig(**SMALL))) + 16 * 64 == 456_524
    assert count(SwiGLU(64, 256)) == 49_664 == 8 * 64**2 + 8 * 64 + 4 * 64**2
    assert count(Router(64, 4)) == 8_836


def test_the_full_model_has_the_published_size():
    with torch.device("meta"):
        model = MoDEDenoiser(MoDEConfig())
    assert count(model) == pytest.approx(456.0e6, rel=2e-3)
    assert sum(count(block.experts) for block in model.blocks) == pytest.approx(402.9e6, rel=1e-3)


@pytest.mark.parametrize("routing", ["noise", "goal", "token"])
@pytest.mark.parametrize("residual", ["normed", "prenorm"])
def test_actions_never_see_later_actions_and_all_see_the_goal(routing, residual):
    model, (actions, sigma, cond) = make(routing=routing, residual=residual), inputs()
    base = run(model, actions, sigma, cond)
    changed = actions.clone()
    changed[:, 6] += 1
    after = run(model, changed, sigma, cond)
    assert torch.equal(base[:, :6], after[:, :6])
    assert bool((base[:, 6:] != after[:, 6:]).any(dim=-1).all())
    moved = run(model, actions, sigma, cond._replace(goal=cond.goal + 1))
    assert bool(((base - moved).abs().amax(dim=-1) > 1e-4).all())


def test_evaluation_routes_all_tokens_of_a_sample_alike_and_training_does_not():
    model, (actions, sigma, cond) = make(), inputs()
    record: list[Routing] = []
    run(model, actions, sigma, cond, record=record)
    for routing in record:
        ids = routing.ids.reshape(3, -1, 2)
        assert bool((ids == ids[:, :1]).all())
        expected = routing.probs.topk(2, dim=-1).indices
        assert torch.equal(ids[:, 0].sort(-1).values, expected.sort(-1).values)
    record.clear()
    torch.manual_seed(0)
    run(model.train(), actions, sigma, cond, record=record)
    ids = record[0].ids.reshape(3, -1, 2).sort(-1).values
    assert bool((ids != ids[:, :1]).any())
    assert bool((ids[..., 0] != ids[..., 1]).all())
    torch.testing.assert_close(record[0].gates.sum(-1), torch.ones(len(record[0].gates)))


def test_argmax_routing_trains_on_the_likeliest_experts():
    model, (actions, sigma, cond) = make(argmax_routing=True).train(), inputs()
    record: list[Routing] = []
    run(model, actions, sigma, cond, record=record)
    ids = record[0].ids.reshape(3, -1, 2)
    assert bool((ids == ids[:, :1]).all())


def test_draws_without_replacement_follow_the_probabilities():
    torch.manual_seed(0)
    probs = torch.tensor([[0.5, 0.3, 0.15, 0.05]])
    ids, gates = select_experts(probs, 2, draws=40_000)
    first = torch.bincount(ids[0, :, 0], minlength=4) / 40_000
    torch.testing.assert_close(first, probs[0], atol=0.01, rtol=0)
    pair = (ids[0].sort(-1).values == torch.tensor([0, 1])).all(-1).float().mean()
    assert float(pair) == pytest.approx(0.5 * 0.3 / 0.5 + 0.3 * 0.5 / 0.7, abs=0.01)
    chosen = probs[0][ids[0]]
    torch.testing.assert_close(gates[0], chosen / chosen.sum(-1, keepdim=True))


def test_the_mixture_is_the_weighted_sum_over_experts_and_so_is_its_gradient():
    torch.manual_seed(0)
    experts = [SwiGLU(8, 16).double() for _ in range(4)]
    x = torch.randn(11, 8, dtype=torch.float64, requires_grad=True)
    ids, gates = select_experts(probabilities(torch.randn(1, 4)), 2, draws=11)
    ids = ids[0].clone()
    ids[ids == 2] = 3  # an expert without tokens; repeated choices add up as well
    y = mixture(experts, x, ids, gates[0].double())
    naive = torch.stack(
        [
            sum(gates[0, t, j].double() * experts[int(ids[t, j])](x[t]) for j in range(2))
            for t in range(len(x))
        ]
    )
    torch.testing.assert_close(y, naive, atol=1e-6, rtol=1e-5)
    ours, theirs = (torch.autograd.grad(out.square().sum(), x, retain_graph=True)[0] for out in (y, naive))
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("balance", ["masked", "softmax"])
def test_the_balancing_loss_is_two_at_even_use_and_four_for_one_fixed_pair(balance):
    even = torch.full((6, 4), 0.25)
    pairs = torch.tensor([[0, 1], [2, 3], [0, 2], [1, 3], [0, 3], [1, 2]])
    half = torch.full((6, 2), 0.5)
    assert float(load_balance(Routing(even, even, pairs, half), balance)) == pytest.approx(2.0)
    fixed = torch.tensor([[0.5, 0.5, 0.0, 0.0]]).expand(6, 4)
    one = Routing(fixed, fixed, pairs[:1].expand(6, 2), half)
    assert float(load_balance(one, balance)) == pytest.approx(4.0)


def test_only_the_softmax_s_balance_reaches_experts_that_likeliest_routing_leaves_out():
    logits = torch.tensor([[3.0, 2.0, 1.0, 0.0]], requires_grad=True)
    probs = probabilities(logits)
    routing = Routing(logits, probs, *select_experts(probs, 2))
    masked, full = (
        torch.autograd.grad(load_balance(routing, balance), logits, retain_graph=True)[0][0]
        for balance in ("masked", "softmax")
    )
    torch.testing.assert_close(masked[2:], torch.zeros(2), atol=1e-6, rtol=0)
    assert bool((full[2:] < -0.05).all())  # a step down the loss makes them likelier


def test_the_z_loss_is_the_squared_log_partition():
    logits = torch.tensor([[0.0, 0.0], [1.0, 2.0]])
    routing = Routing(logits, logits, torch.zeros(2, 1, dtype=torch.int64), torch.ones(2, 1))
    expected = (logits.exp().sum(-1).log() ** 2).mean()
    assert float(router_z_loss(routing)) == pytest.approx(float(expected))


def test_usage_information_is_one_bit_for_two_disjoint_halves_and_none_for_constant_use():
    split = torch.tensor([[[1.0, 0, 0]] * 5 + [[0, 1.0, 0]] * 5, [[0.5, 0.5, 0]] * 10])
    torch.testing.assert_close(usage_information(split), torch.tensor([1.0, 0.0], dtype=torch.float64))


def test_the_block_follows_the_published_order_of_operations():
    model, (actions, sigma, cond) = make(num_layers=1), inputs()
    block, n = model.blocks[0], model.noise_embedding(sigma)
    x = torch.cat([n, model.context(cond), model.action_emb(actions) + model.pos_emb[1:]], dim=1)
    rms = F.rms_norm(x, (64,), eps=0) + n
    q, k, v = (
        layer(rms).reshape(3, -1, 4, 16).transpose(1, 2)
        for layer in (block.attention.query, block.attention.key, block.attention.value)
    )
    q, k = (F.rms_norm(t, (16,), eps=0) for t in (q, k))
    scores = (q @ k.transpose(-1, -2) / 4).masked_fill(
        torch.ones(x.shape[1], x.shape[1]).triu(1).bool(), -torch.inf
    )
    x1 = x + block.attention.out((scores.softmax(-1) @ v).transpose(1, 2).reshape(x.shape))
    y = F.rms_norm(x1, (64,), eps=0)
    probs = block.router(n[:, 0]).softmax(-1)
    top = probs.topk(2)
    weights = top.values / top.values.sum(-1, keepdim=True)
    moe = torch.stack(
        [sum(weights[b, j] * block.experts[int(top.indices[b, j])](y[b]) for j in range(2)) for b in range(3)]
    )
    expected = model.out(F.rms_norm(y + moe, (64,), eps=0)[:, -10:])
    torch.testing.assert_close(run(model, actions, sigma, cond), expected, atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize(
    "changes",
    [
        {"noise_token": False},
        {"noise_conditioning": "film"},
        {"noise_conditioning": "none"},
        {"shared_expert": True},
        {"identity_expert": True},
        {"num_experts": 1, "top_k": 1},
        {"top_k": 1},
        {"proprio_dim": 5},
    ],
)
def test_variants_run_and_reach_all_parameters(changes):
    model, (actions, sigma, cond) = make(**changes).train(), inputs(16)
    if "proprio_dim" in changes:
        cond = cond._replace(proprio=torch.ones(16, 5))
    run(model, actions, sigma, cond).square().sum().backward()
    unused = [name for name, p in model.named_parameters() if p.grad is None]
    assert not unused


def test_goal_dropout_hides_single_entries_or_whole_goals():
    for mode, rows in (("element", False), ("sample", True)):
        model = make(goal_dropout=0.5, goal_dropout_mode=mode).train()
        hidden = model._drop_goal(torch.ones(200, 8)) == 0
        assert 0.35 < float(hidden.float().mean()) < 0.65
        assert bool((hidden == hidden[:, :1]).all()) == rows


def test_initial_weights_are_cut_normals_and_routers_start_even():
    model = MoDEDenoiser(MoDEConfig(**SMALL))
    assert float(model.blocks[0].attention.query.weight.detach().abs().max()) <= 0.04
    plain = MoDEDenoiser(MoDEConfig(**SMALL, init="torch"))
    assert float(plain.blocks[0].attention.query.weight.detach().abs().max()) > 0.1
    assert float(plain.blocks[0].router.out.bias.detach().abs().max()) == 0


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"top_k": 5}, "top_k must be at most num_experts 4, got 5"),
        ({"width": 65}, "multiple of num_heads"),
        ({"routing": "sigma"}, "routing must be one of"),
        ({"sigma_min": 0.0}, "sigma_min must be a number above 0"),
        ({"sigma_max": 0.0001}, "sigma_max"),
        ({"shared_expert": True, "top_k": 1}, "top_k must be at least 2"),
    ],
)
def test_bad_configurations_are_refused(changes, match):
    with pytest.raises(InputError, match=match):
        MoDEConfig(**(SMALL | changes))


def test_bad_inputs_are_refused():
    model, (actions, sigma, cond) = make(), inputs()
    with pytest.raises(InputError, match="sigma must be above 0"):
        model.noise_embedding(torch.tensor([1.0, 0.0]))
    with pytest.raises(InputError, match="actions must have shape"):
        run(model, actions[..., :3], sigma, cond)
    with pytest.raises(InputError, match="actions must have shape"):
        run(model, actions[:, :9], sigma, cond)
    with pytest.raises(InputError, match="obs must have shape"):
        model.context(cond._replace(obs=cond.obs[:2]))
    with pytest.raises(InputError, match="goal must have shape"):
        model.context(cond._replace(goal=cond.goal[:, :7]))
    with pytest.raises(InputError, match="proprio must be given"):
        model.context(cond._replace(proprio=torch.zeros(3, 2)))
