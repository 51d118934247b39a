/* The functions of the standard library that kernels and images call, where there is no library: by words if all is even. */
#include <stddef.h>
#include <stdint.h>

typedef uint32_t __attribute__((may_alias)) word;

void *memcpy(void *restrict to, const void *restrict from, size_t bytes);
void *memmove(void *to, const void *from, size_t bytes);
void *memset(void *to, int value, size_t bytes);
size_t strlen(const char *text);

/* Keeps a compiler from replacing the loop by a call of the function that it stands in. */
#define STEP() __asm__ volatile("")

void *memcpy(void *restrict to, const void *restrict from, size_t bytes)
{
    uint8_t *a = to;
    const uint8_t *b = from;
    if ((((uintptr_t)a | (uintptr_t)b) & 3U) == 0) {
        for (; bytes >= 4; bytes -= 4, a += 4, b += 4) {
            *(word *)a = *(const word *)b;
            STEP();
        }
    }
    for (; bytes > 0; bytes--) {
        *a++ = *b++;
        STEP();
    }
    return to;
}

void *memmove(void *to, const void *from, size_t bytes)
{
    uint8_t *a = to;
    const uint8_t *b = from;
    if ((uintptr_t)a <= (uintptr_t)b) {
        return memcpy(to, from, bytes);
    }
    while (bytes-- > 0) {
        a[bytes] = b[bytes];
        STEP();
    }
    return to;
}

void *memset(void *to, int value, size_t bytes)
{
    uint8_t *a = to;
    const word four = (uint8_t)value * UINT32_C(0x01010101);
    if (((uintptr_t)a & 3U) == 0) {
        for (; bytes >= 4; bytes -= 4, a += 4) {
            *(word *)a = four;
            STEP();
        }
    }
    for (; bytes > 0; bytes--) {
        *a++ = (uint8_t)value;
        STEP();
    }
    return to;
}

size_t strlen(const char *text)
{
    size_t n = 0;
    for (; text[n] != 0; n++) {
        STEP();
    }
    return n;
}
