/* A denoiser from int16 sound to int16 sound, in blocks of any size, in one block of memory that the caller owns. */
#include "rnnc.h"

#include <stddef.h>
#include <string.h>

/* What the memory begins with; then come, each at a multiple of 4: the last `window` samples, the next `hop` to be
 * given, features and mask, unfinished sound, the spectrum, scratch of the front end or of the network, its state. */
typedef struct {
    uint32_t magic;  /* of memory that was initialised */
    uint32_t filled; /* samples of the hop that is coming in */
    int32_t least;   /* gain */
} rnnc_header;

/* "RNNC", changed by all sizes, so that the memory of a model with others is refused. */
static uint32_t magic(const rnnc_denoiser *model)
{
    const rnnc_front *front = model->front;
    const uint32_t sizes[] = {front->window, front->hop, front->bands, rnnc_denoiser_state_bytes(model)};
    uint32_t v = UINT32_C(0x524E4E43);
    for (int i = 0; i < 4; i++) {
        v = (v ^ sizes[i]) * UINT32_C(0x01000193);
    }
    return v;
}

static uint32_t even(uint32_t count)
{
    return (count + 1) / 2 * 2;
}

static int16_t *past(void *memory)
{
    return (int16_t *)((rnnc_header *)memory + 1);
}

static int16_t *ready(const rnnc_front *front, void *memory)
{
    return past(memory) + front->window;
}

static int16_t *features(const rnnc_front *front, void *memory)
{
    return ready(front, memory) + even(front->hop);
}

static int32_t *unfinished(const rnnc_front *front, void *memory)
{
    return (int32_t *)(void *)(features(front, memory) + even(front->bands));
}

static int32_t *spectrum(const rnnc_front *front, void *memory)
{
    return unfinished(front, memory) + (front->window - front->hop);
}

static int32_t *scratch(const rnnc_front *front, void *memory)
{
    return spectrum(front, memory) + front->window + 2;
}

static int16_t *state(const rnnc_denoiser *model, void *memory)
{
    const uint32_t front = model->front->window, net = rnnc_net_scratch(model->net);
    return (int16_t *)(void *)(scratch(model->front, memory) + (front > net ? front : net));
}

/* Whether a model is one that the kernels have and its parts fit together. */
static int fits(const rnnc_denoiser *model)
{
    const rnnc_front *front = model->front;
    const rnnc_net *net = model->net;
    if (front == NULL || net == NULL || net->stack == NULL || net->stack->cells == 0 || net->layers == 0) {
        return 0;
    }
    const uint32_t window = front->window, hop = front->hop;
    return window >= 64 && window <= 2048 && (window & (window - 1)) == 0 && hop > 0 && window % hop == 0 &&
           hop < window && front->bands == net->stack->cell[0]->n &&
           front->bands == net->layer[net->layers - 1].mat.outputs;
}

uint32_t rnnc_denoiser_state_bytes(const rnnc_denoiser *model)
{
    if (model == NULL || !fits(model)) {
        return 0;
    }
    const rnnc_front *front = model->front;
    const uint32_t net = rnnc_net_scratch(model->net), work = front->window > net ? front->window : net;
    const uint32_t halves = front->window + even(front->hop) + even(front->bands) + rnnc_net_state(model->net);
    const uint32_t words = (uint32_t)(front->window - front->hop) + front->window + 2 + work;
    return (uint32_t)sizeof(rnnc_header) + 2 * halves + 4 * words;
}

uint32_t rnnc_denoiser_latency(const rnnc_denoiser *model)
{
    return model == NULL || model->front == NULL ? 0 : model->front->window - 1U;
}

static void silence(const rnnc_denoiser *model, void *memory)
{
    const rnnc_front *front = model->front;
    ((rnnc_header *)memory)->filled = 0;
    memset(past(memory), 0, front->window * sizeof(int16_t));
    memset(ready(front, memory), 0, front->hop * sizeof(int16_t));
    memset(unfinished(front, memory), 0, (uint32_t)(front->window - front->hop) * sizeof(int32_t));
    rnnc_net_reset(model->net, state(model, memory));
}

rnnc_status rnnc_denoiser_init(const rnnc_denoiser *model, void *memory, uint32_t bytes)
{
    if (model == NULL || memory == NULL) {
        return RNNC_NULL;
    }
    if ((uintptr_t)memory % 4 != 0) {
        return RNNC_MISALIGNED;
    }
    const uint32_t needed = rnnc_denoiser_state_bytes(model);
    if (needed == 0) {
        return RNNC_BAD_MODEL;
    }
    if (bytes < needed) {
        return RNNC_TOO_SMALL;
    }
    rnnc_header *header = memory;
    header->magic = magic(model);
    header->least = 0;
    silence(model, memory);
    return RNNC_OK;
}

/* Whether the memory can be used. */
static rnnc_status usable(const rnnc_denoiser *model, const void *memory)
{
    if (model == NULL || memory == NULL) {
        return RNNC_NULL;
    }
    if ((uintptr_t)memory % 4 != 0) {
        return RNNC_MISALIGNED;
    }
    if (!fits(model)) {
        return RNNC_BAD_MODEL;
    }
    return ((const rnnc_header *)memory)->magic == magic(model) ? RNNC_OK : RNNC_NOT_READY;
}

rnnc_status rnnc_denoiser_reset(const rnnc_denoiser *model, void *memory)
{
    const rnnc_status status = usable(model, memory);
    if (status == RNNC_OK) {
        silence(model, memory);
    }
    return status;
}

rnnc_status rnnc_denoiser_limit(const rnnc_denoiser *model, void *memory, int32_t least)
{
    const rnnc_status status = usable(model, memory);
    if (status != RNNC_OK) {
        return status;
    }
    if (least < 0 || least > INT16_MAX) {
        return RNNC_BAD_LIMIT;
    }
    ((rnnc_header *)memory)->least = least;
    return RNNC_OK;
}

/* A hop came in: the frame that it completes goes through, and the next samples to be given are ready. */
static void frame(const rnnc_denoiser *model, void *memory)
{
    const rnnc_front *front = model->front;
    int16_t *x = features(front, memory), *sound = past(memory);
    int32_t *bins = spectrum(front, memory), *work = scratch(front, memory);
    rnnc_front_analyse(front, sound, bins, work);
    rnnc_front_features(front, bins, x, work);
    rnnc_net_run(model->net, 1, x, x, state(model, memory), work);
    const int32_t least = ((const rnnc_header *)memory)->least;
    rnnc_front_synthesise(front, x, least, bins, unfinished(front, memory), ready(front, memory), work);
    memmove(sound, sound + front->hop, (uint32_t)(front->window - front->hop) * sizeof *sound);
}

rnnc_status rnnc_denoiser_process(
    const rnnc_denoiser *model, void *memory, const int16_t *in, int16_t *out, uint32_t samples)
{
    const rnnc_status status = usable(model, memory);
    if (status != RNNC_OK) {
        return status;
    }
    if (in == NULL || out == NULL) {
        return RNNC_NULL;
    }
    const rnnc_front *front = model->front;
    int16_t *coming = past(memory) + (front->window - front->hop);
    const int16_t *given = ready(front, memory);
    uint32_t filled = ((const rnnc_header *)memory)->filled;
    for (uint32_t i = 0; i < samples; i++) {
        coming[filled++] = in[i];
        if (filled == front->hop) {
            frame(model, memory);
            filled = 0;
        }
        out[i] = given[filled];
    }
    ((rnnc_header *)memory)->filled = filled;
    return RNNC_OK;
}
