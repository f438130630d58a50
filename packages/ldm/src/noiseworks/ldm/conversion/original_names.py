"""Original names of U-Nets and first stages, and their diffusers classes and names."""

import re
from collections.abc import Mapping, Sequence
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
    resampling = ("", "") if params.get("resblock_updown") else (".op", ".conv")
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
            first = f"input_blocks.{place}.0{resampling[0]}"
            names[first] = f"down_blocks.{level}.downsamplers.0{resampling[1]}"
            place += 1
    place = 0
    for index, level in enumerate(reversed(range(levels))):
        for block in range(blocks + 1):
            names[f"output_blocks.{place}.0"] = f"up_blocks.{index}.resnets.{block}"
            if attends[level]:
                names[f"output_blocks.{place}.1"] = f"up_blocks.{index}.attentions.{block}"
            if level and block == blocks:
                last = f"output_blocks.{place}.{2 if attends[level] else 1}{resampling[1]}"
                names[last] = f"up_blocks.{index}.upsamplers.0{resampling[1]}"
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
        if ".resnets." in new or new.endswith("samplers.0"):
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
        InputError: For residual resampling together with cross-attention, which no class of diffusers has.
    """
    crossed, residual = params.get("use_spatial_transformer", False), params.get("resblock_updown", False)
    if crossed and residual:
        raise InputError("a U-Net with both use_spatial_transformer and resblock_updown cannot be imported")
    channels = [params["model_channels"] * multiplier for multiplier in params["channel_mult"]]
    attends = [2**level in params["attention_resolutions"] for level in range(len(channels))]
    kind, plain = "CrossAttn" if crossed else "Attn", ("ResnetDownsample", "ResnetUpsample")
    down, up = plain if residual else ("Down", "Up")
    common = {
        "sample_size": params["image_size"],
        "in_channels": params["in_channels"],
        "out_channels": params["out_channels"],
        "block_out_channels": tuple(channels),
        "down_block_types": tuple(f"{kind}DownBlock2D" if a else f"{down}Block2D" for a in attends),
        "up_block_types": tuple(f"{kind}UpBlock2D" if a else f"{up}Block2D" for a in reversed(attends)),
        "layers_per_block": params["num_res_blocks"],
        "num_class_embeds": params.get("num_classes"),
        "resnet_time_scale_shift": "scale_shift" if params.get("use_scale_shift_norm") else "default",
    }
    if crossed:
        return _crossed_unet(common, channels, params)
    return _plain_unet(common, channels, attends, params)


def _crossed_unet(common: Mapping[str, Any], channels: Sequence[int], params: Mapping[str, Any]) -> nn.Module:
    from diffusers import UNet2DConditionModel

    head_dim = params.get("num_head_channels", -1)
    # This class calls the number of heads attention_head_dim.
    heads = params["num_heads"] if head_dim == -1 else tuple(c // head_dim for c in channels)
    return UNet2DConditionModel(
        **common,
        attention_head_dim=heads,
        cross_attention_dim=params["context_dim"],
        transformer_layers_per_block=params.get("transformer_depth", 1),
    )


def _plain_unet(
    common: Mapping[str, Any], channels: Sequence[int], attends: Sequence[bool], params: Mapping[str, Any]
) -> nn.Module:
    from diffusers import UNet2DModel
    from noiseworks.ldm.diffusion.unets import FixedHeadsUNet2DModel

    kind = "resnet" if params.get("resblock_updown") else "conv"
    common = {**common, "downsample_type": kind, "upsample_type": kind, "attn_norm_num_groups": 32}
    head_dim = params.get("num_head_channels", -1)
    if head_dim == -1:
        heads = params["num_heads"]
        # The middle block, as wide as the last level, always attends.
        widths = {c // heads for c, a in zip(channels, [*attends[:-1], True], strict=True) if a}
        if len(widths) > 1:
            return FixedHeadsUNet2DModel(**common, attention_head_dim=heads)
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
