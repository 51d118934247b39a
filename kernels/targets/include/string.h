/* What kernels and images take from string.h, for compilers that come without a library; see memory.c. */
#ifndef RNNC_STRING_H
#define RNNC_STRING_H

#include <stddef.h>

void *memcpy(void *restrict to, const void *restrict from, size_t bytes);
void *memmove(void *to, const void *from, size_t bytes);
void *memset(void *to, int value, size_t bytes);
size_t strlen(const char *text);

#endif
