"""The user branch: in every text cross-attention, a second attention with the same queries to tokens of the user.

    Z = softmax(Q K^T / sqrt(d)) V + scale softmax(Q K'^T / sqrt(d)) V',   K' = U W'_k, V' = U W'_v, U = LN(P u)

It is diffusers' IP-Adapter attention with an embedding of somebody in the place of an image's, so that a trained branch
loads with `pipe.load_ip_adapter` of stock diffusers. The projection has no bias that is not 0, so the user 0 is nobody:
exactly the pipeline without a branch. Trained are P, the norm's scale, W'_k (which begins as W_k) and W'_v (0).

The outputs of several users are mixed as those of several IP-Adapters are, all of them this one: their scales are the
users' shares.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from noiseworks.core.artifacts import load_artifact, save_artifact
from noiseworks.core.errors import InputError, UnsupportedHostError
from noiseworks.core.noise import mix64
from noiseworks.kits.diffusers_hosts import denoiser_of, layout_of
from noiseworks.ppd.options import FAMILIES
from torch import Tensor, nn

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline
    from noiseworks.ppd.users import Users

KIND = "ppd/user-branch"
TOKENS = 4  # what diffusers reads an IP-Adapter with such a projection as
_PROJECTION = {"weight": "image_embeds.weight", "bias": "image_embeds.bias"}


class UserBranch:
    """A branch on a pipeline; made by `new` or `load`, taken off by `remove`.

    Args:
        pipe: The pipeline (Stable Diffusion or SDXL).
        state: The branch's tensors, named as in an IP-Adapter's file.
        encoder: Name of the features that users are known by.
        shares: Weights of the users whose outputs `Z'` are mixed, by default those of one user.

    Raises:
        InputError: When the tensors are another model's, the pipeline carries an IP-Adapter already, or the shares are
            no mixture.
        UnsupportedHostError: When the pipeline is of another family.
    """

    def __init__(
        self,
        pipe: "DiffusionPipeline",
        state: dict[str, Tensor],
        encoder: str,
        shares: Sequence[float] = (1.0,),
    ) -> None:
        if layout_of(pipe).family not in FAMILIES:
            raise UnsupportedHostError(
                f"a pipeline of family {layout_of(pipe).family!r} has no user branch: {', '.join(FAMILIES)} have"
            )
        self.pipe, self.denoiser, self.encoder = pipe, denoiser_of(pipe), encoder
        self.shares = tuple(shares)
        if not abs(sum(self.shares) - 1) <= 1e-6 or min(self.shares) < 0:  # NaN is no sum either
            raise InputError(f"the shares of a mixture are at least 0 and sum to 1, got {self.shares}")
        if getattr(self.denoiser, "encoder_hid_proj", None) is not None:
            raise InputError("the pipeline carries an IP-Adapter or a user branch already: unload it first")
        expected = {name: tensor.shape for name, tensor in first_state(self.denoiser, 1).items()}
        for name, shape in expected.items():
            found = None if name not in state else state[name].shape
            free = name == "image_proj.proj.weight" and found is not None and len(found) == 2
            if found is None or (found[:1] if free else found) != (shape[:1] if free else shape):
                raise InputError(f"the user branch is another model's: {name} does not fit")
        parts: dict[str, dict[str, Tensor]] = {"image_proj": {}, "ip_adapter": {}}
        for name, tensor in state.items():
            kind, _, rest = name.partition(".")
            parts.setdefault(kind, {})[rest] = tensor.to(self.denoiser.dtype)
        # What `pipe.load_ip_adapter` does, without its search for an image encoder.
        self.denoiser._load_ip_adapter_weights([parts] * len(self.shares), low_cpu_mem_usage=False)
        self.scale = 1.0

    @classmethod
    def new(cls, pipe: "DiffusionPipeline", width: int, encoder: str, seed: int = 0) -> "UserBranch":
        """Put a fresh branch on a pipeline, which computes bit for bit what it did before.

        Args:
            pipe: The pipeline.
            width: Numbers of an embedding.
            encoder: Name of the features.
            seed: Of the projection.
        """
        if layout_of(pipe).family not in FAMILIES:
            return cls(pipe, {}, encoder)
        return cls(pipe, first_state(denoiser_of(pipe), width, seed), encoder)

    @classmethod
    def load(
        cls,
        pipe: "DiffusionPipeline",
        folder: str | Path,
        users: "Users | None" = None,
        shares: Sequence[float] = (1.0,),
    ) -> "UserBranch":
        """Put a saved branch on a pipeline.

        Args:
            pipe: The pipeline.
            folder: What `save` wrote.
            users: Whom it is to draw for, to be checked.
            shares: Weights of the users whose outputs are mixed.

        Raises:
            ArtifactError: When the folder holds none.
            InputError: When it is another model's, or was trained with another encoder than the users are known by.
        """
        config, tensors = load_artifact(folder, KIND)
        if users is not None and users.encoder != config["encoder"]:
            raise InputError(
                f"the branch was trained with the encoder {config['encoder']}, not {users.encoder}"
            )
        return cls(pipe, tensors, config["encoder"], shares)

    @property
    def width(self) -> int:
        """Numbers of an embedding."""
        return self._projection().image_embeds.in_features

    @property
    def scale(self) -> float:
        """Strength of the branch: 1 as trained, 0 the pipeline without it, below 0 the opposite taste."""
        return self._scale

    @scale.setter
    def scale(self, value: float) -> None:
        self._scale = float(value)
        self.pipe.set_ip_adapter_scale([self._scale * share for share in self.shares])

    @contextmanager
    def off(self) -> Iterator[None]:
        """Switch the branch off within a block."""
        before = self._scale
        self.scale = 0.0
        try:
            yield
        finally:
            self.scale = before

    def arguments(self, user: Tensor, guided: bool = False) -> dict[str, Any]:
        """Return the arguments of a call of the pipeline that draws for one user; unguided rows have nobody.

        Pipelines repeat the embedding for each image of a call, so that one call has one user.

        Args:
            user: Their embedding [d] or [1, d], or those of the users whose outputs are mixed [shares, d].
            guided: Whether the call's guidance scale is above 1.

        Raises:
            InputError: When it has another width, or there are several.
        """
        parts = self._checked(user)
        if len(parts[0]) != 1:
            raise InputError(
                f"a call of the pipeline draws for one user, got {len(parts[0])}; draw_for takes several"
            )
        if guided:
            parts = [torch.cat([torch.zeros_like(one), one]) for one in parts]
        return {"ip_adapter_image_embeds": parts}

    def further(self, users: Tensor) -> dict[str, Any]:
        """Return the denoiser's further arguments for users [B, d], or [B, shares, d] where outputs are mixed."""
        return {"added_cond_kwargs": {"image_embeds": self._checked(users)}}

    def _checked(self, users: Tensor) -> list[Tensor]:
        """Return the embeddings of each share, as the denoiser takes them [B, 1, d]."""
        if users.shape[-1] != self.width or users.numel() % (self.width * len(self.shares)):
            raise InputError(
                f"embeddings of shape {list(users.shape)} do not fit a branch for {len(self.shares)} times "
                f"{self.width} numbers"
            )
        users = users.reshape(-1, len(self.shares), 1, self.width)
        return list(users.to(self.denoiser.device, self.denoiser.dtype).unbind(1))

    def trainable(self) -> dict[str, nn.Parameter]:
        """Freeze all but the branch and return its weights by the denoiser's names, in 32 bits at least."""
        from diffusers.training_utils import cast_training_params

        self.denoiser.requires_grad_(False)
        for name, parameter in self._parameters().items():
            parameter.requires_grad_(not name.endswith("bias"))
        if self.denoiser.dtype != torch.float64:
            cast_training_params(self.denoiser, dtype=torch.float32)
        return {name: p for name, p in self.denoiser.named_parameters() if p.requires_grad}

    def save(self, folder: str | Path) -> None:
        """Write the branch; `model.safetensors` in it is an IP-Adapter's file."""
        save_artifact(
            folder, KIND, {"encoder": self.encoder}, {k: p.detach() for k, p in self._parameters().items()}
        )

    def remove(self) -> None:
        """Take the branch off: the pipeline is what it was."""
        self.pipe.unload_ip_adapter()

    def _projection(self) -> nn.Module:
        return self.denoiser.encoder_hid_proj.image_projection_layers[0]

    def _parameters(self) -> dict[str, nn.Parameter]:
        projection = self._projection()
        found = {
            f"image_proj.proj.{name}": projection.get_parameter(path) for name, path in _PROJECTION.items()
        }
        found |= {f"image_proj.norm.{name}": p for name, p in projection.norm.named_parameters()}
        for number, name in _cross_attentions(self.denoiser):
            processor = self.denoiser.attn_processors[name]
            found[f"ip_adapter.{number}.to_k_ip.weight"] = processor.to_k_ip[0].weight
            found[f"ip_adapter.{number}.to_v_ip.weight"] = processor.to_v_ip[0].weight
        return found


def first_state(denoiser: nn.Module, width: int, seed: int = 0) -> dict[str, Tensor]:
    """Return a branch that does nothing yet, in the names of an IP-Adapter's file.

    Args:
        denoiser: The UNet.
        width: Numbers of an embedding.
        seed: Of the projection.

    Raises:
        UnsupportedHostError: When its layers attend to texts of different widths.
    """
    context = denoiser.config.cross_attention_dim
    if not isinstance(context, int):
        raise UnsupportedHostError(f"the UNet's layers have different cross_attention_dim: {context}")
    generator = torch.Generator().manual_seed(mix64(seed, 3) >> 1)
    state = {
        "image_proj.proj.weight": torch.randn(TOKENS * context, width, generator=generator) / width**0.5,
        "image_proj.proj.bias": torch.zeros(TOKENS * context),
        "image_proj.norm.weight": torch.ones(context),
        "image_proj.norm.bias": torch.zeros(context),
    }
    for number, name in _cross_attentions(denoiser):
        keys = denoiser.get_submodule(name.removesuffix(".processor")).to_k.weight.detach().float().cpu()
        state[f"ip_adapter.{number}.to_k_ip.weight"] = keys.clone()
        state[f"ip_adapter.{number}.to_v_ip.weight"] = torch.zeros_like(keys)
    return state


def _cross_attentions(denoiser: nn.Module) -> list[tuple[int, str]]:
    """Return number and processor's name of each text cross-attention, as an IP-Adapter's file numbers them."""
    names = [name for name in denoiser.attn_processors if not name.endswith("attn1.processor")]
    return [(2 * i + 1, name) for i, name in enumerate(names)]
