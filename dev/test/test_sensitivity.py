#!/usr/bin/env python3
"""
Tests of dev/sensitivity on a tiny model trained here: the statistics of weights and the loss with
quantized weights against a quantizer written here in Python; losses against those that the trainer
reports for the same -p; the gradient's noise against the trainer's, and what must hold exactly if one
GEMM is quantized; the same bytes for any number of threads; the CUDA program, on the CPU, against
the C program; the report's numbers against its JSON; bad input. Statistics of single operands are in
test_sensitivity.c. Standard library; plots need matplotlib and are skipped without. Prints lines as
report.h describes.

Seen failing, each in a copy: FAULTS
"""
import bisect
import contextlib
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


# ---------------------------------------------------------------------------------------------
# Losses and gradients

def test_losses(setup, raw):
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
    # the block without which the loss is lowest was chosen
    blocks = {x["layer"]: x["loss"] for x in findings.losses(raw)
              if x["kind"] == "all but" and x["linear"] is None}
    best = min(blocks, key=blocks.get)
    (chosen,) = (x for x in raw["losses"] if x["kind"] == "best blocks")
    check_equal(wrong, "best block", chosen["recipe"], f"nvfp4,tail=0,all=bf16:{best}")
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


def tables(markdown):
    """{first cell of a table's header: [rows of cells]}, of tables with equal ones the first."""
    found = {}
    for block in markdown.split("\n\n"):
        if block.startswith("| "):
            lines = [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]]
                     for line in block.split("\n")]
            found.setdefault(lines[0][0], []).append(lines[2:])
    return found


def number(cell):
    return float(re.search(r"-?\+?\d+\.\d+", cell.replace("**", "")).group().replace("+", ""))


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
    report_all(wrong, "report", f"{len(found['losses'])} losses, {len(found['operands'])} operands; "
               "Markdown, HTML and JSON agree")
    if "1 of 38" not in output or "38 of 38, 0:00 left" not in output:
        report(False, "progress", output)


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
              (["-e", "x", "--program", PROGRAM, *out], "sensitivity_cpu ended with status 1")]
    for words, message in script:
        status, output, errors = run(sys.executable, "-B", SENSITIVITY, "--no-plots", *words)
        if status != 1 or message not in errors or "Traceback" in errors:
            wrong.append(f"dev/sensitivity {words}: {status} {output}{errors}")
    if os.path.exists(os.path.join(setup.path("bad"), "sensitivity.json")):
        wrong.append("a report of nothing")
    report_all(wrong, "bad input", f"{len(cases) + 1 + len(script)} kinds end with one message")


def main():
    plots = importlib.util.find_spec("matplotlib") is not None
    test_findings()
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
        test_weights(setup, raw, raw_46)
        test_losses(setup, raw)
        test_gradients(setup, raw)
        test_report(setup, plots)
        test_bad_input(setup)
        test_programs(setup)
    if not plots:
        print("skip plots                        matplotlib is not installed", flush=True)
    sys.exit(1 if failures else 0)


if __name__ == "__main__":
    main()
