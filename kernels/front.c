/* Sound to spectra and features, masks to sound, in integers: the twin of rnnc/audio/front.py.
 *
 * The real transform of `window` numbers is a complex one of half as many, and a split. The same two steps serve both
 * directions: a spectrum's conjugate, split and transformed, is the conjugate of its sound. Every pass takes means, so
 * numbers never grow; SEMANTICS.md has the bounds. Nothing here depends on the data but the numbers themselves.
 */
#include "rnnc.h"

#include <stddef.h>
#include <string.h>

#include "rnnc_fixed.h"
#include "rnnc_tables.h"

typedef struct {
    int32_t re, im;
} rnnc_complex;

/* exp(-2 pi j k / window), Q.30, for k up to 3/4 of the window. */
static rnnc_complex twiddle(const rnnc_front *front, uint32_t k)
{
    const rnnc_complex w = {-front->sine[k + front->window / 4] * 32768, front->sine[k] * 32768};
    return w;
}

/* x w / 4 for w in Q.30, floors. turned(8, 4, {0, -1 << 30}) is {1, -2}. */
static rnnc_complex turned(int32_t re, int32_t im, rnnc_complex w)
{
    const rnnc_complex y = {
        (int32_t)(((int64_t)re * w.re - (int64_t)im * w.im) >> 32),
        (int32_t)(((int64_t)re * w.im + (int64_t)im * w.re) >> 32),
    };
    return y;
}

static void put(int32_t *y, rnnc_complex v)
{
    y[0] = v.re;
    y[1] = v.im;
}

/* A transform of 4 numbers that lie `gap` apart, a quarter of each sum, turned, to places that lie `jump` apart. */
static inline void butterfly(
    const int32_t *a, uint32_t gap, const rnnc_complex *w, int32_t *y, uint32_t jump)
{
    const int32_t *b = a + gap, *c = b + gap, *d = c + gap;
    const int32_t ac_re = a[0] + c[0], ac_im = a[1] + c[1], a_c_re = a[0] - c[0], a_c_im = a[1] - c[1];
    const int32_t bd_re = b[0] + d[0], bd_im = b[1] + d[1], b_d_re = b[0] - d[0], b_d_im = b[1] - d[1];
    y[0] = (ac_re + bd_re) >> 2;
    y[1] = (ac_im + bd_im) >> 2;
    put(y + jump, turned(a_c_re + b_d_im, a_c_im - b_d_re, w[0]));
    put(y + 2 * jump, turned(ac_re - bd_re, ac_im - bd_im, w[1]));
    put(y + 3 * jump, turned(a_c_re - b_d_im, a_c_im + b_d_re, w[2]));
}

/* One pass over numbers x [4][m][s] -> y [m][4][s]. */
static void pass(const rnnc_front *front, uint32_t m, uint32_t s, const int32_t *x, int32_t *y)
{
    const uint32_t step = front->window / (4 * m), gap = 2 * m * s;
    for (uint32_t p = 0; p < m; p++, y += 6 * s) {
        const rnnc_complex w[3] = {
            twiddle(front, p * step), twiddle(front, 2 * p * step), twiddle(front, 3 * p * step)};
        if (s == 1) {
            butterfly(x, gap, w, y, 2);
            x += 2;
            y += 2;
            continue;
        }
        for (uint32_t q = 0; q < s; q++, x += 2, y += 2) {
            butterfly(x, gap, w, y, 2 * s);
        }
    }
}

/* The last pass, of 4 or of 2, where nothing is turned. */
static void last_pass(uint32_t n, uint32_t s, const int32_t *x, int32_t *y)
{
    const uint32_t next = 2 * s;
    for (uint32_t i = 0; i < next; i += 2) {
        const int32_t *a = x + i, *b = a + next;
        int32_t *to = y + i;
        if (n == 2) {
            to[0] = (a[0] + b[0]) >> 1;
            to[1] = (a[1] + b[1]) >> 1;
            to[next] = (a[0] - b[0]) >> 1;
            to[next + 1] = (a[1] - b[1]) >> 1;
            continue;
        }
        const int32_t *c = b + next, *d = c + next;
        const int32_t ac_re = a[0] + c[0], ac_im = a[1] + c[1], a_c_re = a[0] - c[0], a_c_im = a[1] - c[1];
        const int32_t bd_re = b[0] + d[0], bd_im = b[1] + d[1], b_d_re = b[0] - d[0], b_d_im = b[1] - d[1];
        to[0] = (ac_re + bd_re) >> 2;
        to[1] = (ac_im + bd_im) >> 2;
        to[next] = (a_c_re + b_d_im) >> 2;
        to[next + 1] = (a_c_im - b_d_re) >> 2;
        to[2 * next] = (ac_re - bd_re) >> 2;
        to[2 * next + 1] = (ac_im - bd_im) >> 2;
        to[3 * next] = (a_c_re - b_d_im) >> 2;
        to[3 * next + 1] = (a_c_im + b_d_re) >> 2;
    }
}

/* The complex transform of M numbers, divided by M; `x` and `other` take turns. Returns where the result is. */
static int32_t *transform(const rnnc_front *front, int32_t *x, int32_t *other)
{
    uint32_t n = front->window / 2, s = 1;
    for (; n > 4; n /= 4, s *= 4) {
        pass(front, n / 4, s, x, other);
        int32_t *const swapped = x;
        x = other;
        other = swapped;
    }
    last_pass(n, s, x, other);
    return other;
}

/* Whether the result comes to lie in `other`. */
static int ends_in_other(const rnnc_front *front)
{
    int passes = 1;
    for (uint32_t n = front->window / 2; n > 4; n /= 4) {
        passes++;
    }
    return passes & 1;
}

/* Between a complex transform of M numbers [M + 1], the last like the first, and a real one of 2 M:
 * x_k = e + o, x_(M-k) = (e - o)*, e = (x_k + x_(M-k)*) / 2, o = -j exp(-2 pi j k / window) (x_k - x_(M-k)*) / 2. The factor is here 2 Q.30. */
static void split(const rnnc_front *front, int32_t *x)
{
    const uint32_t half = front->window / 2;
    const int16_t *sine = front->sine, *cosine = sine + front->window / 4;
    int32_t *a = x, *b = x + 2 * half;
    for (uint32_t k = 0; k <= half / 2; k++, a += 2, b -= 2) {
        const rnnc_complex w = {sine[k] * 65536, cosine[k] * 65536};
        const rnnc_complex o = turned(a[0] - b[0], a[1] + b[1], w);
        const int32_t re = (a[0] + b[0]) >> 1, im = (a[1] - b[1]) >> 1;
        a[0] = re + o.re;
        a[1] = im + o.im;
        b[0] = re - o.re;
        b[1] = o.im - im;
    }
}

void rnnc_front_analyse(const rnnc_front *front, const int16_t *frame, int32_t *spectrum, int32_t *work)
{
    const uint32_t window = front->window;
    const int swapped = ends_in_other(front);
    int32_t *x = swapped ? work : spectrum;
    const uint16_t *weight = front->analysis;
    x[0] = (frame[0] * weight[0]) >> 2;
    for (uint32_t i = 1; i <= window / 2; i++) {
        x[i] = (frame[i] * weight[i]) >> 2;
        x[window - i] = (frame[window - i] * weight[i]) >> 2;
    }
    transform(front, x, swapped ? spectrum : work);
    spectrum[window] = spectrum[0];
    spectrum[window + 1] = spectrum[1];
    split(front, spectrum);
}

/* sqrt(re^2 + im^2 + least^2), within 2^-12 of it and one; each below 2^30, least > 0.
 * The largest of them comes to lie in 2^29 .. 2^30, so that the sum's upper word has 26 to 30 bits. */
static int32_t magnitude(int32_t re, int32_t im, int32_t least)
{
    const uint32_t any = (uint32_t)((re ^ (re >> 31)) | (im ^ (im >> 31)) | least);
    const int up = rnnc_clz(any) - 2;
    const int64_t a = re * (INT32_C(1) << up), b = im * (INT32_C(1) << up), c = least * (INT32_C(1) << up);
    const int32_t log = rnnc_log2(rnnc_log2_table, (uint32_t)((a * a + b * b + c * c) >> 32));
    return rnnc_exp2(rnnc_exp2_table, ((log + (32 << RNNC_LOG_FRAC)) >> 1) - (up << RNNC_LOG_FRAC));
}

/* A band's level to the power, centred and scaled: 2^(power log2(level) + offset) - mean. */
static int16_t feature(const rnnc_front *front, int32_t level)
{
    const int32_t most = (29 << RNNC_LOG_FRAC) - 1;
    int32_t log = rnnc_log2(rnnc_log2_table, (uint32_t)level);
    log = (int32_t)(((int64_t)log * front->power) >> 15) + front->offset;
    log = log < 0 ? 0 : log > most ? most : log;
    const int32_t value = rnnc_exp2(rnnc_exp2_table, log) - front->mean;
    return (int16_t)rnnc_requant(value, RNNC_FEATURE_GUARD, front->x_bits);
}

void rnnc_front_features(const rnnc_front *front, const int32_t *spectrum, int16_t *features, int32_t *work)
{
    for (uint32_t k = 0; k <= front->window / 2U; k++) {
        work[k] = magnitude(spectrum[2 * k], spectrum[2 * k + 1], front->least);
    }
    const uint16_t *weight = front->weights;
    for (uint32_t b = 0; b < front->bands; b++) {
        const int32_t *level = work + front->start[b];
        int64_t sum = 0;
        for (uint32_t i = 0; i < front->count[b]; i++) {
            sum += (int64_t)level[i] * *weight++;
        }
        features[b] = feature(front, (int32_t)(sum >> 15));
    }
}

/* The gain of a bin, Q0.15: between those of two bands. */
static int32_t gain(const rnnc_front *front, const int16_t *mask, uint32_t k)
{
    if (k < front->first || k > front->last) {
        return 0;
    }
    const int32_t place = front->place[k], part = place & ((1 << front->place_frac) - 1);
    const int16_t *at = mask + (place >> front->place_frac);
    return at[0] + (((at[part != 0] - at[0]) * part) >> front->place_frac);
}

/* x w / 2^28, halves rounded up. under(3, 1 << 27) is 2. */
static int32_t under(int32_t x, uint32_t w)
{
    return (int32_t)(((int64_t)(x * 16) * (int32_t)w + (INT64_C(1) << 31)) >> 32);
}

/* The frame under the synthesis window, in place; the sound is conjugate, so odd samples have the other sign. */
static void window_again(const rnnc_front *front, int32_t *x)
{
    const uint32_t half = front->window / 2;
    const int up = 28 - front->synthesis_shift;
    int32_t *a = x + 1, *b = x + front->window - 1;
    x[0] = under(x[0], (uint32_t)front->synthesis[0] << up);
    for (uint32_t i = 1; i < half; i += 2, a += 2, b -= 2) {
        const uint32_t odd = (uint32_t)front->synthesis[i] << up, even = (uint32_t)front->synthesis[i + 1] << up;
        a[0] = under(-a[0], odd);
        b[0] = under(-b[0], odd);
        a[1] = under(a[1], even);
        if (i + 1 < half) {
            b[-1] = under(b[-1], even);
        }
    }
}

void rnnc_front_synthesise(const rnnc_front *front, const int16_t *mask, int32_t least, int32_t *spectrum,
    int32_t *unfinished, int16_t *out, int32_t *work)
{
    const uint32_t window = front->window, hop = front->hop, tail = window - hop;
    int shift = 13 + RNNC_SOUND_GUARD;
    for (uint32_t k = 0; k <= window / 2; k++) {
        const int32_t own = gain(front, mask, k), g = own < least ? least : own;
        spectrum[2 * k] = (int32_t)(((int64_t)spectrum[2 * k] * g) >> 15);
        spectrum[2 * k + 1] = (int32_t)(((int64_t)spectrum[2 * k + 1] * -g) >> 15);
    }
    for (uint32_t n = window / 2; n > 1; n /= 2) {
        shift--;
    }
    split(front, spectrum);
    int32_t *const x = transform(front, spectrum, work);
    window_again(front, x);
    for (uint32_t i = 0; i < hop; i++) {
        out[i] = (int16_t)rnnc_requant(unfinished[i] + x[i], shift, 16);
    }
    for (uint32_t i = hop; i < tail; i++) {
        unfinished[i - hop] = unfinished[i] + x[i];
    }
    memcpy(unfinished + (tail - hop), x + tail, hop * sizeof *x);
}
