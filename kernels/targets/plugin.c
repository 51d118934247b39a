/* A plugin of QEMU's TCG that counts executed instructions between calls of a function: mark=ADDRESS,out=FILE.
 *
 * The file gets a line for each call: how many instructions were executed since the last one (or since the start).
 * QEMU installs no header for plugins everywhere, so what is used of its interface, version 1, is declared here.
 */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef struct qemu_info qemu_info;
struct tb;
struct insn;
enum { INLINE_ADD = 0, NO_REGISTERS = 0 };
extern void qemu_plugin_register_vcpu_tb_trans_cb(uint64_t id, void (*call)(uint64_t id, struct tb *tb));
extern void qemu_plugin_register_vcpu_insn_exec_inline(struct insn *insn, int what, void *to, uint64_t number);
extern void qemu_plugin_register_vcpu_insn_exec_cb(
    struct insn *insn, void (*call)(unsigned cpu, void *with), int registers, void *with);
extern void qemu_plugin_register_atexit_cb(uint64_t id, void (*call)(uint64_t id, void *with), void *with);
extern size_t qemu_plugin_tb_n_insns(const struct tb *tb);
extern struct insn *qemu_plugin_tb_get_insn(const struct tb *tb, size_t index);
extern uint64_t qemu_plugin_insn_vaddr(const struct insn *insn);

__attribute__((visibility("default"))) int qemu_plugin_version = 1;

static uint64_t executed, before, mark;
static FILE *out;

static void reached(unsigned cpu, void *with)
{
    (void)cpu, (void)with;
    fprintf(out, "%llu\n", (unsigned long long)(executed - before));
    before = executed;
}

/* A block of instructions was translated: have each of them counted, and the mark reported before it is. */
static void translated(uint64_t id, struct tb *tb)
{
    (void)id;
    for (size_t i = 0; i < qemu_plugin_tb_n_insns(tb); i++) {
        struct insn *insn = qemu_plugin_tb_get_insn(tb, i);
        if (qemu_plugin_insn_vaddr(insn) == mark) {
            qemu_plugin_register_vcpu_insn_exec_cb(insn, reached, NO_REGISTERS, NULL);
        }
        qemu_plugin_register_vcpu_insn_exec_inline(insn, INLINE_ADD, &executed, 1);
    }
}

static void ended(uint64_t id, void *with)
{
    (void)id, (void)with;
    fclose(out);
}

__attribute__((visibility("default"))) int qemu_plugin_install(
    uint64_t id, const qemu_info *info, int argc, char **argv);

int qemu_plugin_install(uint64_t id, const qemu_info *info, int argc, char **argv)
{
    (void)info;
    for (int i = 0; i < argc; i++) {
        if (strncmp(argv[i], "mark=", 5) == 0) {
            mark = strtoull(argv[i] + 5, NULL, 0);
        } else if (strncmp(argv[i], "out=", 4) == 0) {
            out = fopen(argv[i] + 4, "w");
        }
    }
    if (out == NULL || mark == 0) {
        return 1;
    }
    qemu_plugin_register_vcpu_tb_trans_cb(id, translated);
    qemu_plugin_register_atexit_cb(id, ended, NULL);
    return 0;
}
