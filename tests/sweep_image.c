/* Products of many matrices on a board: `run 1 IN OUT`. IN holds the inputs of all matrices, OUT gets their outputs, and
 * behind them numbers moved by every shift.
 *
 * Inputs, weights, outputs and scratch end where no access is allowed, then begin there: on a Cortex-M the protection
 * unit stops the image, which then fails; a computer has its sanitizers for that. */
#include "sweep.h"

#include <stddef.h>
#include <string.h>

#include "board.h"
#include "core.h"

enum { PAGE = 4096, ROOM = 64 * 1024, PARTS = 6 };
typedef struct {
    uint8_t before[PAGE], room[ROOM];
} guarded;
static guarded parts[PARTS + 1] __attribute__((aligned(PAGE)));

#if defined __arm__
#define UNIT ((volatile uint32_t *)0xE000ED90) /* type, control, number, base, size or limit */

/* No access to what lies before each part, and so behind the one before it. */
static void guard(void)
{
    uint32_t region = 0;
    for (uint32_t k = 0; k <= PARTS; k++) {
        const uint32_t at = (uint32_t)(uintptr_t)parts[k].before;
#if defined __ARM_ARCH_8M_MAIN__ || defined __ARM_ARCH_8_1M_MAIN__
        for (int twice = 0; twice < 2; twice++) { /* no region forbids reading, but two that overlap do */
            UNIT[2] = region++;
            UNIT[3] = at;
            UNIT[4] = (at + PAGE - 32) | 1;
        }
#else
        UNIT[2] = region++;
        UNIT[3] = at;
        UNIT[4] = 11 << 1 | 1; /* 2^12 bytes, no access */
#endif
    }
    UNIT[1] = 5; /* else as ever */
    __asm__ volatile("dsb\nisb" ::: "memory");
}
#else
static void guard(void)
{
}
#endif

/* A place of so many bytes in a part, at its end or its beginning. */
static void *place(uint32_t part, uint32_t bytes, int end)
{
    uint8_t *at = parts[part].room + (end ? ROOM - bytes : 0);
    __asm__("" : "+r"(at)); /* else a compiler knows that there is more behind it, and may read that */
    return bytes > ROOM ? NULL : at;
}

/* The weights of a matrix in a part of their own, at a word. */
static int moved(rnnc_plain *w, uint32_t part, uint32_t bytes, int end)
{
    int8_t *at = place(part, (bytes + 3) / 4 * 4, end);
    if (at != NULL && bytes > 0) {
        w->weights = memcpy(at, w->weights, bytes);
    }
    return at != NULL;
}

static int product(const sweep_matrix *given, int in, int out, int end)
{
    rnnc_mat mat = *given->mat;
    int16_t *x = place(0, 2U * mat.inputs, end);
    int32_t *y = place(1, 4U * mat.outputs, end), *scratch = place(2, 4 * rnnc_mat_scratch(&mat), end);
    if (!x || !y || !scratch || !moved(&mat.plain, 3, given->bytes[0], end) ||
        !moved(&mat.first, 4, given->bytes[1], end) || !moved(&mat.second, 5, given->bytes[2], end) ||
        !rnnc_board_read(in, x, 2U * mat.inputs)) {
        return 0;
    }
    memset(scratch, 0x55, 4 * rnnc_mat_scratch(&mat));
    for (uint32_t k = 0; k < mat.outputs; k++) {
        y[k] = (int32_t)k;
    }
    rnnc_matvec(&mat, x, y, scratch);
    return rnnc_board_write(out, y, 4U * mat.outputs);
}

/* So many numbers by every shift, to so many bits. */
static int shifted(int out, uint32_t count, int bits, int end)
{
    int16_t *from = place(0, 2 * count, end), *to = place(1, 2 * count, end);
    for (int s = -30; s <= 30; s++) {
        for (uint32_t i = 0; i < count; i++) {
            from[i] = (int16_t)(i % 8 == 7 ? INT16_MIN + (int32_t)i : (int32_t)(i * 40503U % 65536U) - 32768);
        }
        rnnc_move(from, to, count, s, bits);
        if (!rnnc_board_write(out, to, 2 * count)) {
            return 0;
        }
    }
    return 1;
}

int main(int argc, char **argv)
{
    if (argc != 5) {
        return 2;
    }
    const int in = rnnc_board_open(argv[3], "rb"), out = rnnc_board_open(argv[4], "wb");
    guard();
#ifdef SWEEP_TRESPASS
    SWEEP_TRESPASS;
#endif
    for (uint32_t i = 0; i < sweep_count; i++) {
        if (!product(&sweep_matrices[i], in, out, 1) || !product(&sweep_matrices[i], in, out, 0)) {
            return 4;
        }
    }
    for (int bits = 2; bits <= 16; bits += 2) {
        if (!shifted(out, 62, bits, 1) || !shifted(out, 38, bits, 0)) {
            return 5;
        }
    }
    rnnc_board_close(out);
    return 0;
}
