import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL, DiffusionPipeline, VQModel
from noiseworks.core.errors import ArtifactError, InputError
from noiseworks.kits.training.testing import check_resume
from noiseworks.ldm.conditioning.task_data import load_task_data, random_masks
from noiseworks.ldm.conversion import pipelines
from noiseworks.ldm.diffusion.recipes import PAPER, TASKS, added_channels, recipe
from noiseworks.ldm.diffusion.samplers import SampleSettings
from noiseworks.ldm.diffusion.sampling import sample
from noiseworks.ldm.diffusion.training import export, train
from noiseworks.ldm.options import DiffusionOptions, RunOptions

VAE = {
    "down_block_types": ("DownEncoderBlock2D",) * 3,
    "up_block_types": ("UpDecoderBlock2D",) * 3,
    "block_out_channels": (8, 8, 8),
    "norm_num_groups": 4,
}
RUN = RunOptions(max_steps=2, batch_size=4, device="cpu")
FAST = SampleSettings(num_inference_steps=2)


@pytest.fixture(scope="module")
def first_stages(tmp_path_factory):
    folder = tmp_path_factory.mktemp("first-stages")
    torch.manual_seed(0)
    AutoencoderKL(latent_channels=4, **VAE).save_pretrained(folder / "kl")
    VQModel(latent_channels=3, num_vq_embeddings=16, **VAE).save_pretrained(folder / "vq")
    return folder


def condition_for(task):
    data = load_task_data(task, "shapes", scenes=4)
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
    degradation = "bsr" if (task, kind) == ("upscale", "kl") else "bicubic"
    trained = train(
        task,
        "shapes",
        tmp_path / "run",
        vae=str(first_stages / kind),
        scenes=24,
        validation_share=0.2,
        model=DiffusionOptions(degradation=degradation),
        run=RUN,
    )
    assert trained.kind == EXPECTED[task, kind]
    assert trained.batches == 2
    assert np.isfinite(trained.val_loss)
    assert (trained.scale_factor == 1.0) == (kind == "vq")
    model = pipelines.load_model(trained.pipeline)
    batch = condition_for(task)
    settings = FAST
    if task in ("class", "text", "layout"):
        settings = SampleSettings(num_inference_steps=2, guidance_scale=2.0)
    number = 2 if batch is None else None
    found = sample(model, batch, num_samples=number, height=32, width=32, settings=settings)
    assert found.images.shape == (2, 3, 32, 32)
    # The directory is a pipeline that its own class opens.
    if trained.kind in pipelines.HOSTS:
        assert type(DiffusionPipeline.from_pretrained(trained.pipeline)).__name__ == trained.kind


def test_own_pipelines_give_the_same_image_after_loading(first_stages, tmp_path):
    trained = train(
        "layout",
        "shapes",
        tmp_path / "run",
        vae=str(first_stages / "kl"),
        scenes=24,
        validation_share=0.2,
        run=RUN,
    )
    exported = export(tmp_path / "run", tmp_path / "again")
    assert (exported.kind, exported.batches) == ("LayoutToImagePipeline", 2)
    layouts = [[(1, 0.1, 0.1, 0.4, 0.4), (5, 0.5, 0.5, 0.9, 0.9)]]
    images = [
        np.asarray(
            pipelines.LayoutToImagePipeline.from_pretrained(folder)(layouts, FAST, seed=3).images[0],
            dtype=int,
        )
        for folder in (trained.pipeline, exported.pipeline)
    ]
    assert np.array_equal(*images)
    raw = tmp_path / "raw"
    export(tmp_path / "run", raw, ema=False)
    averaged = pipelines.load_model(exported.pipeline).unet.state_dict()
    assert any(
        not torch.equal(tensor, averaged[name])
        for name, tensor in pipelines.load_model(raw).unet.state_dict().items()
    )


def test_inpainting_keeps_the_pixels_outside_the_hole(first_stages, tmp_path):
    trained = train(
        "inpaint",
        "shapes",
        tmp_path / "run",
        vae=str(first_stages / "vq"),
        scenes=12,
        validation_share=0.4,
        run=RUN,
    )
    batch = condition_for("inpaint")
    filled = pipelines.fill(pipelines.load_model(trained.pipeline), batch["image"], batch["mask"], FAST)
    outside = (batch["mask"] == 0).expand_as(filled)
    assert torch.equal(filled[outside], batch["image"][outside])
    assert not torch.equal(filled, batch["image"])


def test_stopped_training_with_masks_repeats_the_numbers(first_stages, tmp_path):
    def run(folder):
        options = RunOptions(max_steps=5, batch_size=4, log_every=1, device="cpu", checkpoint_every=0)
        settings = {"vae": str(first_stages / "vq"), "scenes": 20, "validation_share": 0.4, "run": options}
        return {"loss": torch.tensor(train("inpaint", "shapes", folder, **settings).val_loss)}

    check_resume(run, tmp_path, stop_at=2)


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
    assert load_task_data("layout", tmp_path / "a.npz").column == [[(4, 0.1, 0.2, 0.3, 0.4)], [], []]
    assert load_task_data("class", tmp_path / "a.npz").num_classes == 6
    with pytest.raises(InputError, match="'caption'"):
        load_task_data("text", tmp_path / "a.npz")
    from PIL import Image

    for name in ("x.png", "y.png"):
        Image.new("RGB", (20, 16)).save(tmp_path / name)
    with pytest.raises(InputError, match=r"metadata\.jsonl"):
        load_task_data("text", tmp_path, size=16)
    lines = [json.dumps({"file_name": name, "text": f"image {name}"}) for name in ("y.png", "x.png")]
    (tmp_path / "metadata.jsonl").write_text("\n".join(lines))
    assert load_task_data("text", tmp_path, size=16).column == ["image x.png", "image y.png"]


def test_random_masks_depend_on_the_generator_and_leave_something_to_see():
    masks = random_masks(200, 32, 32, torch.Generator().manual_seed(0))
    assert torch.equal(masks, random_masks(200, 32, 32, torch.Generator().manual_seed(0)))
    assert set(masks.unique().tolist()) == {0.0, 1.0}
    shares = masks.mean((1, 2, 3))
    assert 0.15 < shares.mean() < 0.5
    assert shares.max() < 0.95


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"task": "video"}, "task must be one of"),
        ({"vae": "nowhere"}, "nowhere"),
        ({"data": "nothing.npz"}, "no image data"),
        ({"run": RunOptions(max_steps=2, batch_size=500, device="cpu")}, "batch_size"),
    ],
)
def test_bad_training_input_is_refused_before_anything_is_written(change, message, first_stages, tmp_path):
    given = {
        "task": "class",
        "data": "shapes",
        "vae": str(first_stages / "kl"),
        "run": RUN,
        "scenes": 24,
    } | change
    with pytest.raises(InputError, match=message):
        train(given.pop("task"), given.pop("data"), tmp_path / "run", **given)
    assert not (tmp_path / "run").exists()


def test_export_of_a_folder_without_a_run_is_refused(tmp_path):
    with pytest.raises(ArtifactError, match="no training run"):
        export(tmp_path, tmp_path / "out")


def test_the_judges_of_the_tasks_tell_true_scenes_from_others():
    path = Path(__file__).parents[1] / "benchmarks" / "conditioning_tasks.py"
    spec = importlib.util.spec_from_file_location("conditioning_tasks", path)
    judges = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(judges)
    scenes = judges.shapes.sample_scenes(48, 7, "test")
    images, others = judges.shapes.render(scenes), [*scenes[1:], scenes[0]]
    for _, measure in judges.JUDGES.values():
        assert measure(images, scenes) > 0.97
        assert measure(images, others) < 0.6
    assert judges.overlap((0, 0, 2, 2), (1, 1, 3, 3)) == pytest.approx(1 / 7)
    one, zero = torch.ones(1, 3, 4, 4), torch.zeros(1, 3, 4, 4)
    half = torch.zeros(1, 1, 4, 4)
    half[..., :2] = 1
    assert judges.psnr(zero, one) == pytest.approx(6.0206, abs=1e-3)
    assert judges.psnr(torch.where(half > 0, zero, one), one, half) == pytest.approx(6.0206, abs=1e-3)
