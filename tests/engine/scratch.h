/* SPDX-License-Identifier: Apache-2.0 */
/* scratch.h -- for tests: a folder of their own, small model files in it, messages caught.
 *
 * Include after cmocka.h. */
#ifndef HR_SCRATCH_H
#define HR_SCRATCH_H

#include "common/common.h"

/* Group or test fixtures: make a folder, remove it with all that is in it. */
int scratch_setup(void **state);
int scratch_teardown(void **state);

/* A path in the folder, made as by printf; valid for the next 15 calls. */
const char *scratch(const char *format, ...) HR_PRINTF(1, 2);
/* Names in a folder of the scratch folder, sorted, each with a space after it. */
const char *scratch_list(const char *path);

void scratch_folder(const char *path);
void scratch_text(const char *path, const char *text);
/* A safetensors file of F32 tensors [2] with values {k, -k} for the k-th of `names`, which has
 * spaces between them. */
void scratch_weights(const char *path, const char *names);

/* Lines logged since the last call with level INFO or above. */
const char *scratch_log(void);

/* `call` gives `want_code` and a message that holds `want_text`. */
#define assert_fails(call, want_code, want_text)                                                \
    do {                                                                                        \
        struct hr_error err = {0};                                                              \
        const int got_code = (call);                                                            \
                                                                                                \
        if (got_code != (want_code) || err.code != got_code || !strstr(err.message, want_text)) \
            fail_msg("%s gave %d, code %d: %s", #call, got_code, err.code, err.message);        \
    } while (0)

#define assert_works(call)                                            \
    do {                                                              \
        struct hr_error err = {0};                                    \
        const int got_code = (call);                                  \
                                                                      \
        if (got_code < 0)                                             \
            fail_msg("%s gave %d: %s", #call, got_code, err.message); \
    } while (0)

#endif /* HR_SCRATCH_H */
