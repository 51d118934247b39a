/* libFuzzer target: any sound, in any blocks, to a denoiser that is compiled in as `model_denoiser`.
 *
 * The bytes are a list of calls: one byte for the kind, one for the length, then so many samples. The same sound goes
 * to a second denoiser in blocks of one sample, out of place; both must give the same. */
#include <stdlib.h>
#include <string.h>

#include "model.h"

enum { RESET, LIMIT, REPEAT, IN_PLACE, APART, KINDS };

typedef struct {
    const uint8_t *at, *end;
} bytes;

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static unsigned next(bytes *from)
{
    return from->at < from->end ? *from->at++ : 0;
}

static void check(int right)
{
    if (!right) {
        abort();
    }
}

/* A block to both; the first one's lies in memory of exactly its size. */
static void block(void *ours, void *other, const int16_t *x, unsigned samples, int in_place)
{
    int16_t *in = malloc((samples + !samples) * sizeof *in), *out = malloc((samples + !samples) * sizeof *out);
    check(in != NULL && out != NULL);
    memcpy(in, x, samples * sizeof *in);
    int16_t *const to = in_place ? in : out;
    check(rnnc_denoiser_process(&model_denoiser, ours, in, to, samples) == RNNC_OK);
    for (unsigned i = 0; i < samples; i++) {
        int16_t y;
        check(rnnc_denoiser_process(&model_denoiser, other, x + i, &y, 1) == RNNC_OK && y == to[i]);
    }
    free(in);
    free(out);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    const uint32_t needed = rnnc_denoiser_state_bytes(&model_denoiser);
    void *const ours = malloc(needed), *const other = malloc(needed);
    bytes from = {data, data + size};
    int16_t x[255] = {0};
    check(ours != NULL && other != NULL);
    check(rnnc_denoiser_process(&model_denoiser, NULL, x, x, 1) == RNNC_NULL);
    check(rnnc_denoiser_init(&model_denoiser, ours, needed - 1) == RNNC_TOO_SMALL);
    check(rnnc_denoiser_init(&model_denoiser, ours, needed) == RNNC_OK);
    check(rnnc_denoiser_init(&model_denoiser, other, needed) == RNNC_OK);
    while (from.at < from.end) {
        const unsigned kind = next(&from) % KINDS, samples = next(&from);
        if (kind == RESET) {
            check(rnnc_denoiser_reset(&model_denoiser, ours) == RNNC_OK);
            check(rnnc_denoiser_reset(&model_denoiser, other) == RNNC_OK);
            continue;
        }
        if (kind == LIMIT) {
            const int32_t least = (int32_t)(samples << 8 | next(&from)) - 1000;
            const rnnc_status expected = least >= 0 && least <= INT16_MAX ? RNNC_OK : RNNC_BAD_LIMIT;
            check(rnnc_denoiser_limit(&model_denoiser, ours, least) == expected);
            check(rnnc_denoiser_limit(&model_denoiser, other, least) == expected);
            continue;
        }
        int16_t constant = 0;
        for (unsigned i = 0; i < samples; i++) {
            if (kind != REPEAT || i == 0) {
                const unsigned low = next(&from);
                constant = (int16_t)(uint16_t)(low | next(&from) << 8);
            }
            x[i] = constant;
        }
        block(ours, other, x, samples, kind == IN_PLACE);
    }
    free(ours);
    free(other);
    return 0;
}
