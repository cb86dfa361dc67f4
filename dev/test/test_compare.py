#!/usr/bin/env python3
"""
Tests of dev/compare: its statistics against tables and simulated seeds; its report on synthetic
logs whose gap, noise, spikes, divergence and token cost are known, and on the real logs of
dev/results; logs in every bad state; what it refuses to compare; its running and resuming with a
stand-in trainer and with train_gpt2_fp32. Standard library; the plots need matplotlib and are
skipped without. Prints lines as report.h describes.

Seen failing, each in a copy: t's series begun wrongly, t / df, 90 %, t(n), no square root of n,
pairs of different seeds; Welch's degrees of freedom, its variances not over n, 1.96 in place of t;
gap over the recipe's loss; borrowed by all, with too many degrees of freedom, by two seeds as by one; noise of the recipe;
the first common step; interpolation, 1 - D'/D, a decaying curve believed, steps summed in place of
rates, the run's own end left out, a shorter run's start taken for its end, shorter runs refused, a
better recipe unnoticed; spikes at 3 deviations or a wrong factor, neighbours apart, spikes run
together, a new level for ever; divergence held against the start; not finite runs in gaps; price of
one GPU, joules an update, power without the first update, norms clipped, mean speed, 12 L C T, one
rank's peak, B200 for GB200; data, -e, -vt, -k, tokens of an update unchecked, -b checked, force
ignored, a seed twice; resuming one step early, evaluations and steps kept over a resume, NaN taken,
a cut line called rubbish, finished without evaluation, checkpoints unseen, '=' in a directory; ids
that clash, a range taken for a number at an unfinished recipe's end, lengths of seeds that the recipe
has not, an empty log or a device that is null as the end of everything, a crooked table, memory
invented, 0 for missing, every point drawn, a trace for a missing matplotlib; alarms kept over a
resume, a run without guards called quiet; no -y, finished or diverged runs repeated, settings or
defaults unchecked, 6e-4 against 0.0006, the GPU not chosen or shared, no lock, trainers left,
another -n, failures unnoticed, status 0, a recipe refused at its turn only, warmup beyond a length,
the file before the command line, an option twice, SIGTERM, SIGHUP ends it under nohup or does not
without, -x or --lengths with --logs; other validation data or -vt from a resume on taken, data that
an older log does not name called other, equal runs of two names unnoticed.
"""
import contextlib
import html.parser
import importlib.util
import io
import json
import math
import os
import random
import re
import signal
import statistics
import subprocess
import sys
import tempfile
import time

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
COMPARE = os.path.join(ROOT, "dev", "compare")
RESULTS = os.path.join(ROOT, "dev", "results")
TRAINER = os.path.join(ROOT, "train_gpt2_fp32")
os.environ["CUDA_VISIBLE_DEVICES"] = ""         # the same on machines with GPUs
sys.dont_write_bytecode = True
sys.path.insert(0, os.path.join(ROOT, "dev", "compare_report"))

import analysis         # noqa: E402  (after the path is set)
import report as compare_report     # noqa: E402
import run_log          # noqa: E402

failures = 0


def report(good, name, detail=""):
    global failures
    print(f"{'ok  ' if good else 'FAIL'} {name:<28} {detail}", flush=True)
    failures += not good


def report_all(wrong, name, detail):
    """wrong: descriptions of what is not as it should be."""
    report(not wrong, name, detail if not wrong else f"{len(wrong)} wrong, first: {wrong[0]}")


def check_equal(wrong, what, found, expected, tolerance=1e-9):
    """Adds to `wrong` what differs; numbers may differ by a relative tolerance."""
    if isinstance(expected, float) and isinstance(found, (int, float)):
        good = abs(found - expected) <= tolerance * max(abs(expected), 1e-12)
    else:
        good = found == expected
    if not good:
        wrong.append(f"{what} is {found!r}, should be {expected!r}")


def run_compare(*words, **more):
    """(exit status, output, errors) of dev/compare, without its bytecode files"""
    result = subprocess.run([sys.executable, "-B", COMPARE, *words], text=True, capture_output=True,
                            timeout=120, **more)
    return result.returncode, result.stdout, result.stderr


def read(*path):
    with open(os.path.join(*path), encoding="utf-8") as file:
        return file.read()


# ---------------------------------------------------------------------------------------------
# Synthetic logs

FLAGS = {"-e": "d12", "-g": "auto", "-b": 8, "-t": 64, "-d": 0, "-x": 400, "-k": "cosine",
         "-l": 1e-3,
         "-u": 0, "-q": 0, "-c": 0.1, "-gc": 1, "-v": 20, "-vt": 6400}
TOKENS = 8 * 64


def run_line(recipe, seed, steps, **more):
    flags = dict(FLAGS, **{"-p": recipe, "-seed": seed, "-x": steps})
    flags.update({name: value for name, value in more.items() if name.startswith("-")})
    info = {"flags": flags, "program": "train_gpt2_nvfp4", "commit": "abc", "device": "NVIDIA H200",
            "recipe": recipe, "train_data": "11", "val_data": "22", "ranks": 1,
            "num_parameters": 1000,
            "first_step": 0, "num_steps": steps}
    info.update({name: value for name, value in more.items() if not name.startswith("-")})
    return json.dumps({"run": info})


def write_log(directory, recipe, seed, steps=400, loss=lambda s: 4.0, val=None, rate=lambda s: 1.0,
              noise=0.0, fields=None, extra=(), **more):
    """A log whose update s has the training loss loss(s) + noise and whose validation losses, every
    20 steps, are val(s)."""
    random_numbers = random.Random(f"{recipe} {seed}")
    lines = [run_line(recipe, seed, steps, **more)]
    for s in range(steps + 1):
        if s % 20 == 0 or s == steps:
            lines.append(json.dumps({"step": s, "val_loss": (val or loss)(s)}))
        if s < steps:
            entry = {"step": s, "loss": loss(s) + random_numbers.gauss(0, noise), "norm": 0.5
                     + (s == 7),
                     "lr": rate(s), "ms": 10.0 if s else 900.0, "tok_s": 51200.0 if s else 500.0}
            lines.append(json.dumps(dict(entry, **(fields or {}))))
    os.makedirs(directory, exist_ok=True)
    with open(os.path.join(directory, "log.jsonl"), "w", encoding="utf-8") as file:
        file.write("\n".join([*lines, *extra]) + "\n")
    return directory


def comparison(*directories, names=None, **options):
    runs = []
    for i, directory in enumerate(directories):
        run = run_log.read_run(directory)
        run.name = names[i] if names else run.recipe
        runs.append(run)
    return analysis.compare(runs, **options)


def write_family(work, gap, seeds=(1, 2, 3), shared=0.01, own=0.001, recipe="nvfp4"):
    """Logs of bf16 and a recipe with a known gap; seeds share `shared` of their noise. Returns the
    directories and the differences that are in the logs."""
    numbers, directories, differences = random.Random(5), [], []
    for seed in seeds:
        level, a, b = numbers.gauss(0, shared), numbers.gauss(0, own), numbers.gauss(0, own)

        def base(s, add=level + a):
            return 3.0 + 5.0 / (1 + s) + add

        def other(s, add=level + b):
            return 3.0 + 5.0 / (1 + s) + add + gap * s / 400
        directories += [write_log(os.path.join(work, f"bf16_{seed}"), "bf16", seed, loss=base),
                        write_log(os.path.join(work, f"{recipe}_{seed}"), recipe, seed, loss=other)]
        differences.append(gap + b - a)
    return directories, differences


# ---------------------------------------------------------------------------------------------
# Statistics

def test_quantiles():
    # the tables of Student's t, two-sided 95 %
    table = {1: 12.706, 2: 4.303, 3: 3.182, 4: 2.776, 5: 2.571, 9: 2.262, 10: 2.228, 30: 2.042,
             120: 1.980}
    wrong = []
    for df, t in table.items():
        check_equal(wrong, f"t({df})", analysis.t_quantile(df), t, 3e-4)
    # Welch by hand: variances 1 and 25 of means 2 and 15, so sqrt(1/3 + 25/3) = 2.9439 on
    # (26/3)^2 / ((1/9 + 625/9) / 2) = 2.16 degrees of freedom, rounded down to 2
    d = analysis.difference({1: 1.0, 2: 2.0, 3: 3.0}, {4: 10.0, 5: 15.0, 6: 20.0})
    check_equal(wrong, "Welch", (d["gap"], round(d["half"], 3)),
                (-13.0, round(4.30265 * 2.94392, 3)))
    report_all(wrong, "quantiles of t",
               f"{len(table)} of the tables to 3e-4; Welch's interval by hand")


def test_coverage():
    """Of simulated experiments 95 % must have the true gap in their interval."""
    numbers, count, wrong, seen = random.Random(1), 4000, [], []
    for paired in (True, False):
        inside = 0
        for _ in range(count):
            shared = [numbers.gauss(0, 0.02) for _ in range(3)]
            b = {s: 3 + shared[s] + numbers.gauss(0, 0.002) for s in range(3)}
            a = {s if paired else s + 10: 3.05 + (shared[s] if paired else numbers.gauss(0, 0.02))
                 + numbers.gauss(0, 0.002) for s in range(3)}
            d = analysis.difference(a, b)
            inside += abs(d["gap"] - 0.05) <= d["half"]
        share, error = inside / count, 5 * math.sqrt(0.95 * 0.05 / count)
        # Welch's interval is approximate, and its degrees of freedom are rounded down
        if not 0.95 - error <= share <= (0.95 + error if paired else 0.99):
            wrong.append(f"{'paired' if paired else 'independent'}: {share:.4f}")
        seen.append(f"{100 * share:.1f} %")
    report_all(wrong, "interval covers the gap",
               f"of {count}: paired {seen[0]}, independent {seen[1]}")


def test_gap(work):
    directories, differences = write_family(work, 0.05)
    c = comparison(*directories)
    val, wrong = c["recipes"]["nvfp4"]["val"], []
    gap, s = statistics.fmean(differences), statistics.stdev(differences)
    check_equal(wrong, "gap", val["gap"], gap)
    check_equal(wrong, "half", val["half"], 4.302653 * s / math.sqrt(3), 1e-6)
    base = c["losses"]["bf16"]
    check_equal(wrong, "relative", c["recipes"]["nvfp4"]["relative"], gap / base["mean"])
    check_equal(wrong, "noise", base["deviation"], statistics.stdev(base["seeds"]))
    check_equal(wrong, "noise in the curve", c["gap_curves"]["nvfp4"][-1]["noise"],
                statistics.stdev(base["seeds"]))
    check_equal(wrong, "curve halfway", c["gap_curves"]["nvfp4"][10]["gap"], gap - 0.025)
    if not abs(val["gap"] - 0.05) < val["half"] < 0.01:     # 0.01: noise that both share cancels
        wrong.append(f"true gap 0.05 not in {val['gap']:.4f} +- {val['half']:.4f}, or too wide")
    report_all(wrong, "known gap", f"0.05 found as {val['gap']:.4f} +- {val['half']:.4f}; "
               f"seeds scatter by {base['deviation']:.4f}")

    one = comparison(*directories[:2])["recipes"]["nvfp4"]["val"]
    more, _ = write_family(os.path.join(work, "x"), 0.1, seeds=(1,), recipe="mxfp4")
    c = comparison(*directories, more[1])
    wrong = []
    check_equal(wrong, "interval of one seed", one["half"], None)
    check_equal(wrong, "interval of one seed among others", c["recipes"]["mxfp4"]["val"]["half"],
                None)
    check_equal(wrong, "borrowed", c["recipes"]["mxfp4"]["val"]["borrowed"], 4.302653 * s, 1e-6)
    told = compare_report.headline("mxfp4", c["recipes"]["mxfp4"], "bf16")
    if f"no interval; ± {4.302653 * s:.4f}" not in told or "do: worse" not in told:
        wrong.append(f"borrowed, not told: {told}")
    # the lender's two differences beside those of the three
    two, others = write_family(os.path.join(work, "y"), 0.1, seeds=(1, 2), recipe="mxfp4")
    c = comparison(*directories, *two[1::2])
    spread = math.sqrt((2 * s * s + statistics.variance(others)) / 3)
    check_equal(wrong, "borrowed by two seeds", c["recipes"]["mxfp4"]["val"]["borrowed"],
                4.302653 * spread / math.sqrt(2), 1e-6)
    for seed, found in c["gap_curves"]["mxfp4"][-1]["pairs"].items():
        check_equal(wrong, "pairs of the curve", found, others[seed - 1])
    check_equal(wrong, "borrowed by three seeds", c["recipes"]["nvfp4"]["val"]["borrowed"], None)
    # another seed's run has no partner, and is left out
    alone = comparison(*directories[:4], directories[5])["recipes"]["nvfp4"]
    check_equal(wrong, "gap of two pairs", alone["val"]["gap"], statistics.fmean(differences[:2]))
    check_equal(wrong, "runs compared", alone["compared"], 2)
    path = os.path.join(directories[3], "log.jsonl")        # seed 2 of the recipe, half way
    cut = "\n".join(read(path).split("\n")[:230])
    with open(path, "w", encoding="utf-8") as file:
        file.write(cut)
    unfinished = comparison(*directories)["recipes"]["nvfp4"]
    check_equal(wrong, "step of an unfinished run", (unfinished["step"], unfinished["train"]),
                (200, None))
    check_equal(wrong, "gap half way", unfinished["val"]["gap"], gap - 0.025)
    told = compare_report.headline("nvfp4", unfinished, "bf16")
    if "at step 200 of 400" not in told:
        wrong.append(f"not told: {told}")
    report_all(wrong, "few seeds", "one has no interval; the borrowed one; pairs only")


def test_tokens(work):
    """A recipe that is 25 % less efficient in tokens than a power law: every way finds 25 %."""
    wrong = []

    def law(s, E=1.5):
        return E + 3.0 * (max(s, 1) * TOKENS / 1e4) ** -0.3

    def recipe(s):
        return law(s / 1.25)
    base = write_log(os.path.join(work, "b"), "bf16", 1, loss=law, **{"-k": "constant"})
    other = write_log(os.path.join(work, "o"), "nvfp4", 1, loss=recipe, **{"-k": "constant"})
    cost = comparison(base, other)["recipes"]["nvfp4"]["cost"]
    check_equal(wrong, "constant rate", 1 + (cost["more"] or 0), 1.25, 0.01)

    # a decaying run alone gives a range. Linear decay: after 0.8 of the updates 0.96 of the rates
    # are spent, so 25 % more tokens in one reading are 1 / 0.96 - 1 in the other.
    def rate(s):
        return 1 - (s + 0.5) / 400
    base = write_log(os.path.join(work, "b2"), "bf16", 1, loss=law, rate=rate, **{"-k": "linear"})
    other = write_log(os.path.join(work, "o2"), "nvfp4", 1, loss=recipe, **{"-k": "linear"})
    cost = comparison(base, other)["recipes"]["nvfp4"]["cost"]
    check_equal(wrong, "decaying rate", cost["more"], None)
    for found, expected in zip(cost["range"] or [0, 0], (1 / 0.96, 1.25)):
        check_equal(wrong, "decaying rate, reading", 1 + found, expected, 0.01)

    # shorter runs of the baseline, whose ends are better than the middle of the long one
    def end(steps):
        return lambda s: law(s) + 0.2 * (1 - s / steps)
    ends = [write_log(os.path.join(work, f"e{n}"), "bf16", 1, n, loss=end(n), **{"-u": n // 10})
            for n in (240, 300, 400)]
    other = write_log(os.path.join(work, "o3"), "nvfp4", 1, loss=recipe, **{"-u": 40})
    c = comparison(*ends, other)
    cost = c["recipes"]["nvfp4"]["cost"]
    check_equal(wrong, "ends of other lengths", 1 + (cost["more"] or 0), 1.25, 0.01)
    check_equal(wrong, "shorter runs", len(c["shorter_baselines"]), 2)
    # a recipe at update 320 of 400 is not at the end of anything: a range, whatever the lengths
    path = os.path.join(write_log(os.path.join(work, "cut"), "nvfp4", 1, loss=recipe, **{"-u": 40}),
                        "log.jsonl")
    lines = read(path).split("\n")
    last = max(i for i, line in enumerate(lines) if line.replace(" ", "").startswith('{"step":320,'))
    with open(path, "w", encoding="utf-8") as file:
        file.write("\n".join(lines[:last + 1]) + "\n")
    cost = comparison(*ends, os.path.dirname(path))["recipes"]["nvfp4"]["cost"]
    check_equal(wrong, "an unfinished recipe", (cost["more"], cost["method"]),
                (None, "one decaying run"))
    # lengths with a second seed, which the recipe has not: that seed's noise must not enter
    seconds = [write_log(os.path.join(work, f"s{n}"), "bf16", 2, n,
                         loss=lambda s, n=n: end(n)(s) + 0.02, **{"-u": n // 10})
               for n in (240, 300, 400)]
    cost = comparison(*ends, *seconds, other)["recipes"]["nvfp4"]["cost"]
    check_equal(wrong, "ends of the recipe's seed", 1 + (cost["more"] or 0), 1.25, 0.01)
    better = write_log(os.path.join(work, "o4"), "nvfp4", 1, loss=lambda s: law(s) - 0.1,
                       **{"-u": 40})
    cost = comparison(ends[2], better)["recipes"]["nvfp4"]["cost"]
    check_equal(wrong, "a better recipe", (cost["range"], cost["method"][:5]), (None, "below"))
    # a gap of about 0 +- 0.02 at the end of such runs: some tokens, or none at all
    family = [write_log(os.path.join(work, f"f{name}{seed}"), name, seed, **{"-u": 40},
                        loss=lambda s, add=add: law(s) + add)
              for name, seed, add in (("bf16", 1, 0.0), ("bf16", 2, 0.0), ("nvfp4", 1, 0.003),
                                      ("nvfp4", 2, 0.001))]
    r = comparison(*ends[:2], *family[1:], ends[2])["recipes"]["nvfp4"]
    told = compare_report.cost_text(r["cost"])
    if not re.fullmatch(r"\+0\.\d % \(0 or less to \+\d+\.\d %\)", told):
        wrong.append(f"written as {told}, gap {r['val']['gap']} +- {r['val']['half']}")
    report_all(wrong, "known token cost", "25 % by curve, by ends of runs to 1 %; a range else")


def test_events(work):
    def loss(s):
        return 4.0 - 0.004 * s

    def log(name, change, steps=400, **more):
        return write_log(os.path.join(work, name), "bf16", 1, steps, noise=0.05,
                         loss=lambda s: loss(s) + change(s), **more)
    wrong = []
    quiet = sum(len(analysis.spikes(run_log.read_run(
        write_log(os.path.join(work, f"q{seed}"), "bf16", seed, 1000, loss=loss, noise=0.05))))
        for seed in range(5))
    check_equal(wrong, "spikes in noise", quiet, 0)
    run = run_log.read_run(log("spike", lambda s: 2.0 * (200 <= s < 203) + 1.0 * (s == 300)))
    found = analysis.spikes(run)
    check_equal(wrong, "spikes", [(x["step"], x["updates"]) for x in found], [(200, 3), (300, 1)])
    if found and not 1.7 < found[0]["height"] < 2.3:
        wrong.append(f"height {found[0]['height']}")
    check_equal(wrong, "divergence of spikes", analysis.divergence(run), None)
    run = run_log.read_run(log("level", lambda s: 1.5 * (s >= 200)))
    check_equal(wrong, "new level", [(x["step"], x["updates"]) for x in analysis.spikes(run)],
                [(200, 50)])
    if "above its best" not in (analysis.divergence(run) or ""):
        wrong.append(f"level: {analysis.divergence(run)}")

    # a run that ends in null, as the trainers write it, beside one that is well
    directories, differences = write_family(os.path.join(work, "family"), 0.05, seeds=(1, 2))
    path = os.path.join(directories[3], "log.jsonl")
    lines = read(path).split("\n")
    with open(path, "w", encoding="utf-8") as file:
        file.write("\n".join(lines[:100]) + '\n{"step":95,"loss":null,"norm":null,"lr":1,"ms":1}\n')
    c = comparison(*directories)["recipes"]["nvfp4"]
    check_equal(wrong, "diverged", c["diverged"], [directories[3]])
    check_equal(wrong, "gap of the other seed", (c["val"]["gap"], c["compared"], c["step"]),
                (differences[0], 1, 400)) if abs(c["val"]["gap"] - differences[0]) > 1e-9 else None
    report_all(wrong, "spikes and divergence",
               "found where planted, none in 5,000 updates of noise")


def synthetic_loss(step):
    """The same losses as in test_guards.c, which wants the same spikes to be found."""
    loss = 3.0 + ((step * step * 7 + step * 13) % 101 - 50) / 800.0
    if step == 20:
        return loss + 5.0
    if 100 <= step < 130:
        return loss + 1.0
    if step == 150:
        return loss + 0.18
    if step in (151, 153):
        return loss + 0.7
    if step == 260:
        return loss + 3.0
    if 200 <= step < 270:
        return loss + 2.0
    return loss + 1.5 if step == 325 else loss


def test_guards(work):
    """The trainer's definition of a spike is the report's; its alarms are in the report."""
    wrong = []
    header = read(ROOT, "llmc", "loss_spike.h")
    for name in ("SPIKE_WINDOW", "SPIKE_SIGMAS", "SPIKE_NATS"):
        found = re.search(rf"#define {name} ([\d.]+)", header)
        check_equal(wrong, name, float(found.group(1)), float(getattr(analysis, name)))
    run = run_log.read_run(write_log(os.path.join(work, "spikes"), "bf16", 1, loss=synthetic_loss))
    check_equal(wrong, "spikes", [x["step"] for x in analysis.spikes(run)],
                [100, 151, 153, 200, 260, 325])

    def alarms(name, *extra):
        directory = write_log(os.path.join(work, name), "bf16", 1, steps=40, extra=extra)
        return comparison(directory)["runs"][0]["alarms"]
    zero = '{"step":39,"guard":"zero_gradient","of":"fcw of block 1"}'
    under = '{"step":30,"guard":"underflow","of":"dY","value":0.061}'
    summary = '{"step":40,"guards":{"zero_gradient":1,"scales":{}}}'
    resume = run_line("bf16", 1, 40, first_step=35)
    check_equal(wrong, "no guards", alarms("none"), None)
    check_equal(wrong, "no alarm", alarms("quiet", summary), [])
    check_equal(wrong, "alarms", [a["of"] for a in alarms("two", under, zero, summary)],
                ["dY", "fcw of block 1"])
    check_equal(wrong, "alarms after a resume",
                [a["guard"] for a in alarms("resumed", under, zero, resume)], ["underflow"])
    told = compare_report.alarms_text(alarms("four", under, zero, zero, zero))
    once = "zero_gradient of fcw of block 1 (step 39)"
    check_equal(wrong, "written", told,
                f"underflow of dY (step 30), {once}, {once}, and 1 more")
    check_equal(wrong, "none written", [compare_report.alarms_text(x) for x in (None, [])],
                ["–", "none"])
    report_all(wrong, "guards", "the same spikes; alarms are read and told")


def test_measures(work):
    gib = 2**30
    directory = write_log(
        os.path.join(work, "m"), "bf16", 1, fields={"joules": 6.0}, ranks=2, **{"-d": 1024},
        extra=['{"memory":{"device_bytes":%d}}' % (3 * gib),
               '{"step":400,"checkpoint":{"bytes":5000,"seconds":1.5}}'])
    m, wrong = analysis.measure(run_log.read_run(directory), 3.6), []
    check_equal(wrong, "tokens/s", m["tokens_per_second"], 51200.0)
    flops = 6 * 1000 + 6 * 12 * 768 * 64
    check_equal(wrong, "share", m["share_of_peak"], flops * 51200 / (2 * 989.4e12))
    check_equal(wrong, "watts", m["watts"], 400 * 6.0 / (399 * 0.01 + 0.9))
    check_equal(wrong, "J/token", m["joules_per_token"], 6.0 / 1024)
    check_equal(wrong, "cost", m["usd_per_million_tokens"], 2 * 3.6 / 3600 / 51200 * 1e6)
    check_equal(wrong, "memory", m["device_bytes"], 3 * gib)
    check_equal(wrong, "checkpoint", (m["checkpoint_bytes"], m["checkpoint_seconds"]), (5000, 1.5))
    check_equal(wrong, "norms", (m["norm_median"], m["norm_max"], m["clipped"]),
                (0.5, 1.5, 1 / 400))
    plain = analysis.measure(run_log.read_run(write_log(os.path.join(work, "p"), "bf16", 1)), None)
    for name in ("watts", "joules_per_token", "usd_per_million_tokens", "device_bytes",
                 "checkpoint_bytes", "checkpoint_seconds"):
        check_equal(wrong, f"{name} of a log without", plain[name], None)
    check_equal(wrong, "peak of an unknown GPU", run_log.peak_flops("CPU"), None)
    check_equal(wrong, "peak of a GB200", run_log.peak_flops("NVIDIA GB200"), 2500e12)
    check_equal(wrong, "shape", run_log.model_shape("gpt3:c1024,layers=3"), (3, 1024))
    check_equal(wrong, "shape of a file", run_log.model_shape("a/model.bin"), None)
    report_all(wrong, "speed, energy, cost", "by formula; None where the log is silent")


# ---------------------------------------------------------------------------------------------
# Logs in every state, and what may be compared

def test_bad_logs(work):
    directory = write_log(os.path.join(work, "l"), "bf16", 1, 40)
    path, wrong = os.path.join(directory, "log.jsonl"), []
    lines = read(path).rstrip("\n").split("\n")

    def reread(new):
        with open(path, "w", encoding="utf-8") as file:
            file.write(new)
        return run_log.read_run(directory)
    run = reread("\n".join(lines[:-1]) + "\n" + lines[-1][:15])
    check_equal(wrong, "cut line", (len(run.steps), max(run.evaluations), run.finished, run.notes),
                (40, 20, False, ["its last line was cut off"]))
    run = reread("\n".join(lines[:10] + ["rubbish"] + lines[11:]))
    check_equal(wrong, "rubbish", (len(run.steps), run.notes),
                (39, ["line 11 is not JSON and was left out"]))
    run = reread("\n".join(lines).replace('"val_loss": 4.0', '"val_loss": NaN', 1))
    check_equal(wrong, "NaN", (run.evaluations[0], run.first_not_finite), (None, 0))
    # what the older part has of updates and evaluations after the resumed step does not count
    run = reread("\n".join(lines + [lines[0].replace('"first_step": 0', '"first_step": 20')]))
    check_equal(wrong, "begun again", (max(run.steps), run.evaluations, run.finished),
                (19, {0: 4.0, 20: 4.0}, False))
    # resumed: steps 20 and on are done again, better; the validation after 20 updates not or again
    again = [lines[0].replace('"first_step": 0', '"first_step": 20')] + [
        line.replace("4.0", "3.0") for line in lines[22:]]
    for name, resumed, halfway in (("resumed", lines[:30] + again[:1] + again[2:], {20: 4.0}),
                                   ("repeated", lines[:30] + again[1:], {20: 3.0})):
        run = reread("\n".join(resumed))
        check_equal(wrong, f"{name}, losses", [run.steps[s]["loss"] for s in (19, 20, 21, 39)],
                    [4.0, 3.0, 3.0, 3.0])
        check_equal(wrong, f"{name}, steps", (list(run.steps), run.evaluations, run.finished),
                    (list(range(40)), {0: 4.0, **halfway, 40: 3.0}, True))
        check_equal(wrong, f"{name}, notes", len(run.notes), 1)
    for bad in ("", "\n", '{"step":0,"loss":1.0}\n'):
        try:
            reread(bad)
            wrong.append(f"{bad!r} was taken for a log")
        except run_log.ReportError:
            pass
    with open(path, "w", encoding="utf-8") as file:
        file.write('{"run":{"device":null,"recipe":"bf16","flags":{}}}\n')
    check_equal(wrong, "no device", run_log.read_run(directory).peak(), None)
    os.makedirs(os.path.join(os.path.dirname(directory), "never_began"))
    with open(os.path.join(os.path.dirname(directory), "never_began", "log.jsonl"), "w",
              encoding="utf-8"):
        pass
    with contextlib.redirect_stderr(io.StringIO()) as told:
        found = run_log.find_logs(os.path.dirname(directory))
    check_equal(wrong, "an empty log among others",
                ([os.path.basename(each) for _, each in found], told.getvalue().count("left out")),
                ([os.path.basename(directory)], 1))
    report_all(wrong, "logs in bad states", "cut, rubbish, NaN, null, resumed, repeated, empty")


def test_refusals(work):
    base = write_log(os.path.join(work, "b"), "bf16", 1)
    cases = {"training data 99, not 11": dict(train_data="99"),
             "validation data 99, not 22": dict(val_data="99"), "-l 0.01, not 0.001": {"-l": 0.01},
             "tokens of an update 1024, not 512": {"-d": 1024}, "steps 60, not 400": dict(steps=60),
             "parameters 5, not 1000": dict(num_parameters=5), "-k wsd, not cosine": {"-k": "wsd"},
             "-vt 640, not 6400": {"-vt": 640},
             "-e runs/model_00000060.bin, not ": {"-e": "runs/model_00000060.bin"}}
    wrong = []
    for number, (message, change) in enumerate(cases.items()):
        other = write_log(os.path.join(work, f"o{number}"), "nvfp4", 1, **change)
        status, _, errors = run_compare("--logs", base, other, "-o", work, "--no-plots")
        if status != 1 or message not in errors or "Traceback" in errors:
            wrong.append(f"{message}: status {status}, {errors!r}")
    status, _, errors = run_compare("--logs", base, other, "-o", work, "--no-plots", "--force")
    if status != 0 or "compared by force" not in read(work, "report.md"):
        wrong.append(f"--force: {status} {errors}")
    # validated on other tokens from update 200 on
    for message, old, new in (("-j", '"val_data": "22"', '"val_data": "99"'),
                              ("-vt", '"-vt": 6400', '"-vt": 640')):
        other = write_log(os.path.join(work, "resumed" + message), "nvfp4", 1)
        first = read(other, "log.jsonl").split("\n")[0]
        with open(os.path.join(other, "log.jsonl"), "a", encoding="utf-8") as file:
            file.write(first.replace('"first_step": 0', '"first_step": 400').replace(old, new) + "\n")
        status, _, errors = run_compare("--logs", base, other, "-o", work, "--no-plots")
        if status != 1 or f"resumed with another {message}" not in errors:
            wrong.append(f"resumed with another {message}: status {status}, {errors!r}")
    with open(os.path.join(other, "log.jsonl"), "w", encoding="utf-8") as file:     # -v 0 since then
        file.write(read(base, "log.jsonl").replace('"bf16"', '"nvfp4"') + first.replace(
            '"first_step": 0', '"first_step": 400').replace('"22"', '"0000000000000000"') + "\n")
    if run_compare("--logs", base, other, "-o", work, "--no-plots")[0] != 0:
        wrong.append("refuses a resumed run that validates no more")
    # what does not move a loss may differ
    other = write_log(os.path.join(work, "same"), "nvfp4", 1,
                      **{"-b": 4, "-d": 512, "-i": "elsewhere", "-n": 5, "-s": 3})
    if run_compare("--logs", base, other, "-o", work, "--no-plots")[0] != 0:
        wrong.append("refuses another micro-batch")
    twice = os.path.join(work, "x=y", "two")        # a name with '=' is a directory first
    write_log(twice, "bf16", 1)
    words = {"both bf16 with seed 1": ("--logs", base, twice), "no run of the baseline fp8":
             ("--logs", base, "--baseline", "fp8"),
             "no log.jsonl": ("--logs", os.path.join(work, "no")),
             "-x has no meaning": ("--logs", base, "-x", "5"), "no option --lgos": ("--lgos", base),
             "neither an option": ("bf16",), "not a number": ("--logs", base, "--price", "free"),
             "-p RECIPE": ("-x", "5"), "-x is given twice":
             ("-p", "bf16", "-x", "5", "-x", "6", "--program", "/nowhere"),
             "--lengths has no meaning": ("--logs", base, "--lengths", "0.5"),
             "shares of -x below 1": ("-p", "bf16", "-x", "5", "--lengths", "1.5"),
             "needs a value": ("--logs", base, "--price"),
             "Python 3.11" if sys.version_info < (3, 11) else "No such file": ("no.toml",)}
    for message, given in words.items():
        status, _, errors = run_compare(*given, "-o", work, "--no-plots")
        if status != 1 or message not in errors or "Traceback" in errors:
            wrong.append(f"{message}: status {status}, {errors!r}")
    status, output, _ = run_compare("--logs", base, "again=" + os.path.dirname(twice), "-o", work,
                                    "--no-plots")
    if status != 0 or "again: validation loss +0.0000" not in output \
            or "what tells them apart never took effect" not in read(work, "report.md"):
        wrong.append(f"NAME=DIR: {status} {output}")
    report_all(wrong, "what it refuses",
               f"{len(cases)} conditions, {len(words)} mistakes, each named")


# ---------------------------------------------------------------------------------------------
# The report

class Page(html.parser.HTMLParser):
    """Whether each tag is closed, and what the page would load from elsewhere."""

    def __init__(self, text):
        super().__init__()
        self.open, self.svgs, self.ids, self.wrong = [], 0, [], []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.svgs += tag == "svg"
        if tag not in ("meta", "br"):
            self.open.append(tag)
        for name, value in attributes:
            if name == "id":
                self.ids.append(value)
            if name in ("src", "href", "xlink:href") and not value.startswith("#"):
                self.wrong.append(f"loads {value}")
            if name == "xlink:href" and value[1:] not in self.ids:
                self.wrong.append(f"refers to {value}")

    def handle_startendtag(self, tag, attributes):
        self.handle_starttag(tag, attributes)
        self.open.pop()

    def handle_endtag(self, tag):
        if not self.open or self.open.pop() != tag:
            self.wrong.append(f"</{tag}> closes nothing")


def table_widths(text):
    """The widths of each table of a Markdown text."""
    tables = re.findall(r"(?:^\|.*\n)+", text, re.M)
    return [{len(re.findall(r"(?<!\\)\|", line)) for line in table.strip().split("\n")} for table
            in tables]


def test_real_logs(work, plots):
    d12 = os.path.join(RESULTS, "d12_h200")
    status, output, errors = run_compare("--logs", d12, "-o", work, "--price", "2.5",
                                         *([] if plots else ["--no-plots"]))
    wrong = [errors] if status != 0 or errors else []
    c = json.loads(read(work, "report.json"), parse_constant=lambda x: wrong.append(x))
    r = c["recipes"]["nvfp4"]
    # README.md, "d12, 100.7M tokens"; the interval by hand: 12.706 * stdev(.0854, .0873) / sqrt(2)
    check_equal(wrong, "bf16", round(c["losses"]["bf16"]["mean"], 4), 1.5206)
    check_equal(wrong, "nvfp4", round(c["losses"]["nvfp4"]["mean"], 4), 1.6069)
    check_equal(wrong, "gap", round(r["val"]["gap"], 4), 0.0864)
    check_equal(wrong, "half", round(r["val"]["half"], 4), 0.0125)
    check_equal(wrong, "relative", round(100 * r["relative"], 2), 5.68)
    check_equal(wrong, "tokens/s", r["tokens_per_second"], (387440.5 + 391285.0) / 2)
    check_equal(wrong, "share", r["share_of_peak"], (6 * 124475904 + 6 * 12 * 768 * 1024)
                * r["tokens_per_second"] / 989.4e12)
    check_equal(wrong, "memory", r["device_bytes"], None)
    check_equal(wrong, "largest norm", c["baseline_measures"]["norm_max"], 57.1191292)
    check_equal(wrong, "spikes", [run["spikes"] for run in c["runs"]], [[]] * 4)
    text = read(work, "report.md")
    for line in ("+0.0864 ± 0.0125", "+5.68 %", "| device memory, GiB | – | – |", "389,363"):
        if line not in text:
            wrong.append(f"report.md lacks {line}")
    if any(len(widths) != 1 for widths in table_widths(text)) or len(table_widths(text)) != 4:
        wrong.append(f"tables of widths {table_widths(text)}")
    if "nvfp4: validation loss +0.0864" not in output:
        wrong.append(f"printed {output!r}")
    page = Page(read(work, "report.html"))
    wrong += page.wrong + [f"{tag} is not closed" for tag in page.open]
    check_equal(wrong, "plots", page.svgs, 3 if plots else 0)
    if len(set(page.ids)) != len(page.ids):
        wrong.append("an id twice in report.html")
    check_equal(wrong, "points of a line", [len(x["training"]) for x in c["curves"]], [256] * 4)
    size = os.path.getsize(os.path.join(work, "report.html"))
    if size > 400e3:
        wrong.append(f"report.html has {size} bytes")
    report_all(wrong, "d12 on an H200",
               f"README's numbers; report.html {size // 1000} kB, {page.svgs} "
               "plots, loads nothing")
    count = 0
    for name in ("gap_cpu", "c_and_cuda"):
        for directory in sorted(os.listdir(os.path.join(RESULTS, name))):
            if os.path.isdir(os.path.join(RESULTS, name, directory)):
                run = run_log.read_run(os.path.join(RESULTS, name, directory))
                count += 1
                if not run.finished or run.notes or analysis.divergence(run):
                    wrong.append(f"{run.directory}: {run.finished} {run.notes}")
    status, output, errors = run_compare("--logs", os.path.join(RESULTS, "gap_cpu"), "-o", work,
                                         "--no-plots")
    told = "nvfp4,tail=0: validation loss +0.0420 nats against bf16 (1 seed: no interval"
    if status != 0 or told not in output:
        wrong.append(output + errors)
    report_all(wrong, "other real logs", f"{count} finished runs; gap_cpu as in its README")


# ---------------------------------------------------------------------------------------------
# Running. The stand-in understands the trainer's flags, logs as the trainer does, checkpoints every
# -n steps, goes on from there, notes each start in OUT/starts, and stops before update 20 while
# there is a file OUT/hold.

STAND_IN = r"""#!/usr/bin/env python3
import json, os, sys, time
if sys.argv[1:] == ["-h"]:
    print("usage: x\n\n  flag   default                  meaning")
    for row in ("-p nvfp4", "-seed 1337", "-x -1", "-l 0.0006", "-u 0", "-o ", "-n 0", "-nk 0", "-v 0",
                "-y 0", "-pr -1"):
        print("  {:<6} {:<24} meaning".format(*row.split(" ")))
    sys.exit()
flags = dict(zip(sys.argv[1::2], sys.argv[2::2]))
if "-o" not in flags:
    ok = flags["-x"] == flags["-n"] == "0" and flags["-p"] != "unknown"
    sys.exit(0 if ok else "error: no such recipe")
out, steps, every = flags["-o"], int(flags["-x"]), int(flags["-n"])
name, above = os.path.basename(out), os.path.dirname(out)
log, state = os.path.join(out, "log.jsonl"), os.path.join(out, "state_00000001.bin")
first = int(open(state).read()) if os.path.exists(state) else 0

def note(what):
    with open(os.path.join(above, "starts"), "a") as file:
        file.write(f"{name} {what} {os.environ.get('CUDA_VISIBLE_DEVICES')}\n")

def line(**entry):
    file.write(json.dumps(entry) + "\n")
    file.flush()

note(first)
numbers = {k: json.loads(flags[k]) for k in ("-x", "-l", "-n", "-v", "-seed") if k in flags}
kept = []
if first:
    kept = [l for l in open(log) if '"run"' in l or json.loads(l)["step"] < first]
with open(log, "w") as file:
    file.writelines(kept)
    line(run=dict(flags={"-l": 0.0006, "-b": 1, "-t": 8, **flags, **numbers}, recipe=flags["-p"],
                  train_data="1", val_data="2", num_parameters=3, first_step=first,
                  num_steps=steps))
    for s in range(first, steps + 1):
        while s == 20 and os.path.exists(os.path.join(above, "hold")):
            time.sleep(0.01)
        if s % numbers["-v"] == 0 or s == steps:
            line(step=s, val_loss=3.0 - s / 1000)
        if s == steps:
            break
        if flags["-p"] == "broken" and s == 3:
            sys.exit("error: broken at step 3")
        bad = flags["-p"] == "wild" and s == 3
        line(step=s, loss=None if bad else 3.0, norm=1.0, lr=1.0, ms=1.0, tok_s=9.0)
        if bad:
            sys.exit("error: not finite")
        if every and (s + 1) % every == 0:
            open(state, "w").write(str(s + 1))
            open(os.path.join(out, "model_00000001.bin"), "w").write("x" * 99)
print("done")
note("end")
"""


def starts(out):
    with contextlib.suppress(FileNotFoundError):
        return [line.split() for line in read(out, "starts").strip().split("\n")]
    return []


def test_running(work):
    program, wrong = os.path.join(work, "trainer"), []
    with open(program, "w", encoding="utf-8") as file:
        file.write(STAND_IN)
    os.chmod(program, 0o755)
    out = os.path.join(work, "a")
    common = ["--program", program, "--no-plots", "-o", out, "-x", "20"]
    asked = ["-p", "bf16", "nvfp4", "-seed", "1 2", *common]
    status, output, errors = run_compare(*asked, "-l", "6e-4")
    check_equal(wrong, "first call", (status, errors), (0, ""))
    names = [s[0] for s in starts(out) if s[1] == "0"]
    check_equal(wrong, "runs", names, ["bf16_seed1", "nvfp4_seed1", "bf16_seed2", "nvfp4_seed2"])
    flags = run_log.read_run(os.path.join(out, "bf16_seed1")).flags
    check_equal(wrong, "flags", [flags.get(n) for n in ("-v", "-n", "-nk", "-y", "-pr")],
                [1, 4, "1", "1", "0"])
    # finished runs are not repeated; -l left out is its default; a third seed is added
    status, output, errors = run_compare(*asked, "-seed", "3")
    check_equal(wrong, "second call", (status, [s[0] for s in starts(out) if s[1] == "0"][4:]),
                (0, ["bf16_seed3", "nvfp4_seed3"]))
    for change, message in ((["-l", "1e-3"], "-l 0.0006, not 1e-3"),
                            (["--lengths", "0.5", "-u", "11"], "-u 11 warmup steps are more"),
                            (["-zz", "1"], "no flag -zz"), (["-y", "1"], "-y cannot"),
                            (["--baseline", "fp8"], "does not have the baseline"),
                            (["-p", "unknown"],
                             "unknown cannot be trained: no such recipe"),
                            (["-p", "bf16"], "twice")):
        before = len(starts(out))
        status, _, errors = run_compare(*asked, *change)
        if status != 1 or message not in errors or len(starts(out)) != before:
            wrong.append(f"{message}: {status} {errors}")
    for steps, message in (("30", "-x 20, not 30"), ("many", "-x many: not a number")):
        status, _, errors = run_compare(*asked[:-1], steps)
        if status != 1 or message not in errors:
            wrong.append(f"-x {steps}: {status} {errors}")
    # a flag left out means its default
    once = ["-p", "bf16", "--program", program, "--no-plots", "-o", os.path.join(work, "b"), "-x",
            "4"]
    run_compare(*once, "-l", "1e-3")
    status, _, errors = run_compare(*once)
    if status != 1 or "-l 0.001, not 0.0006" not in errors:
        wrong.append(f"-l left out: {status} {errors}")
    # one that fails, one that meets a null: the others are reported; only the failed one runs again
    for _ in range(2):
        status, output, errors = run_compare("-p", "bf16", "broken", "wild", "nvfp4", "-seed", "1",
                                             *common,
                                             env=dict(os.environ, CUDA_VISIBLE_DEVICES="5,6"))
        check_equal(wrong, "status of a failed run", status, 1)
        if "broken_seed1: ended with status 1: error: broken at step 3" not in output or \
                "nvfp4: validation loss +0.0000" not in output:
            wrong.append(f"failed run: {output} {errors}")
    if starts(out)[-1][2] not in ("5", "6"):
        wrong.append(f"on GPU {starts(out)[-1][2]} in an environment of 5 and 6")
    last = [s[0] for s in starts(out)][-1]
    check_equal(wrong, "runs of wild, the last",
                (sum(s[0] == "wild_seed1" for s in starts(out)), last),
                (1, "broken_seed1"))
    report_all(wrong, "running",
               "6 runs once each; other settings refused; failures do not stop the rest")


def test_interruption(work):
    program, wrong = os.path.join(work, "trainer"), []
    with open(program, "w", encoding="utf-8") as file:
        file.write(STAND_IN)
    os.chmod(program, 0o755)
    out = os.path.join(work, "a")
    toml = os.path.join(work, "c.toml")
    with open(toml, "w", encoding="utf-8") as file:
        file.write(f'-p = ["bf16", "nvfp4"]\n-seed = [1, 2]\n-x = 40\nprogram = "{program}"\n'
                   f'no-plots = true\n-o = "elsewhere"\ngpus = "0,1"\n')
    words = [toml] if sys.version_info >= (3, 11) else [
        "-p", "bf16", "nvfp4", "-seed", "1", "2", "-x", "40", "--program", program, "--no-plots",
        "--gpus", "0,1"]

    def steps(out):
        found = []
        for name in ("bf16_seed1", "nvfp4_seed1"):
            with contextlib.suppress(run_log.ReportError):
                found.append(len(run_log.read_run(os.path.join(out, name)).steps))
        return found

    def begin(out, before=None):
        """A call whose two trainers wait before update 20; before() runs in its process first."""
        os.makedirs(out)
        open(os.path.join(out, "hold"), "w", encoding="utf-8").close()
        process = subprocess.Popen([sys.executable, "-B", COMPARE, *words, "-o", out], text=True,
                                   stdout=subprocess.PIPE, stderr=subprocess.PIPE, preexec_fn=before)
        end = time.monotonic() + 30
        while steps(out) != [20, 20] and time.monotonic() < end:
            time.sleep(0.02)
        return process

    def interrupt(process, out, kind):
        process.send_signal(kind)
        _, errors = process.communicate(timeout=30)
        if process.returncode != 1 or "the same command goes on" not in errors or "Traceback" in errors:
            wrong.append(f"{kind.name}: {process.returncode} {errors}")
        os.remove(os.path.join(out, "hold"))
        time.sleep(0.3)
        check_equal(wrong, f"steps after {kind.name} (a trainer was left)", steps(out), [20, 20])

    closed = os.path.join(work, "closed")           # the terminal
    interrupt(begin(closed), closed, signal.SIGHUP)
    first = begin(out, lambda: signal.signal(signal.SIGHUP, signal.SIG_IGN))     # under nohup
    first.send_signal(signal.SIGHUP)
    time.sleep(0.5)
    check_equal(wrong, "ended by SIGHUP under nohup", first.poll(), None)
    second = run_compare(*words, "-o", out) if first.poll() is None else (0, "", "")
    if second[0] != 1 or "another dev/compare is at work" not in second[2]:
        wrong.append(f"second call at once: {second}")
    interrupt(first, out, signal.SIGTERM)
    status, output, errors = run_compare(*words, "-o", out)
    check_equal(wrong, "resumed", (status, errors), (0, ""))
    seen = starts(out)
    resumed = [int(s[1]) for s in seen if s[1] not in ("0", "end")]
    check_equal(wrong, "resumed from", resumed, [16, 16])
    runs = [run_log.read_run(os.path.join(out, f"{p}_seed{s}")) for p in ("bf16", "nvfp4") for s
            in (1, 2)]
    check_equal(wrong, "steps", [list(run.steps) for run in runs], [list(range(40))] * 4)
    # two at once in the beginning; then never two on one GPU
    check_equal(wrong, "first GPUs", sorted(s[2] for s in seen[:2]), ["0", "1"])
    busy = {}
    for name, what, gpu in seen[2:]:
        if what == "end":
            busy.pop(gpu, None)
        elif gpu in busy:
            wrong.append(f"{name} and {busy[gpu]} on GPU {gpu} together")
        else:
            busy[gpu] = name
    report_all(wrong, "interruption, two GPUs",
               f"resumed from {resumed}; one run a GPU; a second call waits "
               "outside")


def test_trainer(work, plots):
    """The real trainer on the quick start's text or, without it, on made-up tokens."""
    wrong, data = [], os.path.join(work, "tokens.bin")
    numbers = random.Random(3)
    tokens = [min(255, int(numbers.expovariate(0.03))) for _ in range(40000)]
    with open(data, "wb") as file:
        header = [20240520, 1, len(tokens)] + [0] * 253
        file.write(b"".join(x.to_bytes(4, "little") for x in header)
                   + b"".join(x.to_bytes(2, "little") for x in tokens))
    environment = dict(os.environ, OMP_NUM_THREADS="1")

    def words(out):
        return ["-p", "fp32", "bf16", "nvfp4,tail=0", "-seed", "1", "2", "-e",
                "layers=2,channels=32,heads=2,vocab=256", "-b", "4", "-t", "64", "-x", "100", "-l",
                "3e-3",
                "-vt", "2560", "-n", "40", "-i", data, "-j", data, "-o", out, "--program", TRAINER,
                *([] if plots else ["--no-plots"])]
    out = os.path.join(work, "a")
    status, output, errors = run_compare(*words(out), env=environment)
    check_equal(wrong, "exit status", (status, errors), (0, ""))
    if status == 0:
        c = json.loads(read(out, "report.json"))
        check_equal(wrong, "recipes", list(c["recipes"]), ["fp32", "nvfp4,tail=0"])
        for name, r in c["recipes"].items():
            losses = [run_log.read_run(os.path.join(out, f"{p}_seed{s}")).evaluations[100]
                      for p in (name, "bf16") for s in (1, 2)]
            check_equal(wrong, f"gap of {name}", r["val"]["gap"],
                        (losses[0] + losses[1] - losses[2] - losses[3]) / 2)
        if not all(run["finished"] and run["checkpoint_bytes"] for run in c["runs"]):
            wrong.append("a run is not finished, or has no checkpoint")
        # a run whose end was lost, as after a crash, goes on from its checkpoint to the same losses
        directory = os.path.join(out, "nvfp4,tail=0_seed2")
        whole, lines = run_log.read_run(directory), read(directory, "log.jsonl").split("\n")
        cut = next(i for i, line in enumerate(lines) if line.startswith('{"step":90,"loss"'))
        for kind in ("model", "state"):
            os.remove(os.path.join(directory, f"{kind}_00000100.bin"))
        with open(os.path.join(directory, "log.jsonl"), "w", encoding="utf-8") as file:
            file.write("\n".join(lines[:cut]) + "\n" + lines[cut][:9])
        again = run_compare(*words(out), env=environment)
        check_equal(wrong, "resumed", (again[0], "nvfp4,tail=0_seed2: goes on" in again[1]),
                    (0, True))
        new = run_log.read_run(directory)
        check_equal(wrong, "losses", ([s["loss"] for s in new.steps.values()], new.evaluations),
                    ([s["loss"] for s in whole.steps.values()], whole.evaluations))
        if "resumed           from step 80" not in read(directory, "output.txt"):
            wrong.append("did not go on from the checkpoint of step 80")
    report_all(wrong, "train_gpt2_fp32",
               "3 recipes, 2 seeds; a lost end done again with the same bits")


def test_without_matplotlib(work):
    """It says so before it trains."""
    with open(os.path.join(work, "matplotlib.py"), "w", encoding="utf-8") as file:
        file.write("raise ImportError('none here')\n")
    status, _, errors = run_compare("-p", "bf16", "-x", "2", "-o", os.path.join(work, "out"),
                                    env=dict(os.environ, PYTHONPATH=work))
    good = status == 1 and "need matplotlib (none here)" in errors and "Traceback" not in errors
    report(good and not os.path.exists(os.path.join(work, "out")), "without matplotlib",
           "one line says what to do" if good else errors)


def main():
    plots = importlib.util.find_spec("matplotlib") is not None
    with tempfile.TemporaryDirectory() as work:
        def folder(name):
            return os.path.join(work, name)
        test_quantiles()
        test_coverage()
        test_gap(folder("gap"))
        test_tokens(folder("tokens"))
        test_events(folder("events"))
        test_guards(folder("guards"))
        test_measures(folder("measures"))
        test_bad_logs(folder("bad"))
        test_refusals(folder("refusals"))
        test_real_logs(folder("real"), plots)
        for name, test in (("running", test_running), ("interruption", test_interruption),
                           ("without", test_without_matplotlib)):
            os.makedirs(folder(name))
            test(folder(name))
        if os.access(TRAINER, os.X_OK):
            os.makedirs(folder("trainer"))
            test_trainer(folder("trainer"), plots)
        else:
            print("skip train_gpt2_fp32              not built", flush=True)
    if not plots:
        print("skip plots                        matplotlib is not installed", flush=True)
    sys.exit(1 if failures else 0)


if __name__ == "__main__":
    main()
