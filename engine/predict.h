/* SPDX-License-Identifier: Apache-2.0 */
/* predict.h -- inside of hr_dit_predict(). */
#ifndef HR_PREDICT_H
#define HR_PREDICT_H

#include "engine/dit.h"

/* What computing grows with, of all inputs. */
struct hr_amount {
    double tokens;
    double pairs;      /* of a query and a key, in a block                  */
    double pairs_last; /* in the last one, which has no queries of the text */
};

/* How long it takes at one size. */
struct hr_timing {
    struct hr_amount amount;
    struct {
        uint64_t up_front_ns, blocks_ns;
    } one, two;     /* blocks; of a model that has one, both are its   */
    double pair_ns; /* of attention; left 0 where nobody will go by it */
    char device_name[128];
};

/* From two sizes, the second the larger, to a third. */
void hr_predict_extrapolate(struct hr_timing *ret_timing, const struct hr_amount *to,
                            const struct hr_timing *at);

/* Fill in what a forecast says of computing and of the link, without reading the model.
 * @param dit  prepared, not opened
 * @return 0, or as hr_dit_open() and hr_dit_forward() */
int hr_predict_compute(const struct hr_dit *dit, const struct hr_dit_params *params,
                       const struct hr_dit_inputs *inputs, struct hr_dit_forecast *forecast,
                       struct hr_error *err);

#endif /* HR_PREDICT_H */
