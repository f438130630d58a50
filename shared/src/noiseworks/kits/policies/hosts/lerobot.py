"""LeRobot's `DiffusionPolicy` and `MultiTaskDiTPolicy` as hosts: sizes from their configuration, parts by attribute."""

import sys
from collections.abc import Mapping
from contextlib import redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from noiseworks.core.artifacts import read_json, read_tensors
from noiseworks.core.errors import ArtifactError, UnsupportedHostError
from noiseworks.kits.policies.normalizer import LinearNormalizer
from noiseworks.kits.policies.observing import check_observation
from noiseworks.kits.policies.steps import flow_times
from torch import Tensor

if TYPE_CHECKING:
    from noiseworks.kits.policies.protocols import ActionNormalizer

_LANGUAGE = ("observation.language.tokens", "observation.language.attention_mask")
_IMAGES, _STATES = "observation.images", ("observation.state", "observation.environment_state")
# The two numbers that each of LeRobot's modes maps to -1 and 1 (or, for the moments, to 0 and 1).
_MODES = {"MIN_MAX": ("min", "max"), "QUANTILES": ("q01", "q99"), "QUANTILE10": ("q10", "q90")}


@dataclass(frozen=True)
class Statistics:
    """Normalisation by one entry's statistics: (x - low) scale + base, with tensors that broadcast over [B, To, ...].

    Attributes:
        low: What is subtracted first, so that entries without a range lose no digits.
        scale: Factor.
        base: Where `low` goes.
    """

    low: Tensor
    scale: Tensor
    base: float

    def normalize(self, x: Tensor) -> Tensor:
        """Return x in normalised units."""
        return (x - self.low.to(x)) * self.scale.to(x) + self.base

    def unnormalize(self, x: Tensor) -> Tensor:
        """Return normalised x in the data's units."""
        return (x - self.base) / self.scale.to(x) + self.low.to(x)


class LeRobotHost:
    """A `DenoiserHost` on a LeRobot policy object.

    Observations are its batch keys with a time axis: `observation.state` [B, To, Ds],
    `observation.environment_state`, `observation.images.*`. Since release 0.4 a policy speaks normalised units
    and its processors normalise outside of it; pass normalisers to speak environment units, or load the policy's
    directory with `load_host`, which reads them.

    Args:
        policy: The policy object.
        normalizer: Of the actions; identity by default.
        observations: Statistics of observations by name.

    Raises:
        UnsupportedHostError: When an attribute that is needed is missing.
    """

    def __init__(
        self,
        policy: Any,
        normalizer: "ActionNormalizer | None" = None,
        observations: Mapping[str, Statistics] | None = None,
    ) -> None:
        parts = ("unet", "noise_scheduler", "_prepare_global_conditioning")
        missing = [name for name in parts if not hasattr(getattr(policy, "diffusion", None), name)]
        if missing:
            raise UnsupportedHostError(
                f"{type(policy).__name__} lacks diffusion.{', diffusion.'.join(missing)}"
            )
        config = policy.config
        if not hasattr(config, "input_features"):
            raise UnsupportedHostError(f"{type(policy).__name__} lacks config.input_features: update LeRobot")
        self.policy, self.model, self.scheduler = policy, policy.diffusion, policy.diffusion.noise_scheduler
        self.horizon, self.n_obs_steps = config.horizon, config.n_obs_steps
        self.n_action_steps, self.action_dim = config.n_action_steps, config.action_feature.shape[0]
        self.image_keys = list(config.image_features or ())
        read = {*self.image_keys, *_STATES}
        self.observation_shapes = {
            name: tuple(feature.shape) for name, feature in config.input_features.items() if name in read
        }
        self.normalizer = normalizer or LinearNormalizer.identity(self.action_dim)
        self.observations = dict(observations or {})
        policy.eval()

    def encode(self, obs: Mapping[str, Tensor]) -> Tensor:
        """Return the condition [B, G] of observations with a time axis.

        Raises:
            InputError: When an entry of the configuration is missing or has another shape.
            NonFiniteError: When one holds NaN or infinity.
        """
        device = next(self.model.parameters()).device
        found = check_observation(obs, self.observation_shapes, (None, self.n_obs_steps))
        batch = {name: value.to(device) for name, value in found.items()}
        for name, statistics in self.observations.items():
            if name in batch:
                batch[name] = statistics.normalize(batch[name])
        if self.image_keys:
            batch[_IMAGES] = torch.stack([batch[key] for key in self.image_keys], dim=-4)
        return self.model._prepare_global_conditioning(batch)

    def denoise(self, x: Tensor, k: Tensor | int, cond: Tensor) -> Tensor:
        """Return the network's output [B, T, Da] at diffusion steps k, [B] or one number."""
        steps = torch.as_tensor(k, device=x.device)
        return self.model.unet(x, steps.expand(len(x)) if steps.ndim == 0 else steps, global_cond=cond)


class MultiTaskHost:
    """A `DenoiserHost` on LeRobot's multi-task DiT policy, trained by diffusion or by flow matching.

    Observations are its batch keys: `observation.state` [B, To, Ds], `observation.images.*`, and the instruction's
    `observation.language.tokens` and `.attention_mask` [B, To, L], of which the last are read. A flow's levels are the
    N = `num_integration_steps` of its configuration: level k is the time 1 - (k + 1) / N.

    Args:
        policy: The policy object.
        normalizer: Of the actions; identity by default.

    Raises:
        UnsupportedHostError: When its objective is neither.
    """

    def __init__(self, policy: Any, normalizer: "ActionNormalizer | None" = None) -> None:
        config = policy.config
        self.flow = config.objective == "flow_matching"
        if not self.flow and not hasattr(policy.objective, "noise_scheduler"):
            raise UnsupportedHostError(
                f"objective {config.objective!r} is not supported; use diffusion or flow_matching"
            )
        self.policy, self.model = policy, policy.noise_predictor
        self.horizon, self.n_obs_steps = config.horizon, config.n_obs_steps
        self.n_action_steps, self.action_dim = config.n_action_steps, config.action_feature.shape[0]
        if self.flow:
            from diffusers import FlowMatchEulerDiscreteScheduler

            self.scheduler = FlowMatchEulerDiscreteScheduler(config.num_integration_steps)
            self._times = flow_times(config.num_integration_steps).flip(0)[1:]
        else:
            self.scheduler = policy.objective.noise_scheduler
        self.image_keys = list(config.image_features or ())
        self.observation_shapes = {
            name: tuple(feature.shape)
            for name, feature in config.input_features.items()
            if name in {*self.image_keys, _STATES[0]}
        } | dict.fromkeys(_LANGUAGE)
        self.normalizer = normalizer or LinearNormalizer.identity(self.action_dim)
        policy.eval()

    def encode(self, obs: Mapping[str, Tensor]) -> Tensor:
        """Return the condition [B, G] of observations with a time axis.

        Raises:
            InputError: When an entry is missing or has another shape.
            NonFiniteError: When one holds NaN or infinity.
        """
        device = next(self.model.parameters()).device
        found = check_observation(obs, self.observation_shapes, (None, self.n_obs_steps))
        batch = {name: value.to(device) for name, value in found.items()}
        for name in _LANGUAGE:
            batch[name] = batch[name][:, -1]
        if self.image_keys:
            batch[_IMAGES] = torch.stack([batch[key] for key in self.image_keys], dim=-4)
        return self.policy.observation_encoder.encode(batch)

    def denoise(self, x: Tensor, k: Tensor | int, cond: Tensor) -> Tensor:
        """Return the network's output [B, T, Da] at levels k, [B] or one number; a flow's as noise less data."""
        steps = torch.as_tensor(k, device=x.device)
        steps = steps.expand(len(x)) if steps.ndim == 0 else steps
        if self.flow:
            times = self._times.to(x.device, x.dtype)[steps]
            return self.model(x, times, conditioning_vec=cond).neg()
        return self.model(x, steps, conditioning_vec=cond)


def load_lerobot(folder: str | Path, *, device: str = "cpu") -> LeRobotHost:
    """Return the policy of a directory that LeRobot saved, in environment units.

    Args:
        folder: Holds `config.json`, `model.safetensors` and the two processors' files.
        device: Where the policy goes.

    Raises:
        ArtifactError: When the processors are missing or hold no statistics that fit.
        UnsupportedHostError: When LeRobot is not installed.
    """
    try:
        from lerobot.configs.policies import PreTrainedConfig
        from lerobot.policies.diffusion.modeling_diffusion import DiffusionPolicy
    except ImportError as error:
        raise UnsupportedHostError(
            f"{folder} is a policy of LeRobot, which reads it: pip install 'noiseworks-core[lerobot]'"
        ) from error
    folder = Path(folder)
    before = read_statistics(folder, "policy_preprocessor.json", "normalizer_processor")
    after = read_statistics(folder, "policy_postprocessor.json", "unnormalizer_processor")
    with redirect_stdout(sys.stderr):  # LeRobot prints what it does
        config = PreTrainedConfig.from_pretrained(str(folder))
        config.pretrained_backbone_weights = None  # the policy's own weights follow; nothing is downloaded
        policy = DiffusionPolicy.from_pretrained(str(folder), config=config).to(device)
    observations = {name: found for name, found in before.items() if name.startswith("observation.")}
    return LeRobotHost(policy, after.get("action"), observations)


def read_statistics(folder: Path, file: str, step: str) -> dict[str, Statistics]:
    """Return the statistics of each entry that one of LeRobot's processors normalises.

    Args:
        folder: The policy's directory.
        file: The processor's file.
        step: Its step that normalises.

    Raises:
        ArtifactError: When the file, the step or a number is missing.
    """
    try:
        steps = read_json(folder / file, "processor of LeRobot")["steps"]
        found = next(one for one in steps if one.get("registry_name") == step)
        if Path(found["state_file"]).name != found["state_file"]:
            raise ArtifactError(
                f"{folder / file} names {found['state_file']!r}, a file outside of the policy's folder"
            )
        config, tensors = found["config"], read_tensors(folder / found["state_file"])
        kinds = {name: feature["type"] for name, feature in config["features"].items()}
        modes = {name: config["norm_map"].get(kind, "IDENTITY") for name, kind in kinds.items()}
        stored = {name for name in modes if any(key.startswith(f"{name}.") for key in tensors)}
        return {
            name: _statistics(tensors, name, mode, config.get("eps", 1e-8))
            for name, mode in modes.items()
            if mode != "IDENTITY" and name in stored
        }
    except (ArtifactError, KeyError, TypeError, AttributeError, StopIteration) as error:
        raise ArtifactError(
            f"{folder / file} is missing or lacks statistics ({type(error).__name__}: {error}); policies of releases "
            "before 0.4 need LeRobot's migration to processors first"
        ) from error


def _statistics(tensors: Mapping[str, Tensor], name: str, mode: str, eps: float) -> Statistics:
    if mode == "MEAN_STD":
        return Statistics(tensors[f"{name}.mean"].float(), 1 / (tensors[f"{name}.std"].float() + eps), 0.0)
    low, high = (tensors[f"{name}.{part}"].float() for part in _MODES[mode])
    return Statistics(low, 2 / torch.where(high == low, eps, high - low), -1.0)
