"""Device functions that several Triton kernels share. Import only where `dispatch.HAS_TRITON` is true.

Triton's own `tl.log` may become the GPU's approximate logarithm, whose absolute error of 2^-22 near 1
destroys the small exponentials that win a race; the logarithm here is correct to 1.3 units in the last
place everywhere.
"""

import triton  # noqa: TID253
import triton.language as tl  # noqa: TID253


@triton.jit
def random_words(key, counter0, first, COUNTERS: tl.constexpr):
    """Return the 4 * COUNTERS words of a 64-bit key from counter `counter0 + first` on, as uint32."""
    counter = counter0.to(tl.int64) + first + tl.arange(0, COUNTERS)
    low = (counter & 0xFFFFFFFF).to(tl.uint32)
    high = (counter >> 32).to(tl.uint32)
    zero = low * 0
    w0, w1, w2, w3 = tl.philox(key, low, high, zero, zero)
    return tl.interleave(tl.interleave(w0, w2), tl.interleave(w1, w3))


@triton.jit
def _log_1p_small(f):
    """Return log(1 + f) for f in [sqrt(1/2) - 1, sqrt(2) - 1], by a Chebyshev fit of degree 8."""
    p = 0.07149753719568253
    p = p * f - 0.115712009370327
    p = p * f + 0.11661510914564133
    p = p * f - 0.12411050498485565
    p = p * f + 0.14249937236309052
    p = p * f - 0.1666848063468933
    p = p * f + 0.20000708103179932
    p = p * f - 0.24999989569187164
    p = p * f + 0.3333333134651184
    square = f * f
    return f - (0.5 * square - p * f * square)


@triton.jit
def _split(x):
    """Return the exponent e (int32) and the mantissa m in [sqrt(1/2), sqrt(2)) of positive normal floats."""
    bits = x.to(tl.int32, bitcast=True)
    exponent = (bits - 0x3F3504F3) >> 23
    return exponent, (bits - (exponent << 23)).to(tl.float32, bitcast=True)


@triton.jit
def log_accurate(x):
    """Return log x of positive normal float32 numbers."""
    exponent, mantissa = _split(x)
    e = exponent.to(tl.float32)
    return e * 0.693359375 + (e * -2.12194440e-4 + _log_1p_small(mantissa - 1.0))


@triton.jit
def exponential_of(words):
    """Return Exp(1) draws from uint32 words: `noise.exponential_from_words` in float32."""
    small = words < 0x80000000
    distance = (tl.where(small, words, words ^ 0xFFFFFFFF).to(tl.float32) + 0.5) * 2.3283064365386963e-10
    x = tl.where(small, 1.0 - distance, distance)
    exponent, mantissa = _split(x)
    # Where 1 - distance needs no scaling, -distance itself is the exact argument of log1p.
    f = tl.where(small & (exponent == 0), -distance, mantissa - 1.0)
    e = exponent.to(tl.float32)
    return -(e * 0.693359375 + (e * -2.12194440e-4 + _log_1p_small(f)))


@triton.jit
def uniform_of(words):
    """Return uniforms in [0, 1) from uint32 words: `noise.uniform_from_words` in float32."""
    return tl.where(words < 0x80000000, words, words ^ 0xFFFFFFFF).to(tl.float32) * 4.6566127342e-10
