"""Compiles every Triton kernel to machine code for compute capability 9.0; needs Triton but no GPU.

The interpreter checks neither types nor what the compiler accepts. Also refuses the approximate logarithm,
whose error near 1 would spoil the exponential race, and row offsets of 32 bits.
"""

import re

from noiseworks.core.kernels import adaln, attention, fill, gumbel, logp
from triton import compile as triton_compile  # noqa: TID253
from triton.backends.compiler import GPUTarget  # noqa: TID253
from triton.compiler import ASTSource  # noqa: TID253

HOPPER = GPUTarget("cuda", 90, 32)
INTEGERS = (
    "row_stride", "vocabulary", "count", "chunks", "tokens", "channels", "mask_id", "rows", "key_heads", "width",
    "blocks", "entries", "splits", "k_block", "k_token", "k_head", "v_block", "v_token", "v_head",
)  # fmt: skip
INTEGER_POINTERS = ("ids", "keys", "winners", "block_table", "lengths")
FLOAT_POINTERS = (
    "temperature", "floors", "partials", "p_ids", "p_max", "margin", "entropy", "lse", "g_logp", "g_lse",
    "g_entropy", "mean", "rstd", "merged",
)  # fmt: skip


def argument_type(name, dtype, constants):
    if name in constants:
        return "constexpr"
    if name in INTEGER_POINTERS:
        return "*i64"
    if name in INTEGERS or name.endswith(("_b", "_n")):
        return "i32"
    if name == "counter0":
        return "i64"
    if name in ("eps", "factor"):
        return "fp32"
    return "*fp32" if name in FLOAT_POINTERS else f"*{dtype}"


def compile_for_hopper(kernel, dtype, warps, **constants):
    signature = {name: argument_type(name, dtype, constants) for name in kernel.arg_names}
    source = ASTSource(fn=kernel, signature=signature, constexprs=constants)
    done = triton_compile(source, target=HOPPER, options={"num_warps": warps})
    assert "lg2.approx" not in done.asm["ptx"], kernel
    # Row times row length overflows 32 bits at 16,981 rows of a vocabulary of 126,464.
    assert re.search(r"arith\.muli .* : i64", done.asm["ttir"]), kernel
    assert len(done.asm["cubin"]) > 0
    print("compiled", kernel.__name__, dtype, constants)


for dtype in ("bf16", "fp32"):
    compile_for_hopper(gumbel._chunk_kernel, dtype, 8, HAS_FLOOR=True, BLOCK=gumbel.BLOCK_V)
    compile_for_hopper(logp._forward_kernel, dtype, 8, ENTROPY=True, STEPS=31, BLOCK=logp.BLOCK_V)
    compile_for_hopper(logp._backward_kernel, dtype, 8, ENTROPY=True, BLOCK=logp.BLOCK_V)
    sizes = {"STEPS": 16, "ROWS": 64, "SIZE": 32, "WIDTH": 128, "WIDEN": False}
    compile_for_hopper(attention._split_kernel, dtype, 4, **sizes)
    compile_for_hopper(attention._merge_kernel, dtype, 1, SPLITS=8, WIDTH=128)
compile_for_hopper(gumbel._combine_kernel, "fp32", 1, BLOCK=32)
for kind in range(len(fill.KINDS)):
    compile_for_hopper(fill._fill_kernel, "fp16", 8, KIND=kind, BLOCK=fill.BLOCK)
for gated in (False, True):
    absent = {} if gated else {"gate": None, "residual": None}
    sizes = {"RMS": not gated, "GATED": gated, "BLOCK": 4096}
    compile_for_hopper(adaln._forward_kernel, "bf16", 8, **sizes, **absent)
    absent.pop("residual", None)
    for per_token in (False, True):
        compile_for_hopper(
            adaln._backward_kernel, "bf16", 8, **sizes, **absent, PER_TOKEN=per_token, ROWS=adaln.ROWS
        )
