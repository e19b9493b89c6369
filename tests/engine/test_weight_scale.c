/* SPDX-License-Identifier: Apache-2.0 */
/* test_weight_scale.c -- the scales of fp8 weights in every form, and what is refused. */
#include <errno.h>
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include <cmocka.h>

#include "engine/checkpoint.h"
#include "engine/weight_scale.h"
#include "scratch.h"
#include "small_file.h"

enum { N_MAX = 4 };

#define W                                                 \
    {                                                     \
        "m.weight", HR_DTYPE_F8_E4M3, "4,128", 1.0f, NULL \
    }
#define W_52                                              \
    {                                                     \
        "m.weight", HR_DTYPE_F8_E5M2, "4,128", 1.0f, NULL \
    }
#define S(name, dtype, shape, value)               \
    {                                              \
        name, HR_DTYPE_##dtype, shape, value, NULL \
    }
#define E4M3 "{\"format\":\"float8_e4m3fn\"}"
#define QUANT(text, n)                              \
    {                                               \
        "m.comfy_quant", HR_DTYPE_U8, n, 0.0f, text \
    }
#define LAYERS(name, format)                                                                      \
    "{\"_quantization_metadata\":\"{\\\"format_version\\\":\\\"1.0\\\",\\\"layers\\\":{\\\"" name \
    "\\\":{\\\"format\\\":\\\"" format "\\\"}}}\"}"

struct sample {
    struct small_tensor tensors[N_MAX];
    const char *metadata;
    int code;
    const char *words; /* of the message */
    uint64_t n;        /* else what is expected */
    float value;
};

static int read_scale(const struct sample *sample, struct hr_weight_scale *ret_scale,
                      struct hr_error *err)
{
    const char *path = scratch("m.safetensors");
    const struct hr_checkpoint_params params = {&path, 1, NULL};
    struct hr_weight_scales *scales = NULL;
    struct hr_checkpoint *checkpoint;
    size_t n = 0;
    int r;

    while (n < N_MAX && sample->tensors[n].name)
        n++;
    small_file(path, sample->tensors, n, sample->metadata);
    r = hr_checkpoint_open(&checkpoint, &params, err);
    assert_int_equal(r, 0);
    r = hr_weight_scales_open(&scales, checkpoint, err);
    if (r == 0) {
        const struct hr_tensor *weight = hr_checkpoint_find(checkpoint, "m.weight");

        assert_non_null(weight);
        r = hr_weight_scale_read(scales, weight, ret_scale, err);
    }
    hr_weight_scales_close(&scales);
    assert_null(scales);
    hr_checkpoint_close(&checkpoint);
    return r;
}

static void test_good(void **state)
{
    static const struct sample good[] = {
        {.tensors = {W}},
        {.tensors = {W, S("scaled_fp8", F8_E4M3, "2", 0)}},
        {.tensors = {W, S("m.scale_weight", F32, "", 0.5f)}, .n = 1, .value = 0.5f},
        {.tensors = {W, S("m.scale_weight", F32, "1", 0.5f), S("m.scale_input", F32, "", NAN),
                     S("scaled_fp8", F32, "0", 0)},
         .n = 1,
         .value = 0.5f},
        {.tensors = {W_52, S("m.scale_weight", BF16, "4,1", 0.25f)}, .n = 4, .value = 0.25f},
        {.tensors = {W, S("m.weight_scale", F16, "4", 0.25f)}, .n = 4, .value = 0.25f},
        {.tensors = {W, S("m.weight_scale", F32, "1,1", 3.0f)}, .n = 1, .value = 3.0f},
        {.tensors = {W, S("m.weight_scale", F32, "", 3.0f), QUANT(E4M3, "26")},
         .n = 1,
         .value = 3.0f},
        {.tensors = {W_52, S("m.weight_scale", F32, "", 2.0f)},
         .metadata = LAYERS("m", "float8_e5m2"),
         .n = 1,
         .value = 2.0f},
        {.tensors = {S("model.diffusion_model.m.weight", F8_E4M3, "4,128", 1),
                     S("model.diffusion_model.m.weight_scale", F32, "", 2.0f),
                     S("model.diffusion_model.m.input_scale", F32, "", 2.0f)},
         .metadata = LAYERS("model.diffusion_model.m", "float8_e4m3fn"),
         .n = 1,
         .value = 2.0f},
        {.tensors = {W}, .metadata = LAYERS("other", "nvfp4")},
        {.tensors = {S("m.weight", BF16, "4,128", 1)}},
    };

    (void) state;
    for (size_t i = 0; i < HR_ARRAY_SIZE(good); i++) {
        struct hr_weight_scale scale;

        assert_works(read_scale(&good[i], &scale, &err));
        assert_int_equal(scale.n, good[i].n);
        for (uint64_t k = 0; k < scale.n; k++)
            assert_true(scale.values[k] == good[i].value);
        hr_weight_scale_uninit(&scale);
        assert_null(scale.values);
    }
}

static const struct sample refused[] = {
    {.tensors = {W, S("m.scale_weight", F32, "4,2,1", 1)},
     .code = -EOPNOTSUPP,
     .words = "m.scale_weight has the shape [4, 2, 1]: scales of blocks"},
    {.tensors = {W, S("m.weight_scale", F32, "4,2", 1)}, .code = -EOPNOTSUPP, .words = "blocks"},
    {.tensors = {W, S("m.weight_scale", F32, "3", 1)},
     .code = -EBADMSG,
     .words = "[3]; expected [], [1] or [4, 1]"},
    {.tensors = {W, S("m.weight_scale", F32, "0", 1)}, .code = -EBADMSG, .words = "expected []"},
    {.tensors = {W, S("m.weight_scale", F8_E8M0, "4,4", 1)}, .code = -EOPNOTSUPP, .words = "mxfp8"},
    {.tensors = {W, S("m.weight_scale", F8_E4M3, "", 1)},
     .code = -EOPNOTSUPP,
     .words = "is F8_E4M3; scales in"},
    {.tensors = {S("m.weight", U8, "4,64", 0), S("m.weight_scale", F8_E4M3, "4,8", 1),
                 S("m.weight_scale_2", F32, "", 1)},
     .code = -EOPNOTSUPP,
     .words = "m.weight is quantised as nvfp4"},
    {.tensors = {S("m.weight", I8, "4,128", 0), S("m.weight_scale", F32, "4,1", 1),
                 QUANT("{\"format\":\"int8_tensorwise\"}", "28")},
     .code = -EOPNOTSUPP,
     .words = "int8_tensorwise"},
    {.tensors = {S("m.weight", I8, "4,128", 0), S("m.weight_scale", F32, "4,1", 1),
                 QUANT("{\"format\":\"int8_tensorwise\",\"convrot\":true}", "43")},
     .code = -EOPNOTSUPP,
     .words = "convrot"},
    {.tensors = {S("m.weight", I8, "4,128", 0), S("m.weight_scale", F32, "4,1", 1)},
     .code = -EOPNOTSUPP,
     .words = "m.weight is I8 with a scale"},
    {.tensors = {W, S("m.weight_scale", F32, "", 1)},
     .metadata = LAYERS("m", "mxfp8"),
     .code = -EOPNOTSUPP,
     .words = "quantised as mxfp8"},
    {.tensors = {W, S("m.weight_scale", F32, "", 1)},
     .metadata = LAYERS("m", "float8_e5m2"),
     .code = -EBADMSG,
     .words = "is F8_E4M3, but is said to be float8_e5m2"},
    {.tensors = {W, QUANT(E4M3, "26")}, .code = -EBADMSG, .words = "weight_scale is missing"},
    {.tensors = {W, S("m.weight_scale", F32, "", 1), QUANT("{\"a\":1}", "7")},
     .code = -EBADMSG,
     .words = "names no format"},
    {.tensors = {W, S("m.weight_scale", F32, "", 1), QUANT("{", "1")},
     .code = -EBADMSG,
     .words = "m.comfy_quant: malformed JSON at byte"},
    {.tensors = {W, S("m.comfy_quant", F32, "", 1)},
     .code = -EBADMSG,
     .words = "expected a short U8"},
    {.tensors = {W},
     .metadata = "{\"_quantization_metadata\":\"[]\"}",
     .code = -EBADMSG,
     .words = "_quantization_metadata is no JSON object"},
    {.tensors = {W, S("m.weight_scale", F32, "", 1), S("m.scale_weight", F32, "", 1)},
     .code = -EBADMSG,
     .words = "both"},
    {.tensors = {W, S("m.weight_scale", F32, "", 0.0f)}, .code = -EBADMSG, .words = "[0] is 0"},
    {.tensors = {W, S("m.weight_scale", F32, "4", -1.0f)}, .code = -EBADMSG, .words = "[0] is -1"},
    {.tensors = {W, S("m.weight_scale", F32, "4", NAN)}, .code = -EBADMSG, .words = "nan"},
    {.tensors = {W, S("m.weight_scale", F16, "", INFINITY)}, .code = -EBADMSG, .words = "inf"},
};

static void test_refused(void **state)
{
    (void) state;
    for (size_t i = 0; i < HR_ARRAY_SIZE(refused); i++) {
        struct hr_weight_scale scale = {0};

        assert_fails(read_scale(&refused[i], &scale, &err), refused[i].code, refused[i].words);
        assert_null(scale.values);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_good),
        cmocka_unit_test(test_refused),
    };

    return cmocka_run_group_tests(tests, scratch_setup, scratch_teardown);
}
