/*
A precision recipe is data: for each operand of the three GEMMs of a linear layer, how it is
quantized; and which GEMMs of which blocks take part, from which update on. This file holds the
recipes, parses their names and prints them in words. quantized_linear.h (plain C) and linear.cuh
(CUDA) carry them out.

The three GEMMs of a layer Y = X W^T, for X (N,C), W (OC,C), Y (N,OC), N = B*T tokens:

    fprop    Y  = X    W^T      contracts C
    dgrad    dX = dY   W        contracts OC
    wgrad    dW = dY^T X        contracts N

In NVFP4 [arXiv 2509.25149, section 4 and figure 5]:

    operand        scales    rounding      Hadamard   why
    fprop  X       1 x 16    nearest       -
    fprop  W       16 x 16   nearest       -          square tiles: W and W^T see the same numbers
    dgrad  dY      1 x 16    stochastic    -          unbiased, so errors average out over steps
    dgrad  W^T     16 x 16   nearest       -          the codes and scales of fprop's W, transposed
    wgrad  dY^T    1 x 16    stochastic    yes        spreads outliers; cancels with X's transform
    wgrad  X^T     1 x 16    nearest       yes

A recipe is written as a preset with overrides:

    nvfp4,hadamard=0,tail=4             without the Hadamard transform, the last 4 blocks in BF16
    nvfp4,forward=bf16@0.82             forward in BF16 for the last 18 % of the updates
    nvfp4,all=bf16:0-1,wgrad=bf16/fc    blocks 0 and 1, and wgrad of every fc layer, in BF16
    quartet2,backward=bf16@auto         backward in BF16 once gradients drown in rounding noise

The presets, and where each comes from:

    fp32, bf16  nothing quantized
    fp8         one scale a tensor; E4M3, gradients E5M2 [TransformerEngine, current scaling]
    fp8block    E4M3; 1x128 blocks, weights 128x128 [DeepSeek-V3, arXiv 2412.19437, 3.3]
    mxfp8       E4M3; 32 elements share a power of two [OCP MX 1.0; arXiv 2506.08027]
    mxfp4       nvfp4 with MXFP4's blocks: E2M1, 32 elements share a power of two
    nvfp4       above
    nvfp4+46    nvfp4 with Four Over Six where rounding is to nearest [arXiv 2512.02010]
    quartet2    1x16 and Four Over Six forward, MS-EDEN backward [arXiv 2601.22813]
    tetrajet    1x16; backward from forward's codes, stochastic [arXiv 2510.27527; its base: without
                FP32 scales of 128 and without outlier channels]
    fp4all      1x16; split rounding, no transform [arXiv 2505.19115]
*/
#ifndef LLMC_RECIPE_H
#define LLMC_RECIPE_H

#include <limits.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "hadamard.h"
#include "quantizer.h"
#include "utils.h"

enum { FPROP, DGRAD, WGRAD, NUM_GEMMS };

// The linear layers of a block, in the order of the forward pass.
enum { LINEAR_QKV, LINEAR_PROJ, LINEAR_FC, LINEAR_FCPROJ, NUM_LINEARS };

// What a linear layer quantizes. W and W^T are one operand in square tiles, two otherwise.
enum { OPERAND_X, OPERAND_XT, OPERAND_W, OPERAND_WT, OPERAND_DY, OPERAND_DYT, NUM_OPERANDS };

// An exception: these GEMMs of these layers are in this format from this update on.
typedef struct {
    int gemms, linears;         // a bit for each
    int first, last;            // blocks
    int quantized;              // 1: as the operands' table says, 0: in the base format
    float fraction;             // from which update on: as a fraction of the run, else negative
    int step;                   // the same as its number; INT_MAX: not yet known, or not yet due
    int automatic;              // decided on the way: see recipe_trigger
} RecipeRule;

#define RECIPE_RULES 16

// What to do about a run that has diverged: the end of messages that say so.
#define ADVICE_DIVERGED "Try a lower -l, or the recipe with more tail=, as a new run with another -o; " \
    "-e DIR/model_STEP.bin begins with the weights of a checkpoint. The newest one may have diverged " \
    "already: look at the losses before it"

// Weights that oscillate between two codes are set to the middle of the one they are at: OsciReset
// [arXiv 2510.27527]. Over `window` updates it sums |change of w| and |change of quantized w|.
typedef struct {
    float threshold;            // reset where the second sum is this many times the first; 0: off
    float start;                // first window begins here, as a fraction of the run
    int period, window;         // updates from window to window, and of a window
    int first;                  // `start` as an update; recipe_set_length knows it
} OsciReset;

typedef struct {
    char text[256];             // as given, for logs and checkpoints
    int L;                      // blocks of the model
    Format base;                // of everything that is not quantized: FP32 or BF16
    Quantizer operands[NUM_OPERANDS];
    int front, tail;            // this many first and last blocks stay in the base format
    RecipeRule rules[RECIPE_RULES];     // a later one overrides an earlier one
    int num_rules;
    OsciReset reset;
    int step;                   // the update that the answers below are about
    int num_steps;              // of the run; INT_MAX before recipe_set_length
} Recipe;

static inline const char* linear_name(int linear) {
    static const char* names[NUM_LINEARS] = { "qkv", "attproj", "fc", "fcproj" };
    return names[linear];
}

static inline const char* operand_name(int operand) {
    static const char* names[NUM_OPERANDS] = { "X", "X^T", "W", "W^T", "dY", "dY^T" };
    return names[operand];
}

static inline int gemm_operand(int gemm, int which /* 0: A, 1: B */) {
    static const int operands[NUM_GEMMS][2] = { { OPERAND_X, OPERAND_W },
                                                { OPERAND_DY, OPERAND_WT },
                                                { OPERAND_DYT, OPERAND_XT } };
    return operands[gemm][which];
}

// The operand's number in the counters of random bits: layer * 16 + linear * 4 + which, and no two
// operands have the same, or the errors of two GEMMs would be correlated. X and W, which are
// seldom rounded stochastically, have theirs from 2^30 on.
static inline uint32_t operand_tag(int layer, int linear, int operand) {
    static const uint32_t which[NUM_OPERANDS] = { 1u << 30, 2, (1u << 30) + 1, 3, 0, 1 };
    return (uint32_t)(layer * 16 + linear * 4) + which[operand];
}

// How an operand of a layer is rounded in micro-batch number `micro_step` of the run; W, which is
// quantized once an update, in this update. The caller adds which part of the operand it has.
static inline Nvfp4Rounding recipe_rounding(const Recipe* r, int layer, int linear, int operand,
                                            uint64_t seed, uint32_t micro_step) {
    Nvfp4Rounding rounding;
    memset(&rounding, 0, sizeof(rounding));
    rounding.stochastic = r->operands[operand].rounding == ROUND_STOCHASTIC;
    rounding.seed = seed;
    rounding.tag = operand_tag(layer, linear, operand);
    rounding.step = operand == OPERAND_W ? (uint32_t)r->step : micro_step;
    return rounding;
}

// ---------------------------------------------------------------------------------------------
// Questions to a recipe. Those about a GEMM are answered for the update `r->step`.

// Is a GEMM of this layer quantized at update `step`?
static inline int recipe_quantizes_at(const Recipe* r, int gemm, int layer, int linear, int step) {
    int quantized = r->operands[gemm_operand(gemm, 0)].format > FORMAT_BF16;
    if (!quantized || layer < r->front || layer >= r->L - r->tail) { return 0; }
    for (int i = 0; i < r->num_rules; i++) {
        const RecipeRule* rule = &r->rules[i];
        if ((rule->gemms >> gemm & 1) && (rule->linears >> linear & 1) && layer >= rule->first
            && layer <= rule->last && step >= rule->step) { quantized = rule->quantized; }
    }
    return quantized;
}

static inline int recipe_quantizes(const Recipe* r, int gemm, int layer, int linear) {
    return recipe_quantizes_at(r, gemm, layer, linear, r->step);
}

// Is it quantized (quantized 1), or not quantized (0), at any update? For what memory is needed.
static inline int recipe_ever(const Recipe* r, int gemm, int layer, int linear, int quantized) {
    Recipe all = *r;            // automatic rules: as if they fired, and as if they did not
    int found = recipe_quantizes_at(r, gemm, layer, linear, 0) == quantized;
    for (int fired = 0; fired <= 1; fired++) {
        for (int i = 0; i < r->num_rules; i++) {
            if (r->rules[i].automatic) { all.rules[i].step = fired ? 0 : INT_MAX; }
        }
        for (int i = 0; i < r->num_rules; i++) {
            found |= recipe_quantizes_at(&all, gemm, layer, linear, all.rules[i].step == INT_MAX
                                         ? 0 : all.rules[i].step) == quantized;
        }
    }
    return found;
}

// Has W^T the codes of W, transposed?
static inline int recipe_transposes_weights(const Recipe* r) {
    const Quantizer* w = &r->operands[OPERAND_W];
    return (w->tile || w->format == FORMAT_FP8) && quantizer_equal(w, &r->operands[OPERAND_WT]);
}

// Is W^T made anew in every backward pass, not after every update as W is?
static inline int recipe_remakes_weights(const Recipe* r) {
    const Quantizer* wT = &r->operands[OPERAND_WT];
    return !recipe_transposes_weights(r)
        && (wT->aligned || wT->fresh_signs || wT->rounding != ROUND_NEAREST);
}

// Can the weights of this block travel between ranks as NVFP4 codes? If nobody ever reads them
// otherwise, and they are rounded as weights_cpu.h does it; recipes with exceptions are not looked into.
static inline int recipe_weights_travel(const Recipe* r, int layer) {
    const Quantizer* w = &r->operands[OPERAND_W];
    int travel = recipe_transposes_weights(r) && quantizer_is_plain_nvfp4(w) && r->num_rules == 0;
    for (int i = 0; i < NUM_LINEARS; i++) {
        travel = travel && recipe_quantizes_at(r, FPROP, layer, i, 0)
              && recipe_quantizes_at(r, DGRAD, layer, i, 0);
    }
    return travel;
}

// Is a rule still waiting for recipe_trigger?
static inline int recipe_waits(const Recipe* r) {
    for (int i = 0; i < r->num_rules; i++) {
        if (r->rules[i].automatic && r->rules[i].step == INT_MAX) { return 1; }
    }
    return 0;
}

// Automatic rules hold from update `step` on.
static inline void recipe_trigger(Recipe* r, int step) {
    for (int i = 0; i < r->num_rules; i++) {
        if (r->rules[i].automatic && r->rules[i].step == INT_MAX) { r->rules[i].step = step; }
    }
}

// The update from which automatic rules hold; -1: none does yet.
static inline int recipe_triggered(const Recipe* r) {
    for (int i = 0; i < r->num_rules; i++) {
        if (r->rules[i].automatic && r->rules[i].step != INT_MAX) { return r->rules[i].step; }
    }
    return -1;
}

// Turns fractions of the run into updates, now that their number is known. 0.82 of 1000: from
// update 820 on, so that 18 % are left. A float may be a little more than what was written: that
// must not make the first window begin an update later.
static inline void recipe_set_length(Recipe* r, int num_steps) {
    for (int i = 0; i < r->num_rules; i++) {
        float fraction = r->rules[i].fraction;
        if (fraction >= 0.0f) { r->rules[i].step = (int)((double)fraction * num_steps + 0.5); }
    }
    r->reset.first = (int)ceil(((double)r->reset.start - 1e-7) * num_steps);
    r->num_steps = num_steps;
}

// ---------------------------------------------------------------------------------------------
// Presets

typedef struct {
    const char* name;
    Format format;
    int tile, hadamard_dgrad, hadamard_wgrad, fresh_signs;
    RoundingRule dy, dyT, xT, wT;       // X and W always start out to nearest
    FourSix four_six;
    int aligned, keeps_tail;            // the last ~15 % of the blocks stay in BF16
} RecipePreset;

static inline const RecipePreset* recipe_preset(const char* name) {
    enum { RN = ROUND_NEAREST, SR = ROUND_STOCHASTIC, EDEN = ROUND_MS_EDEN };
    #define SPLIT(a, b, c, d) (RoundingRule)a, (RoundingRule)b, (RoundingRule)c, (RoundingRule)d
    static const RecipePreset presets[] = {
        // name       format           tile  had.dgrad,wgrad  fresh  dY  dY^T  X^T  W^T
        { "fp8",      FORMAT_FP8,      0,    0, 0,            0,  SPLIT(RN, RN, RN, RN),
          FOUR_SIX_OFF, 0, 0 },
        { "fp8block", FORMAT_FP8BLOCK, 1,    0, 0,            0,  SPLIT(RN, RN, RN, RN),
          FOUR_SIX_OFF, 0, 0 },
        { "mxfp8",    FORMAT_MXFP8,    0,    0, 0,            0,  SPLIT(RN, RN, RN, RN),
          FOUR_SIX_OFF, 0, 0 },
        { "mxfp4",    FORMAT_MXFP4,    1,    0, 16,           0,  SPLIT(SR, SR, RN, RN),
          FOUR_SIX_OFF, 0, 1 },
        { "nvfp4",    FORMAT_NVFP4,    1,    0, 16,           0,  SPLIT(SR, SR, RN, RN),
          FOUR_SIX_OFF, 0, 1 },
        { "nvfp4+46", FORMAT_NVFP4,    1,    0, 16,           0,  SPLIT(SR, SR, RN, RN),
          FOUR_SIX_MSE, 0, 1 },
        { "quartet2", FORMAT_NVFP4,    0,    128, 128,        1,  SPLIT(EDEN, EDEN, EDEN, EDEN),
          FOUR_SIX_MSE, 1, 0 },
        { "tetrajet", FORMAT_NVFP4,    0,    16, 16,          1,  SPLIT(SR, SR, SR, SR),
          FOUR_SIX_OFF, 1, 0 },
        { "fp4all",   FORMAT_NVFP4,    0,    0, 0,            0,  SPLIT(SR, SR, SR, RN),
          FOUR_SIX_OFF, 0, 0 },
    };
    #undef SPLIT
    for (size_t i = 0; i < sizeof(presets) / sizeof(presets[0]); i++) {
        if (strcmp(presets[i].name, name) == 0) { return &presets[i]; }
    }
    return NULL;
}

#define RECIPE_PRESET_NAMES "fp32, bf16, fp8, fp8block, mxfp8, mxfp4, nvfp4, nvfp4+46, quartet2, " \
                            "tetrajet, fp4all"

// The last ~15 % of the blocks, at least one, is what the paper keeps in BF16 [section 4.1].
static inline int recipe_default_tail(int L) {
    int tail = (15 * L + 50) / 100;
    return tail < 1 ? 1 : tail;
}

static inline void recipe_apply_preset(Recipe* r, const RecipePreset* p) {
    RoundingRule rounding[NUM_OPERANDS] = { ROUND_NEAREST, p->xT, ROUND_NEAREST, p->wT, p->dy,
                                            p->dyT };
    r->base = FORMAT_BF16;
    for (int i = 0; i < NUM_OPERANDS; i++) {
        Quantizer* q = &r->operands[i];
        int gradient = i == OPERAND_DY || i == OPERAND_DYT;
        int weight = i == OPERAND_W || i == OPERAND_WT;
        int transposed = i == OPERAND_XT || i == OPERAND_WT;
        q->format = p->format;
        q->e5m2 = p->format == FORMAT_FP8 && gradient;
        q->tile = p->tile && weight;
        q->rounding = rounding[i];
        q->four_six = q->rounding == ROUND_NEAREST ? p->four_six : FOUR_SIX_OFF;
        q->hadamard = i == OPERAND_DY || i == OPERAND_WT ? p->hadamard_dgrad
                    : i == OPERAND_DYT || i == OPERAND_XT ? p->hadamard_wgrad : 0;
        q->fresh_signs = q->hadamard > 0 && p->fresh_signs;
        q->aligned = p->aligned && transposed;
    }
    if (p->keeps_tail) { r->tail = recipe_default_tail(r->L); }
}

// ---------------------------------------------------------------------------------------------
// Parsing

// A whole number from 0 up at *text, which moves on behind it.
static inline int recipe_number(const Recipe* r, const char** text, int largest) {
    char* end;
    long number = strtol(*text, &end, 10);
    check(end != *text && **text != '-' && number >= 0 && number <= largest,
          "-p %s: '%s' should begin with a whole number from 0 to %d", r->text, *text, largest);
    *text = end;
    return (int)number;
}

// GEMMS=FORMAT[:FIRST[-LAST]][/LINEAR][@WHEN]; returns 0 if `name` is no GEMM.
static inline int recipe_set_rule(Recipe* r, const char* name, const char* value) {
    static const struct { const char* name; int gemms; } groups[] = {
        { "fprop", 1 << FPROP }, { "dgrad", 1 << DGRAD }, { "wgrad", 1 << WGRAD },
        { "forward", 1 << FPROP }, { "backward", 1 << DGRAD | 1 << WGRAD },
        { "all", 1 << FPROP | 1 << DGRAD | 1 << WGRAD },
    };
    RecipeRule rule;
    memset(&rule, 0, sizeof(rule));
    for (size_t i = 0; i < sizeof(groups) / sizeof(groups[0]); i++) {
        if (strcmp(groups[i].name, name) == 0) { rule.gemms = groups[i].gemms; }
    }
    if (rule.gemms == 0) { return 0; }
    size_t length = strcspn(value, ":/@");
    const char* low = format_name(r->operands[OPERAND_X].format);
    rule.quantized = strlen(low) == length && strncmp(value, low, length) == 0;
    check(rule.quantized || (length == 4 && strncmp(value, "bf16", 4) == 0),
          "-p %s: %s is %s or bf16, not '%.*s'", r->text, name, low, (int)length, value);
    rule.last = r->L - 1;
    rule.linears = (1 << NUM_LINEARS) - 1;
    rule.fraction = -1.0f;
    const char* at = value + length;
    if (*at == ':') {
        at++;
        rule.first = rule.last = recipe_number(r, &at, r->L - 1);
        if (*at == '-') {
            at++;
            rule.last = recipe_number(r, &at, r->L - 1);
        }
        check(rule.first <= rule.last, "-p %s: %s=%s: blocks %d to %d", r->text, name, value,
              rule.first, rule.last);
    }
    if (*at == '/') {
        at++;
        length = strcspn(at, "@");
        rule.linears = 0;
        for (int i = 0; i < NUM_LINEARS; i++) {
            const char* linear = linear_name(i);
            if (strlen(linear) == length && strncmp(at, linear, length) == 0) {
                rule.linears = 1 << i;
            }
        }
        check(rule.linears != 0, "-p %s: no linear layer '%.*s'; there are qkv attproj fc fcproj",
              r->text, (int)length, at);
        at += length;
    }
    if (strcmp(at, "@auto") == 0) {
        rule.automatic = 1;
        rule.step = INT_MAX;
        at += 5;
    } else if (*at == '@' && strchr(at, '.') != NULL) {
        char* end;
        rule.fraction = strtof(at + 1, &end);
        rule.step = INT_MAX;
        check(end != at + 1 && rule.fraction >= 0.0f && rule.fraction <= 1.0f,
              "-p %s: '%s' should be a fraction of the run, 0.0 to 1.0", r->text, at + 1);
        at = end;
    } else if (*at == '@') {
        at++;
        rule.step = recipe_number(r, &at, INT_MAX - 1);
    }
    check(*at == '\0', "-p %s: '%s' in %s=%s; the form is GEMM=FORMAT:BLOCK-BLOCK/LINEAR@WHEN, "
          "WHEN an update, a fraction such as 0.8, or auto", r->text, at, name, value);
    check(r->num_rules < RECIPE_RULES, "-p %s: more than %d exceptions", r->text, RECIPE_RULES);
    r->rules[r->num_rules++] = rule;
    return 1;
}

// NAME=rn|sr|eden, for one operand; returns 0 if `name` is none.
static inline int recipe_set_rounding(Recipe* r, const char* name, const char* value) {
    static const char* names[NUM_OPERANDS] = { "X", "XT", "W", "WT", "dY", "dYT" };
    for (int i = 0; i < NUM_OPERANDS; i++) {
        if (strcmp(name, names[i]) != 0) { continue; }
        check(strcmp(value, "rn") == 0 || strcmp(value, "sr") == 0 || strcmp(value, "eden") == 0,
              "-p %s: %s is rounded rn, sr or eden, not '%s'", r->text, name, value);
        r->operands[i].rounding = value[0] == 'r' ? ROUND_NEAREST
                                : value[0] == 's' ? ROUND_STOCHASTIC : ROUND_MS_EDEN;
        return 1;
    }
    return 0;
}

// oscireset=THRESHOLD[:START[:PERIOD[:WINDOW]]]
static inline void recipe_set_reset(Recipe* r, const char* value) {
    float fields[4] = { 0.0f, 0.65f, 200.0f, 50.0f };
    const char* at = value;
    int good = 1, count = 0;
    for (; good && count < 4 && (count == 0 || *at == ':'); count++) {
        char* end;
        if (count > 0) { at++; }
        fields[count] = strtof(at, &end);
        good = end != at && *at != ' ';
        at = end;
    }
    OsciReset* reset = &r->reset;
    if (count < 4 && fields[3] > fields[2]) { fields[3] = fields[2]; }  // a window that was not given
    good = good && *at == '\0' && fields[0] >= 0.0f && fields[0] < 1e9f && fields[1] >= 0.0f
        && fields[1] <= 1.0f && fields[3] >= 1.0f && fields[3] <= fields[2] && fields[2] < 1e9f
        && fields[2] == floorf(fields[2]) && fields[3] == floorf(fields[3]);
    check(good, "-p %s: oscireset=THRESHOLD:START:PERIOD:WINDOW, for instance 8:0.65:200:50 (START a "
          "fraction of the run, the window not longer than the period)", r->text);
    reset->threshold = fields[0];
    reset->start = fields[1];
    reset->period = (int)fields[2];
    reset->window = (int)fields[3];
    reset->first = INT_MAX;
}

// What an ingredient NAME=VALUE sets in operand number `operand`; NULL: nothing, or there is no such
// ingredient.
static inline int* recipe_field(Quantizer* q, int operand, const char* name) {
    int gradient = operand == OPERAND_DY || operand == OPERAND_DYT;
    int weight = operand == OPERAND_W || operand == OPERAND_WT;
    int of_wgrad = operand == OPERAND_DYT || operand == OPERAND_XT;
    int of_backward = operand != OPERAND_X && operand != OPERAND_W;
    int transposed = operand == OPERAND_XT || operand == OPERAND_WT;
    struct { const char* name; int applies; int* field; } ingredients[] = {
        { "stochastic", gradient, (int*)&q->rounding },
        { "tile", weight, &q->tile },
        { "tile16", weight, &q->tile },         // its name in older checkpoints
        { "hadamard", of_wgrad || (of_backward && q->hadamard > 0), &q->hadamard },
        { "fresh", of_backward, &q->fresh_signs },
        { "foursix", !gradient, (int*)&q->four_six },
        { "aligned", transposed, &q->aligned },
        { "unbiased", 1, &q->unbiased },
        { "paper", 1, &q->paper_order },
    };
    for (size_t k = 0; k < sizeof(ingredients) / sizeof(ingredients[0]); k++) {
        if (strcmp(name, ingredients[k].name) == 0) {
            return ingredients[k].applies ? ingredients[k].field : NULL;
        }
    }
    return NULL;
}

// VALUE of an ingredient NAME=VALUE as the number that its field gets.
static inline int recipe_value(const Recipe* r, const char* name, const char* value) {
    if (strcmp(name, "foursix") == 0 && strcmp(value, "mse") == 0) { return FOUR_SIX_MSE; }
    if (strcmp(name, "foursix") == 0 && strcmp(value, "mae") == 0) { return FOUR_SIX_MAE; }
    check(strcmp(name, "foursix") != 0 || strcmp(value, "0") == 0 || strcmp(value, "1") == 0,
          "-p %s: foursix is 0, mse or mae, not '%s'", r->text, value);
    const char* at = value;
    int number = recipe_number(r, &at, 1024);
    check(*at == '\0', "-p %s: '%s' is not a number from 0 up", r->text, value);
    if (strcmp(name, "front") == 0 || strcmp(name, "tail") == 0) { return number; }
    if (strcmp(name, "hadamard") != 0) {
        check(number <= 1, "-p %s: %s is 0 or 1", r->text, name);
        return number;
    }
    check(number <= 1 || number == 16 || number == 32 || number == 64 || number == 128,
          "-p %s: hadamard is 0, 16, 32, 64 or 128 points", r->text);
    return number == 1 ? 16 : number;
}

static inline void recipe_set(Recipe* r, const char* name, const char* value) {
    if (recipe_set_rule(r, name, value) || recipe_set_rounding(r, name, value)) { return; }
    if (strcmp(name, "oscireset") == 0) {
        recipe_set_reset(r, value);
        return;
    }
    int front = strcmp(name, "front") == 0, tail = strcmp(name, "tail") == 0;
    int known = front || tail;
    for (int i = 0; i < NUM_OPERANDS; i++) {
        known |= recipe_field(&r->operands[i], i, name) != NULL;
    }
    check(known, "-p %s: unknown ingredient '%s'; known: front= tail= (blocks in BF16), stochastic= "
          "tile= aligned= unbiased= paper= fresh= (0 or 1), foursix=0|mse|mae, "
          "hadamard=0|16|32|64|128, X= W= XT= WT= dY= dYT= (rn, sr, eden), oscireset=, and "
          "fprop= dgrad= wgrad= forward= backward= all= (bf16, where and when)", r->text, name);
    int number = recipe_value(r, name, value);
    if (front) { r->front = number; }
    if (tail) { r->tail = number; }
    for (int i = 0; i < NUM_OPERANDS; i++) {
        int* field = recipe_field(&r->operands[i], i, name);
        if (field != NULL) { *field = number; }
    }
}

// Ingredients that only make sense together, and those that follow from others.
static inline void recipe_settle(Recipe* r) {
    for (int i = 0; i < NUM_OPERANDS; i++) {
        Quantizer* q = &r->operands[i];
        int four_bits = q->format == FORMAT_NVFP4 || q->format == FORMAT_MXFP4;
        int nvfp4 = q->format == FORMAT_NVFP4;
        if (q->rounding != ROUND_NEAREST) { q->four_six = FOUR_SIX_OFF; }   // it would be biased
        if (q->rounding != ROUND_STOCHASTIC) { q->unbiased = 0; }
        if (q->rounding == ROUND_MS_EDEN) { q->paper_order = 0; }           // it has its own scales
        if (q->hadamard == 0) { q->fresh_signs = 0; }
        if (q->format == FORMAT_FP8) { q->tile = 0; }                       // it has no blocks
        check(q->rounding == ROUND_NEAREST || four_bits,
              "-p %s: %s is rounded to nearest in %s", r->text, operand_name(i),
              format_name(q->format));
        check(nvfp4 || (q->rounding != ROUND_MS_EDEN && !q->four_six && !q->unbiased
                        && !q->paper_order), "-p %s: foursix, eden, unbiased and paper are about "
              "NVFP4's block scales, which %s lacks", r->text, format_name(q->format));
        check(q->rounding != ROUND_MS_EDEN || (q->hadamard > 0 && !q->tile),
              "-p %s: eden needs the Hadamard transform and 1x16 blocks", r->text);
        check(!q->aligned || (!q->tile && i != OPERAND_X && i != OPERAND_W), "-p %s: aligned "
              "operands have 1x16 blocks: tile=0", r->text);
        check(!(q->four_six && (q->unbiased || q->paper_order)) && !(q->unbiased
              && q->paper_order), "-p %s: foursix, unbiased and paper exclude one another",
              r->text);
    }
    const Quantizer* ops = r->operands;
    check(ops[OPERAND_DYT].hadamard == ops[OPERAND_XT].hadamard
          && ops[OPERAND_DY].hadamard == ops[OPERAND_WT].hadamard,
          "-p %s: both operands of a GEMM are transformed alike", r->text);
    check(r->reset.threshold == 0.0f || ops[OPERAND_W].format > FORMAT_BF16,
          "-p %s: oscireset is about quantized weights", r->text);
    check(r->front + r->tail <= r->L, "-p %s: front=%d and tail=%d are more than the %d blocks",
          r->text, r->front, r->tail, r->L);
    for (const RecipeRule* rule = r->rules; rule < r->rules + r->num_rules; rule++) {
        int every = rule->first == 0 && rule->last == r->L - 1;
        int inside = rule->first >= r->front && rule->last < r->L - r->tail;
        int outside = rule->last < r->front || rule->first >= r->L - r->tail;
        check(!rule->quantized || every || inside,
              "-p %s: blocks %d to %d are not all quantized, since front=%d and tail=%d go before "
              "exceptions; give a smaller front= or tail=", r->text, rule->first, rule->last,
              r->front, r->tail);
        check(every || !outside, "-p %s: an exception for blocks %d to %d has no effect: front=%d and "
              "tail=%d keep them in BF16", r->text, rule->first, rule->last, r->front, r->tail);
    }
}

// Ends the program if an ingredient that was asked for applies to no operand, as things are settled:
// it would change the recipe's name and not what is done.
static inline void recipe_check_effect(Recipe* r, const char* name, const char* value) {
    int named = 0, effective = 0;
    for (int i = 0; i < NUM_OPERANDS; i++) {
        const int* field = recipe_field(&r->operands[i], i, name);
        if (field == NULL) { continue; }
        int number = recipe_value(r, name, value);
        named = 1;
        effective |= number == 0 || *field == number;
    }
    check(!named || effective, "-p %s: %s=%s has no effect: in this recipe no operand is %s", r->text,
          name, value,
          strcmp(name, "unbiased") == 0 || strcmp(name, "stochastic") == 0 ? "rounded stochastically"
          : strcmp(name, "foursix") == 0 ? "rounded to nearest in NVFP4"
          : strcmp(name, "fresh") == 0 ? "transformed" : "quantized so");
}

// L: blocks of the model.
static inline Recipe recipe_parse(const char* text, int L) {
    Recipe r;
    memset(&r, 0, sizeof(r));
    check(strlen(text) < sizeof(r.text), "-p %s: too long", text);
    size_t bytes = strlen(text);
    check(bytes == 0 || (text[0] != ',' && text[bytes - 1] != ',' && strstr(text, ",,") == NULL),
          "-p %s: nothing between two commas", text);
    strcpy(r.text, text);
    r.L = L;
    r.num_steps = INT_MAX;
    char copy[sizeof(r.text)];
    strcpy(copy, text);
    char* item = strtok(copy, ",");
    const RecipePreset* preset = item != NULL ? recipe_preset(item) : NULL;
    if (preset != NULL) {
        recipe_apply_preset(&r, preset);
        while ((item = strtok(NULL, ",")) != NULL) {
            char* equals = strchr(item, '=');
            check(equals != NULL, "-p %s: '%s' should be name=value", text, item);
            *equals = '\0';
            recipe_set(&r, item, equals + 1);
        }
        recipe_settle(&r);
        strcpy(copy, text);
        strtok(copy, ",");
        while ((item = strtok(NULL, ",")) != NULL) {
            char* equals = strchr(item, '=');
            *equals = '\0';
            recipe_check_effect(&r, item, equals + 1);
        }
    } else {
        int bf16 = item != NULL && strcmp(item, "bf16") == 0;
        check(bf16 || (item != NULL && strcmp(item, "fp32") == 0),
              "-p %s: a recipe begins with one of " RECIPE_PRESET_NAMES, text);
        check(strtok(NULL, ",") == NULL, "-p %s: %s has no ingredients to override", text, item);
        r.base = bf16 ? FORMAT_BF16 : FORMAT_FP32;
    }
    return r;
}

// ---------------------------------------------------------------------------------------------
// What a recipe means

// The transform's signs, bit r set where it turns element r, found by what it does.
static inline unsigned recipe_hadamard_signs(void) {
    unsigned signs = 0;
    for (int r = 0; r < HADAMARD_SIZE; r++) {
        float x[HADAMARD_SIZE] = { 0 };
        x[r] = 1.0f;
        hadamard_transform(x);
        signs |= (unsigned)(x[0] < 0.0f) << r;
    }
    return signs;
}

// What is done to which operand before update `until`, in one line: what ranks must agree on (INT_MAX:
// for the whole run), and a checkpoint of that step with who resumes from it, so that a run may be
// continued with other plans for the rest. An ingredient that is off is not written, so a program
// that has learned more of them writes the same line. The caller frees it.
static inline char* recipe_meaning(const Recipe* r, int until) {
    char* text = NULL;
    size_t bytes = 0;
    FILE* to = open_memstream(&text, &bytes);
    check(to != NULL, "out of memory: the meaning of a recipe");
    fprintf(to, "signs=%04x base=%s front=%d tail=%d", recipe_hadamard_signs(),
            format_name(r->base), r->front, r->tail);
    for (int i = 0; i < NUM_OPERANDS; i++) {
        const Quantizer* q = &r->operands[i];
        const struct { const char* name; int value; } ingredients[] = {
            { "e5m2", q->e5m2 }, { "tile", q->tile }, { "rounding", q->rounding },
            { "foursix", q->four_six }, { "hadamard", q->hadamard }, { "fresh", q->fresh_signs },
            { "aligned", q->aligned }, { "unbiased", q->unbiased }, { "paper", q->paper_order },
        };
        fprintf(to, " %s=%s", operand_name(i), format_name(q->format));
        for (size_t k = 0; k < sizeof(ingredients) / sizeof(ingredients[0]); k++) {
            if (ingredients[k].value == 0) { continue; }
            fprintf(to, ",%s=%d", ingredients[k].name, ingredients[k].value);
        }
    }
    for (int i = 0; i < r->num_rules; i++) {
        const RecipeRule* rule = &r->rules[i];
        if (!rule->automatic && rule->step >= until) { continue; }
        fprintf(to, " rule=%d,%d,%d-%d,%d@%d", rule->gemms, rule->linears, rule->first, rule->last,
                rule->quantized, rule->automatic ? -1 : rule->step);
    }
    if (r->reset.threshold > 0.0f && r->reset.first < until) {
        fprintf(to, " oscireset=%g:%d:%d:%d", r->reset.threshold, r->reset.first, r->reset.period,
                r->reset.window);
    }
    check(fclose(to) == 0, "out of memory: the meaning of a recipe");
    return text;
}

// ---------------------------------------------------------------------------------------------
// In words

// "dY^T Hadamard 16, 1x16 stochastic"
static inline void recipe_print_operand(const Recipe* r, int operand, FILE* out) {
    static const char* roundings[] = { "nearest", "stochastic", "MS-EDEN" };
    const Quantizer* q = &r->operands[operand];
    int block = format_block(q->format);
    fprintf(out, "%s ", operand_name(operand));
    if (operand == OPERAND_WT && recipe_transposes_weights(r)) {
        fprintf(out, "with the codes of W");
        return;
    }
    if (q->aligned) { fprintf(out, "from the codes of %s, ", operand == OPERAND_XT ? "X" : "W"); }
    if (q->hadamard > 0) {
        fprintf(out, "Hadamard %d%s, ", q->hadamard, q->fresh_signs ? " with fresh signs" : "");
    }
    if (q->format == FORMAT_FP8) { fprintf(out, "%s, ", q->e5m2 ? "E5M2" : "E4M3"); }
    else { fprintf(out, "%dx%d ", q->tile ? block : 1, block); }
    fprintf(out, "%s", roundings[q->rounding]);
    if (q->four_six) { fprintf(out, ", four over six"); }
    if (q->unbiased) { fprintf(out, ", 16/17"); }
    if (q->paper_order) { fprintf(out, ", the paper's order"); }
}

// Does one later exception cover all of this one, as soon as it or sooner?
static inline int recipe_overridden(const Recipe* r, const RecipeRule* rule) {
    int from = rule->automatic ? 0 : rule->step;
    for (const RecipeRule* later = rule + 1; later < r->rules + r->num_rules; later++) {
        if ((rule->gemms & ~later->gemms) == 0 && (rule->linears & ~later->linears) == 0
            && later->first <= rule->first && later->last >= rule->last && later->step <= from) {
            return 1;
        }
    }
    return 0;
}

// Is anything rounded by random bits? Without them there is no noise that an automatic rule could
// measure.
static inline int recipe_is_random(const Recipe* r) {
    int random = 0;
    for (int i = 0; i < NUM_OPERANDS; i++) {
        random |= r->operands[i].rounding != ROUND_NEAREST || r->operands[i].fresh_signs;
    }
    return random;
}

static inline void recipe_print_rule(const Recipe* r, const RecipeRule* rule, FILE* out) {
    static const char* gemms[] = { "", "fprop", "dgrad", "fprop, dgrad", "wgrad", "fprop, wgrad",
                                   "dgrad, wgrad", "all GEMMs" };
    fprintf(out, "  but             %s of ", gemms[rule->gemms]);
    if (rule->first == rule->last) { fprintf(out, "block %d", rule->first); }
    else { fprintf(out, "blocks %d to %d", rule->first, rule->last); }
    for (int i = 0; i < NUM_LINEARS; i++) {
        if (rule->linears == 1 << i) { fprintf(out, ", %s alone", linear_name(i)); }
    }
    fprintf(out, ": %s", rule->quantized ? format_name(r->operands[OPERAND_X].format) : "BF16");
    if (rule->automatic) { fprintf(out, " once gradients drown in rounding noise"); }
    else if (rule->step > 0) { fprintf(out, " from update %d on", rule->step); }
    if (rule->automatic && !recipe_is_random(r)) {
        fprintf(out, ": never, nothing is rounded by random bits");
    } else if (!rule->automatic && rule->step > 0 && rule->step >= r->num_steps) {
        fprintf(out, ": never, this run has %d updates", r->num_steps);
    } else if (recipe_overridden(r, rule)) {
        fprintf(out, ": never, a later exception goes before it");
    }
    fprintf(out, "\n");
}

static inline void recipe_print(const Recipe* r, FILE* out) {
    static const char* gemms[NUM_GEMMS] = { "fprop Y=X W^T  ", "dgrad dX=dY W  ",
                                            "wgrad dW=dY^T X" };
    fprintf(out, "recipe            %s\n", r->text);
    if (r->base == FORMAT_FP32) {
        fprintf(out, "  everything      FP32\n");
        return;
    }
    int first = r->front, last = r->L - r->tail - 1;
    const char* low = format_name(r->operands[OPERAND_X].format);
    if (r->operands[OPERAND_X].format > FORMAT_BF16 && first > last) {
        fprintf(out, "  all blocks      BF16: front=%d and tail=%d leave none to quantize\n", r->front,
                r->tail);
    }
    if (r->operands[OPERAND_X].format > FORMAT_BF16 && first <= last) {
        fprintf(out, "  blocks %d to %d, linear layers in %s:\n", first, last, low);
        for (int g = 0; g < NUM_GEMMS; g++) {
            fprintf(out, "  %s ", gemms[g]);
            recipe_print_operand(r, gemm_operand(g, 0), out);
            fprintf(out, "; ");
            recipe_print_operand(r, gemm_operand(g, 1), out);
            fprintf(out, "\n");
        }
        if (r->front + r->tail > 0) {
            fprintf(out, "  other blocks    BF16 (first %d, last %d)\n", r->front, r->tail);
        }
        for (int i = 0; i < r->num_rules; i++) { recipe_print_rule(r, &r->rules[i], out); }
        if (r->reset.threshold > 0.0f) {
            int never = r->reset.first > r->num_steps - r->reset.window;
            fprintf(out, "  OsciReset       every %d updates from %.0f %% of the run on, after "
                    "watching %d; threshold %g%s\n", r->reset.period, 100.0 * r->reset.start,
                    r->reset.window, r->reset.threshold,
                    never ? ": never, this run is too short" : "");
        }
    }
    fprintf(out, "  the rest        BF16: embedding, norms, attention, GELU, head, "
            "residual stream\n");
    fprintf(out, "  FP32            master weights, AdamW moments, weight gradients, loss\n");
}

#endif
