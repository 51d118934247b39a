/* Denoisers in integers, for chips without a floating-point unit: from int16 sound to int16 sound, or layer by layer.
 *
 * Every number is q * 2^-frac, at a named point that SEMANTICS.md lists. The results equal those of the Python library's
 * `Fixed` arithmetic bit for bit. There is no heap, no global and no floating point here: a model is constant data (as
 * the exporter writes it), the caller owns state and scratch, and nothing is kept between calls but the state.
 *
 * Activations are int16 arrays whatever their format's width: one of 8 bits lies within -128 .. 127.
 */
#ifndef RNNC_H
#define RNNC_H

#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

/* Weights begin at a word, so that some kernels may load them by words. */
#if defined __GNUC__
#define RNNC_ALIGNED __attribute__((aligned(4)))
#else
#define RNNC_ALIGNED
#endif

/* A matrix of so many outputs, each with a frac of its own; all weights are stored, or the kept blocks of them.
 *
 * `tile` says how the weights lie; SEMANTICS.md has the order within a tile:
 *   0  row by row; of 4 bits two in a byte, the first in the low half; of 16 the low byte first
 *   1  four neighbours of a row together
 *   4  two neighbours of each of four rows together; rows and inputs are filled up with zeros to whole tiles
 * The kept blocks are marked in `map` (tile 0), or listed in `steps` (tiles 1 and 4: then a block spans all rows of a
 * tile).
 */
typedef struct {
    uint16_t outputs;      /* rows */
    uint16_t inputs;       /* columns */
    uint8_t bits;          /* of a weight: 4, 8, or 16 (tile 0) */
    uint8_t tile;          /* 0, 1 or 4 */
    uint8_t block;         /* with kept blocks: neighbouring inputs of one; divides `inputs` */
    uint8_t sum_bits;      /* hold the sum of products of each row for every x, 31 at most */
    uint8_t x_bits;        /* of what it is applied to */
    const int8_t *weights; /* at a word, or kernels for RNNC_DSP read them plainly */
    const int8_t *shifts;  /* [outputs]: of the sum, to the frac of the point where it is stored */
    const uint8_t *map;    /* [outputs][ceil(inputs / block / 8)]: set where a block is stored, from the lowest bit; or NULL */
    const uint8_t *steps;  /* a number per kept block: how many blocks it lies after the last one of its rows; or NULL */
    const uint32_t *start; /* map: [outputs], each row's first weight; steps: [tiles + 1], each tile's first block */
} rnnc_plain;

typedef enum { RNNC_DENSE, RNNC_LOWRANK, RNNC_KRON } rnnc_kind;

/* A structured matrix, y = W x, in `blocks` blocks of outputs that lie side by side (the gates, or one for all).
 *
 * Each block: first `top` outputs of a plain matrix, then those of a product of two matrices, if there is one:
 *   LOWRANK  y = second (first x)
 *   KRON     x is a grid; `first` runs along its lines of first.inputs numbers, `second` over what comes out,
 *            with the terms side by side; the strides say in which of the two orders the factors are applied.
 */
typedef struct {
    rnnc_kind kind;
    uint16_t inputs, outputs;
    uint16_t blocks;
    uint16_t top;       /* free outputs of a block; all, in a dense matrix */
    rnnc_plain plain;   /* [blocks * top][inputs] */
    rnnc_plain first;   /* LOWRANK: [blocks * r][inputs]; KRON: [blocks * terms * p][k] */
    rnnc_plain second;  /* LOWRANK: [blocks * m][r]; KRON: [blocks * q][terms * lines] */
    uint8_t terms;      /* KRON: summands */
    uint8_t mid_bits;   /* of what comes out of `first` */
    uint16_t x_line, x_next;   /* KRON: strides of x from line to line, and within one */
    uint16_t y_first, y_second; /* KRON: strides of y along the outputs of `first` and of `second` */
} rnnc_mat;

typedef enum { RNNC_LSTM, RNNC_GRU, RNNC_FASTRNN } rnnc_step;

/* A cell of n inputs and m units. Shifts go from the frac of a point's operands to that of its result. */
typedef struct {
    rnnc_step step;
    uint16_t n, m;
    uint8_t joint;           /* `kernel` is applied to [x; h], `recurrent` is unused */
    rnnc_mat kernel;         /* [gates * m][n]; joint: [gates * m][n + m] */
    rnnc_mat recurrent;      /* [gates * m][m] */
    const int16_t *bias;           /* [gates * m] on the input product, Q3.12; NULL: none */
    const int16_t *recurrent_bias; /* [gates * m] on the recurrent product, Q3.12; NULL: none */
    int8_t x_shift, h_shift; /* from x and h to what the matrices take */
    uint8_t x_bits, h_bits;  /* bits of what the matrices take */
    int8_t c_frac, h_frac;   /* of LSTM's memory (16 bits) and of the output */
    uint8_t h_out_bits;      /* of the output */
    int8_t hn_frac;          /* of GRU's recurrent product for the candidate (16 bits) */
    int16_t alpha, beta;     /* FASTRNN: sigmoid(alpha), sigmoid(beta), Q0.15 */
} rnnc_cell;

/* The gate of a stack that skips frames, over the top cell's memory (LSTM) or output. */
typedef struct {
    rnnc_plain gate;  /* [1][m], sums to Q.12 */
    int16_t bias;     /* Q3.12 */
    int16_t slowest;  /* least increment, Q0.15 */
} rnnc_skip;

/* A stack of cells, the lowest first; `skip` lets all of them sleep, NULL: never. */
typedef struct {
    uint8_t cells;
    const rnnc_cell *const *cell;
    const rnnc_skip *skip;
} rnnc_stack;

typedef enum { RNNC_RELU, RNNC_SIGMOID } rnnc_activation;

/* A layer without memory: y = activation(W x + b). */
typedef struct {
    rnnc_mat mat;
    const int16_t *bias; /* [outputs], Q3.12 */
    rnnc_activation activation;
    int8_t x_shift;      /* from x to what the matrix takes */
    uint8_t x_bits;
    int8_t y_frac;       /* of a rectified output; a sigmoid gives Q0.15 */
    uint8_t y_bits;
} rnnc_dense;

/* A denoiser's network, from features to the mask: a stack, then dense layers. */
typedef struct {
    const rnnc_stack *stack;
    uint8_t layers;
    const rnnc_dense *layer;
} rnnc_net;

/* From sound to features and from masks to sound. Tables of a window are symmetric: one half and the middle.
 * M = window / 2, bins = M + 1. Spectra are [window + 2] int32, real and imaginary parts in turn, in units of 2^-13 M. */
typedef struct {
    uint16_t window;           /* samples, a power of two from 64 to 2048 */
    uint16_t hop;              /* samples, divides the window at least twice */
    uint16_t bands;
    uint16_t first, last;      /* bins with a gain of their own; the others' is 0 */
    uint8_t synthesis_shift;   /* of a sample times `synthesis`, to the frac of unfinished sound */
    uint8_t place_frac;
    uint8_t x_bits;            /* of the features */
    const int16_t *sine;       /* [window]: -sin(2 pi k / window), Q0.15 */
    const uint16_t *analysis;  /* [M + 1], Q1.15 */
    const uint16_t *synthesis; /* [M + 1] */
    const uint16_t *start;     /* [bands]: the first bin of each */
    const uint16_t *count;     /* [bands]: how many bins it has */
    const uint16_t *weights;   /* of the bins of each band in turn, Q1.15, with a sum of 1 */
    const uint16_t *place;     /* [bins] on the axis of bands, with `place_frac` */
    int32_t least;             /* added to magnitudes, in squares, so that there is a logarithm */
    int32_t power;             /* of the compression, Q1.15 */
    int32_t offset;            /* of the features' logarithm, Q.15 */
    int32_t mean;              /* of the features, with 8 bits more than they have */
} rnnc_front;

/* A whole denoiser. */
typedef struct {
    const rnnc_front *front;
    const rnnc_net *net;
} rnnc_denoiser;

typedef enum {
    RNNC_OK,
    RNNC_NULL,       /* a pointer is NULL */
    RNNC_MISALIGNED, /* the memory does not begin at a multiple of 4 */
    RNNC_TOO_SMALL,  /* the memory is smaller than rnnc_denoiser_state_bytes */
    RNNC_BAD_MODEL,  /* the front end and the network do not fit, or a size is none that the kernels have */
    RNNC_NOT_READY,  /* the memory was not initialised, or for a model of other sizes */
    RNNC_BAD_LIMIT   /* not 0 to 32767 */
} rnnc_status;

/* Bytes of memory that a denoiser needs, state and scratch; 0 for NULL or a bad model. */
uint32_t rnnc_denoiser_state_bytes(const rnnc_denoiser *model);

/* Prepare the memory, which the caller owns and which begins at a multiple of 4; no limit is set. */
rnnc_status rnnc_denoiser_init(const rnnc_denoiser *model, void *memory, uint32_t bytes);

/* So many samples in, as many out, rnnc_denoiser_latency samples later; out may be in. Blocks may have any size. */
rnnc_status rnnc_denoiser_process(
    const rnnc_denoiser *model, void *memory, const int16_t *in, int16_t *out, uint32_t samples);

/* Forget all that was heard; the limit stays. */
rnnc_status rnnc_denoiser_reset(const rnnc_denoiser *model, void *memory);

/* Attenuate nothing further than to `least`, Q0.15: 0 (at first) is no limit, 3277 is 20 dB. */
rnnc_status rnnc_denoiser_limit(const rnnc_denoiser *model, void *memory, int32_t least);

/* Samples that the output is late, window - 1; 0 for NULL. */
uint32_t rnnc_denoiser_latency(const rnnc_denoiser *model);

/* Parts of the front end. frame [window] -> spectrum; work [window] is scratch. */
void rnnc_front_analyse(const rnnc_front *front, const int16_t *frame, int32_t *spectrum, int32_t *work);

/* spectrum -> features [bands], as the network takes them; work [bins]. */
void rnnc_front_features(const rnnc_front *front, const int32_t *spectrum, int16_t *features, int32_t *work);

/* Apply a mask [bands], Q0.15, and no gain under `least`; add to unfinished sound [window - hop], and give the next
 * out [hop]. The spectrum is used up; work [window]. */
void rnnc_front_synthesise(const rnnc_front *front, const int16_t *mask, int32_t least, int32_t *spectrum,
    int32_t *unfinished, int16_t *out, int32_t *work);

/* Numbers of int16 that a state takes: for each cell m (LSTM: 2 m), and two more where the stack skips. */
uint32_t rnnc_stack_state(const rnnc_stack *stack);

/* Numbers of int32 that a step needs as scratch. */
uint32_t rnnc_mat_scratch(const rnnc_mat *mat);
uint32_t rnnc_stack_scratch(const rnnc_stack *stack);

/* One output of a plain matrix, 24 bits, Q.12. */
int32_t rnnc_plain_output(const rnnc_plain *w, uint32_t row, const int16_t *x);

/* y += W x in int32, products of 24 bits. x [inputs], y [outputs], scratch [rnnc_mat_scratch]. */
void rnnc_matvec(const rnnc_mat *mat, const int16_t *x, int32_t *y, int32_t *scratch);

/* The state of silence. */
void rnnc_stack_reset(const rnnc_stack *stack, int16_t *state);

/* So many frames of a stack: x [frames][n], y [frames][m of the top cell] or NULL. Returns how many were not skipped. */
uint32_t rnnc_stack_run(
    const rnnc_stack *stack, uint32_t frames, const int16_t *x, int16_t *y, int16_t *state, int32_t *scratch);

/* The same for a network. Its state holds the last output too: that of a skipped frame. */
uint32_t rnnc_net_state(const rnnc_net *net);
uint32_t rnnc_net_scratch(const rnnc_net *net);
void rnnc_net_reset(const rnnc_net *net, int16_t *state);
uint32_t rnnc_net_run(
    const rnnc_net *net, uint32_t frames, const int16_t *x, int16_t *y, int16_t *state, int32_t *scratch);

/* How many of the coming frames will be skipped: for so long, y stays what it is. */
uint32_t rnnc_stack_sleep(const rnnc_stack *stack, const int16_t *state);

/* A model that was loaded from bytes (blob.c); the parts that it does not have are NULL. */
typedef struct {
    const rnnc_stack *stack;
    const rnnc_net *net;
    const rnnc_denoiser *denoiser;
} rnnc_blob;

typedef enum {
    RNNC_BLOB_OK,
    RNNC_BLOB_ALIGNMENT, /* data must begin at a multiple of 4, the arena at one of 8 */
    RNNC_BLOB_SIZE,      /* not as many bytes as a model has, or as this one says */
    RNNC_BLOB_MAGIC,     /* no model */
    RNNC_BLOB_VERSION,   /* of another format */
    RNNC_BLOB_CHECKSUM,  /* damaged */
    RNNC_BLOB_PLACE,     /* an array lies outside */
    RNNC_BLOB_RANGE,     /* a number out of its range */
    RNNC_BLOB_SHAPE,     /* parts that do not fit together */
    RNNC_BLOB_SUM,       /* a sum of products could overflow */
    RNNC_BLOB_ARENA,     /* too small */
    RNNC_BLOB_NULL       /* a pointer is NULL */
} rnnc_blob_status;

/* Bytes of the arena that a model's structures take; 0: rnnc_blob_open would refuse the model. */
uint32_t rnnc_blob_bytes(const void *data, uint32_t size);

/* Load a model. Its numbers stay where they are, so `data` (in flash) and `arena` must live as long as the model.
 * Nothing is taken on trust: a damaged or hostile model is refused, or runs within its bounds. */
rnnc_blob_status rnnc_blob_open(const void *data, uint32_t size, void *arena, uint32_t bytes, rnnc_blob *model);

#ifdef __cplusplus
}
#endif

#endif
