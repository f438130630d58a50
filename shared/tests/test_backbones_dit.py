"""The DiT of the kit: released layout, diffusers' class, hooks under gradient checkpointing, labels."""

import pytest
import torch
from noiseworks.core.artifacts import save_artifact
from noiseworks.core.errors import ArtifactError, InputError, UnsupportedHostError
from noiseworks.core.schedules import table_schedule
from noiseworks.kits.backbones import (
    DiT,
    DiTConfig,
    around_blocks,
    drop_labels,
    fit_denoiser,
    from_diffusers,
    held_out_loss,
    load_dit,
    load_network,
    match_original,
    original_keys,
    sample,
    save_dit,
    tie_embedders,
    to_diffusers,
)
from noiseworks.kits.backbones.conversion import diffusers_keys, load_original
from noiseworks.kits.backbones.options import Recipe
from torch import nn
from torch.utils.checkpoint import checkpoint


def random_dit(seed: int = 0, **sizes) -> DiT:
    """A DiT whose weights are all N(0, 0.1²), so that no gate is shut."""
    config = {"depth": 2, "width": 32, "heads": 4, "image_size": 8, "channels": 4, "classes": 5}
    model = DiT(DiTConfig(**config | {"learn_sigma": True} | sizes)).eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name != "pos_embed":
                parameter.copy_(0.1 * torch.randn(parameter.shape, generator=generator))
    return model


def inputs(batch: int = 4, channels: int = 4):
    x = torch.randn(batch, channels, 8, 8, generator=torch.Generator().manual_seed(1))
    return x, torch.tensor([0, 10, 500, 999])[:batch], torch.tensor([0, 3, 5, 1])[:batch]


def out_of(host, x, t, y):
    return host(x, timestep=t, class_labels=y).sample


def test_published_sizes_have_their_numbers_of_parameters():
    for name, millions in {"S/2": 33.0, "B/2": 130.5, "L/2": 458.1, "XL/2": 675.1}.items():
        config = DiTConfig.named(name, image_size=32, channels=4, classes=1000, learn_sigma=True)
        with torch.device("meta"):
            found = sum(p.numel() for p in DiT(config).parameters())
        assert round(found / 1e6, 1) == millions, name
    with pytest.raises(InputError, match="XXL"):
        DiTConfig.named("XXL/2")


def test_round_trip_to_diffusers_is_strict_and_outputs_are_bit_equal():
    model = random_dit()
    host = to_diffusers(model).eval()
    x, t, y = inputs()
    with torch.no_grad():
        assert torch.equal(out_of(host, x, t, y), model(x, t, y))
    back = from_diffusers(host)
    for name, tensor in model.state_dict().items():
        assert torch.equal(back.state_dict()[name], tensor), name
    assert torch.equal(host.pos_embed.pos_embed, model.pos_embed)
    stock = {key: value for key, value in host.state_dict().items() if key != "pos_embed.pos_embed"}
    assert diffusers_keys(original_keys(stock)).keys() == stock.keys()


def test_stock_frequencies_and_epsilon_are_what_differs():
    model, (x, t, y) = random_dit(), inputs()
    host = to_diffusers(model).eval()
    for block in host.transformer_blocks:
        block.norm1.emb.time_proj.downscale_freq_shift = 1
    with torch.no_grad():
        far = (out_of(host, x, t, y) - model(x, t, y)).abs().amax((1, 2, 3))
        assert far[0] < 1e-4 < 1e-2 < far[2]
        assert torch.equal(out_of(match_original(host), x, t, y), model(x, t, y))


def test_tied_embedders_compute_the_same_with_the_released_number_of_parameters():
    model, (x, t, y) = random_dit(), inputs()
    host = tie_embedders(to_diffusers(model)).train()
    with torch.no_grad():
        assert torch.equal(
            out_of(host, x, t, y), model(x, t, y)
        )  # in training mode, too: no label is dropped
    own = sum(p.numel() for p in model.parameters()) - model.pos_embed.numel()
    assert sum(p.numel() for p in host.parameters()) == own
    untied = to_diffusers(model)
    with torch.no_grad():
        untied.transformer_blocks[1].norm1.emb.class_embedder.embedding_table.weight += 1
    with pytest.raises(InputError, match="block 0"):
        tie_embedders(untied)


def test_a_pipeline_that_was_saved_is_opened_by_the_stock_class(tmp_path):
    from diffusers import DiTTransformer2DModel

    model, (x, t, y) = random_dit(), inputs()
    to_diffusers(model).save_pretrained(tmp_path / "host")
    loaded = match_original(DiTTransformer2DModel.from_pretrained(tmp_path / "host")).eval()
    with torch.no_grad():
        assert torch.equal(out_of(loaded, x, t, y), model(x, t, y))


def test_checkpoints_of_other_sizes_are_refused():
    state = random_dit().state_dict()
    with pytest.raises(InputError, match="2 blocks, the model 3: set depth=2"):
        load_original(random_dit(depth=3), state)
    with pytest.raises(InputError, match="does not fit"):
        load_original(random_dit(width=64), state)
    with pytest.raises(InputError, match="no DiT blocks"):
        load_original(random_dit(), {"a": torch.zeros(1)})
    with pytest.raises(InputError, match=r"blocks\.0\.extra"):
        diffusers_keys(state | {"blocks.0.extra.weight": torch.zeros(1)})
    with pytest.raises(InputError, match="image_size must be a multiple of patch"):
        DiTConfig(image_size=9)
    with pytest.raises(InputError, match="multiple of heads"):
        DiTConfig(width=98)
    with pytest.raises(InputError, match="4 widths"):
        to_diffusers(random_dit(mlp=3.0))
    with pytest.raises(InputError, match=r"\(B, 4, 8, 8\)"):
        random_dit()(torch.zeros(1, 3, 8, 8), torch.zeros(1), torch.zeros(1, dtype=torch.long))


class Released(nn.Module):
    """A model in the released layout that checkpoints its blocks by itself, as people's own code does."""

    def __init__(self, inner: DiT) -> None:
        super().__init__()
        self.inner, self.blocks = inner, inner.blocks

    def forward(self, x, t, y):
        x, c = self.inner.tokens(x), self.inner.t_embedder(t) + self.inner.y_embedder(y)
        for block in self.blocks:
            x = checkpoint(block, x, c, use_reentrant=False)
        return self.inner.final_layer(x, c)


def scale_by_time(number, block, x, timesteps):
    return x + block(x * (1 + number + timesteps[:, None, None] / 1000)) - x


@pytest.mark.parametrize("kind", ["kit", "diffusers", "released"])
def test_hooks_survive_gradient_checkpointing(kind):
    model, (x, t, y) = random_dit(), inputs()
    host, run = model, lambda m: m(x, t, y)
    if kind == "diffusers":
        host, run = to_diffusers(model).eval(), lambda m: out_of(m, x, t, y)
    elif kind == "released":
        host = Released(model)
    before = run(host)

    def gradients(checkpointed: bool):
        host.zero_grad()
        if kind == "diffusers" and checkpointed:
            host.enable_gradient_checkpointing()
        elif kind == "kit":
            model.gradient_checkpointing = checkpointed
        out = run(host)
        out.square().sum().backward()
        return out.detach(), [p.grad.clone() for p in host.parameters() if p.grad is not None]

    with around_blocks(host, scale_by_time, "scale"):
        plain, grads = gradients(False)
        again, grads_again = gradients(True)
        assert not torch.equal(plain, before)
    assert torch.equal(plain, again)
    assert len(grads) == len(grads_again) > 10
    assert all(torch.equal(a, b) for a, b in zip(grads, grads_again, strict=True))
    if kind == "released":  # both passes were checkpointed: compare with the kit's own, which need not be
        with around_blocks(model, scale_by_time, "scale"):
            model.zero_grad()
            model(x, t, y).square().sum().backward()
        kept = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
        assert all(torch.equal(a, b) for a, b in zip(grads, kept.values(), strict=True))
    assert torch.equal(run(host), before)


def test_hosts_without_blocks_or_times_are_refused():
    with pytest.raises(UnsupportedHostError, match="transformer_blocks"):
        around_blocks(nn.Linear(2, 2), scale_by_time, "scale")
    timeless = nn.Module()
    timeless.blocks = nn.ModuleList([nn.Linear(2, 2)])
    timeless.forward = lambda x: x
    with pytest.raises(UnsupportedHostError, match="timestep"):
        around_blocks(timeless, scale_by_time, "scale")
    model, (x, t, _) = random_dit(), inputs()
    with around_blocks(model, scale_by_time, "scale"), pytest.raises(InputError, match="timesteps"):
        model.blocks[0](model.tokens(x), model.t_embedder(t))


def test_labels_are_dropped_once_for_all_blocks():
    labels = torch.zeros(10_000, dtype=torch.long)
    dropped = drop_labels(labels, 0.1, 7, torch.Generator().manual_seed(0))
    assert set(dropped.unique().tolist()) == {0, 7}
    assert float((dropped == 7).float().mean()) == pytest.approx(0.1, abs=0.01)


def test_noise_bank_is_the_same_for_all_models_and_batches():
    schedule, images = table_schedule("linear"), torch.randn(6, 4, 8, 8).clamp(-1, 1)
    labels = torch.arange(6) % 5

    class Silent(nn.Module):
        def __init__(self):
            super().__init__()
            self.p = nn.Parameter(torch.zeros(()))

        def forward(self, x, t, y):
            seen.append((t.clone(), x.clone()))
            return x * 0

    seen: list = []
    losses = held_out_loss(Silent(), images, labels, schedule, seed=3)
    assert losses.shape == (6, 10)
    assert losses.mean() == pytest.approx(1, abs=0.1)  # the noise's own variance
    assert all(bool(((part * 100 <= t) & (t < 100 * part + 100)).all()) for part, (t, _) in enumerate(seen))
    assert torch.equal(held_out_loss(Silent(), images, labels, schedule, seed=3, batch_size=4), losses)
    assert not torch.equal(held_out_loss(Silent(), images, labels, schedule, seed=4), losses)


def test_samples_depend_on_their_seeds_alone():
    model, schedule = random_dit(), table_schedule("cosine")
    labels = torch.tensor([1, 2, 3])
    together = sample(model, labels, schedule, steps=3, guidance_scale=1.5, seeds=[4, 5, 6])
    alone = sample(model, labels[1:2], schedule, steps=3, guidance_scale=1.5, seeds=[5])
    torch.testing.assert_close(alone[0], together[1])
    assert together.abs().max() <= 1
    no_label = sample(model, torch.full((3,), 5), schedule, steps=3, seeds=[4, 5, 6])
    weighted = sample(model, torch.full((3,), 5), schedule, steps=3, guidance_scale=4.0, seeds=[4, 5, 6])
    torch.testing.assert_close(no_label, weighted)  # guidance towards nothing is none


def test_a_saved_model_says_which_method_it_needs(tmp_path):
    model = random_dit()
    save_dit(tmp_path / "plain", model, schedule="cosine")
    loaded, config, _ = load_dit(tmp_path / "plain")
    assert config["schedule"] == "cosine"
    assert all(torch.equal(a, b) for a, b in zip(loaded.parameters(), model.parameters(), strict=True))
    save_dit(
        tmp_path / "routed",
        model,
        schedule="linear",
        methods={"dtr": {"beta": 0.8}},
        tensors={"dtr.a": torch.ones(1)},
    )
    with pytest.raises(ArtifactError, match="noiseworks-dtr"):
        load_dit(tmp_path / "routed")
    _, config, rest = load_dit(tmp_path / "routed", knows=("dtr",))
    assert config["methods"] == {"dtr": {"beta": 0.8}}
    assert rest["dtr.a"] == 1


def test_a_network_of_an_artifact_comes_back_frozen_and_what_does_not_fit_is_said(tmp_path):
    def make(config):
        return nn.Linear(config["inner"], 2).train(), config["about"]

    layer = nn.Linear(3, 2)
    save_artifact(tmp_path / "a", "x/layer", {"inner": 3, "about": "kept"}, layer.state_dict())
    loaded, about = load_network(tmp_path / "a", "x/layer", make)
    assert about == "kept"
    assert torch.equal(loaded.weight, layer.weight)
    assert not loaded.training
    assert not loaded.weight.requires_grad
    with pytest.raises(ArtifactError, match="x/other"):
        load_network(tmp_path / "a", "x/other", make)
    save_artifact(tmp_path / "b", "x/layer", {"inner": 4, "about": ""}, layer.state_dict())
    with pytest.raises(ArtifactError, match="another network"):
        load_network(tmp_path / "b", "x/layer", make)
    save_artifact(tmp_path / "c", "x/layer", {"inner": 3}, layer.state_dict())
    with pytest.raises(ArtifactError, match="no x/layer that this release reads: 'about'"):
        load_network(tmp_path / "c", "x/layer", make)


def test_a_training_that_fails_leaves_its_method_off():
    model = random_dit()

    def fails(module, t):
        raise ZeroDivisionError

    def attach(host):
        return around_blocks(host, lambda number, block, x, timesteps: block(x), "passes")

    with pytest.raises(ZeroDivisionError):
        fit_denoiser(
            model,
            torch.zeros(4, 4, 8, 8),
            torch.arange(4),
            Recipe(max_steps=1, batch_size=2, device="cpu"),
            extra_loss=fails,
            around=attach,
            progress=False,
        )
    attach(model).detach()  # a second one would be refused
