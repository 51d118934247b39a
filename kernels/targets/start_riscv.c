/* Start of a RISC-V under an emulator that loads all sections itself: traps to an end, stack, main. */
#include <stdint.h>

void rnnc_board_main(void);
void rnnc_board_exit(uint32_t status);
void rnnc_fault(void);
void rnnc_reset(void);

__attribute__((aligned(4))) void rnnc_fault(void)
{
    rnnc_board_exit(99);
}

__attribute__((naked, section(".vectors"), used)) void rnnc_reset(void)
{
    __asm__ volatile(".option arch, +zicsr\nla sp, rnnc_stack_top\nla t0, rnnc_fault\ncsrw mtvec, t0\n"
                     "jal rnnc_board_main");
}
