/* SPDX-License-Identifier: Apache-2.0 */
/* cpu_attention.c -- attention on the CPU in tiles: a task is a tile of queries of one head, which
 * meets the keys tile by tile with an online softmax. No array grows with n_q * n_k.
 *
 * Heads are strided views of the [tokens, D] arrays; the matrix library reads them where they are.
 */
#include <math.h>

#include "gpu/cpu.h"

struct attention_job {
    const struct hr_cpu *cpu;
    const struct hr_attention *p;
    struct hr_cpu_result *result;
    enum hr_dtype act;
    size_t n_queries, n_keys; /* of a tile; the last of each may be smaller */
    size_t n_query_tiles;
    /* [last queries][last keys]: scores, and P V stored or added; those that occur */
    const struct hr_gemm_op *scores[2][2], *store[2][2], *add[2][2];
};

static const unsigned char *head_at(const struct attention_job *job, const void *base, size_t token,
                                    size_t head)
{
    const size_t at = (token * job->p->n_heads + head) * HR_HEAD_DIM;

    return (const unsigned char *) base + at * hr_dtype_bytes(job->act);
}

/* Where the library has no bf16: n tokens of one head as f32, dense. */
static const void *head_f32(const struct attention_job *job, float *dst, const void *base,
                            size_t token, size_t head, size_t n)
{
    for (size_t i = 0; i < n; i++)
        job->cpu->kernels->to_f32(dst + i * HR_HEAD_DIM, head_at(job, base, token + i, head),
                                  job->act, HR_HEAD_DIM);
    return dst;
}

static bool is_emulated(const struct attention_job *job)
{
    return job->act == HR_DTYPE_BF16 && !job->cpu->has_bf16;
}

/* One tile of queries against one tile of keys. */
static int attend_tile(const struct attention_job *job, unsigned thread_idx, const void *q,
                       size_t n_q, size_t head, size_t key)
{
    const struct hr_attention *p = job->p;
    const struct hr_cpu_thread *thread = &job->cpu->threads[thread_idx];
    const size_t n_keys = hr_min_u64(job->n_keys, p->n_k - key);
    const int i = n_q < job->n_queries, j = n_keys < job->n_keys;
    const struct hr_softmax softmax = {
        .s = thread->tile,
        .p = thread->tile,
        .p_dtype = is_emulated(job) ? HR_DTYPE_F32 : job->act,
        .m = thread->stats,
        .sum = thread->stats + HR_TILE_QUERIES,
        .acc = thread->acc,
        .n_rows = n_q,
        .n_keys = n_keys,
        .first = key == 0,
    };
    const void *k = head_at(job, p->k, key, head), *v = head_at(job, p->v, key, head);

    if (is_emulated(job)) {
        float *free_x = thread->x + HR_TILE_QUERIES * HR_HEAD_DIM;

        k = head_f32(job, free_x, p->k, key, head, n_keys);
        v = head_f32(job, free_x + HR_TILE_KEYS * HR_HEAD_DIM, p->v, key, head, n_keys);
    }
    int rc = hr_gemm_run(job->cpu->gemm, job->scores[i][j], thread_idx, q, k, thread->tile);
    if (rc < 0)
        return rc;
    job->cpu->kernels->softmax(&softmax);
    return hr_gemm_run(job->cpu->gemm, key == 0 ? job->store[i][j] : job->add[i][j], thread_idx,
                       softmax.p, v, thread->acc);
}

static void attention_task(void *ctx, size_t task_idx, unsigned thread_idx)
{
    const struct attention_job *job = (const struct attention_job *) ctx;
    const struct hr_attention *p = job->p;
    const struct hr_cpu_thread *thread = &job->cpu->threads[thread_idx];
    const size_t head = task_idx / job->n_query_tiles;
    const size_t t = task_idx % job->n_query_tiles * job->n_queries;
    const size_t n_q = hr_min_u64(job->n_queries, p->n_q - t);
    const size_t o = (t * p->n_heads + head) * HR_HEAD_DIM;
    const void *q = head_at(job, p->q, t, head);
    int rc = 0;

    if (is_emulated(job))
        q = head_f32(job, thread->x, p->q, t, head, n_q);
    for (size_t i = 0; i < n_q; i++)
        thread->stats[i] = -INFINITY;
    for (size_t key = 0; key < p->n_k && rc == 0; key += job->n_keys)
        rc = attend_tile(job, thread_idx, q, n_q, head, key);
    hr_cpu_fail(job->result, rc);
    if (rc == 0)
        job->cpu->kernels->softmax_end((unsigned char *) p->out + o * hr_dtype_bytes(job->act),
                                       job->act, p->n_heads * HR_HEAD_DIM, thread->acc,
                                       thread->stats + HR_TILE_QUERIES, n_q);
}

static int prepare_tile(struct attention_job *job, size_t i, size_t j, size_t n_q, size_t n_keys)
{
    const size_t row = is_emulated(job) ? HR_HEAD_DIM : job->p->n_heads * HR_HEAD_DIM;
    const struct hr_gemm_shape scores = {
        .m = n_q,
        .n = n_keys,
        .k = HR_HEAD_DIM,
        .a_stride = row,
        .b_stride = row,
        .c_stride = n_keys,
        .b_rows = true,
        .bf16 = job->act == HR_DTYPE_BF16 && job->cpu->has_bf16,
    };
    struct hr_gemm_shape pv = {
        .m = n_q,
        .n = HR_HEAD_DIM,
        .k = n_keys,
        .a_stride = n_keys,
        .b_stride = row,
        .c_stride = HR_HEAD_DIM,
        .bf16 = scores.bf16,
    };
    int rc = hr_gemm_get(job->cpu->gemm, &job->scores[i][j], &scores);

    if (rc == 0)
        rc = hr_gemm_get(job->cpu->gemm, &job->store[i][j], &pv);
    pv.accumulate = true;
    if (rc == 0 && job->p->n_k > job->n_keys)
        rc = hr_gemm_get(job->cpu->gemm, &job->add[i][j], &pv);
    return rc;
}

int hr_cpu_attention(struct hr_gpu *gpu, const struct hr_attention *p)
{
    const struct hr_cpu *cpu = (const struct hr_cpu *) gpu;
    struct hr_cpu_result result = {0};
    struct attention_job job = {.cpu = cpu, .p = p, .result = &result, .act = gpu->act};
    int rc = 0;

    job.n_queries = hr_cpu_tile(p->n_q, HR_TILE_QUERIES);
    job.n_keys = hr_cpu_tile(p->n_k, HR_TILE_KEYS);
    job.n_query_tiles = (size_t) hr_div_ceil(p->n_q, job.n_queries);

    hr_gemm_begin(cpu->gemm, 12);
    for (size_t i = 0; i < 4 && rc == 0; i++) {
        const size_t n_q = i & 1 ? p->n_q % job.n_queries : job.n_queries;
        const size_t n_keys = i & 2 ? p->n_k % job.n_keys : job.n_keys;

        if (n_q > 0 && n_keys > 0)
            rc = prepare_tile(&job, i & 1, i >> 1, n_q, n_keys);
    }
    if (rc < 0)
        return rc;
    return hr_cpu_run(cpu, attention_task, &job, p->n_heads * job.n_query_tiles, &result);
}
