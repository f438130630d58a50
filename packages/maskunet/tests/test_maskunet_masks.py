"""Bits, masked layers, generators, and masks on hosts: the numbers of the paper and its released code."""

import pytest
import torch
from noiseworks.core.errors import InputError
from noiseworks.kits.diffusers_hosts import denoiser_of, tiny_inputs, tiny_pipeline
from noiseworks.maskunet import MaskConfig, MaskNet, Recorder, fold
from noiseworks.maskunet.gumbel import gumbel_sigmoid, keep_probability
from noiseworks.maskunet.masked_linear import Draw, Logits, masked_linear, naive_masked_linear, tiles
from noiseworks.maskunet.masking import masked_layers

SD15 = {
    "sample_size": 64,
    "block_out_channels": (320, 640, 1280, 1280),
    "cross_attention_dim": 768,
    "attention_head_dim": 8,
}


def drawn(pipe, seed=0, steps=2):
    generator = torch.Generator().manual_seed(seed)
    return pipe(
        **tiny_inputs("sd", 2), num_inference_steps=steps, generator=generator, output_type="latent"
    ).images


def perturbed(net, scale=1.0):
    """Return a net whose masks depend on everything: weights far from their start."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for p in net.parameters():
            p.add_(scale * torch.randn(p.shape, generator=generator))
    return net


def test_a_bit_is_kept_with_the_probability_of_a_single_gumbel():
    logits = torch.tensor([0.0, 1.0])
    assert keep_probability(logits).tolist() == pytest.approx([0.63212, 0.93401], abs=1e-5)
    assert float(keep_probability(torch.tensor(5.0, dtype=torch.float64))) == 1.0
    noise = Draw(seed=3).noise((1, 1000, 1000), torch.device("cpu"))[0]
    for logit, probability in ((0.0, 0.6321), (1.0, 0.9340)):
        bits = gumbel_sigmoid(torch.tensor(logit).expand_as(noise), noise)
        assert float(bits.mean()) == pytest.approx(probability, abs=0.002)  # 0.7311 for a logistic variable
    moved = gumbel_sigmoid(torch.zeros_like(noise), noise, tau=0.5, threshold=0.8)
    expected = float(keep_probability(torch.tensor(0.0), tau=0.5, threshold=0.8))
    assert float(moved.mean()) == pytest.approx(expected, abs=0.002)


def test_the_gradient_of_a_bit_is_the_sigmoids():
    logits = torch.linspace(-2, 2, 9, requires_grad=True)
    mask = gumbel_sigmoid(logits, tau=0.5)
    assert mask.tolist() == [0.0] * 5 + [1.0] * 4
    (found,) = torch.autograd.grad(mask.sum(), logits)
    y = torch.sigmoid(logits.detach() / 0.5)
    torch.testing.assert_close(found, y * (1 - y) / 0.5)


@pytest.mark.parametrize("form", ["low-rank", "own", "shared left", "given", "shared"])
@pytest.mark.parametrize(("seed", "hard"), [(None, True), (3, True), (3, False)])
def test_the_fused_layer_is_the_plain_one(form, seed, hard, monkeypatch):
    monkeypatch.setattr("noiseworks.maskunet.masked_linear.TILE", 40)  # several tiles of one row
    g = torch.Generator().manual_seed(0)
    x, weight, bias = (torch.randn(*s, generator=g) for s in ((3, 5, 12), (9, 12), (9,)))
    rows = 1 if form in ("shared", "shared left") else 3
    a = torch.randn(rows, 9, 12 if form in ("given", "shared") else 4, generator=g)
    own = 3 if form in ("own", "shared left") else 1
    p = None if form in ("given", "shared") else torch.randn(own, 12, 4, generator=g)
    c = torch.randn(12, generator=g)
    tensors = [t for t in (x, weight, bias, a, p, c) if t is not None]
    for t in tensors:
        t.requires_grad_()
    logits, draw = Logits(a, p, c), Draw(0.7, 0.4, seed, 0, hard)
    plain, fused = (f(x, weight, bias, logits, draw) for f in (naive_masked_linear, masked_linear))
    torch.testing.assert_close(fused, plain, rtol=1e-5, atol=1e-5)
    with torch.no_grad():
        torch.testing.assert_close(masked_linear(x, weight, bias, logits, draw), plain, rtol=1e-5, atol=1e-5)
    back = torch.randn(plain.shape, generator=g)
    for one, other in zip(
        torch.autograd.grad(fused, tensors, back), torch.autograd.grad(plain, tensors, back), strict=True
    ):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("logit", "spread"), [(2.0, 0.1), (1.9, 0.02), (1.0, 0.1), (2.0, 2.0)])
@pytest.mark.parametrize("rank", [None, 3])
def test_masks_that_keep_nearly_all_are_those_that_are_compared_one_by_one(logit, spread, rank, monkeypatch):
    g = torch.Generator().manual_seed(0)
    x, weight = torch.randn(2, 3, 300, generator=g), torch.randn(200, 300, generator=g)
    if rank is None:
        logits = Logits(logit + spread * torch.randn(2, 200, 300, generator=g))
    else:
        a, p = (torch.randn(*shape, rank, generator=g) for shape in ((2, 200), (1, 300)))
        logits = Logits(spread * a, p, logit + spread * torch.randn(300, generator=g))
    found = masked_linear(x, weight, None, logits, Draw(seed=4))
    plain = masked_linear(x, weight, None, logits, Draw())
    monkeypatch.setattr("noiseworks.maskunet.masked_linear._off_share", lambda *_: 1.0)
    assert torch.equal(masked_linear(x, weight, None, logits, Draw(seed=4)), found)
    assert not torch.equal(found, torch.nn.functional.linear(x, weight))
    torch.testing.assert_close(
        plain, naive_masked_linear(x, weight, None, logits, Draw()), rtol=1e-5, atol=1e-4
    )


def test_where_few_weights_can_be_off_only_those_get_logits(monkeypatch):
    def refused(*_):
        raise AssertionError("all logits of a tile were made")

    g = torch.Generator().manual_seed(0)
    x, weight = torch.randn(2, 3, 300, generator=g), torch.randn(200, 300, generator=g)
    logits = Logits(0.01 * torch.randn(2, 200, 3, generator=g), torch.randn(1, 300, 3, generator=g), 2.0)
    expected = naive_masked_linear(x, weight, None, logits, Draw(seed=4))
    monkeypatch.setattr("noiseworks.maskunet.masked_linear._logits", refused)
    found = masked_linear(x, weight, None, logits, Draw(seed=4))
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-4)
    assert torch.equal(masked_linear(x, weight, None, logits, Draw()), torch.nn.functional.linear(x, weight))


def test_noise_of_a_row_is_the_same_in_every_batch():
    for width in (8, 400):  # several rows in a tile, several tiles in a row
        many = Draw(seed=5).noise((6, width, width), torch.device("cpu"))
        assert torch.equal(many[:2], Draw(seed=5).noise((2, width, width), torch.device("cpu")))
        assert not torch.equal(many[0], many[1])
        covered = torch.zeros(6, width, width)
        for tile in tiles(covered.shape):
            covered[tile.index] += 1
        assert bool((covered == 1).all())


def test_a_layer_without_a_weight_that_is_off_is_the_hosts_bit_for_bit():
    x, weight, bias = torch.randn(4, 7, 16), torch.randn(16, 16), torch.randn(16)
    logits = Logits(torch.full((4, 16, 16), 5.0))
    plain = torch.nn.functional.linear(x, weight, bias)
    assert torch.equal(masked_linear(x, weight, bias, logits, Draw(seed=1)), plain)
    logits.a[2, 3, 4] = -5.0
    assert not torch.equal(masked_linear(x, weight, bias, logits, Draw()), plain)


def test_expansion_is_that_of_two_convolutions():
    net = MaskNet.of(tiny_pipeline("sd"))
    block, shape = net.block("up_blocks.1"), net.shapes["up_blocks.1"]
    path = next(iter(shape.layers))
    own = block.layers[path.replace(".", "/")]
    coarse = torch.randn(2, *block.coarse)
    torch.nn.init.normal_(own.b_out)
    rows = torch.nn.functional.conv1d(coarse, own.p_out[..., None]) + own.b_out[:, None]
    logits = torch.nn.functional.conv1d(rows.transpose(1, 2), own.p_in[..., None]).transpose(1, 2)
    expected = logits + own.b_in + 5.0
    torch.testing.assert_close(block.logits(path, coarse).whole(), expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(own.expanded(coarse).whole(), expected, rtol=1e-5, atol=1e-5)
    assert block.logits(path, coarse).rows == 2


def test_layers_and_numbers_of_stable_diffusion():
    from diffusers import UNet2DConditionModel
    from noiseworks.maskunet.masking import block_shapes

    with torch.device("meta"):
        unet = UNet2DConditionModel(**SD15)
        layers = [path for paths in masked_layers(unet).values() for path in paths]
        assert len(layers) == 72
        ends = {path.split("attn")[-1][2:] for path in layers}
        assert ends == {"to_q", "to_k", "to_v", "to_out.0"}
        net = MaskNet(block_shapes(unet), MaskConfig(generator="released"))
    idle = (
        1280 * 2560 + 2560 * 64 + 64 + 65 * 640 * 320
    )  # the first up block's generator, which masks nothing
    assert sum(p.numel() for p in net.parameters()) + idle == 84_551_040


@pytest.mark.parametrize("generator", ["paper", "rank-k", "released"])
def test_the_released_generator_is_dead_and_the_papers_is_not(generator):
    pipe = tiny_pipeline("sd")
    net = MaskNet.of(pipe, MaskConfig(generator=generator, init_logit=1.0))
    model = denoiser_of(pipe)
    optimizer = torch.optim.AdamW(net.parameters(), lr=1e-2)
    x, text = torch.randn(2, 4, 8, 8), torch.randn(2, 16, 32)
    with net.attach(pipe, stochastic=True) as handle:
        for _ in range(3):
            optimizer.zero_grad()
            model(x, torch.tensor([10, 900]), text).sample.square().mean().backward()
            optimizer.step()
        dead = [name for name, p in net.named_parameters() if not bool(p.grad.any())]
        generators = [n for n, _ in net.named_parameters() if "layers" not in n or n.endswith("p_out")]
        assert dead == ([] if generator != "released" else dead)
        assert generator != "released" or set(generators) <= set(dead)
        handle.recorder = Recorder()
        with torch.no_grad():
            feature = handle.net.block("up_blocks.1")
            pooled = torch.randn(2, net.shapes["up_blocks.1"].features)
            times = torch.randn(2, net.shapes["up_blocks.1"].times)
            path = next(iter(net.shapes["up_blocks.1"].layers))
            logits = feature.logits(path, feature.feature(pooled, times)).whole()
    differ = bool((logits[0] != logits[-1]).any())
    assert differ == (generator != "released")


@pytest.mark.parametrize("conditioning", ["time", "sample", "both"])
def test_masks_depend_on_what_they_are_told_to(conditioning):
    net = perturbed(MaskNet.of(tiny_pipeline("sd"), MaskConfig(conditioning=conditioning)))
    block, shape = net.block("up_blocks.1"), net.shapes["up_blocks.1"]
    z, t = torch.randn(2, shape.features), torch.randn(2, shape.times)
    other_z, other_t = z.flip(0), t.flip(0)
    base = block.feature(z, t)
    assert torch.equal(base, block.feature(other_z, t)) == (conditioning == "time")
    assert torch.equal(base, block.feature(z, other_t)) == (conditioning == "sample")


@pytest.mark.parametrize("granularity", ["row", "head"])
def test_masks_of_rows_and_heads_are_masks_of_their_weights(granularity):
    pipe = tiny_pipeline("sd")
    model = denoiser_of(pipe)
    net = perturbed(MaskNet.of(pipe, MaskConfig(granularity=granularity, init_logit=0.0)), 0.5)
    path = "up_blocks.1.attentions.0.transformer_blocks.0.attn1.to_out.0"
    x = torch.randn(1, 64, 32)
    layer = model.get_submodule(path)
    with net.attach(pipe) as handle:
        handle.recorder = Recorder()
        model(torch.randn(1, 4, 8, 8), 5, torch.randn(1, 16, 32))
        found = layer(x)
    shape = net.shapes["up_blocks.1"].layers[path]
    units = handle.recorder.sums[path] / handle.recorder.counts[path]
    assert 0 < float(units.mean()) < 1
    weight = layer.weight.clone()
    if granularity == "row":
        weight *= units[:, None]
    else:
        weight *= units.repeat_interleave(shape.ins // shape.heads)[None]
    torch.testing.assert_close(found, torch.nn.functional.linear(x, weight, layer.bias), rtol=1e-4, atol=1e-5)


def test_drawn_masks_are_those_of_their_seed_and_differ_between_steps():
    pipe = tiny_pipeline("sd")
    net = MaskNet.of(pipe, MaskConfig(init_logit=1.0))
    with net.attach(pipe, stochastic=True, seed=3) as handle:
        handle.recorder = Recorder()
        first = drawn(pipe)
        handle.reseed(3)
        assert torch.equal(drawn(pipe), first)
        handle.reseed(4)
        assert not torch.equal(drawn(pipe), first)
    off = [value for values in handle.recorder.sparsity.values() for value in values]
    assert sum(off) / len(off) == pytest.approx(1 - 0.934, abs=0.01)
    changed = [value for values in handle.recorder.changed.values() for value in values]
    assert min(changed) > 0.05


def test_activation_checkpointing_draws_the_same_masks_again():
    pipe = tiny_pipeline("sd")
    net, model = MaskNet.of(pipe, MaskConfig(init_logit=1.0)), denoiser_of(pipe)
    x, text = torch.randn(2, 4, 8, 8), torch.randn(2, 16, 32)

    def gradients():
        net.zero_grad()
        with net.attach(pipe, stochastic=True, seed=1):
            model(x, 500, text).sample.square().mean().backward()
        return [p.grad.clone() for p in net.parameters()]

    plain = gradients()
    model.train()
    model.enable_gradient_checkpointing()
    for one, other in zip(gradients(), plain, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-7)


def test_folded_static_masks_are_the_attached_ones():
    import copy

    pipe = tiny_pipeline("sd")
    net = perturbed(MaskNet.of(pipe, MaskConfig(generator="static", init_logit=0.5)))
    with net.attach(pipe) as handle:
        handle.recorder = Recorder()
        masked = drawn(pipe)
    pipe.unet = copy.deepcopy(pipe.unet)
    fold(pipe.unet, handle.recorder)
    torch.testing.assert_close(drawn(pipe), masked, rtol=1e-3, atol=1e-4)
    with pytest.raises(InputError, match="nothing was recorded"):
        fold(pipe.unet, Recorder())


def test_adapters_that_are_off_and_masks_do_not_meet():
    from peft import LoraConfig

    pipe = tiny_pipeline("sd")
    net = MaskNet.of(pipe, MaskConfig(init_logit=1.0))
    with net.attach(pipe, stochastic=True, seed=2):
        masked = drawn(pipe)
    config = LoraConfig(r=2, target_modules=["to_q", "to_k", "to_v", "to_out.0"], init_lora_weights=False)
    pipe.unet.add_adapter(config, "late")
    with net.attach(pipe, stochastic=True, seed=2):
        assert not torch.equal(drawn(pipe), masked)
    pipe.unet.disable_adapters()
    with net.attach(pipe, stochastic=True, seed=2):
        assert torch.equal(drawn(pipe), masked)


def test_masks_of_another_model_and_other_rows_are_refused():
    net = MaskNet.of(tiny_pipeline("sd"))
    for other in (tiny_pipeline("sd", seed=1), tiny_pipeline("dit")):
        with pytest.raises(InputError, match="another model"):
            net.attach(other)
    pipe = tiny_pipeline("sd")
    with net.attach(pipe):
        drawn(pipe)
        layer = denoiser_of(pipe).get_submodule(next(iter(net.shapes["up_blocks.1"].layers)))
        with pytest.raises(InputError, match="4 batch rows, the input has 3"):
            layer(torch.randn(3, 64, layer.in_features))
