/* SPDX-License-Identifier: Apache-2.0 */
/* dnn_other.c -- a library of cuDNN's name that is another: it has a version, and nothing else. */
#include <stddef.h>

size_t cudnnGetVersion(void);

size_t cudnnGetVersion(void)
{
    return 92801;
}
