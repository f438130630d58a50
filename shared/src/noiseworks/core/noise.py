"""Random numbers that depend on (seed, sample, counter) alone, never on the batch, its order or the device.

A sample's key is a hash of (seed, global sample id, stream). Word `i` of a key is lane `i % 4` of the
counter-based generator Philox-4x32-10 (Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3") at
counter `counter0 + i // 4`. Every draw below is a pure function of those words:

    keys = SeedSpec(seed=0).keys(range(4))
    latents = normal(keys, (4, 64, 64))          # row 3 is the same in every batch that holds sample 3

Words are bit-exact on every device. Logarithms and cosines may differ in the last place between devices, so
normal and exponential draws agree to 1e-6 there. Counters are given, not counted: what one draw uses never
shifts another, as long as a caller draws always and uses sometimes.
"""

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from noiseworks.core.checks import check_choice, check_number
from noiseworks.core.errors import InputError
from torch import Tensor

_MASK32 = 0xFFFFFFFF
_MASK64 = 0xFFFFFFFFFFFFFFFF
_PHILOX_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_PHILOX_INCREMENTS = (0x9E3779B9, 0xBB67AE85)
# Counters per numpy step: eight uint64 arrays of this length stay in a 1 MiB cache.
_CHUNK = 8192
# Scale of the 31-bit uniform, the same float32 as in Triton's `tl.rand`; the largest value stays below 1.
_UNIFORM_SCALE = 4.6566127342e-10


def mix64(*parts: int) -> int:
    """Return a 64-bit hash of whole numbers: one SplitMix64 step (Steele et al. 2014) per part.

    Args:
        parts: Whole numbers, taken modulo 2^64.
    """
    return int(_mix64([np.array([part & _MASK64], dtype=np.uint64) for part in parts])[0])


def _mix64(parts: Sequence[np.ndarray]) -> np.ndarray:
    state = np.zeros(1, dtype=np.uint64)
    for part in parts:
        state = (state ^ part) + np.uint64(0x9E3779B97F4A7C15)
        state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        state = state ^ (state >> np.uint64(31))
    return state


@dataclass(frozen=True)
class SeedSpec:
    """A seed and a stream: where the keys of samples come from.

    Attributes:
        seed: The run's seed, any whole number (taken modulo 2^64).
        stream: Which of several independent draws of one sample this is (initial noise 0, step noise 1, ...).
    """

    seed: int
    stream: int = 0

    def keys(self, sample_ids: Sequence[int] | Tensor, device: torch.device | str = "cpu") -> Tensor:
        """Return one 64-bit key per sample, as the bit pattern of an int64 tensor [B].

        Args:
            sample_ids: Global index of each sample, not its position in the batch.
            device: Where the keys are put.

        Raises:
            InputError: When an id is negative.

        Warns:
            UserWarning: When an id occurs twice: those two samples will get the same noise.
        """
        ids = np.asarray(
            sample_ids.cpu() if isinstance(sample_ids, Tensor) else list(sample_ids), dtype=np.int64
        )
        if ids.size and ids.min() < 0:
            raise InputError(f"sample ids must be whole numbers of at least 0, got {int(ids.min())}")
        if np.unique(ids).size != ids.size:
            warnings.warn(
                "a sample id occurs twice in one batch: those samples get the same noise", stacklevel=2
            )
        seed, stream = (np.array([part & _MASK64], dtype=np.uint64) for part in (self.seed, self.stream))
        hashed = _mix64([seed, ids.reshape(-1).astype(np.uint64), stream])
        return torch.from_numpy(np.broadcast_to(hashed, ids.size).copy().view(np.int64)).to(device)

    def generators(self, sample_ids: Sequence[int]) -> list[torch.Generator]:
        """Return one CPU `torch.Generator` per sample, seeded with its key, for hosts that take a list."""
        return [torch.Generator().manual_seed(int(key) & (_MASK64 >> 1)) for key in self.keys(sample_ids)]


def seed_keys(seeds: Sequence[int], sample_ids: Sequence[int], stream: int = 0) -> Tensor:
    """Return keys of the same samples under several seeds, int64 [S, B]: row i is that of `SeedSpec(seeds[i])`.

    Args:
        seeds: Whole numbers.
        sample_ids: Whole numbers of at least 0.
        stream: As in `SeedSpec`.
    """
    columns = [np.array([int(seed) & _MASK64 for seed in seeds], dtype=np.uint64)[:, None]]
    columns += [np.asarray(sample_ids, dtype=np.uint64), np.array([stream & _MASK64], dtype=np.uint64)]
    return torch.from_numpy(_mix64(columns).view(np.int64))


def philox4x32(counter: Sequence, key: Sequence) -> tuple:
    """Return the four output words of Philox-4x32-10.

    Args:
        counter: Four arrays of 32-bit words, all numpy uint64 or all torch int64 (broadcastable).
        key: Two arrays of 32-bit words of the same kind.

    Returns:
        Four arrays of words in [0, 2^32).
    """
    multiply = _multiply_torch if isinstance(counter[0], Tensor) else _multiply_numpy
    mask, w0, w1 = _MASK32, *_PHILOX_INCREMENTS
    if multiply is _multiply_numpy:
        mask, w0, w1 = (np.uint64(constant) for constant in (mask, w0, w1))
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(10):
        high0, low0 = multiply(c0, _PHILOX_MULTIPLIERS[0])
        high1, low1 = multiply(c2, _PHILOX_MULTIPLIERS[1])
        c0, c1, c2, c3 = high1 ^ c1 ^ k0, low1, high0 ^ c3 ^ k1, low0
        k0, k1 = (k0 + w0) & mask, (k1 + w1) & mask
    return c0, c1, c2, c3


def _multiply_numpy(a: np.ndarray, constant: int) -> tuple[np.ndarray, np.ndarray]:
    product = a * np.uint64(constant)
    return product >> np.uint64(32), product & np.uint64(_MASK32)


def _multiply_torch(a: Tensor, constant: int) -> tuple[Tensor, Tensor]:
    # Two 16-bit halves of the constant keep every product below 2^49: int64 never overflows.
    high, low = a * (constant >> 16), a * (constant & 0xFFFF)
    return (high + (low >> 16)) >> 16, (low + ((high & 0xFFFF) << 16)) & _MASK32


def words(keys: Tensor, count: int, counter0: int = 0) -> Tensor:
    """Return the first `count` random words of every key.

    Args:
        keys: Keys, int64 [B].
        count: Words per key.
        counter0: First counter, in [0, 2^62).

    Returns:
        Words in [0, 2^32), int64 [B, count], on the device of `keys`.

    Raises:
        InputError: When `keys` is no int64 vector or a number is out of range.
    """
    if keys.ndim != 1 or keys.dtype != torch.int64:
        raise InputError(f"keys must be an int64 vector, got {keys.dtype} of shape {tuple(keys.shape)}")
    check_number("count", count, low=0, integer=True)
    check_number("counter0", counter0, low=0, high=2**62, high_open=True, integer=True)
    counters = -(-count // 4)
    if keys.device.type == "cpu" and not torch.compiler.is_compiling():
        drawn = torch.from_numpy(_words_numpy(keys.numpy().view(np.uint64), counters, counter0))
    else:
        c = torch.arange(counters, device=keys.device) + counter0
        k = keys[:, None]
        zero = torch.zeros_like(c)
        drawn = philox4x32((c & _MASK32, c >> 32, zero, zero), (k & _MASK32, (k >> 32) & _MASK32))
        drawn = torch.stack(drawn, dim=-1)
    return drawn.reshape(len(keys), counters * 4)[:, :count]


def _words_numpy(keys: np.ndarray, counters: int, counter0: int) -> np.ndarray:
    out = np.empty((len(keys), counters, 4), dtype=np.int64)
    mask, half, zero = np.uint64(_MASK32), np.uint64(32), np.zeros(1, dtype=np.uint64)
    rows = max(1, _CHUNK // max(counters, 1))
    for i in range(0, len(keys), rows):
        k = keys[i : i + rows, None]
        for j in range(0, counters, _CHUNK):
            c = np.arange(j, min(j + _CHUNK, counters), dtype=np.uint64) + np.uint64(counter0)
            drawn = philox4x32((c & mask, c >> half, zero, zero), (k & mask, k >> half))
            for lane in range(4):
                out[i : i + rows, j : j + _CHUNK, lane] = drawn[lane]
    return out


def uniform_from_words(drawn: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """Return uniforms in [0, 1) of 31 bits, one per word, equal to Triton's `tl.rand`.

    Args:
        drawn: Words, int64, any shape.
        dtype: float32 or float64.
    """
    folded = torch.where(drawn < 2**31, drawn, _MASK32 - drawn)
    return folded.to(dtype) * torch.tensor(_UNIFORM_SCALE, dtype=torch.float32).item()


def exponential_from_words(drawn: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """Return Exp(1) draws, one per word, exact to the dtype's relative precision at both ends.

    With u = (w + 1/2) 2^-32: E = -log1p(-u) where w < 2^31, else -log of 1 - u, from the complement of w. So
    E reaches from 1.1642e-10 to 22.874 also in float32, where -log(1 - u) of a rounded u stops at 16.64.

    Args:
        drawn: Words, int64, any shape.
        dtype: float32 or float64.
    """
    small = drawn < 2**31
    distance = (torch.where(small, drawn, _MASK32 - drawn).to(dtype) + 0.5) * 2.0**-32
    return -torch.where(small, torch.log1p(-distance), torch.log(distance))


def normal_from_words(drawn: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """Return standard normals by Box-Muller, two per pair of words.

    With u = (w + 1/2) 2^-32 of each word: r = sqrt(-2 log u1), the pair is r cos(2 pi u2), r sin(2 pi u2).

    Args:
        drawn: Words, int64 [..., n] with n even.
        dtype: float32 or float64.

    Returns:
        Normals [..., n].
    """
    first, second = drawn[..., 0::2], drawn[..., 1::2]
    radius = torch.sqrt(2 * exponential_from_words(_MASK32 - first, dtype))
    angle = (second.to(dtype) + 0.5) * (2 * math.pi * 2.0**-32)
    return torch.stack((radius * torch.cos(angle), radius * torch.sin(angle)), dim=-1).flatten(-2)


def uniform(
    keys: Tensor, shape: Sequence[int], *, counter0: int = 0, dtype: torch.dtype = torch.float32
) -> Tensor:
    """Draw uniforms in [0, 1) for every key.

    Args:
        keys: Keys, int64 [B].
        shape: Shape of one sample's draw.
        counter0: First counter.
        dtype: Floating dtype of the result; computed in float64 for float64, else in float32.

    Returns:
        Uniforms [B, *shape]. Uses ceil(prod(shape) / 4) counters.
    """
    drawn = words(keys, math.prod(shape), counter0)
    return uniform_from_words(drawn, _compute_dtype(dtype)).to(dtype).reshape(len(keys), *shape)


def exponential(
    keys: Tensor, shape: Sequence[int], *, counter0: int = 0, dtype: torch.dtype = torch.float32
) -> Tensor:
    """Draw tail-accurate Exp(1) variables for every key; arguments and counters as `uniform`."""
    drawn = words(keys, math.prod(shape), counter0)
    return exponential_from_words(drawn, _compute_dtype(dtype)).to(dtype).reshape(len(keys), *shape)


def normal(
    keys: Tensor, shape: Sequence[int], *, counter0: int = 0, dtype: torch.dtype = torch.float32
) -> Tensor:
    """Draw standard normals for every key; arguments and counters as `uniform`."""
    count = math.prod(shape)
    drawn = words(keys, count + count % 2, counter0)
    return normal_from_words(drawn, _compute_dtype(dtype))[:, :count].to(dtype).reshape(len(keys), *shape)


def _compute_dtype(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32


def torch_compat_normal(
    generators: Sequence[torch.Generator],
    shape: Sequence[int],
    *,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
) -> Tensor:
    """Draw normals from one `torch.Generator` per sample, as diffusers does with a list of generators.

    Each sample is drawn with its own shape on its generator's device and moved afterwards: slices of one
    larger draw would differ, because torch's vectorised path starts at 16 elements.

    Args:
        generators: One generator per sample.
        shape: Shape of one sample.
        dtype: Floating dtype of the draw.
        device: Where the result is put.

    Returns:
        Normals [len(generators), *shape].
    """
    if not generators:
        return torch.empty((0, *shape), dtype=dtype, device=device)
    draws = [
        torch.randn((1, *shape), generator=g, dtype=dtype, device=g.device).to(device) for g in generators
    ]
    return torch.cat(draws)


def bernoulli(
    keys: Tensor, probability: float | Tensor, shape: Sequence[int], *, counter0: int = 0
) -> Tensor:
    """Draw booleans that are true with the given probability, exact to 2^-32.

    Args:
        keys: Keys, int64 [B].
        probability: In [0, 1]; a number, or a tensor broadcastable to [B, *shape].
        shape: Shape of one sample's draw.
        counter0: First counter.

    Returns:
        Booleans [B, *shape].
    """
    threshold = (
        (torch.as_tensor(probability, dtype=torch.float64, device=keys.device) * 2.0**32).round().long()
    )
    return words(keys, math.prod(shape), counter0).reshape(len(keys), *shape) < threshold


def randint(keys: Tensor, low: int, high: int, shape: Sequence[int], *, counter0: int = 0) -> Tensor:
    """Draw whole numbers in [low, high) from 62 bits each, so the bias is below (high - low) 2^-62.

    Returns:
        int64 [B, *shape]. Uses ceil(prod(shape) / 2) counters.

    Raises:
        InputError: When the range is empty.
    """
    check_number("high", high, low=low, low_open=True, integer=True)
    drawn = words(keys, 2 * math.prod(shape), counter0).reshape(len(keys), *shape, 2)
    return low + (((drawn[..., 0] & 0x3FFFFFFF) << 32) | drawn[..., 1]) % (high - low)


def permutation(keys: Tensor, n: int, *, counter0: int = 0) -> Tensor:
    """Draw one permutation of 0 ... n-1 per key: the stable sort of n words. Returns int64 [B, n]."""
    return words(keys, n, counter0).argsort(dim=-1, stable=True)


def race_scores(logits: Tensor, temperature: float | Tensor, exponentials: Tensor) -> Tensor:
    """Return l / T - log E: the arg max over the last dimension is a draw from softmax(l / T).

    Args:
        logits: [R, V].
        temperature: A number or [R], at least 0; rows at 0 keep their plain logits.
        exponentials: Exp(1) draws [R, V].
    """
    t = torch.as_tensor(temperature, dtype=logits.dtype, device=logits.device).reshape(-1, 1)
    warm = t > 0
    inverse = 1 / torch.where(warm, t, 1)
    return logits * inverse - torch.where(warm, exponentials.log(), 0)


def gumbel_argmax(
    logits: Tensor,
    keys: Tensor,
    *,
    temperature: float | Tensor = 1.0,
    counter0: int = 0,
    precision: str = "float32",
) -> Tensor:
    """Draw one token per row from softmax(logits / temperature) by an exponential race (Gumbel-max).

    Args:
        logits: [R, V] in any floating dtype; -inf forbids a token.
        keys: Keys, int64 [R].
        temperature: A number or [R], at least 0; 0 means the plain arg max. Ties go to the lowest index.
        counter0: First counter; token v uses word v (float32) or words 2v and 2v + 1 (float64).
        precision: "float32" (tail-accurate up to 22.9 nats) or "float64" (up to 45 nats).

    Returns:
        Token ids, int64 [R].

    Raises:
        InputError: On NaN logits, a negative temperature, another precision or as many keys as no rows.
    """
    check_choice("precision", precision, ("float32", "float64"))
    if logits.ndim != 2 or len(keys) != len(logits):
        raise InputError(
            f"need logits [R, V] and one key per row, got {tuple(logits.shape)} and {len(keys)} keys"
        )
    if bool((torch.as_tensor(temperature) < 0).any()):
        raise InputError(f"temperature must be at least 0, got {temperature}")
    if bool(logits.isnan().any()):
        row = int(logits.isnan().any(dim=-1).nonzero()[0])
        raise InputError(f"logits of row {row} hold NaN; mend the model's output before sampling")
    if precision == "float64":
        race = exponential_from_two_words(words(keys, 2 * logits.shape[1], counter0))
    else:
        race = exponential(keys, logits.shape[1:], counter0=counter0)
    return race_scores(logits.to(race.dtype), temperature, race).argmax(dim=-1)


def exponential_from_two_words(drawn: Tensor) -> Tensor:
    """Return float64 Exp(1) draws from pairs of words: the 64-bit version of `exponential_from_words`.

    Args:
        drawn: Words, int64 [..., 2n].

    Returns:
        float64 [..., n], between 2.7e-20 and 45.06.
    """
    high, low = drawn[..., 0::2], drawn[..., 1::2]
    small = high < 2**31
    high, low = torch.where(small, high, _MASK32 - high), torch.where(small, low, _MASK32 - low)
    distance = high.double() * 2.0**-32 + (low.double() + 0.5) * 2.0**-64
    return -torch.where(small, torch.log1p(-distance), torch.log(distance))


def categorical(probs: Tensor, keys: Tensor, *, counter0: int = 0) -> Tensor:
    """Draw one index per row with the given (not necessarily normalised) weights, by the race in float64.

    Args:
        probs: Weights of at least 0, [R, V].
        keys: Keys, int64 [R].
        counter0: First counter; uses ceil(V / 2) counters.

    Returns:
        Indices, int64 [R].

    Raises:
        InputError: When a weight is negative or NaN, or a row sums to 0.
    """
    if not bool((probs >= 0).all()) or not bool((probs.sum(dim=-1) > 0).all()):
        raise InputError("probs must be weights of at least 0 with a positive sum in each row")
    return gumbel_argmax(probs.double().log(), keys, counter0=counter0, precision="float64")


def absorbing_mask(
    x0: Tensor,
    m: float | Tensor,
    keys: Tensor,
    *,
    mask_id: int,
    exact_count: bool = False,
    maskable: Tensor | None = None,
    counter0: int = 0,
) -> tuple[Tensor, Tensor]:
    """Replace tokens by the mask token: the forward process of absorbing (masked) diffusion.

    Args:
        x0: Clean token ids, int64 [B, L].
        m: Probability of the mask, in [0, 1]: a number, [B] or (not with `exact_count`) [B, L].
        keys: Keys, int64 [B].
        mask_id: Id of the mask token.
        exact_count: Mask exactly round(m n) of a row's n maskable tokens, not each with probability m.
        maskable: Booleans [B, L]; tokens that are False stay (a prompt, padding).
        counter0: First counter; uses ceil(L / 4) counters.

    Returns:
        The masked ids [B, L] and the booleans [B, L] that say where the mask is.

    Raises:
        InputError: When m is out of range, or of a shape that does not fit.
    """
    level = torch.as_tensor(m, dtype=torch.float64, device=x0.device)
    level = level[:, None] if level.ndim == 1 else level
    if not bool(((level >= 0) & (level <= 1)).all()):
        raise InputError(f"m is a probability and must lie in [0, 1], got {m}")
    if exact_count and level.ndim == 2 and level.shape[1] != 1:
        raise InputError("exact_count needs one m per row, got one per token")
    maskable = torch.ones_like(x0, dtype=torch.bool) if maskable is None else maskable
    if exact_count:
        drawn = words(keys, x0.shape[1], counter0).masked_fill(~maskable, 1 << 32)
        rank = drawn.argsort(dim=-1, stable=True).argsort(dim=-1)
        masked = rank < torch.floor(level * maskable.sum(dim=-1, keepdim=True) + 0.5)
    else:
        masked = bernoulli(keys, level, x0.shape[1:], counter0=counter0) & maskable
    return torch.where(masked, mask_id, x0), masked
