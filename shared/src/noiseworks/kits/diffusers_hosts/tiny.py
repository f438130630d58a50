"""Random pipelines of every supported family: 32-pixel images, below 1.5 M parameters, no download.

They answer whether a method attaches, counts, detaches and restores as it should; they draw noise, not
pictures.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from noiseworks.core.checks import check_choice
from noiseworks.kits.diffusers_hosts.tokenizers import tiny_clip_tokenizer, tiny_t5_tokenizer

if TYPE_CHECKING:
    from diffusers import AutoencoderKL, DiffusionPipeline, UNet2DConditionModel
    from transformers import CLIPTextModel, T5EncoderModel

FAMILIES = ("sd", "sd-inpaint", "instruct-pix2pix", "sdxl", "sd3", "flux", "pixart", "dit")
WORDS = (
    "a",
    "red",
    "green",
    "blue",
    "circle",
    "square",
    "cross",
    "small",
    "large",
    "on",
    "the",
    "left",
    "right",
)
_TOKENS = 16


def tiny_pipeline(family: str, seed: int = 0) -> "DiffusionPipeline":
    """Build a random pipeline of a family.

    Args:
        family: One of `FAMILIES`.
        seed: Seed of the weights.

    Returns:
        A pipeline on the CPU in float32 and evaluation mode, with its progress bar switched off.

    Raises:
        InputError: When the family is unknown.
    """
    check_choice("family", family, FAMILIES)
    builders = {"sdxl": _sdxl, "sd3": _sd3, "flux": _flux, "pixart": _pixart, "dit": _dit}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        pipe = builders[family]() if family in builders else _stable_diffusion(family)
    pipe.set_progress_bar_config(disable=True)
    for component in pipe.components.values():
        if isinstance(component, torch.nn.Module):
            component.eval().requires_grad_(False)
    return pipe


def tiny_pixel_pipeline(kind: str = "ddpm", seed: int = 0) -> "DiffusionPipeline":
    """Build a random pipeline that denoises 8-pixel images.

    Args:
        kind: "ddpm" or "ddim", without conditions, or "if": DeepFloyd's, with texts, a learned variance and a scheduler
            that thresholds.
        seed: Seed of the weights.

    Raises:
        InputError: When the kind is unknown.
    """
    import diffusers

    check_choice("kind", kind, ("ddpm", "ddim", "if"))
    common = {"sample_size": 8, "layers_per_block": 1, "block_out_channels": (8, 8), "norm_num_groups": 4}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if kind == "if":
            unet = diffusers.UNet2DConditionModel(
                in_channels=3,
                out_channels=6,
                down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
                up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
                mid_block_type=None,
                cross_attention_dim=32,
                attention_head_dim=4,
                **common,
            )
            tokenizer = tiny_t5_tokenizer(WORDS, _TOKENS)
            pipe = diffusers.IFPipeline(
                tokenizer=tokenizer,
                text_encoder=_t5(tokenizer, 32),
                unet=unet,
                scheduler=diffusers.DDPMScheduler(
                    variance_type="learned_range", thresholding=True, sample_max_value=1.5
                ),
                safety_checker=None,
                feature_extractor=None,
                watermarker=None,
                requires_safety_checker=False,
            )
            pipe.text_encoder.eval()
        else:
            plain = {"down_block_types": ("DownBlock2D",) * 2, "up_block_types": ("UpBlock2D",) * 2}
            unet = diffusers.UNet2DModel(**common, **plain)
            ddpm = diffusers.DDPMPipeline, diffusers.DDPMScheduler
            cls, scheduler = ddpm if kind == "ddpm" else (diffusers.DDIMPipeline, diffusers.DDIMScheduler)
            pipe = cls(unet, scheduler())
    unet.eval()
    pipe.set_progress_bar_config(disable=True)
    return pipe


def tiny_inputs(family: str, batch: int, guidance_scale: float = 4.0) -> dict[str, Any]:
    """Return a tiny pipeline's call arguments for a batch: prompts, images where needed, guidance, sizes.

    Args:
        family: One of `FAMILIES`.
        batch: Number of samples; sample i has the same prompt in every batch.
        guidance_scale: The guidance scale (`true_cfg_scale` for FLUX).

    Raises:
        InputError: When the family is unknown.
    """
    check_choice("family", family, FAMILIES)
    prompts = [f"a {WORDS[1 + i % 3]} {WORDS[4 + i % 2]} on the {WORDS[11 + i % 2]}" for i in range(batch)]
    base = {"prompt": prompts, "guidance_scale": guidance_scale}
    size = {"height": 32, "width": 32}
    ramp = torch.linspace(0, 1, 3 * 32 * 32)
    images = torch.stack([ramp.roll(97 * i).view(3, 32, 32) for i in range(batch)])
    match family:
        case "dit":
            return {"class_labels": [i % 10 for i in range(batch)], "guidance_scale": guidance_scale}
        case "flux":
            negative = {"negative_prompt": ["small"] * batch, "true_cfg_scale": guidance_scale}
            return {"prompt": prompts, "max_sequence_length": _TOKENS, **negative, **size}
        case "sd3":
            return {**base, "max_sequence_length": _TOKENS, **size}
        case "pixart":
            plain = {"use_resolution_binning": False, "clean_caption": False, "max_sequence_length": _TOKENS}
            return {**base, **plain, **size}
        case "sd-inpaint":
            mask = torch.zeros(batch, 1, 32, 32)
            mask[..., 8:24, 8:24] = 1.0
            return {**base, "image": images, "mask_image": mask, **size}
        case "instruct-pix2pix":
            return {**base, "image": images, "image_guidance_scale": 1.5}
    return {**base, **size}


def save_tiny_clip(folder: str | Path) -> None:
    """Write a random CLIP model with its processor, as `CLIPModel.from_pretrained` and `AutoProcessor` read them.

    It knows the words of `tiny_pipeline`'s prompts and sees images of 16x16.

    Args:
        folder: The model's folder.
    """
    from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel, CLIPProcessor, CLIPVisionConfig

    pipe = tiny_pipeline("sd")
    vision = CLIPVisionConfig(
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        image_size=16,
        patch_size=8,
    )
    text = pipe.text_encoder.config.to_dict()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = CLIPModel(CLIPConfig(text_config=text, vision_config=vision.to_dict(), projection_dim=8))
    model.save_pretrained(folder)
    side = {"height": 16, "width": 16}
    CLIPProcessor(CLIPImageProcessor(size=side, crop_size=side), pipe.tokenizer).save_pretrained(folder)


def _vae(latent_channels: int = 4) -> "AutoencoderKL":
    from diffusers import AutoencoderKL

    modern = {"shift_factor": 0.1, "use_quant_conv": False, "use_post_quant_conv": False}
    return AutoencoderKL(
        latent_channels=latent_channels,
        block_out_channels=(16, 16, 16),
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        layers_per_block=1,
        norm_num_groups=8,
        sample_size=32,
        **(modern if latent_channels == 16 else {}),
    )


def _clip(tokenizer, projected: bool = False) -> "CLIPTextModel":
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    config = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=tokenizer.model_max_length,
        projection_dim=32,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return CLIPTextModelWithProjection(config) if projected else CLIPTextModel(config)


def _t5(tokenizer, width: int) -> "T5EncoderModel":
    from transformers import T5Config, T5EncoderModel

    config = T5Config(
        vocab_size=len(tokenizer),
        d_model=width,
        d_kv=8,
        d_ff=64,
        num_layers=2,
        num_heads=4,
        pad_token_id=0,
        eos_token_id=1,
        decoder_start_token_id=0,
        is_encoder_decoder=False,
    )
    return T5EncoderModel(config)


def _unet(in_channels: int = 4, cross_attention_dim: int = 32, **extra: Any) -> "UNet2DConditionModel":
    from diffusers import UNet2DConditionModel

    return UNet2DConditionModel(
        sample_size=8,
        in_channels=in_channels,
        out_channels=4,
        block_out_channels=(32, 64),
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        layers_per_block=1,
        cross_attention_dim=cross_attention_dim,
        attention_head_dim=8,
        norm_num_groups=8,
        **extra,
    )


def _ddim():
    from diffusers import DDIMScheduler

    return DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
    )


def _stable_diffusion(family: str) -> "DiffusionPipeline":
    import diffusers

    cls, channels = {
        "sd": (diffusers.StableDiffusionPipeline, 4),
        "sd-inpaint": (diffusers.StableDiffusionInpaintPipeline, 9),
        "instruct-pix2pix": (diffusers.StableDiffusionInstructPix2PixPipeline, 8),
    }[family]
    tokenizer = tiny_clip_tokenizer(WORDS, _TOKENS)
    return cls(
        vae=_vae(),
        text_encoder=_clip(tokenizer),
        tokenizer=tokenizer,
        unet=_unet(channels),
        scheduler=_ddim(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def _sdxl() -> "DiffusionPipeline":
    from diffusers import EulerDiscreteScheduler, StableDiffusionXLPipeline

    first, second = tiny_clip_tokenizer(WORDS, _TOKENS), tiny_clip_tokenizer(WORDS, _TOKENS)
    return StableDiffusionXLPipeline(
        vae=_vae(),
        text_encoder=_clip(first),
        text_encoder_2=_clip(second, projected=True),
        tokenizer=first,
        tokenizer_2=second,
        unet=_unet(
            cross_attention_dim=64,
            addition_embed_type="text_time",
            addition_time_embed_dim=8,
            projection_class_embeddings_input_dim=32 + 6 * 8,
            use_linear_projection=True,
        ),
        scheduler=EulerDiscreteScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear"),
        add_watermarker=False,
    )


def _sd3() -> "DiffusionPipeline":
    from diffusers import FlowMatchEulerDiscreteScheduler, SD3Transformer2DModel, StableDiffusion3Pipeline

    first, second = tiny_clip_tokenizer(WORDS, _TOKENS), tiny_clip_tokenizer(WORDS, _TOKENS)
    third = tiny_t5_tokenizer(WORDS, _TOKENS)
    transformer = SD3Transformer2DModel(
        sample_size=8,
        patch_size=1,
        in_channels=16,
        out_channels=16,
        num_layers=2,
        num_attention_heads=4,
        attention_head_dim=8,
        joint_attention_dim=64,
        caption_projection_dim=32,
        pooled_projection_dim=64,
        pos_embed_max_size=16,
    )
    return StableDiffusion3Pipeline(
        transformer=transformer,
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
        vae=_vae(16),
        text_encoder=_clip(first, projected=True),
        tokenizer=first,
        text_encoder_2=_clip(second, projected=True),
        tokenizer_2=second,
        text_encoder_3=_t5(third, 64),
        tokenizer_3=third,
    )


def _flux() -> "DiffusionPipeline":
    from diffusers import FlowMatchEulerDiscreteScheduler, FluxPipeline, FluxTransformer2DModel

    first, second = tiny_clip_tokenizer(WORDS, _TOKENS), tiny_t5_tokenizer(WORDS, _TOKENS)
    transformer = FluxTransformer2DModel(
        patch_size=1,
        in_channels=64,
        num_layers=2,
        num_single_layers=2,
        num_attention_heads=2,
        attention_head_dim=16,
        joint_attention_dim=32,
        pooled_projection_dim=32,
        axes_dims_rope=(4, 4, 8),
        guidance_embeds=False,
    )
    return FluxPipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(),
        vae=_vae(16),
        text_encoder=_clip(first),
        tokenizer=first,
        text_encoder_2=_t5(second, 32),
        tokenizer_2=second,
        transformer=transformer,
    )


def _pixart() -> "DiffusionPipeline":
    from diffusers import DPMSolverMultistepScheduler, PixArtAlphaPipeline, PixArtTransformer2DModel

    tokenizer = tiny_t5_tokenizer(WORDS, _TOKENS)
    transformer = PixArtTransformer2DModel(
        sample_size=8,
        patch_size=2,
        num_layers=2,
        num_attention_heads=4,
        attention_head_dim=8,
        cross_attention_dim=32,
        caption_channels=32,
        in_channels=4,
        out_channels=8,
        norm_type="ada_norm_single",
        num_embeds_ada_norm=1000,
        use_additional_conditions=False,
    )
    return PixArtAlphaPipeline(
        tokenizer=tokenizer,
        text_encoder=_t5(tokenizer, 32),
        vae=_vae(),
        transformer=transformer,
        scheduler=DPMSolverMultistepScheduler(),
    )


def _dit() -> "DiffusionPipeline":
    from diffusers import DDIMScheduler, DiTPipeline, DiTTransformer2DModel

    # DiTPipeline hard-codes 1000 as the null class.
    transformer = DiTTransformer2DModel(
        sample_size=8,
        patch_size=2,
        num_layers=2,
        num_attention_heads=4,
        attention_head_dim=8,
        in_channels=4,
        out_channels=8,
        num_embeds_ada_norm=1000,
        norm_type="ada_norm_zero",
    )
    return DiTPipeline(
        transformer=transformer, vae=_vae(), scheduler=DDIMScheduler(), id2label={0: "red", 1: "blue"}
    )
