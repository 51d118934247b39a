/* What a test image asks of the machine that it runs on: files, marks between which instructions are counted, an end.
 * On an emulated chip these are semihosting calls (semihost.c), on a computer the standard library's (host.c). */
#ifndef RNNC_BOARD_H
#define RNNC_BOARD_H

#include <stdint.h>

/* A file of this computer, to be read ("rb") or made anew ("wb"); below 0: there is none. */
int rnnc_board_open(const char *path, const char *mode);

/* Whether so many bytes could be read or written: 1 or 0. */
int rnnc_board_read(int file, void *to, uint32_t bytes);
int rnnc_board_write(int file, const void *from, uint32_t bytes);
void rnnc_board_close(int file);

/* A point in time. The plugin and callgrind count instructions from one call to the next; without them the board's
 * clock tells: the number of ticks that the last marks found, in their order, and how many marks there were. */
void rnnc_board_mark(void);
uint32_t rnnc_board_marks(const uint32_t **ticks);

#endif
