/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What a file of torch.save holds, as JSON that tests/reference/torch_values.py makes from the Python objects themselves:
 * ["int", "5"], ["text", "<hex of UTF-8>"], ["list", [...]], ["tensor", {...}] and so on, numbers by their bits. A list,
 * dict, set, bytearray or tensor that occurs again is ["same", its number], in the order in which they come.
 */
#ifndef TESTS_SUPPORT_TORCH_JSON_H
#define TESTS_SUPPORT_TORCH_JSON_H

#include <jansson.h>

#include "store/torch_file.h"

/* Node 0 and all that it leads to; tensors with their elements, read from `path`. NULL: something cannot be read. */
json_t *torch_json(const char *path, const pst_torch_file *file);

#endif
