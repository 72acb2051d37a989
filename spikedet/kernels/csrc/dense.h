// Neurons and the activation of stage I on dense tensors, as torch stores them (neurons/compiled.py).
//
// A tensor [B, C, ...] in the order of its memory is [outer, channels, inner]; inner is 1 where the
// channels are last. With time it is [steps, outer, channels, inner]. The work is divided into items
// (`sd_dense_items`), which may be done in any order.
#pragma once
#include <cstdint>

extern "C" {

struct sd_dense {
    int64_t outer, channels, inner;
    int32_t steps;
    int32_t half;      // currents, or x, are bfloat16 and not float32; so are their gradients
    int32_t half_out;  // spikes are (if currents are, spikes are too)
    int32_t negative;  // 0: no spikes of -1, 1: spikes of -1, 2: -1 only to take back one of 1
    int32_t constant;  // the current is the same in every step
};

// Neurons over time. A spike of -1 is sent at u <= low, then u += up.
struct sd_advance {
    struct sd_dense shape;
    const void* current;  // [steps, ...], or [...] if constant
    float* potential;
    float* counts;  // of neurons that take back spikes: positive minus negative ones so far
    void* spikes;   // [steps, ...]
    uint8_t* near;  // [steps, ...]: 1 near the threshold, 2 near the lower one, 3 both; or null
    const float *threshold, *low, *up;         // [channels]
    const float *window_low, *window_high;     // "near" is between them: the potential, and
    const float *depth_offset, *depth_factor;  // offset + factor * potential for the lower one
};

// The gradient, from the last step to the first.
struct sd_retreat {
    struct sd_dense shape;
    const uint8_t* near;
    const void* grad_spikes;      // [steps, ...]
    void* grad_current;           // [steps, ...], or float32 [...] if constant
    float* grad;                  // of the last potentials; then that of the first ones
    const float *height, *slope;  // [channels]
    float passed;
};

// y = theta * level(x / theta), or its gradient.
struct sd_quantise {
    struct sd_dense shape;  // negative: 1 if there is a slope
    float lag;
    int64_t keep_outer;  // size of `keep` [keep_outer, channels, inner], which repeats over outer
    const void* x;
    void* y;            // of the gradient: that of x
    const void* grad;   // of y; null to compute y
    float* grad_theta;  // [items, channels], zeros at first
    const float* keep;  // 1 where x is not rounded, else 0; or null
    const float *threshold, *inverse, *slope;  // [channels]
};
}

constexpr int64_t ITEM = 1 << 14;  // elements of an item, about

static inline int64_t per_item(const sd_dense& s) {  // rows, or channels of one row where inner > 1
    const int64_t size = s.inner > 1 ? s.inner : s.channels;
    return size < ITEM ? ITEM / size : 1;
}

static inline int64_t dense_items(const sd_dense& s) {
    const int64_t size = per_item(s);
    return s.inner > 1 ? s.outer * ((s.channels + size - 1) / size) : (s.outer + size - 1) / size;
}
