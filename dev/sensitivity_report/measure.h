/*
What dev/sensitivity measures of a checkpoint, for the C and the CUDA program. sensitivity_cpu.c and
sensitivity_cuda.cu include a trainer and this file, and put their model behind MeasuredModel.

    gradients   of one micro-batch of -i: under the recipe, twice with different random bits; with
                one of the three GEMMs quantized; in BF16. Sums of squares of each weight's
    operands    of every quantized GEMM in the first of these: operand_stats.h
    losses      of each row of the validation data -j: in BF16; all linear layers quantized; all but
                one; one alone; the same for whole blocks; and the post-training check: weights, or
                weights and activations, quantized by the plain quantizers of the recipe's format

Each loss is that of a recipe as a trainer takes it with -p. All of them are computed with one model,
which has memory for both precisions and is told another recipe each time.

Everything is written to -o as JSON: raw sums and losses, from which findings.py computes what the
report says. Standard output shows the progress.

C11 that also compiles as C++17.
*/
#ifndef DEV_MEASURE_H
#define DEV_MEASURE_H

#include "dev/sensitivity_report/operand_stats.h"
#include "llmc/checkpoint.h"
#include "llmc/dataloader.h"
#include "llmc/hadamard.h"
#include "llmc/noise_trigger.h"
#include "llmc/recipe.h"
#include "llmc/weight_ranges.h"

#ifndef GIT_COMMIT
#define GIT_COMMIT "unknown"    // the Makefile passes the commit
#endif

#define MEASURE_NUM_FLAGS 10
#define MEASURE_RECIPE_BYTES 256
#define MEASURE_MOST_KEPT 12    // blocks that a recipe's exceptions can name

typedef struct {
    const char* model;          // the model file
    const char* val_data;
    const char* train_data;     // "": val_data
    const char* recipe;
    const char* gemm_path;
    const char* output;
    int B, T;                   // T 0: the model's context
    int64_t val_tokens;         // 0: all
    uint64_t seed;              // of the order of -i's rows, and of random bits
} MeasureConfig;

// What a program can do with its model.
typedef struct {
    // New masters (num_params; NULL: the old ones) and a recipe, and whatever follows from them.
    void (*prepare)(const Recipe* recipe, const float* params);
    // losses (B,T) of a batch
    void (*losses)(float* losses, const int* inputs, const int* targets, int B, int T);
    // grads (num_params) of the mean loss of a batch, with the random bits of `seed`
    void (*gradient)(float* grads, const int* inputs, const int* targets, int B, int T,
                     uint64_t seed);
} MeasuredModel;

typedef struct {
    MeasureConfig config;
    Flag flags[MEASURE_NUM_FLAGS];
    GPT2Config model;
    ParamSpec specs[NUM_PARAMS];
    size_t num_params;
    float* params;              // (num_params) the checkpoint's
    Recipe recipe;              // with memory for both precisions: the one to build a model for
    Recipe now;                 // what the model was prepared for
    MeasuredModel of;
    int observes;               // measure_operand counts
    DataLoader val, train;
    uint64_t val_rows;
    int* inputs;                // (B,T)
    int* targets;               // (B,T)
    FILE* json;
    const char* separator;      // before the next item of a JSON list
    int done, total;            // passes through data
    double start, last_line;
} Measure;

// ---------------------------------------------------------------------------------------------
// Start

static inline void measure_flags(Measure* m) {
    MeasureConfig* c = &m->config;
    const Flag flags[] = {
        { "-e",    's', &c->model,      0, 0,    0, "model file, as the trainers write it" },
        { "-p",    's', &c->recipe,     0, 0,    0, "recipe whose format is examined; tail=0" },
        { "-j",    's', &c->val_data,   0, 0,    0, "files with validation tokens" },
        { "-vt",   'l', &c->val_tokens, 0, 1e15, 0, "validation tokens (0: all)" },
        { "-i",    's', &c->train_data, 0, 0,    0, "tokens for gradients (empty: as -j)" },
        { "-b",    'i', &c->B,          1, 1e6,  0, "rows of a micro-batch" },
        { "-t",    'i', &c->T,          0, 1e6,  0, "tokens of a row (0: the model's context)" },
        { "-seed", 'u', &c->seed,       0, 0,    0, "seed of random bits and the order of -i" },
        { "-g",    's', &c->gemm_path,  0, 0,    0, "GEMM of a GPU: auto, emulated, fp4, fp8" },
        { "-o",    's', &c->output,     0, 0,    0, "JSON file to write" },
    };
    static_assert(sizeof(flags) == MEASURE_NUM_FLAGS * sizeof(Flag), "MEASURE_NUM_FLAGS");
    c->model = c->train_data = c->output = "";
    c->recipe = "nvfp4,tail=0";
    c->val_data = "data/quickstart_val.bin";
    c->gemm_path = "auto";
    c->B = 4;
    c->T = 0;
    c->val_tokens = 65536;
    c->seed = 1337;
    memcpy(m->flags, flags, sizeof(flags));
}

__attribute__((format(printf, 2, 3)))
static inline void measure_text(char* text /* (MEASURE_RECIPE_BYTES) */, const char* format, ...) {
    va_list values;
    va_start(values, format);
    int length = vsnprintf(text, MEASURE_RECIPE_BYTES, format, values);
    va_end(values);
    check(length < MEASURE_RECIPE_BYTES, "-p %s...: too long with what is measured", text);
}

// The recipe that `text` and `more` name, for this model.
static inline Recipe measure_recipe(const Measure* m, const char* text, const char* more) {
    char whole[MEASURE_RECIPE_BYTES];
    measure_text(whole, "%s%s", text, more);
    return recipe_parse(whole, m->model.L);
}

// Every layer is measured in both precisions, so the recipe itself must not except any.
static inline void measure_check_recipe(Measure* m) {
    const char* text = m->config.recipe;
    Recipe r = measure_recipe(m, text, "");
    check(r.operands[OPERAND_X].format > FORMAT_BF16, "-p %s quantizes nothing; for instance -p "
          "nvfp4,tail=0", text);
    check(r.front == 0 && r.tail == 0 && r.num_rules == 0, "-p %s: this measures every linear layer "
          "in both precisions, so the recipe must not keep any out: write tail=0, and no exceptions",
          text);
    // an exception that never becomes due: both precisions may be needed, so there is memory for both
    m->recipe = measure_recipe(m, text, ",all=bf16@auto");
}

static inline void measure_open_data(Measure* m) {
    MeasureConfig* c = &m->config;
    dataloader_open(&m->val, c->val_data, c->T, m->model.V, 0, c->seed);
    uint64_t wanted = (uint64_t)c->val_tokens / (uint64_t)c->T;
    check(c->val_tokens == 0 || wanted > 0, "-vt %" PRId64 " tokens are less than one row, -t %d",
          c->val_tokens, c->T);
    check(wanted <= m->val.num_rows, "-vt %" PRId64 ": %s has only %" PRIu64 " rows of -t %d tokens",
          c->val_tokens, c->val_data, m->val.num_rows, c->T);
    m->val_rows = wanted > 0 ? wanted : m->val.num_rows;
    if (c->train_data[0] == '\0') { c->train_data = c->val_data; }
    dataloader_open(&m->train, c->train_data, c->T, m->model.V, 1, c->seed);
    size_t batch = (size_t)c->B * (size_t)c->T * sizeof(int);
    m->inputs = (int*)xmalloc(batch, "a batch of tokens");
    m->targets = (int*)xmalloc(batch, "a batch of tokens");
}

// argv as main got it.
static inline void measure_open(Measure* m, int argc, char** argv) {
    Ranks ranks;
    char meet[WATCHDOG_TEXT];
    MeasureConfig* c = &m->config;
    memset(m, 0, sizeof(*m));
    memset(&ranks, 0, sizeof(ranks));
    measure_flags(m);
    flags_parse(m->flags, MEASURE_NUM_FLAGS, argc, argv);
    ranks_find(&ranks, meet, sizeof(meet));
    check(ranks.size == 1, "started as one of %d ranks; this program measures on one", ranks.size);
    check(file_exists(c->model), "-e %s: no such file; it takes a model_*.bin that a trainer wrote",
          c->model);
    check(c->output[0] != '\0', "-o FILE has to say where the numbers go");
    m->model = checkpoint_read_config(c->model);
    measure_check_recipe(m);
    if (c->T == 0) { c->T = m->model.max_T; }
    check(c->T <= m->model.max_T, "-t %d is longer than the model's context of %d tokens", c->T,
          m->model.max_T);
    check(c->T % 16 == 0, "-t %d: must be a multiple of 16, a recipe's block of tokens", c->T);
    measure_open_data(m);
    Range all = { 0, gpt2_param_specs(m->specs, &m->model) };
    m->num_params = all.count;
    m->params = (float*)xmalloc(all.count * sizeof(float), "parameters");
    checkpoint_load_model(m->params, c->model, all);
}

// ---------------------------------------------------------------------------------------------
// Progress and JSON

__attribute__((format(printf, 2, 3)))
static inline void measure_progress(Measure* m, const char* format, ...) {
    char what[2 * MEASURE_RECIPE_BYTES];
    va_list values;
    double now = seconds_now();
    m->done++;
    if (now - m->last_line < 1.0 && m->done > 1 && m->done < m->total) { return; }
    m->last_line = now;
    va_start(values, format);
    vsnprintf(what, sizeof(what), format, values);
    va_end(values);
    int left = (int)((now - m->start) / m->done * (m->total - m->done));
    printf("%d of %d, %d:%02d left | %s\n", m->done, m->total, left / 60, left % 60, what);
    fflush(stdout);
}

static inline void measure_begin_list(Measure* m, const char* name) {
    fprintf(m->json, ",\n\"%s\":[", name);
    m->separator = "\n";
}

// The beginning of an item of a list: which layer it is about, -1 for all. The caller goes on
// with a comma.
static inline void measure_begin_item(Measure* m, int layer, int linear) {
    fprintf(m->json, "%s{", m->separator);
    m->separator = ",\n";
    if (layer < 0) { fprintf(m->json, "\"layer\":null"); }
    else { fprintf(m->json, "\"layer\":%d", layer); }
    if (linear < 0) { fprintf(m->json, ",\"linear\":null"); }
    else { fprintf(m->json, ",\"linear\":\"%s\"", linear_name(linear)); }
}

static inline void measure_begin_json(Measure* m, const char* program, const char* device) {
    const GPT2Config* c = &m->model;
    m->json = file_create(m->config.output);
    fprintf(m->json, "{\"program\":\"%s\",\"commit\":\"%s\",\"device\":", program, GIT_COMMIT);
    json_string(m->json, device);
    fprintf(m->json, ",\n\"flags\":{");
    flags_json(m->json, m->flags, MEASURE_NUM_FLAGS);
    fprintf(m->json, "},\n\"model\":{\"layers\":%d,\"channels\":%d,\"heads\":%d,\"vocab\":%d,"
            "\"context\":%d,\"parameters\":%zu},\n\"format\":\"%s\",\"val_data\":\"%016" PRIx64
            "\",\"train_data\":\"%016" PRIx64 "\",\"val_rows\":%" PRIu64, c->L, c->C, c->NH, c->V,
            c->max_T, m->num_params, format_name(m->recipe.operands[OPERAND_X].format),
            m->val.identity, m->train.identity, m->val_rows);
}

// ---------------------------------------------------------------------------------------------
// Operands: the program's observer calls these

// source (rows, cols): what the quantizer made x_q from. Both lie in host memory.
static inline void measure_operand(Measure* m, int layer, int linear, int operand,
                                   const float* source, const Nvfp4Matrix* x_q) {
    Quantizer q = m->now.operands[operand];
    if (operand == OPERAND_WT && recipe_transposes_weights(&m->now)) { return; }    // it is W
    OperandStats s = operand_stats(source, x_q, q);
    measure_begin_item(m, layer, linear);
    fprintf(m->json, ",\"operand\":\"%s\",\"rows\":%d,\"cols\":%d,\"amax\":%.9g,\"nonzero\":%" PRId64
            ",\"flushed\":%" PRId64 ",\"saturated\":%" PRId64 ",\"signal\":%.17g,\"noise\":%.17g,"
            "\"choices\":%" PRId64 ",\"fours\":%" PRId64 ",\"blocks\":%" PRId64
            ",\"zero_scales\":%" PRId64, operand_name(operand), x_q->rows, x_q->cols,
            (double)*x_q->amax, s.nonzero, s.flushed, s.saturated, s.signal, s.noise, s.choices,
            s.fours, s.blocks, s.zero_scales);
    int first = 0, last = STATS_EXPONENTS - 1;
    while (first <= last && s.scales[first] == 0) { first++; }
    while (last > first && s.scales[last] == 0) { last--; }
    fprintf(m->json, ",\"first_exponent\":%d,\"scales\":[", first - STATS_EXPONENTS / 2);
    for (int e = first; e <= last; e++) {
        fprintf(m->json, "%s%" PRId64, e > first ? "," : "", s.scales[e]);
    }
    fprintf(m->json, "]}");
}

// The same from the tensor that the operand is of: (cols, rows) for the operands named ^T.
static inline void measure_tensor(Measure* m, int layer, int linear, int operand,
                                  const float* tensor, const Nvfp4Matrix* x_q) {
    const Quantizer* q = &m->now.operands[operand];
    int rows = x_q->rows, cols = x_q->cols;
    int wgrad = operand == OPERAND_XT || operand == OPERAND_DYT;    // contracts tokens, row by row
    Rotation rotation;
    memset(&rotation, 0, sizeof(rotation));
    if (q->hadamard > 0) {
        rotation = rotation_make(rotation_size(q->hadamard, wgrad ? m->config.T : cols),
                                 q->fresh_signs, m->config.seed,
                                 operand_tag(layer, linear, wgrad ? OPERAND_DYT : OPERAND_DY), 0);
    }
    float* source = (float*)xmalloc((size_t)rows * (size_t)cols * sizeof(float), "an operand");
    if (wgrad || operand == OPERAND_WT) {
        rotation_transpose(source, tensor, cols, rows, &rotation);
    } else {
        memcpy(source, tensor, (size_t)rows * (size_t)cols * sizeof(float));
        rotation_rows(source, rows, cols, &rotation);
    }
    measure_operand(m, layer, linear, operand, source, x_q);
    free(source);
}

// ---------------------------------------------------------------------------------------------
// Gradients

// The gradient of the micro-batch under the recipe with `more` exceptions.
static inline void measure_gradient(Measure* m, float* grads, const char* more, uint64_t seed) {
    const MeasureConfig* c = &m->config;
    m->now = measure_recipe(m, c->recipe, more);
    m->of.prepare(&m->now, NULL);
    m->of.gradient(grads, m->inputs, m->targets, c->B, c->T, seed);
    measure_progress(m, "gradient, -p %s%s", c->recipe, more);
}

typedef struct { double squares, reference, difference; } GradientSums;

// Sums of squares of a, of b, and of a - b (n each); pieces of 65,536 elements, then their sums.
static inline GradientSums gradient_sums(const float* a, const float* b, size_t n) {
    size_t piece = 65536, pieces = (n + piece - 1) / piece;
    GradientSums* parts = (GradientSums*)xcalloc(pieces * sizeof(GradientSums), "sums of squares");
    GradientSums sum = { 0.0, 0.0, 0.0 };
    #pragma omp parallel for
    for (size_t p = 0; p < pieces; p++) {
        for (size_t i = p * piece; i < n && i < (p + 1) * piece; i++) {
            double x = (double)a[i], y = (double)b[i];
            parts[p].squares += x * x;
            parts[p].reference += y * y;
            parts[p].difference += (x - y) * (x - y);
        }
    }
    for (size_t p = 0; p < pieces; p++) {
        sum.squares += parts[p].squares;
        sum.reference += parts[p].reference;
        sum.difference += parts[p].difference;
    }
    free(parts);
    return sum;
}

// One item for all parameters and one for each linear layer's weight: a (num_params) against b.
static inline void measure_compare(Measure* m, const char* a_name, const float* a,
                                   const char* b_name, const float* b) {
    for (int i = -1; i < m->model.L * NUM_LINEARS; i++) {
        int layer = i < 0 ? -1 : i / NUM_LINEARS, linear = i < 0 ? -1 : i % NUM_LINEARS;
        size_t first = 0, count = m->num_params;
        if (i >= 0) {
            first = gpt2_param_offset(m->specs, linear_param(linear), layer);
            count = m->specs[linear_param(linear)].size;
        }
        GradientSums s = gradient_sums(a + first, b + first, count);
        measure_begin_item(m, layer, linear);
        fprintf(m->json, ",\"of\":\"%s\",\"against\":\"%s\",\"squares\":%.17g,\"reference\":%.17g,"
                "\"difference\":%.17g}", a_name, b_name, s.squares, s.reference, s.difference);
    }
}

// Operands and gradients.
static inline void measure_gradients(Measure* m) {
    static const struct { const char* gemm; const char* others; } alone[NUM_GEMMS] = {
        { "fprop", ",backward=bf16" }, { "dgrad", ",fprop=bf16,wgrad=bf16" },
        { "wgrad", ",fprop=bf16,dgrad=bf16" },
    };
    size_t bytes = m->num_params * sizeof(float);
    float* bf16 = (float*)xmalloc(bytes, "gradients");
    float* all = (float*)xmalloc(bytes, "gradients");
    float* other = (float*)xmalloc(bytes, "gradients");
    dataloader_batch(&m->train, m->inputs, m->targets, 0, m->config.B);
    measure_gradient(m, bf16, ",all=bf16", m->config.seed);
    measure_begin_list(m, "operands");
    m->observes = 1;
    measure_gradient(m, all, ",all=bf16@auto", m->config.seed);     // never due: see above
    m->observes = 0;
    fprintf(m->json, "]");
    measure_begin_list(m, "gradients");
    measure_compare(m, "all", all, "bf16", bf16);
    measure_gradient(m, other, ",all=bf16@auto", noise_trigger_seed(m->config.seed));
    measure_compare(m, "all", all, "other bits", other);
    for (int g = 0; g < NUM_GEMMS; g++) {
        measure_gradient(m, other, alone[g].others, m->config.seed);
        measure_compare(m, alone[g].gemm, other, "bf16", bf16);
    }
    fprintf(m->json, "]");
    free(bf16);
    free(all);
    free(other);
}

// ---------------------------------------------------------------------------------------------
// Losses

// params (num_params) with every linear layer's weight as the recipe `text` quantizes W, from its
// BF16 values; the model rounds the result to BF16 once more, when it is told.
static inline void measure_quantize_weights(const Measure* m, float* params, const char* text) {
    Recipe r = measure_recipe(m, text, "");
    Quantizer quantizer = r.operands[OPERAND_W];
    Nvfp4Rounding to_nearest;
    memset(&to_nearest, 0, sizeof(to_nearest));
    for (int i = 0; i < m->model.L * NUM_LINEARS; i++) {
        const ParamSpec* spec = &m->specs[linear_param(i % NUM_LINEARS)];
        float* w = params + gpt2_param_offset(m->specs, linear_param(i % NUM_LINEARS),
                                              i / NUM_LINEARS);
        size_t rows = (size_t)spec->rows, cols = (size_t)spec->cols;
        for (size_t j = 0; j < spec->size; j++) { w[j] = bf16_round(w[j]); }
        float amax = bits_float(nvfp4_matrix_amax_bits(w, rows, cols));
        Nvfp4Matrix q = { spec->rows, spec->cols, NULL, NULL, &amax };
        q.codes = (uint8_t*)xmalloc(quantized_codes_size(quantizer.format, rows, cols), "codes");
        q.block_scales = (uint8_t*)xmalloc(quantized_scales_size(quantizer.format, rows, cols),
                                           "block scales");
        quantized_make(&q, w, quantizer, to_nearest);
        quantized_expand(w, &q, quantizer);
        float scale = quantizer_tensor_scale(quantizer, amax).scale;
        for (size_t j = 0; j < spec->size; j++) { w[j] *= scale; }
        free(q.codes);
        free(q.block_scales);
    }
}

// Losses of the rows of the validation data, the same batches as the trainers have; returns their
// mean.
static inline double measure_rows(Measure* m) {
    const MeasureConfig* c = &m->config;
    size_t T = (size_t)c->T;
    float* losses = (float*)xmalloc((size_t)c->B * T * sizeof(float), "losses");
    double sum = 0.0;
    for (uint64_t first = 0; first < m->val_rows; first += (uint64_t)c->B) {
        uint64_t left = m->val_rows - first;
        int rows = left < (uint64_t)c->B ? (int)left : c->B;
        dataloader_batch(&m->val, m->inputs, m->targets, first, rows);
        m->of.losses(losses, m->inputs, m->targets, rows, c->T);
        for (size_t b = 0; b < (size_t)rows; b++) {
            double of_row = 0.0;
            for (size_t t = 0; t < T; t++) { of_row += (double)losses[b * T + t]; }
            of_row /= (double)T;
            check(isfinite(of_row), "-p %s: the loss of validation row %" PRIu64 " is not finite",
                  m->now.text, first + b);
            fprintf(m->json, "%s%.10g", first + b > 0 ? "," : "", of_row);
            sum += of_row;
        }
    }
    free(losses);
    return sum / (double)m->val_rows;
}

// One item: the loss under the recipe `text`, as -p takes it. `kind` says what it is for. weights:
// a recipe as whose W the weights are quantized beforehand; "": they are the checkpoint's.
static inline double measure_loss(Measure* m, const char* kind, int layer, int linear,
                                  const char* weights, const char* text) {
    float* changed = NULL;
    if (weights[0] != '\0') {
        changed = (float*)xmalloc(m->num_params * sizeof(float), "parameters");
        memcpy(changed, m->params, m->num_params * sizeof(float));
        measure_quantize_weights(m, changed, weights);
    }
    // only forward is of interest; with no exception at all weights would have no memory of their own
    m->now = measure_recipe(m, text, ",backward=bf16");
    m->of.prepare(&m->now, changed);
    measure_begin_item(m, layer, linear);
    fprintf(m->json, ",\"kind\":\"%s\",\"recipe\":\"%s\",\"weights\":\"%s\",\"rows\":[", kind, text,
            weights);
    double loss = measure_rows(m);
    fprintf(m->json, "]}");
    if (changed != NULL) { m->of.prepare(&m->now, m->params); }
    free(changed);
    measure_progress(m, "loss %.4f, -p %s%s%s", loss, text,
                     weights[0] != '\0' ? ", weights as under " : "", weights);
    return loss;
}

// Exceptions of a recipe: this layer (linear -1: this block) in `format`.
static inline void measure_exception(char* text /* (MEASURE_RECIPE_BYTES) */, const char* recipe,
                                     const char* format, int layer, int linear) {
    measure_text(text, "%s,all=%s:%d%s%s", recipe, format, layer, linear < 0 ? "" : "/",
                 linear < 0 ? "" : linear_name(linear));
}

// All layers and blocks: all but this one quantized, and this one alone. Leaves the losses with all
// but a block quantized in without (L).
static inline void measure_layers(Measure* m, double* without) {
    char text[MEASURE_RECIPE_BYTES], nothing[MEASURE_RECIPE_BYTES];
    const char* low = format_name(m->recipe.operands[OPERAND_X].format);
    measure_text(nothing, "%s,all=bf16", m->config.recipe);
    for (int layer = 0; layer < m->model.L; layer++) {
        for (int linear = -1; linear < NUM_LINEARS; linear++) {
            measure_exception(text, m->config.recipe, "bf16", layer, linear);
            double loss = measure_loss(m, "all but", layer, linear, "", text);
            if (linear < 0) { without[layer] = loss; }
            measure_exception(text, nothing, low, layer, linear);
            measure_loss(m, "only", layer, linear, "", text);
        }
    }
}

// As many blocks in BF16 as the paper keeps: the last ones, and those without which the loss is
// lowest, of `without` (L).
static inline void measure_kept_blocks(Measure* m, const double* without) {
    char text[MEASURE_RECIPE_BYTES], longer[MEASURE_RECIPE_BYTES];
    int L = m->model.L, count = recipe_default_tail(L);
    int* kept = (int*)xcalloc((size_t)L * sizeof(int), "blocks");
    if (count > MEASURE_MOST_KEPT) { count = MEASURE_MOST_KEPT; }
    for (int i = 0; i < count; i++) {
        int best = -1;
        for (int layer = 0; layer < L; layer++) {
            if (!kept[layer] && (best < 0 || without[layer] < without[best])) { best = layer; }
        }
        kept[best] = 1;
    }
    measure_text(text, "%s,all=bf16:%d-%d", m->config.recipe, L - count, L - 1);
    measure_loss(m, "last blocks", -1, -1, "", text);
    measure_text(text, "%s", m->config.recipe);
    for (int layer = 0; layer < L; layer++) {
        if (!kept[layer]) { continue; }
        measure_exception(longer, text, "bf16", layer, -1);
        strcpy(text, longer);
    }
    measure_loss(m, "best blocks", -1, -1, "", text);
    free(kept);
}

// The plain quantizers of a format, number `i`, as a recipe: in tiles and in rows, without and with
// Four Over Six, where the format has that. Returns 0 if there is none of that number.
static inline int measure_plain_recipe(char* text /* (MEASURE_RECIPE_BYTES) */, Format f, int i) {
    int count = f == FORMAT_NVFP4 ? 4 : f == FORMAT_MXFP4 ? 2 : 1;
    const char* name = format_name(f);
    if (count == 1) { measure_text(text, "%s", name); }
    else {
        measure_text(text, "%s,tail=0,tile=%d%s", name, i < count / 2,
                     f == FORMAT_NVFP4 && i % 2 ? ",foursix=mse" : "");
    }
    return i < count;
}

static inline void measure_losses(Measure* m) {
    char text[MEASURE_RECIPE_BYTES], nothing[MEASURE_RECIPE_BYTES];
    double* without = (double*)xcalloc((size_t)m->model.L * sizeof(double), "losses");
    Format format = m->recipe.operands[OPERAND_X].format;
    measure_begin_list(m, "losses");
    measure_text(nothing, "%s,all=bf16", m->config.recipe);
    measure_loss(m, "none", -1, -1, "", nothing);
    measure_loss(m, "all", -1, -1, "", m->config.recipe);
    for (int i = 0; measure_plain_recipe(text, format, i); i++) {
        measure_text(nothing, "%s,all=bf16", text);
        measure_loss(m, "weights", -1, -1, text, nothing);
        measure_loss(m, "weights and activations", -1, -1, "", text);
    }
    measure_layers(m, without);
    measure_kept_blocks(m, without);
    fprintf(m->json, "]");
    free(without);
}

// ---------------------------------------------------------------------------------------------

// Everything, once a model was built for m->recipe and m->of leads to it.
static inline void measure_run(Measure* m, const char* program, const char* device) {
    char text[MEASURE_RECIPE_BYTES];
    int plain = 0;
    while (measure_plain_recipe(text, m->recipe.operands[OPERAND_X].format, plain)) { plain++; }
    m->total = 3 + NUM_GEMMS + 2 + 2 * plain + 2 * m->model.L * (1 + NUM_LINEARS) + 2;
    m->start = seconds_now();
    printf("%s, commit %s, on %s: %s, %d layers, %d channels; %" PRIu64 " validation rows of %d "
           "tokens\n", program, GIT_COMMIT, device, m->config.model, m->model.L, m->model.C,
           m->val_rows, m->config.T);
    m->now = m->recipe;
    m->of.prepare(&m->now, m->params);
    measure_begin_json(m, program, device);
    measure_gradients(m);
    measure_losses(m);
    fprintf(m->json, "}\n");
    check(ferror(m->json) == 0, "cannot write %s", m->config.output);
    file_commit(m->json, m->config.output);
    dataloader_close(&m->val);
    dataloader_close(&m->train);
    free(m->inputs);
    free(m->targets);
    free(m->params);
}

#endif
