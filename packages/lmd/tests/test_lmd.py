"""Schedules, masks, loss, latents and training against worked numbers, closed forms and the limits of the paper."""

import copy
import math
from itertools import pairwise

import pytest
import torch
from diffusers import AutoencoderKL
from noiseworks.bench.claims import Context
from noiseworks.core.errors import ArtifactError, InputError
from noiseworks.kits.backbones import keep_count, random_masks, to_images, to_patches
from noiseworks.kits.training import Batches
from noiseworks.lmd import (
    LMD,
    Classifier,
    FineTuning,
    LMDConfig,
    Masking,
    Pretraining,
    Space,
    cached_latents,
    features_of,
    finetune_model,
    load_model,
    pretrain_model,
)
from noiseworks.lmd.adan import Adan
from noiseworks.lmd.latents import views_of
from noiseworks.lmd.mixing import mixed, smoothed
from noiseworks.lmd.model import normalise_patches
from noiseworks.lmd.training import (
    Trained,
    below_head,
    check_masks,
    load_classifier,
    masked_loss,
    optimizer_of,
    save_classifier,
    save_model,
)

SIZES = {"depth": 2, "width": 16, "heads": 2, "decoder_depth": 1, "decoder_width": 16, "decoder_heads": 2}
CONFIG = LMDConfig(**SIZES, patch=2, size=8, channels=4)


def latents(count: int = 6):
    return 2 * torch.randn(count, 4, 8, 8, generator=torch.Generator().manual_seed(1))


def made(config=CONFIG, seed: int = 0) -> LMD:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return LMD(config).eval()


def masks_of(count: int, keep: int, seed: int = 0, places: int = 16):
    return random_masks(count, places, keep, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module")
def vae():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return (
            AutoencoderKL(
                latent_channels=4,
                block_out_channels=(8, 8),
                down_block_types=("DownEncoderBlock2D",) * 2,
                up_block_types=("UpDecoderBlock2D",) * 2,
                layers_per_block=1,
                norm_num_groups=4,
                mid_block_add_attention=False,
            )
            .eval()
            .requires_grad_(False)
        )


def pictures(count: int = 6):
    return torch.rand(count, 3, 16, 16, generator=torch.Generator().manual_seed(2)) * 2 - 1


def test_ratios_are_the_papers():
    cosine = {0: 0.15, 1: 0.150043, 150: 0.241793, 300: 0.453694, 450: 0.663437, 600: 0.75, 899: 0.75}
    piecewise = {
        0: 0.15,
        75: 0.275,
        149: 0.39833,
        150: 0.4,
        299: 0.4,
        300: 0.4,
        450: 0.575,
        599: 0.74883,
        600: 0.75,
    }
    linear = {0: 0.15, 450: 0.45, 900: 0.75}
    for kind, wanted in (("cosine", cosine), ("piecewise", piecewise), ("linear", linear)):
        masking = Masking(kind)
        for step, ratio in wanted.items():
            assert masking.ratio(step, 900) == pytest.approx(ratio, abs=1e-5), (kind, step)
        every = [masking.ratio(step, 900) for step in range(901)]
        assert every == sorted(every)
        assert max(b - a for a, b in pairwise(every)) < 0.01
    assert Masking("cosine").mean_ratio(900) == pytest.approx(0.5512, abs=1e-4)
    assert Masking("piecewise").mean_ratio(900) == pytest.approx(0.5538, abs=1e-4)
    assert Masking("linear", ramp=2 / 3).ratio(600, 900) == pytest.approx(0.75)
    assert Masking("fixed").ratio(0, 900) == 0.75
    assert Masking("piecewise", least=0.0, most=0.6).ratio(150, 900) == pytest.approx(0.25)
    with pytest.warns(UserWarning, match="beyond"):
        assert Masking().ratio(1000, 900) == 0.75
    with pytest.raises(InputError, match="at least 0"):
        Masking().ratio(-1, 900)


def test_kept_patches_and_what_a_run_costs():
    for places, kept in (
        (49, (41, 29, 24, 12)),
        (196, (166, 117, 98, 49)),
        (16, (13, 9, 8, 4)),
        (64, (54, 38, 32, 16)),
    ):
        assert tuple(keep_count(places, ratio) for ratio in (0.15, 0.4, 0.5, 0.75)) == kept
    for kind, tokens in (("cosine", 22.6), ("piecewise", 22.5), ("linear", 27.5), ("fixed", 13.0)):
        ratios = [Masking(kind).ratio(step, 900) for step in range(900)]
        assert sum(keep_count(49, r) + 1 for r in ratios) / 900 == pytest.approx(tokens, abs=0.06)


def test_normalised_zero_predictions_cost_one_less_one_over_d():
    x = latents()
    config = LMDConfig(**SIZES, patch=4, size=8, channels=4)
    model = made(config)
    torch.nn.init.zeros_(model.decoder_pred.weight)
    model.requires_grad_(False)
    masks = masks_of(6, 1, places=4)
    assert float(masked_loss(model, model.patches(x), masks, True)) == pytest.approx(63 / 64, abs=1e-6)
    plain = float(masked_loss(model, model.patches(x), masks, False))
    removed = model.patches(x)[masks.removed]
    assert plain == pytest.approx(float(removed.square().mean()))
    with pytest.raises(InputError, match="one number"):
        normalise_patches(torch.zeros(1, 2, 1))
    assert float(normalise_patches(torch.full((1, 2, 4), 3.0))[0].abs().max()) == 0


class Fixed(torch.nn.Module):
    """Predicts what it was given."""

    def __init__(self, found):
        super().__init__()
        self.found = found

    def predict(self, patches, masks):
        return self.found


def test_the_loss_is_that_of_removed_patches():
    patches, masks = to_patches(latents(), 2), masks_of(6, 4)
    assert bool((masks.removed.sum(1) == 12).all())
    assert float(masked_loss(Fixed(normalise_patches(patches)[0]), patches, masks, True)) == 0
    wrong = torch.where(masks.removed[..., None], patches, patches + 5)
    assert float(masked_loss(Fixed(wrong), patches, masks, False)) == 0
    wrong = torch.where(masks.removed[..., None], patches + 5, patches)
    assert float(masked_loss(Fixed(wrong), patches, masks, False)) == pytest.approx(25, rel=1e-5)


def test_patches_come_back_and_visible_ones_stay():
    x, model, masks = latents(), made(), masks_of(6, 4)
    assert torch.equal(to_images(model.patches(x), 2, 4), x)
    for rounds in (1, 3):
        filled = model.patches(model.reconstruct(x, masks, rounds=rounds).detach())
        kept = ~masks.removed
        assert torch.equal(filled[kept], model.patches(x)[kept])
        assert not torch.equal(filled[masks.removed], model.patches(x)[masks.removed])
    once, thrice = (model.reconstruct(x, masks, rounds=rounds).detach() for rounds in (1, 3))
    assert not torch.equal(once, thrice)
    # The first of three rounds is the one: what it reveals first is what one pass predicts there.
    first = masks.restore.argsort(1)[:, 4:8, None].expand(-1, -1, 16)
    assert torch.equal(model.patches(once).gather(1, first), model.patches(thrice).gather(1, first))


def test_true_statistics_undo_the_normalisation():
    x, masks = latents(), masks_of(6, 4)
    model = made()
    normal, mean, deviation = normalise_patches(model.patches(x))
    model.predict = lambda patches, masks: normal
    torch.testing.assert_close(model.reconstruct(x, masks, normalised=True), x, atol=1e-5, rtol=1e-5)
    assert float(deviation.min()) > 0
    assert mean.shape == (6, 16, 1)


def test_the_encoder_sees_kept_patches_only_and_in_any_order():
    model, x = made(), latents(3)
    masks = masks_of(3, 4)
    hidden = model.patches(x).masked_fill(masks.removed[..., None], 99.0)
    with torch.no_grad():
        assert torch.equal(model.predict(hidden, masks), model.predict(model.patches(x), masks))
        whole = masks_of(3, 16, seed=3)
        back = model.encoder(model.patches(x), whole)[:, 1:].gather(
            1, whole.restore[..., None].expand(-1, -1, 16)
        )
        torch.testing.assert_close(back, model.encoder.forward_features(x)[:, 1:], atol=1e-5, rtol=1e-5)


def test_a_fixed_ratio_is_a_step_of_a_plain_masked_auto_encoder():
    """The same step, written out as the masked auto-encoder's paper has it, on the same draws."""
    x = latents(16)
    recipe = Pretraining(max_steps=1, batch_size=16, device="cpu", warmup=0.0)
    trained = pretrain_model(CONFIG, x, Masking("fixed"), recipe, progress=False)
    plain = made(seed=recipe.seed).train()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.seed)
        (batch,) = list(Batches({"x": x}, 16, seed=recipe.seed))
        scores = torch.rand(16, 16)
    order = scores.argsort(dim=1, stable=True)
    restore, kept = order.argsort(1), order[:, :4]
    patches = to_patches(batch["x"], 2)
    encoder = plain.encoder
    tokens = encoder.patch_embed.embed(patches.gather(1, kept[..., None].expand(-1, -1, 16)))
    tokens = tokens + encoder.pos_embed[:, 1:].expand(16, -1, -1).gather(
        1, kept[..., None].expand(-1, -1, 16)
    )
    cls = (encoder.cls_token + encoder.pos_embed[:, :1]).expand(16, -1, -1)
    tokens = torch.cat([cls, tokens], 1)
    for block in encoder.blocks:
        tokens = block(tokens)
    tokens = plain.decoder_embed(encoder.norm(tokens))
    every = torch.cat([tokens[:, 1:], plain.mask_token.expand(16, 12, -1)], 1)
    every = every.gather(1, restore[..., None].expand(-1, -1, 16))
    tokens = torch.cat([tokens[:, :1], every], 1) + plain.decoder_pos_embed
    for block in plain.decoder_blocks:
        tokens = block(tokens)
    found = plain.decoder_pred(plain.decoder_norm(tokens)[:, 1:])
    target = (patches - patches.mean(-1, keepdim=True)) / (patches.var(-1, keepdim=True) + 1e-6).sqrt()
    removed = restore >= 4
    loss = ((found - target).square().mean(-1) * removed).sum() / removed.sum()
    optimizer = optimizer_of(recipe)(plain)
    loss.backward()
    torch.nn.utils.clip_grad_norm_(plain.parameters(), recipe.clip)
    optimizer.step()
    for (name, own), theirs in zip(plain.named_parameters(), trained.parameters(), strict=True):
        assert torch.equal(own, theirs), (name, float((own - theirs).abs().max()))


def test_subtracted_positions_are_the_negative_table():
    model = made()
    other = copy.deepcopy(model)
    other.config = LMDConfig(**vars(CONFIG) | {"subtract_positions": True})
    other.decoder_pos_embed.neg_()
    masks, patches = masks_of(6, 4), model.patches(latents())
    with torch.no_grad():
        assert torch.equal(model.predict(patches, masks), other.predict(patches, masks))


def test_a_classifier_pools_patches_and_lacks_only_head_and_norm():
    model, x = made(), latents()
    classifier = Classifier(copy.deepcopy(model.encoder), 3)
    new = set(classifier.state_dict()) - {f"encoder.{name}" for name in model.encoder.state_dict()}
    assert {name.split(".")[0] for name in new} == {"fc_norm", "head"}
    tokens = torch.randn(2, 17, 16)
    moved = tokens.clone()
    moved[:, 0] += 9
    assert torch.equal(classifier.forward_head(tokens), classifier.forward_head(moved))
    assert classifier.forward_head(tokens, pre_logits=True).shape == (2, 16)
    rows = features_of(model.encoder, x)
    torch.testing.assert_close(rows, model.encoder.forward_features(x)[:, 1:].mean(1))
    classifier.drop_path = 0.9
    classifier.train()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        assert not torch.equal(classifier.forward_features(x), classifier.forward_features(x))
    assert torch.equal(classifier.eval().forward_features(x), classifier.forward_features(x))


def test_rates_fall_from_the_head_down_and_vectors_are_not_decayed():
    classifier = Classifier(made().encoder, 3)
    depth = {name: below_head(name, classifier) for name, _ in classifier.named_parameters()}
    assert depth["head.weight"] == depth["fc_norm.bias"] == 0
    assert depth["encoder.blocks.1.attn.qkv.weight"] == 1
    assert depth["encoder.blocks.0.norm1.weight"] == 2
    assert depth["encoder.cls_token"] == depth["encoder.patch_embed.proj.weight"] == 3
    recipe = FineTuning(lr=1.0, layer_decay=0.5, device="cpu")
    groups = optimizer_of(recipe, recipe.layer_decay)(classifier).param_groups
    assert sorted({group["lr"] for group in groups}) == [0.125, 0.25, 0.5, 1.0]
    for group in groups:
        assert group["weight_decay"] == (
            0.05 if group["params"][0].ndim > 1 and len(group["params"][0]) > 1 else 0
        )


def test_positions_are_interpolated_for_another_grid():
    encoder = made().encoder
    larger = encoder.resized(16)
    assert larger.forward_features(torch.zeros(1, 4, 16, 16)).shape == (1, 65, 16)
    assert torch.equal(encoder.resized(8).pos_embed, encoder.pos_embed)
    assert torch.equal(larger.pos_embed[:, 0], encoder.pos_embed[:, 0])
    middle = larger.pos_embed[0, 1:].unflatten(0, (8, 8))[2:6, 2:6].mean((0, 1))
    torch.testing.assert_close(
        middle, encoder.pos_embed[0, 1:].unflatten(0, (4, 4))[1:3, 1:3].mean((0, 1)), atol=0.05, rtol=0
    )


def test_latents_are_the_mode_and_are_encoded_once(vae, tmp_path):
    space, images = Space(vae), pictures()
    first = space.encode(images)
    assert torch.equal(first, space.encode(images))
    torch.testing.assert_close(first, vae.encode(images).latent_dist.mean)
    assert first.shape == (6, 4, 8, 8)
    assert space.factor == 2
    scaled = Space(vae, scaled=True)
    torch.testing.assert_close(scaled.encode(images), first * vae.config.scaling_factor)
    torch.testing.assert_close(
        scaled.decode(scaled.encode(images)), space.decode(first), atol=1e-5, rtol=1e-4
    )
    kept = cached_latents(tmp_path / "kept", space, images, about={})
    torch.testing.assert_close(kept, first, atol=1e-2, rtol=1e-2)
    calls = []
    space.encode = lambda images: calls.append(1)
    assert torch.equal(cached_latents(tmp_path / "kept", space, images, about={}), kept)
    assert not calls
    with pytest.raises(InputError, match="other images"):
        cached_latents(tmp_path / "kept", space, images.flip(0), about={})
    other = copy.deepcopy(vae)
    other.quant_conv.bias.data += 1
    with pytest.raises(InputError, match="another autoencoder"):
        cached_latents(tmp_path / "kept", Space(other), images, about={})


def test_images_of_another_range_or_shape_are_refused(vae):
    for images, why in (
        (pictures() * 2 - 1, r"\[-1, 1\]"),
        (torch.zeros(1, 1, 16, 16), "channels"),
        (torch.zeros(1, 3, 15, 15), "multiples"),
        (torch.full((1, 3, 16, 16), math.nan), r"\[-1, 1\]"),
    ):
        with pytest.raises(InputError, match=why):
            Space(vae).encode(images)
    assert torch.equal(Space(None).encode(pictures()), pictures())


def test_views_are_views_of_all_images_in_turn():
    images = pictures()
    assert views_of(images, 1) is images
    views = views_of(images, 3, flip=True)
    assert len(views) == 18
    for row, view in enumerate(views):
        image = images[row % 6]
        assert torch.equal(view, image) or torch.equal(view, image.flip(-1))
    assert not torch.equal(views[:6], views[6:12])


def test_adan_is_its_algorithm():
    generator = torch.Generator().manual_seed(0)
    start, gradients = (
        torch.randn(5, generator=generator).double(),
        torch.randn(4, 5, generator=generator).double(),
    )
    own = torch.nn.Parameter(start.clone())
    optimizer = Adan([own], lr=0.1, weight_decay=0.3)
    x, m, v, n, last = start, 0, 0, 0, gradients[0]
    for step, g in enumerate(gradients, 1):
        own.grad = g.clone()
        optimizer.step()
        change, last = g - last, g
        m, v = 0.98 * m + 0.02 * g, 0.92 * v + 0.08 * change
        n = 0.9 * n + 0.1 * (g + 0.92 * change) ** 2
        size = 0.1 / ((n / (1 - 0.9**step)).sqrt() + 1e-8)
        x = (x - size * (m / (1 - 0.98**step) + 0.92 * v / (1 - 0.92**step))) / (1 + 0.1 * 0.3)
        torch.testing.assert_close(own.data, x, atol=1e-12, rtol=1e-12)


def test_mixtures_keep_the_shares_of_their_images():
    images = torch.stack([torch.full((1, 8, 8), float(value)) for value in (1, 0, 0, 0)])
    labels = torch.tensor([0, 1, 1, 1])
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        for mixup, cutmix in ((0.8, 0.0), (0.0, 1.0), (0.8, 1.0)):
            for _ in range(10):
                x, shares = mixed(images, labels, 2, mixup, cutmix)
                torch.testing.assert_close(x.mean((1, 2, 3)), shares[:, 0])
    x, shares = mixed(images, labels, 2, 0.0, 0.0)
    assert x is images
    assert smoothed(shares, 0.1)[0].tolist() == pytest.approx([0.95, 0.05])


@pytest.mark.parametrize("optimizer", ["adamw", "adan"])
def test_it_learns_and_its_encoder_classifies(optimizer, vae, tmp_path):
    labels, space = torch.arange(32) // 16, Space(vae)
    images = pictures(32) / 10 + (1.6 * labels[:, None, None, None] - 0.8)
    inputs = space.encode(images)
    recipe = Pretraining(max_steps=40, batch_size=16, lr=5e-3, device="cpu", optimizer=optimizer)
    model = pretrain_model(CONFIG, inputs, Masking(), recipe, progress=False)
    masks = masks_of(32, 4)
    with torch.no_grad():
        before, after = (masked_loss(m, m.patches(inputs), masks, True) for m in (made(), model))
    assert float(after) < 0.5 * float(before)
    tuning = FineTuning(
        max_steps=20, batch_size=16, lr=5e-3, device="cpu", mixup=0.2, optimizer=optimizer, layer_decay=1.0
    )
    classifier = finetune_model(model.encoder, space, images, labels, tuning, progress=False)
    assert torch.equal(classifier(inputs).argmax(1), labels)
    trained = Trained("somewhere", False, space.fingerprint, True)
    save_model(tmp_path / "model", model, trained)
    save_classifier(tmp_path / "classifier", classifier, trained)
    loaded, known = load_model(tmp_path / "model")
    assert known == trained
    assert torch.equal(features_of(loaded.encoder, inputs), features_of(model.encoder, inputs))
    assert torch.equal(load_classifier(tmp_path / "classifier")[0](inputs), classifier(inputs))


def test_a_checkpoint_of_another_depth_is_refused_in_a_sentence(tmp_path):
    save_model(tmp_path / "model", made(), Trained("pixels", False, "", True))
    config = tmp_path / "model" / "config.json"
    config.write_text(config.read_text().replace('"depth": 2', '"depth": 3'))
    with pytest.raises(ArtifactError, match="depth"):
        load_model(tmp_path / "model")


def test_bad_ratios_and_sizes_are_refused():
    with pytest.raises(InputError, match="most"):
        Masking(most=1.0)
    with pytest.raises(InputError, match="at least least"):
        Masking(least=0.5, most=0.3)
    with pytest.raises(InputError, match="removes none"):
        check_masks(CONFIG, Masking(least=0.0))
    with pytest.raises(InputError, match="leaves none"):
        check_masks(CONFIG, Masking(most=0.99))
    with pytest.raises(InputError, match="multiple of patch"):
        LMDConfig(**SIZES, patch=3, size=8)
    with pytest.raises(InputError, match="decoder_width"):
        LMDConfig(**SIZES | {"decoder_width": 18})
    with pytest.raises(InputError, match="shape"):
        made().patches(torch.zeros(1, 3, 8, 8))
    with pytest.raises(InputError, match="before they are encoded"):
        pretrain_model(CONFIG, latents(40), Masking(), Pretraining(max_steps=1, flip=True), progress=False)
    with pytest.raises(InputError, match="rounds"):
        made().reconstruct(latents(), masks_of(6, 4), rounds=0)


def test_a_claims_seed_that_was_stopped_does_not_train_again(tmp_path, monkeypatch):
    from noiseworks.lmd import evidence
    from noiseworks.lmd.claim import CLAIM

    images = pictures(8)
    shared = evidence.Shared(500, images, images, [], Space(None), images, 0.0)
    context = Context("smoke", CLAIM.scales["smoke"].settings, None, "cpu", tmp_path, lambda *_: None)
    given = ("coarse", shared, context, Space(None), images, 8, Masking("fixed"), 2)
    first = evidence.kept(*given)
    monkeypatch.setattr(evidence, "trained", None)
    again = evidence.kept(*given)
    assert [tuple(point) for point in again["curve"]] == first["curve"]
    assert [step for step, _, _ in first["curve"]] == [1, 2]
    names = dict(again["model"].named_parameters())
    assert all(torch.equal(names[name], weight) for name, weight in first["model"].named_parameters())
    assert not again["model"].training
