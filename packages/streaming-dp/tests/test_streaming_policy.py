"""The stream: its calls, its memory, its moments under an exact score, and rows that do not interact."""

import pytest
import torch
from noiseworks.core.errors import InputError, NonFiniteError
from noiseworks.kits.policies import DiffusionPolicy, NativePolicy, PolicyConfig
from noiseworks.streaming_dp import PerStepDDPM, StreamingPolicy, convert

UNET = {"obs_dim": 3, "action_dim": 2, "horizon": 8, "down_dims": (8, 16), "kernel_size": 3}
UNET |= {"step_embed_dim": 16, "n_action_steps": 2, "num_train_timesteps": 20}


def unet(**options):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return convert(NativePolicy(PolicyConfig(**(UNET | options))))


def acted(policy, look, steps, ids=None):
    rows = policy.num_envs if ids is None else len(ids)
    return torch.stack([policy.act(look(rows), ids) for _ in range(steps)])


def test_a_cycle_spends_n_over_h_calls_and_the_fresh_end_is_pure_noise(gaussian, look):
    host = gaussian(horizon=16, n_action_steps=1)
    policy = StreamingPolicy(host)
    acted(policy, look, 9)
    assert policy.stats.nfes == [6, 7, 7] * 3
    assert policy.stats.nfe_per_action == pytest.approx(100 / 15)
    assert host.seen[0].tolist() == [list(policy.spec.buffer)]
    assert all(int(k.max()) <= 99 and int(k.min()) >= 0 for k in host.seen)


def concatenated(host, cycles, seed):
    """The same stream for one environment, by concatenation and the public scheduler."""
    policy = StreamingPolicy(host)
    spec, generator = policy.spec, torch.Generator().manual_seed(seed)
    scheduler = PerStepDDPM.from_config(host.scheduler.config)
    shape, levels, chunks = (1, host.horizon, 2), torch.tensor([spec.buffer]), []
    x = scheduler.add_noise(torch.zeros(shape), torch.randn(shape, generator=generator), levels)
    for _ in range(cycles):
        while levels[0, spec.executed.stop - 1] > -1:
            x = scheduler.step(host.denoise(x, levels, None), levels, x, generator=[generator]).prev_sample
            levels = (levels - 1).clamp(min=-1)
        chunks.append(x[:, spec.executed])
        fresh = spec.n_action_steps + spec.rest
        x = torch.cat(
            (
                x[:, spec.n_action_steps : host.horizon - spec.rest],
                torch.randn((1, fresh, 2), generator=generator),
            ),
            dim=1,
        )
        kept = levels[:, spec.n_action_steps : host.horizon - spec.rest]
        levels = torch.cat((kept, torch.full((1, fresh), spec.num_levels - 1)), dim=1)
        levels[:, : spec.first] = levels[:, spec.first]
        past = x[:, : spec.first]
        noise = torch.randn(past.shape, generator=generator)
        x[:, : spec.first] = scheduler.add_noise(past, noise, levels[:, : spec.first])
    return torch.cat(chunks, dim=1)[0]


@pytest.mark.parametrize("sizes", [(8, 2), (11, 3), (9, 1)])
def test_the_ring_equals_concatenation_bit_for_bit(gaussian, look, sizes):
    policy = StreamingPolicy(gaussian(*sizes))
    policy.reset([0], [7])
    steps = sizes[1] * 12
    assert torch.equal(acted(policy, look, steps)[:, 0], concatenated(gaussian(*sizes), 12, 7))


@pytest.mark.parametrize(("solver", "levels"), [("ddpm", 12), ("ddim", 8)])
def test_executed_actions_have_the_moments_of_the_full_sampler(gaussian, look, solver, levels):
    """Every executed position has passed all levels, so the discretisation's bias is the same as well."""
    rows, host = 2_500, gaussian(horizon=4, n_action_steps=1, steps=12)
    host.mean = host.mean.mean(0) + torch.zeros_like(host.mean)  # a position's law must not move with it
    generator = torch.Generator().manual_seed(0)
    policy = StreamingPolicy(host, num_envs=rows, solver=solver, num_levels=levels)
    ids, cond = list(range(rows)), torch.zeros(rows, 6)
    for _ in range(policy.spec.chunks + 2):
        x, _ = policy.plan(cond, ids, generator, rows)
        policy.since[:] = 1
    found = x[:, 1]
    # The ordinary sampler on the same levels.
    scheduler = policy.scheduler
    y = torch.randn((rows, 4, 2), generator=generator)
    for k in scheduler.timesteps.tolist():
        options = {"generator": generator} if solver == "ddpm" else {}
        y = scheduler.step(host.denoise(y, torch.full((rows,), k), None), k, y, **options).prev_sample
    expected = y.flatten(0, 1)
    torch.testing.assert_close(found.mean(0), expected.mean(0), rtol=0, atol=4 * 0.3 / rows**0.5)
    torch.testing.assert_close(found.std(0), expected.std(0), rtol=4 / (2 * rows) ** 0.5, atol=0)
    # The fresh end has seen nothing yet but the last cycle, and is still wide.
    assert float(x[:, -1].std()) > 2 * float(found.std())


def test_initialisations_are_forgotten_after_h_cycles(gaussian, look):
    host = gaussian(horizon=9, n_action_steps=2)
    zero = StreamingPolicy(host, seed=3)
    constant = StreamingPolicy(host, buffer_init="constant", constant=[2.0, -2.0], seed=3)
    a, b = acted(zero, look, 14), acted(constant, look, 14)
    h = zero.spec.chunks
    assert not torch.allclose(a[: 2 * h], b[: 2 * h], atol=1e-4)
    assert torch.equal(a[2 * h :], b[2 * h :])


def test_a_denoised_buffer_executes_the_full_samplers_chunk_first(gaussian, look):
    host = gaussian(horizon=16, n_action_steps=2)
    stream, full = StreamingPolicy(host, buffer_init="denoise"), DiffusionPolicy(host)
    stream.reset([0], [4])
    full.reset([0], [4])
    torch.testing.assert_close(acted(stream, look, 2), acted(full, look, 2), rtol=1e-4, atol=1e-4)
    acted(stream, look, 6)
    spec = stream.spec
    assert stream.stats.nfes == [100, spec.calls(1), spec.calls(2), spec.calls(3)]


def test_rows_do_not_interact_and_restart_alone(look):
    host = unet()
    whole, part, single = (StreamingPolicy(host, num_envs=n) for n in (3, 3, 1))
    for policy in (whole, part):
        policy.reset(seeds=[1, 2, 3])
    single.reset(seeds=[9])
    first = acted(whole, look, 4)
    torch.testing.assert_close(acted(part, look, 4), first)
    part.reset([1], [9])
    after, mixed, alone = acted(whole, look, 5), acted(part, look, 5), acted(single, look, 5)
    torch.testing.assert_close(mixed[:, [0, 2]], after[:, [0, 2]], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(mixed[:, 1], alone[:, 0], rtol=1e-4, atol=1e-5)


def test_rows_of_different_phase_share_a_batch(gaussian, look):
    policy = StreamingPolicy(gaussian(horizon=16, n_action_steps=1), num_envs=2)
    acted(policy, look, 1)
    policy.reset([1])
    acted(policy, look, 1)  # row 0 needs 7 calls, row 1 needs 6
    assert policy.stats.nfes == [6, 6.5]


def test_a_stored_stream_goes_on_bit_for_bit(look):
    host = unet()
    policy = StreamingPolicy(host, num_envs=2)
    acted(policy, look, 5)
    state = policy.buffer_state()
    expected = acted(policy, look, 5)
    other = StreamingPolicy(host, num_envs=2, seed=8)
    acted(other, look, 3)
    other.load_buffer_state(state)
    assert torch.equal(acted(other, look, 5), expected)
    with pytest.raises(InputError, match="lacks"):
        other.load_buffer_state({"actions": state["actions"]})
    with pytest.raises(InputError, match="needs"):
        other.load_buffer_state(state | {"actions": state["actions"][:, :4]})
    with pytest.raises(InputError, match="-1 to 19"):
        other.load_buffer_state(state | {"levels": state["levels"] + 20})


def test_a_chunk_that_is_cut_short_moves_by_what_was_executed(gaussian, look):
    policy = StreamingPolicy(gaussian(horizon=12, n_action_steps=3))
    with pytest.raises(InputError, match="no plan"):
        policy.advance(1)
    chunk = policy.act(look(1)), policy.act(look(1))
    policy.advance(1)
    second = policy.act(look(1))
    assert torch.equal(second, chunk[1])  # it was clean already and is the current action now
    with pytest.raises(InputError, match="0 to n_action_steps = 3"):
        policy.advance(4)
    assert bool(acted(policy, look, 40).isfinite().all())


def test_the_past_is_noised_to_its_label_unless_told_otherwise(gaussian, look):
    host = gaussian(horizon=8, n_action_steps=2)
    seen = {}
    for renoise in (True, False):
        policy = StreamingPolicy(host, renoise_prefix=renoise)
        policy.reset([0], [5])
        inputs = []
        original = host.denoise
        host.denoise = lambda x, k, cond, inputs=inputs, f=original: inputs.append(x.clone()) or f(x, k, cond)
        actions = acted(policy, look, 4)
        host.denoise = original
        seen[renoise] = inputs[policy.stats.nfes[0]][0, 0], actions[1, 0]
    assert torch.equal(seen[False][0], seen[False][1])
    assert not torch.allclose(seen[True][0], seen[True][1], atol=1e-3)


def test_inpainted_entries_are_imposed_before_every_call(gaussian, look):
    host, calls = gaussian(), []

    def impose(x, cond):
        x[..., 1] = 0.25
        calls.append(len(x))

    host.impose = impose
    seen, original = [], host.denoise
    host.denoise = lambda x, k, cond: seen.append(x[..., 1].clone()) or original(x, k, cond)
    policy = StreamingPolicy(host, num_envs=2)
    acted(policy, look, 3)
    assert len(calls) == len(seen) == sum(policy.stats.nfes)
    assert all(bool((entry == 0.25).all()) for entry in seen)


def test_a_row_that_is_not_finite_restarts_cold(gaussian, look):
    host = gaussian()
    policy = StreamingPolicy(host, num_envs=3)
    acted(policy, look, 2)
    original, broken = host.denoise, [True]

    def once(x, k, cond):
        out = original(x, k, cond)
        if broken and len(x) == 3:
            broken.clear()
            out[1] = float("nan")
        return out

    host.denoise = once
    assert bool(acted(policy, look, 2).isfinite().all())
    assert policy.restarts == 1
    host.denoise = lambda x, k, cond: x * float("nan")
    with pytest.raises(NonFiniteError, match="environment 0"):
        acted(policy, look, 2)


def test_a_single_plan_leaves_the_memory_alone(gaussian, look):
    policy = StreamingPolicy(gaussian())
    acted(policy, look, 2)
    before = policy.buffer_state()
    obs = {"obs": torch.zeros(5, 2, 3)}
    chunk = policy.predict_chunk(obs, torch.Generator().manual_seed(0))
    again = policy.predict_chunk(obs, torch.Generator().manual_seed(0))
    assert chunk.actions.shape == (5, 2, 2)
    assert torch.equal(chunk.actions, again.actions)
    after = policy.buffer_state()
    assert all(torch.equal(before[name], after[name]) for name in before)


@torch.inference_mode()
def test_precomputed_modulations_give_the_networks_output():
    host = unet()
    host.net.double()  # in float32 the normalisations amplify rounding to 1e-5
    policy = StreamingPolicy(host, num_envs=4)
    cycle, cond = policy._cycle(policy.spec.buffer), host.encode({"obs": torch.randn(4, 2, 3)})
    x = torch.randn(4, 8, 2).double()
    levels = torch.tensor(policy.spec.cycle(policy.spec.buffer))
    rows = policy.films.begin(cycle.table.timesteps, cond)
    assert len(rows) == len(levels)
    for call, row in enumerate(rows):
        expected = host.denoise(x, levels[call].expand(4, -1), cond.double()).float()
        torch.testing.assert_close(policy.films.call(x, row).float(), expected, rtol=1e-6, atol=1e-6)


def test_half_precision_networks_stream(look):
    host = unet()
    host.net.half()
    assert bool(acted(StreamingPolicy(host, num_envs=2), look, 4).isfinite().all())


def test_steady_state_allocates_nothing_but_the_networks_output(gaussian):
    host = gaussian(horizon=16, n_action_steps=1)
    policy = StreamingPolicy(host, num_envs=2)
    cond, output = torch.zeros(2, 6), torch.zeros(2, 16, 2)
    host.denoise = lambda x, k, cond: output
    cycle = policy._cycle(policy.spec.buffer)
    x = policy.loop.start(2).zero_()
    policy._run(cycle, x, cond, policy.generators)
    with torch.profiler.profile(profile_memory=True) as profile:
        policy._run(cycle, x, cond, policy.generators)
    assert [event.name for event in profile.events() if event.cpu_memory_usage > 0] == []


@pytest.mark.parametrize(
    ("options", "word"),
    [
        ({"buffer_init": "warm"}, "buffer_init"),
        ({"buffer_init": "constant"}, "constant"),
        ({"constant": [0.0, 0.0]}, "go together"),
        ({"buffer_init": "constant", "constant": [0.0]}, "2 finite"),
        ({"num_levels": 2}, "levels"),
        ({"num_levels": 101}, "num_levels"),
        ({"n_action_steps": 8}, "horizon"),
        ({"solver": "euler"}, "solver"),
        ({"num_envs": 0}, "num_envs"),
        ({"compile_network": True}, "compile"),
    ],
)
def test_bad_options_are_refused(gaussian, options, word):
    with pytest.raises(InputError, match=word):
        StreamingPolicy(gaussian(), **options)


def test_a_batch_that_changes_and_actions_that_nobody_planned_are_refused(gaussian, look):
    policy = StreamingPolicy(gaussian(), num_envs=2)
    acted(policy, look, 2)
    with pytest.raises(InputError, match="2 environments"):
        policy.act(look(3))
    policy.since[:] = 3
    with pytest.raises(InputError, match="at most 2"):
        policy.replan([0, 1])
