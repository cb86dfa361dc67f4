"""Writes a comparison (analysis.compare) as report.json, report.md with its plots, and report.html,
which is one file with everything in it.

Plots are matplotlib's SVG: some tens of kilobytes each, sharp at any size, text stays text.
(plotly's pages are interactive and 4 MB each.) Without matplotlib only the plots are missing, and
only if asked for with --no-plots.
"""
import html
import io
import json
import os
import re
import statistics

from analysis import (CONFIDENCE, DIVERGED_NATS, LAST_STEPS, SPIKE_NATS, SPIKE_SIGMAS,
                      SPIKE_WINDOW)
from run_log import ReportError

# Okabe and Ito's colours, as in dev/plot.sh: different to colour-blind readers too.
COLORS = ["#000000", "#D55E00", "#0072B2", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#999999"]
LINES = ["-", "--", ":", "-."]
BUCKETS = 300           # points of a line of single updates; each is the mean of its neighbours
LEGEND_AMONG_CURVES = 6      # entries, at most
BAND_SEEDS = 3          # with fewer the gap's interval is not drawn
MISSING = "–"


def load_matplotlib():
    try:
        import matplotlib
        matplotlib.use("svg")
        matplotlib.rcParams.update({"svg.fonttype": "none", "svg.hashsalt": "compare",
                                    "font.size": 10, "axes.grid": True, "grid.color": "#dddddd",
                                    "axes.spines.top": False, "axes.spines.right": False})
        from matplotlib import figure
        return figure
    except ImportError as error:
        raise ReportError(f"the plots need matplotlib ({error}): python3 -m pip "
                          "install matplotlib; --no-plots goes without") from None


# -------------------------------------------------------------------------------------------------
# Numbers as text

def text(value, pattern, factor=1.0, unit=""):
    return MISSING if value is None else format(value * factor, pattern) + unit


def interval(found):
    """+0.0863 ± 0.0125 of a difference(), or without an interval where there is none."""
    if found is None:
        return MISSING
    half = "" if found["half"] is None else f" ± {found['half']:.4f}"
    return f"{found['gap']:+.4f}{half}"


def percent(value, digits=1, sign=""):
    return text(value, f"{sign}.{digits}f", 100, " %")


def range_text(values, write):
    """1.2 or 1.2 to 1.4"""
    low, high = map(write, values)
    return low if low == high else f"{low} to {high}"


def cost_text(cost):
    """How many more tokens: with the ends of the gap's interval if it is known, else a range."""
    if not cost:
        return MISSING
    if cost["range"] is None:
        return cost["method"]
    between = ""
    if cost["more"] is not None and cost["interval"]:
        low = "0 or less" if cost["low"] is None else percent(cost["low"], sign="+")
        high = "more than known" if cost["high"] is None else percent(cost["high"], sign="+")
        between = f" ({low} to {high})"
    return range_text(cost["range"], lambda x: percent(x, sign="+")) + between


def time_text(r):
    return range_text(r["time_ratio"], lambda x: f"{x:.2f}") if r["time_ratio"] else MISSING


# -------------------------------------------------------------------------------------------------
# Plots. A line's colour belongs to its recipe, in the order of the report; after eight
# the colours begin anew, dashed, then dotted.

def buckets(points):
    """[(x, y)] with at most BUCKETS points, each the mean of as many neighbours; y None is left
    out."""
    points = [(x, y) for x, y in points if y is not None]
    size = -(-len(points) // BUCKETS) or 1
    groups = [points[i:i + size] for i in range(0, len(points), size)]
    return [(statistics.fmean(x for x, _ in g), statistics.fmean(y for _, y in g)) for g in groups]


def svg(figure):
    out = io.StringIO()
    figure.savefig(out, format="svg", metadata={"Date": None, "Creator": None}, bbox_inches="tight")
    return out.getvalue()[out.getvalue().index("<svg"):]


def draw(matplotlib_figure, xlabel, ylabel):
    figure = matplotlib_figure.Figure(figsize=(9, 4.5))
    axes = figure.add_subplot()
    axes.set_xlabel(xlabel)
    axes.set_ylabel(ylabel)
    return figure, axes


def legend(axes):
    """Among the curves; a long one beside them, in the order of their ends."""
    entries = list(zip(*axes.get_legend_handles_labels()))
    if len(entries) <= LEGEND_AMONG_CURVES:
        axes.legend(frameon=False, fontsize=8)
        return
    lines = [entry for entry in entries if hasattr(entry[0], "get_ydata")]
    lines.sort(key=lambda entry: -entry[0].get_ydata()[-1])
    shades = [entry for entry in entries if not hasattr(entry[0], "get_ydata")]
    axes.legend(*zip(*lines, *shades), frameon=False, fontsize=8, loc="upper left",
                bbox_to_anchor=(1.01, 1))


def plot_steps(lib, groups, styles, name, ylabel, title, evaluations):
    """One line a run of what each update logged under `name`; with validation losses as points."""
    figure, axes = draw(lib, "million tokens", ylabel)
    late = []               # losses after the steep beginning
    for group, runs in groups.items():
        for number, run in enumerate(runs):
            label, unit = group if number == 0 else None, (run.tokens_per_step or 1e6) / 1e6
            points = buckets([((s + 1) * unit, step[name]) for s, step in run.steps.items()])
            values = [(s * unit, y) for s, y in sorted(run.evaluations.items()) if y is not None]
            if evaluations and values:
                axes.plot(*zip(*values), **styles[group], linewidth=1.5, marker="o", markersize=2.5,
                          label=label)
                label = None
            if points:
                axes.plot(*zip(*points), **styles[group], linewidth=0.7, label=label,
                          alpha=0.45 if evaluations else 0.9)
            late += [y for x, y in points + values if x >= 0.05 * (points or values)[-1][0]]
    if name == "norm":
        axes.set_yscale("log")
    elif late:
        room = 0.03 * (max(late) - min(late)) or 0.01
        axes.set_ylim(min(late) - room, max(late) + room)
    axes.set_title(title)
    if axes.lines:
        legend(axes)
    return svg(figure)


def plot_gaps(lib, comparison, styles):
    """Gap of each recipe by tokens, thin that of each seed, with its interval if there are
    BAND_SEEDS of them: that of two is ± nine standard deviations. Noise between the baseline's
    seeds."""
    figure, axes = draw(lib, "million tokens", f"nats above {comparison['baseline']}")
    heights, noise = [0.0], None
    for name, curve in comparison["gap_curves"].items():
        curve = [p for p in curve if p["step"] > 0]
        if not curve:
            continue
        late = [p for p in curve if p["step"] >= 0.1 * curve[-1]["step"]]
        heights += [p["gap"] for p in late]
        tokens, gaps = [p["tokens"] / 1e6 for p in curve], [p["gap"] for p in curve]
        axes.plot(tokens, gaps, **styles[name], marker="o", markersize=3, label=name)
        seeds = curve[0]["pairs"]
        for seed in seeds if len(seeds) > 1 else ():
            axes.plot(tokens, [p["pairs"][seed] for p in curve], **styles[name], linewidth=0.7,
                      alpha=0.6)
        if curve[0]["half"] is not None and len(seeds) >= BAND_SEEDS:
            ends = ([p["gap"] + sign * p["half"] for p in curve] for sign in (-1, 1))
            axes.fill_between(tokens, *ends, color=styles[name]["color"], alpha=0.15, linewidth=0)
        if curve[0]["noise"] is not None and noise is None:
            noise = [p["noise"] for p in curve]
            heights += [sign * p["noise"] for p in late for sign in (-1, 1)]
            axes.fill_between(tokens, [-n for n in noise], noise, color="#888888", alpha=0.25,
                              linewidth=0, label=f"± seed noise of {comparison['baseline']}")
    axes.axhline(0, **styles[comparison["baseline"]], linewidth=1)
    room = 0.25 * (max(heights) - min(heights) or 0.01)
    axes.set_ylim(min(heights) - room, max(heights) + room)
    axes.set_title(f"gap of the validation loss (thin: one seed; shaded: "
                   f"{100 * CONFIDENCE:.0f} % interval, from {BAND_SEEDS} seeds on)")
    legend(axes)
    return svg(figure)


def plots(comparison, runs):
    """[(file name, title, SVG)]"""
    lib = load_matplotlib()
    groups = {}
    for run in runs:
        groups.setdefault(run.name, []).append(run)
    names = [comparison["baseline"], *comparison["recipes"]]
    groups = {name: groups[name] for name in names}
    styles = {name: {"color": COLORS[i % len(COLORS)],
                     "linestyle": LINES[i // len(COLORS) % len(LINES)]}
              for i, name in enumerate(names)}
    found = [("loss.svg", "Loss", plot_steps(
        lib, groups, styles, "loss", "loss, nats a token",
        "loss (thin: training, points: validation; one line a seed)", True))]
    if any(comparison["gap_curves"].values()):
        found.append(("gap.svg", "Gap", plot_gaps(lib, comparison, styles)))
    found.append(("norm.svg", "Gradient norm", plot_steps(
        lib, groups, styles, "norm", "length of the gradient",
        "length of the gradient before clipping (one line a seed)", False)))
    return found


# -------------------------------------------------------------------------------------------------
# The report as a list of parts: ("heading", text), ("text", text), ("list", [text]),
# ("table", header, rows), ("plot", file, title, SVG). `text` in backquotes is code.

def verdict(gap, half):
    if abs(gap) <= half:
        return "not resolved from zero"
    return "worse" if gap > 0 else "better"


def headline(name, r, baseline):
    """What the recipe does to the loss and what it buys, in one sentence or two."""
    compared, what = r["val"], "validation loss"
    if compared is None:
        compared, what = r["train"], "training loss at the end"
    if compared is None:
        return f"**{name}**: no losses to compare" + (
            f"; {len(r['diverged'])} of {r['seeds']} runs diverged." if r["diverged"] else ".")
    seeds = f"{r['compared']} seed" + ("s" if r["compared"] != 1 else "")
    sentence = f"**{name}**: {what} {compared['gap']:+.4f} nats against {baseline}"
    if r["step"] not in (None, r["num_steps"]):
        sentence += f" at step {r['step']} of {r['num_steps']}, the last that all of them have,"
    borrowed = compared.get("borrowed")
    lent = (f"; ± {borrowed:.4f} if its seeds scatter as those of the other recipes do: "
            f"{verdict(compared['gap'], borrowed)}" if borrowed else "")
    if compared["half"] is not None:
        low, high = (compared["gap"] + sign * compared["half"] for sign in (-1, 1))
        sentence += (f" ({100 * CONFIDENCE:.0f} % interval {low:+.4f} to {high:+.4f}, {seeds}: "
                     f"{verdict(compared['gap'], compared['half'])}{lent})")
    elif compared["method"] == "different seeds":
        sentence += " (different seeds: no interval, and data in another order)"
    else:
        sentence += f" ({seeds}: no interval{lent or ', so nobody knows whether this is noise'})"
    if r["relative"] is not None:
        sentence += f", {percent(r['relative'], 2, '+')} of the loss"
    if r["cost"] and r["cost"]["range"]:
        sentence += f"; for the same loss it needs {cost_text(r['cost'])} tokens"
        if r["cost"]["more"] is None:
            sentence += " (one run cannot tell better; `--lengths` can)"
    sentence += "."
    if r["speed_ratio"] is not None:
        sentence += f" It runs at {r['speed_ratio']:.2f} of the baseline's tokens a second"
        if r["time_ratio"]:
            sentence += f"; the same loss takes {time_text(r)} times as long"
        sentence += "."
    if r["diverged"]:
        sentence += f" {len(r['diverged'])} of {r['seeds']} runs diverged."
    return sentence


def loss_table(c):
    rows = []
    steps = ({losses["step"] for losses in c["losses"].values()}
             | {r["step"] for r in c["recipes"].values()}) - {None}
    for name, losses in c["losses"].items():
        r = c["recipes"].get(name)
        of_step = f" (step {losses['step']})" if len(steps) > 1 and losses["seeds"] else ""
        row = [name, str(len(losses["seeds"])), text(losses["mean"], ".4f") + of_step,
               text(losses["deviation"], ".4f")]
        if r:
            borrowed = r["val"] and r["val"].get("borrowed")
            row += [interval(r["val"]) + (f" (± {borrowed:.4f} borrowed)" if borrowed else ""),
                    percent(r["relative"], 2, "+"), cost_text(r["cost"]), interval(r["train"]),
                    text(r["step"], ".0f")]
        rows.append(row + [""] * (9 - len(row)))
    return ("table", ["recipe", "seeds", "validation loss", "between seeds", "gap, nats",
                      "of the loss", "more tokens", "gap of the training loss", "at step"], rows)


COST_ROWS = [       # title, name, pattern, factor, unit
    ("tokens/s", "tokens_per_second", ",.0f", 1, ""),
    ("share of the BF16 peak", "share_of_peak", ".1f", 100, " %"),
    ("device memory, GiB", "device_bytes", ".2f", 2**-30, ""),
    ("power, W", "watts", ".0f", 1, ""),
    ("energy, mJ a token", "joules_per_token", ".3f", 1000, ""),
    ("US$ a million tokens", "usd_per_million_tokens", ".5f", 1, ""),
    ("checkpoint, MB", "checkpoint_bytes", ",.1f", 1e-6, ""),
    ("checkpoint, s", "checkpoint_seconds", ".2f", 1, ""),
]


def measures(c):
    return {c["baseline"]: c["baseline_measures"], **c["recipes"]}


def cost_table(c):
    names = measures(c)
    rows = [[title] + [text(m.get(name), pattern, factor, unit) for m in names.values()]
            for title, name, pattern, factor, unit in COST_ROWS]
    rows.insert(1, ["  against the baseline", "1"] + [text(r["speed_ratio"], ".3f")
                                                      for r in c["recipes"].values()])
    rows.append(["time to the same loss, ratio", "1", *map(time_text, c["recipes"].values())])
    return ("table", ["", *names], rows)


def missing_fields(c):
    """Titles of what no log has."""
    return [title for title, name, *_ in COST_ROWS
            if all(m.get(name) is None for m in measures(c).values())]


def alarms_text(alarms):
    if alarms is None:
        return MISSING
    found = [f"{a['guard']} of {a['of']} (step {a['step']})" for a in alarms]
    more = f", and {len(found) - 3} more" if len(found) > 3 else ""
    return ", ".join(found[:3]) + more if found else "none"


def stability_table(c):
    rows = []
    for run in c["runs"]:
        spikes = [f"step {s['step']} ({s['updates']} updates, +{s['height']:.2f})"
                  for s in run["spikes"]]
        more = f", and {len(spikes) - 3} more" if len(spikes) > 3 else ""
        rows.append([run["name"], str(run["seed"]), text(run["norm_median"], ".3f"),
                     text(run["norm_max"], ".2f"), percent(run["clipped"]),
                     ", ".join(spikes[:3]) + more if spikes else "none", run["diverged"] or "no",
                     alarms_text(run["alarms"])])
    return ("table", ["recipe", "seed", "gradient norm, median", "largest", "clipped", "spikes",
                      "diverged", "alarms of guards"], rows)


def run_table(c):
    rows = []
    for run in c["runs"] + c["shorter_baselines"]:
        state = f"unfinished: {run['updates']} of {run['num_steps']} updates"
        rows.append([f"`{run['directory']}`", run["name"], str(run["seed"]), str(run["num_steps"]),
                     text(run["val_loss"], ".4f"), text(run["train_loss"], ".4f"),
                     text(run["tokens_per_second"], ",.0f"), f"{run['program']} {run['commit']}",
                     str(run["device"]) + (f" x {run['ranks']}" if run["ranks"] > 1 else "")
                     + (f", {run['gemm_path']}" if run["gemm_path"] else ""),
                     "; ".join([state] * (not run["finished"]) + run["notes"])])
    return ("table", ["log", "recipe", "seed", "steps", "validation", "training", "tokens/s",
                      "program, commit", "device", "notes"], rows)


def method(c):
    """How each number was made, and what was assumed."""
    noise, base, percents = c["noise"], c["baseline"], f"{100 * CONFIDENCE:.0f} %"
    pooled = (f"pooled over recipes {noise['deviation']:.4f} nats ({noise['degrees_of_freedom']} "
              "degrees of freedom)" if noise["deviation"] is not None
              else "unknown here: no recipe has two seeds")
    lines = f"""
Gap: validation loss minus that of {base}, at the last step that all runs compared have. Runs of
equal seeds have the same initial weights and the same data in the same order, so the gap is the
mean of the differences between equal seeds.

Interval: Student's t, {percents}: mean ± t(n - 1) · s / √n over the n differences. It assumes
that differences of other seeds scatter normally around the same mean; with two seeds t is 12.7, so
a third seed helps more than anything. It covers seeds, not other data, sizes or lengths. Where
seeds differ it is Welch's interval. One seed has none. A recipe with fewer seeds than another one has
a "borrowed" half interval beside its own: what it is if its differences scatter as those of the
recipes with several seeds do, pooled, with the degrees of freedom of the largest; an assumption.

Seed noise: standard deviation of a loss between seeds, n - 1 in the denominator; {pooled}.

More tokens: D / D' - 1, where a run of {base} of D' tokens ends with the recipe's loss after D
tokens; between two points log loss is taken as straight over log tokens. In brackets: the ends of
the gap's interval. It is known if runs of {base} of other lengths are there (`--lengths`) or the
learning rate is constant. A point in the middle of a decaying run is not the end of a shorter run,
and one such run gives a range only: the larger number reads D' off its validation curve in tokens,
which in the flat end of a decay makes much of a small gap; the smaller reads D' in the sum of
learning rates up to there, as if decaying were worth nothing. On a small model (1,000, 1,400 and
2,000 updates) the truth lay between the two; it need not.

Training loss at the end: mean of the last {LAST_STEPS} updates.

Spike: training loss above the median of the {SPIKE_WINDOW} quiet updates before it by more than
{SPIKE_SIGMAS:g} standard deviations (1.4826 times their median absolute deviation) and by more than
{SPIKE_NATS:g} nats; neighbours count once. Nothing can be a spike in the first {SPIKE_WINDOW}
updates.

Diverged: a loss or gradient norm that is not finite, or the mean of the last {LAST_STEPS} updates
more than {DIVERGED_NATS:g} nats above the run's best such mean. A run that met a number that is not
finite is in no gap.

Speed: median over updates of what the log has, without validation and checkpoints; mean over seeds.
Share of peak: (6 N + 6 L C T) FLOP a token over the GPU's dense BF16 peak, for every recipe. On
GPUs without FP4 units NVFP4 is emulated: its speed says nothing of FP4 units.
"""
    found = [paragraph.replace("\n", " ") for paragraph in lines.strip().split("\n\n")]
    if c["price"]:
        found.append(f"Price: US$ {c['price']:g} for an hour of one GPU, at the median speed.")
    return ("list", found)


def parts(c, drawn, title):
    missing = missing_fields(c)
    yield ("heading", title)
    yield ("list", [headline(name, r, c["baseline"]) for name, r in c["recipes"].items()]
           or [f"Only {c['baseline']}: nothing to compare with."])
    if c["warnings"]:
        yield ("list", [f"**Warning.** {warning}" for warning in c["warnings"]])
    yield ("heading2", "Loss")
    yield loss_table(c)
    for plot in drawn[:-1]:
        yield ("plot", *plot)
    yield ("heading2", "Speed, memory, energy, cost")
    yield cost_table(c)
    if missing:
        yield ("text", f"{MISSING}: not in the logs ({', '.join(missing)}"
               + ("; --price makes the cost" if not c["price"] else "") + ").")
    yield ("heading2", "Stability")
    yield stability_table(c)
    for plot in drawn[-1:]:
        yield ("plot", *plot)
    yield ("heading2", "How the numbers were made")
    yield method(c)
    yield ("heading2", "Runs")
    yield ("text", "Equal in all runs: "
           + ", ".join(f"{name} {value}" for name, value in c["conditions"].items()) + ".")
    yield run_table(c)


# -------------------------------------------------------------------------------------------------
# Markdown and HTML

def markdown(report_parts, prefix="report_"):
    """prefix: of the plots' file names"""
    out = []
    for kind, *content in report_parts:
        if kind == "heading":
            out.append(f"# {content[0]}")
        elif kind == "heading2":
            out.append(f"## {content[0]}")
        elif kind == "text":
            out.append(content[0])
        elif kind == "list":
            out.append("\n".join(f"- {line}" for line in content[0]))
        elif kind == "plot":
            out.append(f"![{content[1]}]({prefix}{content[0]})")
        else:
            header, rows = content
            lines = [header, ["---"] * len(header), *rows]
            out.append("\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |"
                                 for line in lines))
    return "\n\n".join(out) + "\n"


STYLE = """body { font: 16px/1.5 sans-serif; max-width: 1100px; margin: 2em auto; padding: 0 1em; }
table { border-collapse: collapse; font-size: 14px; } .wide { overflow-x: auto; margin: 1em 0; }
th, td { border-bottom: 1px solid #ddd; padding: 4px 10px; text-align: left; }
svg { max-width: 100%; height: auto; }"""


def inline(line):
    line = html.escape(line)
    line = re.sub(r"\*\*(.+?)\*\*", r"<b>\1</b>", line)
    return re.sub(r"`(.+?)`", r"<code>\1</code>", line)


def html_page(report_parts, title):
    out = []
    for kind, *content in report_parts:
        if kind in ("heading", "heading2", "text"):
            tag = {"heading": "h1", "heading2": "h2", "text": "p"}[kind]
            out.append(f"<{tag}>{inline(content[0])}</{tag}>")
        elif kind == "list":
            out.append("<ul>" + "".join(f"<li>{inline(x)}</li>\n" for x in content[0]) + "</ul>")
        elif kind == "plot":
            # ids of the SVGs would clash in one page
            prefix = content[0].removesuffix(".svg")
            drawing = re.sub(r'(\bid="|url\(#|href="#)', rf"\g<1>{prefix}_", content[2])
            out.append(f"<figure>{drawing}</figure>")
        else:
            lines = [f"<tr>{''.join(f'<th>{inline(x)}</th>' for x in content[0])}</tr>"]
            lines += [f"<tr>{''.join(f'<td>{inline(x)}</td>' for x in row)}</tr>"
                      for row in content[1]]
            out.append('<div class="wide"><table>' + "\n".join(lines) + "</table></div>")
    return (f'<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
            '<meta name="viewport" content="width=device-width">\n'
            f"<title>{html.escape(title)}</title>\n"
            f"<style>{STYLE}</style></head><body>\n" + "\n".join(out) + "\n</body></html>\n")


def curves(runs):
    """Validation losses in full and training losses in buckets, for report.json."""
    return [{"directory": run.directory, "name": run.name, "seed": run.seed,
             "tokens_per_step": run.tokens_per_step,
             "validation": sorted(run.evaluations.items()),
             "training": buckets([(s + 1, step["loss"]) for s, step in run.steps.items()]),
             "norm": buckets([(s + 1, step["norm"]) for s, step in run.steps.items()])}
            for run in runs]


def write_files(directory, files):
    """files: {name: text}; returns their paths. A file is replaced when the new one is complete."""
    path = directory
    try:
        os.makedirs(directory, exist_ok=True)
        for name, written in files.items():
            path = os.path.join(directory, name)
            with open(path + ".tmp", "w", encoding="utf-8") as file:
                file.write(written)
            os.replace(path + ".tmp", path)
    except OSError as error:
        raise ReportError(f"{error.filename or path}: {error.strerror}") from None
    return [os.path.join(directory, name) for name in files]


def write(directory, comparison, runs, title, with_plots=True):
    """Writes report.json, report.md, report.html and the plots; returns their paths."""
    drawn = plots(comparison, runs) if with_plots else []
    content = list(parts(comparison, drawn, title))
    files = {"report.json": json.dumps(dict(comparison, curves=curves(runs)), indent=1,
                                       allow_nan=False),
             "report.md": markdown(content), "report.html": html_page(content, title)}
    files.update({f"report_{name}": drawing for name, _, drawing in drawn})
    return write_files(directory, files)
