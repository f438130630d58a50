"""The trajectory model: denoiser and scale together, sampled with or without a policy, saved as an artifact."""

from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from noiseworks.core.artifacts import load_artifact, rebuilding, save_artifact
from noiseworks.core.checks import check_number
from noiseworks.core.errors import InputError
from noiseworks.policy_guided_diffusion.denoiser import Denoiser
from noiseworks.policy_guided_diffusion.guidance import Guide
from noiseworks.policy_guided_diffusion.options import Architecture, Guidance, Sampling
from noiseworks.policy_guided_diffusion.policies import as_log_prob
from noiseworks.policy_guided_diffusion.sampling import sample_windows
from noiseworks.policy_guided_diffusion.windows import Scaler, Trajectories
from torch import Tensor, nn

KIND = "policy-guided-diffusion/model"


class TrajectoryDiffusion(nn.Module):
    """A diffusion model of windows of trajectories.

    Args:
        obs_dim: Width of an observation.
        action_dim: Width of an action.
        architecture: Sizes.
        about: What it was trained on, for JSON.
    """

    def __init__(
        self,
        obs_dim: int,
        action_dim: int,
        architecture: Architecture | None = None,
        about: dict[str, Any] | None = None,
    ) -> None:
        super().__init__()
        check_number("obs_dim", obs_dim, low=1, integer=True)
        check_number("action_dim", action_dim, low=1, integer=True)
        self.architecture, self.about = architecture or Architecture(), about or {}
        self.scaler = Scaler(obs_dim, action_dim)
        self.denoiser = Denoiser(self.scaler.channels, self.architecture)

    @torch.no_grad()
    def sample(
        self,
        n: int,
        policy: Any = None,
        guidance: Guidance | None = None,
        sampling: Sampling | None = None,
        *,
        coefficients: Tensor | None = None,
        seed: int = 0,
    ) -> Trajectories:
        """Return synthetic trajectories, guided towards a policy if one is given.

        Args:
            n: How many.
            policy: See `policies.as_log_prob`; None for samples of the data's own behaviour.
            guidance: How it guides.
            sampling: The solver's settings.
            coefficients: A guidance coefficient for each trajectory, [n], instead of the guidance's own: a whole sweep
                in one call.
            seed: Of all noise; the same with and without a policy.
        """
        check_number("n", n, low=1, integer=True)
        sampling = sampling or Sampling()
        length = replace(self.architecture, horizon=sampling.length or self.architecture.horizon).horizon
        if coefficients is not None and coefficients.shape != (n,):
            raise InputError(f"coefficients must have shape ({n},), got {tuple(coefficients.shape)}")
        device, generator = self.scaler.mean.device, torch.Generator().manual_seed(seed)
        log_prob = None if policy is None else as_log_prob(policy)
        parts = []
        for first in range(0, n, sampling.together):
            count = min(sampling.together, n - first)
            noise = torch.randn((count, length, self.scaler.channels), generator=generator).to(device)
            guide = None
            if log_prob is not None:
                own = None if coefficients is None else coefficients[first : first + count]
                guide = Guide(log_prob, self.scaler, guidance or Guidance(), own)
            parts.append(sample_windows(self.denoiser, noise, sampling, guide, generator))
        return self.scaler.decode(torch.cat(parts))

    def save_pretrained(self, path: str | Path) -> None:
        """Write config and weights atomically."""
        config = {
            "obs_dim": self.scaler.obs_dim,
            "action_dim": self.scaler.action_dim,
            "architecture": asdict(self.architecture),
            "about": self.about,
        }
        save_artifact(path, KIND, config, self.state_dict())

    @classmethod
    def from_pretrained(cls, path: str | Path) -> "TrajectoryDiffusion":
        """Read a model that `save_pretrained` wrote.

        Raises:
            ArtifactError: When it is missing, incomplete or of another kind.
        """
        config, tensors = load_artifact(path, KIND)
        with rebuilding(path, "whole model"):
            model = cls(
                config["obs_dim"],
                config["action_dim"],
                Architecture(**config["architecture"]),
                config["about"],
            )
            model.load_state_dict({name: t.float() for name, t in tensors.items()})
        return model.eval().requires_grad_(False)
