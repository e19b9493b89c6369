/* SPDX-License-Identifier: Apache-2.0 */
/* xxh3.h -- XXH3 by what the CPU has. libxxhash itself is built for the least of them:
 * with SSE2, at about half the speed of AVX2. */
#ifndef HR_XXH3_H
#define HR_XXH3_H

#include "config.h"

#include <xxhash.h>
#if HAVE_XXH_DISPATCH
#include <xxh_x86dispatch.h> /* redefines the names of what hashes */
#endif

#endif /* HR_XXH3_H */
