"""Network, masks, loss and sampling against worked numbers, closed forms and the limits of the paper."""

from pathlib import Path
from unittest.mock import patch

import pytest
import torch
from noiseworks.bench.claims import Context
from noiseworks.core.errors import ArtifactError, InputError
from noiseworks.core.schedules import add_noise, table_schedule
from noiseworks.kits.backbones import fit_features, keep_count, random_masks, to_images
from noiseworks.kits.training import Rows
from noiseworks.umd import UMD, FineTuning, Mixture, Pretraining, UMDConfig, draw, load_model, mixture_loss
from noiseworks.umd.claim import CLAIM
from noiseworks.umd.features import features_of, untrained
from noiseworks.umd.model import time_waves
from noiseworks.umd.options import Features
from noiseworks.umd.sampling import time_list
from noiseworks.umd.training import finetune_model, pretrain_model, save_model

CONFIG = UMDConfig(depth=2, decoder_depth=1, width=16, heads=2, patch=4, image_size=16, channels=2)
LABELLED = UMDConfig(**vars(CONFIG) | {"classes": 3})
COSINE = table_schedule("cosine")


def randomised(config=CONFIG, seed: int = 0) -> UMD:
    model, generator = UMD(config), torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(0.2 * torch.randn(parameter.shape, generator=generator))
    return model.eval()


def images(count: int = 8):
    return torch.rand(count, 2, 16, 16, generator=torch.Generator().manual_seed(1)) * 2 - 1


def test_schedules_have_the_papers_levels():
    for kind, wanted in (
        ("cosine", (0.999958716, 0.991724685, 0.492285172, 2.42877e-9)),
        ("linear", (0.9999, 0.969951494, 0.077796658, 4.03583e-5)),
    ):
        found = table_schedule(kind).alphas_cumprod[[0, 50, 500, 999]].tolist()
        assert found == pytest.approx(wanted, rel=1e-5)


def test_time_lists_end_at_zero_and_have_one_call_more_than_steps():
    found = time_list(1000, 125)
    assert len(found) == 126
    assert found[:3] == [999, 991, 983]
    assert found[-3:] == [15, 7, 0]
    assert len(time_list(1000, 250)) == 251
    assert time_list(1000, 250)[-3:] == [7, 3, 0]
    assert time_list(1000, 62)[-1] == 0  # where the released loop runs past its list
    assert len(set(time_list(1000, 62))) == len(time_list(1000, 62)) == 60


def test_times_zero_and_one_differ_and_the_waves_begin_with_sines():
    waves = time_waves(torch.tensor([0, 1]), 16)
    assert waves[0].tolist() == [0.0] * 8 + [1.0] * 8
    assert float(waves[1, 0]) == pytest.approx(0.8414709848)
    assert float(waves[1, 7]) == pytest.approx(1e-4, rel=1e-3)  # the last frequency is 1/10000 exactly


def test_a_new_network_is_the_identity_and_represents_every_image_by_zero():
    model = UMD(CONFIG)
    with torch.no_grad():
        assert bool((model.encode(images()) == 0).all())
        tokens = torch.randn(2, 5, 16)
        out, _ = model.encoder(tokens, torch.randn(2, 16))
        assert torch.equal(out, model.encoder.norm(tokens))
    assert float(features_of(untrained(model), images()).std(0).min()) > 0


def test_a_time_above_zero_is_read_from_images_noised_to_the_timestep_before_it():
    model, x = randomised(), images(3)
    noise = torch.randn(x.shape, generator=torch.Generator().manual_seed(0))
    noised = add_noise(x, noise, table_schedule("linear").level(50))
    with torch.no_grad():
        torch.testing.assert_close(features_of(model, x, Features(51), "linear"), model.encode(noised, 51))
        torch.testing.assert_close(features_of(model, x), model.encode(x))


def test_masked_encoding_sees_kept_patches_only():
    model, x = randomised(), images(3)
    masks = random_masks(3, 16, keep_count(16, 0.375), generator=torch.Generator().manual_seed(0))
    assert masks.kept.shape == (3, 10)
    changed = torch.where(masks.removed[..., None], torch.zeros(()), model.patches(x))
    times = torch.zeros(1, dtype=torch.int64)
    with torch.no_grad():
        first, second = (model.predict(p, times, None, masks) for p in (model.patches(x), changed))
        assert torch.equal(first[0], second[0])
        # With everything kept, in whatever order, the outputs are those without a mask.
        whole = random_masks(3, 16, 16, generator=torch.Generator().manual_seed(2))
        shuffled, plain = (
            model.predict(model.patches(x), times, None, whole),
            model.predict(model.patches(x), times),
        )
    torch.testing.assert_close(shuffled[0], plain[0], atol=1e-5, rtol=1e-5)


def test_losses_of_zero_predictions_are_mean_squares():
    model, x = UMD(CONFIG), images(4000)
    for layer in (model.to_x0, model.to_epsilon):
        torch.nn.init.zeros_(layer.weight)
    with torch.no_grad():
        parts = mixture_loss(model, x, None, Mixture("umd"), COSINE)
    square = float(x.square().mean())
    assert float(parts["clean"]) == pytest.approx(square, rel=0.01)
    assert float(parts["noisy"]) == pytest.approx((1 + square) / 2, rel=0.01)
    assert float(parts["loss"]) == pytest.approx(float(parts["clean"] + parts["noisy"]) / 2)


def test_presets_are_limits_of_the_mixture_with_the_same_draws():
    model, x = randomised(), images()
    assert [Mixture(name).clean_rows(8) for name in ("umd", "mae", "dit", "maskdit")] == [4, 8, 0, 0]
    assert Mixture().clean_rows(1) == 0
    for preset, same in (("dit", Mixture(r0=0.0, rho=0.0)), ("mae", Mixture(r0=1.0))):
        found = []
        for mixture in (Mixture(preset), same):
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(0)
                found.append(mixture_loss(model, x, None, mixture, COSINE)["loss"])
        assert torch.equal(*found)
    assert Mixture().fine_tuning().values == (0.05, 0.75, 0.0)
    assert Mixture("dit").fine_tuning().values == (0.0, 0.75, 0.0)


@pytest.mark.parametrize("mixture", [Mixture(), Mixture(r0=0.4), Mixture().fine_tuning(), Mixture("mae")])
def test_two_processes_have_the_loss_and_gradient_of_one(mixture):
    model, x, labels = randomised(LABELLED).double(), images().double(), torch.arange(8) % 3

    def gradient(own):
        with torch.random.fork_rng(devices=[]), patch.object(Rows, "of", lambda count: own):
            torch.manual_seed(0)
            loss = mixture_loss(model, own.take(x), own.take(labels), mixture, COSINE, 0.5)["loss"]
        model.zero_grad()
        loss.backward()
        return [
            loss.detach(),
            *(p.grad if p.grad is not None else p.detach() * 0 for p in model.parameters()),
        ]

    whole, *parts = (gradient(Rows(first, count, 8)) for first, count in ((0, 8), (0, 4), (4, 4)))
    for one, first, second in zip(whole, *parts, strict=True):
        torch.testing.assert_close((first + second) / 2, one, atol=1e-12, rtol=1e-9)


def test_noise_counts_where_patches_are_seen_clean_images_where_they_are_not_and_time_0_is_of_clean_ones():
    model, x, told = UMD(CONFIG), images(4000), []

    def predict(patches, times, labels, masks):
        told.append(times)
        wrong = 100 * masks.removed[..., None].to(patches)
        return (100 - wrong).expand_as(patches), wrong.expand_as(patches)

    with torch.random.fork_rng(devices=[]), patch.object(model, "predict", predict):
        torch.manual_seed(0)
        found = mixture_loss(model, x, None, Mixture("maskdit"), COSINE)["loss"]
    assert float(found) == pytest.approx((1 + float(x.square().mean())) / 2, rel=0.01)
    assert (int(told[0].min()), int(told[0].max())) == (1, COSINE.num_steps)


def test_an_unmasked_noisy_loss_is_taken_everywhere():
    model, x = UMD(CONFIG), images(4000)
    for layer in (model.to_x0, model.to_epsilon):
        torch.nn.init.zeros_(layer.weight)
    with torch.no_grad():
        found = mixture_loss(model, x, None, Mixture("dit"), COSINE)["loss"]
    assert float(found) == pytest.approx((1 + float(x.square().mean())) / 2, rel=0.01)


def test_a_shared_condition_gives_what_one_a_sample_gives():
    model, x = randomised(), images(3)
    patches = model.patches(x)
    with torch.no_grad():
        one = model.predict(patches, torch.tensor([7]))
        each = model.predict(patches, torch.tensor([7, 7, 7]))
    for a, b in zip(one, each, strict=True):
        torch.testing.assert_close(a, b)


def test_noise_comes_first_and_the_network_is_told_t_plus_one():
    model, x, t = randomised(), images(2), torch.tensor([0, 500])
    with torch.no_grad():
        out = model(x, t)
        clean, noise = model.predict(model.patches(x), t + 1)
    assert torch.equal(out, torch.cat([to_images(noise, 4, 2), to_images(clean, 4, 2)], 1))


def test_labels_are_fresh_and_all_else_stays():
    model = randomised()
    made = model.with_classes(3)
    own, theirs = model.state_dict(), made.state_dict()
    assert all(torch.equal(own[name], theirs[name]) for name in own)
    assert {name.split(".")[0] for name in theirs.keys() - own.keys()} == {"label_table", "label_trunk"}
    condition = made.condition(torch.tensor([4, 4]), torch.tensor([0, made.null_label]))
    assert not torch.equal(condition[0], condition[1])
    torch.testing.assert_close(condition[1:], made.condition(torch.tensor([4])))


def test_guidance_of_one_is_the_conditional_output_and_samples_have_seeds_of_their_own():
    model, labels = randomised(LABELLED), torch.tensor([0, 1, 2])
    plain = draw(model, labels, COSINE, steps=5)
    assert torch.equal(draw(model, labels, COSINE, steps=5, guidance_scale=1.0), plain)
    assert not torch.equal(draw(model, labels, COSINE, steps=5, eta=0.0), plain)
    torch.testing.assert_close(draw(model, labels[1:2], COSINE, steps=5, seeds=[1]), plain[1:2])
    with pytest.raises(InputError, match="without labels"):
        draw(randomised(), labels * 0, COSINE, steps=5, guidance_scale=2.0)


def test_a_sampler_goes_by_the_noise_or_by_the_clean_image():
    model, labels = randomised(LABELLED), torch.tensor([0, 1])
    assert torch.equal(
        draw(model, labels, COSINE, steps=4, by="epsilon"), draw(model, labels, COSINE, steps=4)
    )

    class Agreeing(UMD):
        """Both predictions are those of one clean image, so that both samplers must draw it."""

        def forward(self, x, t, y=None):
            level, clean = COSINE.level(t), torch.full_like(x, 0.25)
            alpha, sigma = (part.view(-1, 1, 1, 1).to(x) for part in level)
            return torch.cat([(x - alpha * clean) / sigma, clean], 1)

    agreeing = Agreeing(LABELLED)
    for by in ("epsilon", "sample"):
        found = draw(agreeing, labels, COSINE, steps=4, guidance_scale=2.0, by=by)
        torch.testing.assert_close(found, torch.full_like(found, 0.25), atol=1e-3, rtol=0)
    assert not torch.equal(
        draw(model, labels, COSINE, steps=4, by="sample"), draw(model, labels, COSINE, steps=4)
    )
    with pytest.raises(InputError, match="by must be"):
        draw(model, labels, COSINE, steps=4, by="v")


def test_ddim_with_eta_one_is_diffusers():
    from diffusers import DDIMScheduler
    from noiseworks.core.params import to_x0
    from noiseworks.core.steps import ddim_step

    host = DDIMScheduler(
        trained_betas=COSINE.betas.float().numpy(),
        clip_sample=True,
        set_alpha_to_one=True,
        prediction_type="epsilon",
    )
    host.set_timesteps(timesteps := 125)
    x, noise, z = (torch.randn(2, 2, 4, 4, generator=torch.Generator().manual_seed(i)) for i in range(3))
    for now in (800, 400, 80):
        level, after = COSINE.level(now), COSINE.level(now - 1000 // timesteps)
        clean = to_x0(noise, x, level, "epsilon").clamp(-1, 1)
        own = ddim_step(x, clean, level, after, eta=1.0, noise=z).sample
        theirs = host.step(
            noise, now, x, eta=1.0, use_clipped_model_output=True, variance_noise=z
        ).prev_sample
        torch.testing.assert_close(own, theirs, atol=2e-4, rtol=1e-3)


def test_tokens_instead_of_modulation_and_checkpointing():
    model = UMD(UMDConfig(**vars(CONFIG) | {"adaln": False}))
    assert model.encoder.modulation is model.decoder.modulation is None
    t = torch.tensor([0, 900])
    with torch.no_grad():
        early, late = (model(images(2), t * 0 + value) for value in (0, 900))
    assert not torch.equal(early, late)
    deep, found = randomised(), []
    for checkpointed in (False, True):
        deep.encoder.gradient_checkpointing = deep.decoder.gradient_checkpointing = checkpointed
        deep.zero_grad()
        deep(images(2), t).square().sum().backward()
        found.append([p.grad.clone() for p in deep.parameters() if p.grad is not None])
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


def test_it_learns_both_losses_and_fine_tuning_keeps_what_it_learned(tmp_path):
    x = images(32)
    x[:16], x[16:] = x[:1], x[16:17]
    labels = torch.arange(32) // 16
    recipe = Pretraining(max_steps=60, batch_size=16, lr=3e-3, device="cpu")
    model = pretrain_model(CONFIG, x, Mixture(), recipe, progress=False)
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(0)
        before, after = (mixture_loss(m, x, None, Mixture(), COSINE) for m in (UMD(CONFIG), model))
    assert after["clean"] < 0.5 * before["clean"]
    assert after["noisy"] < 0.8 * before["noisy"]
    tuned = finetune_model(
        model,
        x,
        labels,
        Mixture().fine_tuning(),
        FineTuning(max_steps=2, batch_size=16, device="cpu"),
        "cosine",
        progress=False,
    )
    assert tuned.config.classes == 2
    save_model(tmp_path / "model", tuned, schedule="cosine", mixture=Mixture())
    loaded, schedule, mixture = load_model(tmp_path / "model")
    assert (schedule, mixture) == ("cosine", Mixture())
    assert torch.equal(loaded.encode(x), tuned.encode(x))


def test_a_checkpoint_of_another_depth_is_refused_in_a_sentence(tmp_path):
    save_model(tmp_path / "model", UMD(CONFIG), schedule="cosine", mixture=Mixture())
    config = tmp_path / "model" / "config.json"
    config.write_text(config.read_text().replace('"depth": 2', '"depth": 3'))
    with pytest.raises(ArtifactError, match="depth"):
        load_model(tmp_path / "model")


def test_bad_sizes_and_ratios_are_refused():
    with pytest.raises(InputError, match="multiple of patch"):
        UMDConfig(image_size=30)
    with pytest.raises(InputError, match="rho0"):
        Mixture(rho0=1.0)
    with pytest.raises(InputError, match="r0"):
        Mixture(r0=1.5)
    with pytest.raises(InputError, match="leaves none"):
        keep_count(4, 0.9)
    with pytest.raises(InputError, match="shape"):
        UMD(CONFIG)(torch.zeros(1, 3, 16, 16), torch.zeros(1))


def test_the_claim_reads_every_arm_in_the_same_places(monkeypatch):
    """The best of four readings against one of them says which reading is good, not which training."""
    from noiseworks.umd import claim, features

    read, original = {}, features.features_of

    def recorded(model, images, chosen=features.Features()):
        read.setdefault(arm, set()).add((chosen.time, chosen.tokens))
        return original(model, images, chosen)

    monkeypatch.setattr(features, "features_of", recorded)
    settings = CLAIM.scales["smoke"].settings | {"samples": 6, "shots": 1}
    context = Context("smoke", settings, None, "cpu", Path(), lambda *_: None)
    pixels = torch.rand(64, 3, 16, 16, generator=torch.Generator().manual_seed(0)) * 2 - 1
    known, digits = torch.arange(64) % 2, pixels[:, :1, ::2, ::2]
    net = fit_features(digits, known, steps=1)
    shared = claim.Shared(500, pixels, pixels, [(known, known)], (digits, known), net)
    monkeypatch.setattr("noiseworks.umd.sampling.draw", lambda model, wanted, *_, **__: digits[: len(wanted)])
    monkeypatch.setattr("noiseworks.kits.backbones.frechet_distance", lambda *_: 0.0)
    for arm in ("untrained", "mae", "umd"):
        assert "probe_cls" in claim.run(arm, shared, context).metrics
    assert read == {name: set(claim.READINGS) for name in ("untrained", "mae", "umd")}
