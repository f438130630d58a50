"""The small networks of the `shapes` models, in diffusers' and transformers' own classes."""

from collections import Counter
from collections.abc import Sequence
from itertools import pairwise
from typing import TYPE_CHECKING

from noiseworks.bench.testbeds.shapes.scenes import COLORS, SHAPES, vocabulary

if TYPE_CHECKING:
    from diffusers import AutoencoderKL, DiTTransformer2DModel, SD3Transformer2DModel, UNet2DConditionModel
    from transformers import (
        CLIPTextModel,
        CLIPTextModelWithProjection,
        CLIPTokenizer,
        T5EncoderModel,
        T5Tokenizer,
    )

MAX_TOKENS = 20
T5_TOKENS = 20  # `max_sequence_length` of `shapes-sd3`; longer ones work as well
TEXT_WIDTH = 64
# Of the second pair, which protections that are made on the first one do not know.
NARROW_VAE, NARROW_UNET, NARROW_TEXT_WIDTH = (16, 16, 48), (32, 64), 32
CLASSES = tuple(f"{color} {shape}" for shape in SHAPES for color in COLORS)
NULL_CLASS = 1000  # what `DiTPipeline` uses whatever the number of classes


def make_vae(widths: tuple[int, int, int] = (32, 64, 64)) -> "AutoencoderKL":
    """Return an untrained first stage: 32x32x3 images to 8x8x4 latents; 0.92 M parameters at these widths."""
    from diffusers import AutoencoderKL

    return AutoencoderKL(
        latent_channels=4,
        block_out_channels=widths,
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        layers_per_block=1,
        norm_num_groups=8,
        sample_size=32,
        mid_block_add_attention=False,
        shift_factor=0.0,
    )


def make_tokenizer(words: Sequence[str] = vocabulary(), max_length: int = MAX_TOKENS) -> "CLIPTokenizer":
    """Return a CLIP tokenizer with one token for every given word; other words fall apart into characters."""
    from transformers import CLIPTokenizer

    characters = [chr(code) for code in range(33, 127)]
    merges = learn_merges(words)
    pieces = [piece for c in characters for piece in (c, c + "</w>")] + [a + b for a, b in merges]
    # The end token must have the largest id: the text model looks for it there.
    vocab = {piece: i for i, piece in enumerate([*pieces, "<|startoftext|>", "<|endoftext|>"])}
    return CLIPTokenizer(vocab=vocab, merges=merges, model_max_length=max_length)


def learn_merges(words: Sequence[str]) -> list[tuple[str, str]]:
    """Return byte-pair merges that make one token of every word, the same ones in every process.

    The most frequent pair is merged first, the alphabetically first one among equals. (The trainer of `tokenizers`
    breaks ties by an order that changes from process to process, and ids with it.)
    """
    parts = [[*word[:-1], word[-1] + "</w>"] for word in sorted(set(words))]
    merges: list[tuple[str, str]] = []
    while any(len(part) > 1 for part in parts):
        counts = Counter(pair for part in parts for pair in pairwise(part))
        best = min(counts, key=lambda pair: (-counts[pair], pair))
        merges.append(best)
        parts = [_merged(part, best) for part in parts]
    return merges


def _merged(part: list[str], pair: tuple[str, str]) -> list[str]:
    merged: list[str] = []
    for piece in part:
        if merged and (merged[-1], piece) == pair:
            merged[-1] += piece
        else:
            merged.append(piece)
    return merged


def _text_config(tokenizer: "CLIPTokenizer", width: int, layers: int):
    from transformers import CLIPTextConfig

    return CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=width,
        projection_dim=width,
        intermediate_size=4 * width,
        num_hidden_layers=layers,
        num_attention_heads=4,
        max_position_embeddings=tokenizer.model_max_length,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )


def make_text_encoder(tokenizer: "CLIPTokenizer", width: int = TEXT_WIDTH) -> "CLIPTextModel":
    """Return an untrained text encoder of two layers, of width 64 in `shapes`."""
    from transformers import CLIPTextModel

    return CLIPTextModel(_text_config(tokenizer, width, 2))


def make_projected_text_encoder(tokenizer: "CLIPTokenizer") -> "CLIPTextModelWithProjection":
    """Return one of the two untrained text encoders of `shapes-sd3`: three layers of width 32."""
    from transformers import CLIPTextModelWithProjection

    return CLIPTextModelWithProjection(_text_config(tokenizer, TEXT_WIDTH // 2, 3))


def make_t5_tokenizer(words: Sequence[str] = vocabulary(), max_length: int = T5_TOKENS) -> "T5Tokenizer":
    """Return a T5 tokenizer with one token for every given word; other words fall apart into letters."""
    import string

    from transformers import T5Tokenizer

    vocab = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("\u2581", -2.0)]
    vocab += [("\u2581" + word, -1.0) for word in sorted(set(words))]
    vocab += [(letter, -10.0) for letter in string.ascii_lowercase + string.digits + ".,!"]
    return T5Tokenizer(vocab=vocab, extra_ids=0, model_max_length=max_length)


def make_t5_encoder(tokenizer: "T5Tokenizer") -> "T5EncoderModel":
    """Return the untrained T5 encoder of `shapes-sd3`: one layer of width 64."""
    from transformers import T5Config, T5EncoderModel

    config = T5Config(
        vocab_size=len(tokenizer),
        d_model=TEXT_WIDTH,
        d_kv=16,
        d_ff=128,
        num_layers=1,
        num_heads=4,
        feed_forward_proj="gated-gelu",
        pad_token_id=0,
        eos_token_id=1,
        decoder_start_token_id=0,
        is_encoder_decoder=False,
    )
    return T5EncoderModel(config)


def make_unet(
    widths: tuple[int, int] = (48, 96), text_width: int = TEXT_WIDTH, in_channels: int = 4
) -> "UNet2DConditionModel":
    """Return an untrained U-Net for 8x8x4 latents; with the defaults that of `shapes`, 1.8 M parameters.

    Captions enter by cross-attention and, pooled, beside the time, as in pipelines of two text paths; with the
    second path places and relations are learned several times faster.

    Args:
        widths: Channels at 8x8 and 4x4.
        text_width: Of the text encoder.
        in_channels: 4, or 9 for inpainting.
    """
    from diffusers import UNet2DConditionModel

    return UNet2DConditionModel(
        sample_size=8,
        in_channels=in_channels,
        out_channels=4,
        block_out_channels=widths,
        layers_per_block=1,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        cross_attention_dim=text_width,
        attention_head_dim=4,
        norm_num_groups=8,
        addition_embed_type="text",
        addition_embed_type_num_heads=4,
    )


def make_sd3_transformer() -> "SD3Transformer2DModel":
    """Return the untrained transformer of `shapes-sd3`: four blocks of width 96 on single latent pixels."""
    from diffusers import SD3Transformer2DModel

    return SD3Transformer2DModel(
        sample_size=8,
        patch_size=1,
        in_channels=4,
        out_channels=4,
        num_layers=4,
        num_attention_heads=3,
        attention_head_dim=32,
        joint_attention_dim=TEXT_WIDTH,
        caption_projection_dim=96,
        pooled_projection_dim=TEXT_WIDTH,
        pos_embed_max_size=8,
        qk_norm="rms_norm",
    )


def make_dit() -> "DiTTransformer2DModel":
    """Return the untrained transformer of `shapes-dit`: four blocks of width 64, 24 of 1000 classes used.

    The class drops labels in every block on its own, which is not classifier-free training: its dropout is
    switched off here, and training replaces the labels of whole rows.
    """
    from diffusers import DiTTransformer2DModel

    model = DiTTransformer2DModel(
        sample_size=8,
        patch_size=1,
        num_layers=4,
        num_attention_heads=2,
        attention_head_dim=32,
        in_channels=4,
        out_channels=4,
        num_embeds_ada_norm=NULL_CLASS,
        norm_type="ada_norm_zero",
    )
    for block in model.transformer_blocks:
        block.norm1.emb.class_embedder.dropout_prob = 0.0
    return model
