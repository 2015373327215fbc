/* SPDX-License-Identifier: Apache-2.0 */
/* What the figures of a measurement belong to: the machine, and the file systems of folders. */
#ifndef PENSTOCK_CLI_MACHINE_H
#define PENSTOCK_CLI_MACHINE_H

#include <jansson.h>

#include "cli.h"
#include "penstock/device.h"

typedef struct cli_mount {
    char type[64], source[256]; /* "": unknown */
} cli_mount;

void cli_find_mount(const char *path, cli_mount *out);
/* "/mnt/nvme: ext4 on /dev/nvme0n1", a line. */
int cli_print_mount(const char *path, pst_error *err);
/* New references; NULL when out of memory. {"path", "file_system", "device"}; {"processor", "processors", "memory_bytes"};
 * a text made harmless. */
json_t *cli_folder_json(const char *path);
json_t *cli_machine_json(void);
/* A device: all that is known of it. */
json_t *cli_device_json(const pst_device_info *device);
int cli_print_device(const pst_device_info *device, pst_error *err);
json_t *cli_safe_json(const char *text);

#endif
