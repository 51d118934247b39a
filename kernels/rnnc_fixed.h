/* The arithmetic of the kernels on whole numbers. Twin of rnnc/fixed.py: same names, same order, same results.
 *
 * A number is q * 2^-frac. One rounding: halves up. One saturation: the bounds of two's complement. Arguments stay
 * within the ranges stated here, for which nothing overflows; SEMANTICS.md says why the callers' do.
 */
#ifndef RNNC_FIXED_H
#define RNNC_FIXED_H

#include <limits.h>
#include <stdint.h>

#define RNNC_FRAC_IN 12  /* of the activations' input, int16 */
#define RNNC_FRAC_OUT 15 /* of their output, int16 */
#define RNNC_KNOT_BITS 7 /* a table has a knot every 2^7 inputs, 513 in all */
#define RNNC_LOG_FRAC 15 /* of a logarithm; its table has 65 knots for one octave */
#define RNNC_FEATURE_GUARD 8 /* bits that a feature has more before it is rounded */
#define RNNC_SOUND_GUARD 2   /* bits that unfinished sound has more than a frame that is added to it */
#define RNNC_WIDEST (INT32_C(1) << 30)

/* The right shift of a negative number must be arithmetic, as it is in every compiler for our targets. */
typedef char rnnc_right_shift_is_arithmetic[(-1 >> 1) == -1 ? 1 : -1];

/* The nearest number that fits into so many bits, 2 to 31. rnnc_saturate(128, 8) is 127. */
static inline int32_t rnnc_saturate(int32_t v, int bits)
{
    const int32_t highest = (INT32_C(1) << (bits - 1)) - 1;
    return v > highest ? highest : v < -highest - 1 ? -highest - 1 : v;
}

/* v * 2^-s, halves rounded up. |v| < 2^30, s is 0 to 30. rnnc_shift_right(-3, 1) is -1. */
static inline int32_t rnnc_shift_right(int32_t v, int s)
{
    return (v + ((INT32_C(1) << s) >> 1)) >> s;
}

/* v * 2^-s, halves rounded up; a negative s multiplies and saturates at 2^30. |v| < 2^30, s is -30 to 30.
 * rnnc_shift(-3, 1) is -1, rnnc_shift(3, 1) is 2, rnnc_shift(-5, -3) is -40. */
static inline int32_t rnnc_shift(int32_t v, int s)
{
    if (s < 0) {
        const int32_t limit = RNNC_WIDEST >> -s;
        v = v > limit ? limit : v < -limit ? -limit : v;
        return v * (INT32_C(1) << -s);
    }
    return rnnc_shift_right(v, s);
}

/* v * 2^-s, rounded and saturated: how a result is stored. rnnc_requant(-255, 1, 8) is -127. */
static inline int32_t rnnc_requant(int32_t v, int s, int bits)
{
    return rnnc_saturate(rnnc_shift(v, s), bits);
}

/* An activation of v (Q3.12 in 16 bits) as Q0.15: linear between the 513 knots, halves rounded up.
 * rnnc_lookup(rnnc_sigmoid_table, 4096) is 23955. */
static inline int32_t rnnc_lookup(const int16_t *knots, int32_t v)
{
    const int16_t *at = knots + ((v + 32768) >> RNNC_KNOT_BITS);
    const int32_t part = v & ((1 << RNNC_KNOT_BITS) - 1);
    return at[0] + (((at[1] - at[0]) * part + (1 << (RNNC_KNOT_BITS - 1))) >> RNNC_KNOT_BITS);
}

/* Zero bits above the highest one of v > 0, in a number of steps that does not depend on v. rnnc_clz(1) is 31. */
static inline int rnnc_clz(uint32_t v)
{
#if defined(__GNUC__) && UINT_MAX == 0xFFFFFFFF
    return __builtin_clz(v);
#else
    int zeros = 0;
    for (int step = 16; step > 0; step /= 2) {
        const int above = (v >> (32 - step)) == 0 ? step : 0;
        zeros += above;
        v <<= above;
    }
    return zeros;
#endif
}

/* The logarithm to the base 2 of v > 0, Q.15: linear between the 65 knots of an octave, floors.
 * rnnc_log2(rnnc_log2_table, 3) is 51936. */
static inline int32_t rnnc_log2(const uint16_t *knots, uint32_t v)
{
    const int zeros = rnnc_clz(v);
    const uint32_t m = v << zeros;
    const uint16_t *at = knots + ((m >> 25) & 63);
    const int32_t part = (int32_t)((m >> 9) & 0xFFFF);
    return ((31 - zeros) << RNNC_LOG_FRAC) + at[0] + (((at[1] - at[0]) * part) >> 16);
}

/* 2^l for l in 0 .. 30 - 2^-15, Q.15: linear between 65 knots, the whole part of the result.
 * rnnc_exp2(rnnc_exp2_table, 51936) is 2. */
static inline int32_t rnnc_exp2(const uint16_t *knots, int32_t l)
{
    const uint16_t *at = knots + ((l >> 9) & 63);
    const int32_t m = (1 << RNNC_LOG_FRAC) + at[0] + (((at[1] - at[0]) * (l & 511)) >> 9);
    return (m << 14) >> (29 - (l >> RNNC_LOG_FRAC));
}

#endif
