"""The Markov text source: likelihood, conditionals and samples against sums over every text."""

import itertools
import math

import pytest
import torch
from noiseworks.bench.testbeds.countdown.chain import LARGEST_EXACT, MarkovText, make_chain, zipf
from noiseworks.core.errors import InputError
from scipy.stats import chi2 as chi2_law
from scipy.stats import chisquare, ncx2

LENGTH = 5


@pytest.fixture(scope="module")
def chain():
    return make_chain(3, seed=4, classes=7, exponent=1.0, floor=0.05)


def every_text(vocabulary: int = 3, length: int = LENGTH) -> torch.Tensor:
    return torch.tensor(list(itertools.product(range(vocabulary), repeat=length)))


def probability(chain: MarkovText, text: tuple[int, ...]) -> float:
    """Return a text's probability, written out token by token."""
    p, before, last = 1.0, chain.vocabulary, chain.vocabulary
    for token in text:
        p *= float(chain.table[int(chain.classes[before, last]), token])
        before, last = last, token
    return p


def test_likelihood_is_the_product_of_next_token_probabilities(chain):
    texts = every_text()
    expected = [math.log(probability(chain, tuple(text))) for text in texts.tolist()]
    found = chain.log_likelihood(texts)
    assert found.dtype == torch.float64
    assert found.tolist() == pytest.approx(expected, abs=1e-12)
    assert float(found.exp().sum()) == pytest.approx(1, abs=1e-12)


def test_conditionals_are_the_sums_over_every_text_that_fits(chain):
    texts = every_text()
    p = torch.tensor([probability(chain, tuple(text)) for text in texts.tolist()], dtype=torch.float64)
    truth = torch.tensor([2, 0, 1, 1, 2])
    patterns = torch.tensor(list(itertools.product([False, True], repeat=LENGTH)))
    found = chain.conditionals(truth.expand(len(patterns), -1), patterns)
    for visible, got in zip(patterns, found, strict=True):
        fits = p * (texts[:, visible] == truth[visible]).all(dim=1)
        expected = torch.stack(
            [torch.stack([fits[texts[:, place] == v].sum() for v in range(3)]) for place in range(LENGTH)]
        )
        assert torch.allclose(got, expected / fits.sum(), atol=1e-12)


def test_hidden_places_are_not_read(chain):
    visible = torch.tensor([[True, False, False, True, False]])
    mask_id = chain.vocabulary  # an id that is no token
    first = chain.conditionals(torch.tensor([[1, mask_id, mask_id, 2, mask_id]]), visible)
    second = chain.conditionals(torch.tensor([[1, 0, 2, 2, 1]]), visible)
    assert torch.equal(first, second)


def test_long_texts_keep_their_precision():
    """Forward and backward sums of 400 tokens would leave float64 unless they were rescaled."""
    chain = make_chain(8, seed=1, floor=1e-6)
    text = chain.sample(1, 400, 0)
    visible = torch.ones_like(text, dtype=torch.bool)
    visible[:, 200] = False
    found = chain.conditionals(text, visible)[0, 200]
    changed = text.expand(8, -1).clone()
    changed[:, 200] = torch.arange(8)
    assert torch.allclose(found, chain.log_likelihood(changed).softmax(dim=0), atol=1e-10)


def test_samples_have_the_probability_of_their_texts(chain):
    """A chi-square test over all 243 texts of five tokens with 40,000 samples at level 0.001.

    Power: were every token drawn from probabilities p^(1/T) with T = 0.93, the test would see it with
    a probability above 0.99, as the noncentral chi-square distribution says below.
    """
    n, texts = 40_000, every_text()
    expected = chain.log_likelihood(texts).exp()
    drawn = chain.sample(n, LENGTH, seed=1)
    codes = (drawn * 3 ** torch.arange(LENGTH - 1, -1, -1)).sum(dim=1)
    counts = codes.bincount(minlength=len(texts))
    assert chisquare(counts.numpy(), (n * expected).numpy()).pvalue > 1e-3
    sharper = chain.table ** (1 / 0.93)
    other = MarkovText(sharper / sharper.sum(dim=1, keepdim=True), chain.classes)
    shift = float((n * (other.log_likelihood(texts).exp() - expected) ** 2 / expected).sum())
    limit = chi2_law.ppf(1 - 1e-3, len(texts) - 1)
    assert ncx2.sf(limit, len(texts) - 1, shift) > 0.99


def test_sample_i_depends_on_neither_number_nor_length(chain):
    many = chain.sample(20, 12, seed=3)
    assert torch.equal(many[:5], chain.sample(5, 12, seed=3))
    assert torch.equal(many[:, :4], chain.sample(20, 4, seed=3))
    assert not torch.equal(many, chain.sample(20, 12, seed=4))
    assert chain.sample(0, 4, seed=3).shape == (0, 4)


def test_entropy_of_long_texts_is_that_of_the_stationary_pairs():
    """The mean likelihood of a token far from the start is -Σ_ab π(a, b) H(next | a, b), π stationary."""
    chain = make_chain(6, seed=2, classes=12, exponent=1.2, floor=0.01)
    step = chain.table[chain.classes[:-1, :-1]]
    pairs = torch.full((6, 6), 1 / 36, dtype=torch.float64)
    for _ in range(500):
        pairs = torch.einsum("ab,abc->bc", pairs, step)
    assert torch.allclose(pairs, torch.einsum("ab,abc->bc", pairs, step), atol=1e-13)
    entropy = float((pairs * torch.special.entr(step).sum(dim=2)).sum())
    texts = chain.sample(400, 80, seed=5)
    late = -(chain.log_likelihood(texts) - chain.log_likelihood(texts[:, :30])) / 50
    error = float(late.std() / len(late) ** 0.5)
    assert error < 0.01
    assert abs(float(late.mean()) - entropy) < 4 * error
    found = torch.stack([texts[:, 40:-1], texts[:, 41:]], dim=-1).reshape(-1, 2)
    shares = (6 * found[:, 0] + found[:, 1]).bincount(minlength=36).double() / len(found)
    assert float((shares - pairs.flatten()).abs().max()) < 0.02


def test_the_default_chain_is_predictable_and_every_text_is_possible():
    chain = make_chain()
    assert chain.table.shape == (64, 64)
    assert torch.allclose(chain.table.sum(dim=1), torch.ones(64, dtype=torch.float64), atol=1e-12)
    assert float(chain.table.min()) >= 1e-3 / 64
    rows = torch.special.entr(chain.table).sum(dim=1)
    # Every class is the same law in another order, far below log 64.
    assert torch.allclose(rows, rows[0].expand(64), atol=1e-12)
    assert float(rows[0]) < 0.7 * math.log(64)
    assert torch.equal(make_chain().classes, chain.classes)
    assert not torch.equal(make_chain(seed=1).classes, chain.classes)


def test_zipf():
    assert zipf(3).tolist() == pytest.approx([6 / 11, 3 / 11, 2 / 11])
    assert zipf(4, 0).tolist() == [0.25] * 4


def test_bad_input_is_refused(chain):
    for ids in (torch.tensor([[0, 3]]), torch.tensor([[-1, 0]]), torch.tensor([0, 1])):
        with pytest.raises(InputError, match="ids in 0 … 2"):
            chain.log_likelihood(ids)
    with pytest.raises(InputError, match="ids in 0 … 2"):
        chain.conditionals(torch.tensor([[0, 3]]), torch.tensor([[False, True]]))
    large = make_chain(LARGEST_EXACT + 1)
    with pytest.raises(InputError, match="at most"):
        large.conditionals(torch.zeros(1, 2, dtype=torch.long), torch.ones(1, 2, dtype=torch.bool))
    never = MarkovText(torch.tensor([[1.0, 0.0]], dtype=torch.float64), torch.zeros(3, 3, dtype=torch.long))
    with pytest.raises(InputError, match="cannot occur"):
        never.conditionals(torch.tensor([[0, 1]]), torch.tensor([[False, True]]))
    for options in ({"vocabulary": 1}, {"classes": 0}, {"floor": 1.5}, {"exponent": -1.0}):
        with pytest.raises(InputError):
            make_chain(**options)
    for options in ({"n": -1, "length": 3}, {"n": 1, "length": 0}):
        with pytest.raises(InputError):
            chain.sample(**options, seed=0)
