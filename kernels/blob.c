/* A model out of bytes, as rnnc/export/blob.py writes them, with everything checked that the kernels rely on.
 *
 * Layout, little-endian, in words of 4 bytes: magic, format version, size in bytes, kind; the structures of rnnc.h,
 * field by field, each number one word; the arrays, each beginning at a multiple of 4; CRC-32 of all before. In the
 * place of a pointer stands: for an array, its distance from the beginning in bytes, 0 for none; for a structure, 1 and
 * the structure, or 0; for several, they themselves. A structure that is not used is all zeros.
 *
 * Whatever the bytes are, loading ends with a status, and a model that loads keeps to the bounds of its arrays and to
 * the ranges of rnnc_fixed.h. A machine that is not little-endian finds the magic wrong.
 */
#include "rnnc.h"

#include <stddef.h>
#include <string.h>

#include "rows.h"

#define MAGIC 0x434E4E52 /* "RNNC" */
#define FORMAT 1
#define HEADER 16U
#define CHECKSUM 4U
#define PLAIN_WORDS 12
#define MAT_WORDS (11 + 3 * PLAIN_WORDS)
#define SMALLEST_WINDOW 64
#define LARGEST_WINDOW 2048
#define COSINE 1073736771 /* of 2 pi / 2048, Q.30 */
#define SINE 3294193
#define WIDEST_NIBBLES 4096 /* inputs of a four of rows of 4 bits */
#define WIDEST_SCRATCH (UINT32_C(1) << 20) /* numbers that one product may need */

enum { STACK, DENOISER };

typedef struct {
    const uint8_t *data;
    uint32_t size;   /* without the checksum */
    uint32_t at;     /* where the next number lies */
    uint8_t *arena;  /* NULL: only measure */
    uint32_t room;   /* bytes of it */
    uint32_t used;   /* bytes of it that are taken, or would be */
    rnnc_blob_status status; /* what was wrong first */
} reader;

static void check(reader *r, int right, rnnc_blob_status otherwise)
{
    if (!right && r->status == RNNC_BLOB_OK) {
        r->status = otherwise;
    }
}

/* The next number, from `low` to `high`; `low` once something is wrong. */
static int32_t number(reader *r, int32_t low, int32_t high)
{
    int32_t v = low;
    check(r, r->size - r->at >= sizeof v, RNNC_BLOB_SIZE);
    if (r->status == RNNC_BLOB_OK) {
        memcpy(&v, r->data + r->at, sizeof v);
        r->at += (uint32_t)sizeof v;
    }
    if (v < low || v > high) {
        check(r, 0, RNNC_BLOB_RANGE);
        v = low;
    }
    return v;
}

static uint8_t small(reader *r, uint8_t low, uint8_t high)
{
    return (uint8_t)number(r, low, high);
}

static uint16_t width(reader *r, uint16_t low)
{
    return (uint16_t)number(r, low, UINT16_MAX);
}

static uint8_t bits(reader *r)
{
    return small(r, 2, 16);
}

static int8_t shift(reader *r, int8_t low, int8_t high)
{
    return (int8_t)number(r, low, high);
}

/* So many numbers of a structure that is not used. */
static void absent(reader *r, uint32_t numbers)
{
    for (uint32_t i = 0; i < numbers; i++) {
        number(r, 0, 0);
    }
}

/* The array of so many bytes at a place of the blob. */
static const void *array(reader *r, int32_t at, uint64_t bytes)
{
    check(r, at >= (int32_t)HEADER && at % 4 == 0, RNNC_BLOB_PLACE);
    check(r, (uint64_t)(uint32_t)at + bytes <= r->size, RNNC_BLOB_PLACE);
    return r->status == RNNC_BLOB_OK ? r->data + at : NULL;
}

static int32_t place(reader *r)
{
    return number(r, 0, INT32_MAX);
}

static const int16_t *biases(reader *r, uint32_t count)
{
    const int32_t at = place(r);
    return at != 0 ? array(r, at, 2 * (uint64_t)count) : NULL;
}

/* Room for so many bytes in the arena, at a multiple of 8; NULL when measuring or if there is none. */
static void *reserve(reader *r, uint32_t bytes)
{
    const uint32_t at = r->used;
    r->used += (bytes + 7U) / 8U * 8U;
    check(r, r->arena == NULL || r->used <= r->room, RNNC_BLOB_ARENA);
    return r->arena != NULL && r->status == RNNC_BLOB_OK ? r->arena + at : NULL;
}

/* A copy of a structure in the arena. */
static void *keep(reader *r, const void *from, uint32_t bytes)
{
    void *const to = reserve(r, bytes);
    return to != NULL ? memcpy(to, from, bytes) : NULL;
}

/* Rows that lie together. */
static uint32_t high(const rnnc_plain *w)
{
    return w->tile == 4 ? 4 : 1;
}

static uint32_t tiles(const rnnc_plain *w)
{
    return (w->outputs + high(w) - 1) / high(w);
}

/* How many numbers are stored of a row: all inputs, filled up to whole tiles, or its kept blocks. */
static uint32_t stored(const rnnc_plain *w, uint32_t row)
{
    if (w->steps != NULL) {
        const uint32_t *start = w->start + row / high(w);
        return w->block * (start[1] - start[0]);
    }
    if (w->map == NULL) {
        return w->inputs + (w->tile == 4 ? w->inputs % 2U : 0U);
    }
    const uint32_t blocks = w->inputs / w->block;
    const uint8_t *map = w->map + row * ((blocks + 7) / 8);
    uint32_t count = 0;
    for (uint32_t b = 0; b < blocks; b++) {
        count += w->block * (((uint32_t)map[b >> 3] >> (b & 7U)) & 1U);
    }
    return count;
}

/* A matrix with a map: each row begins where the one before ends. Returns the weights of all. */
static uint32_t mapped(reader *r, const rnnc_plain *w)
{
    uint32_t total = 0;
    for (uint32_t row = 0; row < w->outputs; row++) {
        check(r, w->start[row] == total, RNNC_BLOB_SHAPE);
        total += stored(w, row);
    }
    return total;
}

/* A matrix with steps: those of a tile never lead past its blocks. Returns the weights of all. */
static uint32_t stepped(reader *r, rnnc_plain *w, int32_t steps)
{
    const uint32_t blocks = (uint32_t)w->inputs / w->block, count = w->start[tiles(w)];
    w->steps = array(r, steps, count);
    check(r, w->start[0] == 0, RNNC_BLOB_SHAPE);
    for (uint32_t t = 0; r->status == RNNC_BLOB_OK && t < tiles(w); t++) {
        const uint32_t from = w->start[t], to = w->start[t + 1];
        check(r, from <= to && to - from <= blocks && to <= count, RNNC_BLOB_SHAPE);
        uint32_t b = 0;
        for (uint32_t k = from; r->status == RNNC_BLOB_OK && k < to; k++) {
            b += w->steps[k];
            check(r, b < blocks && (k == from || w->steps[k] > 0), RNNC_BLOB_SHAPE);
        }
    }
    return count * high(w) * w->block;
}

/* Whether a matrix is stored in a way that the kernels have. */
static int known(const rnnc_plain *w, int map, int steps, int start)
{
    const int tile = w->tile == 0 ? w->bits == 4 || w->bits == 8 || w->bits == 16
        : w->tile == 1            ? w->bits == 8 && steps
                                  : w->tile == 4 && (w->bits == 8 || (w->bits == 4 && w->inputs <= WIDEST_NIBBLES));
    const int block = w->block == 0 ? !map && !steps : w->inputs % w->block == 0 && map != steps;
    const int order = !map || w->tile == 0;
    const int step = !steps || (w->tile == 1 && w->block == 4) || (w->tile == 4 && w->block % 2 == 0);
    return tile && block && order && step && (map || steps) == start;
}

static void plain(reader *r, rnnc_plain *w)
{
    w->outputs = width(r, 1);
    w->inputs = width(r, 1);
    w->bits = small(r, 4, 16);
    w->tile = small(r, 0, 4);
    w->block = small(r, 0, UINT8_MAX);
    w->sum_bits = small(r, 1, 31);
    w->x_bits = bits(r);
    const int32_t weights = place(r), shifts = place(r), map = place(r), steps = place(r), start = place(r);
    check(r, known(w, map != 0, steps != 0, start != 0), RNNC_BLOB_SHAPE);
    w->shifts = array(r, shifts, w->outputs);
    for (uint32_t row = 0; r->status == RNNC_BLOB_OK && row < w->outputs; row++) {
        check(r, w->shifts[row] >= -30 && w->shifts[row] <= 30, RNNC_BLOB_RANGE);
    }
    if (r->status == RNNC_BLOB_OK && start != 0) {
        w->map = map != 0 ? array(r, map, (uint64_t)w->outputs * (((uint32_t)w->inputs / w->block + 7) / 8)) : NULL;
        w->start = array(r, start, 4 * (uint64_t)(map != 0 ? w->outputs : tiles(w) + 1));
    }
    if (r->status == RNNC_BLOB_OK) {
        const uint64_t count = map != 0 ? mapped(r, w)
            : steps != 0                ? stepped(r, w, steps)
                                        : (uint64_t)tiles(w) * high(w) * stored(w, 0);
        w->weights = array(r, weights, (count * w->bits + 7) / 8);
    }
}

/* What the kernels rely on, for inputs of so many bits, where so many rows are used at once: sums of products have the
 * bits that they are said to have, sum |w| below 2^(sum - inputs); what fills up a tile's columns is 0, and rows of a
 * tile are used together. */
static void prove(reader *r, const rnnc_plain *w, int inputs_bits, uint32_t together)
{
    uint32_t from = 0;
    if (w->sum_bits < inputs_bits) {
        check(r, 0, RNNC_BLOB_SUM);
        return;
    }
    check(r, w->x_bits == inputs_bits && (together == w->outputs || together % high(w) == 0), RNNC_BLOB_SHAPE);
    for (uint32_t row = 0; r->status == RNNC_BLOB_OK && row < tiles(w) * high(w); row++) {
        const uint32_t count = stored(w, row);
        uint32_t total = 0;
        for (uint32_t c = 0; c < count; c++) {
            const int32_t v = rnnc_weight(w, from, row, c);
            total += (uint32_t)(v < 0 ? -v : v);
            check(r, v == 0 || c < w->inputs, RNNC_BLOB_SHAPE);
            check(r, v < 128 || w->bits == 16, RNNC_BLOB_RANGE); /* FF 7F in a four */
        }
        check(r, total < UINT32_C(1) << (w->sum_bits - inputs_bits), RNNC_BLOB_SUM);
        from += row % high(w) == high(w) - 1 ? count * high(w) : 0;
    }
}

/* The product's outputs of a block: rank numbers between. */
static void lowrank(reader *r, const rnnc_mat *mat, uint32_t outputs)
{
    check(r, mat->first.inputs == mat->inputs, RNNC_BLOB_SHAPE);
    check(r, mat->first.outputs == (uint32_t)mat->blocks * mat->second.inputs, RNNC_BLOB_SHAPE);
    check(r, mat->second.outputs == mat->blocks * outputs, RNNC_BLOB_SHAPE);
    check(r, mat->terms == 0 && mat->x_line == 0 && mat->x_next == 0, RNNC_BLOB_SHAPE);
    check(r, mat->y_first == 0 && mat->y_second == 0, RNNC_BLOB_SHAPE);
}

/* first: [blocks terms p][k], second: [blocks q][terms lines]; x has lines of k, y p times q numbers. The strides are
 * those of one order of the factors or of the other, so that each number of x and y has its place. */
static void kron(reader *r, const rnnc_mat *mat, uint32_t outputs)
{
    const uint32_t blocks = mat->blocks, terms = mat->terms != 0 ? mat->terms : 1U;
    const uint32_t p = mat->first.outputs / blocks / terms, k = mat->first.inputs;
    const uint32_t q = mat->second.outputs / blocks, lines = mat->second.inputs / terms;
    check(r, mat->terms == terms && mat->first.outputs == blocks * terms * p, RNNC_BLOB_SHAPE);
    check(r, mat->second.outputs == blocks * q && mat->second.inputs == terms * lines, RNNC_BLOB_SHAPE);
    check(r, lines * k == mat->inputs && p * q == outputs, RNNC_BLOB_SHAPE);
    check(r, (uint64_t)p * mat->second.inputs <= 2 * WIDEST_SCRATCH, RNNC_BLOB_RANGE); /* or its count would overflow */
    const int along = mat->x_line == k && mat->x_next == 1 && mat->y_first == 1 && mat->y_second == p;
    const int across = mat->x_line == 1 && mat->x_next == lines && mat->y_first == q && mat->y_second == 1;
    check(r, along || across, RNNC_BLOB_SHAPE);
}

static void mat(reader *r, rnnc_mat *mat)
{
    mat->kind = (rnnc_kind)number(r, RNNC_DENSE, RNNC_KRON);
    mat->inputs = width(r, 1);
    mat->outputs = width(r, 1);
    mat->blocks = width(r, 1);
    mat->top = width(r, mat->kind == RNNC_DENSE);
    if (mat->top != 0) {
        plain(r, &mat->plain);
        check(r, mat->plain.inputs == mat->inputs, RNNC_BLOB_SHAPE);
        check(r, mat->plain.outputs == (uint32_t)mat->blocks * mat->top, RNNC_BLOB_SHAPE);
    } else {
        absent(r, PLAIN_WORDS);
    }
    if (mat->kind == RNNC_DENSE) {
        absent(r, MAT_WORDS - 5 - PLAIN_WORDS);
        check(r, mat->outputs == (uint32_t)mat->blocks * mat->top, RNNC_BLOB_SHAPE);
        return;
    }
    plain(r, &mat->first);
    plain(r, &mat->second);
    mat->terms = small(r, 0, UINT8_MAX);
    mat->mid_bits = bits(r);
    mat->x_line = width(r, 0);
    mat->x_next = width(r, 0);
    mat->y_first = width(r, 0);
    mat->y_second = width(r, 0);
    check(r, mat->outputs % mat->blocks == 0 && mat->outputs / mat->blocks > mat->top, RNNC_BLOB_SHAPE);
    const uint32_t outputs = (uint32_t)mat->outputs / mat->blocks - mat->top; /* of the product, in a block */
    if (r->status == RNNC_BLOB_OK && mat->kind == RNNC_KRON) {
        kron(r, mat, outputs);
    } else if (r->status == RNNC_BLOB_OK) {
        lowrank(r, mat, outputs);
    }
    check(r, r->status != RNNC_BLOB_OK || rnnc_mat_scratch(mat) <= WIDEST_SCRATCH, RNNC_BLOB_RANGE);
}

static void prove_all(reader *r, const rnnc_mat *mat, int inputs_bits)
{
    if (r->status == RNNC_BLOB_OK && mat->top != 0) {
        prove(r, &mat->plain, inputs_bits, mat->top);
    }
    if (r->status == RNNC_BLOB_OK && mat->kind != RNNC_DENSE) {
        const uint32_t terms = mat->kind == RNNC_KRON ? mat->terms : 1;
        prove(r, &mat->first, inputs_bits, mat->first.outputs / mat->blocks / terms);
        prove(r, &mat->second, mat->mid_bits, mat->second.outputs / mat->blocks);
    }
}

static void cell(reader *r, rnnc_cell *c)
{
    c->step = (rnnc_step)number(r, RNNC_LSTM, RNNC_FASTRNN);
    c->n = width(r, 1);
    c->m = width(r, 1);
    c->joint = small(r, 0, 1);
    const uint32_t gates = c->step == RNNC_LSTM ? 4 : c->step == RNNC_GRU ? 3 : 1, outputs = gates * c->m;
    mat(r, &c->kernel);
    check(r, c->kernel.inputs == c->n + (c->joint ? c->m : 0U) && c->kernel.outputs == outputs, RNNC_BLOB_SHAPE);
    if (c->joint) {
        absent(r, MAT_WORDS);
    } else {
        mat(r, &c->recurrent);
        check(r, c->recurrent.inputs == c->m && c->recurrent.outputs == outputs, RNNC_BLOB_SHAPE);
    }
    c->bias = biases(r, outputs);
    c->recurrent_bias = biases(r, outputs);
    c->x_shift = shift(r, -30, 30);
    c->h_shift = shift(r, -30, 30);
    c->x_bits = bits(r);
    c->h_bits = bits(r);
    c->c_frac = shift(r, 0, 30);
    c->h_frac = shift(r, 0, 30);
    c->h_out_bits = bits(r);
    c->hn_frac = shift(r, -18, 27);
    c->alpha = (int16_t)number(r, 0, INT16_MAX);
    c->beta = (int16_t)number(r, 0, INT16_MAX);
    const int joint_bits = c->x_bits > c->h_bits ? c->x_bits : c->h_bits;
    prove_all(r, &c->kernel, c->joint ? joint_bits : c->x_bits);
    if (!c->joint) {
        prove_all(r, &c->recurrent, c->h_bits);
    }
}

/* The gate over what the top cell remembers. */
static const rnnc_skip *skip(reader *r, const rnnc_cell *top)
{
    if (number(r, 0, 1) == 0) {
        return NULL;
    }
    rnnc_skip s = {0};
    plain(r, &s.gate);
    s.bias = (int16_t)number(r, INT16_MIN, INT16_MAX);
    s.slowest = (int16_t)number(r, 1, INT16_MAX);
    check(r, s.gate.outputs == 1 && s.gate.inputs == top->m, RNNC_BLOB_SHAPE);
    prove(r, &s.gate, top->step == RNNC_LSTM ? 16 : top->h_out_bits, 1);
    return keep(r, &s, sizeof s);
}

/* A stack that takes so many numbers, or any if 0. Returns how many it gives. */
static uint32_t stack(reader *r, const rnnc_stack **kept, uint32_t inputs)
{
    rnnc_stack s = {0};
    s.cells = small(r, 1, UINT8_MAX);
    const rnnc_cell **const cells = (const rnnc_cell **)reserve(r, s.cells * (uint32_t)sizeof *cells);
    rnnc_cell c = {0};
    uint32_t below = inputs;
    for (uint32_t i = 0; i < s.cells; i++) {
        memset(&c, 0, sizeof c);
        cell(r, &c);
        check(r, c.n == below || below == 0, RNNC_BLOB_SHAPE);
        below = c.m;
        const rnnc_cell *const copy = keep(r, &c, sizeof c);
        if (cells != NULL) {
            cells[i] = copy;
        }
    }
    s.cell = cells;
    s.skip = skip(r, &c);
    *kept = keep(r, &s, sizeof s);
    return below;
}

static void dense(reader *r, rnnc_dense *d, uint32_t inputs)
{
    mat(r, &d->mat);
    check(r, d->mat.inputs == inputs, RNNC_BLOB_SHAPE);
    d->bias = biases(r, d->mat.outputs);
    check(r, d->bias != NULL, RNNC_BLOB_SHAPE);
    d->activation = (rnnc_activation)number(r, RNNC_RELU, RNNC_SIGMOID);
    d->x_shift = shift(r, -30, 30);
    d->x_bits = bits(r);
    d->y_frac = shift(r, -18, 30);
    d->y_bits = bits(r);
    prove_all(r, &d->mat, d->x_bits);
}

/* The network's inputs and outputs are the front end's bands. */
static const rnnc_net *net(reader *r, rnnc_blob *model, uint32_t bands)
{
    rnnc_net n = {0};
    number(r, 1, 1); /* it has a stack */
    uint32_t below = stack(r, &n.stack, bands);
    n.layers = small(r, 1, UINT8_MAX);
    rnnc_dense *const layers = reserve(r, n.layers * (uint32_t)sizeof *layers);
    for (uint32_t i = 0; i < n.layers; i++) {
        rnnc_dense d = {0};
        dense(r, &d, below);
        below = d.mat.outputs;
        if (layers != NULL) {
            layers[i] = d;
        }
    }
    check(r, below == bands, RNNC_BLOB_SHAPE);
    n.layer = layers;
    model->stack = n.stack;
    return keep(r, &n, sizeof n);
}

/* The table is -sin(2 pi k / window), Q0.15, within 1.2: so a transform keeps the energy of its numbers. */
static void sine(reader *r, const rnnc_front *f)
{
    int64_t c = COSINE, s = SINE, re = INT64_C(1) << 30, im = 0; /* Q.30 */
    for (uint32_t n = LARGEST_WINDOW; n > f->window; n /= 2) {
        const int64_t doubled = (c * s) >> 29;
        c = (c * c - s * s) >> 30;
        s = doubled;
    }
    for (uint32_t k = 0; k < f->window; k++) {
        const int64_t off = f->sine[k] * INT64_C(32768) + im, turned = (re * c - im * s) >> 30;
        check(r, off > -40000 && off < 40000, RNNC_BLOB_RANGE);
        im = (re * s + im * c) >> 30;
        re = turned;
    }
}

/* Unfinished sound stays within 2^30: a windowed frame's numbers stay below 2^28, so that after two transforms, each
 * divided by M, none is above 2^28.5 / sqrt(M), whatever the gains; the weights of those that overlap are added. */
static void overlap(reader *r, const rnnc_front *f)
{
    const uint32_t half = f->window / 2U;
    for (uint32_t i = 0; i <= half; i++) {
        check(r, f->analysis[i] <= 32768 && f->synthesis[i] >> f->synthesis_shift < 8, RNNC_BLOB_RANGE);
    }
    for (uint32_t from = 0; from < f->hop; from++) {
        uint64_t sum = 0;
        for (uint32_t i = from; i < f->window; i += f->hop) {
            sum += f->synthesis[i <= half ? i : f->window - i];
        }
        check(r, sum * sum <= (uint64_t)half << (3 + 2 * f->synthesis_shift), RNNC_BLOB_SUM);
    }
}

/* Each band lies within the bins, and its weights add up to 1. Returns the weights of all. */
static uint32_t bands(reader *r, const rnnc_front *f, int32_t weights)
{
    uint32_t total = 0;
    for (uint32_t b = 0; b < f->bands; b++) {
        check(r, f->start[b] + f->count[b] <= f->window / 2 + 1, RNNC_BLOB_SHAPE);
        total += f->count[b];
    }
    const uint16_t *weight = array(r, weights, 2 * (uint64_t)total);
    for (uint32_t b = 0; r->status == RNNC_BLOB_OK && b < f->bands; b++) {
        uint32_t sum = 0;
        for (uint32_t i = 0; i < f->count[b]; i++) {
            sum += *weight++;
        }
        check(r, sum == 32768, RNNC_BLOB_RANGE);
    }
    return total;
}

static const uint16_t *halves(reader *r, int32_t at, uint32_t count)
{
    return array(r, at, 2 * (uint64_t)count);
}

static const rnnc_front *front(reader *r, uint16_t *bands_)
{
    rnnc_front f = {0};
    f.window = (uint16_t)number(r, SMALLEST_WINDOW, LARGEST_WINDOW);
    f.hop = width(r, 1);
    f.bands = width(r, 1);
    f.first = width(r, 0);
    f.last = width(r, 0);
    f.synthesis_shift = small(r, 1, 24);
    f.place_frac = small(r, 0, 15);
    f.x_bits = bits(r);
    const int32_t sines = place(r), analysis = place(r), synthesis = place(r);
    const int32_t start = place(r), count = place(r), weights = place(r), places = place(r);
    f.least = number(r, 1, INT32_C(1) << 24);
    f.power = number(r, 0, INT32_C(1) << 16);
    f.offset = number(r, -(INT32_C(1) << 26), INT32_C(1) << 26);
    f.mean = number(r, 1 - (INT32_C(1) << 29), (INT32_C(1) << 29) - 1);
    const uint32_t bins = f.window / 2U + 1U;
    check(r, (f.window & (f.window - 1U)) == 0 && f.hop < f.window && f.window % f.hop == 0, RNNC_BLOB_SHAPE);
    check(r, f.first <= bins && f.last < bins, RNNC_BLOB_SHAPE);
    f.sine = array(r, sines, 2 * (uint64_t)f.window);
    f.analysis = halves(r, analysis, bins);
    f.synthesis = halves(r, synthesis, bins);
    f.start = halves(r, start, f.bands);
    f.count = halves(r, count, f.bands);
    f.place = halves(r, places, bins);
    if (r->status == RNNC_BLOB_OK) {
        sine(r, &f);
        overlap(r, &f);
        f.weights = halves(r, weights, bands(r, &f, weights));
    }
    for (uint32_t k = 0; r->status == RNNC_BLOB_OK && k < bins; k++) {
        check(r, f.place[k] <= (f.bands - 1U) << f.place_frac, RNNC_BLOB_RANGE);
    }
    *bands_ = f.bands;
    return keep(r, &f, sizeof f);
}

static void denoiser(reader *r, rnnc_blob *model)
{
    rnnc_denoiser d = {0};
    uint16_t count;
    number(r, 1, 1); /* it has a front end */
    d.front = front(r, &count);
    number(r, 1, 1); /* and a network */
    d.net = net(r, model, count);
    model->net = d.net;
    model->denoiser = keep(r, &d, sizeof d);
}

/* CRC-32 as Ethernet has it: of "123456789", 0xCBF43926. */
static uint32_t checksum(const uint8_t *data, uint32_t size)
{
    uint32_t crc = UINT32_MAX;
    for (uint32_t i = 0; i < size; i++) {
        crc ^= data[i];
        for (int bit = 0; bit < 8; bit++) {
            crc = (crc >> 1) ^ ((crc & 1U) * UINT32_C(0xEDB88320));
        }
    }
    return ~crc;
}

static uint32_t word(const uint8_t *at)
{
    uint32_t v;
    memcpy(&v, at, sizeof v);
    return v;
}

/* Everything; where something is wrong, the model is left without parts. */
static void load(reader *r, const void *data, uint32_t size, rnnc_blob *model)
{
    const uint8_t *const bytes = data;
    memset(model, 0, sizeof *model);
    check(r, data != NULL, RNNC_BLOB_NULL);
    check(r, (uintptr_t)data % 4 == 0 && (uintptr_t)r->arena % 8 == 0, RNNC_BLOB_ALIGNMENT);
    check(r, size >= HEADER + CHECKSUM && size <= INT32_MAX, RNNC_BLOB_SIZE);
    if (r->status == RNNC_BLOB_OK) {
        check(r, word(bytes) == MAGIC, RNNC_BLOB_MAGIC);
        check(r, word(bytes + 4) == FORMAT, RNNC_BLOB_VERSION);
        check(r, word(bytes + 8) == size, RNNC_BLOB_SIZE);
        check(r, checksum(bytes, size - CHECKSUM) == word(bytes + size - CHECKSUM), RNNC_BLOB_CHECKSUM);
    }
    if (r->status == RNNC_BLOB_OK) {
        r->data = bytes;
        r->size = size - CHECKSUM;
        r->at = HEADER - 4U;
        if (number(r, STACK, DENOISER) == DENOISER) {
            denoiser(r, model);
        } else {
            stack(r, &model->stack, 0);
        }
    }
    if (r->status != RNNC_BLOB_OK) {
        memset(model, 0, sizeof *model);
    }
}

uint32_t rnnc_blob_bytes(const void *data, uint32_t size)
{
    rnnc_blob model;
    reader r = {0};
    load(&r, data, size, &model);
    return r.status == RNNC_BLOB_OK ? r.used : 0;
}

rnnc_blob_status rnnc_blob_open(const void *data, uint32_t size, void *arena, uint32_t bytes, rnnc_blob *model)
{
    reader r = {0};
    r.arena = arena;
    r.room = bytes;
    if (model == NULL) {
        return RNNC_BLOB_NULL;
    }
    check(&r, arena != NULL, RNNC_BLOB_NULL);
    load(&r, data, size, model);
    return r.status;
}
