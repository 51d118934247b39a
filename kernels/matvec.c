/* Matrix times vector for every structure, plainly: the reference that faster kernels must equal. */
#include "rnnc.h"

#include <stddef.h>

#include "rnnc_fixed.h"

#define RNNC_SUM_BITS 24 /* of products and biases */

/* A number of the store. Of 4 bits, two lie in a byte: 0xF1 holds 1 and -1. Of 16, the low byte is first. */
static int32_t number(const rnnc_plain *w, uint32_t place)
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
 * Fours of rows: two columns of rows 0 and 1, then of rows 2 and 3 (of 4 bits, these in the high halves). A pair is one
 * number, 256 w1 + w0: where w0 is negative, what is stored of w1 is one less. 0xFFFF holds -1 and 0. */
static int32_t weight(const rnnc_plain *w, uint32_t from, uint32_t row, uint32_t c)
{
    if (w->tile == 0) {
        return number(w, from + c);
    }
    if (w->tile == 1) {
        return number(w, from + (c & ~3U) + ((c & 1U) << 1) + ((c >> 1) & 1U));
    }
    const uint32_t upper = row & 1U, last = (row >> 1) & 1U, tile = from + (c >> 1) * 8U, at = (c & 1U) * 2U;
    if (w->bits == 8) {
        const uint32_t pair = tile + last * 4U + at;
        return number(w, pair + upper) + (upper && number(w, pair) < 0);
    }
    const uint32_t pair = tile + 2U * at + last;
    return number(w, pair + 2U * upper) + (upper && number(w, pair) < 0);
}

/* Sum of weights times x over one row; `next` is the stride of x. */
static int32_t sum(const rnnc_plain *w, uint32_t row, const int16_t *x, uint32_t next)
{
    const uint32_t high = w->tile > 1 ? w->tile : 1U, tile = row / high;
    int32_t total = 0;
    if (w->map == NULL && w->steps == NULL) {
        const uint32_t unit = w->tile == 4 ? 2U : w->tile == 1 ? 4U : 1U;
        const uint32_t from = tile * high * ((w->inputs + unit - 1U) / unit * unit);
        for (uint32_t i = 0; i < w->inputs; i++) {
            total += weight(w, from, row, i) * x[i * next];
        }
        return total;
    }
    if (w->map == NULL) {
        const uint32_t size = high * w->block;
        uint32_t b = 0;
        for (uint32_t k = w->start[tile]; k < w->start[tile + 1]; k++) {
            b += w->steps[k];
            for (uint32_t i = 0; i < w->block; i++) {
                total += weight(w, k * size, row, i) * x[(b * w->block + i) * next];
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
                total += number(w, place++) * x[i * next];
            }
        }
    }
    return total;
}

static int32_t output(const rnnc_plain *w, uint32_t row, const int16_t *x, uint32_t next, int bits)
{
    return rnnc_requant(sum(w, row, x, next), w->shifts[row], bits);
}

int32_t rnnc_plain_output(const rnnc_plain *w, uint32_t row, const int16_t *x)
{
    return output(w, row, x, 1, RNNC_SUM_BITS);
}

static void lowrank(const rnnc_mat *mat, uint32_t block, const int16_t *x, int32_t *y, int16_t *mid)
{
    const uint32_t rank = mat->second.inputs, m = mat->second.outputs / mat->blocks;
    for (uint32_t r = 0; r < rank; r++) {
        mid[r] = (int16_t)output(&mat->first, block * rank + r, x, 1, mat->mid_bits);
    }
    for (uint32_t i = 0; i < m; i++) {
        y[i] = output(&mat->second, block * m + i, mid, 1, RNNC_SUM_BITS);
    }
}

static void kron(const rnnc_mat *mat, uint32_t block, const int16_t *x, int32_t *y, int16_t *mid)
{
    const uint32_t terms = mat->terms, width = mat->second.inputs, lines = width / terms;
    const uint32_t p = mat->first.outputs / mat->blocks / terms, q = mat->second.outputs / mat->blocks;
    for (uint32_t t = 0; t < terms; t++) {
        for (uint32_t i = 0; i < p; i++) {
            const uint32_t row = (block * terms + t) * p + i;
            for (uint32_t j = 0; j < lines; j++) {
                mid[i * width + t * lines + j] =
                    (int16_t)output(&mat->first, row, x + j * mat->x_line, mat->x_next, mat->mid_bits);
            }
        }
    }
    for (uint32_t j = 0; j < q; j++) {
        for (uint32_t i = 0; i < p; i++) {
            y[j * mat->y_second + i * mat->y_first] =
                output(&mat->second, block * q + j, mid + i * width, 1, RNNC_SUM_BITS);
        }
    }
}

uint32_t rnnc_mat_scratch(const rnnc_mat *mat)
{
    uint32_t numbers = 0;
    if (mat->kind == RNNC_LOWRANK) {
        numbers = mat->second.inputs;
    }
    if (mat->kind == RNNC_KRON) {
        numbers = (uint32_t)(mat->first.outputs / mat->blocks / mat->terms) * mat->second.inputs;
    }
    return (numbers + 1) / 2;
}

void rnnc_matvec(const rnnc_mat *mat, const int16_t *x, int32_t *y, int32_t *scratch)
{
    const uint32_t outputs = mat->outputs / mat->blocks;
    for (uint32_t g = 0; g < mat->blocks; g++) {
        int32_t *out = y + g * outputs;
        for (uint32_t i = 0; i < mat->top; i++) {
            out[i] = output(&mat->plain, g * mat->top + i, x, 1, RNNC_SUM_BITS);
        }
        if (mat->kind == RNNC_LOWRANK) {
            lowrank(mat, g, x, out + mat->top, (int16_t *)scratch);
        }
        if (mat->kind == RNNC_KRON) {
            kron(mat, g, x, out + mat->top, (int16_t *)scratch);
        }
    }
}
