// Kernels of the top-k encoder. The same input gives the same bits as `anabranch_common::codec::sparse` on a CPU:
// every float operation is a rounded one (never fused), sums are of integers, and ties go to the lower position.
//
// Between two barriers a kernel is a loop over its threads: EACH_THREAD ... END_THREADS. On a GPU that is one pass of each
// thread and a barrier; the tests compile this very text for a CPU, where it is a loop. Nothing but shared memory lives
// across a barrier, and whatever leaves a kernel early does so as a whole block.
//
// What the largest are selected of is a chunk of at most 2^18 elements of the vector, whatever the model's tensors.
//
//   combine -> choose 0 -> survivors -> refine 1 -> choose 1 -> refine 2 -> choose 2 -> tally -> place -> emit -> quantize
//   (sum, histogram)       (positions whose first digit can win)                     (where to)        (int8, residual)

typedef unsigned int u32;

#define THREADS 256u
#define TILE 4096u
#define EACH (TILE / THREADS)
#define BINS 2048u
#define BLOCK 256u
#define SMALLEST (8u << 23)

// A chunk's words.
#define STATE 9u
#define WANTED 0u
#define PREFIX 1u
#define THRESHOLD 2u
#define TIES 3u
#define EVERYTHING 4u
#define FIRST_TILE 5u
#define TILES 6u
#define PLACE 7u
#define COUNT 8u

#ifndef ANABRANCH_HOST
#define KERNEL extern "C" __global__ void __launch_bounds__(256)
#define DEVICE __device__ __forceinline__
#define SHARED __shared__
#define BLOCK_ID blockIdx.x
#define EACH_THREAD { const u32 t = threadIdx.x;
#define END_THREADS } __syncthreads();
#endif

DEVICE u32 key_of(float value) { return __float_as_uint(value) & 0x7FFFFFFFu; }

DEVICE bool is_finite(float value) { return key_of(value) < 0x7F800000u; }

// value - sent, or 0 where that is not finite.
DEVICE float left_over(float value, float sent) {
    float left = __fadd_rn(value, __fmul_rn(-1.0f, sent));
    return is_finite(left) ? left : 0.0f;
}

// Sums of everything up to each of THREADS numbers; an even number of steps, so that they end where they began.
DEVICE void running_sums(u32 *one, u32 *other) {
    for (u32 step = 1; step < THREADS; step *= 2) {
        EACH_THREAD
            other[t] = one[t] + (t >= step ? one[t - step] : 0u);
        END_THREADS
        u32 *swap = one;
        one = other;
        other = swap;
    }
}

// A block a tile. sum = (end - base) + decay * left_out, and how often each first digit occurs.
KERNEL combine(const float *end, const float *base, const float *left_out, float *sum, const u32 *tiles, u32 *counts,
               u32 *bad, u32 with_left_out, u32 decay) {
    SHARED u32 bins[BINS];
    const u32 chunk = tiles[3 * BLOCK_ID], start = tiles[3 * BLOCK_ID + 1], len = tiles[3 * BLOCK_ID + 2];
    EACH_THREAD
        for (u32 bin = t; bin < BINS; bin += THREADS) bins[bin] = 0;
    END_THREADS
    EACH_THREAD
        for (u32 i = t; i < len; i += THREADS) {
            const u32 at = start + i;
            const float delta = __fsub_rn(end[at], base[at]);
            float value = delta;
            if (!is_finite(delta)) atomicMin(bad, at);
            if (with_left_out != 0) {
                const float both = __fadd_rn(delta, __fmul_rn(__uint_as_float(decay), left_out[at]));
                if (is_finite(both)) value = both;
            }
            sum[at] = value;
            atomicAdd(&bins[key_of(value) >> 20], 1u);
        }
    END_THREADS
    EACH_THREAD
        for (u32 bin = t; bin < BINS; bin += THREADS) {
            if (bins[bin] != 0) atomicAdd(&counts[chunk * BINS + bin], bins[bin]);
        }
    END_THREADS
}

// A block a chunk. The digit (11, 10 and 10 bits) of the last key that is sent; clears the counts for the next digit.
KERNEL choose(u32 *chunks, u32 *counts, u32 pass) {
    SHARED u32 parts[THREADS];
    u32 *state = chunks + STATE * BLOCK_ID;
    u32 *bins = counts + BINS * BLOCK_ID;
    const u32 each = (pass == 0 ? BINS : 1024u) / THREADS, lowest = pass == 0 ? SMALLEST >> 20 : 0u;
    EACH_THREAD
        u32 part = 0;
        for (u32 bin = t * each; bin < (t + 1) * each; ++bin) part += bin >= lowest ? bins[bin] : 0u;
        parts[t] = part;
    END_THREADS
    EACH_THREAD
        if (t == 0 && state[EVERYTHING] == 0) {
            const u32 wanted = state[WANTED];
            u32 above = 0, part = THREADS;
            while (part > 0 && above + parts[part - 1] < wanted) above += parts[--part];
            if (part == 0) {
                state[EVERYTHING] = 1;
                state[PREFIX] = lowest;
                state[THRESHOLD] = SMALLEST;
                state[TIES] = 0xFFFFFFFFu;
            } else {
                u32 bin = part * each - 1;
                while (above + bins[bin] < wanted) above += bins[bin--];
                state[WANTED] = wanted - above;
                state[PREFIX] = pass == 0 ? bin : (state[PREFIX] << 10 | bin);
                state[THRESHOLD] = state[PREFIX];
                state[TIES] = wanted - above;
            }
        }
    END_THREADS
    EACH_THREAD
        for (u32 bin = t; bin < BINS; bin += THREADS) bins[bin] = 0;
    END_THREADS
}

// A block a tile. The positions whose first digit is large enough, in order, to the tile's own part of `kept`.
KERNEL survivors(const float *sum, const u32 *tiles, const u32 *chunks, u32 *kept, u32 *found) {
    // One word beside each thread's part, so that the threads read from different banks.
    SHARED u32 keys[TILE + THREADS];
    SHARED u32 sums[THREADS];
    SHARED u32 spare[THREADS];
    const u32 chunk = tiles[3 * BLOCK_ID], start = tiles[3 * BLOCK_ID + 1], len = tiles[3 * BLOCK_ID + 2];
    const u32 lowest = chunks[STATE * chunk + PREFIX] << 20;
    EACH_THREAD
        for (u32 i = t; i < TILE; i += THREADS) keys[i + i / EACH] = i < len ? key_of(sum[start + i]) : 0u;
    END_THREADS
    EACH_THREAD
        u32 mine = 0;
        for (u32 i = 0; i < EACH; ++i) mine += keys[t * (EACH + 1) + i] >= lowest ? 1u : 0u;
        sums[t] = mine;
    END_THREADS
    running_sums(sums, spare);
    EACH_THREAD
        u32 at = start + (t == 0 ? 0u : sums[t - 1]);
        for (u32 i = 0; i < EACH; ++i) {
            if (keys[t * (EACH + 1) + i] >= lowest) kept[at++] = start + t * EACH + i;
        }
        if (t == 0) found[BLOCK_ID] = sums[THREADS - 1];
    END_THREADS
}

// A block a tile. How often each second (or third) digit occurs under the digits that are chosen already.
KERNEL refine(const float *sum, const u32 *tiles, const u32 *chunks, const u32 *kept, const u32 *found, u32 *counts,
              u32 pass) {
    const u32 chunk = tiles[3 * BLOCK_ID], start = tiles[3 * BLOCK_ID + 1];
    if (chunks[STATE * chunk + EVERYTHING] != 0) return;
    const u32 shift = pass == 1 ? 10u : 0u, prefix = chunks[STATE * chunk + PREFIX];
    EACH_THREAD
        for (u32 i = t; i < found[BLOCK_ID]; i += THREADS) {
            const u32 key = key_of(sum[kept[start + i]]) >> shift;
            if (key >> 10 == prefix) atomicAdd(&counts[chunk * BINS + (key & 1023u)], 1u);
        }
    END_THREADS
}

// A block a tile. How many keys lie above the threshold, and how many on it.
KERNEL tally(const float *sum, const u32 *tiles, const u32 *chunks, const u32 *kept, const u32 *found, u32 *tallies) {
    SHARED u32 both[2];
    const u32 chunk = tiles[3 * BLOCK_ID], start = tiles[3 * BLOCK_ID + 1];
    const u32 threshold = chunks[STATE * chunk + THRESHOLD];
    EACH_THREAD
        if (t < 2) both[t] = 0;
    END_THREADS
    EACH_THREAD
        for (u32 i = t; i < found[BLOCK_ID]; i += THREADS) {
            const u32 key = key_of(sum[kept[start + i]]);
            if (key >= threshold) atomicAdd(&both[key == threshold ? 1 : 0], 1u);
        }
    END_THREADS
    EACH_THREAD
        if (t < 2) tallies[2 * BLOCK_ID + t] = both[t];
    END_THREADS
}

// A block a chunk. Turns each tile's tallies into: entries of the chunk before it, and ties that it may still send.
KERNEL place(u32 *chunks, u32 *tallies) {
    SHARED u32 equals[THREADS];
    SHARED u32 sums[THREADS];
    SHARED u32 spare[THREADS];
    u32 *state = chunks + STATE * BLOCK_ID;
    u32 *mine = tallies + 2 * state[FIRST_TILE];
    const u32 tiles = state[TILES], ties = state[TIES], each = (tiles + THREADS - 1) / THREADS;
    EACH_THREAD
        u32 equal = 0;
        for (u32 tile = t * each; tile < (t + 1) * each && tile < tiles; ++tile) equal += mine[2 * tile + 1];
        equals[t] = equal;
    END_THREADS
    running_sums(equals, spare);
    EACH_THREAD
        u32 before = t == 0 ? 0u : equals[t - 1], count = 0;
        for (u32 tile = t * each; tile < (t + 1) * each && tile < tiles; ++tile) {
            const u32 left = ties > before ? ties - before : 0u, equal = mine[2 * tile + 1];
            count += mine[2 * tile] + (equal < left ? equal : left);
            before += equal;
        }
        sums[t] = count;
    END_THREADS
    running_sums(sums, spare);
    EACH_THREAD
        u32 before = t == 0 ? 0u : equals[t - 1], at = t == 0 ? 0u : sums[t - 1];
        for (u32 tile = t * each; tile < (t + 1) * each && tile < tiles; ++tile) {
            const u32 left = ties > before ? ties - before : 0u, equal = mine[2 * tile + 1];
            const u32 count = mine[2 * tile] + (equal < left ? equal : left);
            mine[2 * tile] = at;
            mine[2 * tile + 1] = left;
            at += count;
            before += equal;
        }
        if (t == 0) state[COUNT] = sums[THREADS - 1];
    END_THREADS
}

// A block a tile. The positions that are sent, in order.
KERNEL emit(const float *sum, const u32 *tiles, const u32 *chunks, const u32 *kept, const u32 *found,
            const u32 *tallies, u32 *positions) {
    SHARED u32 equals[THREADS];
    SHARED u32 sums[THREADS];
    SHARED u32 spare[THREADS];
    const u32 chunk = tiles[3 * BLOCK_ID], start = tiles[3 * BLOCK_ID + 1];
    const u32 threshold = chunks[STATE * chunk + THRESHOLD], many = found[BLOCK_ID];
    const u32 place = chunks[STATE * chunk + PLACE] + tallies[2 * BLOCK_ID], left = tallies[2 * BLOCK_ID + 1];
    const u32 each = (many + THREADS - 1) / THREADS;
    EACH_THREAD
        u32 equal = 0;
        for (u32 i = t * each; i < (t + 1) * each && i < many; ++i) {
            equal += key_of(sum[kept[start + i]]) == threshold ? 1u : 0u;
        }
        equals[t] = equal;
    END_THREADS
    running_sums(equals, spare);
    EACH_THREAD
        u32 rank = t == 0 ? 0u : equals[t - 1], count = 0;
        for (u32 i = t * each; i < (t + 1) * each && i < many; ++i) {
            const u32 key = key_of(sum[kept[start + i]]);
            if (key > threshold || (key == threshold && rank++ < left)) ++count;
        }
        sums[t] = count;
    END_THREADS
    running_sums(sums, spare);
    EACH_THREAD
        u32 rank = t == 0 ? 0u : equals[t - 1], at = place + (t == 0 ? 0u : sums[t - 1]);
        for (u32 i = t * each; i < (t + 1) * each && i < many; ++i) {
            const u32 position = kept[start + i], key = key_of(sum[position]);
            if (key > threshold || (key == threshold && rank++ < left)) positions[at++] = position;
        }
    END_THREADS
}

// A block for BLOCK entries of a chunk. Scale, int8 values, and what they leave over.
KERNEL quantize(float *sum, const u32 *chunks, const u32 *blocks, const u32 *positions, float *scales,
                unsigned char *bytes, u32 with_left_out) {
    SHARED u32 largest[1];
    SHARED float scale[1];
    const u32 *state = chunks + STATE * blocks[2 * BLOCK_ID];
    const u32 from = blocks[2 * BLOCK_ID + 1] * BLOCK;
    if (from >= state[COUNT]) return;
    const u32 rest = state[COUNT] - from, many = rest < BLOCK ? rest : BLOCK, place = state[PLACE] + from;
    EACH_THREAD
        if (t == 0) largest[0] = 0;
    END_THREADS
    EACH_THREAD
        if (t < many) atomicMax(&largest[0], key_of(sum[positions[place + t]]));
    END_THREADS
    EACH_THREAD
        if (t == 0) {
            float step = __fdiv_rn(__uint_as_float(largest[0]), 127.0f);
            if (!is_finite(__fmul_rn(step, 127.0f))) step = __uint_as_float(__float_as_uint(step) - 1);
            scale[0] = step;
            scales[BLOCK_ID] = step;
        }
    END_THREADS
    EACH_THREAD
        if (t < many) {
            const u32 at = positions[place + t];
            const float value = sum[at];
            // rintf takes ties to the even neighbour.
            const int rounded = (int)rintf(__fdiv_rn(value, scale[0]));
            const int step = rounded > 127 ? 127 : (rounded < -127 ? -127 : rounded);
            bytes[place + t] = (unsigned char)(signed char)step;
            if (with_left_out != 0) sum[at] = left_over(value, __fmul_rn((float)step, scale[0]));
        }
    END_THREADS
}
