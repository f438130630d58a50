"""Agents of CleanDiffuser as hosts: its discrete diffusion models around any of its networks over action sequences."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from noiseworks.core.errors import InputError, UnsupportedHostError
from noiseworks.kits.policies.chunking import ChunkSpec
from noiseworks.kits.policies.normalizer import LinearNormalizer
from torch import Tensor

if TYPE_CHECKING:
    from noiseworks.kits.policies.protocols import ActionNormalizer


class CleanDiffuserHost:
    """A `DenoiserHost` on a CleanDiffuser agent.

    An agent knows neither its time window nor its normalisers, which its training script holds: name them here.
    Its network is called with the condition alone, as its `sample` does under `w_cfg=1`.

    Args:
        agent: A `DiscreteDiffusionSDE` or `DDPM` object.
        horizon: Actions of a prediction.
        n_obs_steps: Observations that it reads.
        n_action_steps: Actions executed of a prediction.
        action_dim: Width of an action.
        normalizer: Of the actions; identity by default.
        obs_normalizer: Of the observations; identity by default.
        flatten_obs: Whether the condition network takes [B, To Do] (as for `DiT1d`) rather than [B, To, Do].
        use_ema: Whether the averaged weights are used.

    Raises:
        InputError: When a size is out of range.
        UnsupportedHostError: When the agent's noise is continuous, it fixes parts of its samples (inpainting), is
            guided by a classifier or clips to a range that is not symmetric.
    """

    def __init__(
        self,
        agent: Any,
        *,
        horizon: int,
        n_obs_steps: int,
        n_action_steps: int,
        action_dim: int,
        normalizer: "ActionNormalizer | None" = None,
        obs_normalizer: LinearNormalizer | None = None,
        flatten_obs: bool = False,
        use_ema: bool = True,
    ) -> None:
        self.chunk = ChunkSpec(horizon, n_obs_steps, n_action_steps)
        self.horizon, self.n_obs_steps, self.n_action_steps = horizon, n_obs_steps, n_action_steps
        self.action_dim, self.flatten_obs, self.agent = action_dim, flatten_obs, agent
        if getattr(agent, "classifier", None) is not None:
            raise UnsupportedHostError("agents that are guided by a classifier are not supported")
        mask = getattr(agent, "fix_mask", None)
        if mask is not None and bool(torch.as_tensor(mask).any()):
            raise UnsupportedHostError(
                "the agent fixes parts of its samples (fix_mask), which is not supported"
            )
        self.scheduler = agent_scheduler(agent)
        self.policy = agent.model_ema if use_ema else agent.model
        self.policy.eval()  # the condition network drops conditions while it trains
        self.model = self.policy["diffusion"]
        self.normalizer = normalizer or LinearNormalizer.identity(action_dim)
        self.obs_normalizer = obs_normalizer

    def encode(self, obs: Mapping[str, Tensor]) -> Tensor:
        """Return what the agent's condition network makes of observations `obs` [B, To, Do].

        Raises:
            InputError: When `obs` is missing or the number of steps is wrong.
        """
        if "obs" not in obs or obs["obs"].shape[1] != self.n_obs_steps:
            found = tuple(obs["obs"].shape) if "obs" in obs else sorted(obs)
            raise InputError(f"an agent reads obs of shape [B, {self.n_obs_steps}, Do], got {found}")
        value = obs["obs"].to(next(self.policy.parameters()).device, torch.float32)
        value = value if self.obs_normalizer is None else self.obs_normalizer.normalize(value)
        return self.policy["condition"](value.flatten(1) if self.flatten_obs else value)

    def denoise(self, x: Tensor, k: Tensor | int, cond: Tensor) -> Tensor:
        """Return the network's output [B, T, Da] at diffusion steps k, [B] or one number."""
        # Whole numbers as in training: its positional embedding gives other features for floats.
        steps = torch.as_tensor(k, device=x.device).long()
        return self.model(x, steps.expand(len(x)) if steps.ndim == 0 else steps, cond)


def agent_scheduler(agent: Any) -> Any:
    """Return a diffusers scheduler on an agent's own noise levels, prediction and clipping.

    `DDPM` holds abar as `bar_alpha`; `DiscreteDiffusionSDE` holds sqrt(abar) and sqrt(1 - abar) as `alpha` and
    `sigma`.

    Raises:
        UnsupportedHostError: When the agent has no discrete levels of a variance-preserving process.
    """
    from diffusers import DDPMScheduler

    alpha, sigma = getattr(agent, "alpha", None), getattr(agent, "sigma", None)
    bar = getattr(agent, "bar_alpha", None)
    if bar is None and isinstance(alpha, Tensor) and isinstance(sigma, Tensor):
        bar = alpha.double().square()
        if not torch.allclose(bar + sigma.double().square(), torch.ones_like(bar), atol=1e-4):
            raise UnsupportedHostError(f"the noise of {type(agent).__name__} does not preserve the variance")
    if not isinstance(bar, Tensor) or not hasattr(agent, "predict_noise"):
        raise UnsupportedHostError(
            f"{type(agent).__name__} has no discrete noise levels; DDPM and DiscreteDiffusionSDE agents are supported"
        )
    bar = bar.detach().double().cpu()
    inside = bool((bar > 0).all()) and bool((bar < 1).all())
    if not inside or not bool((bar.diff() < 0).all()):
        raise UnsupportedHostError(
            f"the noise levels of {type(agent).__name__} do not rise from clean to noisy"
        )
    betas = 1 - bar / torch.cat((torch.ones(1, dtype=bar.dtype), bar[:-1]))
    limit = _clip_range(agent)
    return DDPMScheduler(
        num_train_timesteps=len(bar),
        trained_betas=betas.float().tolist(),
        variance_type="fixed_small",
        clip_sample=limit is not None,
        clip_sample_range=1.0 if limit is None else limit,
        prediction_type="epsilon" if agent.predict_noise else "sample",
    )


def _clip_range(agent: Any) -> float | None:
    low, high = getattr(agent, "x_min", None), getattr(agent, "x_max", None)
    if low is None and high is None:
        return None
    if low is not None and high is not None:
        values = torch.cat([(-torch.as_tensor(low)).flatten(), torch.as_tensor(high).flatten()])
        if bool((values == values[0]).all()) and float(values[0]) > 0:
            return float(values[0])
    raise UnsupportedHostError("the agent clips to a range that is not the same on both sides in all entries")
