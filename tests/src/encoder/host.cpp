// Runs the kernels' own text on a CPU, for the tests: thread by thread between two barriers, block by block. Reads
// commands from its input and answers on its output, in 32-bit words of this machine:
//   0 words                              a new buffer of that many words, zeroed
//   1 buffer at count word*              writes
//   2 buffer at count                    answers with words
//   3 kernel grid buffers buffer* scalars scalar*
// With an argument it takes threads and blocks backwards: what depends on their order shows.
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <vector>

#define ANABRANCH_HOST
#define KERNEL static void
#define DEVICE static inline
#define SHARED static
#define BLOCK_ID block_id
#define EACH_THREAD for (u32 nth = 0; nth < THREADS; ++nth) { const u32 t = backwards ? THREADS - 1 - nth : nth;
#define END_THREADS }

static bool backwards = false;
static unsigned block_id = 0;

template <class To, class From> static To bits(From from) { To to; std::memcpy(&to, &from, sizeof to); return to; }
static unsigned __float_as_uint(float value) { return bits<unsigned>(value); }
static float __uint_as_float(unsigned value) { return bits<float>(value); }
static float __fadd_rn(float one, float other) { return one + other; }
static float __fsub_rn(float one, float other) { return one - other; }
static float __fmul_rn(float one, float other) { return one * other; }
static float __fdiv_rn(float one, float other) { return one / other; }
static void atomicAdd(unsigned *to, unsigned value) { *to += value; }
static void atomicMin(unsigned *to, unsigned value) { if (value < *to) *to = value; }
static void atomicMax(unsigned *to, unsigned value) { if (value > *to) *to = value; }

#include "kernels.cu"

static u32 word() {
    u32 value;
    if (std::fread(&value, 4, 1, stdin) != 1) std::exit(0);
    return value;
}

int main(int count, char **) {
    backwards = count > 1;
    std::vector<std::vector<u32>> buffers;
    for (;;) {
        switch (word()) {
        case 0: buffers.emplace_back(word()); break;
        case 1: {
            const u32 buffer = word(), at = word(), many = word();
            for (u32 i = 0; i < many; ++i) buffers.at(buffer).at(at + i) = word();
            break;
        }
        case 2: {
            const u32 buffer = word(), at = word(), many = word();
            std::fwrite(buffers.at(buffer).data() + at, 4, many, stdout);
            std::fflush(stdout);
            break;
        }
        case 3: {
            const u32 kernel = word(), grid = word();
            std::vector<u32 *> b(word());
            for (auto &buffer : b) buffer = buffers.at(word()).data();
            std::vector<u32> s(word());
            for (auto &scalar : s) scalar = word();
            auto f = [&](int i) { return reinterpret_cast<float *>(b.at(i)); };
            for (u32 nth = 0; nth < grid; ++nth) {
                block_id = backwards ? grid - 1 - nth : nth;
                switch (kernel) {
                case 0: combine(f(0), f(1), f(2), f(3), b.at(4), b.at(5), b.at(6), s.at(0), s.at(1)); break;
                case 1: choose(b.at(0), b.at(1), s.at(0)); break;
                case 2: survivors(f(0), b.at(1), b.at(2), b.at(3), b.at(4)); break;
                case 3: refine(f(0), b.at(1), b.at(2), b.at(3), b.at(4), b.at(5), s.at(0)); break;
                case 4: tally(f(0), b.at(1), b.at(2), b.at(3), b.at(4), b.at(5)); break;
                case 5: place(b.at(0), b.at(1)); break;
                case 6: emit(f(0), b.at(1), b.at(2), b.at(3), b.at(4), b.at(5), b.at(6)); break;
                case 7:
                    quantize(f(0), b.at(1), b.at(2), b.at(3), f(4), reinterpret_cast<unsigned char *>(b.at(5)), s.at(0));
                    break;
                default: return 2;
                }
            }
            break;
        }
        default: return 2;
        }
    }
}
