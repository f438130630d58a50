"""The masks against the numbers of the released code's rule, and the routed block against its formula."""

import pytest
import torch
from noiseworks.core.errors import ArtifactError, InputError
from noiseworks.core.schedules import table_schedule
from noiseworks.dtr import (
    Routing,
    affinity,
    attach_routing,
    attaching,
    load_routed,
    route_mask,
    route_starts,
    save_routed,
)
from noiseworks.dtr.routing import route_block
from noiseworks.kits.backbones import DiT, DiTConfig, load_dit, sample, to_diffusers
from noiseworks.kits.backbones.sampling import spaced_timesteps

TIMES = [0, 250, 500, 600, 750, 900, 999]


def random_dit(**sizes) -> DiT:
    model = DiT(DiTConfig(**{"depth": 2, "width": 32, "heads": 4} | sizes)).eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name != "pos_embed":
                parameter.copy_(0.1 * torch.randn(parameter.shape, generator=generator))
    return model


def inputs():
    x = torch.randn(3, 1, 8, 8, generator=torch.Generator().manual_seed(1))
    return x, torch.tensor([0, 700, 999]), torch.tensor([0, 3, 10])


@pytest.mark.parametrize(
    ("channels", "n", "starts", "always", "first", "last", "total"),
    [
        (384, 307, [0, 0, 5, 10, 24, 51, 77], 230, 284, 2, 15401),
        (768, 614, [0, 1, 10, 20, 49, 101, 154], None, None, None, None),
        (1024, 819, [0, 1, 13, 27, 65, 135, 205], None, None, None, None),
        (1152, 921, [0, 1, 14, 30, 73, 152, 231], 690, 216, 1, 46249),
    ],
)
def test_windows_of_the_published_sizes(channels, n, starts, always, first, last, total):
    routing = Routing()
    found = route_starts(routing, channels)
    assert found[TIMES].tolist() == starts
    mask = route_mask(routing, channels, torch.arange(1000))
    assert routing.active(channels) == n
    assert (mask.sum(1) == n).all()
    steps = found.long().diff()
    assert (steps >= 0).all()
    assert found.numel() * found.element_size() <= 4096
    if always is not None:
        counts = [
            int(mask.all(0).sum()),
            int(mask[:, 0].sum()),
            int(mask[:, -1].sum()),
            int(found.long().sum()),
        ]
        assert counts == [always, first, last, total]
    if channels == 384:
        assert steps.max() == 1
        assert len(found.unique()) == 78


def test_windows_of_other_shapes():
    assert route_starts(Routing(alpha=1), 384)[[0, 250, 500, 750, 999]].tolist() == [0, 19, 39, 58, 77]
    assert route_starts(Routing(num_tasks=10), 10).tolist() == [0, 0, 0, 0, 0, 0, 0, 1, 1, 2]
    assert route_starts(Routing(2.0, 0.5, 8), 16).tolist() == [0, 0, 1, 1, 3, 4, 6, 8]
    assert route_starts(Routing(alpha=0), 10).unique().tolist() == [2]  # 0^0 = 1
    assert route_mask(Routing(beta=1.0), 7, torch.arange(1000)).all()
    # The product is cut off as it comes out in double precision.
    assert [Routing(beta=b).active(100) for b in (0.29, 0.57)] == [28, 56]


def test_affinity_counts_shared_channels_and_falls_with_distance():
    shared = affinity(Routing(), 384, torch.tensor(TIMES))
    assert shared[0].tolist() == [307 - start for start in (0, 0, 5, 10, 24, 51, 77)]
    assert torch.equal(shared, shared.T)


def test_random_masks_have_as_many_channels_and_differ_by_block_and_seed():
    routing, t = Routing(kind="random", routing_seed=3), torch.arange(1000)
    masks = [route_mask(routing, 40, t, block) for block in (0, 1)]
    assert all((mask.sum(1) == 32).all() for mask in masks)
    assert not torch.equal(*masks)
    assert torch.equal(masks[0], route_mask(Routing(kind="random", routing_seed=3), 40, t, 0))
    assert not torch.equal(masks[0], route_mask(Routing(kind="random", routing_seed=4), 40, t, 0))


def test_timesteps_between_rows_take_the_nearest_and_others_are_refused():
    routing = Routing()
    near = route_mask(routing, 384, torch.tensor([899.6, 1200.0, -3.0]))
    assert torch.equal(near, route_mask(routing, 384, torch.tensor([900, 999, 0])))
    for outside in (-1, 1000):
        with pytest.raises(InputError, match=f"0 to 999, got {outside}"):
            route_mask(routing, 384, torch.tensor([outside]))
    with pytest.raises(InputError, match="finite"):
        route_mask(routing, 384, torch.tensor([float("nan")]))
    with pytest.raises(InputError, match="leaves none"):
        route_mask(Routing(beta=0.01), 10, torch.tensor([0]))


def test_block_is_x_plus_block_of_masked_minus_masked_and_reaches_masked_channels():
    generator = torch.Generator().manual_seed(0)
    mix = torch.randn(6, 6, generator=generator, dtype=torch.float64)
    x = torch.randn(2, 3, 6, generator=generator, dtype=torch.float64, requires_grad=True)
    mask = torch.tensor([[1, 1, 1, 0, 0, 0], [0, 0, 1, 1, 1, 0]])

    def branch(x):
        return torch.tanh(x @ mix)

    out = route_block(x, mask, lambda x: x + branch(x))
    masked = x * mask[:, None]
    torch.testing.assert_close(out, x + (masked + branch(masked)) - masked)
    off = (out - x)[0, :, 3:]
    assert (off.abs() > 1e-3).all()  # what attention and MLP add is not masked
    (through,) = torch.autograd.grad((out - x).sum(), x, retain_graph=True)
    assert (through[mask[:, None].expand_as(x) == 0] == 0).all()
    (whole,) = torch.autograd.grad(out.sum(), x)
    assert (whole[mask[:, None].expand_as(x) == 0] == 1).all()


@pytest.mark.parametrize("kind", ["kit", "diffusers"])
def test_hosts_are_routed_by_the_timestep_of_each_sample(kind):
    model, (x, t, y) = random_dit(), inputs()
    host = model if kind == "kit" else to_diffusers(model).eval()

    def run(x, t, y):
        with torch.no_grad():
            return host(x, t, y) if kind == "kit" else host(x, timestep=t, class_labels=y).sample

    plain, names = run(x, t, y), list(host.state_dict())
    with attach_routing(host, Routing(beta=1.0)):
        assert torch.equal(run(x, t, y), plain)
    with attach_routing(host):
        routed = run(x, t, y)
        assert list(host.state_dict()) == names
        alone = torch.cat([run(x[i : i + 1], t[i : i + 1], y[i : i + 1]) for i in range(3)])
        torch.testing.assert_close(alone, routed)
        assert torch.equal(run(x, t.float(), y), run(x, t, y))
        with pytest.raises(InputError, match="already"):
            attach_routing(host)
        with pytest.raises(InputError, match="0 to 999"):
            run(x, t + 1, y)
    assert not torch.equal(routed, plain)
    assert torch.equal(run(x, t, y), plain)


def test_fresh_blocks_route_to_their_input():
    model, (x, t, y) = DiT(DiTConfig(depth=2, width=32, heads=4)), inputs()
    seen = []
    model.final_layer.register_forward_pre_hook(lambda layer, inputs: seen.append(inputs[0]))
    with attach_routing(model), torch.no_grad():
        model(x, t, y)
        assert torch.equal(seen[0], model.tokens(x))


def test_spaced_sampling_visits_original_rows():
    times = spaced_timesteps(1000, 250)
    assert (times[0], times[-1], len(set(times))) == (999, 0, 250)


def test_a_guided_sampler_routes_by_original_rows_and_both_halves_alike(monkeypatch):
    rows = []

    def recorded(routing, channels, timesteps, block):
        rows.append((block, timesteps.tolist()))
        return route_mask(routing, channels, timesteps, block)

    monkeypatch.setattr(attaching, "route_mask", recorded)
    model = random_dit()
    with attach_routing(model), torch.no_grad():
        sample(model, torch.tensor([1, 2, 3]), table_schedule("cosine"), steps=4, guidance_scale=1.5)
    assert rows == [(block, 6 * [t]) for t in (999, 666, 333, 0) for block in (0, 1)]


def test_a_routed_checkpoint_is_refused_without_its_routing(tmp_path):
    model, (x, t, y) = random_dit(), inputs()
    save_routed(tmp_path / "model", model, Routing(beta=0.5), "linear")
    with pytest.raises(ArtifactError, match="noiseworks-dtr"):
        load_dit(tmp_path / "model")
    loaded, routing, schedule = load_routed(tmp_path / "model")
    assert (routing, schedule) == (Routing(beta=0.5), "linear")
    with attach_routing(model, routing), torch.no_grad():
        assert torch.equal(loaded(x, t, y), model(x, t, y))
