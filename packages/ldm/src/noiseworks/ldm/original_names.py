"""Original names of U-Nets and first stages, and their diffusers classes and names."""

import re
from collections.abc import Mapping
from typing import Any

from noiseworks.core.errors import InputError
from torch import Tensor, nn

State = dict[str, Tensor]
_RESNET = {
    "in_layers.0": "norm1",
    "in_layers.2": "conv1",
    "emb_layers.1": "time_emb_proj",
    "out_layers.0": "norm2",
    "out_layers.3": "conv2",
    "skip_connection": "conv_shortcut",
}
_FIRST_STAGE = (
    (r"\bnorm_out\b", "conv_norm_out"),
    (r"\bmid\.block_1\b", "mid_block.resnets.0"),
    (r"\bmid\.block_2\b", "mid_block.resnets.1"),
    (r"\bmid\.attn_1\b", "mid_block.attentions.0"),
    (r"\b(down|up)\.(\d+)\.block\.", r"\1_blocks.\2.resnets."),
    (r"\b(down|up)\.(\d+)\.attn\.", r"\1_blocks.\2.attentions."),
    (r"\b(down|up)\.(\d+)\.(down|up)sample\.", r"\1_blocks.\2.\3samplers.0."),
    (r"\bnin_shortcut\b", "conv_shortcut"),
)
_ATTENTION = {"norm": "group_norm", "q": "to_q", "k": "to_k", "v": "to_v", "proj_out": "to_out.0"}


def unet_names(params: Mapping[str, Any]) -> dict[str, str]:
    """Return original prefix -> diffusers prefix of every part of a U-Net."""
    levels, blocks = len(params["channel_mult"]), params["num_res_blocks"]
    attends = [2**level in params["attention_resolutions"] for level in range(levels)]
    names = {
        "time_embed.0": "time_embedding.linear_1",
        "time_embed.2": "time_embedding.linear_2",
        "label_emb": "class_embedding",
        "input_blocks.0.0": "conv_in",
        "middle_block.0": "mid_block.resnets.0",
        "middle_block.1": "mid_block.attentions.0",
        "middle_block.2": "mid_block.resnets.1",
        "out.0": "conv_norm_out",
        "out.2": "conv_out",
    }
    place = 1
    for level in range(levels):
        for block in range(blocks):
            names[f"input_blocks.{place}.0"] = f"down_blocks.{level}.resnets.{block}"
            names[f"input_blocks.{place}.1"] = f"down_blocks.{level}.attentions.{block}"
            place += 1
        if level < levels - 1:
            names[f"input_blocks.{place}.0.op"] = f"down_blocks.{level}.downsamplers.0.conv"
            place += 1
    place = 0
    for index, level in enumerate(reversed(range(levels))):
        for block in range(blocks + 1):
            names[f"output_blocks.{place}.0"] = f"up_blocks.{index}.resnets.{block}"
            if attends[level]:
                names[f"output_blocks.{place}.1"] = f"up_blocks.{index}.attentions.{block}"
            if level and block == blocks:
                last = f"output_blocks.{place}.{2 if attends[level] else 1}.conv"
                names[last] = f"up_blocks.{index}.upsamplers.0.conv"
            place += 1
    return names


def convert_unet(state: Mapping[str, Tensor], params: Mapping[str, Any]) -> nn.Module:
    """Return the diffusers U-Net of original weights.

    Args:
        state: Weights in original names, without prefix.
        params: `unet_config.params` of the original configuration.

    Raises:
        InputError: When a weight finds no place, or diffusers has no such U-Net.
    """
    unet = make_original_unet(params)
    names, converted = unet_names(params), {}
    for name, tensor in state.items():
        parts = name.split(".")
        prefix = next((p for n in (4, 3, 2, 1) if (p := ".".join(parts[:n])) in names), None)
        if prefix is None:
            raise InputError(f"the weight {name!r} has no place in the U-Net of this configuration")
        new, rest = names[prefix], name.removeprefix(prefix)
        if ".resnets." in new:
            for old, part in _RESNET.items():
                rest = rest.replace(old, part)
        elif ".attentions." in new and not params.get("use_spatial_transformer", False):
            converted |= _attention_weights(new, rest, tensor, unet)
            continue
        converted[new + rest] = tensor
    load_strictly(unet, converted, "the U-Net")
    return unet


def _attention_weights(prefix: str, rest: str, tensor: Tensor, unet: nn.Module) -> State:
    """Return the weights of one plain attention block; the original keeps q, k, v of a head together."""
    matrix = tensor.flatten(1) if rest.endswith("weight") and tensor.ndim > 1 else tensor
    part, kind = rest.strip(".").split(".")
    if part != "qkv":
        return {f"{prefix}.{_ATTENTION[part]}.{kind}": matrix}
    heads = unet.get_submodule(prefix).heads
    by_head = matrix.view(heads, 3, -1, *matrix.shape[1:])
    return {f"{prefix}.to_{name}.{kind}": by_head[:, i].flatten(0, 1) for i, name in enumerate("qkv")}


def make_original_unet(params: Mapping[str, Any]) -> nn.Module:
    """Return an untrained diffusers U-Net with the architecture of an original configuration.

    Raises:
        InputError: For heads whose width differs between levels without cross-attention, and for the
            scale-and-shift and residual resampling variants, which no released latent model uses.
    """
    from diffusers import UNet2DConditionModel, UNet2DModel

    for option in ("use_scale_shift_norm", "resblock_updown"):
        if params.get(option):
            raise InputError(f"the U-Net option {option} is not supported by this import")
    channels = [params["model_channels"] * multiplier for multiplier in params["channel_mult"]]
    attends = [2**level in params["attention_resolutions"] for level in range(len(channels))]
    crossed = params.get("use_spatial_transformer", False)
    kind = "CrossAttn" if crossed else "Attn"
    common = {
        "sample_size": params["image_size"],
        "in_channels": params["in_channels"],
        "out_channels": params["out_channels"],
        "block_out_channels": tuple(channels),
        "down_block_types": tuple(f"{kind if a else ''}DownBlock2D" for a in attends),
        "up_block_types": tuple(f"{kind if a else ''}UpBlock2D" for a in reversed(attends)),
        "layers_per_block": params["num_res_blocks"],
        "num_class_embeds": params.get("num_classes"),
    }
    head_dim = params.get("num_head_channels", -1)
    if crossed:
        heads = params["num_heads"] if head_dim == -1 else tuple(c // head_dim for c in channels)
        return UNet2DConditionModel(
            **common,
            attention_head_dim=heads,
            cross_attention_dim=params["context_dim"],
            transformer_layers_per_block=params.get("transformer_depth", 1),
        )
    if head_dim == -1:
        widths = {c // params["num_heads"] for c, a in zip(channels, [*attends[:-1], True], strict=True) if a}
        if len(widths) > 1:
            raise InputError(
                f"{params['num_heads']} heads on levels of different width have widths {sorted(widths)}; "
                "diffusers' UNet2DModel knows one width only"
            )
        head_dim = widths.pop()
    return UNet2DModel(**common, attention_head_dim=head_dim)


def convert_first_stage(state: Mapping[str, Tensor], params: Mapping[str, Any], prefix: str) -> nn.Module:
    """Return the diffusers autoencoder of original weights: VQ where the configuration has a codebook.

    Args:
        state: Weights in original names, without prefix; the loss's are left out.
        params: `params` of the original first stage's configuration.
        prefix: What the names began with, for messages.

    Raises:
        InputError: When a weight finds no place.
    """
    vae = make_original_first_stage(params)
    levels, converted = len(params["ddconfig"]["ch_mult"]), {}
    for name, tensor in state.items():
        if name.startswith(("loss.", "model_ema.")):
            continue
        new = name
        for pattern, replacement in _FIRST_STAGE:
            new = re.sub(pattern, replacement, new)
        # The original counts the decoder's levels from the finest.
        new = re.sub(r"up_blocks\.(\d+)", lambda found: f"up_blocks.{levels - 1 - int(found[1])}", new)
        attention = re.fullmatch(r"(.*\.attentions\.\d+)\.(\w+)\.(weight|bias)", new)
        if attention:
            new = f"{attention[1]}.{_ATTENTION[attention[2]]}.{attention[3]}"
            tensor = tensor.flatten(1) if tensor.ndim == 4 else tensor
        converted[new] = tensor
    load_strictly(vae, converted, f"the first stage ({prefix or 'no prefix'})")
    return vae


def make_original_first_stage(params: Mapping[str, Any]) -> nn.Module:
    """Return an untrained diffusers autoencoder with the architecture of an original configuration."""
    from diffusers import AutoencoderKL, VQModel

    shape = params["ddconfig"]
    channels = [shape["ch"] * multiplier for multiplier in shape["ch_mult"]]
    sides = [shape["resolution"] // 2**level for level in range(len(channels))]
    attends = [side in shape["attn_resolutions"] for side in sides]
    common = {
        "in_channels": shape["in_channels"],
        "out_channels": shape["out_ch"],
        "block_out_channels": tuple(channels),
        "down_block_types": tuple(f"{'Attn' if a else ''}DownEncoderBlock2D" for a in attends),
        "up_block_types": tuple(f"{'Attn' if a else ''}UpDecoderBlock2D" for a in reversed(attends)),
        "layers_per_block": shape["num_res_blocks"],
        "latent_channels": shape["z_channels"],
        "sample_size": shape["resolution"],
        "mid_block_add_attention": shape.get("attn_type") != "none",
        "scaling_factor": 1.0,
    }
    if "n_embed" in params:
        return VQModel(**common, num_vq_embeddings=params["n_embed"], vq_embed_dim=params["embed_dim"])
    if params["embed_dim"] != shape["z_channels"]:
        raise InputError(
            f"embed_dim {params['embed_dim']} and z_channels {shape['z_channels']} of a KL model differ"
        )
    return AutoencoderKL(**common)


def load_strictly(module: nn.Module, state: State, what: str) -> None:
    """Load weights of exactly the module's names and shapes.

    Raises:
        InputError: When a weight is missing, has no place or another shape.
    """
    _check_shapes(module, state, what)
    found = module.load_state_dict(state, strict=False)
    if found.missing_keys or found.unexpected_keys:
        raise InputError(
            f"{what} does not fit its configuration: {len(found.missing_keys)} weights are missing "
            f"({', '.join(found.missing_keys[:3])}), {len(found.unexpected_keys)} have no place "
            f"({', '.join(found.unexpected_keys[:3])})"
        )


def _check_shapes(module: nn.Module, state: State, what: str) -> None:
    for name, tensor in module.state_dict().items():
        if name in state and state[name].shape != tensor.shape:
            raise InputError(
                f"{what} does not fit its configuration: {name} has shape {tuple(state[name].shape)}, "
                f"expected {tuple(tensor.shape)}"
            )
