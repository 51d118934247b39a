/* Rows of a plain matrix, four at a time: what the kernels of all cores share.
 *
 * core.h chooses one of plain.h, dsp.h, mve.h and avx2.h. Each has the same six functions:
 *   rnnc_line_of   x as its kernels take it
 *   rnnc_rows      sums of neighbouring rows over x, rounded and put where they belong
 *   rnnc_grid      the same over all lines of a grid at once, for the first of the rows; returns how many it took
 *   rnnc_clip      as rnnc_saturate
 *   rnnc_activate  an activation of an array
 *   rnnc_move      an array as the matrices take it
 */
#ifndef RNNC_ROWS_H
#define RNNC_ROWS_H

#include <stddef.h>
#include <string.h>

#include "rnnc.h"
#include "rnnc_fixed.h"

#if defined __GNUC__
#define RNNC_INLINE static inline __attribute__((always_inline))
#define RNNC_APART static __attribute__((noinline, unused))
#else
#define RNNC_INLINE static inline
#define RNNC_APART static inline
#endif
#if defined __GNUC__ && defined __OPTIMIZE__ && !defined RNNC_MVE /* whose compilers make vectors of the loop */
#define RNNC_UNROLL _Pragma("GCC unroll 4")
#else
#define RNNC_UNROLL
#endif
#define RNNC_SUM_BITS 24 /* of products and biases */

/* Numbers that lie side by side, with what a core's kernels want besides: a copy of 8 bits, their sum. */
typedef struct {
    const int16_t *x;
    const int8_t *narrow;
    int32_t sum;
} rnnc_line;

/* Where results go: of RNNC_SUM_BITS, they are added to `sum`, of fewer, stored in `mid`; so far from one to the next. */
typedef struct {
    int32_t *sum;
    int16_t *mid;
    uint32_t next;
    uint8_t bits;
} rnnc_out;

/* Lines whose numbers lie side by side, so far from one to the next. */
typedef struct {
    const int16_t *x;
    uint32_t count, next;
} rnnc_lines;

/* One sum, rounded by its shift and put at a place. */
RNNC_INLINE void rnnc_put(const rnnc_out *out, uint32_t place, int32_t sum, int shift)
{
    if (out->bits == RNNC_SUM_BITS) {
        out->sum[place * out->next] += rnnc_requant(sum, shift, RNNC_SUM_BITS);
    } else {
        out->mid[place * out->next] = (int16_t)rnnc_requant(sum, shift, out->bits);
    }
}

/* A number of the store. Of 4 bits, two lie in a byte: 0xF1 holds 1 and -1. Of 16, the low byte is first. */
static inline int32_t rnnc_number(const rnnc_plain *w, uint32_t place)
{
    if (w->bits == 8) {
        return w->weights[place];
    }
    if (w->bits == 16) {
        return w->weights[2 * place + 1] * 256 + (uint8_t)w->weights[2 * place];
    }
    const int32_t nibble = (w->weights[place >> 1] >> ((place & 1U) * 4U)) & 0xF;
    return nibble < 8 ? nibble : nibble - 16;
}

/* The weight of a row at column c of what is stored for it; `from`: where its row (its four) begins in the store.
 *
 * Fours of rows: two columns of rows 0 and 1, then of rows 2 and 3. A pair of rows is one number, 256 w1 + w0: where w0
 * is negative, what is stored of w1 is one less. Bytes FF FF hold -1 and 0. Of 4 bits, rows 2 and 3 are in the high
 * halves, and weights plus 8 are stored. */
static inline int32_t rnnc_weight(const rnnc_plain *w, uint32_t from, uint32_t row, uint32_t c)
{
    if (w->tile == 0) {
        return rnnc_number(w, from + c);
    }
    if (w->tile == 1) {
        return rnnc_number(w, from + (c & ~3U) + ((c & 1U) << 1) + ((c >> 1) & 1U));
    }
    const uint32_t upper = row & 1U, last = (row >> 1) & 1U, at = from + (c >> 1) * 8U;
    if (w->bits == 4) {
        return (rnnc_number(w, at + (c & 1U) * 4U + upper * 2U + last) & 0xF) - 8;
    }
    const uint32_t low = at + last * 4U + (c & 1U) * 2U;
    return upper ? w->weights[low + 1U] + (w->weights[low] < 0) : w->weights[low];
}

/* rnnc_requant of an array to 16 bits or fewer. A number 2^15 times as large is saturated, or 0: so is one 2^16 times. */
static inline void rnnc_plain_move(const int16_t *from, int16_t *to, uint32_t count, int s, int bits)
{
    const int down = s > 0 ? s : 0;
    const int32_t factor = INT32_C(1) << (s > 0 ? 0 : s > -15 ? -s : 15);
    for (uint32_t i = 0; i < count; i++) {
        to[i] = (int16_t)rnnc_saturate(rnnc_shift_right(from[i], down) * factor, bits);
    }
}

/* Sum of weights times x over one row, plainly. */
static inline int32_t rnnc_sum(const rnnc_plain *w, uint32_t row, const int16_t *x)
{
    const uint32_t high = w->tile > 1 ? w->tile : 1U, tile = row / high;
    int32_t total = 0;
    if (w->map == NULL && w->steps == NULL) {
        const uint32_t unit = w->tile == 4 ? 2U : w->tile == 1 ? 4U : 1U;
        const uint32_t from = tile * high * ((w->inputs + unit - 1U) / unit * unit);
        for (uint32_t i = 0; i < w->inputs; i++) {
            total += rnnc_weight(w, from, row, i) * x[i];
        }
        return total;
    }
    if (w->map == NULL) {
        const uint32_t size = high * w->block;
        for (uint32_t k = w->start[tile]; k < w->start[tile + 1]; k++) {
            x += (uint32_t)w->steps[k] * w->block;
            for (uint32_t i = 0; i < w->block; i++) {
                total += rnnc_weight(w, k * size, row, i) * x[i];
            }
        }
        return total;
    }
    const uint32_t blocks = w->inputs / w->block;
    const uint8_t *map = w->map + row * ((blocks + 7) / 8);
    uint32_t place = w->start[row];
    for (uint32_t b = 0; b < blocks; b++) {
        if (((uint32_t)map[b >> 3] >> (b & 7U)) & 1U) {
            for (uint32_t i = b * w->block; i < (b + 1) * w->block; i++) {
                total += rnnc_number(w, place++) * x[i];
            }
        }
    }
    return total;
}

/* Rows one by one. */
static inline void rnnc_plain_rows(
    const rnnc_plain *w, uint32_t row, uint32_t count, const rnnc_line *x, const rnnc_out *out)
{
    for (uint32_t i = 0; i < count; i++) {
        rnnc_put(out, i, rnnc_sum(w, row + i, x->x), w->shifts[row + i]);
    }
}

/* Sums of `count` rows, 4 at most, from `row` on, whose weights begin at `at`; returns where the next begin. `a`, `b`:
 * constants of the function. */
typedef const int8_t *rnnc_sums(const rnnc_plain *w, const int8_t *at, uint32_t row, uint32_t count,
    const rnnc_line *x, int32_t sum[4], int a, int b);

/* Four sums rounded by their shifts. */
typedef void rnnc_round(int32_t sum[4], const int8_t *shifts, int bits);

/* Rows by fours; the weights of the first begin at `at`. */
RNNC_INLINE void rnnc_fours(const rnnc_plain *w, const int8_t *at, uint32_t row, uint32_t count, const rnnc_line *x,
    const rnnc_out *out, rnnc_sums *sums, int a, int b, rnnc_round *round)
{
    const uint32_t next = out->next;
    const int8_t *shifts = w->shifts + row;
    int32_t *y = out->sum;
    int16_t *mid = out->mid;
    const int bits = out->bits, adding = bits == RNNC_SUM_BITS;
    for (const int8_t *last = shifts + count / 4 * 4; shifts != last; shifts += 4, row += 4) {
        int32_t sum[4];
        at = sums(w, at, row, 4, x, sum, a, b);
        if (adding && next == 1) {
            round(sum, shifts, RNNC_SUM_BITS);
            RNNC_UNROLL
            for (uint32_t k = 0; k < 4; k++) {
                y[k] += sum[k];
            }
            y += 4;
        } else if (adding) {
            round(sum, shifts, RNNC_SUM_BITS);
            RNNC_UNROLL
            for (uint32_t k = 0; k < 4; k++) {
                y[k * next] += sum[k];
            }
            y += 4 * next;
        } else {
            round(sum, shifts, bits);
            RNNC_UNROLL
            for (uint32_t k = 0; k < 4; k++) {
                mid[k * next] = (int16_t)sum[k];
            }
            mid += 4 * next;
        }
    }
    if (count % 4 > 0) {
        int32_t sum[4];
        sums(w, at, row, count % 4, x, sum, a, b);
        for (uint32_t k = 0; k < count % 4; k++) {
            rnnc_put(out, count / 4 * 4 + k, sum[k], shifts[k]);
        }
    }
}

#endif
