/* SPDX-License-Identifier: Apache-2.0 */
#include "tests/engine/model_fixture.h"

#include <ftw.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

void model_fixture_open(struct model_fixture *f, const struct hr_synth_params *params)
{
    struct hr_synth_params synth = *params;
    struct hr_error err = {0};
    const char *path = f->path;

    *f = (struct model_fixture){.folder = "/tmp/headrace-test-XXXXXX"};
    assert_non_null(mkdtemp(f->folder));
    snprintf(f->path, sizeof(f->path), "%s/model", f->folder);
    synth.path = f->path;
    if (hr_synth(&synth, &err) < 0 ||
        hr_checkpoint_open(&f->checkpoint,
                           &(struct hr_checkpoint_params){.paths = &path, .n_paths = 1}, &err) < 0)
        fail_msg("%s", err.message);
}

void model_fixture_image(struct model_fixture *f, const char *seed_name, uint32_t h, uint32_t w)
{
    const size_t n = (size_t) HR_LATENT_CHANNELS * h * w;
    float *values = malloc(n * sizeof(*values));

    assert_non_null(values);
    hr_synth_values(values, seed_name, 0, n, 3, w, 1.7);
    f->inputs.images[f->inputs.n_images++] = (struct hr_latent){values, h, w};
    f->inputs.n_targets = f->inputs.n_images;
}

void model_fixture_prompt(struct model_fixture *f, uint32_t n, uint32_t joint_dim)
{
    float *values = malloc((size_t) n * joint_dim * sizeof(*values));

    assert_non_null(values);
    hr_synth_values(values, "prompt", 0, (size_t) n * joint_dim, 2, joint_dim, 3.0);
    f->inputs.prompt_emb = values;
    f->inputs.n_text = n;
}

void model_fixture_inputs(struct model_fixture *f, uint32_t h, uint32_t w, uint32_t n,
                          uint32_t joint_dim)
{
    model_fixture_image(f, "latent", h, w);
    model_fixture_prompt(f, n, joint_dim);
    f->inputs.timestep = 750.0f;
}

static int remove_one(const char *path, const struct stat *st, int type, struct FTW *ftw)
{
    (void) st;
    (void) type;
    (void) ftw;
    return remove(path);
}

struct hr_dit *model_fixture_dit(const struct model_fixture *f, const struct hr_dit_params *params)
{
    struct hr_dit *dit = NULL;
    struct hr_error err = {0};

    if (hr_dit_open(&dit, f->checkpoint, params, &f->inputs, 1, &err) < 0)
        fail_msg("%s", err.message);
    return dit;
}

void model_fixture_close(struct model_fixture *f)
{
    hr_checkpoint_close(&f->checkpoint);
    for (uint32_t i = 0; i < f->inputs.n_images; i++)
        free((void *) (uintptr_t) f->inputs.images[i].data);
    free((void *) (uintptr_t) f->inputs.prompt_emb);
    nftw(f->folder, remove_one, 16, FTW_DEPTH | FTW_PHYS);
}

int model_fixture_setup(void **state, struct model_fixture *f, const struct hr_synth_params *params,
                        uint32_t h, uint32_t w, uint32_t n_text)
{
    model_fixture_open(f, params);
    model_fixture_inputs(f, h, w, n_text, params->joint_dim);
    *state = f;
    return 0;
}

int model_fixture_teardown(void **state)
{
    model_fixture_close(*state);
    return 0;
}
