"""Reads log.jsonl of either trainer (llmc/logger.h) into a Run, whatever state the file is in.

A line that was not finished is left out; a number that was not finite (null, or NaN) is None; the
steps that a resumed run did again count once, as it did them last. What was repaired is in
Run.notes. Lines of kinds that are not known here are passed over, so that logs of newer programs
can be read. Fields that today's logger does not write are read where they are and None elsewhere:

    {"run":{..., "gemm_path":"emulated","flops_per_token":8e8,"peak_flops":9.9e14}}
    {"step":7,...,"joules":210.5}                   of all GPUs of the run, in this update

Alarms of the trainer's guards (llmc/guards.h) are lines {"step":7,"guard":"underflow","of":"dY"};
a line {"step":100,"guards":{...}} says that there were guards, though no alarm.
"""
import glob
import json
import math
import os
import re
import sys

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

# d12 -> L, C: rows of the table in llmc/gpt2.h; peak BF16 FLOP/s by GPU: llmc/speed_of_light.h
MODEL_ROW = re.compile(r'\{ "([\w:]+)", +(\d+), +(\d+), +(\d+), +(\d+) \}')
PEAK_ROW = re.compile(r'\{ "([^"]+)", ([\d.]+e\d+) \}')


# Flags that do not change what a run computes.
WITHOUT_EFFECT = ("-o", "-n", "-nk", "-nm", "-y", "-pr", "-rt", "-ra", "-s", "-sn", "-z",
                  "-gd")


class ReportError(Exception):
    """Ends the program with one line."""


def finite(value):
    """The number, or None if there is none that can be calculated with."""
    good = isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
    return value if good else None


def header_rows(name, pattern):
    try:
        with open(os.path.join(ROOT, "llmc", name), encoding="utf-8") as file:
            return [match.groups() for match in pattern.finditer(file.read())]
    except OSError:
        return []


def model_shape(text):
    """(L, C) of the trainer's -e, or None if it names a file or nothing known."""
    presets = {row[0]: (int(row[1]), int(row[2])) for row in header_rows("gpt2.h", MODEL_ROW)}
    L = C = None
    for item in text.split(","):
        name, equals, value = item.partition("=")
        if not equals:
            L, C = presets.get(name.removeprefix("gpt2:"), (None, None))
        elif name == "layers" and value.isdigit():
            L = int(value)
        elif name == "channels" and value.isdigit():
            C = int(value)
    return (L, C) if L and C else None


def peak_flops(device):
    """Dense BF16 peak in FLOP/s of a GPU by its name; None if it is not in the table."""
    rows = [row for row in header_rows("speed_of_light.h", PEAK_ROW) if row[0] in device]
    return float(max(rows, key=lambda row: len(row[0]))[1]) if rows else None


class Run:
    """One training run. Step s of `steps` is the update from s to s + 1; `evaluations` are
    validation losses in nats a token, by the number of updates done."""

    def __init__(self, directory):
        self.directory = directory
        self.name = None            # of the group it is compared in: the recipe, or as asked for
        self.info = {}              # the first "run" line
        self.flags = {}
        self.steps = {}             # step -> {"loss", "norm", "lr", "ms", "tok_s", "joules"}
        self.evaluations = {}       # step -> loss or None
        self.alarms = None          # [{"step", "guard", "of"}]; None: the run had no guards
        self.device_bytes = None
        self.checkpoint = None      # {"bytes", "seconds"}
        self.notes = []             # what a reader of the report has to know of this log
        self.changed = []           # ["-vt"]: its validation losses are not all of the same tokens

    # ------------------------------------------------------------------ settings

    @property
    def recipe(self):
        return self.info.get("recipe") or self.flags.get("-p") or "unknown"

    @property
    def seed(self):
        return self.flags.get("-seed")

    @property
    def ranks(self):
        return self.info.get("ranks", 1)        # older logs are of one rank and do not say so

    @property
    def num_steps(self):
        return self.info.get("num_steps")

    @property
    def tokens_per_step(self):
        if self.flags.get("-d"):
            return self.flags["-d"]
        B, T = self.flags.get("-b"), self.flags.get("-t")
        return B * T * self.ranks if B and T else None

    # ------------------------------------------------------------------ outcome

    @property
    def validates(self):
        return any(loss is not None for loss in self.evaluations.values())

    @property
    def first_not_finite(self):
        """The first update or evaluation whose loss or gradient norm was not finite, or None."""
        bad = [s for s, step in self.steps.items() if step["loss"] is None or step["norm"] is None]
        bad += [s for s, loss in self.evaluations.items() if loss is None]
        return min(bad, default=None)

    @property
    def finished(self):
        """Whether all updates are in the log, and the last evaluation if it evaluates at all."""
        end = self.num_steps
        validates = self.flags.get("-v", 0) > 0
        return (end is not None and (end == 0 or end - 1 in self.steps)
                and (not validates or end in self.evaluations))

    # ------------------------------------------------------------------ speed

    def flops_per_token(self):
        """6 N + 6 L C T, as llmc/speed_of_light.h; None if the model's shape is not known."""
        N, T = self.info.get("num_parameters"), self.flags.get("-t")
        shape = model_shape(str(self.flags.get("-e", "")))
        if finite(self.info.get("flops_per_token")):
            return self.info["flops_per_token"]
        return 6 * N + 6 * shape[0] * shape[1] * T if N and T and shape else None

    def peak(self):
        """FLOP/s of all its GPUs."""
        one = finite(self.info.get("peak_flops")) or peak_flops(self.info.get("device") or "")
        return one * self.ranks if one else None


# -------------------------------------------------------------------------------------------------

def read_lines(run, text, path):
    """The objects of the log, and a note for each line that is none."""
    lines = text.split("\n")
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            entry = json.loads(line)
            if not isinstance(entry, dict):
                raise ValueError
            yield entry
        except ValueError:
            last = number == len(lines)
            run.notes.append("its last line was cut off" if last
                             else f"line {number} is not JSON and was left out")


def add_run_line(run, info):
    """A start or a resume: the steps from its first one on will be done again. A resumed run may
    have another recipe, if that means the same for the steps before (checkpoint.h): it is the run
    of that recipe."""
    flags = info.get("flags", {})
    if run.info:
        changed = [name for name in flags if name not in (*WITHOUT_EFFECT, "-i", "-j", "-p")
                   and flags[name] != run.flags.get(name)]
        data = [x for x in (run.info.get("val_data"), info.get("val_data")) if x and x.strip("0")]
        if len(set(data)) > 1:          # both known, and both validate
            changed.append("-j")
        if changed:
            run.notes.append(f"resumed with another {', '.join(changed)}")
            run.changed += [name for name in changed if name in ("-j", "-vt")]
        if info.get("device") != run.info.get("device"):
            run.notes.append(f"resumed on {info.get('device')}")
    first = info.get("first_step", 0)
    if run.info and first in run.steps:
        run.notes.append(f"resumed from step {first}, having been at {max(run.steps) + 1}")
    run.steps = {s: step for s, step in run.steps.items() if s < first}
    run.evaluations = {s: loss for s, loss in run.evaluations.items() if s <= first}
    run.alarms = run.alarms and [alarm for alarm in run.alarms if alarm["step"] < first]
    run.info = dict(run.info or info, recipe=info.get("recipe"))
    run.flags = dict(run.flags or flags, **{"-p": flags.get("-p")})


def add_step_line(run, entry):
    step = entry["step"]
    if "val_loss" in entry:
        run.evaluations[step] = finite(entry["val_loss"])
    elif "checkpoint" in entry:
        run.checkpoint = entry["checkpoint"]
    elif "guards" in entry or "guard" in entry:
        alarm = {name: entry.get(name) for name in ("step", "guard", "of")}
        run.alarms = (run.alarms or []) + ([alarm] if "guard" in entry else [])
    elif "loss" in entry:
        if step <= next(reversed(run.steps), -1):       # repeated without a line that says so
            run.steps = {s: old for s, old in run.steps.items() if s < step}
            run.evaluations = {s: old for s, old in run.evaluations.items() if s <= step}
            run.alarms = run.alarms and [alarm for alarm in run.alarms if alarm["step"] < step]
            run.notes.append(f"went back to step {step}")
        run.steps[step] = {name: finite(entry.get(name))
                           for name in ("loss", "norm", "lr", "ms", "tok_s", "joules")}


def read_run(directory):
    """The run whose log is DIRECTORY/log.jsonl (or is that file itself)."""
    path = directory
    if not directory.endswith(".jsonl"):
        path = os.path.join(directory, "log.jsonl")
    run = Run(os.path.dirname(path))
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            text = file.read()
    except OSError as error:
        raise ReportError(f"{path}: {error.strerror}") from None
    for entry in read_lines(run, text, path):
        if isinstance(entry.get("run"), dict):
            add_run_line(run, entry["run"])
        elif isinstance(entry.get("memory"), dict):
            run.device_bytes = finite(entry["memory"].get("device_bytes"))
        elif isinstance(entry.get("step"), int):
            add_step_line(run, entry)
    if not run.info:
        raise ReportError(f"{path} has no line that tells of its run: not a log of these programs, "
                          "or cut off at its start")
    if run.checkpoint is None:
        run.checkpoint = newest_checkpoint(run.directory)
    return run


def newest_checkpoint(directory):
    """Bytes of the newest checkpoint that lies beside the log; its time is not known."""
    states = sorted(glob.glob(os.path.join(glob.escape(directory), "state_*.bin")))
    model = states and states[-1].replace("state_", "model_")
    if not states or not os.path.exists(model):
        return None
    return {"bytes": os.path.getsize(states[-1]) + os.path.getsize(model)}


def find_logs(argument):
    """[(name or None, directory)] of an argument [NAME=]DIR, where DIR has a log or directories
    that have one."""
    name, path = None, argument
    if not os.path.exists(argument) and "=" in argument:
        name, path = argument.split("=", 1)
    if path.endswith(".jsonl") or os.path.exists(os.path.join(path, "log.jsonl")):
        return [(name, path)]
    inside = sorted(glob.glob(os.path.join(glob.escape(path), "*", "log.jsonl")))
    if not inside:
        raise ReportError(f"{path}: no log.jsonl in it, nor in its directories")
    for log in inside:                      # of a run that was ended before it began
        if os.path.getsize(log) == 0:
            print(f"{log}: empty, left out", file=sys.stderr)
    return [(name, os.path.dirname(log)) for log in inside if os.path.getsize(log) > 0]
