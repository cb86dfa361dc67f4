"""What the measurements of a checkpoint say: shares, ratios and differences, from the sums and losses
that sensitivity_cpu or sensitivity_cuda has written (measure.h tells which).

Losses are in nats a token. None stands for what there is not: an error of a single row, the noise of
a recipe without random bits.
"""
import json
import math
import statistics

from run_log import ReportError

LINEARS = ("qkv", "attproj", "fc", "fcproj")
OPERANDS = ("X", "W", "dY", "W^T", "dY^T", "X^T")      # as the GEMMs take them: fprop, dgrad, wgrad
GEMMS = ("fprop", "dgrad", "wgrad", "all")
LIMIT = math.sqrt(3)    # of gradient over noise [arXiv 2505.19115, section 4]
GROUPS = 16             # of neighbouring rows, for standard errors
RESOLVED = 3.0          # standard errors that a difference must be from zero to be told from noise:
                        # three, because that is asked of many layers at once (by Student's t with
                        # GROUPS - 1 degrees of freedom noise alone is as far in 0.9 % of all cases)
SUBNORMAL_BELOW = {"nvfp4": -6}     # block scales below 2^this have fewer than 4 significant bits


def read(path):
    try:
        with open(path, encoding="utf-8") as file:
            return json.load(file)
    except (OSError, ValueError) as error:
        raise ReportError(f"{path}: {error}") from None


# -------------------------------------------------------------------------------------------------
# Losses

def group_means(rows):
    """Means of GROUPS groups of neighbours, whose sizes differ by one at most; the rows themselves if
    they are too few for two a group."""
    if len(rows) < 2 * GROUPS:
        return rows
    ends = [i * len(rows) // GROUPS for i in range(GROUPS + 1)]
    return [statistics.fmean(rows[i:j]) for i, j in zip(ends, ends[1:])]


def paired(a, b):
    """{"difference", "error"}: mean of a minus mean of b, losses of the same rows under two recipes,
    and its standard error, stdev(means of groups of a - b) / sqrt(number of groups). What makes a row
    hard is common to both and cancels. Neighbouring rows are often of one document and their
    differences alike, so that rows are not independent; groups of many rows nearly are (the method
    of batch means)."""
    d = [x - y for x, y in zip(a, b)]
    means = group_means(d)
    error = statistics.stdev(means) / math.sqrt(len(means)) if len(means) > 1 else None
    return {"difference": statistics.fmean(d), "error": error}


def is_resolved(found):
    return found["error"] is not None and abs(found["difference"]) > RESOLVED * found["error"]


def losses(raw):
    """The list of losses: each with its perplexity; how far it is above BF16's ("cost"), and how far
    below that with all layers quantized ("gain")."""
    rows = {kind: next(x["rows"] for x in raw["losses"] if x["kind"] == kind)
            for kind in ("none", "all")}
    found = []
    for x in raw["losses"]:
        loss = statistics.fmean(x["rows"])
        found.append(dict({name: x[name] for name in ("kind", "layer", "linear", "recipe",
                                                      "weights")},
                          loss=loss, perplexity=math.exp(loss), cost=paired(x["rows"], rows["none"]),
                          gain=paired(rows["all"], x["rows"])))
    return found


# -------------------------------------------------------------------------------------------------
# Operands

def share(part, whole):
    return part / whole if whole else None


def operand(x, data_format):
    """Of one operand: signal to noise in decibels; shares of its elements and blocks."""
    small = None
    if data_format in SUBNORMAL_BELOW:
        below = max(0, SUBNORMAL_BELOW[data_format] - x["first_exponent"])
        small = share(x["zero_scales"] + sum(x["scales"][:below]), x["blocks"])
    snr = 10 * math.log10(x["signal"] / x["noise"]) if x["signal"] and x["noise"] else None
    return dict({name: x[name] for name in ("layer", "linear", "operand", "rows", "cols", "amax",
                                            "first_exponent", "scales", "zero_scales", "blocks")},
                snr=snr, flushed=share(x["flushed"], x["nonzero"]),
                saturated=share(x["saturated"], x["nonzero"]), small_scales=small,
                fours=share(x["fours"], x["choices"]))


def operands(raw):
    found = [operand(x, raw["format"]) for x in raw["operands"]]
    return sorted(found, key=lambda x: (x["layer"], LINEARS.index(x["linear"]),
                                        OPERANDS.index(x["operand"])))


# -------------------------------------------------------------------------------------------------
# Gradients

def gradient_noise(raw):
    """[{"layer", "linear", "ratio"}]: RMS of a weight's gradient over the RMS of its noise. Two draws
    of random bits differ by twice the variance of one. layer None: all parameters."""
    found = []
    for x in raw["gradients"]:
        if x["against"] == "other bits":
            noise = x["difference"] / 2
            found.append({"layer": x["layer"], "linear": x["linear"],
                          "ratio": math.sqrt(x["squares"] / noise) if noise else None})
    return found


def gradient_errors(raw):
    """[{"layer", "linear", "gemm", "error"}]: length of (quantized gradient - BF16 gradient) over
    that of the BF16 gradient, with this GEMM quantized, or all three."""
    return [{"layer": x["layer"], "linear": x["linear"], "gemm": x["of"],
             "error": math.sqrt(x["difference"] / x["reference"]) if x["reference"] else None}
            for x in raw["gradients"] if x["against"] == "bf16"]


def derive(raw):
    """Everything that the report says, as sensitivity.json has it."""
    kept = ("program", "commit", "device", "flags", "model", "format", "val_data", "train_data",
            "val_rows")
    try:
        return dict({name: raw[name] for name in kept}, losses=losses(raw), operands=operands(raw),
                    gradient_noise=gradient_noise(raw), gradient_errors=gradient_errors(raw))
    except (KeyError, TypeError, StopIteration) as error:
        raise ReportError(f"not what sensitivity_cpu or sensitivity_cuda writes ({error!r})"
                          ) from None


# -------------------------------------------------------------------------------------------------
# Looking things up

def of_kind(found, kind):
    """The losses of one kind."""
    return [x for x in found["losses"] if x["kind"] == kind]


def ranking(found):
    """Linear layers, the one first whose being kept in BF16 gains most."""
    layers = [x for x in of_kind(found, "all but") if x["linear"]]
    return sorted(layers, key=lambda x: -x["gain"]["difference"])
