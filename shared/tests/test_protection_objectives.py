from collections import Counter
from types import SimpleNamespace

import pytest
import torch
from noiseworks.core.errors import InputError, UnsupportedHostError
from noiseworks.kits.diffusers_hosts import tiny_pipeline
from noiseworks.kits.protection import (
    Budget,
    SampledImage,
    ScoreDistillation,
    Semantic,
    TargetLatent,
    host_of,
    projected_gradient,
    stripes,
)
from noiseworks.kits.protection.editors import Call, sdedit
from noiseworks.kits.protection.engine import streams
from noiseworks.kits.protection.hosts import Host
from torch import nn

GEN = streams(Budget(), 2)


class Linear(nn.Module):
    """A first stage z = W x of pixels, whose posterior has no spread."""

    dtype = torch.float64

    def __init__(self):
        super().__init__()
        self.weight = torch.randn(4, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        self.config = SimpleNamespace(latent_channels=4, scaling_factor=1.0, block_out_channels=(1,))

    def encode(self, x):
        mean = torch.einsum("kc,bchw->bkhw", self.weight, x)
        return SimpleNamespace(latent_dist=SimpleNamespace(mean=mean, std=torch.zeros_like(mean)))


class Denoiser(nn.Module):
    """eps = m z_t, with a weight to tell whether a backward pass reached it."""

    dtype = torch.float64

    def __init__(self, factor):
        super().__init__()
        self.factor = nn.Parameter(torch.tensor(factor, dtype=torch.float64))
        self.config = SimpleNamespace(in_channels=4, block_out_channels=(1,))

    def forward(self, x, t, return_dict=False):
        return (self.factor * x,)


def linear_host(factor):
    abar = torch.linspace(0.999, 0.01, 1000, dtype=torch.float64)
    scheduler = SimpleNamespace(alphas_cumprod=abar, config=SimpleNamespace(prediction_type="epsilon"))
    host = Host(Linear(), Denoiser(factor), scheduler, {}, {}, Counter())
    host.unet.requires_grad_(False)
    return host


IMAGES = torch.rand(2, 3, 4, 4, generator=torch.Generator().manual_seed(3), dtype=torch.float64)


def fresh():
    return streams(Budget(seed=7), 2)


def test_score_distillation_without_a_denoiser_is_minus_w_transposed_noise():
    host = linear_host(0.0)
    generators = fresh()
    found, _ = ScoreDistillation(host, direction=1, sample=False)(IMAGES, generators)
    again = fresh()
    for g in again:
        torch.randint(0, 1000, (1,), generator=g)
    noise = torch.stack([torch.randn(4, 4, 4, generator=g) for g in again]).double()
    # d/dx of z = W (2 x - 1) is 2 W; ascending, the engine descends the negative of r = -noise.
    torch.testing.assert_close(found, 2 * torch.einsum("kc,bkhw->bchw", host.vae.weight, noise))


def test_the_semantic_gradient_has_the_sign_of_score_distillation_for_a_linear_denoiser():
    host = linear_host(0.7)
    full, loss = Semantic(host, direction=1, sample=False)(IMAGES, fresh())
    short, value = ScoreDistillation(host, direction=1, sample=False)(IMAGES, fresh())
    assert torch.equal(full.sign(), short.sign())
    torch.testing.assert_close(loss, value)
    # L_S is the mean of 64 squares: its gradient is 2/64 times m sqrt(abar) times that of score distillation.
    steps = torch.cat([torch.randint(0, 1000, (1,), generator=g) for g in fresh()])
    factor = 2 / 64 * 0.7 * host.alphas_cumprod[steps].sqrt()
    torch.testing.assert_close(full, factor.view(-1, 1, 1, 1) * short, rtol=1e-10, atol=1e-12)


def test_score_distillation_with_a_perfect_denoiser_leaves_only_the_target():
    host = linear_host(0.0)
    host.predict = lambda noisy, steps, *rest, **more: host.true
    original = host.noised
    host.noised = lambda z, noise, steps: (setattr(host, "true", noise), original(z, noise, steps))[1]
    target = torch.zeros(1, 3, 4, 4, dtype=torch.float64)
    joint, _ = ScoreDistillation(host, target=target, sample=False)(IMAGES, fresh())
    alone, _ = TargetLatent(host, target, sample=False)(IMAGES, fresh())
    torch.testing.assert_close(joint, alone, rtol=1e-12, atol=1e-12)
    none, _ = ScoreDistillation(host, sample=False)(IMAGES, fresh())
    assert (none == 0).all()


def test_one_encoder_pass_for_score_and_target_equals_two():
    host = linear_host(0.4)
    target = torch.ones(1, 3, 4, 4, dtype=torch.float64)
    joint, _ = ScoreDistillation(host, -1, target, rate=5.0, sample=False)(IMAGES, fresh())
    score, _ = ScoreDistillation(host, -1, sample=False)(IMAGES, fresh())
    pull, _ = TargetLatent(host, target, sample=False)(IMAGES, fresh())
    torch.testing.assert_close(joint, 5 * score + pull, rtol=1e-9, atol=1e-9)


@pytest.fixture(scope="module")
def pipes():
    return {family: tiny_pipeline(family) for family in ("sd", "sd-inpaint", "sdxl")}


@pytest.mark.parametrize("family", ["sd", "sd-inpaint"])
def test_score_distillation_asks_the_denoiser_for_no_graph_and_the_encoder_paths_not_at_all(pipes, family):
    graphs = []

    def look(module, inputs, output):
        graphs.append(torch.is_grad_enabled() or output[0].requires_grad)

    with host_of(pipes[family]) as host:
        handle = host.unet.register_forward_hook(look)
        try:
            for objective, expected in (
                (TargetLatent(host), []),
                (ScoreDistillation(host), [False]),
                (ScoreDistillation(host, -1, stripes(16, 16)), [False]),
                (Semantic(host), [True]),
            ):
                graphs.clear()
                objective(torch.rand(2, 3, 16, 16), fresh())
                assert graphs == expected
        finally:
            handle.remove()


def backward_calls(host, objective):
    calls = []
    handle = host.unet.conv_in.register_full_backward_hook(lambda *a: calls.append(1))
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: (saved.append(t.numel()), t)[1], lambda t: t):
        objective(torch.rand(2, 3, 16, 16), fresh())
    handle.remove()
    return len(calls), sum(saved)


@pytest.mark.parametrize("family", ["sd", "sd-inpaint"])
def test_only_the_full_gradient_runs_backward_through_the_denoiser(pipes, family):
    with host_of(pipes[family]) as host:
        target = stripes(16, 16)
        kept = {}
        for objective in (
            TargetLatent(host, target),
            ScoreDistillation(host),
            ScoreDistillation(host, -1, target),
        ):
            host.passes.clear()
            calls, kept[type(objective).__name__] = backward_calls(host, objective)
            assert calls == 0
            assert host.passes["unet backward"] == 0
            assert host.passes["encoder"] == 2
        host.passes.clear()
        calls, full = backward_calls(host, Semantic(host))
        assert calls == 1
        assert host.passes["unet backward"] == 2
        assert kept["ScoreDistillation"] < full


def held(run):
    """Return what a call gives, and the most numbers that autograd held at once."""
    now, most = [0], [0]

    class Kept:
        def __init__(self, tensor):
            self.tensor = tensor
            now[0] += tensor.numel()
            most[0] = max(most[0], now[0])

        def __del__(self):
            now[0] -= self.tensor.numel()

    with torch.autograd.graph.saved_tensors_hooks(Kept, lambda kept: kept.tensor):
        return run(), most[0]


def test_two_stages_give_the_gradient_of_one_and_hold_less():
    pipe = tiny_pipeline("sd-inpaint")
    for module in (pipe.unet, pipe.vae, pipe.text_encoder):
        module.double()
    images, mask = torch.rand(2, 3, 16, 16, generator=fresh()[0]).double(), torch.zeros(2, 1, 16, 16)
    mask[..., 8:] = 1
    with host_of(pipe) as host:
        (one, whole), (two, least) = (
            held(lambda n=n: Semantic(host, 1, stripes(16, 16), mask=mask, two_stages=n)(images, fresh()))
            for n in (False, True)
        )
        _, encoder = held(lambda: TargetLatent(host, mask=mask)(images, fresh()))
    torch.testing.assert_close(two[0], one[0], rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(two[1], one[1])
    assert least < whole - 0.9 * encoder  # the smaller of the two graphs is never held beside the larger one


@pytest.mark.parametrize("family", ["sd", "sd-inpaint", "sdxl"])
def test_every_objective_runs_on_every_family_and_leaves_the_host_as_it_was(pipes, family):
    pipe = pipes[family]
    pipe.unet.train()
    needed = [p.requires_grad for p in pipe.unet.parameters()]
    images, mask = torch.rand(2, 3, 16, 16), torch.zeros(2, 1, 16, 16)
    mask[..., 8:] = 1
    with host_of(pipe, "a red circle") as host:
        made = [Semantic(host, mask=mask), ScoreDistillation(host, mask=mask), TargetLatent(host, mask=mask)]
        if family == "sd-inpaint":
            made.append(SampledImage(host, mask, steps=2, guidance_scale=2.0))
        for objective in made:
            found, value = objective(images, fresh())
            assert found.shape == images.shape
            assert value.shape == (2,)
            assert (found[..., 8:] == 0).all()
            assert found.abs().sum() > 0
    assert pipe.unet.training
    assert [p.requires_grad for p in pipe.unet.parameters()] == needed
    pipe.unet.eval()


def test_other_hosts_and_long_prompts_are_refused(pipes):
    with pytest.raises(InputError, match="tokens"), host_of(pipes["sd"], "red " * 200):
        pass
    with pytest.raises(UnsupportedHostError, match="Stable Diffusion"), host_of(tiny_pipeline("dit")):
        pass


def test_editors_of_few_steps_say_how_many_they_have(pipes):
    from diffusers import LCMScheduler

    pipe = pipes["sd"]
    own = pipe.scheduler
    pipe.scheduler = LCMScheduler.from_config(own.config, original_inference_steps=4)
    try:
        images = torch.rand(1, 3, 16, 16)
        with pytest.raises(InputError, match="schedule has 4 steps"):
            sdedit(pipe, images, ["red"], 0.5, Call(10))
        assert sdedit(pipe, images, ["red"], 0.5, Call(4, 1.0)).shape == images.shape
    finally:
        pipe.scheduler = own


def test_facts_of_the_schedule(pipes):
    with host_of(pipes["sd-inpaint"]) as host:
        assert host.first_timestep(4) == 751
        assert float(host.alphas_cumprod[751]) == pytest.approx(0.05571898, abs=1e-6)
        for step, value in ((0, 0.99915), (500, 0.2763325), (999, 0.0046601)):
            assert float(host.alphas_cumprod[step]) == pytest.approx(value, abs=1e-6)


@pytest.mark.parametrize(
    ("name", "offset", "more", "expected"),
    [
        ("DDIMScheduler", 1, {}, [751, 501, 251, 1]),
        ("PNDMScheduler", 1, {"skip_prk_steps": True}, [751, 501, 501, 251, 1]),
        ("DDIMScheduler", 0, {}, [750, 500, 250, 0]),
    ],
)
def test_the_first_of_four_steps_is_not_the_last_timestep(name, offset, more, expected):
    import diffusers

    betas = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
    scheduler = getattr(diffusers, name)(**betas, timestep_spacing="leading", steps_offset=offset, **more)
    host = Host(None, None, scheduler, {}, {})
    assert host.first_timestep(4) == expected[0]
    assert scheduler.timesteps.tolist() == expected


def test_checkpointing_of_the_users_pipeline_changes_no_gradient(pipes):
    pipe = pipes["sd"]
    with host_of(pipe) as host:
        plain, _ = Semantic(host)(torch.rand(2, 3, 16, 16, generator=fresh()[0]), fresh())
        pipe.unet.enable_gradient_checkpointing()
        pipe.vae.enable_gradient_checkpointing()
        try:
            other, _ = Semantic(host)(torch.rand(2, 3, 16, 16, generator=fresh()[0]), fresh())
        finally:
            pipe.unet.disable_gradient_checkpointing()
            pipe.vae.disable_gradient_checkpointing()
    torch.testing.assert_close(other, plain, rtol=1e-6, atol=1e-9)


def test_descending_the_target_lowers_it(pipes):
    with host_of(pipes["sd"]) as host:
        objective = TargetLatent(host, stripes(16, 16), sample=False)
        found = projected_gradient(torch.rand(2, 3, 16, 16), objective, Budget(16, 2, 12))
        assert found.history[-1] < found.history[0]
