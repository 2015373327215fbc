/* SPDX-License-Identifier: Apache-2.0 */
/* For tests/peers: what files of torch.save hold, one line of JSON for each; or {"error": "..."}. Usage: torch_dump FILE... */
#include <stdio.h>
#include <stdlib.h>

#include "base/error.h"
#include "support/torch_json.h"

int main(int argc, char **argv)
{
    for (int i = 1; i < argc; i++) {
        pst_torch_file file;
        pst_error err;
        char text[1200];
        json_t *json;
        if (pst_torch_file_read(argv[i], &file, &err) < 0) {
            json = json_pack("{s:s}", "error", pst_error_format(&err, text, sizeof text));
        } else {
            json = torch_json(argv[i], &file);
            pst_torch_file_free(&file);
        }
        char *line = json_dumps(json, JSON_ENCODE_ANY | JSON_COMPACT);
        if (line == NULL)
            return 1;
        puts(line);
        free(line);
        json_decref(json);
    }
    return 0;
}
