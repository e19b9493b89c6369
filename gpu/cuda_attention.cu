/* SPDX-License-Identifier: Apache-2.0 */
/* cuda_attention.cu -- attention by tiles of keys with a running maximum and sum of the softmax:
 *   m' = max(m, max_j s[j]);  a = exp(m - m');  p[j] = exp(s[j] - m')
 *   sum = a sum + sum_j p[j];  o = a o + p V;  out = o / sum at the end
 *
 * bf16: on tensor cores. A block has 128 queries of one head, 32 for each of 4 warps, so that what
 * a warp loads of K and V from shared memory meets two tiles of queries; a multiprocessor holds two
 * blocks. It goes through the keys 32 at a time, K and V of the next ones on their way meanwhile.
 * Rows past the end are zeros, their scores -infinity.
 * f32: plain, for exactness.
 *
 * In both a block reads its own queries before it writes its own outputs, and no other block reads
 * them: out may be q.
 */
#include "gpu/cuda_device.cuh"

namespace
{

enum { HEAD = 128, LANES = HR_CUDA_LANES };

constexpr float SCALE = 0.08838834764831845f; /* 1 / sqrt(128) */

/* ---- bf16 ----------------------------------------------------------------------------------- */

enum {
    WARPS = 4,
    THREADS = WARPS * LANES,
    ROW_TILES = 2, /* of 16 queries, of a warp */
    QUERIES = 16 * ROW_TILES * WARPS,
    KEYS = 32,
    KEY_TILES = KEYS / 8,   /* columns of 8 of the scores    */
    HEAD_TILES = HEAD / 8,  /* columns of 8 of the output    */
    HEAD_STEPS = HEAD / 16, /* of the inner dimension, Q K^T */
    TILE_BYTES = KEYS * HEAD * 2,
    STAGE_BYTES = 2 * TILE_BYTES, /* K and V of the same keys */
};
static_assert(QUERIES * HEAD * 2 == 2 * STAGE_BYTES, "the queries pass through both stages");

#ifdef HR_HAS_BF16

constexpr float SCALE_LOG2 = SCALE * 1.4426950408889634f; /* for exp2 */

/* Rows first .. first + N_ROWS - 1 of one head into a tile, by the whole block: a thread has one
 * column of chunks. */
template <unsigned N_ROWS>
__device__ __forceinline__ void copy_rows(uint32_t tile, const uint16_t *base, size_t stride,
                                          unsigned first, unsigned n)
{
    constexpr unsigned CHUNKS = HEAD / 8, STEP = THREADS / CHUNKS;
    const unsigned row = threadIdx.x / CHUNKS, chunk = threadIdx.x % CHUNKS;
    const uint16_t *from = base + (size_t) (first + row) * stride + chunk * 8;
    const uint32_t to = tile + hr_cuda_tile_at(row, chunk);
    static_assert(STEP % 8 == 0, "in each row that a thread has its chunk lies at the same place");

#pragma unroll
    for (unsigned i = 0; i < N_ROWS; i += STEP)
        copy_chunk(to + i * HEAD * 2, from + i * stride, first + row + i < n);
}

/* What a warp keeps of its queries; index 0 and 1 of a tile: rows l / 4 and l / 4 + 8. */
struct state {
    uint32_t q[ROW_TILES][HEAD_STEPS][4];
    float o[ROW_TILES][HEAD_TILES][4];
    float m[ROW_TILES][2], sum[ROW_TILES][2]; /* sum: this lane's columns only */
};

typedef float score_tile[KEY_TILES][4];

/* s = Q K^T */
__device__ __forceinline__ void scores(score_tile *s, const state &st, uint32_t k_tile,
                                       unsigned lane)
{
#pragma unroll
    for (int t = 0; t < ROW_TILES; t++)
#pragma unroll
        for (int n = 0; n < KEY_TILES; n++)
            s[t][n][0] = s[t][n][1] = s[t][n][2] = s[t][n][3] = 0.0f;
#pragma unroll
    for (int step = 0; step < HEAD_STEPS; step++) {
#pragma unroll
        for (int n = 0; n < KEY_TILES; n += 2) {
            const unsigned row = n * 8 + (lane & 7) + (lane >> 4) * 8;
            uint32_t b[4];

            load_matrices(b, k_tile + hr_cuda_tile_at(row, step * 2 + (lane >> 3 & 1)));
#pragma unroll
            for (int t = 0; t < ROW_TILES; t++) {
                multiply(s[t][n], st.q[t][step], b[0], b[1]);
                multiply(s[t][n + 1], st.q[t][step], b[2], b[3]);
            }
        }
    }
}

/* Scores of keys from n on do not count. */
__device__ __forceinline__ void mask(score_tile *s, unsigned n, unsigned lane)
{
#pragma unroll
    for (int t = 0; t < ROW_TILES; t++)
#pragma unroll
        for (int i = 0; i < KEY_TILES; i++)
#pragma unroll
            for (int j = 0; j < 4; j++)
                if (i * 8 + 2 * (lane % 4) + j % 2 >= n)
                    s[t][i][j] = -INFINITY;
}

/* Row r of a tile of scores becomes unnormalised probabilities. @return what older sums count, to
 * which the probabilities of the row are added: exactly 1 where the maximum is what it was, 0 at
 * first, as m is -infinity */
__device__ __forceinline__ float softmax_row(score_tile &s, float &m_row, float &sum_row, int r)
{
    float m = m_row, sum = 0.0f;

#pragma unroll
    for (int i = 0; i < KEY_TILES; i++)
        m = fmaxf(m, fmaxf(s[i][2 * r], s[i][2 * r + 1]));
    m = fmaxf(m, __shfl_xor_sync(0xffffffffu, m, 1)); /* the four lanes of a row */
    m = fmaxf(m, __shfl_xor_sync(0xffffffffu, m, 2));
    const float top = -m * SCALE_LOG2, a = power_of_2((m_row - m) * SCALE_LOG2);

    m_row = m;
#pragma unroll
    for (int i = 0; i < KEY_TILES; i++) {
        s[i][2 * r] = power_of_2(__fmaf_rn(s[i][2 * r], SCALE_LOG2, top));
        s[i][2 * r + 1] = power_of_2(__fmaf_rn(s[i][2 * r + 1], SCALE_LOG2, top));
        sum += s[i][2 * r] + s[i][2 * r + 1];
    }
    sum_row = sum_row * a + sum;
    return a;
}

__device__ __forceinline__ void softmax(score_tile *s, state &st)
{
    float a[ROW_TILES][2];
    bool is_same = true;

#pragma unroll
    for (int t = 0; t < ROW_TILES; t++)
#pragma unroll
        for (int r = 0; r < 2; r++) {
            a[t][r] = softmax_row(s[t], st.m[t][r], st.sum[t][r], r);
            is_same = is_same && a[t][r] == 1.0f;
        }
    if (__all_sync(0xffffffffu, is_same)) /* soon most are */
        return;
#pragma unroll
    for (int t = 0; t < ROW_TILES; t++)
#pragma unroll
        for (int i = 0; i < HEAD_TILES; i++)
#pragma unroll
            for (int j = 0; j < 4; j++)
                st.o[t][i][j] *= a[t][j / 2];
}

/* o += P V: two columns of 8 scores are one 16x16 operand as they lie in the registers. */
__device__ __forceinline__ void add_values(state &st, const score_tile *s, uint32_t v_tile,
                                           unsigned lane)
{
#pragma unroll
    for (int i = 0; i < KEY_TILES; i += 2) {
        const unsigned row = i * 8 + (lane & 15);
        uint32_t p[ROW_TILES][4];

#pragma unroll
        for (int t = 0; t < ROW_TILES; t++)
#pragma unroll
            for (int j = 0; j < 4; j++)
                p[t][j] = hr_cuda_to_bf16_pair(s[t][i + j / 2][j % 2 * 2],
                                               s[t][i + j / 2][j % 2 * 2 + 1]);
#pragma unroll
        for (int n = 0; n < HEAD_TILES; n += 2) {
            uint32_t b[4];

            load_matrices_transposed(b, v_tile + hr_cuda_tile_at(row, n + (lane >> 4)));
#pragma unroll
            for (int t = 0; t < ROW_TILES; t++) {
                multiply(st.o[t][n], p[t], b[0], b[1]);
                multiply(st.o[t][n + 1], p[t], b[2], b[3]);
            }
        }
    }
}

/* The rows of a tile of queries, the first of which is `first`. */
__device__ __forceinline__ void write_rows(const hr_cuda_attention &p, const float (*o)[4],
                                           const float *sums, size_t first, unsigned lane)
{
    const size_t stride = p.n_heads * HEAD;

#pragma unroll
    for (int r = 0; r < 2; r++) {
        const size_t row = first + lane / 4 + r * 8;
        float sum = sums[r];

        sum += __shfl_xor_sync(0xffffffffu, sum, 1);
        sum += __shfl_xor_sync(0xffffffffu, sum, 2);
        if (row >= p.n_q)
            continue;
        const float factor = 1.0f / sum;
        uint16_t *out = (uint16_t *) p.out + row * stride + blockIdx.y * HEAD + 2 * (lane % 4);

#pragma unroll
        for (int i = 0; i < HEAD_TILES; i++)
            *(uint32_t *) (out + i * 8) =
                hr_cuda_to_bf16_pair(o[i][2 * r] * factor, o[i][2 * r + 1] * factor);
    }
}

/* The warp's queries, from shared memory, and nothing summed up yet. */
__device__ __forceinline__ void begin(state &st, uint32_t q_tile, unsigned warp, unsigned lane)
{
#pragma unroll
    for (int t = 0; t < ROW_TILES; t++) {
        const unsigned row = (warp * ROW_TILES + t) * 16 + (lane & 15);

#pragma unroll
        for (int step = 0; step < HEAD_STEPS; step++)
            load_matrices(st.q[t][step], q_tile + hr_cuda_tile_at(row, step * 2 + (lane >> 4)));
#pragma unroll
        for (int i = 0; i < HEAD_TILES; i++)
            st.o[t][i][0] = st.o[t][i][1] = st.o[t][i][2] = st.o[t][i][3] = 0.0f;
        st.m[t][0] = st.m[t][1] = -INFINITY;
        st.sum[t][0] = st.sum[t][1] = 0.0f;
    }
}

__device__ __forceinline__ void attend(const hr_cuda_attention &p)
{
    __shared__ __align__(128) unsigned char stages[2 * STAGE_BYTES];
    const unsigned lane = threadIdx.x % LANES, warp = threadIdx.x / LANES;
    const unsigned first = blockIdx.x * QUERIES, n_k = (unsigned) p.n_k;
    const size_t stride = p.n_heads * HEAD, head = blockIdx.y * HEAD;
    const uint16_t *k = (const uint16_t *) p.k + head, *v = (const uint16_t *) p.v + head;
    uint32_t now = shared_address(stages), next = now + STAGE_BYTES;
    state st;

    copy_rows<QUERIES>(now, (const uint16_t *) p.q + head, stride, first, (unsigned) p.n_q);
    copies_wait();
    __syncthreads();
    begin(st, now, warp, lane);
    __syncthreads(); /* all have their queries */
    copy_rows<KEYS>(now, k, stride, 0, n_k);
    copy_rows<KEYS>(now + TILE_BYTES, v, stride, 0, n_k);
    for (unsigned key = 0; key < n_k; key += KEYS) {
        score_tile s[ROW_TILES];

        copies_wait();
        __syncthreads(); /* these keys are here, and the last ones have been used by all */
        if (key + KEYS < n_k) {
            copy_rows<KEYS>(next, k, stride, key + KEYS, n_k);
            copy_rows<KEYS>(next + TILE_BYTES, v, stride, key + KEYS, n_k);
        }
        scores(s, st, now, lane);
        if (key + KEYS > n_k)
            mask(s, n_k - key, lane);
        softmax(s, st);
        add_values(st, s, now + TILE_BYTES, lane);
        const uint32_t used = now;

        now = next;
        next = used;
    }
#pragma unroll
    for (int t = 0; t < ROW_TILES; t++)
        write_rows(p, st.o[t], st.sum[t], first + (warp * ROW_TILES + t) * 16, lane);
}

#else

__device__ __forceinline__ void attend(const hr_cuda_attention &)
{
    __trap(); /* no bf16 before compute capability 8.0; the device refuses it when it is opened */
}

#endif

__global__ void __launch_bounds__(THREADS, 2) attention_bf16_kernel(hr_cuda_attention p)
{
    attend(p);
}

/* ---- f32 ------------------------------------------------------------------------------------ */

enum {
    F32_QUERIES = 16,
    F32_KEYS = 32,
    F32_THREADS = HEAD,
    F32_ROW = HEAD + 4,                      /* rows of K lie in different banks  */
    ROW_THREADS = F32_THREADS / F32_QUERIES, /* that share a query in the softmax */
    F32_KEYS_EACH = F32_KEYS / ROW_THREADS,
};

/* In the scores, thread i has query i / 8 and each eighth key; in the sums it has column i of all
 * queries. */
__global__ void __launch_bounds__(F32_THREADS) attention_f32_kernel(hr_cuda_attention p)
{
    __shared__ float q[F32_QUERIES][F32_ROW], k[F32_KEYS][F32_ROW], v[F32_KEYS][HEAD];
    __shared__ float probabilities[F32_QUERIES][F32_KEYS + 1], factor[F32_QUERIES];
    const unsigned i = threadIdx.x, query = i / ROW_THREADS, part = i % ROW_THREADS;
    const size_t stride = p.n_heads * HEAD, at = (size_t) blockIdx.y * HEAD + i;
    const size_t first = (size_t) blockIdx.x * F32_QUERIES;
    float o[F32_QUERIES] = {}, m = -INFINITY, sum = 0.0f;

    for (unsigned r = 0; r < F32_QUERIES; r++)
        q[r][i] = first + r < p.n_q ? ((const float *) p.q)[(first + r) * stride + at] : 0.0f;
    for (size_t key = 0; key < p.n_k; key += F32_KEYS) {
        float s[F32_KEYS_EACH], m_new = m, add = 0.0f;

        __syncthreads(); /* the last tile has been used by all */
        for (unsigned r = 0; r < F32_KEYS; r++) {
            const bool is_valid = key + r < p.n_k;

            k[r][i] = is_valid ? ((const float *) p.k)[(key + r) * stride + at] : 0.0f;
            v[r][i] = is_valid ? ((const float *) p.v)[(key + r) * stride + at] : 0.0f;
        }
        __syncthreads();
#pragma unroll
        for (int j = 0; j < F32_KEYS_EACH; j++) {
            const unsigned r = part + j * ROW_THREADS;
            float dot = 0.0f;

            for (int c = 0; c < HEAD; c++)
                dot += q[query][c] * k[r][c];
            s[j] = key + r < p.n_k ? dot * SCALE : -INFINITY;
            m_new = fmaxf(m_new, s[j]);
        }
        for (int step = 1; step < ROW_THREADS; step *= 2)
            m_new = fmaxf(m_new, __shfl_xor_sync(0xffffffffu, m_new, step));
        const float a = expf(m - m_new);

#pragma unroll
        for (int j = 0; j < F32_KEYS_EACH; j++) {
            s[j] = expf(s[j] - m_new);
            add += s[j];
            probabilities[query][part + j * ROW_THREADS] = s[j];
        }
        m = m_new;
        sum = sum * a + add;
        if (part == 0)
            factor[query] = a;
        __syncthreads();
#pragma unroll
        for (int r = 0; r < F32_QUERIES; r++) {
            float y = 0.0f;

            for (int j = 0; j < F32_KEYS; j++)
                y += probabilities[r][j] * v[j][i];
            o[r] = o[r] * factor[r] + y;
        }
    }
    for (int step = 1; step < ROW_THREADS; step *= 2)
        sum += __shfl_xor_sync(0xffffffffu, sum, step);
    __syncthreads();
    if (part == 0)
        factor[query] = sum;
    __syncthreads();
#pragma unroll
    for (int r = 0; r < F32_QUERIES; r++)
        if (first + r < p.n_q)
            ((float *) p.out)[(first + r) * stride + at] = o[r] / factor[r];
}

dim3 grid_of(const struct hr_cuda_attention *p, size_t n_queries)
{
    return dim3((unsigned) ((p->n_q + n_queries - 1) / n_queries), (unsigned) p->n_heads);
}

} // namespace

cudaError_t hr_cuda_attention_bf16(const struct hr_cuda_attention *p, cudaStream_t stream)
{
    if (p->n_q > INT32_MAX || p->n_k > INT32_MAX)
        return cudaErrorInvalidValue;
    HR_LAUNCH(attention_bf16_kernel, grid_of(p, QUERIES), THREADS, stream, *p);
    return cudaGetLastError();
}

cudaError_t hr_cuda_attention_f32(const struct hr_cuda_attention *p, cudaStream_t stream)
{
    HR_LAUNCH(attention_f32_kernel, grid_of(p, F32_QUERIES), F32_THREADS, stream, *p);
    return cudaGetLastError();
}
