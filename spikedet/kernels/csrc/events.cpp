// Integer spiking networks, event by event: see engines/events.py for what a layer is.
//
// Plain C at its border, called by ctypes. Nothing is kept from one call to the next: the scratch memory
// is the caller's, and what is in it has no meaning at the start of a call.
#include "events.h"

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <new>
#include <system_error>
#include <thread>
#include <vector>

#if defined(__x86_64__)
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

// Keep a vector in a register, and what it holds from the compiler.
#if defined(__x86_64__)
#define SD_HOLD(x) __asm__ __volatile__("" : "+x"(x))
#elif defined(__aarch64__)
#define SD_HOLD(x) __asm__ __volatile__("" : "+w"(x))
#else
#define SD_HOLD(x) __asm__ __volatile__("" : "+m"(x))
#endif

// Small functions whose arguments have to stay in registers: gcc calls large ones otherwise.
#if defined(__GNUC__)
#define SD_INLINE __attribute__((always_inline)) static inline
#else
#define SD_INLINE static inline
#endif

#define SD_NAME portable
#if defined(__aarch64__)
#define SD_TEXT "neon"
#else
#define SD_TEXT "portable"
#endif
#define SD_BYTES 16
#define SD_MOST 4
#define SD_AVX512 0
#define SD_AVX2 0
#include "kernels.inc"

#if defined(__x86_64__) && defined(__GNUC__)
#if defined(__clang__)
#define SD_PRAGMA(...) _Pragma(#__VA_ARGS__)
#define SD_BEGIN(isa) \
    SD_PRAGMA(clang attribute push(__attribute__((target(isa))), apply_to = function))
#define SD_END _Pragma("clang attribute pop")
#else
#define SD_PRAGMA(text) _Pragma(#text)
#define SD_BEGIN(isa) _Pragma("GCC push_options") SD_PRAGMA(GCC target(isa))
#define SD_END _Pragma("GCC pop_options")
#endif

SD_BEGIN("avx2")
#define SD_NAME avx2
#define SD_TEXT "avx2"
#define SD_BYTES 32
#define SD_MOST 4
#define SD_AVX512 0
#define SD_AVX2 1
#include "kernels.inc"
SD_END

SD_BEGIN("avx2,avx512f,avx512bw,avx512vl,avx512dq")
#define SD_NAME avx512
#define SD_TEXT "avx512"
#define SD_BYTES 64
#define SD_MOST 8
#define SD_AVX512 1
#define SD_AVX2 0
#include "kernels.inc"
SD_END

SD_BEGIN("avx2,avx512f,avx512bw,avx512vl,avx512dq,avx512vbmi2,popcnt,bmi,bmi2")
#define SD_NAME avx512_vbmi2
#define SD_TEXT "avx512_vbmi2"
#define SD_BYTES 64
#define SD_MOST 8
#define SD_AVX512 2
#define SD_AVX2 0
#include "kernels.inc"
SD_END
#endif

// The matrix unit needs the permission of Linux, and a compiler that knows it.
#if defined(__x86_64__) && defined(__linux__) && \
    (defined(__clang__) ? __clang_major__ >= 12 : defined(__GNUC__) && __GNUC__ >= 11)
#define SD_AMX
#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>

SD_BEGIN("avx2,avx512f,avx512bw,avx512vl,avx512dq,avx512vbmi2,popcnt,bmi,bmi2,amx-tile,amx-int8")
#include "matrix.inc"
SD_END
#endif

namespace {

#ifdef SD_AMX
// Whether there is a matrix unit for int8, and this process may use it.
bool matrix_unit() {
    unsigned a, b, c, d;
    if (!__get_cpuid_count(7, 0, &a, &b, &c, &d)) return false;
    const bool there = (d >> 24 & 1) && (d >> 25 & 1);  // AMX-TILE and AMX-INT8
    constexpr long ask = 0x1023, tile_data = 18;        // ARCH_REQ_XCOMP_PERM
    return there && syscall(SYS_arch_prctl, ask, tile_data) == 0;
}
#endif

// All kernels that this machine can run, the fastest first.
std::vector<const sd_kernels*> available() {
    std::vector<const sd_kernels*> found;
#if defined(__x86_64__) && defined(__GNUC__)
    __builtin_cpu_init();
    const bool wide = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                      __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq");
    const bool newer = wide && __builtin_cpu_supports("avx512vbmi2");
#ifdef SD_AMX
    static const bool matrix = newer && matrix_unit();
    if (matrix) found.push_back(&amx::kernels);
#endif
    if (newer) found.push_back(&avx512_vbmi2::kernels);
    if (wide) found.push_back(&avx512::kernels);
    if (__builtin_cpu_supports("avx2")) found.push_back(&avx2::kernels);
#endif
    found.push_back(&portable::kernels);
    return found;
}

void relax() {
#if defined(__x86_64__)
    _mm_pause();
#elif defined(__aarch64__)
    __asm__ __volatile__("yield");
#endif
}

// Wait for a value. Rows are taken in order, so that whoever makes it is at work on it.
void await(const std::atomic<int32_t>& state, int32_t value) {
    for (int i = 0; state.load(std::memory_order_acquire) != value; i++) {
        if (i < 2000)
            relax();
        else
            std::this_thread::yield();
    }
}

struct Work {
    const sd_run& run;
    const sd_kernels& kernels;
    std::vector<int64_t> first;  // number of the first row of each layer
    std::vector<std::atomic<int32_t>> left;  // rows of each layer that are not done
    std::atomic<int64_t> next{0};

    Work(const sd_run& r, const sd_kernels& k) : run(r), kernels(k), left(r.layers_number) {
        int64_t rows = 0;
        for (int l = 0; l < run.layers_number; l++) {
            const sd_layer& layer = run.layers[l];
            first.push_back(rows);
            left[l].store(run.batch * layer.height);
            rows += left[l].load();
            for (int i = 0; i < run.batch * layer.height; i++) layer.done[i].store(0);
        }
        first.push_back(rows);
    }

    void rows_of(int l, int item) {
        const sd_layer& layer = run.layers[l];
        const int b = item / layer.height, y = item % layer.height;
        for (int i = 0; i < layer.after_number; i++) await(left[layer.after[i]], 0);
        for (int s = 0; s < layer.sources_number; s++) {
            const sd_source& source = layer.sources[s];
            const int maker = run.maker[source.tensor];
            if (maker < 0) continue;
            const sd_layer& from = run.layers[maker];
            for (int i = source.row_first[y]; i < source.row_first[y + 1]; i++)
                await(from.done[b * from.height + source.rows[2 * i]], 1);
        }
    }

    void operator()(char* memory) {
        int l = 0;
        for (;;) {
            const int64_t now = next.fetch_add(1);
            if (now >= first.back()) return;
            while (now >= first[l + 1]) l++;
            const int item = (int)(now - first[l]);
            rows_of(l, item);
            kernels.row(run, run.layers[l], item, memory);
            run.layers[l].done[item].store(1, std::memory_order_release);
            left[l].fetch_sub(1, std::memory_order_acq_rel);
        }
    }
};

// Threads that share the work, however many come; each has memory of its own.
struct Team {
    Work& work;
    std::atomic<int> members{0};

    static void join(void* data) {
        Team& team = *(Team*)data;
        const sd_run& run = team.work.run;
        char* memory = run.scratch + run.scratch_bytes * team.members.fetch_add(1);
        memset(memory, 0, 64);
        team.work(memory);
    }
};

// Items of one kernel on dense tensors, which threads share.
struct Items {
    void (*work)(const void*, int64_t);
    const void* arguments;
    int64_t number;
    std::atomic<int64_t> next{0};

    static void join(void* data) {
        Items& items = *(Items*)data;
        for (int64_t i; (i = items.next.fetch_add(1)) < items.number;)
            items.work(items.arguments, i);
    }
};

// Call join(data) in so many threads, or in fewer if there are no more; that does the same work.
void together(void (*join)(void*), void* data, int threads, sd_parallel parallel) {
    if (threads > 1 && parallel) return parallel(join, data, (unsigned)threads, 0);
    std::vector<std::thread> others;
    try {
        for (int i = 1; i < threads; i++) others.emplace_back(join, data);
    } catch (const std::system_error&) {
    }
    join(data);
    for (std::thread& thread : others) thread.join();
}

}  // namespace

extern "C" {

int32_t sd_version() { return 14; }

// How many kernels there are for this machine, the fastest first; their names and int32 lanes.
int32_t sd_kernels_number() { return (int32_t)available().size(); }
const char* sd_kernels_name(int32_t i) { return available()[i]->name; }
int32_t sd_kernels_half(int32_t i) { return available()[i]->half; }
int32_t sd_kernels_bytes(int32_t i) { return available()[i]->bytes; }
int32_t sd_kernels_matrix(int32_t i) { return available()[i]->matrix; }

// Add int16 in registers, `rounds` times a few vectors; how many were added.
int64_t sd_add(int32_t kernels, int64_t rounds) { return available()[kernels]->add(rounds); }

// Bytes of scratch memory for each thread of a run, whole cache lines.
int64_t sd_scratch_bytes(const sd_run* run, int32_t kernels) {
    const sd_kernels& chosen = *available()[kernels];
    int64_t most = 64;
    for (int l = 0; l < run->layers_number; l++)
        most = std::max(most, chosen.scratch(*run, run->layers[l]));
    return (most + 63) / 64 * 64;
}

// Run layers over some steps. 0, or 1 where there is no memory.
int32_t sd_run_layers(const sd_run* run, int32_t kernels) try {
    Work work(*run, *available()[kernels]);
    Team team{work};
    together(&Team::join, &team, run->threads, run->parallel);
    return 0;
} catch (const std::bad_alloc&) {
    return 1;
}

// How many items there are for the kernels on dense tensors (`item` of dense.h).
int64_t sd_dense_items(const sd_dense* shape) { return dense_items(*shape); }

// Run a kernel on dense tensors: 0 for sd_advance, 1 for sd_retreat, 2 for sd_quantise.
void sd_run_dense(int32_t kind, const void* arguments, int32_t kernels, int32_t threads,
                  sd_parallel parallel) {
    Items items{available()[kernels]->dense[kind], arguments,
                dense_items(*(const sd_dense*)arguments)};
    together(&Items::join, &items, items.number > 1 ? threads : 1, parallel);
}

// The spikes of a tensor as integers [B, steps, height, width, channels].
void sd_unpack(const sd_tensor* tensor, int32_t batch, int32_t steps, int16_t* values) {
    const int64_t wide = (int64_t)tensor->width * tensor->channels;
    const int64_t rows = (int64_t)batch * steps * tensor->height;
    memset(values, 0, 2 * rows * wide);
    for (int64_t row = 0; row < rows; row++) {
        if (tensor->bytes) {
            const int64_t frame = row / tensor->height, y = row % tensor->height;
            const int8_t* from = tensor->bytes +
                                 (frame / steps * tensor->height + y) * tensor->row_bytes +
                                 (frame % steps * tensor->columns + tensor->lead) * tensor->channels;
            for (int64_t i = 0; i < wide; i++) values[row * wide + i] = from[i];
            continue;
        }
        const uint16_t* events = tensor->events + row * tensor->room;
        const uint16_t* first = tensor->first + row * (tensor->width + 1);
        for (int x = 0; x < tensor->width; x++) {
            int16_t* to = values + row * wide + (int64_t)x * tensor->channels;
            for (int e = first[x]; e < first[x + 1]; e++) {
                const int c = events[e] - x * tensor->codes;
                if (c < tensor->channels)
                    to[c]++;
                else
                    to[c - tensor->channels]--;
            }
        }
    }
}

// Whole numbers [B, steps, height, width, channels] as events. 0, or 1 where a row is too small.
int32_t sd_pack(const sd_tensor* tensor, int32_t batch, int32_t steps, const int16_t* values) {
    const int64_t rows = (int64_t)batch * steps * tensor->height;
    for (int64_t row = 0; row < rows; row++) {
        uint16_t* events = tensor->events + row * tensor->room;
        uint16_t* first = tensor->first + row * (tensor->width + 1);
        const int16_t* from = values + row * tensor->width * tensor->channels;
        int64_t n = 0;
        first[0] = 0;
        for (int x = 0; x < tensor->width; x++) {
            for (int c = 0; c < tensor->channels; c++) {
                const int value = from[x * tensor->channels + c];
                if (value < 0 && tensor->codes == tensor->channels) return 1;
                const int code = x * tensor->codes + c + (value < 0 ? tensor->channels : 0);
                for (int i = value < 0 ? -value : value; i; i--) {
                    if (n >= tensor->room) return 1;
                    events[n++] = (uint16_t)code;
                }
            }
            first[x + 1] = (uint16_t)n;
        }
    }
    return 0;
}
}
