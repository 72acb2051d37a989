// What the caller and every build of the kernels agree on.
#pragma once
#include <atomic>
#include <cstdint>

#include "dense.h"

extern "C" {

// The spikes of one tensor, as events or as bytes.
//
// Events: a row is (picture, step, y). Its events are x * codes + c for a spike of channel c, and
// x * codes + channels + c for a negative one, in ascending order of x; those of column x are
// events[first[x]] up to events[first[x + 1]]. An event may occur several times.
//
// Bytes: 1, -1 or 0 for each neuron. A row is (picture, y) with all steps. A step
// has `columns` columns: `lead` of zeros, those of the map, and maybe more of zeros. Behind the last
// step are `lead` columns of zeros again.
struct sd_tensor {
    int32_t channels, height, width;
    int32_t codes;     // of a column: the channels, twice as many if there are negative spikes
    int64_t room;      // events that a row has room for, and LOOSE more
    uint16_t* events;  // [B, steps, height, room]; null if there are bytes
    uint16_t* first;   // [B, steps, height, width + 1]; with bytes [B, steps, height]: how many spikes
    int8_t* bytes;     // [B, height, row_bytes]; null if there are events
    int64_t row_bytes;
    int32_t columns, lead;
};

// One input of a layer of neurons.
//   rows[row_first[y] .. row_first[y + 1]] are pairs (input row, first weight row), and
//   columns[column_first[x] .. column_first[x + 1]] are triples (first input column, how many,
//   weight column): the events of these columns add the weight rows
//   weight row + (weight column - first column) * codes + event.
struct sd_source {
    int32_t tensor;
    int32_t scatter;   // 1: few outputs a weight row, which lie in `few`
    int32_t few_size;  // of a scattered source: outputs that an event reaches
    int32_t each;      // 1: few_size is 1, and each channel adds to the output of its number
    const int32_t *row_first, *rows, *column_first, *columns;
    const int32_t* few;        // [weight rows, few_size]
    const int32_t* few_first;  // first of these outputs for each code of a column, -1 for none
    // For the matrix unit. The window of output x begins at place x * stride of `grid`, which has the
    // input column of each place, -1 for none. If `direct`, the bytes of the tensor are this grid,
    // from `lead` columns before the first on.
    int32_t stride, direct, lead, grid_number;
    const int32_t* grid;
    int32_t columns_most;     // places of a window
    int32_t chunks;           // of 64 inputs of a window's row
    const int32_t* row_taps;  // which tiles each entry of `rows` is multiplied by
    // [taps, chunks, padded / 16, 16, 16, 4]: at [i, n, j] the weight of input 4 i + j for output n
    const int8_t* tiles;
};

enum sd_kind { SD_NEURON = 0, SD_CURRENT = 1, SD_POOL = 2 };

struct sd_layer {
    int32_t kind;
    int32_t channels, padded, height, width;  // of the output; padded: a multiple of LANES
    int32_t output;                           // number of its tensor, -1 for none
    int32_t wide;                             // weights are int16 and not int8
    int32_t sources_number;
    int32_t scattered;     // one of the sources is
    int32_t zero_row;      // a weight row of zeros
    int32_t window_most;   // the most events that a window can hold
    int32_t rows_most;     // the most input rows that an output row hears
    int32_t parts_most;    // the most parts that an output column hears of one of them
    int32_t by_step;       // of a pool: the maximum in every step
    int32_t initial_each;  // the initial potentials are [height, width, padded]
    int32_t negative;  // 0: spikes of 1 alone, 1: of -1 as well, 2: -1 only to take back one of 1
    int32_t after_number;  // layers that must be complete before this one writes,
    const int32_t* after;  // as they use what is in its memory until then
    // Columns of a window that slides along the row, 0 for none: an output is complete when the
    // column `slide_lead` behind its own has been added. No sum of a window leaves int16.
    int32_t slide, slide_lead;
    int32_t pitch;  // for the matrix unit: output columns from one step to the next; 0: not for it
    int32_t always;  // the matrix unit computes every row, even if adding is faster
    const struct sd_source* sources;
    const void* weights;  // [rows, padded] in the order of `sd_order`
    const int32_t *bias, *threshold, *initial;  // [padded]
    const int32_t *low, *up;  // with spikes of -1: fires down at u <= low, then u += up
    const float *inverse, *limit;               // of a constant current: steps a unit, largest
    // of this run:
    const float* current;    // [B, height, width, channels]
    int32_t* state;          // [B, height, width, padded], twice where spikes are taken back: then
                             // their counts are behind; null if nothing goes on after this part
    int16_t* counts;         // of a pool: [B, height, ...], as state
    float* mean;             // [steps or 1, B, height, width, padded]; null for none
    const float* step_mass;  // [steps]
    int32_t mean_each;       // the mean after every step
    int32_t* fired;          // [B, steps, height]: spikes of each row
    std::atomic<int32_t>* done;  // [B, height]
};

// Calls work(data) in so many threads, as libgomp's GOMP_parallel does.
typedef void (*sd_parallel)(void (*work)(void*), void* data, unsigned threads, unsigned flags);

struct sd_run {
    int32_t batch, steps;
    int32_t first_part, last_part;  // nothing before it; nothing after it
    int32_t layers_number, tensors_number, threads;
    const struct sd_layer* layers;
    const struct sd_tensor* tensors;
    const int32_t* maker;  // number of the layer that makes each tensor, -1: it is there
    sd_parallel parallel;  // null: threads of our own
    char* scratch;         // [threads, scratch_bytes], from the start of a cache line on
    int64_t scratch_bytes;  // `sd_scratch_bytes`
};
}

constexpr int LANES = 32;  // channels are padded to a multiple
constexpr int LOOSE = 32;  // a row of events has room for so many more

// What every build of the kernels offers.
struct sd_kernels {
    const char* name;
    int half;    // int32 lanes of a vector: how weights are interleaved
    int bytes;   // 1: spikes may be bytes
    int matrix;  // 1: they use the tiles of weights
    void (*row)(const sd_run&, const sd_layer&, int item, void* scratch);
    int64_t (*scratch)(const sd_run&, const sd_layer&);
    int64_t (*add)(int64_t rounds);
    void (*dense[3])(const void* arguments, int64_t item);  // sd_advance, sd_retreat, sd_quantise
};
