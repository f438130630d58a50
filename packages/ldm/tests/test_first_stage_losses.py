"""The first-stage losses against closed forms, brute force and the straightforward adaptive weight."""

import math

import pytest
import torch
from diffusers import AutoencoderKL
from noiseworks.core.errors import InputError
from noiseworks.ldm.first_stage import losses
from noiseworks.ldm.first_stage.discriminator import PatchDiscriminator
from noiseworks.ldm.first_stage.losses import PerceptualAdversarialLoss
from noiseworks.ldm.first_stage.perceptual import FeatureNet, Perceptual, VGGFeatures, augment, train_features
from torch import nn


def tiny_autoencoder(seed=0):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return AutoencoderKL(
            3,
            3,
            ("DownEncoderBlock2D",) * 2,
            ("UpDecoderBlock2D",) * 2,
            (8, 8),
            norm_num_groups=4,
            latent_channels=2,
        )


def images(seed, rows=4, side=16):
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(rows, 3, side, side, generator=generator) * 2 - 1


def make_discriminator(**options):
    with torch.random.fork_rng():
        torch.manual_seed(1)
        return PatchDiscriminator(width=8, layers=2, **options)


def test_kl_divergence_matches_its_closed_form():
    mean, logvar = torch.ones(2, 1, 1, 3).double(), torch.full((2, 1, 1, 3), math.log(2.0)).double()
    expected = 0.5 * (1 + 2 - 1 - math.log(2))
    assert expected == pytest.approx(0.653426, abs=1e-6)
    torch.testing.assert_close(
        losses.kl_to_standard_normal(mean, logvar), torch.full((2,), 3 * expected).double()
    )
    assert losses.kl_to_standard_normal(torch.zeros(2, 1, 1, 3), torch.zeros(2, 1, 1, 3)).abs().max() == 0


def test_kl_divergence_survives_extreme_log_variances():
    value = losses.kl_to_standard_normal(torch.zeros(1, 1, 1, 1), torch.full((1, 1, 1, 1), 1e4))
    assert value.item() == pytest.approx(0.5 * (math.exp(20) - 21), rel=1e-6)


@pytest.mark.parametrize(("adversarial", "expected"), [(0.5, 2.99940), (0.0, 5000.0)])
def test_adaptive_weight_is_clamped_before_the_factor(adversarial, expected):
    found = losses.adaptive_weight(torch.tensor(3.0).double(), torch.tensor(adversarial).double(), 0.5)
    assert found.item() == pytest.approx(expected, abs=1e-5)


def test_discriminator_losses_match_their_values():
    two, zero = torch.full((3, 1, 2, 2), 2.0), torch.zeros(3, 1, 2, 2)
    assert losses.hinge_discriminator_loss(two, -two).item() == 0
    assert losses.hinge_discriminator_loss(zero, zero).item() == 1


@pytest.mark.parametrize(("side", "logits"), [(256, 30), (64, 6), (32, 2)])
def test_patch_discriminator_gives_the_paper_code_s_map(side, logits):
    with torch.no_grad():
        disc = PatchDiscriminator(width=8)
        assert disc(torch.zeros(2, 3, side, side)).shape == (2, 1, logits, logits)


def test_patch_discriminator_has_the_stated_layers():
    disc = PatchDiscriminator()
    convolutions = [m for m in disc.modules() if isinstance(m, nn.Conv2d)]
    assert [m.out_channels for m in convolutions] == [64, 128, 256, 512, 1]
    assert [m.stride[0] for m in convolutions] == [2, 2, 2, 1, 1]
    assert [m.bias is not None for m in convolutions] == [True, False, False, False, True]
    assert convolutions[2].weight.std().item() == pytest.approx(0.02, rel=0.02)


def test_discriminator_refuses_what_batch_norm_or_its_layers_cannot_take():
    with pytest.raises(InputError, match="group"):
        make_discriminator()(images(0, rows=1, side=16)[..., :12, :12])
    assert make_discriminator(norm="group")(images(0, rows=1, side=16)[..., :12, :12]).shape == (1, 1, 1, 1)
    with pytest.raises(InputError, match="8x8 pixels are too few"):
        make_discriminator(norm="group")(images(0, side=8))


def straightforward_gradients(vae, loss, x, disc_weight):
    """The authors' form: two extra walks to the last layer's weight, then one through everything."""
    reconstructions = vae.decode(vae.encode(x).latent_dist.mode()).sample
    nll = loss.reconstruction(x, reconstructions)
    adversarial = -loss.disc(reconstructions).mean()
    weight = vae.decoder.conv_out.weight
    norms = [torch.autograd.grad(part, weight, retain_graph=True)[0].norm() for part in (nll, adversarial)]
    factor = (norms[0] / (norms[1] + 1e-4)).clamp(0, 1e4) * disc_weight
    total = nll + factor.detach() * adversarial
    return factor, total, torch.autograd.grad(total, list(vae.decoder.parameters()))


@pytest.mark.parametrize("kind", ["kl", "vq"])
def test_adaptive_weight_shortcut_equals_the_straightforward_form(kind):
    vae, x = tiny_autoencoder(), images(0)
    net = Perceptual("trained", FeatureNet())
    loss = PerceptualAdversarialLoss(kind, net, make_discriminator(), disc_start=0)
    factor, total, expected = straightforward_gradients(vae, loss, x, loss.disc_weight)
    with losses.recorded_input(vae.decoder.conv_out) as recorded:
        reconstructions = vae.decode(vae.encode(x).latent_dist.mode()).sample
    terms = loss.generator(x, reconstructions, vae.decoder.conv_out, recorded[-1], 0)
    found = torch.autograd.grad(
        (reconstructions * terms.image_gradient).sum(), list(vae.decoder.parameters())
    )
    torch.testing.assert_close(terms.log["adaptive_weight"], factor.detach(), rtol=1e-5, atol=0)
    torch.testing.assert_close(terms.value, total.detach(), rtol=1e-5, atol=1e-6)
    scale = max(gradient.abs().max() for gradient in expected)
    for have, want in zip(found, expected, strict=True):
        assert (have - want).abs().max() <= 1e-5 * scale


def test_last_layer_gradient_equals_autograd_in_float64():
    layer = nn.Conv2d(4, 3, 3, padding=1).double()
    inputs = torch.randn(2, 4, 6, 6, dtype=torch.float64)
    output = layer(inputs)
    upstream = torch.randn_like(output)
    (expected,) = torch.autograd.grad(output, layer.weight, upstream)
    torch.testing.assert_close(losses.last_layer_gradient(layer, inputs, upstream), expected)


def test_kl_loss_sums_over_an_image_and_vq_loss_averages():
    x, made = images(0), images(1)
    nll = {kind: PerceptualAdversarialLoss(kind).reconstruction(x, made) for kind in ("kl", "vq")}
    assert nll["kl"].item() == pytest.approx((x - made).abs().sum().item() / 4, rel=1e-6)
    assert nll["kl"].item() == pytest.approx(nll["vq"].item() * 3 * 16 * 16, rel=1e-5)


def test_perceptual_term_is_added_to_every_element():
    x, made = images(0), images(1)
    net = Perceptual("trained", FeatureNet())
    found = PerceptualAdversarialLoss("vq", net, perceptual_weight=2.0).reconstruction(x, made)
    expected = (x - made).abs().mean() + 2.0 * net(x, made).mean()
    assert found.item() == pytest.approx(expected.item(), rel=1e-5)


def test_adversary_is_not_evaluated_before_its_start():
    loss = PerceptualAdversarialLoss("kl", disc=make_discriminator(), disc_start=5)
    loss.disc.forward = None
    terms = loss.generator(
        images(0), images(1), tiny_autoencoder().decoder.conv_out, torch.zeros(4, 8, 16, 16), 4
    )
    assert terms.fake_logits is None
    assert not loss.adversarial(4)
    assert loss.adversarial(5)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"kind": "gan"}, "kind must be one of kl, vq"),
        ({"disc_weight": -1}, "disc_weight"),
        ({"disc_start": 1.5}, "disc_start"),
        ({"kl_weight": float("nan")}, "kl_weight"),
    ],
)
def test_bad_options_are_refused(options, words):
    with pytest.raises(InputError, match=words):
        PerceptualAdversarialLoss(**options)


def lpips_files(folder):
    from safetensors.torch import save_file

    generator = torch.Generator().manual_seed(0)
    vgg, index, previous = {}, 0, 3
    channel = {}
    for stage, widths in enumerate([(64, 64), (128, 128), (256,) * 3, (512,) * 3, (512,) * 3]):
        index += stage > 0
        for width in widths:
            vgg[f"features.{index}.weight"] = (
                torch.randn(width, previous, 3, 3, generator=generator) / 3 / previous**0.5
            )
            vgg[f"features.{index}.bias"] = torch.zeros(width)
            index, previous = index + 2, width
        channel[f"lin{stage}.model.1.weight"] = torch.rand(1, widths[-1], 1, 1, generator=generator)
    save_file(vgg, folder / "vgg.safetensors")
    save_file(channel, folder / "lpips.safetensors")
    return folder / "vgg.safetensors", folder / "lpips.safetensors", vgg, channel


def test_lpips_matches_its_definition(tmp_path):
    vgg_path, lpips_path, vgg, channel = lpips_files(tmp_path)
    x, y = images(0, rows=2), images(1, rows=2)
    found = Perceptual("lpips", vgg_weights=vgg_path, lpips_weights=lpips_path)(x, y)
    assert found.shape == (2, 1, 1, 1)

    def walk(batch):
        shift, scale = torch.tensor([-0.030, -0.088, -0.188]), torch.tensor([0.458, 0.448, 0.450])
        batch = (batch - shift.view(3, 1, 1)) / scale.view(3, 1, 1)
        for index in range(30):
            if f"features.{index}.weight" in vgg:
                weight, bias = vgg[f"features.{index}.weight"], vgg[f"features.{index}.bias"]
                batch = nn.functional.conv2d(batch, weight, bias, padding=1).relu()
                if index in (2, 7, 14, 21, 28):
                    yield batch
            elif index in (4, 9, 16, 23):
                batch = nn.functional.max_pool2d(batch, 2)

    expected = torch.zeros(2)
    for stage, (a, b) in enumerate(zip(walk(x), walk(y), strict=True)):
        a, b = (maps / maps.norm(dim=1, keepdim=True).clamp(min=1e-10) for maps in (a, b))
        weighted = ((a - b) ** 2 * channel[f"lin{stage}.model.1.weight"]).sum(dim=1)
        expected += weighted.mean(dim=(1, 2))
    torch.testing.assert_close(found.flatten(), expected, rtol=1e-4, atol=1e-6)


def test_perceptual_backends_ask_for_what_they_need(tmp_path):
    with pytest.raises(InputError, match="train_features"):
        Perceptual("trained")
    with pytest.raises(InputError, match="vgg_weights"):
        Perceptual("lpips")
    with pytest.raises(InputError, match="no weights file"):
        Perceptual("lpips", vgg_weights=tmp_path / "a.pth", lpips_weights=tmp_path / "b.pth")
    with pytest.raises(InputError, match=r"lack features\.0\.weight"):
        VGGFeatures({})


def test_perceptual_distance_stays_fixed_in_train_mode_and_is_zero_for_equal_images():
    net = Perceptual("trained", FeatureNet()).train()
    assert not net.training
    assert not any(parameter.requires_grad for parameter in net.parameters())
    assert net(images(0), images(0)).abs().max() == 0
    assert Perceptual("none")(images(0), images(1)).abs().max() == 0


def test_features_learn_to_tell_images_apart_and_leave_the_random_state_alone():
    colours = images(0, rows=32, side=1)
    x = colours.expand(32, 3, 8, 8)
    before = torch.get_rng_state()
    net, accuracy = train_features(x, steps=12, batch_size=8)
    assert accuracy > 0.5  # chance is 1 / 8
    assert torch.equal(before, torch.get_rng_state())
    again, _ = train_features(x, steps=12, batch_size=8)
    assert torch.equal(net.head.weight, again.head.weight)
    assert augment(x, torch.Generator().manual_seed(0)).shape == x.shape


def test_norms_of_several_processes_are_those_of_the_whole_batch(monkeypatch):
    own, others = torch.randn(2, 2, 3, 4, generator=torch.Generator().manual_seed(0))
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 2)
    monkeypatch.setattr(torch.distributed, "all_reduce", lambda stacked: stacked.add_(others))
    found = losses.average_norms(*own)
    torch.testing.assert_close(torch.stack(found), ((own + others) / 2).flatten(1).norm(dim=1))
