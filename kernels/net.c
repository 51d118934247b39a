/* A stack with dense layers behind it. */
#include "rnnc.h"

#include <string.h>

#include "core.h"
#include "rnnc_tables.h"

static const rnnc_mat *last(const rnnc_net *net)
{
    return &net->layer[net->layers - 1].mat;
}

/* The widest input or output of the dense layers, even. */
static uint32_t widest(const rnnc_net *net)
{
    uint32_t width = 0;
    for (uint32_t i = 0; i < net->layers; i++) {
        const rnnc_mat *mat = &net->layer[i].mat;
        width = mat->inputs > width ? mat->inputs : width;
        width = mat->outputs > width ? mat->outputs : width;
    }
    return (width + 1) / 2 * 2;
}

uint32_t rnnc_net_state(const rnnc_net *net)
{
    return rnnc_stack_state(net->stack) + last(net)->outputs;
}

/* Dense layers: two rows of int16, one of int32, then the matrix's own. */
uint32_t rnnc_net_scratch(const rnnc_net *net)
{
    uint32_t most = 0;
    for (uint32_t i = 0; i < net->layers; i++) {
        const uint32_t own = rnnc_mat_scratch(&net->layer[i].mat);
        most = own > most ? own : most;
    }
    const uint32_t dense = 2 * widest(net) + most, stack = rnnc_stack_scratch(net->stack);
    return dense > stack ? dense : stack;
}

void rnnc_net_reset(const rnnc_net *net, int16_t *state)
{
    rnnc_stack_reset(net->stack, state);
    memset(state + rnnc_stack_state(net->stack), 0, last(net)->outputs * sizeof *state);
}

/* y may be x. */
static void dense(const rnnc_dense *layer, const int16_t *x, int16_t *y, int16_t *in, int32_t *z, int32_t *own)
{
    rnnc_move(x, in, layer->mat.inputs, layer->x_shift, layer->x_bits);
    for (uint32_t k = 0; k < layer->mat.outputs; k++) {
        z[k] = layer->bias[k];
    }
    rnnc_matvec(&layer->mat, in, z, own);
    const uint32_t outputs = layer->mat.outputs;
    const int shift = RNNC_FRAC_IN - layer->y_frac, bits = layer->y_bits;
    if (layer->activation == RNNC_SIGMOID) {
        rnnc_activate(rnnc_sigmoid_table, z, outputs);
    }
    for (uint32_t k = 0; k < outputs; k++) {
        y[k] = (int16_t)(layer->activation == RNNC_SIGMOID ? z[k] : rnnc_requant(z[k] > 0 ? z[k] : 0, shift, bits));
    }
}

/* The dense layers on what the stack gave, which stands at the beginning of the scratch. */
static void output(const rnnc_net *net, int16_t *y, int32_t *scratch)
{
    const uint32_t width = widest(net);
    int16_t *between = (int16_t *)scratch, *in = between + width;
    for (uint32_t i = 0; i < net->layers; i++) {
        dense(&net->layer[i], between, i + 1 < net->layers ? between : y, in, scratch + width, scratch + 2 * width);
    }
}

uint32_t rnnc_net_run(
    const rnnc_net *net, uint32_t frames, const int16_t *x, int16_t *y, int16_t *state, int32_t *scratch)
{
    const rnnc_stack *stack = net->stack;
    const uint32_t n = stack->cell[0]->n, m = last(net)->outputs;
    int16_t *held = state + rnnc_stack_state(stack);
    uint32_t updates = 0;
    for (uint32_t t = 0; t < frames; t++) {
        if (rnnc_stack_run(stack, 1, x + t * n, (int16_t *)scratch, state, scratch)) { /* done with it when y comes */
            output(net, held, scratch);
            updates++;
        }
        memcpy(y + t * m, held, m * sizeof *held);
    }
    return updates;
}
