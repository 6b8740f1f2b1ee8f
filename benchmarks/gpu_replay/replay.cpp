// One streaming multiprocessor: issues the instructions of its blocks cycle by cycle, by the compiler's own
// barriers.
//
// Four schedulers issue at most one instruction a cycle each, from the first of their warps, beginning behind
// the one that went last, whose stall count is over, whose barriers are open and whose unit is free. Shared
// memory, L1, L2 and device memory are queues that all four share.

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <vector>

namespace {

enum Unit : int32_t {
    kFma,
    kAlu,
    kWideInteger,
    kSpecial,
    kUniform,
    kTensor,
    kTensorGroup,
    kShared,
    kLoad,
    kStore,
    kAsyncCopy,
    kConstant,
    kBarrier,
    kCommitCopies,
    kWaitCopies,
    kWaitTensor,
    kControl,
    kUnits
};

struct Instruction {
    int32_t unit, stall, sets, reads, waits, argument, access;
    float cycles;
};

struct Machine {
    float shared_latency, l1_latency, l2_latency, dram_latency, special_latency, barrier_latency,
        tensor_latency, group_latency, alu_latency, constant_latency, start_latency, l2_bytes, dram_bytes,
        queue;
};

struct Block {  // where a block's basic blocks and accesses begin and end
    int64_t trace, trace_end, access;
};

constexpr int kSchedulers = 4, kBarriers = 6, kNone = 7;
constexpr int64_t kNever = int64_t{1} << 60;

struct Warp {
    int slot = -1;
    int64_t at = 0, end = 0, access = 0;  // in the trace, and in the accesses
    int32_t pc = 0;
    int64_t ready = 0;
    int64_t open[kBarriers] = {};
    std::vector<int64_t> copies, products;  // when committed groups are done, oldest first
    int64_t copying = 0, multiplying = 0;
    bool done = true, waiting = false;
};

bool asks_memory(int32_t unit) {
    return unit == kShared || unit == kLoad || unit == kStore || unit == kAsyncCopy || unit == kConstant ||
           unit == kSpecial;
}

int64_t groups_done(const std::vector<int64_t>& groups, int keep) {
    int64_t when = 0;
    for (size_t i = 0; i + keep < groups.size(); ++i) when = std::max(when, groups[i]);
    return when;
}

void keep(std::vector<int64_t>& groups, int newest) {
    if (int(groups.size()) > newest) groups.erase(groups.begin(), groups.end() - newest);
}

}  // namespace

// Returns 0, or 1 where every warp waits for another one. `result`: cycles, issued instructions, busy cycles
// of L1 with shared memory, of L2 and of device memory, then of each unit, summed over the schedulers.
extern "C" int replay(const Instruction* code, const int32_t* first, const int32_t* end, const int32_t* trace,
                      const Block* blocks, int64_t count, const float* accesses, int32_t warps, int32_t slots,
                      const Machine* machine, double* result) {
    const Machine& m = *machine;
    std::vector<Warp> all(size_t(slots) * warps);
    std::vector<int> alive(slots, 0), arrived(slots, 0);
    int64_t next_block = 0, now = 0, issued = 0;
    int running = 0;
    const int total = int(all.size());
    int64_t unit_free[kSchedulers][kUnits] = {}, tensor_free[kSchedulers] = {}, memory_free[kSchedulers] = {};
    int last[kSchedulers] = {};
    double l1 = 0, l2 = 0, dram = 0, l1_busy = 0, l2_busy = 0, dram_busy = 0, busy[kUnits] = {};

    auto start = [&](int slot, int64_t when) {
        if (next_block == count) return;
        const Block& block = blocks[next_block++];
        alive[slot] = warps;
        arrived[slot] = 0;
        ++running;
        for (int w = 0; w < warps; ++w) {
            Warp& warp = all[size_t(slot) * warps + w];
            warp = Warp{};
            warp.slot = slot;
            warp.at = block.trace;
            warp.end = block.trace_end;
            warp.access = block.access;
            warp.pc = first[trace[warp.at]];
            warp.ready = when + int64_t(m.start_latency);
            warp.done = false;
        }
    };
    for (int slot = 0; slot < slots; ++slot) start(slot, 0);

    while (running > 0) {
        bool any = false;
        int64_t soonest = kNever;
        for (int s = 0; s < kSchedulers; ++s) {
            const int mine = (total - s + kSchedulers - 1) / kSchedulers;
            for (int k = 0; k < mine; ++k) {
                const int turn = (last[s] + k) % mine;
                Warp& warp = all[s + kSchedulers * turn];
                if (warp.done || warp.waiting) continue;
                const Instruction& i = code[warp.pc];
                int64_t when = std::max(warp.ready, unit_free[s][i.unit]);
                for (int b = 0; b < kBarriers; ++b)
                    if (i.waits >> b & 1) when = std::max(when, warp.open[b]);
                if (i.unit == kWaitCopies) when = std::max(when, groups_done(warp.copies, i.argument));
                if (i.unit == kWaitTensor) {
                    when = std::max(when, groups_done(warp.products, i.argument));
                    if (i.argument == 0) when = std::max(when, warp.multiplying);
                }
                if (asks_memory(i.unit)) {
                    when = std::max(when, memory_free[s]);
                    if (i.unit != kSpecial && i.unit != kConstant)
                        when = std::max(when, int64_t(l1 - m.queue));
                }
                if (when > now) {
                    soonest = std::min(soonest, when);
                    continue;
                }

                any = true;
                ++issued;
                last[s] = turn;
                busy[i.unit] += i.cycles;
                int64_t result_at = now + int64_t(m.alu_latency), read_at = now + 12;
                float wavefronts = i.cycles, from_l2 = 0, from_dram = 0;
                if (i.access) {
                    const float* a = accesses + 3 * warp.access++;
                    wavefronts = a[0], from_l2 = a[1], from_dram = a[2];
                }
                switch (i.unit) {
                    case kFma:
                    case kAlu:
                    case kWideInteger:
                    case kUniform:
                        unit_free[s][i.unit] = now + int64_t(i.cycles);
                        break;
                    case kSpecial:
                        unit_free[s][i.unit] = now + int64_t(i.cycles);
                        memory_free[s] = now + 1;
                        result_at = now + int64_t(i.cycles + m.special_latency);
                        break;
                    case kConstant:
                        memory_free[s] = now + 1;
                        result_at = now + int64_t(m.constant_latency);
                        break;
                    case kShared:
                    case kLoad:
                    case kStore:
                    case kAsyncCopy: {
                        memory_free[s] = now + 2;
                        l1 = std::max(double(now + 4), l1) + wavefronts;
                        l1_busy += wavefronts;
                        double done = l1 + (i.unit == kShared ? m.shared_latency : m.l1_latency);
                        if (from_l2 > 0) {
                            l2 = std::max(l2, l1) + from_l2 / m.l2_bytes;
                            l2_busy += from_l2 / m.l2_bytes;
                            done = std::max(done, l2 + m.l2_latency);
                        }
                        if (from_dram > 0) {
                            dram = std::max(dram, l1) + from_dram / m.dram_bytes;
                            dram_busy += from_dram / m.dram_bytes;
                            done = std::max(done, dram + m.dram_latency);
                        }
                        result_at = i.unit == kStore ? int64_t(l1) + 10 : int64_t(done);
                        read_at = std::min(result_at, std::max(now + 12, int64_t(l1) + 2));
                        if (i.unit == kAsyncCopy) warp.copying = std::max(warp.copying, result_at);
                        break;
                    }
                    case kTensor:
                        unit_free[s][kTensor] = now + int64_t(i.cycles);
                        result_at = now + int64_t(i.cycles + m.tensor_latency);
                        break;
                    case kTensorGroup: {
                        tensor_free[s] = std::max(now, tensor_free[s]) + int64_t(i.cycles);
                        warp.multiplying =
                            std::max(warp.multiplying, tensor_free[s] + int64_t(m.group_latency));
                        if (i.argument) warp.products.push_back(warp.multiplying);
                        break;
                    }
                    case kCommitCopies:
                        warp.copies.push_back(warp.copying);
                        warp.copying = 0;
                        break;
                    case kWaitCopies:
                        keep(warp.copies, i.argument);
                        break;
                    case kWaitTensor:
                        keep(warp.products, i.argument);
                        break;
                    default:
                        break;
                }
                if (i.sets < kBarriers) warp.open[i.sets] = std::max(warp.open[i.sets], result_at);
                if (i.reads < kBarriers)
                    warp.open[i.reads] = std::max(warp.open[i.reads], std::min(result_at, read_at));
                warp.ready = now + std::max(1, i.stall);

                const int slot = warp.slot;
                if (++warp.pc >= end[trace[warp.at]]) {
                    if (++warp.at == warp.end) {
                        warp.done = true;
                        if (--alive[slot] == 0) {
                            --running;
                            start(slot, now);
                        }
                    } else {
                        warp.pc = first[trace[warp.at]];
                    }
                }
                if (i.unit == kBarrier && !warp.done) {
                    warp.waiting = true;
                    ++arrived[slot];
                }
                if (arrived[slot] > 0 && arrived[slot] >= alive[slot]) {
                    arrived[slot] = 0;
                    for (int w = 0; w < warps; ++w) {
                        Warp& other = all[size_t(slot) * warps + w];
                        if (!other.waiting) continue;
                        other.waiting = false;
                        other.ready = std::max(other.ready, now + int64_t(m.barrier_latency));
                    }
                }
                break;
            }
        }
        if (any) {
            ++now;
        } else {
            if (soonest == kNever) return 1;
            now = std::max(now + 1, soonest);
        }
    }
    const double found[] = {double(now), double(issued), l1_busy, l2_busy, dram_busy};
    std::memcpy(result, found, sizeof found);
    std::copy(busy, busy + kUnits, result + 5);
    return 0;
}
