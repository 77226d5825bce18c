/* The kernels' C interface: plain numbers and addresses, no PyTorch. Functions that can fail return 0 if all is well and 1 if
 * not, with the reason in axk1_error(). Every shape and bound is checked before anything is read or written. */
#pragma once

#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif
#pragma GCC visibility push(default)

enum { AXK1_FLOAT32, AXK1_BFLOAT16, AXK1_INT8, AXK1_INT4, AXK1_INT3, AXK1_LOSSLESS };

/* Rows of `columns` values. `side`: float32 scales of int8 (one per row) and of int4 and int3 (one per group, groups of equal size), or
 * what axk1_pack_lossless wrote beside the values. A vector has one row. */
typedef struct {
    const void* data;
    int64_t format, rows, columns;
    const void* side;
    int64_t side_bytes;
} axk1_matrix;

/* A model's sizes. `group_best`: how many of a group's best experts make its score. `exact`: all arithmetic in float32. */
typedef struct {
    int64_t layers, hidden, vocabulary, heads, nope, rope, value, query_rank, latent, interleave;
    int64_t dense_width, expert_width, shared_width, experts, groups, kept_groups, group_best, chosen, sigmoid, normalise, grouped;
    int64_t exact;
    double softmax_scale, eps, routed_scaling, angle_factor;
} axk1_shape;

/* Where an expert's bytes are: whole pages of 4096 bytes of files, which are put one after the other into its place in the
 * cache. `offset`, `bytes` and `place` are multiples of 4096; `needed`: as many of `bytes` have to be there. */
enum { AXK1_EXTENTS = 8 };
typedef struct {
    int64_t file, offset, bytes, needed, place;
} axk1_extent;
/* A matrix among these bytes: where its values are, and its scales, of `scale_bytes` each; and where in the expert's place,
 * after the bytes that were read, their float32 values are to be put (`side`). */
typedef struct {
    int64_t format, rows, columns, data, scales, scale_count, scale_bytes, side;
} axk1_stored;
typedef struct {
    int64_t extents;
    axk1_extent extent[AXK1_EXTENTS];
    axk1_stored gate, up, down;
} axk1_place;

/* What a stream has done. Times in nanoseconds: `stalled`, that steps waited; `reading`, of all reader threads together. */
typedef struct {
    int64_t lists, asked, hits, reads, bytes, stalls, stalled, reading;
} axk1_counters;

/* One step over the tokens of some sequences, one sequence after the other: first the `prompts` sequences that read a piece of
 * their prompt, then those that reply. Which way a token is computed depends on this alone. */
typedef struct {
    int64_t sequences, prompts, threads;
    const int64_t* starts;    /* [sequences + 1] into the tokens */
    const int64_t* cached;    /* [sequences] tokens in the cache before */
    const int64_t* positions; /* [tokens] */
    const int64_t* pages;     /* [sequences, most_pages] addresses of pages of 64 tokens */
    int64_t most_pages;
    const int64_t* layers;    /* [layers] bytes from a page's address to the layer's [64, latent + rope] */
    int64_t cache_format;
    const float* frequencies; /* [rope / 2] */
    const uint8_t* keep;      /* [sequences, keep_stride] 0 where nothing is attended to, or null */
    int64_t keep_stride;
    int64_t* ids;             /* [tokens], or null: `hidden` goes into the layers as it is */
    const void* hidden;       /* [tokens, hidden] of an MTP module, with ids; or in place of them */
    int64_t hidden_format;
    const int64_t* wanted;    /* [sequences] of how many last tokens states are wanted */
    const int64_t* scored;    /* [sequences] and logits; at most as many */
    void* states;             /* out [wanted, hidden], after the norm, in states_format; or null */
    int64_t states_format;
    float* logits;            /* out [scored, vocabulary], or null */
    int64_t* best;            /* out [scored], the first of the most probable tokens, or null */
} axk1_step;

typedef struct axk1_layers axk1_layers;
typedef struct axk1_stream axk1_stream;

const char* axk1_instructions(void);
const char* axk1_error(void);

axk1_layers* axk1_new(const axk1_shape* shape);
void axk1_delete(axk1_layers* layers);
/* A weight by the name that it has in checkpoints, without ".weight" and "model.layers.N."; layer -1: embed_tokens, lm_head,
 * norm, and hnorm, enorm, eh_proj of an MTP module. The memory stays the caller's and has to stay. */
int axk1_set(axk1_layers* layers, int64_t layer, const char* name, const axk1_matrix* weight);
/* The tokens of lm_head's rows, where it has not the whole vocabulary. */
int axk1_set_head_ids(axk1_layers* layers, const int64_t* ids, int64_t count);
/* The routed experts of `layer` are those of `stream_layer` of a stream, which has to stay. */
int axk1_set_store(axk1_layers* layers, int64_t layer, axk1_stream* stream, int64_t stream_layer);
/* All weights are there. */
int axk1_finish(axk1_layers* layers);

int axk1_run(axk1_layers* layers, const axk1_step* step);
/* `count` greedy drafts of `module` after `waiting`, whose pages have room for count - 1 tokens more, then a step of `trunk`,
 * whose ids hold the newest token of each sequence and get its drafts: count + 1 tokens per sequence. */
int axk1_speculate(axk1_layers* trunk, axk1_layers* module, const axk1_step* waiting, const axk1_step* step, int64_t count);

/* Experts that are read from files as they are asked for, into a cache of `slots` places of `slot_bytes` each, by `readers`
 * threads. The expert gives way whose uses, each counted `decay` times as much with every step of its layer since, are fewest. */
axk1_stream* axk1_stream_new(int64_t slots, int64_t slot_bytes, int64_t readers, double decay);
void axk1_stream_delete(axk1_stream* stream);
int axk1_stream_file(axk1_stream* stream, const char* path); /* files count from 0 */
int axk1_stream_add(axk1_stream* stream, int64_t layer, int64_t expert, const axk1_place* place);
void axk1_stream_count(axk1_stream* stream, axk1_counters* out);
/* What was asked for since tracing began: layer, number of experts and these, for each list. Copies at most `room` numbers and
 * returns how many there are; once they all have been copied they are forgotten. `on`: whether tracing goes on. */
int64_t axk1_stream_trace(axk1_stream* stream, int64_t on, int64_t* out, int64_t room);

/* out [rows, outputs] = x [rows, columns] times the weight, both of `format`. */
int axk1_linear(const axk1_matrix* weight, int64_t exact, const void* x, int64_t format, int64_t rows, void* out, int64_t threads);

/* Rounds `groups` groups of `group` (32, 64 or 128) float32 or bfloat16 weights to `bits`, 4 or 3, as int4 and int3 are packed,
 * each with the scale of least squared error among `tries` clips of its largest weight, which is stored as `largest`; a clip may
 * be negative, and a scale below `tiny` becomes 1. squares: the sums of the squared errors and weights. One thread. */
int axk1_round(const void* weight, int64_t format, int64_t bits, int64_t groups, int64_t group, const float* clips, int64_t tries, float largest, float tiny,
                    uint8_t* packed, float* scales, double* squares);

/* bfloat16 [rows, columns] in twelve bits: first the bytes that are needed beside the values, then packing. */
int64_t axk1_lossless_side(const uint16_t* values, int64_t rows, int64_t columns, int64_t threads);
int axk1_pack_lossless(const uint16_t* values, int64_t rows, int64_t columns, uint8_t* packed, uint8_t* side, int64_t side_bytes, int64_t threads);

#pragma GCC visibility pop
#ifdef __cplusplus
}
#endif
