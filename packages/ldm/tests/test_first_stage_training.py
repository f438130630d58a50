"""The first-stage trainer: counters, discriminator start, averages, codebook use and bad input."""

from types import SimpleNamespace

import lightning as L  # noqa: TID253
import pytest
import torch
from diffusers import AutoencoderKL, UNet2DModel, VQModel
from noiseworks.core.errors import InputError, NonFiniteError, UnsupportedHostError
from noiseworks.kits.training import Batches, TensorTable
from noiseworks.ldm.first_stage.discriminator import PatchDiscriminator
from noiseworks.ldm.first_stage.losses import PerceptualAdversarialLoss
from noiseworks.ldm.first_stage.trainer import FirstStageTrainer, scaled_learning_rate

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
    first, second = (make_module(loss={"disc_start": 4}, ema_decay=0.5) for _ in range(2))
    start = fit(first).callback_metrics["val/rec_loss"].item()
    assert fit(second).callback_metrics["val/rec_loss"].item() == start
    assert fit(first, epochs=5).callback_metrics["val/rec_loss"].item() < 0.9 * start


def test_vq_reports_the_use_of_its_codebook():
    found = fit(make_module("vq")).callback_metrics
    assert 1 <= found["train/perplexity"] <= 8
    assert found["train/codebook_usage"] * 8 in range(1, 9)


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
    modules = [make_module(kind, adversarial=False, ema_decay=0.5, accumulate=n) for n in (1, 2)]
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


def test_processes_share_the_noise_of_one_batch_and_the_counts_of_its_codes():
    module, images = make_module(), image_table(4)[0]["image"].expand(4, -1, -1, -1)

    def run_as(rank, processes):
        strategy = SimpleNamespace(reduce=lambda counts, reduce_op: processes * counts)
        module.trainer = SimpleNamespace(global_rank=rank, world_size=processes, strategy=strategy)

    run_as(0, 1)
    whole = module._posterior_noise(images)
    parts = []
    for rank in (0, 1):
        run_as(rank, 2)
        parts.append(module._posterior_noise(images[:2]))
    assert torch.equal(torch.cat(parts), whole)
    module = make_module("vq")
    run_as(0, 2)
    assert module._summed_counts(torch.tensor([1, 1, 7])).tolist() == [0, 4, 0, 0, 0, 0, 0, 2]
