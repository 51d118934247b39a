/* The kernels of the core that one macro names; without one, plain C. See SEMANTICS.md for the compilers' flags. */
#ifndef RNNC_CORE_H
#define RNNC_CORE_H

#if defined RNNC_DSP
#include "dsp.h"
#elif defined RNNC_MVE
#include "mve.h"
#elif defined RNNC_AVX2
#include "avx2.h"
#else
#include "plain.h"
#endif

#endif
