/* libFuzzer target: any bytes as a model. Header and checksum are made right, so that changes get past them; whatever
 * loads is run for a few frames. */
#include <stdlib.h>
#include <string.h>

#include "rnnc.h"

#define MOST_BYTES (1U << 20) /* of memory for a model */

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static uint32_t crc32(const uint8_t *data, size_t size)
{
    uint32_t crc = ~0U;
    for (size_t i = 0; i < size; i++) {
        crc ^= data[i];
        for (int bit = 0; bit < 8; bit++) {
            crc = (crc >> 1) ^ ((crc & 1U) * 0xEDB88320U);
        }
    }
    return ~crc;
}

/* Numbers that differ, large and small. */
static void fill(int16_t *x, size_t count)
{
    uint32_t seed = 1;
    for (size_t i = 0; i < count; i++) {
        seed = seed * 1664525U + 1013904223U;
        x[i] = (int16_t)((int16_t)(seed >> 16) >> (i & 7U));
    }
}

static void run_stack(const rnnc_stack *stack)
{
    enum { FRAMES = 3 };
    const size_t n = stack->cell[0]->n, m = stack->cell[stack->cells - 1]->m;
    const size_t state_bytes = 2 * (size_t)rnnc_stack_state(stack), scratch_bytes = 4 * (size_t)rnnc_stack_scratch(stack);
    if (state_bytes + scratch_bytes > MOST_BYTES) {
        return;
    }
    int16_t *x = malloc(FRAMES * n * sizeof *x), *y = malloc(FRAMES * m * sizeof *y), *state = malloc(state_bytes);
    int32_t *scratch = malloc(scratch_bytes);
    if (x != NULL && y != NULL && state != NULL && scratch != NULL) {
        fill(x, FRAMES * n);
        rnnc_stack_reset(stack, state);
        rnnc_stack_run(stack, FRAMES, x, y, state, scratch);
        rnnc_stack_sleep(stack, state);
    }
    free(x);
    free(y);
    free(state);
    free(scratch);
}

static void run_denoiser(const rnnc_denoiser *denoiser)
{
    const uint32_t bytes = rnnc_denoiser_state_bytes(denoiser), samples = 3U * denoiser->front->window + 1;
    if (bytes == 0) {
        abort(); /* what loads fits together */
    }
    if (bytes > MOST_BYTES) {
        return;
    }
    void *memory = malloc(bytes);
    int16_t *x = malloc(samples * sizeof *x);
    if (memory != NULL && x != NULL) {
        fill(x, samples);
        if (rnnc_denoiser_init(denoiser, memory, bytes) != RNNC_OK ||
            rnnc_denoiser_process(denoiser, memory, x, x, samples) != RNNC_OK) {
            abort();
        }
    }
    free(memory);
    free(x);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    if (size < 20) {
        return 0;
    }
    uint8_t *const bytes = malloc(size);
    if (bytes == NULL) {
        return 0;
    }
    memcpy(bytes, data, size);
    const uint32_t top[] = {0x434E4E52, 1, (uint32_t)size};
    memcpy(bytes, top, sizeof top);
    const uint32_t crc = crc32(bytes, size - 4);
    memcpy(bytes + size - 4, &crc, 4);
    const uint32_t needed = rnnc_blob_bytes(bytes, (uint32_t)size);
    if (needed > 0) {
        void *const arena = malloc(needed);
        rnnc_blob model;
        if (arena != NULL) {
            if (rnnc_blob_open(bytes, (uint32_t)size, arena, needed, &model) != RNNC_BLOB_OK) {
                abort();
            }
            run_stack(model.stack);
            if (model.denoiser != NULL) {
                run_denoiser(model.denoiser);
            }
        }
        free(arena);
    }
    free(bytes);
    return 0;
}
