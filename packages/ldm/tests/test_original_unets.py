"""Original U-Nets without cross-attention compute the same as diffusers classes: arithmetic and heads."""

import math

import pytest
import torch
import torch.nn.functional as F
from noiseworks.core.errors import InputError
from noiseworks.ldm.conversion.original_names import convert_unet, make_original_unet
from noiseworks.ldm.diffusion.recipes import make_unet, recipe
from noiseworks.ldm.diffusion.unets import FixedHeadsUNet2DModel

PARAMS = {
    "image_size": 8,
    "in_channels": 7,
    "out_channels": 3,
    "model_channels": 32,
    "attention_resolutions": [2],
    "num_res_blocks": 1,
    "channel_mult": [1, 2],
    "num_heads": 8,
    "resblock_updown": True,
}


class OriginalUNet:
    """The original's arithmetic on original names, written out: two levels, one block each, `num_heads` heads.

    Options: residual resampling, scale and shift by the time embedding; attention on the second level.
    """

    def __init__(self, state, heads, residual, scaled):
        self.state, self.heads, self.residual, self.scaled = state, heads, residual, scaled

    def weights(self, name):
        return self.state[name + ".weight"], self.state.get(name + ".bias")

    def norm(self, name, x):
        return F.group_norm(x, 32, *self.weights(name), 1e-5)

    def conv(self, name, x, stride=1):
        weight, bias = self.weights(name)
        return F.conv2d(x, weight, bias, stride=stride, padding=weight.shape[-1] // 2)

    def block(self, name, x, resample=lambda x: x):
        h = resample(F.silu(self.norm(f"{name}.in_layers.0", x)))
        x, h = resample(x), self.conv(f"{name}.in_layers.2", h)
        time = F.linear(F.silu(self.time), *self.weights(f"{name}.emb_layers.1"))[..., None, None]
        if self.scaled:
            scale, shift = time.chunk(2, dim=1)
            h = self.norm(f"{name}.out_layers.0", h) * (1 + scale) + shift
        else:
            h = self.norm(f"{name}.out_layers.0", h + time)
        h = self.conv(f"{name}.out_layers.3", F.silu(h))
        shortcut = f"{name}.skip_connection"
        return (self.conv(shortcut, x) if f"{shortcut}.weight" in self.state else x) + h

    def attend(self, name, x):
        rows, channels, height, width = x.shape
        flat = self.norm(f"{name}.norm", x).flatten(2)
        qkv = F.conv1d(flat, *self.weights(f"{name}.qkv")).view(rows * self.heads, -1, height * width)
        q, k, v = qkv.chunk(3, dim=1)
        weight = torch.softmax(torch.einsum("bct,bcs->bts", q, k) / q.shape[1] ** 0.5, dim=-1)
        mixed = torch.einsum("bts,bcs->bct", weight, v).reshape(rows, channels, height * width)
        return x + F.conv1d(mixed, *self.weights(f"{name}.proj_out")).view_as(x)

    def down(self, name, x):
        if self.residual:
            return self.block(name, x, lambda x: F.avg_pool2d(x, 2))
        return self.conv(f"{name}.op", x, stride=2)

    def up(self, name, x):
        def double(x):
            return F.interpolate(x, scale_factor=2, mode="nearest")

        return self.block(name, x, double) if self.residual else self.conv(f"{name}.conv", double(x))

    def __call__(self, x, t):
        half = self.state["time_embed.0.weight"].shape[1] // 2
        angles = t * torch.exp(-math.log(10000) * torch.arange(half) / half)
        first = F.linear(torch.cat([angles.cos(), angles.sin()])[None], *self.weights("time_embed.0"))
        self.time = F.linear(F.silu(first), *self.weights("time_embed.2"))
        saved = [self.conv("input_blocks.0.0", x)]
        saved.append(self.block("input_blocks.1.0", saved[-1]))
        saved.append(self.down("input_blocks.2.0", saved[-1]))
        saved.append(self.attend("input_blocks.3.1", self.block("input_blocks.3.0", saved[-1])))
        x = self.block("middle_block.0", saved[-1])
        x = self.block("middle_block.2", self.attend("middle_block.1", x))
        for place in range(4):
            x = self.block(f"output_blocks.{place}.0", torch.cat([x, saved.pop()], dim=1))
            x = self.attend(f"output_blocks.{place}.1", x) if place < 2 else x
            x = self.up("output_blocks.1.2", x) if place == 1 else x
        return self.conv("out.2", F.silu(self.norm("out.0", x)))


def original_weights(heads, residual, scaled, in_channels=7):
    """Random weights of `OriginalUNet` with 32 and 64 channels, under the original names."""
    generator = torch.Generator().manual_seed(5)
    state = {}

    def add(name, *shape):
        state[f"{name}.weight"] = torch.randn(shape, generator=generator) * math.prod(shape[1:]) ** -0.5
        state[f"{name}.bias"] = 0.1 * torch.randn(shape[0], generator=generator)

    def norm(name, channels):
        state[f"{name}.weight"] = 1 + 0.1 * torch.randn(channels, generator=generator)
        state[f"{name}.bias"] = 0.1 * torch.randn(channels, generator=generator)

    def block(name, before, after):
        norm(f"{name}.in_layers.0", before)
        add(f"{name}.in_layers.2", after, before, 3, 3)
        add(f"{name}.emb_layers.1", (2 if scaled else 1) * after, 128)
        norm(f"{name}.out_layers.0", after)
        add(f"{name}.out_layers.3", after, after, 3, 3)
        if before != after:
            add(f"{name}.skip_connection", after, before, 1, 1)

    def attention(name, channels):
        norm(f"{name}.norm", channels)
        add(f"{name}.qkv", 3 * channels, channels, 1)
        add(f"{name}.proj_out", channels, channels, 1)

    add("time_embed.0", 128, 32)
    add("time_embed.2", 128, 128)
    add("input_blocks.0.0", 32, in_channels, 3, 3)
    block("input_blocks.1.0", 32, 32)
    if residual:
        block("input_blocks.2.0", 32, 32)
        block("output_blocks.1.2", 64, 64)
    else:
        add("input_blocks.2.0.op", 32, 32, 3, 3)
        add("output_blocks.1.2.conv", 64, 64, 3, 3)
    block("input_blocks.3.0", 32, 64)
    for name in ("middle_block.0", "middle_block.2"):
        block(name, 64, 64)
    for place, (before, after) in enumerate(((128, 64), (96, 64), (96, 32), (64, 32))):
        block(f"output_blocks.{place}.0", before, after)
    for name in ("input_blocks.3.1", "middle_block.1", "output_blocks.0.1", "output_blocks.1.1"):
        attention(name, 64)
    norm("out.0", 32)
    add("out.2", 3, 32, 3, 3)
    return state


@pytest.mark.parametrize("residual", [False, True])
@pytest.mark.parametrize("scaled", [False, True])
def test_plain_unets_compute_what_the_original_does(residual, scaled):
    state = original_weights(8, residual, scaled)
    params = PARAMS | {"resblock_updown": residual, "use_scale_shift_norm": scaled}
    converted = convert_unet(state, params).eval()
    x = torch.randn(2, 7, 8, 8, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        found = converted(x, torch.tensor(321)).sample
    torch.testing.assert_close(
        found, OriginalUNet(state, 8, residual, scaled)(x, 321.0), rtol=1e-4, atol=1e-4
    )


def test_heads_of_different_width_on_every_level_are_converted_saved_and_loaded(tmp_path):
    """Attention on both levels: 8 heads of width 4 and of width 8, as in the authors' inpainting model."""
    params = PARAMS | {"attention_resolutions": [1, 2]}
    unet = make_original_unet(params)
    assert isinstance(unet, FixedHeadsUNet2DModel)
    for level, width in ((0, 4), (1, 8)):
        attention = unet.down_blocks[level].attentions[0]
        assert (attention.heads, attention.scale) == (8, width**-0.5)
    unet.save_pretrained(tmp_path)
    loaded = FixedHeadsUNet2DModel.from_pretrained(tmp_path)
    x = torch.randn(1, 7, 8, 8)
    with torch.no_grad():
        torch.testing.assert_close(unet.eval()(x, 7).sample, loaded.eval()(x, 7).sample)
    assert unet.mid_block.attentions[0].heads == loaded.mid_block.attentions[0].heads == 8


def test_preset_of_the_paper_for_inpainting_has_eight_heads_on_every_level():
    made_by = recipe("inpaint", "paper")
    with torch.device("meta"):
        unet = make_unet("inpaint", made_by, 3, 64)
    heads = [block.attentions[0].heads for block in unet.down_blocks[1:]]
    assert heads == [8, 8, 8]
    assert unet.config.in_channels == 7


def test_residual_resampling_with_cross_attention_is_refused():
    crossed = {"use_spatial_transformer": True, "context_dim": 24}
    with pytest.raises(InputError, match="resblock_updown"):
        make_original_unet(PARAMS | crossed)
