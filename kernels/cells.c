/* One time step of each cell, in the order and with the point names of rnnc/steps.py, and stacks that may skip. */
#include "rnnc.h"

#include <stddef.h>
#include <string.h>

#include "rnnc_fixed.h"
#include "rnnc_tables.h"

#define HALF (1 << (RNNC_FRAC_OUT - 1))
#define ONE (1 << RNNC_FRAC_OUT)

static const uint8_t gates_of[] = {4, 3, 1}; /* by rnnc_step */

static int32_t sigmoid(int32_t v)
{
    return rnnc_lookup(rnnc_sigmoid_table, v);
}

static int32_t tanh_(int32_t v)
{
    return rnnc_lookup(rnnc_tanh_table, v);
}

static int32_t saturate16(int32_t v)
{
    return rnnc_saturate(v, 16);
}

/* z = W x (+ b) for x as the matrix takes it. */
static void product(const rnnc_mat *mat, const int16_t *bias, const int16_t *x, int32_t *z, int32_t *scratch)
{
    rnnc_matvec(mat, x, z, scratch);
    if (bias != NULL) {
        for (uint32_t i = 0; i < mat->outputs; i++) {
            z[i] += bias[i];
        }
    }
}

/* An array as the matrices take it. */
static void move(const int16_t *from, int16_t *to, uint32_t count, int s, int bits)
{
    for (uint32_t i = 0; i < count; i++) {
        to[i] = (int16_t)rnnc_requant(from[i], s, bits);
    }
}

/* c' = f c + i g, h' = o tanh(c'). state: c [m], h [m]; zx, zh [4 m], gates i, f, g, o. */
static void lstm(const rnnc_cell *cell, int16_t *state, const int32_t *zx, const int32_t *zh)
{
    const uint32_t m = cell->m;
    int16_t *c = state, *h = state + m;
    for (uint32_t k = 0; k < m; k++) {
        const int32_t i = sigmoid(saturate16(zx[k] + zh[k]));
        const int32_t f = sigmoid(saturate16(zx[m + k] + zh[m + k]));
        const int32_t g = tanh_(saturate16(zx[2 * m + k] + zh[2 * m + k]));
        const int32_t o = sigmoid(saturate16(zx[3 * m + k] + zh[3 * m + k]));
        const int32_t fc = rnnc_shift(f * c[k], RNNC_FRAC_OUT);
        const int32_t ig = rnnc_shift(i * g, 2 * RNNC_FRAC_OUT - cell->c_frac);
        c[k] = (int16_t)saturate16(fc + ig);
        const int32_t tc = tanh_(rnnc_requant(c[k], cell->c_frac - RNNC_FRAC_IN, 16));
        h[k] = (int16_t)rnnc_requant(o * tc, 2 * RNNC_FRAC_OUT - cell->h_frac, cell->h_out_bits);
    }
}

/* n = tanh(xn + r hn), h' = (1 - z) n + z h. state: h [m]; zx, zh [3 m], gates r, z, n. */
static void gru(const rnnc_cell *cell, int16_t *state, const int32_t *zx, const int32_t *zh)
{
    const uint32_t m = cell->m;
    int16_t *h = state;
    for (uint32_t k = 0; k < m; k++) {
        const int32_t r = sigmoid(saturate16(zx[k] + zh[k]));
        const int32_t z = sigmoid(saturate16(zx[m + k] + zh[m + k]));
        const int32_t hn = rnnc_requant(zh[2 * m + k], RNNC_FRAC_IN - cell->hn_frac, 16);
        const int32_t rh = rnnc_shift(r * hn, RNNC_FRAC_OUT + cell->hn_frac - RNNC_FRAC_IN);
        const int32_t n = tanh_(saturate16(zx[2 * m + k] + rh));
        const int32_t zn = rnnc_shift((ONE - z) * n, 2 * RNNC_FRAC_OUT - cell->h_frac);
        const int32_t zh_ = rnnc_shift(z * h[k], RNNC_FRAC_OUT);
        h[k] = (int16_t)rnnc_saturate(zn + zh_, cell->h_out_bits);
    }
}

/* h~ = tanh(zx + zh), h' = sigmoid(beta) h + sigmoid(alpha) h~. state: h [m]; zx, zh [m]. */
static void fastrnn(const rnnc_cell *cell, int16_t *state, const int32_t *zx, const int32_t *zh)
{
    int16_t *h = state;
    for (uint32_t k = 0; k < cell->m; k++) {
        const int32_t n = tanh_(saturate16(zx[k] + zh[k]));
        const int32_t bh = rnnc_shift(cell->beta * h[k], RNNC_FRAC_OUT);
        const int32_t an = rnnc_shift(cell->alpha * n, 2 * RNNC_FRAC_OUT - cell->h_frac);
        h[k] = (int16_t)rnnc_saturate(bh + an, cell->h_out_bits);
    }
}

/* scratch: zx [gates m], zh [gates m], moved inputs int16 [n + m], then the matrices' own. */
static void step(const rnnc_cell *cell, const int16_t *x, int16_t *state, int32_t *scratch)
{
    const uint32_t n = cell->n, m = cell->m, width = (uint32_t)gates_of[cell->step] * m;
    int32_t *zx = scratch, *zh = zx + width, *own = zh + width + (n + m + 1) / 2;
    int16_t *in = (int16_t *)(zh + width);
    const int16_t *h = cell->step == RNNC_LSTM ? state + m : state;
    move(x, in, n, cell->x_shift, cell->x_bits);
    move(h, in + n, m, cell->h_shift, cell->h_bits);
    if (cell->joint && cell->step != RNNC_GRU) {
        product(&cell->kernel, cell->bias, in, zx, own);
        memset(zh, 0, width * sizeof *zh);
        for (uint32_t i = 0; cell->recurrent_bias != NULL && i < width; i++) {
            zh[i] = cell->recurrent_bias[i];
        }
    } else if (cell->joint) { /* GRU needs both products: of [x; 0] and of [0; h] */
        int16_t *padded = (int16_t *)own;
        own += (n + m + 1) / 2;
        memcpy(padded, in, n * sizeof *in);
        memset(padded + n, 0, m * sizeof *in);
        product(&cell->kernel, cell->bias, padded, zx, own);
        memset(in, 0, n * sizeof *in);
        product(&cell->kernel, cell->recurrent_bias, in, zh, own);
    } else {
        product(&cell->kernel, cell->bias, in, zx, own);
        product(&cell->recurrent, cell->recurrent_bias, in + n, zh, own);
    }
    switch (cell->step) {
    case RNNC_LSTM:
        lstm(cell, state, zx, zh);
        break;
    case RNNC_GRU:
        gru(cell, state, zx, zh);
        break;
    case RNNC_FASTRNN:
        fastrnn(cell, state, zx, zh);
        break;
    }
}

static uint32_t cell_state(const rnnc_cell *cell)
{
    return cell->step == RNNC_LSTM ? 2U * cell->m : cell->m;
}

static uint32_t cell_scratch(const rnnc_cell *cell)
{
    const uint32_t width = (uint32_t)gates_of[cell->step] * cell->m, moved = (cell->n + cell->m + 1U) / 2;
    const uint32_t a = rnnc_mat_scratch(&cell->kernel), b = cell->joint ? 0 : rnnc_mat_scratch(&cell->recurrent);
    return 2 * width + moved + (cell->joint && cell->step == RNNC_GRU ? moved : 0) + (a > b ? a : b);
}

/* The state of a stack: those of its cells, the lowest first; where it skips, the probability and the increment of an
 * update, Q0.15, each less one, so that a whole fits into 16 bits. */
static uint32_t cells_state(const rnnc_stack *stack)
{
    uint32_t numbers = 0;
    for (uint32_t i = 0; i < stack->cells; i++) {
        numbers += cell_state(stack->cell[i]);
    }
    return numbers;
}

uint32_t rnnc_stack_state(const rnnc_stack *stack)
{
    return cells_state(stack) + (stack->skip != NULL ? 2U : 0U);
}

uint32_t rnnc_stack_scratch(const rnnc_stack *stack)
{
    uint32_t most = 0;
    for (uint32_t i = 0; i < stack->cells; i++) {
        const uint32_t numbers = cell_scratch(stack->cell[i]);
        most = numbers > most ? numbers : most;
    }
    return most;
}

void rnnc_stack_reset(const rnnc_stack *stack, int16_t *state)
{
    const uint32_t cells = cells_state(stack);
    memset(state, 0, cells * sizeof *state);
    if (stack->skip != NULL) {
        state[cells] = -1;
        state[cells + 1] = ONE - 1;
    }
}

/* p' + min(d', 1 - p') */
static int32_t grown(int32_t probability, int32_t increment)
{
    return increment <= ONE - probability ? probability + increment : ONE;
}

/* The cells' step on one frame; the gate's probability starts anew, and its increment is read from the top cell. */
static void update(const rnnc_stack *stack, const int16_t *x, int16_t *state, int32_t *scratch)
{
    const int16_t *top = state;
    for (uint32_t i = 0; i < stack->cells; i++) {
        const rnnc_cell *cell = stack->cell[i];
        step(cell, x, state, scratch);
        top = state;
        x = cell->step == RNNC_LSTM ? state + cell->m : state;
        state += cell_state(cell);
    }
    if (stack->skip != NULL) {
        const rnnc_skip *skip = stack->skip;
        const int32_t d = sigmoid(saturate16(rnnc_plain_output(&skip->gate, 0, top) + skip->bias));
        state[0] = -1;
        state[1] = (int16_t)((d < skip->slowest ? skip->slowest : d) - 1);
    }
}

uint32_t rnnc_stack_run(
    const rnnc_stack *stack, uint32_t frames, const int16_t *x, int16_t *y, int16_t *state, int32_t *scratch)
{
    const rnnc_cell *last = stack->cell[stack->cells - 1];
    const uint32_t n = stack->cell[0]->n, cells = cells_state(stack);
    const int16_t *h = state + cells - last->m;
    uint32_t updates = 0;
    for (uint32_t t = 0; t < frames; t++) {
        int32_t probability = ONE;
        if (stack->skip != NULL) {
            probability = grown(state[cells] + 1, state[cells + 1] + 1);
            state[cells] = (int16_t)(probability - 1);
        }
        if (probability > HALF) {
            update(stack, x + t * n, state, scratch);
            updates++;
        }
        if (y != NULL) {
            memcpy(y + t * last->m, h, last->m * sizeof *h);
        }
    }
    return updates;
}

uint32_t rnnc_stack_sleep(const rnnc_stack *stack, const int16_t *state)
{
    const uint32_t cells = cells_state(stack);
    if (stack->skip == NULL) {
        return 0;
    }
    uint32_t frames = 0;
    int32_t probability = state[cells] + 1;
    const int32_t increment = state[cells + 1] + 1;
    while ((probability = grown(probability, increment)) <= HALF) {
        frames++;
    }
    return frames;
}
