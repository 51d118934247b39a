/* RNNC_MVE: Cortex-M55 and others with Helium (MVE, whole numbers). Weights row by row. */
#ifndef RNNC_MVE_H
#define RNNC_MVE_H

#include <arm_mve.h>

#include "rows.h"

enum { RNNC_NIBBLES_SUM_BITS = 28 }; /* weights of 4 bits are summed 16-fold */

/* Whether there is more than the plain kernel for a matrix. */
RNNC_INLINE int rnnc_has_kernel(const rnnc_plain *w)
{
    const int nibbles = w->bits == 4 && w->inputs % 2 == 0 && w->sum_bits <= RNNC_NIBBLES_SUM_BITS;
    return w->tile == 0 && w->map == NULL && (w->bits != 4 || nibbles);
}

/* Of numbers of 8 bits a copy of as many, which may lie where x itself was put side by side. */
static inline rnnc_line rnnc_line_of(const rnnc_plain *w, const int16_t *x, int16_t *copy)
{
    rnnc_line line = {x, NULL, 0};
    if (w->x_bits <= 8 && w->bits <= 8 && rnnc_has_kernel(w)) {
        int8_t *narrow = (int8_t *)copy;
        for (uint32_t i = 0; i < w->inputs; i += 8) {
            const mve_pred16_t some = vctp16q(w->inputs - i);
            vstrbq_p_s16(narrow + i, vldrhq_z_s16(line.x + i, some), some);
        }
        line.narrow = narrow;
    }
    return line;
}

static inline int32_t rnnc_clip(int32_t v, int bits)
{
    return rnnc_saturate(v, bits);
}

/* Eight at a time. */
static inline void rnnc_move(const int16_t *from, int16_t *to, uint32_t count, int s, int bits)
{
    const int16_t highest = (int16_t)((INT32_C(1) << (bits - 1)) - 1);
    const int16x8_t by = vdupq_n_s16((int16_t)-s);
    for (uint32_t i = 0; i < count; i += 8) {
        const mve_pred16_t some = vctp16q(count - i);
        const int16x8_t v = vqrshlq_s16(vldrhq_z_s16(from + i, some), by);
        const int16x8_t within = vmaxq_s16(vminq_s16(v, vdupq_n_s16(highest)), vdupq_n_s16((int16_t)(-highest - 1)));
        vstrhq_p_s16(to + i, within, some);
    }
}

/* Four at a time. */
static inline void rnnc_activate(const int16_t *knots, int32_t *z, uint32_t count)
{
    for (uint32_t i = 0; i < count; i += 4) {
        const mve_pred16_t some = vctp32q(count - i);
        const int32x4_t given = vldrwq_z_s32(z + i, some);
        const int32x4_t v = vmaxq_s32(vminq_s32(given, vdupq_n_s32(INT16_MAX)), vdupq_n_s32(INT16_MIN));
        const uint32x4_t at = vreinterpretq_u32_s32(vaddq_n_s32(vshrq_n_s32(v, RNNC_KNOT_BITS), 256));
        const int32x4_t part = vandq_s32(v, vdupq_n_s32(127));
        const int32x4_t from = vldrhq_gather_shifted_offset_s32(knots, at);
        const int32x4_t to = vldrhq_gather_shifted_offset_s32(knots + 1, at);
        const int32x4_t rise = vrshrq_n_s32(vmulq_s32(vsubq_s32(to, from), part), RNNC_KNOT_BITS);
        vstrwq_p_s32(z + i, vaddq_s32(from, rise), some);
    }
}

RNNC_INLINE void rnnc_round4(int32_t sum[4], const int8_t *shifts, int bits)
{
    const int32_t highest = (INT32_C(1) << (bits - 1)) - 1;
    const int32x4_t v = vqrshlq_s32(vldrwq_s32(sum), vnegq_s32(vldrbq_s32(shifts)));
    vstrwq_s32(sum, vmaxq_s32(vminq_s32(v, vdupq_n_s32(highest)), vdupq_n_s32(-highest - 1)));
}

/* So many columns of a row, 16 at most, with x of 8 bits. */
RNNC_INLINE int32_t rnnc_row8(int32_t sum, const int8_t *w, int8x16_t x, mve_pred16_t some)
{
    return vmladavaq_s8(sum, vldrbq_z_s8(w, some), x);
}

/* So many columns, 8 at most, with x of 16 bits. */
RNNC_INLINE int32_t rnnc_row16(int32_t sum, const int8_t *w, int16x8_t x, mve_pred16_t some)
{
    return vmladavaq_s16(sum, vldrbq_z_s16(w, some), x);
}

/* Four rows that lie one behind the other; past the last one, it again. `rest`: the last vectors are not full. */
RNNC_INLINE const int8_t *rnnc_four_rows(const rnnc_plain *w, const int8_t *at, uint32_t row, uint32_t count,
    const rnnc_line *line, int32_t sum[4], int narrow, int rest)
{
    (void)row;
    const uint32_t n = w->inputs;
    const int8_t *w0 = at, *w1 = w0 + (count > 1 ? n : 0), *w2 = w1 + (count > 2 ? n : 0), *w3 = w2 + (count > 3 ? n : 0);
    int32_t s0 = 0, s1 = 0, s2 = 0, s3 = 0;
    if (narrow) {
        const int8_t *x = line->narrow;
        for (uint32_t i = 0; i < n / 16; i++, x += 16, w0 += 16, w1 += 16, w2 += 16, w3 += 16) {
            const int8x16_t some = vldrbq_s8(x);
            s0 = vmladavaq_s8(s0, vldrbq_s8(w0), some);
            s1 = vmladavaq_s8(s1, vldrbq_s8(w1), some);
            s2 = vmladavaq_s8(s2, vldrbq_s8(w2), some);
            s3 = vmladavaq_s8(s3, vldrbq_s8(w3), some);
        }
        if (rest && n % 16 > 0) {
            const mve_pred16_t last = vctp8q(n % 16);
            const int8x16_t some = vldrbq_z_s8(x, last);
            s0 = rnnc_row8(s0, w0, some, last);
            s1 = rnnc_row8(s1, w1, some, last);
            s2 = rnnc_row8(s2, w2, some, last);
            s3 = rnnc_row8(s3, w3, some, last);
        }
    } else {
        const int16_t *x = line->x;
        for (uint32_t i = 0; i < n / 8; i++, x += 8, w0 += 8, w1 += 8, w2 += 8, w3 += 8) {
            const int16x8_t some = vldrhq_s16(x);
            s0 = vmladavaq_s16(s0, vldrbq_s16(w0), some);
            s1 = vmladavaq_s16(s1, vldrbq_s16(w1), some);
            s2 = vmladavaq_s16(s2, vldrbq_s16(w2), some);
            s3 = vmladavaq_s16(s3, vldrbq_s16(w3), some);
        }
        if (rest && n % 8 > 0) {
            const mve_pred16_t last = vctp16q(n % 8);
            const int16x8_t some = vldrhq_z_s16(x, last);
            s0 = rnnc_row16(s0, w0, some, last);
            s1 = rnnc_row16(s1, w1, some, last);
            s2 = rnnc_row16(s2, w2, some, last);
            s3 = rnnc_row16(s3, w3, some, last);
        }
    }
    sum[0] = s0;
    sum[1] = s1;
    sum[2] = s2;
    sum[3] = s3;
    return at + 4 * n;
}

/* Rows of 4 bits, an even number of columns: the low and the high halves meet the even and the odd columns. */
RNNC_INLINE const int8_t *rnnc_nibble_rows(const rnnc_plain *w, const int8_t *at, uint32_t row, uint32_t count,
    const rnnc_line *line, int32_t sum[4], int narrow, int unused)
{
    (void)row, (void)unused;
    const uint32_t pairs = w->inputs / 2U;
    for (uint32_t k = 0; k < count; k++, at += pairs) {
        int32_t total = 0;
        for (uint32_t i = 0; i < pairs; i += narrow ? 16 : 8) {
            if (narrow) {
                const mve_pred16_t some = vctp8q(pairs - i);
                const int8x16_t both = vldrbq_z_s8(at + i, some);
                const uint8x16_t even = vidupq_n_u8(0, 2);
                const int8x16_t left = vldrbq_gather_offset_z_s8(line->narrow + 2 * i, even, some);
                const int8x16_t right = vldrbq_gather_offset_z_s8(line->narrow + 2 * i + 1, even, some);
                total = vmladavaq_s8(total, vshlq_n_s8(both, 4), left);
                total = vmladavaq_s8(total, vandq_s8(both, vdupq_n_s8(-16)), right);
            } else {
                const mve_pred16_t some = vctp16q(pairs - i);
                const int16x8_t both = vldrbq_z_s16(at + i, some);
                const uint16x8_t even = vidupq_n_u16(0, 2);
                const int16x8_t left = vldrhq_gather_shifted_offset_z_s16(line->x + 2 * i, even, some);
                const int16x8_t right = vldrhq_gather_shifted_offset_z_s16(line->x + 2 * i + 1, even, some);
                total = vmladavaq_s16(total, vshrq_n_s16(vshlq_n_s16(both, 12), 8), left);
                total = vmladavaq_s16(total, vandq_s16(both, vdupq_n_s16(-16)), right);
            }
        }
        sum[k] = total >> 4;
    }
    return at;
}

/* Rows of 16 bits. */
RNNC_INLINE const int8_t *rnnc_wide_rows(const rnnc_plain *w, const int8_t *at, uint32_t row, uint32_t count,
    const rnnc_line *line, int32_t sum[4], int a, int b)
{
    (void)row, (void)a, (void)b;
    for (uint32_t k = 0; k < count; k++, at += 2U * w->inputs) {
        int32_t total = 0;
        for (uint32_t i = 0; i < w->inputs; i += 8) {
            const mve_pred16_t some = vctp16q(w->inputs - i);
            const int16x8_t weights = vreinterpretq_s16_s8(vldrbq_z_s8(at + 2 * i, vctp8q(2 * (w->inputs - i))));
            total = vmladavaq_s16(total, weights, vldrhq_z_s16(line->x + i, some));
        }
        sum[k] = total;
    }
    return at;
}

static inline void rnnc_rows(
    const rnnc_plain *w, uint32_t row, uint32_t count, const rnnc_line *x, const rnnc_out *out)
{
    const int8_t *at = w->weights + row * (w->inputs * (uint32_t)w->bits / 8);
    if (!rnnc_has_kernel(w)) {
        rnnc_plain_rows(w, row, count, x, out);
    } else if (w->bits == 16) {
        rnnc_fours(w, at, row, count, x, out, rnnc_wide_rows, 0, 0, rnnc_round4);
    } else if (w->bits == 8 && x->narrow != NULL && w->inputs % 16 == 0) {
        rnnc_fours(w, at, row, count, x, out, rnnc_four_rows, 1, 0, rnnc_round4);
    } else if (w->bits == 8 && x->narrow != NULL) {
        rnnc_fours(w, at, row, count, x, out, rnnc_four_rows, 1, 1, rnnc_round4);
    } else if (w->bits == 8) {
        rnnc_fours(w, at, row, count, x, out, rnnc_four_rows, 0, 1, rnnc_round4);
    } else if (x->narrow != NULL) {
        rnnc_fours(w, at, row, count, x, out, rnnc_nibble_rows, 1, 0, rnnc_round4);
    } else {
        rnnc_fours(w, at, row, count, x, out, rnnc_nibble_rows, 0, 0, rnnc_round4);
    }
}

static inline uint32_t rnnc_grid(const rnnc_plain *w, uint32_t row, uint32_t count, const rnnc_lines *x,
    const rnnc_out *out, uint32_t apart)
{
    (void)w, (void)row, (void)count, (void)x, (void)out, (void)apart;
    return 0;
}

#endif
