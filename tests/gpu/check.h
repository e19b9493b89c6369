/* SPDX-License-Identifier: Apache-2.0 */
/* check.h -- compare operations of a device with their specification, checkasm fashion.
 *
 * Random inputs from a printed seed (HEADRACE_TEST_SEED repeats a run); outputs lie between guard
 * bands and are all NaN before they are written, so a write past either end, or a value that was
 * never written, fails even without a sanitizer.
 */
#ifndef HR_TESTS_GPU_CHECK_H
#define HR_TESTS_GPU_CHECK_H

#include "gpu/gpu.h"

/* ---- random inputs ------------------------------------------------------------------ */

struct check_rng {
    uint64_t state;
};

struct check_rng check_seed(void);
uint64_t check_next(struct check_rng *rng);
size_t check_pick(struct check_rng *rng, size_t n); /* 0 .. n - 1 */
float check_float(struct check_rng *rng, float low, float high);

size_t check_dtype_bytes(enum hr_dtype dtype);
/* n finite values of about -1..1, any dtype that a device computes with, at any address. */
void check_fill(struct check_rng *rng, void *dst, enum hr_dtype dtype, size_t n);
void check_fill_f32(struct check_rng *rng, float *dst, size_t n, float low, float high);

/* ---- arrays ------------------------------------------------------------------------- */

/* n bytes, all 0xff (NaN in every float dtype), `misalign` bytes past a multiple of 64, between
 * guard bands. */
void *check_alloc(size_t n_bytes, size_t misalign);
/* Checks the guard bands; the test fails when they were touched. */
void check_free(void *array);

/* ---- comparison --------------------------------------------------------------------- */

/* |got - want| <= tol * max(1, |want|) for n values, plus 2^-7 |want|, one unit in the last
 * place, where they are bf16; rows of
 * `width`, `stride` apart. NaN never passes. The test fails with the first mismatch. */
struct check_matrix {
    const void *got, *want;
    enum hr_dtype dtype;
    size_t n_rows, width, stride;
};
void check_close(const char *what, const struct check_matrix *m, double tol);

/* ---- devices ------------------------------------------------------------------------ */

/* Every way to compute that this machine has: the CPU's, or with HEADRACE_DEVICE=cuda that GPU,
 * which reads and writes the arrays of check_alloc() where they are. */
struct check_device {
    const char *isa; /* "cuda": the GPU                                */
    bool bf16;       /* products of bf16 by the matrix library, where it can */
};
bool check_device_get(struct check_device *ret_device, size_t idx);
struct check_device check_device_first(void);
/* To be main()'s first: 77 where HEADRACE_DEVICE names a device that is not there, else 0. */
int check_missing(void);
/* An operation was asked for; after this its results are there. */
void check_done(struct hr_gpu *gpu, int rc);
struct hr_gpu *check_device_open(const struct check_device *device, enum hr_dtype act,
                                 unsigned n_threads);
/* What it opened. */
void check_device_close(struct hr_gpu **gpu);

#endif /* HR_TESTS_GPU_CHECK_H */
