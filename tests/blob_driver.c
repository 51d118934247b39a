/* Opens the model given by the first argument's file after harm was done to it; prints what loading said how often.
 *
 * cut: every length; bytes: every other value of every byte; repaired: some values of every byte, the checksum made
 * right again; calls: none, but functions are called wrongly. Whatever loads runs a few frames. Buffers are no larger
 * than they must be, so that sanitizers see. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "rnnc.h"

static unsigned long found[RNNC_BLOB_NULL + 1];

static void *room(size_t bytes)
{
    void *const at = malloc(bytes ? bytes : 1);
    if (at == NULL) {
        abort();
    }
    return at;
}

static uint32_t crc32(const uint8_t *data, size_t size)
{
    static uint32_t table[256];
    if (table[1] == 0) {
        for (uint32_t i = 0; i < 256; i++) {
            uint32_t c = i;
            for (int k = 0; k < 8; k++) {
                c = c & 1 ? (c >> 1) ^ 0xEDB88320U : c >> 1;
            }
            table[i] = c;
        }
    }
    uint32_t crc = ~0U;
    for (size_t i = 0; i < size; i++) {
        crc = (crc >> 8) ^ table[(crc ^ data[i]) & 0xFF];
    }
    return ~crc;
}

/* Loud noise in any number of bits. */
static void fill(int16_t *x, size_t count)
{
    uint32_t seed = 1;
    for (size_t i = 0; i < count; i++) {
        seed = seed * 1664525U + 1013904223U;
        x[i] = (int16_t)(seed >> 16);
    }
}

static void run_stack(const rnnc_stack *stack)
{
    enum { FRAMES = 3 };
    const size_t n = stack->cell[0]->n, m = stack->cell[stack->cells - 1]->m;
    int16_t *x = room(FRAMES * n * sizeof *x), *y = room(FRAMES * m * sizeof *y);
    int16_t *state = room(rnnc_stack_state(stack) * sizeof *state);
    int32_t *scratch = room(rnnc_stack_scratch(stack) * sizeof *scratch);
    fill(x, FRAMES * n);
    rnnc_stack_reset(stack, state);
    rnnc_stack_run(stack, FRAMES, x, y, state, scratch);
    rnnc_stack_sleep(stack, state);
    free(x), free(y), free(state), free(scratch);
}

static void run_denoiser(const rnnc_denoiser *denoiser)
{
    const uint32_t bytes = rnnc_denoiser_state_bytes(denoiser), samples = 3U * denoiser->front->window + 1;
    void *memory = room(bytes);
    int16_t *x = room(samples * sizeof *x);
    fill(x, samples);
    if (rnnc_denoiser_init(denoiser, memory, bytes) != RNNC_OK ||
        rnnc_denoiser_process(denoiser, memory, x, x, samples) != RNNC_OK) {
        abort();
    }
    free(x), free(memory);
}

static void try(const uint8_t *data, size_t size)
{
    rnnc_blob model;
    const uint32_t bytes = rnnc_blob_bytes(data, (uint32_t)size);
    const uint32_t given = bytes ? bytes : 1 << 16; /* enough to learn what is wrong */
    void *arena = room(given);
    const rnnc_blob_status status = rnnc_blob_open(data, (uint32_t)size, arena, given, &model);
    if ((status == RNNC_BLOB_OK) != (bytes > 0) || (status == RNNC_BLOB_OK) != (model.stack != NULL)) {
        abort();
    }
    found[status]++;
    if (status == RNNC_BLOB_OK) {
        run_stack(model.stack);
        if (model.denoiser != NULL) {
            run_denoiser(model.denoiser);
        }
        if (rnnc_blob_open(data, (uint32_t)size, arena, bytes - 8, &model) != RNNC_BLOB_ARENA) {
            abort();
        }
    }
    free(arena);
}

static void must(int right)
{
    if (!right) {
        abort();
    }
}

/* What rnnc.h says of wrong arguments. */
static void call_denoiser(const rnnc_denoiser *model)
{
    const uint32_t bytes = rnnc_denoiser_state_bytes(model);
    uint8_t *const memory = room(bytes + 1);
    int16_t x[3] = {1, 2, 3};
    rnnc_denoiser unfit = *model;
    unfit.net = NULL;
    memset(memory, 0, bytes);
    must(bytes > 0 && rnnc_denoiser_state_bytes(NULL) == 0 && rnnc_denoiser_state_bytes(&unfit) == 0);
    must(rnnc_denoiser_latency(model) == model->front->window - 1U && rnnc_denoiser_latency(NULL) == 0);
    must(rnnc_denoiser_init(NULL, memory, bytes) == RNNC_NULL && rnnc_denoiser_init(model, NULL, bytes) == RNNC_NULL);
    must(rnnc_denoiser_init(model, memory + 1, bytes) == RNNC_MISALIGNED);
    must(rnnc_denoiser_init(model, memory, bytes - 1) == RNNC_TOO_SMALL);
    must(rnnc_denoiser_init(&unfit, memory, bytes) == RNNC_BAD_MODEL);
    must(rnnc_denoiser_process(model, memory, x, x, 3) == RNNC_NOT_READY);
    must(rnnc_denoiser_reset(model, memory) == RNNC_NOT_READY && rnnc_denoiser_limit(model, memory, 0) == RNNC_NOT_READY);
    must(rnnc_denoiser_init(model, memory, bytes) == RNNC_OK);
    must(rnnc_denoiser_process(model, memory + 1, x, x, 3) == RNNC_MISALIGNED);
    must(rnnc_denoiser_process(model, NULL, x, x, 3) == RNNC_NULL);
    must(rnnc_denoiser_process(model, memory, NULL, x, 3) == RNNC_NULL);
    must(rnnc_denoiser_process(&unfit, memory, x, x, 3) == RNNC_BAD_MODEL);
    must(rnnc_denoiser_limit(model, memory, -1) == RNNC_BAD_LIMIT);
    must(rnnc_denoiser_limit(model, memory, 32768) == RNNC_BAD_LIMIT);
    must(rnnc_denoiser_limit(model, memory, 32767) == RNNC_OK && rnnc_denoiser_reset(model, memory) == RNNC_OK);
    run_denoiser(model);
    free(memory);
}

static void call(const uint8_t *data, size_t size)
{
    rnnc_blob model;
    const uint32_t bytes = rnnc_blob_bytes(data, (uint32_t)size);
    void *arena = room(bytes);
    must(rnnc_blob_open(data, (uint32_t)size, NULL, bytes, &model) == RNNC_BLOB_NULL);
    must(rnnc_blob_open(NULL, (uint32_t)size, arena, bytes, &model) == RNNC_BLOB_NULL);
    must(rnnc_blob_open(data, (uint32_t)size, arena, bytes, NULL) == RNNC_BLOB_NULL);
    must(rnnc_blob_bytes(NULL, (uint32_t)size) == 0);
    must(rnnc_blob_open(data, (uint32_t)size, (uint8_t *)arena + 4, bytes, &model) == RNNC_BLOB_ALIGNMENT);
    must(rnnc_blob_open(data + 1, (uint32_t)size - 1, arena, bytes, &model) == RNNC_BLOB_ALIGNMENT);
    must(rnnc_blob_open(data, (uint32_t)size, arena, bytes, &model) == RNNC_BLOB_OK);
    if (model.denoiser != NULL) {
        call_denoiser(model.denoiser);
    }
    try(data, size);
    free(arena);
}

static void repair(uint8_t *data, size_t size)
{
    const uint32_t crc = crc32(data, size - 4);
    memcpy(data + size - 4, &crc, 4);
}

int main(int argc, char **argv)
{
    static uint8_t whole[1 << 20];
    FILE *const file = argc == 3 ? fopen(argv[1], "rb") : NULL;
    if (file == NULL) {
        return 2;
    }
    const size_t size = fread(whole, 1, sizeof whole, file);
    fclose(file);
    uint8_t *const data = room(size);
    if (!strcmp(argv[2], "calls")) {
        memcpy(data, whole, size);
        call(data, size);
    } else if (!strcmp(argv[2], "cut")) {
        for (size_t cut = 0; cut < size; cut++) {
            uint8_t *part = room(cut);
            memcpy(part, whole, cut);
            try(part, cut);
            if (cut >= 20) { /* nor does it help to say so in the header */
                const uint32_t said = (uint32_t)cut;
                memcpy(part + 8, &said, 4);
                repair(part, cut);
                try(part, cut);
            }
            free(part);
        }
    } else if (!strcmp(argv[2], "bytes")) {
        memcpy(data, whole, size);
        for (size_t i = 0; i < size; i++) {
            for (int change = 1; change < 256; change++) {
                data[i] = (uint8_t)(whole[i] ^ change);
                try(data, size);
            }
            data[i] = whole[i];
        }
    } else {
        static const uint8_t values[] = {0, 1, 2, 3, 4, 0x7E, 0x7F, 0x80, 0x81, 0xFE, 0xFF};
        for (size_t i = 0; i + 4 < size; i++) {
            for (int k = 0; k < 8 + (int)sizeof values; k++) {
                memcpy(data, whole, size);
                data[i] = k < 8 ? (uint8_t)(whole[i] ^ (1 << k)) : values[k - 8];
                repair(data, size);
                try(data, size);
            }
        }
    }
    free(data);
    for (size_t i = 0; i <= RNNC_BLOB_NULL; i++) {
        printf("%lu ", found[i]);
    }
    return 0;
}
