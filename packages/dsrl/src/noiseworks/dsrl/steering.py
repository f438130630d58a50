"""The steered policy: the frozen policy with the noise that the actor chooses; only the actor is saved."""

from pathlib import Path

import numpy as np
import torch
from gymnasium.spaces import Box
from noiseworks.core.artifacts import load_artifact, save_artifact
from noiseworks.core.errors import ArtifactError, InputError
from noiseworks.dsrl.decoder import NoiseDecoder, noise_dim, untie
from noiseworks.dsrl.options import Decoding
from stable_baselines3 import SAC
from stable_baselines3.common.torch_layers import FlattenExtractor
from stable_baselines3.sac.policies import Actor

KIND = "dsrl/noise-actor"


class SteeredPolicy:
    """Acts with the chunk that a frozen policy makes of the actor's noise, or of normal noise without an actor.

    Args:
        decoder: The frozen policy.
        actor: The noise actor of a learner; None for the frozen policy itself.
        decoding: b, and how noise is tied.
        deterministic: Whether the actor's mode is taken instead of a draw.
        seed: Of the draws.
    """

    def __init__(
        self,
        decoder: NoiseDecoder,
        actor: Actor | None = None,
        decoding: Decoding | None = None,
        *,
        deterministic: bool = False,
        seed: int = 0,
    ) -> None:
        self.decoder, self.actor, self.decoding = decoder, actor, decoding or Decoding()
        self.deterministic, self.generator = deterministic, torch.Generator().manual_seed(seed)

    @torch.no_grad()
    def act(self, obs: np.ndarray) -> np.ndarray:
        """Return chunks [B, C, Da] for observations [B, Do]."""
        tie, shape = self.decoding.tie, self.decoder.noise_shape
        # With and without an actor the same numbers are drawn.
        normal = torch.randn((len(obs), noise_dim(shape, tie)), generator=self.generator)
        if self.actor is None:
            noise = normal
        else:
            mean, log_std, _ = self.actor.get_action_dist_params(torch.as_tensor(obs, dtype=torch.float32))
            before = mean if self.deterministic else mean + log_std.exp() * normal
            noise = self.decoding.magnitude * before.tanh()
        return self.decoder.decode(obs, untie(noise, shape, tie)).cpu().numpy()

    def save_pretrained(self, path: str | Path) -> None:
        """Write the actor; the frozen policy is named when it is loaded.

        Raises:
            InputError: When there is no actor.
        """
        if self.actor is None:
            raise InputError("the policy has no noise actor yet: train one first")
        sizes = [layer.out_features for layer in self.actor.latent_pi if isinstance(layer, torch.nn.Linear)]
        config = {
            "decoding": vars(self.decoding),
            "obs_dim": int(np.prod(self.actor.observation_space.shape)),
            "noise_shape": list(self.decoder.noise_shape),
            "net_arch": sizes,
        }
        save_artifact(path, KIND, config, self.actor.state_dict())

    @classmethod
    def from_pretrained(
        cls, path: str | Path, decoder: NoiseDecoder, *, deterministic: bool = False, seed: int = 0
    ) -> "SteeredPolicy":
        """Read an actor for a frozen policy.

        Raises:
            ArtifactError: When it is missing, incomplete or of a policy with other noise.
        """
        config, tensors = load_artifact(path, KIND)
        try:
            decoding = Decoding(**config["decoding"])
            if tuple(config["noise_shape"]) != tuple(decoder.noise_shape):
                raise InputError(
                    f"it starts noise of shape {config['noise_shape']}, the policy {decoder.noise_shape}"
                )
            width = noise_dim(decoder.noise_shape, decoding.tie)
            actor = build_actor(config["obs_dim"], width, config["net_arch"], decoding.magnitude)
            actor.load_state_dict(tensors)
        except (KeyError, TypeError, RuntimeError, InputError) as error:
            raise ArtifactError(
                f"{path} holds no noise actor for this policy: {str(error).splitlines()[0]}"
            ) from error
        return cls(decoder, actor.eval(), decoding, deterministic=deterministic, seed=seed)


def build_actor(obs_dim: int, noise: int, net_arch: list[int], magnitude: float) -> Actor:
    """Return an untrained noise actor as stable-baselines3's SAC builds it."""
    seen = Box(-np.inf, np.inf, (obs_dim,), np.float32)
    space = Box(-magnitude, magnitude, (noise,), np.float32)
    extractor = FlattenExtractor(seen)
    return Actor(seen, space, net_arch, extractor, extractor.features_dim, torch.nn.Tanh)


def steered(learner: SAC, *, deterministic: bool = False, seed: int = 0) -> SteeredPolicy:
    """Return the policy that a learner in a `LatentNoiseVecEnv` has found."""
    env = learner.get_env()
    return SteeredPolicy(env.decoder, learner.actor, env.decoding, deterministic=deterministic, seed=seed)
