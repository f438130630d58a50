"""What ppap promises beside its equations."""

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from noiseworks.kits.contracts import Artifact, Contract, Resume

FAMILIES = ("ddpm", "ddim", "if", "sd", "sdxl", "sd3", "flux", "pixart", "dit")
WHOLE = ("ddim", "sd", "sd3")  # pixels, a U-Net and a transformer that are held to all of `check_attach`
GUIDED = "--model {pixels} --guide {guide}"
TRAIN = f"train {GUIDED} --data {{data}} --device cpu --max-steps 4 --batch-size 2 --rank 2"
DRAW = f"{GUIDED} --steps 2 --labels 0,2 --copies 1 --device cpu"


def resnet() -> Any:
    """Return a tiny classifier of transformers."""
    import torch
    from transformers import ResNetConfig, ResNetForImageClassification

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        config = ResNetConfig(
            embedding_size=8, hidden_sizes=[8, 8], depths=[1, 1], layer_type="basic", num_labels=4
        )
        return ResNetForImageClassification(config).eval()


def small_guide() -> Any:
    """Return it as a guide."""
    from noiseworks.ppap import Guide
    from noiseworks.ppap.tasks import Classification

    return Guide(resnet(), Classification())


def images() -> Any:
    """Return images to learn from."""
    import torch

    return torch.rand(8, 3, 8, 8, generator=torch.Generator().manual_seed(5)) * 2 - 1


def files(folder: Path) -> dict[str, Path]:
    """Make tiny pipelines, a guide, its experts and another guide's, images, and files to be named by mistake."""
    import numpy as np
    from noiseworks.kits.diffusers_hosts import tiny_pipeline, tiny_pixel_pipeline
    from noiseworks.kits.pictures import to_pixels, write_picture
    from noiseworks.ppap import Experts, save_experts
    from noiseworks.ppap.options import Adapters

    tiny_pixel_pipeline().save_pretrained(folder / "pixels")
    tiny_pipeline("dit").save_pretrained(folder / "dit")
    guide = resnet()
    guide.save_pretrained(folder / "guide")
    save_experts(Experts(guide, [0, 500, 1000], Adapters(experts=2, rank=2)), folder / "experts")
    guide.classifier[1].weight.data = guide.classifier[1].weight.data.flip(0)  # of the same mean size
    save_experts(Experts(guide, [0, 1000], Adapters(experts=1, rank=2)), folder / "others")
    (folder / "data").mkdir()
    for i, pixels in enumerate(to_pixels(images() / 2 + 0.5)):
        write_picture(pixels, folder / "data" / f"{i}.png")
    np.save(folder / "map.npy", np.zeros((8, 8), np.float32))
    (folder / "text.txt").write_text("no guide\n")
    (folder / "empty").mkdir()
    names = ("pixels", "dit", "guide", "experts", "others", "data", "map.npy", "text.txt", "empty")
    return {name: folder / name for name in names}


def neutral(family: str) -> None:
    """Attach a guide of strength 0 to a tiny pipeline."""
    from noiseworks.kits.diffusers_hosts import sample_generators, tiny_pixel_pipeline
    from noiseworks.kits.testing import HostUnderTest, check_attach, diffusion_host
    from noiseworks.ppap import NoisyGuide, Strength, attach

    def run(pipe: Any, samples: Any) -> Any:
        import torch

        texts = [f"a {('red', 'blue')[i]} circle" for i in samples]
        own = {"prompt": texts, "clean_caption": False} if family == "if" else {"batch_size": len(samples)}
        settings = {"num_inference_steps": 2, "generator": sample_generators(samples)}
        return torch.from_numpy(pipe(**own, **settings, output_type="np").images)

    pixels = HostUnderTest(partial(tiny_pixel_pipeline, family), run, network=lambda pipe: pipe.unet)
    host = pixels if family in ("ddpm", "ddim", "if") else diffusion_host(family, steps=2)
    reader = NoisyGuide(small_guide())
    check_attach(lambda pipe: attach(pipe, reader, 1, Strength(scale=0)), host, brief=True)
    brief = family not in WHOLE
    check_attach(lambda pipe: attach(pipe, reader, 1, Strength(scale=1)), host, neutral=False, brief=brief)


def resumed(folder: Path, stop_after: int | None) -> Mapping[str, Any]:
    """Train six steps of two experts, or stop before the end."""
    from noiseworks.kits.diffusers_hosts import tiny_pixel_pipeline
    from noiseworks.kits.training import open_run
    from noiseworks.kits.training.testing import stopping
    from noiseworks.ppap import Adapters, Transfer
    from noiseworks.ppap.transferring import prepared

    options = Transfer(max_steps=6, batch_size=4, device="cpu", checkpoint_every=0, learning_rate=1e-2)
    adapters = Adapters(experts=2, rank=2)
    training = prepared(tiny_pixel_pipeline(), small_guide(), images(), adapters, options)
    with open_run(folder, {"options": options}) as run, stopping(stop_after):
        training.train(run, progress=False)
    return {"experts": training.experts.state_dict()}


def saved(folder: Path) -> None:
    """Write experts that are not the network."""
    import torch
    from noiseworks.ppap import Adapters, Experts, save_experts

    experts = Experts(resnet(), [0, 500, 1000], Adapters(experts=2, rank=2))
    for i, one in enumerate(experts.parameters()):
        torch.nn.init.constant_(one, i / 100)
    save_experts(experts, folder)


def loaded(folder: Path) -> Mapping[str, Any]:
    """Read them back."""
    from noiseworks.ppap import load_experts

    experts = load_experts(folder, small_guide())
    return {"state": experts.state_dict(), "bounds": experts.bounds}


MADE = ("out/0001.png", "out/config.json")
CONTRACT = Contract(
    files=files,
    good={
        "generate-data --model {pixels} --images 3 --batch 2 --steps 2 --device cpu --out out": (
            "out/000002.png",
            "out/config.json",
        ),
        f"{TRAIN} --experts 2 --start fresh --spacing snr --out run": (
            "run/experts/model.safetensors",
            "run/metrics.csv",
        ),
        f"make {DRAW} --experts {{experts}} --norm per-sample --scale 0.1 --out out": MADE,
        f"make {DRAW} --through denoised --out out": MADE,
        f"compare {DRAW} --experts {{experts}} --out out": ("out/comparison.csv", "out/images.png"),
    },
    bad=[
        ("generate-data --model {pixels} --images 0 --out out", "images"),
        ("generate-data --model {dit} --images 1 --device cpu --out out", "class labels"),
        (f"{TRAIN} --out {{data}}", "no training run"),
        (f"{TRAIN} --experts 0 --out run", "experts"),
        (f"{TRAIN} --experts 5 --out run", "each of 5"),
        (f"{TRAIN} --targets nothing --out run", "names none"),
        (f"{TRAIN.replace('{data}', '{empty}')} --out run", "images of one size"),
        (f"{TRAIN.replace('{guide}', '{text.txt}')} --out run", "text.txt"),
        (f"make {DRAW.replace('{guide}', 'mistyped')} --out out", "no model at 'mistyped'"),
        (f"make {DRAW} --experts {{others}} --out out", "another guide"),
        (f"make {DRAW} --experts {{data}} --out out", "config.json"),
        (f"make {DRAW} --scale -1 --out out", "scale"),
        (f"make {DRAW.replace('0,2', 'cat')} --out out", "labels"),
        (f"make {DRAW.replace('0,2', '9')} --out out", "0 to 3"),
        (f"make {DRAW} --map {{map.npy}} --out out", "either"),
        (f"make {DRAW} --experts {{experts}} --through denoised --out out", "without experts"),
        (f"compare {DRAW} --experts {{experts}} --out {{pixels}}", "source"),
    ],
    attach={family: partial(neutral, family) for family in FAMILIES},
    artifacts={"experts": Artifact(saved, loaded)},
    resume={"transfer": Resume(resumed, 3)},
)
