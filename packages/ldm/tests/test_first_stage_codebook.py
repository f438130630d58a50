"""Vector quantisation against brute force, closed forms and diffusers' own quantiser."""

import pytest
import torch
from diffusers.models.autoencoders.vae import VectorQuantizer
from noiseworks.ldm.first_stage import codebook as vq


def test_nearest_codes_equal_brute_force_in_any_chunk():
    generator = torch.Generator().manual_seed(0)
    latents, table = torch.randn(257, 5, generator=generator), torch.randn(33, 5, generator=generator)
    expected = (latents[:, None] - table).square().sum(-1).argmin(dim=1)
    for chunk in (None, 1, 100, 1000):
        assert torch.equal(vq.nearest_codes(latents, table, chunk), expected)


def test_the_lowest_index_wins_a_tie():
    table = torch.tensor([[1.0], [0.0], [0.0], [1.0]])
    assert vq.nearest_codes(torch.tensor([[0.0], [1.0], [0.5]]), table).tolist() == [1, 0, 0]


@pytest.mark.parametrize(("legacy", "gradient"), [(True, 0.4), (False, 0.1)])
def test_codebook_loss_of_the_one_dimensional_example(legacy, gradient):
    table = torch.tensor([[0.0], [1.0]], dtype=torch.float64)
    latent = torch.tensor([[0.2]], dtype=torch.float64, requires_grad=True)
    codes = vq.nearest_codes(latent, table)
    assert codes.tolist() == [0]
    loss = vq.codebook_loss(latent, table[codes], legacy=legacy)
    loss.backward()
    assert loss.item() == pytest.approx(0.05)
    # d/dz of (z - q)² is 2 · 0.2 = 0.4, times the weight of the commitment term
    assert latent.grad.item() == pytest.approx(gradient)


def test_straight_through_passes_the_gradient_unchanged():
    latents = torch.randn(4, 3, requires_grad=True)
    upstream = torch.randn(4, 3)
    quantised = torch.zeros(4, 3)
    out = vq.straight_through(latents, quantised)
    assert torch.allclose(out, quantised, atol=1e-6)
    out.backward(upstream)
    assert torch.equal(latents.grad, upstream)


def test_codes_and_legacy_loss_equal_the_quantiser_of_diffusers():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        quantizer = VectorQuantizer(16, 3, beta=0.25)
        latents = torch.randn(2, 3, 4, 4) / 16
    _, loss, (_, _, codes) = quantizer(latents)
    vectors, table = latents.movedim(1, -1).flatten(0, -2), quantizer.embedding.weight
    found = vq.nearest_codes(vectors, table)
    assert torch.equal(found, codes.flatten())
    torch.testing.assert_close(vq.codebook_loss(vectors, table[found]), loss)
    textbook = VectorQuantizer(16, 3, beta=0.25, legacy=False)
    textbook.load_state_dict(quantizer.state_dict())
    torch.testing.assert_close(vq.codebook_loss(vectors, table[found], legacy=False), textbook(latents)[1])


def test_perplexity_and_usage_of_known_counts():
    assert vq.perplexity(torch.tensor([5.0, 0, 0, 0])).item() == pytest.approx(1)
    assert vq.perplexity(torch.tensor([3.0, 3, 3, 3])).item() == pytest.approx(4)
    assert vq.usage(torch.tensor([5.0, 0, 1, 0])).item() == 0.5


def test_averaged_codebook_converges_to_the_means_of_its_vectors():
    table = torch.tensor([[0.0, 0.0], [10.0, 10.0]])
    average = vq.CodebookAverage(table, decay=0.5)
    vectors = torch.tensor([[1.0, 0.0], [3.0, 0.0], [8.0, 9.0]])
    for _ in range(40):
        codes = vq.nearest_codes(vectors, table)
        counts = torch.bincount(codes, minlength=2)
        average.update(table, counts, torch.zeros_like(table).index_add_(0, codes, vectors))
    torch.testing.assert_close(table, torch.tensor([[2.0, 0.0], [8.0, 9.0]]), rtol=1e-4, atol=1e-4)


def test_one_averaging_step_matches_the_formula():
    table = torch.tensor([[1.0], [4.0]], dtype=torch.float64)
    average = vq.CodebookAverage(table, decay=0.9, eps=0.0).double()
    average.update(table, torch.tensor([3, 0]), torch.tensor([[6.0], [0.0]], dtype=torch.float64))
    # sums: 0.9·1 + 0.1·6 = 1.5 over counts 0.9 + 0.3 = 1.2; an unused code keeps its value
    torch.testing.assert_close(table, torch.tensor([[1.25], [4.0]], dtype=torch.float64))


def test_dead_codes_restart_at_encoder_outputs():
    table = torch.zeros(4, 2)
    vectors = torch.arange(6.0).view(3, 2) + 1
    dead = vq.restart_dead_codes(
        table, torch.tensor([2.0, 0, 1, 0]), vectors, torch.Generator().manual_seed(0)
    )
    assert dead.tolist() == [1, 3]
    assert table[[0, 2]].abs().max() == 0
    assert all(any(torch.equal(table[code], vector) for vector in vectors) for code in dead)
