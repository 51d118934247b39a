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
    const rnnc_line line = rnnc_line_of(&mat->second, mid, copy);
    rnnc_rows(&mat->second, block * m, m, &line, &out);
}

/* Rows over each line of a grid; results of one line lie so far from those of the last. */
static void grid(const rnnc_plain *w, uint32_t row, uint32_t count, const rnnc_lines *x, const rnnc_out *out,
    uint32_t apart, int16_t *copy)
{
    const uint32_t done = rnnc_grid(w, row, count, x, out, apart);
    for (uint32_t j = 0; done < count && j < x->count; j++) {
        const rnnc_line line = rnnc_line_of(w, x->x + j * x->next, copy);
        const uint32_t at = done * out->next + j * apart;
        rnnc_out here = *out;
        if (out->bits == RNNC_SUM_BITS) {
            here.sum += at;
        } else {
            here.mid += at;
        }
        rnnc_rows(w, row + done, count - done, &line, &here);
    }
}

/* Lines of x give columns of mid [p][even(terms * lines)]; rows of mid give q outputs each. */
static void kron(const rnnc_mat *mat, uint32_t block, const rnnc_lines *x, int32_t *y, int16_t *mid, int16_t *copy)
{
    const uint32_t terms = mat->terms, width = mat->second.inputs, lines = width / terms;
    const uint32_t p = mat->first.outputs / mat->blocks / terms, q = mat->second.outputs / mat->blocks;
    const rnnc_lines rows = {mid, p, even(width)};
    for (uint32_t t = 0; t < terms; t++) {
        const rnnc_out between = {y, mid + t * lines, rows.next, mat->mid_bits};
        grid(&mat->first, (block * terms + t) * p, p, x, &between, 1, copy);
    }
    const rnnc_out out = {y, mid, mat->y_second, RNNC_SUM_BITS};
    grid(&mat->second, block * q, q, &rows, &out, mat->y_first, copy);
}

/* The lines of x for `first`; where their numbers do not lie side by side, copied to `room`, each to a word. */
static rnnc_lines lines_of(const rnnc_mat *mat, const int16_t *x, int16_t *room)
{
    const uint32_t k = mat->first.inputs;
    rnnc_lines lines = {x, mat->second.inputs / mat->terms, mat->x_line};
    if (mat->x_next != 1) {
        lines.x = room;
        lines.next = even(k);
        for (uint32_t j = 0; j < lines.count; j++, x += mat->x_line) {
            for (uint32_t i = 0; i < k; i++) {
                room[j * lines.next + i] = x[i * mat->x_next];
            }
        }
    }
    return lines;
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

/* Numbers of int16 that the copy of a grid takes. */
static uint32_t copied(const rnnc_mat *mat)
{
    const uint32_t k = mat->first.inputs;
    return mat->kind == RNNC_KRON && mat->x_next != 1 ? mat->inputs / k * even(k) : 0;
}

/* Between the factors, a copy of a grid, and one of what a factor is applied to. */
uint32_t rnnc_mat_scratch(const rnnc_mat *mat)
{
    const uint32_t second = mat->kind == RNNC_DENSE ? 0 : mat->second.inputs;
    return (between(mat) + copied(mat) + even(second > mat->inputs ? second : mat->inputs)) / 2;
}

void rnnc_matvec(const rnnc_mat *mat, const int16_t *x, int32_t *y, int32_t *scratch)
{
    const uint32_t outputs = mat->outputs / mat->blocks;
    int16_t *mid = (int16_t *)scratch, *room = mid + between(mat), *copy = room + copied(mat);
    rnnc_lines lines = {x, 1, 0};
    if (mat->kind == RNNC_KRON) {
        lines = lines_of(mat, x, room);
    }
    for (uint32_t g = 0; g < mat->blocks; g++) {
        int32_t *part = y + g * outputs;
        if (mat->top > 0) {
            const rnnc_line line = rnnc_line_of(&mat->plain, x, copy);
            const rnnc_out out = {part, mid, 1, RNNC_SUM_BITS};
            rnnc_rows(&mat->plain, g * mat->top, mat->top, &line, &out);
        }
        if (mat->kind == RNNC_LOWRANK) {
            const rnnc_line line = rnnc_line_of(&mat->first, x, copy);
            lowrank(mat, g, &line, part + mat->top, mid, copy);
        }
        if (mat->kind == RNNC_KRON) {
            kron(mat, g, &lines, part + mat->top, mid, copy);
        }
    }
}
