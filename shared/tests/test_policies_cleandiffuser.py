"""CleanDiffuser agents as hosts, on stand-ins with its attributes and calling conventions."""

from types import SimpleNamespace

import pytest
import torch
from noiseworks.core.errors import InputError, UnsupportedHostError
from noiseworks.kits.policies import DiffusionPolicy, LinearNormalizer, as_host, make_scheduler
from noiseworks.kits.policies.hosts.cleandiffuser import CleanDiffuserHost
from torch import nn

SIZES = {"horizon": 8, "n_obs_steps": 2, "n_action_steps": 4, "action_dim": 2}
BAR = make_scheduler(20).alphas_cumprod


class Network(nn.Module):
    """Called as its networks are: sample, whole steps, condition."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(10, 2)

    def forward(self, x, noise, condition=None):
        assert noise.dtype == torch.int64
        assert noise.shape == (len(x),)
        return torch.tanh(x + self.linear(condition.flatten(1))[:, None] + 0.01 * noise[:, None, None])


class Condition(nn.Module):
    """Drops conditions while it trains."""

    def forward(self, condition, mask=None):
        return condition * (0.0 if self.training else 1.0)


def agent(kind="sde", **changes):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        both = [nn.ModuleDict({"diffusion": Network(), "condition": Condition()}) for _ in range(2)]
    one = torch.ones(1, 8, 2)
    levels = {"bar_alpha": BAR, "alpha": 1 - make_scheduler(20).betas}
    if kind == "sde":
        levels = {"alpha": BAR.sqrt(), "sigma": (1 - BAR).sqrt()}
    common = {"diffusion_steps": 20, "predict_noise": True, "x_max": one, "x_min": -one, "fix_mask": 0.0}
    both = {"model": both[0], "model_ema": both[1], "classifier": None}
    return SimpleNamespace(**(common | levels | both | changes))


@pytest.mark.parametrize("kind", ["sde", "ddpm"])
@pytest.mark.parametrize("noise", [True, False])
@torch.inference_mode()
def test_an_agent_denoises_on_its_own_levels(kind, noise):
    made = agent(kind, predict_noise=noise)
    host = CleanDiffuserHost(
        made, **SIZES, obs_normalizer=LinearNormalizer(torch.full((5,), 2.0), torch.ones(5))
    )
    assert as_host(host) is host
    torch.testing.assert_close(host.scheduler.alphas_cumprod, BAR, rtol=0, atol=1e-6)
    assert host.scheduler.config.prediction_type == ("epsilon" if noise else "sample")
    obs = {"obs": torch.randn(3, 2, 5)}
    cond, x = host.encode(obs), torch.randn(3, 8, 2)
    torch.testing.assert_close(cond, 2 * obs["obs"] + 1)
    expected = made.model_ema["diffusion"](x, torch.full((3,), 7), cond)
    assert torch.equal(host.denoise(x, 7, cond), expected)
    chunk = DiffusionPolicy(host, num_inference_steps=5).predict_chunk(obs)
    assert chunk.actions.shape == (3, 4, 2)
    assert float(chunk.prediction.abs().max()) <= 1
    other = CleanDiffuserHost(made, **SIZES, use_ema=False, flatten_obs=True)
    assert other.encode(obs).shape == (3, 10)
    assert not torch.equal(other.denoise(x, 7, cond), expected)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"alpha": None}, "no discrete noise levels"),
        ({"sigma": BAR}, "preserve the variance"),
        ({"alpha": BAR.flip(0).sqrt(), "sigma": (1 - BAR.flip(0)).sqrt()}, "from clean to noisy"),
        ({"fix_mask": torch.ones(8, 2)}, "fix_mask"),
        ({"classifier": object()}, "classifier"),
        ({"x_max": None}, "same on both sides"),
    ],
)
def test_agents_of_another_kind_are_refused(changes, words):
    with pytest.raises(UnsupportedHostError, match=words):
        CleanDiffuserHost(agent(**changes), **SIZES)


def test_an_agent_without_its_window_or_observation_is_refused():
    with pytest.raises(UnsupportedHostError, match="time window"):
        as_host(agent())
    assert not CleanDiffuserHost(agent(x_max=None, x_min=None), **SIZES).scheduler.config.clip_sample
    with pytest.raises(InputError, match=r"\[B, 2, Do\]"):
        CleanDiffuserHost(agent(), **SIZES).encode({"obs": torch.zeros(1, 3, 5)})
