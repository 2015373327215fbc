/* SPDX-License-Identifier: Apache-2.0 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/heap.h"
#include "common.h"
#include "plot.h"

int plot_file_check(const char *path, pst_error *err)
{
    static const char *const others[] = {".png", ".jpg", ".jpeg", ".pdf"};
    const char *end = strrchr(path, '.');
    if (path[0] == '\0')
        return cli_usage(err, "--plot needs the name of a file");
    for (size_t i = 0; end != NULL && i < CLI_COUNT(others); i++) {
        if (strcasecmp(end, others[i]) == 0)
            return cli_usage(err, "--plot: %.200s: charts are SVG, so name it FILE.svg", path);
    }
    return cli_check_writable(path, err);
}

/* Under a name of its own first, so that a chart that was there is replaced by a whole one or not at all. */
static int write_file(const char *path, char *temporary, plot_draw *draw, const void *user, pst_error *err)
{
    int fd = mkstemp(temporary);
    FILE *to = fd >= 0 ? fdopen(fd, "w") : NULL;
    if (to == NULL) {
        int cause = errno;
        if (fd >= 0) {
            close(fd);
            unlink(temporary);
        }
        return pst_fail(err, -cause, path, "cannot create: %s", strerror(cause));
    }
    mode_t mask = umask(0);
    umask(mask);
    int status = draw(user, to, err);
    bool failed = fflush(to) != 0 || ferror(to) || fchmod(fd, 0666 & ~mask) != 0;
    int cause = errno;
    if (fclose(to) != 0 && !failed) {
        failed = true;
        cause = errno;
    }
    if (status >= 0 && !failed && rename(temporary, path) == 0)
        return 0;
    if (status >= 0 && !failed)
        cause = errno;
    unlink(temporary);
    return status < 0 ? status : pst_fail(err, -cause, path, "cannot write: %s", strerror(cause));
}

int plot_file_write(const char *path, plot_draw *draw, const void *user, pst_error *err)
{
    char *temporary = pst_heap_printf("%s.tmp-XXXXXX", path);
    if (temporary == NULL)
        return pst_fail_memory(err, path, strlen(path));
    int status = write_file(path, temporary, draw, user, err);
    pst_heap_free(temporary);
    return status;
}
