/* SPDX-License-Identifier: Apache-2.0 */
/* Writing routing; see routing_out.h. */
#include "routing_out.h"

#include <errno.h>
#include <string.h>

#include "common.h"

static int write_row(void *user, uint64_t sequence, uint32_t position, const uint32_t *experts, uint32_t layers,
                     uint32_t per_token)
{
    (void)sequence;
    (void)position;
    cli_routing_out *out = user;
    for (uint32_t layer = 0; layer < layers; layer++)
        for (uint32_t i = 0; i < per_token; i++)
            fprintf(out->file, "%s%u", i > 0 ? "," : layer > 0 ? "],[" : "[[", *experts++);
    if (fputs("]]\n", out->file) == EOF && out->error == 0)
        out->error = errno;
    return out->error != 0;
}

int cli_routing_out_open(cli_routing_out *out, const char *path, pst_session_options *shape, pst_error *err)
{
    *out = (cli_routing_out){.path = path};
    if (path == NULL)
        return 0;
    out->file = fopen(path, "we");
    if (out->file == NULL)
        return pst_fail(err, -errno, path, "cannot be written: %s", strerror(errno));
    shape->on_routing = write_row;
    shape->on_routing_user = out;
    return 0;
}

int cli_routing_out_close(cli_routing_out *out, int status, pst_error *err)
{
    if (out->file == NULL)
        return status;
    if (ferror(out->file) && out->error == 0)
        out->error = EIO;
    if (fclose(out->file) != 0 && out->error == 0)
        out->error = errno;
    out->file = NULL;
    if (out->error == 0 || (status < 0 && status != PST_E_CANCELLED))
        return status;
    return pst_fail(err, -out->error, out->path, "cannot be written: %s", strerror(out->error));
}
