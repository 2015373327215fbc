/* SPDX-License-Identifier: Apache-2.0 */
/* Scenes of the tests of saving. */
#include "support/ckpt_scene.h"

#include <dirent.h>
#include <ftw.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "ckpt/layout.h"
#include "store/crc32.h"

enum { MOST_RANKS = 16 };

/* ---- tensors ---- */

/* A source's memory, in front of its data. */
typedef struct origin {
    uint64_t bytes, data[];
} origin;

static int read_origin(void *user, uint64_t offset, uint64_t bytes, void *out, pst_error *err)
{
    const origin *o = user;
    (void)err;
    assert_true(bytes > 0 && offset <= o->bytes && bytes <= o->bytes - offset);
    memcpy(out, (const char *)o->data + offset, bytes);
    return 0;
}

static uint64_t bytes_of(pst_dtype dtype, uint32_t rank, const uint64_t *shape)
{
    uint64_t bytes;
    assert_int_equal(pst_tensor_shape_bytes(dtype, shape, rank, &bytes), 0);
    return bytes;
}

static pst_ckpt_tensor *next_tensor(scene *s)
{
    if (s->count == s->capacity) {
        s->capacity = s->capacity * 2 + 16;
        s->tensors = realloc(s->tensors, s->capacity * sizeof *s->tensors);
        assert_non_null(s->tensors);
    }
    return &s->tensors[s->count++];
}

void scene_add(scene *s, const char *name, pst_dtype dtype, uint32_t rank, const uint64_t *shape, uint64_t seed,
               bool from_source)
{
    uint64_t bytes = bytes_of(dtype, rank, shape), *copy = calloc(rank + 1, sizeof *copy);
    origin *o = malloc(sizeof *o + bytes + 1);
    assert_true(o != NULL && copy != NULL);
    o->bytes = bytes;
    test_fill((uint8_t *)o->data, bytes, seed, 0);
    for (uint32_t d = 0; d < rank; d++)
        copy[d] = shape[d];
    *next_tensor(s) = (pst_ckpt_tensor){.name = strdup(name),
                                        .dtype = dtype,
                                        .rank = rank,
                                        .shape = copy,
                                        .data = from_source ? NULL : o->data,
                                        .source = from_source ? read_origin : NULL,
                                        .user = o};
}

void scene_tie(scene *s, const char *name, size_t other)
{
    pst_ckpt_tensor *t = next_tensor(s);
    *t = s->tensors[other];
    t->name = strdup(name);
    t->shape = NULL;
    uint64_t *copy = calloc(t->rank + 1, sizeof *copy);
    for (uint32_t d = 0; d < t->rank; d++)
        copy[d] = s->tensors[other].shape[d];
    t->shape = copy;
    t->user = NULL; /* the other one frees it */
}

void scene_add_random(scene *s, uint64_t *random, size_t count, uint64_t most_bytes)
{
    static const pst_dtype dtypes[] = {PST_F32,  PST_BF16, PST_U8,  PST_I64, PST_F16,
                                       PST_BOOL, PST_F64,  PST_I32, PST_C64};
    static const char *const words[] = {"layer",           "weight \"quoted\"", "\xc3\xa4\xc3\xb6 \xe2\x82\xac",
                                        "back\\slash",     "tab\tnewline\n",    "a.b.c",
                                        "\xf0\x9f\x98\x80"};
    for (size_t i = 0; i < count; i++) {
        char name[128];
        snprintf(name, sizeof name, "%s.%zu", words[test_below(random, sizeof words / sizeof words[0])], s->count);
        uint64_t kind = test_below(random, 8), shape[3];
        pst_dtype dtype = dtypes[test_below(random, sizeof dtypes / sizeof dtypes[0])];
        if (kind == 0 && s->count > 0 && s->tensors[s->count - 1].user != NULL &&
            s->tensors[s->count - 1].source == NULL) {
            scene_tie(s, name, s->count - 1);
            continue;
        }
        uint32_t rank = (uint32_t)test_below(random, 4);
        uint64_t elements = kind < 5 ? test_below(random, 3000) : test_below(random, most_bytes / (count + 1) + 1);
        for (uint32_t d = 0; d < rank; d++)
            shape[d] = d + 1 < rank ? 1 + test_below(random, 3) : elements;
        scene_add(s, name, dtype, rank, shape, test_random(random), test_below(random, 4) == 0);
    }
}

void scene_free(scene *s)
{
    for (size_t i = 0; i < s->count; i++) {
        free((void *)s->tensors[i].name);
        free((void *)s->tensors[i].shape);
        free(s->tensors[i].user);
    }
    free(s->tensors);
    *s = (scene){0};
}

const void *scene_data(const scene *s, size_t tensor, uint64_t *bytes)
{
    const pst_ckpt_tensor *t = &s->tensors[tensor];
    *bytes = bytes_of(t->dtype, t->rank, t->shape);
    return t->data != NULL ? t->data : ((const origin *)t->user)->data;
}

/* ---- what must come out ---- */

static void make_layout(const pst_ckpt_options *options, const scene *s, pst_ckpt_layout *layout)
{
    pst_error err = {0};
    assert_ok(pst_ckpt_layout_make(options, s->tensors, s->count, layout, &err), &err);
}

size_t scene_files(const pst_ckpt_options *options, const scene *s)
{
    pst_ckpt_layout layout;
    make_layout(options, s, &layout);
    size_t count = layout.file_count;
    pst_ckpt_layout_free(&layout);
    return count;
}

uint8_t *scene_assemble(const pst_ckpt_options *options, const scene *s, size_t file, uint64_t *bytes)
{
    pst_ckpt_layout layout;
    pst_error err = {0};
    make_layout(options, s, &layout);
    const pst_ckpt_file *f = &layout.files[file];
    size_t count;
    const pst_image_part *parts = pst_image_parts(f->image, &count);
    *bytes = pst_image_file_bytes(f->image);
    uint8_t *whole = malloc(*bytes + 1);
    pst_digest *digest;
    assert_ok(pst_digest_create(&digest, &err), &err);
    for (size_t i = 0; i < count; i++) {
        if (parts[i].tensor == PST_IMAGE_LITERAL)
            continue;
        uint64_t all;
        const char *data = scene_data(s, layout.order[f->first + parts[i].tensor], &all);
        memcpy(whole + parts[i].offset, data + parts[i].from, parts[i].bytes);
        pst_image_sums sums = {0};
        pst_digest_begin(digest);
        pst_digest_add(digest, data + parts[i].from, parts[i].bytes);
        if (!options->no_digests)
            pst_digest_value(digest, sums.digest);
        sums.crc = pst_image_wants_crc(f->image) ? pst_crc32(0, data + parts[i].from, parts[i].bytes) : 0;
        pst_image_set_sums(f->image, i, &sums);
    }
    assert_ok(pst_image_finish(f->image, &err), &err);
    for (size_t i = 0; i < count; i++)
        if (parts[i].tensor == PST_IMAGE_LITERAL)
            memcpy(whole + parts[i].offset, (const char *)pst_image_literal(f->image, i) + parts[i].from,
                   parts[i].bytes);
    pst_digest_destroy(digest);
    pst_ckpt_layout_free(&layout);
    return whole;
}

static bool is_file(const char *path, const uint8_t *expected, uint64_t expected_bytes)
{
    uint64_t bytes;
    if (access(path, R_OK) != 0)
        return false;
    uint8_t *found = test_read_file(path, &bytes);
    bool same = bytes == expected_bytes && memcmp(found, expected, bytes) == 0;
    free(found);
    return same;
}

bool scene_is_saved(const pst_ckpt_options *options, const char *path, const scene *s)
{
    size_t count = scene_files(options, s);
    bool good = true;
    char name[PST_SHARD_NAME_BYTES], whole[4096];
    for (size_t f = 0; f < count && good; f++) {
        uint64_t bytes;
        uint8_t *expected = scene_assemble(options, s, f, &bytes);
        pst_safetensors_shard_name(f, count, name);
        snprintf(whole, sizeof whole, options->shard_bytes > 0 ? "%s/%s" : "%s", path, name);
        good = is_file(whole, expected, bytes);
        free(expected);
    }
    if (options->shard_bytes > 0 && count > 1) {
        snprintf(whole, sizeof whole, "%s/model.safetensors.index.json", path);
        good = good && access(whole, R_OK) == 0;
    }
    return good;
}

static int remove_entry(const char *path, const struct stat *info, int kind, struct FTW *place)
{
    (void)info, (void)kind, (void)place;
    return remove(path);
}

void scene_remove_folder(char *folder)
{
    assert_int_equal(nftw(folder, remove_entry, 16, FTW_DEPTH | FTW_PHYS), 0);
    free(folder);
}

size_t scene_count_entries(const char *folder)
{
    DIR *entries = opendir(folder);
    size_t count = 0;
    assert_non_null(entries);
    for (struct dirent *e; (e = readdir(entries)) != NULL;)
        count += strcmp(e->d_name, ".") != 0 && strcmp(e->d_name, "..") != 0;
    closedir(entries);
    return count;
}

/* ---- ranks ---- */

typedef struct meeting {
    pthread_mutex_t lock;
    pthread_cond_t all_here;
    uint32_t count, arrived, calls;
    char *gathered;
    size_t bytes;
} meeting;

typedef struct attendant {
    meeting *meeting;
    pst_ckpt_ranks ranks;
    const pst_ckpt_options *options;
    const scene *s;
    pst_error err;
    pst_ckpt_report report;
    int status;
    pthread_t thread;
} attendant;

static void meet(meeting *m)
{
    uint32_t call = m->calls;
    if (++m->arrived == m->count) {
        m->arrived = 0;
        m->calls++;
        pthread_cond_broadcast(&m->all_here);
    }
    while (m->calls == call)
        pthread_cond_wait(&m->all_here, &m->lock);
}

static int gather(void *user, const void *mine, size_t bytes, void *all)
{
    attendant *a = user;
    meeting *m = a->meeting;
    pthread_mutex_lock(&m->lock);
    if (m->gathered == NULL) {
        m->gathered = malloc(m->count * bytes);
        m->bytes = bytes;
    }
    bool same = m->bytes == bytes;
    if (same)
        memcpy(m->gathered + a->ranks.rank * bytes, mine, bytes);
    meet(m);
    if (same)
        memcpy(all, m->gathered, m->count * bytes);
    meet(m);
    if (m->gathered != NULL) {
        free(m->gathered);
        m->gathered = NULL;
    }
    meet(m);
    pthread_mutex_unlock(&m->lock);
    return same ? 0 : -1;
}

static void *attend(void *argument)
{
    attendant *a = argument;
    pst_ckpt_options options = *a->options;
    options.ranks = &a->ranks;
    a->status = pst_ckpt_save(&options, a->s->tensors, a->s->count, &a->report, &a->err);
    return NULL;
}

int scene_save_scenes(const pst_ckpt_options *options, const scene *const *scenes, uint32_t count, int *statuses,
                      pst_error *errors, pst_ckpt_report *reports)
{
    attendant list[MOST_RANKS];
    meeting m = {.count = count};
    int status = 0;
    assert_true(count <= MOST_RANKS);
    pthread_mutex_init(&m.lock, NULL);
    pthread_cond_init(&m.all_here, NULL);
    for (uint32_t i = 0; i < count; i++) {
        attendant *a = &list[i];
        *a =
            (attendant){.meeting = &m, .options = options, .s = scenes[i], .report = {.struct_size = sizeof a->report}};
        a->ranks = (pst_ckpt_ranks){.rank = i, .count = count, .all_gather = gather, .user = a};
        assert_int_equal(pthread_create(&a->thread, NULL, attend, a), 0);
    }
    for (uint32_t i = 0; i < count; i++) {
        pthread_join(list[i].thread, NULL);
        status = status < 0 ? status : list[i].status;
        if (statuses != NULL)
            statuses[i] = list[i].status;
        if (errors != NULL)
            errors[i] = list[i].err;
        if (reports != NULL)
            reports[i] = list[i].report;
    }
    pthread_cond_destroy(&m.all_here);
    pthread_mutex_destroy(&m.lock);
    return status;
}

int scene_save_by_ranks(const pst_ckpt_options *options, const scene *s, uint32_t count, int *statuses,
                        pst_error *errors, pst_ckpt_report *reports)
{
    const scene *scenes[MOST_RANKS];
    for (uint32_t i = 0; i < count; i++)
        scenes[i] = s;
    return scene_save_scenes(options, scenes, count, statuses, errors, reports);
}
