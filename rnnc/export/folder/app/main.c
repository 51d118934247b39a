/* denoise IN.pcm OUT.pcm: int16 sound, one channel, little-endian, without a header, "-" for standard input or output.
 * denoise --selftest: whether this build computes what it should.
 * With RNNC_BARE, for a board without files: main() does the self-test and returns what it gives. */
#include "model_info.h"

static uint32_t memory[(MODEL_MEMORY_BYTES + 3) / 4];

#ifdef RNNC_BARE

int main(void)
{
    return model_selftest(memory, sizeof memory);
}

#else

#include <stdio.h>
#include <string.h>

#define BLOCK 160 /* any number will do */

/* Returns 0, or 1 where a file cannot be written. */
static int denoise(FILE *in, FILE *out)
{
    int16_t block[BLOCK];
    uint8_t bytes[2 * BLOCK];
    uint32_t late = MODEL_LATENCY; /* output that belongs to no input yet */
    size_t count;
    if (rnnc_denoiser_init(&model_denoiser, memory, sizeof memory) != RNNC_OK) {
        return 1;
    }
    for (uint32_t rest = MODEL_LATENCY; (count = fread(bytes, 2, BLOCK, in)) > 0 || rest > 0;) {
        if (count == 0) { /* silence, until the last sample is out */
            count = rest < BLOCK ? rest : BLOCK;
            rest -= (uint32_t)count;
            memset(bytes, 0, sizeof bytes);
        }
        for (size_t i = 0; i < count; i++) {
            const int32_t v = bytes[2 * i] | bytes[2 * i + 1] << 8;
            block[i] = (int16_t)(v < 32768 ? v : v - 65536);
        }
        rnnc_denoiser_process(&model_denoiser, memory, block, block, (uint32_t)count);
        const uint32_t skipped = late < count ? late : (uint32_t)count;
        late -= skipped;
        for (size_t i = 0; i < count; i++) {
            bytes[2 * i] = (uint8_t)(block[i] & 0xFF);
            bytes[2 * i + 1] = (uint8_t)((block[i] >> 8) & 0xFF);
        }
        if (fwrite(bytes + 2 * skipped, 2, count - skipped, out) != count - skipped) {
            return 1;
        }
    }
    return 0;
}

int main(int argc, char **argv)
{
    if (argc == 2 && strcmp(argv[1], "--selftest") == 0) {
        const int failed = model_selftest(memory, sizeof memory);
        puts(failed ? "self-test: FAILED" : "self-test: ok");
        return failed;
    }
    if (argc != 3) {
        fprintf(stderr, "usage: %s IN.pcm OUT.pcm | --selftest\n", argc > 0 ? argv[0] : "denoise");
        return 2;
    }
    FILE *in = strcmp(argv[1], "-") == 0 ? stdin : fopen(argv[1], "rb");
    if (in == NULL) {
        fprintf(stderr, "%s: cannot be read\n", argv[1]);
        return 2;
    }
    FILE *out = strcmp(argv[2], "-") == 0 ? stdout : fopen(argv[2], "wb");
    if (out == NULL) {
        fprintf(stderr, "%s: cannot be written\n", argv[2]);
        fclose(in);
        return 2;
    }
    int failed = denoise(in, out);
    failed |= fclose(out) != 0;
    fclose(in);
    if (failed) {
        fprintf(stderr, "%s: not written\n", argv[2]);
    }
    return failed;
}

#endif
