/* SPDX-License-Identifier: Apache-2.0 */
/* What the tests of saving share: tensors, ranks as threads, files put together in the plainest way. */
#ifndef TESTS_SUPPORT_CKPT_SCENE_H
#define TESTS_SUPPORT_CKPT_SCENE_H

#include "penstock/ckpt.h"
#include "unit/io/io_test.h"

typedef struct scene {
    pst_ckpt_tensor *tensors;
    size_t count, capacity;
} scene;

/* Another tensor, its data from `seed`. With from_source it comes through a callback in pieces. */
void scene_add(scene *s, const char *name, pst_dtype dtype, uint32_t rank, const uint64_t *shape, uint64_t seed,
               bool from_source);
/* One that shares its data with tensor number `other`. */
void scene_tie(scene *s, const char *name, size_t other);
/* Some tensors of all kinds, about most_bytes in all; types that both formats have. */
void scene_add_random(scene *s, uint64_t *random, size_t count, uint64_t most_bytes);
void scene_free(scene *s);
/* The data, wherever it comes from. */
const void *scene_data(const scene *s, size_t tensor, uint64_t *bytes);

/* File number `file` of what a save with these options must give, made at once in memory; free(). */
uint8_t *scene_assemble(const pst_ckpt_options *options, const scene *s, size_t file, uint64_t *bytes);
/* How many files, and the name of one in the folder; whether there is a folder. */
size_t scene_files(const pst_ckpt_options *options, const scene *s);
/* Whether all files at `path` are as they must be. */
bool scene_is_saved(const pst_ckpt_options *options, const char *path, const scene *s);

/* Saves by so many ranks, each a thread of its own. statuses and errors: count of them each; may be NULL. Returns 0, or the
 * failure of the first rank that failed. */
int scene_save_by_ranks(const pst_ckpt_options *options, const scene *s, uint32_t count, int *statuses,
                        pst_error *errors, pst_ckpt_report *reports);
/* The same where rank r saves scenes[r]. */
int scene_save_scenes(const pst_ckpt_options *options, const scene *const *scenes, uint32_t count, int *statuses,
                      pst_error *errors, pst_ckpt_report *reports);

/* Removes a folder of test_folder_create with all that is in it. */
void scene_remove_folder(char *folder);
/* How many entries a folder has. */
size_t scene_count_entries(const char *folder);

#endif
