/* The board that is a computer. */
#include "board.h"

#include <stdio.h>

static FILE *files[8]; /* by number; 0 is none */

int rnnc_board_open(const char *path, const char *mode)
{
    for (int i = 1; i < 8; i++) {
        if (files[i] == NULL) {
            files[i] = fopen(path, mode);
            return files[i] != NULL ? i : -1;
        }
    }
    return -1;
}

int rnnc_board_read(int file, void *to, uint32_t bytes)
{
    return fread(to, 1, bytes, files[file]) == bytes;
}

int rnnc_board_write(int file, const void *from, uint32_t bytes)
{
    return fwrite(from, 1, bytes, files[file]) == bytes;
}

void rnnc_board_close(int file)
{
    fclose(files[file]);
    files[file] = NULL;
}

/* Callgrind stops here; there is no clock that counts instructions. */
void rnnc_board_mark(void)
{
}

uint32_t rnnc_board_marks(const uint32_t **ticks)
{
    *ticks = NULL;
    return 0;
}
