"""The released checkpoints: their tensors under this package's names."""

import re
from collections.abc import Mapping
from pathlib import Path

import torch
from noiseworks.core.errors import ArtifactError, InputError, last_line
from noiseworks.kits.policies.normalizer import LinearNormalizer
from noiseworks.mode.config import MoDEConfig
from noiseworks.mode.model import MoDEModel
from noiseworks.mode.network import MoDEDenoiser
from noiseworks.mode.vision import ImageEncoder
from torch import Tensor

CORE = "model.inner_model."
# Fine-tuned checkpoints and the pre-trained one name their two image encoders differently.
CAMERAS = {
    "static_resnet.": 0,
    "gripper_resnet.": 1,
    "img_encoder_image_primary.": 0,
    "img_encoder_image_wrist.": 1,
}
# Of the published network but never used by it, and of the agent around it.
_UNUSED = ("gripper_embed.", "state_embed.")
_RENAMED = (
    (r"^tok_emb\.", "obs_emb."),
    (r"^ln\.g$", "norm.g"),
    (r"\.ln_1\.g$", ".norm_1.g"),
    (r"\.ln_2\.g$", ".norm_2.g"),
    (r"\.attn\.c_proj\.", ".attention.out."),
    (r"\.attn\.", ".attention."),
    (r"\.router\.router\.mlp\.0\.", ".router.hidden."),
    (r"\.router\.router\.mlp\.3\.", ".router.out."),
    (r"\.experts\.expert_(\d+)\.mlp\.0\.project\.", r".experts.\1.project."),
    (r"\.experts\.expert_(\d+)\.mlp\.2\.", r".experts.\1.out."),
    (r"\.shared_mlp\.mlp\.0\.project\.", ".shared.project."),
    (r"\.shared_mlp\.mlp\.2\.", ".shared.out."),
)


def core_name(name: str) -> str | None:
    """Return a denoiser tensor's name here, or None when the published network does not use it."""
    if name.startswith(_UNUSED):
        return None
    for pattern, here in _RENAMED:
        name = re.sub(pattern, here, name)
    return name


def camera_name(name: str, index: int) -> str:
    """Return an image encoder tensor's name here; FiLM layers are numbered from 1 there."""
    film = re.match(r"film(\d)\.(.*)", name)
    if film:
        return f"networks.{index}.films.{int(film[1]) - 1}.{film[2]}"
    return f"networks.{index}.{name}"


def map_state(state: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Return the tensors of a released checkpoint for the denoiser and for the image encoder.

    Args:
        state: Names and tensors of the agent: `model.inner_model.*`, `static_resnet.*`, `gripper_resnet.*`.

    Raises:
        InputError: When no name belongs to a denoiser.
    """
    denoiser, cameras = {}, {}
    for name, tensor in state.items():
        if name.startswith(CORE) and (here := core_name(name.removeprefix(CORE))):
            denoiser[here] = tensor[0] if here == "pos_emb" else tensor
        for prefix, index in CAMERAS.items():
            if name.startswith(prefix):
                cameras[camera_name(name.removeprefix(prefix), index)] = tensor
    if not denoiser:
        raise InputError(f"no tensor's name starts with {CORE!r}: the file is no released MoDE checkpoint")
    return denoiser, cameras


def infer_config(denoiser: Mapping[str, Tensor], *, num_heads: int = 8) -> MoDEConfig:
    """Return the sizes that a denoiser's tensors have.

    Args:
        denoiser: Tensors under this package's names.
        num_heads: Attention heads, by default 8; the heads' norms are as wide as a head, so it is checked.

    Raises:
        InputError: When a tensor is missing or the number of heads does not fit.
    """
    try:
        width, obs_dim = denoiser["obs_emb.weight"].shape
        hidden = denoiser["blocks.0.experts.0.out.weight"].shape[1]
        head = len(denoiser["blocks.0.attention.q_norm.g"])
        action_dim, goal_dim = denoiser["action_emb.weight"].shape[1], denoiser["goal_emb.weight"].shape[1]
        chunk = len(denoiser["pos_emb"]) - 1
    except KeyError as error:
        raise InputError(f"the checkpoint lacks {error.args[0]}") from error
    if head * num_heads != width:
        raise InputError(
            f"num_heads must be {width // head} (width {width}, heads of {head}), got {num_heads}"
        )
    numbers = {tuple(map(int, re.findall(r"\d+", n))) for n in denoiser if ".experts." in n}
    shared = any(".shared." in name for name in denoiser)
    return MoDEConfig(
        action_dim=action_dim,
        obs_dim=obs_dim,
        goal_dim=goal_dim,
        chunk=chunk,
        width=width,
        num_layers=max(n[0] for n in numbers) + 1,
        num_heads=num_heads,
        num_experts=max(n[1] for n in numbers) + 1 + int(shared),
        expert_factor=hidden // width,
        shared_expert=shared,
    )


def load_released(
    path: str | Path, normalizer: LinearNormalizer, *, cameras: tuple[str, str] = ("static", "gripper")
) -> MoDEModel:
    """Return the model of a released checkpoint (`.safetensors`, or a `.pt`/`.ckpt` file of tensors alone).

    Args:
        path: The file.
        normalizer: Of the actions that the checkpoint was trained on, [A]; identity for LIBERO and CALVIN, whose
            actions lie in [-1, 1] already.
        cameras: Names of the two cameras in observations.

    Raises:
        InputError: When the file is missing, not readable without running code, or does not fit.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"no checkpoint at {path}: name the file itself, as downloaded")
    denoiser, encoder = map_state(_read(path))
    config = infer_config(denoiser, num_heads=len(denoiser["obs_emb.weight"]) // _head(denoiser))
    goal_dim = config.goal_dim
    depth, width = _resnet_size(encoder)
    model = MoDEModel(config, ImageEncoder(cameras, goal_dim, depth, width), normalizer, MoDEDenoiser(config))
    for part, tensors in ((model.denoiser, denoiser), (model.encoder, encoder)):
        try:
            part.load_state_dict({name: tensor.float() for name, tensor in tensors.items()})
        except RuntimeError as error:
            said = last_line(error)
            raise ArtifactError(f"{path} does not fit the published layout: {said}") from error
    return model.eval()


def _head(denoiser: Mapping[str, Tensor]) -> int:
    if "blocks.0.attention.q_norm.g" not in denoiser:
        raise InputError("the checkpoint lacks blocks.0.attn.q_norm.g")
    return len(denoiser["blocks.0.attention.q_norm.g"])


def _resnet_size(encoder: Mapping[str, Tensor]) -> tuple[int, int]:
    try:
        width = len(encoder["networks.0.resnet.conv1.weight"])
    except KeyError as error:
        raise InputError(
            "the checkpoint lacks static_resnet.resnet.conv1.weight: its image encoder is none with FiLM after each "
            "stage (the authors' ResNet-18 modulates inside its blocks); map_state still maps its denoiser"
        ) from error
    if "networks.0.resnet.layer1.0.conv3.weight" in encoder:
        return 50, width
    return (34 if "networks.0.resnet.layer1.2.conv1.weight" in encoder else 18), width


def _read(path: Path) -> dict[str, Tensor]:
    if path.suffix == ".safetensors":
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        try:
            return load_file(path)
        except SafetensorError as error:
            raise ArtifactError(f"{path} is corrupt: {error}") from error
    from pickle import UnpicklingError

    try:
        found = torch.load(path, map_location="cpu", weights_only=True)
    except (UnpicklingError, RuntimeError, EOFError) as error:
        raise ArtifactError(
            f"{path} cannot be read as tensors alone; convert it to safetensors first"
        ) from error
    return found.get("state_dict", found)
