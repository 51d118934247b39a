/* Start of a Cortex-M under an emulator that loads all sections itself: stack, floating-point and vector unit, main. */
#include <stdint.h>

extern uint32_t rnnc_stack_top[]; /* sections.ld */
void rnnc_board_main(void);
void rnnc_board_exit(uint32_t status);
void rnnc_reset(void);

typedef void (*handler)(void);

static void fault(void)
{
    rnnc_board_exit(99);
}

void rnnc_reset(void)
{
    volatile uint32_t *access = (volatile uint32_t *)0xE000ED88; /* CPACR: coprocessors 10 and 11, where there are any */
    *access |= UINT32_C(0xF) << 20;
    __asm__ volatile("dsb\nisb" ::: "memory");
    rnnc_board_main();
}

__attribute__((section(".vectors"), used)) static const struct {
    uint32_t *stack;
    handler exception[15];
} vectors = {rnnc_stack_top,
             {rnnc_reset, fault, fault, fault, fault, fault, fault, fault, fault, fault, fault, fault, fault, fault,
              fault}};
