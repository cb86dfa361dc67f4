#!/usr/bin/env python3
"""Prints the hashes that are stored in llmc/self_test_quantizers.cuh.

NVFP4 quantization once more, in plain Python from the specification of the format (the comments of
llmc/nvfp4.h, hadamard.h and random.h say it in words), with rules written in other ways where there
are any: rounding by comparison with the midpoints, E4M3 by a search in the table of its values. Of
the self-test it shares the definition of the tensors. About 2 seconds; standard library only.

    dev/reference/self_test_hashes.py           every tensor and operand; the C file stores some
"""
import bisect
import math
import struct


def float_bits(x):
    return struct.unpack("<I", struct.pack("<f", x))[0]


def bits_float(bits):
    return struct.unpack("<f", struct.pack("<I", bits))[0]


def fp32(x):
    """x, a double, rounded to FP32. One operation in double, rounded, is that operation in FP32."""
    try:
        return struct.unpack("<f", struct.pack("<f", x))[0]
    except OverflowError:
        return math.copysign(math.inf, x)


def bf16(x):
    """x, FP32, rounded to BF16, ties to even."""
    upper, lower = float_bits(x) >> 16, float_bits(x) & 0xFFFF
    if lower > 0x8000 or (lower == 0x8000 and upper & 1):
        upper += 1
    return bits_float(upper << 16)


def sign_bit(x):
    return float_bits(x) >> 31


# ---------------------------------------------------------------------------------------------
# Random numbers: Philox4x32-10 (Salmon et al., 2011)

def philox(key, counter):
    """Four words from a key of 64 bits and a counter of four words."""
    c, k = list(counter), [key & 0xFFFFFFFF, key >> 32]
    for _ in range(10):
        low, high = 0xD2511F53 * c[0], 0xCD9E8D57 * c[2]
        c = [high >> 32 ^ c[1] ^ k[0], high & 0xFFFFFFFF, low >> 32 ^ c[3] ^ k[1], low & 0xFFFFFFFF]
        k = [(k[0] + 0x9E3779B9) & 0xFFFFFFFF, (k[1] + 0xBB67AE85) & 0xFFFFFFFF]
    return c


# ---------------------------------------------------------------------------------------------
# The format

E4M3 = [m * 2.0 ** -9 if e == 0 else (8 + m) * 2.0 ** (e - 10)
        for e in range(16) for m in range(8)][:127]         # the last is 448; the next byte is NaN


def e4m3(x):
    """The byte of the nearest E4M3 value, ties to even; x >= 0."""
    if x >= 448:
        return 126
    below = bisect.bisect_right(E4M3, x) - 1
    to_below, to_above = x - E4M3[below], E4M3[below + 1] - x
    return below + (to_above < to_below or (to_above == to_below and below % 2 == 1))


def e2m1(x):
    """The nearest code, ties to even."""
    a = abs(x)
    code = ((a > 0.25) + (a >= 0.75) + (a > 1.25) + (a >= 1.75) + (a > 2.5) + (a >= 3.5) + (a > 5))
    return code | sign_bit(x) << 3


def e2m1_stochastic(x, byte):
    """Up if the fraction of the way to the next code, in whole 256ths, and the byte carry."""
    a = abs(x)
    if a >= 6:
        return 7 | sign_bit(x) << 3
    base, step = (0, 0.5) if a < 2 else (2, 1) if a < 4 else (4, 2)
    parts = math.floor(256 * a / step)
    return base + (parts + byte) // 256 | sign_bit(x) << 3


SEED, STEP = 0x9ABCDEF012345678, 3


def quantize(x, rows, cols, block_rows, stochastic, tag):
    """x (rows * cols) -> bits of amax, packed codes, scale bytes in row-major order."""
    largest = bits_float(0x7F7FFFFF)
    amax = max(abs(v) for v in x)
    inverse = 1.0 if amax == 0 else min(fp32(2688 / amax), largest)
    tensor_scale = fp32(1 / inverse)
    inverse_by_6 = fp32(inverse * fp32(1 / 6))
    blocks = cols // 16
    codes, scales = [0] * (rows * cols), [0] * (rows * blocks)
    for top in range(0, rows, block_rows):
        for block in range(blocks):
            tile = [row * cols + 16 * block for row in range(top, top + block_rows)]
            block_amax = max(abs(v) for first in tile for v in x[first:first + 16])
            scale = e4m3(min(fp32(block_amax * inverse_by_6), largest))
            divisor = fp32(E4M3[scale] * tensor_scale)
            block_inverse = min(fp32(1 / divisor), largest) if divisor > 0 else largest
            for first in tile:
                index = first // 16
                scales[index] = scale
                words = philox(SEED, (index, 0, tag, STEP))
                for j in range(16):
                    y = fp32(x[first + j] * block_inverse)
                    byte = words[j // 4] >> 8 * (j % 4) & 255
                    codes[first + j] = e2m1_stochastic(y, byte) if stochastic else e2m1(y)
    packed = bytes(even | odd << 4 for even, odd in zip(codes[::2], codes[1::2]))
    return float_bits(amax), packed, bytes(scales)


# ---------------------------------------------------------------------------------------------
# The transposed operands

SIGNS = [1, 1, 1, -1, 1, -1, -1, -1, -1, -1, -1, 1, -1, 1, -1, -1]


def hadamard(values):
    """16 values: signs, butterflies at distance 1, 2, 4, 8, a quarter of it, rounded to BF16."""
    v = [value * sign for value, sign in zip(values, SIGNS)]
    for distance in (1, 2, 4, 8):
        for i in range(16):
            if not i & distance:
                a, b = v[i], v[i + distance]
                v[i], v[i + distance] = fp32(a + b), fp32(a - b)
    return [bf16(fp32(0.25 * value)) for value in v]


def transpose(x, rows, cols, with_hadamard):
    out = []
    for col in range(cols):
        column = x[col::cols]
        for first in range(0, rows, 16):
            group = column[first:first + 16]
            out += hadamard(group) if with_hadamard else group
    return out


# ---------------------------------------------------------------------------------------------
# The tensors: self_test_random, self_test_edge and self_test_fill of the C file

def random_value(i, exponent):
    w = philox(2 << 32 | 1, (i, 0, 0, 0))[0]
    return bits_float((w >> 31 << 15 | (exponent + (w >> 20 & 7)) << 7 | w >> 8 & 127) << 16)


def edge(tile, i):
    x = [0.25, 0.75, 1.25, 1.75, 2.5, 3.5, 5.0, 6.0][i % 8] * (1 if i < 8 else -1)
    largest = i % 8 == 7
    if tile < 9:
        nudge = 0 if largest else tile % 3 - 1
        return bits_float(float_bits(x) + (nudge << 16)) * [2.0 ** -5, 1, 128][tile // 3]
    if tile < 25:
        s = 1 + ((tile - 9) % 8 + 0.5) / 8
        return bits_float(float_bits(x * s) + ((tile >= 17) << 16)) if largest else x
    if tile < 33:
        return x * (tile - 25 + 0.5) / 512
    if tile == 33:
        return 0.0 * x
    if tile == 34:
        return x * 2.0 ** -12
    if tile == 35:
        return x if largest else x * 2.0 ** -130
    return random_value(16 * tile + i, 120)


def tensor(name):
    rows, cols = (64, 128) if name == "SPEC" else (80, 144)
    x = []
    for row in range(rows):
        for col in range(cols):
            tile = row // 16 * (cols // 16) + col // 16
            value = random_value(row * cols + col, 0 if name == "TINY" else 120)
            if name == "TINY" and tile % 2 == 1:
                value = bits_float(float_bits(value) & 0x807FFFFF)
            x.append(edge(tile, (row + col) % 16) if name == "EDGES"
                     else 0.0 * value if name == "ZEROS" else value)
    if name == "EDGES":
        x[-1] = -2688.0
    if name == "TINY":
        x[-1] = 1.25 * 2.0 ** -117
    if name == "OUTLIER":
        x[0] = 2.0 ** 120
    return x, rows, cols


def fnv1a(data):
    value = 0x811C9DC5
    for byte in data:
        value = (value ^ byte) * 0x01000193 & 0xFFFFFFFF
    return value


def main():
    for name in ("SPEC", "EDGES", "ZEROS", "TINY", "OUTLIER"):
        x, rows, cols = tensor(name)
        assert all(float_bits(v) & 0xFFFF == 0 for v in x), "not BF16"
        xT, xT_hadamard = (transpose(x, rows, cols, h) for h in (False, True))
        for operand, source, transposed, block_rows, stochastic, tag in (
                ("X", x, False, 1, False, 7), ("X_STOCHASTIC", x, False, 1, True, 7),
                ("XT", xT, True, 1, False, 9), ("XT_STOCHASTIC", xT, True, 1, True, 9),
                ("XT_HADAMARD", xT_hadamard, True, 1, False, 9),
                ("XT_HADAMARD_STOCHASTIC", xT_hadamard, True, 1, True, 9),
                ("W", x, False, 16, False, 0), ("WT", xT, True, 16, False, 0)):
            shape = (cols, rows) if transposed else (rows, cols)
            amax, codes, scales = quantize(source, *shape, block_rows, stochastic, tag)
            print(f"    {{ TENSOR_{name}, {operand + ',':24}0x{amax:08x}, 0x{fnv1a(codes):08x}, "
                  f"0x{fnv1a(scales):08x} }},")


if __name__ == "__main__":
    main()
