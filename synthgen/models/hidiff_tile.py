"""The innermost loops of binary convolutions, in LLVM's language, for vectors of eight words.

Written out because a compiler would not keep a tile of counts in registers by itself. Processors
that count bits in vectors (AVX512-VPOPCNTDQ) do it in single instructions; LLVM finds others for
the rest. Needs numba.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

WORD = 64
"""Channels in a word of bits."""
PIXELS = 6
"""Neighbouring pixels of a tile: their counts stay in registers, beside ..."""
OUTPUTS = 32
"""... output channels of a tile."""

_LANES = 8
_INDEX = ir.IntType(64)
_SHORT = ir.IntType(32)
_LANE_WORDS = ir.VectorType(_INDEX, _LANES)


@intrinsic  # type: ignore[untyped-decorator]
def pack_word(typing_context: Any, values: Any, thresholds: Any) -> Any:  # noqa: ANN401
    """Return a word with bit i set where values[i] >= thresholds[i]; both are addresses."""
    signature = types.uint64(types.uintp, types.uintp)
    floats = ir.VectorType(ir.FloatType(), WORD)

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:  # noqa: ANN401
        loaded = [
            builder.load(builder.inttoptr(address, floats.as_pointer()), align=4)
            for address in arguments
        ]
        return builder.bitcast(builder.fcmp_ordered(">=", *loaded), _INDEX)

    return signature, generate


@intrinsic  # type: ignore[untyped-decorator]
def count_tile(
    typing_context: Any,  # noqa: ANN401
    counts: Any,  # noqa: ANN401
    pitch: Any,  # noqa: ANN401
    bits: Any,  # noqa: ANN401
    step: Any,  # noqa: ANN401
    weights: Any,  # noqa: ANN401
    offsets: Any,  # noqa: ANN401
    num_rows: Any,  # noqa: ANN401
    num_words: Any,  # noqa: ANN401
) -> Any:  # noqa: ANN401
    """Count differing bits of PIXELS by OUTPUTS; addresses, and steps between pixels.

    `counts` int32, `pitch` apart; `bits` of the first pixel, `step` words apart; `offsets` in
    words, of each of the `num_rows` rows of taps, in which `num_words` lie beside one another.
    """
    signature = types.void(*[types.uintp, types.intp] * 2, *[types.uintp] * 2, *[types.intp] * 2)

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:  # noqa: ANN401
        _generate_count(builder, *arguments)
        return context.get_dummy_value()

    return signature, generate


def _generate_count(
    builder: Any,  # noqa: ANN401
    counts: Any,  # noqa: ANN401
    pitch: Any,  # noqa: ANN401
    bits: Any,  # noqa: ANN401
    step: Any,  # noqa: ANN401
    weights: Any,  # noqa: ANN401
    offsets: Any,  # noqa: ANN401
    num_rows: Any,  # noqa: ANN401
    num_words: Any,  # noqa: ANN401
) -> None:
    """Emit the loops of `count_tile`; the counts are variables that LLVM keeps in registers."""
    vectors = OUTPUTS // _LANES
    bits = builder.inttoptr(bits, _INDEX.as_pointer())
    weights = builder.inttoptr(weights, _LANE_WORDS.as_pointer())
    offsets = builder.inttoptr(offsets, _INDEX.as_pointer())
    lanes = ir.VectorType(_SHORT, _LANES)
    undefined, everywhere = ir.Constant(_LANE_WORDS, ir.Undefined), ir.Constant(lanes, [0] * _LANES)
    popcount = cgutils.get_or_insert_function(
        builder.module, ir.FunctionType(_LANE_WORDS, [_LANE_WORDS]), "llvm.ctpop.v8i64"
    )
    zero = ir.Constant(_LANE_WORDS, [0] * _LANES)
    sums = [
        [cgutils.alloca_once_value(builder, zero) for _ in range(vectors)] for _ in range(PIXELS)
    ]
    for variables in sums:
        for variable in variables:
            builder.store(zero, variable)
    with cgutils.for_range(builder, num_rows) as row:
        start = builder.gep(bits, [builder.load(builder.gep(offsets, [row.index]))])
        done = builder.mul(row.index, num_words)
        with cgutils.for_range(builder, num_words) as word:
            first = builder.mul(builder.add(done, word.index), ir.Constant(_INDEX, vectors))
            here = builder.gep(weights, [first])
            loaded = [
                builder.load(builder.gep(here, [ir.Constant(_INDEX, j)]), align=8)
                for j in range(vectors)
            ]
            for pixel, variables in enumerate(sums):
                apart = builder.mul(step, ir.Constant(_INDEX, pixel))
                seen = builder.load(builder.gep(start, [builder.add(word.index, apart)]))
                lane = builder.insert_element(undefined, seen, ir.Constant(_SHORT, 0))
                spread = builder.shuffle_vector(lane, undefined, everywhere)
                for variable, weight in zip(variables, loaded, strict=True):
                    differing = builder.call(popcount, [builder.xor(spread, weight)])
                    builder.store(builder.add(builder.load(variable), differing), variable)
    out = builder.inttoptr(counts, _SHORT.as_pointer())
    for pixel, variables in enumerate(sums):
        line = builder.gep(out, [builder.mul(pitch, ir.Constant(_INDEX, pixel))])
        vector = builder.bitcast(line, lanes.as_pointer())
        for j, variable in enumerate(variables):
            place = builder.gep(vector, [ir.Constant(_INDEX, j)])
            builder.store(builder.trunc(builder.load(variable), lanes), place, align=4)
