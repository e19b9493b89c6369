/* SPDX-License-Identifier: Apache-2.0 */
/* test_synth.c -- the generator's published values, and the same values in every form of file. */
#include <errno.h>
#include <fcntl.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include <cmocka.h>

#include "engine/checkpoint.h"
#include "engine/synth.h"
#include "formats/formats.h"
#include "scratch.h"

enum { VALUES_MAX = 1 << 21 };

/* ---- values ------------------------------------------------------------------------- */

static void assert_values(const char *name, uint32_t rank, uint64_t n_in, double scale,
                          const double want[4])
{
    float got[4], one;

    hr_synth_values(got, name, 0, 4, rank, n_in, scale);
    for (uint64_t i = 0; i < 4; i++) {
        assert_true(got[i] > want[i] - 6e-7 && got[i] < want[i] + 6e-7);
        hr_synth_values(&one, name, i, 1, rank, n_in, scale);
        assert_true(one == got[i]);
    }
}

static void test_golden_values(void **state)
{
    (void) state;
    assert_int_equal(hr_synth_rule("img_in.weight", 2, 64).seed, 0x7e420534);
    assert_values("img_in.weight", 2, 64, 1,
                  (const double[]){0.909276, -0.075212, 0.923281, -0.485744});
    assert_values("img_in.weight", 2, 64, 0,
                  (const double[]){0.196864, -0.016284, 0.199896, -0.105167});
    assert_values("latent", 3, 10, 1.7,
                  (const double[]){-0.220036, 1.617611, -0.554635, -1.245932});
    assert_values("prompt", 2, 96, 3, (const double[]){-1.687438, -0.385448, -2.255079, 1.778087});
}

/* One of each rule of the value generator. */
static void test_rules(void **state)
{
    static const struct {
        const char *name;
        uint32_t rank;
        double scale, offset;
    } rules[] = {
        {"transformer_blocks.1.img_mod.1.weight", 2, 0.25, 0},
        {"transformer_blocks.1.txt_mod.1.bias", 1, 0.5, 0},
        {"norm_out.linear.weight", 2, 0.25, 0},
        {"norm_out.linear.bias", 1, 0.5, 0},
        {"proj_out.weight", 2, 0.5, 0},
        {"transformer_blocks.1.attn.to_q.bias", 1, 0.1, 0},
        {"transformer_blocks.1.attn.norm_q.weight", 1, 0.25, 1},
        {"txt_norm.weight", 1, 0.25, 1},
        {"time_text_embed.addition_t_embedding.weight", 2, 0.5, 0},
    };

    (void) state;
    for (size_t i = 0; i < HR_ARRAY_SIZE(rules); i++) {
        const struct hr_synth_rule rule = hr_synth_rule(rules[i].name, rules[i].rank, 12);

        assert_true(rule.scale == rules[i].scale && rule.offset == rules[i].offset);
    }
}

/* Any cut of a tensor gives the same values, for each dtype, at odd addresses. */
static void test_cuts(void **state)
{
    static const enum hr_dtype dtypes[] = {HR_DTYPE_F32, HR_DTYPE_F16, HR_DTYPE_BF16,
                                           HR_DTYPE_F8_E4M3, HR_DTYPE_F8_E5M2};
    const struct hr_synth_rule rule = hr_synth_rule("proj_out.weight", 2, 100);
    float values[1500];
    uint8_t whole[sizeof(values)], part[sizeof(values) + 1];

    (void) state;
    hr_synth_fill(values, HR_DTYPE_F32, &rule, 7, 1500);
    for (size_t d = 0; d < HR_ARRAY_SIZE(dtypes); d++) {
        const size_t element_bytes = hr_dtype_bits(dtypes[d]) / 8;

        hr_dtype_from_f32(whole, values, dtypes[d], 1500);
        for (uint64_t n = 0; n <= 995; n += 199) {
            memset(part, 0xa5, sizeof(part));
            hr_synth_fill(part + 1, dtypes[d], &rule, 7 + n / 2, n);
            assert_memory_equal(part + 1, whole + n / 2 * element_bytes, n * element_bytes);
            assert_int_equal(part[0], 0xa5);
            assert_int_equal(part[1 + n * element_bytes], 0xa5);
        }
    }
}

/* ---- layouts ------------------------------------------------------------------------ */

static void test_published_layout(void **state)
{
    const struct hr_synth_params params = {.path = "x"}, layered = {.path = "x", .layered = true};
    struct hr_synth_layout layout;
    uint64_t bytes = 0;

    (void) state;
    assert_works(hr_synth_layout_init(&layout, &params, &err));
    assert_int_equal(layout.n_entries, 1933);
    assert_int_equal(layout.n_shards, 9);
    assert_string_equal(layout.shards[2].name,
                        "diffusion_pytorch_model-00003-of-00009.safetensors");
    for (uint32_t i = 0; i < layout.n_entries; i++)
        bytes += layout.entries[i].size_bytes;
    assert_true(bytes == 40860802176);
    assert_non_null(strstr(layout.index, "\"total_size\": 40860802176"));
    assert_true(hr_synth_bytes(&params) == layout.total_bytes);
    hr_synth_layout_uninit(&layout);
    assert_works(hr_synth_layout_init(&layout, &layered, &err));
    assert_int_equal(layout.n_entries, 1934);
    hr_synth_layout_uninit(&layout);
}

/* What the file must hold: the value, rounded to the file's dtype. */
static void assert_tensor(const struct hr_checkpoint *checkpoint, const struct hr_tensor *tensor)
{
    static float want[VALUES_MAX], got[VALUES_MAX];
    static uint8_t narrow[VALUES_MAX * sizeof(float)];
    const uint64_t n = hr_shape_elements(tensor->shape, tensor->rank);

    assert_true(n <= VALUES_MAX);
    hr_synth_values(want, tensor->name, 0, n, tensor->rank, tensor->rank > 1 ? tensor->shape[1] : 0,
                    0);
    hr_dtype_from_f32(narrow, want, tensor->dtype, n);
    hr_dtype_to_f32(want, narrow, tensor->dtype, n);
    assert_works(hr_checkpoint_read_f32(checkpoint, tensor, got, n, &err));
    assert_memory_equal(got, want, n * sizeof(float));
}

static void check_model(const struct hr_synth_params *params, uint32_t n_tensors, uint32_t n_shards)
{
    const struct hr_checkpoint_params open_params = {&params->path, 1, NULL};
    struct hr_checkpoint *checkpoint;
    uint64_t bytes = 0;

    assert_works(hr_synth(params, &err));
    assert_works(hr_checkpoint_open(&checkpoint, &open_params, &err));
    assert_int_equal(hr_checkpoint_n_tensors(checkpoint), n_tensors);
    assert_int_equal(hr_checkpoint_n_shards(checkpoint), n_shards);
    for (uint32_t i = 0; i < n_tensors; i++) {
        assert_int_equal(hr_checkpoint_tensor(checkpoint, i)->dtype,
                         params->dtype ? params->dtype : HR_DTYPE_BF16);
        assert_tensor(checkpoint, hr_checkpoint_tensor(checkpoint, i));
    }
    for (uint32_t s = 0; s < n_shards; s++)
        bytes += hr_checkpoint_shard(checkpoint, s)->size_bytes;
    assert_true(bytes <= hr_synth_bytes(params) && bytes + 65536 > hr_synth_bytes(params));
    hr_checkpoint_close(&checkpoint);
}

static struct hr_synth_params small(const char *path)
{
    return (struct hr_synth_params){.path = path, .n_layers = 2, .n_heads = 1, .joint_dim = 96};
}

static void test_forms(void **state)
{
    struct hr_synth_params params = small(scratch("m"));

    (void) state;
    check_model(&params, 77, 1);
    assert_string_equal(scratch_list(scratch("m")),
                        "config.json diffusion_pytorch_model.safetensors ");
    params.force = true;
    params.n_shards = 4;
    params.dtype = HR_DTYPE_F16;
    params.order = HR_SYNTH_ORDER_SHUFFLE;
    check_model(&params, 77, 4);
    params.n_shards = 3;
    params.dtype = HR_DTYPE_F8_E4M3;
    params.order = HR_SYNTH_ORDER_REVERSE;
    params.header_pad_bytes = 3;
    params.layered = true;
    check_model(&params, 78, 3);
    params.dtype = HR_DTYPE_F8_E5M2;
    params.prefix = "model.diffusion_model.";
    check_model(&params, 78, 3);
    assert_string_equal(scratch_list(scratch("m")),
                        "config.json diffusion_pytorch_model-00001-of-00003.safetensors "
                        "diffusion_pytorch_model-00002-of-00003.safetensors "
                        "diffusion_pytorch_model-00003-of-00003.safetensors "
                        "diffusion_pytorch_model.safetensors.index.json ");
    scratch_log();
    params.n_shards = 1000;
    check_model(&params, 78, 78);
    assert_non_null(strstr(scratch_log(), "78 shards instead of 1000"));
    assert_string_equal(scratch_list(scratch("%s", "")), "m ");
}

static void test_config_of_folder(void **state)
{
    struct hr_synth_params params = small(scratch("m"));
    const struct hr_checkpoint_params open_params = {&params.path, 1, NULL};
    struct hr_checkpoint *checkpoint;
    struct hr_config config;

    (void) state;
    params.zero_cond_t = true;
    params.layered = true;
    assert_works(hr_synth(&params, &err));
    assert_works(hr_checkpoint_open(&checkpoint, &open_params, &err));
    assert_works(hr_checkpoint_get_config(checkpoint, &config, &err));
    assert_int_equal(config.num_layers, 2);
    assert_int_equal(config.num_attention_heads, 1);
    assert_int_equal(config.joint_attention_dim, 96);
    assert_true(config.zero_cond_t && config.use_additional_t_cond && config.use_layer3d_rope);
    assert_false(hr_checkpoint_has_zero_cond_marker(checkpoint));
    hr_checkpoint_close(&checkpoint);
}

static void test_single_file(void **state)
{
    struct hr_synth_params params = small(scratch("one.safetensors"));
    const struct hr_checkpoint_params open_params = {&params.path, 1, NULL};
    struct hr_checkpoint *checkpoint;

    (void) state;
    check_model(&params, 77, 1);
    params.force = true;
    params.zero_cond_t = true;
    params.prefix = "diffusion_model.";
    assert_works(hr_synth(&params, &err));
    assert_works(hr_checkpoint_open(&checkpoint, &open_params, &err));
    assert_int_equal(hr_checkpoint_n_tensors(checkpoint), 78);
    assert_true(hr_checkpoint_has_zero_cond_marker(checkpoint));
    hr_checkpoint_close(&checkpoint);
    assert_string_equal(scratch_list(scratch("%s", "")), "one.safetensors ");
    params.n_shards = 2;
    assert_fails(hr_synth(&params, &err), -EINVAL, "2 shards do not fit one .safetensors file");
}

/* Several chunks, and elements that are cut by their ends. */
static void test_large_file(void **state)
{
    struct hr_synth_params params = small(scratch("m"));

    (void) state;
    params.n_layers = 1;
    params.n_heads = 3;
    params.dtype = HR_DTYPE_F32;
    params.header_pad_bytes = 5;
    check_model(&params, 45, 1);
}

/* ---- failures ----------------------------------------------------------------------- */

static void test_existing(void **state)
{
    struct hr_synth_params params = small(scratch("m"));

    (void) state;
    scratch_folder(params.path); /* an empty folder is no model */
    assert_works(hr_synth(&params, &err));
    assert_fails(hr_synth(&params, &err), -EEXIST, "choose another name, or --force replaces it");
    params.force = true;
    scratch_text(scratch("m/notes.txt"), "mine");
    assert_fails(hr_synth(&params, &err), -EEXIST, "holds notes.txt");
    assert_int_equal(unlink(scratch("m/notes.txt")), 0);
    assert_works(hr_synth(&params, &err));
    /* A link is followed: what it leads to is replaced. */
    assert_int_equal(symlink("m", scratch("link")), 0);
    params.path = scratch("link/");
    assert_works(hr_synth(&params, &err));
    assert_string_equal(scratch_list(scratch("%s", "")), "link m ");
    scratch_text(scratch("file"), "");
    params.path = scratch("file");
    assert_fails(hr_synth(&params, &err), -EEXIST, "file: is a file");
    params.path = scratch("m.safetensors");
    scratch_text(params.path, "");
    params.force = false;
    assert_fails(hr_synth(&params, &err), -EEXIST, "choose another name, or --force replaces it");
    params.path = scratch("none/m");
    assert_fails(hr_synth(&params, &err), -ENOENT,
                 "none/m: its folder does not exist; make it first");
    assert_string_equal(scratch_list(scratch("%s", "")), "file link m m.safetensors ");
}

static void test_bad_parameters(void **state)
{
    struct hr_synth_params params = {0};

    (void) state;
    assert_fails(hr_synth(&params, &err), -EINVAL, "needs a name");
    params = small(scratch("m"));
    params.dtype = HR_DTYPE_I64;
    assert_fails(hr_synth(&params, &err), -EINVAL, "dtype I64");
    assert_true(hr_synth_bytes(&params) == 0);
    params = small(scratch("m"));
    params.n_layers = 10001;
    assert_fails(hr_synth(&params, &err), -EINVAL, "at most 10000");
    params = small(scratch("m"));
    params.prefix = "\xff";
    assert_fails(hr_synth(&params, &err), -EINVAL, "");
    params = small(scratch("m"));
    params.order = HR_SYNTH_ORDER_SHUFFLE + 1;
    assert_fails(hr_synth(&params, &err), -EINVAL, "order 3");
    params = small(scratch("m"));
    params.n_layers = 100;
    params.n_heads = 1024;
    assert_fails(hr_synth(&params, &err), -ENOSPC, "GB are needed, ");
    assert_string_equal(scratch_list(scratch("%s", "")), "");
}

static void cancel_now(void *user, uint64_t bytes_done, uint64_t bytes_total)
{
    assert_true(bytes_done <= bytes_total);
    __atomic_store_n((int *) user, 1, __ATOMIC_RELAXED);
}

static void test_cancel(void **state)
{
    struct hr_synth_params params = small(scratch("m"));
    int cancel = 1;

    (void) state;
    params.cancel = &cancel;
    assert_fails(hr_synth(&params, &err), -ECANCELED, "interrupted");
    params.path = scratch("m.safetensors");
    assert_fails(hr_synth(&params, &err), -ECANCELED, "interrupted");
    assert_string_equal(scratch_list(scratch("%s", "")), "");

    cancel = 0;
    params.path = scratch("m");
    params.n_layers = 20;
    params.n_heads = 4;
    params.progress = cancel_now;
    params.progress_user = &cancel;
    assert_fails(hr_synth(&params, &err), -ECANCELED, "interrupted");
    assert_string_equal(scratch_list(scratch("%s", "")), "");
}

/* Running out of space, which a limit on the size of files stands for. */
static void test_write_error(void **state)
{
    struct rlimit limit;
    struct hr_synth_params params = small(scratch("m"));
    int code;
    struct hr_error error = {0};

    (void) state;
    assert_int_equal(getrlimit(RLIMIT_FSIZE, &limit), 0);
    const struct rlimit small_limit = {100000, limit.rlim_max};

    signal(SIGXFSZ, SIG_IGN);
    assert_int_equal(setrlimit(RLIMIT_FSIZE, &small_limit), 0);
    code = hr_synth(&params, &error);
    assert_int_equal(setrlimit(RLIMIT_FSIZE, &limit), 0);
    signal(SIGXFSZ, SIG_DFL);
    assert_int_equal(code, -EFBIG);
    assert_non_null(strstr(error.message, "diffusion_pytorch_model.safetensors"));
    assert_string_equal(scratch_list(scratch("%s", "")), "");
}

/* ---- killed runs -------------------------------------------------------------------- */

static void kill_now(void *user, uint64_t bytes_done, uint64_t bytes_total)
{
    (void) user, (void) bytes_done, (void) bytes_total;
    raise(SIGKILL);
}

/* Told once that it has begun, then at work until its parent kills it. */
static void wait_to_be_killed(void *user, uint64_t bytes_done, uint64_t bytes_total)
{
    const int *pipe_fd = user;

    (void) bytes_done, (void) bytes_total;
    if (write(*pipe_fd, "", 1) == 1)
        pause();
}

static pid_t start_synth(const char *path, void (*progress)(void *, uint64_t, uint64_t), void *user)
{
    const pid_t pid = fork();

    assert_true(pid >= 0);
    if (pid == 0) {
        struct hr_synth_params params = small(path);

        params.progress = progress;
        params.progress_user = user;
        _exit(hr_synth(&params, NULL) == 0);
    }
    return pid;
}

static void wait_for_kill(pid_t pid)
{
    int status;

    assert_int_equal(waitpid(pid, &status, 0), pid);
    assert_true(WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL);
}

/* What a killed run left goes with the next run of that name. */
static void check_leftover(const char *path)
{
    const struct hr_synth_params params = small(path);

    if (access("/proc/sys/kernel/random/boot_id", R_OK) < 0)
        skip(); /* then an hour has to go by */
    wait_for_kill(start_synth(path, kill_now, NULL));
    assert_non_null(strstr(scratch_list(scratch("%s", "")), ".tmp-"));
    scratch_log();
    assert_works(hr_synth(&params, &err));
    assert_non_null(strstr(scratch_log(), ": removed, left by a run that was killed"));
    assert_null(strstr(scratch_list(scratch("%s", "")), ".tmp-"));
}

static void test_killed(void **state)
{
    (void) state;
    check_leftover(scratch("m"));
    check_leftover(scratch("m.safetensors"));
    assert_string_equal(scratch_list(scratch("%s", "")), "m m.safetensors ");
}

/* Last changed so long ago. */
static void set_age(const char *path, time_t seconds)
{
    const struct timespec then = {.tv_sec = time(NULL) - seconds}, times[] = {then, then};

    assert_int_equal(utimensat(AT_FDCWD, path, times, AT_SYMLINK_NOFOLLOW), 0);
}

/* The locks of another machine are not seen on many filesystems that both write to. */
static void test_of_another_kernel(void **state)
{
    char path[512];
    struct hr_synth_params params = small(path);

    (void) state;
    snprintf(path, sizeof(path), "%s", scratch("m"));
    scratch_folder(scratch("m.tmp-0badb007-1-00000000")); /* made just now     */
    scratch_folder(scratch("m.tmp-0badb007-2-00000000")); /* written just now  */
    scratch_folder(scratch("m.tmp-0badb007-3-00000000")); /* at rest           */
    scratch_folder(scratch("m.tmp-00000000-4-00000000")); /* a kernel not told */
    scratch_text(scratch("m.tmp-0badb007-2-00000000/a.safetensors"), "new");
    scratch_text(scratch("m.tmp-0badb007-3-00000000/a.safetensors"), "old");
    set_age(scratch("m.tmp-0badb007-3-00000000/a.safetensors"), 3700);
    set_age(scratch("m.tmp-0badb007-2-00000000"), 3700);
    set_age(scratch("m.tmp-0badb007-3-00000000"), 3700);
    scratch_log();
    assert_works(hr_synth(&params, &err));
    assert_string_equal(scratch_list(scratch("%s", "")),
                        "m m.tmp-00000000-4-00000000 m.tmp-0badb007-1-00000000 "
                        "m.tmp-0badb007-2-00000000 ");
    const char *log = scratch_log();

    assert_non_null(strstr(log, "m.tmp-0badb007-2-00000000: kept, another machine may be writing"));
    assert_non_null(strstr(log, "m.tmp-0badb007-3-00000000: removed, left by a run"));

    snprintf(path, sizeof(path), "%s", scratch("f.safetensors"));
    scratch_text(scratch("f.safetensors.tmp-0badb007-1-00000000"), "new");
    scratch_text(scratch("f.safetensors.tmp-0badb007-2-00000000"), "old");
    set_age(scratch("f.safetensors.tmp-0badb007-2-00000000"), 3700);
    assert_works(hr_synth(&params, &err));
    assert_non_null(strstr(scratch_list(scratch("%s", "")),
                           "f.safetensors f.safetensors.tmp-0badb007-1-00000000 m "));
}

/* Of another name, of another form, with something else in it; and of a run that is alive. */
static void test_not_left_by_killed_runs(void **state)
{
    static const char *const folders[] = {
        "mm.tmp-0badb007-1-00000000", "m.tmp-0badb007-1-0000000",
        "m.tmp-0badb007-1-000000000", "m.tmp-0badb007-1-0000000g",
        "m.tmp-0badb007--00000000",   "m.tmp-0badb007-1a-00000000",
        "m.tmp-0badb007-1-00000000~", "m.tmp-0badb007-2-00000000",
        "m.tmp-0badb007-3-00000000",  "m.tmp-0badb00-1-00000000",
        "m.tmp-1-00000000",           "one.safetensors.tmp-0badb007-1-00000000"};
    char path[512], before[1024], byte;
    struct hr_synth_params params = small(path);
    int pipe_fds[2];

    (void) state;
    snprintf(path, sizeof(path), "%s", scratch("m"));
    for (size_t i = 0; i < HR_ARRAY_SIZE(folders); i++)
        scratch_folder(scratch("%s", folders[i]));
    scratch_text(scratch("m.tmp-0badb007-2-00000000/config.json"), "{}");
    scratch_text(scratch("m.tmp-0badb007-2-00000000/notes.txt"), "mine");
    scratch_folder(scratch("m.tmp-0badb007-3-00000000/a.safetensors"));
    scratch_text(scratch("m.tmp-0badb007-4-00000000"), "a file");
    assert_int_equal(symlink("m.tmp-0badb007-2-00000000", scratch("m.tmp-0badb007-5-00000000")), 0);
    for (size_t i = 0; i < HR_ARRAY_SIZE(folders); i++) /* not kept for its age */
        set_age(scratch("%s", folders[i]), 3700);
    set_age(scratch("m.tmp-0badb007-2-00000000/config.json"), 3700);
    set_age(scratch("m.tmp-0badb007-2-00000000/notes.txt"), 3700);
    set_age(scratch("m.tmp-0badb007-4-00000000"), 3700);
    assert_int_equal(pipe(pipe_fds), 0);
    const pid_t pid = start_synth(params.path, wait_to_be_killed, &pipe_fds[1]);

    assert_int_equal(read(pipe_fds[0], &byte, 1), 1);
    snprintf(before, sizeof(before), "m %s", scratch_list(scratch("%s", "")));
    assert_works(hr_synth(&params, &err));
    assert_string_equal(scratch_list(scratch("%s", "")), before);
    assert_string_equal(scratch_list(scratch("m.tmp-0badb007-2-00000000")),
                        "config.json notes.txt ");
    params.path = scratch("one.safetensors");
    assert_works(hr_synth(&params, &err));
    assert_non_null(
        strstr(scratch_list(scratch("%s", "")), "one.safetensors.tmp-0badb007-1-00000000 "));
    assert_int_equal(kill(pid, SIGKILL), 0);
    wait_for_kill(pid);
    close(pipe_fds[0]);
    close(pipe_fds[1]);
}

int main(void)
{
#define scratch_test(f) cmocka_unit_test_setup_teardown(f, scratch_setup, scratch_teardown)
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_golden_values),
        cmocka_unit_test(test_rules),
        cmocka_unit_test(test_cuts),
        cmocka_unit_test(test_published_layout),
        scratch_test(test_forms),
        scratch_test(test_config_of_folder),
        scratch_test(test_single_file),
        scratch_test(test_large_file),
        scratch_test(test_existing),
        scratch_test(test_bad_parameters),
        scratch_test(test_cancel),
        scratch_test(test_write_error),
        scratch_test(test_killed),
        scratch_test(test_of_another_kernel),
        scratch_test(test_not_left_by_killed_runs),
    };

    return cmocka_run_group_tests_name("synth", tests, NULL, NULL);
}
