"""Levels, schedules and losses against the numbers that the formulas give."""

import math

import pytest
import torch
import torch.nn.functional as F
from noiseworks.rrcm import Finetuning, Network, NoisyClassifier, Pretraining, RrcmEncoder
from noiseworks.rrcm.contrast import consistency_regulariser, info_nce
from noiseworks.rrcm.finetuning import RrcmFinetune
from noiseworks.rrcm.pretraining import RrcmPretrain
from noiseworks.rrcm.trajectory import (
    input_scale,
    levels,
    nearest_level,
    scale_curriculum,
    target_decay,
    time_waves,
)
from noiseworks.rrcm.views import with_views

SIZES = Network(depth=1, width=16, heads=2, patch=4, hidden=8, projected=8)


def test_levels_fall_evenly_in_their_seventh_root():
    assert levels(81)[:3].tolist() == pytest.approx([80, 74.69760, 69.69934], abs=1e-5)
    assert float(levels(81)[-1]) == pytest.approx(0.002)
    places = {81: (53, 48, 42), 41: (26, 24, 21), 21: (13, 12, 11)}
    for count, expected in places.items():
        grid = levels(count)
        assert tuple(int((grid - t).abs().argmin()) for t in (0.5, 1, 2)) == expected
    assert [nearest_level(s) for s in (0.25, 0.5, 1)] == pytest.approx(
        [0.492707, 0.965417, 2.003647], abs=1e-6
    )
    coarse = [nearest_level(s, 41) for s in (0.25, 0.5, 1)]
    assert coarse == pytest.approx([0.566635, 0.965417, 2.003647], abs=1e-6)
    assert nearest_level(0.0) == pytest.approx(0.002)


def test_curriculum_and_target_decay():
    assert [scale_curriculum(k, 600_000) for k in (0, 1, 258_406, 258_407, 600_000)] == [21, 41, 41, 81, 81]
    found = [target_decay(k, 600_000) for k in (0, 60_000, 150_000, 300_000, 600_000, 900_000)]
    last = 0.99989910
    assert found == pytest.approx([0.99, 0.99459244, 0.99841094, 0.99976911, last, last], abs=1e-8)
    found = [target_decay(k, 300_000, sharpness=15) for k in (30_000, 150_000, 300_000)]
    assert found == pytest.approx([0.99630785, 0.99988926, 0.99989999], abs=1e-8)


def test_what_the_network_is_told_of_the_noise():
    assert float(input_scale(torch.tensor(2.0))) == pytest.approx(0.48507125)
    waves = time_waves(torch.tensor([1.0, 2.0, 0.002, 0.0]), 8)
    turned = torch.tensor([0.0, 173.28680, -1553.65202])
    assert waves[:3, 0].tolist() == pytest.approx(turned.cos().tolist(), abs=1e-3)
    assert torch.equal(waves[2], waves[3])  # clamped, not -inf
    assert waves.shape == (4, 8)


def test_the_encoder_is_the_released_one_written_out():
    torch.manual_seed(0)
    encoder = RrcmEncoder(SIZES, image_size=8, channels=3).double().eval()
    x, t = torch.randn(2, 3, 8, 8, dtype=torch.float64), torch.tensor([40.0, 0.1], dtype=torch.float64)
    with torch.no_grad():
        for p in encoder.parameters():
            p.add_(0.1 * torch.randn_like(p))
        encoder.pos_embed.mul_(1e-2)  # tokens of small variance, where the norms' epsilon counts
        encoder.patch_embed.proj.weight.mul_(1e-2)
        block, weights = encoder.blocks[0], encoder.patch_embed.proj
        scaled = x / (t.square() + 0.25).sqrt()[:, None, None, None]
        patches = F.conv2d(scaled, weights.weight, weights.bias, stride=4).flatten(2).transpose(1, 2)
        angle = 250 * t.float().log()[:, None] * torch.exp(-math.log(10000) * torch.arange(8) / 8)
        wave = torch.cat([angle.cos(), angle.sin()], 1).double()[:, None]
        tokens = torch.cat([encoder.cls_token.expand(2, -1, -1), wave, patches], 1) + encoder.pos_embed

        def normed(h, layer):
            return F.layer_norm(h, (16,), layer.weight, layer.bias, 1e-5)

        q, k, v = (
            (normed(tokens, block.norm1) @ block.attn.qkv.weight.T).view(2, 6, 3, 2, 8).permute(2, 0, 3, 1, 4)
        )
        mixed = ((q @ k.transpose(-2, -1)) / math.sqrt(8)).softmax(-1) @ v
        tokens = tokens + block.attn.proj(mixed.transpose(1, 2).flatten(2))
        tokens = tokens + block.mlp.fc2(F.gelu(block.mlp.fc1(normed(tokens, block.norm2))))
        torch.testing.assert_close(encoder(x, t), normed(tokens[:, 0], encoder.norm), rtol=1e-6, atol=1e-8)


def test_rates_fall_with_depth():
    model = NoisyClassifier(RrcmEncoder(SIZES, image_size=8, channels=3), 10, sigma=0.5, normed=True)
    made = RrcmFinetune(model, Finetuning(lr=1.0, layer_decay=0.5, normed=True)).configure_optimizers()
    groups = made["optimizer"].param_groups
    rate = {id(p): group["initial_lr"] for group in groups for p in group["params"]}
    encoder = model.encoder
    parts = (model.head.weight, encoder.norm.weight, encoder.blocks[0].norm1.weight, encoder.pos_embed)
    assert [rate[id(p)] for p in parts] == [1.0, 1.0, 0.5, 0.25]


def test_contrast_is_the_loop_over_pairs():
    same = torch.eye(4, dtype=torch.float64)
    assert info_nce(same, same).tolist() == pytest.approx([math.log(1 + 3 * math.exp(-5))] * 4)
    f, g = torch.randn(2, 5, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    g = torch.cat([g, -f])
    for i, found in enumerate(info_nce(f, g, 0.3).tolist()):
        close = [float(f[i] @ row / (f[i].norm() * row.norm())) / 0.3 for row in g]
        assert found == pytest.approx(math.log(sum(map(math.exp, close))) - close[i])
    assert torch.allclose(info_nce(3 * f, 7 * g, 0.3), info_nce(f, g, 0.3))


def test_agreement_of_draws():
    apart = torch.tensor([[[math.log(3), 0.0]], [[0.0, math.log(3)]]])
    assert float(consistency_regulariser(apart, 1, 0)) == pytest.approx(0.143841, abs=1e-6)
    assert float(consistency_regulariser(apart, 0, 1)) == pytest.approx(math.log(2))
    assert float(consistency_regulariser(apart, 10, 0.5)) == pytest.approx(1.784984, abs=1e-6)
    same = apart[:1].expand(2, -1, -1)
    assert float(consistency_regulariser(same, 1, 0)) == pytest.approx(0, abs=1e-7)
    p, mean = torch.tensor([0.75, 0.25]), torch.tensor([0.5, 0.5])
    assert float(consistency_regulariser(apart, 1, 0, "mse")) == pytest.approx(
        float((p - mean).square().sum())
    )
    cross = float(-(mean * p.log()).sum())
    assert float(consistency_regulariser(apart, 1, 0, "xent")) == pytest.approx(cross)


def test_no_gradient_reaches_targets():
    torch.manual_seed(0)
    module = RrcmPretrain(RrcmEncoder(SIZES, image_size=8, channels=1), SIZES, Pretraining())
    first, second = torch.randn(2, 4, 1, 8, 8)
    module.contrastive(first, second).mean().backward()
    assert all(p.grad is None for p in module.target.parameters())
    assert all(p.grad is not None for p in module.online["projector"].parameters())
    module.zero_grad()
    high, low = torch.tensor(1.0), torch.tensor(0.5)
    module.consistency(first, high, second, low).mean().backward()
    found = module.online["encoder"].patch_embed.proj.weight.grad.clone()
    module.zero_grad()
    fixed = module.online["encoder"](second, low).detach()
    info_nce(module.online["encoder"](first, high), fixed, 0.2).mean().backward()
    assert torch.allclose(found, module.online["encoder"].patch_embed.proj.weight.grad)


def test_views_change_what_their_options_say():
    images = torch.rand(6, 1, 8, 8, generator=torch.Generator().manual_seed(0)) * 2 - 1
    still = {"crop": 1.0, "jitter": 0.0}
    same = with_views({"x": images}, Pretraining(**still), torch.Generator().manual_seed(1))
    assert all(torch.allclose(same[name], images, atol=1e-6) for name in ("x", "a", "b"))
    found = with_views({"x": images}, Pretraining(**still, solarise=1.0), torch.Generator().manual_seed(1))
    assert torch.allclose(found["a"], images, atol=1e-6)
    assert torch.allclose(found["b"], -images.abs(), atol=1e-6)
    moved = with_views({"x": images}, Pretraining(flip=True), torch.Generator().manual_seed(1))
    assert not torch.equal(moved["a"], moved["b"])
    flipped = torch.stack([(a == b.flip(-1)).all() for a, b in zip(moved["x"], images, strict=True)])
    assert 0 < int(flipped.sum()) < 6
