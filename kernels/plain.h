/* Any core: plain C. The reference that the others must equal. */
#ifndef RNNC_PLAIN_H
#define RNNC_PLAIN_H

#include "rows.h"

static inline rnnc_line rnnc_line_of(const rnnc_plain *w, const int16_t *x, uint32_t next, int16_t *copy)
{
    const rnnc_line line = {rnnc_gather(x, next, w->inputs, copy), NULL, 0};
    return line;
}

static inline void rnnc_rows(
    const rnnc_plain *w, uint32_t row, uint32_t count, const rnnc_line *x, const rnnc_out *out)
{
    rnnc_plain_rows(w, row, count, x, out);
}

static inline int32_t rnnc_clip(int32_t v, int bits)
{
    return rnnc_saturate(v, bits);
}

static inline void rnnc_activate(const int16_t *knots, int32_t *z, uint32_t count)
{
    for (uint32_t i = 0; i < count; i++) {
        z[i] = rnnc_lookup(knots, rnnc_saturate(z[i], 16));
    }
}

#endif
