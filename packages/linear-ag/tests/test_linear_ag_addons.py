"""ControlNet and IP-Adapter go on working while rows are dropped; compiled blocks see few row counts."""

import pytest
import torch
from noiseworks.kits.diffusers_hosts import sample_generators, tiny_inputs, tiny_pipeline
from noiseworks.linear_ag import AdaptiveGuidance, FixedPolicy, GuidancePolicy, attach

STEPS = 2


def random(*shape, seed=0):
    return 0.3 * torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def with_ip_adapter():
    """Return a pipeline with a random IP-Adapter, and `draw(embedding)` arguments for an image's embedding."""
    pipe, width = tiny_pipeline("sd"), 12
    unet, weights = pipe.unet, {}
    names = [name for name in unet.attn_processors if name.endswith("attn2.processor")]
    for index, name in enumerate(names):
        attention = unet.get_submodule(name.removesuffix(".processor"))
        shape = (attention.to_q.out_features, attention.to_k.in_features)
        for part, seed in (("k", 2 * index), ("v", 2 * index + 1)):
            weights[f"{2 * index + 1}.to_{part}_ip.weight"] = random(*shape, seed=seed)
    context = unet.config.cross_attention_dim
    projection = {"proj.weight": random(4 * context, width, seed=90), "proj.bias": torch.zeros(4 * context)}
    projection |= {"norm.weight": torch.ones(context), "norm.bias": torch.zeros(context)}
    unet._load_ip_adapter_weights([{"image_proj": projection, "ip_adapter": weights}])
    image = random(1, 1, width, seed=91)

    def arguments(guided, sign=1.0):
        rows = torch.cat([torch.zeros_like(image), sign * image]) if guided else sign * image
        return {"ip_adapter_image_embeds": [rows]}

    return pipe, arguments


def with_controlnet():
    """Return a pipeline with a random ControlNet, and its arguments for an image of edges."""
    from diffusers import ControlNetModel, StableDiffusionControlNetPipeline

    plain = tiny_pipeline("sd")
    net = ControlNetModel.from_unet(plain.unet, conditioning_embedding_out_channels=(8, 16, 16))
    for seed, parameter in enumerate(net.parameters()):
        parameter.data += 0.1 * random(*parameter.shape, seed=seed)
    net.eval().requires_grad_(False)
    parts = {**plain.components, "image_encoder": None}
    pipe = StableDiffusionControlNetPipeline(**parts, controlnet=net, requires_safety_checker=False)
    pipe.set_progress_bar_config(disable=True)
    edges = random(2, 3, 32, 32, seed=5).abs()
    return pipe, lambda guided, sign=1.0: {"image": edges if sign > 0 else 1 - edges}


@pytest.mark.parametrize("make", [with_ip_adapter, with_controlnet])
def test_addons_follow_the_rows_that_are_left(make):
    pipe, arguments = make()

    def draw(scale=4.0, **extra):
        return pipe(
            **tiny_inputs("sd", 2, scale),
            **extra,
            num_inference_steps=STEPS,
            generator=sample_generators([0, 1]),
            output_type="latent",
        ).images

    plain = draw(**arguments(True))
    assert not torch.allclose(draw(**arguments(True, -1.0)), plain)
    with attach(pipe, AdaptiveGuidance(threshold=1.5)):
        assert torch.equal(draw(**arguments(True)), plain)
    with attach(pipe, FixedPolicy(actions="1" * STEPS)) as ag:
        conditional = draw(**arguments(True))
    assert ag.rows == [2] * STEPS
    torch.testing.assert_close(conditional, draw(1.0, **arguments(False)), rtol=1e-4, atol=1e-4)


def test_padded_rows_keep_the_number_of_compiled_shapes_small():
    """A compiled block is compiled once a row count: five counts, or two when they are padded to multiples of four."""

    class Staggered(GuidancePolicy):
        def decide(self, step, state):
            return torch.where(step < torch.arange(1, 5), 2, 1)

    def shapes(row_multiple):
        pipe, seen = tiny_pipeline("sd"), []

        def count(graph, inputs):
            seen.append(inputs[-1].shape[0])
            return graph.forward

        torch._dynamo.reset()
        block = pipe.unet.conv_norm_out
        block.forward = torch.compile(block.forward, backend=count, dynamic=False)
        with attach(pipe, Staggered(), row_multiple=row_multiple) as ag:
            pipe(**tiny_inputs("sd", 4), num_inference_steps=5, output_type="latent")
        return ag.rows, seen

    assert shapes(1) == ([8, 7, 6, 5, 4], [8, 7, 6, 5, 4])
    assert shapes(4) == ([8, 8, 8, 8, 4], [8, 4])
