/* What dsp.h asks of a core with the DSP extension, in plain C: so that a computer runs the very kernels. */
#ifndef RNNC_TESTS_ARM_ACLE_H
#define RNNC_TESTS_ARM_ACLE_H

#include <stdint.h>

typedef int32_t int16x2_t;
typedef int32_t int8x4_t;
typedef uint32_t uint8x4_t;
typedef uint32_t uint16x2_t;

#define __builtin_arm_ssat(v, bits)                                                                                    \
    ((v) > (1 << ((bits)-1)) - 1 ? (1 << ((bits)-1)) - 1 : (v) < -(1 << ((bits)-1)) ? -(1 << ((bits)-1)) : (v))

/* The low or the high half. */
static inline int32_t rnnc_half(int32_t words, int high)
{
    return (int16_t)(uint16_t)((uint32_t)words >> (high ? 16 : 0));
}

static inline int32_t __smlad(int16x2_t a, int16x2_t b, int32_t sum)
{
    const int64_t total = (int64_t)rnnc_half(a, 0) * rnnc_half(b, 0) + (int64_t)rnnc_half(a, 1) * rnnc_half(b, 1);
    return (int32_t)(uint32_t)(uint64_t)(total + sum);
}

static inline int32_t __smuad(int16x2_t a, int16x2_t b)
{
    return __smlad(a, b, 0);
}

static inline int32_t __smlawb(int32_t a, int32_t b, int32_t sum)
{
    return (int32_t)(((int64_t)a * rnnc_half(b, 0)) >> 16) + sum;
}

static inline int32_t __smlawt(int32_t a, int32_t b, int32_t sum)
{
    return (int32_t)(((int64_t)a * rnnc_half(b, 1)) >> 16) + sum;
}

static inline int16x2_t __ssub16(int16x2_t a, int16x2_t b)
{
    const int32_t low = rnnc_half(a, 0) - rnnc_half(b, 0), high = rnnc_half(a, 1) - rnnc_half(b, 1);
    return (int32_t)(((uint32_t)low & 0xFFFFU) | (uint32_t)high << 16);
}

static inline int64_t __smlald(int16x2_t a, int16x2_t b, int64_t sum)
{
    return sum + (int64_t)rnnc_half(a, 0) * rnnc_half(b, 0) + (int64_t)rnnc_half(a, 1) * rnnc_half(b, 1);
}

static inline int16x2_t __sxtb16(int8x4_t a)
{
    const int32_t low = (int8_t)(uint8_t)a, high = (int8_t)(uint8_t)((uint32_t)a >> 16);
    return (int32_t)(((uint32_t)low & 0xFFFFU) | (uint32_t)high << 16);
}

static inline uint16x2_t __uxtb16(uint8x4_t a)
{
    return a & 0x00FF00FFU;
}

#endif
