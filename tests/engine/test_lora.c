/* SPDX-License-Identifier: Apache-2.0 */
/* test_lora.c -- LoRA files of every family of keys, alphas, and what is refused. */
#include <errno.h>
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include <cmocka.h>

#include "engine/checkpoint.h"
#include "engine/lora.h"
#include "scratch.h"
#include "small_file.h"

#define TO_Q "transformer_blocks.0.attn.to_q"
#define UP_0 "transformer_blocks.10.img_mlp.net.0.proj"

static const struct hr_lora_module modules[] = {
    {"img_in", 8, 4}, {TO_Q, 6, 6}, {UP_0, 24, 6}, {"transformer_blocks.1.attn.to_out.0", 6, 6}};

static int open_one(struct hr_lora **lora, const char *path, float strength, struct hr_error *err)
{
    const struct hr_lora_file file = {path, strength};

    return hr_lora_open(lora, &file, 1, modules, HR_ARRAY_SIZE(modules), err);
}

static int open_tensors(struct hr_lora **lora, const struct small_tensor *tensors, size_t n,
                        const char *metadata, struct hr_error *err)
{
    small_file(scratch("lora.safetensors"), tensors, n, metadata);
    return open_one(lora, scratch("lora.safetensors"), 0.5f, err);
}

static void assert_term(const struct hr_lora *lora, uint32_t module_idx, uint32_t rank, float scale)
{
    uint32_t n;
    const struct hr_lora_term *term = hr_lora_terms(lora, module_idx, &n);

    assert_int_equal(n, 1);
    assert_int_equal(term->rank, rank);
    assert_int_equal(term->down->shape[0], rank);
    assert_int_equal(term->down->shape[1], modules[module_idx].n_in);
    assert_int_equal(term->up->shape[0], modules[module_idx].n_out);
    assert_int_equal(term->up->shape[1], rank);
    if (term->scale != scale)
        fail_msg("scale %g, want %g", (double) term->scale, (double) scale);
}

/* ---- families ----------------------------------------------------------------------- */

static void test_families(void **state)
{
    static const struct {
        const char *prefix, *down, *up;
        bool flat;
    } families[] = {
        {"", ".lora_A.weight", ".lora_B.weight", false},
        {"", ".lora_A.default.weight", ".lora_B.default.weight", false},
        {"transformer.", ".lora_A.weight", ".lora_B.weight", false},
        {"diffusion_model.", ".lora_A.weight", ".lora_B.weight", false},
        {"model.diffusion_model.", ".lora_A.weight", ".lora_B.weight", false},
        {"pipe.dit.", ".lora_A.default.weight", ".lora_B.default.weight", false},
        {"base_model.model.transformer.", ".lora_A.weight", ".lora_B.weight", false},
        {"", ".lora_down.weight", ".lora_up.weight", false},
        {"transformer.", ".lora.down.weight", ".lora.up.weight", false},
        {"lora_unet_", ".lora_down.weight", ".lora_up.weight", true},
    };

    (void) state;
    for (size_t i = 0; i < HR_ARRAY_SIZE(families); i++) {
        for (int with_alpha = 0; with_alpha < 2; with_alpha++) {
            char names[6][256], path[2][64] = {TO_Q, UP_0};
            struct hr_lora *lora;

            for (size_t m = 0; m < 2; m++) {
                for (char *p = path[m]; *p && families[i].flat; p++)
                    *p = *p == '.' ? '_' : *p;
                snprintf(names[3 * m], 256, "%s%s%s", families[i].prefix, path[m],
                         families[i].down);
                snprintf(names[3 * m + 1], 256, "%s%s%s", families[i].prefix, path[m],
                         families[i].up);
                snprintf(names[3 * m + 2], 256, "%s%s.alpha", families[i].prefix, path[m]);
            }
            const struct small_tensor tensors[] = {
                {names[0], HR_DTYPE_BF16, "2,6", 1.0f, NULL},
                {names[1], HR_DTYPE_BF16, "6,2", 1.0f, NULL},
                {names[3], HR_DTYPE_F16, "4,6", 1.0f, NULL},
                {names[4], HR_DTYPE_F32, "24,4", 1.0f, NULL},
                {names[2], HR_DTYPE_F32, "", 0.25f, NULL},
                {names[5], HR_DTYPE_BF16, "1", 8.0f, NULL},
            };

            assert_works(open_tensors(&lora, tensors, with_alpha ? 6 : 4, NULL, &err));
            assert_term(lora, 1, 2, with_alpha ? 0.5f * 0.25f / 2.0f : 0.5f);
            assert_term(lora, 2, 4, with_alpha ? 0.5f * 8.0f / 4.0f : 0.5f);
            assert_int_equal(hr_lora_get_report(lora, 0)->n_modules, 2);
            assert_int_equal(hr_lora_get_report(lora, 0)->n_ignored, 0);
            hr_lora_close(&lora);
            assert_null(lora);
            hr_lora_close(&lora);
        }
    }
}

#define PAIR(module, r)                                           \
    {module ".lora_A.weight", HR_DTYPE_F32, r ",6", 1.0f, NULL},  \
    {                                                             \
        module ".lora_B.weight", HR_DTYPE_F32, "6," r, 1.0f, NULL \
    }

/* Alpha in the header's metadata, as diffusers writes it. */
static void test_metadata(void **state)
{
#define TEXT(json) "{\"format\":\"pt\",\"lora_adapter_metadata\":\"{" json "}\"}"
    static const struct {
        const char *metadata;
        float scale;
    } good[] = {
        {"{\"format\":\"pt\"}", 0.5f},
        {TEXT("\\\"transformer.lora_alpha\\\": 8, \\\"transformer.r\\\": 4"), 1.0f},
        {TEXT("\\\"lora_alpha\\\": 2.0"), 0.25f},
        {TEXT("\\\"lora_alpha\\\": 8, \\\"use_rslora\\\": true"), 2.0f},
        {TEXT("\\\"transformer.lora_alpha\\\": 8, \\\"transformer.alpha_pattern\\\": {\\\"o_q\\\": "
              "1, "
              "\\\"attn.to_q\\\": 16}"),
         2.0f},
    };
    static const struct {
        const char *metadata;
        int code;
        const char *words;
    } bad[] = {
        {TEXT("\\\"lora_alpha\\\": 1"
              "\\\""),
         -EBADMSG, "lora_adapter_metadata: malformed JSON at byte"},
        {"{\"lora_adapter_metadata\":\"[1]\"}", -EBADMSG, "no JSON object"},
        {TEXT("\\\"lora_alpha\\\": \\\"8\\\""), -EBADMSG, "lora_alpha is no number"},
        {TEXT("\\\"use_dora\\\": true"), -EOPNOTSUPP, "DoRA"},
        {TEXT("\\\"alpha_pattern\\\": 3"), -EBADMSG, "no object"},
        {TEXT("\\\"alpha_pattern\\\": {\\\"to_.*\\\": 3}"), -EOPNOTSUPP, "regular expression"},
        {TEXT("\\\"alpha_pattern\\\": {\\\"to_q\\\": null}"), -EBADMSG, "no number"},
        {TEXT("\\\"lora_alpha\\\": 1e300"), -EBADMSG, "finite"},
    };
    static const struct small_tensor tensors[] = {PAIR("transformer." TO_Q, "4")};
    struct hr_lora *lora = NULL;

    (void) state;
    for (size_t i = 0; i < HR_ARRAY_SIZE(good); i++) {
        assert_works(open_tensors(&lora, tensors, 2, good[i].metadata, &err));
        assert_term(lora, 1, 4, good[i].scale);
        hr_lora_close(&lora);
    }
    for (size_t i = 0; i < HR_ARRAY_SIZE(bad); i++)
        assert_fails(open_tensors(&lora, tensors, 2, bad[i].metadata, &err), bad[i].code,
                     bad[i].words);
    assert_null(lora);
}

/* ---- what does not fit -------------------------------------------------------------- */

static void test_ignored(void **state)
{
    static const struct small_tensor tensors[] = {
        PAIR(TO_Q, "1"),
        PAIR("transformer_blocks.0.attn.to_z", "1"),
        PAIR("text_encoder.q", "1"),
        {"x.alpha", HR_DTYPE_F32, "", 1.0f, NULL},
        {TO_Q ".diff_b", HR_DTYPE_F32, "6", 1.0f, NULL},
    };
    const struct hr_lora_report *report;
    struct hr_lora *lora;

    (void) state;
    assert_works(open_tensors(&lora, tensors, HR_ARRAY_SIZE(tensors), NULL, &err));
    report = hr_lora_get_report(lora, 0);
    assert_int_equal(report->n_modules, 1);
    assert_int_equal(report->n_ignored, 6);
    assert_string_equal(report->ignored[0], "text_encoder.q.lora_A.weight");
    assert_non_null(report->ignored[HR_LORA_NAMES_SHOWN - 1]);
    hr_lora_close(&lora);
}

/* Several files at once, in their order. */
static void test_several(void **state)
{
    static const struct small_tensor a[] = {PAIR(TO_Q, "1")};
    static const struct small_tensor b[] = {PAIR(TO_Q, "3"),
                                            PAIR("transformer_blocks.1.attn.to_out.0", "2")};
    struct hr_lora_file files[HR_ARRAY_SIZE(modules) + 5] = {{scratch("a.safetensors"), 1.0f},
                                                             {scratch("b.safetensors"), -2.0f}};
    const struct hr_lora_term *terms;
    struct hr_lora *lora = NULL;
    float value[3 * 6];
    uint32_t n;

    (void) state;
    small_file(files[0].path, a, 2, NULL);
    small_file(files[1].path, b, 4, NULL);
    assert_works(hr_lora_open(&lora, files, 2, modules, HR_ARRAY_SIZE(modules), &err));
    terms = hr_lora_terms(lora, 1, &n);
    assert_int_equal(n, 2);
    assert_true(terms[0].file_idx == 0 && terms[0].rank == 1 && terms[0].scale == 1.0f);
    assert_true(terms[1].file_idx == 1 && terms[1].rank == 3 && terms[1].scale == -2.0f);
    assert_works(
        hr_checkpoint_read_f32(hr_lora_checkpoint(lora, 1), terms[1].down, value, 18, &err));
    assert_true(value[17] == 1.0f);
    assert_term(lora, 3, 2, -2.0f);
    hr_lora_terms(lora, 0, &n);
    assert_int_equal(n, 0);
    hr_lora_close(&lora);
    for (size_t i = 2; i < HR_ARRAY_SIZE(files); i++)
        files[i] = files[0];
    assert_fails(hr_lora_open(&lora, files, 9, modules, HR_ARRAY_SIZE(modules), &err), -EINVAL,
                 "9 LoRA files: 1 to 8");
    assert_fails(hr_lora_open(&lora, files, 0, modules, HR_ARRAY_SIZE(modules), &err), -EINVAL,
                 "1 to");
}

#define A(name)                                    \
    {                                              \
        TO_Q name, HR_DTYPE_F32, "2,6", 1.0f, NULL \
    }
#define B(name)                                    \
    {                                              \
        TO_Q name, HR_DTYPE_F32, "6,2", 1.0f, NULL \
    }
static const struct {
    struct small_tensor tensors[4];
    int code;
    const char *words;
} refused[] = {
    {{A(".lora_A.weight")}, -EBADMSG, TO_Q " lacks its lora_B"},
    {{B(".lora_B.weight")}, -EBADMSG, TO_Q " lacks its lora_A"},
    {{{TO_Q ".alpha", HR_DTYPE_F32, "", 1.0f, NULL}}, -EBADMSG, "lacks its lora_A"},
    {{A(".lora_A.weight"), A(".lora_down.weight")}, -EBADMSG, "one already"},
    {{A(".lora_A.weight"), A(".lora_A.default.weight")}, -EBADMSG, "one already"},
    {{A(".lora_A.weight"), {TO_Q ".lora_B.weight", HR_DTYPE_F32, "6,3", 1.0f, NULL}},
     -EBADMSG,
     "expected [out, rank] = [6, 2]"},
    {{{TO_Q ".lora_A.weight", HR_DTYPE_F32, "2,5", 1.0f, NULL}, B(".lora_B.weight")},
     -EBADMSG,
     "expected [rank, in] = [2, 6]"},
    {{{TO_Q ".lora_A.weight", HR_DTYPE_F32, "12", 1.0f, NULL}, B(".lora_B.weight")},
     -EBADMSG,
     "wrong shape"},
    {{{TO_Q ".lora_A.weight", HR_DTYPE_F32, "0,6", 1.0f, NULL},
      {TO_Q ".lora_B.weight", HR_DTYPE_F32, "6,0", 1.0f, NULL}},
     -EBADMSG,
     "rank 0; expected 1 to 4096"},
    {{{TO_Q ".lora_A.weight", HR_DTYPE_F16, "4097,6", 1.0f, NULL},
      {TO_Q ".lora_B.weight", HR_DTYPE_F16, "6,4097", 1.0f, NULL}},
     -EBADMSG,
     "rank 4097"},
    {{A(".lora_A.weight"), {TO_Q ".lora_B.weight", HR_DTYPE_I8, "6,2", 0.0f, NULL}},
     -EOPNOTSUPP,
     "is I8"},
    {{A(".lora_A.weight"), B(".lora_B.weight"), {TO_Q ".alpha", HR_DTYPE_F32, "2", 1.0f, NULL}},
     -EBADMSG,
     "one number"},
    {{A(".lora_A.weight"), B(".lora_B.weight"), {TO_Q ".alpha", HR_DTYPE_I64, "", 0.0f, NULL}},
     -EOPNOTSUPP,
     "I64"},
    {{A(".lora_A.weight"), B(".lora_B.weight"), {TO_Q ".alpha", HR_DTYPE_F32, "", NAN, NULL}},
     -EBADMSG,
     "finite"},
    {{A(".lora_A.weight"), B(".lora_B.weight"), A(".dora_scale")}, -EOPNOTSUPP, "DoRA"},
    {{A(".lora_A.weight"), B(".lora_B.weight"), A(".lora_magnitude_vector.weight")},
     -EOPNOTSUPP,
     "DoRA"},
    {{A(".lokr_w1")}, -EOPNOTSUPP, "LoKr"},
    {{A(".hada_w1_a")}, -EOPNOTSUPP, "LoHa"},
    {{A(".lora_mid.weight")}, -EOPNOTSUPP, "lora_mid"},
    {{PAIR("double_blocks.0.q", "1")},
     -ENOENT,
     "none of its 2 tensors fits the model: it has \"double_blocks.0.q.lora_A.weight\", "
     "expected is \"img_in.lora_A.weight\""},
    {{{.name = NULL}}, -ENOENT, "none of its 0 tensors"},
};

static void test_refused(void **state)
{
    struct hr_lora *lora = NULL;

    (void) state;
    for (size_t i = 0; i < HR_ARRAY_SIZE(refused); i++) {
        size_t n = 0;

        while (n < HR_ARRAY_SIZE(refused[i].tensors) && refused[i].tensors[n].name)
            n++;
        assert_fails(open_tensors(&lora, refused[i].tensors, n, NULL, &err), refused[i].code,
                     refused[i].words);
    }
    assert_fails(open_one(&lora, scratch("none.safetensors"), 1.0f, &err), -ENOENT, "none.safe");
    assert_fails(open_one(&lora, "x\n", NAN, &err), -EINVAL, "x\\x0a: the strength");
    assert_fails(open_one(&lora, "x", INFINITY, &err), -EINVAL, "strength");
    assert_null(lora);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_families), cmocka_unit_test(test_metadata),
        cmocka_unit_test(test_ignored),  cmocka_unit_test(test_several),
        cmocka_unit_test(test_refused),
    };

    return cmocka_run_group_tests(tests, scratch_setup, scratch_teardown);
}
