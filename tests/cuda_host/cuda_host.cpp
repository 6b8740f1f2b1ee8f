// The scheduler of cuda_host.h. To be compiled without sanitizer flags: it finds out at run time which
// sanitizer the program is linked with, and tells it of every change of stacks.
#include "cuda_host.h"

#include <cstdarg>
#include <cstdio>
#include <exception>
#include <map>
#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

extern "C" {
// Null unless the program is linked with AddressSanitizer or ThreadSanitizer.
[[gnu::weak]] void __sanitizer_start_switch_fiber(void** save, const void* bottom, size_t size);
[[gnu::weak]] void __sanitizer_finish_switch_fiber(void* save, const void** bottom, size_t* size);
[[gnu::weak]] void* __tsan_get_current_fiber();
[[gnu::weak]] void* __tsan_create_fiber(unsigned flags);
[[gnu::weak]] void __tsan_destroy_fiber(void* fiber);
[[gnu::weak]] void __tsan_switch_to_fiber(void* fiber, unsigned flags);
[[gnu::weak]] void __tsan_acquire(void* tag);
[[gnu::weak]] void __tsan_release(void* tag);

// Keeps the registers that a function must preserve on this stack and its address in `*from`, and goes on
// with the stack `to`, which was left in the same way.
void cuda_host_change_stacks(void** from, void* to);
asm(R"(
.text
.globl cuda_host_change_stacks
cuda_host_change_stacks:
    push %rbx
    push %rbp
    push %r12
    push %r13
    push %r14
    push %r15
    mov %rsp, (%rdi)
    mov %rsi, %rsp
    pop %r15
    pop %r14
    pop %r13
    pop %r12
    pop %rbp
    pop %rbx
    ret
)");
}

namespace cuda_host {
namespace {

constexpr size_t STACK_BYTES = 256 * 1024;
constexpr unsigned WARP = 32, TSAN_NO_SYNC = 1;  // our barriers order threads, the switches must not

const bool with_asan = __sanitizer_start_switch_fiber != nullptr;
const bool with_tsan = __tsan_create_fiber != nullptr;

// Where a number of threads wait for each other, again and again. Two tags tell ThreadSanitizer who comes
// before whom, by turns: a thread that has come for the next time must not seem to be before one that has yet
// to leave this time.
struct Gate {
    unsigned expected, arrived = 0;
    uint64_t opened = 0;
    char tag[2] = {};
};

struct Warp {
    Gate gate{WARP};
    uint64_t values[2][WARP];  // by turns too: a fast lane hands in its next value while others still read
};

struct Fiber : Thread {
    unsigned warp = 0;
    void* stack_pointer = nullptr;
    const void* stack_bottom = nullptr;
    size_t stack_bytes = STACK_BYTES;
    void *asan_state = nullptr, *tsan_fiber = nullptr;
    const Gate* waits_at = nullptr;  // until it has opened more often than `seen`
    uint64_t seen = 0;
    const char* waits_in = "";
    bool returned = false;
};

struct Block {
    const std::function<void()>* kernel;
    std::vector<Fiber> fibers;
    std::vector<Warp> warps;
    Gate gate;
    Fiber launcher;
    Fiber* current = nullptr;
    std::exception_ptr error;
    char begin = 0, end = 0;  // tags: the launcher before all threads, all threads before the launcher
};
Block* block;  // one at a time in the process
std::vector<std::unique_ptr<char[]>> stacks;

void change_fiber(Fiber& from, Fiber& to) {
    if (with_asan)
        __sanitizer_start_switch_fiber(from.returned ? nullptr : &from.asan_state, to.stack_bottom,
                                       to.stack_bytes);
    if (with_tsan) __tsan_switch_to_fiber(to.tsan_fiber, TSAN_NO_SYNC);
    cuda_host_change_stacks(&from.stack_pointer, to.stack_pointer);
    if (with_asan) __sanitizer_finish_switch_fiber(from.asan_state, nullptr, nullptr);
}

void leave(Fiber& fiber) {
    if (with_tsan) __tsan_release(&block->end);
    change_fiber(fiber, block->launcher);
}

void fiber_main() {
    Block& b = *block;
    if (with_asan)
        __sanitizer_finish_switch_fiber(nullptr, &b.launcher.stack_bottom, &b.launcher.stack_bytes);
    if (with_tsan) __tsan_acquire(&b.begin);
    Fiber& fiber = *b.current;
    try {
        (*b.kernel)();
    } catch (...) {
        b.error = std::current_exception();
    }
    fiber.returned = true;
    leave(fiber);
}

void wait_at(Gate& gate, const char* what) {
    Fiber& fiber = *block->current;
    char* const tag = &gate.tag[gate.opened % 2];
    if (with_tsan) __tsan_release(tag);
    fiber.waits_at = &gate, fiber.seen = gate.opened, fiber.waits_in = what;
    if (++gate.arrived == gate.expected) {
        gate.arrived = 0;
        gate.opened++;
    } else {
        leave(fiber);
    }
    if (with_tsan) __tsan_acquire(tag);
}

// A new fiber's stack looks as if it had been left at the beginning of fiber_main.
void prepare(Fiber& fiber, char* stack) {
    void** top = reinterpret_cast<void**>(stack + STACK_BYTES);
    *--top = nullptr;  // no caller; also aligns the stack as a call does
    *--top = reinterpret_cast<void*>(&fiber_main);
    for (int i = 0; i < 6; i++) *--top = nullptr;
    fiber.stack_bottom = stack;
    fiber.stack_pointer = top;
    if (with_tsan) fiber.tsan_fiber = __tsan_create_fiber(0);
}

void run_block(const Thread& common, unsigned threads, const std::function<void()>& kernel) {
    Block b{};
    b.kernel = &kernel;
    b.gate.expected = threads;
    b.warps.resize(threads / WARP);
    b.fibers.resize(threads);
    if (with_tsan) b.launcher.tsan_fiber = __tsan_get_current_fiber();
    block = &b;
    while (stacks.size() < threads) stacks.emplace_back(new char[STACK_BYTES]);
    const dim3 size = common.block_size;
    for (unsigned i = 0; i < threads; i++) {
        Fiber& fiber = b.fibers[i];
        static_cast<Thread&>(fiber) = common;
        fiber.thread = dim3(i % size.x, i / size.x % size.y, i / size.x / size.y);
        fiber.warp = i / WARP, fiber.lane = i % WARP;
        prepare(fiber, stacks[i].get());
    }
    if (with_tsan) __tsan_release(&b.begin);
    for (bool moved = true; moved && !b.error;) {
        moved = false;
        for (unsigned i = 0; i < threads && !b.error; i++) {
            Fiber& fiber = b.fibers[backwards ? threads - 1 - i : i];
            if (fiber.returned || (fiber.waits_at && fiber.waits_at->opened == fiber.seen)) continue;
            moved = true;
            running = b.current = &fiber;
            change_fiber(b.launcher, fiber);
        }
    }
    if (with_tsan) __tsan_acquire(&b.end);
    std::map<std::string, unsigned> waiting;
    for (Fiber& fiber : b.fibers) {
        if (!fiber.returned) waiting[fiber.waits_in]++;
        if (with_tsan) __tsan_destroy_fiber(fiber.tsan_fiber);
    }
    running = nullptr;
    block = nullptr;
    if (b.error) std::rethrow_exception(b.error);
    std::string report;
    for (const auto& [what, count] : waiting) report += " " + std::to_string(count) + " in " + what;
    if (!report.empty())
        throw std::runtime_error("deadlock of " + std::to_string(threads) + " threads:" + report);
}

}  // namespace

bool is_left_out(const char* path, int line) {
    const std::string here = std::string(path) + ":" + std::to_string(line), there = left_out;
    return here.size() > there.size() && here.ends_with("/" + there);
}

void wait_for_block() { wait_at(block->gate, "__syncthreads"); }

const uint64_t* exchange(uint64_t value, const char* what) {
    const Fiber& fiber = *block->current;
    Warp& warp = block->warps[fiber.warp];
    uint64_t* const values = warp.values[warp.gate.opened % 2];
    values[fiber.lane] = value;
    wait_at(warp.gate, what);
    return values;
}

void refuse(const char* format, ...) {
    char text[1024];
    va_list arguments;
    va_start(arguments, format);
    std::vsnprintf(text, sizeof text, format, arguments);
    va_end(arguments);
    throw std::runtime_error(text);
}

void need_all_lanes(unsigned mask) {
    if (mask != ~0u) refuse("a warp function got the mask %x; expected all lanes", mask);
}

void run_grid(dim3 grid, dim3 size, size_t shared_bytes, const std::function<void()>& kernel) {
    const unsigned threads = size.x * size.y * size.z;
    if (threads == 0 || threads > 1024 || threads % WARP)
        refuse("a block of %u threads; expected a multiple of 32 up to 1024", threads);
    if (grid.x == 0 || grid.y == 0 || grid.z == 0 || grid.y > 65535 || grid.z > 65535)
        refuse("a grid of %u x %u x %u blocks; expected 1 ... 65535 in y and z", grid.x, grid.y, grid.z);
    for (unsigned z = 0; z < grid.z; z++)
        for (unsigned y = 0; y < grid.y; y++)
            for (unsigned x = 0; x < grid.x; x++) {
                const std::unique_ptr<char[]> shared(new char[shared_bytes]);
                std::memset(shared.get(), 0xff, shared_bytes);
                Thread common;
                common.grid_size = grid, common.block_size = size, common.block = dim3(x, y, z);
                common.shared = shared.get();
                run_block(common, threads, kernel);
            }
}

}  // namespace cuda_host
