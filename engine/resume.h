/* SPDX-License-Identifier: Apache-2.0 */
/* resume.h -- the state of a denoising loop in a folder, so that a killed run goes on.
 *
 *   state.json          which step is done, what the run was made of
 *   step-N.safetensors  latents.0, latents.1, ... after step N
 *
 * A step is written to its own file first, then state.json is replaced by a rename, then the older
 * file is removed: at every moment state.json names a whole file. */
#ifndef HR_RESUME_H
#define HR_RESUME_H

#include "common/common.h"

/* What a run is made of: if any of it changes, going on would give another picture. */
struct hr_fact {
    char name[48];
    char value[64];
};

/* Of a run, and of HR_SAMPLES_MAX pictures with HR_IMAGES_MAX images and HR_LORA_FILES_MAX LoRAs.
 */
enum { HR_FACTS_MAX = 768 };

struct hr_resume {
    const char *folder; /* borrowed */
    struct hr_fact facts[HR_FACTS_MAX];
    uint32_t n_facts;
    uint32_t step; /* done */
};

void hr_resume_fact(struct hr_resume *resume, const char *name, const char *format, ...)
    HR_PRINTF(3, 4);
/* The XXH3-128 of n bytes as a fact. */
void hr_resume_fact_hash(struct hr_resume *resume, const char *name, const void *data, size_t n);
/* The same of the whole content of a file, which is read. @return 0 or the error of read() */
int hr_resume_fact_content(struct hr_resume *resume, const char *name,
                           const struct hr_checkpoint *file, struct hr_error *err);
/* The same of all headers: names, dtypes, shapes, places and sizes of the files. */
void hr_resume_fact_model(struct hr_resume *resume, const struct hr_checkpoint *checkpoint);

/* Make the folder if it is not there; read the state if there is one. Facts have been added.
 * @param latents  n arrays of n_floats[i], filled when there was a state
 * @return 0 with resume->step 0 (nothing yet) or more; -EINVAL a fact differs (named with both
 *         values), -EBADMSG no state of ours, or a system call's error */
int hr_resume_load(struct hr_resume *resume, float *const *latents, const uint64_t *n_floats,
                   uint32_t n, struct hr_error *err);
/* Keep the latents after `step` steps. */
int hr_resume_save(struct hr_resume *resume, uint32_t step, float *const *latents,
                   const uint64_t *n_floats, uint32_t n, struct hr_error *err);

#endif /* HR_RESUME_H */
