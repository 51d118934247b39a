/* RNNC_DSP: Cortex-M4, M7 and M33 with the DSP extension. Fastest with weights in tiles.
 *
 * A word of a four of rows holds two columns of two rows and meets two numbers of x. A pair of rows is one number of 16
 * bits, 256 w1 + w0. So one multiplication of the word as it lies sums 256 times the upper row plus the lower one, and a
 * second one, of its low bytes, the lower row alone; what is left of the first is exactly 256 times the upper row. Its
 * sum has 64 bits, unless 32 are enough for it.
 *
 * [256*3 - 2 | 256*1 + 4] with x = [5 | 6]: 766*5 + 260*6 = 5390, -2*5 + 4*6 = 14, (5390 - 14) / 256 = 21 = 3*5 + 1*6.
 */
#ifndef RNNC_DSP_H
#define RNNC_DSP_H

#if defined __GNUC__ && !defined __clang__
#pragma GCC optimize("no-schedule-insns") /* before registers are given out: loads so early that they are spilled */
#endif

#include <arm_acle.h>

#include "rows.h"

#define RNNC_LOW_NIBBLES 0x0F0F0F0FU
enum { RNNC_NARROW_SUM_BITS = 24 }; /* of the upper row, for its pair to fit into 32 */

#define RNNC_SSAT(v, bits) ((int32_t)__builtin_arm_ssat(v, bits)) /* gcc's __ssat warns of its own sign */

/* The two words so many bytes behind p, which is aligned to a word. */
#if defined __arm__ && defined __OPTIMIZE__
#define RNNC_LOAD(a, b, p, bytes)                                                                                      \
    __asm__("ldrd %0, %1, [%2, %3]" : "=r"(a), "=r"(b) : "r"(p), "i"(bytes), "m"(*(const char(*)[8])((p) + (bytes))))
#else
#define RNNC_LOAD(a, b, p, bytes) (memcpy(&(a), (p) + (bytes), 4), memcpy(&(b), (p) + (bytes) + 4, 4))
#endif

/* What compilers do not find: the odd bytes of a word; the low and the high halves of two; half of v, saturated; that
 * a constant stays in its register. */
#if defined __arm__
#define RNNC_ODD_BYTES(to, word) __asm__("sxtb16 %0, %1, ror #8" : "=r"(to) : "r"(word))
#define RNNC_LOW_HALVES(to, a, b) __asm__("pkhbt %0, %1, %2, lsl #16" : "=r"(to) : "r"(a), "r"(b))
#define RNNC_HIGH_HALVES(to, a, b) __asm__("pkhtb %0, %2, %1, asr #16" : "=r"(to) : "r"(a), "r"(b))
#define RNNC_OPAQUE(v) __asm__("" : "+r"(v))
#define RNNC_SSAT_HALF(to, v, bits) __asm__("ssat %0, %2, %1, asr #1" : "=r"(to) : "r"(v), "i"(bits))
#else
#define RNNC_ODD_BYTES(to, word) ((to) = (uint32_t)__sxtb16((int8x4_t)((word) >> 8)))
#define RNNC_LOW_HALVES(to, a, b) ((to) = ((a) & 0xFFFFU) | (b) << 16)
#define RNNC_HIGH_HALVES(to, a, b) ((to) = (a) >> 16 | ((b) & 0xFFFF0000U))
#define RNNC_OPAQUE(v) ((void)(v))
#define RNNC_SSAT_HALF(to, v, bits) ((to) = RNNC_SSAT((v) >> 1, bits))
#endif

static inline rnnc_line rnnc_line_of(const rnnc_plain *w, const int16_t *x, int16_t *copy)
{
    rnnc_line line = {x, NULL, 0};
    if (((uintptr_t)line.x & 3U) != 0) {
        line.x = memcpy(copy, x, w->inputs * sizeof *x);
    }
    for (uint32_t i = 0; w->bits == 4 && i < w->inputs; i++) {
        line.sum += line.x[i];
    }
    return line;
}

RNNC_INLINE int32_t rnnc_clip(int32_t v, int bits)
{
    switch (bits) {
    case 8:
        return RNNC_SSAT(v, 8);
    case 16:
        return RNNC_SSAT(v, 16);
    case RNNC_SUM_BITS:
        return RNNC_SSAT(v, RNNC_SUM_BITS);
    default:
        return rnnc_saturate(v, bits);
    }
}

/* v / 2, its whole part, within 8 or 16 bits. */
RNNC_INLINE int32_t rnnc_half_of(int32_t v, int bits)
{
    int32_t half;
    if (bits == 8) {
        RNNC_SSAT_HALF(half, v, 8);
    } else {
        RNNC_SSAT_HALF(half, v, 16);
    }
    return half;
}

/* Both knots in one load: (k0 (128 - part) + k1 part + 64) >> 7. The weights of both are part times 2^16 - 1, and 128. */
RNNC_APART void rnnc_activate(const int16_t *knots, int32_t *z, uint32_t count)
{
    const int16_t *middle = knots + 256;
    uint32_t minus = 0xFFFFU, whole = 128;
    RNNC_OPAQUE(middle);
    RNNC_OPAQUE(minus);
    RNNC_OPAQUE(whole);
    RNNC_UNROLL
    for (const int32_t *last = z + count; z != last; z++) {
        const int32_t v = RNNC_SSAT(*z, 16);
        uint32_t both;
        memcpy(&both, middle + (v >> RNNC_KNOT_BITS), sizeof both);
        *z = __smlad((int16x2_t)both, (int16x2_t)(((uint32_t)v & 127U) * minus + whole), 64) >> RNNC_KNOT_BITS;
    }
}

/* Both numbers of a word times `scale`, which is 2^(17 - s), less 16 bits, and 1: so that half of it rounds by s. */
RNNC_INLINE uint32_t rnnc_moved(uint32_t both, int32_t scale, int bits)
{
    const int32_t low = rnnc_half_of(__smlawb(scale, (int32_t)both, 1), bits);
    const int32_t high = rnnc_half_of(__smlawt(scale, (int32_t)both, 1), bits);
    RNNC_LOW_HALVES(both, (uint32_t)low, (uint32_t)high);
    return both;
}

/* Two numbers at a time. */
RNNC_INLINE void rnnc_move_pairs(const int16_t *from, int16_t *to, uint32_t count, int32_t scale, int bits)
{
    uint32_t both = 0;
    RNNC_UNROLL
    for (const int16_t *last = from + count / 2 * 2; from != last; from += 2, to += 2) {
        memcpy(&both, from, sizeof both);
        both = rnnc_moved(both, scale, bits);
        memcpy(to, &both, sizeof both);
    }
    if (count % 2 > 0) {
        *to = (int16_t)rnnc_moved((uint16_t)*from, scale, bits);
    }
}

RNNC_APART void rnnc_move(const int16_t *from, int16_t *to, uint32_t count, int s, int bits)
{
    const int32_t scale = s > 17 ? 0 : INT32_C(1) << (s > -13 ? 17 - s : 30);
    if (s >= -13 && bits == 8) {
        rnnc_move_pairs(from, to, count, scale, 8);
    } else if (s >= -13 && bits == 16) {
        rnnc_move_pairs(from, to, count, scale, 16);
    } else {
        rnnc_plain_move(from, to, count, s, bits);
    }
}

/* Shifts of 1 and more, which is the rule, in one test: ((v >> (s - 1)) + 1) >> 1 rounds as rnnc_shift does. */
RNNC_INLINE void rnnc_round4(int32_t sum[4], const int8_t *shifts, int bits)
{
    uint32_t less;
    memcpy(&less, shifts, sizeof less);
    less -= 0x01010101U;
    if (less & 0x80808080U) {
        RNNC_UNROLL
        for (int k = 0; k < 4; k++) {
            sum[k] = rnnc_requant(sum[k], shifts[k], bits);
        }
    } else {
        RNNC_UNROLL
        for (int k = 0; k < 4; k++) {
            sum[k] = rnnc_clip(((sum[k] >> ((less >> (8 * k)) & 0xFFU)) + 1) >> 1, bits);
        }
    }
}

/* Of four rows: the lower ones of both pairs, and both rows of each pair together. */
typedef struct {
    int32_t low[2];
    int64_t pair[2];
} rnnc_four;

/* Two columns of a pair of rows. */
RNNC_INLINE void rnnc_pair(rnnc_four *s, int i, uint32_t w, uint32_t x, int bits, int wide)
{
    s->pair[i] = wide ? __smlald((int16x2_t)w, (int16x2_t)x, s->pair[i])
                      : __smlad((int16x2_t)w, (int16x2_t)x, (int32_t)s->pair[i]);
    s->low[i] = __smlad(bits == 8 ? __sxtb16((int8x4_t)w) : (int16x2_t)__uxtb16((uint8x4_t)w), (int16x2_t)x, s->low[i]);
}

/* The four columns behind column `at` of four rows. */
RNNC_INLINE void rnnc_columns(rnnc_four *s, const int8_t *w, const char *x, int at, int bits, int wide)
{
    uint32_t a, b, left, right;
    RNNC_LOAD(left, right, x, 2 * at);
    if (bits == 8) {
        uint32_t c, d;
        RNNC_LOAD(a, b, w, 4 * at);
        rnnc_pair(s, 0, a, left, bits, wide);
        rnnc_pair(s, 1, b, left, bits, wide);
        RNNC_LOAD(c, d, w, 4 * at + 8);
        rnnc_pair(s, 0, c, right, bits, wide);
        rnnc_pair(s, 1, d, right, bits, wide);
    } else {
        RNNC_LOAD(a, b, w, 2 * at);
        rnnc_pair(s, 0, a & RNNC_LOW_NIBBLES, left, bits, wide);
        rnnc_pair(s, 1, (a >> 4) & RNNC_LOW_NIBBLES, left, bits, wide);
        rnnc_pair(s, 0, b & RNNC_LOW_NIBBLES, right, bits, wide);
        rnnc_pair(s, 1, (b >> 4) & RNNC_LOW_NIBBLES, right, bits, wide);
    }
}

/* The last two columns, or one. */
RNNC_INLINE void rnnc_last_columns(rnnc_four *s, const int8_t *w, const char *x, uint32_t count, int bits, int wide)
{
    uint32_t a, b, both = 0;
    memcpy(&both, x, count > 1 ? 4 : 2);
    memcpy(&a, w, sizeof a);
    memcpy(&b, w + (bits == 8 ? 4 : 0), sizeof b);
    rnnc_pair(s, 0, bits == 8 ? a : a & RNNC_LOW_NIBBLES, both, bits, wide);
    rnnc_pair(s, 1, bits == 8 ? b : (b >> 4) & RNNC_LOW_NIBBLES, both, bits, wide);
}

/* The sums of four rows; of 4 bits, `sum` of x counts 8 times too often. */
RNNC_INLINE void rnnc_finish(const rnnc_four *s, int32_t x_sum, int32_t sum[4], int bits, int wide)
{
    const uint32_t more = bits == 8 ? 0 : 8 * (uint32_t)x_sum;
    RNNC_UNROLL
    for (int i = 0; i < 2; i++) {
        const int64_t upper = s->pair[i] - s->low[i];
        sum[2 * i] = (int32_t)((uint32_t)s->low[i] - more);
        sum[2 * i + 1] = (int32_t)((uint32_t)(wide ? (int32_t)(upper >> 8) : (int32_t)upper >> 8) - more);
    }
}

/* A four of rows, all columns. */
RNNC_INLINE const int8_t *rnnc_tile(const rnnc_plain *w, const int8_t *at, uint32_t row, uint32_t count,
    const rnnc_line *line, int32_t sum[4], int bits, int wide)
{
    (void)row, (void)count;
    rnnc_four s = {{0, 0}, {0, 0}};
    const char *x = (const char *)line->x;
    for (const char *last = x + w->inputs / 16 * 32; x != last; x += 32, at += 8 * bits) {
        rnnc_columns(&s, at, x, 0, bits, wide);
        rnnc_columns(&s, at, x, 4, bits, wide);
        rnnc_columns(&s, at, x, 8, bits, wide);
        rnnc_columns(&s, at, x, 12, bits, wide);
    }
    if (w->inputs % 16 > 0) {
        for (const char *last = x + w->inputs % 16 / 4 * 8; x != last; x += 8, at += 2 * bits) {
            rnnc_columns(&s, at, x, 0, bits, wide);
        }
        if (w->inputs % 4 > 0) {
            rnnc_last_columns(&s, at, x, w->inputs % 4, bits, wide);
            at += bits;
        }
        if (w->inputs % 4 > 2) {
            rnnc_last_columns(&s, at, x + 4, 1, bits, wide);
            at += bits;
        }
    }
    rnnc_finish(&s, line->sum, sum, bits, wide);
    return at;
}

/* A four of rows, its kept blocks of four columns. */
RNNC_INLINE const int8_t *rnnc_kept_tile(const rnnc_plain *w, const int8_t *at, uint32_t row, uint32_t count,
    const rnnc_line *line, int32_t sum[4], int bits, int wide)
{
    (void)count;
    rnnc_four s = {{0, 0}, {0, 0}};
    const char *x = (const char *)line->x;
    const uint8_t *step = w->steps + w->start[row / 4];
    for (const uint8_t *last = w->steps + w->start[row / 4 + 1]; step != last; at += 2 * bits) {
        x += 8U * *step++;
        rnnc_columns(&s, at, x, 0, bits, wide);
    }
    rnnc_finish(&s, 0, sum, bits, wide);
    return at;
}

/* Four columns of a row, with [x0 | x2] and [x1 | x3] if they lie in their order, else with [x0 | x1] and [x2 | x3]. */
RNNC_INLINE int32_t rnnc_four_columns(const int8_t *w, uint32_t first, uint32_t second, int32_t sum)
{
    uint32_t word, odd;
    memcpy(&word, w, sizeof word);
    RNNC_ODD_BYTES(odd, word);
    sum = __smlad(__sxtb16((int8x4_t)word), (int16x2_t)first, sum);
    return __smlad((int16x2_t)odd, (int16x2_t)second, sum);
}

/* Rows by themselves, their kept blocks of four columns. */
RNNC_INLINE const int8_t *rnnc_kept_rows(const rnnc_plain *w, const int8_t *at, uint32_t row, uint32_t count,
    const rnnc_line *line, int32_t sum[4], int a, int b)
{
    (void)a, (void)b;
    for (uint32_t k = 0; k < count; k++) {
        const char *x = (const char *)line->x;
        const uint8_t *step = w->steps + w->start[row + k];
        int32_t total = 0;
        RNNC_UNROLL
        for (const uint8_t *last = w->steps + w->start[row + k + 1]; step != last; at += 4) {
            uint32_t left, right;
            x += 8U * *step++;
            RNNC_LOAD(left, right, x, 0);
            total = rnnc_four_columns(at, left, right, total);
        }
        sum[k] = total;
    }
    return at;
}

/* Four rows that lie one behind the other; past the last one, it again. */
RNNC_INLINE const int8_t *rnnc_four_rows(const rnnc_plain *w, const int8_t *at, uint32_t row, uint32_t count,
    const rnnc_line *line, int32_t sum[4], int a, int b)
{
    (void)row, (void)a, (void)b;
    const uint32_t n = w->inputs, one = count > 1 ? n : 0, two = count > 2 ? one + n : one;
    const uint32_t three = count > 3 ? two + n : two;
    const char *x = (const char *)line->x;
    int32_t s0 = 0, s1 = 0, s2 = 0, s3 = 0;
    for (const int8_t *last = at + n / 4 * 4; at != last; x += 8, at += 4) {
        uint32_t left, right, even, odd;
        RNNC_LOAD(left, right, x, 0);
        RNNC_LOW_HALVES(even, left, right);
        RNNC_HIGH_HALVES(odd, left, right);
        s0 = rnnc_four_columns(at, even, odd, s0);
        s1 = rnnc_four_columns(at + one, even, odd, s1);
        s2 = rnnc_four_columns(at + two, even, odd, s2);
        s3 = rnnc_four_columns(at + three, even, odd, s3);
    }
    for (const int8_t *last = at + n % 4; at != last; x += 2, at++) {
        int16_t number;
        memcpy(&number, x, sizeof number);
        s0 += at[0] * number;
        s1 += at[one] * number;
        s2 += at[two] * number;
        s3 += at[three] * number;
    }
    sum[0] = s0;
    sum[1] = s1;
    sum[2] = s2;
    sum[3] = s3;
    return at + three;
}

static inline void rnnc_rows(
    const rnnc_plain *w, uint32_t row, uint32_t count, const rnnc_line *x, const rnnc_out *out)
{
    const int8_t *at = w->weights;
    const int aligned = ((uintptr_t)at & 3U) == 0, fours = w->tile == 4 && row % 4 == 0;
    if (fours && aligned && w->steps == NULL) {
        at += row / 4 * ((w->inputs + 1U) / 2) * w->bits;
        if (w->bits == 8 && w->sum_bits <= RNNC_NARROW_SUM_BITS) {
            rnnc_fours(w, at, row, count, x, out, rnnc_tile, 8, 0, rnnc_round4);
        } else if (w->bits == 8) {
            rnnc_fours(w, at, row, count, x, out, rnnc_tile, 8, 1, rnnc_round4);
        } else if ((uint32_t)w->inputs << w->x_bits <= 1U << 20) { /* 15 times so much for the upper row */
            rnnc_fours(w, at, row, count, x, out, rnnc_tile, 4, 0, rnnc_round4);
        } else {
            rnnc_fours(w, at, row, count, x, out, rnnc_tile, 4, 1, rnnc_round4);
        }
    } else if (fours && aligned && w->block == 4 && w->bits == 8) {
        at += w->start[row / 4] * 16;
        if (w->sum_bits <= RNNC_NARROW_SUM_BITS) {
            rnnc_fours(w, at, row, count, x, out, rnnc_kept_tile, 8, 0, rnnc_round4);
        } else {
            rnnc_fours(w, at, row, count, x, out, rnnc_kept_tile, 8, 1, rnnc_round4);
        }
    } else if (w->tile == 1 && w->steps != NULL && w->block == 4) {
        rnnc_fours(w, at + w->start[row] * 4, row, count, x, out, rnnc_kept_rows, 0, 0, rnnc_round4);
    } else if (w->tile == 0 && w->map == NULL && w->bits == 8) {
        rnnc_fours(w, at + row * w->inputs, row, count, x, out, rnnc_four_rows, 0, 0, rnnc_round4);
    } else {
        rnnc_plain_rows(w, row, count, x, out);
    }
}

/* v 2^-s, halves rounded up, as the upper half of v times 2^(32 - s), s from 2 on. */
#if defined __arm__
#define RNNC_TIMES(to, v, scale) __asm__("smmulr %0, %1, %2" : "=r"(to) : "r"(v), "r"(scale))
#else
#define RNNC_TIMES(to, v, scale) ((to) = (int32_t)(((int64_t)(v) * (scale) + (INT64_C(1) << 31)) >> 32))
#endif

enum { RNNC_GRID_INPUTS = 16, RNNC_THIN_INPUTS = 4 };

/* Four rows, or two, whose weights have 16 bits: pairs of columns, each of all rows. */
typedef struct {
    uint32_t pair[RNNC_GRID_INPUTS / 2][4];
    int32_t scale[4];
} rnnc_wide;

/* Columns 2 i and 2 i + 1 of a row, or 0. */
static inline uint32_t rnnc_two_weights(const rnnc_plain *w, uint32_t row, uint32_t i)
{
    const uint32_t n = w->inputs, from = w->tile == 4 ? row / 4 * 4 * ((n + 1U) / 2 * 2) : row * n;
    const int32_t a = 2 * i < n ? rnnc_weight(w, from, row, 2 * i) : 0;
    const int32_t b = 2 * i + 1 < n ? rnnc_weight(w, from, row, 2 * i + 1) : 0;
    return ((uint32_t)a & 0xFFFFU) | (uint32_t)b << 16;
}

/* Rows as they are. */
static inline void rnnc_unpack(const rnnc_plain *w, uint32_t row, uint32_t rows, rnnc_wide *wide)
{
    const uint32_t pairs = (w->inputs + 1U) / 2;
    if (w->tile == 4 && w->bits == 8 && rows == 4 && row % 4 == 0) {
        const int8_t *at = w->weights + row * pairs * 2;
        for (uint32_t *pair = wide->pair[0], *last = pair + 4 * pairs; pair != last; pair += 2, at += 4) {
            uint32_t both, upper;
            memcpy(&both, at, sizeof both);
            pair[0] = (uint32_t)__sxtb16((int8x4_t)both);
            both = (uint32_t)__ssub16((int16x2_t)both, (int16x2_t)pair[0]);
            RNNC_ODD_BYTES(upper, both);
            pair[1] = upper;
        }
        return;
    }
    for (uint32_t i = 0; i < pairs; i++) {
        for (uint32_t k = 0; k < rows; k++) {
            wide->pair[i][k] = rnnc_two_weights(w, row + k, i);
        }
    }
}

/* Rows from `row` on; where a sum is shifted by less than 2, its weights are 2^more times as large. */
static inline void rnnc_widen(const rnnc_plain *w, uint32_t row, uint32_t rows, rnnc_wide *wide)
{
    rnnc_unpack(w, row, rows, wide);
    for (uint32_t k = 0; k < rows; k++) {
        const int shift = w->shifts[row + k], more = shift < 2 ? 2 - shift : 0;
        wide->scale[k] = INT32_C(1) << (32 - shift - more);
        uint32_t *pair = wide->pair[0] + k;
        for (uint32_t i = 0; more > 0 && i < w->inputs; i += 2, pair += 4) {
            *pair = (*pair & 0xFFFF0000U) << more | (*pair << more & 0xFFFFU);
        }
    }
}

/* Put the sums of so many rows. */
RNNC_INLINE void rnnc_put_rows(const int32_t *v, const int32_t *scale, uint32_t rows, int32_t *sum, int16_t *mid,
    uint32_t next, int adding)
{
    RNNC_UNROLL
    for (uint32_t k = 0; k < rows; k++) {
        int32_t rounded;
        RNNC_TIMES(rounded, v[k], scale[k]);
        if (adding) {
            sum[k * next] += RNNC_SSAT(rounded, RNNC_SUM_BITS);
        } else {
            mid[k * next] = (int16_t)RNNC_SSAT(rounded, 16);
        }
    }
}

/* Four more columns of four rows. */
RNNC_INLINE void rnnc_wide_columns(int32_t v[4], const char *pair, const char *x, int at)
{
    uint32_t left, right, a, b;
    RNNC_LOAD(left, right, x, 2 * at);
    RNNC_LOAD(a, b, pair, 8 * at);
    v[0] = __smlad((int16x2_t)a, (int16x2_t)left, v[0]);
    v[1] = __smlad((int16x2_t)b, (int16x2_t)left, v[1]);
    RNNC_LOAD(a, b, pair, 8 * at + 8);
    v[2] = __smlad((int16x2_t)a, (int16x2_t)left, v[2]);
    v[3] = __smlad((int16x2_t)b, (int16x2_t)left, v[3]);
    RNNC_LOAD(a, b, pair, 8 * at + 16);
    v[0] = __smlad((int16x2_t)a, (int16x2_t)right, v[0]);
    v[1] = __smlad((int16x2_t)b, (int16x2_t)right, v[1]);
    RNNC_LOAD(a, b, pair, 8 * at + 24);
    v[2] = __smlad((int16x2_t)a, (int16x2_t)right, v[2]);
    v[3] = __smlad((int16x2_t)b, (int16x2_t)right, v[3]);
}

/* Four rows over all lines; `eights`: of columns, nothing else. */
RNNC_INLINE void rnnc_wide_rows(const rnnc_wide *wide, uint32_t n, const rnnc_lines *x, int32_t *sum, int16_t *mid,
    uint32_t next, uint32_t apart, int eights, int adding)
{
    const uint32_t step = 2 * x->next, size = 2 * n, back = step - size / 8 * 8;
    const char *p = (const char *)x->x;
    for (const char *end = p + x->count * step; p != end; p += back) {
        int32_t v[4] = {0, 0, 0, 0};
        const char *pair = (const char *)wide->pair;
        if (eights) {
            for (const char *last = p + size; p != last; p += 16, pair += 64) {
                rnnc_wide_columns(v, pair, p, 0);
                rnnc_wide_columns(v, pair, p, 4);
            }
        } else {
            for (const char *last = p + size / 8 * 8; p != last; p += 8, pair += 32) {
                rnnc_wide_columns(v, pair, p, 0);
            }
            if (n % 4 > 2) {
                rnnc_wide_columns(v, pair, p, 0);
            } else if (n % 4 > 0) {
                uint32_t left;
                memcpy(&left, p, sizeof left);
                RNNC_UNROLL
                for (uint32_t k = 0; k < 4; k++) {
                    v[k] = __smlad((int16x2_t)wide->pair[n / 4 * 2][k], (int16x2_t)left, v[k]);
                }
            }
        }
        rnnc_put_rows(v, wide->scale, 4, sum, mid, next, adding);
        sum += adding ? apart : 0;
        mid += adding ? 0 : apart;
    }
}

/* Rows of four columns at most, two or four of them held in registers, over all lines. */
RNNC_INLINE void rnnc_thin_rows(const rnnc_wide *wide, uint32_t rows, const rnnc_lines *x, int32_t *sum, int16_t *mid,
    uint32_t next, uint32_t apart, int few, int adding)
{
    uint32_t first[4], second[4];
    int32_t scale[4];
    for (uint32_t k = 0; k < rows; k++) {
        first[k] = wide->pair[0][k];
        second[k] = few ? 0 : wide->pair[1][k];
        scale[k] = wide->scale[k];
    }
    const uint32_t step = 2 * x->next;
    const char *line = (const char *)x->x;
    for (const char *last = line + x->count * step; line != last; line += step) {
        uint32_t left, right = 0;
        int32_t v[4];
        if (few) {
            memcpy(&left, line, sizeof left);
        } else {
            RNNC_LOAD(left, right, line, 0);
        }
        RNNC_UNROLL
        for (uint32_t k = 0; k < rows; k++) {
            v[k] = __smuad((int16x2_t)first[k], (int16x2_t)left);
            v[k] = few ? v[k] : __smlad((int16x2_t)second[k], (int16x2_t)right, v[k]);
        }
        rnnc_put_rows(v, scale, rows, sum, mid, next, adding);
        sum += adding ? apart : 0;
        mid += adding ? 0 : apart;
    }
}

/* Four rows, or two, of which there are no more columns than the structure holds. */
RNNC_INLINE void rnnc_rows_of_grid(const rnnc_wide *wide, uint32_t n, uint32_t rows, const rnnc_lines *x, int32_t *sum,
    int16_t *mid, uint32_t next, uint32_t apart, int adding)
{
    if (rows == 2 && n <= 2) {
        rnnc_thin_rows(wide, 2, x, sum, mid, next, apart, 1, adding);
    } else if (rows == 2) {
        rnnc_thin_rows(wide, 2, x, sum, mid, next, apart, 0, adding);
    } else if (n <= 2) {
        rnnc_thin_rows(wide, 4, x, sum, mid, next, apart, 1, adding);
    } else if (n <= RNNC_THIN_INPUTS) {
        rnnc_thin_rows(wide, 4, x, sum, mid, next, apart, 0, adding);
    } else if (n % 8 == 0) {
        rnnc_wide_rows(wide, n, x, sum, mid, next, apart, 1, adding);
    } else {
        rnnc_wide_rows(wide, n, x, sum, mid, next, apart, 0, adding);
    }
}

/* Whether to unpack weights for so many lines; their numbers and sums have room for what rnnc_widen does. */
static inline int rnnc_grid_pays(const rnnc_plain *w, uint32_t row, uint32_t count, const rnnc_lines *x)
{
    const uint32_t n = w->inputs;
    int pays = w->map == NULL && w->steps == NULL && w->bits <= 8 && n <= RNNC_GRID_INPUTS;
    pays = pays && (((uintptr_t)x->x | x->next * 2) & 3U) == 0 && x->count * (n + 20) > 7 * n;
    for (uint32_t k = row; pays && k < row + count; k++) {
        const int more = 2 - w->shifts[k];
        pays = more <= 8 && w->sum_bits + more <= 31;
    }
    return pays;
}

/* Behind the numbers of a line that is no whole number of words another number lies, met by a weight of 0. */
static inline uint32_t rnnc_grid(const rnnc_plain *w, uint32_t row, uint32_t count, const rnnc_lines *x,
    const rnnc_out *out, uint32_t apart)
{
    const int adding = out->bits == RNNC_SUM_BITS;
    uint32_t done = 0;
    if ((!adding && out->bits != 16) || !rnnc_grid_pays(w, row, count, x)) {
        return 0;
    }
    while (done + 4 <= count || (done + 2 <= count && w->inputs <= RNNC_THIN_INPUTS)) {
        const uint32_t rows = done + 4 <= count ? 4 : 2;
        rnnc_wide wide;
        if (w->inputs <= RNNC_THIN_INPUTS) {
            memset(wide.pair, 0, 2 * sizeof *wide.pair);
        }
        rnnc_widen(w, row + done, rows, &wide);
        if (adding) {
            rnnc_rows_of_grid(&wide, w->inputs, rows, x, out->sum + done * out->next, out->mid, out->next, apart, 1);
        } else {
            rnnc_rows_of_grid(&wide, w->inputs, rows, x, out->sum, out->mid + done * out->next, out->next, apart, 0);
        }
        done += rows;
    }
    return done;
}

#endif
