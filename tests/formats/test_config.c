/* SPDX-License-Identifier: Apache-2.0 */
/* test_config.c -- config.json: the published ones, small ones of tests, and other models'. */
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "formats/formats.h"

/* Of a copy that ends where the text does. */
static int parse(struct hr_config *ret_config, const char *json, struct hr_error *err)
{
    const size_t bytes = strlen(json);
    char *copy = malloc(bytes ? bytes : 1);
    int r;

    assert_non_null(copy);
    memcpy(copy, json, bytes);
    r = hr_config_parse(ret_config, copy, bytes, "config.json", err);
    free(copy);
    return r;
}

static void expect(int code, const char *json, const char *word)
{
    struct hr_config config = {.num_layers = 77};
    struct hr_error err = {0};
    const int r = parse(&config, json, &err);

    if (r != code || !strstr(err.message, word) || !strstr(err.message, "config.json: "))
        fail_msg("%s: %d, expected %d and \"%s\"; got: %s", json, r, code, word, err.message);
    assert_int_equal(config.num_layers, 77);
}

static void test_published(void **state)
{
    struct hr_config config;

    (void) state;
    assert_int_equal(parse(&config,
                           "{\n  \"_class_name\": \"QwenImageTransformer2DModel\",\n"
                           "  \"_diffusers_version\": \"0.34.0.dev0\",\n"
                           "  \"attention_head_dim\": 128,\n"
                           "  \"axes_dims_rope\": [\n    16,\n    56,\n    56\n  ],\n"
                           "  \"guidance_embeds\": false,\n  \"in_channels\": 64,\n"
                           "  \"joint_attention_dim\": 3584,\n  \"num_attention_heads\": 24,\n"
                           "  \"num_layers\": 60,\n  \"out_channels\": 16,\n"
                           "  \"patch_size\": 2,\n  \"pooled_projection_dim\": 768\n}\n",
                           NULL),
                     0);
    assert_int_equal(config.num_layers, 60);
    assert_int_equal(config.num_attention_heads, 24);
    assert_int_equal(config.attention_head_dim, 128);
    assert_int_equal(config.in_channels, 64);
    assert_int_equal(config.out_channels, 16);
    assert_int_equal(config.patch_size, 2);
    assert_int_equal(config.joint_attention_dim, 3584);
    assert_int_equal(config.axes_dims_rope[0], 16);
    assert_int_equal(config.axes_dims_rope[2], 56);
    assert_false(config.zero_cond_t || config.use_additional_t_cond || config.use_layer3d_rope);
    assert_int_equal(parse(&config,
                           "{\"use_additional_t_cond\":true,\"use_layer3d_rope\":true,"
                           "\"zero_cond_t\":false}",
                           NULL),
                     0);
    assert_true(config.use_additional_t_cond && config.use_layer3d_rope);
    assert_false(config.zero_cond_t);
    assert_int_equal(config.num_layers, 0);
}

static void test_unknown_keys(void **state)
{
    struct hr_config config;

    (void) state;
    assert_int_equal(parse(&config,
                           "{\"a\":null,\"b\":1.5,\"c\":-0,\"d\":\"x\",\"e\":[1,{\"f\":[]}],"
                           "\"g\":18446744073709551616,\"pooled_projection_dim\":null,"
                           "\"num_layers\":2,\"num_attention_heads\":2,\"joint_attention_dim\":96,"
                           "\"zero_cond_t\":true}",
                           NULL),
                     0);
    assert_int_equal(config.num_layers, 2);
    assert_int_equal(config.joint_attention_dim, 96);
    assert_true(config.zero_cond_t);
    assert_int_equal(parse(&config, "{}", NULL), 0);
}

static void test_malformed(void **state)
{
    (void) state;
    expect(-EBADMSG, "", "the text is empty");
    expect(-EBADMSG, "  \n", "the text is empty");
    expect(-EBADMSG, "[]", "expected an object");
    expect(-EBADMSG, "12", "expected an object");
    expect(-EBADMSG, "{", "ends inside");
    expect(-EBADMSG, "{} {}", "malformed JSON at byte");
    expect(-EBADMSG, "{\"a\":1,\"\\u0061\":2}", "duplicate");
    expect(-EBADMSG, "{\"a\":\"\\u0000\"}", "u0000");
    expect(-EBADMSG, "{\"a\":\"\xc3\"}", "unable to decode");
    expect(-EBADMSG, "{\"a\":[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[0]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]}",
           "more than 32 brackets inside one another");
}

static void test_numbers(void **state)
{
    static const char *const no_integer[] = {
        "null", "\"60\"", "60.0", "6e1", "-1", "-0", "true", "[60]", "9223372036854775808"};
    static const char *const keys[] = {
        "num_layers",   "num_attention_heads", "attention_head_dim", "in_channels",
        "out_channels", "patch_size",          "joint_attention_dim"};
    char json[200], word[100];

    (void) state;
    for (unsigned k = 0; k < HR_ARRAY_SIZE(keys); k++) {
        for (unsigned i = 0; i < HR_ARRAY_SIZE(no_integer); i++) {
            snprintf(json, sizeof(json), "{\"%s\":%s}", keys[k], no_integer[i]);
            snprintf(word, sizeof(word), "%s is no integer; ", keys[k]);
            expect(-EBADMSG, json, word);
        }
    }
    expect(-EBADMSG, "{\"num_layers\":\"0\"}", "num_layers is no integer; 1..10000 is allowed");
    expect(-EBADMSG, "{\"patch_size\":2.0}", "patch_size is no integer; only 2 is supported");
    expect(-EBADMSG, "{\"num_layers\":0}", "num_layers is 0; 1..10000 is allowed");
    expect(-EBADMSG, "{\"num_layers\":10001}", "num_layers is 10001;");
    expect(-EBADMSG, "{\"num_layers\":4294967297}", "num_layers is 4294967297;");
    expect(-EBADMSG, "{\"num_attention_heads\":1025}", "num_attention_heads is 1025; 1..1024");
    expect(-EBADMSG, "{\"joint_attention_dim\":65537}", "joint_attention_dim is 65537; 1..65536");
    expect(-EBADMSG, "{\"joint_attention_dim\":0}", "joint_attention_dim is 0");
    expect(-EBADMSG, "{\"axes_dims_rope\":[16,56]}", "axes_dims_rope is no array of 3");
    expect(-EBADMSG, "{\"axes_dims_rope\":128}", "axes_dims_rope is no array of 3");
    expect(-EBADMSG, "{\"axes_dims_rope\":[16,56,56.0]}", "axes_dims_rope is no array of 3");
    expect(-EBADMSG, "{\"zero_cond_t\":1}", "zero_cond_t is neither true nor false");
    expect(-EBADMSG, "{\"use_layer3d_rope\":null}", "use_layer3d_rope is neither");
    expect(-EBADMSG, "{\"use_additional_t_cond\":\"true\"}", "use_additional_t_cond is neither");
    expect(-EBADMSG, "{\"guidance_embeds\":0}", "guidance_embeds is neither");
    expect(-EBADMSG, "{\"_class_name\":5}", "_class_name is no string");
}

static void test_other_models(void **state)
{
    (void) state;
    expect(-EOPNOTSUPP, "{\"_class_name\":\"FluxTransformer2DModel\"}",
           "the model is a FluxTransformer2DModel; only QwenImageTransformer2DModel");
    expect(-EOPNOTSUPP, "{\"attention_head_dim\":64}", "attention_head_dim is 64; only 128");
    expect(-EOPNOTSUPP, "{\"in_channels\":16}", "in_channels is 16; only 64");
    expect(-EOPNOTSUPP, "{\"out_channels\":64}", "out_channels is 64; only 16");
    expect(-EOPNOTSUPP, "{\"patch_size\":1}", "patch_size is 1; only 2");
    expect(-EOPNOTSUPP, "{\"axes_dims_rope\":[16,56,55]}", "axes_dims_rope has 55 at place 2");
    expect(-EOPNOTSUPP, "{\"guidance_embeds\":true}", "guidance_embeds is true");
}

static void test_too_long(void **state)
{
    struct hr_config config;
    struct hr_error err = {0};

    (void) state;
    assert_int_equal(hr_config_parse(&config, "", (1u << 20) + 1, "f", &err), -EBADMSG);
    assert_non_null(strstr(err.message, "f: a config of 1048577 bytes"));
}

static void test_build(void **state)
{
    const struct hr_config configs[] = {
        {.num_layers = 60,
         .num_attention_heads = 24,
         .attention_head_dim = 128,
         .in_channels = 64,
         .out_channels = 16,
         .patch_size = 2,
         .joint_attention_dim = 3584,
         .axes_dims_rope = {16, 56, 56},
         .zero_cond_t = true},
        {.num_layers = 2, .use_additional_t_cond = true, .use_layer3d_rope = true},
        {0},
    };

    (void) state;
    for (unsigned i = 0; i < HR_ARRAY_SIZE(configs); i++) {
        char *text = hr_config_build(&configs[i]);
        struct hr_config config;
        char *text_again;

        assert_non_null(text);
        assert_non_null(strstr(text, "\"_class_name\": \"QwenImageTransformer2DModel\""));
        assert_int_equal(parse(&config, text, NULL), 0);
        text_again = hr_config_build(&config);
        assert_string_equal(text_again, text);
        free(text_again);
        free(text);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_published),    cmocka_unit_test(test_unknown_keys),
        cmocka_unit_test(test_malformed),    cmocka_unit_test(test_numbers),
        cmocka_unit_test(test_other_models), cmocka_unit_test(test_too_long),
        cmocka_unit_test(test_build),
    };

    return cmocka_run_group_tests_name("config", tests, NULL, NULL);
}
