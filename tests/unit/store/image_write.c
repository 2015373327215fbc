/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Writes files for tests/peers: `image_write DIR` random tensors in both formats, each with a description beside it (JSON), seeded
 * by PST_TEST_SEED; `image_write --far FILE` a file of torch past 4 GiB, whose data are holes.
 */
#include "image_sample.h"

#include <fcntl.h>
#include <inttypes.h>
#include <jansson.h>

#include "base/number.h"

enum { ROUNDS = 6 };

static pst_image *make(bool torch, pst_tensor *tensors, size_t count, const pst_image_options *options)
{
    pst_image *image;
    pst_error err;
    if ((torch ? pst_image_torch : pst_image_safetensors)(tensors, count, options, &image, &err) < 0) {
        fprintf(stderr, "%s\n", err.message);
        exit(1);
    }
    return image;
}

static void describe(const image_sample *s, const char *path)
{
    json_t *list = json_array();
    for (size_t i = 0; i < s->count; i++) {
        const pst_tensor *t = &s->tensors[i];
        json_t *shape = json_array();
        for (uint32_t d = 0; d < t->rank; d++)
            json_array_append_new(shape, json_integer((json_int_t)t->shape[d]));
        json_array_append_new(list, json_pack("{s:s, s:s, s:I, s:I, s:I, s:o}", "name", t->name, "dtype",
                                              pst_dtype_name(t->dtype), "same_as", (json_int_t)s->same_as[i], "offset",
                                              (json_int_t)t->offset, "bytes", (json_int_t)t->bytes, "shape", shape));
    }
    if (json_dump_file(list, path, 0) != 0)
        exit(1);
    json_decref(list);
}

static void write_random(const char *folder, unsigned round, bool torch)
{
    char path[4096], description[4096];
    image_sample s;
    sample_make(&s, torch, round % 2 ? 3000 : 200000);
    const pst_image_options options = {
        .digests = round % 3 > 0, .shares = 1 + (uint32_t)random_below(20), .same_as = s.same_as};
    pst_image *image = make(torch, s.tensors, s.count, &options);
    snprintf(path, sizeof path, "%s/%u.%s", folder, round, torch ? "pt" : "safetensors");
    snprintf(description, sizeof description, "%.4000s.json", path);
    unsigned char *file = sample_assemble(image);
    files_write(path, file, pst_image_file_bytes(image));
    free(file);
    describe(&s, description);
    pst_image_destroy(image);
}

static uint32_t crc_of_zeros(uint64_t bytes)
{
    static const unsigned char zeros[1 << 20];
    uint32_t crc = 0;
    for (uint64_t done = 0; done < bytes; done += sizeof zeros)
        crc = pst_crc32(crc, zeros, pst_min(bytes - done, sizeof zeros));
    return crc;
}

static void write_far(const char *path)
{
    static const uint64_t sizes[] = {20, UINT64_C(4400000000), 12, UINT64_C(4294967296), 0, 7};
    enum { COUNT = sizeof sizes / sizeof sizes[0] };
    pst_tensor tensors[COUNT];
    char names[COUNT][8];
    memset(tensors, 0, sizeof tensors);
    for (size_t i = 0; i < COUNT; i++) {
        snprintf(names[i], sizeof names[i], "t%zu", i);
        tensors[i] = (pst_tensor){.name = names[i], .dtype = PST_U8, .rank = 1, .shape = {sizes[i]}};
    }
    pst_image *image = make(true, tensors, COUNT, &(pst_image_options){.digests = true, .shares = 3});
    size_t count;
    const pst_image_part *parts = pst_image_parts(image, &count);
    int fd = open(path, O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0644);
    bool good = fd >= 0 && ftruncate(fd, (off_t)pst_image_file_bytes(image)) == 0;
    for (size_t i = 0; i < count; i++)
        if (parts[i].tensor != PST_IMAGE_LITERAL)
            pst_image_set_sums(image, i, &(pst_image_sums){.crc = crc_of_zeros(parts[i].bytes)});
    good = good && pst_image_finish(image, NULL) == 0;
    for (size_t i = 0; i < count && good; i++)
        if (parts[i].tensor == PST_IMAGE_LITERAL)
            good = pwrite(fd, (const char *)pst_image_literal(image, i) + parts[i].from, parts[i].bytes,
                          (off_t)parts[i].offset) == (ssize_t)parts[i].bytes;
    if (!good || close(fd) != 0)
        exit(1);
    pst_image_destroy(image);
}

int main(int argc, char **argv)
{
    if (argc == 3 && strcmp(argv[1], "--far") == 0) {
        write_far(argv[2]);
        return 0;
    }
    if (argc != 2)
        return 2;
    random_start("image_write");
    for (unsigned round = 0; round < ROUNDS; round++) {
        write_random(argv[1], round, false);
        write_random(argv[1], round, true);
    }
    return 0;
}
