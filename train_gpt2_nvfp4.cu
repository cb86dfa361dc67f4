/*
Trains GPT-2 on a GPU with the linear layers in NVFP4 (-p nvfp4) or another format of 4 or 8 bits, or
in BF16 or FP32 to compare with.

This is train_gpt2_fp32.c on a GPU: the same functions in the same order with the same names, the
same flags, data order, initial weights and log. Put the two side by side; where they differ is what
this project teaches. Three things are new here:
  - types: activations are `Real`, which is float for -p fp32 and BF16 otherwise; master weights,
    gradients of weights and AdamW's moments are always float
  - kernels instead of loops, launched on one stream; the CPU waits only for numbers that it needs
  - a block whose linear layers are quantized keeps their inputs packed (llmc/linear.cuh)

Read: gpt2_forward, gpt2_backward, gpt2_update; then llmc/linear.cuh (the recipe),
llmc/quantize.cuh, the llmc/gemm*.cuh files (what an NVFP4 GEMM is on which GPU), and
the other kernels.

Two runs give the same bits, and a resumed run those of one that was never interrupted. On
GPUs without FP4 tensor cores the FP4 GEMM is emulated: exact in every product.

Started by mpirun -np N it trains on N GPUs, one for each rank; llmc/shards.h says who holds what,
llmc/multi_rank_nccl.cuh how it travels. With one rank the calls for that do nothing. Gradients are
summed over the ranks on a stream of their own while the backward pass goes on; N ranks compute what
one computes but for the order of sums over tokens, which is NCCL's: dev/test/test_ranks_model.cu,
on GPUs or, on a model of NCCL, on the CPU.

Errors end the program with one message; a library would return them.
*/
#include <math.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "llmc/train_run.h"         // TrainRun: flags, data, log, checkpoints
#include "llmc/sampler.h"           // sample_token
#include "llmc/energy.h"            // EnergyMeter
#include "llmc/speed_of_light.h"    // training_flops_per_token
#include "llmc/adamw.cuh"           // adamw_update
#include "llmc/attention.cuh"       // attention_forward, attention_backward
#include "llmc/classifier.cuh"      // fused_classifier
#include "llmc/device_memory.cuh"   // device_alloc, device_memory_print
#include "llmc/encoder.cuh"         // encoder_forward, encoder_backward, TokenIndex
#include "llmc/gelu.cuh"            // gelu_forward, gelu_backward
#include "llmc/global_norm.cuh"     // global_norm_squared, sum_losses
#include "llmc/guards.cuh"          // DeviceGuards: look for silent faults
#include "llmc/layernorm.cuh"       // layernorm_forward, layernorm_backward
#include "llmc/linear.cuh"          // linear_forward, linear_backward
#include "llmc/multi_rank_nccl.cuh" // DeviceRanks: collectives between GPUs
#include "llmc/osci_reset.cuh"      // Oscillation: weights that swing between two codes
#include "llmc/self_test.cuh"       // self_test, HardwarePaths
#include "llmc/weights.cuh"         // Weights: from sharded masters to what the layers read

// ---------------------------------------------------------------------------------------------
// The model and what one micro-batch leaves behind for the backward pass. Pointers lead to the
// device unless their name ends in _cpu.

template <typename Real> struct BlockActivations {
    Real* ln1;              // (B,T,C)      ln1, ln2, fch_gelu: memory of their own only if
                            //              backward reads them
    float* ln1_mean;        // (B,T)
    float* ln1_rstd;        // (B,T)
    Real* qkv;              // (B,T,3C)
    float* lse;             // (B,NH,T)     log-sum-exp of the attention scores
    Real* atty;             // (B,T,C)      attention's output
    Real* residual2;        // (B,T,C)      after attention
    Real* ln2;              // (B,T,C)
    float* ln2_mean;        // (B,T)
    float* ln2_rstd;        // (B,T)
    Real* fch;              // (B,T,4C)     before GELU
    Real* fch_gelu;         // (B,T,4C)
    Real* residual3;        // (B,T,C)      after the MLP
    QuantizedLinear linears[NUM_LINEARS];
};

template <typename Real> struct Activations {
    Real* encoded;          // (B,T,C)
    BlockActivations<Real>* blocks;     // (L), on the CPU
    Real* lnf;              // (B,T,C)
    float* lnf_mean;        // (B,T)
    float* lnf_rstd;        // (B,T)
    Real* logits;           // (B,T,Vp)     overwritten by their gradient
    float* losses;          // (B,T)
    // scratch
    Real* proj;             // (B,T,C)      output of a projection, before it joins the
                            //              residual stream
    Real* dresidual;        // (B,T,C)      gradient flowing down the residual stream
    Real* dbt4c;            // (B,T,4C)     gradient inside a branch
    Real* dbtc;             // (B,T,C)      likewise
    float* attention_delta;     // (B,NH,T)
    float* layernorm_scratch;   // layernorm_backward_scratch(C); encoder_backward uses it as well
    float* norm_scratch;        // GLOBAL_NORM_BLOCKS
};

// A micro-batch of tokens on its way to the GPU. There are two, so that the CPU can prepare one
// while the GPU works on the other.
typedef struct {
    int* tokens_cpu;        // (B*T) inputs, (B*T) targets, then the inputs' TokenIndex; page-locked
    int* tokens;            // the same on the device
    cudaEvent_t copied;     // tokens_cpu may be written again
} BatchSlot;

// Gradients that are complete at the same time, under ZeRO-2: their place in GPT2.grads is free
// again when their sum was taken from there.
typedef struct {
    int first, last, layer; // parameters first .. last of this block
    int full;               // their sum over the ranks is there, or on its way
    cudaEvent_t summed;
} GradGroup;

enum { GRADS_FINAL_NORM, GRADS_EMBEDDING, GRADS_BLOCKS, NUM_GRAD_GROUPS = GRADS_BLOCKS + 2 };

template <typename Real> struct GPT2 {
    GPT2Config config;
    Recipe recipe;
    uint64_t seed;
    ParamSpec specs[NUM_PARAMS];
    size_t num_params;
    Shards shards;          // which of them this rank owns: with one rank, all
    DeviceRanks* ranks;
    float* params;          // (own)        FP32 master weights
    Real* working;          // (num_params) what the layers read: the masters rounded to the
                            //              recipe's base format
    float* grads;           // (num_params) but under ZeRO-2 those of two blocks at a time
    ParamSpec grad_specs[NUM_PARAMS];   // where they lie in grads
    GradGroup grad_groups[NUM_GRAD_GROUPS];
    float* own_grads;       // (own)        summed over the ranks
    int last_micro;         // 1: after this micro-batch gradients are complete
    float* m;               // (own)        AdamW moments
    float* v;               // (own)
    Weights weights;        // those that come from other ranks
    Oscillation oscillation;
    DeviceGuards guards;
    Activations<Real> acts;
    Linear linear;
    Gemm gemm;
    BatchSlot slots[2];
    int next_slot;
    int* inputs;            // (B,T) of the micro-batch at hand
    int* targets;           // (B,T)
    TokenIndex token_index;
    float* loss_sum;        // (1) sum of the losses since gpt2_zero_loss
    float* norm_squared;    // (1)
    int B, T;               // most that acts can hold
    uint32_t micro_step;    // counts micro-batches over the run; stochastic rounding draws by it
    cudaStream_t stream;
};

template <typename Real> static Real* param(const GPT2<Real>* model, int p, int layer) {
    return model->working + gpt2_param_offset(model->specs, p, layer);
}

template <typename Real> static float* grad(const GPT2<Real>* model, int p, int layer) {
    const ParamSpec* specs = model->grad_specs;     // of all blocks, or of two for all
    return model->grads + gpt2_param_offset(specs, p, layer % specs[p].layers);
}

// The linear layer `linear` of block `layer`, for the calls of linear_forward and linear_backward.
template <typename Real> static const Linear* linear_at(GPT2<Real>* model, int layer, int linear) {
    model->linear.layer = layer;
    model->linear.linear = linear;
    model->linear.micro_step = model->micro_step;
    return &model->linear;
}

// The shapes of the four linear layers of a block, in units of C.
static const struct { int in, out; } linear_shapes[NUM_LINEARS] = {
    { 1, 3 }, { 1, 1 }, { 1, 4 }, { 4, 1 },
};

// Quantized weights follow from the working weights, of which this rank has set its part; called
// whenever those change.
template <typename Real> static void gpt2_quantize_weights(GPT2<Real>* model) {
    int C = model->config.C;
    weights_gather(&model->weights, model->working, model->ranks, model->stream);
    for (int l = 0; l < model->config.L; l++) {
        for (int i = 0; i < NUM_LINEARS && !weights_coded(&model->weights, l); i++) {
            linear_update_weight(&model->acts.blocks[l].linears[i],
                                 param(model, linear_param(i), l), linear_shapes[i].out * C,
                                 linear_shapes[i].in * C, linear_at(model, l, i));
        }
    }
}

// Working weights follow from the masters: after these were set from the host.
template <typename Real> static void gpt2_refresh_working(GPT2<Real>* model) {
    Range own = model->shards.own;
    if (model->recipe.base == FORMAT_BF16) {            // else the masters lie in working
        round_to_working((__nv_bfloat16*)model->working + own.first, model->params, own.count,
                         model->stream);
    }
    gpt2_quantize_weights(model);
}

// Does backward ever read this linear layer's input in BF16?
static int keeps_input(const Recipe* recipe, int layer, int linear) {
    return recipe_ever(recipe, WGRAD, layer, linear, 0);
}

// A block's activations. What only quantized GEMMs read (the inputs of the linear layers, except
// atty, which attention's backward pass needs) is not kept beside its packed form: such tensors
// share the scratch memory, and the quantized X^T stays. A recipe that changes on the way may need
// both.
template <typename Real>
static void block_alloc(BlockActivations<Real>* b, const Activations<Real>* a, const Recipe* recipe,
                        const Weights* weights, int layer, const GPT2Config* config, size_t B,
                        size_t T) {
    size_t NH = (size_t)config->NH, BT = B * T, BTC = BT * (size_t)config->C, real = sizeof(Real);
    b->ln1 = keeps_input(recipe, layer, LINEAR_QKV)
           ? (Real*)device_alloc(BTC * real, "linear inputs") : a->dbtc;
    b->ln1_mean = (float*)device_alloc(BT * sizeof(float), "statistics");
    b->ln1_rstd = (float*)device_alloc(BT * sizeof(float), "statistics");
    b->qkv = (Real*)device_alloc(3 * BTC * real, "qkv");
    b->lse = (float*)device_alloc(BT * NH * sizeof(float), "statistics");
    b->atty = (Real*)device_alloc(BTC * real, "attention output");
    b->residual2 = (Real*)device_alloc(BTC * real, "residual stream");
    b->ln2 = keeps_input(recipe, layer, LINEAR_FC)
           ? (Real*)device_alloc(BTC * real, "linear inputs") : a->dbtc;
    b->ln2_mean = (float*)device_alloc(BT * sizeof(float), "statistics");
    b->ln2_rstd = (float*)device_alloc(BT * sizeof(float), "statistics");
    b->fch = (Real*)device_alloc(4 * BTC * real, "MLP before GELU");
    b->fch_gelu = keeps_input(recipe, layer, LINEAR_FCPROJ)
                ? (Real*)device_alloc(4 * BTC * real, "linear inputs") : a->dbt4c;
    b->residual3 = (Real*)device_alloc(BTC * real, "residual stream");
    for (int i = 0; i < NUM_LINEARS; i++) {
        int in = linear_shapes[i].in * config->C, out = linear_shapes[i].out * config->C;
        Format format = recipe->operands[OPERAND_X].format;
        int dgrad = recipe_ever(recipe, DGRAD, layer, i, 1);
        int transposes = dgrad && recipe_transposes_weights(recipe);
        QuantizedLinear* q = &b->linears[i];
        memset(q, 0, sizeof(*q));
        if (weights_coded(weights, layer)) {
            q->w_q = linear_operand_at(weights_codes(weights, layer, i), format, out, in,
                                       "quantized weights");
        } else if (recipe_ever(recipe, FPROP, layer, i, 1) || transposes) {
            q->w_q = linear_operand_alloc(format, out, in, "quantized weights");
        }
        if (dgrad && !recipe_remakes_weights(recipe)) {
            q->wT_q = linear_operand_alloc(format, in, out, "quantized weights");
        }
        if (recipe_ever(recipe, WGRAD, layer, i, 1)) {
            q->xT_q = linear_operand_alloc(format, in, (int)BT, "quantized inputs");
            q->x_amax = q->xT_q.amax++;
        }
        weights->quantized[layer * NUM_LINEARS + i] = q;
    }
}

template <typename Real>
static void activations_alloc(Activations<Real>* a, const Recipe* recipe, const Weights* weights,
                              const GPT2Config* config, size_t B, size_t T) {
    size_t L = (size_t)config->L, C = (size_t)config->C, BT = B * T, BTC = BT * C,
           real = sizeof(Real);
    a->proj = (Real*)device_alloc(BTC * real, "scratch");
    a->dresidual = (Real*)device_alloc(BTC * real, "scratch");
    a->dbt4c = (Real*)device_alloc(4 * BTC * real, "scratch");
    a->dbtc = (Real*)device_alloc(BTC * real, "scratch");
    a->attention_delta = (float*)device_alloc(BT * (size_t)config->NH * sizeof(float), "scratch");
    size_t sums = layernorm_backward_scratch(config->C);
    size_t encoder_sums = encoder_backward_scratch((int)BT, config->C);
    if (encoder_sums > sums) { sums = encoder_sums; }   // of 262,144 tokens and more
    a->layernorm_scratch = (float*)device_alloc(sums * sizeof(float), "scratch");
    a->norm_scratch = (float*)device_alloc(GLOBAL_NORM_BLOCKS * sizeof(float), "scratch");
    a->blocks = (BlockActivations<Real>*)xcalloc(L * sizeof(BlockActivations<Real>), "blocks");
    for (size_t l = 0; l < L; l++) {
        block_alloc(&a->blocks[l], a, recipe, weights, (int)l, config, B, T);
    }
    a->encoded = (Real*)device_alloc(BTC * real, "residual stream");
    a->lnf = (Real*)device_alloc(BTC * real, "linear inputs");
    a->lnf_mean = (float*)device_alloc(BT * sizeof(float), "statistics");
    a->lnf_rstd = (float*)device_alloc(BT * sizeof(float), "statistics");
    a->logits = (Real*)device_alloc(BT * (size_t)config->Vp * real, "logits");
    a->losses = (float*)device_alloc(BT * sizeof(float), "statistics");
}

// The products of quantized matrices that training does with micro-batches of N tokens; returns how many,
// 0 if the recipe quantizes nothing.
static int gpt2_products(GemmProduct* products /* (NUM_LINEARS * NUM_GEMMS) */,
                         const Recipe* recipe, const GPT2Config* config, int N) {
    int count = 0;
    for (int g = 0; g < NUM_GEMMS; g++) {
        for (int i = 0; i < NUM_LINEARS; i++) {
            int quantizes = 0;
            for (int l = 0; l < config->L; l++) { quantizes |= recipe_ever(recipe, g, l, i, 1); }
            if (!quantizes) { continue; }
            int in = linear_shapes[i].in * config->C, out = linear_shapes[i].out * config->C;
            GemmProduct* p = &products[count++];
            p->M = g == WGRAD ? out : N;
            p->N = g == FPROP ? out : in;
            p->K = g == FPROP ? in : g == DGRAD ? out : N;
            p->result = g == WGRAD ? GEMM_ADDS_FP32 : GEMM_STORES_BF16;
            p->A = recipe->operands[gemm_operand(g, 0)];
            p->B = recipe->operands[gemm_operand(g, 1)];
        }
    }
    return count;
}

// How this GPU multiplies and quantizes what the recipe asks for: tested, then chosen.
static HardwarePaths gpt2_choose_hardware(GemmPath requested, const Recipe* recipe,
                                          const GPT2Config* config, int N) {
    GemmProduct products[NUM_LINEARS * NUM_GEMMS];
    int num_products = gpt2_products(products, recipe, config, N);
    if (num_products == 0) { return hardware_portable(); }
    return self_test(requested, products, num_products, NULL, 0);
}

// Memory that all linear layers share, for micro-batches of N tokens: operands that live for one
// GEMM, with one piece for the codes, as large as the largest needs.
static void linear_alloc(Linear* l, const GPT2Config* config, GemmPaths paths, int N) {
    int C = config->C;
    l->alpha = (float*)device_alloc(sizeof(float), "scratch");
    l->nonfinite = (int*)device_alloc(sizeof(int), "scratch");
    cudaCheck(cudaMemset(l->nonfinite, 0, sizeof(int)));
    l->bias_scratch = (float*)device_alloc(bias_backward_scratch(4 * C) * sizeof(float), "scratch");
    GemmProduct products[NUM_LINEARS * NUM_GEMMS];
    int num_products = gpt2_products(products, l->recipe, config, N);
    gemm_create(l->gemm, paths, gemm_most_elements(products, num_products));
    if (num_products == 0) { return; }
    const Quantizer* operands = l->recipe->operands;
    Format format = operands[OPERAND_X].format;         // a recipe has one
    int redraws = recipe_remakes_weights(l->recipe);
    int aligned = operands[OPERAND_XT].aligned || operands[OPERAND_WT].aligned;
    size_t most = 4 * (size_t)C * (size_t)(C > N ? C : N);
    size_t bytes = quantized_codes_size(format, (size_t)N, 4 * (size_t)C);
    size_t bytesT = redraws ? most * (size_t)format_bits(format) / 8 : bytes;
    uint8_t* codes = (uint8_t*)device_alloc(bytes, "quantization scratch");
    uint8_t* codesT = (uint8_t*)device_alloc(bytesT, "quantization scratch");
    for (int i = 0; i < NUM_LINEARS; i++) {
        int in = linear_shapes[i].in * C, out = linear_shapes[i].out * C;
        l->x_q[i] = linear_operand_at(codes, format, N, in, "quantization scratch");
        l->dy_q[i] = linear_operand_at(codes, format, N, out, "quantization scratch");
        l->dyT_q[i] = linear_operand_at(codesT, format, out, N, "quantization scratch");
        l->dyT_q[i].amax = l->dy_q[i].amax + 1;
        if (redraws) {
            l->wT_q[i] = linear_operand_at(codesT, format, in, out, "quantization scratch");
        }
    }
    if (aligned) {
        l->expanded = (__nv_bfloat16*)device_alloc(most * sizeof(__nv_bfloat16),
                                                   "quantization scratch");
    }
}

static void slot_alloc(BatchSlot* slot, int N) {
    size_t bytes = (2 * (size_t)N + token_index_size(N)) * sizeof(int);
    cudaCheck(cudaMallocHost((void**)&slot->tokens_cpu, bytes));
    slot->tokens = (int*)device_alloc(bytes, "scratch");
    cudaCheck(cudaEventCreateWithFlags(&slot->copied, cudaEventDisableTiming));
}

// Gradients: of everything at once; or, under ZeRO-2, of two blocks and what lies outside the
// blocks, and apart from those the sums of what this rank owns. Two, so that one can travel while
// the next is computed.
template <typename Real> static void gradients_alloc(GPT2<Real>* model) {
    GPT2Config config = model->config;
    Range own = model->shards.own;
    if (model->shards.level == 2 && config.L > 2) { config.L = 2; }
    size_t n = gpt2_param_specs(model->grad_specs, &config);
    model->grads = (float*)device_alloc(n * sizeof(float), "gradients");
    if (model->shards.level < 2) {
        model->own_grads = model->grads + own.first;
        return;
    }
    cudaCheck(cudaMemset(model->grads, 0, n * sizeof(float)));
    model->own_grads = (float*)device_alloc(own.count * sizeof(float), "gradients");
    for (int i = 0; i < NUM_GRAD_GROUPS; i++) {
        cudaCheck(cudaEventCreateWithFlags(&model->grad_groups[i].summed, cudaEventDisableTiming));
    }
}

static void oscillation_alloc(Oscillation* o, size_t own) {
    float** vectors[] = { &o->d_w, &o->d_q, &o->w_before, &o->q_before };
    for (int i = 0; i < 4; i++) {
        *vectors[i] = (float*)device_alloc(own * sizeof(float), "OsciReset");
        cudaCheck(cudaMemset(*vectors[i], 0, own * sizeof(float)));
    }
    o->resets = (unsigned long long*)device_alloc(sizeof(unsigned long long), "OsciReset");
}

// `shards` tells which rank of how many this is, and is of the size of the model's parameters.
template <typename Real>
static void gpt2_build(GPT2<Real>* model, GPT2Config config, Recipe recipe, HardwarePaths hardware,
                       int B, int T, uint64_t seed, const Shards* shards, DeviceRanks* ranks) {
    memset(model, 0, sizeof(*model));
    model->config = config;
    model->recipe = recipe;
    model->seed = seed;
    model->B = B;
    model->T = T;
    cudaCheck(cudaStreamCreate(&model->stream));
    size_t n = model->num_params = gpt2_param_specs(model->specs, &config);
    model->shards = *shards;
    model->ranks = ranks;
    size_t own = shards->own.count;
    if (recipe.base == FORMAT_BF16) {
        model->params = (float*)device_alloc(own * sizeof(float), "master weights");
        model->working = (Real*)device_alloc(n * sizeof(Real), "BF16 weights");
    } else {
        model->working = (Real*)device_alloc(n * sizeof(float), "master weights");
        model->params = (float*)model->working + shards->own.first;
    }
    gradients_alloc(model);
    model->m = (float*)device_alloc(own * sizeof(float), "AdamW moments");
    model->v = (float*)device_alloc(own * sizeof(float), "AdamW moments");
    cudaCheck(cudaMemset(model->m, 0, own * sizeof(float)));
    cudaCheck(cudaMemset(model->v, 0, own * sizeof(float)));
    model->loss_sum = (float*)device_alloc(sizeof(float), "scratch");
    model->norm_squared = (float*)device_alloc(sizeof(float), "scratch");
    for (int i = 0; i < 2; i++) { slot_alloc(&model->slots[i], B * T); }
    if (recipe.reset.threshold > 0.0f) { oscillation_alloc(&model->oscillation, own); }

    weights_alloc(&model->weights, shards, &model->recipe, model->specs, config.L, seed,
                  sizeof(Real));
    activations_alloc(&model->acts, &model->recipe, &model->weights, &config, (size_t)B, (size_t)T);
    model->linear.recipe = &model->recipe;
    model->linear.seed = seed;
    model->linear.gemm = &model->gemm;
    model->linear.conversion = hardware.conversion;
    model->linear.ranks = ranks;
    model->linear.stream = model->stream;
    linear_alloc(&model->linear, &config, hardware.paths, B * T);
}

// Masters and moments (own) from host memory; whatever follows from them is made.
template <typename Real>
static void gpt2_set_state(GPT2<Real>* model, const float* params_cpu, const float* m_cpu,
                           const float* v_cpu) {
    size_t bytes = model->shards.own.count * sizeof(float);
    cudaCheck(cudaMemcpy(model->params, params_cpu, bytes, cudaMemcpyHostToDevice));
    cudaCheck(cudaMemcpy(model->m, m_cpu, bytes, cudaMemcpyHostToDevice));
    cudaCheck(cudaMemcpy(model->v, v_cpu, bytes, cudaMemcpyHostToDevice));
    gpt2_refresh_working(model);
}

template <typename Real>
static void gpt2_get_state(const GPT2<Real>* model, float* params_cpu, float* m_cpu, float* v_cpu) {
    size_t bytes = model->shards.own.count * sizeof(float);
    device_ranks_wait(model->ranks, model->stream);
    cudaCheck(cudaMemcpy(params_cpu, model->params, bytes, cudaMemcpyDeviceToHost));
    cudaCheck(cudaMemcpy(m_cpu, model->m, bytes, cudaMemcpyDeviceToHost));
    cudaCheck(cudaMemcpy(v_cpu, model->v, bytes, cudaMemcpyDeviceToHost));
}

// The sums of OsciReset (own) from host memory, or to there; nothing if the recipe does without.
template <typename Real>
static void gpt2_copy_sums(GPT2<Real>* model, float* const* sums_cpu /* (2) */, int to_device) {
    float* sums[2] = { model->oscillation.d_w, model->oscillation.d_q };
    size_t bytes = model->shards.own.count * sizeof(float);
    device_ranks_wait(model->ranks, model->stream);
    for (int i = 0; i < 2 && sums[i] != NULL; i++) {
        cudaCheck(to_device ? cudaMemcpy(sums[i], sums_cpu[i], bytes, cudaMemcpyHostToDevice)
                            : cudaMemcpy(sums_cpu[i], sums[i], bytes, cudaMemcpyDeviceToHost));
    }
}

// ---------------------------------------------------------------------------------------------
// Forward, backward, update

// Sends a micro-batch to the GPU without waiting for it.
template <typename Real>
static void gpt2_load_batch(GPT2<Real>* model, const int* inputs_cpu, const int* targets_cpu, int B,
                            int T) {
    int N = B * T;
    check(B <= model->B && T <= model->T && T <= model->config.max_T,
          "a batch of %d x %d tokens does not fit a model built for %d x %d", B, T, model->B,
          model->T);
    BatchSlot* slot = &model->slots[model->next_slot];
    model->next_slot ^= 1;
    cudaCheck(cudaEventSynchronize(slot->copied));
    memcpy(slot->tokens_cpu, inputs_cpu, (size_t)N * sizeof(int));
    memcpy(slot->tokens_cpu + N, targets_cpu, (size_t)N * sizeof(int));
    int* index = slot->tokens_cpu + 2 * (size_t)N;
    TokenIndex tokens = token_index_build(index, inputs_cpu, N, model->config.V);
    size_t bytes = (2 * (size_t)N + token_index_size(N)) * sizeof(int);
    cudaCheck(cudaMemcpyAsync(slot->tokens, slot->tokens_cpu, bytes, cudaMemcpyHostToDevice,
                              model->stream));
    cudaCheck(cudaEventRecord(slot->copied, model->stream));
    model->inputs = slot->tokens;
    model->targets = slot->tokens + N;
    model->token_index = token_index_at(tokens, index, slot->tokens + 2 * (size_t)N);
}

// The part of a forward pass of a rank that has no rows while others have: the collectives.
template <typename Real> static void gpt2_forward_nothing(GPT2<Real>* model) {
    for (int i = 0; i < model->config.L * NUM_LINEARS; i++) {
        const Linear* l = linear_at(model, i / NUM_LINEARS, i % NUM_LINEARS);
        if (!recipe_quantizes(&model->recipe, FPROP, l->layer, l->linear)) { continue; }
        float* amax = l->x_q[l->linear].amax;
        cudaCheck(cudaMemsetAsync(amax, 0, sizeof(float), model->stream));
        linear_agree(amax, 1, operand_name(OPERAND_X), l);
    }
}

// Runs inputs (B,T) through the model and adds the sum of their losses against targets (B,T) to
// model->loss_sum. With dloss not 0 the gradient of dloss * (sum of the losses) by the logits takes
// the logits' place, for gpt2_backward.
template <typename Real>
static void gpt2_forward(GPT2<Real>* model, const int* inputs_cpu, const int* targets_cpu, int B,
                         int T, float dloss) {
    Activations<Real>* a = &model->acts;
    cudaStream_t stream = model->stream;
    int C = model->config.C, NH = model->config.NH, V = model->config.V, Vp = model->config.Vp;
    int BT = B * T;
    size_t BTC = (size_t)BT * (size_t)C;
    if (B == 0) {
        gpt2_forward_nothing(model);
        return;
    }
    gpt2_load_batch(model, inputs_cpu, targets_cpu, B, T);
    model->linear.training = dloss != 0.0f;
    model->linear.T = T;

    encoder_forward(a->encoded, model->inputs, param(model, WTE, 0), param(model, WPE, 0), B, T, C,
                    stream);
    const Real* residual = a->encoded;
    for (int l = 0; l < model->config.L; l++) {
        BlockActivations<Real>* b = &a->blocks[l];
        layernorm_forward(b->ln1, b->ln1_mean, b->ln1_rstd, residual, param(model, LN1W, l),
                          param(model, LN1B, l), BT, C, stream);
        linear_forward(b->qkv, b->ln1, param(model, QKVW, l), param(model, QKVB, l),
                       &b->linears[LINEAR_QKV], BT, C, 3 * C, linear_at(model, l, LINEAR_QKV));
        attention_forward(b->atty, b->lse, b->qkv, B, T, NH, C / NH, stream);
        linear_forward(a->proj, b->atty, param(model, PROJW, l), param(model, PROJB, l),
                       &b->linears[LINEAR_PROJ], BT, C, C, linear_at(model, l, LINEAR_PROJ));
        fused_residual_layernorm_forward(b->residual2, b->ln2, b->ln2_mean, b->ln2_rstd, residual,
                                         a->proj, param(model, LN2W, l), param(model, LN2B, l), BT,
                                         C, stream);

        linear_forward(b->fch, b->ln2, param(model, FCW, l), param(model, FCB, l),
                       &b->linears[LINEAR_FC], BT, C, 4 * C, linear_at(model, l, LINEAR_FC));
        gelu_forward(b->fch_gelu, b->fch, 4 * BTC, stream);
        linear_forward(a->proj, b->fch_gelu, param(model, FCPROJW, l), param(model, FCPROJB, l),
                       &b->linears[LINEAR_FCPROJ], BT, 4 * C, C,
                       linear_at(model, l, LINEAR_FCPROJ));
        residual_forward(b->residual3, b->residual2, a->proj, BTC, stream);
        residual = b->residual3;
    }
    layernorm_forward(a->lnf, a->lnf_mean, a->lnf_rstd, residual, param(model, LNFW, 0),
                      param(model, LNFB, 0), BT, C, stream);
    linear_fprop(a->logits, a->lnf, param(model, WTE, 0), (const Real*)NULL, BT, C, Vp,
                 &model->gemm, stream);
    fused_classifier(a->logits, a->losses, model->targets, dloss, B, T, V, Vp, dloss != 0.0f,
                     stream);
    sum_losses(model->loss_sum, a->losses, BT, stream);
}

// Under ZeRO-2, before the place of these gradients is written to: adds this rank's part of their
// sum over the ranks, which is on its way there, to own_grads, and clears the place.
template <typename Real> static void gpt2_take_grads(GPT2<Real>* model, int group) {
    GradGroup* g = &model->grad_groups[group];
    if (!g->full) { return; }
    g->full = 0;
    cudaCheck(cudaStreamWaitEvent(model->stream, g->summed, 0));
    for (int p = g->first; p <= g->last; p++) {
        Range range = { gpt2_param_offset(model->specs, p, g->layer), model->specs[p].size };
        Range own = range_overlap(range, model->shards.own);
        float* sums = grad(model, p, g->layer);
        adamw_add_gradient(model->own_grads + (own.first - model->shards.own.first),
                           sums + (own.first - range.first), own.count, model->stream);
        cudaCheck(cudaMemsetAsync(sums, 0, range.count * sizeof(float), model->stream));
    }
}

// The gradients of parameters first .. last of this block are complete, for this micro-batch
// (ZeRO-2) or for the update: sends them off to be summed over the ranks, while the next are
// computed. Under ZeRO-1 and 2 each rank gets the sums of what it owns.
template <typename Real>
static void gpt2_sum_grads(GPT2<Real>* model, int first, int last, int layer, int group) {
    DeviceRanks* ranks = model->ranks;
    const Shards* shards = &model->shards;
    char what[64];
    if (ranks->ranks->size == 1 || (shards->level < 2 && !model->last_micro)) { return; }
    snprintf(what, sizeof(what), "gradients from %s of block %d on", model->specs[first].name,
             layer);
    device_ranks_order(ranks, model->stream, ranks->side);
    device_ranks_begin(ranks);
    for (int p = first; p <= last; p++) {
        Range range = { gpt2_param_offset(model->specs, p, layer), model->specs[p].size };
        if (shards->level == 0) {
            device_ranks_sum(ranks, grad(model, p, layer), range.count, ranks->side);
        } else {
            device_shards_sum(ranks, shards, grad(model, p, layer), range, ranks->side);
        }
    }
    device_ranks_end(ranks, what, ranks->side);
    if (shards->level < 2) { return; }
    GradGroup* g = &model->grad_groups[group];
    g->first = first;
    g->last = last;
    g->layer = layer;
    g->full = 1;
    cudaCheck(cudaEventRecord(g->summed, ranks->side));
}

// After the last micro-batch: what comes next on the stream finds all sums in own_grads.
template <typename Real> static void gpt2_finish_grads(GPT2<Real>* model) {
    device_ranks_order(model->ranks, model->ranks->side, model->stream);
    for (int i = 0; i < NUM_GRAD_GROUPS; i++) { gpt2_take_grads(model, i); }
}

// Adds the gradients of the micro-batch that gpt2_forward has just seen to model->grads.
template <typename Real> static void gpt2_backward(GPT2<Real>* model, int B, int T) {
    Activations<Real>* a = &model->acts;
    cudaStream_t stream = model->stream;
    int C = model->config.C, NH = model->config.NH, Vp = model->config.Vp, L = model->config.L;
    int BT = B * T;
    size_t BTC = (size_t)BT * (size_t)C;
    const Real* dlogits = a->logits;
    Real* dresidual = a->dresidual;

    gpt2_take_grads(model, GRADS_FINAL_NORM);
    gpt2_take_grads(model, GRADS_EMBEDDING);
    linear_dgrad(a->dbtc, dlogits, param(model, WTE, 0), BT, C, Vp, &model->gemm, stream);
    linear_wgrad(grad(model, WTE, 0), dlogits, a->lnf, BT, C, Vp, &model->gemm, stream);
    cudaCheck(cudaMemsetAsync(dresidual, 0, BTC * sizeof(Real), stream));
    layernorm_backward(dresidual, grad(model, LNFW, 0), grad(model, LNFB, 0), a->dbtc,
                       a->blocks[L - 1].residual3, param(model, LNFW, 0), a->lnf_mean, a->lnf_rstd,
                       a->layernorm_scratch, BT, C, stream);
    gpt2_sum_grads(model, LNFW, LNFB, 0, GRADS_FINAL_NORM);

    for (int l = L - 1; l >= 0; l--) {
        BlockActivations<Real>* b = &a->blocks[l];
        const Real* residual = l == 0 ? a->encoded : a->blocks[l - 1].residual3;
        gpt2_take_grads(model, GRADS_BLOCKS + l % 2);
        linear_backward(a->dbt4c, grad(model, FCPROJW, l), grad(model, FCPROJB, l), dresidual,
                        b->fch_gelu, param(model, FCPROJW, l), &b->linears[LINEAR_FCPROJ], BT,
                        4 * C, C, linear_at(model, l, LINEAR_FCPROJ));
        gelu_backward(a->dbt4c, a->dbt4c, b->fch, 4 * BTC, stream);
        linear_backward(a->dbtc, grad(model, FCW, l), grad(model, FCB, l), a->dbt4c, b->ln2,
                        param(model, FCW, l), &b->linears[LINEAR_FC], BT, C, 4 * C,
                        linear_at(model, l, LINEAR_FC));
        layernorm_backward(dresidual, grad(model, LN2W, l), grad(model, LN2B, l), a->dbtc,
                           b->residual2, param(model, LN2W, l), b->ln2_mean, b->ln2_rstd,
                           a->layernorm_scratch, BT, C, stream);

        linear_backward(a->dbtc, grad(model, PROJW, l), grad(model, PROJB, l), dresidual, b->atty,
                        param(model, PROJW, l), &b->linears[LINEAR_PROJ], BT, C, C,
                        linear_at(model, l, LINEAR_PROJ));
        attention_backward(a->dbt4c, a->dbtc, b->qkv, b->atty, b->lse, a->attention_delta, B, T, NH,
                           C / NH, stream);
        linear_backward(a->dbtc, grad(model, QKVW, l), grad(model, QKVB, l), a->dbt4c, b->ln1,
                        param(model, QKVW, l), &b->linears[LINEAR_QKV], BT, C, 3 * C,
                        linear_at(model, l, LINEAR_QKV));
        layernorm_backward(dresidual, grad(model, LN1W, l), grad(model, LN1B, l), a->dbtc, residual,
                           param(model, LN1W, l), b->ln1_mean, b->ln1_rstd, a->layernorm_scratch,
                           BT, C, stream);
        gpt2_sum_grads(model, LN1W, FCPROJB, l, GRADS_BLOCKS + l % 2);
    }
    encoder_backward(grad(model, WTE, 0), grad(model, WPE, 0), dresidual, model->token_index,
                     a->layernorm_scratch, B, T, C, stream);
    gpt2_sum_grads(model, WTE, WPE, 0, GRADS_EMBEDDING);
}

template <typename Real> static void gpt2_zero_grad(GPT2<Real>* model) {
    if (model->shards.level < 2) {
        cudaCheck(cudaMemsetAsync(model->grads, 0, model->num_params * sizeof(float),
                                  model->stream));
    } else {
        cudaCheck(cudaMemsetAsync(model->own_grads, 0, model->shards.own.count * sizeof(float),
                                  model->stream));
    }
}

template <typename Real> static void gpt2_zero_loss(GPT2<Real>* model) {
    cudaCheck(cudaMemsetAsync(model->loss_sum, 0, sizeof(float), model->stream));
}

// Waits for the GPU and returns the sum of the losses since gpt2_zero_loss.
template <typename Real> static float gpt2_loss_sum(const GPT2<Real>* model) {
    float sum;
    device_ranks_wait(model->ranks, model->stream);
    cudaCheck(cudaMemcpyAsync(&sum, model->loss_sum, sizeof(float), cudaMemcpyDeviceToHost,
                              model->stream));
    cudaCheck(cudaStreamSynchronize(model->stream));
    return sum;
}

// What guards.h looks at when the gradients are complete; grads (part).
template <typename Real>
static void gpt2_count_guards(const GPT2<Real>* model, const float* grads) {
    const Weights* w = &model->weights;
    device_guards_count_gradients(&model->guards, grads, model->stream);
    if (!guards_compare_weights(model->guards.host)) { return; }
    for (int i = 0; i <= NUM_LINEARS; i++) {
        Range plain = w->ranges.plain[i];
        device_guards_add_weights(&model->guards, model->working + plain.first,
                                  plain.count * sizeof(Real), model->stream);
    }
    device_guards_add_weights(&model->guards, w->codes, w->ranges.num_coded / 2, model->stream);
}

// Length of the gradient over all parameters, of which each rank takes its part. Waits for the GPU.
template <typename Real> static float gpt2_gradient_norm(const GPT2<Real>* model) {
    float squared;
    Range part = model->shards.part;
    const float* grads = model->own_grads + (part.first - model->shards.own.first);
    global_norm_squared(model->norm_squared, grads, part.count, model->acts.norm_scratch,
                        model->stream);
    gpt2_count_guards(model, grads);
    device_ranks_wait(model->ranks, model->stream);
    cudaCheck(cudaMemcpyAsync(&squared, model->norm_squared, sizeof(float), cudaMemcpyDeviceToHost,
                              model->stream));
    device_guards_read(&model->guards, model->stream);
    cudaCheck(cudaStreamSynchronize(model->stream));
    return sqrtf((float)guards_sum(model->guards.host, squared, model->shards.ranks));
}

// Stops the program if an operand of a quantized GEMM was not finite. Waits for the GPU.
template <typename Real> static void gpt2_check_finite(const GPT2<Real>* model, int step) {
    int found;
    cudaCheck(cudaMemcpyAsync(&found, model->linear.nonfinite, sizeof(int), cudaMemcpyDeviceToHost,
                              model->stream));
    cudaCheck(cudaStreamSynchronize(model->stream));
    int tag = found - 1, operand = tag % NUM_OPERANDS, linear = tag / NUM_OPERANDS;
    check(found == 0, "step %d, block %d %s: %s is not finite, or its amax times the "
          "other operand's leaves FP32. " ADVICE_DIVERGED, step,
          linear / NUM_LINEARS, linear_name(linear % NUM_LINEARS), operand_name(operand));
}

// What OsciReset does with the weights of this rank that it watches in update `step`.
template <typename Real>
static void gpt2_watch(GPT2<Real>* model, OsciPhase phase, int step) {
    Range own = model->shards.own, counted = model->shards.part;
    for (int i = 0; i < model->config.L * NUM_LINEARS; i++) {
        int layer = i / NUM_LINEARS, p = linear_param(i % NUM_LINEARS);
        Range all = { gpt2_param_offset(model->specs, p, layer), model->specs[p].size };
        Range here = range_overlap(all, own), count = range_overlap(here, counted);
        if (!osci_reset_watches(&model->recipe, layer, i % NUM_LINEARS, step)) { continue; }
        OsciPart part;
        part.w_q = model->acts.blocks[layer].linears[i % NUM_LINEARS].w_q;
        part.quantizer = model->recipe.operands[OPERAND_W];
        part.first = here.first - all.first;
        part.count = here.count;
        part.counted_first = count.first - here.first;
        part.counted_end = part.counted_first + count.count;
        osci_reset_watch(part, model->oscillation, model->params, model->working + here.first,
                         here.first - own.first, phase,
                         osci_reset_age(&model->recipe.reset, step),
                         model->recipe.reset.threshold, model->stream);
    }
}

// Sets the weights that have oscillated; returns how many, each counted on one rank. Waits for the
// GPU.
template <typename Real> static int64_t gpt2_reset(GPT2<Real>* model, int step) {
    unsigned long long count;
    cudaCheck(cudaMemsetAsync(model->oscillation.resets, 0, sizeof(count), model->stream));
    gpt2_watch(model, OSCI_RESET, step);
    gpt2_refresh_working(model);
    device_ranks_wait(model->ranks, model->stream);
    cudaCheck(cudaMemcpyAsync(&count, model->oscillation.resets, sizeof(count),
                              cudaMemcpyDeviceToHost, model->stream));
    cudaCheck(cudaStreamSynchronize(model->stream));
    return (int64_t)count;
}

// One AdamW step, number `step` counted from 0. grad_scale multiplies the gradients (clipping).
// Returns how many weights OsciReset has set, or -1 if it was not the time.
template <typename Real>
static int64_t gpt2_update(GPT2<Real>* model, float learning_rate, float weight_decay,
                           float grad_scale, int step) {
    int watches = osci_reset_age(&model->recipe.reset, step) >= 0;
    if (watches) { gpt2_watch(model, OSCI_BEFORE, step); }
    __nv_bfloat16* working = model->recipe.base == FORMAT_BF16 ? (__nv_bfloat16*)model->working
                                                               : NULL;
    for (int p = 0; p < NUM_PARAMS; p++) {
        const ParamSpec* spec = &model->specs[p];
        Range tensor = { spec->offset, spec->size * (size_t)spec->layers };
        Range here = range_overlap(tensor, model->shards.own);
        size_t begin = here.first - model->shards.own.first;
        AdamW adamw = adamw_step(learning_rate, spec->decay ? weight_decay : 0.0f, grad_scale,
                                 step);
        if (here.count == 0) { continue; }
        adamw_update(model->params + begin, working != NULL ? working + here.first : NULL,
                     model->own_grads + begin, model->m + begin, model->v + begin, here.count,
                     adamw, model->stream);
    }
    model->recipe.step = step + 1;
    gpt2_quantize_weights(model);
    if (watches) { gpt2_watch(model, OSCI_AFTER, step); }
    return osci_reset_ends(&model->recipe.reset, step) ? gpt2_reset(model, step) : -1;
}

// ---------------------------------------------------------------------------------------------
// How much of the gradient is noise (llmc/noise_trigger.h)

// Sum of squares of the gradients of what noise_trigger_counts, on all ranks together. Waits for the
// GPU.
template <typename Real> static double gpt2_linear_squares(const GPT2<Real>* model) {
    double squares = 0.0;
    for (int i = 0; i < model->config.L * NUM_LINEARS; i++) {
        int layer = i / NUM_LINEARS, p = linear_param(i % NUM_LINEARS);
        Range all = { gpt2_param_offset(model->specs, p, layer), model->specs[p].size };
        Range here = range_overlap(all, model->shards.part);
        float sum;
        if (!noise_trigger_counts(&model->recipe, layer, i % NUM_LINEARS) || here.count == 0) {
            continue;
        }
        global_norm_squared(model->norm_squared,
                            model->own_grads + (here.first - model->shards.own.first), here.count,
                            model->acts.norm_scratch, model->stream);
        device_ranks_wait(model->ranks, model->stream);
        cudaCheck(cudaMemcpyAsync(&sum, model->norm_squared, sizeof(float), cudaMemcpyDeviceToHost,
                                  model->stream));
        cudaCheck(cudaStreamSynchronize(model->stream));
        squares += (double)sum;
    }
    ranks_sum_double(model->shards.ranks, &squares, 1, "gradient norm of linear layers");
    return squares;
}

// Runs a micro-batch twice, with different random bits, and returns the sum of squares of the
// difference of the two gradients, summed over the ranks first. With -dloss a gradient is subtracted:
// every rounding is symmetric. Gradients and losses are zero before and after. (The C program has
// the first of the two from the update itself; here its sum over the ranks is on its way by then.)
template <typename Real>
static double gpt2_noise_squares(GPT2<Real>* model, const int* inputs_cpu, const int* targets_cpu,
                                 int B, int T, float dloss) {
    for (int draw = 0; draw < 2; draw++) {
        model->linear.seed = draw == 0 ? model->seed : noise_trigger_seed(model->seed);
        model->last_micro = draw == 1;
        gpt2_forward(model, inputs_cpu, targets_cpu, B, T, draw == 0 ? dloss : -dloss);
        gpt2_backward(model, B, T);
    }
    model->linear.seed = model->seed;
    gpt2_finish_grads(model);
    double squares = gpt2_linear_squares(model);
    gpt2_zero_grad(model);
    gpt2_zero_loss(model);
    return squares;
}

// ---------------------------------------------------------------------------------------------
// The run

// One update: gradients of all its micro-batches, clipping, AdamW. Returns the mean loss; the norm
// of the gradient before clipping goes to *norm.
template <typename Real>
static float train_step(GPT2<Real>* model, TrainRun* run, int step, float learning_rate,
                        float* norm) {
    const TrainConfig* c = &run->config;
    int ranks = run->ranks.size;
    gpt2_zero_grad(model);
    gpt2_zero_loss(model);
    device_guards_begin(&model->guards, step, model->stream);
    int measures = noise_trigger_due(&model->recipe, run->num_steps, step);
    float share = 1.0f / (float)run->micro_steps, dloss = share / (float)(c->B * c->T * ranks);
    double difference = 0.0;
    for (int micro = 0; micro < run->micro_steps; micro++) {
        run_batch(run, step, micro);
        model->micro_step = (uint32_t)step * (uint32_t)run->micro_steps + (uint32_t)micro;
        if (measures && micro == 0) {
            difference = gpt2_noise_squares(model, run->inputs, run->targets, c->B, c->T, dloss);
        }
        model->last_micro = micro + 1 == run->micro_steps;
        model->linear.scale_counts = device_guards_scale_counts(&model->guards, micro);
        gpt2_forward(model, run->inputs, run->targets, c->B, c->T, dloss);
        gpt2_backward(model, c->B, c->T);
        model->linear.scale_counts = NULL;
        device_ranks_mark(model->ranks, "a micro-batch", model->stream);
    }
    gpt2_finish_grads(model);
    if (measures) {
        double ratio = noise_trigger_ratio(gpt2_linear_squares(model), difference,
                                           run->micro_steps);
        run_report_noise(run, step, ratio);
        if (noise_trigger_fires(ratio)) { recipe_trigger(&model->recipe, step + 1); }
    }
    *norm = gpt2_gradient_norm(model);
    gpt2_check_finite(model, step);
    float grad_scale = c->clip_norm > 0.0f && *norm > c->clip_norm ? c->clip_norm / *norm : 1.0f;
    int64_t resets = gpt2_update(model, learning_rate, c->weight_decay, grad_scale, step);
    if (resets >= 0) { run_report_resets(run, step, resets); }
    float loss = gpt2_loss_sum(model) * share / (float)(c->B * c->T);
    return (float)(run_sum(run, loss, "loss") / ranks);
}

// Mean loss over the first val_rows rows of the validation data, the same ones every time.
template <typename Real> static float estimate_loss(GPT2<Real>* model, TrainRun* run) {
    double sum = 0.0;
    for (uint64_t row = 0; row < run->val_rows; row += run_batch_rows(run)) {
        int rows = run_val_batch(run, row);             // may be 0, but all ranks go on together
        gpt2_zero_loss(model);
        gpt2_forward(model, run->inputs, run->targets, rows, run->config.T, 0.0f);
        sum += (double)gpt2_loss_sum(model);
    }
    return (float)(run_sum(run, sum, "validation loss")
                   / ((double)run->val_rows * run->config.T));
}

// Draws sample_tokens tokens, each from the model's distribution given those before it. The random
// numbers are of their own, so sampling does not disturb training. All ranks do the same.
template <typename Real> static void generate(GPT2<Real>* model, TrainRun* run, int step) {
    int T = run->config.T, n = run->config.sample_tokens, V = model->config.V;
    int* tokens = run->inputs;          // (T)
    for (int t = 0; t < T; t++) { tokens[t] = run->tokenizer.end_of_text; }
    memset(run->targets, 0, (size_t)T * sizeof(int));
    int* text = (int*)xmalloc((size_t)n * sizeof(int), "generated text");
    Real* row = (Real*)xmalloc((size_t)V * sizeof(Real), "a row of logits");
    float* logits = (float*)xmalloc((size_t)V * sizeof(float), "a row of logits");
    for (int i = 0; i < n; i++) {
        gpt2_forward(model, tokens, run->targets, 1, T, 0.0f);
        device_ranks_wait(model->ranks, model->stream);
        cudaCheck(cudaMemcpy(row, model->acts.logits + (size_t)i * (size_t)model->config.Vp,
                             (size_t)V * sizeof(Real), cudaMemcpyDeviceToHost));
        for (int v = 0; v < V; v++) { logits[v] = to_float(row[v]); }
        uint32_t word =
            philox4x32(model->seed, (uint32_t)i, (uint32_t)step, RANDOM_SAMPLE, 0).word[0];
        text[i] = sample_token(logits, V, random_uniform(word));
        if (i + 1 < T) { tokens[i + 1] = text[i]; }
    }
    run_report_sample(run, step, text, n);
    free(text);
    free(row);
    free(logits);
}

// All ranks must multiply and quantize alike, so on the same kind of GPU.
static void run_agree_hardware(TrainRun* run, const cudaDeviceProp* device,
                               HardwarePaths hardware) {
    char text[128];
    snprintf(text, sizeof(text), "stores %s, adds %s, conversion %d %d %08x",
             gemm_path_name(hardware.paths.of[GEMM_STORES_BF16]),
             gemm_path_name(hardware.paths.of[GEMM_ADDS_FP32]), hardware.conversion.nearest,
             hardware.conversion.stochastic, hardware.conversion.order);
    ranks_agree(&run->ranks, "the GPU", device->name);
    ranks_agree(&run->ranks, "what the self-test chose", text);
}

// The whole run, once it is known how activations are stored.
template <typename Real> static void train(TrainRun* run, const cudaDeviceProp* device) {
    GPT2<Real> model;
    DeviceRanks ranks;
    HardwarePaths hardware = gpt2_choose_hardware(gemm_path_parse(run->config.gemm_path),
                                                  &run->recipe, &run->model,
                                                  run->config.B * run->config.T);
    run_agree_hardware(run, device, hardware);
    device_ranks_open(&ranks, &run->ranks);
    gpt2_build(&model, run->model, run->recipe, hardware, run->config.B, run->config.T,
               run->config.seed, &run->shards, &ranks);
    model.linear.local_amax = run->local_amax;
    device_guards_open(&model.guards, run->guards);
    device_memory_print();

    // masters and moments (own) as checkpoints hold them
    Range own = run->shards.own;
    size_t bytes = own.count * sizeof(float);
    float* params_cpu = (float*)xmalloc(bytes, "parameters");
    float* m_cpu = (float*)xcalloc(bytes, "AdamW moments");
    float* v_cpu = (float*)xcalloc(bytes, "AdamW moments");
    for (int i = 0; i < 2 && model.oscillation.d_w != NULL; i++) {
        run->sums[i] = (float*)xcalloc(bytes, "sums of OsciReset");
    }
    gpt2_init_part(params_cpu, own.first, own.count, model.specs, &model.config, model.seed);
    run_load(run, params_cpu, m_cpu, v_cpu);
    model.recipe = run->recipe;             // a checkpoint tells which automatic rules hold
    gpt2_set_state(&model, params_cpu, m_cpu, v_cpu);
    gpt2_copy_sums(&model, run->sums, 1);
    run_start_log(run, "train_gpt2_nvfp4", device->name);
    logger_memory(&run->log, device_memory_total());

    char bus_id[32];
    int number;
    cudaCheck(cudaGetDevice(&number));
    cudaCheck(cudaDeviceGetPCIBusId(bus_id, sizeof(bus_id), number));
    EnergyMeter meter = energy_open(bus_id);
    double peak = bf16_peak_flops(device->name);
    double flops_per_token = training_flops_per_token(&run->model, run->config.T);
    double tokens = (double)run_tokens_per_step(run) / run->ranks.size;     // of this GPU
    for (int step = run->start_step; ; step++) {
        if (run_is_due(run, run->config.val_every, step)) {
            run_report_val(run, step, estimate_loss(&model, run));
        }
        run_report_guards(run, step);
        if (run_is_due(run, run->config.sample_every, step)) { generate(&model, run, step); }
        if (run_saves(run, step)) {
            double start = seconds_now();
            gpt2_get_state(&model, params_cpu, m_cpu, v_cpu);
            gpt2_copy_sums(&model, run->sums, 0);
            run_save(run, step, params_cpu, m_cpu, v_cpu, start);
        }
        if (step == run->num_steps) { break; }

        double start = seconds_now(), start_joules = energy_joules(&meter);
        float norm, lr = run_learning_rate(run, step);
        float loss = train_step(&model, run, step, lr, &norm);
        double seconds = seconds_now() - start;
        run_report_step(run, step, loss, norm, lr, 1e3 * seconds,
                        peak > 0.0 ? flops_per_token * tokens / (seconds * peak) : NAN,
                        (energy_joules(&meter) - start_joules) / tokens);
    }
    device_ranks_close(&ranks);
    run_close(run);
    free(params_cpu);
    free(m_cpu);
    free(v_cpu);
    free(run->sums[0]);
    free(run->sums[1]);
}

// Ends the program if this rank has the GPU of another one.
static void device_check_alone(Ranks* ranks, const cudaDeviceProp* device) {
    if (ranks->size <= 1) { return; }
    char uuid[2 * sizeof(device->uuid) + 1];
    for (size_t i = 0; i < sizeof(device->uuid); i++) {
        snprintf(uuid + 2 * i, 3, "%02x", (unsigned char)device->uuid.bytes[i]);
    }
    char* all = ranks_texts(ranks, uuid, "GPUs");       // each ends with a 0
    for (int i = 0; i < ranks->rank; i++) {
        check(strcmp(all + i * sizeof(uuid), uuid) != 0, "ranks %d and %d of %d have the same GPU; "
              "start as many ranks on a host as it has GPUs, with CUDA_VISIBLE_DEVICES naming all of "
              "them or another one for each rank", i, ranks->rank, ranks->size);
    }
    free(all);
}

// The GPU to train on, or an error that says what is wrong with what there is. The ranks of a host
// have one each: if a rank sees all of them, that of its number; some launchers let it see its own
// alone.
static cudaDeviceProp device_open(Ranks* ranks) {
    int count = 0;
    cudaError_t status = cudaGetDeviceCount(&count);
    check(status == cudaSuccess && count > 0, "no CUDA GPU to train on (%s); train_gpt2_fp32 does "
          "the same on the CPU", status == cudaSuccess ? "none found" : cudaGetErrorString(status));
    int number = count == 1 ? 0 : ranks->local_rank;
    check(number < count, "rank %d of %d is number %d on this host, which has %d GPU%s; "
          "start as many ranks on a host as it has GPUs", ranks->rank, ranks->size,
          ranks->local_rank + 1, count, count == 1 ? "" : "s");
    cudaDeviceProp device;
    cudaCheck(cudaGetDeviceProperties(&device, number));
    check(device.major >= 8, "%s has compute capability %d.%d; BF16 tensor cores begin with "
          "8.0 (A100)", device.name, device.major, device.minor);
    cudaCheck(cudaSetDevice(number));
    device_check_alone(ranks, &device);
    return device;
}

#ifndef TESTING
int main(int argc, char** argv) {
    // the flags come first: what is wrong with them can be said without a GPU
    TrainRun run;
    run_parse(&run, argc, argv);
    if (run.ranks.rank > 0) {                               // only rank 0 prints
        check(freopen("/dev/null", "w", stdout) != NULL, "cannot open /dev/null");
    }
    cudaDeviceProp device = device_open(&run.ranks);
    run_open(&run, "train_gpt2_nvfp4", device.name);
    if (run.recipe.base == FORMAT_FP32) {
        train<float>(&run, &device);
    } else {
        train<__nv_bfloat16>(&run, &device);
    }
    return 0;
}
#endif
