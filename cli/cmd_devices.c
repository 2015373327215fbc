/* SPDX-License-Identifier: Apache-2.0 */
/* penstock devices: what can compute here, and why not more. */
#include "common.h"
#include "machine.h"
#include "output.h"

typedef struct devices_values {
    cli_report report;
} devices_values;

static const pst_option_group groups[] = {
    CLI_SHARED_GROUP("Output", cli_report_rows, devices_values, report),
};

static int show(const pst_device_info *device, json_t *results, pst_error *err)
{
    if (results == NULL)
        return cli_print_device(device, err);
    return cli_json_append(results, cli_device_json(device)) < 0 ? pst_fail_memory(err, "the JSON document", 0) : 0;
}

/* Every accelerator, in order; how many, and why the last plugin has no more. One that cannot be asked is told about, and does
 * not hide the others. */
static int show_accelerators(const char *plugin, json_t *results, uint32_t *count, pst_error *why, pst_error *err)
{
    *count = 0;
    for (uint32_t number = 0;; number++) {
        pst_device_info device = {.struct_size = sizeof device};
        int status = pst_device_describe(plugin, number, &device, why);
        if (status == PST_E_UNSUPPORTED)
            return 0;
        if (status < 0 && (plugin != NULL || number >= 1000)) { /* the plugin is what was asked about */
            *err = *why;
            return status;
        }
        if (status < 0) {
            cli_note("%s", why->message);
            continue;
        }
        PST_TRY(show(&device, results, err));
        ++*count;
    }
}

static int show_all(const char *plugin, json_t *results, char *none, size_t none_bytes, pst_error *err)
{
    uint32_t count;
    pst_error why = {.offset = PST_NO_OFFSET};
    PST_TRY(show_accelerators(plugin, results, &count, &why, err));
    if (plugin != NULL) { /* asked for, it has to have one */
        if (count == 0)
            *err = why;
        return count > 0 ? 0 : why.code;
    }
    pst_device_info host = {.struct_size = sizeof host};
    PST_TRY(pst_device_find("host", &host, err));
    PST_TRY(show(&host, results, err));
    if (count == 0)
        pst_error_format(&why, none, none_bytes);
    return 0;
}

static int devices(const void *all_values, const pst_options_found *found, pst_error *err)
{
    const devices_values *values = all_values;
    char none[1200] = "";
    cli_notes_start(&values->report);
    json_t *results = values->report.json ? json_array() : NULL;
    if (values->report.json && results == NULL)
        return pst_fail_memory(err, "the JSON document", 0);
    int status = show_all(found->operand_count > 0 ? found->operands[0] : NULL, results, none, sizeof none, err);
    if (status < 0) {
        json_decref(results);
        return status;
    }
    if (results != NULL)
        return cli_out_json(json_pack("{s:o, s:o}", "results", results, "no_accelerator",
                                      none[0] != '\0' ? cli_safe_json(none) : json_null()),
                            err);
    if (none[0] != '\0') {
        PST_TRY(cli_out_text("no accelerator: ", err));
        PST_TRY(cli_out_safe(none, err));
        PST_TRY(cli_out_text("\n", err));
    }
    return cli_out_flush(err);
}

const cli_command cli_command_devices = {
    .spec =
        {.name = "devices",
         .operands = "[PLUGIN]",
         .min_operands = 0,
         .max_operands = 1,
         .summary = "what can compute here, and why not more",
         .description =
             "Lists what --device can name: accelerators with their memory, compute capability, link to the host and "
             "whether drives can write into their memory (GPUDirect Storage), and the host's processor. Where there is "
             "no accelerator, a line says why. Accelerators come from plugins, files libpenstock-NAME.so beside "
             "libpenstock.so or in penstock/ there. With PLUGIN, a plugin's name or its file (a name with a slash), "
             "lists that one's devices alone, and fails where it has none.",
         .example = "  penstock devices\n"
                    "  penstock devices ./libpenstock-cuda.so --json\n",
         .groups = groups,
         .group_count = CLI_COUNT(groups),
         .values_bytes = sizeof(devices_values)},
    .run = devices,
};
