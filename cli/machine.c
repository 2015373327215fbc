/* SPDX-License-Identifier: Apache-2.0 */
#include "machine.h"

#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/stats.h"
#include "output.h"

/* "\040" of mountinfo is a space. In place. */
static void unescape(char *text)
{
    char *to = text;
    for (const char *from = text; *from != '\0';) {
        if (from[0] == '\\' && strspn(from + 1, "01234567") >= 3) {
            *to++ = (char)((from[1] - '0') * 64 + (from[2] - '0') * 8 + (from[3] - '0'));
            from += 4;
        } else {
            *to++ = *from++;
        }
    }
    *to = '\0';
}

static bool lies_in(const char *path, const char *mount)
{
    size_t length = strlen(mount);
    if (strcmp(mount, "/") == 0)
        return true;
    return strncmp(path, mount, length) == 0 && (path[length] == '/' || path[length] == '\0');
}

/* The file system of the longest mount point above the path; of equals the last, which hides the others. */
void cli_find_mount(const char *path, cli_mount *out)
{
    *out = (cli_mount){.type = ""};
    char *real = realpath(path, NULL);
    FILE *mounts = fopen("/proc/self/mountinfo", "re");
    char *line = NULL;
    size_t room = 0, longest = 0;
    while (real != NULL && mounts != NULL && getline(&line, &room, mounts) > 0) {
        char mount[PATH_MAX], type[64], source[256];
        const char *rest = strstr(line, " - ");
        if (rest == NULL || sscanf(line, "%*s %*s %*s %*s %4095s", mount) != 1 ||
            sscanf(rest + 3, "%63s %255s", type, source) != 2)
            continue;
        unescape(mount);
        unescape(source);
        if (!lies_in(real, mount) || strlen(mount) < longest)
            continue;
        longest = strlen(mount);
        snprintf(out->type, sizeof out->type, "%s", type);
        snprintf(out->source, sizeof out->source, "%s", source);
    }
    free(line);
    if (mounts != NULL)
        fclose(mounts);
    free(real);
}

json_t *cli_machine_json(void)
{
    pst_device_info host = {.struct_size = sizeof host};
    (void)pst_device_find("host", &host, NULL); /* its name stays "" where nothing is known */
    long pages = sysconf(_SC_PHYS_PAGES), page = sysconf(_SC_PAGE_SIZE);
    return json_pack("{s:o, s:I, s:I}", "processor", cli_safe_json(host.model), "processors",
                     (json_int_t)sysconf(_SC_NPROCESSORS_ONLN), "memory_bytes",
                     (json_int_t)(pages > 0 && page > 0 ? (double)pages * (double)page : 0));
}

json_t *cli_safe_json(const char *text)
{
    char copy[PATH_MAX];
    snprintf(copy, sizeof copy, "%s", text);
    size_t bytes = cli_make_safe(copy, strlen(copy));
    return json_stringn(copy, bytes);
}

json_t *cli_folder_json(const char *path)
{
    cli_mount mount;
    cli_find_mount(path, &mount);
    return json_pack("{s:o, s:o, s:o}", "path", cli_safe_json(path), "file_system", cli_safe_json(mount.type), "device",
                     cli_safe_json(mount.source));
}

int cli_print_mount(const char *path, pst_error *err)
{
    cli_mount mount;
    cli_find_mount(path, &mount);
    PST_TRY(cli_out_safe(path, err));
    PST_TRY(cli_out_printf(err, ": %s on ", mount.type[0] != '\0' ? mount.type : "unknown file system"));
    PST_TRY(cli_out_safe(mount.source[0] != '\0' ? mount.source : "an unknown device", err));
    return cli_out_text(strcmp(mount.type, "tmpfs") == 0 ? " (memory, no drive)\n" : "\n", err);
}

json_t *cli_device_json(const pst_device_info *device)
{
    char compute[32] = "";
    if (device->compute_major > 0)
        snprintf(compute, sizeof compute, "%u.%u", device->compute_major, device->compute_minor);
    return json_pack(
        "{s:o, s:o, s:I, s:I, s:s, s:I, s:f, s:f, s:o, s:b, s:o, s:o, s:o}", "name", cli_safe_json(device->name),
        "model", cli_safe_json(device->model), "total_bytes", (json_int_t)device->total_bytes, "free_bytes",
        (json_int_t)device->free_bytes, "compute_capability", compute, "processors", (json_int_t)device->processors,
        "memory_bytes_per_second", device->memory_bytes_per_second, "link_bytes_per_second",
        device->link_bytes_per_second, "link", cli_safe_json(device->link), "has_direct_storage",
        (int)device->has_direct_storage, "direct_storage", cli_safe_json(device->direct_storage), "matrix_library",
        cli_safe_json(device->matrix_library), "kernels", cli_safe_json(device->kernels));
}

/* ", what" unless it is empty; control characters replaced. */
static int print_fact(const char *before, const char *what, pst_error *err)
{
    if (what[0] == '\0')
        return 0;
    PST_TRY(cli_out_text(before, err));
    return cli_out_safe(what, err);
}

static int print_accelerator(const pst_device_info *device, pst_error *err)
{
    char rate[32];
    if (device->compute_major > 0)
        PST_TRY(cli_out_printf(err, ", compute capability %u.%u", device->compute_major, device->compute_minor));
    if (device->processors > 0)
        PST_TRY(cli_out_printf(err, ", %u multiprocessors", device->processors));
    if (device->memory_bytes_per_second > 0)
        PST_TRY(
            cli_out_printf(err, ", memory %s/s", pst_format_bytes(device->memory_bytes_per_second, rate, sizeof rate)));
    PST_TRY(cli_out_text("\n  link: ", err));
    PST_TRY(cli_out_safe(device->link[0] != '\0' ? device->link : "not known", err));
    if (device->link_bytes_per_second > 0)
        PST_TRY(cli_out_printf(err, ", %s/s", pst_format_bytes(device->link_bytes_per_second, rate, sizeof rate)));
    PST_TRY(cli_out_printf(err, "\n  GPUDirect Storage: %s", device->has_direct_storage ? "yes" : "no"));
    PST_TRY(print_fact(", ", device->direct_storage, err));
    PST_TRY(print_fact("\n  products of prompts: ", device->matrix_library, err));
    return cli_out_text("\n", err);
}

int cli_print_device(const pst_device_info *device, pst_error *err)
{
    char total[32], available[32];
    PST_TRY(cli_out_safe(device->name, err));
    PST_TRY(print_fact(": ", device->model, err));
    if (device->total_bytes > 0)
        PST_TRY(cli_out_printf(err, ", %s of memory, %s free",
                               pst_format_bytes((double)device->total_bytes, total, sizeof total),
                               pst_format_bytes((double)device->free_bytes, available, sizeof available)));
    if (device->kernels[0] == '\0')
        return print_accelerator(device, err);
    return cli_out_printf(err, ", %u %s, kernels %s\n", device->processors,
                          device->processors == 1 ? "thread" : "threads", device->kernels);
}
