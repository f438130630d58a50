"""What ldm promises beside its equations."""

from functools import cache
from pathlib import Path
from typing import Any

from noiseworks.kits.contracts import Contract, Resume

BLOCKS = {
    "down_block_types": ("DownEncoderBlock2D",) * 2,
    "up_block_types": ("UpDecoderBlock2D",) * 2,
    "block_out_channels": (8, 8),
    "norm_num_groups": 4,
}
ORIGINAL_NAMES = {
    "down_blocks.0.resnets.": "down.0.block.",
    "up_blocks.0.resnets.": "up.0.block.",
    "mid_block.resnets.0": "mid.block_1",
    "mid_block.resnets.1": "mid.block_2",
    "mid_block.attentions.0": "mid.attn_1",
    "conv_norm_out": "norm_out",
    "group_norm": "norm",
    "to_out.0": "proj_out",
    "to_q": "q",
    "to_k": "k",
    "to_v": "v",
}


@cache
def first_stage() -> Any:
    """Return a small autoencoder with f = 2."""
    import torch
    from diffusers import AutoencoderKL

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return AutoencoderKL(latent_channels=3, **BLOCKS).eval()


def arrays(folder: Path, side: int = 16, rows: int = 70) -> Path:
    """Write images with labels."""
    import numpy as np

    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (rows, side, side, 3), dtype=np.uint8)
    np.savez(folder / "images.npz", images=images, label=np.arange(rows) % 3)
    return folder / "images.npz"


def pipelines(folder: Path) -> None:
    """Write a pipeline of each task that needs no training."""
    from diffusers import UNet2DModel
    from noiseworks.ldm.conditioning.conditioners import LayoutConditioner
    from noiseworks.ldm.conditioning.spatial import LowResConditioner, MaskConditioner, SemanticConditioner
    from noiseworks.ldm.conversion.export import assemble
    from noiseworks.ldm.diffusion.objective import make_scheduler
    from noiseworks.ldm.diffusion.recipes import make_unet, recipe

    vae = first_stage()
    conditioners = {
        "unconditional": (3, None),
        "inpaint": (7, MaskConditioner(vae)),
        "upscale": (6, LowResConditioner()),
        "semantic": (6, SemanticConditioner(5, 3, 2)),
    }
    blocks = {"down_block_types": ("DownBlock2D",) * 2, "up_block_types": ("UpBlock2D",) * 2}
    for name, (channels, conditioner) in conditioners.items():
        unet = UNet2DModel(8, channels, 3, block_out_channels=(8, 8), norm_num_groups=8, **blocks)
        assemble(unet, vae, make_scheduler(), conditioner).save_pretrained(folder / name)
    layout = LayoutConditioner(3, grid=8, max_objects=2, dim=64, num_layers=1, num_heads=2)
    unet = make_unet("layout", recipe("layout"), 3, 8)
    assemble(unet, vae, make_scheduler(), layout).save_pretrained(folder / "layout")


def pictures(folder: Path) -> None:
    """Write image files, a layout and what is none."""
    import numpy as np
    from PIL import Image

    image = np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8)
    hole = np.where(np.arange(16) < 8, 255, 0)[None].repeat(16, 0).astype(np.uint8)
    made = {"image": image, "small": image[:8, :8], "gray": image[..., 0], "mask": hole, "map": hole // 64}
    for name, pixels in made.items():
        Image.fromarray(pixels).save(folder / f"{name}.png")
    (folder / "boxes.json").write_text("[[2, 0.1, 0.1, 0.5, 0.5]]")
    (folder / "words.json").write_text('{"a": 1}')


def original(folder: Path) -> None:
    """Write a first stage of one level under the original names."""
    import torch
    from diffusers import AutoencoderKL

    vae = AutoencoderKL(block_out_channels=(32,), latent_channels=3)
    state = {}
    for name, tensor in vae.state_dict().items():
        for new, old in ORIGINAL_NAMES.items():
            name = name.replace(new, old)
        state[name] = tensor
    torch.save({"state_dict": state}, folder / "original.ckpt")
    levels = {"z_channels": 3, "resolution": 16, "in_channels": 3, "out_ch": 3, "ch": 32, "ch_mult": [1]}
    config = levels | {"double_z": True, "num_res_blocks": 1, "attn_resolutions": []}
    (folder / "original.yaml").write_text(f"model:\n  params:\n    embed_dim: 3\n    ddconfig: {config}\n")
    (folder / "broken.ckpt").write_text("no checkpoint")


def files(folder: Path) -> dict[str, Path]:
    """Make images, a first stage, a pipeline of each task, a finished run and an original checkpoint."""
    from noiseworks.ldm import train
    from noiseworks.ldm.options import Images, RunOptions

    first_stage().save_pretrained(folder / "vae")
    given = Images(str(arrays(folder)))
    run = RunOptions(max_steps=1, batch_size=4, device="cpu")
    train(task="class", images=given, vae=str(folder / "vae"), out=folder / "run", run=run)
    pipelines(folder)
    pictures(folder)
    original(folder)
    (folder / "empty").mkdir()
    names = ("images.npz", "vae", "run", "unconditional", "inpaint", "upscale", "semantic", "layout", "empty")
    names += ("image.png", "small.png", "gray.png", "mask.png", "map.png", "boxes.json", "words.json")
    (folder / "deep.yaml").write_text("[" * 5000)
    (folder / "latin.yaml").write_bytes("é: 1".encode("latin-1"))
    names += ("original.ckpt", "original.yaml", "broken.ckpt", "deep.yaml", "latin.yaml")
    return {name: folder / name for name in names}


def first_stage_trained(folder: Path, stop_after: int | None) -> dict[str, Any]:
    """Train a first stage: the discriminator starts at the fourth batch; an epoch, with its validation, has four."""
    from noiseworks.kits.training.testing import stopping
    from noiseworks.ldm import train_autoencoder
    from noiseworks.ldm.options import AutoencoderOptions, Images, LossOptions, RunOptions
    from safetensors.torch import load_file

    with stopping(stop_after):
        done = train_autoencoder(
            images=Images(str(arrays(folder.parent, 32, 24)), validation_share=0.2),
            out=folder,
            model=AutoencoderOptions(factor=4, width=8, layers=1, latent_channels=2),
            loss=LossOptions(
                1e-3, False, feature_steps=1, disc_width=8, disc_norm="group", disc_start=3, ema_decay=0.9
            ),
            run=RunOptions(max_steps=6, batch_size=5, checkpoint_every=0, device="cpu"),
        )
        return load_file(done.vae / "diffusion_pytorch_model.safetensors")
    return {}


def diffusion_trained(folder: Path, stop_after: int | None) -> dict[str, Any]:
    """Train an inpainting model, whose masks are drawn anew for every batch."""
    from noiseworks.kits.training.testing import stopping
    from noiseworks.ldm import train
    from noiseworks.ldm.options import Images, RunOptions
    from safetensors.torch import load_file

    first_stage().save_pretrained(folder.parent / "vae")
    with stopping(stop_after):
        done = train(
            task="inpaint",
            images=Images(str(arrays(folder.parent, rows=24)), validation_share=0.2),
            vae=str(folder.parent / "vae"),
            out=folder,
            run=RunOptions(max_steps=4, batch_size=4, checkpoint_every=0, device="cpu"),
        )
        weights = load_file(done.pipeline / "unet" / "diffusion_pytorch_model.safetensors")
        return weights | {"loss": done.val_loss, "scale": done.scale_factor}
    return {}


FIT = "--max-steps 1 --batch-size 4 --device cpu"
AE = "train-ae --out out --data {images.npz} --layers 1 --feature-steps 1 --device cpu"
SAMPLE = "sample --out out --num-inference-steps 2 --device cpu --model"
TRAIN = f"train --vae {{vae}} --out out {FIT} --data {{images.npz}} --task"
IMAGES = ("out/00000.png", "out/config.yaml")
CONTRACT = Contract(
    files=files,
    good={
        f"{AE} --factor 2 --width 8 --max-steps 1 --batch-size 4 --kind vq --codes 8 --no-adversarial": (
            "out/vae/*",
            "out/metrics.csv",
        ),
        "eval-ae --model {vae} --data {images.npz} --feature-steps 1 --device cpu": (),
        f"{TRAIN} unconditional --prediction-type v_prediction": ("out/pipeline/unet/*", "out/latents/*"),
        f"{SAMPLE} {{unconditional}} --num 2 --sampler plms": ("out/00001.png",),
        f"{SAMPLE} {{run}}/pipeline --label 1 --guidance-scale 2": IMAGES,
        f"{SAMPLE} {{layout}} --boxes {{boxes.json}}": IMAGES,
        f"{SAMPLE} {{semantic}} --segmentation {{map.png}} --tile 4": IMAGES,
        f"{SAMPLE} {{upscale}} --image {{small.png}}": IMAGES,
        f"{SAMPLE} {{inpaint}} --image {{image.png}} --mask {{mask.png}}": IMAGES,
        "export --run {run} --out out --no-ema": ("out/model_index.json", "out/conditioner/*"),
        "import --checkpoint {original.ckpt} --config {original.yaml} --out out": ("out/config.json",),
    },
    bad=[
        (f"{AE} --width 12", "multiple of 8"),
        (f"{AE} --factor 3", "factor"),
        (f"{AE} --factor 32", "f = 32"),
        ("train-ae --out {run} --data {images.npz}", "was begun with"),
        ("train-ae --out out --data {empty}", "size"),
        ("train-ae --out out --data {empty} --size 16", "no images"),
        ("train-ae --out out --data nothing.npz", "no image data"),
        ("train-ae --out out --data {images.npz} --devices 2 --batch-size 4", "disc-norm group"),
        ("eval-ae --model nowhere --data {images.npz}", "nowhere"),
        ("eval-ae --model {vae} --data {images.npz} --limit 20", "limit"),
        ("eval-ae --model {unconditional} --data {images.npz} --size 17", "17"),
        (f"{TRAIN} video", "video"),
        (f"{TRAIN} text", "caption"),
        ("train --task class --data {images.npz} --vae {vae} --out out --batch-size 500", "500"),
        ("train --task class --data {images.npz} --vae nowhere --out out", "nowhere"),
        ("train --task class --data {images.npz} --vae {empty} --out out", "first stage"),
        (f"{SAMPLE} nowhere", "nowhere"),
        (f"{SAMPLE} {{vae}}", "no pipeline"),
        (f"{SAMPLE} {{inpaint}}", "--image and --mask"),
        (f"{SAMPLE} {{unconditional}} --prompt a", "nothing"),
        (f"{SAMPLE} {{unconditional}} --prompt a --label 1", "together"),
        (f"{SAMPLE} {{unconditional}} --eta 2", "eta"),
        (f"{SAMPLE} {{unconditional}} --sampler plms --eta 0.5", "plms"),
        (f"{SAMPLE} {{unconditional}} --tile-stride 2", "tile"),
        (f"{SAMPLE} {{unconditional}} --guidance-scale 2", "conditional"),
        (f"{SAMPLE} {{unconditional}} --height 9", "height"),
        (f"{SAMPLE} {{unconditional}} --num 0", "num"),
        (f"{SAMPLE} {{run}}/pipeline --label 9", "0..2"),
        (f"{SAMPLE} {{layout}} --boxes {{words.json}}", "words.json"),
        (f"{SAMPLE} {{layout}} --boxes missing.json", "missing.json"),
        (f"{SAMPLE} {{upscale}} --image {{gray.png}}", "mode L"),
        (f"{SAMPLE} {{upscale}} --image {{boxes.json}}", "no readable image"),
        (f"{SAMPLE} {{inpaint}} --image {{image.png}} --mask {{image.png}}", "mode RGB"),
        (f"{SAMPLE} {{inpaint}} --image {{small.png}} --mask {{mask.png}}", "differ in size"),
        ("export --run {empty} --out out", "no training run"),
        ("import --checkpoint {broken.ckpt} --config {original.yaml} --out out", "broken.ckpt"),
        ("import --checkpoint {original.ckpt} --config {boxes.json} --out out", "boxes.json"),
        ("import --checkpoint gone.ckpt --config {original.yaml} --out out", "gone.ckpt"),
        ("import --checkpoint {original.ckpt} --config {deep.yaml} --out out", "no original configuration"),
        ("import --checkpoint {original.ckpt} --config {latin.yaml} --out out", "no original configuration"),
    ],
    resume={"train-ae": Resume(first_stage_trained, 4), "train": Resume(diffusion_trained, 2)},
)
