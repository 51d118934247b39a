/* A test image's main: `run FRAMES IN OUT` or `count FRAMES IN OUT`, for all models in their order.
 *
 * IN holds int16 numbers: [FRAMES][inputs] of each model; a denoiser's inputs are the samples of a hop. `run` writes for
 * each model three uint32, how many outputs a frame has, how many numbers the state, and how many frames were not
 * skipped; then int16 the outputs of all frames and the state after them (of a denoiser no state, and all frames).
 * `count` runs each beginning of a model (its lowest cell, two cells, .., all cells; with the skip gate; with a dense
 * layer, two, ..; the denoiser) on its own, each frame computed, with a mark before and after the last frame; one more
 * pair of marks comes first, with nothing between. It writes the ticks of all marks (uint32). To count a denoiser, IN
 * has as many numbers a frame as the larger one of its hop and its bands, of which each beginning takes what it needs.
 */
#include "image.h"

#include <stddef.h>
#include <string.h>

#include "board.h"

enum { ROOM = 256 * 1024 };
static int32_t memory[ROOM / 4];

/* The parts of the memory, for one model. */
typedef struct {
    int32_t *scratch;
    int16_t *state, *x, *y;
} room;

static const rnnc_net *net_of(const rnnc_image_model *model)
{
    return model->denoiser != NULL ? model->denoiser->net : model->net;
}

static const rnnc_stack *stack_of(const rnnc_image_model *model)
{
    const rnnc_net *net = net_of(model);
    return net != NULL ? net->stack : model->stack;
}

static uint32_t inputs_of(const rnnc_stack *stack)
{
    return stack->cell[0]->n;
}

static uint32_t outputs_of(const rnnc_stack *stack, const rnnc_net *net)
{
    return net != NULL ? net->layer[net->layers - 1].mat.outputs : stack->cell[stack->cells - 1]->m;
}

/* Room for so many inputs and outputs; 0 if there is too little. */
static int divide(const rnnc_stack *stack, const rnnc_net *net, uint32_t inputs, uint32_t outputs, room *parts)
{
    const uint32_t scratch = net != NULL ? rnnc_net_scratch(net) : rnnc_stack_scratch(stack);
    const uint32_t state = net != NULL ? rnnc_net_state(net) : rnnc_stack_state(stack);
    parts->scratch = memory;
    parts->state = (int16_t *)(memory + scratch);
    parts->x = parts->state + (state + 1) / 2 * 2; /* each begins at a word */
    parts->y = parts->x + (inputs + 1) / 2 * 2;
    return 4 * scratch + 2 * (state + inputs + outputs + 2) <= ROOM;
}

static void reset(const rnnc_stack *stack, const rnnc_net *net, const room *at)
{
    if (net != NULL) {
        rnnc_net_reset(net, at->state);
    } else {
        rnnc_stack_reset(stack, at->state);
    }
}

static uint32_t frames_of(
    const rnnc_stack *stack, const rnnc_net *net, uint32_t frames, const int16_t *x, int16_t *y, const room *at)
{
    return net != NULL ? rnnc_net_run(net, frames, x, y, at->state, at->scratch)
                       : rnnc_stack_run(stack, frames, x, y, at->state, at->scratch);
}

/* Outputs of all frames, state, updates. */
static int run_net(const rnnc_stack *stack, const rnnc_net *net, uint32_t frames, int in, int out)
{
    const uint32_t n = frames * inputs_of(stack), m = frames * outputs_of(stack, net);
    room at;
    if (!divide(stack, net, n, m, &at) || !rnnc_board_read(in, at.x, 2 * n)) {
        return 0;
    }
    reset(stack, net, &at);
    const uint32_t updates = frames_of(stack, net, frames, at.x, at.y, &at);
    const uint32_t state = net != NULL ? rnnc_net_state(net) : rnnc_stack_state(stack);
    const uint32_t head[] = {outputs_of(stack, net), state, updates};
    return rnnc_board_write(out, head, sizeof head) && rnnc_board_write(out, at.y, 2 * m) &&
           rnnc_board_write(out, at.state, 2 * state);
}

/* Sound through a denoiser, in two blocks. */
static int run_denoiser(const rnnc_denoiser *model, uint32_t frames, int in, int out)
{
    const uint32_t hop = model->front->hop, samples = frames * hop, bytes = rnnc_denoiser_state_bytes(model);
    int16_t *x = (int16_t *)(memory + (bytes + 3) / 4), *y = x + (samples + 1) / 2 * 2;
    if (bytes == 0 || bytes + 4 * (samples + 2) > ROOM || !rnnc_board_read(in, x, 2 * samples)) {
        return 0;
    }
    const uint32_t first = samples / 3, head[] = {hop, 0, frames};
    return rnnc_denoiser_init(model, memory, bytes) == RNNC_OK &&
           rnnc_denoiser_process(model, memory, x, y, first) == RNNC_OK &&
           rnnc_denoiser_process(model, memory, x + first, y + first, samples - first) == RNNC_OK &&
           rnnc_board_write(out, head, sizeof head) && rnnc_board_write(out, y, 2 * samples);
}

static int run(const rnnc_image_model *model, uint32_t frames, int in, int out)
{
    return model->denoiser != NULL ? run_denoiser(model->denoiser, frames, in, out)
                                   : run_net(stack_of(model), net_of(model), frames, in, out);
}

/* The first hop of sound is computed in any case. */
static int mark_denoiser(const rnnc_denoiser *model, int16_t *sound)
{
    const uint32_t bytes = rnnc_denoiser_state_bytes(model);
    if (bytes == 0 || bytes > ROOM || rnnc_denoiser_init(model, memory, bytes) != RNNC_OK) {
        return 0;
    }
    rnnc_board_mark();
    rnnc_denoiser_process(model, memory, sound, sound, model->front->hop);
    rnnc_board_mark();
    return 1;
}

/* Every frame is computed: before each, the gate's probability stands at 0 and its increment at 1. */
static int mark_last(
    const rnnc_stack *stack, const rnnc_net *net, uint32_t frames, const int16_t *given, uint32_t width)
{
    const uint32_t n = inputs_of(stack);
    room at;
    if (!divide(stack, net, n, outputs_of(stack, net), &at)) {
        return 0;
    }
    reset(stack, net, &at);
    for (uint32_t t = 0; t < frames; t++) {
        memcpy(at.x, given + t * width, 2 * n);
        if (stack->skip != NULL) {
            int16_t *gate = at.state + rnnc_stack_state(stack) - 2;
            gate[0] = -1;
            gate[1] = INT16_MAX;
        }
        if (t + 1 == frames) {
            rnnc_board_mark();
        }
        frames_of(stack, net, 1, at.x, net != NULL ? at.y : NULL, &at);
    }
    rnnc_board_mark();
    return 1;
}

/* All beginnings of a model. */
static int count(const rnnc_image_model *model, uint32_t frames, int in)
{
    static int16_t given[16 * 1024];
    const rnnc_net *net = net_of(model);
    const rnnc_stack *stack = stack_of(model);
    const uint32_t n = inputs_of(stack), hop = model->denoiser != NULL ? model->denoiser->front->hop : 0;
    const uint32_t width = hop > n ? hop : n, bytes = 2 * frames * width;
    if (bytes > sizeof given || !rnnc_board_read(in, given, bytes)) {
        return 0;
    }
    int fine = 1;
    rnnc_stack some = {.cell = stack->cell, .skip = NULL};
    for (some.cells = 1; fine && some.cells <= stack->cells; some.cells++) {
        fine = mark_last(&some, NULL, frames, given, width);
    }
    if (fine && stack->skip != NULL) {
        fine = mark_last(stack, NULL, frames, given, width);
    }
    if (net != NULL) {
        rnnc_net few = {.stack = stack, .layer = net->layer};
        for (few.layers = 1; fine && few.layers <= net->layers; few.layers++) {
            fine = mark_last(stack, &few, frames, given, width);
        }
    }
    return fine && (model->denoiser == NULL || mark_denoiser(model->denoiser, given));
}

/* "60" is 60. */
static uint32_t number(const char *text)
{
    uint32_t value = 0;
    for (; *text >= '0' && *text <= '9'; text++) {
        value = 10 * value + (uint32_t)(*text - '0');
    }
    return value;
}

int main(int argc, char **argv)
{
    if (argc != 5) {
        return 2;
    }
    const int counting = argv[1][0] == 'c', in = rnnc_board_open(argv[3], "rb"), out = rnnc_board_open(argv[4], "wb");
    const uint32_t frames = number(argv[2]);
    if (in < 0 || out < 0) {
        return 3;
    }
    if (counting) {
        rnnc_board_mark();
        rnnc_board_mark();
    }
    for (uint32_t i = 0; i < rnnc_image_count; i++) {
        const rnnc_image_model *model = &rnnc_image_models[i];
        if (!(counting ? count(model, frames, in) : run(model, frames, in, out))) {
            return 4;
        }
    }
    const uint32_t *ticks;
    const uint32_t marks = rnnc_board_marks(&ticks);
    if (counting && !rnnc_board_write(out, ticks, 4 * marks)) {
        return 5;
    }
    rnnc_board_close(in);
    rnnc_board_close(out);
    return 0;
}
