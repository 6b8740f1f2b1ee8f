// What the kernel files of one instruction set level define for each other.
#pragma once

#include "cpu/args.h"

namespace mixpol::cpu::MIXPOL_ISA {

#define MIXPOL_KERNEL(result, name, parameters) result name parameters;
#include "cpu/kernels.inc"
#undef MIXPOL_KERNEL

}  // namespace mixpol::cpu::MIXPOL_ISA
