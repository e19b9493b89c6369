/* SPDX-License-Identifier: Apache-2.0 */
/* fuzz.h -- what libFuzzer, or fuzz_main.c in its place, calls. */
#ifndef HR_TESTS_FUZZ_H
#define HR_TESTS_FUZZ_H

#include <stddef.h>
#include <stdint.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

#endif /* HR_TESTS_FUZZ_H */
