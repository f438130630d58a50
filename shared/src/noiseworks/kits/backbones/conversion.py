"""DiT weights between the released layout and diffusers' `DiTTransformer2DModel`, and what differs besides names.

The stock class differs in three ways: its timestep frequencies are 10000^(-i / (h - 1)) and not 10000^(-i / h), its
second norm has another epsilon, and every block has embedders of its own, which drop labels each by itself.
"""

import re
from typing import TYPE_CHECKING

import torch
from noiseworks.core.errors import InputError
from noiseworks.kits.backbones.dit import DiT
from noiseworks.kits.backbones.options import DiTConfig
from torch import Tensor

if TYPE_CHECKING:
    from diffusers import DiTTransformer2DModel

# Original name inside a block -> diffusers' name inside `transformer_blocks.{i}`.
_BLOCK = {
    "adaLN_modulation.1": "norm1.linear",
    "attn.proj": "attn1.to_out.0",
    "mlp.fc1": "ff.net.0.proj",
    "mlp.fc2": "ff.net.2",
}
_SHARED = {  # in every block of diffusers' class
    "t_embedder.mlp.0": "norm1.emb.timestep_embedder.linear_1",
    "t_embedder.mlp.2": "norm1.emb.timestep_embedder.linear_2",
    "y_embedder.embedding_table": "norm1.emb.class_embedder.embedding_table",
}
_ENDS = {
    "x_embedder.proj": "pos_embed.proj",
    "final_layer.adaLN_modulation.1": "proj_out_1",
    "final_layer.linear": "proj_out_2",
}


def diffusers_keys(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors of the released layout under diffusers' names.

    Raises:
        InputError: On a name that the layout does not have.
    """
    depth = _depth(state, r"blocks\.(\d+)\.")
    found: dict[str, Tensor] = {}
    for name, tensor in state.items():
        stem, _, kind = name.rpartition(".")
        block = re.fullmatch(r"blocks\.(\d+)\.(.+)", stem)
        if name == "pos_embed":
            continue  # a fixed table, which diffusers computes
        if stem in _ENDS:
            found[f"{_ENDS[stem]}.{kind}"] = tensor
        elif stem in _SHARED:
            found |= {f"transformer_blocks.{i}.{_SHARED[stem]}.{kind}": tensor for i in range(depth)}
        elif block and block[2] == "attn.qkv":
            for part, third in zip("qkv", tensor.chunk(3), strict=True):
                found[f"transformer_blocks.{block[1]}.attn1.to_{part}.{kind}"] = third
        elif block and block[2] in _BLOCK:
            found[f"transformer_blocks.{block[1]}.{_BLOCK[block[2]]}.{kind}"] = tensor
        else:
            raise InputError(f"{name!r} is no tensor of a DiT in the released layout")
    return found


def original_keys(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors of diffusers' layout under the released names, without the position table.

    Raises:
        InputError: On a name that the layout does not have, or where blocks' embedders differ, which the released
            layout cannot hold.
    """
    ends, blocks, shared = ({new: old for old, new in names.items()} for names in (_ENDS, _BLOCK, _SHARED))
    found: dict[str, Tensor] = {}
    for name, tensor in state.items():
        stem, _, kind = name.rpartition(".")
        block = re.fullmatch(r"transformer_blocks\.(\d+)\.(.+)", stem)
        if name == "pos_embed.pos_embed":
            continue
        if stem in ends:
            found[f"{ends[stem]}.{kind}"] = tensor
        elif block and block[2] in shared:
            key = f"{shared[block[2]]}.{kind}"
            if key in found and not torch.equal(found[key], tensor):
                raise InputError(
                    f"{name!r} differs from that of block 0; the released layout has one for all blocks"
                )
            found[key] = tensor
        elif block and block[2] in blocks:
            found[f"blocks.{block[1]}.{blocks[block[2]]}.{kind}"] = tensor
        elif block and block[2] == "attn1.to_q":
            before = f"transformer_blocks.{block[1]}.attn1.to_"
            parts = [state[f"{before}{part}.{kind}"] for part in "qkv"]
            found[f"blocks.{block[1]}.attn.qkv.{kind}"] = torch.cat(parts)
        elif not (block and block[2] in ("attn1.to_k", "attn1.to_v")):
            raise InputError(f"{name!r} is no tensor of diffusers' DiT")
    return found


def _depth(state: dict[str, Tensor], pattern: str) -> int:
    numbers = [int(found[1]) for name in state if (found := re.match(pattern, name))]
    if not numbers:
        raise InputError(
            "the tensors have no DiT blocks in them: expected names such as blocks.0.attn.qkv.weight"
        )
    return max(numbers) + 1


def load_original(model: DiT, state: dict[str, Tensor]) -> DiT:
    """Load a state dict of the released layout strictly and return the model.

    Raises:
        InputError: On another depth, another width, or names that are missing or too many.
    """
    depth = _depth(state, r"blocks\.(\d+)\.")
    if depth != model.config.depth:
        raise InputError(
            f"the checkpoint has {depth} blocks, the model {model.config.depth}: set depth={depth}"
        )
    try:
        model.load_state_dict(state)
    except RuntimeError as error:
        raise InputError(
            f"the checkpoint does not fit the model: {' '.join(str(error).split())[:300]}"
        ) from error
    return model


def to_diffusers(model: DiT) -> "DiTTransformer2DModel":
    """Return diffusers' model with the same weights and outputs.

    Its two differing constants are set by `match_original`, which a model that was saved and loaded needs again:
    neither is part of diffusers' configuration (`norm_eps` is, and is saved).

    Raises:
        InputError: When the MLP is not four widths wide, which diffusers' class has fixed.
    """
    from diffusers import DiTTransformer2DModel

    config = model.config
    if int(config.mlp * config.width) != 4 * config.width:
        raise InputError(f"diffusers' DiT has an MLP of 4 widths, this model one of {config.mlp}")
    made = DiTTransformer2DModel(
        num_attention_heads=config.heads,
        attention_head_dim=config.width // config.heads,
        in_channels=config.channels,
        out_channels=config.out_channels,
        num_layers=config.depth,
        sample_size=config.image_size,
        patch_size=config.patch,
        num_embeds_ada_norm=config.classes,
        norm_eps=1e-6,
    )
    fixed = {key: value for key, value in made.state_dict().items() if key == "pos_embed.pos_embed"}
    made.load_state_dict(diffusers_keys(model.state_dict()) | fixed)
    return match_original(made).to(next(model.parameters()).dtype)


def from_diffusers(model: "DiTTransformer2DModel") -> DiT:
    """Return the model of the released layout with the same weights.

    Outputs are the same where `match_original` has been applied to diffusers' model.

    Raises:
        InputError: When blocks' embedders differ.
    """
    given = model.config
    made = DiT(
        DiTConfig(
            depth=given.num_layers,
            width=given.num_attention_heads * given.attention_head_dim,
            heads=given.num_attention_heads,
            patch=given.patch_size,
            learn_sigma=(given.out_channels or given.in_channels) == 2 * given.in_channels,
            image_size=given.sample_size,
            channels=given.in_channels,
            classes=given.num_embeds_ada_norm,
        )
    )
    state = original_keys(model.state_dict())
    return load_original(made, state | {"pos_embed": made.pos_embed.detach().clone()})


def match_original(model: "DiTTransformer2DModel") -> "DiTTransformer2DModel":
    """Give diffusers' model the frequencies and the epsilon of the released one, in place, and return it.

    Not for weights that were trained in the stock class with its own frequencies.
    """
    for block in model.transformer_blocks:
        block.norm1.emb.time_proj.downscale_freq_shift = 0
        block.norm3.eps = 1e-6
    return model


def tie_embedders(model: "DiTTransformer2DModel") -> "DiTTransformer2DModel":
    """Let all blocks of diffusers' model share the embedders of the first, without its label drop, and return it.

    Raises:
        InputError: When the blocks' embedders hold different weights.
    """
    original_keys(model.state_dict())
    first = model.transformer_blocks[0].norm1.emb
    first.class_embedder.dropout_prob = 0.0
    for block in model.transformer_blocks:
        block.norm1.emb = first
    return model
