"""`MoDEModel`: denoiser, encoder and action normaliser as one model that trains, saves and loads."""

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

import torch
from noiseworks.core.artifacts import load_artifact, save_artifact
from noiseworks.core.checks import check_finite
from noiseworks.core.errors import ArtifactError, InputError, last_line
from noiseworks.kits.policies.normalizer import LinearNormalizer
from noiseworks.mode.config import KIND, MoDEConfig
from noiseworks.mode.edm import denoise
from noiseworks.mode.encoders import StateEncoder
from noiseworks.mode.network import Condition, MoDEDenoiser
from noiseworks.mode.vision import ImageEncoder
from torch import Tensor, nn


class MoDEModel(nn.Module):
    """A MoDE policy's parts; `EDMPolicy` runs it in a control loop.

    Args:
        config: Sizes and choices of the denoiser.
        encoder: Maps observations to a `Condition`.
        normalizer: Of the actions.
        denoiser: A trained denoiser, a new one by default.

    Attributes:
        horizon: Actions of a prediction.
        n_obs_steps: Observations read, 1.
        n_action_steps: Actions executed of a prediction: all of them, open loop.
        action_dim: Width of an action.
    """

    def __init__(
        self,
        config: MoDEConfig,
        encoder: nn.Module,
        normalizer: LinearNormalizer,
        denoiser: MoDEDenoiser | None = None,
    ) -> None:
        super().__init__()
        if len(normalizer.scale) != config.action_dim:
            raise InputError(
                f"the normaliser is for actions of width {len(normalizer.scale)}, the model for {config.action_dim}"
            )
        self.config, self.encoder, self.normalizer = config, encoder, normalizer
        self.denoiser = MoDEDenoiser(config) if denoiser is None else denoiser
        self.horizon = self.n_action_steps = config.chunk
        self.n_obs_steps, self.action_dim = 1, config.action_dim

    @property
    def net(self) -> nn.Module:
        """What trains and is averaged: encoder and denoiser, under the name that trainers of policies use."""
        return self

    def encode(self, obs: Mapping[str, Tensor]) -> Condition:
        """Return the condition of observations [B, 1, ...]; called once a replan."""
        return self.encoder(obs)

    def denoise(self, x: Tensor, sigma: Tensor, cond: Condition) -> Tensor:
        """Return the clean actions D(a; sigma, s, g) that noisy ones [B, T, A] stand for.

        Args:
            x: Noisy actions a.
            sigma: Noise levels above 0, [B].
            cond: Of `encode`.
        """
        context, n = self.denoiser.context(cond), self.denoiser.noise_embedding(sigma)
        return denoise(lambda a: self.denoiser(a, n, context), x, sigma, self.config.sigma_data)

    def freeze_routers(self) -> "MoDEModel":
        """Stop the routers from training, as fine-tuning does; the balancing loss is then left out too."""
        for block in self.denoiser.blocks:
            if block.router is not None:
                block.router.requires_grad_(False)
        return self

    @property
    def routers_frozen(self) -> bool:
        """Whether no router trains (true of a dense model)."""
        routers = [block.router for block in self.denoiser.blocks if block.router is not None]
        return not any(p.requires_grad for router in routers for p in router.parameters())

    def save_pretrained(self, folder: str | Path, dtype: torch.dtype | None = None) -> None:
        """Write the model to a directory.

        Args:
            folder: The directory to make or replace.
            dtype: Of the stored weights; by default as they are.
        """
        tensors = {name: t.to(dtype) if dtype else t for name, t in self.state_dict().items()}
        record = {
            "model": asdict(self.config),
            "encoder": self.encoder.record(),
            "normalizer": self.normalizer.record(),
        }
        save_artifact(folder, KIND, record, tensors)

    @classmethod
    def from_pretrained(cls, folder: str | Path) -> "MoDEModel":
        """Return the model of a directory, in float32 and evaluation mode.

        Raises:
            ArtifactError: When the directory is missing, corrupt or of another kind.
            NonFiniteError: When a weight is NaN or infinite.
        """
        record, tensors = load_artifact(folder, KIND)
        try:
            config = MoDEConfig(**record["model"])
            model = cls(config, _encoder(record["encoder"]), _normalizer(record["normalizer"]))
            model.load_state_dict({name: t.float() for name, t in tensors.items()})
        except (KeyError, TypeError, RuntimeError) as error:
            said = last_line(error)
            raise ArtifactError(f"{folder} does not fit this release ({said}); make it again") from error
        for name, tensor in model.state_dict().items():
            check_finite(f"the weight {name!r} of {folder}", tensor)
        return model.eval()


def _normalizer(record: Mapping) -> LinearNormalizer:
    return LinearNormalizer(torch.tensor(record["scale"]), torch.tensor(record["offset"]))


def _encoder(record: Mapping) -> nn.Module:
    if record["kind"] == "state":
        return StateEncoder(torch.zeros(record["goals"]), _normalizer(record["normalizer"]))
    return ImageEncoder.from_record(record)
