/* The exported models of a test image; the table is generated (rnnc/export/emulate.py). */
#ifndef RNNC_IMAGE_H
#define RNNC_IMAGE_H

#include "rnnc.h"

typedef struct {
    const rnnc_stack *stack;       /* a stack, or */
    const rnnc_net *net;           /* a network, or */
    const rnnc_denoiser *denoiser; /* a denoiser */
} rnnc_image_model;

extern const rnnc_image_model rnnc_image_models[];
extern const uint32_t rnnc_image_count;

#endif
