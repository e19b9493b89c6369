/* SPDX-License-Identifier: Apache-2.0 */
/* states.h -- a user's table of where weights are, applied to a model. */
#ifndef HR_STATES_H
#define HR_STATES_H

#include "common/common.h"

enum hr_keep {
    HR_KEEP_IF_ROOM, /* in memory from the first pass on, where the budget has room: the default */
    HR_KEEP_ALWAYS,
    HR_KEEP_NEVER, /* streamed in every pass */
};

/* What the table says of n tensors, each by the first entry that matches.
 * @param ret_keep  [n] values of enum hr_keep
 * @return 0; -EINVAL an entry that matches nothing in the checkpoint, -EOPNOTSUPP one that cannot
 * be done */
int hr_states_apply(const struct hr_states *states, const struct hr_checkpoint *checkpoint,
                    enum hr_precision precision, const struct hr_tensor *const *tensors, uint32_t n,
                    uint8_t *ret_keep, struct hr_error *err);

#endif /* HR_STATES_H */
