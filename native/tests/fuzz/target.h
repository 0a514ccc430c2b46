/* What libFuzzer and replay.c call. */
#ifndef VDPAD_TESTS_TARGET_H
#define VDPAD_TESTS_TARGET_H

#include <stddef.h>
#include <stdint.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

#endif
