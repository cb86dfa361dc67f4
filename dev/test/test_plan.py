#!/usr/bin/env python3
"""
Tests of dev/plan: its memory table against what the trainer printed at start-up, its parameters,
FLOP and scale sizes against the C headers, its calibration and measured rows against the logs in
dev/results, its predictions against measured steps, that -check finds wrong constants, its
collectives against closed formulas, the bytes that the trainer counted and README's table, README's
predictions, that faster hardware is never slower, labels, JSON, error messages. Standard library;
gcc for the headers. Prints lines as report.h describes.

Seen failing, each in a copy of dev/plan: too few scale bytes in a tile; scratch without the token
slots; inputs kept in quantized blocks; 13 C C parameters in matrices; 12 L C T; the BF16 tail
rounded up; operands expanded on the FP4 path; a mistyped number of a kernel, a quantizer, a GEMM,
an attention, a measured step, an energy, a run of two GPUs, its bytes; H100 taken for H200; GEMMs at
0.90 under load; memory 30 % faster; no launch time; no expansion, quantization, amax, stochastic
rounding, bias; bytes of GELU and bias; a GEMM of the head left out; emulated products at FP8's
speed, FP4 products at BF16's; 5 products in attention backward; 30 % more power; links 40 times
slower; -check content with everything, or without the word MISSED; all-reduce counted once; a GPU's
own part counted as sent; block scales sent; quantized weights sent in BF16, too; the amaxes of tiles
forgotten, or those of dY, of FP8, of one direction, the latency halved; guards not counted; gradients
in one piece less; level 2 reducing once an update, holding one block; time rising with the memory's
rate; more hidden than there is, the embeddings' gradients or weights hidden; B200, two GPUs, several
hosts without their labels; dgrad= ignored; a micro-batch half as large as fits; three checks of the
flags removed; a number of README's table changed.
"""
import importlib.machinery
import importlib.util
import contextlib
import glob
import io
import json
import os
import re
import shutil
import statistics
import subprocess
import sys
import tempfile

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
PLAN = os.path.join(ROOT, "dev", "plan")
RESULTS = os.path.join(ROOT, "dev", "results")
RANKS_LOGS = ("ranks_h200", "ranks_h200_x4")      # runs of two, and of two and four GPUs
sys.dont_write_bytecode = True

loader = importlib.machinery.SourceFileLoader("plan", PLAN)
plan = importlib.util.module_from_spec(importlib.util.spec_from_loader("plan", loader))
loader.exec_module(plan)

failures = 0


def report(good, name, detail=""):
    global failures
    print(f"{'ok  ' if good else 'FAIL'} {name:<28} {detail}", flush=True)
    failures += not good


def report_all(wrong, name, detail):
    """wrong: descriptions of what is not as it should be."""
    report(not wrong, name, detail if not wrong else f"{len(wrong)} wrong, first: {wrong[0]}")


def read(*path):
    with open(os.path.join(*path), encoding="utf-8", errors="replace") as file:
        return file.read()


def run(*arguments):
    """(exit status, output, errors) of dev/plan"""
    result = subprocess.run([sys.executable, PLAN, *arguments], text=True, capture_output=True)
    return result.returncode, result.stdout, result.stderr


def default_plan(**changes):
    base = dict(plan.plan_of("d12", "nvfp4", 0, 1024, 0), path="auto")
    return dict(base, **changes)


# ---------------------------------------------------------------------------------------------
# Memory and parameters

HEADER = re.compile(
    r"^model +(\d+) layers, (\d+) channels, (\d+) heads, vocabulary (\d+) \(padded (\d+)\), "
    r"context (\d+): (\d+) parameters\nrecipe +(\S+)\n", re.M)


# what the program's older logs call these
OLD_NAMES = {"NVFP4 weights": "quantized weights", "NVFP4 linear inputs": "quantized inputs",
             "NVFP4 scratch": "quantization scratch"}


def startup_tables():
    """(where, matches of HEADER, B, T, {family: MiB}) of every start-up of the CUDA program."""
    for path in sorted(glob.glob(os.path.join(RESULTS, "*", "*.log"))
                       + glob.glob(os.path.join(RESULTS, "*", "compare.txt"))):
        text = read(path)
        starts = [m for m in HEADER.finditer(text)]
        ends = [m.start() for m in starts[1:]] + [len(text)]
        for match, end in zip(starts, ends):
            body = text[match.end():end]
            batch = re.search(r"^batch +(\d+) x (\d+) tokens", body, re.M)
            table = re.search(r"^device memory +MiB\n((?:  .+\n)+)", body, re.M)
            if batch and table:
                rows = dict(re.findall(r"^  (.+?) +([\d.]+)$", table.group(1), re.M))
                yield (os.path.relpath(path, RESULTS), match.groups(), int(batch.group(1)),
                       int(batch.group(2)),
                       {OLD_NAMES.get(name, name): float(size) for name, size in rows.items()})


def test_memory():
    wrong, seen, count = [], set(), 0
    for where, (L, C, NH, V, Vp, context, parameters, recipe), B, T, printed in startup_tables():
        name = f"layers={L},channels={C},heads={NH},vocab={V},context={context}"
        model = plan.Model(name, T)
        found = {f: size / 2**20 for f, size in plan.device_memory(
            model, plan.Recipe(recipe, model.L), "emulated", B).items()}
        if (model.Vp, model.parameters()) != (int(Vp), int(parameters)):
            wrong.append(f"{where}: {model.Vp}, {model.parameters()} parameters")
        total = printed.pop("in all")
        printed = {f: size for f, size in printed.items() if size > 0 or f in found}
        # 0.05 is the rounding of what is printed; the task was 1 %
        if found.keys() != printed.keys():
            wrong.append(f"{where} {recipe}: families {sorted(found.keys() ^ printed.keys())}")
        wrong += [f"{where} {recipe} {f}: {found[f]:.3f}, printed {printed[f]}"
                  for f in found.keys() & printed.keys() if abs(found[f] - printed[f]) > 0.0501]
        if abs(sum(found.values()) - total) > 0.0501:
            wrong.append(f"{where} {recipe}: {sum(found.values()):.3f} in all, printed {total}")
        seen.add((name, recipe, B, T))
        count += 1
    report_all(wrong or (["too few tables"] if len(seen) < 6 else []), "memory at start-up",
               f"{count} printed tables of {len(seen)} kinds of run, every family to 0.05 MiB")


C_PROGRAM = r"""
#include "llmc/gpt2.h"
#include "llmc/nvfp4.h"
#include "llmc/recipe.h"
#include "llmc/speed_of_light.h"
int main(int argc, char** argv) {
    for (int i = 1; i < argc; i++) {
        GPT2Config c = gpt2_config(argv[i], 512);
        ParamSpec specs[NUM_PARAMS];
        Recipe r = recipe_parse("nvfp4", c.L);
        printf("%s %zu %.17g %d %d\n", argv[i], gpt2_param_specs(specs, &c),
               training_flops_per_token(&c, 512), c.Vp, r.tail);
    }
    for (int rows = 16; rows < 700; rows += 48) {
        for (int cols = 16; cols < 400; cols += 16) {
            printf("%d %d %zu %zu\n", rows, cols, nvfp4_codes_size((size_t)rows, (size_t)cols),
                   nvfp4_scales_size((size_t)rows, (size_t)cols));
        }
    }
    return 0;
}
"""


def test_headers():
    if shutil.which("gcc") is None:
        print("skip the C headers                no gcc")
        return
    models = [*plan.PRESETS, "layers=3,channels=48,heads=3,vocab=300", "d12,vocab=257"]
    with tempfile.TemporaryDirectory() as folder:
        source, program = os.path.join(folder, "plan.c"), os.path.join(folder, "plan")
        with open(source, "w", encoding="utf-8") as file:
            file.write(C_PROGRAM)
        subprocess.run(["gcc", "-std=c11", "-D_POSIX_C_SOURCE=200809L", "-I", ROOT, "-o", program,
                        source, "-lm"], check=True)
        lines = subprocess.run([program, *models], text=True, capture_output=True,
                               check=True).stdout.splitlines()
    wrong = []
    for line in lines[:len(models)]:
        name, parameters, flop, Vp, tail = line.split()
        model = plan.Model(name, 512)
        found = (model.parameters(), model.flop_per_token(), model.Vp,
                 plan.Recipe("nvfp4", model.L).number["tail"])
        expected = (int(parameters), float(flop), int(Vp), int(tail))
        if any(abs(a - b) > 1e-12 * b for a, b in zip(found, expected)):
            wrong.append(f"{name}: {found}, C says {expected}")
    report_all(wrong, "gpt2.h, speed_of_light.h", f"parameters, FLOP a token, padded vocabulary, "
               f"BF16 tail of {len(models)} models")
    recipe = plan.Recipe("nvfp4", 12)
    wrong = []
    for line in lines[len(models):]:
        rows, cols, codes, scales = map(int, line.split())
        if plan.operand_size(recipe, rows, cols) != (codes, scales + 4):
            wrong.append(f"({rows}, {cols})")
    report_all(wrong, "nvfp4.h", f"bytes of codes and scales of {len(lines) - len(models)} shapes")


# ---------------------------------------------------------------------------------------------
# Calibration and measured rows are what the logs say

def close(a, b, relative=1e-9):
    return abs(a - b) <= relative * abs(b)


def test_calibration():
    text = read(RESULTS, "verify_h200", "verify.log")
    kernels = {name.strip(): (float(us), float(mb)) for name, us, mb in re.findall(
        r"^(\S.{25}) +([\d.]+) +([\d.]+) +\d+ +[\d.]+%$", text, re.M)}
    wrong = [f"{name}: {(us, mb)}, logged {kernels.get(name)}"
             for name, (us, _, mb) in plan.BENCH_KERNELS.items() if kernels.get(name) != (us, mb)]
    report_all(wrong, "calibration: kernels", f"{len(plan.BENCH_KERNELS)} as in verify.log")

    def table(rows, cols):
        body = text[text.index(f"\n({rows}, {cols})\n"):].split("\n\n")[0]
        return {name.strip(): float(us) for name, us in
                re.findall(r"^(\S.{29}) +([\d.]+) +[\d.]+ +\d+ +[\d.]+%$", body, re.M)}
    small, large = table(65536, 768), table(65536, 3072)
    step = {name: large[name] - small[name] for name in large}      # for 65536 x 2304 elements
    both = step["x_q, xT_q, nearest"]
    gradients, hadamard = step["same, stochastic (gradients)"], step["same, Hadamard (activations)"]
    found = {
        "row": step["x_q, nearest"], "column": both - step["x_q, nearest"],
        "hadamard": hadamard - both, "tile16": step["quantize_weight, amax too"] - step["amax"],
        "expand": step["expand"],
        "stochastic": (step["x_q, stochastic"] - step["x_q, nearest"] + gradients - hadamard) / 3}
    wrong = [f"{name}: {plan.BENCH_QUANTIZE[name]}, logged {us:.1f}"
             for name, us in found.items() if abs(us - plan.BENCH_QUANTIZE[name]) > 0.6]
    megabytes = 65536 * 2304 * 2e-6
    for name, share, size in (("amax", plan.AMAX, megabytes), ("copy", plan.COPY, 2 * megabytes),
                              ("amax, Hadamard too", plan.AMAX_HADAMARD, megabytes)):
        rate = size * 1e6 / (step[name] * 1e-6) / plan.BENCH_GPU["memory"]
        if not close(rate, share, 0.02):
            wrong.append(f"{name}: {share}, logged {rate:.3f}")
    report_all(wrong, "calibration: quantizers", f"{len(found)} costs, 3 rates from verify.log")

    logged = [(int(m), int(n), int(k), int(product == "dweight"), int(rate))
              for product, m, n, k, rate in re.findall(
                  r"^(?:small|XL) \w+ +(\w+) +(\d+) +(\d+) +(\d+) +(\d+) ", text, re.M)]
    report(logged == plan.BENCH_GEMM, "calibration: GEMM", f"{len(logged)} as in verify.log")
    logged = [(int(b), int(t), int(nh), int(hs), float(f), float(w)) for b, t, nh, hs, f, w in
              re.findall(r"^\S.{15} +(\d+) +(\d+) +(\d+) +(\d+) +([\d.]+) +[\d.]+ +([\d.]+) ", text,
                         re.M)]
    report(logged == [row[:6] for row in plan.BENCH_ATTENTION], "calibration: attention",
           f"{len(logged)} as in verify.log")
    test_single_kernels({768: small, 3072: large})


# Rows of bench_quantize: along rows, along columns, gradient?, recipe
QUANTIZER_ROWS = {
    "x_q, nearest": (1, 0, 0, "nvfp4"), "x_q, stochastic": (1, 0, 1, "nvfp4"),
    "x_q, xT_q, nearest": (1, 1, 0, "nvfp4,hadamard=0"),
    "same, Hadamard (activations)": (1, 1, 0, "nvfp4"),
    "same, stochastic (gradients)": (1, 1, 1, "nvfp4")}


def test_single_kernels(quantizer_times):
    """The kernels that the model lists for d12, B 64, against their benchmarks at those shapes."""
    gpu, model, recipe = plan.GPUS["H200"], plan.Model("d12", 1024), plan.Recipe("bf16", 12)
    times = {name: (us * 1e-6 - plan.EVENT_SECONDS)
             for name, (us, _, _) in plan.BENCH_KERNELS.items()}
    forward, backward = plan.kernels_of_micro_step(gpu, model, recipe, "emulated", 64)
    update = plan.kernels_of_update(gpu, model, recipe, 65536, default_plan(level=0))
    found = {}
    for kernel in forward + backward + update:
        found[kernel.family] = found.get(kernel.family, 0.0) + kernel.seconds()
    expected = {
        "layernorm, residual": 13 * times["layernorm_forward"] + 25 * times["layernorm_backward"]
                               + 12 * (times["fused_residual_layernorm"]
                                       + times["residual_forward"]),
        "GELU": 12 * (times["gelu_forward"] + times["gelu_backward"]),
        "bias": 12 * (4 + 3 + 1 + 1) / 4 * times["bias_backward 4C"],
        "classifier": times["classifier"], "AdamW": times["adamw_update"],
        "encoder": times["encoder_forward"] + times["encoder_backward"]}
    wrong = [f"{family}: {1e6 * found[family]:.0f} us, benchmarks {1e6 * expected[family]:.0f}"
             for family in expected if not close(found[family], expected[family], 0.05)]
    report_all(wrong, "kernels bound by memory", f"{len(expected)} families of d12 as in "
               "bench_kernels, to 5 %")
    wrong, count = [], 0
    for cols, logged in quantizer_times.items():
        for name, (row, column, gradient, text) in QUANTIZER_ROWS.items():
            amax, codes = plan.quantize_kernels(gpu, plan.Recipe(text, 12), 65536, cols, row,
                                                column, gradient, 1)
            pairs = [(name, codes, logged[name])]
            if name == "same, Hadamard (activations)":
                pairs.append(("amax, Hadamard too", amax, logged["amax, Hadamard too"]))
            elif name == "x_q, nearest":
                pairs.append(("amax", amax, logged["amax"]))
            for what, kernel, us in pairs:
                count += 1
                us_found = 1e6 * (kernel.seconds() + plan.EVENT_SECONDS)
                if not close(us_found, us, 0.1):
                    wrong.append(f"{what}, {cols} columns: {us_found:.1f} us, logged {us}")
    report_all(wrong, "quantizers", f"{count} rows of bench_quantize to 10 %")


def logged_under_load():
    """Speeds of bench_gemm's BF16 products in 300 runs as a share of those in 20."""
    text = read(RESULTS, "recipes_h100", "recipes.log")
    cold, loaded = ([int(rate) for rate in re.findall(
        r"^(?:small|XL) \w+ +\w+ +\d+ +\d+ +\d+ +(\d+) ", part.split("\n===")[0], re.M)]
        for part in text.split("=== bench_gemm ")[1:])
    return [b / a for a, b in zip(cold, loaded)]


def test_h100_calibration():
    shares = logged_under_load()
    found = (len(shares), round(statistics.geometric_mean(shares), 3), round(min(shares), 3),
             round(max(shares), 3))
    report(found == (30, 0.952, 0.852, 1.051) and plan.GEMM_SUSTAINED == round(found[1], 2),
           "calibration: GEMM, load", f"{found[1]} of the speed of 20 runs, geometric mean of "
           f"{found[0]}, {found[2]} to {found[3]}")
    both = float(re.search(r"^fp8 X X\^T +([\d.]+) ",
                           read(RESULTS, "recipes_h100", "bench_quantize.log"), re.M).group(1))
    _, codes = plan.quantize_kernels(plan.GPUS["H100"], plan.Recipe("fp8", 12), 65536, 3072, 1, 1,
                                     False, 1)
    us = 1e6 * (codes.seconds() + plan.EVENT_SECONDS)
    report(close(us, both, 0.001), "calibration: FP8", f"quantizer {us:.1f} us, logged {both}")


def logged_steps():
    """Measured (tokens/s, mJ/token or None) by (folder, model, recipe, tokens an update): lists,
    one entry a run."""
    found = {}

    def add(where, model, recipe, total, speeds, energies=()):
        found.setdefault((where, model, recipe, total), []).append(
            (statistics.median(speeds), statistics.median(energies) if energies else None))

    text = read(RESULTS, "verify_h200", "verify.log")
    for command, body in re.findall(r"^=== (\./train_gpt2_nvfp4 .+ -e d12 .+)\n((?:(?!===).*\n)+)", text,
                                    re.M):
        recipe = re.search(r"-p (\S+)", command).group(1)
        total = int((re.search(r"-d (\d+)", command) or [0, 16384])[1])
        steps = [float(x) for x in re.findall(r"^step .*\| (\d+) tok/s", body, re.M)]
        add("verify_h200", "d12", recipe, total, steps[1:])
    logs = [("c_and_cuda", plan.SMALL, 2048, os.path.basename(folder)[len("cuda_"):], folder)
            for folder in glob.glob(os.path.join(RESULTS, "c_and_cuda", "cuda_*"))]
    for folder in glob.glob(os.path.join(RESULTS, "steps_h200", "*_*")):
        model, recipe, _ = os.path.basename(folder).split("_")
        logs.append(("steps_h200", model, 524288, recipe, folder))
    for where, model, total, recipe, folder in logs:
        steps = [json.loads(line) for line in read(folder, "log.jsonl").splitlines()]
        warmup = 3 if where == "steps_h200" else 0      # as dev/gpu_steps.sh counts
        steps = [s for s in steps if "tok_s" in s][warmup:]
        add(where, model, recipe, total, [s["tok_s"] for s in steps],
            [1e3 * s["joules"] / total for s in steps if where == "steps_h200"])
    body = read(RESULTS, "recipes_h100", "recipes.log").split(
        "=== d12, B 64, T 1024, 65,536 tokens an update\n")[1]
    for recipe, speed in re.findall(r"^(\S+) +(\d+) tokens/s$", body, re.M):
        add("recipes_h100", "d12", recipe, 65536, [int(speed)])
    # d12's updates are shorter than the time between two readings of the energy meter
    for model, recipe, body in re.findall(r"^== (\w+)\.(\w+)\n((?:step .*\n)+)", read(
            RESULTS, "recipes_h100", "d12_d48_steps.log"), re.M):
        steps = re.findall(r"\| (\d+) tok/s .*\| ([\d.]+) mJ/token$", body, re.M)
        add("recipes_h100", model, recipe, 65536, [int(speed) for speed, _ in steps],
            [float(energy) for _, energy in steps if model == "d48"])
    for where, model, recipe, _, ranks, B, times, _, alone, _ in logged_ranks():
        every = found.setdefault((where, model, recipe, 1024 * B * times), [])
        if ranks == max(run[4] for run in logged_ranks() if run[0] == where):
            every += [(speed, None) for speed in alone if (speed, None) not in every]
    return found


def logged_ranks():
    """What the two speed.log say of each run of several GPUs: folder, model, recipe, amax, GPUs, B,
    micro-batches, tokens/s, of each GPU alone, bytes by kind."""
    runs = []
    for where in RANKS_LOGS:
        for model, B, times, body in re.findall(
                r"^=== (d\d+), B (\d+), T 1024, (\d+) micro-batches an update: tokens/s\n((?:.+\n)+)",
                read(RESULTS, where, "speed.log"), re.M):
            for recipe, local, ranks, speed, alone, wire in re.findall(
                    r"^(\w+)-z1(-amaxlocal)? +(\d) GPUs +(\d+), .* of the sum of each alone,([\d ]+)\n"
                    r"on the wire .* of all ranks: (.+)$", body, re.M):
                kinds = re.findall(r"([^,]+) (\d+)(?:, |$)", wire)
                assert tuple(kind for kind, _ in kinds) == plan.WIRE_KINDS, wire
                runs.append((where, model, recipe, "local" if local else "global", int(ranks), int(B),
                             int(times), int(speed), [int(each) for each in alone.split()],
                             tuple(int(count) for _, count in kinds)))
    return runs


def test_measured():
    found, wrong = logged_steps(), []
    for gpu, model, recipe, _, _, total, *measured, where in plan.MEASURED_STEPS + plan.OUTSIDE_STEPS:
        runs = found.get((where, model, recipe, total), [])
        energies = [energy for _, energy in runs if energy is not None]
        # one printed step in a second: of a short run two medians may differ by a percent
        if not runs or not close(measured[0], statistics.fmean(speed for speed, _ in runs), 0.01):
            wrong.append(f"{where} {model} {recipe}: {measured[0]:,} tokens/s, logged {runs}")
        if energies and not close(measured[1] or 0.0, statistics.fmean(energies), 0.01):
            wrong.append(f"{where} {model} {recipe}: {measured[1]} mJ/token, logged {runs}")
        if gpu.lower() not in where and where != "c_and_cuda":
            wrong.append(f"{where} {model} {recipe}: on {gpu}?")
    report_all(wrong, "measured steps", f"{len(plan.MEASURED_STEPS) + len(plan.OUTSIDE_STEPS)} "
               "as in dev/results, to 1 %")
    names = {folder: set(re.findall(r"^NVIDIA H\d+", read(RESULTS, folder, log), re.M)) for folder, log
             in (("recipes_h100", "recipes.log"), *((where, "speed.log") for where in RANKS_LOGS))}
    good = names == {"recipes_h100": {"NVIDIA H100"}, **{where: {"NVIDIA H200"} for where in RANKS_LOGS}}
    report(good and plan.MEASURED_RANKS == [run[:8] + run[9:] for run in logged_ranks()],
           "measured on two and four GPUs", f"{len(plan.MEASURED_RANKS)} speeds and their bytes as logged")


def check_status():
    """Whether print_check is content, and what it prints."""
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        good = plan.print_check()
    return good, out.getvalue()


def test_check():
    rows = [row for row in plan.check_rows() if row[4] is not None]
    for what, bound, chosen in (
            ("predicted whole steps", 0.15, [row for row in rows if row[0].startswith("steps")]),
            ("predicted kernels, energy", 0.15, [row for row in rows if not row[0].startswith(
                ("steps", "scaling", "bytes"))]),
            ("share of twice one GPU", 0.05, [row for row in rows if row[0] == "scaling, 2"]),
            ("share of four times one GPU", 0.07, [row for row in rows if row[0] == "scaling, 4"]),
            ("bytes on the wire", 0.0, [row for row in rows if row[0].startswith("bytes")])):
        errors = [(" ".join(f"{row[0]} {row[1]}".split()), plan.check_error(row)) for row in chosen]
        bad = [f"{name}: {100 * e:+.1f} %" for name, e in errors if not abs(e) <= bound]
        report_all(bad, what, f"{len(errors)} within {100 * bound:.0f} %: "
                   f"{100 * min(e for _, e in errors):+.1f} to {100 * max(e for _, e in errors):+.1f} %")
    # what a recipe adds: the time of NVFP4 beyond BF16, which a model that had only the GEMMs right
    # would miss
    extra = [1 / plan.predict(plan.plan_of("d12", recipe, 64, 1024, 524288))["ways"]
             ["with overlap"]["tokens_per_second"] for recipe in ("nvfp4", "bf16")]
    error = (extra[0] - extra[1]) / (1 / 437100 - 1 / 562100) - 1
    report(abs(error) < 0.15, "what NVFP4 adds", f"d12, predicted {100 * error:+.1f} % of measured")
    status, out, _ = run("-check")
    report(status == 0 and "MISSED" not in out, "-check", out.strip().splitlines()[-1])
    # the last: a byte less on the wire
    wrong = []
    for name, new in (("GEMM", 0.7 * plan.GEMM), ("LINK", 0.01 * plan.LINK),
                      ("POWER_BUSY", 1.3 * plan.POWER_BUSY), ("ATTENTION_EXPOSED", 3.0),
                      ("MEASURED_RANKS", [(*case[:8], (*case[8][:4], case[8][4] - 1))
                                          for case in plan.MEASURED_RANKS])):
        old = getattr(plan, name)
        setattr(plan, name, new)
        good, out = check_status()
        setattr(plan, name, old)
        if good or "MISSED" not in out:
            wrong.append(name)
    report_all(wrong, "-check finds faults", "five wrong numbers, each MISSED")


def test_readme():
    """README's table of other GPUs, to 100 tokens/s, and the errors that it quotes."""
    text = read(ROOT, "README.md")
    section = text[text.index("### What to expect on other GPUs"):].split("\n## ")[0]
    wrong, count = [], 0
    for name, *cells in re.findall(r"^\| (\w[\w, ]+)" + 6 * r" \|([^|\n]*)" + r" \|$", section, re.M):
        gpu = name.split(",")[0].replace(" ", "")
        for number, cell in enumerate(cells):
            recipe, quantizers = (("bf16", "measured"), ("nvfp4", "measured"),
                                  ("nvfp4", "memory"))[number % 3]
            try:
                found = plan.predict(default_plan(
                    model=("d12", "d48")[number // 3], recipe=recipe, quantizers=quantizers,
                    gpu=gpu))["ways"]["with overlap"]["tokens_per_second"]
                found = f"{round(found, -2):,.0f}"
            except plan.PlanError:
                found = "does not fit" if recipe == "bf16" else ""
            count += 1
            if found != cell.strip():
                wrong.append(f"{name}, column {number + 1}: {cell.strip()}, predicted {found}")
    rows = plan.check_steps() + plan.check_ranks()
    for group in ("steps, H200", "steps, H100", "steps, 2 x H200", "steps, 4 x H200"):
        errors = [100 * plan.check_error(row) for row in rows if row[0] == group]
        quoted = f"{min(errors):+.1f} to {max(errors):+.1f} %"
        if quoted not in section:
            wrong.append(f"{group}: {quoted} not in README")
    report_all(wrong if count == 30 else wrong + [f"{count} cells"], "README: other GPUs",
               f"{count} cells, errors of four groups")


# ---------------------------------------------------------------------------------------------
# FLOP, collectives

def test_flop():
    """Products of the model: 6 FLOP for each weight of a matrix, the head's included, and token."""
    wrong = []
    for name, recipe in (("d6", "bf16"), ("d12", "nvfp4"), ("d24", "fp8"), ("d48", "nvfp4,tail=0"),
                         ("d12", "nvfp4,dgrad=bf16")):
        result = plan.predict(default_plan(model=name, recipe=recipe))
        model = plan.Model(name, 1024)
        found = sum(row["flop"] for family, row in result["families"].items() if "GEMM" in family)
        weights = 12 * model.C**2 * model.L + model.Vp * model.C
        expected = 6.0 * weights * result["plan"]["total"]
        if not close(found, expected, 1e-12):
            wrong.append(f"{name} {recipe}: {found:.4g}, not {expected:.4g}")
    report_all(wrong, "FLOP of the GEMMs", "6 for each weight and token, whatever the recipe")
    # per linear layer and micro-step: 2 amax cleared, amax, codes, alpha, 2 expansions, bias; then
    # the same without bias, and a second alpha and pair of expansions. Per update 4 for a weight
    launches = [sum(row["launches"] for row in plan.predict(plan.plan_of(
        "d12", recipe, 64, 1024, 524288))["families"].values()) for recipe in ("nvfp4", "bf16")]
    expected = 4 * (8 + 10) * 10 * 8 + 4 * 4 * 10
    good = launches[0] - launches[1] == expected
    report(good, "launches", f"NVFP4 adds {expected:,} to an update" if good
           else f"{launches}")
    # attention: at long contexts half of T x T, of which 9 products are computed
    for T, bound in ((1024, 0.13), (65536, 0.002)):
        share = plan.attention_flop(T, 64, 3, 9) / (9 * 2.0 * 3 * 64 * T * T / 2) - 1
        report(0 < share < bound, f"FLOP of attention, T {T}", f"{100 * share:.2f} % above causal")


def readme_wire():
    """README's table of what travels: for -z 0, 1, 2 bytes of all ranks by kind."""
    text = read(ROOT, "README.md")
    table = text[text.index("| collective | how often in an update | `-z 0`"):].split("\n\n")[0]
    lines = [[cell.strip().replace(",", "") for cell in line.split("|")[1:-1]]
             for line in table.splitlines()[2:]]
    kinds = ("amax", "gradients", "amax", "weights in NVFP4", "other weights", "other")
    found = [dict.fromkeys(plan.WIRE_KINDS, 0.0) for _ in range(3)]
    for kind, line in zip(kinds, lines):
        for level in range(3):
            found[level][kind] += float(line[2 + level] or 0)
    return found


def test_collectives():
    wrong, expected = [], readme_wire()
    for level in (0, 1, 2):
        rows = plan.predict(default_plan(model=plan.SMALL, T=128, ranks=4, level=level, B=4,
                                         total=4 * 128 * 4 * 2))["collectives"]
        found = {kind: 4 * sum(row[2] for row in rows if row[4] == kind)
                 for kind in plan.WIRE_KINDS}
        wrong += [f"-z {level}: {kind} {found[kind]:,.0f}, README {expected[level][kind]:,.0f}"
                  for kind in plan.WIRE_KINDS if found[kind] != expected[level][kind]]
        if level == 2 and sum(row[1] for row in rows if row[4] == "gradients") != 2 * (4 + 2):
            wrong.append("gradients of -z 2: not layers + 2 for each micro-batch")
    report_all(wrong, "README: what travels", "4 ranks, -z 0, 1, 2, by kind")
    n, C, L, tail = 124475904, 768, 12, 2
    low = 12 * C * C * (L - tail)
    for ranks, node in ((2, 8), (8, 8), (64, 8), (512, 8), (72, 72), (16, 1)):
        part, result = (ranks - 1) / ranks, {}
        for level in (0, 1, 2):
            rows = plan.predict(default_plan(ranks=ranks, level=level, node=node, B=4,
                                             total=4 * 1024 * ranks * 3))["collectives"]
            result[level] = {kind: sum(row[2] for row in rows if row[4] == kind)
                             for kind in plan.WIRE_KINDS}
        sent = [result[level]["gradients"] for level in (0, 1, 2)]
        good = (close(sent[0], 2 * part * 4 * n) and close(sent[1], part * 4 * n)
                and close(sent[2], 3 * part * 4 * n)        # once in each of 3 micro-steps
                and close(result[1]["weights in NVFP4"], part * low / 2)
                and close(result[1]["other weights"], part * (n - low) * 2)
                and result[0]["weights in NVFP4"] == result[0]["other weights"] == 0.0)
        report(good, f"bytes sent, {ranks} GPUs", f"(n-1)/n of gradients, weights; {node} a node")
    rows = plan.predict(default_plan(ranks=8, total=64 * 1024 * 8, B=64, gather="bf16"))["collectives"]
    report([close(row[2], 7 / 8 * n * 2) for row in rows if row[4] == "other weights"] == [True]
           and not any("codes" in row[0] or "tiles" in row[0] for row in rows),
           "weights as BF16", "2 bytes each")
    # gradients of a backward pass hide but for those of the embeddings; nothing else does
    r = plan.predict(default_plan(model="d48", ranks=8, B=8, total=8 * 1024 * 8 * 4))
    busy = sum(row[3] for row in r["collectives"] if row[4] == "gradients")
    ways = [r["ways"][name]["parts"]["network"] for name in ("without overlap", "with overlap")]
    last = (50304 + 1024) * 1600 / r["parameters"]
    report(close(ways[0] - ways[1], busy * (1 - last)), "overlap",
           f"gradients of d48, but for {100 * last:.0f} % of them")
    memory = [plan.device_memory(plan.Model("d48", 1024), plan.Recipe("bf16", 48), "fp4", 8, 8, level)
              ["gradients"] / 4 for level in (1, 2)]
    block = 12 * 1600**2 + 13 * 1600
    report(memory[0] - memory[1] == 46 * block - r["parameters"] // 8, "memory of -z 2",
           "gradients of a shard, two blocks and the embeddings")
    calls = {recipe: sum(row[1] for row in plan.predict(default_plan(
        recipe=recipe, ranks=8, B=32, total=32 * 1024 * 8 * 2))["collectives"] if " dY" in row[0])
        for recipe in ("nvfp4", "nvfp4,tail=0", "nvfp4,dgrad=bf16,wgrad=bf16", "fp8", "bf16")}
    expected = {"nvfp4": 2 * 4 * 10 * 2, "nvfp4,tail=0": 2 * 4 * 12 * 2,
                "nvfp4,dgrad=bf16,wgrad=bf16": 4 * 10 * 2, "fp8": 2 * 4 * 12 * 2, "bf16": 0}
    report(calls == expected, "amax all-reduces", "X and dY of 4 layers, blocks, micro-steps"
           if calls == expected else f"{calls}, not {expected}")
    cluster = plan.Cluster(plan.GPUS["H200"], 64, 8, 0)
    # NCCL's tree with low-latency messages: 4.4 + 2 (7 * 1.8 * 0.52 + 3 * 5.0) microseconds
    report(close(cluster.tree_latency(), 47.504e-6), "latency of an amax", "64 GPUs: 47.5 us")
    single = plan.predict(default_plan())
    report(single["collectives"] == [] and single["ways"]["with overlap"]
           == single["ways"]["without overlap"], "one GPU", "no collective")


# ---------------------------------------------------------------------------------------------
# Monotonic: more of anything is never slower

CASES = [dict(model="d12"), dict(model="d12", recipe="bf16"), dict(model="d12", recipe="fp32"),
         dict(model="d24", recipe="fp8", gpu="H100"), dict(model="d48", gpu="B200"),
         dict(model="d48", gpu="B200", path="emulated"), dict(model="d48", gpu="GB300", ranks=576),
         dict(model="d24", gpu="RTX5090", ranks=16, level=0), dict(model="d48", ranks=64, level=2)]


def seconds(case):
    way = plan.predict(default_plan(**case))["ways"]
    return [way[name]["seconds"] for name in ("with overlap", "without overlap")]


def test_monotonic():
    wrong, gained = [], set()
    for case in CASES:
        case = dict(case, B=4)
        before, gpu = seconds(case), plan.GPUS[case.get("gpu", "H200")]
        for field in ("bf16", "fp8", "fp4", "fp32", "mma", "memory", "link", "net"):
            old = gpu[field]
            gpu[field] = 1.7 * old
            after = seconds(case)
            gpu[field] = old
            if any(a > b * (1 + 1e-12) for a, b in zip(after, before)):
                wrong.append(f"{case}: slower with more {field}")
            if after[1] < before[1] * (1 - 1e-9):
                gained.add(field)
        if before[0] > before[1]:
            wrong.append(f"{case}: slower with overlap")
    wrong += [f"no case gains from {field}" for field in
              {"bf16", "fp8", "fp4", "fp32", "mma", "memory", "link", "net"} - gained]
    report_all(wrong, "monotonic", f"{len(CASES)} plans, each rate of the GPU and links raised")
    speeds = [plan.predict(default_plan(model="d12", recipe=recipe, B=64))["ways"]["with overlap"]
              ["tokens_per_second"] for recipe in ("bf16", "nvfp4,tail=6", "nvfp4", "nvfp4,tail=0")]
    report(speeds == sorted(speeds, reverse=True), "emulation costs", "the more, the more blocks")
    speeds = [seconds(dict(model="d48", recipe=recipe, gpu="RTX5090", B=1))[0]
              for recipe in ("bf16", "nvfp4", "nvfp4,tail=0")]
    report(speeds == sorted(speeds, reverse=True), "FP4 tensor cores gain",
           "RTX 5090, the more, the more blocks")
    speeds = [seconds(dict(model="d48", gpu="B200", B=16, **change))[0] for change in (
        dict(path="emulated"), dict(), dict(quantizers="memory"))]
    report(speeds == sorted(speeds, reverse=True), "B200",
           "slowest emulated, then FP4, then with free quantizers")


# ---------------------------------------------------------------------------------------------
# Output

def test_output():
    wrong = []
    for gpu, ranks, recipe, expected in (
            ("H200", "1", "nvfp4", "calibrated and checked on this"),
            ("H100", "1", "fp8", "checked on this GPU"), ("H200", "2", "bf16", "checked on 2"),
            ("H200", "4", "bf16", "checked on 4"),
            ("H200", "8", "bf16", "prediction; of several GPUs two and four H200"),
            ("H100", "2", "bf16", "prediction; of several GPUs two and four H200"),
            ("H200", "16", "bf16", "prediction; several hosts were never run"),
            ("B200", "1", "bf16", "prediction; never run"), ("GB300", "8", "nvfp4", "never run"),
            ("RTX5090", "1", "fp8", "prediction; never run")):
        _, out, _ = run("-e", "d12", "-gpu", gpu, "-gpus", ranks, "-p", recipe)
        machine = [line for line in out.splitlines() if line.startswith("machine")]
        if not machine or expected not in machine[0]:
            wrong.append(f"{gpu} {recipe}: {machine}")
    _, out, _ = run("-gpu", "B200", "-gpus", "1,8")
    if "never run" not in out.splitlines()[0]:
        wrong.append(out.splitlines()[0])
    report_all(wrong, "labels", "calibrated, prediction, never run")

    _, out, _ = run("-e", "d24", "-gpus", "16", "-json")
    r = json.loads(out)
    good = (close(sum(row["seconds"] for row in r["families"].values()), r["compute"])
            and close(r["ways"]["without overlap"]["seconds"],
                      r["compute"] + sum(row[3] for row in r["collectives"]))
            and all(close(sum(way["parts"].values()), way["seconds"]) for way in r["ways"].values())
            and close(r["ways"]["with overlap"]["tokens_per_second"]
                      * r["ways"]["with overlap"]["seconds"], r["plan"]["total"]))
    report(good, "-json", "parts add up to the whole")
    _, out, _ = run("--json", "--gpus", "1,8,4096")
    tables = json.loads(out)
    grown = [row["prediction"]["ways"]["with overlap"]["tokens_per_second"]
             for row in tables["update grows with the GPUs"]]
    report(tables["one update shared by all"][2]["prediction"] is None and grown == sorted(grown)
           and grown[2] < 4096 * grown[0], "-gpus 1,8,4096", "fewer rows than GPUs is said")
    _, out, _ = run("-e", "d48", "-p", "bf16", "-b", "64", "-gpu", "RTX5090")
    report("DOES NOT FIT" in out, "memory that is not there", "is said")
    wrong, found = [], []
    for name, gpu in (("d48", "B200"), ("d48", "H200"), ("d36", "H100"), ("d24", "RTX5090")):
        model, limit = plan.Model(name, 1024), plan.GPUS[gpu]["size"]
        recipe = plan.Recipe("nvfp4", model.L)
        B = plan.largest_batch(plan.GPUS[gpu], model, recipe, "fp4")
        sizes = [sum(plan.device_memory(model, recipe, "fp4", b).values())
                 + plan.OUTSIDE_THE_TABLE for b in (B, 2 * B)]
        found.append(f"{name} on {gpu} {B}")
        if not (sizes[0] <= limit < sizes[1]):
            wrong.append(found[-1])
    report_all(wrong, "largest micro-batch", ", ".join(found))
    expanded = [family for path in ("fp4", "emulated") for family in plan.device_memory(
        plan.Model("d12", 1024), plan.Recipe("nvfp4", 12), path, 8) if "expanded" in family]
    report(len(expanded) == 1, "expanded operands", "only where NVFP4 is emulated")
    status, out, _ = run("-h")
    missing = [flag for flag in plan.FLAGS + ("-json", "-check") if f"  {flag} " not in out + " "
               and f" {flag}" not in out]
    report(status == 0 and not missing, "-h", f"names {len(plan.FLAGS) + 2} flags" if not missing
           else f"without {missing}")


BAD = [
    (("-e", "d13"), "no model 'd13'"), (("-e", "layers=2,channels=64"), "needs layers"),
    (("-e", "layers=2,channels=100,heads=2"), "multiple of 16"),
    (("-e", "layers=2,channels=64,heads=3"), "divided among 3 heads"),
    (("-e", "layers=2,channels=64,heads=2,depth=3"), "unknown 'depth'"),
    (("-e", "layers=x,channels=64,heads=2"), "'x' is not a number"),
    (("-e", "layers=2,channels=272,heads=1"), "head size 272"),
    (("-e", "d12,d24"), "no model 'd24'"), (("-t", "2048"), "context is 1024"),
    (("-p", "int4"), "begins with"), (("-p", "bf16,tail=1"), "only nvfp4 and fp8"),
    (("-p", "nvfp4,tail"), "name=value"), (("-p", "nvfp4,tail=13"), "more than the 12 blocks"),
    (("-p", "nvfp4,hadamard=2"), "no value for hadamard"), (("-p", "fp8,hadamard=0"), "unknown"),
    (("-p", "nvfp4,dgrad=fp8"), "nvfp4 or bf16"), (("-gpu", "A100"), "known: H100"),
    (("-g", "fp4"), "no FP4 tensor cores"), (("-g", "tensor"), "known: auto"),
    (("-b", "0"), "not a number from 1"), (("-b", "8x"), "'8x'"), (("-b", "²"), "not a number"),
    (("-d", "1000"), "not a multiple"), (("-gpus", "1,,2"), "''"), (("-gpus", "-4"), "'-4'"),
    (("-gpus", "2000000"), "more than a million"), (("-z", "3"), "known: 0 1 2"),
    (("-amax", "both"), "global local"), (("-q", "fast"), "measured memory"),
    (("-gather", "fp32"), "nvfp4 bf16"),
    (("-node", "0"), "from 1"), (("-net", "fast"), "'fast'"),
    (("-x", "3"), "unknown flag"), (("-e",), "needs a value"), (("d12",), "unknown flag 'd12'"),
    (("-e", "d6", "-e", "d6"), "twice"), (("-e", "gpt3:c12288"), "not even"),
]


def test_bad_input():
    wrong = []
    for arguments, expected in BAD:
        status, out, errors = run(*arguments)
        lines = errors.strip().splitlines()
        if status == 0 or out or len(lines) != 1 or not lines[0].startswith("error: ") \
                or expected not in lines[0]:
            wrong.append(f"{' '.join(arguments)}: status {status}, {errors.strip()[-200:]!r}")
    report_all(wrong, "bad input", f"{len(BAD)} commands end with one line that says what is wrong")


if __name__ == "__main__":
    test_memory()
    test_headers()
    test_calibration()
    test_h100_calibration()
    test_measured()
    test_check()
    test_readme()
    test_flop()
    test_collectives()
    test_monotonic()
    test_output()
    test_bad_input()
    sys.exit(1 if failures else 0)
