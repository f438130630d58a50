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
