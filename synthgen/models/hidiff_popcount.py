"""Binary convolutions by counting bits, a whole block in one pass over its rows.

Source: Rastegari et al. 2016, arXiv:1603.05279, section 3.2: the product of two vectors of signs
is their length less twice the number of places where they differ. Compiled by numba, which must be
installed.

While a row of pixels is in the cache, its signs are packed, bits counted, and the batch norm, the
shortcut and the activation applied, so that every map is read and written once: with one bit a
weight, memory is what limits these layers.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numba import njit
from numpy.typing import NDArray

from synthgen.models.hidiff_tile import OUTPUTS, PIXELS, WORD, count_tile, pack_word

_Floats = NDArray[np.float32]
_Words = NDArray[np.uint64]


class Grid(NamedTuple):
    """Where a block reads and writes; sizes are (z, y, x), z being 1 in 2-D.

    `rows_z`, `rows_y` and `columns` say which pixel of the source stands at each place of the
    convolution's input, which may be larger (nearest neighbours).
    """

    source: tuple[int, int, int]
    input: tuple[int, int, int]
    output: tuple[int, int, int]
    kernel: tuple[int, int, int]
    stride: tuple[int, int, int]
    rows_z: NDArray[np.int64]
    rows_y: NDArray[np.int64]
    columns: NDArray[np.int64]


class Constants(NamedTuple):
    """What a block multiplies by and adds at one step; O is its output width.

    `weights` (tiles, rows of taps, words of a row, OUTPUTS); `agreements` (4, 4, 4, tiles *
    OUTPUTS), the products if no bit differed, for each side at which the border cuts taps off;
    the others are float32: `threshold` (I,), `scale`, `shift`, `slope`, `after` (O,).
    """

    weights: _Words
    agreements: NDArray[np.int32]
    threshold: _Floats
    scale: _Floats
    shift: _Floats
    slope: _Floats
    after: _Floats


@njit(cache=True, nogil=True, error_model="numpy")  # type: ignore[untyped-decorator]
def _pack_pixels(
    source: _Floats,
    threshold: _Floats,
    line: int,
    columns: NDArray[np.int64],
    first_word: int,
    bits_row: _Words,
    left: int,
) -> None:
    """Write the signs of one row of pixels; `line` is the row's first pixel in the source."""
    width = source.shape[1]
    full = width // WORD
    start = first_word * WORD
    for x in range(columns.size):
        if x and columns[x] == columns[x - 1]:
            for word in range(first_word, first_word + full + (full * WORD < width)):
                bits_row[left + x, word] = bits_row[left + x - 1, word]
            continue
        values = source[line + columns[x]]
        for word in range(full):
            bits_row[left + x, first_word + word] = pack_word(
                values.ctypes.data + 4 * WORD * word,
                threshold.ctypes.data + 4 * (start + WORD * word),
            )
        if full * WORD < width:
            last = np.uint64(0)
            for channel in range(full * WORD, width):
                if values[channel] >= threshold[start + channel]:
                    last |= np.uint64(1) << np.uint64(channel - full * WORD)
            bits_row[left + x, first_word + full] = last


@njit(cache=True, nogil=True, error_model="numpy")  # type: ignore[untyped-decorator]
def _pack_row(
    row: int, first: _Floats, second: _Floats, threshold: _Floats, grid: Grid, bits: _Words
) -> None:
    """Pack one row of the convolution's input, of one source or two beside one another."""
    z, y = divmod(row, grid.input[1])
    pad_z, pad_y, pad_x = grid.kernel[0] // 2, grid.kernel[1] // 2, grid.kernel[2] // 2
    line = (grid.rows_z[z] * grid.source[1] + grid.rows_y[y]) * grid.source[2]
    here = bits[z + pad_z, y + pad_y]
    _pack_pixels(first, threshold, line, grid.columns, 0, here, pad_x)
    if second.shape[1]:
        words = first.shape[1] // WORD
        _pack_pixels(second, threshold, line, grid.columns, words, here, pad_x)


@njit(cache=True, nogil=True, error_model="numpy", fastmath={"reassoc", "contract"})  # type: ignore[untyped-decorator]
def _add_source(
    pixel: _Floats, weight: np.float32, first: int, share: int, target: _Floats
) -> None:
    """Add one pixel of a source to the shortcut: `share` channels to each output, or copies."""
    width = pixel.size
    if share == 1:
        for copy in range(max(1, (target.size - first) // width)):
            at = first + copy * width
            for channel in range(width):
                target[at + channel] += weight * pixel[channel]
    elif share == 2:
        half = np.float32(0.5) * weight
        for out in range(width // 2):
            target[first + out] += half * (pixel[2 * out] + pixel[2 * out + 1])
    else:
        part = weight / np.float32(share)
        for out in range(width // share):
            for channel in range(share):
                target[first + out] += part * pixel[out * share + channel]


@njit(cache=True, nogil=True, error_model="numpy")  # type: ignore[untyped-decorator]
def _shortcut_row(
    z: int, y: int, first: _Floats, second: _Floats, grid: Grid, target: _Floats
) -> None:
    """Write the shortcut of one row of outputs, `(X, O)`: windows averaged, channels fitted."""
    wide = first.shape[1] + second.shape[1]
    share = max(1, wide // target.shape[1])
    depth, height, length = grid.input
    target[:] = 0
    z_end = min((z + 1) * grid.stride[0], depth)
    y_end = min((y + 1) * grid.stride[1], height)
    for x in range(target.shape[0]):
        x_end = min((x + 1) * grid.stride[2], length)
        start = z * grid.stride[0], y * grid.stride[1], x * grid.stride[2]
        count = (z_end - start[0]) * (y_end - start[1]) * (x_end - start[2])
        weight = np.float32(1) / np.float32(count)
        for at_z in range(start[0], z_end):
            for at_y in range(start[1], y_end):
                line = (grid.rows_z[at_z] * grid.source[1] + grid.rows_y[at_y]) * grid.source[2]
                for at_x in range(start[2], x_end):
                    place = line + grid.columns[at_x]
                    _add_source(first[place], weight, 0, share, target[x])
                    if second.shape[1]:
                        offset = first.shape[1] // share
                        _add_source(second[place], weight, offset, share, target[x])


@njit(cache=True, nogil=True, error_model="numpy", fastmath={"contract"})  # type: ignore[untyped-decorator]
def _finish_pixel(
    count: NDArray[np.int32],
    agreement: NDArray[np.int32],
    short: _Floats,
    constants: Constants,
    out: _Floats,
) -> None:
    """Write PReLU(scale product + shift + shortcut) + after of one pixel."""
    for channel in range(out.size):
        product = np.float32(agreement[channel] - 2 * count[channel])
        value = product * constants.scale[channel] + constants.shift[channel] + short[channel]
        bent = value if value >= 0 else value * constants.slope[channel]
        out[channel] = bent + constants.after[channel]


@njit(cache=True, nogil=True, error_model="numpy")  # type: ignore[untyped-decorator]
def _cut(place: int, stride: int, taps: int, size: int) -> int:
    """Return 1 if taps are cut off before the input's start, plus 2 if behind its end."""
    start = place * stride - taps // 2
    return (start < 0) + 2 * (start + taps > size)


@njit(cache=True, nogil=True, error_model="numpy")  # type: ignore[untyped-decorator]
def run_rows(
    begin: int,
    end: int,
    first: _Floats,
    second: _Floats,
    grid: Grid,
    constants: Constants,
    bits: _Words,
    out: _Floats,
) -> None:
    """Compute rows `begin` .. `end` - 1 of a block's output; a row is one (z, y).

    Args:
        begin: first row.
        end: row behind the last.
        first: `(pixels, I1)` float32, the maps, channels last.
        second: `(pixels, I2)` float32, maps to be joined to the first; I2 may be 0, and I1 must
            be a multiple of WORD if it is not.
        grid: sizes and maps of indices.
        constants: of the block and the step.
        bits: `(z, y, x, words)` zeros, of `bits_shape`.
        out: `(pixels, O)` float32, written.
    """
    kernel, stride = grid.kernel, grid.stride
    height, length = grid.output[1], grid.output[2]
    tiles, num_rows, num_words = constants.weights.shape[:3]
    pitch = tiles * OUTPUTS
    words = bits.shape[3]
    offsets = np.empty(num_rows, np.int64)
    for row in range(num_rows):
        dz, dy = divmod(row, kernel[1])
        offsets[row] = (dz * bits.shape[1] + dy) * bits.shape[2] * words
    counts = np.empty((-(-length // PIXELS) * PIXELS, pitch), np.int32)
    short = np.empty((length, out.shape[1]), np.float32)
    width = first.shape[1] + second.shape[1]
    direct = grid.output == grid.input and not second.shape[1] and width == out.shape[1]
    packed = -1
    for row in range(begin, end):
        z, y = divmod(row, height)
        at_z, at_y = z * stride[0] - kernel[0] // 2, y * stride[1] - kernel[1] // 2
        if packed < 0:
            packed = max(at_z, 0) * grid.input[1] + max(at_y, 0)
        last_z = min(at_z + kernel[0], grid.input[0]) - 1
        last_y = min(at_y + kernel[1], grid.input[1]) - 1
        while packed <= last_z * grid.input[1] + last_y:
            _pack_row(packed, first, second, constants.threshold, grid, bits)
            packed += 1
        window = bits[z * stride[0], y * stride[1]]
        for tile in range(tiles):
            for x in range(0, length, PIXELS):
                count_tile(
                    counts.ctypes.data + 4 * (x * pitch + tile * OUTPUTS),
                    pitch,
                    window.ctypes.data + 8 * x * stride[2] * words,
                    stride[2] * words,
                    constants.weights[tile].ctypes.data,
                    offsets.ctypes.data,
                    num_rows,
                    num_words,
                )
        if not direct:
            _shortcut_row(z, y, first, second, grid, short)
        sides = constants.agreements[
            _cut(z, stride[0], kernel[0], grid.input[0]),
            _cut(y, stride[1], kernel[1], grid.input[1]),
        ]
        line = (grid.rows_z[z] * grid.source[1] + grid.rows_y[y]) * grid.source[2] if direct else 0
        for x in range(length):
            side = sides[_cut(x, stride[2], kernel[2], grid.input[2])]
            added = first[line + grid.columns[x]] if direct else short[x]
            _finish_pixel(counts[x], side, added, constants, out[row * length + x])


def bits_shape(grid: Grid, words: int) -> tuple[int, int, int, int]:
    """Return the shape of a block's packed input, with its border and what tiles read beyond."""
    z, y, x = (n + 2 * (k // 2) for n, k in zip(grid.input, grid.kernel, strict=True))
    last = -(-grid.output[2] // PIXELS) * PIXELS - 1
    return z, y, max(x, last * grid.stride[2] + grid.kernel[2]), words


def pack_weights(signs: NDArray[np.float32]) -> NDArray[np.uint64]:
    """Return weights as `run_rows` reads them, of signs `(O, I, z, y, x)` in {-1, 1}.

    Channels beyond I, and outputs beyond O, have no bit set.
    """
    outputs, inputs, depth, height, length = signs.shape
    tiles, words = -(-outputs // OUTPUTS), -(-inputs // WORD)
    padded = np.zeros((tiles * OUTPUTS, words * WORD, depth, height, length), np.uint8)
    padded[:outputs, :inputs] = signs > 0
    taps = padded.reshape(tiles, OUTPUTS, words, WORD, depth * height, length)
    packed = np.packbits(taps.transpose(0, 4, 5, 2, 1, 3), axis=-1, bitorder="little")
    ordered = np.ascontiguousarray(packed).view("<u8")[..., 0]
    return ordered.reshape(tiles, depth * height, length * words, OUTPUTS).astype(np.uint64)


def agreements(signs: NDArray[np.float32]) -> NDArray[np.int32]:
    """Return for each cut of the border the product of equal bits, `(4, 4, 4, tiles * OUTPUTS)`.

    Taps beyond the border see bits that are not set, and so differ where the weight's is: the
    count has these too many, and the product these taps too few.

    Args:
        signs: weights `(O, I, z, y, x)` in {-1, 1}.
    """
    outputs, inputs = signs.shape[:2]
    gain = 2 * (signs > 0).sum(1)  # (O, z, y, x): if the tap is cut off
    table = np.zeros((4, 4, 4, -(-outputs // OUTPUTS) * OUTPUTS), np.int32)
    for cuts in np.ndindex(4, 4, 4):
        inside = np.ones(signs.shape[2:], bool)
        for axis, cut in enumerate(cuts):
            seen = np.ones(signs.shape[2 + axis], bool)
            seen[: cut & 1] = False
            seen[len(seen) - (cut >> 1) :] = False
            inside &= seen.reshape([-1 if i == axis else 1 for i in range(3)])
        table[cuts][:outputs] = np.where(inside, inputs, gain).reshape(outputs, -1).sum(1)
    return table
