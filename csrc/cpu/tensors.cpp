// Checks, conversions and allocation of tensors.
#include <torch/headeronly/core/ScalarType.h>

#if defined(__linux__)
#include <sys/mman.h>
#endif

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>

#include "cpu/launch.h"

namespace mixpol::cpu {

using torch::headeronly::ScalarType;

namespace {

constexpr uintptr_t HUGE_PAGE = 2 << 20;
constexpr size_t HUGE_PAGES_FROM = 4 * HUGE_PAGE;

ScalarType scalar_type(Element element) {
    return element == Element::f32    ? ScalarType::Float
           : element == Element::bf16 ? ScalarType::BFloat16
                                      : ScalarType::Half;
}

void check_float(const Tensor& tensor, const Name& name, Element element) {
    if (tensor.scalar_type() == scalar_type(element)) return;
    if (element == Element::f32) fail(name, " is not float32; convert it with .float()");
    fail(name, " is not ", element == Element::bf16 ? "bfloat16" : "float16",
         "; expected the dtype of target");
}

}  // namespace

std::string shape_text(const Tensor& tensor) {
    std::ostringstream text;
    text << "[";
    for (int64_t i = 0; i < tensor.dim(); i++) text << (i ? ", " : "") << tensor.size(i);
    text << "]";
    return text.str();
}

std::string unreadable(const Tensor& tensor) {
    if (!tensor.defined()) return "is missing; expected a tensor";
    if (!tensor.is_cpu()) return "is not on the CPU; move it with .cpu()";
    int64_t bytes = 0, *sizes = nullptr, *strides = nullptr, last = tensor.storage_offset();
    const AtenTensorHandle handle = tensor.get();
    if (aoti_torch_get_storage_size(handle, &bytes) != AOTI_TORCH_SUCCESS ||
        aoti_torch_get_sizes(handle, &sizes) != AOTI_TORCH_SUCCESS ||
        aoti_torch_get_strides(handle, &strides) != AOTI_TORCH_SUCCESS)
        return "has no rows in memory; expected a dense tensor";
    const int64_t dims = tensor.dim();
    for (int64_t i = 0; i < dims; i++) {
        if (sizes[i] == 0) return "";
        last += (sizes[i] - 1) * strides[i];
    }
    if ((last + 1) * static_cast<int64_t>(tensor.element_size()) <= bytes) return "";
    return "has shape " + shape_text(tensor) + " and a storage of " + std::to_string(bytes) +
           " bytes; expected one that holds it: its memory has been released";
}

int checked_size(int64_t size, const Name& name, const char* what) {
    if (size > MAX_SIZE) fail(name, " has ", size, " ", what, "; expected at most ", MAX_SIZE);
    return static_cast<int>(size);
}

Element element_of(const Tensor& tensor) {
    return tensor.scalar_type() == ScalarType::BFloat16 ? Element::bf16
           : tensor.scalar_type() == ScalarType::Half   ? Element::f16
                                                        : Element::f32;
}

Tensor widened(const Tensor& tensor, Element element) {
    if (element == Element::f32) return tensor;
    Tensor wide = new_floats(sizes_of(tensor));
    kernels().widen(static_cast<float*>(wide.mutable_data_ptr()), tensor.const_data_ptr(), tensor.numel(),
                    element);
    return wide;
}

Tensor narrowed(const Tensor& floats, Element element) {
    if (element == Element::f32) return floats;
    Tensor narrow = new_elements(sizes_of(floats), element);
    const float* from = static_cast<const float*>(floats.const_data_ptr());
    uint16_t* to = static_cast<uint16_t*>(narrow.mutable_data_ptr());
    auto convert = [&](int64_t begin, int64_t end) {
        kernels().narrow(to + begin, from + begin, end - begin, element);
    };
    if (floats.numel() < 32768) {
        convert(0, floats.numel());
    } else {
        torch::stable::parallel_for(0, floats.numel(), 32768, convert);
    }
    return narrow;
}

Tensor floats(const Tensor& tensor, const Name& name, std::initializer_list<int64_t> sizes, Element element) {
    check_float(tensor, name, element);
    const auto shape = tensor.sizes();
    bool same = shape.size() == sizes.size();
    const int64_t* at = shape.begin();
    for (const int64_t* size = sizes.begin(); same && size != sizes.end(); size++, at++)
        same = *size < 0 || *at == *size;
    if (!same) {
        std::ostringstream expected;
        for (const int64_t* size = sizes.begin(); size != sizes.end(); size++)
            expected << (size != sizes.begin() ? ", " : "") << *size;
        fail(name, " has shape ", shape_text(tensor), "; expected [", expected.str(), "] (-1: any)");
    }
    return widened(as_contiguous(tensor), element);
}

Tensor float_rows(const Tensor& tensor, const Name& name, int64_t width, Element element) {
    check_float(tensor, name, element);
    if (tensor.dim() < 2 || tensor.size(tensor.dim() - 1) != width)
        fail(name, " has shape ", shape_text(tensor), "; expected rows of ", width, " floats");
    return tensor.stride(tensor.dim() - 1) == 1 || width == 1 ? tensor : as_contiguous(tensor);
}

Tensor as_contiguous(const Tensor& tensor) {
    if (tensor.is_contiguous()) return tensor;
    try {
        return torch::stable::contiguous(tensor);
    } catch (const std::exception&) {  // its own text names a line of torch
        fail("a contiguous copy of ", tensor.numel(),
             " values could not be made; expected enough free memory");
    }
}

Tensor new_tensor(const std::vector<int64_t>& sizes, ScalarType type) {
    std::vector<int64_t> strides(sizes.size());
    int64_t stride = 1;
    for (size_t i = sizes.size(); i-- > 0;) {
        strides[i] = stride;
        if (__builtin_mul_overflow(stride, std::max<int64_t>(sizes[i], 1), &stride))
            fail("a tensor of more than 2^63 values would be needed; expected smaller inputs");
    }
    AtenTensorHandle handle;
    if (aoti_torch_empty_strided(static_cast<int64_t>(sizes.size()), sizes.data(), strides.data(),
                                 torch::stable::detail::to<int32_t>(torch::stable::detail::from(type)),
                                 aoti_torch_device_type_cpu(), 0, &handle) != AOTI_TORCH_SUCCESS)
        fail("a tensor of ", stride, " values could not be allocated; expected enough free memory");
    return Tensor(handle);
}

Tensor new_floats(const std::vector<int64_t>& sizes) { return new_elements(sizes, Element::f32); }

Tensor new_elements(const std::vector<int64_t>& sizes, Element element) {
    Tensor tensor = new_tensor(sizes, scalar_type(element));
#if defined(__linux__)
    // A large gradient comes as fresh pages: in 4 KiB pieces, faulting them in costs as much as computing it.
    const size_t bytes = static_cast<size_t>(tensor.numel()) * element_bytes(element);
    if (bytes >= HUGE_PAGES_FROM) {
        auto begin = reinterpret_cast<uintptr_t>(tensor.mutable_data_ptr()), end = begin + bytes;
        begin = (begin + HUGE_PAGE - 1) & ~(HUGE_PAGE - 1), end &= ~(HUGE_PAGE - 1);
        if (begin < end)
            madvise(reinterpret_cast<void*>(begin), end - begin, MADV_HUGEPAGE);  // a hint: may fail
    }
#endif
    return tensor;
}

Buffer allocate(int64_t floats) {
    constexpr int64_t most = std::numeric_limits<int64_t>::max() / 8;
    if (floats < 0 || floats > most) fail("out of memory: scratch of more than 2^60 floats");
    size_t bytes = (static_cast<size_t>(floats) * sizeof(float) + 64 + 63) & ~size_t{63};
    void* p = std::aligned_alloc(64, bytes);
    if (!p) fail("out of memory: ", bytes, " bytes of scratch");
    return Buffer(static_cast<float*>(p));
}

std::vector<int64_t> sizes_of(const Tensor& tensor) {
    std::vector<int64_t> sizes(tensor.dim());
    for (int64_t i = 0; i < tensor.dim(); i++) sizes[i] = tensor.size(i);
    return sizes;
}

}  // namespace mixpol::cpu
