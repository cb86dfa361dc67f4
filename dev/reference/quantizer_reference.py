#!/usr/bin/env python3
"""The quantizers of llmc/quantizer.h again, in numpy and with ml_dtypes' number formats.

    python3 -m venv /tmp/ml_dtypes && /tmp/ml_dtypes/bin/pip install numpy ml_dtypes
    /tmp/ml_dtypes/bin/python dev/reference/quantizer_reference.py

Written from the definitions, not from the C code: casts to E2M1, E4M3, E5M2 and E8M0 are those of
ml_dtypes, every other operation is one of numpy's on float32, and fused ones are made of float64
and rounded to odd in between. Prints, as C source, the table of hashes that dev/test/test_quantizer
has: of the codes and of the block scales of every quantizer, on all kinds of inputs and all shapes
that test_quantizer.c names. Every bit counts; there are no exceptions for ties.
"""
import sys

import ml_dtypes
import numpy as np

F = np.float32
FLOAT_MAX = np.finfo(F).max
SEED, TAG, STEP = 0x9ABCDEF012345678, 7, 3

# ---------------------------------------------------------------------------------------------
# Random numbers


def philox(seed, counter):
    """Philox4x32-10; counter: four arrays or numbers. Four arrays of uint32 in uint64."""
    mask = np.uint64(0xffffffff)
    c = [np.asarray(x, np.uint64) for x in np.broadcast_arrays(*counter)]
    key = [seed & 0xffffffff, seed >> 32]
    for _ in range(10):
        left, right = np.uint64(0xD2511F53) * c[0], np.uint64(0xCD9E8D57) * c[2]
        c = [(right >> np.uint64(32)) ^ c[1] ^ np.uint64(key[0]), right & mask,
             (left >> np.uint64(32)) ^ c[3] ^ np.uint64(key[1]), left & mask]
        key = [(key[0] + 0x9E3779B9) & 0xffffffff, (key[1] + 0xBB67AE85) & 0xffffffff]
    return c


# ---------------------------------------------------------------------------------------------
# Number formats


def bf16(x):
    return x.astype(ml_dtypes.bfloat16).astype(F)


def cast(x, name):
    """Saturating cast of float32 to bytes."""
    kind = {"e2m1": ml_dtypes.float4_e2m1fn, "e4m3": ml_dtypes.float8_e4m3fn,
            "e5m2": ml_dtypes.float8_e5m2}[name]
    largest = F(ml_dtypes.finfo(kind).max)
    code = np.clip(x, -largest, largest).astype(kind).view(np.uint8)
    return code & 15 if name == "e2m1" else code


def value(code, name):
    kind = {"e2m1": ml_dtypes.float4_e2m1fn, "e4m3": ml_dtypes.float8_e4m3fn,
            "e5m2": ml_dtypes.float8_e5m2, "e8m0": ml_dtypes.float8_e8m0fnu}[name]
    return code.astype(np.uint8).view(kind).astype(F)


def fma(a, b, c):
    """a * b + c of float32, rounded once. a * b is exact in float64 (here a, b may have 30 bits
    together, or 48); the sum is rounded to odd, so that rounding again to 24 bits is right."""
    product, c = a.astype(np.float64) * b.astype(np.float64), np.asarray(c, np.float64)
    total = product + c
    back = total - product                      # what rounding the sum lost (Knuth)
    lost = (product - (total - back)) + (c - back)
    bits = total.view(np.int64)
    even = (bits & 1 == 0) & (lost != 0) & np.isfinite(total)
    away = (lost > 0) == (total > 0)            # from zero
    bits = np.where(even, np.where(away, bits + 1, bits - 1), bits)
    return bits.view(np.float64).astype(F)


# ---------------------------------------------------------------------------------------------
# Inputs: as in test_quantizer.c

KINDS = ["gradual", "any", "tiny", "mostly zero", "quarters", "bell", "large", "zero", "ranges",
         "scale ties"]
SHAPES = [(16, 16), (32, 48), (64, 128), (144, 208)]


def inputs(kind, rows, cols):
    i = np.arange(rows * cols)
    w = philox(2 << 32 | 1, (i, 0, 0, KINDS.index(kind)))[0].astype(np.int64)
    sign, mantissa, exponent = w >> 31 << 15, w >> 8 & 127, 120 + (w >> 20 & 7)
    bell = ((w & 255) + (w >> 8 & 255) + (w >> 16 & 255) + (w >> 24)) - 510
    bell = np.trunc(bell / 2).astype(int).astype(F)         # no -0
    if kind == "any":
        exponent = (w >> 20 & 255) % 253
    elif kind == "tiny":
        exponent = w >> 20 & 3
    elif kind == "mostly zero":
        exponent, mantissa = np.where(w & 15, 0, exponent), np.where(w & 15, 0, mantissa)
    elif kind == "quarters":
        return ((w >> 8 & 63) - 32).astype(F).reshape(rows, cols) / F(4)
    elif kind == "bell":
        return bell.reshape(rows, cols)
    elif kind == "large":
        exponent = 247 + (w >> 20 & 7)
    elif kind == "ranges":
        return np.ldexp(bell, (i // 64 % 32 - 24)).astype(F).reshape(rows, cols)
    elif kind == "scale ties":
        first = np.ldexp((17 + (w >> 8 & 15)).astype(F) * F(1.75), (w >> 12 & 3) - 6).astype(F)
        x = np.where(i % 16 > 0, bell / F(2048), np.where(i > 0, first, F(12.25)))
        return x.reshape(rows, cols)
    elif kind == "zero":
        return np.zeros((rows, cols), F)
    half = (sign | exponent << 7 | mantissa).astype(np.uint16)
    return half.view(ml_dtypes.bfloat16).astype(F).reshape(rows, cols)


# ---------------------------------------------------------------------------------------------
# Quantizers

QUANTIZERS = [
    "nvfp4", "nvfp4 tile", "nvfp4 sr", "nvfp4 tile sr", "nvfp4 paper", "nvfp4 tile paper",
    "nvfp4 sr paper", "nvfp4 46", "nvfp4 46 mae", "nvfp4 tile 46", "nvfp4 tile 46 mae",
    "nvfp4 sr unbiased", "nvfp4 tile sr unbiased", "nvfp4 eden",
    "mxfp4", "mxfp4 tile", "mxfp4 sr", "mxfp4 tile sr", "mxfp8", "mxfp8 tile", "fp8", "fp8 e5m2",
    "fp8block", "fp8block tile"]
BLOCK = {"nvfp4": 16, "mxfp4": 32, "mxfp8": 32, "fp8block": 128}


def largest_product(words):
    if words[0] == "fp8":
        return F(57344 if "e5m2" in words else 448)
    f = 6 * 16 / 17
    return F(f / 0.93 * 256 if "eden" in words else 6 * 256 if "46" in words
             else f * 448 if "unbiased" in words else 6 * 448)


def stochastic_e2m1(y, random):
    """Codes of y >= 0: the position between two neighbours, cut to 8 digits, plus a byte."""
    grid = np.array([0, .5, 1, 1.5, 2, 3, 4, 6, 8])
    y = np.minimum(y.astype(np.float64), 6)
    low = np.searchsorted(grid, y, side="right") - 1
    position = np.floor((y - grid[low]) / (grid[low + 1] - grid[low]) * 256)
    return (low + (position + random >= 256)).astype(np.uint8)


def stochastic_e4m3(a, random):
    """Bytes of a >= 0: the position in 2^20ths, to nearest where it has more digits."""
    grid = value(np.arange(127), "e4m3").astype(np.float64)
    a = np.minimum(a.astype(np.float64), 448)
    low = np.searchsorted(grid, a, side="right") - 1
    width = np.append(np.diff(grid), np.inf)[low]
    position = np.rint((a - grid[low]) / width * 2**20)
    return (low + (position + random >= 2**20)).astype(np.uint8)


def block_inverse(scale_bytes, scale):
    with np.errstate(divide="ignore", over="ignore"):
        return np.minimum(F(1) / (value(scale_bytes, "e4m3") * scale), FLOAT_MAX)


def spread(per_block, tile_rows, block, rows, cols):
    """From (tiles, blocks) to (rows, cols)."""
    return per_block.repeat(tile_rows, 0)[:rows].repeat(block, 1)[:, :cols]


def group_sums(terms, start=F(0)):
    """Folds an operation over the 16 elements of each group: terms(total, j)."""
    total = start
    for j in range(16):
        total = terms(total, j)
    return total


def quantize(x, name):
    """x (rows, cols): codes (rows, cols), scale bytes (rows, blocks)."""
    words, (rows, cols) = name.split(), x.shape
    element = "e2m1" if words[0] in ("nvfp4", "mxfp4") else "e5m2" if "e5m2" in words else "e4m3"
    block = BLOCK.get(words[0], cols)
    tile_rows = block if "tile" in words else 1
    amax = np.abs(x).max()
    padded = np.zeros((-(-rows // tile_rows) * tile_rows, -(-cols // block) * block), F)
    padded[:rows, :cols] = np.abs(x)
    tiles = padded.reshape(len(padded) // tile_rows, tile_rows, -1, block)
    block_amax = tiles.max(axis=(1, 3))
    scale_bytes = np.zeros((rows, 0), np.uint8)
    if words[0] in ("nvfp4", "fp8"):
        inverse = min(largest_product(words) / amax, FLOAT_MAX) if amax > 0 else F(1)
        scale = F(1) / inverse
    if words[0] == "fp8":
        to_codes = np.full_like(x, inverse)
    elif words[0] == "nvfp4":
        f = 6 * 16 / 17
        M = f / 0.93 if "eden" in words else f if "unbiased" in words else 6
        if "paper" in words:
            tile_bytes = cast(block_amax / F(6) * inverse, "e4m3")
        else:
            tile_bytes = cast(block_amax * (inverse * F(1 / M)), "e4m3")
        if "46" in words:
            bytes_4 = cast(block_amax * (inverse * F(1 / 4)), "e4m3")
            errors = []
            for candidate in (tile_bytes, bytes_4):
                D = spread(candidate, tile_rows, 16, rows, cols)
                q = value(cast(x * block_inverse(D, scale), element), element)
                d = fma(q * value(D, "e4m3"), np.full_like(x, scale), -x).reshape(rows, -1, 16)
                if "mae" in words:
                    error = group_sums(lambda e, j: e + np.abs(d[:, :, j]))
                else:
                    error = group_sums(lambda e, j: fma(d[:, :, j], d[:, :, j], e))
                total = np.zeros_like(block_amax)
                for row in range(tile_rows):
                    total += error[row::tile_rows]
                errors.append(total)
            tile_bytes = np.where(errors[1] < errors[0], bytes_4, tile_bytes)
        scale_bytes = tile_bytes.repeat(tile_rows, 0)[:rows]
        to_codes = block_inverse(spread(tile_bytes, tile_rows, 16, rows, cols), scale)
    else:
        m, k = np.frexp(block_amax)             # block_amax = m * 2^k, 0.5 <= m < 1
        m_largest, k_largest = np.frexp(F(6 if element == "e2m1" else 448))
        exponent = np.where(block_amax > 0, k - k_largest + (m > m_largest), -127)
        tile_bytes = (np.maximum(exponent, -127) + 127).astype(np.uint8)
        scale_bytes = tile_bytes.repeat(tile_rows, 0)[:rows]
        to_codes = F(1) / value(spread(tile_bytes, tile_rows, block, rows, cols), "e8m0")

    y = x * to_codes
    group = np.arange(rows * cols // 16)
    random = np.stack(philox(SEED, (group, 0, TAG, STEP)), axis=1)          # (groups, 4) words
    if "sr" in words:
        shifts = np.arange(0, 32, 8, dtype=np.uint64)
        random_bytes = (random[:, :, None] >> shifts & np.uint64(255)).reshape(rows, cols)
        codes = stochastic_e2m1(np.abs(y), random_bytes) | np.signbit(x).astype(np.uint8) << 3
    else:
        codes = cast(y, element)
    if "eden" in words:
        y = np.where(scale_bytes.repeat(16, 1) > 0, y, 0).reshape(rows, -1, 16)
        q = value(codes, element).reshape(rows, -1, 16)
        squares = group_sums(lambda e, j: fma(y[:, :, j], y[:, :, j], e))
        products = group_sums(lambda e, j: fma(y[:, :, j], q[:, :, j], e))
        with np.errstate(divide="ignore", invalid="ignore"):
            S = np.where(products == 0, F(1), squares / products)
        upper = (random[:, 0] >> np.uint64(12)).reshape(rows, -1)
        corrected = stochastic_e4m3(S * value(scale_bytes, "e4m3"), upper)
        scale_bytes = np.where(scale_bytes > 0, corrected, 0).astype(np.uint8)
    return codes, scale_bytes


def rotate(x, size, signs):
    """Groups of `size` along the rows."""
    v = np.where(signs, -x.reshape(-1, size), x.reshape(-1, size))
    stride = 1
    while stride < size:
        pairs = v.reshape(len(v), -1, 2, stride)
        v = np.stack([pairs[:, :, 0] + pairs[:, :, 1], pairs[:, :, 0] - pairs[:, :, 1]], axis=2)
        v = v.reshape(-1, size)
        stride *= 2
    return bf16(v * F(1 / np.sqrt(size))).reshape(x.shape)


# ---------------------------------------------------------------------------------------------
# Hashes


def fnv1a_32(data, state=0x811c9dc5):
    for byte in data:
        state = (state ^ byte) * 0x01000193 & 0xffffffff
    return state


def packed(codes, four_bits):
    flat = codes.reshape(-1)
    return (flat[::2] | flat[1::2] << 4 if four_bits else flat).astype(np.uint8).tobytes()


def main():
    print(f"ml_dtypes {ml_dtypes.__version__}, numpy {np.__version__}", file=sys.stderr)
    print("    // quantizer, hashes of codes and of block scales")
    for name in QUANTIZERS:
        code_hash = scale_hash = 0x811c9dc5
        for rows, cols in SHAPES:
            for kind in KINDS:
                with np.errstate(over="ignore", invalid="ignore", under="ignore"):
                    codes, scales = quantize(inputs(kind, rows, cols), name)
                code_hash = fnv1a_32(packed(codes, name[:4] in ("nvfp", "mxfp")
                                            and "mxfp8" not in name), code_hash)
                scale_hash = fnv1a_32(scales.tobytes(), scale_hash)
        name_text = f'"{name}",'
        print(f"    {{ {name_text:27} 0x{code_hash:08x}, 0x{scale_hash:08x} }},")
    print("    // rotation size, fresh signs, hash of BF16 values")
    x = inputs("gradual", 64, 128)
    for size in (16, 32, 64, 128):
        for fresh in (0, 1):
            words = np.array([int(w) for w in philox(SEED, (0xffffffff, 0xffffffff, TAG, STEP))]
                             if fresh else [0xD7E8D7E8] * 4)
            signs = (words[:, None] >> np.arange(32) & 1).reshape(-1)[:size].astype(bool)
            y = rotate(x, size, signs).astype(ml_dtypes.bfloat16)
            print(f"    {{ {size}, {fresh}, 0x{fnv1a_32(y.tobytes()):08x} }},")


main()
