"""Neighbours: exact search, exclusion, the sequence, null condition; training and export of such a model."""

import pytest
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL, UNet2DConditionModel
from noiseworks.core.errors import InputError
from noiseworks.ldm.conditioning.retrieval import NeighborConditioner, NeighborIndex
from noiseworks.ldm.conversion import pipelines
from noiseworks.ldm.conversion.export import export_diffusers
from noiseworks.ldm.conversion.originals import convert_conditioner
from noiseworks.ldm.diffusion.objective import make_scheduler
from noiseworks.ldm.diffusion.samplers import SampleSettings
from noiseworks.ldm.diffusion.sampling import sample
from noiseworks.ldm.diffusion.trainer import LatentDiffusionTrainer


def normal(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("chunk", [1, 7, 2**24])
def test_search_equals_brute_force_in_every_chunking(monkeypatch, chunk):
    monkeypatch.setattr("noiseworks.ldm.conditioning.retrieval._CHUNK_ELEMENTS", chunk)
    database, queries = 3 * normal(50, 8), normal(11, 8, seed=1)
    found = NeighborIndex(database).search(queries, 4)
    for row, query in enumerate(queries):
        cosines = torch.tensor([F.cosine_similarity(query, entry, dim=0) for entry in database])
        expected = cosines.argsort(descending=True)[:4]
        assert torch.equal(found.ids[row], expected)
        torch.testing.assert_close(found.similarity[row], cosines[expected])
        torch.testing.assert_close(found.embeddings[row], F.normalize(database[expected], dim=1))


def test_an_image_is_not_its_own_neighbour():
    database, itself = normal(20, 8), torch.arange(20)
    index = NeighborIndex(database)
    assert torch.equal(index.search(database, 1).ids[:, 0], itself)
    others = index.search(database, 19, exclude=itself).ids
    assert not (others == itself[:, None]).any()
    assert torch.equal(others.sort(dim=1).values[3], torch.tensor([i for i in range(20) if i != 3]))


def test_the_query_can_come_first():
    index, queries = NeighborIndex(normal(20, 8)), 5 * normal(2, 8, seed=1)
    sequence = index.sequence(queries, 3, with_query=True)
    torch.testing.assert_close(sequence[:, 0], F.normalize(queries, dim=1))
    assert torch.equal(sequence[:, 1:], index.sequence(queries, 3))


def test_dropped_rows_are_zero():
    rows = normal(2, 3, 8)
    condition = NeighborConditioner(8)({"neighbors": rows}, torch.tensor([True, False]))
    assert torch.equal(condition.crossattn[0], torch.zeros(3, 8))
    assert torch.equal(condition.crossattn[1], rows[1])


def test_saved_database_finds_the_same(tmp_path):
    index = NeighborIndex(normal(20, 8))
    index.save_pretrained(tmp_path / "index")
    loaded = NeighborIndex.from_pretrained(tmp_path / "index")
    assert torch.equal(loaded.search(normal(3, 8, seed=2), 5).ids, index.search(normal(3, 8, seed=2), 5).ids)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: NeighborIndex(torch.zeros(3)), "a database is"),
        (lambda: NeighborIndex(torch.zeros(3, 2)), "embedding 0 is zero"),
        (lambda: NeighborIndex(torch.ones(3, 2)).search(torch.ones(1, 2), 4), "k must be"),
        (lambda: NeighborIndex(torch.ones(3, 2)).search(torch.ones(1, 2), 3, torch.tensor([0])), "k must be"),
        (lambda: NeighborIndex(torch.ones(3, 2)).search(torch.ones(1, 5), 1), r"queries must be \[B, 2\]"),
        (lambda: NeighborConditioner(4)({"neighbors": torch.ones(1, 2, 3)}), r"must be \[B, L, 4\]"),
    ],
)
def test_what_does_not_fit_is_refused(call, words):
    with pytest.raises(InputError, match=words):
        call()


def test_a_model_of_neighbours_learns_samples_and_comes_back(tmp_path):
    """The neighbours say the sign of the latents, and samples have it."""
    torch.manual_seed(0)
    unet = UNet2DConditionModel(
        sample_size=4,
        in_channels=2,
        out_channels=2,
        block_out_channels=(16, 16),
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        layers_per_block=1,
        cross_attention_dim=8,
        attention_head_dim=2,
        norm_num_groups=8,
    )
    blocks = {"down_block_types": ("DownEncoderBlock2D",) * 2, "up_block_types": ("UpDecoderBlock2D",) * 2}
    vae = AutoencoderKL(block_out_channels=(8, 8), norm_num_groups=4, latent_channels=2, **blocks)
    schedule = make_scheduler(prediction_type="sample")
    module = LatentDiffusionTrainer(
        unet, vae, NeighborConditioner(8), schedule, scale_factor=1.0, ema_decay=0.0
    )
    signs = torch.where(torch.arange(32) % 2 == 0, 1.0, -1.0)
    index = NeighborIndex(signs[:, None] * torch.ones(8) + 0.3 * normal(32, 8, seed=3))
    rows = index.sequence(index.embeddings, 2, exclude=torch.arange(32))
    batch = {"latents": signs.view(-1, 1, 1, 1).expand(32, 2, 4, 4), "neighbors": rows}
    optimizer = torch.optim.Adam(unet.parameters(), lr=1e-2)
    for step in range(60):
        generator = torch.Generator().manual_seed(step)
        optimizer.zero_grad()
        module.diffusion_loss(batch, generator, condition_drop=0.1)["loss"].backward()
        optimizer.step()
    module.update_ema()
    export_diffusers(module, tmp_path / "out")
    model = pipelines.load_model(tmp_path / "out")
    assert isinstance(model.conditioner, NeighborConditioner)
    settings = SampleSettings(num_inference_steps=10, guidance_scale=1.5)
    images = sample(model, {"neighbors": rows[:2]}, settings=settings)
    assert images.latents[0].mean() > 0.5
    assert images.latents[1].mean() < -0.5


def test_original_configuration_with_identity_and_cross_attention_means_neighbours():
    params = {
        "cond_stage_config": {"target": "torch.nn.Identity"},
        "unet_config": {"params": {"context_dim": 5}},
    }
    params["conditioning_key"] = "crossattn"
    conditioner = convert_conditioner({}, params, None, None)
    assert isinstance(conditioner, NeighborConditioner)
    assert conditioner.dim == 5
