"""The native policy: one of the two networks, normalisers, a scheduler, and the directory they are kept in.

A policy directory holds `config.json`, `model.safetensors` and `normalizer.json`; nothing in it is pickled.
"""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import torch
from noiseworks.core.artifacts import (
    CONFIG_NAME,
    WEIGHTS_NAME,
    FolderKind,
    atomic_directory,
    read_json,
    read_tensors,
)
from noiseworks.core.checks import check_choice, check_number
from noiseworks.core.errors import ArtifactError, InputError
from noiseworks.core.models import resolve_model
from noiseworks.kits.policies.chunking import ChunkSpec
from noiseworks.kits.policies.normalizer import LinearNormalizer, load_normalizers, save_normalizers
from noiseworks.kits.policies.schedulers import make_scheduler
from noiseworks.kits.policies.transformer import TransformerForDiffusion
from noiseworks.kits.policies.unet import ConditionalUnet1D
from torch import Tensor, nn

if TYPE_CHECKING:
    from collections.abc import Mapping

POLICY_KIND, POLICY_VERSION = "noiseworks-policy", 1
NORMALIZER_NAME = "normalizer.json"
POLICY_FOLDER = FolderKind(POLICY_KIND, (CONFIG_NAME, WEIGHTS_NAME, NORMALIZER_NAME))
NetworkKind = Literal["unet", "transformer"]


@dataclass(frozen=True)
class PolicyConfig:
    """Everything that builds a native policy. The defaults are the small experiments' on a CPU.

    Attributes:
        network: `unet` or `transformer`.
        obs_dim: Width of one observation.
        action_dim: Width of an action.
        horizon: Actions of a prediction.
        n_obs_steps: Observations that the policy reads.
        n_action_steps: Actions executed of each prediction.
        start_at_current: See `ChunkSpec`.
        num_train_timesteps: Diffusion steps of training.
        prediction_type: `epsilon`, `sample` or `v_prediction`.
        down_dims: U-Net channels.
        kernel_size: U-Net kernel length.
        step_embed_dim: U-Net width of the step embedding.
        n_layer: Transformer layers.
        n_head: Transformer heads.
        n_emb: Transformer width.
        p_drop_emb: Transformer dropout of embeddings.
        p_drop_attn: Transformer dropout in layers.
        causal_attn: Whether the transformer's attention is causal.
        ema: Whether the weights are a moving average.
    """

    network: NetworkKind = "unet"
    obs_dim: int = 33
    action_dim: int = 3
    horizon: int = 16
    n_obs_steps: int = 2
    n_action_steps: int = 8
    start_at_current: bool = True
    num_train_timesteps: int = 100
    prediction_type: str = "epsilon"
    down_dims: tuple[int, ...] = (64, 128, 256)
    kernel_size: int = 5
    step_embed_dim: int = 64
    n_layer: int = 4
    n_head: int = 4
    n_emb: int = 128
    p_drop_emb: float = 0.0
    p_drop_attn: float = 0.1
    causal_attn: bool = True
    ema: bool = True

    def __post_init__(self) -> None:
        check_choice("network", self.network, ("unet", "transformer"))
        check_number("obs_dim", self.obs_dim, low=1, integer=True)
        check_number("action_dim", self.action_dim, low=1, integer=True)
        object.__setattr__(self, "down_dims", tuple(self.down_dims))
        multiple = 2 ** (len(self.down_dims) - 1)
        if self.network == "unet" and self.chunk.horizon % multiple:
            raise InputError(
                f"the horizon of a U-Net with {len(self.down_dims)} levels must be a multiple of {multiple}, "
                f"got {self.horizon}"
            )

    @property
    def chunk(self) -> ChunkSpec:
        """The time window."""
        return ChunkSpec(self.horizon, self.n_obs_steps, self.n_action_steps, self.start_at_current)

    def build(self) -> nn.Module:
        """Return the network with the weights at their start."""
        if self.network == "unet":
            return ConditionalUnet1D(
                self.action_dim,
                global_cond_dim=self.obs_dim * self.n_obs_steps,
                diffusion_step_embed_dim=self.step_embed_dim,
                down_dims=self.down_dims,
                kernel_size=self.kernel_size,
            )
        return TransformerForDiffusion(
            self.action_dim,
            self.action_dim,
            self.horizon,
            self.n_obs_steps,
            self.obs_dim,
            self.n_layer,
            self.n_head,
            self.n_emb,
            self.p_drop_emb,
            self.p_drop_attn,
            self.causal_attn,
        )


class NativePolicy(nn.Module):
    """A `DenoiserHost` on one of this kit's networks.

    Observations are `{"obs": [B, n_obs_steps, obs_dim]}` in environment units.

    Args:
        config: Sizes.
        net: Network of `config.build()`; a new one by default.
        normalizer: Of the actions; identity by default.
        obs_normalizer: Of the observations; identity by default.
    """

    def __init__(
        self,
        config: PolicyConfig,
        net: nn.Module | None = None,
        normalizer: LinearNormalizer | None = None,
        obs_normalizer: LinearNormalizer | None = None,
    ) -> None:
        super().__init__()
        self.config = config
        self.net = config.build() if net is None else net
        self.normalizer = normalizer or LinearNormalizer.identity(config.action_dim)
        self.obs_normalizer = obs_normalizer or LinearNormalizer.identity(config.obs_dim)
        self.scheduler = make_scheduler(config.num_train_timesteps, config.prediction_type)
        self.horizon, self.n_obs_steps = config.horizon, config.n_obs_steps
        self.n_action_steps, self.action_dim = config.n_action_steps, config.action_dim

    @property
    def chunk(self) -> ChunkSpec:
        """The time window."""
        return self.config.chunk

    @property
    def observation_shapes(self) -> dict[str, tuple[int, ...]]:
        """Shape of a single observation by name."""
        return {"obs": (self.config.obs_dim,)}

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self.net.parameters()).device

    def encode(self, obs: "Mapping[str, Tensor]") -> Tensor:
        """Return the condition: [B, n_obs_steps obs_dim] for the U-Net, [B, n_obs_steps, obs_dim] otherwise.

        Raises:
            InputError: When the observation's shape is wrong.
        """
        value = obs["obs"].to(self.device, torch.float32)
        expected = (self.config.n_obs_steps, self.config.obs_dim)
        if tuple(value.shape[1:]) != expected:
            raise InputError(
                f"obs must have shape [B, {expected[0]}, {expected[1]}], got {tuple(value.shape)}"
            )
        value = self.obs_normalizer.normalize(value)
        return value.flatten(1) if self.config.network == "unet" else value

    def denoise(self, x: Tensor, k: Tensor | int, cond: Tensor) -> Tensor:
        """Return the network's output [B, T, Da] for noisy normalised actions at diffusion steps k, [B] or one."""
        if self.config.network == "unet":
            return self.net(x, k, global_cond=cond)
        return self.net(x, k, cond)

    def save_pretrained(self, path: str | Path, *, dtype: torch.dtype = torch.float32) -> None:
        """Write the policy directory atomically.

        Args:
            path: The directory to make or replace.
            dtype: Type of the stored weights.
        """
        from safetensors.torch import save_file

        state = {name: t.detach().cpu().to(dtype).contiguous() for name, t in self.net.state_dict().items()}
        record = {"kind": POLICY_KIND, "format_version": POLICY_VERSION, **asdict(self.config)}
        with atomic_directory(path, POLICY_FOLDER) as folder:
            (folder / CONFIG_NAME).write_text(json.dumps(record, indent=2) + "\n")
            save_file(state, folder / WEIGHTS_NAME)
            both = {"action": self.normalizer, "obs": self.obs_normalizer}
            save_normalizers(folder / NORMALIZER_NAME, both)

    @classmethod
    def from_pretrained(cls, name: str | Path, *, device: torch.device | str = "cpu") -> "NativePolicy":
        """Read a policy directory; weights load strictly and as float32.

        Args:
            name: A directory or `testbed:<name>`.
            device: Where the policy goes.

        Raises:
            ArtifactError: When the directory is no policy, corrupt or of another version.
        """
        folder = Path(resolve_model(name))
        config = _read_config(folder)
        normalizers = load_normalizers(folder / NORMALIZER_NAME)
        missing = sorted({"action", "obs"} - set(normalizers))
        if missing:
            raise ArtifactError(
                f"{folder / NORMALIZER_NAME} lacks {', '.join(missing)}; save the policy again"
            )
        policy = cls(config, None, normalizers["action"], normalizers["obs"])
        try:
            state = read_tensors(folder / WEIGHTS_NAME, loose=())
            policy.net.load_state_dict({key: t.float() for key, t in state.items()}, strict=True)
        except RuntimeError as error:
            raise ArtifactError(f"the weights in {folder} do not fit its config.json: {error}") from error
        return policy.to(device).eval()


def _read_config(folder: Path) -> PolicyConfig:
    record = read_json(folder / CONFIG_NAME, "policy")
    kind, version = record.pop("kind", None), record.pop("format_version", None)
    if (kind, version) != (POLICY_KIND, POLICY_VERSION):
        raise ArtifactError(
            f"{folder} holds {kind!r} of version {version!r}, expected {POLICY_KIND!r} of {POLICY_VERSION}"
        )
    try:
        return PolicyConfig(**record)
    except (TypeError, InputError) as error:
        raise ArtifactError(f"{folder / CONFIG_NAME} describes no policy: {error}") from error
