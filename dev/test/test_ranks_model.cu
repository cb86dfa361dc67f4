/*
Many ranks compute what one computes: train_gpt2_nvfp4.cu with 1, 2 and 4 ranks, as far as there are
GPUs for them; or on the CPU, on the model of NCCL.

    build/test/cpu/test_ranks_model         starts itself with mpirun, compares what the runs wrote
    ... test_ranks_model d12 256            only says which codes of the first update of nvfp4 -z 1
                                            are equal, for this model and rows of so many tokens
    ... test_ranks_model work DIRECTORY MODEL T     is what it starts: does the work of a rank

Each run makes the same updates of a small model from the same global batches, under several recipes
and every ZeRO level, and writes down what each rank had: operands and what they were made from,
gradients, masters, moments. Where a rank has its rows of something, the ranks' files one after the
other must be the file of the run with one rank. test_ranks_equal.c does the same to the C program,
test_ranks_cuda.sh starts this program as a user does.

On the CPU the model of cuBLASLt adds in double, so that all activations are equal and with them
all operands of the first update. On GPUs cuBLAS may add in another order for another number
of rows; there operands must be equal where the tensors are that they were made from, which one test
forces.

Faults that were planted, one at a time, and what failed (2 ranks, on the CPU):

    the kernels do not wait for the gradients       norm and bits
    (gpt2_finish_grads without device_ranks_order; gpt2_take_grads without its event as well)
    gradients do not wait for the kernels           the model of NCCL refuses the collective
    a block's gradients are written over those of the block two before (gpt2_take_grads left out)
                                                    the run ends: not finite
    first_block of dY, or row_blocks of dY^T, is 0  operands made from equal tensors
    agreement on X only, not on X^T                 operands
    tile amaxes not agreed on                       weights
    codes of the weights not gathered               weights
    plain weights behind the last linear not gathered   the run ends: not finite
*/
#define TESTING
#include "../../train_gpt2_nvfp4.cu"
#include "cublaslt_model.h"
#include "device_check.cuh"
#include "oracle_file.h"

#if RUNS_ON_CPU
extern "C" const char* __asan_default_options(void) { return "detect_leaks=0"; }
static void be_hopper(void) { cublaslt_model_capability(9, 0); }
#else
static void be_hopper(void) {}
#endif

#define MODEL "layers=3,channels=64,heads=2,vocab=33"
#define BATCH_ROWS 4            // rows of T tokens in a micro-batch of all ranks
#define STEP_T 32
#define STEPS 2                 // updates of a case; the first one is written down

static const char* model_text = MODEL;
static int step_T = STEP_T;

typedef struct {
    const char* recipe;
    int level, local_amax, micro_steps;
} Case;

static const Case cases[] = {
    { "fp32",                            0, 0, 1 },     // 0
    { "fp32",                            1, 0, 1 },
    { "fp32",                            2, 0, 2 },     // 2   two micro-batches
    { "nvfp4",                           0, 0, 1 },     // 3
    { "nvfp4",                           1, 0, 1 },
    { "nvfp4",                           2, 0, 1 },
    { "bf16",                            1, 0, 2 },     // 6   two micro-batches
    { "nvfp4,tail=0,front=1,tile16=0",   1, 0, 1 },
    { "nvfp4,tail=0,dgrad=bf16",         2, 0, 1 },
    { "nvfp4",                           0, 1, 1 },     // 9   local amax
    { "quartet2",                        1, 0, 1 },     // MS-EDEN, fresh signs, from codes
    { "fp4all,X=sr",                     2, 0, 1 },     // random bytes in every direction
};
enum { NUM_CASES = sizeof(cases) / sizeof(cases[0]), NVFP4_CASE = 3, LOCAL_CASE = 9,
       TENSOR_CASE = NUM_CASES };

// ---------------------------------------------------------------------------------------------
// Files

static void path_of(char* path /* (PATH_BYTES) */, const char* directory, const char* name, int c,
                    int rank) {
    path_format(path, "%s/%s.%d.%d", directory, name, c, rank);
}

static void file_put(const char* path, const void* data, size_t bytes) {
    FILE* file = fopen(path, "ab");
    check(file != NULL, "cannot write %s", path);
    file_write(data, bytes, file, path);
    fclose(file);
}

// The files of all ranks, one after the other; the caller frees them.
static char* file_get(const char* directory, const char* name, int c, int first, int ranks,
                      size_t* bytes) {
    char path[PATH_BYTES];
    char* all = NULL;
    *bytes = 0;
    for (int rank = first; rank < first + ranks; rank++) {
        path_of(path, directory, name, c, rank);
        FILE* file = file_open(path, "a rank should have written it");
        size_t more = (size_t)file_size(file, path);
        all = (char*)realloc(all, *bytes + more + 1);
        check(all != NULL, "out of memory");
        file_read(all + *bytes, more, file, path);
        fclose(file);
        *bytes += more;
    }
    return all;
}

// ---------------------------------------------------------------------------------------------
// The work of a rank

// What a rank had of an operand, in the order of tokens, so that the ranks' parts can be put
// together: codes, then scales, then the BF16 tensor that it was made from. Weights are whole, and
// have none.
typedef struct {
    int32_t layer, linear, operand;
    float amax;
    uint64_t code_bytes, scale_bytes, source_bytes;
} Record;

static struct {
    TrainRun run;
    DeviceRanks ranks;
    HardwarePaths hardware;
    const char* directory;
    FILE* records;
} work;

static void* copy_from(const void* device, size_t bytes) {
    void* host = xmalloc(bytes, "a copy");
    cudaCheck(cudaDeviceSynchronize());
    cudaCheck(cudaMemcpy(host, device, bytes, cudaMemcpyDeviceToHost));
    return host;
}

static void record(int layer, int linear, int operand, const __nv_bfloat16* source,
                   const Nvfp4Matrix* q) {
    size_t rows = (size_t)q->rows, blocks = (size_t)q->cols / NVFP4_BLOCK;
    int weight = operand == OPERAND_W || operand == OPERAND_WT;
    int columns = operand == OPERAND_XT || operand == OPERAND_DYT;      // tokens lie along columns
    Record about = { layer, linear, operand, 0.0f, rows * blocks * 8, rows * blocks,
                      weight ? 0 : rows * blocks * 32 };
    Nvfp4Matrix host = *q;
    host.codes = (uint8_t*)copy_from(q->codes, about.code_bytes);
    host.block_scales = (uint8_t*)copy_from(q->block_scales, nvfp4_scales_size(rows, 16 * blocks));
    host.amax = (float*)copy_from(q->amax, sizeof(float));
    void* from = copy_from(weight ? (const void*)q->amax : (const void*)source,
                           weight ? sizeof(float) : about.source_bytes);
    uint8_t* codes = (uint8_t*)xmalloc(about.code_bytes, "codes");
    uint8_t* ordered = (uint8_t*)xmalloc(rows * blocks, "scales");
    uint8_t* scales = oracle_scales(&host);
    about.amax = *host.amax;
    for (size_t row = 0; row < rows; row++) {
        for (size_t block = 0; block < blocks; block++) {
            size_t at = row * blocks + block, to = columns ? block * rows + row : at;
            memcpy(codes + 8 * to, host.codes + 8 * at, 8);
            ordered[to] = scales[at];
        }
    }
    file_write(&about, sizeof(about), work.records, "records");
    file_write(codes, about.code_bytes, work.records, "records");
    file_write(ordered, about.scale_bytes, work.records, "records");
    file_write(from, about.source_bytes, work.records, "records");
    void* all[] = { host.codes, host.block_scales, host.amax, from, codes, ordered, scales };
    for (size_t i = 0; i < sizeof(all) / sizeof(all[0]); i++) { free(all[i]); }
}

// During an update; weights are recorded apart.
static void observe(int layer, int linear, int operand, const __nv_bfloat16* source,
                    const Nvfp4Matrix* q) {
    if (operand == OPERAND_W || operand == OPERAND_WT) { return; }
    record(layer, linear, operand, source, q);
}

static void records_open(int number) {
    char path[PATH_BYTES];
    path_of(path, work.directory, "records", number, work.run.ranks.rank);
    work.records = fopen(path, "wb");
    check(work.records != NULL, "cannot write %s", path);
}

// This rank's part of a device vector of which it holds `own`.
template <typename Real>
static void write_part(const char* name, int c, const GPT2<Real>* model, const float* own) {
    char path[PATH_BYTES];
    Range part = model->shards.part;
    size_t bytes = part.count * sizeof(float);
    void* host = copy_from(own + (part.first - model->shards.own.first), bytes);
    path_of(path, work.directory, name, c, work.run.ranks.rank);
    file_put(path, host, bytes);
    free(host);
}

// All quantized weights, as the layers read them, go to the records.
template <typename Real> static void record_weights(GPT2<Real>* model) {
    for (int i = 0; i < model->config.L * NUM_LINEARS; i++) {
        const QuantizedLinear* q = &model->acts.blocks[i / NUM_LINEARS].linears[i % NUM_LINEARS];
        if (q->w_q.codes == NULL) { continue; }
        record(i / NUM_LINEARS, i % NUM_LINEARS, OPERAND_W, NULL, &q->w_q);
        if (q->wT_q.codes == NULL) { continue; }
        record(i / NUM_LINEARS, i % NUM_LINEARS, OPERAND_WT, NULL, &q->wT_q);
    }
}

// A checksum of what the layers read that is not quantized: equal on all ranks.
template <typename Real> static uint64_t plain_hash(const GPT2<Real>* model) {
    uint64_t hash = FNV1A_START;
    for (int i = 0; i <= NUM_LINEARS; i++) {
        Range range = model->weights.ranges.plain[i];
        if (range.count == 0) { continue; }
        void* host = copy_from(model->working + range.first, range.count * sizeof(Real));
        hash = fnv1a(host, range.count * sizeof(Real), hash);
        free(host);
    }
    return hash;
}

// One bit of the last rank's weights differs: what the ranks have counted then, checksums among it.
template <typename Real> static void write_flipped(GPT2<Real>* model, int number) {
    TrainRun* run = &work.run;
    const Weights* w = &model->weights;
    char path[PATH_BYTES];
    uint8_t* byte = w->ranges.num_coded > 0 ? w->codes + w->ranges.num_coded / 4
                                            : (uint8_t*)(model->working + w->ranges.plain[0].count);
    if (run->ranks.rank == run->ranks.size - 1) {
        uint8_t* host = (uint8_t*)copy_from(byte, 1);
        *host ^= 16;
        cudaCheck(cudaMemcpy(byte, host, 1, cudaMemcpyHostToDevice));
        free(host);
    }
    device_guards_begin(&model->guards, 0, model->stream);
    gpt2_gradient_norm(model);
    path_of(path, work.directory, "flipped", number, run->ranks.rank);
    file_put(path, model->guards.host->sums + 1,
             (size_t)model->guards.host->num_counts * sizeof(double));
}

template <typename Real> static void work_case(int number) {
    TrainRun* run = &work.run;
    Case c = cases[number];
    ParamSpec specs[NUM_PARAMS];
    GPT2<Real> model;
    char path[PATH_BYTES];
    double numbers[2 + NUM_RANKS_KINDS];
    float norm;
    run->model = gpt2_config(model_text, step_T);
    run->config.B = BATCH_ROWS / run->ranks.size;
    run->config.T = step_T;
    run->micro_steps = c.micro_steps;
    run->val_rows = 7;
    shards_open(&run->shards, &run->ranks, c.level, gpt2_param_specs(specs, &run->model));
    gpt2_build(&model, run->model, recipe_parse(c.recipe, run->model.L), work.hardware,
               run->config.B, step_T, 42, &run->shards, &work.ranks);
    model.linear.local_amax = c.local_amax;
    device_guards_open(&model.guards, guards_open(&run->model, &run->shards));
    Range own = run->shards.own;
    float* params = (float*)xmalloc(own.count * sizeof(float), "parameters");
    float* zeros = (float*)xcalloc(own.count * sizeof(float), "moments");
    gpt2_init_part(params, own.first, own.count, model.specs, &model.config, 42);
    gpt2_set_state(&model, params, zeros, zeros);
    records_open(number);
    record_weights(&model);
    uint64_t before[NUM_RANKS_KINDS];
    memcpy(before, run->ranks.bytes_sent, sizeof(before));
    model.linear.observe = observe;
    numbers[0] = train_step(&model, run, 0, 1e-3f, &norm);
    numbers[1] = norm;
    model.linear.observe = NULL;
    fclose(work.records);
    path_of(path, work.directory, "guards", number, run->ranks.rank);
    file_put(path, model.guards.host->sums + 1,
             (size_t)model.guards.host->num_counts * sizeof(double));
    for (int k = 0; k < NUM_RANKS_KINDS; k++) {
        numbers[2 + k] = (double)(ranks_bytes_sent(&run->ranks, (RanksKind)k) - before[k]);
    }
    write_part("gradients", number, &model, model.own_grads);
    for (int step = 1; step < STEPS; step++) { train_step(&model, run, step, 1e-3f, &norm); }
    write_part("state", number, &model, model.params);
    write_part("state", number, &model, model.m);
    write_part("state", number, &model, model.v);
    path_of(path, work.directory, "numbers", number, run->ranks.rank);
    file_put(path, numbers, sizeof(numbers));
    double val_loss = estimate_loss(&model, run);
    path_of(path, work.directory, "validation", number, run->ranks.rank);
    file_put(path, &val_loss, sizeof(val_loss));
    uint64_t hash = plain_hash(&model);
    path_of(path, work.directory, "hash", number, run->ranks.rank);
    file_put(path, &hash, sizeof(hash));
    records_open(NUM_CASES + 1 + number);
    record_weights(&model);
    fclose(work.records);
    write_flipped(&model, number);
    free(params);
    free(zeros);
}

// Each rank quantizes its rows of one tensor (256, 160), as X and as dY.
static void work_tensor(void) {
    enum { ROWS = 256, COLS = 160 };
    int N = ROWS / work.run.ranks.size, first = work.run.ranks.rank * N;
    Recipe recipe = recipe_parse("nvfp4,tail=0", 3);
    Linear l;
    memset(&l, 0, sizeof(l));
    l.recipe = &recipe;
    l.seed = 5;
    l.micro_step = 3;
    l.ranks = &work.ranks;
    l.conversion = work.hardware.conversion;
    l.observe = observe;
    __nv_bfloat16* values = (__nv_bfloat16*)xmalloc((size_t)N * COLS * 2, "a tensor");
    for (int i = 0; i < N * COLS; i++) {
        values[i] = from_float<__nv_bfloat16>(random_normal(9, 1, (uint64_t)(first * COLS + i)));
    }
    __nv_bfloat16* x = (__nv_bfloat16*)cuda_malloc((size_t)N * COLS * 2, "a tensor");
    cudaCheck(cudaMemcpy(x, values, (size_t)N * COLS * 2, cudaMemcpyHostToDevice));
    Nvfp4Matrix x_q = linear_operand_alloc(FORMAT_NVFP4, N, COLS, "test");
    Nvfp4Matrix xT_q = linear_operand_alloc(FORMAT_NVFP4, COLS, N, "test");
    xT_q.amax = x_q.amax + 1;
    records_open(TENSOR_CASE);
    for (l.layer = 0; l.layer < 2; l.layer++) {
        linear_quantize(&x_q, &xT_q, x, N, COLS, OPERAND_X, OPERAND_XT, &l);
        linear_quantize(&x_q, &xT_q, x, N, COLS, OPERAND_DY, OPERAND_DYT, &l);
        linear_quantize(&x_q, NULL, x, N, COLS, OPERAND_DY, OPERAND_DYT, &l);
        linear_quantize(NULL, &xT_q, x, N, COLS, OPERAND_DY, OPERAND_DYT, &l);
    }
    fclose(work.records);
    free(values);
}

static int work_as_rank(int argc, char** argv) {
    TrainRun* run = &work.run;
    char data[PATH_BYTES];
    ranks_open(&run->ranks, &argc, &argv);
    if (run->ranks.rank > 0) { check(freopen("/dev/null", "w", stdout) != NULL, "/dev/null"); }
    cudaCheck(cudaSetDevice(run->ranks.local_rank));
    device_ranks_open(&work.ranks, &run->ranks);
    work.directory = argv[2];
    be_hopper();
    Quantizer nvfp4 = quantizer_nvfp4(0);
    const GemmProduct products[] = { { 64, 128, 128, GEMM_STORES_BF16, nvfp4, nvfp4 },
                                     { 128, 128, 64, GEMM_ADDS_FP32, nvfp4, nvfp4 } };
    work.hardware = self_test(GEMM_EMULATED, products, 2, NULL, 0);
    run->config = train_config_defaults();
    path_format(data, "%s/../tokens.bin", work.directory);
    dataloader_open(&run->train, data, step_T, 31, 1, 7);
    run->val = run->train;
    run->val.shuffle = 0;
    run->inputs = (int*)xmalloc((size_t)(BATCH_ROWS * step_T) * sizeof(int), "tokens");
    run->targets = (int*)xmalloc((size_t)(BATCH_ROWS * step_T) * sizeof(int), "tokens");
    if (strcmp(model_text, MODEL) != 0) {
        work_case<__nv_bfloat16>(NVFP4_CASE + 1);
        device_ranks_close(&work.ranks);
        ranks_close(&run->ranks);
        return 0;
    }
    work_tensor();
    for (int c = 0; c < NUM_CASES; c++) {
        if (strcmp(cases[c].recipe, "fp32") == 0) { work_case<float>(c); }
        else { work_case<__nv_bfloat16>(c); }
    }
    device_ranks_close(&work.ranks);
    ranks_close(&run->ranks);
    return 0;
}

// ---------------------------------------------------------------------------------------------
// Comparisons

static char workplace[] = "/tmp/test_ranks_model_XXXXXX";
static char directories[5][PATH_BYTES];         // of 1, 2, 4 ranks

typedef struct {
    size_t records, same_source, codes, equal_codes, wrong;     // wrong: although the source is
} Equality;                                                     // the same

// The record at `from` + *offset of one rank; steps over it.
static const Record* record_next(const char* from, size_t* offset) {
    const Record* r = (const Record*)(from + *offset);
    *offset += sizeof(Record) + r->code_bytes + r->scale_bytes + r->source_bytes;
    return r;
}

// The records of a case with so many ranks against those of one rank, first those named.
static Equality compare_records(int c, int ranks, int only_forward) {
    Equality e;
    char* some[8];
    size_t bytes_one, bytes, at_one = 0, at[8] = { 0 };
    memset(&e, 0, sizeof(e));
    char* one = file_get(directories[1], "records", c, 0, 1, &bytes_one);
    for (int r = 0; r < ranks; r++) {
        some[r] = file_get(directories[ranks], "records", c, r, 1, &bytes);
    }
    while (at_one < bytes_one) {
        const Record* whole = record_next(one, &at_one);
        int weight = whole->operand == OPERAND_W || whole->operand == OPERAND_WT;
        size_t parts = weight ? 1 : (size_t)ranks, equal = 0, same = 1, bad = 0;
        for (int r = 0; r < ranks; r++) {
            const Record* part = record_next(some[r], &at[r]);
            size_t place = weight ? 0 : (size_t)r;
            check(whole->layer == part->layer && whole->linear == part->linear
                  && whole->operand == part->operand
                  && whole->code_bytes == part->code_bytes * parts,
                  "other operands with %d ranks than with one", ranks);
            const uint8_t* a = (const uint8_t*)(whole + 1);
            const uint8_t* b = (const uint8_t*)(part + 1);
            equal += oracle_equal_codes(a + place * part->code_bytes, b, part->code_bytes);
            bad += memcmp(a + place * part->code_bytes, b, part->code_bytes) != 0;
            a += whole->code_bytes;
            b += part->code_bytes;
            bad += memcmp(a + place * part->scale_bytes, b, part->scale_bytes) != 0;
            a += whole->scale_bytes;
            b += part->scale_bytes;
            same &= memcmp(a + place * part->source_bytes, b, part->source_bytes) == 0;
            bad += float_bits(whole->amax) != float_bits(part->amax);
        }
        int forward = weight || whole->operand == OPERAND_X || whole->operand == OPERAND_XT;
        if (only_forward && !forward) { continue; }
        e.records++;
        e.same_source += same;
        e.codes += 2 * whole->code_bytes * (weight ? (size_t)ranks : 1);
        e.equal_codes += equal;
        e.wrong += same && bad > 0;
    }
    for (int r = 0; r < ranks; r++) { free(some[r]); }
    free(one);
    return e;
}

// Exact. Operands made from equal tensors, and all weights, are those of one rank.
static void test_operands(int ranks) {
    char name[64];
    Equality e = compare_records(TENSOR_CASE, ranks, 0);
    snprintf(name, sizeof(name), "rows of one tensor, %d ranks", ranks);
    report(e.records == 12 && e.same_source == 12 && e.wrong == 0 && e.codes == e.equal_codes, name,
           "%zu operands, %zu codes, %zu wrong", e.records, e.codes, e.wrong);
    size_t records = 0, same = 0, wrong = 0, codes = 0, equal = 0;
    int bad_cases = 0;
    for (int c = 0; c < NUM_CASES; c++) {
        if (cases[c].local_amax) { continue; }
        Equality forward = compare_records(c, ranks, 1), step = compare_records(c, ranks, 0);
        records += step.records;
        same += step.same_source;
        wrong += step.wrong;
        codes += forward.codes;
        equal += forward.equal_codes;
        if (step.wrong > 0 || (RUNS_ON_CPU && step.same_source < step.records)) {
            report(0, name, "%s -z %d: %zu of %zu operands from equal tensors, %zu of them differ; "
                   "%zu of %zu codes of the forward pass equal", cases[c].recipe, cases[c].level,
                   step.same_source, step.records, step.wrong, forward.equal_codes, forward.codes);
            bad_cases++;
        }
    }
    snprintf(name, sizeof(name), "first step, %d ranks", ranks);
    int whole = same == records && codes == equal;
    report(wrong == 0 && bad_cases == 0 && (whole || !RUNS_ON_CPU), name, "%zu operands, "
           "%zu from equal tensors, %zu of them differ; forward %.2f %% of %zu codes equal",
           records, same, wrong, 100.0 * (double)equal / (double)codes, codes);
    Equality local = compare_records(LOCAL_CASE, ranks, 1);
    report(local.equal_codes < local.codes, "local amax", "%.2f %% of codes are those of one rank",
           100.0 * (double)local.equal_codes / (double)local.codes);
}

// Bounded: sums over tokens in as many parts as there are ranks. On GPUs the operands of low
// precision recipes differ, too.
static void test_gradients(int ranks) {
    size_t bytes, bytes_one;
    ParamSpec specs[NUM_PARAMS];
    GPT2Config config = gpt2_config(MODEL, STEP_T);
    gpt2_param_specs(specs, &config);
    double worst = 0.0, worst_loss = 0.0, worst_norm = 0.0, worst_val = 0.0;
    const char* where = "";
    int where_case = 0;
    for (int c = 0; c < NUM_CASES; c++) {
        double scale = RUNS_ON_CPU || strcmp(cases[c].recipe, "fp32") == 0 ? 1.0 : 2e3;
        if (cases[c].local_amax) { continue; }
        float* one = (float*)file_get(directories[1], "gradients", c, 0, 1, &bytes_one);
        float* some = (float*)file_get(directories[ranks], "gradients", c, 0, ranks, &bytes);
        check(bytes == bytes_one, "the parts of the gradient do not make a whole");
        for (int p = 0; p < NUM_PARAMS; p++) {
            double d = relative_distance(some + specs[p].offset, one + specs[p].offset,
                                         specs[p].size * (size_t)specs[p].layers) / scale;
            if (!(d <= worst)) {
                worst = d;
                where = specs[p].name;
                where_case = c;
            }
        }
        double* n_one = (double*)file_get(directories[1], "numbers", c, 0, 1, &bytes);
        double* n = (double*)file_get(directories[ranks], "numbers", c, 0, 1, &bytes);
        double* v_one = (double*)file_get(directories[1], "validation", c, 0, 1, &bytes);
        double* v = (double*)file_get(directories[ranks], "validation", c, ranks - 1, 1, &bytes);
        worst_loss = fmax(worst_loss, fabs(n[0] / n_one[0] - 1.0) / scale);
        worst_norm = fmax(worst_norm, fabs(n[1] / n_one[1] - 1.0) / scale);
        worst_val = fmax(worst_val, fabs(v[0] / v_one[0] - 1.0));
        void* all[] = { one, some, n_one, n, v_one, v };
        for (size_t i = 0; i < sizeof(all) / sizeof(all[0]); i++) { free(all[i]); }
    }
    char name[32];
    snprintf(name, sizeof(name), "gradients, %d ranks", ranks);
    report(worst < 1e-5 && worst_loss < 1e-6 && worst_norm < 1e-5 && worst_val < 5e-3, name,
           "worst tensor, %s of %s, off by %.1e of its length, norm by %.1e, loss by %.1e, "
           "validation after %d updates by %.1e; bounds 1e-5, 1e-5, 1e-6, 5e-3", where,
           cases[where_case].recipe, worst, worst_norm, worst_loss, STEPS, worst_val);
}

// Exact with two ranks, where a sum has one order; bounded with more. The ZeRO level does not
// change masters and moments after two updates; all ranks read the same weights.
static void test_levels(int ranks) {
    char name[32];
    size_t bytes, bytes_before;
    int same_weights = 0, same_bits = 0, pairs = 0;
    double worst = 0.0;
    for (int c = 0; c < NUM_CASES; c++) {
        uint64_t* hashes = (uint64_t*)file_get(directories[ranks], "hash", c, 0, ranks, &bytes);
        int same = 1;
        char* first = file_get(directories[ranks], "records", NUM_CASES + 1 + c, 0, 1, &bytes);
        for (int r = 1; r < ranks; r++) {
            char* other = file_get(directories[ranks], "records", NUM_CASES + 1 + c, r, 1,
                                   &bytes_before);
            same &= hashes[r] == hashes[0] && bytes == bytes_before
                 && memcmp(first, other, bytes) == 0;
            free(other);
        }
        same_weights += same;
        free(hashes);
        free(first);
        int before = c > 0 && cases[c].level > cases[c - 1].level && cases[c].micro_steps == 1
                     && strcmp(cases[c].recipe, cases[c - 1].recipe) == 0;
        if (!before) { continue; }
        pairs++;
        char* a = file_get(directories[ranks], "state", c - 1, 0, ranks, &bytes_before);
        char* b = file_get(directories[ranks], "state", c, 0, ranks, &bytes);
        float* ga = (float*)file_get(directories[ranks], "gradients", c - 1, 0, ranks, &bytes);
        float* gb = (float*)file_get(directories[ranks], "gradients", c, 0, ranks, &bytes);
        // the files of a part have its masters, then m, then v
        same_bits += memcmp(ga, gb, bytes) == 0 && memcmp(a, b, bytes_before) == 0;
        worst = fmax(worst, relative_distance(gb, ga, bytes / sizeof(float)));
        void* all[] = { a, b, ga, gb };
        for (size_t i = 0; i < sizeof(all) / sizeof(all[0]); i++) { free(all[i]); }
    }
    snprintf(name, sizeof(name), "-z 0, 1, 2, %d ranks", ranks);
    report(pairs == 3 && same_weights == NUM_CASES && (ranks == 2 ? same_bits == pairs
           : worst < 1e-6), name, "the ranks' weights equal in %d of %d cases; %d of %d changes of "
           "the level give the same bits, gradients off by %.1e, bound 1e-6", same_weights,
           NUM_CASES, same_bits, pairs, worst);
}

// Exact on the CPU, where all operands are equal: what guards.h counts in the first update, summed
// over the ranks, is what one rank counts. Exact: no gradient is zero; all ranks have read the same
// weights, as the checksums that each has sent to all tell; and if one bit is another, that rank has
// another checksum.
static void test_guards(int ranks) {
    size_t bytes, bytes_one;
    char name[32];
    int wrong = 0, numbers = 0, first_one = GUARD_CHECKSUMS + 1, first = GUARD_CHECKSUMS + ranks;
    for (int c = 0; c < NUM_CASES; c++) {
        double* one = (double*)file_get(directories[1], "guards", c, 0, 1, &bytes_one);
        double* all = (double*)file_get(directories[ranks], "guards", c, 0, ranks, &bytes);
        int tensors = (int)(bytes_one / sizeof(double)) - first_one;
        int counts = RUNS_ON_CPU && !cases[c].local_amax ? GUARD_CHECKSUMS : 0;
        for (int rank = 0; rank < ranks; rank++) {
            const double* some = all + rank * (first + tensors);
            for (int i = 0; i < counts; i++) { wrong += some[i] != one[i]; }
            for (int i = 0; i < ranks; i++) {
                wrong += some[GUARD_CHECKSUMS + i] != all[GUARD_CHECKSUMS]
                      || some[GUARD_CHECKSUMS + i] == 0.0;
            }
            for (int i = 0; i < tensors; i++) { wrong += some[first + i] == 0.0; }
            numbers += first + tensors;
        }
        double* flipped = (double*)file_get(directories[ranks], "flipped", c, 0, 1, &bytes);
        for (int i = 1; i < ranks; i++) {
            int differs = flipped[GUARD_CHECKSUMS + i] != flipped[GUARD_CHECKSUMS];
            wrong += differs != (i == ranks - 1);
        }
        free(flipped);
        free(one);
        free(all);
    }
    snprintf(name, sizeof(name), "guards, %d ranks", ranks);
    report(wrong == 0 && numbers > 0, name, "%d of %d counts are wrong", wrong, numbers);
}

// Exact counts, as in test_ranks_equal.c: weights of blocks in NVFP4 take 3.5 times fewer bytes.
static void test_wire(int ranks) {
    size_t bytes;
    char name[32];
    double sent[NUM_RANKS_KINDS] = { 0 };
    double* numbers = (double*)file_get(directories[ranks], "numbers", NVFP4_CASE + 1, 0, ranks,
                                        &bytes);
    for (int i = 0; i < ranks * NUM_RANKS_KINDS; i++) {
        sent[i % NUM_RANKS_KINDS] += numbers[i / NUM_RANKS_KINDS * (2 + NUM_RANKS_KINDS) + 2
                                             + i % NUM_RANKS_KINDS];
    }
    free(numbers);
    ParamSpec specs[NUM_PARAMS];
    GPT2Config config = gpt2_config(MODEL, STEP_T);
    double n = (double)gpt2_param_specs(specs, &config), coded = 0.0, others = ranks - 1;
    for (int i = 0; i < NUM_LINEARS; i++) {
        coded += (double)specs[linear_param(i)].size * (config.L - 1);
    }
    double operands = 2.0 * 4.0 * others * 4 * NUM_LINEARS * (config.L - 1);
    double tiles = sent[RANKS_AMAX] - operands;
    snprintf(name, sizeof(name), "bytes, %d ranks", ranks);
    report(sent[RANKS_CODES_AND_SCALES] == coded / 2 * others && tiles == coded / 32 * others
           && sent[RANKS_WEIGHTS] == 2 * (n - coded) * others
           && sent[RANKS_GRADIENTS] == 4 * n * others, name, "%.0f weights: %.0f as codes and %.0f "
           "for tile amaxes, %.2f times fewer than in BF16; others %.0f, gradients %.0f", coded,
           sent[RANKS_CODES_AND_SCALES], tiles,
           2 * coded * others / (sent[RANKS_CODES_AND_SCALES] + tiles), sent[RANKS_WEIGHTS],
           sent[RANKS_GRADIENTS]);
}

// ---------------------------------------------------------------------------------------------

// A text of 31 letters in which each is one of four, given the one before.
static void write_tokens(const char* path) {
    enum { N = 20000 };
    int32_t header[256] = { TOKENS_MAGIC, TOKENS_VERSION, N };
    uint16_t* tokens = (uint16_t*)xmalloc(N * sizeof(uint16_t), "tokens");
    tokens[0] = 1;
    for (int i = 1; i < N; i++) {
        uint32_t word = philox4x32(3, (uint32_t)i, 0, 0, 0).word[0] % 4;
        tokens[i] = (uint16_t)((7u * tokens[i - 1] + word * word) % 31);
    }
    file_put(path, header, sizeof(header));
    file_put(path, tokens, N * sizeof(uint16_t));
    free(tokens);
}

// Stated, not tested: GEMMs of other sizes add in another order, and what flips one BF16 rounding
// spreads from layer to layer. Tested is that equal tensors give equal codes.
static void test_whole_step(int ranks) {
    Equality forward = compare_records(NVFP4_CASE + 1, ranks, 1);
    Equality step = compare_records(NVFP4_CASE + 1, ranks, 0);
    char name[32];
    snprintf(name, sizeof(name), "%s, %d ranks", model_text, ranks);
    report(step.wrong == 0, name, "%zu operands, %zu from equal tensors, %zu of them differ; %.2f %% "
           "of %zu codes equal, of the forward pass %.2f %% of %zu", step.records, step.same_source,
           step.wrong, 100.0 * (double)step.equal_codes / (double)step.codes, step.codes,
           100.0 * (double)forward.equal_codes / (double)forward.codes, forward.codes);
}

static int start(const char* program, int ranks, const char* directory) {
    char command[3 * PATH_BYTES];
    snprintf(command, sizeof(command), "mpirun --oversubscribe --bind-to none -np %d %s work %s "
             "%s %d > %s/out", ranks, program, directory, model_text, step_T, directory);
    fflush(stdout);
    return system(command);
}

int main(int argc, char** argv) {
    int work_it = argc == 5 && strcmp(argv[1], "work") == 0;
    if (work_it || argc == 3) {
        model_text = argv[argc - 2];
        step_T = atoi(argv[argc - 1]);
    }
    if (work_it) { return work_as_rank(argc, argv); }
    if (device_missing("test_ranks_model")) { return report_status(); }
    if (!RANKS_HAVE_MPI || !RANKS_HAVE_NCCL || system("mpirun --version > /dev/null 2>&1") != 0) {
        report_skip("many ranks", "no MPI, or no NCCL, on this machine");
        return 0;
    }
    int devices = 4;
    if (!RUNS_ON_CPU) { cudaCheck(cudaGetDeviceCount(&devices)); }
    if (devices < 2) {
        report_skip("many ranks", "one GPU");
        return 0;
    }
    setenv("OMP_NUM_THREADS", "1", 1);
    setenv("OMPI_ALLOW_RUN_AS_ROOT", "1", 1);
    setenv("OMPI_ALLOW_RUN_AS_ROOT_CONFIRM", "1", 1);
    check(mkdtemp(workplace) != NULL, "cannot make a directory in /tmp");
    char path[PATH_BYTES];
    path_format(path, "%s/tokens.bin", workplace);
    write_tokens(path);
    for (int ranks = 1; ranks <= 4 && ranks <= devices; ranks *= 2) {
        path_format(directories[ranks], "%s/%d", workplace, ranks);
        directory_create(directories[ranks]);
        double begin = seconds_now();
        int status = start(argv[0], ranks, directories[ranks]);
        report(status == 0, "a run", "%d ranks, %.0f s", ranks, seconds_now() - begin);
        if (status != 0) { return 1; }
    }
    for (int ranks = 2; ranks <= 4 && ranks <= devices; ranks *= 2) {
        if (argc == 3) {
            test_whole_step(ranks);
            continue;
        }
        test_operands(ranks);
        test_gradients(ranks);
        test_levels(ranks);
        test_wire(ranks);
        test_guards(ranks);
    }
    if (devices < 4) { report_skip("4 ranks", "fewer GPUs"); }
    char command[PATH_BYTES + 16];
    snprintf(command, sizeof(command), "rm -rf %s", workplace);
    return system(command) != 0 || report_status();
}
