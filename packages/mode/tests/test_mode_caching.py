"""Expert caching: exact, always hit, never stale; and the policy around it."""

import numpy as np
import pytest
import torch
from noiseworks.core.errors import ArtifactError, InputError, NonFiniteError
from noiseworks.kits.policies import LinearNormalizer
from noiseworks.mode.caching import ExpertCache, usage_table
from noiseworks.mode.config import MoDEConfig
from noiseworks.mode.encoders import StateEncoder
from noiseworks.mode.exactness import largest_difference
from noiseworks.mode.model import MoDEModel
from noiseworks.mode.network import Condition
from noiseworks.mode.policy import EDMPolicy
from noiseworks.mode.routing import usage_information

SMALL = {"action_dim": 3, "obs_dim": 5, "goal_dim": 8, "width": 64, "num_layers": 2, "num_heads": 4}


def make_model(**changes):
    torch.manual_seed(0)
    goals = torch.randn(4, 2, 8)
    config = MoDEConfig(**(SMALL | changes))
    model = MoDEModel(config, StateEncoder(goals, LinearNormalizer.identity(5)), LinearNormalizer.identity(3))
    for name, parameter in model.named_parameters():
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=1.0 if "router" in name else 0.1)
    return model.eval()


def observations(rows, seed=0):
    generator = torch.Generator().manual_seed(seed)
    states = torch.randn(rows, 1, 5, generator=generator)
    tasks = torch.randint(4, (rows, 1), generator=generator)
    return {"obs": torch.cat((states, torch.nn.functional.one_hot(tasks, 4).float()), dim=-1)}


def chunk(policy, rows):
    return policy.predict_chunk(observations(rows), torch.Generator().manual_seed(1)).prediction


@pytest.mark.parametrize("form", ["merged", "bmm"])
@pytest.mark.parametrize(
    "changes",
    [{}, {"top_k": 1}, {"top_k": 3}, {"shared_expert": True}, {"identity_expert": True}],
)
def test_cached_steps_equal_routed_ones_at_every_batch_size(form, changes):
    model = make_model(**changes)
    policy = EDMPolicy(model)
    policy.cache_experts(form=form)
    for batch in (1, 2, 5, 16):
        cond = model.encode(observations(batch))
        x = torch.randn(batch, 10, 3, generator=torch.Generator().manual_seed(batch))
        for sigma in policy.sigmas[:-1]:
            routed = model.denoise(x, torch.full((batch,), sigma, dtype=torch.float64), cond)
            torch.testing.assert_close(policy.denoise(x, sigma, cond), routed, atol=1e-6, rtol=1e-6)
    report = policy.cache.report()
    assert (report.hits, report.misses, report.hit_rate) == (40, 0, 1.0)


@pytest.mark.parametrize("rows", [1, 7, 64])
def test_every_call_of_a_replan_hits_at_every_batch_size(rows):
    policy = EDMPolicy(make_model())
    routed = chunk(policy, rows)
    policy.cache_experts(10)
    cached = chunk(policy, rows)
    report = policy.cache.report()
    assert (report.hits, report.misses) == (10, 0)
    torch.testing.assert_close(cached, routed, atol=2e-6, rtol=1e-5)
    policy.clear_cache()
    assert torch.equal(chunk(policy, rows), routed)


@pytest.mark.parametrize("form", ["merged", "bmm"])
def test_one_compiled_graph_serves_all_cached_steps_and_follows_the_weights(form):
    graphs = []

    def count(graph, _):
        graphs.append(graph)
        return graph.forward

    model = make_model(num_layers=1)
    policy = EDMPolicy(model)
    with pytest.raises(InputError, match="call cache_experts"):
        policy.compile("eager")
    policy.cache_experts(form=form)
    with pytest.raises(InputError, match="backend"):
        policy.compile("none")
    eager = chunk(policy, 2)
    policy.compile("eager")
    torch._dynamo.reset()
    policy._compiled = torch.compile(model.denoiser, backend=count, dynamic=False)
    torch.testing.assert_close(chunk(policy, 2), eager, atol=1e-6, rtol=1e-6)
    assert len(graphs) == 1
    with torch.no_grad():
        model.denoiser.blocks[0].experts[0].out.weight.mul_(3)
    compiled = chunk(policy, 2)
    policy._compiled = None
    torch.testing.assert_close(compiled, chunk(policy, 2), atol=1e-6, rtol=1e-6)
    assert policy.cache.report().rebuilds == 1
    assert len(graphs) == 1


def test_a_parameter_change_train_mode_or_another_dtype_outdates_the_cache():
    model = make_model()
    policy = EDMPolicy(model)
    policy.cache_experts()
    before = chunk(policy, 3)
    with torch.no_grad():
        model.denoiser.blocks[0].experts[2].out.weight.add_(0.05)
        model.denoiser.blocks[1].router.out.bias.copy_(torch.tensor([5.0, 0.0, -5.0, 4.0]))
    after = chunk(policy, 3)
    assert not torch.allclose(before, after, atol=1e-4)
    assert policy.cache.rebuilds == 1
    assert policy.cache.report().misses == 0
    cache = policy.cache
    policy.clear_cache()
    torch.testing.assert_close(after, chunk(policy, 3), atol=2e-6, rtol=1e-5)
    policy.cache = cache
    model.train()
    model.eval()
    chunk(policy, 3)
    assert policy.cache.rebuilds == 2
    model.to(torch.float64)
    cache.refresh()
    assert cache.rebuilds == 3
    assert cache._steps[policy.sigmas[0]].merged[0].w_in.dtype == torch.float64


@pytest.mark.parametrize("place", ["experts.1.out.weight", "experts.2.project.bias", "router.out.weight"])
def test_writes_through_data_which_pytorch_does_not_count_outdate_the_cache_too(place):
    model = make_model()
    policy = EDMPolicy(model)
    policy.cache_experts()
    chunk(policy, 3)
    for block in model.denoiser.blocks:
        block.get_parameter(place).data.add_(0.05)
    after = chunk(policy, 3)
    assert policy.cache.rebuilds == 1
    chunk(policy, 3)
    assert policy.cache.rebuilds == 1
    policy.clear_cache()
    torch.testing.assert_close(after, chunk(policy, 3), atol=2e-6, rtol=1e-5)


def test_nan_is_refused_and_not_called_exact(tmp_path):
    model = make_model()
    policy = EDMPolicy(model)
    policy.cache_experts()
    assert largest_difference(policy, 2).roundings < 32
    model.denoiser.blocks[0].experts[0].out.weight.data.fill_(float("nan"))
    with pytest.raises(NonFiniteError, match="sigma"):
        largest_difference(policy, 2)
    model.save_pretrained(tmp_path / "model")
    with pytest.raises(ArtifactError, match=r"experts\.0\.out\.weight in .* holds NaN"):
        MoDEModel.from_pretrained(tmp_path / "model")
    model.denoiser.blocks[1].router.out.bias.data.fill_(float("nan"))
    with pytest.raises(NonFiniteError, match="router"):
        policy.expert_usage()
    with pytest.raises(NonFiniteError, match="router"):
        policy.cache_experts()


def test_differences_are_counted_in_roundings_at_the_size_of_the_output():
    model = make_model()
    policy = EDMPolicy(model)
    policy.cache_experts()
    found = largest_difference(policy, 7)
    for block in model.denoiser.blocks:  # experts a thousand times as large make errors as much larger
        for expert in block.experts:
            expert.out.weight.data.mul_(1000)
    grown = largest_difference(policy, 7)
    assert 0 < found.absolute < 1e-4
    assert grown.roundings < 100


def test_a_level_off_the_grid_is_routed_counted_and_warned_of():
    model = make_model()
    policy = EDMPolicy(model)
    policy.cache_experts()
    cond, x = model.encode(observations(2)), torch.randn(2, 10, 3)
    with pytest.warns(UserWarning, match="not in the expert cache"):
        out = policy.denoise(x, 3.3, cond)
    torch.testing.assert_close(out, model.denoise(x, torch.full((2,), 3.3, dtype=torch.float64), cond))
    assert policy.cache.report().misses == 1
    # A level of the grid that went through float32 is still the grid's.
    policy.denoise(x, torch.full((2,), policy.sigmas[3]), cond)
    assert policy.cache.report().hits == 1


def test_mixed_levels_wrong_steps_and_models_without_known_experts_are_refused():
    model = make_model()
    policy = EDMPolicy(model)
    policy.cache_experts()
    cond, x = model.encode(observations(2)), torch.randn(2, 10, 3)
    with pytest.raises(InputError, match="one noise level for all rows"):
        policy.denoise(x, torch.tensor([1.0, 2.0]), cond)
    with pytest.raises(InputError, match="sigma must be a number above 0"):
        policy.denoise(x, 0.0, cond)
    with pytest.raises(InputError, match="sampler's 10 steps, got 5"):
        policy.cache_experts(5)
    for changes, match in (({"num_experts": 1, "top_k": 1}, "dense"), ({"routing": "token"}, "token")):
        with pytest.raises(InputError, match=match):
            EDMPolicy(make_model(**changes)).cache_experts()
    with pytest.raises(InputError, match="call eval"):
        ExpertCache(make_model().denoiser.train(), [1.0])


def test_bmm_keeps_fewer_bytes_than_merged():
    policy = EDMPolicy(make_model())
    merged, bmm = policy.cache_experts(form="merged"), policy.cache_experts(form="bmm")
    assert merged.pairs == bmm.pairs <= 12
    assert bmm.bytes < merged.bytes


def test_usage_is_the_mixture_s_weights_by_step():
    model = make_model()
    usage = EDMPolicy(model).expert_usage()
    assert usage.shape == (2, 10, 4)
    torch.testing.assert_close(usage.sum(-1), torch.ones(2, 10))
    assert bool(((usage > 0).sum(-1) == 2).all())
    record = []
    n = model.denoiser.noise_embedding(torch.tensor([80.0]))
    context = model.denoiser.context(model.encode(observations(1)))
    model.denoiser(torch.zeros(1, 10, 3), n, context, record=record)
    expected = torch.zeros(4).scatter(0, record[1].ids[0], record[1].gates[0])
    torch.testing.assert_close(usage_table(model.denoiser, [80.0])[1, 0], expected)
    assert bool((usage_information(usage) >= 0).all())


def test_guidance_doubles_the_calls_and_scale_one_changes_nothing():
    model = make_model(goal_dropout_mode="sample")
    plain, guided = EDMPolicy(model), EDMPolicy(model, guidance_scale=2.0)
    observed, generator = observations(2), torch.Generator()
    one = plain.predict_chunk(observed, generator.manual_seed(0))
    two = guided.predict_chunk(observed, generator.manual_seed(0))
    assert (one.nfe, two.nfe) == (10, 20)
    assert not torch.allclose(one.prediction, two.prediction)


def test_all_ten_actions_are_executed_before_the_next_plan():
    policy = EDMPolicy(make_model(), num_envs=3)
    obs = {"obs": observations(3)["obs"][:, 0]}
    policy.reset(seeds=[1, 2, 3])
    acted = np.stack([policy.act(obs).numpy() for _ in range(10)], axis=1)
    assert policy.stats.row_calls == 30
    generators = [torch.Generator().manual_seed(s) for s in (1, 2, 3)]
    expected = policy.predict_chunk({"obs": obs["obs"][:, None]}, generators).actions.numpy()
    np.testing.assert_allclose(acted, expected, atol=1e-6)
    policy.act(obs)
    assert policy.stats.row_calls == 60


def test_a_model_is_saved_and_loaded_with_its_encoder(tmp_path):
    model = make_model(routing="goal")
    model.save_pretrained(tmp_path / "model")
    again = MoDEModel.from_pretrained(tmp_path / "model")
    assert again.config == model.config
    assert torch.equal(chunk(EDMPolicy(again), 2), chunk(EDMPolicy(model), 2))
    model.save_pretrained(tmp_path / "half", dtype=torch.float16)
    assert torch.allclose(
        chunk(EDMPolicy(MoDEModel.from_pretrained(tmp_path / "half")), 2),
        chunk(EDMPolicy(model), 2),
        atol=0.2,
    )
    with pytest.raises(InputError, match=r"holds no config\.json"):
        MoDEModel.from_pretrained(tmp_path)


def test_the_encoder_takes_the_goal_of_the_task_and_refuses_other_shapes():
    model = make_model()
    cond = model.encode(observations(4))
    assert isinstance(cond, Condition)
    task = observations(4)["obs"][:, 0, 5:].argmax(-1)
    assert torch.equal(cond.goal, model.encoder.goals[task, 0])
    with pytest.raises(InputError, match="'obs' of shape"):
        model.encode({"obs": torch.zeros(2, 1, 8)})
    with pytest.raises(InputError, match="width 4, the model for 3"):
        MoDEModel(MoDEConfig(**SMALL), model.encoder, LinearNormalizer.identity(4))
