/* SPDX-License-Identifier: Apache-2.0 */
/* test_dnn.c -- attention by cuDNN: which library is taken, which engine, what is refused and in
 * which words. Over the library of dnn_fake/, on the played device; what is computed is compared in
 * test_attention.c.
 */
#include <dlfcn.h>
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "gpu/cuda_dnn.h"
#include "tests/gpu/check.h"

static const struct hr_gpu_params by_dnn = {
    .act = HR_DTYPE_BF16, .arena_bytes = 1 << 20, .attention = HR_ATTENTION_CUDNN};

/* What is wrong with the library from now on; NULL: nothing. */
static void set_wrong(const char *word)
{
    if (word)
        setenv("HEADRACE_TEST_CUDNN", word, 1);
    else
        unsetenv("HEADRACE_TEST_CUDNN");
}

static int ask(const char *name)
{
    void *library = dlopen("libcudnn.so.9", RTLD_NOW | RTLD_NOLOAD);
    int (*fn)(void) = NULL;

    assert_non_null(library);
    *(void **) (void *) &fn = dlsym(library, name);
    assert_non_null(fn);
    const int ret = fn();
    dlclose(library);
    return ret;
}

static void check_refused(const struct hr_gpu_params *params, const char *words)
{
    struct hr_gpu *gpu = NULL;
    struct hr_error err = {0};

    assert_int_equal(hr_gpu_open(&gpu, params, &err), -ENODEV);
    assert_null(gpu);
    if (!strstr(err.message, words) || strchr(err.message, '\n'))
        fail_msg("\"%s\" does not say \"%s\" in one line", err.message, words);
}

static struct hr_gpu *open_by_dnn(void)
{
    struct hr_gpu *gpu = NULL;
    struct hr_error err = {0};

    set_wrong(NULL);
    if (hr_gpu_open(&gpu, &by_dnn, &err) < 0)
        fail_msg("open: %s", err.message);
    return gpu;
}

/* ---- which library ------------------------------------------------------------------------- */

/* Before any that loads: what is loaded stays. */
static void test_libraries(void **state)
{
    struct hr_gpu_params params = by_dnn;

    (void) state;
    set_wrong("old");
    check_refused(&params, "is cuDNN 9.10.2, and attention needs 9.13.1; install a newer one, or "
                           "use --attention own");
    check_refused(&params, "libcudnn.so.9 is cuDNN");
    set_wrong("cuda12");
    check_refused(&params, "cuDNN is that for CUDA 12, whose cuBLASLt is not found");
    set_wrong("create");
    check_refused(&params, "cuda: cuDNN cannot be set up: CUDNN_STATUS_NOT_SUPPORTED: no device; "
                           "use --attention own");
    set_wrong(NULL);
    params.act = HR_DTYPE_F32;
    check_refused(&params, "takes bf16 alone; use --precision bf16 or --attention own");
}

/* Run where there is no library. */
static void test_absent(void **state)
{
    struct hr_gpu_params params = by_dnn;

    (void) state;
    if (dlopen("libcudnn.so.9", RTLD_NOW))
        skip();
    check_refused(&params, "cuda: libcudnn.so.9 is not found; install pip's nvidia-cudnn-cu13 (or "
                           "-cu12) and name its folder in LD_LIBRARY_PATH, or use --attention own");
    unsetenv("HEADRACE_DEVICE"); /* nothing is chosen instead */
    check_refused(&params, "attention by cuDNN needs an NVIDIA GPU, or use --attention own: cuda: "
                           "libcudnn.so.9 is not found");
    params.device = "auto";
    check_refused(&params, "or use --attention own: cuda: libcudnn.so.9");
    params.attention = HR_ATTENTION_OWN;
    struct hr_gpu *gpu = NULL;

    assert_int_equal(hr_gpu_open(&gpu, &params, NULL), 0);
    assert_null(strstr(hr_gpu_name(gpu), "cuDNN"));
    hr_gpu_close(&gpu);
}

/* Run where another library has the name. */
static void test_other(void **state)
{
    (void) state;
    check_refused(&by_dnn, "cuda: cuDNN has no cudnnGetCudartVersion; version 9 is needed; "
                           "install pip's nvidia-cudnn-cu13 (or -cu12), or use --attention own");
}

static void test_devices(void **state)
{
    struct hr_gpu_params params = by_dnn;
    struct hr_gpu *gpu = open_by_dnn();

    (void) state;
    assert_non_null(strstr(hr_gpu_name(gpu), "(played, sm_80, cuBLASLt 13.1, cuDNN 9.28.1)"));
    hr_gpu_close(&gpu);
    params.device = "cpu";
    check_refused(
        &params,
        "attention by cuDNN needs an NVIDIA GPU, or use --attention own: the device is cpu");
    params.device = "emulated";
    check_refused(&params, ": the device is emulated");
}

/* ---- plans --------------------------------------------------------------------------------- */

static void on_log(void *user, enum hr_log_level level, const char *message)
{
    if (level == HR_LOG_ERROR)
        snprintf((char *) user, 400, "%s", message);
}

/* What is said when a kernel is asked for, and when one runs that was not asked for before. */
static void test_refusals(void **state)
{
    static const struct {
        const char *wrong, *why;
    } cases[] = {
        {"operation", "CUDNN_STATUS_NOT_SUPPORTED: not today"},
        {"reason", "CUDNN_STATUS_NOT_SUPPORTED: two"},
        {"none", "it has no engine for this GPU"},
        {"random", "its engine is not deterministic, or sums in less than f32"},
        {"large", "a workspace of 1024 MiB is needed, and there are 16"},
        {"compile", "CUDNN_STATUS_INTERNAL_ERROR_COMPILATION_FAILED: compilationResult != "},
    };
    struct hr_gpu *gpu = open_by_dnn();
    char line[400], want[400];

    (void) state;
    unsigned char *x = hr_gpu_alloc(gpu, 65536);
    const struct hr_attention p = {
        .out = x, .q = x + 16384, .k = x + 32768, .v = x + 49152, .n_q = 3, .n_k = 5, .n_heads = 2};

    for (size_t i = 0; i < HR_ARRAY_SIZE(cases); i++) {
        struct hr_error err = {0};

        set_wrong(cases[i].wrong);
        assert_int_equal(hr_gpu_attention_prepare(gpu, &p, &err), -ENOTSUP);
        snprintf(want, sizeof(want),
                 "cuda: cuDNN does not compute attention of 3 queries, 5 keys and 2 heads: %s",
                 cases[i].why);
        if (strncmp(err.message, want, strlen(want)) != 0 ||
            !strstr(err.message, "; use --attention own") || strchr(err.message, '\n'))
            fail_msg("\"%s\", not \"%s\"", err.message, want);
        hr_log_set(on_log, line, HR_LOG_ERROR);
        assert_int_equal(hr_gpu_attention(gpu, &p), -ENOTSUP);
        hr_log_set(NULL, NULL, HR_LOG_WARN);
        assert_string_equal(line, err.message);
        assert_int_equal(ask("hr_fake_live"), 0);
    }
    set_wrong("execute");
    hr_log_set(on_log, line, HR_LOG_ERROR);
    assert_int_equal(hr_gpu_attention(gpu, &p), -EIO);
    hr_log_set(NULL, NULL, HR_LOG_WARN);
    assert_non_null(strstr(line, "cuda: cuDNN: attention: CUDNN_STATUS_EXECUTION_FAILED"));
    set_wrong(NULL);
    check_done(gpu, hr_gpu_attention(gpu, &p)); /* and the device works on */
    hr_gpu_close(&gpu);
    assert_int_equal(ask("hr_fake_live"), 0);
}

/* What the library takes for itself counts, but only where it is used. */
static void test_allowances(void **state)
{
    struct hr_gpu_params params = by_dnn;
    struct hr_gpu_part parts[HR_GPU_PARTS_MAX];
    const uint64_t host_bytes = hr_gpu_scratch_bytes(&params);
    const uint32_t n = hr_gpu_device_parts(&params, parts);
    uint64_t bytes, own_bytes, tight_bytes;

    (void) state;
    assert_string_equal(parts[n - 1].name, "cuDNN");
    assert_int_equal(hr_gpu_device_bytes(&params, &bytes, NULL), 0);
    params.vram_bytes = bytes - HR_MIB; /* slots shrink to fit */
    assert_int_equal(hr_gpu_device_bytes(&params, &tight_bytes, NULL), 0);
    assert_int_equal(tight_bytes, params.vram_bytes);
    params.vram_bytes = 0;
    params.attention = HR_ATTENTION_OWN;
    assert_int_equal(hr_gpu_device_parts(&params, parts), n - 1);
    assert_int_equal(hr_gpu_device_bytes(&params, &own_bytes, NULL), 0);
    assert_true(own_bytes < bytes);
    assert_int_equal(host_bytes - hr_gpu_scratch_bytes(&params), HR_DNN_HOST_BYTES);
}

/* A shape is compiled once, and again only after 64 others; nothing is left behind. */
static void test_kept(void **state)
{
    enum { PLANS = 64 };
    struct hr_gpu *gpu = open_by_dnn();
    struct hr_attention p = {.n_k = 7, .n_heads = 1};
    struct hr_error err = {0};
    const int before = ask("hr_fake_compiled");

    /* The second engine is compiled as well, before its workspace is known. */
    (void) state;
    for (int turn = 0; turn < 2; turn++)
        for (p.n_q = 1; p.n_q <= PLANS; p.n_q++)
            assert_int_equal(hr_gpu_attention_prepare(gpu, &p, &err), 0);
    assert_int_equal(ask("hr_fake_compiled") - before, 2 * PLANS);
    const int live = ask("hr_fake_live");

    assert_int_equal(hr_gpu_attention_prepare(gpu, &p, &err), 0);
    assert_int_equal(ask("hr_fake_compiled") - before, 2 * PLANS + 2);
    assert_int_equal(ask("hr_fake_live"), live);
    hr_gpu_close(&gpu);
    assert_int_equal(ask("hr_fake_live"), 0);
}

/* A device that is described takes no handle. */
static void test_described(void **state)
{
    const struct hr_dnn_shape shape = {.n_q = 4, .n_k = 9, .n_heads = 3};
    struct hr_dnn *dnn = NULL;
    struct hr_error err = {0};

    (void) state;
    set_wrong(NULL);
    assert_int_equal(hr_dnn_open_described(&dnn, 0, "sm_80", &err), -ENODEV);
    assert_non_null(strstr(err.message, "cuDNN cannot be set up: CUDNN_STATUS_BAD_PARAM"));
    err = (struct hr_error){0};
    assert_int_equal(hr_dnn_open_described(&dnn, 4095, "{\"deviceVer\": 800}", &err), 0);
    assert_int_equal(hr_dnn_prepare(dnn, &shape, &err), -ENOTSUP);
    hr_dnn_close(&dnn);
    assert_int_equal(hr_dnn_open_described(&dnn, 4096, "{\"deviceVer\": 800}", &err), 0);
    assert_int_equal(hr_dnn_prepare(dnn, &shape, &err), 0);
    hr_dnn_close(&dnn);
    hr_dnn_close(&dnn);
    assert_int_equal(ask("hr_fake_live"), 0);
}

static void test_cancelled(void **state)
{
    atomic_int cancelled = 1;
    struct hr_gpu_params params = by_dnn;
    const struct hr_attention p = {.n_q = 1, .n_k = 1, .n_heads = 1};
    struct hr_gpu *gpu = NULL;
    struct hr_error err = {0};

    (void) state;
    params.cancelled = &cancelled;
    assert_int_equal(hr_gpu_open(&gpu, &params, NULL), 0);
    assert_int_equal(hr_gpu_attention_prepare(gpu, &p, &err), -ECANCELED);
    hr_gpu_close(&gpu);
}

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_libraries),  cmocka_unit_test(test_devices),
        cmocka_unit_test(test_refusals),   cmocka_unit_test(test_kept),
        cmocka_unit_test(test_described),  cmocka_unit_test(test_cancelled),
        cmocka_unit_test(test_allowances),
    };
    const struct CMUnitTest absent[] = {cmocka_unit_test(test_absent)};
    const struct CMUnitTest other[] = {cmocka_unit_test(test_other)};

    if (argc > 1 && strcmp(argv[1], "absent") == 0)
        return cmocka_run_group_tests(absent, NULL, NULL);
    if (argc > 1 && strcmp(argv[1], "other") == 0)
        return cmocka_run_group_tests(other, NULL, NULL);
    return cmocka_run_group_tests(tests, NULL, NULL);
}
