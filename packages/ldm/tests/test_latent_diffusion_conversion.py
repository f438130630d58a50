import json

import numpy as np
import pytest
import torch
from diffusers import (
    AutoencoderKL,
    LDMPipeline,
    StableDiffusionInpaintPipeline,
    UNet2DConditionModel,
    UNet2DModel,
    VQModel,
)
from noiseworks.core.errors import InputError
from noiseworks.ldm.conversion import pipelines
from noiseworks.ldm.conversion.original_names import convert_first_stage, convert_unet, make_original_unet
from noiseworks.ldm.conversion.originals import bert_name, convert
from noiseworks.ldm.options import SampleSettings

# The original names, written out for two levels with one residual block each, attention on the second.
UNET = {
    "time_embed.0": "time_embedding.linear_1",
    "time_embed.2": "time_embedding.linear_2",
    "input_blocks.0.0": "conv_in",
    "input_blocks.1.0": "down_blocks.0.resnets.0",
    "input_blocks.2.0.op": "down_blocks.0.downsamplers.0.conv",
    "input_blocks.3.0": "down_blocks.1.resnets.0",
    "input_blocks.3.1": "down_blocks.1.attentions.0",
    "middle_block.0": "mid_block.resnets.0",
    "middle_block.1": "mid_block.attentions.0",
    "middle_block.2": "mid_block.resnets.1",
    "output_blocks.0.0": "up_blocks.0.resnets.0",
    "output_blocks.0.1": "up_blocks.0.attentions.0",
    "output_blocks.1.0": "up_blocks.0.resnets.1",
    "output_blocks.1.1": "up_blocks.0.attentions.1",
    "output_blocks.1.2.conv": "up_blocks.0.upsamplers.0.conv",
    "output_blocks.2.0": "up_blocks.1.resnets.0",
    "output_blocks.3.0": "up_blocks.1.resnets.1",
    "out.0": "conv_norm_out",
    "out.2": "conv_out",
}
RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
FIRST_STAGE = {
    "encoder.down.0.block.0": "encoder.down_blocks.0.resnets.0",
    "encoder.down.0.downsample.conv": "encoder.down_blocks.0.downsamplers.0.conv",
    "encoder.down.1.block.0": "encoder.down_blocks.1.resnets.0",
    "encoder.down.1.attn.0": "encoder.down_blocks.1.attentions.0",
    "decoder.up.1.block.0": "decoder.up_blocks.0.resnets.0",
    "decoder.up.1.block.1": "decoder.up_blocks.0.resnets.1",
    "decoder.up.1.attn.0": "decoder.up_blocks.0.attentions.0",
    "decoder.up.1.attn.1": "decoder.up_blocks.0.attentions.1",
    "decoder.up.1.upsample.conv": "decoder.up_blocks.0.upsamplers.0.conv",
    "decoder.up.0.block.0": "decoder.up_blocks.1.resnets.0",
    "decoder.up.0.block.1": "decoder.up_blocks.1.resnets.1",
}
for side in ("encoder", "decoder"):
    FIRST_STAGE |= {
        f"{side}.conv_in": f"{side}.conv_in",
        f"{side}.mid.block_1": f"{side}.mid_block.resnets.0",
        f"{side}.mid.attn_1": f"{side}.mid_block.attentions.0",
        f"{side}.mid.block_2": f"{side}.mid_block.resnets.1",
        f"{side}.norm_out": f"{side}.conv_norm_out",
        f"{side}.conv_out": f"{side}.conv_out",
    }
FIRST_STAGE |= {name: name for name in ("quant_conv", "post_quant_conv", "quantize.embedding")}

UNET_PARAMS = {
    "image_size": 8,
    "in_channels": 3,
    "out_channels": 3,
    "model_channels": 32,
    "attention_resolutions": [2],
    "num_res_blocks": 1,
    "channel_mult": [1, 2],
    "num_head_channels": 16,
}
CROSSED = {"use_spatial_transformer": True, "transformer_depth": 2, "context_dim": 24}
DDCONFIG = {
    "double_z": True,
    "z_channels": 3,
    "resolution": 16,
    "in_channels": 3,
    "out_ch": 3,
    "ch": 32,
    "ch_mult": [1, 2],
    "num_res_blocks": 1,
    "attn_resolutions": [8],
}


def original_unet(unet, crossed):
    state = {}
    target = unet.state_dict()
    for old, new in UNET.items():
        below = {name.removeprefix(new + "."): w for name, w in target.items() if name.startswith(new + ".")}
        for name, weight in below.items():
            part, kind = name.rsplit(".", 1) if "." in name else ("", name)
            if ".resnets." in new:
                state[f"{old}.{RESNET[part]}.{kind}"] = weight
            elif ".attentions." not in new or crossed:
                state[f"{old}.{name}"] = weight
            elif part == "group_norm":
                state[f"{old}.norm.{kind}"] = weight
            elif part == "to_out.0":
                state[f"{old}.proj_out.{kind}"] = weight[..., None] if kind == "weight" else weight
        if ".attentions." in new and not crossed:
            for kind in ("weight", "bias"):
                rows = []
                for head in range(unet.get_submodule(new).heads):
                    for name in ("to_q", "to_k", "to_v"):
                        rows.append(below[f"{name}.{kind}"][16 * head : 16 * head + 16])
                joined = torch.cat(rows)
                state[f"{old}.qkv.{kind}"] = joined[..., None] if kind == "weight" else joined
    return state


def original_first_stage(vae):
    names = {"group_norm": "norm", "to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "proj_out"}
    state = {}
    for name, weight in vae.state_dict().items():
        old, new = max(
            ((o, n) for o, n in FIRST_STAGE.items() if name.startswith(n + ".")),
            key=lambda pair: len(pair[1]),
        )
        rest = name.removeprefix(new + ".")
        part, kind = rest.rsplit(".", 1) if "." in rest else ("", rest)
        if ".attentions." in new:
            part = names[part]
            weight = weight[:, :, None, None] if weight.ndim == 2 else weight
        part = part.replace("conv_shortcut", "nin_shortcut")
        state[".".join(piece for piece in (old, part, kind) if piece)] = weight
    return state


def random_unet(crossed):
    torch.manual_seed(0)
    common = {
        "sample_size": 8,
        "in_channels": 3,
        "out_channels": 3,
        "block_out_channels": (32, 64),
        "layers_per_block": 1,
    }
    if crossed:
        return UNet2DConditionModel(
            **common,
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
            attention_head_dim=(2, 4),
            cross_attention_dim=24,
            transformer_layers_per_block=2,
        )
    return UNet2DModel(
        **common,
        down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
        attention_head_dim=16,
    )


def random_first_stage(vq):
    torch.manual_seed(1)
    common = {
        "block_out_channels": (32, 64),
        "down_block_types": ("DownEncoderBlock2D", "AttnDownEncoderBlock2D"),
        "up_block_types": ("AttnUpDecoderBlock2D", "UpDecoderBlock2D"),
        "latent_channels": 3,
        "sample_size": 16,
        "scaling_factor": 1.0,
    }
    return VQModel(**common, num_vq_embeddings=8, vq_embed_dim=3) if vq else AutoencoderKL(**common)


def assert_same(module, other):
    assert type(module) is type(other)
    for name, weight in other.state_dict().items():
        assert torch.equal(module.state_dict()[name], weight), name


@pytest.mark.parametrize("crossed", [False, True])
def test_every_weight_of_a_unet_finds_its_place(crossed):
    unet = random_unet(crossed)
    params = UNET_PARAMS | (CROSSED if crossed else {})
    converted = convert_unet(original_unet(unet, crossed), params)
    for name, weight in unet.state_dict().items():
        assert torch.equal(converted.state_dict()[name], weight), name
    sample, t, states = torch.randn(1, 3, 8, 8), torch.tensor(7), torch.randn(1, 2, 24)
    inputs = (sample, t, states) if crossed else (sample, t)
    with torch.no_grad():
        torch.testing.assert_close(converted.eval()(*inputs).sample, unet.eval()(*inputs).sample)


def test_plain_attention_equals_the_original_formula():
    unet = random_unet(False).eval()
    state = original_unet(unet, False)
    attention = convert_unet(state, UNET_PARAMS).eval().mid_block.attentions[0]
    x = torch.randn(2, 64, 4, 4)
    old = {
        name: state[f"middle_block.1.{name}"]
        for name in ("qkv.weight", "qkv.bias", "proj_out.weight", "proj_out.bias")
    }
    normed = torch.nn.functional.group_norm(
        x, 32, state["middle_block.1.norm.weight"], state["middle_block.1.norm.bias"], 1e-5
    ).flatten(2)
    qkv = torch.nn.functional.conv1d(normed, old["qkv.weight"], old["qkv.bias"])
    q, k, v = qkv.reshape(2 * 4, 3 * 16, 16).split(16, dim=1)  # 4 heads of width 16, 16 positions
    weight = torch.softmax(torch.einsum("bct,bcs->bts", q, k) / 4.0, dim=-1)
    mixed = torch.einsum("bts,bcs->bct", weight, v).reshape(2, 64, 16)
    expected = x.flatten(2) + torch.nn.functional.conv1d(mixed, old["proj_out.weight"], old["proj_out.bias"])
    with torch.no_grad():
        torch.testing.assert_close(attention(x).flatten(2), expected, atol=1e-5, rtol=1e-5)


def test_inpainting_checkpoint_becomes_a_pipeline_that_fills(tmp_path):
    tiny = UNET_PARAMS | {"in_channels": 7}
    unet, vae = make_original_unet(tiny), random_first_stage(True)
    state = {f"model.diffusion_model.{n}": w for n, w in original_unet(unet, False).items()}
    state |= {f"first_stage_model.{n}": w for n, w in original_first_stage(vae).items()}
    config = {
        "linear_start": 0.0015,
        "linear_end": 0.0205,
        "unet_config": {"params": tiny},
        "first_stage_config": {"params": {"ddconfig": DDCONFIG, "embed_dim": 3, "n_embed": 8}},
        "cond_stage_config": "__is_first_stage__",
    }
    torch.save({"state_dict": state}, tmp_path / "model.ckpt")
    (tmp_path / "config.yaml").write_text(json.dumps({"model": {"params": config}}))
    made = convert(tmp_path / "model.ckpt", tmp_path / "config.yaml", tmp_path / "out")
    assert made.kind == "InpaintPipeline"
    model = pipelines.load_model(tmp_path / "out")
    assert_same(model.unet, unet)
    image, mask = torch.rand(1, 3, 16, 16) * 2 - 1, torch.zeros(1, 1, 16, 16)
    mask[..., 4:12, 4:12] = 1
    filled = pipelines.fill(model, image, mask, SampleSettings(num_inference_steps=2))
    kept = mask.expand_as(image) == 0
    assert torch.equal(filled[kept], image[kept])
    assert not torch.equal(filled[~kept], image[~kept])


def test_text_checkpoint_with_nine_channels_becomes_the_inpainting_pipeline_of_diffusers(tmp_path):
    from noiseworks.kits.diffusers_hosts.tokenizers import tiny_clip_tokenizer
    from transformers import CLIPTextConfig, CLIPTextModel

    tokenizer = tiny_clip_tokenizer(["red", "circle"], max_length=77)
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    size = {"hidden_size": 64, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 1}
    encoder = CLIPTextModel(CLIPTextConfig(vocab_size=len(tokenizer), **size))
    torch.manual_seed(0)
    crossed = UNET_PARAMS | CROSSED | {"in_channels": 9, "out_channels": 4, "context_dim": 64}
    unet = make_original_unet(crossed)
    vae = AutoencoderKL(**{**random_first_stage(False).config, "latent_channels": 4})
    state = {f"model.diffusion_model.{n}": w for n, w in original_unet(unet, True).items()}
    state |= {f"first_stage_model.{n}": w for n, w in original_first_stage(vae).items()}
    state |= {f"cond_stage_model.transformer.text_model.{n}": w for n, w in encoder.state_dict().items()}
    state["cond_stage_model.transformer.text_model.embeddings.position_ids"] = torch.arange(77)[None]
    stage = {"ddconfig": DDCONFIG | {"z_channels": 4}, "embed_dim": 4}
    config = {
        "linear_start": 0.00085,
        "linear_end": 0.012,
        "conditioning_key": "hybrid",
        "scale_factor": 0.18215,
        "unet_config": {"params": crossed},
        "first_stage_config": {"params": stage},
        "cond_stage_config": {"target": "ldm.modules.encoders.modules.FrozenCLIPEmbedder"},
    }
    torch.save({"state_dict": state}, tmp_path / "model.ckpt")
    (tmp_path / "config.yaml").write_text(json.dumps({"model": {"params": config}}))
    files = (tmp_path / "model.ckpt", tmp_path / "config.yaml", tmp_path / "out")
    with pytest.raises(InputError, match="CLIP's"):
        convert(*files)
    made = convert(*files, tokenizer=str(tmp_path / "tokenizer"))
    assert made.kind == "StableDiffusionInpaintPipeline"
    pipeline = StableDiffusionInpaintPipeline.from_pretrained(tmp_path / "out")
    assert_same(pipeline.text_encoder, encoder)
    assert_same(pipeline.unet, unet)
    assert pipeline.vae.config.scaling_factor == pytest.approx(0.18215)
    pipeline.set_progress_bar_config(disable=True)
    image = pipeline(
        "red circle", np.zeros((16, 16, 3)), np.ones((16, 16)), height=16, width=16, num_inference_steps=2
    ).images[0]
    assert image.size == (16, 16)


@pytest.mark.parametrize("vq", [False, True])
def test_every_weight_of_a_first_stage_finds_its_place(vq):
    vae = random_first_stage(vq)
    params = {"ddconfig": DDCONFIG, "embed_dim": 3} | ({"n_embed": 8} if vq else {})
    state = original_first_stage(vae) | {"loss.discriminator.main.0.weight": torch.zeros(1)}
    converted = convert_first_stage(state, params, "")
    assert_same(converted, vae)


def checkpoint_files(tmp_path, **cond_stage):
    unet, vae = random_unet(bool(cond_stage)), random_first_stage(True)
    state = {f"model.diffusion_model.{n}": w for n, w in original_unet(unet, bool(cond_stage)).items()}
    averaged = {
        f"model_ema.diffusion_model{n.replace('.', '')}": w + 1
        for n, w in original_unet(unet, bool(cond_stage)).items()
    }
    state |= averaged | {f"first_stage_model.{n}": w for n, w in original_first_stage(vae).items()}
    state |= {f"cond_stage_model.{n}": w for n, w in cond_stage.pop("weights", {}).items()}
    config = {
        "model": {
            "target": "ldm.models.diffusion.ddpm.LatentDiffusion",
            "params": {
                "linear_start": 0.0015,
                "linear_end": 0.0195,
                "timesteps": 1000,
                "unet_config": {"params": UNET_PARAMS | (CROSSED if cond_stage else {})},
                "first_stage_config": {"params": {"ddconfig": DDCONFIG, "embed_dim": 3, "n_embed": 8}},
                "cond_stage_config": cond_stage or "__is_unconditional__",
            },
        }
    }
    torch.save({"state_dict": state, "global_step": 3}, tmp_path / "model.ckpt")
    (tmp_path / "config.yaml").write_text(json.dumps(config))
    return unet, vae


def test_unconditional_checkpoint_becomes_an_ldm_pipeline(tmp_path):
    unet, vae = checkpoint_files(tmp_path)
    made = convert(tmp_path / "model.ckpt", tmp_path / "config.yaml", tmp_path / "out", ema=False)
    assert made.kind == "LDMPipeline"
    pipeline = LDMPipeline.from_pretrained(tmp_path / "out")
    assert_same(pipeline.vqvae, vae)
    assert torch.equal(pipeline.unet.conv_in.weight, unet.conv_in.weight)
    convert(tmp_path / "model.ckpt", tmp_path / "config.yaml", tmp_path / "out")
    averaged = LDMPipeline.from_pretrained(tmp_path / "out").unet
    assert torch.equal(averaged.conv_in.weight, unet.conv_in.weight + 1)


def test_class_checkpoint_becomes_a_pipeline_with_its_classes(tmp_path):
    table = torch.randn(5, 24)
    checkpoint_files(
        tmp_path,
        target="ldm.modules.encoders.modules.ClassEmbedder",
        params={"n_classes": 5, "embed_dim": 24},
        weights={"embedding.weight": table},
    )
    made = convert(tmp_path / "model.ckpt", tmp_path / "config.yaml", tmp_path / "out")
    assert made.kind == "ClassToImagePipeline"
    model = pipelines.load_model(tmp_path / "out")
    assert torch.equal(model.conditioner.embedding.weight, table)
    assert model.conditioner.num_classes == 4


def test_names_of_the_text_transformer():
    assert bert_name("transformer.token_emb.weight") == "model.embed_tokens.weight"
    assert bert_name("transformer.norm.bias") == "model.layer_norm.bias"
    assert (
        bert_name("transformer.attn_layers.layers.2.0.weight") == "model.layers.1.self_attn_layer_norm.weight"
    )
    assert (
        bert_name("transformer.attn_layers.layers.2.1.to_q.weight")
        == "model.layers.1.self_attn.q_proj.weight"
    )
    assert bert_name("transformer.attn_layers.layers.3.1.net.0.0.bias") == "model.layers.1.fc1.bias"
    assert bert_name("transformer.attn_layers.layers.3.1.net.2.bias") == "model.layers.1.fc2.bias"


class Payload:
    pass


def test_bad_checkpoints_are_refused(tmp_path):
    checkpoint_files(tmp_path)
    config = tmp_path / "config.yaml"
    torch.save({"state_dict": {}, "callback": Payload()}, tmp_path / "pickled.ckpt")
    with pytest.raises(InputError, match="could run code"):
        convert(tmp_path / "pickled.ckpt", config, tmp_path / "bad")
    (tmp_path / "broken.ckpt").write_bytes(b"no checkpoint")
    with pytest.raises(InputError, match=r"broken\.ckpt"):
        convert(tmp_path / "broken.ckpt", config, tmp_path / "bad")
    settings = json.loads(config.read_text())
    settings["model"]["params"]["unet_config"]["params"]["channel_mult"] = [1, 4]
    (tmp_path / "other.yaml").write_text(json.dumps(settings))
    with pytest.raises(InputError, match="the U-Net does not fit"):
        convert(tmp_path / "model.ckpt", tmp_path / "other.yaml", tmp_path / "bad")
    assert not (tmp_path / "bad").exists()
