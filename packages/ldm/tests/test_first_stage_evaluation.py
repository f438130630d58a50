"""Image measures, latent scale, latent cache and image data, against closed forms and torchmetrics."""

import numpy as np
import pytest
import torch
from noiseworks.core.errors import ArtifactError, InputError, NonFiniteError
from noiseworks.kits.images import peak_signal_to_noise, structural_similarity
from noiseworks.ldm.data import holdout, load_images, to_tensor, to_uint8
from noiseworks.ldm.diffusion.scaling import LatentCache, cache_latents, estimate_scale, fingerprint
from noiseworks.ldm.first_stage.autoencoding import make_autoencoder
from noiseworks.ldm.first_stage.evaluation import evaluate, frechet_distance, reconstruct
from noiseworks.ldm.options import AutoencoderOptions, Evaluation, Images
from PIL import Image


def images(seed, rows=6, side=16):
    return torch.rand(rows, 3, side, side, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def autoencoder(kind="kl"):
    return make_autoencoder(
        AutoencoderOptions(kind=kind, factor=2, width=8, layers=1, codes=16), size=16
    ).eval()


def standardised(rows, dimensions, seed):
    """Samples with mean exactly 0 and unbiased covariance exactly the identity."""
    values = np.random.default_rng(seed).normal(size=(rows, dimensions))
    values -= values.mean(axis=0)
    factor = np.linalg.cholesky(np.linalg.inv(np.cov(values, rowvar=False)))
    return torch.from_numpy(values @ factor)


def test_frechet_distance_of_two_gaussians_matches_its_closed_form():
    base = standardised(50, 4, 0)
    shifted = 2 * standardised(60, 4, 1) + torch.tensor([1.0, 0, 0, 0])
    assert frechet_distance(base, shifted) == pytest.approx(1 + 4 * (1 - 2) ** 2, abs=1e-9)
    assert abs(frechet_distance(base, base)) < 1e-6


def test_frechet_distance_needs_more_samples_than_dimensions():
    with pytest.raises(InputError, match="more than 4 samples"):
        frechet_distance(torch.zeros(4, 4), torch.zeros(9, 4))


def test_psnr_and_ssim_equal_torchmetrics():
    metrics = pytest.importorskip("torchmetrics.functional.image")
    x, y = images(0, side=24), (images(0, side=24) + 0.2 * images(1, side=24)).clamp(-1, 1)
    psnr = metrics.peak_signal_noise_ratio(y, x, data_range=2.0, dim=(1, 2, 3), reduction="none")
    torch.testing.assert_close(peak_signal_to_noise(x, y).float(), psnr, rtol=1e-5, atol=1e-5)
    # Only windows inside the image count here; torchmetrics pads, so compare it on the same crop's mean.
    full = metrics.structural_similarity_index_measure(
        y.double(), x.double(), data_range=2.0, reduction="none", return_full_image=True
    )[1]
    inner = full[..., 5:-5, 5:-5].flatten(1).mean(dim=1)
    torch.testing.assert_close(structural_similarity(x, y), inner, rtol=1e-6, atol=1e-6)


def test_ssim_of_equal_images_is_one_and_small_images_are_refused():
    assert structural_similarity(images(0), images(0)).min().item() == pytest.approx(1)
    with pytest.raises(InputError, match="11x11"):
        structural_similarity(images(0, side=8), images(0, side=8))


def test_scaled_latents_of_the_estimation_batch_have_unit_deviation():
    vae, x = autoencoder(), images(0)
    scale = estimate_scale(vae, [{"image": x}], batches=1, seed=4)
    with torch.no_grad():
        posterior = vae.encode(x).latent_dist
    noise = torch.randn(posterior.mean.shape, generator=torch.Generator().manual_seed(4))
    assert ((posterior.mean + posterior.std * noise) * scale).std().item() == pytest.approx(1, rel=1e-4)
    assert estimate_scale(vae, [x[:3], x[3:]], batches=2, seed=4) == pytest.approx(scale, rel=0.05)
    with pytest.raises(InputError, match="no images"):
        estimate_scale(vae, [])
    with pytest.raises(NonFiniteError):
        estimate_scale(vae, [x * float("nan")])


def test_mode_is_deterministic_and_shapes_return():
    for kind in ("kl", "vq"):
        vae, x = autoencoder(kind), images(0)
        first, codes = reconstruct(vae, x)
        assert first.shape == x.shape
        assert torch.equal(first, reconstruct(vae, x)[0])
        assert (codes is None) == (kind == "kl")


def test_vq_reconstruction_equals_the_decode_of_diffusers():
    vae, x = autoencoder("vq"), images(0)
    with torch.no_grad():
        # diffusers decodes z + (q - z), which rounds otherwise than q
        torch.testing.assert_close(reconstruct(vae, x)[0], vae(x).sample, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", ["kl", "vq"])
def test_latent_cache_holds_what_the_encoder_gives(tmp_path, kind):
    vae, x = autoencoder(kind), images(0, rows=7)
    rows = [{"image": image, "label": torch.tensor(n)} for n, image in enumerate(x)]
    cache = cache_latents(vae, rows, tmp_path / "cache", batch_size=2, shard_rows=3)
    assert len(cache) == 7
    batch = cache.__getitems__([6, 0, 4])
    assert batch["label"].tolist() == [6, 0, 4]
    with torch.no_grad():
        encoded = vae.encode(x[[6, 0, 4]])
    expected = encoded.latents if kind == "vq" else encoded.latent_dist.mean
    found = batch["latents" if kind == "vq" else "mean"]
    assert found.dtype == torch.float16
    torch.testing.assert_close(found.float(), expected, rtol=1e-3, atol=1e-3)


def test_latent_cache_continues_and_refuses_mixtures(tmp_path):
    vae, x = autoencoder(), images(0, rows=4)
    rows = [{"image": image} for image in x]
    cache_latents(vae, rows, tmp_path / "cache", shard_rows=2)
    (tmp_path / "cache/shard-00001.safetensors").unlink()
    with pytest.raises(ArtifactError, match="lacks shard-00001"):
        LatentCache(tmp_path / "cache")
    assert len(cache_latents(vae, rows, tmp_path / "cache", shard_rows=2)) == 4
    other = autoencoder()
    with torch.no_grad():
        other.decoder.conv_out.bias.add_(1)
    assert fingerprint(other) != fingerprint(vae)
    with pytest.raises(ArtifactError, match="another autoencoder"):
        LatentCache(tmp_path / "cache", other)
    with pytest.raises(InputError, match="other images or another autoencoder"):
        cache_latents(other, rows, tmp_path / "cache", shard_rows=2)
    with pytest.raises(ArtifactError, match="no cache"):
        LatentCache(tmp_path)


def test_folders_and_arrays_give_the_same_images(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (3, 16, 16, 3), dtype=np.uint8)
    (tmp_path / "folder/sub").mkdir(parents=True)
    for number, picture in enumerate(pixels):
        Image.fromarray(picture).save(tmp_path / ("folder/sub" if number else "folder") / f"{number}.png")
    np.savez(tmp_path / "images.npz", images=pixels)
    folder, array = (
        load_images(Images(str(tmp_path / "folder"), 16)),
        load_images(Images(str(tmp_path / "images.npz"))),
    )
    assert torch.equal(folder.__getitems__([0, 2])["image"], array.__getitems__([0, 2])["image"])
    assert np.array_equal(to_uint8(to_tensor(pixels)), pixels)
    assert torch.equal(to_tensor(pixels.astype(np.float64) / 255), to_tensor(pixels))


def test_oblong_images_are_cropped_to_their_centre(tmp_path):
    picture = np.zeros((16, 48, 3), np.uint8)
    picture[:, 16:32] = 255
    Image.fromarray(picture).save(tmp_path / "a.png")
    assert load_images(Images(str(tmp_path), 8))[0]["image"].min() > 0.99


@pytest.mark.parametrize(
    ("array", "words"),
    [
        (np.zeros((2, 16, 16), np.uint8), "repeat a gray channel"),
        (np.zeros((2, 16, 16, 1), np.uint8), "repeat a gray channel"),
        (np.full((2, 16, 16, 3), -0.5), r"must lie in \[0, 1\]"),
        (np.zeros((2, 16, 16, 3), np.int32), "uint8 or floats"),
    ],
)
def test_arrays_that_are_no_rgb_images_are_refused(tmp_path, array, words):
    np.savez(tmp_path / "a.npz", array)
    with pytest.raises(InputError, match=words):
        load_images(Images(str(tmp_path / "a.npz")))


def test_data_that_cannot_be_read_is_refused(tmp_path):
    with pytest.raises(InputError, match="no image data"):
        load_images(Images(str(tmp_path / "nothing.npz")))
    with pytest.raises(InputError, match="no images"):
        load_images(Images(str(tmp_path), 16))
    with pytest.raises(InputError, match="needs size"):
        load_images(Images(str(tmp_path)))
    (tmp_path / "a.png").write_bytes(b"no image")
    with pytest.raises(InputError, match=r"a\.png is no readable image"):
        load_images(Images(str(tmp_path), 16))[0]


def test_holdout_is_a_fixed_partition():
    train, held = holdout(range(10), 0.2, seed=1)
    assert sorted(train + held) == list(range(10))
    assert len(held) == 2
    assert holdout(range(10), 0.2, seed=1) == (train, held)
    assert holdout(range(10), 0.2, seed=2) != (train, held)


def test_an_autoencoder_is_measured_from_its_directory(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (80, 16, 16, 3), dtype=np.uint8)
    np.savez(tmp_path / "images.npz", images=pixels)
    autoencoder("vq").save_pretrained(tmp_path / "vae")
    given, small = Images(str(tmp_path / "images.npz")), Evaluation(feature_steps=2)
    scores = evaluate(str(tmp_path / "vae"), given, small, torch.device("cpu"))
    assert scores.images == 80
    assert scores.psnr < 15
    assert scores.fd_featnet > 0
    assert 0 < scores.codebook_usage <= 1
    np.savez(tmp_path / "few.npz", images=pixels[:20])
    with pytest.raises(InputError, match="more than 64 images"):
        evaluate(str(tmp_path / "vae"), Images(str(tmp_path / "few.npz")), small, torch.device("cpu"))
