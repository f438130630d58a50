"""The first-stage trainer: counters, discriminator start, averages, codebook, resizing and bad input."""

import lightning as L  # noqa: TID253
import pytest
import torch
from diffusers import AutoencoderKL, UNet2DModel, VQModel
from noiseworks.core.errors import InputError, NonFiniteError, UnsupportedHostError
from noiseworks.kits.training import Batches, TensorTable
from noiseworks.ldm.first_stage.discriminator import PatchDiscriminator
from noiseworks.ldm.first_stage.losses import PerceptualAdversarialLoss, SegmentationLoss
from noiseworks.ldm.first_stage.trainer import CodebookOptions, FirstStageTrainer, scaled_learning_rate

BLOCKS = {"down_block_types": ("DownEncoderBlock2D",) * 2, "up_block_types": ("UpDecoderBlock2D",) * 2}


def make_vae(kind="kl", **options):
    settings = {"block_out_channels": (8, 8), "norm_num_groups": 4, "latent_channels": 2, **BLOCKS, **options}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return AutoencoderKL(**settings) if kind == "kl" else VQModel(**settings, num_vq_embeddings=8)


def make_module(kind="kl", loss=None, adversarial=True, vae=None, **options):
    with torch.random.fork_rng():
        torch.manual_seed(1)
        disc = PatchDiscriminator(width=8, layers=1, norm="group") if adversarial else None
    settings = loss or {}
    made = PerceptualAdversarialLoss(kind, disc=disc, **settings)
    return FirstStageTrainer(vae or make_vae(kind), made, learning_rate=1e-3, **options)


def image_table(rows=12, side=8, **others):
    generator = torch.Generator().manual_seed(3)
    colors = torch.rand(rows, 3, 1, 1, generator=generator) * 1.6 - 0.8
    images = colors + 0.2 * (torch.rand(rows, 3, side, side, generator=generator) * 2 - 1)
    return TensorTable({"image": images, **others})


def fit(module, epochs=1, table=None, batch_size=4, **options):
    settings = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    trainer = L.Trainer(
        max_epochs=epochs, accelerator="cpu", enable_model_summary=False, **(settings | options)
    )
    loader = Batches(table or image_table(), batch_size)
    trainer.fit(module, loader, Batches(image_table(4), 4))
    return trainer


def test_batches_are_counted_once_although_there_are_two_optimiser_steps():
    module = make_module(loss={"disc_start": 1})
    trainer = fit(module, epochs=2)
    assert module.batches_done == 6
    assert trainer.global_step == 6 + 5  # the discriminator steps on all but the first batch
    assert {"train/nll", "train/disc", "train/adaptive_weight", "val/rec_loss"} <= set(
        trainer.callback_metrics
    )


def test_discriminator_is_untouched_before_its_start():
    module = make_module(loss={"disc_start": 3})
    before = {name: value.clone() for name, value in module.loss.disc.state_dict().items()}
    fit(module)
    assert all(torch.equal(before[name], value) for name, value in module.loss.disc.state_dict().items())
    fit(module)
    assert not all(torch.equal(before[name], value) for name, value in module.loss.disc.state_dict().items())


def test_a_late_start_is_warned_about():
    with pytest.warns(UserWarning, match="disc_start=50001 is not reached"):
        fit(make_module())


def test_training_lowers_the_reconstruction_loss_and_repeats_itself():
    losses = []
    for _ in range(2):
        module = make_module(loss={"disc_start": 4}, ema_decay=0.5)
        metrics = [fit(module, epochs=epochs).callback_metrics["val/rec_loss"].item() for epochs in (1, 12)]
        losses.append(metrics)
    assert losses[0] == losses[1]
    assert losses[0][1] < 0.9 * losses[0][0]


def test_validation_uses_mean_latents_of_the_average():
    module = make_module(ema_decay=0.9).eval()
    with torch.no_grad():
        images = image_table(2)[0]["image"][None]
        first, second = module(images), module(images)
        expected = module.average.model.decode(module.average.model.encode(images).latent_dist.mode()).sample
    assert torch.equal(first, second)
    torch.testing.assert_close(first, expected)


@pytest.mark.parametrize("kind", ["kl", "vq"])
def test_accumulated_batches_take_the_step_of_one_large_batch(kind):
    """Without an adversary, whose adaptive weight is each batch's own; means are used for the latents of KL."""
    options = {"codebook": CodebookOptions(average_decay=0.5)} if kind == "vq" else {}
    modules = [make_module(kind, adversarial=False, ema_decay=0.5, accumulate=n, **options) for n in (1, 2)]
    for module, batch_size in zip(modules, (8, 4), strict=True):
        module._posterior_noise = lambda images: None
        fit(module, table=image_table(8), batch_size=batch_size)
    assert [module.batches_done for module in modules] == [1, 2]
    assert [int(module.average.updates) for module in modules] == [1, 1]
    # Gradients, not weights: Adam turns the rounding noise of a zero gradient into a full step.
    gradients = [{name: p.grad for name, p in module.vae.named_parameters()} for module in modules]
    for name, whole in gradients[0].items():
        assert (whole is None) == (gradients[1][name] is None), name
        if whole is not None:
            torch.testing.assert_close(gradients[1][name], whole, rtol=1e-4, atol=1e-4, msg=name)
    if kind == "vq":
        codes = [module.vae.quantize.embedding.weight for module in modules]
        torch.testing.assert_close(codes[1], codes[0])


def test_an_unfinished_step_changes_nothing():
    module = make_module(loss={"disc_start": 0}, accumulate=2)
    before = {name: value.clone() for name, value in module.state_dict().items()}
    fit(module, limit_train_batches=1)
    assert module.batches_done == 1
    assert all(torch.equal(before[name], value) for name, value in module.state_dict().items())
    fit(module, limit_train_batches=1)
    assert not torch.equal(before["vae.encoder.conv_in.weight"], module.vae.encoder.conv_in.weight)
    assert not torch.equal(
        before["loss.disc.layers.0.weight"], module.loss.disc.state_dict()["layers.0.weight"]
    )


def test_vq_reports_its_codebook_and_restarts_dead_codes():
    module = make_module("vq", codebook=CodebookOptions(restart_every=3))
    with torch.no_grad():  # one code far away from all encoder outputs is never used
        module.vae.quantize.embedding.weight[0] = 1e3
    trainer = fit(module)
    assert 1 <= trainer.callback_metrics["train/perplexity"] <= 8
    assert 0 < trainer.callback_metrics["train/codebook_usage"] <= 1
    assert module.vae.quantize.embedding.weight.abs().max() < 100
    assert module.code_counts.sum() == 0


def test_averaged_codebook_follows_the_encoder_without_gradient():
    module = make_module("vq", codebook=CodebookOptions(average_decay=0.5))
    before = module.vae.quantize.embedding.weight.clone()
    fit(module)
    assert not module.vae.quantize.embedding.weight.requires_grad
    assert not torch.equal(before, module.vae.quantize.embedding.weight)


def test_random_sizes_start_with_the_largest_and_stay_in_range():
    module, sides = make_module(resize_range=(16, 48), adversarial=False), []
    module.vae.encoder.register_forward_pre_hook(lambda _, inputs: sides.append(inputs[0].shape[-1]))
    fit(module, epochs=5, limit_val_batches=0)
    assert sides[:4] == [48] * 4
    assert set(sides) <= {16, 32, 48}
    assert len(set(sides)) > 1


def test_conditions_and_weights_of_a_batch_are_used():
    disc = PatchDiscriminator(width=8, layers=1, norm="group", condition_channels=1)
    loss = PerceptualAdversarialLoss("kl", disc=disc, disc_start=0)
    module = FirstStageTrainer(make_vae(), loss, learning_rate=1e-3)
    table = image_table(condition=torch.ones(12, 1, 8, 8), weight=torch.zeros(12))
    trainer = fit(module, table=table, limit_val_batches=0)
    assert trainer.callback_metrics["train/nll"] == 0
    assert "train/disc" in trainer.callback_metrics


def test_segmentation_maps_are_learned():
    maps = torch.zeros(12, 4, 8, 8)
    maps[:, 0, :, :4], maps[:, 3, :, 4:] = 1, 1
    vae = make_vae("vq", in_channels=4, out_channels=4)
    module = FirstStageTrainer(vae, SegmentationLoss(), learning_rate=1e-2)
    trainer = fit(module, epochs=15, table=TensorTable({"image": maps}), limit_val_batches=0)
    assert trainer.callback_metrics["train/nll"] < 0.4  # ln 2 = 0.69 at the start


def test_bfloat16_autocast_computes_the_adaptive_weight_in_float32():
    module = make_module(loss={"disc_start": 0})
    trainer = fit(module, precision="bf16-mixed")
    weight = trainer.callback_metrics["train/adaptive_weight"]
    assert weight.dtype == torch.float32
    assert weight.isfinite()
    assert next(module.vae.parameters()).dtype == torch.float32


def test_a_loss_that_is_not_finite_stops_the_run_and_names_the_step():
    module = make_module(adversarial=False)
    table = image_table()
    table.tensors["image"][5] = float("nan")
    with pytest.raises(NonFiniteError, match=r"first-stage loss is not finite at step \d"):
        fit(module, table=table)
    assert all(parameter.isfinite().all() for parameter in module.vae.parameters())


def test_learning_rate_rule():
    assert scaled_learning_rate(4.5e-6, 12, devices=8, accumulate=2) == pytest.approx(4.5e-6 * 192)


def test_wrong_hosts_and_options_are_refused():
    with pytest.raises(InputError, match="kind 'kl', got 'vq'"):
        FirstStageTrainer(make_vae("kl"), PerceptualAdversarialLoss("vq"))
    blocks = {"down_block_types": ("DownBlock2D",), "up_block_types": ("UpBlock2D",)}
    unet = UNet2DModel(block_out_channels=(8,), norm_num_groups=4, **blocks)
    with pytest.raises(UnsupportedHostError, match="UNet2DModel"):
        FirstStageTrainer(unet, PerceptualAdversarialLoss("kl"))
    for options, words in (
        ({"resize_range": (20, 40)}, "multiples of 16"),
        ({"resize_range": (64, 32)}, "resize_range"),
        ({"learning_rate": 0}, "learning_rate"),
        ({"ema_decay": 1.5}, "ema_decay"),
    ):
        with pytest.raises(InputError, match=words):
            FirstStageTrainer(make_vae(), PerceptualAdversarialLoss("kl"), **options)


@pytest.mark.parametrize(
    ("images", "words"),
    [
        (torch.zeros(4, 1, 8, 8), "convert them to RGB"),
        (torch.zeros(4, 3, 9, 9), "not a multiple of f = 2"),
        (torch.zeros(3, 8, 8), r"must be \[B, 3, H, W\]"),
    ],
)
def test_images_that_do_not_fit_are_refused(images, words):
    with pytest.raises(InputError, match=words):
        make_module().read_batch({"image": images})
