/* SPDX-License-Identifier: Apache-2.0 */
/* tuning.h -- saved figures of a disk, as the stream uses them. */
#ifndef HR_TUNING_H
#define HR_TUNING_H

#include "common/common.h"

/* A run that falls below this share of the low end of what was saved says so, once it has read this
 * much. */
#define HR_TUNING_SHARE_MIN 0.7
#define HR_TUNING_BYTES_MIN HR_GIB

/* What is saved for the disk of this checkpoint. Says what it found, also a file that is no such
 * thing. @return there is something to use */
bool hr_tuning_apply(const struct hr_checkpoint *checkpoint, struct hr_tuning *ret_tuning);

/* Warn where a stream that used it was far slower. */
void hr_tuning_compare(const struct hr_tuning *tuning, const struct hr_stream_stats *stats);

#endif /* HR_TUNING_H */
