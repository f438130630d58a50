"""The transfer and the guidance: closed forms, hosts, and what training leaves alone."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from diffusers import DDPMPipeline, DDPMScheduler
from noiseworks.core.errors import InputError, NonFiniteError, UnsupportedHostError
from noiseworks.kits.diffusers_hosts import sample_generators, tiny_pipeline, tiny_pixel_pipeline
from noiseworks.kits.pictures import write_picture
from noiseworks.ppap import (
    Adapters,
    Guide,
    NoisyGuide,
    Strength,
    Transfer,
    attach,
    draw_images,
    learn,
    load_guide,
)
from noiseworks.ppap.guidance import gradient, scaled
from noiseworks.ppap.reports import picture_of
from noiseworks.ppap.saving import read_folder
from noiseworks.ppap.tasks import Classification, Depth, Segmentation
from torch import nn


def pixel_pipe(kind: str = "epsilon", clip: bool = True) -> DDPMPipeline:
    """Return a small unconditional pipeline."""
    pipe = tiny_pixel_pipeline()
    pipe.scheduler = DDPMScheduler(prediction_type=kind, clip_sample=clip)
    return pipe


def classifier() -> Guide:
    """Return a small classifier with a batch norm."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        network = nn.Sequential(
            nn.Conv2d(3, 8, 3, 2, 1), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.LazyLinear(4)
        )
        network(torch.zeros(2, 3, 8, 8))
    return Guide(network.eval(), Classification())


class Tilted(nn.Module):
    """Logits (a x, 0), whose log-odds of class 0 have the gradient a."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the logits."""
        tilt = 0.5 * x.flatten(1).sum(1)
        return torch.stack([tilt, torch.zeros_like(tilt)], 1)


class Exponential:
    """A task whose log p(y | x) is the sum of a times the pixels."""

    def check(self, output, target) -> None:
        """Accept everything."""

    def log_likelihood(self, output, target):
        """Return the log-odds."""
        return output[:, 0]


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction", "sample"])
def test_the_prediction_moves_by_the_score(kind):
    pipe, s, a = pixel_pipe(kind, clip=False), 3.0, 0.5
    x, t = torch.randn(2, 3, 8, 8), 400
    # Tilted sees x / 2 + 0.5 normalised back, which is x
    reader = NoisyGuide(Guide(Tilted(), Exponential()))
    with torch.no_grad():
        before = pipe.unet(x, t).sample
        with attach(pipe, reader, 0, Strength(scale=s)):
            after = pipe.unet(x, t).sample
    bar = float(pipe.scheduler.alphas_cumprod[t])
    alpha, sigma = bar**0.5, (1 - bar) ** 0.5
    moved = {"epsilon": -sigma, "v_prediction": -sigma / alpha, "sample": sigma**2 / alpha}[kind] * s * a
    torch.testing.assert_close(after, before + moved, rtol=1e-5, atol=1e-5)


def test_with_texts_both_halves_move_alike_and_the_learned_variance_stays():
    pipe, s, a, t = tiny_pixel_pipeline("if"), 3.0, 0.5, 400
    x, text = torch.randn(2, 3, 8, 8), torch.randn(4, 5, 32)
    target = torch.tensor([0, 0])  # one a sample, not one a row
    with torch.no_grad():
        before = pipe.unet(torch.cat([x, x]), t, text).sample
        with attach(pipe, NoisyGuide(Guide(Tilted(), Exponential())), target, Strength(scale=s)):
            after = pipe.unet(torch.cat([x, x]), t, text).sample
    moved = -((1 - pipe.scheduler.alphas_cumprod[t]) ** 0.5) * s * a
    torch.testing.assert_close(after[:, :3], before[:, :3] + moved, rtol=1e-5, atol=1e-5)
    assert torch.equal(after[:, 3:], before[:, 3:])


@pytest.mark.parametrize("clip", [True, False])
def test_the_pipeline_equals_a_loop_written_by_hand(clip):
    pipe, guide = pixel_pipe(clip=clip), classifier()
    target, s = torch.tensor([1, 3]), 5.0
    with attach(pipe, NoisyGuide(guide), target, Strength(scale=s)):
        made = draw_images(pipe, [0, 1], 5)
    x = torch.stack([torch.randn(3, 8, 8, generator=g) for g in sample_generators([0, 1])])
    for t in (800, 600, 400, 200, 0):
        leaf = x.clone().requires_grad_()
        guide(leaf).log_softmax(1).gather(1, target[:, None]).sum().backward()
        bar = pipe.scheduler.alphas_cumprod[t]
        before = pipe.scheduler.alphas_cumprod[t - 200] if t else torch.tensor(1.0)
        with torch.no_grad():
            x0 = (x - (1 - bar).sqrt() * pipe.unet(x, t).sample) / bar.sqrt()
        assert x0.abs().max() > 1  # the published order: clip, then guide, then step
        x0 = x0.clamp(-1, 1) if clip else x0
        eps = (x - bar.sqrt() * x0) / (1 - bar).sqrt() - (1 - bar).sqrt() * s * leaf.grad
        x0 = (x - (1 - bar).sqrt() * eps) / bar.sqrt()
        x = before.sqrt() * x0 + (1 - before).sqrt() * eps
    torch.testing.assert_close(made, x.clamp(-1, 1), rtol=1e-4, atol=1e-5)


def test_weights_get_no_gradient_and_the_mode_stays():
    pipe, guide = pixel_pipe(), classifier()
    for through in ("sample", "denoised"):
        with attach(pipe, NoisyGuide(guide), 2, Strength(through=through)):
            draw_images(pipe, [0], 2)
    assert all(one.grad is None for one in (*pipe.unet.parameters(), *guide.model.parameters()))
    assert not guide.model.training
    assert torch.is_grad_enabled()


def test_a_look_at_the_denoised_image_goes_through_the_denoiser():
    pipe, x, t, s = pixel_pipe(), torch.randn(1, 3, 8, 8), 300, 2.0
    guide = classifier()
    bar = pipe.scheduler.alphas_cumprod[t]
    leaf = x.clone().requires_grad_()
    x0 = (leaf - (1 - bar).sqrt() * pipe.unet(leaf, t).sample) / bar.sqrt()
    assert x0.abs().max() > 1
    assert pipe.scheduler.config.clip_sample
    (wanted,) = torch.autograd.grad(guide(x0.clamp(-1, 1)).log_softmax(1)[0, 2], leaf)
    with torch.no_grad():
        before = pipe.unet(x, t).sample
        with attach(pipe, NoisyGuide(guide), 2, Strength(scale=s, through="denoised")):
            after = pipe.unet(x, t).sample
    before = (x - bar.sqrt() * x0.detach().clamp(-1, 1)) / (1 - bar).sqrt()
    torch.testing.assert_close(after - before, -(1 - bar).sqrt() * s * wanted, rtol=1e-3, atol=1e-5)


def test_a_guided_step_calls_the_denoiser_once():
    for through in ("sample", "denoised"):
        pipe, calls = pixel_pipe(), []
        pipe.unet.register_forward_hook(lambda *_, calls=calls: calls.append(1))
        with attach(pipe, NoisyGuide(classifier()), 2, Strength(through=through)):
            draw_images(pipe, [0], 3)
        assert len(calls) == 3


def test_norms_of_each_sample_keep_batches_apart_and_the_released_one_does_not():
    g, x = torch.randn(2, 3, 4, 4), torch.randn(2, 3, 4, 4)
    each, released = Strength(scale=2, norm="per-sample"), Strength(scale=2, norm="released")
    torch.testing.assert_close(scaled(g, x, each)[1:], scaled(g[1:], x[1:], each))
    assert not torch.allclose(scaled(g, x, released)[1:], scaled(g[1:], x[1:], released))
    torch.testing.assert_close(scaled(g, x, each).flatten(1).norm(dim=1), 2 * x.flatten(1).norm(dim=1))
    assert torch.equal(scaled(torch.zeros_like(g), x, each), torch.zeros_like(g))
    with pytest.raises(NonFiniteError, match="gradient"):
        scaled(g / 0, x, each)


def test_rows_of_a_gradient_do_not_meet():
    guide, x = classifier(), torch.randn(3, 3, 8, 8)
    value = lambda z: guide(z).log_softmax(1)[:, 0]  # noqa: E731
    torch.testing.assert_close(gradient(value, x)[1:2], gradient(value, x[1:2]), rtol=1e-4, atol=1e-6)


TRANSFER = Transfer(max_steps=40, batch_size=16, learning_rate=2e-3, device="cpu")


def images() -> torch.Tensor:
    """Return images to learn from."""
    return torch.rand(32, 3, 8, 8, generator=torch.Generator().manual_seed(5)) * 2 - 1


def test_students_come_nearer_to_the_teacher_and_leave_it_alone():
    pipe, guide = pixel_pipe(), classifier()
    guide.model[4].weight.data.mul_(10)  # a teacher that is sure
    flat = torch.linspace(-1, 1, 32).view(-1, 1, 1, 1).expand(32, 3, 8, 8)
    before = {name: one.clone() for name, one in guide.model.state_dict().items()}
    # Fewer steps leave the norms' running statistics behind the weights, and the student worse than the guide.
    longer = replace(TRANSFER, max_steps=200, learning_rate=3e-3, batch_size=32)
    experts = learn(pipe, guide, flat, Adapters(experts=2, rank=2), longer)
    assert all(torch.equal(one, before[name]) for name, one in guide.model.state_dict().items())
    bar, generator = pipe.scheduler.alphas_cumprod[700], torch.Generator().manual_seed(0)
    noisy = bar.sqrt() * flat + (1 - bar).sqrt() * torch.randn(flat.shape, generator=generator)
    with torch.no_grad():
        teacher = guide(flat)
        found = NoisyGuide(guide, experts).output(noisy, 700)
        assert guide.task.distil(teacher, found) < 0.8 * guide.task.distil(teacher, guide(noisy))
    statistics = [part.get_buffer("1/running_mean") for part in experts.parts]
    assert not torch.equal(*statistics)
    assert not torch.equal(statistics[0], before["1.running_mean"])


def test_one_expert_is_the_single_student_and_fresh_experts_begin_with_the_guide():
    one = learn(pixel_pipe(), classifier(), images(), Adapters(experts=1, rank=2), TRANSFER)
    again = learn(pixel_pipe(), classifier(), images(), Adapters(experts=1, rank=2), TRANSFER)
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), again.parameters(), strict=True))
    slow = Transfer(max_steps=2, batch_size=4, learning_rate=1e-12, weight_decay=0, device="cpu")
    chain = learn(pixel_pipe(), classifier(), images(), Adapters(experts=2, rank=2), slow)
    for a, b in zip(*(part.parameters() for part in chain.parts), strict=True):
        torch.testing.assert_close(a, b)  # the second took over all that the first had, and hardly moved
    fresh = Transfer(
        max_steps=2, batch_size=4, learning_rate=1e-12, weight_decay=0, start="fresh", device="cpu"
    )
    a, b = (
        part.a["0"].detach()
        for part in learn(pixel_pipe(), classifier(), images(), Adapters(experts=2, rank=2), fresh).parts
    )
    assert not torch.allclose(a, b)


def test_labels_and_whole_networks_are_the_supervised_regimes():
    guide, labels = classifier(), torch.arange(32) % 4
    experts = learn(pixel_pipe(), guide, images(), Adapters(experts=1, tuned="all"), TRANSFER, labels=labels)
    assert len(experts.parts[0].free) == len(list(guide.model.parameters()))
    assert not experts.parts[0].a


def test_latent_pipelines_show_the_guide_decoded_noise():
    pipe, guide = tiny_pipeline("sd"), Guide(classifier().model, Classification(), size=8)
    experts = learn(
        pipe,
        guide,
        torch.rand(4, 3, 32, 32) * 2 - 1,
        Adapters(experts=2, rank=2),
        Transfer(max_steps=2, batch_size=2, device="cpu"),
    )
    plain = draw_images(pipe, [0], 2, "a red circle")
    with attach(pipe, NoisyGuide(guide, experts), 1, Strength(scale=50)):
        steered = draw_images(pipe, [0], 2, "a red circle")
    assert not torch.equal(plain, steered)
    assert steered.isfinite().all()


def test_images_of_one_channel_are_written_and_read_as_they_are(tmp_path: Path):
    grey = torch.linspace(-1, 1, 64).view(1, 1, 8, 8)
    write_picture(picture_of(grey)[0], tmp_path / "0.png")
    torch.testing.assert_close(read_folder(tmp_path, 1), grey, rtol=0, atol=0.005)
    assert read_folder(tmp_path).shape == (1, 3, 8, 8)


def test_what_does_not_fit_is_refused():
    pipe, guide = pixel_pipe(), classifier()
    with pytest.raises(UnsupportedHostError, match="Pix2Pix"):
        attach(tiny_pipeline("instruct-pix2pix"), NoisyGuide(guide), 0)
    with pytest.raises(InputError, match="3 images"), attach(pipe, NoisyGuide(guide), [0, 1]):
        draw_images(pipe, [0, 1, 2], 2)
    with pytest.raises(InputError, match="0 to 3"), attach(pipe, NoisyGuide(guide), 4):
        draw_images(pipe, [0], 2)
    with pytest.raises(InputError, match=r"\[-1, 1\]"):
        learn(pipe, guide, images() * 255)
    with pytest.raises(InputError, match="8x8"):
        learn(pipe, guide, torch.zeros(4, 3, 16, 16))
    with pytest.raises(InputError, match="each of 5"):
        learn(pipe, guide, images(), transfer=Transfer(max_steps=4, batch_size=4, device="cpu"))
    with pytest.raises(InputError, match="pixel pipelines"):
        attach(tiny_pipeline("sd"), NoisyGuide(guide), 0, Strength(through="denoised"))


def test_public_networks_of_three_kinds_guide(tmp_path: Path):
    import transformers as tf

    side = {"image_size": 16}
    segformer = tf.SegformerConfig(
        num_encoder_blocks=1,
        depths=[1],
        sr_ratios=[1],
        hidden_sizes=[8],
        patch_sizes=[3],
        strides=[2],
        num_attention_heads=[1],
        mlp_ratios=[1],
        decoder_hidden_size=8,
        num_labels=3,
        **side,
    )
    resnet = tf.ResNetConfig(
        embedding_size=8, hidden_sizes=[8, 8], depths=[1, 1], layer_type="basic", num_labels=5
    )
    found = {
        "resnet": (tf.ResNetForImageClassification(resnet), Classification, torch.tensor(4)),
        "segformer": (tf.SegformerForSemanticSegmentation(segformer), Segmentation, None),
    }
    for name, (model, task, target) in found.items():
        model.save_pretrained(tmp_path / name)
        guide = load_guide(tmp_path / name)
        assert isinstance(guide.task, task)
        x = torch.randn(2, 3, 16, 16)
        output = guide(x)
        target = torch.zeros(output.shape[-2:], dtype=torch.long) if target is None else target
        found_gradient = gradient(lambda z, g=guide, y=target: NoisyGuide(g).log_likelihood(z, 0, y), x)
        assert found_gradient.shape == x.shape
        assert float(found_gradient.abs().max()) > 0
    depth = Guide(nn.Sequential(nn.Conv2d(3, 1, 3, padding=1), nn.Flatten(1, 2)), Depth())
    x = torch.randn(2, 3, 16, 16)
    assert NoisyGuide(depth).log_likelihood(x, 0, torch.zeros(16, 16)).shape == (2,)
    tf.ViTModel(tf.ViTConfig(hidden_size=8, num_hidden_layers=1, num_attention_heads=1)).save_pretrained(
        tmp_path / "plain"
    )
    with pytest.raises(InputError, match="ForDepthEstimation"):
        load_guide(tmp_path / "plain")
