"""Policies of other libraries: the real LeRobot class and the original library's layout, converted to streams."""

import copy
from types import SimpleNamespace

import pytest
import torch
from noiseworks.core.errors import ArtifactError, InputError
from noiseworks.kits.policies import ConditionalUnet1D, LinearNormalizer, as_host, make_scheduler
from noiseworks.streaming_dp import (
    StreamingPolicy,
    TrainConfig,
    convert,
    load_converted,
    train,
)
from noiseworks.streaming_dp.hosts import save_converted
from torch import nn

STATE, ENVIRONMENT = "observation.state", "observation.environment_state"
SETTINGS = {"max_steps": 4, "batch_size": 8, "warmup_steps": 1, "learning_rate": 1e-2, "device": "cpu"}


def lerobot():
    """LeRobot's own class, tiny, with drawn weights."""
    modeling = pytest.importorskip("lerobot.policies.diffusion.modeling_diffusion")
    from lerobot.configs.types import FeatureType, PolicyFeature

    config = modeling.DiffusionConfig(
        n_obs_steps=2,
        horizon=8,
        n_action_steps=4,
        down_dims=(8, 16),
        n_groups=4,
        diffusion_step_embed_dim=8,
        num_train_timesteps=14,
        input_features={
            STATE: PolicyFeature(FeatureType.STATE, (3,)),
            ENVIRONMENT: PolicyFeature(FeatureType.ENV, (5,)),
        },
        output_features={"action": PolicyFeature(FeatureType.ACTION, (2,))},
        device="cpu",
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return modeling.DiffusionPolicy(config)


class Lookup(nn.ModuleDict):
    """A normaliser per entry, as the original library's."""


class OriginalPolicy(nn.Module):
    """The attributes of the original library's low-dimensional U-Net policy."""

    def __init__(self):
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.model = ConditionalUnet1D(
                2, global_cond_dim=16, diffusion_step_embed_dim=8, down_dims=(8, 16)
            )
        both = {"action": LinearNormalizer(torch.tensor([2.0, 3.0]), torch.zeros(2))}
        self.normalizer = Lookup(both | {"obs": LinearNormalizer.identity(8)})
        self.noise_scheduler = make_scheduler(14)
        self.horizon, self.n_obs_steps, self.n_action_steps, self.action_dim = 8, 2, 4, 2
        self.obs_as_global_cond, self.obs_as_local_cond, self.oa_step_convention = True, False, True


KINDS = pytest.mark.parametrize("make", [lerobot, OriginalPolicy], ids=["lerobot", "original"])


def look(make, rows, steps=None):
    shape = (rows,) if steps is None else (rows, steps)
    generator = torch.Generator().manual_seed(3)
    value = torch.rand((*shape, 8), generator=generator)
    return {"obs": value} if make is OriginalPolicy else {STATE: value[..., :3], ENVIRONMENT: value[..., 3:]}


@KINDS
@torch.inference_mode()
def test_equal_levels_give_the_originals_output_and_the_original_stays(make):
    policy = make()
    before = copy.deepcopy(policy.state_dict())
    host, made = as_host(policy), convert(policy, n_action_steps=1)
    assert (made.n_action_steps, host.n_action_steps) == (1, 4)
    x, cond = torch.randn(3, 8, 2), host.encode(look(make, 3, 2))
    expected = host.denoise(x, 9, cond)
    torch.testing.assert_close(made.denoise(x, torch.full((3, 8), 9), cond), expected, rtol=1e-5, atol=1e-5)
    unequal = made.denoise(x, torch.arange(8).expand(3, 8), cond)
    assert not torch.allclose(unequal, expected, atol=1e-4)
    assert before.keys() == policy.state_dict().keys()
    assert all(torch.equal(before[name], tensor) for name, tensor in policy.state_dict().items())


@KINDS
@pytest.mark.filterwarnings("ignore")
def test_a_converted_policy_is_tuned_streams_and_comes_back(make, tmp_path):
    policy = make()
    table = look(make, 32, 2) | {"action": torch.rand(32, 8, 2, generator=torch.Generator().manual_seed(4))}
    start = convert(policy, n_action_steps=1)
    first = copy.deepcopy(start.policy.state_dict())
    tuned = train(start, table, tmp_path / "run", TrainConfig(**SETTINGS), progress=False)
    assert type(tuned) is type(start)
    assert not tuned.policy.training
    changed = [name for name, t in tuned.policy.state_dict().items() if not torch.equal(t, first[name])]
    assert len(changed) > 20
    assert not any("normalizer" in name for name in changed)

    back = load_converted(tmp_path / "run" / "model", policy)
    one, two = (StreamingPolicy(host, num_envs=2, seed=5) for host in (tuned, back))
    obs = look(make, 2)
    for _ in range(3):
        actions = one.act(obs)
        assert torch.equal(actions, two.act(obs))
        assert bool(actions.isfinite().all())
    assert one.stats.nfes == [2, 2, 2]  # 14 levels over 7 chunks
    plain = StreamingPolicy(convert(policy, n_action_steps=1), num_envs=2, seed=5)
    assert not torch.allclose(plain.act(obs), actions, atol=1e-4)


def test_what_was_not_converted_and_what_does_not_fit_are_refused(tmp_path):
    policy = OriginalPolicy()
    with pytest.raises(InputError, match="convert it first"):
        save_converted(as_host(policy), tmp_path / "a")
    save_converted(convert(policy), tmp_path / "a")
    other = OriginalPolicy()
    other.model = ConditionalUnet1D(2, global_cond_dim=16, diffusion_step_embed_dim=8, down_dims=(16, 16))
    with pytest.raises(ArtifactError, match="other sizes"):
        load_converted(tmp_path / "a", other)
    with pytest.raises(InputError, match="convert it first"):
        train(as_host(policy), {}, tmp_path / "b")
    bare = SimpleNamespace(**vars(as_host(policy)) | {"model": nn.Linear(2, 2)})
    bare.denoise, bare.encode = (lambda *_: None), (lambda *_: None)
    with pytest.raises(InputError, match="no diffusion_step_encoder"):
        convert(bare)
