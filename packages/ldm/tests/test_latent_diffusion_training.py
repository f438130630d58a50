import json

import lightning as L  # noqa: TID253
import pytest
import torch
from diffusers import AutoencoderKL, StableDiffusionPipeline, UNet2DConditionModel
from noiseworks.core.errors import InputError, NonFiniteError
from noiseworks.kits.training import Batches, TensorTable
from noiseworks.ldm.conditioning.conditioners import ClassConditioner, TextConditioner
from noiseworks.ldm.conversion.export import export_diffusers, to_pipeline
from noiseworks.ldm.diffusion.model import LatentModel
from noiseworks.ldm.diffusion.objective import make_scheduler
from noiseworks.ldm.diffusion.samplers import sample_latents
from noiseworks.ldm.diffusion.sampling import make_denoiser
from noiseworks.ldm.diffusion.trainer import LatentDiffusionTrainer
from noiseworks.ldm.options import SampleSettings
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

WORDS = "a red green blue circle square"


def tiny_tokenizer(max_length=8):
    bpe = Tokenizer(models.BPE(end_of_word_suffix="</w>", continuing_subword_prefix=""))
    bpe.normalizer, bpe.pre_tokenizer = normalizers.Lowercase(), pre_tokenizers.Whitespace()
    bpe.train_from_iterator(
        WORDS.split(), trainers.BpeTrainer(min_frequency=1, end_of_word_suffix="</w>", show_progress=False)
    )
    model = json.loads(bpe.to_str())["model"]
    vocab = dict(model["vocab"])
    for special in ("<|startoftext|>", "<|endoftext|>"):
        vocab[special] = len(vocab)
    return CLIPTokenizer(vocab=vocab, merges=[tuple(m) for m in model["merges"]], model_max_length=max_length)


def tiny_text_trainer(seed=0, vae=False, **options):
    torch.manual_seed(seed)
    tokenizer = tiny_tokenizer()
    encoder = CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=16,
            intermediate_size=32,
            num_hidden_layers=1,
            num_attention_heads=2,
            max_position_embeddings=8,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )
    unet = UNet2DConditionModel(
        sample_size=4,
        block_out_channels=(16, 32),
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        layers_per_block=1,
        cross_attention_dim=16,
        attention_head_dim=8,
        norm_num_groups=8,
        dropout=0.1,
    )
    first_stage = (
        AutoencoderKL(
            latent_channels=4,
            block_out_channels=(8, 8, 8),
            down_block_types=("DownEncoderBlock2D",) * 3,
            up_block_types=("UpDecoderBlock2D",) * 3,
            norm_num_groups=4,
        )
        if vae
        else None
    )
    return LatentDiffusionTrainer(
        unet,
        first_stage,
        TextConditioner(encoder, tokenizer),
        make_scheduler(),
        learning_rate=1e-3,
        **options,
    )


def tiny_table(conditioner, rows=24):
    generator = torch.Generator().manual_seed(1)
    words = WORDS.split()
    captions = [f"a {words[1 + i % 3]} {words[4 + i % 2]}" for i in range(rows)]
    return TensorTable(
        {
            "mean": torch.randn(rows, 4, 4, 4, generator=generator) * 3,
            "logvar": torch.full((rows, 4, 4, 4), -4.0),
            "input_ids": conditioner.tokenize(captions),
        }
    )


class Losses(L.Callback):
    def __init__(self):
        self.values = []

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
        self.values.append(outputs["loss"].item())


def fit(module, loader, folder, steps, **options):
    losses = Losses()
    trainer = L.Trainer(
        max_steps=steps,
        accelerator="cpu",
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
        default_root_dir=folder,
        callbacks=[losses],
        **options,
    )
    trainer.fit(module, loader)
    return trainer, losses.values


def test_accumulated_batches_move_the_average_once_a_step(tmp_path):
    module = tiny_text_trainer()
    loader = Batches(tiny_table(module.conditioner), 4, accumulate=4)
    assert len(loader) == 4  # of the six batches of the data
    trainer, losses = fit(module, loader, tmp_path, 2, accumulate_grad_batches=4)
    assert len(losses) == module.batches_seen == 8
    assert trainer.global_step == module.averages["unet"].updates == 2


def test_scale_factor_is_one_over_the_deviation_of_the_first_batch_and_kept(tmp_path):
    module = tiny_text_trainer()
    table = tiny_table(module.conditioner)
    fit(module, Batches(table, 4), tmp_path, 2)
    first = next(iter(Batches(table, 4)))
    module.batches_seen = 0
    latents = module.raw_latents(first, module.generator(stream=1))
    assert (latents * module.scale_factor).std().item() == pytest.approx(1.0, abs=1e-6)


def test_first_ema_update_moves_nine_elevenths_of_the_way(tmp_path):
    module = tiny_text_trainer()
    start = [p.clone() for p in module.ema["unet"].parameters()]
    fit(module, Batches(tiny_table(module.conditioner), 4), tmp_path, 1)
    for shadow, old, new in zip(
        module.ema["unet"].parameters(), start, module.unet.parameters(), strict=True
    ):
        torch.testing.assert_close(shadow, old + 9 / 11 * (new - old), atol=1e-6, rtol=0)
    assert not torch.equal(module.conditioner.text_encoder.final_layer_norm.bias, torch.zeros(16))


def test_bf16_run_keeps_weights_and_loss_in_float32(tmp_path):
    module = tiny_text_trainer()
    _, losses = fit(module, Batches(tiny_table(module.conditioner), 4), tmp_path, 3, precision="bf16-mixed")
    assert len(losses) == 3
    assert all(p.dtype == torch.float32 for p in module.parameters())


def test_export_opens_as_stable_diffusion_pipeline_with_the_same_image(tmp_path):
    module = tiny_text_trainer(vae=True, scale_factor=0.7)
    pipeline = to_pipeline(module)
    export_diffusers(module, tmp_path / "out")
    loaded = StableDiffusionPipeline.from_pretrained(tmp_path / "out", local_files_only=True)
    assert loaded.vae.config.scaling_factor == pytest.approx(0.7)
    latents = torch.randn(1, 4, 4, 4, generator=torch.Generator().manual_seed(0))
    images = []
    for pipe in (pipeline, loaded):
        pipe.set_progress_bar_config(disable=True)
        images.append(
            pipe("a red circle", latents=latents.clone(), num_inference_steps=2, output_type="np").images
        )
    assert abs(images[0] - images[1]).max() <= 1e-5


def test_export_before_the_scale_is_known_is_refused(tmp_path):
    with pytest.raises(InputError, match="scale factor"):
        export_diffusers(tiny_text_trainer(vae=True), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_long_caption_is_refused_without_truncation():
    conditioner = tiny_text_trainer().conditioner
    with pytest.raises(InputError, match="truncate=True"):
        conditioner.tokenize(["a red circle a blue circle a green square"])


def test_loss_that_is_not_finite_stops_the_run(tmp_path):
    module = tiny_text_trainer()
    table = tiny_table(module.conditioner)
    table.tensors["mean"][:] = float("inf")
    module.scale_factor.fill_(1.0)
    with pytest.raises(NonFiniteError, match="loss is not finite at step 0"):
        fit(module, Batches(table, 4), tmp_path, 2)


def test_a_model_of_classes_learns_and_its_samples_show_it():
    """The class says the sign of the latents, and samples have it."""
    torch.manual_seed(0)
    unet = UNet2DConditionModel(
        sample_size=4,
        in_channels=2,
        out_channels=2,
        block_out_channels=(16,),
        down_block_types=("CrossAttnDownBlock2D",),
        up_block_types=("CrossAttnUpBlock2D",),
        layers_per_block=1,
        cross_attention_dim=8,
        attention_head_dim=2,
        norm_num_groups=8,
    )
    schedule = make_scheduler(prediction_type="sample")
    module = LatentDiffusionTrainer(
        unet, None, ClassConditioner(2, 8), schedule, scale_factor=1.0, ema_decay=0.0
    )
    labels = torch.arange(8) % 2
    latents = torch.where(labels == 0, 1.0, -1.0).view(-1, 1, 1, 1).expand(8, 2, 4, 4)
    optimizer = torch.optim.Adam([*unet.parameters(), *module.conditioner.parameters()], lr=1e-2)
    for step in range(30):
        optimizer.zero_grad()
        generator = torch.Generator().manual_seed(step)
        batch = {"latents": latents, "label": labels}
        module.diffusion_loss(batch, generator, condition_drop=0.1).backward()
        optimizer.step()
    model = LatentModel(unet.eval(), nn.Identity(), schedule)
    conditions = [module.conditioner({"label": torch.tensor([label])}) for label in (0, 1)]
    for condition, sign in zip(conditions, (1, -1), strict=True):
        denoise = make_denoiser(model, condition, None, SampleSettings())
        found = sample_latents(model, denoise, (2, 4, 4), SampleSettings(num_inference_steps=5))
        assert (sign * found).mean() > 0.5
