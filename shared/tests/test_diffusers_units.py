"""Units of a denoiser masked and removed, on tiny pipelines of every family."""

import json

import pytest
import torch
from noiseworks.core.errors import InputError, UnsupportedHostError
from noiseworks.kits.diffusers_hosts import (
    denoiser_of,
    find_units,
    load_pipeline,
    mask_units,
    remove_units,
    sample_generators,
    through_run,
    tiny_inputs,
    tiny_pipeline,
)

FAMILIES = ("sd", "sdxl", "sd3", "flux", "pixart", "dit")
ALL = ("attn", "ffn", "norm")


def latents(pipe, family):
    steps = 2 if family == "pixart" else 1  # its pipeline cannot make one step
    arguments = {**tiny_inputs(family, 1), "num_inference_steps": steps, "generator": sample_generators([0])}
    return through_run(pipe, arguments)


def double(pipe):
    denoiser_of(pipe).double()
    for name in ("text_encoder", "text_encoder_2", "text_encoder_3", "vae"):
        if getattr(pipe, name, None) is not None:
            getattr(pipe, name).double()
    return pipe


def some_units(units):
    """Keep about half, none of the first attention and feed-forward layer, none of the last attention."""
    generator = torch.Generator().manual_seed(1)
    masks = {
        path: (torch.rand(g.count, generator=generator) > 0.5).float() for path, g in units.groups.items()
    }
    heads = [path for path, group in units.groups.items() if group.kind == "attn"]
    neurons = [path for path, group in units.groups.items() if group.kind == "ffn"]
    for path in (heads[0], heads[-1], neurons[0]):
        masks[path].zero_()
    return masks, {path: mask.nonzero().flatten().tolist() for path, mask in masks.items()}


@pytest.mark.parametrize("family", FAMILIES)
def test_removed_units_are_what_masked_ones_compute_also_after_saving(family, tmp_path):
    pipe = double(tiny_pipeline(family))
    model = denoiser_of(pipe)
    units = find_units(model, ALL)
    masks, kept = some_units(units)
    with torch.no_grad():
        whole = latents(pipe, family)
        with mask_units(model, units, masks, "test"):
            masked = latents(pipe, family)
        assert torch.equal(latents(pipe, family), whole)
        remove_units(pipe, kept)
        removed = latents(pipe, family)
        assert float((whole - masked).abs().max()) > 1e-3
        torch.testing.assert_close(removed, masked, rtol=1e-10, atol=1e-10)
        size = sum(p.numel() for p in denoiser_of(pipe).parameters())
        assert size == units.kept_parameters(kept)
        pipe.save_pretrained(tmp_path / "small")
        again = load_pipeline(tmp_path / "small", dtype=torch.float64)
        assert sum(p.numel() for p in denoiser_of(again).parameters()) == size
        torch.testing.assert_close(latents(again, family), removed, rtol=1e-10, atol=1e-10)


ELSEWHERE = """
import json, sys

class Refusing:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "noiseworks":
            raise ImportError(f"{name} was asked for")

sys.meta_path.insert(0, Refusing())
import torch
from diffusers import DiffusionPipeline

torch.set_num_threads(int(sys.argv[1]))
arguments = json.load(open("arguments.json"))
for folder in ("small", "again"):  # what diffusers saves of it, it also loads
    pipe = DiffusionPipeline.from_pretrained(folder, trust_remote_code=True)
    torch.save(pipe(**arguments, generator=torch.Generator().manual_seed(0), output_type="pt").images, folder + ".pt")
    pipe.save_pretrained("again")
assert not [name for name in sys.modules if name.startswith("noiseworks")]
"""


def test_diffusers_alone_draws_what_a_pruned_pipeline_draws_here(tmp_path, warm):
    """DiT has all that can go (heads, neurons, outputs of modulation layers) and loads without text encoders."""
    pipe = tiny_pipeline("dit")
    remove_units(pipe, some_units(find_units(denoiser_of(pipe), ALL))[1])
    pipe.save_pretrained(tmp_path / "small")
    arguments = {**tiny_inputs("dit", 1), "num_inference_steps": 2}
    (tmp_path / "arguments.json").write_text(json.dumps(arguments))
    (tmp_path / "program.py").write_text(ELSEWHERE)
    done = warm("python", tmp_path / "program.py", torch.get_num_threads(), cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    here = pipe(**arguments, generator=sample_generators([0]), output_type="pt").images
    for folder in ("small", "again"):
        torch.testing.assert_close(
            torch.load(tmp_path / f"{folder}.pt", weights_only=True), here, rtol=1e-5, atol=1e-6
        )


def test_an_attention_layer_without_heads_puts_out_its_bias():
    pipe = tiny_pipeline("sd")
    path = "down_blocks.0.attentions.0.transformer_blocks.0.attn1"
    layer = pipe.unet.get_submodule(path)
    torch.nn.init.normal_(layer.to_out[0].bias, generator=torch.Generator().manual_seed(0))
    bias = layer.to_out[0].bias.clone()
    remove_units(pipe, {path: []})
    out = pipe.unet.get_submodule(path)(torch.randn(2, 5, 32))
    assert torch.equal(out, bias.expand(2, 5, 32))


def test_units_removed_in_two_stages_are_those_removed_at_once():
    path = "down_blocks.0.attentions.0.transformer_blocks.0.attn1"
    once, twice = tiny_pipeline("sd"), tiny_pipeline("sd")
    remove_units(once, {path: [1, 4, 6], path.replace("attn1", "ff"): range(7)})
    remove_units(twice, {path: [0, 1, 4, 6]})
    remove_units(twice, {path: [1, 2, 3], path.replace("attn1", "ff"): range(7)})
    with torch.no_grad():
        assert torch.equal(latents(once, "sd"), latents(twice, "sd"))
    assert dict(once.unet.config)["kept_units"] == dict(twice.unet.config)["kept_units"]


def test_a_mask_of_ones_changes_no_bit_and_a_mask_a_row_masks_that_row():
    pipe = tiny_pipeline("sdxl")
    units = find_units(denoiser_of(pipe))
    ones = {path: torch.ones(group.count) for path, group in units.groups.items()}
    with torch.no_grad():
        whole = latents(pipe, "sdxl")
        with mask_units(pipe.unet, units, ones, "test"):
            assert torch.equal(latents(pipe, "sdxl"), whole)
        x = torch.randn(2, 5, 32, generator=torch.Generator().manual_seed(0))
        path = "down_blocks.0.attentions.0.transformer_blocks.0.ff"
        layer = pipe.unet.get_submodule(path)
        rows = ones | {path: torch.stack([torch.ones(128), torch.zeros(128)])}
        with mask_units(pipe.unet, units, rows, "test"):
            out = layer(x)
        torch.testing.assert_close(out, torch.stack([layer(x)[0], layer.net[2].bias.expand(5, 32)]))


def test_units_that_are_not_there_are_refused():
    pipe = tiny_pipeline("sd")
    with pytest.raises(InputError, match="nowhere"):
        find_units(pipe.unet, include="nowhere")
    with pytest.raises(InputError, match="cannot be kept"):
        remove_units(pipe, {"mid_block.attentions.0.transformer_blocks.0.attn1": [99]})
    units = find_units(pipe.unet)
    ones = {path: torch.ones(group.count) for path, group in units.groups.items()}
    with mask_units(pipe.unet, units, ones, "test"), pytest.raises(InputError, match="detach"):
        remove_units(pipe, {next(iter(ones)): [0]})
    pipe.unet.fuse_qkv_projections()
    with pytest.raises(UnsupportedHostError, match="fused"):
        find_units(pipe.unet)


def test_sizes_of_sdxl():
    from diffusers import UNet2DConditionModel

    with torch.device("meta"):
        unet = UNet2DConditionModel(
            block_out_channels=(320, 640, 1280),
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
            transformer_layers_per_block=(1, 2, 10),
            attention_head_dim=(5, 10, 20),
            cross_attention_dim=2048,
            addition_embed_type="text_time",
            addition_time_embed_dim=256,
            projection_class_embeddings_input_dim=2816,
            use_linear_projection=True,
        )
    units = find_units(unet)
    heads = [group for group in units.groups.values() if group.kind == "attn"]
    neurons = [group for group in units.groups.values() if group.kind == "ffn"]
    assert units.total == 2_567_463_684
    assert (len(heads), sum(group.count for group in heads)) == (140, 2600)
    assert (len(neurons), sum(group.count for group in neurons)) == (70, 332_800)
    prices = {path.split(".")[-1]: set() for path in units.groups}
    for path, price in units.prices.items():
        prices[path.split(".")[-1]].add(price)
    assert prices["attn1"] == {163_840, 327_680}
    assert prices["ff"] == {1_922, 3_842}


@pytest.mark.parametrize("family", FAMILIES)
def test_gradients_through_a_run_are_those_of_the_plain_graph(family):
    pipe = tiny_pipeline(family)
    model = denoiser_of(pipe)
    units = find_units(model, ALL)
    masks = {
        path: torch.full((group.count,), 0.9, requires_grad=True) for path, group in units.groups.items()
    }
    found = []
    for checkpointed in (True, False):
        arguments = {**tiny_inputs(family, 1), "num_inference_steps": 2, "generator": sample_generators([0])}
        with mask_units(model, units, masks, "test"):
            out = through_run(pipe, arguments, checkpointed=checkpointed)
            found.append(torch.autograd.grad(out.square().mean(), list(masks.values())))
    assert any(float(gradient.abs().max()) > 0 for gradient in found[0])
    for with_checkpoints, plain in zip(*found, strict=True):
        torch.testing.assert_close(with_checkpoints, plain, rtol=1e-5, atol=1e-8)
    assert all(weight.grad is None for weight in model.parameters())
