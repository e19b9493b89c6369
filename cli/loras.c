/* SPDX-License-Identifier: Apache-2.0 */
/* loras.c -- --lora FILE[:STRENGTH], and what became of the files. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "cli/cli.h"

int cli_add_lora(struct cli_options *o, const char *text)
{
    const char *colon = strrchr(text, ':'), *path = text;
    double strength = 1.0;
    char shown[512], *end;

    if (o->n_loras == HR_LORA_FILES_MAX)
        return cli_usage("--lora: more than %d", HR_LORA_FILES_MAX);
    /* A file may have a colon in its name. */
    if (colon && access(text, F_OK) < 0) {
        strength = strtod(colon + 1, &end);
        if (end == colon + 1 || *end || !isfinite((float) strength))
            return cli_usage("--lora: \"%s\" is no file, and what follows its last colon is no "
                             "finite number; expected FILE or FILE:STRENGTH",
                             cli_printable(shown, sizeof(shown), text));
        path = strndup(text, (size_t) (colon - text));
    }
    if (!path)
        return cli_usage("--lora: no memory");
    /* Counted when it is right; the copy lives as long as the options, to the end. */
    o->loras[o->n_loras] = (struct hr_lora_file){path, (float) strength};
    if (!path[0])
        return cli_usage("--lora: an empty name; expected FILE or FILE:STRENGTH");
    for (uint32_t i = 0; i < o->n_loras; i++)
        if (strcmp(o->loras[i].path, path) == 0)
            return cli_usage("--lora: %s is given twice; give it once, with the sum of the "
                             "strengths",
                             cli_printable(shown, sizeof(shown), path));
    o->n_loras++;
    return CLI_OK;
}

void cli_loras_json(json_t *obj, const struct cli_options *o, const struct hr_dit_stats *stats)
{
    json_t *loras = json_array();

    for (uint32_t i = 0; i < stats->n_loras; i++) {
        const struct hr_lora_report *report = &stats->loras[i];
        json_t *ignored = json_array();

        for (uint32_t k = 0; k < HR_LORA_NAMES_SHOWN && report->ignored[k]; k++)
            json_array_append_new(ignored, cli_json_text(report->ignored[k]));
        json_array_append_new(loras, json_pack("{s:o, s:f, s:i, s:i, s:o}", "path",
                                               cli_json_text(o->loras[i].path), "strength",
                                               (double) o->loras[i].strength, "n_modules",
                                               (int) report->n_modules, "n_ignored",
                                               (int) report->n_ignored, "ignored", ignored));
    }
    if (stats->n_loras > 0) {
        json_object_set_new(obj, "lora_mode",
                            json_string(o->lora_mode == HR_LORA_MERGED ? "merged" : "runtime"));
        json_object_set_new(obj, "lora_bytes", json_integer((json_int_t) stats->lora_bytes));
        json_object_set(obj, "loras", loras);
    }
    json_decref(loras);
}

void cli_loras_text(const struct cli_options *o, const struct hr_dit_stats *stats)
{
    char shown[512], size[32];

    for (uint32_t i = 0; i < stats->n_loras; i++)
        printf("lora      %s: strength %g, %u layers%s\n",
               cli_printable(shown, sizeof(shown), o->loras[i].path), (double) o->loras[i].strength,
               stats->loras[i].n_modules, stats->loras[i].n_ignored ? ", others ignored" : "");
    if (stats->n_loras > 0)
        printf("          %s, %s of the activations' memory\n",
               o->lora_mode == HR_LORA_MERGED ? "merged into the weights as they stream by"
                                              : "added at run time",
               cli_size(size, stats->lora_bytes));
}
