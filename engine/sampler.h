/* SPDX-License-Identifier: Apache-2.0 */
/* sampler.h -- the flow-match Euler sampler of Qwen-Image: sigmas, guidance, steps. Pure arithmetic
 * on host memory, f32 as in the published schedulers. */
#ifndef HR_SAMPLER_H
#define HR_SAMPLER_H

#include "common/common.h"

struct hr_schedule_params {
    enum hr_schedule kind;
    uint32_t n_steps;  /* 1..1000                                                  */
    uint32_t n_tokens; /* of the target: (height / 16) * (width / 16), >= 1        */
    float strength;    /* in (0, 1]: 1 from noise, less from an image (img2img)    */
    float mu;          /* instead of the size's own; NAN: none                     */
};

/* sigmas[0..n_steps], the last 0.
 *   s_i = strength * (1 - i / N);  mu = 0.5 + 0.4 (n_tokens - 256) / (8192 - 256)
 *   s_i = e^mu / (e^mu + 1 / s_i - 1);  DYNAMIC: s_i = 1 - (1 - s_i) 0.98 / (1 - s_{N-1})
 * With one step from noise there is nothing to stretch: sigma is 1. */
void hr_schedule_sigmas(float *sigmas, const struct hr_schedule_params *params);

/* v = v_neg + scale * (v_pos - v_neg), in place of v_pos, over n values. */
void hr_guide(float *v_pos, const float *v_neg, float scale, size_t n);

/* The same, then each token's 64 packed values scaled back to the norm of the positive prediction:
 * v * |v_pos| / |v|, as diffusers does. Latents [16, h, w], h and w even. */
void hr_guide_normed(float *v_pos, const float *v_neg, float scale, uint32_t h, uint32_t w);

/* x += (sigma_next - sigma) * v */
void hr_step(float *x, const float *v, float sigma, float sigma_next, size_t n);

/* Inpainting: v = (1 - m) (x - z) / sigma + m v, so that where m is 0 the step leads to z.
 * @param mask  [h, w], 1: repaint, shared by the 16 channels; z: the original's latents */
void hr_inpaint(float *v, const float *x, const float *z, const float *mask, float sigma,
                uint32_t h, uint32_t w);

/* x = (1 - sigma) z + sigma noise, in place of noise. */
void hr_add_noise(float *noise, const float *z, float sigma, size_t n);

/* n standard normal values that follow from the seed, the same on every machine: Philox4x32-10
 * counters, Box-Muller in double. Not torch's numbers. */
void hr_noise(float *x, uint64_t seed, size_t n);

#endif /* HR_SAMPLER_H */
