/* SPDX-License-Identifier: Apache-2.0 */
/* device_rates.h -- what the files that measure a device's rates share.
 *
 *   device_rates.c  memory, turns, medians
 *   rates_list.c    what is measured: names, sizes, operands
 *   rates_work.c    copies and operations of the device, timed
 *   rates_disk.c    the disk, alone and while bands are copied
 *
 * A sample is one timing of a kind of work, which is repeated so often that it takes about
 * HR_RATES_SAMPLE_NS; devices are asynchronous, so it ends with a wait for all of it.
 */
#ifndef HR_DEVICE_RATES_H
#define HR_DEVICE_RATES_H

#include "common/common.h"
#include "engine/dit_ring.h"
#include "gpu/gpu.h"

#define HR_RATES_SAMPLE_NS UINT64_C(50000000)
#define HR_RATES_DISK_NS   UINT64_C(400000000) /* of a reading, about */

enum {
    HR_RATES_BAND_BYTES = 32 << 20, /* of a copy: the largest piece of a weight     */
    HR_RATES_BANDS = 4,             /* that are copied in turn; and of slots        */
    HR_RATES_REGISTERED_BYTES = HR_RATES_BANDS * HR_RATES_BAND_BYTES,
};

/* The picture's tokens, and the side of the square product. */
struct hr_rates_sizes {
    uint32_t n_tokens, side;
};

/* What a rate is measured by. */
struct hr_work {
    enum {
        HR_WORK_COPY,       /* of bands from ordinary memory                     */
        HR_WORK_REGISTERED, /* from registered memory                            */
        HR_WORK_BESIDE,     /* the same, and bands of the disk as they arrive    */
        HR_WORK_DISK,
        HR_WORK_DISK_BESIDE, /* measured together with HR_WORK_BESIDE            */
        HR_WORK_DISK_PAST,   /* into the device's memory, past the host's        */
        HR_WORK_LINEAR,
        HR_WORK_ATTENTION,
    } kind;
    double amount;              /* bytes or operations of one of it              */
    uint64_t n_ops;             /* of a sample                                   */
    uint64_t w_step_bytes, n_w; /* weights one behind the other, taken in turn   */
    union {
        struct hr_linear linear;
        struct hr_attention attention;
    };
};

struct hr_rates {
    const struct hr_rates_params *params;
    const struct hr_checkpoint *checkpoint;
    struct hr_error *err;
    enum hr_dtype act;
    struct hr_rates_sizes sizes;
    struct hr_gpu *gpu;
    bool has_copies;          /* the device has memory of its own                            */
    unsigned char *bands;     /* host memory: those to be registered, then as many others    */
    size_t bands_bytes;       /* a single one without copies                                 */
    bool is_registered;       /* the first half of them                                      */
    void *registered_ring;    /* NULL: it is not                                             */
    unsigned char *x, *w, *y; /* operands, in the arena                                      */
    float *gate;
    struct hr_stream *stream;
    /* Of HR_WORK_DISK_PAST, where it was asked for: the same device once more, with a ring. */
    struct hr_gpu *past;
    struct hr_reader_memory past_ring;
    struct hr_stream *past_stream;
    const char **names; /* [2 * n_names]: tensors in the order of the files, twice over      */
    uint32_t n_names, next_name;
    uint64_t model_bytes, window_bytes; /* of a reading */
};

/* ---- rates_list.c ------------------------------------------------------------------------- */

/* Arena that the operands of these sizes take. */
uint64_t hr_rates_arena_bytes(enum hr_dtype act, const struct hr_rates_sizes *sizes);
/* Take operands of rates->sizes from the arena. */
void hr_rates_take_operands(struct hr_rates *rates);
/* Fill the bands, and from them the operands of rates->sizes, with numbers between 2^-32 and 2,
 * whatever their dtype. */
int hr_rates_fill(const struct hr_rates *rates);
/* A square product, to tell how fast the device is. */
struct hr_work hr_rates_square(const struct hr_rates *rates, uint32_t side);
/* All that is measured with rates->sizes: for each a rate, of which the values are yet to come, and
 * the work that tells them.
 * @return how many, at most HR_RATES_MAX */
uint32_t hr_rates_list(const struct hr_rates *rates, struct hr_rate *ret_rates,
                       struct hr_work *ret_work);

/* ---- rates_work.c ------------------------------------------------------------------------- */

/* @return 0, or -ECANCELED once the caller wants it */
int hr_rates_go_on(const struct hr_rates *rates);
/* After a failure of the device. @return r */
int hr_rates_device_failed(const struct hr_rates *rates, int r);
/* Have the device do it n_ops times, and wait. */
int hr_rates_time(const struct hr_rates *rates, const struct hr_work *work, uint64_t n_ops,
                  uint64_t *ret_ns);
/* Choose n_ops, which warms up. @param ret_ns  what a sample will take */
int hr_rates_calibrate(const struct hr_rates *rates, struct hr_work *work, uint64_t *ret_ns);

/* ---- rates_disk.c ------------------------------------------------------------------------- */

/* List the tensors. @return 0; -EINVAL there are no bytes, -ENOMEM */
int hr_rates_list_names(struct hr_rates *rates);
/* Choose window_bytes, which warms up. */
int hr_rates_calibrate_disk(struct hr_rates *rates);
/* Read the next part of the model through one of the streams, alone or copying its bands and others
 * meanwhile.
 * @param ret_copy  GB/s of the copies; NULL: nothing is copied */
int hr_rates_read(struct hr_rates *rates, struct hr_stream *stream, double *ret_disk,
                  double *ret_copy);

#endif /* HR_DEVICE_RATES_H */
