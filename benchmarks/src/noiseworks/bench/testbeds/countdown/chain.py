"""Text with a known distribution: an order-2 Markov chain and independent Zipf words.

The likelihood of a text is exact, and so is the distribution of any hidden token given the visible ones, so
samplers of masked models can be judged without a scoring model.
"""

from dataclasses import dataclass

import torch
from noiseworks.core.checks import check_number
from noiseworks.core.errors import InputError
from noiseworks.core.noise import SeedSpec, categorical
from torch import Tensor

LARGEST_EXACT = 128  # vocabulary of `conditionals`, whose cost and memory grow with its cube


def zipf(vocabulary: int, exponent: float = 1.0) -> Tensor:
    """Return probabilities proportional to 1 / rank^exponent, float64 [V]."""
    check_number("vocabulary", vocabulary, low=1, integer=True)
    check_number("exponent", exponent, low=0)
    weights = torch.arange(1, vocabulary + 1, dtype=torch.float64) ** -exponent
    return weights / weights.sum()


@dataclass(frozen=True)
class MarkovText:
    """A source of texts in which a token depends on the two before it.

    Pairs of tokens fall into classes, and every class has its own distribution of the next token. The two places
    before a text hold the start symbol V.

    Attributes:
        table: Next-token probabilities of each class, float64 [C, V].
        classes: Class of each pair (token before the last, last token), int64 [V + 1, V + 1].
    """

    table: Tensor
    classes: Tensor

    @property
    def vocabulary(self) -> int:
        """Number of tokens V."""
        return self.table.shape[1]

    def sample(self, n: int, length: int, seed: int) -> Tensor:
        """Return texts, int64 [n, length]; text i depends on neither n nor length.

        Args:
            n: Texts, at least 0.
            length: Tokens of each, at least 1.
            seed: Of the draws.

        Raises:
            InputError: When a number is out of range.
        """
        check_number("n", n, low=0, integer=True)
        check_number("length", length, low=1, integer=True)
        keys = SeedSpec(seed).keys(range(n))
        before = last = torch.full((n,), self.vocabulary)
        texts = []
        for place in range(length):
            rows = self.table[self.classes[before, last]]
            before, last = last, categorical(rows, keys, counter0=place * -(-self.vocabulary // 2))
            texts.append(last)
        return torch.stack(texts, dim=1)

    def log_likelihood(self, ids: Tensor) -> Tensor:
        """Return the exact natural-log likelihood of each text, float64 [n].

        Args:
            ids: Texts, int64 [n, L], every id below V.

        Raises:
            InputError: When an id is no token of the source.
        """
        self._check(ids)
        padded = torch.nn.functional.pad(ids, (2, 0), value=self.vocabulary)
        classes = self.classes[padded[:, :-2], padded[:, 1:-1]]
        return self.table[classes, ids].log().sum(dim=1)

    def conditionals(self, ids: Tensor, visible: Tensor) -> Tensor:
        """Return the exact distribution of every token given the visible ones, by forward-backward sums.

        A masked model that predicted these would be perfect.

        Args:
            ids: Texts, int64 [n, L]; what stands at hidden places is not read.
            visible: Which places are known, bool [n, L].

        Returns:
            float64 [n, L, V]; one-hot at visible places.

        Raises:
            InputError: When V is above `LARGEST_EXACT`, a visible id is no token of the source, or the visible
                tokens cannot occur together.
        """
        ids = ids.masked_fill(~visible, 0)
        self._check(ids)
        vocabulary, length = self.vocabulary, ids.shape[1]
        if vocabulary > LARGEST_EXACT:
            raise InputError(f"exact conditionals need at most {LARGEST_EXACT} tokens, got {vocabulary}")
        allowed = torch.nn.functional.one_hot(ids, vocabulary).double()
        allowed[~visible] = 1.0
        step = self.table[self.classes]  # [V + 1, V + 1, V]: of the next token after a pair
        pairs = torch.zeros(len(ids), vocabulary + 1, vocabulary + 1, dtype=torch.float64)
        pairs[:, -1, -1] = 1.0
        forward = []  # of (token before, token) at each place, given what is visible up to it
        for place in range(length):
            reached = torch.einsum("nab,abc->nbc", pairs, step) * allowed[:, None, place]
            total = reached.sum(dim=(1, 2), keepdim=True)
            if not bool((total > 0).all()):
                raise InputError("the visible tokens cannot occur together under this source")
            pairs = torch.nn.functional.pad(reached / total, (0, 1))
            forward.append(pairs)
        later, result = torch.ones_like(pairs), []
        for place in range(length - 1, -1, -1):
            joint = (forward[place] * later).sum(dim=1)[:, :vocabulary]
            result.append(joint / joint.sum(dim=1, keepdim=True))
            # What is seen from here on, given the pair before: the next step's factor.
            later = torch.einsum("abc,nbc->nab", step, later[:, :, :vocabulary] * allowed[:, None, place])
            later = later / later.amax(dim=(1, 2), keepdim=True)
        return torch.stack(result[::-1], dim=1)

    def _check(self, ids: Tensor) -> None:
        if ids.ndim != 2 or (ids.numel() and not 0 <= int(ids.min()) <= int(ids.max()) < self.vocabulary):
            raise InputError(f"texts must be int64 [n, L] with ids in 0 … {self.vocabulary - 1}")


def make_chain(
    vocabulary: int = 64, *, seed: int = 0, classes: int = 64, exponent: float = 1.5, floor: float = 1e-3
) -> MarkovText:
    """Return a chain whose next-token distributions are Zipf's law in an order of their own.

    Args:
        vocabulary: Tokens V.
        seed: Of the chain.
        classes: Kinds of contexts.
        exponent: Of Zipf's law: larger is more predictable.
        floor: Share of the uniform distribution that is mixed in, so that every text is possible.

    Raises:
        InputError: When a number is out of range.
    """
    check_number("vocabulary", vocabulary, low=2, integer=True)
    check_number("classes", classes, low=1, integer=True)
    check_number("floor", floor, low=0, high=1)
    generator = torch.Generator().manual_seed(seed)
    ranks = torch.rand(classes, vocabulary, generator=generator).argsort(dim=1)
    table = (1 - floor) * zipf(vocabulary, exponent)[ranks] + floor / vocabulary
    kinds = torch.randint(classes, (vocabulary + 1, vocabulary + 1), generator=generator)
    return MarkovText(table, kinds)
