"""Every task: its data, a batch of training, the pipeline that is written, and images from it."""

import json

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL, VQModel
from noiseworks.core.errors import InputError
from noiseworks.ldm.conditioning.task_data import load_task_data
from noiseworks.ldm.conversion import pipelines
from noiseworks.ldm.conversion.export import export_diffusers
from noiseworks.ldm.diffusion.recipes import PAPER, TASKS, added_channels, recipe
from noiseworks.ldm.diffusion.sampling import sample
from noiseworks.ldm.diffusion.training import build, prepare_rows
from noiseworks.ldm.drawing import draw
from noiseworks.ldm.options import DiffusionOptions, Images, RunOptions, SampleSettings
from PIL import Image

VAE = {
    "down_block_types": ("DownEncoderBlock2D",) * 3,
    "up_block_types": ("UpDecoderBlock2D",) * 3,
    "block_out_channels": (8, 8, 8),
    "norm_num_groups": 4,
}
SCENES = Images("shapes", scenes=8)


@pytest.fixture(scope="module")
def first_stages():
    torch.manual_seed(0)
    return {
        "kl": AutoencoderKL(latent_channels=4, **VAE).eval(),
        "vq": VQModel(latent_channels=3, num_vq_embeddings=16, **VAE).eval(),
    }


def condition_for(task):
    data = load_task_data(task, Images("shapes", scenes=4))
    images = torch.stack([data.images[i]["image"] for i in range(2)])
    mask = torch.zeros(2, 1, 32, 32)
    mask[:, :, 8:20, 8:20] = 1
    return {
        "class": {"label": torch.tensor([0, 1])},
        "text": {"caption": ["a red circle", "a"]},
        "layout": {"layout": [[(1, 0.1, 0.1, 0.4, 0.4)], []]},
        "semantic": {"segmentation": torch.zeros(2, 32, 32, dtype=torch.int64)},
        "upscale": {"low_res": images[..., ::4, ::4]},
        "inpaint": {"image": images, "mask": mask},
        "unconditional": None,
    }[task]


EXPECTED = {
    ("class", "kl"): "ClassToImagePipeline",
    ("text", "vq"): "StableDiffusionPipeline",
    ("layout", "kl"): "LayoutToImagePipeline",
    ("semantic", "vq"): "SemanticToImagePipeline",
    ("upscale", "vq"): "LDMSuperResolutionPipeline",
    ("upscale", "kl"): "UpscalePipeline",
    ("inpaint", "kl"): "InpaintPipeline",
    ("unconditional", "vq"): "LDMPipeline",
}


@pytest.mark.parametrize(("task", "kind"), EXPECTED)
def test_every_task_trains_exports_and_samples(task, kind, first_stages, tmp_path):
    """A batch as training reads it has a loss with gradients; what is written opens by its class, and gives images."""
    options, data = DiffusionOptions(), load_task_data(task, SCENES)
    module = build(task, data, first_stages[kind], options, RunOptions(batch_size=4))
    assert float(module.scale_factor) == 1.0 if kind == "vq" else module.scale_factor.isnan()
    rows, transform = prepare_rows(task, data, module, options, tmp_path)
    batch = rows.__getitems__(range(4))
    batch = batch if transform is None else transform(batch, torch.Generator().manual_seed(0))
    module.scale_factor.fill_(0.7 if kind == "kl" else 1.0)
    module.diffusion_loss(batch, module.generator()).backward()
    assert all(p.grad is not None for p in module.unet.parameters())
    export_diffusers(module, tmp_path / "pipeline")
    name = json.loads((tmp_path / "pipeline" / "model_index.json").read_text())["_class_name"]
    assert name == EXPECTED[task, kind]
    model = pipelines.load_model(tmp_path / "pipeline")
    asked = condition_for(task)
    scale = 2.0 if task in ("class", "text", "layout") else 1.0
    settings = SampleSettings(num_inference_steps=2, guidance_scale=scale, height=32, width=32)
    found = sample(model, asked, settings, num_samples=None if asked else 2)
    assert found.images.shape == (2, 3, 32, 32)
    if task == "layout":
        again = pipelines.LayoutToImagePipeline.from_pretrained(tmp_path / "pipeline")
        image = np.asarray(again(asked["layout"], settings).images[0], dtype=int)
        direct = pipelines.to_uint8(found.images)[0].astype(int)
        assert np.abs(image - direct).max() <= 1
    if task == "inpaint":
        outside = (asked["mask"] == 0).expand_as(asked["image"])
        for filled in (
            pipelines.fill(model, asked["image"], asked["mask"], settings),
            draw(model, asked, (32, 32), 1, SampleSettings(num_inference_steps=2)),
        ):
            assert torch.equal(filled[outside], asked["image"][outside])
            assert not torch.equal(filled, asked["image"])


def test_several_images_of_a_condition_differ_and_sizes_follow_it(first_stages):
    data = load_task_data("semantic", SCENES)
    module = build("semantic", data, first_stages["vq"], DiffusionOptions(), RunOptions())
    model = pipelines.LatentModel.from_trainer(module)
    batch = {"segmentation": torch.zeros(1, 32, 48, dtype=torch.int64)}
    images = draw(model, batch, (32, 48), 2, SampleSettings(num_inference_steps=1, tile=8))
    assert images.shape == (2, 3, 32, 48)
    assert not torch.equal(images[0], images[1])


def test_paper_recipes_are_those_of_the_table():
    assert set(PAPER) == set(TASKS)
    assert len(TASKS) == 8
    assert (recipe("class", "paper").width, recipe("class", "paper").multipliers) == (192, (1, 2, 3, 5))
    assert recipe("text-large", "paper").context == 1280
    assert recipe("layout", "paper").depth == 3
    assert [added_channels(task, 3) for task in ("semantic", "upscale", "inpaint", "class")] == [3, 3, 4, 0]
    assert {task for task, made in PAPER.items() if made.loss == "l1"} == {"layout", "inpaint", "semantic"}


def test_arrays_and_folders_give_conditions(tmp_path):
    images = np.zeros((3, 16, 16, 3), np.uint8)
    layout = np.full((3, 2, 5), -1.0)
    layout[0, 0] = (4, 0.1, 0.2, 0.3, 0.4)
    np.savez(tmp_path / "a.npz", images=images, layout=layout, label=np.array([0, 5, 2]))
    arrays, folder = Images(str(tmp_path / "a.npz")), Images(str(tmp_path), size=16)
    assert load_task_data("layout", arrays).column == [[(4, 0.1, 0.2, 0.3, 0.4)], [], []]
    assert load_task_data("class", arrays).num_classes == 6
    with pytest.raises(InputError, match="'caption'"):
        load_task_data("text", arrays)
    for name in ("x.png", "y.png"):
        Image.new("RGB", (20, 16)).save(tmp_path / name)
    with pytest.raises(InputError, match=r"metadata\.jsonl"):
        load_task_data("text", folder)
    lines = [json.dumps({"file_name": name, "text": f"image {name}"}) for name in ("y.png", "x.png")]
    (tmp_path / "metadata.jsonl").write_text("\n".join(lines))
    assert load_task_data("text", folder).column == ["image x.png", "image y.png"]
