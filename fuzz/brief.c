/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Runs a fuzz target without libFuzzer, so that every test run tries it briefly with any compiler: each seed as it is, then
 * random mutations of the seeds for so many seconds. No coverage guides it; `make fuzz` is the real thing. The seed of the
 * random numbers is printed and PST_TEST_SEED replays it; the input under way is written to the folder given before a crash
 * could lose it.
 *
 *   brief SECONDS LAST_INPUT_FILE SEED_FOLDER
 */
#include <dirent.h>
#include <inttypes.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "support/random.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

enum { MAX_SEEDS = 64, MAX_BYTES = 1 << 16 };

typedef struct input {
    uint8_t bytes[MAX_BYTES];
    size_t count;
} input;

static input *seeds[MAX_SEEDS];
static size_t seed_count;

static void must(int condition, const char *what)
{
    if (condition)
        return;
    fprintf(stderr, "%s\n", what);
    exit(2);
}

static void read_seeds(const char *folder)
{
    DIR *list = opendir(folder);
    must(list != NULL, "the folder of seeds cannot be opened");
    for (struct dirent *entry; (entry = readdir(list)) != NULL && seed_count < MAX_SEEDS;) {
        if (entry->d_name[0] == '.')
            continue;
        char path[1024];
        snprintf(path, sizeof path, "%s/%s", folder, entry->d_name);
        FILE *file = fopen(path, "rb");
        input *seed = calloc(1, sizeof *seed);
        must(file != NULL && seed != NULL, path);
        seed->count = fread(seed->bytes, 1, MAX_BYTES, file);
        fclose(file);
        seeds[seed_count++] = seed;
    }
    closedir(list);
    must(seed_count > 0, "no seeds");
}

/* Takes a copy of the input in memory of exactly its size, so that sanitizers see a read past its end. */
static void run(const input *in, const char *last)
{
    FILE *file = fopen(last, "wb");
    must(file != NULL && fwrite(in->bytes, 1, in->count, file) == in->count && fclose(file) == 0, last);
    uint8_t *copy = malloc(in->count ? in->count : 1);
    must(copy != NULL, "out of memory");
    memcpy(copy, in->bytes, in->count);
    LLVMFuzzerTestOneInput(copy, in->count);
    free(copy);
}

static void mutate_once(input *in)
{
    static const uint8_t telling[] = {0, '"', '{', '}', '[', ']', ':', ',', '-', '9', '0', 0x7f, 0x80, 0xff, 'e', '\\'};
    size_t at = in->count ? random_below(in->count) : 0;
    size_t span = 1 + random_below(1 + random_below(64));
    const input *other = seeds[random_below(seed_count)];
    switch (random_below(6)) {
    case 0: /* another byte */
        in->bytes[at] = (uint8_t)random_below(256);
        in->count += in->count == 0;
        break;
    case 1: in->bytes[at] = telling[random_below(sizeof telling)]; break;
    case 2: in->bytes[at] ^= (uint8_t)(1u << random_below(8)); break;
    case 3: /* some less */
        span = span < in->count - at ? span : in->count - at;
        memmove(in->bytes + at, in->bytes + at + span, in->count - at - span);
        in->count -= span;
        break;
    case 4: /* a piece twice */
        span = span < in->count - at ? span : in->count - at;
        span = span < MAX_BYTES - in->count ? span : MAX_BYTES - in->count;
        memmove(in->bytes + at + span, in->bytes + at, in->count - at);
        in->count += span;
        break;
    default: /* the end of another seed */
        if (other->count > at) {
            memcpy(in->bytes + at, other->bytes + at, other->count - at);
            in->count = other->count;
        }
    }
}

int main(int argc, char **argv)
{
    must(argc == 4, "usage: brief SECONDS LAST_INPUT_FILE SEED_FOLDER");
    random_start(argv[0]);
    read_seeds(argv[3]);
    for (size_t i = 0; i < seed_count; i++)
        run(seeds[i], argv[2]);
    input *in = malloc(sizeof *in);
    must(in != NULL, "out of memory");
    uint64_t runs = 0;
    for (time_t end = time(NULL) + atoi(argv[1]); time(NULL) < end; runs++) {
        *in = *seeds[random_below(seed_count)];
        for (uint64_t i = 1 + random_below(8); i > 0; i--)
            mutate_once(in);
        run(in, argv[2]);
    }
    printf("%" PRIu64 " mutations of %zu seeds\n", runs, seed_count);
    free(in);
    for (size_t i = 0; i < seed_count; i++)
        free(seeds[i]);
    remove(argv[2]);
    return runs > 0 ? 0 : 1;
}
