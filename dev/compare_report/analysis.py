"""What a set of runs says about recipes: gaps with intervals, tokens, stability, speed, cost.

Every function says in its docstring what it computes and what it assumes; report.py prints the same
assumptions. Losses are in nats a token, intervals have 95 % confidence, None stands for "the logs
do not say".
"""
import math
import statistics

from run_log import ReportError

CONFIDENCE = 0.95
LAST_STEPS = 20         # whose mean is "the training loss at the end" (dev/logs.py: the same)
SPIKE_WINDOW = 50       # updates before it that a loss is held against
SPIKE_SIGMAS = 8.0      # so far above their median, in standard deviations
SPIKE_NATS = 0.1        # and at least so far
DIVERGED_NATS = 0.5     # that a run ends above its own best
MEASURES = ("tokens_per_second", "share_of_peak", "device_bytes", "watts", "joules_per_token",
            "usd_per_million_tokens", "checkpoint_bytes", "checkpoint_seconds", "norm_median",
            "norm_max", "clipped")


# -------------------------------------------------------------------------------------------------
# Statistics

def t_probability(t, df):
    """P(|T| <= t) of Student's t with df = 1, 2, ... degrees of freedom: the finite series of
    Abramowitz and Stegun 26.7.3 and 26.7.4, theta = atan(t / sqrt(df))."""
    theta = math.atan(t / math.sqrt(df))
    cos2 = math.cos(theta) ** 2
    term = total = 1.0 if df % 2 == 0 else math.cos(theta)
    for k in range(2 if df % 2 else 1, df - 2, 2):
        term *= cos2 * k / (k + 1)
        total += term
    if df % 2 == 0:
        return math.sin(theta) * total
    return 2 / math.pi * (theta + (math.sin(theta) * total if df > 1 else 0.0))


def t_quantile(df):
    """t with P(|T| <= t) = CONFIDENCE, by bisection: 12.706 for df = 1, 1.960 for many."""
    low, high = 0.0, 1000.0
    while high - low > 1e-9 * high:
        middle = 0.5 * (low + high)
        low, high = (middle, high) if t_probability(middle, df) < CONFIDENCE else (low, middle)
    return 0.5 * (low + high)


def deviation(values):
    """Standard deviation between them, or None of fewer than two."""
    return statistics.stdev(values) if len(values) > 1 else None


def pooled(groups):
    """(standard deviation, degrees of freedom) common to several groups of values, assuming that
    all scatter alike: sqrt(sum of squared deviations from the groups' means / sum of (n - 1))."""
    groups = [values for values in groups if len(values) > 1]
    df = sum(len(values) - 1 for values in groups)
    if not df:
        return None, 0
    return math.sqrt(sum((len(v) - 1) * statistics.variance(v) for v in groups) / df), df


def difference(a, b):
    """Mean of a minus mean of b and half its interval. a, b: {seed: value}.

    With seeds in common: the differences d of equal seeds, which share initial weights and the
    order of the data, so that noise common to both cancels; mean(d) +- t(n - 1) stdev(d) / sqrt(n).
    Assumes that the d of other seeds would scatter around the same mean normally. With fewer than
    two such pairs but two seeds on both sides: Welch's interval of two independent samples, its
    degrees of freedom rounded down. Otherwise there is no interval."""
    pairs = sorted(set(a) & set(b))
    d = [a[seed] - b[seed] for seed in pairs]
    if len(d) < 2 and len(a) > 1 and len(b) > 1:
        va, vb = (statistics.variance(x.values()) / len(x) for x in (a, b))
        gap = statistics.fmean(a.values()) - statistics.fmean(b.values())
        df = (va + vb) ** 2 / (va ** 2 / (len(a) - 1) + vb ** 2 / (len(b) - 1)) if va + vb else 1
        return {"gap": gap, "half": t_quantile(max(1, int(df))) * math.sqrt(va + vb),
                "method": "independent seeds", "pairs": {},
                "baseline": statistics.fmean(b.values())}
    if not d:
        if not a or not b:
            return None
        return {"gap": statistics.fmean(a.values()) - statistics.fmean(b.values()), "half": None,
                "method": "different seeds", "pairs": {}, "baseline": statistics.fmean(b.values())}
    half = t_quantile(len(d) - 1) * deviation(d) / math.sqrt(len(d)) if len(d) > 1 else None
    return {"gap": statistics.fmean(d), "half": half, "method": "paired seeds",
            "pairs": dict(zip(pairs, d)), "baseline": statistics.fmean(b[seed] for seed in pairs)}


# -------------------------------------------------------------------------------------------------
# One run

def train_loss_at_end(run, steps=LAST_STEPS):
    """Mean training loss of the last updates; None if one of them was not finite."""
    losses = [step["loss"] for step in list(run.steps.values())[-steps:]]
    return statistics.fmean(losses) if losses and None not in losses else None


def spikes(run):
    """[{"step", "updates", "height"}], by the definition of llmc/loss_spike.h, which warns of them
    while the trainers run: an update is in a spike if its loss is above

        median + max(SPIKE_SIGMAS * 1.4826 * median absolute deviation, SPIKE_NATS)

    of the SPIKE_WINDOW updates before it that are in none (1.4826 makes the deviation of normal
    noise a standard deviation). Neighbours are one spike; height is above that median, in nats.
    After SPIKE_WINDOW updates on end it is no spike but a new level, and the window begins anew
    there."""
    found, window, level = [], [], []
    for step, entry in run.steps.items():
        loss = entry["loss"]
        if loss is None:
            break
        if len(window) == SPIKE_WINDOW:
            middle = statistics.median(window)
            scatter = 1.4826 * statistics.median(abs(x - middle) for x in window)
            if loss > middle + max(SPIKE_SIGMAS * scatter, SPIKE_NATS):
                if not level:
                    found.append({"step": step, "updates": 0, "height": 0.0})
                level.append(loss)
                found[-1]["updates"] += 1
                found[-1]["height"] = max(found[-1]["height"], loss - middle)
                if len(level) == SPIKE_WINDOW:
                    window, level = level, []
                continue
        level = []
        window = window[1 - SPIKE_WINDOW:] + [loss]
    return found


def divergence(run):
    """Why the run counts as diverged, or None: a loss or gradient norm that was not finite, or the
    last LAST_STEPS training losses DIVERGED_NATS above the best LAST_STEPS in a row."""
    bad = run.first_not_finite
    if bad is not None:
        return f"not finite at step {bad}"
    losses = [step["loss"] for step in run.steps.values()]
    means = [statistics.fmean(losses[i:i + LAST_STEPS])
             for i in range(0, len(losses) - LAST_STEPS + 1)]
    if means and means[-1] > min(means) + DIVERGED_NATS:
        return f"ends {means[-1] - min(means):.2f} nats above its best"
    return None


def total(run, name):
    """(sum, updates) of what each update logged under that name."""
    values = [step[name] for step in run.steps.values() if step[name] is not None]
    return (math.fsum(values), len(values)) if values else (None, 0)


def median(run, name):
    values = [step[name] for step in run.steps.values() if step[name] is not None]
    return statistics.median(values) if values else None


def measure(run, price):
    """What the log says of one run's speed, cost and stability. Medians over updates, which first
    updates and interruptions do not move. Validation, samples and checkpoints are not in them."""
    speed, norms = median(run, "tok_s"), [s["norm"] for s in run.steps.values() if s["norm"]]
    joules, metered = total(run, "joules")
    seconds = math.fsum((s["ms"] or 0) / 1e3 for s in run.steps.values() if s["joules"] is not None)
    flops, peak = run.flops_per_token(), run.peak()
    clip, checkpoint, tokens = run.flags.get("-gc"), run.checkpoint or {}, run.tokens_per_step
    hours = run.ranks / (speed * 3600) if speed else None       # of a GPU for a token
    return {
        "tokens_per_second": speed,
        "share_of_peak": flops * speed / peak if flops and speed and peak else None,
        "device_bytes": run.device_bytes,
        "watts": joules / seconds if joules and seconds else None,
        "joules_per_token": joules / metered / tokens if joules and tokens else None,
        "usd_per_million_tokens": price * hours * 1e6 if price and hours else None,
        "checkpoint_bytes": checkpoint.get("bytes"),
        "checkpoint_seconds": checkpoint.get("seconds"),
        "norm_median": statistics.median(norms) if norms else None,
        "norm_max": max(norms) if norms else None,
        "clipped": sum(n > clip for n in norms) / len(norms) if norms and clip else None,
    }


def describe(run, price):
    """The row of one run in the report."""
    last = max(run.evaluations, default=None)
    return dict(
        measure(run, price),
        **{name: run.info.get(name) for name in ("program", "commit", "device", "gemm_path")},
        directory=run.directory, name=run.name, recipe=run.recipe, seed=run.seed, ranks=run.ranks,
        num_steps=run.num_steps, updates=max(run.steps, default=-1) + 1, finished=run.finished,
        train_loss=train_loss_at_end(run), val_loss=run.evaluations.get(last), val_step=last,
        spikes=spikes(run), diverged=divergence(run), alarms=run.alarms, notes=run.notes)


# -------------------------------------------------------------------------------------------------
# Which runs may be compared

def conditions(run):
    """Everything besides recipe and seed that moves a loss. What an older log lacks is left out; so
    is what has no effect."""
    found = {"training data": run.info.get("train_data"), "steps": run.num_steps,
             "parameters": run.info.get("num_parameters"),
             "tokens of an update": run.tokens_per_step}
    if run.flags.get("-v"):
        found.update({"validation data": run.info.get("val_data"), "-vt": run.flags.get("-vt")})
    found.update({name: run.flags.get(name)
                  for name in ("-e", "-t", "-k", "-l", "-u", "-q", "-c", "-gc", "-amax")})
    return {name: value for name, value in found.items() if value is not None}


def disagreements(run, reference):
    """["-l 0.001, not 0.0006", ...]: conditions that differ from the reference's, or on the way."""
    a, b = conditions(run), conditions(reference)
    return ([f"{name} {a[name]}, not {b[name]}" for name in a if name in b and a[name] != b[name]]
            + [f"resumed with another {name}" for name in run.changed])


def sort_runs(runs, baseline, force):
    """({name: {seed: run}} with the baseline first, shorter and longer runs of the baseline,
    warnings). The reference for what must agree is the longest run of the baseline."""
    names = list(dict.fromkeys(run.name for run in runs))
    if baseline not in names:
        raise ReportError(f"no run of the baseline {baseline}; there are: {', '.join(names)}. "
                          "--baseline NAME takes another")
    reference = max((run for run in runs if run.name == baseline), key=lambda r: r.num_steps or 0)
    groups, others, warnings, refused = {baseline: {}}, [], [], []
    for run in runs:
        wrong = disagreements(run, reference)
        lengths = ("steps ", "-u ")         # a baseline of another length: its end is of use
        if wrong and run.name == baseline and all(w.startswith(lengths) for w in wrong):
            others.append(run)
            continue
        if wrong:
            refused.append(f"{run.directory}: {'; '.join(wrong)}")
        group = groups.setdefault(run.name, {})
        if run.seed in group:
            raise ReportError(f"{group[run.seed].directory} and {run.directory} are both "
                              f"{run.name} with seed {run.seed}; give one another name: NAME=DIR")
        group[run.seed] = run
    if refused and not force:
        raise ReportError("not comparable with " + reference.directory + ":\n    "
                          + "\n    ".join(refused) + "\n--force compares them all the same")
    warnings += [f"Not comparable, and compared by force: {text}" for text in refused]
    return groups, others, warnings


# -------------------------------------------------------------------------------------------------
# Gaps

def last_common_step(runs):
    """The last step at which all runs have a finite validation loss, or None."""
    common = None
    for run in runs:
        steps = {s for s, loss in run.evaluations.items() if loss is not None}
        common = steps if common is None else common & steps
    return max(common, default=None) if common else None


def usable(group):
    """Runs with numbers to compare: all but those that met a number that was not finite."""
    return {seed: run for seed, run in group.items() if run.first_not_finite is None and run.steps}


def gap_curve(group, base):
    """[{"step", "tokens", "gap", "half", "pairs", "noise"}] where all usable runs of both were
    evaluated. pairs: {seed: gap}; noise: standard deviation of the baseline's losses between
    seeds."""
    a, b = usable(group), usable(base)
    common = set.intersection(*({s for s, x in run.evaluations.items() if x is not None}
                                for run in [*a.values(), *b.values()])) if a and b else set()
    curve = []
    for step in sorted(common):
        here = difference({seed: run.evaluations[step] for seed, run in a.items()},
                          {seed: run.evaluations[step] for seed, run in b.items()})
        curve.append({"step": step, "tokens": step * (next(iter(b.values())).tokens_per_step or 1),
                      "gap": here["gap"], "half": here["half"], "pairs": here["pairs"],
                      "noise": deviation([run.evaluations[step] for run in b.values()])})
    return curve


def tokens_to_reach(curve, loss):
    """Tokens (or what else there is in their place) at which a falling curve [(tokens, loss)]
    reaches a loss for good: log loss against log tokens is taken as straight between two points,
    exact for loss = A tokens^-a. None outside the curve."""
    points = [(d, l) for d, l in sorted(curve) if d > 0]
    if not points or points[-1][1] > loss:
        return None
    for (d0, l0), (d1, l1) in zip(points[-2::-1], points[:0:-1]):   # from the end backwards
        if l0 >= loss:
            share = math.log(l0 / loss) / math.log(l0 / l1) if l0 > l1 else 1.0
            return d0 * (d1 / d0) ** share
    return None


def rate_sums(run):
    """{step: sum of the learning rates of the updates before it}, as far as they were logged."""
    sums, so_far = {0: 0.0}, 0.0
    for step, entry in run.steps.items():
        if entry["lr"] is None:
            break
        so_far += entry["lr"]
        sums[step + 1] = so_far
    return sums


def token_cost(losses, step, base, shorter):
    """How many more tokens the recipe needs: D / D' - 1, where a run of the baseline of D' tokens
    ends with the recipe's loss after D. `losses`: (recipe's loss, low, high), low and high None
    without an interval. "more", with "low" and "high", is known if baseline runs of several lengths
    are there, whose ends are a curve; or if the learning rate is constant: then the points of one
    run's validation curve are the ends of shorter runs.

    Otherwise there is "range" only. A decaying run's points are no ends. In its flat end the loss
    stands still because the learning rate is almost zero, and a small gap reads as many tokens: D'
    in tokens gives the larger number. Read against the sum of learning rates so far, which a run
    of D' tokens would have had in proportion to D', the same point gives the smaller number: it
    credits the shorter run with all that was learned and not with having decayed. On a small model
    (three lengths, README) the truth lay between the two; nothing guarantees it."""
    runs = list(usable(base).values())
    tokens = runs[0].tokens_per_step
    if tokens is None or step is None:
        return None
    curve = {s: statistics.fmean(run.evaluations[s] for run in runs) for s in runs[0].evaluations
             if s <= step and all(run.evaluations.get(s) is not None for run in runs)}
    ends = {}
    for run in shorter:
        if run.finished and run.evaluations.get(run.num_steps) is not None:
            ends.setdefault(run.num_steps, []).append(run.evaluations[run.num_steps])
    end = curve[step]
    by_ends = bool(ends) and step == runs[0].num_steps
    if by_ends:
        method = f"ends of runs of {len(ends) + 1} lengths"
        points = [(s, statistics.fmean(x)) for s, x in ends.items()] + [(step, end)]
    else:
        method, points = "validation curve, constant learning rate", list(curve.items())

    def cost(loss, points, whole):
        reached = tokens_to_reach(points, loss) if loss is not None else None
        return whole / reached - 1 if reached else None
    found = {"more": None, "low": None, "high": None, "interval": losses[1] is not None,
             "range": None, "method": method}
    if losses[0] < end:
        return dict(found, method="below the baseline's end, not extrapolated")
    if by_ends or runs[0].flags.get("-k") == "constant":
        found["more"], found["low"], found["high"] = (cost(x, points, step) for x in losses)
        if found["more"] is not None:
            return dict(found, range=[found["more"]] * 2)
    sums = rate_sums(runs[0])
    by_rate = [(sums[s], loss) for s, loss in curve.items() if s in sums]
    both = [cost(losses[0], list(curve.items()), step),
            cost(losses[0], by_rate, sums[step]) if step in sums else None]
    if None in both:
        return dict(found, method="outside the baseline's curve")
    return dict(found, method="one decaying run", range=sorted(both))


def mean_of(rows, name):
    values = [row[name] for row in rows if row[name] is not None]
    return statistics.fmean(values) if values else None


def mean_measures(rows):
    """The means over runs of what measure() found; of norm_max, the largest."""
    found = {name: mean_of(rows, name) for name in MEASURES}
    norms = [row["norm_max"] for row in rows if row["norm_max"] is not None]
    return dict(found, norm_max=max(norms, default=None))


def ratio(a, b):
    return a / b if a is not None and b else None


# -------------------------------------------------------------------------------------------------
# The comparison

def compare_recipe(group, base, shorter, rows, base_rows):
    """Everything about one recipe against the baseline. rows: describe() of its runs."""
    a, b = usable(group), usable(base)
    pairs = {s for s in a if s in b}
    if pairs and (len(pairs) > 1 or min(len(a), len(b)) < 2):   # difference() uses only these
        a, b = ({s: x[s] for s in pairs} for x in (a, b))
    step = last_common_step([*a.values(), *b.values()]) if a and b else None
    result = {"seeds": len(group), "compared": len(a), "step": step, "val": None, "train": None,
              "cost": None, "relative": None, "num_steps": next(iter(group.values())).num_steps,
              "diverged": [row["directory"] for row in rows if row["diverged"]],
              "spikes": sum(len(row["spikes"]) for row in rows)}
    if step is not None:
        result["val"] = val = difference({s: run.evaluations[step] for s, run in a.items()},
                                         {s: run.evaluations[step] for s, run in b.items()})
        result["relative"] = val["gap"] / val["baseline"] if val["baseline"] else None
        ends = [None, None] if val["half"] is None else [
            val["baseline"] + val["gap"] + sign * val["half"] for sign in (-1, 1)]
        paired = [run for run in shorter if run.seed in b]      # seeds' noise cancels, as in the gap
        result["cost"] = token_cost([val["baseline"] + val["gap"], *ends], step, b,
                                    paired or shorter)
    ends = [{s: train_loss_at_end(run) for s, run in x.items()} for x in (a, b)]
    if len({len(run.steps) for x in (a, b) for run in x.values()}) == 1:
        result["train"] = difference(*ends)     # usable runs have no loss that is None
    result.update(mean_measures(rows))
    result["speed_ratio"] = ratio(result["tokens_per_second"],
                                  mean_of(base_rows, "tokens_per_second"))
    more = result["cost"] and result["cost"]["range"]
    result["time_ratio"] = ([(1 + x) / result["speed_ratio"] for x in more]
                            if more and result["speed_ratio"] else None)
    return result


def borrow_intervals(recipes):
    """A recipe with fewer pairs of seeds than another one gets "borrowed": the half interval that it
    has if its differences scatter as those of the recipes with several pairs do (pooled; degrees of
    freedom of the largest of them, because all share the baseline's seeds and are not
    independent)."""
    compared = [r["val"] for r in recipes.values() if r["val"]]
    several = [list(val["pairs"].values()) for val in compared if len(val["pairs"]) > 1]
    spread, _ = pooled(several)
    most = max(map(len, several), default=0)
    for val in compared:
        n = len(val["pairs"])
        val["borrowed"] = (t_quantile(most - 1) * spread / math.sqrt(n) if 0 < n < most else None)


def equal_recipes(groups):
    """Warnings: recipes that had the same losses in every update, so that what tells them apart
    never took effect."""
    seen, warnings = {}, []
    for name, group in groups.items():
        for seed, run in group.items():
            losses = (seed, *(step["loss"] for step in run.steps.values()))
            other = seen.setdefault(losses, name)
            if other != name and run.steps:
                warnings.append(f"{name} and {other} have the same losses in every update (seed {seed}): "
                                "what tells them apart never took effect")
    return warnings


def compare(runs, baseline="bf16", force=False, price=None):
    """The whole comparison as plain data, which is what report.json holds."""
    groups, shorter, warnings = sort_runs(runs, baseline, force)
    warnings += equal_recipes(groups)
    base = groups[baseline]
    if not usable(base):
        raise ReportError(f"no run of the baseline {baseline} has steps and stayed finite")
    rows = {name: [describe(run, price) for run in group.values()]
            for name, group in groups.items()}
    recipes = {name: compare_recipe(group, base, shorter, rows[name], rows[baseline])
               for name, group in groups.items() if name != baseline}
    borrow_intervals(recipes)
    finals, final_steps = {}, {}
    for name, group in groups.items():
        step = final_steps[name] = last_common_step(usable(group).values())
        finals[name] = [] if step is None else [run.evaluations[step]
                                                for run in usable(group).values()]
    noise, df = pooled(finals.values())
    return {
        "format": "compare 1", "baseline": baseline, "confidence": CONFIDENCE, "price": price,
        "conditions": conditions(next(iter(base.values()))), "warnings": warnings,
        "losses": {name: {"mean": statistics.fmean(x) if x else None, "seeds": x,
                          "deviation": deviation(x), "step": final_steps[name]}
                   for name, x in finals.items()},
        "noise": {"deviation": noise, "degrees_of_freedom": df},
        "baseline_measures": mean_measures(rows[baseline]), "recipes": recipes,
        "gap_curves": {name: gap_curve(group, base) for name, group in groups.items()
                       if name != baseline},
        "runs": [row for group in rows.values() for row in group],
        "shorter_baselines": [describe(run, price) for run in shorter],
    }
