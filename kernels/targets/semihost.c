/* The board that is an emulated chip: semihosting of Arm (bkpt 0xAB) and RISC-V, the same calls on both. */
#include "board.h"

#include <string.h>

enum { SYS_OPEN = 1, SYS_CLOSE = 2, SYS_WRITE = 5, SYS_READ = 6, SYS_CMDLINE = 0x15, SYS_EXIT = 0x20 };
enum { APPLICATION_EXIT = 0x20026, MOST_MARKS = 2048, MOST_WORDS = 8 };

int main(int argc, char **argv);
void rnnc_board_main(void);
void rnnc_board_exit(uint32_t status);

typedef uint32_t word; /* an address or a number */

#ifdef __riscv
static word call(word what, const void *with)
{
    register word a0 __asm__("a0") = what;
    register const void *a1 __asm__("a1") = with;
    __asm__ volatile(
        ".option push\n.option norvc\n.balign 16\nslli zero, zero, 0x1f\nebreak\nsrai zero, zero, 7\n.option pop"
        : "+r"(a0)
        : "r"(a1)
        : "memory");
    return a0;
}

/* Under -icount shift=6, 64 ticks for an instruction. */
static word clock_ticks(void)
{
    word ticks;
    __asm__ volatile(".option push\n.option arch, +zicsr\nrdinstret %0\n.option pop" : "=r"(ticks));
    return ticks;
}
#else
static word call(word what, const void *with)
{
    register word r0 __asm__("r0") = what;
    register const void *r1 __asm__("r1") = with;
    __asm__ volatile("bkpt 0xAB" : "+r"(r0) : "r"(r1) : "memory");
    return r0;
}

/* The counter of the FPGA's registers: under -icount shift=6 and at 25 MHz, 1.6 ticks for an instruction. */
static word clock_ticks(void)
{
    return *(volatile const word *)RNNC_COUNTER;
}
#endif

static word address(const void *p)
{
    return (word)(uintptr_t)p;
}

int rnnc_board_open(const char *path, const char *mode)
{
    const word with[] = {address(path), mode[0] == 'w' ? 5 : 1, (word)strlen(path)};
    return (int)call(SYS_OPEN, with);
}

int rnnc_board_read(int file, void *to, uint32_t bytes)
{
    const word with[] = {(word)file, address(to), bytes};
    return call(SYS_READ, with) == 0; /* how many are missing */
}

int rnnc_board_write(int file, const void *from, uint32_t bytes)
{
    const word with[] = {(word)file, address(from), bytes};
    return call(SYS_WRITE, with) == 0;
}

void rnnc_board_close(int file)
{
    const word with[] = {(word)file};
    call(SYS_CLOSE, with);
}

static word ticks_at[MOST_MARKS];
static uint32_t marks;

void rnnc_board_mark(void)
{
    ticks_at[marks++ % MOST_MARKS] = clock_ticks();
}

uint32_t rnnc_board_marks(const uint32_t **ticks)
{
    *ticks = ticks_at;
    return marks < MOST_MARKS ? marks : MOST_MARKS;
}

void rnnc_board_exit(uint32_t status)
{
    const word with[] = {APPLICATION_EXIT, status};
    call(SYS_EXIT, with);
    for (;;) {
    }
}

/* The words of the command line, by spaces, then main. The stack is there, and the loader has filled the memory. */
void rnnc_board_main(void)
{
    static char line[512];
    const word with[] = {address(line), sizeof line};
    char *words[MOST_WORDS + 1] = {0};
    int count = 0;
    if (call(SYS_CMDLINE, with) != 0) {
        rnnc_board_exit(98);
    }
    for (char *p = line; *p != 0 && count < MOST_WORDS; count++) {
        words[count] = p;
        while (*p != 0 && *p != ' ') {
            p++;
        }
        while (*p == ' ') {
            *p++ = 0;
        }
    }
    rnnc_board_exit((uint32_t)main(count, words));
}
