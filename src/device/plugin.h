/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Plugins: shared libraries that hold devices (penstock/device_plugin.h).
 *
 * A plugin's name is of a-z 0-9 _ -; its file is libpenstock-NAME.so in the folder of libpenstock.so, or in penstock/ in that
 * folder. In a program that has the library inside, it is the program's folder that counts. No other place is looked in, and
 * no search path of the loader: what a user's working folder or environment holds is not run.
 *
 * What was loaded and found to be a plugin stays loaded until the process ends: a vendor's driver registers functions for the
 * end of the process and has threads of its own, none of which may find its code gone.
 */
#ifndef PST_DEVICE_PLUGIN_H
#define PST_DEVICE_PLUGIN_H

#include "penstock/device_plugin.h"

/* A device's name in its parts: "cuda:1", "/opt/libx.so:1". */
typedef struct pst_device_name {
    char plugin[4096]; /* a plugin's name, or its file where it has a slash */
    bool is_file, has_number;
    uint32_t number;
} pst_device_name;

int pst_device_name_parse(const char *text, pst_device_name *out, pst_error *err);

/* Names of plugins that are looked for where none is named, in this order; ends with NULL. */
extern const char *const pst_plugin_names[];

/* Loads a plugin (a name, or a file where it has a slash) and checks its table. *out is the plugin's own. */
int pst_plugin_load(const char *plugin, const pst_device_plugin **out, pst_error *err);
/* How many devices it has, at least 1; without any it fails with why. */
int pst_plugin_count(const pst_device_plugin *plugin, uint32_t *out, pst_error *err);
/* Fails when `number` is none of so many. */
int pst_plugin_check_number(const pst_device_plugin *plugin, uint32_t number, uint32_t count, pst_error *err);
/* Describes one of them; every text ends, whatever the plugin wrote. */
int pst_plugin_describe(const pst_device_plugin *plugin, uint32_t number, pst_device_info *out, pst_error *err);
/* Opens one of them and checks its table. The caller destroys *out. */
int pst_plugin_open(const pst_device_plugin *plugin, uint32_t number, pst_device **out, pst_error *err);

#endif
