/* SPDX-License-Identifier: Apache-2.0 */
/* sampler.c -- sigmas, guidance and Euler steps. */
#include <math.h>

#include "engine/sampler.h"

/* scheduler_config.json of Qwen-Image */
static const double base_shift = 0.5, max_shift = 0.9;
static const double base_tokens = 256, max_tokens = 8192;
static const float shift_terminal = 0.02f;

static double shift_of(const struct hr_schedule_params *p)
{
    if (p->kind == HR_SCHEDULE_LIGHTNING)
        return 3.0;
    if (!isnan(p->mu))
        return exp((double) p->mu);
    return exp(base_shift + (max_shift - base_shift) * ((double) p->n_tokens - base_tokens) /
                                (max_tokens - base_tokens));
}

void hr_schedule_sigmas(float *sigmas, const struct hr_schedule_params *params)
{
    const float shift = (float) shift_of(params);
    const uint32_t n = params->n_steps;

    hr_assert(n >= 1 && params->n_tokens >= 1);
    hr_assert(params->strength > 0.0f && params->strength <= 1.0f);
    for (uint32_t i = 0; i < n; i++) {
        const float s = (float) (params->strength * (1.0 - (double) i / n));

        sigmas[i] = shift / (shift + (1.0f / s - 1.0f));
    }
    sigmas[n] = 0.0f;
    if (params->kind == HR_SCHEDULE_DYNAMIC && sigmas[n - 1] < 1.0f) {
        const float scale = (1.0f - sigmas[n - 1]) / (1.0f - shift_terminal);

        for (uint32_t i = 0; i < n; i++)
            sigmas[i] = 1.0f - (1.0f - sigmas[i]) / scale;
    }
}

void hr_guide(float *v_pos, const float *v_neg, float scale, size_t n)
{
    for (size_t i = 0; i < n; i++)
        v_pos[i] = v_neg[i] + scale * (v_pos[i] - v_neg[i]);
}

void hr_guide_normed(float *v_pos, const float *v_neg, float scale, uint32_t h, uint32_t w)
{
    const size_t plane = (size_t) h * w;

    for (uint32_t y = 0; y < h; y += 2)
        for (uint32_t x = 0; x < w; x += 2) {
            double before = 0.0, after = 0.0;

            for (unsigned i = 0; i < 4 * HR_LATENT_CHANNELS; i++) {
                const size_t at = i / 4 * plane + (y + i / 2 % 2) * w + x + i % 2;

                before += (double) v_pos[at] * v_pos[at];
                v_pos[at] = v_neg[at] + scale * (v_pos[at] - v_neg[at]);
                after += (double) v_pos[at] * v_pos[at];
            }
            const float ratio = after > 0.0 ? (float) sqrt(before / after) : 1.0f;

            for (unsigned i = 0; i < 4 * HR_LATENT_CHANNELS; i++)
                v_pos[i / 4 * plane + (y + i / 2 % 2) * w + x + i % 2] *= ratio;
        }
}

void hr_step(float *x, const float *v, float sigma, float sigma_next, size_t n)
{
    const float dt = sigma_next - sigma;

    for (size_t i = 0; i < n; i++)
        x[i] += dt * v[i];
}

void hr_inpaint(float *v, const float *x, const float *z, const float *mask, float sigma,
                uint32_t h, uint32_t w)
{
    const size_t plane = (size_t) h * w;

    for (size_t c = 0; c < HR_LATENT_CHANNELS; c++)
        for (size_t i = 0; i < plane; i++) {
            const size_t at = c * plane + i;

            v[at] = (1.0f - mask[i]) * (x[at] - z[at]) / sigma + mask[i] * v[at];
        }
}

void hr_add_noise(float *noise, const float *z, float sigma, size_t n)
{
    for (size_t i = 0; i < n; i++)
        noise[i] = (1.0f - sigma) * z[i] + sigma * noise[i];
}

/* Philox4x32-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", 2011). */
static void philox(uint32_t out[4], uint64_t counter, uint64_t seed)
{
    uint32_t c[4] = {(uint32_t) counter, (uint32_t) (counter >> 32), 0, 0};
    uint32_t k[2] = {(uint32_t) seed, (uint32_t) (seed >> 32)};

    for (int round = 0; round < 10; round++) {
        const uint64_t a = (uint64_t) 0xd2511f53u * c[0], b = (uint64_t) 0xcd9e8d57u * c[2];

        c[0] = (uint32_t) (b >> 32) ^ c[1] ^ k[0];
        c[1] = (uint32_t) b;
        c[2] = (uint32_t) (a >> 32) ^ c[3] ^ k[1];
        c[3] = (uint32_t) a;
        k[0] += 0x9e3779b9u;
        k[1] += 0xbb67ae85u;
    }
    for (int i = 0; i < 4; i++)
        out[i] = c[i];
}

void hr_noise(float *x, uint64_t seed, size_t n)
{
    for (size_t i = 0; i < n; i += 4) {
        uint32_t bits[4];
        double normal[4];

        philox(bits, i / 4, seed);
        for (int j = 0; j < 4; j += 2) {
            /* the radius' uniform is never 0 */
            const double r = sqrt(-2.0 * log(((double) bits[j] + 0.5) * 0x1p-32));
            const double a = 2.0 * M_PI * ((double) bits[j + 1] + 0.5) * 0x1p-32;

            normal[j] = r * cos(a);
            normal[j + 1] = r * sin(a);
        }
        for (size_t j = 0; j < 4 && i + j < n; j++)
            x[i + j] = (float) normal[j];
    }
}
