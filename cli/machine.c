/* SPDX-License-Identifier: Apache-2.0 */
#include "machine.h"

#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

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

/* The processor's name as the kernel has it. */
static void find_processor(char *name, size_t name_bytes)
{
    FILE *from = fopen("/proc/cpuinfo", "re");
    char line[256];
    snprintf(name, name_bytes, "unknown");
    while (from != NULL && fgets(line, sizeof line, from) != NULL) {
        const char *colon = strchr(line, ':');
        if (strncmp(line, "model name", 10) != 0 || colon == NULL)
            continue;
        colon += 1 + strspn(colon + 1, " ");
        snprintf(name, name_bytes, "%.*s", (int)strcspn(colon, "\n"), colon);
        break;
    }
    if (from != NULL)
        fclose(from);
}

json_t *cli_machine_json(void)
{
    char processor[200];
    find_processor(processor, sizeof processor);
    cli_make_safe(processor, strlen(processor));
    long pages = sysconf(_SC_PHYS_PAGES), page = sysconf(_SC_PAGE_SIZE);
    return json_pack("{s:s, s:I, s:I}", "processor", processor, "processors", (json_int_t)sysconf(_SC_NPROCESSORS_ONLN),
                     "memory_bytes", (json_int_t)(pages > 0 && page > 0 ? (double)pages * (double)page : 0));
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
