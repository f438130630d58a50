"""The eight models of the paper's tables, and tiny ones: U-Net, conditioner, schedule and loss by task."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from noiseworks.core.checks import check_choice
from noiseworks.core.errors import InputError
from noiseworks.ldm.conditioning.conditioners import (
    ClassConditioner,
    Conditioner,
    LayoutConditioner,
    TextConditioner,
)
from noiseworks.ldm.conditioning.spatial import LowResConditioner, MaskConditioner, SemanticConditioner
from noiseworks.ldm.options import DiffusionOptions

if TYPE_CHECKING:
    from noiseworks.ldm.conditioning.task_data import TaskData
    from torch import nn


@dataclass(frozen=True)
class Recipe:
    """Architecture and training settings of one model.

    Attributes:
        width: Channels of the U-Net's first level.
        multipliers: Channels of each level, in units of `width`.
        attention: Which levels attend.
        head_dim: Channels per head; None: `heads` heads on every level.
        heads: Heads on every level, when `head_dim` is None.
        context: Width of the conditioning sequence; None without one.
        depth: Transformer blocks per attention layer.
        encoder_layers: Depth of the transformer of texts and layouts that trains along.
        beta_start: First β.
        beta_end: Last β.
        loss: `"l2"` or `"l1"`.
        learning_rate: Base rate, to be scaled by the batch size where `scale_lr`.
        scale_lr: Whether it is.
    """

    width: int
    multipliers: tuple[int, ...]
    attention: tuple[bool, ...]
    head_dim: int | None = 32
    heads: int = 8
    context: int | None = None
    depth: int = 1
    encoder_layers: int = 0
    beta_start: float = 0.0015
    beta_end: float = 0.0195
    loss: str = "l2"
    learning_rate: float = 1e-6
    scale_lr: bool = True


_DEEP = (False, True, True, True)
# Section 4 and appendix E; schedules, rates and attention levels are those of the authors' configurations.
PAPER = {
    "class": Recipe(192, (1, 2, 3, 5), _DEEP, None, 1, context=512, learning_rate=1e-4, scale_lr=False),
    "text": Recipe(192, (1, 2, 3, 5), _DEEP, context=640, encoder_layers=32, learning_rate=1e-6),
    "text-large": Recipe(
        320,
        (1, 2, 4, 4),
        (True, True, True, False),
        None,
        8,
        context=1280,
        encoder_layers=32,
        beta_start=0.00085,
        beta_end=0.012,
        learning_rate=5e-5,
    ),
    "layout": Recipe(
        128, (1, 2, 3, 4), _DEEP, context=512, depth=3, encoder_layers=16, beta_end=0.0205, loss="l1"
    ),
    "semantic": Recipe(128, (1, 4, 8), (False,) * 3, head_dim=128, beta_end=0.0205, loss="l1"),
    "upscale": Recipe(160, (1, 2, 2, 4), (False, False, False, True), beta_end=0.0155),
    "inpaint": Recipe(256, (1, 2, 3, 4), _DEEP, None, 8, beta_end=0.0205, loss="l1"),
    "unconditional": Recipe(224, (1, 2, 3, 4), _DEEP, learning_rate=2e-6),
}
TASKS = tuple(PAPER)
PRESETS = ("paper", "tiny")


def recipe(task: str, preset: str = "tiny") -> Recipe:
    """Return the recipe of a task: the paper's, or a tiny one (two levels of 32 and 64 channels, width 64).

    Raises:
        InputError: When task or preset is unknown.
    """
    check_choice("task", task, TASKS)
    check_choice("preset", preset, PRESETS)
    found = PAPER[task]
    if preset == "paper":
        return found
    return replace(
        found,
        width=32,
        multipliers=(1, 2),
        attention=(False, True),
        head_dim=16,
        context=None if found.context is None else 64,
        depth=1,
        encoder_layers=min(found.encoder_layers, 2),
        learning_rate=1e-3,
        scale_lr=False,
    )


def added_channels(task: str, latent_channels: int) -> int:
    """Return how many channels a task joins to the latent."""
    return {"semantic": 3, "upscale": 3, "inpaint": latent_channels + 1}.get(task, 0)


def make_unet(
    task: str, made_by: Recipe, latent_channels: int, sample_size: int, seed: int = 0
) -> "nn.Module":
    """Return the denoiser of a task: `UNet2DConditionModel` with, `UNet2DModel` without cross-attention.

    Args:
        task: Of `TASKS`.
        made_by: The recipe.
        latent_channels: Of the first stage.
        sample_size: Side of the latent.
        seed: Of the weights.

    Raises:
        InputError: When the latent cannot be halved as often as the U-Net does.
    """
    from diffusers import UNet2DConditionModel, UNet2DModel
    from noiseworks.ldm.diffusion.unets import FixedHeadsUNet2DModel

    levels = len(made_by.multipliers)
    if sample_size % 2 ** (levels - 1):
        raise InputError(
            f"a latent of side {sample_size} cannot be halved {levels - 1} times; choose image size or f so"
        )
    channels = tuple(made_by.width * multiplier for multiplier in made_by.multipliers)
    kind = "CrossAttn" if made_by.context else "Attn"
    common: dict[str, Any] = {
        "sample_size": sample_size,
        "in_channels": latent_channels + added_channels(task, latent_channels),
        "out_channels": latent_channels,
        "block_out_channels": channels,
        "down_block_types": tuple(f"{kind if a else ''}DownBlock2D" for a in made_by.attention),
        "up_block_types": tuple(f"{kind if a else ''}UpBlock2D" for a in reversed(made_by.attention)),
        "layers_per_block": 2,
        "norm_num_groups": 32,
    }
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if made_by.context is None and made_by.head_dim is None:
            return FixedHeadsUNet2DModel(**common, attention_head_dim=made_by.heads)
        if made_by.context is None:
            return UNet2DModel(**common, attention_head_dim=made_by.head_dim)
        # This class calls the number of heads attention_head_dim.
        heads = made_by.heads if made_by.head_dim is None else tuple(c // made_by.head_dim for c in channels)
        return UNet2DConditionModel(
            **common,
            cross_attention_dim=made_by.context,
            attention_head_dim=heads,
            transformer_layers_per_block=made_by.depth,
        )


def make_conditioner(
    task: str,
    made_by: Recipe,
    data: "TaskData",
    vae: "nn.Module",
    options: DiffusionOptions,
    seed: int = 0,
) -> Conditioner | None:
    """Return the conditioner of a task.

    Args:
        task: Of `TASKS`.
        made_by: The recipe.
        data: Read for the number of classes, the longest layout and (without `text_encoder`) the words.
        vae: The first stage, for inpainting and the semantic map's size.
        options: Name a transformers text encoder with its tokenizer; without one, one trains along on a tokenizer of
            the captions' own words.
        seed: Of the weights.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed + 1)
        if task == "class":
            return ClassConditioner(data.num_classes, made_by.context)
        if task in ("text", "text-large"):
            if options.text_encoder is not None:
                return load_text_encoder(options.text_encoder, options.train_text_encoder)
            return make_text_encoder(data.column, made_by)
        if task == "layout":
            longest = max(len(layout) for layout in data.column)
            return LayoutConditioner(
                data.num_classes,
                max_objects=max(longest, 1),
                dim=made_by.context,
                num_layers=made_by.encoder_layers,
                num_heads=made_by.context // 32,
            )
        if task == "semantic":
            return SemanticConditioner(data.num_classes, 3, 2 ** (len(vae.config.block_out_channels) - 1))
    if task == "upscale":
        return LowResConditioner()
    return MaskConditioner(vae) if task == "inpaint" else None


def load_text_encoder(name: str, trained: bool) -> TextConditioner:
    """Return a conditioner on a transformers encoder named by directory or hub id."""
    from noiseworks.core.models import resolve_model
    from transformers import AutoConfig, AutoModel, AutoTokenizer, CLIPTextModel

    path = resolve_model(name)
    is_clip = AutoConfig.from_pretrained(path).model_type.startswith("clip")
    encoder = (CLIPTextModel if is_clip else AutoModel).from_pretrained(path)
    return TextConditioner(encoder, AutoTokenizer.from_pretrained(path), trained=trained)


def make_text_encoder(captions: Sequence[str], made_by: Recipe) -> TextConditioner:
    """Return a conditioner with a new encoder on a tokenizer whose tokens are the captions' words."""
    from noiseworks.kits.diffusers_hosts.tokenizers import tiny_clip_tokenizer
    from transformers import CLIPTextConfig, CLIPTextModel

    words = sorted({word for caption in captions for word in str(caption).lower().split()})
    tokenizer = tiny_clip_tokenizer(words, max_length=77)
    longest = max(len(ids) for ids in tokenizer([str(caption) for caption in captions])["input_ids"])
    tokenizer.model_max_length = min(77, -(-longest // 8) * 8)
    encoder = CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=made_by.context,
            intermediate_size=4 * made_by.context,
            num_hidden_layers=made_by.encoder_layers,
            num_attention_heads=made_by.context // 32,
            max_position_embeddings=tokenizer.model_max_length,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )
    return TextConditioner(encoder, tokenizer, trained=True)
