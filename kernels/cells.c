/* One time step of each cell, in the order and with the point names of rnnc/steps.py, and stacks that may skip. */
#include "rnnc.h"

#include <stddef.h>
#include <string.h>

#include "core.h"
#include "rnnc_tables.h"

#define HALF (1 << (RNNC_FRAC_OUT - 1))
#define ONE (1 << RNNC_FRAC_OUT)

static const uint8_t gates_of[] = {4, 3, 1}; /* by rnnc_step */

static void sigmoid(int32_t *z, uint32_t count)
{
    rnnc_activate(rnnc_sigmoid_table, z, count);
}

static void tanh_(int32_t *z, uint32_t count)
{
    rnnc_activate(rnnc_tanh_table, z, count);
}

/* z = b; NULL: 0. */
RNNC_APART void start(int32_t *z, const int16_t *bias, uint32_t count)
{
    if (bias == NULL) {
        memset(z, 0, count * sizeof *z);
        return;
    }
    RNNC_UNROLL
    for (uint32_t i = 0; i < count; i++) {
        z[i] = bias[i];
    }
}

/* z += b; NULL: nothing. */
static void add(int32_t *z, const int16_t *bias, uint32_t count)
{
    for (uint32_t i = 0; bias != NULL && i < count; i++) {
        z[i] += bias[i];
    }
}

/* rnnc_shift of numbers of 16 bits that are saturated afterwards, to 16 or fewer: a number 2^15 times as large is. */
typedef struct {
    int down;
    int32_t factor;
} scale;

static scale scale_of(int s)
{
    const scale found = {s > 0 ? s : 0, INT32_C(1) << (s > 0 ? 0 : s > -15 ? -s : 15)};
    return found;
}

static inline int32_t scaled(int32_t v, scale s)
{
    return rnnc_shift_right(v, s.down) * s.factor;
}

/* c' = f c + i g, and c' as tanh takes it instead of g. */
RNNC_APART void lstm_memory(uint32_t m, int16_t *c, const int32_t *i, const int32_t *f, int32_t *g, int right, scale into)
{
    RNNC_UNROLL
    for (uint32_t k = 0; k < m; k++) {
        const int32_t fc = rnnc_shift_right(f[k] * c[k], RNNC_FRAC_OUT);
        const int32_t ig = rnnc_shift_right(i[k] * g[k], right);
        const int32_t memory = rnnc_clip(fc + ig, 16);
        c[k] = (int16_t)memory;
        g[k] = scaled(memory, into);
    }
}

/* h' = o tanh(c') */
RNNC_INLINE void lstm_output(uint32_t m, int16_t *h, const int32_t *o, const int32_t *g, int right, int bits)
{
    RNNC_UNROLL
    for (const int16_t *last = h + m; h != last; h++, o++, g++) {
        *h = (int16_t)rnnc_clip(rnnc_shift_right(*o * *g, right), bits);
    }
}

/* c' = f c + i g, h' = o tanh(c'). state: c [m], h [m]; z [4 m], gates i, f, g, o. */
static void lstm(const rnnc_cell *cell, int16_t *state, int32_t *z)
{
    const uint32_t m = cell->m;
    const int right = 2 * RNNC_FRAC_OUT - cell->c_frac, out = 2 * RNNC_FRAC_OUT - cell->h_frac;
    int32_t *g = z + 2 * m, *o = z + 3 * m;
    sigmoid(z, 2 * m);
    tanh_(g, m);
    sigmoid(o, m);
    lstm_memory(m, state, z, z + m, g, right, scale_of(cell->c_frac - RNNC_FRAC_IN));
    tanh_(g, m);
    if (cell->h_out_bits == 16) {
        lstm_output(m, state + m, o, g, out, 16);
    } else {
        lstm_output(m, state + m, o, g, out, cell->h_out_bits);
    }
}

/* n += r hn. `positive`: no shift is below 0. */
RNNC_INLINE void gru_candidate(uint32_t m, const int32_t *r, int32_t *n, const int32_t *hn, int to_hn, int positive)
{
    const int from_hn = RNNC_FRAC_OUT - to_hn;
    for (const int32_t *last = n + m; n != last; r++, n++, hn++) {
        if (positive) {
            *n += rnnc_shift_right(*r * rnnc_clip(rnnc_shift_right(*hn, to_hn), 16), from_hn);
        } else {
            *n += rnnc_shift(*r * rnnc_requant(*hn, to_hn, 16), from_hn);
        }
    }
}

/* h' = (1 - z) n + z h */
RNNC_INLINE void gru_output(uint32_t m, int16_t *h, const int32_t *z, const int32_t *n, int right, int bits)
{
    RNNC_UNROLL
    for (const int16_t *last = h + m; h != last; h++, z++, n++) {
        const int32_t zn = rnnc_shift_right((ONE - *z) * *n, right);
        const int32_t zh = rnnc_shift_right(*z * *h, RNNC_FRAC_OUT);
        *h = (int16_t)rnnc_clip(zn + zh, bits);
    }
}

/* n = tanh(xn + r hn), h' = (1 - z) n + z h. h [m]; zs [4 m], gates r, z, and the products for n, xn and hn. */
static void gru(const rnnc_cell *cell, int16_t *h, int32_t *zs)
{
    const uint32_t m = cell->m;
    const int out = 2 * RNNC_FRAC_OUT - cell->h_frac, to_hn = RNNC_FRAC_IN - cell->hn_frac;
    int32_t *z = zs + m, *n = zs + 2 * m, *hn = zs + 3 * m;
    sigmoid(zs, 2 * m);
    if (to_hn >= 0 && to_hn <= RNNC_FRAC_OUT) {
        gru_candidate(m, zs, n, hn, to_hn, 1);
    } else {
        gru_candidate(m, zs, n, hn, to_hn, 0);
    }
    tanh_(n, m);
    if (cell->h_out_bits == 16) {
        gru_output(m, h, z, n, out, 16);
    } else {
        gru_output(m, h, z, n, out, cell->h_out_bits);
    }
}

/* n = tanh(z), h' = sigmoid(beta) h + sigmoid(alpha) n. state: h [m]; z [m]. */
static void fastrnn(const rnnc_cell *cell, int16_t *state, int32_t *z)
{
    const int out = 2 * RNNC_FRAC_OUT - cell->h_frac, bits = cell->h_out_bits;
    const int32_t alpha = cell->alpha, beta = cell->beta;
    const uint32_t m = cell->m;
    int16_t *h = state;
    tanh_(z, m);
    for (uint32_t k = 0; k < m; k++) {
        const int32_t bh = rnnc_shift_right(beta * h[k], RNNC_FRAC_OUT);
        const int32_t an = rnnc_shift_right(alpha * z[k], out);
        h[k] = (int16_t)rnnc_clip(bh + an, bits);
    }
}

/* Where h begins behind x among the moved inputs: at once for a joint matrix, else at a word of its own. */
static uint32_t place_of_h(const rnnc_cell *cell)
{
    return cell->joint ? cell->n : (cell->n + 1U) / 2 * 2;
}

/* The sums of both products and the biases. of: z [gates m], GRU: one m more; in: moved inputs. */
static void sums(const rnnc_cell *cell, const int16_t *x, const int16_t *h, int32_t *z, int16_t *in, int32_t *own)
{
    const uint32_t n = cell->n, m = cell->m, width = (uint32_t)gates_of[cell->step] * m, at = place_of_h(cell);
    const rnnc_mat *recurrent = cell->joint ? &cell->kernel : &cell->recurrent;
    const int16_t *of_h = cell->joint ? in : in + at;
    rnnc_move(h, in + at, m, cell->h_shift, cell->h_bits);
    start(z, cell->recurrent_bias, width);
    if (cell->step != RNNC_GRU) {
        rnnc_move(x, in, n, cell->x_shift, cell->x_bits);
        add(z, cell->bias, width);
        rnnc_matvec(&cell->kernel, in, z, own);
        if (!cell->joint) {
            rnnc_matvec(recurrent, of_h, z, own);
        }
        return;
    }
    memset(in, 0, n * sizeof *in); /* a joint matrix is applied to [0; h] and to [x; 0] */
    rnnc_matvec(recurrent, of_h, z, own);
    memcpy(z + 3 * m, z + 2 * m, m * sizeof *z);
    memset(z + 2 * m, 0, m * sizeof *z);
    memset(in + at, 0, m * sizeof *in);
    rnnc_move(x, in, n, cell->x_shift, cell->x_bits);
    add(z, cell->bias, width);
    rnnc_matvec(&cell->kernel, in, z, own);
}

/* Numbers of int32 that the sums take. */
static uint32_t sums_of(const rnnc_cell *cell)
{
    return (gates_of[cell->step] + (cell->step == RNNC_GRU ? 1U : 0U)) * cell->m;
}

/* Numbers of int32 that the moved inputs take. */
static uint32_t moved_of(const rnnc_cell *cell)
{
    return (place_of_h(cell) + cell->m + 1U) / 2;
}

/* scratch: the sums, moved inputs in int16, then the matrices' own. */
static void step(const rnnc_cell *cell, const int16_t *x, int16_t *state, int32_t *scratch)
{
    int32_t *z = scratch, *moved = z + sums_of(cell);
    const int16_t *h = cell->step == RNNC_LSTM ? state + cell->m : state;
    sums(cell, x, h, z, (int16_t *)moved, moved + moved_of(cell));
    switch (cell->step) {
    case RNNC_LSTM:
        lstm(cell, state, z);
        break;
    case RNNC_GRU:
        gru(cell, state, z);
        break;
    case RNNC_FASTRNN:
        fastrnn(cell, state, z);
        break;
    }
}

static uint32_t cell_state(const rnnc_cell *cell)
{
    return cell->step == RNNC_LSTM ? 2U * cell->m : cell->m;
}

static uint32_t cell_scratch(const rnnc_cell *cell)
{
    const uint32_t a = rnnc_mat_scratch(&cell->kernel), b = cell->joint ? 0 : rnnc_mat_scratch(&cell->recurrent);
    return sums_of(cell) + moved_of(cell) + (a > b ? a : b);
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
        int32_t d = rnnc_plain_output(&skip->gate, 0, top) + skip->bias;
        sigmoid(&d, 1);
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
