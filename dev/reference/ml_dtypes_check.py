#!/usr/bin/env python3
"""dev/nvfp4_quantize against numpy and ml_dtypes, others' implementation of the number formats.

    python3 -m venv /tmp/ml_dtypes && /tmp/ml_dtypes/bin/pip install numpy ml_dtypes
    make dev/nvfp4_quantize
    /tmp/ml_dtypes/bin/python dev/reference/ml_dtypes_check.py

Two comparisons, both exact:

1. Formats. ml_dtypes' casts of every BF16 value to float4_e2m1fn and float8_e4m3fn, against what
   the program makes of it; each value is put into a matrix whose scales are 1.
2. Matrices. Ordinary and extreme ones are quantized here in numpy float32, one operation at a time
   and rounded by ml_dtypes' casts, in the order that llmc/nvfp4.h defines; amax, scales and codes
   must be equal. To nearest only: stochastic rounding has no counterpart there (dev/test has it).

float4_e2m1fn has no NaN and ml_dtypes leaves it open what NaN becomes; the program refuses NaN.
float8_e4m3fn overflows to NaN, where NVFP4's block scales saturate at 448: hence the minimum below.
"""
import argparse
import os
import subprocess
import sys
import tempfile

import ml_dtypes
import numpy as np

FLOAT_MAX = np.finfo(np.float32).max
ONE_SIXTH = np.float32(1) / np.float32(6)
failures = 0


def report(good, name, text):
    global failures
    failures += not good
    print(f"{'ok  ' if good else 'FAIL'} {name:<28} {text}", flush=True)


def program(x, *flags):
    """Quantizes x (rows, cols) as BF16: amax, scales (rows, blocks), codes (rows, cols)."""
    rows, cols = x.shape
    with tempfile.TemporaryDirectory() as folder:
        path_in, path_out = os.path.join(folder, "in"), os.path.join(folder, "out")
        x.astype(ml_dtypes.bfloat16).tofile(path_in)
        size = ["-r", str(rows), "-c", str(cols)]
        subprocess.run([options.program, *size, *flags, path_in, path_out], check=True)
        out = np.fromfile(path_out, np.uint8)
    if "-transpose" in flags:
        rows, cols = cols, rows
    assert len(out) == 4 + rows * cols // 16 + rows * cols // 2
    amax = out[:4].view(np.float32)[0]
    scales = out[4:4 + rows * cols // 16].reshape(rows, cols // 16)
    packed = out[4 + rows * cols // 16:].reshape(rows, cols // 2)
    codes = np.stack([packed & 15, packed >> 4], axis=-1).reshape(rows, cols)
    return amax, scales, codes


def e2m1(x):
    """Codes of float32 values; the cast saturates as NVFP4 does."""
    return x.astype(ml_dtypes.float4_e2m1fn).view(np.uint8) & 15


def e4m3(x):
    return np.minimum(x, np.float32(448)).astype(ml_dtypes.float8_e4m3fn).view(np.uint8)


def hadamard(x):
    """Groups of 16 along the rows: signs, butterflies of strides 1, 2, 4, 8, a quarter, BF16."""
    signs = np.array([1, 1, 1, -1, 1, -1, -1, -1, -1, -1, -1, 1, -1, 1, -1, -1], np.float32)
    v = x.reshape(-1, 16) * signs
    for stride in (1, 2, 4, 8):
        pairs = v.reshape(len(v), -1, 2, stride)
        v = np.stack([pairs[:, :, 0] + pairs[:, :, 1], pairs[:, :, 0] - pairs[:, :, 1]], axis=2)
        v = v.reshape(-1, 16)
    return (np.float32(0.25) * v).astype(ml_dtypes.bfloat16).astype(np.float32).reshape(x.shape)


def quantize(x, block_rows):
    """x (rows, cols) float32: amax, scales and codes, every operation in float32."""
    rows, cols = x.shape
    amax = np.abs(x).max()
    inverse = np.float32(1)
    if amax > 0:
        inverse = np.minimum(np.float32(2688) / amax, FLOAT_MAX)
    scale = np.float32(1) / inverse
    tiles = np.abs(x).reshape(rows // block_rows, block_rows, cols // 16, 16)
    block_amax = tiles.max(axis=(1, 3))
    scales = e4m3(np.minimum(block_amax * (inverse * ONE_SIXTH), FLOAT_MAX))
    block_scale = scales.view(ml_dtypes.float8_e4m3fn).astype(np.float32)
    block_inverse = np.minimum(np.float32(1) / (block_scale * scale), FLOAT_MAX)
    scales = scales.repeat(block_rows, axis=0)
    block_inverse = block_inverse.repeat(block_rows, axis=0).repeat(16, axis=1)
    return amax, scales, e2m1(x * block_inverse)


def check_formats():
    bits = np.arange(1 << 16, dtype=np.uint16)
    values = bits.view(ml_dtypes.bfloat16).astype(np.float32)
    values = values[np.isfinite(values)]

    # E2M1: 2688 in the first block gives the matrix the inverse 1, 6 in the second gives it scale 1
    # and so inverse 1: 14 elements a row arrive at the rounding as they are.
    small = values[np.abs(values) <= 6]
    x = np.zeros((-(-len(small) // 14), 32), np.float32)
    x[:, 0] = 2688
    x[:, 16] = 6
    x[:, 18:].flat[:len(small)] = small
    _, scales, codes = program(x)
    assert (scales[:, 1] == 0x38).all(), "the second block's scale is not 1"
    differ = np.count_nonzero(codes[:, 18:].reshape(-1)[:len(small)] != e2m1(small))
    report(differ == 0, "e2m1", f"{len(small)} BF16 values up to 6, {differ} differ")

    # E4M3: one value a block, not negative, up to 6 * 448; the scale is E4M3(value * (1/6))
    amaxes = values[~np.signbit(values) & (values <= 2688)]
    x = np.zeros((len(amaxes), 32), np.float32)
    x[:, 0] = 2688
    x[:, 16] = amaxes
    _, scales, _ = program(x)
    differ = np.count_nonzero(scales[:, 1] != e4m3(amaxes * ONE_SIXTH))
    report(differ == 0, "e4m3", f"a sixth of {len(amaxes)} BF16 values up to 2688, {differ} differ")


def matrices(random, rows, cols):
    """Name and values of each kind, finite BF16 values in float32."""
    normal = random.standard_normal((rows, cols)).astype(np.float32)
    spread = random.integers(-40, 40, (rows, cols))
    with np.errstate(over="ignore", invalid="ignore"):
        kinds = {
            "normal": normal,
            "outliers": np.where(random.random((rows, cols)) < 0.01, 300 * normal, normal),
            "wide": np.ldexp(normal, spread),
            "one exponent a row": np.ldexp(normal, random.integers(-40, 40, (rows, 1))),
            "any bits": random.integers(0, 1 << 16, (rows, cols)).astype(np.uint16)
                              .view(ml_dtypes.bfloat16).astype(np.float32),
            "subnormal": np.ldexp(normal, -130),
            "tiny": np.ldexp(normal, -120),
            "huge": np.ldexp(normal, 126),
            "zeros": np.zeros((rows, cols), np.float32),
            "minus zeros": np.full((rows, cols), -0.0, np.float32),
            "mostly zero": np.where(random.random((rows, cols)) < 0.02, normal, 0 * normal),
            "ties": random.integers(-24, 25, (rows, cols)).astype(np.float32) / 4,
            "powers of two": np.ldexp(np.float32(1), spread),
        }
        for name, x in kinds.items():
            x = x.astype(ml_dtypes.bfloat16).astype(np.float32)
            x = np.where(np.isfinite(x), x, np.copysign(np.float32(3e38), normal))
            yield name, x.astype(ml_dtypes.bfloat16).astype(np.float32)


def check_matrices():
    cases = [((), 1, lambda x: x),
             (("-block", "16x16"), 16, lambda x: x),
             (("-transpose", "1"), 1, lambda x: x.T),
             (("-hadamard", "1"), 1, hadamard),
             (("-transpose", "1", "-hadamard", "1"), 1, lambda x: hadamard(x.T))]
    random = np.random.default_rng(1)
    for flags, block_rows, prepare in cases:
        elements, differ, where = 0, 0, ""
        for rows, cols in ((16, 16), (64, 128), (144, 80), (512, 768)):
            for name, x in matrices(random, rows, cols):
                if "-hadamard" in flags and name in ("huge", "any bits"):   # keep the sums finite
                    x = np.ldexp(x, -8).astype(ml_dtypes.bfloat16).astype(np.float32)
                with np.errstate(over="ignore", divide="ignore"):
                    ours, theirs = program(x, *flags), quantize(prepare(x), block_rows)
                found = int(ours[0].view(np.uint32) != np.float32(theirs[0]).view(np.uint32))
                found += np.count_nonzero(ours[1] != theirs[1])
                found += np.count_nonzero(ours[2] != theirs[2])
                if found and not differ:
                    where = f"; first in {name} {x.shape}"
                elements += x.size
                differ += found
        report(differ == 0, " ".join(flags) or "1x16",
               f"{elements} elements in 52 matrices: amax, scales, codes, {differ} differ{where}")


parser = argparse.ArgumentParser(description="dev/nvfp4_quantize against numpy and ml_dtypes")
here = os.path.dirname(os.path.abspath(__file__))
parser.add_argument("--program", default=os.path.join(here, "../nvfp4_quantize"))
options = parser.parse_args()
print(f"ml_dtypes {ml_dtypes.__version__}, numpy {np.__version__}")
check_formats()
check_matrices()
sys.exit(failures > 0)
