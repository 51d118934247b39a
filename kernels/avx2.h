/* RNNC_AVX2: x86-64 with AVX2 (-mavx2). Weights row by row. */
#ifndef RNNC_AVX2_H
#define RNNC_AVX2_H

#include <immintrin.h>

#include "rows.h"

static inline rnnc_line rnnc_line_of(const rnnc_plain *w, const int16_t *x, int16_t *copy)
{
    (void)w, (void)copy;
    const rnnc_line line = {x, NULL, 0};
    return line;
}

static inline int32_t rnnc_clip(int32_t v, int bits)
{
    return rnnc_saturate(v, bits);
}

static inline void rnnc_move(const int16_t *from, int16_t *to, uint32_t count, int s, int bits)
{
    rnnc_plain_move(from, to, count, s, bits);
}

/* Eight at a time, both knots in one load: (k0 (128 - part) + k1 part + 64) >> 7. */
static inline void rnnc_activate(const int16_t *knots, int32_t *z, uint32_t count)
{
    const __m256i highest = _mm256_set1_epi32(INT16_MAX), lowest = _mm256_set1_epi32(INT16_MIN);
    uint32_t i = 0;
    for (; i + 8 <= count; i += 8) {
        const __m256i given = _mm256_loadu_si256((const __m256i *)(z + i));
        const __m256i v = _mm256_max_epi32(_mm256_min_epi32(given, highest), lowest);
        const __m256i part = _mm256_and_si256(v, _mm256_set1_epi32(127)); /* [128 - part | part] */
        const __m256i weights = _mm256_sub_epi32(
            _mm256_add_epi32(_mm256_slli_epi32(part, 16), _mm256_set1_epi32(128)), part);
        const __m256i both = _mm256_i32gather_epi32(
            (const int *)(const void *)(knots + 256), _mm256_srai_epi32(v, RNNC_KNOT_BITS), 2);
        const __m256i sum = _mm256_add_epi32(_mm256_madd_epi16(both, weights), _mm256_set1_epi32(64));
        _mm256_storeu_si256((__m256i *)(z + i), _mm256_srai_epi32(sum, RNNC_KNOT_BITS));
    }
    for (; i < count; i++) {
        z[i] = rnnc_lookup(knots, rnnc_saturate(z[i], 16));
    }
}

RNNC_INLINE void rnnc_round4(int32_t sum[4], const int8_t *shifts, int bits)
{
    int32_t four;
    memcpy(&four, shifts, sizeof four);
    const __m128i s = _mm_cvtepi8_epi32(_mm_cvtsi32_si128(four));
    if ((uint32_t)four & 0x80808080U) {
        for (int k = 0; k < 4; k++) {
            sum[k] = rnnc_requant(sum[k], shifts[k], bits);
        }
        return;
    }
    const __m128i half = _mm_srli_epi32(_mm_sllv_epi32(_mm_set1_epi32(1), s), 1);
    const __m128i v = _mm_srav_epi32(_mm_add_epi32(_mm_loadu_si128((const __m128i *)sum), half), s);
    const int32_t highest = (INT32_C(1) << (bits - 1)) - 1;
    const __m128i kept = _mm_max_epi32(_mm_min_epi32(v, _mm_set1_epi32(highest)), _mm_set1_epi32(-highest - 1));
    _mm_storeu_si128((__m128i *)sum, kept);
}

/* Sixteen weights of 4, 8 or 16 bits. */
RNNC_INLINE __m256i rnnc_sixteen(const int8_t *at, int bits)
{
    if (bits == 16) {
        return _mm256_loadu_si256((const __m256i *)(const void *)at);
    }
    if (bits == 8) {
        return _mm256_cvtepi8_epi16(_mm_loadu_si128((const __m128i *)(const void *)at));
    }
    const __m128i bytes = _mm_loadl_epi64((const __m128i *)(const void *)at), low = _mm_set1_epi8(15);
    const __m128i nibbles = _mm_unpacklo_epi8(_mm_and_si128(bytes, low), _mm_and_si128(_mm_srli_epi16(bytes, 4), low));
    const __m128i sign = _mm_set1_epi8(8);
    return _mm256_cvtepi8_epi16(_mm_sub_epi8(_mm_xor_si128(nibbles, sign), sign));
}

/* [sum of a | b | c | d] */
RNNC_INLINE __m128i rnnc_across(__m256i a, __m256i b, __m256i c, __m256i d)
{
    const __m256i all = _mm256_hadd_epi32(_mm256_hadd_epi32(a, b), _mm256_hadd_epi32(c, d));
    return _mm_add_epi32(_mm256_castsi256_si128(all), _mm256_extracti128_si256(all, 1));
}

/* Four rows that lie one behind the other; past the last one, it again. */
RNNC_INLINE const int8_t *rnnc_four_rows(const rnnc_plain *w, const int8_t *at, uint32_t row, uint32_t count,
    const rnnc_line *line, int32_t sum[4], int bits, int unused)
{
    (void)unused;
    const uint32_t n = w->inputs, bytes = n * (uint32_t)bits / 8, whole = n / 16 * 16;
    const int8_t *rows[4] = {at};
    __m256i total[4] = {_mm256_setzero_si256(), _mm256_setzero_si256(), _mm256_setzero_si256(), _mm256_setzero_si256()};
    for (uint32_t k = 1; k < 4; k++) {
        rows[k] = rows[k - 1] + (k < count ? bytes : 0);
    }
    for (uint32_t i = 0; i < whole; i += 16) {
        const __m256i x = _mm256_loadu_si256((const __m256i *)(const void *)(line->x + i));
        RNNC_UNROLL
        for (uint32_t k = 0; k < 4; k++) {
            const __m256i weights = rnnc_sixteen(rows[k] + i * (uint32_t)bits / 8, bits);
            total[k] = _mm256_add_epi32(total[k], _mm256_madd_epi16(weights, x));
        }
    }
    _mm_storeu_si128((__m128i *)sum, rnnc_across(total[0], total[1], total[2], total[3]));
    for (uint32_t i = whole; i < n; i++) {
        for (uint32_t k = 0; k < 4; k++) {
            sum[k] += rnnc_number(w, (row + (k < count ? k : count - 1)) * n + i) * line->x[i];
        }
    }
    return at + 4 * bytes;
}

static inline void rnnc_rows(
    const rnnc_plain *w, uint32_t row, uint32_t count, const rnnc_line *x, const rnnc_out *out)
{
    const int8_t *at = w->weights + row * (w->inputs * (uint32_t)w->bits / 8);
    if (w->tile == 0 && w->map == NULL && w->bits == 8) {
        rnnc_fours(w, at, row, count, x, out, rnnc_four_rows, 8, 0, rnnc_round4);
    } else if (w->tile == 0 && w->map == NULL && w->bits == 16) {
        rnnc_fours(w, at, row, count, x, out, rnnc_four_rows, 16, 0, rnnc_round4);
    } else if (w->tile == 0 && w->map == NULL && w->inputs % 2 == 0) {
        rnnc_fours(w, at, row, count, x, out, rnnc_four_rows, 4, 0, rnnc_round4);
    } else {
        rnnc_plain_rows(w, row, count, x, out);
    }
}

static inline uint32_t rnnc_grid(const rnnc_plain *w, uint32_t row, uint32_t count, const rnnc_lines *x,
    const rnnc_out *out, uint32_t apart)
{
    (void)w, (void)row, (void)count, (void)x, (void)out, (void)apart;
    return 0;
}

#endif
