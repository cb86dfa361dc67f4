"""Writes what findings.derive found as sensitivity.json, sensitivity.md with its heat maps, and
sensitivity.html, which is one file with everything in it. Pages and SVGs are made by the functions
of dev/compare's report.
"""
import json

import report
from findings import (GEMMS, GROUPS, LIMIT, LINEARS, OPERANDS, RESOLVED, is_resolved, of_kind,
                      ranking)
from report import MISSING, percent, text

CELLS_WITH_NUMBERS = 24     # rows of a heat map that has the numbers in its cells
RANKED = 10                 # layers that the report names first
STATISTICS = [              # name, title, pattern, factor of the numbers in heat maps and tables
    ("snr", "signal to noise, dB", ".1f", 1),
    ("flushed", "flushed to zero, %", ".2f", 100),
    ("saturated", "saturated, %", ".2f", 100),
    ("small_scales", "block scales subnormal or zero, %", ".2f", 100),
    ("fours", "blocks that Four Over Six takes to 4, %", ".1f", 100),
]


# -------------------------------------------------------------------------------------------------
# Text

def signed(found, pattern=".4f", factor=1):
    """+0.0031 ± 0.0004, in bold if it can be told from noise."""
    error = "" if found["error"] is None else f" ± {format(factor * found['error'], pattern)}"
    written = format(factor * found["difference"], "+" + pattern) + error
    return f"**{written}**" if is_resolved(found) else written


def layer_name(x):
    if x["linear"] is None:
        return f"block {x['layer']}"
    return f"block {x['layer']} {x['linear']}"


def headlines(found):
    low, (bf16,), (everything,) = found["format"].upper(), of_kind(found, "none"), \
        of_kind(found, "all")
    change = everything["perplexity"] / bf16["perplexity"] - 1
    lines = [f"All linear layers in {low}, forward: loss {signed(everything['cost'])} above BF16's "
             f"{bf16['loss']:.4f}; perplexity {percent(change, 2, '+')}."]
    resolved = [x for x in ranking(found) if is_resolved(x["gain"]) and x["gain"]["difference"] > 0]
    named = ", ".join(f"{layer_name(x)} {x['gain']['difference']:+.4f}" for x in resolved[:5])
    lines.append(f"Kept in BF16, each alone, {len(resolved)} of {len(ranking(found))} linear layers gain "
                 "more than noise" + (f"; most of all {named} nats." if named else "."))
    (last,), (best,) = of_kind(found, "last blocks"), of_kind(found, "best blocks")
    lines.append(f"As many blocks in BF16 as the paper keeps: the last ones gain {signed(last['gain'])}"
                 f", those that gain most {signed(best['gain'])} (`-p {best['recipe']}`).")
    ratios = [x for x in found["gradient_noise"] if x["linear"] and x["ratio"] is not None]
    drowned = [x for x in ratios if x["ratio"] < LIMIT]
    if ratios:
        lines.append(f"The gradients of {len(drowned)} of {len(ratios)} weights are below sqrt(3) times "
                     "their rounding noise, in a micro-batch of "
                     f"{found['flags']['-b']} x {found['flags']['-t']} tokens.")
    return ("list", lines)


def layer_table(found, kind, value):
    """Blocks down, linear layers and the whole block across; thousandths of a nat."""
    cells = {(x["layer"], x["linear"]): signed(x[value], ".2f", 1000) for x in of_kind(found, kind)}
    return ("table", ["block", *LINEARS, "the whole block"],
            [[str(layer)] + [cells[layer, linear] for linear in (*LINEARS, None)]
             for layer in range(found["model"]["layers"])])


def ranking_table(found):
    return ("table", ["layer kept in BF16", "gain", "loss", "recipe"],
            [[layer_name(x), signed(x["gain"]), f"{x['loss']:.4f}", f"`-p {x['recipe']}`"]
             for x in ranking(found)[:RANKED]])


def blocks_table(found):
    names = {"none": "everything in BF16", "all": "no block in BF16",
             "last blocks": "the last blocks", "best blocks": "those that gain most"}
    return ("table", ["in BF16", "loss", "above BF16", "recipe"],
            [[name, f"{x['loss']:.4f}", "" if kind == "none" else signed(x["cost"]),
              f"`-p {x['recipe']}`"]
             for kind, name in names.items() for x in of_kind(found, kind)])


def post_training_table(found):
    (bf16,) = of_kind(found, "none")
    rows = [["nothing", "", f"{bf16['loss']:.4f}", "", f"{bf16['perplexity']:.3f}", ""]]
    for kind in ("weights", "weights and activations"):
        for x in of_kind(found, kind):
            recipe = x["weights"] or x["recipe"]
            rows.append([kind, f"`{recipe}`", f"{x['loss']:.4f}", signed(x["cost"]),
                         f"{x['perplexity']:.3f}",
                         percent(x["perplexity"] / bf16["perplexity"] - 1, 2, "+")])
    return ("table", ["quantized", "as in -p", "loss", "above BF16", "perplexity", "change"], rows)


def gradient_table(found):
    """Of all parameters: what each GEMM does to the gradient."""
    whole = {x["gemm"]: x["error"] for x in found["gradient_errors"] if x["linear"] is None}
    return ("table", ["quantized", "error of the gradient, of its length"],
            [[gemm if gemm != "all" else "all three", percent(whole[gemm])] for gemm in GEMMS])


def layers_of(found):
    return [(layer, linear) for layer in range(found["model"]["layers"]) for linear in LINEARS]


def gradient_layer_table(found):
    errors = {(x["layer"], x["linear"], x["gemm"]): x["error"] for x in found["gradient_errors"]}
    ratios = {(x["layer"], x["linear"]): x["ratio"] for x in found["gradient_noise"]}
    rows = []
    for layer in layers_of(found):
        ratio = text(ratios[layer], ".2f")
        below = ratios[layer] is not None and ratios[layer] < LIMIT
        rows.append([layer_name(dict(zip(("layer", "linear"), layer))),
                     f"**{ratio}**" if below else ratio]
                    + [percent(errors[(*layer, gemm)]) for gemm in GEMMS])
    return ("table", ["weight", "gradient / noise", *(f"error, {gemm}" for gemm in GEMMS)], rows)


def operand_table(found):
    rows = [[layer_name(x), x["operand"]]
            + [text(x[name], pattern, factor) for name, _, pattern, factor in STATISTICS]
            for x in found["operands"]]
    return ("table", ["layer", "operand", *(title for _, title, _, _ in STATISTICS)], rows)


# -------------------------------------------------------------------------------------------------
# Heat maps

def heat_map(lib, title, panels, rows, columns, pattern=None, middle=False):
    """panels: {name: values}, where values[row][column] may be None, drawn side by side with one
    scale. pattern: of the numbers in the cells. middle: zero is the middle of the colours."""
    known = [x for values in panels.values() for row in values for x in row if x is not None]
    low, high = (min(known), max(known)) if known else (0.0, 1.0)
    if middle:
        low, high = -max(abs(low), abs(high)), max(abs(low), abs(high))
    high = high if high > low else low + 1e-12
    numbers = pattern and len(rows) <= CELLS_WITH_NUMBERS
    width = (0.45 if numbers else 0.16) * len(columns) + 0.5
    height = 1.5 + (0.26 if numbers else 0.12) * len(rows)
    figure = lib.Figure(figsize=(1.6 + width * len(panels), height), layout="constrained")
    axes = figure.subplots(1, len(panels), sharey=True, squeeze=False)[0]
    for axis, (name, values) in zip(axes, panels.items()):
        cells = [[float("nan") if x is None else x for x in row] for row in values]
        image = axis.pcolormesh(cells, vmin=low, vmax=high, cmap="RdBu_r" if middle else "viridis",
                                rasterized=not numbers)
        axis.set_title(name, fontsize=9)
        axis.set_xticks([i + 0.5 for i in range(len(columns))], columns, rotation=90, fontsize=7)
        axis.set_yticks([i + 0.5 for i in range(len(rows))], rows, fontsize=7)
        axis.set_ylim(len(rows), 0)
        axis.grid(False)
        for i, row in enumerate(values if numbers else []):
            for j, x in enumerate(row):
                if x is not None:
                    pale = middle and abs(x) < 0.6 * high or not middle and x > 0.6 * high + 0.4 * low
                    axis.text(j + 0.5, i + 0.5, format(x, pattern), ha="center", va="center",
                              fontsize=6, color="black" if pale else "white")
    figure.colorbar(image, ax=list(axes), shrink=0.9).ax.tick_params(labelsize=7)
    figure.suptitle(title, fontsize=10)
    return report.svg(figure)


def layer_matrix(found, items, value, factor=1):
    """values[block][linear] of value(item)."""
    values = {(x["layer"], x["linear"]): value(x) for x in items if x["linear"]}
    return [[None if values.get((layer, linear)) is None else factor * values[layer, linear]
             for linear in LINEARS] for layer in range(found["model"]["layers"])]


def loss_plot(lib, found, blocks):
    panels = {"gain: this one kept in BF16": layer_matrix(
                  found, of_kind(found, "all but"), lambda x: x["gain"]["difference"], 1000),
              "cost: this one alone quantized": layer_matrix(
                  found, of_kind(found, "only"), lambda x: x["cost"]["difference"], 1000)}
    return heat_map(lib, "validation loss, thousandths of a nat", panels, blocks, LINEARS, "+.1f",
                    middle=True)


def operand_plots(lib, found, blocks):
    for name, title, pattern, factor in STATISTICS:
        panels = {}
        for operand in OPERANDS:
            items = [x for x in found["operands"] if x["operand"] == operand]
            values = layer_matrix(found, items, lambda x, name=name: x[name], factor)
            if any(x is not None for row in values for x in row):
                panels[operand] = values
        if panels:
            yield (f"{name}.svg", title, heat_map(lib, title, panels, blocks, LINEARS, pattern))


def scales_plot(lib, found):
    """Which share of an operand's blocks has a scale of which power of two. None if the format has
    no block scales."""
    items = [x for x in found["operands"] if x["blocks"]]
    if not items:
        return None
    first = min(x["first_exponent"] for x in items)
    last = max(x["first_exponent"] + len(x["scales"]) - 1 for x in items)
    rows = [f"{layer} {linear}" for layer, linear in layers_of(found)]
    panels = {}
    for operand in OPERANDS:
        values = {}
        for x in items:
            if x["operand"] == operand:
                counts = ([x["zero_scales"]] + [0] * (x["first_exponent"] - first) + x["scales"]
                          + [0] * (last - x["first_exponent"] - len(x["scales"]) + 1))
                values[x["layer"], x["linear"]] = [100 * n / x["blocks"] for n in counts]
        if values:
            panels[operand] = [values.get(key, [None] * (last - first + 2))
                               for key in layers_of(found)]
    columns = ["0", *(f"2^{e}" for e in range(first, last + 1))]
    title = "block scales, % of the blocks, by power of two"
    return ("scales.svg", title, heat_map(lib, title, panels, rows, columns))


def gradient_plots(lib, found, blocks):
    if any(x["ratio"] is not None for x in found["gradient_noise"]):
        panels = {f"drowns below {LIMIT:.2f}": layer_matrix(found, found["gradient_noise"],
                                                            lambda x: x["ratio"])}
        title = "gradient / noise"
        yield ("gradient_noise.svg", title, heat_map(lib, title, panels, blocks, LINEARS, ".2f"))
    panels = {gemm: layer_matrix(found, [x for x in found["gradient_errors"] if x["gemm"] == gemm],
                                 lambda x: x["error"], 100) for gemm in GEMMS}
    title = "error of the weight's gradient, % of its length, by quantized GEMM"
    yield ("gradient_errors.svg", title, heat_map(lib, title, panels, blocks, LINEARS, ".1f"))


def plots(found):
    """{section: [(file name, title, SVG)]}"""
    lib, blocks = report.load_matplotlib(), [str(i) for i in range(found["model"]["layers"])]
    scales = scales_plot(lib, found)
    return {"losses": [("losses.svg", "Losses", loss_plot(lib, found, blocks))],
            "gradients": list(gradient_plots(lib, found, blocks)),
            "operands": [*operand_plots(lib, found, blocks), *([scales] if scales else [])]}


# -------------------------------------------------------------------------------------------------
# The report

def method(found):
    B, T, rows = found["flags"]["-b"], found["flags"]["-t"], found["val_rows"]
    error = (f"stdev(difference) / sqrt(rows), which takes rows as independent: too few for {GROUPS} groups"
             if rows < 2 * GROUPS else
             f"from {GROUPS} groups of neighbouring rows,\nwhich are often of one document: "
             f"stdev(means of groups) / sqrt({GROUPS})")
    lines = f"""
Losses: mean over the same {rows} rows of {T} tokens in every case. After ± stands the standard error of
the mean difference between the same rows under two recipes, {error};
differences above {RESOLVED:g} of them are bold, more than noise. It covers the choice of validation rows, not
that of seeds or data of the training run. A loss sees the forward pass alone: W and X.

Kept in BF16 (gain): how far the loss falls below that with all layers quantized if this one is not.
Quantized alone (cost): how far it rises above that of BF16 if no other is. With many layers the two
need not agree: errors of layers add up or hide each other. The blocks that gain most were chosen by
the same rows that then measure them, which flatters them a little.

This is the loss of a model that was trained already. What a layer in BF16 does to training, with its
backward pass, it cannot say; the trainer with the same -p can.

Post-training check: the quantizers are the format's plain ones, to nearest. "weights": each weight
is quantized from its BF16 value, dequantized, rounded to BF16 once more, and the model is evaluated in
BF16. "tile=1" has square tiles, "tile=0" blocks along a row; foursix=mse is Four Over Six. A checkpoint
trained in the format is measured the other way round by the same table: its BF16 row tells.

Gradient / noise: RMS of the gradient of one micro-batch of {B} x {T} tokens with every GEMM
quantized, over the RMS of its noise, from two passes with different random bits. Below sqrt(3) noise
limits the fall of the loss [arXiv 2505.19115, section 4]. An update of m micro-batches averages noise,
by sqrt(m). Without random bits there is none.

Error of the gradient: |gradient - BF16 gradient| / |BF16 gradient| of that micro-batch, one draw.

Signal to noise: 10 log10 of sum x^2 / sum (x_q - x)^2, in decibels. Flushed to zero: share of the
elements that were not zero. Saturated: share of them beyond the largest code of their block. Block
scales subnormal or zero: E4M3 keeps fewer than 4 significant bits below 2^-6. Blocks that Four Over Six
takes to 4: what the recipe chose or, without foursix, would choose by mean square error. Values
are those that the quantizer saw, after transposing and the Hadamard transform; of X and W in the
forward pass, of dY and W^T in the input's gradient, of dY^T and X^T in the weight's. W^T is left out
where it has the codes of W.
"""
    return ("list", [paragraph.replace("\n", " ") for paragraph in lines.strip().split("\n\n")])


def parts(found, drawn, title):
    low = found["format"].upper()
    yield ("heading", title)
    yield headlines(found)
    yield ("heading2", "Which layers should stay in high precision?")
    yield ("text", f"One linear layer kept in BF16, all others in {low}: how far the loss falls, in "
           "thousandths of a nat. Bold is more than noise.")
    yield layer_table(found, "all but", "gain")
    for plot in drawn.get("losses", []):
        yield ("plot", *plot)
    yield ("text", f"One linear layer in {low}, all others in BF16: how far the loss rises.")
    yield layer_table(found, "only", "cost")
    yield ("text", "Those that gain most, and the recipe that keeps each:")
    yield ranking_table(found)
    yield ("text", "Whole blocks, as many as the paper keeps:")
    yield blocks_table(found)
    yield ("heading2", "Post-training check")
    yield post_training_table(found)
    yield ("heading2", "Gradients")
    yield gradient_table(found)
    for plot in drawn.get("gradients", []):
        yield ("plot", *plot)
    yield gradient_layer_table(found)
    yield ("heading2", "Operands")
    for plot in drawn.get("operands", []):
        yield ("plot", *plot)
    yield operand_table(found)
    yield ("heading2", "How the numbers were made")
    yield method(found)
    m = found["model"]
    yield ("text", f"{found['program']}, commit {found['commit']}, on {found['device']}. Model: "
           f"{m['layers']} layers, {m['channels']} channels, {m['heads']} heads, vocabulary "
           f"{m['vocab']}, {m['parameters']:,} parameters. "
           + ", ".join(f"`{name} {value}`" for name, value in found["flags"].items()
                       if value != "" and name != "-o") + ".")


def write(directory, found, title, with_plots=True):
    """Writes sensitivity.json, .md, .html and the plots; returns their paths."""
    drawn = plots(found) if with_plots else {}
    content = list(parts(found, drawn, title))
    files = {"sensitivity.json": json.dumps(found, indent=1, allow_nan=False),
             "sensitivity.md": report.markdown(content, "sensitivity_"),
             "sensitivity.html": report.html_page(content, title)}
    files.update({f"sensitivity_{name}": drawing for section in drawn.values()
                  for name, _, drawing in section})
    return report.write_files(directory, files)
