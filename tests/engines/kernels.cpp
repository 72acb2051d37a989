// Random layers: what every kernel of this machine gives against plain loops, spike by spike.
//
// Compiled and run by test_engines.py, also for other processors where there is an emulator.
#include "events.cpp"

#include <algorithm>
#include <cstdio>
#include <random>

namespace {

std::mt19937 generator(7);

int pick(int low, int high) { return low + (int)(generator() % (high - low + 1)); }

struct Tensor {
    sd_tensor view;
    std::vector<uint16_t> events, first;

    Tensor(int channels, int height, int width, int signs, int frames)
        : view{channels, height, width, signs * channels, (int64_t)width * channels + LOOSE,
               nullptr,  nullptr,  nullptr,          0, 0, 0},
          events(frames * height * view.room + 64),
          first(frames * height * (width + 1)) {
        view.events = events.data();
        view.first = first.data();
    }
};

// One layer of random shape and weights; how many spikes and means are wrong.
long wrong_of(int kernels, long& spikes) {
    const int half = sd_kernels_half(kernels);
    const int C = pick(1, 40), O = pick(1, 300), H = pick(1, 9), W = pick(1, 9);
    const int T = pick(1, 5), B = pick(1, 2), k = 2 * pick(0, 1) + 1, pad = k / 2;
    const int stride = pick(1, 2), kind = pick(0, 2), both = kind > 0, padded = (O + LANES - 1) / LANES * LANES;
    const int OH = (H + 2 * pad - k) / stride + 1, OW = (W + 2 * pad - k) / stride + 1;
    Tensor in(C, H, W, 1 + both, B * T), out(O, OH, OW, 1 + both, B * T);
    std::vector<int16_t> x(B * T * H * W * C);
    for (auto& v : x) {
        const int r = pick(0, 9);
        v = r == 0 ? 1 : both && r == 1 ? -1 : 0;
    }
    sd_pack(&in.view, B, T, x.data());

    const int rows_number = k * k * C;
    std::vector<int> w(rows_number * O);
    for (auto& v : w) v = pick(-127, 127);
    std::vector<int16_t> wide((2 * rows_number + 1) * padded);
    std::vector<int8_t> narrow((2 * rows_number + 1) * padded);
    for (int r = 0; r < rows_number; r++)
        for (int o = 0; o < O; o++) {
            const int group = o / (2 * half) * (2 * half), within = o - group;
            const int lane = within < half ? 2 * within : 2 * (within - half) + 1;
            const int row = (1 + both) * (r / C) * C + r % C;  // a column's negative ones behind it
            const int v = w[r * O + o], at = row * padded + group + lane;
            wide[at] = narrow[at] = (int8_t)v;
            if (both) wide[at + C * padded] = narrow[at + C * padded] = (int8_t)-v;
        }
    std::vector<int32_t> bias(padded), threshold(padded, INT32_MAX), initial(padded);
    std::vector<int32_t> low(padded, INT32_MIN), up(padded);
    for (int o = 0; o < O; o++) {
        bias[o] = pick(-20, 60);
        threshold[o] = pick(100, 600);
        initial[o] = pick(0, 300);
        low[o] = kind == 2 ? -1 : -pick(100, 900);
        up[o] = kind == 2 ? threshold[o] : -low[o];
    }
    std::vector<int32_t> row_first{0}, rows, column_first{0}, columns;
    for (int y = 0; y < OH; y++) {
        for (int a = 0; a < k; a++) {
            const int i = y * stride - pad + a;
            if (i >= 0 && i < H) rows.insert(rows.end(), {i, a * k * C * (1 + both)});
        }
        row_first.push_back((int)rows.size() / 2);
    }
    for (int q = 0; q < OW; q++) {
        const int from = q * stride - pad, start = std::max(from, 0), stop = std::min(from + k, W);
        columns.insert(columns.end(), {start, stop - start, start - from});
        column_first.push_back((int)columns.size() / 3);
    }
    sd_source source{};
    source.row_first = row_first.data(), source.rows = rows.data();
    source.column_first = column_first.data(), source.columns = columns.data();
    sd_layer layer{};
    layer.channels = O, layer.padded = padded, layer.height = OH, layer.width = OW;
    layer.output = 1, layer.wide = pick(0, 1), layer.sources_number = 1;
    layer.zero_row = 2 * rows_number, layer.window_most = rows_number * (1 + both);
    layer.rows_most = k, layer.parts_most = 1;
    layer.negative = kind, layer.sources = &source;
    const bool fits = 127 * rows_number < 32768;
    if (k == 3 && stride == 1 && kind != 1 && fits && pick(0, 1)) layer.slide = 3, layer.slide_lead = 1;
    layer.weights = layer.wide ? (const void*)wide.data() : (const void*)narrow.data();
    layer.bias = bias.data(), layer.threshold = threshold.data(), layer.initial = initial.data();
    layer.low = low.data(), layer.up = up.data();
    std::vector<int32_t> fired(B * T * OH);
    std::vector<std::atomic<int32_t>> done(B * OH);
    std::vector<float> mean(B * OH * OW * padded), mass(T, 1.0f);
    layer.fired = fired.data(), layer.done = done.data();
    layer.mean = mean.data(), layer.step_mass = mass.data();
    const sd_tensor tensors[2] = {in.view, out.view};
    const int32_t maker[2] = {-1, 0};
    sd_run run{B, T, 1, 1, 1, 2, 2, &layer, tensors, maker, nullptr, nullptr, 0};
    run.scratch_bytes = sd_scratch_bytes(&run, kernels);
    std::vector<char> scratch(2 * run.scratch_bytes + 64, (char)pick(0, 255));
    run.scratch = scratch.data() + (64 - (uintptr_t)scratch.data() % 64) % 64;
    if (sd_run_layers(&run, kernels)) return -1;

    std::vector<int16_t> found(B * T * OH * OW * O);
    sd_unpack(&tensors[1], B, T, found.data());
    long wrong = 0;
    for (int b = 0; b < B; b++)
        for (int y = 0; y < OH; y++)
            for (int q = 0; q < OW; q++)
                for (int o = 0; o < O; o++) {
                    int u = initial[o], sum = 0;
                    for (int t = 0; t < T; t++) {
                        u += bias[o];
                        for (int a = 0; a < k; a++)
                            for (int c = 0; c < k; c++) {
                                const int i = y * stride - pad + a, j = q * stride - pad + c;
                                if (i < 0 || i >= H || j < 0 || j >= W) continue;
                                for (int n = 0; n < C; n++)
                                    u += x[(((b * T + t) * H + i) * W + j) * C + n] *
                                         w[((a * k + c) * C + n) * O + o];
                            }
                        const int above = u >= threshold[o], below = both && u <= low[o] && (kind == 1 || sum > 0);
                        u += below * up[o] - above * threshold[o];
                        sum += above - below;
                        spikes += above + below;
                        wrong += found[(((b * T + t) * OH + y) * OW + q) * O + o] != above - below;
                    }
                    wrong += mean[((b * OH + y) * OW + q) * padded + o] != (float)sum;
                }
    return wrong;
}

}  // namespace

int main() {
    long wrong = 0;
    for (int kernels = 0; kernels < sd_kernels_number(); kernels++) {
        long spikes = 0, here = 0;
        for (int i = 0; i < 80; i++) here += wrong_of(kernels, spikes);
        std::printf("%s: %ld spikes, %ld wrong\n", sd_kernels_name(kernels), spikes, here);
        wrong += here;
    }
    return wrong != 0;
}
