/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Stripe sets: manifests, and opening the parts of a striped file. What such a file does once it is open is in
 * striping.c.
 *
 * A manifest is hostile until it is checked against its own rules, and a set of folders until each is the member that
 * its place demands. Everything that does not fit is refused in a line that names the folder.
 */
#include "penstock/io_stripe.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "base/error.h"
#include "base/heap.h"
#include "base/json.h"
#include "io/striping.h"
#include "os/file.h"
#include "os/sys.h"

#define MANIFEST "penstock-stripe.json"
#define FORMAT   "penstock-stripe"

enum {
    VERSION = 1,
    ID_BYTES = 16,
    ID_LETTERS = 2 * ID_BYTES,
    UNIT = 4096,
    DEFAULT_STRIPE_BYTES = 1 << 20,
    MAX_STRIPE_BYTES = 1 << 30,
    MAX_MANIFEST_BYTES = 1 << 20
};

struct pst_stripe_set {
    uint64_t stripe_bytes;
    uint32_t count;
    char *folders[PST_STRIPE_MAX_MEMBERS]; /* owned */
};

/* One folder's manifest, checked by itself. */
typedef struct manifest {
    const char *folder; /* as the caller named it */
    json_t *document;   /* NULL: the folder has none */
    const char *set;    /* this and `folders` borrowed from it */
    const json_t *folders;
    uint64_t stripe_bytes, members, index;
    uint64_t device, inode; /* of the folder */
} manifest;

/* "<folder>/<name>"; pst_heap_free. */
static char *join(const char *folder, const char *name)
{
    size_t length = strlen(folder);
    return pst_heap_printf("%s%s%s", folder, length > 0 && folder[length - 1] == '/' ? "" : "/", name);
}

static int fail_join(const char *folder, pst_error *err)
{
    return pst_fail_memory(err, folder, strlen(folder) + sizeof MANIFEST + 1);
}

/* ---- folders ---- */

/* The folder is one, and none of those before it. */
static int check_folder(const char *folder, manifest *known, uint32_t before, pst_error *err)
{
    struct statx info;
    if (folder == NULL || folder[0] == '\0')
        return pst_fail(err, PST_E_USAGE, NULL, "folder %u of the stripe set has no name", before);
    int status = pst_sys->statx(AT_FDCWD, folder, 0, STATX_TYPE | STATX_INO, &info);
    if (status < 0)
        return pst_fail(err, status, folder, "cannot use the folder for striping: %s", pst_strerror(status));
    if (!S_ISDIR(info.stx_mode))
        return pst_fail(err, -ENOTDIR, folder, "is not a folder, so it cannot be a stripe set's member");
    uint64_t device = (uint64_t)info.stx_dev_major << 32 | info.stx_dev_minor;
    for (uint32_t i = 0; i < before; i++) {
        if (known[i].inode == info.stx_ino && known[i].device == device)
            return pst_fail(err, PST_E_USAGE, folder, "is the same folder as %s, named twice for one stripe set",
                            known[i].folder);
    }
    known[before] = (manifest){.folder = folder, .device = device, .inode = info.stx_ino};
    return 0;
}

static int check_folders(const char *const *folders, uint32_t count, manifest *known, pst_error *err)
{
    if (count == 0 || count > PST_STRIPE_MAX_MEMBERS)
        return pst_fail(err, PST_E_USAGE, NULL, "a stripe set has 1 to %d folders, not %u", PST_STRIPE_MAX_MEMBERS,
                        count);
    for (uint32_t i = 0; i < count; i++)
        PST_TRY(check_folder(folders[i], known, i, err));
    return 0;
}

bool pst_stripe_is_member(const char *folder)
{
    char *path = join(folder, MANIFEST);
    bool is = path != NULL && pst_file_exists(path);
    pst_heap_free(path);
    return is;
}

/* ---- making a set ---- */

static int make_id(char *out, pst_error *err)
{
    unsigned char random[ID_BYTES];
    int status = pst_sys->getrandom(random, sizeof random);
    if (status < 0)
        return pst_fail(err, status, NULL, "cannot make the identity of a stripe set: %s", pst_strerror(status));
    for (int i = 0; i < ID_BYTES; i++)
        snprintf(out + 2 * i, 3, "%02x", random[i]);
    return 0;
}

/* Where a folder is, for the message that misses it: absolute if the system tells it. JSON takes only UTF-8, so what a
 * path has besides becomes '?'. */
static json_t *describe_folder(const char *folder)
{
    char link[40], path[4096];
    int fd = pst_sys->open(folder, O_PATH | O_DIRECTORY, 0);
    if (fd >= 0)
        snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    if (fd < 0 || pst_sys->readlink(link, path, sizeof path) < 0 || path[0] != '/')
        snprintf(path, sizeof path, "%s", folder);
    if (fd >= 0)
        pst_sys->close(fd);
    json_t *text = json_string(path);
    for (char *at = path; text == NULL && *at != '\0'; at++) {
        if ((unsigned char)*at >= 0x80)
            *at = '?';
    }
    return text != NULL ? text : json_string(path);
}

static json_t *build_manifest(const char *id, uint64_t stripe_bytes, uint32_t count, const char *const *folders)
{
    json_t *list = json_array();
    for (uint32_t i = 0; i < count; i++) {
        if (json_array_append_new(list, describe_folder(folders[i])) != 0) {
            json_decref(list);
            return NULL;
        }
    }
    return json_pack("{s:s, s:i, s:s, s:I, s:I, s:I, s:o}", "format", FORMAT, "version", VERSION, "set", id,
                     "stripe_bytes", (json_int_t)stripe_bytes, "members", (json_int_t)count, "index", (json_int_t)0,
                     "folders", list);
}

static int publish_manifest(const char *folder, json_t *document, uint32_t index, pst_error *err)
{
    char *path = join(folder, MANIFEST), *text = NULL;
    int status = path != NULL ? 0 : -ENOMEM;
    if (status >= 0 && json_object_set_new(document, "index", json_integer((json_int_t)index)) != 0)
        status = -ENOMEM;
    if (status >= 0 && (text = json_dumps(document, JSON_INDENT(2))) == NULL)
        status = -ENOMEM;
    if (status >= 0)
        status = pst_file_publish(path, text, strlen(text), err);
    else
        fail_join(folder, err);
    free(text); /* jansson's own */
    pst_heap_free(path);
    return status;
}

static void remove_manifest(const char *folder)
{
    char *path = join(folder, MANIFEST);
    if (path != NULL)
        pst_file_remove(path, NULL);
    pst_heap_free(path);
}

static int check_free(const char *folder, pst_error *err)
{
    char *path = join(folder, MANIFEST);
    if (path == NULL)
        return fail_join(folder, err);
    int found = pst_file_find(path, err);
    pst_heap_free(path);
    PST_TRY(found);
    if (found > 0)
        return pst_fail(err, -EEXIST, folder, "belongs to a stripe set already (it has a %s)", MANIFEST);
    return 0;
}

int pst_stripe_create(const char *const *folders, uint32_t count, uint64_t stripe_bytes, pst_error *err)
{
    manifest known[PST_STRIPE_MAX_MEMBERS];
    char id[ID_LETTERS + 1];
    if (stripe_bytes == 0)
        stripe_bytes = DEFAULT_STRIPE_BYTES;
    if (stripe_bytes % UNIT != 0 || stripe_bytes > MAX_STRIPE_BYTES)
        return pst_fail(err, PST_E_USAGE, NULL, "a stripe of %llu bytes is no multiple of %d up to %d",
                        (unsigned long long)stripe_bytes, UNIT, MAX_STRIPE_BYTES);
    PST_TRY(check_folders(folders, count, known, err));
    for (uint32_t i = 0; i < count; i++)
        PST_TRY(check_free(folders[i], err));
    PST_TRY(make_id(id, err));
    json_t *document = build_manifest(id, stripe_bytes, count, folders);
    if (document == NULL)
        return pst_fail_memory(err, "a stripe set's manifest", MAX_MANIFEST_BYTES);
    int status = 0;
    for (uint32_t i = 0; i < count && status >= 0; i++) {
        status = publish_manifest(folders[i], document, i, err);
        /* Also the one that failed: its last step comes after its name is there. */
        for (uint32_t k = 0; status < 0 && k <= i; k++)
            remove_manifest(folders[k]);
    }
    json_decref(document);
    return status;
}

/* ---- reading manifests ---- */

static int check_id(const char *set, const char *path, pst_error *err)
{
    if (strlen(set) != ID_LETTERS || strspn(set, "0123456789abcdef") != ID_LETTERS)
        return pst_fail(err, PST_E_FORMAT, path, "\"set\" is not %d hexadecimal digits", ID_LETTERS);
    return 0;
}

/* The manifest's own rules. */
static int check_manifest(manifest *m, const char *path, pst_error *err)
{
    const json_t *d = m->document;
    const char *format;
    uint64_t version = 0;
    json_t *folders;
    if (!json_is_object(d))
        return pst_fail(err, PST_E_FORMAT, path, "is not a JSON object");
    PST_TRY(pst_json_string(d, "format", true, &format, path, err));
    if (strcmp(format, FORMAT) != 0)
        return pst_fail(err, PST_E_FORMAT, path, "\"format\" is not \"%s\"", FORMAT);
    PST_TRY(pst_json_u64(d, "version", true, 1, UINT32_MAX, &version, path, err));
    if (version != VERSION)
        return pst_fail(err, PST_E_UNSUPPORTED, path, "is of version %llu; this version knows %d",
                        (unsigned long long)version, VERSION);
    PST_TRY(pst_json_string(d, "set", true, &m->set, path, err));
    PST_TRY(check_id(m->set, path, err));
    PST_TRY(pst_json_u64(d, "stripe_bytes", true, UNIT, MAX_STRIPE_BYTES, &m->stripe_bytes, path, err));
    if (m->stripe_bytes % UNIT != 0)
        return pst_fail(err, PST_E_FORMAT, path, "\"stripe_bytes\" is no multiple of %d", UNIT);
    PST_TRY(pst_json_u64(d, "members", true, 1, PST_STRIPE_MAX_MEMBERS, &m->members, path, err));
    PST_TRY(pst_json_u64(d, "index", true, 0, m->members - 1, &m->index, path, err));
    PST_TRY(pst_json_array(d, "folders", true, &folders, path, err));
    if (json_array_size(folders) != m->members)
        return pst_fail(err, PST_E_FORMAT, path, "\"folders\" has %zu entries for %llu members",
                        json_array_size(folders), (unsigned long long)m->members);
    for (size_t i = 0; i < json_array_size(folders); i++) {
        if (!json_is_string(json_array_get(folders, i)))
            return pst_fail(err, PST_E_FORMAT, path, "\"folders\" has an entry that is no string");
    }
    m->folders = folders;
    return 0;
}

/* Reads a folder's manifest, if it has one. */
static int read_manifest(manifest *m, pst_error *err)
{
    char *path = join(m->folder, MANIFEST), *text = NULL;
    size_t bytes;
    if (path == NULL)
        return fail_join(m->folder, err);
    int status = pst_file_find(path, err);
    if (status > 0) {
        status = pst_file_read_all(path, MAX_MANIFEST_BYTES, &text, &bytes, err);
        if (status >= 0)
            status = pst_json_parse(text, bytes, path, &m->document, err);
        if (status >= 0)
            status = check_manifest(m, path, err);
    }
    pst_heap_free(text);
    pst_heap_free(path);
    return status;
}

/* ---- the members against each other ---- */

/* Where a member was when the set was made. */
static const char *remembered(const manifest *reference, uint64_t index)
{
    return json_string_value(json_array_get(reference->folders, index));
}

/* The manifest whose set most folders belong to; NULL when there is none at all. */
static const manifest *find_reference(const manifest *known, uint32_t count)
{
    const manifest *best = NULL;
    uint32_t best_votes = 0;
    for (uint32_t i = 0; i < count; i++) {
        uint32_t votes = 0;
        for (uint32_t k = 0; known[i].document != NULL && k < count; k++)
            votes += known[k].document != NULL && strcmp(known[i].set, known[k].set) == 0;
        if (votes > best_votes) {
            best = &known[i];
            best_votes = votes;
        }
    }
    return best;
}

static int check_member(const manifest *m, const manifest *reference, const manifest *before, pst_error *err)
{
    if (strcmp(m->set, reference->set) != 0)
        return pst_fail(err, PST_E_FORMAT, m->folder, "belongs to another stripe set than %s", reference->folder);
    if (m->members != reference->members || m->stripe_bytes != reference->stripe_bytes)
        return pst_fail(err, PST_E_FORMAT, m->folder,
                        "its %s says %llu members and stripes of %llu bytes, that of %s %llu and %llu", MANIFEST,
                        (unsigned long long)m->members, (unsigned long long)m->stripe_bytes, reference->folder,
                        (unsigned long long)reference->members, (unsigned long long)reference->stripe_bytes);
    for (const manifest *other = before; other < m; other++) {
        if (other->document != NULL && other->index == m->index)
            return pst_fail(err, PST_E_FORMAT, m->folder, "is member %llu of the stripe set, and so is %s",
                            (unsigned long long)m->index, other->folder);
    }
    return 0;
}

/* A folder that lies at the place of member `index` holds no manifest. */
static int fail_no_manifest(const manifest *m, const manifest *reference, uint32_t place, pst_error *err)
{
    if (reference == NULL || place >= reference->members)
        return pst_fail(err, PST_E_FORMAT, m->folder, "belongs to no stripe set (it has no %s)", MANIFEST);
    return pst_fail(err, PST_E_FORMAT, m->folder,
                    "is not member %u of the stripe set (it has no %s); that was %s when the set was made", place,
                    MANIFEST, remembered(reference, place));
}

/* All belong to one set, each once; then all are there; then each is in its place. */
static int check_set(const manifest *known, uint32_t count, pst_error *err)
{
    const manifest *reference = find_reference(known, count);
    bool there[PST_STRIPE_MAX_MEMBERS] = {false};
    for (uint32_t i = 0; i < count; i++) {
        if (known[i].document == NULL)
            return fail_no_manifest(&known[i], reference, i, err);
        PST_TRY(check_member(&known[i], reference, known, err));
        there[known[i].index] = true;
    }
    for (uint64_t i = 0; i < reference->members; i++) {
        if (!there[i])
            return pst_fail(err, PST_E_FORMAT, remembered(reference, i),
                            "is missing: this was member %llu of the %llu of the stripe set of %s, and is not among "
                            "the folders named",
                            (unsigned long long)i, (unsigned long long)reference->members, reference->folder);
    }
    for (uint32_t i = 0; i < count; i++) {
        if (known[i].index != i)
            return pst_fail(err, PST_E_FORMAT, known[i].folder,
                            "was named in place %u and is member %llu of the stripe set (counted from 0)", i,
                            (unsigned long long)known[i].index);
    }
    return 0;
}

int pst_stripe_open(const char *const *folders, uint32_t count, pst_stripe_set **out, pst_error *err)
{
    manifest known[PST_STRIPE_MAX_MEMBERS];
    PST_TRY(check_folders(folders, count, known, err));
    int status = 0;
    for (uint32_t i = 0; i < count && status >= 0; i++)
        status = read_manifest(&known[i], err);
    if (status >= 0)
        status = check_set(known, count, err);
    pst_stripe_set *set = NULL;
    if (status >= 0) {
        set = pst_heap_calloc(1, sizeof *set);
        if (set == NULL)
            status = pst_fail_memory(err, folders[0], sizeof *set);
    }
    if (status >= 0) {
        set->stripe_bytes = known[0].stripe_bytes;
        for (uint32_t i = 0; i < count && status >= 0; i++, set->count++) {
            set->folders[i] = pst_heap_strdup(folders[i]);
            if (set->folders[i] == NULL)
                status = pst_fail_memory(err, folders[i], strlen(folders[i]));
        }
    }
    for (uint32_t i = 0; i < count; i++)
        json_decref(known[i].document);
    if (status < 0) {
        pst_stripe_close(set);
        return status;
    }
    *out = set;
    return 0;
}

int pst_stripe_open_member(const char *folder, pst_stripe_set **out, pst_error *err)
{
    manifest known[1];
    const char *folders[PST_STRIPE_MAX_MEMBERS];
    PST_TRY(check_folders(&folder, 1, known, err));
    int status = read_manifest(&known[0], err);
    if (status >= 0 && known[0].document == NULL)
        status = fail_no_manifest(&known[0], NULL, 0, err);
    if (status >= 0) {
        for (uint64_t i = 0; i < known[0].members; i++)
            folders[i] = i == known[0].index ? folder : remembered(&known[0], i);
        status = pst_stripe_open(folders, (uint32_t)known[0].members, out, err);
    }
    json_decref(known[0].document);
    return status;
}

void pst_stripe_close(pst_stripe_set *set)
{
    if (set == NULL)
        return;
    for (uint32_t i = 0; i < set->count; i++)
        pst_heap_free(set->folders[i]);
    pst_heap_free(set);
}

uint32_t pst_stripe_members(const pst_stripe_set *set)
{
    return set->count;
}

uint64_t pst_stripe_bytes(const pst_stripe_set *set)
{
    return set->stripe_bytes;
}

/* ---- striped files ---- */

/* Relative, and without any part that leads elsewhere or stands for the manifest. */
static int check_name(const char *name, pst_error *err)
{
    const char *shown = name != NULL ? name : "";
    for (const char *at = shown;;) {
        size_t length = strcspn(at, "/");
        if (length == 0 || (length == 1 && at[0] == '.') || (length == 2 && at[0] == '.' && at[1] == '.'))
            return pst_fail(err, PST_E_USAGE, shown, "is not the name of a file in a stripe set");
        if (at[length] == '\0')
            break;
        at += length + 1;
    }
    if (strcmp(shown, MANIFEST) == 0)
        return pst_fail(err, PST_E_USAGE, shown, "is the stripe set's manifest");
    return 0;
}

/* What there is of a file before it is created. */
typedef struct presence {
    char *paths[PST_STRIPE_MAX_MEMBERS]; /* owned */
    bool there[PST_STRIPE_MAX_MEMBERS];
} presence;

static void release_paths(presence *p, uint32_t count)
{
    for (uint32_t i = 0; i < count; i++)
        pst_heap_free(p->paths[i]);
}

static int name_parts(const pst_stripe_set *set, const char *name, presence *out, pst_error *err)
{
    *out = (presence){.paths = {NULL}};
    for (uint32_t i = 0; i < set->count; i++) {
        out->paths[i] = join(set->folders[i], name);
        if (out->paths[i] == NULL) {
            release_paths(out, i);
            return fail_join(set->folders[i], err);
        }
    }
    return 0;
}

static int fail_lacking(const char *path, const char *name, uint32_t index, pst_error *err)
{
    return pst_fail(err, -ENOENT, path, "member %u of the stripe set lacks its part of %s", index, name);
}

/* A file may be created where no part of it is, or only empty ones (a creation that was interrupted), or where the
 * parts that are there shall lose their content. Otherwise a lost part would become an empty one. */
static int look_before_creating(const pst_stripe_set *set, const char *name, unsigned flags, presence *p,
                                pst_error *err)
{
    uint32_t lacking = set->count;
    uint64_t content = 0;
    for (uint32_t i = 0; i < set->count; i++) {
        struct statx info;
        int status = pst_sys->statx(AT_FDCWD, p->paths[i], 0, STATX_TYPE | STATX_SIZE, &info);
        if (status < 0 && status != -ENOENT)
            return pst_fail(err, status, p->paths[i], "cannot examine: %s", pst_strerror(status));
        p->there[i] = status >= 0;
        if (status >= 0 && (flags & PST_IO_OPEN_EXCLUSIVE) != 0)
            return pst_fail(err, -EEXIST, p->paths[i], "cannot create: %s", pst_strerror(-EEXIST));
        if (status < 0 && lacking == set->count)
            lacking = i;
        else if (status >= 0)
            content |= info.stx_size;
    }
    if (lacking < set->count && content != 0 && (flags & PST_IO_OPEN_TRUNCATE) == 0)
        return fail_lacking(p->paths[lacking], name, lacking, err);
    return 0;
}

/* A part is a regular file, and one of its own. */
static int check_part(const struct pst_io_striping *s, uint32_t index, pst_error *err)
{
    const pst_io_file *part = s->members[index];
    if (part->block_device)
        return pst_fail(err, PST_E_UNSUPPORTED, part->path, "is a block device, and no part of a striped file");
    for (uint32_t i = 0; i < index; i++) {
        if (s->members[i]->device == part->device && s->members[i]->inode == part->inode)
            return pst_fail(err, PST_E_FORMAT, part->path, "is the same file as %s", s->members[i]->path);
    }
    return 0;
}

/* Opens the parts into file->striping; sizes are not looked at yet. */
static int open_parts(const pst_stripe_set *set, pst_io_file *file, const char *name, unsigned flags, const presence *p,
                      pst_error *err)
{
    struct pst_io_striping *s;
    if (pst_io_striping_create(set->stripe_bytes, set->count, &s) < 0)
        return pst_fail_memory(err, file->path, sizeof *s);
    file->striping = s;
    for (uint32_t i = 0; i < set->count; i++) {
        /* Nothing is lost yet if the next one cannot be opened. */
        unsigned how = flags & ~(unsigned)PST_IO_OPEN_TRUNCATE;
        int status = pst_io_file_open(file->io, p->paths[i], how, &s->members[i], err);
        if (status == -ENOENT && (flags & PST_IO_OPEN_CREATE) == 0)
            return fail_lacking(p->paths[i], name, i, err);
        PST_TRY(status);
        PST_TRY(check_part(s, i, err));
        const pst_io_file *part = s->members[i];
        if (part->offset_align > file->offset_align)
            file->offset_align = part->offset_align;
        if (part->memory_align > file->memory_align)
            file->memory_align = part->memory_align;
    }
    if ((flags & PST_IO_OPEN_TRUNCATE) != 0)
        return pst_io_striping_truncate(s, 0, err);
    return pst_io_striping_check(s, &file->bytes, err);
}

/* Takes away what a failed creation made. */
static void remove_new(const presence *p, const pst_io_file *file)
{
    for (uint32_t i = 0; file->striping != NULL && i < file->striping->count; i++) {
        if (!p->there[i] && file->striping->members[i] != NULL)
            pst_file_remove(p->paths[i], NULL);
    }
}

int pst_stripe_file_open(pst_stripe_set *set, pst_io *io, const char *name, unsigned flags, pst_io_file **out,
                         pst_error *err)
{
    presence p;
    pst_io_file *file;
    PST_TRY(check_name(name, err));
    PST_TRY(name_parts(set, name, &p, err));
    int status = pst_io_file_create(io, p.paths[0], flags, &file, err);
    if (status >= 0) {
        if ((flags & PST_IO_OPEN_CREATE) != 0)
            status = look_before_creating(set, name, flags, &p, err);
        bool looked = status >= 0;
        if (looked)
            status = open_parts(set, file, name, flags, &p, err);
        if (status < 0 && looked && (flags & PST_IO_OPEN_CREATE) != 0)
            remove_new(&p, file);
        if (status < 0)
            pst_io_file_close(file, NULL);
    }
    release_paths(&p, set->count);
    PST_TRY(status);
    *out = file;
    return 0;
}

/* All that can be removed; the first error. */
int pst_stripe_file_remove(pst_stripe_set *set, const char *name, pst_error *err)
{
    presence p;
    PST_TRY(check_name(name, err));
    PST_TRY(name_parts(set, name, &p, err));
    int status = 0;
    for (uint32_t i = 0; i < set->count; i++) {
        int removed = pst_file_remove(p.paths[i], status < 0 ? NULL : err);
        if (status >= 0)
            status = removed;
    }
    release_paths(&p, set->count);
    return status;
}
