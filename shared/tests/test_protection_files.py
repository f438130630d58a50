import numpy as np
import pytest
import torch
from noiseworks.core.errors import InputError
from noiseworks.kits.protection import list_pictures, metrics, purify, read_mask, read_picture, within_budget
from noiseworks.kits.protection.files import change_at_full_size, fit_in, to_tensor
from noiseworks.kits.protection.metrics import feature_distance, fine_share, psnr, visibility
from noiseworks.kits.protection.purifiers import (
    PURIFIERS,
    bits,
    blur,
    crop_resize,
    follow,
    jpeg,
    noise,
    noisy_upscale,
    purifier,
    resize,
)
from PIL import Image

RNG = np.random.default_rng(0)


def test_pictures_of_every_kind_become_upright_rgb(tmp_path):
    pixels = RNG.integers(0, 256, (20, 30, 3), dtype=np.uint8)
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(pixels).save(tmp_path / "turned.png", exif=exif)
    assert read_picture(tmp_path / "turned.png").pixels.shape == (30, 20, 3)
    rgba = np.dstack([pixels, np.full((20, 30), 77, np.uint8)])
    Image.fromarray(rgba).save(tmp_path / "alpha.png")
    found = read_picture(tmp_path / "alpha.png")
    assert (found.alpha == 77).all()
    assert (read_picture(found.write(tmp_path / "again.png")).alpha == 77).all()
    Image.fromarray(pixels[..., 0]).save(tmp_path / "grey.png")
    assert (read_picture(tmp_path / "grey.png").pixels[..., 1] == pixels[..., 0]).all()
    Image.fromarray((np.arange(600, dtype=np.uint16) * 100).reshape(20, 30)).save(tmp_path / "deep.png")
    assert "16 bits to 8" in read_picture(tmp_path / "deep.png").notes
    dark = (
        np.arange(600, dtype=np.uint16).reshape(20, 30) // 3
    )  # 16 bits, all below 256: black but for rounding
    Image.fromarray(dark).save(tmp_path / "dark.png")
    assert read_picture(tmp_path / "dark.png").pixels.max() <= 1
    Image.fromarray(pixels[..., 0].astype(np.float32) / 255).save(tmp_path / "float.tif")
    assert (read_picture(tmp_path / "float.tif").pixels[..., 2] == pixels[..., 0]).all()
    Image.fromarray(pixels).convert("CMYK").save(tmp_path / "print.jpg")
    assert read_picture(tmp_path / "print.jpg").pixels.shape == (20, 30, 3)
    Image.fromarray(pixels).convert("LAB").save(tmp_path / "lab.tif")
    assert read_picture(tmp_path / "lab.tif").alpha is None  # the A of LAB is a colour


def test_what_is_no_picture_is_refused_in_a_sentence(tmp_path):
    (tmp_path / "text.png").write_text("no picture")
    Image.new("RGB", (8, 40)).save(tmp_path / "thin.png")
    frames = [Image.new("RGB", (20, 20), color) for color in ("red", "blue")]
    frames[0].save(tmp_path / "film.gif", save_all=True, append_images=frames[1:])
    Image.fromarray(np.full((20, 20), np.nan, np.float32)).save(tmp_path / "nan.tif")
    for name, word in (
        ("text.png", "no picture"),
        ("thin.png", r"thin.png is 8x40; sides"),
        ("film.gif", r"film.gif is animated \(2"),
        ("nan.tif", "no numbers"),
        ("gone.png", "read"),
    ):
        with pytest.raises(InputError, match=word) as refusal:
            read_picture(tmp_path / name)
        assert str(refusal.value).count(name) == (
            2 if name == "gone.png" else 1
        )  # once, but for the system's words
    with pytest.raises(InputError, match="no picture or folder"):
        list_pictures(tmp_path / "nowhere")
    Image.new("RGB", (20, 20)).save(tmp_path / "thin.jpg")
    with pytest.raises(InputError, match="thin"):
        list_pictures(tmp_path)


def test_huge_pictures_are_refused_before_they_are_read(tmp_path, recwarn):
    import struct
    import zlib

    for side in (12_000, 20_000):
        header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
        chunks = [(b"IHDR", header), (b"IDAT", zlib.compress(b"\0")), (b"IEND", b"")]
        parts = [
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
            for kind, data in chunks
        ]
        (tmp_path / "huge.png").write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(parts))
        with pytest.raises(InputError, match=r"20000x20000|12000x12000|pixels"):
            read_picture(tmp_path / "huge.png")
    assert not recwarn.list  # a refusal is one line


def test_masks_have_a_polarity_a_size_and_two_sides(tmp_path):
    mask = np.zeros((20, 20), np.uint8)
    mask[:5] = 255
    Image.fromarray(mask).save(tmp_path / "mask.png")
    assert read_mask(tmp_path / "mask.png", (20, 20))[:5].all()
    assert read_mask(tmp_path / "mask.png", (20, 20), "repaint")[5:].all()
    with pytest.raises(InputError, match="20x20"):
        read_mask(tmp_path / "mask.png", (20, 30))
    Image.new("L", (20, 20), 255).save(tmp_path / "full.png")
    with pytest.raises(InputError, match="everything"):
        read_mask(tmp_path / "full.png", (20, 20))


def test_rounding_keeps_every_level_and_the_budget():
    pixels = np.arange(256, dtype=np.uint8).reshape(16, 16, 1).repeat(3, axis=2)
    images = to_tensor(pixels)
    assert np.array_equal(within_budget(images, pixels[None], 0)[0], pixels)
    moved = within_budget((images + 9.7 / 255).clamp(0, 1), pixels[None], 9.5)
    assert np.abs(moved[0].astype(int) - pixels).max() <= 9
    grey = np.full((1, 16, 16, 3), 128, np.uint8)
    for level, value in ((8, 30.0690), (16, 24.0484)):
        assert float(psnr(to_tensor(grey), to_tensor(grey + np.uint8(level)))) == pytest.approx(
            value, abs=1e-3
        )


def test_odd_and_large_pictures_come_back_at_their_size():
    images = torch.rand(1, 3, 37, 90)
    inner, fit = fit_in(images, 8, 60)
    assert inner.shape[-2] % 8 == inner.shape[-1] % 8 == 0
    change = change_at_full_size(inner, inner + 0.5, fit, 0.1)
    assert change.shape == images.shape
    torch.testing.assert_close(change, torch.full_like(change, 0.1))


def test_purifiers_have_their_identities_and_clean():
    y, x = np.indices((32, 32))
    smooth = np.clip(np.stack([128 + 40 * np.sin(x / 9), 128 + 40 * np.cos(y / 9), 4.0 * x + y], -1), 0, 255)
    smooth = np.round(smooth).astype(np.uint8)
    for same in (crop_resize(smooth, 1.0), resize(smooth, 1.0), blur(smooth, 1e-6), bits(smooth, 8)):
        assert np.array_equal(same, smooth)
    flat = np.full((32, 32, 3), 90, np.uint8)
    for name in PURIFIERS:
        found = purify(name, flat[None])
        assert found.shape == (1, 32, 32, 3)
        if name not in ("noise", "noisy-upscale"):
            most = {"bits-4": 10, "adverse-cleaner": 0}.get(name, 1)
            assert np.abs(found.astype(int) - 90).max() <= most
    noisy = np.clip(smooth + 8 * RNG.choice([-1, 1], smooth.shape), 0, 255).astype(np.uint8)
    for name in ("adverse-cleaner", "blur", "total-variation"):
        before, after = (
            float(psnr(to_tensor(smooth), to_tensor(p))) for p in (noisy, purify(name, noisy[None])[0])
        )
        assert after > before + 1
    assert np.array_equal(purify("jpeg-75", noisy[None]), purify("jpeg-75", noisy[None]))
    with pytest.raises(InputError, match="purifier"):
        purify("bleach", flat[None])


def test_adverse_cleaner_is_opencvs():
    y, x = np.indices((12, 12))
    plain = np.stack([8 * x + 8 * y, 90 + 40 * (x > 5), 200 - 5 * x * (y % 3)], -1)
    grain = (7 * x * x + 13 * y + 5 * x * y) % 33 - 16
    picture = np.clip(plain + grain[..., None] * [1, -1, 1], 0, 255).astype(np.uint8)
    # A row of what OpenCV 5's bilateralFilter, 64 times, and ximgproc.guidedFilter, 4 times, leave of it.
    wanted = [
        [55, 79, 210], [62, 81, 202], [53, 96, 177], [55, 102, 164], [69, 97, 162], [68, 106, 144],
        [81, 136, 135], [102, 124, 140], [108, 126, 129], [125, 118, 131], [127, 124, 115], [140, 120, 112],
    ]  # fmt: skip
    found = purify("adverse-cleaner", picture[None])[0, 5].astype(int)
    assert np.abs(found - picture[5]).max() > 5
    assert np.abs(found - wanted).max() <= 1


def test_similarity_of_flat_pictures_is_the_closed_form():
    flat = [torch.full((1, 3, 16, 16), value) for value in (0.5, 0.6)]
    assert float(visibility(*flat)["ssim"]) == pytest.approx(0.9836092, abs=1e-6)
    assert float(visibility(flat[0], flat[0])["ssim"]) == pytest.approx(1)


def test_names_of_purifiers_take_numbers_and_chains():
    picture = RNG.integers(0, 256, (24, 24, 3), dtype=np.uint8)
    for name, expected in (
        ("jpeg-65", jpeg(picture, 65)),
        ("resize-0.75", resize(picture, 0.75)),
        ("noise-4+jpeg-30", jpeg(noise(picture, 4), 30)),
        ("noisy-upscale", noisy_upscale(picture)),
        ("crop-resize-1", picture),
        ("none", picture),
    ):
        assert np.array_equal(purify(name, picture[None])[0], expected)
    for name, word in (
        ("jpeg-0", "1 to 100"),
        ("jpeg-75.5", "whole"),
        ("bits-4+bleach", "bleach"),
        ("resize-2", "0.05 to 1"),
        ("", "purifier"),
    ):
        with pytest.raises(InputError, match=word):
            purifier(name)


def test_masks_follow_what_moves_a_picture():
    mask = torch.zeros(1, 1, 20, 20)
    mask[..., :10] = 1
    mask[..., :2, :] = 1
    cropped = follow("jpeg-75+crop-resize-0.8", mask)
    assert not cropped[..., 10:].any()  # the strip lay in the border of two pixels that is cut
    assert cropped[..., :9].all()
    assert set(cropped.unique().tolist()) <= {0.0, 1.0}
    assert torch.equal(follow("jpeg-75+blur", mask), mask)


def test_photographs_are_measured_in_tiles(monkeypatch):
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(2, 3, 70, 100, generator=generator)
    changed = (images + 0.05 * torch.randn(images.shape, generator=generator)).clamp(0, 1)
    changed[0, :, :35] = images[0, :, :35]  # a tile without a change
    whole = visibility(images, changed)
    monkeypatch.setattr(metrics, "TILE", 40)
    covered = torch.zeros(70, 100)
    for rows, columns in metrics._tiles(70, 100):
        covered[rows, columns] += 1
        assert max(covered[rows, columns].shape) <= 40
    assert (covered == 1).all()
    tiled = visibility(images, changed)
    for name in ("largest_255", "psnr"):
        assert torch.equal(whole[name], tiled[name])
    for name in ("ssim", "feature_distance", "fine_share"):
        torch.testing.assert_close(tiled[name], whole[name].double(), rtol=0.15, atol=0)


def test_distances_are_zero_on_equal_pictures_and_tell_fine_from_coarse():
    images = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    others = images.flip(-1)
    assert (feature_distance(images, images) == 0).all()
    torch.testing.assert_close(feature_distance(images, others), feature_distance(others, images))
    x = torch.arange(32.0)
    coarse, fine = torch.sin(x / 8), torch.cos(torch.pi * x)
    waves = torch.stack([w.expand(3, 32, 32) for w in (coarse, fine)])
    shares = fine_share(waves)
    assert float(shares[0]) < 0.1 < 0.9 < float(shares[1])
