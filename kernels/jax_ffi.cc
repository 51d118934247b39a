// An exported model as an XLA call, so that a jitted JAX function can run the C kernels; see rnnc/export/host.py.
// -DMODEL=name -DHEADER="name.h" -DRUN=rnnc_net_run -DSCRATCH=rnnc_net_scratch
#include <algorithm>
#include <vector>

#include "xla/ffi/api/ffi.h"

extern "C" {
#include HEADER
}

namespace ffi = xla::ffi;
using Numbers = ffi::Buffer<ffi::S16>;

// x [frames, n], state -> y [frames, m], the next state.
static ffi::Error run(Numbers x, Numbers state, ffi::Result<Numbers> y, ffi::Result<Numbers> next)
{
    std::vector<int32_t> scratch(SCRATCH(&MODEL));
    std::copy_n(state.typed_data(), state.element_count(), next->typed_data());
    const uint32_t frames = static_cast<uint32_t>(x.dimensions()[0]);
    RUN(&MODEL, frames, x.typed_data(), y->typed_data(), next->typed_data(), scratch.data());
    return ffi::Error::Success();
}

XLA_FFI_DEFINE_HANDLER_SYMBOL(
    rnnc_jax, run, ffi::Ffi::Bind().Arg<Numbers>().Arg<Numbers>().Ret<Numbers>().Ret<Numbers>());
