/* Any core: plain C. The reference that the others must equal, rnnc_sum, and what is as quick as plain C can be. */
#ifndef RNNC_PLAIN_H
#define RNNC_PLAIN_H

#include "rows.h"

static inline rnnc_line rnnc_line_of(const rnnc_plain *w, const int16_t *x, int16_t *copy)
{
    (void)w, (void)copy;
    const rnnc_line line = {x, NULL, 0};
    return line;
}

RNNC_INLINE void rnnc_round4(int32_t sum[4], const int8_t *shifts, int bits)
{
    for (uint32_t k = 0; k < 4; k++) {
        sum[k] = rnnc_requant(sum[k], shifts[k], bits);
    }
}

/* Four rows of 8-bit weights that lie one behind the other, so that each x is loaded once; past the last one, it again. */
RNNC_INLINE const int8_t *rnnc_four_rows(const rnnc_plain *w, const int8_t *at, uint32_t row, uint32_t count,
    const rnnc_line *line, int32_t sum[4], int unused, int neither)
{
    (void)row, (void)unused, (void)neither;
    const uint32_t n = w->inputs;
    const int8_t *a = at, *b = count > 1 ? a + n : a, *c = count > 2 ? b + n : b, *d = count > 3 ? c + n : c;
    int32_t sums[4] = {0, 0, 0, 0};
    RNNC_UNROLL
    for (uint32_t i = 0; i < n; i++) {
        const int32_t x = line->x[i];
        sums[0] += a[i] * x;
        sums[1] += b[i] * x;
        sums[2] += c[i] * x;
        sums[3] += d[i] * x;
    }
    memcpy(sum, sums, sizeof sums);
    return at + 4 * n;
}

static inline void rnnc_rows(
    const rnnc_plain *w, uint32_t row, uint32_t count, const rnnc_line *x, const rnnc_out *out)
{
    if (w->tile == 0 && w->map == NULL && w->bits == 8) {
        rnnc_fours(w, w->weights + row * w->inputs, row, count, x, out, rnnc_four_rows, 0, 0, rnnc_round4);
    } else {
        rnnc_plain_rows(w, row, count, x, out);
    }
}

static inline uint32_t rnnc_grid(const rnnc_plain *w, uint32_t row, uint32_t count, const rnnc_lines *x,
    const rnnc_out *out, uint32_t apart)
{
    (void)w, (void)row, (void)count, (void)x, (void)out, (void)apart;
    return 0;
}

static inline int32_t rnnc_clip(int32_t v, int bits)
{
    return rnnc_saturate(v, bits);
}

static inline void rnnc_move(const int16_t *from, int16_t *to, uint32_t count, int s, int bits)
{
    rnnc_plain_move(from, to, count, s, bits);
}

static inline void rnnc_activate(const int16_t *knots, int32_t *z, uint32_t count)
{
    for (uint32_t i = 0; i < count; i++) {
        z[i] = rnnc_lookup(knots, rnnc_saturate(z[i], 16));
    }
}

#endif
