#!/usr/bin/env python3
"""Reads the logs that both trainers write (DIR/log.jsonl) and prints them as columns or as a table.

    dev/logs.py columns DIR           for gnuplot: "step loss", two empty lines, "step val_loss"
    dev/logs.py table DIR...          final losses and speed of several runs; the last is the baseline
    dev/logs.py compare A B BOUND     largest relative difference of the training losses of two runs of
                                      the same length; fails if it is above BOUND
    dev/logs.py distance A B...       root mean square of the differences between the training losses
                                      of A and of each other run, in nats, and of the last validation

The training loss of one batch is noisy, so the table's is the mean over the last steps. Tokens per
second is the median over the steps, which ignores the first ones and interruptions.

Standard library only.
"""
import json
import os
import statistics
import sys

LAST_STEPS = 20     # that the table's training loss is the mean of


def read_log(directory):
    """Returns the run's settings, its training steps and its evaluations, as lists of dicts."""
    path = os.path.join(directory, "log.jsonl")
    settings, steps, evaluations = {}, [], []
    try:
        with open(path, encoding="utf-8") as file:
            for number, line in enumerate(file, 1):
                try:
                    entry = json.loads(line)
                except json.JSONDecodeError as error:
                    sys.exit(f"error: {path}, line {number}: {error}")
                if "run" in entry:
                    settings = entry["run"]
                elif "val_loss" in entry:
                    evaluations.append(entry)
                elif "loss" in entry:
                    steps.append(entry)
    except OSError as error:
        sys.exit(f"error: {path}: {error.strerror}")
    return settings, steps, evaluations


def print_column(entries, name):
    for entry in entries or [{"step": 0, name: None}]:
        print(entry["step"], "nan" if entry[name] is None else entry[name])


def columns(directory):
    _, steps, evaluations = read_log(directory)
    if not steps and not evaluations:
        sys.exit(f"error: {directory}/log.jsonl has no steps")
    # gnuplot draws nothing for "nan"; a data set without any line would shift its numbering
    print_column(steps, "loss")
    print("\n")
    print_column(evaluations, "val_loss")


# A value that was not a finite number is null in the log; so is then what is computed from it.
def mean(values):
    values = list(values)
    return statistics.fmean(values) if values and None not in values else None


def median(values):
    values = list(values)
    return statistics.median(values) if values and None not in values else None


def stayed_finite(steps):
    return None not in [s["loss"] for s in steps]


def losses_of(directory):
    """Training losses; ends the program if one was not finite."""
    _, steps, _ = read_log(directory)
    if not stayed_finite(steps):
        sys.exit(f"error: {directory} has a loss that is not finite")
    return [s["loss"] for s in steps]


def table(directories):
    rows = []
    for directory in directories:
        _, steps, evaluations = read_log(directory)
        rows.append({
            "name": os.path.basename(os.path.normpath(directory)),
            "train": mean(s["loss"] for s in steps[-LAST_STEPS:]),
            "val": evaluations[-1]["val_loss"] if evaluations and stayed_finite(steps) else None,
            "speed": median(s["tok_s"] for s in steps),
        })
    baseline = rows[-1]

    def number(value, specification):
        return "-" if value is None else format(value, specification)

    print(f"{'recipe':<10} {'train loss':>10} {'val loss':>10} "
          f"{'gap to ' + baseline['name']:>18} {'tokens/s':>10}")
    for row in rows:
        gap = "-"
        if row is not baseline and None not in (row["val"], baseline["val"]):
            difference = row["val"] - baseline["val"]
            gap = f"{difference:+.4f} ({100 * difference / baseline['val']:+.2f} %)"
        print(f"{row['name']:<10} {number(row['train'], '.4f'):>10} {number(row['val'], '.4f'):>10} "
              f"{gap:>18} {number(row['speed'], ',.0f'):>10}")


def compare(a, b, bound):
    losses = [losses_of(directory) for directory in (a, b)]
    if len(losses[0]) != len(losses[1]) or not losses[0]:
        sys.exit(f"error: {a} has {len(losses[0])} steps, {b} has {len(losses[1])}")
    worst = max(abs(x / y - 1) for x, y in zip(*losses))
    print(f"{len(losses[0])} steps, losses differ by at most {worst:.1e} relative, bound {bound:.0e}")
    sys.exit(0 if worst <= bound else 1)


def distance(reference, directories):
    _, steps, evaluations = read_log(reference)
    for directory in directories:
        _, other_steps, other_evaluations = read_log(directory)
        if len(steps) != len(other_steps) or not steps:
            sys.exit(f"error: {reference} has {len(steps)} steps, {directory} has {len(other_steps)}")
        squares = [(a - b) ** 2 for a, b in zip(losses_of(reference), losses_of(directory))]
        line = f"{os.path.basename(os.path.normpath(directory)):<24} losses off by " \
               f"{statistics.fmean(squares) ** 0.5:.2e} nats (root mean square)"
        if evaluations and other_evaluations:
            line += f", last validation {other_evaluations[-1]['val_loss']:.4f} instead of " \
                    f"{evaluations[-1]['val_loss']:.4f}"
        print(line)


if __name__ == "__main__":
    if len(sys.argv) == 3 and sys.argv[1] == "columns":
        columns(sys.argv[2])
    elif len(sys.argv) == 5 and sys.argv[1] == "compare":
        compare(sys.argv[2], sys.argv[3], float(sys.argv[4]))
    elif len(sys.argv) >= 4 and sys.argv[1] == "distance":
        distance(sys.argv[2], sys.argv[3:])
    elif len(sys.argv) >= 3 and sys.argv[1] == "table":
        table(sys.argv[2:])
    else:
        sys.exit(__doc__.strip())
