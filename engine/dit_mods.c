/* SPDX-License-Identifier: Apache-2.0 */
/* dit_mods.c -- where the modulation vectors of all steps are kept. */
#include "engine/dit_mods.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <unistd.h>

#include "engine/files.h"

bool hr_dit_mods_spill(uint32_t n_steps, size_t step_floats, uint64_t memory_max_bytes)
{
    return (uint64_t) n_steps * step_floats * sizeof(float) > memory_max_bytes;
}

/* A file without a name, so that nothing is left behind however the process ends. */
static int open_unnamed(const char *folder, struct hr_error *err)
{
    char shown[256], text[128];

    if (!folder)
        folder = hr_env("TMPDIR");
    if (!folder)
        folder = "/tmp";
    const int fd = open(folder, O_TMPFILE | O_RDWR | O_CLOEXEC, 0600);

    if (fd >= 0)
        return fd;
    const int r = -errno;

    return hr_error_set(err, r,
                        "%s: no temporary file for modulation vectors: %s; name another folder "
                        "(--resume, or else TMPDIR), or give more --ram",
                        hr_printable(folder, shown, sizeof(shown)),
                        hr_strerror(r, text, sizeof(text)));
}

int hr_dit_mods_init(struct hr_dit_mods *mods, uint32_t n_steps, size_t step_floats,
                     uint64_t memory_max_bytes, const char *folder, struct hr_error *err)
{
    struct hr_dit_mods m = {.n_steps = n_steps, .step_floats = step_floats, .fd = -1};

    hr_assert(n_steps > 0 && step_floats > 0);
    if (hr_dit_mods_spill(n_steps, step_floats, memory_max_bytes)) {
        m.fd = open_unnamed(folder, err);
        if (m.fd < 0)
            return m.fd;
    } else {
        m.memory = calloc(n_steps, step_floats * sizeof(float));
        if (!m.memory)
            return hr_error_set(err, -ENOMEM, "no memory for modulation vectors of %u steps",
                                n_steps);
    }
    *mods = m;
    return 0;
}

void hr_dit_mods_uninit(struct hr_dit_mods *mods)
{
    free(mods->memory);
    if (mods->step_floats && mods->fd >= 0)
        close(mods->fd);
    *mods = (struct hr_dit_mods){.fd = -1};
}

static int file_error(int r, const char *what, struct hr_error *err)
{
    char text[128];

    if (r == 0)
        return 0;
    return hr_error_set(err, r == -ENODATA ? -EIO : r,
                        "temporary file of modulation vectors: %s: %s", what,
                        hr_strerror(r, text, sizeof(text)));
}

int hr_dit_mods_put(struct hr_dit_mods *mods, uint32_t step, size_t at, const float *src, size_t n,
                    struct hr_error *err)
{
    const size_t first = step * mods->step_floats + at;

    hr_assert(step < mods->n_steps && at + n <= mods->step_floats);
    if (mods->memory) {
        for (size_t i = 0; i < n; i++)
            mods->memory[first + i] = src[i];
        return 0;
    }
    return file_error(
        hr_file_write(mods->fd, src, n * sizeof(float), (uint64_t) first * sizeof(float)),
        "writing", err);
}

int hr_dit_mods_get(const struct hr_dit_mods *mods, uint32_t step, float *dst,
                    const float **ret_values, struct hr_error *err)
{
    const size_t first = step * mods->step_floats;
    int r;

    hr_assert(step < mods->n_steps);
    if (mods->memory) {
        *ret_values = mods->memory + first;
        return 0;
    }
    r = file_error(hr_file_read(mods->fd, dst, mods->step_floats * sizeof(float),
                                (uint64_t) first * sizeof(float)),
                   "reading", err);
    if (r == 0)
        *ret_values = dst;
    return r;
}
