/*
Trains GPT-2 on the CPU in plain C: the definition of correct.

All arithmetic is FP32. The low-precision recipes (-p bf16, -p nvfp4 and so on) round and quantize
what enters a GEMM and what the GPU program would store in BF16, with the very functions of
llmc/quantizer.h; so this program shows what a recipe does to a loss curve without a GPU, and it is
the oracle of train_gpt2_nvfp4.cu, which has the same functions in the same order.

Read: gpt2_forward, gpt2_backward, gpt2_update below; then llmc/recipe.h (which GEMM gets what),
llmc/quantized_linear.h (the linear layer), llmc/quantizer.h (the formats), llmc/layers_cpu.h (the
rest of the model). Everything about running (flags, data, log, checkpoints) is shared with the CUDA
program and lives in llmc/ too.

Started by mpirun -np N it trains with N processes ("ranks"), each of which takes its rows of every
batch; llmc/shards.h says who holds what. With one rank the calls for that do nothing. What N ranks
compute differs from what one computes only by the order of sums over tokens.

Errors end the program with one message; a library would return them. Results do not depend on the
number of threads.
*/
#include <math.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "llmc/adamw.h"             // adamw_element
#include "llmc/gpt2.h"              // GPT2Config, ParamSpec, gpt2_init_part
#include "llmc/guards.h"            // Guards: look for silent faults
#include "llmc/layers_cpu.h"        // encoder, layernorm, attention, gelu, classifier
#include "llmc/noise_trigger.h"     // when @auto rules of a recipe begin to hold
#include "llmc/osci_reset.h"        // weights that oscillate between two codes
#include "llmc/quantized_linear.h"  // linear_forward, linear_backward
#include "llmc/sampler.h"           // sample_token
#include "llmc/shards.h"            // Shards: which part of the parameters a rank holds
#include "llmc/train_run.h"         // TrainRun: flags, data, log, checkpoints
#include "llmc/weights_cpu.h"       // Weights: rounded and quantized after an update

// ---------------------------------------------------------------------------------------------
// The model and what one micro-batch leaves behind for the backward pass

typedef struct {            // of one block
    float* ln1;             // (B,T,C)
    float* ln1_mean;        // (B,T)
    float* ln1_rstd;        // (B,T)
    float* qkv;             // (B,T,3C)
    float* lse;             // (B,NH,T)     log-sum-exp of the attention scores
    float* atty;            // (B,T,C)      attention's output
    float* residual2;       // (B,T,C)      after attention
    float* ln2;             // (B,T,C)
    float* ln2_mean;        // (B,T)
    float* ln2_rstd;        // (B,T)
    float* fch;             // (B,T,4C)     before GELU
    float* fch_gelu;        // (B,T,4C)
    float* residual3;       // (B,T,C)      after the MLP
} BlockActivations;

typedef struct {
    float* encoded;         // (B,T,C)
    BlockActivations* blocks;   // (L)
    float* lnf;             // (B,T,C)
    float* lnf_mean;        // (B,T)
    float* lnf_rstd;        // (B,T)
    float* logits;          // (B,T,Vp)     overwritten by their gradient
    float* losses;          // (B,T)
    // scratch
    float* proj;            // (B,T,C)      output of a projection, before it joins the
                            //              residual stream
    float* dresidual;       // (B,T,C)      gradient flowing down the residual stream
    float* dbt4c;           // (B,T,4C)     gradient inside a branch
    float* dbtc;            // (B,T,C)      likewise
} Activations;

// What osci_reset.h watches, of the parameters that a rank owns; NULL if the recipe does without.
typedef struct {
    float* d_w;             // (own)
    float* d_q;             // (own)
    float* w_before;        // (own)        as they were before the update
    float* q_before;        // (own)
} Oscillation;

typedef struct {
    GPT2Config config;
    Recipe recipe;
    uint64_t seed;
    ParamSpec specs[NUM_PARAMS];
    size_t num_params;
    Shards shards;          // which of them this rank owns: with one rank, all
    float* params;          // (own)        FP32 master weights
    float* working;         // (num_params) what the layers read: the masters rounded to the
                            //              recipe's base format
    float* grads;           // (num_params) but under ZeRO-2 those of one block at a time
    ParamSpec grad_specs[NUM_PARAMS];   // where they lie in grads
    float* own_grads;       // (own)        summed over the ranks
    float* m;               // (own)        AdamW moments
    float* v;               // (own)
    Weights weights;        // the quantized ones
    Oscillation oscillation;
    Guards* guards;         // NULL: nobody looks for silent faults
    Activations acts;
    Linear linear;
    int B, T;               // most that acts can hold
    uint32_t micro_step;    // counts micro-batches over the run; stochastic rounding draws by it
} GPT2;

static float* param(const GPT2* model, int p, int layer) {
    return model->working + gpt2_param_offset(model->specs, p, layer);
}

static float* grad(const GPT2* model, int p, int layer) {
    const ParamSpec* specs = model->grad_specs;     // of all blocks, or of one for all
    return model->grads + gpt2_param_offset(specs, p, layer % specs[p].layers);
}

static float* alloc_floats(size_t n, const char* what) {
    return (float*)xmalloc(n * sizeof(float), what);
}

// What the layers read follows from the masters; called whenever those change.
static void gpt2_refresh_working(GPT2* model) {
    Range own = model->shards.own;
    float* working = model->working + own.first;
    if (model->recipe.base != FORMAT_FP32) {            // else the masters lie in working
        memcpy(working, model->params, own.count * sizeof(float));
        round_to(model->recipe.base, working, own.count);
    }
    weights_refresh(&model->weights, model->linear.a);
}

static void activations_alloc(Activations* a, const GPT2Config* config, size_t B, size_t T) {
    size_t L = (size_t)config->L, NH = (size_t)config->NH, BT = B * T, BTC = BT * (size_t)config->C;
    a->blocks = (BlockActivations*)xcalloc(L * sizeof(BlockActivations), "blocks");
    for (size_t l = 0; l < L; l++) {
        BlockActivations* b = &a->blocks[l];
        struct { float** at; size_t size; } tensors[] = {
            { &b->ln1, BTC },       { &b->ln1_mean, BT },   { &b->ln1_rstd, BT },
            { &b->qkv, 3 * BTC },   { &b->lse, BT * NH },   { &b->atty, BTC },
            { &b->residual2, BTC }, { &b->ln2, BTC },       { &b->ln2_mean, BT },
            { &b->ln2_rstd, BT },   { &b->fch, 4 * BTC },   { &b->fch_gelu, 4 * BTC },
            { &b->residual3, BTC },
        };
        for (size_t i = 0; i < sizeof(tensors) / sizeof(tensors[0]); i++) {
            *tensors[i].at = alloc_floats(tensors[i].size, "activations of a block");
        }
    }
    a->encoded = alloc_floats(BTC, "encoded");
    a->lnf = alloc_floats(BTC, "lnf");
    a->lnf_mean = alloc_floats(BT, "lnf_mean");
    a->lnf_rstd = alloc_floats(BT, "lnf_rstd");
    a->logits = alloc_floats(BT * (size_t)config->Vp, "logits");
    a->losses = alloc_floats(BT, "losses");
    a->proj = alloc_floats(BTC, "proj");
    a->dresidual = alloc_floats(BTC, "dresidual");
    a->dbt4c = alloc_floats(4 * BTC, "dbt4c");
    a->dbtc = alloc_floats(BTC, "dbtc");
}

// Gradients: of everything at once; or, under ZeRO-2, of one block and what lies outside the
// blocks, and apart from those the sums of what this rank owns.
static void gradients_alloc(GPT2* model) {
    GPT2Config config = model->config;
    if (model->shards.level == 2) { config.L = 1; }
    size_t n = gpt2_param_specs(model->grad_specs, &config);
    model->grads = (float*)xcalloc(n * sizeof(float), "gradients");
    model->own_grads = model->shards.level < 2 ? model->grads + model->shards.own.first
                     : (float*)xcalloc(model->shards.own.count * sizeof(float), "gradients");
}

// `shards` tells which rank of how many this is, and is of the size of the model's parameters.
static void gpt2_build(GPT2* model, GPT2Config config, Recipe recipe, int B, int T, uint64_t seed,
                       const Shards* shards) {
    memset(model, 0, sizeof(*model));
    gemm_cpu_init();
    gemm_cpu_ranks = shards->ranks->size;
    model->config = config;
    model->recipe = recipe;
    model->seed = seed;
    model->B = B;
    model->T = T;
    model->shards = *shards;
    size_t n = model->num_params = gpt2_param_specs(model->specs, &config);
    Range own = shards->own;
    model->working = (float*)xcalloc(n * sizeof(float), "parameters");
    model->params = recipe.base == FORMAT_FP32 ? model->working + own.first
                                               : alloc_floats(own.count, "master weights");
    model->m = (float*)xcalloc(own.count * sizeof(float), "AdamW moments");
    model->v = (float*)xcalloc(own.count * sizeof(float), "AdamW moments");
    gradients_alloc(model);
    if (recipe.reset.threshold > 0.0f) {
        Oscillation* o = &model->oscillation;
        o->d_w = (float*)xcalloc(own.count * sizeof(float), "sums of OsciReset");
        o->d_q = (float*)xcalloc(own.count * sizeof(float), "sums of OsciReset");
        o->w_before = alloc_floats(own.count, "weights before the update");
        o->q_before = alloc_floats(own.count, "weights before the update");
    }

    activations_alloc(&model->acts, &config, (size_t)B, (size_t)T);
    linear_alloc(&model->linear, &model->recipe, (size_t)B * (size_t)T, (size_t)config.C);
    model->linear.recipe = &model->recipe;
    model->linear.T = T;
    model->linear.seed = seed;
    model->linear.micro_steps = 1;
    model->linear.ranks = shards->ranks;
    weights_alloc(&model->weights, shards, &model->recipe, model->specs, config.L, seed,
                  model->working);
    gpt2_init_part(model->params, own.first, own.count, model->specs, &config, seed);
    gpt2_refresh_working(model);
}

// ---------------------------------------------------------------------------------------------
// Forward, backward, update

// The linear layer `linear` of block `layer`, for the calls of linear_forward and linear_backward.
static const Linear* linear_at(GPT2* model, int layer, int linear) {
    model->linear.layer = layer;
    model->linear.linear = linear;
    model->linear.weight = &model->weights.quantized[layer * NUM_LINEARS + linear];
    model->linear.micro_step = model->micro_step;
    return &model->linear;
}

// Runs inputs (B,T) through the model and returns the mean loss against targets (B,T). With
// dloss not 0 the gradient of dloss * (sum of the losses) by the logits takes the logits'
// place, for gpt2_backward.
static float gpt2_forward(GPT2* model, const int* inputs, const int* targets, int B, int T,
                          float dloss) {
    Activations* a = &model->acts;
    Format base = model->recipe.base;
    int C = model->config.C, NH = model->config.NH, V = model->config.V, Vp = model->config.Vp;
    int BT = B * T;
    size_t BTC = (size_t)BT * (size_t)C;
    check(B <= model->B && T <= model->T && T <= model->config.max_T,
          "a batch of %d x %d tokens does not fit a model built for %d x %d", B, T, model->B,
          model->T);

    encoder_forward(a->encoded, inputs, param(model, WTE, 0), param(model, WPE, 0), B, T, C);
    round_to(base, a->encoded, BTC);
    const float* residual = a->encoded;
    for (int l = 0; l < model->config.L; l++) {
        BlockActivations* b = &a->blocks[l];
        layernorm_forward(b->ln1, b->ln1_mean, b->ln1_rstd, residual, param(model, LN1W, l),
                          param(model, LN1B, l), BT, C);
        round_to(base, b->ln1, BTC);
        linear_forward(b->qkv, b->ln1, param(model, QKVW, l), param(model, QKVB, l), BT, C, 3 * C,
                       linear_at(model, l, LINEAR_QKV));
        attention_forward(b->atty, b->lse, b->qkv, B, T, NH, C / NH, base == FORMAT_BF16);
        round_to(base, b->atty, BTC);
        linear_forward(a->proj, b->atty, param(model, PROJW, l), param(model, PROJB, l), BT, C, C,
                       linear_at(model, l, LINEAR_PROJ));
        residual_forward(b->residual2, residual, a->proj, BTC);
        round_to(base, b->residual2, BTC);

        layernorm_forward(b->ln2, b->ln2_mean, b->ln2_rstd, b->residual2, param(model, LN2W, l),
                          param(model, LN2B, l), BT, C);
        round_to(base, b->ln2, BTC);
        linear_forward(b->fch, b->ln2, param(model, FCW, l), param(model, FCB, l), BT, C, 4 * C,
                       linear_at(model, l, LINEAR_FC));
        gelu_forward(b->fch_gelu, b->fch, 4 * BTC);
        round_to(base, b->fch_gelu, 4 * BTC);
        linear_forward(a->proj, b->fch_gelu, param(model, FCPROJW, l), param(model, FCPROJB, l), BT,
                       4 * C, C, linear_at(model, l, LINEAR_FCPROJ));
        residual_forward(b->residual3, b->residual2, a->proj, BTC);
        round_to(base, b->residual3, BTC);
        residual = b->residual3;
    }
    layernorm_forward(a->lnf, a->lnf_mean, a->lnf_rstd, residual, param(model, LNFW, 0),
                      param(model, LNFB, 0), BT, C);
    round_to(base, a->lnf, BTC);
    gemm_cpu(a->logits, a->lnf, param(model, WTE, 0), BT, Vp, C, 0, 1, 1.0f, 0.0f);
    round_to(base, a->logits, (size_t)BT * (size_t)Vp);
    fused_classifier(a->logits, a->losses, targets, dloss, BT, V, Vp);
    round_to(base, a->logits, (size_t)BT * (size_t)Vp);

    double loss = 0.0;
    for (int i = 0; i < BT; i++) { loss += (double)a->losses[i]; }
    return (float)(loss / BT);
}

// Under ZeRO-2: the gradients of parameters first .. last of this block are complete. Each rank
// gets the sum over all ranks of those it owns, and their place is free for the next block.
static void gpt2_scatter_grads(GPT2* model, int first, int last, int layer) {
    Range ranges[NUM_PARAMS];
    size_t count = 0;
    char what[64];
    if (model->shards.level < 2) { return; }
    for (int p = first; p <= last; p++) {
        ranges[p - first].first = gpt2_param_offset(model->specs, p, layer);
        ranges[p - first].count = model->specs[p].size;
        count += model->specs[p].size;
    }
    float* packed = grad(model, first, layer);
    snprintf(what, sizeof(what), "gradients from %s of block %d on", model->specs[first].name,
             layer);
    shards_add_sum(&model->shards, model->own_grads, packed, ranges, last - first + 1, what);
    memset(packed, 0, count * sizeof(float));
}

// The other levels: all gradients, once an update.
static void gpt2_sum_grads(GPT2* model) {
    const Shards* s = &model->shards;
    if (s->level == 0) { ranks_sum(s->ranks, model->grads, s->size, "gradients"); }
    if (s->level == 1) { ranks_reduce_scatter(s->ranks, model->grads, s->begin, "gradients"); }
}

// Adds the gradients of the micro-batch that gpt2_forward has just seen to model->grads.
static void gpt2_backward(GPT2* model, const int* inputs, int B, int T) {
    Activations* a = &model->acts;
    Format base = model->recipe.base;
    int C = model->config.C, NH = model->config.NH, Vp = model->config.Vp, L = model->config.L;
    int BT = B * T;
    size_t BTC = (size_t)BT * (size_t)C;
    const float* dlogits = a->logits;
    float* dresidual = a->dresidual;
    model->linear.T = T;

    gemm_cpu(a->dbtc, dlogits, param(model, WTE, 0), BT, C, Vp, 0, 0, 1.0f, 0.0f);
    round_to(base, a->dbtc, BTC);
    gemm_cpu(grad(model, WTE, 0), dlogits, a->lnf, Vp, C, BT, 1, 0, 1.0f, 1.0f);
    memset(dresidual, 0, BTC * sizeof(float));
    layernorm_backward(dresidual, grad(model, LNFW, 0), grad(model, LNFB, 0), a->dbtc,
                       a->blocks[L - 1].residual3, param(model, LNFW, 0), a->lnf_mean,
                       a->lnf_rstd, BT, C);
    round_to(base, dresidual, BTC);
    gpt2_scatter_grads(model, LNFW, LNFB, 0);

    for (int l = L - 1; l >= 0; l--) {
        const BlockActivations* b = &a->blocks[l];
        const float* residual = l == 0 ? a->encoded : a->blocks[l - 1].residual3;
        linear_backward(a->dbt4c, grad(model, FCPROJW, l), grad(model, FCPROJB, l), dresidual,
                        b->fch_gelu, param(model, FCPROJW, l), BT, 4 * C, C,
                        linear_at(model, l, LINEAR_FCPROJ));
        gelu_backward(a->dbt4c, a->dbt4c, b->fch, 4 * BTC);
        round_to(base, a->dbt4c, 4 * BTC);
        linear_backward(a->dbtc, grad(model, FCW, l), grad(model, FCB, l), a->dbt4c, b->ln2,
                        param(model, FCW, l), BT, C, 4 * C, linear_at(model, l, LINEAR_FC));
        layernorm_backward(dresidual, grad(model, LN2W, l), grad(model, LN2B, l), a->dbtc,
                           b->residual2, param(model, LN2W, l), b->ln2_mean, b->ln2_rstd, BT, C);
        round_to(base, dresidual, BTC);

        linear_backward(a->dbtc, grad(model, PROJW, l), grad(model, PROJB, l), dresidual, b->atty,
                        param(model, PROJW, l), BT, C, C, linear_at(model, l, LINEAR_PROJ));
        attention_backward(a->dbt4c, a->dbtc, b->qkv, b->atty, b->lse, B, T, NH, C / NH,
                           base == FORMAT_BF16);
        round_to(base, a->dbt4c, 3 * BTC);
        linear_backward(a->dbtc, grad(model, QKVW, l), grad(model, QKVB, l), a->dbt4c, b->ln1,
                        param(model, QKVW, l), BT, C, 3 * C, linear_at(model, l, LINEAR_QKV));
        layernorm_backward(dresidual, grad(model, LN1W, l), grad(model, LN1B, l), a->dbtc, residual,
                           param(model, LN1W, l), b->ln1_mean, b->ln1_rstd, BT, C);
        round_to(base, dresidual, BTC);
        gpt2_scatter_grads(model, LN1W, FCPROJB, l);
    }
    encoder_backward(grad(model, WTE, 0), grad(model, WPE, 0), dresidual, inputs, B, T, C);
    gpt2_scatter_grads(model, WTE, WPE, 0);
}

static void gpt2_zero_grad(GPT2* model) {
    if (model->shards.level < 2) {
        memset(model->grads, 0, model->num_params * sizeof(float));
    } else {
        memset(model->own_grads, 0, model->shards.own.count * sizeof(float));
    }
}

// What guards.h looks at when the gradients are complete; grads (part).
static void gpt2_count_guards(const GPT2* model, const float* grads) {
    const Weights* w = &model->weights;
    guards_count_gradients(model->guards, grads);
    if (!guards_compare_weights(model->guards)) { return; }
    for (int i = 0; i <= NUM_LINEARS; i++) {
        Range plain = w->ranges.plain[i];
        guards_add_weights(model->guards, model->working + plain.first,
                           plain.count * sizeof(float));
    }
    guards_add_weights(model->guards, w->codes, w->ranges.num_coded / 2);
}

// Length of the gradient over all parameters. Sums of 65,536 squares each, then their sum in
// double: the order does not depend on the number of threads. Each rank takes its part.
static float gpt2_gradient_norm(const GPT2* model) {
    Range part = model->shards.part;
    const float* grads = model->own_grads + (part.first - model->shards.own.first);
    size_t chunk = 65536, chunks = (part.count + chunk - 1) / chunk;
    double* sums = (double*)xmalloc(chunks * sizeof(double), "gradient norm");
    #pragma omp parallel for
    for (size_t i = 0; i < chunks; i++) {
        size_t left = part.count - i * chunk;
        const float* g = grads + i * chunk;
        sums[i] = (double)vector_dot(g, g, (int)(left < chunk ? left : chunk));
    }
    double total = 0.0;
    for (size_t i = 0; i < chunks; i++) { total += sums[i]; }
    free(sums);
    gpt2_count_guards(model, grads);
    return (float)sqrt(guards_sum(model->guards, total, model->shards.ranks));
}

// What OsciReset does in this phase with the weights of this rank that it watches in update `step`.
// Returns how many were set, each counted on one rank.
static size_t gpt2_watch(GPT2* model, OsciPhase phase, int step) {
    const Oscillation* o = &model->oscillation;
    const OsciReset* reset = &model->recipe.reset;
    Quantizer quantizer = model->recipe.operands[OPERAND_W];
    Range own = model->shards.own, part = model->shards.part;
    int age = osci_reset_age(reset, step);
    size_t count = 0;
    for (int i = 0; i < model->config.L * NUM_LINEARS; i++) {
        int layer = i / NUM_LINEARS, p = linear_param(i % NUM_LINEARS);
        Range all = { gpt2_param_offset(model->specs, p, layer), model->specs[p].size };
        Range here = range_overlap(all, own);
        if (!osci_reset_watches(&model->recipe, layer, i % NUM_LINEARS, step)) { continue; }
        const Nvfp4Matrix* q = &model->weights.quantized[i].w_q;
        float scale = quantizer_tensor_scale(quantizer, *q->amax).scale;
        #pragma omp parallel for reduction(+ : count)
        for (size_t at = here.first; at < here.first + here.count; at++) {
            size_t j = at - own.first;
            float w = model->working[at];
            float value = osci_reset_value(q->codes, q->block_scales, (size_t)q->cols,
                                           at - all.first, quantizer, scale);
            if (phase == OSCI_BEFORE) {
                o->w_before[j] = w;
                o->q_before[j] = value;
            } else if (phase == OSCI_AFTER) {
                osci_reset_add(&o->d_w[j], &o->d_q[j], o->w_before[j], w, o->q_before[j], value,
                               age);
            } else if (osci_reset_is_due(o->d_w[j], o->d_q[j], reset->threshold)) {
                model->params[j] = value;
                count += at >= part.first && at < part.first + part.count;
            }
        }
    }
    return count;
}

// One AdamW step, number `step` counted from 0. grad_scale multiplies the gradients (clipping).
// Returns how many weights OsciReset has set, or -1 if it was not the time.
static int64_t gpt2_update(GPT2* model, float learning_rate, float weight_decay,
                           float grad_scale, int step) {
    Range own = model->shards.own;
    int watches = osci_reset_age(&model->recipe.reset, step) >= 0;
    int64_t resets = -1;
    if (watches) { gpt2_watch(model, OSCI_BEFORE, step); }
    for (int p = 0; p < NUM_PARAMS; p++) {
        const ParamSpec* spec = &model->specs[p];
        Range tensor = { spec->offset, spec->size * (size_t)spec->layers };
        Range here = range_overlap(tensor, own);
        size_t begin = here.first - own.first, end = begin + here.count;
        AdamW adamw = adamw_step(learning_rate, spec->decay ? weight_decay : 0.0f, grad_scale,
                                 step);
        #pragma omp parallel for
        for (size_t i = begin; i < end; i++) {
            adamw_element(&model->params[i], &model->m[i], &model->v[i], model->own_grads[i],
                          adamw);
        }
    }
    model->recipe.step = step + 1;
    gpt2_refresh_working(model);
    if (watches) { gpt2_watch(model, OSCI_AFTER, step); }
    if (osci_reset_ends(&model->recipe.reset, step)) {
        resets = (int64_t)gpt2_watch(model, OSCI_RESET, step);
        gpt2_refresh_working(model);
    }
    return resets;
}

// ---------------------------------------------------------------------------------------------
// How much of the gradient is noise (llmc/noise_trigger.h)

// Sum of squares of the gradients of what noise_trigger_counts, on all ranks together.
static double gpt2_linear_squares(const GPT2* model) {
    double squares = 0.0;
    for (int i = 0; i < model->config.L * NUM_LINEARS; i++) {
        int layer = i / NUM_LINEARS, p = linear_param(i % NUM_LINEARS);
        Range all = { gpt2_param_offset(model->specs, p, layer), model->specs[p].size };
        Range here = range_overlap(all, model->shards.part);
        if (!noise_trigger_counts(&model->recipe, layer, i % NUM_LINEARS)) { continue; }
        for (size_t at = here.first; at < here.first + here.count; at++) {
            double g = (double)model->own_grads[at - model->shards.own.first];
            squares += g * g;
        }
    }
    ranks_sum_double(model->shards.ranks, &squares, 1, "gradient norm of linear layers");
    return squares;
}

// The gradients are those of one micro-batch, this one, which had the same dloss. Runs it again
// with other random bits and returns the sum of squares of the difference. -dloss subtracts: every
// rounding is symmetric. The gradients stay.
static double gpt2_draw_again(GPT2* model, const int* inputs, const int* targets, int B, int T,
                              float dloss) {
    int whole = model->shards.level < 2;
    float* grads = whole ? model->grads : model->own_grads;
    size_t bytes = (whole ? model->num_params : model->shards.own.count) * sizeof(float);
    float* kept = (float*)xmalloc(bytes, "gradients of a micro-batch");
    memcpy(kept, grads, bytes);
    model->linear.seed = noise_trigger_seed(model->seed);
    gpt2_forward(model, inputs, targets, B, T, -dloss);
    gpt2_backward(model, inputs, B, T);
    model->linear.seed = model->seed;
    gpt2_sum_grads(model);
    double squares = gpt2_linear_squares(model);
    memcpy(grads, kept, bytes);
    free(kept);
    return squares;
}

// ---------------------------------------------------------------------------------------------
// The run

// One update: gradients of all its micro-batches, clipping, AdamW. Returns the mean loss; the norm
// of the gradient before clipping goes to *norm.
static float train_step(GPT2* model, TrainRun* run, int step, float learning_rate, float* norm) {
    const TrainConfig* c = &run->config;
    int ranks = run->ranks.size;
    int measures = noise_trigger_due(&model->recipe, run->num_steps, step);
    float loss = 0.0f, share = 1.0f / (float)run->micro_steps;
    float dloss = share / (float)(c->B * c->T * ranks);
    double difference = 0.0;
    gpt2_zero_grad(model);
    guards_begin(model->guards, step);
    for (int micro = 0; micro < run->micro_steps; micro++) {
        run_batch(run, step, micro);
        model->linear.scale_counts = guards_scale_counts(model->guards, micro);
        model->micro_step = (uint32_t)step * (uint32_t)run->micro_steps + (uint32_t)micro;
        loss += share * gpt2_forward(model, run->inputs, run->targets, c->B, c->T, dloss);
        gpt2_backward(model, run->inputs, c->B, c->T);
        model->linear.scale_counts = NULL;
        if (measures && micro == 0) {
            difference = gpt2_draw_again(model, run->inputs, run->targets, c->B, c->T, dloss);
        }
    }
    gpt2_sum_grads(model);
    if (measures) {
        double ratio = noise_trigger_ratio(gpt2_linear_squares(model), difference,
                                           run->micro_steps);
        run_report_noise(run, step, ratio);
        if (noise_trigger_fires(ratio)) { recipe_trigger(&model->recipe, step + 1); }
    }
    *norm = gpt2_gradient_norm(model);
    float grad_scale = c->clip_norm > 0.0f && *norm > c->clip_norm ? c->clip_norm / *norm : 1.0f;
    int64_t resets = gpt2_update(model, learning_rate, c->weight_decay, grad_scale, step);
    if (resets >= 0) { run_report_resets(run, step, resets); }
    return (float)(run_sum(run, loss, "loss") / ranks);
}

// Mean loss over the first val_rows rows of the validation data, the same ones every time.
static float estimate_loss(GPT2* model, TrainRun* run) {
    double sum = 0.0;
    for (uint64_t row = 0; row < run->val_rows; row += run_batch_rows(run)) {
        int rows = run_val_batch(run, row);             // may be 0, but all ranks go on together
        float loss = gpt2_forward(model, run->inputs, run->targets, rows, run->config.T, 0.0f);
        if (rows > 0) { sum += (double)rows * loss; }
    }
    return (float)(run_sum(run, sum, "validation loss") / (double)run->val_rows);
}

// Draws sample_tokens tokens, each from the model's distribution given those before it. The random
// numbers are of their own, so sampling does not disturb training. All ranks do the same.
static void generate(GPT2* model, TrainRun* run, int step) {
    int T = run->config.T, n = run->config.sample_tokens, V = model->config.V;
    int* tokens = run->inputs;          // (T)
    for (int t = 0; t < T; t++) { tokens[t] = run->tokenizer.end_of_text; }
    memset(run->targets, 0, (size_t)T * sizeof(int));
    int* text = (int*)xmalloc((size_t)n * sizeof(int), "generated text");
    for (int i = 0; i < n; i++) {
        int length = (i / 16 + 1) * 16 < T ? (i / 16 + 1) * 16 : T;     // whole blocks of 16 tokens
        gpt2_forward(model, tokens, run->targets, 1, length, 0.0f);
        uint32_t word =
            philox4x32(model->seed, (uint32_t)i, (uint32_t)step, RANDOM_SAMPLE, 0).word[0];
        text[i] = sample_token(model->acts.logits + (size_t)i * (size_t)model->config.Vp, V,
                               random_uniform(word));
        if (i + 1 < T) { tokens[i + 1] = text[i]; }
    }
    run_report_sample(run, step, text, n);
    free(text);
}

#ifndef TESTING
int main(int argc, char** argv) {
    TrainRun run;
    GPT2 model;
    run_parse(&run, argc, argv);
    run_open(&run, "train_gpt2_fp32", "CPU");
    gpt2_build(&model, run.model, run.recipe, run.config.B, run.config.T, run.config.seed,
               &run.shards);
    model.linear.micro_steps = (uint32_t)run.micro_steps;
    model.linear.local_amax = run.local_amax;
    model.guards = run.guards;
    run.sums[0] = model.oscillation.d_w;
    run.sums[1] = model.oscillation.d_q;
    run_load(&run, model.params, model.m, model.v);
    model.recipe = run.recipe;
    gpt2_refresh_working(&model);
    run_start_log(&run, "train_gpt2_fp32", "CPU");

    for (int step = run.start_step; ; step++) {
        if (run_is_due(&run, run.config.val_every, step)) {
            run_report_val(&run, step, estimate_loss(&model, &run));
        }
        run_report_guards(&run, step);
        if (run_is_due(&run, run.config.sample_every, step)) { generate(&model, &run, step); }
        if (run_saves(&run, step)) {
            run_save(&run, step, model.params, model.m, model.v, seconds_now());
        }
        if (step == run.num_steps) { break; }

        double start = seconds_now();
        float norm, lr = run_learning_rate(&run, step);
        float loss = train_step(&model, &run, step, lr, &norm);
        run_report_step(&run, step, loss, norm, lr, 1e3 * (seconds_now() - start), NAN, NAN);
    }
    run_close(&run);
    return 0;
}
#endif
