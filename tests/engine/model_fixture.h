/* SPDX-License-Identifier: Apache-2.0 */
/* model_fixture.h -- a small synthetic model in a temporary folder, and inputs for it. */
#ifndef HR_TESTS_MODEL_FIXTURE_H
#define HR_TESTS_MODEL_FIXTURE_H

#include "common/common.h"

struct model_fixture {
    char folder[64]; /* made for this fixture; holds `path` */
    char path[96];
    struct hr_checkpoint *checkpoint;
    struct hr_dit_inputs inputs; /* images and prompt as added below */
};

/* Make and open a model; `params` without its path. A failure fails the test. */
void model_fixture_open(struct model_fixture *f, const struct hr_synth_params *params);
/* Append an image [16, h, w] of values 1.7 u; a target so far. */
void model_fixture_image(struct model_fixture *f, const char *seed_name, uint32_t h, uint32_t w);
/* The prompt [n, joint_dim] of values 3 u. */
void model_fixture_prompt(struct model_fixture *f, uint32_t n, uint32_t joint_dim);
/* One target of h x w and a prompt of n tokens, timestep 750. */
void model_fixture_inputs(struct model_fixture *f, uint32_t h, uint32_t w, uint32_t n,
                          uint32_t joint_dim);
/* Open the model for the fixture's inputs; a failure fails the test. */
struct hr_dit *model_fixture_dit(const struct model_fixture *f, const struct hr_dit_params *params);
void model_fixture_close(struct model_fixture *f);

/* For a group of tests: open, with inputs as above, which *state then tells the other. @return 0 */
int model_fixture_setup(void **state, struct model_fixture *f, const struct hr_synth_params *params,
                        uint32_t h, uint32_t w, uint32_t n_text);
int model_fixture_teardown(void **state);

#endif /* HR_TESTS_MODEL_FIXTURE_H */
