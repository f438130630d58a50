"""Time windows, normalisers, the moving average, and the policy directory."""

import json

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from noiseworks.core.errors import ArtifactError, InputError
from noiseworks.kits.policies import (
    ChunkSpec,
    Episodes,
    LinearNormalizer,
    NativePolicy,
    PolicyConfig,
    load_host,
    shift,
    window_indices,
    windows,
)


def tiny(**options):
    sizes = {"obs_dim": 4, "action_dim": 2, "horizon": 8, "n_action_steps": 3, "down_dims": (8, 16)}
    return PolicyConfig(
        **(sizes | {"step_embed_dim": 8, "kernel_size": 3, "n_emb": 8, "n_head": 2} | options)
    )


@pytest.mark.parametrize(("current", "first"), [(True, 1), (False, 2)])
def test_the_executed_part_starts_at_the_current_observation(current, first):
    spec = ChunkSpec(16, 2, 8, current)
    assert spec.executed == slice(first, first + 8)
    # Entry j of a prediction made at time t is the action for time t - (To - 1) + j.
    if current:
        assert first - (spec.n_obs_steps - 1) == 0


@pytest.mark.parametrize(("horizon", "obs", "actions"), [(16, 2, 16), (4, 5, 1), (0, 1, 1), (8, 1, 0)])
def test_a_window_that_does_not_fit_is_refused(horizon, obs, actions):
    with pytest.raises(InputError):
        ChunkSpec(horizon, obs, actions)


@settings(max_examples=40, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 12), min_size=1, max_size=4),
    obs=st.integers(1, 3),
    actions=st.integers(1, 4),
    room=st.integers(0, 4),
    more=st.booleans(),
)
def test_windows_equal_the_written_out_padding(lengths, obs, actions, room, more):
    spec = ChunkSpec(obs + actions - 1 + room, obs, actions)
    after = spec.horizon - obs if more else actions - 1
    ends = np.cumsum(lengths)
    expected = []
    for start, end in zip(ends - lengths, ends, strict=True):
        steps = [start] * (obs - 1) + list(range(start, end)) + [end - 1] * after
        expected += [steps[i : i + spec.horizon] for i in range(len(steps) - spec.horizon + 1)]
    found = window_indices(ends, spec, after if more else None)
    assert found.tolist() == expected
    if more:  # every step is the current one exactly once
        assert found[:, obs - 1].tolist() == list(range(ends[-1]))


def test_windows_hold_observations_and_actions_of_their_steps():
    episodes = Episodes(
        np.arange(10.0)[:, None], -np.arange(10.0)[:, None], np.array([4, 10]), np.array([0, 5])
    )
    table = windows(episodes, ChunkSpec(3, 2, 2))
    assert table["obs"].dtype == table["action"].dtype == torch.float32
    assert table["obs"][0, :, 0].tolist() == [0, 0]
    assert table["action"][0, :, 0].tolist() == [0, 0, -1]
    assert table["action"][3, :, 0].tolist() == [-2, -3, -3]
    assert table["obs"][4, :, 0].tolist() == [4, 4]  # the next episode is padded by its own first step
    with pytest.raises(InputError, match="long enough"):
        windows(episodes, ChunkSpec(16, 1, 1))


def test_episodes_are_checked_and_kept(tmp_path):
    episodes = Episodes(np.zeros((5, 2)), np.ones((5, 1)), np.array([2, 5]), np.array([0, 1]))
    assert episodes.starts.tolist() == [0, 2]
    episodes.save(tmp_path / "e.npz")
    again = Episodes.load(tmp_path / "e.npz")
    for name in ("obs", "actions", "ends", "tasks"):
        np.testing.assert_array_equal(getattr(again, name), getattr(episodes, name))
    with pytest.raises(InputError, match="increase"):
        Episodes(np.zeros((5, 2)), np.ones((5, 1)), np.array([5, 5]), np.array([0, 1]))
    with pytest.raises(InputError, match="one action per observation"):
        Episodes(np.zeros((5, 2)), np.ones((4, 1)), np.array([5]), np.array([0]))
    np.savez(tmp_path / "half.npz", obs=np.zeros((1, 1)))
    with pytest.raises(InputError, match="lacks the arrays actions, ends, tasks"):
        Episodes.load(tmp_path / "half.npz")
    with pytest.raises(InputError, match="no file at"):
        Episodes.load(tmp_path / "none.npz")


def test_a_shift_moves_on_and_repeats_the_end():
    prediction = torch.arange(4.0)[None, :, None]
    assert shift(prediction, 2)[0, :, 0].tolist() == [2, 3, 3, 3]
    assert shift(prediction, 0).equal(prediction)
    assert shift(prediction, 4)[0, :, 0].tolist() == [3, 3, 3, 3]
    with pytest.raises(InputError):
        shift(prediction, 5)


def test_limits_map_to_one_and_a_constant_to_zero():
    data = torch.tensor([[0.0, 5.0, 2.0, 7.0], [4.0, 5.0, -6.0, 9.0]])
    fitted = LinearNormalizer.fit(data, identity_dims=[3])
    assert fitted.normalize(data).tolist() == [[-1, 0, 1, 7], [1, 0, -1, 9]]
    assert fitted.scale.tolist() == [0.5, 1.0, 0.25, 1.0]  # 2 / (max - min)
    assert fitted.offset.tolist() == [-1.0, -5.0, 0.5, 0.0]  # -1 - scale min, or -min
    assert fitted.is_identity([3])
    assert not fitted.is_identity([0, 3])


def test_a_gaussian_normaliser_has_mean_0_and_deviation_1():
    data = torch.randn(500, 3, generator=torch.Generator().manual_seed(0)) * 4 + 7
    normal = LinearNormalizer.fit(data, mode="gaussian").normalize(data)
    torch.testing.assert_close(normal.mean(0), torch.zeros(3), atol=1e-5, rtol=0)
    torch.testing.assert_close(normal.std(0, correction=0), torch.ones(3), atol=1e-5, rtol=0)


@pytest.mark.parametrize("mode", ["limits", "gaussian"])
def test_normalising_and_back_changes_nothing(mode):
    data = torch.randn(50, 2, 3) * torch.tensor([1e-3, 1.0, 1e3])
    fitted = LinearNormalizer.fit(data, mode=mode)
    error = (fitted.unnormalize(fitted.normalize(data)) - data).abs().amax((0, 1))
    # A few roundings of float32, in units of each dimension's spread.
    assert (error < 1e-6 * (data.amax((0, 1)) - data.amin((0, 1)))).all()


@pytest.mark.parametrize(
    "call",
    [
        lambda: LinearNormalizer.fit(torch.zeros(0, 3)),
        lambda: LinearNormalizer.fit(torch.tensor([[float("nan")]])),
        lambda: LinearNormalizer.fit(torch.zeros(2, 3), identity_dims=[3]),
        lambda: LinearNormalizer.fit(torch.zeros(2, 3), mode="robust"),
        lambda: LinearNormalizer(torch.zeros(2), torch.zeros(2)),
    ],
)
def test_normalisers_refuse_bad_data(call):
    with pytest.raises(InputError):
        call()


@pytest.mark.parametrize("network", ["unet", "transformer"])
def test_a_policy_directory_gives_the_policy_back(tmp_path, network):
    torch.manual_seed(1)
    data = torch.randn(20, 2)
    policy = NativePolicy(tiny(network=network), None, LinearNormalizer.fit(data)).eval()
    policy.save_pretrained(tmp_path / "p")
    assert sorted(p.name for p in (tmp_path / "p").iterdir()) == [
        "config.json",
        "model.safetensors",
        "normalizer.json",
    ]
    again = load_host(tmp_path / "p")
    assert again.config == policy.config
    obs, x = {"obs": torch.randn(3, 2, 4)}, torch.randn(3, 8, 2)
    assert torch.equal(again.denoise(x, 5, again.encode(obs)), policy.denoise(x, 5, policy.encode(obs)))
    assert torch.equal(again.normalizer.scale, policy.normalizer.scale)


def test_a_spoiled_policy_directory_is_refused(tmp_path):
    folder = tmp_path / "p"
    NativePolicy(tiny()).save_pretrained(folder)
    record = json.loads((folder / "config.json").read_text())

    def spoil(**changes):
        (folder / "config.json").write_text(json.dumps(record | changes))
        with pytest.raises(ArtifactError):
            NativePolicy.from_pretrained(folder)

    spoil(format_version=99)
    spoil(kind="other")
    spoil(colour="red")
    spoil(down_dims=[16, 16])
    (folder / "config.json").write_text(json.dumps(record))
    (folder / "normalizer.json").write_text("{}")
    with pytest.raises(ArtifactError):
        NativePolicy.from_pretrained(folder)
    (tmp_path / "empty").mkdir()
    with pytest.raises(ArtifactError, match="no policy"):
        NativePolicy.from_pretrained(tmp_path / "empty")


def test_configurations_that_cannot_work_are_refused():
    with pytest.raises(InputError, match="multiple of 2"):
        tiny(horizon=7)
    with pytest.raises(InputError, match="n_action_steps"):
        tiny(n_action_steps=8)
    with pytest.raises(InputError, match="network"):
        tiny(network="mlp")
    policy = NativePolicy(tiny())
    with pytest.raises(InputError, match=r"\[B, 2, 4\]"):
        policy.encode({"obs": torch.zeros(1, 3, 4)})
