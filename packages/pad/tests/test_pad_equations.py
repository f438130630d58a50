"""Each equation against its closed form or the authors' numbers, and what must not depend on what."""

import math

import pytest
import torch
import torch.nn.functional as F
from noiseworks.core.errors import InputError
from noiseworks.core.grids import timesteps
from noiseworks.kits.backbones.dit import DiT
from noiseworks.kits.backbones.options import DiTConfig
from noiseworks.pad import (
    Fitting,
    Modality,
    PADTransformer,
    Sampling,
    from_dit,
)
from noiseworks.pad.diffusion import bits, error_weights, losses, noised, sample, schedule
from noiseworks.pad.modalities import world
from noiseworks.pad.transformer import Prediction

DEPTH = (8, 4)


def network(depth=None, *, isolated=True, predict=True, tokens=1, **how):
    """Return a network of 8 x 8 latents, k = 3 and poses of 4 entries, as the specification's check has it."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        parts = world(
            frames=3,
            patch=2,
            image=(4, 8),
            pose=(12, 4),
            depth=depth,
            isolated=isolated,
            predict=predict,
            tokens=tokens,
        )
        return PADTransformer(parts, width=32, depth=2, heads=2, text_width=5, **how)


def opened(net):
    """Give every parameter another value, so that no gate is closed."""
    generator = torch.Generator().manual_seed(1)
    for parameter in net.parameters():
        parameter.data = parameter + 0.2 * torch.randn(parameter.shape, generator=generator)
    return net.eval()


def inputs(net, rows=2, seed=0):
    generator = torch.Generator().manual_seed(seed)

    def draw(kind):
        return {
            one.name: torch.randn(rows, *one.shape(getattr(one, kind)), generator=generator)
            for one in net.modalities
            if getattr(one, kind)
        }

    noisy, clean = draw("noisy"), draw("clean")
    return noisy, clean, torch.tensor([3, 800])[:rows], torch.randn(rows, 5, generator=generator)


# --- Tokens and heads ---


def test_sizes_of_tokens_embeddings_and_heads():
    net = network(DEPTH)
    assert [one.tokens for one in net.modalities] == [16, 1, 4]
    assert net.embedders["rgb"].proj.weight.shape == (32, 16, 2, 2)
    assert net.embedders["action"].proj.weight.shape == (32, 16)
    assert (net.heads["rgb"].linear.out_features, net.heads["action"].linear.out_features) == (96, 24)
    found = net(*inputs(net))
    assert {name: tuple(one.value.shape) for name, one in found.items()} == {
        "rgb": (2, 12, 8, 8),
        "action": (2, 12),
        "depth": (2, 3, 8, 8),
    }
    full = world(frames=3, patch=2, image=(4, 32), pose=(12, 4), depth=(32, 8))
    assert [one.tokens for one in full] == [256, 1, 16]


def test_at_the_beginning_heads_are_zero_and_the_references_action_head_is_not():
    ours, theirs = (network(zero_heads=flag) for flag in (True, False))
    found = ours(*inputs(ours))
    assert all(not part.any() for one in found.values() for part in one)
    found = theirs(*inputs(theirs))
    assert not found["rgb"].value.any()
    assert found["action"].value.any()


def test_images_do_not_see_poses_and_poses_see_images():
    net = opened(network(DEPTH))
    noisy, clean, t, text = inputs(net)
    before = net(noisy, clean, t, text)
    other = net(noisy | {"action": noisy["action"] + 1, "depth": noisy["depth"] - 1}, clean, t, text)
    assert torch.equal(before["rgb"].value, other["rgb"].value)
    assert not torch.equal(before["action"].value, other["action"].value)
    other = net(noisy | {"rgb": noisy["rgb"] + 1}, clean, t, text)
    assert not torch.equal(before["action"].value, other["action"].value)
    all_see = opened(network(DEPTH, isolated=False))
    disturbed = noisy | {"action": noisy["action"] + 1}
    assert not torch.equal(
        all_see(noisy, clean, t, text)["rgb"].value, all_see(disturbed, clean, t, text)["rgb"].value
    )


def test_attention_in_groups_is_attention_with_the_references_dense_mask():
    net = opened(network(DEPTH)).double()
    attention, x = (
        net.blocks[0].attn,
        torch.randn(2, 21, 32, generator=torch.Generator().manual_seed(0)).double(),
    )
    mask = torch.ones(21, 21, dtype=torch.bool)
    mask[:16, 16:] = False
    q, k, v = attention.qkv(x).unflatten(-1, (3, 2, -1)).permute(2, 0, 3, 1, 4)
    dense = F.scaled_dot_product_attention(q, k, v, attn_mask=mask).transpose(1, 2).flatten(2)
    torch.testing.assert_close(attention(x), attention.proj(dense))


def test_the_present_beside_what_is_noisy_is_one_map_of_both():
    net = opened(network()).double()
    noisy, clean, _, _ = inputs(net)
    for name, layer in net.embedders.items():
        joined = torch.cat((noisy[name], clean[name]), dim=1).double()
        whole = layer.proj(joined)
        whole = whole.flatten(2).transpose(1, 2) if name == "rgb" else whole[:, None]
        parts = layer.noisy(noisy[name].double()) + layer.clean(clean[name].double())
        torch.testing.assert_close(parts, whole + layer.positions)


def test_a_stem_sees_around_each_patch_and_the_whole_picture_for_vectors():
    parts = world(frames=1, patch=4, image=(3, 32), pose=(4, 2), depth=(32, 8))
    net = opened(PADTransformer(parts, width=16, depth=1, heads=2, text_width=5, stem=2))
    noisy, clean, t, text = inputs(net)
    before = net.embed(clean)
    picture = clean["rgb"].clone()
    picture[:, :, 0, 0] += 1
    with torch.no_grad():
        net.embedders["rgb"].proj.weight.zero_()  # what is left of the picture came through the stem
        changed = [net.embed(clean | {"rgb": one})["rgb"] for one in (clean["rgb"], picture)]
    moved = (changed[0] - changed[1]).abs().amax(2)[0].unflatten(0, (8, 8)) > 0
    assert moved[:2, :2].all()
    assert not moved[3:].any()
    assert not moved[:, 3:].any()
    after = net.embed(clean | {"rgb": picture})
    assert not torch.equal(before["action"], after["action"])
    assert torch.equal(before["depth"], after["depth"])
    found = net(noisy, clean, t, text)
    other = net(noisy | {"action": noisy["action"] + 1}, clean | {"action": clean["action"] + 1}, t, text)
    assert torch.equal(found["rgb"].value, other["rgb"].value)
    with pytest.raises(InputError, match="multiple of 4, got 2"):
        network(stem=2)


def test_tokens_that_a_sample_lacks_are_seen_by_none():
    net = opened(network(DEPTH, isolated=False))
    noisy, clean, t, text = inputs(net)
    present = {"action": torch.tensor([True, False])}
    before = net(noisy, clean, t, text, present)
    after = net(noisy | {"action": noisy["action"] + 5}, clean, t, text, present)
    assert torch.equal(before["rgb"].value[1], after["rgb"].value[1])
    assert not torch.equal(before["rgb"].value[0], after["rgb"].value[0])


def test_positions_of_depth_are_the_images_every_four():
    parts = world(frames=3, patch=2, image=(4, 32), pose=(12, 4), depth=(32, 8))
    net = PADTransformer(parts, width=8, depth=1, heads=2, text_width=5)
    image = net.embedders["rgb"].positions[0].unflatten(0, (16, 16))
    assert torch.equal(net.embedders["depth"].positions[0], image[::4, ::4].flatten(0, 1))
    assert torch.equal(net.embedders["action"].positions[0, 0], torch.tensor([0.0] * 4 + [1.0] * 4))


def test_several_pose_tokens_hold_a_frame_each():
    net = opened(network(tokens=3))
    noisy, clean, *_ = inputs(net)
    assert net.embedders["action"].proj.weight.shape == (32, 4)
    assert "action" not in clean
    tokens = net.embedders["action"].noisy(noisy["action"])
    torch.testing.assert_close(
        tokens[:, 1], F.linear(noisy["action"][:, 4:8], net.embedders["action"].proj.weight)
    )


def test_an_image_transformers_weights_give_every_frame_what_they_give_an_image():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        dit = opened(DiT(DiTConfig(depth=2, width=32, heads=2, patch=2, channels=4, learn_sigma=True)))
    dit.y_embedder.embedding_table.weight.data.zero_()  # the text begins at nothing
    image, t = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0)), torch.tensor([3, 800])
    net = network()
    dit.pos_embed.data = net.embedders["rgb"].positions  # a fixed table, which was moved as well
    noisy, clean, _, text = inputs(net)
    noisy["rgb"] = image.repeat(1, 3, 1, 1)
    found = from_dit(dit, net, divide=True)(noisy, clean, t, text)["rgb"]
    epsilon, variance = dit(image, t, torch.zeros(2, dtype=torch.long)).split(4, dim=1)
    for frame in range(3):
        part = slice(4 * frame, 4 * frame + 4)
        torch.testing.assert_close(found.value[:, part], epsilon, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(found.variance[:, part], variance, atol=1e-5, rtol=1e-5)
    plain, divided = (from_dit(dit, network(), divide=flag).embedders["rgb"] for flag in (False, True))
    torch.testing.assert_close(
        plain.noisy(noisy["rgb"]), 3 * divided.noisy(noisy["rgb"]), rtol=1e-5, atol=1e-5
    )
    assert not plain.proj.weight[:, 12:].any()
    with pytest.raises(InputError, match="blocks of width 16"):
        from_dit(DiT(DiTConfig(depth=2, width=16, heads=2, patch=2, channels=4, learn_sigma=True)), network())
    with pytest.raises(InputError, match="patches of 4"):
        from_dit(DiT(DiTConfig(depth=2, width=32, heads=2, patch=4, channels=4)), network())


def test_checkpointing_changes_no_gradient():
    grads = []
    for flag in (False, True):
        net = opened(network()).train()
        net.gradient_checkpointing = flag
        noisy, clean, t, text = inputs(net)
        sum(one.value.square().mean() for one in net(noisy, clean, t, text).values()).backward()
        grads.append([p.grad for p in net.parameters() if p.grad is not None])
    assert all(torch.equal(a, b) for a, b in zip(*grads, strict=True))


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: Modality("rgb", "grid", 3, 3, size=10, patch=4), "multiple of its patch"),
        (lambda: Modality("rgb", "grid", 0, 0), "channels"),
        (lambda: Modality("pose", "vector", 10, 0, split=3), "3 tokens"),
        (lambda: PADTransformer((Modality("a", "vector", 3, 3),), width=8, depth=1, heads=2), "grid"),
        (
            lambda: PADTransformer((Modality("a", "grid", 3, 3, sees=("b",)),), width=8, depth=1, heads=2),
            "sees b",
        ),
    ],
)
def test_modalities_that_do_not_fit_are_refused(make, words):
    with pytest.raises(InputError, match=words):
        make()


def test_depth_without_a_model_for_it_and_the_other_way_round_are_refused():
    net, deep = network(), network(DEPTH)
    noisy, clean, t, text = inputs(deep)
    with pytest.raises(InputError, match="no noisy depth"):
        net(noisy, clean, t, text)
    noisy, clean, t, text = inputs(net)
    with pytest.raises(InputError, match="needs the noisy depth"):
        deep(noisy, clean, t, text)
    with pytest.raises(InputError, match="text embeddings"):
        net(noisy, clean, t, text[:, :4])


def test_what_tokens_say_has_no_more_dimensions_than_they_have_channels():
    """So the noise of 48 numbers cannot be told with 8 channels, whatever the weights."""
    parts = world(frames=3, patch=2, image=(4, 8), pose=(12, 4))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = opened(PADTransformer(parts, width=8, depth=2, heads=2, text_width=5, learn_sigma=False))
    noisy, clean, _, text = inputs(net, rows=20)
    said = net(noisy, clean, torch.full((20,), 500), text[:1].expand(20, -1))["rgb"].value
    rows = said.unflatten(3, (4, 2)).unflatten(2, (4, 2)).permute(0, 2, 4, 1, 3, 5).reshape(320, 48)
    assert 4 < torch.linalg.matrix_rank((rows - rows.mean(0)).double(), rtol=1e-4) <= 8


# --- Noise and loss ---


def test_levels_and_grids_of_the_reference():
    betas, bars = schedule().betas, schedule().alphas_cumprod
    assert betas[[0, 499, 999]].tolist() == pytest.approx([1e-4, 0.01004004, 0.02])
    assert bars[[0, 99, 499, 999]].tolist() == pytest.approx(
        [0.9999, 0.897018, 0.0785872, 4.03583e-5], rel=2e-6
    )
    fifty, more = (timesteps("linspace", 1000, n).flip(0).tolist() for n in (50, 75))
    assert fifty[:5] + fifty[-3:] == [0, 20, 41, 61, 82, 958, 979, 999]
    assert more[:5] + more[-3:] == [0, 14, 27, 40, 54, 972, 986, 999]


def test_the_bound_of_a_network_that_says_nothing():
    t = torch.tensor([0, 10, 500, 999]).repeat_interleave(200)
    x0, noise = torch.zeros(800, 48), torch.randn(800, 48, generator=torch.Generator().manual_seed(0))
    x = noised({"a": x0}, {"a": noise}, t)["a"]
    found = (
        bits(x0, x, t, Prediction(torch.zeros_like(x), torch.zeros_like(x))).unflatten(0, (4, 200)).mean(1)
    )
    assert found[0] == pytest.approx(2.4, abs=0.3)
    assert found[1] == pytest.approx(0.11, abs=0.03)
    assert float(found[2:].max()) < 0.02
    net = network()
    noisy, clean, _, text = inputs(net, rows=40)
    zero = {name: torch.zeros_like(value) for name, value in noisy.items()}
    t = torch.full((40,), 700)
    first = losses(net, zero, clean, text, t, noisy)
    assert float(first["rgb"].detach().mean()) == pytest.approx(1, abs=0.05)


def test_the_bound_is_the_divergence_of_two_normals_and_teaches_no_mean():
    generator = torch.Generator().manual_seed(0)
    x0, noise, epsilon, variance = torch.randn(4, 1, 3, generator=generator)
    epsilon.requires_grad_(), variance.requires_grad_()
    t = torch.tensor([400])
    x = noised({"a": x0}, {"a": noise}, t)["a"]
    found = bits(x0, x, t, Prediction(epsilon, variance))
    bar, before = schedule().alphas_cumprod[[400, 399]].tolist()
    beta = 1 - bar / before
    small = beta * (1 - before) / (1 - bar)
    spread = (small ** ((1 - variance) / 2) * beta ** ((1 + variance) / 2)).sqrt()
    shift = math.sqrt(before) * beta / (1 - bar) * (x - math.sqrt(1 - bar) * epsilon) / math.sqrt(bar)
    rest = math.sqrt(bar / before) * (1 - before) / (1 - bar) * x
    true = torch.distributions.Normal(math.sqrt(before) * beta / (1 - bar) * x0 + rest, math.sqrt(small))
    expected = torch.distributions.kl_divergence(true, torch.distributions.Normal(shift + rest, spread))
    torch.testing.assert_close(found, expected.mean(1) / math.log(2), rtol=1e-4, atol=1e-5)
    found.sum().backward()
    assert epsilon.grad is None
    assert variance.grad.any()


def test_a_sample_without_poses_moves_no_pose_weight():
    net = opened(network(DEPTH)).train()
    noisy, clean, t, text = inputs(net)
    present = {name: torch.tensor([False, False]) for name in ("action", "depth")}
    found = losses(net, noisy, clean, text, t, noisy, present=present)
    sum(one.sum() for one in found.values()).backward()
    for part in ("heads.action", "heads.depth", "embedders.action", "embedders.depth"):
        grads = [p.grad for name, p in net.named_parameters() if name.startswith(part)]
        assert not any(grad is not None and grad.any() for grad in grads), part
    assert net.heads["rgb"].linear.weight.grad.any()


def test_a_network_of_clean_futures_is_judged_by_them_and_by_the_noise_that_they_imply():
    net = opened(network(prediction="sample"))
    noisy, clean, t, text = inputs(net)
    noise = {name: torch.randn_like(value) for name, value in noisy.items()}
    found = losses(net, noisy, clean, text, t, noise, balanced=True)
    seen = noised(noisy, noise, t)
    for name, one in net(seen, clean, t, text).items():
        error = (one.value - noisy[name]).square().flatten(1).mean(1)
        level, shape = schedule().level(t), (2,) + (1,) * (one.value.ndim - 1)
        implied = (seen[name] - level.alpha.view(shape) * one.value) / level.sigma.view(shape)
        bound = bits(noisy[name], seen[name], t, Prediction(implied.float(), one.variance))
        torch.testing.assert_close(found[name], error + bound, rtol=1e-3, atol=1e-4)


def test_balanced_weights_and_the_ramp():
    weights = error_weights()
    assert float(weights.mean()) == pytest.approx(1, abs=1e-5)
    ratio = float(weights[400] / weights[300])
    assert ratio == pytest.approx(
        math.exp(-0.5 * float(schedule().log_snr(400) - schedule().log_snr(300))), rel=1e-5
    )
    linear, step = (Fitting(action_weight=2, ramp=ramp, ramp_steps=100) for ramp in ("linear", "step"))
    assert [linear.action_at(s) for s in (0, 50, 100, 500)] == [0, 1, 2, 2]
    assert [step.action_at(s) for s in (0, 99, 100)] == [0, 0, 2]


# --- Sampling ---


class ExactGaussians:
    """The exact noise, or what is clean, of independent normals, one mean and deviation a modality."""

    def __init__(self, moments, prediction):
        self.moments, self.prediction = moments, prediction
        self.modalities = tuple(Modality(name, "vector", 1, 0, bound=None) for name in moments)

    def check(self, *given):
        pass

    def embed(self, clean):
        return None

    def allowed(self, present):
        return None

    def modulation(self, t, text):
        self.times = t.flatten()
        return self

    def at(self, step):
        return self.times[step]

    def denoise(self, x, base, t, allowed):
        level = schedule().level(t)
        a, s = float(level.alpha), float(level.sigma)
        found = {}
        for name, (mean, std) in self.moments.items():
            away = (x[name] - a * mean) / (a**2 * std**2 + s**2)
            clean = mean + a * std**2 * away
            found[name] = Prediction(s * away if self.prediction == "epsilon" else clean, None)
        return found


@pytest.mark.parametrize("prediction", ["epsilon", "sample"])
@pytest.mark.parametrize("solver", ["ddim", "ddpm"])
def test_independent_gaussians_come_out_of_one_joint_process(solver, prediction):
    moments = {"rgb": (0.5, 0.2), "action": (-0.3, 0.6)}
    text, generator = torch.zeros(20000, 1), torch.Generator().manual_seed(0)
    found = sample(ExactGaussians(moments, prediction), {}, text, Sampling(solver, 500), generator)
    for name, (mean, std) in moments.items():
        assert float(found[name].mean()) == pytest.approx(mean, abs=0.02)
        assert float(found[name].std()) == pytest.approx(std, rel=0.05)
    assert abs(float(torch.corrcoef(torch.cat(list(found.values()), 1).T)[0, 1])) < 0.03


def test_a_row_depends_on_its_own_generator_alone_and_ddim_on_its_start():
    net = opened(network())
    _, clean, _, text = inputs(net)
    for solver in ("ddim", "ddpm"):
        both = sample(
            net, clean, text, Sampling(solver, 4), [torch.Generator().manual_seed(i) for i in (1, 2)]
        )
        alone = sample(
            net,
            {name: value[1:] for name, value in clean.items()},
            text[1:],
            Sampling(solver, 4),
            [torch.Generator().manual_seed(2)],
        )
        for name in both:
            torch.testing.assert_close(both[name][1:], alone[name], rtol=1e-4, atol=1e-4)
    unclipped = sample(net, clean, text, Sampling(clip=False), torch.Generator().manual_seed(0))
    clipped = sample(net, clean, text, Sampling(), torch.Generator().manual_seed(0))
    assert float(clipped["rgb"].abs().max()) <= 1 < float(unclipped["rgb"].abs().max())


def test_a_plan_computed_in_advance_is_the_plan_computed_step_by_step():
    net = opened(network())
    noisy, clean, _, text = inputs(net)
    grid = torch.tensor([900, 30])
    modulation, base = net.modulation(grid[:, None], text), net.embed(clean)
    for step, t in enumerate(grid.tolist()):
        found = net.denoise(noisy, base, modulation.at(step))
        whole = net(noisy, clean, torch.full((2,), t), text)
        for name, one in whole.items():
            torch.testing.assert_close(found[name].value, one.value, rtol=1e-4, atol=1e-5)
