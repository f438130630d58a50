"""The two networks: the published names and shapes, and their arithmetic written out."""

import math

import pytest
import torch
import torch.nn.functional as F
from noiseworks.core.errors import InputError
from noiseworks.kits.policies import (
    ConditionalUnet1D,
    TransformerForDiffusion,
    optimizer_groups,
    strip_published,
)

# Names and shapes of the published residual block, with a 1x1 convolution where the channels change.
BLOCK = {
    "blocks.0.block.0.weight": "out in kernel",
    "blocks.0.block.0.bias": "out",
    "blocks.0.block.1.weight": "out",
    "blocks.0.block.1.bias": "out",
    "blocks.1.block.0.weight": "out out kernel",
    "blocks.1.block.0.bias": "out",
    "blocks.1.block.1.weight": "out",
    "blocks.1.block.1.bias": "out",
    "cond_encoder.1.weight": "film cond",
    "cond_encoder.1.bias": "film",
    "residual_conv.weight": "out in 1",
    "residual_conv.bias": "out",
}
# (name, in, out) of the blocks for down_dims (16, 32, 64) and 3 actions.
BLOCKS = [
    ("mid_modules.0", 64, 64),
    ("mid_modules.1", 64, 64),
    ("down_modules.0.0", 3, 16),
    ("down_modules.0.1", 16, 16),
    ("down_modules.1.0", 16, 32),
    ("down_modules.1.1", 32, 32),
    ("down_modules.2.0", 32, 64),
    ("down_modules.2.1", 64, 64),
    ("up_modules.0.0", 128, 32),
    ("up_modules.0.1", 32, 32),
    ("up_modules.1.0", 64, 16),
    ("up_modules.1.1", 16, 16),
]
OTHERS = {
    "diffusion_step_encoder.1.weight": (32, 8),
    "diffusion_step_encoder.1.bias": (32,),
    "diffusion_step_encoder.3.weight": (8, 32),
    "diffusion_step_encoder.3.bias": (8,),
    "down_modules.0.2.conv.weight": (16, 16, 3),
    "down_modules.0.2.conv.bias": (16,),
    "down_modules.1.2.conv.weight": (32, 32, 3),
    "down_modules.1.2.conv.bias": (32,),
    "up_modules.0.2.conv.weight": (32, 32, 4),
    "up_modules.0.2.conv.bias": (32,),
    "up_modules.1.2.conv.weight": (16, 16, 4),
    "up_modules.1.2.conv.bias": (16,),
    "final_conv.0.block.0.weight": (16, 16, 5),
    "final_conv.0.block.0.bias": (16,),
    "final_conv.0.block.1.weight": (16,),
    "final_conv.0.block.1.bias": (16,),
    "final_conv.1.weight": (3, 16, 1),
    "final_conv.1.bias": (3,),
}
# One decoder layer of the published transformer, width 8.
LAYER = {
    "self_attn.in_proj_weight": (24, 8),
    "self_attn.in_proj_bias": (24,),
    "self_attn.out_proj.weight": (8, 8),
    "self_attn.out_proj.bias": (8,),
    "multihead_attn.in_proj_weight": (24, 8),
    "multihead_attn.in_proj_bias": (24,),
    "multihead_attn.out_proj.weight": (8, 8),
    "multihead_attn.out_proj.bias": (8,),
    "linear1.weight": (32, 8),
    "linear1.bias": (32,),
    "linear2.weight": (8, 32),
    "linear2.bias": (8,),
    "norm1.weight": (8,),
    "norm1.bias": (8,),
    "norm2.weight": (8,),
    "norm2.bias": (8,),
    "norm3.weight": (8,),
    "norm3.bias": (8,),
}
TRANSFORMER = {
    "pos_emb": (1, 6, 8),
    "cond_pos_emb": (1, 3, 8),
    "mask": (6, 6),
    "memory_mask": (6, 3),
    "input_emb.weight": (8, 3),
    "input_emb.bias": (8,),
    "cond_obs_emb.weight": (8, 5),
    "cond_obs_emb.bias": (8,),
    "encoder.0.weight": (32, 8),
    "encoder.0.bias": (32,),
    "encoder.2.weight": (8, 32),
    "encoder.2.bias": (8,),
    "ln_f.weight": (8,),
    "ln_f.bias": (8,),
    "head.weight": (3, 8),
    "head.bias": (3,),
}


def block_table(name, inside, out, cond, kernel, scale=True):
    sizes = {"in": inside, "out": out, "cond": cond, "kernel": kernel, "film": out * (1 + scale), "1": 1}
    return {
        f"{name}.{part}": tuple(sizes[word] for word in words.split())
        for part, words in BLOCK.items()
        if inside != out or not part.startswith("residual")
    }


def unet(**options):
    torch.manual_seed(0)
    options = {"global_cond_dim": 10, "diffusion_step_embed_dim": 8, "down_dims": (16, 32, 64)} | options
    return ConditionalUnet1D(3, **options).double().eval()


def transformer(**options):
    torch.manual_seed(0)
    sizes = {"n_obs_steps": 2, "cond_dim": 5, "n_layer": 2, "n_head": 2, "n_emb": 8, "causal_attn": True}
    net = TransformerForDiffusion(3, 3, 6, **(sizes | options)).double().eval()
    with torch.no_grad():  # its start, N(0, 0.02), would hide mistakes
        for parameter in net.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return net


def shapes(net):
    return {name: tuple(tensor.shape) for name, tensor in net.state_dict().items()}


@pytest.mark.parametrize("scale", [True, False])
def test_unet_has_the_published_names_and_shapes(scale):
    expected = dict(OTHERS)
    for name, inside, out in BLOCKS:
        expected |= block_table(name, inside, out, 18, 5, scale)
    assert shapes(unet(cond_predict_scale=scale)) == expected


def test_unet_with_a_local_condition_adds_two_blocks():
    added = set(shapes(unet(local_cond_dim=7))) - set(shapes(unet()))
    blocks = [block_table(f"local_cond_encoder.{i}", 7, 16, 18, 5) for i in range(2)]
    assert added == set(blocks[0] | blocks[1])


def test_transformer_has_the_published_names_and_shapes():
    layers = {f"decoder.layers.{i}.{name}": shape for i in range(2) for name, shape in LAYER.items()}
    assert shapes(transformer()) == TRANSFORMER | layers


def test_transformer_with_encoder_layers_has_torchs_names():
    names = {name for name in shapes(transformer(n_cond_layers=1)) if name.startswith("encoder")}
    parts = [p for p in LAYER if not p.startswith(("multihead", "norm3"))]
    assert names == {f"encoder.layers.0.{part}" for part in parts}


@pytest.mark.parametrize("net", [unet(), transformer()])
def test_a_published_state_loads_strictly(net):
    published = {f"model.{name}": torch.randn_like(t) for name, t in net.state_dict().items()}
    rest = {"normalizer.params_dict.action.scale": torch.ones(3), "model._dummy_variable": torch.zeros(0)}
    net.load_state_dict(strip_published(published | rest), strict=True)
    name = next(iter(net.state_dict()))
    assert torch.equal(net.state_dict()[name], published[f"model.{name}"])
    with pytest.raises(InputError, match="starts with"):
        strip_published(rest, prefix="ema_model.")


def sinusoids(k, width):
    half = width // 2
    return torch.tensor(
        [
            [f(step * 10_000 ** (-i / (half - 1))) for f in (math.sin, math.cos) for i in range(half)]
            for step in k
        ],
        dtype=torch.float64,
    )


def written_out_unet(state, x, k, cond, local=None, *, scale):
    """The published forward pass from the state alone, level by level."""

    def conv_block(name, h):
        h = F.conv1d(h, state[f"{name}.0.weight"], state[f"{name}.0.bias"], padding="same")
        return F.mish(F.group_norm(h, 8, state[f"{name}.1.weight"], state[f"{name}.1.bias"]))

    def residual(name, h):
        film = F.linear(
            F.mish(feature), state[f"{name}.cond_encoder.1.weight"], state[f"{name}.cond_encoder.1.bias"]
        )
        out = conv_block(f"{name}.blocks.0.block", h)
        if scale:
            gain, bias = film.reshape(len(h), 2, -1, 1).unbind(1)
            out = gain * out + bias
        else:
            out = out + film[:, :, None]
        out = conv_block(f"{name}.blocks.1.block", out)
        if f"{name}.residual_conv.weight" in state:
            h = F.conv1d(h, state[f"{name}.residual_conv.weight"], state[f"{name}.residual_conv.bias"])
        return out + h

    encoder = "diffusion_step_encoder"
    feature = F.linear(sinusoids(k, 8), state[f"{encoder}.1.weight"], state[f"{encoder}.1.bias"])
    feature = F.linear(F.mish(feature), state[f"{encoder}.3.weight"], state[f"{encoder}.3.bias"])
    feature = torch.cat((feature, cond), dim=1)
    # The published code never reaches the second block of a local condition, meant for the way up.
    side = None if local is None else residual("local_cond_encoder.0", local.transpose(1, 2))
    h, skips = x.transpose(1, 2), []
    for level in range(3):
        h = residual(f"down_modules.{level}.0", h)
        h = h if side is None or level else h + side
        h = residual(f"down_modules.{level}.1", h)
        skips.append(h)
        if level < 2:
            name = f"down_modules.{level}.2.conv"
            h = F.conv1d(h, state[f"{name}.weight"], state[f"{name}.bias"], stride=2, padding=1)
    for i in range(2):
        h = residual(f"mid_modules.{i}", h)
    for level in range(2):
        h = residual(f"up_modules.{level}.0", torch.cat((h, skips.pop()), dim=1))
        h = residual(f"up_modules.{level}.1", h)
        name = f"up_modules.{level}.2.conv"
        h = F.conv_transpose1d(h, state[f"{name}.weight"], state[f"{name}.bias"], stride=2, padding=1)
    h = conv_block("final_conv.0.block", h)
    return F.conv1d(h, state["final_conv.1.weight"], state["final_conv.1.bias"]).transpose(1, 2)


@pytest.mark.parametrize(("scale", "with_local"), [(True, False), (False, False), (True, True)])
def test_unet_equals_the_written_out_arithmetic(scale, with_local):
    net = unet(cond_predict_scale=scale, local_cond_dim=7 if with_local else None)
    x, k = torch.randn(3, 8, 3).double(), torch.tensor([0, 17, 99])
    cond = torch.randn(3, 10).double()
    local = torch.randn(3, 8, 7).double() if with_local else None
    expected = written_out_unet(net.state_dict(), x, k.tolist(), cond, local, scale=scale)
    # The sinusoids are computed in float32, as in the published networks.
    torch.testing.assert_close(net(x, k, local, cond), expected, atol=2e-5, rtol=2e-5)


def test_unet_parts_make_up_the_whole():
    net, x, cond = unet(), torch.randn(2, 8, 3).double(), torch.randn(2, 10).double()
    films = net.films(net.global_feature(torch.tensor([5, 5]), cond))
    assert len(films) == len(net.residual_blocks()) == 12
    assert torch.equal(net.trunk(x, films), net(x, 5, global_cond=cond))


def attention(state, name, queries, keys, mask):
    """Two heads of width 4, written out."""
    weight, bias = state[f"{name}.in_proj_weight"], state[f"{name}.in_proj_bias"]
    q = F.linear(queries, weight[:8], bias[:8])
    k, v = F.linear(keys, weight[8:], bias[8:]).split(8, dim=-1)
    heads = []
    for part in (slice(0, 4), slice(4, 8)):
        scores = q[..., part] @ k[..., part].transpose(1, 2) / 2 + mask
        heads.append(scores.softmax(-1) @ v[..., part])
    return F.linear(torch.cat(heads, -1), state[f"{name}.out_proj.weight"], state[f"{name}.out_proj.bias"])


def test_transformer_equals_the_written_out_arithmetic():
    net = transformer()
    state = net.state_dict()

    def linear(name, h):
        return F.linear(h, state[f"{name}.weight"], state[f"{name}.bias"])

    def norm(name, h):
        return F.layer_norm(h, (8,), state[f"{name}.weight"], state[f"{name}.bias"])

    x, cond, k = torch.randn(2, 6, 3).double(), torch.randn(2, 2, 5).double(), torch.tensor([3, 70])
    tokens = torch.cat((sinusoids(k.tolist(), 8)[:, None], linear("cond_obs_emb", cond)), dim=1)
    memory = linear("encoder.2", F.mish(linear("encoder.0", tokens + state["cond_pos_emb"])))
    causal = torch.tensor([[0.0 if s <= t else -math.inf for s in range(6)] for t in range(6)]).double()
    seen = torch.tensor([[0.0 if t >= s - 1 else -math.inf for s in range(3)] for t in range(6)]).double()
    h = linear("input_emb", x) + state["pos_emb"]
    for i in range(2):
        layer = f"decoder.layers.{i}"
        normal = norm(f"{layer}.norm1", h)
        h = h + attention(state, f"{layer}.self_attn", normal, normal, causal)
        h = h + attention(state, f"{layer}.multihead_attn", norm(f"{layer}.norm2", h), memory, seen)
        h = h + linear(f"{layer}.linear2", F.gelu(linear(f"{layer}.linear1", norm(f"{layer}.norm3", h))))
    expected = linear("head", norm("ln_f", h))
    torch.testing.assert_close(net(x, k, cond), expected, atol=2e-5, rtol=2e-5)


def test_an_action_reads_no_later_action_and_no_later_observation():
    net, cond = transformer(n_obs_steps=4), torch.randn(1, 4, 5).double()
    x = torch.randn(1, 6, 3).double().requires_grad_()
    cond.requires_grad_()
    for t in range(6):
        by_action, by_obs = torch.autograd.grad(net(x, 9, cond)[0, t].sum(), (x, cond))
        assert [bool(g.any()) for g in by_action[0]] == [s <= t for s in range(6)]
        # Observation i is condition token i + 1, so action t sees observations up to t.
        assert [bool(g.any()) for g in by_obs[0]] == [s <= t for s in range(4)]


def test_transformer_takes_shorter_sequences():
    net, x, cond = transformer(), torch.randn(2, 6, 3).double(), torch.randn(2, 2, 5).double()
    torch.testing.assert_close(net(x[:, :4], 7, cond), net(x, 7, cond)[:, :4])
    with pytest.raises(InputError, match="at most 6"):
        net(torch.randn(1, 7, 3).double(), 7, cond[:1])


def test_optimizer_groups_exempt_biases_norms_and_positions():
    net = transformer()
    decayed, plain = optimizer_groups(net, 0.1)
    assert (decayed["weight_decay"], plain["weight_decay"]) == (0.1, 0.0)
    names = {id(p): name for name, p in net.named_parameters()}
    exempt = {names[id(p)] for p in plain["params"]}
    assert {"pos_emb", "cond_pos_emb", "ln_f.weight", "head.bias"} <= exempt
    assert "decoder.layers.0.self_attn.in_proj_weight" not in exempt
    assert len(decayed["params"]) + len(plain["params"]) == len(names)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (
            lambda: unet()(torch.zeros(1, 6, 3).double(), 0, None, torch.zeros(1, 10).double()),
            "multiple of 4",
        ),
        (lambda: unet(kernel_size=4), "odd"),
        (lambda: unet(down_dims=(12, 32)), "divisible"),
        (lambda: TransformerForDiffusion(3, 3, 4, n_emb=10, n_head=4), "n_head"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(call, words):
    with pytest.raises(InputError, match=words):
        call()
