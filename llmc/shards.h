/*
Which part of the parameters a rank owns, and how the parts travel.

Masters, moments and gradients are vectors over all parameters, in the order of gpt2.h. With several
ranks such a vector is cut into as many equal parts, wherever a tensor may begin or end; only blocks
of 16 elements stay together, which share an NVFP4 scale (every tensor is a multiple of 16). What a
rank holds is llm.c's ZeRO level:

    -z 0    everything; every rank makes the whole update
    -z 1    masters and moments of its part; it updates that and gets the others' weights
    -z 2    of its part gradients as well

With one rank all of it is one part, and nothing in this file does anything.

What travels is seldom the whole vector: the gradients of one block, the weights in one format. It
is described by ranges of the vector, which lie one after the other ("packed") in the buffer that
travels. Ranges are in the vector's order, so each rank's part of the buffer is one piece again.

C11 that also compiles as C++17.
*/
#ifndef LLMC_SHARDS_H
#define LLMC_SHARDS_H

#include "multi_rank.h"

#define SHARD_BLOCK 16          // elements that no cut separates

typedef struct {
    size_t first, count;        // elements first .. first + count - 1
} Range;

typedef struct {
    Ranks* ranks;
    int level;                  // 0, 1, 2 as above; 0 if there is one rank
    size_t size;                // of the vector
    size_t* begin;              // (ranks + 1) rank i's part is begin[i] .. begin[i + 1] - 1
    size_t* cut;                // (ranks + 1) the same of a buffer that travels: shards_cut
    Range part;                 // this rank's part
    Range own;                  // the masters and moments that this rank holds: all, or its part
} Shards;

// ---------------------------------------------------------------------------------------------

static inline Range range_overlap(Range a, Range b) {
    size_t first = a.first > b.first ? a.first : b.first;
    size_t end_a = a.first + a.count, end_b = b.first + b.count;
    size_t end = end_a < end_b ? end_a : end_b;
    Range overlap = { first, end > first ? end - first : 0 };
    return overlap;
}

// How many elements of these ranges come before element `index` of the vector.
static inline size_t ranges_before(const Range* ranges, int n, size_t index) {
    size_t before = 0;
    for (int i = 0; i < n && ranges[i].first < index; i++) {
        size_t left = index - ranges[i].first;
        before += left < ranges[i].count ? left : ranges[i].count;
    }
    return before;
}

// A vector of `size` elements, a multiple of 16.
static inline void shards_open(Shards* s, Ranks* ranks, int level, size_t size) {
    size_t n = (size_t)ranks->size, rank = (size_t)ranks->rank;
    check(size % SHARD_BLOCK == 0, "%zu parameters are not a multiple of %d", size, SHARD_BLOCK);
    s->ranks = ranks;
    s->level = n > 1 ? level : 0;
    s->size = size;
    s->begin = (size_t*)xmalloc((n + 1) * sizeof(size_t), "shards");
    s->cut = (size_t*)xmalloc((n + 1) * sizeof(size_t), "shards");
    for (size_t i = 0; i <= n; i++) { s->begin[i] = size / SHARD_BLOCK * i / n * SHARD_BLOCK; }
    s->part.first = s->begin[rank];
    s->part.count = s->begin[rank + 1] - s->begin[rank];
    s->own.first = s->level == 0 ? 0 : s->part.first;
    s->own.count = s->level == 0 ? size : s->part.count;
}

// Where each rank's part of the packed ranges begins, at block_size (bytes, elements) for 16
// elements.
static inline const size_t* shards_cut(const Shards* s, const Range* ranges, int n,
                                       size_t block_size) {
    for (int i = 0; i <= s->ranks->size; i++) {
        s->cut[i] = ranges_before(ranges, n, s->begin[i]) / SHARD_BLOCK * block_size;
    }
    return s->cut;
}

// ---------------------------------------------------------------------------------------------
// Collectives: all ranks call them together

// Each rank has set its own part of the packed ranges; afterwards all have all of it.
static inline void shards_gather(const Shards* s, void* packed, const Range* ranges, int n,
                                 size_t block_bytes, RanksKind kind, const char* what) {
    if (s->level == 0) { return; }
    ranks_gathers(s->ranks, kind);
    ranks_all_gather(s->ranks, packed, shards_cut(s, ranges, n, block_bytes), what);
}

// Adds this rank's part of the packed ranges, summed over the ranks, to `own` (own.count). What is
// left in `packed` means nothing.
static inline void shards_add_sum(const Shards* s, float* own, float* packed, const Range* ranges,
                                  int n, const char* what) {
    const size_t* cut = shards_cut(s, ranges, n, SHARD_BLOCK);
    ranks_reduce_scatter(s->ranks, packed, cut, what);
    const float* sum = packed + cut[s->ranks->rank];
    for (int i = 0; i < n; i++) {
        Range here = range_overlap(ranges[i], s->own);
        for (size_t j = 0; j < here.count; j++) { own[here.first - s->own.first + j] += sum[j]; }
        sum += here.count;
    }
}

// all (range.count) = one range of the vector of which each rank has its own part.
static inline void shards_collect(const Shards* s, float* all, const float* own, Range range,
                                  const char* what) {
    Range here = range_overlap(range, s->own);
    memcpy(all + (here.first - range.first), own + (here.first - s->own.first),
           here.count * sizeof(float));
    shards_gather(s, all, &range, 1, SHARD_BLOCK * sizeof(float), RANKS_OTHER, what);
}

#endif
