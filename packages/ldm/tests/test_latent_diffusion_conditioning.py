import json

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL, UNet2DModel, VQModel
from noiseworks.core.cli import run
from noiseworks.core.errors import InputError
from noiseworks.ldm import cli, tasks
from noiseworks.ldm.conditioning.conditioners import ClassConditioner, HybridConditioner, LayoutConditioner
from noiseworks.ldm.conditioning.degradation import gaussian_blur, low_resolution
from noiseworks.ldm.conditioning.spatial import LowResConditioner, MaskConditioner, SemanticConditioner
from noiseworks.ldm.conversion.export import assemble
from noiseworks.ldm.diffusion.objective import make_scheduler
from noiseworks.ldm.diffusion.trainer import LatentDiffusionTrainer
from PIL import Image
from torch import nn

VAE = {
    "down_block_types": ("DownEncoderBlock2D",) * 3,
    "up_block_types": ("UpDecoderBlock2D",) * 3,
    "block_out_channels": (8, 8, 8),
    "norm_num_groups": 4,
    "latent_channels": 3,
}
DROP = torch.tensor([False, True])


def tiny_layout():
    return LayoutConditioner(7, grid=16, max_objects=3, dim=16, num_layers=1, num_heads=2)


def test_layout_tokens_name_class_and_cells_and_come_back():
    conditioner = tiny_layout()
    ids = conditioner.tokenize([[(6, 0.0, 0.5, 0.99, 1.0)], []])
    assert ids.tolist() == [[7, 8, 16, 23, 23, *[0] * 10], [0] * 15]
    layout = [[(2, 0.11, 0.2, 0.73, 0.9), (0, 0.5, 0.5, 0.5, 0.5)]]
    back = conditioner.detokenize(conditioner.tokenize(layout))
    for (kind, *corners), (expected, *given) in zip(back[0], layout[0], strict=True):
        assert kind == expected
        assert np.abs(np.array(corners) - given).max() <= 1 / 32 + 1e-9


@pytest.mark.parametrize(
    ("layout", "message"),
    [
        ([(7, 0, 0, 1, 1)], "class in layout 0"),
        ([(0, 0, 0, 1.5, 1)], "corner in layout 0"),
        ([(0, 0.5, 0, 0.1, 1)], "x0 <= x1"),
        ([(0, 0, 0, 1, 1)] * 4, "limit is 3"),
    ],
)
def test_bad_layouts_are_refused(layout, message):
    with pytest.raises(InputError, match=message):
        tiny_layout().tokenize([layout])


def test_dropped_rows_are_those_of_the_null_condition():
    layout = tiny_layout().eval()
    layouts = [[(1, 0, 0, 1, 1)], [(2, 0, 0, 1, 1)]]
    states = layout({"layout": layouts}, DROP).crossattn
    torch.testing.assert_close(states[1], layout({"layout": [[]]}).crossattn[0])
    torch.testing.assert_close(states[0], layout({"layout": layouts}).crossattn[0])
    classes = ClassConditioner(3, 8)
    tokens = classes({"label": torch.tensor([1, 1])}, DROP).crossattn
    assert torch.equal(tokens[1, 0], classes.embedding.weight[3])
    labels = ClassConditioner(3, kind="adm")({"label": torch.tensor([1, 1])}, DROP).adm
    assert labels.tolist() == [1, 3]


def test_semantic_map_equals_two_halvings_and_a_convolution():
    conditioner = SemanticConditioner(5, 3, 4)
    labels = torch.randint(5, (2, 16, 8))
    maps = nn.functional.one_hot(labels, 5).permute(0, 3, 1, 2).float()
    for _ in range(2):
        maps = nn.functional.interpolate(maps, scale_factor=0.5, mode="bilinear")
    expected = nn.functional.conv2d(maps, conditioner.table.T[:, :, None, None])
    found = conditioner({"segmentation": labels}).concat
    torch.testing.assert_close(found, expected)
    assert conditioner({"segmentation": labels}, DROP).concat[1].abs().max() == 0
    with pytest.raises(InputError, match=r"0\.\.4"):
        conditioner({"segmentation": labels + 5})


def test_mask_condition_has_a_black_hole_and_a_signed_mask():
    torch.manual_seed(0)
    vae = AutoencoderKL(**VAE)
    conditioner = MaskConditioner(vae)
    images, mask = torch.rand(2, 3, 16, 16), torch.zeros(2, 1, 16, 16)
    mask[:, :, 4:8, 4:8] = 0.7
    masked = conditioner.masked_image(images, mask)
    assert (masked[:, :, 4:8, 4:8] == -1).all()
    assert torch.equal(masked[:, :, 8:], images[:, :, 8:])
    maps = conditioner({"image": images, "mask": mask}).concat
    assert maps.shape == (2, 4, 4, 4)
    assert maps[:, 3].unique().tolist() == [-1.0, 1.0]
    assert maps[0, 3, 1, 1] == 1
    torch.testing.assert_close(maps[:, :3], vae.encode(masked).latent_dist.mode())
    with pytest.raises(InputError, match="one channel"):
        conditioner({"image": images, "mask": images})
    with pytest.raises(InputError, match="RGB"):
        conditioner({"image": images[:, :1], "mask": mask})


def test_hybrid_joins_both_and_drops_the_sequence_only():
    hybrid = HybridConditioner(LowResConditioner(), ClassConditioner(3, 8))
    batch = {"low_res": torch.rand(2, 3, 4, 4), "label": torch.tensor([0, 1])}
    found = hybrid(batch, DROP)
    assert torch.equal(found.concat, batch["low_res"])
    assert torch.equal(found.crossattn[1, 0], hybrid.crossattn.embedding.weight[3])
    with pytest.raises(InputError, match="hybrid joins"):
        HybridConditioner(ClassConditioner(3, 8), LowResConditioner())


def test_kind_must_be_the_conditioners():
    unet = UNet2DModel(4, 3, 3, block_out_channels=(32,) * 4)
    with pytest.raises(InputError, match="does not fit the conditioner"):
        LatentDiffusionTrainer(unet, None, ClassConditioner(3, 8), kind="concat")


def test_degradations_depend_on_image_and_seed_alone():
    images = torch.rand(3, 3, 32, 32) * 2 - 1
    assert low_resolution(images, 4).shape == (3, 3, 8, 8)
    flat = torch.full((1, 3, 16, 16), 0.25)
    torch.testing.assert_close(low_resolution(flat, 4), flat[..., :4, :4])
    torch.testing.assert_close(gaussian_blur(flat, 2.0, 0.5, 0.3), flat)
    together = low_resolution(images, 4, "bsr", [5, 6, 7])
    assert torch.equal(together[1:2], low_resolution(images[1:2], 4, "bsr", [6]))
    assert not torch.equal(together[1:2], low_resolution(images[1:2], 4, "bsr", [8]))
    assert together.abs().max() <= 1
    with pytest.raises(InputError, match="multiples of 4"):
        low_resolution(images[..., :30], 4)
    with pytest.raises(InputError, match="one seed per image"):
        low_resolution(images, 4, "bsr")


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    torch.manual_seed(0)
    vae = VQModel(num_vq_embeddings=16, scaling_factor=1.0, **VAE)
    scheduler = make_scheduler()
    kinds = {
        "unconditional": (3, None),
        "inpaint": (7, MaskConditioner(vae)),
        "upscale": (6, LowResConditioner()),
        "semantic": (6, SemanticConditioner(5, 3, 4)),
    }
    for name, (channels, conditioner) in kinds.items():
        unet = UNet2DModel(
            8,
            channels,
            3,
            block_out_channels=(16, 32),
            down_block_types=("DownBlock2D", "AttnDownBlock2D"),
            up_block_types=("AttnUpBlock2D", "UpBlock2D"),
            layers_per_block=1,
            norm_num_groups=8,
        )
        assemble(unet, vae, scheduler, conditioner).save_pretrained(folder / name)
    image = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    Image.fromarray(image).save(folder / "image.png")
    Image.fromarray(image[:8, :8]).save(folder / "small.png")
    Image.fromarray(image[..., 0]).save(folder / "gray.png")
    Image.fromarray(((np.arange(32) < 16)[None] * np.full((32, 1), 255)).astype(np.uint8)).save(
        folder / "mask.png"
    )
    Image.fromarray(np.zeros((32, 48), np.uint8) + 4).save(folder / "classes.png")
    return folder


def command(capsys, *words):
    with pytest.raises(SystemExit) as end:
        run(cli.app, [str(word) for word in words])
    return end.value.code, capsys.readouterr()


FAST = ("--steps", "2", "--device", "cpu")


def test_commands_write_images(models, tmp_path, capsys):
    words = (
        "sample",
        models / "unconditional",
        tmp_path / "a",
        "--num",
        2,
        "--progressive",
        2,
        *FAST,
        "--json",
    )
    code, output = command(capsys, *words)
    assert code == 0, output.err
    found = json.loads(output.out)
    assert len(found["images"]) == len(found["rows"]) == 2
    assert Image.open(found["rows"][0]).size == (64, 32)
    words = ("inpaint", models / "inpaint", models / "image.png", models / "mask.png", tmp_path / "b", *FAST)
    assert command(capsys, *words)[0] == 0
    before, after = (np.asarray(Image.open(f)) for f in (models / "image.png", tmp_path / "b" / "00000.png"))
    assert np.array_equal(before[:, 16:], after[:, 16:])
    assert not np.array_equal(before[:, :16], after[:, :16])
    assert command(capsys, "upscale", models / "upscale", models / "small.png", tmp_path / "c", *FAST)[0] == 0
    assert Image.open(tmp_path / "c" / "00000.png").size == (32, 32)
    words = ("semantic", models / "semantic", models / "classes.png", tmp_path / "d", *FAST, "--tile", 8)
    assert command(capsys, *words)[0] == 0
    assert Image.open(tmp_path / "d" / "00000.png").size == (48, 32)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("sample", "{}/inpaint"), "takes the command 'inpaint'"),
        (("sample", "{}/unconditional", "--prompt", "a"), "unconditional"),
        (("sample", "{}/unconditional", "--eta", "2"), "eta"),
        (("sample", "{}/nothing"), "no model at"),
        (("upscale", "{}/upscale", "{}/gray.png"), "mode L"),
        (("inpaint", "{}/inpaint", "{}/image.png", "{}/image.png"), "mode RGB"),
        (("inpaint", "{}/inpaint", "{}/small.png", "{}/mask.png"), "differ in size"),
    ],
)
def test_bad_commands_end_with_one_line_and_write_nothing(words, message, models, tmp_path, capsys):
    positional = [w.format(models) for w in words if not w.startswith("--")]
    where = 2 if "--prompt" in words or "--eta" in words else len(positional)
    filled = [w.format(models) for w in words]
    filled.insert(where, str(tmp_path / "out"))
    code, output = command(capsys, *filled, *FAST)
    assert code == 2
    assert message in output.err
    assert output.err.strip().count("\n") == 0
    assert not (tmp_path / "out").exists()


def test_read_image_refuses_what_is_no_image(tmp_path):
    (tmp_path / "a.png").write_text("no image")
    with pytest.raises(InputError, match="no readable image"):
        tasks.read_image(tmp_path / "a.png")
