#!/usr/bin/env python3
"""
Tests of dev/sensitivity on a tiny model trained here: the statistics of weights and the loss with
quantized weights against a quantizer written here in Python; losses against those that the trainer
reports for the same -p; the gradient's noise against the trainer's, and what must hold exactly if one
GEMM is quantized; the same bytes for any number of threads; the CUDA program, on the CPU, against
the C program; the report's numbers by hand, of made-up measurements, and against its JSON; bad
input. Statistics of single operands are in test_sensitivity.c. Standard library; plots need
matplotlib and are skipped without. Prints lines as report.h describes.

Seen failing, each in a copy. measure.h: this layer kept exchanged with this layer alone; exceptions
on the next layer or block, on the whole block; layers numbered from 1; blocks of the highest loss
kept, chosen by one of their layers, last blocks one too early; weights quantized as X, without the
tensor scale, with block 0's amax, not from BF16, not in the last block, and left quantized; weights
alone exchanged with weights and activations; Four Over Six by absolute error; first batch again and
again, last rows or first tokens left out, a last batch too long; backward=bf16 forgotten; the same
random bits twice, bits from the clock; GEMMs exchanged; another micro-batch; errors against another
gradient, of squares, of 65,536 elements, of block 0; W^T always, never, not transposed; no Hadamard
transform, signs of another GEMM or block (where CUDA code is built); exponents off by one, scales
cut, flushed and saturated exchanged, X's quantizer for all; every pass observed, passes miscounted;
-p, -vt, -t unchecked.
sensitivity_cpu.c, sensitivity_cuda.cu: gradients that add up or are of the sum, the model's bits;
recipe, masters, working weights not renewed; the source masters, block 0's, cut in half; codes,
scales, amax not copied. findings.py: 20 log10, ln, noise over signal; each share of another whole;
below 2^-7, zero scales left out, in every format; differences the other way, unpaired, stdev for its
error or of a population, 2 errors, only gains resolved; groups of rows far from each other, the rest
left out, sqrt(rows) for sqrt(groups), groups of single rows; perplexity 2^loss; cost for gain; operands in
another order; noise not halved, inverted, squared, against BF16; sqrt(2); errors over another
gradient, squared; ranking reversed, by size, of layers alone, with blocks; damaged numbers accepted.
pages.py: bold exchanged, sqrt(3) the other way or of the whole model; nats for thousandths, shares
without 100, errors without their factor; a block or section missing, columns moved, a table twice;
losses or ratios for perplexity's change; losses and noise counted as gains; names of last and best
blocks or of GEMMs exchanged; flags left out; each heat map with other numbers, moved by a power,
upside down; HTML or | not escaped, a header lost. dev/sensitivity: flags not passed on or given
twice, plots with --no-plots, two in one -o, failures ignored, --measured ignored, with flags, without
an effect.
"""
import bisect
import contextlib
import fcntl
import html
import importlib.util
import json
import math
import os
import random
import re
import statistics
import struct
import subprocess
import sys
import tempfile

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
SENSITIVITY = os.path.join(ROOT, "dev", "sensitivity")
PROGRAM = os.path.join(ROOT, "dev", "sensitivity_cpu")
CUDA_PROGRAM = os.path.join(ROOT, "build", "cpu", "dev", "sensitivity_cuda")
TRAINER = os.path.join(ROOT, "train_gpt2_fp32")
os.environ["CUDA_VISIBLE_DEVICES"] = ""         # the same on machines with GPUs
os.environ.setdefault("GOMP_SPINCOUNT", "1000")
sys.dont_write_bytecode = True
sys.path[:0] = [os.path.join(ROOT, "dev", name) for name in ("sensitivity_report",
                                                             "compare_report")]

import findings         # noqa: E402  (after the path is set)
import pages            # noqa: E402
from run_log import ReportError     # noqa: E402

LAYERS, CHANNELS, VOCAB, T, B = 2, 64, 256, 32, 4
LINEARS = {"qkv": (3, 1), "attproj": (1, 1), "fc": (4, 1), "fcproj": (1, 4)}    # rows, cols in C
LINEAR_NAMES = tuple(LINEARS)

failures = 0


def report(good, name, detail=""):
    global failures
    print(f"{'ok  ' if good else 'FAIL'} {name:<28} {detail}", flush=True)
    failures += not good


def report_all(wrong, name, detail):
    """wrong: descriptions of what is not as it should be."""
    report(not wrong, name, detail if not wrong else f"{len(wrong)} wrong, first: {wrong[0]}")


def check_equal(wrong, what, found, expected, tolerance=0.0):
    """Adds to `wrong` what differs; numbers may differ by a relative tolerance."""
    if isinstance(expected, float) and isinstance(found, (int, float)):
        good = abs(found - expected) <= tolerance * abs(expected)
    else:
        good = found == expected
    if not good:
        wrong.append(f"{what} is {found!r}, should be {expected!r}")


def run(*words, **more):
    """(exit status, output, errors)"""
    result = subprocess.run(words, text=True, capture_output=True, timeout=300, **more)
    return result.returncode, result.stdout, result.stderr


def must(*words, **more):
    status, output, errors = run(*words, **more)
    if status:
        raise SystemExit(f"{' '.join(words)}: status {status}\n{output}{errors}")
    return output


def read_json(path):
    with open(path, encoding="utf-8") as file:
        text = file.read()
    try:
        return json.loads(text)
    except ValueError as error:
        raise SystemExit(f"FAIL {path}: {error}") from None


def read_log(directory):
    """The lines of a trainer's log, without that about the run."""
    with open(os.path.join(directory, "log.jsonl"), encoding="utf-8") as file:
        return [json.loads(line) for line in file][1:]


# ---------------------------------------------------------------------------------------------
# Data and model

def write_tokens(path, count, seed, add=0):
    numbers = random.Random(seed)
    tokens = [add + min(VOCAB - 1, int(numbers.expovariate(0.03))) for _ in range(count)]
    with open(path, "wb") as file:
        file.write(struct.pack("<256i", 20240520, 1, count, *[0] * 253))
        file.write(struct.pack(f"<{count}H", *tokens))


class Setup:
    """Files of the tests, in a directory of their own."""

    def __init__(self, work):
        self.work = work
        self.train, self.four_rows = self.path("train.bin"), self.path("four.bin")
        self.val = self.path("val_*.bin")
        write_tokens(self.train, 20000, 1)
        write_tokens(self.four_rows, B * T + 1, 2)
        write_tokens(self.path("val_0.bin"), 5 * T + 1, 3)          # 5 rows, and 4 in another shard
        write_tokens(self.path("val_1.bin"), 4 * T + 9, 4)
        self.model = self.trained("model", f"layers={LAYERS},channels={CHANNELS},heads=2")

    def path(self, name):
        return os.path.join(self.work, name)

    def trained(self, name, shape, steps=60, recipe="bf16"):
        must(TRAINER, "-e", f"{shape},vocab={VOCAB}", "-p", recipe, "-b", "8", "-t", str(T), "-x",
             str(steps), "-l", "3e-3", "-n", str(steps), "-o", self.path(name), "-i", self.train,
             "-pr", "0")
        return self.path(f"{name}/model_{steps:08d}.bin")

    def flags(self, **more):
        """Of a measurement: all validation rows, in batches of 4, 4 and 1."""
        flags = {"-e": self.model, "-j": self.val, "-i": self.four_rows, "-vt": "0", "-b": str(B),
                 "-t": str(T), **{f"-{name}": value for name, value in more.items()}}
        return [word for pair in flags.items() for word in pair]

    def measured(self, name, program=PROGRAM, env=None, **more):
        must(program, *self.flags(o=self.path(name), **more), env=env)
        return read_json(self.path(name))

    def trainer_loss(self, recipe, model=None):
        """What the trainer calls the validation loss of a model file, without any update."""
        with tempfile.TemporaryDirectory(dir=self.work) as out:
            must(TRAINER, "-e", model or self.model, "-p", recipe, "-x", "0", "-v", "1", "-vt", "0",
                 "-b", str(B), "-t", str(T), "-i", self.train, "-j", self.val, "-o", out, "-pr", "0")
            return read_log(out)[-1]["val_loss"]

    def trainer_log(self, recipe, steps):
        """The trainer's log of updates of the four rows that leave the weights as they are."""
        with tempfile.TemporaryDirectory(dir=self.work) as out:
            must(TRAINER, "-e", self.model, "-p", recipe, "-x", str(steps), "-l", "1e-30", "-c", "0",
                 "-b", str(B), "-t", str(T), "-i", self.four_rows, "-o", out, "-pr", "0")
            return read_log(out)


# ---------------------------------------------------------------------------------------------
# An NVFP4 quantizer of weights: numbers of the formats in tables, FP32 arithmetic by rounding

E2M1 = [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0]
E4M3 = ([m * 2.0 ** -9 for m in range(8)]
        + [(8 + m) * 2.0 ** (e - 10) for e in range(1, 16) for m in range(8)])[:127]


def f32(x):
    return struct.unpack("<f", struct.pack("<f", x))[0]


def bf16(x):
    bits = struct.unpack("<I", struct.pack("<f", x))[0]
    return struct.unpack("<f", struct.pack("<I", (bits + 0x7fff + (bits >> 16 & 1)) & 0xffff0000))[0]


def nearest(x, table):
    """The number of the table that is nearest to x >= 0; of two, the one with an even index."""
    i = bisect.bisect_left(table, x)
    if i == 0 or i == len(table):
        return table[min(i, len(table) - 1)]
    below, above = x - table[i - 1], table[i] - x
    return table[i - 1 if below < above or below == above and i % 2 else i]


def quantized_block(x, scale, tensor_scale):
    """The real numbers that the elements x become in a block of this scale."""
    inverse = f32(min(1 / f32(scale * tensor_scale), 3.4028234663852886e38)) if scale else None
    return [math.copysign(nearest(abs(f32(v * inverse)), E2M1), v) * scale * tensor_scale
            if scale else 0.0 for v in x]


class Oracle:
    """A weight (rows, cols) of BF16 numbers, quantized in tiles or rows, with or without Four Over
    Six: `values`, what they become, and the counts and sums that measure.h writes."""

    def __init__(self, w, cols, tile, four_six):
        self.values, self.four_six = [0.0] * len(w), four_six
        amax, height = max(map(abs, w)), 16 if tile else 1
        largest = {False: 2688.0, True: 1536.0}
        inverse = {six: f32(largest[six] / amax) for six in largest}
        tensor = {six: f32(1 / inverse[six]) for six in largest}
        self.scales, zero, saturated, flushed, noise = {}, 0, 0, 0, []
        self.fours, self.close = 0, 0       # blocks for 4; blocks that FP32 may decide otherwise
        for top in range(0, len(w) // cols, height):
            for left in range(0, cols, 16):
                at = [row * cols + left + j for row in range(top, top + height) for j in range(16)]
                x = [w[i] for i in at]
                block_amax = max(map(abs, x))

                def candidate(six, factor):
                    scale = nearest(f32(block_amax * f32(inverse[six] * factor)), E4M3)
                    values = quantized_block(x, scale, tensor[six])
                    return scale, values, math.fsum((a - b) ** 2 for a, b in zip(values, x))
                six, four = candidate(True, f32(1 / 6)), candidate(True, 0.25)
                self.fours += four[2] < six[2]
                self.close += abs(four[2] - six[2]) < 1e-5 * six[2]
                chosen = candidate(False, f32(1 / 6)) if not four_six else \
                    four if four[2] < six[2] else six
                exponent = math.frexp(chosen[0])[1] - 1
                self.scales[exponent] = self.scales.get(exponent, 0) + height * (chosen[0] > 0)
                zero += height * (chosen[0] == 0)
                edge = 6 * chosen[0] * tensor[four_six] * 1.00002
                for i, value in zip(at, chosen[1]):
                    self.values[i] = value
                    saturated += value != 0 and abs(w[i]) > edge
                    flushed += value == 0 and w[i] != 0
                    noise.append((value - w[i]) ** 2)
        self.counts = {"nonzero": sum(x != 0 for x in w), "flushed": flushed, "saturated": saturated,
                       "blocks": len(w) // 16, "zero_scales": zero,
                       "choices": len(w) // 16 // height}
        self.sums = {"signal": math.fsum(x * x for x in w), "noise": math.fsum(noise)}


def weights_of(model):
    """[(layer, linear, offset in the file, cols, BF16 values)] of the linear layers of a file."""
    with open(model, "rb") as file:
        data = file.read()
    C, L, at, found = CHANNELS, LAYERS, 1024, []
    sizes = {"wte": VOCAB * C, "wpe": T * C, "ln1w": L * C, "ln1b": L * C, "qkv": 3 * L * C * C,
             "qkvb": 3 * L * C, "attproj": L * C * C, "attprojb": L * C, "ln2w": L * C,
             "ln2b": L * C, "fc": 4 * L * C * C, "fcb": 4 * L * C, "fcproj": 4 * L * C * C}
    for name, size in sizes.items():
        for layer in range(L if name in LINEARS else 0):
            one, first = size // L, at + 4 * layer * (size // L)
            values = struct.unpack(f"<{one}f", data[first:first + 4 * one])
            found.append((layer, name, first, LINEARS[name][1] * C, list(map(bf16, values))))
        at += 4 * size
    return found


def check_weight(wrong, what, found, oracle):
    """found: an entry of "operands"."""
    if abs(found["fours"] - oracle.fours) > oracle.close:
        wrong.append(f"{what}fours {found['fours']}, should be {oracle.fours}")
    if oracle.four_six and oracle.close:
        return
    for name, count in oracle.counts.items():
        check_equal(wrong, what + name, found[name], count)
    for name, value in oracle.sums.items():
        check_equal(wrong, what + name, found[name], value, 1e-12)
    scales = {found["first_exponent"] + i: n for i, n in enumerate(found["scales"]) if n}
    check_equal(wrong, what + "scales", scales, {e: n for e, n in oracle.scales.items() if n})


def test_weights(setup, raw, raw_46):
    """Every W of both measurements, the W^T of the second, which has codes of its own, and the losses
    with weights alone quantized."""
    wrong, count, close = [], 0, 0
    for measured, recipe, tile, four_six in (
            (raw, "nvfp4,tail=0,tile=1", True, False),
            (raw_46, "nvfp4,tail=0,tile=0,foursix=mse", False, True)):
        operands = {(x["layer"], x["linear"], x["operand"]): x for x in measured["operands"]}
        with open(setup.model, "rb") as file:
            data = bytearray(file.read())
        for layer, linear, offset, cols, w in weights_of(setup.model):
            oracles = {"W": Oracle(w, cols, tile, four_six)}
            data[offset:offset + 4 * len(w)] = struct.pack(f"<{len(w)}f", *oracles["W"].values)
            if not tile:
                columns = [x for col in range(cols) for x in w[col::cols]]
                oracles["W^T"] = Oracle(columns, len(w) // cols, tile, four_six)
            for name, oracle in oracles.items():
                check_weight(wrong, f"{recipe}, block {layer} {linear}, {name}: ",
                             operands[layer, linear, name], oracle)
                count += 1
                close += oracle.close
        changed = setup.path("dequantized.bin")
        with open(changed, "wb") as file:
            file.write(data)
        (found,) = (x for x in findings.losses(raw) if x["weights"] == recipe)
        check_equal(wrong, f"loss of {recipe} weights", found["loss"],
                    setup.trainer_loss("bf16", changed), 2e-7)
    check_equal(wrong, "W^T with the codes of W", [x for x in raw["operands"]
                                                   if x["operand"] == "W^T"], [])
    report_all(wrong, "weights", f"{count} as in Python ({close} blocks too close to call); losses of 2 "
               "quantizers' weights as the trainer's")


def test_operands(*measurements):
    """Each operand is held against what it was made from: the tensor of this layer, transposed and
    rotated as the quantizer had it. Against any other the noise would be as large as the signal."""
    wrong, ratios = [], []
    for raw in measurements:
        for x in findings.operands(raw):
            ratios.append(x["snr"])
            if not x["snr"] > 12:
                wrong.append(f"-p {raw['flags']['-p']}, block {x['layer']} {x['linear']}, {x['operand']}: "
                             f"{x['snr']} dB")
    report_all(wrong, "operands", f"{len(ratios)}, signal to noise {min(ratios):.1f} dB and more")


# ---------------------------------------------------------------------------------------------
# Losses and gradients

def test_losses(setup, raw, raw_46, rotated):
    wrong, recipes = [], {}
    for x in findings.losses(raw):
        if not x["weights"]:
            recipes.setdefault(x["recipe"], x["loss"])
    tried = ["nvfp4,tail=0", "nvfp4,tail=0,all=bf16", "nvfp4,tail=0,all=bf16:1/fc",
             "nvfp4,tail=0,all=bf16,all=nvfp4:0/qkv", "nvfp4,tail=0,all=bf16:0",
             "nvfp4,tail=0,tile=0,foursix=mse"]
    for recipe in tried:
        check_equal(wrong, recipe, recipes.get(recipe), setup.trainer_loss(recipe), 2e-7)
    check_equal(wrong, "bf16", recipes["nvfp4,tail=0,all=bf16"], setup.trainer_loss("bf16"), 2e-7)
    check_equal(wrong, "the last block", recipes.get("nvfp4,tail=0,all=bf16:1-1"),
                setup.trainer_loss("nvfp4,tail=1"), 2e-7)
    counts = {kind: sum(x["kind"] == kind for x in raw["losses"]) for kind in
              ("none", "all", "all but", "only", "weights", "weights and activations",
               "last blocks", "best blocks")}
    check_equal(wrong, "losses", list(counts.values()), [1, 1, 10, 10, 4, 4, 1, 1])
    for x in raw["losses"]:
        place = f"{x['layer']}/{x['linear']}" if x["linear"] else x["layer"]
        if x["layer"] is not None:
            check_equal(wrong, f"recipe of {x['kind']} {place}", x["recipe"], "nvfp4,tail=0,all=bf16"
                        + (f":{place}" if x["kind"] == "all but" else f",all=nvfp4:{place}"))
    check_equal(wrong, "rows", {len(x["rows"]) for x in raw["losses"]}, {9})
    for measured in (raw, raw_46, rotated):     # the block without which the loss is lowest was chosen
        found = findings.losses(measured)
        blocks = {x["layer"]: x["loss"] for x in found if x["kind"] == "all but" and x["linear"] is None}
        (chosen,) = (x for x in found if x["kind"] == "best blocks")
        check_equal(wrong, "best block", chosen["recipe"],
                    f"{measured['flags']['-p']},all=bf16:{min(blocks, key=blocks.get)}")
    report_all(wrong, "losses", f"{len(tried) + 2} as the trainer's of the same -p, to 2e-7; one of "
               "each layer")


def gradients(raw, of, against):
    return {(x["layer"], x["linear"]): x for x in raw["gradients"]
            if (x["of"], x["against"]) == (of, against)}


def test_gradients(setup, raw):
    wrong, last = [], (LAYERS - 1, "fcproj")
    for gemm in ("fprop", "dgrad", "wgrad"):
        x = gradients(raw, gemm, "bf16")
        whole, sums = x.pop((None, None)), {}
        for name in ("reference", "difference"):
            sums[name] = math.fsum(y[name] for y in x.values())
        check_equal(wrong, f"{gemm}, layers", len(x), 4 * LAYERS)
        # a quantized wgrad changes the gradients of weights and nothing else; a quantized dgrad all
        # but the last layer's; a quantized fprop that as well
        inside = abs(sums["difference"] / whole["difference"] - 1) < 1e-9
        check_equal(wrong, f"{gemm} stays in its weights", inside, gemm == "wgrad")
        check_equal(wrong, f"{gemm} leaves the last layer", x[last]["difference"] == 0,
                    gemm == "dgrad")
        for layer, y in x.items():
            if layer != last and not 0 < y["difference"] < 0.5 * y["reference"]:
                wrong.append(f"{gemm}, {layer}: {y}")
    # the first gradient of a training run is of the same rows with the same random bits; the trainer
    # adds squares in FP32
    for gemm, recipe, name in (("all", "bf16", "reference"), ("all", "nvfp4,tail=0", "squares"),
                               ("fprop", "nvfp4,tail=0,backward=bf16", "squares"),
                               ("dgrad", "nvfp4,tail=0,fprop=bf16,wgrad=bf16", "squares"),
                               ("wgrad", "nvfp4,tail=0,fprop=bf16,dgrad=bf16", "squares")):
        (first, *_) = setup.trainer_log(recipe, 1)
        check_equal(wrong, f"gradient of {recipe}", math.sqrt(
            gradients(raw, gemm, "bf16")[None, None][name]), first["norm"], 1e-5)
    # noise, measured by updates that move nothing: with other bits it scatters by 4 % (of 32), so the
    # difference of ours and the mean of 6 by 4.4 %
    theirs = statistics.fmean(x["noise_ratio"] for x in setup.trainer_log(
        "nvfp4,tail=0,backward=bf16@auto", 61) if "noise_ratio" in x)
    x = gradients(raw, "all", "other bits")
    del x[None, None]
    noise = math.fsum(y["difference"] / 2 for y in x.values())
    ours = math.sqrt(math.fsum(y["squares"] for y in x.values()) / noise) if noise else math.inf
    check_equal(wrong, "gradient / noise", ours, theirs, 0.22)
    report_all(wrong, "gradients", f"5 as long as the trainer's, each GEMM's error where it must "
               f"be; gradient / noise {ours:.3f}, the trainer's {theirs:.3f}")


def test_programs(setup):
    """The CUDA program, on the CPU, and the C program, on a smaller model that NVFP4 has trained."""
    if not os.access(CUDA_PROGRAM, os.X_OK):
        print("skip sensitivity_cuda              not built", flush=True)
        return
    wrong, same, sizes = [], 0, {"e": setup.trained("small", "layers=2,channels=32,heads=1", 5,
                                                    "nvfp4,tail=0"),
                                 "b": "2", "t": "16", "vt": "16",
                                 "p": "quartet2"}
    a, b = (setup.measured(f"{name}.json", program, **sizes)
            for name, program in (("c", PROGRAM), ("cuda", CUDA_PROGRAM)))

    def by_name(raw):
        return {(x["layer"], x["linear"], x["operand"]): x for x in raw["operands"]}
    ours, theirs = by_name(a), by_name(b)
    check_equal(wrong, "operands", sorted(theirs), sorted(ours))
    check_equal(wrong, "number of operands", len(ours), 6 * 8)
    for name, x in ours.items():
        y = theirs[name]
        same += x == y
        # equal tensors give equal numbers; weights are equal, and what block 0 begins with nearly so
        if name[2] in ("W", "W^T"):
            check_equal(wrong, f"{name}", y, x)
        for field in ("signal", "noise"):
            check_equal(wrong, f"{name} {field}", y[field], x[field], 0.05)
    check_equal(wrong, "losses", [x["recipe"] for x in b["losses"]],
                [x["recipe"] for x in a["losses"]])
    for x, y in zip(a["losses"], b["losses"]):
        check_equal(wrong, f"loss of {x['recipe']}", y["rows"][0], x["rows"][0], 2e-3)
    for x, y in zip(a["gradients"], b["gradients"]):
        for field, tolerance in (("squares", 0.05), ("reference", 0.05), ("difference", 0.3)):
            check_equal(wrong, f"gradient {x['of']} {x['layer']} {x['linear']} {field}", y[field],
                        x[field], tolerance)
    report_all(wrong, "CUDA program on the CPU", f"{same} of {len(ours)} operands equal to the digit, "
               "the rest, losses and gradients nearly")


# ---------------------------------------------------------------------------------------------
# The report

def test_findings():
    wrong = []
    x = findings.paired([1.0, 2.0, 4.0], [1.0, 1.0, 1.0])
    check_equal(wrong, "difference", x["difference"], 4 / 3, 1e-12)
    check_equal(wrong, "error", x["error"], math.sqrt(7 / 3 / 3), 1e-12)    # variance 14/3 / 2
    check_equal(wrong, "error of one row", findings.paired([2.0], [1.0])["error"], None)
    # 0, 0, 1, 1, ... 15, 15: the variance of 0 to 15 is 68 / 3; with 31 rows that of the rows
    twins, zeros = [float(i // 2) for i in range(32)], [0.0] * 32
    check_equal(wrong, "error of 16 pairs", findings.paired(twins, zeros)["error"],
                math.sqrt(68 / 3 / 16), 1e-12)
    check_equal(wrong, "error of 31 rows", findings.paired(twins[:31], zeros[:31])["error"],
                statistics.stdev(twins[:31]) / math.sqrt(31), 1e-12)
    means = findings.group_means([float(i) for i in range(35)])
    check_equal(wrong, "groups of 35 rows", [len(means), *means[:5], means[-1]],
                [16, 0.5, 2.5, 4.5, 6.5, 8.5, 33.0])
    rows = {"none": [1.0, 1.0], "all": [3.0, 3.0], "all but": [2.0, 2.5]}
    x = findings.losses({"losses": [dict(kind=kind, layer=0, linear=None, recipe="", weights="",
                                         rows=values) for kind, values in rows.items()]})[2]
    check_equal(wrong, "loss, cost, gain", [x["loss"], x["cost"]["difference"],
                                            x["gain"]["difference"]], [2.25, 1.25, 0.75])
    entry = {"layer": 0, "linear": "fc", "operand": "X", "rows": 1, "cols": 64, "amax": 1.0,
             "nonzero": 50, "flushed": 5, "saturated": 2, "signal": 100.0, "noise": 1.0, "choices": 4,
             "fours": 1, "blocks": 8, "zero_scales": 1, "first_exponent": -8,
             "scales": [1, 1, 1, 0, 4]}
    x = findings.operand(entry, "nvfp4")
    check_equal(wrong, "statistics", [x[n] for n in ("snr", "flushed", "saturated", "small_scales",
                                                     "fours")], [20.0, 0.1, 0.04, 3 / 8, 0.25])
    x = findings.operand(dict(entry, choices=0, noise=0.0), "mxfp4")
    check_equal(wrong, "missing", [x[n] for n in ("snr", "small_scales", "fours")], [None] * 3)
    gradient = {"layer": 0, "linear": "fc", "of": "all", "squares": 12.0, "reference": 25.0,
                "difference": 8.0}
    x = findings.gradient_noise({"gradients": [dict(gradient, against="other bits"),
                                               dict(gradient, against="other bits", difference=0.0)]})
    check_equal(wrong, "gradient / noise", x[0]["ratio"], math.sqrt(3), 1e-12)
    check_equal(wrong, "no noise", x[1]["ratio"], None)
    x = findings.gradient_errors({"gradients": [dict(gradient, against="bf16", difference=1.0)]})
    check_equal(wrong, "error of a gradient", x[0]["error"], 0.2, 1e-12)
    for text in ("", "[1", "{}"):
        with tempfile.NamedTemporaryFile("w", suffix=".json") as file, \
                contextlib.suppress(ReportError):
            file.write(text)
            file.flush()
            findings.derive(findings.read(file.name))
            wrong.append(f"{text!r} taken for measurements")
    report_all(wrong, "findings", "differences, shares and ratios by hand; damaged measurements")


def all_tables(markdown):
    """[rows of cells, the header first]"""
    found = []
    for block in markdown.strip().split("\n\n"):
        if block.startswith("| "):
            lines = [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]]
                     for line in block.split("\n")]
            found.append([lines[0], *lines[2:]])
    return found


def tables(markdown):
    """{first cell of a table's header: [the rows of each such table]}"""
    found = {}
    for header, *rows in all_tables(markdown):
        found.setdefault(header[0], []).append(rows)
    return found


def number(cell):
    return float(re.search(r"-?\+?\d+\.\d+", cell.replace("**", "")).group().replace("+", ""))


MADE_UP = {     # layer: gain and cost in BF16 or alone, and whether the gain can be told from noise
    (0, "qkv"): (0.01, 0.02, True), (0, "attproj"): (0.02, 0.03, True),
    (0, "fc"): (0.06, 0.01, True), (0, "fcproj"): (0.05, 0.04, False), (0, None): (0.1, 0.25, True),
    (1, "qkv"): (0.04, 0.06, True), (1, "attproj"): (-0.03, 0.05, True),
    (1, "fc"): (0.03, 0.08, True), (1, "fcproj"): (0.005, 0.07, True), (1, None): (0.2, 0.15, True)}


def made_up():
    """Measurements of two blocks and four rows as measure.h writes them, to compute with by hand."""
    none = [1.0, 2.0, 3.0, 4.0]
    everything = [x + d for x, d in zip(none, (0.2, 0.4, 0.2, 0.4))]
    found = []

    def add(kind, rows, layer=None, linear=None, recipe="", weights=""):
        found.append({"kind": kind, "layer": layer, "linear": linear, "recipe": recipe or kind,
                      "weights": weights, "rows": rows})

    add("none", none)
    add("all", everything)
    add("weights", [x + 0.1 for x in none], weights="plain")
    add("weights and activations", [x - 0.1 for x in none], recipe="other")
    for (layer, linear), (gain, cost, sure) in MADE_UP.items():
        scatter = (0.9, 1.1, 0.9, 1.1) if sure else (0, 2, 0, 2)
        recipe = f"but {layer}/{linear}|"
        add("all but", [x - gain * d for x, d in zip(everything, scatter)], layer, linear, recipe)
        add("only", [x + cost * d for x, d in zip(none, scatter)], layer, linear)
    add("last blocks", [x - 0.004 for x in everything])
    add("best blocks", [x - 0.25 for x in everything])
    layers = [key for key in MADE_UP if key[1]]
    grads = []
    for j, gemm in enumerate(("all", "fprop", "dgrad", "wgrad")):
        grads += [{"layer": layer, "linear": linear, "of": gemm, "against": "bf16", "squares": 7.0,
                   "reference": 100.0, "difference": (1 + i + 10 * j) ** 2 / 1e4}
                  for i, (layer, linear) in enumerate([(None, None), *layers])]
        if gemm == "all":
            grads += [{"layer": layer, "linear": linear, "of": gemm, "against": "other bits",
                       "squares": 2.0 + i if i else 1.0, "reference": 1.0, "difference": 2.0}
                      for i, (layer, linear) in enumerate([(None, None), *layers])]
    stats = [{"layer": layer, "linear": linear, "operand": operand, "rows": 16, "cols": 16,
              "amax": 1.0, "nonzero": 200, "flushed": 2 * i + j, "saturated": i + 2 * j,
              "signal": 10.0 ** (i + 1), "noise": 1.0, "choices": 16, "fours": i + j, "blocks": 20,
              "zero_scales": i, "first_exponent": j - 8, "scales": [1, 19 - i]}
             for i, (layer, linear) in reversed(list(enumerate(layers)))
             for j, operand in enumerate(("dY", "X"))]
    return {"program": "made up", "commit": "1", "device": "none", "format": "nvfp4",
            "flags": {"-e": "a<i>&.bin", "-p": "nvfp4", "-b": 3, "-t": 7, "-vt": 0, "-i": "", "-o": "x"},
            "model": {"layers": 2, "channels": 1, "heads": 1, "vocab": 1, "context": 1,
                      "parameters": 1234567}, "val_data": "", "train_data": "", "val_rows": 4,
            "losses": found, "operands": stats, "gradients": grads}


def html_tables(page):
    return [[[html.unescape(re.sub("<.+?>", "", cell)) for cell in re.findall("<t[hd]>(.*?)</t[hd]>", row)]
             for row in table.split("\n")] for table in re.findall("(?s)<table>(.*?)</table>", page)]


def test_pages(work):
    """What the report says of made-up measurements."""
    wrong, found = [], findings.derive(made_up())
    pages.write(work, found, f"Of {found['flags']['-e']}", with_plots=False)
    text, page = (open(os.path.join(work, f"sensitivity.{name}"), encoding="utf-8").read()
                  for name in ("md", "html"))
    for line in (
            # exp(0.3); the standard error of 0.2, 0.4, 0.2, 0.4
            "All linear layers in NVFP4, forward: loss **+0.3000 ± 0.0577** above BF16's 2.5000; "
            "perplexity +34.99 %.",
            "Kept in BF16, each alone, 6 of 8 linear layers gain more than noise; most of all block 0 fc "
            "+0.0600, block 1 qkv +0.0400, block 1 fc +0.0300, block 0 attproj +0.0200, block 0 qkv "
            "+0.0100 nats.",
            "As many blocks in BF16 as the paper keeps: the last ones gain **+0.0040 ± 0.0000**, those "
            "that gain most **+0.2500 ± 0.0000** (`-p best blocks`).",
            # ratios sqrt(3), which is not below it, 2, sqrt(5), ...
            "The gradients of 0 of 8 weights are below sqrt(3) times their rounding noise, in a "
            "micro-batch of 3 x 7 tokens."):
        check_equal(wrong, f"lines {line!r}", text.count(f"- {line}\n"), 1)
    of = tables(text)
    check_equal(wrong, "ranking", [(row[0], row[1], row[2]) for row in of["layer kept in BF16"][0]], [
        (f"block {layer} {linear}",
         f"**{gain:+.4f} ± {0.0577 * abs(gain):.4f}**" if sure else f"{gain:+.4f} ± {0.577 * gain:.4f}",
         f"{2.8 - gain:.4f}")
        for (layer, linear), (gain, _, sure) in sorted(MADE_UP.items(), key=lambda x: -x[1][0]) if linear])
    scatter = {True: 57.735, False: 577.35}     # standard errors of thousandths, as above
    for table, k in zip(of["block"], (0, 1)):
        cells = {key: f"{1000 * x[k]:+.2f} ± {scatter[x[2]] * abs(x[k]):.2f}"
                 for key, x in MADE_UP.items()}
        check_equal(wrong, "blocks down, layers across", table, [
            [str(layer)] + [f"**{cells[layer, linear]}**" if MADE_UP[layer, linear][2]
                            else cells[layer, linear] for linear in (*LINEARS, None)]
            for layer in (0, 1)])
    check_equal(wrong, "recipe", of["layer kept in BF16"][0][0][3], "`-p but 0/fc\\|`")
    check_equal(wrong, "blocks", of["in BF16"][0], [
        ["everything in BF16", "2.5000", "", "`-p none`"],
        ["no block in BF16", "2.8000", "**+0.3000 ± 0.0577**", "`-p all`"],
        ["the last blocks", "2.7960", "**+0.2960 ± 0.0577**", "`-p last blocks`"],
        ["those that gain most", "2.5500", "+0.0500 ± 0.0577", "`-p best blocks`"]])
    check_equal(wrong, "post-training", [row for row in of["quantized"][0]], [      # exp(2.5), exp(0.1)
        ["nothing", "", "2.5000", "", "12.182", ""],
        ["weights", "`plain`", "2.6000", "**+0.1000 ± 0.0000**", "13.464", "+10.52 %"],
        ["weights and activations", "`other`", "2.4000", "**-0.1000 ± 0.0000**", "11.023", "-9.52 %"]])
    check_equal(wrong, "gradients", of["quantized"][1], [
        ["fprop", "1.1 %"], ["dgrad", "2.1 %"], ["wgrad", "3.1 %"], ["all three", "0.1 %"]])
    check_equal(wrong, "gradients of layers", of["weight"][0], [
        [f"block {i // 4} {LINEAR_NAMES[i % 4]}", f"{math.sqrt(3 + i):.2f}"]
        + [f"{0.1 * (i + j):.1f} %" for j in (12, 22, 32, 2)] for i in range(8)])
    # as X, dY in the order of GEMMs; 2^-6 is the first exponent that is not subnormal
    check_equal(wrong, "operands", of["layer"][0], [
        [f"block {i // 4} {LINEAR_NAMES[i % 4]}", operand, f"{10 * (i + 1):.1f}",
         f"{(2 * i + j) / 2:.2f}", f"{(i + 2 * j) / 2:.2f}",
         f"{100 * (i + (1 if j else 20 - i)) / 20:.2f}", f"{100 * (i + j) / 16:.1f}"]
        for i in range(8) for j, operand in ((1, "X"), (0, "dY"))])
    check_equal(wrong, "tables of HTML", html_tables(page), [
        [[cell.replace("**", "").replace("`", "").replace("\\|", "|") for cell in row] for row in table]
        for table in all_tables(text)])
    for piece, count in (("<i>", 0), ("a&lt;i&gt;&amp;.bin", 3), ("1,234,567 parameters", 1),
                         ("<code>-vt 0</code>", 1), ("<code>-i", 0), ("<code>-o", 0)):
        check_equal(wrong, f"{piece} in HTML", page.count(piece), count)
    sections = ["Which layers should stay in high precision?", "Post-training check", "Gradients",
                "Operands", "How the numbers were made"]
    check_equal(wrong, "sections", [re.findall("(?m)^## (.*)$", text), re.findall("<h2>(.*?)</h2>", page)],
                [sections] * 2)
    for piece in ("- Signal to noise: 10 log10 of", "made up, commit 1, on none. Model: 2 layers"):
        check_equal(wrong, f"{piece} in Markdown", text.count(piece), 1)
    ratios = findings.derive({**made_up(), "gradients": [
        dict(x, squares=0.99 * x["squares"]) for x in made_up()["gradients"]]})
    (drowned,) = (line for line in pages.headlines(ratios)[1] if "sqrt(3)" in line)
    check_equal(wrong, "drowned", drowned.split(" are ")[0], "The gradients of 1 of 8 weights")
    check_equal(wrong, "bold ratios", [row[1] for row in pages.gradient_layer_table(ratios)[2]][:2],
                ["**1.72**", "1.99"])
    report_all(wrong, "pages", "headlines and tables of made-up measurements, by hand; HTML as Markdown")


LOSS_PLOTS = ["validation loss, thousandths of a nat"]
GRADIENT_PLOTS = ["gradient / noise", "error of the weight's gradient, % of its length, by quantized GEMM"]
OPERAND_PLOTS = ["signal to noise, dB", "flushed to zero, %", "saturated, %",
                 "block scales subnormal or zero, %", "blocks that Four Over Six takes to 4, %"]
SCALES_PLOT = "block scales, % of the blocks, by power of two"


def test_heat_maps():
    """Which numbers a heat map has, where; not how it is drawn."""
    wrong, drawn, found = [], {}, findings.derive(made_up())
    kept = pages.heat_map, pages.report.load_matplotlib
    pages.report.load_matplotlib = lambda: None
    pages.heat_map = lambda lib, title, panels, rows, columns, *more, **options: drawn.setdefault(
        title, (panels, rows, columns)) and title
    plots = pages.plots(found)
    pages.heat_map, pages.report.load_matplotlib = kept
    check_equal(wrong, "plots", {part: [svg for _, _, svg in plots[part]] for part in plots}, {
        "losses": LOSS_PLOTS, "gradients": GRADIENT_PLOTS, "operands": [*OPERAND_PLOTS, SCALES_PLOT]})

    def matrix(value):
        return [[value(4 * layer + i, (layer, linear)) for i, linear in enumerate(LINEARS)]
                for layer in range(2)]

    def check_map(title, names, *values, rows=("0", "1"), columns=LINEAR_NAMES):
        panels, *axes = drawn[title]
        check_equal(wrong, f"axes of {title}", [list(x) for x in axes], [list(rows), list(columns)])
        check_equal(wrong, f"panels of {title}", list(panels), list(names))
        for panel, value in zip(panels.values(), values):
            for got, want in zip(panel, value):
                for x, y in zip(got, want):
                    check_equal(wrong, title, x, float(y), 1e-9)
    check_map(LOSS_PLOTS[0], ("gain: this one kept in BF16", "cost: this one alone quantized"),
              *(matrix(lambda i, key, k=k: 1000 * MADE_UP[key][k]) for k in (0, 1)))
    for title, value in zip(OPERAND_PLOTS, (
            lambda i, j: 10 * (i + 1), lambda i, j: (2 * i + j) / 2, lambda i, j: (i + 2 * j) / 2,
            lambda i, j: 5 * (i + 1 if j else 20), lambda i, j: 100 * (i + j) / 16)):
        check_map(title, ("X", "dY"), *(matrix(lambda i, key, j=j: value(i, j)) for j in (1, 0)))
    check_map(GRADIENT_PLOTS[0], ("drowns below 1.73",), matrix(lambda i, key: math.sqrt(3 + i)))
    check_map(GRADIENT_PLOTS[1], ("fprop", "dgrad", "wgrad", "all"),
              *(matrix(lambda i, key, j=j: (i + j) / 10) for j in (12, 22, 32, 2)))
    x, dy = ([[5 * n for n in counts(i)] for i in range(8)] for counts in (
        lambda i: (i, 0, 1, 19 - i), lambda i: (i, 1, 19 - i, 0)))
    check_map(SCALES_PLOT, ("X", "dY"), x, dy,
              rows=[f"{i // 4} {LINEAR_NAMES[i % 4]}" for i in range(8)],
              columns=("0", "2^-8", "2^-7", "2^-6"))
    report_all(wrong, "heat maps", f"{len(drawn)} of made-up measurements have the numbers they should")


def test_drawing():
    """Where the numbers of a heat map stand in its SVG."""
    lib, wrong = pages.report.load_matplotlib(), []
    panels = {"one": [[1.0, None, 3.0], [-4.0, 5.0, 6.0]], "two": [[7.0, 8.0, 9.0], [None, None, 2.0]]}
    svg = pages.heat_map(lib, "t", panels, ["r", "s"], ["a", "b", "c"], "+.1f", middle=True)
    at = {}
    for x, y, word in re.findall(r'<text[^>]*\bx="(\S+)" y="(\S+)"[^>]*>([^<]*)</text>', svg):
        at.setdefault(word, (round(float(x)), round(float(y))))
    xs = [at[word][0] for word in ("+1.0", "+5.0", "+3.0", "+7.0", "+8.0", "+9.0")]
    check_equal(wrong, "columns from left to right", xs, sorted(set(xs)))
    check_equal(wrong, "places in a column", [at["+1.0"][0], at["+3.0"][0], at["+9.0"][0]],
                [at["-4.0"][0], at["+6.0"][0], at["+2.0"][0]])
    for row in (("+1.0", "+3.0", "+7.0", "+8.0"), ("-4.0", "+5.0", "+6.0", "+2.0")):
        check_equal(wrong, "places in a row", len({at[word][1] for word in row}), 1)
    check_equal(wrong, "the first row is above", at["+1.0"][1] < at["-4.0"][1], True)
    check_equal(wrong, "numbers", sorted(word for word in at if re.fullmatch(r"[+-]\d\.0", word)),
                sorted(format(x, "+.1f") for rows in panels.values() for row in rows for x in row if x))
    report_all(wrong, "drawing", "the numbers of a heat map stand in their cells")


def test_report(setup, plots):
    """dev/sensitivity from the command line, which makes its program."""
    out, wrong = setup.path("out"), []
    status, output, errors = run(sys.executable, "-B", SENSITIVITY, *setup.flags(o=out),
                                 *([] if plots else ["--no-plots"]))
    check_equal(wrong, "status", (status, errors), (0, ""))
    if status:
        report_all(wrong, "report", "")
        return
    raw, found = (read_json(os.path.join(out, name)) for name in ("measured.json",
                                                                  "sensitivity.json"))
    check_equal(wrong, "sensitivity.json", found, json.loads(json.dumps(findings.derive(raw))))
    for name in ("md", "html"):
        with open(os.path.join(out, f"sensitivity.{name}"), encoding="utf-8") as file:
            text = file.read()
            missing = [line for line in pages.headlines(found)[1]
                       if (line if name == "md" else pages.report.inline(line)) not in text]
            check_equal(wrong, f"headlines missing in {name}", missing, [])
            if name == "md":
                of = tables(text)
            else:
                check_equal(wrong, "plots", text.count("<svg"), 9 if plots else 0)
    losses = {(x["kind"], x["layer"], x["linear"]): x for x in found["losses"]}
    for table, kind, value in zip(of["block"], ("all but", "only"), ("gain", "cost")):
        for layer, row in enumerate(table):
            for linear, cell in zip((*LINEARS, None), row[1:]):
                x = losses[kind, layer, linear][value]
                check_equal(wrong, f"{kind} {layer} {linear}", number(cell),
                            round(1000 * x["difference"], 2))
                check_equal(wrong, f"{kind} {layer} {linear} bold", cell.startswith("**"),
                            abs(x["difference"]) > 3 * x["error"])
    rows = {(row[0], row[1].strip("`")): row for row in of["quantized"][0]}
    for x in found["losses"]:
        if x["kind"].startswith("weights"):
            row = rows[x["kind"], x["weights"] or x["recipe"]]
            check_equal(wrong, f"{row}", [number(row[2]), number(row[4])],
                        [round(x["loss"], 4), round(math.exp(x["loss"]), 3)])
    check_equal(wrong, "rows of tables", [len(of[name][0]) for name in
                                          ("quantized", "weight", "layer", "in BF16")],
                [9, 4 * LAYERS, 5 * 4 * LAYERS, 4])
    check_equal(wrong, "operands", [(x["layer"], x["linear"], x["operand"]) for x in found["operands"]],
                [(layer, linear, operand) for layer in range(LAYERS) for linear in LINEARS
                 for operand in ("X", "W", "dY", "dY^T", "X^T")])
    for x, row in zip(found["operands"], of["layer"][0]):
        check_equal(wrong, f"{row[0]} {row[1]}", row[:4],
                    [f"block {x['layer']} {x['linear']}", x["operand"], f"{x['snr']:.1f}",
                     f"{100 * x['flushed']:.2f}"])
    # of numbers that are there
    again = setup.path("again")
    must(sys.executable, "-B", SENSITIVITY, "--measured", os.path.join(out, "measured.json"), "-o", again,
         *([] if plots else ["--no-plots"]))
    check_equal(wrong, "files of --measured", sorted(os.listdir(again)),
                sorted(set(os.listdir(out)) - {"measured.json"}))
    for name in os.listdir(again):
        one, other = (open(os.path.join(place, name), encoding="utf-8").read() for place in (out, again))
        check_equal(wrong, f"{name} of --measured is the same", one == other, True)
    report_all(wrong, "report", f"{len(found['losses'])} losses, {len(found['operands'])} operands; "
               "Markdown, HTML and JSON agree")
    if "1 of 38" not in output or "38 of 38, 0:00 left" not in output:
        report(False, "progress", output)


def test_command(setup):
    """What dev/sensitivity tells the program that measures; here one that takes notes."""
    wrong, stub, out = [], setup.path("stub"), setup.path("noted")
    with open(stub, "w", encoding="utf-8") as file:
        file.write(f"#!/bin/sh\nprintf '%s\\n' \"$@\" > {setup.path('words')}\n"
                   f"for last; do :; done\ncp {setup.path('one.json')} \"$last\"\n")
    os.chmod(stub, 0o755)
    words = [word for flag in ("-e", "-j", "-vt", "-i", "-b", "-t", "-p", "-seed", "-g")
             for word in (flag, f"of {flag}")]
    must(sys.executable, "-B", SENSITIVITY, *words, "--program", stub, "--no-plots", "-o", out)
    with open(setup.path("words"), encoding="utf-8") as file:
        check_equal(wrong, "words", file.read().split("\n")[:-1],
                    [*words, "-o", os.path.join(out, "measured.json")])
    check_equal(wrong, "files without plots", sorted(os.listdir(out)),
                [".lock", "measured.json", "sensitivity.html", "sensitivity.json", "sensitivity.md"])
    report_all(wrong, "command line", "all flags reach the program; no plots with --no-plots")


def test_bad_input(setup):
    wrong, cut = [], setup.path("cut.bin")
    with open(setup.model, "rb") as file, open(cut, "wb") as copy:
        copy.write(file.read()[:-4])
    write_tokens(setup.path("large.bin"), 200, 5, add=VOCAB)
    good = {"e": setup.model, "o": setup.path("bad.json")}
    cases = [({"e": "nothing.bin"}, "-e nothing.bin: no such file"), ({"e": setup.train}, "not a model"),
             ({"e": cut}, "cut off or damaged"), ({"o": ""}, "-o FILE has to say"),
             ({"o": setup.path("no/dir.json")}, "cannot write"),
             ({"p": "bf16"}, "quantizes nothing"), ({"p": "nvfp4"}, "write tail=0"),
             ({"p": "nvfp4,tail=0,front=1"}, "must not keep any out"),
             ({"p": "nvfp4,tail=0,fprop=bf16"}, "no exceptions"), ({"p": "nvfp5"}, "begins with one of"),
             ({"p": "nvfp4,tail=0" + ",paper=0" * 40}, "too long"), ({"t": "24"}, "multiple of 16"),
             ({"t": "48"}, "longer than the model's context"), ({"vt": "8"}, "less than one row"),
             ({"vt": "100000"}, "has only 9 rows"), ({"j": "none_*.bin"}, "cannot open none_*.bin"),
             ({"j": setup.path("large.bin")}, "not below the vocabulary"), ({"b": "0"}, "must be from 1"),
             ({"b": "64"}, "fewer than one batch"), ({"b": "4x"}, "not an integer"),
             ({"x": "1"}, "unknown flag -x")]
    for change, message in cases:
        status, _, errors = run(PROGRAM, *setup.flags(**{**good, **change}))
        if status != 1 or message not in errors or errors.count("\n") != 1:
            wrong.append(f"{change}: {status} {errors}")
    status, _, errors = run(PROGRAM, *setup.flags(**good), env=dict(
        os.environ, OMPI_COMM_WORLD_SIZE="2", OMPI_COMM_WORLD_RANK="0", OMPI_COMM_WORLD_LOCAL_SIZE="2"))
    if status != 1 or "started as one of 2 ranks" not in errors:
        wrong.append(f"two ranks: {status} {errors}")
    check_equal(wrong, "files left", [n for n in os.listdir(setup.work) if n == "bad.json"], [])
    out = ["-o", setup.path("bad")]
    script = [([], "-e FILE"), (["-e", "x"], "-o DIR"), (["-x", "1"], "no option -x"),
              (["-e"], "-e needs a value"), (["-e", "x", "-e", "y"], "given twice"),
              (["-e", "x", "--program", "/nowhere", *out], "/nowhere: No such file"),
              (["-e", "x", "-o", os.path.join(setup.model, "a")], "Not a directory"),
              (["--measured", "x"], "-o DIR"), (["--measured", "nothing.json", *out], "No such file"),
              (["--measured", "x", "-vt", "0", *out], "-vt beside --measured"),
              (["-e", "x", "--program", PROGRAM, *out], "sensitivity_cpu ended with status 1")]
    for words, message in script:
        status, output, errors = run(sys.executable, "-B", SENSITIVITY, "--no-plots", *words)
        if status != 1 or message not in errors or "Traceback" in errors:
            wrong.append(f"dev/sensitivity {words}: {status} {output}{errors}")
    with open(os.path.join(setup.path("bad"), ".lock"), "w", encoding="utf-8") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        _, _, errors = run(sys.executable, "-B", SENSITIVITY, "--no-plots", "-e", "x", *out)
        if "another dev/sensitivity is at work" not in errors:
            wrong.append(f"two at once: {errors}")
    if os.path.exists(os.path.join(setup.path("bad"), "sensitivity.json")):
        wrong.append("a report of nothing")
    report_all(wrong, "bad input", f"{len(cases) + 2 + len(script)} kinds end with one message")


def main():
    plots = importlib.util.find_spec("matplotlib") is not None
    test_findings()
    with tempfile.TemporaryDirectory() as work:
        test_pages(work)
    test_heat_maps()
    if plots:
        test_drawing()
    if not (os.access(PROGRAM, os.X_OK) and os.access(TRAINER, os.X_OK)):
        print("skip sensitivity_cpu              not built, or train_gpt2_fp32 is not", flush=True)
        sys.exit(1 if failures else 0)
    with tempfile.TemporaryDirectory() as work:
        setup = Setup(work)
        raw = setup.measured("one.json", env=dict(os.environ, OMP_NUM_THREADS="1"))
        again = setup.measured("three.json", env=dict(os.environ, OMP_NUM_THREADS="3"))
        again["flags"]["-o"] = raw["flags"]["-o"]
        report(again == raw, "threads", "1 and 3 write the same numbers")
        raw_46 = setup.measured("four_six.json", p="nvfp4,tail=0,tile=0,foursix=mse")
        rotated = setup.measured("rotated.json", p="quartet2,hadamard=128", vt=str(T))
        test_weights(setup, raw, raw_46)
        test_operands(raw, raw_46, rotated)
        test_losses(setup, raw, raw_46, rotated)
        test_gradients(setup, raw)
        test_report(setup, plots)
        test_command(setup)
        test_bad_input(setup)
        test_programs(setup)
    if not plots:
        print("skip plots                        matplotlib is not installed", flush=True)
    sys.exit(1 if failures else 0)


if __name__ == "__main__":
    main()
