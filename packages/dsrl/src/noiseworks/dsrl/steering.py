"""The steered policy: the frozen policy with the noise that the actor chooses; only the actor is saved."""

from pathlib import Path

import numpy as np
import torch
from gymnasium.spaces import Box
from noiseworks.core.artifacts import load_artifact, rebuilding, save_artifact
from noiseworks.core.checks import check_number
from noiseworks.core.errors import InputError
from noiseworks.dsrl.decoder import NoiseDecoder, noise_dim, untie
from noiseworks.dsrl.networks import normed
from noiseworks.dsrl.noise_aliasing import DSRLNA
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
            "layer_norm": any(isinstance(layer, torch.nn.LayerNorm) for layer in self.actor.latent_pi),
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
        with rebuilding(path, "noise actor for this policy"):
            decoding = Decoding(**config["decoding"])
            if tuple(config["noise_shape"]) != tuple(decoder.noise_shape):
                raise InputError(
                    f"it starts noise of shape {config['noise_shape']}, the policy {decoder.noise_shape}"
                )
            width = noise_dim(decoder.noise_shape, decoding.tie)
            actor = build_actor(config["obs_dim"], width, config["net_arch"], decoding.magnitude)
            if config.get("layer_norm", False):
                actor.latent_pi = normed(actor.latent_pi)
            actor.load_state_dict(tensors)
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


class BestOfPolicy:
    """Best-of-N: chunks of the frozen policy from normal noise, of which the critic of real actions takes the best.

    The cheapest thing to do with that critic, and so what an actor of noise has to beat.

    Args:
        learner: A DSRL-NA learner.
        candidates: Chunks N that are ranked.
        seed: Of the noise.
    """

    def __init__(self, learner: DSRLNA, candidates: int = 16, seed: int = 0) -> None:
        check_number("candidates", candidates, low=1, integer=True)
        self.learner, self.candidates = learner, candidates
        self.decoder, self.generator = learner.latent.decoder, torch.Generator().manual_seed(seed)

    @torch.no_grad()
    def act(self, obs: np.ndarray) -> np.ndarray:
        """Return chunks [B, C, Da] for observations [B, Do]."""
        count, latent = self.candidates, self.learner.latent
        seen = np.repeat(np.asarray(obs, np.float32), count, axis=0)
        noise = torch.randn((len(seen), *self.learner.action_space.shape), generator=self.generator)
        chunks = latent.decode(seen, noise)
        read = torch.from_numpy(seen).to(self.learner.device)
        values = self.learner.combine(self.learner.action_critic(read, self.learner.scaled(chunks)))
        best = values.reshape(-1, count).argmax(1).cpu()
        return chunks.cpu().unflatten(0, (-1, count))[torch.arange(len(best)), best].numpy()
