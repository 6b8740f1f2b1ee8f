// The schemas for programs without Python. In Python they are declared there, so that they exist without a
// compiled library too; the dispatcher takes a schema once, so they cannot be part of _C.so. A C++ program
// loads this file, which pulls in _C.so from its own folder.
#include <torch/csrc/stable/library.h>

STABLE_TORCH_LIBRARY_FRAGMENT(mixpol, m) {
#define MIXPOL_SCHEMA(signature) m.def(signature);
#include "schemas.inc"
#undef MIXPOL_SCHEMA
}
