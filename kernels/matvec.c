/* Matrix times vector for every structure; core.h has the sums of rows. */
#include "rnnc.h"

#include "core.h"

int32_t rnnc_plain_output(const rnnc_plain *w, uint32_t row, const int16_t *x)
{
    return rnnc_requant(rnnc_sum(w, row, x), w->shifts[row], RNNC_SUM_BITS);
}

/* Rows of int16 begin at words. */
static uint32_t even(uint32_t numbers)
{
    return (numbers + 1U) / 2 * 2;
}

/* mid = first x, y += second mid. */
static void lowrank(const rnnc_mat *mat, uint32_t block, const rnnc_line *x, int32_t *y, int16_t *mid, int16_t *copy)
{
    const uint32_t rank = mat->second.inputs, m = mat->second.outputs / mat->blocks;
    const rnnc_out between = {y, mid, 1, mat->mid_bits}, out = {y, mid, 1, RNNC_SUM_BITS};
    rnnc_rows(&mat->first, block * rank, rank, x, &between);
    const rnnc_line line = rnnc_line_of(&mat->second, mid, 1, copy);
    rnnc_rows(&mat->second, block * m, m, &line, &out);
}

/* Each line of x gives a column of mid [p][even(terms * lines)]; each row of mid gives q outputs. */
static void kron(const rnnc_mat *mat, uint32_t block, const int16_t *x, int32_t *y, int16_t *mid, int16_t *copy)
{
    const uint32_t terms = mat->terms, width = mat->second.inputs, lines = width / terms;
    const uint32_t p = mat->first.outputs / mat->blocks / terms, q = mat->second.outputs / mat->blocks;
    const uint32_t row = even(width);
    for (uint32_t j = 0; j < lines; j++) {
        const rnnc_line line = rnnc_line_of(&mat->first, x + j * mat->x_line, mat->x_next, copy);
        for (uint32_t t = 0; t < terms; t++) {
            const rnnc_out between = {y, mid + t * lines + j, row, mat->mid_bits};
            rnnc_rows(&mat->first, (block * terms + t) * p, p, &line, &between);
        }
    }
    for (uint32_t i = 0; i < p; i++) {
        const rnnc_line line = rnnc_line_of(&mat->second, mid + i * row, 1, copy);
        const rnnc_out out = {y + i * mat->y_first, mid, mat->y_second, RNNC_SUM_BITS};
        rnnc_rows(&mat->second, block * q, q, &line, &out);
    }
}

/* Numbers of int16 between the two factors. */
static uint32_t between(const rnnc_mat *mat)
{
    switch (mat->kind) {
    case RNNC_LOWRANK:
        return even(mat->second.inputs);
    case RNNC_KRON:
        return (uint32_t)(mat->first.outputs / mat->blocks / mat->terms) * even(mat->second.inputs);
    default:
        return 0;
    }
}

/* Between the factors, and a copy of what a factor is applied to. */
uint32_t rnnc_mat_scratch(const rnnc_mat *mat)
{
    const uint32_t second = mat->kind == RNNC_DENSE ? 0 : mat->second.inputs;
    return (between(mat) + even(second > mat->inputs ? second : mat->inputs)) / 2;
}

void rnnc_matvec(const rnnc_mat *mat, const int16_t *x, int32_t *y, int32_t *scratch)
{
    const uint32_t outputs = mat->outputs / mat->blocks;
    int16_t *mid = (int16_t *)scratch, *copy = mid + between(mat);
    for (uint32_t g = 0; g < mat->blocks; g++) {
        int32_t *part = y + g * outputs;
        if (mat->top > 0) {
            const rnnc_line line = rnnc_line_of(&mat->plain, x, 1, copy);
            const rnnc_out out = {part, mid, 1, RNNC_SUM_BITS};
            rnnc_rows(&mat->plain, g * mat->top, mat->top, &line, &out);
        }
        if (mat->kind == RNNC_LOWRANK) {
            const rnnc_line line = rnnc_line_of(&mat->first, x, 1, copy);
            lowrank(mat, g, &line, part + mat->top, mid, copy);
        }
        if (mat->kind == RNNC_KRON) {
            kron(mat, g, x, part + mat->top, mid, copy);
        }
    }
}
